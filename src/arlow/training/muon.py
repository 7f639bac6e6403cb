"""Muon for the weight matrices of hidden layers, AdamW for all other weights, as one optimiser.

Muon turns the averaged gradient of a matrix into the nearest orthogonal one before the step; small transformers then
need fewer steps. Its rates are scaled so that a step is as large as AdamW's, and one learning rate serves both.

Sources: Jordan et al. 2024, kellerjordan.github.io/posts/muon; the scale, arXiv 2502.16982.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel


class Muon(torch.optim.Muon):
    """PyTorch's Muon, with the matrix products of its Newton-Schulz rounds in `dtype`: those of PyTorch are always
    bfloat16, which on a CPU without such products is a third of the time of a step."""

    def __init__(self, groups: list[dict[str, Any]], *, dtype: torch.dtype) -> None:
        super().__init__(groups, adjust_lr_fn="match_rms_adamw")
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        if closure is not None:
            raise ValueError("closure: Muon takes none")
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(weight.grad)
                average = state["momentum_buffer"].lerp_(weight.grad, 1 - group["momentum"])
                towards = orthogonal(weight.grad.lerp(average, group["momentum"]).to(self.dtype), group)
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(towards, alpha=-group["lr"] * 0.2 * max(weight.shape) ** 0.5)


def orthogonal(matrix: torch.Tensor, group: dict[str, Any]) -> torch.Tensor:
    """About the nearest matrix whose singular values are all 1, in the dtype of `matrix`, by the Newton-Schulz rounds
    that PyTorch's group of weights says."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    first, third, fifth = group["ns_coefficients"]
    wide = wide / wide.norm().clamp(min=group["eps"])  # no singular value is above 1 then
    for _ in range(group["ns_steps"]):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=third, alpha=fifth), wide, beta=first)
    return wide if matrix.shape[0] <= matrix.shape[1] else wide.T


class MuonAdamW(torch.optim.Optimizer):
    """One optimiser of two: `param_groups` are those of both, in that order.

    Args:
        matrices: groups (`params`, `lr`, `weight_decay`) of 2-D weights, for Muon.
        others: groups of everything else, for AdamW with `betas`.
        dtype: of Muon's matrix products.
    """

    def __init__(
        self,
        matrices: list[dict[str, Any]],
        others: list[dict[str, Any]],
        *,
        betas: tuple[float, float],
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        chosen: list[torch.optim.Optimizer] = []
        if matrices:
            chosen.append(Muon(matrices, dtype=dtype))
        if others:
            chosen.append(torch.optim.AdamW(others, betas=betas))
        super().__init__([group for part in chosen for group in part.param_groups], {})
        self.parts = chosen
        self._share()

    def _share(self) -> None:
        """Schedulers and scalers see the very groups that the parts step with."""
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None if closure is None else closure()
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._share()


def make_muon(
    model: PreTrainedModel,
    *,
    learning_rate: Callable[[str], float],
    weight_decay: float,
    decayed: set[str],
    betas: tuple[float, float],
    dtype: torch.dtype = torch.bfloat16,
) -> MuonAdamW:
    """The optimiser of a model's trainable weights.

    Args:
        learning_rate: of a weight, by its name.
        decayed: names of the weights that decay.
        dtype: of Muon's matrix products.
    """
    head = model.get_output_embeddings()
    linear = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear) and m is not head}
    groups: dict[bool, list[dict[str, Any]]] = {True: [], False: []}

    def kind(item: tuple[str, nn.Parameter]) -> tuple[bool, float, float]:
        name, weight = item
        return id(weight) in linear, learning_rate(name), weight_decay if name in decayed else 0.0

    trained = sorted(((n, p) for n, p in model.named_parameters() if p.requires_grad), key=kind)
    for (hidden, rate, decay), items in groupby(trained, key=kind):
        groups[hidden].append({"params": [weight for _, weight in items], "lr": rate, "weight_decay": decay})
    return MuonAdamW(groups[True], groups[False], betas=betas, dtype=dtype)
