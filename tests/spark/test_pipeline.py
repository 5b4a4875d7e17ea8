"""The whole job: every row accounted for, the plans that ran, what is published and when nothing is."""

from __future__ import annotations

import io
import json
import os
import re
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from jobs_of import BAD, run, settings, write_inputs
from pyspark.errors import AnalysisException
from pyspark.sql import SparkSession
from pyspark.sql import functions as F
from rich.console import Console
from tables_of import (
    PASSAGES,
    QUERIES,
    candidate_rows,
    logit_of,
    plain_ranking,
    ranking_of,
    sigmoid,
)

from rerank_udf.config import JobConfig
from rerank_udf.errors import (
    ConfigError,
    InputError,
    ModelError,
    RerankError,
    StoreError,
    TooManyRejectsError,
)
from rerank_udf.lake import files, versions
from rerank_udf.report import RunReport
from rerank_udf.spark import pipeline, read_reranked, workplace
from rerank_udf.spark.estimate import estimate
from rerank_udf.spark.pipeline import publishing_tasks, read_and_prepare, run_rerank
from rerank_udf.spark.rows import StagedRows
from rerank_udf.spark.staging import StagedPairs
from rerank_udf.spark.waves import small_arrow_batches
from rerank_udf.spark.workplace import Workplace
from rerank_udf.tables import Cut, Reason


def executed_plans(spark: SparkSession, after: int = -1) -> dict[int, str]:
    """execution id → the physical plan that ran in the end, of every action since `after`."""
    store = spark._jsparkSession.sharedState().statusStore()
    spark._jsc.sc().listenerBus().waitUntilEmpty()
    listed = store.executionsList()
    plans = {}
    for number in range(listed.size()):
        execution = listed.apply(number)
        if execution.executionId() > after:
            plans[execution.executionId()] = str(execution.physicalPlanDescription()).split(
                "== Initial Plan =="
            )[0]
    return plans


@dataclass(frozen=True)
class Finished:
    folder: Path
    config: JobConfig
    report: RunReport
    plans: dict[int, str]
    output: str


RANKING = {"depth": 7, "top_k": 5, "min_score": 0.02}


