"""The synthetic data as files and as samples: determinism, balance, what is held out, crashes, bad input."""

from __future__ import annotations

import calendar
import hashlib
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arlow import cli
from arlow.chat_template import check_conversation, media_of
from arlow.data import make_sample, pretraining_texts, shapes, write, write_dataset
from arlow.data.digits import scans_of
from arlow.data.sample import Clip, Picture, Sample
from arlow.data.samples import MAKERS, colours_over_time, draw_story_about
from arlow.data.scenes import ALL_PAIRS, COLOURS, SEEN_PAIRS, SHAPES, UNSEEN_PAIRS
from arlow.data.shapes import SPLITS
from arlow.data.text_questions import (
    comparison_is_in,
    may_hold,
    plain,
    split_of,
    sum_is_in,
    word_is_in,
)
from arlow.frame_sampling import VideoFacts, sample_indices
from arlow.media import load_picture
from arlow.video_reader import open_video


COUNTS = {
    "picture": 12,
    "digit": 4,
    "clip": 3,
    "two_images": 3,
    "image_and_clip": 2,
    "text": 8,
    "caption": 4,
    "sheet": 3,
    "single": 3,
    "spot": 3,
    "plain_picture": 3,
    "plain_two_images": 2,
    "plain_text": 2,
    "described": 3,
    "texts": 20,
}


def fingerprint(sample: Sample) -> str:
    """A digest of everything in a sample."""
    digest = hashlib.sha256(repr((sample.turns, sample.text_first)).encode())
    for item in sample.media:
        digest.update(np.ascontiguousarray(item.frames if isinstance(item, Clip) else item.pixels).tobytes())
        digest.update(repr((item.quality, getattr(item, "fps", 0))).encode())
    return digest.hexdigest()


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file below `folder`, by its relative path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def rows_of(index: Path) -> list[dict]:
    return [json.loads(line) for line in index.read_text(encoding="utf-8").splitlines()]


@lru_cache
def text_turns(split: str, count: int = 1500) -> list:
    return [turn for seed in range(count) for turn in make_sample("text", split=split, seed=seed).turns]


# Determinism


def test_another_process_makes_the_same_samples() -> None:
    """(task, split, seed) settles a sample, whatever order sets of words have in a process."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from test_shapes_data import fingerprint\n"
        "from arlow.data import make_sample, pretraining_texts\n"
        "from arlow.data.samples import MAKERS\n"
        "for task in MAKERS:\n"
        "    for seed in range(3):\n"
        "        print(fingerprint(make_sample(task, split='train', seed=seed)))\n"
        "print(list(pretraining_texts('train', count=40)))\n"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code, str(Path(__file__).parent)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1] and len(runs[0]) > 1500


def test_any_number_of_workers_writes_the_same_bytes(tmp_path: Path) -> None:
    """None and two processes give equal files, media included."""
    for workers in (0, 2):
        write_dataset(tmp_path / str(workers), split="train", counts=COUNTS, seed=3, workers=workers)
    one, two = files_of(tmp_path / "0"), files_of(tmp_path / "2")
    assert one.keys() == two.keys()
    assert all(one[name] == two[name] for name in one)


def test_seeds_and_splits_never_share_a_sample() -> None:
    """No picture, digit or clip comes up in two splits or under two seeds."""
    for task in ("picture", "digit", "two_images", "caption", "sheet"):
        prints = [fingerprint(make_sample(task, split=split, seed=seed)) for split in SPLITS for seed in range(15)]
        assert len(set(prints)) == len(prints), task


# Files


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shapes")
    for split in ("train", "test"):
        write_dataset(folder / split, split=split, counts=COUNTS)
    return folder


def test_rows_are_conversations_whose_media_open(written: Path) -> None:
    """Every row alternates user and assistant, and its media load through Arlow's readers."""
    for split in ("train", "test"):
        captions = rows_of(written / split / "captions.jsonl")
        assert [row["types"] for row in captions] == [["caption"]] * COUNTS["caption"]
        names = ("sheets", "singles", "plain", "described")
        sheets = [row for name in names for row in rows_of(written / split / f"{name}.jsonl")]
        rows = rows_of(written / split / "data.jsonl") + captions + sheets
        assert len(rows) == sum(COUNTS.values()) - COUNTS["texts"]
        assert len({row["id"] for row in rows}) == len(rows)
        assert len(rows_of(written / split / "texts.jsonl")) == COUNTS["texts"]
        for row in rows:
            roles = [turn["role"] for turn in row["messages"]]
            assert roles == ["user", "assistant"] * len(row["types"])
            assert split == "train" or len(row["types"]) == 1
            assert all(turn["content"][0]["text"] for turn in row["messages"] if turn["role"] == "assistant")
            for part in [part for turn in row["messages"] for part in turn["content"]]:
                if part["type"] == "image":
                    assert load_picture(written / split / part["path"]).width >= 64
                elif part["type"] == "video":
                    assert 1.9 < open_video(written / split / part["path"]).facts.duration < 5.2
                else:
                    assert part["type"] == "text" and part["text"]


