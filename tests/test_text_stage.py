"""Stage `text`: what is read, how it is shared out and packed, and that the trained directory is a model."""

from __future__ import annotations

import gzip
import itertools
import json
import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from torch.utils.data import DataLoader
from training_runs import WORDS, losses, text_fields, write_texts
from transformers import AutoModelForCausalLM, AutoTokenizer

from arlow import ArlowForCausalLM, ArlowTextConfig, ArlowTokenizer
from arlow.data.bad_samples import BadSamples, TooManyBadSamples
from arlow.data.text_stream import (
    Reader,
    Source,
    TextStream,
    collate,
    is_held_out,
    pack,
    read_forever,
    read_once,
    tokenize,
)
from arlow.training import train


@pytest.fixture(scope="module")
def tokenizer() -> ArlowTokenizer:
    return ArlowTokenizer.train(iter([" ".join(WORDS)] * 3), 300)


def nothing_bad() -> BadSamples:
    return BadSamples(None, limit=0)


def texts_of(*sources: Source, bad: BadSamples | None = None) -> list[str]:
    return list(read_once(sources, bad or nothing_bad()))


def numbered(path: Path, count: int, *, first: int = 0) -> Source:
    """A file of texts that say their number."""
    path.write_text("".join(json.dumps({"text": f"text {i}"}) + "\n" for i in range(first, first + count)))
    return Source(files=str(path))


# Reading


def test_kinds_of_files(tmp_path: Path) -> None:
    """JSON lines, Parquet and text files, packed or not, give the same texts; empty ones are no documents."""
    texts = ["first text", "with U+2028 \u2028 inside", "ünï ✓", "  indented"]
    lines = "".join(json.dumps({"id": 1, "words": text}) + "\n\n" for text in [*texts, " "])
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    parquet.write_table(pyarrow.table({"id": [1] * 4, "words": texts}), tmp_path / "c.parquet")
    (tmp_path / "d.txt").write_text("\n".join(texts).replace("\u2028", "\u2028") + "\n")
    for name in ("a.jsonl", "b.jsonl.gz", "c.parquet", "d.txt"):
        assert texts_of(Source(files=str(tmp_path / name), field="words")) == texts, name
    both = Source(files=[str(tmp_path / "*.jsonl*"), str(tmp_path / "c.parquet")], field="words")
    assert texts_of(both) == texts * 3


@pytest.mark.parametrize(
    ("document", "expected"),
    [("line", ["a", "b", "c"]), ("paragraph", ["a\r\nb", "c"]), ("file", ["a\r\nb\r\n \r\nc"])],
)
def test_documents_of_text_files(tmp_path: Path, document: str, expected: list[str]) -> None:
    """A line, a paragraph, or the whole file is one document."""
    (tmp_path / "a.txt").write_bytes(b"a\r\nb\r\n \r\nc\r\n")
    assert texts_of(Source(files=str(tmp_path / "a.txt"), document=document)) == expected  # type: ignore[arg-type]


def test_dataset_directory(tmp_path: Path) -> None:
    """A `datasets` name (here a directory), with its bad rows named by their number."""
    rows: list[dict[str, Any]] = [{"text": "one"}, {"text": None}, {"text": "three"}]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    bad = BadSamples(None, limit=1)
    assert texts_of(Source(dataset=str(tmp_path / "data")), bad=bad) == ["one", "three"]
    assert bad.seen == {f"{tmp_path / 'data'}[1]"}


