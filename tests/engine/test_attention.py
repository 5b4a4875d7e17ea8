"""Attention over packed sequences against a sequence at a time in numpy, and calls against operators' schemas."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rerank_udf.engine import kernels
from rerank_udf.engine.attention import (
    NotUsableError,
    Sequences,
    attend_equal_lengths,
    bind_operator,
    make_attend,
    spans,
)

HEADS, DIM = 3, 8
Floats = npt.NDArray[np.float64]


def sequences(lengths: list[int]) -> Sequences:
    cu_seqlens = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
    return Sequences(cu_seqlens, np.array(lengths, dtype=np.int64))


def random_qkv(lengths: list[int], seed: int = 0) -> torch.Tensor:
    shape = (sum(lengths), 3, HEADS, DIM)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def one_at_a_time(qkv: Floats, lengths: list[int]) -> Floats:
    """softmax(QKᵀ/√dim)·V of each sequence and head, in float64: (total, heads · dim)."""
    outputs, start = [], 0
    for length in lengths:
        query, key, value = qkv[start : start + length].transpose(1, 2, 0, 3)
        scores = np.exp(query @ key.transpose(0, 2, 1) / np.sqrt(DIM))
        weights = scores / scores.sum(axis=-1, keepdims=True)
        outputs.append((weights @ value).transpose(1, 0, 2).reshape(length, -1))
        start += length
    return np.concatenate(outputs)


ORDERS = [[1], [7], [5, 5, 5], [9, 4, 4, 2, 1, 1], [3, 9, 3, 9, 1, 3], [1, 1, 64]]


@pytest.mark.parametrize("lengths", ORDERS)
def test_equal_lengths_are_attended_one_sequence_at_a_time(lengths: list[int]) -> None:
    qkv = random_qkv(lengths)
    found = attend_equal_lengths(qkv, sequences(lengths))
    np.testing.assert_allclose(found, one_at_a_time(qkv.double().numpy(), lengths), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits_stay_16_bits(dtype: torch.dtype) -> None:
    lengths = [9, 4, 4, 2]
    qkv = random_qkv(lengths).to(dtype)
    found = attend_equal_lengths(qkv, sequences(lengths))
    assert found.dtype == dtype
    expected = one_at_a_time(qkv.double().numpy(), lengths)
    np.testing.assert_allclose(found.double(), expected, rtol=0, atol=4 * torch.finfo(dtype).eps)


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 200), min_size=1, max_size=40),
    st.sampled_from([0.5, 0.75, 1.0]),
    st.booleans(),
)
def test_spans_cover_every_row_once_and_pad_no_more_than_they_may(
    lengths: list[int], share: float, ordered: bool
) -> None:
    if ordered:
        lengths = sorted(lengths, reverse=True)
    found = list(spans(np.array(lengths), share))
    row = token = 0
    for span in found:
        inside = lengths[span.row : span.row + span.rows]
        assert (span.row, span.token, span.tokens, span.longest) == (row, token, sum(inside), max(inside))
        assert min(inside) >= share * max(inside)
        assert span.is_equal == (len(set(inside)) == 1)
        row, token = row + span.rows, token + span.tokens
    assert (row, token) == (len(lengths), sum(lengths))


def test_ordered_lengths_make_few_spans() -> None:
    lengths = np.arange(8192, 1, -1)
    assert len(list(spans(lengths, 0.75))) < 32
    assert len(list(spans(lengths, 1.0))) == len(lengths)


# Schemas of torch 2.2, 2.4 and 2.13, and what a later one might do to them
FLASH = (
    "aten::_flash_attention_forward(Tensor query, Tensor key, Tensor value, Tensor? cum_seq_q, Tensor? cum_seq_k, "
    "{max} max_q, {max} max_k, float dropout_p, bool is_causal, bool return_debug_mask, *, float? scale=None{more}) "
    "-> (Tensor output, Tensor softmax_logsumexp, Tensor a, Tensor b, Tensor debug_attn_mask)"
)
FLASH_NAMES = ("query", "key", "value", "cum_seq_q", "cum_seq_k", "max_q", "max_k")
FLASH_FIXED: dict[str, Any] = {"dropout_p": 0.0, "is_causal": False, "return_debug_mask": False}


def bound(schema: str, calls: list[dict[str, Any]]) -> Any:
    arguments = torch._C.parse_schema(schema).arguments
    return bind_operator(lambda **given: calls.append(given), arguments, FLASH_NAMES, FLASH_FIXED)


@pytest.mark.parametrize(
    "schema",
    [
        FLASH.format(max="int", more=""),
        FLASH.format(max="SymInt", more=", SymInt? window_size_left=None, Tensor? seqused_k=None"),
        FLASH.format(max="SymInt", more=", Tensor? block_table=None, int? num_splits=None"),
        FLASH.format(max="SymInt", more="").replace("bool return_debug_mask, *", "*"),
        FLASH.format(max="SymInt", more="").replace(
            "return_debug_mask,", "return_debug_mask, bool new=False,"
        ),
    ],
)
def test_what_versions_add_or_drop_changes_no_value(schema: str) -> None:
    calls: list[dict[str, Any]] = []
    bound(schema, calls)(1, 2, 3, 4, 5, 6, 7)
    (given,) = calls
    assert [given[name] for name in FLASH_NAMES] == [1, 2, 3, 4, 5, 6, 7]
    rest = {name: value for name, value in given.items() if name not in FLASH_NAMES}
    assert rest == {name: value for name, value in FLASH_FIXED.items() if name in schema}


def test_an_argument_that_was_renamed_is_told() -> None:
    schema = FLASH.format(max="int", more="").replace("cum_seq_k", "cu_seqlens_k")
    with pytest.raises(
        NotUsableError, match="the operator has no argument cum_seq_k in this version of torch"
    ):
        bound(schema, [])


def test_an_argument_that_nobody_gives_is_told() -> None:
    schema = FLASH.format(max="int", more="").replace("bool is_causal", "bool is_causal, Tensor descale")
    with pytest.raises(NotUsableError, match="asks for descale, which this version of torch added"):
        bound(schema, [])


def test_an_operator_that_is_gone_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops, "aten", types.SimpleNamespace())
    with pytest.raises(NotUsableError, match="has no operator aten::_flash_attention_forward"):
        make_attend(kernels.ATEN_FLASH)


@pytest.mark.parametrize("kernel", [kernels.ATEN_FLASH, kernels.ATEN_EFFICIENT])
def test_this_torch_has_the_private_operators(kernel: str) -> None:
    make_attend(kernel)


@pytest.fixture
def packages() -> Iterator[dict[str, list[Any]]]:
    """Stand-ins for flash-attn 2 and 3, which compute right; 3 also returns the logsumexp, as some versions do."""
    seen: dict[str, list[Any]] = {}

    def stand_in(module: str, with_more: bool) -> types.ModuleType:
        def flash_attn_varlen_func(
            q: Any, k: Any, v: Any, cu_q: Any, cu_k: Any, max_q: int, max_k: int
        ) -> Any:
            seen[module] = [tuple(cu_q.tolist()), tuple(cu_k.tolist()), max_q, max_k]
            lengths = np.diff(cu_q.numpy()).tolist()
            output = one_at_a_time(torch.stack([q, k, v], 1).double().numpy(), lengths)
            out = torch.tensor(output, dtype=q.dtype).view(q.shape)
            return (out, torch.empty(0)) if with_more else out

        found = types.ModuleType(module)
        found.flash_attn_varlen_func = flash_attn_varlen_func  # type: ignore[attr-defined]
        return found

    names = {"flash_attn": False, "flash_attn_interface": True}
    sys.modules |= {name: stand_in(name, more) for name, more in names.items()}
    yield seen
    for name in names:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("kernel", "module"), [(kernels.FLASH_2, "flash_attn"), (kernels.FLASH_3, "flash_attn_interface")]
)
def test_packages_are_called_with_the_seven_arguments_that_all_versions_share(
    packages: dict[str, list[Any]], kernel: str, module: str
) -> None:
    lengths = [9, 4, 4, 2]
    qkv = random_qkv(lengths)
    found = make_attend(kernel)(qkv, sequences(lengths))
    np.testing.assert_allclose(found, attend_equal_lengths(qkv, sequences(lengths)), rtol=0, atol=1e-5)
    assert packages[module] == [(0, 9, 13, 17, 19), (0, 9, 13, 17, 19), 9, 9]


def test_a_package_that_is_absent_or_has_no_such_function_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    with pytest.raises(NotUsableError, match=r"flash_attn\.flash_attn_varlen_func cannot be imported"):
        make_attend(kernels.FLASH_2)
    monkeypatch.setitem(sys.modules, "flash_attn", types.ModuleType("flash_attn"))
    with pytest.raises(NotUsableError, match="has no attribute 'flash_attn_varlen_func'"):
        make_attend(kernels.FLASH_2)