def test_chat_template_takes_every_row(written: Path) -> None:
    """Arlow's own conversation border accepts the rows as they are."""
    for row in rows_of(written / "train" / "data.jsonl"):
        messages = check_conversation(row["messages"])
        named = {part["path"] for part in row["messages"][0]["content"] if part["type"] != "text"}
        assert {*media_of(messages, "image"), *media_of(messages, "video")} == named


def test_media_stand_first_or_last_in_the_first_question() -> None:
    """Mostly the media come before the question, sometimes behind it."""
    first = Counter(make_sample("digit", split="train", seed=seed).text_first for seed in range(300))
    assert 30 < first[True] < 100


def test_preset_writes_all_splits_scaled(tmp_path: Path) -> None:
    """`write` makes every split, each task at least once; other arguments in the same folder are refused."""
    paths = write(tmp_path / "tiny", scale=0.0004, seed=5)
    assert set(paths) == set(SPLITS)
    for split, path in paths.items():
        wanted = {task: max(1, round(count * 0.0004)) for task, count in shapes.PRESETS["tiny"][split].items()}
        for elsewhere in ("texts", *shapes.FILES):  # files of their own
            wanted.pop(elsewhere, None)
        assert Counter(row["id"].split("-")[1] for row in rows_of(path)) == wanted
    for other in ({"seed": 6}, {"seed": 5, "scale": 0.0005}):
        with pytest.raises(FileExistsError, match=r"of other arguments.*choose another folder"):
            write(tmp_path / "tiny", **{"scale": 0.0004, **other})


def test_a_stopped_run_goes_on(tmp_path: Path) -> None:
    """Files that are whole stay untouched, missing ones are written, and all is as if it had never stopped."""
    paths = write(tmp_path / "whole", scale=0.0002)
    write(tmp_path / "stopped", scale=0.0002)
    for split in ("test", "unseen"):
        (tmp_path / "stopped" / split / "data.jsonl").unlink()
    next((tmp_path / "stopped" / "test" / "images").glob("picture-*")).write_bytes(b"half a pict")
    kept = [tmp_path / "stopped" / name for name in ("train/data.jsonl", "test/captions.jsonl")]
    before = [path.stat().st_mtime_ns for path in kept]
    assert {split: path.name for split, path in write(tmp_path / "stopped", scale=0.0002).items()} == {
        split: path.name for split, path in paths.items()
    }
    assert [path.stat().st_mtime_ns for path in kept] == before
    assert files_of(tmp_path / "stopped") == files_of(tmp_path / "whole")


