"""Score pairs on the executors: one `mapInArrow`, one model per Python worker.

The functions that Spark ships are closures over a ScorerSpec and nothing else; the model itself lives in this
module's memory of each worker process and is loaded on the first row, never on the driver.
"""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from rerank_udf import tables

if TYPE_CHECKING:
    from rerank_udf.engine import ScoredPairs, Scorer
    from rerank_udf.models import ModelFiles

# Pairs are scored a window at a time: wide enough that sorting by length leaves little padding.
WINDOW_PAIRS = 4096
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

    The label's last part is new at every load, so that the number of distinct labels is the number of loads.
    """
    global _loaded
    if _loaded is None or _loaded.plan != plan:
        _loaded = None  # frees the old model before the new one takes its memory
        scorer = plan.load()
        device = str(scorer.describe()["device"]).replace("/", "-")
        label = f"{socket.gethostname()}/{os.getpid()}/{device}/{uuid.uuid4().hex[:8]}"
        _loaded = _Loaded(plan, scorer, label)
    return _loaded.scorer, _loaded.label


def score_in_arrow(
    plan: Loadable, pairs_done: Any = None, tokens_done: Any = None
) -> Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """The function for `mapInArrow`: (pair_key, query, passage) batches in, SCORED_SCHEMA batches out.

    `pairs_done`, `tokens_done`: Spark accumulators to add to, where a driver watches.
    """

    def score(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for window in windows(batches):
            scorer, label = process_scorer(plan)
            pairs = scorer.score_pairs(window.column(tables.QUERY), window.column(tables.PASSAGE))
            if pairs_done is not None:
                pairs_done.add(len(pairs.logits))
                tokens_done.add(int(pairs.tokens.sum()))
            yield from _scored_batches(window.column(tables.PAIR_KEY), pairs, label)

    return score


def windows(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Consecutive batches gathered to at least WINDOW_PAIRS rows or WINDOW_BYTES; empty ones vanish."""
    held: list[pa.RecordBatch] = []
    rows = size = 0
    for batch in batches:
        if batch.num_rows == 0:
            continue
        held.append(batch)
        rows += batch.num_rows
        size += batch.nbytes
        if rows >= WINDOW_PAIRS or size >= WINDOW_BYTES:
            yield pa.Table.from_batches(held)
            held, rows, size = [], 0, 0
    if held:
        yield pa.Table.from_batches(held)


def _scored_batches(pair_keys: pa.ChunkedArray, pairs: ScoredPairs, label: str) -> Iterator[pa.RecordBatch]:
    count = len(pairs.logits)
    reasons: list[str | None] = [None] * count
    details: list[str | None] = [None] * count
    for index, (reason, detail) in pairs.errors.items():
        reasons[index], details[index] = reason, detail
    failed = pa.array([reason is not None for reason in reasons])
    table = pa.Table.from_arrays(
        [
            pair_keys.cast(pa.binary()),
            pa.array(pairs.logits, mask=failed.to_numpy(zero_copy_only=False)),
            pa.array(pairs.tokens, type=pa.int32()),
            pa.array(pairs.truncated, type=pa.bool_()),
            pa.array(reasons, type=pa.string()),
            pa.array(details, type=pa.string()),
            pa.array([label] * count, type=pa.string()),
        ],
        schema=_SCORED_ARROW,
    )
    yield from table.to_batches()


def co_partitioned(
    pairs: DataFrame, passages: DataFrame, partitions: int, max_pairs_per_passage: int | None = None
) -> DataFrame:
    """(pair_key, query, passage) in `partitions` partitions, each passage's pairs together.

    `pairs`: pair_key, query_key, passage_key, query; `passages`: passage_key, passage, each key once. Both sides are
    laid out by the same keys and number, so the join adds no exchange. With `max_pairs_per_passage` a passage with
    more pairs is split over several tasks (its pairs are counted first, so `pairs` is read twice).
    """
    salt, copies = F.lit(0), F.array(F.lit(0))
    if max_pairs_per_passage is not None:
        counts = pairs.groupBy(F.col(tables.PASSAGE_KEY).alias("_hot_key")).count()
        parts = F.ceil(F.col("count") / max_pairs_per_passage).cast("int")
        hot = F.broadcast(
            counts.where(F.col("count") > max_pairs_per_passage).select("_hot_key", parts.alias("_parts"))
        )
        pairs = pairs.join(hot, F.col(tables.PASSAGE_KEY) == F.col("_hot_key"), "left")
        passages = passages.join(hot, F.col(tables.PASSAGE_KEY) == F.col("_hot_key"), "left")
        split = F.coalesce(F.col("_parts"), F.lit(1))
        salt = F.pmod(F.hash(tables.QUERY_KEY), split)
        copies = F.sequence(F.lit(0), split - 1)
    left = pairs.select(tables.PAIR_KEY, tables.PASSAGE_KEY, salt.alias("_salt"), tables.QUERY)
    right = passages.select(tables.PASSAGE_KEY, F.explode(copies).alias("_salt"), tables.PASSAGE)
    keys = [tables.PASSAGE_KEY, "_salt"]
    left, right = left.repartition(partitions, *keys), right.repartition(partitions, *keys).hint("merge")
    return left.join(right, keys).select(tables.PAIR_KEY, tables.QUERY, tables.PASSAGE)


def scored(pairs: DataFrame, plan: Loadable, pairs_done: Any = None, tokens_done: Any = None) -> DataFrame:
    """`pairs` (pair_key, query, passage) through the model: SCORED_SCHEMA, in any order.

    Evaluated anew by every action on it: write it or persist it before using it twice.
    """
    return pairs.mapInArrow(score_in_arrow(plan, pairs_done, tokens_done), SCORED_SCHEMA)
