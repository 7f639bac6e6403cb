"""The configs: their defaults, what they refuse, and what survives saving, loading, pickling and copying."""

from __future__ import annotations

import copy
import json
import logging
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging as library_logging

from arlow import ArlowConfig, ArlowForCausalLM, ArlowTextConfig, ArlowTextModel, ArlowVisionConfig, ArlowVLVisionModel
from arlow.configuration_arlow import ArlowGPTConfig, default_sections


TEXT_DEFAULTS = {
    "vocab_size": 131072, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 28,
    "num_attention_heads": 24, "num_key_value_heads": 4, "hidden_act": "silu", "max_position_embeddings": 32768,
    "initializer_range": 0.02, "rms_norm_eps": 1e-6, "use_cache": True, "tie_word_embeddings": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0}, "attention_bias": False, "qk_norm": False,
    "attention_dropout": 0.0, "resid_dropout": 0.0, "mlp_dropout": 0.0, "use_sliding_window": False,
    "sliding_window": 4096, "max_window_layers": 28, "mrope_sections": None, "use_cross_attention": False,
    "pad_token_id": None, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
VISION_DEFAULTS = {
    "depth": 32, "embed_dim": 1280, "hidden_size": 3584, "num_heads": 16, "mlp_ratio": 4,
    "hidden_act": "gelu_pytorch_tanh", "in_channels": 3, "patch_size": 14, "spatial_merge_size": 2,
    "temporal_patch_size": 2, "rope_theta": 100000.0, "mrope_sections": None, "temporal_window_size": None,
    "use_deformable_attention": False, "deformable_attention_window": 0.25, "deformable_attention_strength": 4.0,
    "use_progressive_patches": False, "use_absolute_positions": False, "token_pruning_ratio": 0.0,
    "initializer_range": 0.02,
}  # fmt: skip

