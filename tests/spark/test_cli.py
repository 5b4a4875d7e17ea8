"""The command line: exit codes, one sentence for every expected failure, and the same table however it is started."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pyspark.sql import SparkSession
from tables_of import candidate_rows, frame, plain_ranking, ranking_of, three_tables

from rerank_udf import cli
from rerank_udf.errors import ConfigError
from rerank_udf.spark import read_reranked, session

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def inputs(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """candidates, queries, passages and qrels as Parquet."""
    folder = tmp_path_factory.mktemp("inputs")
    for name, table in zip(("candidates", "queries", "passages"), three_tables(spark), strict=True):
        table.write.parquet(str(folder / name))
    qrels = [(f"q{n}", f"p{n}", 1) for n in (1, 2, 3)]
    frame(spark, qrels, "query_id string, passage_id string, relevance int").write.parquet(
        str(folder / "qrels")
    )
    frame(spark, [("z", "p1", 1)], "query_id string, passage_id string, relevance int").write.parquet(
        str(folder / "strangers")
    )
    return folder


@pytest.fixture
def job(inputs: Path, hash_model: Path, tmp_path: Path) -> Path:
    """A settings file; everything is written below tmp_path."""
    settings = {
        "input": {name: {"path": str(inputs / name)} for name in ("candidates", "queries", "passages")},
        "model": {"name": str(hash_model)},
        "output": {
            "reranked": {"path": str(tmp_path / "reranked")},
            "rejects": {"path": str(tmp_path / "rejects")},
        },
        "run": {"report": str(tmp_path / "report")},
    }
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(settings))
    return file


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(spark: SparkSession, capsys: pytest.CaptureFixture[str]) -> Run:
    """`rerank-udf …` in this process: exit code, output, errors."""

    def start(*arguments: Any) -> tuple[int, str, str]:
        code = 0
        try:
            cli.main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return start


def is_one_sentence(err: str) -> bool:
    """What a user sees of an expected failure: no stack, no exception's name."""
    return (
        err.startswith("rerank-udf: ")
        and "Traceback" not in err
        and "\tat " not in err
        and "Error:" not in err
    )


def test_a_run_ends_with_a_table_of_what_it_did_and_exit_code_0(run, spark, job, tmp_path, hash_model):
    code, out, err = run("rerank", "--config", job, "--set", "ranking.top_k=4")
    assert (code, err) == (0, "")
    for part in (
        "24 in",
        "24 distinct",
        "24 scored",
        "cut",
        "top_k 12",
        str(tmp_path / "reranked"),
    ):
        assert part in out.replace("\n", "")
    expected = {query: found[:4] for query, found in plain_ranking(hash_model, candidate_rows()).items()}
    assert ranking_of(read_reranked(spark, str(tmp_path / "reranked")).collect()) == expected
    assert json.loads((tmp_path / "report/run_report.json").read_text())["config"]["ranking"]["top_k"] == 4


def test_a_dry_run_estimates_and_writes_nothing(run, job, tmp_path, monkeypatch):
    from rerank_udf.spark import scoring

    monkeypatch.setattr(scoring, "process_scorer", None)  # whoever loads a model fails
    code, out, err = run("rerank", "--config", job, "--dry-run", "--set", "ranking.depth=5")
    assert (code, err) == (0, "")
    assert "24 in · 15 distinct · 0 in the store · 15 to score" in out
    assert "9 rows beyond it" in out
    assert [path.name for path in tmp_path.iterdir()] == ["job.yaml"]


