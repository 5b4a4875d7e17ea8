"""From what the rounds measured to the figures that are printed: pure functions of plain numbers."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Spread:
    """A median with the smallest and the largest value of the rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of one value a round. Raises ValueError where there is none."""
        if not values:
            raise ValueError("there is no counted round")
        return cls(statistics.median(values), min(values), max(values))


@dataclass
class Lane:
    """One engine at one batch size on one set of pairs, and what its counted rounds took.

    `batch`: "own" where it plans its batches, else "default", "best" or both; `sample`: "all" or "fewer", the
    smaller set of the slow engines; `seconds`: texts to logits, one a round; `ids_seconds`: token ids to logits.
    """

    engine: str
    title: str
    precision: str
    ours: bool
    batch: str
    batch_size: int | None
    sample: str
    pairs: int
    tokens: int
    seconds: list[float]
    ids_seconds: list[float]
    counterpart: str | None = None
    computed_tokens: int | None = None
    peak_bytes: int | None = None
    peak_device_bytes: int | None = None
    logit_error: float | None = None
    score_error: float | None = None
    kendall_tau: float | None = None

    @property
    def key(self) -> str:
        """Engine and batch size in a word."""
        return self.engine if self.batch_size is None else f"{self.engine}@{self.batch_size}"


@dataclass(frozen=True)
class Row:
    """The figures of one lane."""

    lane: Lane
    tokens_per_second: Spread
    pairs_per_second: Spread
    ids_tokens_per_second: Spread | None
    ratio: Spread | None
    ids_ratio: Spread | None
    share: Spread | None
    padding_share: float | None

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"key": self.lane.key}


def rows_of(
    lanes: Sequence[Lane], flops: Mapping[str, float], rates: Sequence[float], baseline: str | None
) -> list[Row]:
    """The figures of every lane, fastest first.

    `flops`: necessary FLOPs of each sample; `rates`: FLOP/s, one a round, or none; `baseline`: ours, which the
    others are held against where they name no counterpart that ran.
    """
    ours = {(lane.engine, lane.sample): lane for lane in lanes if lane.ours}
    rows = []
    for lane in lanes:
        base = ours.get((lane.counterpart or "", lane.sample)) or ours.get((baseline or "", lane.sample))
        base = None if base is lane else base
        rows.append(
            Row(
                lane,
                Spread.of([lane.tokens / seconds for seconds in lane.seconds]),
                Spread.of([lane.pairs / seconds for seconds in lane.seconds]),
                Spread.of([lane.tokens / s for s in lane.ids_seconds]) if lane.ids_seconds else None,
                ratio(base.seconds, lane.seconds) if base else None,
                ratio(base.ids_seconds, lane.ids_seconds) if base else None,
                share_of_rate(flops.get(lane.sample), lane.seconds, rates),
                padding_share(lane.tokens, lane.computed_tokens),
            )
        )
    return sorted(rows, key=lambda row: -row.tokens_per_second.median)


def ratio(ours: Sequence[float], peer: Sequence[float]) -> Spread | None:
    """How many times as fast ours is, round by round: seconds of the peer over ours, on the same pairs.

    None where one was not measured. Raises ValueError where the rounds do not match.
    """
    if not ours or not peer:
        return None
    return Spread.of([theirs / mine for mine, theirs in zip(ours, peer, strict=True)])


def share_of_rate(flops: float | None, seconds: Sequence[float], rates: Sequence[float]) -> Spread | None:
    """Necessary FLOPs a second over the machine's rate in the same round; None without a rate."""
    if flops is None or not rates:
        return None
    return Spread.of([flops / taken / rate for taken, rate in zip(seconds, rates, strict=True)])


def padding_share(tokens: int, computed_tokens: int | None) -> float | None:
    """The share of computed tokens that nobody asked for: padding, and whatever is computed twice."""
    if not computed_tokens:
        return None
    return max(0.0, 1.0 - tokens / computed_tokens)


def logit_errors(logits: Floats, reference: Floats) -> tuple[float, float, float | None]:
    """Largest |Δ logit|, largest |Δ score| (score: sigmoid of the logit) and Kendall's tau-b, None without an order."""
    mine, theirs = np.asarray(logits, np.float64), np.asarray(reference, np.float64)
    if mine.shape != theirs.shape:
        raise ValueError(f"{mine.shape} logits and {theirs.shape} of the reference")
    by_logit = float(np.abs(mine - theirs).max())
    by_score = float(np.abs(_sigmoid(mine) - _sigmoid(theirs)).max())
    return by_logit, by_score, kendall_tau(mine, theirs)


def kendall_tau(left: Floats, right: Floats) -> float | None:
    """Kendall's tau-b of two float arrays (n,); None where all values of one are equal."""
    one = np.sign(left[:, None] - left[None, :])
    other = np.sign(right[:, None] - right[None, :])
    together = float((one * other).sum())
    pairs = float(np.abs(one).sum()) * float(np.abs(other).sum())
    return together / pairs**0.5 if pairs else None


def _sigmoid(values: Floats) -> Floats:
    tail = np.exp(-np.abs(values))
    found: Floats = np.where(values >= 0, 1.0, tail) / (1.0 + tail)
    return found
