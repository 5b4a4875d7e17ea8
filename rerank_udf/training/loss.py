"""How wrong the logits of a few lists are."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from rerank_udf.training.settings import Loss


def list_loss(
    logits: Tensor, sizes: list[int], relevant: list[bool], teacher: Tensor, settings: Loss
) -> Tensor:
    """The mean over lists.

    `logits`, `teacher`: float32 (pairs,), list after list; a teacher's nan is a pair that it has not scored. `sizes`:
    passages of each list, the right one first where `relevant` says so.
    """
    losses = [
        _one(mine, right, theirs, settings)
        for mine, right, theirs in zip(
            torch.split(logits, sizes), relevant, torch.split(teacher, sizes), strict=True
        )
    ]
    return torch.stack(losses).mean()


def _one(logits: Tensor, relevant: bool, teacher: Tensor, settings: Loss) -> Tensor:
    loss = logits.sum() * 0
    if relevant:
        labels = torch.zeros_like(logits)
        labels[0] = 1
        binary = functional.binary_cross_entropy_with_logits(logits, labels)
        loss = loss - logits.log_softmax(-1)[0] + settings.bce_weight * binary
    scored = ~teacher.isnan()
    weight = settings.teacher_weight if relevant else 1.0
    if weight and int(scored.sum()) > 1:
        target = teacher[scored].softmax(-1)
        loss = loss + weight * functional.kl_div(logits[scored].log_softmax(-1), target, reduction="sum")
    return loss
