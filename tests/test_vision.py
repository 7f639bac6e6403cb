"""The vision encoder: against a plain float64 implementation, packed against alone, backend against backend."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import disk_offload
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_vision import Plain
from tiny_models import CLIP, PATCH, STILL, random_images, random_videos, tiny_vision

import arlow.attention
import arlow.deformable
import arlow.segments
import arlow.vision
from arlow import ArlowImageProcessor, ArlowVideoProcessor, ArlowVisionConfig, ArlowVLVisionModel


FIXTURES = Path(__file__).parents[2] / "shared" / "fixtures" / "upstream" / "vl_vision"

DEFORMABLE = {"use_deformable_attention": True}
VARIANTS = {
    "plain": {},
    "windows": {"temporal_window_size": 2},
    "deformable": DEFORMABLE,
    "deformable_near": {**DEFORMABLE, "deformable_attention_window": 0.6, "deformable_attention_strength": 1.5},
    "deformable_faint": {**DEFORMABLE, "deformable_attention_strength": 0.02},
    "deformable_windows": {**DEFORMABLE, "temporal_window_size": 1, "deformable_attention_window": 0.5},
    "progressive": {"use_progressive_patches": True},
    "absolute": {"use_absolute_positions": True},
    "absolute_uneven": {"use_absolute_positions": True, "embed_dim": 34, "num_heads": 1, "mrope_sections": None},
    "sections": {"mrope_sections": [2, 6, 8], "rope_theta": 50},
    "short_sections": {"mrope_sections": [11, 2, 3], "rope_theta": 50},
    "no_merge": {"spatial_merge_size": 1, "use_progressive_patches": True},
    "merge_3": {"spatial_merge_size": 3, "use_progressive_patches": True},
    "three_frames": {"temporal_patch_size": 3},
    "one_frame": {"temporal_patch_size": 1},
    "taps": {"depth": 3, "deepstack_visual_indexes": [0, 2]},
    "no_taps": {"deepstack_visual_indexes": []},
    "all": {**DEFORMABLE, "use_progressive_patches": True, "temporal_window_size": 2, "depth": 3,
            "deepstack_visual_indexes": [1, 2]},
}  # fmt: skip


def items_of(config: ArlowVisionConfig) -> tuple[dict[str, torch.Tensor], list]:
    """Two images and two videos that fit any merge size, as arguments and one by one."""
    m = config.spatial_merge_size
    pictures, clips = [(1, 2 * m, m), (1, m, 3 * m)], [(3, m, m), (1, m, 2 * m)]
    images, image_grid = random_images(pictures)
    videos, video_grid = random_images(clips, seed=9, width=STILL * config.temporal_patch_size)
    arguments = {
        "pixel_values": images, "grid_thw": image_grid, "pixel_values_videos": videos, "video_grid_thw": video_grid,
    }  # fmt: skip
    alone = [
        *zip(images.split([math.prod(grid) for grid in pictures]), pictures, strict=True),
        *zip(videos.split([math.prod(grid) for grid in clips]), clips, strict=True),
    ]
    return arguments, alone


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_equals_plain_float64(variant: str, attn: str) -> None:
    """Patches, merged tokens and taps of images and videos packed together equal each item in plain float64."""
    model = tiny_vision(attn=attn, **VARIANTS[variant])
    arguments, alone = items_of(model.config)
    output = model(**arguments)
    plain = [Plain(model)(rows, grid) for rows, grid in alone]
    close = {"rtol": 1e-4, "atol": 2e-5}
    torch.testing.assert_close(output.last_hidden_state.double(), torch.cat([x for x, _, _ in plain]), **close)
    torch.testing.assert_close(output.pooler_output.double(), torch.cat([x for _, x, _ in plain]), **close)
    if not model.config.deepstack_visual_indexes:
        assert output.deepstack_features is None
        return
    for tap, wanted in zip(output.deepstack_features, zip(*[taps for _, _, taps in plain], strict=True), strict=True):
        torch.testing.assert_close(tap.double(), torch.cat(wanted), **close)


def test_the_plain_bias_does_something() -> None:
    """The reference tells the variants apart: without it the comparison above would prove nothing."""
    rows, grid = random_images([(1, 4, 4)])[0], (1, 4, 4)
    outputs = []
    for fields in ({}, DEFORMABLE, VARIANTS["deformable_near"], VARIANTS["sections"]):
        outputs.append(Plain(tiny_vision(**fields))(rows, grid)[1])
    for a, b in pairwise(outputs):
        assert (a - b).abs().max() > 1e-2


# Patch embedding


@torch.no_grad()
def test_patch_embedding_is_the_convolution() -> None:
    """Whole frames through `conv3d` give the rows' embeddings; a still row is a row with the frame repeated."""
    model = tiny_vision()
    frames = torch.randn(1, 3, 4, 2 * PATCH, 3 * PATCH)  # two frame groups of 2 x 3 patches
    weight = model.patch_embed.proj.weight
    wanted = torch.nn.functional.conv3d(frames, weight, stride=weight.shape[2:])[0].permute(1, 2, 3, 0).flatten(0, 2)
    cut = frames.view(3, 2, 2, 2, PATCH, 3, PATCH).permute(1, 3, 5, 0, 2, 4, 6)  # [t, h, w, C, T, P, P]
    torch.testing.assert_close(model.patch_embed(cut.reshape(12, CLIP)), wanted, rtol=1e-5, atol=1e-5)
    still = torch.randn(5, 3, 1, PATCH, PATCH)
    repeated = still.expand(-1, -1, 2, -1, -1).reshape(5, CLIP)
    torch.testing.assert_close(model.patch_embed(still.reshape(5, STILL)), model.patch_embed(repeated))


