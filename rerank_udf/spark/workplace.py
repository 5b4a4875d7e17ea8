"""The folders that runs work in: whose they are, and when they go.

    <work>/staged/<fingerprint>/<run_id>     rows, for this run and for those after it that read the same input
    <work>/runs/<run_id>                     pairs, passages, notes
    <work>/scored/<model_key>/<run_id>       finished tasks' files, until the run ends well

A run deletes its own folders, and those of runs that nothing has written to for a day. Other things in the work folder
are never touched.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pyspark.sql import SparkSession

from rerank_udf.errors import RerankError, StoreError
from rerank_udf.lake import files, versions

_STALE_SECONDS = 24 * 3600.0


class Workplace:
    """One run's folders below `root`."""

    def __init__(self, spark: SparkSession, root: str, model_key: str, run_id: str) -> None:
        self._spark = spark
        self.root = root
        self.run = f"{root}/runs/{run_id}"
        self.scored_of_all = f"{root}/scored/{model_key}"
        self.scored = f"{self.scored_of_all}/{run_id}"
        self._rows: str | None = None

    def own(self, rows: str, *, shared: bool) -> None:
        """`rows` is the folder of the run's staged rows; a shared one is left to the day's end."""
        self._rows = None if shared else rows

    @contextmanager
    def kept_only_on_failure(self) -> Iterator[None]:
        """Delete everything when the block ends; what another run can go on with stays where the block fails.

        A failure that the input or the settings are to blame for leaves nothing.
        """
        try:
            yield
        except RerankError as error:
            self._remove(everything=not isinstance(error, StoreError))
            raise
        except BaseException:
            self._remove(everything=False)
            raise
        self._remove(everything=True)

    def clear_away_the_dead(self) -> None:
        """Delete the folders of runs that began, and last wrote something, over a day ago."""
        parents = [f"{self.root}/runs"]
        for kind in ("staged", "scored"):
            parents += [f"{self.root}/{kind}/{entry.name}" for entry in self._folders(f"{self.root}/{kind}")]
        for parent in parents:
            for entry in self._folders(parent):
                if self._is_abandoned(f"{parent}/{entry.name}", entry.name):
                    files.remove(self._spark, f"{parent}/{entry.name}")

    def _folders(self, path: str) -> list[files.Entry]:
        return [entry for entry in files.entries(self._spark, path) if entry.is_folder]

    def _is_abandoned(self, folder: str, name: str) -> bool:
        began = versions.run_age(name)
        if began is None or began <= _STALE_SECONDS:
            return False
        written = files.youngest(self._spark, folder)
        return (began if written is None else written) > _STALE_SECONDS

    def _remove(self, *, everything: bool) -> None:
        gone = [self.run]
        if everything:
            gone += [self.scored, *([self._rows] if self._rows else [])]
        for folder in gone:
            files.remove(self._spark, folder)