def test_too_many_rejects_end_with_3(run, spark, job, tmp_path):
    code, _, err = run("rerank", "--config", job, "--set", "input.passages.where=passage_id <> 'p1'")
    assert code == 3
    assert is_one_sentence(err)
    assert "3 of 24 rows rejected (unknown_passage 3)" in err
    assert not (tmp_path / "reranked/_current").exists()
    assert spark.read.parquet(str(tmp_path / "rejects")).count() == 3


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["modle.name=x"], "unknown setting modle; did you mean model?"),
        (["model.max_lenght=3"], "unknown setting model.max_lenght; did you mean max_length?"),
        (
            ["input.candidates.path=/nowhere/at/all"],
            "input.candidates (/nowhere/at/all): there is nothing at this path",
        ),
        (
            ["input.columns.score=bm25", "output.keep_columns=none", "ranking.depth=3"],
            "candidates has no column 'bm25' (it has query_id, passage_id, score, source); name the right one in "
            "input.columns.score",
        ),
        (
            ["input.columns.query_id=qid"],
            "candidates has no column 'qid' (it has query_id, passage_id, score, source)",
        ),
        (['input.passage_template="{titel} {passage}"'], "names 'titel', but passages has no column 'titel'"),
        (["input.candidates.where=1 = 0"], "candidates is empty: 0 rows in"),
        (["model.name=/nowhere/at/all"], "/nowhere/at/all"),
        (["model.name=no/such-model"], "revision"),
        (["output.rejects.path=INPUTS/passages/rejects"], "overlap: writing the one would damage the other"),
        (["output.keep_columns=[nope]"], "output.keep_columns names 'nope'"),
        (["ranking.top_k"], "--set takes key.path=value"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_wrong_settings_and_input_end_with_2_and_a_sentence(run, job, inputs, settings, sentence):
    options = [part for setting in settings for part in ("--set", setting.replace("INPUTS", str(inputs)))]
    code, out, err = run("rerank", "--config", job, *options)
    assert code == 2, err
    assert is_one_sentence(err)
    assert sentence in err
    assert out == ""
    assert not (job.parent / "reranked").exists()


def test_a_model_that_is_no_cross_encoder_ends_with_2(run, job, tmp_path):
    other = tmp_path / "gpt"
    other.mkdir()
    (other / "config.json").write_text(
        json.dumps({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]})
    )
    code, _, err = run("rerank", "--config", job, "--set", f"model.name={other}")
    assert code == 2
    assert is_one_sentence(err)
    assert "gpt" in err


def test_no_settings_file_and_unknown_options_end_with_2(run, tmp_path):
    code, _, err = run("rerank", "--config", tmp_path / "none.yaml")
    assert code == 2
    assert "no settings file at" in err
    assert run("rerank")[0] == 2
    assert run("rerank", "--config", "x", "--frobnicate")[0] == 2
    assert run("polish")[0] == 2


def test_help_and_version_end_with_0(run):
    code, out, _ = run("--help")
    assert code == 0
    assert "rerank" in out
    assert run("--version")[0] == 0


def test_what_nobody_expected_ends_with_1_in_one_line(run, job, monkeypatch):
    from rerank_udf.spark import pipeline

    def breaks(*_: Any, **__: Any) -> None:
        raise RuntimeError("first line\nsecond line")

    monkeypatch.delenv("RERANK_UDF_DEBUG", raising=False)
    monkeypatch.setattr(pipeline, "run_rerank", breaks)
    code, _, err = run("rerank", "--config", job)
    assert code == 1
    assert "RuntimeError: first line" in err
    assert "second line" not in err
    assert "Traceback" not in err


def test_evaluate_compares_with_the_first_stage(run, job, inputs, tmp_path):
    qrels = [
        "--set",
        f"evaluation.qrels.path={inputs / 'qrels'}",
        "--set",
        "evaluation.measures=[nDCG@10, RR@10]",
    ]
    code, out, err = run("rerank", "--config", job, *qrels)
    assert (code, err) == (0, "")
    assert "nDCG@10" in out
    code, out, err = run("evaluate", "--config", job, *qrels, "--out", tmp_path / "figures")
    assert (code, err) == (0, "")
    assert "RR@10" in out
    assert (tmp_path / "figures/per_query.parquet").exists()
    code, _, err = run("evaluate", "--config", job, "--set", f"evaluation.qrels.path={inputs / 'strangers'}")
    assert code == 2
    assert is_one_sentence(err)
    code, _, err = run("evaluate", "--config", job)
    assert code == 2
    assert "evaluation.qrels is not set" in err


