"""Checkpoints of earlier Arlow generations give the answers that they gave there, or are refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)
from upstream_fixtures import (
    ALL,
    AUTO,
    FIXTURES,
    TOWERS,
    V2,
    VL_FULL,
    VL_TEXT,
    case_of,
    cases,
    config_file,
    inputs_of,
    largest_difference,
    meta,
    needs_fixtures,
)

from arlow import (
    ArlowConfig,
    ArlowForCausalLM,
    ArlowForConditionalGeneration,
    ArlowForSequenceClassification,
    ArlowModel,
    ArlowTextConfig,
    ArlowTextModel,
    ArlowVisionConfig,
    ArlowVLVisionModel,
)
from arlow.earlier_config import UNPAIRED_FREQUENCIES, generation_of, todays_form
from arlow.earlier_weights import in_halves
from arlow.training.parts import model_type


pytestmark = needs_fixtures


@pytest.mark.parametrize(("name", "case"), cases([*V2, *VL_TEXT, *VL_FULL]))
def test_logits(name: str, case: str) -> None:
    """The stored logits, through the Auto class, and again from a save of what was loaded."""
    model = AUTO[meta(name)["class"]].from_pretrained(FIXTURES / name).eval()
    assert type(model).__name__ == meta(name)["class"]
    assert largest_difference(model, name, case) < 1e-4


@pytest.mark.parametrize(
    ("name", "case"),
    [(n, c) for n in (*V2, *VL_TEXT, *VL_FULL) if FIXTURES.is_dir() for c in meta(n).get("generate", {})
     if not (n.startswith("vl_text") and c == "gen_left")],
)  # fmt: skip
def test_greedy_answers(name: str, case: str) -> None:
    """The stored greedy continuation, token by token."""
    stored = case_of(name, case)
    model = AUTO[meta(name)["class"]].from_pretrained(FIXTURES / name)
    given = {key: stored[key] for key in ("input_ids", "attention_mask") if key in stored}
    output = model.generate(**given, max_new_tokens=12, do_sample=False)
    assert torch.equal(output, stored["output_ids"])


@pytest.mark.parametrize("name", ALL)
def test_save_is_todays(name: str, tmp_path: Path) -> None:
    """What was loaded saves in the new form, which loads without any conversion to the same weights and answers."""
    door = AUTO[meta(name)["class"]]
    first = door.from_pretrained(FIXTURES / name)
    first.save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    assert generation_of(fields) is None and fields["model_type"] == first.config.model_type
    second = door.from_pretrained(tmp_path)
    weights = second.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in first.state_dict().items())
    stored = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(value, weights[key]) for key, value in stored.items())
    for case in ("plain", "packed"):
        if case in meta(name).get("cases", {}):
            assert largest_difference(second.eval(), name, case) < 1e-4


@pytest.mark.parametrize("name", [*TOWERS, *VL_FULL])
@torch.no_grad()
def test_towers(name: str) -> None:
    """Every vision tensor lands, unchanged, and the encoder runs as one of today with those weights would."""
    tower, report = ArlowVLVisionModel.from_pretrained(FIXTURES / name, output_loading_info=True)
    assert not report["missing_keys"]
    stored = load_file(FIXTURES / name / "model.safetensors")
    stored = {k.removeprefix("model.visual."): v for k, v in stored.items() if name in TOWERS or ".visual." in k}
    assert stored.keys() == tower.state_dict().keys()
    assert all(torch.equal(value, stored[key]) for key, value in tower.state_dict().items())
    again = ArlowVLVisionModel(ArlowVisionConfig(**{k: v for k, v in tower.config.to_diff_dict().items()
                                                    if k in ArlowVisionConfig.__dataclass_fields__}))  # fmt: skip
    again.load_state_dict(stored)
    pixels, grid = torch.randn(16, 3 * 2 * 4 * 4), torch.tensor([[1, 4, 4]])
    assert torch.equal(tower(pixels, grid)[0], again(pixels, grid)[0])


def test_training_finds_their_parts() -> None:
    """The stages read what kind of model a directory holds, also an earlier one's."""
    for name in ALL:
        wanted = {"vl_f": "arlow", "vl_v": "arlow_vision"}.get(name[:4], "arlow_text")
        assert model_type(FIXTURES / name, field="text") == wanted, name


