"""The packed backend: no token of padding is computed, on any torch device.

A batch goes to the device in one copy, its logits come back in one, and in between the host waits for nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import tokenizers
import torch
from torch import Tensor

from rerank_udf.engine import kernels
from rerank_udf.engine.attention import (
    Attend,
    NotUsableError,
    Sequences,
    attend_equal_lengths,
    make_attend,
)
from rerank_udf.engine.backend import OutOfMemoryError, PackedBatch, place_ids
from rerank_udf.engine.forward import Inputs, Linear, Model, Norm, forward, load_model
from rerank_udf.engine.onednn import lay_out, why_not
from rerank_udf.engine.torch_runtime import (
    DTYPES,
    bytes_per_token,
    device_name,
    exact_products,
    is_full,
    memory_errors,
    token_budget,
    torch_device,
)
from rerank_udf.engine.weights import read_weights
from rerank_udf.errors import ModelError
from rerank_udf.machine import task_threads
from rerank_udf.models.checkpoint import Architecture
from rerank_udf.packing import Layout

_CHECKED_LENGTHS = np.array([131, 64, 64, 17, 3, 1], dtype=np.int64)
_CHECK_FLOOR = 1e-4
_CHECK_STEPS = 4  # rounding steps of the largest value that a kernel may be off


@dataclass(frozen=True)
class Kernel:
    """An attention that has been compared with the public one on this device, and why no better one was taken."""

    name: str
    attend: Attend
    not_chosen: dict[str, str]


@dataclass(frozen=True)
class _Started:
    """Logits that a device is computing, float32 (rows,), the host memory that its copy reads, and on CUDA the event
    that they are done."""

    logits: Tensor
    held: Tensor | None
    done: torch.cuda.Event | None


class PackedBackend:
    """A BERT- or RoBERTa-family cross-encoder over packed sequences, in torch.

    Raises ModelError for weights that are not a one-label cross-encoder's, or for which the device has no room.
    """

    name = "torch-packed"
    layout: Layout = "packed"

    def __init__(self, folder: Path, *, precision: str, device: str) -> None:
        self._folder = folder
        self._device = torch_device(device)
        self.device = str(self._device)
        self.device_name = device_name(self._device)
        self.precision = precision
        if self._device.type == "cpu":
            torch.set_num_threads(task_threads())
        weights = read_weights(folder)
        self.architecture = weights.architecture
        try:
            with torch.inference_mode(), memory_errors(self._device):
                self._model = load_model(weights, DTYPES[precision], self._device, lay_out)
                self.kernel = checked_kernel(self.architecture, precision, self._device)
                self._back = _new_stream(self._device)
        except OutOfMemoryError as error:
            raise ModelError(
                f"the weights of {folder} do not fit into the memory of {self.device} in {precision}: {error}; "
                "free the device, or use a larger one"
            ) from error

    def start(self, batch: PackedBatch) -> _Started:
        """See `rerank_udf.engine.backend.Backend`."""
        with torch.inference_mode(), exact_products(), memory_errors(self._device):
            inputs, held = to_device(batch, self.architecture, self._device)
            logits = forward(self._model, inputs, self.kernel.attend)
            if self._back is None:
                return _Started(logits, held, None)
            return _Started(logits, held, torch.cuda.current_stream(self._device).record_event())

    def finish(self, started: Sequence[object]) -> npt.NDArray[np.float32]:
        """See `rerank_udf.engine.backend.Backend`. On CUDA no later batch is waited for."""
        parts = cast("Sequence[_Started]", started)
        with torch.inference_mode(), memory_errors(self._device), self._behind(parts):
            result: npt.NDArray[np.float32] = torch.cat([part.logits for part in parts]).cpu().numpy()
            return result

    @contextlib.contextmanager
    def _behind(self, parts: Sequence[_Started]) -> Iterator[None]:
        """On CUDA: a stream of its own, which waits for these batches and for none that was started after them.

        The logits belong to the stream that computed them. They are read from this one before their memory may be used
        again, since the caller holds them until their copy to the host, which it waits for, is done.
        """
        if self._back is None:
            yield
            return
        with torch.cuda.stream(self._back):
            for part in parts:
                assert part.done is not None, "it was started on this device"
                self._back.wait_event(part.done)
            yield

    def in_float32(self) -> PackedBackend:
        """The same model, loaded once more, in float32. Raises ModelError where the device has no room for it."""
        return PackedBackend(self._folder, precision="float32", device=self.device)

    def token_budget(self) -> int:
        """See `rerank_udf.engine.torch_runtime.token_budget`."""
        return token_budget(self._device, self.architecture, self.precision)

    @property
    def weight_bytes(self) -> int:
        """Device memory of the weights."""
        return model_bytes(self._model)

    def predicted_bytes(self, tokens: int) -> int:
        """Device memory while a batch of so many tokens runs, weights included."""
        return self.weight_bytes + int(tokens * bytes_per_token(self.architecture, self.precision))

    def versions(self) -> dict[str, str]:
        """See `rerank_udf.engine.backend.Backend`."""
        found = {"torch": str(torch.__version__), "tokenizers": tokenizers.__version__}
        return found | ({"cuda": str(torch.version.cuda)} if self._device.type == "cuda" else {})

    def describe(self) -> dict[str, Any]:
        """`kernel`: the attention in use; `not_chosen`: kernel → why not; `last_layer_precision`;
        on a CPU `linear`, how linear layers are computed."""
        facts = {
            "kernel": self.kernel.name,
            "not_chosen": dict(self.kernel.not_chosen),
            "last_layer_precision": "float32",
        }
        if self._device.type == "cpu":
            facts["linear"] = why_not(DTYPES[self.precision]) or "oneDNN, weights laid out once"
        return facts


def _new_stream(device: torch.device) -> torch.cuda.Stream | None:
    """A queue of the device's beside the one in which its batches stand; None for a CPU, which has none."""
    return torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]


