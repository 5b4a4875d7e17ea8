"""A Delta table by path or by name: its versions, its commits, and writes that happen once.

Public SQL and writer options only, so that the same holds on Databricks, whose Delta has other classes.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence

from pyspark.sql import Column, DataFrame, Row, SparkSession
from pyspark.sql import functions as F

from rerank_udf import tables
from rerank_udf.lake import files
from rerank_udf.lake.catalog import provider_of, quoted_table

LOG = "_delta_log"
# What a session or a table may have set otherwise: an exchange before the write, and an overwrite of less than asked.
_PLAIN_WRITE = {"optimizeWrite": "false", "partitionOverwriteMode": "static"}
# Between Delta's making of the log's folder and its first version lies less than that.
_CREATING_SECONDS = 10.0
_FEW = 10  # commits that others may have made meanwhile, before more of the history is read
_LOST_A_RACE = ("ConcurrentTransaction", "DELTA_CONCURRENT_TRANSACTION")


class DeltaTable:
    """`sql` is how it stands in a statement; `place` how its user named it."""

    def __init__(self, spark: SparkSession, *, path: str | None = None, table: str | None = None) -> None:
        self._spark = spark
        self._path, self._table = path, table
        self.place = str(path or table)
        self.sql = (
            f"delta.{tables.quoted(files.qualified(spark, path))}" if path else quoted_table(self.place)
        )

    def exists(self) -> bool:
        """Whether there is a table (of a name: of whatever format).

        Of a path: whether its log has a version. A creation that failed, on a full disk say, leaves the log's folder
        without any; see `clear_failed_creation`.
        """
        if self._path:
            return any(name[:1].isdigit() for name in files.children(self._spark, f"{self._path}/{LOG}"))
        return provider_of(self._spark, self.place) is not None

    def clear_failed_creation(self) -> None:
        """Remove a log without a version, which Delta itself takes for a table that it then cannot read.

        Only the log's folder, and only once nothing has been written there for a while: another run may be creating
        the table, and is waited for. By this machine's clock too: an object store tells no time of a folder.
        """
        since = time.monotonic()
        while self._path and not self.exists():
            found = [entry for entry in files.entries(self._spark, self._path) if entry.name == LOG]
            if not found:
                return
            written = files.youngest(self._spark, f"{self._path}/{LOG}")
            own = time.time() - found[0].modified
            waited = time.monotonic() - since
            if max(waited, min(own, own if written is None else written)) > _CREATING_SECONDS:
                files.remove(self._spark, f"{self._path}/{LOG}")
                return
            time.sleep(1)

    def detail(self) -> Row:
        """`describe detail`: partitionColumns, properties, …"""
        return self._spark.sql(f"describe detail {self.sql}").collect()[0]

    def version(self) -> int:
        """The newest."""
        return int(self._history(1)[0]["version"])

    def at(self, version: int) -> DataFrame:
        """The table as of a version: a frame of the plain table would follow it from action to action."""
        return self._spark.sql(f"select * from {self.sql} version as of {version}")

    def now(self) -> DataFrame:
        """The table as of now, whatever is committed while it is read."""
        return self.at(self.version())

    def append(self, frame: DataFrame, once: str) -> Row | None:
        """Append in one commit, by its history row; None where an append with the id `once` is in already.

        Delta keeps the highest txnVersion of each txnAppId and drops what is not above it. So the id is all in the
        txnAppId: numbers under one id would drop whatever comes late.
        """
        own = f"{once}/{uuid.uuid4().hex}"
        before = self.version()
        options = {"txnAppId": once, "txnVersion": "0", "userMetadata": own, **_PLAIN_WRITE}
        try:
            frame.writeTo(self.sql).options(**options).append()
        except Exception as error:
            if not any(sign in str(error) for sign in _LOST_A_RACE):
                raise
            return None  # somebody else's append of this id was faster
        return self.commit(own, before)

    def overwrite(self, frame: DataFrame, where: Column | None = None) -> int:
        """Replace all rows, or those `where` holds, in one commit; the new version."""
        own, before = uuid.uuid4().hex, self.version()
        options = {"userMetadata": own, **_PLAIN_WRITE}
        frame.writeTo(self.sql).options(**options).overwrite(F.lit(True) if where is None else where)
        commit = self.commit(own, before)
        return int(commit["version"]) if commit is not None else self.version()

    def commit(self, own: str, before: int) -> Row | None:
        """The commit after version `before` that carries this userMetadata."""
        since = self._history(_FEW)
        if since[-1]["version"] > before + 1:
            since = self._history(since[0]["version"] - before)
        return next((row for row in since if row["userMetadata"] == own), None)

    def create(self, rows: DataFrame, partition: Sequence[str], once: str) -> None:
        """Make the table with its first rows, in one commit; raises where it is there already.

        By path with the plain writer: it goes by the log's versions alone, so that what a failed creation left, a log
        without a version and files that no version names, is in nobody's way and needs no deleting.
        """
        options = {"txnAppId": once, "txnVersion": "0", **_PLAIN_WRITE}
        if self._path:
            writer = rows.write.format("delta").mode("errorifexists").options(**options)
            writer.partitionBy(*partition).save(self._path)
            return
        table = rows.writeTo(self.sql).using("delta").options(**options)
        (table.partitionedBy(*[F.col(name) for name in partition]) if partition else table).create()

    def _history(self, commits: int) -> list[Row]:
        return self._spark.sql(f"describe history {self.sql} limit {commits}").collect()
