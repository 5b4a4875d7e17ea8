"""Which run the published table is of, as far as the table's own marks and the report in run.report say it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pyspark.sql import SparkSession

from rerank_udf.config import JobConfig, Model, Ranking, Target, parse_section
from rerank_udf.errors import ConfigError
from rerank_udf.lake import versions
from rerank_udf.lake.catalog import provider_of
from rerank_udf.lake.delta import DeltaTable
from rerank_udf.lake.iceberg import IcebergTable
from rerank_udf.spark.reporting import FILE, read_report

_OF_A_SCORE = ("name", "revision", "max_length", "query_max_length", "truncation", "precision")
# What Delta commits of its own accord, or for its upkeep, and no row is another after it.
_UPKEEP = {"OPTIMIZE", "VACUUM START", "VACUUM END", "SET TBLPROPERTIES"}
_FEW = 20


@dataclass(frozen=True)
class Origin:
    """The settings by which the published table was scored, and those by which it was ordered; None: not known."""

    model: Model | None = None
    ranking: Ranking | None = None

    def remarks(self, config: JobConfig) -> list[str]:
        """What a reader of the figures has to know, where the settings are not those of the table: a sentence each."""
        if self.model is None:
            return [
                f"{config.run.report} has no report of the run that published the table: which model scored it is not "
                "known, and it is called by no model's name"
            ]
        differing = [
            f"{name} {json.dumps(of_table)} (the settings say {json.dumps(ours)})"
            for name, of_table, ours in self._compared(config)
            if of_table != ours
        ]
        if not differing:
            return []
        return [
            f"the published table was made with {', '.join(differing)}; rerank-udf rerank makes one by these settings"
        ]

    def _compared(self, config: JobConfig) -> Iterator[tuple[str, Any, Any]]:
        """Of each setting that decides scores or order: its name, the table's value, ours."""
        if self.model is not None:
            for name in _OF_A_SCORE:
                yield f"model.{name}", getattr(self.model, name), getattr(config.model, name)
        if self.ranking is not None:
            ours = self.ranking.model_dump(mode="json"), config.ranking.model_dump(mode="json")
            for name in ours[0]:
                yield f"ranking.{name}", ours[0][name], ours[1][name]


def origin_of(spark: SparkSession, config: JobConfig) -> Origin:
    """Of the table that stands at output.reranked; no model is looked at.

    Parquet versions carry their run_id and model_key; of a Delta or Iceberg table the report names the version, which
    has to be the newest; of a table of Spark's own only the report's word is to be had.
    """
    report = read_report(spark, config.run.report)
    if not isinstance(report.get("config"), dict):
        report = {}
    target = config.output.reranked
    if target.path and target.format == "parquet":
        marks = versions.facts_of(spark, target.path, target.run_date) or {}
        same_run, same_model = (
            report.get(name) is not None and report.get(name) == marks.get(name)
            for name in ("run_id", "model_key")
        )
    else:
        same_run = same_model = _is_of_report(spark, target, report)
    settings = report.get("config", {})
    try:
        return Origin(
            parse_section(Model, settings.get("model", {}), FILE) if same_model else None,
            parse_section(Ranking, settings.get("ranking", {}), FILE) if same_run else None,
        )
    except ConfigError:  # of another version of this package
        return Origin()


def _is_of_report(spark: SparkSession, target: Target, report: Mapping[str, Any]) -> bool:
    """Whether the newest version of the table is the one that the report's run made, for the same run date."""
    output = report.get("output", {})
    date = report.get("config", {}).get("output", {}).get("reranked", {}).get("run_date")
    if (output.get("path"), output.get("table")) != (target.path, target.table):
        return False
    if date != (None if target.run_date is None else str(target.run_date)):
        return False
    told = output.get("version")
    provider = "delta" if target.path else provider_of(spark, str(target.table))
    if provider == "delta":
        return told is not None and _unchanged_since(spark, target, int(told))
    if provider == "iceberg":
        return bool(told == str(IcebergTable(spark, str(target.table)).snapshot()))
    return told is None


def _unchanged_since(spark: SparkSession, target: Target, version: int) -> bool:
    table = DeltaTable(spark, path=target.path, table=target.table)
    commits = table.version() - version
    if not 0 < commits <= _FEW:
        return commits == 0
    later = spark.sql(f"describe history {table.sql} limit {commits}").collect()
    return all(row["operation"] in _UPKEEP for row in later)
