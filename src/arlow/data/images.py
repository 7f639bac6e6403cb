"""Pictures and clips without words: folders, datasets and webdataset shards in, packed rows of pixels out.

Source -> items (`Items`: every item by its number; `Stream`: what a reader brings) -> a draw -> rows. Draws of both
kinds are datasets in their final order: draw number -> sample, the same after a stop and with any number of workers.
"""

from __future__ import annotations

import itertools
import os
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple
from zlib import crc32

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, model_validator
from torch.utils.data import Dataset

from ..errors import message, shorten
from ..extras import need
from .bad_samples import BadSamples, TooManyBadSamples
from .draws import Draws


Kind = Literal["image", "video"]
SUFFIXES: dict[str, frozenset[str]] = {
    "image": frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".jp2", ".avif", ".gif")),
    "video": frozenset((".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".mpg", ".mpeg", ".ts", ".flv", ".ogv")),
}
WITHOUT_OPENING = ("http://", "https://", "pipe:", "gs://", "s3://", "hf://")  # shards that are not local files
MOST_BAD_IN_A_ROW = 1000


class Source(BaseModel):
    """Where pictures or clips come from: a folder, a dataset, or webdataset shards."""

    model_config = ConfigDict(extra="forbid", strict=True)

    folder: str | None = Field(None, description="a directory; files below it are taken by their endings")
    dataset: str | None = Field(
        None, description="instead: a dataset's name on the hub, its directory, or `imagefolder`"
    )
    subset: str | None = Field(None, description="the dataset's configuration")
    split: str = Field("train", description="the dataset's split")
    column: str | None = Field(None, description="the dataset's column; default: image or video")
    options: dict[str, Any] = Field(default_factory=dict, description="anything else that datasets.load_dataset knows")
    streaming: bool = Field(False, description="read the dataset as it comes instead of copying it to the disk first")
    shards: str | list[str] | None = Field(
        None, description="instead: webdataset shards, paths or URLs, with braces such as pictures-{000..099}.tar"
    )
    readers: PositiveInt = Field(
        1, description="parts a stream is read in: best devices x workers; at most the number of its files"
    )
    shuffle_buffer: NonNegativeInt = Field(1000, description="samples of a stream that are shuffled in memory")

    @model_validator(mode="after")
    def _check_kind(self) -> Source:
        if sum(each is not None for each in (self.folder, self.dataset, self.shards)) != 1:
            raise ValueError("give one of folder, dataset and shards")
        return self

    def open(self, kind: Kind, *, name: str, seed: int = 0) -> Items | Stream:
        """What can be drawn; `name` is the field's, for messages. One sample of a stream is read to try it.

        Raises:
            OSError: a folder, file or dataset that is missing or cannot be opened.
            ValueError: no picture (clip) in it, no such column, more readers than files.
        """
        if self.folder is not None:
            return Items(list_folder(Path(self.folder).expanduser(), kind, name=name))
        found = self._open_shards(kind, name, seed) if self.shards else self._open_dataset(kind, name, seed)
        if isinstance(found, Stream):
            found.check()
        return found

    def _open_dataset(self, kind: Kind, name: str, seed: int) -> Items | Stream:
        datasets, column = need("datasets", "train"), self.column or kind
        try:
            data = datasets.load_dataset(
                self.dataset, self.subset, split=self.split, streaming=self.streaming, **self.options
            )
        except Exception as error:  # the library's own kinds, the network's, the hub's
            raise OSError(message(f"{name}.dataset", self.dataset, f"cannot be opened ({error})")) from error
        features = data.features or {}
        if features and column not in features:
            raise ValueError(message(f"{name}.column", column, f"the dataset has {shorten(sorted(features))}"))
        if isinstance(features.get(column), (datasets.Image, datasets.Video)):
            data = data.cast_column(column, type(features[column])(decode=False))
        label = f"{self.dataset}[{self.split}]"
        if self.streaming:
            return Stream(_DatasetReader(data, column, label, self.shuffle_buffer), self.readers, seed=seed, name=name)
        if not len(data):
            raise ValueError(message(f"{name}.dataset", self.dataset, "holds nothing"))
        return Items(_Column(data, column, label))

    def _open_shards(self, kind: Kind, name: str, seed: int) -> Stream:
        expand = need("webdataset", "train").shardlists.expand_urls
        given = [self.shards] if isinstance(self.shards, str) else self.shards or []
        urls = [url for each in given for url in expand(os.path.expanduser(each))]
        for url in urls:
            if not url.startswith(WITHOUT_OPENING) and not Path(url.removeprefix("file:")).is_file():
                raise OSError(message(f"{name}.shards", url, "no such file"))
        reader = _ShardReader(urls, SUFFIXES[kind], self.shuffle_buffer)
        return Stream(reader, self.readers, seed=seed, name=name)


class Item(NamedTuple):
    """A picture or clip, not yet opened."""

    name: str  # for messages and the list of bad samples
    media: Any  # path, bytes, or what else `load_picture` and `open_video` take; an OSError where it was lost


def name_of(item: Item) -> str:
    return item.name


class Items:
    """Items by their number."""

    readers = 1  # any worker may read any of them

    def __init__(self, items: Sequence[Item]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def draws(self, load: Load, *, count: int, seed: int, bad_samples: BadSamples, batch_size: int) -> Dataset:
        """`count` samples in their final order; see [`Draws`]."""
        return Draws(self.items, load, count=count, seed=seed, bad_samples=bad_samples, name=name_of)


class Stream:
    """Items that come one after another, in `readers` parts; after its end a part begins anew, in another order.

    Args:
        read: `read(part, parts, seed)` gives the items of a part, once; without a seed (`None`) as they lie.
    """

    def __init__(
        self, read: Callable[[int, int, int | None], Iterator[Item]], readers: int, *, seed: int, name: str
    ) -> None:
        self.read, self.readers, self.seed, self.name = read, readers, seed, name

    def check(self) -> None:
        """Raises `ValueError` for a part without items, `OSError` if it cannot be read."""
        for part in range(self.readers):
            first = next(self.read(part, self.readers, None), None)  # shuffled, the first waits for a full buffer
            if first is not None and isinstance(first.media, Exception):
                raise OSError(message(self.name, first.name, str(first.media)))
            if first is None:
                where = f" in part {part} of {self.readers}" if self.readers > 1 else ""
                raise ValueError(message(self.name, self.readers, f"the stream holds nothing to read{where}"))

    def items(self, part: int) -> Iterator[Item]:
        for lap in itertools.count():
            empty = True
            for item in self.read(part, self.readers, self.seed + lap):
                empty = False
                yield item
            if empty:
                raise ValueError(message(self.name, part, "this part of the stream holds nothing"))

    def draws(self, load: Load, *, count: int, seed: int, bad_samples: BadSamples, batch_size: int) -> Dataset:
        """`count` samples in their final order."""
        return StreamDraws(self, load, count=count, seed=seed, bad_samples=bad_samples, batch_size=batch_size)


Load = Callable[[Item, np.random.Generator], Any]


class StreamDraws(Dataset):
    """Draws of a stream, by number. Batch after batch comes from part after part of it, and the items of a part in
    turn. Asked for a later draw, a reader passes over the items between without decoding them: that is how a run goes
    on after a stop, and how several processes share a stream. Instead of an unreadable item the next is taken, too.
    """

    def __init__(
        self, stream: Stream, load: Load, *, count: int, seed: int, bad_samples: BadSamples, batch_size: int
    ) -> None:
        self.stream, self.load, self.count, self.seed = stream, load, count, seed
        self.bad_samples, self.batch_size = bad_samples, batch_size
        self._parts: dict[int, _Position] = {}

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, draw: int) -> Any:
        rng = np.random.default_rng((self.seed, draw))
        batch, place = divmod(draw, self.batch_size)
        lap, part = divmod(batch, self.stream.readers)
        number = lap * self.batch_size + place  # within the part
        if part not in self._parts or self._parts[part].number > number:
            self._parts[part] = _Position(self.stream.items(part))
        position = self._parts[part]
        position.advance(number)
        for ahead in range(MOST_BAD_IN_A_ROW):
            item = position.peek(ahead)
            try:
                if isinstance(item.media, Exception):
                    raise item.media
                return self.load(item, rng)
            except (ValueError, TypeError, OSError) as error:
                self.bad_samples.add(item.name, error)
        raise TooManyBadSamples(message("data", self.stream.name, f"{MOST_BAD_IN_A_ROW} bad samples in a row"))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_parts": {}}  # a worker opens the stream itself


class _Position:
    """Where in a part of a stream a reader stands, and the items it has looked at ahead."""

    def __init__(self, items: Iterator[Item]) -> None:
        self.items, self.number, self.ahead = items, 0, deque[Item]()

    def advance(self, number: int) -> None:
        while self.number < number:
            if self.ahead:
                self.ahead.popleft()
            else:
                next(self.items)
            self.number += 1

    def peek(self, ahead: int) -> Item:
        while len(self.ahead) <= ahead:
            self.ahead.append(next(self.items))
        return self.ahead[ahead]


class MixedDraws(Dataset):
    """Draws of pictures and of clips in one order, whole rounds of `readers` batches of either: so a worker that reads
    one part of a stream meets no other part of it.

    Of every `BLOCK` rounds the same number, `share`, are clips, at places that follow from the seed: the shares hold
    exactly, and draw `i` says at once which draw of its own kind it is.
    """

    BLOCK = 1000  # rounds

    def __init__(
        self, images: Callable[[int], Dataset], videos: Callable[[int], Dataset], *, share: float, count: int,
        batch_size: int, seed: int, readers: int = 1,
    ) -> None:  # fmt: skip
        self.videos_of_block = round(share * self.BLOCK)
        self.count, self.round, self.seed = count, readers * batch_size, seed
        self.images, self.videos = images(count), videos(count)
        self._block: tuple[int, np.ndarray, np.ndarray] = (-1, np.empty(0), np.empty(0))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, draw: int) -> Any:
        number, place = divmod(draw, self.round)
        block, inside = divmod(number, self.BLOCK)
        if block != self._block[0]:
            is_video = np.zeros(self.BLOCK, dtype=bool)
            order = np.random.default_rng((self.seed, block, 2)).permutation(self.BLOCK)
            is_video[order[: self.videos_of_block]] = True
            self._block = block, is_video, np.cumsum(is_video)
        _, is_video, videos = self._block
        before = int(videos[inside]) - int(is_video[inside])  # rounds of clips before this one, in its block
        if is_video[inside]:
            return self.videos[(block * self.videos_of_block + before) * self.round + place]
        pictures = block * (self.BLOCK - self.videos_of_block) + inside - before
        return self.images[pictures * self.round + place]


