"""What a figure was measured on."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from rerank_udf.machine import available_cores, processor_flags, processor_name

_TELLING_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


def describe_machine() -> dict[str, Any]:
    """Processor, cores, memory, system, NVIDIA cards: plain values."""
    return {
        "processor": processor_name(),
        "flags": [flag for flag in _TELLING_FLAGS if flag in processor_flags()],
        "cores": cores(),
        "memory_gib": _memory_gib(),
        "system": f"{platform.system()} {platform.release()}",
        "python": sys.version.split()[0],
        "load_average_at_start": [round(load, 2) for load in os.getloadavg()],
        "cards": _cards(),
    }


def cores() -> int:
    """Cores that this process may run on."""
    return available_cores()


def _memory_gib() -> float | None:
    information = Path("/proc/meminfo")
    if not information.is_file():
        return None
    first = information.read_text().split("\n", 1)[0]
    return round(int(first.split()[1]) / 2**20, 1)


def _cards() -> list[str]:
    query = [
        "nvidia-smi",
        "--query-gpu=name,memory.total,driver_version,power.limit",
        "--format=csv,noheader",
    ]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()] if done.returncode == 0 else []
