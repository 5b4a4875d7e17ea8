"""What becomes of each row once its pair has a logit, against a plain Python computation."""

from __future__ import annotations

import itertools
import math
import random
from collections import defaultdict
from typing import Any

import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import types as T
from tables_of import frame, plan_of, sigmoid

from rerank_udf.config import Fusion, Ranking
from rerank_udf.errors import ConfigError
from rerank_udf.spark.candidates import Prepared
from rerank_udf.spark.ranking import Outcome, check_fusion, nested, outcome
from rerank_udf.tables import Reason

PREPARED = (
    "query_id string, passage_id string, first_stage_rank int, first_stage_score double, kept struct<note:string>, "
    "query_key binary, passage_key binary, pair_key binary, reason string, detail string, beyond_depth boolean"
)
FACTS = "pair_key binary, logit float, reason string, detail string"


def decided(spark: SparkSession, rows: list[dict[str, Any]], **ranking: Any) -> Outcome:
    """Rows as dicts with query_id, passage_id and any of rank, score, logit, reason, failure, beyond."""
    prepared, facts = [], []
    for row in rows:
        key = None if row.get("reason") else f"{row['query_id']}/{row['passage_id']}".encode()
        reason, note = row.get("reason"), (row["passage_id"],)
        ids = (row["query_id"], row["passage_id"], row.get("rank"), row.get("score"))
        prepared.append((*ids, note, key, key, key, reason, reason, row.get("beyond", False)))
        if key and not row.get("beyond") and not row.get("lost"):
            facts.append((key, row.get("logit"), row.get("failure"), row.get("failure")))
    table = frame(spark, prepared, PREPARED)
    return outcome(
        table, frame(spark, facts, FACTS) if facts else spark.createDataFrame([], FACTS), Ranking(**ranking)
    )


def by_passage(result: DataFrame) -> dict[str, dict[str, Any]]:
    return {row["passage_id"]: row.asDict() for row in result.collect()}


def random_rows(seed: int, queries: int = 6, most: int = 12) -> list[dict[str, Any]]:
    """Queries of unequal size with ties in logits, ranks and scores, missing ranks and scores, rejects."""
    chance = random.Random(seed)
    rows = []
    for query in range(queries):
        for passage in range(chance.randint(1, most)):
            rows.append(
                {
                    "query_id": f"q{query}",
                    "passage_id": f"p{passage:02}",
                    "rank": chance.choice([None, 1, 2, 3, 5]),
                    "score": chance.choice([None, 0.5, 1.5, -2.0, 7.25]),
                    "logit": chance.choice([-9.5, -0.25, 0.0, 0.25, 3.5, 20.0, 21.0]),
                    "reason": chance.choice([None] * 9 + [Reason.BAD_SCORE]),
                }
            )
    return rows


def plain_order(row: dict[str, Any], key: float) -> tuple[Any, ...]:
    return (-key, row["rank"] is None, row["rank"] or 0, row["passage_id"])


def plain_fused(rows: list[dict[str, Any]], fusion: Fusion) -> dict[str, float]:
    """passage_id → fused score over the rows of one query, from the definitions."""
    weight = fusion.reranker_weight
    if fusion.method == "rrf":
        by_logit = sorted(rows, key=lambda row: plain_order(row, row["logit"]))
        place = {row["passage_id"]: n for n, row in enumerate(by_logit, 1)}
        return {
            row["passage_id"]: weight / (fusion.rrf_k + place[row["passage_id"]])
            + (0.0 if row["rank"] is None else (1 - weight) / (fusion.rrf_k + row["rank"]))
            for row in rows
        }

    def scaled(name: str) -> list[float]:
        known = [row[name] for row in rows if row[name] is not None]
        if not known or max(known) == min(known):
            return [0.0] * len(rows)
        low, high = min(known), max(known)
        return [((low if row[name] is None else row[name]) - low) / (high - low) for row in rows]

    parts = zip(rows, scaled("logit"), scaled("score"), strict=True)
    return {row["passage_id"]: weight * logit + (1 - weight) * score for row, logit, score in parts}


def test_order_is_by_logit_then_first_stage_rank_then_passage_id(spark):
    rows = [
        {"query_id": "q", "passage_id": "e", "logit": 1.0},
        {"query_id": "q", "passage_id": "d", "logit": 1.0, "rank": 9},
        {"query_id": "q", "passage_id": "c", "logit": 1.0, "rank": 2},
        {"query_id": "q", "passage_id": "b", "logit": 1.0, "rank": 2},
        {"query_id": "q", "passage_id": "a", "logit": 0.5, "rank": 1},
    ]
    ranks = {name: row["rank"] for name, row in by_passage(decided(spark, rows).reranked()).items()}
    assert ranks == {"b": 1, "c": 2, "d": 3, "e": 4, "a": 5}


