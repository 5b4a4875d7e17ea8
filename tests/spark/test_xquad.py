"""The job over XQuAD's twelve languages, against plain loops in this process."""

from __future__ import annotations

import io
import json
import os
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession
from rich.console import Console

from rerank_udf import load_scorer
from rerank_udf.config import parse_config
from rerank_udf.report import RunReport
from rerank_udf.spark.pipeline import run_rerank

DATA = Path(os.environ.get("RERANK_UDF_DATA") or Path(__file__).parents[3] / "shared" / "data") / "xquad"
LANGUAGES = ("ar", "de", "el", "en", "es", "hi", "ro", "ru", "th", "tr", "vi", "zh")

pytestmark = [
    pytest.mark.data,
    pytest.mark.skipif(
        not DATA.is_dir(), reason=f"no XQuAD in {DATA}: set RERANK_UDF_DATA to the folder of retrieval sets"
    ),
]


# RERANK_UDF_QUESTIONS=14280 compares every question of the twelve languages; the default takes seconds.
QUESTIONS = int(os.environ.get("RERANK_UDF_QUESTIONS", "120"))
FLAG_RERANKER_LOOP = """
import json, sys
from FlagEmbedding import FlagReranker
job = json.load(open(sys.argv[1], encoding="utf-8"))
reranker = FlagReranker(job["model"], use_fp16=False, devices="cpu", batch_size=16, max_length=512)
scores = [float(score) for score in reranker.compute_score(job["pairs"])]
json.dump(scores, open(sys.argv[2], "w", encoding="utf-8"))
"""


def texts(table: str) -> dict[str, str]:
    """id → text over all languages."""
    found = {}
    for language in LANGUAGES:
        rows = pq.read_table(DATA / language / f"{table}.parquet").to_pydict()
        names = {"queries": ("query_id", "query"), "passages": ("passage_id", "passage")}[table]
        found |= dict(zip(rows[names[0]], rows[names[1]], strict=True))
    return found


def first_stage(depth: int) -> dict[str, list[str]]:
    """query_id → its passages in BM25's order."""
    found: dict[str, list[str]] = defaultdict(list)
    for language in LANGUAGES:
        table = pq.read_table(DATA / language / "candidates.parquet", filters=[("rank", "<=", depth)])
        for row in sorted(table.to_pylist(), key=lambda row: (row["query_id"], row["rank"])):
            found[row["query_id"]].append(row["passage_id"])
    return found


def reranked(
    spark: SparkSession, model_folder: Path, out: Path, **sections: Any
) -> tuple[RunReport, dict[str, list[dict[str, Any]]]]:
    """Run the job over the top 20; query_id → published rows in order."""
    raw: dict[str, Any] = {
        "input": {
            "candidates": {"path": str(DATA / "*" / "candidates.parquet"), "where": "rank <= 20"},
            "queries": {"path": str(DATA / "*" / "queries.parquet")},
            "passages": {"path": str(DATA / "*" / "passages.parquet")},
        },
        "model": {"name": str(model_folder), "precision": "float32", "device": "cpu"},
        "output": {"reranked": {"path": str(out / "reranked")}, "rejects": {"path": str(out / "rejects")}},
        "run": {"report": str(out / "report")},
    }
    for name, section in sections.items():
        raw[name] = {**raw.get(name, {}), **section}
    report = run_rerank(spark, parse_config(raw), Console(file=io.StringIO()))
    columns = ["query_id", "passage_id", "rank", "logit"]
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in pq.read_table(report.output["version"], columns=columns).to_pylist():
        found[row["query_id"]].append(row)
    for rows in found.values():
        rows.sort(key=lambda row: row["rank"])
    return report, found


@pytest.mark.slow
def test_all_twelve_languages_are_ranked_as_by_a_plain_loop(spark, hash_model, tmp_path):
    report, found = reranked(spark, hash_model, tmp_path)
    queries, passages, candidates = texts("queries"), texts("passages"), first_stage(20)
    assert len(candidates) == 1190 * 12
    assert (report.pairs_in, report.ranked, report.rejects, report.cut) == (285_600, 285_600, {}, {})
    assert report.models_loaded <= 2
    scorer = load_scorer(hash_model)
    for query_id, listed in candidates.items():
        expected = scorer.rank(queries[query_id], [passages[p] for p in listed])
        assert [row["passage_id"] for row in found[query_id]] == [listed[one.index] for one in expected]
    # the twelve languages hold some questions word for word the same (names, numbers): those are scored once
    pairs = {(queries[q], passages[p]) for q, listed in candidates.items() for p in listed}
    assert report.pairs_distinct == report.pairs_scored == len(pairs)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For forward passes of a millisecond: on a busy machine torch's threads wait for each other far longer."""
    torch = pytest.importorskip("torch", reason="the reference loop needs torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.slow
def test_a_real_architecture_ranks_as_transformers_does_pair_by_pair(spark, tiny_xlmr, tmp_path):
    import torch

    transformers = pytest.importorskip("transformers", reason="the reference loop needs transformers")
    from tokenizers import Tokenizer

    _, found = reranked(spark, tiny_xlmr, tmp_path, input={"limit_queries": 240}, model={"max_length": 256})
    assert len({query_id.split("-")[0] for query_id in found}) == 12
    queries, passages = texts("queries"), texts("passages")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tiny_xlmr).eval()
    tokenizer = Tokenizer.from_file(str(tiny_xlmr / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(256, strategy="only_second")
    largest = 0.0
    for query_id, rows in found.items():
        plain = []
        for row in rows:
            ids = tokenizer.encode(queries[query_id], passages[row["passage_id"]]).ids
            with torch.inference_mode():
                plain.append(float(model(input_ids=torch.tensor([ids])).logits[0, 0]))
        largest = max(largest, float(np.abs(np.array(plain) - [row["logit"] for row in rows]).max()))
        # nothing below stands more than rounding above what is ranked over it
        best_below = np.maximum.accumulate(plain[::-1])[::-1]
        assert (np.array(plain) >= best_below - 1e-4).all()
    assert largest <= 1e-4


@pytest.mark.reference
@pytest.mark.slow
def test_the_job_ranks_as_a_plain_loop_over_flag_reranker(spark, tiny_xlmr, tmp_path):
    root = Path(__file__).parents[2]
    python = root / ".venv-reference" / "bin" / "python"
    if not python.exists():
        pytest.skip("no .venv-reference: `make reference` builds it")
    _, found = reranked(spark, tiny_xlmr, tmp_path, input={"limit_queries": QUESTIONS})
    queries, passages = texts("queries"), texts("passages")
    listed = [(query_id, row) for query_id, rows in found.items() for row in rows]
    pairs = [(queries[query_id], passages[row["passage_id"]]) for query_id, row in listed]
    job = {"model": str(tiny_xlmr), "pairs": pairs}
    (tmp_path / "job.json").write_text(json.dumps(job), encoding="utf-8")
    done = subprocess.run(
        [python, "-c", FLAG_RERANKER_LOOP, tmp_path / "job.json", tmp_path / "logits.json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    expected = np.array(json.loads((tmp_path / "logits.json").read_text(encoding="utf-8")))
    assert len(found) == QUESTIONS
    assert np.abs(expected - [row["logit"] for _, row in listed]).max() <= 1e-4
    start = 0
    for rows in found.values():
        plain = expected[start : start + len(rows)]
        start += len(rows)
        best_below = np.maximum.accumulate(plain[::-1])[::-1]
        assert (plain >= best_below - 1e-4).all()
