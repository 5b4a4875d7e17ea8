"""The score store as plain Parquet in a folder of its own, on any file system.

    <root>/_rerank_udf_store.json                        what this folder is
    <root>/facts/<model_key>/<append_id>.<time>-<nonce>/part-*.parquet
    <root>/facts/<model_key>/<append_id>.<time>-<nonce>/_commit.json    its files with their sizes; written last

A folder without `_commit.json` does not exist for readers, and they read the files that it names, no others. Nothing
is renamed. A compaction is one more such folder whose `_commit.json` names the folders it `replaces`, and those that
they replaced while they are still there; `vacuum` deletes them a day later. A folder goes after those that it replaced,
and its `_commit.json` first: at no moment does anything that was replaced count again, or a commit name a lost file.
"""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyspark.sql import DataFrame, SparkSession

from rerank_udf.errors import StoreError, StorePlaceError
from rerank_udf.lake import files, versions
from rerank_udf.lake.delta import LOG
from rerank_udf.lake.failures import innermost_cause
from rerank_udf.lake.store import FACTS_SCHEMA, Change, Damage, KeyStats, append_id_of, reduced
from rerank_udf.lake.store.reading import damaged_files, facts_in, missing_or_cut

MARKER = "_rerank_udf_store.json"
COMMIT = "_commit.json"
FILE_BYTES = 256 << 20
_FACTS, _WORK = "facts", "_work"
_KIND = {"kind": "rerank_udf score store", "format": "parquet", "layout": 1}
_LEFT_OVER_SECONDS = 24 * 3600.0


@dataclass(frozen=True)
class Commit:
    """A committed folder: its path, its files by name with their bytes, its facts, the folders it replaces."""

    folder: str
    files: dict[str, int]
    facts: int
    replaces: tuple[str, ...]

    @property
    def name(self) -> str:
        """The folder's own name: append id and nonce."""
        return self.folder.rsplit("/", 1)[-1]

    @property
    def bytes(self) -> int:
        """Of all files together."""
        return sum(self.files.values())

    def paths(self) -> list[str]:
        """Its files' paths."""
        return [f"{self.folder}/{name}" for name in self.files]


