"""A training set's tables as arrays: texts by number, rankings and judgements as rows of numbers.

Queries and passages are numbered in the order of their tables; a pair (query q, passage p) is the number
q × passages + p.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from rerank_udf.config import Source
from rerank_udf.errors import InputError
from rerank_udf.formats.folders import published_version
from rerank_udf.identity import pair_key, text_key
from rerank_udf.tables import PASSAGE, PASSAGE_ID, QUERY, QUERY_ID, RANK, RELEVANCE
from rerank_udf.training.settings import CANDIDATES, Teacher, TrainingSet

LANG = "lang"
# What a column may hold: the words that errors have for it, and the type that it is then cast to
_ID, _TEXT, _WHOLE, _NUMBER = "a string or a whole number", "a string", "a whole number", "a number"
_TYPES = {_ID: pa.large_string(), _TEXT: pa.large_string(), _WHOLE: pa.int64(), _NUMBER: pa.float64()}
_PAIR = {QUERY_ID: _ID, PASSAGE_ID: _ID}
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Texts:
    """The texts of one table: ids and texts in its order, and their languages where it says them."""

    ids: list[str]
    texts: list[str]
    langs: npt.NDArray[np.str_] | None

    def numbers(self, ids: pa.ChunkedArray, label: str) -> Ints:
        """The row of each id: int64. Raises InputError for an id that the table does not have."""
        found = pc.index_in(ids, value_set=pa.array(self.ids, pa.large_string()))
        if found.null_count:
            row = pc.index(found.is_null(), True).as_py()
            raise InputError(
                f"{label}: {ids[row].as_py()!r} (row {row + 1}) has no text; add it to its table or drop the row"
            )
        return np.asarray(found, dtype=np.int64)


@dataclass(frozen=True)
class Rows:
    """A ragged array: row q is values[starts[q]:starts[q + 1]]. int64, both."""

    starts: Ints
    values: Ints

    @classmethod
    def of(cls, rows: Ints, values: Ints, count: int) -> Rows:
        """From one row number a value, which are in the order that each row's values are to have."""
        order = np.argsort(rows, kind="stable")
        starts = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=count))]).astype(np.int64)
        return cls(starts, values[order])

    def __getitem__(self, row: int) -> Ints:
        return self.values[self.starts[row] : self.starts[row + 1]]

    def sizes(self) -> Ints:
        """int64 (rows,)"""
        return np.diff(self.starts)


@dataclass(frozen=True)
class Scores:
    """A teacher's logits by pair number, sorted: int64 and float32 (n,)."""

    pairs: Ints
    logits: Floats

    def __call__(self, pairs: Ints) -> Floats:
        """float32, nan for a pair that the teacher has not scored."""
        if not len(self.pairs):
            return np.full(len(pairs), np.nan, np.float32)
        places = np.minimum(np.searchsorted(self.pairs, pairs), len(self.pairs) - 1)
        return np.where(self.pairs[places] == pairs, self.logits[places], np.float32(np.nan))


@dataclass(frozen=True)
class TrainingTables:
    """Everything of one set. `rankings`: passages of each query in rank order; `relevant`: of each query."""

    settings: TrainingSet
    queries: Texts
    passages: Texts
    rankings: dict[str, Rows]
    relevant: Rows | None
    teacher: Scores | None

    def pair_numbers(self, query: int | Ints, passages: Ints) -> Ints:
        """int64, one a passage."""
        return query * len(self.passages.ids) + passages


def read_tables(settings: TrainingSet) -> TrainingTables:
    """Read one set. Raises InputError that names the table, the column and the id where something is wrong."""
    label = f"sets.{settings.name}"
    queries = _texts(settings.input.queries, QUERY_ID, QUERY, f"{label}.input.queries")
    passages = _texts(settings.input.passages, PASSAGE_ID, PASSAGE, f"{label}.input.passages")
    sources = {CANDIDATES: settings.input.candidates, **settings.rankings}
    rankings = {
        name: _ranking(source, queries, passages, f"{label}.{name}") for name, source in sources.items()
    }
    qrels, scored = settings.qrels, settings.teacher
    relevant = None if qrels is None else _relevant(qrels, queries, passages, f"{label}.qrels")
    teacher = None if scored is None else _teacher(scored, queries, passages, rankings, f"{label}.teacher")
    found = TrainingTables(settings, queries, passages, rankings, relevant, teacher)
    if relevant is None:
        _check_taught(found, f"{label}.teacher")
    return found