def test_auto_config_tells_what_a_directory_is() -> None:
    """A text model, a whole one and a lone tower, which all say `model_type: arlow`, each get their config."""
    for name in ALL:
        wanted = {"vl_f": ArlowConfig, "vl_v": ArlowVisionConfig}.get(name[:4], ArlowTextConfig)
        assert type(AutoConfig.from_pretrained(FIXTURES / name)) is wanted, name
    rope = AutoConfig.from_pretrained(FIXTURES / "v2_text/rope_yarn").rope_parameters
    assert rope == {
        "rope_type": "yarn", "rope_theta": 100000.0, "factor": 4.0, "original_max_position_embeddings": 64,
    }  # fmt: skip
    rope = AutoConfig.from_pretrained(FIXTURES / "vl_text/rope_linear").rope_parameters
    assert (rope["rope_theta"], rope["factor"], rope[UNPAIRED_FREQUENCIES]) == (50000.0, 2.0, True)


@torch.no_grad()
@pytest.mark.parametrize("name", VL_FULL)
def test_parts_and_wholes(name: str, tmp_path: Path) -> None:
    """The text half of a whole checkpoint in the causal LM, the bare decoder and a head; the base in the head; the
    base saved by itself, in the head."""
    folder, given = FIXTURES / name, inputs_of(name, "plain")
    whole = ArlowForConditionalGeneration.from_pretrained(folder)
    wanted = whole(**given).logits
    assert torch.equal(ArlowForCausalLM.from_pretrained(folder)(**given).logits, wanted)
    hidden = whole.model.language_model(**given)[0]
    assert torch.equal(ArlowTextModel.from_pretrained(folder)(**given)[0], hidden)
    base = ArlowModel.from_pretrained(folder)
    assert torch.equal(base(**given)[0], whole.model(**given)[0])
    for door in (AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoModelForQuestionAnswering):
        assert torch.equal(door.from_pretrained(folder).base_model(**given)[0], hidden)
    labelled = ArlowForSequenceClassification.from_pretrained(folder, num_labels=3)
    assert torch.equal(labelled.model(**given)[0], hidden)
    # The base alone, as upstream saved it: flat config, names without "model.", rows interleaved.
    names = {key.removeprefix("model."): value for key, value in load_file(folder / "model.safetensors").items()}
    fields = {**config_file(name), "architectures": ["ArlowModel"]}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    names.pop("lm_head.weight", None)
    keys = json.loads((folder / "keys_base_model.json").read_text())["tensors"]
    assert {key: list(value.shape) for key, value in names.items()} == keys
    save_file(names, tmp_path / "model.safetensors", {"format": "pt"})
    assert torch.equal(AutoModel.from_pretrained(tmp_path)(**given)[0], base(**given)[0])
    headed = ArlowForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(headed.model(**given)[0], base(**given)[0])


@torch.no_grad()
@pytest.mark.parametrize("kind", ["vlm", "text"])
def test_parts_of_a_base_of_today(kind: str, tmp_path: Path) -> None:
    """A model saved without its head, whose names have no "model." before them: the text half and the encoder load."""
    torch.manual_seed(0)
    base = ArlowModel(ArlowConfig.tiny()).eval()
    base.save_pretrained(tmp_path)
    ids = torch.arange(10, 20)[None]
    if kind == "text":
        wanted = base.language_model(ids)[0]
        assert torch.equal(ArlowTextModel.from_pretrained(tmp_path)(ids)[0], wanted)
        assert torch.equal(ArlowForSequenceClassification.from_pretrained(tmp_path).model(ids)[0], wanted)
        assert torch.equal(ArlowForCausalLM.from_pretrained(tmp_path).model(ids)[0], wanted)
    else:
        tower = ArlowVLVisionModel.from_pretrained(tmp_path).state_dict()
        assert all(torch.equal(value, tower[key]) for key, value in base.visual.state_dict().items())


@torch.no_grad()
@pytest.mark.parametrize("name", ["v2_text/base", "vl_text/base"])
def test_with_an_adapter(name: str, tmp_path: Path) -> None:
    """A directory with an adapter names its base: rows of that are reordered, and what it lacks is noticed."""
    peft = pytest.importorskip("peft")
    base, ids = ArlowForCausalLM.from_pretrained(FIXTURES / name), torch.arange(3, 20)[None]
    wanted = base(ids).logits
    folder = tmp_path / "base"
    shutil.copytree(FIXTURES / name, folder)
    base.name_or_path = base.config._name_or_path = str(folder)
    adapted = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["v_proj"], task_type="CAUSAL_LM"))
    adapted.save_pretrained(tmp_path / "adapter")  # one that changes nothing yet
    for door in (ArlowForCausalLM, AutoModelForCausalLM):
        torch.testing.assert_close(door.from_pretrained(tmp_path / "adapter")(ids).logits, wanted)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.0.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    for door in (ArlowForCausalLM, AutoModelForCausalLM):
        with pytest.raises(ValueError, match="up_proj"):
            door.from_pretrained(tmp_path / "adapter")


