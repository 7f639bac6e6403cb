"""The package as it is installed: names, version, what is in the wheel, what a saved copy of its files needs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import zipfile
from importlib.metadata import distribution, version
from pathlib import Path

import pytest

import arlow
from arlow import registration


ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "arlow"
PUBLIC = {  # the contract's list, and the policy for media
    *("ArlowConfig", "ArlowTextConfig", "ArlowVisionConfig"),
    *("ArlowPreTrainedModel", "ArlowTextModel", "ArlowVLVisionModel", "ArlowModel", "ArlowForCausalLM"),
    *("ArlowForConditionalGeneration", "ArlowForSequenceClassification", "ArlowForTokenClassification"),
    *("ArlowForQuestionAnswering", "ArlowRMSNorm", "ArlowRotaryEmbedding", "ArlowGroupedQueryAttention"),
    *("apply_rotary_pos_emb", "ArlowProcessor", "ArlowImageProcessor", "ArlowVideoProcessor", "ArlowTokenizer"),
    *("ArlowTokenizerFast", "MediaPolicy", "__version__"),
    "bundled_checkpoint",
}
REQUIRED = {
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "PIL",
    "av",
    "numpy",
    "huggingface_hub",
    "jinja2",
}  # torch brings jinja2


def test_public_names():
    """`__all__` is the contract's list and the classes of foreign towers; every name loads, and has its own name."""
    towers = {"ArlowTower", "ArlowTowerConfig", "ArlowTowerImageProcessor", "ArlowTowerVideoProcessor"}
    assert set(arlow.__all__) == PUBLIC | towers
    assert set(arlow.__all__) <= set(dir(arlow))
    for name in set(arlow.__all__) - {"__version__", "ArlowTokenizerFast"}:
        assert getattr(arlow, name).__name__ == name
    assert arlow.ArlowTokenizerFast is arlow.ArlowTokenizer


def test_unknown_name():
    """A misspelt name is an AttributeError that says so, and an ImportError in an import."""
    with pytest.raises(AttributeError, match="'arlow' has no attribute 'ArlowModell'"):
        arlow.ArlowModell  # noqa: B018
    with pytest.raises(ImportError, match="ArlowModell"):
        from arlow import ArlowModell  # noqa: F401


def test_type_checkers_see_what_is_loaded():
    """The imports for type checkers name the modules that the lazy names really come from."""
    tree = ast.parse((SOURCE / "__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    internal = {"ArlowGPTConfig"}
    assert seen == {name: module for name, module in registration.MODULE_OF.items() if name not in internal}


def test_one_version():
    """The version is written in one place; the installed distribution and the package both say it."""
    assert version("arlow") == arlow.__version__
    numbers = re.findall(r'__version__ = "(.+)"', (SOURCE / "_version.py").read_text())
    assert numbers == [arlow.__version__]
    assert re.search(rf"^## \[?{re.escape(arlow.__version__)}", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def behind_the_doors() -> set[Path]:
    """The files that Transformers copies beside a model that is saved with its code."""
    from transformers.dynamic_module_utils import get_relative_import_files

    doors = set(SOURCE.glob("*_arlow.py"))
    return {Path(name) for door in doors for name in get_relative_import_files(door)} | doors


def test_model_files_import_siblings_flat():
    """Model files import each other as `from .room import name`, the one form that Transformers copies beside a model:
    nothing of training, data or evaluation is among them."""
    for path in sorted(behind_the_doors()):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert not (node.level and node.module is None), f"{path.name}:{node.lineno} imports a room whole"
                assert node.level < 2 and "." not in (node.module if node.level else ""), f"{path.name}:{node.lineno}"
                assert (node.module or "").split(".")[0] != "arlow", f"{path.name}:{node.lineno} names the package"
            elif isinstance(node, ast.Import):
                assert all(alias.name.split(".")[0] != "arlow" for alias in node.names), f"{path.name}:{node.lineno}"


def test_saved_code_needs_no_optional_package():
    """Transformers refuses to run the code saved with a model if a package that it imports is missing, also one
    imported inside a function. Nothing behind the six doors may name an optional package outside a `try`."""
    from transformers.dynamic_module_utils import get_imports

    files = behind_the_doors()
    assert {path.name for path in files} & {"registration.py", "cli.py", "__init__.py"} == set()
    for path in sorted(files):
        packages = set(get_imports(path)) - set(sys.stdlib_module_names)
        assert packages <= REQUIRED, f"{path.name} imports {packages - REQUIRED}"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    """The wheel, built from this checkout as pip builds it."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    return zipfile.ZipFile(next(folder.glob("arlow-*.whl")))


@pytest.mark.slow
def test_wheel_contents(wheel):
    """The wheel holds every source file, the bundled model and the demo's media, the type marker, the licence, the
    autoload line and both entry points."""
    names = set(wheel.namelist())
    info = f"arlow-{arlow.__version__}.dist-info"
    sources = {f"arlow/{path.relative_to(SOURCE).as_posix()}" for path in SOURCE.rglob("*.py")}
    kept = [*SOURCE.glob("checkpoints/arlow-tiny/*"), *SOURCE.glob("demo_media/**/*.*")]
    assert len(kept) > 12  # the bundled model and its media
    sources |= {f"arlow/{path.relative_to(SOURCE).as_posix()}" for path in kept}
    assert names >= sources | {"arlow/py.typed", "arlow.pth", "_arlow_autoload.py", f"{info}/licenses/LICENSE"}
    assert {name.split("/")[0] for name in names} == {"arlow", "arlow.pth", "_arlow_autoload.py", info}
    entry_points = wheel.read(f"{info}/entry_points.txt").decode()
    assert "arlow = arlow.cli:main" in entry_points
    assert "[vllm.general_plugins]\narlow = arlow.registration:register" in entry_points


@pytest.mark.slow
def test_installed_wheel_needs_no_import(wheel, tmp_path):
    """In an environment with the wheel, `from transformers import Arlow...` works without `import arlow`, and an
    interpreter that uses neither imports neither."""
    site = tmp_path / "site"
    wheel.extractall(site)
    rest = [path for path in sys.path if path != str(ROOT / "src")]
    code = f"""
import site, sys
site.addsitedir({str(site)!r})
sys.path += {rest!r}
print("arlow" in sys.modules)
from transformers import ArlowConfig
print(ArlowConfig.__module__, sys.modules["arlow"].__file__)
"""
    command = [sys.executable, "-S", "-c", code]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    assert done.stdout.split() == ["False", "arlow.configuration_arlow", str(site / "arlow" / "__init__.py")]


def test_installed_metadata():
    """The installed distribution declares the runtime dependencies of the contract and no optional one."""
    requires = [line for line in distribution("arlow").requires or [] if "extra ==" not in line]
    names = {re.match(r"[\w-]+", line).group() for line in requires}
    assert names == {"torch", "transformers", "tokenizers", "safetensors", "pillow", "av", "numpy"}
