"""Plain Parquet that changes all at once for its readers.

    out/_versions/<run_id>/part-*.parquet     immutable
    out/_current/latest.json                  {"version": "<run_id>", "kept": [...], ...}, replaced last
    out/_current/run_date=2026-01-31.json     the same, one a run date, where run dates are used

`read_reranked` follows the pointer. A plain `spark.read.parquet(out)` fails, since Spark passes over names that begin
with an underscore; a version's own path is plain Parquet. The pointer stands in a folder of its own because Spark also
refuses to read a *file* whose name begins with an underscore, and through Spark Connect reading is all there is.
"""

from __future__ import annotations

import datetime
import json
import logging
import re
import uuid
from collections.abc import Mapping
from typing import Any

from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from rerank_udf import tables
from rerank_udf.errors import InputError
from rerank_udf.lake import files
from rerank_udf.lake.sources import is_missing_path

VERSIONS = "_versions"
CURRENT = "_current"
ANY = "any"
_RUN_ID = re.compile(r"(\d{8}T\d{6})Z-[0-9a-f]{6}")
_NAME = re.compile(r"[\w-]+")  # of one folder
_log = logging.getLogger(__name__)
_ORPHAN_SECONDS = 24 * 3600.0


def new_run_id() -> str:
    """`20260131T235959Z-1a2b3c`: the time in UTC, and something random for runs that begin together."""
    return f"{datetime.datetime.now(datetime.timezone.utc):%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:6]}"


def run_age(name: str) -> float | None:
    """Seconds since the run began whose id is `name`; None where it is no run's id.

    By the name, since folders on object stores have no time of their own.
    """
    found = _RUN_ID.fullmatch(name)
    if found is None:
        return None
    began = datetime.datetime.strptime(found[1], "%Y%m%dT%H%M%S").replace(tzinfo=datetime.timezone.utc)
    return (datetime.datetime.now(datetime.timezone.utc) - began).total_seconds()


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
    """Write `frame` as a version, point readers at it, delete all but `keep_versions` of this pointer's versions.

    `facts` are kept in the pointer beside the version's name. Returns the version's own path. Runs for other dates
    may publish at the same time: a pointer names the versions that are its own to delete.
    """
    root = path.rstrip("/")
    version = f"{root}/{VERSIONS}/{run_id}"
    frame.write.mode("errorifexists").parquet(version)
    place = _pointer(root, run_date)
    before = _content(spark, place)
    history = [run_id, *(before.get("kept", []) if before else [])]
    pointer = {
        **facts,
        "version": run_id,
        "published_at": datetime.datetime.now(datetime.timezone.utc).isoformat(),
        "kept": history[:keep_versions],
    }
    files.write_text(spark, place, json.dumps(pointer, indent=2) + "\n")
    for name in history[keep_versions:]:  # readers have the new version already, here and below
        files.clear(spark, f"{root}/{VERSIONS}/{name}")
    try:
        _forget_orphans(spark, root)
    except Exception as error:
        _log.warning("versions that dead runs left in %s cannot be deleted: %s", root, error)
    return version