@pytest.fixture(scope="module")
def finished(spark: SparkSession, hash_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """One job that ran well, looked at by many tests."""
    folder = tmp_path_factory.mktemp("job")
    write_inputs(spark, folder)
    config = settings(folder, hash_model, ranking=RANKING)
    last = max(executed_plans(spark), default=-1)
    shown = io.StringIO()
    report = run_rerank(
        spark, config, Console(file=shown, width=120), command="rerank-udf rerank --set a.password=x"
    )
    return Finished(folder, config, report, executed_plans(spark, last), shown.getvalue())


def test_the_published_ranking_is_that_of_a_plain_loop(spark, hash_model, finished):
    expected = {}
    for query, ranking in plain_ranking(hash_model, candidate_rows(7)).items():
        expected[query] = [
            p for p in ranking if sigmoid(logit_of(hash_model, QUERIES[query], PASSAGES[p])) >= 0.02
        ][:5]
    rows = read_reranked(spark, str(finished.folder / "out/reranked")).collect()
    assert ranking_of(rows) == expected
    for row in rows:
        assert row["logit"] == logit_of(hash_model, QUERIES[row["query_id"]], PASSAGES[row["passage_id"]])


def test_every_row_is_ranked_cut_or_rejected(finished):
    report = finished.report
    assert report.pairs_in == 24 + len(BAD)
    assert report.pairs_in == report.ranked + sum(report.cut.values()) + sum(report.rejects.values())
    assert report.cut[Cut.DEPTH] == 3
    assert report.rejects == {
        Reason.UNKNOWN_PASSAGE: 1,
        Reason.NULL_ID: 1,
        Reason.DUPLICATE_CANDIDATE: 1,
        Reason.UNKNOWN_QUERY: 1,
        Reason.NULL_PASSAGE: 1,
    }
    assert report.pairs_distinct == report.pairs_scored == 21
    assert (report.pairs_reused, report.queries_without_candidates) == (0, 1)


def test_the_rejects_table_says_which_and_why(spark, finished):
    rows = spark.read.parquet(str(finished.folder / "out/rejects")).collect()
    assert sorted((str(row["query_id"]), row["passage_id"], row["reason"]) for row in rows) == [
        ("None", "p1", Reason.NULL_ID),
        ("q1", "nowhere", Reason.UNKNOWN_PASSAGE),
        ("q1", "p1", Reason.DUPLICATE_CANDIDATE),
        ("q2", "null", Reason.NULL_PASSAGE),
        ("q9", "p1", Reason.UNKNOWN_QUERY),
    ]
    assert all(row["detail"] for row in rows)


def test_the_report_is_written_with_what_was_counted(finished):
    found = json.loads((finished.folder / "out/report/run_report.json").read_text(encoding="utf-8"))
    for name in (
        "pairs_in",
        "pairs_distinct",
        "pairs_scored",
        "ranked",
        "cut",
        "rejects",
        "tokens",
        "models_loaded",
    ):
        assert found[name] == getattr(finished.report, name), name
    texts = [(QUERIES[row["query_id"]], PASSAGES[row["passage_id"]]) for row in candidate_rows(7)]
    assert found["tokens"] == sum(len(q.encode()) + len(p.encode()) for q, p in texts)
    assert set(found["seconds"]) == {"prepare", "stage", "adopt", "score", "publish"}
    assert found["config"]["ranking"]["top_k"] == 5
    assert len(found["model_key"]) == 32
    assert found["output"]["path"] == str(finished.folder / "out/reranked")
    assert found["inputs"]["input.candidates"] == str(finished.folder / "candidates")
    assert "a.password=***" in found["command"]


def test_one_model_a_worker_was_loaded(finished):
    assert 1 <= finished.report.models_loaded <= 2
    assert len(finished.report.devices) == 1
    assert finished.report.devices[0].endswith("/cpu")


def test_python_ran_in_the_scoring_plan_and_nowhere_else(finished):
    python = re.compile(r"\b\w*(?:InArrow|EvalPython|InPandas)\w* \(\d+\)")
    found = {number: python.findall(plan.split("\n\n")[0]) for number, plan in finished.plans.items()}
    scoring = [number for number, operators in found.items() if operators]
    assert len(scoring) == 1
    assert len(found[scoring[0]]) == 1
    assert "MapInArrow" in found[scoring[0]][0]
    plan = finished.plans[scoring[0]]
    tree = plan.split("\n\n")[0].splitlines()
    above = tree[: next(n for n, line in enumerate(tree) if "MapInArrow" in line)]
    assert not [line for line in above if "Exchange" in line or "Sort" in line]
    assert "InsertIntoHadoopFsRelationCommand" in plan
    writes = [plan for plan in finished.plans.values() if "InsertIntoHadoopFsRelationCommand" in plan]
    assert len(writes) == 7  # rows, pairs, passages, scored; the store's facts; rejects, reranked


def test_as_many_files_are_published_as_were_counted_for(finished):
    parts = list(Path(finished.report.output["version"]).glob("part-*.parquet"))
    assert len(parts) == publishing_tasks(29, 2) == 1


def test_nothing_but_the_outputs_is_left(finished):
    left = {path.name for path in (finished.folder / "out").iterdir()}
    assert left == {"reranked", "rejects", "report", "reranked_store"}
    work = finished.folder / "out/reranked_store/_work"
    assert [path for path in work.rglob("*") if path.is_file()] == []


def test_plain_readers_fail_or_read_a_whole_version(spark, finished):
    with pytest.raises(AnalysisException, match="UNABLE_TO_INFER_SCHEMA"):
        spark.read.parquet(str(finished.folder / "out/reranked"))
    assert spark.read.parquet(finished.report.output["version"]).count() == finished.report.ranked


def test_other_session_settings_publish_the_same_rows(session_settings, hash_model, finished):
    spark = session_settings
    before = sorted(map(str, read_reranked(spark, str(finished.folder / "out/reranked")).collect()))
    spark.conf.set("spark.sql.shuffle.partitions", "1")
    spark.conf.set("spark.sql.adaptive.enabled", "false")
    spark.conf.set("spark.sql.ansi.enabled", "false")
    spark.conf.set("spark.sql.caseSensitive", "true")
    spark.conf.set("spark.sql.session.timeZone", "America/St_Johns")
    report = run(spark, settings(finished.folder, hash_model, "other", ranking=RANKING))
    after = sorted(map(str, read_reranked(spark, str(finished.folder / "other/reranked")).collect()))
    assert after == before
    assert (report.model_key, report.rejects) == (finished.report.model_key, finished.report.rejects)


def test_too_many_rejects_publish_nothing_and_leave_what_was_published(spark, hash_model, finished):
    out = "strict"
    versions.publish(
        spark,
        spark.range(7),
        str(finished.folder / out / "reranked"),
        run_id="old",
        run_date=None,
        keep_versions=2,
        facts={},
    )
    config = settings(
        finished.folder,
        hash_model,
        out,
        run={"max_reject_fraction": 0.1, "report": str(finished.folder / out / "r")},
    )
    with pytest.raises(
        TooManyRejectsError,
        match=r"5 of 29 rows rejected \(duplicate_candidate 1, .*0\.1 allows; nothing was",
    ) as caught:
        run(spark, config)
    assert caught.value.exit_code == 3
    assert read_reranked(spark, str(finished.folder / out / "reranked")).count() == 7
    assert spark.read.parquet(str(finished.folder / out / "rejects")).count() == 5
    found = json.loads((finished.folder / out / "r/run_report.json").read_text())
    assert found["pairs_in"] == found["ranked"] + sum(found["cut"].values()) + sum(found["rejects"].values())
    assert found["cut"] == {Cut.STOPPED: 24}


def test_rejects_that_only_scoring_finds_count_too(spark, hash_model, finished, monkeypatch):
    """A passage that changes between two readings of the input: its pairs are rejects, whatever else happens."""
    real = pipeline.stage_pairs

    def changing(spark: SparkSession, rows: Any, count: int, prepared: Any, store: Any, folder: str) -> Any:
        without = prepared.passages.where(F.col("passage") != PASSAGES["p3"])
        return real(spark, rows, count, replace(prepared, passages=without), store, folder)

    monkeypatch.setattr(pipeline, "stage_pairs", changing)
    report = run(
        spark,
        settings(
            finished.folder,
            hash_model,
            "changing",
            run={"max_reject_fraction": 0.5, "report": str(finished.folder / "changing/r")},
        ),
    )
    assert report.rejects[Reason.TEXT_CHANGED] == 3
    assert report.unaccounted() == 0
    rows = read_reranked(spark, str(finished.folder / "changing/reranked")).collect()
    assert "p3" not in {row["passage_id"] for row in rows}
    assert all(row["logit"] is not None for row in rows)
    with pytest.raises(TooManyRejectsError, match="text_changed 3"):
        run(spark, settings(finished.folder, hash_model, "changing2"))
    assert not (finished.folder / "changing2/reranked/_current").exists()


def test_a_table_by_name_with_nested_rows_from_sql_and_filtered_inputs(spark, hash_model, finished):
    spark.sql("drop table if exists reranked_by_name")
    candidates = {
        "sql": f"select * from parquet.`{finished.folder}/candidates`",
        "where": "query_id in ('q1', 'q3') and score > 12",
    }
    spark.read.parquet(str(finished.folder / "queries")).createOrReplaceTempView("queries_by_name")
    config = settings(
        finished.folder,
        hash_model,
        input={
            "candidates": candidates,
            "queries": {"table": "queries_by_name"},
            "passages": {"path": str(finished.folder / "passages")},
        },
        output={
            "reranked": {"table": "reranked_by_name", "run_date": "2026-01-31"},
            "rejects": {"path": str(finished.folder / "named/rejects")},
            "layout": "nested",
            "keep_columns": "none",
        },
        store={"path": str(finished.folder / "named/work")},
        run={"report": str(finished.folder / "named/report")},
    )
    report = run(spark, config)
    assert report.output["table"] == "reranked_by_name"
    kept = [row for row in candidate_rows() if row["query_id"] in ("q1", "q3") and row["score"] > 12]
    found = spark.table("reranked_by_name")
    assert {
        row["query_id"]: [p["passage_id"] for p in row["passages"]] for row in found.collect()
    } == plain_ranking(hash_model, kept)
    assert {str(row["run_date"]) for row in found.collect()} == {"2026-01-31"}
    spark.sql("drop table reranked_by_name")


def test_where_nothing_can_be_scored_no_model_is_loaded_and_an_empty_table_published(
    spark, hash_model, finished
):
    empty = {"path": str(finished.folder / "queries"), "where": "false"}
    inputs = {**finished.config.model_dump()["input"], "queries": empty}
    report = run(
        spark,
        settings(
            finished.folder,
            hash_model,
            "none",
            input=inputs,
            run={"max_reject_fraction": 1.0, "report": str(finished.folder / "none/r")},
        ),
    )
    assert report.rejects == {Reason.UNKNOWN_QUERY: 28, Reason.NULL_ID: 1}
    assert (report.models_loaded, report.devices, report.pairs_scored, report.ranked) == (0, [], 0, 0)
    published = read_reranked(spark, str(finished.folder / "none/reranked"))
    assert published.count() == 0
    assert published.columns == [
        "query_id",
        "passage_id",
        "rank",
        "score",
        "logit",
        "first_stage_rank",
        "first_stage_score",
        "source",
    ]


def test_an_empty_candidate_table_is_an_error_and_publishes_nothing(spark, hash_model, finished):
    inputs = finished.config.model_dump()["input"]
    inputs["candidates"]["where"] = "1 = 0"
    with pytest.raises(
        InputError, match=r"candidates is empty: 0 rows in .*candidates where 1 = 0; nothing was published"
    ):
        run(spark, settings(finished.folder, hash_model, "empty", input=inputs))
    assert not (finished.folder / "empty/reranked").exists()
    left = [path for path in (finished.folder / "empty").rglob("*") if path.is_file()]
    assert left == []


def test_a_model_that_is_none_fails_before_anything_is_staged(spark, finished, tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]})
    )
    with pytest.raises(ModelError):
        run(spark, settings(finished.folder, tmp_path, "nomodel"))
    assert not (finished.folder / "nomodel").exists()


