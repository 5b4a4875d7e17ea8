"""run_report.json and, where Jinja2 is installed, report.html beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pyspark.sql import SparkSession
from rich.console import Console

from rerank_udf import page
from rerank_udf.config import JobConfig
from rerank_udf.errors import PublishedError, RerankError
from rerank_udf.lake import files
from rerank_udf.lake.failures import innermost_cause
from rerank_udf.report import RunReport

FILE = "run_report.json"


@contextmanager
def published_all_the_same(config: JobConfig, but: str, remedy: str) -> Iterator[None]:
    """Errors say that the table is there, `but` what; and end with 1: 2 would mean that nothing was scored."""
    try:
        yield
    except Exception as error:
        why = str(error) if isinstance(error, RerankError) else innermost_cause(error)
        raise PublishedError(
            f"{config.output.reranked} is published, but {but}: {why.rstrip('.')}; {remedy}"
        ) from error


def read_report(spark: SparkSession, folder: str) -> Mapping[str, Any]:
    """The report that the last run left in `run.report`; empty where there is none that can be understood."""
    try:
        found = json.loads(files.read_text(spark, f"{folder.rstrip('/')}/{FILE}") or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


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
    report.output["report"] = f"{folder}/{FILE}"
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
