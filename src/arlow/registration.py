"""Arlow's names, put where Transformers keeps those of its own models.

In: nothing. Out: side effects on Transformers' name tables. `TABLE` is the one list of public classes; `register()`
writes it into the tables, which hold names, not classes. So nothing heavy is imported here (no torch, not even
Transformers): tables that exist are filled in now, the others right after their module is imported. Classes are
loaded when someone asks for them, as for models inside Transformers.

Transformers looks a class up by the name of a module below `transformers.models`; `transformers.models.arlow` is the
`arlow` package itself, whose public names load on first use.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections import ChainMap
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from _arlow_autoload import AfterImport


PACKAGE = "arlow"
MODULE = "transformers.models.arlow"  # where Transformers looks for the classes of the model type "arlow"

# Public name, module that defines it, {table of Transformers: model types under which that table lists it}.
# "arlowgpt" is the config type of the first Arlow. The factories hand the causal LM and the text
# heads the text half of an "arlow" config.
TABLE: tuple[tuple[str, str, dict[str, tuple[str, ...]]], ...] = (
    ("ArlowConfig", "configuration_arlow", {"CONFIG": ("arlow",)}),
    ("ArlowTextConfig", "configuration_arlow", {"CONFIG": ("arlow_text",)}),
    ("ArlowVisionConfig", "configuration_arlow", {"CONFIG": ("arlow_vision",)}),
    ("ArlowTowerConfig", "configuration_tower", {"CONFIG": ("arlow_tower",)}),
    ("ArlowGPTConfig", "configuration_arlow", {"CONFIG": ("arlowgpt",)}),
    ("ArlowPreTrainedModel", "modeling_arlow", {}),
    ("ArlowTextModel", "modeling_arlow", {"MODEL": ("arlow_text", "arlowgpt")}),
    ("ArlowVLVisionModel", "modeling_arlow", {"MODEL": ("arlow_vision",)}),
    ("ArlowTower", "modeling_arlow", {"MODEL": ("arlow_tower",)}),
    ("ArlowModel", "modeling_arlow", {"MODEL": ("arlow",)}),
    ("ArlowForCausalLM", "modeling_arlow", {"MODEL_FOR_CAUSAL_LM": ("arlow_text", "arlowgpt", "arlow")}),
    (
        "ArlowForConditionalGeneration",
        "modeling_arlow",
        {"MODEL_FOR_IMAGE_TEXT_TO_TEXT": ("arlow",), "MODEL_FOR_MULTIMODAL_LM": ("arlow",)},
    ),
    (
        "ArlowForSequenceClassification",
        "modeling_arlow",
        {"MODEL_FOR_SEQUENCE_CLASSIFICATION": ("arlow_text", "arlowgpt", "arlow")},
    ),
    (
        "ArlowForTokenClassification",
        "modeling_arlow",
        {"MODEL_FOR_TOKEN_CLASSIFICATION": ("arlow_text", "arlowgpt", "arlow")},
    ),
    (
        "ArlowForQuestionAnswering",
        "modeling_arlow",
        {"MODEL_FOR_QUESTION_ANSWERING": ("arlow_text", "arlowgpt", "arlow")},
    ),
    ("ArlowRMSNorm", "modeling_arlow", {}),
    ("ArlowRotaryEmbedding", "modeling_arlow", {}),
    ("ArlowGroupedQueryAttention", "modeling_arlow", {}),
    ("apply_rotary_pos_emb", "modeling_arlow", {}),
    ("ArlowProcessor", "processing_arlow", {"PROCESSOR": ("arlow",)}),
    ("ArlowImageProcessor", "image_processing_arlow", {"IMAGE_PROCESSOR": ("arlow",)}),
    ("ArlowVideoProcessor", "video_processing_arlow", {"VIDEO_PROCESSOR": ("arlow",)}),
    ("ArlowTowerImageProcessor", "tower_processing", {"IMAGE_PROCESSOR": ("arlow_tower",)}),
    ("ArlowTowerVideoProcessor", "tower_processing", {"VIDEO_PROCESSOR": ("arlow_tower",)}),
    ("ArlowTokenizer", "tokenization_arlow", {"TOKENIZER": ("arlow", "arlow_text", "arlowgpt")}),
    ("ArlowTokenizerFast", "tokenization_arlow", {}),
    ("MediaPolicy", "media_fetch", {}),
    ("bundled_checkpoint", "bundled", {}),
)

MODULE_OF: dict[str, str] = {name: module for name, module, _ in TABLE}
MODEL_TYPES: dict[str, str] = {  # model type -> name of its config class
    model_type: name for name, _, tables in TABLE for model_type in tables.get("CONFIG", ())
}
LORA_TARGETS = ("q_proj", "v_proj")  # what PEFT adapts when a LoraConfig names no modules, as for LLaMA


def register() -> None:
    """Make Transformers (and PEFT) know Arlow. Harmless when repeated; also the entry point of vLLM's plugins."""
    sys.modules.setdefault(MODULE, importlib.import_module(PACKAGE))
    if not any(isinstance(finder, _SameModules) for finder in sys.meta_path):
        sys.meta_path.insert(0, _SameModules())
    waiting: dict[str, Callable[[str], None]] = {name: _patch for name in PATCHES if name not in sys.modules}
    sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not _finder]
    _finder.then = waiting
    if waiting:
        sys.meta_path.insert(0, _finder)
    for name in PATCHES:
        if name not in waiting:
            _patch(name)


