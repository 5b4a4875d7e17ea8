"""Each device of each executor is examined once, whoever gets the tasks; and what is said of the rest is true."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from rerank_udf.config import Model
from rerank_udf.engine import ScorerPlan, doctor, resolve_scorer
from rerank_udf.errors import ConfigError, ModelError
from rerank_udf.spark import doctor as on_executors
from rerank_udf.spark.doctor import answers_here, examine_cluster, known_executors

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def plan(tiny_bert: Path) -> ScorerPlan:
    return resolve_scorer(tiny_bert, precision="float32", device="cpu", max_length=32)


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A node of its own: claims of no other test, and no waiting."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(on_executors, "HOLD_SECONDS", 0.0)
    return tmp_path


def test_the_second_task_of_an_executor_finds_its_device_taken(plan, node, monkeypatch):
    seen = []
    monkeypatch.setattr(doctor, "examine", lambda plan: seen.append(plan.device) or "report")
    first, second, other = (answers_here(plan, run) for run in ("one", "one", "another"))
    assert [(a.device, a.report, a.error) for a in first + second + other] == [
        *[("cpu", "report", None), (None, None, None), ("cpu", "report", None)]
    ]
    assert first[0].executor == second[0].executor == f"{first[0].host}/{os.getppid()}"
    assert seen == ["cpu", "cpu"]


def test_every_card_is_examined_by_whoever_claims_it_first(plan, node, monkeypatch):
    from rerank_udf.engine.doctor import host

    monkeypatch.setattr(host, "visible_devices", lambda _: [("cuda:0", "GPU-7/1"), ("cuda:1", "GPU-7/2")])
    monkeypatch.setattr(doctor, "examine", lambda plan: f"report of {plan.device}")
    claimed = node / f"rerank-udf-doctor-{os.getuid()}" / "run"
    claimed.mkdir(parents=True)
    (claimed / "GPU-7-1").touch()  # by another executor of this node
    (answer,) = answers_here(plan, "run")
    assert (answer.device, answer.report) == ("cuda:1", "report of cuda:1")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ModelError("there is no room"), "there is no room"),
        (RuntimeError("CUDA error: no kernel image\nmore"), "RuntimeError: CUDA error: no kernel image"),
        (AssertionError(), "AssertionError: no message"),
    ],
)
def test_what_goes_wrong_on_a_device_is_an_answer(plan, node, monkeypatch, error, told):
    def examine(_: ScorerPlan) -> None:
        raise error

    monkeypatch.setattr(doctor, "examine", examine)
    (answer,) = answers_here(plan, "run")
    assert (answer.report, answer.error) == (None, told)


def test_old_claims_are_cleared_away(plan, node, monkeypatch):
    monkeypatch.setattr(doctor, "examine", lambda _: "report")
    folder = node / f"rerank-udf-doctor-{os.getuid()}"
    for name, age in (("old", 90_000), ("new", 1_000)):
        (folder / name).mkdir(parents=True)
        (folder / name / "cpu-1").touch()
        then = (folder / name).stat().st_mtime - age
        os.utime(folder / name, (then, then))
    answers_here(plan, "run")
    assert sorted(path.name for path in folder.iterdir()) == ["new", "run"]


def test_a_local_session_is_one_executor_and_examined_once(spark, tiny_bert):
    found = examine_cluster(
        spark, Model(name=str(tiny_bert), precision="float32", device="cpu", max_length=32)
    )
    (report,) = found.reports
    assert found.passed, found.failures
    assert found.coverage == f"1 of 1 executors answered: {report.host} (1)"
    assert known_executors(spark) == 1
    assert (report.model["max_length"], report.device.device) == (32, "cpu")
    assert len(report.exactness) == 3


def test_the_hash_scorer_has_nothing_to_examine(spark, hash_model):
    with pytest.raises(ConfigError, match="there is no model to examine"):
        examine_cluster(spark, Model(name=str(hash_model)))


def test_a_driver_that_asks_loads_no_torch():
    code = "import sys, rerank_udf.spark.doctor\nprint([n for n in ('torch', 'transformers') if n in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True
    )
    assert done.stdout == "[]\n"


@pytest.mark.cluster
@pytest.mark.slow
def test_two_executors_are_both_examined(tiny_bert, tmp_path):
    quick = {"spark.ui.enabled": "false", "spark.driver.host": "127.0.0.1"}
    (tmp_path / "spark-defaults.conf").write_text("".join(f"{k} {v}\n" for k, v in quick.items()))
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("SPARK_", "PYSPARK_GATEWAY"))}
    environment |= {"PYSPARK_PYTHON": sys.executable, "PYSPARK_DRIVER_PYTHON": sys.executable}
    environment |= {"MASTER": "local-cluster[2,1,1024]", "SPARK_CONF_DIR": str(tmp_path)}
    environment |= {"SPARK_HOME": str(Path(__import__("pyspark").__file__).parent)}
    options = ["--spark", "--json", "--model", str(tiny_bert), "--precision", "float32", "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "jobs/doctor.py"), *options],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["executors_known"] == 2
    assert sum(found["executors_by_host"].values()) == 2
    assert len(found["reports"]) == 2
    assert found["passed"] is True
