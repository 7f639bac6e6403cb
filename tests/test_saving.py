"""Saving and loading: every class, whole or in shards, tied or not, and the parts of a vision-language checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tiny_models import batch, image, prompt, tiny_causal_lm, tiny_text_config, tiny_vision, tiny_vlm, video
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
)

import arlow
from arlow import (
    ArlowConfig,
    ArlowForCausalLM,
    ArlowForConditionalGeneration,
    ArlowModel,
    ArlowTextConfig,
    ArlowTextModel,
    ArlowVisionConfig,
    ArlowVLVisionModel,
)


INPUTS = batch(prompt(2, image(4, 6), 3, seed=1), prompt(4, video(2, 4, 4), 1, seed=2))
TEXT = {"input_ids": torch.tensor([prompt(7, seed=3).ids])}
RICH = {
    "use_gated_cross_attention": True,
    "vision": {"use_progressive_patches": True, "use_deformable_attention": True, "depth": 3,
               "deepstack_visual_indexes": [0, 2]},
    "text": {"attention_bias": True},
}  # fmt: skip


def files_of(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor on disk, by name."""
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as shard:
            tensors.update({name: shard.get_tensor(name) for name in shard.keys()})  # noqa: SIM118
    return tensors


def saved_config(folder: Path) -> dict:
    """Without the dtype of the parts, which the library writes for loaded models only."""
    fields = json.loads((folder / "config.json").read_text())
    for part in ("text_config", "vision_config"):
        fields.get(part, {}).pop("dtype", None)
    return fields


def assert_same_model(a: torch.nn.Module, b: torch.nn.Module) -> None:
    assert type(a) is type(b)
    ours, theirs = a.state_dict(), b.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert all(torch.equal(x, y) for x, y in zip(a.buffers(), b.buffers(), strict=True))


def heads() -> dict:
    torch.manual_seed(0)
    config = tiny_text_config(num_labels=3)
    return {
        name: getattr(arlow, name)(config).eval()
        for name in ("ArlowForSequenceClassification", "ArlowForTokenClassification", "ArlowForQuestionAnswering")
    }


MAKERS = {
    "vlm": tiny_vlm,
    "vlm_rich": lambda: tiny_vlm(**RICH),
    "vlm_tied": lambda: tiny_vlm(text={"tie_word_embeddings": True}),
    "bare": lambda: tiny_vlm(**RICH).model,
    "causal_lm": tiny_causal_lm,
    "causal_lm_tied": lambda: tiny_causal_lm(tie_word_embeddings=True),
    "cross_attention": lambda: tiny_causal_lm(use_cross_attention=True, encoder_hidden_size=24),
    "text": lambda: tiny_causal_lm().model,
    "vision": lambda: tiny_vision(**RICH["vision"]),
    **{name: (lambda name=name: heads()[name]) for name in
       ("ArlowForSequenceClassification", "ArlowForTokenClassification", "ArlowForQuestionAnswering")},
}  # fmt: skip


@pytest.mark.parametrize("shards", [False, True], ids=["one_file", "shards"])
@pytest.mark.parametrize("kind", MAKERS)
def test_round_trip(kind: str, shards: bool, tmp_path: Path) -> None:
    """Save, load, save: the same weights and buffers, nothing missing or left over, the same names on disk."""
    model = MAKERS[kind]()
    first, second = tmp_path / "first", tmp_path / "second"
    model.save_pretrained(first, max_shard_size="60KB" if shards else "5GB")
    assert (first / "model.safetensors.index.json").exists() is shards
    loaded, report = type(model).from_pretrained(first, output_loading_info=True)
    assert not any(report.values()), report
    assert_same_model(loaded, model)
    loaded.save_pretrained(second)
    before, after = files_of(first), files_of(second)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert saved_config(first) == saved_config(second)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["vlm", "vlm_rich", "vlm_tied"])
