"""The text decoder against Transformers' LLaMA and Mistral, and against itself: padding, caches, errors."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from text_samples import (
    FULL,
    SLIDING,
    VOCAB,
    WINDOW,
    causal_lm,
    close,
    mixed_windows,
    packed,
    padded,
    text_config,
    token_ids,
)
from transformers import (
    AutoModelForCausalLM,
    CompileConfig,
    ContinuousBatchingConfig,
    DynamicCache,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    QuantizedCache,
    StaticCache,
)

from arlow import ArlowForCausalLM, ArlowRMSNorm, ArlowTextConfig, ArlowTextModel


BACKENDS = ("eager", "sdpa")
LENGTHS = (9, 4, 7)
CONFIGS = {"full": text_config, "windows": mixed_windows}


# Independent references

SHARED = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings",
)  # fmt: skip


def reference(kind: type, config_kind: type, model: ArlowForCausalLM, **extra: Any) -> Any:
    """A model of Transformers with the same sizes and weights."""
    config = model.config
    fields = {name: getattr(config, name) for name in SHARED}
    other = kind(config_kind(**fields, rope_parameters=copy.deepcopy(config.rope_parameters), **extra)).eval()
    other.load_state_dict(model.state_dict())
    other.set_attn_implementation(config._attn_implementation)
    return other


LLAMAS: dict[str, dict[str, Any]] = {
    "plain": {},
    "one key head": {"num_key_value_heads": 1},
    "as many key heads": {"num_key_value_heads": 4},
    "wide heads": {"head_dim": 24},
    "tied": {"tie_word_embeddings": True},
    "theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    "linear rope": {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
    "llama3 rope": {
        "rope_parameters": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32, "rope_theta": 1e4,
        }
    },
    "gelu": {"hidden_act": "gelu"},
}  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", LLAMAS)
def test_equals_llama(name: str, backend: str) -> None:
    """Same weights, same logits, loss and gradients as `LlamaForCausalLM`, in float32 to 1e-5."""
    model = causal_lm(text_config(**LLAMAS[name]), backend=backend)
    llama = reference(LlamaForCausalLM, LlamaConfig, model)
    ids = token_ids(2, 11)
    ours, theirs = model(ids, labels=ids), llama(ids, labels=ids)
    close(ours.logits, theirs.logits)
    close(ours.loss, theirs.loss)
    ours.loss.backward()
    theirs.loss.backward()
    wanted = dict(llama.named_parameters())
    for parameter_name, parameter in model.named_parameters():
        close(parameter.grad, wanted[parameter_name].grad)


def test_equals_llama_with_attention_bias() -> None:
    """`attention_bias` adds a bias to q, k and v; LLaMA's extra output bias of zero makes no difference."""
    model = causal_lm(text_config(attention_bias=True))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    state = dict(model.state_dict())
    for layer in range(2):
        state[f"model.layers.{layer}.self_attn.o_proj.bias"] = torch.zeros(32)
    fields = {name: getattr(model.config, name) for name in SHARED}
    rope = copy.deepcopy(model.config.rope_parameters)
    llama = LlamaForCausalLM(LlamaConfig(**fields, attention_bias=True, rope_parameters=rope)).eval()
    llama.load_state_dict(state)
    close(model(token_ids(2, 11)).logits, llama(token_ids(2, 11)).logits)


@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_mistral_with_windows(backend: str) -> None:
    """With every layer sliding, the logits are `MistralForCausalLM`'s, in one forward and token by token."""
    model = causal_lm(text_config(layer_types=[SLIDING] * 2, sliding_window=WINDOW), backend=backend)
    mistral = reference(MistralForCausalLM, MistralConfig, model, sliding_window=WINDOW)
    ids = token_ids(2, 4 * WINDOW)
    with torch.no_grad():
        whole = model(ids).logits
        close(whole, mistral(ids).logits)
        caches = [None, None]
        for position in range(ids.shape[1]):
            step = ids[:, position : position + 1]
            outputs = [
                m(step, past_key_values=c, use_cache=True) for m, c in zip((model, mistral), caches, strict=True)
            ]
            caches = [output.past_key_values for output in outputs]
            close(outputs[0].logits, outputs[1].logits)
            close(outputs[0].logits[:, 0], whole[:, position], 2e-5)
    assert caches[0].layers[0].keys.shape[2] == WINDOW - 1


