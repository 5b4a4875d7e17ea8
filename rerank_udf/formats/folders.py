"""Parquet folders: queries.parquet, passages.parquet, candidates.parquet, qrels.parquet, in bounded memory."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from rerank_udf.errors import InputError
from rerank_udf.formats.lines import check_free, make_folder, shown, unfinished_path
from rerank_udf.tables import PASSAGE, PASSAGE_ID, QUERY, QUERY_ID, RANK, RELEVANCE, SCORE

QUERIES = "queries"
PASSAGES = "passages"
CANDIDATES = "candidates"
QRELS = "qrels"
TITLE = "title"
LANG = "lang"

TYPES = {
    QUERY_ID: pa.string(),
    PASSAGE_ID: pa.string(),
    QUERY: pa.string(),
    PASSAGE: pa.string(),
    TITLE: pa.string(),
    LANG: pa.string(),
    SCORE: pa.float64(),
    RANK: pa.int64(),
    RELEVANCE: pa.int64(),
}
KEYS = {
    QUERIES: (QUERY_ID,),
    PASSAGES: (PASSAGE_ID,),
    CANDIDATES: (QUERY_ID, PASSAGE_ID),
    QRELS: (QUERY_ID, PASSAGE_ID),
}
_ROWS_AT_ONCE = 100_000
_ROWS_READ_AT_ONCE = 5_000
_CHARACTERS_AT_ONCE = 32_000_000


class TableWriter:
    """Rows in, one Parquet file out, a row group at a time."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.schema = pa.schema([(c, TYPES[c]) for c in columns])
        self.rows = 0
        self._held: list[tuple[Any, ...]] = []
        self._characters = 0
        self._writer = pq.ParquetWriter(path, self.schema, compression="zstd")

    def add(self, *values: Any) -> None:
        """One row, in the order of the columns."""
        self._held.append(values)
        self._characters += sum(len(v) for v in values if isinstance(v, str))
        if len(self._held) >= _ROWS_AT_ONCE or self._characters >= _CHARACTERS_AT_ONCE:
            self._flush()

    def close(self, *, whole: bool) -> None:
        """End the file; rows still held are written where it is to be whole."""
        if whole:
            self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._held:
            columns = zip(*self._held, strict=True)
            arrays = [pa.array(c, f.type) for c, f in zip(columns, self.schema, strict=True)]
            self._writer.write_table(pa.Table.from_arrays(arrays, schema=self.schema))
        self.rows += len(self._held)
        self._held, self._characters = [], 0


class FolderWriter:
    """Tables of one folder: they appear together when the block ends well, and not at all otherwise.

    Their keys are checked first: a duplicate is an InputError that names it.
    """

    def __init__(self, folder: Path, *, overwrite: bool) -> None:
        self.folder = folder
        self.overwrite = overwrite
        self._writers: dict[str, TableWriter] = {}

    def __enter__(self) -> FolderWriter:
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(
                f"{self.folder} is a file; a folder for the tables is expected. Give another target."
            )
        make_folder(self.folder)
        return self

    def table(self, name: str, *columns: str) -> TableWriter:
        """A new table of these columns, with their types from `TYPES`."""
        check_free(self._path(name), overwrite=self.overwrite)
        self._writers[name] = TableWriter(unfinished_path(self._path(name)), columns)
        return self._writers[name]

    def rows(self) -> dict[str, int]:
        """Table → rows written; complete after the block."""
        return {name: writer.rows for name, writer in self._writers.items()}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            for writer in self._writers.values():
                writer.close(whole=kind is None)
            if kind is None:
                for name in self._writers:
                    _check_keys(unfinished_path(self._path(name)), name)
                for name in self._writers:
                    unfinished_path(self._path(name)).replace(self._path(name))
        finally:
            for name in self._writers:
                unfinished_path(self._path(name)).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.parquet"


def _check_keys(path: Path, name: str) -> None:
    """Raises InputError for a key that stands in the table twice. Holds the ids, never the texts."""
    table = pq.read_table(path, columns=list(KEYS[name]))
    numbers = np.zeros(table.num_rows, dtype=np.int64)
    for column in table.columns:
        encoded = column.cast(pa.large_string()).combine_chunks().dictionary_encode()
        numbers = numbers * max(1, len(encoded.dictionary)) + encoded.indices.to_numpy().astype(np.int64)
    order = np.argsort(numbers, kind="stable")
    again = order[1:][numbers[order[1:]] == numbers[order[:-1]]]
    if len(again):
        key = table.slice(int(again.min()), 1).to_pylist()[0]
        named = ", ".join(f"{k} {v!r}" for k, v in key.items())
        raise InputError(f"{name}: {named} stands there twice ({len(again):,} such rows); keep one of each.")


