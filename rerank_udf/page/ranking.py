"""What reranking did: scores, movement, and where judgements are given what they say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rerank_udf.page.changed import Changed, changed_of
from rerank_udf.page.histograms import Histogram, Words, overlaid
from rerank_udf.page.movement import Movement, heat_map
from rerank_udf.page.numbers import counted, percent, short
from rerank_udf.page.plot import Plot
from rerank_udf.page.precision import precision_plot
from rerank_udf.page.quality import ALL, Quality, differences, means, table

_ABOUT = {
    "logits": "What the model gave, before the sigmoid. The further the line stands to the right of the bars, the "
    "surer the model is of its first choices.",
    "scores": "The same after the sigmoid, as they stand in the table. They are not calibrated: compare them "
    "within a query, not across queries.",
}
_UNJUDGED = "An unjudged passage counts as not relevant; judged@10 says how much of the first ten is judged."


@dataclass(frozen=True)
class Assessed:
    """The evaluation: `tables` by measure, the sentence above all, the notes below."""

    sentence: str
    plots: tuple[Plot, ...]
    precision: Plot | None
    judged_relevant: bool
    tables: tuple[tuple[str, list[dict[str, Any]]], ...]
    compared_with: str
    notes: tuple[str, ...]
    gained: tuple[Changed, ...]
    lost: tuple[Changed, ...]
    measure: str


def ranking_plots(report: Mapping[str, Any]) -> tuple[Plot, ...]:
    """The heat map of ranks, and the distributions of logits and scores."""
    figures, plots = report.get("figures", {}), []
    movement = Movement.of(figures["movement"]) if "movement" in figures else None
    if movement:
        plots.append(heat_map(movement))
    for name in ("logits", "scores"):
        if name in figures:
            plots.append(_scores(figures[name], name))
    return tuple(plots)


def _scores(figures: Mapping[str, Any], name: str) -> Plot:
    title = f"{name.capitalize()}: first passages against the rest"
    words = Words(name, title, _ABOUT[name], name[:-1], "rank 2 and below", "rank 1")
    return overlaid(Histogram.of(figures, "rest"), Histogram.of(figures, "first"), words)


def moved_sentences(report: Mapping[str, Any]) -> tuple[str, ...]:
    """How many queries have another first passage, and how passages moved."""
    figures = report.get("figures", {})
    if "movement" not in figures:
        return ()
    movement = Movement.of(figures["movement"])
    if movement is None:
        return (
            "The candidates carry neither rank nor score, so there is no first-stage order to compare with.",
        )
    placed = movement.rose + movement.kept + movement.fell
    return (
        f"{percent(movement.first_changed, movement.queries)} of {counted(movement.queries, 'query', 'queries')} have "
        f"another first passage than before ({movement.first_changed:,}).",
        f"Of {counted(placed, 'ranked passage')} {percent(movement.rose, placed)} rose, "
        f"{percent(movement.kept, placed)} stayed, {percent(movement.fell, placed)} fell.",
    )


def assessed_of(evaluation: Mapping[str, Any]) -> Assessed:
    """What evaluation.json says, for the page."""
    settings = evaluation["settings"]
    measures: list[str] = settings["measures"]
    first = Quality.of(evaluation, measures[0])
    changed = changed_of(evaluation)
    precision = evaluation["precision"]
    name = "score" if precision["low"] == 0 else "logit"
    return Assessed(
        sentence=_sentence(first),
        plots=(means(first), *((differences(first),) if first.compared else ())),
        precision=precision_plot(precision, name),
        judged_relevant=sum(precision["judged"]) == sum(precision["relevant"]),
        tables=tuple((m, table(Quality.of(evaluation, m))) for m in measures),
        compared_with=settings["baseline"] or "",
        notes=tuple(_notes(evaluation)),
        gained=tuple(one for one in changed if one.gain > 0),
        lost=tuple(one for one in changed if one.gain < 0),
        measure=measures[0],
    )


def _sentence(quality: Quality) -> str:
    row = quality.rows[ALL][quality.ranking]
    if not quality.compared:
        return f"{quality.measure} is {short(row['mean'])} over {counted(row['n'], 'query', 'queries')}."
    change = (
        f"{quality.measure} went from {short(row['baseline_mean'])} to {short(row['mean'])} over "
        f"{counted(row['n'], 'query', 'queries')}"
    )
    if row["ci_low"] is None:
        return f"{change}."
    settled = "" if row["ci_low"] > 0 or row["ci_high"] < 0 else ", which these queries do not settle"
    return (
        f"{change}: {short(row['delta'], sign=True)}, 95 % interval [{short(row['ci_low'], sign=True)}, "
        f"{short(row['ci_high'], sign=True)}]{settled}. "
        f"{row['won']:,} queries won, {row['tied']:,} tied, {row['lost']:,} lost."
    )


def _notes(evaluation: Mapping[str, Any]) -> Iterator[str]:
    """The lines that the terminal has below its table, as sentences. evaluation.json of before has none."""
    yield _UNJUDGED
    for line in evaluation.get("notes", ()):
        yield line[0].upper() + line[1:] + ("" if line.endswith("?") else ".")
