"""The published table and the qrels → evaluate_tables: first stage, reranker, fusion and others, side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pyspark.sql import Column, DataFrame, SparkSession, Window
from pyspark.sql import functions as F

from rerank_udf import tables
from rerank_udf.config import JobConfig, Source
from rerank_udf.errors import ConfigError, InputError
from rerank_udf.lake import files, targets, versions
from rerank_udf.lake.delta import LOG
from rerank_udf.lake.sources import read_source
from rerank_udf.spark.named import INTEGER_TYPES
from rerank_udf.spark.pipeline import read_and_prepare

if TYPE_CHECKING:
    from rerank_udf.spark.evaluation import SparkEvaluation

FIRST, RERANKED, FUSED = "first", "reranked", "fused"
_IDS = (tables.QUERY_ID, tables.PASSAGE_ID)


def assess(
    spark: SparkSession, config: JobConfig, others: Mapping[str, str] | None = None
) -> SparkEvaluation:
    """Evaluate what the last run published against the first stage's order of the same candidates.

    Systems: `first`, the reranker alone under its model's name, with fusion also `fused` (the published order); between
    first and ours the `others`: name → the path or name of a table of query_id, passage_id, rank. No candidate rows
    come to the driver. Raises ConfigError without evaluation.qrels and for a name used twice, InputError for tables
    that do not fit each other.
    """
    from rerank_udf.spark.evaluation import evaluate_tables

    settings = config.evaluation
    if settings.qrels is None:
        raise ConfigError(
            "evaluation.qrels is not set: give the table of query_id, passage_id, relevance to measure by"
        )
    if config.output.layout == "nested":
        raise ConfigError(
            "evaluate reads output.layout rows; with nested, publish rows too or explode them first"
        )
    ours = _published(spark, config, system_name(config))
    first = _first_stage(spark, config)
    rankings = {FIRST: first} if first is not None else {}
    taken = sorted((rankings | ours).keys() & (others or {}).keys())
    if taken:
        raise ConfigError(f"the ranking {taken[0]!r} has the name of one of the job's own; give it another")
    rankings |= {name: _other(spark, name, place) for name, place in (others or {}).items()} | ours
    names = [*settings.group_by, *([settings.clusters] if settings.clusters else [])]
    qrels = _qrels(spark, config)
    return evaluate_tables(
        spark,
        rankings,
        _of_trial_queries(qrels, next(iter(rankings.values())), config),
        measures=settings.measures,
        queries=_query_columns(spark, config, names, qrels),
        group_by=settings.group_by,
        clusters=settings.clusters,
        depth=config.ranking.depth,
        seed=settings.seed,
    )


def system_name(config: JobConfig) -> str:
    """What the reranker alone is called: the last part of the model's name, unless that already means something."""
    name = config.model.name.rstrip("/").rsplit("/", 1)[-1]
    return RERANKED if name in (FIRST, FUSED, "oracle", "random", "") else name


def _published(spark: SparkSession, config: JobConfig, alone: str) -> dict[str, DataFrame]:
    """The published order, last; where it is a fused one of all candidates, the order by logit before it."""
    table = targets.read(spark, config.output.reranked)
    published = table.select(*_IDS, tables.RANK)
    if tables.FUSED_SCORE not in table.columns:
        return {alone: published}
    found = {}
    if config.ranking.top_k is None and not table.where(F.col(tables.LOGIT).isNull()).take(1):
        order = [F.col(tables.LOGIT).desc(), F.col(tables.FIRST_STAGE_RANK).asc_nulls_last()]
        found[alone] = _numbered(table, [*order, F.col(tables.PASSAGE_ID)])
    return found | {FUSED: published}


def _first_stage(spark: SparkSession, config: JobConfig) -> DataFrame | None:
    prepared = read_and_prepare(spark, config)
    if not (prepared.has_rank or prepared.has_score):
        return None
    # Ranks may be missing or have ties in the user's table; the evaluation wants 1..n, in the pipeline's own order.
    sound = prepared.rows.where(F.col(tables.REASON).isNull())
    return _numbered(sound, [F.col(tables.FIRST_STAGE_RANK).asc_nulls_last(), F.col(tables.PASSAGE_ID)])