def test_windows_limit_what_is_seen() -> None:
    """A token WINDOW places back changes nothing in a one-layer sliding model; one place nearer it does."""
    model = causal_lm(text_config(num_hidden_layers=1, layer_types=[SLIDING], sliding_window=WINDOW))
    ids = token_ids(1, 3 * WINDOW)
    far, near = ids.clone(), ids.clone()
    far[0, -1 - WINDOW] += 1
    near[0, -WINDOW] += 1
    with torch.no_grad():
        last = model(ids).logits[0, -1]
        assert torch.equal(model(far % VOCAB).logits[0, -1], last)
        assert not torch.equal(model(near % VOCAB).logits[0, -1], last)


@settings(max_examples=20, deadline=None)
@given(width=st.integers(1, 40), scale=st.floats(1e-3, 1e3), eps=st.sampled_from([1e-6, 1e-5, 1e-2]))
def test_rms_norm_equals_float64(width: int, scale: float, eps: float) -> None:
    """RMSNorm equals its formula in float64, for any width and size of values."""
    norm = ArlowRMSNorm(width, eps=eps)
    with torch.no_grad():
        norm.weight.normal_()
    x = torch.randn(3, width) * scale
    exact = x.double() / (x.double().pow(2).mean(-1, keepdim=True) + eps).sqrt() * norm.weight.double()
    torch.testing.assert_close(norm(x).double(), exact, atol=1e-5, rtol=1e-5)


def test_rms_norm_statistics_are_float32() -> None:
    """Half-precision values whose squares overflow are normed without infinities; the dtype stays."""
    x = torch.full((1, 8), 1000.0, dtype=torch.float16)  # its square is beyond float16
    out = ArlowRMSNorm(8).half()(x)
    assert out.dtype == torch.float16 and torch.equal(out, torch.ones_like(x))


# A batch gives each row what it gets alone


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("rope", ["default", "dynamic", "longrope"])
def test_padding_changes_nothing(kind: str, backend: str, rope: str) -> None:
    """Left padding, right padding and no padding give the same logits at real tokens, without position ids given."""
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "original_max_position_embeddings": 6}
    ropes = {"default": None, "dynamic": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}
    ropes["longrope"] = {"rope_type": "longrope", "rope_theta": 1e4, **factors}
    config = CONFIGS[kind](rope_parameters=ropes[rope], max_position_embeddings=6)
    model = causal_lm(config, backend=backend)
    rows = [token_ids(length, seed=length) for length in LENGTHS]
    with torch.no_grad():
        alone = [model(row[None]).logits[0] for row in rows]
        for side in ("left", "right"):
            ids, mask = padded(rows, side)
            logits = model(ids, attention_mask=mask).logits
            assert logits.isfinite().all()
            for number, row in enumerate(alone):
                close(logits[number][mask[number].bool()], row, 2e-5)


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_row_of_padding_only_is_harmless(kind: str) -> None:
    """A batch with an entirely masked row: the other rows are right, nothing is NaN, nor any gradient."""
    for backend in BACKENDS:
        model = causal_lm(CONFIGS[kind](), backend=backend)
        ids = token_ids(2, 6)
        mask = torch.ones_like(ids)
        mask[1] = 0
        logits = model(ids, attention_mask=mask).logits
        close(logits[0], model(ids[:1]).logits[0], 2e-5)
        assert logits.isfinite().all()
        logits.sum().backward()
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"cache_implementation": "static"}, {"use_cache": False}])
def test_generated_rows_equal_single_rows(kind: str, options: dict[str, Any]) -> None:
    """`generate` over a left-padded batch gives each row what it gets alone, token for token."""
    model = causal_lm(CONFIGS[kind]())
    rows = [token_ids(length, seed=length) for length in LENGTHS]
    ids, mask = padded(rows, "left")
    settings_ = {"max_new_tokens": 8, "do_sample": False, "disable_compile": True, **options}
    together = model.generate(ids, attention_mask=mask, **settings_)
    for number, row in enumerate(rows):
        alone = model.generate(row[None], **settings_)
        assert torch.equal(together[number, ids.shape[1] :], alone[0, len(row) :])


