"""Chat data become training batches: rows of messages in; ids, labels, positions, pixels and grids out.

A row is a dict with `messages` (and optionally `tools`, and `images` / `videos` for media parts that name no source),
from a JSONL file or a `datasets` table. The loss is on what the assistant writes: the text of its turns and their
closing token, as the chat template marks them with `{% generation %}`.

Sizes: S tokens of a conversation, B rows of a batch, L tokens of its longest row, N patches.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import lcm
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from ..chat_template import Prompt, media_of
from ..errors import message
from ..extras import need
from ..linear_loss import IGNORED
from ..positions import get_rope_index
from ..processing_arlow import ArlowProcessor
from ..pruning import kept_tokens
from ..video_reader import one_video
from .draws import Draws


KINDS = ("image", "video")
COLUMNS = {"image": "images", "video": "videos"}  # of a row, for parts that name no source
PIXELS = {"image": ("pixel_values", "image_grid_thw"), "video": ("pixel_values_videos", "video_grid_thw")}
NO_FILE = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+:")  # a URL or data URI; a single letter is a drive of Windows


# Where rows come from


class JsonLines:
    """The rows of a JSONL file, found by byte offset: the file is not held in memory.

    Media paths are relative to the file's folder. `field` is what messages call the file.

    Raises:
        OSError: the file cannot be read.
        ValueError: it has no rows, or the first is no conversation.
    """

    def __init__(self, path: Path, *, field: str = "data") -> None:
        self.path = path
        ends, numbers, sizes = [], [], []
        at = 0
        try:
            with open(path, "rb") as file:
                for number, line in enumerate(file, 1):
                    if line.strip():
                        ends.append(at)
                        numbers.append(number)
                        sizes.append(_guess(line))
                    at += len(line)
        except OSError as error:
            raise OSError(message(field, str(path), f"cannot be read ({error.strerror or error})")) from error
        if not ends:
            raise ValueError(message(field, str(path), "has no rows"))
        self.offsets, self.numbers = np.array(ends), np.array(numbers)
        self.sizes = np.array(sizes)  # guessed tokens of each row
        try:
            _check_row(self[0])
        except ValueError as error:
            raise ValueError(message(field, self.name(0), str(error))) from error

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, index: int) -> Any:
        with open(self.path, "rb") as file:
            file.seek(self.offsets[index])
            line = file.readline()
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # bad JSON and bad UTF-8 alike, and brackets without end
            raise ValueError(f"not JSON ({error})") from error
        return _resolved(row, self.path.parent)

    def name(self, index: int) -> str:
        return f"{self.path}:{self.numbers[index]}"


class Table:
    """The rows of a `datasets` table with a column `messages`; media are paths, bytes or pictures.

    Raises:
        ImportError: `datasets` is not installed.
        ValueError: there is no such data set or split, or it has no rows or no column `messages`.
    """

    def __init__(
        self, name: str, *, config: str | None = None, split: str = "train", field: str = "data.dataset"
    ) -> None:
        datasets = need("datasets", "train")
        self.title = name
        try:
            if (Path(name) / "dataset_dict.json").is_file():
                rows = datasets.load_from_disk(name)[split]
            elif (Path(name) / "dataset_info.json").is_file():
                rows = datasets.load_from_disk(name)
            else:
                rows = datasets.load_dataset(name, config, split=split)
        except Exception as error:  # each of its readers has errors of its own
            raise ValueError(message(field, name, " ".join(str(error).split()))) from error
        if len(rows) == 0 or "messages" not in rows.column_names:
            problem = "has no rows" if len(rows) == 0 else f"has no column messages, only {rows.column_names}"
            raise ValueError(message(field, name, problem))
        self.rows = rows
        self.sizes = np.zeros(len(rows), dtype=np.int64)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return _without_none(self.rows[int(index)])

    def name(self, index: int) -> str:
        return f"{self.title}:{index}"


def _guess(line: bytes) -> int:
    """Tokens of a row, roughly: enough to put rows of similar length together."""
    return len(line) // 4 + 64 * line.count(b'"image"') + 256 * line.count(b'"video"')


def _check_row(row: Any) -> None:
    if not isinstance(row, dict) or not isinstance(row.get("messages"), list) or not row["messages"]:
        raise ValueError('no conversation; expected {"messages": [{"role": ..., "content": ...}, ...]}')


def _without_none(value: Any) -> Any:
    """Tables give every part all keys; those that a part does not have are None."""
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list) else value


def _resolved(row: Any, folder: Path) -> Any:
    """The row with its media paths as seen from here."""
    _check_row(row)
    row = dict(row)
    for column in COLUMNS.values():
        if isinstance(row.get(column), list):
            row[column] = [_at(source, folder) for source in row[column]]
    row["messages"] = [_resolved_turn(turn, folder) for turn in row["messages"]]
    return row


def _resolved_turn(turn: Any, folder: Path) -> Any:
    if not isinstance(turn, dict) or not isinstance(turn.get("content"), list):
        return turn  # text, or wrong: the chat template's checks say how
    parts = [
        {key: _at(value, folder) if key in ("path", *KINDS) else value for key, value in part.items()}
        if isinstance(part, dict)
        else part
        for part in turn["content"]
    ]
    return {**turn, "content": parts}


def _at(source: Any, folder: Path) -> Any:
    if isinstance(source, list):
        return [_at(each, folder) for each in source]
    return str(folder / source) if isinstance(source, str) and not NO_FILE.match(source) else source


# Rows become samples


@dataclass(frozen=True)
class Media:
    """One image (with its crops) or video: `rows` (N, width) uint8, `grids` (items, 3), `text` what stands for it."""

    kind: str
    rows: np.ndarray
    grids: np.ndarray
    text: str


@dataclass(frozen=True)
class Sample:
    """One conversation: `ids`, `types` (0 text, 1 image, 2 video) and `learned` (bool), each (S,); its media."""

    ids: np.ndarray
    types: np.ndarray
    learned: np.ndarray
    media: list[Media]


@dataclass
class Conversations:
    """What can be drawn: the rows of all sources, and how each becomes a [`Sample`].

    Args:
        processor: its chat template must mark what the assistant writes.
        sources: pairs of rows and how often a pass over the data takes each of them, to a tenth.
        max_length: tokens; a longer conversation is a bad sample, never cut.
        cache: keep samples in memory (of each loading process) once they are made. Media that several rows name by
            one path are kept once.

    Raises:
        ValueError: the chat template marks nothing as the assistant's.
    """

    processor: ArlowProcessor
    sources: Sequence[tuple[JsonLines | Table, float]]
    max_length: int | None = None
    cache: bool = False
    _samples: dict[int, Sample] = field(default_factory=dict)
    _media: dict[tuple[str, str], Media] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._starts = np.cumsum([0, *(len(rows) for rows, _ in self.sources)])
        shares = [Fraction(round(10 * weight), 10) for _, weight in self.sources]
        numbers = [np.arange(*self._starts[i : i + 2]) for i in range(len(shares))]
        # Half of a source: every other row in one pass, the others in the next, and then the same again.
        laps = [
            np.concatenate([_part(n, share, lap) for n, share in zip(numbers, shares, strict=True)])
            for lap in range(lcm(*(share.denominator for share in shares)))
        ]
        self.items, self.passes = np.concatenate(laps), [len(lap) for lap in laps]
        self.epoch = max(1, len(self.items) // len(laps))  # samples of one pass
        self.sizes = np.concatenate([rows.sizes for rows, _ in self.sources])
        ids = {kind: getattr(self.processor, f"{kind}_token_id") for kind in KINDS}
        self._type_of = np.zeros(max(ids.values()) + 1, dtype=np.int64)
        self._type_of[ids["image"]], self._type_of[ids["video"]] = 1, 2
        if not self._render([{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}], None).generated:
            problem = "does not mark what the assistant writes"
            raise ValueError(message("chat_template", "", problem, "put {% generation %} around it"))

    def name(self, item: int) -> str:
        """`file:line` of an item."""
        source = int(np.searchsorted(self._starts, item, side="right")) - 1
        return self.sources[source][0].name(int(item - self._starts[source]))

    def load(self, item: int, rng: np.random.Generator | None = None) -> Sample:
        """The sample of an item.

        Raises:
            ValueError: wrong roles or parts, media and parts that do not match, no assistant turn, too many tokens,
                refused media.
            OSError: media that are missing or damaged.
        """
        item = int(item)
        if item in self._samples:
            return self._samples[item]
        source = int(np.searchsorted(self._starts, item, side="right")) - 1
        try:
            sample = self.sample(self.sources[source][0][item - int(self._starts[source])])
        except TypeError as error:  # of a content that is no text, for one
            raise ValueError(str(error)) from error
        if self.cache:
            self._samples[item] = sample
        return sample

    def sample(self, row: Mapping[str, Any]) -> Sample:
        """A row `{"messages": [...]}` as a [`Sample`]; raises as `load` does."""
        prompt = self._render(row["messages"], row.get("tools"))
        media = self._load_media(prompt.checked, row)
        texts = {kind: iter([each.text for each in media if each.kind == kind]) for kind in KINDS}
        expanded = next(iter(self.processor._expand([prompt.prompt], texts))).prompt
        encoded = self.processor.tokenizer(
            [expanded.text], literal_spans=[expanded.literals], return_offsets_mapping=True
        )
        ids = np.array(encoded["input_ids"][0], dtype=np.int64)
        if self.max_length is not None and len(ids) > self.max_length:
            problem = f"a conversation of {len(ids)} tokens is longer"
            raise ValueError(message("max_length", self.max_length, problem, "raise it or shrink the media"))
        learned = _covered(np.array(encoded["offset_mapping"][0]), expanded.generated)
        if not learned[1:].any():
            raise ValueError(message("messages", len(row["messages"]), "turns, none of the assistant"))
        types = self._type_of[np.minimum(ids, len(self._type_of) - 1) * (ids < len(self._type_of))]
        return Sample(ids, types, learned, media)

    def _render(self, messages: Any, tools: Any) -> _Rendered:
        prompts, checked = self.processor.tokenizer.render_chat(
            [messages], template=self.processor.chat_template, batched=False, tools=tools, mark_generated=True
        )
        return _Rendered(prompts[0], checked[0])

    def _load_media(self, messages: list[dict[str, Any]], row: Mapping[str, Any]) -> list[Media]:
        """Every image, then every video, in the order of their parts."""
        found = []
        for kind in KINDS:
            parts = [
                part
                for turn in messages
                if not isinstance(turn.get("content", ""), str)
                for part in turn["content"]
                if part["type"] == kind
            ]
            if not parts:
                continue
            sources = media_of(messages, kind) or row.get(COLUMNS[kind]) or []
            if len(sources) != len(parts):
                problem = f"{len(parts)} parts of this kind, with media for {len(sources)}"
                raise ValueError(message("messages", kind, problem))
            found += [self._load_one(kind, source) for source in sources]
        return found

    def _load_one(self, kind: str, source: Any) -> Media:
        key = (kind, source) if isinstance(source, str) else None
        if key in self._media:
            return self._media[key]
        processor = getattr(self.processor, f"{kind}_processor")
        if kind == "image":
            out = processor.preprocess([source], **processor.raw)
            text = self.processor.replace_image_token(out, 0)
        else:
            out = processor.preprocess([one_video(source)], **processor.raw, return_metadata=True)
            text = self.processor.replace_video_token(out, 0, timestamp_alignment=self.processor.timestamp_alignment)
        pixels, grids = PIXELS[kind]
        media = Media(
            kind, np.asarray(out[pixels]).astype(processor.options_type.sample_dtype), np.asarray(out[grids]), text
        )
        if self.cache and key is not None:
            self._media[key] = media
        return media


def _part(rows: np.ndarray, share: Fraction, lap: int) -> np.ndarray:
    """The rows that a pass takes: as often as the whole part of `share` says, and of the rest in turn some of them."""
    whole, rest = divmod(share.numerator, share.denominator)
    chosen = (np.arange(len(rows)) - lap * rest) % share.denominator < rest
    return np.concatenate([np.tile(rows, whole), rows[chosen]])


@dataclass(frozen=True)
class _Rendered:
    prompt: Prompt
    checked: list[dict[str, Any]]

    @property
    def generated(self) -> tuple[tuple[int, int], ...]:
        return self.prompt.generated


def _covered(ranges: np.ndarray, spans: Sequence[tuple[int, int]]) -> np.ndarray:
    """Which of the character ranges (S, 2) `[start, end)`, sorted, touch one of the spans: (S,) bool."""
    covered = np.zeros(len(ranges), dtype=bool)
    for start, end in spans:
        first = np.searchsorted(ranges[:, 1], start, side="right")
        last = np.searchsorted(ranges[:, 0], end, side="left")
        covered[first:last] = True
    return covered & (ranges[:, 0] < ranges[:, 1])


# Samples become batches


@dataclass(frozen=True)
class Collator:
    """Samples to the arguments of `forward`: rows padded on the right, the media of all rows one after the other.

    With `packing`, conversations share rows: `position_ids` (4, B, L), which restart with every conversation, keep
    them apart. The loss and its gradients are those of padded rows.
    """

    processor: ArlowProcessor
    packing: bool = False

    def __call__(self, samples: list[Sample]) -> dict[str, Any]:
        lengths = [len(sample.ids) for sample in samples]
        rows = pack_rows(lengths) if self.packing else [[i] for i in range(len(samples))]
        ordered = [[samples[i] for i in row] for row in rows]
        shape = (len(rows), max(sum(lengths[i] for i in row) for row in rows))
        ids = np.full(shape, self.processor.tokenizer.pad_token_id)
        labels = np.full(shape, IGNORED)
        mask, types = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        starts = np.zeros(shape, dtype=np.int64)  # where in its row each token's conversation starts
        for r, row in enumerate(ordered):
            at = 0
            for sample in row:
                here = slice(at, at + len(sample.ids))
                ids[r, here], types[r, here], mask[r, here], starts[r, here] = sample.ids, sample.types, 1, at
                labels[r, here] = np.where(sample.learned, sample.ids, IGNORED)
                # Nothing is predicted from another conversation.
                labels[r, at] = IGNORED
                at = here.stop
        batch: dict[str, Any] = {
            "input_ids": torch.from_numpy(ids),
            "attention_mask": torch.from_numpy(mask),
            "labels": torch.from_numpy(labels),
            "mm_token_type_ids": torch.from_numpy(types),
        }
        for kind, names in PIXELS.items():
            media = [each for row in ordered for sample in row for each in sample.media if each.kind == kind]
            if media:
                batch |= dict(zip(names, self._pixels(kind, media), strict=True))
        if self.packing:
            batch["position_ids"] = self._positions(batch, torch.from_numpy(starts))
        return batch

    def _pixels(self, kind: str, media: list[Media]) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows (N, width) float32 and grids (items, 3), as the processor gives them."""
        rows = np.concatenate([each.rows for each in media])
        values = np.empty(rows.shape, dtype=np.float32)
        getattr(self.processor, f"{kind}_processor")._options({}).normalise(rows, out=values)
        return torch.from_numpy(values), torch.from_numpy(np.concatenate([each.grids for each in media]))

    def _positions(self, batch: dict[str, Any], starts: torch.Tensor) -> torch.Tensor:
        """(4, B, L): the text row, then the axes t, h, w, all from 0 in every conversation."""
        axes, _ = get_rope_index(
            batch["input_ids"],
            batch["mm_token_type_ids"],
            batch.get("image_grid_thw"),
            batch.get("video_grid_thw"),
            batch["attention_mask"],
            spatial_merge_size=self.processor.image_processor.merge_size,
            image_token_mask=self._kept(batch),
        )
        axes = axes - axes.gather(-1, starts.expand_as(axes))
        text = torch.arange(starts.shape[1]) - starts
        return torch.cat((text[None], axes)) * batch["attention_mask"]

    def _kept(self, batch: dict[str, Any]) -> torch.Tensor | None:
        """Which image tokens there are, where the processor prunes."""
        images = self.processor.image_processor
        if not images.token_pruning_ratio or "pixel_values" not in batch:
            return None
        return kept_tokens(
            batch["pixel_values"],
            batch["image_grid_thw"].tolist(),
            merge=images.merge_size,
            channels=3,
            ratio=images.token_pruning_ratio,
            std=images.image_std,
        )


