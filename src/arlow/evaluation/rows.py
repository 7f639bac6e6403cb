"""Evaluation rows: a JSONL file or a dataset in, one typed `Row` per question out.

A row is one question of a chat and its right answer: `{"messages": [..., {"role": "assistant", ...}], "types":
["colour"], "id": "7", "references": [...]}`. `types`, `id` and `references` (further right answers) may be missing.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..chat_template import SOURCE_KEYS, check_conversation
from ..errors import cut, message, shorten
from ..extras import need


FILE_SUFFIXES = (".jsonl", ".json", ".txt", ".parquet", ".csv")


@dataclass(frozen=True)
class Row:
    """One question."""

    id: str
    prompt: list[dict[str, Any]]  # messages before the answer, media sources resolved
    answers: tuple[str, ...]  # right answers; the first is the assistant's turn
    types: tuple[str, ...]

    @property
    def media(self) -> tuple[tuple[str, Any], ...]:
        """(kind, source) of every picture and clip, in order."""
        return tuple(
            (part["type"], part[key])
            for turn in self.prompt
            if not isinstance(turn.get("content", ""), str)
            for part in turn["content"]
            if part["type"] in SOURCE_KEYS
            for key in SOURCE_KEYS[part["type"]]
            if key in part
        )

    def with_media(self, sources: Iterable[Any] | None) -> Row:
        """The same question about other media of the same kinds, in order; `None`: about none at all."""
        given = None if sources is None else iter(sources)
        return replace(self, prompt=[_exchanged(turn, given) for turn in self.prompt])


def _exchanged(turn: dict[str, Any], sources: Iterator[Any] | None) -> dict[str, Any]:
    if isinstance(turn.get("content", ""), str):
        return turn
    parts = []
    for part in turn["content"]:
        if part["type"] not in SOURCE_KEYS:
            parts.append(part)
        elif sources is not None:
            parts.append({"type": part["type"], part["type"]: next(sources)})
    return {**turn, "content": parts}


@dataclass
class Skipped:
    """Rows that could not be asked: counted, named, and too many of them is an error."""

    limit: int
    rows: list[dict[str, str]] = field(default_factory=list)  # {"id", "reason"}

    def add(self, name: str, error: Exception) -> None:
        """Raises `ValueError` for the first row beyond the limit."""
        self.rows.append({"id": name, "reason": cut(str(error))})
        if len(self.rows) > self.limit:
            first = self.rows[0]
            problem = f"{len(self.rows)} rows cannot be used; the first is {first['id']} ({first['reason']})"
            raise ValueError(message("max_bad", self.limit, problem))


def read_rows(data: str | Path, *, split: str = "test", limit: int | None = None, skipped: Skipped) -> list[Row]:
    """The questions of a JSONL file, or of a dataset that the `datasets` library finds under that name.

    Relative media paths are resolved beside the file. In a dataset, parts without a source are filled from the
    columns `images` and `videos`.

    Raises:
        OSError: no such file, or a dataset that cannot be loaded.
        ValueError: more bad rows than `skipped.limit`, or no good one.
    """
    folder = Path(data).parent if is_file(data) else None
    rows = []
    for name, record in itertools.islice(read_records(data, split=split, skipped=skipped), limit):
        try:
            rows.append(make_row(name, record, folder))
        except (TypeError, ValueError) as error:
            skipped.add(name, error)
    if not rows:
        raise ValueError(message("data", str(data), "holds no row to evaluate"))
    return rows


def is_file(data: str | Path) -> bool:
    """Whether `data` names a local file, and not a dataset. Raises `FileNotFoundError` for a file that is missing."""
    path = Path(data)
    if path.is_file():
        return True
    named = path.suffix in FILE_SUFFIXES or path.is_absolute() or str(data).startswith((".", "~"))
    if named and not path.is_dir():
        raise FileNotFoundError(message("data", str(data), "no such file"))
    return False


def read_records(data: str | Path, *, split: str, skipped: Skipped) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, record) of a JSONL file or of a dataset."""
    if is_file(data):
        yield from _read_lines(Path(data), skipped)
        return
    for number, record in enumerate(load_dataset(str(data), split=split)):
        yield f"{split}[{number}]", record


def _read_lines(path: Path, skipped: Skipped) -> Iterator[tuple[str, dict[str, Any]]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            name = f"{path.name}:{number}"
            try:
                record = json.loads(line)
                if not isinstance(record, dict):
                    raise ValueError(f"a line must hold an object, not {shorten(record)}")
            except ValueError as error:  # bad JSON and bad UTF-8 alike
                skipped.add(name, error)
                continue
            yield name, record


def load_dataset(name: str, *, split: str) -> Iterable[dict[str, Any]]:
    """A dataset, streamed. Raises `ImportError` without `datasets`, `OSError` where it cannot be loaded."""
    datasets = need("datasets", "eval")
    try:
        return datasets.load_dataset(name, split=split, streaming=True)
    except Exception as error:  # the library has no common type: OSError, ValueError, its own
        raise OSError(message("data", name, f"cannot be loaded ({error})")) from error


def make_row(name: str, record: Mapping[str, Any], folder: Path | None) -> Row:
    """A checked row. Raises `TypeError` or `ValueError` that names the field."""
    messages = check_conversation(record.get("messages"), name="messages")
    if messages[-1]["role"] != "assistant" or len(messages) < 2:
        problem = "the last message must be the assistant's answer to an earlier one"
        raise ValueError(message("messages", messages[-1]["role"], problem))
    answers = (_text_of(messages[-1].get("content", "")), *_strings(record, "references"))
    if not answers[0].strip():
        raise ValueError(message("messages", answers[0], "the assistant's answer is empty"))
    queues = {kind: iter(record.get(f"{kind}s") or ()) for kind in SOURCE_KEYS}
    prompt = [_resolved(turn, queues, folder) for turn in messages[:-1]]
    types = tuple(dict.fromkeys(_strings(record, "types"))) or ("all",)
    return Row(str(record.get("id") or name), prompt, answers, types)


def _text_of(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content)


def _strings(record: Mapping[str, Any], key: str) -> list[str]:
    value = record.get(key) or []
    if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
        raise TypeError(message(key, value, "is not a list of strings"))
    return value


def _resolved(turn: dict[str, Any], queues: Mapping[str, Iterator[Any]], folder: Path | None) -> dict[str, Any]:
    """The message with a source on every media part, relative paths made absolute."""
    if isinstance(turn.get("content", ""), str):
        return turn
    return {**turn, "content": [_with_source(part, queues, folder) for part in turn["content"]]}


def _with_source(part: dict[str, Any], queues: Mapping[str, Iterator[Any]], folder: Path | None) -> dict[str, Any]:
    kind = part["type"]
    if kind not in SOURCE_KEYS:
        return part
    key = next((key for key in SOURCE_KEYS[kind] if key in part), None)
    if key is None:
        source = next(queues[kind], None)
        if source is None:
            raise ValueError(message("messages", kind, "a part without a source, and no column to fill it from"))
        return {"type": kind, kind: source}
    source = part[key]
    if folder is not None and isinstance(source, str) and "://" not in source and not source.startswith("data:"):
        source = str(folder / source)
    return {"type": kind, key: source}
