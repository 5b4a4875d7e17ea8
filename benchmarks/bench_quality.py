"""What reranking buys and costs on retrieval sets: python benchmarks/bench_quality.py --help

Reads the sets in the folder that RERANK_UDF_DATA names, scores the candidates with the engine (kept in --work, so a
run that is stopped goes on), and measures with `rerank_udf.evaluation`: BM25, multilingual-e5-small as a bi-encoder,
the model alone, and min-max mixtures; then depth, precision and max_length.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click
import pandas as pd
from qualitybench.sets import DEPTHS, EvaluationSet, read_set, without
from qualitybench.systems import e5_cosines, min_max, model_logits, ranked, scored_by, scores_folder
from rich.console import Console
from rich.table import Table

from rerank_udf.evaluation import Evaluation, evaluate
from rerank_udf.machine import processor_name
from rerank_udf.report import installed_versions

MODEL, E5, FUSED = "model", "e5", "fused"
STUDIES = ("main", "depth", "precision", "length")


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--studies", default=",".join(STUDIES), help="Which of main, depth, precision, length.")
@click.option("--sets", default=",".join(DEPTHS), help="Which sets.")
@click.option(
    "--questions", type=int, help="Evenly chosen ones of each language, for main and depth; all by default."
)
@click.option("--few", default=100, help="The same, for precision and length.")
@click.option(
    "--without",
    "left_out",
    help="Leave out the questions about paragraphs that have this text, in whichever language.",
)
@click.option("--model", default="mini", help="mini, a folder, or a hub id with --revision.")
@click.option("--revision", help="Of a hub id.")
@click.option("--lengths", default="64,128,256,512", help="max_length, in the study of that name.")
@click.option(
    "--precision",
    default="auto",
    help="Of the model, in main, depth and length: auto, float32, bfloat16, float16 or int8.",
)
@click.option(
    "--weight", default=0.7, help="Of the model in the mixture; chosen on development sets, not here."
)
@click.option(
    "--work", default="build/quality", type=click.Path(path_type=Path), help="Where scores are kept."
)
@click.option("--out", type=click.Path(path_type=Path), help="Also write the figures here as JSON.")
def main(
    studies: str,
    sets: str,
    questions: int | None,
    few: int,
    left_out: str | None,
    model: str,
    revision: str | None,
    lengths: str,
    precision: str,
    weight: float,
    work: Path,
    out: Path | None,
) -> None:
    """Measure quality."""
    data = os.environ.get("RERANK_UDF_DATA")
    if not data:
        raise click.UsageError("RERANK_UDF_DATA names no folder of retrieval sets")
    console = Console(width=110)
    found: dict[str, Any] = {
        "settings": {
            "model": model,
            "revision": revision,
            "precision": precision,
            "weight": weight,
            "questions": questions,
            "few": few,
            "without": left_out,
        },
        "machine": processor_name(),
        "versions": installed_versions(),
    }
    chosen = {"work": work, "model": model, "revision": revision, "precision": precision, "lengths": lengths}
    chosen["used"] = used = set[Path]()
    for name in sets.split(","):
        whole, part = (
            read_set(Path(data), name, count, DEPTHS[name])
            for count in (questions, min(few, questions or few))
        )
        if left_out:
            whole, part = without(whole, left_out), without(part, left_out)
        for study in studies.split(","):
            rows = _STUDIES[study](part if study in ("precision", "length") else whole, weight, chosen)
            found[f"{name} {study}"] = _records(rows)
            _print(console, f"{name}: {study}", rows)
            found["scored by"] = scored_by(used)
            if out is not None:
                out.parent.mkdir(parents=True, exist_ok=True)
                text = json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False)
                out.write_text(text + "\n", encoding="utf-8")


def _scores(
    one: EvaluationSet, chosen: dict[str, Any], precision: str | None = None, max_length: int = 512
) -> pd.Series:
    what = (chosen["work"], chosen["model"], precision or chosen["precision"], max_length, chosen["revision"])
    chosen["used"].add(scores_folder(*what))
    return model_logits(one, *what)


def _records(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """A dictionary a row; null where there is no number, for which JSON has no NaN."""
    records: list[dict[str, Any]] = json.loads(rows.to_json(orient="records"))
    return records


def _main(one: EvaluationSet, weight: float, chosen: dict[str, Any]) -> pd.DataFrame:
    """Every system by language: nDCG@10, difference to the first stage with its interval, and p."""
    first = one.first_stage
    scores = {first: one.candidates["score"], MODEL: _scores(one, chosen)}
    if first != E5:
        scores[E5] = e5_cosines(one, chosen["work"])
    scores[f"{first} + {MODEL}"] = min_max(one, {MODEL: weight, first: 1 - weight}, scores)
    if first != E5:
        scores[f"{E5} + {MODEL}"] = min_max(one, {MODEL: 0.5, E5: 0.5}, scores)
    rankings = {name: ranked(one, values) for name, values in scores.items()}
    baseline = rankings.pop(first)
    last, ranking = rankings.popitem()
    evaluation = evaluate(
        ranking,
        one.qrels,
        measures=["nDCG@10", "RR@10"],
        baseline={first: baseline, **rankings},
        group_by=pd.DataFrame({"query_id": list(one.groups), "language": list(one.groups.values())}),
        clusters=one.clusters,
        name=last,
    )
    return _rows(evaluation)


def _rows(evaluation: Evaluation) -> pd.DataFrame:
    rows = evaluation.summary.query("documents == 'all' and measure == 'nDCG@10'")
    columns = ["group", "system", "mean", "delta", "ci_low", "ci_high", "p_holm", "won", "tied", "lost", "n"]
    return rows[columns].round(4)


def _mean(one: EvaluationSet, scores: pd.Series, depth: int | None = None) -> float:
    """nDCG@10 over all questions."""
    evaluation = evaluate(ranked(one, scores, depth), one.qrels, measures=["nDCG@10"])
    rows = evaluation.summary.query("documents == 'all' and group == 'all' and system == 'reranked'")
    return round(float(rows["mean"].iloc[0]), 4)


def _recalls(one: EvaluationSet, depths: list[int]) -> dict[int, float]:
    """R@depth of the first stage, the mean over all questions."""
    measures = {f"R@{depth}": depth for depth in depths}
    evaluation = evaluate(ranked(one, one.candidates["score"]), one.qrels, measures=list(measures))
    rows = evaluation.summary.query("documents == 'all' and group == 'all' and system == 'reranked'")
    means = rows.set_index("measure")["mean"]
    return {depth: round(float(means[measure]), 4) for measure, depth in measures.items()}


def _depth(one: EvaluationSet, weight: float, chosen: dict[str, Any]) -> pd.DataFrame:
    """How many candidates are worth scoring; those beyond the depth follow in the first stage's order."""
    first, logits = one.first_stage, _scores(one, chosen)
    scores, weights = {first: one.candidates["score"], MODEL: logits}, {MODEL: weight, first: 1 - weight}
    depths = [depth for depth in (0, 5, 10, 20, 50, 100) if depth <= DEPTHS[one.name]]
    recalls = {0: 0.0, **_recalls(one, depths[1:])}
    return pd.DataFrame(
        [
            {
                "depth": depth,
                "pairs a question": depth,
                "recall": recalls[depth],
                MODEL: _mean(one, logits, depth),
                FUSED: _mean(one, min_max(one, weights, scores, depth), depth),
            }
            for depth in depths
        ]
    )


