"""What a one-label cross-encoder's files must hold, checked without torch.

Everything here reads config.json, the headers of the safetensors files and tokenizer.json, so that the driver can
say what is wrong before any Spark stage starts.
"""

from __future__ import annotations

import functools
import json
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rerank_udf.errors import ModelError

CONFIG_FILE = "config.json"
TOKENIZER_FILE = "tokenizer.json"
SENTENCEPIECE_FILE = "sentencepiece.bpe.model"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
HASH_MODEL_TYPE = "rerank-udf-hash"

# model_type → prefix of the encoder's tensors. RoBERTa's relatives share its layout and its position rule.
_OTHER_IDS = ("camembert",)  # than XLM-R's for the same pieces
ENCODER_PREFIXES = {"bert": "bert", "camembert": "roberta", "roberta": "roberta", "xlm-roberta": "roberta"}
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")
_MOST_HEADER_BYTES = 100_000_000
_NAMES_SHOWN = 5

Shapes = Mapping[str, tuple[int, ...]]
_EXACT_GELU = ("gelu", "gelu_python")  # transformers' two names of x·Φ(x); the others are approximations


@dataclass(frozen=True)
class Architecture:
    """The sizes that a config.json states, for an encoder of the BERT or RoBERTa family."""

    model_type: str
    vocabulary: int
    hidden: int
    layers: int
    heads: int
    intermediate: int
    positions: int
    token_types: int
    pad_token_id: int

    @property
    def prefix(self) -> str:
        """What the names of the encoder's tensors begin with."""
        return ENCODER_PREFIXES[self.model_type]

    @property
    def positions_skip_padding(self) -> bool:
        """RoBERTa's rule: positions start after the pad id, and do not advance on it."""
        return self.prefix == "roberta"

    @property
    def most_tokens(self) -> int:
        """The longest sequence that the position embeddings allow."""
        return self.positions - self.pad_token_id - 1 if self.positions_skip_padding else self.positions

    @property
    def special_tokens(self) -> int:
        """Tokens that the family's template adds to a pair; the tokenizer's own has the last word."""
        return 4 if self.prefix == "roberta" else 3

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Name → shape of every weight of a one-label sequence classifier."""
        h, f = self.hidden, self.intermediate
        shapes: dict[str, tuple[int, ...]] = {
            "embeddings.word_embeddings.weight": (self.vocabulary, h),
            "embeddings.position_embeddings.weight": (self.positions, h),
            "embeddings.token_type_embeddings.weight": (self.token_types, h),
            "embeddings.LayerNorm.weight": (h,),
            "embeddings.LayerNorm.bias": (h,),
        }
        linear = {f"attention.self.{part}": (h, h) for part in ("query", "key", "value")}
        linear |= {"attention.output.dense": (h, h), "intermediate.dense": (f, h), "output.dense": (h, f)}
        for layer in range(self.layers):
            at = f"encoder.layer.{layer}."
            for name, shape in linear.items():
                shapes[f"{at}{name}.weight"], shapes[f"{at}{name}.bias"] = shape, shape[:1]
            for name in ("attention.output.LayerNorm", "output.LayerNorm"):
                shapes[f"{at}{name}.weight"] = shapes[f"{at}{name}.bias"] = (h,)
        named = {f"{self.prefix}.{name}": shape for name, shape in shapes.items()}
        dense = "bert.pooler.dense" if self.prefix == "bert" else "classifier.dense"
        named |= {f"{dense}.weight": (h, h), f"{dense}.bias": (h,)}
        return named | {f"{self.label_layer}.weight": (1, h), f"{self.label_layer}.bias": (1,)}

    @property
    def label_layer(self) -> str:
        """The last linear layer, whose rows are the labels."""
        return "classifier" if self.prefix == "bert" else "classifier.out_proj"

    @property
    def unused_tensors(self) -> frozenset[str]:
        """Names that checkpoints may carry and that no score depends on: the position buffer, RoBERTa's pooler."""
        unused = {f"{self.prefix}.embeddings.position_ids"}
        if self.prefix == "roberta":
            unused |= {"roberta.pooler.dense.weight", "roberta.pooler.dense.bias"}
        return frozenset(unused)


