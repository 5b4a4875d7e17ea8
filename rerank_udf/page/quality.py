"""What the judgements say: means by group before and after, differences with their intervals, all of it as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rerank_udf.page.numbers import p_value, short
from rerank_udf.page.plot import Frame, Plot, ticks

ALL = "all"
_MOST_GROUPS = 24
_NAME = 17
_ROW = 40.0
_LOOKS = ("dot-a", "dot-c", "dot-d")


@dataclass(frozen=True)
class Quality:
    """evaluation.json's summary of one measure: rows[group][system]."""

    measure: str
    rows: Mapping[str, Mapping[str, Mapping[str, Any]]]
    systems: tuple[str, ...]
    baseline: str | None
    ranking: str

    @classmethod
    def of(cls, evaluation: Mapping[str, Any], measure: str) -> Quality:
        """The rows over all documents, groups as they stand there, "all" last."""
        settings = evaluation["settings"]
        found: dict[str, dict[str, Mapping[str, Any]]] = {}
        for row in evaluation["summary"]:
            if row["measure"] == measure and row["documents"] == ALL:
                found.setdefault(str(row["group"]), {})[row["system"]] = row
        ordered = {group: found[group] for group in (*(g for g in found if g != ALL), ALL)}
        return cls(measure, ordered, tuple(settings["systems"]), settings["baseline"], settings["ranking"])

    @property
    def compared(self) -> tuple[str, ...]:
        """The systems that are compared with the baseline."""
        return tuple(s for s in self.systems if s != self.baseline) if self.baseline else ()

    def look(self, system: str) -> str:
        """The colour of a system's dots: the published ranking's is its own, the baseline's is hollow."""
        if system == self.baseline:
            return "dot-open"
        if system == self.ranking:
            return "dot-b"
        others = [s for s in self.systems if s not in (self.baseline, self.ranking)]
        return _LOOKS[others.index(system) % len(_LOOKS)]


def means(quality: Quality) -> Plot:
    """Each group's mean under each system, on one scale."""
    groups = _shown(quality)
    values = [row["mean"] for group in groups for row in _of(quality, group)]
    low, high = max(0.0, min(values) - 0.06), max(values) + 0.06
    high = 1.0 if max(values) <= 1.0 < high else high
    frame = _rows(groups, (low, high), [(t, short(t, 2)) for t in ticks(low, high, 5)], quality.measure)
    for number, group in enumerate(groups):
        rows = quality.rows[group]
        place = len(groups) - number - 0.5
        found = [rows[s]["mean"] for s in quality.systems]
        frame.path([(min(found), place), (max(found), place)], "stem")
        for system in sorted(quality.systems, key=lambda s: s == quality.ranking):
            told = f"{group}, {system}: {short(rows[system]['mean'])}"
            frame.dot(rows[system]["mean"], place, quality.look(system), told)
    return Plot(
        "means",
        f"{quality.measure} before and after",
        f"The mean {quality.measure} of each group of queries under each ranking. Further right is better.",
        tuple(frame.shapes),
        ("group", *quality.systems),
        tuple((g, *(short(quality.rows[g][s]["mean"]) for s in quality.systems)) for g in groups),
        tuple((quality.look(s), s) for s in quality.systems),
        height=frame.height,
    )


def differences(quality: Quality) -> Plot:
    """Each system's mean difference to the baseline, with its interval."""
    groups = _shown(quality)
    rows = [quality.rows[g][s] for g in groups for s in quality.compared]
    ends = [row[name] for row in rows for name in ("ci_low", "ci_high", "delta") if row[name] is not None]
    low, high = min(0.0, *ends) - 0.02, max(0.0, *ends) + 0.02
    marks = [(t, short(t, 2, sign=True) if t else "0") for t in ticks(low, high, 5)]
    frame = _rows(groups, (low, high), marks, f"Δ {quality.measure} against {quality.baseline}")
    frame.path([(0.0, 0.0), (0.0, float(len(groups)))], "zero")
    for number, group in enumerate(groups):
        for lane, system in enumerate(quality.compared):
            row = quality.rows[group][system]
            place = len(groups) - number - (lane + 1) / (len(quality.compared) + 1)
            told = f"{group}, {system}: {_interval(row)}"
            if row["ci_low"] is not None:
                look = quality.look(system).replace("dot", "line")
                frame.path([(row["ci_low"], place), (row["ci_high"], place)], look, told)
            frame.dot(row["delta"], place, quality.look(system), told)
    return Plot(
        "differences",
        f"Difference to {quality.baseline}, with 95 % interval",
        "An interval that crosses the line at 0 says that the queries at hand do not settle whether it helps.",
        tuple(frame.shapes),
        ("group", *quality.compared),
        tuple((g, *(_interval(quality.rows[g][s]) for s in quality.compared)) for g in groups),
        tuple((quality.look(s), s) for s in quality.compared),
        height=frame.height,
    )


def table(quality: Quality) -> list[dict[str, Any]]:
    """A row for each group × compared system, or for each group's ranking where nothing is compared."""
    return [
        {
            "group": group,
            "system": system,
            "n": f"{row['n']:,}",
            "before": short(row["baseline_mean"]),
            "after": short(row["mean"]),
            "difference": _interval(row),
            "won": row["won"],
            "tied": row["tied"],
            "lost": row["lost"],
            "p": p_value(row["p_holm"]),
            "recall": short(row["recall_at_depth"]),
            "judged": short(row["judged_at_10"]),
        }
        for group in quality.rows
        for system in (quality.compared or (quality.ranking,))
        for row in (quality.rows[group][system],)
    ]


def _interval(row: Mapping[str, Any]) -> str:
    if row["ci_low"] is None:
        return short(row["delta"], sign=True)
    return f"{short(row['delta'], sign=True)} [{short(row['ci_low'])}, {short(row['ci_high'])}]"


def _shown(quality: Quality) -> list[str]:
    """The groups that a chart has room for, all of them together first."""
    return [ALL, *(group for group in quality.rows if group != ALL)][:_MOST_GROUPS]


def _of(quality: Quality, group: str) -> list[Mapping[str, Any]]:
    return [quality.rows[group][system] for system in quality.systems]


def _rows(
    groups: Sequence[str], x: tuple[float, float], marks: Sequence[tuple[float, str]], x_name: str
) -> Frame:
    """A frame with a lane for each group, named on the left."""
    lanes = len(groups)
    frame = Frame(x, (0.0, float(lanes)), height=12.0 + lanes * _ROW + 40.0, left=124.0)
    for value, _ in marks:
        frame.path([(value, 0.0), (value, float(lanes))], "rule")
    frame.axes(marks, [], x_name)
    for number, group in enumerate(groups):
        name = group if len(group) <= _NAME else group[: _NAME - 1] + "…"
        frame.words(112.0, frame.up(lanes - number - 0.5) + 4, name, "end", "lane")
    return frame
