"""The products of linear layers in inference: several of one input as one, and few rows the way round that is faster.

Fewer, larger products: the layers stay what they are, by name, type and parameter: their weights are laid one behind
the other in memory once, and the joint product reads them there. Whatever moves a weight elsewhere (another device, an
adapter) parts them, and they are laid together again; a state dict parts them, too. Weights whose memory others use
(another process, what shards them) are used one by one.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch
from torch import nn


# Of 8 to 15 rows of float32 with a weight beyond the cache MKL's product takes longer than of 16; the other way round,
# weight times rows, it does not (LOG.md, 2026-11-23).
FEW_ROWS = range(8, 16)
LARGE = 2**21  # numbers in a weight

_lock = threading.Lock()


def project(x: torch.Tensor, layers: Sequence[nn.Module]) -> Sequence[torch.Tensor]:
    """`[layer(x) for layer in layers]` for x (..., in): each (..., out of the layer), of a joint product as views."""
    if not _is_free(x) or not all(map(_is_plain, layers)):
        return [layer(x) for layer in layers]
    weights = [layer._parameters["weight"] for layer in layers]  # `layer.weight` would be looked up in three places
    rows = [weight.shape[0] for weight in weights]  # not `out_features`: who shards a weight leaves that as it is
    weight = _joint(layers, weights, sum(rows))
    if weight is None:
        return [layer(x) for layer in layers]
    biases = [bias for layer in layers if (bias := layer._parameters["bias"]) is not None]
    if 0 < len(biases) < len(layers):
        return [layer(x) for layer in layers]
    bias = torch.cat(biases) if biases else None
    product = _turned(x, weight, bias) if _is_few(x, weight) else nn.functional.linear(x, weight, bias)
    return torch.split_with_sizes(product, rows, -1)


def call(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """`layer(x)`, few rows the faster way round."""
    weight = layer._parameters.get("weight")
    if weight is not None and _is_free(x) and _is_few(x, weight) and _is_plain(layer):
        return _turned(x, weight, layer._parameters["bias"])
    return layer(x)


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`nn.functional.linear`, few rows the faster way round."""
    if _is_free(x) and _is_few(x, weight):
        return _turned(x, weight, bias)
    return nn.functional.linear(x, weight, bias)


def _is_few(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether the product of `x` with this weight is faster the other way round. Not to be asked in a graph, which is
    for any number of rows."""
    return (
        weight.numel() >= LARGE
        and x.shape[:-1].numel() in FEW_ROWS
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
    )


def _turned(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """`linear(x, weight, bias)` as weight times rows."""
    product = (weight @ x.reshape(-1, x.shape[-1]).T).T.contiguous().view(*x.shape[:-1], -1)
    return product if bias is None else product + bias


def _is_free(x: torch.Tensor) -> bool:
    """Whether products may be made in another way than called for: no gradient, no graph, no choice of dtypes."""
    device = x.device.type
    is_mixed = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return not (torch.is_grad_enabled() or torch.compiler.is_compiling() or is_mixed)


def _is_plain(layer: nn.Module) -> bool:
    """Whether calling the layer is its product and nothing else."""
    watched = layer._forward_hooks or layer._forward_pre_hooks or "forward" in layer.__dict__
    own = layer._parameters
    return type(layer) is nn.Linear and not watched and type(own.get("weight")) is nn.Parameter and "bias" in own


def _joint(layers: Sequence[nn.Module], weights: Sequence[nn.Parameter], rows: int) -> torch.Tensor | None:
    """The layers' weights (out_i, in) as one (`rows`, in), laid together if they are not; None where they do not
    fit."""
    first = weights[0]
    if not _adjoin(weights):
        if any(w.dtype != first.dtype or w.device != first.device or not w.is_contiguous() for w in weights):
            return None
        if len({*map(id, weights)}) < len(weights):
            return None  # layers that share one weight
        if first.device.type == "meta" or first.is_inference():
            return None
        if first.device.type == "cpu" and any(w.is_shared() for w in weights):
            return None  # another process reads or writes it where it is
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return None  # what shards weights keeps its own view of their memory
        with _lock:
            if not _adjoin(weights):  # another thread may have come first
                _lay_together(layers)
    columns = first.shape[1]
    return first.detach().as_strided((rows, columns), (columns, 1))


def _lay_together(layers: Sequence[nn.Module]) -> None:
    weights = [layer.weight for layer in layers]
    with torch.inference_mode(False):  # what is made in that mode could never be trained again
        together = torch.cat([w.detach() for w in weights])
        if together.is_cuda:
            torch.cuda.synchronize(together.device)  # threads on other streams may read it at once
        for layer, part in zip(layers, together.split([len(w) for w in weights]), strict=True):
            layer.weight.data = part
            if _part not in layer._state_dict_pre_hooks.values():
                layer.register_state_dict_pre_hook(_part)


def _part(layer: nn.Module, prefix: str, keep_vars: bool) -> None:
    """Gives the weight memory of its own again. Who saves a state dict may take weights of one memory for one weight
    under two names, and keep only the first (Accelerate does)."""
    weight = layer.weight
    if weight.untyped_storage().nbytes() > weight.numel() * weight.element_size():
        with _lock, torch.inference_mode(False):
            weight.data = weight.data.clone()


def _adjoin(weights: Sequence[torch.Tensor]) -> bool:
    """Whether each weight, row by row, begins in memory where the one before it ends, in one storage."""
    at, size = weights[0].data_ptr(), weights[0].element_size()
    for weight in weights:
        if weight.data_ptr() != at or weight.dtype != weights[0].dtype or not weight.is_contiguous():
            return False
        at += weight.numel() * size
    storage = weights[0].untyped_storage()  # whatever lies within it is of it
    return at <= storage.data_ptr() + storage.nbytes()
