"""The shipped demo tables against their YAML source, and BM25 against a second implementation of it."""

from __future__ import annotations

import importlib.util
import math
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from tokenizers import Regex
from tokenizers.pre_tokenizers import Split

from rerank_udf import demo

SOURCE = Path(demo.__file__).parent / "source"
RETRIEVED = 20
Row = dict[str, Any]


@pytest.fixture(scope="module")
def make_tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_tables", SOURCE / "make_tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_tables"] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def files() -> list[Row]:
    return [yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(SOURCE.glob("*.yaml"))]


@pytest.fixture(scope="module")
def tables() -> dict[str, pa.Table]:
    return {name: pq.read_table(path) for name, path in demo.tables().items()}


@pytest.fixture(scope="module")
def rows(tables: dict[str, pa.Table]) -> dict[str, list[Row]]:
    return {name: table.to_pylist() for name, table in tables.items()}


def by_query(candidates: list[Row]) -> dict[str, list[Row]]:
    grouped: dict[str, list[Row]] = {}
    for row in candidates:
        grouped.setdefault(row["query_id"], []).append(row)
    return grouped


def test_the_tables_have_the_columns_that_the_docstring_lists(tables: dict[str, pa.Table]) -> None:
    text, number, count = pa.string(), pa.float64(), pa.int32()
    expected = {
        "queries": dict.fromkeys(["query_id", "query", "lang", "kind"], text),
        "passages": dict.fromkeys(["passage_id", "title", "passage", "lang", "topic"], text),
        "candidates": {
            "query_id": text,
            "passage_id": text,
            "score": number,
            "rank": count,
            "bm25_score": number,
            "e5_score": number,
        },
        "qrels": {"query_id": text, "passage_id": text, "relevance": count},
    }
    assert {
        name: {field.name: field.type for field in table.schema} for name, table in tables.items()
    } == expected
    nulls = {
        (name, column)
        for name, table in tables.items()
        for column in table.column_names
        if table[column].null_count
    }
    assert nulls == {("candidates", "bm25_score")}


def test_the_passages_are_those_of_the_source(files: list[Row], rows: dict[str, list[Row]]) -> None:
    written = [
        {
            "passage_id": one["id"],
            "title": one["title"],
            "passage": one["text"],
            "lang": file["lang"],
            "topic": one["topic"],
        }
        for file in files
        for one in file["passages"]
    ]
    assert rows["passages"] == sorted(written, key=lambda one: one["passage_id"])


def test_the_questions_and_their_judgements_are_those_of_the_source(
    files: list[Row], rows: dict[str, list[Row]]
) -> None:
    asked = [(one, file["lang"]) for file in files for one in file["questions"]]
    assert {(row["query_id"], row["query"], row["lang"]) for row in rows["queries"]} == {
        (one["id"], one["query"], lang) for one, lang in asked
    }
    judged = [(one["id"], passage, grade) for one, _ in asked for passage, grade in one["qrels"].items()]
    assert [tuple(row.values()) for row in rows["qrels"]] == sorted(judged)


def test_a_question_of_the_other_language_has_no_full_answer_in_its_own(rows: dict[str, list[Row]]) -> None:
    lang_of = {row["passage_id"]: row["lang"] for row in rows["passages"]}
    answers: dict[str, set[str]] = {}
    for row in rows["qrels"]:
        if row["relevance"] == 2:
            answers.setdefault(row["query_id"], set()).add(lang_of[row["passage_id"]])
    for row in rows["queries"]:
        expected = "same language" if row["lang"] in answers[row["query_id"]] else "other language"
        assert row["kind"] == expected, row["query_id"]


def test_the_corpus_is_as_large_and_mixed_as_promised(rows: dict[str, list[Row]]) -> None:
    assert len(rows["passages"]) >= 160
    assert len({row["lang"] for row in rows["passages"]}) >= 11
    assert len(rows["queries"]) >= 84
    kinds = Counter(row["kind"] for row in rows["queries"])
    assert kinds["other language"] >= len(rows["queries"]) / 3
    assert {row["relevance"] for row in rows["qrels"]} == {1, 2}
    assert sum(path.stat().st_size for path in demo.tables().values()) < 1_000_000


@pytest.mark.parametrize(("table", "column"), [("queries", "query"), ("passages", "passage")])
def test_no_text_is_written_twice(rows: dict[str, list[Row]], table: str, column: str) -> None:
    texts = [row[column] for row in rows[table]]
    assert len(set(texts)) == len(texts)
    assert all(text == text.strip() and "  " not in text for text in texts)


def test_candidates_name_known_ids_once_and_every_question_has_some(rows: dict[str, list[Row]]) -> None:
    queries = {row["query_id"] for row in rows["queries"]}
    passages = {row["passage_id"] for row in rows["passages"]}
    pairs = [(row["query_id"], row["passage_id"]) for row in rows["candidates"]]
    assert len(set(pairs)) == len(pairs)
    assert {query for query, _ in pairs} == queries
    assert {passage for _, passage in pairs} <= passages


def test_ranks_count_from_one_down_the_scores(rows: dict[str, list[Row]]) -> None:
    for query_id, candidates in by_query(rows["candidates"]).items():
        assert [row["rank"] for row in candidates] == list(range(1, len(candidates) + 1)), query_id
        order = sorted(candidates, key=lambda row: (-row["score"], row["passage_id"]))
        assert candidates == order, query_id
        assert RETRIEVED <= len(candidates) <= 2 * RETRIEVED
        assert all(-1 <= row["e5_score"] == row["score"] <= 1 for row in candidates)


