from __future__ import annotations

import os
from pathlib import Path

import pytest

from rerank_udf import machine
from rerank_udf.machine import available_cores, set_tokenizer_threads, task_threads

NAMES = ("RERANK_UDF_THREADS", "OMP_NUM_THREADS", "RAYON_NUM_THREADS", "TOKENIZERS_PARALLELISM")


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.setenv(name, "restore me afterwards")
        monkeypatch.delenv(name)
    monkeypatch.setattr(machine, "_told", {})


def test_the_threads_of_a_task_are_those_that_spark_states(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert task_threads() == 3


def test_the_own_variable_goes_before_omp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("RERANK_UDF_THREADS", "5")
    assert task_threads() == 5


def test_without_a_statement_the_cores_of_the_process_count() -> None:
    assert 1 <= task_threads() <= (os.cpu_count() or 1)


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 16),
        ({"cpu.max": "max 100000"}, 16),
        ({"cpu.max": "400000 100000"}, 4),
        ({"cpu.max": "250000 100000"}, 2),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "6400000 100000"}, 16),
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 16),
        ({"cpu.max": "garbage"}, 16),
    ],
)
def test_a_containers_quota_counts_where_it_is_below_its_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], cores: int
) -> None:
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(f"{text}\n")
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: set(range(16)))
    assert available_cores() == task_threads() == cores
    monkeypatch.setenv("OMP_NUM_THREADS", "12")
    assert task_threads() == 12


@pytest.mark.parametrize(
    ("cores", "threads", "parallel"), [(1, "1", "false"), (4, "3", "true"), (64, "8", "true")]
)
def test_the_tokenizer_leaves_a_core_to_the_model(
    monkeypatch: pytest.MonkeyPatch, cores: int, threads: str, parallel: str
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", str(cores))
    set_tokenizer_threads()
    assert (os.environ["RAYON_NUM_THREADS"], os.environ["TOKENIZERS_PARALLELISM"]) == (threads, parallel)


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYON_NUM_THREADS", "7")
    set_tokenizer_threads()
    assert os.environ["RAYON_NUM_THREADS"] == "7"


def told(monkeypatch: pytest.MonkeyPatch, cores: int) -> tuple[str, str]:
    """What the environment says after a task of so many cores."""
    monkeypatch.setenv("RERANK_UDF_THREADS", str(cores))
    set_tokenizer_threads()
    return os.environ["RAYON_NUM_THREADS"], os.environ["TOKENIZERS_PARALLELISM"]


def test_a_worker_that_served_one_core_tokenises_on_those_of_its_next_task(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert told(monkeypatch, 1) == ("1", "false")
    assert told(monkeypatch, 8) == ("7", "true")
    # The library has its threads by now: how many they are cannot be changed, only whether they are used
    assert told(monkeypatch, 4) == ("7", "true")
    assert told(monkeypatch, 1) == ("7", "false")
    assert told(monkeypatch, 8) == ("7", "true")


@pytest.mark.parametrize("variable", ["RAYON_NUM_THREADS", "TOKENIZERS_PARALLELISM"])
def test_what_somebody_else_has_set_since_stays(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    told(monkeypatch, 1)
    theirs = {"RAYON_NUM_THREADS": "3", "TOKENIZERS_PARALLELISM": "no"}[variable]
    monkeypatch.setenv(variable, theirs)
    told(monkeypatch, 8)
    assert os.environ[variable] == theirs