class ParquetStore:
    """See the module's docstring and `lake.store.ScoreStore`."""

    def __init__(self, spark: SparkSession, root: str) -> None:
        self._spark = spark
        self.place = root.rstrip("/")
        self._check_place()

    # --- ScoreStore ---

    def facts(self, model_key: str) -> DataFrame | None:
        """See ScoreStore."""
        paths = [path for commit in self._live(model_key) for path in commit.paths()]
        return facts_in(self._spark, paths) if paths else None

    def append(self, facts: DataFrame, model_key: str, append_id: str) -> bool:
        """See ScoreStore."""
        taken = {commit.name.split(".")[0] for commit in self._commits(model_key)}
        if append_id in taken:
            return False
        return self._commit(facts, model_key, append_id, replaces=()) is not None

    def stats(self) -> list[KeyStats]:
        """See ScoreStore."""
        found = []
        for key in self._model_keys():
            live = self._live(key)
            if live:
                found.append(
                    KeyStats(
                        key,
                        sum(commit.facts for commit in live),
                        sum(len(commit.files) for commit in live),
                        sum(commit.bytes for commit in live),
                        len(live),
                    )
                )
        return found

    def verify(self) -> list[Damage]:
        """See ScoreStore."""
        damage = []
        for key in self._model_keys():
            for commit in self._live(key):
                present = {entry.name: entry.bytes for entry in files.entries(self._spark, commit.folder)}
                gone = missing_or_cut(commit.folder, commit.files, present)
                sound = [path for path in commit.paths() if path not in gone]
                gone |= damaged_files(self._spark, sound)
                damage += [Damage(path, key, problem) for path, problem in sorted(gone.items())]
        return damage

    def compact(self, dry_run: bool) -> list[Change]:
        """See ScoreStore. Commits of large files stay as they are."""
        changes = []
        for key in self._model_keys():
            small = [
                commit for commit in self._live(key) if 2 * commit.bytes < len(commit.files) * FILE_BYTES
            ]
            count, size = sum(len(commit.files) for commit in small), sum(commit.bytes for commit in small)
            wanted = max(1, math.ceil(size / FILE_BYTES))
            if len(small) < 2 or count <= wanted:
                continue
            changes.append(Change(key, f"{len(small)} appends into one", count, wanted, size))
            if not dry_run:
                self._compact(key, small, wanted)
        return changes

    def vacuum(self, keep: frozenset[str] | None, dry_run: bool) -> list[Change]:
        """See ScoreStore. Replaced and unfinished folders go once nothing has been written to them for a day."""
        changes = []
        for key in self._model_keys():
            folder = self._key_folder(key)
            if keep is not None and key not in keep:
                live = self._live(key)
                count, size = sum(len(c.files) for c in live), sum(c.bytes for c in live)
                changes.append(Change(key, "forgotten", count, 0, size))
                if not dry_run:
                    self._remove(key, [entry.name for entry in files.entries(self._spark, folder)])
                    files.remove(self._spark, folder)
                continue
            left_over = list(self._left_over(key))
            for name in left_over:
                found = [e for e in files.entries(self._spark, f"{folder}/{name}") if not _is_hidden(e.name)]
                size = sum(entry.bytes for entry in found)
                changes.append(Change(key, f"left over: {name}", len(found), 0, size))
            if not dry_run:
                self._remove(key, left_over)
        return changes

    # --- place ---

    def _check_place(self) -> None:
        marker = files.read_text(self._spark, f"{self.place}/{MARKER}")
        if marker is None:
            there = files.entries(self._spark, self.place)
            # A name with a dot in front is half of a small file, from a run that died or a disk that was full.
            others = [e.name for e in there if e.name != _WORK and not e.name.startswith(".")]
            if others == [_FACTS] and LOG in files.children(self._spark, f"{self.place}/{_FACTS}"):
                raise StorePlaceError(f"store.path {self.place} is a Delta store: set store.format to delta")
            if others == [_FACTS]:
                raise StorePlaceError(
                    f"store.path {self.place} holds {_FACTS} and no {MARKER}: if it is a score store that has lost it "
                    f"(in a copy, say), write it again, with {json.dumps(_KIND)} in it; else give another folder"
                )
            if others:
                raise StorePlaceError(
                    f"store.path {self.place} holds {others[0]!r} and no {MARKER}: it is no score store; give a folder "
                    "that is empty or does not exist yet"
                )
            return
        found = _parsed(marker, f"{self.place}/{MARKER}", f"write {json.dumps(_KIND)} into it")
        if found.get("format") != _KIND["format"] or found.get("layout") != _KIND["layout"]:
            raise StorePlaceError(
                f"store.path {self.place} is a score store in format {found.get('format')!r}, layout "
                f"{found.get('layout')!r}, expected {_KIND['format']!r}, {_KIND['layout']}; set store.format to what "
                "it is, or give another folder"
            )

    def _key_folder(self, model_key: str) -> str:
        return f"{self.place}/{_FACTS}/{model_key}"

    def _model_keys(self) -> list[str]:
        return [
            entry.name for entry in files.entries(self._spark, f"{self.place}/{_FACTS}") if entry.is_folder
        ]

    # --- commits ---

    def _commits(self, model_key: str) -> list[Commit]:
        folder = self._key_folder(model_key)
        found = []
        for entry in files.entries(self._spark, folder):
            text = (
                files.read_text(self._spark, f"{folder}/{entry.name}/{COMMIT}") if entry.is_folder else None
            )
            if text is not None:
                found.append(_commit_of(f"{folder}/{entry.name}", text))
        return found

    def _live(self, model_key: str) -> list[Commit]:
        """The commits that no other one has replaced."""
        commits = self._commits(model_key)
        replaced = {name for commit in commits for name in commit.replaces}
        return [commit for commit in commits if commit.name not in replaced]

    def _left_over(self, model_key: str) -> Iterator[str]:
        """Folders that no reader needs: replaced a day ago, or never committed and untouched for a day.

        Object stores know no time of a folder, and show a task's file when it is whole: there, the time in the name of
        one that has no file yet.
        """
        commits = self._commits(model_key)
        replaced = {name: commit.folder for commit in commits for name in commit.replaces}
        live = {commit.name for commit in commits if commit.name not in replaced}
        folder = self._key_folder(model_key)
        for entry in files.entries(self._spark, folder):
            if entry.name in live:
                continue
            age = files.youngest(self._spark, replaced.get(entry.name, f"{folder}/{entry.name}"))
            if age is None:
                age = versions.run_age(entry.name.rpartition(".")[-1])
            if age is None or age > _LEFT_OVER_SECONDS:
                yield entry.name

    def _remove(self, model_key: str, names: Sequence[str]) -> None:
        """Delete folders of commits or of none, in an order that leaves a sound store wherever it ends."""
        replaces = {commit.name: commit.replaces for commit in self._commits(model_key)}
        for name in sorted(names, key=lambda name: _generation(name, replaces)):
            files.remove(self._spark, f"{self._key_folder(model_key)}/{name}/{COMMIT}")
            files.remove(self._spark, f"{self._key_folder(model_key)}/{name}")

    def _commit(
        self, facts: DataFrame, model_key: str, append_id: str, replaces: Sequence[str]
    ) -> Commit | None:
        """Write a folder and its marker; None, and nothing left, where there are no facts."""
        folder = f"{self._key_folder(model_key)}/{append_id}.{versions.new_run_id()}"
        try:
            if files.read_text(self._spark, f"{self.place}/{MARKER}") is None:
                files.write_text(self._spark, f"{self.place}/{MARKER}", json.dumps(_KIND, indent=1) + "\n")
            facts.select(*FACTS_SCHEMA.names).write.parquet(folder)
            written = {e.name: e.bytes for e in files.entries(self._spark, folder) if not _is_hidden(e.name)}
            commit = Commit(folder, written, 0, tuple(replaces))
            count = facts_in(self._spark, commit.paths()).count() if written else 0
            if not count:
                files.remove(self._spark, folder)
                return None
            files.write_text(self._spark, f"{folder}/{COMMIT}", _commit_text(commit, count))
        except Exception as error:
            raise StoreError(
                f"the score store at {self.place} cannot be written: {innermost_cause(error)}; nothing that it holds "
                "is lost, and finished scores wait in the work folder: mend it and run the same command again"
            ) from error
        return commit

    def _compact(self, model_key: str, small: list[Commit], file_count: int) -> None:
        """Their facts as one commit; a damaged page is an error here, and does not get a sound checksum."""
        paths = [path for commit in small for path in commit.paths()]
        one_a_pair = reduced(facts_in(self._spark, paths, checked=True))
        names = [commit.name for commit in small]
        there = {commit.name for commit in self._commits(model_key)}
        before = sorted(there.intersection(name for commit in small for name in commit.replaces))
        self._commit(one_a_pair.coalesce(file_count), model_key, append_id_of(names), replaces=names + before)


