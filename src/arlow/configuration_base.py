"""What every config of Arlow shares: strict keywords, tolerant files, and checks that name the field and the value."""

import math
import os
from typing import Any

import torch
from transformers.configuration_utils import PreTrainedConfig
from transformers.generation import GenerationConfig
from transformers.utils import logging

from .earlier_config import EARLIER, todays_form
from .errors import message


logger = logging.get_logger(__name__)

# What a `config.json` of a part says it is.
PARTS = {"arlow_text": "text", "arlowgpt": "text", "arlow_vision": "vision", "arlow_tower": "tower"}

# Keys that Transformers itself puts into a `config.json` or passes to a config, besides the declared fields.
_LIBRARY_KEYS = {
    "_attn_implementation_internal", "_commit_hash", "_experts_implementation_internal", "_name_or_path",
    "attn_implementation", "auto_map", "experts_implementation", "model_type", "name_or_path", "num_labels",
    "output_attentions", "partial_rotary_factor", "per_layer_config", "quantization_config", "rope_scaling",
    "rope_theta", "tie_last_hidden_states", "torch_dtype", "transformers_version", "use_cache",
}  # fmt: skip


class ArlowConfigBase(PreTrainedConfig):
    """Strict keywords and tolerant files."""

    @classmethod
    def _known_keys(cls) -> set[str]:
        generation = GenerationConfig._get_default_generation_params()
        return set(cls.__dataclass_fields__) | _LIBRARY_KEYS | set(generation) | set(cls.attribute_map)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build from the content of a `config.json`, an earlier Arlow's too. Keys no version of this package knows are
        reported once and kept as attributes, so that a file annotated by another program still loads."""
        today = todays_form(config_dict)
        config_dict = cls._own_part({name: value for name, value in today.items() if name != EARLIER})
        known = cls._known_keys()
        unknown = {key: value for key, value in config_dict.items() if key not in known}
        if unknown:
            logger.warning(f"{cls.__name__}: unknown keys in the config file are ignored: {sorted(unknown)}")
        loaded = super().from_dict({k: v for k, v in config_dict.items() if k in known}, **kwargs)
        config = loaded[0] if isinstance(loaded, tuple) else loaded
        for key, value in unknown.items():
            setattr(config, key, value)
        if EARLIER in today:
            setattr(config, EARLIER, today[EARLIER])
        return loaded

    def to_dict(self) -> dict[str, Any]:
        fields = super().to_dict()
        fields.pop(EARLIER, None)
        return fields

    @classmethod
    def _own_part(cls, fields: dict[str, Any]) -> dict[str, Any]:
        """The fields, or those of the part of a whole model that this class is for."""
        if cls.base_config_key and isinstance(fields.get(cls.base_config_key), dict):
            fields = fields[cls.base_config_key]
        given = PARTS.get(str(fields.get("model_type")))
        if given is not None and given != PARTS.get(cls.model_type):
            problem = f"this is a {given} config, which {cls.__name__} does not read"
            raise ValueError(message("model_type", fields["model_type"], problem, f"use Arlow{given.title()}Config"))
        if given is None and fields.get("model_type") not in (None, "arlow"):
            problem = f"is none of Arlow's, {cls.__name__} does not read it"
            raise ValueError(message("model_type", fields["model_type"], problem))
        return fields

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """As the library's, but a directory without a config is no config full of defaults."""
        fields, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if not fields:
            raise OSError(message("config", str(pretrained_model_name_or_path), "holds no config.json"))
        return todays_form(fields), kwargs

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
            self._check(field, is_int(value) and value > 0, "must be a positive integer")

    def _check_not_negative(self, *fields: str) -> None:
        for field in fields:
            value = getattr(self, field)
            self._check(field, is_number(value) and value >= 0, "must not be negative")

    def _check_fraction(self, *fields: str) -> None:
        for field in fields:
            value = getattr(self, field)
            self._check(field, is_number(value) and 0 <= value < 1, "must lie in [0, 1)")

    def _check_sections(self, sections: Any, head_dim: int) -> Any:
        if sections is None:
            return None
        valid = isinstance(sections, (list, tuple)) and len(sections) == 3
        valid = valid and all(is_int(part) and part >= 0 for part in sections)
        self._check("mrope_sections", valid, "must be three integers [t, h, w], none negative")
        self._check(
            "mrope_sections", sum(sections) == head_dim, f"must sum to head_dim={head_dim}, not {sum(sections)}"
        )
        return list(sections)


def is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_positive(value: Any) -> bool:
    return is_number(value) and value > 0


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
