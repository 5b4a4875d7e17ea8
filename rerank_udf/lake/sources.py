"""A configured source → a DataFrame, with Spark's long errors turned into one sentence."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

from pyspark.errors import AnalysisException, PySparkException
from pyspark.sql import DataFrame, SparkSession

from rerank_udf.config import Source
from rerank_udf.errors import InputError
from rerank_udf.lake.catalog import provider_of, quoted_table
from rerank_udf.lake.delta import DeltaTable
from rerank_udf.lake.iceberg import IcebergTable

# CSV as RFC 4180 has it: a header line, quotes doubled inside quotes, line breaks allowed in quoted text. A cell with
# nothing in it is null and "" is the empty text, which Spark tells apart only where null has a spelling of its own. A
# line with too many cells is an error: Spark would drop the last ones without a word.
_CSV_DEFAULTS = {
    "header": "true",
    "multiLine": "true",
    "escape": '"',
    "nullValue": "\x00null",
    "mode": "FAILFAST",
}

_log = logging.getLogger(__name__)
_TIME_TRAVEL = {"versionasof", "timestampasof", "snapshot-id", "as-of-timestamp", "branch", "tag"}
_NOT_PARQUET = re.compile(r"(\S+) is not a Parquet file")
_BAD_CSV = re.compile(r"\[MALFORMED_CSV_RECORD\] (.*)")
_BAD_LINE = re.compile(r"\[MALFORMED_RECORD_IN_PARSING[^\]]*\] (.*)")


def read_source(spark: SparkSession, source: Source, label: str) -> DataFrame:
    """The table that `source` names; `label` (input.candidates, say) names it in errors.

    Raises InputError: no such path or table, an empty folder, SQL that does not parse, a `where` that does not fit.
    """
    return read_versioned(spark, source, label)[0]


def read_versioned(spark: SparkSession, source: Source, label: str) -> tuple[DataFrame, str | None]:
    """The same with the table's version (see source_version), held to it whatever is committed while it is read."""
    version = version_of_now(spark, source, label)
    with _told(source, label):
        held = at_version(source, version)
        frame = _load(spark, held)
        return frame.where(held.where) if held.where else frame, version


def version_of_now(spark: SparkSession, source: Source, label: str) -> str | None:
    """As source_version; raises InputError as `read_source`."""
    with _told(source, label):
        if source.table or source.format in ("delta", "iceberg"):
            _load(spark, source)  # tells what is missing better than the format's own commands do
        else:
            return None
    try:
        version = source_version(spark, source)
        _load(spark, at_version(source, version))
    except Exception as error:
        # Rows may be read, the history not: Unity's row filters and column masks are so.
        _log.warning(
            "%s (%s) is read as it stands, whatever is committed meanwhile: %s",
            label,
            source,
            first_line(error),
        )
        return None
    return version


def at_version(source: Source, version: str | None) -> Source:
    """The source that reads this version, which source_version told, whatever is committed later."""
    if version is None:
        return source
    if source.table:
        sql = f"select * from {quoted_table(source.table)} version as of {version}"
        return source.model_copy(update={"table": None, "sql": sql})
    return source.model_copy(update={"options": {**source.options, "versionAsOf": version}})


@contextmanager
def _told(source: Source, label: str) -> Iterator[None]:
    try:
        yield
    except AnalysisException as error:
        raise InputError(f"{label} ({source}): {_reason(error, source)}") from None
    except PySparkException as error:
        raise InputError(f"{label} ({source}): {first_line(error)}") from None
    except Exception as error:  # Spark passes these on as the bare errors of its gateway
        if found := _NOT_PARQUET.search(str(error)):
            raise InputError(_not_parquet(found, f"{label} ({source})")) from None
        if "DATA_SOURCE_NOT_FOUND" not in str(error):
            raise
        raise InputError(
            f"{label} ({source}): this Spark cannot read {source.format}; add its package (spark.jars.packages)"
        ) from None


def source_version(spark: SparkSession, source: Source) -> str | None:
    """The version of a Delta table or the snapshot of an Iceberg table as of now; None for anything else.

    None too where the source's options say which one is meant, and for an Iceberg table without a snapshot.
    """
    if source.sql or any(name.lower() in _TIME_TRAVEL for name in source.options):
        return None
    found: int | None = None
    if source.table:
        provider = provider_of(spark, source.table)
        if provider == "delta":
            found = DeltaTable(spark, table=source.table).version()
        if provider == "iceberg":
            found = IcebergTable(spark, source.table).snapshot()
    elif source.format == "delta":
        found = DeltaTable(spark, path=source.path).version()
    elif source.format == "iceberg":
        rows = spark.read.format("iceberg").load(f"{source.path}#refs").where("name = 'main'").collect()
        found = rows[0]["snapshot_id"] if rows else None
    return None if found is None else str(found)


@contextmanager
def bad_lines_told() -> Iterator[None]:
    """While rows are read: a line that is no row of its file becomes an InputError."""
    try:
        yield
    except Exception as error:  # Spark passes some on as the bare errors of its gateway
        if found := _NOT_PARQUET.search(str(error)):
            raise InputError(_not_parquet(found, "an input table")) from None
        found = _BAD_CSV.search(str(error)) or _BAD_LINE.search(str(error))
        if found is None:
            raise
        raise InputError(
            f"an input line cannot be read: {found[1]:.500} (CSV: is a text with a comma or quote in it not quoted?)"
        ) from None


def _not_parquet(found: re.Match[str], table: str) -> str:
    return f"{table}: {found[1]} is not a Parquet file; say what it is (format: csv, say), or take it out of the folder"


def is_text_typed(source: Source) -> bool:
    """Whether every column arrives as text: CSV without a schema of its own."""
    return source.format == "csv" and source.path is not None


def first_line(error: Exception) -> str:
    """Spark's message without its plan, its position markers and its stack."""
    return str(error).strip().split("\n")[0].strip()


def is_missing_path(error: AnalysisException) -> bool:
    """Whether Spark says that there is nothing at a path."""
    return _condition(error) == "PATH_NOT_FOUND"


def _condition(error: AnalysisException) -> str:
    # Spark 4 renamed getErrorClass
    ask = error.getCondition if hasattr(error, "getCondition") else error.getErrorClass
    return ask() or ""


def _load(spark: SparkSession, source: Source) -> DataFrame:
    if source.sql:
        return spark.sql(source.sql)
    if source.table:
        return spark.table(source.table)
    options = {**_CSV_DEFAULTS, **source.options} if source.format == "csv" else source.options
    return spark.read.format(source.format).options(**options).load(source.path)


def _reason(error: AnalysisException, source: Source) -> str:
    condition = _condition(error)
    if is_missing_path(error):
        return "there is nothing at this path"
    if condition == "UNABLE_TO_INFER_SCHEMA":
        return f"no {source.format} files in this folder; check the path and input format"
    if condition == "TABLE_OR_VIEW_NOT_FOUND":
        return f"no such table or view; {first_line(error)}"
    return first_line(error)
