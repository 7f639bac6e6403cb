"""Draws the sample media of `arlow demo` into src/arlow/demo_media: questions of the test split, one of every kind."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

from arlow.data.sample import Picture, Sample
from arlow.data.samples import MAKERS


FOLDER = Path(__file__).parents[2] / "src" / "arlow" / "demo_media"
SEED = 2027
WANTED = {  # task: types of question
    "picture": ["shape", "colour", "count", "larger", "position"],
    "digit": ["digit"],
    "clip": ["video_direction", "video_changes"],
    "two_images": ["same_different"],
    "image_and_clip": ["in_common"],
    "text": ["text_sum", "text_backwards"],
}


def main() -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
    for name in ("images", "videos"):
        (FOLDER / name).mkdir(parents=True)
    rows = []
    for task, kinds in WANTED.items():
        for kind in kinds:
            sample = first(task, kind)
            media = []
            for number, item in enumerate(sample.media):
                if isinstance(item, Picture) and len(rows) % 2:  # every other picture is a PNG
                    item = replace(item, quality=None)
                stem = kind if len(sample.media) == 1 else f"{kind}-{number + 1}"
                media.append(item.save(FOLDER, stem)["path"])
            turn = sample.turns[0]
            rows.append({"media": media, "question": turn.question, "answer": turn.answer})
    text = json.dumps(rows, indent=2, ensure_ascii=False)
    (FOLDER / "questions.json").write_text(text + "\n", encoding="utf-8")


def first(task: str, kind: str) -> Sample:
    """The first sample of the test split whose question is of this kind."""
    rng = random.Random(f"demo {SEED} {kind}")
    while True:
        sample = MAKERS[task](rng, "test", 1)
        if sample.turns[0].type == kind:
            return sample


if __name__ == "__main__":
    main()
