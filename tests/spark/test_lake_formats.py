"""Delta and Iceberg as output and input: one commit a run, and readers who never see a mixture."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from time import time as now
from typing import Any

import pandas as pd
import pytest
from jobs_of import run, settings
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from tables_of import three_tables

from rerank_udf.config import Source, Store, Target
from rerank_udf.errors import InputError, StorePlaceError
from rerank_udf.lake import files, targets
from rerank_udf.lake.catalog import full_parts, provider_of
from rerank_udf.lake.sources import read_source, read_versioned, source_version
from rerank_udf.lake.store import FACTS_SCHEMA, open_store
from rerank_udf.spark.assess import assess
from rerank_udf.spark.pipeline import at_versions

pytestmark = [pytest.mark.lake, pytest.mark.slow]

RANKED = "query_id string, passage_id string, rank int, score double, logit float, source string"
NESTED = "query_id string, passages array<struct<rank: int, passage_id: string, score: double>>"
DAY, NEXT_DAY = "2026-01-30", "2026-01-31"


@dataclass
class Place:
    """A target, and where its files lie."""

    spark: SparkSession
    where: Mapping[str, str]
    folder: Path

    def publish(
        self, rows: DataFrame, run_id: str, queries: DataFrame | None = None, **target: Any
    ) -> dict[str, str]:
        return targets.publish(self.spark, rows, self.target(**target), run_id, {}, queries)

    def target(self, **target: Any) -> Target:
        return Target(**self.where, **target)

    def read(self) -> DataFrame:
        return targets.read(self.spark, self.target())

    def plain(self) -> DataFrame:
        """As somebody reads it who knows nothing of us."""
        if "path" in self.where:
            return self.spark.read.format("delta").load(self.where["path"])
        return self.spark.table(self.where["table"])

    def versions(self) -> list[int]:
        """The commits that the format's own files tell of, oldest first."""
        log = self.folder / "_delta_log"
        if self.where["format"] == "delta":
            return sorted(int(path.stem) for path in log.glob("*.json")) if log.exists() else []
        files = sorted(
            (self.folder / "metadata").glob("v*.json"), key=lambda path: int(path.name[1:].split(".")[0])
        )
        snapshots = json.loads(files[-1].read_text())["snapshots"] if files else []
        return [snapshot["snapshot-id"] for snapshot in snapshots]


@pytest.fixture(params=["delta path", "iceberg table"])
def place(
    request: pytest.FixtureRequest, spark: SparkSession, lake_formats: Callable[[str], None], tmp_path: Path
) -> Iterator[Place]:
    lake_format, kind = request.param.split()
    lake_formats(lake_format)
    if kind == "path":
        folder = tmp_path / "ein Ort%20 ä"
        yield Place(spark, {"path": str(folder), "format": "delta"}, folder)
        return
    name = f"reranked_{uuid.uuid4().hex[:8]}"
    if lake_format == "delta":
        table, folder = (
            name,
            Path(str(spark.conf.get("spark.sql.warehouse.dir")).removeprefix("file:")) / name,
        )
    else:
        table, folder = (
            f"ice.rag.{name}",
            Path(str(spark.conf.get("spark.sql.catalog.ice.warehouse"))) / "rag" / name,
        )
    yield Place(spark, {"table": table, "format": lake_format}, folder)
    spark.sql(f"drop table if exists {table}")


EVERYWHERE = pytest.mark.parametrize("place", ["delta path", "delta table", "iceberg table"], indirect=True)


def ranked(spark: SparkSession, *rows: tuple[str, str], source: str = "a") -> DataFrame:
    """(query, passages in rank order) → rows as the job publishes them."""
    values = [
        (query, passage, rank, 1.0 / rank, float(rank), None if passage == "p9" else source)
        for query, passages in rows
        for rank, passage in enumerate(passages.split(), 1)
    ]
    return spark.createDataFrame(values, RANKED).coalesce(1)


def held(table: DataFrame, *columns: str) -> set[tuple[Any, ...]]:
    """The rows as a set, of which none may stand twice."""
    rows = [
        tuple(row)
        for row in table.select(*(columns or ("query_id", "passage_id", "rank", "source"))).collect()
    ]
    assert len(rows) == len(set(rows))
    return set(rows)


def as_held(*rows: tuple[str, str], source: str = "a") -> set[tuple[Any, ...]]:
    return {
        (query, passage, rank, None if passage == "p9" else source)
        for query, passages in rows
        for rank, passage in enumerate(passages.split(), 1)
    }


