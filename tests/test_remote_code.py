"""Models and processors saved with their code load and compute where this package cannot be imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_models import tiny_vlm


# Registering a class for an Auto class marks the class itself, so this runs in a process of its own.
EXPORT = """
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny_models import batch, image, prompt, tiny_causal_lm, tiny_text_config, tiny_vision, tiny_vlm, video
from tiny_processing import tiny_tokenizer

import arlow

out = Path(sys.argv[1])
models = {
    "vlm": (tiny_vlm(use_gated_cross_attention=True, text={"vocab_size": 480}), "AutoModelForImageTextToText"),
    "bare": (tiny_vlm().model, "AutoModel"),
    "causal_lm": (tiny_causal_lm(), "AutoModelForCausalLM"),
    "text": (tiny_causal_lm().model, "AutoModel"),
    "vision": (tiny_vision(use_deformable_attention=True), "AutoModel"),
}
for head in ("SequenceClassification", "TokenClassification", "QuestionAnswering"):
    torch.manual_seed(0)
    model = getattr(arlow, f"ArlowFor{head}")(tiny_text_config()).eval()
    models[head] = model, f"AutoModelFor{head}"

inputs = batch(prompt(2, image(4, 6), 3, seed=1), prompt(4, video(2, 4, 4), 1, seed=2))
save_file(inputs, out / "inputs.safetensors")
expected = {}
for name, (model, auto) in models.items():
    type(model).register_for_auto_class(auto)
    model.save_pretrained(out / name)
    if name == "vision":
        given = {"pixel_values": inputs["pixel_values"], "grid_thw": inputs["image_grid_thw"]}
    else:
        media = name in ("vlm", "bare")
        given = {k: v for k, v in inputs.items() if media or k in ("input_ids", "attention_mask")}
    with torch.no_grad():
        expected[name] = model(**given, return_dict=False)[0].contiguous()
    if name in ("vlm", "causal_lm"):
        expected[f"{name}.tokens"] = model.generate(**given, max_new_tokens=5, do_sample=False)

Image.fromarray(np.arange(60 * 80 * 3, dtype=np.uint8).reshape(60, 80, 3)).save(out / "picture.png")
clip = np.random.default_rng(0).integers(0, 255, (4, 56, 56, 3), dtype=np.uint8)
np.save(out / "clip.npy", clip)
sizes = {"patch_size": 4, "size": {"shortest_edge": 256, "longest_edge": 1024}}
parts = {
    "image_processor": arlow.ArlowImageProcessor(**sizes),
    "video_processor": arlow.ArlowVideoProcessor(**sizes),
    "tokenizer": tiny_tokenizer(),
}
for part, auto in (("image_processor", "AutoImageProcessor"), ("video_processor", "AutoVideoProcessor"),
                   ("tokenizer", "AutoTokenizer")):
    type(parts[part]).register_for_auto_class(auto)
    parts[part].save_pretrained(out / part)
arlow.ArlowProcessor.register_for_auto_class("AutoProcessor")
processor = arlow.ArlowProcessor(**parts)
processor.save_pretrained(out / "vlm")  # beside the model, as published
conversation = [{"role": "user", "content": [
    {"type": "image", "path": str(out / "picture.png")}, {"type": "video", "video": clip},
    {"type": "text", "text": "Compare these two <image>."},
]}]
processed = processor.apply_chat_template(
    conversation, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True,
    processor_kwargs={"do_sample_frames": False},
)
save_file({k: v.contiguous() for k, v in processed.items()}, out / "processed.safetensors")
expected["answer"] = models["vlm"][0].generate(**processed, max_new_tokens=5, do_sample=False)
save_file(expected, out / "expected.safetensors")
"""

LOAD = """
import importlib, json, sys
from pathlib import Path

for name in ("arlow", "_arlow_autoload"):
    sys.modules[name] = None  # an import of it raises

import numpy as np
import torch
import transformers
from safetensors.torch import load_file

out, copy = Path(sys.argv[1]), Path(sys.argv[2])
inputs, expected = load_file(out / "inputs.safetensors"), load_file(out / "expected.safetensors")
video_door = importlib.import_module("transformers.models.auto.video_processing_auto").AutoVideoProcessor
report = {}


def given(name):
    if name == "vision":
        return {"pixel_values": inputs["pixel_values"], "grid_thw": inputs["image_grid_thw"]}
    return {k: v for k, v in inputs.items() if name in ("vlm", "bare") or k in ("input_ids", "attention_mask")}


def check(folder, name, auto):
    model, info = auto.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
    with torch.no_grad():
        same = torch.equal(model.eval()(**given(name), return_dict=False)[0], expected[name])
    clean = not any(info.values())
    if f"{name}.tokens" in expected:
        tokens = model.generate(**given(name), max_new_tokens=5, do_sample=False)
        same = same and torch.equal(tokens, expected[f"{name}.tokens"])
    report[f"{folder.parent.name}/{name}"] = [type(model).__module__.split(".")[0], same, clean]
    return model


