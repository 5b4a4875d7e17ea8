from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from rerank_udf.engine import Scorer, load_scorer, resolve_scorer
from rerank_udf.engine.faults import HEALTHY, read_faults
from rerank_udf.engine.hashing import HashEngine
from rerank_udf.errors import ModelError


def key_by_hand(query: str, passage: str) -> bytes:
    keys = b"".join(hashlib.sha256(text.encode()).digest()[:16] for text in (query, passage))
    return hashlib.sha256(keys).digest()[:16]


def by_hand(query: str, passage: str) -> float:
    pair = key_by_hand(query, passage)
    return int.from_bytes(hashlib.sha256(pair).digest()[:3], "big") / 2**20 - 8


def faulty(folder: Path, **faults: Any) -> Path:
    """A hash model's folder with these faults."""
    (folder / "config.json").write_text('{"model_type": "rerank-udf-hash"}')
    (folder / "faults.json").write_text(json.dumps(faults))
    return folder


def scorer_with(folder: Path) -> Scorer:
    return Scorer(HashEngine(512, read_faults(folder)), model_key="", facts={})


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


def test_a_folder_without_faults_is_healthy(hash_model: Path) -> None:
    assert read_faults(hash_model) == HEALTHY


def test_pairs_fail_as_a_model_would_have_them_fail(tmp_path: Path) -> None:
    scorer = scorer_with(faulty(tmp_path, not_finite="☠", out_of_memory="long"))
    scored = scorer.score_pairs(["q"] * 4, ["sound", "a ☠ b", "very long", None])
    assert scored.errors == {
        1: ("not_finite", "the model's output is nan in float32"),
        2: ("out_of_memory", "10 tokens do not fit into the memory of cpu: on purpose"),
        3: ("null_passage", "the passage is null"),
    }
    assert scored.logits[0] == by_hand("q", "sound")
    assert np.isnan(scored.logits[1:]).all()


def test_every_scoring_is_in_the_journal(tmp_path: Path) -> None:
    folder = faulty(tmp_path, journal=str(tmp_path / "journal"), not_finite="bad")
    passages = [f"passage {number}" for number in range(150)]
    for scorer in (scorer_with(folder), scorer_with(folder)):
        scorer.logits(["q"] * 150, passages)
    scorer.score_pairs(["q", "q", "q"], ["bad", None, "passage 0"])
    files = [file.read_bytes() for file in (tmp_path / "journal").iterdir()]
    once = b"".join(key_by_hand("q", passage) for passage in passages)
    again = key_by_hand("q", "bad") + key_by_hand("q", "passage 0")
    assert sorted(files) == [once, once + again]


def test_a_deadly_pair_takes_the_process_with_it_and_leaves_the_journal(tmp_path: Path) -> None:
    faulty(tmp_path, journal=str(tmp_path / "journal"), kills_worker="☠")
    code = (
        "import sys; from pathlib import Path; from rerank_udf.engine import Scorer; "
        "from rerank_udf.engine.faults import read_faults; from rerank_udf.engine.hashing import HashEngine; "
        "scorer = Scorer(HashEngine(512, read_faults(Path(sys.argv[1]))), model_key='', facts={}); "
        "scorer.logits(['q'] * 3, ['a', '☠', 'b'])"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], check=False)
    assert done.returncode == -signal.SIGKILL
    (file,) = (tmp_path / "journal").iterdir()
    assert file.read_bytes() == key_by_hand("q", "a")


def test_faults_are_no_part_of_the_models_key(hash_model: Path, tmp_path: Path) -> None:
    assert resolve_scorer(faulty(tmp_path, not_finite="x")).model_key == resolve_scorer(hash_model).model_key


@pytest.mark.parametrize(
    ("faults", "sentence"),
    [
        (
            {"jurnal": "/x"},
            "unknown setting jurnal; did you mean journal? Known here: journal, microseconds_per",
        ),
        (
            {"microseconds_per_pair": -1},
            "microseconds_per_pair: expected greater than or equal to 0, found -1",
        ),
        ({"kills_worker": ""}, "kills_worker: "),
    ],
)
def test_faults_that_are_none_are_refused(tmp_path: Path, faults: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ModelError, match=r"faults\.json") as refused:
        read_faults(faulty(tmp_path, **faults))
    assert sentence in str(refused.value)
    (tmp_path / "faults.json").write_text("[]")
    with pytest.raises(ModelError, match=r"faults\.json holds a JSON list"):
        read_faults(tmp_path)
