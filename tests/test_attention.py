"""Attention dispatch: the choice as a table, the fall-back as users meet it, and the whole varlen path against eager
with a plain kernel in place of flash attention (the real kernels need a GPU: marker `gpu`)."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from text_samples import WINDOW, causal_lm, cross_config, mixed_windows, packed, padded, text_config, token_ids
from torch import nn
from transformers import DynamicCache, StaticCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import logging as library_logging

from arlow import ArlowConfig, ArlowForCausalLM, ArlowForConditionalGeneration, attention
from arlow.attention import (
    FLASH,
    Choice,
    attention_function,
    choose_backend,
    eager_attention,
    plan_from_mask,
    uniform_plan,
    varlen_attention,
)


NATIVE, PACKAGE = "torch_varlen", "flash_attn"
LENGTHS = (9, 4, 7)


# The choice


GOOD = {"dtype": torch.bfloat16, "device_type": "cuda", "head_dim": 64, "kernels": (PACKAGE, NATIVE)}
CHOICES: list[tuple[str | None, dict[str, Any], str, str]] = [
    (None, {}, "sdpa", ""),
    ("eager", {}, "eager", ""),
    ("sdpa", {}, "sdpa", ""),
    ("flex_attention", {}, "flex_attention", ""),
    ("paged|sdpa", {}, "paged|sdpa", ""),
    ("eager", {"device_type": "cpu", "dtype": torch.float32, "dense": "x", "kernels": ()}, "eager", ""),
    (FLASH, {}, PACKAGE, ""),
    (FLASH, {"dtype": torch.float16}, PACKAGE, ""),
    (FLASH, {"kernels": (NATIVE,)}, NATIVE, ""),
    (FLASH, {"dropout": True}, PACKAGE, ""),
    (FLASH, {"head_dim": 256}, PACKAGE, ""),
    (FLASH, {"head_dim": 8}, PACKAGE, ""),
    (FLASH, {"device_type": "cpu"}, "sdpa", "runs on CUDA only, the activations are on cpu"),
    (FLASH, {"device_type": "mps"}, "sdpa", "on mps"),
    (FLASH, {"dtype": torch.float32}, "sdpa", "the activations are float32"),
    (FLASH, {"dtype": torch.float64}, "sdpa", "the activations are float64"),
    (FLASH, {"dense": "the cache is static"}, "sdpa", "the cache is static"),
    (FLASH, {"head_dim": 260}, "sdpa", "up to 256 in steps of 8, not 260"),
    (FLASH, {"head_dim": 264}, "sdpa", "not 264"),
    (FLASH, {"head_dim": 20}, "sdpa", "not 20"),
    (FLASH, {"kernels": ()}, "sdpa", "flash-attn is not installed and this torch has no varlen kernel"),
    (FLASH, {"dropout": True, "kernels": (NATIVE,)}, "sdpa", "attention dropout needs flash-attn"),
]


@pytest.mark.parametrize(("requested", "changes", "backend", "reason"), CHOICES)
def test_choice_table(requested: str | None, changes: dict[str, Any], backend: str, reason: str) -> None:
    """What runs for every request, dtype, device, head size and machine, and the reason if it is something else."""
    choice = choose_backend(requested, **{**GOOD, **changes})
    assert choice.backend == backend
    assert (reason in choice.reason) if reason else choice.reason == ""


@settings(max_examples=100, deadline=None)
@given(
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    device=st.sampled_from(["cpu", "cuda", "mps", "xpu"]),
    head_dim=st.integers(1, 300),
    kernels=st.sampled_from([(), (PACKAGE,), (NATIVE,), (PACKAGE, NATIVE)]),
    dense=st.sampled_from(["", "a reason"]),
    dropout=st.booleans(),
)
def test_flash_runs_only_where_it_can(dtype, device, head_dim, kernels, dense, dropout) -> None:
    """Asked for flash, the choice never raises; it is a kernel only where that works, else SDPA with a reason."""
    choice = choose_backend(
        FLASH, dtype=dtype, device_type=device, head_dim=head_dim, kernels=kernels, dense=dense, dropout=dropout
    )
    if choice.backend == "sdpa":
        assert choice.reason
    else:
        assert choice.backend in kernels and not choice.reason and not dense
        assert device == "cuda" and dtype in (torch.float16, torch.bfloat16) and head_dim % 8 == 0
        assert not (dropout and choice.backend == NATIVE)


# Asked for flash attention where it cannot run


@pytest.fixture
def warnings_said() -> Iterator[list[str]]:
    """Messages of Arlow's loggers during the test, with the memory of `warning_once` wiped."""
    library_logging.warning_once.cache_clear()
    said: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    listener, logger = Listener(), logging.getLogger("arlow.attention")
    logger.addHandler(listener)
    yield said
    logger.removeHandler(listener)


