"""The optimiser of two: who gets Muon, how large its steps are, and that a stop does not show."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from text_samples import causal_lm, token_ids

from arlow.training.muon import Muon, MuonAdamW, make_muon


def optimiser(model: torch.nn.Module, **rates: float) -> MuonAdamW:
    def rate(name: str) -> float:
        return next((value for part, value in rates.items() if part in name), 1e-2)

    decayed = {name for name, weight in model.named_parameters() if weight.ndim > 1}
    return make_muon(model, learning_rate=rate, weight_decay=0.1, decayed=decayed, betas=(0.9, 0.95))


def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    ids = token_ids(2, 12, seed=seed)
    model(ids, labels=ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def test_hidden_matrices_get_muon_and_nothing_else_does() -> None:
    """Weights of linear layers but the head go to Muon; embedding, head and norms to AdamW; every weight to one."""
    model = causal_lm().train()
    muon, adamw = optimiser(model).parts
    names = {id(weight): name for name, weight in model.named_parameters()}
    found = [{names[id(p)] for group in part.param_groups for p in group["params"]} for part in (muon, adamw)]
    assert found[0] == {name for name in names.values() if "proj" in name and name.endswith("weight")}
    assert found[0] | found[1] == set(names.values()) and not found[0] & found[1]


def test_a_step_is_the_orthogonal_factor_of_the_gradient() -> None:
    """The first step goes along U V^T of the gradient's singular value decomposition, 0.2 sqrt(max side) large."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(24, 48, bias=False)
    before = layer.weight.detach().clone()
    optimizer = MuonAdamW([{"params": [layer.weight], "lr": 0.01, "weight_decay": 0.0}], [], betas=(0.9, 0.95))
    layer.weight.grad = torch.randn(48, 24)
    u, _, v = torch.linalg.svd(layer.weight.grad.double(), full_matrices=False)
    optimizer.step()
    moved = (before - layer.weight.detach()).double() / (0.01 * 0.2 * 48**0.5)
    # Newton-Schulz steps leave singular values near 1, not at 1.
    values = torch.linalg.svdvals(moved)
    assert values.min() > 0.6 and values.max() < 1.3
    wanted = u @ v
    assert torch.nn.functional.cosine_similarity(moved.flatten(), wanted.flatten(), dim=0) > 0.97


@pytest.mark.parametrize("shape", [(24, 48), (48, 24), (32, 32)])
def test_bfloat16_is_pytorchs_muon_and_float32_is_nearer(shape: tuple[int, int]) -> None:
    """Three steps in bfloat16 are those of `torch.optim.Muon` bit for bit; in float32 those of float64."""

    def walk(make, dtype: torch.dtype) -> torch.Tensor:
        torch.manual_seed(1)
        weight = torch.nn.Parameter(torch.randn(shape).to(dtype))
        optimizer = make([{"params": [weight], "lr": 0.02, "weight_decay": 0.1}])
        for _ in range(3):
            weight.grad = torch.randn(shape).to(dtype)
            optimizer.step()
        return weight.detach()

    ours = {dtype: walk(partial(Muon, dtype=dtype), torch.float32) for dtype in (torch.bfloat16, torch.float32)}
    theirs = walk(partial(torch.optim.Muon, adjust_lr_fn="match_rms_adamw"), torch.float32)
    assert torch.equal(ours[torch.bfloat16], theirs)
    exact = walk(partial(Muon, dtype=torch.float64), torch.float64)
    torch.testing.assert_close(ours[torch.float32].double(), exact, rtol=1e-4, atol=1e-5)


def test_parts_have_their_own_rates_and_a_scheduler_reaches_them() -> None:
    """Learning rates by name hold in both parts, and a scheduler's factor changes the groups that are stepped with."""
    model = causal_lm().train()
    optimizer = optimiser(model, embed=1e-3, mlp=5e-3)
    assert {group["lr"] for group in optimizer.param_groups} == {1e-3, 5e-3, 1e-2}
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 0.0)
    before = copy.deepcopy(model.state_dict())
    step(model, optimizer, 0)
    scheduler.step()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("stop", [1, 3])
def test_a_stop_does_not_show(stop: int) -> None:
    """Saved and loaded between two steps, the optimiser goes on bit for bit as without."""
    whole, halves = causal_lm().train(), causal_lm().train()
    optimizer = optimiser(whole)
    for seed in range(5):
        step(whole, optimizer, seed)
    first = optimiser(halves)
    for seed in range(stop):
        step(halves, first, seed)
    second = optimiser(halves)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for seed in range(stop, 5):
        step(halves, second, seed)
    for one, other in zip(whole.parameters(), halves.parameters(), strict=True):
        assert torch.equal(one, other)
