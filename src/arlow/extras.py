"""Libraries that come with an extra, imported where they are needed."""

from __future__ import annotations

import importlib
from typing import Any

from .errors import cut


def need(module: str, extra: str) -> Any:
    """A module by its dotted name. Raises `ImportError` that names what is missing and the extra that brings it, or
    says why what is there cannot be imported."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = (error.name or module).partition(".")[0]
        remedy = f"install the extra with pip install 'arlow[{extra}]'"
        raise ImportError(f"{missing} is not installed; {remedy}", name=missing) from error
    except ImportError as error:  # built for other versions of what is here
        raise ImportError(cut(f"{module} cannot be imported ({error})"), name=module) from error
