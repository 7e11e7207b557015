"""What happened over the steps: replay events, training loss, memory, plan against fact."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from retain.report.rundata import LEVELS, Refresh, Run
from retain.report.svg import Markup, Panel, box, dot, join, picture, rule, shorten, spread, tag, text, ticks
from retain.report.theme import task_colors
from retain.report.words import NOTHING, compact, number, whole

WIDE, NARROW = 920, 380
LEFT, RIGHT = 46, 14
Draw = Callable[[Run, int], Markup]


def responsive(draw: Draw, run: Run) -> Markup:
    """The figure twice, drawn for a screen and for a phone, so that its letters keep their size."""
    return join(
        tag("div", draw(run, WIDE), class_="wide"),
        tag("div", draw(run, NARROW), class_="narrow"),
    )


def _last_step(run: Run) -> int:
    return max([stage.last for stage in run.stages], default=1)


def steps_panel(run: Run, width: int, top: float, bottom: float, high: float, right: int = RIGHT) -> Panel:
    """A panel over all global steps, from 0 to `high`."""
    return Panel(LEFT, width - right, top, bottom, (0, _last_step(run)), (0, high))


def stage_strip(run: Run, panel: Panel) -> Markup:
    """A strip in each stage's color with its task's name, and a line at each boundary."""
    colors = task_colors(run.tasks)
    marks = []
    for stage in run.stages:
        left, right = panel.x(stage.first), panel.x(stage.last)
        tip = f"stage {stage.number}: {stage.task}\nsteps {stage.first + 1} to {stage.last}"
        strip = box(left, 22, right - left - 1, 5, colors.get(stage.task, "var(--other)"), rx=2)
        name = text(left, 15, shorten(stage.task, right - left - 4, 12), 12, "ink", font_weight=600)
        marks.append(tag("g", box(left, 0, right - left, 28, "transparent"), strip, name, data_tip=tip))
        if stage.first:
            marks.append(rule(left, 22, left, panel.bottom, "rule"))
    return join(marks)


def steps_axis(panel: Panel) -> Markup:
    """Round steps below the panel, the last one named."""
    low, high = panel.x_domain
    count = 8 if panel.right - panel.left > 500 else 4
    marks = [
        text(panel.x(step), panel.bottom + 16, compact(step), 11, text_anchor="middle")
        for step in ticks(low, high, count)
        if step == int(step) and panel.x(step) < panel.right - 72
    ]
    return join(marks, text(panel.right, panel.bottom + 16, f"step {whole(high)}", 11, text_anchor="end"))


def bin_size(run: Run, panel: Panel, pixels: float = 4) -> int:
    """Steps that share one mark, so that marks are at least `pixels` apart."""
    return max(1, -(-int(_last_step(run) * pixels) // int(panel.right - panel.left)))


def timeline(run: Run, width: int) -> Markup:
    """Above the share each event asked for, below the replayed samples colored by the task they come from."""
    events = run.records("event")
    colors = task_colors(run.tasks)
    top_ratio = max([event.get("ratio") or 0 for event in events] + [0.01]) * 1.2
    ratio = steps_panel(run, width, 52, 112, top_ratio)
    size = bin_size(run, ratio)
    bins = _event_bins(events, size)
    counts = steps_panel(run, width, 146, 246, max([sum(bin_.values()) for bin_ in bins.values()] + [1]) * 1.08)
    marks = [text(LEFT, 44, "Share of replay an event asks for", 12), ratio.rows(compact, 2)]
    for stage in run.stages:
        points = [(event["global_step"], event.get("ratio") or 0) for event in events if event["stage"] == stage.number]
        marks.append(ratio.line(points, "var(--muted)", stroke_width=1.25))
        if len(points) <= width / 12:
            marks += [dot(ratio.x(step), ratio.y(share), 2.5, "var(--ink)") for step, share in points]
    marks += [text(LEFT, 138, "Samples replayed, in the color of their task", 12), counts.rows(compact, 3)]
    bar = min(12.0, max(2.0, (counts.x(size) - counts.x(0)) * 0.8))
    for index, by_task in sorted(bins.items()):
        x, base = counts.x((index + 0.5) * size if size > 1 else index) - bar / 2, 0
        stack = []
        for task in sorted(by_task, key=lambda name: [*run.tasks, name].index(name)):
            amount = by_task[task]
            stack.append(box(x, counts.y(base + amount), bar, counts.y(base) - counts.y(base + amount),
                             colors.get(task, "var(--other)")))  # fmt: skip
            base += amount
        hit = box(x - 2, counts.top, bar + 4, counts.bottom - counts.top, "transparent")
        marks.append(tag("g", stack, hit, data_tip=_event_tip(index, size, by_task)))
    label = f"Replay timeline: {len(events)} events"
    full = replace(counts, top=22)
    return picture(width, 268, label, stage_strip(run, full), marks, steps_axis(counts))


def _event_bins(events: list[dict], size: int) -> dict[int, Counter]:
    bins: dict[int, Counter] = {}
    for event in events:
        amounts = event.get("by_task") or {}
        if not amounts and event.get("replayed"):
            amounts = {"source unknown": event["replayed"]}
        bins.setdefault(event["global_step"] // size, Counter()).update(amounts)
    return bins


def _event_tip(index: int, size: int, by_task: Counter) -> str:
    when = f"step {index}" if size == 1 else f"steps {index * size} to {(index + 1) * size - 1}"
    lines = [f"{task}: {whole(amount)}" for task, amount in by_task.items()]
    return "\n".join([f"{when}: {whole(sum(by_task.values()))} replayed", *lines])


def loss(run: Run, width: int) -> Markup:
    """Mean loss a step, faint as measured and bold as a running mean within its stage."""
    steps = run.records("step")
    series = {"new": ("new_loss", "var(--strong)"), "replayed": ("replay_loss", "var(--task1)")}
    values = [step[key] for key, _ in series.values() for step in steps if known(step.get(key))]
    high = float(np.quantile(values, 0.995)) * 1.08 or 1.0
    panel = steps_panel(run, width, 44, 236, high, right=70)
    size = bin_size(run, panel, 3)
    marks: list[object] = [panel.rows(compact, 4), text(LEFT, 40, "Loss, nats a token", 12)]
    ends = []
    for name, (key, color) in series.items():
        smooth: list[tuple[float, float]] = []
        for stage in run.stages:
            points = [(step["global_step"], step[key]) for step in steps
                      if step["stage"] == stage.number and known(step.get(key))]  # fmt: skip
            raw = [(x, min(y, high)) for x, y in points]
            if name == "new":
                marks.append(panel.line(thin(raw, size), color, stroke_width=1, stroke_opacity=0.28))
            else:
                marks += [dot(panel.x(x), panel.y(y), 1.6, color, fill_opacity=0.45) for x, y in thin(raw, size)]
            smooth = running_mean(raw, max(3, len(run.records("step")) // 60))
            marks.append(panel.line(thin(smooth, size), color, stroke_width=2.25))
        last = [step for step in steps if known(step.get(key))]
        if last:
            ends.append((name, color, smooth[-1][1] if smooth else min(last[-1][key], high)))
    places = spread([panel.y(value) for *_, value in ends], 15, panel.top, panel.bottom)
    for (name, color, _), y in zip(ends, places, strict=True):
        place = {"x": float(panel.right + 6), "y": y + 4}
        marks.append(tag("text", name, **place, font_size=12, fill=color, font_weight=600))
    marks.append(_loss_tips(steps, panel, bin_size(run, panel, 6)))
    return picture(width, 262, "Training loss", stage_strip(run, panel), marks, steps_axis(panel))


def _loss_tips(steps: list[dict], panel: Panel, size: int) -> Markup:
    hits = []
    for step in steps[:: max(1, size)]:
        x = panel.x(step["global_step"])
        reach = (panel.x(size) - panel.x(0)) / 2
        tip = f"step {step['global_step']}, {step.get('task', '')}\nnew {number(step.get('new_loss'), 3)}"
        if known(step.get("replay_loss")):
            tip += f"\nreplayed {number(step['replay_loss'], 3)}"
        hits.append(box(x - reach, panel.top, reach * 2, panel.bottom - panel.top, "transparent", data_tip=tip))
    return join(hits)


def known(value: object) -> bool:
    """Whether `value` is a finite number."""
    return isinstance(value, int | float) and bool(np.isfinite(value))


def thin(points: list[tuple[float, float]], size: int) -> list[tuple[float, float]]:
    """Every `size`-th point, and the last one."""
    return points if size <= 1 else [*points[::size], *points[-1:]]


def running_mean(points: Sequence[tuple[float, float]], window: int) -> list[tuple[float, float]]:
    """Each value replaced by the mean of its `window` neighbors, fewer at the ends."""
    if not points:
        return []
    steps, values = np.array(points, dtype=float).T
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    low = np.maximum(index - window // 2, 0)
    high = np.minimum(index + window // 2 + 1, len(values))
    return list(zip(steps.tolist(), ((sums[high] - sums[low]) / (high - low)).tolist(), strict=True))


def memory(run: Run, width: int) -> Markup:
    """How the strength m and the stability S are spread over the buffer at each refresh."""
    refreshes = run.refreshes
    high = max(float(refresh.stability[-1]) for refresh in refreshes) * 1.08
    strength = steps_panel(run, width, 52, 172, 1.0, right=70)
    stability = replace(strength, top=206.0, bottom=276.0, y_domain=(0, high))
    marks: list[object] = [
        text(LEFT, 44, "Strength m: 1 = fresh, 0 = forgotten", 12), strength.rows(compact, 4),
        text(LEFT, 198, "Stability S: higher = forgets slower", 12), stability.rows(compact, 3),
    ]  # fmt: skip
    for stage in sorted({refresh.stage for refresh in refreshes}):
        own = [refresh for refresh in refreshes if refresh.stage == stage]
        marks.append(_bands(strength, [(refresh.step, refresh.strength) for refresh in own]))
        marks.append(_bands(stability, [(refresh.step, refresh.stability) for refresh in own]))
    marks += [_band_labels(strength, refreshes[-1].strength), _refresh_tips(strength, stability, refreshes)]
    full = replace(stability, top=22)
    label = "Memory strength and stability over steps"
    return picture(width, 298, label, stage_strip(run, full), marks, steps_axis(stability))


def _bands(panel: Panel, quantiles: list[tuple[int, np.ndarray]]) -> Markup:
    outer = panel.area([(x, q[0], q[4]) for x, q in quantiles], "var(--band)", fill_opacity=0.16,
                       stroke="var(--band)", stroke_opacity=0.16, stroke_width=1)  # fmt: skip
    inner = panel.area([(x, q[1], q[3]) for x, q in quantiles], "var(--band)", fill_opacity=0.3)
    if len(quantiles) == 1:
        step, q = quantiles[0]
        return join(outer, dot(panel.x(step), panel.y(q[2]), 3, "var(--band)"))
    return join(outer, inner, panel.line([(x, q[2]) for x, q in quantiles], "var(--band)", stroke_width=2.25))


def _band_labels(panel: Panel, last: np.ndarray) -> Markup:
    places = spread([panel.y(value) - 0.01 * i for i, value in enumerate(last)], 13, panel.top, panel.bottom)
    labels = []
    for level, y in zip(LEVELS, places, strict=True):
        name, color = ("median", "ink") if level == 50 else (f"{level} %", "muted")
        labels.append(text(panel.right + 6, y + 4, name, 11, color))
    return join(labels)


def _refresh_tips(strength: Panel, stability: Panel, refreshes: list[Refresh]) -> Markup:
    hits = []
    for refresh in refreshes[:: max(1, len(refreshes) // 120)]:
        m, s = refresh.strength, refresh.stability
        tip = (
            f"step {refresh.step}: {whole(refresh.samples)} samples"
            f"\nstrength {number(m[2])}, 90 % in {number(m[0])} to {number(m[4])}"
            f"\nstability {number(s[2])}, 90 % in {number(s[0])} to {number(s[4])}"
        )
        x, height = strength.x(refresh.step), stability.bottom - strength.top
        hits.append(box(x - 4, strength.top, 8, height, "transparent", data_tip=tip))
    return join(hits)


def plan_table(run: Run) -> Markup:
    """For each stage what the plan asked for and what was mixed in."""
    rows = [_plan_row(run, stage.number) for stage in run.stages]
    head = (
        "stage",
        "events",
        "planned",
        "delivered",
        "",
        "share of what was trained",
        "new samples after the last event",
    )
    cells = [tag("th", name, scope="col", class_=None if index == 0 else "n") for index, name in enumerate(head)]
    table = tag("table", tag("thead", tag("tr", cells)), tag("tbody", rows), class_="plain")
    return tag("div", table, class_="scroll")


def _plan_row(run: Run, number_: int) -> Markup:
    plan = run.plans.get(number_, {})
    steps = [step for step in run.records("step") if step["stage"] == number_]
    happened = [event for event in run.records("event") if event["stage"] == number_]
    planned_events = plan.get("events") or []
    planned = sum(event.get("replayed") or 0 for event in planned_events)
    delivered = sum(step.get("replayed") or 0 for step in steps)
    new = sum(step.get("new") or 0 for step in steps)
    about = "≈ " if any(event.get("projected") for event in planned_events) else ""
    last = max([event["global_step"] for event in happened], default=None)
    after = sum(step.get("new") or 0 for step in steps if last is not None and step["global_step"] > last)
    task = next((stage.task for stage in run.stages if stage.number == number_), "")
    name = tag("th", f"{number_} {task}", scope="row")
    if not planned and not delivered:
        note = "no buffer yet" if not plan.get("buffer") else "no replay due"
        return tag("tr", name, tag("td", note, colspan=6, class_="note"))
    share = delivered / (delivered + new) if delivered + new else None
    numbers = [f"{len(happened)} of {about}{len(planned_events)}", about + whole(planned), whole(delivered)]
    return tag(
        "tr", name, [tag("td", value, class_="n") for value in numbers],
        tag("td", _bullet(planned, delivered)), tag("td", number(share), class_="n"),
        tag("td", NOTHING if last is None else whole(after), class_="n"),
    )  # fmt: skip


def _bullet(planned: int, delivered: int) -> Markup:
    """Delivered as a bar, planned as a mark across it."""
    full = max(planned, delivered, 1)
    tip = f"{whole(delivered)} delivered of {whole(planned)} planned"
    marks = (
        box(0, 4, 120, 8, "var(--rule)", rx=2),
        box(0, 4, 118 * delivered / full, 8, "var(--strong)", rx=2),
        box(118 * planned / full, 0, 2, 16, "var(--ink)"),
    )
    return tag("svg", *marks, viewBox="0 0 122 16", width=122, height=16, role="img", aria_label=tip, data_tip=tip)
