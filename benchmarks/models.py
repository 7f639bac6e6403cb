"""Arlow and Qwen3-VL with random weights at the same shapes. On the CPU: width 1024, 8 decoder layers with 16 query
and 4 key heads and a vocabulary of 131,072, 4 encoder blocks with patches of 14 and one DeepStack tap; on a GPU the
published sizes of Arlow (width 2304, 28 layers). Both norm queries and keys, as Qwen3-VL does.
"""

from __future__ import annotations

import contextlib
import functools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

from arlow import ArlowConfig, ArlowForConditionalGeneration, ArlowVisionConfig, ArlowVLVisionModel
from arlow.estimate import count_parameters, forward_flops

from .settings import DEVICE, sized


SMALL_TEXT = {
    "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
}  # fmt: skip
MEDIUM_TEXT = {
    "vocab_size": 131_072, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 8,
    "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 64,
}  # fmt: skip
PUBLISHED_TEXT = {
    "vocab_size": 131_072, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 28,
    "num_attention_heads": 24, "num_key_value_heads": 4, "head_dim": 96,
}  # fmt: skip
TEXT = sized(MEDIUM_TEXT, SMALL_TEXT, cuda=PUBLISHED_TEXT)
SMALL_VISION = {"depth": 2, "width": 64, "heads": 4, "taps": [0]}
VISION = sized(
    {"depth": 4, "width": 1024, "heads": 16, "taps": [1]},
    SMALL_VISION,
    cuda={"depth": 24, "width": 1280, "heads": 16, "taps": [8, 16]},
)
BLIND = {"depth": 1, "width": 64, "heads": 4, "taps": []}  # a tower that is never asked
PATCH = 14
IDS = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")


def towers(dtype: torch.dtype, *, out: int, **arlow_only: Any) -> tuple[Any, Any]:
    """The vision encoders, ready to encode."""
    with _new_weights(dtype):
        arlow = ArlowVLVisionModel(_arlow_vision(VISION, out, **arlow_only))
        peer = Qwen3VLVisionModel(_peer_vision(VISION, out))
    return arlow.eval(), peer.eval()


def new_tower(dtype: torch.dtype, *, blocks: int, **options: Any) -> Any:
    """Arlow's vision encoder by itself, without DeepStack."""
    shape = {**VISION, "depth": blocks, "taps": []}
    with _new_weights(dtype):
        return ArlowVLVisionModel(_arlow_vision(shape, shape["width"], **options)).eval()


def arlow_model(dtype: torch.dtype, text: dict[str, int], vision: dict[str, Any] = BLIND, **ids: int) -> Any:
    """The whole of Arlow; without `vision` its tower is as good as not there."""
    rope = {"rope_type": "default", "rope_theta": 100_000.0}
    config = ArlowConfig(
        text_config={**text, "qk_norm": True, "rope_parameters": rope},
        vision_config=_arlow_vision(vision, text["hidden_size"], temporal_window_size=1).to_dict(),
        **(ids or _low_ids()),
    )
    with _new_weights(dtype):
        return ArlowForConditionalGeneration(config).eval()


def peer_model(dtype: torch.dtype, text: dict[str, int], vision: dict[str, Any] = BLIND, **ids: int) -> Any:
    """The whole of Qwen3-VL, likewise."""
    sections = [text["head_dim"] // 2 - 2 * (text["head_dim"] // 6), *[text["head_dim"] // 6] * 2]
    rope = {"rope_type": "default", "rope_theta": 100_000.0, "mrope_section": sections, "mrope_interleaved": True}
    config = Qwen3VLConfig(
        text_config={**text, "rope_parameters": rope},
        vision_config=_peer_vision(vision, text["hidden_size"]).to_dict(),
        **(ids or _low_ids()),
    )
    with _new_weights(dtype):
        return Qwen3VLForConditionalGeneration(config).eval()


def text_for(tokenizer: Any) -> tuple[dict[str, int], dict[str, int]]:
    """`TEXT` with room for the tokenizer's vocabulary, and the ids of its media tokens."""
    return {**TEXT, "vocab_size": max(TEXT["vocab_size"], len(tokenizer))}, {
        name: getattr(tokenizer, name) for name in IDS
    }


def models(dtype: torch.dtype, text: dict[str, int], vision: dict[str, Any] = BLIND, **ids: int) -> tuple[Any, Any]:
    """Both, after making sure that their decoders do the same."""
    check_same_decoder()
    return arlow_model(dtype, text, vision, **ids), peer_model(dtype, text, vision, **ids)


@functools.cache
def check_same_decoder() -> None:
    """Small decoders with the same weights give the same logits and the same loss."""
    arlow, peer = arlow_model(torch.float32, SMALL_TEXT), peer_model(torch.float32, SMALL_TEXT)
    with tempfile.TemporaryDirectory() as folder:
        arlow.save_pretrained(folder)  # the names on disk are the peer's
        saved = load_file(Path(folder) / "model.safetensors", device=str(DEVICE))
    text = {name: value for name, value in saved.items() if ".visual." not in name}
    unread = peer.load_state_dict(text, strict=False)
    assert not unread.unexpected_keys and all(".visual." in name for name in unread.missing_keys), unread
    ids = torch.arange(8, 40, device=DEVICE)[None]
    with torch.no_grad():
        ours, theirs = (model(ids, labels=ids, **options) for model, options in ((arlow, {}), (peer, {})))
    torch.testing.assert_close(ours.logits, theirs.logits, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(ours.loss, theirs.loss, rtol=1e-4, atol=1e-4)


def text_flops(model: Any, *, tokens: int, logits: int) -> dict[str, float]:
    """Operations of one row of `tokens` through Arlow's decoder with `logits` of them scored; causal attention is half
    of the square."""
    parts = forward_flops(model.config.text_config, tokens=tokens)
    return {
        "decoder layers": parts["decoder layers"],
        "decoder attention": parts["decoder attention"] / 2,
        "language-model head": parts["language-model head"] * logits / tokens,
    }


def weight_bytes(model: Any) -> int:
    """What a step of decoding reads: all weights of the decoder but the table of embeddings."""
    parts = count_parameters(model.config.text_config)
    return (sum(parts.values()) - parts["token embeddings"]) * model.dtype.itemsize


def _low_ids() -> dict[str, int]:
    return {name: number for number, name in enumerate(IDS, 3)}


def _arlow_vision(shape: dict[str, Any], out: int, **options: Any) -> ArlowVisionConfig:
    return ArlowVisionConfig(
        depth=shape["depth"],
        embed_dim=shape["width"],
        num_heads=shape["heads"],
        deepstack_visual_indexes=shape["taps"],
        hidden_size=out,
        patch_size=PATCH,
        **options,
    )


def _peer_vision(shape: dict[str, Any], out: int) -> Qwen3VLVisionConfig:
    return Qwen3VLVisionConfig(
        depth=shape["depth"],
        hidden_size=shape["width"],
        intermediate_size=4 * shape["width"],
        num_heads=shape["heads"],
        deepstack_visual_indexes=shape["taps"],
        out_hidden_size=out,
        patch_size=PATCH,
    )


@contextlib.contextmanager
def _new_weights(dtype: torch.dtype) -> Iterator[None]:
    """Parameters are made where the cases run, in the wanted dtype, from one seed."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    torch.manual_seed(0)
    try:
        with DEVICE:
            yield
    finally:
        torch.set_default_dtype(before)