def test_ways_to_say_the_type_of_scaling() -> None:
    """`type` is `rope_type` where that is absent; both must agree. YaRN takes the ratio of lengths as its factor, as
    Transformers did then."""
    fields = config_file("v2_text/rope_linear")
    for scaling in ({"type": "linear", "factor": 2.0}, {"rope_type": "linear", "type": "linear", "factor": 2.0}):
        rope = todays_form({**fields, "rope_scaling": scaling})["rope_parameters"]
        assert rope == {"rope_type": "linear", "factor": 2.0, "rope_theta": 100000.0}
    with pytest.raises(ValueError, match="disagree"):
        todays_form({**fields, "rope_scaling": {"rope_type": "linear", "type": "yarn", "factor": 2.0}})
    with pytest.raises(ValueError, match="must be a dict"):
        todays_form({**fields, "rope_scaling": "linear"})
    yarn = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64}
    assert todays_form({**fields, "rope_scaling": yarn})["rope_parameters"]["factor"] == 256 / 64


@torch.no_grad()
def test_rows_by_hand() -> None:
    """Even rows of each head first, then the odd ones; a bias alike; heads stay apart."""
    rows = torch.arange(8.0)
    assert in_halves(rows, 4).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert in_halves(rows[:, None].expand(-1, 3), 4)[:, 1].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_in_other_dtypes_and_on_other_devices(tmp_path: Path) -> None:
    """Conversion holds for `dtype=`, shards, and a device map."""
    shards = tmp_path / "shards"
    shutil.copytree(FIXTURES / "v2_text/tied_bias", shards)
    tensors = load_file(shards / "model.safetensors")
    (shards / "model.safetensors").unlink()
    names = sorted(tensors)
    files = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in files.items():
        save_file({key: tensors[key] for key in part}, shards / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {key: file for file, part in files.items() for key in part}}
    (shards / "model.safetensors.index.json").write_text(json.dumps(index))
    folder = FIXTURES / "v2_text/tied_bias"
    model = ArlowForCausalLM.from_pretrained(folder)
    half = ArlowForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, device_map={"": "cpu"})
    for key, value in half.state_dict().items():
        assert torch.equal(value, model.state_dict()[key].to(torch.bfloat16)), key
    sharded = ArlowForCausalLM.from_pretrained(shards).state_dict()
    assert all(torch.equal(value, sharded[key]) for key, value in model.state_dict().items())


# What is refused


@pytest.mark.parametrize(
    ("name", "words"),
    [("v1_legacy/base", "Arlow V1"), ("v1_legacy/untied_no_cross", "Arlow V1"), ("v0_first", "Arlow V0")],
)
def test_generations_that_are_not_read(name: str, words: str) -> None:
    """V1 and V0: a sentence that says which generation it is and why."""
    for door in (AutoConfig, AutoModelForCausalLM, ArlowForCausalLM, ArlowTextModel):
        with pytest.raises(ValueError, match=words) as error:
            door.from_pretrained(FIXTURES / name)
        assert "not read" in str(error.value)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("v2_text/base", {"layer_types": None}),  # None: the key is taken out
        ("v2_text/base", {"rope_theta": None}),
        ("v2_text/base", {"rope_scaling": ()}),
        ("v2_text/base", {"mrope_sections": [5, 5, 6]}),
        ("v2_text/base", {"vision_config": {}}),
        ("v2_text/base", {"rope_parameters": {"rope_theta": 1e4}}),
        ("v2_text/base", {"text_config": {"hidden_size": 64}}),
        ("v2_text/base", {"model_type": "arlow_text"}),
        ("vl_text/base", {"mrope_sections": None}),
        ("vl_text/base", {"rope_theta": None}),
        ("vl_text/base", {"rope_scaling": {"factor": 2.0}}),
        ("vl_text/text_config", {"mrope_sections": None}),
        ("vl_text/text_config", {"rope_scaling": {"factor": 2.0}}),
        ("vl_text/text_config", {"rope_theta": None}),
        ("vl_text/text_config", {"rope_theta": None, "rope_parameters": None}),
        ("vl_text/text_config", {"rope_theta": None, "rope_parameters": None, "mrope_sections": None}),
        ("vl_text/text_config", {"cross_attention_layers": []}),
        ("v2_text/base", {"model_type": "arlow_text", "rope_theta": None, "rope_scaling": None}),
        ("v2_text/base", {"cross_attention_layers": [1]}),
        ("vl_full/plain", {"use_cross_attention": True}),
        ("v2_text/base", {"num_hidden_layers": None, "layer_types": None}),
        ("v2_text/base", {"model_type": "arlowgpt"}),
        ("v2_text/base", {"vocab_size": None}),
    ],
)
def test_conflicting_or_missing_signs(name: str, changes: dict[str, Any], tmp_path: Path) -> None:
    """A config that could be of another generation is refused, by every door."""
    fields = config_file(name)
    for key, value in changes.items():
        fields.pop(key, None)
        if value is not None and value != ():
            fields[key] = value
    shutil.copy(FIXTURES / name / "model.safetensors", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(fields))
    for door in (AutoConfig, ArlowTextConfig, ArlowForCausalLM, AutoModelForCausalLM):
        with pytest.raises(ValueError, match="cannot be told"):
            door.from_pretrained(tmp_path)


