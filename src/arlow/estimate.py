"""The verb `arlow estimate`: parameters, memory and compute of a config, by formula, without building the model.

Sizes: B rows per GPU, S tokens of a row, N patches, L patches that attend to one another; of a config E width, V
vocabulary, F width inside the MLP, HD and KD widths of all query and of all key heads.

Sources: FLOPs, PaLM (arXiv 2204.02311, appendix B): a multiply-add is two, attention is counted in full (a causal
kernel does about half of it, deformable attention of large pictures what is near), the backward pass is twice the
forward pass. Activations, after Korthikanti et al. (2205.05198), but for these layers: the tensors that autograd
keeps, one by one. Model states, ZeRO (1910.02054).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import message


PRECISIONS = ("fp32", "bf16", "fp16")
STRATEGIES = ("ddp", "fsdp", "zero2", "zero3")
OPTIMIZERS = {"adamw": 8, "adamw_8bit": 2, "sgd": 0}  # bytes of state per parameter
PRESETS = {
    "text": "28 decoder layers of width 2304",
    "vision": "48 encoder blocks of width 1536, projected to 3072",
    "arlow": "both in one, the encoder projected to 2304",
}
CHUNK_LOGITS = 2**25  # logits that the chunked loss holds at a time
GIB = 2**30


# --- Configs -------------------------------------------------------------------------------------------------------


def read_config(name: str) -> Any:
    """A config from a directory, a `config.json`, or the name of a preset.

    Raises:
        OSError: no such file.
        ValueError: not a config of Arlow.
    """
    from .configuration_arlow import ArlowConfig, ArlowTextConfig, ArlowVisionConfig

    path = Path(name)
    if name in PRESETS and not path.exists():
        sizes = {"depth": 48, "embed_dim": 1536, "num_heads": 24}
        vision = {**sizes, "use_deformable_attention": True, "use_progressive_patches": True}
        if name == "text":
            return ArlowTextConfig()
        return ArlowVisionConfig(**vision, hidden_size=3072) if name == "vision" else ArlowConfig(vision_config=vision)
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(message("config", name, "no such file", f"or use a preset: {', '.join(PRESETS)}"))
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        kind = fields["model_type"]
    except (ValueError, KeyError, TypeError) as error:  # bad JSON, bad UTF-8, no model_type, no object
        raise ValueError(message("config", name, "is no JSON object with a model_type")) from error
    classes = {
        "arlow": ArlowConfig,
        "arlow_text": ArlowTextConfig,
        "arlowgpt": ArlowTextConfig,
        "arlow_vision": ArlowVisionConfig,
    }
    if kind not in classes:
        raise ValueError(message("model_type", kind, "is not Arlow's", f"use one of {', '.join(classes)}"))
    return classes[kind].from_dict(fields)


def parts(config: Any) -> tuple[Any, Any]:
    """(text config, vision config) of a config; `None` for a part it does not have."""
    if config.model_type == "arlow":
        if config.vision_config.model_type != "arlow_vision":
            kind = config.vision_config.tower_config.model_type
            raise ValueError(message("vision_config", kind, "only Arlow's own encoder can be estimated"))
        return config.text_config, config.vision_config
    return (None, config) if config.model_type == "arlow_vision" else (config, None)


# --- What a step reads ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Medium:
    """A picture (one group of one frame) or a clip, in patches before merging."""

    groups: int  # of frames
    frame: int  # patches of a group
    still: bool = True

    @property
    def patches(self) -> int:
        return self.groups * self.frame

    def segments(self, window: int | None) -> list[int]:
        """Patches of each run of frame groups that attend to one another."""
        size = window or self.groups
        return [min(size, self.groups - start) * self.frame for start in range(0, self.groups, size)]


def medium_from(text: str, vision: Any) -> Medium:
    """`HxW` (a picture) or `TxHxW` (a clip of T sampled frames) in pixels, resized as the processors do by default.

    Raises:
        ValueError: not of this form, or a size the processors refuse.
    """
    sides = [int(side) if side.isdecimal() else 0 for side in text.lower().split("x")]
    if len(sides) not in (2, 3) or min(sides) < 1:
        raise ValueError(message("size", text, "is neither HxW nor TxHxW in pixels"))
    T = vision.temporal_patch_size
    geometry = {"patch_size": vision.patch_size, "merge_size": vision.spatial_merge_size, "temporal_patch_size": T}
    *frames, height, width = sides
    if not frames:
        from .image_processing_arlow import ArlowImageProcessor

        return Medium(1, ArlowImageProcessor(**geometry).get_number_of_image_patches(height, width))
    from .video_processing_arlow import ArlowVideoProcessor

    groups = -(-frames[0] // T)
    patches = ArlowVideoProcessor(**geometry).get_num_of_video_patches(frames[0], height, width)
    return Medium(groups, patches // groups, still=False)


# --- Parameters ----------------------------------------------------------------------------------------------------


def count_parameters(config: Any) -> dict[str, int]:
    """Parameters by part: of `ArlowForCausalLM`, `ArlowVLVisionModel` or `ArlowForConditionalGeneration`."""
    text, vision = parts(config)
    counts: dict[str, int] = {}
    if vision is not None:
        counts |= _vision_parameters(vision)
    if text is not None:
        counts |= _text_parameters(text)
        if vision is not None and config.use_gated_cross_attention:
            counts["visual gates"] = text.num_hidden_layers
    return counts


def _text_parameters(c: Any) -> dict[str, int]:
    E, HD, KD = c.hidden_size, c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    bias = HD + 2 * KD if c.attention_bias else 0
    norms = 2 * c.head_dim if c.qk_norm else 0
    layer = E * HD + 2 * E * KD + HD * E + bias + norms + 3 * E * c.intermediate_size + 2 * E
    cross = E * HD + 2 * c.encoder_hidden_size * KD + HD * E + bias + E + 1
    counts = {"token embeddings": c.vocab_size * E, "decoder layers": c.num_hidden_layers * layer}
    if c.cross_attention_layers:
        counts["cross-attention"] = len(c.cross_attention_layers) * cross
    counts["final norm"] = E
    if not c.tie_word_embeddings:
        counts["language-model head"] = c.vocab_size * E
    return counts


def _vision_parameters(c: Any) -> dict[str, int]:
    E, M, W = c.embed_dim, int(c.embed_dim * c.mlp_ratio), c.embed_dim * c.spatial_merge_size**2
    block = (3 * E * E + 3 * E) + (E * E + E) + (E * M + M) + (M * E + E) + 4 * E
    merger = 2 * W + (W * W + W) + (W * c.hidden_size + c.hidden_size)
    counts = {"patch embedding": E * c.in_channels * c.temporal_patch_size * c.patch_size**2}
    if c.use_progressive_patches:
        counts["progressive patches"] = E * E + E
    return counts | {
        "encoder blocks": c.depth * block,
        "merger": merger,
        "DeepStack mergers": len(c.deepstack_visual_indexes) * merger,
    }


# --- FLOPs ---------------------------------------------------------------------------------------------------------


def forward_flops(config: Any, *, rows: int = 1, tokens: int = 0, media: Sequence[Medium] = ()) -> dict[str, int]:
    """Floating-point operations of a forward pass by part.

    Cross-attention layers are not counted: they run only where encoder states are given.

    Args:
        rows: B. Each has `tokens` (S, media included) and all of `media`.
    """
    text, vision = parts(config)
    flops: dict[str, int] = {}
    if vision is not None:
        flops |= {name: rows * count for name, count in _vision_flops(vision, media).items()}
    if text is not None:
        flops |= {name: rows * count for name, count in _text_flops(text, tokens, tokens).items()}
    return flops


def _text_flops(c: Any, queries: int, keys: int) -> dict[str, int]:
    """Of `queries` tokens that see `keys` tokens, themselves included; logits of every query."""
    E, HD, KD = c.hidden_size, c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    seen = sum(keys if kind == "full_attention" else min(keys, c.sliding_window) for kind in c.layer_types)
    layer = 2 * (2 * E * HD + 2 * E * KD + 3 * E * c.intermediate_size)
    return {
        "decoder layers": queries * c.num_hidden_layers * layer,
        "decoder attention": 4 * queries * seen * HD,
        "language-model head": 2 * queries * E * c.vocab_size,
    }


def _vision_flops(c: Any, media: Sequence[Medium]) -> dict[str, int]:
    E, M, W = c.embed_dim, int(c.embed_dim * c.mlp_ratio), c.embed_dim * c.spatial_merge_size**2
    patches = sum(medium.patches for medium in media)
    merger = patches // c.spatial_merge_size**2 * 2 * (W * W + W * c.hidden_size)
    squares = sum(length**2 for medium in media for length in medium.segments(c.temporal_window_size))
    frames = sum(medium.patches * (1 if medium.still else c.temporal_patch_size) for medium in media)
    return {
        "patch embedding": 2 * frames * c.in_channels * c.patch_size**2 * E,
        "progressive patches": 2 * patches * E * E if c.use_progressive_patches else 0,
        "encoder blocks": c.depth * patches * 2 * (4 * E * E + 2 * E * M),
        "encoder attention": c.depth * 4 * squares * E,
        "mergers": merger * (1 + len(c.deepstack_visual_indexes)),
    }


def training_flops(forward: dict[str, int], *, checkpointing: bool = False) -> int:
    """Of a step: every product once forward and twice backward, but pixels need no gradient. With checkpointing layers
    and blocks run forward once more."""
    again = ("decoder layers", "decoder attention", "encoder blocks", "encoder attention") if checkpointing else ()
    return 3 * sum(forward.values()) - forward.get("patch embedding", 0) + sum(forward.get(name, 0) for name in again)


# --- Memory --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Widths:
    """Bytes of a number: in products, on the residual stream, and whether autocast makes a copy per product."""

    compute: int
    residual: int
    copies: bool

    @classmethod
    def of(cls, precision: str, strategy: str) -> Widths:
        """DDP keeps float32 weights and lets autocast make 16-bit copies; the sharding strategies compute with 16-bit
        weights."""
        if precision == "fp32":
            return cls(4, 4, False)
        return cls(2, 4, True) if strategy == "ddp" else cls(2, 2, False)


def activation_bytes(
    config: Any,
    widths: Widths,
    *,
    rows: int = 1,
    tokens: int = 0,
    media: Sequence[Medium] = (),
    checkpointing: bool = False,
) -> dict[str, int]:
    """What autograd keeps from the forward pass to the backward pass, by part, without the loss; for SDPA or flash
    attention and no dropout. With checkpointing, layers and blocks keep their inputs only, and the largest is there
    once, while it is computed again."""
    text, vision = parts(config)
    found: dict[str, int] = {}
    whole = []  # a block, a layer
    if vision is not None and media:
        block, rest = (rows * size for size in _vision_activations(vision, widths, media))
        kept = rows * sum(medium.patches for medium in media) * vision.embed_dim * widths.compute
        found["encoder blocks"] = vision.depth * (kept if checkpointing else block)
        found["patches and mergers"] = rest
        found["deformable bias"] = _bias_bytes(vision, widths, media)
        whole.append(block)
    if text is not None:
        layer = rows * tokens * _layer_activations(text, widths)
        kept = rows * tokens * text.hidden_size * widths.residual
        found["decoder layers"] = text.num_hidden_layers * (kept if checkpointing else layer)
        found["final norm"] = rows * tokens * _norm_activations(text.hidden_size, widths, consumers=1)
        if vision is not None and media and config.use_gated_cross_attention:  # what the gates scale
            found["DeepStack features"] = len(config.deepstack_decoder_layers) * kept
        whole.append(layer)
    if checkpointing:
        found["layer computed again"] = max(whole)
    return found


def _norm_activations(E: int, widths: Widths, *, consumers: int) -> int:
    """Per token: the input in float32, its reciprocal root, the normalised input, and what the next products read."""
    return 4 * E + 4 + widths.residual * E + widths.compute * E * (consumers if widths.copies else 1)


def _layer_activations(c: Any, widths: Widths) -> int:
    """Per token of one decoder layer."""
    E, HD, KD = c.hidden_size, c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    norms = _norm_activations(E, widths, consumers=3) + _norm_activations(E, widths, consumers=2)
    if c.qk_norm:
        norms += _norm_activations(HD, widths, consumers=1) + _norm_activations(KD, widths, consumers=1)
    # Rotated queries and keys, values, the kernel's output, and that rearranged; a float32 number per head.
    attention = widths.compute * (3 * HD + 2 * KD) + 4 * c.num_attention_heads
    mlp = widths.compute * 4 * c.intermediate_size  # gate, its activation, up, their product
    return norms + attention + mlp


def _vision_activations(c: Any, widths: Widths, media: Sequence[Medium]) -> tuple[int, int]:
    """Of one block, and of what stands before and after the blocks, for one row's media."""
    E, M, b = c.embed_dim, int(c.embed_dim * c.mlp_ratio), widths.compute
    patches = sum(medium.patches for medium in media)
    norm_input = 4 if widths.copies else b  # under autocast layer norms read and write float32
    statistics = 8 if b == 4 or widths.copies else 2 * b
    # Two norms and what follows them; qkv, whose values are a view; rotated q and k; output, and that joined.
    block = 2 * (norm_input * E + statistics) + b * E * (2 + 3 + 2 + 2) + 4 * c.num_heads + b * 2 * M
    taps = len(c.deepstack_visual_indexes)
    # Of a merger: the normed block, and both sides of its activation. The last one's input is no block's.
    mergers = patches * E * (norm_input + (1 + taps) * 3 * b)
    pixels = (
        sum(m.patches * (1 if m.still else c.temporal_patch_size) for m in media) * c.in_channels * c.patch_size**2
    )
    coarse = 2 * patches * E * b if c.use_progressive_patches else 0
    return patches * block, mergers + pixels * b + coarse


