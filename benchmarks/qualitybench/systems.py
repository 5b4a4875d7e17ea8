"""What orders the candidates: a model's logits (kept, so that nothing is scored twice), e5, and mixtures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from qualitybench.sets import EvaluationSet

from rerank_udf import load_scorer
from rerank_udf.engine.capability import resolve_device, resolve_precision
from rerank_udf.models import local_folder, resolve_model
from rerank_udf.training.mini.encoders import PASSAGE, QUERY, cached_vectors, e5

SCORER_FILE = "scorer.json"


def scores_folder(
    work: Path, model: str, precision: str, max_length: int, revision: str | None = None
) -> Path:
    """Where `model_logits` keeps what this model gives at this precision and length."""
    digests = sorted(resolve_model(model, revision).digests.items())
    precision = resolve_precision(precision, resolve_device("auto"))
    name = hashlib.sha256(repr((digests, precision, max_length)).encode()).hexdigest()[:12]
    return work / name


def model_logits(
    one: EvaluationSet, work: Path, model: str, precision: str, max_length: int, revision: str | None = None
) -> pd.Series:
    """float32, one a candidate; kept in `work` by language, for a run that is stopped or moved to another machine.

    What scored them stands beside them, in `SCORER_FILE`.
    """
    folder = scores_folder(work, model, precision, max_length, revision)
    precision = resolve_precision(precision, resolve_device("auto"))
    found = []
    scorer = None
    for group, rows in one.candidates.groupby("group", sort=True):
        keys = rows["query_id"] + "\t" + rows["passage_id"]
        path = folder / f"{one.name}-{group}.parquet"
        known = pd.read_parquet(path)["logit"] if path.is_file() else pd.Series(dtype=np.float32)
        new = keys[~keys.isin(known.index)]
        if len(new):
            scorer = scorer or load_scorer(
                str(local_folder(resolve_model(model, revision))), precision=precision, max_length=max_length
            )
            texts = rows.loc[new.index]
            logits = scorer.logits(
                [one.queries[key] for key in texts["query_id"]],
                [one.passages[key] for key in texts["passage_id"]],
            )
            known = pd.concat([known, pd.Series(logits, index=list(new), dtype=np.float32)])
            folder.mkdir(parents=True, exist_ok=True)
            known.rename("logit").to_frame().to_parquet(path)
            (folder / SCORER_FILE).write_text(json.dumps(scorer.describe(), indent=1, default=str))
        found.append(pd.Series(known.loc[keys].to_numpy(), index=rows.index))
    return pd.concat(found).reindex(one.candidates.index)


def scored_by(folders: Iterable[Path]) -> list[dict[str, Any]]:
    """What scored the logits in these `scores_folder`s, a dictionary for each; `scores` is the folder's name."""
    wanted = ("model", "model_key", "precision", "max_length", "backend", "device_name", "versions")
    found = []
    for folder in sorted(folders):
        facts = json.loads((folder / SCORER_FILE).read_text(encoding="utf-8"))
        found.append({"scores": folder.name, **{name: facts[name] for name in wanted if name in facts}})
    return found


def e5_cosines(one: EvaluationSet, work: Path) -> pd.Series:
    """multilingual-e5-small as a bi-encoder on the same candidates."""
    encoder = e5(max_tokens=512)
    sides = []
    for column, texts, prefix in (("query_id", one.queries, QUERY), ("passage_id", one.passages, PASSAGE)):
        vectors = cached_vectors(encoder, list(texts.values()), prefix, work / "vectors")
        place = pd.Series(range(len(texts)), index=list(texts))
        sides.append(vectors[place.loc[one.candidates[column]].to_numpy()].astype(np.float32))
    return pd.Series(np.einsum("ij,ij->i", *sides), index=one.candidates.index)


def min_max(
    one: EvaluationSet, parts: Mapping[str, float], scores: Mapping[str, pd.Series], depth: int | None = None
) -> pd.Series:
    """Σ weight × the score brought to [0, 1] within each query, as `ranking.fusion: min_max` does.

    Least and greatest are those of the first `depth` candidates, which are all that a job of that depth scores; the
    others have NaN.
    """
    total = pd.Series(0.0, index=one.candidates.index)
    for name, weight in parts.items():
        own = scores[name].astype(np.float64)
        if depth is not None:
            own = own.where(one.candidates["rank"] <= depth)
        by_query = own.groupby(one.candidates["query_id"])
        low, high = by_query.transform("min"), by_query.transform("max")
        total += weight * ((own - low) / (high - low).where(high > low, np.inf))
    return total


def ranked(one: EvaluationSet, scores: pd.Series, depth: int | None = None) -> pd.DataFrame:
    """query_id, passage_id, rank by falling score, ties in first-stage order; beyond `depth` as they were."""
    rows = one.candidates.assign(own=scores)
    if depth is not None:
        rows["own"] = rows["own"].where(rows["rank"] <= depth, -np.inf)
    rows = rows.sort_values(["query_id", "own", "rank"], ascending=[True, False, True], kind="stable")
    return rows.assign(rank=rows.groupby("query_id").cumcount() + 1)[["query_id", "passage_id", "rank"]]
