"""The three configs: text decoder, vision encoder, and the composite of both.

Fields in, validated configs out. A config that can be built can be run: every impossible combination raises
`ValueError` naming the field and the value. Unknown keywords are errors; unknown keys of a `config.json` are reported
and kept.
"""

import copy
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers.activations import ACT2FN
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from .configuration_base import ArlowConfigBase, is_int, is_number, is_positive
from .configuration_tower import ArlowTowerConfig
from .earlier_config import UNPAIRED_FREQUENCIES, todays_form
from .errors import message, value_errors


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


@value_errors
@strict
class ArlowTextConfig(ArlowConfigBase):
    """Config of the text decoder ([`ArlowTextModel`] and its heads).

    Defaults are those of the published text model. `rope_parameters` takes every `rope_type` that Transformers knows.
    """

    model_type = "arlow_text"
    base_config_key = "text_config"
    keys_to_ignore_at_inference: ClassVar = ["past_key_values"]
    default_theta = 100000.0
    ignore_keys_at_rope_validation: ClassVar = {"mrope_section", "mrope_interleaved", UNPAIRED_FREQUENCIES}
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
    qk_norm: bool = False  # RMS norm over each head's query and key, before they are turned
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
        self._check("rms_norm_eps", is_positive(self.rms_norm_eps), "must be positive")
        if self.encoder_hidden_size is None:
            self.encoder_hidden_size = self.hidden_size
        self._check_positive("encoder_hidden_size")
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            value = getattr(self, name)
            ids = value if isinstance(value, (list, tuple)) else [] if value is None else [value]
            valid = all(is_int(token) and 0 <= token < self.vocab_size for token in ids)
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
        self._check("rope_parameters", is_positive(rope.get("rope_theta")), "rope_theta must be positive")
        missing = [key for key in ROPE_NEEDS.get(rope_type, ()) if rope.get(key) is None]
        self._check("rope_parameters", not missing, f"rope_type {rope_type!r} needs {missing}")
        factor = rope.get("factor")
        self._check(
            "rope_parameters", factor is None or (is_number(factor) and factor >= 1), "factor must be at least 1"
        )
        scale = rope.get("attention_factor")
        self._check("rope_parameters", scale is None or is_positive(scale), "attention_factor must be positive")
        pairs = self.head_dim // 2
        for key in ("short_factor", "long_factor"):
            values = rope.get(key) or [1.0] * pairs
            valid = isinstance(values, (list, tuple)) and len(values) == pairs and all(map(is_positive, values))
            self._check("rope_parameters", valid, f"{key} needs head_dim/2={pairs} positive numbers")
        trained = rope.get("original_max_position_embeddings", 1)
        self._check("rope_parameters", is_positive(trained), "original_max_position_embeddings must be positive")
        if rope_type == "llama3":
            low, high = rope["low_freq_factor"], rope["high_freq_factor"]
            ordered = is_positive(low) and is_positive(high) and low < high
            self._check("rope_parameters", ordered, "low_freq_factor must be positive and below high_freq_factor")
        # Other rope types make tables shorter than a head with it, but Arlow turns all dimensions of a head.
        unpaired = rope.get(UNPAIRED_FREQUENCIES, False)
        self._check("rope_parameters", isinstance(unpaired, bool), f"{UNPAIRED_FREQUENCIES} must be true or false")
        partial = rope.get("partial_rotary_factor", 1)
        valid = is_positive(partial) and partial <= 1 and (partial == 1 or rope_type == "proportional")
        self._check("rope_parameters", valid, "partial_rotary_factor must be 1; up to 1 with rope_type 'proportional'")

    def _cross_layers(self) -> list[int]:
        """None without cross-attention; with it all, unless some are named. An empty list names none: it is what a
        config without cross-attention was saved with."""
        given = self._as_list("cross_attention_layers") if self.cross_attention_layers is not None else []
        valid = all(is_int(i) and 0 <= i < self.num_hidden_layers for i in given) and len(set(given)) == len(given)
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
class ArlowVisionConfig(ArlowConfigBase):
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
    use_absolute_positions: bool = False  # a patch is told its place in the frame; rotations alone tell distances
    token_pruning_ratio: float | int = 0.0  # share of an image's tokens that the decoder does not get: see `pruning`
    deepstack_visual_indexes: Any = None  # list of blocks; default: see `_deepstack_indexes`
    image_mean: Any = (
        0.5  # of uint8 rows, which the encoder normalises: the processor's; one number or one per channel
    )
    image_std: Any = 0.5
    initializer_range: float | int = 0.02  # standard deviation

    def __post_init__(self, **kwargs: Any) -> None:
        # The earlier configs carry the text model's length here; the encoder has no use for it.
        kwargs.pop("max_position_embeddings", None)
        # This config has no `rope_parameters`: its theta is a plain field.
        self._check_keywords(kwargs)
        self._check_sizes()
        self._check_normalisation()
        self._check_attention()
        self.deepstack_visual_indexes = self._deepstack_indexes()
        super().__post_init__(**kwargs)

    @classmethod
    def _known_keys(cls) -> set[str]:
        return super()._known_keys() | {"max_position_embeddings"}

    @property
    def head_dim(self) -> int:
        return self.embed_dim // self.num_heads

    @property
    def smallest_side(self) -> int:
        """Patches per side of the smallest picture."""
        return self.spatial_merge_size

    def _check_sizes(self) -> None:
        self._check_positive(
            "depth", "embed_dim", "hidden_size", "num_heads", "in_channels", "patch_size", "spatial_merge_size",
            "temporal_patch_size",
        )  # fmt: skip
        self._check("embed_dim", self.embed_dim % self.num_heads == 0, f"is no multiple of num_heads={self.num_heads}")
        self._check("embed_dim", self.head_dim % 2 == 0, f"head size {self.head_dim} must be even")
        self._check("mlp_ratio", is_positive(self.mlp_ratio), "must be positive")
        wide = self.embed_dim * self.mlp_ratio >= 1
        self._check("mlp_ratio", wide, f"leaves the MLP no width at embed_dim={self.embed_dim}")
        self._check("rope_theta", is_positive(self.rope_theta), "must be positive")
        self._check("hidden_act", self.hidden_act in ACT2FN, "is no activation that Transformers knows")
        self.mrope_sections = self._check_sections(self.mrope_sections, self.head_dim)

    def _check_normalisation(self) -> None:
        for name in ("image_mean", "image_std"):
            value = getattr(self, name)
            each = list(value) if isinstance(value, (list, tuple)) else [value]
            self._check(name, len(each) in (1, self.in_channels), "must be one number or one per channel")
            self._check(name, all(map(is_number, each)), "must be finite")
            self._check(name, name == "image_mean" or min(each) > 0, "must be positive")
            setattr(self, name, each if isinstance(value, (list, tuple)) else value)

    def _check_attention(self) -> None:
        if self.temporal_window_size is not None:
            self._check_positive("temporal_window_size")
        self._check("deformable_attention_window", is_positive(self.deformable_attention_window), "must be positive")
        self._check_not_negative("deformable_attention_strength", "initializer_range")
        self._check_fraction("token_pruning_ratio")

    def _deepstack_indexes(self) -> list[int]:
        if self.deepstack_visual_indexes is None:
            # A quarter, the middle, and shortly before the end; a shallow encoder has no use for DeepStack.
            return sorted({self.depth // 4, self.depth // 2, self.depth - 4}) if self.depth >= 6 else []
        indexes = self._as_list("deepstack_visual_indexes")
        valid = all(is_int(i) and 0 <= i < self.depth for i in indexes)
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
class ArlowConfig(ArlowConfigBase):
    """Config of the vision-language model ([`ArlowModel`], [`ArlowForConditionalGeneration`])."""

    model_type = "arlow"
    sub_configs_defaults: ClassVar = {"vision_config": ArlowVisionConfig, "text_config": ArlowTextConfig}
    keys_to_ignore_at_inference: ClassVar = ["past_key_values"]

    text_config: Any = None  # an ArlowTextConfig or its fields; afterwards an ArlowTextConfig
    vision_config: Any = None  # an ArlowVisionConfig, or a vision config of Transformers (then an ArlowTowerConfig)
    image_token_id: int = 131066  # placeholder of one merged image token
    video_token_id: int = 131067  # placeholder of one merged video token
    vision_start_token_id: int = 131064
    vision_end_token_id: int = 131065
    tie_word_embeddings: bool = False
    use_gated_cross_attention: bool = False  # a learned gate per DeepStack injection
    deepstack_decoder_layers: Any = None  # list of layers; default: the first ones
    initializer_range: float | int = 0.02  # standard deviation

    def __post_init__(self, **kwargs: Any) -> None:
        self._check_keywords(kwargs)
        self._check_not_negative("initializer_range")
        self._check_parts()
        self._share_tying()
        self.vision_config = self._vision_part()
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
        today = todays_form(config_dict)
        if today is not config_dict and today["model_type"] != cls.model_type:
            # An earlier text model or encoder, which calls itself "arlow": the Auto classes come here.
            lone = ArlowTextConfig if today["model_type"] == ArlowTextConfig.model_type else ArlowVisionConfig
            return lone.from_dict(today, **kwargs)
        config_dict = dict(cls._own_part(today))
        for key in ("text_config", "vision_config"):
            # A nested dict goes through its own class, which reports unknown keys instead of refusing them.
            fields = config_dict.get(key)
            if isinstance(fields, dict) and not isinstance(kwargs.get(key), dict):
                part = ArlowTextConfig if key == "text_config" else vision_class(fields)
                config_dict[key] = fields if part is None else part.from_dict(fields)
        return super().from_dict(config_dict, **kwargs)

    def _vision_part(self) -> Any:
        """What was given as `vision_config`, with the text width where none was; a tower in the config around it."""
        text, given = self.text_config, self.vision_config
        width = text.get("hidden_size") if isinstance(text, dict) else getattr(text, "hidden_size", None)
        width = {"hidden_size": width or ArlowTextConfig.hidden_size}
        if isinstance(given, dict):
            part = vision_class(given)
            return ArlowTowerConfig(tower_config=given, **width) if part is None else part(**{**width, **given})
        if given is None:
            return ArlowVisionConfig(**width)
        own = isinstance(given, (ArlowVisionConfig, ArlowTowerConfig))
        return given if own else ArlowTowerConfig(tower_config=given, **width)

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
        text, vision = self.text_config, self.vision_config
        valid = isinstance(text, (dict, ArlowTextConfig, type(None)))
        self._check("text_config", valid, "must be an ArlowTextConfig or a dict of its fields")
        valid = isinstance(vision, (dict, PreTrainedConfig, type(None))) and not isinstance(vision, ArlowTextConfig)
        self._check("vision_config", valid, "must be an ArlowVisionConfig, a Transformers vision config or its fields")

    def _check_widths(self) -> None:
        text, vision = self.text_config, self.vision_config
        if vision.hidden_size != text.hidden_size:
            problem = f"the encoder must project to the text width, hidden_size={text.hidden_size}"
            raise ValueError(message("vision_config.hidden_size", vision.hidden_size, problem))

    def _check_token_ids(self) -> None:
        names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
        for name in names:
            value = getattr(self, name)
            valid = is_int(value) and 0 <= value < self.text_config.vocab_size
            self._check(name, valid, f"must lie in the vocabulary, 0..{self.text_config.vocab_size - 1}")
        self._check(
            "video_token_id", len({getattr(self, name) for name in names}) == 4, "two special tokens share an id"
        )

    def _injection_layers(self) -> list[int]:
        taps, depth = len(self.vision_config.deepstack_visual_indexes), self.text_config.num_hidden_layers
        layers = self.deepstack_decoder_layers
        layers = list(range(taps)) if layers is None else self._as_list("deepstack_decoder_layers")
        problem = f"needs one decoder layer in 0..{depth - 1} for each of the {taps} deepstack_visual_indexes"
        valid = all(is_int(i) and 0 <= i < depth for i in layers) and len(layers) == taps == len(set(layers))
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


def vision_class(fields: dict[str, Any]) -> type[ArlowVisionConfig | ArlowTowerConfig] | None:
    """The config class of a nested vision config; None: the fields are those of a tower of Transformers."""
    known = {None: ArlowVisionConfig, "arlow": ArlowVisionConfig}
    known |= {part.model_type: part for part in (ArlowVisionConfig, ArlowTowerConfig)}
    return known.get(fields.get("model_type"))


def default_sections(head_dim: int) -> list[int]:
    """[t, h, w] shares of a head: equal thirds, the remainder to time. Sums to `head_dim`."""
    third = head_dim // 3
    return [head_dim - 2 * third, third, third]
