"""Answers of the synthetic data against what an independent reader sees in the pixels and in the encoded files."""

from __future__ import annotations

import itertools
import random
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from shapes_reader import (
    Seen,
    answer,
    colour_word,
    compared,
    is_at,
    looked_over,
    place_word,
    read_picture,
    size_word,
    the_one,
)

from arlow.data import make_sample, samples, scenes
from arlow.data.digits import digit_mask, load_scans, scans_of
from arlow.data.questions import Turn
from arlow.data.sample import Clip, Picture, Sample
from arlow.data.sheets import draw_sheet
from arlow.media import load_picture
from arlow.video_reader import open_video


PICTURE_TYPES = {"shape", "colour", "count", "larger", "position", "side", "position_yes_no", "exists", "absent"}
CLUES = {"place": place_word, "size": size_word}  # asked in training only
STEPS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Filled shapes on plain backgrounds, no frame, noise or blur, 200 pixels: what the reader needs."""
    drawn = scenes.ground_for

    def plain(*args, **kwargs) -> scenes.Ground:
        return scenes.Ground((drawn(*args, **kwargs).corners[0],) * 4)

    for module in ("scenes", "clips"):
        monkeypatch.setattr(f"arlow.data.{module}.ground_for", plain)
        monkeypatch.setattr(f"arlow.data.{module}.draw_frame", lambda *args: None)
        monkeypatch.setattr(f"arlow.data.{module}.finish", lambda rng, canvas: np.asarray(canvas))
    monkeypatch.setattr(scenes, "draw_look", lambda *args: {})
    monkeypatch.setattr("arlow.data.clips.film_noise", lambda rng, frames: frames)
    for module in ("sample", "samples"):
        monkeypatch.setattr(f"arlow.data.{module}.side_of", lambda *args, **kwargs: 200)
    monkeypatch.setattr("arlow.data.clips.side_of", lambda *args, **kwargs: 128)


def pixels_of(item: Picture | Clip) -> np.ndarray:
    assert isinstance(item, Picture)
    return item.pixels


def decoded(folder: Path, clip: Picture | Clip) -> list[np.ndarray]:
    """All frames of the clip after encoding."""
    assert isinstance(clip, Clip)
    (folder / "videos").mkdir(exist_ok=True)
    video = open_video(folder / clip.save(folder, "clip")["path"])
    return list(video.frames(range(video.facts.total_frames)))


@pytest.mark.parametrize("split", ["train", "test", "unseen"])
def test_picture_answers_are_what_the_pixels_show(clean: None, split: str) -> None:
    """Every answer about a picture equals the one an independent reader finds, also for unseen pairs."""
    asked: Counter[str] = Counter()
    for seed in range(200 if split == "train" else 300):
        sample = make_sample("picture", split=split, seed=seed)
        pixels = pixels_of(sample.media[0])
        seen, shape = read_picture(pixels), pixels.shape[:2]
        pairs = {(one.shape, one.colour) for one in seen}
        assert bool(pairs & scenes.UNSEEN_PAIRS) == (split == "unseen"), seed
        for turn in sample.turns:
            if turn.type in PICTURE_TYPES:
                asked[turn.type] += 1
                assert answer(turn.question, seen) == turn.answer, (seed, turn, seen)
                check_working(turn, seen, *shape)
            elif turn.type in CLUES:
                asked[turn.type] += 1
                assert CLUES[turn.type](the_one(turn.question.lower(), seen), *shape) == turn.answer, (
                    seed,
                    turn,
                    seen,
                )
    assert set(asked) == (PICTURE_TYPES | {*CLUES} if split == "train" else PICTURE_TYPES)
    assert min(asked.values()) >= 20


def check_working(turn: Turn, seen: list[Seen], *size: int) -> None:
    """What stands before an answer is where it says, is all of the picture where all is gone over, and settles it."""
    if turn.type == "larger":
        assert not turn.working, turn
    elif turn.type in ("side", "position_yes_no"):
        *scans, places = turn.working.split("; ")
        assert [found_in(scan, turn, seen, *size).split(" ", 2)[2] for scan in scans] == places.split(", "), turn
    elif turn.type == "position" or turn.answer == "nothing":
        scan, _, others = turn.working.partition("; ")
        words = [part.split() for part in others.split(", ") if part]
        seat = found_in(scan, turn, seen, *size)
        parts = [seat, *(" ".join([*line[-3:-1], *line[:-3]]) for line in words)]
        there = [f"the {line[-3]} {line[-2]}" for line in words if line[-1] != "other"]
        assert there == ([] if turn.answer == "nothing" else [turn.answer]), turn
        (side,) = re.findall(r"\b(left|right|above|over|below|under)\b", turn.question.lower())
        side = {"over": "above", "under": "below"}.get(side, side)
        assert {line[-1] for line in words} <= {"other", side}, turn
        assert is_all_of(parts, seen, *size, first=1), (turn, seen)
    else:
        found = looked_over(turn.working, turn.question)
        parts = [part for part, _ in found]
        assert is_all_of(parts, seen, *size), (turn, seen)
        wanted = [part.split()[:2] for part, verdict in found if verdict is not False]
        if turn.type in ("shape", "colour"):
            assert [pair[turn.type == "shape"] for pair in wanted] == [turn.answer], turn
        else:
            told = {"count": str(len(wanted)), "exists": "yes" if wanted else "no"}
            assert turn.answer == told[turn.type] if turn.type in told else not wanted, turn


def found_in(scan: str, turn: Turn, seen: list[Seen], *size: int) -> str:
    """The shape that a question names, "red circle top left", at the end of what is gone over to find it."""
    told = looked_over(scan, turn.question)
    assert [verdict for _, verdict in told] == [False] * (len(told) - 1) + [True], turn
    assert is_all_of([part for part, _ in told], seen, *size, whole=False), (turn, seen)
    return told[-1][0]


def is_all_of(parts: list[str], seen: list[Seen], *size: int, first: int = 0, whole: bool = True) -> bool:
    """Whether "red circle top left", ... name all that is seen (not `whole`: some of it), once each and, from the part
    `first`, in reading order: by thirds of the height, each from left to right."""
    rows = [0 if " top" in part else 2 if " bottom" in part else 1 for part in parts]
    return (len(parts) == len(seen) or not whole) and any(
        all(is_at(part, [one], *size) for part, one in zip(parts, order, strict=True))
        and all(
            (row, one.x) < (then, two.x)
            for (row, one), (then, two) in itertools.pairwise([*zip(rows, order, strict=True)][first:])
        )
        for order in itertools.permutations(seen, len(parts))
    )


@pytest.mark.parametrize(("rows", "columns"), [(2, 3), (1, 1)])
def test_sheets_are_read_row_by_row(clean: None, rows: int, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every word of the answer names the shape in its place of the grid."""
    monkeypatch.setattr("arlow.data.sheets.finish", lambda rng, canvas: np.asarray(canvas))
    monkeypatch.setattr("arlow.data.sheets.LEAST_TILE", 120)
    shapes, count = 0, rows * columns
    for seed in range(120 // count):
        pixels, answer = draw_sheet(random.Random(seed), "train", grids=((rows, columns),))
        tiles = pixels.reshape(rows, 120, columns, 120, 3).transpose(0, 2, 1, 3, 4).reshape(count, 120, 120, 3)
        words = re.split("[,;] ", answer)
        assert len(words) == count and answer.count(";") == rows - 1
        for tile, word in zip(tiles, words, strict=True):
            if not word.isdigit():
                (seen,) = read_picture(tile)
                assert f"{seen.colour} {seen.shape}" == word
                shapes += 1
    assert shapes > 40


def test_larger_and_beside_leave_no_doubt(clean: None) -> None:
    """What is called larger covers at least 1.4 times as many pixels."""
    for seed in range(200):
        sample = make_sample("picture", split="test", seed=seed)
        for turn in sample.turns:
            if turn.type == "larger":
                areas = [one.area for one in read_picture(pixels_of(sample.media[0])) if one_of(turn.question, one)]
                assert max(areas) >= 1.4 * min(areas), (seed, turn)


def one_of(question: str, one: Seen) -> bool:
    names = (f"the {one.colour} {one.shape}", f"the {one.shape}", f"the {one.colour} shape")
    return any(name in question.lower() for name in names)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**40), split=st.sampled_from(["train", "validation", "test", "unseen"]))
