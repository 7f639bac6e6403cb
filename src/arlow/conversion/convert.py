"""`convert`: a checkpoint directory in, one of today's Arlow out, tensor by tensor, or nothing at all.

Flow: read the config and every header -> compare with the model they shall become -> write into a directory beside the
destination -> give it its name. Up to there, nothing that fails leaves a trace.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from tqdm.auto import tqdm
from transformers import AutoTokenizer, GenerationConfig, PreTrainedConfig

from .. import modeling_arlow
from ..checkpoint import check_checkpoint, listed, read_index
from ..configuration_arlow import ArlowConfig
from ..earlier_config import generation_of
from ..errors import CheckpointMismatch, cut, message
from .families import FAMILIES, class_of, text_config_of
from .shards import Change, Stored, read_header, rows_in_halves, same_bytes, write_shard


WEIGHTS, INDEX, HEAD = "model.safetensors", "model.safetensors.index.json", "lm_head.weight"
GENERATION, TOKENIZER = "generation_config.json", "tokenizer_config.json"
TEMPLATES = "additional_chat_templates"  # a directory
TURNED = re.compile(r"(^|\.)self_attn\.[qk]_proj\.(weight|bias)$")  # rows that rotary embedding pairs
WITHOUT_USE = re.compile(r"(^|\.)rotary_emb\.inv_freq$")  # constants that old files of other families hold
BESIDE = re.compile(  # what else belongs to a checkpoint
    r"(tokenizer.*|.*\.model|.*\.tiktoken|tekken\.json|vocab.*|merges\.txt|special_tokens_map\.json|added_tokens\.json|"
    r"chat_template.*|(.*_)?preprocessor_config\.json|processor_config\.json|generation_config\.json|"
    r"(LICEN[CS]E|NOTICE|USE_POLICY).*)$"
)


@dataclass(frozen=True)
class Plan:
    """What will be written: a config, and which tensors in which file."""

    config: PreTrainedConfig
    generation: dict[str, Any]  # settings that old configs keep themselves
    shards: dict[str, list[Stored]]
    head_dim: int | None  # where query and key rows are reordered
    tokenizer: str | None  # its class


def convert(
    source: str | os.PathLike, destination: str | os.PathLike, *, family: str | None = None, progress: bool = False
) -> Path:
    """Write the checkpoint at `source` as one of today's Arlow, with its tokenizer and generation config.

    Args:
        source: directory or hub name; safetensors.
        destination: directory, new or empty. It comes into being when everything is in it.
        family: "llama", "mistral", "qwen2" or "qwen3"; default: an earlier Arlow.
        progress: show a bar.

    Returns:
        `destination`.

    Raises:
        OSError: the source is missing, truncated, corrupt or pickled; the destination is in use or cannot be written.
        ValueError: a config that Arlow does not compute exactly; tensors missing, left over or of another shape
            ([`CheckpointMismatch`]).
    """
    destination = Path(destination)
    taken = destination.is_symlink() or destination.is_file()
    if taken or (destination.is_dir() and any(destination.iterdir())):
        raise OSError(message("destination", str(destination), "is in use", "name a new directory"))
    folder = _local(source)
    plan = make_plan(folder, family)
    beside = [file for file in sorted(folder.iterdir()) if file.is_file() and BESIDE.match(file.name)]
    size = sum(tensor.size for shard in plan.shards.values() for tensor in shard)
    with (
        _appearing(destination, size) as out,
        tqdm(total=size, unit="B", unit_scale=True, disable=not progress) as bar,
    ):
        for name, tensors in plan.shards.items():
            write_shard(out / name, tensors, change=partial(_change, head_dim=plan.head_dim), advance=bar.update)
        if len(plan.shards) > 1:
            places = {tensor.name: name for name, shard in plan.shards.items() for tensor in shard}
            index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(places.items()))}
            (out / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        plan.config.save_pretrained(out)
        (out / GENERATION).write_text(json.dumps(plan.generation, indent=2) + "\n", encoding="utf-8")
        for file in beside:
            shutil.copyfile(file, out / file.name)
        if (folder / TEMPLATES).is_dir():
            shutil.copytree(folder / TEMPLATES, out / TEMPLATES)
        if plan.tokenizer is not None:
            # Transformers would guess it by the type of the model.
            file = out / TOKENIZER
            named = {**(_read_json(file) if file.is_file() else {}), "tokenizer_class": plan.tokenizer}
            file.write_text(json.dumps(named, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return destination


def make_plan(folder: Path, family: str | None) -> Plan:
    """Everything that can be wrong with a source, looked at before a byte is written; raises as `convert`."""
    config: Any
    fields = _read_json(folder / "config.json")
    generation = None
    if family is not None:
        if family not in FAMILIES:
            raise ValueError(message("family", family, f"expected one of {', '.join(FAMILIES)}"))
        config = text_config_of(family, fields)
        name = class_of(family, fields)
    else:
        if fields.get("model_type") in FAMILIES:
            raise ValueError(message("model_type", fields["model_type"], "no Arlow checkpoint", "see --from"))
        generation = generation_of(fields)
        if generation is None:
            problem = "not of an earlier Arlow: there is nothing to convert"
            raise ValueError(message("model_type", fields.get("model_type"), problem))
        config = ArlowConfig.from_dict(fields)
        name = (fields.get("architectures") or [None])[0]
        if name == "ArlowModel" and config.model_type == "arlow_text":  # the text model of V2
            name = "ArlowTextModel"
        if name not in modeling_arlow.__all__:
            raise ValueError(message("architectures", fields.get("architectures"), "names no Arlow model"))
    config.architectures = [name]
    check_checkpoint(folder)
    files = (
        [WEIGHTS] if (folder / WEIGHTS).is_file() else read_index(folder / INDEX) if (folder / INDEX).is_file() else []
    )
    if not files:
        raise OSError(message("source", str(folder), f"holds no {WEIGHTS}"))
    shards = {file: read_header(folder / file) for file in files}
    kept = _checked(shards, getattr(modeling_arlow, name), config, folder)
    tokenizer = _tokenizer_class(folder)
    head_dim = None if generation is None else getattr(config.get_text_config(), "head_dim", None)
    known = sorted(vars(GenerationConfig()).keys() & fields.keys() - {"transformers_version"})
    settings = {name: fields[name] for name in known if not name.startswith("_")}
    if (folder / GENERATION).is_file():
        _read_json(folder / GENERATION)
    return Plan(config, settings, kept, head_dim, tokenizer)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OSError(message("source", str(file.parent), f"has no readable {file.name} ({error})")) from error
    if not isinstance(fields, dict):
        raise OSError(message("source", str(file.parent), f"its {file.name} must hold a JSON object of fields"))
    return fields


def _tokenizer_class(folder: Path) -> str | None:
    """The class of the source's tokenizer, None where it has none. Raises `OSError` if it cannot be read."""
    if not any((folder / name).is_file() for name in ("tokenizer.json", TOKENIZER, "tokenizer.model", "vocab.json")):
        return None
    try:
        return type(AutoTokenizer.from_pretrained(folder)).__name__
    except Exception as error:  # the library's own kinds, those of the readers below it
        raise OSError(message("source", str(folder), cut(f"its tokenizer cannot be read ({error})"))) from error


