"""Publishing to what `output.reranked` names: Parquet versions or a Delta table by path, or a table by name.

A reader sees the table as it was or as it is, whatever the format: a Delta or Iceberg table changes in one commit, and
Parquet by path in one pointer. (Spark's own tables by name are as atomic as Spark makes them.)
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pyspark.errors import AnalysisException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from rerank_udf import tables
from rerank_udf.config import Target
from rerank_udf.errors import InputError
from rerank_udf.lake import files, versions
from rerank_udf.lake.catalog import (
    VIEW,
    first_difference,
    missing_schema,
    provider_of,
    quoted_table,
    types_of,
)
from rerank_udf.lake.delta import LOG, DeltaTable
from rerank_udf.lake.iceberg import IcebergTable
from rerank_udf.lake.merge import replace_queries
from rerank_udf.lake.sources import first_line

RUN_ID = "rerank_udf.run-id"
_ATTEMPTS = 5
# What Delta and Iceberg say where another writer was faster, also in making the table, and nothing has been written.
_CONFLICT = re.compile(
    r"DELTA_CONCURRENT|Concurrent\w+Exception|CommitFailedException|Found conflicting files|DELTA_PATH_EXISTS|"
    r"TABLE_OR_VIEW_ALREADY_EXISTS|AlreadyExistsException|DELTA_PROTOCOL_CHANGED|ProtocolChangedException"
)
_OF_A_WRITTEN_TABLE = re.compile(
    rf"\.?(part-|_SUCCESS|_temporary|_committed_|_started_|\.spark-staging)|{re.escape(files.PROBE)}"
)
_DELTA_REFUSES = re.compile(r"[ ,;{}()\n\t=]")
# What Iceberg stores a type as.
_WIDENED = re.compile(r"\b(tinyint|smallint)\b")


@dataclass(frozen=True)
class Publication:
    """What is published: `rows` with the run date where there is one, `queries` whose rows a merge replaces."""

    rows: DataFrame
    queries: DataFrame
    target: Target
    run_id: str

    def date_only(self) -> Column | None:
        """A condition for the rows of the run date; None where there is none."""
        date = self.target.run_date
        return None if date is None else F.col(tables.RUN_DATE) == F.lit(date)

    def partition(self) -> list[str]:
        """What a new table is partitioned by."""
        return [] if self.target.run_date is None else [tables.RUN_DATE]


def publish(
    spark: SparkSession,
    frame: DataFrame,
    target: Target,
    run_id: str,
    facts: Mapping[str, Any],
    queries: DataFrame | None = None,
) -> dict[str, str]:
    """Publish `frame` and say where it is: {"path": … or "table": …, "version": … where the format has one}.

    queries: query_id of every query that the run decided, one without rows too: in mode merge, their old rows go. By
    default those of `frame`. An append of a run that is in already adds nothing (Delta, Iceberg).

    Raises InputError where a table exists with other columns than ours, before anything is written.
    """
    if target.path and target.format == "parquet":
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
    rows = frame if target.run_date is None else frame.withColumn(tables.RUN_DATE, F.lit(target.run_date))
    publication = Publication(rows, frame if queries is None else queries, target, run_id)
    done = {"path": target.path} if target.path else {"table": str(target.table)}
    with _told(target):
        version_of_table = _published(spark, publication)
    return done if version_of_table is None else {**done, "version": version_of_table}


def check(spark: SparkSession, schema: T.StructType, target: Target) -> None:
    """Raise InputError where rows of `schema` (the run date not among them) cannot be published to `target`.

    The same that `publish` checks, for before the work.
    """
    if target.path and target.format == "parquet":
        if "_delta_log" in files.children(spark, target.path):
            raise InputError(
                f"{_label(target)} is a Delta table, whose readers would not see Parquet files beside it; set "
                "output.reranked.format to delta, or give another path"
            )
        return
    columns = types_of(schema)
    if target.run_date is not None:
        columns[tables.RUN_DATE] = "date"
    with _told(target):
        if _existing_format(spark, columns, target) is None and target.format == "delta":
            _check_names_for_delta(schema, target)


def check_replaced_folder(spark: SparkSession, path: str, label: str) -> None:
    """Raise InputError where writing a table to `path` would replace anything but a table that Spark has written."""
    if files.is_file(spark, path):
        raise InputError(
            f"{label}: {path} is a file, and a folder would replace it; give a folder of its own"
        )
    foreign = sorted(name for name in files.children(spark, path) if not _OF_A_WRITTEN_TABLE.match(name))
    if foreign:
        raise InputError(
            f"{label}: {path} holds {foreign[0]!r}, which no such table has, and all of the folder would be replaced; "
            "give a folder of its own"
        )


def _check_names_for_delta(schema: T.StructType, target: Target) -> None:
    """A new Delta table is one without column mapping, and takes none of these characters in a name."""
    refused = [name for name in _names(schema) if _DELTA_REFUSES.search(name)]
    if refused:
        raise InputError(
            f"{_label(target)}: a new Delta table takes no column {refused[0]!r} (none of ' ,;{{}}()=', tab "
            "and newline in a name); rename it in the candidates, or leave it out through output.keep_columns"
        )


def _names(kind: T.DataType) -> Iterator[str]:
    """Of a type's fields, and of those within them."""
    if isinstance(kind, T.StructType):
        for field in kind.fields:
            yield field.name
            yield from _names(field.dataType)
    elif isinstance(kind, T.ArrayType):
        yield from _names(kind.elementType)
    elif isinstance(kind, T.MapType):
        yield from _names(kind.keyType)
        yield from _names(kind.valueType)


