"""Attention of each sequence to itself, over sequences that lie one after the other: one function in six variants.

Every variant computes softmax(QKᵀ/√dim)·V per sequence and head, without dropout, mask or causality, from the fused
product's own layout, and copies none of it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from rerank_udf.engine import kernels

Attend = Callable[[Tensor, "Sequences"], Tensor]
"""(qkv, sequences) → context. `qkv`: (total, 3, heads, dim), query, key and value of each token, contiguous; the
result: (total, heads · dim), of the same dtype."""

# Rows of at least this share of a span's longest are padded to it: at most a third more, for far fewer launches
SIMILAR_SHARE = 0.75


class NotUsableError(Exception):
    """A kernel cannot be called here; the message says why."""


@dataclass(frozen=True)
class Span:
    """Rows next to each other: `rows` of them from number `row`, whose tokens are [token, token + tokens)."""

    row: int
    rows: int
    token: int
    tokens: int
    longest: int

    @property
    def is_equal(self) -> bool:
        """Whether all rows are as long as the longest, so that a view is a rectangle."""
        return self.tokens == self.rows * self.longest


@dataclass(frozen=True)
class Sequences:
    """Where sequences begin and end, on the device for kernels and on the host for everything that needs numbers.

    `cu_seqlens`: int32 (rows + 1,) on the device; `lengths`: int64 (rows,) on the host. Right for any order of
    lengths; the fewer neighbours differ, the fewer launches.
    """

    cu_seqlens: Tensor
    lengths: npt.NDArray[np.int64]

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return int(self.lengths.max())

    def parts(self, most_rows: int) -> Iterator[tuple[int, int, Sequences]]:
        """The same rows in runs of at most `most_rows`: (first token, tokens, run), each run counted from its own."""
        token = 0
        for row in range(0, len(self.lengths), most_rows):
            lengths = self.lengths[row : row + most_rows]
            tokens = int(lengths.sum())
            yield token, tokens, Sequences(self.cu_seqlens.narrow(0, row, len(lengths) + 1) - token, lengths)
            token += tokens

    @cached_property
    def equal(self) -> tuple[Span, ...]:
        """Spans of rows of one length."""
        return tuple(spans(self.lengths, 1.0))

    @cached_property
    def similar(self) -> tuple[Span, ...]:
        """Spans of rows whose shortest has at least `SIMILAR_SHARE` of the longest's tokens."""
        return tuple(spans(self.lengths, SIMILAR_SHARE))


def spans(lengths: npt.NDArray[np.int64], shortest_share: float) -> Iterator[Span]:
    """Cut rows into spans, greedily from the first: in each, shortest ≥ shortest_share · longest.

    A Python step for each run of equal lengths, none for each row.
    """
    edges = np.flatnonzero(np.diff(lengths)) + 1
    starts = [0, *edges.tolist()]
    stops = [*edges.tolist(), len(lengths)]
    row = token = rows = tokens = shortest = longest = 0
    for start, stop in zip(starts, stops, strict=True):
        length = int(lengths[start])
        low, high = (min(shortest, length), max(longest, length)) if rows else (length, length)
        if rows and low < shortest_share * high:
            yield Span(row, rows, token, tokens, longest)
            row, token, rows, tokens, low, high = start, token + tokens, 0, 0, length, length
        rows, tokens, shortest, longest = rows + stop - start, tokens + (stop - start) * length, low, high
    yield Span(row, rows, token, tokens, longest)


def make_attend(kernel: str) -> Attend:
    """The variant of a name in `kernels.PREFERENCE`. Raises NotUsableError where this torch has no such thing."""
    return _MAKERS[kernel]()


