"""Reports as a run leaves them, for tests of the page that need no Spark."""

from __future__ import annotations

import json
from typing import Any

from rerank_udf.report import RunReport, new_report

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
LENGTHS = {
    "low": 1.0,
    "width": 16.0,
    "pairs": [10, 30, 20, 0] + [0] * 28,
    "tokens": [100, 700, 800, 0] + [0] * 28,
}
TIMES = {"low": 0.0, "width": 2.0, "pairs": [0, 40, 0, 20], "tokens": [0, 1000, 0, 600]}
LOGITS = {"low": -20.0, "width": 0.5, "first": [0] * 80, "rest": [0] * 80}
LOGITS["first"][44], LOGITS["first"][43], LOGITS["rest"][30], LOGITS["rest"][38] = 4, 2, 40, 14  # type: ignore[index]
SCORES = {"low": 0.0, "width": 0.05, "first": [0] * 19 + [6], "rest": [54] + [0] * 19}
ENDS = [1, 2, 3, 5, 10, 20, 50, 100, 1000]


def movement() -> dict[str, Any]:
    """Six queries of ten passages: two keep their first passage, in four the second one comes first."""
    cells = [[0] * 11 for _ in range(10)]
    cells[0][:2] = [2, 4]
    cells[1][:2] = [4, 2]
    for band, size in ((2, 1), (3, 2), (4, 5)):
        cells[band][band] = 6 * size - (1 if band == 4 else 0)
    cells[4][10] = 1
    sums = {"rose": 4, "kept": 51, "fell": 4, "queries": 6, "first_changed": 4}
    return {"band_ends": ENDS, "cells": cells, **sums}


def a_run(**facts: object) -> RunReport:
    """A run of 64 rows: 59 ranked, 1 cut, 4 rejected; 60 distinct pairs, all scored now."""
    config = {
        "evaluation": {"qrels": None},
        "output": {"layout": "rows"},
        "run": {"max_reject_fraction": 0.25},
        "input": {"candidates": {"options": {"password": "hunter2"}}},
    }
    report = new_report("20260131T000000Z-abcdef", "rerank-udf rerank", config, {"input.candidates": "in"}, 0)
    report.model = {
        "name": "BAAI/bge-reranker-v2-m3",
        "revision": "abc",
        "precision": "float16",
        "max_length": 512,
    }
    report.model_key = "k" * 32
    report.pairs_in, report.pairs_distinct, report.pairs_scored, report.ranked = 64, 60, 60, 59
    report.cut, report.rejects = {"top_k": 1}, {"null_id": 3, "bad_score": 1}
    report.tokens, report.pairs_truncated, report.tokens_per_second = 1600, 3, 200.0
    report.seconds = {"prepare": 1.0, "score": 8.0}
    report.models_loaded, report.devices, report.placement = 1, ["host/cuda:0"], "one task a device"
    report.store = {"place": "out/store", "format": "parquet", "adopted": 0}
    wave = {"wave": 1, "pairs": 60, "tasks": 2, "seconds": 8.0, "pairs_per_second": 7.5, "rounds": 1}
    report.waves = [{**wave, "started_at": "2026-01-31T00:00:00.000+00:00", "tokens": 1600}]
    report.output = {"rejects": "out/rejects", "path": "out/reranked", "report": "out/report/run_report.json"}
    report.figures = {
        "lengths": LENGTHS,
        "times": TIMES,
        "logits": LOGITS,
        "scores": SCORES,
        "movement": movement(),
    }
    for name, value in facts.items():
        setattr(report, name, value)
    return report


def _row(group: str, system: str, mean: float, n: int, **compared: Any) -> dict[str, Any]:
    nothing = dict.fromkeys(
        ("baseline_mean", "delta", "ci_low", "ci_high", "p", "p_holm", "won", "tied", "lost")
    )
    fixed = {"measure": "nDCG@10", "documents": "all", "n_clusters": n, "recall_at_depth": 0.97}
    judged = {"judged_at_10": 0.2, "baseline_judged_at_10": 0.2}
    return {"group": group, "system": system, "mean": mean, "n": n, **nothing, **fixed, **judged, **compared}


def an_evaluation(run_id: str = "20260131T000000Z-abcdef") -> dict[str, Any]:
    """Two groups, one of which gains; a hostile query and a right-to-left passage among the changed."""
    gain = {"baseline_mean": 0.5, "delta": 0.25, "ci_low": 0.1, "ci_high": 0.4, "p": 0.0002, "p_holm": 0.0004}
    loss = {"baseline_mean": 0.8, "delta": -0.1, "ci_low": -0.3, "ci_high": 0.1, "p": 0.2, "p_holm": 0.2}
    whole = {"baseline_mean": 0.6, "delta": 0.133, "ci_low": 0.02, "ci_high": 0.25, "p": 0.01, "p_holm": 0.02}
    summary = [
        _row("all", "first", 0.6, 6),
        _row("all", "mini", 0.733, 6, **whole, won=3, tied=2, lost=1),
        _row("all", "oracle", 0.95, 6),
        _row("all", "random", 0.2, 6),
        _row("<b>fr</b>", "first", 0.5, 4),
        _row("<b>fr</b>", "mini", 0.75, 4, **gain, won=3, tied=1, lost=0),
        _row("ar", "first", 0.8, 2),
        _row("ar", "mini", 0.7, 2, **loss, won=0, tied=1, lost=1),
    ]
    passage = {
        "passage_id": "p<1>",
        "passage": "النص",
        "rank": 1,
        "first_stage_rank": 7,
        "score": 0.91,
        "relevance": 2,
    }
    other = {
        **passage,
        "passage_id": "p2",
        "passage": HOSTILE,
        "rank": None,
        "first_stage_rank": 1,
        "score": None,
    }
    changed = [
        {
            "query_id": query_id,
            "query": HOSTILE,
            "before": before,
            "after": after,
            "first_stage": [{**other, "relevance": 0}, {**other, "relevance": None}],
            "reranked": [passage],
        }
        for query_id, before, after in (("q1", 0.1, 1.0), ("q2", 1.0, 0.4))
    ]
    counts = {"queries": 6, "depth": 10, "tests": 3, "clusters": 6, "queries_without_qrels": 2}
    return {
        "run_id": run_id,
        "settings": {
            "measures": ["nDCG@10"],
            "systems": ["first", "mini"],
            "baseline": "first",
            "ranking": "mini",
            "bootstraps": 10_000,
        },
        "counts": {**counts, "queries_without_candidates": 0, "queries_without_relevant": 0},
        "summary": summary,
        "precision": {
            "low": 0.0,
            "width": 0.25,
            "rows": [40, 10, 0, 10],
            "judged": [4, 4, 0, 9],
            "relevant": [1, 1, 0, 8],
        },
        "changed": changed,
    }


def text_of(report: RunReport) -> str:
    """run_report.json's text."""
    return json.dumps(json.loads(report.to_json()))
