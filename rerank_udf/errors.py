"""What can go wrong, as sentences.

Every message says what was found, what was expected and what to do. `exit_code` is what the command line ends with.
"""

from __future__ import annotations


class RerankError(Exception):
    """Base of every error this package raises on purpose."""

    exit_code = 1


class ConfigError(RerankError):
    """A setting is unknown, misspelt, out of range or contradicts another."""

    exit_code = 2


class InputError(RerankError):
    """A table or file breaks the input contract as a whole (a single bad row becomes a reject instead)."""

    exit_code = 2


class ModelError(RerankError):
    """The model cannot be found, is not a one-label cross-encoder, or its files do not fit together."""

    exit_code = 2


class PairError(RerankError):
    """One pair cannot be scored.

    `index` is its position in the call, `reason` one of `tables.Reason`, `detail` a sentence.
    """

    def __init__(self, index: int, reason: str, detail: str) -> None:
        super().__init__(f"pair {index}: {reason}: {detail}")
        self.index = index
        self.reason = reason
        self.detail = detail


class TooManyRejectsError(RerankError):
    """More rows were rejected than `run.max_reject_fraction` allows; nothing is published."""

    exit_code = 3


class PublishedError(RerankError):
    """The table is published, but its report could not be written, or it could not be measured."""


class StoreError(RerankError):
    """The score store cannot be used: it cannot be read or written, or something in it is damaged."""


class StorePlaceError(StoreError):
    """Where the settings have the score store, something else is, or no table can be made."""

    exit_code = 2


class DeviceBusyError(RerankError):
    """Every device that a process may score on is another process's, and none became free while it waited."""
