"""How scoring went on: pairs done over time, and how fast each wave was."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from rerank_udf.page.numbers import compact, counted, seconds_text
from rerank_udf.page.plot import Frame, Plot, ticks, time_ticks


def pairs_over_time(times: Mapping[str, Any]) -> Plot:
    """The pairs whose task had ended, from the beginning of scoring to the end of its last wave."""
    done = [0, *accumulate(times["pairs"])]
    tokens = [0, *accumulate(times["tokens"])]
    moments = [number * times["width"] for number in range(len(done))]
    frame = Frame((0.0, moments[-1]), (0.0, max(1, done[-1]) * 1.06))
    frame.axes(
        _clock_ticks(moments[-1]),
        [(t, compact(t)) for t in ticks(0.0, done[-1], 4)],
        "time since scoring began",
    )
    line = list(zip(moments, done, strict=True))
    frame.path([*line, (moments[-1], 0.0)], "area-a")
    frame.path(line, "line-a")
    rows = [
        (seconds_text(moment), f"{pairs:,}", f"{some:,}")
        for moment, pairs, some, more in zip(moments, done, tokens, [-1, *done], strict=False)
        if pairs != more
    ]
    return Plot(
        "overtime",
        "Pairs scored over time",
        "A pair counts when its task has ended and its score is safe. A straight line is a steady speed; "
        "steps are tasks.",
        tuple(frame.shapes),
        ("time", "pairs done", "tokens done"),
        tuple(rows),
    )


def wave_speeds(waves: Sequence[Mapping[str, Any]]) -> Plot:
    """Tokens a second of each wave, from its beginning to its end."""
    starts = [datetime.datetime.fromisoformat(wave["started_at"]).timestamp() for wave in waves]
    begun = min(starts)
    spans = [(s - begun, s - begun + w["seconds"]) for s, w in zip(starts, waves, strict=True)]
    speeds = [tokens_a_second(wave) for wave in waves]
    end, top = max(end for _, end in spans), max(*speeds, 1e-9) * 1.06
    frame = Frame((0.0, end), (0.0, top))
    frame.axes(
        _clock_ticks(end),
        [(t, compact(t)) for t in ticks(0.0, top, 4)],
        "time since scoring began",
    )
    for (start, stop), speed, wave in zip(spans, speeds, waves, strict=True):
        told = f"wave {wave['wave']}: {speed:,.0f} tokens/s, {counted(wave['pairs'], 'pair')}"
        frame.bar(start, stop, 0.0, speed, "fill-a see-through", told)
    return Plot(
        "waves",
        "Tokens a second by wave",
        "Each block is a wave, as wide as it lasted. The first is a small pilot that sizes the others; two may be "
        "under way at a time and then share the machine.",
        tuple(frame.shapes),
        ("wave", "pairs", "tokens", "tasks", "tries", "time", "tokens/s"),
        tuple(_row(wave) for wave in waves),
    )


def tokens_a_second(wave: Mapping[str, Any]) -> float:
    """A wave's own speed."""
    return float(wave["tokens"] / max(wave["seconds"], 1e-9))


def _row(wave: Mapping[str, Any]) -> tuple[str, ...]:
    numbers = [f"{wave[name]:,}" for name in ("wave", "pairs", "tokens", "tasks", "rounds")]
    return (*numbers, seconds_text(wave["seconds"]), f"{tokens_a_second(wave):,.0f}")


def _clock_ticks(end: float) -> list[tuple[float, str]]:
    return [(t, seconds_text(t) if t else "0") for t in time_ticks(end)]
