"""What a run works on, written once: rows without texts, and the pairs that are left to score with their passages.

    <work>/staged/<fingerprint>/<run_id>/rows      every input row with its keys; a later run of the same input takes it
    <work>/runs/<run_id>/pairs/bucket=…            pair_key, place, query of the pairs that the store does not know
    <work>/runs/<run_id>/passages/bucket=…         place, passage of their passages

A pair and its passage lie in the same bucket, so that a run of buckets can be scored alone. `place` is the passage's
key; a passage with very many pairs has several places, each with a part of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from rerank_udf import tables
from rerank_udf.identity import KEY_BYTES
from rerank_udf.spark.candidates import Prepared
from rerank_udf.spark.lookup import KNOWN, KnownFacts, is_shuffled, with_known

BUCKET = "bucket"
PLACE = "place"
MAX_PAIRS_PER_PASSAGE = 4096
_FEWEST_PAIRS_PER_BUCKET = 8192
_MOST_BUCKETS = 512
_IN_STORE = -1
_BUCKETS_PER_TASK = 4
_ROWS_PER_TASK = 1_000_000
# Of the queries' files, by Spark's own estimate: their texts are then sent to every executor.
_BROADCAST_BYTES = 64 << 20


@dataclass(frozen=True)
class StagedPairs:
    """The pairs that are left to score, by bucket, and how many distinct pairs the store knew already."""

    pairs: DataFrame
    passages: DataFrame
    sizes: Mapping[int, int]
    known: int

    @property
    def left(self) -> int:
        """How many pairs are left to score."""
        return sum(self.sizes.values())

    @property
    def distinct(self) -> int:
        """How many distinct pairs the input has, as far as their texts were still there."""
        return self.left + self.known


def stage_pairs(
    spark: SparkSession,
    rows: DataFrame,
    row_count: int,
    prepared: Prepared,
    store: KnownFacts | None,
    folder: str,
) -> StagedPairs:
    """Write the pairs of `rows` that `store` has no fact for, each once, and the passages they need."""
    keys = _keys(rows)
    hot = hot_passages(keys, MAX_PAIRS_PER_PASSAGE) if row_count > MAX_PAIRS_PER_PASSAGE else {}
    left = _left(keys, row_count, hot, prepared.queries, store)
    left.write.partitionBy(BUCKET).parquet(f"{folder}/pairs")
    pairs = spark.read.schema(_pairs_schema(left)).parquet(f"{folder}/pairs")
    by_bucket = {row[BUCKET]: row["count"] for row in pairs.groupBy(BUCKET).count().collect()}
    known = by_bucket.pop(_IN_STORE, 0)
    pairs = pairs.where(F.col(BUCKET) != _IN_STORE)
    passages = _passages(pairs, prepared.passages, writing_tasks(len(by_bucket), row_count))
    if by_bucket:
        passages.write.partitionBy(BUCKET).parquet(f"{folder}/passages")
        passages = spark.read.schema(passages.schema).parquet(f"{folder}/passages")
    return StagedPairs(pairs, passages, by_bucket, known)


def bucket_count(pairs: int) -> int:
    """How many buckets so many pairs are staged in: enough to size waves by, none of them a crumb."""
    return max(1, min(_MOST_BUCKETS, pairs // _FEWEST_PAIRS_PER_BUCKET))


def writing_tasks(buckets: int, rows: int) -> int:
    """How many tasks write so many buckets of so many rows: some buckets each, while those are small."""
    return max(1, math.ceil(buckets / _BUCKETS_PER_TASK), math.ceil(rows / _ROWS_PER_TASK))


def _keys(rows: DataFrame) -> DataFrame:
    """pair_key, query_key, passage_key of the rows that are to be scored."""
    to_score = F.col(tables.REASON).isNull() & ~F.col("beyond_depth")
    return rows.where(to_score).select(tables.PAIR_KEY, tables.QUERY_KEY, tables.PASSAGE_KEY)


def hot_passages(keys: DataFrame, most: int) -> dict[bytes, int]:
    """passage_key → number of parts, of the passages that stand in more than `most` rows; runs one job."""
    counts = keys.groupBy(tables.PASSAGE_KEY).count().where(F.col("count") > most)
    return {bytes(row[tables.PASSAGE_KEY]): math.ceil(row["count"] / most) for row in counts.collect()}


def _left(
    keys: DataFrame, row_count: int, hot: Mapping[bytes, int], queries: DataFrame, store: KnownFacts | None
) -> DataFrame:
    """(bucket, place, pair_key, query): each distinct pair once; those that are known with nothing but a bucket."""
    buckets = bucket_count(row_count)
    tasks = writing_tasks(buckets, row_count)
    placed = _placed(keys, hot).withColumn(BUCKET, _bucket(buckets)).drop(tables.PASSAGE_KEY)
    shuffled = is_shuffled(row_count, store)
    # One exchange serves finding duplicates, and either writing by bucket or looking up by key.
    together = placed.repartition(tasks, tables.PAIR_KEY if shuffled else BUCKET)
    looked_up = with_known(together.distinct(), row_count, store)
    with_text, moved = _with_queries(looked_up, queries)
    known = F.col(KNOWN)
    if shuffled or moved:
        by = F.when(known, F.pmod(F.hash(tables.PAIR_KEY), F.lit(buckets))).otherwise(F.col(BUCKET))
        with_text = with_text.repartition(tasks, by)
    there = with_text.where(known | F.col(tables.QUERY).isNotNull())
    return there.select(
        F.when(known, F.lit(_IN_STORE)).otherwise(F.col(BUCKET)).alias(BUCKET),
        *[F.when(~known, F.col(name)).alias(name) for name in (PLACE, tables.PAIR_KEY, tables.QUERY)],
    )


def _pairs_schema(left: DataFrame) -> Any:
    return left.select(PLACE, tables.PAIR_KEY, tables.QUERY, BUCKET).schema


def _placed(keys: DataFrame, hot: Mapping[bytes, int]) -> DataFrame:
    """`keys` with a place: the passage's key, and of hot passages the number of a part after it."""
    if not hot:
        return keys.withColumn(PLACE, F.col(tables.PASSAGE_KEY))
    parts = keys.sparkSession.createDataFrame(list(hot.items()), "_hot binary, _parts int")
    joined = keys.join(F.broadcast(parts), F.col(tables.PASSAGE_KEY) == F.col("_hot"), "left")
    part = F.pmod(F.hash(tables.QUERY_KEY), F.col("_parts"))
    return joined.withColumn(PLACE, _place(F.col(tables.PASSAGE_KEY), part)).drop("_hot", "_parts")


