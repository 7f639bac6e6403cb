"""Rotary embeddings against Transformers' LLaMA, against complex numbers in float64, and against the rules by hand."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from text_samples import text_config, token_ids
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb as llama_apply

from arlow import ArlowForCausalLM, ArlowRotaryEmbedding, ArlowTextConfig, apply_rotary_pos_emb
from arlow.rope import axis_of_pairs


HEAD_DIM, TRAINED = 16, 64
ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 1e5},
    "linear": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
    "proportional": {"rope_type": "proportional", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
    "yarn": {
        "rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32,
        "beta_fast": 16.0, "beta_slow": 2.0,
    },
    "longrope": {
        "rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 32,
        "short_factor": [1.0 + 0.1 * i for i in range(8)], "long_factor": [2.0 + i for i in range(8)],
    },
    "llama3": {
        "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
}  # fmt: skip


def rope_config(name: str, **overrides: Any) -> Any:
    rope = copy.deepcopy(ROPES[name])
    return text_config(
        hidden_size=64, head_dim=HEAD_DIM, max_position_embeddings=TRAINED, rope_parameters=rope, **overrides
    )


def llama_tables(name: str, positions: torch.Tensor, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    config = LlamaConfig(
        hidden_size=64, num_attention_heads=4, head_dim=HEAD_DIM, max_position_embeddings=TRAINED,
        rope_parameters=copy.deepcopy(ROPES[name]),
    )  # fmt: skip
    return LlamaRotaryEmbedding(config)(torch.zeros(1, dtype=dtype), positions)


def arlow_tables(name: str, positions: torch.Tensor, **overrides: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return ArlowRotaryEmbedding(rope_config(name, **overrides))(torch.zeros(1), positions)


@pytest.mark.parametrize("length", [1, 20, 200], ids=["one", "short", "long"])
@pytest.mark.parametrize("name", ROPES)
def test_every_rope_type_equals_llama(name: str, length: int) -> None:
    """Cosines and sines equal those of Transformers' LLaMA for every rope type, within and beyond trained lengths."""
    positions = torch.arange(length)[None]
    for ours, theirs in zip(arlow_tables(name, positions), llama_tables(name, positions), strict=True):
        assert ours.shape == (1, length, HEAD_DIM) and ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_turning_equals_llama(dtype: torch.dtype) -> None:
    """`apply_rotary_pos_emb` equals LLaMA's, on either axis of heads, in float32 and bfloat16."""
    query, key = torch.randn(2, 4, 9, HEAD_DIM, dtype=dtype), torch.randn(2, 2, 9, HEAD_DIM, dtype=dtype)
    cos, sin = llama_tables("default", torch.arange(9)[None].expand(2, -1), dtype)
    for ours, theirs in zip(
        apply_rotary_pos_emb(query, key, cos, sin), llama_apply(query, key, cos, sin), strict=True
    ):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours, theirs)
    swapped = apply_rotary_pos_emb(query.transpose(1, 2), key.transpose(1, 2), cos, sin, unsqueeze_dim=2)
    torch.testing.assert_close(swapped[0].transpose(1, 2), llama_apply(query, key, cos, sin)[0])


def complex_reference(x: torch.Tensor, positions: torch.Tensor, theta: float) -> torch.Tensor:
    """Each pair (i, i + D/2) as one complex number, multiplied by exp(i * position * theta^(-2i/D)); float64."""
    half = x.shape[-1] // 2
    frequency = theta ** (-torch.arange(half, dtype=torch.float64) / half)
    turn = torch.polar(torch.ones(1, dtype=torch.float64), positions.double()[..., None] * frequency)
    turned = torch.complex(x[..., :half].double(), x[..., half:].double()) * turn[:, None]
    return torch.cat((turned.real, turned.imag), dim=-1)


@settings(max_examples=25, deadline=None)
@given(half=st.integers(1, 20), length=st.integers(1, 9), start=st.integers(0, 30000), theta=st.floats(100.0, 1e6))
def test_rotation_is_multiplication_by_complex_numbers(half: int, length: int, start: int, theta: float) -> None:
    """Tables and rotation together equal complex numbers in float64, for any head size, theta and position."""
    config = text_config(head_dim=2 * half, rope_parameters={"rope_type": "default", "rope_theta": theta})
    positions = torch.arange(start, start + length)[None]
    query = torch.randn(1, 4, length, 2 * half)
    cos, sin = ArlowRotaryEmbedding(config)(query, positions)
    turned, _ = apply_rotary_pos_emb(query, query, cos, sin)
    expected = complex_reference(query, positions, theta)
    # float32 angles: a position of 3e4 is known to 3e4 * 2^-24 radians
    torch.testing.assert_close(turned.double(), expected, atol=2e-2 if start > 1000 else 1e-3, rtol=0)


