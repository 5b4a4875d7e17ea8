from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from rerank_udf.engine import capability
from rerank_udf.engine.capability import resolve_cpu_backend, resolve_device, resolve_precision
from rerank_udf.errors import ConfigError
from rerank_udf.machine import processor_flags


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


@pytest.mark.parametrize(
    ("version", "takes"),
    [
        ("__version__ = '2.13.0+cpu'\ncuda: Optional[str] = None\nhip: Optional[str] = None\n", False),
        ("__version__ = '2.13.0'\ncuda: Optional[str] = '13.0'\nhip: Optional[str] = None\n", True),
        ("__version__ = '2.4.1+cpu'\ncuda = None\n", False),
    ],
)
def test_a_card_counts_only_for_a_torch_that_was_built_with_cuda(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str, takes: bool
) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/__init__.py").write_text("raise ImportError('it is not imported')")
    (tmp_path / "torch/version.py").write_text(version)
    spec = SimpleNamespace(origin=str(tmp_path / "torch/__init__.py"))
    monkeypatch.setattr(capability.importlib.util, "find_spec", lambda name: spec)
    capability._torch_takes_cuda.cache_clear()
    try:
        assert capability._torch_takes_cuda() is takes
    finally:
        capability._torch_takes_cuda.cache_clear()


def test_without_torch_no_card_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capability.importlib.util, "find_spec", lambda name: None)
    capability._torch_takes_cuda.cache_clear()
    try:
        assert not capability._torch_takes_cuda()
    finally:
        capability._torch_takes_cuda.cache_clear()


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


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ConfigError, match="it must be auto, float32, bfloat16, float16 or int8"):
        resolve_precision("fp16", "cpu")


def test_int8_is_for_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capability, "_installed", lambda package: True)
    assert resolve_precision("int8", "cpu") == "int8"
    with pytest.raises(ConfigError, match="int8, which is for the CPU, but device is cuda:0; use float16"):
        resolve_precision("int8", "cuda:0")


def test_int8_without_openvino_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capability, "_installed", lambda package: package != "openvino")
    with pytest.raises(ConfigError, match=r"needs OpenVINO; pip install 'rerank-udf\[openvino\]'"):
        resolve_precision("int8", "cpu")


@pytest.fixture
def narrow_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    """An OpenVINO on a processor that multiplies in bfloat16."""
    monkeypatch.delenv("RERANK_UDF_CPU_BACKEND", raising=False)
    monkeypatch.setattr(capability, "_openvino_precisions", lambda: ("float32", "bfloat16", "int8"))


@pytest.mark.usefixtures("narrow_openvino")
@pytest.mark.parametrize(
    ("installed", "expected"),
    [({"torch", "openvino"}, "openvino"), ({"torch"}, "torch"), ({"openvino"}, "openvino"), (set(), "torch")],
)
def test_openvino_scores_on_a_cpu_where_it_is_installed(
    monkeypatch: pytest.MonkeyPatch, installed: set[str], expected: str
) -> None:
    monkeypatch.setattr(capability, "_installed", installed.__contains__)
    assert resolve_cpu_backend("bfloat16") == expected


@pytest.mark.usefixtures("narrow_openvino")
def test_torch_scores_in_what_openvino_does_not_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capability, "_installed", {"torch", "openvino"}.__contains__)
    assert resolve_cpu_backend("float16") == "torch"
    monkeypatch.setattr(capability, "_openvino_precisions", lambda: ("float32", "int8"))
    assert resolve_cpu_backend("bfloat16") == "torch"
    monkeypatch.setattr(capability, "_installed", {"openvino"}.__contains__)
    with pytest.raises(ConfigError, match=r"precision is bfloat16, .* only in float32, int8; set another"):
        resolve_cpu_backend("bfloat16")


def test_openvino_says_what_it_falls_back_from() -> None:
    openvino = pytest.importorskip("openvino")
    known = capability._openvino_precisions()
    assert "float16" not in known
    flags = processor_flags()
    if "avx512_bf16" in flags or "amx_bf16" in flags:
        values = openvino.opset13.parameter([1], openvino.Type.f32)
        model = openvino.Model([openvino.opset13.exp(values)], [values])
        network = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "bf16"})
        assert network.get_property("INFERENCE_PRECISION_HINT") == openvino.Type.bf16
        assert "bfloat16" in known


@pytest.mark.usefixtures("narrow_openvino")
def test_the_cpu_backend_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RERANK_UDF_CPU_BACKEND", "openvino")
    monkeypatch.setattr(capability, "_installed", lambda package: True)
    assert resolve_cpu_backend("bfloat16") == "openvino"
    with pytest.raises(ConfigError, match="precision is float16, which OpenVINO does not compute in"):
        resolve_cpu_backend("float16")
    monkeypatch.setattr(capability, "_installed", lambda package: package != "openvino")
    with pytest.raises(ConfigError, match="is openvino, which is not installed; pip install openvino"):
        resolve_cpu_backend("float32")
    monkeypatch.setenv("RERANK_UDF_CPU_BACKEND", "onnx")
    with pytest.raises(ConfigError, match="is 'onnx'; it must be torch or openvino"):
        resolve_cpu_backend("float32")
