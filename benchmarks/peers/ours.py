"""rerank_udf itself. Its CPU backend is chosen by RERANK_UDF_CPU_BACKEND, which the benchmark sets."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from worker import Pairs, Scored, serve

from rerank_udf.packing import WINDOW_PAIRS


class Ours:
    """load_scorer(...).stream(...), as the Spark job calls it."""

    def load(self, settings: dict[str, Any]) -> dict[str, Any]:
        from rerank_udf import load_scorer
        from rerank_udf.models.checkpoint import read_architecture, read_json

        self.architecture = read_architecture(read_json(Path(settings["model"]) / "config.json"), "the model")
        self.scorer = load_scorer(
            settings["model"],
            max_length=settings["max_length"],
            precision=settings["precision"],
            device=settings["device"],
        )
        return self.scorer.describe()

    def score(self, pairs: Pairs, batch_size: int | None) -> Scored:
        """Plans its own batches, so `batch_size` is None. Computed tokens are the pairs' own: there is no padding."""
        windows = list(self.scorer.stream(_windows(pairs)))
        failed = next((window.errors for window in windows if window.errors), None)
        if failed:
            raise RuntimeError(f"a pair failed: {min(failed.items())}")
        tokens = sum(int(window.tokens.sum()) for window in windows)
        return Scored(np.concatenate([window.logits for window in windows]), computed_tokens=tokens)

    def from_ids(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Seconds from token ids to logits: windows are tokenised, cut and planned before the clock starts."""
        import json

        from rerank_udf.texts import text_columns

        pairs = [
            (query, passage) for query, passage in json.loads(Path(settings["pairs"]).read_text("utf-8"))
        ]
        engine = self.scorer._engine
        prepare = engine.preparation()
        prepared = [prepare(*text_columns(*window)) for window in _windows(pairs)]
        start = time.perf_counter()
        before = None
        for window in prepared:
            started = engine.start(window)
            if before is not None:
                engine.finish(before)
            before = started
        engine.finish(before)
        return {"ids_seconds": time.perf_counter() - start}

    def rate(self, settings: dict[str, Any]) -> dict[str, Any]:
        """The machine's matrix-product rate for this model's layers, measured now: FLOP/s.

        At 1,024 rows on a CPU, and on a card at those of a full batch: fewer would not fill it.
        """
        from rerank_udf.engine.rates import matrix_product_rate

        rows = 1024 if settings["device"] == "cpu" else self.scorer.describe()["max_tokens_per_batch"]
        return {
            "rate": matrix_product_rate(settings["precision"], settings["device"], self.architecture, rows)
        }

    def necessary(self, settings: dict[str, Any]) -> dict[str, Any]:
        """FLOPs that pairs of these lengths need."""
        from rerank_udf.engine.rates import necessary_flops

        return {"flops": necessary_flops(self.architecture, settings["lengths"])}


def _windows(pairs: Pairs) -> Iterator[tuple[list[str], list[str]]]:
    for start in range(0, len(pairs), WINDOW_PAIRS):
        queries, passages = zip(*itertools.islice(pairs, start, start + WINDOW_PAIRS), strict=True)
        yield list(queries), list(passages)


if __name__ == "__main__":
    serve(Ours())
