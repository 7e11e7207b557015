"""Whether the memory's predictions held: a page with the reliability curve and the ROC curve, and the tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retain.report.page import document, save
from retain.report.svg import Markup, Panel, clean, cut, dot, join, picture, rule, spread, tag, text
from retain.report.tables import plain_table
from retain.report.words import compact, number, signed, whole

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

GROUPS = {
    "unreviewed": (
        "Not reviewed in the stage",
        "Stored samples over each stage in which they were not replayed: forgotten as the definition has it. "
        "Replay chose who is missing here.",
    ),
    "intervals": (
        "Up to the first review, or the stage's end",
        "Every stored sample once a stage, so that nobody is missing: a review ends the time over which its loss "
        "is compared.",
    ),
    "stored": (
        "Every stored sample at the stage's end",
        "Whether it was replayed in the stage or not, its strength at the end against the rise of its loss over "
        "the stage.",
    ),
}
PREDICTORS = {
    "retention": "memory: retention",
    "strength": "memory: strength",
    "waited": "time since review",
    "last_loss": "last loss",
    "random": "random",
}
COLORS = {
    "retention": "var(--strong)",
    "strength": "var(--strong)",
    "waited": "var(--task1)",
    "last_loss": "var(--task2)",
    "random": "var(--base)",
}
COLUMNS = {
    "spearman": "rank correlation",
    "auc": "AUC",
    "spearman_within": "rank correlation in a stage",
    "auc_within": "AUC in a stage",
}
LEAD = (
    "Rank correlation of a predictor with the rise of the loss (0 is chance), and how often it ranks a forgotten "
    "sample above a kept one (AUC, 0.5 is chance); over all stages, and among samples of one stage only, as replay "
    "chooses. In brackets 95 % bootstrap intervals over samples; other seeds may differ by more."
)


def sentence(found: dict[str, Any]) -> str:
    """What the numbers say, in one or two sentences."""
    name = main_group(found)
    group = found["groups"][name]
    memory = group["measures"]["retention"]
    share = group["forgotten"] / group["observations"]
    said = f"{number(100 * share, 0)} % of {whole(group['observations'])} observations are forgotten."
    if memory["auc"][0] is None:
        return f"{said} With one outcome only nothing can be ranked here."
    rivals = {key: group["measures"][key]["auc"] for key in ("waited", "last_loss") if key in group["measures"]}
    best, rival = max(rivals.items(), key=lambda pair: pair[1][0])
    said += f" Over all stages the memory {_verdict(memory['auc'])}; {PREDICTORS[best]} has {number(rival[0])}."
    if memory["auc_within"][0] is not None:
        said += f" Within a stage, where replay chooses, it {_verdict(memory['auc_within'])}."
    scores = group["reliability"]
    better = scores["log_loss"] < scores["log_loss_constant"]
    return (
        f"{said} As probabilities its strengths score {number(scores['log_loss'])} nats, a constant "
        f"{number(scores['log_loss_constant'])}{'' if better else ': they are not calibrated (see retain fit)'}."
    )


def _verdict(auc: Sequence[float]) -> str:
    """What an AUC and its interval say of a predictor."""
    value, low, high = auc
    told = "tells them from the kept ones" if low > 0.5 else "does not tell them from the kept ones"
    told = "points the wrong way" if high < 0.5 else told
    return f"{told} (AUC {number(value)}, {number(low)} to {number(high)})"


def main_group(found: dict[str, Any]) -> str:
    """The group of the definition, or the next one where replay left nobody out of it."""
    return "unreviewed" if found["groups"]["unreviewed"]["observations"] else "intervals"


def write_page(path: Path, found: dict[str, Any]) -> Path:
    """Write the page of one calibrated run."""
    return save(path, document(f"{found['run']}: calibration", body(found)))


def body(found: dict[str, Any]) -> Markup:
    """Headline, figures, and a table for each group."""
    sections = [_section(name, group) for name, group in found["groups"].items() if group["observations"]]
    gone = found["text_gone"]
    note = f"{whole(gone)} observations are left out, for the texts of their samples are gone." if gone else None
    return join(
        tag("h1", "Calibration"),
        tag("p", found["run"], class_="meta"),
        tag("p", sentence(found), class_="headline"),
        tag("p", note, class_="warning") if note else None,
        tag("h2", "How to read it"),
        tag("p", LEAD, class_="lead"),
        sections,
    )


def _section(name: str, group: dict[str, Any]) -> Markup:
    title, lead = GROUPS[name]
    count = f" {whole(group['observations'])} observations, {whole(group['forgotten'])} forgotten."
    figures = [_roc(group)]
    if group["reliability"]:
        figures.insert(0, _reliability(group["reliability"]))
    return tag(
        "section",
        tag("h2", title),
        tag("p", lead, count, class_="lead"),
        tag("div", [tag("div", one) for one in figures], class_="runs"),
        _measures(group["measures"]),
        tag("h3", "Which samples, and when"),
        _by_task(group["by_task"]),
    )


def _square(title: str, down: str, across: str) -> tuple[Panel, list[object]]:
    panel = Panel(44, 324, 52, 332, (0, 1), (0, 1))
    marks: list[object] = [
        text(0, 14, title, 14, "ink", font_weight=600),
        text(0, 38, down, 11),
        panel.rows(compact),
        [text(panel.x(x), panel.bottom + 16, compact(x), 11, text_anchor="middle") for x in (0, 0.25, 0.5, 0.75, 1)],
        text(panel.right, panel.bottom + 34, across, 11, text_anchor="end"),
        rule(panel.x(0), panel.y(0), panel.x(1), panel.y(1), "base", stroke_dasharray="3 4"),
    ]
    return panel, marks


def _reliability(reliability: dict[str, Any]) -> Markup:
    panel, marks = _square("Reliability", "share kept", "predicted retention")
    color = "var(--strong)"
    bins = reliability["bins"]
    marks.append(panel.line([(one["predicted"], one["kept"]) for one in bins], color, stroke_width=1.5))
    largest = max(one["count"] for one in bins)
    for one in bins:
        x, y = panel.x(one["predicted"]), panel.y(one["kept"])
        tip = (
            f"predicted {number(one['predicted'])}, kept {number(one['kept'])} "
            f"({number(one['low'])} to {number(one['high'])})\n{whole(one['count'])} observations"
        )
        if one["low"] is not None:
            marks.append(rule(x, panel.y(one["low"]), x, panel.y(one["high"]), "strong", stroke_width=2))
        marks.append(dot(x, y, 2.5 + 3 * (one["count"] / largest) ** 0.5, color, data_tip=tip))
    return picture(340, 372, "Predicted retention against the share that was kept", marks)


def _roc(group: dict[str, Any]) -> Markup:
    panel, marks = _square("ROC", "forgotten samples found", "kept samples taken for forgotten")
    shown = [name for name in group["roc"] if not (name == "strength" and "retention" in group["roc"])]
    places = spread([panel.bottom - 14 - 17 * k for k in range(len(shown))], 17, panel.top, panel.bottom - 8)
    for name, y in zip(reversed(shown), places, strict=True):
        value = group["measures"][name]["auc"][0]
        label = f"{PREDICTORS[name]} {number(value)}"
        marks.append(panel.line(group["roc"][name], COLORS[name], stroke_width=2 if name in ("retention", "strength")
                                else 1.5, data_tip=label))  # fmt: skip
        marks.append(join(dot(panel.x(0.47), y - 4, 4, COLORS[name]), text(panel.x(0.5), y, label, 11, "ink")))
    return picture(340, 372, "ROC curves of the memory and of simple predictors", marks)


def _measures(measures: dict[str, Any]) -> Markup:
    head = [tag("th", title, scope="col", class_="n") for title in COLUMNS.values()]
    rows = [
        tag("tr", tag("th", PREDICTORS[name], scope="row"),
            [tag("td", interval(values[column]), class_="n") for column in COLUMNS])
        for name, values in measures.items()
    ]  # fmt: skip
    table = tag("table", tag("thead", tag("tr", tag("td"), head)), tag("tbody", rows), class_="plain")
    return tag("div", table, class_="scroll")


def _by_task(rows: list[dict[str, Any]]) -> Markup:
    titles = ("stage", "samples of", "observations", "forgotten", "predicted", "median rise of the loss")
    head = [tag("th", title, scope="col", class_=None if k == 1 else "n") for k, title in enumerate(titles)]
    lines = []
    for row in rows:
        values = (number(row["forgotten"]), number(row["predicted"]), signed(row["median_change"]))
        cells = [tag("td", row["stage"], class_="n"), tag("td", row["task"]),
                 tag("td", whole(row["observations"]), class_="n")]  # fmt: skip
        lines.append(tag("tr", cells, [tag("td", value, class_="n") for value in values]))
    table = tag("table", tag("thead", tag("tr", head)), tag("tbody", lines), class_="plain")
    return tag("div", table, class_="scroll")


def interval(values: list[float | None]) -> str:
    """0.71 [0.66, 0.75]"""
    value, low, high = values
    return number(value) if low is None else f"{number(value)} [{number(low)}, {number(high)}]"


def calibration_tables(found: dict[str, Any]) -> Group:
    """The same for the terminal. rich is imported when a table is made."""
    from rich.console import Group
    from rich.text import Text

    parts: list[object] = []
    for name, group in found["groups"].items():
        if group["observations"]:
            counts = f"{whole(group['observations'])} observations, {whole(group['forgotten'])} forgotten"
            parts += [Text(f"{GROUPS[name][0]}: {counts}", style="bold"), _measure_table(group["measures"]), Text()]
    parts += [_reliability_table(found["groups"][main_group(found)]["reliability"]), Text(), Text(sentence(found))]
    return Group(*parts)


def _measure_table(measures: dict[str, Any]) -> Table:
    table = plain_table("", *COLUMNS.values())
    for name, values in measures.items():
        table.add_row(PREDICTORS[name], *[interval(values[column]).replace("[", "\\[") for column in COLUMNS])
    return table


def _reliability_table(reliability: dict[str, Any]) -> Table:
    table = plain_table("predicted retention", "kept", "observations")
    for one in reliability["bins"]:
        kept = interval([one["kept"], one["low"], one["high"]]).replace("[", "\\[")
        table.add_row(number(one["predicted"]), kept, whole(one["count"]))
    return table


def fit_table(found: dict[str, Any]) -> Group:
    """Fitted parameters beside the runs' own, how well each predicts, and the lines for a configuration."""
    from rich.console import Group
    from rich.text import Text

    parameters = plain_table("", *found["parameters"])
    parameters.add_row("fitted", *[f"{value:g}" for value in found["parameters"].values()])
    for run, own in zip(found["runs"], found["own"], strict=True):
        parameters.add_row(Text(cut(clean(Path(run).name), 24)), *[_shown(value) for value in own.values()])
    scores = plain_table(
        "log-loss, nats an observation", "fitted", "run's own", "constant", "fitted - own", "fitted - constant"
    )
    count = found["observations"]
    own = {name: -value / count for name, value in found["log_likelihood"].items()}
    scores.add_row(
        "fitted and scored on all", *[number(own[name], 3) for name in ("fitted", "own", "constant")], "", ""
    )
    for name, values in found["held_out"].items():
        if values:
            differences = [_difference(values[key]) for key in ("against_own", "against_constant")]
            cells = [number(values[key], 3) for key in ("fitted", "own", "constant")]
            scores.add_row(f"held out: other {name}", *cells, *differences)
    words = [Text(line) for line in fit_sentences(found)]
    return Group(parameters, Text(), scores, Text(), *words, Text(), Text(found["yaml"].rstrip()))


