"""Publishing to what `output.reranked` names: Parquet versions by path, or a table by name."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from rerank_udf import tables
from rerank_udf.config import Target
from rerank_udf.errors import InputError
from rerank_udf.lake import versions
from rerank_udf.lake.sources import first_line


def publish(
    spark: SparkSession, frame: DataFrame, target: Target, run_id: str, facts: Mapping[str, Any]
) -> dict[str, str]:
    """Publish `frame` and say where it is: {"path": …, "version": …} or {"table": …}.

    Raises InputError where a table exists with other columns than ours.
    """
    if target.path:
        version = versions.publish(
            spark,
            frame,
            target.path,
            run_id=run_id,
            run_date=target.run_date,
            keep_versions=target.keep_versions,
            facts=facts,
        )
        return {"path": target.path, "version": version}
    try:
        _publish_table(spark, frame, target)
    except AnalysisException as error:
        raise InputError(f"output.reranked.table {target.table}: {first_line(error)}") from None
    return {"table": str(target.table)}


def read(spark: SparkSession, target: Target) -> DataFrame:
    """What the last run published to `target` (for its own run date, if it has one)."""
    if target.path:
        return versions.read_reranked(spark, target.path, target.run_date)
    frame = spark.table(str(target.table))
    return frame if target.run_date is None else frame.where(F.col(tables.RUN_DATE) == F.lit(target.run_date))


def _publish_table(spark: SparkSession, frame: DataFrame, target: Target) -> None:
    """Overwrite or append to a table; with a run date, only that date's partition is replaced."""
    name = str(target.table)
    if target.run_date is None:
        frame.write.mode(target.mode).saveAsTable(name)
        return
    dated = frame.withColumn(tables.RUN_DATE, F.lit(target.run_date).cast("date"))
    if not spark.catalog.tableExists(name):
        dated.write.partitionBy(tables.RUN_DATE).saveAsTable(name)
        return
    columns = spark.table(name).columns
    missing = sorted(set(columns) ^ set(dated.columns))
    if missing:
        raise InputError(
            f"output.reranked.table {name} and this run differ in column {missing[0]!r}; use a new table"
        )
    # By SQL, since the writer's insertInto clears every partition whatever its option partitionOverwriteMode says.
    in_order = frame.select(*[tables.quoted(column) for column in columns if column != tables.RUN_DATE])
    view = f"rerank_udf_{uuid.uuid4().hex}"
    in_order.createOrReplaceTempView(view)
    verb = "overwrite" if target.mode == "overwrite" else "into"
    try:
        spark.sql(
            f"insert {verb} table {name} partition ({tables.RUN_DATE} = date'{target.run_date}') select * from {view}"
        )
    finally:
        spark.catalog.dropTempView(view)
