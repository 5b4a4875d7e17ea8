from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rerank_udf import engine, load_scorer
from rerank_udf.engine import capability, resolve_scorer
from rerank_udf.errors import ConfigError, ModelError
from rerank_udf.models import resolve_model


def run(code: str, *arguments: str | Path) -> str:
    command = [sys.executable, "-W", "error", "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_importing_and_resolving_leaves_torch_and_pyspark_unloaded(tiny_bert: Path) -> None:
    code = (
        "import sys, rerank_udf.engine as e; e.resolve_scorer(sys.argv[1]); "
        "print({'torch', 'transformers', 'tokenizers', 'pyspark'} & set(sys.modules))"
    )
    assert run(code, tiny_bert) == "set()"


def test_scoring_works_where_pyspark_cannot_be_imported(tiny_bert: Path) -> None:
    code = (
        "import sys; sys.modules['pyspark'] = None; from rerank_udf import load_scorer; "
        "print(len(load_scorer(sys.argv[1]).rank('how long', ['five days', 'a'])))"
    )
    assert run(code, tiny_bert) == "2"


def test_a_plan_travels_and_loads_elsewhere(tiny_bert: Path) -> None:
    plan = resolve_scorer(tiny_bert, precision="float32", max_length=64)
    copy = pickle.loads(pickle.dumps(plan))
    assert copy == plan
    pairs = (["how long"], ["five days"])
    scorer = copy.load()
    np.testing.assert_array_equal(scorer.logits(*pairs), plan.load().logits(*pairs))
    assert scorer.model_key == plan.model_key


def test_a_scorer_says_what_it_is(tiny_bert: Path) -> None:
    scorer = load_scorer(tiny_bert, precision="bfloat16", device="cpu", max_tokens_per_batch=77)
    facts = scorer.describe()
    assert facts["model_key"] == scorer.model_key
    assert (facts["precision"], facts["device"], facts["max_tokens_per_batch"]) == ("bfloat16", "cpu", 77)
    assert (facts["max_length"], facts["query_max_length"], facts["truncation"]) == (512, 384, "only_second")
    assert {"openvino", "tokenizers"} <= facts["versions"].keys()


def test_code_that_a_model_brings_is_never_run(tiny_bert: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_bert, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {
        "AutoConfig": "evil.BertConfig",
        "AutoModelForSequenceClassification": "evil.BertForSequenceClassification",
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'it ran')!r}, 'w')\nfrom transformers import *\n")
    assert len(load_scorer(folder, precision="float32").logits(["a"], ["b"])) == 1
    assert not (tmp_path / "it ran").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"max_length": 256},
        {"query_max_length": 100},
        {"truncation": "longest_first"},
        {"precision": "bfloat16"},
    ],
)
def test_whatever_may_change_a_score_changes_the_key(tiny_bert: Path, change: dict[str, Any]) -> None:
    settings = {"precision": "float32"}
    assert (
        resolve_scorer(tiny_bert, **settings).model_key
        != resolve_scorer(tiny_bert, **settings | change).model_key
    )


def test_what_changes_no_score_keeps_the_key(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = resolve_scorer(tiny_bert, precision="float32").model_key
    files = resolve_model(tiny_bert)
    same = resolve_scorer(
        files, precision="float32", query_max_length=384, max_tokens_per_batch=99, device="cpu"
    )
    assert same.model_key == key
    assert len(key) == 32
    monkeypatch.setattr(engine, "NUMERICS_VERSION", 3)
    assert resolve_scorer(tiny_bert, precision="float32").model_key != key


@pytest.mark.parametrize(
    ("settings", "error", "sentence"),
    [
        ({"max_length": 513}, ModelError, "max_length is 513, but .* has positions for 512 tokens"),
        ({"max_length": 8}, ConfigError, "leave no room for a passage in max_length=8"),
        ({"max_tokens_per_batch": 0}, ConfigError, "max_tokens_per_batch is 0"),
        ({"device": "tpu"}, ConfigError, "device is 'tpu'"),
        ({"precision": "half"}, ConfigError, "precision is 'half'"),
        ({"truncation": "none"}, ConfigError, "truncation is 'none'"),
        ({"revision": "main"}, ConfigError, "only a hub id has revisions"),
    ],
)
def test_settings_are_checked_before_anything_is_loaded(
    tiny_bert: Path, settings: dict[str, Any], error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        resolve_scorer(tiny_bert, **settings)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
@pytest.mark.parametrize("precision", ["auto", "float32"])
def test_a_card_that_torch_cannot_use_is_no_reason_to_score_on_the_processor(
    tiny_bert: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """A device file and a torch for CUDA are there; that the driver is too old, only torch finds out."""

    def too_old() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040). Please update")

    monkeypatch.setattr(capability, "_sees_cuda_device", lambda: True)
    monkeypatch.setattr(torch.cuda, "init", too_old)
    plan = resolve_scorer(tiny_bert, precision=precision)
    assert (plan.device, plan.precision) == ("auto", {"auto": "float16"}.get(precision, precision))
    with pytest.raises(ModelError, match=r"driver on your system is too old \(found .*; .*set device: cpu$"):
        plan.load()
    assert replace(plan, device="cpu", precision="float32").load().describe()["device"] == "cpu"


def test_a_plan_for_a_card_is_loaded_as_a_card(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Backend:
        def __init__(self, folder: Path, *, precision: str, device: str) -> None:
            asked.append((precision, device))

        def token_budget(self) -> int:
            return 1

    monkeypatch.setattr(capability, "_sees_cuda_device", lambda: True)
    monkeypatch.setattr("rerank_udf.engine.packed.PackedBackend", Backend)
    for device in ("auto", "cuda", "cuda:1"):
        resolve_scorer(tiny_bert, device=device).load()
    assert asked == [("float16", "cuda"), ("float16", "cuda"), ("float16", "cuda:1")]
