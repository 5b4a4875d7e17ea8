"""The score store as plain Parquet: what is in, what is refused, what is found to be damaged."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import DataFrame, SparkSession

from rerank_udf.config import Store
from rerank_udf.errors import StoreError, StorePlaceError
from rerank_udf.lake import files, versions
from rerank_udf.lake.store import FACTS_SCHEMA, append_id_of, open_store, reduced
from rerank_udf.lake.store.parquet import ParquetStore

MODEL, OTHER = "a" * 32, "b" * 32
DAY = 24 * 3600


def key(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()[:16]


def facts(spark: SparkSession, numbers: Iterable[int], shift: float = 0.0, parts: int = 2) -> DataFrame:
    rows = [(key(n), n / 8 + shift, n, n % 2 == 0) for n in numbers]
    return spark.createDataFrame(rows, FACTS_SCHEMA).repartition(parts)


def logits(frame: DataFrame | None) -> dict[bytes, list[float]]:
    found: dict[bytes, list[float]] = {}
    for row in frame.collect() if frame is not None else ():
        found.setdefault(bytes(row["pair_key"]), []).append(row["logit"])
    return found


def data_files(root: Path) -> list[Path]:
    return sorted(root.glob("facts/*/*/part-*.parquet"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(spark: SparkSession, root: Path) -> ParquetStore:
    return ParquetStore(spark, str(root))


def test_nothing_is_made_before_the_first_append(store, root):
    assert store.facts(MODEL) is None
    assert (store.stats(), store.verify(), store.compact(False)) == ([], [], [])
    assert not root.exists()


def test_what_is_appended_is_there_under_its_model_key_alone(spark, store, root):
    assert store.append(facts(spark, range(10)), MODEL, "1" * 32)
    assert store.append(facts(spark, range(10, 15)), MODEL, "2" * 32)
    assert store.append(facts(spark, range(3), shift=1.0), OTHER, "1" * 32)
    assert logits(store.facts(MODEL)) == {key(n): [n / 8] for n in range(15)}
    assert logits(ParquetStore(spark, f"{root}/").facts(OTHER)) == {key(n): [n / 8 + 1] for n in range(3)}
    found = {one.model_key: one for one in store.stats()}
    assert {name: (one.facts, one.appends) for name, one in found.items()} == {MODEL: (15, 2), OTHER: (3, 1)}
    of_model = [path for path in data_files(root) if MODEL in str(path)]
    assert found[MODEL].files == len(of_model)
    assert found[MODEL].bytes == sum(path.stat().st_size for path in of_model)


def test_an_append_that_is_in_already_is_skipped(spark, store, root):
    assert store.append(facts(spark, range(5)), MODEL, "1" * 32)
    before = data_files(root)
    assert not store.append(facts(spark, range(50)), MODEL, "1" * 32)
    assert data_files(root) == before


def test_an_append_of_nothing_leaves_nothing(spark, store, root):
    assert not store.append(facts(spark, []), MODEL, "1" * 32)
    assert list(root.glob("facts/*/*")) == []
    assert store.stats() == []


def test_an_appends_id_is_that_of_its_files_in_whatever_order():
    assert append_id_of(["b", "a"]) == append_id_of(["a", "b"]) == hashlib.sha256(b"a\nb").hexdigest()[:32]
    assert append_id_of(["a"]) != append_id_of(["a", "b"])


def test_two_writers_at_once_are_both_in(spark, store):
    with ThreadPoolExecutor(2) as pool:
        done = list(
            pool.map(lambda n: store.append(facts(spark, range(n, n + 20)), MODEL, str(n) * 32), (0, 1))
        )
    assert done == [True, True]
    found = logits(store.facts(MODEL))
    assert set(found) == {key(n) for n in range(21)}
    assert {len(values) for values in found.values()} == {1, 2}


def test_a_pair_that_is_in_twice_is_read_as_its_smallest_logit(spark, store):
    store.append(facts(spark, range(4)), MODEL, "1" * 32)
    store.append(facts(spark, range(2, 6), shift=-0.5), MODEL, "2" * 32)
    found = store.facts(MODEL)
    assert found is not None
    least = {n: n / 8 - (0.5 if n >= 2 else 0) for n in range(6)}
    rows = reduced(found).collect()
    assert {bytes(row["pair_key"]): row["logit"] for row in rows} == {key(n): v for n, v in least.items()}
    assert {(row["tokens"], row["truncated"]) for row in rows} == {(n, n % 2 == 0) for n in range(6)}


def test_an_append_that_died_half_way_is_not_there(spark, store, root):
    store.append(facts(spark, range(4)), MODEL, "1" * 32)
    facts(spark, range(50, 60)).write.parquet(str(root / "facts" / MODEL / "2.dead"))
    assert set(logits(store.facts(MODEL))) == {key(n) for n in range(4)}
    assert store.append(facts(spark, range(4, 6)), MODEL, "2" * 32)
    assert set(logits(store.facts(MODEL))) == {key(n) for n in range(6)}


def test_a_file_that_the_store_did_not_write_is_not_read(spark, store, root):
    store.append(facts(spark, range(4)), MODEL, "1" * 32)
    (folder,) = (root / "facts" / MODEL).iterdir()
    table = pa.table(
        {
            "pair_key": [key(99)],
            "logit": pa.array([9.0], pa.float32()),
            "tokens": pa.array([1], pa.int32()),
            "truncated": [False],
        }
    )
    pq.write_table(table, folder / "part-00099.parquet")
    assert key(99) not in logits(store.facts(MODEL))


@pytest.mark.parametrize("content", ["notes.txt", "part-0.parquet"])
def test_a_folder_with_other_things_in_it_is_no_store(spark, root, content):
    root.mkdir()
    (root / content).touch()
    with pytest.raises(
        StorePlaceError, match=rf"holds '{content}' and no _rerank_udf_store.json: it is no score store"
    ):
        ParquetStore(spark, str(root))


@pytest.mark.parametrize("damage", [lambda marker: marker.unlink(), lambda marker: marker.write_text("{")])
def test_a_store_that_lost_its_marker_is_mended_as_the_error_says(spark, store, root, damage):
    """A copy may leave out what begins with an underscore."""
    store.append(facts(spark, range(3)), MODEL, "1" * 32)
    marker = root / "_rerank_udf_store.json"
    damage(marker)
    with pytest.raises(StoreError, match=r"_rerank_udf_store\.json.* write ") as caught:
        ParquetStore(spark, str(root))
    assert "delete" not in str(caught.value)
    (content,) = re.findall(r"\{\".*\}", str(caught.value))
    marker.write_text(content)
    assert set(logits(ParquetStore(spark, str(root)).facts(MODEL))) == {key(n) for n in range(3)}


def test_a_delta_store_under_the_format_parquet_is_told(spark, root):
    (root / "facts/_delta_log").mkdir(parents=True)
    with pytest.raises(StorePlaceError, match=r"is a Delta store: set store\.format to delta"):
        ParquetStore(spark, str(root))


def test_a_store_in_another_format_or_layout_is_told(spark, store, root):
    store.append(facts(spark, range(1)), MODEL, "1" * 32)
    marker = root / "_rerank_udf_store.json"
    marker.write_text(json.dumps({"format": "delta", "layout": 1}))
    with pytest.raises(
        StorePlaceError, match=r"in format 'delta', layout 1, expected 'parquet', 1; set store.format"
    ):
        ParquetStore(spark, str(root))
    marker.write_text("{")
    with pytest.raises(
        StoreError, match=r"_rerank_udf_store.json is damaged: expected a JSON object, found '\{'"
    ):
        ParquetStore(spark, str(root))


@pytest.mark.parametrize("name", ["../../secret.parquet", "_hidden", ".x"])
def test_a_commit_that_names_files_elsewhere_is_refused(spark, store, root, name):
    store.append(facts(spark, range(1)), MODEL, "1" * 32)
    (commit,) = root.glob("facts/*/*/_commit.json")
    content = json.loads(commit.read_text())
    commit.write_text(json.dumps({**content, "files": {name: 1}}))
    with pytest.raises(StoreError, match="which is no file of its own folder"):
        store.facts(MODEL)


# --- verify ---


def flip(path: Path, at: float) -> None:
    """One bit of the file, at a share of its length."""
    content = bytearray(path.read_bytes())
    content[int(len(content) * at)] ^= 1
    path.write_bytes(bytes(content))
    path.with_name(f".{path.name}.crc").unlink(
        missing_ok=True
    )  # else Hadoop would notice before Parquet does


def test_damaged_files_are_found_and_named(spark, store, root):
    for number in range(3):
        store.append(facts(spark, range(400 * number, 400 * number + 400)), MODEL, str(number) * 32)
    paths = data_files(root)
    assert len(paths) == 6
    assert store.verify() == []
    flip(paths[0], 0.3)
    content = paths[2].read_bytes()
    paths[2].write_bytes(content[: len(content) // 2])
    paths[4].unlink()
    table = pq.read_table(paths[5])
    logit = pa.array([None, *table["logit"].to_pylist()[1:]], pa.float32())
    pq.write_table(table.set_column(1, "logit", logit), paths[5])
    commit = paths[5].with_name("_commit.json")
    facts_of_commit = json.loads(commit.read_text())
    facts_of_commit["files"][paths[5].name] = paths[5].stat().st_size
    commit.write_text(json.dumps(facts_of_commit))
    paths[5].with_name(f".{paths[5].name}.crc").unlink()
    found = {Path(one.file).name + one.file[-1:]: one for one in store.verify()}
    assert {Path(one.file).resolve() for one in found.values()} == {paths[n].resolve() for n in (0, 2, 4, 5)}
    problems = {Path(one.file).name: one.problem for one in store.verify() if Path(one.file) != paths[0]}
    assert "missing" in problems.values()
    assert any("bytes, expected" in problem for problem in problems.values())
    assert "1 rows are no facts" in problems.values()
    assert {one.model_key for one in found.values()} == {MODEL}


# --- compact, vacuum ---


def test_compacting_keeps_every_fact_once_in_one_file_and_old_readers_go_on(spark, store, root):
    for number in range(4):
        store.append(facts(spark, range(number, number + 10)), MODEL, str(number) * 32)
    store.append(facts(spark, range(3)), OTHER, "0" * 32)
    reader = store.facts(MODEL)
    (change,) = store.compact(dry_run=True)
    assert (change.model_key, change.files_before, change.files_after) == (MODEL, 8, 1)
    assert len(data_files(root)) == 10
    store.compact(dry_run=False)
    assert logits(store.facts(MODEL)) == {key(n): [n / 8] for n in range(13)}
    assert set(logits(reader)) == {key(n) for n in range(13)}
    assert [(one.facts, one.files, one.appends) for one in store.stats() if one.model_key == MODEL] == [
        (13, 1, 1)
    ]
    assert store.compact(dry_run=False) == []
    assert store.append(facts(spark, range(90, 95)), MODEL, "9" * 32)
    assert len(logits(store.facts(MODEL))) == 18


def test_an_append_beside_a_compaction_is_not_lost(spark, store):
    store.append(facts(spark, range(4)), MODEL, "1" * 32)
    store.append(facts(spark, range(4, 8)), MODEL, "2" * 32)
    live = store._live(MODEL)
    store.append(facts(spark, range(8, 12)), MODEL, "3" * 32)
    store._compact(MODEL, live, 1)
    assert set(logits(store.facts(MODEL))) == {key(n) for n in range(12)}


def test_vacuum_forgets_other_models_and_clears_left_overs_after_a_day(spark, store, root):
    for number in range(2):
        store.append(facts(spark, range(number, number + 10)), MODEL, str(number) * 32)
    store.append(facts(spark, range(3)), OTHER, "0" * 32)
    facts(spark, range(5)).write.parquet(str(root / "facts" / MODEL / "dead.1"))
    store.compact(dry_run=False)
    before = data_files(root)
    planned = store.vacuum(frozenset({MODEL}), dry_run=True)
    assert [(one.model_key, one.what) for one in planned] == [(OTHER, "forgotten")]
    assert data_files(root) == before
    store.vacuum(frozenset({MODEL}), dry_run=False)
    assert store.facts(OTHER) is None
    assert (
        len(list((root / "facts" / MODEL).iterdir())) == 4
    )  # a reader may still be at what was replaced today
    long_ago = time.time() - 2 * DAY
    for path in (root / "facts").rglob("*"):
        os.utime(path, (long_ago, long_ago))
    (compacted,) = {commit.folder for commit in store._live(MODEL)}
    now = time.time()
    os.utime(f"{compacted}/_commit.json", (now, now))
    dead = store.vacuum(frozenset({MODEL}), dry_run=False)
    assert [one.what for one in dead] == [
        "left over: dead.1"
    ]  # what was replaced just now is still being read
    os.utime(f"{compacted}/_commit.json", (long_ago, long_ago))
    assert len(store.vacuum(frozenset({MODEL}), dry_run=False)) == 2
    assert [len(list(path.glob("part-*"))) for path in (root / "facts" / MODEL).iterdir()] == [1]
    assert logits(store.facts(MODEL)) == {key(n): [n / 8] for n in range(11)}


def compacted_twice(spark: SparkSession, store: ParquetStore) -> dict[bytes, list[float]]:
    """Appends 0 and 1 in one commit, that and append 2 in another, all of it long ago; the facts."""
    for number in range(3):
        store.append(facts(spark, range(number * 4, number * 4 + 4)), MODEL, str(number) * 32)
        if number:
            store.compact(dry_run=False)
    long_ago = time.time() - 2 * DAY
    for path in Path(store.place).rglob("*"):
        os.utime(path, (long_ago, long_ago))
    return {key(n): [n / 8] for n in range(12)}


@pytest.mark.parametrize("deletions", range(0, 9))
def test_a_vacuum_that_dies_on_the_way_brings_nothing_back(spark, store, monkeypatch, deletions):
    expected = compacted_twice(spark, store)
    real, done = files.remove, []

    def dies(session: SparkSession, path: str) -> None:
        if len(done) == deletions:
            raise KeyboardInterrupt
        done.append(path)
        real(session, path)

    with monkeypatch.context() as patched:
        patched.setattr(files, "remove", dies)
        with suppress(KeyboardInterrupt):
            store.vacuum(frozenset({MODEL}), dry_run=False)
    assert logits(store.facts(MODEL)) == expected
    assert store.verify() == []
    store.vacuum(frozenset({MODEL}), dry_run=False)
    assert len(list(Path(store.place, "facts", MODEL).iterdir())) == 1
    assert logits(store.facts(MODEL)) == expected


def test_forgetting_a_model_that_dies_on_the_way_leaves_a_sound_store(spark, store, monkeypatch):
    expected = compacted_twice(spark, store)
    removed: list[str] = []
    monkeypatch.setattr(files, "remove", lambda session, path: removed.append(path))
    store.vacuum(frozenset(), dry_run=False)
    monkeypatch.undo()
    for path in removed:  # one by one, as if it died after each
        files.remove(spark, path)
        found = logits(store.facts(MODEL))
        assert found.items() <= expected.items()
        assert store.verify() == []
    assert store.stats() == []


def test_keeping_all_clears_left_overs_and_forgets_no_model(spark, store):
    expected = compacted_twice(spark, store)
    store.append(facts(spark, range(3)), OTHER, "0" * 32)
    assert len(store.vacuum(None, dry_run=False)) == 4
    assert logits(store.facts(MODEL)) == expected
    assert len(logits(store.facts(OTHER))) == 3


def test_an_append_that_has_no_file_yet_is_as_old_as_its_name_says(spark, store, root, monkeypatch):
    """On object stores a folder has no time, and a file is there when it is whole."""
    store.append(facts(spark, range(4)), MODEL, "1" * 32)
    folder = root / "facts" / MODEL
    live = f"{'2' * 32}.{versions.new_run_id()}"
    for name in (live, f"{'3' * 32}.20260101T000000Z-aaaaaa"):
        (folder / name / "_temporary/0").mkdir(parents=True)
    monkeypatch.setattr(files, "_OBJECT_STORES", {"file"})
    store.vacuum(None, dry_run=False)
    assert sorted(path.name[:1] for path in folder.iterdir()) == ["1", "2"]


def test_large_files_are_not_written_anew_for_a_few_small_ones(spark, store, monkeypatch):
    large = facts(spark, range(3000), parts=1)
    store.append(large, MODEL, "1" * 32)
    (whole,) = data_files(Path(store.place))
    monkeypatch.setattr("rerank_udf.lake.store.parquet.FILE_BYTES", int(1.5 * whole.stat().st_size))
    for number in (2, 3):
        store.append(facts(spark, range(number, number + 5), shift=1.0), MODEL, str(number) * 32)
    (change,) = store.compact(dry_run=False)
    assert change.files_after == 1
    assert whole in data_files(Path(store.place))
    assert [(one.files, one.appends) for one in store.stats()] == [(2, 2)]
    assert logits(reduced(store.facts(MODEL))) == logits(large)
    assert store.compact(dry_run=True) == []


def test_a_damaged_page_is_not_given_a_sound_checksum(spark, store, root):
    for number in range(2):
        store.append(facts(spark, range(number * 500, number * 500 + 500), parts=1), MODEL, str(number) * 32)
    flipped(data_files(root)[0])
    with pytest.raises(StoreError, match="cannot be written"):
        store.compact(dry_run=False)
    assert len(store.verify()) == 1


def flipped(path: Path) -> None:
    """Change one bit in the middle of a Parquet file's keys, where only a checksum can tell."""
    column = pq.ParquetFile(path).metadata.row_group(0).column(0)
    place = column.data_page_offset + column.total_compressed_size // 2
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    path.with_name(f".{path.name}.crc").unlink(missing_ok=True)


@pytest.mark.parametrize("setting", ["ignoreCorruptFiles", "ignoreMissingFiles"])
def test_no_session_setting_makes_damage_look_sound(spark, store, root, session_settings, setting):
    session_settings.conf.set(f"spark.sql.files.{setting}", "true")
    store.append(facts(spark, range(8)), MODEL, "1" * 32)
    first, _ = data_files(root)
    if setting == "ignoreMissingFiles":
        reader = store.facts(MODEL)
        first.unlink()
    else:
        content = first.read_bytes()
        first.write_bytes(content[:4] + bytes(len(content) - 8) + content[-4:])
        first.with_name(f".{first.name}.crc").unlink(missing_ok=True)
        assert [Path(one.file).name for one in store.verify()] == [first.name]
        reader = store.facts(MODEL)
    with pytest.raises(Exception, match=r"(?i)parquet|not exist|FILE"):
        reader.collect()


def test_a_place_that_cannot_be_written_is_a_sentence(spark, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    store: Any = open_store(spark, Store(), str(tmp_path / "file" / "store"))
    with pytest.raises(
        StoreError, match=r"the score store at .*/file/store cannot be written: .*run the same command"
    ):
        store.append(facts(spark, range(3)), MODEL, "1" * 32)
