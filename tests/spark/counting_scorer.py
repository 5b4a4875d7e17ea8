"""A plan whose scorer writes down, in files, how often it was loaded and each pair that it scored."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyspark import cloudpickle

from rerank_udf import load_scorer

# The workers do not have this folder on their path.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


@dataclass(frozen=True)
class CountingPlan:
    """Scores with `model`; writes into `folder`."""

    model: str
    folder: str

    def load(self) -> CountingScorer:
        (Path(self.folder) / f"load-{os.getpid()}-{uuid.uuid4().hex}").touch()
        return CountingScorer(load_scorer(self.model), self.folder)

    def loads(self) -> list[str]:
        """The process of each load."""
        return [path.name.split("-")[1] for path in Path(self.folder).glob("load-*")]

    def scored(self) -> int:
        """How many pairs were scored, each as often as it was."""
        return sum(int(path.read_text()) for path in Path(self.folder).glob("pairs-*"))


class CountingScorer:
    def __init__(self, scorer: Any, folder: str) -> None:
        self.scorer, self.folder = scorer, folder

    def describe(self) -> dict[str, Any]:
        return dict(self.scorer.describe())

    def stream(self, pairs: Iterable[tuple[Any, Any]]) -> Iterator[Any]:
        for scored in self.scorer.stream(pairs):
            (Path(self.folder) / f"pairs-{uuid.uuid4().hex}").write_text(str(len(scored.logits)))
            yield scored