def test_continuous_batching_equals_generate() -> None:
    """`generate_batch` gives what `generate` gives for each prompt."""
    model = causal_lm()
    rows = [token_ids(length, seed=length).tolist() for length in (5, 3)]
    generation = GenerationConfig(max_new_tokens=5, do_sample=False, eos_token_id=-1, pad_token_id=0)
    batching = ContinuousBatchingConfig(page_size=32, num_blocks=16, max_batch_tokens=64)
    results = model.generate_batch(
        inputs=rows, generation_config=generation, continuous_batching_config=batching, progress_bar=False
    )
    for row, result in zip(rows, results.values(), strict=True):
        alone = model.generate(torch.tensor([row]), max_new_tokens=5, do_sample=False)[0, len(row) :]
        assert result.generated_tokens == alone.tolist()


@pytest.mark.parametrize("cache", ["dynamic", "sliding", "static"])
def test_a_cache_gives_what_one_forward_gives(cache: str) -> None:
    """Prefill and steps through each kind of cache give the logits of one forward over everything."""
    model = causal_lm(text_config() if cache == "dynamic" else mixed_windows())
    ids = token_ids(2, 4 * WINDOW)
    if cache == "static":
        past: Any = StaticCache(config=model.config, max_cache_len=4 * WINDOW + 3)
    else:
        past = DynamicCache(config=model.config)
    with torch.no_grad():
        whole = model(ids).logits
        start = 0
        for end in (7, 8, 9, 15, 20):
            logits = model(ids[:, start:end], past_key_values=past).logits
            close(logits, whole[:, start:end], 2e-5)
            start = end


@pytest.mark.slow  # the first use of the quantising library compiles its kernels
def test_quantized_cache_equals_llamas() -> None:
    """With a 4-bit cache, logits are those of LLaMA with the same cache."""
    pytest.importorskip("optimum.quanto")
    model = causal_lm(text_config(hidden_size=64, head_dim=64))
    llama = reference(LlamaForCausalLM, LlamaConfig, model)
    caches = [QuantizedCache(backend="quanto", config=m.config, nbits=4, residual_length=4) for m in (model, llama)]
    ids = token_ids(2, 12)
    with torch.no_grad():
        for start, end in ((0, 6), (6, 7), (7, 8), (8, 12)):
            ours, theirs = (
                m(ids[:, start:end], past_key_values=c).logits for m, c in zip((model, llama), caches, strict=True)
            )
            close(ours, theirs)


# Recording and slicing


@pytest.mark.parametrize("backend", BACKENDS)
def test_hidden_states_are_recorded(backend: str) -> None:
    """`output_hidden_states` gives the embeddings and every layer, the last one normed, as LLaMA does."""
    model = causal_lm(backend=backend)
    llama = reference(LlamaForCausalLM, LlamaConfig, model)
    ids = token_ids(2, 6)
    ours, theirs = (m(ids, output_hidden_states=True).hidden_states for m in (model, llama))
    assert len(ours) == 3
    for one, other in zip(ours, theirs, strict=True):
        close(one, other)
    assert model(ids).hidden_states is None
    assert model(ids, output_hidden_states=True, return_dict=False)[-1][0].shape == (2, 6, 32)