def _place(passage_key: Column, part: Column) -> Column:
    """passage_key ‖ part in ASCII digits; the key alone where `part` is null."""
    return F.coalesce(F.concat(passage_key, part.cast("string").cast("binary")), passage_key)


def _bucket(buckets: int) -> Column:
    """A bucket by place. Hashed twice: Spark's own layout by place is the same hash, and would fall together."""
    return F.pmod(F.hash(F.col(PLACE), F.lit(1)), F.lit(buckets))


def _with_queries(pairs: DataFrame, queries: DataFrame) -> tuple[DataFrame, bool]:
    """`pairs` with the query's text (null where it is not there any more), and whether that moved the rows."""
    texts = queries.dropDuplicates([tables.QUERY_KEY])
    small = plan_bytes(queries) <= _BROADCAST_BYTES
    found = pairs.join(F.broadcast(texts) if small else texts, tables.QUERY_KEY, "left")
    return found, not small


def _passages(pairs: DataFrame, passages: DataFrame, tasks: int) -> DataFrame:
    """(place, passage, bucket) of the places in `pairs`, each once; other passages are dropped before they travel."""
    key = F.substring(F.col(PLACE), 1, KEY_BYTES)
    used = pairs.select(BUCKET, PLACE, key.alias("_key")).distinct()
    texts = passages.join(used, F.col(tables.PASSAGE_KEY) == F.col("_key"))
    laid = texts.select(PLACE, tables.PASSAGE, BUCKET).repartition(tasks, BUCKET)
    return laid.dropDuplicates([BUCKET, PLACE])


def plan_bytes(frame: DataFrame) -> int:
    """How large Spark believes a table is, from its files."""
    plan: Any = frame
    return int(str(plan._jdf.queryExecution().optimizedPlan().stats().sizeInBytes()))
