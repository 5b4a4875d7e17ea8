"""Commands that are started to be killed: each in a session of its own, in which all its processes are found."""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import psutil

DRIVER_JVM = "driver jvm"
DRIVER_PYTHON = "driver python"
EXECUTOR = "executor"
PYTHON_WORKER = "python worker"
_PYTHON_DAEMON = "python daemon"
_BY_CLASS = {
    "org.apache.spark.deploy.SparkSubmit": DRIVER_JVM,
    "org.apache.spark.executor.CoarseGrainedExecutorBackend": EXECUTOR,
    "org.apache.spark.deploy.worker.Worker": "worker",
    "org.apache.spark.deploy.master.Master": "master",
}
# Where there is such a command, whatever ends the tests ends what they started: SIGKILL too, which runs no clean-up.
_NEVER_ORPHANED = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
PATIENCE_SECONDS = 600.0  # no test waits so long for anything unless it is broken


class Job:
    """A running command. Whatever it starts, daemons of daemons included, ends with it: see `end`."""

    def __init__(
        self, command: Sequence[Any], folder: Path, environment: Mapping[str, str], name: str
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.out, self.err = folder / f"{name}.out", folder / f"{name}.err"
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self._started = subprocess.Popen(
                [*_NEVER_ORPHANED, *(str(part) for part in command)],
                cwd=folder,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        atexit.register(self.end)

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    @property
    def exit_code(self) -> int | None:
        """None while the command runs; negative where a signal ended it."""
        return self._started.poll()

    @property
    def text(self) -> str:
        """What it has printed so far, for messages."""
        return (
            f"{self.out.read_text(errors='replace')[-3000:]}\n{self.err.read_text(errors='replace')[-5000:]}"
        )

    def processes(self) -> list[psutil.Process]:
        """Everything that lives in its session, whoever its parent is now."""
        return [process for process in psutil.process_iter() if _session(process) == self._started.pid]

    def find(self, *kinds: str) -> list[psutil.Process]:
        """Its processes of these kinds."""
        return [process for process in self.processes() if _kind(process) in kinds]

    def wait(self) -> int:
        """The exit code of the command, once it has one."""
        try:
            return self._started.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {PATIENCE_SECONDS:.0f} s:\n{self.text}") from None

    def finish(self) -> int:
        """As `wait`, and ends what the command may have left behind."""
        code = self.wait()
        self.end()
        return code

    def end(self) -> None:
        """SIGKILL for everything in its session, until nothing is left there."""
        while left := self.processes():
            kill(left)
        self._started.wait()
        atexit.unregister(self.end)


def kill(processes: Iterable[psutil.Process]) -> list[int]:
    """SIGKILL, as a lost machine or the kernel's out-of-memory killer would; returns the pids, once they are gone."""
    victims = list(processes)
    for process in victims:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    # psutil's own waiting would take the exit code away from whoever started the process
    wait_until(lambda: not any(_session(process) for process in victims), "an end of what was killed")
    return [process.pid for process in victims]


def children_of(process: psutil.Process) -> list[psutil.Process]:
    """All that descend from a process, none where it has ended."""
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def wait_until(happens: Any, what: str, job: Job | None = None) -> Any:
    """Wait for `happens()` to be true and return it; fails if that takes too long, or if the job ends before."""
    begun = monotonic()
    while not (found := happens()):
        ended = job is not None and job.exit_code is not None
        if ended or monotonic() - begun > PATIENCE_SECONDS:
            told = f"\n{job.text}" if job else ""
            raise AssertionError(f"{what}: {'the job ended before' if ended else 'never'}{told}")
        sleep(0.02)
    return found


def _session(process: psutil.Process) -> int | None:
    try:
        return None if process.status() == psutil.STATUS_ZOMBIE else os.getsid(process.pid)
    except (psutil.NoSuchProcess, ProcessLookupError):
        return None


def _kind(process: psutil.Process) -> str | None:
    try:
        command, parent = process.cmdline(), process.parent()
        if "pyspark.daemon" in command:
            return PYTHON_WORKER if parent and "pyspark.daemon" in parent.cmdline() else _PYTHON_DAEMON
    except psutil.NoSuchProcess:
        return None
    for part in command:
        if part in _BY_CLASS:
            return _BY_CLASS[part]
    is_driver = any(part == "rerank_udf.cli" or part.endswith("jobs/rerank.py") for part in command)
    return DRIVER_PYTHON if is_driver else None
