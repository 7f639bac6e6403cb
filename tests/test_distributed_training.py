"""Two real processes (gloo, CPU), one of them without any picture: nothing hangs, and the gradients are those of one
process that saw both batches."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import batch, image, prompt, tiny_vlm, video
from torch import distributed, nn

from arlow import ArlowForConditionalGeneration
from arlow.fusion import is_spread


SECONDS = 300  # after which a hanging process is ended
STATES = 12  # width of encoder states

# What each process is given: (rows, encoder states?). The model has every part that only media or encoder states use.
CASES = {
    "picture and text": ((prompt(4, image(4, 8), 5), False), (prompt(9, seed=1), False)),
    "text and video": ((prompt(7), False), (prompt(3, video(2, 4, 4), 2, seed=1), False)),
    "text and text": ((prompt(7), False), (prompt(4, seed=1), False)),
    "picture and states": ((prompt(4, image(4, 4), 5), False), (prompt(6, seed=1), True)),
}


def full_model() -> ArlowForConditionalGeneration:
    """DeepStack with gates, progressive patches and cross-attention."""
    model = tiny_vlm(
        vision={"deepstack_visual_indexes": [0, 1], "use_progressive_patches": True},
        text={"use_cross_attention": True, "encoder_hidden_size": STATES},
        use_gated_cross_attention=True,
    )
    return model.train()


def inputs_of(case: str, rank: int) -> dict[str, torch.Tensor]:
    row, has_states = CASES[case][rank]
    inputs = batch(row)
    inputs["labels"] = inputs["input_ids"].masked_fill(inputs["input_ids"] < 16, -100)
    if has_states:
        inputs["encoder_hidden_states"] = torch.randn(1, 3, STATES, generator=torch.Generator().manual_seed(5))
    return inputs


def labels_of(case: str) -> int:
    return sum(int((inputs_of(case, rank)["labels"][:, 1:] != -100).sum()) for rank in (0, 1))


def wanted_gradients(case: str) -> dict[str, torch.Tensor]:
    """Of one process that sees both batches; zero where nothing reached a parameter."""
    model = full_model()
    for rank in (0, 1):
        model(**inputs_of(case, rank), num_items_in_batch=labels_of(case)).loss.backward()
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()}


# What each process runs


def with_ddp(model: nn.Module, case: str, rank: int) -> dict[str, torch.Tensor]:
    wrapped = nn.parallel.DistributedDataParallel(model)
    for _ in range(2):  # DDP notices an unused parameter at the next forward
        model.zero_grad()
        (2 * wrapped(**inputs_of(case, rank), num_items_in_batch=labels_of(case)).loss).backward()
    return {name: p.grad for name, p in model.named_parameters()}


def with_fsdp(model: nn.Module, case: str, rank: int) -> dict[str, torch.Tensor]:
    from torch.distributed.fsdp import fully_shard

    for block in (*model.model.visual.blocks, *model.model.language_model.layers, model.lm_head):
        fully_shard(block)
    fully_shard(model)
    assert is_spread(model)
    (2 * model(**inputs_of(case, rank), num_items_in_batch=labels_of(case)).loss).backward()
    gradients = {name: p.grad.full_tensor() for name, p in model.named_parameters()}
    with torch.no_grad():  # evaluation waits for spread weights, too
        assert model.eval()(**inputs_of(case, rank)).loss.isfinite()
    return gradients


def with_frozen_fsdp(model: nn.Module, case: str, rank: int) -> dict[str, torch.Tensor]:
    model.model.visual.requires_grad_(False)
    from torch.distributed.fsdp import fully_shard

    for block in (*model.model.visual.blocks, *model.model.language_model.layers):
        fully_shard(block)
    fully_shard(model)
    (2 * model(**inputs_of(case, rank), num_items_in_batch=labels_of(case)).loss).backward()
    return {name: p.grad.full_tensor() for name, p in model.named_parameters() if p.requires_grad}


def with_zero(stage: int, model: nn.Module, case: str, rank: int) -> dict[str, torch.Tensor]:
    import deepspeed
    from deepspeed.utils import safe_get_full_grad

    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": stage, "reduce_bucket_size": 2000, "stage3_param_persistence_threshold": 0},
        "zero_allow_untested_optimizer": True,
    }
    optimiser = torch.optim.SGD(model.parameters(), lr=0.0)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimiser, config=settings)
    assert is_spread(model) == (stage == 3)
    for _ in range(2):
        engine.backward(2 * engine(**inputs_of(case, rank), num_items_in_batch=labels_of(case)).loss)
        gradients = {name: safe_get_full_grad(p).clone() for name, p in model.named_parameters()}
        engine.step()
    return gradients


WAYS: dict[str, Any] = {
    "ddp": with_ddp,
    "fsdp2": with_fsdp,
    "frozen fsdp2": with_frozen_fsdp,
    "zero-2": lambda *arguments: with_zero(2, *arguments),
    "zero-3": lambda *arguments: with_zero(3, *arguments),
}


def process(way: str, cases: list[str], folder: str) -> None:
    """One of the two processes; the first writes the gradients of every case."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    for number, case in enumerate(cases):
        gradients = WAYS[way](full_model(), case, rank)
        if rank == 0:
            torch.save(gradients, Path(folder, f"{number}.pt"))
    distributed.barrier()
    distributed.destroy_process_group()


