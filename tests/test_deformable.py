"""Deformable attention: one bias for all layers, and tiles that leave out what it hides."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from tiny_models import random_images, random_videos, tiny_vision
from torch.utils._python_dispatch import TorchDispatchMode

import arlow.deformable
import arlow.segments


DEFORMABLE = {"use_deformable_attention": True}


def captured_masks(model, monkeypatch, **arguments) -> list:
    """The mask of every attention call of one forward."""
    seen, real = [], arlow.segments.attention_function

    def spy(backend):
        def attend(module, query, key, value, mask, **kwargs):
            seen.append(mask)
            return real(backend)(module, query, key, value, mask, **kwargs)

        return attend

    monkeypatch.setattr(arlow.segments, "attention_function", spy)
    model(**arguments)
    return seen


@torch.no_grad()
def test_bias_is_one_for_all_heads_and_layers(monkeypatch) -> None:
    """The bias of a segment is (1, 1, L, L), the same tensor in every block; equal windows share one."""
    model = tiny_vision(depth=4, temporal_window_size=2, **DEFORMABLE)
    rows, grid = random_videos([(6, 2, 4), (6, 2, 4)])
    masks = captured_masks(model, monkeypatch, pixel_values_videos=rows, video_grid_thw=grid)
    assert len(masks) == 4  # six windows of one geometry: one call per block
    assert {mask.shape for mask in masks} == {(1, 1, 16, 16)}
    assert {mask.data_ptr() for mask in masks} == {masks[0].data_ptr()}


@torch.no_grad()
def test_nothing_is_recomputed_per_layer(monkeypatch) -> None:
    """Positions, rotations and biases are made once per forward, however deep the encoder."""

    def counts(depth: int) -> dict[str, int]:
        model = tiny_vision(depth=depth, deepstack_visual_indexes=[], **DEFORMABLE)
        modules = {
            "patch_coordinates": arlow.segments, "windows": arlow.segments, "normalised_distances": arlow.deformable,
        }  # fmt: skip
        seen = dict.fromkeys(modules, 0)
        with monkeypatch.context() as patch:
            for name, module in modules.items():
                real = getattr(module, name)

                def spy(*args, name=name, real=real):
                    seen[name] += 1
                    return real(*args)

                patch.setattr(module, name, spy)
            turns = []
            model.rotary_emb.register_forward_hook(lambda *_: turns.append(1))
            model(*random_images([(1, 4, 4), (1, 4, 4), (1, 2, 2)]))
        return {**seen, "rotary": len(turns)}

    assert counts(1) == counts(5)
    assert counts(1)["normalised_distances"] == 2  # two geometries
    assert counts(1)["rotary"] == 1


@torch.no_grad()
def test_no_tensor_of_heads_times_tokens_squared() -> None:
    """With SDPA no operation makes a tensor larger than one bias: nothing of heads x tokens x tokens."""

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            output = func(*args, **(kwargs or {}))
            for tensor in output if isinstance(output, (tuple, list)) else (output,):
                if isinstance(tensor, torch.Tensor):
                    self.elements = max(self.elements, tensor.untyped_storage().nbytes() // tensor.element_size())
            return output

    model = tiny_vision(num_heads=4, mrope_sections=[4, 2, 2], **DEFORMABLE)
    tokens = 20 * 20
    rows, grids = random_images([(1, 20, 20)])
    with Largest() as largest:
        model(rows, grids)
    assert largest.elements <= tokens**2


@torch.no_grad()
def test_a_token_on_the_radius_is_within() -> None:
    """On a grid of 5 x 5 the default radius of 0.25 is one step: straight neighbours are seen, diagonal ones not."""
    model = tiny_vision(depth=1, num_heads=1, deepstack_visual_indexes=[], spatial_merge_size=1, **DEFORMABLE)
    model.set_attn_implementation("eager")
    output = model(*random_images([(1, 5, 5)]), output_attentions=True)
    (weights,) = output.attentions[0]
    seen = (weights[0, 0] > 1e-20).view(5, 5, 5, 5)
    for y, x, v, u in product(range(5), repeat=4):
        assert seen[y, x, v, u] == (abs(y - v) + abs(x - u) <= 1)


@pytest.mark.parametrize(
    ("grids", "fields"),
    [
        ([(1, 34, 40), (1, 34, 40), (1, 4, 4)], {}),
        ([(1, 64, 16)], {"deformable_attention_window": 0.1}),
        ([(3, 34, 36)], {"temporal_window_size": 2, "deformable_attention_window": 0.2}),
        ([(1, 37, 33)], {"spatial_merge_size": 1, "deformable_attention_strength": 1.1}),
    ],
)
def test_tiles_are_the_whole(grids: list[tuple[int, int, int]], fields: dict) -> None:
    """Large pictures and clips are attended tile by tile; outputs and gradients are those of all pairs."""
    results = []
    for attn in ("eager", "sdpa"):
        model = tiny_vision(attn=attn, depth=1, deepstack_visual_indexes=[], **DEFORMABLE, **fields)
        rows, grid = random_images(grids) if grids[0][0] == 1 else random_videos(grids)
        names = ("pixel_values", "grid_thw") if grids[0][0] == 1 else ("pixel_values_videos", "video_grid_thw")
        output = model(**dict(zip(names, (rows, grid), strict=True))).pooler_output
        output.square().sum().backward()
        results.append((output, model.blocks[0].attn.qkv.weight.grad))
    layout = make_layout_of(model, grids)
    assert any(group.tiles is not None for group in layout.groups)
    for group in layout.groups:
        if group.tiles is not None:
            assert sum(own * seen for own, seen, _ in group.tiles.parts) < 0.7 * group.length**2
            assert sorted(group.tiles.queries.tolist()) == list(range(group.length))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * one.abs().max().item())


def test_no_tiles_where_a_bias_is_slight() -> None:
    """What lies beyond the radius may still weigh something against a bias of 30: nothing is left out."""
    fields = {**DEFORMABLE, "deformable_attention_strength": 0.3}
    model = tiny_vision(attn="sdpa", depth=1, deepstack_visual_indexes=[], **fields)
    assert all(group.tiles is None for group in make_layout_of(model, [(1, 64, 64)]).groups)


def test_no_tiles_where_blocks_would_straddle_them() -> None:
    """With blocks of 3 x 3 patches, tiles of 16 would differ in the order of their patches: attended as a whole."""
    fields = {"depth": 1, "deepstack_visual_indexes": [], "spatial_merge_size": 3, **DEFORMABLE}
    grids = [(1, 48, 48)]
    models = [tiny_vision(attn=attn, **fields) for attn in ("eager", "sdpa")]
    rows, grid = random_images(grids)
    with torch.no_grad():
        one, other = (model(pixel_values=rows, grid_thw=grid).pooler_output for model in models)
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert all(group.tiles is None for group in make_layout_of(models[1], grids).groups)


def make_layout_of(model, grids):
    thw, grids = torch.tensor(grids), [arlow.segments.Grid(*grid) for grid in grids]
    states = torch.zeros(sum(t * h * w for t, h, w in grids), 1)
    return arlow.segments.make_layout(model.config, model.rotary_emb, states, thw, grids)


def test_bias_of_one_row_and_one_frame() -> None:
    """An axis of one place has no distance: no division by zero."""
    places = torch.tensor([[0, 0, 0], [0, 0, 1]])
    distance = arlow.deformable.normalised_distances(places, places, arlow.segments.Grid(1, 1, 2))
    assert distance.tolist() == [[0.0, 1.0], [1.0, 0.0]]
