"""What every torch backend shares: its device, exact products, and which errors mean a full memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from rerank_udf.engine.backend import OutOfMemoryError
from rerank_udf.errors import ModelError
from rerank_udf.machine import processor_name, task_threads
from rerank_udf.models.checkpoint import Architecture

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# XQuAD pairs, bfloat16: best of 256 to 16,384 on one core, 12 x 384; on two cores no more tokens were better
CPU_TOKENS_PER_CORE = 2048
_MOST_CPU_TOKENS = 16384
_TOKENS_PER_MULTIPROCESSOR = 128
_WIDE = 1024  # the hidden size at which so many tokens keep a multiprocessor busy
_SLACK = 1.25  # temporary tensors, and what the allocator cannot use
_USABLE_MEMORY = 0.9
# torch.backends.cuda.matmul's switches; the last came with torch 2.7
_INEXACT = (
    "allow_fp16_reduced_precision_reduction",
    "allow_bf16_reduced_precision_reduction",
    "allow_fp16_accumulation",
)
# What a plain RuntimeError says of the host's memory; of the device's where a library other than torch's allocator
# asked for it
_FULL = (
    "can't allocate memory",
    "not enough memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


def torch_device(device: str) -> torch.device:
    """The device that "auto", "cpu", "cuda" or "cuda:N" means here. Raises ModelError where CUDA is absent."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ModelError(
            f"device is {device}, but this torch ({torch.__version__}) sees no CUDA device: {_why_no_cuda()}; mend "
            "the driver or take a torch that was built for it, or set device: cpu"
        )
    return torch.device(device)


def _why_no_cuda() -> str:
    """torch's own words: a driver that is absent or too old, say. Only asking for CUDA makes it tell."""
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (AssertionError, RuntimeError) as error:
        return str(error).split("\n")[0].rstrip(".")
    return "it does not say why"


def device_name(device: torch.device) -> str:
    """The card's or the processor's own name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()


def token_budget(device: torch.device, architecture: Architecture, precision: str) -> int:
    """Tokens of a batch that keep the device busy, at most what its free memory holds; so many for each core of a CPU.

    The model's weights are on the device already.
    """
    if device.type != "cuda":
        return min(_MOST_CPU_TOKENS, CPU_TOKENS_PER_CORE * task_threads())
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    free, _ = torch.cuda.mem_get_info(device)
    most = int(_USABLE_MEMORY * free / bytes_per_token(architecture, precision))
    return max(1, min(busy_tokens(processors, architecture.hidden), most))


def busy_tokens(multiprocessors: int, hidden: int) -> int:
    """Tokens of a batch that keep a GPU busy: 128 for each multiprocessor, more for narrow models."""
    return int(_TOKENS_PER_MULTIPROCESSOR * multiprocessors * max(1.0, _WIDE / hidden))


def bytes_per_token(architecture: Architecture, precision: str) -> float:
    """Device memory that a batch takes for each of its tokens, beside the weights."""
    return _SLACK * 2 * (architecture.hidden + architecture.intermediate) * DTYPES[precision].itemsize


@contextlib.contextmanager
def exact_products() -> Iterator[None]:
    """No TF32 in float32, no 16-bit sums in 16 bits: while a batch runs, then as the caller had it."""
    matmul = torch.backends.cuda.matmul
    before = {name: getattr(matmul, name) for name in _INEXACT if hasattr(matmul, name)}
    for name in before:
        setattr(matmul, name, False)
    try:
        with _no_tf32():
            yield
    finally:
        for name, allowed in before.items():
            setattr(matmul, name, allowed)


@contextlib.contextmanager
def _no_tf32() -> Iterator[None]:
    """By the switch that the process has used: torch 2.9 brought another one, and after its use the older raises."""
    try:
        older = torch.get_float32_matmul_precision()
    except RuntimeError:
        with _no_tf32_by_backend():
            yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(older)


@contextlib.contextmanager
def _no_tf32_by_backend() -> Iterator[None]:
    mkldnn: Any = torch.backends.mkldnn
    switches: list[Any] = [torch.backends.cuda.matmul, mkldnn.matmul]
    before = [one.fp32_precision for one in switches]
    try:
        for one in switches:
            one.fp32_precision = "ieee"
        yield
    finally:
        for one, precision in zip(switches, before, strict=True):
            one.fp32_precision = precision


@contextlib.contextmanager
def memory_errors(device: torch.device) -> Iterator[None]:
    """Raise the engine's OutOfMemoryError where torch or the system says that memory is full.

    Other errors pass as they are: after a device assert or an illegal access the process is spoilt.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_full(error):
            raise
        if device.type == "cuda":
            torch.cuda.empty_cache()  # smaller blocks are asked for next
        raise OutOfMemoryError(str(error).split("\n")[0]) from error


def is_full(error: BaseException) -> bool:
    """Whether an error says that the host's or the device's memory is full."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in _FULL)
    )
