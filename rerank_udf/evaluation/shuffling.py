"""Shuffles that depend on the seed and on the query alone: not on the queries beside it, nor on where they are."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Words: TypeAlias = npt.NDArray[np.uint64]

_STEP = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIERS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))


def query_seeds(queries: Sequence[str], seed: int) -> Words:
    """uint64 (queries,): where each query's stream of random numbers begins."""
    key = str(seed).encode()
    found = (hashlib.blake2b(query.encode(), digest_size=8, key=key).digest() for query in queries)
    return np.frombuffer(b"".join(found), dtype="<u8").astype(np.uint64)


def random_words(seeds: Words, numbers: npt.NDArray[np.integer[Any]]) -> Words:
    """The `numbers`-th word of the stream that begins at each of `seeds`: SplitMix64 (Steele et al., OOPSLA 2014)."""
    words: Words = seeds + numbers.astype(np.uint64) * _STEP
    for shift, multiplier in _MULTIPLIERS:
        words = (words ^ (words >> np.uint64(shift))) * np.uint64(multiplier)
    last: Words = words ^ (words >> np.uint64(31))
    return last
