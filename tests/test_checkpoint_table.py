"""`docs/checkpoints.md` says how exactly every checkpoint loads; each row is measured here.

`ARLOW_UPDATE_DOCS=1 pytest tests/test_checkpoint_table.py` writes the table anew.
"""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import load_file
from test_conversion import OTHERS, other_checkpoint
from test_towers import TOWERS, rows_of, tiny_tower_model
from transformers import AutoModelForCausalLM
from upstream_fixtures import AUTO, FIXTURES, V2, VL_FULL, VL_TEXT, cases, largest_difference, meta, needs_fixtures
from upstream_fixtures import TOWERS as ENCODERS

from arlow import ArlowVLVisionModel
from arlow.conversion import convert


PAGE = Path(__file__).parents[1] / "docs" / "checkpoints.md"
MARK = "<!-- table -->"
LIMIT = 1e-4
FILE = "model.safetensors"


@torch.no_grad()
def family_difference(name: str, folder: Path) -> float:
    family, config = OTHERS[name]
    other = other_checkpoint(folder / name, config)
    ours = AutoModelForCausalLM.from_pretrained(convert(folder / name, folder / f"{name}-new", family=family)).eval()
    ids = torch.randint(3, 160, (2, 40))
    wanted = other(ids).logits
    return ((ours(ids).logits - wanted).abs().max() / wanted.abs().max()).item()


@torch.no_grad()
def tower_difference(name: str) -> float:
    visual = tiny_tower_model(name).model.visual
    pixels = torch.randn(2, 3, 32, 32)
    own = {"pixel_values": pixels}
    if name == "siglip2":  # it takes patches, channels last
        patches = pixels.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 4, 5, 1).reshape(2, 16, -1)
        shapes, mask = torch.tensor([[4, 4]] * 2), torch.ones(2, 16, dtype=torch.long)
        own = {"pixel_values": patches, "spatial_shapes": shapes, "pixel_attention_mask": mask}
    wanted = visual.tower(**own).last_hidden_state[:, -16:].flatten(0, 1)
    given = visual(rows_of(pixels, 1), torch.tensor([[1, 4, 4]] * 2)).last_hidden_state
    return (given - wanted).abs().max().item()


def measure(folder: Path) -> list[tuple[str, str, float]]:
    """Rows of the table: where from, what into, the largest difference."""
    rows = []
    for name in (*V2, *VL_TEXT, *VL_FULL):
        kind = meta(name)["class"]
        model = AUTO[kind].from_pretrained(FIXTURES / name).eval()
        rows.append((f"`{name}`", f"`{kind}`", max(largest_difference(model, *case) for case in cases([name]))))
    for name in OTHERS:
        rows.append((f"{name} (relative)", "`ArlowForCausalLM`", family_difference(name, folder)))
    for name in ENCODERS:
        tower, stored = ArlowVLVisionModel.from_pretrained(FIXTURES / name), load_file(FIXTURES / name / FILE)
        differences = [(value - stored[key]).abs().max().item() for key, value in tower.state_dict().items()]
        assert len(differences) == len(stored)
        rows.append((f"`{name}` (tensors)", "`ArlowVLVisionModel`", max(differences)))
    for name in TOWERS:
        rows.append((f"{name} (features)", "`ArlowTower`", tower_difference(name)))
    return rows


@needs_fixtures
def test_table(tmp_path: Path) -> None:
    """Every difference is below 1e-4, and the page has a row for each."""
    rows = measure(tmp_path)
    for source, _, difference in rows:
        assert difference < LIMIT, source
    before, _, _ = PAGE.read_text().partition(MARK)
    if os.environ.get("ARLOW_UPDATE_DOCS"):
        machine = f"{platform.machine()}, Python {platform.python_version()}, torch {version('torch')}"
        lines = [f"| {source} | {kind} | {difference:.0e} |" for source, kind, difference in rows]
        command = "`ARLOW_UPDATE_DOCS=1 pytest tests/test_checkpoint_table.py`"
        table = ["| From | Into | Largest difference |", "| --- | --- | --- |", *lines]
        note = f"\nMeasured on {machine}, Transformers {version('transformers')}, with {command}.\n"
        PAGE.write_text(before + MARK + "\n" + "\n".join(table) + "\n" + note)
    shown = PAGE.read_text().partition(MARK)[2]
    for source, kind, _ in rows:
        assert f"| {source} | {kind} |" in shown, "run this test with ARLOW_UPDATE_DOCS=1"
