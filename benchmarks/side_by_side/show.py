"""The table that a person reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from side_by_side.statistics import Row, Spread


def print_rows(
    console: Console, rows: Sequence[Row], title: str, not_run: Mapping[str, str], notes: Sequence[str]
) -> None:
    """The figures, what was not run and why, and the notes."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("engine")
    table.add_column("precision")
    for name in (
        "batch",
        "tokens/s",
        "pairs/s",
        "ours ×",
        "ids → logits",
        "ours ×",
        "share",
        "pad",
        "GiB",
        "|Δ logit|",
        "τ",
    ):
        table.add_column(name, justify="right")
    for row in rows:
        style = "bold" if row.lane.ours else None
        table.add_row(*cells(row), style=style)
    console.print(table)
    for note in notes:
        console.print(note, highlight=False)
    for name, why in not_run.items():
        console.print(f"not run: {name}: {why}", highlight=False, markup=False)


def cells(row: Row) -> list[str]:
    """One line of the table."""
    lane = row.lane
    star = "*" if lane.sample == "fewer" else ""
    batch = "own" if lane.batch_size is None else f"{lane.batch_size} ({lane.batch})"
    peak = lane.peak_device_bytes or lane.peak_bytes
    return [
        lane.title + star,
        lane.precision,
        batch,
        spread(row.tokens_per_second, "{:,.0f}"),
        spread(row.pairs_per_second, "{:,.1f}", with_ends=False),
        spread(row.ratio, "{:.2f}"),
        spread(row.ids_tokens_per_second, "{:,.0f}", with_ends=False),
        spread(row.ids_ratio, "{:.2f}"),
        spread(row.share, "{:.0%}", with_ends=False),
        "" if row.padding_share is None else f"{row.padding_share:.1%}",
        "" if peak is None else f"{peak / 2**30:.2f}",
        "" if lane.logit_error is None else f"{lane.logit_error:.1e}",
        "" if lane.kendall_tau is None else f"{lane.kendall_tau:.3f}",
    ]


def spread(values: Spread | None, form: str, *, with_ends: bool = True) -> str:
    """median (low–high)."""
    if values is None:
        return ""
    ends = f" ({form.format(values.low)}–{form.format(values.high)})" if with_ends else ""
    return form.format(values.median) + ends
