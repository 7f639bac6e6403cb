"""Perplexity: against the plain loss, by hand over windows, and against lm-evaluation-harness."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from eval_samples import save_checkpoint, write_lines
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import tiny_causal_lm
from tiny_processing import tiny_tokenizer

from arlow.evaluation import evaluate_perplexity
from arlow.evaluation import perplexity as perplexity_room
from arlow.evaluation.perplexity import batch_nll, perplexity, windows


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A small vision-language model with random weights, saved with its processor."""
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 60), st.integers(2, 20), st.data())
def test_windows_score_every_token_once(length, window, data):
    """Whatever the length, window and stride: each token but the first is scored once, in order, within the window,
    and with at least window - stride tokens before it where there are as many."""
    stride = data.draw(st.integers(1, window - 1))
    ids = list(range(length))
    scored = []
    for part in windows(ids, window=window, stride=stride):
        assert len(part.ids) <= window and 0 < part.scored < len(part.ids)
        assert part.ids == ids[part.ids[0] : part.ids[-1] + 1]
        fresh = part.ids[len(part.ids) - part.scored :]
        assert len(part.ids) - part.scored >= min(window - stride, fresh[0])
        scored += fresh
    assert scored == ids[1:]


def test_perplexity_is_that_of_the_plain_loss():
    """Against the model's own loss on each document alone, with the tokens weighted; the batch does not matter."""
    tokenizer = tiny_tokenizer()
    model = tiny_causal_lm(vocab_size=len(tokenizer))
    texts = ["The quick brown fox.", "Zw\u00f6lf gro\u00dfe Boxk\u00e4mpfer!", "x"]
    total, count = 0.0, 0
    for text in texts:
        ids = torch.tensor([[tokenizer.eos_token_id, *tokenizer(text)["input_ids"]]])
        with torch.no_grad():
            total += model(input_ids=ids, labels=ids).loss.item() * (ids.shape[1] - 1)
        count += ids.shape[1] - 1
    for batch_size in (1, 8):
        scores = perplexity(model, tokenizer, texts, batch_size=batch_size)
        assert scores["tokens"] == count and scores["documents"] == 3
        assert scores["bytes"] == sum(len(text.encode()) for text in texts)
        assert scores["nll"] == pytest.approx(total, rel=1e-5)
        assert scores["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-5)
        assert scores["bits_per_byte"] == pytest.approx(total / math.log(2) / scores["bytes"], rel=1e-5)


def test_perplexity_over_long_documents():
    """A document longer than the window: each token's loss is that of the window which scores it, computed by hand."""
    tokenizer = tiny_tokenizer()
    model = tiny_causal_lm(vocab_size=len(tokenizer))
    text = "A system prompt, a user, an assistant and a tool. " * 3
    ids = [tokenizer.eos_token_id, *tokenizer(text)["input_ids"]]
    wanted, done = 0.0, 1
    for begin in range(0, len(ids), 5):
        part = torch.tensor([ids[begin : begin + 12]])
        with torch.no_grad():
            logs = model(input_ids=part).logits[0].log_softmax(-1)
        for place in range(max(done - begin, 0), part.shape[1]):
            wanted -= logs[place - 1, part[0, place]].item()
        done = max(done, begin + part.shape[1])
    scores = perplexity(model, tokenizer, [text], window=12, stride=5, batch_size=3)
    assert scores["tokens"] == len(ids) - 1 and scores["nll"] == pytest.approx(wanted, rel=1e-5)


def test_logits_are_made_in_parts(monkeypatch):
    """However many tokens are scored, the head never sees more than its share at once, and the sum is the same."""
    model = tiny_causal_lm()
    batch = list(windows(list(range(20, 120)), window=40, stride=20))
    whole, sizes = batch_nll(model, batch), []
    model.lm_head.register_forward_hook(lambda module, args, out: sizes.append(len(out)))
    monkeypatch.setattr(perplexity_room, "LOGIT_ROWS", 7)
    assert batch_nll(model, batch) == pytest.approx(whole, rel=1e-6)
    assert max(sizes) == 7 and sum(sizes) == 99


@pytest.mark.parametrize(("options", "field"), [({"window": 1}, "window=1"), ({"window": 8, "stride": 8}, "stride=8")])
def test_impossible_windows(options, field):
    """A window that cannot be is named."""
    with pytest.raises(ValueError, match=field):
        perplexity(tiny_causal_lm(), tiny_tokenizer(), ["x"], **options)


def test_perplexity_reads_files(checkpoint, tmp_path):
    """A text file is one document, a JSONL file one per line; lines without text are named. The decoder of a
    vision-language model is scored, too."""
    lines = [{"text": "The quick fox."}, {"body": "no"}, {"text": "A lazy dog."}]
    path = write_lines(tmp_path / "texts.jsonl", lines)
    result = evaluate_perplexity([checkpoint, checkpoint], data=path)
    first, second = result["models"]
    assert first["scores"] == second["scores"] and first["scores"]["documents"] == 2
    assert [each["id"] for each in first["skipped"]] == ["texts.jsonl:2"]
    assert result["summary"]["perplexity"]["mean"] == pytest.approx(first["scores"]["perplexity"])
    (tmp_path / "text.txt").write_text("The quick fox.\n\nA lazy dog.")
    assert evaluate_perplexity(checkpoint, data=tmp_path / "text.txt")["models"][0]["scores"]["documents"] == 1
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"bad.txt.*UTF-8"):
        evaluate_perplexity(checkpoint, data=tmp_path / "bad.txt")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(ValueError, match="data=0"):
        evaluate_perplexity(checkpoint, data=tmp_path / "empty.jsonl")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["text", "vision-language"])
def test_lm_eval_finds_the_same_bits_per_byte(checkpoint, tmp_path, kind):
    """lm-evaluation-harness loads a checkpoint as it is, and its rolling likelihood is ours."""
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")
    texts = write_lines(tmp_path / "texts.jsonl", [{"text": "The quick brown fox."}, {"text": "A lazy dog, again."}])
    model = checkpoint
    if kind == "text":
        model, tokenizer = tmp_path / "model", tiny_tokenizer()
        for part in (tiny_causal_lm(vocab_size=len(tokenizer)), tokenizer):
            part.save_pretrained(model)
    page = (Path(__file__).parents[1] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    (task,) = re.findall(r"^```yaml\n(# tasks/local.yaml\n.*?)^```", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "local.yaml").write_text(task)
    (command,) = re.findall(r"^lm_eval (.* --tasks my_texts .*)$", page, re.MULTILINE)
    words = command.replace("./model", str(model)).split()
    done = subprocess.run(
        [sys.executable, "-m", "lm_eval", *words, "--device", "cpu", "--output_path", str(tmp_path / "out.json")],
        cwd=tmp_path, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    (found,) = re.findall(r"bits_per_byte\s*\|[^|]*\|\s*([\d.]+)", done.stdout)
    ours = evaluate_perplexity(model, data=texts)["models"][0]["scores"]["bits_per_byte"]
    assert float(found) == pytest.approx(ours, abs=1e-4)
