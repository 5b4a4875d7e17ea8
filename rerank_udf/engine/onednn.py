"""Linear layers for a CPU through oneDNN, as torch's own compiler calls it: laid out once, GELU and sums fused.

F.linear lays the weights out anew at every call and writes the product before a second pass reads it for
GELU. The operators used here are private to torch: they are asked for by name, tried on a small product when a model
is loaded, and left alone where they are absent or wrong.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rerank_udf.engine.forward import Linear

_LIKELY_ROWS = 1024  # a hint to oneDNN; every number of rows is computed
_TRIED = (7, 48, 80)  # rows, inputs, outputs of the product that is tried
_CHECK_STEPS = 4  # rounding steps of the largest value that a product may be off


@dataclass(frozen=True)
class OneDnnLinear(Linear):
    """A `Linear` whose `weight` is in oneDNN's own order, for its operators alone."""

    def __call__(self, x: Tensor) -> Tensor:
        """See `Linear`."""
        return _pointwise("default")(x, self.weight, self.bias, "none", [], "")

    def gelu(self, x: Tensor) -> Tensor:
        """See `Linear`; the erf is computed while the product is in registers."""
        return _pointwise("default")(x, self.weight, self.bias, "gelu", [], "none")

    def plus(self, x: Tensor, residual: Tensor) -> Tensor:
        """See `Linear`."""
        return _pointwise("binary")(x, residual, self.weight, self.bias, "add")


def lay_out(linear: Linear) -> Linear:
    """The same layer through oneDNN where this torch can do it in its dtype, else `linear` itself."""
    if linear.weight.device.type != "cpu" or why_not(linear.weight.dtype) is not None:
        return linear
    return _laid_out(linear)


@functools.cache
def why_not(dtype: torch.dtype) -> str | None:
    """Why oneDNN's own linear layers are not used in `dtype`; None where they are."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return "this torch was built without oneDNN"
    try:
        with torch.inference_mode():
            return _deviation(dtype)
    except (
        AttributeError,
        RuntimeError,
        TypeError,
    ) as error:  # no such operator, another signature, no such dtype
        return str(error).split("\n")[0]


def _deviation(dtype: torch.dtype) -> str | None:
    rows, inputs, outputs = _TRIED
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(n, inputs, generator=generator).to(dtype) for n in (rows, outputs))
    bias, residual = (
        torch.randn(*shape, generator=generator).to(dtype) for shape in ((outputs,), (rows, outputs))
    )
    tried = _laid_out(Linear(weight, bias))
    exact = F.linear(x.float(), weight.float(), bias.float())
    expected = (exact, F.gelu(exact), exact + residual.float())
    for found, true in zip((tried(x), tried.gelu(x), tried.plus(x, residual)), expected, strict=True):
        allowed = _CHECK_STEPS * torch.finfo(dtype).eps * float(true.abs().max())
        deviation = float((found.float() - true).abs().max())
        if not deviation <= allowed:
            return f"its product deviates by {deviation:.2g}; allowed are {allowed:.2g}"
    return None


def _laid_out(linear: Linear) -> OneDnnLinear:
    return OneDnnLinear(torch.ops.mkldnn._reorder_linear_weight(linear.weight, _LIKELY_ROWS), linear.bias)


@functools.cache
def _pointwise(overload: str) -> Callable[..., Tensor]:
    return getattr(torch.ops.mkldnn._linear_pointwise, overload)  # type: ignore[no-any-return]
