"""A whole job over small tables, for the tests that run one."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from pyspark.sql import SparkSession
from rich.console import Console
from tables_of import frame, three_tables

from rerank_udf.config import JobConfig, parse_config
from rerank_udf.report import RunReport
from rerank_udf.spark.pipeline import run_rerank

BAD = [
    ("q1", "nowhere", 1.0, "s"),
    (None, "p1", 1.0, "s"),
    ("q1", "p1", -5.0, "s"),
    ("q9", "p1", 1.0, "s"),
    ("q2", "null", 1.0, "s"),
]
SCHEMA = "query_id string, passage_id string, score double, source string"


def write_inputs(spark: SparkSession, folder: Path) -> None:
    """Three tables as Parquet, with five bad rows among the candidates and a query without any."""
    candidates, queries, passages = three_tables(spark)
    more_queries = frame(spark, [("q4", "nobody answers")], "query_id string, query string")
    more_passages = frame(spark, [("null", None)], "passage_id string, passage string")
    candidates.union(frame(spark, BAD, SCHEMA)).write.parquet(str(folder / "candidates"))
    queries.union(more_queries).write.parquet(str(folder / "queries"))
    passages.union(more_passages).write.parquet(str(folder / "passages"))


def settings(folder: Path, scorer: Path, out: str = "out", **sections: dict[str, Any]) -> JobConfig:
    """The job over `write_inputs`; `sections` as in the YAML."""
    raw: dict[str, Any] = {
        "input": {name: {"path": str(folder / name)} for name in ("candidates", "queries", "passages")},
        "model": {"name": str(scorer)},
        "output": {
            "reranked": {"path": str(folder / out / "reranked")},
            "rejects": {"path": str(folder / out / "rejects")},
        },
        "run": {"report": str(folder / out / "report"), "max_reject_fraction": 0.25},
    }
    for name, section in sections.items():
        raw[name] = {**raw.get(name, {}), **section}
    return parse_config(raw)


def run(spark: SparkSession, config: JobConfig) -> RunReport:
    return run_rerank(spark, config, Console(file=io.StringIO()))
