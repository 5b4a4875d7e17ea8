"""What a backend is: the forward pass of planned batches. A new one is a new file with this protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from rerank_udf.models.checkpoint import Architecture
from rerank_udf.packing import Layout

__all__ = ["Backend", "Layout", "OutOfMemoryError", "PackedBatch", "place_ids", "position_ids"]


class OutOfMemoryError(Exception):
    """A batch did not fit into the device's memory; a smaller one may."""


@dataclass(frozen=True)
class PackedBatch:
    """Sequences one after the other, without padding: row i is token_ids[offsets[i]:offsets[i + 1]].

    `token_ids`: int32 (total,); `offsets`: int64 (rows + 1,); `type_ids`: uint8 (total,) or None where every
    token has type 0. No row is empty.
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

    `layout` says what a batch may hold and what it costs; see `rerank_udf.packing.Layout`.
    """

    name: str
    device: str
    device_name: str
    precision: str
    layout: Layout

    def start(self, batch: PackedBatch) -> object:
        """Queue a batch on the device; what is returned is for `finish`, and holds little but its logits.

        A CPU may compute at once. Raises OutOfMemoryError where a smaller batch may fit.
        """

    def finish(self, started: Sequence[object]) -> npt.NDArray[np.float32]:
        """Wait for batches that were started: their logits one after the other, float32 (rows of all batches,).

        Not for any that was started after them, where the device has a queue. One copy from the device, however many
        batches. Raises OutOfMemoryError where fewer or smaller batches may fit; it may then be called again with some
        of them.
        """

    def in_float32(self) -> Backend:
        """The same model on the same device in float32."""

    def token_budget(self) -> int:
        """Tokens of a batch that keep the device busy and fit into its memory."""

    def versions(self) -> dict[str, str]:
        """Versions of the libraries that compute."""

    def describe(self) -> dict[str, Any]:
        """What only this backend knows about itself, for reports: plain values, ready for JSON."""


def position_ids(batch: PackedBatch, architecture: Architecture) -> npt.NDArray[np.int32]:
    """The position of each token: int32 (total,).

    BERT counts from 0 in each row. The RoBERTa family counts as Hugging Face does, from the ids: positions start after
    the pad id and do not advance on it, even where a literal `<pad>` stands in the text.
    """
    starts = batch.offsets[:-1].astype(np.int32)
    if not architecture.positions_skip_padding:
        return np.arange(len(batch.token_ids), dtype=np.int32) - np.repeat(starts, batch.lengths)
    advances = batch.token_ids != architecture.pad_token_id
    counted = np.cumsum(advances, dtype=np.int32)
    before_row = counted[starts] - advances[starts]
    positions: npt.NDArray[np.int32] = counted - np.repeat(before_row, batch.lengths)
    positions *= advances
    positions += architecture.pad_token_id
    return positions


def place_ids(batch: PackedBatch, architecture: Architecture) -> npt.NDArray[np.int32]:
    """The row of each token in a table of types and positions: type · positions + position, int32 (total,)."""
    positions = position_ids(batch, architecture)
    if batch.type_ids is None or architecture.token_types == 1:
        return positions
    found: npt.NDArray[np.int32] = positions + batch.type_ids.astype(np.int32) * np.int32(
        architecture.positions
    )
    return found
