"""What is wrong with a ranking or with qrels, as sentences; whoever finds it, in a frame or in Spark, says the same."""

from __future__ import annotations

from collections.abc import Mapping

from rerank_udf.tables import QUERY_ID

MORE_THAN_ONCE = "stands there more than once; keep one"
BELOW_ONE = "has a rank below 1; ranks count from 1"
MOST_RELEVANT = 1_000_000  # a measure counts grades in an array of so many places
TOO_RELEVANT = f"has a grade above {MOST_RELEVANT:,}; scale the grades down"
SAME_RANK = "has a rank that another passage of the query has; an order without ties is expected"
NO_QRELS = "qrels has no rows; at least one judged passage is needed to measure anything."


def about_row(label: str, ids: tuple[str, str], value: str, problem: str, count: int) -> str:
    """One row (`ids`: query and passage; `value`: "rank 3") and how many others have the same problem."""
    more = f" ({count:,} such rows)" if count > 1 else ""
    return f"{label}: query_id {ids[0]!r}, passage_id {ids[1]!r}, {value} {problem}{more}."


def about_nulls(label: str, column: str, count: int, example: str) -> str:
    """Rows without a value; `example` says where one of them is."""
    return f"{label}: column {column!r} is null in {count:,} rows, {example}; drop those rows or give them a value."


def missing_column(label: str, column: str, have: str) -> str:
    """A table without a column that it needs."""
    return f"{label} has no column {column!r}; it has {have}. Rename one or add it."


def wrong_value_type(label: str, column: str, kind: str) -> str:
    """A rank or a relevance that is no whole number."""
    return f"{label}: column {column!r} has the type {kind}; whole numbers are expected."


def wrong_id_type(label: str, column: str, kind: str) -> str:
    """An id that is neither text nor a whole number."""
    return f"{label}: column {column!r} has the type {kind}; ids are strings or integers."


def not_utf8(label: str, problem: UnicodeDecodeError) -> str:
    """An id whose bytes are no text."""
    return f"{label}: an id is not valid UTF-8: {problem}; write the ids again as text."


def no_common_query(of_qrels: str, of_rankings: Mapping[str, str | None]) -> str:
    """Qrels of another collection: their first query_id, and by label that of each ranking, None where it is empty."""
    found = ", ".join(
        f"the {label} " + ("is empty" if first is None else f"has {first!r}")
        for label, first in of_rankings.items()
    )
    return (
        f"The qrels name no query of any ranking: the first query_id of the qrels is {of_qrels!r}, {found}. "
        "Check that all are of one collection."
    )


def without_attribute(label: str, count: int, first: str) -> str:
    """Queries that belong to no group or cluster."""
    return (
        f"{label} says nothing of {count:,} queries of the qrels, the first {first!r}; "
        "every evaluated query needs a row."
    )


def reserved_column(label: str, column: str) -> str:
    """A grouping column that would hide one of the evaluation's own."""
    return f"{label} has a column {column!r}, a name that the evaluation needs for itself; rename it."


def several_rows(label: str, query: str | None) -> str:
    """A query that belongs to two groups at once."""
    return f"{label}: {QUERY_ID} {query!r} stands there more than once; keep one."


def several_values(label: str, column: str, query: str, values: tuple[str, str]) -> str:
    """A query whose rows do not agree on its group."""
    one, other = values
    return (
        f"{label}: column {column!r} has several values for {QUERY_ID} {query!r}, {one!r} and {other!r}; "
        "one for a query is expected."
    )
