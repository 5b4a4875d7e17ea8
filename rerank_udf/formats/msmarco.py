"""MS MARCO's tab-separated files: queries, collection, top1000, qrels and run, one file each.

The format has no quoting, so a text with a tab or a line break has no place in it. By default such a text is an
error that names it; `replace_whitespace` writes a space for each of these characters instead, which changes the
text (and so its scores and keys) for good. Titles and other columns are not written.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rerank_udf.errors import InputError
from rerank_udf.formats.folders import (
    CANDIDATES,
    PASSAGES,
    QUERIES,
    FolderWriter,
    TableWriter,
    find_table,
    read_rows,
)
from rerank_udf.formats.lines import Line, read_lines, shown, text_writer
from rerank_udf.formats.spool import Spool, ranked_queries
from rerank_udf.formats.trec import read_trec_qrels, write_qrels_lines
from rerank_udf.tables import PASSAGE, PASSAGE_ID, QUERY, QUERY_ID, RANK

_BREAKS = str.maketrans("\t\n\r", "   ")


def read_msmarco_queries(source: Path, target: Path, *, overwrite: bool = False) -> dict[str, int]:
    """`query_id ⇥ query` → queries."""
    return _read_texts(source, target, QUERIES, (QUERY_ID, QUERY), overwrite)


def read_msmarco_collection(source: Path, target: Path, *, overwrite: bool = False) -> dict[str, int]:
    """`passage_id ⇥ passage` → passages."""
    return _read_texts(source, target, PASSAGES, (PASSAGE_ID, PASSAGE), overwrite)


def _read_texts(
    source: Path, target: Path, name: str, columns: tuple[str, str], overwrite: bool
) -> dict[str, int]:
    with FolderWriter(target, overwrite=overwrite) as folder:
        table = folder.table(name, *columns)
        for line in read_lines(source):
            key, text = line.fields(" ".join(columns))
            table.add(line.identifier(key, columns[0]), text)
    return folder.rows()


def read_msmarco_top1000(source: Path, target: Path, *, overwrite: bool = False) -> dict[str, int]:
    """`query_id ⇥ passage_id ⇥ query ⇥ passage` → candidates (no rank, no score), queries, passages.

    Raises InputError where an id comes back with another text.
    """
    with FolderWriter(target, overwrite=overwrite) as folder, Spool() as spool:
        candidates = folder.table(CANDIDATES, QUERY_ID, PASSAGE_ID)
        queries = folder.table(QUERIES, QUERY_ID, QUERY)
        passages = folder.table(PASSAGES, PASSAGE_ID, PASSAGE)
        for line in read_lines(source):
            query_id, passage_id, query, passage = line.fields("query_id passage_id query passage")
            candidates.add(line.identifier(query_id, QUERY_ID), line.identifier(passage_id, PASSAGE_ID))
            add_once(spool, queries, line, query_id, query)
            add_once(spool, passages, line, passage_id, passage)
    return folder.rows()


def add_once(spool: Spool, table: TableWriter, line: Line, key: str, text: str) -> None:
    """A row for an id that is new; raises InputError where the id has another text further up."""
    column = table.schema.names[0]
    try:
        if spool.is_new(column, key, text):
            table.add(key, text)
    except KeyError as problem:
        found = f"{column} {key!r} with {shown(text)}, and further up with another text"
        raise line.bad(found, "one text an id") from problem


def read_msmarco_qrels(source: Path, target: Path, *, overwrite: bool = False) -> dict[str, int]:
    """`query_id ⇥ 0 ⇥ passage_id ⇥ relevance`, which is TREC's form → qrels."""
    return read_trec_qrels(source, target, overwrite=overwrite)


def read_msmarco_run(source: Path, target: Path, *, overwrite: bool = False) -> dict[str, int]:
    """`query_id ⇥ passage_id ⇥ rank` → candidates (no score)."""
    with FolderWriter(target, overwrite=overwrite) as folder:
        candidates = folder.table(CANDIDATES, QUERY_ID, PASSAGE_ID, RANK)
        for line in read_lines(source):
            query_id, passage_id, rank = line.fields("query_id passage_id rank")
            place = line.whole_number(rank, "rank")
            if place < 1:
                raise line.bad(f"rank {place}", "a rank from 1")
            candidates.add(
                line.identifier(query_id, QUERY_ID), line.identifier(passage_id, PASSAGE_ID), place
            )
    return folder.rows()


