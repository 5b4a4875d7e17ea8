"""Reading a store's Parquet files, and which of them do not hold what was written to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from rerank_udf import tables
from rerank_udf.lake.failures import innermost_cause
from rerank_udf.lake.store import FACTS_SCHEMA

_KEY_BYTES = 16


def facts_in(spark: SparkSession, paths: Sequence[str], *, checked: bool = False) -> DataFrame:
    """The facts in these files, all of them: no session setting makes Spark pass over one that is damaged or gone.

    `checked`: every page's checksum is verified.
    """
    reader = spark.read.schema(FACTS_SCHEMA).options(ignoreCorruptFiles="false", ignoreMissingFiles="false")
    if checked:
        reader = reader.option("parquet.page.verify-checksum.enabled", "true")
    return reader.parquet(*paths)


def missing_or_cut(folder: str, expected: Mapping[str, int], present: Mapping[str, int]) -> dict[str, str]:
    """Path → problem of the files in `expected` (name → bytes) that are not in `present`, or of another size."""
    found = {}
    for name, size in expected.items():
        if name not in present:
            found[f"{folder}/{name}"] = "missing"
        elif present[name] != size:
            found[f"{folder}/{name}"] = f"{present[name]:,} bytes, expected {size:,}"
    return found


def damaged_files(spark: SparkSession, paths: Sequence[str]) -> dict[str, str]:
    """Path → problem of the files that cannot be read whole, or whose facts are no facts.

    Every page is read and its checksum verified. All at once first, and one by one only where that fails: then the
    damaged ones are known by name.
    """
    if not paths or _problem(spark, paths) is None:
        return {}
    each = {path: _problem(spark, [path]) for path in paths}
    return {path: problem for path, problem in each.items() if problem is not None}


def _problem(spark: SparkSession, paths: Sequence[str]) -> str | None:
    """What is wrong with these files, None where nothing is."""
    odd = (
        F.col(tables.PAIR_KEY).isNull()
        | (F.octet_length(tables.PAIR_KEY) != _KEY_BYTES)
        | F.col(tables.LOGIT).isNull()
        | F.isnan(tables.LOGIT)
        | F.col(tables.TOKENS).isNull()
        | F.col(tables.TRUNCATED).isNull()
    )
    # the hash makes Spark decode every column of every row
    wanted = facts_in(spark, paths, checked=True).agg(
        F.sum(odd.cast("int")).alias("odd"), F.bit_xor(F.xxhash64(*FACTS_SCHEMA.names)).alias("all")
    )
    try:
        found = wanted.collect()[0]
    except Exception as error:  # whatever a damaged file makes Spark say, it is the file's damage
        return innermost_cause(error)
    return f"{found['odd']:,} rows are no facts" if found["odd"] else None
