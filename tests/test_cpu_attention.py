"""Attention on a CPU without gradients, against attention written out in float64."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arlow import cpu_attention
from arlow.attention import sdpa_attention


def written_out(query, key, value, mask, *, scaling, causal):
    """(B, S, H, D) float64: every head by itself, every query by itself."""
    batch, heads, queries, size = query.shape
    query, key, value = (x.double() for x in (query, key, value))
    width = heads // key.shape[1]
    output = torch.zeros(batch, queries, heads, size, dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            scores = query[b, h] @ key[b, h // width].T * scaling  # [S, K]
            if mask is not None:
                part = mask.expand(batch, heads, queries, key.shape[2])[b, h]
                scores = scores.masked_fill(~part, -torch.inf) if part.dtype == torch.bool else scores + part
            elif causal and queries > 1:
                scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf)
            output[b, :, h] = scores.softmax(-1) @ value[b, h // width]
    return output


@given(
    batch=st.integers(1, 3),
    groups=st.integers(1, 3),
    width=st.integers(1, 3),
    queries=st.sampled_from([1, 2, 7, 300, 513]),
    more=st.integers(0, 5),
    kind=st.sampled_from(["none", "bool", "float", "heads", "one row"]),
    causal=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_equals_attention_written_out(batch, groups, width, queries, more, kind, causal, seed):
    """Any number of heads, queries and keys, any mask that broadcasts: to float32 rounding."""
    rng = torch.Generator().manual_seed(seed)
    heads, keys, size = groups * width, queries + more, 8
    query = torch.randn(batch, heads, queries, size, generator=rng)
    key, value = torch.randn(2, batch, groups, keys, size, generator=rng)
    shape = {"bool": (batch, 1, queries, keys), "heads": (1, heads, queries, keys), "one row": (1, 1, 1, keys)}
    mask = None
    if kind == "float":
        mask = torch.randn(1, 1, queries, keys, generator=rng)
    elif kind in shape:
        mask = torch.rand(shape[kind], generator=rng) < 0.6
        mask[..., 0] = True
    with torch.no_grad():
        actual = cpu_attention.attend_on_cpu(query, key, value, mask, scaling=0.3, causal=causal)
    assert actual.shape == (batch, queries, heads, size) and actual.is_contiguous()
    expected = written_out(query, key, value, mask, scaling=0.3, causal=causal)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_bfloat16_is_off_by_its_rounding(causal):
    """As near to the exact values as bfloat16 inputs and weights allow, and no worse by much than the fused kernel."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 4, 700, 64).bfloat16() for _ in range(3))
    exact = written_out(query, key, value, None, scaling=0.125, causal=causal)
    with torch.no_grad():
        ours = cpu_attention.attend_on_cpu(query, key, value, None, scaling=0.125, causal=causal)
    fused = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=causal).transpose(1, 2)
    errors = [(x.double() - exact).square().mean().sqrt().item() for x in (ours, fused)]
    assert errors[0] < 0.004 * exact.square().mean().sqrt().item() + 2 * errors[1]


def test_gradients_and_dropout_take_the_fused_kernel(monkeypatch):
    """Where gradients are wanted, or weights are dropped, it is Transformers' function that runs."""
    monkeypatch.setattr("arlow.attention.attend_on_cpu", lambda *args, **kwargs: pytest.fail("no gradient here"))
    module = SimpleNamespace(is_causal=True, num_key_value_groups=1, training=True)
    query, key, value = (torch.randn(1, 2, 1, 8, requires_grad=True) for _ in range(3))
    output, _ = sdpa_attention(module, query, key, value, None, scaling=1.0)
    output.sum().backward()
    assert query.grad is not None
    with torch.no_grad():
        sdpa_attention(module, query, key, value, None, scaling=1.0, dropout=0.5)


@pytest.mark.parametrize("queries", [1, 300])
@pytest.mark.parametrize("kind", ["bool", "float"])
def test_a_query_that_sees_nothing_gives_zeros(queries: int, kind: str) -> None:
    """Padding may leave a query without any key: zeros, as of the fused kernel, and nothing that spoils other rows."""
    query, key, value = (torch.randn(1, 2, count, 8) for count in (queries, 300, 300))
    seen = torch.ones(1, 1, queries, 300, dtype=torch.bool)
    seen[..., 0, :] = False
    mask = seen if kind == "bool" else torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)
    with torch.no_grad():
        found = cpu_attention.attend_on_cpu(query, key, value, mask, scaling=0.3, causal=False)
    assert not found[:, 0].any() and found.isfinite().all()
