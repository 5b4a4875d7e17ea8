"""SIGKILL at random moments, full disks, stores that cannot be written, pairs that kill: the same command again ends as
if nothing had been.

RERANK_UDF_KILLS: moments a format (a few chosen ones by default; 20 and more is the whole suite).
RERANK_UDF_KILL_SEED: the seed of an earlier run, which each test prints: the same victims at the same points of it.
"""

from __future__ import annotations

import os
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pyarrow.parquet as pq
import pytest
from fault_world import DEADLY, NOT_FINITE, World, candidate_rows, key_of, only_first, ranking_by_hand
from job_processes import (
    DRIVER_JVM,
    DRIVER_PYTHON,
    EXECUTOR,
    PYTHON_WORKER,
    Job,
    children_of,
    kill,
    wait_until,
)
from small_disks import small_disk
from standalone import Cluster, Host, bare_python, standalone, submission

from rerank_udf.models.mini import assembled_folder

pytestmark = pytest.mark.cluster

SEED = int(os.environ.get("RERANK_UDF_KILL_SEED") or random.SystemRandom().randrange(1 << 32))
KILLS = os.environ.get("RERANK_UDF_KILLS")
PHASES = ["staging", "scoring", "append", "publish"]
# Who dies in which phase: in this order, round and round; the moment within the phase is random.
DRIVER = "driver"
SCRIPT = [
    (DRIVER, "scoring"),
    (DRIVER, "append"),
    (PYTHON_WORKER, "scoring"),
    (EXECUTOR, "scoring"),
    (DRIVER, "publish"),
    (DRIVER, "staging"),
    (DRIVER_JVM, "scoring"),
    (DRIVER_PYTHON, "append"),
    (EXECUTOR, "append"),
    (PYTHON_WORKER, "scoring"),
]
# In the short form each victim and each phase is met, and the formats where they differ: on appending and publishing.
SHORT = {"parquet": (0, 2, 3, 5), "delta": (1, 4), "iceberg": (1, 4)}
KINDS = {DRIVER: (DRIVER_JVM, DRIVER_PYTHON)}
SLOTS = 2
# Tasks that a death takes along before they have committed; an executor here has one core.
TASKS_LOST = {PYTHON_WORKER: 1, EXECUTOR: 1}
OLD_QUERIES = 30  # the table that is published before is of these alone
SLOW = {"microseconds_per_pair": 300}


@dataclass(frozen=True)
class Undisturbed:
    """A world, and what a run that nothing happens to makes of it.

    `old`, `new`: digests of the published table; `pairs`: those that this run scored; `before`: scorings before it;
    `spans`: seconds from the beginning of each phase to that of the next.
    """

    world: World
    old: str
    new: str
    pairs: set[bytes]
    before: Counter[bytes]
    spans: dict[str, float]
    largest_task: int


class Phases(threading.Thread):
    """Watches a world for the beginning of each phase of a run, and for how many pairs a finished task has."""

    def __init__(self, world: World) -> None:
        super().__init__(daemon=True)
        self._world = world
        self._over = threading.Event()
        self._before = {place: files_below(place) for place in (world.work, world.store, world.out)}
        self._scored_before = world.scorings_so_far()
        self.began: dict[str, float] = {}
        self.largest_task = 0
        self._measured: set[Path] = set()

    def run(self) -> None:
        while not self._over.wait(0.02):
            for phase in PHASES:
                if phase not in self.began and self.has_begun(phase):
                    self.began[phase] = monotonic()
            self._measure_tasks()

    def has_begun(self, phase: str) -> bool:
        """Whether the phase shows on disk."""
        world = self._world
        if phase == "scoring":
            return world.scorings_so_far() > self._scored_before
        place = {"staging": world.work, "append": world.store, "publish": world.out}[phase]
        found = files_below(place) - self._before[place]
        return any(phase == "staging" or world.work not in file.parents for file in found)

    def _measure_tasks(self) -> None:
        for file in set(self._world.work.glob("scored/*/*/*/part-*.parquet")) - self._measured:
            try:
                self.largest_task = max(self.largest_task, pq.ParquetFile(file).metadata.num_rows)
            except FileNotFoundError:  # appended and cleared away meanwhile
                continue
            self._measured.add(file)

    def __enter__(self) -> Phases:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()