def test_an_earlier_config_within_one_of_today(tmp_path: Path) -> None:
    """Its tensors would be read as today's: refused."""
    whole = ArlowConfig.tiny().to_dict() | {"text_config": config_file("v2_text/base")}
    (tmp_path / "config.json").write_text(json.dumps(whole))
    with pytest.raises(ValueError, match="cannot be told"):
        AutoConfig.from_pretrained(tmp_path)


def test_heads_are_never_made_up(tmp_path: Path) -> None:
    """A lost `lm_head.weight` is an error whatever `architectures` says, or if it says nothing."""
    model = ArlowForCausalLM(ArlowTextConfig.tiny())
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    fields = json.loads((tmp_path / "config.json").read_text())
    for names in (["ArlowForCausalLM"], ["FSDPArlowForCausalLM"], ["Unheard"], None):
        (tmp_path / "config.json").write_text(json.dumps(fields | {"architectures": names}))
        with pytest.raises(ValueError, match=r"missing for ArlowForCausalLM: lm_head\.weight"):
            ArlowForCausalLM.from_pretrained(tmp_path)
        assert type(ArlowTextModel.from_pretrained(tmp_path)) is ArlowTextModel
        assert ArlowForSequenceClassification.from_pretrained(tmp_path).score.out_features == 2


def test_wrong_shapes_are_listed(tmp_path: Path) -> None:
    """Every tensor of another shape is named."""
    shutil.copytree(FIXTURES / "v2_text/base", tmp_path / "old")
    file = tmp_path / "old/model.safetensors"
    tensors = load_file(file)
    for layer in (0, 2):
        tensors[f"model.layers.{layer}.input_layernorm.weight"] = torch.ones(65)
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(ValueError, match=r"model\.layers\.\[0,2\]\.input_layernorm\.weight"):
        ArlowForCausalLM.from_pretrained(tmp_path / "old")


def test_config_of_ones_own() -> None:
    """A config handed over with an earlier checkpoint: V2 rows are converted all the same; a VL checkpoint without its
    frequencies is refused."""
    name = "v2_text/base"
    config = ArlowTextConfig.from_pretrained(FIXTURES / name)
    own = ArlowTextConfig(**{k: v for k, v in config.to_dict().items() if k in ArlowTextConfig.__dataclass_fields__})
    assert largest_difference(ArlowForCausalLM.from_pretrained(FIXTURES / name, config=own), name, "plain") < 1e-4
    for asked in (False, True):
        with pytest.raises(ValueError, match=UNPAIRED_FREQUENCIES):
            ArlowForCausalLM.from_pretrained(FIXTURES / "vl_text/base", config=own, output_loading_info=asked)


def test_a_config_that_came_without_its_weights(tmp_path: Path) -> None:
    """With a V2 config and weights that no config.json is beside, nobody knows how their rows are ordered: refused.
    What was loaded has forgotten where it came from."""
    folder = FIXTURES / "v2_text/base"
    config = AutoConfig.from_pretrained(folder)
    shutil.copy(folder / "model.safetensors", tmp_path)
    with pytest.raises(ValueError, match="cannot be told"):
        ArlowForCausalLM.from_pretrained(tmp_path, config=config)
    with pytest.raises(ValueError, match="cannot be told"):
        ArlowForCausalLM.from_pretrained(None, config=config, state_dict=load_file(folder / "model.safetensors"))
    model = ArlowForCausalLM.from_pretrained(folder)
    again = ArlowForCausalLM.from_pretrained(None, config=model.config, state_dict=model.state_dict())
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())


