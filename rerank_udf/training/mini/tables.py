"""The tables that mini learns from, made out of the collections: e5 adds hard negatives and teaches."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from rerank_udf.training.mini.abstracts import SENTENCES, TITLES, TOPICS
from rerank_udf.training.mini.collections import AFRIQA, HELP, SAME_LANGUAGE, Collection, sentences_of
from rerank_udf.training.mini.encoders import PASSAGE, QUERY, BiEncoder, Vectors, cached_vectors
from rerank_udf.training.mini.held_out import without_held_out
from rerank_udf.training.tables import stable_order

E5, OWN, OTHER = "e5", "own", "other"
HELP_SENTENCES, HELP_TITLES = "help-sentences", "help-titles"
OWN_LEADS, OWN_SENTENCES = "help-own-leads", "help-own-sentences"
PROSE, PROSE_SENTENCES = "prose-crosslingual", "prose-sentences"
# question and right passage
IN_ONE_LANGUAGE = (*SAME_LANGUAGE, HELP_TITLES, OWN_LEADS, OWN_SENTENCES, TITLES, TOPICS)
_OWN_LANGUAGE, _OTHER_LANGUAGE, _UNLABELLED = 20, 20, 80  # candidates of e5 for a query
_PROSE_QUESTIONS = 30_000
_ENGLISH_SHARE = 0.5  # of them; the others are spread evenly over the languages
_SENTENCES = 12_000
_OWN_PAGES, _SHORTEST_PAGE = 6000, 120  # of a kind of question; characters beside the question itself
_SENTENCE_CHARACTERS = (25, 160)
_PROSE_SENTENCE_CHARACTERS = {"ja": (25, 110), "zh": (25, 110), "ko": (30, 140)}
_PROSE_SENTENCE_OTHERWISE = (60, 280)
_AT_ONCE = 1024
_AS_GOOD = 0.01  # of a cosine: nearly the same page, under another name
_MIXED = "en/fr"  # how one set calls its passages' language; most are English
_log = logging.getLogger(__name__)
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


def write_tables(collections: Sequence[Collection], work: Path, encoder: BiEncoder) -> None:
    """Every set as a folder of tables under `work`/sets; one that is there already is left."""
    named = {one.name: one for one in collections}
    for name in (*SAME_LANGUAGE, AFRIQA):
        _write(work, name, named[name], _top_of_all(named[name], _OWN_LANGUAGE))
    for name in (TITLES, TOPICS, SENTENCES):
        _write(work, name, named[name], _top_of_all(named[name], _UNLABELLED))
    asked, sentences = _titles_and_leads(named[HELP]), _sentences(named[HELP], work, encoder)
    for one in (asked, sentences):
        own = {OWN: _below_own_page(one, _OWN_LANGUAGE)}
        _write(work, one.name, one, _top_by_language(one, _OTHER_LANGUAGE), own)
    for one in (
        _titles(named[HELP]),
        own_pages(OWN_LEADS, asked, "|lead", work, encoder),
        own_pages(OWN_SENTENCES, sentences, "|sentence", work, encoder),
    ):
        other = {OTHER: _other_pages(one, _OTHER_LANGUAGE)}
        _write(work, one.name, one, _top_of_own_language(one, _OWN_LANGUAGE), other)
    prose = _prose([without_held_out(named[name]) for name in SAME_LANGUAGE])
    _write(work, prose.name, prose, _top_in_one_language(prose, _UNLABELLED))
    of_prose = _prose_sentences(prose, without_held_out(named[HELP]), work, encoder)
    _write(work, of_prose.name, of_prose, _top_of_own_language(of_prose, _UNLABELLED))


def _write(
    work: Path,
    name: str,
    one: Collection,
    e5: Iterator[tuple[Ints, Ints]],
    more: Mapping[str, Iterator[tuple[Ints, Ints]]] | None = None,
) -> None:
    """queries, passages, qrels, candidates (BM25, or e5 where there is none), e5, teacher, and `more` rankings.

    What is in one of the latter alone has no score of the teacher, which prefers the asker's language.
    """
    folder = work / "sets" / name
    if folder.is_dir():
        return
    _log.info(
        "tables of %s: %s queries, %s passages", name, f"{len(one.queries):,}", f"{len(one.passages):,}"
    )
    partial = folder.with_name(f".{name}")
    partial.mkdir(parents=True, exist_ok=True)
    found = _ranking(one, e5)
    has_bm25 = len(one.candidates) > 0
    pairs = [found, one.candidates, one.qrels] if has_bm25 else [found, one.qrels]
    teacher = pd.concat([part[["query_id", "passage_id"]] for part in pairs]).drop_duplicates()
    rows = _numbers(one, teacher)
    teacher = teacher.assign(score=one.cosines(*rows))
    tables = {
        "queries": one.queries,
        "passages": one.passages,
        "qrels": one.qrels,
        "candidates": one.candidates if has_bm25 else found,
        E5: found,
        "teacher": teacher,
    }
    tables |= {kind: _ranking(one, ranking) for kind, ranking in (more or {}).items()}
    for kind, table in tables.items():
        table.to_parquet(partial / f"{kind}.parquet", index=False)
    partial.rename(folder)


def _numbers(one: Collection, pairs: pd.DataFrame) -> tuple[Ints, Ints]:
    queries = pd.Index(one.queries["query_id"]).get_indexer(pairs["query_id"])
    return queries, pd.Index(one.passages["passage_id"]).get_indexer(pairs["passage_id"])


def _ranking(one: Collection, found: Iterator[tuple[Ints, Ints]]) -> pd.DataFrame:
    """From (queries, passages) in rank order, numbers in the tables: query_id, passage_id, score, rank."""
    parts = list(found)
    queries, passages = (np.concatenate([part[side] for part in parts]) for side in (0, 1))
    frame = pd.DataFrame(
        {
            "query_id": one.queries["query_id"].to_numpy()[queries],
            "passage_id": one.passages["passage_id"].to_numpy()[passages],
            "score": one.cosines(queries, passages),
        }
    )
    frame["rank"] = frame.groupby("query_id").cumcount() + 1
    return frame


def _all_cosines(queries: Vectors, passages: Vectors) -> Iterator[Floats]:
    """float32 (queries, passages), some queries at a time."""
    right = passages.astype(np.float32).T
    for start in range(0, len(queries), _AT_ONCE):
        yield queries[start : start + _AT_ONCE].astype(np.float32) @ right


def _nearest(queries: Vectors, passages: Vectors, count: int) -> Ints:
    """The `count` nearest passages of each query, nearest first: int64 (queries, count)."""
    parts = []
    for cosines in _all_cosines(queries, passages):
        most = min(count, cosines.shape[1])
        near = np.argpartition(-cosines, most - 1, axis=1)[:, :most]
        order = np.argsort(-np.take_along_axis(cosines, near, 1), axis=1, kind="stable")
        parts.append(np.take_along_axis(near, order, 1))
    return np.concatenate(parts).astype(np.int64)


def _top_of_all(one: Collection, count: int) -> Iterator[tuple[Ints, Ints]]:
    near = _nearest(one.query_vectors, one.passage_vectors, count)
    yield np.repeat(np.arange(len(near)), near.shape[1]), near.ravel()


def _top_by_language(one: Collection, count: int) -> Iterator[tuple[Ints, Ints]]:
    """Of every language but the query's own, where the query has an answer in it."""
    langs = one.passages["lang"].to_numpy()
    answered = set(zip(*_query_and_language(one), strict=True))
    for lang in sorted(set(langs)):
        wanted = (one.queries["lang"] != lang) & np.array(
            [(q, lang) in answered for q in one.queries["query_id"]]
        )
        queries, passages = np.flatnonzero(wanted), np.flatnonzero(langs == lang)
        if len(queries):
            near = _nearest(one.query_vectors[queries], one.passage_vectors[passages], count)
            yield np.repeat(queries, near.shape[1]), passages[near].ravel()


