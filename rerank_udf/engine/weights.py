"""Read a model folder into arrays that every backend starts from: strict, fused, and without torch.

float32 files are mapped, not read: a backend that copies what it keeps holds the model once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rerank_udf.errors import ModelError
from rerank_udf.models.checkpoint import (
    CONFIG_FILE,
    Architecture,
    check_tensors,
    read_architecture,
    read_json,
    tensor_shapes,
    weight_files,
)

Array = npt.NDArray[np.float32]

_DEFAULT_EPS = 1e-12  # of transformers' BertConfig and RobertaConfig
_STORED_AS = ("F32", "F16", "BF16", "F64")


@dataclass(frozen=True)
class Linear:
    """y = x·weightᵀ + bias: `weight` float32 (out, in), `bias` float32 (out,)."""

    weight: Array
    bias: Array

    def rows(self, start: int, stop: int) -> Linear:
        """The layer that gives outputs `start` to `stop` of this one; views, no copies."""
        return Linear(self.weight[start:stop], self.bias[start:stop])


@dataclass(frozen=True)
class LayerNorm:
    """`weight`, `bias`: float32 (hidden,). The eps is the model's: `ModelWeights.layer_norm_eps`."""

    weight: Array
    bias: Array


@dataclass(frozen=True)
class EncoderLayer:
    """One layer, in the order in which it computes.

    `qkv`: (3·hidden, hidden), the rows of query, key and value one below the other, heads as the checkpoint has
    them; `attention_output`: (hidden, hidden); `intermediate`: (feed-forward, hidden); `output`: (hidden,
    feed-forward). Each norm follows an addition of what went into the part before it.
    """

    qkv: Linear
    attention_output: Linear
    attention_norm: LayerNorm
    intermediate: Linear
    output: Linear
    output_norm: LayerNorm

    @property
    def query(self) -> Linear:
        """(hidden, hidden), a view of `qkv`."""
        return self._third(0)

    @property
    def key(self) -> Linear:
        """(hidden, hidden), a view of `qkv`."""
        return self._third(1)

    @property
    def value(self) -> Linear:
        """(hidden, hidden), a view of `qkv`."""
        return self._third(2)

    def _third(self, number: int) -> Linear:
        hidden = len(self.qkv.bias) // 3
        return self.qkv.rows(number * hidden, (number + 1) * hidden)


@dataclass(frozen=True)
class ModelWeights:
    """A one-label cross-encoder in float32.

    Arrays are read-only and may be views of the mapped file: copy what outlives the loading of a model.
    `word_embeddings`: (vocabulary, hidden); `position_embeddings`: (positions, hidden); `type_embeddings`: (token
    types, hidden). The logit of a sequence is `label`(tanh(`dense`(last state of its first token))), with `dense`
    (hidden, hidden) and `label` (1, hidden), in BERT (pooler, classifier) as in RoBERTa (dense, out_proj).
    """

    architecture: Architecture
    layer_norm_eps: float
    word_embeddings: Array
    position_embeddings: Array
    type_embeddings: Array
    embedding_norm: LayerNorm
    layers: tuple[EncoderLayer, ...]
    dense: Linear
    label: Linear

    @property
    def place_embeddings(self) -> Array:
        """Sums of a type's and a position's embedding: row type · positions + position, (types · positions, hidden)."""
        table = self.type_embeddings[:, None, :] + self.position_embeddings[None, :, :]
        sums: Array = table.reshape(-1, self.architecture.hidden)
        return sums


def read_weights(folder: Path) -> ModelWeights:
    """Read config.json and the safetensors of a model folder, one file or shards, in float32, float16 or bfloat16.

    Raises ModelError that names a missing, extra or misshapen tensor, a data type that is none of these, or an
    activation that is not the exact GELU.
    """
    config = read_json(folder / CONFIG_FILE)
    architecture = read_architecture(config, str(folder))
    eps = layer_norm_eps(config, str(folder))
    paths = weight_files(folder)
    check_tensors(architecture, tensor_shapes(paths), str(folder))
    tensors: dict[str, Array] = {}
    for path in paths:
        tensors |= _map_file(path, architecture.unused_tensors)
    return _assemble(architecture, eps, tensors)


def layer_norm_eps(config: Mapping[str, Any], model: str) -> float:
    """The eps of every LayerNorm. Raises ModelError where config.json has one that is no positive number."""
    value = config.get("layer_norm_eps", _DEFAULT_EPS)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 1:
        return float(value)
    raise ModelError(f"{model} has layer_norm_eps {value!r}; expected a number between 0 and 1 (config.json)")


def _map_file(path: Path, unused: frozenset[str]) -> dict[str, Array]:
    """The tensors of a file whose header `tensor_shapes` has accepted, by name."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header: dict[str, Any] = json.loads(file.read(size))
    data = np.memmap(path, dtype=np.uint8, mode="r", offset=8 + size).view(np.ndarray)
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__" and name not in unused:
            start, stop = entry["data_offsets"]
            values = _as_float32(data[start:stop], str(entry["dtype"]), f"{path}, {name}")
            tensors[name] = values.reshape(entry["shape"])
    return tensors


def _as_float32(data: npt.NDArray[np.uint8], dtype: str, where: str) -> Array:
    """A tensor's bytes as float32 (n,); every value of the 16-bit formats is one of float32's."""
    if dtype not in _STORED_AS:
        known = ", ".join(_STORED_AS)
        raise ModelError(
            f"{where} is stored as {dtype}; expected one of {known}: save the model in one of them"
        )
    if dtype == "BF16":
        wide = data.view("<u2").astype(np.uint32)
        wide <<= 16  # bfloat16 is float32 without its lower half
        return wide.view(np.float32)
    values = data.view({"F16": "<f2", "F32": "<f4", "F64": "<f8"}[dtype])
    aligned: Array = np.require(values, dtype=np.float32, requirements="A")
    return aligned


def _assemble(architecture: Architecture, eps: float, tensors: dict[str, Array]) -> ModelWeights:
    def linear(name: str) -> Linear:
        return Linear(tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    def norm(name: str) -> LayerNorm:
        return LayerNorm(tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    def layer(at: str) -> EncoderLayer:
        parts = [linear(f"{at}.attention.self.{part}") for part in ("query", "key", "value")]
        return EncoderLayer(
            qkv=Linear(np.concatenate([p.weight for p in parts]), np.concatenate([p.bias for p in parts])),
            attention_output=linear(f"{at}.attention.output.dense"),
            attention_norm=norm(f"{at}.attention.output.LayerNorm"),
            intermediate=linear(f"{at}.intermediate.dense"),
            output=linear(f"{at}.output.dense"),
            output_norm=norm(f"{at}.output.LayerNorm"),
        )

    prefix = architecture.prefix
    return ModelWeights(
        architecture=architecture,
        layer_norm_eps=eps,
        word_embeddings=tensors[f"{prefix}.embeddings.word_embeddings.weight"],
        position_embeddings=tensors[f"{prefix}.embeddings.position_embeddings.weight"],
        type_embeddings=tensors[f"{prefix}.embeddings.token_type_embeddings.weight"],
        embedding_norm=norm(f"{prefix}.embeddings.LayerNorm"),
        layers=tuple(layer(f"{prefix}.encoder.layer.{number}") for number in range(architecture.layers)),
        dense=linear("bert.pooler.dense" if prefix == "bert" else "classifier.dense"),
        label=linear(architecture.label_layer),
    )
