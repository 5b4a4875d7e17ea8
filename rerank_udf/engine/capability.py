"""What this machine can do, found without importing torch, so that the driver may ask too."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
from pathlib import Path

from rerank_udf.errors import ConfigError
from rerank_udf.machine import processor_flags

CPU_BACKEND_VARIABLE = "RERANK_UDF_CPU_BACKEND"
CPU_BACKENDS = ("torch", "openvino")
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


def resolve_cpu_backend(precision: str) -> str:
    """ "torch" or "openvino": what RERANK_UDF_CPU_BACKEND says, else OpenVINO where it has `precision`, else torch.

    OpenVINO was the faster one in bfloat16 on a processor without AMX, and as fast as torch on one that has it
    (benchmarks/README.md). Raises ConfigError for another name, for a library that is not installed, and where
    OpenVINO is to compute what it does not.
    """
    wanted = os.environ.get(CPU_BACKEND_VARIABLE)
    if wanted is None:
        fits = _installed("openvino") and (not _installed("torch") or precision in _openvino_precisions())
        wanted = "openvino" if fits else "torch"
    elif wanted not in CPU_BACKENDS:
        raise ConfigError(f"{CPU_BACKEND_VARIABLE} is {wanted!r}; it must be {' or '.join(CPU_BACKENDS)}")
    elif not _installed(wanted):
        raise ConfigError(f"{CPU_BACKEND_VARIABLE} is {wanted}, which is not installed; pip install {wanted}")
    if wanted == "openvino" and precision not in (known := _openvino_precisions()):
        raise ConfigError(
            f"precision is {precision}, which OpenVINO does not compute in on this processor, only in"
            f" {', '.join(known)}; set another precision, or install torch and unset {CPU_BACKEND_VARIABLE}"
        )
    return wanted


def check_precision(precision: str) -> None:
    """Raise ConfigError for a name that no precision has, whatever this machine can compute in."""
    if precision not in (known := ("auto", *PRECISIONS, "int8")):
        raise ConfigError(f"precision is {precision!r}; it must be {', '.join(known[:-1])} or {known[-1]}")


def resolve_precision(precision: str, device: str) -> str:
    """ "auto" → "float16" on CUDA, "bfloat16" on a processor that multiplies in it, else "float32".

    Raises ConfigError for a precision that no backend has, and for int8 without OpenVINO or for a card.
    """
    check_precision(precision)
    if precision in PRECISIONS:
        return precision
    if precision == "auto":
        if resolve_device(device).startswith("cuda"):
            return "float16"
        return "bfloat16" if any(flag in processor_flags() for flag in _FAST_BFLOAT16) else "float32"
    if device != "cpu" and resolve_device(device) != "cpu":
        raise ConfigError(f"precision is int8, which is for the CPU, but device is {device}; use float16")
    if not _installed("openvino"):
        raise ConfigError("precision is int8, which needs OpenVINO; pip install 'rerank-udf[openvino]'")
    return precision


@functools.cache
def _openvino_precisions() -> tuple[str, ...]:
    """What OpenVINO computes here as asked: it takes any hint, and falls back to another type without a word.

    Never float16: on a processor without float16 products that hint gave logits as far from float32's as bfloat16's.
    """
    import openvino

    narrow = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return ("float32", "bfloat16", "int8") if narrow else ("float32", "int8")


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _sees_cuda_device() -> bool:
    if os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1", "NoDevFiles"):
        return False
    there = any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/dxg").exists()
    return there and _torch_takes_cuda()


@functools.cache
def _torch_takes_cuda() -> bool:
    """Whether torch is installed, and was built with CUDA: as its version.py says, which is read and not imported."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return False
    version = Path(found.origin).with_name("version.py")
    told = version.read_text(encoding="utf-8") if version.is_file() else ""
    return not re.search(r"^cuda\b[^=\n]*= *None", told, re.MULTILINE)
