"""Small text models and inputs that the tests of the decoder share."""

from __future__ import annotations

import copy
from typing import Any

import torch

from arlow import ArlowForCausalLM, ArlowTextConfig


FULL, SLIDING = "full_attention", "sliding_attention"
WINDOW = 5
VOCAB = 64


def text_config(**overrides: Any) -> ArlowTextConfig:
    """Two small layers; wide initialisation, so that differences show."""
    sizes = {
        "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.2,
    }  # fmt: skip
    return ArlowTextConfig(**{**sizes, **overrides})


def mixed_windows(**overrides: Any) -> ArlowTextConfig:
    """One sliding and one full layer."""
    return text_config(layer_types=[SLIDING, FULL], sliding_window=WINDOW, **overrides)


def cross_config(**overrides: Any) -> ArlowTextConfig:
    """Cross-attention in both layers, over states of width 24."""
    return text_config(use_cross_attention=True, encoder_hidden_size=24, **overrides)


def causal_lm(config: ArlowTextConfig | None = None, *, seed: int = 0, backend: str = "sdpa") -> ArlowForCausalLM:
    """A float32 model in evaluation mode, the same for the same seed."""
    torch.manual_seed(seed)
    model = ArlowForCausalLM(copy.deepcopy(config) or text_config()).eval()  # models keep the config they are given
    model.set_attn_implementation(backend)
    return model


def trained_gates(model: torch.nn.Module) -> torch.nn.Module:
    """Open every cross-attention gate, as training would."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("cross_attn.gate"):
                parameter.fill_(0.7)
    return model


def token_ids(*shape: int, seed: int = 0) -> torch.Tensor:
    """Random ids (never 0, which tests use as padding)."""
    return torch.randint(1, VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def padded(rows: list[torch.Tensor], side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows (S_i,) as one batch (B, S) with zeros on one side, and its mask."""
    width = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        where = slice(width - len(row), None) if side == "left" else slice(len(row))
        ids[number, where], mask[number, where] = row, 1
    return ids, mask


def packed(rows: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows (S_i,) one after the other (1, T), and positions that restart (1, T)."""
    return torch.cat(rows)[None], torch.cat([torch.arange(len(row)) for row in rows])[None]


def close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)