# --- overwrite, append ---


@EVERYWHERE
def test_an_overwrite_is_one_commit_and_says_which(spark, place):
    first = place.publish(ranked(spark, ("q1", "p1 p2"), ("q2", "p1")), "run1")
    assert first == {
        **{name: value for name, value in place.where.items() if name != "format"},
        "version": str(place.versions()[-1]),
    }
    assert len(place.versions()) == 1
    begun = place.read()
    second = place.publish(ranked(spark, ("q1", "p2"), ("q3", "p3"), source="b"), "run2")
    assert second["version"] == str(place.versions()[-1])
    assert len(place.versions()) == 2
    assert held(place.read()) == as_held(("q1", "p2"), ("q3", "p3"), source="b")
    assert held(begun) == as_held(("q1", "p1 p2"), ("q2", "p1"))


def test_an_overwrite_replaces_all_even_where_the_session_overwrites_partitions(session_settings, place):
    spark = session_settings
    spark.conf.set("spark.sql.sources.partitionOverwriteMode", "dynamic")
    place.publish(ranked(spark, ("q1", "p1")), "run1", run_date=DAY)
    place.publish(ranked(spark, ("q2", "p1")), "run2", run_date=NEXT_DAY)
    assert held(place.read(), "query_id", "run_date") == {
        ("q1", datetime.date(2026, 1, 30)),
        ("q2", datetime.date(2026, 1, 31)),
    }
    whole = ranked(spark, ("q3", "p1")).withColumn("run_date", F.lit("2026-02-01").cast("date"))
    place.publish(whole, "run3")
    assert held(place.read(), "query_id") == {("q3",)}


@EVERYWHERE
def test_an_append_adds_and_the_same_run_adds_nothing_twice(spark, place):
    for run_id, query in [("run1", "q1"), ("run2", "q2"), ("run2", "q2"), ("run1", "q1"), ("run3", "q3")]:
        done = place.publish(ranked(spark, (query, "p1 p2")), run_id, mode="append")
        assert int(done["version"]) in place.versions()
    assert held(place.read()) == as_held(("q1", "p1 p2"), ("q2", "p1 p2"), ("q3", "p1 p2"))
    assert len(place.versions()) == 3


def test_an_append_to_a_date_leaves_what_it_has(spark, place):
    place.publish(ranked(spark, ("q1", "p1")), "run1", run_date=DAY)
    place.publish(ranked(spark, ("q2", "p1")), "run2", run_date=DAY, mode="append")
    place.publish(ranked(spark, ("q2", "p1")), "run2", run_date=DAY, mode="append")
    assert held(place.read(), "query_id") == {("q1",), ("q2",)}


# --- run dates ---


@EVERYWHERE
def test_a_run_date_replaces_its_own_rows_in_one_commit(spark, place):
    for number, (date, query) in enumerate([(DAY, "q1"), (NEXT_DAY, "q2"), (NEXT_DAY, "q3")]):
        place.publish(ranked(spark, (query, "p1 p2")), f"run{number}", run_date=date)
        assert len(place.versions()) == number + 1
    assert held(place.read(), "query_id", "passage_id", "run_date") == {
        (query, passage, datetime.date.fromisoformat(date))
        for query, date in [("q1", DAY), ("q3", NEXT_DAY)]
        for passage in ("p1", "p2")
    }
    assert held(targets.read(spark, place.target(run_date=DAY)), "query_id", "passage_id") == {
        ("q1", "p1"),
        ("q1", "p2"),
    }
    assert len({path.name for path in place.folder.rglob("run_date=*")}) == 2


def test_a_run_date_without_any_rows_is_emptied(spark, place):
    """A dynamic overwrite would leave yesterday's answer."""
    place.publish(ranked(spark, ("q1", "p1")), "run1", run_date=DAY)
    place.publish(ranked(spark, ("q2", "p1")), "run2", run_date=NEXT_DAY)
    place.publish(ranked(spark), "run3", run_date=NEXT_DAY)
    assert held(place.read(), "query_id") == {("q1",)}
    assert len(place.versions()) == 3


# --- merge ---


