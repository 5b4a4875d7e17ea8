"""mini's recipe over tables made of a small world: what one set holds out is in no other set's lists.

Every text names what it is about ("help-n3x", "th-iapp-n5x"), so that a list tells whether it shows something held out.
"""

import hashlib
import re

import numpy as np
import pandas as pd
import pytest

from rerank_udf.errors import InputError
from rerank_udf.training.lists import ListSampler
from rerank_udf.training.mini import held_out
from rerank_udf.training.mini.abstracts import SENTENCES, TITLES, TOPICS
from rerank_udf.training.mini.collections import (
    AFRIQA,
    AFRIQA_TRANSLATED,
    HELP,
    SAME_LANGUAGE,
    Collection,
    read_collection,
)
from rerank_udf.training.mini.recipe import recipe
from rerank_udf.training.mini.tables import write_tables
from rerank_udf.training.split import split
from rerank_udf.training.tables import read_tables

COUNT = 30
REST = "It is long enough to be asked about in a sentence, and it says so twice. " * 2


class Encoder:
    """Unit vectors that depend on the text alone."""

    def encode(self, texts, prefix=""):
        seeds = [int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) for text in texts]
        vectors = np.array([np.random.default_rng(seed).normal(size=8) for seed in seeds])
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


def collection(name, queries, passages, qrels):
    """The columns that the sets have; every query's candidates are all passages, in order."""
    queries = pd.DataFrame(queries, columns=["query_id", "query", "lang"])
    passages = pd.DataFrame(passages, columns=["passage_id", "passage", "lang"])
    pairs = queries[["query_id"]].merge(passages[["passage_id"]], how="cross")
    ranks = pairs.groupby("query_id").cumcount() + 1
    vectors = [Encoder().encode(texts) for texts in (list(queries["query"]), list(passages["passage"]))]
    qrels = pd.DataFrame(qrels, columns=["query_id", "passage_id"]).assign(relevance=1)
    return Collection(
        name, queries, passages, qrels, pairs.assign(score=1.0 / ranks, rank=ranks), vectors[0], vectors[1]
    )


def of_one_language(name, topic, lang):
    return collection(
        name,
        [(f"q{n}", f"what is {topic}-n{n}x", lang) for n in range(COUNT)],
        [(f"p{n}", f"About {topic}-n{n}x. {topic}-n{n}x is this: {REST}", lang) for n in range(COUNT)],
        [(f"q{n}", f"p{n}") for n in range(COUNT)],
    )


def help_pages():
    langs = ("de", "en", "fr")
    ids = [(lang, n) for n in range(COUNT) for lang in langs]
    lead = "Here help-n{n}x is told in {lang}."
    return collection(
        HELP,
        [(f"{lang}|page{n}|title", f"help-n{n}x {lang}", lang) for lang, n in ids]
        + [(f"{lang}|page{n}|lead", lead.format(n=n, lang=lang), lang) for lang, n in ids],
        [
            (f"{lang}|page{n}", f"{lead.format(n=n, lang=lang)} In {lang} help-n{n}x goes so. {REST}", lang)
            for lang, n in ids
        ],
        [
            (f"{lang}|page{n}|{kind}", f"{other}|page{n}")
            for kind in ("title", "lead")
            for lang, n in ids
            for other in langs
        ],
    )


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.setitem(held_out._PAGES, "share", 0.2)
    monkeypatch.setitem(held_out._PASSAGES, "share", 0.2)
    collections = [
        of_one_language(name, name, name[:2]) for name in SAME_LANGUAGE if name != AFRIQA_TRANSLATED
    ]
    collections += [of_one_language(name, "afriqa", "en") for name in (AFRIQA_TRANSLATED, AFRIQA)]
    collections += [of_one_language(name, name, "en") for name in (TITLES, TOPICS, SENTENCES)]
    write_tables([*collections, help_pages()], tmp_path, Encoder())
    return tmp_path


def about(*texts):
    return {one for text in texts for one in re.findall(r"[a-z0-9-]+-n\d+x", text)}


def test_what_a_set_holds_out_no_set_trains_on(work):
    config = recipe(work / "base", work, work / "model")
    sets = [read_tables(one) for one in config.sets]
    splits = [split(one, config.seed) for one in sets]
    hidden, measured = set(), {}
    for tables, divided in zip(sets, splits, strict=True):
        passages = [tables.passages.texts[row] for row in np.flatnonzero(divided.passages_held_out)]
        hidden |= about(*passages)
        measured[tables.settings.name] = about(*(tables.queries.texts[query] for query in divided.held_out))
    assert {one.rpartition("-n")[0] for one in hidden} == {
        "help",
        "afriqa",
        *(name for name in SAME_LANGUAGE if name != AFRIQA_TRANSLATED),
    }
    assert measured[AFRIQA] == measured[AFRIQA_TRANSLATED] == {one for one in hidden if "afriqa" in one}
    assert measured[HELP] == {one for one in hidden if "help" in one}
    lists = ListSampler(config, sets, splits, 3000)
    shown = {one.settings.name: set() for one in sets}
    for one in (lists[number] for number in range(len(lists))):
        shown[one.set_name] |= about(one.query, *one.passages)
    assert {name for name, texts in shown.items() if texts & hidden} == set()
    assert min(len(texts) for texts in shown.values()) > COUNT / 2


def test_the_question_that_is_near_xquad_is_left_out_with_its_sentences(tmp_path):
    folder = tmp_path / "train/en-wikiqa"
    folder.mkdir(parents=True)
    asked = ["what county is jacksonville florida in", "what county is galveston in"]
    tables = {
        "queries": pd.DataFrame({"query_id": ["q0", "q1"], "query": asked, "lang": "en"}),
        "passages": pd.DataFrame({"passage_id": list("abcd"), "passage": list("ABCD"), "lang": "en"}),
        "qrels": pd.DataFrame(
            {"query_id": ["q0", "q0", "q1", "q1"], "passage_id": list("abcd"), "relevance": [0, 1, 1, 0]}
        ),
        "candidates": pd.DataFrame(
            {
                "query_id": ["q0"] * 2 + ["q1"] * 3,
                "passage_id": list("abacd"),
                "score": 1.0,
                "rank": [1, 2, 1, 2, 3],
            }
        ),
    }
    for name, table in tables.items():
        table.to_parquet(folder / f"{name}.parquet", index=False)
    found = read_collection(tmp_path, "en-wikiqa", tmp_path, Encoder())
    assert list(found.queries["query"]) == asked[1:]
    assert list(found.passages["passage_id"]) == ["c", "d"]
    assert list(found.candidates["passage_id"]) == ["c", "d"]
    assert found.query_vectors.shape[0] == 1
    tables["queries"].iloc[1:].to_parquet(folder / "queries.parquet", index=False)
    with pytest.raises(InputError, match="no question 'what county is jacksonville florida in' in the set"):
        read_collection(tmp_path, "en-wikiqa", tmp_path, Encoder())
