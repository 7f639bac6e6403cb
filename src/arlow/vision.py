"""The vision encoder: packed patch rows and grids in, one feature per merged token out.

Sizes: N patches of all media, E embed_dim, H heads, D head size, M merged tokens, W text width; C channels, T frames
per group, P patch side. The layout is [N, E] everywhere: media lie one after the other without padding, and within
one medium patches are ordered by frame group, then by merge block (as in Qwen2-VL).

Sources: ViT, arXiv 2010.11929; packing, NaViT 2307.06304; M-RoPE 2409.12191; DeepStack 2406.04334.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, groupby, pairwise
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .attention import FLASH_KERNELS, Varlen, attention_function, backend_for, cumulative
from .checks import check_keywords, check_media, check_rows
from .configuration_arlow import ArlowVisionConfig
from .configuration_tower import ArlowTowerConfig
from .deformable import Tiles, attend_tiles, deformable_bias, make_tiles, tiles_pay
from .errors import message
from .rope import VisionRotary, rotate
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
        media = read_media(self.config, pixel_values, grid_thw, pixel_values_videos, video_grid_thw)
        grids = [grid for _, found in media for grid in found]
        rows = [pixels for pixels, _ in media]
        if visible is not None:
            rows = select_rows(rows, visible)
        hidden_states = torch.cat([self.patch_embed(pixels) for pixels in rows])  # [N, E]
        if self.config.use_progressive_patches:
            coarse = coarse_embeddings(hidden_states, grids, self.config.spatial_merge_size, visible)
            hidden_states = hidden_states + self.progressive_proj(coarse)

        layout = make_layout(self.config, self.rotary_emb, hidden_states, grids, visible)
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


class Grid(NamedTuple):
    """Patches along each axis of one item."""

    t: int
    h: int
    w: int


class Segment(NamedTuple):
    """Patches that attend to one another: an image, or a window of a video's frame groups."""

    grid: Grid  # of its item
    key: object  # equal where the distances between tokens are: windows of one length of equal items; None: unlike any
    first: int  # row of the pack
    length: int


class Group(NamedTuple):
    """Consecutive segments of one length, attended in one call, or tile by tile."""

    segments: int
    length: int
    bias: torch.Tensor | None = None  # (1, 1, L, L) for all of them, or (segments, 1, L, L)
    tiles: Tiles | None = None  # of each of them


class Layout(NamedTuple):
    cos: torch.Tensor  # (N, 1, D)
    sin: torch.Tensor
    backend: str
    groups: list[Group]  # for the dense backends
    lengths: list[int]  # for the flash kernels


def make_layout(
    config: ArlowVisionConfig,
    rotary: VisionRotary,
    hidden_states: torch.Tensor,
    grids: list[Grid],
    visible: torch.Tensor | None = None,
) -> Layout:
    """Everything the blocks need to know of the media, made once per forward. `visible` (V,): the rows there are, of
    those that the grids describe."""
    coordinates = torch.cat(
        [patch_coordinates(grid, config.spatial_merge_size, hidden_states.device) for grid in grids]
    )
    coordinates = coordinates if visible is None else coordinates[visible]  # [N, 3]
    segments = cut_segments(grids, config.temporal_window_size, visible)
    dense = "deformable attention adds a bias" if config.use_deformable_attention else ""
    backend = backend_for(config, hidden_states, config.head_dim, dense=dense)
    cos, sin = rotary(coordinates, hidden_states.dtype)
    groups = []
    if backend not in FLASH_KERNELS:
        tiled = backend == "sdpa"  # eager attention is there for its weights
        groups = group_segments(segments, config, coordinates, hidden_states.dtype, tiled=tiled)
    return Layout(cos[:, None], sin[:, None], backend, groups, [segment.length for segment in segments])


def read_media(
    config: ArlowVisionConfig | ArlowTowerConfig,
    pixel_values: torch.Tensor | None,
    grid_thw: torch.Tensor | None,
    pixel_values_videos: torch.Tensor | None,
    video_grid_thw: torch.Tensor | None,
) -> list[tuple[torch.Tensor, list[Grid]]]:
    """The rows an encoder was given with their grids, pictures before videos. Raises `ValueError` where there are none
    or they do not fit."""
    given = (
        (("pixel_values", "grid_thw"), pixel_values, grid_thw),
        (("pixel_values_videos", "video_grid_thw"), pixel_values_videos, video_grid_thw),
    )
    media = [(pixels, read_grids(pixels, thw, config, names)) for names, pixels, thw in given if pixels is not None]
    if not media:
        raise ValueError(message("pixel_values", None, "neither pixel_values nor pixel_values_videos was given"))
    return media


