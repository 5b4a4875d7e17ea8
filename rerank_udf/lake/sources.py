"""A configured source → a DataFrame, with Spark's long errors turned into one sentence."""

from __future__ import annotations

from pyspark.errors import AnalysisException, PySparkException
from pyspark.sql import DataFrame, SparkSession

from rerank_udf.config import Source
from rerank_udf.errors import InputError

# CSV as RFC 4180 has it: a header line, quotes doubled inside quotes, line breaks allowed in quoted text.
_CSV_DEFAULTS = {"header": "true", "multiLine": "true", "escape": '"'}


def read_source(spark: SparkSession, source: Source, label: str) -> DataFrame:
    """The table that `source` names; `label` (input.candidates, say) names it in errors.

    Raises InputError: no such path or table, an empty folder, SQL that does not parse, a `where` that does not fit.
    """
    try:
        frame = _load(spark, source)
        return frame.where(source.where) if source.where else frame
    except AnalysisException as error:
        raise InputError(f"{label} ({source}): {_reason(error, source)}") from None
    except PySparkException as error:
        raise InputError(f"{label} ({source}): {first_line(error)}") from None


def is_text_typed(source: Source) -> bool:
    """Whether every column arrives as text: CSV without a schema of its own."""
    return source.format == "csv" and source.path is not None


def first_line(error: Exception) -> str:
    """Spark's message without its plan, its position markers and its stack."""
    return str(error).strip().split("\n")[0].strip()


def _load(spark: SparkSession, source: Source) -> DataFrame:
    if source.sql:
        return spark.sql(source.sql)
    if source.table:
        return spark.table(source.table)
    options = {**_CSV_DEFAULTS, **source.options} if source.format == "csv" else source.options
    return spark.read.format(source.format).options(**options).load(source.path)


def _reason(error: AnalysisException, source: Source) -> str:
    condition = getattr(error, "getCondition", error.getErrorClass)() or ""
    if condition == "PATH_NOT_FOUND":
        return "there is nothing at this path"
    if condition == "UNABLE_TO_INFER_SCHEMA":
        return f"no {source.format} files in this folder; check the path and input format"
    if condition == "TABLE_OR_VIEW_NOT_FOUND":
        return f"no such table or view; {first_line(error)}"
    return first_line(error)
