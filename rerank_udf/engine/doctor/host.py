"""What is installed here, and what torch can do with the device: facts, no measurements."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from rerank_udf import __version__
from rerank_udf.engine.capability import resolve_device
from rerank_udf.engine.doctor.report import DeviceFacts
from rerank_udf.machine import processor_flags, processor_name, task_threads

PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "openvino",
    "nncf",
    "flash-attn",
    "flash-attn-3",
    "triton",
    "safetensors",
    "numpy",
    "pyarrow",
    "pyspark",
)
_TELLING_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimd", "bf16")
_DRIVER_FILE = Path("/proc/driver/nvidia/version")


def installed_versions() -> dict[str, str]:
    """Versions by name: Python, this package, and each of PACKAGES that is installed."""
    found = {"python": platform.python_version(), "rerank-udf": __version__}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # a cluster's own pyspark is on the path, not installed
            module = sys.modules.get(name)
            if module is not None:
                found[name] = str(getattr(module, "__version__", "unknown"))
    return found


def device_facts(device: str) -> DeviceFacts:
    """Facts about the device that "auto", "cpu", "cuda" or "cuda:N" means for this torch."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return _cuda_facts(torch.device(device)) if device.startswith("cuda") else _cpu_facts()


def _cpu_facts() -> DeviceFacts:
    total, free = system_memory()
    return DeviceFacts(
        device="cpu",
        name=processor_name(),
        capability=" ".join(flag for flag in _TELLING_FLAGS if flag in processor_flags()),
        threads=task_threads(),
        memory_total_bytes=total,
        memory_free_bytes=free,
        driver=_driver_version(),
        cuda=torch.version.cuda,
        supported=True,
        remedy=_unused_card(),
    )


def _cuda_facts(device: torch.device) -> DeviceFacts:
    facts = torch.cuda.get_device_properties(device)
    free, total = torch.cuda.mem_get_info(device)
    capability = (facts.major, facts.minor)
    architectures = torch.cuda.get_arch_list()
    supported = has_code_for(architectures, capability)
    return DeviceFacts(
        device=str(device),
        name=facts.name,
        capability=f"sm_{facts.major}{facts.minor}",
        threads=task_threads(),
        memory_total_bytes=total,
        memory_free_bytes=free,
        driver=_driver_version(),
        cuda=torch.version.cuda,
        supported=supported,
        remedy=None if supported else _other_build(facts.name, capability, architectures),
    )


def has_code_for(architectures: Sequence[str], capability: tuple[int, int]) -> bool:
    """Whether code for one of `architectures` (torch.cuda.get_arch_list()) runs on a card of `capability`.

    Machine code (sm_XY) runs on cards of the same major version and no lower minor one; intermediate code
    (compute_XY) is compiled by the driver for any later card; a suffix, as in sm_90a, binds it to that one version.
    Source: NVIDIA's CUDA Programming Guide, "Binary Compatibility" and "PTX Compatibility".
    """
    for architecture in architectures:
        found = re.fullmatch(r"(sm|compute)_(\d+)(\d)([a-z]?)", architecture)
        if found is None:
            continue
        code = (int(found[2]), int(found[3]))
        if code == capability or (found[1] == "compute" and not found[4] and code < capability):
            return True
        if not found[4] and code[0] == capability[0] and code[1] < capability[1]:
            return True
    return False


def _other_build(name: str, capability: tuple[int, int], architectures: Sequence[str]) -> str:
    wanted = f"sm_{capability[0]}{capability[1]}"
    return (
        f"this torch ({torch.__version__}) has code for {', '.join(architectures) or 'no card'}, and {name} is "
        f"{wanted}: install a torch whose torch.cuda.get_arch_list() has {wanted}"
    )


def _unused_card() -> str | None:
    """Why a card that is visible here goes unused, as a sentence; None where there is none to be seen."""
    if resolve_device("auto") == "cpu":
        return None
    if torch.version.cuda is None:
        return (
            f"an NVIDIA card is visible, but this torch ({torch.__version__}) is built without CUDA: install a CUDA "
            "build of torch to use it"
        )
    if not torch.cuda.is_available():
        return (
            f"an NVIDIA card is visible, but torch cannot start it with CUDA {torch.version.cuda} and driver "
            f"{_driver_version() or 'unknown'}: update the driver, or install a torch built for an older CUDA"
        )
    return None


def _driver_version() -> str | None:
    """NVIDIA's kernel driver, such as "550.54.15"; None where it is not loaded or does not tell."""
    try:
        found = re.search(r"\b(\d{3,}(?:\.\d+)+)\b", _DRIVER_FILE.read_text())
    except OSError:
        return None
    return found[1] if found else None


def system_memory() -> tuple[int | None, int | None]:
    """Bytes of memory of this machine: (total, available); None where the system does not tell (Linux does)."""
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return None, None
    found = {name: int(kib) * 1024 for name, kib in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)}
    return found.get("MemTotal"), found.get("MemAvailable")


def visible_devices(device: str) -> list[tuple[str, str | None]]:
    """What "auto", "cpu", "cuda" or "cuda:N" means to this process: (device, the card's own id; None for a CPU).

    "auto" and "cuda" are every card that is visible.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if not device.startswith("cuda"):
        return [(device, None)]
    numbers = range(torch.cuda.device_count()) if device == "cuda" else [torch.device(device).index]
    return [(f"cuda:{number}", _card_id(number)) for number in numbers]


def _card_id(number: int) -> str:
    """The same for every process that sees the card, whatever number it has there; torch < 2.4 knows none."""
    facts = torch.cuda.get_device_properties(number)
    return str(getattr(facts, "uuid", f"{facts.name}-{number}"))
