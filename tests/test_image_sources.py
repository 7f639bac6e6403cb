"""Pictures and clips from folders, datasets and webdataset shards; the order of draws; crops and frames."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from media_samples import picture
from PIL import Image
from pydantic import ValidationError
from torch.utils.data import DataLoader, Dataset
from video_samples import number_of, numbered_frames, write_video

from arlow import ArlowImageProcessor, ArlowVideoProcessor
from arlow.data.bad_samples import BadSamples, TooManyBadSamples
from arlow.data.images import (
    Clipping,
    Item,
    Items,
    MixedDraws,
    Source,
    Stream,
    choose_frames,
    load_clip,
    load_image,
    random_part,
)


def write_pictures(folder: Path, count: int = 5) -> Path:
    """PNG and JPEG files, the number of each in its red level, some in a directory below."""
    (folder / "more").mkdir(parents=True)
    for number in range(count):
        image = picture(40, 60, seed=number)
        place = folder / "more" if number % 2 else folder
        image.save(place / f"{number}.{'jpg' if number % 2 else 'png'}")
    return folder


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def write_shards(folder: Path, shards: int = 3, each: int = 4) -> str:
    """Tar files of PNGs and their labels; the brace pattern that names them."""
    folder.mkdir(exist_ok=True)
    for shard in range(shards):
        with tarfile.open(folder / f"s-{shard}.tar", "w") as tar:
            for number in range(each):
                for suffix, data in (("png", png(picture(16, 16, seed=number))), ("cls", b"1")):
                    info = tarfile.TarInfo(f"{shard}{number}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return str(folder / f"s-{{0..{shards - 1}}}.tar")


# Sources


def test_folder(tmp_path: Path) -> None:
    """Every picture below the folder, by name; other files and hidden ones are not."""
    write_pictures(tmp_path)
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / ".hidden.png").write_bytes(b"")
    items = Source(folder=str(tmp_path)).open("image", name="images")
    assert [item.name for item in items.items] == ["0.png", "2.png", "4.png", "more/1.jpg", "more/3.jpg"]


def test_what_is_no_source(tmp_path: Path) -> None:
    """A folder without pictures, a missing one, a missing shard or dataset: an error of one line that names it."""
    (tmp_path / "a.mp4").write_bytes(b"")
    cases = [
        (Source(folder=str(tmp_path)), ValueError, "holds no pictures"),
        (Source(folder=str(tmp_path / "none")), OSError, "no such directory"),
        (Source(shards=str(tmp_path / "s-{0..2}.tar")), OSError, "s-0.tar.*no such file"),
        (Source(dataset=str(tmp_path / "none")), OSError, "images.dataset"),
    ]
    for source, kind, words in cases:
        with pytest.raises(kind, match=words) as error:
            source.open("image", name="images")
        assert len(str(error.value)) < 300 and "\n" not in str(error.value)
    for fields in ({}, {"folder": "a", "dataset": "b"}, {"foldr": "a"}):
        with pytest.raises(ValidationError):
            Source(**fields)


@pytest.fixture(scope="module")
def parquet(tmp_path_factory) -> list[str]:
    """Two Parquet files of eight pictures in all."""
    import datasets

    folder = tmp_path_factory.mktemp("parquet")
    paths = []
    for part in range(2):
        images = [picture(16 + number, 24, seed=number) for number in range(part * 4, part * 4 + 4)]
        data = datasets.Dataset.from_dict({"picture": images}, datasets.Features({"picture": datasets.Image()}))
        paths.append(str(folder / f"{part}.parquet"))
        data.to_parquet(paths[-1])
    return paths


@pytest.mark.parametrize("streaming", [False, True])
def test_dataset(parquet: list[str], streaming: bool, tmp_path: Path) -> None:
    """Pictures of a dataset are drawn, streamed or not: all of them in one pass, decoded by our own reader."""
    source = Source(
        dataset="parquet", options={"data_files": parquet, "cache_dir": str(tmp_path)}, column="picture",
        streaming=streaming, shuffle_buffer=3,
    )  # fmt: skip
    draws = source.open("image", name="images").draws(heights, count=8, seed=1, bad_samples=bad(), batch_size=2)
    assert sorted(draws[i] for i in range(8)) == list(range(16, 24))


def test_bad_pictures_of_a_streamed_dataset(tmp_path: Path) -> None:
    """A damaged and a missing picture are named by themselves, once however often they come, in whichever order."""
    import datasets

    cells = [{"bytes": png(picture(16, 24)), "path": None}, {"bytes": b"no picture", "path": None}, None]
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict({"image": [*cells, cells[0], cells[0]]}, features).to_parquet(tmp_path / "a.parquet")
    source = Source(
        dataset="parquet", options={"data_files": str(tmp_path / "a.parquet"), "cache_dir": str(tmp_path)},
        streaming=True, shuffle_buffer=3,
    )  # fmt: skip
    seen = bad()
    draws = source.open("image", name="images").draws(heights, count=30, seed=1, bad_samples=seen, batch_size=2)
    assert {draws[i] for i in range(30)} == {16}
    assert len(seen.seen) == 2


def test_opening_a_stream_fills_no_buffer() -> None:
    """One item of each part is read to try it, in the order they lie in."""
    letters = Letters()
    Stream(letters, 3, seed=5, name="images").check()
    assert letters.read == 3


def test_dataset_without_the_column(parquet: list[str], tmp_path: Path) -> None:
    """The columns there are stand in the error."""
    source = Source(dataset="parquet", options={"data_files": parquet, "cache_dir": str(tmp_path)})
    with pytest.raises(ValueError, match=r"images.column='image'.*'picture'"):
        source.open("image", name="images")


def test_shards(tmp_path: Path) -> None:
    """Every picture of every shard comes once in a pass; the labels beside them do not."""
    source = Source(shards=write_shards(tmp_path), shuffle_buffer=4)
    draws = source.open("image", name="images").draws(names, count=24, seed=0, bad_samples=bad(), batch_size=2)
    first, second = ([draws[i] for i in part] for part in (range(12), range(12, 24)))
    assert len(set(first)) == 12 and set(first) == set(second)
    assert first != second  # another order
    assert all(name.endswith(".png") for name in first)


def test_damaged_shards(tmp_path: Path) -> None:
    """A shard that is no tar file is refused at once; the rest of one cut off is one bad sample."""
    pattern = write_shards(tmp_path)
    cut_off = tmp_path / "s-1.tar"
    cut_off.write_bytes(cut_off.read_bytes()[:2500])
    seen = bad()
    draws = Source(shards=pattern, shuffle_buffer=0).open("image", name="images")
    found = draws.draws(names, count=10, seed=0, bad_samples=seen, batch_size=1)
    assert len({found[i] for i in range(10)}) >= 9
    assert seen.seen == {str(cut_off)}
    (tmp_path / "a.tar").write_bytes(b"no tar file" * 100)
    with pytest.raises(OSError, match=r"a\.tar.*cannot be read"):
        Source(shards=str(tmp_path / "a.tar")).open("image", name="images")


def test_more_readers_than_files(tmp_path: Path) -> None:
    """Shards are not divided."""
    with pytest.raises(ValueError, match="there are 3 shards"):
        Source(shards=write_shards(tmp_path), readers=4).open("image", name="images")


# Order


def bad(limit: int = 100) -> BadSamples:
    return BadSamples(None, limit=limit)


def names(item: Item, rng: np.random.Generator) -> str:
    return item.name


def heights(item: Item, rng: np.random.Generator) -> int:
    return load_image(item, None, processor=_Whole(), scale=(1, 1), flip=False)[0]


class _Whole:
    """A processor that only tells the height."""

    policy = ArlowImageProcessor.policy

    def preprocess(self, image):
        return {"pixel_values": image.height, "image_grid_thw": np.array([[1, 1, 1]])}


class Letters:
    """A stream of parts: part p of P has the letters p, p + P, ..."""

    def __init__(self, count: int = 10) -> None:
        self.count, self.read = count, 0

    def __call__(self, part: int, parts: int, seed: int):
        found = np.arange(part, self.count, parts)
        for number in found if seed is None else np.random.default_rng((seed, part)).permutation(found):
            self.read += 1
            yield Item(str(number), int(number))


def numbers(item: Item, rng: np.random.Generator) -> tuple[int, float]:
    if item.media % 7 == 3:
        raise OSError("unreadable")
    return item.media, rng.random()


def stream(readers: int, *, count: int = 40, batch_size: int = 3) -> Dataset:
    source = Stream(Letters(), readers, seed=5, name="images")
    return source.draws(numbers, count=count, seed=1, bad_samples=bad(), batch_size=batch_size)


@settings(max_examples=40, deadline=None)
@given(readers=st.integers(1, 4), start=st.integers(0, 39), step=st.integers(1, 5))
def test_stream_is_the_same_from_anywhere(readers: int, start: int, step: int) -> None:
    """Any draw gives what it gives in a run from the beginning, wherever a process starts and whichever it skips."""
    expected = list(map(stream(readers).__getitem__, range(40)))
    other = stream(readers)
    for draw in range(start, 40, step):
        assert other[draw] == expected[draw]
    assert other[start] == expected[start]  # backwards as well


def test_stream_in_workers() -> None:
    """Workers that share a stream give what one process gives."""
    alone = list(DataLoader(stream(2), batch_size=3, collate_fn=list))
    shared = list(DataLoader(stream(2), batch_size=3, collate_fn=list, num_workers=2))
    assert alone == shared


def test_unreadable_items_of_a_stream() -> None:
    """They are named, the next item is taken instead, and one over the limit is an error."""
    source = Stream(Letters(), 1, seed=5, name="images")
    seen = bad()
    draws = source.draws(numbers, count=10, seed=1, bad_samples=seen, batch_size=1)
    assert len([draws[i] for i in range(10)]) == 10
    assert seen.seen == {"3"}
    strict = source.draws(numbers, count=10, seed=1, bad_samples=bad(0), batch_size=1)
    with pytest.raises(TooManyBadSamples, match="bad_samples_limit=0"):
        [strict[i] for i in range(10)]


class Counting(Dataset):
    def __init__(self, name: str) -> None:
        self.name = name

    def __getitem__(self, draw: int) -> tuple[str, int]:
        return self.name, draw


@pytest.mark.parametrize("share", [0.25, 0.1, 0.9])
def test_mixed_draws(share: float) -> None:
    """Whole batches of one kind; of each kind every draw comes once, in order; the share holds exactly in a block."""
    size = 3
    order = {"share": share, "count": 6000, "batch_size": size, "seed": 4}
    draws = MixedDraws(lambda count: Counting("image"), lambda count: Counting("video"), **order)
    found = [draws[i] for i in range(len(draws))]
    assert all(len({name for name, _ in found[i : i + size]}) == 1 for i in range(0, 6000, size))
    for name in ("image", "video"):
        of_kind = [draw for kind, draw in found if kind == name]
        assert of_kind == list(range(len(of_kind)))
    assert sum(name == "video" for name, _ in found) == 6000 * share
    assert found[4321] == MixedDraws(lambda count: Counting("image"), lambda count: Counting("video"), **order)[4321]


@pytest.mark.parametrize("readers", [4, 6])
def test_mixed_draws_leave_each_worker_its_part(readers: int) -> None:
    """Of a stream in parts, the worker that loads every `readers`-th batch meets one part only, clips or not."""
    size = 2
    order = {"share": 0.25, "count": 4800, "batch_size": size, "seed": 4, "readers": readers}
    draws = MixedDraws(lambda count: Counting("image"), lambda count: Counting("video"), **order)
    found = [draws[i] for i in range(len(draws))]
    for i, (_, draw) in enumerate(found):
        assert draw // size % readers == i // size % readers
    for name in ("image", "video"):
        of_kind = [draw for kind, draw in found if kind == name]
        assert of_kind == list(range(len(of_kind)))


# Pixels


@settings(max_examples=80, deadline=None)
@given(height=st.integers(1, 300), width=st.integers(1, 300), seed=st.integers(0, 50), least=st.floats(0.05, 1))
def test_random_part_is_inside(height: int, width: int, seed: int, least: float) -> None:
    """A crop lies within the picture, is not empty, and has about the share of its area."""
    left, top, right, bottom = random_part(height, width, np.random.default_rng(seed), (least, 1.0))
    assert 0 <= left < right <= width and 0 <= top < bottom <= height
    if min(height, width) > 50:
        assert (right - left) * (bottom - top) > 0.8 * least * height * width


@settings(max_examples=80, deadline=None)
@given(
    total=st.integers(1, 90), rate=st.none() | st.floats(1, 60), frames=st.integers(1, 20), fps=st.floats(0.5, 30),
    seed=st.integers(0, 20),
)  # fmt: skip
def test_chosen_frames(total: int, rate: float | None, frames: int, fps: float, seed: int) -> None:
    """Rising indices of the video, equally far apart, as many as asked for or as there are."""
    for rng in (None, np.random.default_rng(seed)):
        indices = choose_frames(total, rate, Clipping(frames, fps), rng)
        assert len(indices) == min(frames, total)
        assert indices[0] >= 0 and indices[-1] < total
        assert len(set(np.diff(indices))) <= 1 and (np.diff(indices) >= 1).all()


def test_clip(tmp_path: Path) -> None:
    """A clip's frames are those chosen, in order, as the video processor packs them."""
    path = write_video(tmp_path / "a.mp4", numbered_frames(30), rate=10)
    processor = ArlowVideoProcessor(patch_size=8, merge_size=2, min_pixels=1024, max_pixels=2048)
    rows, grid = load_clip(
        Item("a", path), np.random.default_rng(3), processor=processor, scale=(0.9, 1), flip=True,
        clipping=Clipping(6, 5.0),
    )  # fmt: skip
    assert grid[0] == 3 and rows.shape == (np.prod(grid), 3 * 2 * 64)
    frames = rows.reshape(3, -1, 3, 2, 64).transpose(0, 3, 1, 2, 4).reshape(6, -1)
    shown = [number_of((frame * 0.5 + 0.5) * 255) for frame in frames]
    assert np.diff(shown).tolist() == [2] * 5


def test_picture_parts_follow_from_the_generator() -> None:
    """The same generator gives the same crop, another one another; without one the whole picture comes."""
    processor = ArlowImageProcessor(patch_size=8, merge_size=2, min_pixels=1024, max_pixels=4096)
    item = Item("a", picture(60, 90))
    load = lambda rng: load_image(item, rng, processor=processor, scale=(0.3, 0.6), flip=True)[0]  # noqa: E731
    first, again, other = (load(np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert first.shape != other.shape or not np.array_equal(first, other)
    whole = processor.preprocess(item.media)["pixel_values"]
    assert np.array_equal(load(None), whole)


def test_items_are_drawn_without_repetition() -> None:
    """A pass over a folder visits every item once."""
    items = Items([Item(str(i), i) for i in range(6)])
    draws = items.draws(names, count=12, seed=0, bad_samples=bad(), batch_size=4)
    assert sorted(draws[i] for i in range(6)) == sorted(draws[i] for i in range(6, 12)) == list("012345")
