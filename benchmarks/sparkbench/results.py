"""Measured jobs → figures per pair, their growth, tables and a plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Overhead:
    """What one job with the free scorer cost per pair: core-microseconds, bytes, without the session's start.

    `tasks`: Spark's own count of its tasks in the JVM; `jvm_other`: compiling, collecting garbage, planning; `workers`:
    Python on the executors, without what `scorer` counts; `total` is their sum with `driver`, everything but `scorer`.
    """

    pairs: int
    total: float
    tasks: float
    jvm_other: float
    workers: float
    driver: float
    scorer: float
    session_core_seconds: float
    shuffled: float
    spilled: float
    seconds: float

    @classmethod
    def of(cls, measured: dict[str, Any]) -> Overhead:
        """From what `sparkbench.job.measure` returned."""
        pairs = measured["report"]["pairs_in"]
        cpu, scorer = measured["job"]["cpu"], measured["scorer"]["cpu"]
        stages = measured["stages"]
        tasks = sum(stage["task_cpu"] for stage in stages)
        per_pair = 1e6 / pairs
        return cls(
            pairs=pairs,
            total=(sum(cpu.values()) - scorer) * per_pair,
            tasks=tasks * per_pair,
            jvm_other=(cpu["jvm"] - tasks) * per_pair,
            workers=(cpu["workers"] - scorer) * per_pair,
            driver=cpu["driver"] * per_pair,
            scorer=scorer * per_pair,
            session_core_seconds=sum(measured["session"]["cpu"].values()),
            shuffled=sum(stage["shuffled"] for stage in stages) / pairs,
            spilled=sum(stage["spilled_disk"] for stage in stages) / pairs,
            seconds=measured["job"]["seconds"],
        )


@dataclass(frozen=True)
class Growth:
    """core-seconds = fixed + marginal × pairs, by least squares; `exponents`: d log core-s / d log pairs, by step."""

    fixed_core_seconds: float
    marginal_core_us: float
    exponents: list[float]


def growth(costs: Sequence[Overhead]) -> Growth | None:
    """None with fewer than two sizes."""
    if len(costs) < 2:
        return None
    pairs = np.array([cost.pairs for cost in costs], dtype=np.float64)
    seconds = np.array([cost.total * cost.pairs / 1e6 for cost in costs])
    # Relative errors are alike at every size, so the small sizes count as much as the large ones.
    slope, fixed = np.polyfit(pairs, seconds, 1, w=1.0 / seconds)
    exponents = np.diff(np.log(seconds)) / np.diff(np.log(pairs))
    return Growth(float(fixed), float(slope * 1e6), [float(value) for value in exponents])


def print_overheads(console: Console, costs: Sequence[Overhead]) -> None:
    """One line a size."""
    table = Table(title="everything that is not scoring, per pair (core-µs; bytes)", box=None)
    columns = (
        "pairs",
        "core-µs",
        "tasks",
        "JVM other",
        "Python",
        "driver",
        "scorer",
        "shuffled B",
        "spilled B",
        "wall",
    )
    for name in columns:
        table.add_column(name, justify="right")
    for cost in costs:
        table.add_row(
            f"{cost.pairs:,}",
            *(
                f"{value:.1f}"
                for value in (cost.total, cost.tasks, cost.jvm_other, cost.workers, cost.driver, cost.scorer)
            ),
            f"{cost.shuffled:.0f}",
            f"{cost.spilled:.0f}",
            f"{cost.seconds:.0f} s",
        )
    console.print(table)
    found = growth(costs)
    if found is not None:
        steps = ", ".join(f"{value:.2f}" for value in found.exponents)
        console.print(
            f"{found.fixed_core_seconds:.0f} core-s a job + {found.marginal_core_us:.1f} core-µs a pair; "
            f"growth from size to size: pairs^({steps})",
            highlight=False,
        )


def print_phases(console: Console, measured: dict[str, Any]) -> None:
    """One job's core-µs a pair by phase, and its heaviest stages."""
    pairs = measured["report"]["pairs_in"]
    table = Table(title=f"by phase at {pairs:,} pairs (core-µs a pair)", box=None)
    for name in ("phase", "JVM", "Python", "driver", "wall"):
        table.add_column(name, justify="left" if name == "phase" else "right")
    for name, phase in measured["phases"].items():
        cells = [f"{phase['cpu'][part] * 1e6 / pairs:.1f}" for part in ("jvm", "workers", "driver")]
        table.add_row(name, *cells, f"{phase['seconds']:.0f} s")
    console.print(table)


