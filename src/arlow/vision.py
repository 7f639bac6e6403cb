"""The vision encoder: packed patch rows and grids in, one feature per merged token out.

Sizes: N patches of all media, E embed_dim, H heads, D head size, M merged tokens, W text width; C channels, T frames
per group, P patch side. The layout is [N, E] everywhere: media lie one after the other without padding, and within
one medium patches are ordered by frame group, then by merge block (as in Qwen2-VL).

Sources: ViT, arXiv 2010.11929; packing, NaViT 2307.06304; M-RoPE 2409.12191; DeepStack 2406.04334.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .checks import check_keywords
from .configuration_arlow import ArlowVisionConfig
from .rope import VisionRotary, place_embedding, rotate
from .segments import Grid, Layout, Media, attend_segments, is_traced, make_layout, patch_places, read_media
from .text import ArlowPreTrainedModel


@dataclass
class ArlowVisionOutput(BaseModelOutputWithPooling):
    """`last_hidden_state` (N, E) before merging; `pooler_output` (M, W), or from `get_image_features` one (M_i, W)
    tensor per item; `deepstack_features`: per tap the same as `pooler_output`, or `None` when there are no taps."""

    deepstack_features: list | None = None


class ArlowVLVisionModel(ArlowPreTrainedModel):
    """Encodes images and videos of any sizes together in one packed pass; each gets what it gets alone."""

    config: ArlowVisionConfig
    config_class = ArlowVisionConfig
    main_input_name = "pixel_values"
    input_modalities = ("image", "video")
    _can_record_outputs: dict = {}

    def __init__(self, config: ArlowVisionConfig) -> None:
        super().__init__(config)
        self.spatial_merge_size = config.spatial_merge_size
        self.patch_embed = ArlowPatchEmbed(config)
        if config.use_progressive_patches:
            self.progressive_proj = nn.Linear(config.embed_dim, config.embed_dim)
        self.rotary_emb = VisionRotary(config)
        self.blocks = nn.ModuleList(ArlowVisionBlock(config) for _ in range(config.depth))
        self.merger = ArlowPatchMerger(config)
        self.deepstack_mergers = nn.ModuleList(ArlowPatchMerger(config) for _ in config.deepstack_visual_indexes)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.patch_embed

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        grid_thw: torch.Tensor | None = None,
        pixel_values_videos: torch.Tensor | None = None,
        video_grid_thw: torch.Tensor | None = None,
        visible: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> ArlowVisionOutput:
        """
        Args:
            pixel_values: (patches, C*P*P), one still patch a row, or (patches, C*T*P*P).
            grid_thw: (items, 3) int64, patches along t, h, w of each item of `pixel_values`.
            pixel_values_videos: (patches, C*T*P*P), encoded in the same pass, after `pixel_values`.
            video_grid_thw: (videos, 3) int64.
            visible: (V,) int64, rising: encode these of all rows only, each at its place in the full grid, as if the
                others were not there (masked autoencoding). Then `last_hidden_state` is (V, E) and nothing is merged.

        Raises:
            ValueError: no pixels; a row width, grid or row count that does not fit, with both numbers.
        """
        check_keywords(kwargs, ArlowVLVisionModel.forward)
        # Averages of neighbours, and packs of which a part is seen, take the sizes as numbers.
        traced = is_traced() and visible is None and not self.config.use_progressive_patches
        media = read_media(self.config, pixel_values, grid_thw, pixel_values_videos, video_grid_thw, traced=traced)
        rows = media.rows if visible is None else select_rows(media.rows, visible)
        hidden_states = torch.cat([self.patch_embed(pixels) for pixels in rows])  # [N, E]
        if self.config.use_progressive_patches:
            coarse = coarse_embeddings(hidden_states, media.grids, self.config.spatial_merge_size, visible)
            hidden_states = hidden_states + self.progressive_proj(coarse)
        if self.config.use_absolute_positions:
            hidden_states = hidden_states + self._places(media, visible).to(hidden_states)

        layout = make_layout(
            self.config, self.rotary_emb, hidden_states, media.thw, media.grids, visible, traced=traced
        )
        taps: list[torch.Tensor] = []
        for i, block in enumerate(self.blocks):
            hidden_states = block(hidden_states, layout, **kwargs)
            if visible is None and i in self.config.deepstack_visual_indexes:
                taps.append(self.deepstack_mergers[len(taps)](hidden_states))
        return ArlowVisionOutput(
            last_hidden_state=hidden_states,
            pooler_output=self.merger(hidden_states) if visible is None else None,
            deepstack_features=taps or None,
        )

    def _places(self, media: Media, visible: torch.Tensor | None) -> torch.Tensor:
        """What tells every encoded patch its place in the frame: (N or V, E)."""
        thw = media.thw.to(media.rows[0].device)
        count = sum(rows.shape[0] for rows in media.rows)
        places = patch_places(thw, count, self.config.spatial_merge_size)
        return place_embedding(places if visible is None else places[visible], self.config.embed_dim)


def select_rows(rows: list[torch.Tensor], visible: torch.Tensor) -> list[torch.Tensor]:
    """The rows at `visible`, counted through all tensors of `rows`."""
    if len(rows) == 1:
        return [rows[0][visible]]
    first = len(rows[0])
    return [rows[0][visible[visible < first]], rows[1][visible[visible >= first] - first]]


def coarse_embeddings(
    embeddings: torch.Tensor, grids: list[Grid], merge: int, visible: torch.Tensor | None = None
) -> torch.Tensor:
    """Each frame's embeddings averaged 2x2 and resized back: what a patch twice the size would see. (N, E)

    Of a frame that is seen in parts, the averages are of the visible patches.
    """
    if visible is None:
        return _smooth(embeddings, grids, merge)
    count = sum(t * h * w for t, h, w in grids)
    full = embeddings.new_zeros(count, embeddings.shape[1]).index_copy(0, visible, embeddings)
    seen = embeddings.new_zeros(count, 1).index_fill(0, visible, 1)
    return _smooth(full, grids, merge)[visible] / _smooth(seen, grids, merge)[visible]


def _smooth(rows: torch.Tensor, grids: list[Grid], merge: int) -> torch.Tensor:
    """The frames of all items, (N, width) in packed order, averaged 2x2 and resized back."""
    width = rows.shape[1]
    parts: list[torch.Tensor] = []
    for (h, w), run in groupby(grids, key=lambda grid: (grid.h, grid.w)):
        frames = sum(grid.t for grid in run)
        start = sum(part.shape[0] for part in parts)
        part = rows[start : start + frames * h * w]
        blocks = part.view(frames, h // merge, w // merge, merge, merge, width)
        maps = blocks.permute(0, 5, 1, 3, 2, 4).reshape(frames, width, h, w)
        # Without even sides (merge 1) the last row or column is averaged over what is there.
        pooled = nn.functional.avg_pool2d(maps, 2, ceil_mode=True, count_include_pad=False)
        maps = nn.functional.interpolate(pooled, size=(h, w), mode="bilinear", align_corners=False)
        blocks = maps.view(frames, width, h // merge, merge, w // merge, merge).permute(0, 2, 4, 3, 5, 1)
        parts.append(blocks.reshape(-1, width))
    return torch.cat(parts)


class ArlowPatchEmbed(nn.Module):
    """Rows of pixels to embeddings."""

    def __init__(self, config: ArlowVisionConfig) -> None:
        super().__init__()
        kernel = (config.temporal_patch_size, config.patch_size, config.patch_size)
        self.proj = _RowProjection(config.in_channels, config.embed_dim, kernel_size=kernel, stride=kernel, bias=False)
        self.proj.config = config

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(patches, C*P*P), one still frame, or (patches, C*T*P*P) -> (patches, E). Rows are normalised floats, or
        uint8 samples, which are normalised here."""
        return self.proj(pixels)


