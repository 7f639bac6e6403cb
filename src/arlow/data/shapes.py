"""`arlow data shapes`: the data of arlow-tiny, made by chance from a seed; samples in memory or a folder of files.

A folder holds `images/`, `videos/`, `data.jsonl` (questions, in chat format), files of their own for the tasks in
`FILES`, likewise, and `texts.jsonl` (the documents of the task "texts"). Every sample depends on its task, split and
index alone: any number of workers writes the same bytes. `data.jsonl` comes last and whole, so a folder with one is
complete.
"""

from __future__ import annotations

import contextlib
import functools
import json
import multiprocessing
import os
import random
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import message
from .described import make_described
from .sample import MOST_TURNS, Sample
from .samples import MAKERS as MEDIA_MAKERS
from .text_documents import draw_document
from .text_questions import evaluation_turn


Spread = Callable[..., Iterable]

MAKERS = {**MEDIA_MAKERS, "described": make_described}
SPLITS = ("train", "validation", "test", "unseen")
TASKS = (*MAKERS, "texts")
SEED_STRIDE = 10_000_000  # samples per task and seed
ROW_BYTES = {  # on the disk, about
    "picture": 20_000, "digit": 25_000, "clip": 75_000, "two_images": 35_000, "image_and_clip": 75_000,
    "text": 1_000, "caption": 30_000, "texts": 300, "sheet": 40_000, "single": 8_000, "spot": 8_000,
    "plain_picture": 12_000, "plain_two_images": 25_000, "plain_text": 1_000, "described": 1_000,
    "list": 20_000, "plain_list": 12_000, "grid": 16_000, "sizes": 20_000,
}  # fmt: skip
FILES = {
    "caption": "captions.jsonl", "sheet": "sheets.jsonl", "single": "singles.jsonl", "spot": "singles.jsonl",
    "plain_picture": "plain.jsonl", "plain_two_images": "plain.jsonl", "plain_text": "plain.jsonl",
    "described": "described.jsonl", "list": "lists.jsonl", "plain_list": "lists.jsonl",
    "grid": "sheets.jsonl", "sizes": "sizes.jsonl",
}  # fmt: skip
INDEX = "data.jsonl"  # of all other tasks
TEXTS = "texts.jsonl"  # of the task "texts"
MADE = "made.json"  # beside a data.jsonl: the arguments it was written with

# How many samples of each task a preset writes, at scale 1.
PRESETS: dict[str, dict[str, dict[str, int]]] = {
    "tiny": {
        "train": {"picture": 26000, "digit": 16000, "clip": 12000, "two_images": 13000, "image_and_clip": 4000,
                  "text": 16000, "caption": 10000, "sheet": 40000, "single": 30000, "spot": 14000,
                  "grid": 20000, "list": 4000, "plain_list": 2000, "plain_picture": 16000, "plain_two_images": 8000,
                  "plain_text": 8000, "described": 60000, "sizes": 8000, "texts": 60000},
        "validation": {"picture": 450, "digit": 150, "clip": 280, "two_images": 200, "image_and_clip": 80,
                       "text": 280, "caption": 100, "sheet": 300, "grid": 100, "single": 200, "spot": 100,
                       "plain_picture": 200, "described": 300, "texts": 1000},
        "test": {"picture": 1350, "digit": 450, "clip": 700, "two_images": 400, "image_and_clip": 200, "text": 840,
                 "caption": 100, "texts": 1000},
        "unseen": {"picture": 540, "clip": 300, "two_images": 200, "image_and_clip": 100},
    }
}  # fmt: skip


def make_sample(task: str, *, split: str, seed: int) -> Sample:
    """One sample of `task`, a key of `samples.MAKERS`, in memory.

    The same (task, split, seed) always gives the same sample. Training samples have up to eight turns, those of
    the other splits one. Raises `ValueError` for an unknown task or split.
    """
    if task not in MAKERS:
        raise ValueError(message("task", task, f"expected one of {', '.join(MAKERS)}"))
    check_split(split)
    rng = random.Random(f"arlow shapes {task} {split} {seed}")
    if task == "text" and split != "train":
        index, group = seed % SEED_STRIDE, seed // SEED_STRIDE
        sample = Sample(turns=[evaluation_turn(rng, split, index=index, seed=group)])
    else:
        sample = MAKERS[task](rng, split, MOST_TURNS if split == "train" else 1)
    sample.text_first = rng.random() < 0.2
    return sample


