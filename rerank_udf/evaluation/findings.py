"""What parts of a large evaluation report beside their values: counts that add up, and what is wrong with the rows.

A part says what it found instead of failing, so that the sentence in the end names all rows and the first of them,
whatever part they stood in.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from rerank_udf.evaluation import contract
from rerank_udf.tables import PASSAGE_ID, QUERY_ID


@dataclass
class Problem:
    """One problem of one table. `place`: the table's number, then the check's; the lowest is told.

    `kind`: "null", "row", "absent", "several" or "text". `first`: of the rows that have it, the first by id.
    """

    place: tuple[int, int]
    label: str
    column: str
    kind: str
    count: int
    first: tuple[Any, ...]
    what: str = ""

    def sentence(self) -> str:
        """What an InputError says of it."""
        if self.kind == "null":
            ids = zip((QUERY_ID, PASSAGE_ID), self.first, strict=False)
            where = ", ".join(f"{name} {value!r}" for name, value in ids if name != self.column)
            return contract.about_nulls(self.label, self.column, self.count, f"such as ({where})")
        if self.kind == "row":
            query, passage, value = self.first
            shown = f"{self.column} {value}"
            return contract.about_row(self.label, (query, passage), shown, self.what, self.count)
        if self.kind == "absent":
            return contract.without_attribute(self.label, self.count, self.first[0])
        if self.kind == "several":
            query, *values = self.first
            return contract.several_values(self.label, self.column, query, (values[0], values[1]))
        return self.what


@dataclass
class Findings:
    """Of one part, or of several together. `first`: by label, the smallest query_id of the qrels and each ranking."""

    counts: Counter[str] = field(default_factory=Counter)
    depth: int = 1
    first: dict[str, str] = field(default_factory=dict)
    problems: dict[tuple[int, int], Problem] = field(default_factory=dict)

    def add(self, problem: Problem) -> None:
        """Count it to what is known of the same table and check."""
        known = self.problems.get(problem.place)
        if known is not None:
            problem.count += known.count
            problem.first = min(problem.first, known.first, key=_in_order)
        self.problems[problem.place] = problem

    def see(self, table: str, queries: Iterable[str]) -> None:
        """Remember the smallest query_id of a table."""
        known = [self.first[table]] if table in self.first else []
        smallest = min([*queries, *known], default=None)
        if smallest is not None:
            self.first[table] = smallest

    def merge(self, other: Findings) -> None:
        """Add what another part found."""
        self.counts.update(other.counts)
        self.depth = max(self.depth, other.depth)
        for table, query in other.first.items():
            self.see(table, [query])
        for problem in other.problems.values():
            self.add(problem)

    def forget(self, kind: str) -> None:
        """Leave out the problems of this kind."""
        self.problems = {place: one for place, one in self.problems.items() if one.kind != kind}

    def worst(self) -> str | None:
        """The sentence of the problem to tell; None where there is none."""
        return self.problems[min(self.problems)].sentence() if self.problems else None

    def to_json(self) -> str:
        """As text, for a column."""
        problems = [asdict(problem) for problem in self.problems.values()]
        return json.dumps(
            {"counts": self.counts, "depth": self.depth, "first": self.first, "problems": problems}
        )

    @staticmethod
    def from_json(text: str) -> Findings:
        """The inverse."""
        raw = json.loads(text)
        found = Findings(Counter(raw["counts"]), raw["depth"], raw["first"])
        for problem in raw["problems"]:
            found.add(
                Problem(**problem | {"place": tuple(problem["place"]), "first": tuple(problem["first"])})
            )
        return found


def _in_order(first: tuple[Any, ...]) -> list[tuple[bool, Any]]:
    """A key that sorts None before everything."""
    return [(value is not None, value) for value in first]
