"""The two torch backends in a scorer, against transformers' own forward pass, one pair at a time, without padding."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoModelForSequenceClassification

from rerank_udf.engine.backend import OutOfMemoryError, PackedBatch
from rerank_udf.engine.packed import PackedBackend
from rerank_udf.engine.padded import PaddedBackend
from rerank_udf.engine.scorer import ModelEngine, Scorer
from rerank_udf.engine.torch_runtime import exact_products, torch_device
from rerank_udf.errors import ModelError
from rerank_udf.tokens import PairLimits, PairTokenizer

QUERIES = ["how long does a refund take?", "", "日本の首都は？", "capital of france <pad> [MASK] [PAD]", "a"]
PASSAGES = [
    "Refunds take five days. " * 20,
    "",
    "パリはフランスの首都です。",
    "five <pad> days </s> in [PAD] [SEP] paris",
    "we ship on monday \x00 \u200d",
    "شكرا لك على الانتظار",
]
PAIRS = [(q, p) for q in QUERIES for p in PASSAGES]


def plain_logits(folder: Path, pairs: list[tuple[str, str]]) -> list[float]:
    """Each pair alone, positions and types by transformers itself."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    model: Any = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    model.eval()
    logits = []
    for query, passage in pairs:
        encoding = tokenizer.encode(query, passage)
        inputs = {
            "input_ids": torch.tensor([encoding.ids]),
            "attention_mask": torch.ones(1, len(encoding.ids)),
        }
        if any(encoding.type_ids):
            inputs["token_type_ids"] = torch.tensor([encoding.type_ids])
        with torch.inference_mode():
            logits.append(float(model(**inputs).logits))
    return logits


