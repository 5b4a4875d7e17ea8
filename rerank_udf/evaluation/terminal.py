"""An evaluation as a terminal shows it, and the notes below it, which the page of a run shows too."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text

from rerank_udf.evaluation.counting import ABSENT
from rerank_udf.evaluation.measures import parse_measures
from rerank_udf.evaluation.study import ALL, JUDGED, ORACLE, RANDOM

if TYPE_CHECKING:
    from rerank_udf.evaluation import Evaluation

REMARKS = "remarks"  # of the settings: lines that whoever evaluated has to add


def render(evaluation: Evaluation, measure: str, decimals: int) -> Group:
    """A table with a row per group, "all" last, and the notes below it."""
    settings, summary = evaluation.settings, evaluation.summary
    name, systems = settings["ranking"], settings["systems"]
    shown = summary[(summary["measure"] == measure) & (summary["documents"] == ALL)]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(Text(measure))
    compared = [f"Δ {name} [95% CI]", "W/T/L", "p"] if settings["baseline"] else []
    for header in ["n", *systems, *compared]:
        table.add_column(Text(header), justify="right")
    everyone, *labels = dict.fromkeys(shown["group"])
    for label in [*labels, everyone]:
        rows = {row["system"]: row for row in shown[shown["group"] == label].to_dict("records")}
        cells = [label, f"{rows[name]['n']:,}", *(_short(rows[s]["mean"], decimals) for s in systems)]
        cells += _compared(rows[name], decimals) if compared else []
        table.add_row(*map(Text, cells))
    return Group(table, *map(Text, notes(evaluation, measure, decimals)))


def _compared(row: Mapping[Any, Any], decimals: int) -> list[str]:
    delta = _short(row["delta"], decimals, sign=True)
    if np.isfinite(row["ci_low"]):
        delta += f" [{_short(row['ci_low'], decimals)}, {_short(row['ci_high'], decimals)}]"
    p = "<.001" if row["p_holm"] < 0.001 else _short(row["p_holm"], 3)
    return [delta, f"{row['won']}/{row['tied']}/{row['lost']}", p]


def notes(evaluation: Evaluation, measure: str, decimals: int) -> list[str]:
    """What one measure's figures rest on, and what is remarkable about the tables: a line each, without a full stop."""
    settings, counts, summary = evaluation.settings, evaluation.counts, evaluation.summary
    overall = summary[(summary["group"] == ALL) & (summary["measure"] == measure)].to_dict("records")
    whole = {r["system"]: r for r in overall if r["documents"] == ALL}
    judged = {r["system"]: r for r in overall if r["documents"] == JUDGED}

    def each(rows: Mapping[str, Mapping[Any, Any]], column: str, systems: Iterable[str]) -> str:
        return ", ".join(f"{s} {_short(rows[s][column], decimals)}" for s in systems)

    ceiling = _short(overall[0]["recall_at_depth"], decimals)
    lines = [
        f"recall@{counts['depth']} of the candidates (ceiling) {ceiling}",
        f"judged@10: {each(whole, 'judged_at_10', settings['systems'])}",
    ]
    if judged:
        lines[0] += f"; on them: {each(whole, 'mean', [ORACLE, RANDOM])}"
        lines.append(f"judged passages only: {each(judged, 'mean', settings['systems'])}")
    if settings["baseline"]:
        unit = "queries" if counts["clusters"] == counts["queries"] else "clusters"
        lines.append(
            f"Δ against {settings['baseline']}; {_interval(settings, set(summary['group']))} over "
            f"{counts['clusters']:,} {unit}; paired t-test, Holm over {counts['tests']} tests"
        )
    if settings["top_k"]:
        lines.append(f"of every list the first {settings['top_k']:,} are measured, as many as are published")
        cutoff = parse_measures([measure])[0].params.get("cutoff", 0)
        if cutoff > settings["top_k"]:
            lines.append(
                f"{measure} takes the {cutoff - settings['top_k']:,} places below them for empty ones"
            )
    others = [system for system in settings["systems"] if system != settings["ranking"]]
    lines += _remarks(counts)
    lines += [line for system in others if (line := _remark_on_other(counts, system, whole[system]))]
    return [*lines, *settings.get(REMARKS, [])]


def _interval(settings: Mapping[str, Any], groups: set[str]) -> str:
    """How the intervals came about: one way for all groups, or by a group's size."""
    bootstraps = f"{settings['bootstraps']:,} bootstraps"
    if ALL not in settings["expansion_groups"]:  # it is the largest
        return bootstraps
    smaller = groups.difference(settings["expansion_groups"])
    return "interval by expansion" + (f" (of smaller groups by {bootstraps})" if smaller else "")


def _remarks(counts: Mapping[str, int]) -> list[str]:
    lines = []
    if counts["queries_without_qrels"]:
        lines.append(f"{counts['queries_without_qrels']:,} queries without qrels are left out")
    if counts["queries_without_candidates"]:
        lines.append(f"{counts['queries_without_candidates']:,} queries without candidates count as 0")
    if counts["queries_without_relevant"]:
        found = f"{counts['queries_without_relevant']:,} queries without any relevant passage"
        lines.append(f"{found} count as 0 for every ranking")
    if counts["rows_beyond_candidates"]:
        found = f"{counts['rows_beyond_candidates']:,} rows of the ranking are not among the baseline's"
        lines.append(f"{found} candidates, from which recall, oracle and random come")
    if counts["queries_without_candidates"] == counts["queries"]:
        found = "none of the qrels' queries is in the ranking"
        lines.append(f"{found}: did a threshold or rejects take them, or is query_id spelt otherwise?")
    elif not counts["judged_candidates"]:
        lines.append("none of the ranking's passages is judged: do both tables spell passage_id alike?")
    return lines


def _remark_on_other(counts: Mapping[str, int], system: str, row: Mapping[Any, Any]) -> str | None:
    """Why the figures of a system beside the ranking may say nothing of its quality."""
    absent = counts[f"{ABSENT}[{system}]"]
    if absent == counts["queries"]:
        return f"none of the qrels' queries is in {system}: is query_id spelt otherwise there?"
    if row["judged_at_10"] == 0:
        return f"no passage among the first ten of {system} is judged: is passage_id spelt otherwise there?"
    told = absent in (0, counts[ABSENT])  # of the ranking
    return None if told else f"{absent:,} queries without candidates in {system} count as 0 for it"


def _short(value: Any, decimals: int, *, sign: bool = False) -> str:
    """.71 rather than 0.71, as the field's tables have it."""
    number = float(value)
    if np.isnan(number):
        return "–"
    text = f"{number:+.{decimals}f}" if sign else f"{number:.{decimals}f}"
    return re.sub(r"^([+-]?)0(?=\.)", r"\1", text).replace("-", "−")
