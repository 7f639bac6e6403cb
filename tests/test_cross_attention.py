"""Cross-attention of the text decoder: nothing until trained, exact when trained, computed once per generation."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from text_samples import SLIDING, causal_lm, cross_config, padded, text_config, token_ids, trained_gates
from transformers import CompileConfig, DynamicCache, StaticCache

from arlow import ArlowForCausalLM, ArlowTextModel
from arlow.text import ArlowCrossAttention, EncoderStates


WIDTH, LENGTH = 24, 6


def states(batch: int = 2, length: int = LENGTH, seed: int = 0) -> torch.Tensor:
    """Encoder states (B, L, 24)."""
    return torch.randn(batch, length, WIDTH, generator=torch.Generator().manual_seed(seed))


def crossed(config: Any = None, **kwargs: Any) -> ArlowForCausalLM:
    """A model whose gates are open."""
    return trained_gates(causal_lm(config or cross_config(), **kwargs))  # type: ignore[return-value]


class Calls:
    """Counts how often the key projections of the cross-attention layers run."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.count = 0
        for module in model.modules():
            if isinstance(module, ArlowCrossAttention):
                module.k_proj.register_forward_hook(self.add)

    def add(self, *_: Any) -> None:
        self.count += 1


# The untrained path


@pytest.mark.parametrize("mask", [None, torch.tensor([[1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]])])
def test_untrained_changes_nothing(mask: torch.Tensor | None) -> None:
    """With its gates at zero, cross-attention changes no bit of the logits, masked or not."""
    model = causal_lm(cross_config())
    plain = causal_lm(text_config())
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if "cross_attn" not in k})
    ids = token_ids(2, 7)
    with torch.no_grad():
        wanted = plain(ids).logits
        assert torch.equal(model(ids).logits, wanted)
        given = model(ids, encoder_hidden_states=states(), encoder_attention_mask=mask).logits
        assert torch.equal(given, wanted)


def test_new_gates_are_zero(tmp_path: Any) -> None:
    """Gates start at zero also where a checkpoint without cross-attention is loaded into a model with it."""
    causal_lm(text_config()).save_pretrained(tmp_path)
    model = ArlowForCausalLM.from_pretrained(tmp_path, config=cross_config())
    assert all(not layer.cross_attn.gate.any() for layer in model.model.layers)
    ids = token_ids(2, 7)
    assert torch.equal(model(ids, encoder_hidden_states=states()).logits, causal_lm(text_config())(ids).logits)


def test_open_gates_change_something() -> None:
    """With open gates the states matter, and which of them are masked."""
    model, ids = crossed(), token_ids(2, 7)
    with torch.no_grad():
        one = model(ids, encoder_hidden_states=states()).logits
        other = model(ids, encoder_hidden_states=states(seed=1)).logits
        none = model(ids).logits
    assert not torch.allclose(one, other, atol=1e-3) and not torch.allclose(one, none, atol=1e-3)


def test_layers_named_in_the_config_only() -> None:
    """`cross_attention_layers` decides which layers have it."""
    model = causal_lm(cross_config(num_hidden_layers=3, cross_attention_layers=[0, 2]))
    assert [layer.cross_attn is not None for layer in model.model.layers] == [True, False, True]
    assert not any("layers.1.cross" in name for name in model.state_dict())


# Against float64


