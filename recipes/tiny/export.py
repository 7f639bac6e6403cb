"""The last step of `make tiny`: the fine-tuned model in bfloat16 with its processor, and the model card.

usage: python recipes/tiny/export.py build/tiny/seed-0
"""

from __future__ import annotations

import json
import os
import platform
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from arlow import ArlowImageProcessor, ArlowVLVisionModel
from arlow.data.samples import picture_of, picture_of_digits
from arlow.data.scenes import allowed_pairs, draw_scene
from arlow.evaluation.linear_probe import Probe, compare_with_random
from arlow.evaluation.report import versions


STEPS = {
    "data": "data, drawn from a seed",
    "text": "text pretraining",
    "vision-mae": "masked autoencoding",
    "align": "alignment on captions",
    "finetune": "fine-tuning on questions",
}
PROBES = ("shape", "colour", "digit")  # what a linear probe reads
PROBE_PICTURES = 1500


def main(run: Path) -> None:
    out = run / "arlow-tiny"
    model = AutoModelForImageTextToText.from_pretrained(run / "finetune", dtype=torch.float32)
    parameters = sum(weight.numel() for weight in model.parameters())
    model.to(torch.bfloat16).save_pretrained(out)
    AutoProcessor.from_pretrained(run / "finetune").save_pretrained(out)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    scores = {split: json.loads((run / f"{split}.json").read_text(encoding="utf-8")) for split in ("test", "unseen")}
    facts = {
        "parameters": f"{parameters:,}",
        "megabytes": f"{size / 1e6:.1f}",
        "times": times(run),
        "machine": f"{os.cpu_count()} CPU cores ({machine()})",
        "versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
        "test": score_table(scores["test"]),
        "unseen": score_table(scores["unseen"]),
        "probes": probe_table(run),
    }
    template = (Path(__file__).parent / "MODEL_CARD.template.md").read_text(encoding="utf-8")
    (out / "MODEL_CARD.md").write_text(template.format(**facts), encoding="utf-8")
    print(f"wrote {out} ({size / 1e6:.1f} MB)")


def machine() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def times(run: Path) -> str:
    """A row per step that was run here, in minutes."""
    rows, total = [], 0.0
    for name, what in STEPS.items():
        stamp = run / f"{name}.done"
        if stamp.is_file():
            minutes = int(stamp.read_text()) / 60
            total += minutes
            rows.append(f"| {what} | {minutes:.1f} |")
    return "\n".join([*rows, f"| together | {total:.1f} |"])


def score_table(result: dict[str, Any]) -> str:
    """A row per type of question: how many, accuracy with its interval, and the controls."""
    first = result["models"][0]["scores"]
    rows = []
    for kind, line in result["summary"].items():
        cells = [f"{100 * line['accuracy']['mean']:.1f}"]
        cells.append(f"{100 * first[kind]['low']:.1f} - {100 * first[kind]['high']:.1f}")
        for control in ("majority", "without", "shuffled"):
            spread = line.get(control)
            cells.append("-" if spread is None else f"{100 * spread['mean']:.1f}")
        rows.append(f"| {kind} | {line['n']} | {' | '.join(cells)} |")
    return "\n".join(rows)


def probe_table(run: Path) -> str:
    """What a linear classifier reads from the encoder after masked autoencoding, and from a random encoder."""
    tower = ArlowVLVisionModel.from_pretrained(run / "vision-mae" / "vision_encoder", dtype=torch.float32)
    processor = ArlowImageProcessor.from_pretrained(run / "vision-mae" / "image_processor")
    rows = []
    for kind in PROBES:
        found = list(pictures(kind))
        images, labels = [image for image, _ in found], [label for _, label in found]
        probes: dict[str, Probe] = compare_with_random(tower, processor, images, labels, split=0.7)
        trained, random = probes["trained"], probes["random"]
        cells = [f"{100 * value:.1f}" for value in (trained.accuracy, random.accuracy, trained.majority)]
        rows.append(f"| {kind} | {trained.train_pictures} / {trained.test_pictures} | {' | '.join(cells)} |")
    return "\n".join(rows)


def pictures(kind: str) -> Iterator[tuple[np.ndarray, str]]:
    """Pictures of one thing, drawn as the test split draws them, and what it is."""
    rng = random.Random(f"probe {kind}")
    for _ in range(PROBE_PICTURES):
        if kind == "digit":
            digit = rng.randrange(10)
            yield picture_of_digits(rng, [digit], "test").pixels, str(digit)
        else:
            pair = rng.choice(allowed_pairs("test"))
            scene = draw_scene(rng, [pair])
            yield picture_of(rng, scene).pixels, pair[kind == "colour"]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
