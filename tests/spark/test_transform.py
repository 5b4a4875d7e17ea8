"""`rerank`: lazy, pure, and equal to a plain loop over the scorer."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from counting_scorer import CountingPlan
from pyspark.sql import functions as F
from tables_of import (
    PASSAGES,
    QUERIES,
    candidate_rows,
    frame,
    logit_of,
    plain_ranking,
    plan_of,
    ranking_of,
    settings_of,
    sigmoid,
    three_tables,
)

from rerank_udf.errors import ConfigError, InputError, ModelError
from rerank_udf.spark import cross_encoder_udf, rerank, transform
from rerank_udf.tables import Reason


def test_the_ranking_is_that_of_a_plain_loop(spark, hash_model):
    rows = rerank(*three_tables(spark), model=str(hash_model)).collect()
    assert ranking_of(rows) == plain_ranking(hash_model, candidate_rows())
    for row in rows:
        logit = logit_of(hash_model, QUERIES[row["query_id"]], PASSAGES[row["passage_id"]])
        assert row["logit"] == logit
        assert row["score"] == pytest.approx(sigmoid(logit), rel=1e-12)
        assert row["source"] == f"{row['query_id']}/{row['passage_id'][1:]}"
        assert (row["first_stage_rank"], row["reason"], row["detail"]) == (
            1 + int(row["passage_id"][1:]),
            None,
            None,
        )


def test_the_columns_come_in_the_promised_order(spark, hash_model):
    table = rerank(*three_tables(spark), model=str(hash_model), fusion="rrf")
    assert table.dtypes == [
        ("query_id", "string"),
        ("passage_id", "string"),
        ("rank", "int"),
        ("score", "double"),
        ("logit", "float"),
        ("fused_score", "double"),
        ("first_stage_rank", "int"),
        ("first_stage_score", "double"),
        ("source", "string"),
        ("reason", "string"),
        ("detail", "string"),
    ]


def test_it_is_lazy_and_scores_in_one_python_operator(spark, hash_model):
    tables = three_tables(spark)
    spark.sparkContext.setJobGroup("lazy", "lazy")
    try:
        table = rerank(*tables, model=str(hash_model), depth=5, top_k=3, fusion="min_max")
        plan = plan_of(table, "simple")
        assert list(spark.sparkContext.statusTracker().getJobIdsForGroup("lazy")) == []
    finally:
        spark.sparkContext.setLocalProperty("spark.jobGroup.id", None)
    assert plan.count("MapInArrow") == 1
    assert "EvalPython" not in plan


def test_it_changes_no_session_setting(spark, hash_model):
    before = settings_of(spark)
    rerank(*three_tables(spark), model=str(hash_model)).collect()
    assert settings_of(spark) == before


def test_its_code_knows_no_spark_context():
    """Of every module that it runs through: a name that Connect has not would only fail there."""
    from rerank_udf.spark import candidates, keys, ranking, scoring

    for module in (transform, candidates, keys, ranking, scoring):
        code = "\n".join(line for line in inspect.getsource(module).splitlines() if "`" not in line)
        for absent in ("sparkContext", "_jdf", "_jvm", ".rdd"):
            assert absent not in code, (module.__name__, absent)


def test_bad_rows_stay_with_their_reason_and_cut_rows_go(spark, hash_model):
    candidates, queries, passages = three_tables(spark)
    bad = frame(
        spark,
        [
            ("q1", "nowhere", 1.0, "s"),
            (None, "p1", 1.0, "s"),
            ("q1", "p1", -5.0, "s"),
            ("q2", "p2", float("nan"), "s"),
        ],
        "query_id string, passage_id string, score double, source string",
    )
    given = candidates.where("not (query_id = 'q2' and passage_id = 'p2')").union(bad)
    rows = rerank(given, queries, passages, model=str(hash_model), top_k=2).collect()
    assert sorted(row["reason"] for row in rows if row["reason"]) == sorted(
        [Reason.UNKNOWN_PASSAGE, Reason.NULL_ID, Reason.DUPLICATE_CANDIDATE, Reason.BAD_SCORE]
    )
    assert all(row["rank"] is None and row["score"] is None for row in rows if row["reason"])
    assert {query: len(found) for query, found in ranking_of(rows).items()} == {"q1": 2, "q2": 2, "q3": 2}


def test_depth_top_k_and_min_score_together(spark, hash_model):
    rows = rerank(*three_tables(spark), model=str(hash_model), depth=6, top_k=3, min_score=0.3).collect()
    expected = {}
    for query, ranking in plain_ranking(hash_model, candidate_rows(6)).items():
        good = [p for p in ranking if sigmoid(logit_of(hash_model, QUERIES[query], PASSAGES[p])) >= 0.3]
        expected[query] = good[:3]
    assert ranking_of(rows) == {query: found for query, found in expected.items() if found}
    assert len(rows) == sum(map(len, expected.values()))


def test_arrays_in_and_arrays_out(spark, hash_model):
    rows = [
        (query, text, [(f"p{n}", PASSAGES[f"p{n}"], 1.0 - n) for n in range(8)], "kept")
        for query, text in QUERIES.items()
    ]
    hits = "array<struct<passage_id string, passage string, score double>>"
    schema = f"query_id string, query string, hits {hits}, lang string"
    found = rerank(
        frame(spark, rows, schema), model=str(hash_model), nested="hits", layout="nested"
    ).collect()
    assert {
        row["query_id"]: [one["passage_id"] for one in row["passages"]] for row in found
    } == plain_ranking(
        hash_model, [{**row, "score": -int(row["passage_id"][1:])} for row in candidate_rows()]
    )
    assert found[0]["passages"][0].asDict().keys() == {
        *("rank", "passage_id", "score", "logit", "first_stage_rank", "first_stage_score", "lang")
    }


def test_parallel_arrays_with_tables_of_texts(spark, hash_model):
    candidates = frame(
        spark,
        [(q, [f"p{n}" for n in range(8)]) for q in QUERIES],
        "query_id string, passage_id array<string>",
    )
    _, queries, passages = three_tables(spark)
    rows = rerank(candidates, queries, passages, model=str(hash_model), nested="parallel").collect()
    assert ranking_of(rows) == plain_ranking(hash_model, candidate_rows())


def test_templates_and_names_of_ones_own(spark, hash_model):
    table = frame(
        spark,
        [("a", "b", "why", "Head", "body")],
        "qid string, pid string, question string, head string, text string",
    )
    (row,) = rerank(
        table,
        model=str(hash_model),
        columns={
            "query_id": "qid",
            "passage_id": "pid",
            "query": "question",
            "passage": "text",
            "title": "head",
        },
        query_template="Q: {query}",
        passage_template="{title}. {passage}",
        keep_columns="none",
    ).collect()
    assert row["logit"] == logit_of(hash_model, "Q: why", "Head. body")
    assert "head" not in row.asDict()


def test_each_distinct_pair_is_scored_once(spark, hash_model, tmp_path, monkeypatch):
    plan = CountingPlan(str(hash_model), str(tmp_path))
    monkeypatch.setattr(transform, "plan_for_functions", lambda model, scorer: plan)
    rows = [(f"q{n}", f"p{m}", f"text {n % 2}", f"words {m % 3}") for n in range(6) for m in range(6)]
    table = frame(spark, rows, "query_id string, passage_id string, query string, passage string")
    found = rerank(table, model=str(hash_model), partitions=2).collect()
    assert len(found) == 36
    assert plan.scored() == 6
    assert len(plan.loads()) <= 2


def test_integer_ids_keep_their_type(spark, hash_model):
    table = frame(
        spark,
        [(1, 10, "q", "a"), (1, 9, "q", "a")],
        "query_id bigint, passage_id int, query string, passage string",
    )
    found = rerank(table, model=str(hash_model))
    assert found.dtypes[:2] == [("query_id", "bigint"), ("passage_id", "int")]
    assert ranking_of(found.collect()) == {1: [9, 10]}  # equal logits: by number, not by text


def test_scores_do_not_depend_on_rows_beside_them_or_on_order(spark, hash_model):
    candidates, queries, passages = three_tables(spark)
    few = rerank(
        candidates.where("query_id = 'q2'").orderBy(F.rand(3)), queries, passages, model=str(hash_model)
    )
    assert ranking_of(few.collect()) == {"q2": plain_ranking(hash_model, candidate_rows())["q2"]}


@pytest.mark.parametrize("empty", ["candidates", "queries", "passages"])
def test_empty_tables(spark, hash_model, empty):
    tables = dict(zip(("candidates", "queries", "passages"), three_tables(spark), strict=True))
    tables[empty] = tables[empty].limit(0)
    rows = rerank(**tables, model=str(hash_model)).collect()
    reasons = {row["reason"] for row in rows}
    assert (
        reasons == {"candidates": set(), "queries": {"unknown_query"}, "passages": {"unknown_passage"}}[empty]
    )
    assert len(rows) == (0 if empty == "candidates" else 24)


SETTINGS: list[dict[str, str]] = [
    {"spark.sql.adaptive.enabled": "false", "spark.sql.shuffle.partitions": "1"},
    {"spark.sql.ansi.enabled": "false", "spark.sql.caseSensitive": "true"},
    {"spark.sql.session.timeZone": "Pacific/Kiritimati", "spark.sql.autoBroadcastJoinThreshold": "-1"},
    {"spark.sql.shuffle.partitions": "7", "spark.sql.execution.arrow.maxRecordsPerBatch": "1"},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: ", ".join(settings))
def test_the_result_does_not_depend_on_the_sessions_settings(session_settings, hash_model, settings):
    spark = session_settings
    mixed = {"query_id": "QID", "passage_id": "pid", "score": "Score"}
    candidates, queries, passages = three_tables(spark)
    candidates = candidates.withColumnsRenamed(mixed).withColumn("day", F.to_date(F.lit("2026-01-31")))
    queries, passages = (
        queries.withColumnRenamed("query_id", "QID"),
        passages.withColumnRenamed("passage_id", "pid"),
    )
    extra = frame(
        spark, [("q1", "p1", float("nan"), "s")], "QID string, pid string, Score double, source string"
    )
    candidates = candidates.unionByName(extra, allowMissingColumns=True)

    def result() -> list[Any]:
        options = {"columns": mixed, "depth": 7, "fusion": "min_max", "model": str(hash_model)}
        table = rerank(candidates, queries, passages, passage_template="{passage} ({pid})", **options)
        return sorted(map(str, table.collect()))

    before = result()
    for name, value in settings.items():
        spark.conf.set(name, value)
    assert result() == before


def test_what_is_wrong_with_the_call_is_told_at_once(spark, hash_model, tmp_path):
    tables = three_tables(spark)
    model = str(hash_model)
    wrong: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"max_lenght": 3}, TypeError, "unknown argument 'max_lenght'; a scorer takes"),
        ({"top_k": 0}, ConfigError, "top_k: expected greater than or equal to 1"),
        ({"fusion": "borda"}, ConfigError, "fusion.method: expected 'none', 'min_max' or 'rrf'"),
        ({"fusion": {"weight": 1}}, ConfigError, "unknown setting fusion.weight"),
        ({"columns": {"qid": "x"}}, ConfigError, "unknown setting qid"),
        ({"layout": "row"}, ConfigError, "layout is 'row', expected 'rows' or 'nested'"),
        (
            {"keep_columns": "source"},
            ConfigError,
            "keep_columns is 'source', expected 'all', 'none' or a list",
        ),
        ({"keep_columns": ["sauce"]}, InputError, "keep_columns names 'sauce'"),
        ({"partitions": 0}, ConfigError, "partitions is 0, expected 1 or more"),
        ({"activation": "softmax"}, ConfigError, "activation: expected 'sigmoid' or 'identity'"),
        ({"passage_template": "{body}"}, ConfigError, "names 'body', but passages has no column 'body'"),
        ({"columns": {"score": "query_id"}}, InputError, "query_id is string, expected a finite number"),
        ({"nested": "hits"}, InputError, "candidates has no column 'hits'"),
        ({"nested": True}, ConfigError, "nested is True, expected an array column's name, or 'parallel'"),
        ({"nested": ["a"]}, ConfigError, "nested is ['a'], expected an array column's name, or 'parallel'"),
        ({"fusion": ["rrf"]}, ConfigError, "fusion: expected a section with method, reranker_weight, rrf_k"),
        ({"top_k": True}, ConfigError, "top_k: expected a number, found True"),
        (
            {"precision": "fp16"},
            ConfigError,
            "precision is 'fp16'; it must be auto, float32, bfloat16, float16",
        ),
        ({"device": "gpu"}, ConfigError, "device is 'gpu'; it must be auto, cpu, cuda or cuda:N"),
    ]
    for options, kind, sentence in wrong:
        with pytest.raises(kind) as caught:
            rerank(*tables, model=model, **options)
        assert sentence in str(caught.value)
    with pytest.raises(ModelError):
        rerank(*tables, model=str(tmp_path))
    with pytest.raises(ConfigError, match="precision is 'half'"):  # of a folder that only executors see, too
        cross_encoder_udf("/on/executors/only", precision="half")


def test_what_is_no_spark_table_is_told_before_anything_else(spark, hash_model):
    candidates, queries, passages = three_tables(spark)
    local = pd.DataFrame({"query_id": ["a"]})
    wrong: list[tuple[tuple[Any, ...], str]] = [
        (
            (local,),
            r"candidates is of type pandas.DataFrame, .*; make one by spark.createDataFrame\(candidates\)",
        ),
        ((candidates, local, passages), r"queries is of type pandas.DataFrame, .*createDataFrame\(queries\)"),
        ((candidates, "mini"), "queries is of type str, .*; settings are given by name, such as model="),
        ((candidates, queries, ["p"]), "passages is of type list, expected a Spark DataFrame"),
        ((None,), "candidates is of type NoneType, expected a Spark DataFrame"),
    ]
    for given, sentence in wrong:
        with pytest.raises(InputError, match=rf"^rerank\(\): {sentence}"):
            rerank(*given, model=str(hash_model))


def test_a_table_of_connect_is_one_before_spark_4_too():
    """There its class is none of the classic one's."""
    remote = type("DataFrame", (), {"__module__": "pyspark.sql.connect.dataframe"})()
    transform._check_tables(candidates=remote, queries=None, passages=remote)