def read_json(path: Path) -> dict[str, Any]:
    """A model folder's JSON file. Raises ModelError where it is not JSON with an object at its top."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds a JSON {type(content).__name__}; expected an object")
    return content


def read_architecture(config: Mapping[str, Any], model: str) -> Architecture:
    """The architecture that a config.json states; `model` is what messages call it.

    Raises ModelError where it is no sequence classifier of a supported family, or has an activation that is not
    computed here.
    """
    model_type = config.get("model_type")
    if model_type not in ENCODER_PREFIXES:
        known = ", ".join(ENCODER_PREFIXES)
        raise ModelError(
            f"{model} is of type {model_type!r}; expected a cross-encoder of one of the types {known} "
            "(config.json, model_type)"
        )
    classes = config.get("architectures") or []
    if classes and not any(str(name).endswith("ForSequenceClassification") for name in classes):
        raise ModelError(
            f"{model} is a {', '.join(map(str, classes))}, not a cross-encoder: expected a "
            "...ForSequenceClassification with one label (config.json, architectures)"
        )
    if config.get("is_decoder") or config.get("position_embedding_type", "absolute") != "absolute":
        raise ModelError(
            f"{model} is a decoder or has relative positions; expected an encoder with absolute ones"
        )
    _check_activation(config, model)
    try:
        return Architecture(
            model_type=str(model_type),
            vocabulary=int(config["vocab_size"]),
            hidden=int(config["hidden_size"]),
            layers=int(config["num_hidden_layers"]),
            heads=int(config["num_attention_heads"]),
            intermediate=int(config["intermediate_size"]),
            positions=int(config["max_position_embeddings"]),
            token_types=int(config.get("type_vocab_size", 2)),
            pad_token_id=int(config.get("pad_token_id", 0 if model_type == "bert" else 1)),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{model} has a config.json without a usable {error}") from error


def _check_activation(config: Mapping[str, Any], model: str) -> None:
    """Raise ModelError unless the feed-forward activation is the exact GELU, x·Φ(x)."""
    value = config.get("hidden_act", "gelu")
    if value not in _EXACT_GELU:
        raise ModelError(
            f"{model} has the activation {value!r}; this engine computes the exact (erf) GELU only: expected "
            '"gelu" (config.json, hidden_act)'
        )


def check_tensors(architecture: Architecture, shapes: Shapes, model: str) -> None:
    """Raise ModelError unless the weights are exactly those of a one-label cross-encoder."""
    expected = architecture.tensors()
    label = f"{architecture.label_layer}.weight"
    if not any(name.startswith("classifier.") for name in shapes):
        raise ModelError(
            f"{model} has no classification head (no tensor named classifier.*): it is an encoder, not a "
            "cross-encoder; use one that was trained as a reranker"
        )
    if label in shapes and shapes[label][0] != 1:
        raise ModelError(
            f"{model} has {shapes[label][0]} labels ({label} is {_dimensions(shapes[label])}); a reranker has one"
        )
    missing = sorted(expected.keys() - shapes.keys())
    extra = sorted(shapes.keys() - expected.keys() - architecture.unused_tensors)
    wrong = sorted(name for name in expected.keys() & shapes.keys() if shapes[name] != expected[name])
    if missing:
        raise ModelError(f"{model} lacks {_listed(missing)} that its config.json asks for")
    if extra:
        raise ModelError(
            f"{model} has {_listed(extra)} that a {architecture.model_type} classifier does not use"
        )
    if wrong:
        found = ", ".join(
            f"{name} is {_dimensions(shapes[name])} where config.json asks for {_dimensions(expected[name])}"
            for name in wrong[:_NAMES_SHOWN]
        )
        raise ModelError(
            f"{model} has {len(wrong)} tensors of another shape than its config.json states: {found}"
        )


def check_vocabulary(architecture: Architecture, tokenizer_ids: int, model: str) -> None:
    """Raise ModelError where the tokenizer gives ids that have no embedding."""
    if tokenizer_ids > architecture.vocabulary:
        raise ModelError(
            f"{model}: the tokenizer gives ids up to {tokenizer_ids - 1}, but the embedding has "
            f"{architecture.vocabulary} rows: tokenizer.json and weights are not of the same model"
        )


def check_length(architecture: Architecture, max_length: int, model: str) -> None:
    """Raise ModelError where sequences may be longer than the position embeddings."""
    if max_length > architecture.most_tokens:
        raise ModelError(
            f"max_length is {max_length}, but {model} has positions for {architecture.most_tokens} tokens: set "
            f"max_length to {architecture.most_tokens} or less"
        )


def needed_files(available: Collection[str], model: str) -> list[str]:
    """Which of a model's files scoring reads: config, tokenizer, weights or their index.

    Raises ModelError where one is absent; weights only as pickles are never loaded.
    """
    if CONFIG_FILE not in available:
        raise ModelError(f"{model} has no {CONFIG_FILE}: expected a model folder in Hugging Face's layout")
    weights = next((name for name in (WEIGHTS_FILE, INDEX_FILE) if name in available), None)
    if weights is None:
        pickles = sorted(name for name in available if name.endswith(_PICKLES))
        if pickles:
            raise ModelError(
                f"{model} has its weights only as {', '.join(pickles[:_NAMES_SHOWN])}, which can run code when "
                f"loaded: convert them to {WEIGHTS_FILE} (save_pretrained of a current transformers does)"
            )
        raise ModelError(f"{model} has no weights: expected {WEIGHTS_FILE}, or shards with {INDEX_FILE}")
    tokenizer = next((name for name in (TOKENIZER_FILE, SENTENCEPIECE_FILE) if name in available), None)
    if tokenizer is None:
        raise ModelError(f"{model} has no tokenizer: expected {TOKENIZER_FILE} or {SENTENCEPIECE_FILE}")
    return [CONFIG_FILE, tokenizer, weights]


def check_conversion(architecture: Architecture, needed: Collection[str], model: str) -> None:
    """Raise ModelError where the tokenizer would have to be made of a sentencepiece model whose ids we do not know."""
    if SENTENCEPIECE_FILE in needed and architecture.model_type in _OTHER_IDS:
        raise ModelError(
            f"{model} has {SENTENCEPIECE_FILE} and no {TOKENIZER_FILE}, and its ids are not XLM-RoBERTa's: let a "
            "current transformers write it (AutoTokenizer.from_pretrained(…).save_pretrained(…))"
        )


def shard_names(index: Mapping[str, Any], model: str) -> list[str]:
    """The files that an index of shards names. Raises ModelError where it names none, or one elsewhere."""
    places = index.get("weight_map")
    names = sorted(set(places.values())) if isinstance(places, dict) else []
    if not names:
        raise ModelError(f"{model}: {INDEX_FILE} has no weight_map; expected tensor name → file name")
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ModelError(f"{model}: {INDEX_FILE} names {name!r}; expected safetensors files beside it")
    return names


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder that `needed_files` has accepted."""
    if (folder / WEIGHTS_FILE).is_file():
        return [folder / WEIGHTS_FILE]
    return [folder / name for name in shard_names(read_json(folder / INDEX_FILE), str(folder))]


