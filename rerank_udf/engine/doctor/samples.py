"""What the doctor scores: random ids of every awkward length, a made-up long model, real texts, realistic lengths."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import save_file

from rerank_udf.engine.backend import PackedBatch
from rerank_udf.models.checkpoint import Architecture

LONGEST = 8192
_PAD_SHARE = 0.03
_MEDIAN_TOKENS, _SPREAD = 180.0, 0.5


@dataclass(frozen=True)
class RealPairs:
    """`queries`, `passages`: one text a pair; `groups`: int64 (n,), which query a pair belongs to."""

    queries: list[str]
    passages: list[str]
    groups: npt.NDArray[np.int64]


def check_lengths(shortest: int, longest: int) -> list[int]:
    """Powers of two and their neighbours from `shortest` to `longest` tokens, both included.

    Kernels work in tiles of powers of two, and go wrong at their edges.
    """
    powers = [1 << exponent for exponent in range(1, longest.bit_length() + 1)]
    near = {power + step for power in powers for step in (-1, 0, 1)} | {shortest, longest}
    return sorted(length for length in near if shortest <= length <= longest)


def random_sequences(architecture: Architecture, lengths: list[int], seed: int = 0) -> PackedBatch:
    """A sequence of random ids of each length.

    In every other one pad ids stand among them, as where a text holds a literal `<pad>`: positions must not advance
    there. The second half of each has the last token type.
    """
    generator = np.random.default_rng(seed)
    sizes = np.array(lengths, dtype=np.int64)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
    rows = np.repeat(np.arange(len(sizes)), sizes)
    places = np.arange(offsets[-1]) - offsets[rows]
    ids = generator.integers(
        architecture.pad_token_id + 1, architecture.vocabulary, len(rows), dtype=np.int32
    )
    pads = (rows % 2 == 1) & (places > 0) & (generator.random(len(rows)) < _PAD_SHARE)
    ids[pads] = architecture.pad_token_id
    types = None
    if architecture.token_types > 1:
        types = ((places >= sizes[rows] // 2) * (architecture.token_types - 1)).astype(np.uint8)
    return PackedBatch(ids, offsets, types)


def write_long_model(folder: Path, like: Architecture, seed: int = 0) -> Architecture:
    """Write a model without a tokenizer: small, random, positions for LONGEST tokens, heads as wide as `like`'s.

    Its scale lets attention pick out tokens and logits differ by about 1, so that an error anywhere shows.
    """
    width = like.hidden // like.heads
    skipped = like.pad_token_id + 1 if like.positions_skip_padding else 0
    long = Architecture(
        like.model_type,
        1000,
        2 * width,
        3,
        2,
        4 * width,
        LONGEST + skipped,
        like.token_types,
        like.pad_token_id,
    )
    name = "Bert" if like.prefix == "bert" else "XLMRoberta"
    config = {
        "architectures": [f"{name}ForSequenceClassification"],
        "model_type": long.model_type,
        "vocab_size": long.vocabulary,
        "hidden_size": long.hidden,
        "num_hidden_layers": long.layers,
        "num_attention_heads": long.heads,
        "intermediate_size": long.intermediate,
        "max_position_embeddings": long.positions,
        "type_vocab_size": long.token_types,
        "pad_token_id": long.pad_token_id,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_file(_random_tensors(long, seed), folder / "model.safetensors", metadata={"format": "pt"})
    return long


def _random_tensors(architecture: Architecture, seed: int) -> dict[str, npt.NDArray[np.float32]]:
    generator = np.random.default_rng(seed)
    tensors = {}
    for name, shape in architecture.tensors().items():
        scale = 1.0 if "embeddings" in name or len(shape) == 1 else 1.6 / math.sqrt(shape[-1])
        values = scale * generator.standard_normal(shape, dtype=np.float32)
        if len(shape) == 1:
            values = 0.1 * values + (1.0 if name.endswith("LayerNorm.weight") else 0.0)
        tensors[name] = values.astype(np.float32)
    return tensors


def real_pairs(most_queries: int, most_candidates: int) -> RealPairs:
    """Candidates of the demo's help centre, in 13 languages: queries spread over it, each with its first ones."""
    queries, passages, candidates = (_demo_table(name) for name in ("queries", "passages", "candidates"))
    text_of = dict(zip(queries["query_id"].to_pylist(), queries["query"].to_pylist(), strict=True))
    chosen = list(text_of)[:: max(1, math.ceil(len(text_of) / most_queries))]
    passage_of = dict(zip(passages["passage_id"].to_pylist(), passages["passage"].to_pylist(), strict=True))
    numbers = {query: number for number, query in enumerate(chosen)}
    kept = [
        row
        for row in candidates.select(["query_id", "passage_id", "rank"]).to_pylist()
        if row["query_id"] in numbers and row["rank"] <= most_candidates
    ]
    return RealPairs(
        [text_of[row["query_id"]] for row in kept],
        [passage_of[row["passage_id"]] for row in kept],
        np.array([numbers[row["query_id"]] for row in kept], dtype=np.int64),
    )


def demo_texts() -> list[str]:
    """Every text of the demo's help centre: questions and passages."""
    return [*_demo_table("queries")["query"].to_pylist(), *_demo_table("passages")["passage"].to_pylist()]


def _demo_table(name: str) -> pa.Table:
    # not through rerank_udf.demo, which stands above the engine; and as bytes, so that a zipped package will do
    file = resources.files("rerank_udf").joinpath(f"demo/{name}.parquet")
    return pq.read_table(pa.BufferReader(file.read_bytes()))


def realistic_lengths(count: int, most_tokens: int, seed: int = 0) -> npt.NDArray[np.int64]:
    """Lengths of pairs about as in XQuAD: log-normal, 200 tokens in the mean, at most `most_tokens`; int64 (count,)."""
    tokens = np.random.default_rng(seed).lognormal(math.log(_MEDIAN_TOKENS), _SPREAD, count)
    return np.clip(tokens, min(16, most_tokens), most_tokens).astype(np.int64)
