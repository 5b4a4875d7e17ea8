"""Names for things by their content, so that a score is a fact that can be looked up.

text_key  = first 16 bytes of sha256(utf-8 text)
pair_key  = first 16 bytes of sha256(query_key ‖ passage_key)
model_key = 32 hex digits over everything that decides a score besides the texts

`spark/keys.py` computes the first two as Spark columns; the tests hold both to the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

KEY_BYTES = 16


def text_key(text: str) -> bytes:
    """The 16-byte key of a text as it is given to the tokenizer (after templates)."""
    return hashlib.sha256(text.encode("utf-8")).digest()[:KEY_BYTES]


def pair_key(query_key: bytes, passage_key: bytes) -> bytes:
    """The 16-byte key of a (query, passage) pair from the keys of its two texts."""
    return hashlib.sha256(query_key + passage_key).digest()[:KEY_BYTES]


def model_key(
    files: Mapping[str, str],
    *,
    precision: str,
    max_length: int,
    query_max_length: int | None,
    truncation: str,
    numerics_version: int,
) -> str:
    """The key under which scores may be kept: 32 hex digits.

    `files` maps file names (config.json, tokenizer.json, the weights) to sha256 hex digests; `numerics_version`
    is the engine's own number, raised whenever a change of code may move a score by more than rounding.
    """
    facts = {
        "files": dict(sorted(files.items())),
        "precision": precision,
        "max_length": max_length,
        "query_max_length": query_max_length,
        "truncation": truncation,
        "numerics": numerics_version,
    }
    canonical = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8")).hexdigest()[:32]