@EVERYWHERE
@pytest.mark.parametrize("target", [{}, {"run_date": NEXT_DAY}], ids=str)
def test_a_run_whose_table_another_one_makes_meanwhile_publishes_to_it(spark, place, monkeypatch, target):
    dated = {**target, "run_date": DAY} if target else {}
    place.publish(ranked(spark, ("q1", "p1")), "run1", **dated)
    real, looks = targets._existing_format, []

    def not_yet(*given: Any) -> str | None:
        looks.append(given)
        return None if len(looks) == 1 else real(*given)

    monkeypatch.setattr(targets, "_existing_format", not_yet)
    place.publish(ranked(spark, ("q2", "p2")), "run2", **target)
    assert len(looks) == 2
    assert held(place.plain(), "query_id") == ({("q1",), ("q2",)} if target else {("q2",)})


def test_a_merge_replaces_its_own_queries_rows_and_no_others(spark, place):
    place.publish(ranked(spark, ("q1", "p1 p2 p9"), ("q2", "p1 p2"), ("q3", "p9 p8")), "run1", mode="merge")
    place.publish(ranked(spark, ("q1", "p9 p4"), ("q4", "p1"), source="b"), "run2", mode="merge")
    assert held(place.read()) == as_held(("q2", "p1 p2"), ("q3", "p9 p8")) | as_held(
        ("q1", "p9 p4"), ("q4", "p1"), source="b"
    )
    assert len(place.versions()) == 2
    place.publish(ranked(spark, ("q1", "p9 p4"), ("q4", "p1"), source="b"), "run3", mode="merge")
    assert len(held(place.read())) == 7


def test_a_query_that_the_run_decided_and_left_without_rows_loses_its_old_ones(spark, place):
    place.publish(ranked(spark, ("q1", "p1"), ("q2", "p1"), ("q3", "p1")), "run1")
    decided = spark.createDataFrame([("q1",), ("q2",), ("q2",), (None,), ("q7",)], "query_id string")
    place.publish(ranked(spark, ("q1", "p5")), "run2", decided, mode="merge")
    assert held(place.read(), "query_id", "passage_id") == {("q1", "p5"), ("q3", "p1")}
    nothing = ranked(spark)
    place.publish(nothing, "run3", decided, mode="merge")
    assert held(place.read(), "query_id", "passage_id") == {("q3", "p1")}


def test_a_merge_stays_within_its_run_date(spark, place):
    place.publish(ranked(spark, ("q1", "p1"), ("q2", "p1")), "run1", run_date=DAY)
    place.publish(ranked(spark, ("q1", "p1"), ("q2", "p1")), "run2", run_date=NEXT_DAY)
    place.publish(ranked(spark, ("q1", "p2")), "run3", run_date=NEXT_DAY, mode="merge")
    assert held(place.read(), "query_id", "passage_id", "run_date") == {
        *((query, "p1", datetime.date(2026, 1, 30)) for query in ("q1", "q2")),
        ("q1", "p2", datetime.date(2026, 1, 31)),
        ("q2", "p1", datetime.date(2026, 1, 31)),
    }


def test_a_merge_of_nested_rows_and_integer_ids(spark, place):
    schema = NESTED.replace("query_id string", "query_id bigint, `a``b.c` string")

    def rows(*queries: tuple[int, Sequence[str]]) -> DataFrame:
        values = [(q, None, [(r, p, 1.0 / r) for r, p in enumerate(ps, 1)]) for q, ps in queries]
        return spark.createDataFrame(values, schema)

    place.publish(rows((1, ["a", "b"]), (2, ["c"])), "run1", mode="merge")
    place.publish(rows((1, ["b"]), (3, [])), "run2", mode="merge")
    found = {row["query_id"]: [p["passage_id"] for p in row["passages"]] for row in place.read().collect()}
    assert found == {1: ["b"], 2: ["c"], 3: []}
    assert place.read().count() == 3
    place.publish(rows((9, ["z"])), "run3")
    assert held(place.read(), "query_id") == {(9,)}


def test_merges_of_different_queries_at_once_are_both_in(spark, place):
    """The slower one finds that the table has changed, and merges into what it is now."""
    place.publish(ranked(spark, ("q1", "p1"), ("q2", "p1"), ("q3", "p1")), "run0")
    sources = [ranked(spark, ("q1", "p7 p8"), source="b"), ranked(spark, ("q2", "p5"), source="b")]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda i: place.publish(sources[i], f"run{i + 1}", mode="merge"), range(2)))
    assert held(place.read()) == as_held(("q3", "p1")) | as_held(("q1", "p7 p8"), ("q2", "p5"), source="b")