def to_device(
    batch: PackedBatch, architecture: Architecture, device: torch.device
) -> tuple[Inputs, Tensor | None]:
    """A batch's tensors on a device, by one copy of one int32 buffer; and the pinned memory that the copy reads.

    The copy to a CUDA device does not wait; keep the pinned memory until the batch is done.
    """
    tokens, lengths = len(batch.token_ids), batch.lengths
    buffer = torch.empty(2 * tokens + len(batch.offsets), dtype=torch.int32, pin_memory=device.type == "cuda")
    cells = buffer.numpy()
    cells[:tokens] = batch.token_ids
    cells[tokens : 2 * tokens] = place_ids(batch, architecture)
    cells[2 * tokens :] = batch.offsets
    there = buffer.to(device, non_blocking=True)
    ids, rows, cu_seqlens = torch.split(there, [tokens, tokens, len(batch.offsets)])
    return Inputs(ids, rows, Sequences(cu_seqlens, lengths)), buffer if device.type == "cuda" else None


def model_bytes(model: Model) -> int:
    """Bytes of a model's tensors."""
    parts: list[Linear | Norm] = [model.norm, model.dense, model.label]
    for layer in (*model.layers, model.last):
        parts += [layer.qkv, layer.attention_output, layer.intermediate, layer.output]
        parts += [layer.attention_norm, layer.output_norm]
    tensors = [model.words, model.places, *(t for part in parts for t in (part.weight, part.bias))]
    return sum(tensor.nbytes for tensor in tensors)


_kernels: dict[tuple[torch.device, str, int, int], Kernel] = {}


def checked_kernel(architecture: Architecture, precision: str, device: torch.device) -> Kernel:
    """The best attention kernel that computes the right thing here; found once a process for each of the arguments.

    Each candidate is compared with the public scaled dot product attention over exact-length groups, in float32, on
    a small batch; one that fails or deviates gives way to the next.
    """
    heads, dim = architecture.heads, architecture.hidden // architecture.heads
    key = (device, precision, heads, dim)
    if key not in _kernels:
        _kernels[key] = _find_kernel(
            _candidates(precision, device, dim), heads, dim, DTYPES[precision], device
        )
    return _kernels[key]


def _candidates(precision: str, device: torch.device, dim: int) -> kernels.KernelChoice:
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    installed = kernels.installed_packages()
    return kernels.choose_kernels(
        device.type, capability, precision, str(torch.__version__), installed, head_dim=dim
    )


def _find_kernel(
    choice: kernels.KernelChoice, heads: int, dim: int, dtype: torch.dtype, device: torch.device
) -> Kernel:
    reasons = dict(choice.rejected)
    for place, name in enumerate(choice.chosen[:-1]):
        try:
            attend = make_attend(name)
            check_attend(attend, heads, dim, dtype, device)
        except Exception as error:  # whatever an optional kernel raises, the next one may work
            if is_full(error):
                raise  # for the others too, and no reason to do without this one for good
            reasons[name] = str(error).split("\n")[0]
        else:
            reasons |= dict.fromkeys(choice.chosen[place + 1 :], f"{name} comes first")
            return Kernel(name, attend, reasons)
    return Kernel(kernels.EQUAL_LENGTHS, attend_equal_lengths, reasons)


def check_attend(attend: Attend, heads: int, dim: int, dtype: torch.dtype, device: torch.device) -> None:
    """Compare a kernel with the public attention in float32, on rows of several lengths.

    Raises NotUsableError where it deviates by more than rounding; what the kernel raises passes.
    """
    total = int(_CHECKED_LENGTHS.sum())
    offsets = np.concatenate([[0], np.cumsum(_CHECKED_LENGTHS)])
    sequences = Sequences(torch.tensor(offsets, dtype=torch.int32, device=device), _CHECKED_LENGTHS)
    values = torch.randn((total, 3, heads, dim), generator=torch.Generator().manual_seed(0))
    qkv = values.to(device, dtype)
    with exact_products():
        expected = attend_equal_lengths(qkv.float(), sequences)
        found = attend(qkv, sequences)
    if found.shape != expected.shape or found.dtype != dtype:
        raise NotUsableError(
            f"it gives {found.dtype} {tuple(found.shape)}; expected {dtype} {tuple(expected.shape)}"
        )
    allowed = max(_CHECK_FLOOR, _CHECK_STEPS * torch.finfo(dtype).eps * float(expected.abs().max()))
    deviation = float((found.float() - expected).abs().max())
    if not deviation <= allowed:  # a NaN is no deviation that could be compared
        raise NotUsableError(
            f"it deviates by {deviation:.2g} from the public attention; allowed are {allowed:.2g}"
        )
