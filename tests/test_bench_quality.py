"""The quality benchmark keeps what it has scored, says what scored it, and mixes as a job does."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import bench_quality
from qualitybench import systems
from qualitybench.sets import EvaluationSet, read_set, without
from qualitybench.systems import min_max, model_logits, ranked, scored_by, scores_folder

from rerank_udf import load_scorer


@pytest.fixture
def one(tmp_path: Path) -> EvaluationSet:
    """Three questions in each of two languages, over four passages."""
    for lang in ("de", "en"):
        folder = tmp_path / "data" / "xquad" / lang
        folder.mkdir(parents=True)
        queries = pd.DataFrame({"query_id": ["q1", "q2", "q3"]})
        queries["query"] = f"{lang} " + queries["query_id"]
        passages = pd.DataFrame({"passage_id": [f"{lang}-{letter}" for letter in "abcd"]})
        passages["passage"] = f"{lang} " + passages["passage_id"]
        candidates = queries[["query_id"]].merge(passages[["passage_id"]], how="cross")
        candidates["rank"] = candidates.groupby("query_id").cumcount() + 1
        candidates["score"] = 10.0 - candidates["rank"]
        right = [f"{lang}-{letter}" for letter in "bca"]
        qrels = pd.DataFrame({"query_id": ["q1", "q2", "q3"], "passage_id": right, "relevance": 1})
        for name, table in {
            "queries": queries,
            "passages": passages,
            "candidates": candidates,
            "qrels": qrels,
        }.items():
            table.to_parquet(folder / f"{name}.parquet")
    return read_set(tmp_path / "data", "xquad", None, 3)


def test_a_paragraph_is_one_cluster_in_all_languages(one: EvaluationSet) -> None:
    for number, letter in (("q1", "b"), ("q2", "c"), ("q3", "a")):
        assert {one.clusters[f"{lang}/{number}"] for lang in ("de", "en")} == {letter}


def test_questions_about_a_paragraph_are_left_out_in_all_languages(one: EvaluationSet) -> None:
    fewer = without(one, "de de-c")  # the text of q2's paragraph in German
    asked = {f"{lang}/{number}" for lang in ("de", "en") for number in ("q1", "q3")}
    for found in (
        fewer.queries,
        fewer.groups,
        fewer.clusters,
        fewer.candidates["query_id"],
        fewer.qrels["query_id"],
    ):
        assert set(found) == asked
    assert len(fewer.candidates) == 2 * 2 * 3
    assert fewer.candidates.index.tolist() == list(range(12))


def test_logits_are_scored_once_in_the_candidates_order_and_say_by_what(
    one: EvaluationSet, hash_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(one.candidates) == 2 * 3 * 3
    work = tmp_path / "work"
    found = model_logits(one, work, str(hash_model), "float32", 512)
    alone = load_scorer(str(hash_model))
    for row, logit in zip(one.candidates.to_dict("records"), found, strict=True):
        texts = [one.queries[row["query_id"]]], [one.passages[row["passage_id"]]]
        assert alone.logits(*texts)[0] == np.float32(logit)
    folder = scores_folder(work, str(hash_model), "float32", 512)
    (facts,) = scored_by([folder])
    assert (facts["scores"], work / folder.name) == (folder.name, folder)
    assert facts["model"] == str(hash_model)
    assert facts["max_length"] == 512

    def nobody(*_: object, **__: object) -> None:
        raise AssertionError("everything has been scored")

    monkeypatch.setattr(systems, "load_scorer", nobody)
    again = model_logits(one, work, str(hash_model), "float32", 512)
    pd.testing.assert_series_equal(again, found)
    with pytest.raises(AssertionError, match="everything has been scored"):
        model_logits(one, work, str(hash_model), "bfloat16", 512)


def test_a_mixture_orders_by_the_sum_of_both_scores_brought_to_one_scale(one: EvaluationSet) -> None:
    first = one.candidates["score"]
    model = pd.Series(np.tile([0.0, 10.0, 20.0], 6), index=one.candidates.index)
    mixed = min_max(one, {"model": 0.7, "first": 0.3}, {"model": model, "first": first})
    np.testing.assert_allclose(mixed, np.tile([0.3, 0.5, 0.7], 6))
    order = ranked(one, mixed)
    assert order.query("query_id == 'de/q1'")["passage_id"].tolist() == ["de/de-c", "de/de-b", "de/de-a"]
    cut = ranked(one, mixed, depth=2)
    assert cut.query("query_id == 'de/q1'")["passage_id"].tolist() == ["de/de-b", "de/de-a", "de/de-c"]


def test_a_mixture_of_some_depth_knows_the_scored_candidates_only(one: EvaluationSet) -> None:
    """The third logit would press the other two together, and the first stage's order would win."""
    first = one.candidates["score"]
    model = pd.Series(np.tile([0.0, 10.0, 1000.0], 6), index=one.candidates.index)
    mixed = min_max(one, {"model": 0.7, "first": 0.3}, {"model": model, "first": first}, depth=2)
    np.testing.assert_allclose(mixed, np.tile([0.3, 0.7, np.nan], 6))
    order = ranked(one, mixed, depth=2).query("query_id == 'en/q2'")
    assert order["passage_id"].tolist() == ["en/en-b", "en/en-a", "en/en-c"]
    none = min_max(one, {"model": 0.7, "first": 0.3}, {"model": model, "first": first}, depth=0)
    order = ranked(one, none, depth=0).query("query_id == 'en/q2'")
    assert order["passage_id"].tolist() == ["en/en-a", "en/en-b", "en/en-c"]
    alone = min_max(one, {"model": 0.7, "first": 0.3}, {"model": model, "first": first}, depth=1)
    np.testing.assert_allclose(alone, np.tile([0.0, np.nan, np.nan], 6))


