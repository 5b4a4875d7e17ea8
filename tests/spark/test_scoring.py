"""How pairs reach the model: windows, layout, one Python operator, one model a worker."""

from __future__ import annotations

import importlib
import os
import sys
import threading
import zipfile
import zipimport
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import islice
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from tables_of import logit_of, plan_of

from rerank_udf.engine import ScoredPairs, resolve_scorer
from rerank_udf.identity import pair_key, text_key
from rerank_udf.spark import scoring
from rerank_udf.spark.scoring import (
    SCORED_SCHEMA,
    co_partitioned,
    process_scorer,
    score_in_arrow,
    scored,
    windows,
)


def batch(rows: int, width: int = 1) -> pa.RecordBatch:
    texts = pa.array(["x" * width] * rows)
    return pa.RecordBatch.from_arrays([texts, texts, texts], ["pair_key", "query", "passage"])


def sizes(batches: list[pa.RecordBatch]) -> list[int]:
    return [table.num_rows for table in windows(batches)]


def test_a_window_gathers_batches_until_it_is_wide(monkeypatch):
    monkeypatch.setattr(scoring, "WINDOW_PAIRS", 10)
    assert sizes([batch(4), batch(0), batch(4), batch(4), batch(3)]) == [12, 3]
    assert sizes([batch(25)]) == [25]
    assert sizes([batch(0), batch(0)]) == []
    assert sizes([]) == []


def test_a_window_of_long_texts_closes_early(monkeypatch):
    monkeypatch.setattr(scoring, "WINDOW_BYTES", 3000)
    assert sizes([batch(1, 600), batch(1, 600), batch(1, 600)]) == [2, 1]


def test_windows_are_lazy():
    def endless() -> Iterator[pa.RecordBatch]:
        while True:
            yield batch(5000)

    assert next(iter(windows(endless()))).num_rows == 5000


def corpus(spark: SparkSession, queries: int, passages: int) -> tuple[DataFrame, DataFrame]:
    """Every query with every passage: pairs and passages as the pipeline stages them."""
    q = {text_key(f"query {n}"): f"query {n}" for n in range(queries)}
    p = {text_key(f"passage {n}"): f"passage {n}" for n in range(passages)}
    pairs = [(pair_key(a, b), a, b, text) for a, text in q.items() for b in p]
    schema = "pair_key binary, query_key binary, passage_key binary, query string"
    return spark.createDataFrame(pairs, schema), spark.createDataFrame(
        list(p.items()), "passage_key binary, passage string"
    )


def laid_out(table: DataFrame) -> dict[int, list[str]]:
    """partition → its passages in order of arrival."""
    found = defaultdict(list)
    for row in table.select(F.spark_partition_id().alias("at"), "passage").collect():
        found[row["at"]].append(row["passage"])
    return found


def runs(values: list[str]) -> int:
    """How many stretches of equal values there are."""
    return sum(1 for n, value in enumerate(values) if n == 0 or values[n - 1] != value)


def test_each_passages_pairs_arrive_together_in_one_task(spark):
    pairs, passages = corpus(spark, 7, 11)
    found = laid_out(co_partitioned(pairs, passages, 4))
    assert sum(map(len, found.values())) == 77
    where = Counter(passage for arrived in found.values() for passage in set(arrived))
    assert set(where.values()) == {1}
    for arrived in found.values():
        assert runs(arrived) == len(set(arrived))


@pytest.mark.parametrize("adaptive", ["true", "false"])
def test_one_python_operator_and_no_exchange_between_layout_and_scoring(
    session_settings, hash_model, adaptive
):
    spark = session_settings
    spark.conf.set("spark.sql.adaptive.enabled", adaptive)
    pairs, passages = corpus(spark, 3, 3)
    plan = plan_of(scored(co_partitioned(pairs, passages, 5), resolve_scorer(hash_model)), "simple")
    assert plan.count("MapInArrow") == 1
    assert "Python" not in plan.replace("PythonMapInArrow", "")
    lines = plan.splitlines()
    operator = next(n for n, line in enumerate(lines) if "MapInArrow" in line)
    above, below = lines[:operator], lines[operator:]
    assert not [line for line in above if "Exchange" in line]
    layout = [
        line
        for line in below
        if "Exchange hashpartitioning(passage_key" in line and "REPARTITION_BY_NUM" in line
    ]
    assert len(layout) == 2
    join = next(n for n, line in enumerate(below) if "SortMergeJoin" in line)
    between = [line for line in below[:join] if "Exchange" in line]
    assert between == []


