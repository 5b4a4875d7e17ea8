"""Some queries of a large evaluation, whole: their rows of every table in, their values out, by the code for all.

Rows arrive in one Arrow table with these columns; `Part` says what the numbers mean:

    tag      which table the row is of: 0 the qrels, then the rankings, then the tables of attributes
    q, p, v  query_id, passage_id, rank or relevance
    a0 …     an attribute of the query: what it is grouped by, or its cluster

Nothing here knows of Spark.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from rerank_udf.errors import InputError
from rerank_udf.evaluation.counting import counts_of
from rerank_udf.evaluation.findings import Findings, Problem
from rerank_udf.evaluation.groups import as_text
from rerank_udf.evaluation.loading import Rows, encoded, wrong_rows
from rerank_udf.evaluation.measures import parse_measures
from rerank_udf.evaluation.runs import Names, Run
from rerank_udf.evaluation.study import Study, Values, keys_of
from rerank_udf.tables import PASSAGE_ID, QUERY_ID, RANK, RELEVANCE

# Rows at once, of whole queries: what bounds a task's memory, however many it is given.
CHUNK_ROWS = 400_000
QRELS = "qrels"
RANKING = "ranking"
_COLUMNS = ("q", "p", "v")


@dataclass(frozen=True)
class Attribute:
    """A column of queries: where it comes from, and the label (group_by or clusters) that errors give it."""

    name: str
    label: str
    tag: int


@dataclass(frozen=True)
class Part:
    """What a task has to know. `systems`: the baseline first where there is one, the ranking last; none: only the qrels
    and the attributes are looked at.

    `grouping`, `cluster`: numbers of `attributes`; no cluster: each query is its own.
    """

    measures: tuple[str, ...]
    systems: tuple[str, ...]
    baseline: str | None
    depth: int | None
    top_k: int | None
    seed: int
    shuffles: int
    attributes: tuple[Attribute, ...]
    grouping: tuple[int, ...]
    cluster: int | None

    def labels(self) -> list[tuple[int, str]]:
        """Tag and label of every checked table, in the order of complaint."""
        if not self.systems:
            return [(0, QRELS)]
        *others, _ = self.systems
        rankings = [(len(self.systems), RANKING), *((i, f"baseline {n!r}") for i, n in enumerate(others, 1))]
        return [(0, QRELS), *rankings]

    def group_by(self) -> list[str]:
        """The names of the grouping columns."""
        return [self.attributes[i].name for i in self.grouping]

    def columns(self) -> tuple[list[str], list[str]]:
        """The names of the text columns and of the value columns (one a key) of what comes out."""
        values = len(keys_of(parse_measures(self.measures), self.systems, 1))
        grouping = [f"g{i}" for i in range(len(self.grouping))]
        return [QUERY_ID, "cluster", *grouping], [f"v{i}" for i in range(values)]

    def schema(self) -> pa.Schema:
        """What comes out: a row a query, and last a row that has `note` alone, the part's `Findings`."""
        texts, values = self.columns()
        fields = [(name, pa.string()) for name in texts] + [(name, pa.float64()) for name in values]
        return pa.schema([*fields, ("note", pa.string())])


