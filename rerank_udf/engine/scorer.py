"""Pairs of texts in, logits out: tokenise → plan → run → scatter."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from rerank_udf.engine.backend import Backend, OutOfMemoryError, PackedBatch
from rerank_udf.errors import InputError, PairError
from rerank_udf.packing import RowNumbers, batch_cost, plan_batches
from rerank_udf.tables import Reason
from rerank_udf.texts import PairErrors, TextColumn, Texts, text_columns
from rerank_udf.tokens import CutPairs, PairTokenizer

_log = logging.getLogger(__name__)

Logits = npt.NDArray[np.float32]


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
    """What scores columns of texts: a tokenizer with a model, or the hash of the pair."""

    def score(self, queries: TextColumn, passages: TextColumn) -> ScoredPairs:
        """Score the pairs (queries[i], passages[i]); never raises for a bad pair."""

    def describe(self) -> dict[str, Any]:
        """Device, precision, backend, versions and what happened so far."""


class Scorer:
    """A cross-encoder that is ready to score; made by `load_scorer`."""

    def __init__(self, engine: Engine, *, model_key: str, facts: dict[str, Any]) -> None:
        self.model_key = model_key
        self._engine = engine
        self._facts = facts

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
        """As `logits`, with tokens and truncation, and an error instead of an exception for each bad pair."""
        return self._engine.score(*text_columns(queries, passages))

    def describe(self) -> dict[str, Any]:
        """Everything a report wants to know about this scorer: plain values, ready for JSON."""
        return {**self._facts, "model_key": self.model_key, **self._engine.describe()}


class ModelEngine:
    """A tokenizer and a backend."""

    def __init__(self, tokenizer: PairTokenizer, backend: Backend, max_tokens_per_batch: int | None) -> None:
        self._tokenizer = tokenizer
        self._runner = BatchRunner(backend, max_tokens_per_batch or backend.token_budget())
        self._rescue: BatchRunner | None = None
        self._rescored = 0

    def score(self, queries: TextColumn, passages: TextColumn) -> ScoredPairs:
        """See `Engine`."""
        pairs = self._tokenizer.cut(queries, passages)
        rows = np.flatnonzero(pairs.lengths)
        logits = np.full(len(pairs.lengths), np.nan, dtype=np.float32)
        errors = dict(pairs.errors)
        errors |= self._runner.run(pairs, rows, logits)
        errors |= self._rescue_not_finite(pairs, rows, logits, errors)
        logits[list(errors)] = np.nan
        return ScoredPairs(
            logits, pairs.lengths.astype(np.int32), pairs.truncated, dict(sorted(errors.items()))
        )

    def describe(self) -> dict[str, Any]:
        """See `Engine`."""
        backend = self._runner.backend
        return {
            "backend": backend.name,
            "device": backend.device,
            "device_name": backend.device_name,
            "precision": backend.precision,
            "max_tokens_per_batch": self._runner.max_tokens,
            "out_of_memory_halvings": self._runner.halvings,
            "rescored_in_float32": self._rescored,
            "versions": backend.versions(),
        }

    def _rescue_not_finite(
        self, pairs: CutPairs, rows: RowNumbers, logits: Logits, errors: PairErrors
    ) -> PairErrors:
        """Score once more in float32 what overflowed in 16 bits; what still does is an error."""
        lost = np.array(
            [row for row in rows[~np.isfinite(logits[rows])] if row not in errors], dtype=np.int64
        )
        found: PairErrors = {}
        if len(lost) and self._runner.backend.precision != "float32":
            if self._rescue is None:
                self._rescue = BatchRunner(self._runner.backend.in_float32(), self._runner.max_tokens)
            _log.warning("%d logits are not finite in %s: scoring them in float32", len(lost), self.precision)
            self._rescored += len(lost)
            found |= self._rescue.run(pairs, lost, logits)
        for row in lost[~np.isfinite(logits[lost])].tolist():
            found.setdefault(row, (Reason.NOT_FINITE, f"the model's output is {logits[row]} in float32"))
        return found

    @property
    def precision(self) -> str:
        """The precision of the first attempt."""
        return self._runner.backend.precision


class BatchRunner:
    """Runs planned batches; out of memory halves the token budget for good and says so."""

    def __init__(self, backend: Backend, max_tokens: int) -> None:
        self.backend = backend
        self.max_tokens = max_tokens
        self.halvings = 0

    def run(self, pairs: CutPairs, rows: RowNumbers, logits: Logits) -> PairErrors:
        """Write the logits of the pairs numbered `rows`; returns those that do not fit even alone."""
        errors: PairErrors = {}
        batches = self._plan(pairs, rows)
        while batches:
            batch = batches.pop()
            try:
                logits[batch] = self.backend.forward(PackedBatch(*pairs.assemble(batch)))
            except OutOfMemoryError as error:
                if len(batch) == 1:
                    tokens = int(pairs.lengths[batch[0]])
                    detail = f"{tokens} tokens do not fit into the memory of {self.backend.device}: {error}"
                    errors[int(batch[0])] = (Reason.OUT_OF_MEMORY, detail)
                else:
                    self._halve(batch_cost(pairs.lengths[batch], padded=self.backend.padded))
                    batches = self._plan(pairs, np.concatenate([batch, *batches]))
        return errors

    def _plan(self, pairs: CutPairs, rows: RowNumbers) -> list[RowNumbers]:
        """Batches in reverse, so that the longest, which need the most memory, are popped first."""
        planned = plan_batches(pairs.lengths[rows], self.max_tokens, padded=self.backend.padded)
        return [rows[batch] for batch in reversed(planned)]

    def _halve(self, tokens_tried: int) -> None:
        self.max_tokens = max(1, min(self.max_tokens, tokens_tried) // 2)
        self.halvings += 1
        device = self.backend.device
        _log.warning("out of memory on %s: batches now have at most %d tokens", device, self.max_tokens)


def sigmoid(logits: Logits) -> npt.NDArray[np.float64]:
    """1 / (1 + exp(−logit)) in float64, without overflow: float64 (n,)."""
    tail = np.exp(-np.abs(logits.astype(np.float64)))
    scores: npt.NDArray[np.float64] = np.where(logits >= 0, 1.0, tail) / (1.0 + tail)
    return scores
