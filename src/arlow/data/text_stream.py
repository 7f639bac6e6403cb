"""Text to train on: files or a hub dataset in, packed rows of token ids out.

Sources -> records (`datasets` streaming, shuffled, a share for every reader) -> documents of ids -> rows. A row holds
whole documents and parts of them, back to back; each restarts at position 0, by which attention keeps them apart.
What a reader yields depends on the seed and on how many readers there are, on nothing else.
"""

from __future__ import annotations

import glob
import io
import itertools
import json
import logging
import lzma
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, model_validator
from torch.utils.data import IterableDataset, get_worker_info
from transformers import PreTrainedTokenizerBase

from ..errors import cut, message, shorten
from ..linear_loss import IGNORED
from .bad_samples import BadSamples


RECORDS_AT_ONCE = 64  # tokenised in one call
JSON_LINES = (".jsonl", ".ndjson", ".json")
PARQUET = (".parquet",)
TEXTS = (".txt", ".text", ".md")
PACKED = (".gz", ".bz2", ".xz")  # unpacked while reading; a truncated .zst would end without a word


class Row(TypedDict):
    """A row of S tokens, each (S,) int64: `labels` are the ids, but -100 where a document begins."""

    input_ids: np.ndarray
    position_ids: np.ndarray
    labels: np.ndarray


class Record(TypedDict):
    """One text, or why there is none; `sample` says where it stands."""

    text: str | None
    sample: str
    error: str | None


class Source(BaseModel):
    """Where texts come from: files of this machine, or a dataset."""

    model_config = ConfigDict(extra="forbid", strict=True)

    files: str | list[str] | None = Field(
        None, description="paths or globs of .jsonl, .parquet or .txt files, also as .gz, .bz2 or .xz"
    )
    dataset: str | None = Field(None, description="instead of files: a dataset's name on the hub, or its directory")
    subset: str | None = Field(None, description="the dataset's configuration")
    split: str = Field("train", description="the dataset's split")
    field: str = Field("text", description="the field or column that holds the text (not for .txt)")
    document: Literal["line", "paragraph", "file"] = Field(
        "line", description="what is one document in a .txt file; paragraphs are parted by blank lines"
    )
    weight: PositiveFloat = Field(
        1.0, description="how often a document is taken from here, relative to other sources"
    )

    @model_validator(mode="after")
    def _check_kind(self) -> Source:
        if (self.files is None) == (self.dataset is None):
            raise ValueError("give either files or dataset")
        return self

    @property
    def name(self) -> str:
        return str(self.files if self.dataset is None else self.dataset)

    def paths(self) -> list[str]:
        """The files, sorted.

        Raises:
            OSError: a path or glob that matches no file.
            ValueError: a file of an unknown kind.
        """
        found: list[str] = []
        for pattern in [self.files] if isinstance(self.files, str) else self.files or []:
            some = sorted(
                path for path in glob.glob(str(Path(pattern).expanduser()), recursive=True) if _is_file(path)
            )
            if not some:
                raise OSError(message("files", pattern, "no such file"))
            found += some
        for path in found:
            if _kind(path) not in JSON_LINES + PARQUET + TEXTS:
                known = ", ".join(JSON_LINES + PARQUET + TEXTS)
                raise ValueError(message("files", path, "not a kind of file that can be read", f"use one of {known}"))
        return found

    def open(self) -> Any:
        """A `datasets.IterableDataset` of [`Record`].

        Raises:
            OSError, ValueError: as `paths`; the dataset cannot be opened.
        """
        from datasets import IterableDataset as Stream
        from datasets import load_dataset

        if self.dataset is None:
            options = {"paths": self.paths(), "field": self.field, "document": self.document}
            return Stream.from_generator(_read_files, gen_kwargs=options)
        try:
            stream = load_dataset(self.dataset, self.subset, split=self.split, streaming=True)
        except Exception as error:  # the library's own kinds, the network's, the hub's
            raise OSError(message("dataset", self.dataset, f"cannot be opened ({error})")) from error
        convert = _FromRow(self.dataset, self.field)
        return stream.map(convert, with_indices=True, remove_columns=stream.column_names)


def _is_file(path: str) -> bool:
    return Path(path).is_file()


def _kind(path: str) -> str:
    """The ending that tells the format, below that of a compression."""
    endings = [ending.lower() for ending in Path(path).suffixes]
    if endings and endings[-1] in PACKED:
        endings.pop()
    return endings[-1] if endings else ""


class _FromRow:
    """A row of a dataset as a [`Record`]."""

    def __init__(self, name: str, field: str) -> None:
        self.name, self.field = name, field

    def __call__(self, row: dict[str, Any], index: int) -> dict[str, Any]:
        return dict(_record(row, self.field, f"{self.name}[{index}]"))


