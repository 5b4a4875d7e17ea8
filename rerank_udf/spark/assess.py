"""The published table and the qrels → evaluate_tables: first stage, reranker, fusion and others, side by side."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pyspark.sql import Column, DataFrame, SparkSession, Window
from pyspark.sql import functions as F

from rerank_udf import tables
from rerank_udf.config import JobConfig, Ranking, Source
from rerank_udf.errors import ConfigError, InputError
from rerank_udf.evaluation import contract
from rerank_udf.lake import files, targets, versions
from rerank_udf.lake.delta import LOG
from rerank_udf.lake.sources import bad_lines_told, read_source
from rerank_udf.spark.candidates import Prepared, first_stage_order
from rerank_udf.spark.named import INTEGER_TYPES
from rerank_udf.spark.pipeline import read_and_prepare

if TYPE_CHECKING:
    from rerank_udf.spark.evaluation import SparkEvaluation

FIRST, RERANKED, FUSED = "first", "reranked", "fused"
_FEW_QUERIES = 100_000
_IDS = (tables.QUERY_ID, tables.PASSAGE_ID)


def assess(
    spark: SparkSession, config: JobConfig, others: Mapping[str, str] | None = None
) -> SparkEvaluation:
    """Evaluate what the last run published against the first stage's order of the same candidates.

    Systems: `first`, the reranker alone under the name of the model that scored the table (`reranked` where that is not
    known), with fusion also `fused` (the published order); between first and ours the `others`: name → the path or
    name of a table of query_id, passage_id, rank. Where the table is of other settings than `config`, the notes say
    so. No candidate rows come to the driver. Raises ConfigError without evaluation.qrels and for a name used twice,
    InputError for tables that do not fit each other.
    """
    with bad_lines_told():
        return _assessed(spark, config, others or {})


def _assessed(spark: SparkSession, config: JobConfig, others: Mapping[str, str]) -> SparkEvaluation:
    from rerank_udf.evaluation.terminal import REMARKS
    from rerank_udf.spark.evaluation import evaluate_tables
    from rerank_udf.spark.evaluation.origin import origin_of

    settings = config.evaluation
    qrels, columns = _checked(spark, config)
    prepared = read_and_prepare(spark, config)
    table = published_by_run(spark, config, prepared)
    origin = origin_of(spark, config)
    orders = [ranking for ranking in (config.ranking, origin.ranking) if ranking is not None]
    alone = RERANKED if origin.model is None else _called(origin.model.name)
    ours = _published(table, alone, whole=all(ranking.top_k is None for ranking in orders))
    first = _first_stage(prepared)
    rankings = {FIRST: first} if first is not None else {}
    taken = sorted((rankings | ours).keys() & others.keys())
    if taken:
        raise ConfigError(f"the ranking {taken[0]!r} has the name of one of the job's own; give it another")
    date = config.output.reranked.run_date
    rankings |= {name: _other(spark, name, place, date) for name, place in others.items()} | ours
    qrels = _of_run(spark, config, prepared, _of_trial_queries(qrels, prepared, config))
    evaluation = evaluate_tables(
        spark,
        rankings,
        qrels,
        measures=settings.measures,
        queries=columns,
        group_by=settings.group_by,
        clusters=settings.clusters,
        depth=config.ranking.depth,
        top_k=min(filter(None, map(_list_length, orders)), default=None),
        seed=settings.seed,
    )
    if remarks := origin.remarks(config):
        evaluation.settings[REMARKS] = remarks
    return evaluation


def check(spark: SparkSession, config: JobConfig) -> None:
    """Raise ConfigError or InputError where `assess` could not do its work after a run.

    The qrels and the tables of `group_by` and `clusters` are read once, by the evaluation's own code; of the candidates
    otherwise only as many query ids as it takes to find one that is judged.
    """
    from rerank_udf.spark.evaluation import fault_of

    settings, target = config.evaluation, config.output.reranked
    with bad_lines_told():
        qrels, columns = _checked(spark, config)
        if target.mode != "merge" and target.run_date is None:  # a day may well be without a judged query
            _check_common_query(spark, config, qrels)
        fault = fault_of(
            spark,
            qrels,
            queries=columns,
            group_by=settings.group_by,
            clusters=settings.clusters,
            complete=config.input.limit_queries is None and target.mode != "merge",
        )
        if fault is not None:
            raise InputError(f"evaluation.{fault}")


def _check_common_query(spark: SparkSession, config: JobConfig, qrels: DataFrame) -> None:
    """Raise InputError where no candidate is of a judged query; without candidates the job itself has its say."""
    table = read_source(spark, config.input.candidates, "input.candidates")
    name = config.input.columns.query_id
    if name not in table.columns:
        return
    ids = table.select(F.col(tables.quoted(name)).cast("string").alias("_query")).where("_query is not null")
    judged = qrels.select(F.col(tables.QUERY_ID).cast("string").alias("_query")).distinct()
    if ids.join(F.broadcast(judged.limit(_FEW_QUERIES)), "_query", "left_semi").take(1):
        return
    first, ours = judged.agg(F.min("_query")).collect()[0][0], ids.take(1)
    if first is not None and ours and not ids.join(judged, "_query", "left_semi").take(1):
        said = contract.no_common_query(first, {"table input.candidates": ours[0][0]})
        raise InputError(f"evaluation.qrels: {said}")


def _checked(spark: SparkSession, config: JobConfig) -> tuple[DataFrame, dict[str, DataFrame]]:
    """The qrels, and the tables of `group_by` and `clusters`."""
    from rerank_udf.evaluation import check_columns, parse_measures

    settings = config.evaluation
    if settings.qrels is None:
        raise ConfigError(
            "evaluation.qrels is not set: give the table of query_id, passage_id, relevance to measure by"
        )
    if config.output.layout == "nested":
        raise ConfigError(
            "evaluate reads output.layout rows; with nested, publish rows too or explode them first"
        )
    if config.output.reranked.mode == "append" and config.output.reranked.run_date is None:
        raise ConfigError(
            "evaluation.qrels is set, and with output.reranked.mode append the table holds the rows of earlier runs "
            "too: set a run_date, or evaluate a table of this run alone (mode overwrite)"
        )
    parse_measures(settings.measures)
    check_columns(settings.group_by, settings.clusters)
    qrels = _qrels(spark, config)
    names = [*settings.group_by, *([settings.clusters] if settings.clusters else [])]
    return qrels, _query_columns(spark, config, names, qrels)


def _list_length(ranking: Ranking) -> int | None:
    """How long a published list can be; None where every candidate may be in it."""
    limits = [ranking.top_k, ranking.depth if ranking.beyond_depth == "drop" else None]
    return min((limit for limit in limits if limit is not None), default=None)


def published_by_run(spark: SparkSession, config: JobConfig, prepared: Prepared) -> DataFrame:
    """What the run published: of a table into which it was merged, the rows of the run's own queries."""
    table = targets.read(spark, config.output.reranked)
    return (
        table if config.output.reranked.mode != "merge" else _with_query_in(table, prepared.rows, "left_semi")
    )


