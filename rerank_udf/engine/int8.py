"""int8 for the OpenVINO backend: the linear layers between embeddings and last layer; attention stays in 16 bits.

Static quantisation: each layer's input has one scale, from the ranges that its channels took on texts of thirteen
languages, and each output of its weight another. A few channels of these encoders are a hundred times as large as the
others; their range is moved into the weights first, channel by channel (SmoothQuant, Xiao et al. 2023, arXiv
2211.10438), so that one scale serves all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov
from openvino import opset13 as ops
from safetensors.numpy import load, save

from rerank_udf.engine.openvino_graph import Node, Product, body, compiled, linear
from rerank_udf.engine.weights import Array, EncoderLayer, Linear, ModelWeights

# Each linear layer of a layer reads one of these; query, key and value read the same.
_READS = {
    "query": "input",
    "key": "input",
    "value": "input",
    "attention_output": "context",
    "intermediate": "attended",
    "output": "grown",
}
_SMOOTHING = 0.85  # how much of a channel's range the weights take over; 0 none, 1 all
_LEVELS = 256
_SMALLEST = 1e-5


@dataclass(frozen=True)
class Ranges:
    """What the inputs of linear layers reached: "layer.input" → float32 (2, channels), smallest and largest."""

    values: Mapping[str, Array]

    def to_bytes(self) -> bytes:
        """The ranges as a safetensors file."""
        return save(dict(self.values))

    @classmethod
    def from_bytes(cls, data: bytes) -> Ranges:
        """Read what `to_bytes` gave."""
        return cls(load(data))


def measure_ranges(
    weights: ModelWeights,
    batches: Sequence[tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]],
    threads: int,
) -> Ranges:
    """Run (token_ids, places) rectangles through the model in float32 and note what each linear layer reads.

    Raises ValueError without batches.
    """
    if not batches:
        raise ValueError("there are no batches to calibrate with")
    read: dict[str, Node] = {}

    def noting(name: str, x: Node, layer: Linear) -> Node:
        read.setdefault(_site(name), x)
        return linear(x, layer)

    graph = body(weights, half_tables=False, product=noting)
    axes = ops.constant(np.array([0, 1], dtype=np.int64))
    results = [reduce(x, axes) for x in read.values() for reduce in (ops.reduce_min, ops.reduce_max)]
    observed = ov.Model(results, graph.get_parameters(), "ranges")
    request = compiled(observed, "f32", threads, streams=1).create_infer_request()
    found: list[Any] = []
    for batch in batches:
        request.infer(list(batch))
        found.append([np.array(request.get_output_tensor(n).data) for n in range(len(results))])
    low = [np.min([batch[2 * n] for batch in found], axis=0) for n in range(len(read))]
    high = [np.max([batch[2 * n + 1] for batch in found], axis=0) for n in range(len(read))]
    return Ranges(
        {name: np.stack(pair) for name, pair in zip(read, zip(low, high, strict=True), strict=True)}
    )


def quantised(weights: ModelWeights, ranges: Ranges) -> Product:
    """How `openvino_graph.body` computes its linear layers in int8."""
    inputs: dict[str, Node] = {}

    def product(name: str, x: Node, layer: Linear) -> Node:
        site = _site(name)
        number, _, read = site.partition(".")
        factors = _factors(weights.layers[int(number)], read, ranges.values[site])
        if site not in inputs:
            inputs[site] = _quantised_input(x, ranges.values[site], factors)
        return ops.add(
            ops.matmul(inputs[site], _quantised_weight(layer.weight * factors), False, True),
            ops.constant(np.ascontiguousarray(layer.bias)),
        )

    return product


def _site(name: str) -> str:
    layer, _, part = name.partition(".")
    return f"{layer}.{_READS[part]}"


def _factors(layer: EncoderLayer, read: str, reached: Array) -> Array:
    """What each channel of an input is divided by, and its weights multiplied: float32 (channels,)."""
    readers = {
        "input": layer.qkv,
        "context": layer.attention_output,
        "attended": layer.intermediate,
        "grown": layer.output,
    }
    largest_input = np.maximum(np.abs(reached).max(axis=0), _SMALLEST)
    largest_weight = np.maximum(np.abs(readers[read].weight).max(axis=0), _SMALLEST)
    factors: Array = (largest_input**_SMOOTHING / largest_weight ** (1 - _SMOOTHING)).astype(np.float32)
    return factors


def _quantised_input(x: Node, reached: Array, factors: Array) -> Node:
    smooth = ops.multiply(x, ops.constant((1 / factors).astype(np.float32)))
    largest = np.float32(max(np.abs(reached / factors).max(), _SMALLEST))
    low, high = (ops.constant(np.float32(v)) for v in (-largest * 128 / 127, largest))
    return ops.fake_quantize(smooth, low, high, low, high, _LEVELS)


def _quantised_weight(weight: Array) -> Node:
    """int8 with a scale for each output: what the graph multiplies with is float32 (out, in)."""
    scale = np.maximum(np.abs(weight).max(axis=1, keepdims=True), _SMALLEST).astype(np.float32) / 127
    whole = np.clip(np.rint(weight / scale), -127, 127).astype(np.int8)
    return ops.multiply(ops.convert(ops.constant(whole), "f32"), ops.constant(scale))