def test_evaluate_puts_other_rankings_beside_by_any_column_of_queries_candidates_or_qrels(
    run, spark, job, inputs, hash_model, tmp_path
):
    qrels = spark.read.parquet(str(inputs / "qrels")).selectExpr("*", "upper(query_id) as judge")
    qrels.write.parquet(str(tmp_path / "qrels"))
    assert run("rerank", "--config", job)[0] == 0
    published = read_reranked(spark, str(tmp_path / "reranked"))
    backwards = published.selectExpr("query_id", "passage_id", "100 - rank as rank")
    backwards.write.parquet(str(tmp_path / "backwards"))
    backwards.createOrReplaceTempView("backwards_by_name")
    options = ["--config", job, "--set", f"evaluation.qrels.path={tmp_path / 'qrels'}"]
    by = ["--set", "evaluation.group_by=[judge]", "--set", "evaluation.measures=[RR@10]"]
    others = {"again": tmp_path / "reranked", "back": tmp_path / "backwards", "table": "backwards_by_name"}
    rankings = [part for name, place in others.items() for part in ("--ranking", f"{name}={place}")]
    code, _, err = run("evaluate", *options, *by, *rankings, "--out", tmp_path / "figures")
    assert (code, err) == (0, "")
    found = json.loads((tmp_path / "figures/summary.json").read_text())
    assert found["settings"]["systems"] == ["first", *others, hash_model.name]
    assert list(dict.fromkeys(row["group"] for row in found["summary"])) == ["all", "Q1", "Q2", "Q3"]
    whole = [row for row in found["summary"] if (row["group"], row["documents"]) == ("all", "all")]
    means = {row["system"]: row["mean"] for row in whole}
    assert means["again"] == means[hash_model.name]
    assert means["back"] == means["table"] != means["again"]


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("evaluation.measures=[nDGC@10]", "'nDGC@10' is not a measure"),
        ("evaluation.group_by=[language]", "evaluation names the column 'language', but input.queries has"),
        ("evaluation.group_by=[mean]", "group_by has a column 'mean', a name that the evaluation needs"),
        ("evaluation.qrels.path=/nowhere/at/all", "evaluation.qrels (/nowhere/at/all): there is nothing at"),
        ("evaluation.qrels.path=INPUTS/queries", "evaluation.qrels has no column 'passage_id'"),
        ("evaluation.qrels.path=INPUTS/halves", "relevance is 2.5 for query_id q1, expected a whole number"),
        ("evaluation.qrels.path=INPUTS/twice", "evaluation.qrels: query_id 'q1', passage_id"),
        ("evaluation.qrels.where=1 = 0", "evaluation.qrels has no rows"),
        (
            "output.reranked={table: t, mode: append}",
            "evaluation.qrels is set, and with output.reranked.mode append",
        ),
    ],
)
def test_a_job_that_could_not_be_evaluated_in_the_end_is_told_before_it_scores(
    run, spark, job, inputs, tmp_path, setting, sentence
):
    if "halves" in setting and not (inputs / "halves").exists():
        halves = spark.read.parquet(str(inputs / "qrels")).selectExpr(
            "query_id", "passage_id", "2.5D relevance"
        )
        halves.where("query_id = 'q1'").write.parquet(str(inputs / "halves"))
    if "twice" in setting and not (inputs / "twice").exists():
        once = spark.read.parquet(str(inputs / "qrels"))
        once.union(once.where("query_id = 'q1'").limit(1)).write.parquet(str(inputs / "twice"))
    given = ["--config", job, "--set", f"evaluation.qrels.path={inputs / 'qrels'}"]
    given += ["--set", f"store.path={tmp_path / 'store'}", "--set", setting.replace("INPUTS", str(inputs))]
    for verb in (["rerank"], ["rerank", "--dry-run"]):
        code, _, err = run(*verb, *given)
        assert code == 2
        assert is_one_sentence(err)
        assert sentence in err.replace("\n", " ")
    assert not (tmp_path / "store").exists()
    assert not (tmp_path / "report").exists()


