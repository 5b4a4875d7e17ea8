"""Rankings and qrels in: DataFrames, Arrow tables or Parquet, checked, with ids as numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from rerank_udf.errors import InputError
from rerank_udf.evaluation.significance import Ints
from rerank_udf.tables import PASSAGE_ID, QUERY_ID, RANK

TableLike: TypeAlias = "pd.DataFrame | pa.Table | str | Path"


@dataclass(frozen=True)
class Rows:
    """A checked table: distinct ids, and for each row the numbers of its ids and its rank or relevance."""

    queries: list[str]
    passages: list[str]
    query: Ints
    passage: Ints
    value: Ints


def load(source: TableLike, label: str, value: str) -> Rows:
    """A ranking (`value` is "rank") or qrels ("relevance"); `label` is what errors call it.

    Raises InputError for what breaks the contract: columns, types, nulls, duplicate pairs, ranks.
    """
    table = select(source, label, [QUERY_ID, PASSAGE_ID, value])
    ids = {c: string_ids(table, c, label) for c in (QUERY_ID, PASSAGE_ID)}
    kind = table.schema.field(value).type
    if not (pa.types.is_integer(kind) or pa.types.is_null(kind)):
        raise InputError(
            f"{label}: column {value!r} has the type {kind}; whole numbers are expected. "
            "(pandas turns whole numbers with gaps into float: drop those rows, then cast to int.)"
        )
    _check_no_nulls(table, ids, label, value)
    (queries, query), (passages, passage) = (_encode(column, label) for column in ids.values())
    rows = Rows(queries, passages, query, passage, table[value].to_numpy().astype(np.int64))
    _check_once(rows, query * len(passages) + passage, label, value, "stands there more than once; keep one")
    if value == RANK:
        _check_ranks(rows, label)
    return rows


def _encode(ids: pa.ChunkedArray, label: str) -> tuple[list[str], Ints]:
    encoded = ids.combine_chunks().dictionary_encode()
    try:
        return encoded.dictionary.to_pylist(), encoded.indices.to_numpy().astype(np.int64)
    except UnicodeDecodeError as problem:
        raise InputError(
            f"{label}: an id is not valid UTF-8: {problem}; write the ids again as text."
        ) from problem


def _check_ranks(rows: Rows, label: str) -> None:
    low = np.flatnonzero(rows.value < 1)
    if len(low):
        problem = "has a rank below 1; ranks count from 1"
        raise InputError(_about(rows, int(low[0]), len(low), label, RANK, problem))
    ranks = np.unique(rows.value, return_inverse=True)
    problem = "has a rank that another passage of the query has; an order without ties is expected"
    _check_once(rows, rows.query * len(ranks[0]) + ranks[1], label, RANK, problem)


def _check_once(rows: Rows, keys: Ints, label: str, value: str, problem: str) -> None:
    order = np.argsort(keys, kind="stable")
    again = order[1:][keys[order[1:]] == keys[order[:-1]]]
    if len(again):
        raise InputError(_about(rows, int(again.min()), len(again), label, value, problem))


def _about(rows: Rows, row: int, count: int, label: str, value: str, problem: str) -> str:
    ids = f"query_id {rows.queries[rows.query[row]]!r}, passage_id {rows.passages[rows.passage[row]]!r}"
    more = f" ({count:,} such rows)" if count > 1 else ""
    return f"{label}: {ids}, {value} {rows.value[row]} {problem}{more}."


def select(source: TableLike, label: str, columns: list[str] | None) -> pa.Table:
    """The columns (None: all) of a DataFrame, an Arrow table or a path to Parquet, as an Arrow table."""
    if isinstance(source, str | Path):
        opened = _open_parquet(Path(source), label)
    elif isinstance(source, pd.DataFrame | pa.Table):
        opened = source
    else:
        raise InputError(
            f"{label} is a {type(source).__name__}; a pandas DataFrame, a pyarrow Table or a path to Parquet "
            "is expected (a Spark DataFrame: write it, or call toPandas)."
        )
    known = list(opened.columns if isinstance(opened, pd.DataFrame) else opened.schema.names)
    absent = [c for c in columns or [QUERY_ID] if c not in known]
    if absent:
        have = ", ".join(map(str, known))
        raise InputError(f"{label} has no column {absent[0]!r}; it has {have}. Rename one or add it.")
    wanted = columns or known
    if isinstance(opened, pd.DataFrame):
        return _from_pandas(opened[wanted], label)
    return opened.select(wanted) if isinstance(opened, pa.Table) else opened.to_table(columns=wanted)


def _open_parquet(path: Path, label: str) -> Any:
    if not path.exists():
        raise InputError(f"{label}: there is no {path}; a Parquet file or a folder of them is expected.")
    try:
        return ds.dataset(path, format="parquet", partitioning="hive")
    except (pa.ArrowInvalid, OSError) as problem:
        raise InputError(f"{label}: {path} cannot be read as Parquet: {problem}") from problem


def _from_pandas(frame: pd.DataFrame, label: str) -> pa.Table:
    columns = {}
    for column in frame.columns:
        try:
            columns[column] = pa.array(frame[column], from_pandas=True)
        except (pa.ArrowInvalid, pa.ArrowTypeError, UnicodeEncodeError) as problem:
            raise InputError(f"{label}: column {column!r} is not of one type: {problem}") from problem
    return pa.table(columns)


def string_ids(table: pa.Table, column: str, label: str) -> pa.ChunkedArray:
    """A column of ids, strings or integers, as strings."""
    values = table[column]
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if not (pa.types.is_integer(values.type) or pa.types.is_null(values.type) or _is_text(values.type)):
        raise InputError(
            f"{label}: column {column!r} has the type {values.type}; ids are strings or integers. "
            "(pandas turns integers with gaps into float: drop those rows, then cast.)"
        )
    return values.cast(pa.large_string())


def _is_text(kind: pa.DataType) -> bool:
    is_view = getattr(pa.types, "is_string_view", lambda _: False)  # newer than the oldest pyarrow allowed
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or is_view(kind))


def _check_no_nulls(table: pa.Table, ids: Mapping[str, pa.ChunkedArray], label: str, value: str) -> None:
    for column in (QUERY_ID, PASSAGE_ID, value):
        nulls = table[column].null_count
        if nulls:
            row = pc.index(table[column].is_null(), True).as_py()
            where = ", ".join(f"{c} {a[row].as_py()!r}" for c, a in ids.items() if c != column)
            raise InputError(
                f"{label}: column {column!r} is null in {nulls:,} rows, first in row {row + 1} ({where}); "
                "drop those rows or give them a value."
            )
