"""The quality benchmark keeps what it has scored, and says what scored it."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from qualitybench import systems
from qualitybench.sets import EvaluationSet, read_set
from qualitybench.systems import min_max, model_logits, ranked, scored_by

from rerank_udf import load_scorer


@pytest.fixture
def one(tmp_path: Path) -> EvaluationSet:
    """Three questions in each of two languages, over four passages."""
    for lang in ("de", "en"):
        folder = tmp_path / "data" / "xquad" / lang
        folder.mkdir(parents=True)
        queries = pd.DataFrame({"query_id": ["q1", "q2", "q3"]})
        queries["query"] = f"{lang} " + queries["query_id"]
        passages = pd.DataFrame({"passage_id": list("abcd")})
        passages["passage"] = f"{lang} " + passages["passage_id"]
        candidates = queries[["query_id"]].merge(passages[["passage_id"]], how="cross")
        candidates["rank"] = candidates.groupby("query_id").cumcount() + 1
        candidates["score"] = 10.0 - candidates["rank"]
        qrels = pd.DataFrame({"query_id": ["q1", "q2", "q3"], "passage_id": list("bca"), "relevance": 1})
        for name, table in {
            "queries": queries,
            "passages": passages,
            "candidates": candidates,
            "qrels": qrels,
        }.items():
            table.to_parquet(folder / f"{name}.parquet")
    return read_set(tmp_path / "data", "xquad", None, 3)


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
    (facts,) = scored_by(work)
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
    assert order.query("query_id == 'de/q1'")["passage_id"].tolist() == ["de/c", "de/b", "de/a"]
    cut = ranked(one, mixed, depth=2)
    assert cut.query("query_id == 'de/q1'")["passage_id"].tolist() == ["de/b", "de/a", "de/c"]
