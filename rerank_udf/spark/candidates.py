"""Candidate tables in any accepted shape → rows with content keys, and the reason of each row that has none.

    rows      query_id, passage_id (own types), first_stage_rank int, first_stage_score double, kept struct,
              query_key, passage_key, pair_key binary(16), reason, detail string, beyond_depth boolean
    queries   query_key, query      (texts as the model gets them; a key may stand more than once)
    passages  passage_key, passage

Nothing here runs a job: every check on a single row is a column, every check on a table's shape reads its schema.
Tables are renamed by position first, so that no setting for case sensitivity and no odd name changes the result.
"""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F
from pyspark.sql import types as T

from rerank_udf import tables
from rerank_udf.config import Columns, Nested
from rerank_udf.errors import ConfigError, InputError
from rerank_udf.spark import keys
from rerank_udf.tables import Reason

_ID_TYPES = (T.StringType, T.ByteType, T.ShortType, T.IntegerType, T.LongType)
_INTEGER_TYPES = (T.ByteType, T.ShortType, T.IntegerType, T.LongType)
_NUMBER_TYPES = (*_INTEGER_TYPES, T.FloatType, T.DoubleType, T.DecimalType)
_TEXT_IS_PLAIN = (*_INTEGER_TYPES, T.StringType, T.BooleanType, T.DateType, T.DecimalType)
_RESERVED = (
    tables.QUERY_ID,
    tables.PASSAGE_ID,
    tables.RANK,
    tables.SCORE,
    tables.LOGIT,
    tables.FUSED_SCORE,
    tables.FIRST_STAGE_RANK,
    tables.FIRST_STAGE_SCORE,
)


@dataclass(frozen=True)
class Shape:
    """How the user's tables are to be read.

    `lenient_numbers`: score and rank are text (CSV) and are parsed. `reserved`: names that the output gives to
    columns of its own, beside those that it always has.
    """

    columns: Columns = field(default_factory=Columns)
    nested: Nested | None = None
    query_template: str = "{query}"
    passage_template: str = "{passage}"
    depth: int | None = None
    keep_columns: str | Sequence[str] = "all"
    limit_queries: int | None = None
    lenient_numbers: bool = False
    reserved: Sequence[str] = ()


@dataclass(frozen=True)
class Prepared:
    """What the module's docstring describes, and the number columns that the candidates had."""

    rows: DataFrame
    queries: DataFrame
    passages: DataFrame
    queries_without_candidates: DataFrame | None
    has_rank: bool
    has_score: bool


@dataclass(frozen=True)
class _Table:
    """A DataFrame whose columns are renamed by position, with the user's names beside them."""

    label: str
    frame: DataFrame
    internal: dict[str, str]
    types: dict[str, T.DataType]

    @classmethod
    def of(cls, label: str, frame: DataFrame, prefix: str) -> _Table:
        twice = [name for name, count in Counter(frame.columns).items() if count > 1]
        if twice:
            raise InputError(f"{label} has two columns called {twice[0]!r}; rename or drop one of them")
        names = [f"_{prefix}{i}" for i in range(len(frame.columns))]
        internal = dict(zip(frame.columns, names, strict=True))
        types = {f.name: f.dataType for f in frame.schema.fields}
        return cls(label, frame.toDF(*names), internal, types)

    def __contains__(self, name: str) -> bool:
        return name in self.internal

    def column(self, name: str) -> Column:
        return F.col(self.internal[name])

    def require(
        self, name: str, setting: str, allowed: tuple[type[T.DataType], ...], expected: str
    ) -> Column:
        """The column `name`, or an InputError that names the table, what it has and the setting to change."""
        if name not in self.internal:
            raise InputError(
                f"{self.label} has no column {name!r} (it has {', '.join(self.internal) or 'none'}); "
                f"name the right one in input.columns.{setting}"
            )
        found = self.types[name]
        if not isinstance(found, allowed):
            raise InputError(
                f"{self.label}.{name} is {found.simpleString()}, expected {expected}; cast it first"
            )
        return self.column(name)


