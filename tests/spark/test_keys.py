from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from rerank_udf.identity import pair_key, text_key
from rerank_udf.spark import keys

NASTY = [
    "",
    " ",
    "\x00",
    "a\x00b",
    "\u200d",
    "👩‍👩‍👧‍👦",
    "é",
    "é",
    "\ufeffBOM",
    "\ufffd",
    "١٢٣ עברית",
    "\r\n\t",
    "<pad></s>",
    "x" * 100_000,
    "𝔘𝔫𝔦",
    "\U0010ffff",
]


def spark_keys(spark: SparkSession, pairs: list[tuple[str | None, str | None]]) -> list[tuple[object, ...]]:
    """(query key, passage key, pair key) of each pair, computed by Spark."""
    rows = spark.createDataFrame([(n, *pair) for n, pair in enumerate(pairs)], "n int, q string, p string")
    q, p = keys.text_key(F.col("q")), keys.text_key(F.col("p"))
    found = (
        rows.select("n", q.alias("q"), p.alias("p"), keys.pair_key(q, p).alias("pair")).orderBy("n").collect()
    )
    return [tuple(None if key is None else bytes(key) for key in row[1:]) for row in found]


def plain_keys(query: str, passage: str) -> tuple[bytes, ...]:
    return text_key(query), text_key(passage), pair_key(text_key(query), text_key(passage))


def test_spark_computes_the_keys_of_identity(spark):
    pairs = list(zip(NASTY, reversed(NASTY), strict=True))
    assert spark_keys(spark, pairs) == [plain_keys(*pair) for pair in pairs]


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.text(), st.text()), min_size=1, max_size=50))
def test_spark_computes_the_keys_of_identity_for_any_text(spark, pairs):
    assert spark_keys(spark, pairs) == [plain_keys(*pair) for pair in pairs]


def test_a_null_text_has_no_key(spark):
    assert spark_keys(spark, [(None, "a")]) == [(None, text_key("a"), None)]


def test_keys_are_of_bytes_that_are_no_utf8_too(spark):
    (row,) = (
        spark.sql("select cast(unhex('61FF62') as string) as t").select(keys.text_key(F.col("t"))).collect()
    )
    assert len(row[0]) == 16
    assert bytes(row[0]) != text_key("a\ufffdb")