def test_what_is_published_and_cannot_be_measured_is_said_to_be_published(
    run, spark, job, inputs, tmp_path, monkeypatch
):
    """Code 2 would say that nothing was scored. Here the qrels are as if they had changed while the job ran."""
    monkeypatch.setattr("rerank_udf.spark.assess.check", lambda spark, config: None)
    strangers = spark.read.parquet(str(inputs / "qrels")).selectExpr(
        "concat('x', query_id) query_id", "passage_id", "relevance"
    )
    strangers.write.parquet(str(tmp_path / "strangers"))
    code, _, err = run("rerank", "--config", job, "--set", f"evaluation.qrels.path={tmp_path / 'strangers'}")
    assert code == 1
    said = err.replace("\n", " ")
    assert (
        f"{tmp_path / 'reranked'} is published, but could not be evaluated: The qrels name no query" in said
    )
    assert read_reranked(spark, str(tmp_path / "reranked")).count() > 0


def test_lists_are_compared_as_long_as_they_are_published(run, job, inputs, tmp_path):
    """A reranker that keeps the first stage's order loses nothing by `top_k`."""
    published = [
        "--set",
        "ranking.top_k=2",
        "--set",
        "ranking.fusion={method: min_max, reranker_weight: 0.0}",
    ]
    qrels = ["--set", f"evaluation.qrels.path={inputs / 'qrels'}", "--set", "evaluation.measures=[nDCG@10]"]
    code, out, err = run("rerank", "--config", job, *published, *qrels)
    assert (code, err) == (0, "")
    assert "of every list the first 2 are measured" in out
    found = json.loads((tmp_path / "report/evaluation.json").read_text())["summary"]
    whole = {row["system"]: row for row in found if row["group"] == "all"}
    by_documents = {(row["system"], row["documents"]): row["mean"] for row in found if row["group"] == "all"}
    for documents in ("all", "judged"):
        assert by_documents["first", documents] == by_documents["fused", documents]
    assert whole["fused"]["won"] == whole["fused"]["lost"] == 0


WRONG_COMPARISONS = [
    (
        ["--set", "evaluation.group_by=[source]"],
        "group_by: column 'source' has several values for query_id",
    ),
    (
        ["--set", "evaluation.group_by=[language]"],
        "names the column 'language', but input.queries has query_id, query; input.candidates has query_id,",
    ),
    (["--ranking", "back"], "--ranking takes NAME=PLACE"),
    (["--ranking", "first=INPUTS/qrels"], "the ranking 'first' has the name of one of the job's own"),
    (
        ["--ranking", "back=/nowhere/at/all"],
        "the ranking 'back' (/nowhere/at/all): there is nothing at this path",
    ),
    (
        ["--ranking", "back=INPUTS/qrels"],
        "baseline 'back' has no column 'rank'; it has query_id, passage_id,",
    ),
]


def test_what_cannot_be_compared_ends_with_2_and_a_sentence(run, job, inputs):
    given = ["--config", job, "--set", f"evaluation.qrels.path={inputs / 'qrels'}"]
    assert run("rerank", "--config", job)[0] == 0
    for options, sentence in WRONG_COMPARISONS:
        code, _, err = run("evaluate", *given, *[part.replace("INPUTS", str(inputs)) for part in options])
        assert code == 2, options
        assert is_one_sentence(err)
        assert sentence in err


