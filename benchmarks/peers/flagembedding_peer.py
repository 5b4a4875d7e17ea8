"""FlagEmbedding's FlagReranker."""

from __future__ import annotations

from typing import Any

import numpy as np
from worker import Pairs, Scored, serve, threads, versions


class FlagEmbedding:
    """FlagReranker.compute_score with raw logits."""

    def load(self, settings: dict[str, Any]) -> dict[str, Any]:
        import torch
        from FlagEmbedding import FlagReranker

        torch.set_num_threads(threads())
        device, precision = settings["device"], settings["precision"]
        self.max_length = settings["max_length"]
        self.flag = FlagReranker(settings["model"], use_fp16=precision == "float16", devices=device)
        # a CPU takes use_fp16 as no, and a checkpoint stored in float16 may load as that
        self.flag.model.to(getattr(torch, precision))
        self.computed = 0
        self.flag.model.register_forward_pre_hook(self._count, with_kwargs=True)
        names = ("FlagEmbedding", "transformers", "tokenizers", "torch", "sentence-transformers")
        return {"versions": versions(*names), "precision": precision}

    def _count(self, _module: Any, _arguments: Any, named: dict[str, Any]) -> None:
        self.computed += int(np.prod(named["input_ids"].shape))

    def score(self, pairs: Pairs, batch_size: int | None) -> Scored:
        self.computed = 0
        logits = self.flag.compute_score(
            pairs, batch_size=batch_size or 128, max_length=self.max_length, normalize=False
        )
        return Scored(np.asarray(logits, np.float32).reshape(-1), computed_tokens=self.computed)


if __name__ == "__main__":
    serve(FlagEmbedding())