def read(spark: SparkSession, target: Target) -> DataFrame:
    """What the last run published to `target` (for its own run date, if it has one).

    Of a table with versions the newest as of now, however often the frame is used while others publish.
    """
    if target.path and target.format == "parquet":
        return versions.read_reranked(spark, target.path, target.run_date)
    with _told(target):
        frame = _newest(spark, target)
    return frame if target.run_date is None else frame.where(F.col(tables.RUN_DATE) == F.lit(target.run_date))


def _newest(spark: SparkSession, target: Target) -> DataFrame:
    if target.path:
        return DeltaTable(spark, path=target.path).now()
    name = str(target.table)
    provider = provider_of(spark, name)
    if provider == "delta":
        return DeltaTable(spark, table=name).now()
    return IcebergTable(spark, name).now() if provider == "iceberg" else spark.table(quoted_table(name))


@contextmanager
def _told(target: Target) -> Iterator[None]:
    """What Spark finds wrong with the target, as one sentence."""
    try:
        yield
    except AnalysisException as error:
        raise InputError(f"{_label(target)}: {first_line(error)}") from None
    except Exception as error:  # Spark passes this one on as the bare error of its gateway
        if "DATA_SOURCE_NOT_FOUND" not in str(error):
            raise
        raise InputError(
            f"{_label(target)}: this Spark cannot write {target.format}; add its package (spark.jars.packages) and its "
            "session settings"
        ) from None


def _label(target: Target) -> str:
    return f"output.reranked.path {target.path}" if target.path else f"output.reranked.table {target.table}"


# --- what is there ---


def _existing_format(spark: SparkSession, columns: Mapping[str, str], target: Target) -> str | None:
    """The format of the table that is there, or None; raises InputError where `columns` do not fit it."""
    found = _existing(spark, target)
    lake_format = target.format if found is None else found[0]
    if target.mode == "merge" and lake_format not in ("delta", "iceberg"):
        raise InputError(
            f"{_label(target)}: mode merge needs a Delta or an Iceberg table, found {lake_format}; use another table, "
            "or mode overwrite with a run_date"
        )
    if found is None:
        return None
    _, schema = found
    if lake_format == "iceberg":
        columns = {name: _WIDENED.sub("int", kind) for name, kind in columns.items()}
    replaced_whole = target.mode == "overwrite" and target.run_date is None
    difference = first_difference(columns, types_of(schema))
    if difference and (lake_format in ("delta", "iceberg") or not replaced_whole):
        name, what = difference
        raise InputError(
            f"{_label(target)}: it and this run differ in column {name!r}; use a new table, or make them the same "
            f"({what})"
        )
    if lake_format == "iceberg":
        _check_iceberg_partition(spark, target)
    return lake_format


