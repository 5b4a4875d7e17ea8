from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from rerank_udf.engine.backend import Backend, OutOfMemoryError, PackedBatch
from rerank_udf.engine.scorer import ModelEngine, Ranked, Scorer, sigmoid
from rerank_udf.errors import InputError, ModelError, PairError
from rerank_udf.packing import Layout, batch_cost
from rerank_udf.tokens import PairLimits, PairTokenizer

NEVER = 10**9


class SumBackend:
    """A pair's logit is a thousandth of the sum of its ids; memory and arithmetic fail as a test wishes.

    `memory` is what a batch may cost when it is started, `fetched` when it is finished.
    """

    name, device, device_name = "sum", "cpu", "a test"

    def __init__(
        self,
        precision: str = "float32",
        memory: int = NEVER,
        overflow: Callable[[int], bool] = lambda total: False,
        rescue: Backend | None = None,
        fetched: int = NEVER,
        layout: Layout = "padded",
    ) -> None:
        self.precision = precision
        self.memory = memory
        self.overflow = overflow
        self.rescue = rescue
        self.fetched = fetched
        self.layout = layout
        self.batches: list[int] = []
        self.fetches = 0

    def start(self, batch: PackedBatch) -> PackedBatch:
        if batch_cost(batch.lengths, self.layout) > self.memory:
            raise OutOfMemoryError("the test's memory is full")
        self.batches.append(len(batch.lengths))
        return batch

    def finish(self, started: Sequence[Any]) -> npt.NDArray[np.float32]:
        if sum(batch_cost(batch.lengths, self.layout) for batch in started) > self.fetched:
            raise OutOfMemoryError("the test's memory is full at last")
        self.fetches += 1
        return np.concatenate([self.logits(batch) for batch in started])

    def logits(self, batch: PackedBatch) -> npt.NDArray[np.float32]:
        totals = np.add.reduceat(batch.token_ids.astype(np.int64), batch.offsets[:-1])
        logits = (totals / 1000).astype(np.float32)
        logits[[self.overflow(int(total)) for total in totals]] = np.inf
        return logits

    def in_float32(self) -> Backend:
        assert self.rescue is not None, "nobody should ask for float32"
        return self.rescue

    def token_budget(self) -> int:
        return 64

    def versions(self) -> dict[str, str]:
        return {}

    def describe(self) -> dict[str, Any]:
        return {"kernel": "a sum"}


@pytest.fixture
def tokenizer(tiny_bert: Path) -> PairTokenizer:
    return PairTokenizer.from_folder(tiny_bert, PairLimits(max_length=64))


def scorer(tokenizer: PairTokenizer, backend: Any, budget: int | None = None) -> Scorer:
    return Scorer(ModelEngine(tokenizer, backend, budget), model_key="0" * 32, facts={"model": "a test"})


def expected(tokenizer: PairTokenizer, queries: list[str], passages: list[str]) -> list[float]:
    one_by_one = [tokenizer.encode([q], [p]).token_ids.sum() for q, p in zip(queries, passages, strict=True)]
    return [float(np.float32(total / 1000)) for total in one_by_one]


QUERIES = ["how long", "a", "capital of france", "how long", ""] * 8
PASSAGES = [f"five days {'in paris ' * (i % 7)}" for i in range(40)]


def test_logits_come_back_in_the_order_of_the_pairs(tokenizer: PairTokenizer) -> None:
    backend = SumBackend()
    assert scorer(tokenizer, backend).logits(QUERIES, PASSAGES).tolist() == expected(
        tokenizer, QUERIES, PASSAGES
    )
    assert len(backend.batches) > 1
    assert sum(backend.batches) == 40


@pytest.mark.parametrize("layout", ["packed", "padded", "equal_lengths"])
def test_a_batch_never_costs_more_than_its_budget(tokenizer: PairTokenizer, layout: Layout) -> None:
    scorer(tokenizer, SumBackend(memory=100, layout=layout), budget=100).logits(
        QUERIES, PASSAGES
    )  # would raise