def pretraining_texts(split: str, *, count: int, seed: int = 0) -> Iterator[str]:
    """`count` plain documents for text pretraining; those of different splits share no held-out fact."""
    check_split(split)
    for index in range(count):
        yield make_text(split, seed * SEED_STRIDE + index)


def make_text(split: str, seed: int) -> str:
    return draw_document(random.Random(f"arlow shapes texts {split} {seed}"), split)


def check_split(split: str) -> None:
    if split not in SPLITS:
        raise ValueError(message("split", split, f"expected one of {', '.join(SPLITS)}"))


# Files


def write_dataset(
    folder: str | os.PathLike, *, split: str, counts: dict[str, int], seed: int = 0, workers: int = 0
) -> Path:
    """Write `counts[task]` samples of each task into `folder`, and return the path of its `data.jsonl`.

    Args:
        folder: made if it is missing; must hold no dataset yet.
        split: "train" (conversations of several turns), "validation", "test" or "unseen" (one question a row).
        counts: samples by task; those of `FILES` go to files of their own, the documents of "texts" to `texts.jsonl`.
        seed: other seeds give other samples.
        workers: processes that draw and encode; 0 works in this one.

    Raises:
        ValueError: an unknown split or task, a count below 0.
        FileExistsError: `folder` holds a `data.jsonl` already.
        OSError: `folder` cannot be written, or the disk has too little room.
    """
    check_split(split)
    check_counts(counts)
    check_workers(workers)
    path = Path(folder)
    if (path / "data.jsonl").exists():
        raise FileExistsError(message("folder", str(path), "holds a data.jsonl already", "choose another folder"))
    check_room(path, [counts])
    make_folder(path)
    with started(workers) as spread:
        return _write_split(path, split=split, counts=counts, seed=seed, spread=spread)


def check_counts(counts: dict[str, int]) -> None:
    """Raise `ValueError` for an unknown task or an impossible count."""
    for task, count in counts.items():
        if task not in TASKS:
            raise ValueError(message("counts", task, f"unknown task, expected one of {', '.join(TASKS)}"))
        if not isinstance(count, int) or not 0 <= count <= SEED_STRIDE:
            raise ValueError(message(f"counts[{task!r}]", count, f"expected a whole number, 0..{SEED_STRIDE}"))


def make_folder(path: Path) -> None:
    """Make the folder; raises `OSError` where it cannot be written."""
    try:
        for name in ("images", "videos"):
            (path / name).mkdir(parents=True, exist_ok=True)
        (path / "data.jsonl.part").touch()
    except OSError as error:
        raise OSError(message("folder", str(path), f"cannot be written ({error.strerror})")) from error


def check_room(path: Path, splits: Iterable[dict[str, int]]) -> None:
    """Raise `OSError` where nothing can be written, or where the disk has too little room for these counts, by rows of
    average size and a tenth."""
    needed = sum(ROW_BYTES[task] * count for counts in splits for task, count in counts.items()) * 1.1
    there = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise OSError(message("folder", str(path), f"cannot be written: {there} is no directory, or not yours"))
    free = shutil.disk_usage(there).free
    if needed > free:
        what = f"needs about {needed / 1e6:.0f} MB, the disk has {free / 1e6:.0f} MB free"
        raise OSError(message("folder", str(path), what, "free some, or take a smaller scale"))


def is_done(path: Path, made: dict[str, Any]) -> bool:
    """Whether `path` holds the whole dataset of these arguments; raises `FileExistsError` if it holds another one."""
    if not (path / INDEX).exists():
        return False
    if not is_of(path, made):
        raise FileExistsError(
            message("folder", str(path), "holds a data.jsonl of other arguments", "choose another folder")
        )
    return True


def is_of(path: Path, made: dict[str, Any]) -> bool:
    """Whether what is in `path`, whole or not, was written with these arguments."""
    try:
        return json.loads((path / MADE).read_text(encoding="utf-8")) == made
    except (OSError, ValueError):
        return False


def check_workers(workers: int) -> None:
    if workers < 0:
        raise ValueError(message("workers", workers, "expected 0 or more processes"))