def test_shapes_lie_apart_inside_and_stand_out(seed: int, split: str) -> None:
    """No two shapes touch, none leaves the picture, each differs clearly from every background colour."""
    rng = random.Random(seed)
    scene = samples.draw_scene_of(rng, split)
    for one, two in itertools.combinations(scene.things, 2):
        assert np.hypot(one.x - two.x, one.y - two.y) > one.radius + two.radius
    for thing in scene.things:
        assert thing.radius <= min(thing.x, thing.y, scene.width - thing.x, scene.height - thing.y)
        assert thing.radius >= scenes.MIN_RADIUS
        for corner in scene.ground.corners:
            assert scenes.contrast(thing.rgb, corner) > 120
            assert thing.colour != "white" or np.mean(corner) < 100


def test_colours_keep_to_their_ranges() -> None:
    """No drawn colour can be taken for another: the reader's nearest hue is the name."""
    for colour in scenes.COLOURS:
        rng = random.Random(colour)
        assert {colour_word(np.array(scenes.colour_value(rng, colour))) for _ in range(500)} == {colour}


def test_two_pictures_differ_as_the_answer_says(clean: None) -> None:
    """Same or different, and what changed, measured in both pictures."""
    answers: Counter[str] = Counter()
    for seed in range(160):
        sample = make_sample("two_images", split="test", seed=seed)
        first, second = (read_picture(pixels_of(item)) for item in sample.media)
        check_clues(make_sample("two_images", split="train", seed=seed))
        gone = unmatched(first, second), unmatched(second, first)
        turn = sample.turns[0]
        answers[turn.answer] += 1
        if turn.type == "same_different":
            assert turn.answer == ("different" if any(gone) else "same"), seed
        elif turn.answer == "number":
            assert abs(len(first) - len(second)) == 1, seed
        else:
            assert len(gone[0]) == len(gone[1]) == 1, (seed, turn, gone)
            (one,), (two,) = gone
            moved = np.hypot(one.x - two.x, one.y - two.y) > 0.5 * one.reach
            found = {"colour": one.colour != two.colour, "shape": one.shape != two.shape, "position": moved}
            # Of a triangle the centre of the pixels is not the centre of the circle around it.
            assert found[turn.answer], (seed, turn, gone)
            assert sum(found[kind] for kind in ("colour", "shape")) == (turn.answer != "position"), (seed, turn)
    assert len(answers) == 6


