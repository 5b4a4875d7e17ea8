"""What does not fit into memory, in a temporary SQLite file: texts by id, pairs by query."""

from __future__ import annotations

import itertools
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from rerank_udf.errors import InputError
from rerank_udf.formats.folders import CANDIDATES, find_table, has_column, read_rows
from rerank_udf.tables import PASSAGE_ID, QUERY_ID, RANK, SCORE

_TABLES = """
CREATE TABLE texts (kind TEXT, id TEXT, text TEXT, PRIMARY KEY (kind, id)) WITHOUT ROWID;
CREATE TABLE pairs (query_id TEXT, place INTEGER, passage_id TEXT, score REAL);
CREATE TABLE labels (query_id TEXT, passage_id TEXT, label INTEGER, PRIMARY KEY (query_id, passage_id)) WITHOUT ROWID;
"""


class Spool:
    """Lives as long as its `with` block; a few MB of memory whatever it holds."""

    def __enter__(self) -> Spool:
        self._folder = tempfile.TemporaryDirectory(prefix="rerank-udf-convert-")
        self._file = sqlite3.connect(Path(self._folder.name) / "spool.sqlite", isolation_level=None)
        # Nothing here outlives the process, so nothing need survive a crash.
        self._file.executescript("PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA temp_store=FILE;")
        self._file.executescript(_TABLES)
        self._file.execute("BEGIN")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._folder.cleanup()

    def is_new(self, kind: str, key: str, text: str) -> bool:
        """Note a text under its id; False where the same text is there already.

        Raises KeyError where the id has another text.
        """
        added = self._file.execute("INSERT OR IGNORE INTO texts VALUES (?, ?, ?)", (kind, key, text)).rowcount
        if not added and self.text(kind, key) != text:
            raise KeyError(key)
        return bool(added)

    def label(self, query_id: str, passage_id: str, label: int) -> bool:
        """Note a pair's label; False where the pair has it already. Raises KeyError where it has another."""
        row = (query_id, passage_id, label)
        if self._file.execute("INSERT OR IGNORE INTO labels VALUES (?, ?, ?)", row).rowcount:
            return True
        where = "SELECT label FROM labels WHERE query_id = ? AND passage_id = ?"
        if self._file.execute(where, row[:2]).fetchone()[0] != label:
            raise KeyError(passage_id)
        return False

    def add_texts(self, kind: str, rows: Iterable[tuple[str, str]]) -> None:
        """(id, text); raises InputError for an id that comes twice."""
        try:
            self._file.executemany(f"INSERT INTO texts VALUES ('{kind}', ?, ?)", rows)
        except sqlite3.IntegrityError as problem:
            raise InputError(
                f"{kind}: an id stands there twice; ids are unique. Keep one row of each."
            ) from problem

    def text(self, kind: str, key: str) -> str | None:
        """The text noted under an id."""
        row = self._file.execute("SELECT text FROM texts WHERE kind = ? AND id = ?", (kind, key)).fetchone()
        return None if row is None else str(row[0])

    def known_text(self, kind: str, key: str) -> str:
        """A text that must be there: raises InputError for an id that the table does not have."""
        text = self.text(kind, key)
        if text is None:
            raise InputError(
                f"The candidates or qrels name {key!r}, which {kind} does not have; add its text."
            )
        return text

    def add_pairs(self, rows: Iterable[tuple[str, int, str, float | None]]) -> None:
        """(query_id, place in the query, passage_id, score)."""
        self._file.executemany("INSERT INTO pairs VALUES (?, ?, ?, ?)", rows)

    def pairs(self) -> Iterator[tuple[str, int, str, float | None]]:
        """Every pair, query by query in the order of ids, by place, then by falling score."""
        yield from self._file.execute("SELECT * FROM pairs ORDER BY query_id, place, score DESC, passage_id")

    def pairs_of(self, query_id: str) -> list[tuple[Any, ...]]:
        """(passage_id, score) of one query, by place."""
        self._file.execute("CREATE INDEX IF NOT EXISTS pairs_by_query ON pairs (query_id, place)")
        where = "SELECT passage_id, score FROM pairs WHERE query_id = ? ORDER BY place"
        return self._file.execute(where, (query_id,)).fetchall()


def ranked_queries(source: Path) -> Iterator[tuple[str, list[tuple[str, float | None]]]]:
    """query_id and its (passage_id, score) in rank order, query by query, from a candidates or reranked table.

    A table without `rank` is ordered by falling score, then passage_id. Raises InputError for a table with
    neither, and for a rank that two passages of a query share.
    """
    path = find_table(source, CANDIDATES, alone=True)
    by_rank = has_column(path, RANK)
    if by_rank:
        rows = read_rows(path, [QUERY_ID, RANK, PASSAGE_ID], [SCORE])
    elif has_column(path, SCORE):
        rows = ((q, 0, p, score) for q, p, score in read_rows(path, [QUERY_ID, PASSAGE_ID, SCORE]))
    else:
        raise InputError(f"{path} has neither {RANK!r} nor {SCORE!r}; a run needs an order. Add one of them.")
    with Spool() as spool:
        spool.add_pairs(rows)
        for query_id, pairs in itertools.groupby(spool.pairs(), key=lambda row: row[0]):
            found = list(pairs)
            shared = [b for a, b in itertools.pairwise(found) if by_rank and a[1] == b[1]]
            if shared:
                where = f"query_id {query_id!r}, passage_id {shared[0][2]!r}"
                raise InputError(
                    f"{path}: {where} has rank {shared[0][1]}, as another passage of the query has."
                )
            yield query_id, [(passage_id, score) for _, _, passage_id, score in found]
