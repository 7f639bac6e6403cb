"""What the machine can do at best, measured beside the work: each function returns a `limit` of a `Case`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .harness import milliseconds
from .settings import DEVICE, sized


SIDE = sized(2048, 256, cuda=8192)  # of the matrices of the product
COPIED = sized(256, 4, cuda=2048) * 2**20  # bytes
REPEATS = 5


def products(flops: float, dtype: torch.dtype) -> Callable[[], float]:
    """Milliseconds that `flops` operations take in a plain product of two matrices of `dtype`."""
    left, right = (torch.randn(SIDE, SIDE, device=DEVICE).to(dtype) for _ in range(2))
    out = torch.empty_like(left)
    return lambda: _each(lambda: torch.mm(left, right, out=out)) * flops / (2 * SIDE**3)


def copying(size: float) -> Callable[[], float]:
    """Milliseconds that reading `size` bytes takes at the speed of a copy, which reads and writes."""
    source = torch.zeros(COPIED, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    return lambda: _each(lambda: target.copy_(source)) * size / (2 * COPIED)


def alone(work: Callable[[], Any]) -> Callable[[], float]:
    """Milliseconds of a part of the work that nobody can leave out."""
    return lambda: milliseconds(work)


def _each(work: Callable[[], Any]) -> float:
    def repeated() -> None:
        for _ in range(REPEATS):
            work()

    return milliseconds(repeated) / REPEATS