def test_a_column_named_run_date_only_matters_where_the_output_has_one(spark, hash_model, finished):
    inputs = finished.config.model_dump()["input"]
    inputs["candidates"] = {"sql": f"select *, 1 as run_date from parquet.`{finished.folder}/candidates`"}
    read_and_prepare(spark, settings(finished.folder, hash_model, input=inputs))
    dated = {"reranked": {"path": str(finished.folder / "x"), "run_date": "2026-01-31"}}
    with pytest.raises(InputError, match=r"candidates\.run_date would collide"):
        read_and_prepare(spark, settings(finished.folder, hash_model, input=inputs, output=dated))


def test_json_lines_and_csv_with_quotes_and_line_breaks_come_in_whole(spark, hash_model, tmp_path):
    tricky = {
        "a": 'He said ""hi"", twice',
        "b": 'two\nlines, one "cell"',
        "c": "",
        "d": "  ünïcode 日本 \\ back",
    }
    candidates = [("q", name, str(n)) for n, name in enumerate(tricky)] + [("q", "x", "n/a")]
    lines = ["query_id,passage_id,score", *(",".join(row) for row in candidates)]
    (tmp_path / "candidates.csv").write_text("\n".join(lines) + "\n")
    cells = "".join(
        '{},"{}"\n'.format(name, text.replace('"', '""')) for name, text in {**tricky, "x": "y"}.items()
    )
    (tmp_path / "passages.csv").write_text("passage_id,passage\n" + cells, encoding="utf-8")
    (tmp_path / "queries.jsonl").write_text(json.dumps({"query_id": "q", "query": 'why\n\t"now"'}) + "\n")
    inputs = {
        "candidates": {"path": str(tmp_path / "candidates.csv"), "format": "csv"},
        "queries": {"path": str(tmp_path / "queries.jsonl"), "format": "json"},
        "passages": {"path": str(tmp_path / "passages.csv"), "format": "csv"},
    }
    prepared = read_and_prepare(spark, settings(tmp_path, hash_model, input=inputs))
    reasons = {
        row["passage_id"]: (row["reason"], row["first_stage_score"]) for row in prepared.rows.collect()
    }
    assert reasons == {
        "a": (None, 0.0),
        "b": (None, 1.0),
        "c": (None, 2.0),
        "d": (None, 3.0),
        "x": (Reason.BAD_SCORE, None),
    }
    assert {row["passage"] for row in prepared.passages.collect()} == {*tricky.values(), "y"}
    assert [row["query"] for row in prepared.queries.collect()] == ['why\n\t"now"']


