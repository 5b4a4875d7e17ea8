"""Lengths to batches: pure numpy, no devices, no tensors."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

RowNumbers = npt.NDArray[np.int64]


def plan_batches(
    lengths: npt.ArrayLike, max_tokens_per_batch: int, *, padded: bool = False
) -> list[RowNumbers]:
    """Group rows into batches under a token budget, longest rows first.

    `lengths`: integers (n,), tokens in each row. A batch costs the sum of its lengths, or, with `padded`, its
    number of rows times its longest. Returns row numbers, int64; each row is in exactly one batch, and a row
    over the budget by itself is a batch by itself. Rows of equal length keep their order, so that a plan
    depends on nothing but its arguments.
    """
    if max_tokens_per_batch < 1:
        raise ValueError(f"max_tokens_per_batch is {max_tokens_per_batch}; it must be at least 1 token")
    sizes = np.asarray(lengths, dtype=np.int64)
    order = np.argsort(-sizes, kind="stable")
    ordered = sizes[order]
    ends_in_tokens = np.cumsum(ordered)
    batches: list[RowNumbers] = []
    start = 0
    while start < len(order):
        if padded:
            rows = max_tokens_per_batch // max(1, int(ordered[start]))
        else:
            tokens_before = int(ends_in_tokens[start] - ordered[start])
            last = np.searchsorted(ends_in_tokens, tokens_before + max_tokens_per_batch, side="right")
            rows = int(last) - start
        stop = start + max(1, rows)
        batches.append(order[start:stop])
        start = stop
    return batches


def batch_cost(lengths: npt.NDArray[np.int64], *, padded: bool) -> int:
    """Tokens that a batch counts for: the sum of its lengths, or rows times the longest where it is padded."""
    return int(lengths.max()) * len(lengths) if padded else int(lengths.sum())
