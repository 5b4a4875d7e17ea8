"""The local session: what the environment has wrong is told in a sentence, and nothing is left running."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jobs_of
import pytest

from rerank_udf.errors import ConfigError
from rerank_udf.spark import session

_SECONDS = 120.0


def _other_spark(folder: Path) -> str:
    """A folder that looks like Spark 2.4."""
    (folder / "bin").mkdir(parents=True)
    (folder / "bin/spark-submit").touch()
    (folder / "jars").mkdir()
    (folder / "jars/spark-core_2.11-2.4.8.jar").touch()
    return str(folder)


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("SPARK_HOME", "{folder}/nowhere", "SPARK_HOME is .*nowhere', and has no bin/spark-submit"),
        ("SPARK_HOME", "{spark}", r"SPARK_HOME is .*spark', which holds Spark 2\.4, and pyspark is \d"),
        ("PYSPARK_PYTHON", "/no/python", "PYSPARK_PYTHON is '/no/python', and there is no such program"),
        ("PYSPARK_DRIVER_PYTHON", "no-python", "PYSPARK_DRIVER_PYTHON is 'no-python'"),
        ("SPARK_LOCAL_DIRS", "{folder}/file/a,{folder}/file/b", "SPARK_LOCAL_DIRS: .*file is a file"),
        ("MASTER", "locahost:7077", "MASTER is 'locahost:7077', and a master is local"),
    ],
)
def test_a_variable_that_spark_cannot_start_with_is_named(monkeypatch, tmp_path, name, value, sentence):
    (tmp_path / "file").touch()
    monkeypatch.setenv(name, value.format(folder=tmp_path, spark=_other_spark(tmp_path / "spark")))
    with pytest.raises(ConfigError, match=sentence):
        session._check_variables()


def test_variables_that_spark_starts_with_are_no_error(monkeypatch, tmp_path):
    import pyspark

    (tmp_path / "file").touch()
    monkeypatch.setenv("SPARK_HOME", str(Path(pyspark.__file__).parent))
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    monkeypatch.setenv("SPARK_LOCAL_DIRS", f"{tmp_path}/file/a,{tmp_path}/to/be/made")  # one is enough
    monkeypatch.setenv("MASTER", "local-cluster[2,1,1024]")
    session._check_variables()


@pytest.fixture
def settings(spark, hash_model: Path, tmp_path: Path) -> Path:
    """A settings file in a folder with a letter beyond ASCII, of tables beside it."""
    folder = tmp_path / "données"
    folder.mkdir()
    jobs_of.write_inputs(spark, folder)
    file = folder / "job.yaml"
    file.write_text(jobs_of.settings(folder, hash_model).model_dump_json(), encoding="utf-8")  # JSON is YAML
    return file


def _command(settings: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "rerank_udf.cli", "rerank", "--config", str(settings), *more]


def _environment(tmp_path: Path, **more: str) -> dict[str, str]:
    """Of a process that starts a session of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYSPARK", "SPARK"))}
    kept.pop("RERANK_UDF_DEBUG", None)
    return kept | {"MASTER": "local[1]", "SPARK_CONF_DIR": str(tmp_path)} | more


def test_what_goes_wrong_is_told_without_a_stack_of_java_and_in_any_locale(settings, tmp_path):
    """LC_ALL=C is what cron and many containers have; Java then takes é for no letter of a file's name."""
    parts = (settings.parent / "candidates").glob("part-*.parquet")
    part = max(parts, key=lambda one: one.stat().st_size)
    whole = part.read_bytes()
    part.write_bytes(whole[:4] + b"x" * 60 + whole[64:])
    (settings.parent / "candidates" / f".{part.name}.crc").unlink()
    done = subprocess.run(
        _command(settings),
        env=_environment(tmp_path, LC_ALL="C"),
        capture_output=True,
        encoding="utf-8",
        timeout=_SECONDS,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert f"{part.name} cannot be read: " in done.stderr
    assert "\tat " not in done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if " ERROR " in line]
    assert len(lines) <= 1, lines  # not one more for each attempt of each task


@pytest.mark.skipif(not shutil.which("pgrep"), reason="finds processes with pgrep")
@pytest.mark.parametrize(
    "moment",
    ["java starts", "rows are staged", pytest.param("the table is published", marks=pytest.mark.slow)],
)
def test_interrupted_it_says_so_and_leaves_nothing_running(settings, tmp_path, moment):
    out = settings.parent
    seen = {
        "java starts": lambda: "spark" in _running(process.pid, "java"),
        "rows are staged": lambda: any(out.glob("out/reranked_store/_work/staged/*/*")),
        "the table is published": lambda: any(out.glob("out/reranked/_versions/*")),
    }
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            _command(settings), env=_environment(tmp_path), stdout=log, stderr=log, start_new_session=True
        )
    try:
        assert _until(seen[moment])
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to Java as well
        assert process.wait(_SECONDS) == 1
        assert _until(lambda: not _running(process.pid, "."))
    finally:
        if _running(process.pid, "."):
            os.killpg(process.pid, signal.SIGKILL)
    said = (tmp_path / "log").read_text()
    assert "rerank-udf: interrupted" in said.splitlines()  # Java may still say a line of its own
    for stack in ("Traceback", "\tat ", "ERROR:root"):
        assert stack not in said


def _until(happened) -> bool:
    end = time.monotonic() + _SECONDS
    while not happened():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def _running(group: int, pattern: str) -> str:
    """Command lines of a process group's members, without those that have ended."""
    command = ["pgrep", "--pgroup", str(group), "--full", "--list-full", "--runstates", "D,R,S", pattern]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout
