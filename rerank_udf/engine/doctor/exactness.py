"""Are the logits right? The backend against transformers' own modules in float32, on the same device.

How much may they differ? In float32 by 1e-4, which is what "the same score" means. In 16 bits no fixed number will do:
how far rounding carries depends on the model's depth and scale, and random ids are not the texts that a threshold for
texts is meant for. So the measure is taken here: transformers' own modules run in the same 16 bits, and how far they
are from float32 is what rounding costs this model on these inputs. A right backend rounds elsewhere but as much; a
wrong one (a causal mask, positions that are off, a row that reads its neighbour) errs by the scale of the logits.
The backend is also run in float32, where nothing hides: that finds what is wrong with the forward, and 16 bits what
is wrong with the 16-bit kernel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rerank_udf.engine.backend import Backend, OutOfMemoryError, PackedBatch
from rerank_udf.engine.doctor.report import Exactness
from rerank_udf.engine.padded import PaddedBackend
from rerank_udf.packing import RowNumbers, plan_batches

Logits = npt.NDArray[np.float32]

FLOAT32_TOLERANCE = 1e-4
# Right backends err 0.8 to 1.3 times as much as transformers in the same 16 bits: mini, random and real inputs
RMS_RATIO = 3.0
# ... and the worst row of a hundred 3 to 9 times as much as the rms: texts that a model is unsure of round far. A row
# that a kernel gets wrong is off by about the logits' own spread, some hundred times the rms.
LARGEST_RATIO = 16.0
# What int8 loses is the calibration's affair; a kernel that is wrong leaves no order at all
INT8_LEAST_TAU = 0.8
_SIXTEEN_BITS = ("float16", "bfloat16")
_NOTEWORTHY = 6.0
_LAST = -1e30  # below every logit, and still a number
# Errors have tails: one text in a thousand may pass a neighbour that is further away than that
SWAPPED_SHARE = 0.001


@dataclass(frozen=True)
class _Order:
    """`tau`: Kendall's, the mean of the groups; `swaps`: pairs in the wrong order though far apart, of `compared`."""

    tau: float
    swaps: int
    compared: int


@dataclass(frozen=True)
class Inputs:
    """A batch to check with, and what to call it; `groups`: int64 (rows,), the query of each row, for real texts."""

    name: str
    batch: PackedBatch
    groups: npt.NDArray[np.int64] | None = None


def check(backend: Backend, folder: Path, inputs: Sequence[Inputs]) -> list[Exactness]:
    """Compare `backend`, in its precision and in float32, with the transformers forward of the model in `folder`."""
    ours = {backend.precision: _scores(backend, inputs)}
    if backend.precision != "float32":
        ours["float32"] = _scores(backend.in_float32(), inputs)
    theirs = {
        precision: _scores(PaddedBackend(folder, precision=precision, device=backend.device), inputs)
        for precision in ("float32", *_SIXTEEN_BITS)
        if precision in ours
    }
    return [
        judge(given, precision, found[number], theirs["float32"][number], same_bits[number])
        for precision, found in sorted(ours.items(), reverse=True)
        for same_bits in [theirs.get(precision, theirs["float32"])]
        for number, given in enumerate(inputs)
    ]


def _scores(backend: Backend, inputs: Sequence[Inputs]) -> list[Logits]:
    return [logits_of(backend, given.batch) for given in inputs]


def logits_of(backend: Backend, batch: PackedBatch, max_tokens: int | None = None) -> Logits:
    """Logits of every row, in order: float32 (rows,); batches planned as in a job, halved where memory runs out.

    Raises OutOfMemoryError where a row does not fit even alone.
    """
    logits = np.full(len(batch.lengths), np.nan, dtype=np.float32)
    budget = max_tokens or backend.token_budget()
    waiting = plan_batches(batch.lengths, budget, backend.layout)
    while waiting:
        rows = waiting.pop(0)
        try:
            logits[rows] = backend.finish([backend.start(rows_of(batch, rows))])
        except OutOfMemoryError:
            if len(rows) == 1:
                raise
            waiting[:0] = np.array_split(rows, 2)
    return logits


def rows_of(batch: PackedBatch, rows: RowNumbers) -> PackedBatch:
    """Some rows of a batch, in the order given."""
    lengths = batch.lengths[rows]
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    places = np.arange(offsets[-1]) + np.repeat(batch.offsets[rows] - offsets[:-1], lengths)
    types = None if batch.type_ids is None else batch.type_ids[places]
    return PackedBatch(batch.token_ids[places], offsets, types)