def prepare(
    candidates: DataFrame, queries: DataFrame | None, passages: DataFrame | None, shape: Shape
) -> Prepared:
    """Check the tables' columns and types, and describe rows and texts as DataFrames.

    Raises InputError for a missing column, a wrong type or a name that the output needs; ConfigError for a template
    that names an unknown column, or `depth` without a first-stage order.
    """
    names = shape.columns
    table = _Table.of("candidates", _flat(candidates, shape), "c")
    rows, has_rank, has_score = _candidate_columns(table, shape, queries, passages)
    if shape.depth is not None and not (has_rank or has_score):
        raise ConfigError(
            f"ranking.depth needs a first-stage order: candidates has neither {names.rank!r} nor {names.score!r}"
        )
    if shape.limit_queries is not None:
        rows = _some_queries(rows, shape.limit_queries)
    query_side = _texts(
        table, queries, "queries", names.query_id, "query_id", names.query, shape.query_template, shape
    )
    passage_side = _texts(
        table,
        passages,
        "passages",
        names.passage_id,
        "passage_id",
        names.passage,
        shape.passage_template,
        shape,
    )
    rows = _with_keys(rows, query_side, passage_side)
    rows = _with_reasons(rows, table.internal, shape)
    rows = _with_first_stage_order(rows, shape.depth, has_rank, has_score)
    return Prepared(
        rows=rows,
        queries=query_side.texts.toDF(tables.QUERY_KEY, tables.QUERY),
        passages=passage_side.texts.toDF(tables.PASSAGE_KEY, tables.PASSAGE),
        queries_without_candidates=_without_candidates(candidates, table, queries, shape),
        has_rank=has_rank,
        has_score=has_score,
    )


def _without_candidates(
    candidates: DataFrame, flat: _Table, queries: DataFrame | None, shape: Shape
) -> DataFrame | None:
    """Ids of the queries that have nothing to rank: query ids that no candidate names, or empty arrays."""
    name = shape.columns.query_id
    if queries is not None:
        asked = _Table.of("queries", queries, "q")
        ids = asked.frame.select(asked.column(name).cast("string").alias("_id")).where(
            F.col("_id").isNotNull()
        )
        have = flat.frame.select(flat.column(name).cast("string").alias("_id"))
        return ids.distinct().join(have, "_id", "left_anti")
    if shape.nested is None:
        return None
    table = _Table.of("candidates", candidates, "n")
    array = table.column(shape.nested.array or shape.columns.passage_id)
    empty = F.coalesce(F.size(array), F.lit(0)) <= 0
    return table.frame.where(empty).select(table.column(name).cast("string").alias("_id"))


# --- one row a query → one row a pair ---


def _flat(candidates: DataFrame, shape: Shape) -> DataFrame:
    """Long tables as they are; arrays exploded in order, with `rank` their position from 1 unless they carry one."""
    nested, names = shape.nested, shape.columns
    if nested is None:
        return candidates
    if nested.array:
        return _explode_structs(candidates, nested.array, names)
    return _explode_parallel(candidates, names)


def _explode_structs(candidates: DataFrame, array: str, names: Columns) -> DataFrame:
    table = _Table.of("candidates", candidates, "n")
    if array not in table:
        raise InputError(
            f"candidates has no column {array!r} (it has {', '.join(table.internal)}); see input.nested"
        )
    kind = table.types[array]
    if not (isinstance(kind, T.ArrayType) and isinstance(kind.elementType, T.StructType)):
        raise InputError(
            f"candidates.{array} is {kind.simpleString()}, expected array<struct<{names.passage_id}, …>>; "
            "for parallel arrays set input.nested to parallel"
        )
    fields = kind.elementType.fieldNames()
    others = [name for name in table.internal if name not in (array, names.rank, *fields)]
    by_position = [T.StructField(f"_f{i}", f.dataType) for i, f in enumerate(kind.elementType.fields)]
    renamed = table.column(array).cast(T.ArrayType(T.StructType(by_position)))
    exploded = table.frame.select(
        *[table.column(name).alias(f"_o{i}") for i, name in enumerate(others)],
        F.posexplode(renamed).alias("_position", "_element"),
    )
    element = [F.col("_element").getField(f"_f{i}").alias(f"_f{i}") for i in range(len(fields))]
    position = [] if names.rank in fields else [(F.col("_position") + 1).alias("_rank")]
    flat = exploded.select(*[f"_o{i}" for i in range(len(others))], *element, *position)
    return flat.toDF(*others, *fields, *([names.rank] if position else []))


