"""Runs that are killed or stopped end as if they had not been, and what stands in the way of a run is said first."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch.utils.data import Dataset
from training_runs import finish, losses, start, text_fields, wait_until, write_yaml
from transformers import TrainingArguments

from arlow.training import train
from arlow.training.loop import ArlowTrainer, complete_checkpoints, newest_checkpoint


HARD = {"workers": 2, "accumulation": 2, "max_steps": 16, "save_steps": 3}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_same_run(one: Path, other: Path) -> None:
    """Weights, optimiser and losses, bit for bit."""
    expected, found = weights(one), weights(other)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert losses(one) == losses(other)
    last, own = newest_checkpoint(one), newest_checkpoint(other)
    assert last is not None and own is not None and last.name == own.name
    states = [torch.load(path / "optimizer.pt")["state"] for path in (last, own)]
    for index, state in states[0].items():
        assert all(torch.equal(state[name], states[1][index][name]) for name in state)


def unbroken(folder: Path, **fields: Any) -> tuple[Path, dict[str, Any]]:
    """A run nobody disturbed, and the recipe of another one like it."""
    whole = text_fields(folder, **fields, output_dir=str(folder / "whole"))
    assert finish(start("text", whole)) == 0
    return folder / "whole", {**whole, "output_dir": str(folder / "out")}


def half_written(out: Path) -> bool:
    """Whether a checkpoint is being written right now."""
    return len(list(out.glob("checkpoint-*"))) > len(complete_checkpoints(out))


def test_killed_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    """Killed after a checkpoint and resumed, a run with dropout ends with the weights of one that was not killed."""
    whole, fields = unbroken(tmp_path)
    out = tmp_path / "out"
    process = start("text", fields)
    assert wait_until(lambda: newest_checkpoint(out) is not None, process)
    process.kill()
    assert finish(process) == -signal.SIGKILL
    assert not (out / "model.safetensors").exists()
    assert finish(start("text", fields)) == 0
    assert_same_run(whole, out)


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{}, HARD, {**HARD, "workers": 3, "keep_checkpoints": 1, "eval_steps": 2}])
def test_killed_again_and_again(tmp_path: Path, fields: dict[str, Any]) -> None:
    """Whenever it is killed, also while a checkpoint is written, the run ends with the same weights: with loader
    processes, accumulation and dropout."""
    whole, again = unbroken(tmp_path, **fields)
    out, chance = tmp_path / "out", random.Random(1)
    kills = during_save = 0
    for attempt in range(12):
        process = start("text", again)
        if attempt % 2:
            alive = wait_until(lambda: half_written(out), process, pause=0.0)
        else:
            newest = newest_checkpoint(out)
            alive = wait_until(lambda: newest_checkpoint(out) != newest, process)  # noqa: B023
            time.sleep(chance.random() * 0.3)
        process.kill()
        kills += finish(process) == -signal.SIGKILL
        during_save += half_written(out)
        if not alive:
            break
    assert finish(start("text", again)) == 0
    assert kills >= 2 and during_save >= 1
    assert_same_run(whole, out)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["truncated", "empty", "no state"])
def test_half_written_checkpoint_is_passed_over(tmp_path: Path, damage: str) -> None:
    """A newest checkpoint whose state is cut short, empty or missing is not gone on from, and goes away."""
    whole, fields = unbroken(tmp_path)
    out = tmp_path / "out"
    process = start("text", fields)
    assert wait_until(lambda: len(complete_checkpoints(out)) == 2, process)
    process.kill()
    finish(process)
    newest = newest_checkpoint(out)
    assert newest is not None
    state = newest / "trainer_state.json"
    if damage == "no state":
        state.unlink()
        (newest / "optimizer.pt").unlink()
    else:
        state.write_text(state.read_text()[:200] if damage == "truncated" else "")
    assert newest_checkpoint(out) != newest
    assert finish(start("text", fields)) == 0
    assert_same_run(whole, out)


@pytest.mark.slow
def test_sigterm_stops_with_a_checkpoint(tmp_path: Path) -> None:
    """SIGTERM to the whole group of processes: the step in hand, a checkpoint, one line, exit code 143; the same
    command goes on bit for bit."""
    whole, fields = unbroken(tmp_path, max_steps=60, save_steps=50, workers=2, eval_share=0.0)
    config = write_yaml(tmp_path / "recipe.yaml", fields)
    words = [sys.executable, "-m", "arlow.cli", "train", "text", str(config)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    process = subprocess.Popen(
        words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    while not process.stdout.readline().startswith("step 5/"):
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143
    newest = newest_checkpoint(tmp_path / "out")
    assert newest is not None and 5 <= int(newest.name[11:]) < 50
    assert f"stopped by SIGTERM at step {newest.name[11:]}" in errors.splitlines()[-1]
    assert not (tmp_path / "out" / "model.safetensors").exists()
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert_same_run(whole, tmp_path / "out")


# In one process


class Groups(Dataset):
    """Samples that tell the process group of whoever reads them."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        return os.getpgid(0)


