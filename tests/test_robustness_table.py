"""`docs/robustness.md` is what the corpus of bad inputs is answered with, today.

`ARLOW_UPDATE_DOCS=1 pytest tests/test_robustness_table.py` writes the page anew.
"""

from __future__ import annotations

import os
import re
import tempfile
from itertools import groupby
from pathlib import Path

import pytest
from bad_inputs import BadInput
from test_bad_inputs import CASES


PAGE = Path(__file__).parents[1] / "docs" / "robustness.md"
INTRODUCTION = """# Robustness

Every bad input gets a `ValueError`, `TypeError` or `OSError` that names the argument, index or file, before any
heavy work, in less than 300 characters. The tables below are the corpus in `tests/bad_inputs/`: what was tried, and
the answer, word for word (temporary directories are shown as `…`). A test runs every row and holds this page to the
outcome.

How errors are worded: `<field>=<value>: <what is wrong>; <what to do>`. What people passed is cut at 80 characters,
and messages carry no addresses, credentials or payloads.
"""


def answer(case: BadInput, folder: Path) -> tuple[str, str]:
    """The error's type and text, without what differs from run to run."""
    folder.mkdir()
    try:
        case.attempt(folder)
    except case.error as error:
        text = " ".join(str(error).split()).replace(str(folder), "…")
        text = re.sub(r"(?<=127\.0\.0\.1:)\d+|(?<=localhost:)\d+", "PORT", text)
        return type(error).__name__, re.sub(r"([|\[\]_*`])", r"\\\1", text).replace("<", "&lt;")
    return "", "no error"


def build(folder: Path) -> str:
    """The page. `folder` is short: messages cut long values, and must do so alike on every machine."""
    sections = [INTRODUCTION]
    ordered = sorted(CASES, key=lambda case: case.room)
    for room, cases in groupby(ordered, key=lambda case: case.room):
        rows = [f"## {room}\n", "| Input | Error | Message |", "| --- | --- | --- |"]
        for case in cases:
            kind, text = answer(case, folder / f"{len(sections):02}{len(rows):03}")
            rows.append(f"| {case.name} | `{kind}` | {text} |")
        sections.append("\n".join(rows) + "\n")
    return "\n".join(sections)


def test_page_is_what_the_corpus_answers() -> None:
    """Each row of the page is today's answer; an error that changes its words changes the page."""
    with tempfile.TemporaryDirectory(dir="/tmp" if os.path.isdir("/tmp") else None) as folder:
        page = build(Path(folder))
    if os.environ.get("ARLOW_UPDATE_DOCS"):
        PAGE.write_text(page)
    if not PAGE.is_file():
        pytest.fail(f"{PAGE.name} is missing: run this test with ARLOW_UPDATE_DOCS=1")
    assert PAGE.read_text() == page, "run this test with ARLOW_UPDATE_DOCS=1 and look at what changed"
