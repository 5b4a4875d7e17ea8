"""What is left to score, in buckets; rows that a later run takes over; what is looked up in the store."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from tables_of import plan_of

from rerank_udf.identity import pair_key, text_key
from rerank_udf.lake import files
from rerank_udf.lake.store import FACTS_SCHEMA
from rerank_udf.spark import lookup, staging
from rerank_udf.spark.lookup import KnownFacts, facts_of, unknown_facts, with_known
from rerank_udf.spark.rows import discard, fingerprint, plan_text, release, stage_rows
from rerank_udf.spark.staging import StagedPairs, bucket_count, stage_pairs

ROWS = "reason string, beyond_depth boolean, pair_key binary, query_key binary, passage_key binary"


def grid(queries: int, passages: int) -> list[tuple[str, str]]:
    return [(f"query {q}", f"passage {p}") for q in range(queries) for p in range(passages)]


def key_of(query: str, passage: str) -> bytes:
    return pair_key(text_key(query), text_key(passage))


def rows_of(spark: SparkSession, pairs: list[tuple[str, str]]) -> DataFrame:
    return spark.createDataFrame(
        [(None, False, key_of(q, p), text_key(q), text_key(p)) for q, p in pairs], ROWS
    )


def texts_of(spark: SparkSession, pairs: list[tuple[str, str]]) -> Any:
    def table(texts: list[str], noun: str) -> DataFrame:
        return spark.createDataFrame([(text_key(t), t) for t in texts], f"{noun}_key binary, {noun} string")

    return SimpleNamespace(
        queries=table([q for q, _ in pairs], "query"), passages=table([p for _, p in pairs], "passage")
    )


def known_of(spark: SparkSession, pairs: list[tuple[str, str]]) -> KnownFacts:
    facts = [(key_of(q, p), float(n), n, False) for n, (q, p) in enumerate(pairs)]
    return KnownFacts(spark.createDataFrame([*facts, *facts[:2]], FACTS_SCHEMA), len(facts) + len(facts[:2]))


def staged_texts(staged: StagedPairs) -> list[tuple[str, str]]:
    """The (query, passage) of each staged pair, from the places alone; the pair's key must be that of its texts."""
    if not staged.left:
        return []
    joined = staged.pairs.join(staged.passages, ["bucket", "place"]).collect()
    for row in joined:
        assert bytes(row["pair_key"]) == key_of(row["query"], row["passage"])
    return sorted((row["query"], row["passage"]) for row in joined)


def stage(spark: SparkSession, folder: Path, pairs: list[tuple[str, str]], known: Any = None) -> StagedPairs:
    more = [("query 0", "passage nobody asks for")]
    return stage_pairs(
        spark, rows_of(spark, pairs), len(pairs), texts_of(spark, [*pairs, *pairs, *more]), known, str(folder)
    )


def test_each_pair_is_staged_once_with_its_passage_in_the_same_bucket(spark, tmp_path, monkeypatch):
    monkeypatch.setattr(staging, "_FEWEST_PAIRS_PER_BUCKET", 10)
    pairs = grid(7, 11)
    staged = stage(spark, tmp_path, [*pairs, *pairs[:5]])
    assert staged_texts(staged) == sorted(pairs)
    assert (staged.left, staged.known, staged.distinct) == (77, 0, 77)
    assert sum(staged.sizes.values()) == 77
    assert 3 < len(staged.sizes) <= 8
    assert staged.passages.count() == 11


def test_rows_that_are_not_to_be_scored_are_left_out(spark, tmp_path):
    rows = rows_of(spark, grid(2, 2)).withColumn("reason", F.lit("bad_rank"))
    deep = rows_of(spark, grid(3, 2)).withColumn("beyond_depth", F.lit(True))
    staged = stage_pairs(spark, rows.union(deep), 10, texts_of(spark, grid(3, 2)), None, str(tmp_path))
    assert (staged.left, staged.known) == (0, 0)


