"""The reranking job, top to bottom.

    read → prepare (reasons, keys) → stage rows → adopt what dead runs finished → stage the pairs that the store does
    not know → score them wave by wave, each appended to the store → join the facts back, rank → publish → report

Scoring, appending and publishing are separate plans: nothing follows the Python operator but a plain Parquet write,
and no other plan runs Python. The store is the only checkpoint: the same command after any death goes on.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from rich.console import Console

from rerank_udf import tables
from rerank_udf.config import JobConfig
from rerank_udf.engine import ScorerPlan
from rerank_udf.errors import InputError, RerankError, TooManyRejectsError
from rerank_udf.lake import files, targets, versions
from rerank_udf.lake.sources import at_version, bad_lines_told, is_text_typed, read_source, version_of_now
from rerank_udf.lake.store import ScoreStore, open_store
from rerank_udf.report import RunReport, new_report
from rerank_udf.spark.adoption import absorb, adopt
from rerank_udf.spark.candidates import Prepared, Shape, prepare
from rerank_udf.spark.figures import (
    lengths_of,
    ranking_figures,
    scored_parts,
    scoring_figures,
    times_of,
)
from rerank_udf.spark.lookup import KnownFacts, facts_of, known_facts
from rerank_udf.spark.model import plan_for_job
from rerank_udf.spark.placement import most_local_tasks, scoring_profile
from rerank_udf.spark.progress import ScoringProgress
from rerank_udf.spark.ranking import Outcome, check_fusion, nested, outcome, rejected
from rerank_udf.spark.reporting import published_all_the_same, write_report
from rerank_udf.spark.rows import StagedRows, stage_rows
from rerank_udf.spark.session import checked_classic, slots
from rerank_udf.spark.staging import PLACE, StagedPairs, stage_pairs
from rerank_udf.spark.waves import Scoring, Wave, scored_facts, small_arrow_batches
from rerank_udf.spark.workplace import Workplace, store_id_of

_log = logging.getLogger(__name__)
_ROWS_PER_FILE = 1_000_000
_FEWEST_ROWS_PER_FILE = 50_000
_ROUNDS = 2


def run_rerank(spark: SparkSession, config: JobConfig, console: Console, command: str = "") -> RunReport:
    """Rerank what `config` names and publish it; every input row ends ranked, cut or rejected.

    Pairs that the store knows are not scored. Raises InputError or ConfigError before any work where the input
    contract is broken as a whole, ModelError where the model cannot be used, StoreError where the store cannot,
    TooManyRejectsError after scores, rejects and report are written and before anything is published.
    """
    checked_classic(spark)
    run_id = versions.new_run_id()
    sources = {name: str(source) for name, source in config.sources().items()}
    report = new_report(run_id, command, config.model_dump(mode="json"), sources, config.evaluation.seed)
    with report.phase("prepare"):
        report.input_versions = _input_versions(spark, config)
        config = at_versions(config, report.input_versions)
        prepared = read_and_prepare(spark, config)
        plan = plan_for_job(spark, config.model)
        report.model, report.model_key = _model_facts(plan), plan.model_key
        check_target(spark, config, prepared)
        _check_places(spark, config)
        store = open_store(spark, config.store, config.store_path())
        work = _workplace(spark, config, plan.model_key, run_id)
    with work.kept_only_on_failure():
        with report.phase("stage"), bad_lines_told():
            rows = stage_rows(spark, prepared.rows, _rows_settings(config), work.root, run_id)
            work.uses(rows)
            _count_input(report, prepared, rows)
        job = Job(spark, config, report, plan, store, work, rows.frame, prepared, console)
        _stop_if_too_many_rejects(job)
        with report.phase("adopt"):
            report.store = {"place": store.place, "format": config.store.format}
            report.store["adopted"] = adopt(spark, store, plan.model_key, work.scored_of_all)
            work.clear_away_the_dead(partial(absorb, spark, store))
        with decided_rows(job) as decided, report.phase("publish"):
            publish(job, decided)
    again = "the same command scores nothing and writes it, once that is mended"
    with published_all_the_same(config, f"its report could not be written to {config.run.report}", again):
        write_report(spark, config, report, console)
    return report


def _workplace(spark: SparkSession, config: JobConfig, model_key: str, run_id: str) -> Workplace:
    settings, path = config.store, config.store_path()
    is_path = settings.table is None
    place = str(path if is_path else settings.table)
    store_id = store_id_of(spark, config.work_path(), settings.format, place, is_path=is_path)
    return Workplace(spark, config.work_path(), model_key, run_id, store_id)


@dataclass(frozen=True)
class Job:
    """What the steps below work with."""

    spark: SparkSession
    config: JobConfig
    report: RunReport
    plan: ScorerPlan
    store: ScoreStore
    work: Workplace
    rows: DataFrame
    prepared: Prepared
    console: Console


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


def check_target(spark: SparkSession, config: JobConfig, prepared: Prepared) -> None:
    """Raise InputError where the result could not be published in the end: other columns, say, or no such mode."""
    result = outcome(prepared.rows, Scored(None, None).as_one(prepared.rows), config.ranking)
    targets.check(spark, _as_published(result, config).schema, config.output.reranked)
    targets.check_replaced_folder(spark, config.output.rejects.path, "output.rejects.path")


def _check_places(spark: SparkSession, config: JobConfig) -> None:
    """Raise RerankError where nothing may be written at an output's place."""
    for name in ("output.reranked.path", "output.rejects.path", "run.report"):
        place = config.output_paths().get(name)
        problem = files.refusal(spark, place) if place else None
        if problem:
            raise RerankError(
                f"{name} {place} cannot be written to: {problem}. Nothing was scored; mend it, or give another place"
            )