def reference(module: ArlowCrossAttention, hidden: torch.Tensor, encoder: torch.Tensor, mask: Any) -> torch.Tensor:
    """Gated cross-attention in float64, token by token and head by head."""
    q, k, v = (
        projection(x.double())
        for projection, x in zip(
            (copy.deepcopy(p).double() for p in (module.q_proj, module.k_proj, module.v_proj)),
            (hidden, encoder, encoder),
            strict=True,
        )
    )
    size, heads = module.head_dim, q.shape[-1] // module.head_dim
    output = torch.zeros_like(q)
    for b in range(len(q)):
        seen = torch.ones(encoder.shape[1]).bool() if mask is None else mask[b].bool()
        if not seen.any():
            continue
        for h in range(heads):
            kv = slice((h // module.num_key_value_groups) * size, (h // module.num_key_value_groups + 1) * size)
            for s in range(q.shape[1]):
                scores = k[b, :, kv] @ q[b, s, h * size : (h + 1) * size] / math.sqrt(size)
                weights = scores.masked_fill(~seen, -math.inf).softmax(-1)
                output[b, s, h * size : (h + 1) * size] = weights @ v[b, :, kv]
    return module.gate.double().tanh() * (output @ module.o_proj.weight.double().T)


MASKS = {
    "no mask": None,
    "mask": torch.tensor([[1, 1, 1, 0, 0, 0], [0, 1, 0, 1, 1, 1]]),
    "bool mask": torch.tensor([[1, 1, 1, 0, 0, 0], [0, 1, 0, 1, 1, 1]]).bool(),
    "float mask": torch.tensor([[1, 1, 1, 0, 0, 0], [0, 1, 0, 1, 1, 1]]).float(),
    "one row hidden": torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0]]),
}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", MASKS)
def test_equals_float64(name: str, bias: bool) -> None:
    """A trained layer equals gated attention in float64, for every kind of encoder mask, a hidden row included."""
    model = crossed(cross_config(attention_bias=bias))
    module = model.model.layers[0].cross_attn
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.3)
    hidden = torch.randn(2, 5, 32)
    ours = module(hidden, states(), EncoderStates(states(), MASKS[name]), keep=False)
    theirs = reference(module, hidden, states(), MASKS[name])
    torch.testing.assert_close(ours.double(), theirs, atol=1e-5, rtol=1e-4)
    if name == "one row hidden":
        assert not ours[1].any()


def test_it_stands_between_attention_and_mlp() -> None:
    """The layer is: h + self-attention, + cross-attention of the normed result, + MLP of the normed result."""
    model = crossed()
    layer, encoder = model.model.layers[0], EncoderStates(states(), None)
    hidden = torch.randn(2, 5, 32)
    cos_sin = model.model.rotary_emb(hidden, torch.arange(5)[None])
    with torch.no_grad():
        result = layer(hidden, encoder.states, position_embeddings=cos_sin, encoder=encoder)
        h = hidden + layer.self_attn(layer.input_layernorm(hidden), position_embeddings=cos_sin, backend="sdpa")[0]
        h = h + reference(layer.cross_attn, layer.cross_attn_layernorm(h), states(), None).float()
        h = h + layer.mlp(layer.post_attention_layernorm(h))
    torch.testing.assert_close(result, h, atol=1e-5, rtol=1e-4)


def test_masked_states_do_not_matter() -> None:
    """Encoder tokens behind the mask may hold anything; a row padded to another's length gets what it gets alone."""
    model, ids = crossed(), token_ids(2, 7)
    mask = torch.tensor([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1]])
    encoder = states()
    with torch.no_grad():
        one = model(ids, encoder_hidden_states=encoder, encoder_attention_mask=mask).logits
        changed = encoder.clone()
        changed[0, 3:] = 1e4
        assert torch.equal(model(ids, encoder_hidden_states=changed, encoder_attention_mask=mask).logits, one)
        alone = model(ids[:1], encoder_hidden_states=encoder[:1, :3]).logits
    torch.testing.assert_close(one[:1], alone, atol=1e-5, rtol=1e-4)


def test_a_hidden_row_is_a_row_without_states() -> None:
    """A row whose encoder tokens are all masked gets what it gets without cross-attention, with finite gradients."""
    model, ids = crossed(), token_ids(2, 7)
    mask = torch.tensor([[1] * LENGTH, [0] * LENGTH])
    encoder = states().requires_grad_()
    logits = model(ids, encoder_hidden_states=encoder, encoder_attention_mask=mask).logits
    torch.testing.assert_close(logits[1:], model(ids[1:]).logits, atol=1e-5, rtol=1e-4)
    logits.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    assert encoder.grad[0].any() and not encoder.grad[1].any()


def test_states_in_another_dtype() -> None:
    """A bfloat16 model takes float32 states, and the other way round."""
    model, ids = crossed(), token_ids(2, 7)
    assert model(ids, encoder_hidden_states=states().bfloat16()).logits.dtype == torch.float32
    assert model.bfloat16()(ids, encoder_hidden_states=states()).logits.dtype == torch.bfloat16


# Once per generation


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("beams", [1, 3])
def test_keys_are_computed_once_per_generation(cache: str, beams: int) -> None:
    """`generate` runs the key projection once per layer, and its tokens are those of recomputing every step."""
    model, ids = crossed(), token_ids(2, 5)
    inputs = {"encoder_hidden_states": states(), "max_new_tokens": 8, "do_sample": False, "num_beams": beams}
    wanted = model.generate(ids, use_cache=False, **inputs)
    calls = Calls(model)
    found = model.generate(ids, cache_implementation=cache, disable_compile=True, **inputs)
    assert calls.count == 2
    assert torch.equal(found, wanted)
    assert not torch.equal(found, model.generate(ids, max_new_tokens=8, do_sample=False, num_beams=beams))


