"""The score store as an Iceberg table, by name, partitioned by model_key."""

from __future__ import annotations

from collections import defaultdict

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from rerank_udf import tables
from rerank_udf.errors import StorePlaceError
from rerank_udf.lake.catalog import provider_of
from rerank_udf.lake.iceberg import IcebergTable
from rerank_udf.lake.store import Change, Damage, KeyStats
from rerank_udf.lake.store.table import (
    LiveFile,
    LiveFiles,
    any_of,
    as_found,
    check_schema,
    check_table,
    compactions,
    create_statement,
    facts_under,
    forgettings,
    keyed,
    reading,
    stats_of,
    unreadable_files,
    writing,
)

APPEND_ID = "rerank_udf.append-id"
# A file below this is rewritten: three quarters of Iceberg's own target, 512 MB.
_LARGE_BYTES = 384 << 20
# By default a partitioned table's rows are shuffled and sorted before they are written.
_PLAIN_WRITE = {"distribution-mode": "none", "fanout-enabled": "true"}
_PROPERTIES = {
    "write.distribution-mode": "none",
    "write.format.default": "parquet",  # verify reads the files by themselves
    # One metadata file an append, and none would ever go.
    "write.metadata.delete-after-commit.enabled": "true",
}


class IcebergStore:
    """See `lake.store.ScoreStore`."""

    def __init__(self, spark: SparkSession, table: str) -> None:
        self._spark = spark
        self.place = table
        self._table = IcebergTable(spark, table)
        with reading(self.place, "iceberg"):
            self._check_place()

    # --- ScoreStore ---

    def facts(self, model_key: str) -> DataFrame | None:
        """See ScoreStore."""
        return facts_under(self._table.now(), model_key) if self._table.exists() else None

    def append(self, facts: DataFrame, model_key: str, append_id: str) -> bool:
        """See ScoreStore. Two appends of one id at the same moment may both come in: facts are true twice, too."""
        with writing(self.place, "iceberg"):
            if not self._table.exists():
                self._spark.sql(create_statement(self._table.sql, "iceberg", _PROPERTIES))
            done = self._table.append(keyed(facts, model_key), (APPEND_ID, append_id), _PLAIN_WRITE)
        return done is not None and int(done["summary"].get("added-records", 0)) > 0

    def stats(self) -> list[KeyStats]:
        """See ScoreStore."""
        return stats_of(self._live())

    def verify(self) -> list[Damage]:
        """See ScoreStore. Each file is read for itself, past Iceberg."""
        keys = {file.path: key for key, live in self._live().items() for file in live}
        problems = unreadable_files(self._spark, list(keys))
        return [Damage(path, keys[path], problem) for path, problem in sorted(problems.items())]

    def compact(self, dry_run: bool) -> list[Change]:
        """See ScoreStore. The small files stay for `vacuum`, and for readers that have begun."""
        planned = compactions(self._live(), _LARGE_BYTES)
        if dry_run or not planned:
            return planned
        with writing(self.place, "iceberg"):
            self._table.call("rewrite_data_files", options="map('min-input-files', '2')").collect()
        return as_found(planned, self._live())

    def vacuum(self, keep: frozenset[str] | None, dry_run: bool) -> list[Change]:
        """See ScoreStore. Files go five days after the last snapshot that needs them, files of no snapshot after three.

        The one by the table's property history.expire.max-snapshot-age-ms. Append ids go with their snapshots.
        """
        if not self._table.exists():
            return []
        changes = forgettings(self._live(), keep)
        with writing(self.place, "iceberg"):
            if changes and not dry_run:
                self._spark.sql(f"delete from {self._table.sql} where {any_of(changes)}")
            if not dry_run:
                expired = self._table.call("expire_snapshots").collect()[0]["deleted_data_files_count"]
                changes.append(Change("", "needed by expired snapshots only", expired, 0, 0))
            orphans = self._table.call("remove_orphan_files", dry_run=str(dry_run).lower()).collect()
            changes.append(Change("", "needed by no snapshot", len(orphans), 0, 0))
        return [change for change in changes if change.files_before]

    # --- place ---

    def _check_place(self) -> None:
        provider = provider_of(self._spark, self._table.sql)
        if provider is None:
            check_schema(self._spark, self.place)
            return
        if provider != "iceberg":
            raise StorePlaceError(
                f"store.table {self.place} is {provider}, and store.format is iceberg; give another name, or set "
                "store.format to what it is"
            )
        check_table(self.place, self._spark.table(self._table.sql).schema, self._table.partitions())

    # --- files ---

    def _live(self) -> LiveFiles:
        """The data files of the current snapshot by model_key, from Iceberg's own lists."""
        if not self._table.exists():
            return {}
        key = F.col(f"partition.{tables.MODEL_KEY}").alias("key")
        found: dict[str, list[LiveFile]] = defaultdict(list)
        with reading(self.place, "iceberg"):
            files = self._table.metadata("files").where("content = 0")
            rows = files.select(key, "file_path", "record_count", "file_size_in_bytes").collect()
        for row in rows:
            found[row["key"]].append(
                LiveFile(row["file_path"], row["record_count"], row["file_size_in_bytes"])
            )
        return found
