"""What each of mini's sets holds out, and what is kept from the sets that have the same texts and judge nothing."""

from __future__ import annotations

from typing import Any

import numpy as np

from rerank_udf.training.mini.collections import AFRIQA, AFRIQA_TRANSLATED, HELP, Collection
from rerank_udf.training.settings import HeldOut
from rerank_udf.training.split import group_names, groups_held_out

SEED = 0
# Five sets ask about the same help pages (lang|page) and two about the same passages of AfriQA: a share of all pages or
# passages is the same ones in each: 24 help pages, and 90 passages with 102 questions.
_PAGES = {"group": r"\|(.*)$", "share": 0.0095}
_PASSAGES = {"share": 0.014}
_OF_A_LANGUAGE = 40  # queries


def held_out(name: str, queries: int = _OF_A_LANGUAGE) -> dict[str, Any]:
    """The held_out section of a set over a collection's own passages; `queries` of them are measured."""
    shared = _PAGES if name == HELP else _PASSAGES if name in (AFRIQA, AFRIQA_TRANSLATED) else {}
    return {"by": "passage", "queries": queries, **shared}


def without_held_out(one: Collection) -> Collection:
    """The collection without the passages that its sets hold out, and without every question about one of them."""
    settings = HeldOut(**held_out(one.name))
    ids = one.passages["passage_id"]
    groups = np.array(group_names(list(ids), settings.group, one.name))
    asked = one.qrels.drop_duplicates("query_id")["passage_id"]
    first = np.array(group_names(list(asked), settings.group, one.name))
    kept = ~np.isin(groups, groups_held_out(groups, first, settings, SEED))
    touched = one.qrels["query_id"][~one.qrels["passage_id"].isin(ids[kept])]
    trained = ~one.queries["query_id"].isin(touched).to_numpy()
    return Collection(
        one.name,
        one.queries[trained].reset_index(drop=True),
        one.passages[kept].reset_index(drop=True),
        one.qrels[~one.qrels["query_id"].isin(touched)],
        one.candidates[
            ~one.candidates["query_id"].isin(touched) & one.candidates["passage_id"].isin(ids[kept])
        ],
        one.query_vectors[trained],
        one.passage_vectors[kept],
    )