def judge(inputs: Inputs, precision: str, found: Logits, float32: Logits, same_bits: Logits) -> Exactness:
    """Logits of `inputs` in `precision` against those of transformers in float32 and in the same precision.

    `found`, `float32`, `same_bits`: float32 (rows,).
    """
    bad = ~np.isfinite(found)
    errors = _differences(found, float32)
    rms = _rms(errors)
    expected = _rms(_differences(same_bits, float32)) if precision in _SIXTEEN_BITS else None
    order = theirs = None
    if inputs.groups is not None:
        order, theirs = (
            _order(logits, float32, inputs.groups, _NOTEWORTHY * rms) for logits in (found, same_bits)
        )
    unjudged = Exactness(
        inputs=inputs.name,
        precision=precision,
        sequences=len(found),
        longest=int(inputs.batch.lengths.max()),
        largest=float(np.nanmax(errors, initial=0.0)),
        rms=rms,
        worst_tokens=int(inputs.batch.lengths[np.argmax(np.nan_to_num(errors))]),
        expected_rms=expected,
        allowed=_allowed(precision, expected),
        kendall_tau=order.tau if order else None,
        least_tau=INT8_LEAST_TAU if order and precision == "int8" else None,
        swaps=order.swaps if order else 0,
        allowed_swaps=max(theirs.swaps, math.ceil(SWAPPED_SHARE * theirs.compared)) if theirs else 0,
        not_finite=int(bad.sum()),
        expected_not_finite=int((bad & ~np.isfinite(same_bits)).sum()),
        failure=None,
    )
    if not np.isfinite(float32).all():
        return replace(unjudged, failure=f"{inputs.name}: transformers' own logits are not finite in float32")
    return _with_verdict(unjudged)


def _allowed(precision: str, expected_rms: float | None) -> float | None:
    """What the largest error may be."""
    if expected_rms is not None:
        return max(FLOAT32_TOLERANCE, LARGEST_RATIO * expected_rms)
    return FLOAT32_TOLERANCE if precision == "float32" else None


def _differences(found: Logits, float32: Logits) -> npt.NDArray[np.float64]:
    """|Δlogit| of each row, NaN where either is not finite: float64 (rows,)."""
    sound = np.isfinite(found) & np.isfinite(float32)
    errors = np.full(len(found), np.nan)
    errors[sound] = np.abs(found[sound].astype(np.float64) - float32[sound])
    return errors


def _rms(errors: npt.NDArray[np.float64]) -> float:
    known = errors[~np.isnan(errors)]
    return float(np.sqrt(np.mean(known**2))) if len(known) else 0.0


def _with_verdict(found: Exactness) -> Exactness:
    where = f"{found.inputs} in {found.precision}"
    new_not_finite = found.not_finite - found.expected_not_finite
    failure = None
    if new_not_finite:
        failure = (
            f"{where}: {new_not_finite} of {found.sequences} logits are not finite, though transformers' are"
        )
    elif found.expected_rms is not None and found.rms > max(
        FLOAT32_TOLERANCE, RMS_RATIO * found.expected_rms
    ):
        failure = (
            f"{where}: logits err by {found.rms:.2g} (rms) where transformers' own modules err by "
            f"{found.expected_rms:.2g}; expected at most {RMS_RATIO:g} times as much"
        )
    elif found.allowed is not None and found.largest > found.allowed:
        failure = (
            f"{where}: a logit of {found.worst_tokens} tokens is {found.largest:.2g} off the float32 transformers "
            f"forward; expected at most {found.allowed:.2g}"
        )
    elif found.least_tau is not None and (found.kendall_tau or 0.0) < found.least_tau:
        failure = (
            f"{where}: Kendall tau to float32 is {found.kendall_tau:.3f}; expected {found.least_tau} or more"
        )
    elif found.swaps > found.allowed_swaps:
        failure = (
            f"{where}: {found.swaps} pairs of candidates change places though they are more than "
            f"{_NOTEWORTHY:g} x rms apart in float32; expected at most {found.allowed_swaps}"
        )
    return replace(found, failure=failure)


def _order(found: Logits, float32: Logits, groups: npt.NDArray[np.int64], far: float) -> _Order:
    """The order of each group's logits against their order in float32; one that is not finite is last."""
    taus, swaps, compared = [], 0, 0
    for group in np.unique(groups):
        mine, right = (
            np.nan_to_num(logits[groups == group].astype(np.float64), nan=_LAST, posinf=_LAST, neginf=_LAST)
            for logits in (found, float32)
        )
        upper = np.triu_indices(len(mine), 1)
        apart = (right[:, None] - right[None, :])[upper]
        signs = (mine[:, None] > mine[None, :]).astype(int) - (mine[:, None] < mine[None, :])
        agree = signs[upper] * np.sign(apart)
        swaps += int(((agree < 0) & (np.abs(apart) > far)).sum())
        compared += len(agree)
        taus.append(float(agree.mean()) if len(agree) else 1.0)
    return _Order(float(np.mean(taus)), swaps, compared)
