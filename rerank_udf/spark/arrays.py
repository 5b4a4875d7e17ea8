"""One row a query with arrays → one row a pair."""

from __future__ import annotations

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from rerank_udf.config import Columns, Nested
from rerank_udf.errors import InputError
from rerank_udf.spark.named import NamedTable


def flat(candidates: DataFrame, nested: Nested | None, names: Columns) -> DataFrame:
    """Long tables as they are; arrays exploded in order, with `rank` their position from 1 unless they carry one."""
    if nested is None:
        return candidates
    if nested.array:
        return _explode_structs(candidates, nested.array, names)
    return _explode_parallel(candidates, names)


def _explode_structs(candidates: DataFrame, array: str, names: Columns) -> DataFrame:
    table = NamedTable.of("candidates", candidates, "n")
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
    table = NamedTable.of("candidates", candidates, "n")
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
