"""Models of a given shape with random weights: speed does not depend on what the numbers are, quality does.

A folder is in Hugging Face's layout (config.json, model.safetensors, tokenizer.json), so that every engine loads it
as it would load a real one.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from rerank_udf.models.checkpoint import Architecture, read_architecture
from rerank_udf.models.mini import CONFIG, find_parts

SEED = 20
POSITIONS = 8194  # as bge-reranker-v2-m3: 8,192 tokens
VOCABULARY = 250002
_SPREAD = 0.02  # Hugging Face's initializer_range
_HEAD_SPREAD = 1.0  # so that logits differ by more than rounding


@dataclass(frozen=True)
class Shape:
    """The sizes that speed depends on."""

    name: str
    layers: int
    hidden: int
    intermediate: int
    heads: int

    def config(self) -> dict[str, Any]:
        """The config.json of an XLM-RoBERTa cross-encoder of this shape."""
        return CONFIG | {
            "hidden_size": self.hidden,
            "initializer_range": _SPREAD,
            "intermediate_size": self.intermediate,
            "layer_norm_eps": 1e-5,
            "max_position_embeddings": POSITIONS,
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "vocab_size": VOCABULARY,
        }


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("mini", layers=12, hidden=384, intermediate=1536, heads=12),
        Shape("base", layers=12, hidden=768, intermediate=3072, heads=12),
        Shape("large", layers=24, hidden=1024, intermediate=4096, heads=16),
    )
}


def models_folder() -> Path:
    """BENCH_MODELS, or benchmarks/.models."""
    return Path(os.environ.get("BENCH_MODELS") or Path(__file__).parents[1] / ".models").resolve()


def model_folder(shape: Shape) -> Path:
    """The folder of a shape's model; written on first use. Raises ModelError where the tokenizer is absent."""
    target = models_folder() / f"{shape.name}-{shape.layers}x{shape.hidden}-seed{SEED}"
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=target.parent))
        write_model(scratch, shape.config())
        shutil.copyfile(find_parts().tokenizer, scratch / "tokenizer.json")
        scratch.rename(target)  # last, so that a folder that is there is whole
    return target


def write_model(folder: Path, config: dict[str, Any]) -> None:
    """Write config.json and seeded model.safetensors (float16: half the disk, and exact in float32)."""
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    architecture = read_architecture(config, "the benchmark's model")
    save_file(random_tensors(architecture), folder / "model.safetensors", metadata={"format": "pt"})


def random_tensors(architecture: Architecture) -> dict[str, np.ndarray[Any, np.dtype[np.float16]]]:
    """Weights as a new model of transformers has them, but for a wider head; name → float16 array."""
    generator = np.random.default_rng(SEED)
    tensors = {}
    for name, shape in architecture.tensors().items():
        if name.endswith("LayerNorm.weight"):
            values = np.ones(shape, np.float32)
        elif name.endswith(".bias"):
            values = np.zeros(shape, np.float32)
        else:
            spread = _HEAD_SPREAD if name.startswith(architecture.label_layer) else _SPREAD
            values = spread * generator.standard_normal(shape, dtype=np.float32)
        tensors[name] = values.astype(np.float16)
    return tensors