# Folders, datasets, shards


def list_folder(folder: Path, kind: Kind, *, name: str) -> list[Item]:
    """The pictures (clips) below `folder` in the order of their names.

    Raises:
        OSError: no such directory.
        ValueError: there is none.
    """
    if not folder.is_dir():
        raise OSError(message(f"{name}.folder", str(folder), "no such directory"))
    found = [
        Path(where, file)
        for where, _, files in os.walk(folder, followlinks=True)
        for file in files
        if os.path.splitext(file)[1].lower() in SUFFIXES[kind] and not file.startswith(".")
    ]
    if not found:
        what = {"image": "pictures", "video": "clips"}[kind]
        raise ValueError(
            message(f"{name}.folder", str(folder), f"holds no {what}", "see the endings in docs/vision-mae.md")
        )
    return [Item(path.relative_to(folder).as_posix(), path) for path in sorted(found)]


class _Column(Sequence):
    """A column of a dataset as items."""

    def __init__(self, data: Any, column: str, label: str) -> None:
        self.data, self.column, self.label = data, column, label

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: Any) -> Any:
        return Item(f"{self.label}[{index}]", media_of(self.data[int(index)][self.column]))


class _DatasetReader:
    """Reads a part of a streamed dataset."""

    def __init__(self, data: Any, column: str, label: str, buffer: int) -> None:
        self.data, self.column, self.label, self.buffer = data, column, label, buffer

    def __call__(self, part: int, parts: int, seed: int | None) -> Iterator[Item]:
        data = self.data
        if parts > 1:
            if parts > data.num_shards:
                raise ValueError(message("readers", parts, f"{self.label} has {data.num_shards} files"))
            data = data.shard(parts, part)
        if self.buffer and seed is not None:
            data = data.shuffle(seed=seed, buffer_size=self.buffer)
        # Not `iter(data)`: in a worker process that would give every worker a part of its own choice.
        for batch in data.iter(batch_size=1):
            if self.column not in batch:
                raise ValueError(message("column", self.column, f"{self.label} has {shorten(sorted(batch))}"))
            cell = batch[self.column][0]
            yield Item(f"{self.label}[{cell_name(cell) or checksum(repr(batch).encode())}]", media_of(cell))