def draw(costs: Sequence[Overhead], title: str, path: Path) -> None:
    """Write a PNG: core-µs a pair over pairs, stacked by where they go. Raises ImportError without matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=150)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    parts = {
        "Spark tasks": "tasks",
        "JVM other": "jvm_other",
        "Python workers": "workers",
        "driver": "driver",
    }
    colours = ("#1f6f8b", "#7fb3c8", "#e0a458", "#b9c4cc")
    labels = [f"{cost.pairs / 1e6:g} M" for cost in costs]
    bottom = np.zeros(len(costs))
    for (label, name), colour in zip(parts.items(), colours, strict=True):
        heights = np.array([max(0.0, getattr(cost, name)) for cost in costs])
        axes.bar(labels, heights, bottom=bottom, color=colour, label=label, width=0.55)
        bottom += heights
    for place, cost in enumerate(costs):
        axes.text(place, bottom[place], f"{cost.total:.1f}", ha="center", va="bottom", fontsize=9)
    axes.set_ylabel("core-µs a pair, without scoring", fontsize=9)
    axes.set_xlabel("candidate rows", fontsize=9)
    axes.set_title(title, fontsize=10, loc="left")
    axes.legend(fontsize=8, frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.tight_layout()
    figure.savefig(path)


def print_model(console: Console, found: dict[str, Any]) -> None:
    """The job with a model beside the engine alone, and beside the plain job on the first pairs."""
    engine, job = found["engine"], found["job"]
    table = Table(title="with a model", box=None)
    for name in ("what", "pairs", "seconds", "pairs/s", "with session"):
        table.add_column(name, justify="left" if name == "what" else "right")
    table.add_row(*_timed("engine alone", engine["pairs"], engine["seconds"], None))
    table.add_row(*_timed("whole job", *_job_seconds(job)))
    if "job_few" in found:
        table.add_row(*_timed("whole job, first pairs", *_job_seconds(found["job_few"])))
    for dtype, plain in found.get("plain", {}).items():
        whole = plain["seconds"] + plain["session_seconds"]
        table.add_row(*_timed(f"mapInPandas, {dtype}, the same", plain["pairs"], plain["seconds"], whole))
    console.print(table)
    for line in ratios(found):
        console.print(line, highlight=False)


def ratios(found: dict[str, Any]) -> list[str]:
    """What the figures come to, a sentence each."""
    engine = found["engine"]
    _, job, whole = _job_seconds(found["job"])
    alone = engine["seconds"]
    lines = [f"engine alone / whole job: {alone / job:.3f}; with the session's start: {alone / whole:.3f}"]
    for dtype, plain in found.get("plain", {}).items():
        _, few, _ = _job_seconds(found["job_few"])
        lines.append(
            f"whole job against mapInPandas with CrossEncoder.predict, {dtype}: {plain['seconds'] / few:.2f} ×"
        )
    return lines


def _job_seconds(job: dict[str, Any]) -> tuple[int, float, float]:
    """Pairs, seconds of the job, seconds with the session's start."""
    return job["report"]["pairs_in"], job["job"]["seconds"], job["job"]["seconds"] + job["session"]["seconds"]


def _timed(what: str, pairs: int, seconds: float, whole: float | None) -> tuple[str, ...]:
    return what, f"{pairs:,}", f"{seconds:.1f}", f"{pairs / seconds:,.0f}", f"{whole:.1f}" if whole else "—"