def tokens(text: str) -> list[str]:
    """Words as a regular expression has them: letters, marks, digits, underscore; bigrams in unspaced scripts."""
    word = Regex(r"[\p{L}\p{M}\p{N}_]+")
    unspaced = Regex(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Thai}ー]+")
    found = []
    for run, _ in Split(word, "removed", invert=True).pre_tokenize_str(text.lower()):
        for part, _ in Split(unspaced, "isolated").pre_tokenize_str(run):
            cut = Split(unspaced, "removed").pre_tokenize_str(part) == [] and len(part) > 1
            found += [part[at : at + 2] for at in range(len(part) - 1)] if cut else [part]
    return found


def bm25(
    queries: list[list[str]], documents: list[list[str]], k1: float = 1.5, b: float = 0.75
) -> list[list[float]]:
    """BM25 with Lucene's idf, summed over the words of a query (Kamphuis et al., ECIR 2020)."""
    mean_length = sum(map(len, documents)) / len(documents)
    holding = Counter(word for document in documents for word in set(document))
    norms = [k1 * (1 - b + b * len(document) / mean_length) for document in documents]
    counts = [Counter(document) for document in documents]

    def weight(word: str, document: int) -> float:
        idf = math.log(1 + (len(documents) - holding[word] + 0.5) / (holding[word] + 0.5))
        return idf * counts[document][word] / (counts[document][word] + norms[document])

    return [[sum(weight(word, one) for word in query) for one in range(len(documents))] for query in queries]


@pytest.fixture(scope="module")
def scores(rows: dict[str, list[Row]]) -> dict[str, dict[str, float]]:
    """BM25 of every question and passage, by this file's own implementation."""
    documents = [tokens(f"{row['title']} {row['passage']}") for row in rows["passages"]]
    ids = [row["passage_id"] for row in rows["passages"]]
    found = bm25([tokens(row["query"]) for row in rows["queries"]], documents)
    return {
        row["query_id"]: dict(zip(ids, one, strict=True))
        for row, one in zip(rows["queries"], found, strict=True)
    }


def test_the_bm25_scores_are_those_of_a_second_implementation(
    rows: dict[str, list[Row]], scores: dict[str, dict[str, float]]
) -> None:
    shipped = [row["bm25_score"] or 0.0 for row in rows["candidates"]]
    expected = [scores[row["query_id"]][row["passage_id"]] for row in rows["candidates"]]
    np.testing.assert_allclose(shipped, expected, atol=1e-3)
    assert [row["bm25_score"] is None for row in rows["candidates"]] == [one == 0 for one in expected]


def test_the_best_of_bm25_are_all_candidates(
    rows: dict[str, list[Row]], scores: dict[str, dict[str, float]]
) -> None:
    for query_id, candidates in by_query(rows["candidates"]).items():
        chosen = {row["passage_id"] for row in candidates}
        best = sorted((score for score in scores[query_id].values() if score > 0), reverse=True)[:RETRIEVED]
        clearly_best = {one for one, score in scores[query_id].items() if best and score > best[-1] + 1e-3}
        assert clearly_best <= chosen, query_id


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("What's the FEE_2?", ["what", "s", "the", "fee_2"]),
        ("फ़ीस कितनी", ["फ़ीस", "कितनी"]),
        ("ที่นี่", ["ที", "ี่", "่น", "นี", "ี่"]),
        ("用MoraCard坐地铁", ["用", "moracard", "坐地", "地铁"]),
        ("ロッカー 3つ", ["ロッ", "ッカ", "カー", "3", "つ"]),
        ("", []),
    ],
)
def test_words_keep_their_marks_and_unspaced_scripts_become_bigrams(
    make_tables: ModuleType, text: str, expected: list[str]
) -> None:
    assert make_tables.words(text) == expected


def test_making_the_texts_and_judgements_again_gives_the_shipped_tables(
    make_tables: ModuleType, tables: dict[str, pa.Table]
) -> None:
    made = make_tables.texts_and_judgements(make_tables.read_corpus())
    assert {name: table.equals(tables[name]) for name, table in made.items()} == dict.fromkeys(made, True)


def test_making_the_candidates_again_from_their_scores_keeps_their_order(
    make_tables: ModuleType, rows: dict[str, list[Row]]
) -> None:
    """The embeddings are not made again here: passages that were no candidates get a cosine below all others."""
    corpus = make_tables.read_corpus()
    row_of = {(row["query_id"], row["passage_id"]): row for row in rows["candidates"]}
    pairs = [
        [row_of.get((one.query_id, two.passage_id)) for two in corpus.passages] for one in corpus.questions
    ]
    e5 = np.array([[row["e5_score"] if row else -1.0 for row in line] for line in pairs])
    lexical = np.array([[(row["bm25_score"] or 0.0) if row else 0.0 for row in line] for line in pairs])
    assert make_tables.candidates(corpus, lexical, e5).to_pylist() == rows["candidates"]


@pytest.mark.parametrize(
    ("qrels", "sentence"),
    [
        ({"xx-nothing": 2}, "judges xx-nothing, which is no passage"),
        ({"en-renew": 3}, "grades en-renew 3"),
        ({"en-renew": 1}, "has no passage of grade 2"),
    ],
)
def test_a_wrong_judgement_in_the_source_is_an_error(
    make_tables: ModuleType, qrels: dict[str, int], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        make_tables.question({"id": "q-en-x", "query": "?", "qrels": qrels}, "en", {"en-renew": "en"})


def test_an_id_given_twice_in_the_source_is_an_error(make_tables: ModuleType, tmp_path: Path) -> None:
    passage = {"id": "en-a", "topic": "t", "title": "t", "text": "t"}
    (tmp_path / "en.yaml").write_text(
        yaml.safe_dump({"lang": "en", "passages": [passage] * 2, "questions": []})
    )
    with pytest.raises(ValueError, match="en-a"):
        make_tables.read_corpus(tmp_path)
