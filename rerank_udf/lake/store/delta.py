"""The score store as a Delta table, at `<root>/facts` or by name, partitioned by model_key."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from rerank_udf import tables
from rerank_udf.errors import StorePlaceError
from rerank_udf.lake import files
from rerank_udf.lake.catalog import provider_of
from rerank_udf.lake.delta import LOG, DeltaTable
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
    file_sizes,
    forgettings,
    keyed,
    reading,
    stats_of,
    unreadable_files,
    writing,
)

FACTS = "facts"
_CREATING = 5  # attempts, a second apart
_WORK = "_work"
_LARGE_BYTES = 1 << 30  # Delta's own spark.databricks.delta.optimize.maxFileSize
_LISTING_TASKS = "spark.sql.sources.parallelPartitionDiscovery.parallelism"
_MAPPING = "delta.columnMapping.mode"
# An append's id matters from its commit until the run's files are deleted, which the next run at the latest does; what
# comes later is still right, since facts are looked up before they are appended. Without a limit Delta would keep every
# id in every checkpoint for ever. Thirty days are also how long Delta keeps its history.
_PROPERTIES = {
    "delta.setTransactionRetentionDuration": "interval 30 days",
    "delta.autoOptimize.optimizeWrite": "false",
    "delta.autoOptimize.autoCompact": "false",
    _MAPPING: "none",  # verify reads the files by themselves
}


class DeltaStore:
    """See `lake.store.ScoreStore`."""

    def __init__(self, spark: SparkSession, *, path: str | None = None, table: str | None = None) -> None:
        self._spark = spark
        self._root = path.rstrip("/") if path else None
        self.place = self._root or str(table)
        self._table = DeltaTable(spark, path=f"{self._root}/{FACTS}" if self._root else None, table=table)
        with reading(self.place, "delta"):
            self._check_place()

    # --- ScoreStore ---

    def facts(self, model_key: str) -> DataFrame | None:
        """See ScoreStore."""
        return facts_under(self._table.now(), model_key) if self._table.exists() else None

    def append(self, facts: DataFrame, model_key: str, append_id: str) -> bool:
        """See ScoreStore."""
        with writing(self.place, "delta"):
            self._create()
            commit = self._table.append(keyed(facts, model_key), once=f"rerank_udf/{append_id}")
        return commit is not None and int(commit["operationMetrics"].get("numOutputRows", 0)) > 0

    def stats(self) -> list[KeyStats]:
        """See ScoreStore."""
        return stats_of(self._live())

    def verify(self) -> list[Damage]:
        """See ScoreStore. Each file is read for itself, past Delta."""
        if not self._table.exists():
            return []
        problems = unreadable_files(self._spark, self._table.now().inputFiles())
        return [Damage(path, _model_key_of(path), problem) for path, problem in sorted(problems.items())]

    def compact(self, dry_run: bool) -> list[Change]:
        """See ScoreStore. The small files stay for `vacuum`, and for readers that have begun."""
        planned = compactions(self._live(), _LARGE_BYTES)
        if dry_run or not planned:
            return planned
        with writing(self.place, "delta"):
            self._spark.sql(f"optimize {self._table.sql}").collect()
        return as_found(planned, self._live())

    def vacuum(self, keep: frozenset[str] | None, dry_run: bool) -> list[Change]:
        """See ScoreStore. A file goes a week after the last version with it (delta.deletedFileRetentionDuration)."""
        if not self._table.exists():
            return []
        changes = forgettings(self._live(), keep)
        with writing(self.place, "delta"), _few_tasks(self._spark):
            if changes and not dry_run:
                self._spark.sql(f"delete from {self._table.sql} where {any_of(changes)}")
            unneeded = self._spark.sql(f"vacuum {self._table.sql} dry run").collect()
            sizes = file_sizes(self._spark, [row["path"] for row in unneeded])
            if sizes:
                changes.append(Change("", "needed by no version", len(sizes), 0, sum(sizes.values())))
            if not dry_run:
                self._spark.sql(f"vacuum {self._table.sql}")
        return changes

    # --- place ---

    def _check_place(self) -> None:
        if self._root:
            _check_folder(self._spark, self._root)
        if not self._table.exists():
            if not self._root:
                check_schema(self._spark, self.place)
            return
        provider = "delta" if self._root else provider_of(self._spark, self.place)
        if provider != "delta":
            raise StorePlaceError(
                f"store.table {self.place} is {provider}, and store.format is delta; give another name, or set "
                "store.format to what it is"
            )
        detail = self._table.detail()
        check_table(self.place, self._table.now().schema, detail["partitionColumns"])
        if detail["properties"].get(_MAPPING, "none") != "none":
            raise StorePlaceError(
                f"{self.place} has {_MAPPING} on; a score store needs none: give another place"
            )

    def _create(self) -> None:
        """Two runs may do it at once; the slower one then sees half a table for a moment.

        Raises the first error: those that follow may only speak of what it left behind.
        """
        first: Exception | None = None
        for attempt in range(_CREATING):
            if self._table.exists():
                return
            time.sleep(1 if attempt else 0)
            try:
                self._table.clear_failed_creation()
                if self._table.exists():
                    return
                self._spark.sql(create_statement(self._table.sql, "delta", _PROPERTIES))
            except Exception as error:
                first = first or error
        if first is not None and not self._table.exists():
            raise first

    # --- files ---

    def _live(self) -> LiveFiles:
        """The files of the newest version by model_key, from their footers."""
        if not self._table.exists():
            return {}
        path, size = F.col("_metadata.file_path").alias("path"), F.col("_metadata.file_size").alias("bytes")
        found: dict[str, list[LiveFile]] = defaultdict(list)
        with reading(self.place, "delta"):
            rows = self._table.now().groupBy(tables.MODEL_KEY, path, size).count().collect()
        for row in rows:
            found[row[tables.MODEL_KEY]].append(LiveFile(row["path"], row["count"], row["bytes"]))
        return found


@contextmanager
def _few_tasks(spark: SparkSession) -> Iterator[None]:
    """VACUUM lists a few folders in as many tasks as this setting says: 10,000 by default, minutes on a laptop."""
    before = str(spark.conf.get(_LISTING_TASKS))
    spark.conf.set(_LISTING_TASKS, min(int(before), 4 * spark.sparkContext.defaultParallelism))
    try:
        yield
    finally:
        spark.conf.set(_LISTING_TASKS, before)


def _check_folder(spark: SparkSession, root: str) -> None:
    """Raise StorePlaceError where a folder holds anything but a store of this kind."""
    others = [entry.name for entry in files.entries(spark, root) if entry.name not in (FACTS, _WORK)]
    if others:
        raise StorePlaceError(
            f"store.path {root} holds {others[0]!r}: it is no score store in format delta; give a folder that is empty "
            "or does not exist yet"
        )
    inside = files.children(spark, f"{root}/{FACTS}")
    if inside and LOG not in inside:
        raise StorePlaceError(
            f"store.path {root} holds a folder {FACTS} that is no Delta table; give a folder that is empty or does not "
            "exist yet"
        )


def _model_key_of(path: str) -> str:
    """By its folder: that of a file which cannot be read stands nowhere else."""
    folders = path.split("/")[-2:-1]
    return folders[0].removeprefix(f"{tables.MODEL_KEY}=") if folders else ""
