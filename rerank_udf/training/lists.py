"""Which list is trained on when: a function of the seed and the list's number alone.

So a resumed run sees what it would have seen, and a prolonged one begins as the shorter did.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from rerank_udf.errors import InputError
from rerank_udf.training.settings import RANDOM, TrainingConfig
from rerank_udf.training.split import Split
from rerank_udf.training.tables import Floats, Ints, TrainingTables, in_languages

_TRIES = 8  # draws of a query or a random passage before a list is made shorter
_LOOKAHEAD = 3  # times as many candidates as wanted are looked at, for some may be too good to be wrong


@dataclass(frozen=True)
class TrainingList:
    """A query with its passages. Where `relevant`, the first passage is the right one.

    `teacher`: float32 (passages,), logits, nan where the teacher has not scored the pair.
    """

    set_name: str
    query: str
    passages: list[str]
    relevant: bool
    teacher: Floats
    max_length: int


class ListSampler:
    """Lists by number, `count` of them. Raises InputError for a set that has nothing to draw from."""

    def __init__(
        self, config: TrainingConfig, sets: Sequence[TrainingTables], splits: Sequence[Split], count: int
    ) -> None:
        self._config, self._sets, self._splits = config, sets, splits
        for one, divided in zip(sets, splits, strict=True):
            if not len(divided.train):
                raise InputError(
                    f"sets.{one.settings.name}: no query is left to train on; look at held_out and qrels"
                )
        shares = np.cumsum([one.settings.weight for one in sets])
        draws = np.random.default_rng([config.seed, 0]).random(count) * shares[-1]
        self._set_of: Ints = np.searchsorted(shares, draws, side="right").astype(np.int64)
        self._turn = np.empty(count, np.int64)
        for number in range(len(sets)):
            mine = self._set_of == number
            self._turn[mine] = np.arange(int(mine.sum()))
        self._orders: dict[tuple[int, int], Ints] = {}

    def __len__(self) -> int:
        return len(self._set_of)

    def __getitem__(self, number: int) -> TrainingList:
        place = int(self._set_of[number])
        rng = np.random.default_rng([self._config.seed, 1, number])
        query = self._query(place, int(self._turn[number]))
        for _ in range(_TRIES):
            found = _draw(self._sets[place], self._splits[place], query, rng, self._config.drop_above_gold)
            if found is not None:
                return found
            query = int(rng.choice(self._splits[place].train))
        raise InputError(
            f"sets.{self._sets[place].settings.name}: {_TRIES} queries in a row gave no list of two passages; "
            "its candidates and `languages` do not fit together"
        )

    def _query(self, place: int, turn: int) -> int:
        """Every query of a set once, in random order, before any comes again."""
        train = self._splits[place].train
        epoch, position = divmod(turn, len(train))
        if (place, epoch) not in self._orders:
            rng = np.random.default_rng([self._config.seed, 2, place, epoch])
            self._orders[place, epoch] = rng.permutation(train)
        return int(self._orders[place, epoch][position])


def _draw(
    tables: TrainingTables, divided: Split, query: int, rng: np.random.Generator, margin: float | None
) -> TrainingList | None:
    first = _first_passage(tables, divided, query, rng)
    if first is None:
        return None
    others = _others(tables, divided, query, first, rng, margin)
    if not len(others):
        return None
    passages = np.concatenate([[first], others])
    lengths, shares = zip(*tables.settings.max_lengths.items(), strict=True)
    pairs = tables.pair_numbers(query, passages)
    return TrainingList(
        tables.settings.name,
        tables.queries.texts[query],
        [tables.passages.texts[passage] for passage in passages.tolist()],
        tables.relevant is not None,
        np.full(len(pairs), np.nan, np.float32) if tables.teacher is None else tables.teacher(pairs),
        int(rng.choice(lengths, p=np.array(shares) / sum(shares))),
    )


def _first_passage(
    tables: TrainingTables, divided: Split, query: int, rng: np.random.Generator
) -> int | None:
    """The relevant passage, or, without qrels, a candidate whose language the whole list then has."""
    pool = tables.rankings["candidates"][query] if tables.relevant is None else tables.relevant[query]
    pool = pool[~divided.passages_held_out[pool] & in_languages(tables, query, pool)]
    return int(rng.choice(pool)) if len(pool) else None


def of_language(tables: TrainingTables, passages: Ints, passage: int) -> Ints:
    """Those that are in the language of `passage`."""
    langs = tables.passages.langs
    return passages if langs is None else passages[langs[passages] == langs[passage]]


def _of_queries_language(tables: TrainingTables, passages: Ints, query: int) -> Ints:
    of_passages, of_queries = tables.passages.langs, tables.queries.langs
    if of_passages is None or of_queries is None:
        return passages
    own: Ints = passages[of_passages[passages] == of_queries[query]]
    return own


def _others(
    tables: TrainingTables,
    divided: Split,
    query: int,
    first: int,
    rng: np.random.Generator,
    margin: float | None,
) -> Ints:
    """The list's other passages: distinct, none of them relevant, held out, or better than the first by `margin`."""
    barred = {first} if tables.relevant is None else set(tables.relevant[query].tolist())
    admitted: dict[str, Callable[[Ints], Ints]] = {
        "passage": lambda passages: of_language(tables, passages, first),
        "query": lambda passages: _of_queries_language(tables, passages, query),
        "any": lambda passages: passages,
    }
    chosen: list[int] = []
    short: Counter[str] = Counter()
    for one in tables.settings.negatives:
        if one.ranking == RANDOM:
            short[one.language] += one.count
            continue
        of_the_language = admitted[one.language](tables.rankings[one.ranking][query])
        pool = of_the_language[one.ranks[0] - 1 : one.ranks[1]]
        pool = np.array([p for p in pool.tolist() if p not in barred], np.int64)
        pool = _not_too_good(tables, divided, query, first, pool, margin)
        drawn = rng.permutation(pool)[: one.count].tolist()
        chosen += drawn
        barred |= set(drawn)
        short[one.language] += one.count - len(drawn)
    for language, count in short.items():
        chosen += _random(tables, divided, admitted[language], barred, count, rng)
    return np.array(chosen, np.int64)


def _random(
    tables: TrainingTables,
    divided: Split,
    admitted: Callable[[Ints], Ints],
    barred: set[int],
    count: int,
    rng: np.random.Generator,
) -> list[int]:
    """Up to `count` passages from anywhere, of those that are `admitted`; they are barred after that."""
    chosen: list[int] = []
    for _ in range(_TRIES):
        if len(chosen) >= count:
            break
        drawn = rng.integers(len(tables.passages.ids), size=_LOOKAHEAD * count)
        for passage in admitted(drawn).tolist():
            if passage not in barred and not divided.passages_held_out[passage] and len(chosen) < count:
                chosen.append(passage)
                barred.add(passage)
    return chosen


def _not_too_good(
    tables: TrainingTables, divided: Split, query: int, first: int, pool: Ints, margin: float | None
) -> Ints:
    pool = pool[~divided.passages_held_out[pool]]
    if margin is None or tables.teacher is None or tables.relevant is None or not len(pool):
        return pool
    logits = tables.teacher(tables.pair_numbers(query, np.concatenate([[first], pool])))
    kept: Ints = pool[~(logits[1:] > logits[0] + margin)]
    return kept
