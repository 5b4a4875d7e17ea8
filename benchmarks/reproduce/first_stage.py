"""A dense first stage for a folder of tables: python benchmarks/reproduce/first_stage.py --help

Embeds queries and passages with a bi-encoder of the Hugging Face hub (or a folder), and writes each query's nearest
passages as candidates (query_id, passage_id, score, rank). Exact search; a GPU is used where there is one. Passages are
read, embedded and compared block by block and their vectors dropped, so that only the queries' must fit into memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
import pyarrow.dataset as ds
import torch
from rich.console import Console
from rich.progress import track

from rerank_udf.formats.folders import PASSAGES, QRELS, QUERIES, TITLE, find_table, read_rows
from rerank_udf.packing import plan_batches
from rerank_udf.tables import PASSAGE, PASSAGE_ID, QUERY, QUERY_ID

BLOCK = 50_000  # passages, embedded at once
COMPARED = 4_096  # queries, compared with them at once


class Encoder:
    """Unit vectors of texts."""

    def __init__(self, model: str, revision: str | None, pooling: str, max_length: int) -> None:
        from transformers import AutoModel, AutoTokenizer

        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = torch.float16 if self.device == "cuda" else torch.float32
        self.tokenizer = AutoTokenizer.from_pretrained(model, revision=revision)
        self.model = AutoModel.from_pretrained(model, revision=revision, dtype=dtype).to(self.device).eval()
        self.pooling, self.max_length = pooling, max_length

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> torch.Tensor:
        """(n, width), each of length 1, float32, on the device."""
        lengths = [len(text) for text in texts]
        vectors: list[torch.Tensor] = []
        batches = plan_batches(lengths, 60_000, "padded")
        for rows in batches:
            given = self.tokenizer(
                [texts[row] for row in rows],
                padding=True,
                truncation=True,
                max_length=self.max_length,
                return_tensors="pt",
            ).to(self.device)
            vectors.append(self._pooled(given).float())
        back = np.argsort(np.concatenate(batches))
        return torch.nn.functional.normalize(
            torch.cat(vectors)[torch.from_numpy(back).to(self.device)], dim=-1
        )

    def _pooled(self, given: Any) -> torch.Tensor:
        hidden: torch.Tensor = self.model(**given).last_hidden_state
        if self.pooling == "cls":
            return hidden[:, 0]
        mask = given["attention_mask"][:, :, None].to(hidden.dtype)
        return (hidden * mask).sum(1) / mask.sum(1)


class Nearest:
    """Of all passages seen so far, the `depth` nearest to each query: `scores` and `places`, both (queries, depth)."""

    def __init__(self, queries: torch.Tensor, depth: int) -> None:
        self._queries = queries
        self.scores = torch.full((len(queries), depth), -torch.inf)
        self.places = torch.full((len(queries), depth), -1, dtype=torch.int64)
        self.seen = 0

    def see(self, passages: torch.Tensor) -> None:
        """Compare with the next passages, (n, width)."""
        depth = self.scores.shape[1]
        for start in range(0, len(self._queries), COMPARED):
            rows = slice(start, start + COMPARED)
            scores, places = (self._queries[rows] @ passages.T).topk(min(depth, len(passages)))
            all_scores = torch.cat([self.scores[rows], scores.cpu()], dim=1)
            all_places = torch.cat([self.places[rows], places.cpu() + self.seen], dim=1)
            self.scores[rows], chosen = all_scores.topk(depth)
            self.places[rows] = all_places.gather(1, chosen)
        self.seen += len(passages)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.argument("folder", type=click.Path(path_type=Path, exists=True))
@click.option("--model", required=True, help="A hub id with --revision, or a folder.")
@click.option("--revision", help="Of a hub id.")
@click.option("--pooling", type=click.Choice(["cls", "mean"]), default="cls")
@click.option("--query-prefix", default="", help="The model's instruction for queries.")
@click.option("--passage-prefix", default="")
@click.option("--max-length", default=512)
@click.option("--depth", default=100, help="Candidates of a query.")
def main(
    folder: Path,
    model: str,
    revision: str | None,
    pooling: str,
    query_prefix: str,
    passage_prefix: str,
    max_length: int,
    depth: int,
) -> None:
    """Write FOLDER/candidates.parquet from FOLDER's queries and passages (parquet files or folders)."""
    tables = {name: find_table(folder, name) for name in (QUERIES, PASSAGES, QRELS)}
    judged = {query for (query,) in read_rows(tables[QRELS], [QUERY_ID])}
    queries = [row for row in read_rows(tables[QUERIES], [QUERY_ID, QUERY]) if row[0] in judged]
    encoder = Encoder(model, revision, pooling, max_length)
    nearest = Nearest(encoder.encode([query_prefix + text for _, text in queries]), depth)
    passages = read_rows(tables[PASSAGES], [PASSAGE_ID, PASSAGE], [TITLE])
    blocks = -(-ds.dataset(tables[PASSAGES]).count_rows() // BLOCK)
    ids: list[str] = []
    for _ in track(range(blocks), "passages", transient=True):
        block = list(islice(passages, BLOCK))
        texts = [passage_prefix + f"{title or ''} {text}".strip() for _, text, title in block]
        nearest.see(encoder.encode(texts))
        ids += [key for key, _, _ in block]
    found = _candidates(np.array([key for key, _ in queries]), np.array(ids), nearest)
    found.to_parquet(folder / "candidates.parquet", index=False)
    Console().print(f"{len(queries):,} queries · {nearest.seen:,} passages · {len(found):,} candidates")


def _candidates(query_ids: Any, passage_ids: Any, nearest: Nearest) -> pd.DataFrame:
    known = nearest.places.numpy() >= 0  # fewer where there are fewer passages than the depth
    queries, order = known.nonzero()
    return pd.DataFrame(
        {
            "query_id": query_ids[queries],
            "passage_id": passage_ids[nearest.places.numpy()[known]],
            "score": nearest.scores.numpy()[known].astype(np.float64),
            "rank": order + 1,
        }
    )


if __name__ == "__main__":
    main()