def files_below(place: Path) -> set[Path]:
    """Every file in a folder, however deep; folders may vanish while this looks."""
    return {Path(folder) / name for folder, _, names in os.walk(place) for name in names}


# --- the world before, and the run that nothing happens to ---


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Undisturbed]:
    """By format; each is made when it is first asked for."""
    return cache(lambda lake: undisturbed_run(lake, tmp_path_factory.mktemp(f"faults-{lake}") / "world"))


def undisturbed_run(lake: str, root: Path) -> Undisturbed:
    world = World(root, queries=330, format=lake).create()
    rows = candidate_rows(world.queries)
    world.succeed("old", *only_first(OLD_QUERIES))
    assert world.ranking() == ranking_by_hand([row for row in rows if row["query_id"] < f"q{OLD_QUERIES:05}"])
    world.faults(**SLOW)
    world.keep()
    old, before = world.digest(), world.scorings()
    with Phases(world) as phases:
        report = world.succeed("undisturbed")
        begins = [*(phases.began[phase] for phase in PHASES), monotonic()]
    assert world.ranking() == ranking_by_hand(rows)
    pairs = {key_of(row) for row in rows} - before.keys()
    assert world.scorings_since(before) == dict.fromkeys(pairs, 1)
    assert (report["pairs_scored"], report["pairs_reused"]) == (len(pairs), len(before))
    spans = dict(zip(PHASES, (b - a for a, b in pairwise(begins)), strict=True))
    return Undisturbed(world, old, world.digest(), pairs, before, spans, phases.largest_task)


