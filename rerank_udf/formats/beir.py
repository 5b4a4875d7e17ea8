"""BEIR folders: corpus.jsonl, queries.jsonl, qrels/<split>.tsv."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rerank_udf.errors import InputError
from rerank_udf.formats.folders import PASSAGES, QRELS, QUERIES, TITLE, FolderWriter, find_table, read_rows
from rerank_udf.formats.lines import json_line, read_lines, shown, text_writer
from rerank_udf.tables import PASSAGE, PASSAGE_ID, QUERY, QUERY_ID, RELEVANCE

CORPUS_FILE = "corpus.jsonl"
QUERIES_FILE = "queries.jsonl"
_HEADER = "query-id\tcorpus-id\tscore"


def read_beir(source: Path, target: Path, *, split: str = "test", overwrite: bool = False) -> dict[str, int]:
    """A BEIR folder → passages (passage_id, title, passage), queries, and the qrels of one split.

    The title stays a column of its own: `passage_template: "{title} {passage}"` puts it in front. `metadata`
    is not kept. A folder without `qrels` gives no qrels table.
    """
    if not source.is_dir():
        raise InputError(f"{source} is not a folder; one with {CORPUS_FILE} and {QUERIES_FILE} is expected.")
    corpus, queries = _find(source, CORPUS_FILE), _find(source, QUERIES_FILE)
    qrels = _find_qrels(source / "qrels", split)
    with FolderWriter(target, overwrite=overwrite) as folder:
        passages = folder.table(PASSAGES, PASSAGE_ID, TITLE, PASSAGE)
        for key, title, text in _texts(corpus):
            passages.add(key, title, text)
        table = folder.table(QUERIES, QUERY_ID, QUERY)
        for key, _, text in _texts(queries):
            table.add(key, text)
        if qrels is not None:
            table = folder.table(QRELS, QUERY_ID, PASSAGE_ID, RELEVANCE)
            for judgement in _judgements(qrels):
                table.add(*judgement)
    return folder.rows()


def _texts(path: Path) -> Iterator[tuple[str, str, str]]:
    """(id, title, text)"""
    for line in read_lines(path):
        record = line.record()
        title = "" if record.get("title") is None else record["title"]
        key = line.identifier(record.get("_id"), "_id")
        yield key, line.string(title, "title"), line.string(record.get("text"), "text")


def _judgements(path: Path) -> Iterator[tuple[str, str, int]]:
    for line in read_lines(path):
        if line.number == 1:
            if line.text != _HEADER:
                raise line.bad(shown(line.text), f"the header {_HEADER!r}")
            continue
        query_id, passage_id, relevance = line.fields("query-id corpus-id score")
        yield (
            line.identifier(query_id, "query-id"),
            line.identifier(passage_id, "corpus-id"),
            line.whole_number(relevance, "score"),
        )


def _find(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise InputError(
        f"{folder} has no {name} (nor {name}.gz); a BEIR folder holds {CORPUS_FILE} and {QUERIES_FILE}."
    )


def _find_qrels(folder: Path, split: str) -> Path | None:
    if not folder.is_dir():
        return None
    for path in (folder / f"{split}.tsv", folder / f"{split}.tsv.gz"):
        if path.is_file():
            return path
    found = ", ".join(sorted(p.name.partition(".tsv")[0] for p in folder.glob("*.tsv*"))) or "none"
    raise InputError(f"{folder} has no split {split!r}; the splits there are: {found}.")


def write_beir(source: Path, target: Path, *, split: str = "test", overwrite: bool = False) -> dict[str, int]:
    """passages, queries and qrels → a BEIR folder. Columns that BEIR has no place for are not written.

    Raises InputError for an id that a line of the qrels cannot hold (tab, line break, a quote in front).
    """
    texts, queries = find_table(source, PASSAGES), find_table(source, QUERIES)
    qrels = find_table(source, QRELS)
    corpus_file, queries_file, qrels_file = CORPUS_FILE, QUERIES_FILE, f"qrels/{split}.tsv"
    rows = dict.fromkeys((corpus_file, queries_file, qrels_file), 0)
    # One `with`: the three appear together, or none of them.
    with (
        text_writer(target / corpus_file, overwrite=overwrite) as corpus,
        text_writer(target / queries_file, overwrite=overwrite) as questions,
        text_writer(target / qrels_file, overwrite=overwrite) as judgements,
    ):
        for key, text, title in read_rows(texts, [PASSAGE_ID, PASSAGE], [TITLE]):
            corpus.write(json_line({"_id": key, "title": title or "", "text": text}))
            rows[corpus_file] += 1
        for key, text in read_rows(queries, [QUERY_ID, QUERY]):
            questions.write(json_line({"_id": key, "text": text}))
            rows[queries_file] += 1
        judgements.write(_HEADER + "\n")
        for query_id, passage_id, relevance in read_rows(qrels, [QUERY_ID, PASSAGE_ID, RELEVANCE]):
            ids = f"{_field(query_id, QUERY_ID)}\t{_field(passage_id, PASSAGE_ID)}"
            judgements.write(f"{ids}\t{relevance}\n")
            rows[qrels_file] += 1
    return rows


def _field(value: str, column: str) -> str:
    # BEIR reads the qrels as CSV with tabs, where a quote in front opens a quoted field.
    if any(c in value for c in "\t\n\r") or value.startswith('"'):
        raise InputError(
            f"{column} {shown(value)} cannot stand in a tab-separated line; give it an id without tabs, line "
            "breaks and a quote in front."
        )
    return value
