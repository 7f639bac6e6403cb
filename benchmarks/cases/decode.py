"""Greedy decoding through `generate`, as a user calls it, against Qwen3-VL's decoder at the same shapes.

- 16 tokens of a chat that goes on from the cache of 512 tokens of text: batch 1 and batch 8; width
  1024, 8 layers, vocabulary 131,072. The limit is reading all weights once a step at the speed of a copy.
- 32 tokens after a short prompt with 28 layers of width 256 and a vocabulary of 1024: nothing but overhead.
- The first token of 8 prompts of 128 tokens.
- The static cache with the compiled step (CUDA graphs on a GPU), against Arlow as it is called without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers import CompileConfig, GenerationConfig

from benchmarks import limits
from benchmarks.harness import Case
from benchmarks.models import TEXT, models, text_flops, weight_bytes
from benchmarks.peers import PEER
from benchmarks.settings import DEVICE, asked, dtype, named, sized


THIN = {
    "vocab_size": 1024, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 28,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
}  # fmt: skip
NEW, PROMPT, CONTEXT = sized(16, 4), 16, sized(512, 32)  # tokens


def cases() -> Iterator[Case]:
    arlow, peer = models(dtype(), TEXT)
    for batch, target in ((1, 1.15), (8, 1.5)):
        name = f"{NEW} tokens after {CONTEXT}, batch {batch}"
        yield decoding(name, arlow, peer, batch, context=CONTEXT, prompt=1, target=asked(target, None))
    flops = sum(text_flops(arlow, tokens=128, logits=1).values()) * 8
    yield decoding(
        "first token, batch 8, 128 tokens before it", arlow, peer, 8, prompt=128, new=1, target=asked(1.2, None),
        limit=limits.products(flops, dtype()), limit_name="matrix product",
    )  # fmt: skip
    yield compiled_case(arlow)
    arlow, peer = models(dtype(), THIN)
    yield decoding(
        "32 tokens, 28 thin layers", arlow, peer, 1, new=2 * NEW, target=asked(1.6, None), limit=None, limit_name=""
    )


def decoding(
    name: str,
    arlow: Any,
    peer: Any,
    batch: int,
    *,
    target: float | None,
    context: int = 0,
    prompt: int = PROMPT,
    new: int = NEW,
    **limit: Any,
) -> Case:
    ours, theirs = (generating(model, batch, prompt, new, context=context) for model in (arlow, peer))
    assert ours().shape == theirs().shape == (batch, context + prompt + new)
    reading = {"limit": limits.copying(new * weight_bytes(arlow)), "limit_name": "reading the weights"}
    return Case(
        name=f"decoding, {named(dtype())}, {name}",
        arlow=ours,
        peer=theirs,
        peer_name=PEER,
        target=target,
        **{**reading, **limit},
    )


def compiled_case(arlow: Any) -> Case:
    options = CompileConfig(fullgraph=True)
    options._compile_all_devices = True  # by itself `generate` compiles on accelerators only
    ours = generating(arlow, 1, PROMPT, NEW, cache_implementation="static", compile_config=options)
    theirs = generating(arlow, 1, PROMPT, NEW)
    for _ in range(2):  # compiles, and records graphs
        assert ours().shape == theirs().shape
    return Case(
        name=f"decoding, {named(dtype())}, {NEW} tokens, batch 1, compiled static cache",
        arlow=ours,
        peer=theirs,
        peer_name="Arlow as it is called",
        target=asked(1.5, None),
        limit=limits.copying(NEW * weight_bytes(arlow)),
        limit_name="reading the weights",
        limit_target=asked(None, 0.7),
    )


def generating(
    model: Any, batch: int, prompt: int, new: int, *, context: int = 0, **options: Any
) -> Callable[[], torch.Tensor]:
    """`new` tokens after a prompt, before which `context` tokens lie in a cache that every call finds as it was."""
    ids = torch.randint(8, model.config.text_config.vocab_size, (batch, context + prompt), device=DEVICE)
    config = GenerationConfig(max_new_tokens=new, do_sample=False, pad_token_id=0, **options)
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "generation_config": config}
    if not context:
        return lambda: model.generate(**given)
    with torch.no_grad():
        cache = model(ids[:, :context], use_cache=True, logits_to_keep=1).past_key_values

    def go_on() -> torch.Tensor:
        found = model.generate(**given, past_key_values=cache)
        cache.crop(context - cache.get_seq_length())  # a negative number: how many to remove
        return found

    return go_on
