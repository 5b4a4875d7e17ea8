"""The score store as a Delta or an Iceberg table: the same promises, checked in the formats' own files."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from rerank_udf.config import Store
from rerank_udf.errors import StoreError, StorePlaceError
from rerank_udf.lake.store import FACTS_SCHEMA, ScoreStore, open_store

MODEL, OTHER, THIRD = "a" * 32, "b" * 32, "c" * 32


@dataclass
class Place:
    """Where a store is, and where its data files lie on disk."""

    settings: Store
    path: str | None
    folder: Path
    spark: SparkSession

    def open(self) -> ScoreStore:
        return open_store(self.spark, self.settings, self.path)

    def parquet(self, model_key: str = "*") -> list[Path]:
        """Every data file on disk, needed or not."""
        return sorted(self.folder.rglob(f"model_key={model_key}/*.parquet"))

    def commits(self) -> list[dict[str, Any]]:
        """Each commit: operation, id of its append, files added and removed; read from the format's own files."""
        if self.settings.format == "delta":
            return [_delta_commit(path) for path in sorted((self.folder / "_delta_log").glob("*.json"))]
        return _iceberg_commits(self.folder / "metadata")

    def appended(self) -> list[str]:
        return [commit["id"] for commit in self.commits() if commit["id"]]

    def sql_name(self) -> str:
        return str(self.settings.table) if self.settings.table else f"delta.`{self.folder}`"


pytestmark = [pytest.mark.lake, pytest.mark.slow]


def _delta_commit(path: Path) -> dict[str, Any]:
    actions = [json.loads(line) for line in path.read_text().splitlines()]
    ids = [action["txn"]["appId"].removeprefix("rerank_udf/") for action in actions if "txn" in action]
    info = next(action["commitInfo"] for action in actions if "commitInfo" in action)
    return {
        "operation": info["operation"],
        "id": ids[0] if ids else "",
        "added": sum("add" in action for action in actions),
        "removed": sum("remove" in action for action in actions),
    }


def _iceberg_commits(folder: Path) -> list[dict[str, Any]]:
    newest = max(folder.glob("v*.metadata.json"), key=lambda path: int(path.name[1:].split(".")[0]))
    return [
        {
            "operation": snapshot["summary"]["operation"],
            "id": snapshot["summary"].get("rerank_udf.append-id", ""),
            "added": int(snapshot["summary"].get("added-data-files", 0)),
            "removed": int(snapshot["summary"].get("deleted-data-files", 0)),
        }
        for snapshot in json.loads(newest.read_text()).get("snapshots", [])
    ]


@pytest.fixture(params=["delta path", "iceberg table"])
def place(
    request: pytest.FixtureRequest, spark: SparkSession, lake_formats: Callable[[str], None], tmp_path: Path
) -> Iterator[Place]:
    lake_format, kind = request.param.split()
    lake_formats(lake_format)
    name = f"facts_{uuid.uuid4().hex[:8]}"
    if kind == "path":
        root = tmp_path / "ein Ort%20 ä"
        yield Place(Store(path=str(root), format="delta"), str(root), root / "facts", spark)
        return
    if lake_format == "delta":
        table, folder = (
            f"`{name}`",
            Path(str(spark.conf.get("spark.sql.warehouse.dir")).removeprefix("file:")) / name,
        )
    else:
        table = f"ice.`a b`.deep.`{name} x`"
        folder = Path(str(spark.conf.get("spark.sql.catalog.ice.warehouse"))) / "a b" / "deep" / f"{name} x"
    yield Place(Store(table=table, format=lake_format), None, folder, spark)
    spark.sql(f"drop table if exists {table}")


EVERYWHERE = pytest.mark.parametrize("place", ["delta path", "delta table", "iceberg table"], indirect=True)


