"""The held-out lists that `make mini` measures a written model on, read once for all its measurements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from rerank_udf import load_scorer
from rerank_udf.tables import PASSAGE_ID, QUERY_ID, SCORE
from rerank_udf.training.development import HeldOutList, held_out_lists
from rerank_udf.training.mini.tables import IN_ONE_LANGUAGE
from rerank_udf.training.settings import TrainingConfig, TrainingSet
from rerank_udf.training.split import split
from rerank_udf.training.tables import Floats, read_tables

SAME, OTHER = "same language", "other language"
Scores = Sequence[Floats]  # float32, one a passage of each list


@dataclass(frozen=True)
class Judged:
    """What the sets with qrels hold out: lists, first-stage scores, kinds of set, languages of the right passages."""

    lists: list[HeldOutList]
    first: list[Floats]
    kinds: list[str]
    langs: list[str]


def judged_lists(config: TrainingConfig) -> Judged:
    """All that the sets with qrels hold out; their passages have languages."""
    found = Judged([], [], [], [])
    for one in config.sets:
        if not one.qrels:
            continue
        tables = read_tables(one)
        lists = held_out_lists(tables, split(tables, config.seed))
        assert tables.passages.langs is not None
        lang_of = dict(zip(tables.passages.ids, tables.passages.langs.tolist(), strict=True))
        found.lists.extend(lists)
        found.first.extend(first_stage_scores(one, lists))
        found.kinds.extend(SAME if one.name in IN_ONE_LANGUAGE else OTHER for _ in lists)
        found.langs.extend(lang_of[each.relevant_ids[0]] for each in lists)
    return found


def first_stage_scores(settings: TrainingSet, lists: Sequence[HeldOutList]) -> list[Floats]:
    """BM25's scores within a language, e5's cosines across: float32, one a passage of each list."""
    rows = pd.read_parquet(str(settings.input.candidates.path), columns=[QUERY_ID, PASSAGE_ID, SCORE])
    wanted = {one.key.split(" ", 1)[1] for one in lists}
    scores = rows[rows[QUERY_ID].isin(wanted)].set_index([QUERY_ID, PASSAGE_ID])[SCORE]
    return [
        scores.loc[[(one.key.split(" ", 1)[1], passage) for passage in one.passage_ids]].to_numpy(np.float32)
        for one in lists
    ]


def scored(model: Path, lists: Sequence[HeldOutList]) -> list[Floats]:
    """The logits of the model in this folder: float32, one a passage of each list."""
    texts = [one.texts for one in lists]
    scorer = load_scorer(str(model))
    queries = [one.query for one in texts for _ in one.passages]
    logits = scorer.logits(queries, [passage for one in texts for passage in one.passages])
    return np.split(logits, np.cumsum([len(one.passages) for one in texts])[:-1])
