"""Text files line by line: gzip or not, strict UTF-8, and errors that name the line."""

from __future__ import annotations

import gzip
import io
import json
import math
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

from rerank_udf.errors import InputError

_GZIP_MAGIC = b"\x1f\x8b"
_BOM = b"\xef\xbb\xbf"
_SHOWN_CHARACTERS = 80
# JSON may hold these as they are, but readers that split lines as Python's str.splitlines does break there.
_LINE_SEPARATORS = {0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}


class Line:
    """One line without its end (LF or CR LF): `number` from 1, `data` as bytes, `text` as UTF-8."""

    __slots__ = ("data", "number", "path")

    def __init__(self, path: Path, number: int, data: bytes) -> None:
        self.path = path
        self.number = number
        self.data = data

    @property
    def text(self) -> str:
        """Raises InputError where the bytes are not UTF-8."""
        return self.decode(self.data)

    def decode(self, data: bytes) -> str:
        """A part of the line as text; raises InputError where it is not UTF-8."""
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as problem:
            raise self.bad(
                f"byte 0x{data[problem.start]:02x}, which is not UTF-8", "text in UTF-8"
            ) from problem

    def fields(self, names: str) -> list[str]:
        """The tab-separated fields; as many as `names` has, or InputError."""
        found = self.text.split("\t")
        return self._counted(found, names, "tab-separated")

    def words(self, names: str) -> list[str]:
        """The fields between white space (ASCII, as C programs read it); as many as `names` has."""
        found = [self.decode(word) for word in self.data.split()]
        return self._counted(found, names, "white-space-separated")

    def _counted(self, found: list[str], names: str, how: str) -> list[str]:
        expected = names.split()
        if len(found) != len(expected):
            wanted = f"{len(expected)} {how} fields ({', '.join(expected)})"
            raise self.bad(f"{len(found)} fields, {shown(self.text)}", wanted)
        return found

    def record(self) -> dict[str, Any]:
        """The line as a JSON object."""
        try:
            found = json.loads(self.text)
        except (ValueError, RecursionError) as problem:
            raise self.bad(f"{shown(self.text)} ({problem})", "a JSON object on one line") from problem
        if not isinstance(found, dict):
            raise self.bad(shown(self.text), "a JSON object on one line")
        return found

    def whole_number(self, word: str, what: str) -> int:
        """A whole number of at most 18 digits, which 64 bits hold."""
        if not re.fullmatch(r"[+-]?[0-9]{1,18}", word):
            raise self.bad(f"{what} {shown(word)}", "a whole number")
        return int(word)

    def number_of(self, value: Any, what: str) -> float:
        """A finite number, written out or already one."""
        try:
            number = math.nan if isinstance(value, bool) or "_" in str(value) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise self.bad(f"{what} {shown(value)}", "a finite number")
        return number

    def string(self, value: Any, what: str) -> str:
        """A text that UTF-8 can hold: JSON can spell half a surrogate pair, and no table can keep one."""
        if not isinstance(value, str):
            raise self.bad(f"{what} {shown(value)}", "a string")
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as problem:
            raise self.bad(f"half of a surrogate pair in {what}", "text that UTF-8 can hold") from problem
        return value

    def identifier(self, value: Any, what: str) -> str:
        """An id: a non-empty string, or a whole number as one."""
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if value == "":
            raise self.bad(f"an empty {what}", "an id")
        return self.string(value, what)

    def bad(self, found: str, expected: str) -> InputError:
        """The error to raise for this line."""
        return InputError(f"{self.path}, line {self.number}: found {found}; {expected} is expected.")


def shown(value: Any) -> str:
    """A value as an error shows it: quoted, and cut where it is long."""
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"


def read_lines(path: Path) -> Iterator[Line]:
    """The lines of a file, plain or gzip (told by its first bytes). An empty line is a line.

    A byte order mark at the very start is dropped. Raises InputError where there is no file, or gzip is broken.
    """
    if not path.is_file():
        raise InputError(f"There is no file {path}; give the path of the file to convert.")
    number = 0
    try:
        with _open_binary(path) as stream:
            for data in stream:
                number += 1
                start = len(_BOM) if number == 1 and data.startswith(_BOM) else 0
                yield Line(path, number, data[start:].removesuffix(b"\n").removesuffix(b"\r"))
    except (EOFError, gzip.BadGzipFile, zlib.error) as problem:
        place = Line(path, number + 1, b"")
        raise place.bad(f"broken gzip ({problem})", "a whole gzip file: copy it again") from problem


@contextmanager
def _open_binary(path: Path) -> Iterator[BinaryIO]:
    with path.open("rb") as raw:
        packed = raw.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
        raw.seek(0)
        if packed:
            with gzip.GzipFile(fileobj=raw) as unpacked:
                yield cast(BinaryIO, io.BufferedReader(unpacked))
        else:
            yield raw


@contextmanager
def text_writer(path: Path, *, overwrite: bool) -> Iterator[TextIO]:
    """A UTF-8 file with LF line ends, gzip where the name ends in .gz; it appears whole or not at all."""
    check_free(path, overwrite=overwrite)
    make_folder(path.parent)
    unfinished = unfinished_path(path)
    try:
        with unfinished.open("wb") as raw:
            if path.suffix == ".gz":
                # No name and no time inside, so that equal tables give equal files.
                with gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed, _as_text(packed) as stream:
                    yield stream
            else:
                with _as_text(raw) as stream:
                    yield stream
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """Raises InputError where a file is in the way."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"{path} is a file, or lies below one; a folder is written here.") from None


def _as_text(stream: Any) -> TextIO:
    return io.TextIOWrapper(stream, encoding="utf-8", newline="")


def unfinished_path(path: Path) -> Path:
    """Where a file is written before it is whole; readers of Parquet folders pass over names with a dot."""
    return path.with_name(f".{path.name}.unfinished")


def check_free(path: Path, *, overwrite: bool) -> None:
    """Raises InputError where the target is there already."""
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists already; give another target, or allow overwriting.")
    if path.is_dir():
        raise InputError(f"{path} is a folder; a file is written here. Give the path of a file.")


def json_line(record: dict[str, Any]) -> str:
    """One JSON object on one line, letters as they are."""
    return json.dumps(record, ensure_ascii=False, allow_nan=False).translate(_LINE_SEPARATORS) + "\n"
