"""Whose ranking an evaluation says that it measures, and what is told before hours of scoring instead of after them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jobs_of import run, settings
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from tables_of import frame, three_tables

from rerank_udf.errors import ConfigError, InputError
from rerank_udf.evaluation import evaluate
from rerank_udf.evaluation.terminal import REMARKS
from rerank_udf.lake import versions
from rerank_udf.spark import read_reranked
from rerank_udf.spark.assess import assess, check
from rerank_udf.spark.evaluation.result import check_folder

QRELS = "query_id string, passage_id string, relevance int"
GRADES = [("q1", "p3", 1), ("q2", "p1", 1), ("q3", "p6", 2)]
OTHER_MODEL = {"name": "BAAI/bge-reranker-v2-m3", "revision": "main"}
UNKNOWN = "which model scored it is not known"


@pytest.fixture(scope="module")
def inputs(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("assess")
    for name, table in zip(("candidates", "queries", "passages"), three_tables(spark), strict=True):
        table.write.parquet(str(folder / name))
    frame(spark, GRADES, QRELS).write.parquet(str(folder / "qrels"))
    return folder


def job(inputs: Path, out: Path, model: Any, **sections: Any) -> Any:
    evaluation = {"qrels": {"path": str(inputs / "qrels")}, "measures": ["nDCG@10"]}
    sections["evaluation"] = evaluation | sections.get("evaluation", {})
    sections["output"] = {
        "reranked": {"path": str(out / "reranked")},
        "rejects": {"path": str(out / "rejects")},
        **sections.get("output", {}),
    }
    sections["run"] = {"report": str(out / "report"), **sections.get("run", {})}
    if isinstance(model, dict):
        sections["model"] = model
    return settings(inputs, Path(str(model)), **sections)


def means(evaluation: Any) -> dict[str, float]:
    rows = evaluation.summary
    rows = rows[(rows["documents"] == "all") & (rows["group"] == "all")]
    return dict(zip(rows["system"], rows["mean"], strict=True))


def remarks(evaluation: Any) -> list[str]:
    found: list[str] = evaluation.settings.get(REMARKS, [])
    assert evaluation.notes()[len(evaluation.notes()) - len(found) :] == found
    return found


# --- whose ranking it is ---


@pytest.fixture(scope="module")
def published(
    spark: SparkSession, inputs: Path, hash_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Where a job without cuts has published; `job(inputs, published, hash_model)` is its configuration."""
    out = tmp_path_factory.mktemp("published")
    run(spark, job(inputs, out, hash_model))
    return out


def report_of(published: Path, folder: Path, **changed: Any) -> dict[str, str]:
    """A copy of the run's report, changed; what to set for it."""
    report = json.loads((published / "report/run_report.json").read_text())
    folder.mkdir()
    (folder / "run_report.json").write_text(json.dumps(report | changed))
    return {"report": str(folder)}


def test_the_ranking_has_the_name_of_the_model_that_made_it_and_not_of_the_configured_one(
    spark, inputs, published, hash_model, tmp_path
):
    right_after = assess(spark, job(inputs, published, hash_model))
    assert right_after.settings["systems"] == ["first", hash_model.name]
    assert remarks(right_after) == []
    later = assess(spark, job(inputs, published, OTHER_MODEL))
    assert means(later) == means(right_after)
    assert later.settings["systems"] == ["first", hash_model.name]
    (told,) = remarks(later)
    assert f'model.name "{hash_model}" (the settings say "BAAI/bge-reranker-v2-m3")' in told

    nowhere = {"report": str(tmp_path / "report")}
    alone = assess(spark, job(inputs, published, hash_model, run=nowhere))
    ours = {hash_model.name: "reranked"}
    assert means(alone) == {ours.get(name, name): mean for name, mean in means(later).items()}
    assert UNKNOWN in remarks(alone)[0]
    (tmp_path / "report").mkdir()
    for broken in ("{", '{"config": 7}'):
        (tmp_path / "report/run_report.json").write_text(broken)
        found = assess(spark, job(inputs, published, hash_model, run=nowhere))
        assert found.settings["systems"] == ["first", "reranked"]


