"""oneDNN's linear layers against torch's public ones, and what happens where they are absent."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from rerank_udf.engine import onednn
from rerank_udf.engine.forward import Linear
from rerank_udf.engine.onednn import OneDnnLinear, lay_out, why_not


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """What was found out about this torch is forgotten before and after each test."""
    why_not.cache_clear()
    yield
    why_not.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 77, 1500])
def test_products_gelu_and_sums_are_torchs(dtype: torch.dtype, rows: int) -> None:
    if why_not(dtype) is not None:
        pytest.skip(f"this processor or torch has no oneDNN layers in {dtype}: {why_not(dtype)}")
    generator = torch.Generator().manual_seed(1)
    weight, bias = torch.randn(96, 64, generator=generator), torch.randn(96, generator=generator)
    x, residual = torch.randn(rows, 64, generator=generator), torch.randn(rows, 96, generator=generator)
    weight, bias, x, residual = (t.to(dtype) for t in (weight, bias, x, residual))
    layer = lay_out(Linear(weight, bias))
    assert isinstance(layer, OneDnnLinear)
    exact = F.linear(x.double(), weight.double(), bias.double())
    tolerance = 1e-4 if dtype == torch.float32 else 0.02 * float(exact.abs().max())
    with torch.inference_mode():
        for found, expected in (
            (layer(x), exact),
            (layer.gelu(x), F.gelu(exact)),
            (layer.plus(x, residual), exact + residual.double()),
        ):
            assert found.dtype == dtype
            torch.testing.assert_close(found.double(), expected, atol=tolerance, rtol=0)


def test_a_wrong_product_is_found_and_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    real = onednn._pointwise
    monkeypatch.setattr(onednn, "_pointwise", lambda overload: lambda *a: 1.05 * real(overload)(*a))
    assert "deviates" in (why_not(torch.float32) or "")
    layer = Linear(torch.ones(4, 4), torch.zeros(4))
    assert lay_out(layer) is layer


def test_a_torch_without_the_operator_computes_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(overload: str) -> None:
        raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_linear_pointwise'")

    monkeypatch.setattr(onednn, "_pointwise", absent)
    assert "no attribute '_linear_pointwise'" in (why_not(torch.float32) or "")
    layer = Linear(torch.ones(4, 4), torch.zeros(4))
    assert lay_out(layer) is layer


def test_other_devices_keep_their_layers() -> None:
    layer = Linear(torch.empty(4, 4, device="meta"), torch.empty(4, device="meta"))
    assert lay_out(layer) is layer
