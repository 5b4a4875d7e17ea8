"""Score pairs on the executors: one `mapInArrow`, one model per Python worker.

The functions that Spark ships are closures over a ScorerSpec and nothing else; the model itself lives in this
module's memory of each worker process and is loaded on the first row, never on the driver.
"""

from __future__ import annotations

import gc
import os
import socket
import sys
import uuid
import zipimport
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from rerank_udf import tables
from rerank_udf.packing import WINDOW_PAIRS
from rerank_udf.spark import cautious
from rerank_udf.spark.cautious import Attempts, scored_cautiously
from rerank_udf.spark.placement import placed

if TYPE_CHECKING:
    from rerank_udf.engine import ScoredPairs, Scorer
    from rerank_udf.models import ModelFiles

WINDOW_BYTES = 64 << 20

SCORED_SCHEMA = T.StructType(
    [
        T.StructField(tables.PAIR_KEY, T.BinaryType()),
        T.StructField(tables.LOGIT, T.FloatType()),
        T.StructField(tables.TOKENS, T.IntegerType()),
        T.StructField(tables.TRUNCATED, T.BooleanType()),
        T.StructField(tables.REASON, T.StringType()),
        T.StructField(tables.DETAIL, T.StringType()),
        T.StructField(tables.SCORER, T.StringType()),
    ]
)
_SCORED_ARROW = pa.schema(
    [
        (tables.PAIR_KEY, pa.binary()),
        (tables.LOGIT, pa.float32()),
        (tables.TOKENS, pa.int32()),
        (tables.TRUNCATED, pa.bool_()),
        (tables.REASON, pa.string()),
        (tables.DETAIL, pa.string()),
        (tables.SCORER, pa.string()),
    ]
)


class Loadable(Protocol):
    """What is shipped to executors: small, picklable, comparable; `load` makes the scorer there."""

    def load(self) -> Scorer:
        """Load the model in this process."""
        ...


@dataclass(frozen=True)
class LoadedOnExecutor:
    """A scorer whose device and `auto` precision, or whose very path, only the executors know."""

    model: str | ModelFiles
    settings: dict[str, Any]

    def load(self) -> Scorer:
        """Resolve and load on this node; raises what `load_scorer` raises."""
        from rerank_udf.engine import load_scorer

        return load_scorer(self.model, **self.settings)


@dataclass(frozen=True)
class _Loaded:
    plan: Loadable
    scorer: Scorer
    label: str


_loaded: _Loaded | None = None


def process_scorer(plan: Loadable) -> tuple[Scorer, str]:
    """This process's scorer and its label `host/pid/device/load`; loaded once, kept until another plan comes.

    On a device that is leased to this process alone. The label's last part is new at every load, so that the number of
    distinct labels is the number of loads.
    """
    global _loaded
    if _loaded is None or _loaded.plan != plan:
        _loaded = None  # frees the old model before the new one takes its memory
        gc.unfreeze()
        here, leased = placed(plan)
        scorer = here.load()
        device = str(leased or scorer.describe()["device"]).replace("/", "-")
        label = f"{socket.gethostname()}/{os.getpid()}/{device}/{uuid.uuid4().hex[:8]}"
        _loaded = _Loaded(plan, scorer, label)
        gc.freeze()  # Spark collects garbage after every task: not through the model and its libraries
    return _loaded.scorer, _loaded.label


def _keep_zip_directories() -> None:
    """Let the next task find the zips on the path as they were read for this one.

    Before every task Spark calls importlib.invalidate_caches, which reads the directory of each zip again that has an
    importer: a tenth of a core-second for pyspark.zip alone. A new importer finds the directory in zipimport's cache.
    """
    for place, importer in list(sys.path_importer_cache.items()):
        if isinstance(importer, zipimport.zipimporter):
            del sys.path_importer_cache[place]


