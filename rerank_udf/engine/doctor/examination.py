"""Examine one device: what is there, whether its logits are right, how fast it is."""

from __future__ import annotations

import socket
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rerank_udf.config import Model
from rerank_udf.engine import ScorerPlan, resolve_scorer
from rerank_udf.engine.backend import PackedBatch
from rerank_udf.engine.capability import resolve_device
from rerank_udf.engine.doctor.exactness import Inputs, check
from rerank_udf.engine.doctor.host import device_facts, installed_versions
from rerank_udf.engine.doctor.report import DoctorReport, Exactness
from rerank_udf.engine.doctor.samples import (
    LONGEST,
    check_lengths,
    random_sequences,
    real_pairs,
    write_long_model,
)
from rerank_udf.engine.doctor.speed import PeakMemory, measure_speed, measure_tokenizer
from rerank_udf.engine.torch_runtime import torch_device
from rerank_udf.errors import ConfigError
from rerank_udf.models import local_folder, resolve_model
from rerank_udf.models.checkpoint import SENTENCEPIECE_FILE, TOKENIZER_FILE, Architecture
from rerank_udf.models.sentencepiece import converted_tokenizer
from rerank_udf.texts import text_columns
from rerank_udf.tokens import PairTokenizer

if TYPE_CHECKING:
    from rerank_udf.engine.backend import Backend
    from rerank_udf.engine.scorer import Scorer

# Queries and candidates of each, of the demo's 92 x 24: a processor takes 10 ms for what a card does in 20 µs
_CPU_PAIRS, _CUDA_PAIRS = (8, 16), (92, 34)
_LONG_FROM = 511


def examine(plan: ScorerPlan, load: Callable[[ScorerPlan], Scorer] | None = None) -> DoctorReport:
    """Examine the device and the model of a plan, as a job would use them.

    `load` makes the scorer, `ScorerPlan.load` by default. Takes about a minute for `mini` on two cores. Raises
    ModelError where the model cannot be loaded, ConfigError for the hash scorer, which has nothing to examine.
    """
    start = time.monotonic()
    architecture = plan.files.architecture
    if architecture is None:
        raise ConfigError(f"{plan.files.name} is scored by a hash of the pair: there is no model to examine")
    facts = device_facts(plan.device)
    report = DoctorReport(
        host=socket.gethostname(),
        versions=installed_versions(),
        device=facts,
        model=_model_facts(plan, architecture),
        backend={},
        exactness=(),
        speed=None,
        memory=None,
        tokenizer=None,
        seconds=0.0,
    )
    if facts.supported:
        report = _measured(report, replace(plan, device=facts.device), architecture, load)
    return replace(report, seconds=time.monotonic() - start)


def examine_model(model: Model) -> DoctorReport:
    """Examine this machine with a job's model and settings.

    Raises ConfigError for settings that contradict each other, ModelError for a model that is absent or unfit, or a
    device that torch does not see.
    """
    resolve_device(model.device)  # refuses a name that is none
    files = resolve_model(model.name, model.revision)
    settings = model.model_dump(exclude={"name", "revision", "device"})
    if model.max_tokens_per_batch == "auto":
        settings["max_tokens_per_batch"] = None
    return examine(resolve_scorer(files, device=str(torch_device(model.device)), **settings))


def _measured(
    report: DoctorReport,
    plan: ScorerPlan,
    architecture: Architecture,
    load: Callable[[ScorerPlan], Scorer] | None,
) -> DoctorReport:
    """The report with everything that needs the model loaded."""
    folder = local_folder(plan.files)
    with PeakMemory(plan.device) as memory:
        scorer = (load or type(plan).load)(plan)
        backend = scorer.backend
        assert backend is not None, "only the hash scorer has none"
        told = scorer.describe()
        max_tokens = int(told["max_tokens_per_batch"])
        speed = measure_speed(backend, architecture, max_tokens, plan.limits.max_length)
        peak = memory.found(_predicted_bytes(backend, max_tokens))
    return replace(
        report,
        backend={name: told[name] for name in ("backend", "max_tokens_per_batch")} | backend.describe(),
        versions=report.versions | told["versions"],
        exactness=(*_exactness(backend, folder, plan, architecture), *_long_exactness(backend, architecture)),
        speed=speed,
        memory=peak,
        tokenizer=measure_tokenizer(tokenizer_file(folder), speed.tokens_per_second),
    )


def _exactness(
    backend: Backend, folder: Path, plan: ScorerPlan, architecture: Architecture
) -> list[Exactness]:
    """The model itself: random ids up to what a job sends (all it takes, on a card), and real texts."""
    on_cpu = backend.device == "cpu"
    longest = min(plan.limits.max_length if on_cpu else architecture.most_tokens, LONGEST)
    lengths = [length for length in check_lengths(2, longest) for _ in range(2)]
    pairs = real_pairs(*(_CPU_PAIRS if on_cpu else _CUDA_PAIRS))
    tokenizer = PairTokenizer.from_folder(folder, plan.limits)
    cut = tokenizer.cut(*text_columns(pairs.queries, pairs.passages))
    texts = PackedBatch(*cut.assemble(np.arange(len(pairs.queries))))
    inputs = [
        Inputs(f"random ids, to {longest:,}", random_sequences(architecture, lengths)),
        Inputs("real texts", texts, pairs.groups),
    ]
    return check(backend, folder, inputs)


def _long_exactness(backend: Backend, architecture: Architecture) -> list[Exactness]:
    """A made-up model for the lengths that the model's own positions, or a processor's patience, do not allow."""
    if backend.device != "cpu" and architecture.most_tokens >= LONGEST:
        return []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        long = write_long_model(folder, architecture)
        kind: Any = type(backend)
        # int8 would have to be calibrated first, and random weights say nothing about it
        precision = "float32" if backend.precision == "int8" else backend.precision
        made: Backend = kind(folder, precision=precision, device=backend.device)
        lengths = [*check_lengths(_LONG_FROM, LONGEST), *check_lengths(2, 64)]
        inputs = [Inputs(f"made-up model, to {LONGEST:,}", random_sequences(long, lengths))]
        return check(made, folder, inputs)


def _model_facts(plan: ScorerPlan, architecture: Architecture) -> dict[str, Any]:
    return {
        "name": plan.files.name,
        "revision": plan.files.revision,
        "model_key": plan.model_key,
        "precision": plan.precision,
        "layers": architecture.layers,
        "hidden": architecture.hidden,
        "most_tokens": architecture.most_tokens,
        "max_length": plan.limits.max_length,
    }


def tokenizer_file(folder: Path) -> Path:
    """The tokenizer.json of a model folder, or what its sentencepiece model was converted to."""
    path, older = folder / TOKENIZER_FILE, folder / SENTENCEPIECE_FILE
    return path if path.is_file() else converted_tokenizer(older)[0]


def _predicted_bytes(backend: Backend, max_tokens: int) -> int | None:
    """What the backend says that it needs, where it says so."""
    predict: Any = getattr(backend, "predicted_bytes", None)
    return None if predict is None else int(predict(max_tokens))