def _is_hidden(name: str) -> bool:
    return name.startswith(("_", "."))


def _generation(name: str, replaces: Mapping[str, Sequence[str]]) -> int:
    """0 for a commit that replaces nothing, else one more than the highest of those that it replaces."""
    return max((1 + _generation(earlier, replaces) for earlier in replaces.get(name, ())), default=0)


def _commit_text(commit: Commit, facts: int) -> str:
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    content = {"facts": facts, "files": commit.files, "replaces": list(commit.replaces), "committed_at": now}
    return json.dumps(content, indent=1) + "\n"


def _commit_of(folder: str, text: str) -> Commit:
    again = "restore it, or delete its folder: its pairs are then scored again"
    found = _parsed(text, f"{folder}/{COMMIT}", again)
    try:
        sizes = {str(name): int(size) for name, size in found["files"].items()}
        commit = Commit(folder, sizes, int(found["facts"]), tuple(found["replaces"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StoreError(f"{folder}/{COMMIT} is not what this store writes ({error!r}); {again}") from None
    escaping = [name for name in sizes if "/" in name or _is_hidden(name)]
    if escaping:
        raise StoreError(f"{folder}/{COMMIT} names {escaping[0]!r}, which is no file of its own folder")
    return commit


def _parsed(text: str, place: str, remedy: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise StoreError(f"{place} is damaged: expected a JSON object, found {text[:80]!r}; {remedy}")
    return found