doors = {"vlm": "AutoModelForImageTextToText", "bare": "AutoModel", "causal_lm": "AutoModelForCausalLM",
         "text": "AutoModel", "vision": "AutoModel"}
doors.update({head: f"AutoModelFor{head}" for head in
              ("SequenceClassification", "TokenClassification", "QuestionAnswering")})
for name, door in doors.items():
    model = check(out / name, name, getattr(transformers, door))
    if name in ("vlm", "SequenceClassification"):  # saved from here, it carries its code on
        model.save_pretrained(copy / name)
        check(copy / name, name, getattr(transformers, door))

for part, door in (("image_processor", transformers.AutoImageProcessor), ("video_processor", video_door),
                   ("tokenizer", transformers.AutoTokenizer)):
    loaded = door.from_pretrained(out / part, trust_remote_code=True)
    report[part] = [type(loaded).__module__.split(".")[0], True, True]
processor = transformers.AutoProcessor.from_pretrained(out / "vlm", trust_remote_code=True)
conversation = [{"role": "user", "content": [
    {"type": "image", "path": str(out / "picture.png")}, {"type": "video", "video": np.load(out / "clip.npy")},
    {"type": "text", "text": "Compare these two <image>."},
]}]
processed = processor.apply_chat_template(
    conversation, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True,
    processor_kwargs={"do_sample_frames": False},
)
wanted = load_file(out / "processed.safetensors")
same = processed.keys() == wanted.keys() and all(torch.equal(processed[k], wanted[k]) for k in wanted)
model = transformers.AutoModelForImageTextToText.from_pretrained(out / "vlm", trust_remote_code=True)
answer = model.generate(**processed, max_new_tokens=5, do_sample=False)
report["processor"] = [type(processor).__module__.split(".")[0], same, torch.equal(answer, expected["answer"])]
report["imported"] = [name for name in sys.modules if name.split(".")[0] == "arlow" and sys.modules[name]]
print("REPORT" + json.dumps(report))
"""

MODELS = ["vlm", "bare", "causal_lm", "text", "vision", "SequenceClassification", "TokenClassification",
          "QuestionAnswering"]  # fmt: skip
PARTS = ["image_processor", "video_processor", "tokenizer", "processor"]


@pytest.fixture(scope="module")
def exported(fresh_python, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every model and processor, saved with their code."""
    out = tmp_path_factory.mktemp("exported")
    fresh_python(f"import sys; sys.argv = ['', {str(out)!r}]\n{EXPORT}", OMP_NUM_THREADS="1")
    return out


@pytest.fixture(scope="module")
def report(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What a process without this package found: where each class came from, whether it computes the same."""
    home = tmp_path_factory.mktemp("home")
    environment = {
        **os.environ, "ARLOW_NO_AUTOLOAD": "1", "HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    environment.pop("PYTHONPATH", None)
    copy = home / "copy"
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(exported), str(copy)],
        env=environment, cwd=home, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.split("REPORT")[1])


@pytest.mark.parametrize("name", MODELS)
def test_model_without_the_package(report: dict, exported: Path, name: str) -> None:
    """The class comes from the folder, nothing is missing or left over, logits and generated tokens are the same."""
    assert report[f"{exported.name}/{name}"] == ["transformers_modules", True, True]


@pytest.mark.parametrize("name", PARTS)
def test_processing_without_the_package(report: dict, name: str) -> None:
    """The same for the processors: the same tensors from a PNG, a clip and text, and the same answer."""
    assert report[name] == ["transformers_modules", True, True]


@pytest.mark.parametrize("name", ["vlm", "SequenceClassification"])
def test_saved_again(report: dict, name: str) -> None:
    """Saved from such a process, the model carries its code on."""
    assert report[f"copy/{name}"] == ["transformers_modules", True, True]


def test_the_package_stayed_out(report: dict) -> None:
    """The loading process imported nothing of the package."""
    assert report["imported"] == []


def test_the_code_lies_flat_beside_the_weights(exported: Path) -> None:
    """Every module that the saved code imports was saved, and none of them reaches outside its folder."""
    for folder in (exported / "vlm", exported / "tokenizer"):
        files = {file.stem for file in folder.glob("*.py")}
        assert files
        for file in folder.glob("*.py"):
            for line in file.read_text().splitlines():
                if line.strip().startswith("from ."):
                    assert line.split()[1].removeprefix(".") in files, f"{file.name}: {line}"


def test_registering_is_what_saves_code(tmp_path: Path) -> None:
    """Without registering, a checkpoint holds no code."""
    tiny_vlm().save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.py"))
    assert "auto_map" not in json.loads((tmp_path / "config.json").read_text())
