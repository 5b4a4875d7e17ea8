"""Pairs of texts to token ids: tokenise each distinct text once, cut, assemble.

The ids are those that FlagEmbedding's FlagReranker ("only_second") and sentence-transformers' CrossEncoder
("longest_first") give in the pinned reference environment. `tokenizer.json` is used by the tokenizers
library itself, so they do not depend on which transformers is installed, or on any.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from rerank_udf.errors import ConfigError, ModelError
from rerank_udf.machine import set_tokenizer_threads
from rerank_udf.models.checkpoint import SENTENCEPIECE_FILE, TOKENIZER_FILE
from rerank_udf.models.sentencepiece import converted_tokenizer
from rerank_udf.tables import Reason
from rerank_udf.texts import PairErrors, TextColumn, Texts, pair_errors, text_columns

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Truncation = Literal["only_second", "longest_first"]
_ROBERTA_MASK = "<mask>"
_CHARACTERS_PER_CALL = 2_000_000

_Ints = npt.NDArray[np.int64]
_Ids = npt.NDArray[np.int32]
_Types = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class PairLimits:
    """How a pair is cut to fit the model; all lengths in tokens.

    `max_length` is that of the whole sequence, special tokens included. "only_second" cuts the query to
    `query_max_length` (three quarters of max_length by default), then the passage to what is left.
    "longest_first" shares the room between the two and knows no `query_max_length`.
    """

    max_length: int = 512
    query_max_length: int | None = None
    truncation: Truncation = "only_second"

    def __post_init__(self) -> None:
        if self.truncation not in ("only_second", "longest_first"):
            found = repr(self.truncation)
            raise ConfigError(f"truncation is {found}; it must be 'only_second' or 'longest_first'")
        for name in ("max_length", "query_max_length"):
            tokens = getattr(self, name)
            if tokens is not None and tokens < 1:
                raise ConfigError(f"{name} is {tokens}; it must be a positive number of tokens")
        if self.truncation == "longest_first" and self.query_max_length is not None:
            raise ConfigError(
                f"query_max_length is {self.query_max_length}, but truncation 'longest_first' shares the "
                "room between query and passage: leave it out, or use truncation 'only_second'"
            )

    @property
    def query_limit(self) -> int | None:
        """Tokens that a query keeps under "only_second"; None under "longest_first"."""
        if self.truncation == "longest_first":
            return None
        return self.max_length * 3 // 4 if self.query_max_length is None else self.query_max_length

    def check_room(self, special_tokens: int) -> None:
        """Raise ConfigError where a query could leave no token for its passage."""
        if self.query_limit is None:
            if self.max_length < special_tokens + 2:
                raise ConfigError(
                    f"max_length is {self.max_length}, but the special tokens take {special_tokens} and "
                    f"query and passage need one each: set max_length to {special_tokens + 2} or more"
                )
        elif self.query_limit + special_tokens >= self.max_length:
            raise ConfigError(
                f"a query of query_max_length={self.query_limit} tokens and {special_tokens} special tokens "
                f"leave no room for a passage in max_length={self.max_length}: raise max_length or lower "
                "query_max_length"
            )


@dataclass(frozen=True)
class TemplatePart:
    """Special tokens that stand together: their ids, and their token types."""

    ids: tuple[int, ...]
    types: tuple[int, ...]


@dataclass(frozen=True)
class PairTemplate:
    """What stands around the two texts: `before` query `between` passage `after`."""

    before: TemplatePart
    between: TemplatePart
    after: TemplatePart
    query_type: int
    passage_type: int

    @property
    def special_tokens(self) -> int:
        """Tokens that the template adds to a pair."""
        return len(self.before.ids) + len(self.between.ids) + len(self.after.ids)

    @property
    def uses_types(self) -> bool:
        """Whether any token type is not 0."""
        specials = (*self.before.types, *self.between.types, *self.after.types)
        return any((*specials, self.query_type, self.passage_type))


@dataclass(frozen=True)
class TokenizedPairs:
    """Token ids of n pairs, one after the other: pair i is token_ids[offsets[i]:offsets[i + 1]].

    `token_ids`: int32 (total,); `offsets`: int64 (n + 1,); `type_ids`: uint8 (total,), or None where the
    template has a single token type; `truncated`: bool (n,), whether query or passage lost tokens. Pairs in
    `errors` (position → reason, detail) have no ids.
    """

    token_ids: _Ids
    offsets: _Ints
    type_ids: _Types | None
    truncated: npt.NDArray[np.bool_]
    errors: PairErrors

    @property
    def lengths(self) -> _Ints:
        """Tokens of each pair: int64 (n,)."""
        return np.diff(self.offsets)


@dataclass(frozen=True)
class _TokenizedTexts:
    """The distinct texts of a column, tokenised.

    `ids`: int32, one text after the other, each cut to what a pair can hold at most; `starts`: int64 (distinct,),
    where each begins in it; `lengths`: int64 (distinct,), tokens before any cut.
    """

    ids: _Ids
    starts: _Ints
    lengths: _Ints
    errors: PairErrors


@dataclass(frozen=True)
class _Side:
    """One side of n pairs: `codes` says which text, `kept` how many of its tokens; int64 (n,) each."""

    texts: _TokenizedTexts
    codes: _Ints
    kept: _Ints

    def copy_into(self, target: npt.NDArray[Any], rows: _Ints, starts: _Ints) -> None:
        """Write the kept tokens of some pairs to where each starts in `target`."""
        kept = self.kept[rows]
        sources = _ranges(self.texts.starts[self.codes[rows]], kept)
        target[_ranges(starts, kept)] = self.texts.ids[sources]


@dataclass(frozen=True)
class CutPairs:
    """n pairs whose texts are tokenised and whose lengths are known; their ids are put together on demand.

    `lengths`: int64 (n,), tokens of each pair, 0 for those in `errors`; `truncated`: bool (n,).
    """

    lengths: _Ints
    truncated: npt.NDArray[np.bool_]
    errors: PairErrors
    _template: PairTemplate
    _query: _Side
    _passage: _Side

    def assemble(self, rows: _Ints) -> tuple[_Ids, _Ints, _Types | None]:
        """Ids, offsets and types, as in TokenizedPairs, of the pairs numbered `rows`, in that order.

        No Python step per pair or token. Each pair must have a length.
        """
        template, query_kept = self._template, self._query.kept[rows]
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(self.lengths[rows])])
        query_starts = offsets[:-1] + len(template.before.ids)
        between = query_starts + query_kept
        passage_starts = between + len(template.between.ids)
        after = passage_starts + self._passage.kept[rows]

        ids = np.empty(int(offsets[-1]), dtype=np.int32)
        self._query.copy_into(ids, rows, query_starts)
        self._passage.copy_into(ids, rows, passage_starts)
        places = ((template.before, offsets[:-1]), (template.between, between), (template.after, after))
        for part, starts in places:
            for place, token in enumerate(part.ids):
                ids[starts + place] = token
        if not template.uses_types:
            return ids, offsets, None

        types = np.full(len(ids), template.query_type, dtype=np.uint8)
        types[_ranges(passage_starts, self._passage.kept[rows])] = template.passage_type
        for part, starts in places:
            for place, token_type in enumerate(part.types):
                types[starts + place] = token_type
        return ids, offsets, types


class PairTokenizer:
    """Turns pairs of texts into the model's token ids."""

    def __init__(self, tokenizer: Tokenizer, limits: PairLimits) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self.limits = limits
        self.template = pair_template(tokenizer)
        limits.check_room(self.template.special_tokens)

    @classmethod
    def from_folder(cls, folder: str | Path, limits: PairLimits | None = None) -> PairTokenizer:
        """Load a model folder's `tokenizer.json`, or what its `sentencepiece.bpe.model` is converted to.

        Raises ModelError where both are absent or cannot be read, ConfigError where the limits leave no room.
        """
        path, older = Path(folder) / TOKENIZER_FILE, Path(folder) / SENTENCEPIECE_FILE
        if older.is_file() and not path.is_file():
            path, _ = converted_tokenizer(older)
        return cls(read_tokenizer(path), limits or PairLimits())

    def encode(self, queries: Texts, passages: Texts) -> TokenizedPairs:
        """Token ids of the pairs (queries[i], passages[i]).

        Texts are sequences of str, or Arrow string or dictionary arrays. Never raises for a bad text: a null,
        a text that is not valid UTF-8 or that the tokenizer refuses is in the result's `errors`. Raises
        InputError for unequal lengths or another type than text.
        """
        pairs = self.cut(*text_columns(queries, passages))
        sound = np.flatnonzero(pairs.lengths)
        token_ids, _, type_ids = pairs.assemble(sound)
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(pairs.lengths)])
        return TokenizedPairs(token_ids, offsets, type_ids, pairs.truncated, pairs.errors)

    def cut(self, queries: TextColumn, passages: TextColumn) -> CutPairs:
        """Tokenise each distinct text once and decide what is kept of each pair's two; see `encode`."""
        query_texts, passage_texts = self._tokenise(queries), self._tokenise(passages)
        errors = pair_errors(queries.codes, query_texts.errors, passages.codes, passage_texts.errors)
        sound = np.ones(len(queries.codes), dtype=np.bool_)
        sound[list(errors)] = False
        rows = np.flatnonzero(sound)
        full = query_texts.lengths[queries.codes[rows]], passage_texts.lengths[passages.codes[rows]]

        kept = np.zeros((2, len(sound)), dtype=np.int64)
        kept[:, rows] = kept_lengths(*full, self.limits, self.template.special_tokens)
        truncated = np.zeros(len(sound), dtype=np.bool_)
        truncated[rows] = (kept[0, rows] < full[0]) | (kept[1, rows] < full[1])
        return CutPairs(
            lengths=np.where(sound, kept.sum(axis=0) + self.template.special_tokens, 0),
            truncated=truncated,
            errors=errors,
            _template=self.template,
            _query=_Side(query_texts, queries.codes, kept[0]),
            _passage=_Side(passage_texts, passages.codes, kept[1]),
        )

    def seen(self, query: str, passage: str) -> tuple[str, str]:
        """What the model reads of each text: up to the end of the last token that is kept."""
        encodings = [self._tokenizer.encode(text, add_special_tokens=False) for text in (query, passage)]
        lengths = [np.array([len(encoding.ids)], dtype=np.int64) for encoding in encodings]
        kept = kept_lengths(lengths[0], lengths[1], self.limits, self.template.special_tokens)
        ends = [e.offsets[int(k[0]) - 1][1] if k[0] else 0 for e, k in zip(encodings, kept, strict=True)]
        return query[: ends[0]], passage[: ends[1]]

    def _tokenise(self, column: TextColumn) -> _TokenizedTexts:
        encoded, lengths, errors = _encode_all(self._tokenizer, column, self.limits.max_length)
        stored = np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded))
        ids = np.concatenate(encoded) if encoded else np.empty(0, np.int32)
        return _TokenizedTexts(ids, np.cumsum(stored) - stored, lengths, errors)