def check_clues(sample: Sample) -> None:
    """What training asks on the way: what is in each picture, how many, and which shape it was that changed."""
    first, second = (read_picture(pixels_of(item)) for item in sample.media)
    sizes = [pixels_of(item).shape[:2] for item in sample.media]
    for turn in sample.turns:
        words = turn.question.lower()
        seen = first if "first" in words else second
        shape = sizes[0 if "first" in words else 1]
        if turn.type == "inventory":
            parts = [part for part, _ in looked_over(turn.answer, turn.question)]
            assert is_all_of(parts, seen, *shape), turn
            names = sorted(" ".join(part.split()[:2]) for part in parts)
            assert names == sorted(f"{one.colour} {one.shape}" for one in seen), turn
        elif turn.type == "count":
            assert turn.answer == str(len(seen)), turn
            check_working(turn, seen, *shape)
        elif turn.type in ("same_different", "what_changed"):
            befores, pairs = compared(turn.working)
            for parts, side, size in zip((befores, [now for now, _ in pairs]), (first, second), sizes, strict=True):
                assert is_all_of(parts, side, *size), turn
        elif turn.type == "place_in":
            assert turn.answer == place_word(the_one(words, seen), *shape), turn
        elif turn.type in ("which_changed", "which_is_new"):
            gone = unmatched(first, second) or unmatched(second, first)
            assert [f"the {one.colour} {one.shape}" for one in gone] == [turn.answer], turn


def unmatched(first: list[Seen], second: list[Seen]) -> list[Seen]:
    """What of `first` has no like in `second`, in shape, colour and place."""
    return [
        one
        for one in first
        if not any(
            (one.shape, one.colour) == (two.shape, two.colour) and np.hypot(one.x - two.x, one.y - two.y) < 8
            for two in second
        )
    ]


