"""How much of mini and how much of the first stage a min-max mixture wants: chosen on what was held out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from rerank_udf import load_scorer
from rerank_udf.evaluation import evaluate
from rerank_udf.tables import PASSAGE_ID, QUERY_ID, SCORE
from rerank_udf.training.development import HeldOutList, held_out_lists, qrels_of, ranking_of
from rerank_udf.training.lists import TrainingList
from rerank_udf.training.mini.tables import IN_ONE_LANGUAGE
from rerank_udf.training.settings import TrainingConfig, TrainingSet
from rerank_udf.training.split import split
from rerank_udf.training.tables import Floats, read_tables

WEIGHTS = tuple(round(weight / 10, 1) for weight in range(11))
SAME, OTHER = "same language", "other language"


def weights_on_held_out(config: TrainingConfig, model: Path) -> pd.DataFrame:
    """nDCG@10 of each weight of the model: index weight, a column for each kind of set."""
    lists: list[HeldOutList] = []
    first: list[Floats] = []
    for one in config.sets:
        tables = read_tables(one)
        found = held_out_lists(tables, split(tables, config.seed)) if one.qrels else []
        lists += found
        first += first_stage_scores(one, found)
    kinds = [SAME if one.texts.set_name in IN_ONE_LANGUAGE else OTHER for one in lists]
    return by_weight(lists, scored(model, [one.texts for one in lists]), first, kinds)


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


def first_stage_scores(settings: TrainingSet, lists: Sequence[HeldOutList]) -> list[Floats]:
    """BM25's scores within a language, e5's cosines across: float32, one a passage of each list."""
    rows = pd.read_parquet(str(settings.input.candidates.path), columns=[QUERY_ID, PASSAGE_ID, SCORE])
    wanted = {one.key.split(" ", 1)[1] for one in lists}
    scores = rows[rows[QUERY_ID].isin(wanted)].set_index([QUERY_ID, PASSAGE_ID])[SCORE]
    return [
        scores.loc[[(one.key.split(" ", 1)[1], passage) for passage in one.passage_ids]].to_numpy(np.float32)
        for one in lists
    ]


def scored(model: Path, lists: Sequence[TrainingList]) -> list[Floats]:
    """The logits of the model in this folder: float32, one a passage of each list."""
    scorer = load_scorer(str(model))
    queries = [one.query for one in lists for _ in one.passages]
    logits = scorer.logits(queries, [passage for one in lists for passage in one.passages])
    return np.split(logits, np.cumsum([len(one.passages) for one in lists])[:-1])


def _mixed(weight: float, model: Floats, first: Floats) -> Floats:
    return weight * _unit(model) + (1 - weight) * _unit(first)


def _unit(scores: Floats) -> Floats:
    spread = np.ptp(scores) if len(scores) else 0
    return (scores - scores.min()) / spread if spread > 0 else np.zeros_like(scores)