def _as_published(decided: Outcome, config: JobConfig) -> DataFrame:
    table = decided.reranked()
    return nested(table) if config.output.layout == "nested" else table


def _input_versions(spark: SparkSession, config: JobConfig) -> dict[str, str]:
    """Of the inputs that have versions (Delta, Iceberg): the one that stands now, by the setting's name."""
    found = {name: version_of_now(spark, source, name) for name, source in config.sources().items()}
    return {name: version for name, version in found.items() if version is not None}


def at_versions(config: JobConfig, input_versions: Mapping[str, str]) -> JobConfig:
    """The job on its inputs as a run read them, `input_versions` of its report.

    So that an evaluation hours later is not one of other candidates, or by other judgements.
    """
    sources = config.sources()
    return config.with_sources(
        {name: at_version(sources[name], version) for name, version in input_versions.items()}
    )


def _model_facts(plan: ScorerPlan) -> dict[str, Any]:
    facts = asdict(plan.files)
    return {**facts, "precision": plan.precision, **asdict(plan.limits)}


# --- stage ---


def _rows_settings(config: JobConfig) -> str:
    """Everything in the settings that decides the staged rows, as text."""
    facts = {
        "input": config.input.model_dump(mode="json"),
        "depth": config.ranking.depth,
        "keep": config.output.keep_columns,
        "dated": config.output.reranked.run_date is not None,
    }
    return json.dumps(facts, sort_keys=True)


def _count_input(report: RunReport, prepared: Prepared, rows: StagedRows) -> None:
    by_reason = rows.frame.groupBy(tables.REASON).count().collect()
    report.pairs_in = sum(row["count"] for row in by_reason)
    report.rejects = {row[tables.REASON]: row["count"] for row in by_reason if row[tables.REASON]}
    if prepared.queries_without_candidates is not None:
        report.queries_without_candidates = prepared.queries_without_candidates.count()
    if not report.pairs_in:
        raise InputError(
            f"candidates is empty: 0 rows in {report.inputs['input.candidates']}; nothing was published, and what was "
            "published before stands"
        )


# --- score ---