@pytest.mark.parametrize("beams", [1, 2])
def test_generated_rows_equal_single_rows(beams: int) -> None:
    """Rows with encoder states of different length, masked, get what they get alone, beams included."""
    model = crossed()
    rows, lengths = [token_ids(n, seed=n) for n in (7, 3, 5)], (6, 2, 4)
    ids, mask = padded(rows, "left")
    encoder = states(3)
    encoder_mask = torch.arange(LENGTH)[None] < torch.tensor(lengths)[:, None]
    options = {"max_new_tokens": 8, "do_sample": False, "num_beams": beams}
    together = model.generate(
        ids, attention_mask=mask, encoder_hidden_states=encoder, encoder_attention_mask=encoder_mask, **options
    )
    for number, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        single = encoder[number : number + 1, :length]
        alone = model.generate(row[None], encoder_hidden_states=single, **options)
        assert torch.equal(together[number, ids.shape[1] :], alone[0, len(row) :])


@pytest.mark.parametrize("options", [{"prefill_chunk_size": 2}, {"prompt_lookup_num_tokens": 2}])
def test_other_ways_of_generation(options: dict[str, Any]) -> None:
    """Chunked prefill and prompt lookup find the tokens of plain generation."""
    model, ids = crossed(), token_ids(1, 5)
    inputs = {"encoder_hidden_states": states(1), "max_new_tokens": 8, "do_sample": False}
    assert torch.equal(model.generate(ids, **inputs, **options), model.generate(ids, **inputs))


def fresh_cache(model: ArlowForCausalLM, kind: str) -> Any:
    return DynamicCache(config=model.config) if kind == "dynamic" else StaticCache(model.config, max_cache_len=32)


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("mask", [None, torch.tensor([[1, 1, 1, 0, 0, 0], [1, 0, 1, 1, 1, 1]])])
def test_states_given_at_the_prefill_only(kind: str, mask: torch.Tensor | None) -> None:
    """In a loop written by hand, states and mask of the first call hold for the later ones."""
    model, ids = crossed(), token_ids(2, 9)
    encoder = {"encoder_hidden_states": states(), "encoder_attention_mask": mask}
    cache, calls = fresh_cache(model, kind), Calls(model)
    with torch.no_grad():
        whole = model(ids, use_cache=False, **encoder).logits
        before = calls.count
        parts = [model(ids[:, :4], past_key_values=cache, **encoder).logits]
        parts += [model(ids[:, i : i + 1], past_key_values=cache).logits for i in range(4, 9)]
    assert calls.count - before == 2
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=2e-5, rtol=1e-4)


def test_same_states_given_again_are_not_projected_again() -> None:
    """A loop that passes the same states at every step pays for them once; equal states in a new tensor are right."""
    model, ids, encoder = crossed(), token_ids(2, 9), states()
    cache, calls = DynamicCache(config=model.config), Calls(model)
    with torch.no_grad():
        parts = [
            model(ids[:, i : i + 1], past_key_values=cache, encoder_hidden_states=encoder).logits for i in range(9)
        ]
        assert calls.count == 2
        whole = model(ids, encoder_hidden_states=encoder.clone(), use_cache=False).logits
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=2e-5, rtol=1e-4)


def test_other_states_later_replace_the_first() -> None:
    """States given with a filled cache are those this call and the later ones attend to."""
    model, ids = crossed(), token_ids(1, 6)
    with torch.no_grad():
        cache = model(ids[:, :4], encoder_hidden_states=states(1)).past_key_values
        switched = copy.deepcopy(cache)
        kept = model(ids[:, 4:5], past_key_values=cache).logits
        changed = model(ids[:, 4:5], past_key_values=switched, encoder_hidden_states=states(1, seed=9)).logits
        assert not torch.allclose(kept, changed, atol=1e-3)
        assert switched.encoder_states is not cache.encoder_states
        # The same as a cache whose states were the second ones from the start, as far as this step's queries go.
        again = model(ids[:, 5:6], past_key_values=switched).logits
        given = model(ids[:, 5:6], past_key_values=cache, encoder_hidden_states=states(1, seed=9)).logits
    assert not torch.equal(again, given)  # their histories differ