class _ShardReader:
    """Reads a part of the shards, each a tar file whose members of one stem are a sample."""

    def __init__(self, urls: list[str], suffixes: frozenset[str], buffer: int) -> None:
        self.urls, self.suffixes, self.buffer = urls, suffixes, buffer

    def __call__(self, part: int, parts: int, seed: int | None) -> Iterator[Item]:
        web = need("webdataset", "train")
        if parts > len(self.urls):
            raise ValueError(message("readers", parts, f"there are {len(self.urls)} shards"))
        urls = self.urls[part::parts]
        stages = []
        if self.buffer and seed is not None:
            rng = random.Random(f"{seed}/{part}")
            rng.shuffle(urls)
            stages = [web.shuffle(self.buffer, initial=self.buffer, rng=rng)]
        broken: list[Exception] = []  # webdataset goes on with the next shard when this takes the error

        def go_on(error: Exception) -> bool:
            broken.append(error)
            return True

        tar = web.tarfile_to_samples(handler=go_on)
        for sample in web.DataPipeline(web.SimpleShardList(urls), tar, *stages):
            yield from _as_items(broken)
            for key, value in sample.items():
                if f".{key.rpartition('.')[2].lower()}" in self.suffixes:
                    yield Item(f"{sample['__url__']}/{sample['__key__']}.{key}", value)
        yield from _as_items(broken)


