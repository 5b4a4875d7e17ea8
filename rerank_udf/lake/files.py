"""Small file operations on whatever file system a path names, through Hadoop's own clients.

Local paths go through Python: Hadoop's local file system keeps checksum files beside each file and cannot replace
both at once. Needs a classic session (a JVM at hand), which every job has.
"""

from __future__ import annotations

import contextlib
import logging
import re
import shutil
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyspark.sql import SparkSession

from rerank_udf.errors import InputError
from rerank_udf.lake.failures import innermost_cause
from rerank_udf.machine import write_refusal

# Where one PUT is atomic, a rename is a copy, and a folder has no time of its own.
_OBJECT_STORES = {"s3", "s3a", "s3n", "gs", "oss", "cosn", "obs", "wasb", "wasbs", "dbfs"}
PROBE = ".rerank_udf-probe-"
# What brings the client of a scheme; {hadoop} is the version of Spark's own Hadoop.
_CONNECTORS = {
    "s3a": "org.apache.hadoop:hadoop-aws:{hadoop}",
    "abfs": "org.apache.hadoop:hadoop-azure:{hadoop}",
    "abfss": "org.apache.hadoop:hadoop-azure:{hadoop}",
    "wasb": "org.apache.hadoop:hadoop-azure:{hadoop}",
    "wasbs": "org.apache.hadoop:hadoop-azure:{hadoop}",
    "oss": "org.apache.hadoop:hadoop-aliyun:{hadoop}",
    "cosn": "org.apache.hadoop:hadoop-cos:{hadoop}",
    "obs": "org.apache.hadoop:hadoop-huaweicloud:{hadoop}",
    "gs": "com.google.cloud.bigdataoss:gcs-connector",
}
_NO_SCHEME = re.compile(r"No FileSystem for scheme:? \"?([\w.+-]+)")
_NO_CLASS = re.compile(  # of a client or of what it builds upon; not a class that the user's own settings name
    r"(?:ClassNotFoundException|NoClassDefFoundError): (?:Class )?"
    r"((?:org[./]apache[./]hadoop|software[./]amazon|com[./](?:amazonaws|azure|microsoft|google))[\w.$/]*)"
)
_log = logging.getLogger(__name__)


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

    Local: temporary file and rename. Object stores: one PUT. Elsewhere (HDFS): temporary file, atomic rename; where a
    file system knows no rename over another file, that one is deleted first, and a reader may find none for a moment.
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
    try:
        context = _jvm(spark).org.apache.hadoop.fs.FileContext.getFileContext(
            target.toUri(), _hadoop_conf(spark)
        )
    except Exception as error:
        if "UnsupportedFileSystemException" not in str(error):
            raise
        system.delete(target, False)
        if not system.rename(partial_path, target):
            raise OSError(f"{path}: {partial_path.getName()} cannot be renamed to it") from None
        return
    gateway: Any = spark.sparkContext._gateway
    options = gateway.new_array(_jvm(spark).org.apache.hadoop.fs.Options.Rename, 1)
    options[0] = _jvm(spark).org.apache.hadoop.fs.Options.Rename.OVERWRITE
    context.rename(partial_path, target, options)


def refusal(spark: SparkSession, path: str) -> str | None:
    """Why nothing can be written into the folder `path`, there or still to be made; None where it can.

    On this machine by the rights of the nearest folder that is there; elsewhere by an empty file, deleted again.
    """
    local = local_path(spark, path)
    if local is not None:
        return write_refusal(local)
    system, probe = _resolve(spark, f"{path.rstrip('/')}/{PROBE}{uuid.uuid4().hex[:8]}")
    try:
        _create(system, probe, "")
        system.delete(probe, False)
    except Exception as error:
        return innermost_cause(error)
    return None


def remove(spark: SparkSession, path: str) -> None:
    """Delete a file or folder with all in it; nothing happens where it does not exist, or others delete it too.

    Raises OSError, or what the file system says, where it is there and stays.
    """
    local = local_path(spark, path)
    if local is not None:
        _remove_local(local)
        return
    system, target = _resolve(spark, path)
    if not system.delete(target, True) and system.exists(target):
        raise OSError(f"{path} cannot be deleted")


def clear(spark: SparkSession, path: str) -> None:
    """`remove` for what is only in the way: where it cannot be deleted, a warning says so."""
    try:
        remove(spark, path)
    except Exception as error:
        _log.warning("%s is not needed any more and cannot be deleted: %s", path, error)


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


