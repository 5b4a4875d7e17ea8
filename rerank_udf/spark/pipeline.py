"""The reranking job, top to bottom.

    read → prepare (reasons, keys) → stage once → score each distinct pair → join back, rank → publish → report

Scoring and publishing are separate plans: nothing follows the Python operator but a plain Parquet write, and nothing
before or after that write runs Python.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from rich.console import Console

from rerank_udf import tables
from rerank_udf.config import JobConfig
from rerank_udf.engine import ScorerPlan
from rerank_udf.errors import InputError, RerankError, TooManyRejectsError
from rerank_udf.lake import files, targets, versions
from rerank_udf.lake.sources import bad_lines_told, is_text_typed, read_source
from rerank_udf.report import RunReport, new_report
from rerank_udf.spark.candidates import Prepared, Shape, prepare
from rerank_udf.spark.model import plan_for_job
from rerank_udf.spark.progress import ScoringProgress
from rerank_udf.spark.ranking import Outcome, check_fusion, nested, outcome, rejected
from rerank_udf.spark.scoring import co_partitioned, scored
from rerank_udf.spark.session import slots

MAX_PAIRS_PER_PASSAGE = 4096
_PAIRS_PER_TASK = 20_000
_FEWEST_PAIRS_PER_TASK = 512
_ROWS_PER_FILE = 1_000_000
_FEWEST_ROWS_PER_FILE = 50_000
_STALE_SECONDS = 24 * 3600.0
_SCORED = "_scored"
_ARROW_BATCH_BYTES = 64 << 20
_ARROW_RECORDS = "spark.sql.execution.arrow.maxRecordsPerBatch"


@dataclass(frozen=True)
class Staged:
    """The run's own copy of what it works on, as Parquet: `rows` without texts, `pairs` and `passages` with."""

    rows: DataFrame
    pairs: DataFrame
    passages: DataFrame
    pairs_distinct: int


def run_rerank(spark: SparkSession, config: JobConfig, console: Console, command: str = "") -> RunReport:
    """Rerank what `config` names and publish it; every input row ends ranked, cut or rejected.

    Raises InputError or ConfigError before any work where the input contract is broken as a whole, ModelError where
    the model cannot be used, TooManyRejectsError after rejects and report are written and before anything is
    published.
    """
    run_id = versions.new_run_id()
    sources = {name: str(source) for name, source in config.sources().items()}
    report = new_report(run_id, command, config.model_dump(mode="json"), sources, config.evaluation.seed)
    with report.phase("prepare"):
        prepared = read_and_prepare(spark, config)
        plan = plan_for_job(spark, config.model)
        report.model, report.model_key = _model_facts(plan), plan.model_key
    with _work_folder(spark, config, run_id) as folder:
        with report.phase("stage"), bad_lines_told():
            staged = stage(spark, prepared, folder)
            _count_input(report, prepared, staged)
        _stop_if_too_many_rejects(spark, config, report, staged)
        with report.phase("score"):
            facts = score(spark, staged, plan, folder, console)
        with report.phase("publish"):
            _count_scored(report, facts)
            tasks = publishing_tasks(report.pairs_in, slots(spark))
            result = outcome(staged.rows, facts, config.ranking, tasks)
            publish(spark, config, report, result)
    write_report(spark, config, report)
    return report


# --- read, prepare ---


def read_and_prepare(spark: SparkSession, config: JobConfig) -> Prepared:
    """The configured tables as rows with keys and reasons; raises for whatever is wrong with them as a whole."""
    given = config.input
    candidates = read_source(spark, given.candidates, "input.candidates")
    queries = read_source(spark, given.queries, "input.queries") if given.queries else None
    passages = read_source(spark, given.passages, "input.passages") if given.passages else None
    shape = Shape(
        columns=given.columns,
        nested=given.nested,
        query_template=given.query_template,
        passage_template=given.passage_template,
        depth=config.ranking.depth,
        keep_columns=config.output.keep_columns,
        limit_queries=given.limit_queries,
        lenient_numbers=is_text_typed(given.candidates),
        reserved=(tables.RUN_DATE,) if config.output.reranked.run_date else (),
    )
    prepared = prepare(candidates, queries, passages, shape)
    check_fusion(config.ranking.fusion, prepared)
    return prepared


def _model_facts(plan: ScorerPlan) -> dict[str, Any]:
    facts = asdict(plan.files)
    return {**facts, "precision": plan.precision, **asdict(plan.limits)}


# --- stage ---


