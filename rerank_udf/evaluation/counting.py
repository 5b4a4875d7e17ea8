"""Which queries count, which do not, and how many judgements there are."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from rerank_udf.evaluation.loading import Rows
from rerank_udf.evaluation.runs import Run

# Of the ranking; of another system it has the name in brackets behind it.
ABSENT = "queries_without_candidates"


def counts_of(qrels: Rows, ranked: Rows, runs: Mapping[str, Run], pool: Run) -> dict[str, int]:
    """Those of `Evaluation.counts` that add up over parts of the queries; the last of `runs` is the ranking's."""
    *others, name = runs
    absent = {system: len(qrels.queries) - run.queries() for system, run in runs.items()}
    relevant = len(np.unique(qrels.query[qrels.value > 0]))
    return {
        "queries": len(qrels.queries),
        "queries_without_qrels": len(set(ranked.queries).difference(qrels.queries)),
        ABSENT: absent[name],
        **{f"{ABSENT}[{system}]": absent[system] for system in others},
        "queries_without_relevant": len(qrels.queries) - relevant,
        "judged_candidates": int(runs[name].judged.sum()),
        "rows_beyond_candidates": runs[name].absent_from(pool),
    }


def none_has_a_judged_query(counts: Mapping[str, int]) -> bool:
    """Whether every system, baselines included, is without candidates for all queries."""
    return all(count == counts["queries"] for name, count in counts.items() if name.startswith(ABSENT))
