"""The job on a real standalone cluster, by spark-submit with the built wheel: one model a device, whoever dies."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from fault_world import World, candidate_rows, ranking_by_hand
from job_processes import PYTHON_WORKER, kill, wait_until
from standalone import PROPERTIES, Cluster, Host, bare_python, spark_version, standalone, submission

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

DEVICES = ("0", "1", "2", "3")
# Over conf/spark/standalone.conf, which is for a larger cluster.
SIZES = {
    "spark.cores.max": "4",
    "spark.executor.cores": "2",
    "spark.executor.resource.gpu.amount": "2",
    "spark.python.factory.idleWorkerMaxPoolSize": "2",
}
if spark_version() < (4, 0):  # before there were profiles for mapInArrow
    SIZES["spark.task.resource.gpu.amount"] = "1"
# What each of two workers says of its devices. Two executors of one node may well be told the same two numbers, of four
# devices that the node has: then leases keep them apart.
LAYOUTS = {
    "own addresses": (("0,1", "2,3"), {}),
    "the same addresses": (("0,1", "0,1"), {"spark.executorEnv.RERANK_UDF_FAKE_DEVICES": ",".join(DEVICES)}),
}


class Leases(threading.Thread):
    """Watches which process holds which device, by the kernel's own table of locks."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self._folder = folder
        self._over = threading.Event()
        self.held: dict[int, set[str]] = defaultdict(set)

    def run(self) -> None:
        while not self._over.wait(0.05):
            for pid, device in self.now().items():
                self.held[pid].add(device)

    def now(self) -> dict[int, str]:
        """Process → device."""
        devices = {path.stat().st_ino: path.stem for path in self._folder.glob("*.lock")}
        found = {}
        for line in Path("/proc/locks").read_text().splitlines():
            kind, _, _, pid, place = line.replace("-> ", "").split()[1:6]
            device = devices.get(int(place.rsplit(":", 1)[1]))
            if kind == "FLOCK" and "->" not in line and device is not None:
                found[int(pid)] = device
        return found

    def __enter__(self) -> Leases:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()


@pytest.fixture(scope="module", params=LAYOUTS)
def placed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, wheel_archive: Path
) -> Iterator[tuple[Cluster, Sequence[Any], Path]]:
    """A cluster of two workers with two cores and two devices each, how to submit to it, and the leases' folder."""
    devices, told = LAYOUTS[request.param]
    leases = tmp_path_factory.mktemp("leases")
    python = bare_python(tmp_path_factory.mktemp("python"))
    hosts = [Host(cores=2, devices=names) for names in devices]
    cache = str(tmp_path_factory.mktemp("node-cache"))
    own = {"spark.executorEnv.RERANK_UDF_LEASES": str(leases), "spark.executorEnv.RERANK_UDF_CACHE": cache}
    with standalone(tmp_path_factory.mktemp("cluster"), hosts, {}) as cluster:
        yield cluster, submission(cluster.url, python, wheel_archive, SIZES | told | own, PROPERTIES), leases


def scoring_processes(world: World) -> set[int]:
    """The pids of all that have scored a pair."""
    return {int(file.name.split("-")[0]) for file in world.journal.glob("*.keys")}


def test_every_device_has_one_model(placed, tmp_path: Path) -> None:
    _, submit, folder = placed
    world = World(tmp_path / "world", queries=330).create(microseconds_per_pair=1500)
    with Leases(folder) as leases:
        report = world.succeed("job", submit=submit)
    assert world.ranking() == ranking_by_hand(candidate_rows(world.queries))
    assert set(world.scorings().values()) == {1}
    assert report["models_loaded"] == len(report["devices"]) == len(DEVICES)
    check_leases(leases, world, processes=len(DEVICES))


def test_a_worker_that_is_killed_gives_its_device_to_another(placed, tmp_path: Path) -> None:
    cluster, submit, folder = placed
    world = World(tmp_path / "world", queries=330).create(microseconds_per_pair=1500)
    with Leases(folder) as leases, world.start("job", submit=submit) as job:
        wait_until(lambda: len(scoring_processes(world)) == len(DEVICES), "scoring on every device", job)
        victim = next(one for one in cluster.find(PYTHON_WORKER) if one.pid in leases.now())
        kill([victim])
        assert job.wait() == 0, job.text
    assert world.ranking() == ranking_by_hand(candidate_rows(world.queries))
    assert world.rejects() == []
    report = world.report()
    assert len(report["devices"]) == len(DEVICES)
    check_leases(leases, world, processes=len(DEVICES) + 1)


def check_leases(leases: Leases, world: World, processes: int) -> None:
    """Whoever scored held a device of its own, and only one. (That none had two holders is the kernel's promise.)"""
    scored = scoring_processes(world)
    assert len(scored) == processes
    assert {pid: len(leases.held[pid]) for pid in scored} == dict.fromkeys(scored, 1)
    assert {device for pid in scored for device in leases.held[pid]} == {f"fake-{name}" for name in DEVICES}
    wait_until(lambda: not leases.now(), "an end of all leases")
