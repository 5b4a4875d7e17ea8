"""The picture: one bar an engine, sorted, with how many times as fast ours is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from side_by_side.statistics import Row

_OURS, _PEER, _TEXT, _QUIET = "#1f6f8b", "#b9c4cc", "#1c2429", "#5c6970"


def draw(rows: Sequence[Row], title: str, subtitle: str, path: Path) -> None:
    """Write a PNG. Raises ImportError without matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    ordered = sorted(rows, key=lambda row: row.tokens_per_second.median)
    figure = Figure(figsize=(10, 1.5 + 0.42 * len(ordered)), dpi=150)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    places = range(len(ordered))
    medians = [row.tokens_per_second.median for row in ordered]
    below = [row.tokens_per_second.median - row.tokens_per_second.low for row in ordered]
    above = [row.tokens_per_second.high - row.tokens_per_second.median for row in ordered]
    colours = [_OURS if row.lane.ours else _PEER for row in ordered]
    bars = {"ecolor": _QUIET, "capsize": 2, "elinewidth": 1}
    axes.barh(places, medians, color=colours, xerr=[below, above], error_kw=bars, height=0.68)
    most = max(row.tokens_per_second.high for row in ordered)
    for place, row in zip(places, ordered, strict=True):
        axes.text(
            row.tokens_per_second.high + most * 0.015,
            place,
            annotation(row),
            va="center",
            color=_TEXT,
            fontsize=9,
        )
    axes.set_yticks(places, [label(row) for row in ordered], fontsize=9, color=_TEXT)
    axes.set_xlim(0, most * 1.42)
    axes.set_ylim(-0.6, len(ordered) - 0.4)
    note = "tokens/s from texts to logits; bar: median of the rounds, line: lowest to highest"
    fewer = {row.lane.pairs for row in ordered if row.lane.sample == "fewer"}
    note += "".join(f"\n* on {pairs:,} of the pairs, and compared with ours on these" for pairs in fewer)
    axes.set_xlabel(note, fontsize=8.5, color=_QUIET)
    axes.xaxis.set_major_formatter(lambda value, _place: f"{value:,.0f}")
    axes.tick_params(axis="x", labelsize=8.5, colors=_QUIET)
    axes.tick_params(axis="y", length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    figure.text(0.012, 0.985, title, ha="left", va="top", fontsize=12, fontweight="bold", color=_TEXT)
    figure.text(
        0.012,
        0.985 - 0.30 / figure.get_figheight(),
        subtitle,
        ha="left",
        va="top",
        fontsize=8.5,
        color=_QUIET,
    )
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.5 / figure.get_figheight()))
    figure.savefig(path)


def label(row: Row) -> str:
    """Engine, precision and batch size on two lines at most."""
    lane = row.lane
    star = "*" if lane.sample == "fewer" else ""
    batch = "" if lane.batch_size is None else f", batch {lane.batch_size} ({lane.batch})"
    return f"{lane.title}{star}\n{lane.precision}{batch}"


def annotation(row: Row) -> str:
    """The figure, and how many times as fast ours is."""
    figure = f"{row.tokens_per_second.median:,.0f}"
    if row.ratio is None:
        return figure
    ends = f" ({row.ratio.low:.2f}–{row.ratio.high:.2f})"
    return f"{figure}   ours is {row.ratio.median:.2f}×{ends}"
