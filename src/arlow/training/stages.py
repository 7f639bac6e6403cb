"""The stages by name. A stage is a module with a `Recipe` and a `train(recipe)`; it is imported when it is run."""

from __future__ import annotations

import difflib
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import message


STAGES = {
    "text": "causal language modelling of streamed text, from scratch or continued",
    "vision-mae": "masked autoencoding of pictures and videos, for the vision encoder",
    "align": "joins a vision encoder and a text model by training the merger between them",
    "finetune": "chat data with media, loss on the answers; all weights or LoRA",
}


def load_stage(name: str) -> ModuleType:
    """The module of a stage: `Recipe` and `train`.

    Raises:
        ImportError: what training needs is not installed.
        ValueError: no such stage.
    """
    if name not in STAGES:
        near = difflib.get_close_matches(name, STAGES, n=1)
        remedy = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(STAGES)}"
        raise ValueError(message("stage", name, "no such stage", remedy))
    try:
        return import_module(f".{name.replace('-', '_')}", __package__)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("arlow"):
            raise
        raise ImportError(
            message("stage", name, f"{error.name} is not installed", "pip install 'arlow[train]'")
        ) from error


def train(stage: str, config: str | Path | None = None, /, **fields: Any) -> Path:
    """Run a stage: the YAML file `config`, its fields overridden by `fields`; the same as `arlow train`.

    Returns:
        The directory of the trained model.

    Raises:
        ValueError: an unknown stage or field, or a wrong value; before anything is written.
        OSError: a file that is missing, or an output that cannot be written.
        Stopped: SIGTERM came; a checkpoint was saved, and the same call goes on from it.
    """
    from .recipe import read_recipe

    module = load_stage(stage)
    return module.train(read_recipe(module.Recipe, config, **fields))
