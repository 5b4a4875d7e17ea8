"""The column function: in a DataFrame, in SQL, over nulls, evaluated once."""

from __future__ import annotations

import pytest
from counting_scorer import CountingPlan
from pyspark.errors import PythonException
from pyspark.sql import functions as F
from tables_of import logit_of, plan_of, sigmoid

from rerank_udf.errors import ConfigError, ModelError
from rerank_udf.spark import cross_encoder_udf
from rerank_udf.spark import udf as udf_module

PAIRS = [
    ("how long", "five days"),
    ("how long", ""),
    ("", ""),
    ("\u0645\u0631\u062d\u0628\u0627", "👋\x00"),
    ("where", "x" * 9000),
]


@pytest.fixture
def pairs(spark):
    return spark.createDataFrame(
        [(n, *pair) for n, pair in enumerate(PAIRS)], "n int, query string, passage string"
    )


@pytest.fixture
def counting(hash_model, tmp_path, monkeypatch):
    """Column functions made in this test write down what they score."""
    plan = CountingPlan(str(hash_model), str(tmp_path))
    monkeypatch.setattr(udf_module, "plan_for_functions", lambda model, scorer: plan)
    return plan


def test_a_column_of_scores(pairs, hash_model):
    rows = (
        pairs.withColumn("score", cross_encoder_udf(str(hash_model))("query", "passage"))
        .orderBy("n")
        .collect()
    )
    expected = [sigmoid(logit_of(hash_model, *pair)) for pair in PAIRS]
    assert [row["score"] for row in rows] == pytest.approx(expected, rel=1e-12)


def test_a_column_of_logits_from_column_expressions(pairs, hash_model):
    logit = cross_encoder_udf(str(hash_model), returns="logit")
    found = pairs.select("n", logit(F.col("query"), F.lit("one text")).alias("logit")).orderBy("n")
    assert found.schema["logit"].dataType.simpleString() == "float"
    assert [row["logit"] for row in found.collect()] == [
        logit_of(hash_model, q, "one text") for q, _ in PAIRS
    ]


def test_in_sql_after_registration(spark, pairs, hash_model):
    spark.udf.register("rerank_score", cross_encoder_udf(str(hash_model)))
    pairs.createOrReplaceTempView("pairs_for_sql")
    rows = spark.sql("select rerank_score(query, passage) as score from pairs_for_sql order by n").collect()
    assert [row["score"] for row in rows] == pytest.approx(
        [sigmoid(logit_of(hash_model, *pair)) for pair in PAIRS]
    )


@pytest.mark.parametrize("returns", ["score", "logit"])
def test_what_has_no_score_is_null(spark, hash_model, returns):
    rows = [(1, "q", "p"), (2, None, "p"), (3, "q", None), (4, None, None)]
    table = spark.createDataFrame(rows, "n int, query string, passage string")
    table = table.union(spark.sql("select 5, 'q', cast(X'61FF' as string)"))
    scored = table.withColumn(
        "found", cross_encoder_udf(str(hash_model), returns=returns)("query", "passage")
    )
    assert [row["found"] is None for row in scored.orderBy("n").collect()] == [False, True, True, True, True]
    assert scored.where("found is null").count() == 4


def test_a_table_without_rows_loads_no_model(spark, counting):
    table = spark.createDataFrame([], "query string, passage string")
    scored = table.withColumn("score", cross_encoder_udf()("query", "passage"))
    assert scored.collect() == []
    assert counting.loads() == []


def test_a_filter_on_the_score_scores_each_pair_once(spark, counting):
    table = spark.range(200).select(F.lit("q").alias("query"), F.concat(F.lit("p"), "id").alias("passage"))
    scored = table.withColumn("score", cross_encoder_udf()("query", "passage"))
    kept = scored.where("score > 0.5").select("passage", "score", (F.col("score") * 2).alias("twice"))
    assert plan_of(kept, "simple").count("ArrowEvalPython") == 1
    assert 0 < len(kept.collect()) < 200
    assert counting.scored() == 200


def test_batches_come_back_in_their_order(session_settings, hash_model):
    spark = session_settings
    spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", "3")
    table = spark.range(0, 20, 1, 2).select("id", F.col("id").cast("string").alias("passage"))
    found = table.withColumn(
        "logit", cross_encoder_udf(str(hash_model), returns="logit")(F.lit("q"), "passage")
    )
    for row in found.collect():
        assert row["logit"] == logit_of(hash_model, "q", str(row["id"]))


def test_the_function_says_that_it_is_not_deterministic(hash_model):
    assert cross_encoder_udf(str(hash_model)).deterministic is False


def test_the_model_is_loaded_once_a_worker(spark, counting):
    table = spark.range(0, 400, 1, 8).select(
        F.lit("q").alias("query"), F.col("id").cast("string").alias("passage")
    )
    for _ in range(2):
        table.withColumn("score", cross_encoder_udf()("query", "passage")).collect()
    assert counting.scored() == 800
    assert len(counting.loads()) == len(set(counting.loads())) <= 2


def test_what_is_no_text_is_told_in_a_sentence(spark, hash_model):
    table = spark.range(2).withColumn("score", cross_encoder_udf(str(hash_model))("id", F.lit("p")))
    with pytest.raises(
        PythonException, match=r"cross_encoder_udf takes two string columns \(query, passage\)"
    ):
        table.collect()


@pytest.mark.parametrize(("given", "count"), [("query", 1), ("query, passage, query", 3)])
def test_another_number_of_columns_in_sql_is_told_in_a_sentence(spark, pairs, hash_model, given, count):
    """Two rows of one column would be taken for a pair."""
    spark.udf.register("rerank_score", cross_encoder_udf(str(hash_model)))
    pairs.limit(2).coalesce(1).createOrReplaceTempView("two_for_sql")
    with pytest.raises(
        PythonException, match=rf"cross_encoder_udf takes two columns, \(query, passage\), found {count}\b"
    ):
        spark.sql(f"select rerank_score({given}) as score from two_for_sql").collect()


def test_wrong_arguments_fail_on_the_driver(hash_model, tmp_path):
    with pytest.raises(TypeError, match="unknown argument 'max_lenght'; a scorer takes revision, max_length"):
        cross_encoder_udf(str(hash_model), max_lenght=3)
    with pytest.raises(ConfigError, match="returns is 'probability', expected 'score' or 'logit'"):
        cross_encoder_udf(str(hash_model), returns="probability")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="truncation"):
        cross_encoder_udf(str(hash_model), truncation="both")
    with pytest.raises(ModelError):
        cross_encoder_udf(str(tmp_path))
