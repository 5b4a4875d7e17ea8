"""Small file operations on whatever file system a path names, through Hadoop's own clients.

Local paths go through Python: Hadoop's local file system keeps checksum files beside each file and cannot replace
both at once. Needs a classic session (a JVM at hand), which every job has.
"""

from __future__ import annotations

import contextlib
import shutil
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyspark.sql import SparkSession

# Where one PUT is atomic and a rename is a copy.
_OBJECT_STORES = {"s3", "s3a", "s3n", "gs", "oss", "cosn", "obs", "wasb", "wasbs"}


@dataclass(frozen=True)
class Entry:
    """A file or folder in a folder: `bytes` of a file, seconds since the epoch of its last change."""

    name: str
    bytes: int
    modified: float
    is_folder: bool


def qualified(spark: SparkSession, path: str) -> str:
    """The path with its scheme and authority, as Spark would resolve it."""
    system, hadoop_path = _resolve(spark, path)
    return str(system.makeQualified(hadoop_path).toString())


def local_path(spark: SparkSession, path: str) -> Path | None:
    """The path on this machine's own disk, or None where it names another file system."""
    url = qualified(spark, path)
    return Path(url.removeprefix("file:").replace("///", "/", 1)) if url.startswith("file:") else None


def write_text(spark: SparkSession, path: str, text: str) -> None:
    """Write a whole small file; a reader sees the old content or the new, never a part.

    Local: temporary file and rename. Object stores: one PUT. Elsewhere (HDFS): temporary file, atomic rename.
    """
    local = local_path(spark, path)
    if local is not None:
        local.parent.mkdir(parents=True, exist_ok=True)
        partial = local.with_name(f".{local.name}.{uuid.uuid4().hex[:8]}.partial")  # two may write it at once
        try:
            partial.write_text(text, encoding="utf-8")
            partial.replace(local)
        except OSError:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise
        return
    system, target = _resolve(spark, path)
    if system.getScheme() in _OBJECT_STORES:
        _create(system, target, text)
        return
    partial_path = _jvm(spark).org.apache.hadoop.fs.Path(f"{path}.{uuid.uuid4().hex[:8]}.partial")
    _create(system, partial_path, text)
    context = _jvm(spark).org.apache.hadoop.fs.FileContext.getFileContext(target.toUri(), _hadoop_conf(spark))
    gateway: Any = spark.sparkContext._gateway
    options = gateway.new_array(_jvm(spark).org.apache.hadoop.fs.Options.Rename, 1)
    options[0] = _jvm(spark).org.apache.hadoop.fs.Options.Rename.OVERWRITE
    context.rename(partial_path, target, options)


def remove(spark: SparkSession, path: str) -> None:
    """Delete a file or folder with all in it; nothing happens where it does not exist."""
    local = local_path(spark, path)
    if local is not None:
        shutil.rmtree(local, ignore_errors=True) if local.is_dir() else local.unlink(missing_ok=True)
        return
    system, target = _resolve(spark, path)
    system.delete(target, True)


def read_text(spark: SparkSession, path: str) -> str | None:
    """The text of a small file; None where there is none."""
    local = local_path(spark, path)
    if local is not None:
        try:
            return local.read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            return None
    system, target = _resolve(spark, path)
    if not system.exists(target):
        return None
    stream = system.open(target)
    try:
        return bytes(_jvm(spark).org.apache.commons.io.IOUtils.toByteArray(stream)).decode("utf-8")
    finally:
        stream.close()


def entries(spark: SparkSession, path: str) -> list[Entry]:
    """What lies in a folder, by name; empty where there is no such folder."""
    system, target = _resolve(spark, path)
    if not system.exists(target):
        return []
    found = [
        Entry(s.getPath().getName(), s.getLen(), s.getModificationTime() / 1000, s.isDirectory())
        for s in system.listStatus(target)
    ]
    return sorted(found, key=lambda entry: entry.name)


def children(spark: SparkSession, path: str) -> dict[str, float]:
    """The names in a folder with the age of each in seconds; empty where there is no such folder."""
    now = time.time()
    return {entry.name: now - entry.modified for entry in entries(spark, path)}


def youngest(spark: SparkSession, path: str) -> float | None:
    """Seconds since anything below a folder was last written; None where nothing lies there."""
    found = []
    for entry in entries(spark, path):
        below = youngest(spark, f"{path}/{entry.name}") if entry.is_folder else None
        found.append(time.time() - entry.modified if below is None else below)
    return min(found, default=None)


def _create(system: Any, path: Any, text: str) -> None:
    stream = system.create(path, True)
    try:
        stream.write(bytearray(text.encode("utf-8")))
    finally:
        stream.close()


def _resolve(spark: SparkSession, path: str) -> tuple[Any, Any]:
    hadoop_path = _jvm(spark).org.apache.hadoop.fs.Path(path)
    return hadoop_path.getFileSystem(_hadoop_conf(spark)), hadoop_path


def _jvm(spark: SparkSession) -> Any:
    return spark.sparkContext._jvm


def _hadoop_conf(spark: SparkSession) -> Any:
    session: Any = spark
    return session._jsparkSession.sessionState().newHadoopConf()
