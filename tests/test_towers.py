"""Vision encoders of Transformers in Arlow: the same features as alone, the same processing, one path for the rest."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_processing import tiny_tokenizer
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    CLIPConfig,
    CLIPVisionConfig,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    DINOv3ViTConfig,
    LlamaConfig,
    PreTrainedConfig,
    Siglip2VisionConfig,
    SiglipVisionConfig,
    ViTMAEConfig,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

from arlow import ArlowConfig, ArlowForConditionalGeneration, ArlowProcessor, ArlowTextConfig, ArlowVisionConfig
from arlow.configuration_tower import ArlowTowerConfig
from arlow.tower_processing import ArlowTowerImageProcessor, ArlowTowerVideoProcessor
from arlow.towers import ArlowTower
from arlow.training.parts import load_tower


IDS = {"image_token_id": 5, "video_token_id": 6, "vision_start_token_id": 3, "vision_end_token_id": 4}
SIZES: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 8}
TOWERS: dict[str, PreTrainedConfig] = {
    "siglip": SiglipVisionConfig(**SIZES, intermediate_size=48, image_size=32),
    "siglip2": Siglip2VisionConfig(**SIZES, intermediate_size=48, num_patches=16),
    "clip": CLIPVisionConfig(**SIZES, intermediate_size=48, image_size=32),
    "dinov2": Dinov2Config(**SIZES, image_size=32),
    "dinov2-registers": Dinov2WithRegistersConfig(**SIZES, image_size=32, num_register_tokens=3),
    "dinov3": DINOv3ViTConfig(**SIZES, intermediate_size=48, image_size=32, num_register_tokens=4),
}
PROCESSORS: dict[str, Any] = {
    "siglip": SiglipImageProcessorPil(size={"height": 32, "width": 32}),
    "siglip2": Siglip2ImageProcessorPil(patch_size=8, max_num_patches=20),
    "clip": CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
}


def tiny_tower_model(name: str, **options: Any) -> ArlowForConditionalGeneration:
    torch.manual_seed(0)
    text = ArlowTextConfig.tiny()
    vision: Any = TOWERS[name]
    if options:
        vision = ArlowTowerConfig(tower_config=vision, hidden_size=text.hidden_size, **options)
    return ArlowForConditionalGeneration(ArlowConfig(text_config=text, vision_config=vision, **IDS)).eval()


def tower_processor(name: str, **options: Any) -> ArlowProcessor:
    shared = {"tower_processor": PROCESSORS[name], "patch_size": 8, **options}
    videos = ArlowTowerVideoProcessor(**shared, num_frames=3)
    return ArlowProcessor(ArlowTowerImageProcessor(**shared), tiny_tokenizer(), videos)


def picture(seed: int, height: int = 50, width: int = 80) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


def clip(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (7, 40, 60, 3), dtype=np.uint8)


def rows_of(pixels: torch.Tensor, merge: int) -> torch.Tensor:
    """(n, 3, H, W) -> rows (n*h*w, 3*8*8) in merge-block order, written out with loops."""
    rows = []
    n, _, height, width = pixels.shape
    for i in range(n):
        for top in range(0, height, 8 * merge):
            for left in range(0, width, 8 * merge):
                for y in range(top, top + 8 * merge, 8):
                    for x in range(left, left + 8 * merge, 8):
                        rows.append(pixels[i, :, y : y + 8, x : x + 8].flatten())
    return torch.stack(rows)


# The model


@pytest.mark.parametrize("merge", [1, 2])
@pytest.mark.parametrize("name", [name for name in TOWERS if name != "siglip2"])
@torch.no_grad()
def test_features_are_the_towers(name: str, merge: int) -> None:
    """The last hidden states of the tower alone, class and register tokens left out, in the order of the rows; a token
    takes the patches of its block side by side."""
    visual = tiny_tower_model(name, spatial_merge_size=merge).model.visual
    assert isinstance(visual, ArlowTower)
    pixels = torch.randn(2, 3, 32, 32)
    output = visual(rows_of(pixels, merge), torch.tensor([[1, 4, 4], [1, 4, 4]]))
    features = visual.tower(pixel_values=pixels).last_hidden_state[:, -16:].view(2, 4, 4, 32)
    wanted = []
    for one in features:
        for y in range(0, 4, merge):
            for x in range(0, 4, merge):
                block = [one[y + i, x + j] for i in range(merge) for j in range(merge)]
                wanted.append(torch.cat(block))
    torch.testing.assert_close(output.last_hidden_state.view(len(wanted), -1), torch.stack(wanted))
    merger = visual.merger
    normed = torch.nn.functional.layer_norm(torch.stack(wanted), (32 * merge**2,))
    projected = merger.fc2(torch.nn.functional.gelu(merger.fc1(normed)))
    torch.testing.assert_close(output.pooler_output, projected)


@torch.no_grad()
def test_siglip2_at_any_size() -> None:
    """Pictures of different sizes together give what each gives alone in the tower, padded there."""
    visual = tiny_tower_model("siglip2").model.visual
    own, images = PROCESSORS["siglip2"], [picture(0, 50, 80), picture(1, 80, 30)]
    inputs = ArlowTowerImageProcessor(tower_processor=own, patch_size=8)(images, return_tensors="pt")
    output = visual(inputs["pixel_values"], inputs["image_grid_thw"]).last_hidden_state
    alone = visual.tower(**own(images, return_tensors="pt")).last_hidden_state
    counts = inputs["image_grid_thw"].prod(-1).tolist()
    wanted = torch.cat([row[:count] for row, count in zip(alone, counts, strict=True)])
    torch.testing.assert_close(output, wanted, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_an_earlier_layer() -> None:
    """`feature_layer=-2` takes the hidden state before the last block, as LLaVA does."""
    visual = tiny_tower_model("clip", feature_layer=-2).model.visual
    pixels = torch.randn(1, 3, 32, 32)
    output = visual(rows_of(pixels, 1), torch.tensor([[1, 4, 4]]))
    states = visual.tower(pixel_values=pixels, output_hidden_states=True).hidden_states
    assert len(states) == 4
    torch.testing.assert_close(output.last_hidden_state, states[-2][0, 1:])


@pytest.mark.parametrize("name", TOWERS)
def test_whole_path(name: str, tmp_path: Path) -> None:
    """Images and videos at any positions: logits, gradients to tower and projector, greedy answers with a cache equal
    those without, and all of it again after a save."""
    model = tiny_tower_model(name)
    processor = tower_processor(name if name in PROCESSORS else "siglip")
    conversations = [
        [{"role": "user", "content": [{"type": "image", "image": picture(0)}, {"type": "text", "text": "and"},
                                      {"type": "image", "image": picture(1, 64, 48)}]}],
        [{"role": "user", "content": [{"type": "text", "text": "see"}, {"type": "video", "video": clip(2)}]}],
        [{"role": "user", "content": "no picture"}],
    ]  # fmt: skip
    inputs = processor.apply_chat_template(
        conversations, tokenize=True, return_dict=True, return_tensors="pt", padding=True, add_generation_prompt=True
    )
    loss = model(**inputs, labels=inputs["input_ids"]).loss
    loss.backward()
    for part in (model.model.visual.tower, model.model.visual.merger):
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())
    options = {"max_new_tokens": 5, "do_sample": False}
    cached = model.generate(**inputs, **options)
    assert torch.equal(cached, model.generate(**inputs, **options, use_cache=False))
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    assert isinstance(again.config.vision_config, ArlowTowerConfig)
    assert type(again.config.vision_config.tower_config) is type(TOWERS[name])
    for key, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key
    loaded = ArlowProcessor.from_pretrained(tmp_path)
    second = loaded.apply_chat_template(
        conversations, tokenize=True, return_dict=True, return_tensors="pt", padding=True, add_generation_prompt=True
    )
    assert all(torch.equal(inputs[key], second[key]) for key in inputs)
    assert torch.equal(again.generate(**second, **options), cached)


def test_lone_tower(tmp_path: Path) -> None:
    """Tower and projector save and load by themselves."""
    visual = tiny_tower_model("dinov2", projector="linear").model.visual
    visual.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert isinstance(loaded, ArlowTower) and not hasattr(loaded.merger, "fc2")
    assert type(AutoConfig.from_pretrained(tmp_path)) is ArlowTowerConfig
    for key, value in visual.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[key])


# Processing


@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_are_those_of_the_towers_processor(name: str) -> None:
    """Rows hold exactly what the tower's own processor makes of each picture, and of each frame."""
    own, image = PROCESSORS[name], picture(3)
    processor = tower_processor(name)
    inputs = processor.image_processor([image], return_tensors="pt")
    _, h, w = inputs["image_grid_thw"][0].tolist()
    wanted = own(image, return_tensors="pt")["pixel_values"]
    if name == "siglip2":
        wanted = wanted[0, : h * w].view(h, w, 8, 8, 3).permute(4, 0, 2, 1, 3).reshape(1, 3, h * 8, w * 8)
    assert torch.equal(inputs["pixel_values"], rows_of(wanted, 1))
    assert processor.image_processor.get_number_of_image_patches(50, 80) == h * w
    frames = clip(4)
    videos = processor.video_processor([frames], return_tensors="pt", do_sample_frames=False)
    t, h, w = videos["video_grid_thw"][0].tolist()
    assert t == len(frames)
    stills = processor.image_processor(list(frames), return_tensors="pt", input_data_format="channels_last")
    assert torch.equal(videos["pixel_values_videos"], stills["pixel_values"])


