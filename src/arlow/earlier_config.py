"""Configs of the earlier Arlow generations: which one a `config.json` is of, and its fields in today's form.

Four generations came before, all with `model_type: arlow` and the text fields at the top. V2 (text) and VL (text,
vision-language, lone vision encoders) are read; V1 and V0 compute what this decoder does not. Tensors have the same
names and shapes in V2, in VL and today and mean three different things, so nothing but the config can tell them apart:
a config whose signs conflict or are missing is refused, never guessed.
"""

from __future__ import annotations

from typing import Any

from .errors import message


# Key of `rope_parameters` that only VL checkpoints have: both elements of a rotary pair have a frequency of their own.
UNPAIRED_FREQUENCIES = "unpaired_frequencies"

# What a config remembers of its file for as long as nothing is loaded with it; never saved.
EARLIER = "_earlier_generation"

OF_THE_FILE = ("architectures", "dtype", "torch_dtype", "transformers_version")  # not of a part

V2_SIGNS = ("vocab_size", "layer_types", "rope_theta", "rope_scaling")
VL_SIGNS = ("vocab_size", "layer_types", "rope_theta", "rope_parameters", "mrope_sections")
TOWER_SIGNS = ("embed_dim", "depth", "patch_size")
TODAY = "cross_attention_layers"  # no earlier text config has it, every one of today
# At the top of a config of a whole model, each of these says that it is none of today.
FLAT = (
    *("vocab_size", "num_hidden_layers", "layer_types", "rope_theta", "rope_scaling", "mrope_sections"),
    *("embed_dim", "depth"),
)
NEVER_IN_V2 = ("mrope_sections", "vision_config", "rope_parameters", "use_cross_attention")
NEVER_IN_VL = ("rope_scaling", "use_cross_attention")

TEXT_CLASSES = {
    "ArlowTextModel",
    "ArlowForCausalLM",
    "ArlowForSequenceClassification",
    "ArlowForTokenClassification",
    "ArlowForQuestionAnswering",
}
# Fields of the whole model; the others at the top of a VL config are the text model's.
WHOLE = (
    "image_token_id",
    "video_token_id",
    "vision_start_token_id",
    "vision_end_token_id",
    "use_gated_cross_attention",
)
# Written by VL, read by nothing there that has an equal here: options of its processors, plans, and the share of each
# axis that `mrope_sections` has in numbers.
WITHOUT_MEANING = {
    "_mrope_ratio",
    "dynamic_resolution",
    "frame_separator_token_id",
    "gated_cross_attention_start_layer",
    "mm_tokens_per_image",
    "mm_tokens_per_video",
    "pan_and_scan",
    "timestamp_alignment",
    "video_max_frames",
    "video_sample_strategy",
}


def generation_of(fields: dict[str, Any]) -> str | None:
    """ "V2" or "VL" for the content of an earlier `config.json`, None for one of today.

    Raises:
        ValueError: V1 or V0, or a flat config that cannot be told.
    """
    kind = fields.get("model_type")
    if kind not in (None, "arlow", "arlow_text", "arlowgpt"):
        return None
    nested = fields.get("text_config")
    if isinstance(nested, dict):
        if TODAY not in nested and (generation_of(nested) or any(name in fields for name in FLAT)):
            raise _untold(kind, "text fields of an earlier one beside or in a text_config")
        return None
    if nested is not None or _is_todays(fields, kind):
        return None
    if "cross_attention" in fields:
        raise _refused("V0", kind, "it knows no positions and projects attention twice", "cross_attention")
    if "use_cross_attention" in fields and "layer_types" not in fields:
        problem = "its rotary embedding overwrites its input and is no rotation, its MLP has no gate"
        raise _refused("V1", kind, problem, "use_cross_attention without layer_types")
    if _has(fields, TOWER_SIGNS) and "vocab_size" not in fields and kind == "arlow":
        return "VL"
    is_v2 = _has(fields, V2_SIGNS) and not any(name in fields for name in NEVER_IN_V2) and kind == "arlow"
    is_vl = _has(fields, VL_SIGNS) and not any(name in fields for name in NEVER_IN_VL) and kind != "arlowgpt"
    is_vl = is_vl and fields["mrope_sections"] is not None
    if TODAY not in fields and (is_v2 or is_vl):
        return "V2" if is_v2 else "VL"
    signs = [name for name in sorted({*V2_SIGNS, *VL_SIGNS, *NEVER_IN_V2}) if name in fields]
    raise _untold(kind, f"with {', '.join(signs) or 'no sign of its generation'}")


