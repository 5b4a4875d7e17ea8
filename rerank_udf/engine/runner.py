"""Plan → start → finish: batches through a backend, with what to do when its memory is full."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rerank_udf.engine.backend import Backend, OutOfMemoryError, PackedBatch
from rerank_udf.packing import RowNumbers, batch_cost, plan_batches
from rerank_udf.tables import Reason
from rerank_udf.texts import PairErrors
from rerank_udf.tokens import CutPairs

_log = logging.getLogger(__name__)

Logits = npt.NDArray[np.float32]

# What a call may hold of its batches at once, put together ahead or on the device: 64 MB of ids and what a backend
# adds. A window has fewer tokens; of a very large call the rest follows batch by batch.
_MOST_TOKENS = 16 << 20


@dataclass(frozen=True)
class PlannedBatch:
    """The numbers of a batch's pairs, and, where there is one already, the batch."""

    rows: RowNumbers
    packed: PackedBatch | None = None


@dataclass(frozen=True)
class PreparedPairs:
    """n pairs, tokenised and planned: the batches in reverse, for the budget `max_tokens`."""

    pairs: CutPairs
    batches: list[PlannedBatch]
    max_tokens: int


@dataclass(frozen=True)
class StartedBatch:
    """The numbers of a batch's pairs, and what the backend gave for it."""

    rows: RowNumbers
    handle: object


@dataclass(frozen=True)
class StartedPairs:
    """n pairs on their way: `logits`, float32 (n,), of the batches that were fetched; the `batches` that are still on
    the device; the numbers of pairs for which there was no memory `beside_others`, though each was a batch by itself;
    and in `errors` the pairs that did not fit alone either."""

    pairs: CutPairs
    logits: Logits
    batches: list[StartedBatch]
    beside_others: list[int]
    errors: PairErrors


class BatchRunner:
    """Plans and runs batches; out of memory halves the token budget for good and says so."""

    def __init__(self, backend: Backend, max_tokens: int) -> None:
        self.backend = backend
        self.max_tokens = max_tokens
        self.halvings = 0

    def run(self, pairs: CutPairs, rows: RowNumbers, logits: Logits) -> PairErrors:
        """Write the logits of the pairs numbered `rows`; returns those that do not fit even alone."""
        return self.finish(self.start(self.prepare(pairs, rows), logits))

    def prepare(self, pairs: CutPairs, rows: RowNumbers) -> PreparedPairs:
        """Plan the pairs numbered `rows`, and put the first batches together."""
        budget = self.max_tokens
        planned = self._plan(pairs, rows, budget)
        tokens_ahead = 0
        for place in reversed(range(len(planned))):
            tokens_ahead += int(pairs.lengths[planned[place].rows].sum())
            if tokens_ahead > _MOST_TOKENS:
                break
            packed = PackedBatch(*pairs.assemble(planned[place].rows))
            planned[place] = PlannedBatch(planned[place].rows, packed)
        return PreparedPairs(pairs, planned, budget)

    def start(self, prepared: PreparedPairs, logits: Logits) -> StartedPairs:
        """Start every batch; the plan is made anew where the budget has been halved since.

        `logits`: float32 (n,), where the result of each pair is written by the end of `finish`.
        """
        planned = prepared.batches
        if planned and self.max_tokens != prepared.max_tokens:
            rows = np.concatenate([batch.rows for batch in planned])
            planned = self._plan(prepared.pairs, rows, self.max_tokens)
        started = StartedPairs(prepared.pairs, logits, [], [], {})
        self._start(started, planned)
        return started

    def finish(self, started: StartedPairs) -> PairErrors:
        """Fetch what is on the device; returns the pairs that do not fit even alone.

        All batches are fetched at once. Where there is no memory for that, one after the other: then those that fail
        are known, and are started again together, in smaller ones. Pairs that failed as batches of their own are tried
        last, one by one with nothing of this call beside them: what failed may have been another's, or the whole queue.
        """
        while started.batches:
            try:
                self._fetch(started, started.batches)
                started.batches.clear()
            except OutOfMemoryError:
                lost = self._fetch_singly(started)
                started.batches.clear()
                self._start(started, self._smaller(started, lost, []))
        while started.beside_others:
            self._run_alone(started, started.beside_others.pop())
        return started.errors

    def _start(self, started: StartedPairs, planned: Sequence[PlannedBatch]) -> None:
        left = list(planned)
        tokens = 0
        while left:
            batch = left.pop()
            try:
                packed = batch.packed or PackedBatch(*started.pairs.assemble(batch.rows))
                started.batches.append(StartedBatch(batch.rows, self.backend.start(packed)))
            except OutOfMemoryError:
                left = self._smaller(started, [batch.rows], left)
            else:
                tokens += len(packed.token_ids)
                if tokens > _MOST_TOKENS:
                    self.finish(started)
                    tokens = 0

    def _fetch(self, started: StartedPairs, batches: Sequence[StartedBatch]) -> None:
        values = self.backend.finish([batch.handle for batch in batches])
        started.logits[np.concatenate([batch.rows for batch in batches])] = values

    def _fetch_singly(self, started: StartedPairs) -> list[RowNumbers]:
        """Fetch batch by batch; returns those for which there is no memory."""
        lost = []
        for batch in started.batches:
            try:
                self._fetch(started, [batch])
            except OutOfMemoryError:
                lost.append(batch.rows)
        return lost

    def _run_alone(self, started: StartedPairs, row: int) -> None:
        """Score one pair, or write down as its error that it does not fit, in the device's own words."""
        rows = np.array([row])
        try:
            handle = self.backend.start(PackedBatch(*started.pairs.assemble(rows)))
            self._fetch(started, [StartedBatch(rows, handle)])
        except OutOfMemoryError as error:
            tokens = started.pairs.lengths[row]
            detail = f"{tokens} tokens do not fit into the memory of {self.backend.device}: {error}"
            started.errors[row] = (Reason.OUT_OF_MEMORY, detail)

    def _smaller(
        self, started: StartedPairs, lost: Sequence[RowNumbers], left: list[PlannedBatch]
    ) -> list[PlannedBatch]:
        """What to start where the batches `lost` did not fit: they and all that is left, planned anew under half the
        budget. It is halved once, however many were lost: all of them were tried under the same one. A single pair
        that did not fit waits until it can be alone.
        """
        started.beside_others.extend(int(rows[0]) for rows in lost if len(rows) == 1)
        several = [rows for rows in lost if len(rows) > 1]
        if not several:
            return left
        lengths = started.pairs.lengths
        self._halve(max(batch_cost(lengths[rows], self.backend.layout) for rows in several))
        again = np.concatenate([*several, *(batch.rows for batch in left)])
        return self._plan(started.pairs, again, self.max_tokens)

    def _plan(self, pairs: CutPairs, rows: RowNumbers, max_tokens: int) -> list[PlannedBatch]:
        """Batches in reverse, so that the longest, which need the most memory, are popped first."""
        planned = plan_batches(pairs.lengths[rows], max_tokens, self.backend.layout)
        return [PlannedBatch(rows[batch]) for batch in reversed(planned)]

    def _halve(self, tokens_tried: int) -> None:
        """Halve the budget, unless it has been lowered since it allowed a batch of so many tokens."""
        if tokens_tried > self.max_tokens:
            return
        self.max_tokens = max(1, tokens_tried // 2)
        self.halvings += 1
        device = self.backend.device
        _log.warning("out of memory on %s: batches now have at most %d tokens", device, self.max_tokens)
