"""M-RoPE positions: 8 rows of 4096 tokens with 40 media each (30 images, 5 videos of two frame groups; 64 tokens an
image or frame group), against Qwen3-VL's `get_rope_index`. Both give the same positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel

from arlow.positions import IMAGE, VIDEO, get_rope_index
from benchmarks.harness import Case
from benchmarks.peers import PEER
from benchmarks.settings import DEVICE


ROWS, LENGTH, IMAGES, VIDEOS, SIDE, STEP = 8, 4096, 30, 5, 16, 100  # STEP: tokens from one item to the next


def cases() -> Iterator[Case]:
    types = torch.zeros(ROWS, LENGTH, dtype=torch.long)
    for number in range(IMAGES + 2 * VIDEOS):
        start = number * STEP + 2
        types[:, start : start + SIDE * SIDE // 4] = IMAGE if number < IMAGES else VIDEO
    types = types.to(DEVICE)
    images = torch.tensor([[1, SIDE, SIDE]] * (ROWS * IMAGES), device=DEVICE)
    videos = torch.tensor([[2, SIDE, SIDE]] * (ROWS * VIDEOS), device=DEVICE)
    given = (torch.zeros_like(types), types, images, videos, torch.ones_like(types))
    # The peer's method reads nothing of the model but the merge size.
    peer: Any = SimpleNamespace(config=SimpleNamespace(vision_config=SimpleNamespace(spatial_merge_size=2)))
    peer.get_vision_position_ids = Qwen3VLModel.get_vision_position_ids.__get__(peer)

    for ours, theirs in zip(get_rope_index(*given), Qwen3VLModel.get_rope_index(peer, *given), strict=True):
        assert torch.equal(ours, theirs)
    yield Case(
        name=f"get_rope_index, {ROWS} x {LENGTH} tokens, {IMAGES + 2 * VIDEOS} media a row",
        arlow=lambda: get_rope_index(*given),
        peer=lambda: Qwen3VLModel.get_rope_index(peer, *given),
        peer_name=PEER,
        target=15.0,
    )
