"""Rankings and qrels in: DataFrames, Arrow tables or Parquet, checked, with ids as numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from rerank_udf.errors import InputError
from rerank_udf.evaluation import contract
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
        hint = "(pandas turns whole numbers with gaps into float: drop those rows, then cast to int.)"
        raise InputError(f"{contract.wrong_value_type(label, value, str(kind))} {hint}")
    _check_no_nulls(table, ids, label, value)
    rows = encoded(ids[QUERY_ID], ids[PASSAGE_ID], table[value], label)
    for problem, wrong in wrong_rows(rows, value == RANK):
        if len(wrong):
            row = int(wrong[0])
            about = (rows.queries[rows.query[row]], rows.passages[rows.passage[row]])
            raise InputError(
                contract.about_row(label, about, f"{value} {rows.value[row]}", problem, len(wrong))
            )
    return rows


def encoded(queries: pa.ChunkedArray, passages: pa.ChunkedArray, values: pa.ChunkedArray, label: str) -> Rows:
    """Columns without nulls as `Rows`; raises InputError where an id is not valid UTF-8."""
    (query_ids, query), (passage_ids, passage) = (_encode(column, label) for column in (queries, passages))
    return Rows(query_ids, passage_ids, query, passage, values.to_numpy().astype(np.int64))


def wrong_rows(rows: Rows, is_ranking: bool) -> Iterator[tuple[str, Ints]]:
    """Each problem that a table may have, and the rows that have it, in their order."""
    yield contract.MORE_THAN_ONCE, _repeated(rows.query * len(rows.passages) + rows.passage)
    if is_ranking:
        yield contract.BELOW_ONE, np.flatnonzero(rows.value < 1)
        ranks = np.unique(rows.value, return_inverse=True)
        yield contract.SAME_RANK, _repeated(rows.query * len(ranks[0]) + ranks[1])
    else:
        yield contract.TOO_RELEVANT, np.flatnonzero(rows.value > contract.MOST_RELEVANT)


def _encode(ids: pa.ChunkedArray, label: str) -> tuple[list[str], Ints]:
    found = ids.combine_chunks().dictionary_encode()
    try:
        return found.dictionary.to_pylist(), found.indices.to_numpy().astype(np.int64)
    except UnicodeDecodeError as problem:
        raise InputError(contract.not_utf8(label, problem)) from problem


def _repeated(keys: Ints) -> Ints:
    """The rows whose key an earlier row has."""
    order = np.argsort(keys, kind="stable")
    return np.sort(order[1:][keys[order[1:]] == keys[order[:-1]]])


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
        raise InputError(contract.missing_column(label, str(absent[0]), have))
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
        hint = "(pandas turns integers with gaps into float: drop those rows, then cast.)"
        raise InputError(f"{contract.wrong_id_type(label, column, str(values.type))} {hint}")
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
            example = f"first in row {row + 1} ({where})"
            raise InputError(contract.about_nulls(label, column, nulls, example))
