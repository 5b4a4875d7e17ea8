"""The figures behind report.html against plain loops, and the page that a job leaves."""

from __future__ import annotations

import io
import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from jobs_of import run, settings, write_inputs
from pyspark.sql import SparkSession
from rich.console import Console
from tables_of import PASSAGES, QUERIES, candidate_rows, frame, logit_of, sigmoid, three_tables

from rerank_udf import page
from rerank_udf.config import JobConfig
from rerank_udf.errors import TooManyRejectsError
from rerank_udf.lake.store import open_store
from rerank_udf.report import RunReport
from rerank_udf.spark import read_reranked
from rerank_udf.spark.assess import assess
from rerank_udf.spark.figures import (
    BAND_ENDS,
    LOGITS,
    SCORES,
    Buckets,
    lengths_of,
    ranking_figures,
    scored_parts,
    times_of,
)
from rerank_udf.spark.judged import most_changed, write_evaluation
from rerank_udf.spark.pipeline import run_rerank
from rerank_udf.spark.ranking import Outcome

pytest.importorskip("jinja2", reason="Jinja2 is not installed (make setup installs it)")

RANKING = {"depth": 7, "top_k": 5, "min_score": 0.02}
QRELS = [("q1", "p3", 1), ("q1", "p0", 0), ("q2", "p1", 2), ("q2", "p9", 1), ("q8", "p1", 1)]


