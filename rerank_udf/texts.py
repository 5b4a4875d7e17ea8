"""A column of texts as its distinct values: the only per-text Python work happens on those."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rerank_udf.errors import InputError
from rerank_udf.tables import Reason

PairErrors: TypeAlias = dict[int, tuple[str, str]]
Texts: TypeAlias = Any  # Sequence[str | None], pa.Array or pa.ChunkedArray; pyarrow ships no types


@dataclass(frozen=True)
class TextColumn:
    """A column of texts by its distinct values.

    `codes`: int64 (n,), the number of each row's distinct text, −1 for null. `values[k]` is the text, or None
    where it is not valid Unicode; those k are the keys of `errors`, with (reason, detail).
    """

    codes: npt.NDArray[np.int64]
    values: list[str | None]
    errors: PairErrors

    def rows(self, start: int, stop: int) -> TextColumn:
        """The column of rows [start, stop), with no text that they do not have."""
        numbers, codes = np.unique(self.codes[start:stop], return_inverse=True)
        nulls = int((numbers[:1] < 0).sum())
        kept = numbers[nulls:].tolist()
        errors = {place: self.errors[number] for place, number in enumerate(kept) if number in self.errors}
        return TextColumn(codes.astype(np.int64) - nulls, [self.values[number] for number in kept], errors)


def text_column(texts: Texts, name: str) -> TextColumn:
    """Dictionary-encode texts: a sequence of str or None, or an Arrow string or dictionary array.

    `name` is what an InputError calls the column; it is raised where something else than text is found.
    """
    if isinstance(texts, (str, bytes)):
        raise InputError(f"{name} is one {type(texts).__name__}; expected a sequence of texts")
    if isinstance(texts, (pa.Array, pa.ChunkedArray)):
        return _arrow_column(texts, name)
    listed = list(texts)
    try:
        return _arrow_column(pa.array(listed, type=pa.large_string()), name)
    except (UnicodeEncodeError, pa.ArrowInvalid, pa.ArrowTypeError):
        return _python_column(listed, name)  # finds and names what Arrow could not take


def text_columns(queries: Texts, passages: Texts) -> tuple[TextColumn, TextColumn]:
    """Both sides of n pairs. Raises InputError also where there are not as many of each."""
    columns = text_column(queries, "queries"), text_column(passages, "passages")
    counts = [len(column.codes) for column in columns]
    if counts[0] != counts[1]:
        raise InputError(
            f"{counts[0]} queries and {counts[1]} passages were given; pair i is (queries[i], passages[i]), "
            "so there must be as many of each"
        )
    return columns


def pair_errors(
    query_codes: npt.NDArray[np.int64],
    query_errors: PairErrors,
    passage_codes: npt.NDArray[np.int64],
    passage_errors: PairErrors,
) -> PairErrors:
    """Errors of distinct texts, and nulls, as errors of pairs; where both sides are bad, the query's."""
    found: PairErrors = {}
    for side, codes, errors, null in (
        ("query", query_codes, query_errors, Reason.NULL_QUERY),
        ("passage", passage_codes, passage_errors, Reason.NULL_PASSAGE),
    ):
        for row in np.flatnonzero(codes < 0).tolist():
            found.setdefault(row, (null, f"the {side} is null"))
        for row in np.flatnonzero(np.isin(codes, list(errors))).tolist() if errors else ():
            reason, detail = errors[int(codes[row])]
            found.setdefault(row, (reason, f"{side}: {detail}"))
    return dict(sorted(found.items()))


def _arrow_column(texts: Any, name: str) -> TextColumn:
    if str(texts.type) == "string_view":  # polars and others; older pyarrow has no such type
        texts = texts.cast(pa.large_string())
    if pa.types.is_null(texts.type):
        return TextColumn(np.full(len(texts), -1, np.int64), [], {})
    if _is_text(texts.type):
        texts = (
            texts.dictionary_encode()
        )  # before chunks are joined: the numbers are less to copy than the texts
    value_type = texts.type.value_type if pa.types.is_dictionary(texts.type) else texts.type
    if not _is_text(value_type):
        raise InputError(f"{name} is an Arrow array of {value_type}; expected string")
    array = texts.combine_chunks() if isinstance(texts, pa.ChunkedArray) else texts
    codes, dictionary = _used(array)
    values, errors = _decoded(dictionary)
    return TextColumn(codes, values, errors)


def _is_text(arrow_type: Any) -> bool:
    return bool(pa.types.is_string(arrow_type) or pa.types.is_large_string(arrow_type))


def _used(array: Any) -> tuple[npt.NDArray[np.int64], Any]:
    """A dictionary array's codes, −1 for null, and its dictionary, without nulls and without what no row uses.

    Arrow allows a null in the dictionary as well as among the indices; and a slice keeps the whole dictionary.
    """
    codes: npt.NDArray[np.int64] = array.indices.cast(pa.int64()).fill_null(-1).to_numpy(zero_copy_only=False)
    dictionary = array.dictionary
    if dictionary.null_count:
        is_null = np.append(
            dictionary.is_null().to_numpy(zero_copy_only=False), False
        )  # the last is for code −1
        codes = np.where(is_null[codes], -1, codes)
    used = np.zeros(len(dictionary) + 1, dtype=np.bool_)
    used[codes] = True
    if used[:-1].all():
        return codes, dictionary
    numbers = np.cumsum(used[:-1]) - 1
    return np.where(codes < 0, -1, np.append(numbers, -1)[codes]), dictionary.filter(pa.array(used[:-1]))


def _decoded(dictionary: Any) -> tuple[list[str | None], PairErrors]:
    """The dictionary's texts as str; where bytes are not UTF-8, None and an error."""
    try:
        return dictionary.to_pylist(), {}
    except UnicodeDecodeError:
        binary = pa.large_binary() if pa.types.is_large_string(dictionary.type) else pa.binary()
        raws = dictionary.view(binary).to_pylist()
    values: list[str | None] = []
    errors: PairErrors = {}
    for number, raw in enumerate(raws):
        try:
            values.append(raw.decode("utf-8"))
        except UnicodeDecodeError as error:
            values.append(None)
            detail = f"the text is not valid UTF-8 at byte {error.start}: {error.reason}"
            errors[number] = (Reason.INVALID_UTF8, detail)
    return values, errors


def _python_column(texts: Sequence[Any], name: str) -> TextColumn:
    """The slow way, for a list that holds something that is no text, or half a surrogate pair."""
    numbers: dict[str, int] = {}
    for position, text in enumerate(texts):
        if isinstance(text, str):
            numbers.setdefault(text, len(numbers))
        elif text is not None:
            found = f"{text!r:.60} of type {type(text).__name__}"
            raise InputError(f"{name}[{position}] is {found}; expected str or None")
    codes = np.fromiter((numbers.get(text, -1) for text in texts), dtype=np.int64, count=len(texts))
    values: list[str | None] = list(numbers)
    errors: PairErrors = {}
    for text, number in numbers.items():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            values[number] = None
            half = f"half a surrogate pair, U+{ord(text[error.start]):04X}"
            errors[number] = (Reason.INVALID_UTF8, f"the text holds {half}, at character {error.start}")
    return TextColumn(codes, values, errors)
