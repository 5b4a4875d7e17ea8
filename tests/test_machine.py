from __future__ import annotations

import os

import pytest

from rerank_udf.machine import set_tokenizer_threads, task_threads

NAMES = ("RERANK_UDF_THREADS", "OMP_NUM_THREADS", "RAYON_NUM_THREADS", "TOKENIZERS_PARALLELISM")


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.setenv(name, "restore me afterwards")
        monkeypatch.delenv(name)


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