@contextmanager
def _work_folder(spark: SparkSession, config: JobConfig, run_id: str) -> Iterator[str]:
    """A folder for this run alone, gone when the run ends; those of runs that were killed go after a day."""
    work = config.work_path()
    for name in files.children(spark, work):
        if _is_abandoned(spark, work, name):
            files.remove(spark, f"{work}/{name}")
    folder = f"{work}/{run_id}"
    try:
        yield folder
    finally:
        files.remove(spark, folder)


def _is_abandoned(spark: SparkSession, work: str, name: str) -> bool:
    """A run's folder (nothing else is ours to delete) that began, and last had a task finish, over a day ago."""
    began = versions.run_age(name)
    if began is None or began <= _STALE_SECONDS:
        return False
    finished = files.children(spark, f"{work}/{name}/{_SCORED}").values()
    return min(finished, default=began) > _STALE_SECONDS


def stage(spark: SparkSession, prepared: Prepared, folder: str) -> Staged:
    """Write rows, distinct pairs and their passages once, so that later plans read the same input whatever changes."""
    prepared.rows.write.parquet(f"{folder}/rows")
    rows = spark.read.parquet(f"{folder}/rows")
    _distinct_pairs(rows, prepared.queries).write.parquet(f"{folder}/pairs")
    pairs = spark.read.parquet(f"{folder}/pairs")
    _used_passages(pairs, prepared.passages).write.parquet(f"{folder}/passages")
    return Staged(rows, pairs, spark.read.parquet(f"{folder}/passages"), pairs.count())


def _distinct_pairs(rows: DataFrame, queries: DataFrame) -> DataFrame:
    """pair_key, query_key, passage_key, query of what is to be scored, each pair once."""
    to_score = F.col(tables.REASON).isNull() & ~F.col("beyond_depth")
    # Distinct over all three: the pair's key decides the other two, and hashing is cheaper than sorting.
    keys = rows.where(to_score).select(tables.PAIR_KEY, tables.QUERY_KEY, tables.PASSAGE_KEY).distinct()
    return keys.join(queries.dropDuplicates([tables.QUERY_KEY]), tables.QUERY_KEY)


def _used_passages(pairs: DataFrame, passages: DataFrame) -> DataFrame:
    """passage_key, passage of the passages that stand in `pairs`, each once; others are dropped before they travel."""
    used = pairs.select(tables.PASSAGE_KEY).distinct()
    return passages.join(used, tables.PASSAGE_KEY, "left_semi").dropDuplicates([tables.PASSAGE_KEY])


def _count_input(report: RunReport, prepared: Prepared, staged: Staged) -> None:
    by_reason = staged.rows.groupBy(tables.REASON).count().collect()
    report.pairs_in = sum(row["count"] for row in by_reason)
    report.rejects = {row[tables.REASON]: row["count"] for row in by_reason if row[tables.REASON]}
    report.pairs_distinct = staged.pairs_distinct
    if prepared.queries_without_candidates is not None:
        report.queries_without_candidates = prepared.queries_without_candidates.count()
    if not report.pairs_in:
        raise InputError(
            f"candidates is empty: 0 rows in {report.inputs['input.candidates']}; nothing was published, and what was "
            "published before stands"
        )


# --- score ---


def score(spark: SparkSession, staged: Staged, plan: ScorerPlan, folder: str, console: Console) -> DataFrame:
    """Score every staged pair and return the finished facts (scoring.SCORED_SCHEMA) as Parquet.

    A finished task's file is whole and in place at once (committer version 2).
    """
    place = f"{folder}/{_SCORED}"
    progress = ScoringProgress(spark, staged.pairs_distinct, console)
    laid_out = co_partitioned(
        staged.pairs,
        staged.passages,
        scoring_tasks(staged.pairs_distinct, slots(spark)),
        MAX_PAIRS_PER_PASSAGE,
    )
    facts = scored(laid_out, plan, progress.pairs, progress.tokens)
    with _small_arrow_batches(spark, staged), progress.shown():
        facts.write.option("mapreduce.fileoutputcommitter.algorithm.version", "2").parquet(place)
    return spark.read.parquet(place)