class _RowProjection(nn.Conv3d):
    """A convolution whose stride is its kernel, as one matrix product over rows. It is initialised, stored and named
    like a convolution, and called as a module: offloading, hooks and adapters find it."""

    config: ArlowVisionConfig

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        if pixels.dtype == torch.uint8:
            pixels = normalised(pixels, self.config)
        flat = self.weight.flatten(1)  # [E, C*T*P*P]
        if pixels.shape[1] != flat.shape[1]:
            # A still row stands for T equal frames: the kernel summed over T gives the same.
            flat = self.weight.sum(dim=2).flatten(1)  # [E, C*P*P]
        return nn.functional.linear(pixels.to(flat.dtype), flat)


def normalised(samples: torch.Tensor, config: ArlowVisionConfig) -> torch.Tensor:
    """Rows (N, C*K) uint8 as the processor would have normalised them, float32. (Folded into a weight of 16 bits, mean
    and samples would cancel to less precision than the rows have.)"""
    mean, std = (
        torch.tensor(each, dtype=torch.float32, device=samples.device)
        .expand(config.in_channels)
        .repeat_interleave(samples.shape[1] // config.in_channels)
        for each in (config.image_mean, config.image_std)
    )
    return samples.float() * (1 / (255 * std)) - mean / std


class ArlowVisionBlock(GradientCheckpointingLayer):
    """Pre-norm transformer block with LayerNorm and a plain MLP."""

    def __init__(self, config: ArlowVisionConfig) -> None:
        super().__init__()
        width = int(config.embed_dim * config.mlp_ratio)
        self.norm1 = _LayerNorm(config.embed_dim, eps=1e-6)
        self.attn = ArlowVisionAttention(config)
        self.norm2 = _LayerNorm(config.embed_dim, eps=1e-6)
        self.fc1 = nn.Linear(config.embed_dim, width)
        self.act_fn = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(width, config.embed_dim)

    def forward(self, hidden_states: torch.Tensor, layout: Layout, **kwargs: Any) -> torch.Tensor:
        if layout.traced is not None and not torch.compiler.is_exporting():
            return _compiled_once(self, hidden_states, layout)
        return self._forward(hidden_states, layout, **kwargs)

    def _forward(self, hidden_states: torch.Tensor, layout: Layout, **kwargs: Any) -> torch.Tensor:
        attended, _ = self.attn(self.norm1(hidden_states), layout, **kwargs)
        hidden_states = hidden_states + attended
        return hidden_states + self.fc2(self.act_fn(self.fc1(self.norm2(hidden_states))))


# In a traced graph all blocks are calls of one, so that compiling takes as long for forty-eight as for two.
_compiled_once = torch.compiler.nested_compile_region(ArlowVisionBlock._forward)


class _LayerNorm(nn.LayerNorm):
    """With a number that is part of the code: as an attribute it would become an input of a graph of any size."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return nn.functional.layer_norm(input, self.normalized_shape, self.weight, self.bias, 1e-6)


class ArlowVisionAttention(nn.Module):
    """Full attention within each segment."""

    def __init__(self, config: ArlowVisionConfig) -> None:
        super().__init__()
        self.config = config
        self.head_dim = config.head_dim
        self.scaling = config.head_dim**-0.5
        self.num_key_value_groups = 1
        self.is_causal = False
        self.qkv = nn.Linear(config.embed_dim, 3 * config.embed_dim)
        self.proj = nn.Linear(config.embed_dim, config.embed_dim)

    def forward(
        self, hidden_states: torch.Tensor, layout: Layout, **kwargs: Any
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...] | None]:
        """Returns the output (N, E) and, with eager attention, the weights of each group (segments, H, L, L)."""
        both, value = self.qkv(hidden_states).view(hidden_states.shape[0], 3, -1, self.head_dim).split((2, 1), dim=1)
        query, key = rotate(both, layout.cos[:, None], layout.sin[:, None]).unbind(1)  # [N, H, D]
        value = value[:, 0]
        output, weights = attend_segments(self, query, key, value, layout, **kwargs)
        return self.proj(output.flatten(1)), weights  # [N, E]


class ArlowPatchMerger(nn.Module):
    """Merge blocks of patches into tokens of the text width: norm over the block, Linear, GELU, Linear."""

    def __init__(self, config: ArlowVisionConfig) -> None:
        super().__init__()
        self.width = config.embed_dim * config.spatial_merge_size**2
        self.ln_q = nn.LayerNorm(self.width, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(self.width, self.width), nn.GELU(), nn.Linear(self.width, config.hidden_size)
        )

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(N, E) in block order -> (M, W)."""
        return self.mlp(self.ln_q(hidden_states.view(-1, self.width)))


ArlowVLVisionModel._can_record_outputs = {
    "hidden_states": ArlowVisionBlock,
    "attentions": ArlowVisionAttention,
}
