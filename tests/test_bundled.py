"""The model that comes with the package: it loads offline, answers, fits into its size, and reads foreign pictures."""

from __future__ import annotations

import io
import json
import random
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

import arlow
from arlow import demo
from arlow.bundled import ANSWER_AFTER
from arlow.evaluation.scores import final_answer, is_right


MOST_BYTES = 16_000_000
# Colours as matplotlib's users name them, and what the model should call them.
NAMED = {
    "red": "red", "forestgreen": "green", "blue": "blue", "gold": "yellow", "black": "black", "darkorange": "orange",
    "purple": "purple", "crimson": "red", "green": "green", "royalblue": "blue", "yellow": "yellow",
    "tab:red": "red", "tab:orange": "orange", "white": "white",
}  # fmt: skip
BRIGHT = ["red", "gold", "darkorange", "yellow", "white", "tab:red", "tab:orange"]  # on dark ground
INKS = sorted(NAMED.keys() - {"white", "yellow"})  # on light ground


@pytest.fixture(scope="module")
def bundled():
    folder = arlow.bundled_checkpoint()
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoProcessor.from_pretrained(folder)


def test_size_and_card(bundled):
    """Weights, tokenizer, processors and card fit into 16 MB; the card is of this model."""
    folder = arlow.bundled_checkpoint()
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= MOST_BYTES
    card = (folder / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert f"{sum(weight.numel() for weight in bundled[0].parameters()):,} parameters" in card


def test_generation_stops_by_itself(bundled):
    """An answer ends with the end-of-turn token, long before the limit."""
    model, processor = bundled
    conversation = [[{"role": "user", "content": "What is 3 + 4?"}]]
    inputs = processor.apply_chat_template(
        conversation, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    output = model.generate(**inputs, max_new_tokens=64, do_sample=False)
    assert output.shape[1] - inputs["input_ids"].shape[1] < 20


def test_demo(capsys, tmp_path):
    """The demo asks twelve questions, gets at least ten right, and its page holds every file."""
    page = tmp_path / "demo.html"
    assert demo.run(arlow.bundled_checkpoint(), page) == 0
    shown, text = capsys.readouterr().out, page.read_text(encoding="utf-8")
    questions = json.loads((demo.MEDIA / "questions.json").read_text(encoding="utf-8"))
    assert len(questions) == 12 and "tokens/s" in shown
    assert {Path(name).suffix for row in questions for name in row["media"]} == {".png", ".jpg", ".mp4"}
    assert all(row["question"] in shown and name in shown for row in questions for name in row["media"])
    assert shown.count("it read: ") >= 5  # and the answer is told apart from it
    assert all(": " not in line for line in re.findall("answer: (.*?)   expected", shown))
    assert text.count("data:image/") + text.count("data:video/mp4") == sum(len(row["media"]) for row in questions)


@dataclass(frozen=True)
class Drawn:
    """One shape of a picture by matplotlib: what it is, and its place and radius in units of a cell."""

    shape: str
    colour: str
    x: float
    y: float  # upwards
    radius: float


def foreign_picture(rng: random.Random) -> tuple[Image.Image, list[Drawn]]:
    """One to three shapes in a row or in a column, upright or turned, on light or dark ground."""
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import patches
    from matplotlib.figure import Figure
    from matplotlib.transforms import Affine2D

    count, is_column, is_dark = rng.randint(1, 3), rng.random() < 0.4, rng.random() < 0.3
    wide, high = (1, count) if is_column else (count, 1)
    figure = Figure(figsize=(rng.uniform(1.2, 1.6) * wide, rng.uniform(1.2, 1.6) * high), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, wide), ylim=(0, high), aspect="equal")
    axes.axis("off")
    figure.set_facecolor(rng.choice(["#202020", "black"] if is_dark else ["white", "whitesmoke", "lightgrey"]))
    things = []
    for place in range(count):
        kind, ink = rng.choice(["circle", "square", "triangle", "star"]), rng.choice(BRIGHT if is_dark else INKS)
        x, y, r = place + 0.5, 0.5 + rng.uniform(-0.1, 0.1), rng.uniform(0.2, 0.38)
        x, y = (y, x) if is_column else (x, y)
        if kind == "circle":
            patch = patches.Circle((x, y), r)
        elif kind == "square":
            patch = patches.Rectangle((x - 0.7 * r, y - 0.7 * r), 1.4 * r, 1.4 * r)
        elif kind == "triangle":
            patch = patches.RegularPolygon((x, y), 3, radius=r)
        else:
            angles = np.pi / 2 + np.arange(10) * np.pi / 5
            radii = np.where(np.arange(10) % 2, 0.4 * r, r)
            patch = patches.Polygon(np.stack((x + radii * np.cos(angles), y + radii * np.sin(angles)), axis=1))
        patch.set(facecolor=ink, edgecolor=rng.choice(["none", "none", "none", "black"]))
        turn = rng.choice([0, 0, rng.uniform(-15, 15)])
        patch.set_transform(Affine2D().rotate_deg_around(x, y, turn) + axes.transData)
        axes.add_patch(patch)
        things.append(Drawn(kind, NAMED[ink], x, y, r))
    data = io.BytesIO()
    figure.savefig(data, format="png", facecolor=figure.get_facecolor())
    return Image.open(data).convert("RGB"), things


def foreign_question(rng: random.Random, things: list[Drawn], kind: str) -> tuple[str, str] | None:
    """A question of this kind and its answer, where the picture allows one."""
    shapes, colours = [thing.shape for thing in things], [thing.colour for thing in things]
    one = rng.choice(things)
    pairs = [(thing.colour, thing.shape) for thing in things]
    if kind == "count":
        return "How many shapes are there?", str(len(things))
    if kind == "exists":
        asked = rng.choice(["circle", "square", "triangle", "star"])
        return f"Is there a {asked} in the picture?", "yes" if asked in shapes else "no"
    if kind == "shape" and colours.count(one.colour) == 1:
        return f"What shape is the {one.colour} thing?", one.shape
    if kind == "colour" and shapes.count(one.shape) == 1:
        return f"What colour is the {one.shape}?", one.colour
    if len(things) < 2 or len(set(pairs)) < len(pairs):
        return None
    first, second = things[:2]
    names = [f"the {thing.colour} {thing.shape}" for thing in (first, second)]
    if kind == "larger" and max(first.radius, second.radius) > 1.4 * min(first.radius, second.radius):
        return f"Which is larger, {names[0]} or {names[1]}?", names[first.radius < second.radius]
    if kind == "position" and len(things) == 2:
        side = "above" if second.x - first.x < 0.5 else "right of"
        return f"What is {side} {names[0]}?", names[1]
    return None


def test_pictures_by_another_program(bundled):
    """Pictures that matplotlib drew, never seen in training: at least 85 % of the answers are right, and of each kind
    of question at least 75 %."""
    model, processor = bundled
    rng, kinds, asked = random.Random(7), ("shape", "colour", "count", "exists", "larger", "position"), []
    while len(asked) < 240:
        picture, things = foreign_picture(rng)
        kind = kinds[len(asked) % len(kinds)]
        question = foreign_question(rng, things, kind)
        if question is not None:
            asked.append((kind, picture, *question))
    right = {kind: [] for kind in kinds}
    for start in range(0, len(asked), 40):
        part = asked[start : start + 40]
        conversations = [
            [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": question}]}]
            for _, picture, question, _ in part
        ]
        answers, _ = demo.ask(model, processor, conversations)
        for (kind, _, _, expected), answer in zip(part, answers, strict=True):
            right[kind].append(is_right(final_answer(answer, ANSWER_AFTER), [expected]))
    shares = {kind: np.mean(marks) for kind, marks in right.items()}
    assert np.mean([mark for marks in right.values() for mark in marks]) >= 0.85, shares
    assert min(shares.values()) >= 0.75, shares


@pytest.mark.slow
def test_lora_learns_a_word(bundled, tmp_path):
    """LoRA on eighty pictures, in under two minutes: squares are called "dax" now, the others as before."""
    from arlow.data.sample import picture_of
    from arlow.data.scenes import allowed_pairs, draw_scene
    from arlow.training import train

    rng = random.Random(3)

    def draw() -> tuple[Image.Image, str]:
        shape, colour = rng.choice(allowed_pairs("train"))
        return Image.fromarray(picture_of(rng, draw_scene(rng, [(shape, colour)])).pixels), shape

    def ask(model: Any, pictures: list[Image.Image]) -> list[str]:
        text = {"type": "text", "text": "What shape is this?"}
        turns = [[{"role": "user", "content": [{"type": "image", "image": each}, text]}] for each in pictures]
        return demo.ask(model, bundled[1], turns)[0]

    with (tmp_path / "daxes.jsonl").open("w", encoding="utf-8") as file:
        for number in range(80):
            picture, shape = draw()
            picture.save(tmp_path / f"{number}.png")
            content = [{"type": "image", "path": f"{number}.png"}, {"type": "text", "text": "What shape is this?"}]
            answer = {"role": "assistant", "content": "dax" if shape == "square" else shape}
            file.write(json.dumps({"messages": [{"role": "user", "content": content}, answer]}) + "\n")
    began = time.monotonic()
    folder = train(
        "finetune", model=arlow.bundled_checkpoint(), data=tmp_path / "daxes.jsonl", output_dir=tmp_path / "run",
        lora={"r": 8}, max_steps=40, batch_size=8, learning_rate=3e-3,
    )  # fmt: skip
    assert time.monotonic() - began < 120
    assert Path(folder, "adapter").is_dir()
    student = AutoModelForImageTextToText.from_pretrained(folder).eval()
    unseen = [draw() for _ in range(80)]
    pictures, shapes = [picture for picture, _ in unseen], [shape for _, shape in unseen]
    before, after = ask(bundled[0], pictures), ask(student, pictures)
    assert "dax" not in before
    wanted = ["dax" if shape == "square" else shape for shape in shapes]
    right = [answer == word for answer, word in zip(after, wanted, strict=True)]
    assert np.mean([mark for mark, word in zip(right, wanted, strict=True) if word == "dax"]) >= 0.9
    assert np.mean(right) >= 0.9
