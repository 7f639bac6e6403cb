"""A conversation goes on: what its cache holds, and the positions and media of what comes after.

Sizes: B batch, K tokens of the whole conversation, S new tokens. What one turn leaves for the next, the offset between
text positions and axes, is an attribute of the cache object: it is there for as long as the cache is.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache

from .errors import message
from .positions import IMAGE, VIDEO, check_placeholders, get_rope_index


def cached_tokens(cache: Cache | None) -> int:
    """Tokens a cache holds."""
    return 0 if cache is None else int(cache.get_seq_length())


def starts_a_prompt(past_key_values: Cache | None, kwargs: dict[str, Any]) -> bool:
    """Nothing came before these tokens. Continuous batching keeps what came before in a paged `cache` of its own; a
    compiled step must not read the length of its cache from the device."""
    if torch.compiler.is_compiling():
        return False
    return kwargs.get("cache") is None and cached_tokens(past_key_values) == 0


def remember_delta(
    cache: Cache | None,
    position_ids: torch.Tensor | None,
    attention_mask: torch.Tensor | dict | None,
    *,
    media: bool,
) -> None:
    """Keep on the cache how far the axes are ahead of the text positions, (B, 1), for a turn that gives none, and how
    many tokens it held when media last changed that."""
    if cache is None or position_ids is None or position_ids.ndim != 3 or torch.compiler.is_compiling():
        return
    axes = position_ids[-3:].amax(dim=(0, 2))  # [B]
    if len(position_ids) == 4:
        text = position_ids[0].amax(dim=-1)
    elif isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2:
        text = attention_mask.sum(-1) - 1
    else:
        text = cached_tokens(cache) - 1
    cache.rope_delta = (axes - text)[:, None]
    if media:
        cache.rope_delta_since = cached_tokens(cache)


def remembered_delta(cache: Cache | None, batch: int) -> torch.Tensor | None:
    """What `remember_delta` left, (B, 1), or `None` where nothing came before.

    Raises:
        ValueError: the cache was cropped or reordered since, so that the offset belongs to other tokens.
    """
    delta = getattr(cache, "rope_delta", None)
    past = cached_tokens(cache)
    if delta is None or past == 0:  # a cache that was reset keeps its attributes
        return None
    since = getattr(cache, "rope_delta_since", 0)
    if past < since or len(delta) not in (1, batch):
        problem = f"was cropped into a turn with media, or its rows were changed, after {since} tokens"
        remedy = "pass the whole conversation with all its media, or a fresh cache"
        raise ValueError(message("past_key_values", past, problem, remedy))
    return delta


def continue_positions(
    text: torch.Tensor,
    types: torch.Tensor,
    attention_mask: torch.Tensor | dict | None,
    delta: torch.Tensor | None,
    grids: dict[int, torch.Tensor | None],
    merge: int,
    image_token_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Positions (4, B, S) of tokens that follow what a cache holds.

    Args:
        text: (B, S), text positions of the new tokens.
        types: (B, S), 0 text, 1 image, 2 video.
        attention_mask: (B, K) over old and new tokens, or `None`.
        delta: (B, 1), what the cache remembers; `None`: nothing came before.
        grids: of the media among the new tokens, by type.
        merge: patches per side of a merged token.
        image_token_mask: (M,) bool, which tokens of the images among them there are.
    """
    mask = None
    if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2:
        mask = attention_mask[:, -text.shape[1] :]
    # The first real token of the row; its padding, to the left, has the same or a smaller position.
    first = (
        text[:, :1] if mask is None else text.masked_fill(mask == 0, text.shape[1] + int(1e9)).amin(-1, keepdim=True)
    )
    start = first if delta is None else first + delta.to(text.device)
    layout = {"spatial_merge_size": merge, "start": start, "image_token_mask": image_token_mask}
    axes, _ = get_rope_index(text, types, grids[IMAGE], grids[VIDEO], mask, **layout)
    return torch.cat((text[None], axes))


def uncached_items(here: torch.Tensor, new_tokens: int, sizes: list[int], kind: int) -> list[bool]:
    """Which items belong to the last `new_tokens` tokens: those a cache does not hold yet.

    `here` marks the placeholders of one kind, (B, S), in the whole conversation or in its new part; `sizes` are the
    merged tokens of the items given, either all of them or only the new ones.
    """
    all_counts, new_counts = torch.stack((here.sum(-1), here[:, -new_tokens:].sum(-1))).tolist()
    if sum(sizes) != sum(all_counts):  # not all of them: then they must be exactly the new ones
        check_placeholders(new_counts, sizes, kind)
        return [True] * len(sizes)
    held = check_placeholders(all_counts, sizes, kind)
    new, item = [], 0
    for count, all_, fresh in zip(held, all_counts, new_counts, strict=True):
        before = all_ - fresh
        for size in sizes[item : item + count]:
            new.append(before <= 0)
            before -= size
        item += count
    return new
