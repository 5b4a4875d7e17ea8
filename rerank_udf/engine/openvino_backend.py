"""The OpenVINO backend: a CPU's other way to score, over rectangles of rows of one length.

Each core works on a rectangle of its own; nothing waits between layers for the slower of two cores.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import openvino as ov
import tokenizers

from rerank_udf.engine.backend import OutOfMemoryError, PackedBatch, place_ids
from rerank_udf.engine.capability import resolve_precision
from rerank_udf.engine.int8 import Ranges, quantised
from rerank_udf.engine.openvino_graph import body, compiled, tail
from rerank_udf.engine.weights import read_weights
from rerank_udf.machine import processor_name, task_threads
from rerank_udf.packing import Layout

# Rows of a product; more than a core needs to be busy, few enough that a layer's activations stay near it
TOKENS_PER_BATCH = 2048
_HINTS = {"float32": "f32", "bfloat16": "bf16"}
_FULL = ("bad_alloc", "can't allocate memory", "not enough memory")


_Part = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]


@dataclass
class _Started:
    """Rows of a batch that are being computed: (means, first states) of each rectangle, once it is done."""

    parts: list[_Part | None]


class OpenVinoBackend:
    """A BERT- or RoBERTa-family cross-encoder in OpenVINO, on the CPU.

    `ranges` are the bytes of an `int8.Ranges`, for precision "int8" alone. Raises ModelError for weights that are not a
    one-label cross-encoder's.
    """

    name = "openvino"
    layout: Layout = "equal_lengths"
    device = "cpu"

    def __init__(
        self, folder: Path, *, precision: str, device: str = "cpu", ranges: bytes | None = None
    ) -> None:
        self._folder = folder
        self.precision = precision
        self.device_name = processor_name()
        self._threads = task_threads()
        weights = read_weights(folder)
        self.architecture = weights.architecture
        product = None
        if precision == "int8":
            if ranges is None:
                raise ValueError("precision int8 needs the ranges of a calibration")
            product = quantised(weights, Ranges.from_bytes(ranges))
        hint = _HINTS[resolve_precision("auto", "cpu") if precision == "int8" else precision]
        self._hint = {short: long for long, short in _HINTS.items()}[hint]
        graph = body(weights, half_tables=precision != "float32", product=product)
        network = compiled(graph, hint, self._threads, streams=self._threads)
        self._queue = ov.AsyncInferQueue(network, self._threads)
        self._queue.set_callback(_keep)
        self._tail = compiled(tail(weights), "f32", self._threads, streams=1).create_infer_request()
        self._one_caller = threading.Lock()  # neither the queue nor the request is for several threads

    def start(self, batch: PackedBatch) -> _Started:
        """See `rerank_udf.engine.backend.Backend`; rows of several lengths are computed one length at a time."""
        places = place_ids(batch, self.architecture)
        lengths = batch.lengths
        edges = [0, *(np.flatnonzero(np.diff(lengths)) + 1).tolist(), len(lengths)]
        started = _Started([None] * (len(edges) - 1))
        with self._one_caller, _memory_errors():
            for number, (row, stop) in enumerate(itertools.pairwise(edges)):
                cells = slice(int(batch.offsets[row]), int(batch.offsets[stop]))
                inputs = [values[cells].reshape(stop - row, -1) for values in (batch.token_ids, places)]
                self._queue.start_async(dict(enumerate(inputs)), (started, number))
        return started

    def finish(self, started: Sequence[object]) -> npt.NDArray[np.float32]:
        """See `rerank_udf.engine.backend.Backend`."""
        with self._one_caller, _memory_errors():
            self._queue.wait_all()
            parts = [part for batch in cast("Sequence[_Started]", started) for part in batch.parts]
            means, first = (
                np.concatenate(values) for values in zip(*cast("list[_Part]", parts), strict=True)
            )
            logits = self._tail.infer([means, first], share_inputs=True)[0]
            return np.array(logits, dtype=np.float32).reshape(-1)

    def in_float32(self) -> OpenVinoBackend:
        """See `rerank_udf.engine.backend.Backend`."""
        return OpenVinoBackend(self._folder, precision="float32")

    def token_budget(self) -> int:
        """See `rerank_udf.engine.backend.Backend`."""
        return TOKENS_PER_BATCH

    def versions(self) -> dict[str, str]:
        """See `rerank_udf.engine.backend.Backend`."""
        return {"openvino": ov.__version__.split("-")[0], "tokenizers": tokenizers.__version__}

    def describe(self) -> dict[str, Any]:
        """`threads`; `attention_precision`: what attention and everything else but linear layers is computed in."""
        return {"threads": self._threads, "attention_precision": self._hint}


@contextlib.contextmanager
def _memory_errors() -> Iterator[None]:
    """Raise the engine's OutOfMemoryError where OpenVINO or the system says that memory is full."""
    try:
        yield
    except MemoryError as error:
        raise OutOfMemoryError(str(error)) from error
    except RuntimeError as error:
        if any(words in str(error) for words in _FULL):
            raise OutOfMemoryError(str(error).strip().split("\n")[0]) from error
        raise


def _keep(request: Any, where: tuple[_Started, int]) -> None:
    started, number = where
    means, first = (np.array(request.get_output_tensor(place).data) for place in (0, 1))
    started.parts[number] = means, first
