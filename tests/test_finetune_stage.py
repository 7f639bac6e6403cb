"""Fine-tuning: it learns the answers, resumes exactly, names bad samples, and refuses bad recipes before it writes."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_samples import assistant, chat_processor, conversations, quiet, save_model, user, write_rows
from safetensors.torch import load_file
from training_runs import losses
from transformers import AutoModelForImageTextToText, AutoProcessor

from arlow.data.bad_samples import TooManyBadSamples
from arlow.data.conversations import Conversations, JsonLines
from arlow.training import load_stage, train
from arlow.training.recipe import read_recipe


ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `model/` and `data/rows.jsonl` about real PNG and MP4 files."""
    home = tmp_path_factory.mktemp("home")
    save_model(home / "model", vision={"deepstack_visual_indexes": [0]})
    write_rows(home / "data" / "rows.jsonl", conversations(home / "data"))
    return home


def finetune(home: Path, out: Path, **fields: Any) -> Path:
    data = home / "data" / "rows.jsonl"
    given = {"model": home / "model", "data": str(data), "output_dir": out, "batch_size": 4, "max_steps": 4, **fields}
    return train("finetune", **quiet(**given))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def answers(folder: Path, data: Path) -> list[tuple[str, str]]:
    """For every conversation in `data`: what the saved model says as its last turn, and what it should say."""
    model = AutoModelForImageTextToText.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    pairs = []
    for line in data.read_text().splitlines():
        *before, last = json.loads(line)["messages"]
        for turn in before:
            for part in turn["content"] if isinstance(turn["content"], list) else []:
                if "path" in part:
                    part["path"] = str(data.parent / part["path"])
        inputs = processor.apply_chat_template(
            before, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
        )
        new = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert processor.decode(new).endswith("<|im_end|>")  # it ends by itself
        pairs.append((processor.decode(new, skip_special_tokens=True), last["content"]))
    return pairs


@pytest.mark.parametrize("packing", [True, False])
def test_learns_the_answers(home: Path, tmp_path: Path, packing: bool, capsys: pytest.CaptureFixture) -> None:
    """A tiny model trained on eight conversations gives their answers by `generate`; the evaluation loss falls. What
    is saved generates with a cache, which training switches off."""
    data = home / "data" / "rows.jsonl"
    out = finetune(
        home, tmp_path / "out", max_steps=60, batch_size=8, learning_rate=4e-3, cache=True, packing=packing,
        eval_data=str(data), eval_steps=30,
    )  # fmt: skip
    pairs = answers(out, data)
    assert [given for given, _ in pairs] == [wanted for _, wanted in pairs]
    history = json.loads((out / "checkpoint-60" / "trainer_state.json").read_text())["log_history"]
    losses = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    assert len(losses) == 2 and losses[1] < 0.1
    for folder in (out, out / "checkpoint-60"):
        for name in ("config.json", "generation_config.json"):
            assert json.loads((folder / name).read_text())["use_cache"] is True


@pytest.mark.slow
def test_compiled_run(home: Path, tmp_path: Path) -> None:
    """`compile: true` gives the losses of the plain run."""
    plain, compiled = (
        losses(finetune(home, tmp_path / str(on), compile=on, learning_rate=1e-3, log_steps=1)) for on in (False, True)
    )
    assert compiled == pytest.approx(plain, rel=1e-3)


@pytest.mark.parametrize(
    "fields", [{}, {"packing": False, "workers": 1}, {"lora": {"r": 2}, "save_adapter_only": True}]
)
def test_resumes_exactly(home: Path, tmp_path: Path, fields: dict[str, Any]) -> None:
    """A run that was killed after a checkpoint ends with the weights of one that was not, bit for bit."""
    fields = {
        "max_steps": 6,
        "save_steps": 2,
        "keep_checkpoints": 5,
        "schedule": "cosine",
        "learning_rate": 3e-3,
        **fields,
    }
    whole = finetune(home, tmp_path / "whole", **fields)
    shutil.copytree(whole, tmp_path / "killed")
    for left in (tmp_path / "killed").iterdir():  # as if killed in step 3 or 4
        if left.is_dir() and left.name != "checkpoint-2":
            shutil.rmtree(left)
        elif left.is_file() and left.name not in ("recipe.yaml", "run.json"):
            left.unlink()
    again = finetune(home, tmp_path / "killed", **fields)
    name = "adapter_model.safetensors" if "lora" in fields else "model.safetensors"
    one, two = load_file(whole / name), load_file(again / name)
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def test_batch_and_accumulation(home: Path, tmp_path: Path) -> None:
    """One batch of 8 and 8 of 1, packed or padded, train the same: losses and gradient norms step by step."""
    logs = []
    ways = [(8, 1, True), (1, 8, True), (8, 1, False)]
    for number, (batch_size, accumulation, packing) in enumerate(ways):
        out = finetune(
            home, tmp_path / str(number), batch_size=batch_size, accumulation=accumulation, packing=packing,
            max_steps=5, log_steps=1, learning_rate=1e-3,
        )  # fmt: skip
        state = json.loads((out / "checkpoint-5" / "trainer_state.json").read_text())
        logs.append([(entry["loss"], entry["grad_norm"]) for entry in state["log_history"] if "loss" in entry])
    assert len(logs[0]) == 5
    for other in logs[1:]:
        for (loss, norm), (loss2, norm2) in zip(logs[0], other, strict=True):
            assert loss == pytest.approx(loss2, rel=2e-4)
            assert norm == pytest.approx(norm2, rel=2e-3)


