"""Lists of texts to padded batches of token ids: the ids that scoring would give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rerank_udf.models.checkpoint import TOKENIZER_FILE
from rerank_udf.packing import plan_batches
from rerank_udf.tokens import pair_template, read_tokenizer
from rerank_udf.training.lists import TrainingList
from rerank_udf.training.tables import Ints

_CHARACTERS_PER_TOKEN = 12  # more than that, and a text is cut before it is tokenised
_TOKENS_LOOKED_AT = 4  # times max_length, of a passage whose best part is wanted


@dataclass(frozen=True)
class PairIds:
    """The ids of one pair; `passage_at`: where its passage begins."""

    ids: list[int]
    passage_at: int


@dataclass(frozen=True)
class PairBatch:
    """Pairs padded to the longest: int64 (n, longest) ids, mask and types; `rows`: their numbers in the step."""

    input_ids: Tensor
    attention_mask: Tensor
    token_type_ids: Tensor | None
    rows: Ints


class ListEncoder:
    """Token ids of pairs as the engine makes them, "only_second".

    With `best_part`, a passage that is too long is not cut on the right: the part is taken that holds most of the
    question's own tokens, of right and wrong passages alike.
    """

    def __init__(self, folder: Path, pad_token_id: int, best_part: bool) -> None:
        self._tokenizer = read_tokenizer(folder / TOKENIZER_FILE)
        self._template = pair_template(self._tokenizer)
        self._pad = pad_token_id
        self._best_part = best_part

    def pairs(self, one: TrainingList) -> list[PairIds]:
        """The ids of each of the list's pairs."""
        wide = _TOKENS_LOOKED_AT if self._best_part else 1
        most = wide * one.max_length * _CHARACTERS_PER_TOKEN
        texts = [one.query[:most], *(text[:most] for text in one.passages)]
        query, *passages = (
            found.ids for found in self._tokenizer.encode_batch(texts, add_special_tokens=False)
        )
        query = query[: one.max_length * 3 // 4]
        room = one.max_length - self._template.special_tokens - len(query)
        before, between, after = (list(part.ids) for part in self._template.parts)
        beginning = [*before, *query, *between]
        parts = [self._part(query, ids[: wide * one.max_length], room) for ids in passages]
        return [PairIds([*beginning, *part, *after], len(beginning)) for part in parts]

    def _part(self, query: Sequence[int], passage: list[int], room: int) -> list[int]:
        if len(passage) <= room or not self._best_part:
            return passage[:room]
        shared = np.concatenate([[0], np.cumsum(np.isin(passage, query))])
        start = int(np.argmax(shared[room:] - shared[:-room]))
        return passage[start : start + room]

    def batches(self, pairs: Sequence[PairIds], max_tokens: int) -> list[PairBatch]:
        """All pairs, those of like length together, each batch within `max_tokens` padded ones."""
        plan = plan_batches([len(one.ids) for one in pairs], max_tokens, "padded")
        return [self._padded([pairs[row] for row in rows.tolist()], rows) for rows in plan]

    def _padded(self, pairs: Sequence[PairIds], rows: Ints) -> PairBatch:
        tensors = [torch.tensor(one.ids) for one in pairs]
        tokens = torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=self._pad)
        places = torch.arange(tokens.shape[1])[None, :]
        mask = (places < torch.tensor([len(one.ids) for one in pairs])[:, None]).long()
        if not self._template.uses_types:
            return PairBatch(tokens, mask, None, rows)
        passages = (places >= torch.tensor([one.passage_at for one in pairs])[:, None]) & mask.bool()
        types = torch.where(passages, self._template.passage_type, self._template.query_type)
        return PairBatch(tokens, mask, types * mask, rows)
