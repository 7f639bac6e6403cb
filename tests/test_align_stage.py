"""Alignment: two towers with a merger between them, only that is trained, and runs resume exactly."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from chat_samples import chat_processor, conversations, quiet, save_towers, text_config, write_rows
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from arlow import ArlowForCausalLM, ArlowTokenizer
from arlow.training import train
from arlow.vision import ArlowVLVisionModel


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `vision/checkpoint-5/`, `text/` and `data/rows.jsonl`."""
    home = tmp_path_factory.mktemp("home")
    save_towers(home, deepstack_visual_indexes=[0])
    write_rows(home / "data" / "rows.jsonl", conversations(home / "data"))
    return home


def align(home: Path, out: Path, **fields: Any) -> Path:
    given = {
        "vision": home / "vision" / "checkpoint-5", "text": home / "text", "data": str(home / "data" / "rows.jsonl"),
        "output_dir": out, "batch_size": 4, "max_steps": 3, **fields,
    }  # fmt: skip
    return train("align", **quiet(**given))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_only_the_mergers_are_trained(home: Path, tmp_path: Path) -> None:
    """Both towers keep their weights bit for bit; merger and DeepStack mergers move; the result loads and answers."""
    out = align(home, tmp_path)
    after = weights(out)
    text, vision = weights(home / "text"), weights(home / "vision" / "checkpoint-5" / "vision_encoder")
    expected = {name.replace("model.", "model.language_model.", 1): value for name, value in text.items()}
    expected |= {f"model.visual.{name}": value for name, value in vision.items()}
    assert after.keys() == expected.keys()
    moved = {name for name in after if not torch.equal(after[name], expected[name])}
    assert moved == {name for name in after if "visual.merger" in name or "deepstack_mergers" in name}

    model, processor = AutoModelForImageTextToText.from_pretrained(out), AutoProcessor.from_pretrained(out)
    tokenizer = processor.tokenizer
    assert model.config.image_token_id == tokenizer.image_token_id
    assert model.generation_config.eos_token_id == tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id
    picture = {"type": "image", "path": str(home / "data" / "red.png")}
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": [picture]}],
        tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True,
    )  # fmt: skip
    new = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert new.shape[1] > inputs["input_ids"].shape[1]


def test_features_are_those_of_the_encoder(home: Path, tmp_path: Path) -> None:
    """Before training the joined model encodes and writes as the towers do alone."""
    from arlow.training.align import Recipe, build

    recipe = Recipe(
        vision=home / "vision" / "checkpoint-5", text=home / "text", data=["x"], output_dir=tmp_path, max_steps=1
    )
    model, _ = build(recipe)
    model.eval()
    encoder = ArlowVLVisionModel.from_pretrained(home / "vision" / "checkpoint-5" / "vision_encoder").eval()
    text = ArlowForCausalLM.from_pretrained(home / "text").eval()
    ids = torch.arange(10, 30)[None]
    pixels, grid = torch.randn(16, 192), torch.tensor([[1, 4, 4]])
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, text(ids).logits)
        wanted = encoder(pixels, grid)
        torch.testing.assert_close(model.model.visual(pixels, grid).last_hidden_state, wanted.last_hidden_state)


def test_rows_of_samples_are_normalised_as_the_encoder_learned(home: Path, tmp_path: Path) -> None:
    """The joined config has the numbers of the encoder's processor, by which the encoder then reads uint8 rows."""
    from arlow.training.align import Recipe, build

    shutil.copytree(home / "vision", tmp_path / "vision")
    encoder = tmp_path / "vision" / "checkpoint-5"
    for name in ("image_processor", "video_processor"):
        (file,) = (encoder / name).glob("*.json")
        file.write_text(json.dumps(json.loads(file.read_text()) | {"image_mean": [0.48, 0.45, 0.4]}))
    recipe = Recipe(vision=encoder, text=home / "text", data=["x"], output_dir=tmp_path / "out", max_steps=1)
    model, processor = build(recipe)
    assert model.config.vision_config.image_mean == [0.48, 0.45, 0.4]
    assert model.model.visual.config.image_mean == list(processor.image_processor.image_mean)


