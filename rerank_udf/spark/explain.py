"""One query's candidates before and after, with what the model saw of each passage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pyspark.sql import Row, SparkSession
from pyspark.sql import functions as F

from rerank_udf import tables
from rerank_udf.config import JobConfig
from rerank_udf.engine import ScorerPlan
from rerank_udf.errors import InputError
from rerank_udf.lake.sources import bad_lines_told
from rerank_udf.models import local_folder
from rerank_udf.spark.candidates import Prepared
from rerank_udf.spark.model import plan_for_job
from rerank_udf.spark.pipeline import read_and_prepare
from rerank_udf.spark.ranking import outcome
from rerank_udf.spark.scoring import SCORED_SCHEMA, process_scorer
from rerank_udf.tokens import PairTokenizer


@dataclass(frozen=True)
class Explained:
    """One candidate: `rank` None where it was cut or rejected (`note` says why); `seen` as the model saw it."""

    passage_id: str
    rank: int | None
    first_stage_rank: int | None
    score: float | None
    logit: float | None
    fused_score: float | None
    tokens: int
    truncated: bool
    seen: str
    note: str


@dataclass(frozen=True)
class Explanation:
    """A query as the model saw it, and its candidates in the new order.

    Of a query without a pair to score, the whole text; None where it has none.
    """

    query_id: str
    query: str | None
    candidates: list[Explained]


def explain(spark: SparkSession, config: JobConfig, query_id: str) -> Explanation:
    """Score one query's candidates in this process, as the job would, and show each before and after.

    Any query of the input, whatever `limit_queries` says.

    Raises InputError where no candidate has that query id, ModelError where the model cannot be used here.
    """
    with bad_lines_told():
        return _explanation(spark, config, query_id)


def _explanation(spark: SparkSession, config: JobConfig, query_id: str) -> Explanation:
    whole = config.model_copy(update={"input": config.input.model_copy(update={"limit_queries": None})})
    prepared = read_and_prepare(spark, whole)
    rows = prepared.rows.where(F.col(tables.QUERY_ID).cast("string") == F.lit(query_id)).localCheckpoint()
    if rows.isEmpty():
        raise InputError(
            f"no candidate has {config.input.columns.query_id} {query_id!r}; ids are compared as text"
        )
    texts = (
        rows.where(F.col(tables.REASON).isNull())
        .join(prepared.queries.dropDuplicates([tables.QUERY_KEY]), tables.QUERY_KEY)
        .join(prepared.passages.dropDuplicates([tables.PASSAGE_KEY]), tables.PASSAGE_KEY)
        .select(tables.PAIR_KEY, tables.QUERY, tables.PASSAGE)
        .dropDuplicates([tables.PAIR_KEY])
        .collect()
    )
    facts, seen = _score(plan_for_job(spark, config.model), texts)
    scored = spark.createDataFrame(facts, SCORED_SCHEMA)
    result = outcome(rows, scored, config.ranking).rows
    keyed = rows.select(tables.PASSAGE_ID, tables.PAIR_KEY).where(F.col(tables.PAIR_KEY).isNotNull())
    found = {str(row[tables.PASSAGE_ID]): bytes(row[tables.PAIR_KEY]) for row in keyed.collect()}
    by_key = {fact[0]: fact for fact in facts}
    explained = [
        _explained(row, by_key.get(found.get(str(row[tables.PASSAGE_ID]), b"")), seen)
        for row in result.collect()
    ]
    explained.sort(key=lambda e: (e.rank is None, e.rank or 0, e.first_stage_rank or 0))
    query = next((pair[0] for pair in seen.values()), None)
    return Explanation(query_id, _text_of(prepared, query_id) if query is None else query, explained)


def _text_of(prepared: Prepared, query_id: str) -> str | None:
    """The query's text where all of its candidates are rejected; None where it has none, or several."""
    asked = prepared.asked.where(F.col(tables.QUERY_ID) == F.lit(query_id)).select(tables.QUERY_KEY)
    found = asked.join(prepared.queries, tables.QUERY_KEY).select(tables.QUERY).distinct().take(2)
    return str(found[0][0]) if len(found) == 1 else None


def _score(plan: ScorerPlan, texts: list[Row]) -> tuple[list[tuple[Any, ...]], dict[bytes, tuple[str, str]]]:
    """SCORED_SCHEMA tuples, and what the model saw of each pair's texts by pair key."""
    scorer, label = process_scorer(plan)
    queries, passages = [t[tables.QUERY] for t in texts], [t[tables.PASSAGE] for t in texts]
    pairs = scorer.score_pairs(queries, passages)
    view = (
        _whole
        if plan.files.architecture is None
        else PairTokenizer.from_folder(local_folder(plan.files), plan.limits).seen
    )
    facts, seen = [], {}
    for index, text in enumerate(texts):
        key = bytes(text[tables.PAIR_KEY])
        reason, detail = pairs.errors.get(index, (None, None))
        logit = None if reason else float(pairs.logits[index])
        facts.append(
            (key, logit, int(pairs.tokens[index]), bool(pairs.truncated[index]), reason, detail, label)
        )
        seen[key] = (
            (text[tables.QUERY], text[tables.PASSAGE]) if reason else view(queries[index], passages[index])
        )
    return facts, seen


def _whole(query: str, passage: str) -> tuple[str, str]:
    return query, passage


def _explained(row: Row, fact: tuple[Any, ...] | None, seen: dict[bytes, tuple[str, str]]) -> Explained:
    rejected = row[tables.REASON]
    note = f"{rejected}: {row[tables.DETAIL]}" if rejected else f"cut by {row['cut']}" if row["cut"] else ""
    return Explained(
        passage_id=str(row[tables.PASSAGE_ID]),
        rank=row[tables.RANK],
        first_stage_rank=row[tables.FIRST_STAGE_RANK],
        score=row[tables.SCORE],
        logit=row[tables.LOGIT],
        fused_score=row.asDict().get(tables.FUSED_SCORE),
        tokens=fact[2] if fact else 0,
        truncated=bool(fact and fact[3]),
        seen=seen[fact[0]][1] if fact else "",
        note=note,
    )
