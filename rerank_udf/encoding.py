"""Texts to token ids: each distinct text once, and a long one only as far as a pair can hold it."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rerank_udf.tables import Reason

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

CACHE_BYTES = 64 << 20
_CHARACTERS_PER_CALL = 2_000_000
# More than a token has in any of XQuAD's languages, in the mean, so that a first prefix is rarely too short.
_CHARACTERS_PER_TOKEN = 6

# Where a prefix may end: before an ASCII space, after what no normaliser turns into white space or joins to the space.
# Out are signs that SentencePiece's normaliser makes a space of (a zero-width joiner, say), the letters that Unicode
# joins to whatever follows (U+0D4E and rarer ones beyond U+FFFF), and the half-width marks, which join to the left.
_SAFE_END = re.compile(r"(?:[!-~]|(?![\u0d4e\uff00-\U0010ffff])[^\W_])(?= )")
_LOCAL_NORMALIZERS = {"BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Precompiled", "Strip"}
_SPACES_AS_ONE = {"Regex": " {2,}"}
_WORD_SPLITTERS = {"BertPreTokenizer", "Metaspace", "WhitespaceSplit"}
_WORD_MODELS = {"Unigram", "WordPiece"}


class EncodedText(NamedTuple):
    """A text's tokens, without special ones.

    `ids`: int32, the first of them, at most as many as were asked for; `tokens`: how many the text has, or, where that
    is more than were asked for, possibly some smaller number that is more too; `error`: (reason, detail) of a text
    that the tokenizer refused, which has no ids.
    """

    ids: npt.NDArray[np.int32]
    tokens: int
    error: tuple[str, str] | None = None


_NOTHING = EncodedText(np.empty(0, np.int32), 0)


class TextCache:
    """Texts that were encoded before, up to about `most_bytes` of them.

    Two generations: what is used moves to the young one; when that has half the bytes, it becomes the old one, and
    what was still in the old one is forgotten. So what is forgotten has not been used for as long as the other half
    took to fill.
    """

    def __init__(self, most_bytes: int = CACHE_BYTES) -> None:
        self._most_young_bytes = most_bytes // 2
        self._young_bytes = 0
        self._young: dict[str, EncodedText] = {}
        self._old: dict[str, EncodedText] = {}

    def get(self, text: str) -> EncodedText | None:
        """What `put` was given for this text, or None."""
        found = self._young.get(text)
        if found is None and (found := self._old.pop(text, None)) is not None:
            self.put(text, found)
        return found

    def put(self, text: str, encoded: EncodedText) -> None:
        """Keep a text, and forget others where there are too many."""
        self._young[text] = encoded
        self._young_bytes += sys.getsizeof(text) + sys.getsizeof(encoded.ids) + sys.getsizeof(encoded)
        if self._young_bytes > self._most_young_bytes:
            self._old, self._young, self._young_bytes = self._young, {}, 0


class TextEncoder:
    """Encodes texts, each to its first `most_tokens` ids at most; long ones by a prefix where that gives the same."""

    def __init__(self, tokenizer: Tokenizer, most_tokens: int) -> None:
        self.most_tokens = most_tokens
        self.texts_tokenised = 0
        self.cache_hits = 0
        self._by_prefix = splits_at_spaces(tokenizer)
        # The fast one leaves out the offsets, which nobody reads here: a fifth of the time. Older versions lack it.
        self._encode_batch = getattr(tokenizer, "encode_batch_fast", tokenizer.encode_batch)

    def encode(self, texts: Iterable[str | None], cache: TextCache) -> list[EncodedText]:
        """Each text's tokens, none for None; only those that are not in the cache go to the tokenizer, each once."""
        texts = list(texts)
        found = {text: cache.get(text) for text in texts if text is not None}
        new = [text for text, encoded in found.items() if encoded is None]
        self.texts_tokenised += len(new)
        self.cache_hits += len(found) - len(new)
        for text, encoded in zip(new, self._encode_new(new), strict=True):
            found[text] = encoded
            cache.put(text, encoded)
        return [_NOTHING if text is None else found[text] or _NOTHING for text in texts]

    def count(self, texts: Sequence[str]) -> list[int]:
        """How many tokens each text has, all of it; 0 where the tokenizer refuses it."""
        return [encoded.tokens for encoded in self._encode_parts(texts)]

    def _encode_new(self, texts: Sequence[str]) -> list[EncodedText]:
        """Each text read as far as needed: prefixes whose ids are too few are read again, twice as long."""
        encoded = [_NOTHING] * len(texts)
        waiting: Sequence[int] = range(len(texts))
        characters = _CHARACTERS_PER_TOKEN * (self.most_tokens + 1)
        while waiting:
            parts = [self._part(texts[number], characters) for number in waiting]
            too_short = []
            for number, part, outcome in zip(waiting, parts, self._encode_parts(parts), strict=True):
                encoded[number] = outcome
                if len(part) < len(texts[number]) and outcome.tokens <= self.most_tokens:
                    too_short.append(number)
            waiting, characters = too_short, 2 * characters
        return encoded

    def _part(self, text: str, characters: int) -> str:
        """A prefix of about so many characters, or the whole of a text that is not much longer or has no safe end.

        Why a prefix's ids are the first of the whole's, where `splits_at_spaces`: the space after it is no part of
        an added token, at most of what one strips to its left; the character before the space is neither made a
        space nor joined to one by the normaliser, and nothing else in it looks across a space; so the words of the
        prefix are words of the whole, and the model sees one word at a time.
        """
        if not self._by_prefix or 2 * len(text) < 3 * characters:
            return text
        end = _SAFE_END.search(text, characters)
        return text if end is None else text[: end.end()]

    def _encode_parts(self, texts: Sequence[str]) -> Iterator[EncodedText]:
        for run in _bounded_runs(texts):
            yield from self._encode_run(run)

    def _encode_run(self, texts: Sequence[str]) -> list[EncodedText]:
        """One call, or, where the tokenizer raises, one call for each text to see which it was."""
        try:
            return [self._encoded(one) for one in self._encode_batch(texts, add_special_tokens=False)]
        except BaseException as error:  # a panic in Rust derives from BaseException
            _reraise_unless_tokenizer(error)
            if len(texts) == 1:
                detail = f"{type(error).__name__}: {error}"
                return [EncodedText(_NOTHING.ids, 0, (Reason.TOKENIZER_ERROR, detail))]
        return [self._encode_run([text])[0] for text in texts]

    def _encoded(self, encoding: Encoding) -> EncodedText:
        return EncodedText(np.array(encoding.ids[: self.most_tokens], dtype=np.int32), len(encoding))


