"""Which pairs the store knows. The store is the large side: it is never shuffled where either side is small.

Measured (benchmarks/README.md, The score store): 200 k pairs against 50 M facts take 4.7 s with the pairs broadcast
and nothing shuffled, 21 s and 1,031 MB shuffled by a plain anti-join.
"""

from __future__ import annotations

from dataclasses import dataclass

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from rerank_udf import tables
from rerank_udf.lake.store import reduced

# Keys of 16 bytes: a hash table of them takes about 100 bytes a row on each executor.
BROADCAST_ROWS = 1_000_000
KNOWN = "_known"
# A store of up to this many times the pairs is reduced whole: looking up first would cost an exchange more.
_MUCH_LARGER = 4


@dataclass(frozen=True)
class KnownFacts:
    """The store's facts under one model_key as of one moment, and how many they are."""

    facts: DataFrame
    count: int


def known_facts(facts: DataFrame | None) -> KnownFacts | None:
    """`facts` with their number, which Parquet's footers tell; None where there are none."""
    count = 0 if facts is None else facts.count()
    return None if facts is None or not count else KnownFacts(facts, count)


def is_shuffled(pair_count: int, store: KnownFacts | None) -> bool:
    """Whether looking up that many pairs shuffles both sides by pair_key: neither is small."""
    return store is not None and min(store.count, pair_count) > BROADCAST_ROWS


def with_known(pairs: DataFrame, pair_count: int, store: KnownFacts | None) -> DataFrame:
    """`pairs` (distinct pair_keys, about `pair_count` of them) with a column KNOWN: whether the store has a fact."""
    if store is None:
        return pairs.withColumn(KNOWN, F.lit(False))
    keys = _met(pairs, pair_count, store).select(F.col(tables.PAIR_KEY).alias("_met")).distinct()
    if not is_shuffled(pair_count, store):
        keys = F.broadcast(keys)
    joined = pairs.join(keys, F.col(tables.PAIR_KEY) == F.col("_met"), "left")
    return joined.withColumn(KNOWN, F.col("_met").isNotNull()).drop("_met")


def unknown_facts(facts: DataFrame, fact_count: int, store: KnownFacts | None) -> DataFrame:
    """Those of `facts` (about `fact_count`) whose pair_key is not in the store yet."""
    if store is None:
        return facts
    keys = _met(facts, fact_count, store).select(tables.PAIR_KEY)
    if not is_shuffled(fact_count, store):
        keys = F.broadcast(keys)
    return facts.join(keys, tables.PAIR_KEY, "left_anti")


def facts_of(pairs: DataFrame, pair_count: int, store: KnownFacts) -> DataFrame:
    """The facts of the pairs whose pair_key stands in `pairs`, one row a pair (lake.store.FACTS_SCHEMA)."""
    if store.count <= _MUCH_LARGER * pair_count:
        return reduced(store.facts)
    keys = pairs.select(tables.PAIR_KEY).where(F.col(tables.PAIR_KEY).isNotNull())
    if pair_count <= BROADCAST_ROWS:
        keys = F.broadcast(keys)
    return reduced(store.facts.join(keys, tables.PAIR_KEY, "left_semi"))


def _met(pairs: DataFrame, pair_count: int, store: KnownFacts) -> DataFrame:
    """The store's facts, of a large store only those whose pairs are among a few `pairs`."""
    if store.count <= BROADCAST_ROWS or pair_count > BROADCAST_ROWS:
        return store.facts
    return store.facts.join(F.broadcast(pairs.select(tables.PAIR_KEY)), tables.PAIR_KEY, "left_semi")
