"""The input's rows with their keys, written once; a run that died leaves them to the next run of the same input.

    <work>/staged/<fingerprint>/<run_id>/rows            columns: see spark/candidates.py
    <work>/staged/<fingerprint>/<run_id>/_complete.json  written last

The fingerprint covers the plan that made the rows and every file it reads, with size and time of change; for input
whose files Spark does not tell (Iceberg, JDBC, a cached table) there is none, and its rows are always written anew.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from pyspark.sql import DataFrame, SparkSession

from rerank_udf import __version__
from rerank_udf.lake import files

COMPLETE = "_complete.json"
# Leaves whose content is that of the files that `inputFiles` names, Delta's among them.
_FILE_LEAVES = ("LogicalRelation",)
_UNKNOWN = "unknown"


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
        if files.read_text(spark, f"{folder}/{COMPLETE}") is not None:
            return StagedRows(spark.read.schema(schema).parquet(f"{folder}/rows"), folder, True)
    folder = f"{parent}/{run_id}"
    rows.write.parquet(f"{folder}/rows")
    files.write_text(spark, f"{folder}/{COMPLETE}", json.dumps({"run_id": run_id}) + "\n")
    return StagedRows(spark.read.schema(schema).parquet(f"{folder}/rows"), folder, False)


def fingerprint(spark: SparkSession, frame: DataFrame, settings: str) -> str | None:
    """32 hex digits over what decides a frame's content, `settings` among it; None where that cannot be known.

    Spark has put the current date and time, and the seeds of random functions, into the optimised plan, so that a
    plan with them is another one every time.
    """
    execution: Any = frame._jdf.queryExecution()
    plan = execution.optimizedPlan()
    leaves = plan.collectLeaves()
    kinds = {leaves.apply(i).getClass().getSimpleName() for i in range(leaves.size())}
    if not kinds <= set(_FILE_LEAVES):
        return None
    digest = hashlib.sha256(f"{__version__} {spark.version} {settings}\n".encode())
    digest.update(str(plan.canonicalized().toString()).encode())
    for line in _file_facts(spark, list(frame.inputFiles())):
        digest.update(line.encode())
    return digest.hexdigest()[:32]


def _file_facts(spark: SparkSession, paths: list[str]) -> list[str]:
    """name, bytes and time of change of every file, in order; folder by folder, since that is one question each."""
    by_folder: dict[str, set[str]] = defaultdict(set)
    for path in paths:
        folder, _, name = path.rpartition("/")
        by_folder[folder].add(name)
    facts = []
    for folder, names in sorted(by_folder.items()):
        for entry in files.entries(spark, folder):
            if entry.name in names:
                facts.append(f"{folder}/{entry.name} {entry.bytes} {entry.modified}\n")
    return facts