def test_unreadable_records_are_listed(tmp_path: Path) -> None:
    """Bad JSON, bad UTF-8, a missing field, no text, half a character, broken files: each is named with its line."""
    lines = [
        b'{"text": "good"}',
        b"{bad",
        b'{"text": "\xff"}',
        b'{"other": 1}',
        b'{"text": 3}',
        b"[1]",
        b'{"text": "\\ud800"}',
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b'{"text": "packed"}\n' * 9000)[:-20])
    (tmp_path / "c.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "d.txt").write_bytes(b"fine\n\xff\xfe\n")
    bad = BadSamples(tmp_path / "bad.jsonl", limit=20)
    found = Counter(texts_of(Source(files=str(tmp_path / "[a-d].*")), bad=bad))
    assert found["good"] == found["fine"] == 1
    listed = {json.loads(line)["sample"]: json.loads(line)["error"] for line in (tmp_path / "bad.jsonl").open()}
    names = [*(f"a.jsonl:{number}" for number in range(2, 8)), "b.jsonl.gz", "c.parquet", "d.txt:2"]
    assert list(listed) == [str(tmp_path / name) for name in names]
    assert all(len(error) < 300 for error in listed.values())
    with pytest.raises(TooManyBadSamples, match="bad_samples_limit=3"):
        texts_of(Source(files=str(tmp_path / "a.jsonl")), bad=BadSamples(None, limit=3))


# Sharing out


@settings(max_examples=8, deadline=None)
@given(files=st.integers(1, 4), readers=st.integers(1, 4), shuffle=st.sampled_from([0, 7]), seed=st.integers(0, 3))
def test_readers_share_a_pass(tmp_path_factory: Any, files: int, readers: int, shuffle: int, seed: int) -> None:
    """In a pass every text goes to one reader, whether the files divide among them or not."""
    folder = tmp_path_factory.mktemp("shares")
    for number in range(files):
        numbered(folder / f"{number}.jsonl", 12, first=12 * number)
    source = Source(files=str(folder / "*.jsonl"))
    shares = []
    for index in range(readers):
        stream = read_forever([source], nothing_bad(), seed=seed, shuffle=shuffle, reader=Reader(index, readers))
        shares.append(list(itertools.islice(stream, 12 * files // readers)))
    assert sorted(itertools.chain(*shares)) == sorted(texts_of(source))


def test_order_follows_the_seed(tmp_path: Path) -> None:
    """One seed, one order; another seed or another pass, another order; without shuffling, that of the file."""
    source = numbered(tmp_path / "a.jsonl", 40)

    def first(count: int, **options: Any) -> list[str]:
        stream = read_forever([source], nothing_bad(), reader=Reader(), **options)
        return list(itertools.islice(stream, count))

    shuffled = first(80, seed=0, shuffle=100)
    assert shuffled == first(80, seed=0, shuffle=100) != first(80, seed=1, shuffle=100)
    assert sorted(shuffled[:40]) == sorted(shuffled[40:]) and shuffled[:40] != shuffled[40:]
    assert first(80, seed=0, shuffle=0) == texts_of(source) * 2


def test_sources_are_mixed_by_weight(tmp_path: Path) -> None:
    """A source of weight 3 gives three times as many texts as one of weight 1, however long each is."""
    few, many = numbered(tmp_path / "few.jsonl", 3), numbered(tmp_path / "many.jsonl", 500, first=3)
    sources = [few.model_copy(update={"weight": 3.0}), many]
    stream = read_forever(sources, nothing_bad(), seed=0, shuffle=0, reader=Reader())
    from_few = sum(int(text.split()[1]) < 3 for text in itertools.islice(stream, 2000))
    assert 1400 < from_few < 1600


def test_reader_without_text(tmp_path: Path) -> None:
    """More readers than texts is an error, not an endless search."""
    source = numbered(tmp_path / "a.jsonl", 2)
    with pytest.raises(ValueError, match="holds no text for reader 3 of 3; use fewer workers"):
        next(read_forever([source], nothing_bad(), seed=0, shuffle=0, reader=Reader(2, 3)))
    with pytest.raises(ValueError, match="holds no text"):  # all of it belongs to the evaluation
        next(read_forever([source], nothing_bad(), seed=0, shuffle=0, reader=Reader(), held_out=1.0))


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_takes_what_its_readers_give(tmp_path: Path, tokenizer: ArlowTokenizer, workers: int) -> None:
    """Batches of two devices hold the rows of their readers in turn, as many as the run takes, none twice."""
    source = Source(files=str(write_texts(tmp_path / "a.jsonl", 400)))
    options = {"length": 32, "batches": 5, "batch_size": 3, "seed": 1, "shuffle": 50, "bad_samples": nothing_bad()}
    rows = []
    for device in range(2):
        stream = TextStream([source], tokenizer, **options)  # type: ignore[arg-type]
        stream.device = Reader(device, 2)
        batches = list(DataLoader(stream, batch_size=3, num_workers=workers, collate_fn=collate))
        assert len(batches) == 5 == len(stream) / 3
        readers = max(workers, 1)
        for number, batch in enumerate(batches):
            reader = Reader(device * readers + number % readers, 2 * readers)
            texts = read_forever([source], nothing_bad(), seed=1, shuffle=50, reader=reader)
            start = number // readers * 3
            own = list(itertools.islice(pack(tokenize(texts, tokenizer), 32), start, start + 3))
            assert torch.equal(batch["input_ids"], collate(own)["input_ids"])
        rows += [tuple(row) for batch in batches for row in batch["input_ids"].tolist()]
    assert len(set(rows)) == len(rows) == 30


def test_held_out_texts(tmp_path: Path, tokenizer: ArlowTokenizer) -> None:
    """About the share asked for is held out, copies of a text on one side, and none of it is trained on."""
    texts = texts_of(numbered(tmp_path / "a.jsonl", 2000))
    held = {text for text in texts if is_held_out(text, 0.1)}
    assert 150 < len(held) < 250 and not any(is_held_out(text, 0.0) for text in texts)
    stream = TextStream(
        [Source(files=str(tmp_path / "a.jsonl"))], tokenizer,
        length=64, batches=200, batch_size=1, seed=0, shuffle=0, bad_samples=nothing_bad(), held_out=0.1,
    )  # fmt: skip
    seen = set("".join(tokenizer.decode(row["input_ids"]) for row in stream).split("<|endoftext|>"))
    assert len(seen & set(texts)) > 1000 and not seen & held


# Packing


@settings(max_examples=100, deadline=None)
@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=12), length=st.integers(2, 9))
def test_rows_are_the_documents_back_to_back(lengths: list[int], length: int) -> None:
    """Nothing is lost or added; positions restart with each document and each row; starts have no label."""
    documents = [[100 * number + i for i in range(size)] for number, size in enumerate(lengths)]
    rows = list(pack(documents, length, fill=7))
    tokens = list(itertools.chain(*documents))
    assert all(len(row[name]) == length for row in rows for name in row)  # type: ignore[literal-required]
    flat = [int(token) for row in rows for token in row["input_ids"]]
    assert flat[: len(tokens)] == tokens and set(flat[len(tokens) :]) <= {7}
    assert len(list(pack(documents, length))) == len(tokens) // length
    for number, row in enumerate(rows):
        for place in range(length):
            index = number * length + place
            begins = place == 0 or index == len(tokens) or (index < len(tokens) and tokens[index] % 100 == 0)
            assert (row["position_ids"][place] == 0) == begins
            if not begins:
                assert row["position_ids"][place] == row["position_ids"][place - 1] + 1
            known = index < len(tokens) and not begins
            assert row["labels"][place] == (tokens[index] if known else -100)


def test_text_never_becomes_a_special_token(tokenizer: ArlowTokenizer) -> None:
    """`<|endoftext|>` in a text is text; the eos at its end is a token."""
    [ids] = tokenize(["say <|endoftext|>"], tokenizer)
    assert ids[-1] == tokenizer.eos_token_id and ids.count(tokenizer.eos_token_id) == 1
    assert tokenizer.decode(ids[:-1]) == "say <|endoftext|>"


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_documents_of_a_row_do_not_see_each_other(attention: str) -> None:
    """The loss of packed rows is that of every document alone; another neighbour changes nothing."""
    torch.manual_seed(0)
    config = ArlowTextConfig.tiny(vocab_size=50)
    config._attn_implementation = attention
    model = ArlowForCausalLM(config).double().eval()
    documents = [[random.Random(i).randrange(50) for _ in range(size)] for i, size in enumerate((5, 9, 1, 2, 7))]
    rows = collate(list(pack(documents, 24, fill=0)))
    found = model(**rows, num_items_in_batch=1).loss
    parts = [torch.tensor([document]) for document in documents if len(document) > 1]
    alone = [model(input_ids=part, labels=part, num_items_in_batch=1).loss for part in parts]
    assert torch.allclose(found, torch.stack(alone).sum(), rtol=1e-9)


# The stage


def test_trained_directory_is_a_model(tmp_path: Path) -> None:
    """It loads with the Auto classes, its loss fell, it was evaluated; a second run goes on from its weights."""
    fields = text_fields(tmp_path, max_steps=30, save_steps=30, report_to=["tensorboard"], learning_rate=0.02)
    fields["config"] |= {"attention_dropout": 0.0, "resid_dropout": 0.0}
    out = train("text", **fields)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert isinstance(model, ArlowForCausalLM) and len(tokenizer) == model.config.vocab_size
    assert model.config.eos_token_id == tokenizer.eos_token_id and model.dtype == torch.float32
    assert len(losses(out)) == 30 and losses(out)[-1] < 0.8 * losses(out)[0]
    assert_events(out)
    history = json.loads((out / "checkpoint-30" / "trainer_state.json").read_text())["log_history"]
    [evaluation] = [entry for entry in history if "eval_loss" in entry]
    assert evaluation["eval_perplexity"] == pytest.approx(math.exp(evaluation["eval_loss"]))
    more = text_fields(tmp_path, config=None, tokenizer=None, model=str(out), output_dir=str(tmp_path / "more"))
    further = train("text", **{**more, "max_steps": 2, "learning_rate": 1e-9, "warmup_steps": 0})
    after = AutoModelForCausalLM.from_pretrained(further)
    assert torch.allclose(after.lm_head.weight, model.lm_head.weight, atol=1e-6)


def test_evaluation_makes_no_logits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither training nor its evaluations hold the logits of a whole batch."""
    seen = []
    predict = ArlowForCausalLM._predict

    def record(model: Any, *args: Any) -> Any:
        output = predict(model, *args)
        seen.append((model.training, output.logits))
        return output

    monkeypatch.setattr(ArlowForCausalLM, "_predict", record)
    train("text", **text_fields(tmp_path, max_steps=1))
    assert {training for training, _ in seen} == {True, False}
    assert all(logits is None for _, logits in seen)


def assert_events(out: Path) -> None:
    """TensorBoard's file holds loss, gradient norm and speed."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    [path] = out.rglob("events.out.tfevents.*")
    events = EventAccumulator(str(path))
    events.Reload()
    assert {"train/loss", "train/grad_norm", "train/tokens_per_second", "eval/loss"} <= set(events.Tags()["scalars"])
    assert len(events.Scalars("train/loss")) == 30 and events.Scalars("train/tokens_per_second")[-1].value > 0


def test_tokenizer_is_the_same_each_time(tmp_path: Path) -> None:
    """A tokenizer trained again on the same data is the same one, in processes that differ in nothing but chance."""
    from arlow.training.recipe import read_recipe
    from arlow.training.text import Recipe, read_tokenizer

    recipe = read_recipe(Recipe, None, **text_fields(tmp_path))
    trained = [read_tokenizer(recipe)._tokenizer.to_str() for _ in range(3)]
    assert len(set(trained)) == 1


def test_switches_change_the_arithmetic_only(tmp_path: Path) -> None:
    """Checkpointed activations and eager attention give the same losses, bf16 nearly the same."""
    fields = text_fields(tmp_path, max_steps=3, eval_share=0.0)
    fields["config"] |= {"attention_dropout": 0.0, "resid_dropout": 0.0}
    runs: dict[str, dict[str, Any]] = {
        "plain": {},
        "checkpointed": {"gradient_checkpointing": True},
        "eager": {"attention": "eager"},
        "bf16": {"precision": "bf16"},
        "accumulated": {"batch_size": 1, "accumulation": 2},
    }
    found = {
        name: losses(train("text", **fields | {"output_dir": str(tmp_path / name)} | run))
        for name, run in runs.items()
    }
    assert found["checkpointed"] == pytest.approx(found["plain"], rel=1e-5)
    assert found["eager"] == pytest.approx(found["plain"], rel=1e-5)
    assert found["accumulated"] == pytest.approx(found["plain"], rel=1e-5)
    assert found["bf16"] == pytest.approx(found["plain"], rel=0.02) and found["bf16"] != found["plain"]


@pytest.mark.slow
def test_compiled_run(tmp_path: Path) -> None:
    """`compile: true` gives the losses of the plain run."""
    fields = text_fields(tmp_path, max_steps=3, eval_share=0.0)
    fields["config"] |= {"attention_dropout": 0.0, "resid_dropout": 0.0}
    plain, compiled = (
        losses(train("text", **{**fields, "compile": compile, "output_dir": str(tmp_path / str(compile))}))
        for compile in (False, True)
    )
    assert compiled == pytest.approx(plain, rel=1e-4)