def find_table(source: Path, name: str, *, alone: bool = False) -> Path:
    """The Parquet file or folder of a table; `alone`: `source` may be that table itself.

    Raises InputError where it is not there, with what is, and for a Delta or Iceberg table, whose folder also holds
    rows that are deleted.
    """
    path = _found_table(source, name, alone)
    if (path / "_delta_log").is_dir() or any((path / "metadata").glob("*.metadata.json")):
        raise InputError(
            f"{path} is a Delta or Iceberg table, whose files hold deleted rows too; let Spark write its rows as plain "
            "Parquet, and convert that."
        )
    return path


def _found_table(source: Path, name: str, alone: bool) -> Path:
    places = {t: [p for p in (source / f"{t}.parquet", source / t) if p.exists()] for t in KEYS}
    if places[name]:
        return places[name][0]
    published = published_version(source) if alone else None
    if published is not None:
        return published
    a_table = source.is_file() or (not any(places.values()) and any(source.rglob("*.parquet")))
    if alone and a_table:
        return source
    if not source.exists():
        raise InputError(f"There is no {source}; a folder with {name}.parquet is expected.")
    found = ", ".join(sorted(p.name for p in source.iterdir())) if source.is_dir() else "a file"
    raise InputError(
        f"{source} has no {name}.parquet, which this format needs; there is {found or 'nothing'}."
    )


def published_version(source: Path) -> Path | None:
    """The version that a job's output folder points to; None where it is no such folder.

    Raises InputError where there are several, of different run dates.
    """
    pointers = sorted((source / "_current").glob("*.json"))
    latest = source / "_current/latest.json"
    chosen = [latest] if latest in pointers else pointers
    versions = [source / "_versions" / json.loads(one.read_text("utf-8"))["version"] for one in chosen]
    if len(versions) > 1:
        raise InputError(
            f"{source} has a table for each of {len(versions)} run dates; give one by its own path, such as "
            f"{versions[-1]}."
        )
    return versions[0] if versions else None


def read_rows(path: Path, columns: Sequence[str], optional: Sequence[str] = ()) -> Iterator[tuple[Any, ...]]:
    """Rows of a table in the order of its files: `columns`, then `optional` (None where there is none).

    Ids come as strings. Raises InputError for a column that is missing, of the wrong type or null.
    """
    for file in sorted(_dataset(path).files):
        with pq.ParquetFile(file) as parquet:
            known = parquet.schema_arrow.names
            absent = [c for c in columns if c not in known]
            if absent:
                raise InputError(f"{file} has no column {absent[0]!r}; it has {', '.join(known)}.")
            present = [c for c in (*columns, *optional) if c in known]
            for column in present:
                _check_type(file, column, parquet.schema_arrow.field(column).type)
            start = 0
            for batch in parquet.iter_batches(batch_size=_ROWS_READ_AT_ONCE, columns=present):
                values = {
                    c: _values(file, c, batch.column(c), start, may_be_null=c in optional) for c in present
                }
                nothing = [None] * batch.num_rows
                yield from zip(*(values.get(c, nothing) for c in (*columns, *optional)), strict=True)
                start += batch.num_rows


def has_column(path: Path, column: str) -> bool:
    """Whether a table has a column."""
    return column in _dataset(path).schema.names


def _dataset(path: Path) -> Any:
    try:
        return ds.dataset(path, format="parquet")
    except (pa.ArrowInvalid, OSError) as problem:
        raise InputError(f"{path} cannot be read as Parquet: {problem}") from problem


def _check_type(file: str, column: str, kind: pa.DataType) -> None:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    is_view = getattr(pa.types, "is_string_view", lambda _: False)  # newer than the oldest pyarrow allowed
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or is_view(kind)
    whole = pa.types.is_integer(kind)
    expected, fits = {
        QUERY_ID: ("a string or a whole number", text or whole),
        PASSAGE_ID: ("a string or a whole number", text or whole),
        SCORE: ("a number", whole or pa.types.is_floating(kind)),
        RANK: ("a whole number", whole),
        RELEVANCE: ("a whole number", whole),
    }.get(column, ("a string", text))
    if not (fits or pa.types.is_null(kind)):
        raise InputError(f"{file}: column {column!r} has the type {kind}; {expected} is expected.")


def _values(file: str, column: str, array: pa.Array, start: int, *, may_be_null: bool) -> list[Any]:
    if array.null_count and not may_be_null:
        row = start + pc.index(array.is_null(), True).as_py() + 1
        raise InputError(f"{file}: column {column!r} is null in row {row}; drop the row or give it a value.")
    try:
        values: list[Any] = array.to_pylist()
    except UnicodeDecodeError as problem:
        where = f"rows {start + 1} to {start + len(array)}"
        raise InputError(f"{file}: column {column!r} is not valid UTF-8 in {where}: {problem}") from problem
    if column in (QUERY_ID, PASSAGE_ID):
        values = [str(v) for v in values]
        if "" in values:
            raise InputError(
                f"{file}: column {column!r} is {shown('')} in row {start + values.index('') + 1}."
            )
    return values
