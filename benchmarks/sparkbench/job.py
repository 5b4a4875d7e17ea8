"""One measured job in a process of its own: `python -m sparkbench.job SETTINGS.json RESULT.json`."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

from pyspark.sql import SparkSession
from rich.console import Console

from rerank_udf.config import parse_config
from rerank_udf.report import RunReport
from rerank_udf.spark import pipeline
from rerank_udf.spark.session import job_session
from sparkbench import synthetic
from sparkbench.accounting import LOGGED, CpuWatch, Phases, TreeCpu, scorer_use, stages
from sparkbench.scorers import MeasuredPlan


def main(settings_path: str, result_path: str) -> None:
    settings = json.loads(Path(settings_path).read_text())
    wanted = settings.get("make_tables")
    result = {"tables": make_tables(wanted)} if wanted else measure(settings)
    Path(result_path).write_text(json.dumps(result, indent=2))


def measure(settings: dict[str, Any]) -> dict[str, Any]:
    """Run the job that `settings` describes and say what it cost.

    settings: `job` (the YAML's content), `spark` (properties), `work` (a folder), and optionally `free` (no model),
    `burn_seconds`.
    """
    work = Path(settings["work"])
    for name in ("events", "scorer"):
        (work / name).mkdir(parents=True, exist_ok=True)
    with CpuWatch() as watch:
        clock = time.perf_counter()
        properties = {**LOGGED, "spark.eventLog.dir": (work / "events").as_uri(), **settings.get("spark", {})}
        spark = session(properties)
        session_seconds, session_cpu = time.perf_counter() - clock, watch.read()
        try:
            report, phases, seconds, cpu = run_job(spark, settings, watch)
        finally:
            spark.stop()
    return {
        "report": json.loads(report.to_json()),
        "session": {"seconds": session_seconds, "cpu": asdict(session_cpu)},
        "job": {"seconds": seconds, "cpu": asdict(cpu)},
        "scorer": scorer_use(work / "scorer"),
        "phases": {
            name: {"seconds": phases.seconds[name], "cpu": asdict(used)} for name, used in phases.cpu.items()
        },
        "stages": [{**asdict(cost), "phase": phases.of(cost.begun)} for cost in stages(work / "events")],
    }


def make_tables(settings: dict[str, Any]) -> str:
    """Make the synthetic tables in a session of their own; returns their folder."""
    spark = session(settings.get("spark", {}))
    try:
        return str(synthetic.tables(spark, Path(settings["tables"]), settings["rows"]))
    finally:
        spark.stop()


def session(properties: dict[str, str]) -> SparkSession:
    """The session that the command line would make, with properties as spark-submit would pass them."""
    given = [word for name, value in properties.items() for word in ("--conf", f"{name}={value}")]
    os.environ["PYSPARK_SUBMIT_ARGS"] = shlex.join([*given, "pyspark-shell"])
    spark = job_session("bench_spark")
    spark.sparkContext.setLogLevel("ERROR")
    return spark


def run_job(
    spark: SparkSession, settings: dict[str, Any], watch: CpuWatch
) -> tuple[RunReport, Phases, float, TreeCpu]:
    """`run_rerank` with its phases watched and its scorer measured: report, phases, seconds, CPU seconds."""
    phases, own_phase, resolve = Phases(watch), RunReport.phase, pipeline.plan_for_job
    scorer_folder = str(Path(settings["work"]) / "scorer")

    @contextlib.contextmanager
    def phase(report: RunReport, name: str) -> Iterator[None]:
        yield from phases.measured(name, own_phase(report, name))

    def plan(session: SparkSession, model: Any) -> Any:
        resolved = resolve(session, model)
        return MeasuredPlan(
            resolved, scorer_folder, settings.get("free", False), settings.get("burn_seconds", 0.0)
        )

    config = parse_config(settings["job"])
    before, clock = watch.read(), time.perf_counter()
    with mock.patch.object(RunReport, "phase", phase), mock.patch.object(pipeline, "plan_for_job", plan):
        report = pipeline.run_rerank(spark, config, Console(file=io.StringIO()))
    return report, phases, time.perf_counter() - clock, watch.read() - before


if __name__ == "__main__":
    main(*sys.argv[1:])