def read_grids(
    pixels: torch.Tensor, thw: Any, config: ArlowVisionConfig | ArlowTowerConfig, names: tuple[str, str]
) -> list[Grid]:
    """Grids as Python numbers (the one look at the device), checked against the rows. `names`: of both arguments."""
    rows_name, grid_name = names
    check_media(pixels, thw, names)
    square = config.in_channels * config.patch_size**2
    widths = {"frame group": square * config.temporal_patch_size}
    if rows_name == "pixel_values":
        widths["still patch"] = square
    if pixels.ndim != 2 or pixels.shape[1] not in widths.values():
        wanted = " or ".join(f"{width} wide ({what})" for what, width in widths.items())
        raise ValueError(message(rows_name, pixels, f"rows must be {wanted}"))
    grids = [Grid(*row) for row in thw.tolist()]
    merge = config.spatial_merge_size
    for i, grid in enumerate(grids):
        if min(grid) < 1 or grid.h % merge or grid.w % merge:
            problem = f"needs positive sides, h and w in multiples of spatial_merge_size={merge}"
            raise ValueError(message(f"{grid_name}[{i}]", list(grid), problem))
    check_rows(pixels, sum(t * h * w for t, h, w in grids), names)
    return grids


def patch_coordinates(grid: Grid, merge: int, device: torch.device) -> torch.Tensor:
    """(frame group, row, column) of every patch of an item, in packed order: (t*h*w, 3) int64."""
    t, h, w = (torch.arange(side, device=device) for side in grid)
    places = torch.stack(torch.meshgrid(t, h, w, indexing="ij"), dim=-1)  # [t, h, w, 3]
    blocks = places.view(grid.t, grid.h // merge, merge, grid.w // merge, merge, 3)
    return blocks.transpose(2, 3).reshape(-1, 3)


def windows(grid: Grid, size: int | None) -> list[int]:
    """Patches in each window of `size` consecutive frame groups of an item (`None`: one window)."""
    size = size or grid.t
    return [min(size, grid.t - t) * grid.h * grid.w for t in range(0, grid.t, size)]


def cut_segments(grids: list[Grid], size: int | None, visible: torch.Tensor | None) -> list[Segment]:
    """The windows of all items, of their visible patches only if not all are."""
    cut = [(grid, length) for grid in grids for length in windows(grid, size)]
    starts = [0, *accumulate(length for _, length in cut)]
    if visible is not None:
        starts = torch.searchsorted(visible, torch.tensor(starts, device=visible.device)).tolist()
    return [
        Segment(grid, (grid, length) if visible is None else None, first, end - first)
        for (grid, length), (first, end) in zip(cut, pairwise(starts), strict=True)
        if end > first
    ]


def group_segments(
    segments: list[Segment],
    config: ArlowVisionConfig,
    coordinates: torch.Tensor,
    dtype: torch.dtype,
    *,
    tiled: bool = True,
) -> list[Group]:
    """Runs of segments that one batched call can serve: equal lengths, and biases that are equal or of their own.

    `coordinates` (N, 3) of all patches; `dtype` of the activations, which the biases get; `tiled`: whether segments
    may be attended tile by tile.
    """
    biased = config.use_deformable_attention
    made: dict[object, tuple[torch.Tensor | None, Tiles | None]] = {}  # one for all equal segments, heads and layers

    def bias_of(segment: Segment) -> torch.Tensor:
        places = coordinates[segment.first : segment.first + segment.length]
        return deformable_bias(places, segment.grid, config).to(dtype)

    groups = []
    for (length, key), run in groupby(segments, key=lambda s: (s.length, s.key if biased else None)):
        members = list(run)
        if not biased:
            groups.append(Group(len(members), length))
        elif key is None:
            groups.append(Group(len(members), length, torch.stack([bias_of(each) for each in members])[:, None]))
        else:
            if key not in made:
                first = members[0]
                if tiled and tiles_pay(length, first.grid, config):
                    places = coordinates[first.first : first.first + length]
                    made[key] = None, make_tiles(places, first.grid, config, dtype)
                else:
                    made[key] = bias_of(first)[None, None], None
            groups.append(Group(len(members), length, *made[key]))
    return groups


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

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(patches, C*P*P), one still frame, or (patches, C*T*P*P) -> (patches, E)."""
        return self.proj(pixels)


class _RowProjection(nn.Conv3d):
    """A convolution whose stride is its kernel, as one matrix product over rows. It is initialised, stored and named
    like a convolution, and called as a module: offloading, hooks and adapters find it."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        flat = self.weight.flatten(1)  # [E, C*T*P*P]
        if pixels.shape[1] != flat.shape[1]:
            # A still row stands for T equal frames: the kernel summed over T gives the same.
            flat = self.weight.sum(dim=2).flatten(1)  # [E, C*P*P]
        return nn.functional.linear(pixels.to(flat.dtype), flat)


class ArlowVisionBlock(GradientCheckpointingLayer):
    """Pre-norm transformer block with LayerNorm and a plain MLP."""

    def __init__(self, config: ArlowVisionConfig) -> None:
        super().__init__()
        width = int(config.embed_dim * config.mlp_ratio)
        self.norm1 = nn.LayerNorm(config.embed_dim, eps=1e-6)
        self.attn = ArlowVisionAttention(config)
        self.norm2 = nn.LayerNorm(config.embed_dim, eps=1e-6)
        self.fc1 = nn.Linear(config.embed_dim, width)
        self.act_fn = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(width, config.embed_dim)

    def forward(self, hidden_states: torch.Tensor, layout: Layout, **kwargs: Any) -> torch.Tensor:
        attended, _ = self.attn(self.norm1(hidden_states), layout, **kwargs)
        hidden_states = hidden_states + attended
        return hidden_states + self.fc2(self.act_fn(self.fc1(self.norm2(hidden_states))))


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
        query, key, value = self.qkv(hidden_states).view(len(hidden_states), 3, -1, self.head_dim).unbind(1)
        query, key = rotate(query, layout.cos, layout.sin), rotate(key, layout.cos, layout.sin)  # [N, H, D]
        attend = attention_function(layout.backend)
        if layout.backend in FLASH_KERNELS:
            output, weights = self._packed(attend, query, key, value, layout.lengths)
        else:
            output, weights = self._grouped(attend, query, key, value, layout.groups, kwargs)
        return self.proj(output.flatten(1)), weights  # [N, E]

    def _grouped(
        self,
        attend: Callable,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        groups: list[Group],
        kwargs: dict,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...] | None]:
        """One batched call per group of equal segments."""
        outputs, weights = [], []
        # Split, not sliced: the gradient of a slice is as large as the whole.
        sizes = [group.segments * group.length for group in groups]
        for group, *parts in zip(groups, query.split(sizes), key.split(sizes), value.split(sizes), strict=True):
            batch = [
                part.view(group.segments, group.length, -1, self.head_dim).transpose(1, 2)  # [G, H, L, D]
                for part in parts
            ]
            options = {"scaling": self.scaling, "dropout": 0.0, "is_causal": False, **kwargs}
            if group.tiles is None:
                output, weight = attend(self, *batch, group.bias, **options)
            else:
                output, weight = attend_tiles(partial(attend, self, **options), *batch, group.tiles), None
            outputs.append(output.flatten(0, 1))  # [G*L, H, D]
            weights.append(weight)
        return torch.cat(outputs), tuple(weights) if weights[0] is not None else None

    def _packed(
        self, attend: Callable, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: list[int]
    ) -> tuple[torch.Tensor, None]:
        """All segments in one call of a variable-length kernel."""
        ends = cumulative(torch.tensor(lengths, device=query.device))
        plan = Varlen(None, None, ends, ends, max(lengths), max(lengths))
        batch = [x.transpose(0, 1)[None] for x in (query, key, value)]  # [1, H, N, D]
        output, _ = attend(self, *batch, plan, scaling=self.scaling)
        return output[0], None  # [N, H, D]


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
