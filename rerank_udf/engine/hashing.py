"""A scorer without a model: the logit is a hash of the pair.

For tests of everything around scoring (resuming, faults, plans): equal on every machine to the last bit, no torch,
no tokenizer. A folder whose config.json says {"model_type": "rerank-udf-hash"} is scored by it.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from rerank_udf.engine.scorer import ScoredPairs
from rerank_udf.identity import pair_key, text_key
from rerank_udf.texts import TextColumn, pair_errors

LARGEST_LOGIT = 8.0
_STEPS = 1 << 24  # float32 holds each of them exactly


class HashEngine:
    """Scores a pair by its key. A text counts one token for each of its bytes, cut at `max_length`."""

    def __init__(self, max_length: int) -> None:
        self._max_length = max_length

    def score(self, queries: TextColumn, passages: TextColumn) -> ScoredPairs:
        """See `rerank_udf.engine.scorer.Engine`."""
        errors = pair_errors(queries.codes, queries.errors, passages.codes, passages.errors)
        query_keys, query_sizes = _keys_and_sizes(queries)
        passage_keys, passage_sizes = _keys_and_sizes(passages)
        logits = np.full(len(queries.codes), np.nan, dtype=np.float32)
        tokens = np.zeros(len(logits), dtype=np.int64)
        for row, (q, p) in enumerate(zip(queries.codes.tolist(), passages.codes.tolist(), strict=True)):
            if row not in errors:
                logits[row] = hash_logit(query_keys[q], passage_keys[p])
                tokens[row] = query_sizes[q] + passage_sizes[p]
        kept = np.minimum(tokens, self._max_length).astype(np.int32)
        return ScoredPairs(logits, kept, tokens > self._max_length, errors)

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
            "versions": {"numpy": np.__version__},
        }


def hash_logit(query_key: bytes, passage_key: bytes) -> float:
    """The logit of a pair from the keys of its texts: uniform on a grid in [−8, 8)."""
    digest = hashlib.sha256(pair_key(query_key, passage_key)).digest()
    step = int.from_bytes(digest[:3], "big")
    return LARGEST_LOGIT * (2.0 * step / _STEPS - 1.0)


def _keys_and_sizes(column: TextColumn) -> tuple[list[bytes], list[int]]:
    texts = ["" if text is None else text for text in column.values]
    return [text_key(text) for text in texts], [len(text.encode()) for text in texts]