def fit_sentences(found: dict[str, Any]) -> list[str]:
    """What the fit could not tell, and whether it predicts."""
    said = [f"{whole(found['observations'])} observations, {whole(found['forgotten'])} forgotten; "
            f"log-likelihood {number(found['log_likelihood']['fitted'], 1)}."]  # fmt: skip
    if found["kept_as_it_was"]:
        said.append(
            f"{' and '.join(found['kept_as_it_was'])} stay as they were: of samples reviewed before, the rarer outcome "
            f"was seen {found['reviewed_events']} times; a fit needs {found['events_needed']}."
        )
    if found["at_bound"]:
        said.append(f"{', '.join(found['at_bound'])} ended at the edge of what is searched; do not rely on it.")
    by_stage, by_sample = found["held_out"]["stages"], found["held_out"]["samples"]
    if not by_stage:
        said.append("One stage only can be observed, so nothing says how the parameters do on another one.")
    judged = by_stage or by_sample
    if judged and not judged["against_constant"][2] < 0:
        said.append("They predict held-out outcomes no better than a constant rate: more runs or stages are needed.")
    elif judged and not judged["against_own"][2] < 0:
        said.append("They predict held-out outcomes no better than the runs' own parameters.")
    return said


def _difference(values: list[float | None]) -> str:
    value, low, high = (signed(one, 3) for one in values)
    return f"{value} \\[{low}, {high}]"


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:g}"
