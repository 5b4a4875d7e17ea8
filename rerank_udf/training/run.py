"""The training run: Hugging Face's Trainer over lists, with checkpoints to go on from."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch.utils.data import Dataset, SequentialSampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from rerank_udf.engine.capability import resolve_device
from rerank_udf.evaluation import Evaluation
from rerank_udf.machine import task_threads
from rerank_udf.training import checkpoints
from rerank_udf.training.development import HeldOutList, measure
from rerank_udf.training.encode import ListEncoder, PairBatch
from rerank_udf.training.forward import TrainedEncoder
from rerank_udf.training.lists import ListSampler, TrainingList
from rerank_udf.training.loss import list_loss
from rerank_udf.training.optimizer import MasterAdamW, parameter_groups
from rerank_udf.training.settings import TrainingConfig
from rerank_udf.training.tables import Floats

_log = logging.getLogger(__name__)

_BETAS = (0.9, 0.98)
_LOG_EVERY = 50
_CPU_TOKENS, _CUDA_TOKENS = 2400, 8192  # padded ones that go through the model at once
_LISTS_SCORED = 256  # whose token ids are held at once
_STEPS_AHEAD = 4  # of each of at most `_LOADERS` processes that read for a card
_LOADERS = 8
HISTORY_FILE = "development.jsonl"


class Lists(Dataset[TrainingList]):
    """The sampler as torch knows data sets."""

    def __init__(self, sampler: ListSampler) -> None:
        self._sampler = sampler

    def __len__(self) -> int:
        return len(self._sampler)

    def __getitem__(self, number: int) -> TrainingList:
        return self._sampler[number]


@dataclass(frozen=True)
class Collator:
    """Lists as a step takes them; on a card this runs in processes of its own, a few steps ahead.

    "batches": `PairBatch`es; "sizes": pairs of each list; "relevant": whether its first passage is right; "teacher":
    float32 (pairs,); "tokens": without padding.
    """

    encoder: ListEncoder
    max_tokens: int

    def __call__(self, lists: Sequence[TrainingList]) -> dict[str, Any]:
        """One step's lists."""
        if torch.utils.data.get_worker_info() is not None:
            # The tokenizer's threads did not survive the fork: a process that waited for them would wait for ever
            os.environ["TOKENIZERS_PARALLELISM"] = "false"
        by_list = [self.encoder.pairs(one) for one in lists]
        pairs = [pair for one in by_list for pair in one]
        return {
            "batches": self.encoder.batches(pairs, self.max_tokens),
            "sizes": [len(one) for one in by_list],
            "relevant": [one.relevant for one in lists],
            "teacher": torch.from_numpy(np.concatenate([one.teacher for one in lists])),
            "tokens": sum(len(one.ids) for one in pairs),
        }


class ListTrainer(Trainer):
    """Trainer that takes lists in the sampler's order and keeps float32 masters of the weights."""

    def __init__(
        self, config: TrainingConfig, model: TrainedEncoder, encoder: ListEncoder, **given: Any
    ) -> None:
        self.config = config
        self._collator = Collator(encoder, config.max_tokens_per_batch or _most_tokens(config))
        self.tokens = self.pairs = 0
        self._adam: MasterAdamW | None = None  # `optimizer` is a wrapper of accelerate's once training begins
        super().__init__(model=model, data_collator=self._collator, **given)
        self.remove_callback(PrinterCallback)  # Progress says it

    def _get_train_sampler(self, *_: Any) -> SequentialSampler:
        assert isinstance(self.train_dataset, Lists)
        return SequentialSampler(self.train_dataset)  # the lists are in random order already

    def create_optimizer(self, *_: Any) -> MasterAdamW:
        """AdamW with float32 masters."""
        if self._adam is None:
            assert isinstance(self.model, TrainedEncoder)
            choice = self.config.optimizer
            groups = parameter_groups(self.model.model, choice)
            self.optimizer = self._adam = MasterAdamW(groups, choice.clip_norm, _BETAS)
        return self._adam

    def compute_loss(self, model: Any, inputs: dict[str, Any], *_: Any, **__: Any) -> torch.Tensor:
        """The lists' loss; the pairs go through the model in batches of like length."""
        logits = self._logits(model, inputs["batches"])
        self.tokens += inputs["tokens"]
        self.pairs += len(logits)
        return list_loss(logits, inputs["sizes"], inputs["relevant"], inputs["teacher"], self.config.loss)

    def _logits(self, model: Any, batches: Sequence[PairBatch]) -> torch.Tensor:
        """float32 (pairs,), in the order that the batches' rows say."""
        device = self.args.device
        parts = [
            model(
                batch.input_ids.to(device),
                batch.attention_mask.to(device),
                None if batch.token_type_ids is None else batch.token_type_ids.to(device),
            )
            for batch in batches
        ]
        back = torch.from_numpy(np.argsort(np.concatenate([batch.rows for batch in batches])))
        return torch.cat(parts)[back.to(device)]

    def scores(self, lists: Sequence[TrainingList]) -> list[Floats]:
        """The model's logits of each list's passages: float32, one a passage."""
        found: list[Floats] = []
        for start in range(0, len(lists), _LISTS_SCORED):
            step = self._collator(lists[start : start + _LISTS_SCORED])
            if not step["batches"]:
                found += [np.empty(0, np.float32) for _ in step["sizes"]]
                continue
            with torch.inference_mode():
                logits = self._logits(self.model, step["batches"])
            found += np.split(logits.cpu().numpy(), np.cumsum(step["sizes"])[:-1])
            _log.info("%s of %s lists scored", f"{len(found):,}", f"{len(lists):,}")
        return found

    def trained_weights(self) -> dict[str, torch.Tensor]:
        """What was trained, float32 on the CPU, by its name in the model."""
        assert isinstance(self.model, TrainedEncoder)
        optimizer = self.create_optimizer()
        masters = dict(zip(optimizer.parameters, optimizer.masters, strict=True))
        named = self.model.model.named_parameters()
        return {name: masters[one].detach().cpu() for name, one in named if one in masters}