def test_another_mask_for_the_same_states() -> None:
    """The same states with another mask in a later call: the new mask counts, keys are not computed again."""
    model, ids, encoder = crossed(), token_ids(1, 6), states(1)
    mask = torch.tensor([[1, 1, 0, 0, 0, 0]])
    with torch.no_grad():
        cache = model(ids[:, :4], encoder_hidden_states=encoder).past_key_values
        other = copy.deepcopy(cache)
        other.encoder_states.states = encoder
        calls = Calls(model)
        masked = model(
            ids[:, 4:5], past_key_values=cache, encoder_hidden_states=encoder, encoder_attention_mask=mask
        ).logits
        assert calls.count == 0
        wanted = model(
            ids[:, 4:5], past_key_values=other, encoder_hidden_states=encoder.clone(), encoder_attention_mask=mask
        ).logits
    torch.testing.assert_close(masked, wanted, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_a_cache_that_starts_again(kind: str) -> None:
    """A cache that was reset remembers no encoder states: the next generation uses its own, or none."""
    model, ids = crossed(), token_ids(2, 5)
    cache = fresh_cache(model, kind)
    with torch.no_grad():
        for inputs in (
            {"encoder_hidden_states": states()},
            {},
            {"encoder_hidden_states": states(seed=3)},
            {
                "encoder_hidden_states": states(seed=3),
                "encoder_attention_mask": torch.tensor([[1, 1, 0, 0, 0, 0]] * 2),
            },
        ):
            cache.reset()
            found = model(ids, past_key_values=cache, **inputs).logits
            torch.testing.assert_close(found, model(ids, use_cache=False, **inputs).logits, atol=1e-5, rtol=1e-4)
            step = model(ids[:, :1], past_key_values=cache).logits
            both = torch.cat((ids, ids[:, :1]), dim=1)
            wanted = model(both, use_cache=False, **inputs).logits[:, -1:]
            torch.testing.assert_close(step, wanted, atol=1e-5, rtol=1e-4)


def test_another_generation_with_other_states() -> None:
    """Generations with different states, one after the other on one model, each get their own."""
    model, ids = crossed(), token_ids(2, 5)
    options = {"max_new_tokens": 6, "do_sample": False}
    first = model.generate(ids, encoder_hidden_states=states(), **options)
    second = model.generate(ids, encoder_hidden_states=states(seed=5), **options)
    none = model.generate(ids, **options)
    assert not torch.equal(first, second) and not torch.equal(first, none)
    assert torch.equal(first, model.generate(ids, encoder_hidden_states=states(), **options))
    assert torch.equal(second, model.generate(ids, encoder_hidden_states=states(seed=5), **options))
    plain = causal_lm(text_config())
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if "cross_attn" not in k})
    assert torch.equal(none, plain.generate(ids, **options))


def test_a_returned_cache_continues() -> None:
    """A second turn over the returned cache, with the states passed again or not, equals one long prompt."""
    model, encoder = crossed(), states(1)
    options = {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True}
    turn = token_ids(1, 3, seed=8)
    first = model.generate(token_ids(1, 5), encoder_hidden_states=encoder, **options)
    prompt = torch.cat((first.sequences, turn), dim=1)
    wanted = model.generate(prompt, encoder_hidden_states=encoder, **options).sequences
    for inputs in ({}, {"encoder_hidden_states": encoder}, {"encoder_hidden_states": encoder.clone()}):
        cache = copy.deepcopy(first.past_key_values)
        found = model.generate(prompt, past_key_values=cache, **inputs, **options).sequences
        assert torch.equal(found, wanted)


def test_nothing_stays_on_the_model() -> None:
    """After a generation the model's attributes and buffers are what they were."""
    model = crossed()
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    model.generate(token_ids(2, 5), encoder_hidden_states=states(), max_new_tokens=3, do_sample=False)
    assert {name: set(vars(module)) for name, module in model.named_modules()} == before


# Cost without states


def test_layers_cost_nothing_without_states() -> None:
    """Without states no part of a cross-attention layer runs, norm included, in a forward or a generation."""
    model = crossed()
    ran: list[str] = []
    for name, module in model.named_modules():
        if "cross_attn" in name:
            module.register_forward_hook(lambda *_, name=name: ran.append(name))
    model(token_ids(2, 5))
    model.generate(token_ids(2, 5), max_new_tokens=3, do_sample=False)
    assert ran == []


