from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_folders import bert_config, xlmr_config

from rerank_udf.engine.backend import PackedBatch, position_ids
from rerank_udf.models.checkpoint import read_architecture

PAD = 1
ROWS = st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=12), min_size=1, max_size=6)


def packed(rows: list[list[int]]) -> PackedBatch:
    offsets = np.cumsum([0, *map(len, rows)])
    return PackedBatch(np.array([token for row in rows for token in row], np.int32), offsets, None)


def positions(rows: list[list[int]], config: dict[str, Any]) -> list[list[int]]:
    batch = packed(rows)
    found = position_ids(batch, read_architecture(config, "a test"))
    assert found.dtype == np.int32
    return [found[a:b].tolist() for a, b in zip(batch.offsets[:-1], batch.offsets[1:], strict=True)]


@settings(deadline=None)
@given(ROWS)
def test_the_roberta_family_counts_as_transformers_does(rows: list[list[int]]) -> None:
    torch = pytest.importorskip("torch")
    from transformers.models.xlm_roberta.modeling_xlm_roberta import XLMRobertaEmbeddings

    alone = [
        XLMRobertaEmbeddings.create_position_ids_from_input_ids(torch.tensor([row]), PAD)[0] for row in rows
    ]
    assert positions(rows, xlmr_config()) == [row.tolist() for row in alone]


def test_a_literal_pad_does_not_advance_the_positions() -> None:
    assert positions([[0, 7, 1, 7, 2], [0, 2]], xlmr_config()) == [[2, 3, 1, 4, 5], [2, 3]]


def test_bert_counts_every_token() -> None:
    assert positions([[5, 0, 6], [5], [5, 6]], bert_config()) == [[0, 1, 2], [0], [0, 1]]


def test_lengths_are_between_the_offsets() -> None:
    assert packed([[1, 2], [3], [4, 5, 6]]).lengths.tolist() == [2, 1, 3]
