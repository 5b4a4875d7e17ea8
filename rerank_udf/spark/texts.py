"""The two texts of a pair: rendered from a template, keyed by content, joined by id or taken from the row itself."""

from __future__ import annotations

import string
from dataclasses import dataclass

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from rerank_udf.config import Columns
from rerank_udf.errors import ConfigError, InputError
from rerank_udf.lake.plain_text import valid_utf8 as valid_utf8
from rerank_udf.spark import keys
from rerank_udf.spark.named import ID_TYPES, INTEGER_TYPES, NamedTable
from rerank_udf.tables import Reason

# Types whose text is the same in every session.
_TEXT_IS_PLAIN = (*INTEGER_TYPES, T.StringType, T.BooleanType, T.DateType, T.DecimalType)


@dataclass(frozen=True)
class TextSide:
    """One of the two texts of a pair.

    `inline`: columns `key` and `problem` expressed over the candidates' own columns; otherwise `by_id` maps an id
    to them and is joined. `texts` has (key, text) in that order.
    """

    noun: str
    id_column: str
    by_id: DataFrame | None
    inline: tuple[Column, Column] | None
    texts: DataFrame


def text_side(
    candidates: NamedTable,
    own_table: DataFrame | None,
    label: str,
    id_name: str,
    id_setting: str,
    text_name: str,
    template: str,
    names: Columns,
) -> TextSide:
    """One side of the pairs, from its own table or, where that is None, from the candidates themselves.

    Raises InputError for a missing text, id or wrong type, ConfigError for a template that does not fit.
    """
    noun = "query" if label == "queries" else "passage"
    if own_table is None:
        if text_name not in candidates:
            raise InputError(
                f"no text for the {label}: candidates has no column {text_name!r} (it has "
                f"{', '.join(candidates.internal)}) and input.{label} is not set; give one of them"
            )
        text = _rendered(candidates, template, noun, text_name, names)
        key = keys.text_key(text)
        texts = candidates.frame.select(key, text).where(text.isNotNull())
        return TextSide(noun, f"_{id_setting}", None, (key, _text_problem(text, noun)), texts)
    table = NamedTable.of(label, own_table, "q" if noun == "query" else "p")
    identifier = table.require(id_name, id_setting, ID_TYPES, "a string or an integer").cast("string")
    text = _rendered(table, template, noun, text_name, names)
    key, problem = keys.text_key(text), _text_problem(text, noun)
    return TextSide(
        noun,
        f"_{id_setting}",
        _unique_by_id(table.frame, identifier, key, problem, noun),
        None,
        table.frame.where(problem.isNull()).select(key, text),
    )


def _unique_by_id(frame: DataFrame, identifier: Column, key: Column, problem: Column, noun: str) -> DataFrame:
    """id → (key, problem). An id that stands for two different texts gets the problem `ambiguous_…`."""
    # Narrow before it is grouped: otherwise the texts themselves are sorted and their keys made again and again.
    narrow = frame.where(identifier.isNotNull()).select(
        identifier.alias(f"_{noun}_join"), key.alias("_key"), problem.alias("_problem")
    )
    comparable = F.coalesce("_key", F.lit(b"null").cast("binary"))
    grouped = narrow.groupBy(f"_{noun}_join").agg(
        F.min(comparable).alias("_low"),
        F.max(comparable).alias("_high"),
        F.min("_key").alias(f"_{noun}_key"),
        F.min("_problem").alias("_problem"),
    )
    ambiguous = F.when(F.col("_low") != F.col("_high"), F.lit(f"ambiguous_{noun}"))
    return grouped.select(
        f"_{noun}_join", f"_{noun}_key", F.coalesce(ambiguous, F.col("_problem")).alias(f"_{noun}_problem")
    )


def _text_problem(text: Column, noun: str) -> Column:
    """The reason code of a text that cannot be scored, else null."""
    return F.when(text.isNull(), F.lit(f"null_{noun}")).when(~valid_utf8(text), F.lit(Reason.INVALID_UTF8))


def _rendered(table: NamedTable, template: str, noun: str, text_name: str, names: Columns) -> Column:
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


def _as_text(table: NamedTable, name: str, template: str, noun: str) -> Column:
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
