"""Text prefill: 2048 tokens, logits of the last one, against Qwen3-VL's decoder at the same shapes (width
1024, 8 layers, vocabulary 131,072). Small decoders with copied weights give the same logits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from benchmarks import limits
from benchmarks.harness import Case
from benchmarks.models import TEXT, models, text_flops
from benchmarks.peers import PEER
from benchmarks.settings import DEVICE, asked, dtype, named, sized


TOKENS = sized(2048, 64)


def cases() -> Iterator[Case]:
    arlow, peer = models(dtype(), TEXT)
    ids = torch.randint(8, TEXT["vocab_size"], (1, TOKENS), device=DEVICE)

    def prefill(model: Any) -> Any:
        with torch.no_grad():
            return model(ids, logits_to_keep=1)

    assert prefill(arlow).logits.shape == prefill(peer).logits.shape
    yield Case(
        name=f"prefill, {named(dtype())}, {TOKENS} tokens",
        arlow=lambda: prefill(arlow),
        peer=lambda: prefill(peer),
        peer_name=PEER,
        target=asked(1.2, 1.1),
        limit=limits.products(sum(text_flops(arlow, tokens=TOKENS, logits=1).values()), dtype()),
        limit_name="matrix product",
    )