def _bias_bytes(c: Any, widths: Widths, media: Sequence[Medium]) -> int:
    """One (L, L) bias per geometry, for all rows, heads and blocks."""
    if not c.use_deformable_attention:
        return 0
    shapes = {(m.groups, m.frame, length) for m in media for length in m.segments(c.temporal_window_size)}
    return sum(length**2 for _, _, length in shapes) * widths.compute


def logit_bytes(vocabulary: int, tokens: int, widths: Widths, *, loss: str) -> int:
    """The largest moment of the loss: logits, in float32 too, and their gradient; of one chunk, or of all tokens."""
    logits = vocabulary * tokens
    if loss == "chunked":
        logits = min(logits, max(CHUNK_LOGITS, vocabulary))
    return logits * (4 + 4 + (widths.compute if widths.compute < 4 else 0))


def state_bytes(parameters: int, *, precision: str, strategy: str, gpus: int, optimizer: str) -> dict[str, int]:
    """Bytes per GPU of weights, gradients and optimizer states, all parameters being trained.

    `ddp` keeps everything everywhere; `fsdp` (FSDP2) shards float32 weights, gradients and states; `zero2` and `zero3`
    compute in the given precision with float32 master weights beside the states, and shard gradients and states, or
    everything.
    """
    P, share, b = parameters, -(-parameters // gpus), 4 if precision == "fp32" else 2
    states = OPTIMIZERS[optimizer]
    if strategy == "ddp":
        copies = 0 if precision == "fp32" else 2 * P  # autocast's
        return {"weights": 4 * P + copies, "gradients": 4 * P, "optimizer": states * P}
    if strategy == "fsdp":
        return {"weights": 4 * share, "gradients": 4 * share, "optimizer": states * share}
    weights = b * (P if strategy == "zero2" else share)
    return {"weights": weights, "gradients": b * share, "optimizer": (4 + states) * share}


def cache_bytes(c: Any, *, rows: int, tokens: int, width: int) -> int:
    """Keys and values of `tokens` tokens per row; sliding layers keep their window."""
    kept = sum(tokens if kind == "full_attention" else min(tokens, c.sliding_window) for kind in c.layer_types)
    return 2 * rows * kept * c.num_key_value_heads * c.head_dim * width


# --- All together --------------------------------------------------------------------------------------------------


def estimate(
    config: Any,
    *,
    batch_size: int = 1,
    sequence_length: int = 2048,
    media: Sequence[Medium] = (),
    precision: str = "bf16",
    gpus: int = 1,
    strategy: str = "ddp",
    optimizer: str = "adamw",
    checkpointing: bool = False,
    loss: str = "chunked",
) -> dict[str, dict[str, int]]:
    """Everything about one training step and about inference with a config.

    Args:
        batch_size: B, rows per GPU.
        sequence_length: S, tokens of a row, those of its media included.
        media: pictures and clips of every row.
        loss: `chunked`, or `full` logits at once.

    Returns:
        `parameters` by part; `training memory` in bytes per GPU; `training compute` in FLOPs; `inference` in bytes and
        FLOPs; each with a `total` where a sum makes sense.

    Raises:
        ValueError: media that do not fit the row, or none for a vision encoder.
    """
    text, vision = parts(config)
    _check_media(text, vision, media, sequence_length)
    tokens = sequence_length if text is not None else 0
    parameters = count_parameters(config)
    total = sum(parameters.values())
    widths = Widths.of(precision, strategy)
    size: dict[str, Any] = {"rows": batch_size, "tokens": tokens, "media": media}
    memory = state_bytes(total, precision=precision, strategy=strategy, gpus=gpus, optimizer=optimizer)
    memory["activations"] = sum(activation_bytes(config, widths, **size, checkpointing=checkpointing).values())
    if text is not None:
        memory["logits"] = logit_bytes(text.vocab_size, batch_size * tokens, widths, loss=loss)
    forward = forward_flops(config, **size)
    step = training_flops(forward)
    compute = {**forward, "forward": sum(forward.values()), "step": step}
    if checkpointing:
        compute["step, recomputed layers included"] = training_flops(forward, checkpointing=True)
    compute["step, all GPUs"] = step * gpus
    if text is not None:
        compute["per token"] = step // (batch_size * tokens)
    return {
        "parameters": {**parameters, "total": total},
        "training memory": {**memory, "total": sum(memory.values())},
        "training compute": compute,
        "inference": _inference(config, total, 4 if precision == "fp32" else 2, **size),
    }


def _check_media(text: Any, vision: Any, media: Sequence[Medium], tokens: int) -> None:
    if media and vision is None:
        raise ValueError(message("images", len(media), "this config has no vision encoder"))
    if not media and text is None:
        raise ValueError(message("images", 0, "a vision encoder needs pictures or clips", "give --images HxW"))
    if media and text is not None:
        needed = sum(medium.patches for medium in media) // vision.spatial_merge_size**2
        if needed > tokens:
            raise ValueError(message("sequence_length", tokens, f"is less than the {needed} tokens of the media"))


def _inference(
    config: Any, parameters: int, width: int, *, rows: int, tokens: int, media: Sequence[Medium]
) -> dict[str, int]:
    """Bytes, and FLOPs of reading a prompt and of writing the next token of every row."""
    text, _ = parts(config)
    found = {"weights": parameters * width}
    forward = forward_flops(config, rows=rows, tokens=tokens, media=media)
    if text is None:
        return {**found, "forward FLOPs": sum(forward.values())}
    cache = cache_bytes(text, rows=rows, tokens=tokens, width=width)
    head = forward["language-model head"]  # a prompt needs the logits of its last token only
    return {
        **found,
        "key-value cache": cache,
        "prompt FLOPs": sum(forward.values()) - head + head // tokens,
        "FLOPs per new token": rows * sum(_text_flops(text, 1, tokens).values()),
    }


# --- The verb ------------------------------------------------------------------------------------------------------


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    presets = "; ".join(f"{name}: {line}" for name, line in PRESETS.items())
    parser.description = f"Parameters, memory and compute of a config, by formula. Presets: {presets}."
    parser.epilog = "example: arlow estimate text --batch-size 4 --gpus 8 --strategy fsdp --checkpointing"
    parser.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    add = parser.add_argument
    add("config", metavar="CONFIG", help="a directory, a config.json, or a preset")
    add("--batch-size", type=int, default=1, metavar="B", help="rows per GPU")
    add("--sequence-length", type=int, default=2048, metavar="S", help="tokens of a row, media included")
    add("--images", nargs="+", default=[], metavar="HxW", help="pictures of every row, in pixels")
    add("--videos", nargs="+", default=[], metavar="TxHxW", help="clips of every row, sampled frames and pixels")
    add("--precision", choices=PRECISIONS, default="bf16", help="of products")
    add("--gpus", type=int, default=1, metavar="N", help="how many share the work")
    add("--strategy", choices=STRATEGIES, default="ddp", help="how they share it")
    add("--optimizer", choices=tuple(OPTIMIZERS), default="adamw", help="its states")
    add("--checkpointing", action="store_true", help="recompute layers in the backward pass")
    add("--loss", choices=("chunked", "full"), default="chunked", help="logits of a chunk, or of all tokens at once")
    add("--json", action="store_true", help="plain numbers: bytes, FLOPs, parameters")


def check(options: argparse.Namespace) -> Callable[[], int]:
    """Everything is checked and computed at once; the work left is to print it. Raises `OSError`, `ValueError`."""
    for name in ("batch_size", "sequence_length", "gpus"):
        if getattr(options, name) < 1:
            raise ValueError(message(name, getattr(options, name), "must be positive"))
    config = read_config(options.config)
    _, vision = parts(config)
    sizes = [(text, 2) for text in options.images] + [(text, 3) for text in options.videos]
    for text, sides in sizes:
        if text.lower().count("x") != sides - 1:
            kind, form = ("images", "HxW") if sides == 2 else ("videos", "TxHxW")
            raise ValueError(message(kind, text, f"is not of the form {form}"))
    if sizes and vision is None:
        raise ValueError(message("images", options.images + options.videos, "this config has no vision encoder"))
    taken = ("batch_size", "sequence_length", "precision", "gpus", "strategy", "optimizer", "checkpointing", "loss")
    given = {name: getattr(options, name) for name in taken}
    result = estimate(config, media=[medium_from(text, vision) for text, _ in sizes], **given)

    def show() -> int:
        print(json.dumps(result, indent=1) if options.json else describe(result))
        return 0

    return show


def describe(result: dict[str, dict[str, int]]) -> str:
    """The estimate as a table: parameters, GiB, FLOPs."""
    lines = []
    for title, values in result.items():
        unit = {"parameters": "parameters", "training memory": "GiB per GPU", "training compute": "FLOPs per GPU"}
        lines.append(f"{title} ({unit.get(title, 'GiB, FLOPs')})")
        for name, value in values.items():
            in_bytes = title == "training memory" or name in ("weights", "key-value cache")
            shown = f"{value:,}" if title == "parameters" else f"{value / GIB:,.2f}" if in_bytes else f"{value:.3e}"
            lines.append(f"  {name:<34} {shown:>16}")
    return "\n".join(lines)
