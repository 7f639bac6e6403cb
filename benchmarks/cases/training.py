"""A training step, forward and backward: 2 rows of 1024 tokens, width 512, 8 layers, a vocabulary of
131,072 (on a GPU the published sizes), against Qwen3-VL's decoder at the same shapes. Small decoders with copied
weights give the same loss. Memory growth is that of a first step beyond the weights, gradients included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from arlow.estimate import training_flops
from benchmarks import limits
from benchmarks.harness import Case
from benchmarks.models import SMALL_TEXT, TEXT, arlow_model, check_same_decoder, peer_model, text_flops
from benchmarks.peers import PEER
from benchmarks.settings import DEVICE, asked, dtype, named, sized


ROWS, TOKENS = 2, sized(1024, 32)
NARROW = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8, "num_key_value_heads": 2}
SHAPE = sized({**TEXT, **NARROW}, SMALL_TEXT, cuda=TEXT)


def cases() -> Iterator[Case]:
    check_same_decoder()
    arlow = arlow_model(dtype(), SHAPE)
    parts = {name: ROWS * count for name, count in text_flops(arlow, tokens=TOKENS, logits=TOKENS).items()}
    yield Case(
        name=f"training step, {named(dtype())}, {ROWS} x {TOKENS} tokens, vocabulary {SHAPE['vocab_size']:,}",
        arlow=step(arlow),
        peer=prepare("peer"),
        peer_name=PEER,
        target=asked(1.25, 1.2),
        limit=limits.products(training_flops(parts), dtype()),
        limit_name="matrix product",
        growth=(__name__,),
        growth_target=asked(0.25, 0.6),
    )


def prepare(side: str) -> Callable[[], None]:
    """The step of one side."""
    return step((arlow_model if side == "arlow" else peer_model)(dtype(), SHAPE))


def step(model: torch.nn.Module) -> Callable[[], None]:
    model.train()
    ids = torch.randint(8, SHAPE["vocab_size"], (ROWS, TOKENS), device=DEVICE)

    def work() -> None:
        model.zero_grad(set_to_none=True)
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()

    return work
