"""What the judgements say of single rows: precision by score, and the queries that changed most, with their texts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pyspark.sql import DataFrame, Row, SparkSession
from pyspark.sql import functions as F
from rich.console import Console

from rerank_udf import page, tables
from rerank_udf.config import JobConfig
from rerank_udf.lake import files
from rerank_udf.lake.sources import read_source
from rerank_udf.report import RunReport
from rerank_udf.spark.assess import published_by_run
from rerank_udf.spark.candidates import Prepared
from rerank_udf.spark.figures import LOGITS, SCORES, Buckets
from rerank_udf.spark.pipeline import read_and_prepare
from rerank_udf.spark.reporting import write_report

if TYPE_CHECKING:
    from rerank_udf.spark.evaluation import SparkEvaluation

MOST_CHANGED = 5
SHOWN_PASSAGES = 3
_SHOWN_CHARACTERS = 700
_CHANGE = 1e-9


def write_evaluation(
    spark: SparkSession, config: JobConfig, report: RunReport, evaluation: SparkEvaluation, console: Console
) -> None:
    """Write evaluation.json beside run_report.json, and report and page anew with what `evaluation` found.

    For the run that has just published what was evaluated.
    """
    summary = evaluation.summary.to_json(orient="records", double_precision=15)
    report.evaluation = json.loads(summary)
    qrels = _qrels(spark, config)
    prepared = read_and_prepare(spark, config)
    published = published_by_run(spark, config, prepared)
    found = {
        "run_id": report.run_id,
        "settings": evaluation.settings,
        "counts": evaluation.counts,
        "notes": evaluation.notes(),  # for the page, which is made where ir-measures need not be installed
        "summary": report.evaluation,
        "precision": precision_by_score(
            published,
            qrels,
            SCORES if config.ranking.activation == "sigmoid" else LOGITS,
        ),
        "changed": changed_queries(prepared, published, evaluation, qrels),
    }
    text = json.dumps(found, ensure_ascii=False, indent=1, default=str) + "\n"
    files.write_text(spark, f"{config.run.report.rstrip('/')}/{page.EVALUATION_FILE}", text)
    write_report(spark, config, report, console, found)


def precision_by_score(published: DataFrame, qrels: DataFrame, buckets: Buckets) -> dict[str, Any]:
    """Of the ranked rows of judged queries, in each bucket of the score: how many, judged, relevant. One job."""
    ids = [F.col(name).cast("string").alias(name) for name in (tables.QUERY_ID, tables.PASSAGE_ID)]
    rows = published.where(F.col(tables.SCORE).isNotNull()).select(*ids, tables.SCORE)
    asked = rows.join(qrels.select(tables.QUERY_ID).distinct(), tables.QUERY_ID, "left_semi")
    joined = asked.join(qrels, [tables.QUERY_ID, tables.PASSAGE_ID], "left")
    counted = joined.groupBy(buckets.of(F.col(tables.SCORE)).alias("bucket")).agg(
        F.count(F.lit(1)).alias("rows"),
        F.count(tables.RELEVANCE).alias("judged"),
        F.sum((F.coalesce(tables.RELEVANCE, F.lit(0)) > 0).cast("int")).alias("relevant"),
    )
    found: dict[str, list[int]] = {name: buckets.empty() for name in ("rows", "judged", "relevant")}
    for row in counted.collect():
        for name, values in found.items():
            values[row["bucket"]] = row[name]
    return {"low": buckets.low, "width": buckets.width, **found}


def most_changed(
    values: DataFrame, measure: str, before: str, after: str, most: int = MOST_CHANGED
) -> list[tuple[str, float, float]]:
    """(query_id, before, after) of those that gained most, best first, then of those that lost most, worst first.

    `values`: an evaluation's query_id, system, documents, measure, value.
    """
    shown = values.where((F.col("documents") == "all") & (F.col("measure") == measure))
    both = shown.groupBy(tables.QUERY_ID).agg(
        *[
            F.max(F.when(F.col("system") == system, F.col("value"))).alias(name)
            for name, system in (("before", before), ("after", after))
        ]
    )
    gain = F.col("after") - F.col("before")
    gained = both.where(gain > _CHANGE).orderBy(gain.desc(), tables.QUERY_ID).limit(most)
    lost = both.where(gain < -_CHANGE).orderBy(gain, tables.QUERY_ID).limit(most)
    return [
        (str(row[tables.QUERY_ID]), row["before"], row["after"])
        for part in (gained, lost)
        for row in part.collect()
    ]


def changed_queries(
    prepared: Prepared, published: DataFrame, evaluation: SparkEvaluation, qrels: DataFrame
) -> list[dict[str, Any]]:
    """The most changed queries with their texts, and their first passages before and after with judgements."""
    settings = evaluation.settings
    if settings["baseline"] is None:
        return []
    chosen = most_changed(
        evaluation.values, settings["measures"][0], settings["baseline"], settings["ranking"]
    )
    if not chosen:
        return []
    ids = [query_id for query_id, _, _ in chosen]
    rows = _candidates(prepared, published, qrels, ids)
    orders = {query_id: _both_orders([r for r in rows if r["query"] == query_id]) for query_id in ids}
    texts = _texts(prepared, [row for both in orders.values() for order in both for row in order])
    return [
        {
            "query_id": query_id,
            "query": next((texts.get(row["query_key"], "") for rows in orders[query_id] for row in rows), ""),
            "before": before,
            "after": after,
            "first_stage": [_shown(row, texts) for row in orders[query_id][0]],
            "reranked": [_shown(row, texts) for row in orders[query_id][1]],
        }
        for query_id, before, after in chosen
    ]


def _candidates(prepared: Prepared, published: DataFrame, qrels: DataFrame, ids: Sequence[str]) -> list[Row]:
    """Every sound candidate of a few queries: ids, both ranks, score, judgement, and keys as hexadecimal text."""
    query, passage = (F.col(name).cast("string") for name in (tables.QUERY_ID, tables.PASSAGE_ID))
    of_these = F.col("query").isin(list(ids))
    candidates = prepared.rows.where(F.col(tables.REASON).isNull()).select(
        query.alias("query"),
        passage.alias("passage"),
        tables.FIRST_STAGE_RANK,
        F.hex(tables.QUERY_KEY).alias("query_key"),
        F.hex(tables.PASSAGE_KEY).alias("passage_key"),
    )
    ranked = published.select(query.alias("query"), passage.alias("passage"), tables.RANK, tables.SCORE)
    judged = qrels.select(query.alias("query"), passage.alias("passage"), tables.RELEVANCE)
    both = ["query", "passage"]
    joined = candidates.where(of_these).join(ranked.where(of_these), both, "left")
    return joined.join(judged.where(of_these), both, "left").collect()


def _both_orders(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """The first passages by first-stage rank, and by the new rank."""
    return _first(rows, tables.FIRST_STAGE_RANK), _first(rows, tables.RANK)


def _first(rows: Sequence[Row], rank: str) -> list[Row]:
    placed = [row for row in rows if row[rank] is not None]
    return sorted(placed, key=lambda row: (row[rank], row["passage"]))[:SHOWN_PASSAGES]


def _texts(prepared: Prepared, rows: Iterable[Row]) -> dict[str, str]:
    """Key as hexadecimal text → the text, cut after some hundred characters."""
    wanted = list(rows)
    found: dict[str, str] = {}
    for texts, key, text, name in (
        (prepared.queries, tables.QUERY_KEY, tables.QUERY, "query_key"),
        (prepared.passages, tables.PASSAGE_KEY, tables.PASSAGE, "passage_key"),
    ):
        keyed = texts.select(
            F.hex(key).alias("key"), F.substring(text, 1, _SHOWN_CHARACTERS + 1).alias("text")
        )
        these = keyed.where(F.col("key").isin(sorted({row[name] for row in wanted})))
        found |= {row["key"]: _cut(row["text"]) for row in these.dropDuplicates(["key"]).collect()}
    return found


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + " …"


def _shown(row: Row, texts: Mapping[str, str]) -> dict[str, Any]:
    return {
        "passage_id": row["passage"],
        "passage": texts.get(row["passage_key"], ""),
        "rank": row[tables.RANK],
        "first_stage_rank": row[tables.FIRST_STAGE_RANK],
        "score": row[tables.SCORE],
        "relevance": row[tables.RELEVANCE],
    }


def _qrels(spark: SparkSession, config: JobConfig) -> DataFrame:
    """query_id, passage_id as text, relevance; `assess` has checked the table before."""
    assert config.evaluation.qrels is not None
    columns = config.input.columns
    table = read_source(spark, config.evaluation.qrels, "evaluation.qrels")
    return table.select(
        F.col(tables.quoted(columns.query_id)).cast("string").alias(tables.QUERY_ID),
        F.col(tables.quoted(columns.passage_id)).cast("string").alias(tables.PASSAGE_ID),
        F.expr(f"try_cast({tables.RELEVANCE} as int)").alias(tables.RELEVANCE),
    )
