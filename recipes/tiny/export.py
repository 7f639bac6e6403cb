"""The model of `make tiny` in bfloat16, with its processor: what the package carries.

Its weights are the mean of those before and after the last stage (arXiv 2203.05482): what that taught, without what
was lost for it.

usage: python recipes/tiny/export.py build/tiny/seed-0
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor


def main(run: Path) -> None:
    out = run / "arlow-tiny"
    load = AutoModelForImageTextToText.from_pretrained
    before, model = (load(run / stage, dtype=torch.float32) for stage in ("finetune", "sizes"))
    with torch.no_grad():
        for weight, old in zip(model.parameters(), before.parameters(), strict=True):
            weight.lerp_(old, 0.5)
    model.to(torch.bfloat16).save_pretrained(out)
    AutoProcessor.from_pretrained(run / "sizes").save_pretrained(out)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"wrote {out} ({size / 1e6:.1f} MB)")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