def read_reranked(spark: SparkSession, path: str, run_date: str | datetime.date | None = ANY) -> DataFrame:
    """The published table at `path`: the newest version, or that of one run date.

    A whole version, whatever is being published meanwhile. With dated runs and no `run_date`, the rows of all dates
    with a `run_date` column. Works through Spark Connect. Raises InputError where nothing has been published, and
    where runs with a date and runs without one have published there: one of them is then to be asked for, the latter
    by `run_date=None`.
    """
    root = path.rstrip("/")
    if run_date not in (None, ANY):
        pointer = _content(spark, _pointer(root, run_date))
        if pointer is None:
            raise InputError(f"nothing published at {path} for run date {run_date}")
        return spark.read.parquet(f"{root}/{VERSIONS}/{pointer['version']}")
    pointer = _content(spark, _pointer(root, None))
    dated = _dated(spark, root) if pointer is None or run_date == ANY else {}
    if pointer is not None and dated:
        first, last = min(dated), max(dated)
        dates = f"run date {first}" if first == last else f"{len(dated):,} run dates ({first} to {last})"
        raise InputError(
            f"{path} holds a table without a run date (published {pointer.get('published_at')}) and those of {dates}; "
            f"say which is meant: run_date='{last}', or run_date=None for the one without"
        )
    if pointer is not None:
        return spark.read.parquet(f"{root}/{VERSIONS}/{pointer['version']}")
    if not dated:
        raise InputError(
            f"nothing published at {path}: no {CURRENT}/latest.json there; has the job finished once?"
        )
    frames = [
        spark.read.parquet(f"{root}/{VERSIONS}/{pointer['version']}").withColumn(
            tables.RUN_DATE, F.lit(date).cast("date")
        )
        for date, pointer in sorted(dated.items())
    ]
    united = frames[0]
    for frame in frames[1:]:
        united = united.unionByName(frame, allowMissingColumns=True)
    return united


def facts_of(spark: SparkSession, path: str, run_date: datetime.date | None) -> dict[str, Any] | None:
    """What `publish` was given as `facts` for the table that stands now, and more; None where none does."""
    return _content(spark, _pointer(path.rstrip("/"), run_date))


def _pointer(root: str, run_date: str | datetime.date | None) -> str:
    name = "latest" if run_date is None else f"{tables.RUN_DATE}={run_date}"
    return f"{root}/{CURRENT}/{name}.json"


def _content(spark: SparkSession, pointer: str) -> dict[str, Any] | None:
    """What a pointer holds; None where there is none."""
    try:
        lines = spark.read.text(pointer, wholetext=True).collect()
    except AnalysisException as error:
        if is_missing_path(error):
            return None
        raise
    return _pointed(pointer, lines[0][0]) if lines else None


def _dated(spark: SparkSession, root: str) -> dict[str, dict[str, Any]]:
    """Run date → what its pointer holds."""
    try:
        found = spark.read.text(f"{root}/{CURRENT}/{tables.RUN_DATE}=*.json", wholetext=True)
        rows = found.select(F.col("value"), F.col("_metadata.file_name").alias("file")).collect()
    except AnalysisException as error:
        if is_missing_path(error):
            return {}
        raise
    dates = {row["file"].rsplit("=", 1)[-1].removesuffix(".json"): row["value"] for row in rows}
    return {date: _pointed(_pointer(root, date), value) for date, value in dates.items()}


def _pointed(pointer: str, text: str) -> dict[str, Any]:
    """What a pointer says. It names folders to read and to delete: none that lies elsewhere."""
    try:
        found = dict(json.loads(text))
        names = [found["version"], *found.get("kept", [])]
        odd = [name for name in names if _NAME.fullmatch(str(name)) is None]
    except (ValueError, TypeError, KeyError):
        found, odd = {}, [text[:80]]
    if odd:
        raise InputError(
            f"{pointer} is not what this job writes: expected names of folders in {VERSIONS}, found {odd[0]!r}; "
            "restore it, or delete it and publish again"
        )
    return found


def _forget_orphans(spark: SparkSession, root: str) -> None:
    """Delete versions that no pointer keeps and nobody has written to for a day: their runs died on the way."""
    pointers = [*_dated(spark, root).values(), _content(spark, _pointer(root, None)) or {}]
    kept = {name for pointer in pointers for name in (pointer.get("version"), *pointer.get("kept", []))}
    for name in files.children(spark, f"{root}/{VERSIONS}"):
        age = run_age(name)
        if age is None or age <= _ORPHAN_SECONDS or name in kept:
            continue
        written = files.youngest(spark, f"{root}/{VERSIONS}/{name}")
        if written is None or written > _ORPHAN_SECONDS:
            files.remove(spark, f"{root}/{VERSIONS}/{name}")
