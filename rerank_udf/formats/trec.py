"""TREC runs (`query Q0 passage rank score tag`) and qrels (`query 0 passage relevance`)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rerank_udf.errors import ConfigError, InputError
from rerank_udf.formats.folders import CANDIDATES, QRELS, FolderWriter, TableWriter, find_table, read_rows
from rerank_udf.formats.lines import Line, read_lines, shown, text_writer
from rerank_udf.formats.spool import ranked_queries
from rerank_udf.tables import PASSAGE_ID, QUERY_ID, RANK, RELEVANCE, SCORE

_FLOAT32_MAX = float(np.finfo(np.float32).max)


def read_trec_run(source: Path, target: Path, *, overwrite: bool = False) -> dict[str, int]:
    """A run → candidates (query_id, passage_id, score, rank).

    As for trec_eval, the score decides: `rank` counts from 1 by falling score. Where scores are equal the
    file's own rank decides, then the passage's id. The lines of a query must stand together. Holds one query
    at a time.
    """
    with FolderWriter(target, overwrite=overwrite) as folder:
        candidates = folder.table(CANDIDATES, QUERY_ID, PASSAGE_ID, SCORE, RANK)
        finished: set[str] = set()
        parsed = map(_parse_run_line, read_lines(source))
        for query_id, block in itertools.groupby(parsed, key=lambda found: found[0]):
            lines = list(block)
            if query_id in finished:
                expected = "all lines of a query together (sort -s -k1,1 does that)"
                raise lines[0][4].bad(f"query {query_id!r}, whose lines ended further up", expected)
            finished.add(query_id)
            _add_query(candidates, query_id, lines)
    return folder.rows()


def _parse_run_line(line: Line) -> tuple[str, str, int, float, Line]:
    query_id, _, passage_id, rank, score, _ = line.words("query Q0 passage rank score tag")
    return query_id, passage_id, line.whole_number(rank, "rank"), line.number_of(score, "score"), line


def _add_query(
    candidates: TableWriter, query_id: str, lines: Sequence[tuple[str, str, int, float, Line]]
) -> None:
    seen: set[str] = set()
    for _, passage_id, _, _, line in lines:
        if passage_id in seen:
            raise line.bad(
                f"passage {passage_id!r} a second time for query {query_id!r}", "each passage once"
            )
        seen.add(passage_id)
    for place, found in enumerate(sorted(lines, key=lambda f: (-f[3], f[2], f[1])), start=1):
        candidates.add(query_id, found[1], found[3], place)


def write_trec_run(
    source: Path, target: Path, *, tag: str = "rerank_udf", overwrite: bool = False
) -> dict[str, int]:
    """candidates (or a reranked table itself) → a run, by `rank`, with strictly decreasing scores.

    Raises InputError for an id that a field cannot hold (white space, NUL), ConfigError for such a tag.
    """
    if not _fits(tag):
        raise ConfigError(f"The tag {tag!r} cannot be a TREC field; a word without white space is expected.")
    rows = 0
    with text_writer(target, overwrite=overwrite) as stream:
        for query_id, passages in ranked_queries(source):
            _check_field(query_id, QUERY_ID)
            scores = decreasing_scores([score for _, score in passages])
            for place, ((passage_id, _), score) in enumerate(zip(passages, scores, strict=True), start=1):
                _check_field(passage_id, PASSAGE_ID)
                stream.write(f"{query_id} Q0 {passage_id} {place} {score!r} {tag}\n")
            rows += len(passages)
    return {target.name: rows}


def decreasing_scores(scores: Sequence[float | None]) -> list[float]:
    """Scores in rank order, made strictly decreasing, also for readers that keep float32 as trec_eval does.

    A score that is not below the one above is lowered to the next float32 below it; all others stay as they
    are. Where one is missing or not finite as float32, −rank stands for all of them.
    """
    places = [-float(place) for place in range(1, len(scores) + 1)]
    known = [float(s) for s in scores if s is not None and abs(s) < _FLOAT32_MAX]
    if len(known) < len(scores):
        return places
    rounded = np.asarray(known, dtype=np.float32)
    if (np.diff(rounded) < 0).all():
        return known
    limit, lowered = np.float32(np.inf), []
    for score in known:
        value = score if np.float32(score) < limit else float(np.nextafter(limit, np.float32(-np.inf)))
        limit = np.float32(value)
        lowered.append(value)
    return lowered if np.isfinite(lowered).all() else places


def read_trec_qrels(source: Path, target: Path, *, overwrite: bool = False) -> dict[str, int]:
    """qrels → qrels (query_id, passage_id, relevance). The second field is not kept."""
    with FolderWriter(target, overwrite=overwrite) as folder:
        qrels = folder.table(QRELS, QUERY_ID, PASSAGE_ID, RELEVANCE)
        for line in read_lines(source):
            query_id, _, passage_id, relevance = line.words("query 0 passage relevance")
            qrels.add(query_id, passage_id, line.whole_number(relevance, "relevance"))
    return folder.rows()


def write_trec_qrels(source: Path, target: Path, *, overwrite: bool = False) -> dict[str, int]:
    """qrels → qrels, in the table's order. Raises InputError for an id that a field cannot hold."""
    return write_qrels_lines(source, target, separator=" ", overwrite=overwrite)


def write_qrels_lines(source: Path, target: Path, *, separator: str, overwrite: bool) -> dict[str, int]:
    """qrels with the separator between the fields (MS MARCO's are TREC's with tabs)."""
    rows = 0
    with text_writer(target, overwrite=overwrite) as stream:
        path = find_table(source, QRELS, alone=True)
        for query_id, passage_id, relevance in read_rows(path, [QUERY_ID, PASSAGE_ID, RELEVANCE]):
            _check_field(query_id, QUERY_ID)
            _check_field(passage_id, PASSAGE_ID)
            stream.write(separator.join((query_id, "0", passage_id, str(relevance))) + "\n")
            rows += 1
    return {target.name: rows}


def _check_field(value: str, column: str) -> None:
    if not _fits(value):
        raise InputError(
            f"{column} {shown(value)} cannot be a TREC field, which ends at white space; give it an id without."
        )


def _fits(value: str) -> bool:
    # Python's readers split at any white space of Unicode, C's at ASCII's and end at NUL.
    return value.split() == [value] and "\0" not in value
