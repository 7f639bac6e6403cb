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


def test_media_that_are_none_pass() -> None:
    """A text model takes the media arguments of a text-only batch, which are None."""
    model = ArlowForCausalLM(ArlowTextConfig.tiny()).eval()
    nothing = dict.fromkeys(("pixel_values", "pixel_values_videos", "image_grid_thw", "video_grid_thw"))
    assert torch.equal(model(input_ids=IDS, **nothing).logits, model(input_ids=IDS).logits)
    with pytest.raises(ValueError, match=r"image_grid_thw.*ArlowForCausalLM reads text only"):
        model(input_ids=IDS, image_grid_thw=torch.tensor([[1, 4, 4]]))


def test_logits_to_keep_by_position() -> None:
    """Positions from either end, and a mask of them, keep those logits."""
    model = ArlowForCausalLM(ArlowTextConfig.tiny()).eval()
    whole = model(input_ids=IDS).logits
    for kept in (torch.tensor([0, -1]), torch.tensor([True, False, False, True])):
        torch.testing.assert_close(model(input_ids=IDS, logits_to_keep=kept).logits, whole[:, [0, 3]])


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