def _patch(name: str) -> None:
    """Fill in one module of another library. A version that moved its tables must not break that library's import."""
    try:
        PATCHES[name](sys.modules[name])
    except Exception as error:  # `errors.cut` would import more than this module may
        warnings.warn(f"arlow could not register itself in {name}: {error!r}"[:299], RuntimeWarning, stacklevel=2)


def entries(table: str) -> dict[str, object]:
    """What Arlow adds to `<table>_MAPPING_NAMES`: {model type: class name, or {backend: class name}}."""
    names: dict[str, object] = {kind: name for name, _, tables in TABLE for kind in tables.get(table, ())}
    if table == "IMAGE_PROCESSOR":  # the class needs Pillow only; under both keys nothing has to "fall back" to it
        return {kind: {"torchvision": name, "pil": name} for kind, name in names.items()}
    if table == "VIDEO_PROCESSOR":  # the only backend that is looked up
        return {kind: {"torchvision": name} for kind, name in names.items()}
    return names


def _fill_name_tables(module: ModuleType) -> None:
    """Arlow's rows in the `*_MAPPING_NAMES` of one `transformers.models.auto` module, and in what derives from it."""
    found = vars(module)
    for table in {table for _, _, tables in TABLE for table in tables} - {"MODEL_FOR_MULTIMODAL_LM"}:
        if f"{table}_MAPPING_NAMES" in found:
            found[f"{table}_MAPPING_NAMES"].update(entries(table))
    if "SPECIAL_MODEL_TYPE_TO_MODULE_NAME" in found:
        found["SPECIAL_MODEL_TYPE_TO_MODULE_NAME"].update(dict.fromkeys(MODEL_TYPES, PACKAGE))
    types = {name: model_type for model_type, name in MODEL_TYPES.items()}
    if "CONFIG_TO_TYPE" in found:
        found["CONFIG_TO_TYPE"].update(types)
    for mapping in found.values():  # built before Arlow came, they hold their own copy of config name -> model type
        if type(mapping).__name__ == "_LazyAutoMapping":
            mapping._reverse_config_mapping.update(types)
    if "MODEL_FOR_MULTIMODAL_LM_MAPPING" in found:
        _fill_multimodal(found["MODEL_FOR_MULTIMODAL_LM_MAPPING"])


def _fill_multimodal(mapping: Any) -> None:
    """The factory AutoModelForMultimodalLM knows Arlow, the list of names does not: `transformers serve` reads it as
    "hears audio" and would look for a sound track in every video."""
    if not isinstance(mapping._model_mapping, ChainMap):
        mapping._model_mapping = ChainMap(entries("MODEL_FOR_MULTIMODAL_LM"), mapping._model_mapping)


def _fill_top_level(module: ModuleType) -> None:
    """`from transformers import ArlowForConditionalGeneration`, loaded on first use as every name there."""
    for name in MODULE_OF:
        if name.startswith("Arlow") and name not in module._class_to_module:
            module._class_to_module[name] = MODULE.removeprefix("transformers.")
            module.__all__.append(name)
    _open_video_door(module)


def _fill_second_top_level(module: ModuleType) -> None:
    """`processing_utils` executes Transformers' top level once more when it is imported, and leaves the new module in
    the place of the old one. Both are in use then."""
    _fill_top_level(module.transformers_module)


def _open_video_door(module: ModuleType) -> None:
    """Without torchvision `AutoVideoProcessor` is a stub that refuses everything; the real class works for Arlow."""
    module._object_missing_backend.pop("AutoVideoProcessor", None)
    if getattr(vars(module).get("AutoVideoProcessor"), "is_dummy", False):
        del module.AutoVideoProcessor


def _fill_models(module: ModuleType) -> None:
    module.arlow = sys.modules[MODULE]  # type: ignore[attr-defined]


def _fill_lora_targets(module: ModuleType) -> None:
    targets = module.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    targets.update(
        {
            model_type: list(LORA_TARGETS)
            for model_type in MODEL_TYPES
            if model_type not in ("arlow_vision", "arlow_tower")
        }
    )


_AUTO_MODULES = (
    "auto_mappings",
    "configuration_auto",
    "feature_extraction_auto",
    "image_processing_auto",
    "modeling_auto",
    "processing_auto",
    "tokenization_auto",
    "video_processing_auto",
)

PATCHES: dict[str, Callable[[ModuleType], None]] = {  # module of another library -> what to fill in there
    "transformers": _fill_top_level,
    "transformers.processing_utils": _fill_second_top_level,
    "transformers.models": _fill_models,
    "transformers.models.auto": _open_video_door,
    **{f"transformers.models.auto.{name}": _fill_name_tables for name in _AUTO_MODULES},
    "peft.utils.constants": _fill_lora_targets,
}

_finder = AfterImport({})


class _SameModules:
    """Finder that makes `transformers.models.arlow.modeling_arlow` the module `arlow.modeling_arlow`, not a copy."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if not name.startswith(f"{MODULE}."):
            return None
        return ModuleSpec(name, self)  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(PACKAGE + spec.name.removeprefix(MODULE))
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = module.__spec__.loader_state  # type: ignore[union-attr]