def test_attentions_are_recorded() -> None:
    """`output_attentions` under eager gives LLaMA's weights, rows sum to one, nothing looks ahead."""
    model = causal_lm(mixed_windows(), backend="eager")
    llama = reference(LlamaForCausalLM, LlamaConfig, causal_lm(backend="eager"))
    ids = token_ids(2, 9)
    for one, other in zip(
        causal_lm(backend="eager")(ids, output_attentions=True).attentions,
        llama(ids, output_attentions=True).attentions,
        strict=True,
    ):
        close(one, other)
    sliding, full = model(ids, output_attentions=True).attentions
    assert sliding.shape == full.shape == (2, 4, 9, 9)
    distance = torch.arange(9)[:, None] - torch.arange(9)
    assert torch.equal(full[0, 0] > 0, distance >= 0)
    assert torch.equal(sliding[0, 0] > 0, (distance >= 0) & (distance < WINDOW))
    close(full.sum(-1), torch.ones(2, 4, 9))


@pytest.mark.parametrize(
    ("keep", "positions"),
    [
        (0, list(range(8))), (1, [7]), (3, [5, 6, 7]), (torch.tensor([0, 4, 7]), [0, 4, 7]),
    ],
)  # fmt: skip
def test_logits_to_keep(keep: Any, positions: list[int]) -> None:
    """The last n positions, or the named ones, get the logits they get among all."""
    model = causal_lm()
    ids = token_ids(2, 8)
    close(model(ids, logits_to_keep=keep).logits, model(ids).logits[:, positions])


def test_logits_to_keep_per_row() -> None:
    """Two-dimensional `logits_to_keep`, indices or a mask, picks positions row by row."""
    model = causal_lm()
    ids = token_ids(2, 8)
    whole = model(ids).logits
    index = torch.tensor([[0, 7], [3, 4]])
    wanted = torch.stack((whole[0, [0, 7]], whole[1, [3, 4]]))
    close(model(ids, logits_to_keep=index).logits, wanted)
    mask = torch.zeros(2, 8, dtype=torch.bool).scatter(1, index, True)
    close(model(ids, logits_to_keep=mask).logits.reshape(2, 2, -1), wanted)


# Inputs in other forms


def test_embeddings_instead_of_ids() -> None:
    """`inputs_embeds` of the ids give the ids' logits, in a forward and in `generate`."""
    model = causal_lm()
    ids = token_ids(2, 6)
    embeds = model.get_input_embeddings()(ids)
    assert torch.equal(model(inputs_embeds=embeds).logits, model(ids).logits)
    generated = model.generate(inputs_embeds=embeds, max_new_tokens=5, do_sample=False)
    assert torch.equal(generated, model.generate(ids, max_new_tokens=5, do_sample=False)[:, 6:])


@pytest.mark.parametrize("backend", BACKENDS)
def test_ready_masks(backend: str) -> None:
    """A four-dimensional mask, or a dict of them by layer type, is used as it is."""
    model = causal_lm(mixed_windows(), backend=backend)
    ids = token_ids(1, 9)
    distance = torch.arange(9)[:, None] - torch.arange(9)
    visible = {FULL: distance >= 0, SLIDING: (distance >= 0) & (distance < WINDOW)}
    low = torch.finfo(torch.float32).min
    masks = {kind: torch.where(see, 0.0, low)[None, None] for kind, see in visible.items()}
    close(model(ids, attention_mask=masks).logits, model(ids).logits)
    full = causal_lm(backend=backend)
    close(full(ids, attention_mask=masks[FULL]).logits, full(ids).logits)


def test_shifted_positions() -> None:
    """Positions that all move by the same amount change nothing: rotary embedding knows distances only."""
    model = causal_lm()
    ids = token_ids(1, 9)
    close(model(ids, position_ids=torch.arange(20, 29)[None]).logits, model(ids).logits, 1e-4)