def _precision(one: EvaluationSet, weight: float, chosen: dict[str, Any]) -> pd.DataFrame:
    """What 16 and 8 bits cost."""
    exact = _scores(one, chosen, "float32")
    rows = []
    for precision in ("float32", "bfloat16", "int8"):
        logits = _scores(one, chosen, precision)
        pairs = pd.DataFrame({"exact": exact, "own": logits, "query": one.candidates["query_id"]})
        taus = [group["own"].corr(group["exact"], method="kendall") for _, group in pairs.groupby("query")]
        rows.append(
            {
                "precision": precision,
                "nDCG@10": _mean(one, logits),
                "Kendall τ to float32": round(float(pd.Series(taus).mean()), 4),
                "rms difference": round(float(((logits - exact) ** 2).mean() ** 0.5), 4),
            }
        )
    return pd.DataFrame(rows)


def _length(one: EvaluationSet, weight: float, chosen: dict[str, Any]) -> pd.DataFrame:
    """What cutting long passages costs."""
    return pd.DataFrame(
        [
            {"max_length": length, "nDCG@10": _mean(one, _scores(one, chosen, max_length=length))}
            for length in map(int, chosen["lengths"].split(","))
        ]
    )


_STUDIES = {"main": _main, "depth": _depth, "precision": _precision, "length": _length}


def _print(console: Console, title: str, rows: pd.DataFrame) -> None:
    table = Table(*map(str, rows.columns), title=title, title_justify="left", box=None, pad_edge=False)
    for row in rows.itertuples(index=False):
        table.add_row(*("" if pd.isna(value) else str(value) for value in row))
    console.print(table)


if __name__ == "__main__":
    main()