def test_clips_do_what_the_answers_say(clean: None, tmp_path: Path) -> None:
    """Direction, colour, growth, shape and number of colour changes, measured in the decoded MP4."""
    asked: Counter[str] = Counter()
    for seed in range(50):
        sample = make_sample("clip", split="train", seed=seed)
        if sample.turns[0].type in ("video_digit", "video_digits"):
            continue
        every = decoded(tmp_path, sample.media[0])
        frames, shape = [read_picture(frame) for frame in (*every[:-1:2], every[-1])], every[0].shape[:2]
        assert all(len(seen) == 1 for seen in frames), seed
        path = [seen[0] for seen in frames]
        colours = [colour for colour, _ in itertools.groupby(one.colour for one in path)]
        way = path[-1].x - path[0].x, path[-1].y - path[0].y
        for turn in sample.turns:
            asked[turn.type] += 1
            if turn.type == "video_direction":
                along, off = np.dot(way, STEPS[turn.answer]), abs(np.dot(way[::-1], STEPS[turn.answer]))
                assert along > 25 and off < 0.25 * along, (seed, turn, way)
            elif turn.type == "absent":
                asked_way = re.search("way|direction|where", turn.question.lower())
                assert turn.answer == ("it does not move" if asked_way else "neither")
                if asked_way:
                    assert np.hypot(*way) < 3, (seed, turn, way)
                else:
                    assert 0.9 < path[-1].area / path[0].area < 1.1, (seed, turn)
            elif turn.type == "video_colour":
                assert colours == [turn.answer], (seed, turn)
            elif turn.type == "video_shape":
                assert Counter(one.shape for one in path).most_common(1)[0][0] == turn.answer, (seed, turn)
            elif turn.type == "video_colours":
                assert colours == turn.answer.split(", then "), (seed, turn)
            elif turn.type == "video_changes":
                assert len(colours) - 1 == int(turn.answer), (seed, turn, colours)
                looks = [every[round(look * (len(every) - 1) / 7)] for look in range(8)]
                seen = " ".join(read_picture(frame)[0].colour for frame in looks)
                assert turn.working == f"{seen}; {', '.join(colours)}", (seed, turn)
            elif turn.type in ("video_start", "video_end"):
                one = path[0 if turn.type == "video_start" else -1]
                assert turn.answer == place_word(one, *shape), (seed, turn)
            elif turn.type in ("video_size_start", "video_size_end"):
                one = path[0 if turn.type == "video_size_start" else -1]
                assert turn.answer == size_word(one, *shape), (seed, turn)
            else:
                assert turn.type == "video_size"
                ratio = path[-1].area / path[0].area
                assert ratio > 2 if turn.answer == "grows" else ratio < 0.5, (seed, turn, ratio)
    assert min(asked.values()) >= 3 and len(asked) == 11


def test_picture_and_clip_share_what_the_answer_says(clean: None, tmp_path: Path) -> None:
    """What they have in common, measured in both."""
    answers: Counter[str] = Counter()
    for seed in range(40):
        sample = make_sample("image_and_clip", split="test", seed=seed)
        clip = next(item for item in sample.media if isinstance(item, Clip))
        picture = next(item for item in sample.media if isinstance(item, Picture))
        (one,) = read_picture(picture.pixels)
        (two,) = read_picture(decoded(tmp_path, clip)[0])
        same = one.colour == two.colour, one.shape == two.shape
        found = {(True, True): "both", (True, False): "colour", (False, True): "shape", (False, False): "nothing"}
        first, second = (one, two) if sample.media[0] is picture else (two, one)
        colour, shape = ("same" if alike else "other" for alike in same)
        working = f"colour {first.colour} {second.colour} {colour}, shape {first.shape} {second.shape} {shape}"
        assert sample.turns[0].reply == f"{working}: {found[same]}", (seed, one, two)
        answers[found[same]] += 1
    assert len(answers) == 4


def test_what_is_asked_of_a_picture_beside_a_clip(clean: None) -> None:
    """Its shape and its colour, with what is seen before the answer, as of a picture by itself."""
    asked: Counter[str] = Counter()
    for seed in range(20):
        sample = make_sample("image_and_clip", split="train", seed=seed)
        pixels = next(item for item in sample.media if isinstance(item, Picture)).pixels
        seen = read_picture(pixels)
        for turn in sample.turns:
            if turn.type in ("shape", "colour"):
                assert turn.answer == getattr(seen[0], turn.type), (seed, turn)
                check_working(turn, seen, *pixels.shape[:2])
                asked[turn.type] += 1
    assert min(asked["shape"], asked["colour"]) > 5