def _explode_parallel(candidates: DataFrame, names: Columns) -> DataFrame:
    """Arrays of unequal length become one row that keeps the query's id and says so (`_unequal`)."""
    table = _Table.of("candidates", candidates, "n")
    wanted = [names.passage_id, names.passage, names.score, names.rank]
    arrays = [n for n in wanted if n in table and isinstance(table.types[n], T.ArrayType)]
    if names.passage_id not in arrays:
        raise InputError(
            f"input.nested is parallel, but candidates.{names.passage_id} is not an array column; "
            f"candidates has {', '.join(f'{n} {t.simpleString()}' for n, t in table.types.items())}"
        )
    others = [name for name in table.internal if name not in (names.rank, *arrays)]
    columns = [table.column(name) for name in arrays]
    sizes = [F.coalesce(F.size(column), F.lit(-1)) for column in columns]
    unequal = F.greatest(*sizes) != F.least(*sizes) if len(sizes) > 1 else F.lit(False)
    detail = F.concat(
        F.lit("arrays of unequal length: "),
        F.concat_ws(", ", *[_length(n, s) for n, s in zip(arrays, sizes, strict=True)]),
    )
    zipped = F.arrays_zip(*[c.alias(f"_f{i}") for i, c in enumerate(columns)])
    length = F.when(unequal, F.lit(1)).otherwise(F.greatest(sizes[0], F.lit(0)))
    indexes = F.when(length > 0, F.sequence(F.lit(0), length - 1))
    exploded = table.frame.select(
        *[table.column(name).alias(f"_o{i}") for i, name in enumerate(others)],
        F.when(unequal, detail).alias("_unequal"),
        zipped.alias("_zipped"),
        F.explode(indexes).alias("_position"),
    )
    sound = F.col("_unequal").isNull()
    element = [
        F.when(sound, F.get(F.col("_zipped"), F.col("_position")).getField(f"_f{i}")).alias(f"_f{i}")
        for i in range(len(arrays))
    ]
    position = [] if names.rank in arrays else [F.when(sound, F.col("_position") + 1).alias("_rank")]
    flat = exploded.select(*[f"_o{i}" for i in range(len(others))], *element, *position, "_unequal")
    return flat.toDF(*others, *arrays, *([names.rank] if position else []), "_unequal")


def _length(name: str, size: Column) -> Column:
    return F.concat(F.lit(f"{name} "), F.when(size < 0, F.lit("null")).otherwise(size.cast("string")))


# --- the candidates' own columns ---


def _candidate_columns(
    table: _Table, shape: Shape, queries: DataFrame | None, passages: DataFrame | None
) -> tuple[DataFrame, bool, bool]:
    names = shape.columns
    query_id = table.require(names.query_id, "query_id", _ID_TYPES, "a string or an integer")
    passage_id = table.require(names.passage_id, "passage_id", _ID_TYPES, "a string or an integer")
    score, bad_score = _number(table, names.score, "score", "double", _NUMBER_TYPES, shape.lenient_numbers)
    rank, bad_rank = _number(table, names.rank, "rank", "int", _INTEGER_TYPES, shape.lenient_numbers)
    used = {names.query_id, names.passage_id, names.score, names.rank, "_unequal"}
    if queries is None:
        used.add(names.query)
    if passages is None:
        used.add(names.passage)
    kept = _kept_columns(table, used, shape)
    unequal = table.column("_unequal") if "_unequal" in table else F.lit(None).cast("string")
    frame = table.frame.select(
        "*",
        query_id.alias(tables.QUERY_ID),
        passage_id.alias(tables.PASSAGE_ID),
        query_id.cast("string").alias("_query_id"),
        passage_id.cast("string").alias("_passage_id"),
        rank.alias(tables.FIRST_STAGE_RANK),
        score.alias(tables.FIRST_STAGE_SCORE),
        _struct(table, kept).alias("kept"),
        (_tie_break(table, kept)).alias("_tie"),
        bad_score.alias("_bad_score"),
        bad_rank.alias("_bad_rank"),
        unequal.alias("_unequal"),
    )
    return frame, names.rank in table, names.score in table