def test_all_batches_are_fetched_at_once(tokenizer: PairTokenizer) -> None:
    backend = SumBackend()
    scorer(tokenizer, backend).logits(QUERIES, PASSAGES)
    assert (len(backend.batches) > 3, backend.fetches) == (True, 1)


def test_a_very_large_call_is_fetched_in_parts(
    tokenizer: PairTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rerank_udf.engine.runner._MOST_TOKENS", 150)
    backend = SumBackend()
    assert scorer(tokenizer, backend).logits(QUERIES, PASSAGES).tolist() == expected(
        tokenizer, QUERIES, PASSAGES
    )
    tokens = int(tokenizer.encode(QUERIES, PASSAGES).lengths.sum())
    assert tokens // (150 + 64) <= backend.fetches <= tokens // 150 + 1


def test_no_pairs_give_no_logits(tokenizer: PairTokenizer) -> None:
    scored = scorer(tokenizer, SumBackend()).score_pairs([], [])
    assert (scored.logits.shape, scored.tokens.shape, scored.errors) == ((0,), (0,), {})


def test_a_bad_pair_fails_alone(tokenizer: PairTokenizer) -> None:
    scored = scorer(tokenizer, SumBackend()).score_pairs(
        ["a", None, "a", "\ud800", "a"], ["a", "a", None, "a", "a"]
    )
    assert {row: reason for row, (reason, _) in scored.errors.items()} == {
        1: "null_query",
        2: "null_passage",
        3: "invalid_utf8",
    }
    assert np.isnan(scored.logits).tolist() == [False, True, True, True, False]
    assert scored.tokens.tolist() == [5, 0, 0, 0, 5]
    assert (scored.logits.dtype, scored.tokens.dtype, scored.truncated.dtype) == (
        np.float32,
        np.int32,
        np.bool_,
    )


@pytest.mark.parametrize("window", [1, 7, 39])
def test_a_call_with_many_pairs_goes_in_windows_and_gives_the_same(
    tokenizer: PairTokenizer, monkeypatch: pytest.MonkeyPatch, window: int
) -> None:
    queries = [None if i == 11 else "a \ud800" if i == 20 else query for i, query in enumerate(QUERIES)]
    whole = scorer(tokenizer, SumBackend()).score_pairs(queries, PASSAGES)
    monkeypatch.setattr("rerank_udf.engine.scorer.WINDOW_PAIRS", window)
    monkeypatch.setattr(ModelEngine, "overlaps", True)
    backend = SumBackend()
    model = scorer(tokenizer, backend)
    before = model.describe()["texts_tokenised"]
    scored = model.score_pairs(queries, PASSAGES)
    np.testing.assert_array_equal(scored.logits, whole.logits)
    np.testing.assert_array_equal(scored.tokens, whole.tokens)
    np.testing.assert_array_equal(scored.truncated, whole.truncated)
    assert scored.errors == whole.errors
    assert set(scored.errors) == {11, 20}
    assert backend.fetches == len({row // window for row in range(len(PASSAGES)) if row not in scored.errors})
    tokenised = model.describe()["texts_tokenised"] - before
    assert tokenised == len(set(PASSAGES)) + len({*QUERIES})


def test_logits_raises_for_the_first_pair_that_cannot_be_scored(tokenizer: PairTokenizer) -> None:
    with pytest.raises(PairError, match="pair 1: null_passage: the passage is null") as caught:
        scorer(tokenizer, SumBackend()).logits(["a", "a", None], ["b", None, "b"])
    assert (caught.value.index, caught.value.reason) == (1, "null_passage")


def test_out_of_memory_halves_the_budget_for_good_and_says_so(
    tokenizer: PairTokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    backend = SumBackend(memory=60)
    model = scorer(tokenizer, backend, budget=400)
    with caplog.at_level(logging.WARNING):
        logits = model.logits(QUERIES, PASSAGES)
    assert logits.tolist() == expected(tokenizer, QUERIES, PASSAGES)
    facts = model.describe()
    assert facts["max_tokens_per_batch"] <= 60
    assert facts["out_of_memory_halvings"] == len(caplog.records) >= 1
    assert "out of memory on cpu: batches now have at most" in caplog.text
    model.logits(QUERIES, PASSAGES)
    assert model.describe()["out_of_memory_halvings"] == facts["out_of_memory_halvings"]


def test_out_of_memory_at_the_end_starts_only_what_failed_again(tokenizer: PairTokenizer) -> None:
    backend = SumBackend(fetched=60)
    model = scorer(tokenizer, backend, budget=100)
    assert model.logits(QUERIES, PASSAGES).tolist() == expected(tokenizer, QUERIES, PASSAGES)
    assert model.describe()["out_of_memory_halvings"] > 0
    fits = [rows for rows in backend.batches if rows > 1]
    assert sum(backend.batches) < 40 + sum(fits)
    assert model.describe()["max_tokens_per_batch"] <= 60


@pytest.mark.parametrize(("fetched", "budget", "halvings"), [(20, 20, 1), (10, 10, 2)])
def test_many_batches_that_cannot_be_fetched_halve_the_budget_once_a_round(
    tokenizer: PairTokenizer, fetched: int, budget: int, halvings: int
) -> None:
    """All of them were tried under one budget: how many they are says nothing about how large they may be."""
    queries, passages = ["a"] * 128, ["b"] * 128  # five tokens a pair: 16 batches
    model = scorer(tokenizer, SumBackend(fetched=fetched, layout="packed"), budget=40)
    assert model.logits(queries, passages).tolist() == expected(tokenizer, queries, passages)
    facts = model.describe()
    assert (facts["max_tokens_per_batch"], facts["out_of_memory_halvings"]) == (budget, halvings)


@pytest.mark.parametrize("where", ["memory", "fetched"])
def test_a_pair_that_does_not_fit_alone_is_an_error_and_the_others_are_scored(
    tokenizer: PairTokenizer, where: str
) -> None:
    backend = SumBackend(**{where: 30})  # type: ignore[arg-type]
    scored = scorer(tokenizer, backend).score_pairs(["a"] * 3, ["b", "fish " * 50, "c"])
    assert list(scored.errors) == [1]
    assert scored.errors[1][0] == "out_of_memory"
    assert "54 tokens do not fit into the memory of cpu" in scored.errors[1][1]
    assert scored.logits[[0, 2]].tolist() == expected(tokenizer, ["a", "a"], ["b", "c"])


class QueueBackend(SumBackend):
    """As a queue does that is made anew after an error: what was waiting in it is lost, whatever its size."""

    waiting: tuple[PackedBatch, ...] = ()

    def start(self, batch: PackedBatch) -> PackedBatch:
        self.waiting = (*self.waiting, batch)
        return batch

    def finish(self, started: Sequence[Any]) -> npt.NDArray[np.float32]:
        waiting, self.waiting = self.waiting, ()
        if any(batch_cost(batch.lengths, self.layout) > self.memory for batch in waiting):
            raise OutOfMemoryError("the queue's memory is full")
        if not all(any(batch is one for one in waiting) for batch in started):
            raise OutOfMemoryError("it was in the queue that failed")
        return np.concatenate([self.logits(batch) for batch in started])


def test_a_pair_that_another_takes_with_it_is_scored_alone(tokenizer: PairTokenizer) -> None:
    backend = QueueBackend(memory=30)
    passages = ["b", "fish " * 50, "c", "d"]
    scored = scorer(tokenizer, backend, budget=1).score_pairs(["a"] * 4, passages)  # each a batch of its own
    assert list(scored.errors) == [1]
    assert scored.errors[1] == (
        "out_of_memory",
        "54 tokens do not fit into the memory of cpu: the queue's memory is full",
    )
    assert scored.logits[[0, 2, 3]].tolist() == expected(tokenizer, ["a"] * 3, ["b", "c", "d"])


def test_what_overflows_in_16_bits_is_scored_again_in_float32_and_counted(tokenizer: PairTokenizer) -> None:
    full = expected(tokenizer, QUERIES, PASSAGES)
    rescue = SumBackend()
    backend = SumBackend("float16", overflow=lambda total: total % 3 == 0, rescue=rescue)
    model = scorer(tokenizer, backend)
    assert model.logits(QUERIES, PASSAGES).tolist() == full
    assert model.describe()["rescored_in_float32"] == sum(rescue.batches) > 0
    assert sum(backend.batches) == 40


def test_what_is_not_finite_in_float32_either_is_an_error(tokenizer: PairTokenizer) -> None:
    def always(total: int) -> bool:
        return True

    for backend in (
        SumBackend(overflow=always),
        SumBackend("bfloat16", NEVER, always, SumBackend(overflow=always)),
    ):
        scored = scorer(tokenizer, backend).score_pairs(["a"], ["b"])
        assert scored.errors == {0: ("not_finite", "the model's output is inf in float32")}
        assert math.isnan(scored.logits[0])


def test_without_room_for_float32_the_other_pairs_are_still_scored(tokenizer: PairTokenizer) -> None:
    class Full(SumBackend):
        def in_float32(self) -> SumBackend:
            raise ModelError("the weights do not fit into the memory of cuda:0")

    full = expected(tokenizer, QUERIES, PASSAGES)
    scored = scorer(tokenizer, Full("float16", overflow=lambda total: total % 3 == 0)).score_pairs(
        QUERIES, PASSAGES
    )
    assert set(scored.errors.values()) == {("not_finite", "the model's output is inf in float16")}
    assert [x for x in scored.logits.tolist() if x == x] == [
        x for row, x in enumerate(full) if row not in scored.errors
    ]


def test_an_error_that_spoils_the_process_is_raised(tokenizer: PairTokenizer) -> None:
    class Broken(SumBackend):
        def start(self, batch: PackedBatch) -> PackedBatch:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal memory access"):
        scorer(tokenizer, Broken()).score_pairs(["a"], ["b"])


def test_a_scorer_says_what_its_backend_and_its_tokenizer_did(tokenizer: PairTokenizer) -> None:
    model = scorer(tokenizer, SumBackend())
    before = model.describe()
    model.score_pairs(["a", "a", "b"], ["b", "c", "a"])
    facts = model.describe()
    assert (facts["backend"], facts["kernel"], facts["precision"]) == ("sum", "a sum", "float32")
    assert facts["tokenizer_threads"] >= 1
    assert facts["texts_tokenised"] - before["texts_tokenised"] == 3
    assert facts["text_cache_hits"] - before["text_cache_hits"] == 2


def test_rank_is_by_logit_and_keeps_the_order_of_equals(tokenizer: PairTokenizer) -> None:
    model = scorer(tokenizer, SumBackend())
    ranked = model.rank("a", ["b", "z", "b", "z z"])
    assert [entry.index for entry in ranked] == [3, 1, 0, 2]
    assert [entry.index for entry in model.rank("a", ["b", "z", "b", "z z"], top_k=2)] == [3, 1]
    assert ranked[0] == Ranked(3, 1 / (1 + math.exp(-ranked[0].logit)), ranked[0].logit)
    assert model.rank("a", []) == []


def test_rank_refuses_what_makes_no_sense(tokenizer: PairTokenizer) -> None:
    model = scorer(tokenizer, SumBackend())
    with pytest.raises(InputError, match="top_k is -1"):
        model.rank("a", ["b"], top_k=-1)
    with pytest.raises(InputError, match="the query is of type list; expected str"):
        model.rank(["a"], ["b"])  # type: ignore[arg-type]


def test_sigmoid_neither_overflows_nor_loses_the_small_end() -> None:
    scores = sigmoid(np.array([-800, -90, -1, 0, 1, 90], np.float32))
    assert scores.tolist() == pytest.approx(
        [0, math.exp(-90), 0.2689414213699951, 0.5, 0.7310585786300049, 1]
    )
    assert scores[1] > 0
