"""Transformers finds Arlow's classes everywhere it finds its own, and nothing heavy is imported for that."""

from __future__ import annotations

import importlib
import json
import pickle
import sys

import pytest

import arlow
from arlow import registration


CONTRACT = {  # Auto class -> {model type: Arlow class}
    "AutoConfig": {
        "arlow": "ArlowConfig",
        "arlow_text": "ArlowTextConfig",
        "arlow_vision": "ArlowVisionConfig",
        "arlowgpt": "ArlowGPTConfig",
    },
    "AutoModel": {"arlow": "ArlowModel", "arlow_text": "ArlowTextModel", "arlow_vision": "ArlowVLVisionModel"},
    "AutoModelForCausalLM": {
        "arlow": "ArlowForCausalLM",
        "arlow_text": "ArlowForCausalLM",
        "arlowgpt": "ArlowForCausalLM",
    },
    "AutoModelForImageTextToText": {"arlow": "ArlowForConditionalGeneration"},
    "AutoModelForMultimodalLM": {"arlow": "ArlowForConditionalGeneration"},
    "AutoModelForSequenceClassification": {"arlow_text": "ArlowForSequenceClassification"},
    "AutoModelForTokenClassification": {"arlow_text": "ArlowForTokenClassification"},
    "AutoModelForQuestionAnswering": {"arlow_text": "ArlowForQuestionAnswering"},
    "AutoTokenizer": {"arlow": "ArlowTokenizer", "arlow_text": "ArlowTokenizer"},
    "AutoProcessor": {"arlow": "ArlowProcessor"},
    "AutoImageProcessor": {"arlow": {"pil": "ArlowImageProcessor", "torchvision": "ArlowImageProcessor"}},
    "AutoVideoProcessor": {"arlow": {"torchvision": "ArlowVideoProcessor"}},
}
RESOLVE = """
import json, sys
import transformers
from transformers.models.auto import (
    configuration_auto, image_processing_auto, modeling_auto, processing_auto, tokenization_auto, video_processing_auto
)

MAPPINGS = {
    "AutoConfig": configuration_auto.CONFIG_MAPPING,
    "AutoTokenizer": tokenization_auto.TOKENIZER_MAPPING,
    "AutoProcessor": processing_auto.PROCESSOR_MAPPING,
    "AutoImageProcessor": image_processing_auto.IMAGE_PROCESSOR_MAPPING,
    "AutoVideoProcessor": video_processing_auto.VIDEO_PROCESSOR_MAPPING,
}

def show(value):
    return {k: show(v) for k, v in value.items()} if isinstance(value, dict) else value.__name__

def resolve(auto, model_type):
    mapping = MAPPINGS[auto] if auto in MAPPINGS else getattr(transformers, auto)._model_mapping
    return show(mapping[model_type if auto == "AutoConfig" else configuration_auto.CONFIG_MAPPING[model_type]])
"""
SHOW_ALL = f"""
wanted = {CONTRACT!r}
found = {{auto: {{kind: resolve(auto, kind) for kind in kinds}} for auto, kinds in wanted.items()}}
if found != wanted:
    print("difference:", {{auto: found[auto] for auto in wanted if found[auto] != wanted[auto]}})
else:
    print("equal")
"""


def test_import_is_lazy(fresh_python):
    """`import arlow` imports neither Transformers nor torch, and not even its own modules."""
    code = (
        "import arlow, sys; print([m for m in sys.modules if m.split('.')[0] in ('torch', 'transformers', 'numpy')])"
    )
    assert fresh_python(code).strip() == "['transformers.models.arlow']"


def test_import_after_transformers_leaves_torch_out(fresh_python):
    """Registering with an imported Transformers does not load torch, and takes under 50 ms."""
    code = """
import sys, time, transformers
start = time.perf_counter()
import arlow
print("torch" in sys.modules, time.perf_counter() - start)
"""
    torch_loaded, seconds = fresh_python(code).split()
    assert torch_loaded == "False"
    assert float(seconds) < 0.05