def test_the_depth_study_mixes_what_a_job_of_that_depth_scores(
    one: EvaluationSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fifth of seven is right; by far the highest logit has the sixth, which a job of depth 5 does not score."""
    ids = list("abcdefg")
    candidates = pd.DataFrame({"query_id": "q", "passage_id": ids, "rank": range(1, 8), "group": "de"})
    candidates["score"] = 8.0 - candidates["rank"]
    qrels = pd.DataFrame({"query_id": ["q"], "passage_id": ["e"], "relevance": [1]})
    small = replace(one, candidates=candidates, qrels=qrels)
    logits = pd.Series([0.0, 0.0, 0.0, 0.0, 10.0, 1000.0, 0.0])
    monkeypatch.setattr(bench_quality, "_scores", lambda *_: logits)
    rows = bench_quality._depth(small, 0.7, {}).set_index("depth")["fused"]
    assert rows[0] == pytest.approx(1 / np.log2(6), abs=5e-5)
    assert rows[5] == 1.0
    assert rows[10] == pytest.approx(1 / np.log2(7), abs=5e-5)


def test_results_are_json_and_name_the_scorers_of_their_own_studies(
    one: EvaluationSet, hash_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, out = tmp_path / "work", tmp_path / "found.json"
    model_logits(one, work, str(hash_model), "float32", 64)  # of another study, in the same folder
    monkeypatch.setenv("RERANK_UDF_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(bench_quality, "e5_cosines", lambda one, _: -one.candidates["score"])
    given = ["--studies", "main,depth", "--sets", "xquad", "--precision", "float32"]
    given += ["--model", str(hash_model), "--work", str(work), "--out", str(out)]
    done = CliRunner().invoke(bench_quality.main, given)
    assert done.exit_code == 0, done.output
    found = json.loads(out.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert [facts["max_length"] for facts in found["scored by"]] == [512]
    first, *others = (row for row in found["xquad main"] if row["group"] == "all")
    assert (first["system"], first["delta"], first["ci_low"], first["won"]) == ("BM25", None, None, None)
    assert all(isinstance(row["won"], int) and row["delta"] is not None for row in others)
    assert [row["depth"] for row in found["xquad depth"]] == [0, 5, 10, 20]


@pytest.mark.parametrize("path", sorted(Path(bench_quality.__file__).parent.glob("results/quality/*.json")))
def test_committed_results_are_json(path: Path) -> None:
    assert json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail)["scored by"]
