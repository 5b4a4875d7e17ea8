"""The numbers behind the pictures of report.html: counts in fixed buckets, one aggregation whatever the rows.

No Python runs in these plans, and what comes to the driver does not grow with the rows.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pyspark.sql import Column, DataFrame, Row, Window
from pyspark.sql import functions as F

from rerank_udf import tables
from rerank_udf.spark.ranking import Outcome

LENGTH_BUCKETS = 64
TIME_BUCKETS = 48
# The last rank of each band: 1, 2, 3, 4-5, 6-10, …; one more band holds what lies beyond.
BAND_ENDS = (1, 2, 3, 5, 10, 20, 50, 100, 1000)
_WAVE = r"/wave-0*(\d+)[^/]*/[^/]*$"


@dataclass(frozen=True)
class Buckets:
    """`count` buckets of one width from `low` on; the outer ones also take what lies beyond them."""

    low: float
    width: float
    count: int

    def of(self, value: Column) -> Column:
        """The number of the bucket that `value` falls in; null where that is null."""
        number = F.floor((value - F.lit(self.low)) / F.lit(self.width))
        return F.when(
            value.isNotNull(), F.least(F.greatest(number, F.lit(0)), F.lit(self.count - 1)).cast("int")
        )

    def empty(self) -> list[int]:
        """A zero for each bucket."""
        return [0] * self.count


LOGITS = Buckets(-20.0, 0.5, 80)
SCORES = Buckets(0.0, 0.05, 20)


def lengths_of(max_length: int) -> Buckets:
    """Buckets of tokens a pair: 1 to `max_length`."""
    return Buckets(1.0, float(max(1, -(-max_length // LENGTH_BUCKETS))), LENGTH_BUCKETS)


# --- scoring ---


def times_of(waves: Iterable[Mapping[str, Any]]) -> tuple[float, Buckets]:
    """When scoring began, in seconds since the epoch, and buckets of seconds until its last wave ended."""
    spans = [(_epoch(wave["started_at"]), wave["seconds"]) for wave in waves]
    begun = min(start for start, _ in spans)
    lasted = max(start + seconds for start, seconds in spans) - begun
    return begun, Buckets(0.0, max(lasted / TIME_BUCKETS, 0.001), TIME_BUCKETS)


def scored_parts(own: DataFrame, lengths: Buckets, begun: float, times: Buckets) -> dict[str, list[Row]]:
    """What a run has scored, by scorer, wave, length and time; each row: part, pairs, tokens, truncated, failed.

    A pair's time is that of its task's file: tasks write theirs when they end. One job, whatever the number of tasks:
    the four are counted together and come apart before anything reaches the driver.
    """
    ended = F.col("_metadata.file_modification_time").cast("double")
    by = {
        "scorer": F.col(tables.SCORER),
        "wave": F.regexp_extract(F.col("_metadata.file_path"), _WAVE, 1),
        "length": lengths.of(F.col(tables.TOKENS)).cast("string"),
        "time": times.of(ended - F.lit(begun)).cast("string"),
    }
    counted = own.groupBy(*[column.alias(name) for name, column in by.items()]).agg(
        F.count(F.lit(1)).alias("pairs"),
        F.sum(tables.TOKENS).alias("tokens"),
        F.sum(F.col(tables.TRUNCATED).cast("int")).alias("truncated"),
        F.count(tables.REASON).alias("failed"),
    )
    parts = [F.struct(F.lit(name).alias("of"), F.col(name).alias("part")) for name in by]
    sums = ("pairs", "tokens", "truncated", "failed")
    apart = counted.select(F.explode(F.array(*parts)).alias("by"), *sums).groupBy("by.of", "by.part")
    found: dict[str, list[Row]] = {name: [] for name in by}
    for row in apart.agg(*[F.sum(name).alias(name) for name in sums]).collect():
        found[row["of"]].append(row)
    return found


def scoring_figures(parts: Mapping[str, list[Row]], lengths: Buckets, times: Buckets) -> dict[str, Any]:
    """`lengths` and `times` for the report: pairs and tokens in each bucket."""
    return {
        "lengths": {"low": lengths.low, "width": lengths.width, **_filled(parts["length"], lengths)},
        "times": {"low": times.low, "width": times.width, **_filled(parts["time"], times)},
    }


def _filled(rows: Iterable[Row], buckets: Buckets) -> dict[str, list[int]]:
    pairs, tokens = buckets.empty(), buckets.empty()
    for row in rows:
        pairs[int(row["part"])] = row["pairs"]
        tokens[int(row["part"])] = row["tokens"]
    return {"pairs": pairs, "tokens": tokens}


def _epoch(moment: str) -> float:
    return datetime.datetime.fromisoformat(moment).timestamp()


# --- ranking ---


def ranking_figures(decided: Outcome, activation: str, own_ranks: bool) -> dict[str, Any]:
    """`logits`, `scores` and `movement` of the rows that have a score: one aggregation over the decided rows.

    `own_ranks`: the candidates came with ranks. Those may have gaps or ties (10, 20, 30), as ranks from 1 have not, so
    movement counts places in their order.
    """
    first, rank = F.col(tables.FIRST_STAGE_RANK), F.col(tables.RANK)
    scored = decided.rows.where(F.col(tables.REASON).isNull() & F.col(tables.LOGIT).isNotNull())
    if own_ranks:
        order = Window.partitionBy(tables.QUERY_ID).orderBy(first.asc_nulls_last(), tables.PASSAGE_ID)
        scored = scored.withColumn("_first", F.when(first.isNotNull(), F.row_number().over(order)))
        first = F.col("_first")
    groups = scored.groupBy(
        LOGITS.of(F.col(tables.LOGIT)).alias("logit"),
        SCORES.of(F.col(tables.SCORE)).alias("score"),
        _band(first).alias("before"),
        _band(rank).alias("after"),
        F.signum(first - rank).cast("int").alias("moved"),
    )
    found = groups.count().collect()
    if not found:
        return {}
    figures = {"logits": _first_and_rest(found, "logit", LOGITS), "movement": _movement(found)}
    return figures | ({"scores": _first_and_rest(found, "score", SCORES)} if activation == "sigmoid" else {})


def _band(rank: Column) -> Column:
    """Which band of ranks; null where there is no rank."""
    beyond = [(rank > F.lit(end)).cast("int") for end in BAND_ENDS]
    return sum(beyond[1:], beyond[0])


def _first_and_rest(rows: Iterable[Row], name: str, buckets: Buckets) -> dict[str, Any]:
    """How often each bucket holds a query's first passage, and any other one."""
    first, rest = buckets.empty(), buckets.empty()
    for row in rows:
        (first if row["after"] == 0 else rest)[row[name]] += row["count"]
    return {"low": buckets.low, "width": buckets.width, "first": first, "rest": rest}


def _movement(rows: Iterable[Row]) -> dict[str, Any]:
    """From which band of first-stage ranks to which band of new ones; the last column is of the rows that were cut."""
    bands = len(BAND_ENDS) + 1
    cells = [[0] * (bands + 1) for _ in range(bands)]
    moved = {1: 0, 0: 0, -1: 0}
    for row in rows:
        if row["before"] is None:
            continue
        cells[row["before"]][bands if row["after"] is None else row["after"]] += row["count"]
        if row["moved"] is not None:
            moved[row["moved"]] += row["count"]
    queries = sum(row[0] for row in cells)
    return {
        "band_ends": list(BAND_ENDS),
        "cells": cells,
        "rose": moved[1],
        "kept": moved[0],
        "fell": moved[-1],
        "queries": queries,
        "first_changed": queries - cells[0][0],
    }
