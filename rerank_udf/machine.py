"""This machine: its processor, and how many threads a scoring process may use (stated, never guessed by a library)."""

from __future__ import annotations

import os
from pathlib import Path

MOST_TOKENIZER_THREADS = 8


def task_threads() -> int:
    """Cores that this process may keep busy.

    RERANK_UDF_THREADS if set; else OMP_NUM_THREADS, which Spark sets to `spark.task.cpus`; else the cores
    that the process may run on.
    """
    for name in ("RERANK_UDF_THREADS", "OMP_NUM_THREADS"):
        value = os.environ.get(name, "").split(",")[0].strip()
        if value.isdigit() and int(value) > 0:
            return int(value)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def set_tokenizer_threads() -> None:
    """Tell `tokenizers` its threads, before it is imported, where the environment does not say.

    One less than the task's cores, since the model needs one too; at least 1, at most 8.
    """
    threads = min(MOST_TOKENIZER_THREADS, max(1, task_threads() - 1))
    os.environ.setdefault("RAYON_NUM_THREADS", str(threads))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true" if threads > 1 else "false")


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