def attend_equal_lengths(qkv: Tensor, sequences: Sequences) -> Tensor:
    """Rows of one length at a time, as views, through torch's public scaled dot product attention."""
    _, _, heads, dim = qkv.shape
    parts = torch.split(qkv, [span.tokens for span in sequences.equal])
    outputs = []
    for part, span in zip(parts, sequences.equal, strict=True):
        rectangles = part.view(span.rows, span.longest, 3, heads, dim).permute(2, 0, 3, 1, 4)
        query, key, value = rectangles.unbind()
        output = F.scaled_dot_product_attention(query, key, value)
        outputs.append(output.transpose(1, 2).reshape(span.tokens, heads * dim))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _from_seven(call: Callable[..., Any]) -> Attend:
    """A function of (q, k, v, cu_q, cu_k, max_q, max_k): the arguments that all versions of all packages share."""

    def attend(qkv: Tensor, sequences: Sequences) -> Tensor:
        query, key, value = qkv.unbind(1)
        cu, longest = sequences.cu_seqlens, sequences.longest
        output = call(query, key, value, cu, cu, longest, longest)
        context: Tensor = output[0] if isinstance(output, (tuple, list)) else output
        return context.reshape(len(qkv), -1)

    return attend


def _packaged(module: str, name: str) -> Callable[[], Attend]:
    def make() -> Attend:
        try:
            return _from_seven(getattr(importlib.import_module(module), name))
        except (
            ImportError,
            AttributeError,
            OSError,
        ) as error:  # OSError: a shared library that does not load
            raise NotUsableError(f"{module}.{name} cannot be imported: {error}") from error

    return make


def _aten_flash() -> Attend:
    operator = _aten("_flash_attention_forward")
    fixed = {"dropout_p": 0.0, "is_causal": False, "return_debug_mask": False}
    names = ("query", "key", "value", "cum_seq_q", "cum_seq_k", "max_q", "max_k")
    call = bind_operator(operator, operator._schema.arguments, names, fixed)
    return _from_seven(call)


def _aten_efficient() -> Attend:
    operator = _aten("_efficient_attention_forward")
    fixed = {"bias": None, "dropout_p": 0.0, "custom_mask_type": 0, "compute_log_sumexp": False}
    names = ("query", "key", "value", "cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k")
    call = bind_operator(operator, operator._schema.arguments, names, fixed)

    def attend(qkv: Tensor, sequences: Sequences) -> Tensor:
        query, key, value = qkv.unsqueeze(0).unbind(2)  # the operator wants a batch dimension, of one
        cu, longest = sequences.cu_seqlens, sequences.longest
        context: Tensor = call(query, key, value, cu, cu, longest, longest)[0]
        return context.reshape(len(qkv), -1)

    return attend


def _aten(name: str) -> Any:
    try:
        return getattr(torch.ops.aten, name).default
    except AttributeError as error:
        raise NotUsableError(f"this torch ({torch.__version__}) has no operator aten::{name}") from error


def bind_operator(
    operator: Callable[..., Any], arguments: Sequence[Any], names: Sequence[str], fixed: dict[str, Any]
) -> Callable[..., Any]:
    """Call a private operator by its schema: torch versions add, reorder and rename its arguments.

    `arguments`: of its `_schema`; `names`: those that the result takes, in the order in which it takes them;
    `fixed`: name → value of those that never change, left out where a version has none of that name. Arguments
    beyond these keep their defaults. Raises NotUsableError for a name in `names` that the schema lacks, and for an
    argument without a default that nobody gives.
    """
    known = {argument.name for argument in arguments}
    lacking = [name for name in names if name not in known]
    if lacking:
        raise NotUsableError(f"the operator has no argument {', '.join(lacking)} in this version of torch")
    asked = [a.name for a in arguments if not a.has_default_value() and a.name not in {*names, *fixed}]
    if asked:
        raise NotUsableError(f"the operator asks for {', '.join(asked)}, which this version of torch added")
    constants = {name: value for name, value in fixed.items() if name in known}

    return lambda *values: operator(**constants, **dict(zip(names, values, strict=True)))


_MAKERS: dict[str, Callable[[], Attend]] = {
    kernels.FLASH_3: _packaged("flash_attn_interface", "flash_attn_varlen_func"),
    kernels.VARLEN: _packaged("torch.nn.attention.varlen", "varlen_attn"),
    kernels.FLASH_2: _packaged("flash_attn", "flash_attn_varlen_func"),
    kernels.ATEN_FLASH: _aten_flash,
    kernels.ATEN_EFFICIENT: _aten_efficient,
    kernels.EQUAL_LENGTHS: lambda: attend_equal_lengths,
}