def test_a_report_of_another_run_names_the_model_only_where_it_is_the_same(
    spark, inputs, published, hash_model, tmp_path
):
    """Where runs to several places share a report folder, the pointer's model_key tells whether the model is one."""
    settings_then = json.loads((published / "report/run_report.json").read_text())["config"]
    cut = {"run_id": "20260131T000000Z-aaaaaa", "config": settings_then | {"ranking": {"top_k": 4}}}
    same = report_of(published, tmp_path / "same", **cut)
    found = assess(spark, job(inputs, published, hash_model, run=same))
    assert (found.settings["systems"], remarks(found)) == (["first", hash_model.name], [])
    assert found.settings["top_k"] is None  # and not that of the other run
    another = report_of(published, tmp_path / "another", **cut, model_key="0" * 32)
    found = assess(spark, job(inputs, published, hash_model, run=another))
    assert found.settings["systems"] == ["first", "reranked"]
    assert UNKNOWN in remarks(found)[0]


def test_lists_are_as_long_as_they_were_published_whatever_the_settings_say_now(
    spark, inputs, hash_model, tmp_path
):
    """Against `evaluate` on the driver, with the first stage by hand and the table as it was published."""
    fusion = {"method": "min_max", "reranker_weight": 0.5}
    run(spark, job(inputs, tmp_path, hash_model, ranking={"top_k": 2, "fusion": fusion}))
    found = assess(spark, job(inputs, tmp_path, hash_model, ranking={"fusion": fusion}))
    assert found.settings["systems"] == [
        "first",
        "fused",
    ]  # the logits of two rows are not the reranker's order
    first = spark.read.parquet(str(inputs / "candidates")).toPandas()
    first["rank"] = first.groupby("query_id")["score"].rank(ascending=False).astype(int)
    ours = read_reranked(spark, str(tmp_path / "reranked")).toPandas()
    expected = evaluate(
        ours[["query_id", "passage_id", "rank"]],
        frame(spark, GRADES, QRELS).toPandas(),
        baseline={"first": first[["query_id", "passage_id", "rank"]]},
        name="fused",
        measures=["nDCG@10"],
        top_k=2,
    )
    assert means(found) == pytest.approx(means(expected))
    assert "ranking.top_k 2 (the settings say null)" in remarks(found)[0]


def test_a_table_with_versions_is_of_the_reports_run_as_long_as_its_rows_are(
    spark, lake_formats, inputs, hash_model, tmp_path
):
    lake_formats("delta")
    place = str(tmp_path / "delta")
    for mode in ("overwrite", "merge"):
        output = {"reranked": {"path": place, "format": "delta", "mode": mode}}
        config = job(inputs, tmp_path, hash_model, output=output)
        run(spark, config)
        assert assess(spark, config).settings["systems"] == ["first", hash_model.name]
    spark.sql(f"optimize delta.`{place}`")
    spark.sql(f"alter table delta.`{place}` set tblproperties ('rerank_udf.test' = '1')")
    found = assess(spark, job(inputs, tmp_path, OTHER_MODEL, output=output))
    assert found.settings["systems"] == ["first", hash_model.name]
    assert "model.name" in remarks(found)[0]
    spark.sql(f"update delta.`{place}` set score = score")  # somebody's
    found = assess(spark, config)
    assert found.settings["systems"] == ["first", "reranked"]
    assert UNKNOWN in remarks(found)[0]


@pytest.mark.parametrize("lake_format", ["iceberg", "parquet"])
def test_a_table_by_name_is_of_the_reports_run(
    spark, lake_formats, inputs, hash_model, tmp_path, lake_format
):
    if lake_format == "iceberg":
        lake_formats(lake_format)
    name = "ice.assess.ours" if lake_format == "iceberg" else "assess_ours"
    try:
        output = {"reranked": {"table": name, "format": lake_format}}
        config = job(inputs, tmp_path, hash_model, output=output, store={"path": str(tmp_path / "store")})
        run(spark, config)
        assert assess(spark, config).settings["systems"] == ["first", hash_model.name]
        report = json.loads((tmp_path / "report/run_report.json").read_text())
        report["output"] |= {"version": "1"} if lake_format == "iceberg" else {"table": "another"}
        (tmp_path / "report/run_report.json").write_text(json.dumps(report))
        assert assess(spark, config).settings["systems"] == ["first", "reranked"]
    finally:
        spark.sql(f"drop table if exists {name}")


