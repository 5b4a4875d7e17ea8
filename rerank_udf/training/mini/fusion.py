"""How much of mini and how much of the first stage a min-max mixture wants: chosen on what was held out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from rerank_udf.evaluation import evaluate
from rerank_udf.tables import QUERY_ID
from rerank_udf.training.development import HeldOutList, qrels_of, ranking_of
from rerank_udf.training.tables import Floats

WEIGHTS = tuple(round(weight / 10, 1) for weight in range(11))


def by_weight(
    lists: Sequence[HeldOutList], scores: Sequence[Floats], first: Sequence[Floats], kinds: Sequence[str]
) -> pd.DataFrame:
    """nDCG@10 of each weight of `scores` in a min-max mixture with `first`: index weight, a column a kind."""
    rankings = {
        str(weight): ranking_of(lists, [_mixed(weight, *both) for both in zip(scores, first, strict=True)])
        for weight in WEIGHTS
    }
    last = rankings.pop(str(WEIGHTS[-1]))
    measured = evaluate(
        last,
        qrels_of(lists),
        measures=["nDCG@10"],
        baseline=rankings,
        group_by=pd.DataFrame({QUERY_ID: [one.key for one in lists], "kind": kinds}),
        name=str(WEIGHTS[-1]),
    )
    rows = measured.summary.query("documents == 'all' and group != 'all'")
    table = rows.pivot(index="system", columns="group", values="mean")
    ordered: pd.DataFrame = table.reindex([str(weight) for weight in WEIGHTS])
    return ordered


def _mixed(weight: float, model: Floats, first: Floats) -> Floats:
    return weight * _unit(model) + (1 - weight) * _unit(first)


def _unit(scores: Floats) -> Floats:
    spread = np.ptp(scores) if len(scores) else 0
    return (scores - scores.min()) / spread if spread > 0 else np.zeros_like(scores)
