"""The score store: facts that are looked up instead of computed again.

A fact says that under one `model_key` a pair of texts has this logit. Facts are immutable, true one by one and only
ever added, so a part of a run's facts is as good as all of them, and whatever is in twice (two runs at once) is the
same within rounding: readers reduce to the smallest logit a pair.

One file a format: parquet, delta, iceberg. All of them answer to ScoreStore.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from rerank_udf import tables
from rerank_udf.config import Store

FACTS_SCHEMA = T.StructType(
    [
        T.StructField(tables.PAIR_KEY, T.BinaryType()),
        T.StructField(tables.LOGIT, T.FloatType()),
        T.StructField(tables.TOKENS, T.IntegerType()),
        T.StructField(tables.TRUNCATED, T.BooleanType()),
    ]
)


@dataclass(frozen=True)
class KeyStats:
    """What is kept under one model_key: `facts` rows (a pair that is in twice counts twice), in `files` of `bytes`.

    `appends` are the commits it came by; None where the format does not tell.
    """

    model_key: str
    facts: int
    files: int
    bytes: int
    appends: int | None


@dataclass(frozen=True)
class Damage:
    """A file of the store that is missing, or does not hold what was written."""

    file: str
    model_key: str
    problem: str


@dataclass(frozen=True)
class Change:
    """What `compact` or `vacuum` did, or would do: a sentence, and files and bytes before and after it."""

    model_key: str
    what: str
    files_before: int
    files_after: int
    bytes: int


class ScoreStore(Protocol):
    """Facts by model_key, in whatever format."""

    place: str

    def facts(self, model_key: str) -> DataFrame | None:
        """FACTS_SCHEMA rows as of now, a pair perhaps more than once; None where there are none."""
        ...

    def append(self, facts: DataFrame, model_key: str, append_id: str) -> bool:
        """Add FACTS_SCHEMA rows in one commit, without another exchange; False where nothing was added.

        That is: there are no rows, or an append of this id is in already. Raises StoreError where it cannot write.
        """
        ...

    def stats(self) -> list[KeyStats]:
        """What is kept, by model_key in order."""
        ...

    def verify(self) -> list[Damage]:
        """Read every file and name the damaged ones; empty where all is sound."""
        ...

    def compact(self, dry_run: bool) -> list[Change]:
        """Write many small files anew as few large ones; with `dry_run` only say what would be done."""
        ...

    def vacuum(self, keep: frozenset[str] | None, dry_run: bool) -> list[Change]:
        """Forget the facts of every model_key that is not in `keep` (None: of none), and what no reader needs."""
        ...


def open_store(spark: SparkSession, settings: Store, path: str | None) -> ScoreStore:
    """The store that the settings name; nothing is made before the first append.

    `path`: its folder, where it is not a table. Raises StorePlaceError where something else is at that place.
    """
    if settings.format == "iceberg":
        from rerank_udf.lake.store.iceberg import IcebergStore

        return IcebergStore(spark, str(settings.table))
    if settings.format == "delta":
        from rerank_udf.lake.store.delta import DeltaStore

        return DeltaStore(spark, path=path, table=settings.table)
    from rerank_udf.lake.store.parquet import ParquetStore

    return ParquetStore(spark, str(path))


def append_id_of(names: Iterable[str]) -> str:
    """The id of an append: 32 hex digits over the sorted names of the files it takes its facts from."""
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()[:32]


def reduced(facts: DataFrame) -> DataFrame:
    """One row a pair_key, with its smallest logit; `tokens` and `truncated` are the same wherever a pair stands."""
    others = [F.min(name).alias(name) for name in (tables.LOGIT, tables.TOKENS, tables.TRUNCATED)]
    return facts.groupBy(tables.PAIR_KEY).agg(*others)
