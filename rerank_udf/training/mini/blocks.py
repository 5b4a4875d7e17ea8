"""What it costs that the repository has the trained layers in 8-bit blocks: measured on what the run held out."""

from __future__ import annotations

import pandas as pd

from rerank_udf.evaluation import evaluate
from rerank_udf.tables import QUERY_ID
from rerank_udf.training.development import qrels_of, ranking_of
from rerank_udf.training.mini.judged import Judged, Scores

MOST = 0.003  # of nDCG@10, in any language
BEFORE, AFTER = "before", "after"


def cost_of_blocks(held_out: Judged, before: Scores, after: Scores) -> pd.DataFrame:
    """nDCG@10 of two models' scores of the held-out lists, by the passages' language: columns n, before, after."""
    lists = held_out.lists
    measured = evaluate(
        ranking_of(lists, after),
        qrels_of(lists),
        measures=["nDCG@10"],
        baseline={BEFORE: ranking_of(lists, before)},
        group_by=pd.DataFrame({QUERY_ID: [one.key for one in lists], "lang": held_out.langs}),
        name=AFTER,
    )
    rows = measured.summary.query("documents == 'all'")
    table = rows.pivot(index="group", columns="system", values="mean")[[BEFORE, AFTER]]
    table.insert(0, "n", rows.drop_duplicates("group").set_index("group")["n"])
    return table
