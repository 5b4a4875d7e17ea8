"""The packed forward of a cross-encoder: pure functions of tensors, the same on every torch device.

No token is padding, and only `attend` differs between devices. The last layer is computed for the first token of
each sequence only, in float32, as is the head: on one row a pair, precision costs nothing. Nothing here waits for
the device: every size is known on the host. Tensors are cut by `narrow`, since indexing cannot be traced for a
device that this build of torch lacks, and the tests trace every line for CUDA without a card.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rerank_udf.engine import weights as arrays
from rerank_udf.engine.attention import Attend, Sequences, Span

# Rows whose last layer is computed together: a folded query is as large as its heads are many, so that thousands of
# rows of a few tokens would take more memory than the layers before
ROWS_AT_ONCE = 512


@dataclass(frozen=True)
class Linear:
    """`weight`: (out, in); `bias`: (out,)."""

    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """(n, in) to (n, out)."""
        return F.linear(x, self.weight, self.bias)

    def gelu(self, x: Tensor) -> Tensor:
        """The same, then the exact GELU, by erf."""
        return F.gelu(self(x))

    def plus(self, x: Tensor, residual: Tensor) -> Tensor:
        """The same, and `residual`, (n, out), added."""
        return self(x).add_(residual)


@dataclass(frozen=True)
class Norm:
    """LayerNorm over the last dimension; `weight`, `bias`: (hidden,)."""

    weight: Tensor
    bias: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        """(n, hidden) to (n, hidden)."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


@dataclass(frozen=True)
class Layer:
    """What follows attention in a layer, and the fused product before it; see `weights.EncoderLayer`."""

    qkv: Linear
    attention_output: Linear
    attention_norm: Norm
    intermediate: Linear
    output: Linear
    output_norm: Norm

    def after_attention(self, context: Tensor, before: Tensor) -> Tensor:
        """Context and the layer's input to the layer's output: (n, hidden)."""
        hidden = self.attention_norm(self.attention_output.plus(context, before))
        return self.output_norm(self.output.plus(self.intermediate.gelu(hidden), hidden))


@dataclass(frozen=True)
class Model:
    """A cross-encoder's tensors on a device.

    `words`: (vocabulary, hidden); `places`: (token types · positions, hidden), sums of a type's and a position's
    embedding; `layers`: all but the last, which is `last`, in float32, as `dense` and `label`, the head.
    """

    heads: int
    words: Tensor
    places: Tensor
    norm: Norm
    layers: tuple[Layer, ...]
    last: Layer
    dense: Linear
    label: Linear


@dataclass(frozen=True)
class Inputs:
    """A batch on the device. `token_ids`, `places`: int32 (total,), rows of `Model.words` and `Model.places`."""

    token_ids: Tensor
    places: Tensor
    sequences: Sequences


def forward(model: Model, inputs: Inputs, attend: Attend) -> Tensor:
    """The logit of each sequence: float32 (rows,)."""
    hidden = embed(model, inputs)
    for layer in model.layers:
        hidden = encode(layer, hidden, inputs.sequences, attend, model.heads)
    first = last_layer(model.last, hidden, inputs.sequences, model.heads)
    return model.label(torch.tanh(model.dense(first))).flatten()


def embed(model: Model, inputs: Inputs) -> Tensor:
    """What the first layer reads: (total, hidden)."""
    return model.norm(
        F.embedding(inputs.token_ids, model.words).add_(F.embedding(inputs.places, model.places))
    )


