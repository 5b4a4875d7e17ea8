"""The folders that runs work in: whose they are, and when they go.

    <work>/staged/<fingerprint>/<run_id>     rows, for this run and for those after it that read the same input
    <work>/runs/<run_id>                     pairs, passages, notes, and _alive, written every few minutes
    <work>/scored/<model_key>/<run_id>       finished tasks' files, until the run ends well
    <work>/scored/<model_key>-<store_id>/…   the same, of a work folder outside the store, where several may share it

A run deletes its own folders, and those of runs that have been silent for a day, once their scores are in the store.
Rows that another live run reads stay. Other things in the work folder are never touched.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pyspark.sql import SparkSession

from rerank_udf.errors import RerankError, StoreError
from rerank_udf.lake import files, versions
from rerank_udf.spark import rows

_STALE_SECONDS = 24 * 3600.0
_HEARTBEAT_SECONDS = 600.0
_ALIVE = "_alive"
_log = logging.getLogger(__name__)


def store_id_of(spark: SparkSession, work: str, store_format: str, place: str, *, is_path: bool) -> str:
    """What tells the scores for one store from those for others in one work folder; "" in the store's own folder."""
    if not is_path:
        name = place.replace("`", "").lower()
    else:
        name = files.qualified(spark, place).rstrip("/")
        if files.qualified(spark, work).startswith(f"{name}/"):
            return ""
    return hashlib.sha256(f"{store_format} {name}".encode()).hexdigest()[:8]


class Workplace:
    """One run's folders below `root`; `store_id`: see `store_id_of`."""

    def __init__(
        self, spark: SparkSession, root: str, model_key: str, run_id: str, store_id: str = ""
    ) -> None:
        self._spark = spark
        self.root = root
        self._run_id = run_id
        self._store_id = store_id
        self.run = f"{root}/runs/{run_id}"
        self.scored_of_all = f"{root}/scored/{model_key}" + (f"-{store_id}" if store_id else "")
        self.scored = f"{self.scored_of_all}/{run_id}"
        self._rows: rows.StagedRows | None = None

    def uses(self, staged: rows.StagedRows) -> None:
        """The run reads these rows; its own are deleted with it, those of another run are not."""
        self._rows = staged

    @contextmanager
    def kept_only_on_failure(self) -> Iterator[None]:
        """Delete everything when the block ends; what another run can go on with stays where the block fails.

        A failure that the input or the settings are to blame for leaves nothing. Within the block the run is alive
        for others, however long it takes.
        """
        try:
            with self._heartbeat():
                yield
        except RerankError as error:
            self._remove(everything=not isinstance(error, StoreError))
            raise
        except BaseException:
            self._remove(everything=False)
            raise
        self._remove(everything=True)

    def clear_away_the_dead(self, rescue: Callable[[str, str], object]) -> None:
        """Delete the folders of runs that began, and gave their last sign of life, over a day ago.

        `rescue(model_key, folder)` saves the scores in a folder before it goes; where that fails, the folder stays.
        """
        for name, folders in self._folders_of_runs().items():
            if self._is_alive(name, folders):
                continue
            for folder in folders:
                kind, group = folder.removeprefix(f"{self.root}/").split("/")[:2]
                if kind == "staged":
                    rows.discard(self._spark, folder, self._is_alive)
                elif kind == "runs" or self._rescued(rescue, group, folder):
                    files.clear(self._spark, folder)

    def _rescued(self, rescue: Callable[[str, str], object], group: str, folder: str) -> bool:
        model_key, _, store_id = group.partition("-")
        if store_id != self._store_id:
            return False  # of another store, whose own runs take them over
        try:
            rescue(model_key, folder)
        except Exception as error:
            _log.warning("the scores that a dead run left in %s cannot be taken over: %s", folder, error)
            return False
        return True

    def _folders_of_runs(self) -> dict[str, list[str]]:
        """Run id → its folders, of whatever kind."""
        parents = [f"{self.root}/runs"]
        for kind in ("staged", "scored"):
            parents += [f"{self.root}/{kind}/{name}" for name in self._folders(f"{self.root}/{kind}")]
        found: dict[str, list[str]] = defaultdict(list)
        for parent in parents:
            for name in self._folders(parent):
                if versions.run_age(name) is not None:
                    found[name].append(f"{parent}/{name}")
        return found

    def _folders(self, path: str) -> list[str]:
        return [entry.name for entry in files.entries(self._spark, path) if entry.is_folder]

    def _is_alive(self, run_id: str, folders: list[str] | None = None) -> bool:
        """By its id's time, its heartbeat, and, where they are given, anything in its folders."""
        began = versions.run_age(run_id)
        if began is None or began <= _STALE_SECONDS:
            return began is not None
        signs = [files.youngest(self._spark, one) for one in folders or [f"{self.root}/runs/{run_id}"]]
        return any(sign is not None and sign <= _STALE_SECONDS for sign in signs)

    @contextmanager
    def _heartbeat(self) -> Iterator[None]:
        """Write to the run's folder now and then; a disk that is full is for others to tell."""
        over = threading.Event()

        def beat() -> None:
            while True:
                with contextlib.suppress(Exception):
                    files.write_text(self._spark, f"{self.run}/{_ALIVE}", "")
                if over.wait(_HEARTBEAT_SECONDS):
                    return

        thread = threading.Thread(target=beat, name="rerank_udf heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _remove(self, *, everything: bool) -> None:
        """What cannot be deleted stays, with a warning: the run has ended as it has."""
        files.clear(self._spark, self.run)
        if everything:
            files.clear(self._spark, self.scored)
        if self._rows is None:
            return
        if self._rows.reused:
            rows.release(self._spark, self._rows.folder, self._run_id)
        elif everything:
            rows.discard(self._spark, self._rows.folder, self._is_alive)
