"""What goes wrong on purpose: faults.json beside the hash scorer's config.json.

    {"journal": "/shared/journal",       each process appends the 16-byte keys of the pairs that it has scored to a
                                         file of its own: every scoring there ever was, work that was lost included
     "microseconds_per_pair": 500,       so that a run lasts
     "kills_worker": "text",             a passage with this text ends the process that scores it
     "not_finite": "text",               a pair with it is the reject that a logit without a value is
     "out_of_memory": "text"}            and the one that does not fit into a device's memory

All optional; no file, no faults. The file is no part of `model_key` and is read when the scorer is loaded: one folder,
healthy or not, has one set of facts in a store.
"""

from __future__ import annotations

import os
import signal
import time
import uuid
from pathlib import Path

from pydantic import Field

from rerank_udf.config import Settings, parse_section
from rerank_udf.errors import ConfigError, ModelError
from rerank_udf.models.checkpoint import read_json
from rerank_udf.tables import Reason

FAULTS_FILE = "faults.json"
_PAIRS_PER_ENTRY = 64  # a killed process has scored at most this many that its journal lacks


class Faults(Settings):
    """The switches of faults.json; a text is looked for in the passage. By default nothing goes wrong."""

    journal: Path | None = None
    microseconds_per_pair: float = Field(default=0, ge=0)
    kills_worker: str | None = Field(default=None, min_length=1)
    not_finite: str | None = Field(default=None, min_length=1)
    out_of_memory: str | None = Field(default=None, min_length=1)

    def error(self, passage: str, tokens: int) -> tuple[str, str] | None:
        """(reason, detail) of a pair that fails, in the words of a real model; None for a sound one."""
        if self.not_finite and self.not_finite in passage:
            return Reason.NOT_FINITE, "the model's output is nan in float32"
        if self.out_of_memory and self.out_of_memory in passage:
            return Reason.OUT_OF_MEMORY, f"{tokens} tokens do not fit into the memory of cpu: on purpose"
        return None

    def kills(self, passage: str) -> bool:
        """Whether scoring this passage ends the process."""
        return self.kills_worker is not None and self.kills_worker in passage


HEALTHY = Faults()


def read_faults(folder: Path) -> Faults:
    """The faults that a model folder asks for. Raises ModelError for a file that is no such list of switches."""
    file = folder / FAULTS_FILE
    if not file.exists():
        return HEALTHY
    try:
        return parse_section(Faults, read_json(file), where=str(file))
    except ConfigError as error:
        raise ModelError(str(error)) from None


class Ordeal:
    """Goes through pairs as a scorer does, at the pace and to the end that `faults` ask for."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self._name = f"{os.getpid()}-{uuid.uuid4().hex[:8]}.keys"

    def go_through(self, pair_keys: list[bytes], passages: list[str]) -> None:
        """Spend the time of scoring these pairs and write their keys down; ends the process at one that kills it."""
        deadly = next((n for n, passage in enumerate(passages) if self._faults.kills(passage)), None)
        survived = pair_keys[:deadly]
        for start in range(0, len(survived), _PAIRS_PER_ENTRY):
            keys = survived[start : start + _PAIRS_PER_ENTRY]
            time.sleep(len(keys) * self._faults.microseconds_per_pair / 1e6)
            self._write_down(keys)
        if deadly is not None:
            os.kill(os.getpid(), signal.SIGKILL)

    def _write_down(self, keys: list[bytes]) -> None:
        """Append to this process's own file, at once and whole: what is in it outlives a SIGKILL."""
        folder = self._faults.journal
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / self._name).open("ab", buffering=0) as file:
            file.write(b"".join(keys))
