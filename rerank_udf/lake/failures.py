"""Spark's long messages as one line."""

from __future__ import annotations


def innermost_cause(error: BaseException) -> str:
    """The innermost cause in a message with Java stacks, on one line of at most 300 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    causes = [line.removeprefix("Caused by: ") for line in lines if line.startswith("Caused by: ")]
    return (causes or lines or [type(error).__name__])[-1 if causes else 0][:300]
