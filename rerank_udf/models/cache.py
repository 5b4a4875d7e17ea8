"""This node's cache: folders that are complete or absent, and digests that are not computed twice.

A folder is built beside its place under a lock, its completion marker is written last, and it is renamed into
place: a reader sees the whole folder or none.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from filelock import FileLock

from rerank_udf.errors import ModelError

CACHE_VARIABLE = "RERANK_UDF_CACHE"
MARKER = "_complete.json"
_CHUNK_BYTES = 4 << 20


def cache_root() -> Path:
    """The cache folder: $RERANK_UDF_CACHE, else ~/.cache/rerank_udf, else (no writable home) one under /tmp.

    In a $RERANK_UDF_CACHE of another owner (a cluster's, for all who submit to it) each user has a folder.

    Executors often run as a user without a home, so only a folder that was asked for is an error when it cannot
    be written: ModelError.
    """
    wanted = os.environ.get(CACHE_VARIABLE)
    if wanted:
        root = Path(wanted).expanduser().absolute()
        if not _writable(root):
            raise ModelError(
                f"{CACHE_VARIABLE} is {wanted}, which cannot be written; set it to a local folder"
            )
        return root if root.stat().st_uid == os.getuid() else _made(root / f"uid-{os.getuid()}")
    try:
        root = Path.home() / ".cache" / "rerank_udf"
    except RuntimeError:  # no home at all
        root = Path()
    if root == Path() or not _writable(root):
        root = _made(Path(tempfile.gettempdir()) / f"rerank_udf-{os.getuid()}")
    return root


def _made(folder: Path) -> Path:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)


def file_digest(path: Path) -> str:
    """The sha256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def remembered_digests(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """sha256 by file name, computed once per node while size and modification time stay as they are."""
    place = folder.absolute()
    record = cache_root() / "digests" / f"{hashlib.sha256(str(place).encode()).hexdigest()[:32]}.json"
    known = _remembered(record)
    current: dict[str, list[int | str]] = {}
    for name in names:
        stat = (place / name).stat()
        stamp: list[int | str] = [stat.st_size, stat.st_mtime_ns]
        old = known.get(name, [])
        current[name] = old if old[:2] == stamp else [*stamp, file_digest(place / name)]
    if any(known.get(name) != entry for name, entry in current.items()):
        write_atomically(record, json.dumps(known | current))
    return {name: str(entry[2]) for name, entry in current.items()}


def _remembered(record: Path) -> dict[str, list[int | str]]:
    """What stands there; nothing where there is no such file, or one that a full disk left half written."""
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def complete_folder(target: Path, build: Callable[[Path], dict[str, str]]) -> Path:
    """`target`, built by `build` where it is not complete yet; once per node, however many processes ask.

    `build(folder)` fills the folder beside it (what an earlier, dead attempt left is still there) and returns
    the digests for the marker: of files, by name. A folder that has lost one of them, to whatever tidies up /tmp,
    is built again.
    """
    if marked_digests(target) is None:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if marked_digests(target) is None:
                partial = target.with_name(f"{target.name}.partial")
                if target.exists() and not partial.exists():
                    target.rename(partial)
                shutil.rmtree(target, ignore_errors=True)
                partial.mkdir(exist_ok=True)
                digests = build(partial)
                (partial / MARKER).write_text(json.dumps({"digests": digests}, indent=1))
                partial.rename(target)
    return target


def marked_digests(target: Path) -> dict[str, str] | None:
    """The digests of a complete folder, or None where it is not (yet, or no longer) complete."""
    marker = target / MARKER
    if not marker.is_file():
        return None
    digests: dict[str, str] = json.loads(marker.read_text())["digests"]
    return digests if all((target / name).is_file() for name in digests) else None


def write_atomically(path: Path, text: str) -> None:
    """Write a small file so that readers see the old or the new one, never half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    Path(temporary).replace(path)