def tensor_shapes(paths: Collection[Path]) -> dict[str, tuple[int, ...]]:
    """Name → shape of the tensors in safetensors files, read from their headers alone.

    The format: 8 bytes little-endian, the length of a JSON object that follows, then the data.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path in paths:
        for name, entry in _read_header(path).items():
            if name != "__metadata__":
                shapes[name] = tuple(int(size) for size in entry["shape"])
    return shapes


def _read_header(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            if size > _MOST_HEADER_BYTES:
                raise ValueError(f"its header would be {size} bytes long")
            header: dict[str, Any] = json.loads(file.read(size))
        end = max(
            (entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0
        )
        if path.stat().st_size != 8 + size + end:
            raise ValueError(f"it has {path.stat().st_size} bytes where its header asks for {8 + size + end}")
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        raise ModelError(f"{path} is not a whole safetensors file: {error}; fetch it again") from error
    return header


def tokenizer_ids(path: Path) -> int:
    """How many ids a tokenizer.json can give: its greatest id, plus one.

    Raises ModelError where the file is no tokenizer.json.
    """
    stat = path.stat()
    return _tokenizer_ids(path, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=8)  # XLM-R's takes half a second to parse
def _tokenizer_ids(path: Path, _size: int, _modified: int) -> int:
    content = read_json(path)
    vocabulary = content.get("model", {}).get("vocab")
    if not isinstance(vocabulary, (list, dict)):
        raise ModelError(f"{path} has no vocabulary: expected a tokenizer.json of the tokenizers library")
    count = len(vocabulary) if isinstance(vocabulary, list) else max(vocabulary.values(), default=-1) + 1
    added = [int(token["id"]) + 1 for token in content.get("added_tokens") or []]
    return max([count, *added])


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:_NAMES_SHOWN])
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return f"{'the tensor' if len(names) == 1 else f'{len(names)} tensors,'} {shown}{more}"


def _dimensions(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
