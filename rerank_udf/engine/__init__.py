"""The scoring engine: usable without pyspark, and light until a scorer is loaded.

resolve_scorer(...) → ScorerPlan      on the driver: files, precision, model_key; no torch
ScorerPlan.load()   → Scorer          where pairs are scored
load_scorer(...)    → Scorer          both at once
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from rerank_udf.engine.backend import Backend
from rerank_udf.engine.capability import resolve_cpu_backend, resolve_device, resolve_precision
from rerank_udf.engine.scorer import Engine, ModelEngine, Ranked, ScoredPairs, Scorer
from rerank_udf.errors import ConfigError
from rerank_udf.identity import model_key
from rerank_udf.machine import set_tokenizer_threads
from rerank_udf.models import ModelFiles, checkpoint, local_folder, resolve_model
from rerank_udf.tokens import PairLimits, PairTokenizer, Truncation

__all__ = [
    "NUMERICS_VERSION",
    "Ranked",
    "ScoredPairs",
    "Scorer",
    "ScorerPlan",
    "load_scorer",
    "resolve_scorer",
]

# Raise it when a change of code may move a score by more than rounding: old scores are then no longer reused.
NUMERICS_VERSION = 2


@dataclass(frozen=True)
class ScorerPlan:
    """Everything that decides a score, resolved once on the driver; picklable, the same on every node.

    `precision` is resolved, never "auto"; `device` may be "auto", which each process resolves for itself, and
    `max_tokens_per_batch` None, which each device's own size decides. `ranges` belong to precision "int8" alone.
    """

    files: ModelFiles
    limits: PairLimits
    precision: str
    device: str
    max_tokens_per_batch: int | None
    ranges: bytes | None = None

    @property
    def model_key(self) -> str:
        """The key under which scores of this plan may be kept: 32 hex digits."""
        digests = dict(self.files.digests)
        if self.ranges is not None:
            digests["int8 ranges"] = hashlib.sha256(self.ranges).hexdigest()
        return model_key(
            digests,
            precision=self.precision,
            max_length=self.limits.max_length,
            query_max_length=self.limits.query_limit,
            truncation=self.limits.truncation,
            numerics_version=NUMERICS_VERSION,
        )

    def load(self) -> Scorer:
        """Load the model on this node; the first call on a node fetches and verifies its files.

        Raises ModelError where the files or the device are not as the driver found them.
        """
        folder = local_folder(self.files)
        facts = {
            "model": self.files.name,
            "revision": self.files.revision,
            "max_length": self.limits.max_length,
            "query_max_length": self.limits.query_limit,
            "truncation": self.limits.truncation,
            "numerics_version": NUMERICS_VERSION,
        }
        return Scorer(self._engine(folder), model_key=self.model_key, facts=facts)

    def _engine(self, folder: Path) -> Engine:
        if self.files.architecture is None:
            from rerank_udf.engine.faults import read_faults
            from rerank_udf.engine.hashing import HashEngine

            return HashEngine(self.limits.max_length, read_faults(folder))
        set_tokenizer_threads()
        tokenizer = PairTokenizer.from_folder(folder, self.limits)
        return ModelEngine(tokenizer, self._backend(folder), self.max_tokens_per_batch)

    def _backend(self, folder: Path) -> Backend:
        device = resolve_device(self.device)
        if self.precision == "int8" or (
            device == "cpu" and resolve_cpu_backend(self.precision) == "openvino"
        ):
            from rerank_udf.engine.openvino_backend import OpenVinoBackend

            return OpenVinoBackend(folder, precision=self.precision, ranges=self.ranges)
        from rerank_udf.engine.packed import PackedBackend

        # Never "auto": a card that torch cannot use is an error, and not a processor that scores in a card's precision
        return PackedBackend(folder, precision=self.precision, device=device)


def resolve_scorer(
    model: str | Path | ModelFiles = "mini",
    *,
    revision: str | None = None,
    max_length: int = 512,
    query_max_length: int | None = None,
    truncation: Truncation = "only_second",
    precision: str = "auto",
    device: str = "auto",
    max_tokens_per_batch: int | None = None,
    calibrate: bool = True,
) -> ScorerPlan:
    """Resolve a scorer's settings without loading it or torch.

    With precision "auto", `device` says for which device it is meant; "auto" there is this machine's own. With
    "int8", a model that was never calibrated is calibrated now, which loads it; without `calibrate` it stays so: its
    plan is for looking, nothing can be kept under that `model_key`. Raises ConfigError for settings that contradict
    each other, ModelError for a model that is absent or unfit.
    """
    limits = PairLimits(max_length, query_max_length, truncation)
    if max_tokens_per_batch is not None and max_tokens_per_batch < 1:
        raise ConfigError(f"max_tokens_per_batch is {max_tokens_per_batch}; it must be at least 1, or auto")
    resolve_device(device)
    files = model if isinstance(model, ModelFiles) else resolve_model(model, revision)
    if files.architecture is None:  # the hash scorer
        return ScorerPlan(files, limits, "float32", "cpu", None)
    checkpoint.check_length(files.architecture, max_length, files.name)
    limits.check_room(files.architecture.special_tokens)
    chosen = resolve_precision(precision, device)
    ranges = None
    if chosen == "int8":
        from rerank_udf.engine.calibration import kept_ranges, ranges_if_kept

        ranges = kept_ranges(files) if calibrate else ranges_if_kept(files)
    return ScorerPlan(files, limits, chosen, device, max_tokens_per_batch, ranges)


def load_scorer(
    model: str | Path | ModelFiles = "mini",
    *,
    revision: str | None = None,
    max_length: int = 512,
    query_max_length: int | None = None,
    truncation: Truncation = "only_second",
    precision: str = "auto",
    device: str = "auto",
    max_tokens_per_batch: int | None = None,
) -> Scorer:
    """Load a cross-encoder.

    `model`: "mini", a folder, or a hub id with a `revision`. Lengths in tokens; `query_max_length` is three
    quarters of `max_length` by default. `precision`: "float32", "bfloat16", "float16", "int8" (on a CPU, with
    OpenVINO; calibrated on first use), or "auto" for what the device is fast in. `max_tokens_per_batch` is computed
    from the device where it is None. Raises ConfigError for settings that contradict each other, ModelError for a
    model that is absent or unfit.
    """
    files = model if isinstance(model, ModelFiles) else resolve_model(model, revision)
    if device == "auto" and resolve_device(device) != "cpu" and files.architecture is not None:
        from rerank_udf.engine.torch_runtime import torch_device

        device = str(torch_device(device))  # a card is of no use to a torch that was built without CUDA
    return resolve_scorer(
        files,
        max_length=max_length,
        query_max_length=query_max_length,
        truncation=truncation,
        precision=precision,
        device=device,
        max_tokens_per_batch=max_tokens_per_batch,
    ).load()