# Model plumbing


@pytest.mark.parametrize("tied", [False, True])
def test_save_and_load(tied: bool, tmp_path: Any) -> None:
    """What is saved loads with the same logits, nothing missing, nothing left over; twice the same files."""
    model = causal_lm(mixed_windows(tie_word_embeddings=tied))
    model.save_pretrained(tmp_path / "one")
    again, report = ArlowForCausalLM.from_pretrained(tmp_path / "one", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    assert (again.lm_head.weight is again.model.embed_tokens.weight) == tied
    assert torch.equal(again(token_ids(1, 9)).logits, model(token_ids(1, 9)).logits)
    again.save_pretrained(tmp_path / "two")
    names = ["model.safetensors", "config.json"]
    assert all((tmp_path / "one" / n).read_bytes() == (tmp_path / "two" / n).read_bytes() for n in names)
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path / "one")) is ArlowForCausalLM
    base = ArlowTextModel.from_pretrained(tmp_path / "one")
    assert torch.equal(base(token_ids(1, 9)).last_hidden_state, model.model(token_ids(1, 9)).last_hidden_state)


@pytest.mark.parametrize("tied", [False, True])
def test_resize_token_embeddings(tied: bool) -> None:
    """New tokens get rows in embedding and head, old ones keep theirs, and generation can use them."""
    model = causal_lm(text_config(tie_word_embeddings=tied))
    before = model(token_ids(1, 6)).logits
    model.resize_token_embeddings(VOCAB + 3)
    after = model(token_ids(1, 6)).logits
    assert after.shape[-1] == model.config.vocab_size == VOCAB + 3
    close(after[..., :VOCAB], before)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    assert model(torch.full((1, 2), VOCAB + 2)).logits.isfinite().all()
    with pytest.raises(ValueError, match="outside the vocabulary"):
        model(torch.full((1, 2), VOCAB + 3))


def test_padding_embedding_is_zero() -> None:
    """`pad_token_id` marks the row of the embedding that is zero and gets no gradient."""
    model = causal_lm(text_config(pad_token_id=3))
    assert not model.model.embed_tokens.weight[3].any()
    ids = torch.tensor([[3, 4, 5]])
    model(ids, labels=ids).loss.backward()
    assert not model.model.embed_tokens.weight.grad[3].any() and model.model.embed_tokens.weight.grad[4].any()


def test_initial_weights() -> None:
    """New weights have the config's deviation, norms are one, biases zero."""
    torch.manual_seed(0)
    model = ArlowForCausalLM(text_config(hidden_size=128, initializer_range=0.05, attention_bias=True))
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert torch.equal(parameter, torch.ones_like(parameter))
        elif name.endswith("bias"):
            assert not parameter.any()
        else:
            assert abs(parameter.std().item() - 0.05) < 0.005, name


def compiled_generation(model: ArlowForCausalLM, ids: torch.Tensor, **inputs: Any) -> torch.Tensor:
    config = CompileConfig(backend="eager", fullgraph=True, mode="default")
    config._compile_all_devices = True
    return model.generate(
        ids, max_new_tokens=6, do_sample=False, cache_implementation="static", compile_config=config, **inputs
    )


