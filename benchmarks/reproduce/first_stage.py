"""A dense first stage for a folder of tables: python benchmarks/reproduce/first_stage.py --help

Embeds queries and passages with a bi-encoder of the Hugging Face hub (or a folder), and writes each query's nearest
passages as candidates (query_id, passage_id, score, rank). Exact search, in blocks; a GPU is used where there is one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
import torch
from rich.console import Console

from rerank_udf.packing import plan_batches

BLOCK = 512  # queries at once in the search


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
        """float32 (n, width) on the CPU."""
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
            vectors.append(self._pooled(given).float().cpu())
        back = np.argsort(np.concatenate(batches))
        return torch.nn.functional.normalize(torch.cat(vectors)[torch.from_numpy(back)], dim=-1)

    def _pooled(self, given: Any) -> torch.Tensor:
        hidden: torch.Tensor = self.model(**given).last_hidden_state
        if self.pooling == "cls":
            return hidden[:, 0]
        mask = given["attention_mask"][:, :, None].to(hidden.dtype)
        return (hidden * mask).sum(1) / mask.sum(1)


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
    queries, passages = (pd.read_parquet(_table(folder, name)) for name in ("queries", "passages"))
    judged = pd.read_parquet(_table(folder, "qrels"))["query_id"].unique()
    queries = queries[queries["query_id"].isin(judged)]
    titles = passages["title"].fillna("") if "title" in passages else pd.Series("", index=passages.index)
    texts = (titles + " " + passages["passage"]).str.strip()
    encoder = Encoder(model, revision, pooling, max_length)
    right = encoder.encode([passage_prefix + text for text in texts])
    left = encoder.encode([query_prefix + text for text in queries["query"]])
    found = pd.concat(
        _nearest(queries["query_id"].to_numpy(), passages["passage_id"].to_numpy(), left, right, depth)
    )
    found.to_parquet(folder / "candidates.parquet", index=False)
    Console().print(f"{len(queries):,} queries · {len(passages):,} passages · {len(found):,} candidates")


def _table(folder: Path, name: str) -> Path:
    path = folder / f"{name}.parquet"
    return path if path.exists() else folder / name


def _nearest(
    query_ids: Any, passage_ids: Any, left: torch.Tensor, right: torch.Tensor, depth: int
) -> Iterator[pd.DataFrame]:
    for start in range(0, len(left), BLOCK):
        scores, places = (left[start : start + BLOCK] @ right.T).topk(min(depth, len(right)))
        ids = query_ids[start : start + BLOCK]
        yield pd.DataFrame(
            {
                "query_id": np.repeat(ids, scores.shape[1]),
                "passage_id": passage_ids[places.numpy().ravel()],
                "score": scores.numpy().ravel().astype(np.float64),
                "rank": np.tile(np.arange(1, scores.shape[1] + 1), len(ids)),
            }
        )


if __name__ == "__main__":
    main()