def test_same_logits_through_the_auto_classes(kind: str, tmp_path: Path) -> None:
    """Both Auto classes give back the model, with the same logits on images and videos."""
    model = MAKERS[kind]()
    model.save_pretrained(tmp_path)
    wanted = model(**INPUTS).logits
    for auto in (AutoModelForImageTextToText, AutoModelForMultimodalLM):
        loaded = auto.from_pretrained(tmp_path)
        assert type(loaded) is type(model)
        assert torch.equal(loaded(**INPUTS).logits, wanted)


def test_auto_model_for_all_three(tmp_path: Path) -> None:
    """AutoModel gives the bare model of each config type."""
    for kind, wanted in (("bare", ArlowModel), ("text", ArlowTextModel), ("vision", ArlowVLVisionModel)):
        model = MAKERS[kind]()
        model.save_pretrained(tmp_path / kind)
        loaded = AutoModel.from_pretrained(tmp_path / kind)
        assert type(loaded) is wanted
        assert_same_model(loaded, model)
        assert type(AutoConfig.from_pretrained(tmp_path / kind)) is wanted.config_class


@torch.no_grad()
@pytest.mark.parametrize("kind", ["vlm_rich", "vlm_tied"])
def test_parts_of_a_vision_language_checkpoint(kind: str, tmp_path: Path) -> None:
    """The text half as a causal LM or a bare decoder, the encoder alone, the model without its head: each loads from
    the whole checkpoint with nothing missing, computes what it computes inside, and saves under its own names."""
    model = MAKERS[kind]()
    model.save_pretrained(tmp_path / "whole")
    parts = (
        (AutoModelForCausalLM, ArlowForCausalLM, lambda part: part(**TEXT).logits, model(**TEXT).logits),
        (ArlowTextModel, ArlowTextModel, lambda part: part(**TEXT)[0], model.model.language_model(**TEXT)[0]),
        (AutoModel, ArlowModel, lambda part: part(**INPUTS)[0], model.model(**INPUTS)[0]),
        (
            ArlowVLVisionModel,
            ArlowVLVisionModel,
            lambda part: part(INPUTS["pixel_values"], INPUTS["image_grid_thw"])[1],
            model.model.visual(INPUTS["pixel_values"], INPUTS["image_grid_thw"])[1],
        ),
    )
    for door, wanted_type, run, wanted in parts:
        part, report = door.from_pretrained(tmp_path / "whole", output_loading_info=True)
        assert type(part) is wanted_type
        assert not report["missing_keys"], report
        assert not report["mismatched_keys"]
        assert not report["unexpected_keys"] or wanted_type is not ArlowForCausalLM, report
        assert torch.equal(run(part), wanted)
        folder = tmp_path / wanted_type.__name__
        part.save_pretrained(folder)
        assert set(files_of(folder)) <= set(part.state_dict())
        again = wanted_type.from_pretrained(folder)
        assert torch.equal(run(again), wanted)


def test_tied_weights(tmp_path: Path) -> None:
    """Tied embeddings are stored once, are one tensor after loading, and stay tied for the causal LM."""
    for kind, name in (("vlm_tied", "model.language_model.embed_tokens.weight"),
                       ("causal_lm_tied", "model.embed_tokens.weight")):  # fmt: skip
        model = MAKERS[kind]()
        model.save_pretrained(tmp_path / kind)
        stored = files_of(tmp_path / kind)
        assert "lm_head.weight" not in stored
        assert name in stored
        for door in (type(model), AutoModelForCausalLM):
            loaded = door.from_pretrained(tmp_path / kind)
            assert loaded.lm_head.weight is loaded.get_input_embeddings().weight
            assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@torch.no_grad()
def test_dtype(dtype: torch.dtype, tmp_path: Path) -> None:
    """A checkpoint loads in its own dtype or the one asked for, in every part; tables of angles stay float32."""
    tiny_vlm().to(dtype).save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert {p.dtype for p in loaded.parameters()} == {dtype}
    assert loaded.model.visual.rotary_emb.inv_freq.dtype == torch.float32
    assert loaded.model.language_model.rotary_emb.inv_freq.dtype == torch.float32
    assert loaded(**INPUTS).logits.dtype == dtype
    for asked in (torch.bfloat16, torch.float32):
        assert {p.dtype for p in AutoModel.from_pretrained(tmp_path, dtype=asked).parameters()} == {asked}