def two_processes(way: str, cases: list[str], folder: Path) -> list[dict[str, torch.Tensor]]:
    """The gradients of every case, from two processes running `way`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    here = Path(__file__).parent
    environment = {
        **os.environ, "PYTHONPATH": f"{here}:{here.parent / 'src'}", "OMP_NUM_THREADS": "1", "ARLOW_NO_AUTOLOAD": "1",
        "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    logs = [folder / f"{rank}.log" for rank in (0, 1)]  # files: a full pipe would stop a process that says much
    running = [
        subprocess.Popen(
            [sys.executable, __file__, json.dumps([way, cases, str(folder)])],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=log.open("w"),
            stderr=subprocess.STDOUT,
        )
        for rank, log in enumerate(logs)
    ]
    try:
        for one, log in zip(running, logs, strict=True):
            assert one.wait(timeout=SECONDS) == 0, log.read_text()[-3000:]
    finally:
        for one in running:
            one.kill()
            one.wait()
    return [torch.load(folder / f"{number}.pt") for number in range(len(cases))]


def assert_gradients(way: str, cases: list[str], folder: Path) -> None:
    for case, found in zip(cases, two_processes(way, cases, folder), strict=True):
        wanted = wanted_gradients(case)
        frozen = {name for name in wanted if way.startswith("frozen") and name.startswith("model.visual.")}
        assert set(found) == set(wanted) - frozen
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, wanted[name], atol=2e-5, rtol=1e-4, msg=lambda s, n=name: f"{n}: {s}")


def test_ddp_with_a_text_only_process(tmp_path: Path) -> None:
    """DDP without `find_unused_parameters`: pictures on one process only, or on none, train as in one process."""
    assert_gradients("ddp", list(CASES), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["fsdp2", "frozen fsdp2", "zero-2", "zero-3"])
def test_spread_training_with_a_text_only_process(way: str, tmp_path: Path) -> None:
    """FSDP2 (the vision encoder frozen or not, and in evaluation), ZeRO-2 and ZeRO-3 wait for nobody, either."""
    if way.startswith("zero"):
        pytest.importorskip("deepspeed")
    assert_gradients(way, list(CASES), tmp_path)


def test_one_process_runs_nothing_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A single process, in a group of its own or in none, does not run the encoder for a text batch: no gradients."""
    inputs = inputs_of("text and text", 0)
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    for size, ran in ((1, False), (2, True)):
        monkeypatch.setattr(distributed, "get_world_size", lambda size=size: size)
        model = full_model()
        output = model(**inputs)
        output.loss.backward()
        assert (model.model.visual.merger.mlp[0].weight.grad is not None) == ran
        assert (model.model.language_model.visual_gates.grad is not None) == ran
        model.eval()
        calls: list[int] = []
        model.model.visual.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        model(**inputs)
        assert not calls  # evaluation with whole weights needs nobody


@pytest.mark.parametrize("checkpointing", [False, True])
def test_blank_image_changes_nothing(checkpointing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss and gradients of a text batch are those without the blank image, whose own gradients are all zero."""
    inputs, results = inputs_of("text and text", 0), []
    for size in (1, 2):
        monkeypatch.setattr(distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(distributed, "get_world_size", lambda size=size: size)
        model = full_model()
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        loss = model(**inputs).loss
        loss.backward()
        results.append((loss, {name: p.grad for name, p in model.named_parameters()}))
    (alone, without), (beside, with_blank) = results
    assert torch.equal(alone, beside)
    for name, gradient in with_blank.items():
        assert gradient is not None, name
        if without[name] is None:
            assert not gradient.any(), name
        else:
            assert torch.equal(gradient, without[name]), name


if __name__ == "__main__":
    process(*json.loads(sys.argv[1]))
