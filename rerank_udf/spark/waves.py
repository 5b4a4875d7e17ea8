"""Score what is staged, wave by wave: each a run of buckets, about `wave_minutes` long, written and then appended.

    <work>/scored/<model_key>/<run_id>/<wave>/part-*.parquet     a finished task's file, whole and visible at once

The first wave is a small pilot whose speed sizes the others. Two waves are under way at a time: Spark gives the tasks
of the earlier one precedence, so the later one fills the slots that its tail leaves empty. Appending is a plan of its
own, on a thread beside them.
"""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from rerank_udf import tables
from rerank_udf.errors import RerankError
from rerank_udf.lake import files
from rerank_udf.machine import available_cores
from rerank_udf.spark.adoption import finished_files, read_scored
from rerank_udf.spark.cautious import Attempts
from rerank_udf.spark.placement import TASK_CORES, scoring_slots
from rerank_udf.spark.progress import ScoringProgress
from rerank_udf.spark.scoring import Loadable, co_partitioned, scored
from rerank_udf.spark.staging import BUCKET, PLACE, StagedPairs

_PAIRS_PER_TASK = 20_000
_FEWEST_PAIRS_PER_TASK = 512
_TASK_SECONDS = 120.0
_PILOT_PAIRS_PER_SLOT = 1024
_UNDER_WAY = 2
# A wave is submitted again this often after its workers died without another pair being found that kills alone (the
# first is found by the fourth attempt), and so often in all.
_MOST_ROUNDS_FOR_A_KILLER = 8
_MOST_ROUNDS = 20
_ARROW_BATCH_BYTES = 64 << 20
_ARROW_RECORDS = "spark.sql.execution.arrow.maxRecordsPerBatch"
_CRASHED = re.compile(
    r"Python worker exited unexpectedly|\(crashed\)|PythonWorkerException|SparkException: Python worker|"
    r"java\.io\.EOFException|ExecutorLostFailure|Connection reset"
)
_FAILED_TASK = re.compile(r"Task (\d+) in stage [\d.]+ failed")


@dataclass(frozen=True)
class Wave:
    """Some buckets of the staged pairs."""

    number: int
    buckets: tuple[int, ...]
    pairs: int

    @property
    def name(self) -> str:
        """Its folder's name."""
        return f"wave-{self.number:05}"


@dataclass
class WaveFacts:
    """How a wave went, for the report."""

    wave: int
    pairs: int
    tasks: int
    seconds: float
    pairs_per_second: float
    rounds: int
    started_at: str


