"""A cross-encoder as an OpenVINO graph of our own: rows of one length, no mask, nothing computed for padding.

Two graphs, since they compute in different precisions. The body takes rectangles of tokens through all layers but the
last, and through the last one's attention for the first token, with key and value products folded away (see
`rerank_udf.engine.forward.last_layer` for why that is exact). The tail makes logits of what is left, one row a pair,
in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from rerank_udf.engine.weights import Array, EncoderLayer, LayerNorm, Linear, ModelWeights

Node = Any  # openvino's graph nodes; it ships no types
Product = Callable[[str, Node, Linear], Node]
"""(name, (…, in), layer) → (…, out): how a linear layer of the body is computed."""

_KERNELS_KEPT = 2_000  # by all streams together: with mini some half a gigabyte


def body(weights: ModelWeights, *, half_tables: bool, product: Product | None = None) -> ov.Model:
    """(token_ids, places): int32 (rows, length) each → means (rows, heads, hidden), first states (rows, hidden).

    `places` are rows of `ModelWeights.place_embeddings`. `half_tables` keeps embeddings in float16, which is enough
    where they are rounded to bfloat16 anyway. `product` computes the linear layers between embeddings and last layer.
    """
    multiply: Product = product or _plain
    heads, hidden = weights.architecture.heads, weights.architecture.hidden
    token_ids, places = (ops.parameter([-1, -1], np.int32, name=name) for name in ("token_ids", "places"))
    eps = weights.layer_norm_eps
    words = _rows_of(weights.word_embeddings, token_ids, half_tables)
    x = _norm(
        ops.add(words, _rows_of(weights.place_embeddings, places, half_tables)), weights.embedding_norm, eps
    )
    for number, layer in enumerate(weights.layers[:-1]):
        x = _layer(x, layer, heads, eps, _within(number, multiply))
    first = ops.gather(x, _scalar(0), _scalar(1))
    return ov.Model(
        [_folded_mean(x, first, weights.layers[-1], heads, hidden), first], [token_ids, places], "body"
    )


def tail(weights: ModelWeights) -> ov.Model:
    """means (rows, heads, hidden), first states (rows, hidden) → logits (rows, 1), all float32."""
    heads, hidden = weights.architecture.heads, weights.architecture.hidden
    means = ops.parameter([-1, heads, hidden], np.float32, name="means")
    first = ops.parameter([-1, hidden], np.float32, name="first")
    layer, eps = weights.layers[-1], weights.layer_norm_eps
    by_head = ops.transpose(means, _ints(1, 0, 2))
    values = ops.matmul(by_head, _constant(layer.value.weight.reshape(heads, -1, hidden)), False, True)
    context = ops.reshape(ops.transpose(values, _ints(1, 0, 2)), _ints(-1, hidden), False)
    context = ops.add(context, _constant(layer.value.bias))
    x = _after_attention(context, first, layer, eps, _plain)
    logits = linear(ops.tanh(linear(x, weights.dense)), weights.label)
    return ov.Model([logits], [means, first], "tail")


def linear(x: Node, layer: Linear) -> Node:
    """(…, in) → (…, out)."""
    return ops.add(ops.matmul(x, _constant(layer.weight), False, True), _constant(layer.bias))


def compiled(model: ov.Model, hint: str, threads: int, *, streams: int) -> ov.CompiledModel:
    """Compiled for the CPU, on as many threads as the task has cores, and pinned to none of them.

    Other executors of the machine would be pinned to the same ones.
    """
    properties = {
        "INFERENCE_PRECISION_HINT": hint,
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": streams,
        "ENABLE_CPU_PINNING": False,
        # A stream keeps so many kernels, by default 5,000: gigabytes, since without padding nearly every batch has a
        # shape of its own. With short texts mini takes 12 % longer if none are kept, and no longer with these.
        "CPU_RUNTIME_CACHE_CAPACITY": max(64, _KERNELS_KEPT // streams),
    }
    return ov.Core().compile_model(model, "CPU", properties)


def _plain(_name: str, x: Node, layer: Linear) -> Node:
    return linear(x, layer)


def _within(number: int, product: Product) -> Product:
    def named(part: str, x: Node, layer: Linear) -> Node:
        return product(f"{number}.{part}", x, layer)

    return named


def _layer(x: Node, layer: EncoderLayer, heads: int, eps: float, product: Product) -> Node:
    """(rows, length, hidden) → the same, through one whole layer.

    Query, key and value by a product each: OpenVINO would copy the thirds of a fused one apart.
    """
    dim = layer.query.weight.shape[0] // heads
    scale = dim**-0.5  # folded into the query's product
    query = Linear(layer.query.weight * np.float32(scale), layer.query.bias * np.float32(scale))
    parts = (("query", query), ("key", layer.key), ("value", layer.value))
    q, k, v = (_split_heads(product(name, x, used), heads, dim) for name, used in parts)
    attended = ops.matmul(ops.softmax(ops.matmul(q, k, False, True), -1), v, False, False)
    context = ops.reshape(ops.transpose(attended, _ints(0, 2, 1, 3)), _ints(0, 0, heads * dim), True)
    return _after_attention(context, x, layer, eps, product)


def _after_attention(context: Node, before: Node, layer: EncoderLayer, eps: float, product: Product) -> Node:
    added = ops.add(product("attention_output", context, layer.attention_output), before)
    x = _norm(added, layer.attention_norm, eps)
    grown = ops.gelu(product("intermediate", x, layer.intermediate), "erf")
    return _norm(ops.add(product("output", grown, layer.output), x), layer.output_norm, eps)


def _folded_mean(x: Node, first: Node, layer: EncoderLayer, heads: int, hidden: int) -> Node:
    """The mean of all states by the last layer's attention weights of the first token: (rows, heads, hidden)."""
    dim = hidden // heads
    scaled = Linear(layer.query.weight * np.float32(dim**-0.5), layer.query.bias * np.float32(dim**-0.5))
    queries = ops.transpose(ops.reshape(linear(first, scaled), _ints(-1, heads, dim), False), _ints(1, 0, 2))
    keys = _constant(layer.key.weight.reshape(heads, dim, hidden))
    folded = ops.transpose(ops.matmul(queries, keys, False, False), _ints(1, 0, 2))
    return ops.matmul(ops.softmax(ops.matmul(folded, x, False, True), -1), x, False, False)


def _split_heads(x: Node, heads: int, dim: int) -> Node:
    """(rows, length, heads · dim) → (rows, heads, length, dim)."""
    return ops.transpose(ops.reshape(x, _ints(0, 0, heads, dim), True), _ints(0, 2, 1, 3))


def _norm(x: Node, norm: LayerNorm, eps: float) -> Node:
    normal = ops.mvn(x, _ints(-1), True, eps, "inside_sqrt")
    return ops.add(ops.multiply(normal, _constant(norm.weight)), _constant(norm.bias))


def _rows_of(table: Array, numbers: Node, half: bool) -> Node:
    stored = ops.convert(ops.constant(table.astype(np.float16)), "f32") if half else _constant(table)
    return ops.gather(stored, numbers, _scalar(0))


def _constant(values: Array) -> Node:
    return ops.constant(np.ascontiguousarray(values, dtype=np.float32))


def _ints(*values: int) -> Node:
    return ops.constant(np.array(values, dtype=np.int64))


def _scalar(value: int) -> Node:
    return ops.constant(np.int64(value))
