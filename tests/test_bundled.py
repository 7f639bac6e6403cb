"""The model that comes with the package: it loads offline, answers, fits into its size, and reads foreign pictures."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

import arlow
from arlow import demo
from arlow.bundled import FOLDER
from arlow.evaluation.scores import normalise


MOST_BYTES = 16_000_000
# Colours as matplotlib's users name them, and what the model should call them.
NAMED = {
    "red": "red", "forestgreen": "green", "blue": "blue", "gold": "yellow", "black": "black", "darkorange": "orange",
    "purple": "purple", "crimson": "red", "green": "green", "royalblue": "blue", "yellow": "yellow",
}  # fmt: skip

pytestmark = pytest.mark.skipif(not (FOLDER / "config.json").is_file(), reason="the bundled model is not trained yet")


@pytest.fixture(scope="module")
def bundled():
    folder = arlow.bundled_checkpoint()
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoProcessor.from_pretrained(folder)


def test_size_and_card():
    """Weights, tokenizer, processors and card fit into 16 MB; the card is filled in."""
    folder = arlow.bundled_checkpoint()
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= MOST_BYTES
    card = (folder / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "Majority" in card and "{parameters}" not in card


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
    assert all(row["question"] in shown and name in shown for row in questions for name in row["media"])
    assert text.count("data:image/") + text.count("data:video/mp4") == sum(len(row["media"]) for row in questions)


def foreign_picture(rng: random.Random) -> tuple[Image.Image, list[tuple[str, str]]]:
    """One to three shapes drawn by matplotlib, left to right without overlap, and their (shape, colour)."""
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import patches
    from matplotlib.figure import Figure

    count = rng.randint(1, 3)
    figure = Figure(figsize=(rng.uniform(2.5, 4), rng.uniform(2, 3)), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, count), ylim=(-0.5, 0.5), aspect="equal")
    axes.axis("off")
    figure.set_facecolor(rng.choice(["white", "whitesmoke", "lightgrey"]))
    things = []
    for place in range(count):
        kind, colour = rng.choice(["circle", "square", "triangle", "star"]), rng.choice(sorted(NAMED))
        x, y, r = place + 0.5, rng.uniform(-0.1, 0.1), rng.uniform(0.25, 0.38)
        if kind == "circle":
            patch = patches.Circle((x, y), r)
        elif kind == "square":
            patch = patches.Rectangle((x - 0.8 * r, y - 0.8 * r), 1.6 * r, 1.6 * r)
        elif kind == "triangle":
            patch = patches.RegularPolygon((x, y), 3, radius=r)
        else:
            angles = np.pi / 2 + np.arange(10) * np.pi / 5
            radii = np.where(np.arange(10) % 2, 0.4 * r, r)
            patch = patches.Polygon(np.stack((x + radii * np.cos(angles), y + radii * np.sin(angles)), axis=1))
        patch.set(facecolor=colour, edgecolor="none")
        axes.add_patch(patch)
        things.append((kind, NAMED[colour]))
    data = io.BytesIO()
    figure.savefig(data, format="png", facecolor=figure.get_facecolor())
    return Image.open(data).convert("RGB"), things


def foreign_questions(count: int) -> list[tuple[Image.Image, str, str]]:
    """Pictures by matplotlib with a question and its answer."""
    rng, found = random.Random(7), []
    while len(found) < count:
        picture, things = foreign_picture(rng)
        shapes, colours = [shape for shape, _ in things], [colour for _, colour in things]
        kind = rng.choice(["shape", "colour", "count", "exists"])
        chosen = rng.randrange(len(things))
        if kind == "count":
            found.append((picture, "How many shapes are there?", str(len(things))))
        elif kind == "exists":
            asked = rng.choice(["circle", "square", "triangle", "star"])
            found.append((picture, f"Is there a {asked} in the picture?", "yes" if asked in shapes else "no"))
        elif kind == "shape" and colours.count(colours[chosen]) == 1:
            found.append((picture, f"What shape is the {colours[chosen]} thing?", shapes[chosen]))
        elif kind == "colour" and shapes.count(shapes[chosen]) == 1:
            found.append((picture, f"What colour is the {shapes[chosen]}?", colours[chosen]))
    return found


def test_pictures_by_another_program(bundled):
    """Pictures that matplotlib drew, never seen in training: at least 85 % of the answers are right."""
    model, processor = bundled
    asked = foreign_questions(120)
    right = 0
    for start in range(0, len(asked), 40):
        part = asked[start : start + 40]
        conversations = [
            [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": question}]}]
            for picture, question, _ in part
        ]
        answers, _ = demo.ask(model, processor, conversations)
        right += sum(normalise(found) == answer for found, (_, _, answer) in zip(answers, part, strict=True))
    assert right / len(asked) >= 0.85


@pytest.mark.slow
def test_lora_learns_a_word(bundled, tmp_path):
    """LoRA on forty pictures of squares, in under two minutes: squares are now called "blip", also unseen ones."""
    from arlow.data.samples import picture_of
    from arlow.data.scenes import allowed_pairs, draw_scene
    from arlow.training import train

    rng = random.Random(3)
    pairs = [pair for pair in allowed_pairs("train") if pair[0] == "square"]
    with (tmp_path / "blips.jsonl").open("w", encoding="utf-8") as file:
        for number in range(40):
            picture = picture_of(rng, draw_scene(rng, [rng.choice(pairs)]))
            Image.fromarray(picture.pixels).save(tmp_path / f"{number}.png")
            content = [{"type": "image", "path": f"{number}.png"}, {"type": "text", "text": "What shape is this?"}]
            answer = {"role": "assistant", "content": "blip"}
            file.write(json.dumps({"messages": [{"role": "user", "content": content}, answer]}) + "\n")
    folder = train(
        "finetune", model=arlow.bundled_checkpoint(), data=tmp_path / "blips.jsonl", output_dir=tmp_path / "run",
        lora={"r": 8}, max_steps=30, batch_size=8, learning_rate=3e-3,
    )  # fmt: skip
    student = AutoModelForImageTextToText.from_pretrained(folder).eval()
    _, processor = bundled
    unseen = [Image.fromarray(picture_of(rng, draw_scene(rng, [rng.choice(pairs)])).pixels) for _ in range(20)]
    conversations = [
        [
            {
                "role": "user",
                "content": [{"type": "image", "image": each}, {"type": "text", "text": "What shape is this?"}],
            }
        ]
        for each in unseen
    ]
    answers, _ = demo.ask(student, processor, conversations)
    assert answers.count("blip") >= 18
    assert Path(folder, "adapter").is_dir()