def encode(layer: Layer, hidden: Tensor, sequences: Sequences, attend: Attend, heads: int) -> Tensor:
    """One whole layer: (total, hidden) to (total, hidden)."""
    total, width = hidden.shape
    context = attend(layer.qkv(hidden).view(total, 3, heads, width // heads), sequences)
    return layer.after_attention(context, hidden)


def last_layer(layer: Layer, hidden: Tensor, sequences: Sequences, heads: int) -> Tensor:
    """The last layer for the first token of each sequence, in float32: (total, hidden) to (rows, hidden).

    Keys and values of single tokens are never formed. For one query a head, (W_k x + b_k)·q = (W_kᵀ q)·x + b_k·q,
    where the last term is the same for all tokens and drops out of the softmax; and since the weights a of a softmax
    sum to 1, Σ a (W_v x + b_v) = W_v (Σ a x) + b_v.
    """
    rows, width = len(sequences.lengths), hidden.shape[1]
    if rows > ROWS_AT_ONCE:
        parts = sequences.parts(ROWS_AT_ONCE)
        return torch.cat(
            [last_layer(layer, hidden.narrow(0, token, tokens), part, heads) for token, tokens, part in parts]
        )
    first = hidden.index_select(0, sequences.cu_seqlens.narrow(0, 0, rows)).float()
    (query, key, value), biases = layer.qkv.weight.chunk(3), layer.qkv.bias.chunk(3)
    queries = F.linear(first, query, biases[0]).view(-1, heads, width // heads)
    folded = _by_head(queries * (width // heads) ** -0.5, key.view(heads, -1, width))
    # A CPU has views for nothing and pays for padding; a GPU pays for launches
    spans = sequences.equal if hidden.device.type == "cpu" else sequences.similar
    means = [_weighted_mean(folded, hidden, sequences, span) for span in spans]
    mean = means[0] if len(means) == 1 else torch.cat(means)
    context = _by_head(mean, value.view(heads, -1, width).transpose(1, 2)).reshape(-1, width).add_(biases[2])
    return layer.after_attention(context, first)


def _by_head(x: Tensor, matrices: Tensor) -> Tensor:
    """Multiply each head's rows by its own matrix: (rows, heads, m) · (heads, m, n) → (rows, heads, n)."""
    return torch.bmm(x.transpose(0, 1), matrices).transpose(0, 1)


def _weighted_mean(folded: Tensor, hidden: Tensor, sequences: Sequences, span: Span) -> Tensor:
    """Mean of a span's states by the softmax of their scores: float32 (rows of the span, heads, hidden)."""
    folded = folded.narrow(0, span.row, span.rows)
    if span.is_equal:
        states = hidden.narrow(0, span.token, span.tokens).view(span.rows, span.longest, -1).float()
        return torch.bmm(torch.bmm(folded, states.transpose(1, 2)).softmax(dim=-1), states)
    places, absent = _rectangle(sequences.cu_seqlens.narrow(0, span.row, span.rows + 1), span.longest)
    states = hidden.index_select(0, places.flatten()).view(span.rows, span.longest, -1).float()
    scores = torch.bmm(folded, states.transpose(1, 2)).masked_fill_(absent.unsqueeze(1), -torch.inf)
    return torch.bmm(scores.softmax(dim=-1), states)


def _rectangle(cu_seqlens: Tensor, longest: int) -> tuple[Tensor, Tensor]:
    """Where a rectangle's cells are in the packed states, and which of them are padding: two of (rows, longest).

    Padding repeats its own row's last token, so that a value that is not finite stays in its row.
    """
    starts = cu_seqlens.narrow(0, 0, len(cu_seqlens) - 1).unsqueeze(1)
    lengths = cu_seqlens.diff().unsqueeze(1)
    columns = torch.arange(longest, dtype=torch.int32, device=cu_seqlens.device).unsqueeze(0)
    return starts + torch.minimum(columns, lengths - 1), columns >= lengths


def load_model(
    source: arrays.ModelWeights,
    dtype: torch.dtype,
    device: torch.device,
    prepare: Callable[[Linear], Linear] = lambda linear: linear,
) -> Model:
    """Copy a model's arrays to a device: `dtype`, with the last layer and the head in float32.

    `prepare` may exchange the linear layers of all layers but the last for others that compute the same.
    """

    def tensor(values: arrays.Array) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=device)

    def exact(values: arrays.Array) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=device)

    eps = source.layer_norm_eps
    norm = source.embedding_norm
    return Model(
        heads=source.architecture.heads,
        words=tensor(source.word_embeddings),
        places=tensor(source.place_embeddings),
        norm=Norm(tensor(norm.weight), tensor(norm.bias), eps),
        layers=tuple(_layer(layer, eps, tensor, prepare) for layer in source.layers[:-1]),
        last=_layer(source.layers[-1], eps, exact, lambda linear: linear),
        dense=_linear(source.dense, exact),
        label=_linear(source.label, exact),
    )


def _layer(
    source: arrays.EncoderLayer,
    eps: float,
    tensor: Callable[[arrays.Array], Tensor],
    prepare: Callable[[Linear], Linear],
) -> Layer:
    def norm(part: arrays.LayerNorm) -> Norm:
        return Norm(tensor(part.weight), tensor(part.bias), eps)

    return Layer(
        qkv=prepare(_linear(source.qkv, tensor)),
        attention_output=prepare(_linear(source.attention_output, tensor)),
        attention_norm=norm(source.attention_norm),
        intermediate=prepare(_linear(source.intermediate, tensor)),
        output=prepare(_linear(source.output, tensor)),
        output_norm=norm(source.output_norm),
    )


def _linear(source: arrays.Linear, tensor: Callable[[arrays.Array], Tensor]) -> Linear:
    return Linear(tensor(source.weight), tensor(source.bias))