def in_languages(tables: TrainingTables, query: int | Ints, passages: Ints) -> npt.NDArray[np.bool_]:
    """bool (passages,): whether `languages` admits each; `query`: all of theirs, or one each."""
    wanted = tables.settings.languages
    if wanted == "any" or tables.queries.langs is None or tables.passages.langs is None:
        return np.ones(len(passages), dtype=np.bool_)
    same: npt.NDArray[np.bool_] = tables.passages.langs[passages] == tables.queries.langs[query]
    return same if wanted == "same" else ~same


def judged(tables: TrainingTables) -> Rows:
    """The right passages of each query: those of the qrels, or else the candidate that the teacher puts first."""
    if tables.relevant is not None:
        return tables.relevant
    assert tables.teacher is not None
    passages = tables.rankings[CANDIDATES].values
    queries = np.repeat(np.arange(len(tables.queries.ids)), tables.rankings[CANDIDATES].sizes())
    logits = tables.teacher(tables.pair_numbers(queries, passages))
    known = ~np.isnan(logits) & in_languages(tables, queries, passages)
    queries, passages, logits = queries[known], passages[known], logits[known]
    order = np.lexsort((-logits, queries))
    asked, first = np.unique(queries[order], return_index=True)
    return Rows.of(asked, passages[order][first], len(tables.queries.ids))


def digests(tables: TrainingTables) -> dict[str, str]:
    """sha256 of each table by its name, sets.NAME.queries and so on: of what training takes from it, in its order."""
    parts: dict[str, Iterable[bytes]] = {
        "queries": _text_bytes(tables.queries),
        "passages": _text_bytes(tables.passages),
    }
    for name, rows in tables.rankings.items():
        label = name if name == CANDIDATES else f"rankings.{name}"
        parts[label] = (rows.starts.tobytes(), rows.values.tobytes())
    if tables.relevant is not None:
        parts["qrels"] = (tables.relevant.starts.tobytes(), tables.relevant.values.tobytes())
    if tables.teacher is not None:
        parts["teacher"] = (tables.teacher.pairs.tobytes(), tables.teacher.logits.tobytes())
    found = {}
    for name, content in parts.items():
        digest = hashlib.sha256()
        for part in content:
            digest.update(part)
        found[f"sets.{tables.settings.name}.{name}"] = digest.hexdigest()
    return found


def _text_bytes(texts: Texts) -> Iterator[bytes]:
    langs = [None] * len(texts.ids) if texts.langs is None else texts.langs.tolist()
    for row in zip(texts.ids, texts.texts, langs, strict=True):
        yield repr(row).encode()


def read_parquet(
    source: Source, label: str, columns: Mapping[str, str], optional: Mapping[str, str] | None = None
) -> pa.Table:
    """These columns of a Parquet path, each of what it is to hold (see `_TYPES`), ids as strings.

    Raises InputError for a column that is missing, of another type or null; an `optional` one may be missing or null.
    """
    if not source.is_plain_parquet():
        raise InputError(
            f"{label}: {source} is not a plain Parquet path; `rerank-udf train` reads it through Spark"
        )
    path = Path(str(source.path))
    if not path.exists():
        raise InputError(f"{label}: there is no {path}")
    path = published_version(path) or path
    try:
        table = ds.dataset(path, format="parquet")
    except (pa.ArrowException, OSError) as problem:
        raise InputError(f"{label}: {path} cannot be read as Parquet: {problem}") from problem
    absent = [name for name in columns if name not in table.schema.names]
    if absent:
        raise InputError(f"{label}: no column {absent[0]!r}; it has {', '.join(table.schema.names)}")
    there = {name: one for name, one in (optional or {}).items() if name in table.schema.names}
    wanted = {**columns, **there}
    for name, expected in wanted.items():
        _check_type(table.schema.field(name).type, expected, f"{label}: column {name!r}")
    try:
        found = table.to_table(columns=list(wanted))
    except (pa.ArrowException, OSError) as problem:  # files of different types, say
        raise InputError(f"{label}: {path} cannot be read: {problem}") from problem
    return pa.table(
        {
            name: _cast(found[name], expected, f"{label}: column {name!r}", may_be_null=name not in columns)
            for name, expected in wanted.items()
        }
    )


