"""One self-contained HTML page of a run: nothing is fetched, everything from the run is escaped."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

from retain.reading import foreign
from retain.report import samples, scores, synthesis, training
from retain.report.guarantees import privacy_sentences
from retain.report.rundata import VIEWS, Run, read_run
from retain.report.svg import Markup, join, tag
from retain.report.theme import variables
from retain.report.words import COSTS, METRICS, NOT_FOR_NLL, cost, number, whole
from retain.report.words import VIEWS as VIEW_WORDS


def write_report(run_dir: Path) -> Path:
    """Write `run_dir`/report.html from the files of the run, finished or not. Raises InputError."""
    run = read_run(Path(run_dir))
    with foreign(run_dir):
        page = document(f"{run.strategy}, {run.model}", report_body(run))
    return save(Path(run_dir) / "report.html", page)


def save(path: Path, page: str) -> Path:
    """Write whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(page, encoding="utf-8")
    os.replace(temporary, path)
    return path


def document(title: str, body: Markup) -> str:
    """The page around `body`. The policy lets only our own script run and forbids every request."""
    here = files("retain.report")
    style = Markup(variables() + here.joinpath("report.css").read_text(encoding="utf-8"))
    script = Markup(here.joinpath("report.js").read_text(encoding="utf-8"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    head = join(
        Markup('<meta charset="utf-8">'),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Markup('<link rel="icon" href="data:,">'),
        tag("title", title),
        tag("style", style),
    )
    end = join(tag("div", id="tip", role="tooltip"), tag("script", script))
    page = tag("html", tag("head", head), "\n", tag("body", tag("main", body), end), lang="en")
    return f"<!doctype html>\n{page}\n"


def report_body(run: Run) -> Markup:
    """The page's sections in their order."""
    return join(
        _title(run),
        tag("p", scores.headline(run), class_="headline"),
        _scores(run),
        _section("Replay", timeline_or_reason(run)),
        _section("Training loss", loss_or_reason(run)),
        _section("Memory", memory_or_reason(run)),
        _section("Replay against the plan", plan_or_reason(run)),
        _synthesis(run),
        _section("Costs", _costs(run)),
        _section("Metrics", _metrics(run)),
        _section("Privacy", *map(_say, said)) if (said := privacy_sentences(run.results.get("privacy"))) else None,
        _config(run),
    )


def _section(title: str, *content: object) -> Markup:
    return tag("section", tag("h2", title), content)


def _say(sentence: str) -> Markup:
    return tag("p", sentence, class_="lead")


def _title(run: Run) -> Markup:
    start = next(iter(run.records("start")), {})
    versions = run.results["versions"] or start.get("versions") or {}
    when = str(start.get("time", ""))[:16].replace("T", " ")
    parts = [
        run.model,
        f"seed {run.results['seed']}" if run.results["seed"] is not None else None,
        f"{when} UTC" if when else None,
        ", ".join(f"{name} {version}" for name, version in versions.items()) or None,
    ]
    return join(
        tag("h1", run.strategy),
        tag("p", " · ".join(part for part in parts if part), class_="meta"),
        _notes(run),
    )


def _notes(run: Run) -> Markup | None:
    notes = []
    if run.results["truncated"]:
        notes.append(f"{whole(run.results['truncated'])} samples were longer than the limit and cut.")
    if cut := run.results.get("truncated_test"):
        found = ", ".join(f"{task} {whole(count)}" for task, count in cut.items())
        notes.append(f"Test prompts longer than the limit were cut: {found}.")
    skipped = {task: count for task, count in run.results["skipped"].items() if count}
    if skipped:
        notes.append("Invalid rows left out: " + ", ".join(f"{task} {count}" for task, count in skipped.items()) + ".")
    if lost := run.results["skipped_steps"]:
        found = ", ".join(f"{task} {whole(count)}" for task, count in lost.items())
        notes.append(f"Steps skipped because a loss or its gradient was not finite: {found}.")
    return tag("p", " ".join(notes), class_="meta") if notes else None


PANELS = (
    "Dashed before a task is learned, solid after; the large dot is its score right after learning, "
    "shaded is what it lost since."
)


def _scores(run: Run) -> Markup:
    matrices, others = run.results["matrices"], run.results["evaluation_only"]["matrices"]
    names = [name for name in VIEWS if name in matrices or name in others]
    if not names:
        return _section("Scores", _say("Nothing has been evaluated yet."))
    views = []
    for index, name in enumerate(names):
        view = scores.view_of(run, name)
        parts = join(
            scores.heatmap(run, view),
            tag("h3", "Each task over the stages"),
            _say(PANELS),
            scores.task_panels(run, view),
        )  # fmt: skip
        views.append(tag("div", parts, data_view=name, **({"hidden": ""} if index else {})))
    return _section("Scores", _switch(names) if len(names) > 1 else None, views)


def _switch(names: list[str]) -> Markup:
    choices = []
    for index, name in enumerate(names):
        checked = {"checked": ""} if index == 0 else {}
        choices.append(tag_open("input", type="radio", name="view", id=f"view-{name}", value=name, **checked))
        choices.append(tag("label", VIEW_WORDS[name][0], for_=f"view-{name}"))
    return tag("fieldset", tag("legend", "Measure"), choices, class_="switch")


def tag_open(name: str, /, **attributes: object) -> Markup:
    """A tag that has no end tag in HTML."""
    return Markup(tag(name, **attributes).removesuffix(f"</{name}>"))


def _drawn(figure: Callable[[Run, int], Markup], run: Run, lead: str) -> Markup:
    return join(_say(lead), tag("figure", training.responsive(figure, run), style="margin:0"))


def timeline_or_reason(run: Run) -> Markup:
    """The replay timeline, or one line that says why there is none."""
    if not run.records("event"):
        return _say(f"This run replayed nothing{_why_no_replay(run)}.")
    events, replayed = run.records("event"), sum(step.get("replayed") or 0 for step in run.records("step"))
    return _drawn(training.timeline, run, f"{whole(len(events))} events, {whole(replayed)} samples replayed.")


def _why_no_replay(run: Run) -> str:
    if run.joint:
        return ": all tasks are trained in one stage"
    if run.strategy.split(" + ")[0] == "none":
        return ": strategy none is plain fine-tuning"
    if run.plans and not any(plan.get("events") for plan in run.plans.values()):
        return f": strategy {run.strategy} planned none"
    return " so far" if not run.finished else ""


def loss_or_reason(run: Run) -> Markup:
    """The training loss, or one line that says why there is none."""
    if not any(training.known(step.get("new_loss")) for step in run.records("step")):
        return _say("No training step is recorded yet.")
    return _drawn(training.loss, run, "Faint as measured, bold a running mean within each stage.")


def memory_or_reason(run: Run) -> Markup:
    """The memory figure, or one line that says why there is none."""
    if run.trace is None or not run.stages:
        return _say("No memory was recorded in this run.")
    return _drawn(
        training.memory, run, "How strength and stability are spread over the stored samples at each refresh."
    )


def plan_or_reason(run: Run) -> Markup:
    """Plan against fact, or one line that says why there is none."""
    planned = any(plan.get("events") for plan in run.plans.values())
    if not run.stages or not (planned or run.records("event")):
        return _say("Nothing was planned, nothing was replayed.")
    lead = "The bar is what was mixed in, the mark across it what was planned."
    return join(_say(lead), training.plan_table(run))


def _synthesis(run: Run) -> Markup | None:
    """Of a run that wrote samples: how many and why no more, how good, when they were rehearsed, and some of them."""
    if not run.records("synthesis"):
        return None
    lead = (
        "Solid what the steps asked for, dots what was mixed in, dashed the plan, where it does not depend on training."
    )
    return join(
        _section("Synthesis", synthesis.funnel(run)),
        _section("Drift of the generator", synthesis.drift(run)),
        _section("Curriculum", _drawn(synthesis.curriculum, run, lead)) if synthesis.has_curriculum(run) else None,
        _section("Synthetic samples", samples.samples(run)),
    )


def _costs(run: Run) -> Markup:
    known = {name: run.results["costs"][name] for name in COSTS if run.results["costs"].get(name) is not None}
    if not known:
        return _say("Costs are written when a run ends.")
    rows = [
        tag("tr", tag("th", COSTS[name], scope="row"), tag("td", cost(name, value), class_="n"))
        for name, value in known.items()
    ]
    return tag("table", tag("tbody", rows), class_="plain")


def _metrics(run: Run) -> Markup:
    by_view = {
        view: metrics for view, metrics in run.results["metrics_by_matrix"].items() if view in run.results["matrices"]
    }
    if not by_view:
        return _say("Metrics need scores; nothing has been evaluated yet.")
    rows = []
    for name, (title, definition) in METRICS.items():
        values = [_metric(run, view, name, metrics) for view, metrics in by_view.items()]
        if any(value is not None for value in values):
            label = tag("span", title, class_="explained", tabindex=0, data_tip=definition)
            cells = [tag("td", number(value, 3), class_="n") for value in values]
            rows.append(tag("tr", tag("th", label, tag("span", name, class_="key"), scope="row"), cells))
    if not rows:
        return _say("The metrics need the last stage, and this run is not finished.")
    head = [tag("th", VIEW_WORDS[view][0], scope="col", class_="n") for view in by_view]
    table = tag("table", tag("thead", tag("tr", tag("td"), head)), tag("tbody", rows), class_="plain")
    lead = "Point at a name for its definition."
    if "nll" in by_view:
        lead += " Under NLL lower is better, so there a positive transfer is a loss."
    return join(_say(lead), tag("div", table, class_="scroll"))


def _metric(run: Run, view: str, name: str, metrics: dict[str, float | None]) -> float | None:
    if name == "NLL":
        return run.results["metrics"].get("NLL") if view == "nll" else None
    return None if view == "nll" and name in NOT_FOR_NLL else metrics.get(name)


def _config(run: Run) -> Markup:
    if not run.config_text:
        return _section("Config", _say("The run directory holds no config.yaml."))
    return tag("details", tag("summary", "Config"), tag("pre", run.config_text))
