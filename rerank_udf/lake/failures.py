"""Spark's long messages as one line."""

from __future__ import annotations

import re
from urllib.parse import unquote

# What a disk, a file system or its rights say; wherever in a stack it stands, it is the cause.
_PLACE = re.compile(
    r"[^\n]*(?:No space left on device|Disk quota exceeded|Read-only file system|Permission denied|"
    r"Mkdirs failed to create|DELTA_CANNOT_CREATE_LOG_PATH)[^\n]*"
)
_CAUSED = "Caused by: "
_CLASS = re.compile(r"^(?:[\w$]+\.)+[\w$]+: ")
_PY4J = re.compile(r"^An error occurred while calling [^\n]*\n:\s*")
# The line that ends a worker's traceback.
_RAISED = re.compile(
    r"^Traceback \(most recent call last\):\n(?:[ \t][^\n]*\n|\n)+(?:[\w]+\.)*([^\n]+)", re.MULTILINE
)
_READING = re.compile(r"rror while reading file (\S+?)\.?\s")
_LONGEST = 300


def innermost_cause(error: BaseException) -> str:
    """The cause in a message with Java stacks, on one line of at most 300 characters.

    What a disk or its rights say, where one of them is to blame; else what a Python worker raised, or the innermost
    cause.
    """
    found = place_failure(error)
    if found is not None:
        return found
    raised = _RAISED.findall(str(error))
    if raised:
        return str(raised[-1])[:_LONGEST]
    lines = [line.strip() for line in _PY4J.sub("", str(error)).splitlines() if line.strip()]
    causes = [line.removeprefix(_CAUSED) for line in lines if line.startswith(_CAUSED)]
    return (causes or lines or [type(error).__name__])[-1 if causes else 0][:_LONGEST]


def unreadable_file(error: BaseException) -> str | None:
    """The file that a message with Java stacks names as one that could not be read; None where it names none."""
    found = _READING.search(str(error))
    return shown_path(found[1]) if found else None


def shown_path(url: str) -> str:
    """A file's URL as a user would write the path."""
    path = unquote(url)
    return path.removeprefix("file:").replace("///", "/", 1) if path.startswith("file:") else path


def place_failure(error: BaseException) -> str | None:
    """What a disk or its rights say in a message with Java stacks; None where neither is to blame."""
    found = _PLACE.findall(str(error))
    return (
        _CLASS.sub("", found[-1].strip().removeprefix(_CAUSED).removeprefix(": "))[:_LONGEST]
        if found
        else None
    )
