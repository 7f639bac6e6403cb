"""The last linear layer and its cross-entropy in one step: hidden states and labels in, the summed loss out.

Sizes: N tokens, E width, V vocabulary, C tokens of a chunk. The logits (C, V) of one chunk exist at a time, and the
gradients are made beside them in the forward pass: at V = 131,072 the logits of a batch are larger than the model.

Source: the chunked form of arXiv 2410.10989 (Liger), whose kernel runs instead on CUDA where it is installed.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from .joint import linear


CHUNK_LOGITS = 2**25  # of one chunk: 256 tokens over 131,072 words, 128 MiB in float32
WORDS = 2**14  # whose gradient is added at a time
CHUNK_TOKENS = 256  # where the vocabulary is not known beforehand
IGNORED = -100  # a label that is left out of the loss


class LanguageHead(nn.Linear):
    """A linear layer that also gives the loss of its logits without ever holding all of them.

    The loss is computed inside the module's own call, so that what acts on modules (FSDP, ZeRO-3, offloading) has its
    weight in place.
    """

    def forward(self, hidden_states: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """Logits (..., V) of states (..., E); with `labels` (...) the summed loss, as of [`linear_loss`]."""
        is_plain = type(self.weight) in (torch.Tensor, nn.Parameter)
        if labels is None:
            return linear(hidden_states, self.weight, self.bias) if is_plain else super().forward(hidden_states)
        if self.bias is None and is_plain:
            return linear_loss(hidden_states, self.weight, labels)
        return checkpointed_loss(super().forward, hidden_states, labels)  # weights quantised in place


def linear_loss(hidden_states: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Summed cross-entropy of `hidden_states @ weight.T` over labels that are not -100, without all logits at once.

    Products are in the dtype of `hidden_states`, or in autocast's; softmax, loss and the sum of the weight's gradient
    over chunks are in float32 (float64 for float64). Gradients are made in the forward pass: backward runs once.

    Args:
        hidden_states: (..., E).
        weight: (V, E).
        labels: (...) int64.

    Raises:
        RuntimeError: a second backward pass through one forward, or second derivatives.
    """
    states, labels = hidden_states.flatten(0, -2), labels.to(hidden_states.device).flatten()
    device, dtype = states.device.type, weight.dtype
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    fused = _liger_loss() if states.is_cuda and not torch.compiler.is_compiling() else None
    if fused is not None:
        rows = (labels != IGNORED).nonzero()[:, 0]
        if len(rows):
            states, labels = states[rows].to(dtype), labels[rows]
            return fused(states, weight.to(dtype), labels, reduction="sum", accum_dtype=torch.float32).float()
    learns = torch.is_grad_enabled()
    of_states, of_weight = learns and states.requires_grad, learns and weight.requires_grad
    return _loss_and_gradients(states, weight, labels, dtype, of_states, of_weight)[0]


# An operator of its own, which torch.compile takes as it is: the choice of rows depends on the data.
@torch.library.custom_op("arlow::linear_loss", mutates_args=())
def _loss_and_gradients(
    states: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    dtype: torch.dtype,
    of_states: bool,
    of_weight: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Summed loss, and its gradients (N, E) and (V, E) where wanted, else empty tensors."""
    exact = torch.promote_types(dtype, torch.float32)
    total = torch.zeros((), dtype=exact, device=states.device)
    grad_states = torch.zeros_like(states if of_states else states[:0])
    grad_weight = torch.zeros_like(weight if of_weight else weight[:0], dtype=exact)
    matrix = weight.to(dtype)
    rows = (labels != IGNORED).nonzero()[:, 0]
    for some in rows.split(chunk_size(len(weight))):
        inputs, targets = states[some].to(dtype), labels[some][:, None]  # [C, E], [C, 1]
        scores = torch.log_softmax(inputs @ matrix.T, dim=-1, dtype=exact)  # [C, V]
        total -= scores.gather(1, targets).sum()
        if not (of_states or of_weight):
            continue
        scores.exp_().scatter_add_(1, targets, scores.new_full(targets.shape, -1.0))  # the gradient of the logits
        gradient = scores.to(dtype)
        if of_states:
            grad_states[some] = (gradient @ matrix).to(states.dtype)
        if of_weight and dtype == exact:
            grad_weight.addmm_(gradient.T, inputs)
        elif of_weight:
            # Words in blocks, too: a product in half precision is as large as the weight.
            for block, part in zip(grad_weight.split(WORDS), gradient.split(WORDS, dim=1), strict=True):
                block += part.T @ inputs
    return total, grad_states, grad_weight.to(weight.dtype)


@_loss_and_gradients.register_fake
def _(
    states: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    dtype: torch.dtype,
    of_states: bool,
    of_weight: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    total = states.new_empty((), dtype=torch.promote_types(dtype, torch.float32))
    return (
        total,
        torch.empty_like(states if of_states else states[:0]),
        torch.empty_like(weight if of_weight else weight[:0]),
    )


def _keep_gradients(ctx: Any, inputs: tuple, output: tuple[torch.Tensor, ...]) -> None:
    ctx.wanted = inputs[-2:]
    ctx.save_for_backward(*output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _scale_gradients(ctx: Any, grad_total: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:
    if torch.is_grad_enabled():
        raise RuntimeError("the chunked loss has no second derivatives (create_graph); pass skip_logits=False")
    try:
        gradients = ctx.saved_tensors
    except RuntimeError as error:  # freed, or scaled by an earlier pass
        problem = "a second backward pass through one loss: its gradients were made in forward, for one pass"
        raise RuntimeError(f"{problem}; call the model again") from error
    # In place: of a large vocabulary the weight's gradient is the largest tensor of the step.
    scaled = [grad.mul_(grad_total) if wanted else None for grad, wanted in zip(gradients, ctx.wanted, strict=True)]
    return *scaled, None, None, None, None


_loss_and_gradients.register_autograd(_scale_gradients, setup_context=_keep_gradients)


def checkpointed_loss(head: Callable, hidden_states: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """[`linear_loss`] through any `head` from states (C, E) to logits (C, V), an adapter's or a quantised one: each
    chunk is computed again in the backward pass."""
    states, labels = hidden_states.flatten(0, -2), labels.to(hidden_states.device).flatten()
    rows = (labels != IGNORED).nonzero()[:, 0]
    rows = rows if len(rows) else rows.new_zeros(1)  # one ignored token keeps the head's parameters in the graph

    def loss(some: torch.Tensor) -> torch.Tensor:
        return summed_loss(head(states[some]), labels[some])

    total: Any = 0
    for some in rows.split(CHUNK_TOKENS):
        total = total + checkpoint(loss, some, use_reentrant=False)
    return total


def summed_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Summed cross-entropy of logits (N, V) that are there, over labels (N,) that are not -100. Computed in float32
    (float64 for float64), a chunk at a time."""
    exact, size = torch.promote_types(logits.dtype, torch.float32), chunk_size(logits.shape[-1])
    total: Any = 0
    for part, wanted in zip(logits.split(size), labels.split(size), strict=True):
        total = total + nn.functional.cross_entropy(part.to(exact), wanted, ignore_index=IGNORED, reduction="sum")
    return total


def chunk_size(vocabulary: int) -> int:
    """Tokens of a chunk."""
    return max(1, CHUNK_LOGITS // vocabulary)


@functools.cache
def _liger_loss() -> Callable | None:
    """Liger's fused kernel, where it is installed: (states, weight, labels, *, reduction, accum_dtype) -> loss."""
    try:
        return importlib.import_module("liger_kernel.transformers.functional").liger_fused_linear_cross_entropy
    except ImportError:
        return None