def _record(row: Any, field: str, sample: str) -> Record:
    if not isinstance(row, dict) or field not in row:
        have = sorted(row) if isinstance(row, dict) else row
        return _bad(sample, f"no field {field!r} in {shorten(have)}")
    text = row[field]
    if not isinstance(text, str):
        return _bad(sample, f"{field}={shorten(text)} is not text")
    try:
        text.encode()
    except UnicodeEncodeError:
        return _bad(sample, f"{field}={shorten(text)} is not Unicode text")
    return {"text": text, "sample": sample, "error": None}


def _bad(sample: str, problem: str) -> Record:
    return {"text": None, "sample": sample, "error": cut(problem)}


# Files


def _read_files(paths: Sequence[str], field: str, document: str) -> Iterator[Record]:
    for path in paths:
        kind = _kind(path)
        try:
            if kind in PARQUET:
                yield from _read_parquet(path, field)
            elif kind in TEXTS:
                yield from _read_text(path, document)
            else:
                yield from _read_json_lines(path, field)
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:  # gone, truncated, not what its name says
            yield _bad(path, f"cannot be read on: {error}")


def _read_json_lines(path: str, field: str) -> Iterator[Record]:
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        sample = f"{path}:{number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # bad JSON and bad UTF-8 alike
            yield _bad(sample, f"not JSON: {error}")
        else:
            yield _record(row, field, sample)


def _read_text(path: str, document: str) -> Iterator[Record]:
    lines = enumerate(_lines(path), 1)
    if document == "file":
        parts: Iterable[tuple[int, bytes]] = [(1, b"".join(line for _, line in lines))]
    elif document == "paragraph":
        groups = itertools.groupby(lines, key=lambda line: bool(line[1].strip()))
        whole = (list(group) for filled, group in groups if filled)
        parts = ((group[0][0], b"".join(line for _, line in group)) for group in whole)
    else:
        parts = lines
    for number, part in parts:
        sample = path if document == "file" else f"{path}:{number}"
        try:
            text = part.decode()
        except UnicodeDecodeError as error:
            yield _bad(sample, f"not UTF-8: {error}")
        else:
            yield {"text": text.rstrip("\r\n"), "sample": sample, "error": None}


def _lines(path: str) -> Iterator[bytes]:
    import fsspec  # comes with datasets

    with fsspec.open(path, "rb", compression="infer") as file:
        yield from io.BufferedReader(file) if not hasattr(file, "readline") else file


def _read_parquet(path: str, field: str) -> Iterator[Record]:
    import pyarrow
    from pyarrow import parquet  # comes with datasets

    try:
        with parquet.ParquetFile(path) as file:
            columns = [field] if field in file.schema_arrow.names else []
            number = 0
            for batch in file.iter_batches(batch_size=1024, columns=columns):
                for row in batch.to_pylist():
                    yield _record(row, field, f"{path}[{number}]")
                    number += 1
    except pyarrow.ArrowException as error:
        yield _bad(path, f"not a Parquet file: {error}")


# Records


@dataclass(frozen=True)
class Reader:
    """Which share of the records is read: that of reader `index` out of `count`."""

    index: int = 0
    count: int = 1


def read_once(sources: Sequence[Source], bad_samples: BadSamples) -> Iterator[str]:
    """Every text of every source in order, without those that hold nothing but space."""
    for source in sources:
        yield from _texts(_records(source.open()), bad_samples)


def read_forever(
    sources: Sequence[Source],
    bad_samples: BadSamples,
    *,
    seed: int,
    shuffle: int,
    reader: Reader,
    held_out: float = 0.0,
) -> Iterator[str]:
    """The texts of one reader, without end: each source goes round again on its own when it is through.

    Args:
        shuffle: texts among which the next is drawn (the files are shuffled, too); 0: the order of the files. Every
            pass has an order of its own.
        held_out: share of the texts that belongs to the evaluation and is left out.

    Raises:
        ValueError: a whole pass has no text for this reader.
        TooManyBadSamples: see [`BadSamples`].
    """
    options: dict[str, Any] = {"seed": seed, "shuffle": shuffle, "reader": reader, "held_out": held_out}
    streams = [_passes(source, bad_samples, **options) for source in sources]
    if len(streams) == 1:
        yield from streams[0]
    weights = np.array([source.weight for source in sources])
    ends = np.cumsum(weights / weights.sum())
    rng = np.random.default_rng((seed, reader.index, reader.count))
    while True:
        for point in rng.random(RECORDS_AT_ONCE):
            yield next(streams[min(int(np.searchsorted(ends, point, side="right")), len(streams) - 1)])


def _passes(
    source: Source, bad_samples: BadSamples, *, seed: int, shuffle: int, reader: Reader, held_out: float
) -> Iterator[str]:
    from datasets.distributed import split_dataset_by_node

    stream = source.open()
    if shuffle:
        stream = stream.shuffle(seed=seed, buffer_size=shuffle)
    for lap in itertools.count():
        share = split_dataset_by_node(stream, rank=reader.index, world_size=reader.count)
        if shuffle:
            share.set_epoch(lap)
        empty = True
        for text in _texts(_records(share), bad_samples):
            if not is_held_out(text, held_out):
                empty = False
                yield text
        if empty:
            problem = f"holds no text for reader {reader.index + 1} of {reader.count}"
            raise ValueError(message("data", source.name, problem, "use fewer workers or devices"))


