"""Small file operations on whatever file system a path names, through Hadoop's own clients.

Local paths go through Python: Hadoop's local file system keeps checksum files beside each file and cannot replace
both at once. Needs a classic session (a JVM at hand), which every job has.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from pyspark.sql import SparkSession

# Where one PUT is atomic and a rename is a copy.
_OBJECT_STORES = {"s3", "s3a", "s3n", "gs", "oss", "cosn", "obs", "wasb", "wasbs"}


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
        partial = local.with_name(f".{local.name}.partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(local)
        return
    system, target = _resolve(spark, path)
    if system.getScheme() in _OBJECT_STORES:
        _create(system, target, text)
        return
    partial_path = _jvm(spark).org.apache.hadoop.fs.Path(f"{path}.partial")
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


def children(spark: SparkSession, path: str) -> dict[str, float]:
    """The names in a folder with the age of each in seconds; empty where there is no such folder."""
    system, target = _resolve(spark, path)
    if not system.exists(target):
        return {}
    now = time.time()
    return {s.getPath().getName(): now - s.getModificationTime() / 1000 for s in system.listStatus(target)}


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