# --- what does not fit ---


MODES = [
    {},
    {"mode": "append"},
    {"mode": "merge"},
    {"run_date": DAY},
]


@pytest.mark.parametrize(
    ("change", "name", "what"),
    [
        (lambda rows: rows.withColumn("extra", F.lit(1)), "extra", "the table does not have it"),
        (lambda rows: rows.drop("source"), "source", "only the table has it"),
        (lambda rows: rows.withColumn("source", F.lit(1)), "source", "string in the table, int in the rows"),
    ],
    ids=["more", "fewer", "other type"],
)
def test_other_columns_are_told_by_name_and_nothing_is_written(spark, place, change, name, what):
    rows = ranked(spark, ("q1", "p1"))
    place.publish(rows, "run1")
    before = place.versions()
    for mode in MODES[:3]:
        with pytest.raises(
            InputError, match=f"it and this run differ in column '{name}'; use a new table.*{what}"
        ):
            place.publish(change(rows), "run2", **mode)
        with pytest.raises(InputError, match=f"differ in column '{name}'"):
            targets.check(spark, change(rows).schema, place.target(**mode))
        targets.check(spark, rows.schema, place.target(**mode))
    with pytest.raises(InputError, match="differ in column 'run_date'"):
        place.publish(rows, "run2", run_date=DAY)
    assert place.versions() == before


def test_a_dated_table_and_a_run_without_a_date_are_told(spark, place):
    rows = ranked(spark, ("q1", "p1"))
    place.publish(rows, "run1", run_date=DAY)
    with pytest.raises(InputError, match=r"differ in column 'run_date'; .*only the table has it"):
        place.publish(rows, "run2")
    assert len(place.versions()) == 1


@pytest.mark.parametrize("target", MODES, ids=str)
def test_a_run_that_fails_on_the_way_leaves_the_table_as_it_is(spark, place, target):
    dated = {name: value for name, value in target.items() if name == "run_date"}
    place.publish(ranked(spark, ("q1", "p1 p2")), "run1", **dated)
    broken = (
        ranked(spark, ("q1", "p1"), ("q2", "p9"))
        .repartition(2)
        .withColumn("source", F.coalesce("source", F.raise_error(F.lit("boom")).cast("string")))
    )
    before = place.versions()
    with pytest.raises(Exception, match="boom"):
        place.publish(broken, "run2", **target)
    assert place.versions() == before
    assert held(place.read()) == as_held(("q1", "p1 p2"))


def test_merge_needs_a_format_that_can(spark):
    spark.sql("create table plain_target (query_id string, passage_id string) using parquet")
    try:
        for table in ("plain_target", "not_there"):
            target = Target(table=table, mode="merge")
            with pytest.raises(
                InputError, match=f"{table}: mode merge needs a Delta or an Iceberg table, found parquet"
            ):
                targets.publish(spark, ranked(spark), target, "run1", {})
        assert provider_of(spark, "not_there") is None
    finally:
        spark.sql("drop table plain_target")


def test_a_view_is_no_place_for_output(spark):
    spark.sql("create or replace view seen as select 1 as query_id")
    spark.range(1).createOrReplaceTempView("seen_for_now")
    try:
        for name in ("seen", "seen_for_now"):
            with pytest.raises(InputError, match=f"output.reranked.table {name}: is a view"):
                targets.publish(spark, ranked(spark), Target(table=name), "run1", {})
    finally:
        spark.sql("drop view seen")
        spark.catalog.dropTempView("seen_for_now")


@pytest.mark.parametrize("lake_format", ["parquet", "delta", "iceberg"])
def test_a_schema_that_is_not_there_is_told_before_the_work(spark, lake_formats, lake_format):
    if lake_format != "parquet":
        lake_formats(lake_format)
    target = Target(table="nowhere.reranked", format=lake_format)
    schema = "`spark_catalog`.`nowhere`"
    sentence = rf"there is no schema {schema}; make it first \(create schema {schema}\)"
    with pytest.raises(InputError, match=f"output.reranked.table nowhere.reranked: {sentence}"):
        targets.check(spark, ranked(spark).schema, target)
    if lake_format != "parquet":
        with pytest.raises(StorePlaceError, match=f"store.table nowhere.scores: {sentence}"):
            open_store(spark, Store(format=lake_format, table="nowhere.scores"), None)