def first_bytes(spark: SparkSession, path: str, count: int) -> bytes:
    """The first bytes of a file, as many as it has; none where it cannot be read."""
    system, place = _resolve(spark, path)
    try:
        stream = system.open(place)
    except Exception:
        return b""
    try:
        return bytes(byte for byte in (stream.read() for _ in range(count)) if byte >= 0)
    finally:
        stream.close()


def is_file(spark: SparkSession, path: str) -> bool:
    """Whether there is something at `path` that is no folder."""
    system, place = _resolve(spark, path)
    return bool(system.exists(place)) and not system.getFileStatus(place).isDirectory()


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
    """Seconds since anything below a folder was last written; None where nothing lies there.

    On object stores, where a folder is as old as the question, only files count.
    """
    has_times = _resolve(spark, path)[0].getScheme() not in _OBJECT_STORES
    found = []
    for entry in entries(spark, path):
        below = youngest(spark, f"{path}/{entry.name}") if entry.is_folder else None
        if below is not None:
            found.append(below)
        elif has_times or not entry.is_folder:
            found.append(time.time() - entry.modified)
    return min(found, default=None)


def s3_options(spark: SparkSession, path: str) -> dict[str, str]:
    """Arguments of pyarrow's S3FileSystem that reach what Spark reaches at an s3a path; empty elsewhere.

    Those are stated in the session: keys, a region, an endpoint that is not AWS's own. Without any, pyarrow looks for
    credentials and region as AWS's own tools do.
    """
    scheme, _, rest = path.partition("://")
    if scheme not in ("s3", "s3a", "s3n"):
        return {}
    conf, bucket = _hadoop_conf(spark), rest.partition("/")[0]

    def stated(name: str) -> str:
        return str(conf.get(f"fs.s3a.bucket.{bucket}.{name}") or conf.get(f"fs.s3a.{name}") or "")

    endpoint = stated("endpoint")
    found = {
        "access_key": stated("access.key"),
        "secret_key": stated("secret.key"),
        "session_token": stated("session.token"),
        "region": stated("endpoint.region"),
        "endpoint_override": "" if endpoint.endswith("amazonaws.com") else endpoint.rpartition("//")[2],
    }
    if found["endpoint_override"] and (
        endpoint.startswith("http:") or stated("connection.ssl.enabled") == "false"
    ):
        found["scheme"] = "http"
    return {name: value for name, value in found.items() if value}


def _remove_local(path: Path) -> None:
    while path.is_dir() and not path.is_symlink():
        with contextlib.suppress(FileNotFoundError):  # somebody else deletes there as well
            shutil.rmtree(path)
    path.unlink(missing_ok=True)


def _create(system: Any, path: Any, text: str) -> None:
    stream = system.create(path, True)
    try:
        stream.write(bytearray(text.encode("utf-8")))
    finally:
        stream.close()


def _resolve(spark: SparkSession, path: str) -> tuple[Any, Any]:
    """The file system of a path, and the path for it. Raises InputError where Spark has no client for its scheme."""
    hadoop_path = _jvm(spark).org.apache.hadoop.fs.Path(path)
    try:
        return hadoop_path.getFileSystem(_hadoop_conf(spark)), hadoop_path
    except Exception as error:
        if (sentence := no_client(spark, path, error)) is None:
            raise
        raise InputError(f"{path}: {sentence}") from None


def no_client(spark: SparkSession, path: str, error: Exception) -> str | None:
    """What to add where `error` says that this Spark has no client for the path's scheme; None for anything else."""
    unknown, absent = _NO_SCHEME.search(str(error)), _NO_CLASS.search(str(error))
    scheme = unknown[1] if unknown else path.partition(":")[0]
    package = _CONNECTORS.get(scheme)
    if package is not None and (unknown or absent):
        hadoop = _jvm(spark).org.apache.hadoop.util.VersionInfo.getVersion()
        lacks = "" if absent is None else f" (it lacks {absent[1].replace('/', '.')})"
        return (
            f"this Spark cannot reach {scheme}://{lacks}; add {package.format(hadoop=hadoop)} (spark.jars.packages; "
            "conf/LAKE.md says more)"
        )
    if unknown is None:
        return None
    hint = (
        "write s3a:// in its place"
        if scheme in ("s3", "s3n")
        else "is it spelt right? (s3a, gs, abfss, hdfs, file)"
    )
    return f"this Spark knows no scheme {scheme}://; {hint}"


def _jvm(spark: SparkSession) -> Any:
    return spark.sparkContext._jvm


def _hadoop_conf(spark: SparkSession) -> Any:
    session: Any = spark
    return session._jsparkSession.sessionState().newHadoopConf()
