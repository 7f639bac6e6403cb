"""Deformable attention at 32x32, 64x64 and 96x96 patches, against the same tower with it off, where all patches attend
to one another; width 1024, 2 blocks, the default window (a quarter of a side).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.harness import Case
from benchmarks.models import PATCH, new_tower
from benchmarks.settings import DEVICE, dtype, named, sized


TIMES = {32: 1.15, 64: 0.8, 96: 0.6}  # patches a side -> time asked for, over the time without
BLOCKS = 2
SIDES = sized(tuple(TIMES), (32,))


def cases() -> Iterator[Case]:
    on = new_tower(dtype(), blocks=BLOCKS, use_deformable_attention=True)
    off = new_tower(dtype(), blocks=BLOCKS)
    off.load_state_dict(on.state_dict())
    for side in SIDES:
        grid = torch.tensor([[1, side, side]], device=DEVICE)
        pixels = torch.randn(side * side, 3 * PATCH**2, device=DEVICE)

        def encode(model: Any, pixels: torch.Tensor = pixels, grid: torch.Tensor = grid) -> Any:
            with torch.no_grad():
                return model(pixels, grid_thw=grid)

        assert encode(on).pooler_output.shape == encode(off).pooler_output.shape
        yield Case(
            name=f"deformable attention, {named(dtype())}, {side}x{side} patches",
            arlow=lambda encode=encode: encode(on),
            peer=lambda encode=encode: encode(off),
            peer_name="Arlow without it",
            target=1 / TIMES[side],
            note=f"asked for: at most {TIMES[side]}x the time",
        )
