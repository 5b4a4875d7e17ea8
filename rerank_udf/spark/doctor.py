"""The doctor on every executor: each device once, however many tasks and executors see it.

Spark has no "run this on every executor", so as many tasks start at once as there are slots, and each holds its slot
until it has examined something or waited a while. The first task to claim a device, by a file on its node, examines it.
"""

from __future__ import annotations

import os
import pickle
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
from pyspark.sql import SparkSession

from rerank_udf.config import Model
from rerank_udf.engine.doctor.report import Answer, ClusterReport
from rerank_udf.errors import ConfigError, RerankError
from rerank_udf.spark.model import plan_for_job
from rerank_udf.spark.session import slots

if TYPE_CHECKING:
    from rerank_udf.engine import ScorerPlan

HOLD_SECONDS = 5.0
MOST_ROUNDS = 3
_CLAIMS = f"rerank-udf-doctor-{os.getuid()}"  # each user's own
_DAY_SECONDS = 86_400


def examine_cluster(spark: SparkSession, model: Model) -> ClusterReport:
    """Examine every device that the session's executors see, with the model and settings of a job.

    Raises what `plan_for_job` raises, and ConfigError for the hash scorer. What goes wrong on one executor is an
    answer of its own.
    """
    plan = plan_for_job(spark, model)
    if plan.files.architecture is None:
        raise ConfigError(f"{plan.files.name} is scored by a hash of the pair: there is no model to examine")
    run = uuid.uuid4().hex
    answers: list[Answer] = []
    known = 1
    for _ in range(MOST_ROUNDS):
        answers += _answers(spark, plan, run)
        known = known_executors(spark)
        if len({answer.executor for answer in answers}) >= known:
            break
    return ClusterReport(tuple(answers), known)


def known_executors(spark: SparkSession) -> int:
    """How many executors the session has now; a local session's driver is one."""
    infos = spark.sparkContext._jsc.sc().statusTracker().getExecutorInfos()
    return max(1, len(infos) - 1)  # the driver is among them


def _answers(spark: SparkSession, plan: ScorerPlan, run: str) -> list[Answer]:
    tasks = slots(spark)
    rows = spark.range(tasks, numPartitions=tasks).mapInArrow(answer_in_arrow(plan, run), "answer binary")
    return [pickle.loads(bytes(row["answer"])) for row in rows.collect()]


def answer_in_arrow(
    plan: ScorerPlan, run: str
) -> Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """The function for `mapInArrow`: whatever rows in, pickled `Answer`s out; `run` names this examination."""

    def answer(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            if batch.num_rows:
                found = [pickle.dumps(answer) for answer in answers_here(plan, run)]
                yield pa.RecordBatch.from_arrays([pa.array(found, pa.binary())], ["answer"])

    return answer


def answers_here(plan: ScorerPlan, run: str) -> list[Answer]:
    """Examine the devices that this process sees and nobody has claimed; at least one answer."""
    from rerank_udf.engine.doctor.host import visible_devices

    host = socket.gethostname()
    executor = f"{host}/{os.getppid()}"  # of all of an executor's Python workers the parent is one daemon
    heard = Answer(host, executor, None, None, None)
    claims = Path(tempfile.gettempdir()) / _CLAIMS / run
    claims.mkdir(parents=True, exist_ok=True)
    _forget_old(claims.parent)
    answers = [
        _examined(replace(heard, device=device), plan)
        for device, identity in visible_devices(plan.device)
        if _claim(claims, identity or f"cpu-{os.getppid()}")
    ]
    if not answers:
        time.sleep(HOLD_SECONDS)  # a free slot here would draw the tasks that others wait for
    return answers or [heard]


def _examined(heard: Answer, plan: ScorerPlan) -> Answer:
    from rerank_udf.engine.doctor import examine

    assert heard.device is not None
    try:
        return replace(heard, report=examine(replace(plan, device=heard.device)))
    except RerankError as error:
        return replace(heard, error=str(error))
    except Exception as error:  # a card that fails in a new way is what the doctor is for
        first = (str(error).strip().splitlines() or ["no message"])[0]
        return replace(heard, error=f"{type(error).__name__}: {first}")


def _claim(claims: Path, identity: str) -> bool:
    """Whether this process is the first on its node to ask."""
    try:
        (claims / identity.replace("/", "-")).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _forget_old(folder: Path) -> None:
    """Delete the claims of examinations that began more than a day ago."""
    for claims in folder.iterdir():
        try:
            if time.time() - claims.stat().st_mtime > _DAY_SECONDS:
                shutil.rmtree(claims, ignore_errors=True)
        except FileNotFoundError:
            continue  # another executor was faster
