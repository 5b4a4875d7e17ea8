"""`train`: from the tables and a base model to a folder that scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers.utils.logging import disable_progress_bar

from rerank_udf.engine.capability import resolve_device, resolve_precision
from rerank_udf.engine.torch_runtime import torch_device
from rerank_udf.errors import ConfigError, InputError, ModelError
from rerank_udf.models import local_folder, resolve_model
from rerank_udf.models.checkpoint import (
    CONFIG_FILE,
    INDEX_FILE,
    TOKENIZER_FILE,
    Architecture,
    check_length,
    read_architecture,
)
from rerank_udf.models.hub import look_up
from rerank_udf.tokens import PairLimits
from rerank_udf.training import checkpoints
from rerank_udf.training.development import HeldOutList, held_out_lists
from rerank_udf.training.encode import ListEncoder
from rerank_udf.training.forward import TrainedEncoder
from rerank_udf.training.lists import ListSampler
from rerank_udf.training.output import TOKENIZER_SETTINGS, Trained, check_output, whole_tensors, write_model
from rerank_udf.training.run import ListTrainer, Progress, arguments
from rerank_udf.training.settings import TrainingConfig
from rerank_udf.training.split import Split, split
from rerank_udf.training.tables import TrainingTables, digests, read_tables

_HEAD_DEVIATION = 0.05
_SHOWN = 90  # characters


def train(config: TrainingConfig, console: Console) -> Path:
    """Train, or go on where an earlier call with the same settings was stopped; returns the model's folder.

    Raises ConfigError, InputError or ModelError with a sentence where settings, tables or base do not fit.
    """
    disable_progress_bar()  # type: ignore[no-untyped-call]
    work = Path(config.work)
    check_output(Path(config.output))
    torch_device(resolve_device(config.device))
    folder = base_folder(config)
    sets = [read_tables(one) for one in config.sets]
    splits = [split(one, config.seed) for one in sets]
    for one, divided in zip(sets, splits, strict=True):
        console.print(_described(one, divided), highlight=False)
    lists = ListSampler(config, sets, splits, config.schedule.steps * config.schedule.lists_per_step)
    held_out = _measured(config, sets, splits, None)
    _check_measurable(held_out)
    start = checkpoints.claim(
        work, config, {name: one for each in sets for name, one in digests(each).items()}
    )
    trainer, progress = _trainer(config, folder, lists, console)
    if start is not None:
        later = checkpoints.delete_after(start)
        deleted = f"; {', '.join(later)} deleted, saved while the rate was falling" if later else ""
        console.print(f"going on from {start.name}{deleted}", highlight=False)
    some = _measured(config, sets, splits, config.schedule.evaluate_queries)
    progress.held_out = some if any(one.passage_ids for one in some) else []
    trainer.train(resume_from_checkpoint=None if start is None else str(start))
    averaged = _average(trainer, work, config.schedule.average_last)
    progress.held_out = held_out
    if held_out:
        console.print(f"measuring on {len(held_out):,} held-out queries", highlight=False)
    found = progress.report(config.schedule.steps)
    trained = Trained(config, sets, splits, averaged, found)
    whole = trainer.model.model if config.new_head else None  # type: ignore[union-attr]
    return write_model(trained, folder, trainer.trained_weights(), whole)


def preview(config: TrainingConfig, console: Console) -> None:
    """Read and check the tables, print each set's size and its first list; no model, nothing is written."""
    held_out: list[HeldOutList] = []
    for one in config.sets:
        tables = read_tables(one)
        divided = split(tables, config.seed)
        console.print(_described(tables, divided), highlight=False)
        held_out += held_out_lists(tables, divided)
        shown = ListSampler(config, [tables], [divided], 1)[0]
        console.print(
            f"  «{shown.query[:_SHOWN]}» · at most {shown.max_length} tokens", highlight=False, markup=False
        )
        for place, (passage, logit) in enumerate(zip(shown.passages, shown.teacher.tolist(), strict=True)):
            mark = "✓" if shown.relevant and place == 0 else " "
            told = "" if math.isnan(logit) else f"{logit:7.2f} "
            console.print(f"  {mark} {told}{passage[:_SHOWN]}", highlight=False, markup=False)
    _check_measurable(held_out)


