"""The measurement itself: every engine loaded in a process of its own, one of them computing at a time.

A round runs every lane once, in an order drawn for it with a fixed seed, so that no engine always follows the same one;
the first is a warm-up and does not count.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from side_by_side.client import Worker, WorkerFailedError
from side_by_side.engines import BEST, Engine
from side_by_side.environments import EnvironmentFailedError, python_of
from side_by_side.pairs import PairSet
from side_by_side.statistics import Lane, logit_errors

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
CARD_BATCH_SIZES = (*BATCH_SIZES, 256, 512)  # what a card of the largest kind may need to be busy
RATE = "matrix-product rate"
_FIRST_TRIED, _FIRST_TRIED_ON_CARD = 8, 32
_PAUSE_SECONDS = 0.5  # a library's threads may spin for a moment after their work


@dataclass(frozen=True)
class Sample:
    """A set of pairs as the workers read it, and which of its rows the reference scores."""

    name: str
    pairs: PairSet
    file: Path
    reference_rows: np.ndarray[Any, np.dtype[np.int64]]
    reference_logits: np.ndarray[Any, np.dtype[np.float32]] | None = None


@dataclass(frozen=True)
class Plan:
    """Everything that a run is told, resolved."""

    model: Path
    device: str
    precision: str
    threads: int
    rounds: int
    torch: str
    folder: Path
    urls: dict[str, str]
    concurrency: int
    served_name: str | None
    fixed_batches: dict[str, int]
    machine: dict[str, Any]


@dataclass
class Loaded:
    """An engine with its process."""

    engine: Engine
    worker: Worker
    facts: dict[str, Any]
    sample: Sample
    searched: dict[int, float] = field(default_factory=dict)


@dataclass
class Outcome:
    """What became of the engines."""

    lanes: list[Lane] = field(default_factory=list)
    not_run: dict[str, str] = field(default_factory=dict)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    searched: dict[str, dict[int, float]] = field(default_factory=dict)
    rates: list[float] = field(default_factory=list)
    flops: dict[str, float] = field(default_factory=dict)


def say(text: str) -> None:
    """Progress, beside the results."""
    print(f"{time.strftime('%H:%M:%S')}  {text}", file=sys.stderr, flush=True)


def load(engine: Engine, plan: Plan, sample: Sample, calibration: Path) -> Loaded:
    """Start an engine's process and load its model. Raises EnvironmentFailedError or WorkerFailedError."""
    say(f"loading {engine.name}")
    python = python_of(engine.environment, plan.torch) if engine.environment else None
    log = plan.folder / "logs" / f"{engine.name}.log"
    worker = Worker(engine.name, python, engine.worker, plan.threads, engine.variables, log)
    precision = plan.precision if engine.precision == BEST else engine.precision
    settings: dict[str, Any] = {
        "model": str(plan.model),
        "device": plan.device,
        "precision": precision,
        "max_length": sample.pairs.max_length,
        "calibration": str(calibration),
        **engine.settings,
    }
    if engine.server:
        settings |= {"server": engine.name, "url": plan.urls[engine.name]}
        settings |= {"concurrency": plan.concurrency, "served_name": plan.served_name}
    try:
        return Loaded(engine, worker, worker.ask("load", **settings), sample)
    except WorkerFailedError:
        worker.stop()
        raise


def load_all(
    engines: Sequence[Engine], plan: Plan, samples: dict[str, Sample], calibration: Path, outcome: Outcome
) -> list[Loaded]:
    """Load what can be loaded; the rest is in `outcome.not_run`."""
    loaded = []
    for engine in engines:
        slow = engine.slow and "fewer" in samples
        try:
            found = load(engine, plan, samples["fewer" if slow else "all"], calibration)
        except (EnvironmentFailedError, WorkerFailedError) as error:
            outcome.not_run[engine.name] = str(error)
            say(f"{engine.name} is not run: {error}")
        else:
            outcome.facts[engine.name] = found.facts
            loaded.append(found)
    return loaded


def search_batch_size(
    seconds_at: Callable[[int], float], sizes: Sequence[int] = BATCH_SIZES, first: int = _FIRST_TRIED
) -> dict[int, float]:
    """Climb from `first` towards the size that takes least: size → seconds of those that were tried.

    A size that fails (memory, say) counts as infinitely slow. Tries the neighbours of the best until both are worse.
    """
    tried: dict[int, float] = {}

    def take(place: int) -> float:
        size = sizes[place]
        if size not in tried:
            try:
                tried[size] = seconds_at(size)
            except WorkerFailedError:
                tried[size] = float("inf")
        return tried[size]

    place = list(sizes).index(first)
    take(place)
    while True:
        neighbours = [p for p in (place - 1, place + 1) if 0 <= p < len(sizes)]
        best = min(neighbours, key=take)
        if take(best) >= take(place):
            return dict(sorted(tried.items()))
        place = best


def batch_sizes(device: str) -> tuple[int, ...]:
    """The batch sizes that may be best on a device."""
    return BATCH_SIZES if device == "cpu" else CARD_BATCH_SIZES


