"""The matrix command on the torch that is installed; other versions are its own business."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "torch_matrix.py"


@pytest.fixture(scope="module")
def matrix() -> ModuleType:
    spec = importlib.util.spec_from_file_location("torch_matrix", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = before
    return module


@pytest.fixture(scope="module")
def found(matrix: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a child process prints for the installed torch."""
    place = tmp_path_factory.mktemp("matrix")
    matrix.make_case(place)
    child = [sys.executable, str(SCRIPT), "--child", str(place)]
    done = subprocess.run(child, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_the_installed_torch_passes(matrix: ModuleType, found: dict[str, Any]) -> None:
    assert found["torch"] == str(torch.__version__)
    assert 0 < found["deviation"]["xlmr"] <= 1e-5
    assert found["kernels"] == dict.fromkeys(matrix.TRACED, "traced")
    assert matrix.passes(found)


@pytest.mark.parametrize(
    "change",
    [
        {"deviation": {"xlmr": 2e-4, "bert": 0.0}},
        {
            "kernels": {
                "torch-varlen": "traced",
                "aten-flash": "failed: an argument",
                "aten-efficient": "traced",
            }
        },
        {"error": "cannot be installed: no such version"},
    ],
)
def test_what_must_not_happen_fails(
    matrix: ModuleType, found: dict[str, Any], change: dict[str, Any]
) -> None:
    assert not matrix.passes(found | change)


def test_a_kernel_that_a_version_is_too_old_for_may_be_absent(
    matrix: ModuleType, found: dict[str, Any]
) -> None:
    kernels = found["kernels"] | {"torch-varlen": "absent: torch.nn.attention.varlen cannot be imported"}
    assert matrix.passes(found | {"torch": "2.9.1+cu128", "kernels": kernels})
    assert not matrix.passes(found | {"torch": "2.10.0+cu128", "kernels": kernels})


def test_the_table_has_a_row_for_each_version(matrix: ModuleType, found: dict[str, Any]) -> None:
    build = {"cuda": "12.8", "architectures": ["sm_75", "sm_90"], "deviation": {"xlmr": 1.1e-6, "bert": 2e-6}}
    lines = matrix.table({"2.9.1": found | build, "9.9": {"error": "cannot be installed: none"}}).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2].split(" | ")[1:3] == ["12.8", "75 90"]
    assert lines[2].endswith("| 2.0e-06 |")
    assert lines[3].startswith("| 9.9 | cannot be installed: none |")