def test_names_are_those_of_published_checkpoints() -> None:
    """Names and shapes of every tensor are those of the earlier vision-language checkpoints."""
    root = Path(__file__).parents[2] / "shared" / "fixtures" / "upstream" / "vl_full"
    if not root.is_dir():
        pytest.skip("the fixtures of earlier checkpoints are not beside this checkout")
    for folder in sorted(root.iterdir()):
        fields = json.loads((folder / "config.json").read_text())
        vision = {**fields["vision_config"], "model_type": "arlow_vision"}
        text = {name: fields[name] for name in ArlowTextConfig.__dataclass_fields__ if name in fields}
        top = {name: fields[name] for name in ArlowConfig.__dataclass_fields__ if name in fields}
        config = ArlowConfig(
            text_config={**text, "rope_parameters": {"rope_theta": fields["rope_theta"]}},
            vision_config=ArlowVisionConfig.from_dict(vision),
            **{name: value for name, value in top.items() if name.endswith(("token_id", "embeddings", "attention"))
               and name not in text},
        )  # fmt: skip
        wanted = json.loads((folder / "keys.json").read_text())["tensors"]
        shapes = {name: list(t.shape) for name, t in ArlowForConditionalGeneration(config).state_dict().items()}
        if config.tie_word_embeddings:
            del shapes["lm_head.weight"]
        assert shapes == wanted, folder.name


def test_a_directory_for_everything(tmp_path: Path) -> None:
    """Generation options travel with the checkpoint."""
    model = tiny_vlm()
    model.generation_config.max_new_tokens = 3
    model.generation_config.pad_token_id = 0
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert loaded.generation_config.max_new_tokens == 3
    assert loaded.generate(**INPUTS, do_sample=False).shape[1] == INPUTS["input_ids"].shape[1] + 3


@torch.no_grad()
def test_cross_attention_switched_on_at_load(tmp_path: Path) -> None:
    """A decoder saved without cross-attention gets it in all layers, or in the named ones, where loading asks for it;
    with closed gates it computes what it did, and it saves and loads as it then is."""
    model = tiny_causal_lm()
    model.save_pretrained(tmp_path / "plain")
    wanted = model(**TEXT).logits
    for layers, options in (([0, 1, 2], {}), ([1], {"cross_attention_layers": [1]})):
        loaded = ArlowForCausalLM.from_pretrained(tmp_path / "plain", use_cross_attention=True, **options)
        assert loaded.config.cross_attention_layers == layers
        assert [i for i, layer in enumerate(loaded.model.layers) if layer.cross_attn is not None] == layers
        states = torch.randn(1, 3, loaded.config.encoder_hidden_size)
        assert torch.equal(loaded(**TEXT, encoder_hidden_states=states).logits, wanted)
        loaded.save_pretrained(tmp_path / "crossed")
        assert_same_model(ArlowForCausalLM.from_pretrained(tmp_path / "crossed"), loaded)
    off = ArlowForCausalLM.from_pretrained(tmp_path / "crossed", use_cross_attention=False)
    assert off.config.cross_attention_layers == []
    assert torch.equal(off(**TEXT).logits, wanted)


@pytest.mark.parametrize("shards", [False, True], ids=["one_file", "shards"])
def test_variants(shards: bool, tmp_path: Path) -> None:
    """A variant loads by its name, beside a truncated checkpoint without one that is not asked for."""
    model = tiny_causal_lm()
    model.save_pretrained(tmp_path, variant="fp16", max_shard_size="60KB" if shards else "5GB")
    (tmp_path / "model.safetensors").write_bytes(b"cut")
    assert_same_model(ArlowForCausalLM.from_pretrained(tmp_path, variant="fp16"), model)