def test_order_is_by_logit_where_the_scores_saturate(spark):
    rows = [
        {"query_id": "q", "passage_id": name, "logit": logit}
        for name, logit in (("a", 50.0), ("b", 60.0), ("c", -800.0))
    ]
    found = by_passage(decided(spark, rows).reranked())
    assert [found[name]["rank"] for name in "bac"] == [1, 2, 3]
    assert found["a"]["score"] == found["b"]["score"] == 1.0
    assert found["c"]["score"] == 0.0


@pytest.mark.parametrize("activation", ["sigmoid", "identity"])
def test_the_score_is_what_the_activation_makes_of_the_logit(spark, activation):
    rows = [{"query_id": "q", "passage_id": str(n), "logit": n / 4} for n in range(-20, 20, 3)]
    for row in decided(spark, rows, activation=activation).reranked().collect():
        expected = sigmoid(row["logit"]) if activation == "sigmoid" else row["logit"]
        assert row["score"] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("seed", [0, 1])
def test_every_rank_is_that_of_a_plain_sort(spark, seed):
    rows = random_rows(seed)
    expected: dict[tuple[str, str], int] = {}
    groups = defaultdict(list)
    for row in rows:
        if not row["reason"]:
            groups[row["query_id"]].append(row)
    for query, group in groups.items():
        for place, row in enumerate(sorted(group, key=lambda row: plain_order(row, row["logit"])), 1):
            expected[query, row["passage_id"]] = place
    found = {(r["query_id"], r["passage_id"]): r["rank"] for r in decided(spark, rows).reranked().collect()}
    assert found == expected


@pytest.mark.parametrize(
    "fusion",
    [
        Fusion(method="min_max"),
        Fusion(method="min_max", reranker_weight=0.0),
        Fusion(method="rrf"),
        Fusion(method="rrf", rrf_k=1, reranker_weight=0.25),
    ],
    ids=["min_max", "min_max first stage alone", "rrf", "rrf k=1"],
)
def test_fusion_is_the_plain_formula_over_each_querys_scored_rows(spark, fusion):
    rows = random_rows(3)
    found = defaultdict(dict)
    for row in decided(spark, rows, fusion=fusion.model_dump()).reranked().collect():
        found[row["query_id"]][row["passage_id"]] = row
    for query in {row["query_id"] for row in rows}:
        group = [row for row in rows if row["query_id"] == query and not row["reason"]]
        fused = plain_fused(group, fusion)
        assert {p: row["fused_score"] for p, row in found[query].items()} == pytest.approx(fused, rel=1e-12)
        # equal in Python need not be equal in the last bit: compare order where the fused scores are apart
        in_order = sorted(found[query].values(), key=lambda row: row["rank"])
        for above, below in itertools.pairwise(in_order):
            assert fused[above["passage_id"]] >= fused[below["passage_id"]] - 1e-12


def test_fusion_survives_the_largest_rank_there_is(spark):
    rows = [{"query_id": "q", "passage_id": "a", "logit": 1.0, "rank": 2**31 - 1}]
    found = by_passage(decided(spark, rows, fusion={"method": "rrf"}).reranked())
    assert found["a"]["fused_score"] == pytest.approx(0.7 / 61 + 0.3 / (60 + 2**31 - 1))


ROWS = [
    {"query_id": "q", "passage_id": "a", "logit": 2.0, "rank": 1},
    {"query_id": "q", "passage_id": "b", "logit": -3.0, "rank": 2},
    {"query_id": "q", "passage_id": "c", "logit": 1.0, "rank": 3},
    {"query_id": "q", "passage_id": "d", "logit": None, "rank": 4, "failure": "not_finite"},
    {"query_id": "q", "passage_id": "e", "rank": 5, "reason": "null_passage"},
    {"query_id": "q", "passage_id": "g", "rank": 7, "beyond": True},
    {"query_id": "q", "passage_id": "f", "rank": 6, "beyond": True},
]


def test_every_row_is_ranked_cut_or_rejected(spark):
    result = decided(spark, ROWS, top_k=1, min_score=0.5, depth=4)
    assert result.counts() == {
        "ranked": {"": 1},
        "cut": {"top_k": 1, "min_score": 1, "depth": 2},
        "rejects": {"not_finite": 1, "null_passage": 1},
    }
    assert {row["passage_id"]: row["reason"] for row in result.rejects().collect()} == {
        "d": "not_finite",
        "e": "null_passage",
    }