def _existing(spark: SparkSession, target: Target) -> tuple[str, T.StructType] | None:
    """Format and columns of the table at `target`; None where there is nothing."""
    if target.path:
        table = DeltaTable(spark, path=target.path)
        if table.exists():
            return "delta", table.now().schema
        others = [
            name for name in sorted(files.children(spark, target.path)) if not name.startswith(files.PROBE)
        ]
        if others and LOG not in others:  # with it, a creation failed here
            raise InputError(
                f"{_label(target)}: holds {others[0]!r} and is no Delta table; give a folder that is empty or does not "
                "exist yet"
            )
        return None
    provider = provider_of(spark, str(target.table))
    if provider == VIEW:
        raise InputError(f"{_label(target)}: is a view; expected a table, or a name that is free")
    if provider is not None:
        return provider, spark.table(quoted_table(str(target.table))).schema
    schema = missing_schema(spark, str(target.table))
    if schema is not None:
        raise InputError(
            f"{_label(target)}: there is no schema {schema}; make it first (create schema {schema}), or name another"
        )
    return None


def _check_iceberg_partition(spark: SparkSession, target: Target) -> None:
    """A date is replaced file by file: no file may hold two."""
    if target.run_date is None or target.mode != "overwrite":
        return
    partitions = IcebergTable(spark, str(target.table)).partitions()
    if tables.RUN_DATE not in partitions:
        raise InputError(
            f"{_label(target)}: is partitioned by {', '.join(partitions) or 'nothing'}; expected {tables.RUN_DATE}, "
            "whose rows of one day are replaced: use a new table"
        )


# --- write ---


def _published(spark: SparkSession, publication: Publication) -> str | None:
    """Publish to a table, again where another writer was faster; its version, where its format has any."""
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return _published_once(spark, publication)
        except Exception as error:
            if attempt == _ATTEMPTS or not _CONFLICT.search(str(error)):
                raise
    raise AssertionError("unreachable")


def _published_once(spark: SparkSession, publication: Publication) -> str | None:
    target = publication.target
    existing = _existing_format(spark, types_of(publication.rows.schema), target)
    lake_format = existing or target.format
    return _FORMATS.get(lake_format, _write_spark_table)(spark, publication, existing)


def _write_delta(spark: SparkSession, publication: Publication, existing: str | None) -> str:
    target = publication.target
    table = DeltaTable(spark, path=target.path, table=target.table)
    once = f"rerank_udf/{publication.run_id}"
    if existing is None:
        table.create(publication.rows, publication.partition(), once)
    elif target.mode == "append":
        commit = table.append(publication.rows, once)
        return str(table.version() if commit is None else commit["version"])
    elif target.mode == "merge":
        replace_queries(spark, table.sql, publication.rows, publication.queries, target.run_date)
    else:
        return str(table.overwrite(publication.rows, publication.date_only()))
    return str(table.version())


def _write_iceberg(spark: SparkSession, publication: Publication, existing: str | None) -> str:
    target = publication.target
    table = IcebergTable(spark, str(target.table))
    mark = (RUN_ID, publication.run_id)
    if existing is None:
        table.create(publication.rows, [F.col(name) for name in publication.partition()], mark)
    elif target.mode == "append":
        table.append(publication.rows, mark)
    elif target.mode == "merge":
        replace_queries(spark, table.sql, publication.rows, publication.queries, target.run_date)
    else:
        table.overwrite(publication.rows, mark, publication.date_only())
    own = table.marked(mark)
    return str(own["snapshot_id"] if own is not None else table.snapshot())


def _write_spark_table(spark: SparkSession, publication: Publication, existing: str | None) -> None:
    """Overwrite or append to a table of Spark's own; with a run date, only that date's partition is replaced."""
    target, rows = publication.target, publication.rows
    name = quoted_table(str(target.table))
    if target.run_date is None:
        rows.write.format(existing or target.format).mode(target.mode).saveAsTable(name)
        return
    if existing is None:
        rows.write.format(target.format).partitionBy(tables.RUN_DATE).saveAsTable(name)
        return
    # By SQL, since the writer's insertInto clears every partition whatever its option partitionOverwriteMode says.
    columns = [column for column in spark.table(name).columns if column != tables.RUN_DATE]
    view = f"rerank_udf_{uuid.uuid4().hex}"
    rows.select(*[tables.quoted(column) for column in columns]).createOrReplaceTempView(view)
    verb = "overwrite" if target.mode == "overwrite" else "into"
    try:
        spark.sql(
            f"insert {verb} table {name} partition ({tables.RUN_DATE} = date'{target.run_date}') select * from {view}"
        )
    finally:
        spark.catalog.dropTempView(view)


_FORMATS: dict[str, Callable[[SparkSession, Publication, str | None], str | None]] = {
    "delta": _write_delta,
    "iceberg": _write_iceberg,
}
