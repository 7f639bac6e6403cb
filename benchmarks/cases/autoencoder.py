"""The encoder's part of a step of masked autoencoding, forward and backward: 16 images of 224x224 (16 x 16 patches of
14), of which a quarter is visible, against encoding all patches; width 1024, 4 blocks, nothing merged.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.harness import Case
from benchmarks.models import PATCH, VISION, new_tower
from benchmarks.settings import DEVICE, dtype, named, sized


IMAGES, SIDE, MASKED = sized(16, 2), 16, 0.75


def cases() -> Iterator[Case]:
    tower = new_tower(dtype(), blocks=VISION["depth"]).train()
    patches = IMAGES * SIDE * SIDE
    pixels = torch.randn(patches, 3 * PATCH**2, device=DEVICE)
    grid = torch.tensor([[1, SIDE, SIDE]] * IMAGES, device=DEVICE)
    kept = round(SIDE * SIDE * (1 - MASKED))
    places = torch.rand(IMAGES, SIDE * SIDE, device=DEVICE).argsort(dim=1)[:, :kept].sort(dim=1).values
    visible = (places + SIDE * SIDE * torch.arange(IMAGES, device=DEVICE)[:, None]).flatten()

    def step(rows: torch.Tensor) -> torch.Tensor:
        tower.zero_grad(set_to_none=True)
        states = tower(pixels, grid, visible=rows).last_hidden_state
        states.float().square().mean().backward()
        return states

    everything = torch.arange(patches, device=DEVICE)
    assert len(step(visible)) == kept * IMAGES and len(step(everything)) == patches
    yield Case(
        name=f"masked autoencoding, encoder step, {named(dtype())}, {MASKED:.0%} masked",
        arlow=lambda: step(visible),
        peer=lambda: step(everything),
        peer_name="encoding everything",
        target=1 / 0.35,
        note="asked for: at most 0.35x the time",
    )
