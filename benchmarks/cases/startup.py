"""Starting: `import arlow` in a fresh process after `import transformers`, against the 50 ms it may take, torch being
left out by both; from a directory to a ready processor and a ready model of 200 million parameters (width 1024,
8 layers, vocabulary 32,768, a tower of one block, bfloat16), against Qwen3-VL's.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen3VLForConditionalGeneration

from arlow import ArlowForConditionalGeneration, ArlowProcessor
from benchmarks.harness import Case
from benchmarks.models import MEDIUM_TEXT, SMALL_TEXT, arlow_model, peer_model
from benchmarks.peers import PEER, PeerProcessor, corpus, processors
from benchmarks.settings import DEVICE, sized


ALLOWED = 50.0  # milliseconds
IMPORT = """
import sys, time
import transformers
assert "torch" not in sys.modules
before = time.perf_counter()
import arlow
print(1e3 * (time.perf_counter() - before))
assert "torch" not in sys.modules
"""
SHAPE = sized({**MEDIUM_TEXT, "vocab_size": 32_768}, {**SMALL_TEXT, "vocab_size": 8192})


def cases() -> Iterator[Case]:
    yield Case(
        name="import arlow after import transformers",
        arlow=import_ms,
        peer=lambda: ALLOWED,
        peer_name=f"{ALLOWED:.0f} ms",
        target=1.0,
        note="torch is not imported",
        own_clock=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = Path(folder) / "arlow", Path(folder) / "peer"
        yield from processor_cases(ours, theirs)
        yield from model_cases(ours, theirs)


def import_ms() -> float:
    """Without the autoload, which would import it with Transformers."""
    environment = {**os.environ, "ARLOW_NO_AUTOLOAD": "1"}
    command = [sys.executable, "-c", IMPORT]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
    return float(out.split()[-1])


def processor_cases(ours: Path, theirs: Path) -> Iterator[Case]:
    arlow, peer = processors()
    arlow.save_pretrained(ours)
    peer.save_pretrained(theirs)
    first, second = ArlowProcessor.from_pretrained(ours), PeerProcessor.from_pretrained(theirs)
    assert first.tokenizer(corpus()[:500]).input_ids == second.tokenizer(corpus()[:500]).input_ids
    yield Case(
        name="processor from a directory",
        arlow=lambda: ArlowProcessor.from_pretrained(ours),
        peer=lambda: PeerProcessor.from_pretrained(theirs),
        peer_name=PEER,
        target=1.0,
    )


def model_cases(ours: Path, theirs: Path) -> Iterator[Case]:
    arlow_model(torch.bfloat16, SHAPE).save_pretrained(ours)
    peer_model(torch.bfloat16, SHAPE).save_pretrained(theirs)

    def load(kind: Any, folder: Path) -> Any:
        return kind.from_pretrained(folder).to(DEVICE)

    count = sum(weight.numel() for weight in load(ArlowForConditionalGeneration, ours).parameters())
    yield Case(
        name=f"model of {count / 1e6:.0f} M parameters from a directory",
        arlow=lambda: load(ArlowForConditionalGeneration, ours),
        peer=lambda: load(Qwen3VLForConditionalGeneration, theirs),
        peer_name=PEER,
        target=1.0,
    )
