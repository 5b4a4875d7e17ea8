"""The engine without Spark on a candidate table's pairs: `python -m sparkbench.alone SETTINGS.json RESULT.json`."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rerank_udf import load_scorer
from rerank_udf.spark.scoring import windows


def main(settings_path: str, result_path: str) -> None:
    settings = json.loads(Path(settings_path).read_text())
    Path(result_path).write_text(json.dumps(measure(settings), indent=2))


def measure(settings: dict[str, Any]) -> dict[str, Any]:
    """Seconds to load, and to score every pair in one stream of the windows that a Spark task would make.

    settings: tables, model, max_length, precision.
    """
    pairs = texts_of(Path(settings["tables"]))
    clock = time.perf_counter()
    scorer = load_scorer(
        settings["model"], max_length=settings["max_length"], precision=settings["precision"]
    )
    scorer.logits(["warm"], ["up"])
    loaded = time.perf_counter()
    tokens = 0
    for scored in scorer.stream(
        (window.column("query"), window.column("passage")) for window in windows(pairs.to_batches(1024))
    ):
        tokens += int(scored.tokens.sum())
    return {
        "pairs": pairs.num_rows,
        "tokens": tokens,
        "load_seconds": loaded - clock,
        "seconds": time.perf_counter() - loaded,
        "scorer": scorer.describe(),
    }


def texts_of(tables: Path) -> pa.Table:
    """query, passage of every candidate, each passage's pairs together, as a scoring task gets them."""
    candidates, queries, passages = (pq.read_table(tables / n) for n in ("candidates", "queries", "passages"))
    joined = candidates.join(queries, "query_id").join(passages, "passage_id").sort_by("passage_id")
    return joined.select(["query", "passage"])


if __name__ == "__main__":
    main(*sys.argv[1:])