def test_another_jobs_output_stands_beside_by_the_same_date_and_by_its_own_sentences(
    spark, inputs, published, hash_model, tmp_path
):
    ours = read_reranked(spark, str(published / "reranked"))
    backwards = ours.withColumn("rank", 100 - F.col("rank"))

    def publish(table: DataFrame, place: str, number: int, date: str | None) -> str:
        path = str(tmp_path / place)
        versions.publish(spark, table, path, run_id=f"run{number}", run_date=date, keep_versions=1, facts={})
        return path

    other = publish(backwards, "other", 0, "2026-01-30")
    publish(ours, "other", 1, "2026-01-31")
    dated = {"reranked": {"path": publish(ours, "dated", 2, "2026-01-31"), "run_date": "2026-01-31"}}
    config = job(inputs, published, hash_model, output=dated)
    found = means(assess(spark, config, {"again": other}))
    assert found["again"] == found["reranked"] == means(assess(spark, config))["reranked"]
    publish(backwards, "other", 3, None)
    assert means(assess(spark, config, {"again": other})) == found
    undated = job(inputs, published, hash_model)
    with pytest.raises(InputError, match=r"the ranking 'again': .* holds a table without a run date"):
        assess(spark, undated, {"again": other})
    (tmp_path / "run.csv").write_text("query_id,passage_id,rank\nq1,p1,1\n")
    with pytest.raises(
        InputError, match=r"the ranking 'csv': .*run.csv is neither Parquet nor Delta; write it"
    ):
        assess(spark, undated, {"csv": str(tmp_path / "run.csv")})


# --- before the work ---


def written(table: DataFrame, place: Path) -> dict[str, str]:
    table.write.parquet(str(place))
    return {"path": str(place)}