def splits_at_spaces(tokenizer: Tokenizer) -> bool:
    """Whether words that ASCII spaces part are encoded independently, so that a text may be read by a prefix.

    True only for what is known: the WordPiece tokenizers of BERT and the Unigram tokenizers of the XLM-RoBERTa
    family, whose normalisers work on one character or cluster at a time, whose pre-tokenizers split at every space,
    and whose added tokens hold none. Not for a tokenizer without pre-tokenizer, or one whose words may span spaces.
    """
    added = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    return (
        type(tokenizer.model).__name__ in _WORD_MODELS
        and not any("▁" in content or content.split() != [content] for content in added)
        and all(map(_is_local, _steps(tokenizer.normalizer, "normalizers")))
        and bool(splitters := _steps(tokenizer.pre_tokenizer, "pretokenizers"))
        and all(step["type"] in _WORD_SPLITTERS and step.get("split", True) for step in splitters)
    )


def tokenizer_threads() -> int:
    """Threads that the tokenizers library uses for a call, as the environment says; see `set_tokenizer_threads`."""
    if os.environ.get("TOKENIZERS_PARALLELISM", "true").lower() in ("false", "off", "no", "n", "f", "0", ""):
        return 1
    stated = os.environ.get("RAYON_NUM_THREADS", "")
    return int(stated) if stated.isdigit() and int(stated) else os.cpu_count() or 1


def _steps(component: Any, inside: str) -> list[dict[str, Any]]:
    """The parts of a normaliser or pre-tokenizer as in tokenizer.json, sequences taken apart; none for None."""
    if component is None:
        return []
    try:
        waiting = [json.loads(component.__getstate__())]
    except Exception:  # one that is written in Python has no JSON; the library's error has no narrower type
        return [{"type": "unknown"}]
    steps = []
    while waiting:
        step = waiting.pop()
        if step["type"] == "Sequence":
            waiting += step[inside]
        else:
            steps.append(step)
    return steps


def _is_local(normalizer: dict[str, Any]) -> bool:
    if normalizer["type"] == "Replace":
        return bool(normalizer["pattern"] == _SPACES_AS_ONE)
    return normalizer["type"] in _LOCAL_NORMALIZERS


def _bounded_runs(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """The texts in runs of about `_CHARACTERS_PER_CALL`: the tokenizer keeps 100 bytes and more for each token of a
    call."""
    start = characters = 0
    for end, text in enumerate(texts, 1):
        characters += len(text)
        if characters >= _CHARACTERS_PER_CALL:
            yield texts[start:end]
            start, characters = end, 0
    if start < len(texts):
        yield texts[start:]


def _reraise_unless_tokenizer(error: BaseException) -> None:
    panic = type(error).__name__ == "PanicException"
    if isinstance(error, MemoryError) or not (panic or isinstance(error, Exception)):
        raise error
