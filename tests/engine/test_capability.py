from __future__ import annotations

import pytest

from rerank_udf.engine import capability
from rerank_udf.engine.capability import resolve_device, resolve_precision
from rerank_udf.errors import ConfigError


def test_automatic_precision_is_float16_on_cuda() -> None:
    assert resolve_precision("auto", "cuda:1") == "float16"


@pytest.mark.parametrize(
    ("flags", "precision"),
    [
        ({"avx2", "amx_bf16"}, "bfloat16"),
        ({"avx512_bf16"}, "bfloat16"),
        ({"avx2", "avx512f"}, "float32"),
        (set(), "float32"),
    ],
)
def test_automatic_precision_on_a_processor_is_what_it_multiplies_in(
    monkeypatch: pytest.MonkeyPatch, flags: set[str], precision: str
) -> None:
    monkeypatch.setattr(capability, "processor_flags", lambda: frozenset(flags))
    assert resolve_precision("auto", "cpu") == precision


def test_automatic_device_is_cuda_where_one_is_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capability, "_sees_cuda_device", lambda: True)
    assert resolve_device("auto") == "cuda"
    assert resolve_precision("auto", "auto") == "float16"


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_devices_that_are_hidden_do_not_count(monkeypatch: pytest.MonkeyPatch, hidden: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert resolve_device("auto") == "cpu"


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:3"])
def test_a_named_device_stays(device: str) -> None:
    assert resolve_device(device) == device


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "cpu:0", ""])
def test_an_unknown_device_is_refused(device: str) -> None:
    with pytest.raises(ConfigError, match="it must be auto, cpu, cuda or cuda:N"):
        resolve_device(device)


def test_a_precision_without_a_backend_is_refused() -> None:
    with pytest.raises(ConfigError, match="precision is int8, which this version has no backend for"):
        resolve_precision("int8", "cpu")
    with pytest.raises(ConfigError, match="it must be auto, float32, bfloat16, float16 or int8"):
        resolve_precision("fp16", "cpu")