def test_fall_back_is_said_once(warnings_said: list[str]) -> None:
    """Flash asked for on the CPU: one message over many forwards, saying what runs and why."""
    model = causal_lm(backend=FLASH)
    with torch.no_grad():
        for _ in range(3):
            model(token_ids(1, 5))
        model.generate(token_ids(1, 5), max_new_tokens=3, do_sample=False)
    assert len(warnings_said) == 1, warnings_said
    assert "sdpa" in warnings_said[0] and FLASH in warnings_said[0] and "CUDA" in warnings_said[0]


def test_what_was_asked_for_runs_in_silence(warnings_said: list[str]) -> None:
    """Eager and SDPA run as asked, without a message."""
    for backend in ("eager", "sdpa"):
        causal_lm(backend=backend)(token_ids(1, 5))
    assert warnings_said == []


def test_flash_is_accepted_everywhere(tmp_path: Any) -> None:
    """No way of asking for flash attention raises: loading, building, and switching, in any dtype."""
    causal_lm().save_pretrained(tmp_path)
    for dtype in (torch.float32, torch.bfloat16):
        model = ArlowForCausalLM.from_pretrained(tmp_path, attn_implementation=FLASH, dtype=dtype)
        assert model.config._attn_implementation == FLASH
        model(token_ids(1, 4))
    model.set_attn_implementation("eager")
    model.set_attn_implementation(FLASH)
    model(token_ids(1, 4))
    ArlowForCausalLM._from_config(text_config(), attn_implementation=FLASH)(token_ids(1, 4))
    config = ArlowConfig.tiny()
    both = ArlowForConditionalGeneration._from_config(config, attn_implementation=FLASH)
    assert both.config.text_config._attn_implementation == both.config.vision_config._attn_implementation == FLASH
    both(torch.full((1, 4), 9))


def test_an_unknown_backend_is_an_error() -> None:
    """A misspelt backend is refused when it is set."""
    with pytest.raises(ValueError, match="flash_atention_2"):
        causal_lm().set_attn_implementation("flash_atention_2")


def flash_and_sdpa(config: Any) -> tuple[ArlowForCausalLM, ArlowForCausalLM]:
    return causal_lm(config, backend=FLASH), causal_lm(config, backend="sdpa")


CONFIGS = {"full": text_config, "windows": mixed_windows}


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fall_back_equals_sdpa_in_a_forward(kind: str, dtype: torch.dtype) -> None:
    """On the CPU, flash asked for gives SDPA's logits exactly: plain, padded on either side, packed."""
    flash, sdpa = (model.to(dtype) for model in flash_and_sdpa(CONFIGS[kind]()))
    rows = [token_ids(length, seed=length) for length in LENGTHS]
    ids, positions = packed(rows)
    inputs = [{"input_ids": token_ids(2, 9)}, {"input_ids": ids, "position_ids": positions}]
    for side in ("left", "right"):
        ids, mask = padded(rows, side)
        inputs.append({"input_ids": ids, "attention_mask": mask})
    with torch.no_grad():
        for given_inputs in inputs:
            assert torch.equal(flash(**given_inputs).logits, sdpa(**given_inputs).logits)


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("beams", [1, 2])
def test_fall_back_equals_sdpa_in_generation(kind: str, cache: str, beams: int) -> None:
    """On the CPU, flash asked for generates what SDPA does: left padding, dynamic and static caches, beams."""
    ids, mask = padded([token_ids(length, seed=length) for length in LENGTHS], "left")
    flash, sdpa = (
        model.generate(
            ids, attention_mask=mask, max_new_tokens=8, do_sample=False, num_beams=beams,
            cache_implementation=cache, disable_compile=True,
        )
        for model in flash_and_sdpa(CONFIGS[kind]())
    )  # fmt: skip
    assert torch.equal(flash, sdpa)