def test_a_catalog_of_folders_makes_its_schemas_itself(spark, lake_formats):
    lake_formats("iceberg")
    target = Target(table="ice.brand_new.reranked", format="iceberg")
    targets.check(spark, ranked(spark).schema, target)
    targets.publish(spark, ranked(spark, ("q1", "p1")), target, "run1", {})
    assert spark.table("ice.brand_new.reranked").count() == 1


def test_a_folder_of_something_else_is_refused(spark, lake_formats, tmp_path):
    lake_formats("delta")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds 'notes.txt' and is no Delta table"):
        targets.publish(spark, ranked(spark), Target(path=str(tmp_path), format="delta"), "run1", {})
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_date_is_not_replaced_in_an_iceberg_table_whose_files_hold_several(spark, lake_formats):
    lake_formats("iceberg")
    spark.sql(
        f"create table ice.rag.undated ({RANKED}, run_date date) using iceberg partitioned by (query_id)"
    )
    try:
        target = Target(table="ice.rag.undated", run_date=DAY)
        with pytest.raises(InputError, match="is partitioned by query_id; expected run_date"):
            targets.publish(spark, ranked(spark, ("q1", "p1")), target, "run1", {})
        targets.publish(
            spark, ranked(spark, ("q1", "p1")), target.model_copy(update={"mode": "append"}), "run1", {}
        )
        assert spark.table("ice.rag.undated").count() == 1
    finally:
        spark.sql("drop table ice.rag.undated")


def test_an_existing_tables_own_format_decides(spark, lake_formats):
    """`format: parquet` is the default, and only says what a new table becomes."""
    for lake_format in ("delta", "iceberg"):
        lake_formats(lake_format)
    small = (
        "query_id string, passage_id string, rank int, score double, logit float, source string, n smallint"
    )
    for name, lake_format in (("own_delta", "delta"), ("ice.rag.own_iceberg", "iceberg")):
        columns = (
            small.replace("smallint", "int") if lake_format == "iceberg" else small
        )  # it has no smaller one
        spark.sql(f"create table {name} ({columns}) using {lake_format}")
        try:
            rows = ranked(spark, ("q1", "p1"), ("q2", "p1")).withColumn("n", F.lit(7).cast("smallint"))
            assert targets.publish(spark, rows, Target(table=name), "run1", {})["version"]
            targets.publish(
                spark, rows.where("query_id = 'q1'"), Target(table=name, mode="merge"), "run2", {}
            )
            assert provider_of(spark, name) == lake_format
            assert held(spark.table(name), "query_id", "n") == {("q1", 7), ("q2", 7)}
        finally:
            spark.sql(f"drop table {name}")


@pytest.mark.parametrize("left_over", [(), ("part-00000-x.snappy.parquet",)], ids=["log", "log and data"])
def test_what_a_failed_creation_left_is_in_nobodys_way(spark, tmp_path, lake_formats, left_over):
    """A disk that was full, or a kill, between Delta's making of the log's folder and its first version."""
    lake_formats("delta")
    out = tmp_path / "out"
    (out / "_delta_log").mkdir(parents=True)
    for name in left_over:
        (out / name).write_bytes(b"half a file")
    target = Target(path=str(out), format="delta")
    targets.publish(spark, ranked(spark, ("q1", "p1")), target, "run1", {})
    assert held(spark.read.format("delta").load(str(out)), "query_id") == {("q1",)}
    assert [path.name for path in (out / "_delta_log").glob("*.json")] == [f"{0:020}.json"]
    assert all((out / name).exists() for name in left_over)


@pytest.mark.parametrize("column", ["my col", "nested struct<`a,b`: int>"])
def test_a_name_that_a_new_delta_table_refuses_is_told_before_the_work(spark, tmp_path, lake_formats, column):
    lake_formats("delta")
    ddl = f"query_id string, `{column}` int" if column == "my col" else f"query_id string, {column}"
    rows = spark.createDataFrame([], ddl)
    target = Target(path=str(tmp_path / "out"), format="delta")
    with pytest.raises(
        InputError, match=r"a new Delta table takes no column '(my col|a,b)' .*rename it in the"
    ):
        targets.check(spark, rows.schema, target)
    with pytest.raises(Exception, match=r"(?i)invalid"):
        rows.write.format("delta").save(str(tmp_path / "by delta itself"))
    targets.check(spark, rows.schema, Target(path=str(tmp_path / "out"), format="parquet"))


