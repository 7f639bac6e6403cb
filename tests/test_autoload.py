"""The finder that waits for `transformers`, and the one-line `arlow.pth` that installs it."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

import pytest

from _arlow_autoload import AfterImport


ROOT = Path(__file__).parents[1]
LOAD_AS_INSTALLED = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("_arlow_autoload", {str(ROOT / "src/_arlow_autoload.py")!r})
sys.modules["_arlow_autoload"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
module.install()
"""


@pytest.fixture
def sample(tmp_path, monkeypatch) -> str:
    """The name of an importable module that nobody has imported yet."""
    (tmp_path / "arlow_sample_module.py").write_text("from pathlib import Path\nvalue = 1\nloader = __loader__\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    yield "arlow_sample_module"
    sys.modules.pop("arlow_sample_module", None)


def test_called_once_after_the_module_and_then_gone(sample):
    """The callback sees the executed module, and the finder leaves `sys.meta_path` with its last name."""
    seen = []
    finder = AfterImport({sample: lambda name: seen.append(sys.modules[name].value)})
    sys.meta_path.insert(0, finder)
    module = importlib.import_module(sample)
    assert seen == [1]
    assert finder not in sys.meta_path
    assert module.__loader__ is module.__spec__.loader is module.loader
    assert type(module.__loader__).__module__ == "_frozen_importlib_external"
    importlib.reload(module)
    assert seen == [1]


def test_asking_for_the_spec_is_not_importing(sample):
    """`find_spec`, which libraries use to probe, neither calls back nor ends the wait."""
    seen = []
    sys.meta_path.insert(0, AfterImport({sample: seen.append}))
    spec = importlib.util.find_spec(sample)
    assert spec.origin.endswith(f"{sample}.py") and seen == []
    assert spec.loader.get_source(sample).startswith("from pathlib")
    importlib.import_module(sample)
    assert seen == [sample]


def test_two_finders_may_wait_for_one_module(sample):
    """Both are called, whichever stands in front, and they do not ask each other in circles."""
    seen = []
    sys.meta_path[:0] = [
        AfterImport({sample: lambda _: seen.append("a")}),
        AfterImport({sample: lambda _: seen.append("b")}),
    ]
    importlib.import_module(sample)
    assert sorted(seen) == ["a", "b"]


def test_a_failed_import_is_waited_for_again(sample, tmp_path):
    """A module whose first import raises is still waited for."""
    seen = []
    (tmp_path / f"{sample}.py").write_text("1 / 0")
    sys.meta_path.insert(0, AfterImport({sample: seen.append}))
    with pytest.raises(ZeroDivisionError):
        importlib.import_module(sample)
    (tmp_path / f"{sample}.py").write_text("value = 10")
    importlib.invalidate_caches()
    importlib.import_module(sample)
    assert seen == [sample]


def test_unknown_module_stays_unknown(sample):
    """A name that no finder knows raises what it always raises."""
    sys.meta_path.insert(0, AfterImport({"arlow_no_such_module": print}))
    with pytest.raises(ModuleNotFoundError, match="arlow_no_such_module"):
        importlib.import_module("arlow_no_such_module")


def test_start_up_imports_nothing(fresh_python):
    """Installing the finder imports nothing else: no interpreter pays for a package it does not use."""
    before = "import sys, importlib.util\nbefore = set(sys.modules)"
    code = f"{before}\n{LOAD_AS_INSTALLED}\nprint(*sorted(set(sys.modules) - before))"
    assert fresh_python(code).strip() == "__future__ _arlow_autoload"


def test_transformers_knows_arlow_without_importing_it(fresh_python):
    """`from transformers import ArlowConfig` works in a script that never says `import arlow`."""
    code = LOAD_AS_INSTALLED + "from transformers import ArlowConfig; print(ArlowConfig.__module__)"
    assert fresh_python(code).strip() == "arlow.configuration_arlow"


def test_order_does_not_matter(fresh_python):
    """Installed after `import transformers`, as in a notebook that just ran pip, it registers at once."""
    code = (
        "import transformers\n"
        + LOAD_AS_INSTALLED
        + "print('torch' in sys.modules, transformers.ArlowConfig.model_type)"
    )
    assert fresh_python(code).strip() == "False arlow"


@pytest.mark.parametrize("debug", [False, True])
def test_a_broken_arlow_does_not_break_transformers(fresh_python, tmp_path, debug):
    """Transformers imports without Arlow, silently; ARLOW_DEBUG shows why."""
    (tmp_path / "arlow").mkdir()
    (tmp_path / "arlow" / "__init__.py").write_text("raise RuntimeError('broken install')")
    environment = {"ARLOW_DEBUG": "1"} if debug else {}
    code = LOAD_AS_INSTALLED + "import transformers; print(transformers.__name__)"
    printed = fresh_python(code, check=False, PYTHONPATH=str(tmp_path), **environment)
    assert "transformers" in printed
    assert ("broken install" in printed) is debug


def test_pth_line_runs_and_can_be_switched_off():
    """The line of `arlow.pth` is one line starting with `import`, else Python takes it for a directory."""
    (line,) = (ROOT / "arlow.pth").read_text().splitlines()
    assert line.startswith("import ") and "ARLOW_NO_AUTOLOAD" in line
    compile(line, "arlow.pth", "exec")
