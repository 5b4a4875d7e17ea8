"""A trained model as a standard folder, with its card."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rerank_udf.errors import ConfigError, ModelError
from rerank_udf.evaluation import Evaluation
from rerank_udf.machine import write_refusal
from rerank_udf.models.checkpoint import (
    CONFIG_FILE,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
    check_tensors,
    read_architecture,
    read_json,
    weight_files,
)
from rerank_udf.report import installed_versions
from rerank_udf.training.development import FIRST, MODEL, TEACHER
from rerank_udf.training.settings import TrainingConfig
from rerank_udf.training.split import Split
from rerank_udf.training.tables import TrainingTables

CARD_FILE = "README.md"
# By these transformers' tokenizers decide on lower-casing and special tokens; scoring here reads tokenizer.json alone
TOKENIZER_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt")


@dataclass(frozen=True)
class Trained:
    """What a run did: `averaged` are the steps whose weights' mean the model is."""

    config: TrainingConfig
    sets: Sequence[TrainingTables]
    splits: Sequence[Split]
    averaged: list[int]
    evaluation: Evaluation | None


def check_output(target: Path) -> None:
    """Raise ConfigError for a place that cannot be written, or holds something else than a model.

    The new model replaces the whole folder.
    """
    if target.is_file() or (
        target.is_dir() and any(target.iterdir()) and not (target / WEIGHTS_FILE).is_file()
    ):
        raise ConfigError(
            f"output: {target} holds no {WEIGHTS_FILE}, and the model would replace it; give a folder that is empty or "
            "does not exist yet"
        )
    if (why := write_refusal(target.absolute().parent)) is not None:
        raise ConfigError(
            f"output: the model could not be written to {target} ({why}); give another folder, or the right to write"
        )


def whole_tensors(model: Any, label: str) -> dict[str, Tensor]:
    """The tensors of a transformers module that scoring reads; raises ModelError where it could not score."""
    architecture = read_architecture(model.config.to_dict(), label)
    names = architecture.tensors()
    found = {name: one for name, one in model.state_dict().items() if name in names}
    check_tensors(architecture, {name: tuple(one.shape) for name, one in found.items()}, label)
    return found


def write_model(
    trained: Trained, base: Path, weights: Mapping[str, Tensor], whole: Any | None = None
) -> Path:
    """config.json, model.safetensors, tokenizer.json and README.md; whole or not at all.

    `weights`: what was trained; the rest is the base's own, or, where that is no cross-encoder, of the module `whole`.
    Raises ModelError for weights that are not finite; an older model is left as it is then.
    """
    target = Path(trained.config.output)
    if whole is None:
        tensors = {name: one for file in weight_files(base) for name, one in load_file(file).items()}
    else:
        tensors = {name: one.cpu() for name, one in whole_tensors(whole, trained.config.base).items()}
    tensors |= weights
    floats = {name: one for name, one in tensors.items() if one.is_floating_point()}
    wanted = _narrowed(floats, trained.config)
    told = card(trained, base)
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    if whole is None:
        shutil.copyfile(base / CONFIG_FILE, partial / CONFIG_FILE)
    else:
        whole.config.to_json_file(partial / CONFIG_FILE)
    shutil.copyfile(base / TOKENIZER_FILE, partial / TOKENIZER_FILE)
    for file in TOKENIZER_SETTINGS:
        if (base / file).is_file():
            shutil.copyfile(base / file, partial / file)
    save_file(wanted, partial / WEIGHTS_FILE, metadata={"format": "pt"})
    (partial / CARD_FILE).write_text(told, encoding="utf-8")
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    return target


def _narrowed(tensors: Mapping[str, Tensor], config: TrainingConfig) -> dict[str, Tensor]:
    """In the precision of the output. Raises ModelError for what is not finite, or no longer so in that precision."""
    found = {}
    for name, one in tensors.items():
        found[name] = one.to(getattr(torch, config.output_precision)).contiguous()
        if not bool(one.isfinite().all()):
            raise ModelError(
                f"after training, weights of {name} are not finite numbers: it diverged, and no model was written; try "
                f"a lower optimizer.learning_rate (it is {config.optimizer.learning_rate:g}) or precision: float32, "
                f"with another work folder than {config.work}, whose checkpoints have these weights too"
            )
        if not bool(found[name].isfinite().all()):
            raise ModelError(
                f"weights of {name} are too large for output_precision {config.output_precision}, and no model was "
                "written; set output_precision: float32"
            )
    return found


