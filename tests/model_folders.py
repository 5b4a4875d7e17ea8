"""Model folders with random weights, as small as an architecture allows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from rerank_udf.engine.backend import PackedBatch

WORDS = [
    "a",
    "the",
    "is",
    "of",
    "in",
    "to",
    "how",
    "long",
    "does",
    "take",
    "refund",
    "five",
    "days",
    "we",
    "ship",
    "on",
    "monday",
    "river",
    "bank",
    "capital",
    "france",
    "paris",
    "open",
    "door",
    "red",
    "green",
    "fish",
    "bird",
    "fly",
]


def xlmr_config(**changes: Any) -> dict[str, Any]:
    config = {
        "architectures": ["XLMRobertaForSequenceClassification"],
        "model_type": "xlm-roberta",
        "vocab_size": 100,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
        "hidden_act": "gelu",
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0},
    }
    return config | changes


def bert_config(**changes: Any) -> dict[str, Any]:
    config = xlmr_config(
        architectures=["BertForSequenceClassification"],
        model_type="bert",
        max_position_embeddings=512,
        type_vocab_size=2,
        layer_norm_eps=1e-12,
        pad_token_id=0,
    )
    return {k: v for k, v in config.items() if k not in ("bos_token_id", "eos_token_id")} | changes


def write_model(folder: Path, config: dict[str, Any], seed: int = 0) -> Path:
    """Write config.json and random model.safetensors; large enough for logits to differ by much."""
    (folder / "config.json").write_text(json.dumps(config))
    save_file(random_tensors(config, seed), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def random_tensors(config: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    generator = np.random.default_rng(seed)
    tensors = {}
    for name, shape in tensor_layout(config).items():
        values = 0.2 * generator.standard_normal(shape, dtype=np.float32)
        tensors[name] = values + 1 if name.endswith("LayerNorm.weight") else values
    return tensors


def tensor_layout(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tensors of a one-label classifier as transformers names them, written out once more for the tests."""
    h, f = config["hidden_size"], config["intermediate_size"]
    prefix = "bert" if config["model_type"] == "bert" else "roberta"
    layout: dict[str, tuple[int, ...]] = {
        f"{prefix}.embeddings.word_embeddings.weight": (config["vocab_size"], h),
        f"{prefix}.embeddings.position_embeddings.weight": (config["max_position_embeddings"], h),
        f"{prefix}.embeddings.token_type_embeddings.weight": (config["type_vocab_size"], h),
    }
    linear = {"intermediate.dense": (f, h), "output.dense": (h, f), "attention.output.dense": (h, h)}
    linear |= {f"attention.self.{part}": (h, h) for part in ("query", "key", "value")}
    full = {
        f"{prefix}.encoder.layer.{layer}.{name}": shape
        for layer in range(config["num_hidden_layers"])
        for name, shape in linear.items()
    }
    if prefix == "bert":
        full |= {"bert.pooler.dense": (h, h), "classifier": (1, h)}
    else:
        full |= {"classifier.dense": (h, h), "classifier.out_proj": (1, h)}
    for name, shape in full.items():
        layout |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    norms = [f"{prefix}.embeddings.LayerNorm"]
    for layer in range(config["num_hidden_layers"]):
        at = f"{prefix}.encoder.layer.{layer}"
        norms += [f"{at}.attention.output.LayerNorm", f"{at}.output.LayerNorm"]
    for name in norms:
        layout |= {f"{name}.weight": (h,), f"{name}.bias": (h,)}
    return layout


def write_wordpiece_tokenizer(path: Path) -> int:
    """A small BERT tokenizer.json; returns the size of its vocabulary."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    characters = "abcdefghijklmnopqrstuvwxyz0123456789?!.,"
    pieces = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *WORDS,
        *characters,
        *(f"##{c}" for c in characters),
    ]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    cls, sep = vocabulary["[CLS]"], vocabulary["[SEP]"]
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", sep), ("[CLS]", cls))
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    tokenizer.save(str(path))
    return len(vocabulary)


def make_batch(folder: Path, lengths: list[int], seed: int = 0) -> PackedBatch:
    """Random ids, literal pad tokens among them, and random types."""
    config = json.loads((folder / "config.json").read_text())
    random = np.random.default_rng(seed)
    ids = random.integers(0, config["vocab_size"], sum(lengths)).astype(np.int32)
    ids[random.random(len(ids)) < 0.1] = config["pad_token_id"]
    types = random.integers(0, config["type_vocab_size"], len(ids)).astype(np.uint8)
    return PackedBatch(ids, np.concatenate([[0], np.cumsum(lengths)]), types)
