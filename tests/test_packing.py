"""Packed sequences: each gets what it gets alone, however the packing is said and whatever lies between."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from text_samples import causal_lm, close, mixed_windows, packed, padded, text_config, token_ids
from transformers import DynamicCache

from arlow import ArlowForCausalLM, ArlowTextConfig, ArlowTextModel


BACKENDS = ("eager", "sdpa")
LENGTHS = (9, 4, 7)
CONFIGS = {"full": text_config, "windows": mixed_windows}


def packed_inputs(model: ArlowForCausalLM, how: str) -> tuple[dict[str, Any], list[torch.Tensor], torch.Tensor]:
    """Inputs of a packed forward, the sequences in it, and which tokens of the result are real."""
    rows = [token_ids(length, seed=length) for length in LENGTHS]
    ids, positions = packed(rows)
    inputs: dict[str, Any] = {"input_ids": ids, "position_ids": positions}
    real = torch.ones_like(ids).bool()
    if how == "three rows":
        inputs["position_ids"] = positions.expand(3, -1, -1)
    elif how == "four rows":
        inputs["position_ids"] = positions.expand(4, -1, -1)
    elif how == "mask of ones":
        inputs["attention_mask"] = torch.ones_like(ids)
    elif how == "bool mask of ones":
        inputs["attention_mask"] = torch.ones_like(ids).bool()
    elif how == "no cache":
        inputs["use_cache"] = False
    elif how == "empty cache":
        inputs["past_key_values"] = DynamicCache(config=model.config)
    elif how == "empty unshaped cache":
        inputs["past_key_values"] = DynamicCache()
    elif how == "embeddings":
        inputs["inputs_embeds"] = model.get_input_embeddings()(inputs.pop("input_ids"))
    elif how == "sequences of one token":
        rows = [*rows, token_ids(1, seed=50), token_ids(1, seed=51)]
        inputs["input_ids"], inputs["position_ids"] = packed(rows)
        real = torch.ones_like(inputs["input_ids"]).bool()
    elif how.startswith("padded"):
        side = how.split()[1]
        groups = [rows, [token_ids(n, seed=60 + n) for n in (3, 2, 2)]]
        flat = [packed(group) for group in groups]
        inputs["input_ids"], inputs["attention_mask"] = padded([ids[0] for ids, _ in flat], side)
        inputs["position_ids"] = padded([positions[0] for _, positions in flat], side)[0]
        rows = [row for group in groups for row in group]
        real = inputs["attention_mask"].bool()
    return inputs, rows, real


PACKINGS = (
    "two rows", "three rows", "four rows", "mask of ones", "bool mask of ones", "no cache", "empty cache",
    "empty unshaped cache", "embeddings", "sequences of one token", "padded right", "padded left",
)  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("how", PACKINGS)
def test_packed_rows_equal_separate_rows(how: str, kind: str, backend: str) -> None:
    """Sequences packed into one row attend within themselves, however positions, masks and caches are given."""
    model = causal_lm(CONFIGS[kind](mrope_sections=[4, 2, 2]), backend=backend)
    inputs, rows, real = packed_inputs(model, how)
    with torch.no_grad():
        together = model(**inputs).logits[real]
        alone = torch.cat([model(row[None]).logits[0] for row in rows])
    close(together, alone, 2e-5)


def test_packed_images_stay_whole() -> None:
    """M-RoPE axes that stand still inside an image start no new sequence, in four rows or three."""
    model = causal_lm(text_config(mrope_sections=[4, 2, 2]))
    # text, a 2x2 image, text; twice
    axes = torch.tensor([[0, 1, 1, 1, 1, 3], [0, 1, 1, 2, 2, 3], [0, 1, 2, 1, 2, 3]])
    text = torch.arange(6)[None]
    row = torch.cat((text, axes))[:, None]  # [4, 1, 6]
    ids = token_ids(2, 6)
    with torch.no_grad():
        alone = torch.cat([model(ids[number : number + 1], position_ids=row).logits for number in (0, 1)], dim=1)
        for positions in (row, row[1:]):
            together = model(ids.view(1, 12), position_ids=torch.cat((positions, positions), dim=-1)).logits
            close(together, alone, 2e-5)


@settings(max_examples=25, deadline=None)
@given(
    layout=st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=4), min_size=1, max_size=3),
    side=st.sampled_from(["left", "right"]),
    kind=st.sampled_from(sorted(CONFIGS)),
    given_mask=st.booleans(),
)
def test_any_packing_equals_separate_rows(layout: list[list[int]], side: str, kind: str, given_mask: bool) -> None:
    """Any number of sequences in any number of padded rows: each gets what it gets alone."""
    model = causal_lm(CONFIGS[kind]())
    groups = [[token_ids(n, seed=10 * r + i) for i, n in enumerate(row)] for r, row in enumerate(layout)]
    flat = [packed(group) for group in groups]
    ids, mask = padded([ids[0] for ids, _ in flat], side)
    positions = padded([positions[0] for _, positions in flat], side)[0]
    inputs = {"attention_mask": mask} if given_mask or not mask.all() else {}
    with torch.no_grad():
        together = model(ids, position_ids=positions, **inputs).logits[mask.bool()]
        alone = torch.cat([model(row[None]).logits[0] for group in groups for row in group])
    close(together, alone, 3e-5)


def test_packed_sequences_with_padding_between_them() -> None:
    """Padding between two packed sequences does not join them: each gets what it gets alone."""
    model = ArlowTextModel(ArlowTextConfig.tiny()).eval()
    ids = torch.randint(10, 500, (1, 11))
    positions = torch.tensor([[0, 1, 2, 3, 0, 0, 0, 1, 2, 3, 4]])
    mask = torch.tensor([[1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1]])
    with torch.no_grad():
        packed = model(ids, attention_mask=mask, position_ids=positions).last_hidden_state
        for part in (slice(0, 4), slice(6, 11)):
            torch.testing.assert_close(packed[:, part], model(ids[:, part]).last_hidden_state, atol=2e-5, rtol=1e-4)


def test_packed_positions_of_one_row_hold_for_all() -> None:
    """Positions (1, S) that restart split every row of a batch."""
    model = ArlowTextModel(ArlowTextConfig.tiny()).eval()
    ids = torch.randint(10, 500, (2, 6))
    positions = torch.tensor([[0, 1, 0, 1, 2, 3]])
    with torch.no_grad():
        packed = model(ids, position_ids=positions).last_hidden_state
        alone = model(ids[:, 2:]).last_hidden_state
    torch.testing.assert_close(packed[:, 2:], alone, atol=2e-5, rtol=1e-4)
