"""Rotary position embeddings: positions in, cosines and sines out, queries and keys turned by them.

Sizes: B batch, S sequence, H heads, D head_dim, N packed patches. Rotation pairs dimension i with i + D/2, the layout
of LLaMA in Transformers. Angles are computed in float32 whatever the model's dtype.

Sources: RoPE, arXiv 2104.09864; YaRN, 2309.00071; LongRoPE, 2402.13753; M-RoPE, 2409.12191; its interleaved form,
Qwen3-VL.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from .configuration_arlow import ArlowTextConfig, ArlowVisionConfig, default_sections
from .earlier_config import UNPAIRED_FREQUENCIES
from .positions import sequence_lengths


def apply_rotary_pos_emb(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, unsqueeze_dim: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn queries and keys by their positions.

    Args:
        q: (B, H, S, D), or (B, S, H, D) with `unsqueeze_dim=2`.
        k: the same with the key heads.
        cos, sin: (B, S, D), as `ArlowRotaryEmbedding` gives them.
        unsqueeze_dim: the axis of the heads.

    Returns:
        The rotated queries and keys, shapes and dtypes unchanged.
    """
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    return rotate(q, cos, sin), rotate(k, cos, sin)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn `x` (..., D) by angles given as `cos`, `sin` (..., D)."""
    (first, second), (sin1, sin2) = x.chunk(2, dim=-1), sin.chunk(2, dim=-1)
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        cos1, cos2 = cos.chunk(2, dim=-1)
        return torch.cat((first * cos1 - second * sin1, second * cos2 + first * sin2), dim=-1)
    turned = x * cos  # the rest is added in place: no halves, no sums in between
    half1, half2 = turned.chunk(2, dim=-1)
    half1.addcmul_(second, sin1, value=-1)
    half2.addcmul_(first, sin2)
    return turned


def axis_of_pairs(sections: Sequence[int], pairs: int) -> torch.Tensor:
    """Which axis (0 t, 1 h, 2 w) each of the `pairs` rotary pairs reads: h at 1, 4, 7, ... and w at 2, 5, 8, ... as
    far as their sections reach, t elsewhere. Returns (pairs,) int64."""
    return torch.tensor([index % 3 if index < 3 * sections[index % 3] else 0 for index in range(pairs)])


class RotaryTables(nn.Module):
    """A module whose only tensors are constants computed from its config.

    They are non-persistent buffers. Transformers builds models on the meta device and leaves such buffers
    uninitialised, and `.half()` would round them: `refill` and `_apply` bring the exact values back.
    """

    def _register_tables(self) -> None:
        for name, table in self.tables().items():
            self.register_buffer(name, table, persistent=False)

    def tables(self) -> dict[str, torch.Tensor]:
        raise NotImplementedError

    def refill(self) -> None:
        for name, table in self.tables().items():
            init.copy_(getattr(self, name), table)

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        for name, table in self.tables().items():
            setattr(self, name, table.to(getattr(self, name).device))
        return self


class ArlowRotaryEmbedding(RotaryTables):
    """Cosines and sines for the text decoder, for every `rope_type` of Transformers.

    `dynamic` and `longrope` depend on the length of the sequence. Nothing is remembered between calls: each sequence
    uses its own largest position, so a row of a batch, or a packed sequence, gets what it gets alone.
    """

    def __init__(self, config: ArlowTextConfig, device: torch.device | None = None) -> None:
        super().__init__()
        self.config = config
        self.rope_type = config.rope_parameters["rope_type"]
        self.attention_scaling = 1.0  # factor on cosines and sines: YaRN and LongRoPE set it
        self._register_tables()
        if device is not None:
            self.to(device)

    def tables(self) -> dict[str, torch.Tensor]:
        config, pairs = self.config, self.config.head_dim // 2
        sections = config.mrope_sections or default_sections(config.head_dim)
        tables = {"pair_axis": axis_of_pairs(sections, pairs)}
        element = torch.arange(2 * pairs)
        if config.rope_parameters.get(UNPAIRED_FREQUENCIES):  # even elements of a head came first, then odd ones
            element = element.view(pairs, 2).T.flatten()
        tables["angle_of_element"] = element % pairs
        if self.rope_type == "default":
            tables["inv_freq"] = inverse_frequencies(config.rope_parameters["rope_theta"], config.head_dim)
        else:
            tables["inv_freq"], self.attention_scaling = ROPE_INIT_FUNCTIONS[self.rope_type](config)
        if self.rope_type == "longrope":
            limit = config.rope_parameters["original_max_position_embeddings"]
            tables["long_inv_freq"] = ROPE_INIT_FUNCTIONS["longrope"](config, seq_len=limit + 1)[0]
        return tables

    @torch.no_grad()
    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            x: any tensor of the wanted dtype and device.
            position_ids: (B, S), or (3, B, S) with the axes t, h, w.

        Returns:
            cos, sin: (B, S, D) each, in the dtype of `x`.
        """
        inv_freq = self._frequencies(position_ids)  # [D/2] or [B, S, D/2]
        if position_ids.ndim == 3:
            positions = position_ids[self.pair_axis].permute(1, 2, 0)  # [B, S, D/2]
        else:
            positions = position_ids[..., None]  # [B, S, 1]
        angles = positions.float() * inv_freq  # [B, S, D/2]
        angles = angles[..., self.angle_of_element]  # [B, S, D]
        cos, sin = angles.cos() * self.attention_scaling, angles.sin() * self.attention_scaling
        return cos.to(x.dtype), sin.to(x.dtype)

    def _frequencies(self, position_ids: torch.Tensor) -> torch.Tensor:
        """Inverse frequencies (D/2,), or (B, S, D/2) where they depend on the length of each token's sequence."""
        if self.rope_type == "dynamic":
            return self._dynamic(sequence_lengths(position_ids))
        if self.rope_type == "longrope":
            limit = self.config.rope_parameters["original_max_position_embeddings"]
            long = (sequence_lengths(position_ids) > limit)[..., None]
            return torch.where(long, self.long_inv_freq, self.inv_freq)
        return self.inv_freq

    def _dynamic(self, lengths: torch.Tensor) -> torch.Tensor:
        """NTK-aware scaling: beyond the trained length the base grows with the lengths (B, S)."""
        rope, dim = self.config.rope_parameters, self.config.head_dim
        trained, factor = self.config.max_position_embeddings, rope["factor"]
        growth = factor * lengths.clamp(min=trained).float() / trained - (factor - 1)
        base = rope["rope_theta"] * growth ** (dim / (dim - 2))
        exponent = torch.arange(0, dim, 2, device=lengths.device).float() / dim
        return 1.0 / base[..., None] ** exponent  # [B, S, D/2]


