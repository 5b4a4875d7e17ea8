"""From finished tasks' files to the store: what a wave has just written, and what a run that died left behind.

    <work>/scored/<model_key>/<run_id>/<wave>/part-*.parquet
    <work>/scored/<model_key>/<run_id>/_appended.json            the files that are in the store already

A finished task's file is whole, and every fact in it is true, whatever became of its run. So each run begins by
appending what others left. Nothing here runs Python on an executor.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from rerank_udf import tables
from rerank_udf.lake import files
from rerank_udf.lake.store import FACTS_SCHEMA, ScoreStore, append_id_of
from rerank_udf.spark.lookup import BROADCAST_ROWS, known_facts, unknown_facts
from rerank_udf.spark.scoring import SCORED_SCHEMA

APPENDED = "_appended.json"
_TRIES = 3


def adopt(spark: SparkSession, store: ScoreStore, model_key: str, folder: str) -> int:
    """Append what any run has finished below `folder` and not appended yet; how many new facts that were."""
    return sum(
        absorb(spark, store, model_key, f"{folder}/{run.name}")
        for run in files.entries(spark, folder)
        if run.is_folder
    )


def absorb(
    spark: SparkSession, store: ScoreStore, model_key: str, run_folder: str, *, own: bool = False
) -> int:
    """Append a run's finished files that are not in the store yet; how many new facts that were.

    `own`: of this run, which has staged nothing that the store knew.

    A live run may delete its files while another one adopts them: the files are then listed once more. Raises
    StoreError where the store cannot be written.
    """
    for attempt in range(_TRIES):
        names = finished_files(spark, run_folder)
        done = _appended(spark, run_folder)
        fresh = [name for name in names if name not in done]
        if not fresh:
            return 0
        try:
            added = _append(spark, store, model_key, run_folder, fresh, own)
        except Exception:
            still_there = set(finished_files(spark, run_folder))
            if attempt + 1 == _TRIES or still_there >= set(fresh):
                raise
            continue
        files.write_text(spark, f"{run_folder}/{APPENDED}", json.dumps(sorted({*done, *fresh})) + "\n")
        return added
    return 0


def finished_files(spark: SparkSession, run_folder: str) -> list[str]:
    """`<wave>/part-….parquet` of every task of a run that has finished."""
    return [
        f"{wave.name}/{part.name}"
        for wave in files.entries(spark, run_folder)
        if wave.is_folder
        for part in files.entries(spark, f"{run_folder}/{wave.name}")
        if part.name.startswith("part-")
    ]


def read_scored(spark: SparkSession, run_folder: str, names: Sequence[str]) -> DataFrame | None:
    """The rows of such files (scoring.SCORED_SCHEMA); None where there are none."""
    if not names:
        return None
    # a session that passes over damaged files would lose scores here without a word
    reader = spark.read.schema(SCORED_SCHEMA).options(ignoreCorruptFiles="false", ignoreMissingFiles="false")
    return reader.parquet(*[f"{run_folder}/{name}" for name in names])


def _append(
    spark: SparkSession, store: ScoreStore, model_key: str, run_folder: str, names: Sequence[str], own: bool
) -> int:
    scored = read_scored(spark, run_folder, names)
    assert scored is not None
    facts = scored.where(F.col(tables.REASON).isNull()).select(*FACTS_SCHEMA.names)
    count = facts.count()
    if not count:
        return 0
    before = known_facts(store.facts(model_key))
    # Another run at once may have brought some of them: not worth a look into a large store, wave after wave.
    taken_as_new = own and before is not None and before.count > BROADCAST_ROWS
    fresh = facts if taken_as_new else unknown_facts(facts, count, before)
    run = run_folder.rsplit("/", 1)[-1]
    if not store.append(fresh, model_key, append_id_of(f"{run}/{name}" for name in names)):
        return 0
    after = known_facts(store.facts(model_key))
    return (after.count if after else 0) - (before.count if before else 0)


def _appended(spark: SparkSession, run_folder: str) -> set[str]:
    text = files.read_text(spark, f"{run_folder}/{APPENDED}")
    try:
        return set(json.loads(text)) if text else set()
    except (
        ValueError
    ):  # half a file, where a file system replaces none atomically: looking up again costs little
        return set()
