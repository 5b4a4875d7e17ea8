"""A disk of a few megabytes that can be filled and made read-only: a tmpfs, which takes the right to mount one."""

from __future__ import annotations

import errno
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_MEGABYTES = 64
_FILLER = ".filler"


class SmallDisk:
    """A mounted tmpfs."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def fill(self) -> None:
        """Leave no room, whoever asks for it; even root, unlike a quota."""
        chunk = b"\0" * 65536
        with (self.place / _FILLER).open("ab", buffering=0) as filler:
            while len(chunk) > 1:
                try:
                    if filler.write(chunk) < len(chunk):
                        chunk = chunk[: len(chunk) // 2]
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    chunk = chunk[: len(chunk) // 2]

    def make_room(self) -> None:
        """Undo `fill`."""
        (self.place / _FILLER).unlink()

    def read_only(self) -> None:
        """Refuse every write, root's too."""
        _mount("-o", "remount,ro", self.place)

    def writable(self) -> None:
        """Undo `read_only`."""
        _mount("-o", "remount,rw", self.place)


@contextmanager
def small_disk(place: Path) -> Iterator[SmallDisk]:
    """An empty disk at a folder; skips the test where this user may not mount one."""
    place.mkdir(parents=True, exist_ok=True)
    try:
        _mount("-t", "tmpfs", "-o", f"size={_MEGABYTES}m", "tmpfs", place)
    except (subprocess.CalledProcessError, FileNotFoundError) as error:
        told = getattr(error, "stderr", "") or error
        pytest.skip(f"a small disk is a mounted tmpfs, which takes root: {told}")
    try:
        yield SmallDisk(place)
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def _mount(*arguments: str | Path) -> None:
    command = ["mount", *map(str, arguments)]
    subprocess.run(command, check=True, capture_output=True, text=True)
