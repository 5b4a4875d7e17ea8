"""How well a model orders what was held out: the same lists by the first stage and by the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from rerank_udf.evaluation import Evaluation, evaluate
from rerank_udf.tables import PASSAGE_ID, QUERY_ID, RANK, RELEVANCE
from rerank_udf.training.lists import TrainingList, of_language
from rerank_udf.training.settings import CANDIDATES
from rerank_udf.training.split import Split, groups_of
from rerank_udf.training.tables import Floats, Ints, TrainingTables, in_languages, judged

FIRST, MODEL, TEACHER, SET = "first", "model", "teacher", "set"
_NO_SCORES = np.empty(0, np.float32)
Score = Callable[[Sequence[TrainingList]], list[Floats]]


@dataclass(frozen=True)
class HeldOutList:
    """One query's first candidates, in first-stage order, with what is right about them.

    `group`: what it was held out with; questions about one passage are not independent of each other.
    """

    key: str
    group: str
    texts: TrainingList
    passage_ids: list[str]
    relevant_ids: list[str]
    teacher: Floats


def held_out_lists(tables: TrainingTables, divided: Split, most: int | None = None) -> list[HeldOutList]:
    """The lists of (the first `most`) held-out queries; those in another language have passages of one language."""
    right, queries = judged(tables), divided.held_out[:most]
    found = [
        _held_out(tables, right[query], query, group)
        for query, group in zip(queries.tolist(), groups_of(tables, queries), strict=True)
    ]
    return [one for one in found if one is not None]


def _held_out(tables: TrainingTables, relevant: Ints, query: int, group: str) -> HeldOutList | None:
    relevant = relevant[in_languages(tables, query, relevant)]
    if not len(relevant):
        return None
    target = int(relevant[query % len(relevant)])
    depth = tables.settings.held_out.depth
    passages = of_language(tables, tables.rankings[CANDIDATES][query], target)[:depth]
    relevant = of_language(tables, relevant, target)
    name, numbers = tables.settings.name, passages.tolist()
    texts = [tables.passages.texts[one] for one in numbers]
    longest = max(tables.settings.max_lengths)
    return HeldOutList(
        f"{name} {tables.queries.ids[query]}",
        group,
        TrainingList(name, tables.queries.texts[query], texts, False, _NO_SCORES, longest),
        [tables.passages.ids[one] for one in numbers],
        [tables.passages.ids[one] for one in relevant.tolist()],
        _NO_SCORES if tables.teacher is None else tables.teacher(tables.pair_numbers(query, passages)),
    )


def measure(lists: Sequence[HeldOutList], score: Score, seed: int) -> Evaluation:
    """nDCG@10 and RR@10 of the model, beside the first stage's and the teacher's, by set; intervals over groups."""
    found = score([one.texts for one in lists])
    first = [np.arange(len(one.passage_ids), 0, -1, dtype=np.float32) for one in lists]
    baselines = {FIRST: ranking_of(lists, first)}
    if any(len(one.teacher) and not np.isnan(one.teacher).all() for one in lists):
        taught = [
            np.nan_to_num(one.teacher, nan=-np.inf) if len(one.teacher) else order
            for one, order in zip(lists, first, strict=True)
        ]
        baselines[TEACHER] = ranking_of(lists, taught)
    groups = pd.DataFrame({QUERY_ID: [one.key for one in lists], SET: [one.texts.set_name for one in lists]})
    return evaluate(
        ranking_of(lists, found),
        qrels_of(lists),
        baseline=baselines,
        group_by=groups,
        clusters={one.key: one.group for one in lists},
        name=MODEL,
        seed=seed,
    )


def qrels_of(lists: Sequence[HeldOutList]) -> pd.DataFrame:
    """query_id, passage_id, relevance of everything that is right."""
    rows = [(one.key, passage, 1) for one in lists for passage in one.relevant_ids]
    return pd.DataFrame(rows, columns=[QUERY_ID, PASSAGE_ID, RELEVANCE])


def ranking_of(lists: Sequence[HeldOutList], scores: Sequence[Floats]) -> pd.DataFrame:
    """query_id, passage_id, rank by falling score, ties in first-stage order."""
    rows: list[tuple[str, str, int]] = []
    for one, values in zip(lists, scores, strict=True):
        order: Ints = np.argsort(-values, kind="stable")
        rows += [(one.key, one.passage_ids[place], rank) for rank, place in enumerate(order.tolist(), 1)]
    return pd.DataFrame(rows, columns=[QUERY_ID, PASSAGE_ID, RANK])
