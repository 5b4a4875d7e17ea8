"""FlagEmbedding's training lines: {"query", "pos", "neg"}, with scores and ids where there are any."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rerank_udf.errors import InputError
from rerank_udf.formats.folders import (
    CANDIDATES,
    PASSAGES,
    QRELS,
    QUERIES,
    FolderWriter,
    find_table,
    read_rows,
)
from rerank_udf.formats.lines import Line, json_line, read_lines, shown, text_writer
from rerank_udf.formats.msmarco import add_once
from rerank_udf.formats.spool import Spool
from rerank_udf.identity import text_key
from rerank_udf.tables import PASSAGE, PASSAGE_ID, QUERY, QUERY_ID, RANK, RELEVANCE, SCORE

_KEYS = {"pos": 1, "neg": 0}


def read_flagembedding(source: Path, target: Path, *, overwrite: bool = False) -> dict[str, int]:
    """JSON lines → queries, passages, candidates (`score` where the file has scores), qrels (1 and 0).

    Ids are the file's `query_id`, `pos_id`, `neg_id`, else the first 32 hex digits of the text's sha256, so
    that equal texts are one passage. A pair that comes again is kept once; one that is both positive and
    negative is an InputError. There is no `rank`: positives stand first in a line, which is no one's ranking.
    Other keys (`prompt`, `type`) are not kept.
    """
    with_scores = _has_scores(source)
    with FolderWriter(target, overwrite=overwrite) as folder, Spool() as spool:
        queries = folder.table(QUERIES, QUERY_ID, QUERY)
        passages = folder.table(PASSAGES, PASSAGE_ID, PASSAGE)
        qrels = folder.table(QRELS, QUERY_ID, PASSAGE_ID, RELEVANCE)
        candidates = folder.table(CANDIDATES, QUERY_ID, PASSAGE_ID, *([SCORE] if with_scores else []))
        for line in read_lines(source):
            record = line.record()
            query = line.string(record.get("query"), "query")
            query_id = _identifier(line, record.get("query_id"), "query_id", query)
            add_once(spool, queries, line, query_id, query)
            for passage_id, passage, relevance, score in _passages(line, record, with_scores):
                add_once(spool, passages, line, passage_id, passage)
                if _is_new(spool, line, query_id, passage_id, relevance, passage):
                    qrels.add(query_id, passage_id, relevance)
                    candidates.add(query_id, passage_id, *([score] if with_scores else []))
    return folder.rows()


def _has_scores(source: Path) -> bool:
    first = next(read_lines(source), None)
    return first is not None and any(first.record().get(f"{key}_scores") is not None for key in _KEYS)


def _passages(
    line: Line, record: dict[str, Any], with_scores: bool
) -> Iterator[tuple[str, str, int, float | None]]:
    """(passage_id, passage, relevance, score) of one line."""
    for key, relevance in _KEYS.items():
        texts = _list(line, record, key)
        ids = _beside(line, record, f"{key}_id", len(texts))
        scores = _beside(line, record, f"{key}_scores", len(texts))
        if texts and (scores is not None) != with_scores:
            there, above = ("without", "with") if with_scores else ("with", "without")
            raise line.bad(f"{key!r} {there} {key}_scores", f"every line {above}, as the first is,")
        for at, value in enumerate(texts):
            text = line.string(value, key)
            passage_id = _identifier(line, None if ids is None else ids[at], f"{key}_id", text)
            yield (
                passage_id,
                text,
                relevance,
                None if scores is None else line.number_of(scores[at], f"{key}_scores"),
            )


def _list(line: Line, record: dict[str, Any], key: str) -> list[Any]:
    found = record.get(key)
    if found is None and key == "neg":
        return []
    if not isinstance(found, list):
        raise line.bad(f"{key!r} {shown(found)}", "a list of texts")
    return found


def _beside(line: Line, record: dict[str, Any], key: str, count: int) -> list[Any] | None:
    found = record.get(key)
    if found is not None and not (isinstance(found, list) and len(found) == count):
        raise line.bad(f"{key!r} {shown(found)}", f"a list of {count}, one for each text,")
    return found


def _identifier(line: Line, given: Any, what: str, text: str) -> str:
    return text_key(text).hex() if given is None else line.identifier(given, what)


def _is_new(spool: Spool, line: Line, query_id: str, passage_id: str, relevance: int, passage: str) -> bool:
    try:
        return spool.label(query_id, passage_id, relevance)
    except KeyError as problem:
        found = f"a passage both positive and negative for its query, {shown(passage)}"
        raise line.bad(found, "it on one side") from problem


def write_flagembedding(
    source: Path, target: Path, *, scores: bool = False, overwrite: bool = False
) -> dict[str, int]:
    """queries, passages, candidates, qrels → JSON lines with `query_id`, `pos_id` and `neg_id` beside the texts.

    `pos`: relevance 1 and above. `neg`: the query's candidates that are not, in rank order where there is one.
    A query without positives teaches nothing and is left out. With `scores` the candidates' `score` is written
    as `pos_scores` and `neg_scores`, which FlagEmbedding takes for a teacher's. Raises InputError for a passage
    or query without text, and with `scores` for a positive without score.
    """
    paths = {name: find_table(source, name) for name in (QUERIES, PASSAGES, CANDIDATES, QRELS)}
    rows = 0
    with text_writer(target, overwrite=overwrite) as stream, Spool() as spool:
        spool.add_texts(PASSAGES, read_rows(paths[PASSAGES], [PASSAGE_ID, PASSAGE]))
        columns = read_rows(paths[CANDIDATES], [QUERY_ID, PASSAGE_ID], [RANK, SCORE])
        spool.add_pairs((q, at if rank is None else rank, p, s) for at, (q, p, rank, s) in enumerate(columns))
        judged: dict[str, list[str]] = {}
        for query_id, passage_id, relevance in read_rows(paths[QRELS], [QUERY_ID, PASSAGE_ID, RELEVANCE]):
            if relevance > 0:
                judged.setdefault(query_id, []).append(passage_id)
        for query_id, query in read_rows(paths[QUERIES], [QUERY_ID, QUERY]):
            if query_id in judged:
                stream.write(json_line(_record(spool, query_id, query, judged.pop(query_id), scores)))
                rows += 1
        for query_id in judged:
            raise InputError(
                f"qrels name query_id {query_id!r}, which queries does not have; add its text, or drop its rows"
                + (f" ({len(judged):,} such queries)." if len(judged) > 1 else ".")
            )
    return {target.name: rows}


def _record(spool: Spool, query_id: str, query: str, positives: list[str], scores: bool) -> dict[str, Any]:
    known = dict(spool.pairs_of(query_id))
    sides = {"pos": positives, "neg": [p for p in known if p not in set(positives)]}
    record: dict[str, Any] = {"query": query}
    record |= {key: [spool.known_text(PASSAGES, p) for p in ids] for key, ids in sides.items()}
    if scores:
        for key, ids in sides.items():
            absent = [p for p in ids if known.get(p) is None]
            if absent:
                where = f"query_id {query_id!r}, passage_id {absent[0]!r}"
                raise InputError(f"candidates have no score for {where}; add it, or write without scores.")
            record[f"{key}_scores"] = [known[p] for p in ids]
    return record | {"query_id": query_id} | {f"{key}_id": ids for key, ids in sides.items()}
