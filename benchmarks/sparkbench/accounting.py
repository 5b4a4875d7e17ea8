"""Where the CPU time of a Spark job goes: a process tree by /proc, tasks by Spark's event log, a scorer by itself.

Linux only. Times are CPU seconds, user and system, so they mean the same on a machine that is busy with other work.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_TICK = os.sysconf("SC_CLK_TCK")
_LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class TreeCpu:
    """CPU seconds so far of this process (`driver`), of its Java child (`jvm`), and of all else below (`workers`)."""

    driver: float
    jvm: float
    workers: float

    @property
    def total(self) -> float:
        return self.driver + self.jvm + self.workers

    def __sub__(self, before: TreeCpu) -> TreeCpu:
        return TreeCpu(self.driver - before.driver, self.jvm - before.jvm, self.workers - before.workers)

    def __add__(self, more: TreeCpu) -> TreeCpu:
        return TreeCpu(self.driver + more.driver, self.jvm + more.jvm, self.workers + more.workers)


class CpuWatch:
    """CPU seconds of this process and all its descendants, those that have ended included.

    A thread looks every half second and keeps what it saw last of each process: Spark's Python daemon ignores SIGCHLD,
    so the kernel forgets the CPU time of a worker that ends. What the thread uses itself is left out.
    """

    def __init__(self) -> None:
        self._seen: dict[tuple[int, int], _Stat] = {}
        self._own_use = 0.0
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="cpu-watch", daemon=True)

    def __enter__(self) -> CpuWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def read(self) -> TreeCpu:
        """CPU seconds so far."""
        with self._lock:
            self._look()
            seconds = {"driver": -self._own_use, "jvm": 0.0, "workers": 0.0}
            for (pid, _), stat in self._seen.items():
                kind = "driver" if pid == os.getpid() else "jvm" if stat.name == "java" else "workers"
                seconds[kind] += stat.cpu
        return TreeCpu(**seconds)

    def _watch(self) -> None:
        while not self._stop.wait(_LOOK_SECONDS):
            with self._lock:
                self._look()
            self._own_use = time.thread_time()

    def _look(self) -> None:
        found = {stat.pid: stat for stat in _processes()}
        for stat in found.values():
            if (stat.pid, stat.started) in self._seen or _descends(stat.pid, os.getpid(), found):
                self._seen[stat.pid, stat.started] = stat


@dataclass(frozen=True)
class _Stat:
    pid: int
    parent: int
    started: int
    name: str
    cpu: float


def _processes() -> Iterator[_Stat]:
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                text = (folder / "stat").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended meanwhile
            head, _, rest = text.rpartition(")")
            fields = rest.split()  # from the third field of proc(5)'s stat on
            cpu = (int(fields[11]) + int(fields[12])) / _TICK
            yield _Stat(int(folder.name), int(fields[1]), int(fields[19]), head.partition("(")[2], cpu)


def _descends(pid: int, root: int, found: dict[int, _Stat]) -> bool:
    while pid in found and pid != root:
        pid = found[pid].parent
    return pid == root


# --- the event log ---

LOGGED = {
    "spark.eventLog.enabled": "true",
    "spark.eventLog.compress": "false",
    "spark.eventLog.rolling.enabled": "false",
}


@dataclass
class StageCost:
    """One stage: CPU of its tasks in the JVM, bytes it shuffled and spilled. `begun`: seconds since the epoch."""

    stage: int
    execution: int | None
    begun: float
    tasks: int = 0
    task_cpu: float = 0.0
    task_seconds: float = 0.0
    gc_seconds: float = 0.0
    shuffled: int = 0
    spilled_memory: int = 0
    spilled_disk: int = 0
    read: int = 0
    written: int = 0


def stages(folder: Path) -> list[StageCost]:
    """The stages in the one event log in `folder`, in the order in which they began."""
    (log,) = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    costs: dict[int, StageCost] = {}
    execution_of: dict[int, int | None] = {}
    with log.open(encoding="utf-8") as lines:
        for line in lines:
            event = json.loads(line)
            kind = event["Event"]
            if kind == "SparkListenerJobStart":
                execution = event.get("Properties", {}).get("spark.sql.execution.id")
                for stage in event["Stage IDs"]:
                    execution_of.setdefault(stage, int(execution) if execution else None)
            elif kind == "SparkListenerStageSubmitted":
                info = event["Stage Info"]
                number = info["Stage ID"]
                begun = info.get("Submission Time", 0) / 1000
                costs.setdefault(number, StageCost(number, execution_of.get(number), begun))
            elif kind == "SparkListenerTaskEnd":
                _add_task(costs[event["Stage ID"]], event.get("Task Metrics") or {})
    return sorted(costs.values(), key=lambda cost: (cost.begun, cost.stage))


def _add_task(cost: StageCost, metrics: dict[str, Any]) -> None:
    cost.tasks += 1
    cost.task_cpu += (
        metrics.get("Executor CPU Time", 0) + metrics.get("Executor Deserialize CPU Time", 0)
    ) / 1e9
    cost.task_seconds += metrics.get("Executor Run Time", 0) / 1e3
    cost.gc_seconds += metrics.get("JVM GC Time", 0) / 1e3
    cost.shuffled += metrics.get("Shuffle Write Metrics", {}).get("Shuffle Bytes Written", 0)
    cost.spilled_memory += metrics.get("Memory Bytes Spilled", 0)
    cost.spilled_disk += metrics.get("Disk Bytes Spilled", 0)
    cost.read += metrics.get("Input Metrics", {}).get("Bytes Read", 0)
    cost.written += metrics.get("Output Metrics", {}).get("Bytes Written", 0)


# --- phases of the driver's clock ---


@dataclass
class Phases:
    """CPU and wall-clock seconds between marks, by name; a phase may come several times. `begun`: (moment, name)."""

    watch: CpuWatch
    cpu: dict[str, TreeCpu] = field(default_factory=dict)
    begun: list[tuple[float, str]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def measured(self, name: str, block: Any) -> Iterator[None]:
        """Run the context manager `block` as the phase `name`."""
        before, clock = self.watch.read(), time.perf_counter()
        self.begun.append((time.time(), name))
        with block:
            yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - clock
        used = self.watch.read() - before
        self.cpu[name] = self.cpu[name] + used if name in self.cpu else used

    def of(self, moment: float) -> str:
        """The phase that had begun last at `moment` (seconds since the epoch)."""
        earlier = [mark for mark in self.begun if mark[0] <= moment + 0.002]
        return max(earlier, default=(0.0, "before"))[1]


# --- the scorer ---


class MeasuredScorer:
    """A scorer that writes down, in `folder`, the CPU seconds that it used in this process.

    All of the process's threads from the first pair of a stream to its last, less what the calling thread did
    outside the scorer: reading Arrow batches from Spark and writing the answers.
    """

    def __init__(self, scorer: Any, folder: Path) -> None:
        self._scorer, self._folder = scorer, folder

    def describe(self) -> dict[str, Any]:
        return dict(self._scorer.describe())

    def stream(self, pairs: Iterable[tuple[Any, Any]]) -> Iterator[Any]:
        begun, outside = time.process_time(), _Outside()
        wall = time.perf_counter()
        for scored in self._scorer.stream(outside.pulled(pairs)):
            with outside:
                yield scored
        used = {
            "cpu": time.process_time() - begun - outside.seconds,
            "wall": time.perf_counter() - wall,
        }
        (self._folder / f"{os.getpid()}-{time.time_ns()}.json").write_text(json.dumps(used))


class _Outside:
    """CPU seconds of the calling thread inside `with` blocks and while it pulls from an iterator."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._begun = 0.0

    def __enter__(self) -> None:
        self._begun = time.thread_time()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.thread_time() - self._begun

    def pulled(self, items: Iterable[Any]) -> Iterator[Any]:
        source = iter(items)
        while True:
            with self:
                item = next(source, self)
            if item is self:
                return
            yield item


def scorer_use(folder: Path) -> dict[str, float]:
    """Sum of what MeasuredScorers wrote into `folder`: {"cpu": CPU seconds, "wall": seconds}."""
    total: dict[str, float] = defaultdict(float)
    for path in folder.glob("*.json"):
        for name, value in json.loads(path.read_text()).items():
            total[name] += value
    return {"cpu": total["cpu"], "wall": total["wall"]}
