"""Packed media: where each patch lies, and which patches attend to one another.

The patches of all media lie one after the other; those of an image, or of a window of a video's frame groups, are a
segment. `Layout` holds what the blocks need to know of that, made once per forward. While a forward is traced nothing
looks at the grids, so that one graph serves pictures of any size: then attention is an operator of its own, which
reads them when it runs.

Sizes: N patches of all media, L of a segment, H heads, D head size.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from itertools import accumulate, groupby, pairwise
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch

from .attention import FLASH_KERNELS, Varlen, attention_function, backend_for, cumulative
from .checks import check_media, check_rows
from .configuration_arlow import ArlowVisionConfig
from .configuration_tower import ArlowTowerConfig
from .deformable import Tiles, attend_tiles, deformable_bias, make_tiles, tiles_pay
from .errors import message
from .rope import VisionRotary


class Grid(NamedTuple):
    """Patches along each axis of one item."""

    t: int
    h: int
    w: int


class Media(NamedTuple):
    """The rows an encoder was given, pictures before videos, and the grids of all items."""

    rows: list[torch.Tensor]
    thw: torch.Tensor  # (items, 3) int64
    grids: list[Grid]  # the same as numbers; empty while tracing


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


class Traced(NamedTuple):
    """What the operator of a traced graph makes the groups from when it runs."""

    thw: torch.Tensor  # (items, 3) on the CPU
    merge: int
    window: int  # frame groups; 0: all
    near: torch.Tensor | None  # radius and strength of deformable attention; as numbers a graph of any size has none


class Layout(NamedTuple):
    cos: torch.Tensor  # (N, 1, D)
    sin: torch.Tensor
    backend: str
    groups: list[Group]  # for the dense backends
    plan: Varlen | None  # for the flash kernels
    traced: Traced | None = None  # of a forward that becomes a graph, instead of both


# What was given


def read_media(
    config: ArlowVisionConfig | ArlowTowerConfig,
    pixel_values: torch.Tensor | None,
    grid_thw: torch.Tensor | None,
    pixel_values_videos: torch.Tensor | None,
    video_grid_thw: torch.Tensor | None,
    *,
    traced: bool = False,
) -> Media:
    """The rows an encoder was given with their grids, at which nobody looks if this is `traced`. Raises `ValueError`
    where there are none or they do not fit."""
    given = [
        (names, pixels, thw)
        for names, pixels, thw in (
            (("pixel_values", "grid_thw"), pixel_values, grid_thw),
            (("pixel_values_videos", "video_grid_thw"), pixel_values_videos, video_grid_thw),
        )
        if pixels is not None
    ]
    if not given:
        raise ValueError(message("pixel_values", None, "neither pixel_values nor pixel_values_videos was given"))
    grids: list[Grid] = []
    for names, pixels, thw in given:
        check_media(pixels, thw, names)
        check_width(pixels, config, names[0])
        if not traced:
            grids += read_grids(pixels, thw, config, names)
    return Media([pixels for _, pixels, _ in given], torch.cat([thw for *_, thw in given]), grids)


def check_width(pixels: torch.Tensor, config: ArlowVisionConfig | ArlowTowerConfig, name: str) -> None:
    square = config.in_channels * config.patch_size**2
    widths = {"frame group": square * config.temporal_patch_size}
    if name == "pixel_values":
        widths["still patch"] = square
    if pixels.ndim != 2 or pixels.shape[1] not in widths.values():
        wanted = " or ".join(f"{width} wide ({what})" for what, width in widths.items())
        raise ValueError(message(name, pixels, f"rows must be {wanted}"))


def read_grids(
    pixels: torch.Tensor, thw: torch.Tensor, config: ArlowVisionConfig | ArlowTowerConfig, names: tuple[str, str]
) -> list[Grid]:
    """Grids as Python numbers (the one look at the device), checked against the rows. `names`: of both arguments."""
    grids = [Grid(*row) for row in thw.tolist()]
    merge = config.spatial_merge_size
    for i, grid in enumerate(grids):
        if min(grid) < 1 or grid.h % merge or grid.w % merge:
            problem = f"needs positive sides, h and w in multiples of spatial_merge_size={merge}"
            raise ValueError(message(f"{names[1]}[{i}]", list(grid), problem))
    check_rows(pixels, sum(t * h * w for t, h, w in grids), names)
    return grids


# Layout


def make_layout(
    config: ArlowVisionConfig,
    rotary: VisionRotary,
    hidden_states: torch.Tensor,
    thw: torch.Tensor,
    grids: list[Grid],
    visible: torch.Tensor | None = None,
    *,
    traced: bool = False,
) -> Layout:
    """Everything the blocks need to know of the media, made once per forward.

    `hidden_states` (N, E), or (V, E) of the `visible` (V,) rows of those that the grids describe; `thw` and `grids` as
    in `Media`.
    """
    count = hidden_states.shape[0] if visible is None else sum(t * h * w for t, h, w in grids)
    coordinates = patch_coordinates(thw.to(hidden_states.device), count, config.spatial_merge_size)  # [N, 3]
    coordinates = coordinates if visible is None else coordinates[visible]
    dense = "deformable attention adds a bias" if config.use_deformable_attention else ""
    backend = backend_for(config, hidden_states, config.head_dim, dense=dense)
    cos, sin = (table[:, None] for table in rotary(coordinates, hidden_states.dtype))
    if traced:
        return Layout(cos, sin, backend, [], None, _trace(config, thw))
    segments = cut_segments(grids, config.temporal_window_size, visible)
    if backend in FLASH_KERNELS:
        return Layout(cos, sin, backend, [], _plan(segments, hidden_states.device))
    tiled = backend == "sdpa"  # eager attention is there for its weights
    return Layout(
        cos, sin, backend, group_segments(segments, config, coordinates, hidden_states.dtype, tiled=tiled), None
    )


def _plan(segments: Sequence[Segment], device: torch.device) -> Varlen:
    lengths = [segment.length for segment in segments]
    ends = cumulative(torch.tensor(lengths, device=device))
    return Varlen(None, None, ends, ends, max(lengths), max(lengths))


def patch_coordinates(thw: torch.Tensor, count: int, merge: int) -> torch.Tensor:
    """(frame group, row, column) of every patch of all items, in packed order: (N, 3) int64. `count` is N."""
    sizes = thw.prod(dim=1)
    items = torch.arange(thw.shape[0], device=thw.device)
    item = torch.repeat_interleave(items, sizes, output_size=count)  # [N]
    _, height, width = thw[item].unbind(1)
    place = torch.arange(count, device=thw.device) - (sizes.cumsum(0) - sizes)[item]  # in its item
    in_frame = place % (height * width)
    block, inner = in_frame // merge**2, in_frame % merge**2
    across = width // merge
    row = block // across * merge + inner // merge
    column = block % across * merge + inner % merge
    return torch.stack((place // (height * width), row, column), dim=1)


def patch_places(thw: torch.Tensor, count: int, merge: int) -> torch.Tensor:
    """The centre of every patch of all items in its frame, (down, across) in 0..1: (N, 2) float32."""
    coordinates = patch_coordinates(thw, count, merge)
    sizes = torch.repeat_interleave(thw, thw.prod(dim=1), dim=0, output_size=count)
    return (coordinates[:, 1:] + 0.5) / sizes[:, 1:]


def windows(grid: Grid, size: int | None) -> list[int]:
    """Patches in each window of `size` consecutive frame groups of an item (`None`: one window)."""
    size = size or grid.t
    return [min(size, grid.t - t) * grid.h * grid.w for t in range(0, grid.t, size)]


def cut_segments(grids: list[Grid], size: int | None, visible: torch.Tensor | None = None) -> list[Segment]:
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
    config: Any,
    coordinates: torch.Tensor,
    dtype: torch.dtype,
    *,
    tiled: bool = True,
) -> list[Group]:
    """Runs of segments that one batched call can serve: equal lengths, and biases that are equal or of their own.

    `config` has the fields of `ArlowVisionConfig`; `coordinates` (N, 3) of all patches; `dtype` of the activations,
    which the biases get; `tiled`: whether segments may be attended tile by tile.
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


