"""The packed forward on cuda:0 without a card: shapes, dtypes, no wait for the device, and its memory.

It shows that each kernel's call fits its operator's own shape function; a stand-in for flash-attn 2 and 3, which are
not installed, shows only that the forward around it fits their signature. That a kernel computes the right thing is
checked on the card, by each process, before its first batch.
"""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from fake_cuda import CUDA, LENGTHS, trace
from model_folders import bert_config, write_model, xlmr_config

from rerank_udf.engine import kernels
from rerank_udf.engine.attention import make_attend
from rerank_udf.engine.torch_runtime import bytes_per_token
from rerank_udf.models.checkpoint import read_architecture, read_json

# What makes the host wait for the device, or a shape depend on values
WAITING = {
    "aten._local_scalar_dense",
    "aten.item",
    "aten.is_nonzero",
    "aten.nonzero",
    "aten.masked_select",
    "aten.index",
    "aten.unique",
    "aten._unique2",
    "aten.repeat_interleave",
    "aten.equal",
}
OPERATORS = {
    kernels.FLASH_3: "stand_in",
    kernels.VARLEN: "torch_attn._varlen_attn",
    kernels.FLASH_2: "stand_in",
    kernels.ATEN_FLASH: "aten._flash_attention_forward",
    kernels.ATEN_EFFICIENT: "aten._efficient_attention_forward",
    kernels.EQUAL_LENGTHS: "aten._softmax",
}
CASES = [
    (kernel, precision)
    for kernel in kernels.PREFERENCE
    for precision in ("float16", "bfloat16", "float32")
    if precision != "float32" or kernel in (kernels.ATEN_EFFICIENT, kernels.EQUAL_LENGTHS)
]


@pytest.fixture(scope="module", params=[xlmr_config, bert_config], ids=["xlmr", "bert"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), request.param(num_hidden_layers=3))


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """flash-attn 2 and 3 by name only: they take the arguments that all versions share, and give a shape."""
    calls: list[tuple[Any, ...]] = []

    def flash_attn_varlen_func(
        q: Any, k: Any, v: Any, cu_seqlens_q: Any, cu_seqlens_k: Any, max_seqlen_q: int, max_seqlen_k: int
    ) -> Any:
        calls.append((q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k))
        return torch.empty_like(q)

    for name in kernels.PACKAGES.values():
        module = types.ModuleType(name)
        module.flash_attn_varlen_func = flash_attn_varlen_func  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, name, module)
    return calls


@pytest.mark.parametrize(("kernel", "precision"), CASES)
def test_the_forward_fits_every_kernel_and_waits_for_nothing(
    folder: Path, stand_ins: list[tuple[Any, ...]], kernel: str, precision: str
) -> None:
    dtype = getattr(torch, precision)
    logits, ran = trace(folder, make_attend(kernel), dtype)
    assert (logits.shape, logits.dtype, logits.device) == ((len(LENGTHS),), torch.float32, CUDA)
    assert not ran.operators & WAITING
    assert {device for _, devices in ran.calls for device in devices} == {"cuda:0"}
    if OPERATORS[kernel] == "stand_in":
        assert len(stand_ins) == 2, "all layers but the last attend"
        for query, key, value, cu_q, cu_k, max_q, max_k in stand_ins:
            for tensor in (query, key, value):
                assert (tensor.shape, tensor.dtype, tensor.stride(-1)) == ((150, 4, 8), dtype, 1)
            assert cu_q is cu_k
            assert (cu_q.dtype, cu_q.shape, cu_q.is_contiguous()) == (torch.int32, (8,), True)
            assert max_q == max_k == 40
    else:
        assert OPERATORS[kernel] in ran.operators


def test_no_kernel_copies_the_fused_product(folder: Path, stand_ins: list[tuple[Any, ...]]) -> None:
    trace(folder, make_attend(kernels.FLASH_2), torch.float16)
    for query, key, value, *_ in stand_ins:
        assert (
            query.untyped_storage()._cdata == key.untyped_storage()._cdata == value.untyped_storage()._cdata
        )


def test_launches_do_not_grow_with_the_rows_of_a_span(folder: Path) -> None:
    """A batch of a length-sorted window has lengths near one another: its last layer is a few launches."""
    attend = make_attend(kernels.ATEN_FLASH)
    few = trace(folder, attend, torch.float16, np.array([40, 39, 38]))[1]
    many = trace(folder, attend, torch.float16, np.repeat(np.arange(40, 30, -1), 10))[1]
    assert len(many.calls) == len(few.calls)


# hidden, intermediate, heads; layers add nothing to a batch's memory, so there are two
SHAPES = {"mini": (384, 1536, 12), "large": (1024, 4096, 16)}
WINDOWS: dict[str, npt.NDArray[np.int64]] = {
    "long": np.array([8192, 8192]),
    "mixed": np.array([8192, 4000, 2000, 1000, *[500] * 2, *[40] * 10]),
    "paragraphs": np.arange(330, 270, -1),
    "short": np.repeat(np.arange(50, 30, -1), 20),
    "shortest": np.repeat(5, 3000),
}


@pytest.fixture(scope="module", params=SHAPES)
def wide_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    hidden, intermediate, heads = SHAPES[request.param]
    sizes = {"hidden_size": hidden, "intermediate_size": intermediate, "num_attention_heads": heads}
    return write_model(tmp_path_factory.mktemp("wide"), xlmr_config(**sizes, max_position_embeddings=8194))


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize(
    ("kernel", "precision"), [(kernels.ATEN_FLASH, "float16"), (kernels.ATEN_EFFICIENT, "float32")]
)
def test_a_batch_takes_no_more_memory_than_is_predicted(
    wide_folder: Path, kernel: str, precision: str, window: str
) -> None:
    lengths = WINDOWS[window]
    _, ran = trace(wide_folder, make_attend(kernel), getattr(torch, precision), lengths)
    architecture = read_architecture(read_json(wide_folder / "config.json"), "a test")
    predicted = bytes_per_token(architecture, precision) * int(lengths.sum())
    assert 0.5 * predicted < ran.peak_bytes <= predicted
