"""M-RoPE positions: token types and grids in, three positions (t, h, w) per token out.

Sizes: B batch, S sequence. Text advances all three axes together. An image at position p has t = p, h = p + row,
w = p + column on the merged grid, and the next text token starts at p + max(rows, columns). Each frame group of a
video is laid out like an image of its own. Same values as Qwen3-VL's for the same layout (arXiv 2511.21631).

No Python loop runs over tokens, and the grids are read from the device once.
"""

from __future__ import annotations

from itertools import accumulate

import torch

from .errors import message
from .patches import kept_count


TEXT, IMAGE, VIDEO = 0, 1, 2
MODALITIES = {IMAGE: "image", VIDEO: "video"}


def get_rope_index(
    input_ids: torch.Tensor,
    mm_token_type_ids: torch.Tensor,
    image_grid_thw: torch.Tensor | None = None,
    video_grid_thw: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
    *,
    spatial_merge_size: int = 2,
    start: torch.Tensor | None = None,
    image_token_mask: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions of every token.

    Args:
        input_ids: (B, S); only its shape, dtype and device are used.
        mm_token_type_ids: (B, S): 0 text, 1 image, 2 video.
        image_grid_thw: (images, 3), patches along t, h, w, in the order of the placeholders.
        video_grid_thw: (videos, 3), the same for videos; t counts frame groups.
        attention_mask: (B, S), 1 where a token is real. Padding gets position 0.
        spatial_merge_size: patches per side of a merged token.
        start: (B, 1), the position of each row's first token; default 0.
        image_token_mask: (M,) bool, which merged tokens of all images have placeholders; default: all. Each keeps its
            own row and column.

    Returns:
        positions (3, B, S), and deltas (B, 1): the largest position plus 1 minus the number of real tokens.

    Raises:
        ValueError: the placeholders of a row and the grids disagree; names the row and both counts.
    """
    device = input_ids.device
    real = torch.ones_like(mm_token_type_ids, dtype=torch.bool)
    if attention_mask is not None:
        real = attention_mask.to(device).bool()
    types = torch.where(real, mm_token_type_ids.to(device), -1)

    masks = _placeholders(types)
    counts = _count(masks)
    # In 32 bits: half the memory to go through, and integers of 64 divide slowly on a CPU.
    advance = (types == TEXT).int()  # how far the position moves on after each token
    offsets = torch.zeros(2, *types.shape, dtype=torch.int, device=device)  # row and column within an item
    for kind, grids in ((IMAGE, image_grid_thw), (VIDEO, video_grid_thw)):
        items = merged_grids(grids, spatial_merge_size)
        sizes = [groups * rows * columns for groups, rows, columns in items]
        kept = image_token_mask if kind == IMAGE else None
        if kept is not None:
            sizes = [int(part.sum()) for part in kept.cpu().split(sizes)]
        check_placeholders(counts[kind], sizes, kind)
        if items:
            frames = [(rows, columns) for groups, rows, columns in items for _ in range(groups)]
            tokens = _item_tokens(frames, device, kept)
            advance.masked_scatter_(masks[kind], tokens[0])
            offsets.masked_scatter_(masks[kind], tokens[1:])

    base = advance.cumsum(-1, dtype=torch.int) - advance  # exclusive: where each token, or its whole item, starts
    if start is not None:
        base = base + start.to(base)
    base = base.masked_fill(~real, 0)
    positions = torch.cat((base[None], base + offsets))  # [3, B, S]
    deltas = positions.amax(dim=(0, 2)) + 1 - real.sum(-1)
    return positions.to(input_ids.dtype), deltas[:, None].to(input_ids.dtype)


def merged_grids(grids: torch.Tensor | None, merge: int) -> list[tuple[int, int, int]]:
    """(frame groups, rows, columns) of every item in merged tokens."""
    return [] if grids is None else [(t, h // merge, w // merge) for t, h, w in grids.tolist()]


def item_sizes(grids: torch.Tensor | None, merge: int, ratio: float = 0.0) -> list[int]:
    """Tokens of every image or video that reach the decoder. `ratio`: of images that are pruned."""
    items = merged_grids(grids, merge)
    return [t * kept_count(h, w, ratio) if ratio else t * h * w for t, h, w in items]


def on_host(grids: torch.Tensor | None) -> torch.Tensor | None:
    """Grids are read as Python numbers in several places: fetched from the device once, they cost one wait."""
    return None if grids is None else grids.cpu()


def _item_tokens(sides: list[tuple[int, int]], device: torch.device, kept: torch.Tensor | None = None) -> torch.Tensor:
    """For the tokens of all images and frame groups in order, or those `kept` (M,): advance, row, column (3, tokens).
    The last token of each has the advance."""
    rows, columns = torch.tensor(sides, dtype=torch.int, device=device).unbind(-1)
    sizes = rows * columns
    total = sum(h * w for h, w in sides)
    item = torch.repeat_interleave(sizes, output_size=total)
    ends = sizes.cumsum(0)
    starts = (ends - sizes).int()
    index = torch.arange(total, dtype=torch.int, device=device) - starts[item]  # within the item
    if kept is not None:
        item, index = item[kept], index[kept]
        ends = torch.bincount(item, minlength=len(sides)).cumsum(0)
    advance = torch.zeros_like(index)
    advance[ends - 1] = torch.maximum(rows, columns)
    width = columns[item]
    row = index // width  # the column does without a division
    return torch.stack((advance, row, index - row * width))


def count_placeholders(types: torch.Tensor) -> dict[int, list[int]]:
    """Image and video placeholders of each row of `types` (B, S): one look at the device."""
    return _count(_placeholders(types))


def _placeholders(types: torch.Tensor) -> dict[int, torch.Tensor]:
    """Where `types` (B, S) has placeholders, by their type: (B, S) bool."""
    return {kind: types == kind for kind in MODALITIES}


def _count(masks: dict[int, torch.Tensor]) -> dict[int, list[int]]:
    """How many placeholders each row has, by their type."""
    return dict(zip(masks, torch.stack([mask.sum(-1) for mask in masks.values()]).tolist(), strict=True))


def check_placeholders(counts: list[int], sizes: list[int], kind: int) -> list[int]:
    """Match rows with items: every row must hold whole items only.

    Args:
        counts: placeholders of each row.
        sizes: merged tokens of each item, in order over the whole batch.
        kind: `IMAGE` or `VIDEO`.

    Returns:
        How many items each row holds.

    Raises:
        ValueError: naming the first row that does not fit.
    """
    name = MODALITIES[kind]
    ends = list(accumulate(sizes))
    held, first, used = [], 0, 0
    for row, count in enumerate(counts):
        used += count
        last = first
        while last < len(ends) and ends[last] <= used:
            last += 1
        if (ends[last - 1] if last else 0) != used:
            fits = ends[last - 1] - (used - count) if last > first else 0
            problem = f"row {row} has {count} {name} placeholder tokens, but whole {name} features for it make {fits}"
            raise ValueError(message(f"{name}_grid_thw", len(sizes), problem, "see the processor's output"))
        held.append(last - first)
        first = last
    if first != len(sizes):
        problem = f"{len(sizes)} {name} items were given, but the text has placeholders for only {first}"
        raise ValueError(message(f"{name}_grid_thw", len(sizes), problem))
    return held


def sequence_ids(position_ids: torch.Tensor, real: torch.Tensor | None = None) -> torch.Tensor:
    """Which packed sequence each token belongs to (B, S), from positions that restart.

    `position_ids` is (B, S), (4, B, S) with the text row first, or (3, B, S). A text position that does not grow
    starts a new sequence. On the axes alone an image repeats its t, so there a sequence starts where t falls back or
    all three axes are zero. `real` (B, S) leaves padding out: a token is compared with the real one before it.
    """
    rows = position_ids if position_ids.ndim == 3 else position_ids[None]
    rows = rows if len(rows) == 3 else rows[:1]  # [3 or 1, B, S]
    if real is not None:
        rows = rows.expand(-1, len(real), -1)
    index = torch.arange(rows.shape[-1], device=rows.device).expand(rows.shape[1:])  # [B, S]
    if real is not None:
        index = torch.where(real, index, -1).cummax(dim=-1).values
    before = torch.nn.functional.pad(index[:, :-1], (1, 0), value=-1)  # the real token before each; -1: none
    earlier = rows.gather(-1, before.clamp(min=0).expand_as(rows))
    restart = (rows[0] < earlier[0]) | (rows == 0).all(dim=0) if len(rows) == 3 else rows[0] <= earlier[0]
    restart = restart & (before >= 0)
    if real is not None:
        restart = restart & real
    return restart.long().cumsum(-1)


def sequence_lengths(position_ids: torch.Tensor) -> torch.Tensor:
    """One more than the largest position of each token's sequence, (B, S); shapes as for `sequence_ids`."""
    ids = sequence_ids(position_ids)
    longest = position_ids.amax(dim=0) if position_ids.ndim == 3 else position_ids  # [B, S]
    return torch.zeros_like(longest).scatter_reduce(-1, ids, longest + 1, reduce="amax").gather(-1, ids)
