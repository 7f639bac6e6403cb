"""M-RoPE positions: 8 rows of 4096 tokens with 40 images each, against Qwen3-VL's `get_rope_index`."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import torch
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel

from arlow.positions import get_rope_index
from benchmarks.harness import Case


def cases() -> Iterator[Case]:
    rows, length, images, side = 8, 4096, 40, 16
    types = torch.zeros(rows, length, dtype=torch.long)
    for i in range(images):
        types[:, i * 100 + 2 : i * 100 + 2 + side * side // 4] = 1
    grids = torch.tensor([[1, side, side]] * (rows * images))
    ids, mask = torch.zeros_like(types), torch.ones_like(types)
    # The peer's method reads nothing of the model but the merge size.
    peer = SimpleNamespace(config=SimpleNamespace(vision_config=SimpleNamespace(spatial_merge_size=2)))
    peer.get_vision_position_ids = Qwen3VLModel.get_vision_position_ids.__get__(peer)
    yield Case(
        name="positions, 8 x 4096 tokens, 40 images a row",
        arlow=lambda: get_rope_index(ids, types, grids, None, mask),
        peer=lambda: Qwen3VLModel.get_rope_index(peer, ids, types, grids, None, mask),
        peer_name="Qwen3-VL",
    )
