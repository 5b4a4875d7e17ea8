from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_udf.packing import batch_cost, plan_batches

LENGTHS = st.lists(st.integers(1, 60), max_size=80)


def greedy(lengths: list[int], budget: int, padded: bool) -> list[list[int]]:
    """Fill one batch after the other, one row at a time."""
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        rows = [*(batches[-1] if batches else []), row]
        cost = len(rows) * lengths[rows[0]] if padded else sum(lengths[r] for r in rows)
        if batches and cost <= budget:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


@given(LENGTHS, st.integers(1, 200), st.booleans())
def test_batches_are_those_of_filling_row_by_row(lengths: list[int], budget: int, padded: bool) -> None:
    planned = plan_batches(lengths, budget, padded=padded)
    assert [batch.tolist() for batch in planned] == greedy(lengths, budget, padded)


def test_the_longest_come_first_and_equal_ones_keep_their_order() -> None:
    assert [batch.tolist() for batch in plan_batches([5, 9, 5, 5], 100)] == [[1, 0, 2, 3]]


def test_a_row_over_the_budget_is_a_batch_by_itself() -> None:
    assert [batch.tolist() for batch in plan_batches([3, 50, 4], 10)] == [[1], [2, 0]]


def test_nothing_gives_no_batches() -> None:
    assert plan_batches(np.empty(0, np.int64), 10) == []


def test_a_budget_below_one_token_is_refused() -> None:
    with pytest.raises(ValueError, match="must be at least 1 token"):
        plan_batches([1], 0)


def test_a_padded_batch_costs_its_rectangle_and_a_packed_one_its_tokens() -> None:
    lengths = np.array([5, 2, 3])
    assert (batch_cost(lengths, padded=True), batch_cost(lengths, padded=False)) == (15, 10)