# (broadcast at most, of the store, why): the three ways to look up
LOOKUPS = [(10**6, "the store is small"), (40, "the pairs are few"), (3, "both are large")]


@pytest.mark.parametrize(("limit", "why"), LOOKUPS, ids=[why for _, why in LOOKUPS])
def test_what_the_store_knows_is_not_staged(spark, tmp_path, monkeypatch, limit, why):
    monkeypatch.setattr(lookup, "BROADCAST_ROWS", limit)
    monkeypatch.setattr(staging, "_FEWEST_PAIRS_PER_BUCKET", 10)
    pairs = grid(6, 6)
    known = [*grid(3, 6), *[(f"old {n}", "passage 0") for n in range(60)]]
    staged = stage(spark, tmp_path, pairs, known_of(spark, known))
    assert staged_texts(staged) == sorted(set(pairs) - set(known))
    assert (staged.left, staged.known, staged.distinct) == (18, 18, 36)
    assert {row["passage"] for row in staged.passages.collect()} == {f"passage {n}" for n in range(6)}


def test_where_all_is_known_no_passage_is_read(spark, tmp_path):
    pairs = grid(3, 3)
    staged = stage(spark, tmp_path, pairs, known_of(spark, pairs))
    assert (staged.left, staged.known) == (0, 9)
    assert not (tmp_path / "passages").exists()


def test_a_passage_in_very_many_pairs_is_split_and_no_pair_is_lost_or_doubled(spark, tmp_path, monkeypatch):
    monkeypatch.setattr(staging, "MAX_PAIRS_PER_PASSAGE", 8)
    monkeypatch.setattr(staging, "_FEWEST_PAIRS_PER_BUCKET", 5)
    pairs = [(f"query {n}", "hot") for n in range(40)] + grid(2, 3)
    staged = stage(spark, tmp_path, pairs)
    assert staged_texts(staged) == sorted(pairs)
    hot = [row for row in staged.passages.collect() if row["passage"] == "hot"]
    assert len(hot) == len({bytes(row["place"]) for row in hot}) > 2
    assert len({row["bucket"] for row in hot}) > 1
    assert staged.passages.where("passage != 'hot'").count() == 3


@pytest.mark.parametrize("broadcast_bytes", [1 << 40, -1])
def test_pairs_whose_query_is_not_there_any_more_are_not_staged(
    spark, tmp_path, monkeypatch, broadcast_bytes
):
    monkeypatch.setattr(staging, "_BROADCAST_BYTES", broadcast_bytes)
    pairs = grid(3, 3)
    texts = texts_of(spark, pairs)
    texts.queries = texts.queries.where("query != 'query 1'")
    staged = stage_pairs(spark, rows_of(spark, pairs), len(pairs), texts, None, str(tmp_path))
    assert staged_texts(staged) == sorted(pair for pair in pairs if pair[0] != "query 1")


def test_buckets_and_the_layout_of_a_wave_do_not_fall_together(spark):
    """Were the bucket Spark's own hash modulo, one bucket's places would all go to one task of its wave."""
    places = spark.range(4096).select(F.col("id").cast("string").cast("binary").alias("place"))
    tasks = (
        places.withColumn("bucket", staging._bucket(64))
        .where("bucket = 7")
        .repartition(16, "place")
        .select(F.spark_partition_id().alias("task"))
    )
    assert tasks.distinct().count() > 8


@pytest.mark.parametrize(("pairs", "buckets"), [(0, 1), (8191, 1), (16384, 2), (10**6, 122), (10**9, 512)])
def test_there_are_enough_buckets_to_size_waves_by(pairs, buckets):
    assert bucket_count(pairs) == buckets


