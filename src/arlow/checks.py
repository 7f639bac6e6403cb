"""What a forward is given, checked at its door: shapes and ids, before anything is computed.

Each check names the argument, and the wanted and the given shape; inside the models shapes are trusted.
"""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from transformers.utils import TransformersKwargs

from .errors import message


# What Transformers and serving engines pass beside our own arguments, and what is close to one of them but meant.
PASSED_ON = frozenset({"cache", "cache_position", "token_type_ids", "is_causal", "return_dict"})


def check_keywords(kwargs: dict[str, Any], forward: Callable) -> None:
    """Refuse keywords that look like a misspelt argument of `forward`. Others pass: engines send their own."""
    if kwargs and not torch.compiler.is_compiling():
        for name in kwargs:
            meant = _meant(name, forward)
            if meant:
                raise TypeError(f"{name}: unknown argument of forward; did you mean {meant!r}?")


@functools.lru_cache(maxsize=1024)
def _meant(name: str, forward: Callable) -> str | None:
    known = inspect.signature(forward).parameters
    if name in known or name in PASSED_ON or name in TransformersKwargs.__annotations__:
        return None
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
    return close[0] if close else None


def check_inputs(input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None, config: Any) -> None:
    """Exactly one of the two, of the right shape, and ids inside the vocabulary. Values are looked at on the CPU
    only, where it costs nothing; a GPU's own lookup traps ids outside."""
    if (input_ids is None) == (inputs_embeds is None):
        both = "both were given" if input_ids is not None else "neither was given"
        raise ValueError(message("input_ids/inputs_embeds", None, f"give exactly one of the two; {both}"))
    if inputs_embeds is not None:
        if inputs_embeds.ndim != 3 or inputs_embeds.shape[-1] != config.hidden_size or 0 in inputs_embeds.shape:
            wanted = f"must have shape (batch, sequence, hidden_size={config.hidden_size}), none of them 0"
            raise ValueError(message("inputs_embeds", inputs_embeds, wanted))
        return
    assert input_ids is not None
    if input_ids.ndim != 2 or input_ids.is_floating_point():
        raise ValueError(message("input_ids", input_ids, f"must be integers (batch, sequence), not {input_ids.dtype}"))
    if 0 in input_ids.shape:
        raise ValueError(message("input_ids", input_ids, "holds no tokens"))
    if input_ids.device.type == "cpu" and not torch.compiler.is_compiling():
        outside = (input_ids < 0) | (input_ids >= config.vocab_size)
        if bool(outside.any()):
            row, column = outside.nonzero()[0].tolist()
            problem = f"outside the vocabulary of {config.vocab_size} tokens"
            raise ValueError(message(f"input_ids[{row}, {column}]", int(input_ids[row, column]), problem))


def check_positions(position_ids: torch.Tensor | None, inputs_embeds: torch.Tensor) -> None:
    if position_ids is None:
        return
    batch, sequence = inputs_embeds.shape[:2]
    valid = position_ids.ndim == 2 or (position_ids.ndim == 3 and position_ids.shape[0] in (3, 4))
    if not valid or position_ids.shape[-1] != sequence or position_ids.shape[-2] not in (1, batch):
        wanted = f"must have shape ({batch}, {sequence}), (3, {batch}, {sequence}) or (4, {batch}, {sequence})"
        raise ValueError(message("position_ids", position_ids, wanted))


def check_mask(attention_mask: torch.Tensor | dict | None, inputs_embeds: torch.Tensor) -> None:
    if not isinstance(attention_mask, torch.Tensor) or attention_mask.ndim == 4:
        return
    batch, sequence = inputs_embeds.shape[:2]
    if attention_mask.ndim != 2 or attention_mask.shape[0] != batch or attention_mask.shape[1] < sequence:
        problem = f"must have shape ({batch}, tokens before + {sequence})"
        raise ValueError(message("attention_mask", attention_mask, problem))


def check_encoder_states(
    states: torch.Tensor, mask: torch.Tensor | None, inputs_embeds: torch.Tensor, width: int
) -> None:
    if states.ndim != 3 or states.shape[0] != inputs_embeds.shape[0] or 0 in states.shape or states.shape[2] != width:
        wanted = f"must have shape ({inputs_embeds.shape[0]}, length, encoder_hidden_size={width})"
        raise ValueError(message("encoder_hidden_states", states, wanted))
    if mask is not None and mask.shape != states.shape[:2]:
        raise ValueError(message("encoder_attention_mask", mask, f"must have shape {tuple(states.shape[:2])}"))


