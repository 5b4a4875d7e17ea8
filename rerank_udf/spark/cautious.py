"""Scoring a task whose process has died before: slower, and it finds the pair that kills (see spark/notes.py)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from pyspark import TaskContext

from rerank_udf import tables
from rerank_udf.identity import text_key
from rerank_udf.spark.notes import Author, Notes
from rerank_udf.tables import Reason

if TYPE_CHECKING:
    from rerank_udf.engine import ScoredPairs, Scorer

# Pairs that are in hand at once: few, since the next attempt takes them one by one.
WINDOW_PAIRS = 256
_ALONE_FROM = 2
_GIVEN_UP_FROM = 3
_OF_ONE_TEXT = 3  # pairs that killed, alone in hand, before every pair with a text of theirs is given up
_DETAIL = (
    "the process that scored this pair died each time, last with this pair alone in hand, or with three others that "
    "have its query or its passage; look at its text"
)


@dataclass(frozen=True)
class Attempts:
    """How often a task has been tried: `before` by earlier jobs of the same wave, the rest Spark counts.

    `notes`: a folder for the wave. `died`: of earlier jobs, by their `before`, the task whose deaths ended the job.
    `s3`: how Python reaches a folder on S3, see `lake.files.s3_options`.
    """

    notes: str
    before: int
    died: Mapping[int, int] = field(default_factory=dict)
    s3: Mapping[str, str] = field(default_factory=dict, repr=False)

    def number(self) -> int:
        """Of the running attempt, from 0."""
        context = TaskContext.get()
        return self.before + (context.attemptNumber() if context is not None else 0)

    def opened(self) -> Notes:
        """The notes, as the running task writes and believes them: its own of this job, and those of who `died`."""
        context = TaskContext.get()
        own = (self.before, context.partitionId() if context is not None else 0)

        def believed(author: Author) -> bool:
            job, task = author
            return author == own if job == self.before else task == self.died.get(job, task)

        return Notes(self.notes, own, believed, self.s3)


def scored_cautiously(
    scorer: Scorer, windows: Iterable[pa.Table], attempts: Attempts
) -> Iterator[tuple[pa.ChunkedArray, ScoredPairs]]:
    """(pair keys, what became of them) for windows of a few pairs, noting what is in hand."""
    notes, number = attempts.opened(), attempts.number()
    suspects = {key for keys in notes.left() for key in keys} if number >= _ALONE_FROM else set()
    killers = notes.alone() if number >= _GIVEN_UP_FROM else {}
    times = Counter(text for texts in killers.values() for text in texts)
    deadly = {text for text, count in times.items() if count >= _OF_ONE_TEXT}
    for window in windows:
        lost = np.array(
            [key in killers or not deadly.isdisjoint(texts) for key, texts in _keys(window, deadly)],
            dtype=np.bool_,
        )
        if lost.any():
            yield window.filter(pa.array(lost)).column(tables.PAIR_KEY), _given_up(int(lost.sum()))
        for part in _parts(window.filter(pa.array(~lost)), suspects):
            held = _keys(part, part.num_rows == 1)
            texts = held[0][1] if len(held) == 1 else ()
            with notes.noted([key for key, _ in held], texts):
                scored = scorer.score_pairs(part.column(tables.QUERY), part.column(tables.PASSAGE))
            yield part.column(tables.PAIR_KEY), scored


def _keys(window: pa.Table, texts_too: object) -> list[tuple[bytes, tuple[bytes, ...]]]:
    """Each pair's key, and those of its texts where they are wanted."""
    keys = [bytes(key) for key in window.column(tables.PAIR_KEY).to_pylist()]
    if not texts_too:
        return [(key, ()) for key in keys]
    both = (window.column(name).to_pylist() for name in (tables.QUERY, tables.PASSAGE))
    return [
        (key, tuple(text_key(text) for text in texts if text is not None))
        for key, *texts in zip(keys, *both, strict=True)
    ]


def _parts(window: pa.Table, suspects: set[bytes]) -> Iterator[pa.Table]:
    """The window without its suspects, then each suspect alone."""
    if not window.num_rows:
        return
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