@pytest.mark.slow
def test_evaluate_shows_the_reranker_alone_beside_the_fused_order_and_keeps_to_trial_queries(
    run, job, inputs, hash_model, tmp_path
):
    options = ["--config", job, "--set", f"evaluation.qrels.path={inputs / 'qrels'}"]
    options += ["--set", "ranking.fusion.method=min_max", "--set", "input.limit_queries=2"]
    assert run("rerank", *options)[0] == 0
    code, _, err = run("evaluate", *options, "--out", tmp_path / "figures")
    assert (code, err) == (0, "")
    found = json.loads((tmp_path / "figures/summary.json").read_text())
    assert found["settings"]["systems"] == ["first", hash_model.name, "fused"]
    assert (found["counts"]["queries"], found["counts"]["queries_without_candidates"]) == (2, 0)


def test_evaluate_before_any_run_says_so(run, job, inputs):
    code, _, err = run("evaluate", "--config", job, "--set", f"evaluation.qrels.path={inputs / 'qrels'}")
    assert code == 2
    assert "nothing published at" in err


@pytest.mark.slow
def test_the_store_is_counted_checked_compacted_and_forgotten(run, spark, job, tmp_path):
    assert run("store", "stats", "--config", str(job))[:2] == (0, "the store is empty\n")
    for length in (512, 20, 20):
        assert run("rerank", "--config", str(job), "--set", f"model.max_length={length}")[0] == 0
    code, out, _ = run("store", "stats", "--config", str(job), "--json")
    found = json.loads(out)
    assert (code, [one["facts"] for one in found]) == (0, [24, 24])
    code, out, _ = run("store", "stats", "--config", str(job))
    assert all(one["model_key"] in out for one in found)
    assert run("store", "verify", "--config", str(job))[:2] == (0, "every file is sound\n")
    assert run("store", "verify", "--config", str(job), "--dry-run")[:2] == (0, "every file is sound\n")
    assert json.loads(run("store", "stats", "--config", str(job), "--dry-run", "--json")[1]) == found
    assert run("store", "compact", "--config", str(job))[0] == 0

    keep = found[0]["model_key"]
    code, _, error = run("store", "vacuum", "--config", str(job), "--keep", "mistyped")
    assert code == 2
    assert f"--keep mistyped: the store has no such model_key; it has {found[0]['model_key']}" in error
    code, out, _ = run("store", "vacuum", "--config", str(job), "--keep", keep, "--dry-run")
    assert code == 0
    assert found[1]["model_key"] in out
    assert "--dry-run: nothing was changed" in out
    assert len(json.loads(run("store", "stats", "--config", str(job), "--json")[1])) == 2
    assert run("store", "vacuum", "--config", str(job), "--keep", "all")[:2] == (0, "nothing to do\n")
    assert len(json.loads(run("store", "stats", "--config", str(job), "--json")[1])) == 2
    assert run("store", "vacuum", "--config", str(job), "--keep", keep)[0] == 0
    left = json.loads(run("store", "stats", "--config", str(job), "--json")[1])
    assert [one["model_key"] for one in left] == [keep]

    part, *_ = sorted((tmp_path / "reranked_store/facts" / keep).glob("*/part-*.parquet"))
    part.write_bytes(part.read_bytes()[:-20])
    code, out, error = run("store", "verify", "--config", str(job))
    assert code == 1
    assert part.name in out
    assert "1 damaged" in error


def test_convert_writes_what_the_job_reads(run, tmp_path):
    (tmp_path / "run.txt").write_text("q1 Q0 d2 1 9.5 bm25\nq1 Q0 d1 2 3.25 bm25\n")
    code, out, err = run(
        "convert", "--from", "trec-run", "--to", "parquet", tmp_path / "run.txt", tmp_path / "tables"
    )
    assert (code, err) == (0, "")
    assert "candidates" in out
    assert "2 rows" in out
    code, _, err = run(
        "convert", "--from", "trek", "--to", "parquet", tmp_path / "run.txt", tmp_path / "more"
    )
    assert code == 2
    assert is_one_sentence(err)


