"""The loss by itself: 1024 tokens of width 512 over 131,072 words with all gradients, in chunks, against cross-entropy
over all logits. Memory growth is that of a first call, gradients included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn

from arlow.linear_loss import LanguageHead
from benchmarks.harness import Case
from benchmarks.settings import DEVICE, sized


TOKENS, WIDTH, WORDS = sized((1024, 512, 131_072), (64, 32, 1024))


def cases() -> Iterator[Case]:
    for dtype in ("bfloat16", "float32"):
        yield Case(
            name=f"loss, {dtype}, {TOKENS} tokens over {WORDS:,} words",
            arlow=prepare("arlow", dtype),
            peer=prepare("peer", dtype),
            peer_name="all logits",
            growth=(__name__, dtype),
        )


def prepare(side: str, dtype: str) -> Callable[[], None]:
    """Forward and backward of a head of random weights, repeatable."""
    torch.manual_seed(0)
    loss = LanguageHead.__call__ if side == "arlow" else plain
    head = LanguageHead(WIDTH, WORDS, bias=False).to(DEVICE, getattr(torch, dtype))
    states = torch.randn(TOKENS, WIDTH, dtype=head.weight.dtype, device=DEVICE, requires_grad=True)
    labels = torch.randint(WORDS, (TOKENS,), device=DEVICE)

    def work() -> None:
        head.weight.grad = states.grad = None
        (loss(head, states, labels) / TOKENS).backward()

    return work


def plain(head: LanguageHead, states: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(head(states).float(), labels, reduction="sum")