def _numbered(rows: DataFrame, order: Iterable[Column]) -> DataFrame:
    """query_id, passage_id and the rank that `order` gives within the query."""
    window = Window.partitionBy(tables.QUERY_ID).orderBy(*order)
    return rows.select(*_IDS, F.row_number().over(window).alias(tables.RANK))


def _other(spark: SparkSession, name: str, place: str) -> DataFrame:
    """A ranking by path (another run's output, or plain Parquet or Delta) or by a table's name."""
    label = f"the ranking {name!r}"
    if "/" not in place and not Path(place).exists():
        return read_source(spark, Source(table=place), label)
    try:
        return versions.read_reranked(spark, place)
    except InputError:  # no run's output
        inside = files.children(spark, place)
        return read_source(spark, Source(path=place, format="delta" if LOG in inside else "parquet"), label)


def _qrels(spark: SparkSession, config: JobConfig) -> DataFrame:
    """query_id, passage_id, relevance as whole numbers, and every other column."""
    assert config.evaluation.qrels is not None
    columns = config.input.columns
    table = read_source(spark, config.evaluation.qrels, "evaluation.qrels")
    wanted = {columns.query_id: tables.QUERY_ID, columns.passage_id: tables.PASSAGE_ID}
    wanted[tables.RELEVANCE] = tables.RELEVANCE
    missing = [name for name in wanted if name not in table.columns]
    if missing:
        raise InputError(f"evaluation.qrels has no column {missing[0]!r} (it has {', '.join(table.columns)})")
    free = [name for name in table.columns if name not in wanted and name not in wanted.values()]
    names = wanted | dict(zip(free, free, strict=True))
    chosen = table.select(*[F.col(tables.quoted(name)).alias(ours) for name, ours in names.items()])
    if isinstance(chosen.schema[tables.RELEVANCE].dataType, INTEGER_TYPES):
        return chosen
    grades = chosen.withColumn("_grade", F.expr(f"try_cast({tables.RELEVANCE} as int)"))
    bad = grades.where(F.col("_grade").isNull()).limit(1).collect()
    if bad:
        raise InputError(
            f"evaluation.qrels: relevance is {bad[0][tables.RELEVANCE]!r} for query_id {bad[0][tables.QUERY_ID]}, "
            "expected a whole number (0: not relevant)"
        )
    return grades.drop(tables.RELEVANCE).withColumnRenamed("_grade", tables.RELEVANCE)


def _of_trial_queries(qrels: DataFrame, ranking: DataFrame, config: JobConfig) -> DataFrame:
    """With `limit_queries` the other queries were left out on purpose; without it they count as 0."""
    if config.input.limit_queries is None:
        return qrels
    asked = ranking.select(F.col(tables.QUERY_ID).cast("string").alias("_asked")).distinct()
    return qrels.join(asked, F.col(tables.QUERY_ID).cast("string") == F.col("_asked"), "left_semi")


def _query_columns(
    spark: SparkSession, config: JobConfig, names: list[str], qrels: DataFrame
) -> dict[str, DataFrame]:
    """query_id and those of the named columns that it has, of the queries table and of the candidates.

    evaluate_tables looks further, in the qrels. Raises ConfigError for a name that is nowhere.
    """
    found, have, left = {}, {}, list(dict.fromkeys(names))
    for label, source in (
        ("input.queries", config.input.queries),
        ("input.candidates", config.input.candidates),
    ):
        if source is None or not left:
            continue
        table = read_source(spark, source, label)
        have[label] = table.columns
        here = [name for name in left if name in table.columns]
        left = [name for name in left if name not in here and name not in qrels.columns]
        identifier = F.col(tables.quoted(config.input.columns.query_id)).alias(tables.QUERY_ID)
        if here:
            found[label] = table.select(identifier, *[F.col(tables.quoted(name)) for name in here])
    if left:
        listed = "; ".join(
            f"{label} has {', '.join(columns)}"
            for label, columns in (have | {"evaluation.qrels": qrels.columns}).items()
        )
        raise ConfigError(f"evaluation names the column {left[0]!r}, but {listed}")
    return found