def test_a_dry_run_counts_what_a_run_would_do_and_writes_nothing(spark, finished):
    before = sorted(path for path in finished.folder.rglob("*"))
    found = estimate(spark, finished.config)
    report = finished.report
    assert (found.pairs_in, found.rejects, found.pairs_distinct) == (
        report.pairs_in,
        report.rejects,
        report.pairs_distinct,
    )
    assert found.beyond_depth == report.cut[Cut.DEPTH]
    assert sorted(path for path in finished.folder.rglob("*")) == before


# --- parts ---


def test_fusion_that_lacks_its_numbers_is_refused_before_any_work(spark, hash_model, finished):
    inputs = finished.config.model_dump()["input"]
    inputs["candidates"] = {"sql": f"select query_id, passage_id from parquet.`{finished.folder}/candidates`"}
    config = settings(finished.folder, hash_model, input=inputs, ranking={"fusion": {"method": "min_max"}})
    with pytest.raises(ConfigError, match="min_max needs a first-stage score"):
        read_and_prepare(spark, config)


@pytest.mark.parametrize(
    ("rows", "slots", "tasks"),
    [
        (0, 8, 1),
        (29, 2, 1),
        (10**5, 8, 2),
        (10**6, 2, 2),
        (10**6, 100, 20),
        (10**7, 2, 10),
        (10**9, 64, 1000),
    ],
)
def test_files_are_published_whole_and_not_in_crumbs(rows, slots, tasks):
    assert publishing_tasks(rows, slots) == tasks