INVALID_TEXT: list[tuple[str, dict[str, Any], str]] = [
    *[
        (field, {field: value}, repr(value))
        for field in (
            "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "num_key_value_heads", "max_position_embeddings", "head_dim", "encoder_hidden_size",
        )
        for value in (0, -4)
    ],
    *[
        (field, {field: value}, repr(value))
        for field in ("attention_dropout", "resid_dropout", "mlp_dropout")
        for value in (-0.1, 1.0, 1.5, math.nan, math.inf)
    ],
    ("num_key_value_heads", {"num_key_value_heads": 3}, "3"),
    ("num_key_value_heads", {"num_key_value_heads": 8}, "8"),
    ("hidden_size", {"hidden_size": 66}, "66"),
    ("head_dim", {"head_dim": 15}, "15"),
    ("head_dim", {"head_dim": 16.0}, "16.0"),
    ("head_dim", {"head_dim": True}, "True"),
    ("vocab_size", {"vocab_size": "512"}, "512"),
    ("num_hidden_layers", {"num_hidden_layers": 2.0}, "2.0"),
    ("hidden_act", {"hidden_act": "sillu"}, "sillu"),
    ("rms_norm_eps", {"rms_norm_eps": 0.0}, "0.0"),
    ("rms_norm_eps", {"rms_norm_eps": -1e-6}, "-1e-06"),
    ("rms_norm_eps", {"rms_norm_eps": math.nan}, "nan"),
    ("rms_norm_eps", {"rms_norm_eps": math.inf}, "inf"),
    ("initializer_range", {"initializer_range": -0.02}, "-0.02"),
    ("initializer_range", {"initializer_range": math.nan}, "nan"),
    ("initializer_range", {"initializer_range": math.inf}, "inf"),
    ("layer_types", {"layer_types": ["full_attention", "bogus"]}, "bogus"),
    ("layer_types", {"layer_types": ["full_attention"]}, "full_attention"),
    ("layer_types", {"layer_types": "full_attention"}, "full_attention"),
    ("layer_types", {"layer_types": ["full_attention", 3]}, "3"),
    ("sliding_window", {"layer_types": ["sliding_attention"] * 2, "sliding_window": 0}, "0"),
    ("sliding_window", {"layer_types": ["sliding_attention"] * 2, "sliding_window": None}, "None"),
    ("sliding_window", {"use_sliding_window": True, "max_window_layers": 0, "sliding_window": -1}, "-1"),
    ("max_window_layers", {"max_window_layers": -1, "use_sliding_window": True}, "-1"),
    ("mrope_sections", {"mrope_sections": [8, 4, 3]}, "[8, 4, 3]"),
    ("mrope_sections", {"mrope_sections": [8, 8]}, "[8, 8]"),
    ("mrope_sections", {"mrope_sections": [20, -2, -2]}, "[20, -2, -2]"),
    ("mrope_sections", {"mrope_sections": 16}, "16"),
    ("mrope_sections", {"mrope_sections": [8.0, 4, 4]}, "[8.0, 4, 4]"),
    ("cross_attention_layers", {"use_cross_attention": True, "cross_attention_layers": [2]}, "[2]"),
    ("cross_attention_layers", {"use_cross_attention": True, "cross_attention_layers": [-1]}, "[-1]"),
    ("cross_attention_layers", {"use_cross_attention": True, "cross_attention_layers": [0, 0]}, "[0, 0]"),
    ("cross_attention_layers", {"use_cross_attention": True, "cross_attention_layers": 1}, "1"),
    ("rope_parameters", {"rope_parameters": "default"}, "default"),
    ("rope_parameters", {"rope_parameters": {"rope_type": "ropey"}}, "ropey"),
    ("rope_parameters", {"rope_parameters": {"rope_type": "default", "rope_theta": 0.0}}, "0.0"),
    ("rope_parameters", {"rope_parameters": {"rope_type": "default", "rope_theta": math.nan}}, "nan"),
    ("rope_parameters", {"rope_parameters": {"rope_type": "default", "rope_theta": math.inf}}, "inf"),
    ("rope_parameters", {"rope_parameters": {"rope_type": "default", "rope_theta": "1e5"}}, "1e5"),
    ("rope_parameters", {"rope_parameters": {"rope_type": "linear"}}, "linear"),
    ("rope_parameters", {"rope_parameters": {"rope_type": "linear", "factor": 0.5}}, "0.5"),
    ("rope_parameters", {"rope_parameters": {"rope_type": "linear", "factor": "2"}}, "'2'"),
    ("rope_parameters", {"rope_parameters": {"rope_type": "dynamic"}}, "dynamic"),
    ("rope_parameters", {"rope_parameters": {"rope_type": "yarn"}}, "yarn"),
    ("rope_parameters", {"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "llama3"),
    ("rope_parameters", {"rope_parameters": {"rope_type": "longrope", "short_factor": [1.0] * 8}}, "longrope"),
    (
        "rope_parameters",
        {"rope_parameters": {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [1.0]}},
        "long_factor",
    ),
    (
        "rope_parameters",
        {"rope_parameters": {"rope_type": "longrope", "short_factor": 1.0, "long_factor": [1.0] * 8}},
        "short_factor",
    ),
    (
        "rope_parameters",
        {
            "rope_parameters": {
                "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
        "low_freq_factor",
    ),
    ("rope_parameters", {"partial_rotary_factor": 0.5}, "0.5"),
    ("rope_scaling", {"rope_scaling": "yarn"}, "yarn"),
    ("rope_parameters", {"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "full_attention"),
    ("dtype", {"dtype": "float33"}, "float33"),
    ("torch_dtype", {"torch_dtype": "float33"}, "float33"),
    ("num_labels", {"num_labels": 0}, "0"),
    ("rope_parameters", {"rope_parameters": {"rope_type": "yarn", "factor": 2.0,
                                             "original_max_position_embeddings": 0}}, "original_max"),
    ("pad_token_id", {"pad_token_id": 512}, "512"),
    ("pad_token_id", {"pad_token_id": -600}, "-600"),
    ("use_cache", {"use_cache": "yes"}, "yes"),
    ("tie_word_embeddings", {"tie_word_embeddings": 1}, "1"),
]  # fmt: skip

INVALID_VISION: list[tuple[str, dict[str, Any], str]] = [
    *[
        (field, {field: 0}, "0")
        for field in (
            "depth", "embed_dim", "hidden_size", "num_heads", "in_channels", "patch_size", "spatial_merge_size",
            "temporal_patch_size", "temporal_window_size", "mlp_ratio", "rope_theta", "deformable_attention_window",
        )
    ],
    ("embed_dim", {"embed_dim": 33}, "33"),
    ("embed_dim", {"embed_dim": 30}, "30"),
    ("hidden_act", {"hidden_act": "geluu"}, "geluu"),
    ("deformable_attention_strength", {"deformable_attention_strength": -1.0}, "-1.0"),
    ("deformable_attention_strength", {"deformable_attention_strength": math.nan}, "nan"),
    ("deformable_attention_window", {"deformable_attention_window": math.nan}, "nan"),
    ("token_pruning_ratio", {"token_pruning_ratio": 1.0}, "1.0"),
    ("token_pruning_ratio", {"token_pruning_ratio": -0.1}, "-0.1"),
    ("mrope_sections", {"mrope_sections": [8, 4, 3]}, "[8, 4, 3]"),
    ("deepstack_visual_indexes", {"deepstack_visual_indexes": [2]}, "[2]"),
    ("deepstack_visual_indexes", {"deepstack_visual_indexes": [1, 0]}, "[1, 0]"),
    ("deepstack_visual_indexes", {"deepstack_visual_indexes": 1}, "1"),
    ("initializer_range", {"initializer_range": -0.02}, "-0.02"),
    ("temporal_window_size", {"temporal_window_size": 1.5}, "1.5"),
]  # fmt: skip

INVALID_COMPOSITE: list[tuple[str, dict[str, Any], str]] = [
    ("image_token_id", {"image_token_id": 512}, "512"),
    ("video_token_id", {"video_token_id": -1}, "-1"),
    ("vision_start_token_id", {"vision_start_token_id": "3"}, "3"),
    ("video_token_id", {"video_token_id": 5}, "5"),
    ("vision_config.hidden_size", {"vision_config": ArlowVisionConfig.tiny(hidden_size=32)}, "32"),
    ("text_config", {"text_config": ArlowVisionConfig.tiny()}, "ArlowVisionConfig"),
    ("text_config", {"text_config": "tiny"}, "tiny"),
    ("vision_config", {"vision_config": ArlowTextConfig.tiny()}, "ArlowTextConfig"),
    ("vision_config", {"vision_config": [1]}, "[1]"),
    ("vocab_size", {"text_config": {"vocab_size": -1}}, "-1"),
    ("deepstack_decoder_layers", {"deepstack_decoder_layers": [2]}, "[2]"),
    ("deepstack_decoder_layers", {"deepstack_decoder_layers": [0, 1]}, "[0, 1]"),
    ("deepstack_decoder_layers", {"deepstack_decoder_layers": 0}, "0"),
    ("initializer_range", {"initializer_range": -0.02}, "-0.02"),
]


def ids_of(cases: list[tuple[str, dict[str, Any], str]]) -> list[str]:
    return [f"{number}-{field}" for number, (field, *_) in enumerate(cases)]


@pytest.fixture
def library_log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """What Transformers' loggers (and Arlow's, which hang below them or beside them) say."""
    for name in ("transformers", "arlow"):
        logging.getLogger(name).addHandler(caplog.handler)
    level = library_logging.get_verbosity()
    library_logging.set_verbosity_warning()
    yield caplog
    library_logging.set_verbosity(level)
    for name in ("transformers", "arlow"):
        logging.getLogger(name).removeHandler(caplog.handler)


# Defaults


def test_text_defaults_are_the_contracts() -> None:
    """Every default of the text config is the contract's; derived fields are resolved."""
    config = ArlowTextConfig()
    assert {name: getattr(config, name) for name in TEXT_DEFAULTS} == TEXT_DEFAULTS
    assert config.head_dim == 96
    assert config.layer_types == ["full_attention"] * 28
    assert config.cross_attention_layers == []
    assert config.encoder_hidden_size == 2304


def test_vision_defaults_are_the_contracts() -> None:
    """Every default of the vision config is the contract's, and it answers to the generic names."""
    config = ArlowVisionConfig()
    assert {name: getattr(config, name) for name in VISION_DEFAULTS} == VISION_DEFAULTS
    assert config.deepstack_visual_indexes == [8, 16, 28]
    assert (config.num_hidden_layers, config.num_attention_heads, config.head_dim) == (32, 16, 80)


def test_composite_defaults_fit_together() -> None:
    """`ArlowConfig()` is the published model: the encoder projects to the text width, sections are equal thirds."""
    config = ArlowConfig()
    assert config.vision_config.hidden_size == config.text_config.hidden_size == 2304
    assert config.tie_word_embeddings is False and config.use_gated_cross_attention is False
    assert config.deepstack_decoder_layers == [0, 1, 2]
    assert config.text_config.mrope_sections == [32, 32, 32] == config.text_config.rope_parameters["mrope_section"]


def test_tiny_configs_build() -> None:
    """`tiny()` of all three builds a model, and takes overrides."""
    assert ArlowTextModel(ArlowTextConfig.tiny(num_hidden_layers=1)).config.num_hidden_layers == 1
    ArlowVLVisionModel(ArlowVisionConfig.tiny())
    assert ArlowConfig.tiny(use_gated_cross_attention=True).use_gated_cross_attention


def test_earlier_head_dim_default() -> None:
    """`head_dim` may differ from hidden_size / heads when it is given."""
    assert ArlowTextConfig.tiny(head_dim=32).head_dim == 32
    assert ArlowTextConfig.tiny(hidden_size=66, head_dim=16).head_dim == 16


def test_layer_types_follow_the_qwen2_rule() -> None:
    """Without `layer_types`, layers from `max_window_layers` on slide, if windows are used at all."""
    full, sliding = "full_attention", "sliding_attention"
    config = ArlowTextConfig.tiny(num_hidden_layers=4, use_sliding_window=True, max_window_layers=1)
    assert config.layer_types == [full, sliding, sliding, sliding]
    config = ArlowTextConfig.tiny(num_hidden_layers=4, max_window_layers=1)
    assert config.layer_types == [full] * 4
    config = ArlowTextConfig.tiny(layer_types=(sliding, full))
    assert config.layer_types == [sliding, full] and config.use_sliding_window


@pytest.mark.parametrize(("depth", "expected"), [(1, []), (5, []), (6, [1, 2, 3]), (8, [2, 4]), (32, [8, 16, 28])])
def test_deepstack_defaults(depth: int, expected: list[int]) -> None:
    """DeepStack taps default to depth//4, depth//2, depth-4 from six blocks on, ascending and distinct."""
    assert ArlowVisionConfig.tiny(depth=depth, deepstack_visual_indexes=None).deepstack_visual_indexes == expected


# What is refused


def refused(attempt: Any, field: str, value: str) -> None:
    with pytest.raises(ValueError) as caught:
        attempt()
    text = str(caught.value)
    assert field in text and value in text and len(text) <= 300, text


@pytest.mark.parametrize(("field", "overrides", "value"), INVALID_TEXT, ids=ids_of(INVALID_TEXT))
def test_invalid_text_fields(field: str, overrides: dict[str, Any], value: str) -> None:
    """Each impossible field of the text config is a ValueError naming field and value."""
    refused(lambda: ArlowTextConfig.tiny(**overrides), field, value)


@pytest.mark.parametrize(("field", "overrides", "value"), INVALID_VISION, ids=ids_of(INVALID_VISION))
def test_invalid_vision_fields(field: str, overrides: dict[str, Any], value: str) -> None:
    """Each impossible field of the vision config is a ValueError naming field and value."""
    refused(lambda: ArlowVisionConfig.tiny(**overrides), field, value)


@pytest.mark.parametrize(("field", "overrides", "value"), INVALID_COMPOSITE, ids=ids_of(INVALID_COMPOSITE))
def test_invalid_composite_fields(field: str, overrides: dict[str, Any], value: str) -> None:
    """Each impossible field of the composite config is a ValueError naming field and value."""
    refused(lambda: ArlowConfig.tiny(**overrides), field, value)


@pytest.mark.parametrize("config_class", [ArlowTextConfig, ArlowVisionConfig, ArlowConfig, ArlowGPTConfig])
def test_unknown_keyword_is_an_error(config_class: Any) -> None:
    """A misspelt keyword raises ValueError naming it."""
    refused(lambda: config_class(num_hiden_layers=3), "num_hiden_layers", "3")


def test_unknown_keyword_in_a_nested_dict_is_an_error() -> None:
    """A misspelt key in `text_config` or `vision_config` raises, too."""
    refused(lambda: ArlowConfig(text_config={"num_hiden_layers": 3}), "num_hiden_layers", "3")
    refused(lambda: ArlowConfig(vision_config={"dept": 3}), "dept", "3")


def test_flat_config_without_a_generation_is_refused(tmp_path: Path) -> None:
    """Text fields at the top of an `arlow` config, without the signs of an earlier generation: refused."""
    refused(lambda: ArlowConfig(num_hidden_layers=4, hidden_size=64), "hidden_size", "64")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "arlow", "num_hidden_layers": 4}))
    with pytest.raises(ValueError, match="flat config"):
        AutoConfig.from_pretrained(tmp_path)


# Files


def test_unknown_keys_of_a_file_are_reported_and_kept(tmp_path: Path, library_log: pytest.LogCaptureFixture) -> None:
    """A config file with keys of another program loads with a warning that names them; they survive a save."""
    ArlowConfig.tiny().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    content = json.loads(file.read_text())
    content["annotation"] = {"by": "someone"}
    content["text_config"]["unsloth_fixed"] = True
    file.write_text(json.dumps(content))
    config = AutoConfig.from_pretrained(tmp_path)
    said = " ".join(record.getMessage() for record in library_log.records)
    assert "annotation" in said and "unsloth_fixed" in said
    assert config.annotation == {"by": "someone"} and config.text_config.unsloth_fixed is True
    config.save_pretrained(tmp_path / "again")
    again = json.loads((tmp_path / "again" / "config.json").read_text())
    assert again["annotation"] == {"by": "someone"} and again["text_config"]["unsloth_fixed"] is True


def test_known_files_are_loaded_without_a_word(tmp_path: Path, library_log: pytest.LogCaptureFixture) -> None:
    """Saving and loading any of the configs warns of nothing, with every rope type."""
    for number, config in enumerate((ArlowConfig.tiny(), ArlowTextConfig.tiny(), ArlowVisionConfig.tiny())):
        config.save_pretrained(tmp_path / str(number))
        AutoConfig.from_pretrained(tmp_path / str(number))
    assert [record.getMessage() for record in library_log.records] == []


NON_DEFAULT = [
    ArlowTextConfig.tiny(layer_types=["sliding_attention", "full_attention"], sliding_window=7, head_dim=24),
    ArlowTextConfig.tiny(mrope_sections=[8, 4, 4], pad_token_id=0, eos_token_id=[1, 2], attention_dropout=0.25),
    ArlowTextConfig.tiny(use_cross_attention=True, cross_attention_layers=[1], encoder_hidden_size=24),
    ArlowTextConfig.tiny(rope_parameters={"rope_type": "yarn", "factor": 4.0, "rope_theta": 5e4}),
    ArlowGPTConfig.tiny(cross_attention=False, vocab_size=99),
    ArlowVisionConfig.tiny(use_deformable_attention=True, mrope_sections=[4, 6, 6], temporal_window_size=3),
    ArlowConfig.tiny(tie_word_embeddings=True, deepstack_decoder_layers=[1], use_gated_cross_attention=True),
]


def without_path(config: Any) -> dict[str, Any]:
    """`to_dict` without where the config came from."""
    bare = copy.deepcopy(config)
    for part in (bare, *(getattr(bare, name) for name in bare.sub_configs)):
        part.__dict__.pop("_name_or_path", None)
    return {
        key: value for key, value in bare.to_dict().items() if key not in ("_name_or_path", "transformers_version")
    }


@pytest.mark.parametrize("config", NON_DEFAULT, ids=lambda config: type(config).__name__)
def test_round_trips(config: Any, tmp_path: Path) -> None:
    """`to_dict`, files, AutoConfig, pickle and deepcopy all give the same config back."""
    wanted = without_path(config)
    assert without_path(type(config)(**copy.deepcopy(wanted))) == wanted
    assert without_path(type(config).from_dict(copy.deepcopy(wanted))) == wanted
    assert without_path(pickle.loads(pickle.dumps(config))) == wanted
    assert without_path(copy.deepcopy(config)) == wanted
    config.save_pretrained(tmp_path / "one")
    for loaded in (type(config).from_pretrained(tmp_path / "one"), AutoConfig.from_pretrained(tmp_path / "one")):
        assert type(loaded) is type(config)
        assert without_path(loaded) == wanted
    loaded.save_pretrained(tmp_path / "two")
    assert (tmp_path / "one/config.json").read_text() == (tmp_path / "two/config.json").read_text()


def test_parts_load_from_a_composite_directory(tmp_path: Path) -> None:
    """`ArlowTextConfig.from_pretrained` and the vision config's pick their part of a composite config."""
    config = ArlowConfig.tiny(text_config=ArlowTextConfig.tiny(num_hidden_layers=3))
    config.save_pretrained(tmp_path)
    text = ArlowTextConfig.from_pretrained(tmp_path)
    vision = ArlowVisionConfig.from_pretrained(tmp_path)
    assert type(text) is ArlowTextConfig and text.num_hidden_layers == 3
    assert type(vision) is ArlowVisionConfig and vision.embed_dim == 32


def test_sub_configs_from_dicts_objects_and_overrides(tmp_path: Path) -> None:
    """Sub-configs may be dicts, objects or missing; `from_pretrained(dir, text_config={...})` merges."""
    from_dicts = ArlowConfig.tiny(
        text_config=ArlowTextConfig.tiny().to_dict(), vision_config=ArlowVisionConfig.tiny().to_dict()
    )
    assert from_dicts.to_dict() == ArlowConfig.tiny().to_dict()
    assert from_dicts.get_text_config() is from_dicts.text_config
    from_dicts.save_pretrained(tmp_path)
    loaded = ArlowConfig.from_pretrained(tmp_path, text_config={"rms_norm_eps": 1e-5})
    assert loaded.text_config.rms_norm_eps == 1e-5 and loaded.text_config.hidden_size == 64
    assert ArlowConfig(text_config={"hidden_size": 1152}).vision_config.hidden_size == 1152


@pytest.mark.parametrize("top", [False, True])
@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("as_dict", [False, True])
def test_tying_is_equal_at_both_levels(top: bool, text: bool, as_dict: bool, tmp_path: Path) -> None:
    """Whichever level ties the embeddings, both say so, before and after a file."""
    part = ArlowTextConfig.tiny(tie_word_embeddings=text)
    config = ArlowConfig.tiny(text_config=part.to_dict() if as_dict else part, tie_word_embeddings=top)
    assert config.tie_word_embeddings is config.text_config.tie_word_embeddings is (top or text)
    config.save_pretrained(tmp_path)
    loaded = ArlowConfig.from_pretrained(tmp_path)
    assert loaded.tie_word_embeddings is loaded.text_config.tie_word_embeddings is (top or text)


@pytest.mark.parametrize("tied", [False, True])
def test_tying_changed_later_reaches_both_levels(tied: bool, tmp_path: Path) -> None:
    """Assignment and `from_pretrained(dir, tie_word_embeddings=...)` change both levels."""
    config = ArlowConfig.tiny(tie_word_embeddings=not tied)
    config.save_pretrained(tmp_path)
    config.tie_word_embeddings = tied
    loaded = ArlowConfig.from_pretrained(tmp_path, tie_word_embeddings=tied)
    merged = ArlowConfig.from_pretrained(tmp_path, text_config={"tie_word_embeddings": tied})
    for changed in (config, loaded, merged):
        assert changed.tie_word_embeddings is changed.text_config.tie_word_embeddings is tied


def test_arguments_stay_as_they_were() -> None:
    """Building a config changes neither the caller's dicts nor the caller's text config."""
    rope = {"rope_type": "yarn", "factor": 2.0}
    sections, layers = [8, 4, 4], ["full_attention"] * 2
    before = copy.deepcopy((rope, sections, layers))
    config = ArlowTextConfig.tiny(rope_parameters=rope, mrope_sections=sections, layer_types=layers)
    config.rope_parameters["rope_theta"] = 1.0
    config.mrope_sections.append(0)
    config.layer_types.append("full_attention")
    assert (rope, sections, layers) == before
    fields = {"text_config": {"hidden_size": 64, "num_attention_heads": 4}, "vision_config": {"depth": 2}}
    kept = copy.deepcopy(fields)
    ArlowConfig(**fields, tie_word_embeddings=True)
    assert fields == kept
    text = ArlowTextConfig.tiny()
    kept = text.to_dict()
    ArlowConfig.tiny(text_config=text, tie_word_embeddings=True)
    assert text.to_dict() == kept


def test_mrope_sections_are_mirrored() -> None:
    """`rope_parameters["mrope_section"]`, where serving engines look, equals `mrope_sections`; a text-only config
    without sections has none."""
    assert ArlowTextConfig.tiny(mrope_sections=[8, 4, 4]).rope_parameters["mrope_section"] == [8, 4, 4]
    assert "mrope_section" not in ArlowTextConfig.tiny().rope_parameters
    assert ArlowConfig.tiny().text_config.rope_parameters["mrope_section"] == default_sections(16) == [6, 5, 5]


def test_rope_keywords_of_earlier_files() -> None:
    """`rope_theta` and `rope_scaling` of earlier configs end up in `rope_parameters`."""
    assert ArlowTextConfig.tiny(rope_theta=5e5).rope_parameters["rope_theta"] == 5e5
    rope = ArlowTextConfig.tiny(rope_scaling={"type": "linear", "factor": 2.0}, rope_theta=1e4).rope_parameters
    assert (rope["rope_type"], rope["factor"], rope["rope_theta"]) == ("linear", 2.0, 1e4)


def test_layer_ids_fields() -> None:
    """Cross-attention layers default to all, are sorted, and are none without cross-attention."""
    assert ArlowTextConfig.tiny(use_cross_attention=True).cross_attention_layers == [0, 1]
    for layers in ((1, 0), []):  # an empty list is what a config without cross-attention was saved with
        config = ArlowTextConfig.tiny(use_cross_attention=True, cross_attention_layers=layers)
        assert config.cross_attention_layers == [0, 1]
    assert ArlowTextConfig.tiny().cross_attention_layers == []


def test_cross_attention_switched_later(tmp_path: Path) -> None:
    """Switching cross-attention on means all layers, unless some are named; files of a decoder without it, too."""
    config = ArlowTextConfig.tiny()
    config.use_cross_attention = True
    assert config.cross_attention_layers == [0, 1]
    config.use_cross_attention = False
    assert config.cross_attention_layers == []
    ArlowConfig.tiny(text_config=config).save_pretrained(tmp_path)
    both = ArlowConfig.from_pretrained(tmp_path, text_config={"use_cross_attention": True})
    assert both.text_config.cross_attention_layers == [0, 1]
    some = ArlowTextConfig.from_pretrained(tmp_path, cross_attention_layers=[1], use_cross_attention=True)
    assert some.cross_attention_layers == [1]


def test_parallel_plans_are_set() -> None:
    """Tensor- and pipeline-parallel plans are on the text config, and name modules the decoder has."""
    model = ArlowTextModel(ArlowTextConfig.tiny())
    modules = dict(model.named_modules())
    for name in ArlowTextConfig.base_model_tp_plan:
        assert name.replace("*", "0") in modules, name
    assert list(ArlowTextConfig.base_model_pp_plan) == ["embed_tokens", "layers", "norm"]
    assert all(hasattr(model, name) for name in ArlowTextConfig.base_model_pp_plan)
    linear = {name for name, module in model.layers[0].named_modules() if isinstance(module, torch.nn.Linear)}
    assert linear == {name.removeprefix("layers.*.") for name in ArlowTextConfig.base_model_tp_plan}


# The first Arlow


GPT_FILE = {
    "model_type": "arlowgpt", "architectures": ["ArlowGPTForCausalLM"], "vocab_size": 131, "hidden_size": 48,
    "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "hidden_act": "silu", "max_position_embeddings": 64, "initializer_range": 0.02, "rms_norm_eps": 1e-6,
    "use_cache": True, "tie_word_embeddings": True, "rope_theta": 100000.0, "attention_dropout": 0.1,
    "cross_attention": True, "use_cross_attention": True, "torch_dtype": "float32", "pad_token_id": 0,
    "transformers_version": "4.48.0",
}  # fmt: skip


def gpt_directory(folder: Path, **changes: Any) -> Path:
    (folder / "config.json").write_text(json.dumps({**GPT_FILE, **changes}))
    return folder


def test_arlowgpt_config_is_read(tmp_path: Path, library_log: pytest.LogCaptureFixture) -> None:
    """A `config.json` of the first Arlow is a text config with its fields, and no warning."""
    config = AutoConfig.from_pretrained(gpt_directory(tmp_path))
    assert isinstance(config, ArlowTextConfig) and config.model_type == "arlowgpt"
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 100000.0}
    assert (config.attention_dropout, config.cross_attention_layers) == (0.1, [0, 1])
    assert [record.getMessage() for record in library_log.records] == []
    assert type(ArlowTextConfig.from_pretrained(tmp_path)) is type(config)


@pytest.mark.parametrize("changes", [{"cross_attention": False}, {"use_cross_attention": False}])
def test_arlowgpt_needs_both_switches(changes: dict[str, Any], tmp_path: Path) -> None:
    """Cross-attention of the first Arlow is on only if both of its fields are."""
    config = AutoConfig.from_pretrained(gpt_directory(tmp_path, **changes))
    assert config.use_cross_attention is False and config.cross_attention_layers == []


def test_arlowgpt_model_builds_saves_and_loads(tmp_path: Path) -> None:
    """AutoModelForCausalLM works with an arlowgpt config: built, saved, loaded, same logits."""
    config = AutoConfig.from_pretrained(gpt_directory(tmp_path))
    model = AutoModelForCausalLM.from_config(config).eval()
    assert type(model) is ArlowForCausalLM and model.lm_head.weight is model.model.embed_tokens.weight
    model.save_pretrained(tmp_path / "saved")
    again, report = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert again.config.model_type == "arlowgpt"
    ids = torch.arange(12)[None]
    assert torch.equal(model(ids).logits, again(ids).logits)


# Open-ended sizes


@settings(max_examples=150, deadline=None)
@given(
    hidden=st.integers(-2, 40),
    heads=st.integers(-1, 6),
    groups=st.integers(-1, 6),
    layers=st.integers(0, 3),
    head_dim=st.none() | st.integers(-2, 12),
    vocab=st.integers(0, 9),
    sections=st.none() | st.lists(st.integers(-1, 8), max_size=4),
    kinds=st.none() | st.lists(st.sampled_from(["full_attention", "sliding_attention", "other"]), max_size=3),
    window=st.none() | st.integers(-1, 5),
    pad=st.none() | st.integers(-2, 10),
    cross=st.none() | st.lists(st.integers(-1, 3), max_size=3),
)
def test_a_text_config_either_raises_or_builds(
    hidden, heads, groups, layers, head_dim, vocab, sections, kinds, window, pad, cross
) -> None:
    """Any sizes: a ValueError, or a config whose model builds and runs."""
    try:
        config = ArlowTextConfig(
            vocab_size=vocab, hidden_size=hidden, intermediate_size=4, num_hidden_layers=layers, head_dim=head_dim,
            num_attention_heads=heads, num_key_value_heads=groups, mrope_sections=sections, layer_types=kinds,
            sliding_window=window, pad_token_id=pad, use_cross_attention=cross is not None,
            cross_attention_layers=cross,
        )  # fmt: skip
    except ValueError as error:
        assert len(str(error)) <= 300
        return
    model = ArlowForCausalLM(config).eval()
    with torch.no_grad():
        assert model(torch.zeros(1, 7, dtype=torch.long)).logits.isfinite().all()


@settings(max_examples=60, deadline=None)
@given(
    depth=st.integers(0, 7),
    width=st.integers(-2, 24),
    heads=st.integers(-1, 4),
    patch=st.integers(0, 3),
    merge=st.integers(0, 3),
    group=st.integers(0, 3),
    channels=st.integers(0, 3),
    ratio=st.floats(-1, 3) | st.integers(-1, 3),
    taps=st.none() | st.lists(st.integers(-1, 7), max_size=3),
)
def test_a_vision_config_either_raises_or_builds(
    depth, width, heads, patch, merge, group, channels, ratio, taps
) -> None:
    """Any sizes: a ValueError, or a config whose encoder builds and runs."""
    try:
        config = ArlowVisionConfig(
            depth=depth, embed_dim=width, hidden_size=8, num_heads=heads, patch_size=patch, spatial_merge_size=merge,
            temporal_patch_size=group, in_channels=channels, mlp_ratio=ratio, deepstack_visual_indexes=taps,
        )  # fmt: skip
    except ValueError as error:
        assert len(str(error)) <= 300
        return
    model = ArlowVLVisionModel(config).eval()
    grid = torch.tensor([[1, merge, 2 * merge]])
    with torch.no_grad():
        output = model(torch.zeros(2 * merge**2, channels * patch**2), grid)
    assert output.pooler_output.isfinite().all()
