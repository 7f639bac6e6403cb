"""Vision tower against Qwen3-VL's: one image of 1024x1024 (74 x 74 patches of 14, as the processors resize it), 16 of
448x448, a video of 8 frame groups of 336x336; width 1024, 4 blocks, one DeepStack tap, and the large image in
float32, too. As in the peer, the patches of a frame group attend to one another alone. The peer's rows hold a still
patch twice, as its processor makes them. The towers differ in their position embeddings: only shapes are compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from arlow.estimate import Medium, forward_flops
from benchmarks import limits
from benchmarks.harness import Case
from benchmarks.models import PATCH, TEXT, towers
from benchmarks.peers import PEER
from benchmarks.settings import DEVICE, asked, dtype, named, sized


# name -> items, frame groups, patches a side
SHAPES = sized(
    {"1 of 1024x1024": (1, 1, 74), "16 of 448x448": (16, 1, 32), "8 frame groups of 336x336": (1, 8, 24)},
    {"2 of 56x56": (2, 1, 4), "2 frame groups of 56x56": (1, 2, 4)},
)
LARGEST = next(iter(SHAPES))


def cases() -> Iterator[Case]:
    for each in dict.fromkeys([dtype(), torch.float32]):
        arlow, peer = towers(each, out=TEXT["hidden_size"], temporal_window_size=1)
        for name, (items, groups, side) in SHAPES.items():
            if name == LARGEST or each == dtype():
                target = 1.15 if each == torch.float32 else 1.45 if name == LARGEST else 1.2
                yield tower_case(f"{named(each)}, {name}", arlow, peer, items, groups, side, target)


def tower_case(name: str, arlow: Any, peer: Any, items: int, groups: int, side: int, target: float) -> Case:
    grid = torch.tensor([[groups, side, side]] * items, device=DEVICE)
    rows = torch.randn(items * groups * side * side, 3, 1 if groups == 1 else 2, PATCH**2, device=DEVICE)
    ours, theirs = rows.flatten(1), rows.expand(-1, -1, 2, -1).flatten(1)

    def encode(model: Any, pixels: torch.Tensor) -> Any:
        with torch.no_grad():
            return model(pixels, grid_thw=grid)

    assert encode(arlow, ours).pooler_output.shape == encode(peer, theirs).pooler_output.shape
    medium = Medium(groups, side * side, still=groups == 1)
    flops = sum(forward_flops(arlow.config, media=[medium] * items).values())
    return Case(
        name=f"vision tower, {name}",
        arlow=lambda: encode(arlow, ours),
        peer=lambda: encode(peer, theirs),
        peer_name=PEER,
        target=asked(target, 1.1),
        limit=limits.products(flops, arlow.dtype),
        limit_name="matrix product",
    )
