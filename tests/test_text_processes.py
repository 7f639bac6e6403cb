"""Stage `text` on two processes with gloo: the losses of one process, and resumption, under DDP, FSDP2 and ZeRO-2."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training_runs import command, losses, text_fields, write_yaml

from arlow.training import train


ZERO = Path(__file__).parents[1] / "recipes" / "deepspeed" / "zero2.json"
KINDS: dict[str, list[str]] = {"ddp": [], "fsdp": ["fsdp={}"], "zero": [f"deepspeed={ZERO}"]}
# One process whose two loader processes read what the two devices read; a step takes a batch of each.
LIKE_TWO: dict[str, Any] = {"workers": 2, "accumulation": 2}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes give the losses of one, save one model, and go on from a checkpoint as if never stopped."""
    if kind == "zero" and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("needs deepspeed")
    monkeypatch.setenv("DS_BUILD_OPS", "0")
    fields = text_fields(tmp_path, max_steps=6, save_steps=3, eval_rows=5)
    fields["config"] |= {"attention_dropout": 0.0, "resid_dropout": 0.0}
    one = train("text", **{**fields, **LIKE_TWO, "output_dir": str(tmp_path / "one")})
    words = ["train", "text", write_yaml(tmp_path / "recipe.yaml", fields), *KINDS[kind]]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"]
    code, shown, errors = command(*words, launcher=launcher)
    assert code == 0, errors[-3000:]
    out = tmp_path / "out"
    assert shown.count("wrote ") == 1 and shown.count("step 6/6  loss") == 1
    assert losses(out) == pytest.approx(losses(one), rel=1e-4)
    before, expected = load_file(out / "model.safetensors"), load_file(one / "model.safetensors")
    assert before.keys() == expected.keys()
    assert all(torch.allclose(before[name], expected[name], atol=2e-3) for name in expected)

    (out / "model.safetensors").unlink()
    shutil.rmtree(out / "checkpoint-6")
    code, shown, errors = command(*words, launcher=launcher)
    assert code == 0, errors[-3000:]
    assert "step 4/6" in shown and "step 3/6" not in shown
    after = load_file(out / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.slow
def test_bad_recipe_on_two_processes(tmp_path: Path) -> None:
    """Each process says what is wrong, none waits for another, nothing is written."""
    config = write_yaml(tmp_path / "recipe.yaml", text_fields(tmp_path, data=str(tmp_path / "nowhere.jsonl")))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"]
    code, _, errors = command("train", "text", config, launcher=launcher)
    assert code != 0 and "nowhere.jsonl': no such file" in errors and not (tmp_path / "out").exists()
