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
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import TransformersKwargs

from .errors import message


# What Transformers and serving engines pass beside our own arguments, and what is close to one of them but meant.
PASSED_ON = frozenset({"cache", "cache_position", "token_type_ids", "is_causal", "return_dict"})
# Arguments of the heads: meant where a decoder's forward is given one misspelt.
HEAD_ARGUMENTS = ("labels", "start_positions", "end_positions")
MEDIA = ("pixel_values", "pixel_values_videos", "image_grid_thw", "video_grid_thw", "mm_encoder_outputs")


def check_keywords(kwargs: dict[str, Any], forward: Callable) -> None:
    """Refuse keywords that look like a misspelt argument of `forward`, and media for a model that reads text. Others
    pass: engines send their own.

    Raises:
        TypeError: a misspelt argument, with the one that was meant; `deepstack` where the model makes it itself.
        ValueError: media for a text model.
    """
    if not kwargs or torch.compiler.is_compiling():
        return
    for name, value in kwargs.items():
        if name in MEDIA and value is not None and _reads_text_only(forward):
            reader = forward.__qualname__.split(".")[0]
            problem = f"{reader} reads text only and would ignore it"
            raise ValueError(message(name, value, problem, "use ArlowForConditionalGeneration"))
        if name == "deepstack" and value is not None and not _reads_text_only(forward):
            raise TypeError("deepstack: the model makes it from the media; only the text decoder takes it")
        meant = _meant(name, forward)
        if meant:
            raise TypeError(f"{name}: unknown argument of forward; did you mean {meant!r}?")


@functools.lru_cache(maxsize=64)
def _reads_text_only(forward: Callable) -> bool:
    return "pixel_values" not in inspect.signature(forward).parameters


@functools.lru_cache(maxsize=1024)
def _meant(name: str, forward: Callable) -> str | None:
    known = [*inspect.signature(forward).parameters, *HEAD_ARGUMENTS]
    if name in (*known, *MEDIA) or name in PASSED_ON or name in TransformersKwargs.__annotations__:
        return None
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
    return close[0] if close else None


def check_kinds(attention_mask: Any, position_ids: Any, past_key_values: Any, mm_encoder_outputs: Any = None) -> None:
    """Raise `TypeError` for an argument of another kind than a forward takes: lists, caches of earlier versions."""
    # Masks by layer type come as a dict, those of flex attention as a BlockMask.
    if (
        not isinstance(attention_mask, (torch.Tensor, dict, type(None)))
        and "Mask" not in type(attention_mask).__name__
    ):
        raise TypeError(message("attention_mask", attention_mask, "must be a tensor (batch, tokens)"))
    if not isinstance(position_ids, (torch.Tensor, type(None))):
        raise TypeError(message("position_ids", position_ids, "must be a tensor"))
    if not isinstance(past_key_values, (Cache, type(None))):
        problem = "must be a Cache of Transformers, not tuples of tensors"
        raise TypeError(message("past_key_values", past_key_values, problem, "use DynamicCache"))
    if mm_encoder_outputs is None:
        return
    if not isinstance(mm_encoder_outputs, dict):
        raise TypeError(message("mm_encoder_outputs", mm_encoder_outputs, "must be a dict by 'image' and 'video'"))
    for kind, output in mm_encoder_outputs.items():
        if not isinstance(output, (BaseModelOutputWithPooling, type(None))):
            problem = "must be what get_image_features or get_video_features returns"
            raise TypeError(message(f"mm_encoder_outputs[{kind!r}]", output, problem))


def check_inputs(input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None, config: Any) -> None:
    """Exactly one of the two, of the right shape, and ids inside the vocabulary. Values are looked at on the CPU
    only, where it costs nothing; a GPU's own lookup traps ids outside."""
    if (input_ids is None) == (inputs_embeds is None):
        both = "both were given" if input_ids is not None else "neither was given"
        raise ValueError(message("input_ids/inputs_embeds", None, f"give exactly one of the two; {both}"))
    for name, value in (("input_ids", input_ids), ("inputs_embeds", inputs_embeds)):
        if not isinstance(value, (torch.Tensor, type(None))):
            raise TypeError(message(name, value, "must be a tensor", 'tokenise with return_tensors="pt"'))
    if inputs_embeds is not None:
        if inputs_embeds.ndim != 3 or inputs_embeds.shape[-1] != config.hidden_size or 0 in inputs_embeds.shape:
            wanted = f"must have shape (batch, sequence, hidden_size={config.hidden_size}), none of them 0"
            raise ValueError(message("inputs_embeds", inputs_embeds, wanted))
        return
    assert input_ids is not None
    if input_ids.is_floating_point():
        raise ValueError(message("input_ids", input_ids, f"must be integers, not {input_ids.dtype}"))
    if input_ids.ndim != 2:
        raise ValueError(message("input_ids", input_ids, "must have shape (batch, sequence)"))
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
    if position_ids.is_floating_point():
        raise ValueError(message("position_ids", position_ids, f"must be integers, not {position_ids.dtype}"))


