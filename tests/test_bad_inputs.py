"""Every bad input of the corpus is answered with the right error, which says where, in less than 300 characters."""

from __future__ import annotations

import importlib
import pkgutil
import re
from pathlib import Path

import bad_inputs
import pytest
from bad_inputs import BadInput


ROOMS = sorted(module.name for module in pkgutil.iter_modules(bad_inputs.__path__))
CASES: list[BadInput] = [case for room in ROOMS for case in importlib.import_module(f"bad_inputs.{room}").CASES]


@pytest.mark.parametrize("case", CASES, ids=[f"{case.room}-{case.name}".replace(" ", "_") for case in CASES])
def test_bad_input_is_answered(case: BadInput, tmp_path: Path) -> None:
    """A bad input raises its error, names the place, stays short and shows no memory addresses."""
    with pytest.raises(case.error) as caught:
        case.attempt(tmp_path)
    text = str(caught.value)
    assert case.names in text, text
    assert len(text) < 300, text
    assert not re.search(r"0x[0-9a-f]{8}", text, re.I), text


def test_names_are_unique() -> None:
    """No two cases of a room share a name, so that each row of the table is one case."""
    names = [(case.room, case.name) for case in CASES]
    assert len(names) == len(set(names))