def pack_rows(lengths: Sequence[int]) -> list[list[int]]:
    """Indices of `lengths` in rows that leave the least padding. Rows are at most twice as long as the longest sample:
    the cost of attention grows with the square of a row's length."""

    def cost(rows: list[list[int]]) -> tuple[int, int]:
        longest = max(sum(lengths[i] for i in row) for row in rows)
        return len(rows) * longest, longest

    return min((first_fit(lengths, capacity=max(lengths) * quarters // 4) for quarters in range(4, 9)), key=cost)


def first_fit(lengths: Sequence[int], *, capacity: int) -> list[list[int]]:
    """Indices of `lengths` in rows of at most `capacity`: the longest first, each into the first row that has room
    (first-fit decreasing). Rows and what is in them keep the order of the samples."""
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        row = next((r for r, free in enumerate(room) if free >= lengths[index]), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(capacity)
        rows[row].append(index)
        room[row] -= lengths[index]
    return sorted(sorted(row) for row in rows)


class SimilarLengths(Dataset):
    """The draws in an order in which the samples of an optimiser step have similar lengths, so that batches have
    little padding and no device waits for another: within each stretch of `stretch` steps (or of one pass, where that
    is less) they are sorted by a guess of their length, and the steps shuffled.

    Args:
        step: samples of a step, over all devices.
    """

    def __init__(self, draws: Draws, sizes: Callable[[Any], int], *, step: int, stretch: int = 16) -> None:
        self.draws, self.sizes, self.step = draws, sizes, step
        # Longer than a pass, a stretch would put copies of one sample side by side.
        self.window = step * max(1, min(stretch, draws.shortest_pass // step))
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.draws)

    def __getitem__(self, place: int) -> Any:
        window, offset = divmod(place, self.window)
        if window != self._order[0]:
            self._order = window, np.fromiter(self._sorted(window), dtype=np.int64)
        return self.draws[int(self._order[1][offset])]

    def _sorted(self, window: int) -> Iterator[int]:
        draws = np.arange(window * self.window, min((window + 1) * self.window, len(self.draws)))
        sizes = [self.sizes(self.draws.items[self.draws.index(int(draw))]) for draw in draws]
        draws = draws[np.argsort(sizes, kind="stable")]
        whole = len(draws) // self.step
        # The last step of a run may be short: it must stay the last.
        order = np.random.default_rng((self.draws.seed, window, 2)).permutation(whole)
        for step in [*order, whole]:
            yield from draws[step * self.step : (step + 1) * self.step].tolist()
