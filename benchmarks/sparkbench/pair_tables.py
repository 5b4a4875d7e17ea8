"""The three tables of a list of pairs, as a first stage would leave them: ids by order of first appearance."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def write_pair_tables(pairs: Sequence[tuple[str, str]], folder: Path) -> Path:
    """queries/, passages/ and candidates/ (query_id, passage_id, rank) for distinct pairs; returns `folder`."""
    queries: dict[str, str] = {}
    passages: dict[str, str] = {}
    places: dict[str, int] = {}
    rows = []
    for query, passage in dict.fromkeys(pairs):
        query_id = queries.setdefault(query, f"q{len(queries)}")
        places[query_id] = places.get(query_id, 0) + 1
        rows.append((query_id, passages.setdefault(passage, f"p{len(passages)}"), places[query_id]))
    ids, passage_ids, ranks = zip(*rows, strict=True)
    columns = {
        "queries": {"query_id": list(queries.values()), "query": list(queries)},
        "passages": {"passage_id": list(passages.values()), "passage": list(passages)},
        "candidates": {"query_id": ids, "passage_id": passage_ids, "rank": pa.array(ranks, pa.int32())},
    }
    for name, content in columns.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(content), folder / name / "part-0.parquet")
    return folder