def test_files_of_other_arguments_are_written_anew(tmp_path: Path) -> None:
    """What a stopped run of another seed left is no part of this one."""
    write(tmp_path / "whole", scale=0.0002)
    write(tmp_path / "other", scale=0.0002, seed=1)
    for path in (tmp_path / "other").glob("*/data.jsonl"):
        path.unlink()
    write(tmp_path / "other", scale=0.0002)
    whole, other = files_of(tmp_path / "whole"), files_of(tmp_path / "other")
    assert {name: other.get(name) for name in whole} == whole


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["OUT", "--scale", "0"], "scale=0"),
        (["OUT", "--workers", "-1"], "workers=-1"),
        (["FILE"], "cannot be written"),
        (["OTHER"], "holds a data.jsonl of other arguments"),
    ],
)
def test_bad_input_exits_2(tmp_path: Path, capsys: pytest.CaptureFixture, words: list[str], reason: str) -> None:
    """What is wrong with the command line is one line, and nothing is written."""
    (tmp_path / "file").touch()
    (tmp_path / "other" / "test").mkdir(parents=True)
    (tmp_path / "other" / "test" / "data.jsonl").touch()
    places = {"FILE": tmp_path / "file" / "below", "OTHER": tmp_path / "other", "OUT": tmp_path / "out"}
    before = sorted(tmp_path.rglob("*"))
    assert cli.main(["data", "shapes", *(str(places.get(word, word)) for word in words)]) == 2
    error = capsys.readouterr().err
    assert reason in error and len(error.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_full_disk_is_noticed_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too little room is said before a single sample is drawn."""
    monkeypatch.setattr("arlow.data.shapes.shutil.disk_usage", lambda path: SimpleNamespace(free=10**6))
    for start in (lambda: write_dataset(tmp_path / "a", split="train", counts={"clip": 500}), lambda: write(tmp_path)):
        with pytest.raises(OSError, match=r"needs about .* MB, the disk has 1 MB free"):
            start()
    assert not list(tmp_path.iterdir())


def test_a_killed_writer_leaves_nothing_that_looks_complete(tmp_path: Path) -> None:
    """After SIGKILL there are media but no index; the folder can be written again."""
    code = (
        "import sys\nfrom arlow.data import write_dataset\n"
        "write_dataset(sys.argv[1], split='train', counts={'texts': 5, 'picture': 100000})"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    try:
        deadline = time.monotonic() + 60
        while len(list(tmp_path.glob("images/*"))) < 5 and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert len(list(tmp_path.glob("images/*"))) >= 5
    assert not (tmp_path / "data.jsonl").exists()
    assert len(rows_of(write_dataset(tmp_path, split="train", counts={"picture": 2}))) == 2


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"split": "training"}, ValueError, "split='training'.*train, validation"),
        ({"counts": {"pictures": 3}}, ValueError, "counts='pictures': unknown task"),
        ({"counts": {"picture": -1}}, ValueError, r"counts\['picture'\]=-1"),
        ({"counts": {"picture": 1.5}}, ValueError, r"counts\['picture'\]=1.5"),
        ({"workers": -2}, ValueError, "workers=-2"),
    ],
)
def test_bad_arguments_are_named_before_anything_is_written(
    tmp_path: Path, arguments: dict, error: type[Exception], words: str
) -> None:
    """Each error names the argument and its value; the folder stays empty."""
    given = {"split": "train", "counts": {"picture": 1}, **arguments}
    with pytest.raises(error, match=words):
        write_dataset(tmp_path / "new", **given)
    assert not (tmp_path / "new").exists()


def test_unwritable_places_and_unknown_names_are_refused(tmp_path: Path) -> None:
    """A file where the folder should be, an unknown task, preset and scale."""
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match=r"folder=.*cannot be written"):
        write_dataset(tmp_path / "file", split="train", counts={"picture": 1})
    with pytest.raises(ValueError, match="task='picnic'"):
        make_sample("picnic", split="train", seed=0)
    with pytest.raises(ValueError, match="preset='huge'"):
        write(tmp_path / "out", preset="huge")
    with pytest.raises(ValueError, match="scale=0"):
        write(tmp_path / "out", scale=0)
    with pytest.raises(ValueError, match="split='dev'"):
        next(pretraining_texts("dev", count=1))


# What every sample keeps to


@pytest.mark.parametrize("task", ["picture", "described", "two_images"])
def test_conversations_do_not_repeat_themselves(task: str) -> None:
    """Of one scene at most two answers go over it; no question comes twice, in other capitals or without its mark."""
    for seed in range(60):
        turns = make_sample(task, split="train", seed=seed).turns
        keys = [re.sub(r"\W+$", "", turn.question.lower()) for turn in turns]
        assert len({*keys}) == len(keys), turns
        if task == "two_images":
            assert len(turns) <= 4 and {"same_different", "what_changed"} & {turn.type for turn in turns}
        if task == "picture":
            assert sum(bool(turn.working) for turn in turns) <= 2 and len(turns) <= 5


def test_sizes_are_asked_of_two_shapes_or_more() -> None:
    """Which is larger in every conversation, of names in its question; how large something is, and nothing else."""
    for seed in range(40):
        turns = make_sample("sizes", split="train", seed=seed).turns
        assert {turn.type for turn in turns} <= {"larger", "size"} and len(turns) <= 4
        larger = [turn for turn in turns if turn.type == "larger"]
        assert larger and all(turn.answer in turn.question.lower() for turn in larger)


@settings(max_examples=80, deadline=None)
@given(task=st.sampled_from([*MAKERS]), split=st.sampled_from(SPLITS), seed=st.integers(0, 2**60))
def test_samples_keep_to_their_limits(task: str, split: str, seed: int) -> None:
    """Sizes, lengths, numbers of turns and answers are within what is promised, for any seed."""
    sample = make_sample(task, split=split, seed=seed)
    assert 1 <= len(sample.turns) <= (8 if split == "train" else 1)
    assert len({turn.question.lower() for turn in sample.turns}) == len(sample.turns)
    for turn in sample.turns:
        assert turn.question.strip() == turn.question and "{" not in turn.question
        assert turn.reply.strip() == turn.reply != "" and len(turn.reply) < 340
    expected = {
        "two_images": (Picture, Picture),
        "clip": (Clip,),
        "picture": (Picture,),
        "digit": (Picture,),
        "text": (),
    }
    if task in expected:
        assert tuple(type(item) for item in sample.media) == expected[task]
    for item in sample.media:
        pixels = item.frames if isinstance(item, Clip) else item.pixels
        height, width = pixels.shape[-3:-1]
        assert pixels.dtype == np.uint8 and pixels.shape[-1] == 3
        assert min(height, width) >= 60 and max(height, width) <= (324 if isinstance(item, Clip) else 516)
        if isinstance(item, Clip):
            assert height % 2 == width % 2 == 0 and 6 <= item.fps <= 15
            assert 1.9 <= len(item.frames) / item.fps <= 5.1


# Balance

NEAR_CHANCE = {  # type -> the largest share one answer may have in an evaluation split
    "shape": 0.32, "colour": 0.2, "count": 0.27, "larger": 0.15, "position": 0.12, "side": 0.32,
    "position_yes_no": 0.57, "exists": 0.57, "digit": 0.16, "digit_sum": 0.05, "digit_larger": 0.27,
    "video_direction": 0.34, "video_colour": 0.22, "video_shape": 0.34, "video_size": 0.6, "video_changes": 0.34,
    "video_digit": 0.2, "same_different": 0.58, "what_changed": 0.34, "in_common": 0.31, "text_sum": 0.15,
    "text_comparison": 0.2, "text_polite": 0.33, "absent": 0.35, "text_calendar": 0.2, "text_backwards": 0.1,
    "text_spelling": 0.1,
}  # fmt: skip


def test_no_answer_leads_in_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    """The majority answer of every type is near chance, and every type comes up. Pixels are left out."""
    still = np.zeros((64, 64, 3), dtype=np.uint8)
    for module in ("sample", "two_media"):
        monkeypatch.setattr(f"arlow.data.{module}.render", lambda *args: still)
    monkeypatch.setattr("arlow.data.samples.picture_of_digits", lambda *args: Picture(still))
    for module in ("samples", "two_media"):
        monkeypatch.setattr(f"arlow.data.{module}.render_story", lambda *args: still[None])
    monkeypatch.setattr("arlow.data.samples.render_digits", lambda *args, **kwargs: (still[None], 6))
    answers: dict[str, Counter] = defaultdict(Counter)
    replies: Counter[str] = Counter()  # what two media have in common, with its working
    sizes = {"picture": 2500, "digit": 1200, "clip": 1800, "two_images": 700, "image_and_clip": 400, "text": 2500}
    for task, count in sizes.items():
        for seed in range(count):
            for turn in make_sample(task, split="test", seed=seed).turns:
                answers[turn.type][turn.answer] += 1
                if turn.type == "in_common":
                    replies[turn.reply] += 1
    assert set(answers) == {*NEAR_CHANCE, "text_unknown"}
    (reply, most), *_ = replies.most_common(1)
    assert most / replies.total() < 0.04, reply
    for kind, limit in NEAR_CHANCE.items():
        (leader, most), *_ = answers[kind].most_common(1)
        assert most / answers[kind].total() < limit, (kind, leader, answers[kind].most_common(5))


def test_yes_and_no_are_balanced_in_training_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Follow-up questions of a conversation do not tip the scale."""
    monkeypatch.setattr("arlow.data.sample.render", lambda *args: np.zeros((64, 64, 3), dtype=np.uint8))
    answers: dict[str, Counter] = defaultdict(Counter)
    for seed in range(1200):
        for turn in make_sample("picture", split="train", seed=seed).turns:
            answers[turn.type][turn.answer] += 1
    for kind in ("exists", "position_yes_no"):
        assert 0.42 < answers[kind]["yes"] / answers[kind].total() < 0.58
    assert answers["count"].most_common(1)[0][1] / answers["count"].total() < 0.42
    assert answers["shape"].most_common(1)[0][1] / answers["shape"].total() < 0.3


def test_spots_are_everywhere_as_often() -> None:
    """One plain shape: each of nine places about as often, although the middle has room for more of them."""
    places = Counter()
    for seed in range(360):
        turns = make_sample("spot", split="train", seed=seed).turns
        places.update(turn.answer for turn in turns if turn.type == "place")
    assert len(places) == 9
    assert places.total() == 360
    assert max(places.values()) < 65


# Workings


def test_colours_over_time_are_those_of_the_frames_that_are_seen() -> None:
    """Eight looks name the colours of the frames that the video processor of `make tiny` takes, and miss no change."""
    rng = random.Random(4)
    for _ in range(400):
        story = draw_story_about(rng, "train", "video_changes")
        looks = colours_over_time(story).split()
        assert sum(one != other for one, other in itertools.pairwise(looks)) == len(story.colours) - 1
        if story.seconds > 2.3:  # shorter ones are seen every quarter of a second
            times = np.arange(story.frames) / story.fps
            facts = VideoFacts(story.frames, 64, 64, fps=float(story.fps), timestamps=times)
            seen = sample_indices(facts, fps=4.0, min_frames=4, max_frames=8)
            assert looks == [story.colours[story.colour_of(int(frame))] for frame in seen], story


# What is held out


def test_unseen_pairs_are_never_named_in_training() -> None:
    """No question, answer, caption or document of training names a held-out pair; their parts are all named."""
    texts = list(pretraining_texts("train", count=3000))
    for task in MAKERS:
        for seed in range(250):
            for turn in make_sample(task, split="train", seed=seed).turns:
                texts.append(f"{turn.question} {turn.reply}")
    everything = "\n".join(texts).lower()
    for shape, colour in ALL_PAIRS:
        named = f"{colour} {shape}" in everything
        assert named == ((shape, colour) in SEEN_PAIRS), (shape, colour)


def test_unseen_questions_name_unseen_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of what is asked by name names a held-out pair, in the question or in the answer."""
    monkeypatch.setattr("arlow.data.sample.render", lambda *args: np.zeros((64, 64, 3), dtype=np.uint8))
    named: dict[str, list[bool]] = defaultdict(list)
    for seed in range(600):
        (turn,) = make_sample("picture", split="unseen", seed=seed).turns
        words = f"{turn.question} {turn.answer}".lower()
        named[turn.type].append(any(f"{colour} {shape}" in words for shape, colour in UNSEEN_PAIRS))
    for kind, least in {"exists": 0.5, "position": 0.6, "larger": 0.5}.items():
        assert len(named[kind]) > 30 and np.mean(named[kind]) > least, (kind, np.mean(named[kind]))


def test_unseen_pairs_cover_every_shape_and_leave_each_colour() -> None:
    """One pair of each shape is held out; every shape and every colour keeps most of its pairs."""
    assert {shape for shape, _ in UNSEEN_PAIRS} == set(SHAPES)
    for colour in COLOURS:
        assert sum(colour == other for _, other in SEEN_PAIRS) >= 3


def test_scans_are_split_once_and_for_all() -> None:
    """Training, validation and test share no scan, use all 1797, and hold every digit."""
    parts = [
        {index for indices in scans_of(split).values() for index in indices}
        for split in ("train", "validation", "test")
    ]
    assert [len(part) for part in parts] == [1257, 180, 360]
    assert len(set.union(*parts)) == 1797
    assert all(min(len(indices) for indices in scans_of(split).values()) >= 10 for split in SPLITS)
    # The test's own scans, whoever made them: the split may never move.
    digest = hashlib.sha256(repr(sorted(parts[2])).encode()).hexdigest()
    assert digest.startswith("733a0d2abf8b0224")


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_numbers_and_words_belong_to_one_split(split: str) -> None:
    """Every pair of summands, compared pair and spelled word of a split belongs to it, in questions and documents."""
    for turn in text_turns(split):
        numbers = [int(number) for number in re.findall(r"\d+", turn.question)]
        if turn.type == "text_sum":
            assert sum_is_in(split, *numbers) and int(turn.answer) == sum(numbers)
        elif turn.type == "text_comparison":
            assert comparison_is_in(split, *numbers)
        elif turn.type == "text_backwards":
            word = turn.answer.replace(" ", "")[::-1]
            assert word in turn.question.lower() and word_is_in(split, word)
        elif turn.type == "text_spelling":
            word = turn.answer.replace(" ", "")
            assert word in turn.question and word_is_in(split, word)
        elif turn.type in ("text_calendar", "text_unknown"):
            assert may_hold(split, plain(turn.question))
    for document in pretraining_texts(split, count=800):
        for first, second in re.findall(r"(\d+) (?:\+|plus|and) (\d+)", document):
            if "larger of" not in document and "smaller of" not in document and "digits" not in document:
                assert sum_is_in(split, int(first), int(second)), document
        for word in re.findall(r"(?m)^([a-z]+)(?:: | is spelled | = )[a-z] ", document):
            assert word_is_in(split, word), document


def test_single_digit_sums_are_training_only() -> None:
    """The table of single digits is learned, never asked; sums over it are split."""
    assert all(sum_is_in("train", one, two) for one in range(10) for two in range(10))
    splits = Counter(split for split in ("train", "validation", "test") for one in range(31) for two in range(10, 31)
                     if sum_is_in(split, one, two))  # fmt: skip
    assert splits["test"] > 30 and splits["validation"] > 30 and splits["train"] > 300


def test_comparisons_are_right() -> None:
    """Larger, smaller, and yes or no, computed anew from the words."""
    kinds = Counter()
    for turn in text_turns("train"):
        if turn.type != "text_comparison":
            continue
        one, two = (int(number) for number in re.findall(r"\d+", turn.question))
        words = turn.question.lower()
        if re.match(r"is \d", words):
            expected, kind = "yes" if one > two else "no", "yes_no"
        else:
            expected, kind = (str(min(one, two)), "min") if "smaller" in words else (str(max(one, two)), "max")
        assert turn.answer == expected
        kinds[kind] += 1
    assert len(kinds) == 3


def test_calendar_is_right_and_known_in_training() -> None:
    """Answers agree with Python's calendar, and every answer of the test split is also asked for in training."""
    names = {"day": list(calendar.day_name), "month": list(calendar.month_name)[1:]}
    known = {turn.answer for turn in text_turns("train") if turn.type == "text_calendar"}
    checked = 0
    for split in ("train", "test"):
        for turn in text_turns(split):
            if turn.type != "text_calendar":
                continue
            assert turn.answer in known
            for run in names.values():
                given = [name for name in run if re.search(rf"\b{name}\b", turn.question, re.IGNORECASE)]
                if given and turn.answer in run:
                    step = -1 if "before" in turn.question.lower() else 1
                    assert run[(run.index(given[0]) + step) % len(run)] == turn.answer
                    checked += 1
                elif given:
                    days = calendar.monthrange(2023, run.index(given[0]) + 1)[1]
                    assert turn.answer == str(days)
    assert checked > 100


@pytest.mark.parametrize("split", ["validation", "test"])
def test_evaluation_asks_no_text_question_twice(split: str) -> None:
    """420 questions, all types as often, repeat only where there are too few (calendar, greetings)."""
    turns = text_turns(split, 420)
    assert {*Counter(turn.type for turn in turns).values()} == {60}
    for kind in {turn.type for turn in turns} - {"text_polite"}:
        questions = [plain(turn.question) for turn in turns if turn.type == kind]
        few = 25 if kind == "text_calendar" else 60
        assert len({*questions}) >= few, kind
        assert max(Counter(questions).values()) <= -(-60 // few), kind
    sums = [tuple(sorted(re.findall(r"\d+", turn.question))) for turn in turns if turn.type == "text_sum"]
    assert len({*sums}) > 40


def test_what_it_cannot_know_is_said_so() -> None:
    """Questions about people, places and missing pictures are many and all get the same words."""
    turns = [turn for turn in text_turns("train") if turn.type == "text_unknown"]
    assert {turn.answer for turn in turns} == {"I don't know."}
    assert len({turn.question for turn in turns}) > 0.6 * len(turns)


def test_checksums_share_out_the_splits() -> None:
    """Four in five go to training, the rest to validation and test alike."""
    shares = Counter(split_of(f"key {number}") for number in range(5000))
    assert 0.77 < shares["train"] / 5000 < 0.83
    assert 0.08 < shares["test"] / 5000 < 0.12