def _of_run(spark: SparkSession, config: JobConfig, prepared: Prepared, qrels: DataFrame) -> DataFrame:
    """Without the queries that other runs have merged into the table; those that no run has ranked stay, and count."""
    if config.output.reranked.mode != "merge":
        return qrels
    of_others = _with_query_in(targets.read(spark, config.output.reranked), prepared.rows, "left_anti")
    return _with_query_in(qrels, of_others, "left_anti")


def _with_query_in(table: DataFrame, other: DataFrame, how: str) -> DataFrame:
    query = F.col(tables.QUERY_ID).cast("string")
    found = other.select(query.alias("_asked")).distinct()
    return table.join(found, query == F.col("_asked"), how)


def system_name(config: JobConfig) -> str:
    """What the configured reranker alone is called, right after its run."""
    return _called(config.model.name)


def _called(model: str) -> str:
    """The last part of a model's name, unless that already means something."""
    name = model.rstrip("/").rsplit("/", 1)[-1]
    return RERANKED if name in (FIRST, FUSED, "oracle", "random", "") else name


def _published(table: DataFrame, alone: str, *, whole: bool) -> dict[str, DataFrame]:
    """The published order, last; where it is a fused one of all candidates (`whole`: not cut by top_k), the order by
    logit before it."""
    published = table.select(*_IDS, tables.RANK)
    if tables.FUSED_SCORE not in table.columns:
        return {alone: published}
    found = {}
    if whole and not table.where(F.col(tables.LOGIT).isNull()).take(1):
        order = [F.col(tables.LOGIT).desc(), F.col(tables.FIRST_STAGE_RANK).asc_nulls_last()]
        found[alone] = _numbered(table, [*order, F.col(tables.PASSAGE_ID)])
    return found | {FUSED: published}


