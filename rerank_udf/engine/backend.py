"""What a backend is: the forward pass of one planned batch. A new one is a new file with this protocol."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt


class OutOfMemoryError(Exception):
    """A batch did not fit into the device's memory; a smaller one may."""


@dataclass(frozen=True)
class PackedBatch:
    """Sequences one after the other, without padding: row i is token_ids[offsets[i]:offsets[i + 1]].

    `token_ids`: int32 (total,); `offsets`: int64 (rows + 1,); `type_ids`: uint8 (total,) or None where every
    token has type 0.
    """

    token_ids: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    type_ids: npt.NDArray[np.uint8] | None

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each row: int64 (rows,)."""
        return np.diff(self.offsets)


class Backend(Protocol):
    """A model on a device in a precision.

    `padded` says what a batch costs: rows × longest row, or only the tokens that are there.
    """

    name: str
    device: str
    device_name: str
    precision: str
    padded: bool

    def forward(self, batch: PackedBatch) -> npt.NDArray[np.float32]:
        """Logits of a batch: float32 (rows,). Raises OutOfMemoryError where a smaller batch may fit."""

    def in_float32(self) -> Backend:
        """The same model on the same device in float32."""

    def token_budget(self) -> int:
        """Tokens of a batch that keep the device busy and fit into its memory."""

    def versions(self) -> dict[str, str]:
        """Versions of the libraries that compute."""