@pytest.fixture(scope="module", params=["tiny_xlmr", "tiny_bert"])
def folder(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def plain(folder: Path) -> list[float]:
    return plain_logits(folder, PAIRS)


BackendClass = type[PaddedBackend] | type[PackedBackend]


@pytest.fixture(scope="module", params=[PaddedBackend, PackedBackend], ids=["padded", "packed"])
def backend(request: pytest.FixtureRequest) -> BackendClass:
    found: BackendClass = request.param
    return found


def scorer(
    folder: Path, backend: BackendClass, precision: str = "float32", max_tokens_per_batch: int | None = None
) -> Scorer:
    tokenizer = PairTokenizer.from_folder(folder, PairLimits())
    model = backend(folder, precision=precision, device="cpu")
    engine = ModelEngine(tokenizer, model, max_tokens_per_batch)
    return Scorer(engine, model_key="0" * 32, facts={"model": "a test"})


def scored(folder: Path, backend: BackendClass, *settings: Any) -> np.ndarray[Any, Any]:
    return scorer(folder, backend, *settings).logits([q for q, _ in PAIRS], [p for _, p in PAIRS])


def test_logits_in_float32_are_those_of_one_pair_at_a_time(
    folder: Path, backend: BackendClass, plain: list[float]
) -> None:
    assert np.ptp(plain) > 0.5, "the random weights tell no pair from another"
    np.testing.assert_allclose(scored(folder, backend), plain, atol=1e-5, rtol=0)


@pytest.mark.parametrize("budget", [1, 70, 100_000])
def test_logits_do_not_depend_on_the_batch(
    folder: Path, backend: BackendClass, plain: list[float], budget: int
) -> None:
    logits = scored(folder, backend, "float32", budget)
    np.testing.assert_allclose(logits, plain, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("precision", "tolerance"), [("bfloat16", 0.15), ("float16", 0.02)])
def test_logits_in_16_bits_are_near(
    folder: Path, backend: BackendClass, plain: list[float], precision: str, tolerance: float
) -> None:
    logits = scored(folder, backend, precision)
    np.testing.assert_allclose(logits, plain, atol=tolerance * float(np.ptp(plain)), rtol=0)


def test_a_literal_pad_in_the_text_is_read_and_takes_no_position(
    tiny_xlmr: Path, backend: BackendClass
) -> None:
    model = scorer(tiny_xlmr, backend)
    pairs = [("q <pad> r", "a <pad><pad> b"), ("q r", "a b")]
    logits = model.logits([q for q, _ in pairs], [p for _, p in pairs])
    np.testing.assert_allclose(logits, plain_logits(tiny_xlmr, pairs), atol=1e-5, rtol=0)
    assert abs(logits[0] - logits[1]) > 1e-3


def test_the_head_stays_in_float32(tiny_bert: Path) -> None:
    backend = PaddedBackend(tiny_bert, precision="bfloat16", device="cpu")
    assert {tensor.dtype for tensor in backend._head.parameters()} == {torch.float32}
    assert {tensor.dtype for tensor in backend._encoder.parameters()} == {torch.bfloat16}
    assert not backend._encoder.training


def test_what_overflows_in_float16_comes_out_as_in_float32(
    tiny_xlmr: Path, backend: BackendClass, tmp_path: Path
) -> None:
    """Between the two matrices of a feed-forward part, values are 100,000 times larger than they need to be."""
    folder = shutil.copytree(tiny_xlmr, tmp_path / "model", symlinks=True)
    weights = load_file(folder / "model.safetensors")
    for name in weights:
        if "intermediate.dense" in name:
            weights[name] = weights[name] * 100_000
        elif name.endswith(".output.dense.weight") and "attention" not in name:
            weights[name] = weights[name] / 100_000
    save_file(weights, folder / "model.safetensors")
    model = scorer(folder, backend, "float16")
    pairs = (["how long", "a"], ["five days", "b c d"])
    np.testing.assert_allclose(model.logits(*pairs), scorer(folder, backend).logits(*pairs), atol=1e-5)
    assert model.describe()["rescored_in_float32"] == 2


def test_a_logit_that_is_not_finite_in_float32_is_an_error_not_a_score(
    tiny_bert: Path, backend: BackendClass, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_bert, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights["classifier.bias"] = np.array([np.inf], np.float32)
    save_file(weights, folder / "model.safetensors")
    found = scorer(folder, backend).score_pairs(["a"], ["b"])
    assert found.errors == {0: ("not_finite", "the model's output is inf in float32")}


def one_pair() -> PackedBatch:
    return PackedBatch(np.array([2, 5, 3, 6, 3], np.int32), np.array([0, 5]), None)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        MemoryError("no room"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried"
        ),
    ],
)
def test_a_full_memory_is_told_from_other_errors(
    tiny_bert: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    backend = PaddedBackend(tiny_bert, precision="float32", device="cpu")

    def fail(*_arguments: object, **_names: object) -> None:
        raise error

    monkeypatch.setattr(backend._encoder, "forward", fail)
    with pytest.raises(OutOfMemoryError):
        backend.start(one_pair())


def test_an_error_of_the_device_is_raised_as_it_is(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = PaddedBackend(tiny_bert, precision="float32", device="cpu")

    def fail(*_arguments: object, **_names: object) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(backend._encoder, "forward", fail)
    with pytest.raises(RuntimeError, match="device-side assert"):
        backend.start(one_pair())


def test_products_are_exact_while_a_batch_runs_and_as_before_afterwards() -> None:
    matmul = torch.backends.cuda.matmul
    torch.set_float32_matmul_precision("high")
    try:
        with exact_products():
            assert torch.get_float32_matmul_precision() == "highest"
            assert not matmul.allow_fp16_reduced_precision_reduction
        assert torch.get_float32_matmul_precision() == "high"
        assert matmul.allow_fp16_reduced_precision_reduction
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.skipif(
    not hasattr(torch.backends.cuda.matmul, "allow_fp16_accumulation"), reason="torch before 2.7"
)
def test_sums_are_not_in_16_bits_though_the_process_may_have_allowed_it() -> None:
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_fp16_accumulation
    try:
        for allowed in (True, False):
            matmul.allow_fp16_accumulation = allowed
            with exact_products():
                assert not matmul.allow_fp16_accumulation
            assert matmul.allow_fp16_accumulation is allowed
    finally:
        matmul.allow_fp16_accumulation = before


def test_an_older_torch_has_fewer_switches(monkeypatch: pytest.MonkeyPatch) -> None:
    class Older:
        allow_fp16_reduced_precision_reduction = True
        allow_bf16_reduced_precision_reduction = True

    monkeypatch.setattr(torch.backends.cuda, "matmul", Older)
    with exact_products():
        assert not Older.allow_fp16_reduced_precision_reduction
    assert Older.allow_bf16_reduced_precision_reduction
    assert not hasattr(Older, "allow_fp16_accumulation")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_cuda_that_is_not_there_is_a_model_error() -> None:
    with pytest.raises(ModelError, match=r"sees no CUDA device: .*; mend the driver .*, or set device: cpu"):
        torch_device("cuda")


def test_tensors_that_do_not_fit_are_named_at_loading_too(
    tiny_bert: Path, backend: BackendClass, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_bert, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    del weights["bert.encoder.layer.1.output.dense.bias"]
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"lacks the tensor bert\.encoder\.layer\.1\.output\.dense\.bias"):
        backend(folder, precision="float32", device="cpu")


def test_sharded_weights_give_the_same_logits(
    tiny_bert: Path, backend: BackendClass, folder_of_shards: Path
) -> None:
    pairs = (["how long", "a"], ["five days", "b c d"])
    np.testing.assert_array_equal(
        scorer(folder_of_shards, backend).logits(*pairs), scorer(tiny_bert, backend).logits(*pairs)
    )


def test_what_a_scorer_tells_of_its_backend(tiny_bert: Path, backend: BackendClass) -> None:
    told = scorer(tiny_bert, backend).describe()
    assert (told["backend"], told["device"], told["precision"]) == (backend.name, "cpu", "float32")
    assert told["versions"]["torch"] == str(torch.__version__)
    assert json.loads(json.dumps(told)) == told


@pytest.fixture
def folder_of_shards(tiny_bert: Path, tmp_path: Path) -> Path:
    model: Any = AutoModelForSequenceClassification.from_pretrained(tiny_bert, dtype=torch.float32)
    model.save_pretrained(tmp_path / "shards", max_shard_size="40KB")
    shutil.copy(tiny_bert / "tokenizer.json", tmp_path / "shards")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 1
    return tmp_path / "shards"


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="torch before 2.9")
def test_products_are_exact_too_where_a_process_uses_torchs_newer_switches() -> None:
    """In a process of its own: the switches cannot be put back to what a fresh one has."""
    code = """
import torch
from rerank_udf.engine.torch_runtime import exact_products
matmul = torch.backends.cuda.matmul
matmul.fp32_precision = "tf32"
with exact_products():
    print(matmul.fp32_precision)
print(matmul.fp32_precision)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["ieee", "tf32"], done.stderr
