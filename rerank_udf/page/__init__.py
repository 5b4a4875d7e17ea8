"""report.html: what a run did, on one page that needs nothing but itself.

Everything on it comes from run_report.json and, where the result was evaluated, evaluation.json beside it. Jinja2 is an
extra (`report`); the rest is here.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FILE = "report.html"
EVALUATION_FILE = "evaluation.json"

__all__ = ["EVALUATION_FILE", "FILE", "missing_package", "render", "render_text"]


def missing_package() -> str | None:
    """The package that a page needs and this Python does not have; None where all is there."""
    return None if importlib.util.find_spec("jinja2") else "Jinja2"


def render(report_json_path: str | Path) -> str:
    """The page of a run_report.json on this machine's disk, as HTML.

    An evaluation.json beside it is taken in if it is of the same run.
    """
    path = Path(report_json_path)
    beside = path.with_name(EVALUATION_FILE)
    evaluation = json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else None
    return render_text(path.read_text(encoding="utf-8"), evaluation)


def render_text(report_json: str, evaluation: Mapping[str, Any] | None = None) -> str:
    """The page of a run_report.json's text, and of an evaluation.json's content where it is of the same run."""
    from rerank_udf.page.template import html_of
    from rerank_udf.page.view import view_of

    report = json.loads(report_json)
    same = evaluation if evaluation and evaluation["run_id"] == report["run_id"] else None
    return html_of(view_of(report, same))
