"""Configs of text models of other families in Arlow's terms, where Arlow computes exactly the same.

Sources: the configs and models of LLaMA, Mistral, Qwen2 and Qwen3 in Transformers 5.23.
"""

from __future__ import annotations

from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import LlamaConfig, MistralConfig, PreTrainedConfig, Qwen2Config, Qwen3Config

from ..configuration_arlow import ArlowTextConfig
from ..errors import cut, message


FAMILIES: dict[str, type[PreTrainedConfig]] = {
    "llama": LlamaConfig,
    "mistral": MistralConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
}
CLASSES = {  # end of the name of a family's class -> Arlow's class with tensors of the same names
    "ForCausalLM": "ArlowForCausalLM",
    "ForSequenceClassification": "ArlowForSequenceClassification",
    "ForTokenClassification": "ArlowForTokenClassification",
    "Model": "ArlowTextModel",
}
SAME = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps", "use_cache",
    "tie_word_embeddings", "attention_dropout", "bos_token_id", "eos_token_id", "dtype", "id2label", "label2id",
    "problem_type",
)  # fmt: skip


REFUSED = {  # field -> what is not the same where it is set
    "attention_bias": "a bias of the output projection, too; Arlow has those of q, k and v only",
    "mlp_bias": "biases in the MLP, which Arlow has not",
    "use_mrope": "multimodal positions of another kind",
    "quantization_config": "quantised weights; convert the original",
}


def text_config_of(family: str, fields: dict[str, Any]) -> ArlowTextConfig:
    """The config of the same model as an Arlow text model.

    Args:
        fields: the content of the other model's `config.json`.

    Raises:
        ValueError: another family, or something that Arlow does not compute in the same way.
    """
    kind = fields.get("model_type")
    if kind != family:
        raise ValueError(message("model_type", kind, f"this is no {family} checkpoint", "see --from"))
    try:
        other: Any = FAMILIES[family].from_dict(fields)
        other.standardize_rope_params()  # as its model does: where files keep some of them has changed
    except (AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError, StrictDataclassError) as error:
        raise ValueError(cut(f"config: {type(error).__name__}: {error}")) from error
    for field, problem in REFUSED.items():
        usual = family == "qwen2" and field == "attention_bias"  # of q, k and v alone, as Arlow's
        if getattr(other, field, None) and not usual:
            raise ValueError(message(field, getattr(other, field), problem))
    rope = {name: value for name, value in other.rope_parameters.items() if value is not None and name != "type"}
    layers = getattr(other, "layer_types", None)
    window = other.sliding_window if family != "llama" else None
    if family == "mistral" and layers is None:
        layers = ["sliding_attention" if window else "full_attention"] * other.num_hidden_layers
    pad = other.pad_token_id
    return ArlowTextConfig(
        **{name: getattr(other, name) for name in SAME},
        head_dim=getattr(other, "head_dim", None) or other.hidden_size // other.num_attention_heads,
        rope_parameters=rope,
        attention_bias=family == "qwen2",
        qk_norm=family == "qwen3",
        layer_types=layers,
        sliding_window=window,
        pad_token_id=None if pad is not None and pad < 0 else pad,  # LLaMA files say -1 for "none"
    )


def class_of(family: str, fields: dict[str, Any]) -> str:
    """Arlow's class for the one that `architectures` names. Raises `ValueError` where there is none."""
    names = fields.get("architectures") or [f"{FAMILIES[family].__name__.removesuffix('Config')}ForCausalLM"]
    for end, ours in CLASSES.items():
        if isinstance(names, list) and str(names[0]).endswith(end):
            return ours
    raise ValueError(message("architectures", names, "Arlow has no class like it", f"it reads {sorted(CLASSES)}"))
