"""MIRACL's files of one language as tables: python benchmarks/reproduce/miracl.py FILES LANGUAGE FOLDER

Reads what the hub's data sets miracl/miracl and miracl/miracl-corpus hold, anywhere below FILES:

    topics.miracl-v1.0-LANGUAGE-dev.tsv     id, tab, question
    qrels.miracl-v1.0-LANGUAGE-dev.tsv      as TREC has them
    miracl-corpus-v1.0-LANGUAGE/docs-*.jsonl.gz   docid, title, text

Ids begin with the language (`sw|12#0`), so that all languages together are one set of tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import click
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from rerank_udf.errors import InputError
from rerank_udf.formats.lines import Line, read_lines

ROWS_AT_ONCE = 100_000
TABLES = {
    "queries": ("query_id", "query", "lang"),
    "passages": ("passage_id", "title", "passage"),
    "qrels": ("query_id", "passage_id", "relevance"),
}


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
    folder.mkdir(parents=True, exist_ok=True)
    rows = {
        "queries": (_question(line, language) for line in read_lines(topics)),
        "passages": (_passage(line, language) for file in corpus for line in read_lines(file)),
        "qrels": (_judgement(line, language) for line in read_lines(judged)),
    }
    return {name: _write(folder / f"{name}.parquet", TABLES[name], rows[name]) for name in TABLES}


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


def _write(path: Path, names: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> int:
    schema = pa.schema([(name, pa.int64() if name == "relevance" else pa.string()) for name in names])
    count = 0
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for block in _blocks(rows):
            columns = [
                pa.array(column, field.type)
                for column, field in zip(zip(*block, strict=True), schema, strict=True)
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))
            count += len(block)
    return count


def _blocks(rows: Iterable[tuple[Any, ...]]) -> Iterator[list[tuple[Any, ...]]]:
    waiting = iter(rows)
    while block := list(islice(waiting, ROWS_AT_ONCE)):
        yield block


if __name__ == "__main__":
    main()