def key(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()[:16]


def facts(spark: SparkSession, numbers: Iterable[int], shift: float = 0.0, parts: int = 2) -> DataFrame:
    rows = [(key(n), n / 8 + shift, n, n % 2 == 0) for n in numbers]
    return spark.createDataFrame(rows, FACTS_SCHEMA).repartition(parts)


def rows_of(frame: DataFrame | None) -> list[tuple[bytes, float, int, bool]]:
    assert frame is None or frame.schema == FACTS_SCHEMA
    return sorted((bytes(r[0]), r[1], r[2], r[3]) for r in frame.collect()) if frame is not None else []


def expected(numbers: Iterable[int], shift: float = 0.0) -> list[tuple[bytes, float, int, bool]]:
    return sorted((key(n), n / 8 + shift, n, n % 2 == 0) for n in numbers)


# --- append, facts ---


def test_nothing_is_made_before_the_first_append(place):
    store = place.open()
    assert store.facts(MODEL) is None
    assert (store.stats(), store.verify(), store.compact(False)) == ([], [], [])
    assert store.vacuum(frozenset(), False) == []
    assert not place.folder.exists()
    assert store.place == (place.path or place.settings.table)


@EVERYWHERE
def test_what_is_appended_is_there_under_its_model_key_alone(spark, place):
    store = place.open()
    assert store.append(facts(spark, range(10)), MODEL, "1" * 32)
    assert store.append(facts(spark, range(10, 15)), MODEL, "2" * 32)
    assert store.append(facts(spark, range(3), shift=1.0), OTHER, "3" * 32)
    assert rows_of(store.facts(MODEL)) == expected(range(15))
    assert rows_of(place.open().facts(OTHER)) == expected(range(3), shift=1.0)
    assert store.facts(THIRD) is None
    assert [(c["id"][:1], c["removed"]) for c in place.commits() if c["id"]] == [("1", 0), ("2", 0), ("3", 0)]


def test_an_append_that_is_in_already_is_skipped(spark, place):
    store = place.open()
    assert store.append(facts(spark, range(5)), MODEL, "1" * 32)
    assert store.append(facts(spark, range(5, 7)), MODEL, "2" * 32)
    assert not store.append(facts(spark, range(50)), MODEL, "1" * 32)
    assert not place.open().append(facts(spark, range(50)), MODEL, "2" * 32)
    assert rows_of(store.facts(MODEL)) == expected(range(7))
    assert place.appended() == ["1" * 32, "2" * 32]


def test_ids_come_in_whatever_their_order(spark, place):
    """Left-overs of a rerun come late: with a number a wave under one id, Delta would drop them without a word."""
    store = place.open()
    for number in (9, 3, 7, 1):
        assert store.append(facts(spark, [number]), MODEL, str(number) * 32)
    assert rows_of(store.facts(MODEL)) == expected([1, 3, 7, 9])


def test_no_facts_are_nothing_added(spark, place):
    store = place.open()
    assert not store.append(facts(spark, []), MODEL, "1" * 32)
    assert store.facts(MODEL) is None
    assert store.stats() == []


def test_facts_are_as_of_their_asking(spark, place):
    store = place.open()
    store.append(facts(spark, range(3)), MODEL, "1" * 32)
    before = store.facts(MODEL)
    store.append(facts(spark, range(3, 9)), MODEL, "2" * 32)
    assert rows_of(before) == expected(range(3))
    store.vacuum(frozenset([OTHER]), dry_run=False)
    assert rows_of(before) == expected(range(3))  # forgotten, and still there for who has begun
    assert store.facts(MODEL) is None


def plans_by_execution(spark):
    found = spark._jsparkSession.sharedState().statusStore().executionsList()
    executions = [found.apply(i) for i in range(found.size())]
    return {one.executionId(): one.physicalPlanDescription() for one in executions}


def test_an_append_adds_no_exchange_whatever_session_and_table_say(session_settings, place):
    spark, store = session_settings, place.open()
    store.append(facts(spark, range(3)), MODEL, "1" * 32)
    if place.settings.format == "delta":
        spark.conf.set("spark.databricks.delta.optimizeWrite.enabled", "true")
    else:
        spark.sql(
            f"alter table {place.settings.table} set tblproperties ('write.distribution-mode' = 'hash')"
        )
    before = plans_by_execution(spark).keys()  # the list keeps the last thousand only
    numbers = spark.range(0, 700, 1, 7).select(
        F.unhex(F.substring(F.sha2(F.col("id").cast("string"), 256), 1, 32)).alias("pair_key"),
        (F.col("id") / 8).cast("float").alias("logit"),
        F.col("id").cast("int").alias("tokens"),
        (F.col("id") % 2 == 0).alias("truncated"),
    )
    assert store.append(numbers, OTHER, "2" * 32)
    since = {one: plan for one, plan in plans_by_execution(spark).items() if one not in before}
    writes = [plan for plan in since.values() if "Range (0, 700" in plan]
    assert writes
    assert not any("Exchange" in plan or "Sort" in plan for plan in writes)
    assert place.commits()[-1]["added"] == 7  # a file a task
    assert rows_of(store.facts(OTHER)) == expected(range(700))


@EVERYWHERE
def test_two_appends_at_once_are_both_in(spark, place):
    """The very first ones: both find no table."""
    stores = [place.open(), place.open()]
    frames = [facts(spark, range(20)), facts(spark, range(20, 40))]
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda i: stores[i].append(frames[i], MODEL, str(i) * 32), range(2)))
    assert done == [True, True]
    assert rows_of(stores[0].facts(MODEL)) == expected(range(40))