@pytest.fixture(scope="module")
def small_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two executors of one core each."""
    with standalone(tmp_path_factory.mktemp("cluster"), [Host(), Host()], {}) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def submit(
    small_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory, wheel_archive: Path
) -> Sequence[Any]:
    """spark-submit to that cluster, with the wheel."""
    python = bare_python(tmp_path_factory.mktemp("python"))
    return submission(small_cluster.url, python, wheel_archive, {})


# --- moments ---


def moments() -> list[Any]:
    """(format, number) of every moment that is asked for."""
    found = []
    for lake, few in SHORT.items():
        for number in range(int(KILLS)) if KILLS else few:
            victim, phase = SCRIPT[number % len(SCRIPT)]
            found.append(pytest.param(lake, number, id=f"{lake}-{number}: {victim} at {phase}"))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("lake", "number"), moments())
def test_killed_at_any_moment_the_next_run_ends_as_if_nothing_had_been(
    undisturbed: Callable[[str], Undisturbed], lake: str, number: int, request: pytest.FixtureRequest
) -> None:
    normal = undisturbed(lake)
    world = normal.world
    victim, phase = SCRIPT[number % len(SCRIPT)]
    luck = random.Random(f"{SEED}/{lake}/{number}")
    print(f"RERANK_UDF_KILL_SEED={SEED}; phases take {normal.spans}")
    on_cluster = victim == EXECUTOR
    start = {"submit": request.getfixturevalue("submit")} if on_cluster else {}
    hosts = request.getfixturevalue("small_cluster").workers if on_cluster else ()
    share = luck.random()
    for _ in range(4):
        world.restore()
        with world.witness() as witness, Phases(world) as phases, world.start("killed", **start) as job:
            wait_until(lambda now=phases: phase in now.began or job.exit_code is not None, phase)
            sleep(share * normal.spans[phase])
            struck = strike(job, hosts, victim, phase, world, luck)
            code = job.wait()
            if struck and code != 0:
                world.succeed("again", **start)
            sleep(0.2)  # another look at what is published now
        if struck:
            break
        share /= 2  # this run was faster: the job had ended before its time came
    else:
        pytest.fail(f"no {victim} was there to be killed at {phase}")
    check(normal, witness, max(phases.largest_task, normal.largest_task), victim)
    if victim in TASKS_LOST:
        assert code == 0, f"the job should have gone on without this {victim}:\n{job.text}"


def strike(
    job: Job, hosts: Sequence[Job], victim: str, phase: str, world: World, luck: random.Random
) -> list[int]:
    """Kill the victim as soon as there is one; the pids that died, none where the job had ended before.

    At scoring, a Python worker, or an executor with its workers, is a victim while it scores.
    """

    def victims() -> list[Any]:
        found = [process for place in (job, *hosts) for process in place.find(*KINDS.get(victim, (victim,)))]
        if victim not in TASKS_LOST or phase != "scoring":
            return found
        busy = world.scoring_now()
        return [one for one in found if busy & {one.pid, *(child.pid for child in children_of(one))}]

    found = wait_until(lambda: victims() or [job] * (job.exit_code is not None), f"a {victim}")
    if found == [job]:
        return []
    pids = kill([luck.choice(found)] if victim in TASKS_LOST else found)
    print(f"killed {victim} {pids} after {world.scorings_so_far():,} scorings")
    return pids


def check(normal: Undisturbed, witness: Any, largest_task: int, victim: str) -> None:
    """The same output, no half of a table, and no more scored twice than the death took along."""
    world = normal.world
    assert not witness.trouble
    assert set(witness.seen) <= {normal.old, normal.new}
    assert world.digest() == normal.new
    assert world.rejects() == []
    scorings = world.scorings_since(normal.before)
    assert set(scorings) == normal.pairs
    repeated = scorings.total() - len(scorings)
    print(f"{repeated} pairs scored again, a task has up to {largest_task}; tables seen: {witness.seen}")
    assert repeated <= TASKS_LOST.get(victim, SLOTS) * largest_task


@pytest.mark.slow
def test_killed_while_a_model_scores_the_next_run_scores_the_rest_and_means_the_same(tmp_path: Path) -> None:
    """Section 4's meaning with a model in float32: the same rows, logits within 1e-4, and ordered by them."""
    model = ("--set", f"model.name={assembled_folder()}", "--set", "model.precision=float32")
    whole, world = (World(tmp_path / name, queries=60).create() for name in ("whole", "world"))
    distinct = whole.succeed("whole", *model)["pairs_scored"]
    with world.start("killed", *model) as job:
        wait_until(lambda: [*world.work.glob("scored/*/*/*/part-*.parquet")], "a finished task", job)
        kill(job.find(DRIVER_JVM, DRIVER_PYTHON))
    again = world.succeed("again", *model)
    assert again["pairs_reused"] + again["pairs_scored"] == distinct
    assert min(again["pairs_reused"], again["pairs_scored"]) > 0
    expected, found = ({row[:2]: row[2:] for row in one.ranking()} for one in (whole, world))
    assert found.keys() == expected.keys()
    assert max(abs(found[pair][1] - expected[pair][1]) for pair in found) <= 1e-4
    placed = sorted((query, rank, -logit) for (query, _), (rank, logit) in found.items())
    assert placed == sorted(placed, key=lambda row: (row[0], row[2]))


# --- other troubles, in a small world ---


FULL = ("No space left on device",)


def assert_fails_in_a_sentence(job: Job, code: int, *words: str) -> None:
    """It ends with this code, one sentence that has one of these words, and no stack."""
    assert job.finish() == code, job.text
    said = [line for line in job.err.read_text().splitlines() if line.startswith("rerank-udf: ")]
    assert len(said) == 1, job.text
    assert any(some in said[0] for some in words), said[0]
    assert "Traceback" not in job.err.read_text()


def assert_goes_on_as_if_nothing_had_been(world: World) -> None:
    """Nothing was published; the next run publishes what it should."""
    assert world.snapshot() == ()
    world.succeed("again")
    assert world.ranking() == ranking_by_hand(candidate_rows(world.queries))


PLACES = {"store_at": "store", "work_at": "work", "out_at": "output"}
# Every place with Parquet; the others' own ways of writing are their tables.
DISKS = [("parquet", place) for place in PLACES] + [
    (lake, place) for lake in ("delta", "iceberg") for place in ("store_at", "out_at")
]


