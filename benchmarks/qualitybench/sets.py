"""The evaluation sets as lists of candidates: XQuAD in a language and across languages, SQuAD-it and -es, Cranfield."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

XQUAD, CROSS, CRANFIELD = "xquad", "xquad-cross", "cranfield"
SQUAD_IT, SQUAD_ES = "squad-it", "squad-es"
DEPTHS = {XQUAD: 20, CROSS: 20, SQUAD_IT: 20, SQUAD_ES: 20, CRANFIELD: 100}
FIRST_STAGES = {CROSS: "e5"}  # of the others BM25


@dataclass(frozen=True)
class EvaluationSet:
    """One set, all its languages: `candidates` (query_id, passage_id, score, rank, group), ids unique over languages.

    `group`: the language; `clusters`: query_id → the paragraph that was asked about, in whichever language.
    """

    name: str
    queries: dict[str, str]
    passages: dict[str, str]
    candidates: pd.DataFrame
    qrels: pd.DataFrame
    groups: dict[str, str]
    clusters: dict[str, str]

    @property
    def first_stage(self) -> str:
        """Whose order the candidates are in."""
        return FIRST_STAGES.get(self.name, "BM25")


def read_set(data: Path, name: str, questions: int | None, depth: int) -> EvaluationSet:
    """All languages of a set; of each the same evenly chosen `questions` (None: all)."""
    one_language = (data / name / "candidates.parquet").is_file()
    folders = [data / name] if one_language else sorted((data / name).iterdir())
    parts = [_read_folder(folder, name, questions, depth) for folder in folders]
    return EvaluationSet(
        name,
        {key: text for part in parts for key, text in part.queries.items()},
        {key: text for part in parts for key, text in part.passages.items()},
        pd.concat([part.candidates for part in parts], ignore_index=True),
        pd.concat([part.qrels for part in parts], ignore_index=True),
        {key: group for part in parts for key, group in part.groups.items()},
        {key: cluster for part in parts for key, cluster in part.clusters.items()},
    )


def without(one: EvaluationSet, text: str) -> EvaluationSet:
    """The set less the questions, in all languages, about paragraphs that have this text in any."""
    named = (key.split("/", 1)[1] for key, passage in one.passages.items() if text in passage)
    paragraphs = {_paragraph(one.name, "", passage) for passage in named}
    kept = {key for key, paragraph in one.clusters.items() if paragraph not in paragraphs}
    return replace(
        one,
        queries={key: query for key, query in one.queries.items() if key in kept},
        candidates=one.candidates[one.candidates["query_id"].isin(kept)].reset_index(drop=True),
        qrels=one.qrels[one.qrels["query_id"].isin(kept)].reset_index(drop=True),
        groups={key: group for key, group in one.groups.items() if key in kept},
        clusters={key: cluster for key, cluster in one.clusters.items() if key in kept},
    )


def _read_folder(folder: Path, name: str, questions: int | None, depth: int) -> EvaluationSet:
    group = folder.name
    tables = {
        table: pd.read_parquet(folder / f"{table}.parquet")
        for table in ("queries", "passages", "candidates", "qrels")
    }
    asked = _evenly(sorted(set(tables["queries"]["query_id"])), questions)
    qrels = tables["qrels"][tables["qrels"]["query_id"].isin(asked)]
    right = qrels.groupby("query_id")["passage_id"].first().to_dict()
    candidates = tables["candidates"]
    candidates = candidates[candidates["query_id"].isin(asked) & (candidates["rank"] <= depth)]
    queries = tables["queries"][tables["queries"]["query_id"].isin(asked)]
    return EvaluationSet(
        name,
        {f"{group}/{key}": text for key, text in _pairs(queries, "query_id", "query")},
        {f"{group}/{key}": text for key, text in _pairs(tables["passages"], "passage_id", "passage")},
        _prefixed(candidates, group).assign(group=group),
        _prefixed(qrels, group),
        {f"{group}/{key}": group for key in queries["query_id"]},
        {f"{group}/{key}": _paragraph(name, key, passage) for key, passage in right.items()},
    )


def _paragraph(name: str, query: str, passage: str) -> str:
    """What a question has in common with others: XQuAD's paragraphs are numbered alike in all languages (`de-p7`)."""
    if name == CRANFIELD:
        return query
    return passage.rpartition("-")[2] if name in (XQUAD, CROSS) else passage


def _pairs(table: pd.DataFrame, key: str, value: str) -> Iterator[tuple[str, str]]:
    return zip(table[key], table[value], strict=True)


def _prefixed(table: pd.DataFrame, group: str) -> pd.DataFrame:
    return table.assign(
        query_id=f"{group}/" + table["query_id"].astype(str),
        passage_id=f"{group}/" + table["passage_id"].astype(str),
    )


def _evenly(ids: list[str], count: int | None) -> list[str]:
    if count is None or count >= len(ids):
        return ids
    return [ids[place] for place in np.linspace(0, len(ids) - 1, count).round().astype(int)]
