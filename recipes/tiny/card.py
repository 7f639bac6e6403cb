"""The last step of `make tiny`: the model card, from the scores and times of the run.

usage: python -m recipes.tiny.card build/tiny/seed-0
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from transformers import AutoModelForImageTextToText

from arlow import ArlowImageProcessor, ArlowVLVisionModel
from arlow.data.sample import picture_of
from arlow.data.samples import picture_of_digits
from arlow.data.scenes import allowed_pairs, draw_scene
from arlow.evaluation.linear_probe import Probe, compare_with_random
from arlow.evaluation.report import versions
from arlow.evaluation.scores import wilson
from arlow.evaluation.vqa import ALL
from benchmarks.harness import machine


STEPS = {
    "data": "data, drawn from a seed",
    "text": "text pretraining",
    "vision-mae": "masked autoencoding",
    "align": "alignment on pictures of one thing",
    "sheets": "fine-tuning on sheets of little pictures, and pictures in words",
    "finetune": "fine-tuning on lists, captions and questions",
    "sizes": "more of that, and which is larger",
    "eval-test": "scoring on the test split, with controls",
    "eval-unseen": "scoring on unseen pairs, with controls",
}
HERE = Path(__file__).parent  # accuracies are kept there, seed-0.json beside seed-0.log: runs in build/ do not last
PROBES = ("shape", "colour", "digit")  # what a linear probe reads
PROBE_TRAIN, PROBE_TEST = 1500, 700  # pictures


def main(run: Path) -> None:
    out = run / "arlow-tiny"
    model = AutoModelForImageTextToText.from_pretrained(out)
    weights = out / "model.safetensors"
    scores = {split: json.loads((run / f"{split}.json").read_text(encoding="utf-8")) for split in ("test", "unseen")}
    questions = fingerprint(run)
    kept = {
        "test": questions,
        "accuracy": {kind: round(share, 1) for kind, share in accuracies(scores["test"]).items()},
    }
    (HERE / f"{run.name}.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    here = machine()
    facts = {
        "parameters": f"{sum(weight.numel() for weight in model.parameters()):,}",
        "megabytes": f"{weights.stat().st_size / 1e6:.1f}",
        "times": times(run),
        "machine": ", ".join(filter(None, [here.get("gpu"), f"{here['cores']} CPU cores ({here['cpu']})"])),
        "versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
        "test": score_table(scores["test"]),
        "unseen": score_table(scores["unseen"]),
        "weak": weak_types(scores["test"]),
        "probes": probe_table(run),
        "seeds": seeds_table(questions),
        "products": products(run),
    }
    template = (HERE / "MODEL_CARD.template.md").read_text(encoding="utf-8")
    (out / "MODEL_CARD.md").write_text(template.format(**facts), encoding="utf-8")
    print(f"wrote {out / 'MODEL_CARD.md'}")


def times(run: Path) -> str:
    """A row per step that was run here, in minutes."""
    rows, total = [], 0.0
    for name, what in STEPS.items():
        parts = (run.parent if name == "data" else run) / f"{name}.seconds"
        if parts.is_file():
            minutes = sum(int(part) for part in parts.read_text().split()) / 60
            total += minutes
            rows.append(f"| {what} | {minutes:.1f} |")
    return "\n".join([*rows, f"| together | {total:.1f} |"])


def products(run: Path) -> str:
    """The dtype of the matrix products in training, which `make tiny` chooses by the machine."""
    precision = yaml.safe_load((run / "sizes" / "recipe.yaml").read_text(encoding="utf-8"))["precision"]
    return {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}[precision]


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


def weak_types(result: dict[str, Any]) -> str:
    """The types of question that are answered right less than nine times in ten, the worst first."""
    weak = sorted((share, kind) for kind, share in accuracies(result).items() if share < 90 and kind != ALL)
    return ", ".join(f"{kind} ({share:.1f} %)" for share, kind in weak) or "none"


def accuracies(result: dict[str, Any]) -> dict[str, float]:
    """Per cent of right answers by type of question."""
    return {kind: 100 * line["accuracy"]["mean"] for kind, line in result["summary"].items()}


def fingerprint(run: Path) -> str:
    """Tells the questions of one draw of the test split from those of another."""
    return hashlib.sha256((run.parent / "data" / "test" / "data.jsonl").read_bytes()).hexdigest()[:16]


def seeds_table(test: str) -> str:
    """A row per type of question: accuracy under every seed that was asked the questions of this fingerprint."""
    runs = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in HERE.glob("seed-*.json")}
    names = sorted(
        (name for name, run in runs.items() if run["test"] == test), key=lambda name: int(name.removeprefix("seed-"))
    )
    rows = [f"| Type | {' | '.join(names)} |", f"| --- |{' --- |' * len(names)}"]
    for kind in runs[names[0]]["accuracy"]:
        cells = [f"{runs[name]['accuracy'][kind]:.1f}" for name in names]
        rows.append(f"| {kind} | {' | '.join(cells)} |")
    return "\n".join(rows)


def probe_table(run: Path) -> str:
    """What a linear classifier reads from the encoder after masked autoencoding, and from a random encoder."""
    tower = ArlowVLVisionModel.from_pretrained(run / "vision-mae" / "vision_encoder", dtype=torch.float32)
    processor = ArlowImageProcessor.from_pretrained(run / "vision-mae" / "image_processor")
    rows = []
    for kind in PROBES:
        # Fitted on the training split and read on the test split: they share no scan of a digit.
        found = [*pictures(kind, "train", PROBE_TRAIN), *pictures(kind, "test", PROBE_TEST)]
        images, labels = [image for image, _ in found], [label for _, label in found]
        probes: dict[str, Probe] = compare_with_random(tower, processor, images, labels, split=PROBE_TRAIN)
        cells = []
        for probe in (probes["trained"], probes["random"]):
            low, high = wilson(round(probe.accuracy * PROBE_TEST), PROBE_TEST)
            cells.append(f"{100 * probe.accuracy:.1f} ({100 * low:.1f} - {100 * high:.1f})")
        cells.append(f"{100 * probes['trained'].majority:.1f}")
        rows.append(f"| {kind} | {PROBE_TRAIN} / {PROBE_TEST} | {' | '.join(cells)} |")
    return "\n".join(rows)


def pictures(kind: str, split: str, count: int) -> Iterator[tuple[np.ndarray, str]]:
    """Pictures of one thing each, and what it is."""
    rng = random.Random(f"probe {kind} {split}")
    for _ in range(count):
        if kind == "digit":
            digit = rng.randrange(10)
            yield picture_of_digits(rng, [digit], split).pixels, str(digit)
        else:
            pair = rng.choice(allowed_pairs(split))
            yield picture_of(rng, draw_scene(rng, [pair])).pixels, pair[kind == "colour"]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