def test_an_object_stores_half_made_delta_table_is_not_waited_for_for_ever(
    spark, tmp_path, lake_formats, monkeypatch
):
    """There a folder is always as old as the question."""
    lake_formats("delta")
    (tmp_path / "store/facts/_delta_log").mkdir(parents=True)
    monkeypatch.setattr("rerank_udf.lake.delta._CREATING_SECONDS", 1.0)
    real = files.entries

    def ageless(session: SparkSession, path: str) -> list[files.Entry]:
        return [replace(entry, modified=now()) for entry in real(session, path)]

    monkeypatch.setattr(files, "entries", ageless)
    store = open_store(spark, Store(format="delta"), str(tmp_path / "store"))
    fact = spark.createDataFrame([(b"k" * 16, 0.5, 3, False)], FACTS_SCHEMA)
    assert store.append(fact, "a" * 32, "1" * 32)
    assert store.facts("a" * 32).count() == 1


def test_a_table_of_sparks_own_stays_what_it_is(spark):
    spark.sql(f"create table own_orc ({RANKED}) using orc")
    try:
        targets.publish(spark, ranked(spark, ("q1", "p1")), Target(table="own_orc"), "run1", {})
        targets.publish(
            spark, ranked(spark, ("q2", "p1")), Target(table="own_orc", mode="append"), "run2", {}
        )
        assert provider_of(spark, "own_orc") == "orc"
        assert held(spark.table("own_orc"), "query_id") == {("q1",), ("q2",)}
    finally:
        spark.sql("drop table own_orc")


# --- readers ---


def test_a_reader_sees_whole_versions_only(spark, place):
    """One polls while the other overwrites, merges and appends: each version has its own number of rows."""
    sizes = {0: 40, 1: 70, 2: 110}
    rows = {
        number: spark.range(0, size, 1, 3).select(
            F.concat(F.lit("q"), F.col("id") % 5).alias("query_id"),
            F.concat(F.lit("p"), F.col("id")).alias("passage_id"),
            F.lit(number).alias("source"),
        )
        for number, size in sizes.items()
    }
    place.publish(rows[0], "run0")
    seen: list[set[tuple[int, int]]] = []
    done = threading.Event()

    def poll() -> None:
        while not done.is_set():
            found = place.plain().groupBy("source").count().collect()
            seen.append({(row["source"], row["count"]) for row in found})

    with ThreadPoolExecutor(1) as pool:
        polling = pool.submit(poll)
        try:
            for step in range(4):
                number = (step + 1) % 3
                mode = ("overwrite", "merge")[step % 2]
                place.publish(rows[number], f"run{step + 1}", mode=mode)
        finally:
            done.set()
        polling.result()
    assert len(seen) >= 2
    assert [found for found in seen if found not in [{(n, size)} for n, size in sizes.items()]] == []


# --- inputs ---


@EVERYWHERE
def test_a_table_is_read_at_the_version_that_is_reported(spark, place):
    place.publish(ranked(spark, ("q1", "p1 p2"), ("q2", "p1")), "run1")
    by_path = Source(path=str(place.folder), format=place.where["format"], where="query_id = 'q1'")
    sources = [by_path]
    if "table" in place.where:
        sources.append(Source(table=place.where["table"], where="query_id = 'q1'"))
    for source in sources:
        frame, version = read_versioned(spark, source, "input.candidates")
        assert version == source_version(spark, source) == str(place.versions()[-1])
        place.publish(ranked(spark, ("q1", "p3")), uuid.uuid4().hex)
        assert held(frame) == as_held(("q1", "p1 p2"))
        assert held(read_source(spark, source, "input.candidates")) == as_held(("q1", "p3"))
        assert source_version(spark, source) == str(place.versions()[-1]) != version
        place.publish(ranked(spark, ("q1", "p1 p2"), ("q2", "p1")), uuid.uuid4().hex)