def _first_stage(prepared: Prepared) -> DataFrame | None:
    if not (prepared.has_rank or prepared.has_score):
        return None
    # Ranks may be missing or have ties in the user's table; the evaluation wants 1..n, in the pipeline's own order.
    sound = prepared.rows.where(F.col(tables.REASON).isNull())
    return _numbered(sound, first_stage_order())


def _numbered(rows: DataFrame, order: Iterable[Column]) -> DataFrame:
    """query_id, passage_id and the rank that `order` gives within the query."""
    window = Window.partitionBy(tables.QUERY_ID).orderBy(*order)
    return rows.select(*_IDS, F.row_number().over(window).alias(tables.RANK))


def _other(spark: SparkSession, name: str, place: str, date: datetime.date | None) -> DataFrame:
    """A ranking by path (another run's output, of the same run date if it has one, or plain Parquet or Delta) or by a
    table's name."""
    label = f"the ranking {name!r}"
    if "/" not in place and not Path(place).exists():
        return read_source(spark, Source(table=place), label)
    inside = files.children(spark, place)
    if versions.CURRENT not in inside:
        try:
            return read_source(
                spark, Source(path=place, format="delta" if LOG in inside else "parquet"), label
            )
        except InputError as error:
            if "is not a Parquet" not in str(error):
                raise
            raise InputError(
                f"{label}: {place} is neither Parquet nor Delta; write it as one, or name a table"
            ) from None
    try:
        dated = date is not None and versions.facts_of(spark, place, date) is not None
        return versions.read_reranked(spark, place, date if dated else versions.ANY)
    except InputError as error:
        raise InputError(
            f"{label}: {error}; a version's own path under {versions.VERSIONS} is one too"
        ) from None


def _qrels(spark: SparkSession, config: JobConfig) -> DataFrame:
    """query_id, passage_id, relevance as whole numbers, and every other column."""
    assert config.evaluation.qrels is not None
    columns = config.input.columns
    table = read_source(spark, config.evaluation.qrels, "evaluation.qrels")
    wanted = {columns.query_id: tables.QUERY_ID, columns.passage_id: tables.PASSAGE_ID}
    wanted[tables.RELEVANCE] = tables.RELEVANCE
    missing = [name for name in wanted if name not in table.columns]
    if missing:
        raise InputError(
            f"evaluation.qrels has no column {missing[0]!r} (it has {', '.join(table.columns)}); rename one, or name "
            "the ids in input.columns, for all tables"
        )
    free = [name for name in table.columns if name not in wanted and name not in wanted.values()]
    names = wanted | dict(zip(free, free, strict=True))
    chosen = table.select(*[F.col(tables.quoted(name)).alias(ours) for name, ours in names.items()])
    if isinstance(chosen.schema[tables.RELEVANCE].dataType, INTEGER_TYPES):
        return chosen
    grades = chosen.withColumn("_grade", F.expr(f"try_cast({tables.RELEVANCE} as int)"))
    cut = F.expr(f"try_cast({tables.RELEVANCE} as double)") != F.col("_grade")
    bad = grades.where(F.col("_grade").isNull() | F.coalesce(cut, F.lit(False))).limit(1).collect()
    if bad:
        raise InputError(
            f"evaluation.qrels: relevance is {bad[0][tables.RELEVANCE]!r} for query_id {bad[0][tables.QUERY_ID]}, "
            "expected a whole number (0: not relevant)"
        )
    return grades.drop(tables.RELEVANCE).withColumnRenamed("_grade", tables.RELEVANCE)


def _of_trial_queries(qrels: DataFrame, prepared: Prepared, config: JobConfig) -> DataFrame:
    """With `limit_queries` the other queries were left out on purpose; without it they count as 0.

    Of the candidates, not of a ranking: a query that a threshold or rejects took out of it was tried, and counts.
    """
    if config.input.limit_queries is None:
        return qrels
    return _with_query_in(qrels, prepared.rows, "left_semi")


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
        if not here:
            continue
        query_id = config.input.columns.query_id
        if query_id not in table.columns:
            raise InputError(
                f"{label} has no column {query_id!r} (it has {', '.join(table.columns)}); name the right one in "
                "input.columns.query_id"
            )
        identifier = F.col(tables.quoted(query_id)).alias(tables.QUERY_ID)
        found[label] = table.select(identifier, *[F.col(tables.quoted(name)) for name in here])
    if left:
        listed = "; ".join(
            f"{label} has {', '.join(columns)}"
            for label, columns in (have | {"evaluation.qrels": qrels.columns}).items()
        )
        raise ConfigError(f"evaluation names the column {left[0]!r}, but {listed}")
    return found
