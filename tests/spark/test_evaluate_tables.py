"""The evaluation inside Spark against `rerank_udf.evaluation.evaluate` on the same tables, on the driver."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pyspark.sql import DataFrame, SparkSession
from tables_of import settings_of

import rerank_udf.evaluation as on_driver
from rerank_udf.errors import ConfigError, InputError
from rerank_udf.evaluation import Evaluation, evaluate, parts, significance
from rerank_udf.spark import evaluation as inside
from rerank_udf.spark.evaluation import evaluate_tables, inputs, measuring, statistics

MEASURES = ("nDCG@10", "RR@10", "AP", "Judged@10")
SCHEMAS = {"rank": "query_id string, passage_id string, rank int"}
SCHEMAS["relevance"] = SCHEMAS["rank"].replace("rank", "relevance")


class Tables:
    """One collection: frames for the driver, the same rows for Spark."""

    def __init__(self, seed: int, queries: int = 40, systems: int = 2) -> None:
        rng = np.random.default_rng(seed)
        ids = [f"q{i}" if i % 3 else f"ü{i}" for i in range(queries)]
        rows: dict[str, list[tuple[Any, ...]]] = {f"s{i}": [] for i in range(systems)}
        judged: list[tuple[Any, ...]] = []
        for query in ids:
            pool = rng.permutation(25)[: rng.integers(1, 20)]
            for system, found in rows.items():
                if rng.random() < 0.15:
                    continue  # a query that the system has no candidates for
                order = pool if system != "s1" and rng.random() < 0.3 else rng.permutation(pool)
                order = order[: rng.integers(1, len(order) + 1)]
                ranks = np.cumsum(rng.integers(1, 3, len(order)))  # with gaps
                found += [(query, f"p{p}", int(r)) for p, r in zip(order, ranks, strict=True)]
            if rng.random() < 0.85:  # else a query without qrels
                judged += [(query, f"p{p}", int(rng.integers(0, 4))) for p in rng.permutation(30)[:8]]
        self.rankings = {
            s: pd.DataFrame(r, columns=["query_id", "passage_id", "rank"]) for s, r in rows.items()
        }
        self.qrels = pd.DataFrame(judged, columns=["query_id", "passage_id", "relevance"])
        kinds = rng.choice(["a", "b", "c", None], queries)
        self.queries = pd.DataFrame(
            {
                "query_id": ids,
                "kind": [None if k is None else str(k) for k in kinds],
                "Long": rng.random(queries) < 0.5,
                "page": [f"page {i // 3}" for i in range(queries)],
            }
        )

    def on_driver(self, group_by: list[str], clusters: str | None, **options: Any) -> Evaluation:
        *others, name = self.rankings
        return evaluate(
            self.rankings[name],
            self.qrels,
            baseline={n: self.rankings[n] for n in others} or None,
            name=name,
            group_by=self.queries[["query_id", *group_by]] if group_by else None,
            clusters=self.queries[["query_id", clusters]] if clusters else None,
            **options,
        )

    def in_spark(self, spark: SparkSession, group_by: list[str], clusters: str | None, **options: Any) -> Any:
        return evaluate_tables(
            spark,
            {name: frame_of(spark, rows, "rank") for name, rows in self.rankings.items()},
            frame_of(spark, self.qrels, "relevance"),
            queries=queries_of(spark, self.queries),
            group_by=group_by,
            clusters=clusters,
            **options,
        )


def frame_of(spark: SparkSession, rows: pd.DataFrame, value: str) -> DataFrame:
    listed = [tuple(row) for row in rows.astype(object).itertuples(index=False)]
    return spark.createDataFrame(listed, SCHEMAS[value]).repartition(3)


def queries_of(spark: SparkSession, rows: pd.DataFrame) -> DataFrame:
    listed = [tuple(row) for row in rows.astype(object).itertuples(index=False)]
    return spark.createDataFrame(listed, "query_id string, kind string, Long boolean, page string")


def assert_same(found: Any, expected: Evaluation) -> None:
    pd.testing.assert_frame_equal(found.summary, expected.summary, rtol=0, atol=1e-12)
    assert found.counts == expected.counts
    assert list(found.counts) == list(expected.counts)
    assert found.settings == expected.settings
    order = ["system", "documents", "measure", "query_id"]
    frames = [e.per_query.sort_values(order, ignore_index=True) for e in (found, expected)]
    pd.testing.assert_frame_equal(*frames, rtol=0, atol=1e-12)


CASES = {
    "alone": (1, [], None, None),
    "pair": (2, [], None, None),
    "groups": (2, ["kind"], None, 5),
    "clusters": (2, [], "page", None),
    "all": (3, ["kind", "Long"], "page", 7),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("size", ["small", "large"])
def test_it_finds_what_evaluate_finds(spark, monkeypatch, case, size):
    """Large: as if nothing but sums fitted the driver; with parts of a few queries, several to a task."""
    systems, group_by, clusters, depth = CASES[case]
    if size == "large":
        monkeypatch.setattr(inside, "COLLECTED_QUERIES", 0)
        monkeypatch.setattr(measuring, "_ROWS_PER_TASK", 120)
    tables = Tables(seed=len(case), systems=systems)
    options = {"measures": MEASURES, "depth": depth, "seed": 3}
    expected = tables.on_driver(group_by, clusters, **options)
    found = tables.in_spark(spark, group_by, clusters, **options)
    assert_same(found, expected)
    intervals = ["ci_low", "ci_high"]
    bits = 0.0 if size == "small" else 1e-15  # Spark adds a cluster's values up in no fixed order
    pd.testing.assert_frame_equal(
        found.summary[intervals], expected.summary[intervals], rtol=bits, atol=bits, check_exact=not bits
    )
    found.release()


def test_large_groups_have_the_interval_by_expansion_and_small_ones_by_bootstraps(spark, monkeypatch):
    monkeypatch.setattr(inside, "COLLECTED_QUERIES", 0)
    for module in (significance, statistics):
        monkeypatch.setattr(module, "BOOTSTRAP_CLUSTERS", 12)
    monkeypatch.setattr(on_driver, "BOOTSTRAP_CLUSTERS", 12)
    for group_by, clusters in ((["kind"], None), (["kind"], "page"), ([], "page")):
        tables = Tables(seed=5, queries=60)
        expected = tables.on_driver(group_by, clusters)
        found = tables.in_spark(spark, group_by, clusters)
        assert_same(found, expected)
        assert found.settings["expansion_groups"][0] == "all"
        assert len(found.settings["expansion_groups"]) < max(2, found.summary["group"].nunique())
        found.release()


def test_results_depend_neither_on_the_session_nor_on_how_rows_lie(session_settings, monkeypatch):
    spark, tables = session_settings, Tables(seed=8, queries=30)
    expected = tables.on_driver(["kind"], "page")
    monkeypatch.setattr(
        parts, "CHUNK_ROWS", 1
    )  # each query alone: what shuffles and values rest on is the query
    settings = {
        "spark.sql.ansi.enabled": "true",
        "spark.sql.caseSensitive": "true",
        "spark.sql.session.timeZone": "Asia/Tokyo",
        "spark.sql.adaptive.enabled": "false",
        "spark.sql.shuffle.partitions": "7",
        "spark.sql.execution.arrow.maxRecordsPerBatch": "3",
    }
    for name, value in settings.items():
        spark.conf.set(name, value)
    before = settings_of(spark)
    assert_same(tables.in_spark(spark, ["kind"], "page"), expected)
    assert settings_of(spark) == before


def test_whole_groups_cuts_between_groups_only():
    rng = np.random.default_rng(1)
    keys = np.sort(rng.integers(0, 9, 200))
    column = parts.pa.array([None] * 7 + [f"k{k}" for k in keys])
    batches = parts.pa.table({"q": column, "at": np.arange(207)}).to_batches(max_chunksize=5)
    found = list(parts.whole_groups(batches, "q", 20))
    assert parts.pa.concat_tables(found)["at"].to_pylist() == list(range(207))
    seen = [set(table["q"].to_pylist()) for table in found]
    assert len(found) > 3
    assert sum(map(len, seen)) == len(set.union(*seen))


def test_the_values_are_a_table_that_spark_writes_and_a_large_evaluation_writes_the_same_files(
    spark, monkeypatch, tmp_path
):
    tables = Tables(seed=2, queries=20)
    small = tables.in_spark(spark, ["kind"], None)
    small.write(tmp_path / "small")
    small.values.write.parquet(str(tmp_path / "values"))
    monkeypatch.setattr(inside, "COLLECTED_QUERIES", 0)
    large = tables.in_spark(spark, ["kind"], None)
    large.write(tmp_path / "large")
    order = ["system", "documents", "measure", "query_id"]
    places = [tmp_path / "small/per_query.parquet", tmp_path / "values", tmp_path / "large/per_query.parquet"]
    first, *others = [pd.read_parquet(p).sort_values(order, ignore_index=True) for p in places]
    for other in others:
        pd.testing.assert_frame_equal(first, other)
    documents = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("small", "large")]
    assert documents[0]["settings"] == documents[1]["settings"]
    summaries = [pd.read_parquet(tmp_path / name / "summary.parquet") for name in ("small", "large")]
    pd.testing.assert_frame_equal(*summaries, rtol=0, atol=1e-12)
    small.write(tmp_path / "large")  # over a large one's folder of files
    pd.testing.assert_frame_equal(first, pd.read_parquet(places[2]).sort_values(order, ignore_index=True))
    assert "20 queries" not in repr(large)
    assert "s0, s1" in repr(large)
    large.release()


def test_the_stage_is_as_large_as_all_rankings_together(spark: SparkSession) -> None:
    schema = "query_id string, passage_id string, {} int"
    rows = [(f"q{n // 4}", f"p{n}", n) for n in range(40)]
    qrels = spark.createDataFrame(rows[:12], schema.format("relevance"))
    ranked = {
        name: spark.createDataFrame(rows[:n], schema.format("rank")) for name, n in [("a", 40), ("b", 7)]
    }
    empty = spark.createDataFrame([], schema.format("rank"))
    size = inputs.inputs_of(spark, {**ranked, "reranked": empty}, qrels, None, [], None).size()
    assert (size.queries, size.rows) == (3, 47)


def test_candidate_rows_do_not_come_to_the_driver(spark, monkeypatch):
    """Everything that is collected: a size, then a row a query (packed) or sums."""
    collected: list[int] = []
    frame = type(spark.range(1))
    monkeypatch.setattr(frame, "toPandas", lambda self: pytest.fail("toPandas"))
    original = frame.collect

    def counted(self: DataFrame) -> Any:
        rows = original(self)
        collected.append(len(rows))
        return rows

    monkeypatch.setattr(frame, "collect", counted)
    tables = Tables(seed=3, queries=30)
    tables.in_spark(spark, [], None)
    assert max(collected) <= 2
    monkeypatch.setattr(inside, "COLLECTED_QUERIES", 0)
    monkeypatch.setattr(statistics, "BOOTSTRAP_CLUSTERS", 0)
    tables.in_spark(spark, [], None).release()
    assert max(collected) <= 2


def test_integer_ids_null_groups_and_columns_of_qrels_and_ranking(spark):
    ranking = spark.createDataFrame(
        [(7, 30, 1, "x"), (7, 4, 2, "x"), (8, 4, 1, "y")],
        "query_id long, passage_id int, rank short, source string",
    )
    qrels = spark.createDataFrame(
        [("7", "4", 1, "de"), ("8", "4", 2, None)],
        "query_id string, passage_id string, relevance byte, lang string",
    )
    found = evaluate_tables(spark, {"mini": ranking}, qrels, group_by=["lang", "source"], measures=["RR@10"])
    rows = found.summary.query("system == 'mini' and documents == 'all'")
    means = dict(zip(rows["group"], rows["mean"], strict=True))
    assert means == {"all": 0.75, "de · x": 0.5, "(none) · y": 1.0}


GOOD = [("q", "a", 1), ("q", "b", 2)]
QRELS = [("q", "a", 1)]


@pytest.mark.parametrize(
    ("rows", "schema"),
    [
        (GOOD, "query_id string, passage_id string, place int"),
        ([("q", "a", "1")], "query_id string, passage_id string, rank string"),
        ([("q", "a", 1.0)], "query_id string, passage_id string, rank double"),
        ([(1.5, "a", 1)], "query_id double, passage_id string, rank int"),
        ([("q", "a", 1), ("q", "a", 2)], None),
        ([("q", "a", 1), ("q", "a", 2), ("z", "a", 1), ("z", "a", 2)], None),
        ([("q", "a", 1), ("q", "b", 1)], None),
        ([("q", "a", 0), ("q", "b", 1)], None),
        ([("q", "a", 1), ("r", "b", -1), ("r", "c", -2)], None),
    ],
)
def test_a_ranking_that_breaks_the_contract_is_evaluates_own_sentence(spark, rows, schema):
    schema = schema or SCHEMAS["rank"]
    frame = pd.DataFrame(rows, columns=[part.split()[0] for part in schema.split(", ")])
    for column in ("rank", "place"):
        if column in frame and schema.endswith("int"):
            frame[column] = frame[column].astype("int64")
    good = pd.DataFrame(GOOD, columns=["query_id", "passage_id", "rank"])
    qrels = pd.DataFrame(QRELS, columns=["query_id", "passage_id", "relevance"])
    with pytest.raises(InputError) as expected:
        evaluate(frame, qrels, baseline={"first": good})
    sentence = str(expected.value).partition(" (pandas")[0]
    broken, sound = spark.createDataFrame(rows, schema), spark.createDataFrame(GOOD, SCHEMAS["rank"])
    judged = spark.createDataFrame(QRELS, SCHEMAS["relevance"])
    with pytest.raises(InputError) as found:
        evaluate_tables(spark, {"first": sound, "mini": broken}, judged)
    assert str(found.value) == sentence


def ranks_of(rows: list[tuple[Any, ...]]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["query_id", "passage_id", "rank"])
    return frame.astype({"rank": "int64"})


@pytest.mark.parametrize("most", [inside.COLLECTED_QUERIES, 0], ids=["small", "large"])
@pytest.mark.parametrize("left", [[], [("z", "a", 1)]], ids=["empty", "others"])
def test_a_ranking_that_has_lost_every_judged_query_counts_as_zero(spark, monkeypatch, most, left):
    monkeypatch.setattr(inside, "COLLECTED_QUERIES", most)
    first, nobody = ranks_of([*GOOD, ("z", "a", 1)]), ranks_of([("y", "a", 1)])
    qrels = pd.DataFrame([*QRELS, ("r", "a", 1)], columns=["query_id", "passage_id", "relevance"])
    rankings = {"first": first, "other": nobody, "mini": ranks_of(left)}
    expected = evaluate(
        rankings["mini"], qrels, baseline={"first": first, "other": nobody}, name="mini", measures=["RR@10"]
    )
    assert expected.summary.query("system == 'mini'")["mean"].tolist() == [0.0, 0.0]
    frames = {name: frame_of(spark, rows, "rank") for name, rows in rankings.items()}
    found = evaluate_tables(spark, frames, frame_of(spark, qrels, "relevance"), measures=["RR@10"])
    assert_same(found, expected)
    found.release()


@pytest.mark.parametrize("most", [inside.COLLECTED_QUERIES, 0], ids=["small", "large"])
@pytest.mark.parametrize("given", [{"mini": [("Q", "a", 1)]}, {"first": [("Q", "a", 1)], "mini": []}])
def test_qrels_that_name_no_query_of_any_ranking_are_evaluates_own_sentence(spark, monkeypatch, most, given):
    monkeypatch.setattr(inside, "COLLECTED_QUERIES", most)
    rankings = {name: ranks_of(rows) for name, rows in given.items()}
    *others, name = rankings
    qrels = pd.DataFrame(QRELS, columns=["query_id", "passage_id", "relevance"])
    with pytest.raises(InputError, match="The qrels name no query of any ranking") as expected:
        evaluate(rankings[name], qrels, baseline={n: rankings[n] for n in others})
    frames = {name: frame_of(spark, rows, "rank") for name, rows in rankings.items()}
    with pytest.raises(InputError) as found:
        evaluate_tables(spark, frames, frame_of(spark, qrels, "relevance"))
    assert str(found.value) == str(expected.value)


def test_of_several_faults_the_one_that_evaluate_finds_first_is_told(spark):
    qrels = spark.createDataFrame(QRELS, SCHEMAS["relevance"])
    twice = spark.createDataFrame([("q", "a", 1), ("q", "b", 1)], SCHEMAS["rank"])
    below = spark.createDataFrame([("q", "a", 0), ("q", "a", 1)], SCHEMAS["rank"])
    good = spark.createDataFrame(GOOD, SCHEMAS["rank"])
    with pytest.raises(
        InputError, match=r"^baseline 'first': query_id 'q', passage_id 'b', rank 1 has a rank that"
    ):
        evaluate_tables(spark, {"first": twice, "mini": good}, qrels)
    with pytest.raises(
        InputError, match=r"^ranking: query_id 'q', passage_id 'a', rank 1 stands there more than"
    ):
        evaluate_tables(spark, {"first": twice, "mini": below}, qrels)


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (
            [("q", "a", None), *GOOD],
            "ranking: column 'rank' is null in 1 rows, such as (query_id 'q', passage_id 'a'); ",
        ),
        (
            [("q", None, 1), ("r", None, 1)],
            "ranking: column 'passage_id' is null in 2 rows, such as (query_id 'q'); ",
        ),
        (
            [(None, "b", 1), (None, "a", 1)],
            "ranking: column 'query_id' is null in 2 rows, such as (passage_id 'a'); ",
        ),
    ],
)
def test_nulls_are_counted_and_the_first_by_id_is_named(spark, monkeypatch, rows, sentence):
    """In Spark rows have no number; a large evaluation finds the same."""
    ranking, qrels = (
        spark.createDataFrame(rows, SCHEMAS["rank"]),
        spark.createDataFrame(QRELS, SCHEMAS["relevance"]),
    )
    for most in (inside.COLLECTED_QUERIES, 0):
        monkeypatch.setattr(inside, "COLLECTED_QUERIES", most)
        with pytest.raises(InputError) as found:
            evaluate_tables(spark, {"mini": ranking}, qrels)
        assert sentence in str(found.value)


@pytest.mark.parametrize(
    ("rows", "schema", "sentence"),
    [
        (
            [("q", "a", 0.5)],
            "query_id string, passage_id string, relevance float",
            "'relevance' has the type float; whole",
        ),
        (
            [("q", "a", 1), ("q", "a", 1)],
            None,
            "qrels: query_id 'q', passage_id 'a', relevance 1 stands there more than",
        ),
        ([("q", "a", None)], None, "qrels: column 'relevance' is null in 1 rows"),
        ([], None, "qrels has no rows"),
    ],
)
def test_qrels_that_break_the_contract_are_a_sentence(spark, rows, schema, sentence):
    qrels = spark.createDataFrame(rows, schema or SCHEMAS["relevance"])
    with pytest.raises(InputError, match=sentence):
        evaluate_tables(spark, {"mini": spark.createDataFrame(GOOD, SCHEMAS["rank"])}, qrels)


def test_ids_that_are_not_utf8_are_a_sentence(spark):
    broken = spark.sql(
        "select cast(x'ff' as string) query_id, 'a' passage_id, 1 rank union all select 'q', 'a', 1"
    )
    with pytest.raises(InputError, match="ranking: an id is not valid UTF-8"):
        evaluate_tables(spark, {"mini": broken}, spark.createDataFrame(QRELS, SCHEMAS["relevance"]))


@pytest.mark.parametrize(
    ("options", "kind", "sentence"),
    [
        (
            {"group_by": ["lang"]},
            InputError,
            "group_by says nothing of 1 queries of the qrels, the first 'q'; every",
        ),
        (
            {"group_by": ["kind"]},
            InputError,
            "group_by: column 'kind' has several values for query_id 'r', 'x' and 'y'; one for a query is expected",
        ),
        ({"clusters": "lang"}, InputError, "clusters says nothing of 1 queries of the qrels"),
        (
            {"group_by": ["mean"]},
            InputError,
            "group_by has a column 'mean', a name that the evaluation needs",
        ),
        (
            {"group_by": ["cluster"]},
            InputError,
            "group_by has a column 'cluster', a name that the evaluation",
        ),
        (
            {"group_by": ["language"]},
            ConfigError,
            "group_by names the column 'language', which no table has beside query_id: queries has query_id, lang",
        ),
        ({"measures": ["nDGC@10"]}, ConfigError, "'nDGC@10' is not a measure"),
        ({"depth": 0}, ConfigError, "depth is 0"),
        (
            {"baseline": "mini"},
            ConfigError,
            "baseline is 'mini'; one of the rankings before the last is expected: none",
        ),
    ],
)
def test_settings_and_groups_that_do_not_fit_are_sentences(spark, options, kind, sentence):
    queries = spark.createDataFrame(
        [("r", "de", "x", 1, "p1"), ("r", "de", "y", 1, "p1")],
        "query_id string, lang string, kind string, mean int, cluster string",
    )
    if options.get("group_by") == ["kind"]:
        queries = queries.union(spark.createDataFrame([("q", "de", "x", 1, "p2")], queries.schema))
    rankings = {"mini": spark.createDataFrame(GOOD, SCHEMAS["rank"])}
    with pytest.raises(kind) as found:
        evaluate_tables(
            spark, rankings, spark.createDataFrame(QRELS, SCHEMAS["relevance"]), queries=queries, **options
        )
    assert sentence in str(found.value)


def test_system_names_are_checked(spark):
    good = spark.createDataFrame(GOOD, SCHEMAS["rank"])
    qrels = spark.createDataFrame(QRELS, SCHEMAS["relevance"])
    with pytest.raises(ConfigError, match="rankings is empty"):
        evaluate_tables(spark, {}, qrels)
    with pytest.raises(ConfigError, match="system name 'oracle' is used twice"):
        evaluate_tables(spark, {"oracle": good, "mini": good}, qrels)


def test_its_code_knows_no_spark_context():
    """A name that Connect has not would only fail there."""
    for module in (inside, inputs, measuring, statistics):
        code = "\n".join(line for line in inspect.getsource(module).splitlines() if "`" not in line)
        for absent in ("sparkContext", "_jdf", "_jvm", ".rdd"):
            assert absent not in code, (module.__name__, absent)


CONNECT = """
import json, sys
from pyspark.sql import SparkSession
from rerank_udf.spark import evaluation
spark = SparkSession.builder.remote("local[1]").config("spark.sql.shuffle.partitions", "2").getOrCreate()
rows, qrels = json.loads(sys.argv[1])
ids = "query_id string, passage_id string, "
rankings = {name: spark.createDataFrame([tuple(r) for r in found], ids + "rank int") for name, found in rows.items()}
judged = spark.createDataFrame([tuple(r) for r in qrels], ids + "relevance int")
for most in (evaluation.COLLECTED_QUERIES, 0):
    evaluation.COLLECTED_QUERIES = most
    found = evaluation.evaluate_tables(spark, rankings, judged)
    print("RESULT", json.dumps(found.rows()))
    print("VALUES", found.values.count(), type(found.values).__module__)
spark.stop()
"""


@pytest.mark.cluster
@pytest.mark.slow
def test_the_same_through_spark_connect():
    pytest.importorskip("grpc", reason="Spark Connect needs grpcio (the extra `connect`)")
    tables = Tables(seed=6, queries=12)
    expected = tables.on_driver([], None)
    rows = {name: frame.astype(object).values.tolist() for name, frame in tables.rankings.items()}
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("SPARK_", "PYSPARK_GATEWAY"))}
    done = subprocess.run(
        [sys.executable, "-c", CONNECT, json.dumps([rows, tables.qrels.astype(object).values.tolist()])],
        env={**environment, "PYSPARK_PYTHON": sys.executable},
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert len(lines) == 2, done.stderr[-3000:]
    for line in lines:
        found = pd.DataFrame(json.loads(line.removeprefix("RESULT "))).astype(expected.summary.dtypes)
        pd.testing.assert_frame_equal(found, expected.summary, rtol=0, atol=1e-12)
    values = f"VALUES {len(expected.per_query)} pyspark.sql.connect.dataframe"
    assert done.stdout.count(values) == 2
