"""Attention dispatch: which kernel runs, and the masks or cumulative lengths it needs.

Sizes: B batch, S queries, K keys, H heads, D head_dim, T tokens of all rows without padding.

`choose_backend` is the whole policy, a pure function. Masks are made once per forward and layer type: a tensor (or
`None`) for eager and SDPA, a `Varlen` plan for the flash kernels, which get the padding removed.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.configuration_utils import PreTrainedConfig
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import logging

from ._compat import torch_varlen_kernel
from .configuration_arlow import ArlowTextConfig
from .cpu_attention import attend_on_cpu, pays
from .errors import message
from .extras import need
from .positions import sequence_ids


logger = logging.get_logger(__name__)

FLASH = "flash_attention_2"  # what users ask for
FLASH_KERNELS = ("flash_attn", "torch_varlen")  # what then runs, best first
MASK_MAKERS = {"full_attention": create_causal_mask, "sliding_attention": create_sliding_window_causal_mask}


class Choice(NamedTuple):
    """What runs, and why when it is not what was asked for."""

    backend: str
    reason: str = ""


def choose_backend(
    requested: str | None,
    *,
    dtype: torch.dtype,
    device_type: str,
    head_dim: int,
    kernels: tuple[str, ...] = (),
    dense: str = "",
    dropout: bool = False,
) -> Choice:
    """The attention backend for one forward.

    Args:
        requested: the config's `_attn_implementation`.
        dtype: of queries and keys; under autocast, the autocast dtype.
        device_type: of the activations ("cpu", "cuda", ...).
        head_dim: size of a head.
        kernels: the flash kernels this machine has, of `FLASH_KERNELS`, best first.
        dense: why this forward needs a dense mask or bias, which flash cannot take; empty if it does not.
        dropout: whether attention weights are dropped in this forward.

    Returns:
        `eager`, `sdpa`, one of `FLASH_KERNELS`, or another requested name unchanged (an engine's own backend).
    """
    if requested is None:
        return Choice("sdpa")
    if requested != FLASH:
        return Choice(requested)
    if device_type != "cuda":
        return Choice("sdpa", f"flash attention runs on CUDA only, the activations are on {device_type}")
    if dtype not in (torch.float16, torch.bfloat16):
        return Choice(
            "sdpa", f"flash attention takes float16 or bfloat16, the activations are {dtype}".replace("torch.", "")
        )
    if dense:
        return Choice("sdpa", dense)
    if head_dim % 8 or head_dim > 256:
        return Choice("sdpa", f"flash attention takes head sizes up to 256 in steps of 8, not {head_dim}")
    if not kernels:
        return Choice("sdpa", "flash-attn is not installed and this torch has no varlen kernel")
    if dropout and kernels[0] == "torch_varlen":
        return Choice("sdpa", "attention dropout needs flash-attn, PyTorch's varlen kernel has none")
    return Choice(kernels[0])


def backend_for(
    config: PreTrainedConfig, activations: torch.Tensor, head_dim: int, *, dense: str = "", dropout: bool = False
) -> str:
    """`choose_backend` for a model's activations. A fall-back is said once, with its reason."""
    device_type = activations.device.type
    autocast = device_type != "meta" and torch.is_autocast_enabled(device_type)
    choice = choose_backend(
        config._attn_implementation,
        dtype=torch.get_autocast_dtype(device_type) if autocast else activations.dtype,
        device_type=device_type,
        head_dim=head_dim,
        kernels=available_kernels() if config._attn_implementation == FLASH else (),
        dense=dense,
        dropout=dropout,
    )
    if choice.reason:
        logger.warning_once(f"Arlow uses {choice.backend} attention instead of {FLASH}: {choice.reason}.")
    return choice.backend


@functools.cache
def available_kernels() -> tuple[str, ...]:
    """The flash kernels of this machine, best first."""
    found = {
        "flash_attn": importlib.util.find_spec("flash_attn") is not None,
        "torch_varlen": torch_varlen_kernel() is not None,
    }
    return tuple(name for name in FLASH_KERNELS if found[name])


def attention_function(backend: str) -> Callable:
    """The function of a backend, with the signature that Transformers gives all of them:
    (module, q (B, H, S, D), k, v, mask, *, scaling, dropout, ...) -> (output (B, S, H, D), weights or None)."""
    if backend in FLASH_KERNELS:
        return functools.partial(varlen_attention, kernel=load_kernel(backend))
    if backend == "sdpa":
        return sdpa_attention
    return ALL_ATTENTION_FUNCTIONS.get_interface(backend, eager_attention)


def sdpa_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """PyTorch's fused attention as Transformers calls it, or what is faster on a CPU. In continuous batching `cache`
    holds pages: Transformers' own function writes and reads them."""
    if pays(query, dropout) and kwargs.get("cache") is None and not kwargs.get("output_attentions"):
        causal = module.is_causal if is_causal is None else is_causal
        return attend_on_cpu(query, key, value, attention_mask, scaling=scaling, causal=causal), None
    return ALL_ATTENTION_FUNCTIONS["sdpa"](
        module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, is_causal=is_causal, **kwargs
    )


def eager_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention written out: products, float32 softmax, product. `attention_mask` is added to the scores."""
    batch, heads, queries, head_dim = query.shape
    grouped = query.view(batch, key.shape[1], -1, queries, head_dim)  # [B, KV, G, S, D]
    scores = torch.matmul(grouped, key[:, :, None].transpose(-1, -2)) * scaling  # [B, KV, G, S, K]
    scores = scores.view(batch, heads, queries, -1)
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    output = torch.matmul(weights.view(batch, key.shape[1], -1, queries, weights.shape[-1]), value[:, :, None])
    return output.view(batch, heads, queries, -1).transpose(1, 2).contiguous(), weights  # [B, S, H, D]


# Masks of the text decoder


def make_masks(
    config: ArlowTextConfig,
    inputs_embeds: torch.Tensor,
    attention_mask: torch.Tensor | dict | None,
    past_key_values: Cache | None,
    position_ids: torch.Tensor | None,
    *,
    training: bool = False,
) -> tuple[str, dict[str, object]]:
    """The backend of this forward and its mask per layer type.

    Args:
        inputs_embeds: (B, S, hidden), for shape, dtype and device.
        attention_mask: (B, K) with 1 for real tokens; or masks that are ready, (B, 1, S, K) or a dict by layer type.
        past_key_values: the cache before this forward.
        position_ids: as given by the caller; positions that restart mean packed sequences.
        training: whether dropout is on.
    """
    ready = isinstance(attention_mask, dict) or (attention_mask is not None and attention_mask.ndim == 4)
    compileable = past_key_values is not None and past_key_values.is_compileable
    dense = "the attention mask is ready-made or the cache is static" if ready or compileable else ""
    dropout = training and config.attention_dropout > 0
    backend = backend_for(config, inputs_embeds, config.head_dim, dense=dense, dropout=dropout)
    if ready:
        masks = (
            attention_mask if isinstance(attention_mask, dict) else dict.fromkeys(config.layer_types, attention_mask)
        )
        return backend, masks

    # An empty cache adds no keys: treating it as none lets packed rows be seen, and masks be left out.
    cache = past_key_values if compileable or _length(past_key_values) > 0 else None
    attention_mask = _trim(attention_mask) if cache is None else attention_mask
    # A single token cannot be packed, and a decode step must not wait for the length of a static cache.
    several = position_ids is not None and position_ids.shape[-1] > 1
    packed = _packed(position_ids, attention_mask) if several and _fresh(past_key_values) else None
    packed = None if packed is None else packed.expand(len(inputs_embeds), -1)
    if packed is not None and cache is not None:
        problem = "restart within a row, and a static cache cannot hold packed sequences"
        raise ValueError(message("position_ids", position_ids, problem, "leave the cache to the model, or out"))
    kinds = dict.fromkeys(config.layer_types)
    if backend in FLASH_KERNELS:
        return backend, {kind: _varlen_plan(kind, inputs_embeds, attention_mask, cache, packed) for kind in kinds}
    view = _MaskConfig(backend, config.sliding_window)
    same = None if packed is None else lambda b, h, q, k: packed[b, q] == packed[b, k]
    return backend, {
        kind: MASK_MAKERS[kind](
            config=view,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=cache,
            and_mask_function=same,
        )
        for kind in kinds
    }


class _MaskConfig:
    """The fields of a config that the mask makers read, with the backend that runs instead of the one asked for.
    A class of our own, because a compiled forward can make one of those."""

    is_causal = True

    def __init__(self, backend: str, sliding_window: int | None) -> None:
        self._attn_implementation = backend
        self.sliding_window = sliding_window


def _fresh(cache: Cache | None) -> bool:
    """Whether no token came before. A compiled forward must not look into a static cache, and takes it as used."""
    if cache is not None and cache.is_compileable:
        return not torch.compiler.is_compiling() and int(cache.get_seq_length()) == 0
    return _length(cache) == 0


def _length(cache: Cache | None) -> int:
    return 0 if cache is None else cache.get_seq_length()


def _trim(mask: torch.Tensor | None) -> torch.Tensor | None:
    """A mask of ones says nothing; without it the kernels skip masking. Tracing must not look at values."""
    if mask is None or torch.compiler.is_compiling():
        return mask
    return None if bool(mask.all()) else mask


def _packed(position_ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor | None:
    """Sequence number of every token (B, S), or `None` if every row holds one sequence."""
    ids = sequence_ids(position_ids, None if mask is None else mask.bool())
    if not torch.compiler.is_compiling() and not bool(ids[:, -1].any()):
        return None
    return ids


# Flash kernels: rows without padding, one after the other


class Varlen(NamedTuple):
    """Where the real tokens are, for queries and keys: flat indices, cumulative lengths, longest row."""

    query_index: torch.Tensor | None  # (T,) into B*S; None: every token is real
    key_index: torch.Tensor | None  # (T',) into B*K
    cu_query: torch.Tensor  # (rows + 1,) int32
    cu_key: torch.Tensor  # (rows + 1,) int32
    max_query: int
    max_key: int


def _varlen_plan(
    kind: str,
    inputs_embeds: torch.Tensor,
    mask: torch.Tensor | None,
    cache: Cache | None,
    packed: torch.Tensor | None,
) -> Varlen:
    batch, queries = inputs_embeds.shape[:2]
    layer = 0 if cache is None else _first_layer(cache, kind)
    keys = queries if cache is None else cache.get_mask_sizes(queries, layer)[0]
    if mask is None and packed is None:
        return uniform_plan(batch, queries, keys, inputs_embeds.device)
    real = torch.ones(batch, keys, dtype=torch.bool, device=inputs_embeds.device) if mask is None else mask.bool()
    # A sliding cache holds the latest keys only, so the mask's last columns are theirs; the queries are the last keys.
    return plan_from_mask(real[:, -queries:], real[:, -keys:], packed)


def _first_layer(cache: Cache, kind: str) -> int:
    sliding = [bool(layer.is_sliding) for layer in cache.layers]
    wanted = kind == "sliding_attention"
    return sliding.index(wanted) if wanted in sliding else 0


def uniform_plan(batch: int, queries: int, keys: int, device: torch.device) -> Varlen:
    """Rows of one length without padding: no indices, no look at the device."""
    cu_query = torch.arange(0, (batch + 1) * queries, queries, dtype=torch.int32, device=device)
    cu_key = torch.arange(0, (batch + 1) * keys, keys, dtype=torch.int32, device=device)
    return Varlen(None, None, cu_query, cu_key, queries, keys)


def plan_from_mask(real_query: torch.Tensor, real_key: torch.Tensor, packed: torch.Tensor | None) -> Varlen:
    """Plan for padded rows: `real_*` are (B, S) and (B, K) bool. `packed` (B, S) splits rows into sequences."""
    if packed is None:
        query_lengths, key_lengths = real_query.sum(-1), real_key.sum(-1)
    else:
        row = torch.arange(packed.shape[0], device=packed.device)[:, None]
        number = (row * packed.shape[1] + packed)[real_query]  # sequence of each real token, over the batch
        query_lengths = key_lengths = torch.unique_consecutive(number, return_counts=True)[1]
    return Varlen(
        real_query.flatten().nonzero()[:, 0],
        real_key.flatten().nonzero()[:, 0],
        cumulative(query_lengths),
        cumulative(key_lengths),
        int(query_lengths.max()),
        int(key_lengths.max()),
    )


def cumulative(lengths: torch.Tensor) -> torch.Tensor:
    """0, l0, l0 + l1, ... as the flash kernels take it: (rows + 1,) int32."""
    return nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)


def varlen_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Varlen,
    scaling: float,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    *,
    kernel: Callable,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention over real tokens only; padding comes back as zeros. Same signature as the other backends."""
    if kwargs.get("cache") is not None:  # continuous batching: pages, which Transformers' function writes and reads
        options = {"scaling": scaling, "dropout": dropout, "sliding_window": sliding_window, **kwargs}
        return ALL_ATTENTION_FUNCTIONS[FLASH](module, query, key, value, None, **options)
    plan = attention_mask
    batch, heads, queries, head_dim = query.shape
    dtype = kernel_dtype(query)
    flat = [
        _gather(tensor.to(dtype), index)
        for tensor, index in ((query, plan.query_index), (key, plan.key_index), (value, plan.key_index))
    ]
    # The kernel counts the tokens to the left; the window counts the token itself, too.
    window = (-1 if sliding_window is None else sliding_window - 1, 0) if module.is_causal else (-1, -1)
    output = kernel(
        *flat, plan.cu_query, plan.cu_key, plan.max_query, plan.max_key,
        scale=scaling, dropout=dropout, causal=module.is_causal, window=window,
    )  # fmt: skip
    if plan.query_index is not None:
        whole = output.new_zeros(batch * queries, heads, head_dim)
        output = whole.index_copy(0, plan.query_index, output)
    return output.view(batch, queries, heads, head_dim), None


def kernel_dtype(query: torch.Tensor) -> torch.dtype:
    """The dtype a kernel runs in. Under autocast the rotary tables leave float32 queries and keys, which the flash
    kernels do not take."""
    device_type = query.device.type
    return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else query.dtype


def _gather(tensor: torch.Tensor, index: torch.Tensor | None) -> torch.Tensor:
    """(B, H, S, D) -> (T, H, D), padding left out."""
    flat = tensor.transpose(1, 2).flatten(0, 1)
    return flat if index is None else flat.index_select(0, index)


@functools.cache
def load_kernel(name: str) -> Callable:
    """One calling convention over both kernels:
    (q (T, H, D), k, v, cu_query, cu_key, max_query, max_key, *, scale, dropout, causal, window) -> (T, H, D)."""
    if name == "flash_attn":
        flash_attn_varlen_func = need("flash_attn", "flash").flash_attn_varlen_func

        def flash(q, k, v, cu_q, cu_k, max_q, max_k, *, scale, dropout, causal, window):
            return flash_attn_varlen_func(
                q,
                k,
                v,
                cu_q,
                cu_k,
                max_q,
                max_k,
                dropout_p=dropout,
                softmax_scale=scale,
                causal=causal,
                window_size=window,
            )

        return flash
    varlen = torch_varlen_kernel()

    def native(q, k, v, cu_q, cu_k, max_q, max_k, *, scale, dropout, causal, window):
        # This kernel has no dropout and says "causal" by a window without future.
        return varlen(
            q, k, v, cu_q, cu_k, max_q, max_k, scale=scale, window_size=window, enable_gqa=q.shape[1] != k.shape[1]
        )

    return native
