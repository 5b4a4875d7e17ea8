"""What every worker process does: load a model once, then score what it is told to, until told to stop.

A line of JSON comes in on standard input, one goes out. Whatever libraries print goes to standard error, which the
benchmark keeps as a log. Runs in a peer's own environment: the standard library and numpy, nothing else.

{"do": "load", …settings}                                     → facts about what was loaded
{"do": "run", "pairs": file, "batch_size": n, "logits": file} → seconds, ids_seconds, computed_tokens, peak_bytes
{"do": "rate", …}                                             → {"flops": FLOP/s}, where the worker can tell
{"do": "stop"}
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

Pairs = list[tuple[str, str]]


@dataclass(frozen=True)
class Scored:
    """What a run gives: float32 logits (n,); seconds from token ids on, where known; tokens with padding."""

    logits: np.ndarray[Any, Any]
    ids_seconds: float | None = None
    computed_tokens: int | None = None


class Peer(Protocol):
    """An engine under test."""

    def load(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Load the model; plain facts for the report: versions, precision, device."""

    def score(self, pairs: Pairs, batch_size: int | None) -> Scored:
        """Score pairs; everything from texts to logits on the host is timed by the caller."""


def serve(peer: Peer) -> None:
    """Answer commands until "stop" or the end of the input. An exception becomes {"error": …}; the log has more."""
    use_cores()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # prints of libraries must not stand between the answers
    device = None
    for line in sys.stdin:
        command = json.loads(line)
        action = command.pop("do")
        if action == "stop":
            return
        device = command.get("device", device)  # as the model was loaded
        try:
            answer = _answer(peer, action, command, device)
        except Exception as error:
            traceback.print_exc()
            text = str(error).strip() or "no message"
            answer = {"error": f"{type(error).__name__}: {text.splitlines()[0]}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _answer(peer: Peer, action: str, command: dict[str, Any], device: str | None) -> dict[str, Any]:
    if action == "load":
        return peer.load(command)
    if action == "run":
        return _run(peer, command, device)
    measured: dict[str, Any] = getattr(peer, action)(command)
    return measured


def _run(peer: Peer, command: dict[str, Any], device: str | None) -> dict[str, Any]:
    pairs = [(query, passage) for query, passage in json.loads(Path(command["pairs"]).read_text("utf-8"))]
    forget_peak(device)
    start = time.perf_counter()
    scored = peer.score(pairs, command.get("batch_size"))
    seconds = time.perf_counter() - start
    peaks = peak_memory(device)
    give_back_memory()
    if command.get("logits"):
        np.save(command["logits"], np.asarray(scored.logits, dtype=np.float32))
    return {
        "seconds": seconds,
        "ids_seconds": scored.ids_seconds,
        "computed_tokens": scored.computed_tokens,
        **peaks,
    }


def use_cores() -> None:
    """Stay on as many cores as BENCH_THREADS says: libraries that count cores find no more."""
    threads = int(os.environ.get("BENCH_THREADS", "0"))
    if threads and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def threads() -> int:
    """The number of threads that every engine gets."""
    return int(os.environ.get("BENCH_THREADS") or os.cpu_count() or 1)


def forget_peak(device: str | None) -> None:
    """Begin to measure the peak of memory anew, the process's and the device's: loading a model may need more than
    scoring."""
    with contextlib.suppress(OSError):  # then the peak is that since the start
        Path("/proc/self/clear_refs").write_text("5")
    torch = _torch_on_cuda()
    if torch is not None:
        torch.cuda.reset_peak_memory_stats(_card(device))


def peak_memory(device: str | None) -> dict[str, int | None]:
    """Bytes: the process's resident peak, and the device's, None without one."""
    resident = None
    status = Path("/proc/self/status")
    if status.is_file():
        # not getrusage: its peak is inherited from the process that started this one
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        resident = int(line.split()[1]) * 1024
    torch = _torch_on_cuda()
    return {
        "peak_bytes": resident,
        "peak_device_bytes": torch.cuda.max_memory_allocated(_card(device)) if torch is not None else None,
    }


def give_back_memory() -> None:
    """Let other engines have the card's memory that torch keeps for later."""
    torch = _torch_on_cuda()
    if torch is not None:
        torch.cuda.empty_cache()


def _card(device: str | None) -> str | None:
    """What torch calls the card that the model is on; None, torch's own choice, where nobody named one."""
    return device if device is not None and device.startswith("cuda") else None


def _torch_on_cuda() -> Any:
    torch = sys.modules.get("torch")
    return torch if torch is not None and torch.cuda.is_initialized() else None


def versions(*names: str) -> dict[str, str]:
    """Of the packages that are installed here."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": sys.version.split()[0]}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def sorted_batches(lengths: list[int], batch_size: int) -> list[list[int]]:
    """Row numbers in batches, longest rows first."""
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