def _number(
    table: _Table, name: str, setting: str, target: str, allowed: tuple[type[T.DataType], ...], lenient: bool
) -> tuple[Column, Column]:
    """The optional number column as `target`, and a sentence for each value that cannot serve as one.

    That is: text that is no number, NaN and infinities (no order, no mean), a rank below 1 or beyond int.
    """
    if name not in table:
        return F.lit(None).cast(target), F.lit(None).cast("string")
    parsed = lenient and isinstance(table.types[name], T.StringType)
    expected = "a whole number from 1" if target == "int" else "a finite number"
    raw = table.column(name) if parsed else table.require(name, setting, allowed, expected)
    value = F.expr(f"try_cast(`{table.internal[name]}` as {target})")
    unusable = value < 1 if target == "int" else F.isnan(value) | (F.abs(value) == float("inf"))
    sentence = F.concat(F.lit(f"{name} is "), raw.cast("string"), F.lit(f", expected {expected} or null"))
    return value, F.when(raw.isNotNull() & (value.isNull() | unusable), sentence)


def _kept_columns(table: _Table, used: set[str], shape: Shape) -> list[str]:
    """The pass-through columns, in the candidates' order."""
    free = [name for name in table.internal if name not in used]
    if shape.keep_columns == "none":
        return []
    if shape.keep_columns == "all":
        kept = free
    else:
        unknown = [name for name in shape.keep_columns if name not in table.internal]
        if unknown:
            raise InputError(
                f"output.keep_columns names {unknown[0]!r}; candidates has {', '.join(table.internal)}"
            )
        kept = [name for name in shape.keep_columns if name in free]
    lowered = Counter(name.lower() for name in kept)
    twice = [name for name in kept if lowered[name.lower()] > 1]
    if twice:
        raise InputError(
            f"candidates has the columns {' and '.join(map(repr, twice[:2]))}, which many tables cannot tell apart; "
            "rename one, or leave it out through output.keep_columns"
        )
    clash = [name for name in kept if name.lower() in (*_RESERVED, *shape.reserved)]
    if clash:
        raise InputError(
            f"candidates.{clash[0]} would collide with the output's own column {clash[0].lower()!r}; "
            "rename it, or leave it out through output.keep_columns"
        )
    return kept


def _struct(table: _Table, kept: Sequence[str]) -> Column:
    """The pass-through columns under their own names; a null string where there are none (Parquet has no void)."""
    if not kept:
        return F.lit(None).cast("string")
    return F.struct(*[_storable(table, name).alias(name) for name in kept])


def _storable(table: _Table, name: str) -> Column:
    """The column; as a string where it is `void` (a bare NULL in SQL), which Parquet has not."""
    column = table.column(name)
    return column.cast("string") if isinstance(table.types[name], T.NullType) else column


def _tie_break(table: _Table, kept: Sequence[str]) -> Column:
    """A number that orders duplicates which agree in rank, score and texts, by their other columns."""
    parts = [_hashable(table.column(name), table.types[name]) for name in kept]
    return F.xxhash64(*parts) if parts else F.lit(0).cast("long")


def _hashable(column: Column, kind: T.DataType) -> Column:
    """Spark hashes no maps and no variants, but writes both as text."""
    name = kind.simpleString()
    return column.cast("string") if "map<" in name or "variant" in name else column