def finished_process(command: list[str], tmp_path: Path) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("SPARK_", "PYSPARK_GATEWAY"))}
    quick = {
        "spark.ui.enabled": "false",
        "spark.sql.shuffle.partitions": "2",
        "spark.driver.host": "127.0.0.1",
    }
    (tmp_path / "spark-defaults.conf").write_text(
        "".join(f"{name} {value}\n" for name, value in quick.items())
    )
    environment |= {"PYSPARK_PYTHON": sys.executable, "PYSPARK_DRIVER_PYTHON": sys.executable}
    environment |= {"MASTER": "local[1]", "SPARK_CONF_DIR": str(tmp_path)}
    return subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=400, check=False
    )


@pytest.mark.cluster
@pytest.mark.slow
def test_spark_submit_and_plain_python_publish_the_same_table(spark, job, tmp_path):
    submit = Path(__import__("pyspark").__file__).parent / "bin/spark-submit"
    starts = {
        "plain": [sys.executable, str(REPOSITORY / "jobs/rerank.py")],
        "submitted": [
            str(submit),
            "--master",
            "local[1]",
            str(REPOSITORY / "jobs/rerank.py"),
        ],
    }
    found = {}
    for name, command in starts.items():
        out = tmp_path / name
        options = ["--config", str(job), "--set", f"output.reranked.path={out}"]
        done = finished_process([*command, *options], tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
        assert "24 in · 24 distinct · 24 scored" in done.stdout
        found[name] = sorted(map(str, read_reranked(spark, str(out)).collect()))
    assert found["plain"] == found["submitted"]
    failed = finished_process([*starts["plain"], "--config", str(job), "--set", "modle.name=x"], tmp_path)
    assert failed.returncode == 2
    assert "Traceback" not in failed.stderr


@pytest.mark.parametrize(
    ("says", "sentence"),
    [
        (None, r"Spark needs Java 17 or newer, and java does not run .*; install it"),
        ('echo openjdk version \\"11.0.2\\" 2019-01-15 >&2', "and .*/bin/java is Java 11; install it"),
        (
            "echo Unable to locate a Java Runtime >&2; exit 1",
            "does not run .Unable to locate a Java Runtime.; inst",
        ),
    ],
    ids=["none", "old", "the stub of macOS"],
)
def test_without_a_java_that_spark_takes_the_error_says_what_to_install(
    monkeypatch, tmp_path, says, sentence
):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    if says is not None:
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin/java").write_text(f"#!/bin/sh\n{says}\n")
        (tmp_path / "bin/java").chmod(0o755)
        monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(ConfigError, match=sentence):
        session._check_java()


def test_what_ctrl_c_breaks_on_its_way_out_is_an_interrupt(monkeypatch, capsys):
    """Java hears of Ctrl-C too, and whoever cleans up then finds it gone."""
    monkeypatch.delenv("RERANK_UDF_DEBUG", raising=False)

    def cleans_up(*_arguments: Any, **_names: Any) -> None:
        try:
            raise KeyboardInterrupt
        finally:
            logging.getLogger("py4j.clientserver").error("Exception occurred while shutting down connection")
            raise RuntimeError("Answer from Java side is empty")

    monkeypatch.setattr(cli.cli, "main", cleans_up)
    with pytest.raises(SystemExit) as ended:
        cli.main(["rerank"])
    assert ended.value.code == 1
    assert capsys.readouterr().err == "rerank-udf: interrupted\n"


@pytest.mark.parametrize(("raised", "code"), [("ConfigError", 2), ("StoreError", 1), ("NoSuchError", 1)])
def test_what_a_worker_raises_ends_with_its_own_exit_code(monkeypatch, capsys, raised, code):
    """Spark wraps it into an error of its own, with the traceback as text."""

    def fails(*_arguments, **_names):
        raise RuntimeError(
            f"An exception was thrown\nTraceback\nrerank_udf.errors.{raised}: no: such device\n"
        )

    monkeypatch.setattr(cli.cli, "main", fails)
    with pytest.raises(SystemExit) as ended:
        cli.main(["doctor"])
    assert ended.value.code == code
    assert capsys.readouterr().err.startswith("rerank-udf: no: such device\n")
