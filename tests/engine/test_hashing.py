from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa

from rerank_udf.engine import load_scorer


def by_hand(query: str, passage: str) -> float:
    keys = b"".join(hashlib.sha256(text.encode()).digest()[:16] for text in (query, passage))
    pair = hashlib.sha256(keys).digest()[:16]
    return int.from_bytes(hashlib.sha256(pair).digest()[:3], "big") / 2**20 - 8


def test_the_logit_is_the_hash_of_the_pair(hash_model: Path) -> None:
    queries, passages = ["a", "a", "日本", ""], ["b", "c", "🙂", ""]
    logits = load_scorer(hash_model).logits(queries, passages)
    assert logits.tolist() == [by_hand(q, p) for q, p in zip(queries, passages, strict=True)]
    assert logits.dtype == np.float32


def test_tokens_are_bytes_cut_at_max_length(hash_model: Path) -> None:
    scored = load_scorer(hash_model, max_length=20).score_pairs(["abc", "é"], ["d" * 40, "x"])
    assert scored.tokens.tolist() == [20, 3]
    assert scored.truncated.tolist() == [True, False]


def test_bad_pairs_fail_alone(hash_model: Path) -> None:
    scored = load_scorer(hash_model).score_pairs(pa.array(["a", None]), ["b", "c"])
    assert scored.errors == {1: ("null_query", "the query is null")}
    assert np.isnan(scored.logits[1])
    assert scored.tokens[1] == 0


def test_scoring_by_hash_needs_neither_torch_nor_a_tokenizer(hash_model: Path) -> None:
    code = (
        "import sys; from rerank_udf import load_scorer; load_scorer(sys.argv[1]).rank('q', ['a', 'b']); "
        "print({'torch', 'transformers', 'tokenizers', 'pyspark'} & set(sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, hash_model], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "set()"