def read_tokenizer(path: Path) -> Tokenizer:
    """Load a tokenizer.json. Raises ModelError where it is absent or unreadable.

    One thing is not in the file: transformers' classes of the RoBERTa family let a literal `<mask>` take the white
    space before it, whatever the file says, and so does the reference.
    """
    if not path.is_file():
        raise ModelError(
            f"there is no {path.name} in {path.parent}: a model's tokenizer is beside its weights"
        )
    stat = path.stat()
    return _read_tokenizer(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=1)  # XLM-R's takes a second; a process rarely has two
def _read_tokenizer(path: Path, _size: int, _modified: int) -> Tokenizer:
    set_tokenizer_threads()
    from tokenizers import AddedToken, Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # what tokenizers raises has no narrower type
        raise ModelError(f"{path} cannot be read as a tokenizer: {error}") from error
    if any(token.content == _ROBERTA_MASK for token in tokenizer.get_added_tokens_decoder().values()):
        tokenizer.add_special_tokens([AddedToken(_ROBERTA_MASK, lstrip=True, normalized=False, special=True)])
    return tokenizer


def pair_template(tokenizer: Tokenizer) -> PairTemplate:
    """Read the pair template off the tokenizer's own post-processor, by encoding a pair.

    Raises ModelError where the special tokens do not stand around query and passage in this order.
    """
    encoding = tokenizer.encode("a", "b")
    sides = np.array([-1 if side is None else side for side in encoding.sequence_ids])
    query, passage = np.flatnonzero(sides == 0), np.flatnonzero(sides == 1)
    if not len(query) or not len(passage) or query[-1] > passage[0]:
        raise ModelError(
            f"the tokenizer encodes the pair ('a', 'b') as {encoding.tokens}: expected special tokens around "
            "the query, then the passage, as tokenizers of the BERT and XLM-RoBERTa families give"
        )

    def part(start: int, stop: int) -> TemplatePart:
        return TemplatePart(tuple(encoding.ids[start:stop]), tuple(encoding.type_ids[start:stop]))

    return PairTemplate(
        before=part(0, query[0]),
        between=part(query[-1] + 1, passage[0]),
        after=part(passage[-1] + 1, len(sides)),
        query_type=encoding.type_ids[query[0]],
        passage_type=encoding.type_ids[passage[0]],
    )


def kept_lengths(
    query_lengths: _Ints, passage_lengths: _Ints, limits: PairLimits, special_tokens: int
) -> tuple[_Ints, _Ints]:
    """Tokens kept of each query and passage: int64 (n,) each.

    "longest_first" is the rule of the `tokenizers` library, which fast tokenizers apply: the shorter side
    stays whole while it has at most half the room; else both get half, and an odd token goes to the longer side, to
    the passage where both are as long.
    """
    room = limits.max_length - special_tokens
    if limits.query_limit is not None:
        query_kept = np.minimum(query_lengths, limits.query_limit)
        return query_kept, np.minimum(passage_lengths, room - query_kept)
    half = room // 2
    shorter = np.minimum(query_lengths, passage_lengths)
    shorter_kept = np.minimum(shorter, half)
    longer_kept = room - shorter_kept
    query_is_longer = query_lengths > passage_lengths
    query_kept = np.where(query_is_longer, longer_kept, shorter_kept)
    passage_kept = np.where(query_is_longer, shorter_kept, longer_kept)
    return np.minimum(query_lengths, query_kept), np.minimum(passage_lengths, passage_kept)


def _encode_all(
    tokenizer: Tokenizer, column: TextColumn, most_tokens: int
) -> tuple[list[_Ids], _Ints, PairErrors]:
    """Ids of each distinct text without special tokens, its first `most_tokens` at most; and how many it has.

    A bad text has none. The tokenizer keeps a hundred bytes and more for each token of a call, so a call gets a
    bounded number of characters.
    """
    encoded: list[_Ids] = [np.empty(0, np.int32)] * len(column.values)
    lengths = np.zeros(len(column.values), dtype=np.int64)
    errors = dict(column.errors)
    for numbers in _bounded_runs(column.values):
        texts = [text for number in numbers if (text := column.values[number]) is not None]
        for number, outcome in zip(numbers, _encode_batch(tokenizer, texts), strict=True):
            if isinstance(outcome, BaseException):
                errors[number] = (Reason.TOKENIZER_ERROR, f"{type(outcome).__name__}: {outcome}")
            else:
                lengths[number] = len(outcome)
                encoded[number] = np.array(outcome[:most_tokens], dtype=np.int32)
    return encoded, lengths, errors


def _bounded_runs(texts: list[str | None]) -> Iterator[list[int]]:
    """Numbers of the texts that are there, in runs of about `_CHARACTERS_PER_CALL`."""
    run: list[int] = []
    characters = 0
    for number, text in enumerate(texts):
        if text is not None:
            run.append(number)
            characters += len(text)
        if characters >= _CHARACTERS_PER_CALL:
            yield run
            run, characters = [], 0
    if run:
        yield run


def _encode_batch(tokenizer: Tokenizer, texts: list[str]) -> list[list[int] | BaseException]:
    """Ids of each text, or what the tokenizer raised for it."""
    try:
        return [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]
    except BaseException as error:  # a panic in Rust derives from BaseException
        _reraise_unless_tokenizer(error)
        if len(texts) == 1:
            return [error]
    return [_encode_batch(tokenizer, [text])[0] for text in texts]  # which of them was it?


def _reraise_unless_tokenizer(error: BaseException) -> None:
    panic = type(error).__name__ == "PanicException"
    if isinstance(error, MemoryError) or not (panic or isinstance(error, Exception)):
        raise error


def _ranges(starts: _Ints, lengths: _Ints) -> _Ints:
    """Concatenate range(starts[i], starts[i] + lengths[i]): int64 (sum of lengths,)."""
    before = np.cumsum(lengths) - lengths
    places: _Ints = np.arange(int(lengths.sum()), dtype=np.int64) + np.repeat(starts - before, lengths)
    return places
