"""The field's file formats ↔ Parquet folders (queries, passages, candidates, qrels).

One module a format, one function a direction; `convert` finds them by name. Files are read and written a piece
at a time; what has to be looked up or sorted waits in a temporary SQLite file.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rerank_udf.errors import ConfigError, InputError
from rerank_udf.formats import beir, flagembedding, msmarco, trec

PARQUET = "parquet"


@dataclass(frozen=True)
class Format:
    """How a format is read into and written from a Parquet folder, and the options that each takes."""

    read: Callable[..., dict[str, int]]
    write: Callable[..., dict[str, int]]
    read_options: frozenset[str] = frozenset()
    write_options: frozenset[str] = frozenset()


_SPLIT = frozenset({"split"})
_SPACES = frozenset({"replace_whitespace"})
FORMATS: Mapping[str, Format] = {
    "trec-run": Format(trec.read_trec_run, trec.write_trec_run, write_options=frozenset({"tag"})),
    "trec-qrels": Format(trec.read_trec_qrels, trec.write_trec_qrels),
    "beir": Format(beir.read_beir, beir.write_beir, _SPLIT, _SPLIT),
    "msmarco-queries": Format(
        msmarco.read_msmarco_queries, msmarco.write_msmarco_queries, write_options=_SPACES
    ),
    "msmarco-collection": Format(
        msmarco.read_msmarco_collection, msmarco.write_msmarco_collection, write_options=_SPACES
    ),
    "msmarco-top1000": Format(
        msmarco.read_msmarco_top1000, msmarco.write_msmarco_top1000, write_options=_SPACES
    ),
    "msmarco-qrels": Format(msmarco.read_msmarco_qrels, msmarco.write_msmarco_qrels),
    "msmarco-run": Format(msmarco.read_msmarco_run, msmarco.write_msmarco_run),
    "flagembedding": Format(
        flagembedding.read_flagembedding,
        flagembedding.write_flagembedding,
        write_options=frozenset({"scores"}),
    ),
}


def convert(
    source_format: str,
    source: str | Path,
    target_format: str,
    target: str | Path,
    *,
    overwrite: bool = False,
    **options: Any,
) -> dict[str, int]:
    """Convert `source` into `target`; returns rows by table or file, for the one who asked to see.

    Formats: "parquet" (a folder of queries.parquet, passages.parquet, candidates.parquet, qrels.parquet) and
    the names in `FORMATS`. "beir" is a folder, every other a file, gzip or not (written as gzip where the name
    ends in .gz). Several files make one Parquet folder by several calls: each call writes its own tables, and
    replaces one that is there only with `overwrite`. For a run or qrels `source` may be the table's own path,
    such as a reranked table. Nothing appears at `target` until it is whole.

    Options, for the formats that have them: `split` (beir; "test"), `tag` (to trec-run; "rerank_udf"),
    `replace_whitespace` (to msmarco texts; False), `scores` (to flagembedding; False).

    Raises ConfigError for an unknown format and for an option that the two formats do not have, InputError for
    what cannot be read (file and line are named) or written.
    """
    for name in (source_format, target_format):
        if name not in (PARQUET, *FORMATS):
            raise ConfigError(
                f"There is no format {name!r}; the formats are {', '.join((PARQUET, *FORMATS))}."
            )
    reading, writing = FORMATS.get(source_format), FORMATS.get(target_format)
    _check_options(options, reading, writing)
    to_write = {k: v for k, v in options.items() if writing and k in writing.write_options}
    to_read = {k: v for k, v in options.items() if reading and k in reading.read_options}
    if reading and writing:
        with tempfile.TemporaryDirectory(prefix="rerank-udf-convert-") as between:
            reading.read(Path(source), Path(between), **to_read)
            try:
                return writing.write(Path(between), Path(target), overwrite=overwrite, **to_write)
            except InputError as problem:
                said = str(problem).replace(between, f"{source}, read as {source_format},")
                raise InputError(said) from problem
    if reading:
        return reading.read(Path(source), Path(target), overwrite=overwrite, **to_read)
    if writing:
        return writing.write(Path(source), Path(target), overwrite=overwrite, **to_write)
    raise ConfigError("Both formats are parquet; there is nothing to convert.")


def _check_options(options: Mapping[str, Any], reading: Format | None, writing: Format | None) -> None:
    known = (reading.read_options if reading else frozenset()) | (
        writing.write_options if writing else frozenset()
    )
    unknown = sorted(options.keys() - known)
    if unknown:
        these = ", ".join(sorted(known)) or "none"
        raise ConfigError(f"These formats have no option {unknown[0]!r}; the options they have: {these}.")
