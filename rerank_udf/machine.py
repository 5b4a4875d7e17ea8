"""This machine: its processor, its disks, and the threads of a scoring process (stated, never guessed by a library)."""

from __future__ import annotations

import errno
import math
import os
from pathlib import Path

MOST_TOKENIZER_THREADS = 8
_CGROUP = Path("/sys/fs/cgroup")
# quota and period in microseconds, of control groups version 2 and of version 1
_QUOTA_FILES = (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"))


def task_threads() -> int:
    """Cores that this process may keep busy.

    RERANK_UDF_THREADS if set; else OMP_NUM_THREADS, which Spark sets to `spark.task.cpus`; else what
    `available_cores` finds.
    """
    for name in ("RERANK_UDF_THREADS", "OMP_NUM_THREADS"):
        value = os.environ.get(name, "").split(",")[0].strip()
        if value.isdigit() and int(value) > 0:
            return int(value)
    return available_cores()


def available_cores() -> int:
    """Cores that this process may run on, no more than its container's quota pays for.

    A quota of two and a half cores is two: where threads wait for one another, one that has used up its share of the
    time holds up all.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min(cores, _quota())))


def _quota() -> float:
    """Cores whose time the process's control group may use; infinity where nothing limits it."""
    for names in _QUOTA_FILES:
        try:
            quota, period = " ".join((_CGROUP / name).read_text() for name in names).split()
        except (OSError, ValueError):
            continue
        if quota.isdigit() and period.isdigit():  # else "max", or -1
            return int(quota) / int(period)
    return math.inf


def write_refusal(path: Path) -> str | None:
    """Why this process can write nothing into the folder `path`, there or still to be made; None where it can."""
    there = next(folder for folder in (path, *path.parents) if os.access(folder, os.F_OK))
    if not there.is_dir():
        return f"{there} is a file"
    if os.statvfs(there).f_flag & os.ST_RDONLY:
        return f"{there}: {os.strerror(errno.EROFS)}"
    return None if os.access(there, os.W_OK | os.X_OK) else f"{there}: {os.strerror(errno.EACCES)}"


_told: dict[str, str] = {}  # variable → what this module has set it to


def set_tokenizer_threads() -> None:
    """Tell `tokenizers` its threads, before it is imported, where the environment does not say.

    One less than the task's cores, since the model needs one too; at least 1, at most 8. A worker may serve a task of
    another size later: what was told here, and by nobody else, is told anew. But the library makes its threads at its
    first use of more than one, and their number stays: then a later task has as many, or one.
    """
    threads = min(MOST_TOKENIZER_THREADS, max(1, task_threads() - 1))
    if os.environ.get("RAYON_NUM_THREADS", "1") == "1":
        tell("RAYON_NUM_THREADS", str(threads))
    tell("TOKENIZERS_PARALLELISM", "true" if threads > 1 else "false")


def has_told(name: str) -> bool:
    """Whether a variable is what this process has set it to, at some time."""
    return name in _told


def tell(name: str, value: str) -> None:
    """Set a variable of the environment, unless somebody else has."""
    if os.environ.get(name) in (None, _told.get(name)):
        os.environ[name] = _told[name] = value


def processor_flags() -> frozenset[str]:
    """What the processor says it can do (Linux on x86; empty elsewhere)."""
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(errors="replace").splitlines():
            if line.startswith("flags"):
                return frozenset(line.partition(":")[2].split())
    return frozenset()


def processor_name() -> str:
    """The processor's own name, or the machine type where the system does not tell."""
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return os.uname().machine if hasattr(os, "uname") else "cpu"
