"""`rerank`: candidates in, reranked candidates out, as one lazy DataFrame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from rerank_udf import tables
from rerank_udf.config import Columns, Nested, Ranking, parse_section
from rerank_udf.errors import ConfigError, InputError
from rerank_udf.spark.candidates import Prepared, Shape, prepare
from rerank_udf.spark.model import plan_for_functions
from rerank_udf.spark.placement import scoring_profile
from rerank_udf.spark.ranking import check_fusion, outcome
from rerank_udf.spark.ranking import nested as nested_rows
from rerank_udf.spark.scoring import co_partitioned, scored
from rerank_udf.spark.session import is_connect


def rerank(
    candidates: DataFrame,
    queries: DataFrame | None = None,
    passages: DataFrame | None = None,
    *,
    model: str = "mini",
    depth: int | None = None,
    top_k: int | None = None,
    min_score: float | None = None,
    fusion: str | Mapping[str, Any] | None = None,
    columns: Mapping[str, str] | None = None,
    nested: str | None = None,
    layout: str = "rows",
    activation: str = "sigmoid",
    beyond_depth: str = "drop",
    query_template: str = "{query}",
    passage_template: str = "{passage}",
    keep_columns: str | Sequence[str] = "all",
    partitions: int | None = None,
    **scorer: Any,
) -> DataFrame:
    """Rerank candidate rows with a cross-encoder; the result is lazy: each action scores again, so write it
    or (not on Databricks serverless) persist it.

    candidates: one row a pair with query_id, passage_id and optional score, rank; or, with `nested`, one row a query
    (`nested="passages"` for array<struct<passage_id, passage, score>>, `nested="parallel"` for parallel arrays).
    Texts stand in the candidates, or in `queries` (query_id, query) and `passages` (passage_id, passage). `columns`
    maps our names to yours. Each distinct pair is scored once.

    Returns query_id, passage_id, rank int from 1, score double, logit float, (fused_score double,) first_stage_rank,
    first_stage_score, the other columns of candidates; last `reason` and `detail`, null on ranked rows. A row that
    cannot be ranked stays, with null rank and the reason (tables.Reason); one cut by depth, min_score or top_k
    is left out. `layout="nested"`: one row a query with its ranked rows as `passages`, without rejected rows.

    `partitions`: number of scoring tasks; by default spark.sql.shuffle.partitions. `scorer`: what `load_scorer`
    takes. Pure: no session setting is changed and no `sparkContext` is needed, so it runs through Spark Connect.

    Raises InputError for what is no Spark DataFrame, missing columns and wrong types, ConfigError for settings,
    ModelError for a model that the driver can see and that cannot be used.
    """
    _check_tables(candidates=candidates, queries=queries, passages=passages)
    ranking = parse_section(
        Ranking,
        {
            "depth": depth,
            "top_k": top_k,
            "min_score": min_score,
            "activation": activation,
            "beyond_depth": beyond_depth,
            "fusion": _fusion(fusion),
        },
        "rerank()",
    )
    _check_choices(layout, keep_columns, partitions, nested)
    names = parse_section(Columns, dict(columns or {}), "rerank(columns=)")
    plan = plan_for_functions(model, scorer)
    shape = Shape(
        columns=names,
        nested=_nested(nested),
        query_template=query_template,
        passage_template=passage_template,
        depth=depth,
        keep_columns=keep_columns,
        reserved=(tables.REASON, tables.DETAIL),
    )
    prepared = prepare(candidates, queries, passages, shape)
    check_fusion(ranking.fusion, prepared)
    count = _partitions(candidates) if partitions is None else partitions
    profile = None if is_connect(candidates.sparkSession) else scoring_profile(candidates.sparkSession)[0]
    facts = scored(_distinct_pairs(prepared, count), plan, profile=profile)
    result = outcome(prepared.rows, facts, ranking)
    return nested_rows(result.reranked()) if layout == "nested" else result.listed()


def _check_tables(**given: Any) -> None:
    """Raise InputError for the first that is no DataFrame of Spark's, classic or Connect."""
    for name, table in given.items():
        kind = type(table)
        # before Spark 4 those of Connect are a class of their own
        if isinstance(table, DataFrame) or kind.__module__.startswith("pyspark.sql.connect"):
            continue
        if table is None and name != "candidates":
            continue
        package = kind.__module__.partition(".")[0]
        found = kind.__name__ if package == "builtins" else f"{package}.{kind.__name__}"
        remedy = "settings are given by name, such as model="
        if package == "pandas":
            remedy = f"make one by spark.createDataFrame({name})"
        raise InputError(f"rerank(): {name} is of type {found}, expected a Spark DataFrame; {remedy}")


def _check_choices(
    layout: str, keep_columns: str | Sequence[str], partitions: int | None, nested: str | None
) -> None:
    if layout not in ("rows", "nested"):
        raise ConfigError(f"rerank(): layout is {layout!r}, expected 'rows' or 'nested'")
    if isinstance(keep_columns, str) and keep_columns not in ("all", "none"):
        raise ConfigError(
            f"rerank(): keep_columns is {keep_columns!r}, expected 'all', 'none' or a list of names"
        )
    if partitions is not None and partitions < 1:
        raise ConfigError(f"rerank(): partitions is {partitions}, expected 1 or more, or None")
    if nested and not isinstance(nested, str):
        raise ConfigError(f"rerank(): nested is {nested!r}, expected an array column's name, or 'parallel'")


def _partitions(candidates: DataFrame) -> int:
    """spark.sql.shuffle.partitions; Spark's own 200 where a platform's setting is no number ("auto")."""
    setting = str(candidates.sparkSession.conf.get("spark.sql.shuffle.partitions"))
    return int(setting) if setting.isdigit() else 200


def _fusion(fusion: str | Mapping[str, Any] | None) -> Mapping[str, Any]:
    if fusion is None:
        return {}
    return {"method": fusion} if isinstance(fusion, str) else fusion


def _nested(nested: str | None) -> Nested | None:
    if not nested:
        return None
    return Nested(parallel=True) if nested == "parallel" else Nested(array=nested)


def _distinct_pairs(prepared: Prepared, partitions: int) -> DataFrame:
    """(pair_key, query, passage), each pair once, laid out for scoring."""
    to_score = F.col(tables.REASON).isNull() & ~F.col("beyond_depth")
    pairs = (
        prepared.rows.where(to_score)
        .select(tables.PAIR_KEY, tables.QUERY_KEY, tables.PASSAGE_KEY)
        .dropDuplicates([tables.PAIR_KEY])
    )
    queries = prepared.queries.dropDuplicates([tables.QUERY_KEY])
    passages = prepared.passages.dropDuplicates([tables.PASSAGE_KEY])
    return co_partitioned(pairs.join(queries, tables.QUERY_KEY), passages, partitions)
