from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rerank_udf.engine import kernels
from rerank_udf.engine.kernels import BUILDS, CARDS, choose_kernels, parse_version, support_table

PAGE = Path(__file__).parents[2] / "benchmarks" / "README.md"
EVERYTHING = frozenset({"flash_attn", "flash_attn_interface"})
NOTHING: frozenset[str] = frozenset()


@pytest.mark.parametrize(
    ("capability", "precision", "version", "installed", "chosen"),
    [
        ((9, 0), "float16", "2.10.0+cu128", EVERYTHING, ["flash-attn-3", "torch-varlen", "flash-attn-2"]),
        ((9, 0), "bfloat16", "2.13.0", NOTHING, ["torch-varlen", "aten-flash", "aten-efficient"]),
        ((8, 0), "float16", "2.9.1", EVERYTHING, ["flash-attn-2", "aten-flash", "aten-efficient"]),
        ((8, 6), "float16", "2.4.1+cu121", NOTHING, ["aten-flash", "aten-efficient", "sdpa-equal-lengths"]),
        ((10, 0), "float16", "2.10.0", EVERYTHING, ["torch-varlen", "flash-attn-2", "aten-flash"]),
        ((9, 0), "float32", "2.13.0", EVERYTHING, ["aten-efficient", "sdpa-equal-lengths"]),
        ((7, 5), "float16", "2.13.0", EVERYTHING, ["aten-efficient", "sdpa-equal-lengths"]),
        ((7, 0), "float32", "2.4.1", NOTHING, ["aten-efficient", "sdpa-equal-lengths"]),
        ((7, 5), "bfloat16", "2.13.0", EVERYTHING, ["sdpa-equal-lengths"]),
    ],
)
def test_the_best_kernels_come_first(
    capability: tuple[int, int], precision: str, version: str, installed: frozenset[str], chosen: list[str]
) -> None:
    found = choose_kernels("cuda", capability, precision, version, installed)
    assert list(found.chosen[: len(chosen)]) == chosen
    assert found.chosen[-1] == "sdpa-equal-lengths"
    assert set(found.chosen) | set(found.rejected) == set(kernels.PREFERENCE)
    assert not set(found.chosen) & set(found.rejected)


def test_every_kernel_that_is_not_chosen_has_its_reason() -> None:
    assert choose_kernels("cuda", (8, 6), "float16", "2.9.1", NOTHING).rejected == {
        "flash-attn-3": "needs compute capability 9.0; this card has 8.6",
        "torch-varlen": "needs torch 2.10; this is 2.9",
        "flash-attn-2": "flash_attn is not installed",
    }
    assert choose_kernels("cuda", (7, 5), "bfloat16", "2.13.0+cu130", EVERYTHING).rejected == {
        "flash-attn-3": "needs compute capability 9.0; this card has 7.5",
        "torch-varlen": "needs compute capability 8.0; this card has 7.5",
        "flash-attn-2": "needs compute capability 8.0; this card has 7.5",
        "aten-flash": "needs compute capability 8.0; this card has 7.5",
        "aten-efficient": "has no bfloat16 below compute capability 8.0; this card has 7.5",
    }
    assert choose_kernels("cuda", (9, 0), "float32", "2.13.0", EVERYTHING).rejected == dict.fromkeys(
        ("flash-attn-3", "torch-varlen", "flash-attn-2", "aten-flash"), "has no float32"
    )


def test_a_cpu_has_the_public_attention_only() -> None:
    found = choose_kernels("cpu", None, "bfloat16", "2.13.0+cpu", EVERYTHING)
    assert found.chosen == ("sdpa-equal-lengths",)
    assert set(found.rejected.values()) == {"needs a CUDA device; this is cpu"}


def test_heads_that_kernels_cannot_read_are_left_to_the_public_attention() -> None:
    odd = choose_kernels("cuda", (9, 0), "float16", "2.13.0", NOTHING, head_dim=20)
    assert odd.chosen == ("sdpa-equal-lengths",)
    assert odd.rejected["aten-efficient"] == "needs heads of a multiple of 8; this model's have 20"
    wide = choose_kernels("cuda", (9, 0), "float16", "2.13.0", NOTHING, head_dim=512)
    assert wide.chosen == ("aten-efficient", "sdpa-equal-lengths")


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("2.13.0+cpu", (2, 13)),
        ("2.4.1", (2, 4)),
        ("2.11.0a0+git1f", (2, 11)),
        ("2.10", (2, 10)),
        ("3.0rc1", (3, 0)),
    ],
)
def test_versions_are_read_as_torch_writes_them(text: str, version: tuple[int, int]) -> None:
    assert parse_version(text) == version


def test_a_version_that_is_none_is_an_error() -> None:
    with pytest.raises(ValueError, match="'nightly' is no version: expected two numbers"):
        parse_version("nightly")


def test_this_python_has_the_packages_that_it_can_import() -> None:
    found = kernels.installed_packages()
    assert found <= EVERYTHING
    for name in EVERYTHING - found:
        with pytest.raises(ImportError):
            __import__(name)


def test_the_table_holds_every_card_precision_and_version() -> None:
    heading, *rows = support_table()
    assert len(rows) == 3 * len(CARDS)
    assert {len(row) for row in rows} == {len(heading)}
    cells = {(row[0].split(" ")[0], row[1]): dict(zip(heading[2:], row[2:], strict=True)) for row in rows}
    assert cells["H100", "float16"]["torch 2.4 to 2.6"] == "`aten-flash`"
    assert cells["A10", "float16"]["torch 2.10"] == "`torch-varlen`"
    assert cells["B200", "float16"]["torch 2.4 to 2.6"] == "no build"
    assert cells["B200", "float16"]["torch 2.7"] == "`aten-flash` (cu128)"
    assert cells["V100", "float16"]["torch 2.11 to 2.14"] == "`aten-efficient` (cu126)"
    assert all(cell == "`aten-efficient`" for cell in cells["T4", "float16"].values())


def test_machine_code_runs_on_newer_cards_of_the_same_generation_only() -> None:
    old = BUILDS[2, 4][0]
    assert old.runs_on((8, 9))
    assert old.runs_on((6, 1))
    assert not old.runs_on((10, 0))
    assert not BUILDS[2, 14][0].runs_on((7, 0))


def test_the_page_shows_the_table_of_the_choosing_function() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert kernels.TABLE_BEGIN in page, (
        f"put the output of python -m {kernels.__name__} between the markers in {PAGE}"
    )
    shown = page.split(kernels.TABLE_BEGIN)[1].split(kernels.TABLE_END)[0]
    assert shown.strip() == kernels.markdown_support_table().strip()


def test_the_module_prints_the_table_without_torch() -> None:
    code = (
        "import sys, runpy; sys.modules['torch'] = None\n"
        "runpy.run_module('rerank_udf.engine.kernels', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == kernels.markdown_support_table()