def _some_queries(rows: DataFrame, count: int) -> DataFrame:
    """The rows of `count` queries, those whose ids hash lowest: the same ones in every run."""
    digest = F.sha2(F.col("_query_id").cast("binary"), 256)
    asked = rows.select("_query_id").where(F.col("_query_id").isNotNull()).distinct()
    chosen = asked.orderBy(digest, "_query_id").limit(count)
    return rows.join(F.broadcast(chosen), "_query_id", "left_semi")


# --- texts ---


@dataclass(frozen=True)
class _TextSide:
    """One of the two texts of a pair.

    `inline`: columns `key` and `problem` expressed over the candidates' own columns; otherwise `by_id` maps an id
    to them and is joined. `texts` has (key, text) in that order.
    """

    noun: str
    id_column: str
    by_id: DataFrame | None
    inline: tuple[Column, Column] | None
    texts: DataFrame


def _texts(
    candidates: _Table,
    own_table: DataFrame | None,
    label: str,
    id_name: str,
    id_setting: str,
    text_name: str,
    template: str,
    shape: Shape,
) -> _TextSide:
    noun = "query" if label == "queries" else "passage"
    if own_table is None:
        if text_name not in candidates:
            raise InputError(
                f"no text for the {label}: candidates has no column {text_name!r} (it has "
                f"{', '.join(candidates.internal)}) and input.{label} is not set; give one of them"
            )
        text = _rendered(candidates, template, noun, text_name, shape.columns)
        key = keys.text_key(text)
        texts = candidates.frame.select(key, text).where(text.isNotNull())
        return _TextSide(noun, f"_{id_setting}", None, (key, _text_problem(text, noun)), texts)
    table = _Table.of(label, own_table, "q" if noun == "query" else "p")
    identifier = table.require(id_name, id_setting, _ID_TYPES, "a string or an integer").cast("string")
    text = _rendered(table, template, noun, text_name, shape.columns)
    key = F.when(_text_problem(text, noun).isNull(), keys.text_key(text))
    return _TextSide(
        noun,
        f"_{id_setting}",
        _unique_by_id(table.frame, identifier, keys.text_key(text), _text_problem(text, noun), noun),
        None,
        table.frame.select(key, text).where(key.isNotNull()),
    )


def _unique_by_id(frame: DataFrame, identifier: Column, key: Column, problem: Column, noun: str) -> DataFrame:
    """id → (key, problem). An id that stands for two different texts gets the problem `ambiguous_…`."""
    comparable = F.coalesce(key, F.lit(b"null").cast("binary"))
    grouped = (
        frame.where(identifier.isNotNull())
        .groupBy(identifier.alias(f"_{noun}_join"))
        .agg(
            F.min(comparable).alias("_low"),
            F.max(comparable).alias("_high"),
            F.min(key).alias(f"_{noun}_key"),
            F.min(problem).alias("_problem"),
        )
    )
    ambiguous = F.when(F.col("_low") != F.col("_high"), F.lit(f"ambiguous_{noun}"))
    return grouped.select(
        f"_{noun}_join", f"_{noun}_key", F.coalesce(ambiguous, F.col("_problem")).alias(f"_{noun}_problem")
    )


def _text_problem(text: Column, noun: str) -> Column:
    """The reason code of a text that cannot be scored, else null."""
    return F.when(text.isNull(), F.lit(f"null_{noun}")).when(~valid_utf8(text), F.lit(Reason.INVALID_UTF8))


def valid_utf8(text: Column) -> Column:
    """Whether the bytes of a string column are UTF-8, which Spark does not promise."""
    if hasattr(F, "is_valid_utf8"):
        return F.is_valid_utf8(text)
    # Spark 3.5 has no such function; there decode() replaces what is not UTF-8, so the bytes differ.
    repaired = F.encode(F.decode(text.cast("binary"), "UTF-8"), "UTF-8")
    return repaired == text.cast("binary")