@contextmanager
def decided_rows(job: Job) -> Iterator[Outcome]:
    """Score the pairs that no run has scored yet, and decide what becomes of every row; persisted for the block.

    Where a pair has neither a fact nor a failure after that, once more: its text has changed since it was read, and it
    is a reject; or another job deletes from the store, and after the second time that is a RerankError.
    """
    for round_ in range(_ROUNDS):
        staged = score_what_is_left(job, f"{job.work.run}/round-{round_}")
        if not round_:
            job.report.pairs_distinct, job.report.pairs_reused = staged.distinct, staged.known
        with job.report.phase("publish"):
            scored = looked_up(job)
            result = outcome(
                job.rows,
                scored.as_one(job.rows),
                job.config.ranking,
                publishing_tasks(job.report.pairs_in, slots(job.spark)),
            )
            decided = replace(result, rows=result.rows.persist())
        try:
            with job.report.phase("publish"):
                counts = decided.counts()
                gone = bool(counts["rejects"].get(tables.Reason.TEXT_CHANGED))
                last = round_ + 1 == _ROUNDS
                lost = _missing(staged, scored) if gone and last else 0
            if not gone or (last and not lost):
                _count_decided(job.report, counts)
                yield decided
                return
        finally:
            with suppress(Exception):  # after Ctrl-C there may be no JVM to ask
                decided.rows.unpersist()
    raise RerankError(
        f"{lost:,} pairs have neither a score in {job.store.place} nor a reject after {_ROUNDS} rounds; is another job "
        "deleting from the store? Nothing was published; run the same command again"
    )


def score_what_is_left(job: Job, folder: str) -> StagedPairs:
    """Stage the pairs that the store does not know, and score them wave by wave, each appended to the store."""
    spark, report, key = job.spark, job.report, job.plan.model_key
    with report.phase("stage"), bad_lines_told():
        known = known_facts(job.store.facts(key))
        staged = stage_pairs(spark, job.rows, report.pairs_in, job.prepared, known, folder)
    if not staged.left:
        return staged

    def append(wave: Wave) -> None:
        absorb(spark, job.store, key, job.work.scored, own=True)

    with report.phase("score"):
        profile, report.placement = scoring_profile(spark)
        _log.info("%s", report.placement)
        progress = ScoringProgress(spark, staged.left, job.console)
        minutes = job.config.store.wave_minutes
        scoring = Scoring(
            spark,
            staged,
            job.plan,
            job.work.scored,
            files.qualified(spark, f"{folder}/notes"),
            report.run_id,
            minutes * 60.0,
            progress,
            append,
            profile,
            most_local_tasks(spark, job.plan),
            len(report.waves),
        )
        with small_arrow_batches(spark, staged), progress.shown():
            scoring.run()
    report.waves += [asdict(facts) for facts in scoring.facts]
    return staged


@dataclass(frozen=True)
class Scored:
    """What is known after scoring: the store's facts of the run's rows, and the failures, which are in no store."""

    facts: DataFrame | None
    failures: DataFrame | None

    def as_one(self, rows: DataFrame) -> DataFrame:
        """pair_key, logit, reason, detail: one row a pair; of a pair that has a fact too, the failure is left out."""
        nothing = F.lit(None).cast("string")
        facts = (
            rows.select(tables.PAIR_KEY, F.lit(None).cast("float").alias(tables.LOGIT)).limit(0)
            if self.facts is None
            else self.facts.select(tables.PAIR_KEY, tables.LOGIT)
        )
        facts = facts.select("*", nothing.alias(tables.REASON), nothing.alias(tables.DETAIL))
        if self.failures is None:
            return facts
        failures = self.failures.select(tables.PAIR_KEY, tables.LOGIT, tables.REASON, tables.DETAIL)
        if self.facts is not None:
            failures = failures.join(self.facts.select(tables.PAIR_KEY), tables.PAIR_KEY, "left_anti")
        return facts.unionByName(failures)


def looked_up(job: Job) -> Scored:
    """The store's facts of the run's rows, and what failed in this run; fills in the report's counts of scoring."""
    known: KnownFacts | None = known_facts(job.store.facts(job.plan.model_key))
    facts = None if known is None else facts_of(job.rows, job.report.pairs_in, known)
    if not job.report.waves:
        return Scored(facts, None)
    own = scored_facts(job.spark, job.work.scored)
    failed = _count_scored(job.report, own)
    if not failed:
        return Scored(facts, None)
    return Scored(facts, own.where(F.col(tables.REASON).isNotNull()).dropDuplicates([tables.PAIR_KEY]))