def test_digit_clips_show_two_or_three_stills(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A clip of digits is two or three stills in turn, each seen for at least half a second after encoding."""
    monkeypatch.setattr("arlow.data.clips.film_noise", lambda rng, frames: frames)
    seeds = [seed for seed in range(60) if make_sample("clip", split="test", seed=seed).turns[0].type == "video_digit"]
    assert seeds
    for seed in seeds:
        clip = make_sample("clip", split="test", seed=seed).media[0]
        assert isinstance(clip, Clip)
        cuts = np.flatnonzero(np.abs(np.diff(clip.frames.astype(int), axis=0)).max(axis=(1, 2, 3))) + 1
        lengths = np.diff([0, *cuts, len(clip.frames)]) / clip.fps
        assert len(lengths) in (2, 3) and lengths.min() >= 0.5, seed
        assert len(decoded(tmp_path, clip)) == len(clip.frames)


def test_digits_on_a_picture_read_like_their_scans() -> None:
    """A drawn digit, reduced to 8 x 8, is nearest to scans of its own class: drawing does not spoil them."""
    scans, labels = load_scans()
    train = [index for indices in scans_of("train").values() for index in indices]
    rng, right = random.Random(0), 0
    for number in range(200):
        mask = digit_mask(rng, number % 10, split="test", side=100)
        box = mask.getbbox()
        assert box is not None
        small = np.asarray(mask.crop(box).resize((6, 8), Image.Resampling.BOX)) / 255  # scans fill 8 rows, 6 columns
        nearest = min(train, key=lambda index: float(np.square(scans[index][:, 1:7] - small).sum()))
        right += labels[nearest] == number % 10
    assert right > 150


def test_saved_media_open_through_the_border(tmp_path: Path) -> None:
    """JPEG and PNG pictures and MP4 clips open through Arlow's own readers, of the size and length drawn."""
    (tmp_path / "images").mkdir()
    for seed in range(12):
        item = make_sample("picture", split="train", seed=seed).media[0]
        assert isinstance(item, Picture)
        loaded = load_picture(tmp_path / item.save(tmp_path, str(seed))["path"])
        worst = np.abs(loaded.pixels.astype(int) - item.pixels).mean()
        assert worst == 0 if item.quality is None else worst < 12
    clip = make_sample("clip", split="train", seed=0).media[0]
    frames = decoded(tmp_path, clip)
    assert isinstance(clip, Clip)
    assert np.abs(np.stack(frames).astype(int) - clip.frames).mean() < 12


def test_a_chart_s_lines_keep_off_the_shapes() -> None:
    """Frames, axes and ticks lie outside every shape, and the shapes keep their distance from them."""
    rng, framed = random.Random(0), 0
    for _ in range(300):
        scene = samples.draw_scene_of(rng, "train")
        if scene.ground.frame is None:
            continue
        framed += 1
        for thing in scene.things:
            nearest = min(thing.x, thing.y, scene.width - thing.x, scene.height - thing.y) - thing.radius
            assert scene.ground.frame.inset <= 0.5 * nearest
    assert 10 < framed < 60


def test_every_kind_of_corner_keeps_its_name() -> None:
    """Squares have equal sides (rounded or not), stars go in and out, triangles have no corner under 25 degrees; all
    lie within the unit circle and reach it nearly."""
    rng = random.Random(1)
    for number in range(800):
        shape = scenes.SHAPES[number % 4]
        points = scenes.corners(rng, shape)
        reach = np.hypot(*points.T)
        assert 0.8 < reach.max() < 1.0001
        if shape == "square":
            sides = [np.hypot(*(points[len(points) * one // 4] - points[len(points) * (one + 1) // 4 % len(points)]))
                     for one in range(4)]  # fmt: skip
            assert max(sides) <= 1.1 * min(sides)
        elif shape == "star":
            assert len(points) in (8, 10, 12) and reach[1::2].max() < 0.62 * reach[::2].max()
        elif shape == "triangle":
            edges = np.roll(points, -1, axis=0) - points
            for one, two in zip(edges, -np.roll(edges, 1, axis=0), strict=True):
                cosine = one @ two / np.hypot(*one) / np.hypot(*two)
                assert np.degrees(np.arccos(cosine)) > 25


def test_outlines_and_unfilled_shapes_keep_the_size_of_the_shape() -> None:
    """Whatever the look, the same pixels differ from the ground at the shape's edge; an unfilled one shows the ground
    in its middle."""
    square = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) / np.sqrt(2)
    looks = [{}, {"outline": (0, 0, 0), "line": 0.15}, {"hollow": True, "line": 0.2}, {"shade": 0.8}, {"sharp": True}]
    for look in looks:
        canvas = Image.new("RGB", (100, 100), (200, 200, 200))
        scenes.paste_thing(canvas, scenes.Thing("square", "red", 0.5, 0.5, 0.4, (220, 0, 0), square, **look), 100)
        pixels = np.asarray(canvas).astype(int)
        rows, columns = np.nonzero(np.abs(pixels - 200).max(axis=2) > 90)
        assert [*map(int, (rows.min(), rows.max(), columns.min(), columns.max()))] == pytest.approx(
            [22, 77] * 2, abs=1
        )
        assert (pixels[50, 50] == 200).all() == ("hollow" in look), look
