"""The checkpoints of earlier Arlow generations in ../shared/fixtures, with the answers they gave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)


FIXTURES = Path(__file__).parents[1].parent / "shared" / "fixtures" / "upstream"

needs_fixtures = pytest.mark.skipif(not FIXTURES.is_dir(), reason="needs ../shared/fixtures")

TEXT = ["base", "headdim", "qa", "seqcls", "sliding", "tied_bias", "tokcls", "rope_linear"]
V2 = [f"v2_text/{name}" for name in (*TEXT, "rope_yarn")]
VL_TEXT = [f"vl_text/{name}" for name in (*TEXT, "sections", "text_config")]
VL_FULL = [f"vl_full/{name}" for name in ("plain", "rich", "tied")]
TOWERS = [f"vl_vision/{name}" for name in ("plain", "rich")]
ALL = [*V2, *VL_TEXT, *VL_FULL, *TOWERS]
AUTO = {
    "ArlowForCausalLM": AutoModelForCausalLM,
    "ArlowForConditionalGeneration": AutoModelForImageTextToText,
    "ArlowForQuestionAnswering": AutoModelForQuestionAnswering,
    "ArlowForSequenceClassification": AutoModelForSequenceClassification,
    "ArlowForTokenClassification": AutoModelForTokenClassification,
    "ArlowVLVisionModel": AutoModel,
}


def meta(name: str) -> dict[str, Any]:
    return json.loads((FIXTURES / name / "meta.json").read_text())


def config_file(name: str) -> dict[str, Any]:
    return json.loads((FIXTURES / name / "config.json").read_text())


def case_of(name: str, case: str) -> dict[str, torch.Tensor]:
    stored = load_file(FIXTURES / name / "io.safetensors")
    return {key.removeprefix(f"{case}."): value for key, value in stored.items() if key.startswith(f"{case}.")}


def inputs_of(name: str, case: str) -> dict[str, torch.Tensor]:
    given = {k: v for k, v in case_of(name, case).items() if k in ("input_ids", "attention_mask", "position_ids")}
    if case == "left" and name.startswith("vl_text"):
        # Upstream's text classes counted over the padding, ours do not; and VL angles are no matter of differences.
        given["position_ids"] = torch.arange(given["input_ids"].shape[1]).expand_as(given["input_ids"])
    return given


@torch.no_grad()
def largest_difference(model: torch.nn.Module, name: str, case: str) -> float:
    """Of all logits where the mask is 1, to the stored ones."""
    given, stored = inputs_of(name, case), case_of(name, case)
    output, worst = model(**given), []
    for part in ("logits", "start_logits", "end_logits"):
        if part in stored:
            difference = (output[part] - stored[part]).abs()
            mask = given.get("attention_mask")
            if mask is not None and difference.shape[:2] == mask.shape:
                difference = difference[mask.bool()]
            worst.append(difference.max().item())
    return max(worst)


def cases(names: list[str]) -> list[tuple[str, str]]:
    found = []
    if FIXTURES.is_dir():
        found = [(name, case) for name in names for case in meta(name)["cases"] if case != "mrope_rows4"]
    return found