@dataclass
class Scoring:
    """One run's scoring: what is staged, by whom it is scored, where results go.

    `appended` is called with the wave after its files are written. `profile`: the ResourceProfile of scoring tasks.
    `most_tasks`: so many may run at once, where Spark itself knows of no devices. `waves_before`: of earlier rounds.
    """

    spark: SparkSession
    staged: StagedPairs
    plan: Loadable
    folder: str
    notes: str
    run_id: str
    wave_seconds: float
    progress: ScoringProgress
    appended: Callable[[Wave], None]
    profile: Any = None
    most_tasks: int | None = None
    waves_before: int = 0
    facts: list[WaveFacts] = field(default_factory=list)

    def run(self) -> None:
        """Score every bucket; what finished before an error is there for `adoption`, and the error is raised."""
        waves = WavePlanner(
            self.staged.sizes, scoring_slots(self.spark, self.profile), self.wave_seconds, self.waves_before
        )
        at_once = _UNDER_WAY if self.most_tasks is None else 1
        with ThreadPoolExecutor(at_once) as scorers, ThreadPoolExecutor(1) as appender:
            try:
                self._drive(waves, at_once, scorers, appender)
            except BaseException:
                self.spark.sparkContext.cancelJobGroup(self.run_id)
                raise

    def _drive(
        self, waves: WavePlanner, at_once: int, scorers: ThreadPoolExecutor, appender: ThreadPoolExecutor
    ) -> None:
        under_way: dict[Future[Any], Wave] = {}
        appends: list[Future[None]] = []
        while True:
            while len(under_way) < at_once and (wave := waves.next()) is not None:
                tasks = min(waves.tasks(wave), self.most_tasks or wave.pairs)
                under_way[scorers.submit(self._score, wave, tasks)] = wave
            if not under_way:
                break
            done, _ = wait(under_way, return_when=FIRST_COMPLETED)
            for future in done:
                wave = under_way.pop(future)
                facts = future.result()
                self.facts.append(facts)
                waves.finished(facts)
                appends.append(appender.submit(self._append, wave))
            for append in appends:  # a store that cannot be written ends the run now, not hours later
                if append.done():
                    append.result()
        for append in appends:
            append.result()

    def _append(self, wave: Wave) -> None:
        self.spark.sparkContext.setJobGroup(
            self.run_id, f"rerank_udf: append {wave.name} to the store", False
        )
        self.appended(wave)

    def _score(self, wave: Wave, tasks: int) -> WaveFacts:
        """Write the wave's scores; again, without what is written already, as often as it takes to find a killer."""
        begun, started_at = monotonic(), _now()
        attempts_a_job = _attempts_a_job(self.spark)
        killers = in_vain = 0
        died: dict[int, int] = {}
        for number in range(_MOST_ROUNDS):
            place = f"{self.folder}/{wave.name}" + (f"-{number}" if number else "")
            self.spark.sparkContext.setJobGroup(self.run_id, f"rerank_udf: score {wave.name}", False)
            if self.most_tasks:  # a local master gives each task one core, and the others would idle
                cores = max(1, available_cores() // self.most_tasks)
                self.spark.sparkContext.setLocalProperty(TASK_CORES, str(cores))
            try:
                self._write(wave, tasks, place, self._attempts(wave, number * attempts_a_job, died))
                seconds = monotonic() - begun
                speed = wave.pairs / seconds
                return WaveFacts(
                    wave.number, wave.pairs, tasks, round(seconds, 3), speed, number + 1, started_at
                )
            except Exception as error:
                if failed := _FAILED_TASK.search(str(error)):
                    died[number * attempts_a_job] = int(failed[1])
                known = killers
                killers = self._killers(self._attempts(wave, (number + 1) * attempts_a_job, died))
                in_vain = 0 if killers > known else in_vain + 1
                last = in_vain == _MOST_ROUNDS_FOR_A_KILLER or number + 1 == _MOST_ROUNDS
                if last or not _CRASHED.search(str(error)):
                    raise
        raise AssertionError("unreachable")

    def _attempts(self, wave: Wave, before: int, died: Mapping[int, int]) -> Attempts:
        reached = files.s3_options(self.spark, self.notes)
        return Attempts(f"{self.notes}/{wave.name}", before, dict(died), reached)

    def _killers(self, attempts: Attempts) -> int:
        """How many pairs are known to kill, as far as the notes can be read from here."""
        try:
            return len(attempts.opened().alone())
        except OSError:
            return 0

    def _write(self, wave: Wave, tasks: int, place: str, attempts: Attempts) -> None:
        pairs, passages = (
            frame.where(F.col(BUCKET).isin(*wave.buckets))
            for frame in (self.staged.pairs, self.staged.passages)
        )
        if attempts.before:
            written = read_scored(self.spark, self.folder, finished_files(self.spark, self.folder))
            if written is not None:
                pairs = pairs.join(written.select(tables.PAIR_KEY), tables.PAIR_KEY, "left_anti")
        laid_out = co_partitioned(pairs, passages, tasks, PLACE)
        facts = scored(laid_out, self.plan, self.progress.pairs, self.progress.tokens, attempts, self.profile)
        # A finished task's file is in place at once; S3A's own committers would show it when the whole job has ended.
        writer = facts.write.option("mapreduce.fileoutputcommitter.algorithm.version", "2")
        writer.option("fs.s3a.committer.name", "file").parquet(place)


class WavePlanner:
    """Which buckets come next, and in how many tasks: by the speed of the waves that have finished."""

    def __init__(
        self, sizes: Mapping[int, int], slot_count: int, wave_seconds: float, waves_before: int = 0
    ) -> None:
        self._left = sorted(sizes.items())
        self._slots = slot_count
        self._wave_seconds = wave_seconds
        self._before = waves_before
        self._speed: float | None = None
        self._given = 0

    def next(self) -> Wave | None:
        """The next wave; None where no bucket is left, or while the pilot has not said how fast this is."""
        if not self._left or (self._speed is None and self._given):
            return None
        wanted = (
            _PILOT_PAIRS_PER_SLOT * self._slots if self._speed is None else self._speed * self._wave_seconds
        )
        total = sum(size for _, size in self._left)
        if total <= 2 * wanted:  # no crumb at the end
            wanted = total
        buckets: list[int] = []
        pairs = 0
        while self._left and (not buckets or pairs + self._left[0][1] / 2 <= wanted):
            bucket, size = self._left.pop(0)
            buckets.append(bucket)
            pairs += size
        self._given += 1
        return Wave(self._before + self._given, tuple(buckets), pairs)

    def finished(self, facts: WaveFacts) -> None:
        """Take its speed for that of the waves to come."""
        self._speed = max(facts.pairs_per_second, 1e-3)

    def tasks(self, wave: Wave) -> int:
        """How many tasks score it: about two minutes each, once the speed is known."""
        if self._speed is None:
            return scoring_tasks(wave.pairs, self._slots)
        a_task = max(1.0, self._speed / self._slots * _TASK_SECONDS)
        return scoring_tasks(wave.pairs, self._slots, min(_PAIRS_PER_TASK, a_task))


def scoring_tasks(pairs: int, slot_count: int, pairs_a_task: float = _PAIRS_PER_TASK) -> int:
    """How many tasks score `pairs`: all slots busy, four rounds where each has enough to sort by length."""
    rounds = min(4 * slot_count, pairs // _FEWEST_PAIRS_PER_TASK)
    return max(1, min(slot_count, pairs), rounds, math.ceil(pairs / pairs_a_task))


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds")


def _attempts_a_job(spark: SparkSession) -> int:
    """How often Spark tries a task before it fails the job."""
    master = str(spark.sparkContext.master)
    if master.startswith("local"):
        found = re.fullmatch(r"local\[[^,]+,\s*(\d+)\]", master)
        return int(found[1]) if found else 1
    return int(spark.sparkContext.getConf().get("spark.task.maxFailures", "4") or 4)


@contextmanager
def small_arrow_batches(spark: SparkSession, staged: StagedPairs) -> Iterator[None]:
    """Spark 3.5 fills an Arrow batch by rows alone: there, few enough that the longest texts fit.

    From 4.0 on a batch has a limit in bytes (spark.sql.execution.arrow.maxBytesPerBatch) and nothing is changed.
    """
    if int(spark.version.split(".")[0]) >= 4:
        yield
        return
    before = int(str(spark.conf.get(_ARROW_RECORDS)))
    fitting = max(1, _ARROW_BATCH_BYTES // max(1, _longest_pair_bytes(staged)))
    spark.conf.set(_ARROW_RECORDS, min(fitting, before) if before > 0 else fitting)
    try:
        yield
    finally:
        spark.conf.set(_ARROW_RECORDS, before)


def _longest_pair_bytes(staged: StagedPairs) -> int:
    longest = [
        frame.agg(F.max(F.octet_length(column))).collect()[0][0] or 0
        for frame, column in ((staged.pairs, tables.QUERY), (staged.passages, tables.PASSAGE))
    ]
    return int(sum(longest))


def scored_facts(spark: SparkSession, folder: str) -> DataFrame:
    """Everything that this run has scored, failed pairs among it (scoring.SCORED_SCHEMA)."""
    found = read_scored(spark, folder, finished_files(spark, folder))
    if found is None:
        raise RerankError(f"no scores in {folder}, where the run has just written them; was it cleared away?")
    return found
