from __future__ import annotations

from itertools import islice, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rerank_udf.packing import Layout, batch_cost, part_edges, part_sizes, plan_batches

LENGTHS = st.lists(st.integers(1, 60), max_size=80)
LAYOUTS: tuple[Layout, ...] = ("packed", "padded", "equal_lengths")


def filled_row_by_row(lengths: list[int], budget: int, layout: Layout) -> list[list[int]]:
    """Fill one batch after the other, one row at a time."""
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        rows = [*(batches[-1] if batches else []), row]
        cost = len(rows) * lengths[rows[0]] if layout == "padded" else sum(lengths[r] for r in rows)
        if batches and cost <= budget:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 200), st.sampled_from(["packed", "padded"]))
def test_batches_are_those_of_filling_row_by_row(lengths: list[int], budget: int, layout: Layout) -> None:
    planned = plan_batches(lengths, budget, layout)
    assert [batch.tolist() for batch in planned] == filled_row_by_row(lengths, budget, layout)


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 200))
def test_batches_of_equal_lengths_are_as_few_and_as_even_as_the_budget_allows(
    lengths: list[int], budget: int
) -> None:
    planned = plan_batches(lengths, budget, "equal_lengths")
    assert np.concatenate([*planned, np.empty(0, np.int64)]).tolist() == sorted(
        range(len(lengths)), key=lambda row: -lengths[row]
    )
    assert all(len({lengths[row] for row in batch}) == 1 for batch in planned)
    for length in set(lengths):
        sizes = [len(batch) for batch in planned if lengths[batch[0]] == length]
        most = max(1, budget // length)
        assert max(sizes) <= most
        assert max(sizes) - min(sizes) <= 1
        assert (len(sizes) - 1) * most < sum(sizes)


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 200), st.sampled_from(LAYOUTS))
def test_every_row_is_in_one_batch_and_no_batch_of_several_costs_more_than_the_budget(
    lengths: list[int], budget: int, layout: Layout
) -> None:
    planned = plan_batches(lengths, budget, layout)
    assert sorted(row for batch in planned for row in batch.tolist()) == list(range(len(lengths)))
    for batch in planned:
        assert batch.dtype == np.int64
        assert len(batch) == 1 or batch_cost(np.array(lengths)[batch], layout) <= budget


def test_ten_equal_rows_under_a_budget_of_nine_are_two_batches_of_five() -> None:
    assert [batch.tolist() for batch in plan_batches([7] * 10, 9 * 7, "equal_lengths")] == [
        [0, 1, 2, 3, 4],
        [5, 6, 7, 8, 9],
    ]


def test_the_longest_come_first_and_equal_ones_keep_their_order() -> None:
    assert [batch.tolist() for batch in plan_batches([5, 9, 5, 5], 100)] == [[1, 0, 2, 3]]
    assert [batch.tolist() for batch in plan_batches([5, 9, 5, 5], 100, "equal_lengths")] == [[1], [0, 2, 3]]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_row_over_the_budget_is_a_batch_by_itself(layout: Layout) -> None:
    assert [batch.tolist() for batch in plan_batches([3, 50, 3], 10, layout)] == [[1], [0, 2]]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_gives_no_batches(layout: Layout) -> None:
    assert plan_batches(np.empty(0, np.int64), 10, layout) == []


def test_a_budget_below_one_token_is_refused() -> None:
    with pytest.raises(ValueError, match="must be at least 1 token"):
        plan_batches([1], 0)


def test_a_padded_batch_costs_its_rectangle_and_the_others_their_tokens() -> None:
    lengths = np.array([5, 2, 3])
    assert [batch_cost(lengths, layout) for layout in LAYOUTS] == [10, 15, 10]


def test_parts_double_up_to_two_thousand_pairs() -> None:
    assert list(islice(part_sizes(), 7)) == [128, 256, 512, 1024, 2048, 2048, 2048]


def test_the_parts_of_a_streams_windows() -> None:
    sizes = part_sizes()
    assert part_edges(4096, sizes) == [0, 128, 384, 896, 1920, 4096], (
        "128 pairs are left, under half of 2,048"
    )
    assert part_edges(4096, sizes) == [0, 2048, 4096]
    assert part_edges(3072, sizes) == [0, 2048, 3072], "half of it is a part"
    assert part_edges(3071, sizes) == [0, 3071]
    assert part_edges(1, sizes) == [0, 1]
    assert part_edges(0, sizes) == [0, 0]


@given(st.lists(st.integers(0, 9000), max_size=6))
def test_parts_are_whole_and_none_is_much_larger_than_its_size(windows: list[int]) -> None:
    sizes = part_sizes()
    for pairs in windows:
        edges = part_edges(pairs, sizes)
        assert (edges[0], edges[-1]) == (0, pairs)
        assert all(0 < stop - start < 1.5 * 2048 for start, stop in pairwise(edges)) or pairs == 0