def _missing(staged: StagedPairs, scored: Scored) -> int:
    """How many staged pairs have neither fact nor failure, though both their texts were there."""
    if not staged.left:
        return 0
    missing = staged.pairs.join(staged.passages, PLACE, "left_semi").select(tables.PAIR_KEY)
    for there in (scored.facts, scored.failures):
        if there is not None:
            missing = missing.join(there.select(tables.PAIR_KEY), tables.PAIR_KEY, "left_anti")
    return missing.count()


def _count_scored(report: RunReport, own: DataFrame) -> int:
    """Fill in what was scored, and by whom; how many of the pairs failed."""
    lengths = lengths_of(report.model["max_length"])
    begun, times = times_of(report.waves)
    parts = scored_parts(own, lengths, begun, times)
    report.figures |= scoring_figures(parts, lengths, times)
    tokens_of = {int(row["part"]): row["tokens"] for row in parts["wave"]}
    report.waves = [{**wave, "tokens": tokens_of.get(wave["wave"], 0)} for wave in report.waves]
    found = parts["scorer"]
    report.pairs_scored = sum(row["pairs"] for row in found)
    report.tokens = sum(row["tokens"] for row in found)
    report.pairs_truncated = sum(row["truncated"] for row in found)
    report.models_loaded = len(found)
    report.devices = sorted({_device(row["part"]) for row in found})
    report.tokens_per_second = round(report.tokens / max(report.seconds.get("score", 0.0), 1e-9), 1)
    return sum(row["failed"] for row in found)


def _device(label: str) -> str:
    """`host/pid/device/load` → `host/device`."""
    host, _, device, _ = label.rsplit("/", 3)
    return f"{host}/{device}"


def _count_decided(report: RunReport, counts: dict[str, dict[str, int]]) -> None:
    report.ranked = counts["ranked"].get("", 0)
    report.cut, report.rejects = counts["cut"], counts["rejects"]
    if report.unaccounted():
        raise RerankError(
            f"{report.unaccounted()} input rows are unaccounted for; this is a defect, please report it"
        )


# --- publish ---


def publishing_tasks(rows: int, slots: int) -> int:
    """How many tasks rank and publish `rows`, and how many files they write: all slots busy, no crumbs."""
    return max(1, min(slots, rows // _FEWEST_ROWS_PER_FILE), math.ceil(rows / _ROWS_PER_FILE))


def publish(job: Job, decided: Outcome) -> None:
    """Write rejects, then, if there are not too many, the reranked table."""
    config, report = job.config, job.report
    decided.rejects().write.mode("overwrite").parquet(config.output.rejects.path)
    report.output["rejects"] = config.output.rejects.path
    report.figures |= ranking_figures(decided, config.ranking.activation, job.prepared.has_rank)
    _refuse_too_many(job)
    table = _as_published(decided, config)
    facts = {"run_id": report.run_id, "model_key": report.model_key, "rows": report.ranked}
    queries = decided.rows.select(tables.QUERY_ID).where(F.col(tables.QUERY_ID).isNotNull()).distinct()
    report.output.update(
        targets.publish(job.spark, table, config.output.reranked, report.run_id, facts, queries)
    )


def _stop_if_too_many_rejects(job: Job) -> None:
    """Before anything is scored: the input's own rejects alone may already be too many."""
    config, report = job.config, job.report
    if not _too_many(config, report):
        return
    rejected(job.rows).write.mode("overwrite").parquet(config.output.rejects.path)
    report.output["rejects"] = config.output.rejects.path
    report.cut = {tables.Cut.STOPPED: report.pairs_in - report.rejected()}
    _refuse_too_many(job)


def _too_many(config: JobConfig, report: RunReport) -> bool:
    return report.rejected() > config.run.max_reject_fraction * report.pairs_in


def _refuse_too_many(job: Job) -> None:
    config, report = job.config, job.report
    if not _too_many(config, report):
        return
    write_report(job.spark, config, report, job.console)
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(report.rejects.items()))
    raise TooManyRejectsError(
        f"{report.rejected():,} of {report.pairs_in:,} rows rejected ({reasons}), more than run.max_reject_fraction "
        f"{config.run.max_reject_fraction:g} allows; nothing was published, and what was scored is in the store. Each "
        f"row and its reason: {config.output.rejects.path}. Mend the input, or allow more"
    )
