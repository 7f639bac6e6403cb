"""The masked autoencoder: the encoder on visible patches against a plain float64 one, masks, targets, loss, cost."""

from __future__ import annotations

import time
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_vision import Plain
from tiny_models import CLIP, PATCH, STILL, random_images, random_videos, shaken, tiny_vision, tiny_vision_config
from torch.utils.flop_counter import FlopCounterMode

from arlow import ArlowVisionConfig
from arlow.training.masked_autoencoder import (
    MaskedAutoencoder,
    MaskedAutoencoderConfig,
    draw_mask,
    normalise,
)


FULL = {
    "use_deformable_attention": True,
    "use_progressive_patches": True,
    "use_absolute_positions": True,
    "deformable_attention_window": 0.6,
}


def autoencoder(*, seed: int = 0, attn: str = "sdpa", **vision: object) -> MaskedAutoencoder:
    torch.manual_seed(seed)
    config = MaskedAutoencoderConfig(
        vision_config=tiny_vision_config(**vision), decoder_width=24, decoder_depth=2, decoder_heads=2
    )
    config._attn_implementation = attn
    return shaken(MaskedAutoencoder(config))


def test_samples_are_painted_as_they_will_be_normalised() -> None:
    """Targets of uint8 rows are those of their normalised values, also where a patch is nearly flat."""
    model = autoencoder(image_mean=0.5, image_std=[0.2, 0.3, 0.4])
    samples = torch.randint(120, 122, (16, STILL), dtype=torch.uint8)
    std = torch.tensor([0.2, 0.3, 0.4]).repeat_interleave(STILL // 3)
    values = (samples.float() / 255 - 0.5) / std
    chosen = torch.tensor([0, 3, 9])
    found, wanted = (normalise(model.true_rows([rows], chosen)) for rows in (samples, values))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    as_numbers = normalise(model.true_rows([samples.float()], chosen))
    assert not torch.allclose(as_numbers, wanted, atol=1e-2)  # the channels weigh differently there


def masks(grids, *, ratio: float = 0.75, merge: int = 2, seed: int = 0) -> list[np.ndarray]:
    """A mask for each grid, each from a generator of its own."""
    return [
        draw_mask(grid, ratio=ratio, merge_size=merge, rng=np.random.default_rng(seed + i))
        for i, grid in enumerate(grids)
    ]


def split(mask: np.ndarray) -> dict[str, torch.Tensor]:
    return {"visible": torch.from_numpy(np.flatnonzero(~mask)), "masked": torch.from_numpy(np.flatnonzero(mask))}


def arguments(stills, clips, *, seed: int = 0, ratio: float = 0.75) -> dict[str, torch.Tensor]:
    """The arguments of `forward` for pictures and clips of these grids."""
    batch = {}
    if stills:
        batch["pixel_values"], batch["grid_thw"] = random_images(stills, seed=seed)
    if clips:
        batch["pixel_values_videos"], batch["video_grid_thw"] = random_videos(clips, seed=seed)
    return batch | split(np.concatenate(masks([*stills, *clips], ratio=ratio)))


# The encoder


class PlainVisible(Plain):
    """The plain encoder, in which nothing looks at a hidden patch."""

    def __init__(self, model, visible: set) -> None:
        super().__init__(model)
        self.visible = visible

    def together(self, a, b):
        return super().together(a, b) and (b in self.visible or a == b)  # a hidden one sees itself: no empty softmax

    def coarse(self, x, places, grid):
        seen = torch.tensor([[float(place in self.visible)] for place in places], dtype=torch.float64)
        weights = super().coarse(seen, places, grid)
        return super().coarse(x * seen, places, grid) / torch.where(weights > 0, weights, 1.0)


@torch.no_grad()
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("options", [{}, FULL, {"temporal_window_size": 2}, {**FULL, "spatial_merge_size": 1}])
def test_visible_alone_equal_masked_attention(options: dict, attn: str) -> None:
    """Encoding the visible patches is encoding all with attention kept from the hidden ones: same places, same bias,
    in a plain float64 encoder; pictures of two sizes and a clip in one pack."""
    model = tiny_vision(attn=attn, **options).double()
    stills, clips = [(1, 4, 4), (1, 4, 4), (1, 2, 6)], [(3, 4, 4)]
    rows, grid = random_images(stills)
    clip_rows, clip_grid = random_videos(clips)
    merge = options.get("spatial_merge_size", 2)
    hidden = masks([*stills, *clips], ratio=0.5, merge=merge)
    visible = split(np.concatenate(hidden))["visible"]
    output = model(rows.double(), grid, clip_rows.double(), clip_grid, visible=visible)
    assert output.pooler_output is None and output.deepstack_features is None
    assert len(output.last_hidden_state) == len(visible)

    expected = []
    parts = [*rows.split([t * h * w for t, h, w in stills]), clip_rows]
    for part, item, mask in zip(parts, [*stills, *clips], hidden, strict=True):
        plain = PlainVisible(model, set())
        places = plain.places(item)
        plain.visible = {place for place, is_hidden in zip(places, mask, strict=True) if not is_hidden}
        expected.append(plain(part, item)[0][~torch.from_numpy(mask)])
    torch.testing.assert_close(
        output.last_hidden_state, torch.cat(expected), rtol=1e-5, atol=1e-5
    )  # angles are float32


@torch.no_grad()
def test_all_visible_is_the_ordinary_encoder() -> None:
    """With nothing hidden, the patch states are those of an ordinary forward."""
    model = tiny_vision(**FULL)
    rows, grid = random_images([(1, 4, 4), (1, 6, 2)])
    every = model(rows, grid, visible=torch.arange(len(rows)))
    torch.testing.assert_close(every.last_hidden_state, model(rows, grid).last_hidden_state)


def flops(model, **arguments) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**arguments)
    return counter.get_total_flops()


