"""Notes of what was in hand, and the attempts that narrow a killer down."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest

from rerank_udf.engine import resolve_scorer
from rerank_udf.identity import pair_key, text_key
from rerank_udf.spark import cautious
from rerank_udf.spark.cautious import Attempts, scored_cautiously
from rerank_udf.spark.notes import Notes
from rerank_udf.spark.scoring import windows

KILLER = "passage 333"


class Died(BaseException):
    """Stands for the end of the process: nothing that comes after it in the process happens."""


class Mortal:
    """A scorer that dies of one passage."""

    def __init__(self, scorer: Any) -> None:
        self.scorer, self.pairs = scorer, 0

    def score_pairs(self, queries: Any, passages: Any) -> Any:
        if KILLER in passages.to_pylist():
            raise Died
        self.pairs += len(passages)
        return self.scorer.score_pairs(queries, passages)


@pytest.fixture(scope="module")
def scorer(hash_model):
    return resolve_scorer(hash_model).load()


def task(count: int = 600) -> Iterator[pa.Table]:
    passages = [f"passage {n}" for n in range(count)]
    keys = [pair_key(text_key("q"), text_key(passage)) for passage in passages]
    batch = pa.RecordBatch.from_pydict(
        {"pair_key": pa.array(keys, pa.binary()), "query": ["q"] * count, "passage": passages}
    )
    return windows([batch], cautious.WINDOW_PAIRS)


def attempt(
    scorer: Any, folder: Any, number: int, given: Iterator[pa.Table] | None = None
) -> dict[bytes, str | None] | None:
    """pair_key → reason of everything that an attempt yields; None where it died."""
    found = {}
    try:
        for keys, pairs in scored_cautiously(scorer, given or task(), Attempts(str(folder), number)):
            for row, key in enumerate(keys.to_pylist()):
                found[key] = pairs.errors.get(row, (None,))[0]
    except Died:
        return None
    return found


def test_a_pair_that_kills_is_alone_found_and_given_up_by_the_fourth_attempt(scorer, tmp_path):
    mortal = Mortal(scorer)
    assert attempt(mortal, tmp_path, 1) is None
    assert [len(keys) for keys in Notes(str(tmp_path)).left()] == [cautious.WINDOW_PAIRS]
    assert attempt(mortal, tmp_path, 2) is None
    assert sorted(len(keys) for keys in Notes(str(tmp_path)).left()) == [1, cautious.WINDOW_PAIRS]
    found = attempt(mortal, tmp_path, 3)
    assert found is not None
    killer = pair_key(text_key("q"), text_key(KILLER))
    assert {key: reason for key, reason in found.items() if reason} == {killer: "crashed_worker"}
    assert len(found) == 600


def test_a_pair_whose_worker_died_of_anothers_failure_is_scored(scorer, tmp_path):
    """Task 1 ends job after job; task 0's worker is killed with it each time, with the same pair alone in hand."""
    mortal = Mortal(scorer)
    assert attempt(mortal, tmp_path, 1) is None
    assert attempt(mortal, tmp_path, 2) is None
    innocent = Attempts(str(tmp_path), 3, {1: 1, 2: 1})
    found = {}
    for keys, pairs in scored_cautiously(scorer, task(), innocent):
        found |= {key: pairs.errors.get(row, (None,))[0] for row, key in enumerate(keys.to_pylist())}
    assert len(found) == 600
    assert set(found.values()) == {None}
    assert len(innocent.opened().alone()) == 0
    assert len(Attempts(str(tmp_path), 3, {1: 0, 2: 0}).opened().alone()) == 1


def test_an_attempt_that_nobody_killed_leaves_no_note(scorer, tmp_path):
    found = attempt(scorer, tmp_path, 1)
    assert found is not None
    assert set(found.values()) == {None}
    assert Notes(str(tmp_path)).left() == []


def test_where_no_note_can_be_written_pairs_are_scored_all_the_same(scorer, tmp_path):
    """A full disk: what writes the scores will tell it."""
    (tmp_path / "file").write_text("in the way")
    found = attempt(scorer, tmp_path / "file" / "notes", 1)
    assert found is not None
    assert set(found.values()) == {None}
    assert len(found) == 600


def test_a_text_that_kills_in_many_pairs_is_given_up_with_all_of_them(scorer, tmp_path):
    """One passage among the candidates of 40 queries, between sound ones: three of its pairs tell."""
    deadly = {n for n in range(400) if n % 10 == 3}
    texts = [(f"q{n}", KILLER if n in deadly else f"passage {n}") for n in range(400)]
    keys = [pair_key(text_key(query), text_key(passage)) for query, passage in texts]
    batch = pa.RecordBatch.from_pydict(
        {
            "pair_key": pa.array(keys, pa.binary()),
            "query": [query for query, _ in texts],
            "passage": [passage for _, passage in texts],
        }
    )
    number, found = 1, None
    while found is None:
        assert number < 8
        windows_of = windows([batch], cautious.WINDOW_PAIRS)
        found = attempt(Mortal(scorer), tmp_path, number, windows_of)
        number += 1
    assert {key for key, reason in found.items() if reason} == {keys[n] for n in deadly}
    assert len(found) == 400


def test_a_note_that_another_task_deletes_meanwhile_is_passed_over(tmp_path, monkeypatch):
    notes = Notes(str(tmp_path))
    gone, stays = notes.write([b"g" * 16]), notes.write([b"s" * 16], (b"q" * 16, b"p" * 16))
    system, _ = notes._place()

    class Racing:
        def get_file_info(self, selector):
            found = system.get_file_info(selector)
            (tmp_path / gone).unlink()
            return found

        def open_input_stream(self, path):
            return system.open_input_stream(path)

    notes.held["system"] = Racing()
    assert notes.left() == [[b"s" * 16]]
    assert stays in {path.name for path in tmp_path.iterdir()}
    assert Notes(str(tmp_path)).alone() == {b"s" * 16: (b"q" * 16, b"p" * 16)}


def test_a_folder_that_cannot_be_made_gives_way_to_the_nodes_own_disk(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    Notes("/proc/no/such/notes").write([b"k" * 16])
    assert Notes("/proc/no/such/notes").left() == [[b"k" * 16]]


def test_a_note_that_was_cut_short_names_only_whole_keys(tmp_path):
    (tmp_path / "0-0-half").write_bytes(b"k" * 16 + b"x" * 7)
    (tmp_path / "0-0-nothing").write_bytes(b"")
    assert Notes(str(tmp_path)).left() == [[b"k" * 16]]


def test_notes_of_another_kind_of_path_fall_back_to_the_nodes_own_disk(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    notes = Notes("dbfs:/no/such/scheme/here")
    notes.write([b"k" * 16])
    assert Notes("dbfs:/no/such/scheme/here").left() == [[b"k" * 16]]
    assert any(path.is_file() for path in tmp_path.rglob("*"))
