"""Libraries that come with an extra, imported where they are needed."""

from __future__ import annotations

import importlib
from typing import Any


def need(module: str, extra: str) -> Any:
    """A module by its dotted name. Raises `ImportError` that names what is missing and the extra that brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = (error.name or module).partition(".")[0]
        remedy = f"install the extra with pip install 'arlow[{extra}]'"
        raise ImportError(f"{missing} is not installed; {remedy}", name=missing) from error