def write_msmarco_queries(
    source: Path, target: Path, *, replace_whitespace: bool = False, overwrite: bool = False
) -> dict[str, int]:
    """queries → `query_id ⇥ query`."""
    clean = _cleaner(replace_whitespace)
    return _write_texts(find_table(source, QUERIES, alone=True), target, (QUERY_ID, QUERY), clean, overwrite)


def write_msmarco_collection(
    source: Path, target: Path, *, replace_whitespace: bool = False, overwrite: bool = False
) -> dict[str, int]:
    """passages → `passage_id ⇥ passage`."""
    clean = _cleaner(replace_whitespace)
    table = find_table(source, PASSAGES, alone=True)
    return _write_texts(table, target, (PASSAGE_ID, PASSAGE), clean, overwrite)


_Cleaner = Callable[[str, str, str], str]


def _cleaner(replace_whitespace: bool) -> _Cleaner:
    def clean(text: str, column: str, key: str) -> str:
        if replace_whitespace:
            return text.translate(_BREAKS)
        if any(c in text for c in "\t\n\r"):
            raise InputError(
                f"The {column} of id {shown(key)} has a tab or a line break, {shown(text)}, which MS MARCO's "
                "format cannot hold; write spaces instead (--replace-whitespace, in Python replace_whitespace=True), "
                "or choose another format."
            )
        return text

    return clean


def _write_texts(
    table: Path, target: Path, columns: tuple[str, str], clean: _Cleaner, overwrite: bool
) -> dict[str, int]:
    rows = 0
    with text_writer(target, overwrite=overwrite) as stream:
        for key, text in read_rows(table, columns):
            stream.write(f"{_identifier(key, columns[0])}\t{clean(text, columns[1], key)}\n")
            rows += 1
    return {target.name: rows}


def _identifier(key: str, column: str) -> str:
    # A changed id would be another id, so here nothing is replaced.
    if any(c in key for c in "\t\n\r"):
        raise InputError(f"{column} {shown(key)} has a tab or a line break; give it an id without.")
    return key


def write_msmarco_top1000(
    source: Path, target: Path, *, replace_whitespace: bool = False, overwrite: bool = False
) -> dict[str, int]:
    """candidates, queries, passages → `query_id ⇥ passage_id ⇥ query ⇥ passage`, in the candidates' order."""
    clean, rows = _cleaner(replace_whitespace), 0
    paths = {name: find_table(source, name) for name in (CANDIDATES, QUERIES, PASSAGES)}
    with text_writer(target, overwrite=overwrite) as stream, Spool() as spool:
        spool.add_texts(QUERIES, read_rows(paths[QUERIES], [QUERY_ID, QUERY]))
        spool.add_texts(PASSAGES, read_rows(paths[PASSAGES], [PASSAGE_ID, PASSAGE]))
        for query_id, passage_id in read_rows(paths[CANDIDATES], [QUERY_ID, PASSAGE_ID]):
            query = clean(spool.known_text(QUERIES, query_id), QUERY, query_id)
            passage = clean(spool.known_text(PASSAGES, passage_id), PASSAGE, passage_id)
            ids = f"{_identifier(query_id, QUERY_ID)}\t{_identifier(passage_id, PASSAGE_ID)}"
            stream.write(f"{ids}\t{query}\t{passage}\n")
            rows += 1
    return {target.name: rows}


def write_msmarco_qrels(source: Path, target: Path, *, overwrite: bool = False) -> dict[str, int]:
    """qrels → `query_id ⇥ 0 ⇥ passage_id ⇥ relevance`."""
    return write_qrels_lines(source, target, separator="\t", overwrite=overwrite)


def write_msmarco_run(source: Path, target: Path, *, overwrite: bool = False) -> dict[str, int]:
    """candidates (or a reranked table itself) → `query_id ⇥ passage_id ⇥ rank`, ranks without gaps."""
    rows = 0
    with text_writer(target, overwrite=overwrite) as stream:
        for query_id, passages in ranked_queries(source):
            for place, (passage_id, _) in enumerate(passages, start=1):
                ids = f"{_identifier(query_id, QUERY_ID)}\t{_identifier(passage_id, PASSAGE_ID)}"
                stream.write(f"{ids}\t{place}\n")
            rows += len(passages)
    return {target.name: rows}