@pytest.mark.parametrize("kind", CONFIGS)
def test_compiled_decode_without_graph_breaks(kind: str) -> None:
    """The decode step with a static cache compiles as one graph, and generates what plain Python does."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = causal_lm(CONFIGS[kind]())
    ids, mask = padded([token_ids(length, seed=length) for length in LENGTHS], "left")
    compiled = compiled_generation(model, ids, attention_mask=mask)
    plain = model.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False)
    assert torch.equal(compiled, plain)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
    assert not torch._dynamo.utils.counters["graph_break"]
    torch._dynamo.reset()


def test_compiled_forward_without_graph_breaks() -> None:
    """A whole forward compiles as one graph: with positions, with a padding mask, and packed."""
    torch._dynamo.reset()
    model = causal_lm(mixed_windows())
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    ids, mask = padded([token_ids(length, seed=length) for length in LENGTHS], "left")
    flat, positions = packed([token_ids(length, seed=length) for length in LENGTHS])
    with torch.no_grad():
        for inputs in (
            {"input_ids": ids, "use_cache": False},
            {"input_ids": ids, "attention_mask": mask, "use_cache": False},
            {"input_ids": flat, "position_ids": positions, "use_cache": False},
        ):
            ours, plain = compiled(**inputs).logits, model(**inputs).logits
            real = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).bool()
            close(ours[real], plain[real], 2e-5)
    torch._dynamo.reset()


# What a forward refuses


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ({}, "neither"),
        ({"input_ids": torch.ones(1, 3).long(), "inputs_embeds": torch.zeros(1, 3, 32)}, "both"),
        ({"input_ids": torch.ones(3).long()}, "input_ids"),
        ({"input_ids": torch.ones(1, 3)}, "input_ids"),
        ({"input_ids": torch.tensor([[1, 2], [3, VOCAB]])}, f"input_ids[1, 1]={VOCAB}"),
        ({"input_ids": torch.tensor([[-1, 2]])}, "input_ids[0, 0]=-1"),
        ({"inputs_embeds": torch.zeros(1, 3, 31)}, "inputs_embeds"),
        ({"inputs_embeds": torch.zeros(3, 32)}, "inputs_embeds"),
        ({"input_ids": torch.ones(1, 3).long(), "position_ids": torch.arange(4)[None]}, "position_ids"),
        ({"input_ids": torch.ones(1, 3).long(), "position_ids": torch.arange(3)}, "position_ids"),
        ({"input_ids": torch.ones(1, 3).long(), "position_ids": torch.zeros(2, 1, 3).long()}, "position_ids"),
        ({"input_ids": torch.ones(2, 3).long(), "position_ids": torch.zeros(3, 3).long()}, "position_ids"),
        ({"input_ids": torch.ones(1, 3).long(), "attention_mask": torch.ones(1, 2)}, "attention_mask"),
        ({"input_ids": torch.ones(2, 3).long(), "attention_mask": torch.ones(1, 3)}, "attention_mask"),
        ({"input_ids": torch.ones(1, 3).long(), "attention_mask": torch.ones(1, 3, 3)}, "attention_mask"),
        ({"input_ids": torch.ones(1, 3).long(), "encoder_hidden_states": torch.ones(1, 3, 32)}, "encoder_hidden"),
        ({"input_ids": torch.ones(1, 3).long(), "labels": torch.ones(1, 2).long()}, "labels"),
        ({"input_ids": torch.ones(1, 3).long(), "labels": torch.tensor([[1, 2, VOCAB]])}, "labels"),
        (
            {"input_ids": torch.ones(1, 3).long(), "labels": torch.ones(1, 3).long(), "logits_to_keep": 1},
            "labels",
        ),
    ],
)
def test_wrong_inputs_are_value_errors(inputs: dict[str, Any], says: str) -> None:
    """Each wrong input of a forward is a ValueError that names the argument."""
    with pytest.raises(ValueError) as caught:
        causal_lm()(**inputs)
    assert says in str(caught.value) and len(str(caught.value)) <= 300


@pytest.mark.parametrize("length", [2, 5, 12])
def test_a_mask_of_another_length_than_the_conversation_is_refused(length: int) -> None:
    """With six tokens in the cache and two new ones, a mask covers eight."""
    model = ArlowTextModel(ArlowTextConfig.tiny()).eval()
    cache = model(torch.full((1, 6), 20)).past_key_values
    with pytest.raises(ValueError, match=r"attention_mask.*\(1, 8\)"):
        model(torch.full((1, 2), 20), attention_mask=torch.ones(1, length), past_key_values=cache)