def test_a_column_of_the_users_named_reason_is_told(spark, hash_model):
    candidates, queries, passages = three_tables(spark)
    with pytest.raises(InputError, match="would collide with the output's own column 'reason'"):
        rerank(candidates.withColumnRenamed("source", "Reason"), queries, passages, model=str(hash_model))


@pytest.mark.parametrize(("setting", "count"), [("12", 12), ("auto", 200)])
def test_the_number_of_tasks_is_the_sessions_even_where_that_is_no_number(setting, count):
    session = SimpleNamespace(conf=SimpleNamespace(get=lambda name: setting))
    assert transform._partitions(SimpleNamespace(sparkSession=session)) == count  # type: ignore[arg-type]


def test_scoring_is_placed_as_the_cluster_takes_it(spark, hash_model, monkeypatch):
    asked: list[Any] = []

    def scored(pairs: Any, plan: Any, **given: Any) -> Any:
        asked.append(given["profile"])
        return real(pairs, plan)

    real = transform.scored
    monkeypatch.setattr(transform, "scored", scored)
    monkeypatch.setattr(transform, "scoring_profile", lambda session: (f"one GPU a task of {session}", "why"))
    rerank(*three_tables(spark), model=str(hash_model))
    assert asked == [f"one GPU a task of {spark}"]