def _below_own_page(one: Collection, count: int) -> Iterator[tuple[Ints, Ints]]:
    """Of the query's own language, what is less like it than the page that it was taken from.

    Wrong, therefore, in every language: what is above that page may be another page with the same answer.
    """
    source = pd.Index(one.passages["passage_id"]).get_indexer(_pages(one.queries))
    for queries, passages in _in_own_language(one):
        own = iter(zip(queries, np.searchsorted(passages, source[queries]), strict=True))
        for block in _all_cosines(one.query_vectors[queries], one.passage_vectors[passages]):
            for cosines, (query, page) in zip(block, own, strict=False):
                order = np.argsort(-cosines, kind="stable")
                below = order[cosines[order] < cosines[page] - _AS_GOOD][:count]
                yield np.full(len(below), query), passages[below]


def _top_of_own_language(one: Collection, count: int) -> Iterator[tuple[Ints, Ints]]:
    for queries, passages in _in_own_language(one):
        near = _nearest(one.query_vectors[queries], one.passage_vectors[passages], count)
        yield np.repeat(queries, near.shape[1]), passages[near].ravel()


def _in_own_language(one: Collection) -> Iterator[tuple[Ints, Ints]]:
    """By language: the rows of its queries and of its passages."""
    of_queries, of_passages = one.queries["lang"].to_numpy(), one.passages["lang"].to_numpy()
    for lang in sorted(set(of_queries)):
        yield np.flatnonzero(of_queries == lang), np.flatnonzero(of_passages == lang)


