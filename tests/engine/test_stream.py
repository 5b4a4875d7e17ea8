"""`Scorer.stream`: windows of pairs, the next ones prepared while one is scored."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_scorer import SumBackend, expected, scorer
from tokenizers import Tokenizer

from rerank_udf.engine import load_scorer
from rerank_udf.engine.backend import PackedBatch
from rerank_udf.engine.scorer import ScoredPairs, Scorer
from rerank_udf.errors import InputError
from rerank_udf.tokens import PairLimits, PairTokenizer

TEXTS = st.sampled_from(["a", "how long", "five days", "fish " * 60, "", None, "\ud800", "in paris", "z" * 9])
WINDOWS = st.lists(st.lists(st.tuples(TEXTS, TEXTS), max_size=12), max_size=6)


@pytest.fixture(scope="session")
def tokenizer(tiny_bert: Path) -> PairTokenizer:
    return PairTokenizer.from_folder(tiny_bert, PairLimits(max_length=64))


@pytest.fixture(params=[1, 2], ids=["one core", "two cores"])
def cores(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setenv("RERANK_UDF_THREADS", str(request.param))
    return int(request.param)


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RERANK_UDF_THREADS", "2")


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    assert [thread.name for thread in threading.enumerate() if "prepare" in thread.name] == []


def sides(pairs: list[tuple[Any, Any]]) -> tuple[list[Any], list[Any]]:
    return [query for query, _ in pairs], [passage for _, passage in pairs]


def joined(parts: list[ScoredPairs]) -> tuple[Any, ...]:
    errors = []
    before = 0
    for part in parts:
        errors += [(before + row, error) for row, error in part.errors.items()]
        before += len(part.logits)
    empty = np.empty(0)
    return (
        np.concatenate([empty, *(part.logits for part in parts)]).tolist(),
        np.concatenate([empty, *(part.tokens for part in parts)]).tolist(),
        np.concatenate([empty, *(part.truncated for part in parts)]).tolist(),
        errors,
    )


@settings(max_examples=40, deadline=None)
@given(
    windows=WINDOWS,
    threads=st.integers(1, 2),
    device=st.sampled_from(["cpu", "cuda:0"]),
    memory=st.sampled_from([10**9, 90]),
    budget=st.integers(30, 300),
)
def test_a_stream_gives_what_one_call_gives(
    tokenizer: PairTokenizer,
    windows: list[list[tuple[Any, Any]]],
    threads: int,
    device: str,
    memory: int,
    budget: int,
) -> None:
    once = scorer(tokenizer, SumBackend(), budget).score_pairs(
        *sides([pair for window in windows for pair in window])
    )
    backend = SumBackend("float16", memory, lambda total: total % 3 == 0, SumBackend())
    backend.device = device
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RERANK_UDF_THREADS", str(threads))
        patch.setattr("rerank_udf.packing.FIRST_PAIRS", 2)
        patch.setattr("rerank_udf.packing.MOST_PART_PAIRS", 4)
        streamed = list(scorer(tokenizer, backend, budget).stream(map(sides, windows)))
    assert [len(part.logits) for part in streamed] == [len(window) for window in windows]
    np.testing.assert_equal(joined(streamed), joined([once]))


def test_columns_may_be_arrow(tokenizer: PairTokenizer, cores: int) -> None:
    window = pa.chunked_array([["a", "b"], ["a"]]), pa.array(["c", "a", "b"]).dictionary_encode()
    (first, second) = scorer(tokenizer, SumBackend()).stream([window, window])
    assert (
        first.logits.tolist()
        == second.logits.tolist()
        == expected(tokenizer, ["a", "b", "a"], ["c", "a", "b"])
    )


class CountingTokenizer:
    """Counts how often each text is encoded, on which thread; `at` is called before a text is."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.texts: list[str] = []
        self.threads: set[int] = set()
        self.seen: dict[str, threading.Event] = {}
        self.gate: dict[str, threading.Event] = {}

    def encode_batch_fast(self, texts: list[str], add_special_tokens: bool) -> Any:
        for text in texts:
            self.seen.setdefault(text, threading.Event()).set()
            assert text not in self.gate or self.gate[text].wait(60)
        self.texts += texts
        self.threads.add(threading.get_ident())
        return self._tokenizer.encode_batch_fast(texts, add_special_tokens=add_special_tokens)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


