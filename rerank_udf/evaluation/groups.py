"""Which queries belong together: groups that are reported apart, clusters that are resampled as one."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from rerank_udf.errors import InputError
from rerank_udf.evaluation import contract
from rerank_udf.evaluation.loading import select, string_ids
from rerank_udf.evaluation.significance import Ints
from rerank_udf.evaluation.study import ALL, CLUSTER, SUMMARY_COLUMNS, VALUE
from rerank_udf.tables import QUERY_ID

NO_VALUE = "(none)"


@dataclass(frozen=True)
class _Group:
    label: str
    found: Mapping[str, str]  # grouping column → value; empty for "all"
    rows: Ints


@dataclass(frozen=True)
class Groups:
    """`frame`: one row a query, the grouping columns; `clusters`: one name a query."""

    frame: pd.DataFrame
    members: list[_Group]
    clusters: list[str]
    codes: Ints

    @staticmethod
    def of(query_ids: list[str], group_by: Any, clusters: Any) -> Groups:
        """From mappings or tables; raises InputError where they do not fit the queries."""
        frame = _attributes(query_ids, group_by, "group_by", "group")
        named_clusters = _attributes(query_ids, clusters, "clusters", CLUSTER)
        if named_clusters.shape[1] > 1:
            have = ", ".join(named_clusters.columns)
            raise InputError(f"clusters has the columns {have} beside query_id; one is expected.")
        names = named_clusters.iloc[:, 0].tolist() if named_clusters.shape[1] else query_ids
        if CLUSTER in frame and frame[CLUSTER].tolist() != names:
            raise InputError(contract.reserved_column("group_by", CLUSTER))
        return Groups.arranged(frame, names)

    @staticmethod
    def arranged(frame: pd.DataFrame, clusters: list[str]) -> Groups:
        """From what is known of each query, in the queries' order; `frame`: text, and perhaps no columns."""
        members = [_Group(ALL, {}, np.arange(len(clusters)))]
        rows_of: dict[tuple[str, ...], list[int]] = {}
        for row, found in enumerate(frame.itertuples(index=False, name=None)):
            rows_of.setdefault(found, []).append(row)
        for found in sorted(rows_of) if frame.shape[1] else []:
            named = dict(zip(frame.columns, found, strict=True))
            members.append(_Group(group_label(found), named, np.asarray(rows_of[found])))
        return Groups(frame, members, clusters, np.unique(clusters, return_inverse=True)[1])


def group_label(found: Sequence[str]) -> str:
    """What a group is called: its value in every grouping column; in brackets where that means every query."""
    label = " · ".join(found)
    return f"({label})" if label == ALL else label


def as_text(value: Any) -> str:
    """A group's or a cluster's value as it is shown; a moment in UTC, whatever the session's time zone."""
    if isinstance(value, datetime.datetime) and value.tzinfo is not None:
        value = value.astimezone(datetime.timezone.utc)
    return NO_VALUE if value is None else str(value)


def check_columns(group_by: Sequence[str], clusters: str | None) -> None:
    """Raise InputError for a column with the name of one of the evaluation's own."""
    named = [(name, "group_by") for name in group_by] + ([(clusters, "clusters")] if clusters else [])
    for name, label in named:
        if name in (*SUMMARY_COLUMNS, VALUE) or (name == CLUSTER != clusters):
            raise InputError(contract.reserved_column(label, name))


def _attributes(query_ids: list[str], source: Any, label: str, column: str) -> pd.DataFrame:
    """One row a query, in order; one string column an attribute; null is "(none)"."""
    if source is None:
        return pd.DataFrame(index=range(len(query_ids)))
    if isinstance(source, Mapping):
        keys, columns = [str(k) for k in source], {column: list(source.values())}
    else:
        table = select(source, label, None)
        keys = string_ids(table, QUERY_ID, label).to_pylist()
        columns = {c: table[c].to_pylist() for c in table.column_names if c != QUERY_ID}
    if not columns:
        raise InputError(f"{label} has the column {QUERY_ID} only; at least one more is expected.")
    taken = [c for c in columns if c in (*SUMMARY_COLUMNS, VALUE)]
    if taken:
        raise InputError(contract.reserved_column(label, taken[0]))
    row_of = {key: row for row, key in enumerate(keys)}
    if len(row_of) < len(keys):
        twice = next(k for row, k in enumerate(keys) if row_of[k] != row)
        raise InputError(contract.several_rows(label, twice))
    unknown = [q for q in query_ids if q not in row_of]
    if unknown:
        raise InputError(contract.without_attribute(label, len(unknown), unknown[0]))
    rows = [row_of[q] for q in query_ids]
    texts = {c: [as_text(v[r]) for r in rows] for c, v in columns.items()}
    return pd.DataFrame(texts, dtype=object)
