"""Plain Parquet that changes all at once for its readers.

    out/_versions/<run_id>/part-*.parquet     immutable
    out/_current/latest.json                  {"version": "<run_id>", ...}, replaced last
    out/_current/run_date=2026-01-31.json     the same, one a run date, where run dates are used

`read_reranked` follows the pointer. A plain `spark.read.parquet(out)` fails, since Spark passes over names that begin
with an underscore; a version's own path is plain Parquet. The pointer stands in a folder of its own because Spark also
refuses to read a *file* whose name begins with an underscore, and through Spark Connect reading is all there is.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from typing import Any

from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from rerank_udf import tables
from rerank_udf.errors import InputError
from rerank_udf.lake import files

VERSIONS = "_versions"
CURRENT = "_current"


def publish(
    spark: SparkSession,
    frame: DataFrame,
    path: str,
    *,
    run_id: str,
    run_date: datetime.date | None,
    keep_versions: int,
    facts: Mapping[str, Any],
) -> str:
    """Write `frame` as a version, point readers at it, delete versions beyond the newest `keep_versions`.

    `facts` are kept in the pointer beside the version's name. Returns the version's own path.
    """
    root = path.rstrip("/")
    version = f"{root}/{VERSIONS}/{run_id}"
    frame.write.mode("errorifexists").parquet(version)
    pointer = {
        "version": run_id,
        "published_at": datetime.datetime.now(datetime.timezone.utc).isoformat(),
        **facts,
    }
    files.write_text(spark, _pointer(root, run_date), json.dumps(pointer, indent=2) + "\n")
    _forget_old(spark, root, keep_versions)
    return version


def read_reranked(spark: SparkSession, path: str, run_date: str | datetime.date | None = None) -> DataFrame:
    """The published table at `path`: the newest version, or that of one run date.

    A whole version, whatever is being published meanwhile. With dated runs and no `run_date`, the rows of all dates
    with a `run_date` column. Works through Spark Connect. Raises InputError where nothing has been published.
    """
    root = path.rstrip("/")
    if run_date is not None:
        version = _version(spark, _pointer(root, run_date))
        if version is None:
            raise InputError(f"nothing published at {path} for run date {run_date}")
        return spark.read.parquet(f"{root}/{VERSIONS}/{version}")
    version = _version(spark, _pointer(root, None))
    if version is not None:
        return spark.read.parquet(f"{root}/{VERSIONS}/{version}")
    dated = _dated(spark, root)
    if not dated:
        raise InputError(
            f"nothing published at {path}: no {CURRENT}/latest.json there; has the job finished once?"
        )
    frames = [
        spark.read.parquet(f"{root}/{VERSIONS}/{name}").withColumn(tables.RUN_DATE, F.lit(date).cast("date"))
        for date, name in sorted(dated.items())
    ]
    united = frames[0]
    for frame in frames[1:]:
        united = united.unionByName(frame, allowMissingColumns=True)
    return united


def _pointer(root: str, run_date: str | datetime.date | None) -> str:
    name = "latest" if run_date is None else f"{tables.RUN_DATE}={run_date}"
    return f"{root}/{CURRENT}/{name}.json"


def _version(spark: SparkSession, pointer: str) -> str | None:
    try:
        lines = spark.read.text(pointer, wholetext=True).collect()
    except AnalysisException:
        return None
    return str(json.loads(lines[0][0])["version"]) if lines else None


def _dated(spark: SparkSession, root: str) -> dict[str, str]:
    """Run date → version, from every dated pointer."""
    try:
        found = spark.read.text(f"{root}/{CURRENT}/{tables.RUN_DATE}=*.json", wholetext=True)
        rows = found.select(F.col("value"), F.input_file_name().alias("file")).collect()
    except AnalysisException:
        return {}
    dates = {row["file"].rsplit("=", 1)[-1].removesuffix(".json"): row["value"] for row in rows}
    return {date: str(json.loads(value)["version"]) for date, value in dates.items()}


def _forget_old(spark: SparkSession, root: str, keep: int) -> None:
    """Delete all but the newest `keep` versions, never one that a pointer names."""
    pointed = set(_dated(spark, root).values()) | {_version(spark, _pointer(root, None))}
    ages = files.children(spark, f"{root}/{VERSIONS}")
    newest_first = sorted(ages, key=lambda name: (ages[name], name))
    for name in newest_first[keep:]:
        if name not in pointed:
            files.remove(spark, f"{root}/{VERSIONS}/{name}")
