"""Text decoder: prefill of 1024 tokens and greedy decoding, random weights, against LLaMA at the same shapes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from arlow import ArlowForCausalLM, ArlowTextConfig
from benchmarks.harness import Case


SHAPES = {
    "vocab_size": 32000, "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 12,
    "num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 4096,
}  # fmt: skip


def cases() -> Iterator[Case]:
    torch.manual_seed(0)
    arlow = ArlowForCausalLM(ArlowTextConfig(**SHAPES)).bfloat16().eval()
    peer = LlamaForCausalLM(LlamaConfig(**SHAPES)).bfloat16().eval()
    ids = torch.randint(0, 32000, (1, 1024))

    def prefill(model: torch.nn.Module) -> None:
        with torch.no_grad():
            model(ids, logits_to_keep=1)

    def decode(model: torch.nn.Module) -> None:
        model.generate(ids[:, :64], max_new_tokens=32, min_new_tokens=32, do_sample=False, pad_token_id=0)

    for name, work in (("prefill, 1024 tokens", prefill), ("32 tokens by generate, batch 1", decode)):
        yield Case(
            name=f"decoder, bf16, {name}",
            arlow=lambda work=work: work(arlow),
            peer=lambda work=work: work(peer),
            peer_name="LLaMA",
        )
