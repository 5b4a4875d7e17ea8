"""The ranges that int8 needs: measured once a model, on the demo's texts, and kept beside the model."""

from __future__ import annotations

import importlib.resources
import logging
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock

from rerank_udf.engine.backend import PackedBatch, place_ids
from rerank_udf.engine.int8 import measure_ranges
from rerank_udf.engine.weights import ModelWeights, read_weights
from rerank_udf.identity import text_key
from rerank_udf.machine import task_threads
from rerank_udf.models import ModelFiles, local_folder, tokenizer_folder
from rerank_udf.models.cache import cache_root
from rerank_udf.tokens import PairLimits, PairTokenizer

_PAIRS = 300
# In 13 languages; read as files (in a zip, maybe), since the demo is no part of the engine
_TEXTS = "demo"
_log = logging.getLogger(__name__)


def kept_ranges(files: ModelFiles) -> bytes:
    """A model's calibration as bytes of `int8.Ranges`: read where it is kept, else measured and kept.

    It is kept in the model's folder, or in this node's cache where that folder cannot be written. Measuring runs 300
    pairs of the demo's texts in float32, under a lock. Raises ModelError where the model's files are not as expected.
    """
    folder = local_folder(files)
    _, elsewhere = places = _places(folder, files)
    if (kept := _first(places)) is not None:
        return kept
    elsewhere.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(elsewhere.with_suffix(".lock")):
        if (kept := _first(places)) is not None:  # another process has measured meanwhile
            return kept
        _log.warning("calibrating %s for int8 on %d pairs; kept for the next time", files.name, _PAIRS)
        data = _measured(folder)
        _keep(data, places[0] if os.access(folder, os.W_OK) else places[1])
    return data


def ranges_if_kept(files: ModelFiles) -> bytes | None:
    """What `kept_ranges` would read; None where it would measure. No weights are read or fetched."""
    return _first(_places(tokenizer_folder(files), files))


def _places(folder: Path, files: ModelFiles) -> tuple[Path, Path]:
    name = file_name(files)
    return folder / name, cache_root() / "int8" / name


def _first(places: Iterable[Path]) -> bytes | None:
    return next((place.read_bytes() for place in places if place.is_file()), None)


def file_name(files: ModelFiles) -> str:
    """What a model's calibration is called: by the digests of its files, so that other weights never use it."""
    content = "".join(f"{name}{digest}" for name, digest in sorted(files.digests.items()))
    return f"rerank_udf_int8_{text_key(content).hex()[:16]}.safetensors"


def _measured(folder: Path) -> bytes:
    weights = read_weights(folder)
    limits = PairLimits(max_length=min(512, weights.architecture.most_tokens))
    tokenizer = PairTokenizer.from_folder(folder, limits)
    return measure_ranges(weights, _rectangles(tokenizer, weights), task_threads()).to_bytes()


def _rectangles(tokenizer: PairTokenizer, weights: ModelWeights) -> list[tuple[np.ndarray, np.ndarray]]:
    """Every pair as a rectangle of one row: (token_ids, places), int32 (1, length) each."""
    queries, passages = demo_pairs()
    pairs = tokenizer.encode(queries, passages)
    rectangles = []
    for start, stop in zip(pairs.offsets[:-1].tolist(), pairs.offsets[1:].tolist(), strict=True):
        types = None if pairs.type_ids is None else pairs.type_ids[start:stop]
        row = PackedBatch(pairs.token_ids[start:stop], np.array([0, stop - start]), types)
        rectangles.append((row.token_ids[None], place_ids(row, weights.architecture)[None]))
    return rectangles


def demo_pairs(count: int = _PAIRS) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    """Queries and passages of `count` of the demo's candidates, evenly through all languages."""
    folder = importlib.resources.files("rerank_udf") / _TEXTS
    tables = {
        name: pq.read_table(pa.BufferReader((folder / f"{name}.parquet").read_bytes()))
        for name in ("queries", "passages", "candidates")
    }
    candidates = tables["candidates"]
    rows = np.linspace(0, len(candidates) - 1, count).astype(np.int64)
    texts = []
    for name, key, text in (("queries", "query_id", "query"), ("passages", "passage_id", "passage")):
        numbers = {value: n for n, value in enumerate(tables[name][key].to_pylist())}
        wanted = [numbers[value] for value in candidates[key].take(rows).to_pylist()]
        texts.append(tables[name][text].take(wanted))
    return texts[0], texts[1]


def _keep(data: bytes, place: Path) -> None:
    handle, scratch = tempfile.mkstemp(dir=place.parent, prefix=f".{place.name}-")
    with os.fdopen(handle, "wb") as file:
        file.write(data)
    Path(scratch).chmod(0o644)
    Path(scratch).replace(place)