def test_one_append_twice_at_once_loses_nothing(spark, place):
    """Delta keeps the second out. In Iceberg both may come in, which is twice the same fact."""
    store = place.open()
    store.append(facts(spark, range(100, 103)), MODEL, "0" * 32)
    frame = facts(spark, range(20))
    with ThreadPoolExecutor(3) as pool:
        done = list(pool.map(lambda _: place.open().append(frame, MODEL, "1" * 32), range(3)))
    found = rows_of(store.facts(MODEL))
    assert sorted(set(found)) == expected([*range(20), *range(100, 103)])
    assert len(found) == 3 + 20 * sum(done)
    assert place.appended().count("1" * 32) == sum(done) >= 1
    if place.settings.format == "delta":
        assert sum(done) == 1


def test_an_append_that_fails_is_a_sentence_and_leaves_nothing(spark, place):
    store = place.open()
    store.append(facts(spark, range(3)), MODEL, "1" * 32)
    broken = facts(spark, range(9)).withColumn(
        "logit",
        F.when(F.col("tokens") < 8, F.col("logit")).otherwise(F.raise_error(F.lit("boom")).cast("float")),
    )
    with pytest.raises(
        StoreError, match=r"the score store at .* cannot be written: .*boom.*run the same command again"
    ):
        store.append(broken, MODEL, "2" * 32)
    assert rows_of(store.facts(MODEL)) == expected(range(3))
    assert store.append(facts(spark, range(3, 9)), MODEL, "2" * 32)
    assert rows_of(store.facts(MODEL)) == expected(range(9))


# --- stats, verify ---


def test_stats_are_what_lies_on_disk(spark, place):
    store = place.open()
    for number in range(3):
        store.append(facts(spark, range(10 * number, 10 * number + 10)), MODEL, str(number) * 32)
    store.append(facts(spark, range(4), parts=1), OTHER, "3" * 32)
    found = store.stats()
    assert [(one.model_key, one.facts, one.appends) for one in found] == [(MODEL, 30, None), (OTHER, 4, None)]
    for one in found:
        on_disk = place.parquet(one.model_key)
        assert (one.files, one.bytes) == (len(on_disk), sum(path.stat().st_size for path in on_disk))


def test_a_sound_store_has_no_damage(spark, place):
    store = place.open()
    store.append(facts(spark, range(500)), MODEL, "1" * 32)
    store.append(facts(spark, range(500), shift=1.0), OTHER, "2" * 32)
    assert store.verify() == []


