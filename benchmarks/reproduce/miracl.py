"""MIRACL's files of one language as tables: python benchmarks/reproduce/miracl.py FILES LANGUAGE FOLDER

Reads what the hub's data sets miracl/miracl and miracl/miracl-corpus hold, anywhere below FILES:

    topics.miracl-v1.0-LANGUAGE-dev.tsv     id, tab, question
    qrels.miracl-v1.0-LANGUAGE-dev.tsv      as TREC has them
    miracl-corpus-v1.0-LANGUAGE/docs-*.jsonl.gz   docid, title, text

Ids begin with the language (`sw|12#0`), so that all languages together are one set of tables.
"""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from rerank_udf.errors import InputError
from rerank_udf.formats.folders import LANG, PASSAGES, QRELS, QUERIES, TITLE, FolderWriter
from rerank_udf.formats.lines import Line, read_lines
from rerank_udf.tables import PASSAGE, PASSAGE_ID, QUERY, QUERY_ID, RELEVANCE


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("files", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("language")
@click.argument("folder", type=click.Path(path_type=Path))
def main(files: Path, language: str, folder: Path) -> None:
    """Write FOLDER/queries.parquet, passages.parquet and qrels.parquet of LANGUAGE's dev split (ar, bn, … zh)."""
    try:
        counts = tables(files, language, folder)
    except InputError as error:
        raise click.ClickException(str(error)) from None
    Console().print(f"{language}: " + " · ".join(f"{rows:,} {name}" for name, rows in counts.items()))


def tables(files: Path, language: str, folder: Path) -> dict[str, int]:
    """Write them; table → rows. Raises InputError for a file that is missing or a line that is not as described."""
    topics = _found(files, f"topics.miracl-v1.0-{language}-dev.tsv")[0]
    judged = _found(files, f"qrels.miracl-v1.0-{language}-dev.tsv")[0]
    corpus = _found(files, f"miracl-corpus-v1.0-{language}/docs-*.jsonl.gz")
    with FolderWriter(folder, overwrite=True) as written:
        queries = written.table(QUERIES, QUERY_ID, QUERY, LANG)
        for line in read_lines(topics):
            queries.add(*_question(line, language))
        passages = written.table(PASSAGES, PASSAGE_ID, TITLE, PASSAGE)
        for file in corpus:
            for line in read_lines(file):
                passages.add(*_passage(line, language))
        qrels = written.table(QRELS, QUERY_ID, PASSAGE_ID, RELEVANCE)
        for line in read_lines(judged):
            qrels.add(*_judgement(line, language))
    return written.rows()


def _found(files: Path, pattern: str) -> list[Path]:
    found = sorted(files.rglob(pattern))
    if not found:
        raise InputError(f"There is no {pattern} below {files}; download the language's files there first.")
    return found


def _question(line: Line, language: str) -> tuple[str, str, str]:
    key, text = line.fields("id question")
    return f"{language}|{key}", text, language


def _passage(line: Line, language: str) -> tuple[str, str, str]:
    record = line.record()
    key = line.identifier(record.get("docid"), "docid")
    title = line.string(record.get("title") or "", "title")
    return f"{language}|{key}", title, line.string(record.get("text"), "text")


def _judgement(line: Line, language: str) -> tuple[str, str, int]:
    query, _, passage, relevance = line.words("query Q0 passage relevance")
    return f"{language}|{query}", f"{language}|{passage}", line.whole_number(relevance, "relevance")


if __name__ == "__main__":
    main()
