"""How the run went: time, lengths, padding, waves, models, devices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rerank_udf.page.histograms import Histogram, Words, expected_padding, overlaid
from rerank_udf.page.numbers import counted, percent, seconds_text
from rerank_udf.page.overtime import pairs_over_time, tokens_a_second, wave_speeds
from rerank_udf.page.plot import Plot
from rerank_udf.page.rows import Bar

_PEER_BATCH = 32
_FEW_BUCKETS = 4


@dataclass(frozen=True)
class Fact:
    """A name and its words."""

    name: str
    value: str


def run_plots(report: Mapping[str, Any]) -> tuple[Plot, ...]:
    """Lengths, pairs over time, waves: as far as anything was scored."""
    figures, waves = report.get("figures", {}), report["waves"]
    plots = []
    if "lengths" in figures:
        plots.append(_lengths(figures["lengths"]))
    if "times" in figures:
        plots.append(pairs_over_time(figures["times"]))
    if len(waves) > 1 and all("tokens" in wave for wave in waves):
        plots.append(wave_speeds(waves))
    return tuple(plots)


def _lengths(figures: Mapping[str, Any]) -> Plot:
    words = Words(
        "lengths",
        "Pairs and tokens by length",
        "Tokens a pair after truncation. Where the line runs above the bars, few pairs take much of the time.",
        "tokens a pair",
        "pairs",
        "tokens",
        whole=True,
    )
    return overlaid(Histogram.of(figures, "pairs"), Histogram.of(figures, "tokens"), words)


def run_notes(report: Mapping[str, Any]) -> tuple[str, ...]:
    """Sentences on what the charts do not show, or why they are not there."""
    if not report["pairs_scored"]:
        if report["pairs_reused"]:
            known = counted(report["pairs_reused"], "distinct pair")
            return (
                f"Nothing was scored and no model was loaded: the store knew the scores of all {known}. Lengths and "
                "throughput are in the report of the run that scored them.",
            )
        return ("Nothing was scored, so there are no lengths and no throughput to show.",)
    notes = [
        f"{counted(report['pairs_truncated'], 'pair')} of {report['pairs_scored']:,} "
        f"({percent(report['pairs_truncated'], report['pairs_scored'])}) had more tokens than max_length "
        f"{report['model'].get('max_length')} and lost the end of the text.",
    ]
    return tuple(notes + _padding(report.get("figures", {})) + _single_wave(report["waves"]))


def _padding(figures: Mapping[str, Any]) -> list[str]:
    if "lengths" not in figures:
        return []
    told = "Padding: none by construction, since sequences lie one after the other."
    pairs = figures["lengths"]["pairs"]
    mean = sum(number * count for number, count in enumerate(pairs, 1)) / max(1, sum(pairs))
    if mean < _FEW_BUCKETS:  # too coarse: max_length is far above these lengths
        return [told]
    spared = 100.0 * expected_padding(pairs, _PEER_BATCH)
    return [
        f"{told} Padded batches of {_PEER_BATCH} pairs in random order would have computed about {spared:.0f} % "
        "padding on these lengths."
    ]


def _single_wave(waves: list[Mapping[str, Any]]) -> list[str]:
    if len(waves) != 1 or "tokens" not in waves[0]:
        return []
    wave = waves[0]
    return [
        f"One wave of {counted(wave['tasks'], 'task')} scored everything in {seconds_text(wave['seconds'])}, at "
        f"{tokens_a_second(wave):,.0f} tokens/s."
    ]


def phase_bars(report: Mapping[str, Any]) -> tuple[Bar, ...]:
    """Wall-clock seconds by phase, in the order in which the phases began."""
    seconds = report["seconds"]
    longest = max(seconds.values(), default=0.0)
    total = sum(seconds.values())
    return tuple(
        Bar(
            name,
            f"{seconds_text(spent)} · {percent(spent, total)}",
            round(100.0 * spent / max(longest, 1e-9), 2),
        )
        for name, spent in seconds.items()
    )


def run_facts(report: Mapping[str, Any]) -> tuple[Fact, ...]:
    """Models, devices, placement, store: a line each."""
    store, model = report["store"], report["model"]
    facts = [
        ("models loaded", f"{report['models_loaded']:,}" if report["models_loaded"] else "none"),
        ("devices", ", ".join(report["devices"]) or "none"),
        ("placement", report["placement"] or "–"),
        ("waves", f"{len(report['waves']):,}"),
        ("store", f"{store['place']} ({store['format']})" if store else "–"),
        (
            "adopted",
            f"{counted(store['adopted'], 'score')} of runs that died" if store.get("adopted") else "none",
        ),
        ("model key", report["model_key"] or "–"),
        ("truncation", str(model.get("truncation", "–"))),
        ("queries without candidates", f"{report['queries_without_candidates']:,}"),
    ]
    return tuple(Fact(name, value) for name, value in facts)
