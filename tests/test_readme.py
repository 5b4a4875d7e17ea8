"""What the README says exists, exists."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

from rerank_udf.cli import cli
from rerank_udf.tables import Reason

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON_BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("block", PYTHON_BLOCKS)
def test_python_examples_parse_and_import_only_names_that_exist(block: str) -> None:
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.ImportFrom) and node.module:
            for name in node.names:
                assert hasattr(importlib.import_module(node.module), name.name)


def test_every_make_target_named_is_in_the_makefile() -> None:
    targets = set(
        re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    )
    named = set(re.findall(r"\bmake ([a-z]+)\b(?!\w)", README)) - {"them"}
    assert named <= targets
    assert {"demo", "test", "setup", "lint"} <= named


def test_every_verb_named_is_a_command_and_a_job() -> None:
    named = set(re.findall(r"^rerank-udf ([a-z]+) ", README, flags=re.MULTILINE))
    assert named == set(cli.commands) == {path.stem for path in (ROOT / "jobs").glob("*.py")}


def test_the_reject_reasons_listed_are_those_that_rows_can_have() -> None:
    reasons = {value for name, value in vars(Reason).items() if not name.startswith("_")}
    assert reasons <= set(re.findall(r"`([a-z0-9_]+)`", README))


def test_every_file_linked_is_in_the_repository() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