def _as_items(broken: list[Exception]) -> Iterator[Item]:
    """The rest of a damaged shard, as one item that cannot be read."""
    while broken:
        error = broken.pop(0)
        url = str(error.args[-1]) if error.args else "a shard"
        yield Item(url, OSError(f"the rest of the shard cannot be read ({type(error).__name__})"))


def media_of(value: Any) -> Any:
    """A cell of a dataset as something that can be opened: `{"bytes", "path"}` by what it has."""
    if isinstance(value, dict) and ("bytes" in value or "path" in value):
        return value.get("bytes") or value.get("path")
    return value


def cell_name(value: Any) -> str:
    """What tells a cell of a streamed dataset from others, however they are shuffled: its path, a checksum of its
    bytes; empty where it has neither."""
    path, data = (value.get("path"), value.get("bytes")) if isinstance(value, dict) else (None, value)
    if path:
        return str(path)
    return checksum(data) if isinstance(data, bytes) else ""


def checksum(data: bytes) -> str:
    return f"crc32 {crc32(data):08x}"


# Pixels


class Clipping(NamedTuple):
    """How clips are cut out of videos."""

    frames: int  # at most
    fps: float  # frames per second, as near as the video's own rate allows


def load_image(
    item: Item, rng: np.random.Generator | None, *, processor: Any, scale: Sequence[float], flip: bool
) -> Any:
    """A picture as the processor's rows and grid, a random part of it, mirrored every other time; with no `rng` the
    whole.

    Returns:
        pixel_values (patches, C*P*P) float32, grid (t, h, w).

    Raises:
        ValueError, OSError: it cannot be read.
    """
    from ..media import load_picture

    image = load_picture(item.media, policy=processor.policy, name="image").image
    if rng is not None:
        image = image.crop(random_part(image.height, image.width, rng, scale))
        if flip and rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    features = processor.preprocess(image)
    return features["pixel_values"], tuple(features["image_grid_thw"][0].tolist())


def load_clip(
    item: Item, rng: np.random.Generator | None, *, processor: Any, scale: Sequence[float], flip: bool,
    clipping: Clipping,
) -> Any:  # fmt: skip
    """A stretch of a video as the processor's rows and grid, the same random part of every frame; with no `rng` from
    its beginning, the whole frames.

    Returns:
        pixel_values (patches, C*T*P*P) float32, grid (t, h, w).

    Raises:
        ValueError, OSError: it cannot be read.
    """
    from ..video_reader import open_video

    source = open_video(item.media, policy=processor.policy, name="video")
    indices = choose_frames(source.facts.total_frames, source.facts.fps, clipping, rng)
    height, width = source.facts.height, source.facts.width
    box = (0, 0, width, height) if rng is None else random_part(height, width, rng, scale)
    left, top, right, bottom = box
    step = -1 if rng is not None and flip and rng.random() < 0.5 else 1
    frames = np.stack([frame[top:bottom, left:right][:, ::step] for frame in source.frames(indices)])
    features = processor.preprocess([frames], do_sample_frames=False, input_data_format="channels_last")
    return features["pixel_values_videos"], tuple(features["video_grid_thw"][0].tolist())


def choose_frames(total: int, fps: float | None, clipping: Clipping, rng: np.random.Generator | None) -> np.ndarray:
    """Indices (S,) of the frames of a clip: `clipping.frames` of them at about `clipping.fps` from a random place on,
    closer together where the video is too short for that."""
    count = min(clipping.frames, total)
    step = 1 if fps is None else max(round(fps / clipping.fps), 1)
    if count > 1:
        step = min(step, (total - 1) // (count - 1))
    last = total - 1 - (count - 1) * step
    first = 0 if rng is None else int(rng.integers(last + 1))
    return first + step * np.arange(count)


def random_part(
    height: int, width: int, rng: np.random.Generator, scale: Sequence[float]
) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of a random part of a picture: `scale` (least, most) of its area, at an aspect ratio
    between 3:4 and 4:3 times the picture's own. Source: Inception's crops, arXiv 1409.4842."""
    area, stretch = rng.uniform(scale[0], scale[1]), np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)) / 2)
    high = min(max(round(height * np.sqrt(area) / stretch), 1), height)
    wide = min(max(round(width * np.sqrt(area) * stretch), 1), width)
    top, left = int(rng.integers(height - high + 1)), int(rng.integers(width - wide + 1))
    return left, top, left + wide, top + high