def test_only_folders_of_dead_runs_are_cleared_away(spark, tmp_path):
    """`store.work` may be a folder that holds other things: they are not ours to delete."""
    old, busy, waiting, recent = [f"20200101T000000Z-{c * 6}" for c in "abc"] + [versions.new_run_id()]
    signs = {f"scored/key/{busy}/wave-00001/part-0", f"runs/{waiting}/_alive"}  # of today; all else is old
    for kind in ("runs", "staged/print", "scored/key"):
        for name in (old, busy, waiting, recent, "notes"):
            (tmp_path / kind / name / "wave-00001").mkdir(parents=True)
            (tmp_path / kind / name / "wave-00001/part-0").touch()
    (tmp_path / "runs" / waiting / "_alive").touch()
    long_ago = time.time() - 2 * 24 * 3600
    for path in [*tmp_path.rglob("*"), tmp_path]:
        if str(path.relative_to(tmp_path)) not in signs:
            os.utime(path, (long_ago, long_ago))
    (tmp_path / "candidates" / old).mkdir(parents=True)
    rescued = []
    Workplace(spark, str(tmp_path), "other key", "run").clear_away_the_dead(
        lambda *what: rescued.append(what)
    )
    for kind in ("runs", "staged/print", "scored/key"):
        assert {path.name for path in (tmp_path / kind).iterdir()} == {busy, waiting, recent, "notes"}
    assert (tmp_path / "candidates" / old).exists()
    assert rescued == [("key", f"{tmp_path}/scored/key/{old}")]


