"""Which queries train and which measure: whole groups are held out, with their passages."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rerank_udf.errors import ConfigError
from rerank_udf.training.tables import Ints, TrainingTables, stable_order


@dataclass(frozen=True)
class Split:
    """`train`, `held_out`: query numbers, int64; `passages_held_out`: bool (passages,), never seen in training."""

    train: Ints
    held_out: Ints
    passages_held_out: npt.NDArray[np.bool_]


def split(tables: TrainingTables, seed: int) -> Split:
    """Hold out `held_out.queries` queries of whole groups, drawn by a stable hash of the groups' names.

    A query trains only if no group of its relevant passages is held out. Without qrels nothing is held out, and every
    query with candidates trains.
    """
    kept_passages = np.zeros(len(tables.passages.ids), dtype=np.bool_)
    if tables.relevant is None:
        ranked = np.flatnonzero(tables.rankings["candidates"].sizes() > 0)
        return Split(ranked, np.empty(0, np.int64), kept_passages)
    asked = np.flatnonzero(tables.relevant.sizes() > 0)
    if tables.settings.held_out.by == "query":
        return _by_query(tables, asked, kept_passages, seed)
    groups = np.array(_groups(tables, tables.passages.ids))
    first = np.array([groups[tables.relevant[query][0]] for query in asked.tolist()])
    chosen = _groups_held_out(first, tables.settings.held_out.queries, seed)
    kept_passages = np.isin(groups, chosen)
    touched = np.array([bool(kept_passages[tables.relevant[query]].any()) for query in asked.tolist()], bool)
    candidates = asked[np.isin(first, chosen)]
    return Split(asked[~touched], _at_most(tables, candidates, seed), kept_passages)


def _by_query(tables: TrainingTables, asked: Ints, kept: npt.NDArray[np.bool_], seed: int) -> Split:
    groups = np.array(_groups(tables, [tables.queries.ids[query] for query in asked.tolist()]))
    held = np.isin(groups, _groups_held_out(groups, tables.settings.held_out.queries, seed))
    return Split(asked[~held], _at_most(tables, asked[held], seed), kept)


def _groups(tables: TrainingTables, ids: list[str]) -> list[str]:
    pattern = tables.settings.held_out.group
    if pattern is None:
        return ids
    found = [re.search(pattern, one) for one in ids]
    for one, match in zip(ids, found, strict=True):
        if match is None or not match.groups():
            raise ConfigError(
                f"sets.{tables.settings.name}.held_out.group: {pattern!r} has to match every id, with a parenthesis; "
                f"not so for {one!r}"
            )
    return [str(match[1]) for match in found if match]


def _groups_held_out(groups: npt.NDArray[np.str_], queries: int, seed: int) -> npt.NDArray[np.str_]:
    """Names of the groups that are held out, of every query's group: str (queries,).

    They are taken in a stable random order until they have `queries` queries, but never more than a fifth of them.
    """
    names, counts = np.unique(groups, return_counts=True)
    order = stable_order([str(name) for name in names], seed)
    before = np.cumsum(counts[order]) - counts[order]
    return names[order][before < min(queries, len(groups) // 5)]


def _at_most(tables: TrainingTables, queries: Ints, seed: int) -> Ints:
    order = stable_order([tables.queries.ids[query] for query in queries.tolist()], seed)
    return np.sort(queries[order[: tables.settings.held_out.queries]])
