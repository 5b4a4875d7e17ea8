"""Is this machine fit to score? Facts, exactness, speed and memory of one device, as a report.

examine(plan)     → DoctorReport   measures; loads torch, the model and its float32 reference
examine_model(m)  → DoctorReport   the same for the model section of a job's settings
show(report)                       for the terminal, a ClusterReport too
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from rerank_udf.engine.doctor.report import (
    Answer,
    ClusterReport,
    DeviceFacts,
    DoctorReport,
    Exactness,
    Memory,
    Speed,
    TokenizerSpeed,
)
from rerank_udf.engine.doctor.table import show

if TYPE_CHECKING:
    from rerank_udf.config import Model
    from rerank_udf.engine import Scorer, ScorerPlan

__all__ = [
    "Answer",
    "ClusterReport",
    "DeviceFacts",
    "DoctorReport",
    "Exactness",
    "Memory",
    "Speed",
    "TokenizerSpeed",
    "examine",
    "examine_model",
    "show",
]


def examine(plan: ScorerPlan, load: Callable[[ScorerPlan], Scorer] | None = None) -> DoctorReport:
    """Examine the device and the model of a plan, as a job would use them; see `examination.examine`."""
    from rerank_udf.engine.doctor.examination import examine as examine_here  # loads torch

    return examine_here(plan, load)


def examine_model(model: Model) -> DoctorReport:
    """Examine this machine with a job's model and settings; see `examination.examine_model`."""
    from rerank_udf.engine.doctor.examination import examine_model as examine_here

    return examine_here(model)
