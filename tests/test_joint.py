"""Joint products: the same values, and weights that stay whose they are."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from tiny_models import tiny_causal_lm
from torch import nn

from arlow import joint
from arlow.joint import _adjoin, call, linear, project


def layers(bias: bool = False) -> nn.ModuleList:
    torch.manual_seed(0)
    return nn.ModuleList(nn.Linear(16, out, bias=bias) for out in (8, 4, 4))


def weights(modules: nn.ModuleList) -> list[torch.Tensor]:
    return [module.weight for module in modules]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_values_and_parameters_stay(bias, mode):
    """One product gives what several give; parameters are the same objects with the same values, laid together."""
    modules, x = layers(bias), torch.randn(2, 5, 16)
    before = [(parameter, parameter.detach().clone()) for parameter in modules.parameters()]
    expected = [module(x) for module in modules]
    with mode():
        for _ in range(2):
            for actual, wanted in zip(project(x, modules), expected, strict=True):
                torch.testing.assert_close(actual, wanted.detach())
    assert _adjoin(weights(modules))
    for (parameter, value), now in zip(before, modules.parameters(), strict=True):
        assert parameter is now and torch.equal(parameter, value)
    loss = sum(out.square().sum() for out in project(x, modules))  # and they can be trained on
    loss.backward()
    assert all(parameter.grad is not None for parameter in modules.parameters())


@pytest.mark.parametrize(
    "change",
    [
        lambda modules: setattr(modules[1], "weight", modules[2].weight),
        lambda modules: setattr(modules[0], "bias", None),
        lambda modules: (delattr(modules[0], "bias"), setattr(modules[0], "bias", torch.ones(8))),
        lambda modules: setattr(modules[0], "weight", nn.Parameter(modules[0].weight[:6].detach())),
    ],
    ids=["tied", "one without bias", "bias that is no parameter", "fewer rows than out_features"],
)
def test_unusual_layers_give_what_calls_give(change):
    modules, x = layers(bias=True), torch.randn(3, 16)
    change(modules)
    if len(modules[0].weight) == 6:
        modules[0].bias = nn.Parameter(torch.randn(6))
    with torch.no_grad():
        for _ in range(2):
            for actual, module in zip(project(x, modules), modules, strict=True):
                torch.testing.assert_close(actual, module(x))


def test_a_changed_weight_is_seen():
    """In place, replaced or moved: the next product uses the weights as they are."""
    modules, x = layers(), torch.randn(3, 16)
    with torch.no_grad():
        project(x, modules)
        modules[1].weight.mul_(2)
        torch.testing.assert_close(project(x, modules)[1], modules[1](x))
        modules[2].weight = nn.Parameter(torch.randn(4, 16))
        torch.testing.assert_close(project(x, modules)[2], modules[2](x))
        modules.double()
        torch.testing.assert_close(project(x.double(), modules)[0], modules[0](x.double()))
        twin = copy.deepcopy(modules)
        twin[0].weight.zero_()
        assert project(x.double(), twin)[0].abs().max() == 0 and project(x.double(), modules)[0].abs().max() > 0


def test_shared_weights_stay_where_they_are():
    """Weights that another process may train keep their memory."""
    modules = layers().share_memory()
    places = [weight.data_ptr() for weight in weights(modules)]
    with torch.no_grad():
        project(torch.randn(3, 16), modules)
    assert places == [weight.data_ptr() for weight in weights(modules)]
    assert all(weight.is_shared() for weight in weights(modules))


def test_weights_that_adjoin_but_lie_in_columns():
    """Two transposed halves of one memory are no joint weight of rows."""
    memory = torch.randn(2, 6, 6)
    modules = nn.ModuleList(nn.Linear(6, 6, bias=False) for _ in range(2))
    for module, half in zip(modules, memory, strict=True):
        module.weight.data = half.T
    x = torch.randn(3, 6)
    with torch.no_grad():
        for found, module in zip(project(x, modules), modules, strict=True):
            torch.testing.assert_close(found, module(x))


def test_other_layers_are_called():
    """Hooks, replaced forwards, subclasses and mixed types are not passed by."""
    x, seen = torch.randn(3, 16), []
    with torch.no_grad():
        modules = layers()
        modules[0].register_forward_hook(lambda *args: seen.append("hook"))
        project(x, modules)
        modules = layers()
        modules[1].forward = lambda x: seen.append("forward") or x
        assert project(x, modules)[1] is x
        modules = layers()
        modules[1] = nn.Sequential(modules[1])
        project(x, modules)
        modules = layers()
        modules[2].to(torch.bfloat16)
        with pytest.raises(RuntimeError):
            project(x, modules)
    assert seen == ["hook", "forward"]


def test_threads_may_come_at_once():
    """Two threads that both find the weights apart give the right values."""
    for _ in range(20):
        modules, x = layers(), torch.randn(4, 16)
        with torch.no_grad():
            expected = [module(x) for module in modules]
        wrong = []

        def work(modules=modules, x=x, expected=expected, wrong=wrong):
            with torch.no_grad():
                got = project(x, modules)
            wrong.extend(not torch.allclose(a, b, atol=1e-5) for a, b in zip(got, expected, strict=True))

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(wrong) == 12 and not any(wrong)


def test_files_stay(tmp_path):
    """A model that has answered is saved as one that has not: names, shapes, values and size."""
    from safetensors.torch import load_file

    model = tiny_causal_lm()
    model.save_pretrained(tmp_path / "before")
    with torch.no_grad():
        model(input_ids=torch.arange(5)[None])
    assert _adjoin([getattr(model.model.layers[0].self_attn, f"{name}_proj").weight for name in "qkv"])
    model.save_pretrained(tmp_path / "after")
    before, after = (load_file(tmp_path / when / "model.safetensors") for when in ("before", "after"))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    sizes = [(tmp_path / when / "model.safetensors").stat().st_size for when in ("before", "after")]
    assert sizes[0] == sizes[1]


def test_accelerate_saves_all_weights(tmp_path):
    """Accelerate takes tensors of one storage for one tensor: what has answered is saved whole all the same, and
    answers as before."""
    from accelerate.utils import save
    from safetensors.torch import load_file

    model, ids = tiny_causal_lm(), torch.arange(5)[None]
    with torch.no_grad():
        first = model(input_ids=ids).logits
        save(model.state_dict(), tmp_path / "model.safetensors", safe_serialization=True)
        assert torch.equal(model(input_ids=ids).logits, first)
    layers = {name for name in model.state_dict() if ".layers." in name}
    saved = load_file(tmp_path / "model.safetensors")
    assert layers <= saved.keys()
    assert all(torch.equal(saved[name], tensor) for name, tensor in model.state_dict().items() if name in layers)


class _Products(torch.utils._python_dispatch.TorchDispatchMode):
    """Writes down the first sizes of every matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm):
            self.seen.append(tuple(args[-2].shape))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(7,), (8,), (3, 4), (15, 1), (16,), (9, 0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_few_rows_are_turned(monkeypatch, bias, shape, dtype):
    """Of 8 to 15 rows of float32 the weight stands first; values are those of the layer, whatever the layout of x."""
    monkeypatch.setattr(joint, "LARGE", 1)
    modules = layers(bias).to(dtype)
    x = torch.randn(*shape[:-1], 16, shape[-1], dtype=dtype).transpose(-1, -2)  # [..., rows, 16], not contiguous
    count = x.numel() // 16
    exact = copy.deepcopy(modules).double()
    expected = [module(x.double()).detach() for module in exact]
    with torch.no_grad(), _Products() as products:
        found = [*project(x, modules), call(modules[1], x), linear(x, modules[2].weight, modules[2].bias)]
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 5e-2}[dtype]
    for actual, wanted in zip(found, [*expected, *expected[1:]], strict=True):
        torch.testing.assert_close(actual.double(), wanted, atol=tolerance, rtol=tolerance)
        assert actual.dtype == dtype and actual.shape == wanted.shape
    turned = [first for first, _ in products.seen if first != count]
    assert len(turned) == (3 if dtype == torch.float32 and 8 <= count < 16 else 0), products.seen


def test_few_rows_are_called_where_it_matters(monkeypatch):
    """With gradients, with hooks, under autocast and for a small weight the layer itself is called."""
    layer, x = nn.Linear(16, 24), torch.randn(8, 16)

    def turned() -> int:
        with _Products() as products:
            call(layer, x)
        return sum(first == 24 for first, _ in products.seen)

    with torch.no_grad():
        assert not turned()  # small
        monkeypatch.setattr(joint, "LARGE", 1)
        assert turned()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert not turned()
    assert not turned() and call(layer, x).requires_grad
    calls = []
    layer.register_forward_hook(lambda *args: calls.append(args))
    with torch.no_grad():
        assert not turned() and len(calls) == 1