@pytest.mark.slow
@pytest.mark.parametrize("trouble", ["full", "read-only"])
@pytest.mark.parametrize(("lake", "place"), DISKS, ids=lambda name: PLACES.get(name, name))
def test_a_disk_that_is_full_or_read_only_loses_nothing(
    tmp_path: Path, lake: str, place: str, trouble: str
) -> None:
    with small_disk(tmp_path / "disk") as disk:
        places = {"work_at": tmp_path / "work", place: disk.place}
        world = World(tmp_path / "world", format=lake, **places).create()
        if trouble == "full":
            disk.fill()
            assert_fails_in_a_sentence(world.start("failing"), 1, *FULL)
            disk.make_room()
        else:
            disk.read_only()
            # Hadoop's local files do not pass the system's reason on; the place has to be told then.
            assert_fails_in_a_sentence(world.start("failing"), 1, "Read-only file system", str(disk.place))
            disk.writable()
        assert_goes_on_as_if_nothing_had_been(world)
        assert set(world.scorings().values()) == {1}, "what the failing run had scored was lost"


@pytest.mark.slow
def test_a_disk_that_fills_up_while_pairs_are_scored_loses_only_tasks(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        world = World(tmp_path / "world", queries=330, work_at=disk.place).create(**SLOW)
        job = world.start("failing")
        wait_until(world.scorings_so_far, "scoring", job)
        disk.fill()
        assert_fails_in_a_sentence(job, 1, *FULL)
        disk.make_room()
        assert_goes_on_as_if_nothing_had_been(world)


@pytest.mark.parametrize("master", ["local[2,4]", pytest.param("local[2]", marks=pytest.mark.slow)])
def test_a_pair_that_kills_its_worker_is_a_reject(tmp_path: Path, master: str) -> None:
    world = World(tmp_path / "world", master=master).create(kills_worker=DEADLY)
    assert_the_deadly_pair_is_a_reject(world)


@pytest.mark.slow
def test_a_pair_that_kills_its_worker_is_a_reject_on_a_cluster(tmp_path: Path, submit) -> None:
    assert_the_deadly_pair_is_a_reject(World(tmp_path / "world").create(kills_worker=DEADLY), submit)


def assert_the_deadly_pair_is_a_reject(world: World, submit: Sequence[Any] = ()) -> None:
    rows = candidate_rows(world.queries)
    report = world.succeed("deadly", "--set", "run.max_reject_fraction=0.001", submit=submit)
    assert report["rejects"] == {"crashed_worker": 1}
    assert [(row["passage_id"], row["reason"]) for row in world.rejects()] == [("deadly", "crashed_worker")]
    assert world.ranking() == ranking_by_hand(rows, lost=DEADLY)
    world.faults()
    assert world.succeed("healthy", submit=submit)["pairs_scored"] == 1
    assert world.ranking() == ranking_by_hand(rows)
    assert world.rejects() == []


@pytest.mark.slow
def test_too_many_rejects_end_with_3_and_what_is_good_is_stored(tmp_path: Path) -> None:
    world = World(tmp_path / "world").create(not_finite=NOT_FINITE, out_of_memory=DEADLY)
    assert_fails_in_a_sentence(world.start("failing"), 3, "not_finite 1, out_of_memory 1")
    assert world.snapshot() == ()
    assert {row["reason"] for row in world.rejects()} == {"not_finite", "out_of_memory"}
    world.faults()
    assert world.succeed("again")["pairs_scored"] == 2
    assert world.ranking() == ranking_by_hand(candidate_rows(world.queries))


@pytest.mark.slow
@pytest.mark.parametrize("lake", list(SHORT))
def test_two_drivers_at_once_on_one_store_are_both_right(tmp_path: Path, lake: str) -> None:
    one = World(tmp_path / "world", queries=100, format=lake).create(microseconds_per_pair=1500)
    other = World(tmp_path / "world", queries=100, format=lake, name="other").configure()
    few = [row for row in candidate_rows(100) if row["query_id"] < "q00080"]
    with one.start("one") as first, other.start("other", *only_first(80)) as second:
        assert first.wait() == 0, first.text
        assert second.wait() == 0, second.text
    assert one.ranking() == ranking_by_hand(candidate_rows(100))
    assert other.ranking() == ranking_by_hand(few)
    assert max(one.scorings().values()) <= 2
    scored = one.scorings()
    for world in (one, other):
        assert world.succeed("again")["pairs_scored"] == 0
    assert one.scorings() == scored