def without_local_checksum(path: Path) -> None:
    """Hadoop keeps one beside each local file; on an object store there is none."""
    path.with_name(f".{path.name}.crc").unlink(missing_ok=True)


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[100] ^= 0x55
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "a byte": flip_a_byte,
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-40]),
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "no Parquet": lambda path: path.write_text("hello"),
}


@EVERYWHERE
def test_every_damaged_file_is_named_and_no_other(spark, place):
    store = place.open()
    store.append(facts(spark, range(2000), parts=4), MODEL, "1" * 32)
    store.append(facts(spark, range(2000), shift=1.0, parts=4), OTHER, "2" * 32)
    hit = dict(zip([*place.parquet(MODEL)[:3], *place.parquet(OTHER)[:2]], DAMAGES, strict=True))
    for path, damage in hit.items():
        without_local_checksum(path)
        DAMAGES[damage](path)
    found = place.open().verify()
    assert {(Path(one.file.removeprefix("file:")), one.model_key) for one in found} == {
        (path, path.parent.name.removeprefix("model_key=")) for path in hit
    }
    problems = {hit[Path(one.file.removeprefix("file:"))]: one.problem for one in found}
    assert "checksum" in problems["a byte"]
    assert (problems["missing"], problems["empty"]) == ("missing", "0 bytes")
    assert all(problem and "\n" not in problem for problem in problems.values())


# --- compact, vacuum ---


def test_compact_makes_one_file_of_many_and_changes_no_fact(spark, place):
    store = place.open()
    for number in range(4):
        store.append(facts(spark, range(10 * number, 10 * number + 10)), MODEL, str(number) * 32)
    store.append(facts(spark, range(4), parts=1), OTHER, "9" * 32)
    begun = store.facts(MODEL)
    commits, size = len(place.commits()), sum(path.stat().st_size for path in place.parquet(MODEL))
    planned = store.compact(dry_run=True)
    assert [(c.model_key, c.files_before, c.files_after, c.bytes) for c in planned] == [(MODEL, 8, 1, size)]
    assert len(place.commits()) == commits
    assert store.compact(dry_run=False) == planned
    assert [(one.model_key, one.facts, one.files) for one in store.stats()] == [(MODEL, 40, 1), (OTHER, 4, 1)]
    assert rows_of(store.facts(MODEL)) == rows_of(begun) == expected(range(40))
    assert store.verify() == []
    assert store.compact(dry_run=False) == []
    assert not store.append(facts(spark, range(50)), MODEL, "1" * 32)  # its id is still known


@EVERYWHERE
def test_vacuum_forgets_what_is_not_kept_and_nothing_else(spark, place):
    store = place.open()
    store.append(facts(spark, range(10)), MODEL, "1" * 32)
    store.append(facts(spark, range(5)), OTHER, "2" * 32)
    store.append(facts(spark, range(7)), THIRD, "3" * 32)
    size = sum(path.stat().st_size for path in place.parquet(OTHER))
    planned = store.vacuum(frozenset([MODEL, THIRD, "d" * 32]), dry_run=True)
    assert [(c.model_key, c.what, c.files_before, c.files_after, c.bytes) for c in planned] == [
        (OTHER, "forgotten", 2, 0, size)
    ]
    assert [one.model_key for one in store.stats()] == [MODEL, OTHER, THIRD]
    assert store.vacuum(frozenset([MODEL, THIRD]), dry_run=False) == planned
    assert [(one.model_key, one.facts) for one in store.stats()] == [(MODEL, 10), (THIRD, 7)]
    assert store.facts(OTHER) is None
    assert rows_of(store.facts(MODEL)) == expected(range(10))
    assert store.verify() == []
    assert store.append(facts(spark, range(5)), OTHER, "4" * 32)  # scored again


