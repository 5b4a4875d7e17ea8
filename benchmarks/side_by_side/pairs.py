"""The pairs that every engine scores: real retrieval candidates where the sets are at hand, the demo's otherwise.

Order is that of a first stage's table: one query's candidates after the other, languages in turn.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

import rerank_udf
from rerank_udf.tokens import PairLimits, PairTokenizer, read_tokenizer

CANDIDATES = 20  # of each query, by first-stage rank
SHORT_TOKENS = 40
LONG_TOKENS = (256, 2040)
MAX_LENGTH = {"xquad": 512, "short": 512, "long": 2048}
LENGTHS = tuple(MAX_LENGTH)

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PairSet:
    """n pairs with their token counts (int64 (n,), special tokens included, after truncation)."""

    source: str
    max_length: int
    pairs: list[tuple[str, str]]
    lengths: Ints

    @property
    def tokens(self) -> int:
        """Tokens of all pairs, without any padding."""
        return int(self.lengths.sum())

    def take(self, rows: Ints) -> PairSet:
        """Some of the pairs, in the order of `rows`."""
        pairs = [self.pairs[row] for row in rows.tolist()]
        return PairSet(self.source, self.max_length, pairs, self.lengths[rows])

    def write(self, path: Path) -> Path:
        """Write the texts as JSON, for the workers."""
        path.write_text(json.dumps(self.pairs, ensure_ascii=False), encoding="utf-8")
        return path

    def describe(self) -> dict[str, Any]:
        """What a report says of the set."""
        quantiles = np.percentile(self.lengths, [0, 10, 50, 90, 100]).round().astype(int)
        return {
            "source": self.source,
            "pairs": len(self.pairs),
            "queries": len({query for query, _ in self.pairs}),
            "passages": len({passage for _, passage in self.pairs}),
            "tokens": self.tokens,
            "tokens_mean": round(float(self.lengths.mean()), 1),
            "tokens_percentiles_0_10_50_90_100": quantiles.tolist(),
            "max_length": self.max_length,
        }


def make_pairs(lengths: str, count: int, model: Path, seed: int = 0) -> PairSet:
    """`count` pairs of the kind `lengths` ("xquad", "short" or "long"), seeded.

    Raises ValueError where there are fewer candidates than that.
    """
    source, corpus = read_corpus()
    pairs = list(itertools.islice(candidate_pairs(corpus, seed), count))
    if len(pairs) < count:
        raise ValueError(
            f"{source} has {len(pairs):,} pairs of the first {CANDIDATES} candidates, not {count:,}"
        )
    if lengths != "xquad":
        cut = _short if lengths == "short" else _long
        pairs = cut(pairs, read_tokenizer(model / "tokenizer.json"), np.random.default_rng(seed))
    limit = MAX_LENGTH[lengths]
    tokenizer = PairTokenizer.from_folder(model, PairLimits(max_length=limit))
    tokenized = tokenizer.encode([query for query, _ in pairs], [passage for _, passage in pairs])
    return PairSet(source, limit, pairs, tokenized.lengths)


@dataclass(frozen=True)
class Corpus:
    """One language: query texts, passage texts, and the candidates of each query by rank."""

    queries: dict[str, str]
    passages: dict[str, str]
    candidates: dict[str, list[str]]


def data_folder() -> Path:
    """RERANK_UDF_DATA, or shared/data beside the checkout."""
    default = Path(__file__).parents[3] / "shared" / "data"
    return Path(os.environ.get("RERANK_UDF_DATA") or default)


def read_corpus() -> tuple[str, list[Corpus]]:
    """What the texts are, and the languages: XQuAD's twelve, or the package's own demo corpus."""
    folders = sorted(folder for folder in (data_folder() / "xquad").glob("*") if folder.is_dir())
    if folders:
        return f"XQuAD, {len(folders)} languages", [_read(folder) for folder in folders]
    demo = Path(rerank_udf.__file__).parent / "demo"
    return "the demo corpus (no XQuAD in RERANK_UDF_DATA)", [_read(demo)]


def _read(folder: Path) -> Corpus:
    def texts(name: str) -> dict[str, str]:
        rows = pq.read_table(folder / f"{name}.parquet").to_pylist()
        key, value = ("query_id", "query") if name == "queries" else ("passage_id", "passage")
        return {row[key]: row[value] for row in rows}

    candidates: dict[str, list[str]] = {}
    columns = ["query_id", "passage_id", "rank"]
    table = pq.read_table(
        folder / "candidates.parquet", columns=columns, filters=[("rank", "<=", CANDIDATES)]
    )
    for row in table.sort_by([("query_id", "ascending"), ("rank", "ascending")]).to_pylist():
        candidates.setdefault(row["query_id"], []).append(row["passage_id"])
    return Corpus(texts("queries"), texts("passages"), candidates)


def candidate_pairs(corpora: Sequence[Corpus], seed: int) -> Iterator[tuple[str, str]]:
    """Queries of every language in seeded order, languages in turn, each with its candidates."""
    generator = np.random.default_rng(seed)
    orders = [generator.permutation(sorted(corpus.candidates)).tolist() for corpus in corpora]
    for number in range(max(map(len, orders))):
        for corpus, order in zip(corpora, orders, strict=True):
            if number < len(order):
                query = order[number]
                for passage in corpus.candidates[query]:
                    yield corpus.queries[query], corpus.passages[passage]


def _short(pairs: list[tuple[str, str]], tokenizer: Any, _generator: Any) -> list[tuple[str, str]]:
    """The first 40 tokens of each passage."""
    return [(query, _first_tokens(tokenizer, passage, SHORT_TOKENS)) for query, passage in pairs]


def _long(pairs: list[tuple[str, str]], tokenizer: Any, generator: Any) -> list[tuple[str, str]]:
    """Each passage followed by the next pairs' passages, cut so that pairs have 256 to 2,040 tokens, evenly."""
    counts: dict[str, int] = {}

    def tokens(text: str) -> int:
        if text not in counts:
            counts[text] = len(tokenizer.encode(text, add_special_tokens=False).ids)
        return counts[text]

    long = []
    for number, (query, passage) in enumerate(pairs):
        wanted = int(generator.integers(*LONG_TOKENS)) - tokens(query) - 4
        parts, found = [passage], tokens(passage)
        for _, following in itertools.cycle(pairs[number + 1 :] + pairs[: number + 1]):
            if found >= wanted:
                break
            parts.append(following)
            found += tokens(following)
        long.append((query, _first_tokens(tokenizer, " ".join(parts), wanted)))
    return long


def _first_tokens(tokenizer: Any, text: str, count: int) -> str:
    offsets = tokenizer.encode(text, add_special_tokens=False).offsets
    return text if len(offsets) <= count else text[: offsets[count - 1][1]]


def runs_of_neighbours(lengths: Ints, count: int, run: int, seed: int = 0) -> Ints:
    """A sample in which batches look as they do in the whole: int64 row numbers, in the order of the whole.

    Rows are ordered by length and taken in runs of `run` neighbours, evenly spaced with a seeded start. So the
    sample has the whole's distribution of lengths, a sorted batch of up to `run` rows has its padding, and rows of
    equal length come in groups as large. Every row where `count` reaches their number.
    """
    if count >= len(lengths):
        return np.arange(len(lengths), dtype=np.int64)
    order = np.argsort(lengths, kind="stable")
    runs = max(1, count // run)
    width = len(lengths) / runs
    room = max(1, int(width) - run)
    # The same place in each stratum keeps the mean length near the whole's
    place = room // 2 + int(np.random.default_rng(seed).integers(-(room // 8), room // 8 + 1))
    starts = [int(stratum * width) + place for stratum in range(runs)]
    rows = np.concatenate([order[start : start + run] for start in starts])
    return np.sort(rows).astype(np.int64)