def test_scores_of_the_dead_stay_until_they_are_in_a_store(spark, tmp_path):
    scored = tmp_path / "scored/key/20200101T000000Z-aaaaaa/wave-00001"
    scored.mkdir(parents=True)
    os.utime(scored, (1, 1))
    work = Workplace(spark, str(tmp_path), "key", "run")

    def fails(*_: str) -> None:
        raise StoreError("no space left")

    work.clear_away_the_dead(fails)
    assert scored.exists()
    work.clear_away_the_dead(lambda *_: 0)
    assert not scored.exists()


def test_scores_of_the_dead_are_taken_over_by_runs_of_their_own_store(spark, tmp_path):
    own, others = (
        tmp_path / f"scored/key-{store}/20200101T000000Z-aaaaaa" for store in ("1234abcd", "5678abcd")
    )
    for folder in (own, others):
        (folder / "wave-00001").mkdir(parents=True)
        for path in (folder / "wave-00001", folder):
            os.utime(path, (1, 1))
    rescued = []
    work = Workplace(spark, str(tmp_path), "key", "run", "1234abcd")
    work.clear_away_the_dead(lambda *what: rescued.append(what))
    assert rescued == [("key", str(own))]
    assert others.exists()
    assert not own.exists()


def test_a_run_gives_signs_of_life_until_it_ends(spark, tmp_path, monkeypatch):
    monkeypatch.setattr(workplace, "_HEARTBEAT_SECONDS", 0.01)
    work = Workplace(spark, str(tmp_path), "key", "20200101T000000Z-aaaaaa")
    sign = Path(work.run, "_alive")

    def appears() -> bool:
        end = time.monotonic() + 60
        while not sign.exists() and time.monotonic() < end:
            time.sleep(0.01)
        return sign.exists()

    with work.kept_only_on_failure():
        assert appears()
        sign.unlink()
        assert appears()
        Workplace(spark, str(tmp_path), "key", "other").clear_away_the_dead(lambda *_: 0)
        assert Path(work.run).exists()
    assert not Path(work.run).exists()


@pytest.mark.parametrize(
    ("error", "kept"),
    [
        (None, set()),
        (InputError("x"), set()),
        (StoreError("x"), {"rows", "scored"}),
        (OSError(), {"rows", "scored"}),
    ],
)
def test_what_another_run_can_go_on_with_stays_where_a_run_failed(spark, tmp_path, error, kept):
    work = Workplace(spark, str(tmp_path), "key", "run")
    for folder in (work.run, work.scored, str(tmp_path / "staged/print/run")):
        files.write_text(spark, f"{folder}/x", "y")
    work.uses(StagedRows(spark.range(1), str(tmp_path / "staged/print/run"), False))

    def ends() -> None:
        with work.kept_only_on_failure():
            if error is not None:
                raise error

    if error is None:
        ends()
    else:
        with pytest.raises(type(error)):
            ends()
    assert not Path(work.run).exists()
    left = {"rows": tmp_path / "staged/print/run", "scored": Path(work.scored)}
    assert {name for name, path in left.items() if path.exists()} == kept


def session_of(version: str, spark: SparkSession) -> Any:
    return SimpleNamespace(version=version, conf=spark.conf)