def test_vacuum_deletes_what_nobody_needs_after_a_while(session_settings, place):
    """A stray file of a writer that died a week ago, and files of versions that are old enough by the table's word."""
    spark, store = session_settings, place.open()
    store.append(facts(spark, range(10)), MODEL, "1" * 32)
    store.append(facts(spark, range(10, 20)), MODEL, "2" * 32)
    old = place.parquet(MODEL)
    store.compact(dry_run=False)
    stray = old[0].with_name("part-stray.parquet")
    stray.write_bytes(b"x" * 99)
    fresh = old[0].with_name("part-fresh.parquet")
    fresh.write_bytes(b"x")  # of a writer at work: however slow this machine is, it is younger than a second
    soon = time.time() + 3600
    os.utime(fresh, (soon, soon))
    long_ago = time.time() - 8 * 24 * 3600
    os.utime(stray, (long_ago, long_ago))
    if place.settings.format == "delta":
        spark.conf.set("spark.databricks.delta.retentionDurationCheck.enabled", "false")
        seconds = "'delta.deletedFileRetentionDuration' = 'interval 1 seconds'"
        spark.sql(f"alter table {place.sql_name()} set tblproperties ({seconds})")
        time.sleep(1.5)
    else:
        spark.sql(
            f"alter table {place.sql_name()} set tblproperties ('history.expire.max-snapshot-age-ms' = '1')"
        )
    planned = store.vacuum(frozenset([MODEL]), dry_run=True)
    assert all(path.exists() for path in [*old, stray, fresh])
    assert sum(change.files_before for change in planned) >= 1
    done = store.vacuum(frozenset([MODEL]), dry_run=False)
    assert not any(path.exists() for path in [*old, stray])
    assert fresh.exists()
    assert sum(change.files_before for change in done) == len(old) + 1
    assert rows_of(store.facts(MODEL)) == expected(range(20))
    assert store.verify() == []


def test_a_model_key_that_is_none_stays_out_of_sql(spark, place):
    store = place.open()
    store.append(facts(spark, range(3)), MODEL, "1" * 32)
    store.append(facts(spark, range(3)), "x') or ('1' = '1", "2" * 32)
    with pytest.raises(StoreError, match="which is none; nothing has been deleted"):
        store.vacuum(frozenset([MODEL]), dry_run=False)
    assert len(rows_of(store.facts(MODEL))) == 3


# --- what else is there ---


def table_of(
    spark: SparkSession, place: Place, columns: str, partition: str = "", provider: str = ""
) -> None:
    spark.sql(
        f"create table {place.sql_name()} ({columns}) using {provider or place.settings.format} "
        + (f"partitioned by ({partition})" if partition else "")
    )


COLUMNS = "model_key string, pair_key binary, logit float, tokens int, truncated boolean"


@pytest.mark.parametrize(
    ("columns", "partition", "sentence"),
    [
        (
            f"{COLUMNS}, note string",
            "model_key",
            "is a table but no score store: column 'note', only the table has it",
        ),
        (
            COLUMNS.replace("float", "double"),
            "model_key",
            "column 'logit', double in the table, float in the rows",
        ),
        (COLUMNS, "tokens", "is partitioned by tokens; expected model_key"),
        (COLUMNS, "", "is partitioned by nothing; expected model_key"),
    ],
    ids=["other columns", "other types", "other partitions", "no partitions"],
)
def test_another_table_is_refused_and_left_alone(spark, place, columns, partition, sentence):
    table_of(spark, place, columns, partition)
    before = len(place.commits())
    with pytest.raises(StorePlaceError, match=re.escape(sentence)) as caught:
        place.open()
    assert str(caught.value).startswith(str(place.path or place.settings.table))
    assert len(place.commits()) == before


def test_a_store_that_somebody_made_beforehand_is_used(spark, place):
    """By hand, with more properties and in a folder of one's choice."""
    table_of(spark, place, COLUMNS, "model_key")
    store = place.open()
    assert store.append(facts(spark, range(3)), MODEL, "1" * 32)
    assert rows_of(place.open().facts(MODEL)) == expected(range(3))