def _is_todays(fields: dict[str, Any], kind: object) -> bool:
    """Whether fields without a `text_config` can be nobody's but today's; a few fields by hand are today's, too."""
    if TODAY in fields:
        return "use_cross_attention" in fields or not (_has(fields, V2_SIGNS) or _has(fields, VL_SIGNS))
    if kind == "arlow":
        return not any(name in fields for name in FLAT)
    if kind == "arlowgpt":
        return "rope_scaling" not in fields
    if "rope_theta" in fields or "rope_scaling" in fields:
        return False
    rope = fields.get("rope_parameters")
    if isinstance(rope, dict) and "rope_theta" in rope:
        return True
    return not ("rope_parameters" in fields or _has(fields, ("vocab_size", "layer_types")))


def todays_form(fields: dict[str, Any]) -> dict[str, Any]:
    """The same config as today's version would have saved it: of a text model, of a vision encoder, or of a whole
    model with `text_config` and `vision_config`. A config of today comes back as it is.

    Raises:
        ValueError: as `generation_of`; a field of another type than it must have.
    """
    generation = generation_of(fields)
    if generation is None:
        return fields
    if "vocab_size" not in fields:
        return {**fields, "model_type": "arlow_vision"}
    if not isinstance(fields.get("vision_config"), (dict, type(None))):
        raise ValueError(message("vision_config", fields["vision_config"], "must be a dict"))
    own = {name: value for name, value in fields.items() if name not in WITHOUT_MEANING}
    vision = own.pop("vision_config", None)
    whole = {name: own.pop(name) for name in WHOLE if name in own}
    rope = _rope(own, "rope_scaling" if generation == "V2" else "rope_parameters")
    if generation == "VL":
        rope[UNPAIRED_FREQUENCIES] = True
    text = {**own, "model_type": "arlow_text", "rope_parameters": rope, EARLIER: generation}
    if vision is None or set(fields.get("architectures") or ()) & TEXT_CLASSES:
        return text
    shared = {name: value for name, value in own.items() if name in OF_THE_FILE}
    return {
        **whole,
        **shared,
        EARLIER: generation,
        "model_type": "arlow",
        "text_config": {name: value for name, value in text.items() if name not in ("architectures", EARLIER)},
        "vision_config": {**vision, "model_type": "arlow_vision"},
        "tie_word_embeddings": own.get("tie_word_embeddings", False),
    }


def _rope(own: dict[str, Any], name: str) -> dict[str, Any]:
    """Today's `rope_parameters`, taken out of the fields. Raises `ValueError` where two names of a type disagree, or a
    field that is read here cannot be right."""
    given = own.pop(name)
    if not isinstance(given, (dict, type(None))):
        raise ValueError(message(name, given, "must be a dict"))
    scaling = {key: value for key, value in (given or {}).items() if value is not None}
    kinds = {str(scaling.pop(key)) for key in ("rope_type", "type") if key in scaling} or {"default"}
    if len(kinds) > 1:
        raise ValueError(message(name, given, "rope_type and type disagree"))
    rope = {"rope_type": kinds.pop(), "rope_theta": own.pop("rope_theta"), **scaling}
    trained = rope.get("original_max_position_embeddings")
    if rope["rope_type"] == "yarn" and trained is not None:
        longest = own.get("max_position_embeddings")
        for field, value in (("original_max_position_embeddings", trained), ("max_position_embeddings", longest)):
            if not isinstance(value, (int, float)) or not value > 0:
                raise ValueError(message(field, value, "must be a positive number"))
        # The Transformers of that time took this ratio, whatever `factor` said.
        rope["factor"] = longest / trained
    return rope


def _has(fields: dict[str, Any], names: tuple[str, ...]) -> bool:
    return all(name in fields for name in names)


def _refused(generation: str, kind: object, problem: str, sign: str) -> ValueError:
    problem = f"a checkpoint of Arlow {generation} ({sign} in its config), which is not read: {problem}"
    return ValueError(message("model_type", kind, problem))


def _untold(kind: object, signs: str) -> ValueError:
    problem = (
        f"a flat config of an earlier Arlow {signs}: its generation, and so what its tensors mean, cannot be told"
    )
    return ValueError(message("model_type", kind, problem, "one of today has rope_parameters with a rope_theta"))