class Progress(TrainerCallback):
    """A line every fifty steps; development figures now and then, also into the work folder."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self.held_out: Sequence[HeldOutList] = []
        self.trainer: ListTrainer | None = None

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        """Print step, loss, rate and what went through."""
        if logs and "loss" in logs and self.trainer is not None:
            self._console.print(
                f"step {state.global_step:,} of {state.max_steps:,} · loss {logs['loss']:.3f} · gradient "
                f"{self.trainer.create_optimizer().norm:.2f} · {self.trainer.pairs:,} pairs, "
                f"{self.trainer.tokens:,} tokens",
                highlight=False,
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Measure."""
        due = (
            self.trainer is not None and state.global_step % self.trainer.config.schedule.evaluate_every == 0
        )
        if due and self.held_out and state.global_step < state.max_steps:
            self.report(state.global_step)

    def report(self, step: int) -> Evaluation | None:
        """Measure the model as it is now, print a table, append a line to the history."""
        if self.trainer is None or not self.held_out:
            return None
        found = measure(self.held_out, self.trainer.scores, self.trainer.config.seed)
        means = found.summary.query("documents == 'all' and measure == 'nDCG@10'")
        figures: dict[str, dict[str, float]] = {}
        for row in means.to_dict("records"):
            figures.setdefault(row["group"], {})[row["system"]] = round(float(row["mean"]), 4)
        line = {"step": step, "nDCG@10": figures}
        with (Path(self.trainer.config.work) / HISTORY_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._console.print(f"held out, after step {step:,}")
        self._console.print(found.table())
        return found


def arguments(config: TrainingConfig) -> TrainingArguments:
    """The Trainer's own settings."""
    schedule = config.schedule
    decaying = schedule.steps - schedule.decay_begins
    loaders = 0 if _on_cpu(config) else min(_LOADERS, max(1, task_threads() - 1))
    found = TrainingArguments(
        output_dir=config.work,
        max_steps=schedule.steps,
        per_device_train_batch_size=schedule.lists_per_step,
        lr_scheduler_type="warmup_stable_decay",
        lr_scheduler_kwargs={"num_decay_steps": decaying, "decay_type": "linear", "min_lr_ratio": 0.0},
        warmup_steps=schedule.warmup_steps,
        max_grad_norm=0.0,  # the optimiser clips, in float32
        save_steps=schedule.save_every,
        save_total_limit=checkpoints.to_keep(schedule),
        logging_steps=_LOG_EVERY,
        use_cpu=_on_cpu(config),
        seed=config.seed,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        dataloader_num_workers=loaders,
        dataloader_prefetch_factor=_STEPS_AHEAD if loaders else None,
    )
    if found.n_gpu > 1:  # a step would then be as many times larger, and the lists others
        found._n_gpu = 1
    return found


def _on_cpu(config: TrainingConfig) -> bool:
    return resolve_device(config.device) == "cpu"


def _most_tokens(config: TrainingConfig) -> int:
    return _CPU_TOKENS if _on_cpu(config) else _CUDA_TOKENS
