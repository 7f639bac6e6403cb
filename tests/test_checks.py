"""Arguments of a forward that were meant to be others are refused; what engines send passes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import tiny_vlm
from transformers import StaticCache

from arlow import ArlowConfig, ArlowForCausalLM, ArlowTextConfig


IDS = torch.tensor([[10, 11, 12, 13]])


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("atention_mask", "attention_mask"),
        ("label", "labels"),
        ("pixel_value", "pixel_values"),
        ("input_id", "input_ids"),
    ],
)
def test_misspelt_argument_of_forward(name: str, meant: str) -> None:
    """A keyword close to an argument is an error that names both, not a keyword passed on in silence."""
    with pytest.raises(TypeError, match=f"{name}: .*did you mean '{meant}'"):
        tiny_vlm()(input_ids=IDS, **{name: torch.ones_like(IDS)})


def test_keywords_of_the_library_and_of_engines_pass() -> None:
    """What Transformers passes on, and names nobody knows, reach the attention call as in every model."""
    model = ArlowForCausalLM(ArlowTextConfig.tiny()).eval()
    plain = model(input_ids=IDS).logits
    extra = {"token_type_ids": torch.zeros_like(IDS), "attention_instances": {}, "seq_idx": None, "cache": None}
    assert torch.equal(model(input_ids=IDS, **extra).logits, plain)


def test_packed_rows_in_a_static_cache_are_refused() -> None:
    """A static cache has one sequence per row; packed positions would attend across documents in silence."""
    model = ArlowForCausalLM(ArlowTextConfig.tiny()).eval()
    cache = StaticCache(config=model.config, max_cache_len=8)
    with pytest.raises(ValueError, match=r"position_ids.*static cache"):
        model(input_ids=IDS, position_ids=torch.tensor([[0, 1, 0, 1]]), past_key_values=cache)


def test_directory_without_config_is_no_default_config(tmp_path: Path) -> None:
    """An empty directory is an error naming it, not a config of defaults."""
    for kind in (ArlowConfig, ArlowTextConfig):
        with pytest.raises(OSError, match="config"):
            kind.from_pretrained(tmp_path)
