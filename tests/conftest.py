"""What every test shares: no network, GPU tests skipped with a reason, and a fresh interpreter on request."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
os.environ["HF_HUB_OFFLINE"] = "1"  # a test that would reach for the hub fails at once instead of waiting


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    wanted = [item for item in items if "gpu" in item.keywords]
    if not wanted:
        return
    import torch

    if not torch.cuda.is_available():
        for item in wanted:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def fresh_python() -> Callable[..., str]:
    """Runs code in a new interpreter that can import this checkout's arlow, without the installed autoload unless
    asked for, and returns what it printed."""

    def run(code: str, *, autoload: bool = False, check: bool = True, **environment: str) -> str:
        env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1", **environment}
        if not autoload:
            env["ARLOW_NO_AUTOLOAD"] = "1"
        done = subprocess.run(
            [sys.executable, "-c", code], env=env, cwd=ROOT / "tests", capture_output=True, text=True, timeout=300
        )
        assert not check or done.returncode == 0, done.stderr[-3000:]
        return done.stdout if check else done.stdout + done.stderr

    return run