def test_loaders_are_out_of_reach_of_signals_to_the_group(tmp_path: Path) -> None:
    """Loader processes of training and of evaluation have process groups of their own."""
    arguments = TrainingArguments(
        output_dir=str(tmp_path), dataloader_num_workers=1, use_cpu=True, report_to="none",
        remove_unused_columns=False, per_device_train_batch_size=1, per_device_eval_batch_size=1,
    )  # fmt: skip
    trainer = ArlowTrainer(
        model=torch.nn.Linear(1, 1), args=arguments, train_dataset=Groups(), eval_dataset=Groups(), data_collator=list
    )
    for loader in (trainer.get_train_dataloader(), trainer.get_eval_dataloader(), trainer.get_eval_dataloader()):
        found = {group for batch in loader for group in batch}
        assert len(found) == 1 and os.getpgid(0) not in found


def test_directories_of_others_stay(tmp_path: Path) -> None:
    """What is called checkpoint-best, and what lay in the output before the first run, is not removed."""
    fields = text_fields(tmp_path, max_steps=1)
    for name in ("checkpoint-best", "checkpoint-7"):
        (tmp_path / "out" / name).mkdir(parents=True)
    out = train("text", **fields)
    assert (out / "checkpoint-best").is_dir() and (out / "checkpoint-7").is_dir()
    train("text", **fields)
    assert (out / "checkpoint-best").is_dir() and not (out / "checkpoint-7").exists()  # half-written, for all we know


def test_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    """The command of a finished run trains no further; another recipe is refused, what does not matter may differ."""
    fields = text_fields(tmp_path, max_steps=3, save_steps=2)
    out = train("text", **fields)
    before = weights(out)
    train("text", **{**fields, "log_steps": 2, "save_steps": 1, "bad_samples_limit": 7})
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(out).items())
    for change, name in (
        ({"learning_rate": 0.02}, "learning_rate"),
        ({"max_steps": 5}, "max_steps"),
        ({"workers": 1}, "workers"),
        ({"config": {**fields["config"], "hidden_size": 64}}, "config"),
    ):
        with pytest.raises(ValueError, match=f"^{name}=.*began with") as caught:
            train("text", **{**fields, **change})
        assert len(str(caught.value)) < 300
    with pytest.raises(ValueError, match=r"output_dir=.*already holds a run"):
        train("text", **{**fields, "resume": "never"})
    (out / "run.json").write_text('{"processes": 2}')
    with pytest.raises(ValueError, match=r"^processes=1: the run in output_dir began with 2"):
        train("text", **fields)
    (out / "recipe.yaml").write_text("- 1")
    with pytest.raises(ValueError, match=r"has checkpoints but no recipe\.yaml"):
        train("text", **fields)


def test_evaluations_leave_no_trace(tmp_path: Path) -> None:
    """How often a run evaluates and saves changes nothing in its weights, dropout or not."""
    often = train(
        "text", **text_fields(tmp_path, max_steps=4, eval_steps=1, save_steps=1, output_dir=str(tmp_path / "a"))
    )
    never = train(
        "text", **text_fields(tmp_path, max_steps=4, eval_steps=4, save_steps=4, output_dir=str(tmp_path / "b"))
    )
    assert all(torch.equal(weights(often)[name], tensor) for name, tensor in weights(never).items())


Usage = namedtuple("Usage", "total used free")


def test_full_disk_is_said_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for fewer checkpoints than are kept and one more, nothing is written."""
    fields = text_fields(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 10**12, 1_200_000))
    with pytest.raises(OSError, match=r"output_dir=.*0\.00 GB free, checkpoints and model take 0\.00 GB; free space"):
        train("text", **fields)
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 10**12, 2_000_000))
    assert train("text", **{**fields, "max_steps": 1}).is_dir()


@pytest.mark.parametrize("name", ["file", "file/below", "/proc/arlow"])
def test_unwritable_output_is_said_before_training(tmp_path: Path, name: str) -> None:
    """An output that is a file, lies under one, or cannot be made."""
    (tmp_path / "file").write_text("")
    fields = text_fields(tmp_path, output_dir=str(tmp_path / name))
    with pytest.raises(OSError, match=r"^output_dir=") as caught:
        train("text", **fields)
    assert len(str(caught.value)) < 300


def test_recipe_is_kept(tmp_path: Path) -> None:
    """The output holds the whole recipe, defaults included, as a file that runs the stage again."""
    out = train("text", **text_fields(tmp_path, max_steps=1))
    kept = yaml.safe_load((out / "recipe.yaml").read_text())
    assert kept["max_steps"] == 1 and kept["betas"] == [0.9, 0.95]
    assert train("text", out / "recipe.yaml") == out
