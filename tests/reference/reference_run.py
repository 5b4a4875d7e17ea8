"""Run the reference implementations and catch what reaches their models: reference_run.py JOB.json OUT_DIR

Runs in the environment that `make reference` builds, and nowhere else. The ids are those of the tensor that the
reference hands to the model, less its padding, so its own tokenisation path is what is recorded.

JOB.json: {"model": folder, "runs": {name: {"pairs": [[query, passage], ...],
           "reference": "FlagReranker" | "CrossEncoder", "max_length": int, "query_max_length": int | null,
           "batch_size": int}}}
OUT_DIR/<name>.npz: token_ids int32 (total,), offsets int64 (n+1,), logits float32 (n,)
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
from FlagEmbedding import FlagReranker
from sentence_transformers import CrossEncoder

Pair = tuple[str, str]


@dataclass(frozen=True)
class Reply:
    """What the reference did with one pair."""

    token_ids: list[int]
    type_ids: list[int] | None
    logit: float


class Reference:
    """One model folder under both references; each keeps its own copy of the model, in float32 on the CPU."""

    def __init__(self, folder: Path) -> None:
        logging.disable(logging.WARNING)  # remarks on tokenizer classes and on sequence lengths
        torch.set_num_threads(1)  # steady beside other work; the goldens' models are tiny
        self.folder = folder
        self.flag = FlagReranker(str(folder), use_fp16=False, devices="cpu")
        self.flag.model.float()
        self.flag.compute_score([("", "")])  # sets eval mode and finds the device
        self._crosses: dict[int, CrossEncoder] = {}

    def cross_encoder(self, max_length: int) -> CrossEncoder:
        """sentence-transformers' reranker; its length limit is fixed when it is made."""
        if max_length not in self._crosses:
            cross = CrossEncoder(str(self.folder), max_length=max_length, device="cpu")
            cross.model.float()
            self._crosses[max_length] = cross
        return self._crosses[max_length]

    def run(
        self,
        pairs: Sequence[Pair],
        *,
        reference: str,
        max_length: int,
        query_max_length: int | None = None,
        batch_size: int = 1,
    ) -> list[Reply]:
        """Score `pairs` and say which ids were scored. A batch of more than one pair is padded by the reference."""
        if reference == "FlagReranker":
            limits = {"max_length": max_length, "query_max_length": query_max_length}

            def score(batch: list[Pair]) -> list[float]:
                # A full batch draws progress bars, so a lone pair is given room for two.
                return list(self.flag.compute_score(batch, batch_size=max(2, batch_size), **limits))

            return _scored(self.flag.model, score, pairs, batch_size)
        cross = self.cross_encoder(max_length)

        def predict(batch: list[Pair]) -> list[float]:
            logits = cross.predict(
                batch, batch_size=batch_size, activation_fn=torch.nn.Identity(), show_progress_bar=False
            )
            return [float(logit) for logit in logits]

        return _scored(cross.model, predict, pairs, batch_size)


def _scored(
    model: torch.nn.Module, score: Callable[[list[Pair]], list[float]], pairs: Sequence[Pair], batch_size: int
) -> list[Reply]:
    """Score in one call, or pair by pair where batch_size is 1, and read ids and logits off the forwards.

    FlagReranker tries its first batch twice, so only the last forwards of a call count; both references sort by
    length, so rows are matched to pairs through their logits.
    """
    seen: list[dict[str, Any]] = []
    handle = model.register_forward_hook(
        lambda _module, _arguments, keywords, output: seen.append({**keywords, "logits": output.logits}),
        with_kwargs=True,
    )
    replies: list[Reply] = []
    call_size = 1 if batch_size == 1 else len(pairs)
    try:
        for start in range(0, len(pairs), call_size):
            call = list(pairs[start : start + call_size])
            seen.clear()
            logits = score(call)
            forwards = seen[-math.ceil(len(call) / batch_size) :]
            rows = [reply for forward in forwards for reply in _rows(forward)]
            replies += _in_order_of(np.array(logits, np.float32), rows)
    finally:
        handle.remove()
    return replies


def _in_order_of(logits: np.ndarray, rows: list[Reply]) -> list[Reply]:
    """Sort the rows of the forwards into pair order, by their logits. Raises RuntimeError where that is ambiguous."""
    found = sorted(rows, key=lambda row: row.logit)
    if [row.logit for row in found] != np.sort(logits).tolist():
        raise RuntimeError("the reference's logits are not those of its last forwards")
    for one, other in itertools.pairwise(found):
        if one.logit == other.logit and one.token_ids != other.token_ids:
            raise RuntimeError(f"two pairs share the logit {one.logit}: which ids are whose cannot be told")
    replies: list[Reply] = [found[0]] * len(rows)
    for pair, row in zip(np.argsort(logits, kind="stable").tolist(), found, strict=True):
        replies[pair] = row
    return replies


def _rows(forward: dict[str, Any]) -> list[Reply]:
    """Each row of one forward, without its padding."""
    types = forward.get("token_type_ids")
    replies = []
    for row, logit in enumerate(forward["logits"].view(-1).tolist()):
        kept = forward["attention_mask"][row].bool()
        token_ids = forward["input_ids"][row][kept].tolist()
        replies.append(Reply(token_ids, None if types is None else types[row][kept].tolist(), logit))
    return replies


def versions() -> dict[str, str]:
    """The releases that decide what the reference does."""
    from importlib.metadata import version

    names = (
        "FlagEmbedding",
        "transformers",
        "sentence-transformers",
        "tokenizers",
        "torch",
        "numpy",
        "safetensors",
    )
    return {"python": sys.version.split()[0], **{name: version(name) for name in names}}


def main(job_path: str, out_folder: str) -> None:
    job = json.loads(Path(job_path).read_text(encoding="utf-8"))
    reference = Reference(Path(job["model"]))
    for name, settings in job["runs"].items():
        pairs = [(query, passage) for query, passage in settings.pop("pairs")]
        replies = reference.run(pairs, **settings)
        np.savez(
            Path(out_folder) / f"{name}.npz",
            token_ids=np.array([token for reply in replies for token in reply.token_ids], np.int32),
            offsets=np.cumsum([0, *(len(reply.token_ids) for reply in replies)], dtype=np.int64),
            logits=np.array([reply.logit for reply in replies], np.float32),
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
