"""Trace the packed forward for a CUDA device that is not there."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rerank_udf.engine.attention import Attend, Sequences
from rerank_udf.engine.forward import Inputs, forward, load_model
from rerank_udf.engine.weights import read_weights

CUDA = torch.device("cuda:0")
# Two spans of similar lengths, one of equal ones, a single token
LENGTHS = np.array([40, 33, 31, 20, 20, 5, 1], dtype=np.int64)


class Recorder(TorchDispatchMode):
    """Keeps each operator that runs with the devices of its tensors, and the largest sum of bytes that lived at once.

    Only what is made while it is on counts.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, set[str]]] = []
        self.bytes = self.peak_bytes = 0
        self._users: dict[int, int] = {}

    @property
    def operators(self) -> set[str]:
        """Names without overloads: "aten.bmm"."""
        return {".".join(name.split(".")[:2]) for name, _ in self.calls}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = self._storages((args, kwargs))
        out = func(*args, **(kwargs or {}))
        leaves = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, torch.Tensor)]
        self.calls.append((str(func), {str(leaf.device) for leaf in leaves}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self._keep(leaf, given)
        self.peak_bytes = max(self.peak_bytes, self.bytes)
        return out

    def _storages(self, values: Any) -> set[int]:
        return {v.untyped_storage()._cdata for v in tree_leaves(values) if isinstance(v, torch.Tensor)}

    def _keep(self, tensor: torch.Tensor, given: set[int]) -> None:
        """Count a new storage until the last tensor that was seen over it is gone."""
        storage = tensor.untyped_storage()
        if storage._cdata in given and storage._cdata not in self._users:
            return  # a view of what was there before
        size = storage.nbytes()
        if storage._cdata not in self._users:
            self.bytes += size
        self._users[storage._cdata] = self._users.get(storage._cdata, 0) + 1
        weakref.finalize(tensor, self._release, storage._cdata, size)

    def _release(self, key: int, size: int) -> None:
        self._users[key] -= 1
        if not self._users[key]:
            del self._users[key]
            self.bytes -= size


def trace(
    folder: Path, attend: Attend, dtype: torch.dtype, lengths: npt.NDArray[np.int64] = LENGTHS
) -> tuple[torch.Tensor, Recorder]:
    """Run the forward of a model folder on fake CUDA tensors: (logits, what ran).

    An operator that needs a value, which on a card would wait for it, raises.
    """
    total = int(lengths.sum())
    with FakeTensorMode(), torch.no_grad():
        model = load_model(read_weights(folder), dtype, CUDA)
        ids, places = (torch.empty(total, dtype=torch.int32, device=CUDA) for _ in range(2))
        sequences = Sequences(torch.empty(len(lengths) + 1, dtype=torch.int32, device=CUDA), lengths)
        # Which of its kernels the public function takes is asked of the card: here there is none to ask
        with sdpa_kernel(SDPBackend.MATH), Recorder() as recorder:
            return forward(model, Inputs(ids, places, sequences), attend), recorder
