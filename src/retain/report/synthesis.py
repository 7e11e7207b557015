"""What the model wrote for rehearsal: how much was kept, how far it has drifted, and its share of the steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from retain.report.rundata import Run, Stage
from retain.report.svg import Markup, Panel, box, dot, join, picture, rule, spread, tag, text
from retain.report.training import LEFT, bin_size, known, stage_strip, steps_axis, steps_panel, thin
from retain.report.words import compact, duration, number, whole
from retain.types import InputError

FILTERS = {
    "unreadable": "var(--other)", "heuristics": "var(--task1)", "memorization": "var(--task2)",
    "consistency": "var(--task3)", "perplexity": "var(--task5)", "self_consistency": "var(--task4)",
    "keep_ratio": "var(--task7)", "diversity": "var(--task6)", "balance": "var(--base)",
}  # fmt: skip
BAR = 260
UNPLANNED = ("adaptive", "similarity", "concatenate")  # curricula that depend on more than the configuration
LOSSES = (("new_loss", "new", "var(--strong)"), ("old_loss", "past", "var(--task1)"))
WHEN = {"start": "written before the stage", "end": "written after the stage"}
Record = dict[str, Any]


def funnel(run: Run) -> Markup:
    """A row for each time samples of a task were written: what the filters dropped, what is left, what it cost."""
    records = run.records("synthesis")
    most = max([record.get("generated") or 0 for record in records] + [1])
    head = _head("stage, task", "what became of the candidates", "generated", "kept", "asked", "tokens", "time")
    rows = [_funnel_row(record, most) for record in records]
    return join(_funnel_key(records), _table(head, rows), _reviews(run))


def _funnel_row(record: Record, most: int) -> Markup:
    account = tag("div", record.get("account") or "", class_="account note")
    counts = [whole(record.get(key)) for key in ("generated", "kept", "asked", "generated_tokens")]
    when = WHEN.get(str(record.get("when")))
    return tag(
        "tr",
        tag("th", f"{record['stage']} {record['task']}", scope="row", **({"data_tip": when} if when else {})),
        tag("td", _funnel_bar(record, most), account),
        [tag("td", value, class_="n") for value in (*counts, duration(record.get("seconds")))],
    )


def _parts(record: Record) -> list[tuple[str, int, str]]:
    """(what became of them, candidates, color): kept, passed without need, dropped by each filter."""
    dropped = {str(name): count or 0 for name, count in (record.get("dropped") or {}).items()}
    kept = record.get("kept") or 0
    spare = (record.get("generated") or 0) - kept - sum(dropped.values())
    parts = [("kept", kept, "var(--strong)"), ("more than asked", spare, "var(--rule)")]
    for name, count in dropped.items():
        parts.append((f"dropped by {name.replace('_', ' ')}", count, FILTERS.get(name, "var(--other)")))
    return [part for part in parts if part[1] > 0]


def _funnel_bar(record: Record, most: int) -> Markup:
    marks, left, parts = [], 0.0, _parts(record)
    for _, count, color in parts:
        width = BAR * count / most
        marks.append(box(left, 2, max(width - 1, 0.5), 12, color))
        left += width
    tip = "\n".join(f"{name}: {whole(count)}" for name, count, _ in parts) or "nothing was generated"
    size = {"viewBox": f"0 0 {BAR} 16", "width": BAR, "height": 16}
    return tag("svg", *marks, role="img", aria_label=tip, data_tip=tip, **size)


def _funnel_key(records: Sequence[Record]) -> Markup:
    """What the colors of the bars mean, with the sums over all of them."""
    totals: Counter[tuple[str, str]] = Counter()
    for record in records:
        for name, count, color in _parts(record):
            totals[name, color] += count
    names = [
        tag("span", tag("span", class_="swatch", style=f"background:{color}"), f"{name} {whole(total)}")
        for (name, color), total in totals.items()
    ]
    return tag("p", names, class_="key-line")


def _reviews(run: Run) -> Markup | None:
    """What people said of the samples, if they were asked."""
    from retain.reviews import read_reviews, summarize, synthetic_rows

    found = [one for one in summarize(synthetic_rows(run.path), read_reviews(run.path)) if one.rate is not None]
    if not found:
        return None
    said = "; ".join(
        f"{one.task} {number(one.rate)} ({whole(one.samples)} of {whole(one.written)} samples, {one.raters} "
        f"{'person' if one.raters == 1 else 'people'})"
        for one in found
    )
    return tag("p", f"Approved by people: {said}.", class_="lead")


# Drift


def drift(run: Run) -> Markup:
    """Statistics of what was written beside those of the real samples, and a warning where they are far apart."""
    records = [record for record in run.records("synthesis") if record.get("drift")]
    lead = tag(
        "p",
        "Perplexity is that of the median sample under the model of the stage; KL divergences are in nats and need the "
        "real samples, which are at hand only right after their stage.",
        class_="lead",
    )
    ends = [record["drift"].get(f"perplexity_{kind}") for record in records for kind in ("real", "synthetic")]
    high = max([value for value in ends if known(value)], default=1.0)
    head = _head(
        "stage, task", "perplexity: real to synthetic", "real", "synthetic", "words, KL", "hidden states, KL",
        "labels off", "distinct-1", "-2", "-3",
    )  # fmt: skip
    return join(lead, _table(head, [_drift_row(record, high) for record in records]), _warnings(run, records))


def _drift_row(record: Record, high: float) -> Markup:
    facts = record["drift"]
    real, synthetic = facts.get("perplexity_real"), facts.get("perplexity_synthetic")
    values = [number(real, 1), number(synthetic, 1)]
    values += [number(facts.get(key)) for key in ("unigram_divergence", "hidden_divergence", "label_distance")]
    values += [number(facts.get(f"distinct_{n}")) for n in (1, 2, 3)]
    labels = "\n".join(f"{label}: {number(share)}" for label, share in (facts.get("labels") or {}).items())
    cells = [tag("td", value, class_="n") for value in values]
    if labels:
        cells[4] = tag("td", tag("span", values[4], class_="explained", data_tip=labels, tabindex=0), class_="n")
    return tag(
        "tr",
        tag("th", f"{record['stage']} {record['task']}", scope="row", class_="loss" if record.get("drifted") else None),
        tag("td", _dumbbell(real, synthetic, high, bool(record.get("drifted")))),
        cells,
    )


def _dumbbell(real: float | None, synthetic: float | None, high: float, far: bool) -> Markup | None:
    if not known(real) or not known(synthetic):
        return None
    first, second = (6 + 128 * value / high for value in (real, synthetic))
    color = "loss" if far else "strong"
    marks = (
        rule(0, 8, 140, 8),
        rule(first, 8, second, 8, color, stroke_width=2),
        dot(first, 8, 3.5, "var(--base)"),
        dot(second, 8, 4.5, f"var(--{color})"),
    )
    tip = f"real {number(real, 1)}, synthetic {number(synthetic, 1)}"
    return tag("svg", *marks, viewBox="0 0 140 16", width=140, height=16, role="img", aria_label=tip, data_tip=tip)


def _warnings(run: Run, records: Sequence[Record]) -> list[Markup]:
    monitor = run.config.get("monitor")
    by = monitor.get("lower_by") if isinstance(monitor, dict) else None
    lowered = (
        f" The synthetic share of the stage that rehearses it falls by {by:g}."
        if has_curriculum(run) and known(by) and by
        else ""
    )
    return [
        tag("p", f"Stage {one['stage']}, {one['task']}: {one['drifted']}.{lowered}", class_="warning")
        for one in records
        if one.get("drifted")
    ]


# Curriculum


def has_curriculum(run: Run) -> bool:
    """Whether α(t) set the amounts: synthetic data without a memory schedule."""
    from retain.presets import preset_of

    try:
        chosen = preset_of(run.config.get("strategy"))
    except InputError:
        return False
    return chosen.source is not None and chosen.replay is None and any(stage.number > 1 for stage in run.stages)


def curriculum(run: Run, width: int) -> Markup:
    """The synthetic share of a mixed batch over the steps; where it adapts, the losses it looks at too."""
    checks = [record for record in run.records("curriculum") if all(known(record.get(key)) for key, *_ in LOSSES)]
    shares = steps_panel(run, width, 52, 172, 1.0, right=70)
    marks = [text(LEFT, 44, "Synthetic share α of a batch", 12), shares.rows(compact, 4)]
    marks += [_shares(run, shares, stage) for stage in run.stages if stage.number > 1]
    if not checks:
        return picture(width, 198, "Curriculum", stage_strip(run, shares), marks, steps_axis(shares))
    high = max(record[key] for record in checks for key, *_ in LOSSES)
    losses = steps_panel(run, width, 206, 306, high * 1.08 or 1.0, right=70)
    marks += [text(LEFT, 198, "Losses it adapts to, nats a token", 12), losses.rows(compact, 3)]
    places = spread([losses.y(checks[-1][key]) for key, *_ in LOSSES], 14, losses.top, losses.bottom)
    for (key, name, color), y in zip(LOSSES, places, strict=True):
        marks += [_checked(run, losses, checks, key, name, color)]
        place = {"x": float(losses.right + 6), "y": y + 4}
        marks.append(tag("text", name, **place, font_size=12, fill=color, font_weight=600))
    full = steps_panel(run, width, 22, 306, 1.0, right=70)
    return picture(width, 332, "Curriculum", stage_strip(run, full), marks, steps_axis(losses))


def _shares(run: Run, panel: Panel, stage: Stage) -> Markup:
    """α as planned and as asked for at each step of a stage, and the share that was mixed in."""
    mixed, size = {}, bin_size(run, panel, 3)
    for step in run.records("step"):
        replayed = step.get("replayed") or 0
        if step["stage"] == stage.number and step.get("new"):
            mixed[step["global_step"]] = replayed / (step["new"] + replayed)
    asked = [(event["global_step"], event["ratio"]) for event in run.records("event")
             if event["stage"] == stage.number and known(event.get("ratio"))]  # fmt: skip
    planned, hits = dict(_planned(run, stage)), []
    for step, ratio in asked[:: bin_size(run, panel, 6)]:
        tip = f"step {step}\nasked {number(ratio)}, mixed in {number(mixed.get(step))}"
        tip += f"\nplanned {number(planned[step])}" if step in planned else ""
        hits.append(box(panel.x(step) - 3, panel.top, 6, panel.bottom - panel.top, "transparent", data_tip=tip))
    return join(
        [
            dot(panel.x(x), panel.y(y), 1.8, "var(--task1)", fill_opacity=0.6)
            for x, y in thin(list(mixed.items()), size)
        ],
        panel.line(thin(asked, size), "var(--strong)", stroke_width=2.25),
        panel.line(thin(list(planned.items()), size), "var(--muted)", stroke_width=1.5, stroke_dasharray="4 4"),
        hits,
    )


def _planned(run: Run, stage: Stage) -> list[tuple[int, float]]:
    """α of each step as the configuration alone gives it; none where it depends on training or on the data."""
    from pydantic import ValidationError

    from retain.curriculum import Curriculum
    from retain.synthesis_sections import CurriculumConfig

    steps = run.plans.get(stage.number, {}).get("steps")
    try:
        config = CurriculumConfig.model_validate({**(run.config.get("curriculum") or {}), "split": "even"})
    except (ValidationError, TypeError):
        return []
    if config.kind in UNPLANNED or stage.number == 1 or not isinstance(steps, int) or steps < 1:
        return []
    plan = Curriculum(config, steps, 1, stage.number - 1, None, {"past": 1})
    return [(stage.first + step, plan.ratio(step)) for step in range(1, min(steps, stage.last - stage.first) + 1)]


def _checked(run: Run, panel: Panel, checks: Sequence[Record], key: str, name: str, color: str) -> Markup:
    """One loss at each check, a line a stage."""
    marks = []
    for stage in run.stages:
        points = [(stage.first + check["step"], check[key]) for check in checks if check["stage"] == stage.number]
        marks.append(panel.line(points, color, stroke_width=2))
        marks += [dot(panel.x(x), panel.y(y), 3, color, data_tip=f"step {x}\n{name} {number(y, 3)}") for x, y in points]
    return join(marks)


def _head(*names: str) -> Markup:
    """The head of a table; numbers, from the third column on, stand at the right."""
    cells = [tag("th", name, scope="col", class_="n" if place > 1 else None) for place, name in enumerate(names)]
    return tag("tr", cells)


def _table(head: Markup, rows: Sequence[Markup]) -> Markup:
    return tag("div", tag("table", tag("thead", head), tag("tbody", rows), class_="plain"), class_="scroll")
