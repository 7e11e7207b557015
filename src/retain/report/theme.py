"""Colors: one dict for light, one for dark. Figures name them as var(--name), so a page can switch.

The task colors are Okabe and Ito's, which color-blind readers can tell apart; from nine tasks on a stretch
of cividis, which keeps the tasks' order.
"""

from __future__ import annotations

import re

LIGHT = {
    "paper": "#ffffff", "panel": "#f6f7f9", "ink": "#16191d", "muted": "#5a636e", "rule": "#e1e5ea",
    "strong": "#0b62a8", "loss": "#c2500a", "gain": "#0b62a8", "base": "#8a939e", "band": "#0b62a8",
    "heat-low": "#f3f6fa", "heat-high": "#0a4a86", "heat-low-ink": "#16191d", "heat-high-ink": "#ffffff",
    "task0": "#0072b2", "task1": "#e08a00", "task2": "#009e73", "task3": "#c75b98", "task4": "#56b4e9",
    "task5": "#d55e00", "task6": "#6b52ae", "task7": "#7d8792", "other": "#a2a9b1",
}  # fmt: skip
DARK = {
    "paper": "#12151a", "panel": "#1b2027", "ink": "#eceff3", "muted": "#9ba5b1", "rule": "#2b323b",
    "strong": "#63b3f0", "loss": "#f58a4b", "gain": "#63b3f0", "base": "#7d8894", "band": "#63b3f0",
    "heat-low": "#1c222a", "heat-high": "#8fcbf8", "heat-low-ink": "#eceff3", "heat-high-ink": "#0c1218",
    "task0": "#4aa3e0", "task1": "#f2b04c", "task2": "#2fc49a", "task3": "#e492c0", "task4": "#9ad4f7",
    "task5": "#f58a4b", "task6": "#a894e0", "task7": "#9ba5b1", "other": "#6b7580",
}  # fmt: skip
CIVIDIS = [
    (58, 92, 158),
    (76, 97, 132),
    (96, 99, 112),
    (125, 124, 120),
    (160, 150, 116),
    (196, 179, 97),
    (229, 207, 72),
]
NAMED_TASKS = 8
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


def task_colors(names: list[str]) -> dict[str, str]:
    """A color for each task, in their order."""
    if len(names) <= NAMED_TASKS:
        return {name: f"var(--task{index})" for index, name in enumerate(names)}
    return {name: _cividis(index / (len(names) - 1)) for index, name in enumerate(names)}


def _cividis(share: float) -> str:
    place = share * (len(CIVIDIS) - 1)
    index = min(int(place), len(CIVIDIS) - 2)
    mixed = (a + (b - a) * (place - index) for a, b in zip(CIVIDIS[index], CIVIDIS[index + 1], strict=True))
    return "#" + "".join(f"{round(channel):02x}" for channel in mixed)


def variables() -> str:
    """The CSS that defines the colors, dark where the reader's system is; paper is always light."""
    light, dark = ("".join(f"--{name}:{color};" for name, color in colors.items()) for colors in (LIGHT, DARK))
    return (
        f":root{{color-scheme:light dark;{light}}}"
        f"@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}"
        f":root{{--font:{FONT}}}"
    )


def fixed(markup: str, dark: bool) -> str:
    """`markup` with every var(--name) written out, for viewers that know no CSS variables."""
    colors = DARK if dark else LIGHT
    return re.sub(r"var\(--([a-z0-9-]+)\)", lambda match: colors[match[1]], markup)