def test_rows_beyond_depth_follow_in_first_stage_order_when_they_are_appended(spark):
    found = by_passage(
        decided(spark, ROWS, depth=4, beyond_depth="append", fusion={"method": "rrf"}).reranked()
    )
    assert {name: row["rank"] for name, row in found.items()} == {"a": 1, "c": 2, "b": 3, "f": 4, "g": 5}
    assert (found["f"]["score"], found["f"]["logit"], found["f"]["fused_score"]) == (None, None, None)


def test_rows_beyond_depth_that_have_no_rank_follow_by_their_score(spark):
    rows = [{"query_id": "q", "passage_id": "a", "logit": 2.0, "rank": 1}]
    rows += [
        {"query_id": "q", "passage_id": name, "score": score, "rank": rank, "beyond": True}
        for name, score, rank in [("b", 1.0, None), ("c", 3.0, None), ("d", None, None), ("e", 0.1, 9)]
    ]
    found = by_passage(decided(spark, rows, depth=1, beyond_depth="append").reranked())
    assert {name: row["rank"] for name, row in found.items()} == {"a": 1, "e": 2, "c": 3, "b": 4, "d": 5}


def test_min_score_does_not_cut_appended_rows_and_top_k_counts_them(spark):
    ranking = {"depth": 4, "beyond_depth": "append", "min_score": 0.7, "top_k": 3}
    result = decided(spark, ROWS, **ranking)
    assert {name: row["rank"] for name, row in by_passage(result.reranked()).items()} == {
        "a": 1,
        "c": 2,
        "f": 3,
    }
    assert result.counts()["cut"] == {"min_score": 1, "top_k": 1}


def test_a_row_at_exactly_min_score_stays(spark):
    rows = [
        {"query_id": "q", "passage_id": "a", "logit": 0.0},
        {"query_id": "q", "passage_id": "b", "logit": -0.001},
    ]
    assert set(by_passage(decided(spark, rows, min_score=0.5).reranked())) == {"a"}


def test_a_pair_that_was_lost_on_the_way_is_a_reject_and_never_ranked(spark):
    rows = [
        {"query_id": "q", "passage_id": "a", "logit": 0.0},
        {"query_id": "q", "passage_id": "b", "lost": True},
    ]
    found = by_passage(decided(spark, rows).listed())
    assert (found["a"]["rank"], found["b"]["rank"]) == (1, None)
    assert found["b"]["reason"] == Reason.TEXT_CHANGED
    assert "changed while it was being read" in found["b"]["detail"]


def test_nested_rows_hold_their_passages_in_rank_order(spark):
    rows = [
        {"query_id": q, "passage_id": f"p{n:02}", "logit": float(n * 7 % 13)} for q in "ab" for n in range(13)
    ]
    table = nested(decided(spark, rows).reranked())
    assert table.columns == ["query_id", "passages"]
    assert isinstance(table.schema["passages"].dataType, T.ArrayType)
    for row in table.collect():
        assert [one["rank"] for one in row["passages"]] == list(range(1, 14))
        logits = [one["logit"] for one in row["passages"]]
        assert logits == sorted(logits, reverse=True)
        assert row["passages"][0]["note"] == row["passages"][0]["passage_id"]


def test_ranking_runs_no_python(spark):
    result = decided(spark, ROWS, fusion={"method": "rrf"})
    for table in (result.reranked(), result.rejects(), result.listed(), nested(result.reranked())):
        assert "EvalPython" not in plan_of(table)
        assert "InArrow" not in plan_of(table)


@pytest.mark.parametrize(
    ("method", "has_rank", "has_score", "sentence"),
    [
        ("min_max", True, False, "min_max needs a first-stage score"),
        ("rrf", False, False, "rrf needs a first-stage rank or score"),
        ("min_max", False, True, None),
        ("rrf", True, False, None),
        ("rrf", False, True, None),
        ("none", False, False, None),
    ],
)
def test_fusion_asks_for_what_it_mixes(method, has_rank, has_score, sentence):
    nothing: Any = None
    prepared = Prepared(nothing, nothing, nothing, nothing, None, has_rank, has_score)
    if sentence is None:
        check_fusion(Fusion(method=method), prepared)
        return
    with pytest.raises(ConfigError, match=sentence):
        check_fusion(Fusion(method=method), prepared)


def test_math_here_is_the_usual_one():
    assert sigmoid(0.0) == 0.5
    assert math.isclose(sigmoid(2.0), 0.8807970779778823)