@pytest.fixture
def counting(tiny_bert: Path) -> Any:
    return CountingTokenizer(Tokenizer.from_file(str(tiny_bert / "tokenizer.json")))


def counted_scorer(counting: Any, backend: Any) -> Scorer:
    return scorer(PairTokenizer(counting, PairLimits(max_length=64)), backend)


def test_each_distinct_text_is_tokenised_once_in_a_whole_stream(counting: Any, cores: int) -> None:
    """100 candidates for each of 12 queries; each passage is a candidate of several, in other windows too."""
    pairs = [(f"query {q}", f"passage {(q * 37 + c) % 450}") for q in range(12) for c in range(100)]
    windows = [sides(pairs[start : start + 250]) for start in range(0, 1200, 250)]
    model = counted_scorer(counting, SumBackend())
    assert sum(len(part.logits) for part in model.stream(windows)) == 1200
    distinct = {text for pair in pairs for text in pair}
    assert sorted(counting.texts) == sorted(distinct)
    facts = model.describe()
    assert facts["texts_tokenised"] == len(distinct)
    in_windows = sum(len(set(queries)) + len(set(passages)) for queries, passages in windows)
    assert facts["text_cache_hits"] == in_windows - len(distinct)


def test_a_text_that_is_query_and_passage_is_tokenised_once(counting: Any, cores: int) -> None:
    list(counted_scorer(counting, SumBackend()).stream([(["a", "b"], ["b", "c"]), (["c"], ["a"])]))
    assert sorted(counting.texts) == ["a", "b", "c"]


def test_a_stream_forgets_its_texts_with_its_end(counting: Any, cores: int) -> None:
    model = counted_scorer(counting, SumBackend())
    for _ in range(2):
        list(model.stream([(["a"], ["b"])]))
    assert sorted(counting.texts) == ["a", "a", "b", "b"]


class WaitingBackend(SumBackend):
    """Finishes the first window only when the next one is being tokenised."""

    def __init__(self, until: threading.Event) -> None:
        super().__init__()
        self.until = until

    def start(self, batch: PackedBatch) -> PackedBatch:
        assert self.until.wait(60), "the next window was not prepared while this one was computed"
        return super().start(batch)


@pytest.mark.usefixtures("two_cores")
def test_the_next_window_is_tokenised_while_one_is_computed(counting: Any) -> None:
    backend = WaitingBackend(counting.seen.setdefault("second", threading.Event()))
    parts = list(counted_scorer(counting, backend).stream([(["q"], ["first"]), (["q"], ["second"])]))
    assert len(parts) == 2
    assert threading.get_ident() not in counting.threads
    assert len(counting.threads) == 1


@pytest.mark.usefixtures("two_cores")
def test_the_pairs_are_read_on_the_callers_thread(tokenizer: PairTokenizer) -> None:
    threads = []

    def windows() -> Iterator[tuple[list[str], list[str]]]:
        for _ in range(4):
            threads.append(threading.get_ident())
            yield ["a"], ["b"]

    assert len(list(scorer(tokenizer, SumBackend()).stream(windows()))) == 4
    assert set(threads) == {threading.get_ident()}


