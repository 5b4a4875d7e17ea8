"""A configured source → a DataFrame, with Spark's long errors turned into one sentence."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

from pyspark.errors import AnalysisException, PySparkException
from pyspark.sql import DataFrame, SparkSession

from rerank_udf.config import Source
from rerank_udf.errors import InputError
from rerank_udf.lake import files, plain_text
from rerank_udf.lake.catalog import provider_of, quoted_table
from rerank_udf.lake.delta import DeltaTable
from rerank_udf.lake.failures import shown_path, unreadable_file
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
# A line that is no object is an error: Spark would make a row of nulls of it.
_JSON_DEFAULTS = {"mode": "FAILFAST"}
_DEFAULTS = {"csv": _CSV_DEFAULTS, "json": _JSON_DEFAULTS}
_SEPARATORS = {"\t": "tabs", ";": "semicolons", "|": "vertical bars", ",": "commas"}

_log = logging.getLogger(__name__)
_TIME_TRAVEL = {"versionasof", "timestampasof", "snapshot-id", "as-of-timestamp", "branch", "tag"}
# What Spark says of a file of another format, the more telling first.
_OTHER_FORMAT = {
    "a Parquet": re.compile(r"(\S+) is not a Parquet file"),
    "an ORC": re.compile(r"Malformed ORC file (\S+?)\.? "),
    "a Parquet or ORC": re.compile(r"while reading file (\S+)\. Could not read footer"),
}
_BROKEN_FILE = re.compile(
    r"EOFException|ZipException|not a gzip file|incorrect header check|incorrect data check|bad block header|"
    r"[Cc]hecksum|CRC|Unknown frame descriptor|data error"
)
_DECOMPRESSOR = "org.apache.hadoop.io.compress."
_BAD_CSV = re.compile(r"\[MALFORMED_CSV_RECORD\] (.*)")
_BAD_LINE = re.compile(r"\[MALFORMED_RECORD_IN_PARSING[^\]]*\] (.*)")
_SQLSTATE = re.compile(r"\s*SQLSTATE: \w+")


def read_source(spark: SparkSession, source: Source, label: str) -> DataFrame:
    """The table that `source` names; `label` (input.candidates, say) names it in errors.

    Raises InputError: no such path or table, an empty folder, SQL that does not parse, a `where` that does not fit, a
    path that this Spark has no client for. Files of text (CSV, JSON) are read once for it: text that is not UTF-8, and
    JSON that is no object a line.
    """
    return read_versioned(spark, source, label)[0]


def read_versioned(spark: SparkSession, source: Source, label: str) -> tuple[DataFrame, str | None]:
    """The same with the table's version (see source_version), held to it whatever is committed while it is read."""
    version = version_of_now(spark, source, label)
    with _told(spark, source, label):
        if (problem := plain_text.what_is_wrong(spark, source)) is not None:
            raise InputError(f"{label} ({source}): {problem}")
        held = at_version(source, version)
        frame = _load(spark, held)
        if (problem := _wrong_columns(frame, held)) is not None:
            raise InputError(f"{label} ({source}): {problem}")
        return frame.where(held.where) if held.where else frame, version


def version_of_now(spark: SparkSession, source: Source, label: str) -> str | None:
    """As source_version; raises InputError as `read_source`."""
    with _told(spark, source, label):
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
def _told(spark: SparkSession, source: Source, label: str) -> Iterator[None]:
    named = f"{label} ({source})"
    try:
        yield
    except InputError:
        raise
    except AnalysisException as error:
        raise InputError(f"{named}: {_reason(error, source)}") from None
    except PySparkException as error:
        raise InputError(f"{named}: {first_line(error)}") from None
    except Exception as error:  # Spark passes these on as the bare errors of its gateway
        problem = _problem(spark, source, error)
        if problem is None:
            raise
        raise InputError(f"{named}: {problem}") from None


def _problem(spark: SparkSession, source: Source, error: Exception) -> str | None:
    """What a bare error of the gateway says of the input; None where that is not to blame."""
    if "DATA_SOURCE_NOT_FOUND" in str(error):
        return f"this Spark cannot read {source.format}; add its package (spark.jars.packages)"
    if source.format == "json" and "FAILFAST" in str(error):
        return _bad_json(spark, source)
    return _bad_file(error) or files.no_client(spark, source.path or "", error)


