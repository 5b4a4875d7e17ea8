"""Pairs of texts in, logits out: tokenise → plan → run → scatter."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Protocol, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from rerank_udf.encoding import TextCache, tokenizer_threads
from rerank_udf.engine.ahead import Ahead, Part
from rerank_udf.engine.backend import Backend
from rerank_udf.engine.runner import BatchRunner, Logits, PreparedPairs, StartedPairs
from rerank_udf.errors import InputError, ModelError, PairError
from rerank_udf.machine import task_threads
from rerank_udf.packing import FIRST_PAIRS, WINDOW_PAIRS, part_edges, part_sizes
from rerank_udf.tables import Reason
from rerank_udf.texts import PairErrors, TextColumn, Texts, text_columns
from rerank_udf.tokens import CutPairs, PairTokenizer

_log = logging.getLogger(__name__)

PreparedT = TypeVar("PreparedT")
WindowT = TypeVar("WindowT")
Prepare: TypeAlias = Callable[[TextColumn, TextColumn], PreparedT]
ColumnsOf: TypeAlias = Callable[[WindowT], tuple[TextColumn, TextColumn]]


@dataclass(frozen=True)
class Ranked:
    """One passage of a ranking: its place in the list that was given, its score (0 to 1) and its logit."""

    index: int
    score: float
    logit: float


@dataclass(frozen=True)
class ScoredPairs:
    """What became of n pairs.

    `logits`: float32 (n,), NaN where a pair failed; `tokens`: int32 (n,), tokens that the model read;
    `truncated`: bool (n,); `errors`: position → (reason, detail) of the pairs that failed.
    """

    logits: Logits
    tokens: npt.NDArray[np.int32]
    truncated: npt.NDArray[np.bool_]
    errors: PairErrors


class Engine(Protocol):
    """What scores columns of texts: a tokenizer with a model, or the hash of the pair.

    Three steps, so that one window can be prepared while another is on the device; what one gives is for the next
    and nobody else. A bad pair is an error in the result; no step raises for it.
    """

    @property
    def backend(self) -> Backend | None:
        """The model on its device; None where a score needs none."""

    @property
    def overlaps(self) -> bool:
        """Whether preparing a window on a thread beside the device gains time."""

    @property
    def queues(self) -> bool:
        """Whether `start` returns before the device is done, and `finish` waits for what it is given alone."""

    def preparation(self) -> Prepare[Any]:
        """A function for the windows of one stream: everything before the device, on any one thread.

        It remembers the texts that it has seen, and may be dropped with them when the stream ends.
        """

    def start(self, prepared: Any) -> Any:
        """Put a window on the device; a device with a queue of its own is not waited for."""

    def finish(self, started: Any) -> ScoredPairs:
        """Wait for a window that was started."""

    def describe(self) -> dict[str, Any]:
        """Device, precision, backend, versions and what happened so far."""


class Scorer:
    """A cross-encoder that is ready to score; made by `load_scorer`."""

    def __init__(self, engine: Engine, *, model_key: str, facts: dict[str, Any]) -> None:
        self.model_key = model_key
        self._engine = engine
        self._facts = facts

    @property
    def backend(self) -> Backend | None:
        """The model on its device; None for the scorer that hashes."""
        return self._engine.backend

    def logits(self, queries: Texts, passages: Texts) -> Logits:
        """The model's output for each pair (queries[i], passages[i]): float32 (n,).

        Raises PairError for the first pair that cannot be scored, InputError for unequal lengths.
        """
        scored = self.score_pairs(queries, passages)
        if scored.errors:
            first = min(scored.errors)
            raise PairError(first, *scored.errors[first])
        return scored.logits

    def rank(self, query: str, passages: Texts, top_k: int | None = None) -> list[Ranked]:
        """The passages in the model's order, best first, at most `top_k` of them.

        Equal logits keep the order of `passages`. Raises as `logits` does.
        """
        if top_k is not None and top_k < 0:
            raise InputError(f"top_k is {top_k}; it must be 0 or more, or None for all")
        if not isinstance(query, str):
            raise InputError(f"the query is of type {type(query).__name__}; expected str")
        logits = self.logits([query] * len(passages), passages)
        order = np.argsort(-logits, kind="stable")[:top_k]
        scores = sigmoid(logits)
        return [Ranked(int(i), float(scores[i]), float(logits[i])) for i in order]

    def score_pairs(self, queries: Texts, passages: Texts) -> ScoredPairs:
        """As `logits`, with tokens and truncation, and an error instead of an exception for each bad pair.

        Many pairs are scored in windows, as by `stream`.
        """
        columns = text_columns(queries, passages)
        count = len(columns[0].codes)
        at_once = FIRST_PAIRS if self._engine.queues else WINDOW_PAIRS
        if count <= at_once or not self._engine.overlaps:
            prepare = self._engine.preparation()
            return self._engine.finish(self._engine.start(prepare(*columns)))

        def window_from(start: int) -> tuple[TextColumn, TextColumn]:
            queries, passages = (column.rows(start, start + WINDOW_PAIRS) for column in columns)
            return queries, passages

        return _joined(list(self._overlapped(iter(range(0, count, WINDOW_PAIRS)), window_from)))

    def stream(self, pairs: Iterable[tuple[Texts, Texts]]) -> Iterator[ScoredPairs]:
        """As `score_pairs` for each (queries, passages) of an iterable, in order.

        For windows of a few thousand pairs: a text is tokenised once for all windows, and what comes next is tokenised
        on a second thread while something is on the device. `pairs` is read on the caller's thread, up to two elements
        ahead of the results. What reading or preparing an element raises is raised in that element's place.
        """
        if self._engine.overlaps:
            yield from self._overlapped(iter(pairs), lambda window: text_columns(*window))
        else:
            prepare = self._engine.preparation()
            for window in pairs:
                yield self._engine.finish(self._engine.start(prepare(*text_columns(*window))))

    def _overlapped(
        self, windows: Iterator[WindowT], columns_of: ColumnsOf[WindowT]
    ) -> Iterator[ScoredPairs]:
        """One part of a window on the device, the next ones being prepared.

        A device with a queue is given a part before the one before it is waited for, and so has no gap between two.
        An error waits for its turn like a part: what was started before it is finished first.
        """
        most_waiting = 1 if self._engine.queues else 0
        on_device: deque[Part] = deque()
        scored: list[ScoredPairs] = []
        ahead = Ahead(windows, self._parts_of(columns_of))
        try:
            for part in self._started(ahead):
                on_device.append(part)
                if len(on_device) > most_waiting:
                    yield from self._finished(on_device.popleft(), scored)
            while on_device:
                yield from self._finished(on_device.popleft(), scored)
        finally:
            ahead.close()

    def _parts_of(self, columns_of: ColumnsOf[WindowT]) -> Callable[[WindowT], Iterator[Part]]:
        """Prepares the windows of one stream: each whole, or for a device with a queue in parts that grow.

        A window's texts become columns as a whole in either case: errors name a place in the window.
        """
        prepare = self._engine.preparation()
        sizes = part_sizes() if self._engine.queues else None

        def parts(window: WindowT) -> Iterator[Part]:
            columns = columns_of(window)
            pairs = len(columns[0].codes)
            edges = [0, pairs] if sizes is None else part_edges(pairs, sizes)
            count = len(edges) - 1
            for number, (start, stop) in enumerate(pairwise(edges)):
                texts = columns if count == 1 else [column.rows(start, stop) for column in columns]
                yield Part(prepare(*texts), number, count)

        return parts

    def _started(self, ahead: Ahead[Any]) -> Iterator[Part]:
        """Start each part; an error is the last.

        A window is read when something was started, so that a device with a queue never waits for the reader, and
        early enough for the preparing thread to have work meanwhile. A device without a queue computes in `start`: one
        more window is prepared before that, and so beside it.
        """
        for _ in range(1 if self._engine.queues else 2):
            ahead.read()
        for part in ahead.parts():
            started = self._start(part)
            if started.error is None and part.is_last_but_one:
                ahead.read()
            yield started
            if started.error is not None:
                return

    def _start(self, part: Part) -> Part:
        if part.error is not None:
            return part
        try:
            return replace(part, content=self._engine.start(part.content))
        except Exception as error:
            return Part(None, error=error)

    def _finished(self, part: Part, scored: list[ScoredPairs]) -> Iterator[ScoredPairs]:
        """Wait for a part, and collect it in `scored`; its window's result where it is the last of it."""
        if part.error is not None:
            raise part.error
        scored.append(self._engine.finish(part.content))
        if part.is_last:
            window = _joined(scored)
            scored.clear()
            yield window

    def describe(self) -> dict[str, Any]:
        """Everything a report wants to know about this scorer: plain values, ready for JSON."""
        return {**self._facts, "model_key": self.model_key, **self._engine.describe()}