@pytest.mark.parametrize(
    "before",
    [
        "import arlow",
        "import transformers, arlow",
        "from transformers import AutoConfig, AutoModel; import arlow",
        RESOLVE + "from peft.utils import constants; import arlow; import arlow",
    ],
    ids=["first", "after_transformers", "after_auto_classes", "last"],
)
def test_every_auto_class_resolves(fresh_python, before):
    """The contract's table holds whenever `import arlow` happens, also when the tables were built before."""
    assert fresh_python(f"{before}\n{RESOLVE}\n{SHOW_ALL}").strip() == "equal"


def test_repeated_registration_changes_nothing():
    """Calling `register` again leaves tables and finders as they are."""
    from transformers.models.auto import modeling_auto

    registration.register()
    names = dict(modeling_auto.MODEL_MAPPING_NAMES)
    finders = [type(finder) for finder in sys.meta_path]
    multimodal = modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING._model_mapping
    registration.register()
    registration.register()
    assert dict(modeling_auto.MODEL_MAPPING_NAMES) == names
    assert [type(finder) for finder in sys.meta_path] == finders
    assert modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING._model_mapping is multimodal


def test_name_tables():
    """The tables that pipelines, `transformers serve` and the test mixins read hold Arlow, but no sound track."""
    from transformers.models.auto import modeling_auto

    assert modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES["arlow"] == "ArlowForConditionalGeneration"
    assert modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["arlow_text"] == "ArlowForCausalLM"
    assert modeling_auto.MODEL_MAPPING_NAMES["arlow_vision"] == "ArlowVLVisionModel"
    assert "arlow" not in modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES


def test_mappings_still_pickle():
    """Mappings travel to worker processes; the one with two layers of names does, too."""
    from transformers.models.auto import modeling_auto

    copy = pickle.loads(pickle.dumps(modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING))
    assert arlow.ArlowConfig in copy


def test_public_names_are_attributes_of_transformers():
    """`transformers.X` is `arlow.X`, one object, for every class (serve and pipelines look architectures up there)."""
    import transformers

    for name in registration.MODULE_OF:
        if name.startswith("Arlow"):
            assert getattr(transformers, name) is getattr(arlow, name), name
            assert name in dir(transformers)


def test_modules_below_transformers_are_the_same_objects():
    """Imports in the style of models inside Transformers give the same classes, not copies."""
    from transformers.models.arlow import ArlowConfig
    from transformers.models.arlow.configuration_arlow import ArlowTextConfig

    module = importlib.import_module("transformers.models.arlow.configuration_arlow")
    assert (ArlowConfig, ArlowTextConfig) == (arlow.ArlowConfig, arlow.ArlowTextConfig)
    assert module is sys.modules["arlow.configuration_arlow"]
    assert module.__spec__.name == module.__name__ == "arlow.configuration_arlow"
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("transformers.models.arlow.no_such_module")


@pytest.mark.parametrize("model_type", registration.MODEL_TYPES)
def test_auto_config_reads_each_model_type(tmp_path, model_type):
    """A directory with nothing but a config.json of that type gives the right config class."""
    from transformers import AutoConfig

    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config).__name__ == registration.MODEL_TYPES[model_type]
    if model_type == "arlowgpt":
        assert isinstance(config, arlow.ArlowTextConfig)


def test_video_door_is_open():
    """`transformers.AutoVideoProcessor` is the real class without torchvision, in both places."""
    import transformers
    from transformers.models import auto
    from transformers.models.auto.video_processing_auto import AutoVideoProcessor

    assert transformers.AutoVideoProcessor is auto.AutoVideoProcessor is AutoVideoProcessor
    assert not getattr(AutoVideoProcessor, "is_dummy", False)


def test_both_top_levels(fresh_python):
    """Transformers executes its top level twice once processors are used; names are found on either module."""
    code = """
import arlow, sys, transformers
from transformers import ProcessorMixin
assert transformers is not sys.modules["transformers"], "once: then this test and its reason can go"
for module in (transformers, sys.modules["transformers"]):
    print(module.ArlowConfig is arlow.ArlowConfig, getattr(module.AutoVideoProcessor, "is_dummy", False))
"""
    assert fresh_python(code).split() == ["True", "False"] * 2


