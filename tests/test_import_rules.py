"""What is imported where: torch in the engine only, pyspark in spark and lake only, and nothing heavy on a driver."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "rerank_udf"
HEAVY = ("torch", "transformers", "openvino")


def imported(file: Path) -> set[str]:
    """The top-level packages that a file imports anywhere, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


def modules(*allowed: str) -> list[Path]:
    """Every source file of the package outside the folders `allowed`."""
    inside = [PACKAGE / folder for folder in allowed]
    return [
        file for file in sorted(PACKAGE.rglob("*.py")) if not any(folder in file.parents for folder in inside)
    ]


def test_torch_is_imported_nowhere_outside_the_engine():
    guilty = {
        file.relative_to(PACKAGE).as_posix(): imported(file) & set(HEAVY)
        for file in modules("engine", "training", "demo")
    }
    assert {name: found for name, found in guilty.items() if found} == {}


def test_pyspark_is_imported_nowhere_outside_spark_and_lake():
    guilty = [
        file.relative_to(PACKAGE).as_posix()
        for file in modules("spark", "lake", "demo")
        if "pyspark" in imported(file)
    ]
    assert guilty == ["cli.py"]  # for type checking only, which the next test holds it to


def after(code: str) -> dict[str, bool]:
    """Which heavy packages a fresh Python has loaded after `code`."""
    names = (*HEAVY, "pyspark", "pandas", "sklearn", "ir_measures")
    script = (
        f"{code}\nimport json, sys\nprint(json.dumps({{name: name in sys.modules for name in {names!r}}}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "code",
    [
        "import rerank_udf",
        "import rerank_udf.cli",
        "import rerank_udf.config, rerank_udf.report, rerank_udf.identity, rerank_udf.tables",
        "import rerank_udf.engine",
    ],
)
def test_what_a_terminal_starts_with_is_light(code):
    assert {name for name, loaded in after(code).items() if loaded} == set()


def test_a_driver_that_imports_the_spark_half_leaves_torch_unloaded():
    pytest.importorskip("pyspark", reason="pyspark is not installed")
    loaded = after(
        "from rerank_udf.spark import cross_encoder_udf, read_reranked, rerank\n"
        "import rerank_udf.spark.pipeline, rerank_udf.spark.estimate, rerank_udf.spark.assess, rerank_udf.spark.session"
    )
    assert not any(loaded[name] for name in HEAVY)


def test_the_engine_scores_where_pyspark_cannot_be_imported(hash_model):
    blocked = "import sys\nsys.modules['pyspark'] = None\n"
    loaded = after(
        f"{blocked}from rerank_udf import load_scorer\n"
        f"assert load_scorer({str(hash_model)!r}).rank('q', ['a', 'b'])[0].score > 0\ndel sys.modules['pyspark']"
    )
    assert not any(loaded[name] for name in (*HEAVY, "pyspark"))


def test_names_that_do_not_exist_are_told_with_those_that_do():
    import rerank_udf
    import rerank_udf.spark

    with pytest.raises(AttributeError, match="no attribute 'scorer'; it has Ranked, Scorer, load_scorer"):
        _ = rerank_udf.scorer  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="it has cross_encoder_udf, read_reranked, rerank"):
        _ = rerank_udf.spark.udf_of  # type: ignore[attr-defined]
