"""Arlow: vision-language models beside stock Transformers.

`import arlow` tells Transformers' Auto classes about Arlow and loads nothing else: every public name below is imported
when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from ._version import __version__
from .registration import MODULE_OF, register


if TYPE_CHECKING:
    from .bundled import bundled_checkpoint
    from .configuration_arlow import ArlowConfig, ArlowTextConfig, ArlowVisionConfig
    from .configuration_tower import ArlowTowerConfig
    from .image_processing_arlow import ArlowImageProcessor
    from .media_fetch import MediaPolicy
    from .modeling_arlow import (
        ArlowForCausalLM,
        ArlowForConditionalGeneration,
        ArlowForQuestionAnswering,
        ArlowForSequenceClassification,
        ArlowForTokenClassification,
        ArlowGroupedQueryAttention,
        ArlowModel,
        ArlowPreTrainedModel,
        ArlowRMSNorm,
        ArlowRotaryEmbedding,
        ArlowTextModel,
        ArlowTower,
        ArlowVLVisionModel,
        apply_rotary_pos_emb,
    )
    from .processing_arlow import ArlowProcessor
    from .tokenization_arlow import ArlowTokenizer, ArlowTokenizerFast
    from .tower_processing import ArlowTowerImageProcessor, ArlowTowerVideoProcessor
    from .video_processing_arlow import ArlowVideoProcessor

__all__ = [
    "ArlowConfig",
    "ArlowForCausalLM",
    "ArlowForConditionalGeneration",
    "ArlowForQuestionAnswering",
    "ArlowForSequenceClassification",
    "ArlowForTokenClassification",
    "ArlowGroupedQueryAttention",
    "ArlowImageProcessor",
    "ArlowModel",
    "ArlowPreTrainedModel",
    "ArlowProcessor",
    "ArlowRMSNorm",
    "ArlowRotaryEmbedding",
    "ArlowTextConfig",
    "ArlowTextModel",
    "ArlowTokenizer",
    "ArlowTokenizerFast",
    "ArlowTower",
    "ArlowTowerConfig",
    "ArlowTowerImageProcessor",
    "ArlowTowerVideoProcessor",
    "ArlowVLVisionModel",
    "ArlowVideoProcessor",
    "ArlowVisionConfig",
    "MediaPolicy",
    "__version__",
    "apply_rotary_pos_emb",
    "bundled_checkpoint",
]


def __getattr__(name: str) -> object:
    if name in MODULE_OF:
        value = getattr(importlib.import_module(f".{MODULE_OF[name]}", __name__), name)
        globals()[name] = value
        return value
    if name in MODULE_OF.values():  # `arlow.modeling_arlow`, as for models inside Transformers
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register()
