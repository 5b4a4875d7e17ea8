"""Small tables for the Spark tests, and what a plain loop over the scorer makes of them."""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pyspark.sql import DataFrame, Row, SparkSession

from rerank_udf import load_scorer

QUERIES = {"q1": "how long does a refund take", "q2": "where is the river bank", "q3": "qui ouvre la porte ?"}
PASSAGES = {f"p{number}": f"passage number {number} of the little corpus" for number in range(8)}


@functools.cache
def scorer_of(model: str) -> Any:
    return load_scorer(model)


def candidate_rows(depth: int = 8) -> list[dict[str, Any]]:
    """Every query with `depth` passages, scores falling."""
    return [
        {"query_id": q, "passage_id": f"p{n}", "score": 20.0 - n - 0.25 * int(q[1]), "source": f"{q}/{n}"}
        for q in QUERIES
        for n in range(depth)
    ]


def frame(spark: SparkSession, rows: Sequence[Mapping[str, Any] | tuple[Any, ...]], schema: str) -> DataFrame:
    """A DataFrame from dicts or tuples with a DDL schema, over two partitions."""
    names = [part.strip().split(" ")[0].strip("`") for part in _columns(schema)]
    values = [tuple(row[name] for name in names) if isinstance(row, Mapping) else row for row in rows]
    return spark.createDataFrame(values, schema).repartition(2)


def _columns(schema: str) -> list[str]:
    """The column definitions of a DDL schema: split at commas outside <> and ()."""
    parts, depth = [""], 0
    for character in schema:
        depth += (character in "<(") - (character in ">)")
        if character == "," and not depth:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def three_tables(spark: SparkSession) -> tuple[DataFrame, DataFrame, DataFrame]:
    """candidates, queries, passages."""
    return (
        frame(spark, candidate_rows(), "query_id string, passage_id string, score double, source string"),
        frame(spark, list(QUERIES.items()), "query_id string, query string"),
        frame(spark, list(PASSAGES.items()), "passage_id string, passage string"),
    )


def logit_of(model: Path, query: str, passage: str) -> float:
    return float(scorer_of(str(model)).logits([query], [passage])[0])


def plain_ranking(model: Path, candidates: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """query_id → passage ids in order, from one Python loop over `Scorer.rank`; equal logits keep first-stage order."""
    by_query: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in candidates:
        by_query[row["query_id"]].append(row)
    ranking = {}
    for query_id, rows in by_query.items():
        in_order = sorted(rows, key=lambda row: (-row["score"], row["passage_id"]))
        texts = [PASSAGES[row["passage_id"]] for row in in_order]
        found = scorer_of(str(model)).rank(QUERIES[query_id], texts)
        ranking[query_id] = [in_order[one.index]["passage_id"] for one in found]
    return ranking


def ranking_of(rows: Iterable[Row]) -> dict[Any, list[Any]]:
    """query_id → passage ids by rank, of the ranked rows; ranks must be 1, 2, 3, …"""
    by_query: dict[Any, list[Row]] = defaultdict(list)
    for row in rows:
        if row["rank"] is not None:
            by_query[row["query_id"]].append(row)
    found = {}
    for query_id, ranked in by_query.items():
        ranked.sort(key=lambda row: row["rank"])
        assert [row["rank"] for row in ranked] == list(range(1, len(ranked) + 1))
        found[query_id] = [row["passage_id"] for row in ranked]
    return found


def sigmoid(logit: float) -> float:
    return 1.0 / (1.0 + math.exp(-logit))


def settings_of(spark: SparkSession) -> dict[str, str]:
    """The session's settings, as far as any were set."""
    return {row["key"]: row["value"] for row in spark.sql("set").collect()}


def plan_of(frame: DataFrame, mode: str = "formatted") -> str:
    """What `explain` would print."""
    return str(frame._sc._jvm.PythonSQLUtils.explainString(frame._jdf.queryExecution(), mode))
