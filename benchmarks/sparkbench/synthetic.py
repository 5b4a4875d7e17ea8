"""Seeded tables of any size, made by Spark itself: queries, passages of about a kilobyte, candidates.

Row k of the candidates is place k % DEPTH of query k // DEPTH; a passage stands in about CANDIDATES_PER_PASSAGE
queries, spread over the whole table, and never twice in one query. No text repeats.
"""

from __future__ import annotations

from pathlib import Path

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

DEPTH = 100
CANDIDATES_PER_PASSAGE = 10
PASSAGE_WORDS = 160  # about 1,040 bytes
QUERY_WORDS = 9
SEED = 20260131
_VOCABULARY = 4096
_MADE = "_made"


def tables(spark: SparkSession, folder: Path, rows: int) -> Path:
    """The folder with candidates/, queries/ and passages/ for `rows` candidate rows; made once, then kept."""
    if rows < 2 * DEPTH or rows % DEPTH:
        raise ValueError(f"{rows} rows: give a multiple of {DEPTH}, at least {2 * DEPTH}")
    place = folder / f"rows-{rows}"
    if (place / _MADE).exists():
        return place
    queries, passages = rows // DEPTH, max(DEPTH, rows // CANDIDATES_PER_PASSAGE)
    files = max(4, rows // 250_000)
    _texts(spark, queries, "q", "query", QUERY_WORDS, 4).write.mode("overwrite").parquet(f"{place}/queries")
    _texts(spark, passages, "p", "passage", PASSAGE_WORDS, files).write.mode("overwrite").parquet(
        f"{place}/passages"
    )
    _candidates(spark, rows, passages, files).write.mode("overwrite").parquet(f"{place}/candidates")
    (place / _MADE).touch()
    return place


def _texts(spark: SparkSession, count: int, prefix: str, name: str, words: int, files: int) -> DataFrame:
    """`<name>_id`, `<name>`: words of three to nine letters, drawn by a hash of (seed, id, position)."""
    word = f"substring(sha2(cast(w % {_VOCABULARY} as string), 256), 1, cast(3 + w % 7 as int))"
    drawn = f"transform(sequence(1, {words}), i -> pmod(xxhash64({SEED}, '{prefix}', id, i), 1000003))"
    return spark.range(0, count, 1, files).select(
        F.concat(F.lit(prefix), "id").alias(f"{name}_id"),
        F.expr(f"concat_ws(' ', id, array_join(transform({drawn}, w -> {word}), ' '))").alias(name),
    )


def _candidates(spark: SparkSession, rows: int, passages: int, files: int) -> DataFrame:
    """query_id, passage_id, score: falling with the place, without ties."""
    query, place = F.expr(f"id div {DEPTH}"), F.expr(f"id % {DEPTH}")
    start = F.expr(f"pmod(xxhash64({SEED}, 'start', id div {DEPTH}), {passages})")
    step = F.expr(f"1 + pmod(xxhash64({SEED}, 'step', id div {DEPTH}), {max(1, passages // DEPTH)})")
    # DEPTH steps never come round to a passage again: step ≤ passages / DEPTH
    passage = F.pmod(start + place * step, F.lit(passages))
    score = 30.0 - 0.25 * place - 0.001 * F.expr(f"pmod(xxhash64({SEED}, 'score', id), 200)")
    return spark.range(0, rows, 1, files).select(
        F.concat(F.lit("q"), query).alias("query_id"),
        F.concat(F.lit("p"), passage).alias("passage_id"),
        score.alias("score"),
    )
