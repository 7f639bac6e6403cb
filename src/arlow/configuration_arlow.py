"""The three configs: text decoder, vision encoder, and the composite of both.

Fields in, validated configs out. A config that can be built can be run: every impossible combination raises
`ValueError` naming the field and the value. Unknown keywords are errors; unknown keys of a `config.json` are reported
and kept.
"""

import copy
import math
import os
from typing import Any, ClassVar

import torch
from huggingface_hub.dataclasses import strict
from transformers.activations import ACT2FN
from transformers.configuration_utils import PreTrainedConfig
from transformers.generation import GenerationConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.utils import logging

from .errors import message, value_errors


logger = logging.get_logger(__name__)

LAYER_TYPES = ("full_attention", "sliding_attention")
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")
ROPE_TYPES = ("default", *ROPE_INIT_FUNCTIONS)
# What each rope_type cannot do without, besides rope_theta.
ROPE_NEEDS = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "longrope": ("short_factor", "long_factor"),
}

# What a `config.json` of a part says it is.
PARTS = {"arlow_text": "text", "arlowgpt": "text", "arlow_vision": "vision"}

# Keys that Transformers itself puts into a `config.json` or passes to a config, besides the declared fields.
_LIBRARY_KEYS = {
    "_attn_implementation_internal", "_commit_hash", "_experts_implementation_internal", "_name_or_path",
    "attn_implementation", "auto_map", "experts_implementation", "model_type", "name_or_path", "num_labels",
    "output_attentions", "partial_rotary_factor", "per_layer_config", "quantization_config", "rope_scaling",
    "rope_theta", "tie_last_hidden_states", "torch_dtype", "transformers_version", "use_cache",
}  # fmt: skip


class _ArlowConfigBase(PreTrainedConfig):
    """What the three configs share: strict keywords and tolerant files."""

    @classmethod
    def _known_keys(cls) -> set[str]:
        generation = GenerationConfig._get_default_generation_params()
        return set(cls.__dataclass_fields__) | _LIBRARY_KEYS | set(generation) | set(cls.attribute_map)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build from the content of a `config.json`. Keys no version of this package knows are reported once and
        kept as attributes, so that a file annotated by another program still loads."""
        cls._refuse_other_part(config_dict)
        known = cls._known_keys()
        unknown = {key: value for key, value in config_dict.items() if key not in known}
        if unknown:
            logger.warning(f"{cls.__name__}: unknown keys in the config file are ignored: {sorted(unknown)}")
        loaded = super().from_dict({k: v for k, v in config_dict.items() if k in known}, **kwargs)
        config = loaded[0] if isinstance(loaded, tuple) else loaded
        for key, value in unknown.items():
            setattr(config, key, value)
        return loaded

    @classmethod
    def _refuse_other_part(cls, fields: dict[str, Any]) -> None:
        given = PARTS.get(str(fields.get("model_type")))
        if given is not None and given != PARTS.get(cls.model_type):
            problem = f"this is a {given} config, which {cls.__name__} does not read"
            raise ValueError(message("model_type", fields["model_type"], problem, f"use Arlow{given.title()}Config"))

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """As the library's, but a directory without a config is no config full of defaults."""
        fields, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if not fields:
            raise OSError(message("config", str(pretrained_model_name_or_path), "holds no config.json"))
        return fields, kwargs

    @classmethod
    def _dict_from_json_file(cls, json_file: str | os.PathLike) -> dict[str, Any]:
        fields = super()._dict_from_json_file(json_file)
        if not isinstance(fields, dict):
            raise OSError(message("config", str(json_file), "must hold a JSON object of fields"))
        return fields

    def _check_keywords(self, kwargs: dict[str, Any]) -> None:
        unknown = sorted(set(kwargs) - self._known_keys())
        if unknown:
            raise ValueError(message(unknown[0], kwargs[unknown[0]], f"{type(self).__name__} has no such field"))
        for name, value in (("dtype", self.dtype), ("torch_dtype", kwargs.get("torch_dtype"))):
            if isinstance(value, str) and value != "auto" and not isinstance(getattr(torch, value, None), torch.dtype):
                raise ValueError(message(name, value, "is no dtype of torch", 'use a name like "bfloat16"'))
        scaling = kwargs.get("rope_scaling")
        if scaling is not None and not isinstance(scaling, dict):
            raise ValueError(message("rope_scaling", scaling, "must be a dict"))

    def _check(self, field: str, condition: bool, problem: str, remedy: str = "") -> None:
        if not condition:
            raise ValueError(message(field, getattr(self, field), problem, remedy))

    def _as_list(self, field: str) -> list:
        value = getattr(self, field)
        self._check(field, isinstance(value, (list, tuple)), "must be a list")
        return list(value)

    def _check_positive(self, *fields: str) -> None:
        for field in fields:
            value = getattr(self, field)
            self._check(field, _is_int(value) and value > 0, "must be a positive integer")

    def _check_not_negative(self, *fields: str) -> None:
        for field in fields:
            value = getattr(self, field)
            self._check(field, _is_number(value) and value >= 0, "must not be negative")

    def _check_fraction(self, *fields: str) -> None:
        for field in fields:
            value = getattr(self, field)
            self._check(field, _is_number(value) and 0 <= value < 1, "must lie in [0, 1)")

    def _check_sections(self, sections: Any, head_dim: int) -> Any:
        if sections is None:
            return None
        valid = isinstance(sections, (list, tuple)) and len(sections) == 3
        valid = valid and all(_is_int(part) and part >= 0 for part in sections)
        self._check("mrope_sections", valid, "must be three integers [t, h, w], none negative")
        self._check(
            "mrope_sections", sum(sections) == head_dim, f"must sum to head_dim={head_dim}, not {sum(sections)}"
        )
        return list(sections)


