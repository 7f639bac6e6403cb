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
import re
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
OUTCOMES = ("passed", "skipped", "failed")
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
        if subprocess.run([*pip, *flags, f"transformers=={version}"]).returncode:
            sys.exit(f"transformers=={version}: no source distribution could be downloaded; see pip's message above")
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
    command = [sys.executable, "-m", "pytest", "-c", str(HERE / "options.ini"), *parallel, *rest, *modules]
    return subprocess.run(command, env=environment, cwd=ROOT).returncode


def summary(records: dict[str, dict[str, Any]], seconds: float) -> dict[str, Any]:
    """Counts per test class and mixin, the tests Arlow adapts, and every reason for a skip with how often it came."""
    counts: dict[tuple[str, str], Counter] = defaultdict(Counter)
    skips: Counter = Counter()
    adapted = {}
    for nodeid, record in sorted(records.items()):
        counts[record["group"], record["mixin"]][record["outcome"]] += 1
        name = nodeid.rsplit("::", 1)[-1]
        if "adapted" in record:
            adapted[f"{record['group']}.{name}"] = record["adapted"]
        if record["outcome"] == "skipped":
            skips[plain_reason(record["reason"]) or name] += 1
    rows = [
        {"class": group, "mixin": mixin, **{k: found[k] for k in OUTCOMES}}
        for (group, mixin), found in sorted(counts.items())
    ]
    return {
        "rows": rows,
        "total": {k: sum(row[k] for row in rows) for k in OUTCOMES},
        "adapted": adapted,
        "skips": dict(sorted(skips.items(), key=lambda item: (-item[1], item[0]))),
        "seconds": round(seconds),
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {accelerator()}",
        "python": platform.python_version(),
        "versions": {
            name: importlib.metadata.version(name) for name in ("transformers", "torch", "huggingface_hub", "pytest")
        },
    }


def accelerator() -> str:
    import torch  # slow to import, and only needed once the tests have run

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no accelerator"


def plain_reason(reason: str) -> str:
    """The first line of a skip's reason, without the class it happened to stop at."""
    line = reason.splitlines()[0] if reason else ""
    line = re.sub(r"<class '[\w.]*?(\w+)'>", r"\1", line)
    return re.sub(r"\bArlow\w+( class)?", "the class", line).rstrip(".")


def as_text(results: dict[str, Any]) -> str:
    head = ("class", "mixin", *OUTCOMES)
    rows = [head, *(tuple(str(row[key]) for key in head) for row in results["rows"])]
    rows.append(("total", "", *(str(results["total"][key]) for key in head[2:])))
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join([*lines, f"{results['seconds']} s"])


def as_markdown(results: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    total = results["total"]
    lines = [
        f"{results['date']}, `make conformance`, {results['seconds']} s on {results['machine']}; "
        f"Python {results['python']}, {versions}.",
        "",
        "| Test class | Mixin | Passed | Skipped | Failed |",
        "| --- | --- | --: | --: | --: |",
        *("| " + " | ".join(str(row[key]) for key in ("class", "mixin", *OUTCOMES)) + " |" for row in results["rows"]),
        f"| **all** | | **{total['passed']}** | **{total['skipped']}** | **{total['failed']}** |",
        "",
        "## Adapted tests",
        "",
        "Tests whose expectation cannot hold for Arlow are not skipped; these run in their place.",
        "",
        "| Test | What it shows instead, and why |",
        "| --- | --- |",
        *(f"| `{name}` | {escaped(why)} |" for name, why in results["adapted"].items()),
        "",
        "## Skipped tests",
        "",
        "By the mixins themselves. Three of their switches are set by Arlow's test classes: the vision encoder has no "
        "loss of its own (`is_training`) and no word embeddings (`test_resize_embeddings`), the tokenizer no target "
        "mode (`test_seq2seq`).",
        "",
        "| Tests | Reason given |",
        "| --: | --- |",
        *(f"| {count} | {escaped(reason)} |" for reason, count in results["skips"].items()),
    ]
    return "\n".join(lines)


def escaped(text: str) -> str:
    """For a Markdown table: nothing outside code spans is markup."""
    spans = text.replace("|", r"\|").replace("<", "&lt;").split("`")
    spans[::2] = [re.sub(r"([*_])", r"\\\1", span) for span in spans[::2]]
    return "`".join(spans)


def write_page(results: dict[str, Any]) -> None:
    text = PAGE.read_text()
    before, after = text.split(MARKS[0])[0], text.split(MARKS[1])[1]
    PAGE.write_text(f"{before}{MARKS[0]}\n\n{as_markdown(results)}\n\n{MARKS[1]}{after}")


if __name__ == "__main__":
    sys.exit(main())