def _query_and_language(one: Collection) -> tuple[list[str], list[str]]:
    langs = one.passages.set_index("passage_id")["lang"]
    return one.qrels["query_id"].tolist(), langs.loc[one.qrels["passage_id"]].tolist()


def _top_in_one_language(one: Collection, count: int) -> Iterator[tuple[Ints, Ints]]:
    """Each query's nearest in one language that is not its own, chosen by a stable hash."""
    langs = one.passages["lang"].to_numpy()
    names = sorted(set(langs))
    order = stable_order(list(one.queries["query_id"]), seed=3)
    turns = np.empty(len(order), np.int64)
    turns[order] = np.arange(len(order))
    own = one.queries["lang"].to_numpy()
    target = np.array([_not(own[i], names, int(turn)) for i, turn in enumerate(turns)])
    for lang in names:
        queries, passages = np.flatnonzero(target == lang), np.flatnonzero(langs == lang)
        if len(queries):
            near = _nearest(one.query_vectors[queries], one.passage_vectors[passages], count)
            yield np.repeat(queries, near.shape[1]), passages[near].ravel()


def _not(own: str, names: Sequence[str], turn: int) -> str:
    others = [name for name in names if name != own]
    return others[turn % len(others)]


def _other_pages(one: Collection, count: int) -> Iterator[tuple[Ints, Ints]]:
    """Each question's nearest pages in one language that is not its own, without the page itself: all wrong."""
    page = one.passages["passage_id"].str.split("|", n=1).str[1].to_numpy()
    asked = _pages(one.queries).str.split("|", n=1).str[1].to_numpy()
    for queries, passages in _top_in_one_language(one, count + 1):
        wrong = page[passages] != asked[queries]
        yield queries[wrong], passages[wrong]


def _pages(queries: pd.DataFrame) -> pd.Series:
    """The passage that each of the help pages' questions was taken from."""
    return queries["query_id"].str.rsplit("|", n=1).str[0]


def _titles(one: Collection) -> Collection:
    """Help pages asked for by their titles, in the titles' own language."""
    rows = np.flatnonzero(one.queries["query_id"].str.endswith("|title"))
    queries = one.queries.iloc[rows].reset_index(drop=True)
    own = pd.DataFrame({"query_id": queries["query_id"], "passage_id": _pages(queries)})
    asked = one.candidates["query_id"].isin(queries["query_id"])
    return Collection(
        HELP_TITLES,
        queries,
        one.passages,
        one.qrels.merge(own),
        one.candidates[asked],
        one.query_vectors[rows],
        one.passage_vectors,
    )


def own_pages(name: str, one: Collection, kind: str, work: Path, encoder: BiEncoder) -> Collection:
    """Help pages asked for, in their own language, by a text that was cut out of them.

    The wrong pages are cut likewise, so that none is wrong because it is whole. A page keeps its id.
    """
    rows = np.flatnonzero(one.queries["query_id"].str.endswith(kind))
    rows = rows[stable_order(list(one.queries["query_id"].iloc[rows]), seed=6)]
    queries = one.queries.iloc[rows]
    pages = one.passages.set_index("passage_id").loc[_pages(queries)].reset_index()
    texts = zip(pages["passage"], queries["query"], strict=True)
    pages["passage"] = [" ".join(page.replace(question, " ", 1).split()) for page, question in texts]
    kept = np.flatnonzero((pages["passage"].str.len() >= _SHORTEST_PAGE).to_numpy())[:_OWN_PAGES]
    queries, pages = (table.iloc[kept].reset_index(drop=True) for table in (queries, pages))
    return Collection(
        name,
        queries,
        pages,
        pd.DataFrame({"query_id": queries["query_id"], "passage_id": pages["passage_id"], "relevance": 1}),
        one.candidates.iloc[:0],
        one.query_vectors[rows[kept]],
        cached_vectors(encoder, list(pages["passage"]), PASSAGE, work / "vectors"),
    )


def _titles_and_leads(one: Collection) -> Collection:
    """Help pages asked about in another language: the collection's own questions, without BM25's own-language list."""
    return _replaced(one, one.name, one.queries, one.qrels, one.query_vectors)


def _replaced(
    one: Collection, name: str, queries: pd.DataFrame, qrels: pd.DataFrame, vectors: Vectors
) -> Collection:
    return Collection(
        name, queries, one.passages, qrels, one.candidates.iloc[:0], vectors, one.passage_vectors
    )