def test_video_stub_that_was_already_handed_out_is_replaced(fresh_python):
    """A stub that Transformers made before Arlow came does not stay."""
    code = """
import transformers
transformers.AutoVideoProcessor, transformers.models.auto.AutoVideoProcessor
import arlow
print(transformers.AutoVideoProcessor.__module__, transformers.models.auto.AutoVideoProcessor.__module__)
"""
    assert fresh_python(code).split() == ["transformers.models.auto.video_processing_auto"] * 2


def test_lora_targets():
    """PEFT adapts the query and value projections of every text decoder when a LoraConfig names no modules."""
    constants = pytest.importorskip("peft.utils.constants", reason="peft is an extra")
    targets = constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    assert targets["arlow"] == targets["arlow_text"] == targets["arlowgpt"] == ["q_proj", "v_proj"]
    assert "arlow_vision" not in targets


def test_a_moved_table_is_a_warning(monkeypatch):
    """A version of another library that looks different must not make its import fail."""
    import types

    monkeypatch.setitem(sys.modules, "peft.utils.constants", types.ModuleType("peft.utils.constants"))
    with pytest.warns(RuntimeWarning, match=r"arlow could not register itself in peft\.utils\.constants"):
        registration.register()


def test_plugin_entry_point():
    """vLLM finds `register` by its plugin group, and may call it in every process."""
    from importlib.metadata import entry_points

    (entry,) = entry_points(group="vllm.general_plugins", name="arlow")
    assert entry.load() is registration.register


def test_factories_build_and_load(tmp_path):
    """Auto models build from configs and load from directories; the causal LM also takes a composite's text half."""
    import transformers

    config = arlow.ArlowConfig.tiny()
    model = transformers.AutoModelForImageTextToText.from_config(config)
    assert type(model) is type(transformers.AutoModelForMultimodalLM.from_config(config))
    model.save_pretrained(tmp_path / "whole")
    assert type(transformers.AutoModel.from_pretrained(tmp_path / "whole")) is arlow.ArlowModel

    causal, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "whole", output_loading_info=True)
    assert type(causal) is arlow.ArlowForCausalLM and type(causal.config) is arlow.ArlowTextConfig
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert causal.lm_head.weight.equal(model.lm_head.weight)

    text = arlow.ArlowTextConfig.tiny(num_labels=3)
    for name in ("SequenceClassification", "TokenClassification", "QuestionAnswering"):
        head = getattr(transformers, f"AutoModelFor{name}").from_config(text)
        assert type(head) is getattr(arlow, f"ArlowFor{name}")
    assert type(transformers.AutoModel.from_config(arlow.ArlowVisionConfig.tiny())) is arlow.ArlowVLVisionModel


def test_first_arlow_is_a_text_model(tmp_path):
    """A directory of type "arlowgpt" loads as a causal LM."""
    import transformers

    config = transformers.ArlowGPTConfig.tiny()
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path)
    assert type(transformers.AutoModelForCausalLM.from_pretrained(tmp_path)) is arlow.ArlowForCausalLM


def test_whole_directory_through_auto_classes(tmp_path, fresh_python):
    """One directory, a fresh process, no `import arlow`: every Auto class gives Arlow's class."""
    from small_checkpoint import save_checkpoint

    save_checkpoint(tmp_path)
    code = f"""
import transformers
for auto in ("AutoConfig", "AutoModel", "AutoTokenizer", "AutoImageProcessor", "AutoVideoProcessor", "AutoProcessor"):
    print(type(getattr(transformers, auto).from_pretrained({str(tmp_path)!r})).__name__)
"""
    expected = "ArlowConfig ArlowModel ArlowTokenizer ArlowImageProcessor ArlowVideoProcessor ArlowProcessor"
    assert fresh_python(code, autoload=True).split() == expected.split()
