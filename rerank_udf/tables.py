"""Column names, schemas and reason codes of every table, in one place. Imports nothing heavy."""

from __future__ import annotations

import re

from rerank_udf.errors import ConfigError

QUERY_ID = "query_id"
PASSAGE_ID = "passage_id"
QUERY = "query"
PASSAGE = "passage"
SCORE = "score"
RANK = "rank"
LOGIT = "logit"
FUSED_SCORE = "fused_score"
FIRST_STAGE_RANK = "first_stage_rank"
FIRST_STAGE_SCORE = "first_stage_score"
RELEVANCE = "relevance"
REASON = "reason"
DETAIL = "detail"
RUN_DATE = "run_date"
PASSAGES = "passages"

PAIR_KEY = "pair_key"
QUERY_KEY = "query_key"
PASSAGE_KEY = "passage_key"
TOKENS = "tokens"
TRUNCATED = "truncated"
SCORER = "scorer"
MODEL_KEY = "model_key"

_NAME_PART = re.compile(r"(?P<plain>[A-Za-z0-9_]+)|`(?P<quoted>(?:[^`]|``)+)`")


class Reason:
    """Why a row was not ranked: the `reason` column of the rejects table.

    The first group is found before scoring, the next while the texts are read again, the last by the scorer.
    """

    NULL_ID = "null_id"
    UNKNOWN_QUERY = "unknown_query"
    UNKNOWN_PASSAGE = "unknown_passage"
    AMBIGUOUS_QUERY = "ambiguous_query"
    AMBIGUOUS_PASSAGE = "ambiguous_passage"
    DUPLICATE_CANDIDATE = "duplicate_candidate"
    NULL_QUERY = "null_query"
    NULL_PASSAGE = "null_passage"
    INVALID_UTF8 = "invalid_utf8"
    BAD_SCORE = "bad_score"
    BAD_RANK = "bad_rank"
    UNEQUAL_ARRAYS = "unequal_arrays"

    TEXT_CHANGED = "text_changed"

    NOT_FINITE = "not_finite"
    OUT_OF_MEMORY = "out_of_memory"
    TOKENIZER_ERROR = "tokenizer_error"
    CRASHED_WORKER = "crashed_worker"


class Cut:
    """Why a sound row is not in the reranked table: counted in the report, never a reject."""

    DEPTH = "depth"
    MIN_SCORE = "min_score"
    TOP_K = "top_k"
    STOPPED = "stopped"  # the run ended before scoring, over its rejects


def quoted(name: str) -> str:
    """A column's name as Spark's `col` takes it whatever characters it holds."""
    return "`" + name.replace("`", "``") + "`"


def table_parts(name: str) -> list[str]:
    """The parts of a table's name, unquoted: `main.rag.``my table``` → ["main", "rag", "my table"].

    A part is letters, digits and underscores, or anything else in back-quotes but a path: a slash, `.` and `..` would
    lead a catalog of folders out of its own. Raises ConfigError.
    """
    parts, place = [], 0
    while found := _NAME_PART.match(name, place):
        parts.append(found["plain"] or found["quoted"].replace("``", "`"))
        if found.end() == len(name):
            break
        place = found.end() + 1 if name[found.end()] == "." else len(name)
    if found is None or found.end() != len(name) or any(_is_path(part) for part in parts):
        raise ConfigError(
            f"{name!r} is not a table name; expected table, schema.table or catalog.schema.table, with a part that "
            "holds anything but letters, digits and underscores in back-quotes (a folder goes into path:)"
        )
    return parts


def checked_table_name(name: str) -> str:
    """`name` as it is, if it is a table's name and nothing more; raises ConfigError."""
    table_parts(name)
    return name


def _is_path(part: str) -> bool:
    return part in (".", "..") or any(character in "/\\" or not character.isprintable() for character in part)
