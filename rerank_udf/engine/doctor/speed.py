"""How fast, how much of the machine, how much memory, and how many cores the tokeniser needs to keep up."""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt
import torch

from rerank_udf.encoding import TextCache, TextEncoder, tokenizer_threads
from rerank_udf.engine.backend import Backend
from rerank_udf.engine.doctor.report import Memory, Speed, TokenizerSpeed
from rerank_udf.engine.doctor.samples import LONGEST, demo_texts, random_sequences, realistic_lengths
from rerank_udf.engine.rates import matrix_product_rate, necessary_flops
from rerank_udf.models.checkpoint import Architecture
from rerank_udf.packing import WINDOW_PAIRS, RowNumbers, plan_batches
from rerank_udf.tokens import read_tokenizer

PAIRS_PER_PASSAGE = (1, 10, 100)
MOST_SECONDS = 4.0
TOKENIZER_SECONDS = 1.0
_QUEUED_BATCHES = 32
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def measure_speed(backend: Backend, architecture: Architecture, max_tokens: int, most_tokens: int) -> Speed:
    """Score a window of realistic lengths, planned as a job plans it; as many of its batches as there is time for.

    The batches run twice: the first run is the warm-up and says how many there is time for.
    """
    lengths = realistic_lengths(WINDOW_PAIRS, most_tokens)
    planned = plan_batches(lengths, max_tokens, backend.layout)
    # The first of them are to be a sample of all lengths, not the longest
    order = np.random.default_rng(0).permutation(len(planned))
    at_once = 1 if backend.device == "cpu" else _QUEUED_BATCHES
    chunks = [[planned[i] for i in order[start : start + at_once]] for start in range(0, len(order), at_once)]
    done = _run(backend, architecture, lengths, chunks, MOST_SECONDS)[1]
    took, _ = _run(backend, architecture, lengths, chunks[:done], None)
    scored = lengths[np.concatenate([rows for chunk in chunks[:done] for rows in chunk])]
    rows = 1024 if backend.device == "cpu" else max(1024, max_tokens)
    rate = matrix_product_rate(backend.precision, backend.device, architecture, rows)
    return Speed(
        tokens_per_second=float(scored.sum()) / took,
        sequences=len(scored),
        mean_tokens=float(scored.mean()),
        product_rate=rate,
        rows=rows,
        share=necessary_flops(architecture, scored) / took / rate,
    )


def _run(
    backend: Backend,
    architecture: Architecture,
    lengths: npt.NDArray[np.int64],
    chunks: list[list[RowNumbers]],
    limit: float | None,
) -> tuple[float, int]:
    """Seconds in the backend, and chunks done; ends with the chunk in which `limit` seconds are over."""
    took = 0.0
    for done, chunk in enumerate(chunks, start=1):
        batches = [random_sequences(architecture, lengths[rows].tolist(), seed=done) for rows in chunk]
        start = time.perf_counter()
        backend.finish([backend.start(batch) for batch in batches])
        took += time.perf_counter() - start
        if limit is not None and took > limit:
            return took, done
    return took, len(chunks)


def measure_tokenizer(path: Path, tokens_per_second: float) -> TokenizerSpeed:
    """Encode the demo's texts as a job does: many in a call, with a task's threads, each text once.

    The library remembers the words that it has split, and the texts are few: it is made to forget before each pass, or
    the second would be two to three times as fast as any job, whose texts are new. Versions without `_clear_cache` go
    on remembering. `tokens_per_second`: of the device, which so many cores keep busy.
    """
    tokenizer, texts = read_tokenizer(path), demo_texts()
    encoder, forget = TextEncoder(tokenizer, LONGEST), getattr(tokenizer.model, "_clear_cache", None)
    tokens, took = 0, 0.0
    while took < TOKENIZER_SECONDS:
        if forget is not None:
            forget()
        start = time.perf_counter()
        encoded = encoder.encode(texts, TextCache())
        took += time.perf_counter() - start
        tokens += sum(text.tokens for text in encoded)
    threads = tokenizer_threads()
    rate = tokens / took / threads
    cores = {pairs: tokens_per_second / rate / pairs for pairs in PAIRS_PER_PASSAGE}
    return TokenizerSpeed(rate, len(texts), threads, cores)


class PeakMemory:
    """How much memory a device's work took at most since `with` was entered.

    On CUDA what torch allocated; on a CPU by how much the process's resident memory grew (Linux only).
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._before: int | None = 0

    def __enter__(self) -> PeakMemory:
        if self._device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before = torch.cuda.memory_allocated(self._device)
        else:
            self._before = _resident_bytes("VmRSS") if _forget_peak() else None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, stack: TracebackType | None
    ) -> None:
        """Nothing to undo."""

    def found(self, predicted_bytes: int | None) -> Memory:
        """The peak so far, beside what was predicted."""
        if self._device.startswith("cuda"):
            allocated = torch.cuda.max_memory_allocated(self._device) - (self._before or 0)
            return Memory(predicted_bytes, allocated, "torch.cuda.max_memory_allocated")
        peak, before = _resident_bytes("VmHWM"), self._before
        grown = None if peak is None or before is None else max(0, peak - before)
        return Memory(predicted_bytes, grown, "growth of resident memory, loading included")


def _resident_bytes(name: str) -> int | None:
    """VmRSS (now) or VmHWM (peak) of this process; None off Linux."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)


def _forget_peak() -> bool:
    """Let the peak of resident memory start anew; False where the system does not."""
    try:
        _RESET.write_text("5")  # proc(5): sets VmHWM to the current value
    except OSError:
        return False
    return True
