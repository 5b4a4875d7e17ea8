"""Replace some queries' rows in a Delta or Iceberg table, all at once."""

from __future__ import annotations

import datetime
import uuid

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from rerank_udf import tables

_KIND = "_rerank_udf_kind"
_MARKER, _ROW = 0, 1


def replace_queries(
    spark: SparkSession, table: str, rows: DataFrame, queries: DataFrame, run_date: datetime.date | None
) -> None:
    """One MERGE into `table` (a name as SQL takes it): the old rows of `queries` go, `rows` come, others stay.

    rows: the table's columns. queries: query_id, perhaps more than once. With a run date only that date's rows go.

    The source holds a marker a query, which matches every old row of it, and the new rows, which match nothing. So
    each old row meets one row of the source at most, whatever it is keyed by, and what is old is decided by the commit
    itself and not by an earlier reading of the table. There is no Python in it, and its inputs have been written: a
    MERGE may read its source more than once.
    """
    markers = queries.select(tables.QUERY_ID).where(F.col(tables.QUERY_ID).isNotNull()).distinct()
    source = rows.withColumn(_KIND, F.lit(_ROW)).unionByName(
        markers.withColumn(_KIND, F.lit(_MARKER)), allowMissingColumns=True
    )
    view = f"rerank_udf_{uuid.uuid4().hex}"
    source.createOrReplaceTempView(view)
    try:
        spark.sql(_statement(table, view, rows.columns, run_date))
    finally:
        spark.catalog.dropTempView(view)


def _statement(table: str, view: str, columns: list[str], run_date: datetime.date | None) -> str:
    names = [tables.quoted(name) for name in columns]
    on = [
        f"old.{tables.QUERY_ID} = new.{tables.QUERY_ID}",
        # 0 on the left, and only a marker is 0 on the right: as an equation of both sides it is a key of the hash join,
        # so that a query's old rows are not compared with all its new ones.
        f"hash(old.{tables.QUERY_ID}) % 1 = new.{_KIND}",
        *([f"old.{tables.RUN_DATE} = date'{run_date}'"] if run_date is not None else []),
    ]
    return (
        f"merge into {table} as old using {view} as new on {' and '.join(on)} "
        "when matched then delete "
        f"when not matched and new.{_KIND} = {_ROW} then "
        f"insert ({', '.join(names)}) values ({', '.join(f'new.{name}' for name in names)})"
    )
