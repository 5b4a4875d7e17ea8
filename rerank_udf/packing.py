"""Lengths to batches: pure numpy, no devices, no tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import numpy.typing as npt

RowNumbers = npt.NDArray[np.int64]

# Pairs are scored a window at a time: wide enough that sorting by length leaves little padding.
WINDOW_PAIRS = 4096
# A device with a queue of its own is given windows in parts. The first is small, so that the device need not wait until
# many texts are tokenised; the next ones double, so that little is lost where a part's last batch is not full.
FIRST_PAIRS = 128
MOST_PART_PAIRS = 2048

Layout = Literal["packed", "padded", "equal_lengths"]
"""What a batch may hold, and what it costs. "packed": any rows, one after the other; the sum of their lengths.
"padded": any rows, each as wide as the longest; rows × longest. "equal_lengths": only rows of one length; their
sum."""


def part_sizes() -> Iterator[int]:
    """Pairs of each part of a stream's windows: 128, 256, … 2,048, and 2,048 for ever."""
    size = FIRST_PAIRS
    while True:
        yield size
        size = min(MOST_PART_PAIRS, 2 * size)


def part_edges(pairs: int, sizes: Iterator[int]) -> list[int]:
    """Where the parts of a window of so many pairs begin and end: 0, …, `pairs`; one part, [0, 0], for no pairs.

    `sizes` is that of the stream, of which as many are taken as there are parts. What is left over and less than half
    of the last size belongs to the part before it.
    """
    edges = [0]
    while edges[-1] < pairs or len(edges) == 1:
        size = next(sizes)
        end = edges[-1] + size
        edges.append(pairs if 2 * (pairs - end) < size else end)
    return edges


def plan_batches(
    lengths: npt.ArrayLike, max_tokens_per_batch: int, layout: Layout = "packed"
) -> list[RowNumbers]:
    """Group rows into batches under a token budget, longest rows first.

    `lengths`: integers (n,), tokens in each row; `layout` says what a batch costs. Returns row numbers, int64; each
    row is in exactly one batch, and a row over the budget by itself is a batch by itself. Rows of equal length keep
    their order, so that a plan depends on nothing but its arguments. Python steps per batch, none per row. Raises
    ValueError for a budget below 1.
    """
    if max_tokens_per_batch < 1:
        raise ValueError(f"max_tokens_per_batch is {max_tokens_per_batch}; it must be at least 1 token")
    sizes = np.asarray(lengths, dtype=np.int64)
    order = np.argsort(-sizes, kind="stable")
    ends = _equal_ends if layout == "equal_lengths" else _padded_ends if layout == "padded" else _packed_ends
    return np.split(order, list(ends(sizes[order], max_tokens_per_batch))[:-1]) if len(order) else []


def batch_cost(lengths: npt.NDArray[np.int64], layout: Layout) -> int:
    """Tokens that a batch counts for: the sum of its lengths, or rows × longest where it is padded."""
    return int(lengths.max()) * len(lengths) if layout == "padded" else int(lengths.sum())


def _packed_ends(ordered: npt.NDArray[np.int64], budget: int) -> Iterator[int]:
    """Where each batch ends in lengths that fall; as many rows as their sum allows."""
    ends_in_tokens = np.cumsum(ordered)
    end = tokens = 0
    while end < len(ordered):
        end = max(end + 1, int(np.searchsorted(ends_in_tokens, tokens + budget, side="right")))
        tokens = int(ends_in_tokens[end - 1])
        yield end


def _padded_ends(ordered: npt.NDArray[np.int64], budget: int) -> Iterator[int]:
    """As `_packed_ends`; as many rows as fit where each takes the room of the first."""
    end = 0
    while end < len(ordered):
        end = min(len(ordered), end + max(1, budget // max(1, int(ordered[end]))))
        yield end


def _equal_ends(ordered: npt.NDArray[np.int64], budget: int) -> Iterator[int]:
    """As `_packed_ends`; a run of one length in the fewest batches, which differ by one row at most.

    Filling each batch to the budget could leave one row for the last, which costs a device much and does little.
    """
    run_ends = np.append(np.flatnonzero(np.diff(ordered)) + 1, len(ordered)).tolist()
    start = 0
    for run_end in run_ends:
        rows = run_end - start
        batches = -(-rows // max(1, budget // max(1, int(ordered[start]))))
        for batch in range(1, batches + 1):
            yield start + rows * batch // batches
        start = run_end