def check_mask(
    attention_mask: torch.Tensor | dict | None, inputs_embeds: torch.Tensor, past_key_values: Cache | None = None
) -> None:
    """A 2-D mask covers the tokens before and the new ones: neither fewer, nor more."""
    if not isinstance(attention_mask, torch.Tensor) or attention_mask.ndim == 4:
        return
    batch, sequence = inputs_embeds.shape[:2]
    valid = attention_mask.ndim == 2 and attention_mask.shape[0] == batch and attention_mask.shape[1] >= sequence
    if valid and not (past_key_values is not None and past_key_values.is_compileable):
        # The length of a static cache is on the device; masks for one are made by `generate`.
        sequence += 0 if past_key_values is None else past_key_values.get_seq_length()
        valid = attention_mask.shape[1] == sequence
    if not valid:
        problem = f"must have shape ({batch}, {sequence}): the tokens before and the new ones"
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
    if not isinstance(tokens, torch.Tensor):  # refused behind
        return
    _check_kept(logits_to_keep, tokens)
    if labels is None:
        return
    _check_tensor("labels", labels)
    if labels.shape != tokens.shape[:2]:
        raise ValueError(message("labels", labels, f"must have the shape of the input, {tuple(tokens.shape[:2])}"))
    if isinstance(logits_to_keep, torch.Tensor) or logits_to_keep != 0:
        problem = "the loss needs the logits of every position"
        raise ValueError(message("logits_to_keep", logits_to_keep, problem, "leave it at 0 when giving labels"))
    _check_classes(labels, classes)


def check_row_labels(labels: torch.Tensor | None, rows: int, config: Any) -> None:
    """Labels of a sequence head: a class per row, or by `problem_type` a number or one per label."""
    if labels is None:
        return
    _check_tensor("labels", labels)
    single = is_one_class(labels, config)
    one_each = single or config.num_labels == 1
    wanted = (rows,) if one_each else (rows, config.num_labels)
    fits = labels.numel() == rows if one_each else tuple(labels.shape) == wanted
    if not fits:
        remedy = "several labels at once are floats" if single else ""
        raise ValueError(message("labels", labels, f"must have shape {wanted}", remedy))
    if single:
        _check_classes(labels, config.num_labels)
    elif not labels.is_floating_point() and config.num_labels > 1:
        raise ValueError(message("labels", labels, f"must be floats for {config.num_labels} labels at once"))


def is_one_class(labels: torch.Tensor, config: Any) -> bool:
    """Whether a sequence head's labels say one of several classes: as `problem_type` says, or whole numbers."""
    if config.problem_type is not None:
        return config.problem_type == "single_label_classification"
    return config.num_labels > 1 and not labels.is_floating_point()


def check_spans(start: torch.Tensor | None, end: torch.Tensor | None, rows: int) -> None:
    """Both ends of the answer or neither, one of each per row. Positions outside a row are left out of the loss."""
    for name, value, other in (("start_positions", start, end), ("end_positions", end, start)):
        if value is None:
            if other is not None:
                raise ValueError(message(name, value, "start_positions and end_positions go together"))
            continue
        _check_tensor(name, value)
        if value.numel() != rows or value.is_floating_point():
            raise ValueError(message(name, value, f"must be integers of shape ({rows},)"))


def _check_tensor(name: str, value: Any) -> None:
    if not isinstance(value, torch.Tensor):
        raise TypeError(message(name, value, "must be a tensor"))


def _check_classes(labels: torch.Tensor, classes: int) -> None:
    if labels.is_floating_point():
        raise ValueError(message("labels", labels, f"must be integers, not {labels.dtype}"))
    if labels.device.type == "cpu" and not torch.compiler.is_compiling() and labels.numel():
        outside = ((labels < 0) & (labels != -100)) | (labels >= classes)
        if bool(outside.any()):
            place = tuple(outside.nonzero()[0].tolist())
            problem = f"neither -100 nor one of the {classes} classes, 0..{classes - 1}"
            raise ValueError(message(f"labels{list(place)}", int(labels[place]), problem))


def _check_kept(kept: int | torch.Tensor, tokens: torch.Tensor) -> None:
    """The last n positions, or the numbers of some."""
    if isinstance(kept, int):
        if kept < 0:
            raise ValueError(message("logits_to_keep", kept, "must not be negative", "0 keeps all"))
        return
    _check_tensor("logits_to_keep", kept)
    if kept.device.type == "cpu" and kept.dtype != torch.bool and kept.numel() and not torch.compiler.is_compiling():
        length = tokens.shape[1]
        if int(kept.max()) >= length or int(kept.min()) < -length:
            problem = f"holds {int(kept.max())}, the input has positions 0..{length - 1}"
            raise ValueError(message("logits_to_keep", kept, problem))


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
    if grid is not None and (grid.ndim != 2 or grid.shape[1] != 3 or grid.shape[0] == 0 or grid.is_floating_point()):
        wanted = "must be integers (items, 3): patches along t, h, w of every item, one item at least"
        raise ValueError(message(names[1], grid, wanted))


def check_stills(grid: torch.Tensor | None) -> None:
    """An image is one frame: every t of `image_grid_thw` (images, 3), on the CPU, is 1."""
    if grid is None or torch.compiler.is_compiling():
        return
    for i, (t, h, w) in enumerate(grid.tolist()):
        if t != 1:
            problem = "an image has one frame, t=1"
            raise ValueError(message(f"image_grid_thw[{i}]", [t, h, w], problem, "pass videos as pixel_values_videos"))


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
    if pixels.shape[0] != rows:
        raise ValueError(message(names[0], pixels, f"has {len(pixels)} rows, but {names[1]} describes {rows}"))
