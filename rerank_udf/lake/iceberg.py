"""An Iceberg table by name: its snapshots, its procedures, and writes that leave a mark on their snapshot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pyspark.sql import Column, DataFrame, Row, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from rerank_udf import tables
from rerank_udf.lake.catalog import full_parts, provider_of, quoted_parts


class IcebergTable:
    """`sql` is how it stands in a statement, catalog first; `place` how its user named it."""

    def __init__(self, spark: SparkSession, table: str) -> None:
        self._spark = spark
        self._parts = full_parts(spark, table)
        self.place = table
        self.sql = quoted_parts(self._parts)

    def exists(self) -> bool:
        """Whether there is a table, of whatever format."""
        return provider_of(self._spark, self.sql) is not None

    def metadata(self, name: str) -> DataFrame:
        """One of its metadata tables: snapshots, refs, files, …"""
        return self._spark.table(f"{self.sql}.{name}")

    def snapshot(self) -> int | None:
        """The id of the current one; None before the first write."""
        found = self.metadata("refs").where("name = 'main'").select("snapshot_id").collect()
        return int(found[0][0]) if found else None

    def marked(self, mark: tuple[str, str]) -> Row | None:
        """The newest snapshot (a row of `snapshots`) written with this property, of those that have not expired."""
        rows = self.metadata("snapshots").where(F.element_at("summary", mark[0]) == F.lit(mark[1]))
        return next(iter(rows.orderBy(F.col("committed_at").desc()).take(1)), None)

    def at(self, snapshot: int) -> DataFrame:
        """The table as of a snapshot: a frame of the plain table may follow it from action to action."""
        return self._spark.sql(f"select * from {self.sql} version as of {snapshot}")

    def now(self) -> DataFrame:
        """The table as of now, whatever is committed while it is read."""
        snapshot = self.snapshot()
        return self._spark.table(self.sql) if snapshot is None else self.at(snapshot)

    def partitions(self) -> list[str]:
        """The names of its partition's fields; of a field that is a column's own value, the column's."""
        schema = self.metadata("partitions").schema
        partition = schema["partition"].dataType if "partition" in schema.names else None
        return partition.names if isinstance(partition, T.StructType) else []

    def create(self, rows: DataFrame, partition: Sequence[Column], mark: tuple[str, str]) -> None:
        """Make the table with its first rows, in one commit; raises where it is there already."""
        writer = rows.writeTo(self.sql).using("iceberg").options(**_marking(mark))
        if partition:
            # A run's rows are all of one partition: by default they would be brought together in one task first.
            writer = writer.partitionedBy(*partition).tableProperty("write.distribution-mode", "none")
        writer.create()

    def append(
        self, frame: DataFrame, mark: tuple[str, str], options: Mapping[str, str] | None = None
    ) -> Row | None:
        """Append in one snapshot that carries `mark` (property, value), by its row of `snapshots`.

        None where one with this mark is there already: Iceberg itself would add the rows again.
        """
        if self.marked(mark) is not None:
            return None
        frame.writeTo(self.sql).options(**_marking(mark), **(options or {})).append()
        return self.marked(mark)

    def overwrite(self, frame: DataFrame, mark: tuple[str, str], where: Column | None = None) -> None:
        """Replace all rows, or those that `where` holds, in one snapshot.

        A dynamic overwrite would leave the old rows of a partition where there are no new ones.
        """
        whole = F.lit(True) if where is None else where
        frame.writeTo(self.sql).options(**_marking(mark)).overwrite(whole)

    def call(self, procedure: str, **arguments: str) -> DataFrame:
        """Run one of the catalog's maintenance procedures on it; `arguments` are SQL expressions."""
        table = text_literal(quoted_parts(self._parts[1:]))
        given = ", ".join(f"{name} => {value}" for name, value in {"table": table, **arguments}.items())
        return self._spark.sql(f"call {tables.quoted(self._parts[0])}.system.{procedure}({given})")


def text_literal(text: str) -> str:
    """A SQL string; raises ValueError for what would need an escape, whose spelling is a session's own matter."""
    if "'" in text or "\\" in text:
        raise ValueError(f"{text!r} cannot stand in a SQL string")
    return f"'{text}'"


def _marking(mark: tuple[str, str]) -> dict[str, str]:
    return {f"snapshot-property.{mark[0]}": mark[1]}
