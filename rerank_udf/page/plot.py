"""A chart as shapes in its own coordinates: computed here, drawn by the template, as SVG with its text as text.

A chart is narrow (440 units) so that its letters keep their size on a telephone; wide screens put several side by side.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

WIDTH, HEIGHT = 440.0, 236.0
_CLOCK = (0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400)
Anchor = Literal["start", "middle", "end"]


@dataclass(frozen=True)
class Shape:
    """One SVG element: `look` is its class in the style sheet, `told` what a pointer on it says."""

    kind: str
    look: str
    numbers: dict[str, Any]
    text: str = ""
    told: str = ""


@dataclass(frozen=True)
class Plot:
    """A chart: `about` is its caption and what a screen reader says; `columns` and `rows` the same as a table."""

    name: str
    title: str
    about: str
    shapes: tuple[Shape, ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    legend: tuple[tuple[str, str], ...] = ()
    width: float = WIDTH
    height: float = HEIGHT


@dataclass(frozen=True)
class Frame:
    """The field of a chart: from data to its coordinates."""

    x: tuple[float, float]
    y: tuple[float, float]
    width: float = WIDTH
    height: float = HEIGHT
    left: float = 46.0
    right: float = 14.0
    top: float = 12.0
    bottom: float = 40.0
    shapes: list[Shape] = field(default_factory=list)

    def across(self, value: float) -> float:
        """The x coordinate of a value."""
        return round(self.left + _part(value, self.x) * (self.width - self.left - self.right), 2)

    def up(self, value: float) -> float:
        """The y coordinate of a value."""
        return round(
            self.height - self.bottom - _part(value, self.y) * (self.height - self.top - self.bottom), 2
        )

    def bar(self, start: float, end: float, low: float, high: float, look: str, told: str = "") -> None:
        """A rectangle over start … end, with a hair's breadth of air on both sides."""
        left, right = self.across(start), self.across(end)
        air = min(0.75, (right - left) / 8)
        numbers = {
            "x": round(left + air, 2),
            "y": self.up(high),
            "width": round(max(0.3, right - left - 2 * air), 2),
            "height": round(self.up(low) - self.up(high), 2),
        }
        self.shapes.append(Shape("rect", look, numbers, told=told))

    def path(self, points: Iterable[tuple[float, float]], look: str, told: str = "") -> None:
        """A line through the points."""
        steps = " L".join(f"{self.across(x)} {self.up(y)}" for x, y in points)
        self.shapes.append(Shape("path", look, {"d": f"M{steps}"}, told=told))

    def dot(self, x: float, y: float, look: str, told: str = "") -> None:
        """A filled circle."""
        self.shapes.append(
            Shape("circle", look, {"cx": self.across(x), "cy": self.up(y), "r": 4.5}, told=told)
        )

    def words(self, x: float, y: float, text: str, anchor: Anchor = "middle", look: str = "tick") -> None:
        """A text at coordinates of the chart itself, not of the data."""
        self.shapes.append(Shape("text", look, {"x": x, "y": y, "text-anchor": anchor}, text=text))

    def axes(
        self,
        x_ticks: Sequence[tuple[float, str]],
        y_ticks: Sequence[tuple[float, str]],
        x_name: str,
    ) -> None:
        """Grid lines with their numbers, and what the x axis counts."""
        for value, text in y_ticks:
            self.path([(self.x[0], value), (self.x[1], value)], "rule")
            self.words(self.left - 6, self.up(value) + 4, text, "end")
        floor = self.height - self.bottom
        for value, text in x_ticks:
            self.words(self.across(value), floor + 16, text)
        self.words((self.left + self.width - self.right) / 2, self.height - 6, x_name, look="axis")


def steps(edges: Sequence[float], values: Sequence[float]) -> list[tuple[float, float]]:
    """The outline of a histogram: `edges` has one more than `values`."""
    points = [(edges[0], 0.0)]
    for left, right, value in zip(edges, edges[1:], values, strict=False):
        points += [(left, value), (right, value)]
    return [*points, (edges[-1], 0.0)]


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers from `low` to `high`, at most about `most` of them."""
    span = high - low
    if span <= 0:
        return [low]
    size = 10.0 ** math.floor(math.log10(span / most))
    step = next(size * m for m in (1, 2, 2.5, 5, 10, 20) if span / (size * m) <= most)
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 10) for n in range(first, math.floor(high / step + 1e-9) + 1)]


def time_ticks(end: float) -> list[float]:
    """Whole steps of a clock from 0 to `end` seconds."""
    step = next((s for s in _CLOCK if end / s <= 6), _CLOCK[-1] * math.ceil(end / _CLOCK[-1] / 6))
    return [float(n * step) for n in range(math.floor(end / step) + 1)]


def _part(value: float, span: tuple[float, float]) -> float:
    low, high = span
    return (value - low) / (high - low) if high > low else 0.0
