"""A device with a queue of its own is given windows in parts, and the next one before the last is waited for."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from test_scorer import SumBackend, expected, scorer
from test_stream import CountingTokenizer
from tokenizers import Tokenizer

from rerank_udf.engine.ahead import Ahead, Part
from rerank_udf.engine.backend import PackedBatch
from rerank_udf.errors import InputError
from rerank_udf.tokens import PairLimits, PairTokenizer

FIRST, MOST = 4, 16
BUDGET = 10**6  # so that a part is one batch


class CardBackend(SumBackend):
    """Says that it is a card, and writes down what it is asked for, by the rows of a batch."""

    device = "cuda:0"

    def __init__(self, log: list[str] | None = None, **settings: Any) -> None:
        super().__init__(**settings)
        self.log = [] if log is None else log

    def start(self, batch: PackedBatch) -> PackedBatch:
        self.log.append(f"start {len(batch.lengths)}")
        return super().start(batch)

    def finish(self, started: Sequence[Any]) -> npt.NDArray[np.float32]:
        self.log.append(f"finish {sum(len(batch.lengths) for batch in started)}")
        return super().finish(started)


@pytest.fixture(scope="module")
def tokenizer(tiny_bert: Path) -> PairTokenizer:
    return PairTokenizer.from_folder(tiny_bert, PairLimits(max_length=64))


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RERANK_UDF_THREADS", "1")
    monkeypatch.setattr("rerank_udf.packing.FIRST_PAIRS", FIRST)
    monkeypatch.setattr("rerank_udf.packing.MOST_PART_PAIRS", MOST)
    monkeypatch.setattr("rerank_udf.engine.scorer.FIRST_PAIRS", FIRST)


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    assert [thread.name for thread in threading.enumerate() if "prepare" in thread.name] == []


def window(pairs: int, word: str = "five") -> tuple[list[str], list[str]]:
    return ["how long"] * pairs, [f"{word} {'days ' * (i % 5)}{i}" for i in range(pairs)]


def read(windows: list[Any], log: list[str]) -> Iterator[Any]:
    for number, one in enumerate(windows, 1):
        log.append(f"read {number}")
        yield one


def test_a_part_is_started_before_the_one_before_it_is_finished(tokenizer: PairTokenizer) -> None:
    log: list[str] = []
    windows = [window(28), window(28, "in"), window(3, "paris")]
    results = []
    for number, result in enumerate(
        scorer(tokenizer, CardBackend(log), BUDGET).stream(read(windows, log)), 1
    ):
        log.append(f"result {number}")
        results.append(result)
    steps = """read 1, start 4, start 8, read 2, finish 4, start 16, finish 8, start 16, read 3, finish 16, result 1,
        start 12, finish 16, start 3, finish 12, result 2, finish 3, result 3"""
    assert log == [step.strip() for step in steps.split(",")]
    for result, texts in zip(results, windows, strict=True):
        assert result.logits.tolist() == expected(tokenizer, *texts)


def test_a_call_goes_in_parts_too_where_it_has_more_pairs_than_the_first(tokenizer: PairTokenizer) -> None:
    backend = CardBackend()
    model = scorer(tokenizer, backend, BUDGET)
    assert model.logits(*window(FIRST)).tolist() == expected(tokenizer, *window(FIRST))
    assert backend.log == ["start 4", "finish 4"]
    backend.log.clear()
    assert model.logits(*window(13)).tolist() == expected(tokenizer, *window(13))
    assert backend.log == ["start 4", "start 9", "finish 4", "finish 9"]


def test_a_call_of_many_windows_goes_in_parts_that_keep_growing(
    tokenizer: PairTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rerank_udf.engine.scorer.WINDOW_PAIRS", 28)
    backend = CardBackend()
    found = scorer(tokenizer, backend, BUDGET).logits(*window(56))
    assert found.tolist() == expected(tokenizer, *window(56))
    assert [step for step in backend.log if "start" in step] == [f"start {n}" for n in (4, 8, 16, 16, 12)]


def test_errors_of_pairs_keep_their_places_in_the_window(tokenizer: PairTokenizer) -> None:
    queries, passages = window(28)
    queries[0], passages[5], passages[27] = None, "\ud800", None  # type: ignore[call-overload]
    (scored,) = scorer(tokenizer, CardBackend(), BUDGET).stream([(queries, passages)])
    assert {row: reason for row, (reason, _) in scored.errors.items()} == {
        0: "null_query",
        5: "invalid_utf8",
        27: "null_passage",
    }
    assert np.flatnonzero(np.isnan(scored.logits)).tolist() == [0, 5, 27]


def test_what_is_no_text_is_named_by_its_place_in_the_window(tokenizer: PairTokenizer) -> None:
    queries, passages = window(28)
    passages[20] = 7  # type: ignore[call-overload]
    results = scorer(tokenizer, CardBackend(), BUDGET).stream([window(28), (queries, passages)])
    assert len(next(results).logits) == 28
    with pytest.raises(InputError, match=r"passages\[20\] is 7 of type int"):
        next(results)


class BrokenAt(CardBackend):
    """Breaks where a batch of so many rows is started, or finished."""

    def __init__(self, step: str) -> None:
        super().__init__()
        self.step = step

    def _note(self) -> None:
        if self.log[-1] == self.step:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def start(self, batch: PackedBatch) -> PackedBatch:
        started = super().start(batch)
        self._note()
        return started

    def finish(self, started: Sequence[Any]) -> npt.NDArray[np.float32]:
        logits = super().finish(started)
        self._note()
        return logits


@pytest.mark.parametrize(
    ("step", "results"), [("start 8", 0), ("finish 16", 0), ("start 12", 1), ("finish 12", 1), ("start 3", 2)]
)
def test_an_error_of_the_device_is_raised_in_its_windows_place(
    tokenizer: PairTokenizer, step: str, results: int
) -> None:
    """Parts of 4, 8 and 16 pairs; of 16, another, and 12; of 3."""
    backend = BrokenAt(step)
    stream = scorer(tokenizer, backend, BUDGET).stream([window(28), window(44), window(3)])
    assert [len(next(stream).logits) for _ in range(results)] == [28, 44][:results]
    with pytest.raises(RuntimeError, match="illegal memory access"):
        next(stream)
    assert list(stream) == []
    if "start" in step:
        finished = [int(entry.split()[1]) for entry in backend.log if "finish" in entry]
        started = [int(entry.split()[1]) for entry in backend.log if "start" in entry]
        assert finished == started[:-1], "what was started before is finished first"


@pytest.mark.parametrize("place", [0, 1])
def test_an_error_of_the_reader_is_raised_after_the_results_before_it(
    tokenizer: PairTokenizer, place: int
) -> None:
    def windows() -> Iterator[Any]:
        for _ in range(place):
            yield window(28)
        raise OSError("it cannot be read")

    stream = scorer(tokenizer, CardBackend(), BUDGET).stream(windows())
    assert [len(next(stream).logits) for _ in range(place)] == [28] * place
    with pytest.raises(OSError, match="it cannot be read"):
        next(stream)


def test_a_panic_while_preparing_reaches_the_caller() -> None:
    """The tokenizer's panics are no Exceptions; a caller that waited for their part would wait for ever."""

    class Panic(BaseException):
        pass

    def parts_of(number: int) -> Iterator[Part]:
        yield Part(number, 0, 2)
        raise Panic("in Rust")

    ahead = Ahead(iter([1, 2]), parts_of)
    ahead.read()
    first, second = ahead.parts()
    ahead.close()
    assert (first.content, first.is_last, first.is_last_but_one) == (1, False, True)
    assert isinstance(second.error, Panic)