def test_the_scores_are_those_of_the_scorer_alone(spark, hash_model):
    pairs, passages = corpus(spark, 5, 5)
    result = scored(co_partitioned(pairs, passages, 3), resolve_scorer(hash_model))
    assert result.schema == SCORED_SCHEMA
    expected = {
        pair_key(text_key(q), text_key(p)): logit_of(hash_model, q, p)
        for q in (f"query {n}" for n in range(5))
        for p in (f"passage {n}" for n in range(5))
    }
    rows = result.collect()
    assert {bytes(row["pair_key"]): row["logit"] for row in rows} == expected
    assert {(row["reason"], row["detail"], row["truncated"]) for row in rows} == {(None, None, False)}
    assert {row["tokens"] for row in rows} == {len("query 0") + len("passage 0")}


def test_a_model_is_loaded_once_a_worker_and_not_at_all_for_empty_partitions(spark, hash_model):
    pairs, passages = corpus(spark, 6, 1)  # one passage: 15 of 16 partitions are empty
    result = scored(co_partitioned(pairs, passages, 16), resolve_scorer(hash_model, max_length=77))
    assert len({row["scorer"] for row in result.collect()}) == 1
    pairs, passages = corpus(spark, 3, 30)
    result = scored(co_partitioned(pairs, passages, 16), resolve_scorer(hash_model, max_length=78))
    labels = {row["scorer"] for row in result.collect()}
    workers = {tuple(label.split("/")[:2]) for label in labels}
    assert len(labels) == len(workers) <= 2


def test_nothing_is_loaded_for_a_task_without_rows(hash_model):
    class Unloadable:
        def load(self) -> None:
            raise AssertionError("loaded for nothing")

    assert list(score_in_arrow(Unloadable())(iter([batch(0)]))) == []  # type: ignore[arg-type]


def test_a_process_keeps_its_scorer_until_another_is_asked_for(hash_model, monkeypatch):
    monkeypatch.setattr(scoring, "_loaded", None)
    one, other = resolve_scorer(hash_model), resolve_scorer(hash_model, max_length=64)
    first, label = process_scorer(one)
    assert process_scorer(resolve_scorer(hash_model)) == (first, label)
    assert process_scorer(other)[1] != label
    assert process_scorer(one)[1] not in (label, process_scorer(other)[1])
    assert label.split("/")[1] == str(os.getpid())


def test_a_bad_pair_is_a_row_with_a_reason_and_leaves_the_others_alone(spark, hash_model):
    rows = [(b"1", "q", "p"), (b"2", "q", None), (b"3", None, "p"), (b"4", "", "")]
    table = spark.createDataFrame(rows, "pair_key binary, query string, passage string")
    invalid = spark.sql("select X'35' pair_key, 'q' query, cast(X'61FF' as string) passage")
    found = {
        bytes(r["pair_key"]): r for r in scored(table.union(invalid), resolve_scorer(hash_model)).collect()
    }
    assert {key: row["reason"] for key, row in found.items()} == {
        b"1": None,
        b"2": "null_passage",
        b"3": "null_query",
        b"4": None,
        b"5": "invalid_utf8",
    }
    assert found[b"5"]["logit"] is None
    assert "not valid UTF-8" in found[b"5"]["detail"]


def test_large_arrow_strings_are_scored_the_same(session_settings, hash_model):
    spark = session_settings
    pairs, passages = corpus(spark, 2, 2)
    result = scored(co_partitioned(pairs, passages, 2), resolve_scorer(hash_model)).drop("scorer")
    before = sorted(map(tuple, result.collect()))
    spark.conf.set("spark.sql.execution.arrow.useLargeVarTypes", "true")
    assert sorted(map(tuple, result.collect())) == before


def test_texts_of_megabytes_pass(spark, hash_model):
    columns = "cast(cast(id as string) as binary) pair_key, 'q' query, repeat(concat('wort ', id, ' '), 150000) passage"
    table = spark.sql(f"select {columns} from range(0, 6, 1, 1)")
    found = scored(table, resolve_scorer(hash_model)).collect()
    assert [row["reason"] for row in found] == [None] * 6
    assert {row["truncated"] for row in found} == {True}