def test_autocast_decides_by_its_own_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under autocast queries are half precision although hidden states are float32: the choice must see that."""
    seen: list[torch.dtype] = []

    def spy(requested: str | None, **facts: Any) -> Choice:
        seen.append(facts["dtype"])
        return choose_backend(requested, **facts)

    monkeypatch.setattr(attention, "choose_backend", spy)
    model = causal_lm(backend=FLASH)
    model(token_ids(1, 4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(token_ids(1, 4))
    assert seen == [torch.float32, torch.bfloat16]


# Eager attention and plans


def plain_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, visible: torch.Tensor) -> Any:
    """Float64 attention, head by head and query by query: (B, H, S, D) -> (B, S, H, D)."""
    batch, heads, queries, size = query.shape
    group = heads // key.shape[1]
    output = torch.zeros(batch, queries, heads, size, dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            for s in range(queries):
                scores = (key[b, h // group].double() @ query[b, h, s].double()) / math.sqrt(size)
                weights = torch.softmax(scores.masked_fill(~visible[b, s], -math.inf), dim=-1)
                output[b, s, h] = weights @ value[b, h // group].double()
    return output


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_backends_equal_float64(backend: str, groups: int) -> None:
    """Eager and SDPA equal attention written out in float64, for every ratio of query and key heads."""
    query, key, value = torch.randn(2, 4, 6, 8), torch.randn(2, groups, 6, 8), torch.randn(2, groups, 6, 8)
    visible = torch.ones(6, 6, dtype=torch.bool).tril()[None].repeat(2, 1, 1)
    visible[1, 1:, 0] = False
    module = nn.Module()
    module.num_key_value_groups, module.training, module.is_causal = 4 // groups, False, True
    mask = visible[:, None] if backend == "sdpa" else torch.where(visible[:, None], 0.0, -1e30)
    output, weights = attention_function(backend)(module, query, key, value, mask, scaling=8**-0.5)
    torch.testing.assert_close(output.double(), plain_attention(query, key, value, visible), atol=1e-6, rtol=1e-5)
    assert weights is None or torch.allclose(weights.sum(-1), torch.ones(2, 4, 6))


def test_eager_softmax_is_float32() -> None:
    """In a bfloat16 model the softmax of eager attention is computed in float32 and rounded once."""
    query, key, value = torch.randn(3, 1, 2, 64, 8).bfloat16()
    module = nn.Module()
    _, weights = eager_attention(module.eval(), query, key, value, None, scaling=1.0)
    scores = torch.matmul(query, key.transpose(-1, -2))
    assert torch.equal(weights, scores.float().softmax(-1).bfloat16())


def test_other_backends_are_transformers_own() -> None:
    """A name that is not Arlow's is looked up in Transformers; eager is Arlow's own."""
    assert attention_function("flex_attention") is ALL_ATTENTION_FUNCTIONS["flex_attention"]
    assert attention_function("eager") is eager_attention


def test_uniform_plan_has_no_indices() -> None:
    """Rows of one length need no gathering, only their boundaries."""
    plan = uniform_plan(3, 2, 5, torch.device("cpu"))
    assert plan.query_index is None and plan.key_index is None
    assert plan.cu_query.tolist() == [0, 2, 4, 6] and plan.cu_key.tolist() == [0, 5, 10, 15]
    assert plan.cu_query.dtype == torch.int32 and (plan.max_query, plan.max_key) == (2, 5)


def test_plan_by_hand() -> None:
    """Indices, boundaries and longest rows of a padded batch, with and without packed sequences."""
    real = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 1]]).bool()
    plan = plan_from_mask(real[:, -1:], real, None)
    assert plan.query_index.tolist() == [1] and plan.key_index.tolist() == [0, 1, 5, 6, 7]
    assert plan.cu_query.tolist() == [0, 0, 1] and plan.cu_key.tolist() == [0, 2, 5]
    plan = plan_from_mask(real, real, torch.tensor([[0, 0, 0, 0], [0, 0, 0, 1]]))
    assert plan.cu_query.tolist() == plan.cu_key.tolist() == [0, 2, 4, 5]
    assert (plan.max_query, plan.max_key) == (2, 2)


# The varlen path with a plain kernel


def plain_kernel(q, k, v, cu_q, cu_k, max_q, max_k, *, scale, dropout, causal, window) -> torch.Tensor:
    """What flash-attn's varlen function documents, sequence by sequence: query i of n sees key j of m if
    i + m - n - left <= j <= i + m - n + right."""
    assert not dropout and causal == (window[1] == 0) and cu_q.dtype == cu_k.dtype == torch.int32
    assert len(q) == cu_q[-1] and len(k) == len(v) == cu_k[-1]
    assert max_q == (cu_q[1:] - cu_q[:-1]).max() and max_k == (cu_k[1:] - cu_k[:-1]).max()
    output = torch.zeros_like(q)
    for a, b, c, d in zip(cu_q[:-1], cu_q[1:], cu_k[:-1], cu_k[1:], strict=True):
        queries, keys = int(b - a), int(d - c)
        distance = torch.arange(queries)[:, None] + keys - queries - torch.arange(keys)
        visible = torch.ones(queries, keys, dtype=torch.bool)
        if window[1] >= 0:
            visible &= distance >= -window[1]
        if window[0] >= 0:
            visible &= distance <= window[0]
        group = q.shape[1] // k.shape[1]
        key, value = (t[c:d].repeat_interleave(group, dim=1) for t in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q[a:b], key) * scale
        weights = scores.masked_fill(~visible, -math.inf).softmax(-1)
        output[a:b] = torch.einsum("hqk,khd->qhd", weights, value)
    return output


@pytest.fixture
def varlen(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every forward that asks for flash believes to be bfloat16 on a GPU, and gets the plain kernel. Gives the
    backends that were chosen."""
    chosen: list[str] = []

    def pretend(requested: str | None, **facts: Any) -> Choice:
        choice = choose_backend(requested, **{**facts, "dtype": torch.bfloat16, "device_type": "cuda"})
        chosen.append(choice.backend)
        return choice

    monkeypatch.setattr(attention, "available_kernels", lambda: (PACKAGE,))
    monkeypatch.setattr(attention, "choose_backend", pretend)
    monkeypatch.setattr(attention, "load_kernel", lambda name: plain_kernel)
    return chosen