def score_in_arrow(
    plan: Loadable, pairs_done: Any = None, tokens_done: Any = None, attempts: Attempts | None = None
) -> Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """The function for `mapInArrow`: (pair_key, query, passage) batches in, SCORED_SCHEMA batches out.

    One `Scorer.stream` a task: the input is read on this thread, as Spark wants it, while the scorer prepares and
    computes. `pairs_done`, `tokens_done`: Spark accumulators to add to, where a driver watches. With `attempts` a
    task that is tried again looks for the pair that killed its process.
    """

    def score(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        again = attempts is not None and attempts.number() > 0
        gathered = windows(batches, cautious.WINDOW_PAIRS if again else None)
        first = next(gathered, None)
        if first is None:
            return
        scorer, label = process_scorer(plan)
        all_windows = chain([first], gathered)
        if again:
            assert attempts is not None
            results = scored_cautiously(scorer, all_windows, attempts)
        else:
            results = _streamed(scorer, all_windows)
        for keys, pairs in results:
            if pairs_done is not None:
                pairs_done.add(len(pairs.logits))
                tokens_done.add(int(pairs.tokens.sum()))
            yield from _scored_batches(keys, pairs, label)
        _keep_zip_directories()

    return score


def _streamed(scorer: Scorer, gathered: Iterable[pa.Table]) -> Iterator[tuple[pa.ChunkedArray, ScoredPairs]]:
    """(pair keys, what became of them), window by window."""
    keys: deque[pa.ChunkedArray] = deque()
    for pairs in scorer.stream(_texts(gathered, keys)):
        yield keys.popleft(), pairs


def _texts(
    gathered: Iterable[pa.Table], keys: deque[pa.ChunkedArray]
) -> Iterator[tuple[pa.ChunkedArray, pa.ChunkedArray]]:
    """The texts of each window; its pair keys wait in `keys`, since scores come back in the windows' order."""
    for window in gathered:
        keys.append(window.column(tables.PAIR_KEY))
        yield window.column(tables.QUERY), window.column(tables.PASSAGE)


def windows(batches: Iterable[pa.RecordBatch], pairs: int | None = None) -> Iterator[pa.Table]:
    """Consecutive batches gathered to at least WINDOW_PAIRS rows or WINDOW_BYTES; empty ones vanish.

    `pairs`: fewer than that, for a window; then batches, which have as many rows as Spark gives them, are cut.
    """
    held: list[pa.RecordBatch] = []
    rows = size = 0
    wanted = WINDOW_PAIRS if pairs is None else pairs
    for batch in _cut(batches, pairs):
        held.append(batch)
        rows += batch.num_rows
        size += batch.nbytes
        if rows >= wanted or size >= WINDOW_BYTES:
            yield pa.Table.from_batches(held)
            held, rows, size = [], 0, 0
    if held:
        yield pa.Table.from_batches(held)


def _cut(batches: Iterable[pa.RecordBatch], most: int | None) -> Iterator[pa.RecordBatch]:
    """Batches of at least one row, and of at most `most`."""
    for batch in batches:
        step = most or max(1, batch.num_rows)
        for start in range(0, batch.num_rows, step):
            yield batch.slice(start, step)


def _scored_batches(pair_keys: pa.ChunkedArray, pairs: ScoredPairs, label: str) -> Iterator[pa.RecordBatch]:
    count = len(pairs.logits)
    failed = np.zeros(count, dtype=np.bool_)
    failed[list(pairs.errors)] = True
    reasons, details = _failures(pairs, failed)
    table = pa.Table.from_arrays(
        [
            pair_keys.cast(pa.binary()),
            pa.array(pairs.logits, mask=failed),
            pa.array(pairs.tokens, type=pa.int32()),
            pa.array(pairs.truncated, type=pa.bool_()),
            reasons,
            details,
            pa.repeat(label, count),
        ],
        schema=_SCORED_ARROW,
    )
    yield from table.to_batches()


def _failures(pairs: ScoredPairs, failed: npt.NDArray[np.bool_]) -> tuple[pa.Array, pa.Array]:
    """Reason and detail of each pair, null where it did not fail: two string arrays (n,)."""
    if not pairs.errors:
        return pa.nulls(len(failed), pa.string()), pa.nulls(len(failed), pa.string())
    numbers = np.zeros(len(failed), dtype=np.int32)
    numbers[list(pairs.errors)] = np.arange(len(pairs.errors), dtype=np.int32)
    places = pa.array(numbers, mask=~failed)
    reasons, details = zip(*pairs.errors.values(), strict=True)
    return pa.array(reasons, pa.string()).take(places), pa.array(details, pa.string()).take(places)


def co_partitioned(
    pairs: DataFrame, passages: DataFrame, partitions: int, place: str = tables.PASSAGE_KEY
) -> DataFrame:
    """(pair_key, query, passage) in `partitions` partitions, each passage's pairs together.

    `pairs`: pair_key, place, query; `passages`: place, passage, each place once; `place` is the name of the column that
    says which passage a pair has. Both sides are laid out by the same key and number, so the join adds no exchange.
    """
    left = pairs.select(tables.PAIR_KEY, place, tables.QUERY).repartition(partitions, place)
    right = passages.select(place, tables.PASSAGE).repartition(partitions, place)
    # Renamed above its exchange: over two bare exchanges Spark re-plans a join with spark.sql.shuffle.partitions where
    # the stated number is below that.
    right = right.withColumnRenamed(place, "_place")
    joined = left.join(right.hint("merge"), F.col(place) == F.col("_place"))
    return joined.select(tables.PAIR_KEY, tables.QUERY, tables.PASSAGE)


def scored(
    pairs: DataFrame,
    plan: Loadable,
    pairs_done: Any = None,
    tokens_done: Any = None,
    attempts: Attempts | None = None,
    profile: Any = None,
) -> DataFrame:
    """`pairs` (pair_key, query, passage) through the model: SCORED_SCHEMA, in any order.

    Evaluated anew by every action on it: write it or persist it before using it twice. `profile`: the ResourceProfile
    of the stage, where the cluster takes one.
    """
    function = score_in_arrow(plan, pairs_done, tokens_done, attempts)
    if profile is None:
        return pairs.mapInArrow(function, SCORED_SCHEMA)
    return pairs.mapInArrow(function, SCORED_SCHEMA, profile=profile)
