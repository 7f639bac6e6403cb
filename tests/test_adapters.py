"""Low-rank adapters: trained alone, merged exactly, quantised bases, checkpointing; the verb `merge-adapter`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_samples import assistant, chat_processor, conversations, quiet, save_model, user, write_rows
from safetensors.torch import load_file
from test_finetune_stage import answers
from transformers import AutoModelForImageTextToText, AutoProcessor

from arlow.cli import main
from arlow.data.conversations import Collator, Conversations, JsonLines
from arlow.training import train
from arlow.training.adapters import LoraRecipe, add_adapter, merge_adapter
from arlow.training.parts import load_model


pytest.importorskip("peft")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    save_model(home / "model", vision={"deepstack_visual_indexes": [0]})
    write_rows(home / "data" / "rows.jsonl", conversations(home / "data"))
    return home


def lora(home: Path, out: Path, **fields: Any) -> Path:
    data = str(home / "data" / "rows.jsonl")
    given = {
        "model": home / "model",
        "data": data,
        "output_dir": out,
        "batch_size": 8,
        "max_steps": 3,
        "lora": {},
        **fields,
    }
    return train("finetune", **quiet(**{"learning_rate": 1e-2, **given}))


def batch_of(home: Path) -> dict[str, Any]:
    rows = Conversations(chat_processor(), [(JsonLines(home / "data" / "rows.jsonl"), 1.0)])
    return Collator(chat_processor(), packing=True)([rows.load(item) for item in rows.items])


@torch.no_grad()
def logits(model: Any, home: Path) -> torch.Tensor:
    return model.eval()(**batch_of(home)).logits


@pytest.mark.parametrize("vision", [False, True])
def test_merged_equals_adapted(home: Path, tmp_path: Path, vision: bool) -> None:
    """The merged model at the top, the adapter through PEFT, and `merge-adapter` give the same logits, unlike the
    base; only what was to be adapted has changed."""
    import peft

    out = lora(home, tmp_path / "out", lora={"r": 4, "vision": vision})
    base, _ = load_model(home / "model")
    before = logits(base, home)
    merged = logits(AutoModelForImageTextToText.from_pretrained(out), home)
    adapted = logits(peft.PeftModel.from_pretrained(base, str(out / "adapter")), home)
    torch.testing.assert_close(merged, adapted, atol=1e-5, rtol=1e-4)
    assert (merged - before).abs().max() > 0.1
    assert main(["merge-adapter", str(out / "adapter"), str(tmp_path / "plain")]) == 0
    assert torch.equal(logits(AutoModelForImageTextToText.from_pretrained(tmp_path / "plain"), home), merged)
    assert AutoProcessor.from_pretrained(tmp_path / "plain").tokenizer.chat_template

    old, new = load_file(home / "model" / "model.safetensors"), load_file(out / "model.safetensors")
    moved = {name for name in old if not torch.equal(old[name], new[name])}
    assert all(name.endswith("weight") and (".layers." in name or ".blocks." in name) for name in moved)
    assert any("visual.blocks" in name for name in moved) == vision
    assert not any("norm" in name or "merger" in name or "patch_embed" in name for name in moved)
    assert sum(".layers." in name for name in moved) == 7 * base.config.text_config.num_hidden_layers


def test_adapter_only(home: Path, tmp_path: Path) -> None:
    """With `save_adapter_only` the output holds the adapter and the processor, and loads through PEFT."""
    out = lora(home, tmp_path / "out", save_adapter_only=True, lora={"r": 2, "targets": ["q_proj"]})
    assert (out / "adapter_model.safetensors").is_file() and not (out / "model.safetensors").exists()
    saved = load_file(out / "adapter_model.safetensors")
    assert all("q_proj.lora_" in name for name in saved) and len(saved) == 2 * 2
    assert AutoProcessor.from_pretrained(out).tokenizer.chat_template
    model = AutoModelForImageTextToText.from_pretrained(out)  # Transformers' own way with adapters
    merged = merge_adapter(out, tmp_path / "plain", model=home / "model")
    plain = AutoModelForImageTextToText.from_pretrained(merged)
    torch.testing.assert_close(logits(model, home), logits(plain, home), atol=1e-5, rtol=1e-4)


def test_merging_keeps_the_dtype(home: Path, tmp_path: Path) -> None:
    """An adapter merged into a bfloat16 model gives a bfloat16 model: the float32 sum, rounded once."""
    model = AutoModelForImageTextToText.from_pretrained(home / "model", dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "half")
    AutoProcessor.from_pretrained(home / "model").save_pretrained(tmp_path / "half")
    out = lora(home, tmp_path / "out", model=tmp_path / "half")
    weights = load_file(out / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.bfloat16}
    pair = load_file(out / "adapter" / "adapter_model.safetensors")
    name = "model.language_model.layers.0.self_attn.q_proj"
    a, b = (pair[f"base_model.model.{name}.lora_{which}.weight"] for which in "AB")
    before = load_file(tmp_path / "half" / "model.safetensors")[f"{name}.weight"].float()
    wanted = (before + 2 * b @ a).bfloat16()  # alpha / r = 16 / 8
    torch.testing.assert_close(weights[f"{name}.weight"].float(), wanted.float(), atol=0, rtol=0.01)


@pytest.mark.parametrize("options", [{}, {"vision": True}])
def test_gradient_checkpointing(home: Path, options: dict[str, Any]) -> None:
    """Checkpointed adapters get the gradients of those that are not, in the vision encoder, too."""
    grads = []
    for checkpointing in (False, True):
        model, _ = load_model(home / "model")
        torch.manual_seed(0)
        model = add_adapter(model, LoraRecipe(**options), checkpointing=checkpointing)
        if checkpointing:
            model.base_model.model.activation_checkpointing_enable()
        torch.manual_seed(1)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        model.train()(**batch_of(home)).loss.backward()
        grads.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    assert len(grads[0]) == 2 * (7 + (4 if options else 0)) * 2
    for name, gradient in grads[0].items():
        torch.testing.assert_close(grads[1][name], gradient, atol=1e-6, rtol=1e-4)
        assert gradient.abs().max() > 0


def test_checkpointed_run(home: Path, tmp_path: Path) -> None:
    """The recipe's `gradient_checkpointing` with LoRA trains as without."""
    runs = [
        lora(home, tmp_path / str(on), gradient_checkpointing=on, save_adapter_only=True, lora={"r": 2})
        for on in (False, True)
    ]
    one, two = (load_file(out / "adapter_model.safetensors") for out in runs)
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_base(home: Path, tmp_path: Path, bits: int) -> None:
    """QLoRA: the frozen weights are held in few bits, adapters learn, and merge into the full-precision model."""
    pytest.importorskip("bitsandbytes")
    out = lora(home, tmp_path / "out", quantize=bits, max_steps=8, log_steps=1)
    history = json.loads((out / "checkpoint-8" / "trainer_state.json").read_text())["log_history"]
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert losses[-1] < losses[0] - 0.5
    merged = AutoModelForImageTextToText.from_pretrained(out)
    assert {parameter.dtype for parameter in merged.parameters()} == {torch.float32}
    batch = batch_of(home)
    with torch.no_grad():
        assert merged.eval()(**batch).loss < losses[0] - 0.5


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["one"], "folders"),
        (["nowhere", "out"], "nowhere"),
        (["data", "out"], "adapter_config.json"),
        (["data", "nowhere", "out"], "nowhere"),
        (["data", "data"], "not an empty directory"),
    ],
)
def test_merge_adapter_refuses(
    home: Path, words: list[str], said: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wrong folders: one line, and no output."""
    monkeypatch.chdir(home)
    assert main(["merge-adapter", *words]) in (1, 2)
    error = capsys.readouterr().err.strip()
    assert said in error and "\n" not in error
    assert not (home / "out").exists()


@pytest.mark.slow
def test_lora_learns_a_new_answer(home: Path, tmp_path: Path) -> None:
    """Adapters on a trained model learn another word for one picture, by the command line; other answers stay."""
    base = train(
        "finetune",
        **quiet(
            model=home / "model", data=str(home / "data" / "rows.jsonl"), output_dir=tmp_path / "base",
            max_steps=80, batch_size=8, learning_rate=4e-3, cache=True,
        ),
    )  # fmt: skip
    rows = conversations(tmp_path / "data")
    rows[0] = [user(rows[0][0]["content"][0], "Describe this image."), assistant("tool over")]
    data = write_rows(tmp_path / "data" / "new.jsonl", rows)
    settings = {
        "model": base, "data": data, "output_dir": tmp_path / "out", "max_steps": 120, "batch_size": 8,
        "learning_rate": 1e-2, "lora.r": 8, "device": "cpu", "cache": "true",
    }  # fmt: skip
    words = [f"{name}={value}" for name, value in settings.items()]
    subprocess.run([sys.executable, "-m", "arlow.cli", "train", "finetune", *words], check=True, timeout=300)
    pairs = answers(tmp_path / "out", data)
    assert pairs[0] == ("tool over", "tool over")
    assert [given for given, _ in pairs] == [wanted for _, wanted in pairs]