# Training


def test_freeze_and_unfreeze() -> None:
    """Freezing takes every parameter of cross-attention, its norm included, out of training, and nothing else."""
    for model in (crossed(), crossed().model):
        cross = {name for name, _ in model.named_parameters() if "cross_attn" in name}
        assert any("cross_attn_layernorm" in name for name in cross)
        model.freeze_cross_attention()
        assert {name for name, p in model.named_parameters() if not p.requires_grad} == cross
        model.unfreeze_cross_attention()
        assert all(p.requires_grad for p in model.parameters())
    causal_lm().freeze_cross_attention()  # a model without it: nothing to do


def test_gradients_flow() -> None:
    """Training moves the gate away from zero first; with open gates all projections and the states get gradients."""
    model, ids = causal_lm(cross_config()).train(), token_ids(2, 7)
    model(ids, labels=ids, encoder_hidden_states=states()).loss.backward()
    for layer in model.model.layers:
        assert layer.cross_attn.gate.grad.abs().item() > 0
        assert not layer.cross_attn.k_proj.weight.grad.any()
    model = crossed().train()
    encoder = states().requires_grad_()
    model(ids, labels=ids, encoder_hidden_states=encoder).loss.backward()
    assert all(parameter.grad.any() for name, parameter in model.named_parameters() if "cross_attn" in name)
    assert encoder.grad.any()


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_gives_the_same_gradients(reentrant: bool) -> None:
    """Gradient checkpointing changes neither loss nor gradients, with the states' own gradient where it can flow."""
    ids, results = token_ids(2, 7), []
    for checkpointing in (False, True):
        model, encoder = crossed().train(), states().requires_grad_()
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": reentrant})
        loss = model(ids, labels=ids, encoder_hidden_states=encoder * 1.0 if not reentrant else encoder).loss
        loss.backward()
        results.append([loss.detach(), encoder.grad, *(p.grad for p in model.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_training_lets_a_model_read_the_states() -> None:
    """A few steps of training teach a model to copy a token that only the encoder states tell."""
    torch.manual_seed(0)
    model = causal_lm(cross_config(initializer_range=0.05)).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    table = torch.randn(8, 1, WIDTH)
    start = torch.full((8, 1), 9)
    ids = torch.cat((start, torch.arange(20, 28)[:, None]), dim=1)
    for _ in range(60):
        loss = model(ids, labels=ids, encoder_hidden_states=table).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    assert loss.item() < 0.2
    answer = model.eval().generate(start, encoder_hidden_states=table, max_new_tokens=1, do_sample=False)
    assert torch.equal(answer, ids)


def test_save_and_load(tmp_path: Any) -> None:
    """Gates and projections survive a checkpoint, also as the bare decoder."""
    model, ids = crossed(), token_ids(2, 7)
    model.save_pretrained(tmp_path)
    again, report = ArlowForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    wanted = model(ids, encoder_hidden_states=states())
    assert torch.equal(again(ids, encoder_hidden_states=states()).logits, wanted.logits)
    assert (
        ArlowTextModel.from_pretrained(tmp_path)(ids, encoder_hidden_states=states())
        .last_hidden_state.isfinite()
        .all()
    )


def test_quantised_projections() -> None:
    """With int8 linear layers a forward with cross-attention stays close to float32."""
    quanto = pytest.importorskip("optimum.quanto")
    model, ids = crossed(cross_config(initializer_range=0.05)), token_ids(2, 7)
    with torch.no_grad():
        wanted = model(ids, encoder_hidden_states=states()).logits
        quanto.quantize(model, weights=quanto.qint8)
        quanto.freeze(model)
        found = model(ids, encoder_hidden_states=states()).logits
        without = model(ids).logits
    assert type(model.model.layers[0].cross_attn.k_proj).__name__ == "QLinear"
    assert (found - wanted).norm() < 0.05 * wanted.norm()
    assert (found - wanted).norm() < (found - without).norm()


# Compiled


@pytest.mark.parametrize("kinds", [None, [SLIDING] * 2])
def test_compiled_decode_without_graph_breaks(kinds: list[str] | None) -> None:
    """The decode step with cross-attention and a static cache compiles as one graph; same tokens."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = crossed(cross_config(layer_types=kinds, sliding_window=5))
    ids, mask = padded([token_ids(n, seed=n) for n in (7, 3)], "left")
    inputs = {
        "attention_mask": mask, "encoder_hidden_states": states(),
        "encoder_attention_mask": torch.tensor([[1] * 6, [1, 1, 1, 0, 0, 0]]), "max_new_tokens": 6, "do_sample": False,
    }  # fmt: skip
    config = CompileConfig(backend="eager", fullgraph=True, mode="default")
    config._compile_all_devices = True
    compiled = model.generate(ids, cache_implementation="static", compile_config=config, **inputs)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
    assert not torch._dynamo.utils.counters["graph_break"]
    assert torch.equal(compiled, model.generate(ids, **inputs))
    torch._dynamo.reset()


def test_compiled_loop_by_hand() -> None:
    """A compiled step written by hand, states given at the prefill only, gives the logits of plain Python."""
    torch._dynamo.reset()
    model, ids = crossed(), token_ids(2, 8)
    step = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        whole = model(ids, encoder_hidden_states=states(), use_cache=False).logits
        cache = StaticCache(model.config, max_cache_len=16)
        model(ids[:, :4], encoder_hidden_states=states(), past_key_values=cache)
        for i in range(4, 8):
            position = torch.full((1, 1), i)
            logits = step(ids[:, i : i + 1], position_ids=position, past_key_values=cache).logits
            torch.testing.assert_close(logits[:, 0], whole[:, i], atol=2e-5, rtol=1e-4)
    torch._dynamo.reset()


# Refusals


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"encoder_hidden_states": torch.zeros(1, 6, WIDTH)}, "encoder_hidden_states"),
        ({"encoder_hidden_states": torch.zeros(2, 6, WIDTH + 1)}, "encoder_hidden_size=24"),
        ({"encoder_hidden_states": torch.zeros(2, WIDTH)}, "encoder_hidden_states"),
        ({"encoder_hidden_states": torch.zeros(2, 0, WIDTH)}, "encoder_hidden_states"),
        ({"encoder_hidden_states": states(), "encoder_attention_mask": torch.ones(2, 5)}, "encoder_attention_mask"),
        ({"encoder_hidden_states": states(), "encoder_attention_mask": torch.ones(1, 6)}, "encoder_attention_mask"),
        ({"encoder_hidden_states": states(), "encoder_attention_mask": torch.ones(2, 1, 6)}, "(2, 6)"),
        ({"encoder_attention_mask": torch.ones(2, 6)}, "encoder_attention_mask"),
    ],
)
def test_wrong_shapes(given: dict[str, Any], says: str) -> None:
    """Encoder states and masks of the wrong shape are ValueErrors that name the argument and the wanted shape."""
    with pytest.raises(ValueError) as caught:
        crossed()(token_ids(2, 5), **given)
    assert says in str(caught.value) and len(str(caught.value)) <= 300


def test_wrong_batch_for_a_cache() -> None:
    """Another batch size than that of the states on the cache is a ValueError."""
    model = crossed()
    cache = model(token_ids(2, 5), encoder_hidden_states=states()).past_key_values
    cache.batch_select_indices(torch.tensor([0]))
    with pytest.raises(ValueError, match="encoder_hidden_states"):
        model(token_ids(1, 1), past_key_values=cache)


def test_states_for_a_model_without_cross_attention() -> None:
    """States given to a model that cannot use them are an error, not silence."""
    with pytest.raises(ValueError, match="no cross-attention"):
        causal_lm()(token_ids(2, 5), encoder_hidden_states=torch.zeros(2, 6, 32))
    with pytest.raises(ValueError, match="no cross-attention"):
        causal_lm().generate(token_ids(2, 5), max_new_tokens=2, encoder_hidden_states=torch.zeros(2, 6, 32))


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_reaches_a_trained_encoder(reentrant: bool) -> None:
    """States that are themselves computed get the same gradients with both kinds of checkpointing as without."""
    grads = []
    for checkpointing in (False, True):
        model, ids = crossed().train(), token_ids(2, 7)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        torch.manual_seed(0)
        encoder = torch.nn.Linear(states().shape[-1], states().shape[-1])
        model(input_ids=ids, labels=ids, encoder_hidden_states=encoder(states()).tanh()).loss.backward()
        grads.append(encoder.weight.grad)
    torch.testing.assert_close(grads[0], grads[1])