def test_a_stream_that_is_closed_ends_the_thread_after_the_part_in_hand(
    tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting = CountingTokenizer(Tokenizer.from_file(str(tiny_bert / "tokenizer.json")))
    begun = counting.seen["second"] = threading.Event()
    gate = counting.gate["second"] = threading.Event()

    class Pool(ThreadPoolExecutor):
        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            gate.set()  # only now, so that the thread is in the middle of a window
            super().shutdown(wait, cancel_futures=cancel_futures)

    monkeypatch.setattr("rerank_udf.engine.ahead.ThreadPoolExecutor", Pool)
    texts = ["first"] * 8 + ["second"] * 16 + ["third"] * 16  # the parts that 4 are followed by
    windows = [(["a"] * 4, ["b"] * 4), (["a"] * 40, texts), (["a"], ["fourth"])]
    results = scorer(PairTokenizer(counting, PairLimits(max_length=64)), CardBackend(), BUDGET).stream(
        windows
    )  # type: ignore[arg-type]
    assert len(next(results).logits) == 4
    assert begun.wait(60)
    results.close()  # type: ignore[attr-defined]
    assert counting.texts == ["a", "b", "first", "second"]


def test_a_stream_that_nobody_reads_begins_nothing(tokenizer: PairTokenizer) -> None:
    log: list[str] = []
    scorer(tokenizer, CardBackend(log), BUDGET).stream(read([window(28)], log))
    assert log == []


def test_memory_that_is_full_is_halved_once_though_the_next_part_is_under_way(
    tokenizer: PairTokenizer,
) -> None:
    """Parts of 4, 8 and 16: when the second cannot be fetched, the third is started already, in batches as large."""
    backend = CardBackend(fetched=20, layout="packed")
    model = scorer(tokenizer, backend, 40)
    queries, passages = ["a"] * 28, ["b"] * 28  # five tokens a pair
    assert model.logits(queries, passages).tolist() == expected(tokenizer, queries, passages)
    facts = model.describe()
    assert (facts["max_tokens_per_batch"], facts["out_of_memory_halvings"]) == (20, 1)