def _check_type(kind: pa.DataType, expected: str, label: str) -> None:
    """Raise InputError for a type that never holds what is expected; numbers with a point may be whole ones."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    is_view = getattr(pa.types, "is_string_view", lambda _: False)  # newer than the oldest pyarrow allowed
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or is_view(kind)
    whole = pa.types.is_integer(kind)
    number = whole or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    fits = {_ID: text or whole, _TEXT: text, _WHOLE: number, _NUMBER: number}
    if not (fits[expected] or pa.types.is_null(kind)):
        raise InputError(
            f"{label} has the type {kind}; {expected} is expected: cast it in the table, or in an sql that reads it"
        )


def _cast(column: pa.ChunkedArray, expected: str, label: str, *, may_be_null: bool) -> pa.ChunkedArray:
    if column.null_count and not may_be_null:
        raise InputError(f"{label} is null in {column.null_count:,} rows; drop them")
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    try:
        return column.cast(_TYPES[expected])
    except pa.ArrowInvalid as problem:
        raise InputError(
            f"{label} has the type {column.type}; {expected} is expected: {problem}"
        ) from problem


def _texts(source: Source, id_name: str, text_name: str, label: str) -> Texts:
    table = read_parquet(source, label, {id_name: _ID, text_name: _TEXT}, {LANG: _TEXT})
    ids = table[id_name].to_pylist()
    twice = next((one for one, count in Counter(ids).items() if count > 1), None)
    if twice is not None:
        raise InputError(f"{label}: {id_name} {twice!r} stands there more than once; keep one")
    langs = np.array(table[LANG].to_pylist()) if LANG in table.schema.names else None
    return Texts(ids, table[text_name].to_pylist(), langs)


def _ranking(source: Source, queries: Texts, passages: Texts, label: str) -> Rows:
    table = read_parquet(source, label, {**_PAIR, RANK: _WHOLE})
    order = np.argsort(table[RANK].to_numpy(), kind="stable")
    rows = queries.numbers(table[QUERY_ID], label)[order]
    return _once(rows, passages.numbers(table[PASSAGE_ID], label)[order], queries, passages, label)


def _relevant(source: Source, queries: Texts, passages: Texts, label: str) -> Rows:
    table = read_parquet(source, label, {**_PAIR, RELEVANCE: _WHOLE})
    table = table.filter(pc.greater(table[RELEVANCE], 0))
    rows = queries.numbers(table[QUERY_ID], label)
    return _once(rows, passages.numbers(table[PASSAGE_ID], label), queries, passages, label)


def _once(rows: Ints, values: Ints, queries: Texts, passages: Texts, label: str) -> Rows:
    """Passages by query. Raises InputError for a pair that stands there more than once."""
    pairs, counts = np.unique(rows * len(passages.ids) + values, return_counts=True)
    twice = pairs[counts > 1]
    if len(twice):
        query, passage = divmod(int(twice[0]), len(passages.ids))
        raise InputError(
            f"{label}: query_id {queries.ids[query]!r}, passage_id {passages.ids[passage]!r} stands there more than "
            f"once, and so do {len(twice) - 1:,} other pairs; keep one row of each"
        )
    return Rows.of(rows, values, len(queries.ids))


def _teacher(
    teacher: Teacher, queries: Texts, passages: Texts, rankings: dict[str, Rows], label: str
) -> Scores:
    if teacher.table is not None:
        # rows beyond the depth of a reranked table have no logit
        table = read_parquet(teacher.table, label, _PAIR, {teacher.column: _NUMBER})
        if teacher.column not in table.schema.names:
            raise InputError(f"{label}: no column {teacher.column!r} in {teacher.table}")
        table = table.filter(pc.is_valid(table[teacher.column]))
        rows = queries.numbers(table[QUERY_ID], label)
        pairs = rows * len(passages.ids) + passages.numbers(table[PASSAGE_ID], label)
        logits = table[teacher.column].to_numpy()
    else:
        pairs, logits = _stored(teacher, queries, passages, rankings, label)
    with np.errstate(over="ignore"):
        values = logits.astype(np.float32) * np.float32(teacher.scale)
    endless = np.flatnonzero(np.isinf(values))
    if len(endless):
        query, passage = divmod(int(pairs[endless[0]]), len(passages.ids))
        raise InputError(
            f"{label}: {len(endless):,} logits are infinite, in float32 and times scale, the first of them "
            f"{logits[endless[0]]:g} of query_id {queries.ids[query]!r}, passage_id {passages.ids[passage]!r}; drop "
            "these rows, or make their logits null"
        )
    pairs, first = np.unique(pairs, return_index=True)
    return Scores(pairs, values[first])


def _check_taught(tables: TrainingTables, label: str) -> None:
    """Raise InputError where the teacher, which alone is learnt from, has scored no pair of any ranking."""
    assert tables.teacher is not None
    ranked = [_pairs(rows, len(tables.passages.ids)) for rows in tables.rankings.values()]
    if all(np.isnan(tables.teacher(pairs)).all() for pairs in ranked):
        raise InputError(
            f"{label}: it has a logit for none of the rankings' {len(np.unique(np.concatenate(ranked))):,} pairs, and "
            "without qrels nothing else is learnt from; give the scores of these pairs, or qrels"
        )


def _stored(
    teacher: Teacher, queries: Texts, passages: Texts, rankings: dict[str, Rows], label: str
) -> tuple[Ints, Floats]:
    """The facts of a Parquet score store about the rankings' pairs, found by the keys of their texts."""
    if not Source(path=str(teacher.store)).is_plain_parquet() or not Path(str(teacher.store)).is_dir():
        raise InputError(
            f"{label}: there is no folder {teacher.store} on this machine; a teacher's store is one of Parquet on a "
            "disk here: copy it, or give the reranked table instead"
        )
    folder = Path(str(teacher.store)) / "facts"
    models = sorted(one.name for one in folder.iterdir() if one.is_dir()) if folder.is_dir() else []
    if teacher.model_key not in models and (teacher.model_key or len(models) != 1):
        raise InputError(
            f"{label}: model_key {teacher.model_key!r} is not in {folder}, which has {', '.join(models) or 'none'}; "
            "name one of these"
        )
    files = sorted((folder / (teacher.model_key or models[0])).glob("*/*.parquet"))
    facts = ds.dataset([str(one) for one in files], format="parquet").to_table(columns=["pair_key", "logit"])
    pairs = np.unique(np.concatenate([_pairs(rows, len(passages.ids)) for rows in rankings.values()]))
    query_keys, passage_keys = ([text_key(one) for one in table.texts] for table in (queries, passages))
    numbers = zip(*(part.tolist() for part in np.divmod(pairs, len(passages.ids))), strict=True)
    keys = pa.array([pair_key(query_keys[q], passage_keys[p]) for q, p in numbers], facts["pair_key"].type)
    places = pc.index_in(keys, value_set=facts["pair_key"])
    known = np.asarray(pc.is_valid(places))
    if not known.any():
        raise InputError(
            f"{label}: the store knows none of the rankings' {len(pairs):,} pairs; it knows pairs by their texts as "
            "the job rendered them, so with a query_template or passage_template there, give the rendered texts (sql)"
        )
    rows = np.asarray(pc.drop_null(places))
    return pairs[known], facts["logit"].to_numpy()[rows].astype(np.float32)


def _pairs(ranking: Rows, passages: int) -> Ints:
    queries = np.repeat(np.arange(len(ranking.starts) - 1), ranking.sizes())
    return queries * passages + ranking.values


def stable_order(names: Sequence[str], seed: int) -> Ints:
    """An order that depends on the names and the seed alone: int64 (n,), by `stable_keys`."""
    return np.argsort(stable_keys(names, seed), kind="stable")


def stable_keys(names: Sequence[str], seed: int) -> npt.NDArray[np.uint64]:
    """A number of each name, evenly spread: uint64 (n,), the beginning of a sha256."""
    keys = [hashlib.sha256(f"{seed} {name}".encode()).digest()[:8] for name in names]
    return np.array([int.from_bytes(key, "big") for key in keys], dtype=np.uint64)
