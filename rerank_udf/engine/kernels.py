"""Which attention kernel runs where, and why not another: a pure function of the machine, and the table it makes.

`python -m rerank_udf.engine.kernels` prints the table of cards × torch versions.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from dataclasses import dataclass

FLASH_3 = "flash-attn-3"
VARLEN = "torch-varlen"
FLASH_2 = "flash-attn-2"
ATEN_FLASH = "aten-flash"
ATEN_EFFICIENT = "aten-efficient"
EQUAL_LENGTHS = "sdpa-equal-lengths"

# Best first. What each is: `rerank_udf.engine.attention`.
PREFERENCE = (FLASH_3, VARLEN, FLASH_2, ATEN_FLASH, ATEN_EFFICIENT, EQUAL_LENGTHS)
# Kernel → the module of the package that it needs
PACKAGES = {FLASH_3: "flash_attn_interface", FLASH_2: "flash_attn"}

Version = tuple[int, int]
Capability = tuple[int, int]


@dataclass(frozen=True)
class KernelChoice:
    """`chosen`: kernels that may run, best first, never empty; `rejected`: the others, each with its reason."""

    chosen: tuple[str, ...]
    rejected: dict[str, str]


@dataclass(frozen=True)
class _Machine:
    device_kind: str
    capability: Capability
    precision: str
    torch_version: Version
    installed: frozenset[str]
    head_dim: int


def choose_kernels(
    device_kind: str,
    compute_capability: Capability | None,
    precision: str,
    torch_version: str,
    installed: frozenset[str],
    *,
    head_dim: int = 64,
) -> KernelChoice:
    """The kernels that a machine should try, best first, and why the others are none of them.

    `device_kind`: "cuda" or "cpu" (torch.device.type); `compute_capability`: of the card, (major, minor);
    `precision`: "float32", "float16" or "bfloat16"; `torch_version`: as torch says it; `installed`: what
    `installed_packages` finds; `head_dim`: hidden size over heads. `sdpa-equal-lengths` is always the last of
    `chosen`: it needs nothing but torch's public functions.
    """
    machine = _Machine(
        device_kind,
        compute_capability or (0, 0),
        precision,
        parse_version(torch_version),
        installed,
        head_dim,
    )
    reasons = {kernel: _why_not(kernel, machine) for kernel in PREFERENCE}
    return KernelChoice(
        chosen=tuple(kernel for kernel in PREFERENCE if reasons[kernel] is None),
        rejected={kernel: reason for kernel, reason in reasons.items() if reason is not None},
    )


def installed_packages() -> frozenset[str]:
    """The modules of optional attention packages that this Python finds; none is imported."""
    return frozenset(name for name in PACKAGES.values() if importlib.util.find_spec(name) is not None)


def parse_version(version: str) -> Version:
    """ "2.13.0+cpu" → (2, 13). Raises ValueError where it does not begin with two numbers."""
    found = re.match(r"(\d+)\.(\d+)", version)
    if found is None:
        raise ValueError(f"{version!r} is no version: expected two numbers with a dot between them")
    return int(found[1]), int(found[2])


def _why_not(kernel: str, machine: _Machine) -> str | None:
    """The first reason against a kernel, or None."""
    if kernel == EQUAL_LENGTHS:
        return None
    if machine.device_kind != "cuda":
        return f"needs a CUDA device; this is {machine.device_kind}"
    if machine.head_dim % 8:
        return f"needs heads of a multiple of 8; this model's have {machine.head_dim}"
    return _RULES[kernel](machine)


def _flash(machine: _Machine) -> str | None:
    """What every FlashAttention 2 kernel asks for."""
    if machine.precision == "float32":
        return "has no float32"
    if machine.capability < (8, 0):
        return f"needs compute capability 8.0; this card has {_dotted(machine.capability)}"
    if machine.head_dim > 256:
        return f"takes heads of at most 256; this model's have {machine.head_dim}"
    return None


def _packaged(kernel: str) -> Callable[[_Machine], str | None]:
    def why_not(machine: _Machine) -> str | None:
        if kernel == FLASH_3 and machine.precision != "float32" and machine.capability[0] != 9:
            return f"needs compute capability 9.0; this card has {_dotted(machine.capability)}"
        missing = PACKAGES[kernel] not in machine.installed
        return _flash(machine) or (f"{PACKAGES[kernel]} is not installed" if missing else None)

    return why_not


def _varlen(machine: _Machine) -> str | None:
    older = machine.torch_version < (2, 10)
    return _flash(machine) or (
        f"needs torch 2.10; this is {_dotted(machine.torch_version)}" if older else None
    )


def _efficient(machine: _Machine) -> str | None:
    if machine.precision == "bfloat16" and machine.capability < (8, 0):
        return f"has no bfloat16 below compute capability 8.0; this card has {_dotted(machine.capability)}"
    return None


_RULES: dict[str, Callable[[_Machine], str | None]] = {
    FLASH_3: _packaged(FLASH_3),
    VARLEN: _varlen,
    FLASH_2: _packaged(FLASH_2),
    ATEN_FLASH: _flash,
    ATEN_EFFICIENT: _efficient,
}


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


# What of this a user may want to look up: cards, and the builds of torch that have code for them

CARDS: dict[str, Capability] = {
    "V100": (7, 0),
    "T4": (7, 5),
    "A100": (8, 0),
    "A10": (8, 6),
    "L4": (8, 9),
    "H100": (9, 0),
    "B200": (10, 0),
}


@dataclass(frozen=True)
class Build:
    """A Linux x86-64 wheel of torch: its CUDA version, and the compute capabilities that it has machine code for."""

    cuda: str
    compiled_for: tuple[Capability, ...]

    def runs_on(self, capability: Capability) -> bool:
        """Machine code runs on cards of the same major capability and the same or a higher minor one."""
        return any(major == capability[0] and minor <= capability[1] for major, minor in self.compiled_for)


def _build(cuda: str, *compiled_for: str) -> Build:
    return Build(cuda, tuple(parse_version(capability) for capability in compiled_for))


_TO_HOPPER = ("5.0", "6.0", "7.0", "7.5", "8.0", "8.6", "9.0")
_VOLTA_TO_BLACKWELL = ("7.0", "7.5", "8.0", "8.6", "9.0", "10.0", "12.0")
_TURING_TO_BLACKWELL = ("7.5", "8.0", "8.6", "9.0", "10.0", "12.0")
_LEGACY = _build("12.6", *_TO_HOPPER)

# First the wheel on PyPI, by the list of architectures in it (benchmarks/torch_matrix.py prints it); then one of
# PyTorch's own index with code for cards that the first has none for, by PyTorch's own release matrices (RELEASE.md;
# its issues 172352, 178665 and 190385)
BUILDS: dict[Version, tuple[Build, ...]] = {
    (2, 4): (_build("12.1", *_TO_HOPPER),),
    (2, 5): (_build("12.4", *_TO_HOPPER),),
    (2, 6): (_build("12.4", *_TO_HOPPER),),
    (2, 7): (_build("12.6", *_TO_HOPPER), _build("12.8", *_TURING_TO_BLACKWELL)),
    (2, 8): (_build("12.8", *_VOLTA_TO_BLACKWELL),),
    (2, 9): (_build("12.8", *_VOLTA_TO_BLACKWELL),),
    (2, 10): (_build("12.8", *_VOLTA_TO_BLACKWELL),),
    (2, 11): (_build("13.0", *_TURING_TO_BLACKWELL), _LEGACY),
    (2, 12): (_build("13.0", *_TURING_TO_BLACKWELL), _LEGACY),
    (2, 13): (_build("13.0", *_TURING_TO_BLACKWELL), _LEGACY),
    (2, 14): (_build("13.0", *_TURING_TO_BLACKWELL), _LEGACY),
}

TABLE_BEGIN = "<!-- support-table:begin -->"
TABLE_END = "<!-- support-table:end -->"


def support_table() -> list[list[str]]:
    """Card × precision, a row each, over versions of torch: the first choice of `choose_kernels` in each cell.

    The first row is the heading; versions that agree in every cell share a column.
    """
    rows = [(card, precision) for card in CARDS for precision in ("float16", "float32", "bfloat16")]
    columns: list[tuple[list[Version], list[str]]] = []
    for version in BUILDS:
        cells = [_cell(CARDS[card], precision, version) for card, precision in rows]
        if columns and columns[-1][1] == cells:
            columns[-1][0].append(version)
        else:
            columns.append(([version], cells))
    heading = ["card", "precision", *(_span(versions) for versions, _ in columns)]
    names = [f"{card} ({_dotted(CARDS[card])})" for card, _ in rows]
    return [
        heading,
        *([n, r[1], *c] for n, r, *c in zip(names, rows, *(cells for _, cells in columns), strict=True)),
    ]


def markdown_support_table() -> str:
    """`support_table` in Markdown, with what has to be known beside it."""
    heading, *rows = support_table()
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n" + _NOTES


_NOTES = f"""
Cards with their compute capability, over versions of torch. What each kernel is:

