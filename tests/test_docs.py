"""What the README and the docs claim is what the code does."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import arlow


ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]


def snippets(path: Path, language: str = "python") -> list[str]:
    """The fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def source_files() -> set[str]:
    """Source files as the docs name them; folders have an `__init__.py` each, of which only the package's counts."""
    package = ROOT / "src" / "arlow"
    files = {path.relative_to(package).as_posix() for path in package.rglob("*.py")}
    return {name for name in files if not name.endswith("/__init__.py")} | {
        path.name for path in (ROOT / "src").glob("*.py")
    }


def test_readme_lists_every_file():
    """The README has exactly one line for each source file, and none for a file that is gone."""
    listed = re.findall(r"^\| `([\w/]+\.py)` \| .{8,100} \|$", README, re.MULTILINE)
    files = source_files()
    assert len(listed) == len(set(listed)), "a file is listed twice"
    assert set(listed) == files


def test_architecture_names_every_room():
    """Every source file but the smallest appears in the table of rooms, and every room exists."""
    table = (DOCS / "architecture.md").read_text(encoding="utf-8")
    cells = "\n".join(line for line in table.splitlines() if line.startswith("|"))
    rooms = set(re.findall(r"`([\w/]+\.py)`", cells))
    files = source_files()
    assert rooms <= files
    drawers = {name for name in files if name.startswith(("conversion/", "data/", "evaluation/"))}  # named as a folder
    assert files - rooms - drawers <= {"__init__.py", "_version.py"}


def test_make_targets_exist():
    """Every `make` command that a page names is a target of the Makefile."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        named = set(re.findall(r"(?:^|`)make ([a-z]+)", page.read_text(encoding="utf-8"), re.MULTILINE))
        assert named <= targets, f"{page.name}: {named - targets}"


def test_links_lead_somewhere():
    """Every relative link of README, CONTRIBUTING and docs points to a file, every anchor in it to a heading."""
    for page in PAGES:
        for target, anchor in re.findall(
            r"\]\((?!https?:)([^)#\s]*)(?:#([\w-]+))?\)", page.read_text(encoding="utf-8")
        ):
            file = page.parent / target if target else page
            assert file.exists(), f"{page.name} links to {target}"
            if anchor and file.suffix == ".md":
                headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
                slugs = {re.sub(r"[^\w\s-]", "", heading).strip().lower().replace(" ", "-") for heading in headings}
                assert anchor in slugs, f"{page.name} links to {target}#{anchor}"


def test_navigation_lists_every_page():
    """mkdocs shows every page of docs/ once."""
    listed = re.findall(r"^ +- [\w ]+: ([\w-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(path.name for path in DOCS.glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_snippets_are_python(page):
    """Every Python block of every page compiles."""
    for number, code in enumerate(snippets(page)):
        compile(code, f"{page.name}[{number}]", "exec")


def test_positions_example_prints_its_table(capsys):
    """The worked example of the positions page gives the numbers printed beside it."""
    page = (DOCS / "positions.md").read_text(encoding="utf-8")
    table = [
        [int(cell) for cell in row.split("|")[1:-1]]
        for row in re.findall(r"^\| `[thw]` (\|(?: \d+ \|)+)$", page, re.MULTILINE)
    ]
    (code,) = snippets(DOCS / "positions.md")
    exec(compile(code, "positions.md", "exec"), {})
    positions, deltas = capsys.readouterr().out.splitlines()
    assert json.loads(positions) == table
    assert json.loads(deltas) == [[-3]]


def test_policy_table_has_the_defaults():
    """The table of the processing page gives the policy's fields and defaults."""
    page = (DOCS / "processing.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+?) \| .+ \|$", page, re.MULTILINE))
    for field in dataclasses.fields(arlow.MediaPolicy):
        value = getattr(arlow.MediaPolicy(), field.name)
        shown = ", ".join(f"`{item}`" for item in value) if isinstance(value, tuple) else f"`{value!r}`"
        assert rows[field.name] == shown, field.name


def test_processing_page_snippets_run():
    """The snippets of the processing page run."""
    for code in snippets(DOCS / "processing.md"):
        exec(compile(code, "processing.md", "exec"), {})


@pytest.fixture(scope="module")
def media(tmp_path_factory) -> Path:
    """A directory with a real JPEG and a real MP4 of two seconds."""
    import av
    import numpy as np
    from PIL import Image

    folder = tmp_path_factory.mktemp("docs")
    y, x = np.mgrid[0:90, 0:120]
    pixels = np.stack((x * 2, y * 2, x + y), axis=-1).astype(np.uint8)
    Image.fromarray(pixels).save(folder / "photo.jpg")
    with av.open(str(folder / "clip.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for shift in range(16):
            frame = np.roll(pixels[:64, :96], 4 * shift, axis=1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
    return folder


def test_quick_start_runs(media, monkeypatch):
    """The quick start runs from top to bottom as written, and so does the README's snippet."""
    monkeypatch.chdir(media)
    space: dict[str, object] = {}
    for number, code in enumerate(snippets(DOCS / "quickstart.md")):
        exec(compile(code, f"quickstart.md[{number}]", "exec"), space)
    assert len(space["texts"]) == 2
    assert (media / "seen.png").read_bytes().startswith(b"\x89PNG")
    for number, code in enumerate(snippets(ROOT / "README.md")):
        exec(compile(code, f"README.md[{number}]", "exec"), {})


@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="needs the docs extra")
@pytest.mark.slow
def test_docs_build_without_warnings(tmp_path):
    """`mkdocs build --strict` succeeds and warns of nothing."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}  # a banner about another product
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stdout + done.stderr
    assert (tmp_path / "site" / "api" / "index.html").exists()
    shutil.rmtree(tmp_path / "site")
