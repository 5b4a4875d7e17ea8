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
_FULL = ("bad_alloc", "can't allocate memory", "not enough memory", "Failed to allocate")


_Part = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]


@dataclass
class _Started:
    """Rows of a batch that are being computed: (means, first states) of each rectangle, once it is done.

    Or what went wrong when they were copied; None for good where they could not be computed.
    """

    parts: list[_Part | Exception | None]


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
        if precision == "int8" and ranges is None:
            raise ValueError("precision int8 needs the ranges of a calibration")
        self._folder = folder
        self._ranges = ranges if precision == "int8" else None
        self.precision = precision
        self.device_name = processor_name()
        self._threads = task_threads()
        self._hint = resolve_precision("auto", "cpu") if precision == "int8" else precision
        self._one_caller = threading.Lock()  # neither the queue nor the request is for several threads
        self._compile()

    def _compile(self) -> None:
        weights = read_weights(self._folder)
        self.architecture = weights.architecture
        product = None if self._ranges is None else quantised(weights, Ranges.from_bytes(self._ranges))
        graph = body(weights, half_tables=self.precision != "float32", product=product)
        network = compiled(graph, _HINTS[self._hint], self._threads, streams=self._threads)
        self._queue: Any = ov.AsyncInferQueue(network, self._threads)
        self._queue.set_callback(_keep)
        self._tail = compiled(tail(weights), "f32", self._threads, streams=1).create_infer_request()

    def start(self, batch: PackedBatch) -> _Started:
        """See `rerank_udf.engine.backend.Backend`; rows of several lengths are computed one length at a time."""
        places = place_ids(batch, self.architecture)
        lengths = batch.lengths
        edges = [0, *(np.flatnonzero(np.diff(lengths)) + 1).tolist(), len(lengths)]
        started = _Started([None] * (len(edges) - 1))
        with self._one_caller, self._errors():
            for number, (row, stop) in enumerate(itertools.pairwise(edges)):
                cells = slice(int(batch.offsets[row]), int(batch.offsets[stop]))
                inputs = [values[cells].reshape(stop - row, -1) for values in (batch.token_ids, places)]
                self._queue.start_async(dict(enumerate(inputs)), (started, number))
        return started

    def finish(self, started: Sequence[object]) -> npt.NDArray[np.float32]:
        """See `rerank_udf.engine.backend.Backend`."""
        with self._one_caller, self._errors():
            self._queue.wait_all()
            parts = [_computed(part) for batch in cast("Sequence[_Started]", started) for part in batch.parts]
            means, first = (np.concatenate(values) for values in zip(*parts, strict=True))
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
    def _errors(self) -> Iterator[None]:
        """Raise the engine's OutOfMemoryError where OpenVINO or the system says that memory is full.

        After an error a queue raises it at every later call, and after one about memory the network asks for as much at
        every later shape too: both are made anew, when all that was begun has ended.
        """
        try:
            yield
        except (MemoryError, RuntimeError) as error:
            with contextlib.suppress(RuntimeError):
                self._queue.wait_all()
            self._queue = self._tail = None
            self._compile()
            words = str(error).strip()
            if isinstance(error, MemoryError) or any(full in words for full in _FULL):
                raise OutOfMemoryError(_told(words)) from error
            raise


def _told(words: str) -> str:
    """The line of OpenVINO's message that speaks of memory."""
    lines = words.split("\n")
    return next((line for line in lines if any(full in line for full in _FULL)), lines[0]).strip()


def _computed(part: _Part | Exception | None) -> _Part:
    if part is None:  # its request failed, and the error was told when an earlier batch was waited for
        raise OutOfMemoryError("there was no memory to compute it in")
    if isinstance(part, Exception):
        raise part
    return part


def _keep(request: Any, where: tuple[_Started, int]) -> None:
    """An exception must not leave this: OpenVINO calls it in a thread of its own, and the process would end."""
    started, number = where
    try:
        means, first = (np.array(request.get_output_tensor(place).data) for place in (0, 1))
        started.parts[number] = means, first
    except Exception as error:
        started.parts[number] = error
