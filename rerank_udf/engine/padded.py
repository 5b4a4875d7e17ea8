"""The plain backend: transformers' own modules over padded, length-sorted batches.

It is what faster backends are compared with. The modules are built from config.json and filled by us, strictly,
from safetensors; positions, masks and the head are computed here, so that they do not depend on which
transformers is installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import tokenizers
import torch
import transformers
from safetensors.torch import load_file

from rerank_udf.engine.backend import PackedBatch
from rerank_udf.engine.torch_runtime import (
    DTYPES,
    device_name,
    exact_products,
    memory_errors,
    token_budget,
    torch_device,
)
from rerank_udf.machine import task_threads
from rerank_udf.models.checkpoint import (
    CONFIG_FILE,
    Architecture,
    check_tensors,
    read_architecture,
    read_json,
    weight_files,
)
from rerank_udf.packing import Layout

_HEAD = ("classifier.", "bert.pooler.")


class PaddedBackend:
    """A BERT- or XLM-RoBERTa-family cross-encoder in torch."""

    name = "torch-padded"
    layout: Layout = "padded"

    def __init__(self, folder: Path, *, precision: str, device: str) -> None:
        self._folder = folder
        self._device = torch_device(device)
        self.device = str(self._device)
        self.precision = precision
        self.architecture = read_architecture(read_json(folder / CONFIG_FILE), str(folder))
        if self._device.type == "cpu":
            torch.set_num_threads(task_threads())
        self.device_name = device_name(self._device)
        self._encoder, self._head = load_modules(folder, self.architecture, DTYPES[precision], self._device)

    def start(self, batch: PackedBatch) -> torch.Tensor:
        """See `rerank_udf.engine.backend.Backend`."""
        inputs = pad_batch(batch, self.architecture)
        with torch.inference_mode(), exact_products(), memory_errors(self._device):
            tensors = {name: torch.from_numpy(value).to(self._device) for name, value in inputs.items()}
            hidden = self._encoder(**tensors).last_hidden_state
            logits: torch.Tensor = self._head(hidden[:, :1].float()).float().flatten()
            return logits

    def finish(self, started: Sequence[object]) -> npt.NDArray[np.float32]:
        """See `rerank_udf.engine.backend.Backend`; later batches are waited for too, which costs time alone."""
        with torch.inference_mode(), memory_errors(self._device):
            logits = cast("Sequence[torch.Tensor]", started)
            result: npt.NDArray[np.float32] = torch.cat(list(logits)).cpu().numpy()
            return result

    def in_float32(self) -> PaddedBackend:
        """See `rerank_udf.engine.backend.Backend`."""
        return PaddedBackend(self._folder, precision="float32", device=self.device)

    def token_budget(self) -> int:
        """See `rerank_udf.engine.torch_runtime.token_budget`."""
        return token_budget(self._device, self.architecture, self.precision)

    def versions(self) -> dict[str, str]:
        """See `rerank_udf.engine.backend.Backend`."""
        return {
            "torch": str(torch.__version__),
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
        }

    def describe(self) -> dict[str, Any]:
        """See `rerank_udf.engine.backend.Backend`."""
        return {"attention": "scaled dot product attention of transformers' modules, over padding"}


def load_modules(
    folder: Path, architecture: Architecture, dtype: torch.dtype, device: torch.device
) -> tuple[torch.nn.Module, torch.nn.Module]:
    """The encoder in `dtype` and the head in float32: (encoder, head) on `device`, in evaluation mode.

    Raises ModelError that names a missing, extra or misshapen tensor.
    """
    weights: dict[str, torch.Tensor] = {}
    for path in weight_files(folder):
        weights |= load_file(path)
    check_tensors(architecture, {name: tuple(tensor.shape) for name, tensor in weights.items()}, str(folder))
    for name in architecture.unused_tensors & weights.keys():
        del weights[name]
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    config.num_labels = 1
    with torch.device("meta"):  # no memory and no time for random weights that are replaced at once
        make = transformers.AutoModelForSequenceClassification.from_config
        model = make(config, attn_implementation="sdpa", trust_remote_code=False)  # type: ignore[no-untyped-call]
    typed = {k: v.to(torch.float32 if k.startswith(_HEAD) else dtype) for k, v in weights.items()}
    model.load_state_dict(typed, strict=True, assign=True)
    encoder, head = split_head(model)
    for module in (encoder, head):
        drop_unread_buffers(module)
        module.eval().requires_grad_(False).to(device)
    return encoder, head


def split_head(model: Any) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Take a sequence classifier apart: encoder, and what makes a logit of the first token's last state."""
    encoder = model.base_model
    if getattr(encoder, "pooler", None) is None:
        return encoder, model.classifier
    head = torch.nn.Sequential(encoder.pooler, model.classifier)
    encoder.pooler = None
    return encoder, head


def drop_unread_buffers(module: torch.nn.Module) -> None:
    """Give the buffers of default positions and types some memory: every call passes its own, none is read."""
    for part in module.modules():
        for name, buffer in list(part.named_buffers(recurse=False)):
            part.register_buffer(name, torch.zeros_like(buffer, device="cpu"), persistent=False)


def pad_batch(batch: PackedBatch, architecture: Architecture) -> dict[str, npt.NDArray[Any]]:
    """Rectangles for the encoder: input_ids, attention_mask, position_ids, token_type_ids, int64 (rows, longest).

    The mask comes from the lengths: a `<pad>` that stands in the text is read by the model. In the RoBERTa family
    positions are counted as Hugging Face does, from the ids: they do not advance on such a `<pad>`.
    """
    lengths = batch.lengths
    mask = np.arange(int(lengths.max()))[None, :] < lengths[:, None]
    ids = np.full(mask.shape, architecture.pad_token_id, dtype=np.int64)
    ids[mask] = batch.token_ids
    types = np.zeros_like(ids)
    if batch.type_ids is not None and architecture.token_types > 1:
        types[mask] = batch.type_ids
    if architecture.positions_skip_padding:
        counted = (ids != architecture.pad_token_id).astype(np.int64)
        positions = np.cumsum(counted, axis=1) * counted + architecture.pad_token_id
    else:
        positions = np.tile(np.arange(mask.shape[1], dtype=np.int64), (len(mask), 1))
    return {
        "input_ids": ids,
        "attention_mask": mask.astype(np.int64),
        "position_ids": positions,
        "token_type_ids": types,
    }