@contextmanager
def _small_arrow_batches(spark: SparkSession, staged: Staged) -> Iterator[None]:
    """Spark 3.5 fills an Arrow batch by rows alone: there, few enough that the longest texts fit.

    From 4.0 on a batch has a limit in bytes (spark.sql.execution.arrow.maxBytesPerBatch) and nothing is changed.
    """
    if int(spark.version.split(".")[0]) >= 4:
        yield
        return
    before = int(str(spark.conf.get(_ARROW_RECORDS)))
    fitting = max(1, _ARROW_BATCH_BYTES // max(1, _longest_pair_bytes(staged)))
    spark.conf.set(_ARROW_RECORDS, min(fitting, before) if before > 0 else fitting)
    try:
        yield
    finally:
        spark.conf.set(_ARROW_RECORDS, before)


def _longest_pair_bytes(staged: Staged) -> int:
    longest = [
        frame.agg(F.max(F.octet_length(column))).collect()[0][0] or 0
        for frame, column in ((staged.pairs, tables.QUERY), (staged.passages, tables.PASSAGE))
    ]
    return int(sum(longest))


def scoring_tasks(pairs: int, slots: int) -> int:
    """How many tasks score `pairs`: all slots busy, four rounds where each has enough to sort by length."""
    rounds = min(4 * slots, pairs // _FEWEST_PAIRS_PER_TASK)
    return max(1, min(slots, pairs), rounds, math.ceil(pairs / _PAIRS_PER_TASK))


def _count_scored(report: RunReport, facts: DataFrame) -> None:
    by_scorer = facts.groupBy(tables.SCORER).agg(
        F.count(F.lit(1)).alias("pairs"),
        F.sum(tables.TOKENS).alias("tokens"),
        F.sum(F.col(tables.TRUNCATED).cast("int")).alias("truncated"),
    )
    found = by_scorer.collect()
    report.pairs_scored = sum(row["pairs"] for row in found)
    report.tokens = sum(row["tokens"] for row in found)
    report.pairs_truncated = sum(row["truncated"] for row in found)
    report.models_loaded = len(found)
    report.devices = sorted({_device(row[tables.SCORER]) for row in found})
    report.tokens_per_second = round(report.tokens / max(report.seconds.get("score", 0.0), 1e-9), 1)


def _device(label: str) -> str:
    """`host/pid/device/load` → `host/device`."""
    host, _, device, _ = label.rsplit("/", 3)
    return f"{host}/{device}"


# --- publish ---


def publishing_tasks(rows: int, slots: int) -> int:
    """How many tasks rank and publish `rows`, and how many files they write: all slots busy, no crumbs."""
    return max(1, min(slots, rows // _FEWEST_ROWS_PER_FILE), math.ceil(rows / _ROWS_PER_FILE))


def publish(spark: SparkSession, config: JobConfig, report: RunReport, result: Outcome) -> None:
    """Write rejects, then, if there are not too many, the reranked table; fill in the report's counts."""
    rows = result.rows.persist()
    decided = Outcome(rows, result.fused)
    try:
        counts = decided.counts()
        report.ranked = counts["ranked"].get("", 0)
        report.cut, report.rejects = counts["cut"], counts["rejects"]
        if report.unaccounted():
            raise RerankError(
                f"{report.unaccounted()} input rows are unaccounted for; this is a defect, please report it"
            )
        decided.rejects().write.mode("overwrite").parquet(config.output.rejects.path)
        report.output["rejects"] = config.output.rejects.path
        _refuse_too_many(spark, config, report)
        table = decided.reranked()
        table = nested(table) if config.output.layout == "nested" else table
        facts = {"run_id": report.run_id, "model_key": report.model_key, "rows": report.ranked}
        report.output.update(targets.publish(spark, table, config.output.reranked, report.run_id, facts))
    finally:
        rows.unpersist()


def _stop_if_too_many_rejects(
    spark: SparkSession, config: JobConfig, report: RunReport, staged: Staged
) -> None:
    """Before anything is scored: the input's own rejects alone may already be too many."""
    if not _too_many(config, report):
        return
    rejected(staged.rows).write.mode("overwrite").parquet(config.output.rejects.path)
    report.output["rejects"] = config.output.rejects.path
    report.cut = {tables.Cut.STOPPED: report.pairs_in - report.rejected()}
    _refuse_too_many(spark, config, report)


def _too_many(config: JobConfig, report: RunReport) -> bool:
    return report.rejected() > config.run.max_reject_fraction * report.pairs_in


def _refuse_too_many(spark: SparkSession, config: JobConfig, report: RunReport) -> None:
    if not _too_many(config, report):
        return
    write_report(spark, config, report)
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(report.rejects.items()))
    raise TooManyRejectsError(
        f"{report.rejected():,} of {report.pairs_in:,} rows rejected ({reasons}), more than run.max_reject_fraction "
        f"{config.run.max_reject_fraction:g} allows; nothing was published. Each row and its reason: "
        f"{config.output.rejects.path}. Mend the input, or allow more"
    )


# --- report ---


def write_report(spark: SparkSession, config: JobConfig, report: RunReport) -> None:
    """Write run_report.json into `run.report`."""
    path = f"{config.run.report.rstrip('/')}/run_report.json"
    report.output["report"] = path
    files.write_text(spark, path, report.to_json())
