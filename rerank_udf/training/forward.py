"""The model as it is trained: Hugging Face's own module and weights, computed without what scoring does not need.

The frozen part runs without gradients. The last layer computes queries, feed-forward and head for the first token
only, as the engine does: nothing else of it reaches the logit. Dropout is off.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

_KERNELS = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class TrainedEncoder(nn.Module):
    """Logits of padded batches, from a transformers sequence classification model of the XLM-R or BERT family.

    `frozen_layers`: how many layers from the bottom have no gradient; None: the embeddings have one too.
    """

    def __init__(self, model: Any, frozen_layers: int | None) -> None:
        super().__init__()
        self.model = model
        self._frozen_layers = frozen_layers

    def train(self, mode: bool = True) -> TrainedEncoder:
        """Dropout stays off: Trainer calls this at every step, and embeddings and head have layers of it."""
        return super().train(False)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """float32 (n,) of int64 (n, longest) ids, masks and types."""
        base = self.model.base_model
        layers = list(base.encoder.layer)
        frozen = self._frozen_layers or 0
        with torch.set_grad_enabled(torch.is_grad_enabled() and self._frozen_layers is None):
            hidden = base.embeddings(input_ids=input_ids, token_type_ids=token_type_ids)
        bias = torch.zeros(attention_mask.shape, dtype=hidden.dtype, device=hidden.device)
        bias = bias.masked_fill(attention_mask == 0, -math.inf)[:, None, None, :]
        with torch.no_grad():
            for layer in layers[:frozen]:
                hidden = _layer(layer, hidden, hidden, bias)
        for layer in layers[frozen:-1]:
            hidden = _layer(layer, hidden, hidden, bias)
        first = _layer(layers[-1], hidden[:, :1], hidden, bias)
        return self._head(first).float().squeeze(-1)

    def _head(self, first: Tensor) -> Tensor:
        """(n, 1) of the last layer's first token, (n, 1, width)."""
        pooler = getattr(self.model.base_model, "pooler", None)
        logits: Tensor = self.model.classifier(first if pooler is None else pooler(first))
        return logits


def _layer(layer: Any, at: Tensor, hidden: Tensor, bias: Tensor) -> Tensor:
    """One layer's output for the positions `at`, which look at all of `hidden`."""
    attention = layer.attention.self
    heads = attention.num_attention_heads
    queries, keys, values = (
        projection(rows).unflatten(-1, (heads, -1)).transpose(1, 2)
        for projection, rows in ((attention.query, at), (attention.key, hidden), (attention.value, hidden))
    )
    attend = _fused if queries.is_cuda else _plain
    mixed = attend(queries, keys, values, bias).transpose(1, 2).flatten(2)
    output = layer.attention.output
    attended = output.LayerNorm(output.dense(mixed) + at)
    inner = functional.gelu(layer.intermediate.dense(attended))
    result: Tensor = layer.output.LayerNorm(layer.output.dense(inner) + attended)
    return result


def _plain(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
    """Attention by its definition, which is the faster way in bfloat16 on a CPU."""
    weights = queries @ keys.transpose(-1, -2) / math.sqrt(queries.shape[-1]) + bias
    return weights.softmax(-1) @ values


def _fused(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
    """The same in one kernel, which keeps no table of weights for the gradient.

    cuDNN's is not among them: it plans for every new shape, and hardly two batches have one shape.
    """
    with sdpa_kernel(_KERNELS):
        return functional.scaled_dot_product_attention(queries, keys, values, attn_mask=bias)