# Attention


def attend_segments(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout, **kwargs: Any
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...] | None]:
    """Attention within each segment, (N, H, D) all. `module` is the attention layer, with a `config` and a `scaling`.

    Returns the output and, of the backends that keep them, the weights of each group (segments, H, L, L).
    """
    if layout.traced is not None:
        return _traced(query, key, value, *layout.traced, layout.backend), None
    attend = attention_function(layout.backend)
    if layout.backend in FLASH_KERNELS:
        batch = [x.transpose(0, 1)[None] for x in (query, key, value)]  # [1, H, N, D]
        return attend(module, *batch, layout.plan, scaling=module.scaling)[0][0], None
    call = functools.partial(attend, module, scaling=module.scaling, dropout=0.0, is_causal=False, **kwargs)
    outputs, weights = [], []
    # Split, not sliced: the gradient of a slice is as large as the whole.
    sizes = [group.segments * group.length for group in layout.groups]
    for group, *parts in zip(layout.groups, query.split(sizes), key.split(sizes), value.split(sizes), strict=True):
        batch = [
            part.view(group.segments, group.length, *part.shape[1:]).transpose(1, 2)  # [G, H, L, D]
            for part in parts
        ]
        if group.tiles is None:
            output, weight = call(*batch, group.bias)
        else:
            output, weight = attend_tiles(call, *batch, tiles=group.tiles), None
        outputs.append(output.flatten(0, 1))  # [G*L, H, D]
        weights.append(weight)
    return torch.cat(outputs), tuple(weights) if weights[0] is not None else None