def test_a_large_store_is_not_shuffled_for_few_pairs_nor_many_pairs_for_a_small_store(spark, monkeypatch):
    pairs = rows_of(spark, grid(2, 2)).select("pair_key")
    store = known_of(spark, grid(5, 5))
    for limit, few in ((10, 4), (1000, 500)):
        monkeypatch.setattr(lookup, "BROADCAST_ROWS", limit)
        plan = plan_of(unknown_facts(pairs, few, store), "simple")
        assert "Exchange hashpartitioning" not in plan
        assert "BroadcastHashJoin" in plan
    monkeypatch.setattr(lookup, "BROADCAST_ROWS", 3)
    assert "BroadcastHashJoin" not in plan_of(unknown_facts(pairs, 500, store), "simple")


@pytest.mark.parametrize("much_larger", [0, 1000])
def test_facts_are_those_of_the_rows_one_a_pair(spark, monkeypatch, much_larger):
    monkeypatch.setattr(lookup, "_MUCH_LARGER", much_larger)
    stored = grid(3, 3)
    store = known_of(spark, stored)
    asked = [*stored[:4], ("new", "pair")]
    found = facts_of(rows_of(spark, [*asked, *asked]), 10, store)
    expected = {key_of(q, p): float(n) for n, (q, p) in enumerate(stored)}
    rows = {bytes(row["pair_key"]): row["logit"] for row in found.collect()}
    assert len(rows) == found.count()
    assert {key_of(*pair): rows[key_of(*pair)] for pair in asked[:4]} == {
        key_of(*pair): expected[key_of(*pair)] for pair in asked[:4]
    }
    assert key_of("new", "pair") not in rows


def test_known_is_a_flag_and_no_row_is_doubled_by_a_fact_that_is_in_twice(spark):
    pairs = rows_of(spark, grid(2, 3)).select("pair_key")
    found = with_known(pairs, 6, known_of(spark, grid(1, 3))).collect()
    assert len(found) == 6
    assert sum(row["_known"] for row in found) == 3


# --- rows that another run left ---


@pytest.fixture
def table(spark, tmp_path):
    spark.range(6).selectExpr("id", "id * 2 as twice").repartition(2).write.parquet(str(tmp_path / "in"))
    return lambda: spark.read.parquet(str(tmp_path / "in"))


def test_rows_of_the_same_input_are_taken_over(spark, tmp_path, table):
    work = str(tmp_path / "work")
    first = stage_rows(spark, table().where("twice > 3"), "settings", work, "run-1")
    again = stage_rows(spark, table().where("twice > 3"), "settings", work, "run-2")
    assert (first.reused, again.reused) == (False, True)
    assert sorted(again.frame.collect()) == sorted(first.frame.collect())
    assert again.folder == first.folder
    other = stage_rows(spark, table().where("twice > 5"), "settings", work, "run-3")
    assert not other.reused
    assert not stage_rows(spark, table().where("twice > 3"), "other settings", work, "run-4").reused


def test_rows_that_a_live_run_reads_outlive_their_owner(spark, tmp_path, table):
    work = str(tmp_path / "work")
    owner, user = (stage_rows(spark, table(), "", work, run) for run in ("run-1", "run-2"))
    assert user.reused
    discard(spark, owner.folder, lambda run: run == "run-2")
    assert user.frame.count() == 6
    assert not stage_rows(spark, table(), "", work, "run-3").reused  # for they may go at any time
    discard(spark, owner.folder, lambda run: False)
    assert not Path(owner.folder).exists()


def test_rows_that_nobody_reads_any_more_go(spark, tmp_path, table):
    owner, user = (stage_rows(spark, table(), "", str(tmp_path / "work"), run) for run in ("run-1", "run-2"))
    release(spark, user.folder, "run-2")
    assert Path(owner.folder).exists()
    discard(spark, owner.folder, lambda run: True)
    assert not Path(owner.folder).exists()


def test_rows_that_go_while_a_run_takes_them_are_not_taken(spark, tmp_path, table, monkeypatch):
    work = str(tmp_path / "work")
    owner = stage_rows(spark, table(), "", work, "run-1")
    write = files.write_text

    def and_meanwhile(session: SparkSession, path: str, text: str) -> None:
        if "_used_by" in path:
            discard(spark, owner.folder, lambda run: True)
        write(session, path, text)

    monkeypatch.setattr(files, "write_text", and_meanwhile)
    other = stage_rows(spark, table(), "", work, "run-2")
    assert not other.reused
    assert other.frame.count() == 6