def flash_and_eager(config: Any) -> tuple[ArlowForCausalLM, ArlowForCausalLM]:
    return causal_lm(config, backend=FLASH), causal_lm(config, backend="eager")


def assert_equal_where(mask: torch.Tensor, ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.isfinite().all()
    torch.testing.assert_close(ours[mask.bool()], theirs[mask.bool()], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("side", ["none", "left", "right"])
def test_varlen_equals_eager(kind: str, side: str, varlen: list[str]) -> None:
    """Without padding and with padding on either side, full and sliding layers give eager's logits."""
    flash, eager = flash_and_eager(CONFIGS[kind]())
    rows = [token_ids(length, seed=length) for length in (LENGTHS if side != "none" else (9, 9))]
    ids, mask = padded(rows, side if side != "none" else "left")
    with torch.no_grad():
        assert_equal_where(mask, flash(ids, attention_mask=mask).logits, eager(ids, attention_mask=mask).logits)
        assert_equal_where(mask, flash(ids, attention_mask=mask.bool()).logits, eager(ids, mask).logits)
    assert set(varlen) >= {PACKAGE}


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("rows_of_positions", [2, 3, 4])
def test_varlen_packed_equals_separate(kind: str, rows_of_positions: int, varlen: list[str]) -> None:
    """Packed sequences attend within themselves, whatever form their positions have."""
    flash, eager = flash_and_eager(CONFIGS[kind](mrope_sections=[4, 2, 2]))
    rows = [token_ids(length, seed=length) for length in LENGTHS]
    ids, positions = packed(rows)
    if rows_of_positions > 2:
        positions = positions.expand(rows_of_positions, -1, -1)
    with torch.no_grad():
        together = flash(ids, position_ids=positions).logits[0]
        alone = torch.cat([eager(row[None]).logits[0] for row in rows])
    torch.testing.assert_close(together, alone, atol=2e-5, rtol=1e-4)
    assert PACKAGE in varlen


def test_varlen_packed_and_padded(varlen: list[str]) -> None:
    """Two packed rows of different length, the shorter one padded on the right, equal their sequences alone."""
    flash, eager = flash_and_eager(mixed_windows())
    groups = [[token_ids(n, seed=n) for n in lengths] for lengths in ((4, 6), (3, 2, 2))]
    flat = [packed(rows) for rows in groups]
    ids, mask = padded([ids[0] for ids, _ in flat], "right")
    positions = padded([positions[0] for _, positions in flat], "right")[0]
    with torch.no_grad():
        together = flash(ids, attention_mask=mask, position_ids=positions).logits[mask.bool()]
        alone = torch.cat([eager(row[None]).logits[0] for rows in groups for row in rows])
    torch.testing.assert_close(together, alone, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("side", ["none", "left"])
def test_varlen_decodes_with_a_cache(kind: str, side: str, varlen: list[str]) -> None:
    """Token by token after a prefill, far beyond the window, the logits stay eager's."""
    flash, eager = flash_and_eager(CONFIGS[kind]())
    rows = [token_ids(length, seed=length) for length in (LENGTHS if side == "left" else (9, 9))]
    ids, mask = padded(rows, "left")
    caches = [None, None]
    with torch.no_grad():
        for step in range(2 * WINDOW):
            outputs = [
                model(ids, attention_mask=mask, past_key_values=cache, use_cache=True)
                for model, cache in zip((flash, eager), caches, strict=True)
            ]
            real = mask[:, -ids.shape[1] :]
            assert_equal_where(real, outputs[0].logits, outputs[1].logits)
            caches = [output.past_key_values for output in outputs]
            ids = token_ids(len(rows), 1, seed=100 + step)
            mask = torch.cat((mask, torch.ones(len(rows), 1, dtype=torch.long)), dim=-1)
    assert set(varlen[::2]) == {PACKAGE}


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("side", ["none", "left", "right"])
@pytest.mark.parametrize("chunk", [1, 2, 3, 7])
def test_varlen_prefills_in_chunks(kind: str, side: str, chunk: int, varlen: list[str]) -> None:
    """A prompt of twice the window and more, given in chunks, gives the logits of one forward."""
    flash, eager = flash_and_eager(CONFIGS[kind]())
    rows = [token_ids(length, seed=length) for length in ((13, 5, 8) if side != "none" else (13, 13))]
    ids, mask = padded(rows, side if side != "none" else "left")
    cache = DynamicCache(config=flash.config)
    parts = []
    with torch.no_grad():
        for start in range(0, 13, chunk):
            end = min(start + chunk, 13)
            output = flash(ids[:, start:end], attention_mask=mask[:, :end], past_key_values=cache)
            parts.append(output.logits)
        whole = eager(ids, attention_mask=mask).logits
    assert_equal_where(mask, torch.cat(parts, dim=1), whole)


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"prefill_chunk_size": 4}, {"prompt_lookup_num_tokens": 2}])
def test_varlen_generates_what_eager_does(kind: str, options: dict[str, Any], varlen: list[str]) -> None:
    """`generate` on the varlen path, with left padding, beams, chunked prefill and prompt lookup."""
    rows = [token_ids(length, seed=length) for length in ((7,) if "prompt_lookup_num_tokens" in options else LENGTHS)]
    ids, mask = padded(rows, "left")
    flash, eager = (
        model.generate(ids, attention_mask=mask, max_new_tokens=2 * WINDOW, do_sample=False, **options)
        for model in flash_and_eager(CONFIGS[kind]())
    )
    assert torch.equal(flash, eager)
    assert PACKAGE in varlen