def test_what_no_patch_covers_is_left_out() -> None:
    """SigLIP at 30 pixels with patches of 8: three patches a side, as its own convolution takes them."""
    config = SiglipVisionConfig(**SIZES, intermediate_size=48, image_size=30)
    own = SiglipImageProcessorPil(size={"height": 30, "width": 30})
    model = ArlowForConditionalGeneration(
        ArlowConfig(text_config=ArlowTextConfig.tiny(), vision_config=config, **IDS)
    ).eval()
    inputs = ArlowTowerImageProcessor(tower_processor=own, patch_size=8)([picture(0)], return_tensors="pt")
    assert inputs["image_grid_thw"].tolist() == [[1, 3, 3]]
    with torch.no_grad():
        given = model.model.visual(inputs["pixel_values"], inputs["image_grid_thw"]).last_hidden_state
        alone = model.model.visual.tower(**own(picture(0), return_tensors="pt")).last_hidden_state[0]
    torch.testing.assert_close(given, alone)


@torch.no_grad()
def test_siglip2_crops_to_whole_tokens() -> None:
    """With 2 x 2 patches a token, the last odd row or column of patches is left out, for any picture."""
    processor = ArlowTowerImageProcessor(tower_processor=PROCESSORS["siglip2"], patch_size=8, merge_size=2)
    for size in ((50, 80), (40, 112), (64, 64)):
        _, h, w = processor([picture(0, *size)], return_tensors="pt")["image_grid_thw"][0].tolist()
        assert h % 2 == w % 2 == 0 and h * w <= 20
    out = processor([picture(0, 10, 900)], return_tensors="pt")  # a single row of patches: it is there twice
    _, h, w = out["image_grid_thw"][0].tolist()
    assert h == 2 and w > 10
    blocks = out["pixel_values"].view(-1, 2, 2, 3 * 8 * 8)
    assert torch.equal(blocks[:, 0], blocks[:, 1])


