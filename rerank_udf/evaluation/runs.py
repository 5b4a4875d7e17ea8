"""Rankings as arrays: the evaluated queries' rows, query by query, in rank order."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rerank_udf.evaluation.loading import Rows
from rerank_udf.evaluation.significance import Ints


@dataclass(frozen=True)
class Names:
    """The evaluated queries (those of the qrels, sorted) and every passage of any table, by number."""

    queries: list[str]
    passages: dict[str, int]
    numbers: npt.NDArray[Any]  # of the passages, as text

    @staticmethod
    def of(qrels: Rows, rankings: Iterable[Rows]) -> Names:
        """Queries come from the qrels alone."""
        distinct = dict.fromkeys(itertools.chain(qrels.passages, *(r.passages for r in rankings)))
        passages = {p: i for i, p in enumerate(distinct)}
        numbers = np.asarray([str(i) for i in range(len(passages))], dtype=object)
        return Names(sorted(qrels.queries), passages, numbers)

    def arrange(self, rows: Rows) -> tuple[Ints, Ints, Ints]:
        """(query, passage, value) of the rows of evaluated queries, query by query, by ascending value."""
        query_of = {q: i for i, q in enumerate(self.queries)}
        queries = np.asarray([query_of.get(q, -1) for q in rows.queries], dtype=np.int64)
        passages = np.asarray([self.passages[p] for p in rows.passages], dtype=np.int64)
        query, passage = queries[rows.query], passages[rows.passage]
        order = np.lexsort((rows.value, query))
        order = order[query[order] >= 0]
        return query[order], passage[order], rows.value[order]

    def judgements(self, qrels: Rows) -> dict[str, dict[str, int]]:
        """{query: {passage: grade}} with 0 for grades below it: trec_eval counts grades in arrays, before whose first
        place -2 would write."""
        query, passage, grade = self.arrange(qrels)
        return self.nested(query, passage, np.maximum(grade, 0))

    def nested(self, query: Ints, passage: Ints, values: npt.NDArray[Any]) -> dict[str, dict[str, Any]]:
        """{query: {passage: value}}, which ir-measures takes as it is; rows stand query by query.

        Both go by number: some of its providers write files that ids with letters or spaces would spoil.
        """
        starts = np.flatnonzero(np.diff(query, prepend=-1)).tolist()
        names, plain = self.numbers[passage].tolist(), values.tolist()
        spans = zip(starts, [*starts[1:], len(query)], strict=False)
        return {str(query[a]): dict(zip(names[a:b], plain[a:b], strict=True)) for a, b in spans}


@dataclass(frozen=True)
class Run:
    """A ranking of the evaluated queries: arrays of one length, query by query, in rank order.

    `query` and `passage` number the `Names`; `relevance` is 0 where a passage is not judged.
    """

    query: Ints
    passage: Ints
    relevance: Ints
    judged: npt.NDArray[np.bool_]

    @staticmethod
    def of(rows: Rows, qrels: Rows, names: Names) -> Run:
        """The rows of evaluated queries, with their judgements."""
        query, passage, _ = names.arrange(rows)
        judged_query, judged_passage, grade = names.arrange(qrels)
        known = judged_query * len(names.passages) + judged_passage
        order = np.argsort(known)
        wanted = query * len(names.passages) + passage
        at = order[np.minimum(np.searchsorted(known, wanted, sorter=order), len(known) - 1)]
        judged = known[at] == wanted
        return Run(query, passage, np.where(judged, grade[at], 0), judged)

    def take(self, rows: npt.NDArray[Any]) -> Run:
        """These rows (numbers or a mask) as a ranking in the order given."""
        return Run(self.query[rows], self.passage[rows], self.relevance[rows], self.judged[rows])

    def positions(self) -> Ints:
        """1 for a query's first row, 2 for its second …"""
        starts = np.flatnonzero(np.diff(self.query, prepend=-1))
        lengths = np.diff(starts, append=len(self.query))
        return np.arange(1, len(self.query) + 1) - np.repeat(starts, lengths)

    def first(self, count: int | None) -> Run:
        """At most `count` rows a query."""
        return self if count is None else self.take(self.positions() <= count)

    def absent_from(self, other: Run) -> int:
        """How many rows' pairs the other does not have."""
        width = max(self.passage.max(initial=0), other.passage.max(initial=0)) + 1
        mine, others = self.query * width + self.passage, other.query * width + other.passage
        return int(np.isin(mine, others, invert=True).sum())

    def queries(self) -> int:
        """How many queries have rows."""
        return int(np.count_nonzero(np.diff(self.query, prepend=-1)))

    def depth(self) -> int:
        """Rows of the longest query, at least 1."""
        return int(self.positions().max(initial=1))
