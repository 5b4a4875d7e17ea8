"""Scoring a task whose process has died before: slower, and it finds the pair that kills (see spark/notes.py)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from pyspark import TaskContext

from rerank_udf import tables
from rerank_udf.spark.notes import Notes
from rerank_udf.tables import Reason

if TYPE_CHECKING:
    from rerank_udf.engine import ScoredPairs, Scorer

# Pairs that are in hand at once: few, since the next attempt takes them one by one.
WINDOW_PAIRS = 256
_ALONE_FROM = 2
_GIVEN_UP_FROM = 3
_DETAIL = (
    "the process that scored this pair died each time, last with this pair alone in hand; look at its text"
)


@dataclass(frozen=True)
class Attempts:
    """How often a task has been tried: `before` by earlier jobs of the same wave, the rest Spark counts.

    `notes`: a folder for the wave.
    """

    notes: str
    before: int

    def number(self) -> int:
        """Of the running attempt, from 0."""
        context = TaskContext.get()
        return self.before + (context.attemptNumber() if context is not None else 0)


def scored_cautiously(
    scorer: Scorer, windows: Iterable[pa.Table], attempts: Attempts
) -> Iterator[tuple[pa.ChunkedArray, ScoredPairs]]:
    """(pair keys, what became of them) for windows of a few pairs, noting what is in hand."""
    notes, number = Notes(attempts.notes), attempts.number()
    left = notes.left()
    suspects = {key for keys in left for key in keys} if number >= _ALONE_FROM else set()
    given_up = {keys[0] for keys in left if len(keys) == 1} if number >= _GIVEN_UP_FROM else set()
    for window in windows:
        for part in _parts(window, suspects):
            keys = part.column(tables.PAIR_KEY)
            held = [bytes(key) for key in keys.to_pylist()]
            if set(held) <= given_up:
                yield keys, _given_up(len(held))
                continue
            with notes.noted(held):
                scored = scorer.score_pairs(part.column(tables.QUERY), part.column(tables.PASSAGE))
            yield keys, scored


def _parts(window: pa.Table, suspects: set[bytes]) -> Iterator[pa.Table]:
    """The window without its suspects, then each suspect alone."""
    if not suspects:
        yield window
        return
    keys = window.column(tables.PAIR_KEY).to_pylist()
    is_suspect = np.array([bytes(key) in suspects for key in keys])
    if not is_suspect.all():
        yield window.filter(pa.array(~is_suspect))
    for row in np.flatnonzero(is_suspect).tolist():
        yield window.slice(row, 1)


def _given_up(count: int) -> ScoredPairs:
    from rerank_udf.engine import ScoredPairs

    return ScoredPairs(
        np.full(count, np.nan, dtype=np.float32),
        np.zeros(count, dtype=np.int32),
        np.zeros(count, dtype=np.bool_),
        dict.fromkeys(range(count), (Reason.CRASHED_WORKER, _DETAIL)),
    )
