"""A checkpoint directory looked over: before it is loaded, complete, readable and without code; afterwards, with every
tensor in its place."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from .earlier_config import UNPAIRED_FREQUENCIES, todays_form
from .errors import CheckpointMismatch, message


HEADS = {  # class -> what it has besides the model without a head
    "ArlowForCausalLM": "lm_head",
    "ArlowForConditionalGeneration": "lm_head",
    "ArlowForSequenceClassification": "score",
    "ArlowForTokenClassification": "score",
    "ArlowForQuestionAnswering": "qa_outputs",
}
BASES = ("ArlowModel", "ArlowTextModel", "ArlowVLVisionModel", "ArlowTower")


def check_checkpoint(
    path: str | os.PathLike | None, subfolder: str = "", *, pickled: bool = False, variant: str | None = None
) -> None:
    """Refuse what cannot or must not be loaded. Only local directories are looked at; a hub name passes.

    Raises:
        OSError: a shard is missing, truncated or corrupt, or there are only pickled weights and `pickled` is false.
        ValueError: a shard index, pickled or of another variant, is no index or names a file outside its directory.
    """
    folder = Path(path or "", subfolder or "")
    if path is None or not folder.is_dir():
        return
    files = (file for kind in ("safetensors", "bin") for file in folder.glob(f"*.{kind}.index*.json"))
    shards_of = {file.name: read_index(file) for file in sorted(files)}
    if pickled:
        return
    tag = f".{variant}" if variant else ""
    weights, index = f"model{tag}.safetensors", f"model.safetensors.index{tag}.json"
    if (folder / weights).is_file():
        shards = [weights]
    else:
        shards = shards_of.get(index, [])
        bins = sorted(folder.glob("pytorch_model*.bin"))
        if not shards and bins:
            problem = "pickled weights can run code and are not loaded unless asked for"
            raise OSError(message("checkpoint", str(bins[0]), problem, "pass use_safetensors=False if you trust them"))
    for shard in shards:
        check_shard(folder / shard)


def read_index(index: Path) -> list[str]:
    """File names of the shards an index lists."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(message("checkpoint", str(index), "is no shard index", "it needs a weight_map")) from error
    for name in names:
        # By name, not by resolved path: the hub's cache keeps its files behind links.
        if not isinstance(name, str) or Path(name).name != name or name in ("", ".", ".."):
            raise ValueError(message("weight_map", name, f"in {index.name} points outside its directory"))
    return names


def check_shard(file: Path) -> None:
    """The header of a safetensors file: it states the size of the whole, so a truncated file is found at once."""
    try:
        with safe_open(file, framework="pt"):
            pass
    except FileNotFoundError as error:
        raise OSError(message("checkpoint", str(file), "is listed in the shard index but missing")) from error
    except (SafetensorError, OSError) as error:
        problem = f"is truncated or corrupt ({' '.join(str(error).split())})"
        raise OSError(message("checkpoint", str(file), problem)) from error


def saved_config(files: Sequence[str] | None) -> dict[str, Any]:
    """The `config.json` beside the weights that are read, whatever config they are loaded with; nothing if there is
    none."""
    file = Path(files[0]).parent / "config.json" if files else None
    if file is None or not file.is_file():
        return {}
    fields = json.loads(file.read_text(encoding="utf-8"))
    return fields if isinstance(fields, dict) else {}


def check_loaded(model: Any, missing: Iterable[str], unexpected: Iterable[str], saved: dict[str, Any]) -> None:
    """Refuse a model that did not get all its tensors, or not all of the file's, but for what is meant to differ: the
    head of another class, the other part of a whole model, cross-attention that the file's config does not have.

    Args:
        missing, unexpected: names of tensors, as Transformers found them.
        saved: the file's own config.

    Raises:
        ValueError: [`CheckpointMismatch`] with the names; a config with the rotary table of another generation.
    """
    wanted = next((kind.__name__ for kind in type(model).__mro__ if kind.__name__ in (*HEADS, *BASES)), "")
    given = str((saved.get("architectures") or [None])[0]).removeprefix("FSDP")
    today = todays_form(saved)
    own = model.config.get_text_config()
    text = _text_config(today, like=own)
    # By prefix, what may be missing, and what may be left over.
    new, old = _heads(wanted, given)
    if text is not None and _crossing(text) != _crossing(own):
        new, old = [*new, r".*\.cross_attn"], [*old, r".*\.cross_attn"]
    if not today.get("use_gated_cross_attention"):
        new.append(r".*visual_gates$")
    if "text_config" in today and wanted in ("ArlowTextModel", "ArlowVLVisionModel", "ArlowTower"):
        other = r"language_model\.|lm_head\." if "Text" not in wanted else r"visual\.|.*visual_gates$|lm_head\."
        old.append(rf"(model\.)?({other})")
    for problem, found, meant in (("missing", missing, new), ("left over", unexpected, old)):
        names = {name for name in found if not any(re.match(pattern, name) for pattern in meant)}
        if names:
            where, what = f"checkpoint={model.name_or_path!r}", f"tensors {problem} for {type(model).__name__}"
            raise CheckpointMismatch(f"{where}: {what}: {listed(names)}")  # all of them
    if text is not None and _unpaired(text) != _unpaired(own):
        problem = f"{UNPAIRED_FREQUENCIES} must be as in the checkpoint's own config, {_unpaired(text)}"
        raise ValueError(message("config.rope_parameters", own.rope_parameters, problem, "load it without config="))


def _heads(wanted: str, given: str) -> tuple[list[str], list[str]]:
    """Prefixes of heads that may be missing and that may be left over, in a model of class `wanted` from a file that
    says it holds a `given`."""
    head, other = HEADS.get(wanted), HEADS.get(given)
    if given not in HEADS and given not in BASES:  # who knows: but a head that writes text is never made up
        others = {*HEADS.values()} - {head}
        return [rf"{head}\."] if head not in (None, "lm_head") else [], [rf"{other}\." for other in others]
    if wanted == given or head == other == "lm_head":
        return [], []
    return [rf"{head}\."] if head else [], [rf"{other}\."] if other else []


def _text_config(today: dict[str, Any], *, like: Any) -> Any:
    """The text config of a file, or None where it or the model has none."""
    fields = today.get("text_config") or today
    if not hasattr(like, "rope_parameters") or "vocab_size" not in fields:
        return None
    kind = type(like)  # keys it does not know were reported when the model's own config was read
    return kind.from_dict({name: value for name, value in fields.items() if name in kind.__dataclass_fields__})


def _crossing(config: Any) -> tuple[bool, list[int]]:
    return config.use_cross_attention, config.cross_attention_layers


def _unpaired(config: Any) -> bool:
    return bool(config.rope_parameters.get(UNPAIRED_FREQUENCIES))


def listed(names: set[str]) -> str:
    """All names, those of layers told once: "model.layers.[0,1].mlp.up_proj.weight"."""
    numbers: dict[str, list[int]] = {}
    for name in names:
        before, *rest = re.split(r"\.(\d+)\.", name, maxsplit=1)
        layers = numbers.setdefault(f"{before}.[].{rest[1]}" if rest else name, [])
        layers.extend(map(int, rest[:1]))
    return ", ".join(
        name.replace("[]", str(sorted(found)).replace(" ", "")) for name, found in sorted(numbers.items())
    )