def test_an_evaluation_after_a_run_reads_what_the_run_read(spark, lake_formats, hash_model, tmp_path):
    lake_formats("delta")
    candidates, queries, passages = three_tables(spark)
    qrels = spark.createDataFrame(
        [("q1", "p3", 1), ("q2", "p1", 1)], "query_id string, passage_id string, relevance int"
    )
    tables = {"candidates": candidates, "queries": queries, "passages": passages, "qrels": qrels}
    places = {name: {"path": str(tmp_path / name), "format": "delta"} for name in tables}
    for name, table in tables.items():
        table.write.format("delta").save(places[name]["path"])
    spark.sql(f"create table judged_then using delta as select * from delta.`{places['qrels']['path']}`")
    try:
        judged = {"qrels": {"table": "judged_then"}, "measures": ["nDCG@10"]}
        inputs = {name: places[name] for name in ("candidates", "queries", "passages")}
        config = settings(tmp_path, hash_model, input=inputs, evaluation=judged)
        report = run(spark, config)
        assert report.input_versions == {
            **{f"input.{name}": "0" for name in inputs},
            "evaluation.qrels": "0",
        }
        asked = at_versions(config, report.input_versions)
        before = assess(spark, asked).summary
        backwards = candidates.withColumn("score", -F.col("score"))
        backwards.write.format("delta").mode("overwrite").save(places["candidates"]["path"])
        spark.sql("update judged_then set passage_id = 'p2'")
        pd.testing.assert_frame_equal(assess(spark, asked).summary, before)
        assert not assess(spark, config).summary["mean"].equals(before["mean"])
    finally:
        spark.sql("drop table judged_then")


def test_a_merged_run_is_measured_by_its_own_queries(spark, lake_formats, hash_model, tmp_path):
    lake_formats("delta")
    for name, table in zip(("candidates", "queries", "passages"), three_tables(spark), strict=True):
        table.write.parquet(str(tmp_path / name))
    grades = [("q1", "p1", 1), ("q2", "p2", 1), ("q3", "p3", 1), ("nobody ranked", "p1", 1)]
    spark.createDataFrame(grades, "query_id string, passage_id string, relevance int").write.parquet(
        str(tmp_path / "qrels")
    )

    def job(where: str) -> Any:
        candidates = {"path": str(tmp_path / "candidates"), "where": where}
        return settings(
            tmp_path,
            hash_model,
            input={
                **{n: {"path": str(tmp_path / n)} for n in ("queries", "passages")},
                "candidates": candidates,
            },
            output={
                "reranked": {"path": str(tmp_path / "merged"), "format": "delta", "mode": "merge"},
                "rejects": {"path": str(tmp_path / "rejects")},
            },
            evaluation={"qrels": {"path": str(tmp_path / "qrels")}, "measures": ["nDCG@10"]},
        )

    run(spark, job("query_id < 'q3'"))
    run(spark, job("query_id = 'q3'"))
    assert (
        spark.read.format("delta").load(str(tmp_path / "merged")).select("query_id").distinct().count() == 3
    )
    found = assess(spark, job("query_id = 'q3'"))
    assert found.counts["queries"] == 2
    asked = found.per_query.query("documents == 'all'")
    assert set(asked["query_id"]) == {"q3", "nobody ranked"}
    by_system = asked.query("measure == 'nDCG@10' and query_id == 'q3'").set_index("system")["value"]
    assert by_system["first"] > 0 < by_system[hash_model.name]


def test_only_tables_with_versions_have_one(spark, tmp_path):
    spark.range(1).write.parquet(str(tmp_path / "plain"))
    spark.range(1).createOrReplaceTempView("versionless")
    spark.sql("create table plain_source using parquet as select 1 as id")
    try:
        for source in (
            Source(path=str(tmp_path / "plain")),
            Source(table="versionless"),
            Source(table="plain_source"),
            Source(sql="select 1 as id"),
        ):
            assert source_version(spark, source) is None
            assert read_versioned(spark, source, "x")[0].count() == 1
    finally:
        spark.sql("drop table plain_source")


def test_a_version_that_the_user_asks_for_is_read(spark, place):
    if "path" not in place.where:
        pytest.skip("options go with a path")
    for number in range(2):
        place.publish(ranked(spark, (f"q{number}", "p1")), f"run{number}")
    source = Source(path=str(place.folder), format="delta", options={"versionAsOf": "0"})
    frame, version = read_versioned(spark, source, "x")
    assert (held(frame, "query_id"), version) == ({("q0",)}, None)