@torch.no_grad()
def test_one_dtype(tmp_path: Path) -> None:
    """Tower and projector have the dtype that was asked for, whatever the tower was saved in; flash attention that
    cannot run falls back to SDPA."""
    config = ArlowConfig(text_config=ArlowTextConfig.tiny(), vision_config=TOWERS["clip"], **IDS)
    config.vision_config.tower_config.dtype = torch.bfloat16
    model = ArlowForConditionalGeneration._from_config(config, attn_implementation="flash_attention_2").eval()
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    inputs = tower_processor("clip")(
        images=picture(0), text="<|vision_start|><image><|vision_end|>", return_tensors="pt"
    )
    assert model(**inputs).logits.isfinite().all()
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    for dtype in (torch.float32, torch.bfloat16):
        loaded = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=dtype)
        assert {p.dtype for p in loaded.parameters()} == {dtype}


def test_tower_of_a_whole_checkpoint(tmp_path: Path) -> None:
    """The tower with its projector loads from a whole model's directory."""
    model = tiny_tower_model("siglip")
    model.save_pretrained(tmp_path)
    loaded = ArlowTower.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in model.model.visual.state_dict().items())


def test_lost_tensors_of_a_tower(tmp_path: Path) -> None:
    """A directory that lacks tensors of the vision model is refused, not filled with random numbers."""
    AutoModel.from_config(TOWERS["siglip"]).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file({key: value for key, value in load_file(file).items() if "layers.1." not in key}, file, {"format": "pt"})
    with pytest.raises(ValueError, match="tensors missing"):
        load_tower(tmp_path, hidden_size=64)