def test_cost_falls_with_the_ratio() -> None:
    """Hiding three quarters leaves at most a quarter of the encoder's operations, and clearly less time."""
    config = ArlowVisionConfig.tiny(depth=4, embed_dim=128, num_heads=4, deepstack_visual_indexes=[], **FULL)
    torch.manual_seed(0)
    model = arlow_tower(config)
    grids = [(1, 16, 16)] * 4
    rows, grid = random_images(grids, width=3 * 14 * 14)
    visible = split(np.concatenate(masks(grids)))["visible"]
    everything = torch.arange(len(rows))
    few = flops(model, pixel_values=rows, grid_thw=grid, visible=visible)
    assert few <= 0.25 * flops(model, pixel_values=rows, grid_thw=grid, visible=everything)

    def seconds(chosen: torch.Tensor) -> float:
        times = []
        with torch.no_grad():
            for _ in range(4):
                start = time.process_time()
                model(rows, grid, visible=chosen)
                times.append(time.process_time() - start)
        return min(times)

    assert seconds(visible) < 0.6 * seconds(everything)


def arlow_tower(config: ArlowVisionConfig):
    from arlow import ArlowVLVisionModel

    return ArlowVLVisionModel(config).eval()


# Masks


@settings(max_examples=60, deadline=None)
@given(
    t=st.integers(1, 3),
    rows=st.integers(1, 5),
    columns=st.integers(1, 5),
    merge=st.integers(1, 3),
    ratio=st.floats(0.01, 0.99),
    seed=st.integers(0, 9),
)
def test_masks_are_tubes_of_blocks(t: int, rows: int, columns: int, merge: int, ratio: float, seed: int) -> None:
    """Whole merge blocks, the same in every frame group, as many as the ratio says but never none and never all; the
    same again from the same generator."""
    grid = (t, rows * merge, columns * merge)
    draw = lambda: draw_mask(grid, ratio=ratio, merge_size=merge, rng=np.random.default_rng(seed))  # noqa: E731
    if rows * columns < 2:
        with pytest.raises(ValueError, match="single block"):
            draw()
        return
    mask = draw()
    assert np.array_equal(mask, draw())
    blocks = mask.reshape(t, rows * columns, merge**2)
    assert (blocks == blocks[:1, :, :1]).all()
    hidden = int(blocks[0, :, 0].sum())
    assert hidden == min(max(round(rows * columns * ratio), 1), rows * columns - 1)


# Loss