def best_batch(found: Loaded, plan: Plan, search_file: Path) -> int:
    """The batch size that a short search, or the user, says is best."""
    name = found.engine.name
    if name in plan.fixed_batches:
        return plan.fixed_batches[name]
    run = found.worker.ask
    first = _FIRST_TRIED if plan.device == "cpu" else _FIRST_TRIED_ON_CARD

    def seconds_at(size: int) -> float:
        return float(run("run", pairs=str(search_file), batch_size=size)["seconds"])

    with contextlib.suppress(WorkerFailedError):
        seconds_at(first)  # not counted: what runs first is slow, whatever its size
    found.searched = search_batch_size(seconds_at, batch_sizes(plan.device), first)
    best = min(found.searched, key=lambda size: found.searched[size])
    if found.searched[best] == float("inf"):
        raise WorkerFailedError("no batch size works; see its log")
    say(f"{name}: best batch size {best} of {', '.join(map(str, found.searched))}")
    return best


def lanes_of(found: Loaded, best: int | None, samples: dict[str, Sample]) -> list[Lane]:
    """The lanes of an engine: at its default batch size and at its best; ours also on the slow engines' sample."""
    engine = found.engine
    if engine.plans_batches:
        names = ["fewer"] if found.sample.name == "fewer" else list(samples)
        return [_lane(found, "own", None, samples[name]) for name in names]
    if engine.default_batch is None:
        return [_lane(found, "best", best, found.sample)]
    if best in (None, engine.default_batch):
        label = "default" if best is None else "default, best"
        return [_lane(found, label, engine.default_batch, found.sample)]
    return [
        _lane(found, "default", engine.default_batch, found.sample),
        _lane(found, "best", best, found.sample),
    ]


def _lane(found: Loaded, batch: str, size: int | None, sample: Sample) -> Lane:
    engine = found.engine
    return Lane(
        engine=engine.name,
        title=engine.title,
        precision=str(found.facts.get("precision", engine.precision)),
        ours=engine.ours,
        batch=batch,
        batch_size=size,
        sample=sample.name,
        pairs=len(sample.pairs.pairs),
        tokens=sample.pairs.tokens,
        seconds=[],
        ids_seconds=[],
        counterpart=engine.counterpart,
    )


def run_rounds(
    loaded: Sequence[Loaded], lanes: list[Lane], plan: Plan, samples: dict[str, Sample], outcome: Outcome
) -> None:
    """Run every lane in every round; a lane that fails is dropped and named."""
    workers = {found.engine.name: found.worker for found in loaded}
    rate_from = next((found for found in loaded if found.engine.ours), None)
    for number in range(plan.rounds + 1):
        counted = number > 0
        say(f"round {number} of {plan.rounds}" if counted else "warm-up round")
        if counted and rate_from is not None:
            _measure_rate(rate_from.worker, plan, outcome)
        order = np.random.default_rng(number).permutation(len(lanes))
        for lane in [lanes[place] for place in order]:
            time.sleep(_PAUSE_SECONDS)
            try:
                _run_lane(lane, workers[lane.engine], samples[lane.sample], plan, counted)
            except WorkerFailedError as error:
                outcome.not_run[lane.key] = str(error)
                say(f"{lane.key} is dropped: {error}")
                lanes.remove(lane)


def _measure_rate(worker: Worker, plan: Plan, outcome: Outcome) -> None:
    """The machine's matrix-product rate in this round; a share needs it in every round or in none."""
    if RATE in outcome.not_run:
        return
    try:
        answer = worker.ask("rate", precision=plan.precision, device=plan.device)
        outcome.rates.append(float(answer["rate"]))
    except WorkerFailedError as error:
        outcome.not_run[RATE] = str(error)
        outcome.rates.clear()


def _run_lane(lane: Lane, worker: Worker, sample: Sample, plan: Plan, counted: bool) -> None:
    place = plan.folder / "logs" / f"{lane.key}-{lane.sample}.npy"
    logits = {} if counted else {"logits": str(place)}
    answer = worker.ask("run", pairs=str(sample.file), batch_size=lane.batch_size, **logits)
    ids_seconds = answer["ids_seconds"]
    if lane.ours and counted:
        ids_seconds = worker.ask("from_ids", pairs=str(sample.file))["ids_seconds"]
    lane.computed_tokens = answer["computed_tokens"]
    for name in ("peak_bytes", "peak_device_bytes"):
        if answer[name] is not None:
            setattr(lane, name, max(getattr(lane, name) or 0, answer[name]))
    if counted:
        lane.seconds.append(answer["seconds"])
        if ids_seconds is not None:
            lane.ids_seconds.append(ids_seconds)
        say(
            f"  {lane.key}{'*' if lane.sample == 'fewer' else ''}: {lane.tokens / answer['seconds']:,.0f} tokens/s"
        )
    elif sample.reference_logits is not None:
        found = np.load(place)[sample.reference_rows]
        lane.logit_error, lane.score_error, lane.kendall_tau = logit_errors(found, sample.reference_logits)