@value_errors
@strict
class ArlowTextConfig(_ArlowConfigBase):
    """Config of the text decoder ([`ArlowTextModel`] and its heads).

    Defaults are those of the published text model. `rope_parameters` takes every `rope_type` that Transformers knows.
    """

    model_type = "arlow_text"
    base_config_key = "text_config"
    keys_to_ignore_at_inference: ClassVar = ["past_key_values"]
    default_theta = 100000.0
    ignore_keys_at_rope_validation: ClassVar = {"mrope_section", "mrope_interleaved"}
    base_model_tp_plan: ClassVar = {
        "layers.*.self_attn.q_proj": "colwise",
        "layers.*.self_attn.k_proj": "colwise",
        "layers.*.self_attn.v_proj": "colwise",
        "layers.*.self_attn.o_proj": "rowwise",
        "layers.*.mlp.gate_proj": "colwise",
        "layers.*.mlp.up_proj": "colwise",
        "layers.*.mlp.down_proj": "rowwise",
    }
    base_model_pp_plan: ClassVar = {
        "embed_tokens": (["input_ids"], ["inputs_embeds"]),
        "layers": (["hidden_states", "attention_mask"], ["hidden_states"]),
        "norm": (["hidden_states"], ["hidden_states"]),
    }

    vocab_size: int = 131072  # tokens
    hidden_size: int = 2304  # width of the residual stream
    intermediate_size: int = 9216  # width inside the MLP
    num_hidden_layers: int = 28
    num_attention_heads: int = 24  # query heads
    num_key_value_heads: int = 4  # key and value heads; divides num_attention_heads
    head_dim: Any = None  # int; default: hidden_size / num_attention_heads
    hidden_act: str = "silu"
    max_position_embeddings: int = 32768  # tokens
    initializer_range: float | int = 0.02  # standard deviation
    rms_norm_eps: float | int = 1e-6
    use_cache: bool = True
    tie_word_embeddings: bool = False  # the LM head shares the embedding's weight
    rope_parameters: Any = None  # dict; default: {"rope_type": "default", "rope_theta": 100000.0}
    attention_bias: bool = False  # bias of q, k and v; the output projection never has one
    attention_dropout: float | int = 0.0  # of the attention weights
    resid_dropout: float | int = 0.0  # of each block's output, before it joins the residual stream
    mlp_dropout: float | int = 0.0  # inside the MLP, before down_proj
    use_sliding_window: bool = False  # without layer_types: layers from max_window_layers on slide
    sliding_window: int | None = 4096  # tokens a sliding layer sees, itself included
    max_window_layers: int = 28
    layer_types: Any = None  # list: "full_attention" | "sliding_attention" per layer
    mrope_sections: Any = None  # [t, h, w]; sums to head_dim
    use_cross_attention: bool = False
    cross_attention_layers: Any = None  # list of layers; default: every layer
    encoder_hidden_size: Any = None  # int: width of encoder_hidden_states; default: hidden_size
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self._check_keywords(kwargs)
        valid = self.rope_parameters is None or isinstance(self.rope_parameters, dict)
        self._check("rope_parameters", valid, "must be a dict")
        # The library fills the caller's dict in place; the caller's must stay as it is.
        self.rope_parameters = copy.deepcopy(self.rope_parameters)
        self._check_sizes()
        self._resolve_layers()
        super().__post_init__(**kwargs)
        self._check_positive("num_labels")
        known = self.problem_type in (None, *PROBLEM_TYPES)
        self._check("problem_type", known, f"unknown problem type; use one of {PROBLEM_TYPES}")
        self._check_rope()
        self.cross_attention_layers = self._cross_layers()
        if self.mrope_sections is not None:
            # Serving engines recognise M-RoPE by this key.
            self.rope_parameters["mrope_section"] = list(self.mrope_sections)

    def _check_sizes(self) -> None:
        self._check_positive(
            "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "num_key_value_heads", "max_position_embeddings",
        )  # fmt: skip
        self._check(
            "num_key_value_heads", self.num_attention_heads % self.num_key_value_heads == 0,
            f"must divide num_attention_heads={self.num_attention_heads}",
        )  # fmt: skip
        if self.head_dim is None:
            divides = self.hidden_size % self.num_attention_heads == 0
            self._check(
                "hidden_size",
                divides,
                f"is no multiple of num_attention_heads={self.num_attention_heads}",
                "set head_dim",
            )
            self.head_dim = self.hidden_size // self.num_attention_heads
        self._check_positive("head_dim")
        self._check("head_dim", self.head_dim % 2 == 0, "must be even: rotary embedding turns pairs")
        self._check("hidden_act", self.hidden_act in ACT2FN, "is no activation that Transformers knows")
        self._check_fraction("attention_dropout", "resid_dropout", "mlp_dropout")
        self._check_not_negative("initializer_range", "max_window_layers")
        self._check("rms_norm_eps", _is_positive(self.rms_norm_eps), "must be positive")
        if self.encoder_hidden_size is None:
            self.encoder_hidden_size = self.hidden_size
        self._check_positive("encoder_hidden_size")
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            value = getattr(self, name)
            ids = value if isinstance(value, (list, tuple)) else [] if value is None else [value]
            valid = all(_is_int(token) and 0 <= token < self.vocab_size for token in ids)
            self._check(name, valid, f"must lie in the vocabulary, 0..{self.vocab_size - 1}")
        self.mrope_sections = self._check_sections(self.mrope_sections, self.head_dim)

    def _resolve_layers(self) -> None:
        """`layer_types` decides; without it, the Qwen2 rule: layers from `max_window_layers` on slide."""
        if self.layer_types is None:
            first = self.max_window_layers if self.use_sliding_window else self.num_hidden_layers
            self.layer_types = [LAYER_TYPES[i >= first] for i in range(self.num_hidden_layers)]
        self.layer_types = self._as_list("layer_types")
        unknown = [kind for kind in self.layer_types if kind not in LAYER_TYPES]
        self._check("layer_types", not unknown, f"unknown layer type {unknown[:1]}", f"use one of {LAYER_TYPES}")
        count = len(self.layer_types)
        self._check(
            "layer_types", count == self.num_hidden_layers, f"{count} entries for {self.num_hidden_layers} layers"
        )
        self.use_sliding_window = "sliding_attention" in self.layer_types
        if self.use_sliding_window:
            self._check_positive("sliding_window")

    def _check_rope(self) -> None:
        rope = self.rope_parameters
        rope_type = rope.get("rope_type", "default")
        self._check(
            "rope_parameters", rope_type in ROPE_TYPES, f"unknown rope_type {rope_type!r}", f"use one of {ROPE_TYPES}"
        )
        self._check("rope_parameters", _is_positive(rope.get("rope_theta")), "rope_theta must be positive")
        missing = [key for key in ROPE_NEEDS.get(rope_type, ()) if rope.get(key) is None]
        self._check("rope_parameters", not missing, f"rope_type {rope_type!r} needs {missing}")
        factor = rope.get("factor")
        self._check(
            "rope_parameters", factor is None or (_is_number(factor) and factor >= 1), "factor must be at least 1"
        )
        scale = rope.get("attention_factor")
        self._check("rope_parameters", scale is None or _is_positive(scale), "attention_factor must be positive")
        pairs = self.head_dim // 2
        for key in ("short_factor", "long_factor"):
            values = rope.get(key) or [1.0] * pairs
            valid = isinstance(values, (list, tuple)) and len(values) == pairs and all(map(_is_positive, values))
            self._check("rope_parameters", valid, f"{key} needs head_dim/2={pairs} positive numbers")
        trained = rope.get("original_max_position_embeddings", 1)
        self._check("rope_parameters", _is_positive(trained), "original_max_position_embeddings must be positive")
        if rope_type == "llama3":
            low, high = rope["low_freq_factor"], rope["high_freq_factor"]
            ordered = _is_positive(low) and _is_positive(high) and low < high
            self._check("rope_parameters", ordered, "low_freq_factor must be positive and below high_freq_factor")
        # Other rope types make tables shorter than a head with it, but Arlow turns all dimensions of a head.
        partial = rope.get("partial_rotary_factor", 1)
        valid = _is_positive(partial) and partial <= 1 and (partial == 1 or rope_type == "proportional")
        self._check("rope_parameters", valid, "partial_rotary_factor must be 1; up to 1 with rope_type 'proportional'")

    def _cross_layers(self) -> list[int]:
        """None without cross-attention; with it all, unless some are named. An empty list names none: it is what a
        config without cross-attention was saved with."""
        given = self._as_list("cross_attention_layers") if self.cross_attention_layers is not None else []
        valid = all(_is_int(i) and 0 <= i < self.num_hidden_layers for i in given) and len(set(given)) == len(given)
        self._check("cross_attention_layers", valid, f"must be distinct layers in 0..{self.num_hidden_layers - 1}")
        if not self.use_cross_attention:
            return []
        return sorted(given) or list(range(self.num_hidden_layers))

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        # Once the config is built: what `from_pretrained(..., use_cross_attention=True)` changes, too.
        if name == "use_cross_attention" and isinstance(self.__dict__.get("cross_attention_layers"), list):
            super().__setattr__("cross_attention_layers", self._cross_layers())

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        if cls is ArlowTextConfig and config_dict.get("model_type") == ArlowGPTConfig.model_type:
            return ArlowGPTConfig.from_dict(config_dict, **kwargs)
        return super().from_dict(config_dict, **kwargs)

    @classmethod
    def tiny(cls, **overrides: Any) -> "ArlowTextConfig":
        """The small text model shared by docs, tests and benchmarks."""
        sizes = {
            "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096,
        }  # fmt: skip
        return cls(**{**sizes, **overrides})


