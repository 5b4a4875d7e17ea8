"""What our torch path finds in each version of torch, without a GPU: operators, schemas, traces, exactness.

    python benchmarks/torch_matrix.py [VERSION ...] [--json FILE]

Each version gets a throw-away environment of its own, one at a time; everything but torch comes from the environment
that runs this command. A CUDA build takes up to 6 GB while its turn lasts, and also says which cards it has code for;
a CPU build, where pip is set up to find one, is smaller. In each, a child process

- makes every kernel that needs no further package: finds its operator and binds our arguments to its schema;
- traces the packed forward with it under FakeTensorMode on cuda:0, in each precision that the kernel has;
- scores pairs in float32 on the CPU and compares with transformers' forward in the calling environment.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "engine")]

VERSIONS = (
    "2.4.1",
    "2.5.1",
    "2.6.0",
    "2.7.1",
    "2.8.0",
    "2.9.1",
    "2.10.0",
    "2.11.0",
    "2.12.1",
    "2.13.0",
    "2.14.1",
)
TRACED = {
    "torch-varlen": ("float16", "bfloat16"),
    "aten-flash": ("float16", "bfloat16"),
    "aten-efficient": ("float32", "float16"),
    "sdpa-equal-lengths": ("float32", "float16"),
}
MOST_DEVIATION = 1e-4


def main() -> int:
    """Check the versions asked for; 1 where one fails what it should pass."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("versions", nargs="*", default=VERSIONS, metavar="VERSION")
    parser.add_argument("--json", type=Path, help="write what was found to this file too")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(examine(arguments.child)))
        return 0
    found = {}
    with tempfile.TemporaryDirectory(prefix="torch-matrix-") as place:
        make_case(Path(place))
        for version in arguments.versions:
            found[version] = check(version, Path(place))
            print(f"{version}: {json.dumps(found[version])}", file=sys.stderr, flush=True)
    print(table(found))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0 if all(passes(result) for result in found.values()) else 1


def make_case(place: Path) -> None:
    """Two small random models, one batch for both, and its logits by transformers' modules."""
    from model_folders import bert_config, write_model, xlmr_config

    from rerank_udf.engine.padded import PaddedBackend

    lengths = np.array([300, 131, 130, 64, 64, 64, 17, 3, 1, 200])
    random = np.random.default_rng(0)
    ids = random.integers(0, 100, int(lengths.sum())).astype(np.int32)
    types = random.integers(0, 2, len(ids)).astype(np.uint8)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    np.savez(place / "batch.npz", ids=ids, types=types, offsets=offsets)
    for name, config in (("xlmr", xlmr_config()), ("bert", bert_config())):
        (place / name).mkdir()
        backend = PaddedBackend(write_model(place / name, config), precision="float32", device="cpu")
        np.save(place / name / "logits.npy", backend.finish([backend.start(read_batch(place))]))


def read_batch(place: Path) -> Any:
    """The batch of `make_case`."""
    from rerank_udf.engine.backend import PackedBatch

    arrays = np.load(place / "batch.npz")
    return PackedBatch(arrays["ids"], arrays["offsets"], arrays["types"])


def check(version: str, place: Path) -> dict[str, Any]:
    """Install a version, examine it there, remove it."""
    with tempfile.TemporaryDirectory(prefix=f"torch-{version}-", dir=place) as home:
        venv.create(home, with_pip=True)
        python = Path(home) / "bin" / "python"
        pip = [python, "-m", "pip", "install", "--quiet", "--no-cache-dir", f"torch=={version}"]
        installed = subprocess.run(pip, capture_output=True, text=True)
        if installed.returncode:
            return {"error": f"cannot be installed: {last_line(installed.stderr)}"}
        borrow_packages(Path(home))
        child = [python, __file__, "--child", place]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(child, capture_output=True, text=True, env=environment)
        if done.returncode:
            return {"error": f"the check ended with: {last_line(done.stderr)}"}
        return dict(json.loads(done.stdout.splitlines()[-1]))


def borrow_packages(home: Path) -> None:
    """Let an environment find, after its own packages, those of the environment that runs this command."""
    mine = sysconfig.get_paths()["purelib"]
    (site,) = home.glob("lib/python*/site-packages")
    (site / "borrowed.pth").write_text(f"{mine}\n")


def examine(place: Path) -> dict[str, Any]:
    """What this process's torch has; see the module."""
    import torch
    from fake_cuda import trace

    from rerank_udf.engine.attention import NotUsableError, make_attend

    def outcome(kernel: str) -> str:
        try:
            attend = make_attend(kernel)
        except NotUsableError as error:
            return f"absent: {last_line(str(error))}"
        try:
            for precision in TRACED[kernel]:
                logits, _ = trace(place / "xlmr", attend, getattr(torch, precision))
                assert logits.dtype == torch.float32
        except Exception as error:  # the table shows what it is
            return f"failed: {type(error).__name__}: {last_line(str(error))}"
        return "traced"

    return {
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda,
        "architectures": (torch._C._cuda_getArchFlags() or "").split() if torch.version.cuda else [],
        "kernels": {kernel: outcome(kernel) for kernel in TRACED},
        "deviation": {name: deviation(place, name) for name in ("xlmr", "bert")},
    }


def deviation(place: Path, name: str) -> float:
    """Largest difference of our float32 logits to those of `make_case`."""
    from rerank_udf.engine.packed import PackedBackend

    backend = PackedBackend(place / name, precision="float32", device="cpu")
    found = backend.finish([backend.start(read_batch(place))])
    return float(np.abs(found - np.load(place / name / "logits.npy")).max())


def passes(result: dict[str, Any]) -> bool:
    """Whether a version has an exact forward and every kernel that our choice gives it."""
    if "error" in result:
        return False
    from rerank_udf.engine.kernels import choose_kernels

    chosen = choose_kernels("cuda", (8, 0), "float16", result["torch"], frozenset()).chosen
    traced = all(result["kernels"][kernel] == "traced" for kernel in chosen)
    return traced and max(result["deviation"].values()) <= MOST_DEVIATION


def table(found: dict[str, dict[str, Any]]) -> str:
    """A Markdown table, a version a row."""
    head = ["torch", "CUDA of the build", "compiled for", *TRACED, "largest difference of a logit, float32"]
    rows = [head, ["---"] * len(head)]
    for version, result in found.items():
        if "error" in result:
            rows.append([version, result["error"], *[""] * (len(head) - 2)])
            continue
        cards = " ".join(name.replace("sm_", "") for name in result["architectures"]) or "CPU"
        kernels = [result["kernels"][kernel].partition(":")[0] for kernel in TRACED]
        largest = max(result["deviation"].values())
        rows.append([result["torch"], result["cuda"] or "none", cards, *kernels, f"{largest:.1e}"])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def last_line(text: str) -> str:
    """The last line of a message that is not empty."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no message")


if __name__ == "__main__":
    sys.exit(main())