class VisionRotary(RotaryTables):
    """Cosines and sines for packed patches at (frame group, row, column)."""

    def __init__(self, config: ArlowVisionConfig) -> None:
        super().__init__()
        self.config = config
        self._register_tables()

    def tables(self) -> dict[str, torch.Tensor]:
        head_dim = self.config.head_dim
        sections = self.config.mrope_sections or default_sections(head_dim)
        return {
            "inv_freq": inverse_frequencies(self.config.rope_theta, head_dim),
            "pair_axis": axis_of_pairs(sections, head_dim // 2),
        }

    @torch.no_grad()
    def forward(self, coordinates: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """`coordinates` (N, 3) int64, in patch units -> cos, sin (N, D) in `dtype`."""
        angles = coordinates[:, self.pair_axis].float() * self.inv_freq  # [N, D/2]
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos().to(dtype), angles.sin().to(dtype)


def place_embedding(places: torch.Tensor, width: int) -> torch.Tensor:
    """Sines and cosines of places in a frame (arXiv 2111.06377), of a quarter of a turn up to four turns across it.

    `places` (N, 2) in 0..1 -> (N, width) float32: the sines of both axes, then the cosines.
    """
    frequencies = 2 ** torch.linspace(-2, 2, max(width // 4, 1), device=places.device)  # turns
    angles = (2 * torch.pi * places[..., None] * frequencies).flatten(1)  # [N, width / 2]
    embedding = torch.cat((angles.sin(), angles.cos()), dim=1)
    return nn.functional.pad(embedding, (0, width - embedding.shape[1]))


def inverse_frequencies(theta: float, dim: int) -> torch.Tensor:
    """theta^(-2k/dim) for k = 0 .. dim/2 - 1, float32."""
    return 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