def test_damaged_towers(tmp_path: Path) -> None:
    """Truncated, of another shape, pickled: an error that names what is wrong."""
    AutoModel.from_config(TOWERS["siglip"]).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors, data = load_file(file), file.read_bytes()
    name = next(key for key in tensors if key.endswith("post_layernorm.weight"))
    save_file({**tensors, name: torch.ones(33)}, file, {"format": "pt"})
    with pytest.raises(ValueError, match=f"of another shape: {re.escape(name)}"):
        load_tower(tmp_path, hidden_size=64)
    file.write_bytes(data[: len(data) // 2])
    with pytest.raises(OSError, match="truncated or corrupt"):
        load_tower(tmp_path, hidden_size=64)
    file.unlink()
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="pickled"):
        load_tower(tmp_path, hidden_size=64)


def test_flash_attention_is_for_what_is_ours(tmp_path: Path) -> None:
    """Asked for later as when loading, it falls back; the tower stays with SDPA."""
    model = tiny_tower_model("clip")
    model.set_attn_implementation("flash_attention_2")
    assert model.model.visual.config.tower_config._attn_implementation == "sdpa"
    assert model.config.text_config._attn_implementation == "flash_attention_2"


# What explain shows


def test_explain_shows_what_the_tower_sees() -> None:
    """The picture is read back in its own colours; a box is mapped through the centre crop."""
    left, right = (200, 40, 40), (40, 40, 200)
    pixels = np.zeros((100, 300, 3), dtype=np.uint8)
    pixels[:, :150], pixels[:, 150:] = left, right
    talk = [{"role": "user", "content": [{"type": "image", "image": Image.fromarray(pixels)}]}]
    for name, box in (("clip", (100, 0, 200, 100)), ("siglip", (0, 0, 300, 100))):
        report = tower_processor(name).explain(talk)
        (view,) = report.images[0].views
        assert view.box == box
        assert np.abs(view.frames[0, 16, 4].astype(int) - left).max() <= 3
        assert np.abs(view.frames[0, 16, -5].astype(int) - right).max() <= 3
        assert report.to_resized(0, box) == pytest.approx((0, 0, 32, 32))
        assert report.to_original(0, (0, 0, 32, 32)) == pytest.approx(box)
    with pytest.raises(ValueError, match="not within"):
        tower_processor("clip").explain(talk).to_resized(0, (0, 0, 10, 10))


# What is refused


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ArlowConfig(vision_config=ViTMAEConfig()), "vit_mae"),
        (lambda: ArlowConfig(vision_config=ArlowTextConfig.tiny()), "vision_config"),
        (lambda: ArlowConfig(vision_config={"model_type": "unheard_of"}), "unheard_of"),
        (lambda: ArlowTowerConfig(tower_config=TOWERS["clip"], projector="attention"), "projector='attention'"),
        (lambda: ArlowTowerConfig(tower_config=TOWERS["clip"], feature_layer=-5), "feature_layer=-5"),
        (lambda: ArlowTowerConfig(tower_config=TOWERS["clip"], feature_layer=0), "feature_layer=0"),
        (lambda: ArlowTowerConfig(tower_config=TOWERS["clip"], spatial_merge_size=0), "spatial_merge_size=0"),
        (lambda: ArlowTowerConfig(tower_config=TOWERS["clip"], spatial_merge_size=3), "spatial_merge_size=3"),
        (lambda: ArlowTowerConfig(tower_config=CLIPVisionConfig(patch_size=0)), "patch_size=0"),
        (lambda: ArlowTowerConfig(tower_config=CLIPVisionConfig(image_size=4, patch_size=16)), "image_size=4"),
        (lambda: ArlowTowerConfig(tower_config=CLIPVisionConfig(num_hidden_layers=0)), "num_hidden_layers=0"),
        (lambda: ArlowTowerConfig.from_dict(TOWERS["siglip"].to_dict()), "siglip_vision_model"),
        (lambda: ArlowTextConfig.from_dict(LlamaConfig().to_dict()), "model_type='llama'"),
        (lambda: ArlowTowerImageProcessor(patch_size=8), "tower_processor"),
        (lambda: ArlowTowerImageProcessor(tower_processor={"size": 3}, patch_size=8), "image_processor_type"),
        (lambda: tower_processor("siglip", merge_size=3).image_processor([picture(0)]), "merge_size=3"),
    ],
)
def test_impossible_configs(make: Any, words: str) -> None:
    """Each names the field and the value."""
    with pytest.raises(ValueError, match=words):
        make()