def _joined(parts: Sequence[ScoredPairs]) -> ScoredPairs:
    """One after the other."""
    if len(parts) == 1:
        return parts[0]
    starts = np.cumsum([0, *(len(part.logits) for part in parts)])
    return ScoredPairs(
        np.concatenate([part.logits for part in parts]),
        np.concatenate([part.tokens for part in parts]),
        np.concatenate([part.truncated for part in parts]),
        {
            int(start) + row: error
            for start, part in zip(starts, parts, strict=False)
            for row, error in part.errors.items()
        },
    )


class ModelEngine:
    """A tokenizer and a backend."""

    def __init__(self, tokenizer: PairTokenizer, backend: Backend, max_tokens_per_batch: int | None) -> None:
        self._tokenizer = tokenizer
        self._runner = BatchRunner(backend, max_tokens_per_batch or backend.token_budget())
        self._rescue: BatchRunner | None = None
        self._rescored = 0

    @property
    def backend(self) -> Backend:
        """See `Engine`."""
        return self._runner.backend

    @property
    def overlaps(self) -> bool:
        """See `Engine`. On a single core a second thread could only take turns with the model."""
        return self.queues or task_threads() > 1

    @property
    def queues(self) -> bool:
        """See `Engine`."""
        return self.backend.device != "cpu"

    def preparation(self) -> Prepare[PreparedPairs]:
        """See `Engine`."""
        cache = TextCache()

        def prepare(queries: TextColumn, passages: TextColumn) -> PreparedPairs:
            pairs = self._tokenizer.cut(queries, passages, cache)
            return self._runner.prepare(pairs, np.flatnonzero(pairs.lengths))

        return prepare

    def start(self, prepared: PreparedPairs) -> StartedPairs:
        """See `Engine`."""
        logits = np.full(len(prepared.pairs.lengths), np.nan, dtype=np.float32)
        return self._runner.start(prepared, logits)

    def finish(self, started: StartedPairs) -> ScoredPairs:
        """See `Engine`."""
        pairs, logits = started.pairs, started.logits
        errors = pairs.errors | self._runner.finish(started)
        errors |= self._rescue_not_finite(pairs, logits, errors)
        logits[list(errors)] = np.nan
        tokens = pairs.lengths.astype(np.int32)
        return ScoredPairs(logits, tokens, pairs.truncated, dict(sorted(errors.items())))

    def describe(self) -> dict[str, Any]:
        """See `Engine`."""
        backend = self.backend
        return backend.describe() | {
            "backend": backend.name,
            "device": backend.device,
            "device_name": backend.device_name,
            "precision": backend.precision,
            "max_tokens_per_batch": self._runner.max_tokens,
            "out_of_memory_halvings": self._runner.halvings,
            "rescored_in_float32": self._rescored,
            "tokenizer_threads": tokenizer_threads(),
            "texts_tokenised": self._tokenizer.encoder.texts_tokenised,
            "text_cache_hits": self._tokenizer.encoder.cache_hits,
            "versions": backend.versions(),
        }

    def _rescue_not_finite(self, pairs: CutPairs, logits: Logits, errors: PairErrors) -> PairErrors:
        """Score once more in float32 what overflowed in 16 bits; what still does is an error."""
        lost = np.setdiff1d(np.flatnonzero(~np.isfinite(logits)), list(errors))
        found: PairErrors = {}
        tried = self.precision
        if len(lost) and tried != "float32" and (rescue := self._float32_runner()) is not None:
            _log.warning("%d logits are not finite in %s: scoring them in float32", len(lost), tried)
            self._rescored += len(lost)
            tried = "float32"
            found |= rescue.run(pairs, lost, logits)
        for row in lost[~np.isfinite(logits[lost])].tolist():
            found.setdefault(row, (Reason.NOT_FINITE, f"the model's output is {logits[row]} in {tried}"))
        return found

    def _float32_runner(self) -> BatchRunner | None:
        """The model in float32, loaded when it is first needed; None where the device has no room for it too."""
        if self._rescue is None:
            try:
                self._rescue = BatchRunner(self.backend.in_float32(), self._runner.max_tokens)
            except ModelError as error:
                _log.warning("no second look in float32 at logits that are not finite: %s", error)
        return self._rescue

    @property
    def precision(self) -> str:
        """The precision of the first attempt."""
        return self.backend.precision


def sigmoid(logits: Logits) -> npt.NDArray[np.float64]:
    """1 / (1 + exp(−logit)) in float64, without overflow: float64 (n,)."""
    tail = np.exp(-np.abs(logits.astype(np.float64)))
    scores: npt.NDArray[np.float64] = np.where(logits >= 0, 1.0, tail) / (1.0 + tail)
    return scores