def test_dropout_in_training_reaches_the_choice(varlen: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's kernel has no dropout: a model that drops attention weights uses it in evaluation only."""
    monkeypatch.setattr(attention, "available_kernels", lambda: (NATIVE,))
    model = causal_lm(text_config(attention_dropout=0.1), backend=FLASH)
    model(token_ids(1, 4))
    model.train()(token_ids(1, 4))
    causal_lm(backend=FLASH).train()(token_ids(1, 4))
    assert varlen == [NATIVE, "sdpa", NATIVE]


def test_static_caches_take_sdpa_instead(varlen: list[str]) -> None:
    """A static cache has keys that do not exist yet: the varlen kernels cannot skip them, SDPA runs."""
    flash, eager = flash_and_eager(mixed_windows())
    ids, mask = padded([token_ids(length, seed=length) for length in LENGTHS], "left")
    outputs = [
        model.generate(
            ids, attention_mask=mask, max_new_tokens=8, do_sample=False, cache_implementation="static",
            disable_compile=True,
        )
        for model in (flash, eager)
    ]  # fmt: skip
    assert torch.equal(*outputs)
    assert PACKAGE not in varlen
    cache = StaticCache(config=flash.config, max_cache_len=20)
    torch.testing.assert_close(
        flash(ids, attention_mask=mask, past_key_values=cache).logits[mask.bool()],
        eager(ids, attention_mask=mask).logits[mask.bool()],
        atol=2e-5,
        rtol=1e-4,
    )


def test_varlen_trains_as_eager_does(varlen: list[str]) -> None:
    """Gradients through removed padding equal eager's."""
    flash, eager = flash_and_eager(mixed_windows())
    ids, mask = padded([token_ids(length, seed=length) for length in LENGTHS], "right")
    labels = ids.masked_fill(mask == 0, -100)
    for model in (flash, eager):
        model.train()(ids, attention_mask=mask, labels=labels).loss.backward()
    for (name, ours), theirs in zip(flash.named_parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-3, msg=name)


def test_varlen_beside_cross_attention(varlen: list[str]) -> None:
    """Cross-attention layers do not mind which backend self-attention uses."""
    flash, eager = flash_and_eager(cross_config())
    for model in (flash, eager):
        for layer in model.model.layers:
            layer.cross_attn.gate.data.fill_(0.5)
    ids, mask = padded([token_ids(length, seed=length) for length in LENGTHS], "left")
    states = torch.randn(3, 6, 24)
    with torch.no_grad():
        outputs = [m(ids, attention_mask=mask, encoder_hidden_states=states).logits for m in (flash, eager)]
    assert_equal_where(mask, *outputs)


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 7), min_size=1, max_size=4).filter(any),
    past=st.integers(0, 5),
    window=st.none() | st.integers(1, 8),
    side=st.sampled_from(["left", "right"]),
)
def test_any_layout_equals_float64(lengths: list[int], past: int, window: int | None, side: str) -> None:
    """Any lengths (empty rows too), keys from before, windows and sides: real tokens get plain attention's result,
    padding gets zeros."""
    queries = max(lengths)
    rows = [torch.ones(length, dtype=torch.long) for length in lengths]
    real = padded(rows, side)[1].bool()
    keys = torch.cat((torch.ones(len(lengths), past, dtype=torch.bool), real), dim=1)
    query = torch.randn(len(lengths), 4, queries, 8)
    key, value = torch.randn(2, len(lengths), 2, past + queries, 8)
    module = nn.Module()
    module.is_causal = True
    output, _ = varlen_attention(
        module, query, key, value, plan_from_mask(real, keys, None), scaling=8**-0.5, sliding_window=window,
        kernel=plain_kernel,
    )  # fmt: skip
    # Distance counts real tokens only, as positions do.
    count = keys.long().cumsum(-1)
    distance = count[:, past:, None] - count[:, None]
    visible = (distance >= 0) & keys[:, None] & (distance < (window or 10**6))
    expected = plain_attention(query, key, value, visible)
    torch.testing.assert_close(output.double()[real], expected[real], atol=1e-5, rtol=1e-4)
    assert not output[~real].any()


