"""Escaped markup, scales and the few SVG marks the figures are made of."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)
CHARACTER_WIDTH = 0.64  # of the font size, for bold system fonts


class Markup(str):
    """Text that is markup already; every other string is escaped on its way into a tag."""


def clean(text: object) -> str:
    """`text` without control characters, which HTML, XML and terminals trip over, or read backwards."""
    return CONTROL.sub("\N{REPLACEMENT CHARACTER}", str(text))


def escape(value: object) -> Markup:
    """Text as markup; markup as it is."""
    return value if isinstance(value, Markup) else Markup(html.escape(clean(value)))


def join(*children: object) -> Markup:
    """Children as one piece of markup; None is left out, lists are flattened."""
    parts: list[str] = []
    for child in children:
        if isinstance(child, list | tuple):
            parts.append(join(*child))
        elif child is not None:
            parts.append(escape(child))
    return Markup("".join(parts))


def tag(name: str, /, *children: object, **attributes: object) -> Markup:
    """<name attributes>children</name>; `data_tip` becomes data-tip, `class_` class; None is left out."""
    pairs = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_attribute(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{pairs}>{join(*children)}</{name}>")


def _attribute(value: object) -> object:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value


def picture(width: float, height: float, label: str, *children: object) -> Markup:
    """An <svg> that scales with its column; `label` is read out by screen readers."""
    return tag("svg", *children, viewBox=f"0 0 {width:g} {height:g}", width="100%", role="img", aria_label=label)


def text(x: float, y: float, content: object, size: float = 12, color: str = "muted", **more: object) -> Markup:
    """A line of text whose baseline starts (or ends, by text_anchor) at (x, y)."""
    return tag("text", content, x=float(x), y=float(y), font_size=size, fill=f"var(--{color})", **more)


def rule(x1: float, y1: float, x2: float, y2: float, color: str = "rule", **more: object) -> Markup:
    """A straight line."""
    return tag("line", x1=float(x1), y1=float(y1), x2=float(x2), y2=float(y2), stroke=f"var(--{color})", **more)


def box(x: float, y: float, width: float, height: float, fill: str, **more: object) -> Markup:
    """A rectangle from its upper left corner; a negative size becomes 0."""
    return tag("rect", x=float(x), y=float(y), width=float(max(width, 0)), height=float(max(height, 0)),
               fill=fill, **more)  # fmt: skip


def dot(x: float, y: float, radius: float, fill: str, **more: object) -> Markup:
    """A circle."""
    return tag("circle", cx=float(x), cy=float(y), r=float(radius), fill=fill, **more)


def shorten(name: str, pixels: float, size: float = 12) -> str:
    """`name` cut with an ellipsis to what fits; empty if not even one letter does."""
    return cut(name, int(pixels / (size * CHARACTER_WIDTH)))


def cut(name: str, length: int) -> str:
    """`name` cut to `length` characters with an ellipsis; empty if only that would be left."""
    return name if len(name) <= length else name[: length - 1] + "…" if length >= 2 else ""


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About `count` round numbers from low to high, both included where they are round."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def spread(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Label positions moved apart to at least `gap`, in order, inside [low, high] where there is room."""
    order = sorted(range(len(positions)), key=positions.__getitem__)
    placed = [min(max(positions[i], low), high) for i in order]
    for i in range(1, len(placed)):
        placed[i] = max(placed[i], placed[i - 1] + gap)
    limit = high
    for i in reversed(range(len(placed))):
        placed[i] = min(placed[i], limit)
        limit = placed[i] - gap
    result = [0.0] * len(positions)
    for index, position in zip(order, placed, strict=True):
        result[index] = position
    return result


@dataclass(frozen=True)
class Panel:
    """A rectangle in pixels with a linear scale on either axis."""

    left: float
    right: float
    top: float
    bottom: float
    x_domain: tuple[float, float]
    y_domain: tuple[float, float]

    def x(self, value: float) -> float:
        low, high = self.x_domain
        return self.left + (self.right - self.left) * (value - low) / ((high - low) or 1)

    def y(self, value: float) -> float:
        low, high = self.y_domain
        return self.bottom - (self.bottom - self.top) * (value - low) / ((high - low) or 1)

    def rows(self, form: Callable[[float], str], count: int = 4) -> Markup:
        """Hairlines across with their values at the left."""
        return join(
            [
                (
                    rule(self.left, self.y(value), self.right, self.y(value)),
                    text(self.left - 6, self.y(value) + 4, form(value), 11, text_anchor="end"),
                )
                for value in ticks(*self.y_domain, count)
            ]
        )

    def line(self, points: Iterable[tuple[float, float]], color: str, **more: object) -> Markup:
        path = " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in points)
        return tag("polyline", points=path, fill="none", stroke=color, stroke_linejoin="round", **more)

    def area(self, points: Iterable[tuple[float, float, float]], color: str, **more: object) -> Markup:
        """The band between two curves: (x, low, high) triples."""
        triples = list(points)
        edge = [(x, high) for x, _, high in triples] + [(x, low) for x, low, _ in reversed(triples)]
        path = " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in edge)
        return tag("polygon", points=path, fill=color, **more)