def test_one_core_beside_no_other_device_has_no_second_thread(
    counting: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RERANK_UDF_THREADS", "1")
    list(counted_scorer(counting, SumBackend()).stream([(["a"], ["b"])] * 3))
    assert counting.threads == {threading.get_ident()}
    other = SumBackend()
    other.device = "cuda:0"
    list(counted_scorer(counting, other).stream([(["a"], ["b"])] * 3))
    assert len(counting.threads) == 2


def test_no_windows_give_no_results(tokenizer: PairTokenizer, cores: int) -> None:
    assert list(scorer(tokenizer, SumBackend()).stream([])) == []


def test_memory_that_is_full_in_the_middle_of_a_stream_halves_the_budget_of_what_follows(
    tokenizer: PairTokenizer, cores: int
) -> None:
    class Shrinking(SumBackend):
        def start(self, batch: PackedBatch) -> PackedBatch:
            if len(self.batches) >= 3:
                self.memory = 70
            return super().start(batch)

    passages = [f"five days {'in paris ' * (i % 7)}" for i in range(40)]
    windows = [(["how long"] * 40, passages)] * 4
    model = scorer(tokenizer, Shrinking(), budget=300)
    streamed = list(model.stream(windows))
    for part in streamed:
        assert part.logits.tolist() == expected(tokenizer, *windows[0])
    assert model.describe()["max_tokens_per_batch"] <= 70
    assert 1 <= model.describe()["out_of_memory_halvings"] <= 3


def failing_reader() -> Iterator[Any]:
    yield ["a"], ["b"]
    raise OSError("the second window cannot be read")


FAILING = [
    (failing_reader, OSError, "the second window cannot be read"),
    (
        lambda: iter([(["a"], ["b"]), (["a"], ["b", "c"]), (["a"], ["c"])]),
        InputError,
        "1 queries and 2 passages",
    ),
    (
        lambda: iter([(["a"], ["b"]), (["a"], ["boom"]), (["a"], ["c"])]),
        RuntimeError,
        "an illegal memory access",
    ),
]


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
@pytest.mark.parametrize(("windows", "error", "sentence"), FAILING, ids=["reading", "preparing", "computing"])
def test_an_error_is_raised_in_its_windows_place(
    tokenizer: PairTokenizer, cores: int, windows: Any, error: type[Exception], sentence: str, device: str
) -> None:
    long = int(tokenizer.encode(["a"], ["boom"]).lengths[0])

    class Breaking(SumBackend):
        def start(self, batch: PackedBatch) -> PackedBatch:
            if long in batch.lengths:
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
            return super().start(batch)

    backend = Breaking()
    backend.device = device
    results = scorer(tokenizer, backend).stream(windows())
    assert next(results).logits.tolist() == expected(tokenizer, ["a"], ["b"])
    with pytest.raises(error, match=sentence):
        next(results)
    assert list(results) == []


def test_a_stream_that_is_closed_early_stops_reading_and_leaves_no_thread(counting: Any, cores: int) -> None:
    read = []

    def windows() -> Iterator[tuple[list[str], list[str]]]:
        for number in range(100):
            read.append(number)
            yield ["a"], [f"passage {number}"]

    results = counted_scorer(counting, SumBackend()).stream(windows())
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert len(read) == (3 if cores > 1 else 1)


@pytest.mark.usefixtures("two_cores")
def test_a_stream_that_is_closed_waits_for_the_window_in_hand_and_drops_the_rest(
    counting: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = counting.seen["second"] = threading.Event()
    gate = counting.gate["second"] = threading.Event()

    class Pool(ThreadPoolExecutor):
        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            super().shutdown(wait=False, cancel_futures=cancel_futures)
            gate.set()
            super().shutdown(wait)

    monkeypatch.setattr("rerank_udf.engine.ahead.ThreadPoolExecutor", Pool)
    windows = [(["a"], [passage]) for passage in ("first", "second", "third")]
    results = counted_scorer(counting, SumBackend()).stream(windows)
    next(results)
    assert begun.wait(60)
    results.close()  # type: ignore[attr-defined]
    assert counting.texts == ["a", "first", "second"]


def test_the_hash_of_a_pair_streams_too(hash_model: Path, cores: int) -> None:
    model = load_scorer(hash_model)
    windows = [(["a", "b", None], ["c", "d", "e"]), ([], []), (["a"], ["d"])]
    np.testing.assert_equal(
        joined(list(model.stream(windows))), joined([model.score_pairs(*w) for w in windows])
    )
