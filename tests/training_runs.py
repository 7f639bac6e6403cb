"""What the training tests share: small texts, a recipe for a tiny text model, and runs as processes of their own."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import yaml


WORDS = ["the", "a", "cat", "dog", "sees", "hears", "red", "blue", "big", "small", "house", "tree", "and", "or"]


def write_texts(path: Path, count: int = 300, *, seed: int = 0) -> Path:
    """JSON lines of short made-up texts, the first of them long."""
    chance = random.Random(seed)
    lengths = [400, *(chance.randint(3, 60) for _ in range(count - 1))]
    texts = (" ".join(chance.choices(WORDS, k=length)) for length in lengths)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def text_fields(folder: Path, **fields: Any) -> dict[str, Any]:
    """A recipe of stage `text` for a run of seconds; `fields` over it. Texts are made if there are none."""
    data = folder / "texts.jsonl"
    if not data.exists():
        write_texts(data)
    config = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "attention_dropout": 0.1,
        "resid_dropout": 0.1,
    }
    return {
        "output_dir": str(folder / "out"),
        "config": config,
        "tokenizer": {"train": {"vocab_size": 300}},
        "data": str(data),
        "sequence_length": 48,
        "shuffle_buffer": 40,
        "max_steps": 12,
        "batch_size": 2,
        "learning_rate": 0.01,
        "warmup_steps": 2,
        "save_steps": 4,
        "log_steps": 1,
        "eval_share": 0.1,
        "eval_rows": 4,
        "device": "cpu",
        **fields,
    }


def write_yaml(path: Path, fields: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(fields), encoding="utf-8")
    return path


def train_quietly(stage: str, fields: dict[str, Any]) -> None:
    """A run whose output nobody reads; its exit code tells how it ended."""
    from arlow.training import train
    from arlow.training.loop import Stopped

    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
    try:
        train(stage, **fields)
    except Stopped:
        sys.exit(143)


def start(stage: str, fields: dict[str, Any]) -> Any:
    """A run in a process of its own, forked from one that has imported everything and computed nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([f"arlow.training.{stage.replace('-', '_')}"])
    process = context.Process(target=train_quietly, args=(stage, fields))
    process.start()
    return process


def wait_until(true: Callable[[], bool], process: Any, *, seconds: float = 120, pause: float = 0.001) -> bool:
    """Whether it became true before the process ended."""
    end = time.monotonic() + seconds
    while not true():
        if not process.is_alive():
            return False
        assert time.monotonic() < end, f"nothing happened within {seconds} seconds"
        time.sleep(pause)
    return True


def finish(process: Any, *, seconds: float = 120) -> int:
    process.join(seconds)
    assert process.exitcode is not None, f"still running after {seconds} seconds"
    return process.exitcode


def losses(folder: Path) -> list[float]:
    """The loss of every step so far, as the newest checkpoint has them."""
    states = sorted(folder.glob("checkpoint-*/trainer_state.json"), key=lambda path: int(path.parent.name[11:]))
    history = json.loads(states[-1].read_text(encoding="utf-8"))["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def command(*words: str | Path, launcher: Iterable[str] = ("-m",), seconds: float = 300) -> tuple[int, str, str]:
    """`arlow` with these words: exit code, stdout, stderr."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, *launcher, "arlow.cli", *map(str, words)],
        env=environment, capture_output=True, text=True, timeout=seconds,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr
