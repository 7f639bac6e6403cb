"""A checkpoint directory looked over before it is loaded: complete, readable, and nothing in it that runs code."""

from __future__ import annotations

import json
import os
from pathlib import Path

from safetensors import SafetensorError, safe_open

from .errors import message


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
