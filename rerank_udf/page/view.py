"""run_report.json and evaluation.json → what the template draws: words and charts, nothing left to compute."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rerank_udf.page.numbers import counted, percent
from rerank_udf.page.plot import Plot
from rerank_udf.page.ranking import Assessed, assessed_of, moved_sentences, ranking_plots
from rerank_udf.page.rows import Bar, Flow, cut_bars, flows, reject_bars
from rerank_udf.page.running import Fact, phase_bars, run_facts, run_notes, run_plots
from rerank_udf.page.settings import Listing, listings
from rerank_udf.report import clock
from rerank_udf.tables import Cut

_PUBLISHED = ("path", "table")


@dataclass(frozen=True)
class Tile:
    """A number of the headline."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class View:
    """The page, from top to bottom."""

    run_id: str
    started_at: str
    command: str
    state: str
    state_look: str
    sentence: str
    advice: str
    tiles: tuple[Tile, ...]
    flows: tuple[Flow, ...]
    assessed: Assessed | None
    no_assessment: str
    moved: tuple[str, ...]
    ranking_plots: tuple[Plot, ...]
    no_ranking: str
    run_plots: tuple[Plot, ...]
    run_notes: tuple[str, ...]
    run_facts: tuple[Fact, ...]
    phases: tuple[Bar, ...]
    rejects: tuple[Bar, ...]
    rejects_place: str
    cuts: tuple[Bar, ...]
    listings: tuple[Listing, ...]


def view_of(report: Mapping[str, Any], evaluation: Mapping[str, Any] | None) -> View:
    """Everything that the page says of a run."""
    state, look, sentence, advice = _state(report)
    plots = ranking_plots(report)
    return View(
        run_id=report["run_id"],
        started_at=report["started_at"],
        command=report["command"],
        state=state,
        state_look=look,
        sentence=sentence,
        advice=advice,
        tiles=_tiles(report),
        flows=flows(report),
        assessed=assessed_of(evaluation) if evaluation else None,
        no_assessment=_no_assessment(report),
        moved=moved_sentences(report),
        ranking_plots=plots,
        no_ranking="" if plots else _no_ranking(report),
        run_plots=run_plots(report),
        run_notes=run_notes(report),
        run_facts=run_facts(report),
        phases=phase_bars(report),
        rejects=reject_bars(report),
        rejects_place=report["output"].get("rejects", ""),
        cuts=cut_bars(report),
        listings=listings(report),
    )


def _state(report: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """What became of the run: a word, its look, a sentence, and what follows from it."""
    place = _place(report)
    rejected = sum(report["rejects"].values())
    if place:
        return "published", "good", f"{counted(report['ranked'], 'ranked row')} in {place}", ""
    if not report["pairs_in"]:
        return "nothing to do", "bad", "The candidates table has no rows", "What was published before stands."
    allowed = report["config"].get("run", {}).get("max_reject_fraction", 0.0)
    if rejected > allowed * report["pairs_in"]:
        return (
            "not published",
            "bad",
            f"{rejected:,} of {counted(report['pairs_in'], 'row')} were rejected",
            f"That is {percent(rejected, report['pairs_in'])}, and run.max_reject_fraction allows "
            f"{percent(allowed, 1)}. "
            "What was published before stands; what was scored is in the store. Mend the input, or allow more.",
        )
    return "not published", "bad", "The run ended before it published anything", ""


def _place(report: Mapping[str, Any]) -> str | None:
    """Where the result is published; None where nothing is."""
    return next((report["output"][name] for name in _PUBLISHED if name in report["output"]), None)


def _tiles(report: Mapping[str, Any]) -> tuple[Tile, ...]:
    model = report["model"]
    speed = f"{report['tokens_per_second']:,.0f}" if report["pairs_scored"] else "–"
    revision = model.get("revision")
    return (
        Tile("pairs in", f"{report['pairs_in']:,}", _distinct(report)),
        Tile("scored", f"{report['pairs_scored']:,}", f"{report['pairs_reused']:,} reused from the store"),
        Tile("ranked", f"{report['ranked']:,}", f"{sum(report['cut'].values()):,} cut"),
        Tile("rejected", f"{sum(report['rejects'].values()):,}", _reasons(len(report["rejects"]))),
        Tile(
            "time",
            clock(sum(report["seconds"].values())),
            f"{clock(report['seconds'].get('score', 0))} scoring",
        ),
        Tile("tokens/s", speed, f"{report['tokens']:,} tokens"),
        Tile(
            "model",
            str(model.get("name", "–")).rstrip("/").rsplit("/", 1)[-1],
            f"revision {revision}" if revision else "",
        ),
        Tile("precision", str(model.get("precision", "–")), f"max_length {model.get('max_length', '–')}"),
    )


def _distinct(report: Mapping[str, Any]) -> str:
    return (
        "not yet deduplicated" if Cut.STOPPED in report["cut"] else f"{report['pairs_distinct']:,} distinct"
    )


def _reasons(count: int) -> str:
    return f"for {counted(count, 'reason')}" if count else "none"


def _no_assessment(report: Mapping[str, Any]) -> str:
    """Why there is no evaluation on the page, and how to get one."""
    settings = report["config"]
    if not settings.get("evaluation", {}).get("qrels"):
        return (
            "There are no judgements, so nothing here says whether the new order is better. Give evaluation.qrels, a "
            "table of query_id, passage_id, relevance, and the next run shows nDCG before and after with intervals, "
            "precision by score, and the queries that gained and lost most."
        )
    if settings.get("output", {}).get("layout") == "nested":
        return "evaluation.qrels is given, but output.layout is nested, and the evaluation reads rows: publish rows."
    if _place(report):
        return (
            "evaluation.qrels is given and the result is published, but no evaluation of it has ended. "
            "rerank-udf evaluate with this run's --config and --set measures what is published and prints the figures; "
            "it scores nothing."
        )
    return "evaluation.qrels is given, but this run published nothing that could be evaluated."


def _no_ranking(report: Mapping[str, Any]) -> str:
    if not report["pairs_in"]:
        return "No rows, so no scores."
    return "No row of this run has a score, so there is no distribution and no movement to show."
