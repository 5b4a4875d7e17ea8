"""The retrieval sets that mini is trained on, read from a folder of them, with e5's vectors of every text.

Each set is a folder with queries, passages, candidates (BM25) and qrels in the job's own columns, and `lang` beside
each text.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from rerank_udf.errors import InputError
from rerank_udf.training.mini.encoders import PASSAGE, QUERY, BiEncoder, Vectors, cached_vectors
from rerank_udf.training.tables import stable_order

WIKIQA, AFRIQA_TRANSLATED = "en-wikiqa", "afriqa-translated"
SAME_LANGUAGE = (
    "ja-jaquad",
    "ja-jsquad",
    "zh-cmrc2018",
    "zh-drcd",
    "ko-korquad",
    "ar-arcd",
    "tr-tquad",
    "fa-persianqa",
    "vi-qa",
    "fr-cnil",
    "th-iapp",
    WIKIQA,
    AFRIQA_TRANSLATED,
)
_TABLES = ("queries", "passages", "candidates", "qrels")
AFRIQA, HELP = "afriqa-crosslingual", "help-crosslingual"
_NEAR_XQUAD = "what county is jacksonville florida in"  # nine of its sentences stand in XQuAD's paragraphs
_SEPARATOR = "[SEP]"  # between title and text in one of the sets
_MOST_PASSAGES = 4000  # of a set in one language: one set is as large as all others together


@dataclass(frozen=True)
class Collection:
    """One set: `queries` (query_id, query, lang), `passages` (passage_id, passage, lang), their unit vectors, `qrels`
    (relevant pairs alone) and `candidates` (BM25's: query_id, passage_id, score, rank).

    `query_vectors`, `passage_vectors`: float16 (n, 384), in the tables' order.
    """

    name: str
    queries: pd.DataFrame
    passages: pd.DataFrame
    qrels: pd.DataFrame
    candidates: pd.DataFrame
    query_vectors: Vectors
    passage_vectors: Vectors

    def cosines(
        self, queries: npt.NDArray[np.int64], passages: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float32]:
        """float32 (n,) of pairs given by their rows in the two tables."""
        left = self.query_vectors[queries].astype(np.float32)
        cosines: npt.NDArray[np.float32] = np.einsum(
            "ij,ij->i", left, self.passage_vectors[passages].astype(np.float32)
        )
        return cosines


def read_collection(data: Path, name: str, work: Path, encoder: BiEncoder) -> Collection:
    """Read one set from `data`/train; the vectors are kept in `work`. Raises InputError where it is not there."""
    folder = data / "train" / name
    if not folder.is_dir():
        raise InputError(
            f"there is no set {name} in {data / 'train'}: give the folder that holds the training sets"
        )
    tables = {one: pd.read_parquet(folder / f"{one}.parquet") for one in _TABLES}
    tables["passages"]["passage"] = tables["passages"]["passage"].str.replace(_SEPARATOR, "", regex=False)
    if name == WIKIQA:
        tables = _without_question(tables, _NEAR_XQUAD)
    tables["qrels"] = tables["qrels"].query("relevance > 0")
    if name in SAME_LANGUAGE and name != WIKIQA:
        tables = _first_passages(tables, _MOST_PASSAGES)
    queries, passages = tables["queries"], tables["passages"]
    vectors = [
        cached_vectors(encoder, list(texts), prefix, work / "vectors")
        for prefix, texts in ((QUERY, queries["query"]), (PASSAGE, passages["passage"]))
    ]
    return Collection(name=name, **tables, query_vectors=vectors[0], passage_vectors=vectors[1])


def _without_question(tables: dict[str, pd.DataFrame], text: str) -> dict[str, pd.DataFrame]:
    """Without the question and every passage that is judged for it, right or wrong. Raises InputError without it."""
    queries, qrels = tables["queries"], tables["qrels"]
    asked = queries["query_id"][queries["query"] == text]
    if asked.empty:
        raise InputError(
            f"no question {text!r} in the set: it is another version than the recipe was made with"
        )
    judged = qrels["passage_id"][qrels["query_id"].isin(asked)]
    found = {}
    for name, table in tables.items():
        gone = pd.Series(False, table.index)
        for column, ids in (("query_id", asked), ("passage_id", judged)):
            if column in table:
                gone |= table[column].isin(ids)
        found[name] = table[~gone].reset_index(drop=True)
    return found


def _first_passages(tables: dict[str, pd.DataFrame], most: int) -> dict[str, pd.DataFrame]:
    """The passages whose ids' digests come first, and what is about them."""
    passages, qrels, candidates = tables["passages"], tables["qrels"], tables["candidates"]
    if len(passages) <= most:
        return tables
    order = stable_order(list(passages["passage_id"]), seed=0)
    passages = passages.iloc[np.sort(order[:most])].reset_index(drop=True)
    qrels = qrels[qrels["passage_id"].isin(passages["passage_id"])]
    queries = tables["queries"]
    queries = queries[queries["query_id"].isin(qrels["query_id"])].reset_index(drop=True)
    kept = candidates["passage_id"].isin(passages["passage_id"])
    candidates = candidates[kept & candidates["query_id"].isin(queries["query_id"])].sort_values(
        ["query_id", "rank"]
    )
    candidates = candidates.assign(rank=candidates.groupby("query_id").cumcount() + 1)
    return {"queries": queries, "passages": passages, "qrels": qrels, "candidates": candidates}


def read_all(data: Path, work: Path, encoder: BiEncoder) -> Iterator[Collection]:
    """Every training set, each with its vectors (the first time: half an hour on two cores)."""
    for name in (*SAME_LANGUAGE, AFRIQA, HELP):
        yield read_collection(data, name, work, encoder)


def sentences_of(text: str) -> list[str]:
    """Sentences, as full stops have them."""
    return [one.strip() for one in text.replace("。", "。\n").replace(". ", ".\n").split("\n")]
