"""`rerank --dry-run`: what a run would do, without loading the model."""

from __future__ import annotations

from dataclasses import dataclass

from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from rerank_udf import tables
from rerank_udf.config import JobConfig
from rerank_udf.lake.sources import bad_lines_told
from rerank_udf.lake.store import open_store
from rerank_udf.spark.lookup import KNOWN, KnownFacts, known_facts, with_known
from rerank_udf.spark.model import on_driver, plan_for_job
from rerank_udf.spark.pipeline import check_target, read_and_prepare
from rerank_udf.spark.reporting import read_report

SAMPLE_PAIRS = 1000


@dataclass(frozen=True)
class Estimate:
    """Counts are exact; tokens come from a sample of at most SAMPLE_PAIRS pairs and the model's own tokenizer.

    `tokens` is None where the driver does not see the tokenizer. `pairs_known` of the distinct pairs are in the score
    store; the others are to be scored, and `tokens` are theirs.
    """

    pairs_in: int
    rejects: dict[str, int]
    beyond_depth: int
    pairs_distinct: int
    pairs_known: int
    tokens: int | None
    sampled_pairs: int
    truncated_share: float
    last_tokens_per_second: float | None

    @property
    def seconds(self) -> float | None:
        """Scoring time at the last run's speed, where there was one."""
        return (
            self.tokens / self.last_tokens_per_second if self.tokens and self.last_tokens_per_second else None
        )


def estimate(spark: SparkSession, config: JobConfig) -> Estimate:
    """Count what `run_rerank` would do. Raises what it would raise about input, settings, targets and model files."""
    with bad_lines_told():
        return _estimated(spark, config)


def _estimated(spark: SparkSession, config: JobConfig) -> Estimate:
    prepared = read_and_prepare(spark, config)
    check_target(spark, config, prepared)
    rows = prepared.rows.persist()
    try:
        groups = rows.groupBy(tables.REASON, "beyond_depth").count().collect()
        pairs_in = sum(g["count"] for g in groups)
        to_score = rows.where(F.col(tables.REASON).isNull() & ~F.col("beyond_depth"))
        pairs = with_known(to_score.dropDuplicates([tables.PAIR_KEY]), pairs_in, _known(spark, config))
        by_known = {row[KNOWN]: row["count"] for row in pairs.groupBy(KNOWN).count().collect()}
        left, known = by_known.get(False, 0), by_known.get(True, 0)
        sample = (
            pairs.where(~F.col(KNOWN))
            .orderBy(tables.PAIR_KEY)
            .limit(SAMPLE_PAIRS)
            .join(prepared.queries.dropDuplicates([tables.QUERY_KEY]), tables.QUERY_KEY)
            .join(prepared.passages.dropDuplicates([tables.PASSAGE_KEY]), tables.PASSAGE_KEY)
            .select(tables.QUERY, tables.PASSAGE)
            .collect()
        )
    finally:
        rows.unpersist()
    found = _sampled_tokens(config, [tuple(row) for row in sample])
    tokens, truncated = found or (0, 0)
    count = max(1, len(sample))
    return Estimate(
        pairs_in=pairs_in,
        rejects={g[tables.REASON]: g["count"] for g in groups if g[tables.REASON]},
        beyond_depth=sum(g["count"] for g in groups if g["beyond_depth"]),
        pairs_distinct=left + known,
        pairs_known=known,
        tokens=None if found is None else round(tokens / count * left),
        sampled_pairs=len(sample),
        truncated_share=truncated / count,
        last_tokens_per_second=_last_speed(spark, config),
    )


def _known(spark: SparkSession, config: JobConfig) -> KnownFacts | None:
    """What the score store has under this job's model_key."""
    key = plan_for_job(spark, config.model, calibrate=False).model_key
    return known_facts(open_store(spark, config.store, config.store_path()).facts(key))


def _sampled_tokens(config: JobConfig, pairs: list[tuple[str, str]]) -> tuple[int, int] | None:
    """Tokens and truncated pairs of the sample; the tokenizer is loaded, the weights are neither read nor fetched."""
    from rerank_udf.models import tokenizer_folder
    from rerank_udf.tokens import PairLimits, PairTokenizer

    files = on_driver(config.model.name, config.model.revision)
    if not pairs:
        return 0, 0
    if isinstance(files, str) or files.architecture is None:
        return None
    limits = PairLimits(config.model.max_length, config.model.query_max_length, config.model.truncation)
    encoded = PairTokenizer.from_folder(tokenizer_folder(files), limits).encode(*zip(*pairs, strict=True))
    return int(encoded.lengths.sum()), int(encoded.truncated.sum())


def _last_speed(spark: SparkSession, config: JobConfig) -> float | None:
    """tokens/s from the report that the last run left, if it used the same model."""
    report = read_report(spark, config.run.report)
    same = report.get("model", {}).get("name") == config.model.name
    return float(report.get("tokens_per_second", 0.0)) or None if same else None
