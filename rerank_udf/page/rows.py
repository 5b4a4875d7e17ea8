"""What became of the rows: the flow from pairs in to ranked, and the bars of rejects and cuts by reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rerank_udf.page.advice import CUTS, REJECTS
from rerank_udf.page.numbers import percent


@dataclass(frozen=True)
class Bar:
    """A named amount: `share` of the longest bar, from 0 to 100."""

    name: str
    value: str
    share: float
    note: str = ""


@dataclass(frozen=True)
class Part:
    """A piece of a flow: `share` of the whole in per cent."""

    name: str
    value: str
    share: float
    look: str
    percent: str


@dataclass(frozen=True)
class Flow:
    """A whole and its parts."""

    name: str
    parts: tuple[Part, ...]


def flows(report: Mapping[str, Any]) -> tuple[Flow, ...]:
    """Input rows by what became of them, and distinct pairs by where their scores came from."""
    rows = {
        "ranked": (report["ranked"], "fill-a"),
        "cut": (sum(report["cut"].values()), "fill-c"),
        "rejected": (sum(report["rejects"].values()), "fill-b"),
    }
    pairs = {
        "scored now": (report["pairs_scored"], "fill-a"),
        "reused from the store": (report["pairs_reused"], "fill-c"),
    }
    found = [
        _flow(f"{report['pairs_in']:,} rows in", rows),
        _flow(f"{report['pairs_distinct']:,} distinct pairs", pairs),
    ]
    return tuple(flow for flow in found if flow.parts)


def _flow(name: str, parts: Mapping[str, tuple[int, str]]) -> Flow:
    total = sum(count for count, _ in parts.values())
    return Flow(
        name,
        tuple(
            Part(part, f"{count:,}", round(100.0 * count / total, 3), look, percent(count, total))
            for part, (count, look) in parts.items()
            if count
        ),
    )


def reject_bars(report: Mapping[str, Any]) -> tuple[Bar, ...]:
    """Rejects by reason, the most frequent first, with what to do."""
    return _reasons(report["rejects"], REJECTS, report["pairs_in"])


def cut_bars(report: Mapping[str, Any]) -> tuple[Bar, ...]:
    """Cuts by reason, the most frequent first, with what they mean."""
    return _reasons(report["cut"], CUTS, report["pairs_in"])


def _reasons(counts: Mapping[str, int], notes: Mapping[str, str], rows: int) -> tuple[Bar, ...]:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return tuple(
        Bar(
            reason,
            f"{count:,} · {percent(count, rows)} of the rows",
            round(100.0 * count / max(counts.values()), 2),
            notes.get(reason, ""),
        )
        for reason, count in ordered
        if count
    )