def test_column_mapping_is_refused(spark, lake_formats):
    lake_formats("delta")
    spark.sql(
        f"create table mapped ({COLUMNS}) using delta partitioned by (model_key) "
        "tblproperties ('delta.columnMapping.mode' = 'name')"
    )
    try:
        with pytest.raises(StorePlaceError, match=r"mapped has delta\.columnMapping\.mode on"):
            open_store(spark, Store(table="mapped", format="delta"), None)
    finally:
        spark.sql("drop table mapped")


def test_a_table_of_another_format_is_told(spark, lake_formats):
    for lake_format in ("delta", "iceberg"):
        lake_formats(lake_format)
    spark.sql(f"create table plain_facts ({COLUMNS}) using parquet partitioned by (model_key)")
    spark.sql(f"create table ice.t.facts ({COLUMNS}) using iceberg partitioned by (model_key)")
    try:
        for table, lake_format, found in [
            ("plain_facts", "delta", "parquet"),
            ("ice.t.facts", "delta", "iceberg"),
        ]:
            with pytest.raises(
                StorePlaceError, match=f"{table} is {found}, and store.format is {lake_format}"
            ):
                open_store(spark, Store(table=table, format=lake_format), None)
        with pytest.raises(StorePlaceError, match=r"plain_facts is parquet, and store.format is iceberg"):
            open_store(spark, Store(table="plain_facts", format="iceberg"), None)
    finally:
        spark.sql("drop table plain_facts")
        spark.sql("drop table ice.t.facts")


@pytest.mark.parametrize(
    "name", ["_rerank_udf_store.json", "notes.txt", "facts/part-0.parquet", "part-0.parquet"]
)
def test_a_folder_with_something_else_in_it_is_refused(spark, lake_formats, tmp_path, name):
    lake_formats("delta")
    file = tmp_path / "store" / name
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    with pytest.raises(StorePlaceError, match="give a folder that is empty or does not exist yet"):
        open_store(spark, Store(path=str(tmp_path / "store"), format="delta"), str(tmp_path / "store"))
    assert file.read_text() == "mine"


def test_the_work_folder_may_lie_inside(spark, lake_formats, tmp_path):
    lake_formats("delta")
    (tmp_path / "store" / "_work" / "staged").mkdir(parents=True)
    store = open_store(spark, Store(path=str(tmp_path / "store"), format="delta"), str(tmp_path / "store"))
    assert store.append(facts(spark, range(3)), MODEL, "1" * 32)
    assert {path.name for path in (tmp_path / "store").iterdir()} == {"_work", "facts"}


def test_delta_forgets_append_ids_after_thirty_days(spark, lake_formats, tmp_path):
    """Else every id would stand in every checkpoint for ever."""
    lake_formats("delta")
    store = open_store(spark, Store(path=str(tmp_path / "store"), format="delta"), str(tmp_path / "store"))
    store.append(facts(spark, range(3)), MODEL, "1" * 32)
    first = (tmp_path / "store/facts/_delta_log/00000000000000000000.json").read_text()
    metadata = next(json.loads(line)["metaData"] for line in first.splitlines() if "metaData" in line)
    assert metadata["configuration"]["delta.setTransactionRetentionDuration"] == "interval 30 days"
    assert metadata["partitionColumns"] == ["model_key"]


def test_a_delta_store_whose_creation_failed_is_created_again(spark, tmp_path, lake_formats):
    lake_formats("delta")
    log = tmp_path / "store/facts/_delta_log"
    log.mkdir(parents=True)
    os.utime(log, (1, 1))  # nobody is creating it now
    store = open_store(spark, Store(path=str(tmp_path / "store"), format="delta"), str(tmp_path / "store"))
    assert store.facts("a" * 32) is None
    facts = spark.createDataFrame([(b"k" * 16, 1.0, 3, False)], FACTS_SCHEMA)
    assert store.append(facts, "a" * 32, "1" * 32)
    found = store.facts("a" * 32)
    assert found is not None
    assert [row["logit"] for row in found.collect()] == [1.0]
