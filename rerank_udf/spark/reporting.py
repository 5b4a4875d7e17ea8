"""run_report.json and, where Jinja2 is installed, report.html beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyspark.sql import SparkSession
from rich.console import Console

from rerank_udf import page
from rerank_udf.config import JobConfig
from rerank_udf.lake import files
from rerank_udf.report import RunReport


def write_report(
    spark: SparkSession,
    config: JobConfig,
    report: RunReport,
    console: Console,
    evaluation: Mapping[str, Any] | None = None,
) -> None:
    """Write run_report.json and report.html into `run.report`, with `evaluation` (evaluation.json's content) if given.

    Without Jinja2 there is no page: a sentence on the console says what to install, and the page of an earlier run is
    removed, since it would stand beside another run's figures.
    """
    folder = config.run.report.rstrip("/")
    html = f"{folder}/{page.FILE}"
    report.output["report"] = f"{folder}/run_report.json"
    missing = page.missing_package()
    if missing is None:
        report.output["page"] = html
    text = report.to_json()
    files.write_text(spark, report.output["report"], text)
    if missing is None:
        files.write_text(spark, html, page.render_text(text, evaluation))
        return
    files.remove(spark, html)
    if evaluation is None:  # once a run
        console.print(
            f"no {page.FILE}: it needs {missing} (pip install 'rerank-udf[report]'); the run's figures are in "
            f"{report.output['report']}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
