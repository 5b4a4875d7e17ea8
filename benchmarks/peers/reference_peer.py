"""The float32 logits that every engine's are compared with: transformers' own modules, one pair at a time, no padding.

It gets token ids, not texts: how the peers tokenise is their own affair.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from worker import Pairs, Scored, serve, threads, versions


class Reference:
    """AutoModelForSequenceClassification in float32."""

    def load(self, settings: dict[str, Any]) -> dict[str, Any]:
        import torch
        from transformers import AutoModelForSequenceClassification

        torch.set_num_threads(threads())
        self.device = settings["device"]
        model = AutoModelForSequenceClassification.from_pretrained(settings["model"], dtype=torch.float32)
        self.model = model.eval().to(self.device)
        return {"versions": versions("transformers", "torch"), "precision": "float32"}

    def score(self, pairs: Pairs, batch_size: int | None) -> Scored:
        raise NotImplementedError("the reference is given ids")

    def reference(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Logits of the rows of an .npz with token_ids (total,) and offsets (n + 1,), saved as float32 (n,)."""
        import torch

        logits = []
        with np.load(Path(settings["ids"])) as arrays, torch.inference_mode():
            rows = np.split(arrays["token_ids"].astype(np.int64), arrays["offsets"][1:-1])
            for row in rows:
                ids = torch.from_numpy(row)[None].to(self.device)
                logits.append(float(self.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits))
        np.save(settings["logits"], np.array(logits, np.float32))
        return {}


if __name__ == "__main__":
    serve(Reference())
