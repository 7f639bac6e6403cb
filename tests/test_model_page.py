"""The documentation page users know: every snippet runs as written, on stock Transformers, without `import arlow`.

Only names are replaced: a local directory for a checkpoint's name, local files for media paths.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
from small_checkpoint import draw_clip, draw_picture, save_checkpoint


PAGE = Path(__file__).parents[2] / "shared" / "documents" / "model-page.md"
# The page asks for up to 512 new tokens; a random model never stops by itself, and 16 prove the same.
SHORTER = re.compile(r"max_new_tokens=\d+")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page")
    save_checkpoint(path / "model")
    for name, color in (("image", "red"), ("image1", "green"), ("image2", "blue")):
        draw_picture(path / f"{name}.jpg", color=color)
    draw_clip(path / "video.mp4")
    return path


def snippets(folder: Path) -> dict[str, str]:
    """The page's Python snippets by their heading, with local names in them."""
    if not PAGE.is_file():
        pytest.skip(f"the model page is not here: {PAGE}")
    found: dict[str, str] = {}
    heading = ""
    for match in re.finditer(r"^#+ (?P<heading>[^\n]+)$|^```python\n(?P<code>.*?)^```", PAGE.read_text(), re.M | re.S):
        heading = match["heading"] or heading
        if match["code"]:
            found[heading] = found.get(heading, "") + localise(match["code"], folder)
    return found


def localise(code: str, folder: Path) -> str:
    code = re.sub(r'"your-arlow(-vlm)?-model"', repr(str(folder / "model")), code)
    code = re.sub(r'"/?path/to/([\w.]+)"', lambda path: repr(str(folder / path[1])), code)
    return SHORTER.sub("max_new_tokens=16", code)


def run(code: str, folder: Path) -> str:
    """Run as a user's own script, in an empty directory, with the installed package."""
    script = folder / "snippet.py"
    script.write_text(code)
    done = subprocess.run([sys.executable, str(script)], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_page_has_the_snippets_this_file_runs(folder: Path) -> None:
    """A new snippet on the page cannot go untested."""
    assert list(snippets(folder)) == [
        "Text-only Generation",
        "Single Image Inference",
        "Video Understanding",
        "Batch Mixed Media Inference",
        "Flash Attention 2",
        "Quantization",
    ]


def test_text_only(folder: Path) -> None:
    """The causal LM loads from a vision-language directory and prints prompt and continuation."""
    printed = run(snippets(folder)["Text-only Generation"], folder)
    assert printed.startswith("Explain the concept of large language models.")


def test_image_video_and_mixed_batch(folder: Path) -> None:
    """One image, one video and a mixed batch run one after the other, as the page reads from top to bottom."""
    found = snippets(folder)
    parts = ("Single Image Inference", "Video Understanding", "Batch Mixed Media Inference")
    check = """
assert inputs["pixel_values"].shape[0] and inputs["pixel_values_videos"].shape[0]
assert len(output_text) == 3 and output_ids.shape[1] > inputs.input_ids.shape[1]
"""
    printed = run("\n".join(found[part] for part in parts) + check, folder)
    assert printed.count("[") >= 3


def test_flash_attention(folder: Path) -> None:
    """Asking for flash attention loads everywhere; where it cannot run, SDPA does and the answers are the same."""
    found = snippets(folder)
    before = found["Single Image Inference"]
    check = """
again = model.generate(**inputs, max_new_tokens=16)
import torch
assert model.config._attn_implementation == "flash_attention_2"
if not torch.cuda.is_available():
    assert torch.equal(again, first), (again, first)
"""
    code = before + "\nfirst = model.generate(**inputs, max_new_tokens=16)\n" + found["Flash Attention 2"] + check
    run(code, folder)


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_quantization(folder: Path) -> None:
    """The 4-bit model of the page loads and generates."""
    found = snippets(folder)
    code = (
        found["Single Image Inference"] + found["Quantization"] + "\nprint(model.generate(**inputs, max_new_tokens=4))"
    )
    assert "tensor" in run(code, folder)