def check_token_types(marked: torch.Tensor, found: torch.Tensor) -> None:
    """Tokens (B, S) the processor marked as media (1 image, 2 video) must be the config's placeholders: they are not
    when tokenizer and config belong to different models."""
    if marked.shape != found.shape:
        raise ValueError(message("mm_token_type_ids", marked, f"must have shape {tuple(found.shape)}"))
    differ = (marked > 0) & (marked != found)
    if bool(differ.any()):
        row, column = differ.nonzero()[0].tolist()
        problem = (
            f"token [{row}, {column}] is marked as media, but its id is not the config's image_token_id or "
            "video_token_id: tokenizer and config disagree"
        )
        raise ValueError(message("mm_token_type_ids", marked, problem))


def check_labels(
    labels: torch.Tensor | None, tokens: torch.Tensor | None, classes: int, logits_to_keep: int | torch.Tensor = 0
) -> None:
    """Labels for every token of a forward, and nothing but 0..classes-1 and -100 among them. `tokens`: ids (B, S) or
    embeddings (B, S, E)."""
    if labels is None or tokens is None:
        return
    if labels.shape != tokens.shape[:2]:
        raise ValueError(message("labels", labels, f"must have the shape of the input, {tuple(tokens.shape[:2])}"))
    if isinstance(logits_to_keep, torch.Tensor) or logits_to_keep != 0:
        problem = "the loss needs the logits of every position"
        raise ValueError(message("logits_to_keep", logits_to_keep, problem, "leave it at 0 when giving labels"))
    if labels.device.type == "cpu" and not torch.compiler.is_compiling() and labels.numel():
        outside = ((labels < 0) & (labels != -100)) | (labels >= classes)
        if bool(outside.any()):
            place = tuple(outside.nonzero()[0].tolist())
            problem = f"neither -100 nor one of the {classes} classes, 0..{classes - 1}"
            raise ValueError(message(f"labels{list(place)}", int(labels[place]), problem))


def check_media(pixels: torch.Tensor | None, grid: torch.Tensor | None, names: tuple[str, str]) -> None:
    """Tensors, and a grid that says t, h, w of at least one item. `names`: of both arguments.

    Raises:
        TypeError: a list or an array: the processor was asked for other tensors than PyTorch's.
        ValueError: pixels without a grid; a grid of another shape or of fractions.
    """
    for name, value in zip(names, (pixels, grid), strict=True):
        if value is not None and not isinstance(value, torch.Tensor):
            raise TypeError(message(name, value, "must be a tensor", 'call the processor with return_tensors="pt"'))
    if pixels is not None and grid is None:
        raise ValueError(message(names[1], grid, f"{names[0]} needs it: patches along t, h, w of every item"))
    if grid is not None and (grid.ndim != 2 or grid.shape[1] != 3 or not len(grid) or grid.is_floating_point()):
        wanted = "must be integers (items, 3): patches along t, h, w of every item, one item at least"
        raise ValueError(message(names[1], grid, wanted))


def check_features(kind: str, pieces: Any, taps: Any, *, width: int, count: int) -> None:
    """Features of one kind, encoded before: as wide as the decoder, and with `count` DeepStack taps."""
    widths = {piece.shape[-1] for tap in (pieces, *(taps or ())) for piece in tap}
    if widths - {width}:
        problem = f"{kind} features are {sorted(widths - {width})[0]} wide, the decoder is {width} wide"
        raise ValueError(message("mm_encoder_outputs", [kind], problem, "use the features of this model's encoder"))
    if len(taps or ()) != count:
        problem = f"{kind} features come with {len(taps or ())} DeepStack taps, this model has {count}"
        raise ValueError(message("mm_encoder_outputs", [kind], problem, "use the features of this model's encoder"))


def check_rows(pixels: torch.Tensor, rows: int, names: tuple[str, str]) -> None:
    """As many rows of pixels as the grids describe. `names`: of both arguments."""
    if len(pixels) != rows:
        raise ValueError(message(names[0], pixels, f"has {len(pixels)} rows, but {names[1]} describes {rows}"))