def test_before_spark_4_arrow_batches_are_kept_small(session_settings):
    spark = session_settings
    setting = "spark.sql.execution.arrow.maxRecordsPerBatch"
    before = spark.conf.get(setting)
    texts = [
        spark.createDataFrame([("x" * size,)], f"{name} string")
        for name, size in (("query", 1 << 10), ("passage", 1 << 20))
    ]
    staged = StagedPairs(texts[0], texts[1], {0: 1}, 0)
    with small_arrow_batches(session_of("4.0.0", spark), staged):
        assert spark.conf.get(setting) == before
    with small_arrow_batches(session_of("3.5.4", spark), staged):
        assert spark.conf.get(setting) == "63"
    assert spark.conf.get(setting) == before


def test_a_folder_of_other_things_is_not_replaced_by_the_rejects(spark, hash_model, tmp_path):
    write_inputs(spark, tmp_path)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "precious.txt").write_text("x")
    for place, sentence in (
        (mine, "holds 'precious.txt', which no such table has, and all of the folder would be replaced"),
        (mine / "precious.txt", "is a file, and a folder would replace it"),
        (hash_model, "holds 'config.json', which no such table has"),
    ):
        output = {"reranked": {"path": str(tmp_path / "out/reranked")}, "rejects": {"path": str(place)}}
        with pytest.raises(InputError, match=f"output.rejects.path: .* {sentence}"):
            run(spark, settings(tmp_path, hash_model, output=output))
    assert (mine / "precious.txt").read_text() == "x"
    assert (hash_model / "config.json").is_file()


def test_a_table_that_is_no_parquet_is_a_sentence(spark, hash_model, tmp_path):
    write_inputs(spark, tmp_path)
    (tmp_path / "candidates.csv").write_text("query_id,passage_id\nq1,p1\n")
    source = {"candidates": {"path": str(tmp_path / "candidates.csv")}}
    inputs = settings(tmp_path, hash_model).model_dump()["input"]
    with pytest.raises(
        InputError, match=r"candidates.csv is not a Parquet file; say what it is \(format: csv, say\)"
    ):
        run(spark, settings(tmp_path, hash_model, input={**inputs, **source}))


def test_parquet_is_not_published_into_a_delta_table(spark, hash_model, tmp_path):
    write_inputs(spark, tmp_path)
    (tmp_path / "out/reranked/_delta_log").mkdir(parents=True)
    with pytest.raises(
        InputError, match=r"out/reranked is a Delta table.*set output.reranked.format to delta"
    ):
        run(spark, settings(tmp_path, hash_model))


@pytest.mark.parametrize("setting", ["output.reranked.path", "output.rejects.path", "run.report"])
def test_a_place_where_nothing_can_be_written_is_told_before_anything_is_scored(
    spark, hash_model, tmp_path, monkeypatch, setting
):
    write_inputs(spark, tmp_path)
    (tmp_path / "file").touch()
    found = settings(tmp_path, hash_model).model_dump(mode="json")
    section, name, *rest = setting.split(".")
    (found[section][name] if rest else found[section])[rest[0] if rest else name] = f"{tmp_path}/file/below"
    found["store"]["path"] = str(tmp_path / "scores")
    with pytest.raises(
        RerankError, match=f"{setting} .*/file/below cannot be written to: .*/file is a file"
    ) as told:
        run(spark, JobConfig.model_validate(found))
    assert told.value.exit_code == 1
    assert not (tmp_path / "scores").exists()


def test_a_place_that_is_still_to_be_made_can_be_written_to_and_is_not_made(spark, tmp_path):
    assert files.refusal(spark, f"{tmp_path}/a/b") is None
    assert list(tmp_path.iterdir()) == []


def test_a_report_that_cannot_be_written_does_not_hide_that_the_table_is_published(
    spark, hash_model, tmp_path, monkeypatch
):
    write_inputs(spark, tmp_path)

    def fails(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pipeline, "write_report", fails)
    with pytest.raises(RerankError, match=r"reranked is published, but its report .*No space left on device"):
        run(spark, settings(tmp_path, hash_model))
    assert read_reranked(spark, str(tmp_path / "out/reranked")).count() == 24
