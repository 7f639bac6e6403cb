"""Run Transformers' own test mixins against Arlow.

In: the source distribution of the installed Transformers version, from the package index; nothing of it is kept in the
repository. Out: a table on the screen, `.conformance/results.json`, and with `--docs` the table of
`docs/conformance.md`. Every other argument goes to pytest.

    python tests/conformance/run.py [--docs] [--jobs N] [pytest arguments]
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import time
from collections import Counter, defaultdict
from datetime import date
from pathlib import Path
from typing import Any


HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
WORK = ROOT / ".conformance"
PAGE = ROOT / "docs" / "conformance.md"
MARKS = ("<!-- counts: begin -->", "<!-- counts: end -->")
MODULES = (
    "text_models.py",
    "vision_model.py",
    "composite_model.py",
    "image_processor.py",
    "video_processor.py",
    "tokenizer.py",
    "processor.py",
)

# Modules that the source distribution's tests import and do not contain -> what stands in for them.
STUBS = {
    "tests/__init__.py": None,
    "tests/exporters/__init__.py": None,
    "tests/exporters/test_export.py": "empty_mixins.py",
    "tests/generation/__init__.py": None,
    "tests/generation/test_utils.py": "empty_mixins.py",
    "tests/utils/__init__.py": None,
    "tests/utils/test_configuration_utils.py": "config_kwargs.py",
    "tests/distributed_testing_utils.py": "distributed.py",
    "tests/fixtures/sample_text.txt": "sample_text.txt",
    "utils/fetch_hub_objects_for_ci.py": "hub_objects.py",
}


def main() -> int:
    parser = argparse.ArgumentParser(description="Transformers' own test mixins against Arlow")
    parser.add_argument("--docs", action="store_true", help="write the counts into docs/conformance.md")
    parser.add_argument("--jobs", default=str(min(os.cpu_count() or 1, 4)), help="processes (default: %(default)s)")
    options, rest = parser.parse_known_args()

    install_requirements()
    version = importlib.metadata.version("transformers")
    stage = unpack(download(version), version)
    add_stubs(stage)
    started = time.monotonic()
    code = run_pytest(stage, options.jobs, rest)
    records_file = WORK / "records.json"
    if not records_file.exists():
        return code or 1
    results = summary(json.loads(records_file.read_text()), time.monotonic() - started)
    (WORK / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    print("\n" + as_text(results))
    if options.docs:
        write_page(results)
    return code


def install_requirements() -> None:
    """The few packages the mixins import, unless they are there."""
    if all(importlib.util.find_spec(name) for name in ("accelerate", "parameterized", "xdist")):
        return
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "-r", str(HERE / "requirements.txt")], check=True)


def download(version: str) -> Path:
    """The source distribution of Transformers. pip asks it for its metadata, which setuptools answers; nothing is
    built or installed."""
    archive = WORK / f"transformers-{version}.tar.gz"
    if not archive.exists():
        WORK.mkdir(exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        flags = ["--no-binary", ":all:", "--no-deps", "--dest", str(WORK)]
        if importlib.util.find_spec("setuptools"):
            flags.append("--no-build-isolation")
        subprocess.run([*pip, *flags, f"transformers=={version}"], check=True)
    return archive


def unpack(archive: Path, version: str) -> Path:
    """Only its tests: the library itself is the installed one."""
    stage = WORK / f"tests-{version}"
    if not (stage / "tests" / "test_modeling_common.py").exists():
        shutil.rmtree(stage, ignore_errors=True)
        top = f"transformers-{version}/"
        with tarfile.open(archive) as tar:
            for member in tar.getmembers():
                if member.name.startswith(f"{top}tests/") and member.isfile():
                    member.name = member.name.removeprefix(top)
                    tar.extract(member, stage, filter="data")
    return stage


def add_stubs(stage: Path) -> None:
    for target, source in STUBS.items():
        path = stage / target
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("" if source is None else (HERE / "stubs" / source).read_text())


def run_pytest(stage: Path, jobs: str, rest: list[str]) -> int:
    records = WORK / "records.json"
    records.unlink(missing_ok=True)
    paths = [str(p) for p in (stage, HERE, HERE.parent, ROOT / "src")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "CONFORMANCE_RECORDS": str(records),
        "HF_HUB_OFFLINE": "1",
        "RUN_SLOW": "1",  # what the mixins call slow takes seconds here
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    parallel = ["-n", jobs] if jobs not in ("0", "1") else []
    chosen = [argument for argument in rest if argument in MODULES]
    rest = [argument for argument in rest if argument not in MODULES]
    modules = [str(HERE / name) for name in chosen or MODULES if (HERE / name).exists()]
    command = [sys.executable, "-m", "pytest", "-c", str(HERE / "pytest.ini"), *parallel, *rest, *modules]
    return subprocess.run(command, env=environment, cwd=ROOT).returncode


def summary(records: dict[str, dict[str, Any]], seconds: float) -> dict[str, Any]:
    """Counts per test class and mixin, and every reason for a skip with how often it was given."""
    counts: dict[tuple[str, str], Counter] = defaultdict(Counter)
    ours: Counter = Counter()
    theirs: Counter = Counter()
    changed: dict[str, list[str]] = defaultdict(list)
    for nodeid, record in sorted(records.items()):
        counts[record["group"], record["mixin"]][record["outcome"]] += 1
        if record["outcome"] == "skipped":
            (ours if record["ours"] else theirs)[record["reason"].splitlines()[0] if record["reason"] else "-"] += 1
        elif record["ours"] and record["mixin"] != "Arlow's own":
            changed[record["group"]].append(nodeid.rsplit("::", 1)[-1])
    rows = [
        {"class": group, "mixin": mixin, **{k: found[k] for k in ("passed", "skipped", "failed")}}
        for (group, mixin), found in sorted(counts.items())
    ]
    return {
        "rows": rows,
        "total": {k: sum(row[k] for row in rows) for k in ("passed", "skipped", "failed")},
        "skipped_by_arlow": dict(ours.most_common()),
        "skipped_by_transformers": dict(theirs.most_common()),
        "adapted": changed,
        "seconds": round(seconds),
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, no accelerator",
        "python": platform.python_version(),
        "versions": {
            name: importlib.metadata.version(name) for name in ("transformers", "torch", "huggingface_hub", "pytest")
        },
    }


def as_text(results: dict[str, Any]) -> str:
    head = ("class", "mixin", "passed", "skipped", "failed")
    rows = [head, *(tuple(str(row[key]) for key in head) for row in results["rows"])]
    rows.append(("total", "", *(str(results["total"][key]) for key in head[2:])))
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join([*lines, f"{results['seconds']} s"])


def as_markdown(results: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    head = ("class", "mixin", "passed", "skipped", "failed")
    total = results["total"]
    lines = [
        f"{results['date']}, `make conformance`, {results['seconds']} s on {results['machine']}; "
        f"Python {results['python']}, {versions}.",
        "",
        "| Tests of | Mixin | Passed | Skipped | Failed |",
        "| --- | --- | --: | --: | --: |",
        *("| " + " | ".join(str(row[key]) for key in head) + " |" for row in results["rows"]),
        f"| **all** | | **{total['passed']}** | **{total['skipped']}** | **{total['failed']}** |",
        "",
        "Skipped by Arlow's test classes, with the reason that stands beside the skip:",
        "",
        *(f"- {count} x {escaped(reason)}" for reason, count in results["skipped_by_arlow"].items()),
        "",
        "Skipped by Transformers itself:",
        "",
        *(f"- {count} x {escaped(reason)}" for reason, count in results["skipped_by_transformers"].items()),
    ]
    return "\n".join(lines)


def escaped(reason: str) -> str:
    return reason.replace("<", "&lt;").replace("*", r"\*").replace("_", r"\_")


def write_page(results: dict[str, Any]) -> None:
    text = PAGE.read_text()
    before, after = text.split(MARKS[0])[0], text.split(MARKS[1])[1]
    PAGE.write_text(f"{before}{MARKS[0]}\n\n{as_markdown(results)}\n\n{MARKS[1]}{after}")


if __name__ == "__main__":
    sys.exit(main())