def card(trained: Trained, base: Path) -> str:
    """The model card: data, licences, recipe, figures, limits."""
    config, given = trained.config, trained.config.card
    parts = [
        f"# {given.name or Path(config.output).name}",
        given.description or "A cross-encoder: it reads a query and a passage together and gives one logit.",
        f"Base: {_base(config)}{_shape(base)}.",
        "## Data",
        _data(trained, given.licences),
        "## Recipe",
        _recipe(trained),
        "## Held-out figures",
        _figures(trained),
        "## Limits",
        given.limits or "Scores are not calibrated: compare them within one query's list only.",
    ]
    head = f"---\nlicense: {given.licence}\npipeline_tag: text-ranking\n---\n\n" if given.licence else ""
    return head + "\n\n".join(parts) + "\n"


def _base(config: TrainingConfig) -> str:
    return config.card.base or f"{config.base}{f' at {config.revision}' if config.revision else ''}"


def _shape(base: Path) -> str:
    found = read_json(base / CONFIG_FILE)
    return f" ({found.get('model_type')}, {found.get('num_hidden_layers')} layers, {found.get('hidden_size')} wide)"


def _data(trained: Trained, licences: Mapping[str, str | None]) -> str:
    lines = [
        "| set | queries trained on / held out | passages | learnt from | share of the lists | licence |"
    ]
    lines.append("|---|---|---|---|---|---|")
    whole = sum(one.settings.weight for one in trained.sets)
    for tables, divided in zip(trained.sets, trained.splits, strict=True):
        own = tables.settings
        teachers = " and ".join(name for name, one in (("qrels", own.qrels), ("teacher", own.teacher)) if one)
        lines.append(
            f"| {own.name} | {len(divided.train):,} / {len(divided.held_out):,} | {len(tables.passages.ids):,} | "
            f"{teachers} | {own.weight / whole:.0%} | {licences.get(own.name) or 'not stated'} |"
        )
    return "\n".join(lines)


def _recipe(trained: Trained) -> str:
    config, schedule, rate = trained.config, trained.config.schedule, trained.config.optimizer
    frozen = (
        f"embeddings and {config.freeze.layers} layers frozen"
        if config.freeze.embeddings
        else "nothing frozen"
    )
    versions = ", ".join(f"{name} {version}" for name, version in installed_versions().items())
    steps = ", ".join(f"{step:,}" for step in trained.averaged)
    return "\n".join(
        [
            f"- {schedule.steps:,} steps of {schedule.lists_per_step} lists; seed {config.seed}.",
            f"- Loss: softmax cross-entropy + {config.loss.bce_weight:g} binary cross-entropy; KL to the teacher with "
            f"weight {config.loss.teacher_weight:g} beside a relevant passage, 1 without one.",
            f"- AdamW, rate {rate.learning_rate:g} (head {rate.head_learning_rate or rate.learning_rate:g}), layer "
            f"decay {rate.layer_decay:g}, clip {rate.clip_norm:g}; {schedule.warmup_steps} steps up, constant, the "
            f"last {schedule.decay:.0%} down to zero; no dropout; {frozen}.",
            f"- The mean of the weights after steps {steps}."
            if len(trained.averaged) > 1
            else "- The weights after the last step.",
            f"- {versions}.",
        ]
    )


def _figures(trained: Trained) -> str:
    evaluation = trained.evaluation
    if evaluation is None:
        return "Nothing was held out."
    pairs = zip(trained.sets, trained.splits, strict=True)
    taught = [one.settings.name for one, two in pairs if one.relevant is None and len(two.held_out)]
    right = f" In {', '.join(taught)}, without qrels, the teacher's first counts as the right one."
    rows = evaluation.summary.query("documents == 'all' and measure == 'nDCG@10'")
    systems = [one for one in (FIRST, TEACHER, MODEL) if one in set(rows["system"])]
    table = rows.pivot(index="group", columns="system", values="mean")
    counts = rows.groupby("group")["n"].first()
    lines = [
        f"nDCG@10 of {evaluation.counts['queries']:,} queries that their sets held out; `first` is the order "
        f"that all were given.{right if taught else ''}",
        "",
        f"| set | n | {' | '.join(systems)} |",
        "|---" * (2 + len(systems)) + "|",
    ]
    for group in table.index:
        figures = " | ".join(f"{table.loc[group, one]:.3f}" for one in systems)
        lines.append(f"| {group} | {counts[group]} | {figures} |")
    return "\n".join(lines)