def _records(stream: Any) -> Iterator[Record]:
    # By batches: iterated one by one, `datasets` would part the records among the loader's workers once more.
    for batch in stream.iter(batch_size=RECORDS_AT_ONCE):
        for text, sample, error in zip(batch["text"], batch["sample"], batch["error"], strict=True):
            yield {"text": text, "sample": sample, "error": error}


def _texts(records: Iterable[Record], bad_samples: BadSamples) -> Iterator[str]:
    for record in records:
        if record["text"] is None:
            bad_samples.add(record["sample"], ValueError(record["error"]))
        elif record["text"].strip():
            yield record["text"]


def is_held_out(text: str, share: float) -> bool:
    """Whether a text belongs to the evaluation. Its own checksum decides, so copies of a text stay on one side."""
    return zlib.crc32(text.encode()) < share * 2**32


# Rows


def tokenize(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> Iterator[list[int]]:
    """The ids of every text, with the tokenizer's eos at its end. Text never becomes a special token."""
    texts = iter(texts)
    while some := list(itertools.islice(texts, RECORDS_AT_ONCE)):
        rows = tokenizer(some, add_special_tokens=False, split_special_tokens=True, return_attention_mask=False)
        for ids in rows["input_ids"]:
            yield [*ids, tokenizer.eos_token_id]


def pack(documents: Iterable[list[int]], length: int, *, fill: int | None = None) -> Iterator[Row]:
    """Documents back to back in rows of `length` tokens; one that reaches over the end goes on in the next row.

    Positions restart at 0 with every document, and with the rest of one in a new row. Such a start has no label, for
    nothing stands before it.

    Args:
        fill: a token without label that fills up the last row; without it the last row is left out.
    """
    ids: list[int] = []
    positions: list[int] = []
    labels: list[int] = []
    for document in documents:
        start = 0
        while start < len(document):
            part = document[start : start + length - len(ids)]
            start += len(part)
            ids += part
            positions += range(len(part))
            labels += [IGNORED, *part[1:]]
            if len(ids) == length:
                yield _row(ids, positions, labels)
                ids, positions, labels = [], [], []
    if ids and fill is not None:
        rest = length - len(ids)
        yield _row(ids + [fill] * rest, positions + list(range(rest)), labels + [IGNORED] * rest)


def _row(ids: list[int], positions: list[int], labels: list[int]) -> Row:
    return {
        "input_ids": np.array(ids, dtype=np.int64),
        "position_ids": np.array(positions, dtype=np.int64),
        "labels": np.array(labels, dtype=np.int64),
    }


def collate(rows: list[Row]) -> dict[str, torch.Tensor]:
    """Rows as the arguments of `forward`, each (B, S) int64."""
    return {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in Row.__annotations__}  # type: ignore[literal-required]


class TextStream(IterableDataset):
    """The packed rows that one device trains on, as many as a run needs.

    The workers of a data loader are readers of their own: a loader takes batches from them in turn, so the order is a
    function of seed, devices and workers. To go on after a stop, the rows before it are read again and dropped.

    Args:
        batches: how many batches of `batch_size` rows the run takes on this device.
        held_out: share of the texts that belongs to the evaluation and is left out.
        shuffle: see [`read_forever`].
    """

    def __init__(
        self,
        sources: Sequence[Source],
        tokenizer: PreTrainedTokenizerBase,
        *,
        length: int,
        batches: int,
        batch_size: int,
        seed: int,
        shuffle: int,
        bad_samples: BadSamples,
        held_out: float = 0.0,
    ) -> None:
        self.sources, self.tokenizer, self.bad_samples = sources, tokenizer, bad_samples
        self.length, self.batches, self.batch_size = length, batches, batch_size
        self.seed, self.shuffle, self.held_out = seed, shuffle, held_out
        self.device = Reader()

    def __len__(self) -> int:
        return self.batches * self.batch_size

    def __iter__(self) -> Iterator[Row]:
        worker = get_worker_info()
        own, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        reader = Reader(self.device.index * workers + own, self.device.count * workers)
        logging.getLogger("datasets.iterable_dataset").setLevel(logging.ERROR)
        options: dict[str, Any] = {"seed": self.seed, "shuffle": self.shuffle, "held_out": self.held_out}
        texts = read_forever(self.sources, self.bad_samples, reader=reader, **options)
        rows = pack(tokenize(texts, self.tokenizer), self.length)
        batches = len(range(own, self.batches, workers))
        return itertools.islice(rows, batches * self.batch_size)
