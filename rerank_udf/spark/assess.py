"""The published table and the qrels → evaluation.evaluate: first stage against reranker (and fusion)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from rerank_udf import tables
from rerank_udf.config import JobConfig
from rerank_udf.errors import ConfigError, InputError
from rerank_udf.lake import targets
from rerank_udf.lake.sources import read_source
from rerank_udf.spark.pipeline import read_and_prepare

if TYPE_CHECKING:
    import pandas as pd

    from rerank_udf.evaluation import Evaluation

FIRST, RERANKED, FUSED = "first", "reranked", "fused"


def assess(spark: SparkSession, config: JobConfig) -> Evaluation:
    """Evaluate what the last run published against the first stage's order of the same candidates.

    Systems: `first`, the reranker alone under its model's name, with fusion also `fused` (the published order).
    Collects ids and ranks to the driver. Raises ConfigError without evaluation.qrels, InputError for tables that do
    not fit each other.
    """
    from rerank_udf.evaluation import evaluate

    settings = config.evaluation
    if settings.qrels is None:
        raise ConfigError(
            "evaluation.qrels is not set: give the table of query_id, passage_id, relevance to measure by"
        )
    if config.output.layout == "nested":
        raise ConfigError(
            "evaluate reads output.layout rows; with nested, publish rows too or explode them first"
        )
    alone = system_name(config)
    rankings = _published(spark, config, alone)
    first = _first_stage(spark, config)
    name = FUSED if FUSED in rankings else alone
    others = {FIRST: first} if first is not None else {}
    others |= {system: table for system, table in rankings.items() if system != name}
    return evaluate(
        rankings[name],
        _of_trial_queries(_qrels(spark, config), rankings[name] if first is None else first, config),
        measures=settings.measures,
        baseline=others or None,
        group_by=_query_columns(spark, config, settings.group_by),
        clusters=_query_columns(spark, config, [settings.clusters] if settings.clusters else []),
        depth=config.ranking.depth,
        name=name,
        seed=settings.seed,
    )


def system_name(config: JobConfig) -> str:
    """What the reranker alone is called: the last part of the model's name, unless that already means something."""
    name = config.model.name.rstrip("/").rsplit("/", 1)[-1]
    return RERANKED if name in (FIRST, FUSED, "oracle", "random", "") else name


def _published(spark: SparkSession, config: JobConfig, alone: str) -> dict[str, pd.DataFrame]:
    """The published order; where it is a fused one of all candidates, the order by logit too."""
    table = targets.read(spark, config.output.reranked)
    fused = tables.FUSED_SCORE in table.columns
    columns = [tables.QUERY_ID, tables.PASSAGE_ID, tables.RANK]
    if not fused:
        return {alone: table.select(*columns).toPandas()}
    frame = table.select(*columns, tables.LOGIT, tables.FIRST_STAGE_RANK).toPandas()
    found = {FUSED: frame[columns]}
    if config.ranking.top_k is None and frame[tables.LOGIT].notna().all():
        order = [tables.QUERY_ID, tables.LOGIT, tables.FIRST_STAGE_RANK, tables.PASSAGE_ID]
        by_logit = frame.sort_values(order, ascending=[True, False, True, True])
        by_logit[tables.RANK] = by_logit.groupby(tables.QUERY_ID, sort=False).cumcount() + 1
        found[alone] = by_logit[columns]
    return found


def _first_stage(spark: SparkSession, config: JobConfig) -> pd.DataFrame | None:
    prepared = read_and_prepare(spark, config)
    if not (prepared.has_rank or prepared.has_score):
        return None
    sound = prepared.rows.where(F.col(tables.REASON).isNull())
    frame = sound.select(tables.QUERY_ID, tables.PASSAGE_ID, tables.FIRST_STAGE_RANK).toPandas()
    # Ranks may be missing or have ties in the user's table; the evaluation wants 1..n, in the pipeline's own order.
    frame = frame.sort_values(
        [tables.QUERY_ID, tables.FIRST_STAGE_RANK, tables.PASSAGE_ID], na_position="last"
    )
    frame[tables.RANK] = frame.groupby(tables.QUERY_ID, sort=False).cumcount() + 1
    return frame[[tables.QUERY_ID, tables.PASSAGE_ID, tables.RANK]]


def _qrels(spark: SparkSession, config: JobConfig) -> pd.DataFrame:
    assert config.evaluation.qrels is not None
    columns = config.input.columns
    table = read_source(spark, config.evaluation.qrels, "evaluation.qrels")
    wanted = {columns.query_id: tables.QUERY_ID, columns.passage_id: tables.PASSAGE_ID}
    wanted[tables.RELEVANCE] = tables.RELEVANCE
    missing = [name for name in wanted if name not in table.columns]
    if missing:
        raise InputError(f"evaluation.qrels has no column {missing[0]!r} (it has {', '.join(table.columns)})")
    chosen = table.select(*[F.col(tables.quoted(name)).alias(ours) for name, ours in wanted.items()])
    grades = chosen.withColumn("_grade", F.expr(f"try_cast({tables.RELEVANCE} as int)"))
    bad = grades.where(F.col("_grade").isNull()).limit(1).collect()
    if bad:
        raise InputError(
            f"evaluation.qrels: relevance is {bad[0][tables.RELEVANCE]!r} for query_id {bad[0][tables.QUERY_ID]}, "
            "expected a whole number (0: not relevant)"
        )
    return grades.drop(tables.RELEVANCE).withColumnRenamed("_grade", tables.RELEVANCE).toPandas()


def _of_trial_queries(qrels: pd.DataFrame, ranking: pd.DataFrame, config: JobConfig) -> pd.DataFrame:
    """With `limit_queries` the other queries were left out on purpose; without it they count as 0."""
    if config.input.limit_queries is None:
        return qrels
    asked = set(ranking[tables.QUERY_ID].astype(str))
    return qrels[qrels[tables.QUERY_ID].astype(str).isin(asked)]


def _query_columns(spark: SparkSession, config: JobConfig, names: list[str]) -> pd.DataFrame | None:
    """query_id and the named columns of the queries table (or of the candidates, if the query stands there)."""
    if not names:
        return None
    source = config.input.queries or config.input.candidates
    label = "input.queries" if config.input.queries else "input.candidates"
    table: DataFrame = read_source(spark, source, label)
    missing = [name for name in names if name not in table.columns]
    if missing:
        raise ConfigError(
            f"evaluation names the column {missing[0]!r}, but {label} has {', '.join(table.columns)}"
        )
    identifier = F.col(tables.quoted(config.input.columns.query_id)).cast("string").alias(tables.QUERY_ID)
    chosen = table.select(identifier, *[F.col(tables.quoted(name)) for name in names])
    frame: Any = chosen.dropDuplicates([tables.QUERY_ID]).toPandas()
    return frame  # type: ignore[no-any-return]