# The real kernels


@pytest.fixture
def only_kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param not in attention.available_kernels():
        pytest.skip(f"{request.param} is not installed here")
    monkeypatch.setattr(attention, "available_kernels", lambda: (request.param,))
    return request.param


def gpu_models(kind: str, dtype: torch.dtype) -> tuple[ArlowForCausalLM, ArlowForCausalLM]:
    config = CONFIGS[kind](hidden_size=64, head_dim=32, initializer_range=0.05)
    return tuple(causal_lm(config, backend=name).to("cuda", dtype) for name in (FLASH, "eager"))  # type: ignore[return-value]


def assert_close_in(dtype: torch.dtype, ours: torch.Tensor, theirs: torch.Tensor) -> None:
    tolerance = 8e-3 if dtype == torch.float16 else 4e-2
    torch.testing.assert_close(ours.float(), theirs.float(), atol=tolerance, rtol=tolerance)


@pytest.mark.gpu
@pytest.mark.parametrize("only_kernel", [PACKAGE, NATIVE], indirect=True)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("side", ["none", "left", "right"])
def test_real_kernels_equal_eager(only_kernel: str, dtype: torch.dtype, kind: str, side: str) -> None:
    """Each flash kernel gives eager's logits in half precision: without padding, padded, and token by token."""
    flash, eager = gpu_models(kind, dtype)
    rows = [token_ids(length, seed=length) for length in ((40, 9, 23) if side != "none" else (40, 40))]
    ids, mask = (t.cuda() for t in padded(rows, side if side != "none" else "left"))
    with torch.no_grad():
        outputs = [model(ids, attention_mask=mask, use_cache=True) for model in (flash, eager)]
        assert_close_in(dtype, *(output.logits[mask.bool()] for output in outputs))
        if side == "right":
            return
        mask = torch.cat((mask, mask.new_ones(len(rows), 1)), dim=-1)
        step = token_ids(len(rows), 1, seed=5).cuda()
        outputs = [
            model(step, attention_mask=mask, past_key_values=output.past_key_values)
            for model, output in zip((flash, eager), outputs, strict=True)
        ]
        assert_close_in(dtype, *(output.logits for output in outputs))


