"""Pytest plugin of the conformance run: what became of every test, and which mixin it comes from, as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest


OWN = "Arlow's own"

_records: dict[str, dict[str, Any]] = {}


def mixin_of(item: pytest.Item) -> str:
    """The class of Transformers' tests that first declared this test; an override counts for what it overrides."""
    cls, name = getattr(item, "cls", None), item.name
    owners = [c for c in getattr(cls, "__mro__", ()) if name in vars(c) and c.__module__.startswith("tests.")]
    if owners:
        return owners[-1].__name__
    return getattr(cls, "mixin", OWN)


def pytest_itemcollected(item: pytest.Item) -> None:
    cls = getattr(item, "cls", None)
    if cls is None:
        return
    test = getattr(cls, item.name)
    mixin = mixin_of(item)
    item.user_properties += [("group", cls.__name__), ("mixin", mixin)]
    if test.__module__ == cls.__module__ and mixin != getattr(cls, "mixin", OWN):
        item.user_properties.append(("adapted", " ".join((test.__doc__ or "").split())))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    facts = dict(report.user_properties)
    if "mixin" not in facts:
        return
    record = _records.setdefault(report.nodeid, {**facts, "outcome": "passed", "reason": "", "seconds": 0.0})
    record["seconds"] += report.duration
    if report.failed:
        record["outcome"] = "failed"
    elif report.skipped and record["outcome"] != "failed":
        record["outcome"] = "skipped"
        if isinstance(report.longrepr, (tuple, list)):
            record["reason"] = str(report.longrepr[2]).removeprefix("Skipped: ")


@pytest.hookimpl(wrapper=True)
def pytest_sessionfinish(session: pytest.Session) -> Iterator[None]:
    yield
    path = os.environ.get("CONFORMANCE_RECORDS")
    if path and not hasattr(session.config, "workerinput"):  # only the process that collects from all workers
        with open(path, "w", encoding="utf-8") as file:
            json.dump(_records, file, indent=1)