@pytest.mark.parametrize("shuffle_partitions", ["2", "40"])
def test_the_stated_number_of_tasks_holds_whatever_the_session_says(session_settings, shuffle_partitions):
    spark = session_settings
    spark.conf.set("spark.sql.shuffle.partitions", shuffle_partitions)
    spark.conf.set("spark.sql.autoBroadcastJoinThreshold", "-1")
    pairs, passages = corpus(spark, 20, 5)
    assert co_partitioned(pairs, passages, 7).rdd.getNumPartitions() == 7


class ReadingAhead:
    """A scorer that reads two windows before it answers for the first, as a device with a queue does."""

    def __init__(self) -> None:
        self.streams = 0

    def load(self) -> Any:
        return self

    def describe(self) -> dict[str, Any]:
        return {"device": "cpu"}

    def stream(self, pairs: Iterator[tuple[Any, Any]]) -> Iterator[ScoredPairs]:
        self.streams += 1
        ahead = list(islice(pairs, 2))
        while ahead:
            texts = ahead.pop(0)[1].to_pylist()
            logits = np.array([float(text) for text in texts], np.float32)
            errors = {n: ("tokenizer_error", f"of {text}") for n, text in enumerate(texts) if text == "5"}
            size = len(texts)
            yield ScoredPairs(logits, np.full(size, 3, np.int32), np.zeros(size, np.bool_), errors)
            ahead += list(islice(pairs, 1))


def numbered(first: int, count: int) -> pa.RecordBatch:
    names = [str(number) for number in range(first, first + count)]
    keys = pa.array([name.encode() for name in names])
    return pa.RecordBatch.from_arrays([keys, pa.array(["q"] * count), pa.array(names)], batch(0).schema.names)


def test_a_task_is_one_stream_and_answers_stand_beside_their_own_keys(monkeypatch):
    monkeypatch.setattr(scoring, "WINDOW_PAIRS", 4)
    monkeypatch.setattr(scoring, "_loaded", None)
    plan, done = ReadingAhead(), SimpleNamespace(pairs=[], tokens=[])
    counters = [SimpleNamespace(add=values.append) for values in (done.pairs, done.tokens)]
    given = [numbered(0, 3), numbered(3, 0), numbered(3, 3), numbered(6, 5), numbered(11, 1)]
    found = list(score_in_arrow(plan, *counters)(iter(given)))  # type: ignore[arg-type]
    rows = [row for answer in found for row in answer.to_pylist()]
    assert [row["pair_key"] for row in rows] == [str(number).encode() for number in range(12)]
    assert [row["logit"] for row in rows] == [None if n == 5 else float(n) for n in range(12)]
    reasons = {row["pair_key"]: (row["reason"], row["detail"]) for row in rows if row["reason"]}
    assert reasons == {b"5": ("tokenizer_error", "of 5")}
    assert plan.streams == 1
    assert (done.pairs, done.tokens) == ([6, 5, 1], [18, 15, 3])
    assert len({row["scorer"] for row in rows}) == 1
    assert all(answer.schema == found[0].schema for answer in found)


def test_the_input_is_read_on_the_callers_thread(tiny_xlmr, monkeypatch):
    monkeypatch.setattr(scoring, "WINDOW_PAIRS", 2)
    readers = set()

    def batches() -> Iterator[pa.RecordBatch]:
        for first in range(0, 12, 3):
            readers.add(threading.current_thread())
            yield numbered(first, 3)

    plan = resolve_scorer(tiny_xlmr, precision="float32", device="cpu")
    rows = [row for found in score_in_arrow(plan)(batches()) for row in found.to_pylist()]
    assert [row["pair_key"] for row in rows] == [str(number).encode() for number in range(12)]
    assert readers == {threading.current_thread()}


def test_a_zips_directory_is_not_read_again_before_the_next_task(hash_model, tmp_path, monkeypatch):
    archive = tmp_path / "library.zip"
    with zipfile.ZipFile(archive, "w") as content:
        content.writestr("zipped_one.py", "value = 1")
        content.writestr("zipped_two.py", "value = 2")
    monkeypatch.syspath_prepend(str(archive))
    assert importlib.import_module("zipped_one").value == 1
    list(score_in_arrow(resolve_scorer(hash_model))(iter([batch(1)])))
    reads = []
    real = zipimport._read_directory  # type: ignore[attr-defined]
    monkeypatch.setattr(zipimport, "_read_directory", lambda path: reads.append(path) or real(path))
    importlib.invalidate_caches()
    assert importlib.import_module("zipped_two").value == 2
    assert str(archive) not in reads
    del sys.modules["zipped_one"], sys.modules["zipped_two"]