- `{VARLEN}`: `torch.nn.attention.varlen.varlen_attn`; `{ATEN_FLASH}`: the operator behind it, in torch before 2.10.
  Where the package flash-attn 2 is installed, it comes before `{ATEN_FLASH}`; FlashAttention 3 on an H100 before both.
- `{ATEN_EFFICIENT}`: torch's memory-efficient attention over packed sequences; the FlashAttention kernels have no
  float32 and need compute capability 8.0.
- `{EQUAL_LENGTHS}`: the public scaled dot product attention over rows of one length. Every device falls back to it
  where a kernel fails, or deviates in the check that each process makes before its first batch.
- bfloat16 is no native type below 8.0: V100 and T4 emulate its products slowly. Use float16 there.
- (cu126), (cu128): the wheel on PyPI has no code for this card; the one of that CUDA version in PyTorch's own index
  has. "no build": no official wheel of these versions has.
"""


def _cell(capability: Capability, precision: str, version: Version) -> str:
    kernel = choose_kernels("cuda", capability, precision, _dotted(version), frozenset()).chosen[0]
    fitting = [build for build in BUILDS[version] if build.runs_on(capability)]
    if not fitting:
        return "no build"
    from_pypi = fitting[0] is BUILDS[version][0]
    return f"`{kernel}`" + ("" if from_pypi else f" (cu{fitting[0].cuda.replace('.', '')})")


def _span(versions: list[Version]) -> str:
    first, last = _dotted(versions[0]), _dotted(versions[-1])
    return f"torch {first}" if first == last else f"torch {first} to {last}"


if __name__ == "__main__":
    print(markdown_support_table(), end="")
