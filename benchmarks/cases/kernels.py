"""Attention kernels beside one another, on a GPU only: flash and flex attention against SDPA, on the vision tower with
16 images of 448x448 and on a prefill of 2048 tokens, Arlow at its published sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from arlow.attention import FLASH, available_kernels
from benchmarks.harness import Case
from benchmarks.models import PATCH, TEXT, VISION, arlow_model, new_tower
from benchmarks.settings import DEVICE, dtype, named


def cases() -> Iterator[Case]:
    if DEVICE.type != "cuda":
        return
    has_flash = dtype() != torch.float32 and available_kernels()
    kernels = [*([FLASH] if has_flash else []), "flex_attention"]
    for make in (vision, prefill):
        for kernel in kernels:
            yield Case(
                name=f"{kernel}, {named(dtype())}, {make.__name__}",
                arlow=make(kernel),
                peer=make("sdpa"),
                peer_name="Arlow with SDPA",
            )


def vision(kernel: str) -> Callable[[], Any]:
    tower = new_tower(dtype(), blocks=VISION["depth"])
    tower.set_attn_implementation(kernel)
    grid = torch.tensor([[1, 32, 32]] * 16, device=DEVICE)
    pixels = torch.randn(16 * 32 * 32, 3 * PATCH**2, device=DEVICE)
    return without_gradients(lambda: tower(pixels, grid_thw=grid))


def prefill(kernel: str) -> Callable[[], Any]:
    model = arlow_model(dtype(), TEXT)
    model.set_attn_implementation(kernel)
    ids = torch.randint(8, TEXT["vocab_size"], (1, 2048), device=DEVICE)
    return without_gradients(lambda: model(ids, logits_to_keep=1))


def without_gradients(work: Callable[[], Any]) -> Callable[[], Any]:
    return torch.no_grad()(work)