def test_options_of_other_encoders_are_refused() -> None:
    """Sizes and normalisation are the tower's own: saying otherwise is an error, not ignored."""
    with pytest.raises(TypeError, match="image_mean"):
        ArlowTowerImageProcessor(tower_processor=PROCESSORS["siglip"], patch_size=8, image_mean=0.5)
    with pytest.raises(TypeError, match="max_pixels"):
        tower_processor("siglip").image_processor([picture(0)], max_pixels=100)


@pytest.mark.parametrize("name", ["clip", "siglip"])
@pytest.mark.parametrize("grid", [[1, 2, 2], [1, 2, 8], [1, 6, 4]])
def test_a_size_the_tower_cannot_take(name: str, grid: list[int]) -> None:
    """CLIP and SigLIP take one size: another grid is an error that names it, even with as many patches."""
    visual = tiny_tower_model(name).model.visual
    with pytest.raises(ValueError, match=re.escape(f"grid_thw={grid}")):
        visual(torch.randn(grid[1] * grid[2], 192), torch.tensor([grid]))


def test_configs_of_models_with_a_tower() -> None:
    """The config of a model of images and texts gives its vision half; one of ours is copied, not shared."""
    config = ArlowConfig(text_config=ArlowTextConfig.tiny(), vision_config=CLIPConfig(), **IDS)
    assert config.vision_config.tower_config.model_type == "clip_vision_model"
    assert config.vision_config.hidden_size == config.text_config.hidden_size
    own = SiglipVisionConfig(image_size=64)
    inside = ArlowConfig(text_config=ArlowTextConfig.tiny(), vision_config=own, **IDS).vision_config.tower_config
    assert inside is not own and inside.image_size == 64
    saved = json.loads(config.to_json_string())
    assert saved["vision_config"]["model_type"] == "arlow_tower"
    assert isinstance(ArlowConfig.tiny().vision_config, ArlowVisionConfig)
