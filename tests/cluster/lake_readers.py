"""What stands in a published table right now, read without Spark and without any code of ours.

Parquet as read_reranked's rules say: pointer, then version. Delta by its log, Iceberg by its metadata.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

Snapshot = tuple[Path, ...]  # the data files of a table at one moment


def parquet_snapshot(root: Path) -> Snapshot:
    """The files of the version that the pointer names; none where nothing is published."""
    pointer = root / "_current/latest.json"
    if not pointer.exists():
        return ()
    version = root / "_versions" / json.loads(pointer.read_text())["version"]
    return tuple(sorted(version.glob("part-*.parquet")))


def delta_snapshot(root: Path) -> Snapshot:
    """What the log has added and not removed. For young tables: before the first checkpoint."""
    files: set[str] = set()
    for entry in sorted((root / "_delta_log").glob("*.json")):
        for line in entry.read_text().splitlines():
            action = json.loads(line)
            if "add" in action:
                files.add(action["add"]["path"])
                assert not action["add"].get("deletionVector"), "a reader of deletion vectors is needed"
            if "remove" in action:
                files.discard(action["remove"]["path"])
    return tuple(sorted(root / unquote(name) for name in files))


def iceberg_snapshot(root: Path, local: Callable[[str], Path] | None = None) -> Snapshot:
    """The data files of the current snapshot: metadata → list of manifests → manifests.

    `local`: the file of a URL in the metadata. The newest has the highest number: v3.… in a catalog of folders,
    00003-….… in others, which alone know what is current: there, read nothing that is being written. A catalog of
    folders writes each first under a bare UUID and then renames it: that one is not a version.
    """
    local = local or _local
    named = {
        file: _METADATA_NAME.fullmatch(file.name) for file in (root / "metadata").glob("*.metadata.json")
    }
    versions = sorted((file for file, name in named.items() if name), key=_metadata_number)
    if not versions:
        return ()
    metadata = json.loads(versions[-1].read_text())
    current = [one for one in metadata["snapshots"] if one["snapshot-id"] == metadata["current-snapshot-id"]]
    files = []
    for manifest in avro_records(local(current[0]["manifest-list"])) if current else ():
        assert manifest["content"] == 0, "a reader of delete files is needed"
        for entry in avro_records(local(manifest["manifest_path"])):
            if entry["status"] != 2:  # 2: deleted in this snapshot
                files.append(local(entry["data_file"]["file_path"]))
    return tuple(sorted(files))


_METADATA_NAME = re.compile(r"(v\d+|\d{5}-[0-9a-f-]+)(\.gz)?\.metadata\.json")


def _metadata_number(file: Path) -> int:
    return int(re.split("[.-]", file.name.removeprefix("v"))[0])


SNAPSHOTS: dict[str, Callable[[Path], Snapshot]] = {
    "parquet": parquet_snapshot,
    "delta": delta_snapshot,
    "iceberg": iceberg_snapshot,
}


def read_table(files: Snapshot) -> pa.Table | None:
    """The rows of these files, in an order that depends on nothing but them; None for no files."""
    if not files:
        return None
    table = pa.concat_tables([pq.ParquetFile(file).read() for file in files])
    table = table.select(sorted(table.column_names))
    return table.sort_by([(name, "ascending") for name in ("query_id", "passage_id", "rank")])


def digest(table: pa.Table) -> str:
    """The same for the same columns with the same rows, to the last bit of a float."""
    said = hashlib.sha256(str(table.schema.names).encode())
    for column in table.columns:
        said.update(repr(column.to_pylist()).encode())
    return said.hexdigest()


class Witness(threading.Thread):
    """Reads a table over and over while others write it.

    `seen`: the digests of what it read, in order of first sight, "" for no table; `trouble`: what it could not read.
    """

    def __init__(self, snapshot: Callable[[], Snapshot]) -> None:
        super().__init__(daemon=True)
        self._snapshot = snapshot
        self._stop_asked = threading.Event()
        self.seen: dict[str, int] = {}
        self.trouble: list[str] = []

    def run(self) -> None:
        before: Snapshot | None = None
        rounds = 0
        while not self._stop_asked.wait(0.05):
            rounds += 1
            try:
                files = self._snapshot()
                if files != before or rounds % 20 == 0:  # the same files may have been damaged meanwhile
                    table = read_table(files)
                    name = "" if table is None else digest(table)
                    self.seen[name] = self.seen.get(name, 0) + 1
                before = files
            except Exception as error:
                self.trouble.append(f"{type(error).__name__}: {error}")

    def __enter__(self) -> Witness:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_asked.set()
        self.join()


# --- Avro, as far as Iceberg's manifests need it ---


def avro_records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of an Avro container file (Avro 1.11 specification, "Object Container Files")."""
    file = BytesIO(path.read_bytes())
    assert file.read(4) == b"Obj\x01"
    header = _decoded(file, {"type": "map", "values": "bytes"})
    schema, codec = json.loads(header["avro.schema"]), header.get("avro.codec", b"null")
    file.read(16)  # the sync marker
    while file.tell() < len(file.getbuffer()):
        count, size = _long(file), _long(file)
        raw = file.read(size)
        assert codec in (b"null", b"deflate"), codec
        block = BytesIO(zlib.decompress(raw, wbits=-15) if codec == b"deflate" else raw)
        yield from (_decoded(block, schema) for _ in range(count))
        file.read(16)


def _long(file: BytesIO) -> int:
    value, shift = 0, 0
    while True:
        byte = file.read(1)[0]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return (value >> 1) ^ -(value & 1)
        shift += 7


def _decoded(file: BytesIO, schema: Any) -> Any:
    if isinstance(schema, list):
        return _decoded(file, schema[_long(file)])
    kind = schema["type"] if isinstance(schema, dict) else schema
    if kind == "record":
        return {field["name"]: _decoded(file, field["type"]) for field in schema["fields"]}
    if kind == "array":
        return [_decoded(file, schema["items"]) for _ in _blocks(file)]
    if kind == "map":
        pairs = [(_decoded(file, "string"), _decoded(file, schema["values"])) for _ in _blocks(file)]
        return dict(pairs)
    if kind == "fixed":
        return file.read(schema["size"])
    return _PRIMITIVES[kind](file)


def _blocks(file: BytesIO) -> Iterator[None]:
    """One step for each item of an array or map."""
    while count := _long(file):
        if count < 0:
            count = -count
            _long(file)  # the block's size in bytes
        for _ in range(count):
            yield None


_PRIMITIVES: dict[str, Callable[[BytesIO], Any]] = {
    "null": lambda file: None,
    "boolean": lambda file: file.read(1) == b"\x01",
    "int": _long,
    "long": _long,
    "float": lambda file: struct.unpack("<f", file.read(4))[0],
    "double": lambda file: struct.unpack("<d", file.read(8))[0],
    "bytes": lambda file: file.read(_long(file)),
    "string": lambda file: file.read(_long(file)).decode(),
}


def _local(url: str) -> Path:
    return Path(url.removeprefix("file://").removeprefix("file:"))
