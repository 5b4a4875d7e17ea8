"""The demo's tables: a help centre in many languages, with questions, judgements and first-stage candidates.

The public services of Velmora, an invented port city (trains, ferries, shared bicycles, a library, a web shop and
so on), answer questions at thirteen help desks. Each desk writes its articles in its own language and nothing is
translated, so a question is often answered only in a language other than the one it is asked in.

queries: `query_id, query, lang, kind: string`. `kind` is "same language" where a passage that answers fully is in
    the question's language, else "other language".
passages: `passage_id, title, passage, lang, topic: string`.
candidates: `query_id, passage_id: string, score: double, rank: int, bm25_score, e5_score: double`. `score` is the
    cosine of multilingual-e5-small and orders the candidates; `bm25_score` is null where no word is shared. Both
    retrievers read title and passage.
qrels: `query_id, passage_id: string, relevance: int`; 2 answers fully, 1 partly or useful beside it.

Every text was written for this project and is under its licence, Apache-2.0. `source/` in the repository holds
the texts as YAML and `make_tables.py`, which made these files and documents the first stage.
"""

from __future__ import annotations

from pathlib import Path

NAMES = ("queries", "passages", "candidates", "qrels")


def tables() -> dict[str, Path]:
    """The path of each Parquet table, by name."""
    return {name: Path(__file__).parent / f"{name}.parquet" for name in NAMES}
