"""Attention on a CPU where no gradient is wanted: products and a softmax, where those beat PyTorch's fused kernel.

That is a single query per head (decoding), whose grouped heads share one product with their keys instead of the kernel
repeating those; and long sequences in bfloat16, whose matrix products run on the CPU's bfloat16 units block by block.

Sizes: B batch, H query heads, V key heads, G = H / V query heads each, S queries, K keys, D head size.
"""

from __future__ import annotations

import functools

import torch


BLOCK = 256  # queries at once: the scores of a block stay in the cache
LEAST = 512  # queries from which blocks win


def pays(query: torch.Tensor, dropout: float) -> bool:
    """Whether `attend_on_cpu` is the faster way for these queries (B, H, S, D)."""
    if query.device.type != "cpu" or dropout or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    count = query.shape[2]
    return count == 1 or (query.dtype == torch.bfloat16 and count >= LEAST)


def attend_on_cpu(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    scaling: float,
    causal: bool,
) -> torch.Tensor:
    """
    Args:
        query: (B, H, S, D).
        key, value: (B, V, K, D).
        mask: None, or what broadcasts to (B, H, S, K): bool, True where a query sees a key, or added to the scores.
        causal: without a mask, query i sees keys 0..i only. A single query sees all.

    Returns:
        (B, S, H, D), contiguous.
    """
    (batch, heads, count, size), groups = query.shape, key.shape[1]
    query = query * scaling
    if count == 1:
        scores = torch.bmm(query.reshape(batch * groups, -1, size), key.flatten(0, 1).transpose(1, 2))  # [B*V, G, K]
        weights = _softmax(scores.view(batch, heads, 1, -1), mask)
        return torch.bmm(weights.view_as(scores), value.flatten(0, 1)).view(batch, 1, heads, size)
    grouped = query.view(batch, groups, -1, count, size)  # [B, V, G, S, D]
    causal = causal and mask is None
    output = query.new_empty(batch, heads, count, size)
    views = output.view(grouped.shape)
    for row in range(batch):
        for group in range(groups):
            keys, values = key[row, group].T, value[row, group]  # [D, K], [K, D]
            for start in range(0, count, BLOCK):
                stop = min(start + BLOCK, count)
                seen = stop if causal else key.shape[2]
                block = grouped[row, group, :, start:stop].reshape(-1, size)  # [G*Q, D]
                scores = torch.matmul(block, keys[:, :seen]).view(-1, stop - start, seen)
                if causal:
                    scores[..., start:].masked_fill_(_ahead(stop - start), float("-inf"))
                weights = _softmax(scores, _part(mask, row, group, grouped.shape[2], start, stop))
                found = torch.matmul(weights.view(-1, seen), values[:seen])
                views[row, group, :, start:stop] = found.view(-1, stop - start, size)
    return output.transpose(1, 2).contiguous()


def _softmax(scores: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    if mask is None:  # each sees some key
        return scores.softmax(-1)
    scores = scores.masked_fill_(~mask, float("-inf")) if mask.dtype == torch.bool else scores.add_(mask)
    return torch._safe_softmax(scores, -1)  # zeros, not NaN, for a query that sees nothing


def _part(mask: torch.Tensor | None, row: int, group: int, width: int, start: int, stop: int) -> torch.Tensor | None:
    """The part of a mask (1 or B, 1 or H, 1 or S, K) for a block of queries of one group of `width` heads."""
    if mask is None:
        return None
    mask = mask[row if len(mask) > 1 else 0]
    mask = mask[group * width : (group + 1) * width] if len(mask) > 1 else mask
    return mask[:, start:stop] if mask.shape[1] > 1 else mask


@functools.lru_cache(maxsize=4)
def _ahead(count: int) -> torch.Tensor:
    """(Q, Q) bool, True where a key comes after the query."""
    return torch.ones(count, count, dtype=torch.bool, device="cpu").triu_(1)