def measure_batches(part: Part) -> Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """The function for `mapInArrow`, over rows that are sorted by `q`; see `Part.schema` for what it gives."""

    def measure(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        schema, findings, seen = part.schema(), Findings(), False
        for rows in whole_groups(batches, "q", CHUNK_ROWS):
            seen = True
            found = measured(part, rows, findings)
            if found is not None:
                yield from found.to_batches()
        if seen:
            nothing = [pa.nulls(1, field.type) for field in schema][:-1]
            yield pa.record_batch([*nothing, pa.array([findings.to_json()])], schema=schema)

    return measure


def whole_groups(batches: Iterable[pa.RecordBatch], by: str, rows: int) -> Iterator[pa.Table]:
    """Tables of about so many rows, each with all rows of its groups; batches are sorted `by` it, nulls first."""
    held: list[pa.RecordBatch] = []
    count, wanted = 0, rows
    for batch in batches:
        held.append(batch)
        count += batch.num_rows
        if count < wanted:
            continue
        table = pa.Table.from_batches(held)
        last = table[by][-1]
        rest = pc.sum(pc.equal(table[by], last)).as_py() if last.is_valid else count
        if rest == count:
            wanted = 2 * count  # one group alone: looking again at every batch would cost its square
            continue
        yield table.slice(0, count - rest)
        held, count, wanted = table.slice(count - rest).to_batches(), rest, rows
    if count:
        yield pa.Table.from_batches(held)


def measured(part: Part, table: pa.Table, findings: Findings) -> pa.Table | None:
    """The values of the queries in `table`; None where there are none, or a problem has been found."""
    by_tag = {tag: table.filter(pc.equal(table["tag"], tag)) for tag in pc.unique(table["tag"]).to_pylist()}
    nothing = table.slice(0, 0)
    rows = {
        tag: _checked(by_tag.get(tag, nothing), (number, label), findings)
        for number, (tag, label) in enumerate(part.labels())
    }
    qrels, ranked = rows[0], rows[len(part.systems)]
    for tag, label in part.labels():
        findings.see(label, rows[tag].queries)
    attributes = [
        _attribute(one, by_tag.get(one.tag, nothing), (len(rows) + number, f"a{number}"), findings)
        for number, one in enumerate(part.attributes)
    ]
    if not qrels.queries:
        findings.counts["queries_without_qrels"] += len(ranked.queries)
        return None
    queries = sorted(qrels.queries)
    for number, (one, found) in enumerate(zip(part.attributes, attributes, strict=True), len(rows)):
        absent = [q for q in queries if q not in found]
        if absent:
            findings.add(Problem((number, 1), one.label, one.name, "absent", len(absent), (absent[0],)))
    if findings.problems or not part.systems:
        return None
    runs_of = {system: rows[tag] for tag, system in enumerate(part.systems, 1)}
    return _table(part, queries, _values(part, qrels, runs_of, findings), attributes)


def _checked(table: pa.Table, named: tuple[int, str], findings: Findings) -> Rows:
    """Qrels or a ranking, without the rows that have a null; what is wrong goes into the findings."""
    number, label = named
    value = RELEVANCE if label == QRELS else RANK
    for check, (column, name) in enumerate(zip(_COLUMNS, (QUERY_ID, PASSAGE_ID, value), strict=True), 1):
        wrong = table.filter(pc.is_null(table[column]))
        if wrong.num_rows:
            first = min(_ids(wrong), key=lambda ids: [(i is not None, i) for i in ids])
            findings.add(Problem((number, check), label, name, "null", wrong.num_rows, first))
        table = table.filter(pc.is_valid(table[column]))
    texts = [table[column].cast(pa.large_string()) for column in ("q", "p")]
    try:
        rows = encoded(texts[0], texts[1], table["v"], label)
    except InputError as problem:
        findings.add(Problem((number, 0), label, "", "text", 1, (), str(problem)))
        return Rows([], [], *(table["v"].to_numpy()[:0] for _ in range(3)))
    for check, (what, wrong) in enumerate(wrong_rows(rows, value == RANK), 4):
        if len(wrong):
            ids = [
                (rows.queries[rows.query[i]], rows.passages[rows.passage[i]], int(rows.value[i]))
                for i in wrong
            ]
            findings.add(Problem((number, check), label, value, "row", len(wrong), min(ids), what))
    return rows


def _ids(table: pa.Table) -> Iterator[tuple[str | None, str | None, int | None]]:
    """Of each row; what is not UTF-8 with signs in its place, since another check names it."""
    texts = [
        [
            None if v is None else v.decode(errors="replace")
            for v in table[c].cast(pa.large_binary()).to_pylist()
        ]
        for c in ("q", "p")
    ]
    return zip(*texts, table["v"].to_pylist(), strict=True)


def _attribute(one: Attribute, table: pa.Table, where: tuple[int, str], findings: Findings) -> dict[str, str]:
    """query → its value as text; of a query whose rows do not agree, a problem. `where`: its number, its column."""
    found: dict[str, str] = {}
    number, column = where
    try:
        queries, values = table["q"].to_pylist(), [as_text(v) for v in table[column].to_pylist()]
    except UnicodeDecodeError as problem:
        what = f"{one.label}: column {one.name!r} is not valid UTF-8: {problem}; write it again as text."
        findings.add(Problem((number, 0), one.label, one.name, "text", 1, (), what))
        return found
    for query, text in zip(queries, values, strict=True):
        known = found.setdefault(query, text)
        if known != text:
            first = (query, *sorted((known, text)))
            findings.add(Problem((number, 0), one.label, one.name, "several", 1, first))
    return found


def _values(part: Part, qrels: Rows, rankings: Mapping[str, Rows], findings: Findings) -> Values:
    """Measured as `evaluate` does it, and counted."""
    names = Names.of(qrels, rankings.values())
    nested = names.judgements(qrels)
    study = Study(names, nested, parse_measures(part.measures), part.seed, part.shuffles)
    runs = {system: Run.of(rows, qrels, names) for system, rows in rankings.items()}
    pool = runs[part.baseline or part.systems[-1]].first(part.depth)
    findings.counts.update(counts_of(qrels, rankings[part.systems[-1]], runs, pool))
    findings.depth = max(findings.depth, pool.depth())
    return study.measure_all(runs, pool, part.top_k)


def _table(part: Part, queries: list[str], values: Values, attributes: list[dict[str, str]]) -> pa.Table:
    texts = [[found[q] for q in queries] for found in attributes]
    clusters = queries if part.cluster is None else texts[part.cluster]
    columns = [queries, clusters, *(texts[i] for i in part.grouping)]
    arrays = [pa.array(column, pa.string()) for column in columns] + [pa.array(v) for v in values.values()]
    return pa.Table.from_arrays([*arrays, pa.nulls(len(queries), pa.string())], schema=part.schema())
