"""Plans for a measured job: the job's own model, or one of no cost at all, each under a MeasuredScorer."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pyspark import cloudpickle

from rerank_udf.engine import ScoredPairs, ScorerPlan
from rerank_udf.texts import text_columns
from sparkbench import accounting

# The workers do not have this folder on their path.
cloudpickle.register_pickle_by_value(sys.modules[__name__])
cloudpickle.register_pickle_by_value(accounting)


@dataclass(frozen=True)
class MeasuredPlan:
    """A resolved plan whose scorer writes its CPU seconds into `folder`; `free`: the model is left out.

    `burn_seconds`: CPU seconds to waste on each window, for tests of the accounting.
    """

    plan: ScorerPlan
    folder: str
    free: bool = False
    burn_seconds: float = 0.0

    def load(self) -> Any:
        scorer = FreeScorer(self.burn_seconds) if self.free else self.plan.load()
        return accounting.MeasuredScorer(scorer, Path(self.folder))

    def __getattr__(self, name: str) -> Any:
        """What the job reads from a plan beside `load`: files, limits, precision, model_key."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.plan, name)


class FreeScorer:
    """Reads the texts as every scorer does, then makes up a logit for each pair out of their numbers."""

    def __init__(self, burn_seconds: float = 0.0) -> None:
        self._burn_seconds = burn_seconds

    def describe(self) -> dict[str, Any]:
        return {"device": "cpu"}

    def stream(self, pairs: Iterable[tuple[Any, Any]]) -> Iterator[ScoredPairs]:
        for queries, passages in pairs:
            q, p = text_columns(queries, passages)
            burn(self._burn_seconds)
            logits = ((q.codes * 7919 + p.codes * 104729) % 65537).astype(np.float32) / 8192.0 - 4.0
            tokens = np.ones(len(logits), np.int32)
            yield ScoredPairs(logits, tokens, np.zeros(len(logits), np.bool_), {})


def burn(seconds: float) -> None:
    """Use CPU, not time."""
    import time

    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass
