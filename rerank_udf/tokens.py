"""Pairs of texts to token ids: tokenise each distinct text once, cut, assemble.

The ids are those that FlagEmbedding's FlagReranker ("only_second") and sentence-transformers' CrossEncoder
("longest_first") give in the pinned reference environment. `tokenizer.json` is used by the tokenizers
library itself, so they do not depend on which transformers is installed, or on any.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from rerank_udf.encoding import TextCache, TextEncoder
from rerank_udf.errors import ConfigError, ModelError
from rerank_udf.machine import set_tokenizer_threads
from rerank_udf.models.checkpoint import SENTENCEPIECE_FILE, TOKENIZER_FILE
from rerank_udf.models.sentencepiece import converted_tokenizer
from rerank_udf.texts import PairErrors, TextColumn, Texts, pair_errors, text_columns

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Truncation = Literal["only_second", "longest_first"]
_ROBERTA_MASK = "<mask>"

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
    def parts(self) -> tuple[TemplatePart, TemplatePart, TemplatePart]:
        """`before`, `between` and `after`."""
        return self.before, self.between, self.after

    @property
    def special_tokens(self) -> int:
        """Tokens that the template adds to a pair."""
        return sum(len(part.ids) for part in self.parts)

    @property
    def uses_types(self) -> bool:
        """Whether any token type is not 0."""
        return any((self.query_type, self.passage_type)) or any(any(part.types) for part in self.parts)


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
    where each begins in it; `lengths`: int64 (distinct,), as `EncodedText.tokens`: exact, or more than a pair can hold.
    """

    ids: _Ids
    starts: _Ints
    lengths: _Ints
    errors: PairErrors


@dataclass(frozen=True)
class _Arena:
    """What pairs are put together from: the template's special tokens, the distinct queries, the distinct passages.

    `ids`: int32, `types`: uint8 or None where every type is 0; `special_starts`: int64 (3,), where the template's
    parts begin; `special_sizes`: int64 (3,); `text_starts`: int64 (2, n), where each pair's two texts begin.
    """

    ids: _Ids
    types: _Types | None
    special_starts: _Ints
    special_sizes: _Ints
    text_starts: _Ints


@dataclass(frozen=True)
class CutPairs:
    """n pairs whose texts are tokenised and whose lengths are known; their ids are put together on demand.

    `lengths`: int64 (n,), tokens of each pair, 0 for those in `errors`; `truncated`: bool (n,).
    """

    lengths: _Ints
    truncated: npt.NDArray[np.bool_]
    errors: PairErrors
    _arena: _Arena
    _kept: _Ints  # (2, n): tokens kept of each pair's two texts

    def assemble(self, rows: _Ints) -> tuple[_Ids, _Ints, _Types | None]:
        """Ids, offsets and types, as in TokenizedPairs, of the pairs numbered `rows`, in that order.

        No Python step per pair or token: a pair is five pieces of the arena, and all pieces are copied at once. Each
        pair must have a length.
        """
        starts, sizes = np.empty((2, len(rows), 5), dtype=np.int64)
        starts[:, 0::2], sizes[:, 0::2] = self._arena.special_starts, self._arena.special_sizes
        starts[:, 1::2], sizes[:, 1::2] = self._arena.text_starts[:, rows].T, self._kept[:, rows].T
        places = _ranges(starts.ravel(), sizes.ravel())
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(self.lengths[rows])])
        types = None if self._arena.types is None else self._arena.types[places]
        return self._arena.ids[places], offsets, types


class PairTokenizer:
    """Turns pairs of texts into the model's token ids."""

    def __init__(self, tokenizer: Tokenizer, limits: PairLimits) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self.limits = limits
        self.template = pair_template(tokenizer)
        limits.check_room(self.template.special_tokens)
        self._room = limits.max_length - self.template.special_tokens
        self.encoder = TextEncoder(tokenizer, self._room)

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

    def cut(self, queries: TextColumn, passages: TextColumn, cache: TextCache | None = None) -> CutPairs:
        """Tokenise each distinct text once and decide what is kept of each pair's two; see `encode`.

        A text that is in `cache` is not tokenised again: pass the same one for all columns that may share texts.
        """
        cache = TextCache() if cache is None else cache
        query_texts, passage_texts = self._tokenise(queries, cache), self._tokenise(passages, cache)
        errors = pair_errors(queries.codes, query_texts.errors, passages.codes, passage_texts.errors)
        sound = np.ones(len(queries.codes), dtype=np.bool_)
        sound[list(errors)] = False
        codes = np.stack([queries.codes, passages.codes])[:, sound]
        full = np.stack([query_texts.lengths[codes[0]], passage_texts.lengths[codes[1]]])
        if self.limits.query_limit is None and self._room % 2:
            self._settle_odd_tokens(full, codes, (queries, passages))

        kept = np.zeros((2, len(sound)), dtype=np.int64)
        kept[:, sound] = kept_lengths(full[0], full[1], self.limits, self._room)
        truncated = np.zeros(len(sound), dtype=np.bool_)
        truncated[sound] = (kept[:, sound] < full).any(axis=0)
        return CutPairs(
            lengths=np.where(sound, kept.sum(axis=0) + self.template.special_tokens, 0),
            truncated=truncated,
            errors=errors,
            _arena=_arena(self.template, query_texts, passage_texts, codes, sound),
            _kept=kept,
        )

    def seen(self, query: str, passage: str) -> tuple[str, str]:
        """What the model reads of each text: up to the end of the last token that is kept."""
        encodings = [self._tokenizer.encode(text, add_special_tokens=False) for text in (query, passage)]
        lengths = [np.array([len(encoding.ids)], dtype=np.int64) for encoding in encodings]
        kept = kept_lengths(lengths[0], lengths[1], self.limits, self._room)
        ends = [e.offsets[int(k[0]) - 1][1] if k[0] else 0 for e, k in zip(encodings, kept, strict=True)]
        return query[: ends[0]], passage[: ends[1]]

    def _settle_odd_tokens(self, full: _Ints, codes: _Ints, columns: tuple[TextColumn, TextColumn]) -> None:
        """Make the lengths exact, in place, of pairs whose texts are both too long: "longest_first" gives the odd token
        of the room to the longer one, and where only prefixes were read nobody knows which that is.

        `full`, `codes`: int64 (2, pairs), lengths and numbers of the texts.
        """
        doubtful = (full > self._room).all(axis=0)
        for lengths, numbers, column in zip(full, codes, columns, strict=True):
            long, places = np.unique(numbers[doubtful], return_inverse=True)
            texts = [text for number in long.tolist() if (text := column.values[number]) is not None]
            exact = np.array(self.encoder.count(texts), dtype=np.int64)
            lengths[doubtful] = np.maximum(lengths[doubtful], exact[places])

    def _tokenise(self, column: TextColumn, cache: TextCache) -> _TokenizedTexts:
        texts = self.encoder.encode(column.values, cache)
        ids = [text.ids for text in texts]
        stored = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
        lengths = np.fromiter((text.tokens for text in texts), dtype=np.int64, count=len(ids))
        refused = {number: text.error for number, text in enumerate(texts) if text.error}
        joined = np.concatenate(ids) if ids else np.empty(0, np.int32)
        return _TokenizedTexts(joined, np.cumsum(stored) - stored, lengths, column.errors | refused)


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
    # some files carry what their last user had set
    tokenizer.no_truncation()
    tokenizer.no_padding()
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
    query_lengths: _Ints, passage_lengths: _Ints, limits: PairLimits, room: int
) -> tuple[_Ints, _Ints]:
    """Tokens kept of each query and passage, of which `room` fit beside the special tokens: int64 (n,) each.

    "longest_first" is the rule of the `tokenizers` library, which fast tokenizers apply: the shorter side
    stays whole while it has at most half the room; else both get half, and an odd token goes to the longer side, to
    the passage where both are as long.
    """
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


def _arena(
    template: PairTemplate,
    query_texts: _TokenizedTexts,
    passage_texts: _TokenizedTexts,
    codes: _Ints,
    sound: npt.NDArray[np.bool_],
) -> _Arena:
    """The arena of n pairs; `codes`: int64 (2, sound pairs), the numbers of their texts; `sound`: bool (n,)."""
    specials = [token for part in template.parts for token in part.ids]
    types = None
    if template.uses_types:
        sizes = [1] * len(specials) + [len(query_texts.ids), len(passage_texts.ids)]
        of_parts = [token_type for part in template.parts for token_type in part.types]
        values = np.array([*of_parts, template.query_type, template.passage_type], dtype=np.uint8)
        types = np.repeat(values, sizes)
    special_sizes = np.array([len(part.ids) for part in template.parts], dtype=np.int64)
    text_starts = np.zeros((2, len(sound)), dtype=np.int64)
    text_starts[0, sound] = len(specials) + query_texts.starts[codes[0]]
    text_starts[1, sound] = len(specials) + len(query_texts.ids) + passage_texts.starts[codes[1]]
    return _Arena(
        ids=np.concatenate([np.array(specials, dtype=np.int32), query_texts.ids, passage_texts.ids]),
        types=types,
        special_starts=np.cumsum(special_sizes) - special_sizes,
        special_sizes=special_sizes,
        text_starts=text_starts,
    )


def _ranges(starts: _Ints, lengths: _Ints) -> _Ints:
    """Concatenate range(starts[i], starts[i] + lengths[i]): int64 (sum of lengths,)."""
    before = np.cumsum(lengths) - lengths
    places: _Ints = np.arange(int(lengths.sum()), dtype=np.int64) + np.repeat(starts - before, lengths)
    return places
