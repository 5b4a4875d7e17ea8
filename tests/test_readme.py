"""What the README says exists, exists; the schedules beside it ask for what the job takes."""

from __future__ import annotations

import ast
import importlib
import os
import re
import runpy
import shutil
import subprocess
import sys
from contextlib import nullcontext
from datetime import date, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from rerank_udf.cli import cli
from rerank_udf.config import JobConfig, load_config
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


def test_every_extra_named_with_a_wheel_is_one() -> None:
    stated = (ROOT / "pyproject.toml").read_text(encoding="utf-8").split("[project.optional-dependencies]")[1]
    extras = set(re.findall(r"^([a-z-]+) = \[", stated.split("\n[")[0], flags=re.MULTILINE))
    named = {name for group in re.findall(r"\.whl\[([a-z,-]+)\]", README) for name in group.split(",")}
    assert {"torch", "eval", "report"} <= named <= extras


# --- the schedules ---

SCHEDULES = ROOT / "conf" / "schedules"


def job_of(arguments: list[str]) -> JobConfig:
    """The settings that the job would have with these arguments, read from the repository's own file."""
    assert Path(arguments[arguments.index("--config") + 1]).name == "rerank.yaml"
    overrides = [arguments[at + 1] for at, word in enumerate(arguments) if word == "--set"]
    return load_config(ROOT / "conf" / "rerank.yaml", overrides)


def assert_of_day(job: JobConfig, day: str) -> None:
    assert str(job.output.reranked.run_date) == day
    assert job.input.candidates.where == f"dt = '{day}'"
    assert (str(job.output.rejects.path), str(job.run.report)) == (f"out/rejects/{day}", f"out/report/{day}")


def test_the_dag_asks_for_the_day_before_and_runs_where_it_can_be_killed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[dict[str, Any]] = []
    parts = ["airflow", "providers", "apache", "spark", "operators", "spark_submit"]
    for name in ("airflow.sdk", *(".".join(parts[: length + 1]) for length in range(len(parts)))):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["airflow.sdk"].DAG = lambda **_: nullcontext()  # type: ignore[attr-defined]
    operators = sys.modules[".".join(parts)]
    operators.SparkSubmitOperator = lambda **arguments: asked.append(arguments)  # type: ignore[attr-defined]
    runpy.run_path(str(SCHEDULES / "rerank_nightly.py"))
    (task,) = asked
    assert (task["deploy_mode"], task["yarn_track_via_rm_api"]) == ("cluster", True)
    sent = {Path(file).name for file in task["files"].split(",")}
    arguments = [
        word.replace("{{ macros.ds_add(ds, -1) }}", "2026-01-30") for word in task["application_args"]
    ]
    assert arguments[arguments.index("--config") + 1] in sent
    assert_of_day(job_of(arguments), "2026-01-30")


@pytest.mark.skipif(shutil.which("flock") is None, reason="the line is for a machine with flock")
def test_the_line_of_the_crontab_runs_as_cron_runs_it(tmp_path: Path) -> None:
    (line,) = (
        line
        for line in (SCHEDULES / "crontab").read_text(encoding="utf-8").splitlines()
        if line.startswith("30 2 ")
    )
    command = line.split(maxsplit=5)[5]
    assert not re.search(r"(?<!\\)%", command)  # cron would end the command there
    command = command.replace("\\%", "%").replace("/opt/rerank_udf", str(tmp_path))
    command = command.replace("/tmp/rerank.lock", str(tmp_path / "lock"))
    submit = tmp_path / "spark-submit"
    submit.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n", encoding="utf-8")
    submit.chmod(0o755)
    around = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "HOME": str(tmp_path)}
    before = date.today()
    subprocess.run(["/bin/sh", "-c", command], env=around, check=True, timeout=60)
    if date.today() != before:
        pytest.skip("it ran over midnight")
    arguments = (tmp_path / "rerank.log").read_text(encoding="utf-8").splitlines()
    assert_of_day(job_of(arguments), str(before - timedelta(days=1)))