@torch.no_grad()
def test_still_rows_and_repeated_frames_are_one_image() -> None:
    """Both widths of image rows give one result through the whole encoder."""
    model = tiny_vision()
    rows, grids = random_images([(1, 4, 6), (1, 2, 2)])
    doubled = rows.view(-1, 3, 1, PATCH**2).expand(-1, -1, 2, -1).reshape(-1, CLIP)
    a, b = model(rows, grids), model(doubled, grids)
    torch.testing.assert_close(a.pooler_output, b.pooler_output, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_one_frame_video_is_a_video() -> None:
    """A video of one frame group is encoded like the image with the same frames, and is a video to its arguments."""
    model = tiny_vision(temporal_window_size=2)
    rows, grid = random_videos([(1, 4, 4)])
    as_video = model(pixel_values_videos=rows, video_grid_thw=grid)
    assert torch.equal(as_video.pooler_output, model(rows, grid).pooler_output)
    with pytest.raises(ValueError, match=r"video_grid_thw"):
        model(pixel_values_videos=rows, grid_thw=grid)


# Packed is alone


grid_sides = st.integers(1, 4).map(lambda n: 2 * n)
grids = st.tuples(st.just(1), grid_sides, grid_sides)
clips = st.tuples(st.integers(1, 4), grid_sides, grid_sides)
MIXTURES = [("sdpa", VARIANTS[name]) for name in ("plain", "all", "deformable_windows")] + [("eager", VARIANTS["all"])]
MODELS = {}


@settings(max_examples=12, deadline=None)
@given(images=st.lists(grids, max_size=4), videos=st.lists(clips, max_size=3))
@pytest.mark.parametrize("number", range(len(MIXTURES)))
@torch.no_grad()
def test_packed_is_alone(number: int, images: list, videos: list) -> None:
    """Any mixture of images and videos: each gets what it gets alone."""
    if not images and not videos:
        return
    attn, fields = MIXTURES[number]
    model = MODELS.setdefault(number, tiny_vision(attn=attn, **fields))
    arguments, alone = {}, []
    for made, listed, names in (
        (random_images, images, ("pixel_values", "grid_thw")),
        (random_videos, videos, ("pixel_values_videos", "video_grid_thw")),
    ):
        if listed:
            rows, thw = made(listed)
            arguments.update(zip(names, (rows, thw), strict=True))
            parts = zip(rows.split(thw.prod(-1).tolist()), thw.split(1), strict=True)
            alone += [model(**dict(zip(names, pair, strict=True))) for pair in parts]
    together = model(**arguments)
    close = {"rtol": 1e-5, "atol": 1e-5}
    for name in ("last_hidden_state", "pooler_output"):
        torch.testing.assert_close(together[name], torch.cat([one[name] for one in alone]), **close)
    for i, tap in enumerate(together.deepstack_features):
        torch.testing.assert_close(tap, torch.cat([one.deepstack_features[i] for one in alone]), **close)


@torch.no_grad()
def test_windows_are_blind_to_one_another() -> None:
    """A change in one window leaves the others as they are, to the bit; without windows it reaches the whole clip."""
    rows, grid = random_videos([(5, 4, 4)])
    changed = rows.clone()
    changed[-1] += 1  # the last group, alone in the last window of two
    for size, untouched in ((2, True), (None, False)):
        model = tiny_vision(temporal_window_size=size)
        before, after = (model(pixel_values_videos=x, video_grid_thw=grid).pooler_output for x in (rows, changed))
        assert torch.equal(before[:16], after[:16]) is untouched
        assert not torch.equal(before[16:], after[16:])


@torch.no_grad()
def test_time_matters_across_a_clip() -> None:
    """Swapping two frame groups changes every token: the first axis of the positions is read."""
    model = tiny_vision()
    rows, grid = random_videos([(2, 2, 2)])
    a = model(pixel_values_videos=rows, video_grid_thw=grid).pooler_output
    b = model(pixel_values_videos=rows.roll(4, 0), video_grid_thw=grid).pooler_output
    assert (a - b.roll(1, 0)).abs().max() > 1e-3


# Backends


def loop_kernel(q, k, v, cu_q, cu_k, max_q, max_k, *, scale, dropout, causal, window):
    """A variable-length kernel as a loop over rows: (T, H, D) in and out."""
    assert not causal
    assert window == (-1, -1)
    assert dropout == 0
    assert cu_q.dtype == torch.int32
    assert max_q == max(cu_q.diff())
    output = torch.empty_like(q)
    for start, end in zip(cu_q[:-1].tolist(), cu_q[1:].tolist(), strict=True):
        scores = torch.einsum("qhd,khd->hqk", q[start:end], k[start:end]) * scale
        output[start:end] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v[start:end])
    return output


