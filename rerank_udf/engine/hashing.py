"""A scorer without a model: the logit is a hash of the pair.

For tests of everything around scoring (resuming, faults, plans): equal on every machine to the last bit, no torch,
no tokenizer. A folder whose config.json says {"model_type": "rerank-udf-hash"} is scored by it; what shall go wrong
meanwhile stands beside it, see `rerank_udf.engine.faults`.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

from rerank_udf.engine.faults import HEALTHY, Faults, Ordeal
from rerank_udf.engine.scorer import Prepare, ScoredPairs
from rerank_udf.identity import pair_key, text_key
from rerank_udf.texts import TextColumn, pair_errors

LARGEST_LOGIT = 8.0
_STEP_BYTES = 3  # float32 holds each of 2**24 steps exactly


class HashEngine:
    """Scores a pair by its key. A text counts one token for each of its bytes, cut at `max_length`."""

    backend = None
    overlaps = False  # all of it is Python, on one processor
    queues = False

    def __init__(self, max_length: int, faults: Faults = HEALTHY) -> None:
        self._max_length = max_length
        self._faults = faults
        self._ordeal = Ordeal(faults)

    def preparation(self) -> Prepare[ScoredPairs]:
        """See `rerank_udf.engine.scorer.Engine`."""
        return self._score

    def start(self, prepared: ScoredPairs) -> ScoredPairs:
        """See `rerank_udf.engine.scorer.Engine`."""
        return prepared

    def finish(self, started: ScoredPairs) -> ScoredPairs:
        """See `rerank_udf.engine.scorer.Engine`."""
        return started

    def describe(self) -> dict[str, Any]:
        """See `rerank_udf.engine.scorer.Engine`."""
        return {
            "backend": "hash",
            "device": "cpu",
            "device_name": "none: the logit is a hash of the pair",
            "precision": "float32",
            "max_tokens_per_batch": None,
            "out_of_memory_halvings": 0,
            "rescored_in_float32": 0,
            "tokenizer_threads": 0,
            "texts_tokenised": 0,
            "text_cache_hits": 0,
            "versions": {"numpy": np.__version__},
        }

    def _score(self, queries: TextColumn, passages: TextColumn) -> ScoredPairs:
        errors = pair_errors(queries.codes, queries.errors, passages.codes, passages.errors)
        sound = np.ones(len(queries.codes), dtype=np.bool_)
        sound[list(errors)] = False
        codes = queries.codes[sound], passages.codes[sound]
        query_keys, query_sizes = _keys_and_sizes(queries)
        passage_keys, passage_sizes = _keys_and_sizes(passages)
        pairs = zip(codes[0].tolist(), codes[1].tolist(), strict=True)
        keys = [pair_key(query_keys[q], passage_keys[p]) for q, p in pairs]
        texts = [passages.values[p] or "" for p in codes[1].tolist()]
        self._ordeal.go_through(keys, texts)
        logits = np.full(len(sound), np.nan, dtype=np.float32)
        tokens = np.zeros(len(sound), dtype=np.int64)
        logits[sound] = hash_logits(keys)
        tokens[sound] = query_sizes[codes[0]] + passage_sizes[codes[1]]
        kept = np.minimum(tokens, self._max_length).astype(np.int32)
        for row, text in zip(np.flatnonzero(sound).tolist(), texts, strict=True):
            if failed := self._faults.error(text, int(kept[row])):
                errors[row], logits[row] = failed, np.nan
        return ScoredPairs(logits, kept, tokens > self._max_length, dict(sorted(errors.items())))


def hash_logits(pair_keys: list[bytes]) -> npt.NDArray[np.float64]:
    """The logits of pairs from their keys: float64 (n,), uniform on a grid in [−8, 8)."""
    drawn = b"".join([hashlib.sha256(key).digest()[:_STEP_BYTES] for key in pair_keys])
    digits = np.frombuffer(drawn, dtype=np.uint8).reshape(-1, _STEP_BYTES)
    steps = digits @ 256.0 ** np.arange(_STEP_BYTES)[::-1]
    logits: npt.NDArray[np.float64] = LARGEST_LOGIT * (2.0 * steps / 256.0**_STEP_BYTES - 1.0)
    return logits


def _keys_and_sizes(column: TextColumn) -> tuple[list[bytes], npt.NDArray[np.int64]]:
    texts = ["" if text is None else text for text in column.values]
    sizes = np.fromiter((len(text.encode()) for text in texts), dtype=np.int64, count=len(texts))
    return [text_key(text) for text in texts], sizes
