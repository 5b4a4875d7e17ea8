"""`explain`: one query's candidates in the order of their numbers, and a text where there is one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from jobs_of import SCHEMA, settings
from tables_of import PASSAGES, QUERIES, candidate_rows, frame, logit_of, sigmoid, three_tables

from rerank_udf import cli
from rerank_udf.errors import InputError
from rerank_udf.spark.explain import explain

REJECTED = [("q4", "nowhere", 1.0, "s"), ("q5", "nowhere", 1.0, "s"), ("q9", "p1", 1.0, "s")]


@pytest.fixture(scope="module")
def inputs(spark, tmp_path_factory) -> Path:
    """The three tables, and queries of which every candidate is rejected: with one text, with two, with none."""
    folder = tmp_path_factory.mktemp("explained")
    candidates, queries, passages = three_tables(spark)
    more = [("q4", "nobody answers"), ("q5", "one"), ("q5", "two")]
    candidates.union(frame(spark, REJECTED, SCHEMA)).write.parquet(str(folder / "candidates"))
    queries.union(frame(spark, more, "query_id string, query string")).write.parquet(str(folder / "queries"))
    passages.write.parquet(str(folder / "passages"))
    return folder


def fused_by_hand(method: str, model: Path) -> dict[str, float]:
    """passage id → fused score of q1's candidates, 0.7 of the reranker."""
    first = {row["passage_id"]: row["score"] for row in candidate_rows() if row["query_id"] == "q1"}
    logits = {p: logit_of(model, QUERIES["q1"], PASSAGES[p]) for p in first}

    def part(values: dict[str, float], passage: str) -> float:
        if method == "rrf":
            return 1 / (60 + 1 + sorted(values.values(), reverse=True).index(values[passage]))
        low, high = min(values.values()), max(values.values())
        return (values[passage] - low) / (high - low)

    return {p: 0.7 * part(logits, p) + 0.3 * part(first, p) for p in first}


@pytest.mark.parametrize("method", ["min_max", "rrf"])
def test_the_fused_score_explains_the_order(spark, inputs, hash_model, method):
    found = explain(spark, settings(inputs, hash_model, ranking={"fusion": {"method": method}}), "q1")
    expected = fused_by_hand(method, hash_model)
    assert found.query == QUERIES["q1"]
    assert [one.passage_id for one in found.candidates] == sorted(expected, key=expected.__getitem__)[::-1]
    assert {one.passage_id: one.fused_score for one in found.candidates} == pytest.approx(expected)
    for one in found.candidates:
        shown = cli._explained_line(one).partition("fused ")[2].split()[0]
        assert float(shown) == pytest.approx(expected[one.passage_id], rel=1e-3, abs=1e-9)


def test_without_fusion_there_is_no_fused_score(spark, inputs, hash_model):
    found = explain(spark, settings(inputs, hash_model), "q1")
    logits = [logit_of(hash_model, QUERIES["q1"], PASSAGES[one.passage_id]) for one in found.candidates]
    assert logits == sorted(logits, reverse=True)
    for one, logit in zip(found.candidates, logits, strict=True):
        line = cli._explained_line(one)
        assert "fused" not in line
        assert f"score {sigmoid(logit):.4f}  logit {logit:+.4f}" in line


def test_every_query_of_the_input_is_explained_whatever_a_trial_run_takes(spark, inputs, hash_model):
    config = settings(inputs, hash_model, input={"limit_queries": 1})
    assert {query: explain(spark, config, query).query for query in QUERIES} == QUERIES
    with pytest.raises(InputError, match="no candidate has query_id 'q7'"):
        explain(spark, config, "q7")


@pytest.fixture
def printed(spark, inputs, hash_model, tmp_path, capsys) -> Any:
    """What `rerank-udf explain` prints of a query, line by line."""

    def start(query_id: str, *options: str, **sections: Any) -> list[str]:
        file = tmp_path / "job.yaml"
        file.write_text(yaml.safe_dump(settings(inputs, hash_model, **sections).model_dump(mode="json")))
        cli.main(["explain", "--config", str(file), "--query-id", query_id, *options])
        return capsys.readouterr().out.splitlines()

    return start


@pytest.mark.parametrize(("query_id", "text"), [("q4", " «nobody answers»"), ("q5", ""), ("q9", "")])
def test_a_query_with_nothing_but_rejects_shows_the_text_that_it_has(printed, query_id, text):
    first, *lines = printed(query_id)
    assert first == f"Q {query_id}{text}"
    assert len(lines) == 1


def test_a_text_in_the_candidates_is_shown_too(spark, hash_model, tmp_path):
    rows = [("a", "x", "warum", None), ("b", "x", None, "darum"), ("c", "x", "", None)]
    schema = "query_id string, passage_id string, query string, passage string"
    frame(spark, rows, schema).write.parquet(str(tmp_path / "candidates"))
    given = {"queries": None, "passages": None, "query_template": "Q: {query}"}
    config = settings(tmp_path, hash_model, input=given)
    assert [explain(spark, config, one).query for one in "abc"] == ["Q: warum", None, "Q: "]


def test_at_most_so_many_are_printed_and_no_fewer_than_none(printed, capsys):
    assert printed("q1", "--most", "0") == [f"Q q1 «{QUERIES['q1']}»", "… 8 more (--most)"]
    with pytest.raises(SystemExit) as ended:
        printed("q1", "--most", "-2")
    assert ended.value.code == 2
    assert "--most" in capsys.readouterr().err