# The same in a traced graph: an operator that reads the grids when it runs


def is_traced() -> bool:
    """Whether a forward becomes a graph. One that is to be trained may be broken into several, and looks at grids."""
    return torch.compiler.is_exporting() or (torch.compiler.is_compiling() and not torch.is_grad_enabled())


def _trace(config: ArlowVisionConfig, thw: torch.Tensor) -> Traced:
    near = None
    if config.use_deformable_attention:
        numbers = [config.deformable_attention_window, config.deformable_attention_strength]
        near = torch.tensor(numbers, dtype=torch.float64)
    return Traced(thw.cpu(), config.spatial_merge_size, config.temporal_window_size or 0, near)


@torch.library.custom_op("arlow::attend_segments", mutates_args=())
def _traced(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    thw: torch.Tensor,
    merge: int,
    window: int,
    near: torch.Tensor | None,
    backend: str,
) -> torch.Tensor:
    grids = tuple(Grid(*row) for row in thw.tolist())
    numbers = None if near is None else tuple(near.tolist())
    groups, plan = _groups(grids, merge, window, numbers, backend, query.dtype, query.device)
    layout = Layout(query, query, backend, groups, plan)
    # Not the layer's own number: as an attribute it would become an input of a graph of any size.
    scaling = query.shape[-1] ** -0.5
    module = SimpleNamespace(scaling=scaling, is_causal=False, training=False, num_key_value_groups=1, layer_idx=None)
    with torch.no_grad():
        return attend_segments(module, query, key, value, layout)[0].contiguous()


@_traced.register_fake
def _(query: torch.Tensor, *rest: Any) -> torch.Tensor:
    return query.new_empty(query.shape)


@functools.lru_cache(maxsize=1)  # every layer asks for the same; biases are large, and stay
def _groups(
    grids: Sequence[Grid],
    merge: int,
    window: int,
    near: tuple[float, float] | None,
    backend: str,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[list[Group], Varlen | None]:
    segments = cut_segments(list(grids), window or None)
    if backend in FLASH_KERNELS:
        return [], _plan(segments, device)
    thw = torch.tensor(grids, device=device)
    fields = SimpleNamespace(
        spatial_merge_size=merge,
        use_deformable_attention=near is not None,
        deformable_attention_window=near and near[0],
        deformable_attention_strength=near and near[1],
    )
    coordinates = patch_coordinates(thw, sum(segment.length for segment in segments), merge)
    return group_segments(segments, fields, coordinates, dtype, tiled=backend == "sdpa"), None