def _sentences(one: Collection, work: Path, encoder: BiEncoder) -> Collection:
    """A sentence of a page as the question, the same page in other languages as its answers."""
    pages = one.passages
    page_of = pages["passage_id"].str.split("|", n=1).str[1]
    others = pages.assign(page=page_of).groupby("page")["passage_id"].agg(list)
    chosen = stable_order(list(pages["passage_id"]), seed=4)
    queries: list[tuple[str, str, str]] = []
    qrels: list[tuple[str, str, int]] = []
    for row in chosen.tolist():
        passage_id, text, lang = pages.iloc[row][["passage_id", "passage", "lang"]]
        found = [
            s for s in sentences_of(text)[1:] if _SENTENCE_CHARACTERS[0] <= len(s) <= _SENTENCE_CHARACTERS[1]
        ]
        answers = [other for other in others[page_of.iloc[row]] if other != passage_id]
        if found and answers and len(queries) < _SENTENCES:
            query_id = f"{passage_id}|sentence"
            queries.append((query_id, found[row % len(found)], lang))
            qrels += [(query_id, answer, 1) for answer in answers]
    asked = pd.DataFrame(queries, columns=["query_id", "query", "lang"])
    vectors = cached_vectors(encoder, list(asked["query"]), QUERY, work / "vectors")
    judged = pd.DataFrame(qrels, columns=["query_id", "passage_id", "relevance"])
    return _replaced(one, HELP_SENTENCES, asked, judged, vectors)


def _prose(collections: Sequence[Collection]) -> Collection:
    """Questions of all sets over the passages of all sets; nothing is judged, e5 alone says what is near."""
    queries = pd.concat([_prefixed(one, one.queries, "query_id") for one in collections], ignore_index=True)
    passages = pd.concat(
        [_prefixed(one, one.passages, "passage_id") for one in collections], ignore_index=True
    )
    passages["lang"] = passages["lang"].replace(_MIXED, "en")
    vectors = np.concatenate([one.query_vectors for one in collections])
    order = stable_order(list(queries["query_id"]), seed=2)
    langs = queries["lang"].to_numpy()[order]
    shares = {lang: (1 - _ENGLISH_SHARE) / (len(set(langs)) - 1) for lang in set(langs)} | {
        "en": _ENGLISH_SHARE
    }
    chosen = [
        order[langs == lang][: round(share * _PROSE_QUESTIONS)] for lang, share in sorted(shares.items())
    ]
    rows = np.sort(np.concatenate(chosen))
    return Collection(
        PROSE,
        queries.iloc[rows].reset_index(drop=True),
        passages,
        pd.DataFrame({"query_id": [], "passage_id": [], "relevance": []}),
        pd.DataFrame({"query_id": [], "passage_id": [], "score": [], "rank": []}),
        vectors[rows],
        np.concatenate([one.passage_vectors for one in collections]),
    )


def _prose_sentences(prose: Collection, help_pages: Collection, work: Path, encoder: BiEncoder) -> Collection:
    """A sentence of a passage over the passages of its language without that one; nothing is judged."""
    passages = pd.concat(
        [prose.passages, _prefixed(help_pages, help_pages.passages, "passage_id")], ignore_index=True
    )
    passage_vectors = np.concatenate([prose.passage_vectors, help_pages.passage_vectors])
    order = stable_order(list(passages["passage_id"]), seed=5)
    # every other one is asked about, and not among what is searched
    source, searched = np.sort(order[::2]), np.sort(order[1::2])
    queries: list[tuple[str, str, str]] = []
    for row in source.tolist():
        passage_id, text, lang = passages.iloc[row][["passage_id", "passage", "lang"]]
        shortest, longest = _PROSE_SENTENCE_CHARACTERS.get(lang, _PROSE_SENTENCE_OTHERWISE)
        found = [one for one in sentences_of(text) if shortest <= len(one) <= longest]
        if found:
            queries.append((f"{passage_id}|sentence", found[row % len(found)], lang))
    asked = pd.DataFrame(queries, columns=["query_id", "query", "lang"])
    return Collection(
        PROSE_SENTENCES,
        asked,
        passages.iloc[searched].reset_index(drop=True),
        prose.qrels,
        prose.candidates,
        cached_vectors(encoder, list(asked["query"]), QUERY, work / "vectors"),
        passage_vectors[searched],
    )


def _prefixed(one: Collection, table: pd.DataFrame, column: str) -> pd.DataFrame:
    return table.assign(**{column: f"{one.name}/" + table[column]})