@pytest.mark.parametrize("variant", ["plain", "windows", "progressive", "taps"])
@torch.no_grad()
def test_varlen_path_equals_dense(variant: str, monkeypatch) -> None:
    """The variable-length path, with a kernel written out here, gives what the dense path gives."""
    model = tiny_vision(**VARIANTS[variant])
    arguments, _ = items_of(model.config)
    dense = model(**arguments)
    monkeypatch.setattr(arlow.segments, "backend_for", lambda *args, **kwargs: "flash_attn")
    monkeypatch.setattr(arlow.attention, "load_kernel", lambda name: loop_kernel)
    packed = model(**arguments)
    torch.testing.assert_close(packed.last_hidden_state, dense.last_hidden_state, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(packed.pooler_output, dense.pooler_output, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_flash_without_a_gpu_is_sdpa() -> None:
    """Asking for flash attention on the CPU gives SDPA's result; with the deformable bias, too."""
    for fields in ({}, DEFORMABLE):
        model = tiny_vision(**fields)
        media = random_images([(1, 4, 4)])
        wanted = model(*media).pooler_output
        model.set_attn_implementation("flash_attention_2")
        assert torch.equal(model(*media).pooler_output, wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@torch.no_grad()
def test_half_precision(dtype: torch.dtype, attn: str) -> None:
    """Half precision runs with every option on and stays near float32; tables of angles keep their float32 values."""
    model = tiny_vision(attn=attn, **VARIANTS["all"])
    arguments, _ = items_of(model.config)
    wanted = model(**arguments).pooler_output
    table = model.rotary_emb.inv_freq.clone()
    output = model.to(dtype)(**arguments).pooler_output
    assert output.dtype == dtype
    assert torch.equal(model.rotary_emb.inv_freq, table)
    assert ((output.float() - wanted).norm() / wanted.norm()).item() < 0.05


@pytest.mark.gpu
@pytest.mark.parametrize("variant", ["plain", "windows", "all"])
@torch.no_grad()
def test_flash_on_a_gpu(variant: str) -> None:
    """On a GPU the kernel that flash attention stands for gives eager's result; the deformable bias falls back."""
    fields = {**VARIANTS[variant], "embed_dim": 64, "num_heads": 2}
    model = tiny_vision(attn="eager", **fields).to("cuda", torch.bfloat16)
    arguments = {name: value.cuda() for name, value in items_of(model.config)[0].items()}
    wanted = model(**arguments).pooler_output.float()
    model.set_attn_implementation("flash_attention_2")
    output = model(**arguments).pooler_output.float()
    assert ((output - wanted).norm() / wanted.norm()).item() < 0.03


# Outputs, training, weights


@torch.no_grad()
def test_hidden_states_and_attentions() -> None:
    """`output_hidden_states` gives the input and every block's output; eager attention the weights of each group."""
    model = tiny_vision(attn="eager", depth=3, deepstack_visual_indexes=[])
    rows, grids = random_images([(1, 4, 4), (1, 4, 4), (1, 2, 2)])
    output = model(rows, grids, output_hidden_states=True, output_attentions=True)
    assert [tuple(x.shape) for x in output.hidden_states] == [(36, 32)] * 4
    assert torch.equal(output.hidden_states[-1], output.last_hidden_state)
    assert torch.equal(output.hidden_states[0], model.patch_embed(rows))
    assert [[tuple(group.shape) for group in layer] for layer in output.attentions] == [
        [(2, 2, 16, 16), (1, 2, 4, 4)]
    ] * 3
    for layer in output.attentions:
        for group in layer:
            torch.testing.assert_close(group.sum(-1), torch.ones(group.shape[:-1]))
    plain = model(rows, grids)
    assert plain.hidden_states is None
    assert plain.attentions is None


@torch.no_grad()
def test_return_dict_false_is_a_tuple() -> None:
    """`return_dict=False` gives the same as a tuple."""
    model = tiny_vision()
    media = random_images([(1, 4, 4)])
    output, listed = model(*media), model(*media, return_dict=False)
    assert isinstance(listed, tuple)
    assert torch.equal(listed[0], output.last_hidden_state)
    assert torch.equal(listed[1], output.pooler_output)


@pytest.mark.parametrize("variant", ["plain", "all"])
def test_gradient_checkpointing(variant: str) -> None:
    """With checkpointing every parameter gets the gradient it gets without."""
    model = tiny_vision(**VARIANTS[variant]).train()
    arguments, _ = items_of(model.config)
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.activation_checkpointing_enable()
        model.zero_grad()
        output = model(**arguments)
        (output.pooler_output.pow(2).sum() + sum(tap.sum() for tap in output.deepstack_features)).backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_buffers_survive_from_pretrained(tmp_path) -> None:
    """`from_pretrained` builds on the meta device; the tables come back exact, and so does the output."""
    model = tiny_vision(**VARIANTS["all"])
    model.save_pretrained(tmp_path)
    loaded = ArlowVLVisionModel.from_pretrained(tmp_path)
    for (name, wanted), (_, buffer) in zip(model.named_buffers(), loaded.named_buffers(), strict=True):
        assert torch.equal(buffer, wanted), name
    arguments, _ = items_of(model.config)
    assert torch.equal(loaded(**arguments).pooler_output, model(**arguments).pooler_output)


@pytest.mark.parametrize("folder", ["plain", "rich"])
def test_parameter_names_of_published_checkpoints(folder: str) -> None:
    """Names and shapes are those of the earlier checkpoints."""
    path = FIXTURES / folder
    if not path.is_dir():
        pytest.skip("the fixtures of earlier checkpoints are not beside this checkout")
    fields = json.loads((path / "config.json").read_text())
    model = ArlowVLVisionModel(ArlowVisionConfig.from_dict({**fields, "model_type": "arlow_vision"}))
    wanted = json.loads((path / "keys.json").read_text())["tensors"]
    assert {name: list(tensor.shape) for name, tensor in model.state_dict().items()} == wanted


def test_default_taps() -> None:
    """Without `deepstack_visual_indexes`: a quarter, the middle and four before the end, from six blocks on."""
    for depth, wanted in ((5, []), (6, [1, 2, 3]), (8, [2, 4]), (32, [8, 16, 28])):
        assert ArlowVisionConfig(depth=depth).deepstack_visual_indexes == wanted


def test_attention_stays_one_call_per_group(monkeypatch) -> None:
    """Equal segments side by side are attended in one call: eight images of one size, one call per block."""
    calls, real = [], arlow.segments.attention_function

    def spy(backend):
        def attend(module, query, *args, **kwargs):
            calls.append((query.shape[0], query.shape[2]))
            return real(backend)(module, query, *args, **kwargs)

        return attend

    monkeypatch.setattr(arlow.segments, "attention_function", spy)
    tiny_vision()(*random_images([(1, 4, 4)] * 8 + [(1, 2, 2)]))
    assert calls == [(8, 16), (1, 4)] * 2


def test_patch_embedding_is_called_as_a_module(tmp_path: Path) -> None:
    """Offloaded to disk, hooked or wrapped, the projection is found: its weight is never read behind its back."""
    model = tiny_vision()
    pixels, grid = random_images([(1, 4, 6)])
    expected = model(pixels, grid).pooler_output
    calls: list[int] = []
    handle = model.patch_embed.proj.register_forward_hook(lambda *_: calls.append(1))
    model(pixels, grid)
    handle.remove()
    assert calls == [1]
    disk_offload(model, tmp_path, execution_device="cpu")
    torch.testing.assert_close(model(pixels, grid).pooler_output, expected)


@pytest.mark.parametrize("kind", ["images", "videos"])
@pytest.mark.parametrize("mean, std", [(0.5, 0.5), ([0.48, 0.45, 0.4], [0.26, 0.27, 0.28])])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_uint8_rows_are_normalised_by_the_encoder(kind: str, mean: object, std: object, dtype: torch.dtype) -> None:
    """Samples and their normalised values give the same features, of pictures and of clips; in 16 bits, too, where
    both are rounded once, after normalising."""
    options = {"patch_size": 4, "min_pixels": 64, "max_pixels": 4096, "image_mean": mean, "image_std": std}
    model = tiny_vision(patch_size=4, image_mean=mean, image_std=std).to(dtype)
    rng = np.random.default_rng(0)
    if kind == "images":
        processor, media = ArlowImageProcessor(**options), [rng.integers(0, 256, (40, 56, 3), dtype=np.uint8)] * 2
    else:
        processor = ArlowVideoProcessor(**options, do_sample_frames=False)
        media = [rng.integers(0, 256, (5, 40, 56, 3), dtype=np.uint8)]
    values, samples = (processor(media, return_tensors="pt", output_dtype=name) for name in ("float32", "uint8"))
    rows = processor.model_input_names[0]
    assert samples[rows].dtype == torch.uint8 and samples[rows].shape == values[rows].shape
    names = ("pixel_values", "grid_thw") if kind == "images" else ("pixel_values_videos", "video_grid_thw")
    first, second = (model(**dict(zip(names, each.values(), strict=True))).pooler_output for each in (values, samples))
    embedded = (model.patch_embed(each[rows]) for each in (samples, values))
    torch.testing.assert_close(*embedded, rtol=1e-5 if dtype == torch.float32 else 0.01, atol=1e-5)
    if dtype == torch.float32:
        torch.testing.assert_close(second, first, rtol=1e-4, atol=1e-5)
