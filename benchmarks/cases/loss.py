"""Loss of 1024 tokens over 131,072 words with its gradients, in chunks, against cross-entropy over all logits; the
peak memory of each, taken in a process of its own, stands in the names."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable, Iterator

import torch
from torch import nn

from arlow.linear_loss import LanguageHead
from benchmarks.harness import Case


TOKENS, WIDTH, WORDS = 1024, 512, 131_072


def plain(head: LanguageHead, states: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(head(states).float(), labels, reduction="sum")


def step(loss: Callable, dtype: torch.dtype) -> Callable[[], None]:
    """Forward and backward of a head of random weights, repeatable."""
    torch.manual_seed(0)
    head = LanguageHead(WIDTH, WORDS, bias=False).to(dtype)
    states = torch.randn(TOKENS, WIDTH, dtype=dtype, requires_grad=True)
    labels = torch.randint(WORDS, (TOKENS,))

    def work() -> None:
        head.weight.grad = states.grad = None
        (loss(head, states, labels) / TOKENS).backward()

    return work


def cases() -> Iterator[Case]:
    for dtype in (torch.bfloat16, torch.float32):
        name = str(dtype).removeprefix("torch.")
        yield Case(
            name=f"loss, {name}, {TOKENS} tokens over {WORDS} words, {peak_mebibytes('chunked', name)} MiB",
            arlow=step(LanguageHead.__call__, dtype),
            peer=step(plain, dtype),
            peer_name=f"all logits, {peak_mebibytes('plain', name)} MiB",
        )


def peak_mebibytes(way: str, dtype: str) -> int:
    """What one step takes beyond the weights, in a fresh process."""
    code = f"from benchmarks.cases import loss; loss.print_peak({way!r}, {dtype!r})"
    return int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


def print_peak(way: str, dtype: str) -> None:
    torch.set_num_threads(1)
    work = step(plain if way == "plain" else LanguageHead.__call__, getattr(torch, dtype))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    work()
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
