"""The input's rows with their keys, written once; a run that died leaves them to the next run of the same input.

    <work>/staged/<fingerprint>/<run_id>/rows            columns: see spark/candidates.py
    <work>/staged/<fingerprint>/<run_id>/_complete.json  written last, and deleted first
    <work>/staged/<fingerprint>/<run_id>/_used_by/<id>   another run that reads them

The fingerprint covers the plan that made the rows and every file it reads, with size and time of change; for input
whose files Spark does not tell (Iceberg, JDBC, a cached table) there is none, and its rows are always written anew.

A user leaves its mark and then looks whether the rows are still offered; who deletes withdraws the offer and then looks
for marks. So at least one of them sees the other.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from pyspark.sql import DataFrame, SparkSession

from rerank_udf import __version__
from rerank_udf.lake import files

COMPLETE = "_complete.json"
_USED_BY = "_used_by"
_UNKNOWN = "unknown"
_ID = re.compile(
    r"(?:\b[a-z]_\d+)?#\d+"
)  # of a column; before it the name of a lambda's variable, which is counted too
_WORDS = re.compile(r"[\s(),]+")
_MOST_FIELDS = "spark.sql.debug.maxToStringFields"


@dataclass(frozen=True)
class StagedRows:
    """Rows as Parquet in `folder`; `reused`: another run wrote them."""

    frame: DataFrame
    folder: str
    reused: bool


def stage_rows(spark: SparkSession, rows: DataFrame, settings: str, work: str, run_id: str) -> StagedRows:
    """Write `rows`, or take those that a run before this one wrote of the same input.

    `settings`: whatever of the job's settings decides the rows.
    """
    schema = rows.schema
    found = fingerprint(spark, rows, settings)
    parent = f"{work}/staged/{found or _UNKNOWN}"
    for entry in reversed(files.entries(spark, parent)) if found else ():
        folder = f"{parent}/{entry.name}"
        if _is_offered(spark, folder):
            files.write_text(spark, f"{folder}/{_USED_BY}/{run_id}", "")
            if _is_offered(spark, folder):
                return StagedRows(spark.read.schema(schema).parquet(f"{folder}/rows"), folder, True)
            release(spark, folder, run_id)
    folder = f"{parent}/{run_id}"
    rows.write.parquet(f"{folder}/rows")
    files.write_text(spark, f"{folder}/{COMPLETE}", json.dumps({"run_id": run_id}) + "\n")
    return StagedRows(spark.read.schema(schema).parquet(f"{folder}/rows"), folder, False)


def _is_offered(spark: SparkSession, folder: str) -> bool:
    return files.read_text(spark, f"{folder}/{COMPLETE}") is not None


def release(spark: SparkSession, folder: str, run_id: str) -> None:
    """The run does not read another one's rows any more."""
    files.clear(spark, f"{folder}/{_USED_BY}/{run_id}")


def discard(spark: SparkSession, folder: str, is_alive: Callable[[str], bool]) -> None:
    """Delete staged rows, or, where a run that `is_alive` reads them, offer them to nobody else."""
    files.clear(spark, f"{folder}/{COMPLETE}")
    users = files.entries(spark, f"{folder}/{_USED_BY}")
    if not any(is_alive(user.name) for user in users):
        files.clear(spark, folder)


def fingerprint(spark: SparkSession, frame: DataFrame, settings: str) -> str | None:
    """32 hex digits over what decides a frame's content, `settings` among it; None where that cannot be known.

    Spark has put the current date and time, and the seeds of random functions, into the optimised plan, so that a
    plan with them is another one every time.
    """
    execution: Any = frame._jdf.queryExecution()
    plan = execution.optimizedPlan()
    leaves = plan.collectLeaves()
    versions = [_version_of_files(leaves.apply(i)) for i in range(leaves.size())]
    facts = None if None in versions else _file_facts(spark, sorted(frame.inputFiles()))
    if facts is None:
        return None
    with _nothing_left_out(spark):
        text = plan_text(str(plan.toString()), str(plan.canonicalized().toString()))
    digest = hashlib.sha256(f"{__version__} {spark.version} {settings}\n{versions}\n{text}".encode())
    for line in facts:
        digest.update(line.encode())
    return digest.hexdigest()[:32]


def plan_text(optimized: str, canonical: str) -> str:
    """What two texts of one plan say, the same in whatever JVM they were written.

    The optimised plan's ids are counted anew. Its canonical form has the operands of AND and OR in an order by hashes,
    some of which are new in each JVM; but it keeps a `#1` that stands in a text apart from a `#2`.
    """
    seen: dict[str, int] = {}
    counted = _ID.sub(lambda found: f"#{seen.setdefault(found[0], len(seen))}", optimized)
    return "\n".join([counted, *sorted(_WORDS.split(canonical))])


def _version_of_files(leaf: Any) -> str | None:
    """Of a leaf whose content is that of files: Delta's version, "" of plain files; None where it is anything else.

    Delta's, since it may delete rows without a change to the file that they lie in.
    """
    if leaf.getClass().getSimpleName() != "LogicalRelation":
        return None
    relation = leaf.relation()
    if relation.getClass().getSimpleName() != "HadoopFsRelation":
        return None
    index = relation.location()
    kind = str(index.getClass().getName())
    if kind.startswith("org.apache.spark.sql.execution.datasources."):
        return ""
    try:
        return str(index.tableVersion())
    except Exception:  # an index that we do not know: another vendor's, or another version's
        return None


@contextmanager
def _nothing_left_out(spark: SparkSession) -> Iterator[None]:
    """A plan's text with all its columns: by default Spark writes the first 25 of a node."""
    before = spark.conf.get(_MOST_FIELDS)
    spark.conf.set(_MOST_FIELDS, str(2**31 - 1))
    try:
        yield
    finally:
        spark.conf.set(_MOST_FIELDS, str(before))


def _file_facts(spark: SparkSession, paths: list[str]) -> list[str] | None:
    """Name, bytes and time of change of every file, in order; None where one is not found.

    Spark names its own files as URLs and Delta's as paths, so that `%20` may be a space or three characters.
    """
    listed: dict[str, dict[str, files.Entry]] = {}
    facts = []
    for path in paths:
        found = False
        for spelled in sorted({path, unquote(path)}):
            folder, _, name = spelled.rpartition("/")
            if folder not in listed:
                listed[folder] = {entry.name: entry for entry in files.entries(spark, folder)}
            entry = listed[folder].get(name)
            if entry is not None:
                found = True
                facts.append(f"{spelled} {entry.bytes} {entry.modified}\n")
        if not found:
            return None
    return facts
