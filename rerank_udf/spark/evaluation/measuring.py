"""The one Python stage: whole queries in, their values and each part's findings out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from rerank_udf.evaluation.findings import Findings
from rerank_udf.evaluation.parts import Part, measure_batches
from rerank_udf.evaluation.study import Key
from rerank_udf.spark.evaluation.inputs import Inputs
from rerank_udf.tables import QUERY_ID

_ROWS_PER_TASK = 200_000
_MOST_TASKS = 10_000
_LONG_COLUMNS = ("cluster", "system", "documents", "measure", "value")


@dataclass(frozen=True)
class Measured:
    """`rows`: as `Part.schema` says; every action on them measures again, unless they are persisted."""

    rows: DataFrame
    part: Part

    def values(self) -> DataFrame:
        """A row a query: query_id, cluster, g0 …, v0 … (one for each key)."""
        texts, values = self.part.columns()
        return self.rows.where(F.col("note").isNull()).select(*texts, *values)

    def long(self, keys: Sequence[Key]) -> DataFrame:
        """A row a query × key, with the columns of `Evaluation.per_query`."""
        group_by = self.part.group_by()
        kept = [i for i, name in enumerate(group_by) if name not in _LONG_COLUMNS]
        cells = [
            F.struct(*[F.lit(text) for text in key], F.col(f"v{i}").alias("value"))
            for i, key in enumerate(keys)
        ]
        grouping = [f"g{i}" for i in kept]
        exploded = self.values().select(
            QUERY_ID, *grouping, "cluster", F.explode(F.array(*cells)).alias("cell")
        )
        return exploded.select(QUERY_ID, *grouping, "cluster", "cell.*").toDF(
            QUERY_ID, *(group_by[i] for i in kept), *_LONG_COLUMNS
        )

    @contextmanager
    def kept_unless_it_fails(self) -> Iterator[None]:
        """Persist the rows; where the block fails they are freed."""
        self.rows.persist()
        try:
            yield
        except BaseException:
            self.release()
            raise

    def findings(self) -> Findings:
        """Of all parts together."""
        notes = self.rows.where(F.col("note").isNotNull()).select("note").collect()
        return findings_of(row["note"] for row in notes)

    def release(self) -> None:
        """Free what is persisted."""
        self.rows.unpersist()


def measured(inputs: Inputs, part: Part, rows: int | None) -> Measured:
    """The stage over all inputs, which nothing has run yet; `rows`: of all rankings, for the number of its tasks, which
    is Spark's own choice without it."""
    united = inputs.united()
    if rows is None:
        spread = united.repartition("q")
    else:
        spread = united.repartition(max(1, min(_MOST_TASKS, math.ceil(rows / _ROWS_PER_TASK))), "q")
    by_query = spread.sortWithinPartitions("q")
    texts, values = part.columns()
    fields = [T.StructField(name, T.StringType()) for name in texts]
    fields += [T.StructField(name, T.DoubleType()) for name in values]
    schema = T.StructType([*fields, T.StructField("note", T.StringType())])
    return Measured(by_query.mapInArrow(measure_batches(part), schema), part)


def findings_of(notes: Iterable[str]) -> Findings:
    """What all parts found."""
    findings = Findings()
    for note in notes:
        findings.merge(Findings.from_json(note))
    return findings


def collected(frame: DataFrame) -> pa.Table | None:
    """The frame's rows on the driver, as Arrow; None for no rows.

    `toPandas` would make Python objects of them first, unless a setting says otherwise.
    """

    def packed(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, batch.schema) as writer:
                writer.write_batch(batch)
            yield pa.record_batch([pa.array([sink.getvalue().to_pybytes()], pa.binary())], ["batch"])

    rows = frame.mapInArrow(packed, "batch binary").collect()
    tables = [pa.ipc.open_stream(bytes(row["batch"])).read_all() for row in rows]
    return pa.concat_tables(tables) if tables else None