def test_an_iceberg_table_without_a_snapshot_is_empty_and_has_no_version(spark, lake_formats):
    lake_formats("iceberg")
    spark.sql("create table ice.rag.fresh (id bigint) using iceberg")
    try:
        frame, version = read_versioned(spark, Source(table="ice.rag.fresh"), "x")
        assert (frame.count(), version) == (0, None)
    finally:
        spark.sql("drop table ice.rag.fresh")


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ({"path": "HERE", "format": "delta"}, "HERE"),
        ({"path": "HERE", "format": "iceberg"}, "cannot be found"),
        ({"table": "ice.rag.nothing"}, "no such table or view"),
    ],
    ids=str,
)
def test_what_is_no_such_table_is_one_sentence(spark, lake_formats, tmp_path, source, sentence):
    for lake_format in ("delta", "iceberg"):
        lake_formats(lake_format)
    given = Source(**{name: value.replace("HERE", str(tmp_path)) for name, value in source.items()})
    with pytest.raises(InputError) as caught:
        read_source(spark, given, "input.candidates")
    assert str(caught.value).startswith("input.candidates (")
    assert sentence.replace("HERE", str(tmp_path)) in str(caught.value)
    assert "\n" not in str(caught.value)


# --- names ---


def test_a_name_is_completed_as_spark_does(session_settings, lake_formats):
    lake_formats("iceberg")
    spark = session_settings
    assert full_parts(spark, "t") == ["spark_catalog", "default", "t"]
    assert full_parts(spark, "rag.t") == ["spark_catalog", "rag", "t"]
    assert full_parts(spark, "ice.t") == ["ice", "t"]
    assert full_parts(spark, "ice.a.b.t") == ["ice", "a", "b", "t"]
    assert full_parts(spark, "spark_catalog.rag.t") == ["spark_catalog", "rag", "t"]
    assert full_parts(spark, "unity.rag.t") == ["unity", "rag", "t"]
    spark.sql("create namespace if not exists ice.rag")
    spark.sql("use ice.rag")
    try:
        assert full_parts(spark, "t") == ["ice", "rag", "t"]
        assert full_parts(spark, "a.b.t") == ["ice", "a", "b", "t"]
    finally:
        spark.sql("use spark_catalog.default")


# --- a Spark without them ---

WITHOUT = """
import os, sys
os.environ["PYSPARK_PYTHON"] = sys.executable
from pyspark.sql import SparkSession
from rerank_udf.config import Source, Store, Target
from rerank_udf.lake.sources import read_source
from rerank_udf.lake.store import open_store
from rerank_udf.lake import targets
spark = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false").getOrCreate()
rows = spark.createDataFrame([("q", "p")], "query_id string, passage_id string")
here = sys.argv[1]
facts = rows.selectExpr("cast('x' as binary) as pair_key", "1f as logit", "1 as tokens", "true as truncated")
append = lambda store, path: open_store(spark, store, path).append(facts, "a", "b")
tries = {
    "source delta": lambda: read_source(spark, Source(path=here, format="delta"), "input.candidates"),
    "source iceberg": lambda: read_source(spark, Source(path=here, format="iceberg"), "input.candidates"),
    "target path": lambda: targets.publish(spark, rows, Target(path=here + "/d", format="delta"), "run", {}),
    "target table": lambda: targets.publish(spark, rows, Target(table="t", format="iceberg"), "run", {}),
    "store delta": lambda: append(Store(path=here + "/s", format="delta"), here + "/s"),
    "store iceberg": lambda: append(Store(table="s", format="iceberg"), None),
}
for name, call in tries.items():
    try:
        call()
        print("RESULT", name, "|worked")
    except Exception as error:
        print("RESULT", name, "|", type(error).__name__, str(error).replace("\\n", " NEWLINE ")[:400])
"""


def test_a_spark_without_their_packages_says_so(tmp_path):
    command = [sys.executable, "-c", WITHOUT, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, cwd=tmp_path)
    said = dict(
        line.removeprefix("RESULT ").split(" |", 1) for line in done.stdout.splitlines() if "RESULT" in line
    )
    assert len(said) == 6, done.stderr[-3000:]
    assert not [sentence for sentence in said.values() if "NEWLINE" in sentence]
    for name in ("source delta", "source iceberg"):
        lake_format = name.split()[1]
        assert f"this Spark cannot read {lake_format}; add its package (spark.jars.packages)" in said[name]
    assert "InputError" in said["target path"]
    assert "this Spark cannot write delta; add its package" in said["target path"]
    assert "InputError" in said["target table"]
    for name in ("store delta", "store iceberg"):
        assert "StoreError" in said[name]
        assert "add its package (spark.jars.packages)" in said[name]
