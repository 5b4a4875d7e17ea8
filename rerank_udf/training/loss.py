"""How wrong the logits of a few lists are."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from rerank_udf.training.settings import Loss

_NO_CHANCE = -1e9  # a logit whose share of a softmax is 0, and whose product with 0 is a number


def list_loss(
    logits: Tensor, sizes: list[int], relevant: list[bool], teacher: Tensor, settings: Loss
) -> Tensor:
    """The mean over lists.

    `logits`, `teacher`: float32 (pairs,), list after list; a teacher's nan is a pair that it has not scored. `sizes`:
    passages of each list, the right one first where `relevant` says so. Nothing is read back from a card.
    """
    device = logits.device
    mine, theirs = _rows(logits, sizes, _NO_CHANCE), _rows(teacher, sizes, math.nan)
    there = torch.arange(mine.shape[1])[None, :] < torch.tensor(sizes)[:, None]
    right = torch.tensor(relevant).to(device)
    labels = torch.zeros_like(mine)
    labels[:, 0] = 1
    weights = (there / there.sum(-1, keepdim=True)).to(device)
    binary = functional.binary_cross_entropy_with_logits(mine, labels, weights, reduction="none").sum(-1)
    labelled = settings.bce_weight * binary - mine.log_softmax(-1)[:, 0]

    scored = ~theirs.isnan()
    target = theirs.masked_fill(~scored, _NO_CHANCE).softmax(-1)
    own = mine.masked_fill(~scored, _NO_CHANCE).log_softmax(-1)
    taught = functional.kl_div(own, target, reduction="none").sum(-1) * (scored.sum(-1) > 1)
    return (torch.where(right, labelled + settings.teacher_weight * taught, taught)).mean()


def _rows(values: Tensor, sizes: list[int], filling: float) -> Tensor:
    """(lists, longest) of (pairs,), filled up on the right."""
    return pad_sequence(list(torch.split(values, sizes)), batch_first=True, padding_value=filling)