@pytest.mark.parametrize("place", ["vision/checkpoint-5/vision_encoder", "vision/checkpoint-5", "vision"])
def test_where_the_encoder_is(home: Path, tmp_path: Path, place: str) -> None:
    """The encoder's folder, its checkpoint, and the output of a run with checkpoints are all understood."""
    from arlow.training.parts import find_encoder, find_processor

    shutil.copytree(home / "vision", tmp_path / "vision")
    (tmp_path / "vision" / "checkpoint-5" / "trainer_state.json").write_text('{"global_step": 5}')
    encoder = find_encoder(tmp_path / place, field="vision")
    assert encoder == tmp_path / "vision" / "checkpoint-5" / "vision_encoder"
    assert find_processor(encoder, "video_processor") == tmp_path / "vision" / "checkpoint-5" / "video_processor"


def test_other_widths_and_taps(home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A merger of another width is made anew, and says so; DeepStack can be chosen here."""
    import logging

    save_towers(tmp_path, width=48)
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        out = align(
            home, tmp_path / "out", vision=tmp_path / "vision" / "checkpoint-5",
            deepstack_visual_indexes=[0, 1], deepstack_decoder_layers=[1, 0],
        )  # fmt: skip
    finally:
        logger.removeHandler(caplog.handler)
    assert any("made anew" in record.getMessage() and "48" in record.getMessage() for record in caplog.records)
    model = AutoModelForImageTextToText.from_pretrained(out)
    assert model.config.vision_config.hidden_size == model.config.text_config.hidden_size
    assert model.config.deepstack_decoder_layers == [1, 0] and len(model.model.visual.deepstack_mergers) == 2


def test_batches_of_text_alone(home: Path, tmp_path: Path) -> None:
    """A batch without media, from which mergers learn nothing, does not stop alignment."""
    rows = conversations(tmp_path / "data")
    data = write_rows(tmp_path / "data" / "mixed.jsonl", [rows[0], rows[-1], rows[-1]])
    out = align(home, tmp_path / "out", data=str(data), batch_size=1, log_steps=1)
    state = json.loads((out / "checkpoint-3" / "trainer_state.json").read_text())
    norms = [entry["grad_norm"] for entry in state["log_history"] if "grad_norm" in entry]
    assert norms.count(0) == 2 and max(norms) > 0


def kill(run: Path, keep: str) -> None:
    """Leave of a finished run what a kill right after the checkpoint `keep` leaves."""
    for left in run.iterdir():
        if left.is_dir() and left.name.startswith("checkpoint-") and left.name != keep:
            shutil.rmtree(left)
        elif left.is_file() and left.name not in ("recipe.yaml", "run.json"):
            left.unlink()


@pytest.mark.parametrize("phase", ["merger", "everything"])
def test_both_runs_resume_exactly(home: Path, tmp_path: Path, phase: str) -> None:
    """`then_everything` trains all weights after the mergers; killed in either run, it ends with the same weights."""
    then = {"max_steps": 4, "learning_rate": 1e-3, "learning_rates": {"vision": 1e-4}}
    fields = {"max_steps": 4, "save_steps": 2, "keep_checkpoints": 5, "then_everything": then, "schedule": "cosine"}
    whole = align(home, tmp_path / "whole", **fields)
    written = yaml.safe_load((whole / "recipe.yaml").read_text())
    assert written["then_everything"]["learning_rates"] == {"vision": 1e-4} and written["seed"] == 0  # as given
    shutil.copytree(whole, tmp_path / "killed")
    if phase == "merger":
        shutil.copytree(whole / "merger", tmp_path / "first")
        shutil.rmtree(tmp_path / "killed")
        shutil.copytree(tmp_path / "first", tmp_path / "killed" / "merger")
        kill(tmp_path / "killed" / "merger", "checkpoint-2")
    else:
        kill(tmp_path / "killed", "checkpoint-2")
    again = align(home, tmp_path / "killed", **fields)
    one, two, first = weights(whole), weights(again), weights(whole / "merger")
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert all(not torch.equal(one[name], first[name]) for name in one if name.endswith("_proj.weight"))


def test_refused_before_anything_is_written(home: Path, tmp_path: Path) -> None:
    """Missing or wrong towers, foreign tokenizers and impossible layers: one line, nothing written."""
    other = tmp_path / "other"
    ArlowForCausalLM(text_config(eos_token_id=9)).save_pretrained(other)
    chat_processor().tokenizer.save_pretrained(tmp_path / "tokenizer")
    for file in (tmp_path / "tokenizer").iterdir():
        shutil.copy(file, other / file.name)
    small = tmp_path / "small"
    ArlowForCausalLM(text_config(vocab_size=300)).save_pretrained(small)
    ArlowTokenizer.from_pretrained(home / "text").save_pretrained(small)
    coarse = tmp_path / "coarse"
    shutil.copytree(home / "vision" / "checkpoint-5", coarse)
    for name in ("image_processor", "video_processor"):
        file = (
            coarse
            / name
            / ("preprocessor_config.json" if name == "image_processor" else "video_preprocessor_config.json")
        )
        file.write_text(json.dumps({**json.loads(file.read_text()), "patch_size": 14}))
    bare = tmp_path / "bare" / "deep" / "down"
    shutil.copytree(home / "vision" / "checkpoint-5" / "vision_encoder", bare)
    cases = [
        ({"vision": tmp_path / "nowhere"}, OSError, "vision"),
        ({"text": tmp_path / "nowhere"}, OSError, "text"),
        ({"vision": home / "data"}, OSError, "vision"),
        ({"vision": bare}, OSError, "image_processor"),
        ({"vision": home / "text"}, ValueError, "arlow_text"),
        ({"text": home / "vision" / "checkpoint-5" / "vision_encoder"}, ValueError, "arlow_vision"),
        ({"text": other}, ValueError, "eos_token_id"),
        ({"text": small}, ValueError, "tokenizer"),
        ({"vision": coarse}, ValueError, "patch_size"),
        ({"deepstack_decoder_layers": [7]}, ValueError, "deepstack_decoder_layers"),
        ({"deepstack_visual_indexes": [9]}, ValueError, "deepstack_visual_indexes"),
        ({"then_everything": {}}, ValueError, "max_steps"),
        ({"learning_rate": 0}, ValueError, "learning_rate"),
    ]
    for fields, kind, words in cases:
        with pytest.raises(kind, match=words) as caught:
            align(home, tmp_path / "out", **fields)
        assert len(str(caught.value)) < 300 and "\n" not in str(caught.value), fields
        assert not (tmp_path / "out").exists(), fields


@pytest.mark.slow
def test_two_processes(home: Path, tmp_path: Path) -> None:
    """Two processes of batch 1, one of which mostly sees text alone, do both runs and end where one process with
    batch 2 ends."""
    rows = conversations(tmp_path / "data")
    data = write_rows(tmp_path / "data" / "mixed.jsonl", [rows[0], rows[-1], rows[-1], rows[3]])
    fields = {"data": str(data), "max_steps": 3, "then_everything": {"max_steps": 3, "learning_rate": 1e-3}}
    one = align(home, tmp_path / "one", batch_size=2, **fields)
    settings = quiet(
        vision=home / "vision" / "checkpoint-5", text=home / "text", data=data, output_dir=tmp_path / "two",
        batch_size=1, max_steps=3,
    )  # fmt: skip
    words = [f"{name}={value}" for name, value in settings.items()]
    words += ["then_everything.max_steps=3", "then_everything.learning_rate=1e-3"]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29731"]
    subprocess.run([*command, "-m", "arlow.cli", "train", "align", *words], check=True, timeout=400)
    first, second = weights(one), weights(tmp_path / "two")
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, atol=2e-4, rtol=1e-2)