def base_folder(config: TrainingConfig) -> Path:
    """The base model's folder on this machine; one without a head is taken where `new_head` is set."""
    if not config.new_head:
        return local_folder(resolve_model(config.base, config.revision))
    folder = Path(config.base).expanduser()
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        if config.revision is None:
            raise ConfigError(f"base {config.base!r} is no folder here; as a hub id it needs a revision")
        wanted = [CONFIG_FILE, TOKENIZER_FILE, *TOKENIZER_SETTINGS, "*.safetensors", f"*{INDEX_FILE}"]
        try:
            folder = Path(snapshot_download(config.base, revision=config.revision, allow_patterns=wanted))
        except Exception as error:
            look_up(config.base, config.revision)  # raises where the hub is away, or has no such model
            first_line = f"{type(error).__name__}: {error}".strip().split("\n")[0]
            raise ModelError(
                f"the hub model {config.base} at revision {config.revision} cannot be downloaded ({first_line})"
            ) from error
    absent = [name for name in (CONFIG_FILE, TOKENIZER_FILE) if not (folder / name).is_file()]
    if absent:
        raise ModelError(f"the base model {folder} has no {absent[0]}")
    return folder


def _trainer(
    config: TrainingConfig, folder: Path, sampler: ListSampler, console: Console
) -> tuple[ListTrainer, Progress]:
    from rerank_udf.training.run import Lists

    model = _model(config, folder)
    encoder = ListEncoder(folder, int(model.config.pad_token_id), config.long_passages == "best")
    progress = Progress(console)
    trainer = ListTrainer(
        config,
        TrainedEncoder(model, config.freeze.layers if config.freeze.embeddings else None),
        encoder,
        args=arguments(config),
        train_dataset=Lists(sampler),
        callbacks=[progress],
    )
    progress.trainer = trainer
    return trainer, progress


def _model(config: TrainingConfig, folder: Path) -> Any:
    """transformers' module in the precision of training, without dropout, with what is frozen frozen."""
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(config.seed)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, local_files_only=True)
    if config.freeze.layers >= model.config.num_hidden_layers:
        raise ConfigError(
            f"freeze.layers is {config.freeze.layers}, but the base has {model.config.num_hidden_layers} layers"
        )
    if config.new_head:
        for name, parameter in model.classifier.named_parameters():
            torch.nn.init.normal_(parameter, std=_HEAD_DEVIATION if name.endswith("weight") else 0.0)
        model.config.architectures = [type(model).__name__]
        whole_tensors(model, config.base)  # what cannot be scored with in the end is told now
    _check_lengths(config, read_architecture(model.config.to_dict(), config.base))
    if config.freeze.embeddings:
        model.base_model.embeddings.requires_grad_(False)
    for layer in model.base_model.encoder.layer[: config.freeze.layers]:
        layer.requires_grad_(False)
    return model.to(_precision(config)).eval()


def _check_lengths(config: TrainingConfig, architecture: Architecture) -> None:
    """Raise ModelError for pairs longer than the base's positions, ConfigError for ones without room for a passage."""
    lengths = [length for one in config.sets for length in one.max_lengths]
    check_length(architecture, max(lengths), config.base)
    PairLimits(max_length=min(lengths)).check_room(architecture.special_tokens)


def _precision(config: TrainingConfig) -> torch.dtype:
    if config.precision != "auto":
        dtype: torch.dtype = getattr(torch, config.precision)
        return dtype
    if resolve_device(config.device) != "cpu":
        return torch.bfloat16 if torch.cuda.get_device_capability() >= (8, 0) else torch.float32
    return torch.bfloat16 if resolve_precision("auto", "cpu") == "bfloat16" else torch.float32


def _measured(
    config: TrainingConfig, sets: Sequence[TrainingTables], splits: Sequence[Split], most: int | None
) -> list[HeldOutList]:
    pairs = zip(sets, splits, strict=True)
    return [one for tables, divided in pairs for one in held_out_lists(tables, divided, most)]


def _check_measurable(lists: Sequence[HeldOutList]) -> None:
    """Raise InputError where queries are held out and none has a passage to order; one of many counts as 0."""
    if lists and not any(one.passage_ids for one in lists):
        names = ", ".join(dict.fromkeys(one.texts.set_name for one in lists))
        raise InputError(
            f"none of the {len(lists):,} held-out queries of {names} has candidates (in the language of its right "
            "passage), so nothing can be measured; look at the candidates' query ids, or set held_out.queries to 0"
        )


def _average(trainer: ListTrainer, work: Path, count: int) -> list[int]:
    """Set the weights to the mean of the last `count` checkpoints; returns their steps."""
    newest = list(checkpoints.found(work).items())[-count:]
    optimizer = trainer.create_optimizer()
    sums = [torch.zeros_like(one, device="cpu") for one in optimizer.masters]
    for _, folder in newest:
        state = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)
        for total, master in zip(sums, state["masters"], strict=True):
            total += master / len(newest)
    if newest:
        optimizer.load_masters(sums)
    return [step for step, _ in newest]


def _described(tables: TrainingTables, divided: Split) -> str:
    return (
        f"{tables.settings.name}: {len(tables.queries.ids):,} queries, {len(tables.passages.ids):,} passages · "
        f"{len(divided.train):,} train, {len(divided.held_out):,} held out"
    )
