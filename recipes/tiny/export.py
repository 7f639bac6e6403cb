"""The fine-tuned model of `make tiny` in bfloat16, with its processor: what the package carries.

usage: python recipes/tiny/export.py build/tiny/seed-0
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor


def main(run: Path) -> None:
    out = run / "arlow-tiny"
    model = AutoModelForImageTextToText.from_pretrained(run / "finetune", dtype=torch.float32)
    model.to(torch.bfloat16).save_pretrained(out)
    AutoProcessor.from_pretrained(run / "finetune").save_pretrained(out)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"wrote {out} ({size / 1e6:.1f} MB)")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
