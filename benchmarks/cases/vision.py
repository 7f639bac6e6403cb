"""Vision tower: one image of 448x448 and a batch of 4, random weights, against Qwen3-VL's tower at the same shapes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

from arlow import ArlowVisionConfig, ArlowVLVisionModel
from benchmarks.harness import Case


def cases() -> Iterator[Case]:
    torch.manual_seed(0)
    taps = [2, 4, 6]
    arlow = ArlowVLVisionModel(
        ArlowVisionConfig(
            depth=8,
            embed_dim=512,
            hidden_size=1024,
            num_heads=8,
            mlp_ratio=4,
            patch_size=16,
            deepstack_visual_indexes=taps,
        )
    )
    peer = Qwen3VLVisionModel(
        Qwen3VLVisionConfig(
            depth=8,
            hidden_size=512,
            out_hidden_size=1024,
            num_heads=8,
            intermediate_size=2048,
            patch_size=16,
            deepstack_visual_indexes=taps,
        )
    )
    arlow, peer = arlow.bfloat16().eval(), peer.bfloat16().eval()
    for count in (1, 4):
        grid = torch.tensor([[1, 28, 28]] * count)
        still = torch.randn(count * 28 * 28, 3 * 16 * 16)
        doubled = still.view(-1, 3, 1, 256).expand(-1, -1, 2, -1).reshape(len(still), -1)

        def encode(model: torch.nn.Module, pixels: torch.Tensor, grid: torch.Tensor = grid) -> None:
            with torch.no_grad():
                model(pixels, grid_thw=grid)

        yield Case(
            name=f"vision tower, bf16, {count} of 448x448",
            arlow=lambda still=still, encode=encode: encode(arlow, still),
            peer=lambda doubled=doubled, encode=encode: encode(peer, doubled.bfloat16()),
            peer_name="Qwen3-VL",
        )