def test_the_job_says_that_it_needs_a_classic_session():
    from rerank_udf.spark.session import checked_classic

    remote = type("SparkSession", (), {"__module__": "pyspark.sql.connect.session"})()
    with pytest.raises(ConfigError, match="needs a classic Spark session, and this one is of Spark Connect"):
        checked_classic(remote)  # type: ignore[arg-type]


CONNECT = """
import json, sys
from pyspark.sql import SparkSession
from pyspark.sql import functions as F
from rerank_udf.spark import cross_encoder_udf, read_reranked, rerank
spark = SparkSession.builder.remote("local[1]").config("spark.sql.shuffle.partitions", "2").getOrCreate()
model, published, rows = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
schema = "query_id string, passage_id string, query string, passage string, score double"
table = spark.createDataFrame([tuple(row) for row in rows], schema)
before = spark.conf.getAll
found = rerank(table, model=model, depth=7, top_k=5, fusion="rrf").collect()
scored = table.withColumn("logit", cross_encoder_udf(model, returns="logit")("query", "passage")).collect()
print("RESULT", json.dumps({
    "module": type(table).__module__,
    "ranking": sorted([r["query_id"], r["rank"], r["passage_id"], r["logit"]] for r in found),
    "logits": sorted([r["query_id"], r["passage_id"], r["logit"]] for r in scored),
    "published": sorted(r[0] for r in read_reranked(spark, published).collect()),
    "torch": "torch" in sys.modules,
    "unchanged": before == spark.conf.getAll,
}))
spark.stop()
"""


