"""What a precision costs in quality: python benchmarks/precision.py --help

Scores the first candidates of XQuAD questions (the folder that RERANK_UDF_DATA names) in each precision, and compares
with float32: nDCG@10 by ir-measures, Kendall's τ per question, and whether pairs that float32 tells clearly apart
change places.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import ir_measures
import numpy as np
import pyarrow.parquet as pq
from ir_measures import nDCG
from rich.console import Console
from rich.table import Table
from scipy.stats import kendalltau

from rerank_udf import load_scorer

CLEAR = 6  # times the rms difference: what is farther apart must not change places


@dataclass(frozen=True)
class Question:
    """A question of a language with its candidates' texts; `relevant`: ids of those that answer it."""

    name: str
    query: str
    ids: list[str]
    passages: list[str]
    relevant: set[str]


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--model", default="mini", help="mini, a folder, or a hub id with --revision.")
@click.option("--revision", help="Of a hub id.")
@click.option("--precisions", default="bfloat16,float16,int8", help="Each is compared with float32.")
@click.option("--questions", default=20, help="Evenly chosen questions of each language.")
@click.option("--depth", default=20, help="Candidates of a question, by BM25.")
@click.option("--device", default="auto", help="auto, cpu, cuda or cuda:N.")
@click.option("--out", type=click.Path(path_type=Path), help="Also write the figures here as JSON.")
def main(
    model: str,
    revision: str | None,
    precisions: str,
    questions: int,
    depth: int,
    device: str,
    out: Path | None,
) -> None:
    """Compare precisions on XQuAD in twelve languages."""
    asked = list(read_questions(questions, depth))
    queries = [question.query for question in asked for _ in question.ids]
    passages = [passage for question in asked for passage in question.passages]
    edges = np.cumsum([len(question.ids) for question in asked])[:-1]
    figures: dict[str, dict[str, float]] = {}
    exact: list[Any] = []
    for precision in ["float32", *precisions.split(",")]:
        scorer = load_scorer(model, revision=revision, precision=precision, device=device)
        logits = np.split(scorer.logits(queries, passages), edges)
        exact = exact or logits
        figures[precision] = compared(asked, exact, logits)
    show(
        figures,
        f"{model} · XQuAD, {len(asked)} questions in 12 languages, BM25 top {depth}, {len(queries):,} pairs",
    )
    if out:
        out.write_text(json.dumps(figures, indent=1))


def read_questions(count: int, depth: int) -> Iterator[Question]:
    """`count` questions of each language, evenly through each set."""
    root = os.environ.get("RERANK_UDF_DATA")
    if not root:
        raise click.UsageError(
            "RERANK_UDF_DATA is not set: it must name the folder that holds xquad/<language>"
        )
    for folder in sorted((Path(root) / "xquad").iterdir()):
        tables = {
            name: pq.read_table(folder / f"{name}.parquet").to_pandas() for name in ("queries", "passages")
        }
        texts = tables["passages"].set_index("passage_id")["passage"]
        candidates = pq.read_table(folder / "candidates.parquet", filters=[("rank", "<=", depth)]).to_pandas()
        qrels = pq.read_table(folder / "qrels.parquet", filters=[("relevance", ">", 0)]).to_pandas()
        relevant = qrels.groupby("query_id")["passage_id"].agg(set)
        chosen = tables["queries"].iloc[np.linspace(0, len(tables["queries"]) - 1, count).astype(int)]
        lists = candidates.sort_values("rank").groupby("query_id")["passage_id"].agg(list)
        for row in chosen.itertuples():
            ids = lists[row.query_id]
            name = f"{folder.name}/{row.query_id}"
            yield Question(name, row.query, ids, texts[ids].tolist(), relevant.get(row.query_id, set()))


def compared(asked: list[Question], exact: list[Any], found: list[Any]) -> dict[str, float]:
    """nDCG@10, and differences to `exact`, float32 logits of each question's candidates."""
    difference = np.concatenate(found) - np.concatenate(exact)
    rms = float(np.sqrt(np.mean(difference**2)))
    taus = [kendalltau(e, f).statistic for e, f in zip(exact, found, strict=True)]
    swapped = clear = 0
    for e, f in zip(exact, found, strict=True):
        gap, gap_found = e[:, None] - e[None, :], f[:, None] - f[None, :]
        far = gap > CLEAR * rms
        clear += int(far.sum())
        swapped += int((far & (gap_found <= 0)).sum())
    return {
        "ndcg": ndcg(asked, found),
        "ndcg_difference": ndcg(asked, found) - ndcg(asked, exact),
        "rms": rms,
        "largest": float(np.abs(difference).max()),
        "mean_tau": float(np.mean(taus)),
        "clear_pairs": clear,
        "swapped": swapped,
    }


def ndcg(asked: list[Question], logits: list[Any]) -> float:
    """Mean nDCG@10 over all questions."""
    qrels = [ir_measures.Qrel(q.name, passage, 1) for q in asked for passage in q.relevant]
    run = []
    for question, values in zip(asked, logits, strict=True):
        order = np.argsort(-values, kind="stable")
        run += [ir_measures.ScoredDoc(question.name, question.ids[i], -float(r)) for r, i in enumerate(order)]
    return float(ir_measures.calc_aggregate([nDCG @ 10], qrels, run)[nDCG @ 10])


def show(figures: dict[str, dict[str, float]], title: str) -> None:
    """Print the figures as a table."""
    table = Table(title=title)
    for column in (
        "precision",
        "nDCG@10",
        "Δ",
        "mean τ",
        "rms |Δ logit|",
        "largest",
        "swapped beyond 6 × rms",
    ):
        table.add_column(column, justify="left" if column == "precision" else "right")
    for precision, row in figures.items():
        table.add_row(
            precision,
            f"{row['ndcg']:.4f}",
            f"{row['ndcg_difference']:+.4f}",
            f"{row['mean_tau']:.4f}",
            f"{row['rms']:.2g}",
            f"{row['largest']:.2g}",
            f"{row['swapped']:,} of {row['clear_pairs']:,}",
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