def test_target_equals_numpy() -> None:
    """A patch's target has mean 0 and variance 1 over all of its pixels; a flat patch is all zeros."""
    rows = np.random.default_rng(0).normal(3, 2, (5, CLIP)).astype(np.float32)
    rows[2] = 0.25
    expected = (rows - rows.mean(1, keepdims=True)) / np.sqrt(rows.var(1, ddof=1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(normalise(torch.from_numpy(rows)).numpy(), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_loss_by_hand() -> None:
    """The loss is the mean, over items, of the mean squared error on the hidden patches and on no others."""
    model = autoencoder()
    batch = arguments([(1, 4, 4), (1, 4, 8)], [(2, 4, 4)])
    output = model(**batch)
    still = batch["pixel_values"].numpy().reshape(-1, 3, 1, PATCH**2).repeat(2, axis=2).reshape(-1, CLIP)
    rows = np.concatenate([still, batch["pixel_values_videos"].numpy()])
    rows = (rows - rows.mean(1, keepdims=True)) / np.sqrt(rows.var(1, ddof=1, keepdims=True) + 1e-6)
    masked = batch["masked"].numpy()
    squares = ((output.predictions.numpy() - rows[masked]) ** 2).mean(1)
    item = np.searchsorted([16, 48, 80], masked, side="right")
    assert output.loss.item() == pytest.approx(np.mean([squares[item == i].mean() for i in range(3)]), rel=1e-4)


def test_batch_equals_singles() -> None:
    """A batch of pictures and clips has the mean loss, and the mean gradient, of its items alone."""
    model = autoencoder(**FULL)
    stills, clips = [(1, 4, 4), (1, 4, 4), (1, 2, 8)], [(3, 4, 4)]
    model(**arguments(stills, clips)).loss.backward()
    together = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    whole = arguments(stills, clips)
    losses = []
    parts = [*whole["pixel_values"].split([16, 16, 16]), whole["pixel_values_videos"]]
    for i, (part, grid, mask) in enumerate(zip(parts, [*stills, *clips], masks([*stills, *clips]), strict=True)):
        names = ("pixel_values", "grid_thw") if i < 3 else ("pixel_values_videos", "video_grid_thw")
        loss = model(**dict(zip(names, (part, torch.tensor([grid])), strict=True)), **split(mask)).loss
        (loss / 4).backward()
        losses.append(loss.item())
    assert model(**whole).loss.item() == pytest.approx(np.mean(losses), rel=1e-5)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, together[name], rtol=1e-3, atol=1e-5, msg=name)


@torch.no_grad()
def test_hidden_pixels_are_not_seen() -> None:
    """Other pixels behind the mask change the loss, and no prediction."""
    model = autoencoder(**FULL)
    batch = arguments([(1, 4, 4), (1, 4, 8)], [])
    before = model(**batch)
    batch["pixel_values"][batch["masked"]] = torch.randn(len(batch["masked"]), STILL)
    after = model(**batch)
    assert torch.equal(before.predictions, after.predictions)
    assert before.loss != after.loss


@torch.no_grad()
def test_a_still_is_a_clip_that_stands_still() -> None:
    """A picture has the loss of a clip of one frame group with equal frames."""
    model = autoencoder()
    rows, grid = random_images([(1, 4, 4)])
    both = rows.view(-1, 3, 1, PATCH**2).expand(-1, -1, 2, -1).flatten(1)
    mask = split(masks([(1, 4, 4)])[0])
    still = model(pixel_values=rows, grid_thw=grid, **mask).loss
    clip = model(pixel_values_videos=both, video_grid_thw=grid, **mask).loss
    torch.testing.assert_close(still, clip)


@torch.no_grad()
def test_predictions_depend_on_the_place() -> None:
    """Hidden patches in different places are painted differently: the decoder knows rows, columns and frame groups."""
    predictions = autoencoder()(**arguments([], [(2, 4, 4)])).predictions
    distances = torch.cdist(predictions, predictions) + torch.eye(len(predictions))
    assert distances.min() > 1e-3


# Training


def test_gradient_reaches_all_but_the_mergers() -> None:
    """Every parameter gets a gradient, from pictures alone and from clips alone; the mergers are frozen."""
    model = autoencoder(**FULL)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {
        n for n, _ in model.named_parameters() if n.startswith(("tower.merger.", "tower.deepstack_merg"))
    }
    assert frozen
    for stills, clips in product(([(1, 4, 4)], []), ([(2, 4, 4)], [])):
        if not stills and not clips:
            continue
        model.zero_grad()
        model(**arguments(stills, clips)).loss.backward()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_checkpointing_changes_nothing() -> None:
    """Gradient checkpointing gives the same gradients."""
    batch = arguments([(1, 4, 4)], [(2, 4, 4)])
    gradients = []
    for checkpointing in (False, True):
        model = autoencoder(**FULL).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(**batch).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_loss_is_float32_under_autocast() -> None:
    """With bfloat16 products the targets and the loss stay float32, near the exact loss."""
    model, batch = autoencoder(**FULL), arguments([(1, 4, 4)], [(2, 4, 4)])
    exact = model(**batch).loss.item()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**batch).loss
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact, rel=0.03)


@torch.no_grad()
def test_saved_and_loaded(tmp_path) -> None:
    """The whole autoencoder is saved: loaded again it has the same loss."""
    model, batch = autoencoder(**FULL), arguments([(1, 4, 4)], [])
    model.save_pretrained(tmp_path)
    loaded = MaskedAutoencoder.from_pretrained(tmp_path)
    assert loaded.config.decoder_width == 24
    assert torch.equal(loaded(**batch).loss, model(**batch).loss)


def test_decoder_sizes_are_checked() -> None:
    """A width that its heads do not divide is refused."""
    with pytest.raises(ValueError, match="num_heads=3"):
        MaskedAutoencoderConfig(vision_config=tiny_vision_config(), decoder_width=32, decoder_heads=3)
