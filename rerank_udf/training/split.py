"""Which queries train and which measure: whole groups are held out, with their passages."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rerank_udf.errors import ConfigError
from rerank_udf.training.settings import CANDIDATES, HeldOut
from rerank_udf.training.tables import Ints, TrainingTables, judged, stable_keys, stable_order


@dataclass(frozen=True)
class Split:
    """`train`, `held_out`: query numbers, int64; `passages_held_out`: bool (passages,), never seen in training."""

    train: Ints
    held_out: Ints
    passages_held_out: npt.NDArray[np.bool_]


def split(tables: TrainingTables, seed: int) -> Split:
    """Hold out queries of whole groups, drawn by a stable hash of the groups' names; `held_out` says how many.

    A query trains only if no group of its right passages is held out; without qrels every query with candidates does
    else, and the right one is the teacher's best (see `judged`).
    """
    right, held_out = judged(tables), tables.settings.held_out
    asked = np.flatnonzero(right.sizes() > 0)
    ranked = np.flatnonzero(tables.rankings[CANDIDATES].sizes() > 0)
    trained = ranked if tables.relevant is None else asked
    if held_out.by == "query":
        groups = np.array(_groups(tables, [tables.queries.ids[query] for query in asked.tolist()]))
        held = asked[np.isin(groups, groups_held_out(groups, groups, held_out, seed))]
        nothing = np.zeros(len(tables.passages.ids), dtype=np.bool_)
        return Split(np.setdiff1d(trained, held), _at_most(tables, held, seed), nothing)
    groups = np.array(_groups(tables, tables.passages.ids))
    first = groups[right.values[right.starts[asked]]]
    chosen = groups_held_out(groups, first, held_out, seed)
    kept = np.isin(groups, chosen)
    touched = np.repeat(np.arange(len(right.starts) - 1), right.sizes())[kept[right.values]]
    measured = _at_most(tables, asked[np.isin(first, chosen)], seed)
    return Split(np.setdiff1d(trained, touched), measured, kept)


def _groups(tables: TrainingTables, ids: list[str]) -> list[str]:
    label = f"sets.{tables.settings.name}.held_out.group"
    return group_names(ids, tables.settings.held_out.group, label)


def groups_of(tables: TrainingTables, queries: Ints) -> list[str]:
    """The group that each query with right passages is held out with: its own, or that of the first of them."""
    if tables.settings.held_out.by == "query":
        return _groups(tables, [tables.queries.ids[query] for query in queries.tolist()])
    right = judged(tables)
    return _groups(tables, [tables.passages.ids[one] for one in right.values[right.starts[queries]].tolist()])


def group_names(ids: list[str], pattern: str | None, label: str) -> list[str]:
    """The group of each id. Raises ConfigError for one that `pattern` does not match."""
    if pattern is None:
        return ids
    found = [re.search(pattern, one) for one in ids]
    for one, match in zip(ids, found, strict=True):
        if match is None or not match.groups():
            raise ConfigError(
                f"{label}: {pattern!r} has to match every id, with a parenthesis; not so for {one!r}"
            )
    return [str(match[1]) for match in found if match]


def groups_held_out(
    groups: npt.NDArray[np.str_], asked: npt.NDArray[np.str_], held_out: HeldOut, seed: int
) -> npt.NDArray[np.str_]:
    """Names of the groups that are held out: of `groups` a share, or of `asked`, every query's, as many as are wanted.

    The latter are taken in a stable random order until they have `held_out.queries` queries; one with which they would
    have more than a fifth of all is passed over.
    """
    if held_out.share is not None:
        every = np.unique(groups)
        return every[stable_keys(every.tolist(), seed) < held_out.share * 2.0**64]
    names, counts = np.unique(asked, return_counts=True)
    order = stable_order(names.tolist(), seed)
    chosen: list[int] = []
    taken = 0
    for place in order.tolist():
        if taken >= held_out.queries:
            break
        if taken + counts[place] <= len(asked) // 5:
            chosen.append(place)
            taken += int(counts[place])
    return names[chosen]


def _at_most(tables: TrainingTables, queries: Ints, seed: int) -> Ints:
    order = stable_order([tables.queries.ids[query] for query in queries.tolist()], seed)
    return np.sort(queries[order[: tables.settings.held_out.queries]])
