"""What it costs that the repository has the trained layers in 8-bit blocks: measured on what the run held out."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from rerank_udf.evaluation import evaluate
from rerank_udf.tables import QUERY_ID
from rerank_udf.training.development import HeldOutList, held_out_lists, qrels_of, ranking_of
from rerank_udf.training.mini.fusion import scored
from rerank_udf.training.settings import TrainingConfig
from rerank_udf.training.split import split
from rerank_udf.training.tables import read_tables

MOST = 0.003  # of nDCG@10, in any language
BEFORE, AFTER = "before", "after"


def cost_of_blocks(config: TrainingConfig, before: Path, after: Path) -> pd.DataFrame:
    """nDCG@10 of two models' folders on the held-out lists, by the passages' language: columns n, before, after."""
    lists: list[HeldOutList] = []
    langs: list[str] = []
    for one in config.sets:
        if not one.qrels:
            continue
        tables = read_tables(one)
        assert tables.passages.langs is not None
        lang_of = dict(zip(tables.passages.ids, tables.passages.langs.tolist(), strict=True))
        found = held_out_lists(tables, split(tables, config.seed))
        lists += found
        langs += [lang_of[each.relevant_ids[0]] for each in found]
    ranked = [ranking_of(lists, scored(folder, [one.texts for one in lists])) for folder in (before, after)]
    measured = evaluate(
        ranked[1],
        qrels_of(lists),
        measures=["nDCG@10"],
        baseline={BEFORE: ranked[0]},
        group_by=pd.DataFrame({QUERY_ID: [one.key for one in lists], "lang": langs}),
        name=AFTER,
    )
    rows = measured.summary.query("documents == 'all'")
    table = rows.pivot(index="group", columns="system", values="mean")[[BEFORE, AFTER]]
    table.insert(0, "n", rows.drop_duplicates("group").set_index("group")["n"])
    return table
