"""Where passages of each first-stage rank ended: a heat map, and the sums beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rerank_udf.page.numbers import percent
from rerank_udf.page.plot import Plot, Shape

CUT = "cut"
_LEFT, _TOP, _RIGHT, _CELL = 92.0, 24.0, 10.0, 30.0
_WIDTH = 440.0


@dataclass(frozen=True)
class Movement:
    """`cells[before][after]` rows over bands of ranks; the last column is of the rows that were cut."""

    bands: tuple[str, ...]
    cells: tuple[tuple[int, ...], ...]
    rose: int
    kept: int
    fell: int
    queries: int
    first_changed: int

    @classmethod
    def of(cls, figures: Mapping[str, Any]) -> Movement | None:
        """`movement` of run_report.json's figures without its empty bands; None where nothing has both ranks."""
        cells = figures["cells"]
        last = max(
            (n for n in range(len(cells)) if any(cells[n]) or any(row[n] for row in cells)), default=None
        )
        if last is None:
            return None
        cut = any(row[-1] for row in cells)
        kept = tuple(tuple(row[: last + 1]) + ((row[-1],) if cut else ()) for row in cells[: last + 1])
        names = band_names(figures["band_ends"])[: last + 1]
        sums = {name: figures[name] for name in ("rose", "kept", "fell", "queries", "first_changed")}
        return cls(tuple(names), kept, **sums)

    @property
    def columns(self) -> tuple[str, ...]:
        """The new bands, and `cut` where rows were cut."""
        return self.bands + ((CUT,) if len(self.cells[0]) > len(self.bands) else ())


def band_names(ends: Sequence[int]) -> list[str]:
    """1, 2, 3, 4–5, 6–10, … and what lies beyond the last end."""
    starts = [1, *(end + 1 for end in ends)]
    inner = [str(a) if a == b else f"{a}–{b}" for a, b in zip(starts, ends, strict=False)]
    return [*inner, f"> {ends[-1]}"]


def heat_map(movement: Movement) -> Plot:
    """A row for each first-stage band, each cell shaded by its share of the row."""
    columns = movement.columns
    wide = (_WIDTH - _LEFT - _RIGHT) / len(columns)
    shapes = [_word(_LEFT + (n + 0.5) * wide, _TOP - 8, name, "middle") for n, name in enumerate(columns)]
    for number, (band, row) in enumerate(zip(movement.bands, movement.cells, strict=True)):
        top = _TOP + number * _CELL
        shapes.append(_word(_LEFT - 8, top + _CELL / 2 + 4, band, "end"))
        for column, count in enumerate(row):
            shapes += _cell(_LEFT + column * wide, top, wide, count, sum(row), f"{band} → {columns[column]}")
    bottom = _TOP + len(movement.bands) * _CELL
    shapes.append(_word((_LEFT + _WIDTH - _RIGHT) / 2, bottom + 20, "new rank", "middle", "axis"))
    middle = (_TOP + bottom) / 2
    turned = {"x": 14, "y": middle, "text-anchor": "middle", "transform": f"rotate(-90 14 {middle})"}
    shapes.append(Shape("text", "axis", turned, "first-stage rank"))
    return Plot(
        "movement",
        "From first-stage rank to new rank",
        "Each row is a band of first-stage ranks, and its cells say, in per cent, where the passages of that band "
        "ended. On the diagonal nothing moved.",
        tuple(shapes),
        ("first-stage rank", *columns),
        tuple(
            (band, *(f"{count:,} ({percent(count, sum(row))})" for count in row))
            for band, row in zip(movement.bands, movement.cells, strict=True)
        ),
        height=bottom + 30,
    )


def _cell(left: float, top: float, wide: float, count: int, total: int, name: str) -> list[Shape]:
    share = 100.0 * count / max(1, total)
    place = {"x": round(left + 1, 2), "y": top + 1, "width": round(wide - 2, 2), "height": _CELL - 2, "rx": 3}
    ground = Shape("rect", "cell-ground", place)
    if not count:
        return [ground]
    shade = Shape("rect", "cell", {**place, "fill-opacity": round(0.05 + 0.55 * share / 100.0, 3)})
    text = f"{share:.0f}" if share >= 0.5 else "·"
    told = f"rank {name}: {count:,} passages, {percent(count, total)}"
    numbers = {"x": round(left + wide / 2, 2), "y": top + _CELL / 2 + 4, "text-anchor": "middle"}
    return [
        ground,
        Shape(shade.kind, shade.look, shade.numbers, told=told),
        Shape("text", "cell-text", numbers, text),
    ]


def _word(x: float, y: float, text: str, anchor: str, look: str = "tick") -> Shape:
    return Shape("text", look, {"x": round(x, 2), "y": y, "text-anchor": anchor}, text)
