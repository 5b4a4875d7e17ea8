"""The queries whose figure changed most, with their first passages before and after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rerank_udf.page.numbers import short


@dataclass(frozen=True)
class Shown:
    """A passage at its place: `mark` and `judged` say what the judgements hold of it."""

    place: str
    note: str
    passage_id: str
    passage: str
    mark: str
    judged: str


@dataclass(frozen=True)
class Changed:
    """A query, what its figure was and is, and its first passages in both orders."""

    query_id: str
    query: str
    before: str
    after: str
    gain: float
    first_stage: tuple[Shown, ...]
    reranked: tuple[Shown, ...]


def changed_of(evaluation: Mapping[str, Any]) -> list[Changed]:
    """`changed` of evaluation.json, in its order."""
    return [
        Changed(
            query_id=one["query_id"],
            query=one["query"],
            before=short(one["before"]),
            after=short(one["after"]),
            gain=one["after"] - one["before"],
            first_stage=tuple(_before(passage) for passage in one["first_stage"]),
            reranked=tuple(_after(passage) for passage in one["reranked"]),
        )
        for one in evaluation["changed"]
    ]


def _before(passage: Mapping[str, Any]) -> Shown:
    now = "cut" if passage["rank"] is None else f"now {passage['rank']:,}"
    return _shown(passage, passage["first_stage_rank"], now)


def _after(passage: Mapping[str, Any]) -> Shown:
    was = "–" if passage["first_stage_rank"] is None else f"{passage['first_stage_rank']:,}"
    score = "" if passage["score"] is None else f" · score {short(passage['score'])}"
    return _shown(passage, passage["rank"], f"was {was}{score}")


def _shown(passage: Mapping[str, Any], place: int, note: str) -> Shown:
    grade = passage["relevance"]
    if grade is None:
        mark, judged = "", "not judged"
    else:  # a grade below 0, as TREC has, is one of what is not relevant
        mark, judged = ("✓", f"relevant, {grade}") if grade > 0 else ("✗", "not relevant")
    return Shown(f"{place:,}", note, passage["passage_id"], passage["passage"], mark, judged)