def _rendered(table: _Table, template: str, noun: str, text_name: str, names: Columns) -> Column:
    """The template as a column. Null where the main text is null; other null columns render as nothing."""
    aliases = {noun: text_name, "title": names.title or "title"}
    parts: list[Column] = []
    main_seen = False
    for literal, name, spec, conversion in _parsed(template, noun):
        if literal:
            parts.append(F.lit(literal))
        if name is None:
            continue
        if spec or conversion:
            raise ConfigError(
                f"input.{noun}_template {template!r}: only plain {{column}} fields are understood"
            )
        column = aliases.get(name, name)
        if column not in table:
            raise ConfigError(
                f"input.{noun}_template {template!r} names {name!r}, but {table.label} has no column {column!r} "
                f"(it has {', '.join(table.internal)})"
            )
        if name == noun:
            main_seen = True
            parts.append(table.require(column, noun, (T.StringType,), "a string"))
        else:
            parts.append(F.coalesce(_as_text(table, column, template, noun), F.lit("")))
    if not main_seen:
        raise ConfigError(f"input.{noun}_template {template!r} does not contain {{{noun}}}")
    return parts[0] if len(parts) == 1 else F.concat(*parts)


def _as_text(table: _Table, name: str, template: str, noun: str) -> Column:
    kind = table.types[name]
    if not isinstance(kind, _TEXT_IS_PLAIN):
        raise ConfigError(
            f"input.{noun}_template {template!r} names {name!r}, which is {kind.simpleString()} in {table.label}: its "
            "text depends on time zone, settings or Spark's version; cast it to a string in the input"
        )
    return table.column(name).cast("string")


def _parsed(template: str, noun: str) -> list[tuple[str, str | None, str | None, str | None]]:
    try:
        return list(string.Formatter().parse(template))
    except ValueError as error:
        raise ConfigError(f"input.{noun}_template {template!r}: {error}; write {{{{ for a brace") from error


# --- keys, reasons, order ---


def _with_keys(rows: DataFrame, query: _TextSide, passage: _TextSide) -> DataFrame:
    for side in (query, passage):
        if side.inline is not None:
            key, problem = side.inline
            rows = rows.select("*", key.alias(f"_{side.noun}_key"), problem.alias(f"_{side.noun}_problem"))
        else:
            assert side.by_id is not None
            joined = rows.join(side.by_id, F.col(side.id_column) == F.col(f"_{side.noun}_join"), "left")
            unknown = F.when(F.col(f"_{side.noun}_join").isNull(), F.lit(f"unknown_{side.noun}"))
            problem = F.coalesce(unknown, F.col(f"_{side.noun}_problem"))
            rows = joined.withColumn(f"_{side.noun}_problem", problem)
    return rows


def _with_reasons(rows: DataFrame, internal: dict[str, str], shape: Shape) -> DataFrame:
    """`reason` and `detail` of each row that cannot be ranked, the first that applies; keys only for the others."""
    names = shape.columns
    null_id = F.when(
        F.col("_query_id").isNull() | F.col("_passage_id").isNull(),
        F.concat(
            F.lit("null in "),
            F.when(F.col("_query_id").isNull(), F.lit(names.query_id)).otherwise(F.lit(names.passage_id)),
            F.lit("; every candidate needs both ids"),
        ),
    )
    sentences = [
        (Reason.UNEQUAL_ARRAYS, F.col("_unequal")),
        (Reason.NULL_ID, null_id),
        (Reason.BAD_SCORE, F.col("_bad_score")),
        (Reason.BAD_RANK, F.col("_bad_rank")),
    ]
    reason = F.coalesce(
        *[F.when(sentence.isNotNull(), F.lit(code)) for code, sentence in sentences],
        F.col("_query_problem"),
        F.col("_passage_problem"),
    )
    detail = F.coalesce(
        *[sentence for _, sentence in sentences], _text_detail("query"), _text_detail("passage")
    )
    checked = rows.select("*", reason.alias("_reason"), F.when(reason.isNotNull(), detail).alias("_detail"))
    return _with_duplicates(checked)