def test_rows_that_were_not_finished_are_not_taken_over(spark, tmp_path, table):
    first = stage_rows(spark, table(), "", str(tmp_path / "work"), "run-1")
    Path(first.folder, "_complete.json").unlink()
    assert not stage_rows(spark, table(), "", str(tmp_path / "work"), "run-2").reused


def test_a_file_that_changed_is_another_input(spark, tmp_path, table):
    before = fingerprint(spark, table(), "")
    assert before == fingerprint(spark, table(), "")
    part = next((tmp_path / "in").glob("part-*"))
    os.utime(part, (1, 1))
    assert fingerprint(spark, table(), "") != before


@pytest.mark.parametrize("name", ["with space", "per%20cent", "at=2026-01-31 02%3A00", "Ümläut"])
def test_files_are_found_whatever_their_folder_is_called(spark, tmp_path, name):
    place = tmp_path / name
    spark.range(3).write.parquet(str(place))
    before = fingerprint(spark, spark.read.parquet(str(place)), "")
    assert before is not None
    os.utime(next(place.glob("part-*")), (1, 1))
    assert fingerprint(spark, spark.read.parquet(str(place)), "") not in (before, None)


def test_a_change_far_right_in_a_wide_table_is_another_input(spark, table):
    one, other = (
        fingerprint(spark, table().selectExpr(*[f"id + {n} c{n}" for n in range(40)], f"id * {last} z"), "")
        for last in (2, 3)
    )
    assert one != other


def test_the_text_of_a_plan_is_the_same_in_every_jvm_and_of_every_other_plan_another():
    """Ids count on in a session; operands come by hashes, some of them a class's own, which a JVM draws."""
    optimized = "Project [a#{0}, b#{1}L]\n+- Filter (isnotnull(a#{0}) AND exists(b#{1}L, lambda x_{2}#{3}: x_{2}#{3}))"
    canonical = (
        "Project [none#0, none#1L]\n+- Filter ({} AND {})",
        "isnotnull(none#0)",
        "exists(none#1L, tag = {})",
    )

    def text(ids: tuple[int, ...], first: int, literal: str = "#12", filtered: str = optimized) -> str:
        operands = canonical[1 + first], canonical[2 - first]
        return plan_text(filtered.format(*ids), canonical[0].format(*operands).format(literal))

    one = text((5, 6, 3, 7), 0)
    assert text((105, 206, 4, 9), 1) == one
    assert text((5, 6, 3, 7), 0, literal="#13") != one
    swapped = optimized.replace("isnotnull(a#{0})", "isnotnull(b#{1}L)")
    assert text((5, 6, 3, 7), 0, filtered=swapped) != one


def test_a_text_with_a_number_sign_in_a_condition_is_told_from_another(spark, table):
    one, other = (fingerprint(spark, table().where(f"cast(id as string) != '#{n}'"), "") for n in (12, 13))
    assert one != other


@pytest.mark.parametrize("column", ["rand()", "uuid()", "current_timestamp()"])
def test_what_is_different_every_time_is_never_taken_over(spark, table, column):
    one, other = (fingerprint(spark, table().selectExpr("id", f"{column} as x"), "") for _ in range(2))
    assert one != other


def test_input_whose_files_nobody_tells_has_no_fingerprint(spark):
    assert fingerprint(spark, spark.createDataFrame([(1,)], "id int"), "") is None
    assert fingerprint(spark, spark.range(3), "") is None
    url = "jdbc:derby:memory:somewhere;create=true"  # a database in Spark's own jars
    spark.range(3).write.jdbc(url, "numbers", "overwrite")
    assert fingerprint(spark, spark.read.jdbc(url, "numbers"), "") is None