def _checked(
    shards: dict[str, list[Stored]], kind: type, config: PreTrainedConfig, folder: Path
) -> dict[str, list[Stored]]:
    """The shards without what no model needs. Raises `CheckpointMismatch` where they are not exactly the model."""
    with torch.device("meta"):
        model = kind(config)
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    if getattr(config, "tie_word_embeddings", False) and _has_own_head(shards):
        config.tie_word_embeddings = False  # Transformers ties only what is alike
    tied = {HEAD} if getattr(config, "tie_word_embeddings", False) else set()
    wanted = {name: shape for name, shape in wanted.items() if name not in tied}
    kept = {
        file: [tensor for tensor in shard if tensor.name not in tied and not WITHOUT_USE.search(tensor.name)]
        for file, shard in shards.items()
    }
    counts = Counter(tensor.name for shard in kept.values() for tensor in shard)
    given = {tensor.name: tensor.shape for shard in kept.values() for tensor in shard}
    shared = given.keys() & wanted.keys()
    for problem, names in (
        ("in several files", {name for name, count in counts.items() if count > 1}),
        ("missing", wanted.keys() - given.keys()),
        ("left over", given.keys() - wanted.keys()),
        ("of another shape than the config says", {name for name in shared if given[name] != wanted[name]}),
    ):
        if names:
            raise CheckpointMismatch(f"source={str(folder)!r}: tensors {problem}: {listed(set(names))}")
    return kept


def _has_own_head(shards: dict[str, list[Stored]]) -> bool:
    """Whether a head is stored that differs from the embedding."""
    stored = {tensor.name: tensor for shard in shards.values() for tensor in shard}
    head = stored.get(HEAD)
    embedding = next((tensor for name, tensor in stored.items() if name.endswith("embed_tokens.weight")), None)
    return head is not None and embedding is not None and not same_bytes(head, embedding)


def _change(tensor: Stored, head_dim: int | None) -> Change | None:
    return rows_in_halves(tensor, head_dim) if head_dim is not None and TURNED.search(tensor.name) else None


def _local(source: str | os.PathLike) -> Path:
    """The directory, or a hub name downloaded. Raises `OSError` where there is neither."""
    folder = Path(source)
    if folder.is_dir():
        return folder
    name = str(source)
    if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        raise OSError(message("source", name, "no such directory"))
    try:
        return Path(snapshot_download(name, ignore_patterns=["*.bin", "*.pth", "*.gguf", "original/*", "*.msgpack"]))
    except (OSError, ValueError) as error:
        raise OSError(message("source", name, f"no such directory, and not on the hub ({error})")) from error


@contextmanager
def _appearing(destination: Path, size: int) -> Iterator[Path]:
    """A directory that becomes `destination` at the end, or disappears. Raises `OSError` where there is no room."""
    parent = destination.absolute().parent
    free = shutil.disk_usage(next(path for path in (parent, *parent.parents) if path.exists())).free
    if size > free:
        problem = f"{free / 1e9:.2f} GB free, the checkpoint takes {size / 1e9:.2f} GB"
        raise OSError(message("destination", str(destination), problem))
    made = [path for path in (parent, *parent.parents) if not path.exists()]
    try:
        parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", dir=parent))
    except OSError as error:
        raise OSError(message("destination", str(destination), f"cannot be written ({error.strerror})")) from error
    try:
        yield folder
        folder.chmod(_usual_mode())  # temporary directories are for their owner alone
        if destination.is_dir():
            destination.rmdir()
        folder.rename(destination)
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(message("destination", str(destination), f"cannot be written ({error})")) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for path in made:
            with suppress(OSError):  # not empty: it has the destination in it
                path.rmdir()


def _usual_mode() -> int:
    """The mode of a new directory under this process's umask."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o777 & ~mask