@dataclass(frozen=True)
class Finished:
    folder: Path
    config: JobConfig
    report: RunReport

    @property
    def written(self) -> dict[str, Any]:
        """run_report.json as it lies there."""
        found: dict[str, Any] = json.loads((self.folder / "out/report/run_report.json").read_text())
        return found

    @property
    def html(self) -> str:
        return (self.folder / "out/report/report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def finished(spark: SparkSession, hash_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A job with cuts, rejects and judgements, and its evaluation."""
    folder = tmp_path_factory.mktemp("figures")
    write_inputs(spark, folder)
    qrels = frame(spark, QRELS, "query_id string, passage_id string, relevance int")
    qrels.write.parquet(str(folder / "qrels"))
    evaluation = {"qrels": {"path": str(folder / "qrels")}, "measures": ["nDCG@10"]}
    config = settings(folder, hash_model, ranking=RANKING, evaluation=evaluation)
    console = Console(file=io.StringIO())
    report = run_rerank(spark, config, console)
    write_evaluation(spark, config, report, assess(spark, config), console)
    return Finished(folder, config, report)


def scored_by_hand(model: Path) -> list[tuple[str, str, float, int, int | None]]:
    """(query, passage, logit, first-stage rank, new rank or None) of every row within the depth."""
    found = []
    for query, text in QUERIES.items():
        first = sorted(
            (row for row in candidate_rows() if row["query_id"] == query), key=lambda row: -row["score"]
        )[:7]
        logits = {row["passage_id"]: logit_of(model, text, PASSAGES[row["passage_id"]]) for row in first}
        order = [row["passage_id"] for row in first]
        kept = sorted((p for p in order if sigmoid(logits[p]) >= 0.02), key=lambda p: -logits[p])[:5]
        found += [
            (query, p, logits[p], place, kept.index(p) + 1 if p in kept else None)
            for place, p in enumerate(order, 1)
        ]
    return found


def band_of(rank: int) -> int:
    return sum(rank > end for end in BAND_ENDS)


# --- buckets ---


@pytest.mark.parametrize(
    ("value", "bucket"),
    [(-99.0, 0), (0.0, 0), (0.049, 0), (0.05, 1), (0.99, 19), (1.0, 19), (7.0, 19), (None, None)],
)
def test_the_outer_buckets_take_what_lies_beyond(spark, value, bucket):
    from pyspark.sql import functions as F

    table = spark.createDataFrame([(value,)], "value double")
    assert table.select(SCORES.of(F.col("value"))).collect()[0][0] == bucket


@pytest.mark.parametrize(("most", "width"), [(512, 8.0), (8192, 128.0), (20, 1.0), (65, 2.0)])
def test_length_buckets_reach_to_the_longest_pair(most, width):
    found = lengths_of(most)
    assert found.width == width
    assert found.low + found.width * found.count > most


def test_scored_rows_are_counted_by_scorer_wave_length_and_time(spark, tmp_path):
    schema = "pair_key binary, logit float, tokens int, truncated boolean, reason string, detail string, scorer string"
    for wave, rows in {
        "wave-00001": [
            (b"a", 1.0, 3, False, None, None, "h/1/cpu/x"),
            (b"b", 1.0, 9, True, None, None, "h/1/cpu/x"),
        ],
        "wave-00002-1": [(b"c", None, 2, False, "not_finite", "nan", "h/2/cpu/y")],
    }.items():
        spark.createDataFrame(rows, schema).coalesce(1).write.parquet(str(tmp_path / wave))
    own = spark.read.schema(schema).parquet(*map(str, tmp_path.glob("wave-*/part-*")))
    waves = [{"started_at": "2000-01-01T00:00:00.000+00:00", "seconds": 48.0}]
    begun, times = times_of(waves)
    assert (begun, times) == (946684800.0, Buckets(0.0, 1.0, 48))
    found = scored_parts(own, Buckets(1.0, 4.0, 2), begun, times)
    columns = ("part", "pairs", "tokens", "truncated", "failed")
    told = {name: {tuple(row[c] for c in columns) for row in rows} for name, rows in found.items()}
    assert told == {
        "scorer": {("h/1/cpu/x", 2, 12, 1, 0), ("h/2/cpu/y", 1, 2, 0, 1)},
        "wave": {("1", 2, 12, 1, 0), ("2", 1, 2, 0, 1)},
        "length": {("0", 2, 5, 0, 1), ("1", 1, 9, 1, 0)},
        "time": {("47", 3, 14, 1, 1)},
    }


# --- a job's figures ---


def test_lengths_are_those_of_the_stored_facts(spark, finished):
    store = open_store(spark, finished.config.store, finished.config.store_path())
    tokens = [row["tokens"] for row in store.facts(finished.report.model_key).collect()]
    found = finished.written["figures"]["lengths"]
    buckets = Counter(int((n - found["low"]) // found["width"]) for n in tokens)
    assert {n: count for n, count in enumerate(found["pairs"]) if count} == buckets
    assert sum(found["tokens"]) == sum(tokens) == finished.report.tokens


def test_waves_and_times_hold_every_scored_pair(finished):
    report = finished.written
    times = report["figures"]["times"]
    assert sum(times["pairs"]) == report["pairs_scored"] == 21
    assert sum(times["tokens"]) == sum(wave["tokens"] for wave in report["waves"]) == report["tokens"]
    assert all(wave["started_at"] >= report["started_at"][:19] for wave in report["waves"])


def test_scores_are_those_of_a_plain_loop(hash_model, finished):
    figures = finished.written["figures"]
    for name, buckets, value in (("logits", LOGITS, lambda x: x), ("scores", SCORES, sigmoid)):
        for series, wanted in (("first", True), ("rest", False)):
            expected = Counter(
                min(max(math.floor((value(logit) - buckets.low) / buckets.width), 0), buckets.count - 1)
                for _, _, logit, _, rank in scored_by_hand(hash_model)
                if (rank == 1) is wanted
            )
            assert {n: c for n, c in enumerate(figures[name][series]) if c} == expected


def test_movement_is_that_of_a_plain_loop(hash_model, finished):
    found = finished.written["figures"]["movement"]
    rows = scored_by_hand(hash_model)
    cells = Counter((band_of(first), 10 if rank is None else band_of(rank)) for *_, first, rank in rows)
    assert {(a, b): n for a, row in enumerate(found["cells"]) for b, n in enumerate(row) if n} == cells
    placed = [(first, rank) for *_, first, rank in rows if rank is not None]
    assert found["rose"] == sum(rank < first for first, rank in placed)
    assert found["kept"] == sum(rank == first for first, rank in placed)
    assert found["fell"] == sum(rank > first for first, rank in placed)
    assert found["queries"] == 3
    assert found["first_changed"] == sum(rank == 1 and first > 1 for first, rank in placed)


def test_movement_counts_places_where_the_candidates_ranks_have_gaps(spark):
    """Ranks 10, 20 and 30 left as they are have not risen; a passage that had no rank has not moved."""
    rows = [
        ("q1", "a", 10, 1),
        ("q1", "b", 20, 2),
        ("q1", "c", 30, 3),
        ("q1", "d", None, 4),
        ("q2", "a", 7, 2),
        ("q2", "b", 9, 1),
        ("q2", "c", 9, None),
    ]
    ranks, rest = "first_stage_rank int, rank int", "logit float, score double, reason string"
    table = frame(
        spark,
        [(*row, 1.0, 0.5, None) for row in rows],
        f"query_id string, passage_id string, {ranks}, {rest}",
    )
    found = ranking_figures(Outcome(table, fused=False), "sigmoid", own_ranks=True)["movement"]
    assert (found["rose"], found["kept"], found["fell"]) == (1, 3, 1)
    assert (found["queries"], found["first_changed"]) == (2, 1)
    assert [row[10] for row in found["cells"]] == [0, 0, 1] + [0] * 7


# --- judgements ---


def test_precision_counts_the_ranked_rows_of_judged_queries(spark, finished):
    rows = read_reranked(spark, str(finished.folder / "out/reranked")).collect()
    grades = {(q, p): grade for q, p, grade in QRELS}
    asked = [row for row in rows if row["query_id"] in {q for q, _, _ in QRELS}]
    expected: dict[str, Counter[int]] = {name: Counter() for name in ("rows", "judged", "relevant")}
    for row in asked:
        bucket = min(19, math.floor(row["score"] / 0.05))
        grade = grades.get((row["query_id"], row["passage_id"]))
        expected["rows"][bucket] += 1
        expected["judged"][bucket] += grade is not None
        expected["relevant"][bucket] += bool(grade)
    found = json.loads((finished.folder / "out/report" / page.EVALUATION_FILE).read_text())["precision"]
    for name, counts in expected.items():
        assert found[name] == [counts[n] for n in range(20)]


def test_the_most_changed_queries_come_with_their_texts_in_both_orders(spark, hash_model, finished):
    found = json.loads((finished.folder / "out/report" / page.EVALUATION_FILE).read_text())
    by_hand = scored_by_hand(hash_model)
    assert found["run_id"] == finished.report.run_id
    assert found["changed"]
    for one in found["changed"]:
        query = one["query_id"]
        assert one["query"] == QUERIES[query]
        ranks = {p: (first, rank) for q, p, _, first, rank in by_hand if q == query}
        assert [p["passage_id"] for p in one["first_stage"]] == sorted(ranks, key=lambda p: ranks[p][0])[:3]
        new = sorted((p for p in ranks if ranks[p][1]), key=lambda p: ranks[p][1] or 0)
        assert [p["passage_id"] for p in one["reranked"]] == new[:3]
        for shown in (*one["first_stage"], *one["reranked"]):
            assert shown["passage"] == PASSAGES[shown["passage_id"]]
            assert shown["rank"] == ranks[shown["passage_id"]][1]
            grades = [g for q, p, g in QRELS if (q, p) == (query, shown["passage_id"])]
            assert shown["relevance"] == (grades[0] if grades else None)


def test_those_that_gained_come_first_and_ties_are_left_out(spark):
    values = {"a": (0.1, 0.9), "b": (0.5, 0.5), "c": (0.9, 0.2), "d": (0.0, 1.0), "e": (0.4, 0.3)}
    rows = [
        {"query_id": q, "system": system, "documents": "all", "measure": "RR", "value": value}
        for q, both in values.items()
        for system, value in zip(("first", "new"), both, strict=True)
    ]
    rows += [{**row, "documents": "judged", "value": 0.0} for row in rows]
    schema = "query_id string, system string, documents string, measure string, value double"
    found = most_changed(frame(spark, rows, schema), "RR", "first", "new", most=2)
    assert found == [("d", 0.0, 1.0), ("a", 0.1, 0.9), ("c", 0.9, 0.2), ("e", 0.4, 0.3)]


# --- the page ---


def test_a_job_leaves_its_page_beside_its_report(finished):
    report = finished.written
    assert report["output"]["page"] == str(finished.folder / "out/report/report.html")
    assert finished.html == page.render(finished.folder / "out/report/run_report.json")
    assert "nDCG@10 went from" in finished.html
    assert report["evaluation"]


def test_the_next_run_of_the_same_folder_starts_with_a_page_of_its_own(spark, hash_model, tmp_path):
    write_inputs(spark, tmp_path)
    config = settings(tmp_path, hash_model)
    run(spark, config)
    again = run(spark, config)
    html = (tmp_path / "out/report/report.html").read_text(encoding="utf-8")
    assert again.run_id in html
    assert (
        "Nothing was scored and no model was loaded: the store knew the scores of all 24 distinct pairs"
        in html
    )
    assert "first passages against the rest" in html


def test_a_threshold_above_every_score_is_measured_as_zero_and_the_page_says_why(spark, hash_model, tmp_path):
    write_inputs(spark, tmp_path)
    frame(spark, QRELS, "query_id string, passage_id string, relevance int").write.parquet(
        str(tmp_path / "qrels")
    )
    judged = {"qrels": {"path": str(tmp_path / "qrels")}, "measures": ["nDCG@10"]}
    config = settings(tmp_path, hash_model, ranking={"min_score": 1.0}, evaluation=judged)
    report = run(spark, config)
    assert report.ranked == 0
    written = tmp_path / "out/report/report.html"
    html = written.read_text(encoding="utf-8")
    assert "the result is published, but no evaluation of it has ended" in html
    write_evaluation(spark, config, report, assess(spark, config), Console(file=io.StringIO()))
    found = json.loads((tmp_path / "out/report" / page.EVALUATION_FILE).read_text())
    means = {row["system"]: row["mean"] for row in found["summary"] if row["documents"] == "all"}
    assert means[hash_model.name] == 0.0 < means["first"]
    html = written.read_text(encoding="utf-8")
    assert "3 queries without candidates count as 0." in html
    assert "no evaluation of it has ended" not in html
    assert found["notes"]
    assert all(note[1:] in html for note in found["notes"] if "'" not in note)


def test_a_query_of_a_trial_counts_though_a_threshold_took_all_its_rows(spark, hash_model, tmp_path):
    """Candidates have no first-stage order, so that what is published is the only ranking."""
    candidates, queries, passages = three_tables(spark)
    given = {"candidates": candidates.select("query_id", "passage_id"), "queries": queries}
    for name, table in (given | {"passages": passages}).items():
        table.write.parquet(str(tmp_path / name))
    grades = [(q, "p1", 1) for q in QUERIES]
    frame(spark, grades, "query_id string, passage_id string, relevance int").write.parquet(
        str(tmp_path / "qrels")
    )
    best = {
        q: max(sigmoid(logit_of(hash_model, text, p)) for p in PASSAGES.values())
        for q, text in QUERIES.items()
    }
    judged = {"qrels": {"path": str(tmp_path / "qrels")}, "measures": ["R@10"]}
    options = {"input": {"limit_queries": 2}, "evaluation": judged}
    config = settings(tmp_path, hash_model, **options)
    run(spark, config)
    tried = {row["query_id"] for row in read_reranked(spark, str(tmp_path / "out/reranked")).collect()}
    assert len(tried) == 2
    worst, better = sorted(tried, key=lambda q: best[q])
    limit = (best[worst] + best[better]) / 2
    config = settings(tmp_path, hash_model, ranking={"min_score": limit}, **options)
    run(spark, config)
    found = assess(spark, config)
    assert (found.counts["queries"], found.counts["queries_without_candidates"]) == (2, 1)
    assert set(found.per_query["query_id"]) == tried


@pytest.mark.parametrize("allowed", [0.0, 0.1])
def test_a_refused_run_has_a_page_too(spark, hash_model, tmp_path, allowed):
    write_inputs(spark, tmp_path)
    with pytest.raises(TooManyRejectsError):
        run(spark, settings(tmp_path, hash_model, run={"max_reject_fraction": allowed}))
    html = (tmp_path / "out/report/report.html").read_text(encoding="utf-8")
    assert "5 of 29 rows were rejected" in html


def test_scores_that_are_logits_have_one_distribution(spark, hash_model, tmp_path):
    write_inputs(spark, tmp_path)
    report = run(spark, settings(tmp_path, hash_model, ranking={"activation": "identity"}))
    assert "logits" in report.figures
    assert "scores" not in report.figures


def test_without_jinja2_the_job_says_what_to_install_and_goes_on(spark, hash_model, tmp_path, monkeypatch):
    write_inputs(spark, tmp_path)
    config = settings(tmp_path, hash_model)
    stale = tmp_path / "out/report/report.html"
    stale.parent.mkdir(parents=True)
    stale.write_text("of an earlier run")
    monkeypatch.setattr(page, "missing_package", lambda: "Jinja2")
    shown = io.StringIO()
    report = run_rerank(spark, config, Console(file=shown, width=80))
    assert report.ranked == 24
    assert "pip install 'rerank-udf[report]'" in shown.getvalue()
    assert "page" not in report.output
    assert not stale.exists()
    assert (tmp_path / "out/report/run_report.json").exists()
