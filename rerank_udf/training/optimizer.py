"""AdamW over float32 copies of the weights, so that small updates of a bfloat16 model are not lost."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from rerank_udf.training import settings


class MasterAdamW(torch.optim.Optimizer):
    """torch's AdamW on float32 masters of the parameters, which are copied back after each step.

    Clips the norm of all gradients to `clip_norm`, in float32. `state_dict` holds the masters, and loading it sets the
    parameters from them.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], clip_norm: float, betas: tuple[float, float]
    ) -> None:
        super().__init__(groups, {})
        self._clip_norm = clip_norm
        self.parameters: list[nn.Parameter] = [one for group in self.param_groups for one in group["params"]]
        self.masters = [nn.Parameter(one.detach().float().clone()) for one in self.parameters]
        masters = iter(self.masters)
        copies = [
            {**group, "params": [next(masters) for _ in group["params"]]} for group in self.param_groups
        ]
        self._inner = torch.optim.AdamW(copies, betas=betas)
        self.norm = 0.0

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update, at the rates that a scheduler has left in `param_groups`."""
        for master, parameter in zip(self.masters, self.parameters, strict=True):
            master.grad = None if parameter.grad is None else parameter.grad.float()
        self.norm = float(nn.utils.clip_grad_norm_(self.masters, self._clip_norm))
        for inner, group in zip(self._inner.param_groups, self.param_groups, strict=True):
            inner["lr"] = group["lr"]
        self._inner.step()
        self._copy_back()

    def state_dict(self) -> dict[str, Any]:
        """As torch's, with AdamW's own state under "adamw" and the masters under "masters"."""
        masters = [one.detach() for one in self.masters]
        return {**super().state_dict(), "adamw": self._inner.state_dict(), "masters": masters}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken; the parameters too."""
        super().load_state_dict({name: state_dict[name] for name in ("state", "param_groups")})
        self._inner.load_state_dict(state_dict["adamw"])
        self.load_masters(state_dict["masters"])

    @torch.no_grad()
    def load_masters(self, masters: Iterable[Tensor]) -> None:
        """Set masters and parameters."""
        for own, given in zip(self.masters, masters, strict=True):
            own.copy_(given)
        self._copy_back()

    def _copy_back(self) -> None:
        for master, parameter in zip(self.masters, self.parameters, strict=True):
            parameter.copy_(master)


def parameter_groups(model: Any, choice: settings.Optimizer) -> list[dict[str, Any]]:
    """Trainable parameters with their rates: the head's, and each layer's `layer_decay` below the one above.

    No weight decay for biases and norms.
    """
    layers = model.config.num_hidden_layers
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        rate = choice.learning_rate * choice.layer_decay ** _depth(name, layers)
        if name.startswith(("classifier", f"{model.base_model_prefix}.pooler")):
            rate = choice.head_learning_rate or choice.learning_rate
        decay = choice.weight_decay if parameter.dim() > 1 else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    return [{"params": found, "lr": rate, "weight_decay": decay} for (rate, decay), found in groups.items()]


def _depth(name: str, layers: int) -> int:
    """Layers above: 0 for the last layer and what follows it, `layers` for the embeddings."""
    _, sign, rest = name.partition("encoder.layer.")
    if sign:
        return layers - 1 - int(rest.partition(".")[0])
    return layers if ".embeddings." in name else 0
