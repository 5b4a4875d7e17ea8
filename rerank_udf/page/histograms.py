"""Two distributions over the same buckets in one chart: one filled, one outlined, each as shares of its own total."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rerank_udf.page.numbers import percent, plain
from rerank_udf.page.plot import Frame, Plot, steps, ticks


@dataclass(frozen=True)
class Histogram:
    """Counts in buckets of one width from `low` on."""

    low: float
    width: float
    counts: tuple[int, ...]

    @classmethod
    def of(cls, figures: Mapping[str, Any], name: str) -> Histogram:
        """One series of run_report.json's `figures`."""
        return cls(figures["low"], figures["width"], tuple(figures[name]))

    @property
    def total(self) -> int:
        """Everything that was counted."""
        return sum(self.counts)

    def edge(self, number: int) -> float:
        """Where a bucket begins."""
        return self.low + number * self.width

    def shares(self) -> list[float]:
        """Each bucket's part of the whole, in per cent."""
        return [100.0 * count / max(1, self.total) for count in self.counts]


@dataclass(frozen=True)
class Words:
    """What a chart of two histograms is called."""

    name: str
    title: str
    about: str
    x_name: str
    filled: str
    outlined: str
    whole: bool = False  # the buckets hold whole numbers


def overlaid(filled: Histogram, outlined: Histogram, words: Words) -> Plot:
    """`filled` as bars behind `outlined` as a line; buckets that are empty at both ends are left out."""
    first, last = _span(filled, outlined)
    shown = range(first, last + 1)
    edges = [filled.edge(n) for n in range(first, last + 2)]
    behind, before = filled.shares(), outlined.shares()
    top = max(*behind, *before, 1e-9) * 1.06
    frame = Frame((edges[0], edges[-1]), (0.0, top))
    frame.axes(
        [(t, plain(t)) for t in ticks(edges[0], edges[-1], 7)],
        [(t, f"{plain(t)} %") for t in ticks(0.0, top, 4)],
        words.x_name,
    )
    names = [_name(filled, n, words.whole) for n in shown]
    for n, name in zip(shown, names, strict=True):
        if filled.counts[n]:
            told = f"{name}: {behind[n]:.1f} % of {words.filled}"
            frame.bar(filled.edge(n), filled.edge(n + 1), 0.0, behind[n], "fill-a", told)
    if outlined.total:
        frame.path(steps(edges, before[first : last + 1]), "line-b")
    return Plot(
        words.name,
        words.title,
        words.about,
        tuple(frame.shapes),
        (words.x_name, words.filled, words.outlined),
        tuple((name, _cell(filled, n), _cell(outlined, n)) for n, name in zip(shown, names, strict=True)),
        (("fill-a", words.filled), ("line-b", words.outlined)),
    )


def expected_padding(pairs: Sequence[int], batch: int) -> float:
    """The share of padding in batches of so many pairs in random order, each padded to its longest pair.

    In expectation over the buckets of lengths, whose numbers (1, 2, 3, …) stand for the lengths: the longest of n
    independent draws is at most b with probability F(b)**n.
    """
    total = sum(pairs)
    if not total:
        return 0.0
    below, longest, mean = 0, 0.0, 0.0
    for number, count in enumerate(pairs, 1):
        longest += number * (((below + count) / total) ** batch - (below / total) ** batch)
        mean += number * count / total
        below += count
    return 1.0 - mean / longest


def _span(one: Histogram, other: Histogram) -> tuple[int, int]:
    """The first and the last bucket that holds anything."""
    used = [n for n, counts in enumerate(zip(one.counts, other.counts, strict=True)) if any(counts)]
    return (used[0], used[-1]) if used else (0, len(one.counts) - 1)


def _name(histogram: Histogram, number: int, whole: bool) -> str:
    start, end = histogram.edge(number), histogram.edge(number + 1)
    return f"{start:,.0f}–{end - 1:,.0f}" if whole else f"{plain(start)} … {plain(end)}"


def _cell(histogram: Histogram, number: int) -> str:
    count = histogram.counts[number]
    return f"{count:,} ({percent(count, histogram.total)})"