@value_errors
@strict
class ArlowGPTConfig(ArlowTextConfig):
    """The text config of the first Arlow (`model_type: arlowgpt`), with that version's defaults."""

    model_type = "arlowgpt"

    max_position_embeddings: int = 2048
    num_attention_heads: int = 12
    num_key_value_heads: int = 12
    attention_dropout: float | int = 0.1
    tie_word_embeddings: bool = True
    use_cross_attention: bool = True
    cross_attention: bool = True  # both this and use_cross_attention must hold

    def __post_init__(self, **kwargs: Any) -> None:
        self.use_cross_attention = self.use_cross_attention and self.cross_attention
        super().__post_init__(**kwargs)


@value_errors
@strict
class ArlowVisionConfig(_ArlowConfigBase):
    """Config of the vision encoder ([`ArlowVLVisionModel`]). A `patch` is before merging, a token after."""

    model_type = "arlow_vision"
    base_config_key = "vision_config"
    attribute_map: ClassVar = {"num_hidden_layers": "depth", "num_attention_heads": "num_heads"}

    depth: int = 32  # blocks
    embed_dim: int = 1280  # width of a patch inside the encoder
    hidden_size: int = 3584  # width the merger projects to: the text width
    num_heads: int = 16
    mlp_ratio: float | int = 4  # width inside a block's MLP, in embed_dim
    hidden_act: str = "gelu_pytorch_tanh"
    in_channels: int = 3
    patch_size: int = 14  # pixels
    spatial_merge_size: int = 2  # patches per side of a merged token
    temporal_patch_size: int = 2  # frames per frame group
    rope_theta: float | int = 100000.0
    mrope_sections: Any = None  # [t, h, w]; sums to embed_dim / num_heads
    temporal_window_size: int | None = None  # frame groups that attend to one another; None: the whole clip
    use_deformable_attention: bool = False
    deformable_attention_window: float | int = 0.25  # radius, in normalised coordinates
    deformable_attention_strength: float | int = 4.0  # bias per unit of distance
    use_progressive_patches: bool = False
    token_pruning_ratio: float | int = 0.0
    deepstack_visual_indexes: Any = None  # list of blocks; default: see `_deepstack_indexes`
    initializer_range: float | int = 0.02  # standard deviation

    def __post_init__(self, **kwargs: Any) -> None:
        # The earlier configs carry the text model's length here; the encoder has no use for it.
        kwargs.pop("max_position_embeddings", None)
        # This config has no `rope_parameters`: its theta is a plain field.
        self._check_keywords(kwargs)
        self._check_sizes()
        self._check_attention()
        self.deepstack_visual_indexes = self._deepstack_indexes()
        super().__post_init__(**kwargs)

    @classmethod
    def _known_keys(cls) -> set[str]:
        return super()._known_keys() | {"max_position_embeddings"}

    @property
    def head_dim(self) -> int:
        return self.embed_dim // self.num_heads

    def _check_sizes(self) -> None:
        self._check_positive(
            "depth", "embed_dim", "hidden_size", "num_heads", "in_channels", "patch_size", "spatial_merge_size",
            "temporal_patch_size",
        )  # fmt: skip
        self._check("embed_dim", self.embed_dim % self.num_heads == 0, f"is no multiple of num_heads={self.num_heads}")
        self._check("embed_dim", self.head_dim % 2 == 0, f"head size {self.head_dim} must be even")
        self._check("mlp_ratio", _is_positive(self.mlp_ratio), "must be positive")
        wide = self.embed_dim * self.mlp_ratio >= 1
        self._check("mlp_ratio", wide, f"leaves the MLP no width at embed_dim={self.embed_dim}")
        self._check("rope_theta", _is_positive(self.rope_theta), "must be positive")
        self._check("hidden_act", self.hidden_act in ACT2FN, "is no activation that Transformers knows")
        self.mrope_sections = self._check_sections(self.mrope_sections, self.head_dim)

    def _check_attention(self) -> None:
        if self.temporal_window_size is not None:
            self._check_positive("temporal_window_size")
        self._check("deformable_attention_window", _is_positive(self.deformable_attention_window), "must be positive")
        self._check_not_negative("deformable_attention_strength", "initializer_range")
        self._check_fraction("token_pruning_ratio")
        self._check("token_pruning_ratio", self.token_pruning_ratio == 0, "token pruning is not built yet", "use 0.0")

    def _deepstack_indexes(self) -> list[int]:
        if self.deepstack_visual_indexes is None:
            # A quarter, the middle, and shortly before the end; a shallow encoder has no use for DeepStack.
            return sorted({self.depth // 4, self.depth // 2, self.depth - 4}) if self.depth >= 6 else []
        indexes = self._as_list("deepstack_visual_indexes")
        valid = all(_is_int(i) and 0 <= i < self.depth for i in indexes)
        self._check("deepstack_visual_indexes", valid, f"must be blocks in 0..{self.depth - 1}")
        ordered = indexes == sorted(set(indexes))
        self._check("deepstack_visual_indexes", ordered, "must be ascending and distinct")
        return indexes

    @classmethod
    def tiny(cls, **overrides: Any) -> "ArlowVisionConfig":
        """The small encoder shared by docs, tests and benchmarks."""
        sizes = {
            "depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2, "patch_size": 14,
            "deepstack_visual_indexes": [0],
        }  # fmt: skip
        return cls(**{**sizes, **overrides})


@value_errors
@strict
class ArlowConfig(_ArlowConfigBase):
    """Config of the vision-language model ([`ArlowModel`], [`ArlowForConditionalGeneration`])."""

    model_type = "arlow"
    sub_configs_defaults: ClassVar = {"vision_config": ArlowVisionConfig, "text_config": ArlowTextConfig}
    keys_to_ignore_at_inference: ClassVar = ["past_key_values"]

    text_config: Any = None  # an ArlowTextConfig or its fields; afterwards an ArlowTextConfig
    vision_config: Any = None  # an ArlowVisionConfig or its fields; afterwards an ArlowVisionConfig
    image_token_id: int = 131066  # placeholder of one merged image token
    video_token_id: int = 131067  # placeholder of one merged video token
    vision_start_token_id: int = 131064
    vision_end_token_id: int = 131065
    tie_word_embeddings: bool = False
    use_gated_cross_attention: bool = False  # a learned gate per DeepStack injection
    deepstack_decoder_layers: Any = None  # list of layers; default: the first ones
    initializer_range: float | int = 0.02  # standard deviation

    def __post_init__(self, **kwargs: Any) -> None:
        self._refuse_flat(kwargs)
        self._check_keywords(kwargs)
        self._check_not_negative("initializer_range")
        self._check_parts()
        self._share_tying()
        if self.vision_config is None:
            self.vision_config = {}
        if isinstance(self.vision_config, dict) and "hidden_size" not in self.vision_config:
            text = self.text_config
            width = text.get("hidden_size") if isinstance(text, dict) else getattr(text, "hidden_size", None)
            self.vision_config = {**self.vision_config, "hidden_size": width or ArlowTextConfig.hidden_size}
        super().__post_init__(**kwargs)
        self.tie_word_embeddings = self.text_config.tie_word_embeddings
        self._check_widths()
        self._check_token_ids()
        self.deepstack_decoder_layers = self._injection_layers()
        if self.text_config.mrope_sections is None:
            self.text_config.mrope_sections = default_sections(self.text_config.head_dim)
            self.text_config.rope_parameters["mrope_section"] = list(self.text_config.mrope_sections)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        cls._refuse_other_part(config_dict)
        cls._refuse_flat(config_dict)
        config_dict = dict(config_dict)
        for key, part in (("text_config", ArlowTextConfig), ("vision_config", ArlowVisionConfig)):
            # A nested dict goes through its own class, which reports unknown keys instead of refusing them.
            if isinstance(config_dict.get(key), dict) and not isinstance(kwargs.get(key), dict):
                config_dict[key] = part.from_dict(config_dict[key])
        return super().from_dict(config_dict, **kwargs)

    @staticmethod
    def _refuse_flat(fields: dict[str, Any]) -> None:
        """Text fields at the top are the sign of an earlier Arlow generation, whose tensors mean something else."""
        if fields.get("text_config") is None and "num_hidden_layers" in fields:
            problem = "a flat config of an earlier Arlow generation, whose checkpoints this version does not read"
            raise ValueError(message("config", {"model_type": "arlow"}, problem, "nest these fields in text_config"))

    def _share_tying(self) -> None:
        """The composite model reads `tie_word_embeddings` here, the causal LM of the same checkpoint reads the text
        config's: they must not differ. Either one set to True ties both."""
        text = copy.deepcopy(self.text_config) if self.text_config is not None else {}  # the caller's stays as it is
        if isinstance(text, dict):
            text["tie_word_embeddings"] = bool(text.get("tie_word_embeddings", False) or self.tie_word_embeddings)
        else:
            text.tie_word_embeddings = bool(text.tie_word_embeddings or self.tie_word_embeddings)
        self.text_config = text

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if "initializer_range" not in self.__dict__:  # the last field: the config is still being filled
            return
        if name == "tie_word_embeddings" and isinstance(self.text_config, ArlowTextConfig):
            self.text_config.tie_word_embeddings = value
        elif name == "text_config" and isinstance(value, ArlowTextConfig):
            super().__setattr__("tie_word_embeddings", value.tie_word_embeddings)

    def _check_parts(self) -> None:
        for name, part in (("text_config", ArlowTextConfig), ("vision_config", ArlowVisionConfig)):
            valid = isinstance(getattr(self, name), (dict, part, type(None)))
            self._check(name, valid, f"must be an {part.__name__} or a dict of its fields")

    def _check_widths(self) -> None:
        text, vision = self.text_config, self.vision_config
        if vision.hidden_size != text.hidden_size:
            problem = f"the encoder must project to the text width, hidden_size={text.hidden_size}"
            raise ValueError(message("vision_config.hidden_size", vision.hidden_size, problem))

    def _check_token_ids(self) -> None:
        names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
        for name in names:
            value = getattr(self, name)
            valid = _is_int(value) and 0 <= value < self.text_config.vocab_size
            self._check(name, valid, f"must lie in the vocabulary, 0..{self.text_config.vocab_size - 1}")
        self._check(
            "video_token_id", len({getattr(self, name) for name in names}) == 4, "two special tokens share an id"
        )

    def _injection_layers(self) -> list[int]:
        taps, depth = len(self.vision_config.deepstack_visual_indexes), self.text_config.num_hidden_layers
        layers = self.deepstack_decoder_layers
        layers = list(range(taps)) if layers is None else self._as_list("deepstack_decoder_layers")
        problem = f"needs one decoder layer in 0..{depth - 1} for each of the {taps} deepstack_visual_indexes"
        valid = all(_is_int(i) and 0 <= i < depth for i in layers) and len(layers) == taps == len(set(layers))
        if not valid:
            raise ValueError(message("deepstack_decoder_layers", layers, problem))
        return layers

    @classmethod
    def tiny(cls, **overrides: Any) -> "ArlowConfig":
        """The small vision-language model shared by docs, tests and benchmarks."""
        fields = {
            "text_config": ArlowTextConfig.tiny(), "vision_config": ArlowVisionConfig.tiny(),
            "image_token_id": 5, "video_token_id": 6, "vision_start_token_id": 3, "vision_end_token_id": 4,
        }  # fmt: skip
        return cls(**{**fields, **overrides})


def default_sections(head_dim: int) -> list[int]:
    """[t, h, w] shares of a head: equal thirds, the remainder to time. Sums to `head_dim`."""
    third = head_dim // 3
    return [head_dim - 2 * third, third, third]


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_positive(value: Any) -> bool:
    return _is_number(value) and value > 0


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