NULLS = "column '{}' is null in 1 rows, "
FAULTS = {
    "null query": ([*GRADES, (None, "p1", 1)], NULLS.format("query_id")),
    "null passage": ([*GRADES, ("q1", None, 1)], NULLS.format("passage_id")),
    "null grade": ([*GRADES, ("q1", "p1", None)], NULLS.format("relevance")),
    "twice": (
        [*GRADES, GRADES[0]],
        "query_id 'q1', passage_id 'p3', relevance 1 stands there more than once",
    ),
    "grade": ([*GRADES, ("q3", "p1", 1_000_001)], "relevance 1000001 has a grade above 1,000,000; scale"),
    "empty": ([], "qrels has no rows"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_qrels_that_the_evaluation_refuses_are_refused_before_the_work(
    spark, inputs, hash_model, tmp_path, fault
):
    """The same sentence as the evaluation on the driver has for them, with the section in front."""
    rows, sentence = FAULTS[fault]
    qrels = frame(spark, rows, QRELS)
    config = job(inputs, tmp_path, hash_model, evaluation={"qrels": written(qrels, tmp_path / "qrels")})
    with pytest.raises(InputError) as found:
        check(spark, config)
    assert str(found.value).startswith("evaluation.qrels")
    assert sentence in str(found.value)
    listed = qrels.toPandas()
    if fault == "null grade":
        listed["relevance"] = listed["relevance"].astype("Int64")
    ranking = listed.iloc[:0].rename(columns={"relevance": "rank"}).astype({"rank": int})
    with pytest.raises(InputError) as after:
        evaluate(ranking, listed)
    assert sentence in str(after.value)


def test_groups_that_contradict_themselves_are_told_before_the_work(spark, inputs, hash_model, tmp_path):
    _, queries, _ = three_tables(spark)
    kinds = queries.withColumn("kind", F.lit("a"))
    twice = written(kinds.union(kinds.where("query_id = 'q2'").replace("a", "b")), tmp_path / "twice")
    one_short = written(kinds.where("query_id <> 'q3'"), tmp_path / "short")
    tables = {
        "passages": {"path": str(inputs / "passages")},
        "candidates": {"path": str(inputs / "candidates")},
    }
    several = "column 'kind' has several values for query_id 'q2', 'a' and 'b'; one for a query is expected"
    absent = "says nothing of 1 queries of the qrels, the first 'q3'; every evaluated query needs a row"
    of_candidates = "evaluation.clusters: column 'source' has several values for query_id 'q1', 'q1/"
    for queries_of, asked, sentence in (
        (twice, {"group_by": ["kind"]}, f"evaluation.group_by: {several}"),
        (twice, {"clusters": "kind"}, f"evaluation.clusters: {several}"),
        (one_short, {"group_by": ["kind"]}, f"evaluation.group_by {absent}"),
        (one_short, {"clusters": "source"}, of_candidates),
    ):
        config = job(inputs, tmp_path, hash_model, input={**tables, "queries": queries_of}, evaluation=asked)
        with pytest.raises(InputError) as found:
            check(spark, config)
        assert sentence in str(found.value)
    trial = {**tables, "queries": one_short, "limit_queries": 2}
    check(spark, job(inputs, tmp_path, hash_model, input=trial, evaluation={"group_by": ["kind"]}))
    check(spark, job(inputs, tmp_path, hash_model))  # without groups nobody asks


@pytest.mark.parametrize("few", [1, 100_000])
def test_qrels_of_other_ids_are_told_before_the_work(spark, inputs, hash_model, tmp_path, monkeypatch, few):
    """However few of the judged queries are looked for first."""
    monkeypatch.setattr("rerank_udf.spark.assess._FEW_QUERIES", few)
    strangers = frame(spark, [(query[1], passage, grade) for query, passage, grade in GRADES], QRELS)
    judged = {"qrels": written(strangers, tmp_path / "strangers")}
    config = job(inputs, tmp_path, hash_model, evaluation=judged)
    with pytest.raises(InputError) as found:
        check(spark, config)
    told = str(found.value)
    assert told.startswith(
        "evaluation.qrels: The qrels name no query of any ranking: the first query_id of the qrels is '1'"
    )
    assert "the table input.candidates has 'q" in told
    assert "Check that all are of one collection" in told
    one_is_known = strangers.union(frame(spark, GRADES[:1], QRELS))
    check(
        spark,
        job(inputs, tmp_path, hash_model, evaluation={"qrels": written(one_is_known, tmp_path / "known")}),
    )
    a_day = {"reranked": {"path": str(tmp_path / "reranked"), "run_date": "2026-01-31"}}
    check(spark, job(inputs, tmp_path, hash_model, evaluation=judged, output=a_day))
    merged = {"reranked": {"path": str(tmp_path / "merged"), "format": "delta", "mode": "merge"}}
    check(spark, job(inputs, tmp_path, hash_model, evaluation=judged, output=merged))


def test_a_file_with_a_broken_line_and_a_missing_id_are_sentences(spark, inputs, hash_model, tmp_path):
    (tmp_path / "qrels.csv").write_text("query_id,passage_id,relevance\nq1,p1,1\nq1,p2,1,7\n")
    ragged = {"qrels": {"path": str(tmp_path / "qrels.csv"), "format": "csv"}}
    with pytest.raises(InputError, match="cannot be read"):
        check(spark, job(inputs, tmp_path, hash_model, evaluation=ragged))
    kinds = frame(spark, [("q1", "a")], "qid string, kind string")
    queries = {
        "queries": written(kinds, tmp_path / "kinds"),
        "candidates": {"path": str(inputs / "candidates")},
    }
    config = job(inputs, tmp_path, hash_model, input=queries, evaluation={"group_by": ["kind"]})
    with pytest.raises(
        InputError, match=r"input.queries has no column 'query_id' \(it has qid, kind\); name the"
    ):
        check(spark, config)


def test_a_place_that_takes_no_evaluation_is_a_sentence(spark, inputs, published, hash_model, tmp_path):
    (tmp_path / "file").write_text("mine")
    evaluation = assess(spark, job(inputs, published, hash_model))
    for place in ("file", "file/below"):
        with pytest.raises(ConfigError, match=r"cannot be written to .*/file is a file; give a folder"):
            evaluation.write(tmp_path / place)
    check_folder(spark, str(tmp_path / "new/folder"))
    evaluation.write(tmp_path / "new/folder")
    assert (tmp_path / "new/folder/summary.json").is_file()
    assert (tmp_path / "file").read_text() == "mine"
