"""What a run does not do again: reruns, changed input, other models, what dead runs left, two runs at once."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as example_settings
from hypothesis import strategies as st
from jobs_of import run, settings
from pyspark.sql import SparkSession
from tables_of import logit_of

from rerank_udf.config import JobConfig
from rerank_udf.errors import TooManyRejectsError
from rerank_udf.lake import targets
from rerank_udf.lake.store.parquet import ParquetStore
from rerank_udf.spark import pipeline, read_reranked, staging, waves

QUERIES = {f"q{n}": f"question number {n}" for n in range(5)}
PASSAGES = {f"p{n}": f"answer number {n}" for n in range(9)}
SCHEMA = "query_id string, passage_id string, query string, passage string, score double"


def rows_of(queries: dict[str, str], passages: dict[str, str]) -> list[tuple[str, str, str, str, float]]:
    return [
        (q, p, text, passage, 1.0 / (n + 1))
        for (q, text), (n, (p, passage)) in product(queries.items(), enumerate(passages.items()))
    ]


@dataclass
class World:
    """A candidates table with its texts, and a job over it."""

    spark: SparkSession
    folder: Path
    model: Path

    def write(self, queries: dict[str, str] = QUERIES, passages: dict[str, str] = PASSAGES) -> None:
        table = self.spark.createDataFrame(rows_of(queries, passages), SCHEMA).repartition(2)
        table.write.mode("overwrite").parquet(str(self.folder / "candidates"))

    def config(self, **sections: Any) -> JobConfig:
        given_input = {
            "candidates": {"path": str(self.folder / "candidates")},
            "queries": None,
            "passages": None,
        }
        sections["input"] = {**given_input, **sections.get("input", {})}
        return settings(self.folder, self.model, **sections)

    def run(self, **sections: Any) -> Any:
        return run(self.spark, self.config(**sections))

    def published(self) -> list[tuple[Any, ...]]:
        return sorted(map(tuple, read_reranked(self.spark, str(self.folder / "out/reranked")).collect()))

    def store(self) -> ParquetStore:
        return ParquetStore(self.spark, str(self.folder / "out/reranked_store"))

    def stored(self) -> int:
        return sum(one.facts for one in self.store().stats())

    def work_files(self) -> set[str]:
        work = self.folder / "out/reranked_store/_work"
        return {str(path.relative_to(work)).split("/")[0] for path in work.rglob("*") if path.is_file()}


@pytest.fixture
def world(spark: SparkSession, tmp_path: Path, hash_model: Path) -> World:
    made = World(spark, tmp_path, hash_model)
    made.write()
    return made


@pytest.fixture
def many_waves(monkeypatch: pytest.MonkeyPatch) -> None:
    """45 pairs in five or more waves."""
    monkeypatch.setattr(staging, "_FEWEST_PAIRS_PER_BUCKET", 4)
    monkeypatch.setattr(waves, "_PILOT_PAIRS_PER_SLOT", 2)
    monkeypatch.setattr(waves.WavePlanner, "finished", lambda self, facts: setattr(self, "_speed", 0.01))


def test_a_rerun_of_the_same_input_scores_nothing_and_publishes_the_same(world):
    first = world.run()
    before = world.published()
    again = world.run()
    assert (first.pairs_scored, first.pairs_reused, first.pairs_distinct) == (45, 0, 45)
    assert (again.pairs_scored, again.pairs_reused, again.pairs_distinct) == (0, 45, 45)
    assert (again.models_loaded, again.devices, again.tokens, again.waves) == (0, [], 0, [])
    assert world.published() == before
    for row in before:
        texts = QUERIES[row[0]], PASSAGES[row[1]]
        assert row[4] == logit_of(world.model, *texts)


@pytest.mark.slow
def test_many_waves_publish_the_same_table(world, many_waves):
    report = world.run()
    assert len(report.waves) >= 5
    assert sum(wave["pairs"] for wave in report.waves) == report.pairs_scored == 45
    found = world.published()
    world.run(output={"reranked": {"path": str(world.folder / "other")}})
    other = read_reranked(world.spark, str(world.folder / "other"))
    assert sorted(map(tuple, other.collect())) == found


def test_a_changed_text_under_an_old_id_is_scored_and_nothing_else(world):
    world.run()
    world.write(passages={**PASSAGES, "p3": "another answer"})
    report = world.run()
    assert (report.pairs_scored, report.pairs_reused) == (5, 40)
    row = next(row for row in world.published() if row[:2] == ("q1", "p3"))
    assert row[4] == logit_of(world.model, QUERIES["q1"], "another answer")


def test_other_ids_for_the_same_texts_score_nothing(world):
    world.run()
    world.write(
        {f"other-{name}": text for name, text in QUERIES.items()}, {f"x{n}": t for n, t in PASSAGES.items()}
    )
    assert world.run().pairs_scored == 0
    assert {row[0] for row in world.published()} == {f"other-{name}" for name in QUERIES}


def test_another_length_is_another_fact_and_the_old_ones_stay(world):
    world.run()
    report = world.run(model={"max_length": 20})
    assert (report.pairs_scored, report.pairs_reused) == (45, 0)
    assert [one.facts for one in world.store().stats()] == [45, 45]
    assert world.run().pairs_scored == 0


def dies(*_: Any, **__: Any) -> Any:
    raise KeyboardInterrupt  # as near to SIGKILL as a test in the same process can come


def test_a_run_that_died_before_it_published_has_stored_its_scores(world, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(targets, "publish", dies)
        with pytest.raises(KeyboardInterrupt):
            world.run()
    report = world.run()
    assert (report.pairs_scored, report.pairs_reused) == (0, 45)
    assert len(world.published()) == 45


def test_a_run_that_died_before_it_appended_is_adopted(world, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "absorb", dies)
        with pytest.raises(KeyboardInterrupt):
            world.run()
    assert world.stored() == 0
    assert world.work_files() == {"staged", "scored"}
    report = world.run()
    assert (report.pairs_scored, report.pairs_reused, report.store["adopted"]) == (0, 45, 45)
    assert world.stored() == 45
    assert len(world.published()) == 45
    again = world.run()
    assert (again.store["adopted"], world.stored()) == (0, 45)


def test_stores_that_share_a_work_folder_keep_their_dead_runs_apart(world, monkeypatch):
    shared = {"store": {"work": str(world.folder / "work"), "path": str(world.folder / "one")}}
    others = {"store": {"work": str(world.folder / "work"), "path": str(world.folder / "other")}}
    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "absorb", dies)
        with pytest.raises(KeyboardInterrupt):
            world.run(**shared)
    other = world.run(**others)
    assert (other.pairs_scored, other.store["adopted"]) == (45, 0)
    one = world.run(**shared)
    assert (one.pairs_scored, one.store["adopted"]) == (0, 45)


def test_half_of_what_a_dead_run_did_is_half_that_is_left(world, monkeypatch, many_waves):
    real = waves.Scoring._write
    written: list[int] = []

    def dies_in_the_third(self: Any, wave: Any, *rest: Any) -> None:
        if wave.number == 3:
            raise KeyboardInterrupt
        real(self, wave, *rest)
        written.append(wave.pairs)

    with monkeypatch.context() as patched:
        patched.setattr(waves.Scoring, "_write", dies_in_the_third)
        with pytest.raises(KeyboardInterrupt):
            world.run()
    report = world.run()
    assert report.pairs_scored == 45 - sum(written)
    assert report.pairs_reused == sum(written) > 0
    assert world.stored() == 45
    assert world.work_files() <= {"staged", "scored"}  # those of the dead run, for a day


def faulty(world: World, tmp_path: Path, **faults: str) -> World:
    model = tmp_path / "faulty"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "rerank-udf-hash"}')
    (model / "faults.json").write_text(json.dumps(faults))
    return World(world.spark, world.folder, model)


def test_a_pair_that_fails_is_a_reject_tried_again_by_the_next_run(world, tmp_path):
    report = faulty(world, tmp_path, not_finite="answer number 4").run(run={"max_reject_fraction": 0.2})
    assert report.rejects == {"not_finite": 5}
    assert (report.pairs_scored, report.ranked, world.stored()) == (45, 40, 40)
    healed = world.run()
    assert (healed.pairs_scored, healed.pairs_reused, healed.rejects) == (5, 40, {})
    assert len(world.published()) == 45


def test_too_many_rejects_end_the_run_after_what_is_good_is_stored(world, tmp_path):
    bad = faulty(world, tmp_path, not_finite="answer number 4")
    with pytest.raises(TooManyRejectsError, match=r"not_finite 5.*what was scored is in the store"):
        bad.run(run={"max_reject_fraction": 0.0})
    assert world.stored() == 40
    assert not (world.folder / "out/reranked/_current").exists()
    assert bad.run(run={"max_reject_fraction": 0.2}).pairs_scored == 5


def test_a_pair_that_kills_its_worker_ends_as_a_reject_and_the_job_goes_on(world, tmp_path):
    report = faulty(world, tmp_path, kills_worker="answer number 7").run(run={"max_reject_fraction": 0.2})
    assert report.rejects == {"crashed_worker": 5}
    assert report.unaccounted() == 0
    assert {row[1] for row in world.published()} == set(PASSAGES) - {"p7"}
    assert world.stored() == 40


def test_facts_that_vanish_while_the_run_looks_them_up_are_scored_again(world, monkeypatch):
    world.run()
    before = world.published()
    real = pipeline.looked_up
    taken: list[int] = []

    def first_time_robbed(job: Any) -> Any:
        if not taken:
            taken.append(world.stored())
            world.store().vacuum(frozenset(), dry_run=False)
        return real(job)

    monkeypatch.setattr(pipeline, "looked_up", first_time_robbed)
    report = world.run()
    assert taken == [45]
    assert report.pairs_scored == 45
    assert world.published() == before


@pytest.mark.slow
def test_two_runs_at_once_on_one_store_are_both_right(world, many_waves):
    out = world.folder / "other-out"
    other = {"reranked": {"path": str(out / "reranked")}, "rejects": {"path": str(out / "rejects")}}
    store = {"path": str(world.folder / "shared-store")}
    with ThreadPoolExecutor(2) as pool:
        jobs = [
            pool.submit(world.run, store=store),
            pool.submit(world.run, store=store, output=other, run={"report": str(out / "report")}),
        ]
        reports = [job.result() for job in jobs]
    assert [report.ranked for report in reports] == [45, 45]
    found = read_reranked(world.spark, str(out / "reranked")).collect()
    assert sorted(map(tuple, found)) == world.published()
    assert world.run(store=store).pairs_scored == 0


SETTINGS = {
    "spark.sql.adaptive.enabled": ["true", "false"],
    "spark.sql.ansi.enabled": ["true", "false"],
    "spark.sql.caseSensitive": ["true", "false"],
    "spark.sql.session.timeZone": ["UTC", "America/St_Johns", "Pacific/Kiritimati"],
    "spark.sql.shuffle.partitions": ["1", "2", "61"],
    "spark.sql.autoBroadcastJoinThreshold": ["-1", "10485760"],
}


@pytest.fixture(scope="module")
def expected(hash_model: Path) -> list[tuple[Any, ...]]:
    """(query_id, rank, passage_id, logit) by a plain loop."""
    found = []
    for query_id, query in QUERIES.items():
        logits = {name: logit_of(hash_model, query, passage) for name, passage in PASSAGES.items()}
        order = sorted(PASSAGES, key=lambda name: (-logits[name], name))
        found += [(query_id, rank, name, logits[name]) for rank, name in enumerate(order, 1)]
    return sorted(found)


@example_settings(
    max_examples=6,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
@pytest.mark.slow
def test_no_order_no_partitions_no_split_into_runs_and_no_setting_changes_the_table(
    session_settings, hash_model, tmp_path_factory, expected, data
):
    spark = session_settings
    for name, values in SETTINGS.items():
        spark.conf.set(name, data.draw(st.sampled_from(values), label=name))
    world = World(spark, tmp_path_factory.mktemp("property"), hash_model)
    rows = data.draw(st.permutations(rows_of(QUERIES, PASSAGES)), label="order")
    parts = data.draw(st.sampled_from([1, 3, 50]), label="partitions")
    first = data.draw(st.integers(0, len(rows)), label="rows of the first run")
    buckets = data.draw(st.sampled_from([1, 4, 4096]), label="pairs a bucket")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(staging, "_FEWEST_PAIRS_PER_BUCKET", buckets)
        for count in sorted({max(1, first), len(rows)}):
            table = spark.createDataFrame(rows[:count], SCHEMA).repartition(parts)
            table.write.mode("overwrite").parquet(str(world.folder / "candidates"))
            report = world.run()
    assert report.pairs_reused == (max(1, first) if first < len(rows) else 0)
    found = read_reranked(spark, str(world.folder / "out/reranked"))
    rows_found = found.select("query_id", "rank", "passage_id", "logit").collect()
    assert sorted(map(tuple, rows_found)) == expected
