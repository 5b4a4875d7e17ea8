"""What the Delta and the Iceberg store have in common: one table of facts, partitioned by model_key."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from pyspark.errors import ParseException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from rerank_udf import tables
from rerank_udf.errors import StoreError, StorePlaceError
from rerank_udf.lake import files
from rerank_udf.lake.catalog import first_difference, missing_schema, types_of
from rerank_udf.lake.failures import innermost_cause
from rerank_udf.lake.store import FACTS_SCHEMA, Change, KeyStats
from rerank_udf.lake.store.reading import damaged_files

TABLE_SCHEMA = T.StructType([T.StructField(tables.MODEL_KEY, T.StringType()), *FACTS_SCHEMA.fields])
_MODEL_KEY = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class LiveFile:
    """A data file that the newest version of the table needs."""

    path: str
    facts: int
    bytes: int


LiveFiles = Mapping[str, Sequence[LiveFile]]  # by model_key


def create_statement(sql_name: str, provider: str, properties: Mapping[str, str]) -> str:
    """DDL for the table of facts; nothing happens where it is there already."""
    columns = ", ".join(f"{name} {kind}" for name, kind in types_of(TABLE_SCHEMA).items())
    given = ", ".join(f"'{name}' = '{value}'" for name, value in properties.items())
    return (
        f"create table if not exists {sql_name} ({columns}) using {provider} "
        f"partitioned by ({tables.MODEL_KEY}) tblproperties ({given})"
    )


def keyed(facts: DataFrame, model_key: str) -> DataFrame:
    """FACTS_SCHEMA rows as rows of the table."""
    return facts.select(F.lit(model_key).alias(tables.MODEL_KEY), *FACTS_SCHEMA.names)


def facts_under(table: DataFrame, model_key: str) -> DataFrame | None:
    """Rows of the table as FACTS_SCHEMA rows of one model_key; None where there are none."""
    facts = table.where(F.col(tables.MODEL_KEY) == F.lit(model_key)).select(*FACTS_SCHEMA.names)
    return None if facts.isEmpty() else facts


def check_schema(spark: SparkSession, table: str) -> None:
    """Raise StorePlaceError where a table of this name could not be made."""
    schema = missing_schema(spark, table)
    if schema is not None:
        raise StorePlaceError(
            f"store.table {table}: there is no schema {schema}; make it first (create schema {schema}), or name another"
        )


def check_table(place: str, found: T.StructType, partitions: Sequence[str]) -> None:
    """Raise StorePlaceError where a table is there that this store did not make."""
    difference = first_difference(types_of(TABLE_SCHEMA), types_of(found))
    if difference:
        name, what = difference
        raise StorePlaceError(
            f"{place} is a table but no score store: column {name!r}, {what}; give another place"
        )
    if list(partitions) != [tables.MODEL_KEY]:
        raise StorePlaceError(
            f"{place} has a score store's columns and is partitioned by {', '.join(partitions) or 'nothing'}; expected "
            f"{tables.MODEL_KEY}: give another place"
        )


def stats_of(live: LiveFiles) -> list[KeyStats]:
    """KeyStats; these formats forget their commits after a while, so `appends` is None."""
    return [
        KeyStats(key, sum(file.facts for file in some), len(some), sum(file.bytes for file in some), None)
        for key, some in sorted(live.items())
    ]


def compactions(live: LiveFiles, large_bytes: int) -> list[Change]:
    """What there is to do: under a model_key, more than one file that is smaller than a large one."""
    changes = []
    for key, some in sorted(live.items()):
        small = [file.bytes for file in some if file.bytes < large_bytes]
        after = len(some) - len(small) + math.ceil(sum(small) / large_bytes)
        if after < len(some):
            changes.append(Change(key, "small files into large ones", len(some), after, sum(small)))
    return changes


def as_found(changes: Sequence[Change], live: LiveFiles) -> list[Change]:
    """The changes with the files that there are now."""
    return [replace(change, files_after=len(live.get(change.model_key, ()))) for change in changes]


def forgettings(live: LiveFiles, keep: frozenset[str] | None) -> list[Change]:
    """What is not to be kept; raises StoreError where a model_key is none of ours (its name goes into SQL)."""
    odd = [key for key in live if not _MODEL_KEY.fullmatch(key)]
    if odd:
        raise StoreError(
            f"the score store holds model_key {odd[0]!r}, which is none; nothing has been deleted"
        )
    return [
        Change(key, "forgotten", len(some), 0, sum(file.bytes for file in some))
        for key, some in sorted(live.items())
        if keep is not None and key not in keep
    ]


def any_of(changes: Sequence[Change]) -> str:
    """A SQL condition: the model_key is one of theirs."""
    return f"{tables.MODEL_KEY} in ({', '.join(repr(change.model_key) for change in changes)})"


def unreadable_files(spark: SparkSession, paths: Sequence[str]) -> dict[str, str]:
    """Path → problem of the files that are missing, empty, or do not hold what was written to them.

    An empty one is told apart here, since Spark reads it as no rows.
    """
    sizes = file_sizes(spark, paths)
    problems = {path: "missing" if path not in sizes else "0 bytes" for path in paths if not sizes.get(path)}
    return problems | damaged_files(spark, [path for path in paths if path not in problems])


def file_sizes(spark: SparkSession, paths: Sequence[str]) -> dict[str, int]:
    """Path → bytes of those that are there; each folder is listed once."""
    folders = {path.rsplit("/", 1)[0] for path in paths}
    present = {
        f"{folder}/{entry.name}": entry.bytes for folder in folders for entry in files.entries(spark, folder)
    }
    return {path: present[path] for path in paths if path in present}


@contextmanager
def reading(place: str, lake_format: str) -> Iterator[None]:
    """While the table is looked up, or its files: what Spark finds wrong becomes a StoreError in a sentence."""
    try:
        yield
    except StoreError:
        raise
    except ParseException:  # the format's own statements are no SQL without its extension
        raise StoreError(f"the score store at {place} cannot be read: {_no_package(lake_format)}") from None
    except Exception as error:
        raise StoreError(
            f"the score store at {place} cannot be read: {innermost_cause(error)} (`rerank-udf store verify` names "
            "damaged data files)"
        ) from error


@contextmanager
def writing(place: str, lake_format: str) -> Iterator[None]:
    """While the store is written to: whatever Spark says becomes a StoreError in a sentence."""
    try:
        yield
    except StoreError:
        raise
    except Exception as error:
        missing = "DATA_SOURCE_NOT_FOUND" in str(error)
        cause = _no_package(lake_format) if missing else innermost_cause(error)
        raise StoreError(
            f"the score store at {place} cannot be written: {cause}; nothing that it holds is lost, and finished "
            "scores wait in the work folder: mend it and run the same command again"
        ) from error


def _no_package(lake_format: str) -> str:
    return f"this Spark has no {lake_format}; add its package (spark.jars.packages) and its session settings"