@contextlib.contextmanager
def started(workers: int) -> Iterator[Spread]:
    """A `map` that keeps the order, over this many processes; 0: in this one."""
    if workers == 0:
        yield map
        return
    # Not forked: the caller may hold threads of torch or FFmpeg.
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield functools.partial(pool.imap, chunksize=16)


def _write_split(
    folder: Path, *, split: str, counts: dict[str, int], seed: int, spread: Spread, kept: Sequence[str] = ()
) -> Path:
    """Write every file but those whose names are in `kept`."""
    start = seed * SEED_STRIDE
    if counts.get("texts") and TEXTS not in kept:
        seeds = range(start, start + counts["texts"])
        texts = spread(functools.partial(make_text, split), seeds)
        write_lines(folder / TEXTS, ({"text": text} for text in texts))
    write_one = functools.partial(write_sample, folder=folder, split=split, seed=seed)
    jobs = [(task, number) for task, count in counts.items() if task != "texts" for number in range(count)]
    for name in dict.fromkeys(FILES.values()):
        own = [job for job in jobs if FILES.get(job[0]) == name]
        if own and name not in kept:
            write_lines(folder / name, spread(write_one, own))
    write_lines(folder / INDEX, spread(write_one, [job for job in jobs if job[0] not in FILES]))
    return folder / INDEX


def write_sample(job: tuple[str, int], *, folder: Path, split: str, seed: int) -> dict[str, Any]:
    """Make one sample, write its media below `folder`, and return its row."""
    task, number = job
    name = f"{task}-{number:06d}"
    sample = make_sample(task, split=split, seed=seed * SEED_STRIDE + number)
    media = []
    for position, item in enumerate(sample.media):
        stem = name if len(sample.media) == 1 else f"{name}-{position + 1}"
        media.append(item.save(folder, stem))
    return {"id": f"{split}-{name}", **conversation(sample, media)}


def conversation(sample: Sample, media: list[dict[str, Any]]) -> dict[str, Any]:
    """The sample in chat format: `messages`, and the `types` of its answers. `media` are its content items."""
    messages = []
    for number, turn in enumerate(sample.turns):
        content: list[dict[str, Any]] = [{"type": "text", "text": turn.question}]
        if number == 0:
            content = content + media if sample.text_first else media + content
        messages.append({"role": "user", "content": content})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": turn.reply}]})
    return {"messages": messages, "types": [turn.type for turn in sample.turns]}


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows as JSON lines; the file appears when the last is on the disk, or not at all."""
    unfinished = path.with_name(path.name + ".part")
    with unfinished.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def write(
    out: str | os.PathLike, *, preset: str = "tiny", scale: float = 1.0, seed: int = 0, workers: int = 0
) -> dict[str, Path]:
    """Write every split of a preset below `out` (`out/train`, ...), its counts times `scale`; the paths of their
    `data.jsonl` by split. A run that was stopped goes on: files of rows that are there already, of the same arguments,
    stay as they are. Raises as `write_dataset`, before anything is written."""
    made, missing = planned(out, preset=preset, scale=scale, seed=seed, workers=workers)
    for split in missing:
        make_folder(Path(out) / split)
    with started(workers) as spread:
        for split in missing:
            folder = Path(out) / split
            names = [path.name for path in folder.glob("*.jsonl")] if is_of(folder, made[split]) else []
            write_lines(folder / MADE, [made[split]])
            _write_split(folder, split=split, **made[split], spread=spread, kept=names)
    return {split: Path(out) / split / INDEX for split in made}


def planned(
    out: str | os.PathLike, *, preset: str = "tiny", scale: float = 1.0, seed: int = 0, workers: int = 0
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """What `write` is about to do: the arguments of every split, and which of them are not there yet. Raises what is
    wrong with that."""
    if preset not in PRESETS:
        raise ValueError(message("preset", preset, f"expected one of {', '.join(PRESETS)}"))
    if not 0 < scale <= 1000:
        raise ValueError(message("scale", scale, "expected a factor over 0"))
    check_workers(workers)
    made: dict[str, dict[str, Any]] = {
        split: {"seed": seed, "counts": {task: max(1, round(count * scale)) for task, count in counts.items()}}
        for split, counts in PRESETS[preset].items()
    }
    missing = [split for split in made if not is_done(Path(out) / split, made[split])]
    check_room(Path(out), [made[split]["counts"] for split in missing])
    return made, missing
