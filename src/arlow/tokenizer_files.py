"""The files of a tokenizer: read, checked, and built into the pipeline of the `tokenizers` library.

In: `tokenizer.json`, or `vocab.json` and `merges.txt`, or the texts of a corpus. Out: a `tokenizers.Tokenizer`. Every
error names the file.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer
from tokenizers import decoders as rust_decoders
from tokenizers import models as rust_models
from tokenizers import normalizers as rust_normalizers
from tokenizers import pre_tokenizers as rust_pre_tokenizers
from transformers.utils import cached_file

from .errors import cut, message, shorten


# The pre-tokenisation pattern of Qwen2 (its published tokenizer.json): contractions, words with one leading
# non-letter, single digits, runs of punctuation, line breaks, blanks.
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTES = 256
SAVED_FILES = ("tokenizer_config.json", "tokenizer.json", "special_tokens_map.json", "added_tokens.json")
HUB_OPTIONS = ("subfolder", "revision", "cache_dir")  # of a loading call: where a file lies
MODEL_IDS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")


def build_backend(vocab: Mapping[str, int], merges: list[tuple[str, str]]) -> Tokenizer:
    """The pipeline around a vocabulary; an empty one is to be trained."""
    try:
        backend = Tokenizer(rust_models.BPE(vocab=dict(vocab), merges=merges))
    except Exception as error:  # the Rust library raises plain `Exception`
        raise ValueError(cut(f"merges: do not fit the vocabulary: {error}")) from error
    missing = [symbol for symbol in rust_pre_tokenizers.ByteLevel.alphabet() if symbol not in vocab]
    if vocab and missing:
        raise ValueError(message("vocab", sorted(missing), f"lacks {len(missing)} of the {BYTES} byte symbols"))
    backend.normalizer = rust_normalizers.NFC()
    backend.pre_tokenizer = rust_pre_tokenizers.Sequence(
        [
            rust_pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated"),
            rust_pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = rust_decoders.ByteLevel()
    return backend


def read_backend(path: str | os.PathLike) -> Tokenizer:
    """The pipeline of a `tokenizer.json`."""
    try:
        return Tokenizer.from_buffer(Path(path).read_bytes())
    except OSError:
        raise
    except Exception as error:  # the Rust library raises plain `Exception`
        raise ValueError(_problem(path, f"is no tokenizer.json: {error}")) from error


def read_object(path: str | os.PathLike) -> dict[str, Any]:
    """The object in a JSON file."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:  # bad JSON and bad UTF-8 alike
        raise ValueError(_problem(path, f"is no JSON: {error}")) from error
    if not isinstance(found, dict):
        raise ValueError(_problem(path, f"holds {shorten(found)}, not a JSON object"))
    return found


def read_vocab(vocab: Any, vocab_file: str | os.PathLike | None) -> Mapping[str, int]:
    """`{token: id}`, given as such or as the path of a JSON file."""
    if isinstance(vocab, Mapping):
        return vocab
    path = vocab if vocab is not None else vocab_file
    if path is None:
        raise ValueError("vocab=None: give tokenizer_file, vocab_file and merges_file, or vocab and merges")
    return read_object(path)


def read_merges(merges: Any, merges_file: str | os.PathLike | None) -> list[tuple[str, str]]:
    """Pairs of tokens, given as such or as the path of a `merges.txt`."""
    given = merges_file if merges is None else merges
    if given is None:
        raise ValueError("merges=None: a vocabulary needs its merges (merges_file or merges)")
    lines: Any = given
    if isinstance(given, (str, os.PathLike)):
        lines = Path(given).read_text(encoding="utf-8").split("\n")
        lines = [line for line in lines if line and not line.startswith("#version")]
    pairs: list[Any] = [tuple(line.split(" ")) if isinstance(line, str) else tuple(line) for line in lines]
    for row, pair in enumerate(pairs):
        if len(pair) != 2:
            raise ValueError(message(f"merges[{row}]", pair, "is not a pair of tokens"))
    return pairs


def read_texts(source: Any) -> Iterator[str]:
    """The texts of a corpus (paths of files, or texts), checked on the way; raises if nothing was in it."""
    if isinstance(source, (str, os.PathLike)):
        source = [source]
    parts = _lines(source) if isinstance(source, (list, tuple)) else source
    empty = True
    for row, text in enumerate(parts):
        if not isinstance(text, str):
            raise TypeError(message(f"text {row} of the corpus", text, "is not a string"))
        empty = empty and not text
        yield text
    if empty:
        raise ValueError("source: the corpus holds no text")


def _lines(paths: Iterable[str | os.PathLike]) -> Iterator[str]:
    for path in paths:
        try:
            with open(path, encoding="utf-8", newline="") as file:
                yield from file
        except UnicodeDecodeError as error:
            raise ValueError(_problem(path, f"is not UTF-8 at byte {error.start}")) from error


def _problem(path: str | os.PathLike, problem: str) -> str:
    return cut(f"{shorten(os.fspath(path))}: {problem}")


# --- Saved models --------------------------------------------------------------------------------------------------


def saved_file(source: str | os.PathLike, name: str, options: Mapping[str, Any]) -> str | None:
    """The path of a file of a saved model (directory or hub name), if it is on this machine.

    `options` are the keywords of a `from_pretrained`.
    """
    where = {key: options[key] for key in HUB_OPTIONS if options.get(key)}
    try:
        return cached_file(source, name, local_files_only=True, _raise_exceptions_for_missing_entries=False, **where)
    except (OSError, ValueError):
        return None


@contextlib.contextmanager
def damaged_files_named(source: str | os.PathLike, names: Sequence[str], options: Mapping[str, Any]) -> Iterator[None]:
    """Loading that fails because of a damaged JSON file says which: Transformers lets the parser's error through."""
    try:
        yield
    except Exception:
        for name in names:
            path = saved_file(source, name, options)
            if path is not None:
                found = read_object(path)
                if name == "tokenizer.json" and read_backend(path) and "added_tokens" not in found:
                    raise ValueError(_problem(path, "has no 'added_tokens'")) from None
        raise


def config_beside(source: str | os.PathLike, options: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a model's `config.json` beside saved files; empty where there is none that can be read."""
    path = saved_file(source, "config.json", options)
    try:
        return {} if path is None else read_object(path)
    except ValueError:  # refused when the model is loaded
        return {}


def check_special_ids(tokenizer: Any, source: str | os.PathLike, options: Mapping[str, Any]) -> None:
    """Compare a tokenizer's ids with the `config.json` beside it, if there is one: with other ids the model would take
    pictures for text, silently."""
    config = config_beside(source, options)
    for name in MODEL_IDS:
        expected = config.get(name)
        if expected is not None and (ours := getattr(tokenizer, name)) != expected:
            problem = f"the tokenizer's id, but config.json beside it says {shorten(expected)}"
            raise ValueError(message(name, ours, problem, "tokenizer and config belong to different models"))