@pytest.mark.cluster
@pytest.mark.slow
def test_the_same_through_spark_connect(spark, hash_model, tmp_path):
    pytest.importorskip("grpc", reason="Spark Connect needs grpcio (the extra `connect`)")
    from rerank_udf.lake import versions

    out = str(tmp_path / "out")
    versions.publish(spark, spark.range(3), out, run_id="x", run_date=None, keep_versions=2, facts={})
    rows = [
        (
            row["query_id"],
            row["passage_id"],
            QUERIES[row["query_id"]],
            PASSAGES[row["passage_id"]],
            row["score"],
        )
        for row in candidate_rows()
    ]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("SPARK_", "PYSPARK_GATEWAY"))}
    done = subprocess.run(
        [sys.executable, "-c", CONNECT, str(hash_model), out, json.dumps(rows)],
        env={**environment, "PYSPARK_PYTHON": sys.executable},
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")] or [
        done.stderr[-3000:]
    ]
    found = json.loads(line.removeprefix("RESULT "))
    assert found["module"] == "pyspark.sql.connect.dataframe"
    schema = "query_id string, passage_id string, query string, passage string, score double"
    here = rerank(
        spark.createDataFrame(rows, schema), model=str(hash_model), depth=7, top_k=5, fusion="rrf"
    ).collect()
    assert found["ranking"] == sorted([r["query_id"], r["rank"], r["passage_id"], r["logit"]] for r in here)
    assert found["logits"] == sorted(
        [q, p, logit_of(hash_model, query, passage)] for q, p, query, passage, _ in rows
    )
    assert (found["published"], found["torch"], found["unchanged"]) == ([0, 1, 2], False, True)