class Mine(ArlowTextModel):
    """A user's own decoder."""


class MyClassifier(ArlowForSequenceClassification):
    """A user's own head."""


def test_classes_of_ones_own() -> None:
    """A subclass reads what its base reads: earlier rows, the text half of a whole model, a base without its head."""
    for name in ("v2_text/base", "vl_full/plain"):
        wanted = ArlowTextModel.from_pretrained(FIXTURES / name).state_dict()
        mine = Mine.from_pretrained(FIXTURES / name).state_dict()
        assert mine.keys() == wanted.keys() and all(torch.equal(mine[key], wanted[key]) for key in wanted)
    assert MyClassifier.from_pretrained(FIXTURES / "v2_text/base").score.out_features == 2


def test_a_config_of_today_with_another_programs_keys(tmp_path: Path) -> None:
    """Stray keys beside the fields of today do not make it an earlier one."""
    ArlowForCausalLM(ArlowTextConfig.tiny()).save_pretrained(tmp_path / "text")
    tiny = ArlowForConditionalGeneration(ArlowConfig.tiny())
    tiny.save_pretrained(tmp_path / "whole")
    for kind, stray in (("text", "rope_theta"), ("whole", "vocab_size"), ("whole", "embed_dim")):
        file = tmp_path / kind / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), stray: 7}))
        door = ArlowForCausalLM if kind == "text" else ArlowForConditionalGeneration
        assert door.from_pretrained(tmp_path / kind).config.get_text_config().vocab_size


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("v2_text/rope_yarn", {"max_position_embeddings": None}, "max_position_embeddings=None"),
        ("v2_text/rope_yarn", {"max_position_embeddings": "64"}, "max_position_embeddings='64'"),
        ("v2_text/rope_linear", {"rope_scaling": {"rope_type": ["linear"], "factor": 2.0}}, "linear"),
        ("vl_full/plain", {"vision_config": "x"}, "vision_config='x'"),
    ],
)
def test_impossible_values(name: str, changes: dict[str, Any], words: str) -> None:
    """A field that cannot be right is named, not stumbled over."""
    with pytest.raises(ValueError, match=words):
        ArlowConfig.from_dict(config_file(name) | changes)


def test_who_asks_for_the_report_gets_it(tmp_path: Path) -> None:
    """`output_loading_info=True` and a `state_dict` leave it to the caller what was not found, as in Transformers."""
    model = ArlowForCausalLM(ArlowTextConfig.tiny())
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    lost = tensors.pop("model.norm.weight")
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"missing for ArlowForCausalLM: model\.norm\.weight"):
        ArlowForCausalLM.from_pretrained(tmp_path)
    _, report = ArlowForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert report["missing_keys"] == {"model.norm.weight"}
    again = ArlowForCausalLM.from_pretrained(None, config=model.config, state_dict=tensors)
    assert torch.equal(again.model.norm.weight, torch.ones_like(lost))


@pytest.mark.parametrize("change", ["missing", "left over"])
def test_tensors_that_are_missing_or_left_over(change: str, tmp_path: Path) -> None:
    """An error that lists them, of an earlier checkpoint and of one of today."""
    name = "v2_text/base"
    tensors = load_file(FIXTURES / name / "model.safetensors")
    lost = ["model.layers.0.mlp.up_proj.weight", "model.layers.2.mlp.up_proj.weight", "lm_head.weight"]
    if change == "missing":
        for key in lost:
            del tensors[key]
        words = ["model.layers.[0,2].mlp.up_proj.weight", "lm_head.weight"]
    else:
        tensors["model.layers.0.self_attn.q_norm.weight"] = torch.ones(16)
        words = ["model.layers.[0].self_attn.q_norm.weight"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    for fields in (config_file(name), todays_form(config_file(name))):
        (tmp_path / "config.json").write_text(json.dumps(fields))
        for door in (ArlowForCausalLM, AutoModelForCausalLM):
            with pytest.raises(ValueError, match=change) as error:
                door.from_pretrained(tmp_path)
            assert all(word in str(error.value) for word in words), str(error.value)
