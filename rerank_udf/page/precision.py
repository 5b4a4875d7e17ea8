"""What a threshold on the score would leave: how much of it is relevant, and how much of the relevant stays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rerank_udf.page.numbers import percent, plain
from rerank_udf.page.plot import Frame, Plot, ticks


def precision_plot(figures: Mapping[str, Any], name: str) -> Plot | None:
    """Precision and recall of the ranked rows of judged queries by threshold; None where none of them is relevant.

    `name`: of what the threshold is on.
    """
    rows, judged, relevant = (_above(figures[part]) for part in ("rows", "judged", "relevant"))
    if not relevant or not relevant[0]:
        return None
    shown = [n for n in range(len(rows)) if rows[n]]
    first = max(n for n in shown if rows[n] == rows[0])
    shown = [n for n in shown if n >= first]
    at = [figures["low"] + n * figures["width"] for n in range(len(rows))]
    edge = at[shown[-1]] + figures["width"]
    frame = Frame((at[first], edge), (0.0, 104.0))
    frame.axes(
        [(t, plain(t)) for t in ticks(at[first], edge, 5)],
        [(t, f"{t:.0f} %") for t in (0.0, 25.0, 50.0, 75.0, 100.0)],
        f"{name} at least",
    )
    frame.path([(at[n], 100.0 * relevant[n] / relevant[0]) for n in shown], "line-a dashed")
    if judged[0] > relevant[0]:
        frame.path([(at[n], 100.0 * relevant[n] / judged[n]) for n in shown if judged[n]], "line-c")
    frame.path([(at[n], 100.0 * relevant[n] / rows[n]) for n in shown], "line-b")
    return Plot(
        "precision",
        f"Precision by {name} threshold",
        "Of the passages whose score is at least the threshold: how many are relevant (unjudged ones count as not "
        "relevant, and once more among the judged alone), and how many of all ranked relevant passages are left.",
        tuple(frame.shapes),
        ("threshold", "passages", "precision", "of the judged", "relevant kept"),
        tuple(
            (
                plain(round(at[n], 6)),
                f"{rows[n]:,}",
                percent(relevant[n], rows[n]),
                percent(relevant[n], judged[n]),
                percent(relevant[n], relevant[0]),
            )
            for n in shown
        ),
        _legend(judged[0] > relevant[0]),
    )


def _legend(judged: bool) -> tuple[tuple[str, str], ...]:
    lines = [("line-b", "precision"), ("line-a dashed", "relevant kept")]
    return tuple(lines + ([("line-c", "precision among the judged")] if judged else []))


def _above(counts: list[int]) -> list[int]:
    """For each bucket, what lies in it and above."""
    total, found = 0, []
    for count in reversed(counts):
        total += count
        found.append(total)
    return found[::-1]