def test_one_row_turned_by_many_angles() -> None:
    """Angles of a batch turn a row that is the same for all; with a gradient or without."""
    torch.manual_seed(0)
    q, angles = torch.randn(1, 2, 3, 8), torch.randn(4, 3, 4).repeat(1, 1, 2)
    wanted = apply_rotary_pos_emb(q, q, angles.cos(), angles.sin())[0]
    with torch.no_grad():
        found = apply_rotary_pos_emb(q, q, angles.cos(), angles.sin())[0]
    assert found.shape == wanted.shape == (4, 2, 3, 8)
    torch.testing.assert_close(found, wanted)


def test_scores_depend_on_distance_only() -> None:
    """A query and a key turned by positions p and p + d have the same product for every p."""
    query, key = torch.randn(2, 1, 1, 1, HEAD_DIM)
    products = []
    for start in (0, 7, 41):
        cos, sin = arlow_tables("default", torch.tensor([[start, start + 5]]))
        turned = apply_rotary_pos_emb(query, query, cos[:, :1], sin[:, :1])[0]
        other = apply_rotary_pos_emb(key, key, cos[:, 1:], sin[:, 1:])[0]
        products.append((turned * other).sum())
    torch.testing.assert_close(products[0], products[1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(products[0], products[2], atol=1e-5, rtol=1e-5)


# Rope types that depend on the length


@pytest.mark.parametrize("name", ["dynamic", "longrope"])
def test_a_row_of_a_batch_gets_what_it_gets_alone(name: str) -> None:
    """A short row beside a long one keeps the frequencies of its own length."""
    short, long = torch.arange(10), torch.arange(190, 200)
    together = arlow_tables(name, torch.stack((short, long)))
    for row, positions in enumerate((short, long)):
        alone = arlow_tables(name, positions[None])
        assert torch.equal(together[0][row], alone[0][0]) and torch.equal(together[1][row], alone[1][0])
    assert not torch.allclose(arlow_tables(name, torch.stack((short, short)))[0][0], together[0][1])


@pytest.mark.parametrize("name", ROPES)
def test_nothing_is_remembered_between_calls(name: str) -> None:
    """A long sequence before or between does not change what a short one gets."""
    rotary = ArlowRotaryEmbedding(rope_config(name))
    short, long = torch.arange(10)[None], torch.arange(300)[None]
    first = rotary(torch.zeros(1), short)
    state = {key: value.clone() for key, value in rotary.named_buffers()}
    rotary(torch.zeros(1), long)
    again = rotary(torch.zeros(1), short)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert all(torch.equal(value, state[key]) for key, value in rotary.named_buffers())


@pytest.mark.parametrize("name", ["dynamic", "longrope"])
@pytest.mark.parametrize("length", [TRAINED - 1, TRAINED, TRAINED + 1, 32, 33])
def test_the_switch_of_length_is_llamas(name: str, length: int) -> None:
    """The length from which frequencies change is the one at which LLaMA changes them."""
    positions = torch.arange(length)[None]
    torch.testing.assert_close(
        arlow_tables(name, positions)[0], llama_tables(name, positions)[0], atol=1e-6, rtol=1e-5
    )


# Three axes


@pytest.mark.parametrize(
    ("sections", "axes"),
    [
        ([6, 5, 5], "thwthwth"),  # sections reach beyond the eight pairs: the axes simply alternate
        ([12, 2, 2], "thwthwtt"),
        ([10, 4, 2], "thwthwth"),
        ([16, 0, 0], "tttttttt"),
        ([8, 8, 0], "thtthtth"),
        ([14, 1, 1], "thwttttt"),
    ],
)
def test_axis_rule_by_hand(sections: list[int], axes: str) -> None:
    """Pair i reads h if i % 3 == 1 and i < 3h, w if i % 3 == 2 and i < 3w, else t; written out for eight pairs."""
    assert "".join("thw"[axis] for axis in axis_of_pairs(sections, 8).tolist()) == axes


def test_three_axes_read_their_pairs() -> None:
    """Each pair of the three-axis tables equals the one-axis table at the position of that pair's axis."""
    config = rope_config("default", mrope_sections=[12, 2, 2])
    rotary = ArlowRotaryEmbedding(config)
    axes = torch.randint(0, 50, (3, 2, 6))
    cos, sin = rotary(torch.zeros(1), axes)
    for pair, axis in enumerate([0, 1, 2, 0, 1, 2, 0, 0]):
        one_cos, one_sin = rotary(torch.zeros(1), axes[axis])
        for column in (pair, pair + 8):
            assert torch.equal(cos[..., column], one_cos[..., column])
            assert torch.equal(sin[..., column], one_sin[..., column])


@pytest.mark.parametrize("name", ROPES)
def test_equal_axes_are_plain_positions(name: str) -> None:
    """Three equal axes give what the two-dimensional positions give, for every rope type."""
    positions = torch.stack((torch.arange(90), torch.arange(20, 110)))
    plain = arlow_tables(name, positions, mrope_sections=[6, 5, 5])
    axes = arlow_tables(name, positions.expand(3, -1, -1), mrope_sections=[6, 5, 5])
    assert torch.equal(plain[0], axes[0]) and torch.equal(plain[1], axes[1])


# Exact tables in every dtype and however the model is built


def tables_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: buffer for name, buffer in model.named_buffers() if "rotary" in name}


def assert_exact(model: torch.nn.Module, config: Any) -> None:
    fresh = ArlowRotaryEmbedding(config)
    found = tables_of(model)
    assert found
    for name, table in found.items():
        wanted = getattr(fresh, name.rsplit(".", 1)[1])
        assert table.dtype == wanted.dtype and torch.equal(table.cpu(), wanted), name


@pytest.mark.parametrize("name", ROPES)
def test_tables_stay_exact(name: str, tmp_path: Any) -> None:
    """Casting to half, loading in bfloat16, and building on the meta device keep exact float32 tables."""
    config = rope_config(name)
    model = ArlowForCausalLM(config)
    model.save_pretrained(tmp_path)
    assert_exact(model.half(), config)
    assert_exact(model.to(torch.bfloat16).float(), config)
    assert_exact(ArlowForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16), config)
    assert_exact(AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto"), config)
    assert_exact(AutoModelForCausalLM.from_config(config, dtype=torch.float16), config)
    with torch.device("meta"):
        empty = ArlowForCausalLM(config)
    assert_exact(empty.to_empty(device="cpu"), config)
    assert_exact(copy.deepcopy(model), config)
    assert ArlowForCausalLM.from_pretrained(tmp_path).model.rotary_emb.attention_scaling == pytest.approx(
        LlamaRotaryEmbedding(
            LlamaConfig(
                hidden_size=64, num_attention_heads=4, head_dim=HEAD_DIM, max_position_embeddings=TRAINED,
                rope_parameters=copy.deepcopy(ROPES[name]),
            )
        ).attention_scaling
    )  # fmt: skip


def test_tables_are_not_saved(tmp_path: Any) -> None:
    """Tables are constants of the config: no checkpoint carries them."""
    model = ArlowForCausalLM(rope_config("longrope"))
    assert not [name for name in model.state_dict() if "rotary" in name]


def test_angles_are_float32_in_a_bfloat16_model() -> None:
    """A bfloat16 model knows neighbouring positions apart: angles are made in float32 and rounded last."""
    rotary = ArlowRotaryEmbedding(rope_config("default")).to(torch.bfloat16)
    positions = torch.arange(5000, 5010)[None]
    cos, _ = rotary(torch.zeros(1, dtype=torch.bfloat16), positions)
    assert cos.dtype == torch.bfloat16
    assert torch.equal(cos, llama_tables("default", positions)[0].bfloat16())


@pytest.mark.parametrize("name", ROPES)
def test_a_model_uses_its_rope(name: str) -> None:
    """A forward with each rope type is finite and differs from the default rope."""
    ids = token_ids(1, 100)
    torch.manual_seed(0)
    model = ArlowForCausalLM(rope_config(name)).eval()
    other = ArlowForCausalLM(rope_config("default")).eval()
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        logits = model(ids).logits
        assert logits.isfinite().all()
        assert (name == "default") == torch.allclose(logits, other(ids).logits, atol=1e-3)


@pytest.mark.parametrize("rope", ["dynamic", "longrope"])
def test_packed_sequences_use_their_own_length(rope: str) -> None:
    """A short sequence packed behind a long one is rotated as it is alone, though the row is long."""
    pairs = 8
    parameters = {
        "dynamic": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
        "longrope": {
            "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * pairs, "long_factor": [3.0] * pairs,
            "original_max_position_embeddings": 16, "factor": 2.0,
        },
    }[rope]  # fmt: skip
    rotary = ArlowRotaryEmbedding(ArlowTextConfig.tiny(max_position_embeddings=16, rope_parameters=parameters))
    packed = torch.cat((torch.arange(40), torch.arange(8)))[None]
    x = torch.zeros(1)
    for part, alone in ((slice(40), torch.arange(40)[None]), (slice(40, None), torch.arange(8)[None])):
        for found, expected in zip(rotary(x, packed), rotary(x, alone), strict=True):
            assert torch.equal(found[:, part], expected)