def _text_detail(noun: str) -> Column:
    problem, identifier = F.col(f"_{noun}_problem"), F.col(f"_{noun}_id")
    plural = "queries" if noun == "query" else "passages"
    sentences = {
        f"unknown_{noun}": F.format_string(
            f"{noun}_id %s is not in {plural}; add it there or drop the row", identifier
        ),
        f"ambiguous_{noun}": F.format_string(
            f"{noun}_id %s has several texts in {plural}; keep one", identifier
        ),
        f"null_{noun}": F.format_string(
            f"the text of {noun}_id %s is null; give it a text (an empty one is valid)", identifier
        ),
        Reason.INVALID_UTF8: F.format_string(
            f"the text of {noun}_id %s is not valid UTF-8; re-encode it", identifier
        ),
    }
    detail = F.lit(None).cast("string")
    for code, sentence in sentences.items():
        detail = F.when(problem == code, sentence).otherwise(detail)
    return detail


def _with_duplicates(rows: DataFrame) -> DataFrame:
    """Of several sound rows with the same ids the best placed stays, the others are rejects."""
    order = [
        F.col("_reason").isNotNull(),
        F.col(tables.FIRST_STAGE_RANK).asc_nulls_last(),
        F.col(tables.FIRST_STAGE_SCORE).desc_nulls_last(),
        F.col("_query_key").asc_nulls_last(),
        F.col("_passage_key").asc_nulls_last(),
        F.col("_tie"),
    ]
    place = F.row_number().over(Window.partitionBy("_query_id", "_passage_id").orderBy(*order))
    numbered = rows.withColumn("_place", place)
    duplicate = F.col("_reason").isNull() & (F.col("_place") > 1)
    sentence = F.format_string(
        "candidate %d of the same ids (query_id %s, passage_id %s); the best placed is kept",
        F.col("_place"),
        F.col("_query_id"),
        F.col("_passage_id"),
    )
    reason = F.when(duplicate, F.lit(Reason.DUPLICATE_CANDIDATE)).otherwise(F.col("_reason"))
    sound = reason.isNull()
    return numbered.select(
        tables.QUERY_ID,
        tables.PASSAGE_ID,
        "_query_id",
        "_passage_id",
        tables.FIRST_STAGE_RANK,
        tables.FIRST_STAGE_SCORE,
        "kept",
        F.when(sound, F.col("_query_key")).alias(tables.QUERY_KEY),
        F.when(sound, F.col("_passage_key")).alias(tables.PASSAGE_KEY),
        F.when(sound, keys.pair_key(F.col("_query_key"), F.col("_passage_key"))).alias(tables.PAIR_KEY),
        reason.alias(tables.REASON),
        F.when(duplicate, sentence).otherwise(F.col("_detail")).alias(tables.DETAIL),
    )


def _with_first_stage_order(rows: DataFrame, depth: int | None, has_rank: bool, has_score: bool) -> DataFrame:
    """Fill `first_stage_rank` from the score where there is no rank, and mark the rows beyond `depth`."""
    sound = F.col(tables.REASON).isNull()
    if not has_rank and has_score:
        by_score = Window.partitionBy("_query_id", sound).orderBy(
            F.col(tables.FIRST_STAGE_SCORE).desc_nulls_last(), F.col(tables.PASSAGE_ID)
        )
        rows = rows.withColumn(
            tables.FIRST_STAGE_RANK, F.when(sound, F.row_number().over(by_score)).cast("int")
        )
    beyond = F.lit(False)
    if depth is not None:
        by_rank = Window.partitionBy("_query_id", sound).orderBy(
            F.col(tables.FIRST_STAGE_RANK).asc_nulls_last(), F.col(tables.PASSAGE_ID)
        )
        beyond = sound & (F.row_number().over(by_rank) > depth)
    return rows.withColumn("beyond_depth", beyond).drop("_query_id", "_passage_id")
