from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import time
from pathlib import Path

import pytest

from rerank_udf.errors import ModelError
from rerank_udf.models import cache
from rerank_udf.models.cache import complete_folder, file_digest, marked_digests, remembered_digests


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RERANK_UDF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_digest_of_a_file_is_its_sha256(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc" * 3_000_000)
    assert file_digest(tmp_path / "file") == hashlib.sha256(b"abc" * 3_000_000).hexdigest()


def test_a_digest_is_computed_once_while_the_file_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("one")
    first = remembered_digests(tmp_path, ["file"])
    monkeypatch.setattr(cache, "file_digest", lambda path: pytest.fail("read again"))
    assert remembered_digests(tmp_path, ["file"]) == first


@pytest.mark.parametrize("left", ["", "{", "[]"])
def test_a_record_of_digests_that_is_no_record_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: str
) -> None:
    monkeypatch.setenv("RERANK_UDF_CACHE", str(tmp_path / "cache"))
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    first = remembered_digests(model, ["config.json"])
    (record,) = (tmp_path / "cache/digests").iterdir()
    record.write_text(left)
    assert remembered_digests(model, ["config.json"]) == first
    assert json.loads(record.read_text())


def test_a_changed_file_gets_another_digest(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("one")
    first = remembered_digests(tmp_path, ["file"])
    (tmp_path / "file").write_text("two")
    os.utime(tmp_path / "file", ns=(1, 1))
    assert remembered_digests(tmp_path, ["file"]) != first


def test_a_folder_that_failed_half_way_is_not_complete_and_is_built_again(tmp_path: Path) -> None:
    target = tmp_path / "models" / "one"

    def fail(folder: Path) -> dict[str, str]:
        (folder / "half").write_text("x")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        complete_folder(target, fail)
    assert marked_digests(target) is None
    assert not target.exists()

    def build(folder: Path) -> dict[str, str]:
        assert (folder / "half").read_text() == "x"  # what is there can be gone on with
        return {"half": "digest"}

    assert complete_folder(target, build) == target
    assert marked_digests(target) == {"half": "digest"}


@pytest.mark.parametrize("lost", [cache.MARKER, "weights"])
def test_a_folder_that_lost_a_file_is_built_again(tmp_path: Path, lost: str) -> None:
    target = tmp_path / "one"

    def build(folder: Path) -> dict[str, str]:
        for name in ("weights", "tokenizer"):
            (folder / name).write_text("whole")
        return {"weights": "a", "tokenizer": "b"}

    complete_folder(target, build)
    (target / lost).unlink()
    assert marked_digests(target) is None
    complete_folder(target, build)
    assert sorted(file.name for file in target.iterdir()) == sorted([cache.MARKER, "tokenizer", "weights"])
    assert marked_digests(target) == {"weights": "a", "tokenizer": "b"}
    complete_folder(target, lambda folder: pytest.fail("built once more"))


def _build_slowly(target: str) -> None:
    def build(folder: Path) -> dict[str, str]:
        with (folder / "builders").open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(0.3)
        return {}

    complete_folder(Path(target), build)


def test_of_several_processes_one_builds_and_all_see_it_whole(tmp_path: Path) -> None:
    target = tmp_path / "one"
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_build_slowly, args=(str(target),)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len((target / "builders").read_text().split()) == 1


def test_a_cache_that_was_asked_for_and_cannot_be_written_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("RERANK_UDF_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ModelError, match=r"RERANK_UDF_CACHE is .* which cannot be written"):
        cache.cache_root()


def test_without_a_writable_home_the_cache_is_in_the_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home").write_text("no folder")
    monkeypatch.delenv("RERANK_UDF_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    assert cache.cache_root().parent == tmp_path
    assert cache.cache_root().is_dir()


def test_with_a_home_the_cache_is_below_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RERANK_UDF_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.cache_root() == tmp_path / ".cache" / "rerank_udf"


def test_in_a_cache_of_another_owner_each_user_has_a_folder(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cache.cache_root() == root
    monkeypatch.setattr(cache.os, "getuid", lambda: root.stat().st_uid + 7)
    assert cache.cache_root() == root / f"uid-{root.stat().st_uid + 7}"
    assert cache.cache_root().stat().st_mode & 0o777 == 0o700


def test_a_user_without_a_name_or_a_home_has_a_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def nobody(*_: object) -> None:
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.delenv("RERANK_UDF_CACHE")
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/proc")  # nothing can be written there
    monkeypatch.setattr("pwd.getpwuid", nobody)
    monkeypatch.setattr(cache.tempfile, "gettempdir", lambda: str(tmp_path))
    assert cache.cache_root().is_relative_to(tmp_path)
    assert os.access(cache.cache_root(), os.W_OK)