def _bad_json(spark: SparkSession, source: Source) -> str:
    line = plain_text.first_bad_json(spark, source)
    found = "" if line is None else f"{line} is {plain_text.excerpt(line.data)}; "
    if plain_text.is_multi_line(source):
        return f"{found}under multiLine each file has to be one whole array of objects, or one object"
    return (
        f'{found}each line has to be one whole object; set options: {{multiLine: "true"}} where a file is one array or '
        "one object, or {mode: DROPMALFORMED} to leave such lines out"
    )


def _bad_file(error: Exception) -> str | None:
    """What is wrong with a file as a whole: another format than stated, or compressed data that breaks off."""
    text = str(error)
    for kind, pattern in _OTHER_FORMAT.items():
        if found := pattern.search(text):
            name = shown_path(found[1])
            return (
                f"{name} is not {kind} file; say what it is (format: csv, say), or take it out of the folder"
            )
    if _DECOMPRESSOR in text and _BROKEN_FILE.search(text):
        name = unreadable_file(error) or "a compressed file"  # Spark 3.5 does not say which
        return f"{name} breaks off, or is not compressed as its name says; copy it again"
    return None


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
    except InputError:
        raise
    except Exception as error:  # Spark passes some on as the bare errors of its gateway
        if problem := _bad_file(error):
            raise InputError(f"an input table: {problem}") from None
        found = _BAD_CSV.search(str(error)) or _BAD_LINE.search(str(error))
        if found is None:
            raise
        file = unreadable_file(error)
        where = f"an input line of {file}" if file else "an input line"
        what = _SQLSTATE.sub("", found[1])
        raise InputError(
            f"{where} cannot be read: {what:.500} (CSV: is a text with a comma or quote in it not quoted? JSON: is it "
            "one whole object a line?)"
        ) from None


def is_text_typed(source: Source) -> bool:
    """Whether every column arrives as text: CSV without a schema of its own, JSON that is told to be so."""
    options = {name.lower(): value.lower() for name, value in source.options.items()}
    is_told = source.format == "json" and options.get("primitivesasstring") == "true"
    return source.path is not None and (source.format == "csv" or is_told)


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
    options = {**_DEFAULTS.get(source.format, {}), **source.options}
    return spark.read.format(source.format).options(**options).load(source.path)


def _wrong_columns(frame: DataFrame, source: Source) -> str | None:
    """What a file of text's columns say of how it is read; None where they may be right."""
    if source.path is None or source.format not in _DEFAULTS:
        return None
    if not frame.columns:
        return "there is nothing in it" + ("; a CSV has a header line" if source.format == "csv" else "")
    if source.format == "json":
        return None
    first = frame.columns[0]
    if "\x00" in first:
        return "it looks like UTF-16; set options: {encoding: UTF-16LE}, say, or save it as UTF-8"
    if first.lstrip("[").startswith('{"'):
        return f"its first line begins with {first[:40]!r}: is it JSON (format: json)?"
    found = [name for name in _SEPARATORS if name in first]
    if len(frame.columns) > 1 or not found:
        return None
    separator = max(found, key=first.count)
    return (
        f"its header line is one column, {first[:100]!r}; if {_SEPARATORS[separator]} are between its columns, set "
        f"options: {{sep: {json.dumps(separator)}}}"
    )


def _reason(error: AnalysisException, source: Source) -> str:
    condition = _condition(error)
    if is_missing_path(error):
        return "there is nothing at this path"
    if condition == "UNABLE_TO_INFER_SCHEMA":
        return f"no {source.format} files in this folder; check the path and input format"
    if condition == "TABLE_OR_VIEW_NOT_FOUND":
        return f"no such table or view; {first_line(error)}"
    if condition == "COLUMN_ALREADY_EXISTS":
        return (
            f"two columns have one name, capitals aside (in JSON: keys of any two lines); {first_line(error)}"
        )
    return first_line(error)
