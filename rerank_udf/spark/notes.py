"""Notes that a task leaves for its next attempt: the pairs it had in hand when its process died.

A pair that kills its process would fail the job after as many attempts as Spark allows, on every rerun. So attempts
narrow it down, each by what the one before left behind:

    0   scores as always, and notes nothing
    1   notes the keys of each window before it is scored, and forgets them when it is done
    2   scores what was in hand then pair by pair, noting each, with its texts
    3+  gives up the pair that was in hand, alone, and goes on; also every pair with a text that three such pairs had

A note's name says which task of which job wrote it. When one task's deaths end a job, Spark kills the workers of the
others, with notes in hand that mean nothing: who reads them says whose are believed.

Notes are files in the run's folder where Python on the executors can write there (shared disks, S3, GCS, HDFS with
libhdfs), else on the node's own disk, where they help an attempt on the same node.
"""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rerank_udf.identity import KEY_BYTES

_LOCAL = "file:"
_ALONE = "alone-"
Author = tuple[int, int]  # job, task


@dataclass(frozen=True)
class Notes:
    """Of the tasks of a wave. `author` writes; notes of others are read where they are `believed`."""

    folder: str
    author: Author = (0, 0)
    believed: Callable[[Author], bool] = lambda author: True
    s3: Mapping[str, str] = field(default_factory=dict, repr=False)
    held: dict[str, Any] = field(default_factory=dict)

    def write(self, keys: Iterable[bytes], texts: tuple[bytes, ...] = ()) -> str:
        """Note keys as in hand; the name to `forget` them by. `texts`: the keys of the texts of a pair alone."""
        name = (_ALONE if texts else "") + "{}-{}-".format(*self.author) + uuid.uuid4().hex
        system, folder = self._place()
        system.create_dir(folder, recursive=True)
        with system.open_output_stream(f"{folder}/{name}") as stream:
            stream.write(b"".join([*keys, *texts]))
        return name

    def forget(self, name: str) -> None:
        """They have been scored."""
        system, folder = self._place()
        system.delete_file(f"{folder}/{name}")

    @contextmanager
    def noted(self, keys: Iterable[bytes], texts: tuple[bytes, ...] = ()) -> Iterator[None]:
        """Keys are in hand while the block runs; an exception leaves the note.

        Where the folder cannot be written, a full disk say, there is none: what writes scores meets the same trouble,
        and tells it better.
        """
        try:
            name = self.write(keys, texts)
        except OSError:
            yield
            return
        yield
        with suppress(OSError):
            self.forget(name)

    def left(self) -> list[list[bytes]]:
        """What attempts before this one had in hand when they died: a list of keys for each note."""
        return [keys[:1] if name.startswith(_ALONE) else keys for name, keys in self._read() if keys]

    def alone(self) -> dict[bytes, tuple[bytes, ...]]:
        """The pairs that were in hand alone, with the keys of their texts."""
        return {keys[0]: tuple(keys[1:]) for name, keys in self._read() if keys and name.startswith(_ALONE)}

    def _read(self) -> Iterator[tuple[str, list[bytes]]]:
        from pyarrow import fs

        system, folder = self._place()
        for info in system.get_file_info(fs.FileSelector(folder, allow_not_found=True)):
            if info.type != fs.FileType.File or not self.believed(_author(info.base_name)):
                continue
            # one that is gone: another task of the wave has scored its pairs meanwhile
            with suppress(FileNotFoundError), system.open_input_stream(info.path) as stream:
                yield info.base_name, _keys(stream.read())

    def _place(self) -> tuple[Any, str]:
        if "system" not in self.held:
            self.held["system"], self.held["folder"] = _file_system(self.folder, self.s3)
        return self.held["system"], str(self.held["folder"])


def _author(name: str) -> Author:
    job, task, _ = name.removeprefix(_ALONE).rsplit("-", 2)
    return int(job), int(task)


def _keys(content: bytes) -> list[bytes]:
    """The keys of a note; a note that was cut short by the death of its writer says nothing."""
    whole = len(content) - len(content) % KEY_BYTES
    return [content[at : at + KEY_BYTES] for at in range(0, whole, KEY_BYTES)]


def _file_system(folder: str, s3: Mapping[str, str]) -> tuple[Any, str]:
    """pyarrow's file system for a folder, and the folder in it; the node's own disk where it has none."""
    from pyarrow import fs

    local = fs.LocalFileSystem()
    try:
        if folder.startswith((_LOCAL, "/")):
            system, path = local, folder.removeprefix(_LOCAL).replace("///", "/", 1)
        elif s3:
            system, path = fs.S3FileSystem(**s3), folder.partition("://")[2]
        else:
            system, path = fs.FileSystem.from_uri(folder.replace("s3a://", "s3://", 1))
        system.create_dir(path, recursive=True)
    except (OSError, ValueError, NotImplementedError):
        name = folder.rstrip("/").replace("://", "/").replace("/", "_")
        return local, str(Path(tempfile.gettempdir()) / f"rerank_udf_notes-{os.getuid()}" / name)
    return system, path