@pytest.mark.gpu
@pytest.mark.parametrize("only_kernel", [PACKAGE, NATIVE], indirect=True)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", CONFIGS)
def test_real_kernels_keep_packed_rows_apart(only_kernel: str, dtype: torch.dtype, kind: str) -> None:
    """Packed sequences through each flash kernel equal the same sequences one by one, gradients included."""
    flash, eager = gpu_models(kind, dtype)
    rows = [token_ids(length, seed=length).cuda() for length in (33, 8, 17)]
    ids, positions = (t.cuda() for t in packed(rows))
    together = flash(ids, position_ids=positions).logits[0]
    alone = torch.cat([eager(row[None]).logits[0] for row in rows])
    assert_close_in(dtype, together, alone)
    together.float().square().mean().backward()
    alone.float().square().mean().backward()
    for ours, theirs in zip(flash.parameters(), eager.parameters(), strict=True):
        scale = theirs.grad.abs().max().clamp(min=1e-6)
        assert_close_in(dtype, ours.grad / scale, theirs.grad / scale)


@pytest.mark.gpu
def test_float32_on_a_gpu_falls_back(warnings_said: list[str]) -> None:
    """float32 activations on a GPU run through SDPA, with the reason said."""
    flash, eager = gpu_models("full", torch.float32)
    ids = token_ids(2, 9).cuda()
    torch.testing.assert_close(flash(ids).logits, eager(ids).logits, atol=1e-3, rtol=1e-3)
    assert any("float32" in text for text in warnings_said)