def test_freeze_and_learning_rates(home: Path, tmp_path: Path) -> None:
    """Frozen parts keep their weights; the others move, each by its own learning rate."""
    before = weights(home / "model")
    rates = {"text": 1e-2, "merger": 1e-4}
    out = finetune(home, tmp_path, freeze=["vision"], learning_rates=rates, max_steps=1, weight_decay=0.0)
    after = weights(out)
    moved = {name: (after[name] - before[name]).abs().max().item() for name in before}
    part = {"vision": [], "text": [], "merger": []}
    for name, step in moved.items():
        part["merger" if "merger" in name else "vision" if "visual" in name else "text"].append(step)
    assert max(part["vision"]) == 0
    assert min(part["text"]) >= 0 and max(part["text"]) == pytest.approx(
        1e-2, rel=0.05
    )  # Adam's first step is the rate
    assert max(part["merger"]) == pytest.approx(1e-4, rel=0.05)


def test_bad_samples(home: Path, tmp_path: Path) -> None:
    """Bad rows are listed as file:line and skipped; one more than the limit ends the run."""
    rows = [*conversations(tmp_path / "data"), [user({"type": "image", "path": "gone.png"}), assistant("x")]]
    data = write_rows(tmp_path / "data" / "some.jsonl", rows)
    out = finetune(home, tmp_path / "out", data=str(data), max_steps=5)
    (line,) = (out / "bad_samples.jsonl").read_text().splitlines()
    assert json.loads(line)["sample"] == f"{data}:9" and "gone.png" in json.loads(line)["error"]
    with pytest.raises(TooManyBadSamples, match=r"some\.jsonl:9"):
        finetune(home, tmp_path / "none", data=str(data), max_steps=5, bad_samples_limit=0)


REFUSED = {
    "model of nothing": ({"model": Path("nowhere")}, OSError, "nowhere"),
    "missing data": ({"data": "nowhere.jsonl"}, OSError, "nowhere.jsonl"),
    "missing held-out data": ({"eval_data": "nowhere.jsonl"}, OSError, "eval_data='nowhere.jsonl'"),
    "no data": ({"data": []}, ValueError, "data"),
    "a part that is none": ({"freeze": ["head"]}, ValueError, "freeze"),
    "all frozen": ({"freeze": ["text", "vision", "merger"]}, ValueError, "nothing to train"),
    "too long": ({"max_length": 10**6}, ValueError, "max_length"),
    "adapter without lora": ({"save_adapter_only": True}, ValueError, "lora"),
    "bits without lora": ({"quantize": 4}, ValueError, "lora"),
    "lora and freeze": ({"lora": {}, "freeze": ["text"]}, ValueError, "freeze"),
    "a target that is none": ({"lora": {"targets": ["qproj"]}}, ValueError, "qproj"),
    "a field of lora that is none": ({"lora": {"rank": 4}}, ValueError, "rank"),
    "a misspelt field": ({"pakcing": True}, ValueError, "packing"),
    "a source of two kinds": ({"data": [{"path": "a", "dataset": "b"}]}, ValueError, "either"),
    "missing evaluation data": ({"eval_data": "nowhere.jsonl"}, OSError, "nowhere.jsonl"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_anything_is_written(home: Path, tmp_path: Path, case: str) -> None:
    """A bad recipe is refused in one line that names the field or the file, and nothing is written."""
    fields, kind, words = REFUSED[case]
    with pytest.raises(kind, match=words) as caught:
        finetune(home, tmp_path / "out", **fields)
    assert len(str(caught.value)) < 300 and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_other_models_are_refused(home: Path, tmp_path: Path) -> None:
    """A text model, and a tokenizer of another model, are refused."""
    from chat_samples import save_towers

    _, text = save_towers(tmp_path)
    with pytest.raises(ValueError, match="arlow_text"):
        finetune(home, tmp_path / "out", model=text)
    save_model(tmp_path / "small", vocab_size=300)
    with pytest.raises(ValueError, match="tokenizer"):
        finetune(home, tmp_path / "out", model=tmp_path / "small")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["align", "finetune", "finetune-lora"])
def test_shipped_recipes(name: str) -> None:
    """The recipes that are shipped have known fields and possible values, and say something about each."""
    path = ROOT / "recipes" / f"{name}.yaml"
    stage = load_stage(name.split("-")[0])
    read_recipe(stage.Recipe, path)
    assert all(field.description for field in stage.Recipe.model_fields.values())


def test_page_of_training_on_conversations(home: Path) -> None:
    """The row that the page shows is one that can be used, and its defaults of `lora` are those of the code."""
    from arlow.training.adapters import LoraRecipe

    page = (ROOT / "docs" / "finetuning.md").read_text(encoding="utf-8")
    (row,) = re.findall(r"^```json\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    row = row.replace("images/1.jpg", str(home / "data" / "red.png")).replace("\n", "")
    path = write_rows(home / "page" / "rows.jsonl", [row])
    rows = Conversations(chat_processor(), [(JsonLines(path), 1.0)])
    assert rows.load(0).learned.sum() > 4
    for name, value in re.findall(r"^\| `lora\.(r|alpha|dropout)` \| `(.+?)` ", page, re.MULTILINE):
        assert str(LoraRecipe.model_fields[name].default) in (value, f"{value}.0")
