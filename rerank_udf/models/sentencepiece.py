"""A tokenizer.json from a sentencepiece.bpe.model, for XLM-RoBERTa models that ship nothing newer.

The rule is that of the pinned reference (transformers' slow-to-fast conversion for XLM-RoBERTa): fairseq's four
special tokens come first, `<mask>` last, the model's own pieces from the fourth on stand between. Written without
that library, so that the result, whose digest is part of model_key, is the same whichever is installed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rerank_udf.errors import ModelError
from rerank_udf.models.cache import cache_root, file_digest, write_atomically

_UNIGRAM = 1
_UNKNOWN_ID = 3
_SPACE = "▁"
CONVERSION_VERSION = 1


def converted_tokenizer(source: Path) -> tuple[Path, str]:
    """The tokenizer.json made from a sentencepiece model, made once per node: (path in the cache, sha256).

    Raises ModelError where the file is no unigram sentencepiece model.
    """
    name = f"{file_digest(source)[:32]}-{CONVERSION_VERSION}.json"
    target = cache_root() / "converted" / name
    if not target.is_file():
        write_atomically(target, json.dumps(tokenizer_json(source), ensure_ascii=False))
    return target, hashlib.sha256(target.read_bytes()).hexdigest()


def tokenizer_json(source: Path) -> dict[str, Any]:
    """The content of a tokenizer.json. Raises ModelError where `source` is no unigram sentencepiece model."""
    raw = source.read_bytes()
    try:
        message = list(_fields(raw))
        pieces = [_piece(value) for number, value in message if number == 1]
        trainer = dict(_fields(next((value for number, value in message if number == 2), b"")))
        normalizer = dict(_fields(next((value for number, value in message if number == 3), b"")))
    except (IndexError, struct.error, TypeError, UnicodeDecodeError) as error:
        raise ModelError(f"{source} cannot be read as a sentencepiece model: {error}") from error
    if len(pieces) < _UNKNOWN_ID or trainer.get(3, _UNIGRAM) != _UNIGRAM:
        raise ModelError(
            f"{source} is no unigram sentencepiece model, as XLM-RoBERTa's is; give a tokenizer.json"
        )
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    vocabulary = [[token, 0.0] for token in specials] + pieces[3:] + [["<mask>", 0.0]]
    return _content(vocabulary, normalizer.get(2, b""), specials)


def _content(vocabulary: list[list[Any]], charsmap: Any, specials: list[str]) -> dict[str, Any]:
    first, last = (
        {"SpecialToken": {"id": "<s>", "type_id": 0}},
        {"SpecialToken": {"id": "</s>", "type_id": 0}},
    )
    query, passage = {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}
    steps: list[dict[str, Any]] = [
        {"type": "Strip", "strip_left": False, "strip_right": True},
        {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": _SPACE},
    ]
    if charsmap:
        encoded = base64.b64encode(charsmap).decode("ascii")
        steps.insert(0, {"type": "Precompiled", "precompiled_charsmap": encoded})
    metaspace = {"type": "Metaspace", "replacement": _SPACE, "prepend_scheme": "always", "split": True}
    added = [(number, token, False) for number, token in enumerate(specials)]
    added.append((len(vocabulary) - 1, "<mask>", True))
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added_token(*entry) for entry in added],
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "pre_tokenizer": metaspace,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [first, query, last],
            "pair": [first, query, last, last, passage, last],
            "special_tokens": {
                token: {"id": token, "ids": [specials.index(token)], "tokens": [token]}
                for token in ("<s>", "</s>")
            },
        },
        "decoder": metaspace,
        "model": {"type": "Unigram", "unk_id": _UNKNOWN_ID, "vocab": vocabulary, "byte_fallback": False},
    }


def _added_token(number: int, content: str, left_strip: bool) -> dict[str, Any]:
    return {
        "id": number,
        "content": content,
        "single_word": False,
        "lstrip": left_strip,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }


def _piece(raw: Any) -> list[Any]:
    """A piece's text and score: fields 1 (string) and 2 (float) of sentencepiece's ModelProto.SentencePiece."""
    fields = dict(_fields(raw))
    (score,) = struct.unpack("<f", fields.get(2, b"\0\0\0\0"))
    return [fields[1].decode("utf-8"), score]


def _fields(raw: bytes) -> Iterator[tuple[int, Any]]:
    """The (number, value) fields of a protocol-buffer message: int for varints, bytes for everything else."""
    place = 0
    while place < len(raw):
        key, place = _varint(raw, place)
        kind = key & 7
        if kind == 0:
            value, place = _varint(raw, place)
            yield key >> 3, value
            continue
        if kind == 2:
            size, place = _varint(raw, place)
        else:
            size = {1: 8, 5: 4}[kind] if kind in (1, 5) else -1
        if size < 0 or place + size > len(raw):
            raise IndexError(f"field {key >> 3} ends past the file's end")
        yield key >> 3, raw[place : place + size]
        place += size


def _varint(raw: bytes, place: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte = raw[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7
