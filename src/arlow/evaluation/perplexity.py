"""Perplexity of texts, by token and by byte.

A document starts after the tokenizer's beginning (or end) token, so that each of its tokens is predicted and bits per
byte count every byte, as in lm-evaluation-harness. A document longer than the window is read in overlapping windows:
a token is scored once, in the first window that holds it, with at least `window - stride` tokens before it (fewer only
at the beginning).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from ..errors import message
from .answers import default_device
from .report import Progress, Run, check_any
from .rows import Skipped, is_file, read_records


WINDOW = 2048  # tokens, unless the model was made for fewer
LOGIT_ROWS = 512  # positions whose logits exist at once: 131,072 words in float32 take 0.25 GiB


class Window(NamedTuple):
    """Tokens the model reads, of which the last `scored` are predicted."""

    ids: list[int]
    scored: int


@dataclass
class Total:
    """What was read, and the sum of its losses in nats."""

    documents: int = 0
    tokens: int = 0
    bytes: int = 0
    nll: float = 0.0


def evaluate_perplexity(
    models: str | Path | Sequence[str | Path],
    *,
    data: str | Path,
    field: str = "text",
    split: str = "test",
    limit: int | None = None,
    window: int | None = None,
    stride: int | None = None,
    batch_size: int = 8,
    max_bad: int = 10,
    device: str | None = None,
    dtype: str = "auto",
) -> dict[str, Any]:
    """Token-weighted perplexity and bits per byte of one or several checkpoints.

    Args:
        models: directories or hub names of causal language models, or of vision-language models (their decoder).
        data: a text file (one document), a JSONL file or a dataset with the text in `field`.
        limit: documents to read; all by default.
        window: tokens the model sees at once; default: `WINDOW`, or what the model was made for if that is less.
        stride: tokens by which windows move on; default: half a window.
        max_bad: records without a text that may be skipped.

    Returns:
        As `evaluate_vqa`; the scores of a model are `documents`, `tokens`, `bytes`, `nll` (nats), `token_loss` (nats
        per token), `perplexity` and `bits_per_byte`.

    Raises:
        OSError: a model or data that cannot be loaded.
        ValueError: an impossible window; no text; more than `max_bad` bad records.
    """
    names = [str(name) for name in ([models] if isinstance(models, (str, Path)) else models)]
    settings = {"field": field, "split": split, "limit": limit, "window": window, "stride": stride, "dtype": dtype}
    run = Run("perplexity", str(data), settings)
    skipped = Skipped(max_bad)
    texts = list(itertools.islice(read_texts(data, field=field, split=split, skipped=skipped), limit))
    check_any(texts, "data")
    results = []
    for name in names:
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype).to(device or default_device()).eval()
        scores = perplexity(model, tokenizer, texts, window=window, stride=stride, batch_size=batch_size)
        results.append({"model": name, "skipped": skipped.rows, "scores": scores})
    return run.finish(results, summary=summarise(results))


def read_texts(data: str | Path, *, field: str, split: str, skipped: Skipped) -> Iterator[str]:
    """The documents of a text file, a JSONL file or a dataset; empty ones and those without `field` are skipped."""
    if is_file(data) and Path(data).suffix not in (".jsonl", ".json"):
        try:
            yield Path(data).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(message("data", str(data), f"is no UTF-8 text ({error.reason})")) from error
        return
    for name, record in read_records(data, split=split, skipped=skipped):
        text = record.get(field)
        if isinstance(text, str) and text:
            yield text
        else:
            skipped.add(name, ValueError(message(field, text, "is no text")))


@torch.inference_mode()
def perplexity(
    model: Any,
    tokenizer: Any,
    texts: Iterable[str],
    *,
    window: int | None = None,
    stride: int | None = None,
    batch_size: int = 8,
) -> dict[str, float | int | None]:
    """The scores of one loaded causal language model; see `evaluate_perplexity`."""
    most = model.config.get_text_config().max_position_embeddings
    window = min(WINDOW, most) if window is None else window
    stride = max(window // 2, 1) if stride is None else stride
    if not 2 <= window <= most:
        raise ValueError(message("window", window, f"must lie in 2..{most}, what the model was made for"))
    if not 1 <= stride < window:  # a window's first token needs one before it
        raise ValueError(message("stride", stride, f"must lie in 1..{window - 1}, below the window"))
    total = Total()
    texts = list(texts)
    start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    with Progress("perplexity", len(texts)) as progress:
        windows = _windows_of(texts, tokenizer, total, window, stride, start, progress)
        while batch := list(itertools.islice(windows, batch_size)):
            total.nll += batch_nll(model, batch)
    loss = total.nll / total.tokens if total.tokens else None
    return {
        **asdict(total),
        "token_loss": loss,
        "perplexity": None if loss is None or loss > 700 else math.exp(loss),  # beyond a float
        "bits_per_byte": total.nll / math.log(2) / total.bytes if total.bytes else None,
    }


def _windows_of(
    texts: Iterable[str], tokenizer: Any, total: Total, window: int, stride: int, start: int, progress: Progress
) -> Iterator[Window]:
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        total.documents += 1
        total.tokens += len(ids)
        total.bytes += len(text.encode())
        yield from windows([start, *ids], window=window, stride=stride)
        progress(1)


def windows(ids: Sequence[int], *, window: int, stride: int) -> Iterator[Window]:
    """Windows over a document, of which every token but the first is scored exactly once."""
    done = 1
    for begin in itertools.count(0, stride):
        end = min(begin + window, len(ids))
        if end > done:
            yield Window(list(ids[begin:end]), end - done)
            done = end
        if end == len(ids):
            return


def batch_nll(model: Any, batch: Sequence[Window]) -> float:
    """The summed loss of the scored tokens of some windows, in nats. Padded on the right: causal attention never looks
    there."""
    length = max(len(window.ids) for window in batch)
    ids = torch.tensor([window.ids + [0] * (length - len(window.ids)) for window in batch])
    mask = torch.tensor([[1] * len(window.ids) + [0] * (length - len(window.ids)) for window in batch])
    labels = torch.full_like(ids, -100)
    for row, window in enumerate(batch):
        end = len(window.ids)
        labels[row, end - window.scored : end] = ids[row, end - window.scored : end]
    ids, mask, labels = (tensor.to(model.device) for tensor in (ids, mask, labels))
    # The head runs on the scored positions alone, some at a time: all logits at once can be many gigabytes.
    hidden = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state[:, :-1]
    scored = labels[:, 1:] != -100
    states, targets = hidden[scored], labels[:, 1:][scored]  # [N, E], [N]
    head, nll = model.get_output_embeddings(), 0.0
    for part, wanted in zip(states.split(LOGIT_ROWS), targets.split(LOGIT_ROWS), strict=True):
        nll += nn.functional.cross_entropy(head(part).float(), wanted, reduction="sum").double().item()
    return nll


def summarise(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Counts of the first model; mean, min and max over the models of each score."""
    summary: dict[str, Any] = {name: results[0]["scores"][name] for name in ("documents", "tokens", "bytes")}
    for name in ("token_loss", "perplexity", "bits_per_byte"):
        known = [result["scores"][name] for result in results if result["scores"][name] is not None]
        summary[name] = {"mean": sum(known) / len(known), "min": min(known), "max": max(known)} if known else None
    return summary


def table(result: dict[str, Any]) -> list[list[str]]:
    """The scores as text cells, a header first, a line per model and for several their mean."""
    names = ("token_loss", "perplexity", "bits_per_byte")
    lines = [["model", "documents", "tokens", "bytes", "nats/token", "perplexity", "bits/byte"]]
    for model in result["models"]:
        scores = model["scores"]
        counts = [f"{scores[name]:,}" for name in ("documents", "tokens", "bytes")]
        lines.append([model["model"], *counts, *(_shown(scores[name]) for name in names)])
    if len(result["models"]) > 1:
        spreads = [result["summary"][name] for name in names]
        lines.append(["mean", "", "", "", *(_shown(spread and spread["mean"]) for spread in spreads)])
    return lines


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
