"""What this machine can do, found without importing torch, so that the driver may ask too."""

from __future__ import annotations

import os
from pathlib import Path

from rerank_udf.errors import ConfigError
from rerank_udf.machine import processor_flags

PRECISIONS = ("float32", "bfloat16", "float16")
_FAST_BFLOAT16 = ("avx512_bf16", "amx_bf16")


def resolve_device(device: str) -> str:
    """ "auto" → "cuda" where an NVIDIA device is visible to this process, else "cpu"; others as they are.

    Raises ConfigError for a device that is neither "auto", "cpu", "cuda" nor "cuda:N".
    """
    if device == "auto":
        return "cuda" if _sees_cuda_device() else "cpu"
    kind, _, number = device.partition(":")
    if device == "cpu" or (kind == "cuda" and (number.isdigit() or device == "cuda")):
        return device
    raise ConfigError(f"device is {device!r}; it must be auto, cpu, cuda or cuda:N")


def resolve_precision(precision: str, device: str) -> str:
    """ "auto" → "float16" on CUDA, "bfloat16" on a processor that multiplies in it, else "float32".

    Raises ConfigError for a precision that no backend has.
    """
    if precision in PRECISIONS:
        return precision
    if precision == "auto":
        if resolve_device(device).startswith("cuda"):
            return "float16"
        return "bfloat16" if any(flag in processor_flags() for flag in _FAST_BFLOAT16) else "float32"
    if precision == "int8":
        raise ConfigError("precision is int8, which this version has no backend for; use auto or bfloat16")
    raise ConfigError(f"precision is {precision!r}; it must be auto, {', '.join(PRECISIONS)} or int8")


def _sees_cuda_device() -> bool:
    if os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1", "NoDevFiles"):
        return False
    return any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/dxg").exists()
