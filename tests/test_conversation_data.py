"""Chat data: what is learned of a conversation, what a batch holds, what is refused, in which order rows come."""

from __future__ import annotations

import base64
import copy
import json
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chat_samples import assistant, chat_processor, conversations, image_file, save_model, user, video_file, write_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from video_samples import truncate

from arlow import ArlowForConditionalGeneration
from arlow.data.bad_samples import BadSamples
from arlow.data.conversations import Collator, Conversations, JsonLines, Sample, SimilarLengths, Table, pack_rows
from arlow.data.draws import Draws


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `rows.jsonl` (eight conversations) and its media."""
    folder = tmp_path_factory.mktemp("chats")
    write_rows(folder / "rows.jsonl", conversations(folder))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ArlowForConditionalGeneration:
    saved = save_model(tmp_path_factory.mktemp("model"), vision={"deepstack_visual_indexes": [0]})
    return ArlowForConditionalGeneration.from_pretrained(saved).eval()


def rows_of(*paths: Path, **options: Any) -> Conversations:
    return Conversations(chat_processor(), [(JsonLines(path), 1.0) for path in paths], **options)


def samples_of(folder: Path) -> list[Sample]:
    rows = rows_of(folder / "rows.jsonl")
    return [rows.load(item) for item in rows.items]


def absolute(messages: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    messages = copy.deepcopy(messages)
    for turn in messages:
        for part in turn["content"] if isinstance(turn["content"], list) else []:
            if "path" in part:
                part["path"] = str(folder / part["path"])
    return messages


# What a sample holds


@pytest.mark.parametrize("crops", [False, True])
def test_samples_equal_the_processors_output(folder: Path, crops: bool) -> None:
    """Ids, types, grids and pixels, bit for bit, are those of `apply_chat_template`, crops included; so is what is
    learned."""
    processor = chat_processor()
    if crops:
        image = processor.image_processor
        image.do_pan_and_scan, image.pan_and_scan_min_crop_size = True, 20
        image.pan_and_scan_min_ratio_to_activate, image.image_mean = 0.9, (0.1, 0.2, 0.3)
    rows = Conversations(processor, [(JsonLines(folder / "rows.jsonl"), 1.0)])
    assert len(rows.load(0).media[0].grids) == (3 if crops else 1)
    for sample, line in zip(map(rows.load, rows.items), (folder / "rows.jsonl").read_text().splitlines(), strict=True):
        wanted = processor.apply_chat_template(
            absolute(json.loads(line)["messages"], folder),
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            return_assistant_tokens_mask=True,
        )
        batch = Collator(processor)([sample])
        learned = torch.as_tensor(wanted.pop("assistant_masks"))
        assert set(batch) == {*wanted, "labels"}
        for name, value in wanted.items():
            assert torch.equal(batch[name], value), name
        assert torch.equal(batch["labels"], torch.where(learned.bool(), wanted["input_ids"], -100))


def words() -> st.SearchStrategy[str]:
    alphabet = st.characters(codec="utf-8", exclude_categories=("Cs", "Cc", "Zl", "Zp", "Zs"))
    text = st.text(st.one_of(alphabet, st.sampled_from(" <|>")), min_size=1, max_size=12) | st.sampled_from(
        ["<|im_end|>", "<image>", "a<|im_start|>assistant\nno", "<|im_"]
    )
    return text.map(lambda value: unicodedata.normalize("NFC", value.strip()) or "x")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(words(), words()), min_size=1, max_size=4), st.booleans())
def test_learned_tokens_are_the_answers(turns: list[tuple[str, str]], system: bool) -> None:
    """Whatever is said: the learned tokens spell the assistant's answers and their closing tokens, nothing else."""
    messages: list[Any] = [{"role": "system", "content": "be brief"}] if system else []
    for question, answer in turns:
        messages += [user(question), assistant(answer)]
    processor = chat_processor()
    sample = Conversations(processor, [(_Rows([messages]), 1.0)]).load(0)
    text = processor.tokenizer.decode(sample.ids[sample.learned].tolist())
    assert text == "".join(f"{answer}<|im_end|>" for _, answer in turns)
    ends = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert (sample.ids[sample.learned] == ends).sum() == len(turns)  # typed ones are no control tokens


class _Rows:
    """Conversations in memory, as a source."""

    def __init__(self, rows: list[Any]) -> None:
        self.rows, self.sizes = rows, np.zeros(len(rows), dtype=np.int64)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return {"messages": self.rows[index]}

    def name(self, index: int) -> str:
        return f"row {index}"


def test_media_of_an_assistant_are_not_learned(folder: Path) -> None:
    """An assistant's turn with a picture: its words are learned, the placeholders are not."""
    part = {"type": "image", "path": str(folder / "red.png")}
    reply = {"role": "assistant", "content": [{"type": "text", "text": "here"}, part, {"type": "text", "text": "red"}]}
    processor = chat_processor()
    sample = Conversations(processor, [(_Rows([[user("show me"), reply]]), 1.0)]).load(0)
    assert processor.tokenizer.decode(sample.ids[sample.learned].tolist()) == "herered<|im_end|>"
    assert (sample.types == 1).any() and not (sample.learned & (sample.types == 1)).any()


# Batches


def grown(
    model: ArlowForConditionalGeneration, batches: list[dict[str, Any]]
) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss over batches (divided by all their labels) and its gradients."""
    model.zero_grad()
    count = sum((batch["labels"] != -100).sum() for batch in batches)
    losses = [model(**batch, num_items_in_batch=count).loss for batch in batches]
    for loss in losses:
        loss.backward()
    return sum(loss.item() for loss in losses), {
        name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None
    }


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_equals_padded_equals_alone(folder: Path, model: ArlowForConditionalGeneration, attention: str) -> None:
    """Loss and every gradient of packed conversations with media are those of padded rows, and of single rows."""
    model.set_attn_implementation(attention)
    samples = samples_of(folder)
    processor = chat_processor()
    packed = Collator(processor, packing=True)(samples)
    assert len(packed["input_ids"]) < len(samples)
    loss, gradients = grown(model, [packed])
    for others in ([Collator(processor)(samples)], [Collator(processor, packing=True)([each]) for each in samples]):
        other, wanted = grown(model, others)
        assert loss == pytest.approx(other, rel=1e-5)
        for name, gradient in wanted.items():
            torch.testing.assert_close(gradients[name], gradient, atol=2e-6, rtol=1e-3)


def test_packed_positions_are_those_of_each_conversation(folder: Path, model: ArlowForConditionalGeneration) -> None:
    """All four rows of positions restart: each conversation has what `get_rope_index` gives it alone."""
    samples, processor = samples_of(folder), chat_processor()
    batch = Collator(processor, packing=True)(samples)
    alone = {}
    for sample in samples:
        single = Collator(processor)([sample])
        single.pop("labels")
        grids = {name: single.get(name) for name in ("image_grid_thw", "video_grid_thw")}
        axes, _ = model.model.get_rope_index(single["input_ids"], single["mm_token_type_ids"], **grids)
        text = torch.arange(len(sample.ids))[None, None]
        alone[tuple(sample.ids.tolist())] = torch.cat((text, axes))[:, 0]
    found = 0
    for row, mask in enumerate(batch["attention_mask"].bool()):
        positions, ids = batch["position_ids"][:, row], batch["input_ids"][row]
        assert not positions[:, ~mask].any()
        starts = [i for i in range(int(mask.sum())) if positions[0, i] == 0]
        for start, end in zip(starts, [*starts[1:], int(mask.sum())], strict=True):
            assert torch.equal(positions[:, start:end], alone[tuple(ids[start:end].tolist())])
            found += 1
    assert found == len(samples)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40))
def test_packed_rows(lengths: list[int]) -> None:
    """Every sample has one place; rows are at most twice the longest; there is no more padding than unpacked."""
    rows = pack_rows(lengths)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    totals = [sum(lengths[i] for i in row) for row in rows]
    assert max(totals) <= 2 * max(lengths)
    assert len(rows) * max(totals) <= len(lengths) * max(lengths)
    assert rows == sorted(map(sorted, rows))


def test_rows_of_similar_length_share_a_batch() -> None:
    """Sorted draws are the same draws; batches waste less; the order follows from the seed."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 200, 100)

    def order(seed: int) -> list[int]:
        draws = Draws(range(100), lambda item, rng: item, count=203, seed=seed, bad_samples=BadSamples(None))
        rows = SimilarLengths(draws, lambda item: int(lengths[item]), step=4)
        assert sorted(rows[i] for i in range(203)) == sorted(draws[i] for i in range(203))
        return [rows[i] for i in range(203)]

    def waste(items: list[int]) -> float:
        groups = [lengths[items[i : i + 4]] for i in range(0, len(items), 4)]
        return sum(len(g) * g.max() for g in groups) / sum(g.sum() for g in groups)

    assert waste(order(0)) < 1.25 < 1.5 < waste(list(rng.permutation(100)))
    assert order(0) == order(0) != order(1)


# Sources


def test_bad_rows_are_named_and_skipped(folder: Path, tmp_path: Path) -> None:
    """Every way a row can be wrong: named `file:line` with the reason, another row in its place."""
    part = image_file(tmp_path, "red")
    clip = video_file(tmp_path, "blue")
    truncate(tmp_path / clip["path"], keep=0.5)
    (tmp_path / "broken.png").write_bytes((tmp_path / part["path"]).read_bytes()[:60])
    good = [user(part, "Describe"), assistant("fox")]
    bad = {
        "unknown role": [{"role": "human", "content": "?"}, assistant("a")],
        "none of the assistant": [user("?")],
        "missing.png": [user({"type": "image", "path": "missing.png"}), assistant("a")],
        "broken.png": [user({"type": "image", "path": "broken.png"}), assistant("a")],
        "blue.mp4": [user(clip), assistant("a")],
        "with media for 0": [user({"type": "image"}), assistant("a")],
        "with media for 1": {
            "messages": [user({"type": "image"}, {"type": "image"}), assistant("a")],
            "images": ["red.png"],
        },
        "not JSON": '{"messages": [',
        "no conversation": {"text": "hello"},
        "is neither a string nor a list": [user("?"), {"role": "assistant", "content": 7}],
        "max_length": [user("word " * 300), assistant("a")],
        "unknown content type": [user({"type": "sound", "path": "a.wav"}), assistant("a")],
    }
    path = write_rows(tmp_path / "rows.jsonl", [good, "", *bad.values(), *[good] * 20])
    rows = rows_of(path, max_length=200)
    log = BadSamples(tmp_path / "out" / "bad_samples.jsonl", limit=len(bad))
    draws = Draws(rows.items.tolist(), rows.load, count=len(rows.items), seed=0, bad_samples=log, name=rows.name)
    wanted = rows.load(0)
    assert all(np.array_equal(draws[i].ids, wanted.ids) for i in range(len(draws)))
    listed = {line["sample"]: line["error"] for line in map(json.loads, log.path.read_text().splitlines())}
    assert listed.keys() == {f"{path}:{3 + i}" for i in range(len(bad))}
    for number, words in enumerate(bad, 3):
        assert words in listed[f"{path}:{number}"]
        assert len(listed[f"{path}:{number}"]) < 300


def test_refused_before_training(tmp_path: Path) -> None:
    """A missing, empty or quite different file, and a chat template that marks nothing, are refused at once."""
    with pytest.raises(OSError, match=r"no\.jsonl"):
        rows_of(tmp_path / "no.jsonl")
    with pytest.raises(ValueError, match="has no rows"):
        rows_of(write_rows(tmp_path / "empty.jsonl", ["", " "]))
    with pytest.raises(ValueError, match=r"captions\.jsonl:1.*no conversation"):
        rows_of(write_rows(tmp_path / "captions.jsonl", [{"image": "a.png", "caption": "a fox"}]))
    processor = chat_processor()
    processor.chat_template = "{% for m in messages %}{{ m['role'] + m['content'] }}{% endfor %}"
    with pytest.raises(ValueError, match="chat_template"):
        Conversations(processor, [(_Rows([[user("?")]]), 1.0)])


def test_paths_and_extra_keys(tmp_path: Path) -> None:
    """Paths are relative to the file's folder or absolute, lists of frames too; data URIs and extra keys are fine."""
    (tmp_path / "media").mkdir()
    image_file(tmp_path / "media", "red")
    data = "data:image/png;base64," + base64.b64encode((tmp_path / "media/red.png").read_bytes()).decode()
    ways = [
        {"type": "image", "path": "../media/red.png"},
        {"type": "image", "image": str(tmp_path / "media/red.png")},
        {"type": "image", "url": data},
        {"type": "image", "image": data},
    ]
    rows = [{"messages": [user(way), assistant("red")], "id": 7, "note": None} for way in ways]
    rows.append({"messages": [user({"type": "image"}), assistant("red")], "images": ["../media/red.png"]})
    rows.append([user({"type": "video", "video": ["../media/red.png"] * 4}), assistant("red")])
    loaded = rows_of(write_rows(tmp_path / "rows" / "rows.jsonl", rows))
    first = loaded.load(0)
    for item in range(1, len(ways) + 1):
        assert np.array_equal(loaded.load(item).media[0].rows, first.media[0].rows)
        assert np.array_equal(loaded.load(item).ids, first.ids)
    assert loaded.load(5).media[0].kind == "video"


def test_tables(folder: Path, tmp_path: Path) -> None:
    """A saved `datasets` table gives the samples of the same rows in JSONL, pictures in a column included."""
    datasets = pytest.importorskip("datasets")
    part = {"type": "image", "path": None, "text": None}
    rows = [
        {
            "messages": [
                {"role": "user", "content": [part]},
                {"role": "assistant", "content": [{"type": "text", "text": "fox"}]},
            ],
            "images": [{"bytes": None, "path": str(folder / name)}],
        }
        for name in ("red.png", "green.png")
    ]
    features = datasets.Features(
        messages=[
            {
                "role": datasets.Value("string"),
                "content": [{key: datasets.Value("string") for key in ("type", "path", "text")}],
            }
        ],
        images=[datasets.Image()],
    )
    datasets.Dataset.from_list(rows, features=features).save_to_disk(tmp_path / "table")
    table = Conversations(chat_processor(), [(Table(str(tmp_path / "table")), 1.0)])
    wanted = rows_of(
        write_rows(
            tmp_path / "rows.jsonl", [[user({"type": "image", "path": str(folder / "red.png")}), assistant("fox")]]
        )
    )
    assert np.array_equal(table.load(0).ids, wanted.load(0).ids)
    assert np.array_equal(table.load(0).media[0].rows, wanted.load(0).media[0].rows)
    assert table.name(1).endswith("table:1")
    with pytest.raises(ValueError, match="dataset"):
        Table(str(tmp_path / "nothing"))


def test_weights(folder: Path) -> None:
    """A pass takes each row of a source as often as its weight says, to a tenth."""
    source = JsonLines(folder / "rows.jsonl")
    rows = Conversations(chat_processor(), [(source, 2.0), (source, 0.5)])
    assert rows.epoch == 20
    first, second = np.split(rows.items, np.cumsum(rows.passes)[:-1])
    for lap in (first, second):  # the first source twice in each, of the other every second row
        counts = np.bincount(lap, minlength=16)
        assert (counts[:8] == 2).all() and counts[8:].sum() == 4
    assert (np.bincount(rows.items)[8:] == 1).all()
    assert rows.name(8) == f"{folder / 'rows.jsonl'}:1"


def test_cache(folder: Path, tmp_path: Path) -> None:
    """With `cache` nothing is read twice, and media that rows share are kept once."""
    shutil.copytree(folder, tmp_path / "copy")
    rows = rows_of(tmp_path / "copy" / "rows.jsonl", cache=True)
    before = [rows.load(item) for item in rows.items]
    shutil.rmtree(tmp_path / "copy")
    assert all(rows.load(item) is sample for item, sample in zip(rows.items, before, strict=True))
    red = [media for sample in before for media in sample.media if media.rows is before[0].media[0].rows]
    assert len(red) == 2  # the pictures of the first and the sixth conversation


def test_workers_change_nothing(folder: Path) -> None:
    """Two loading processes give the batches of none, bit for bit."""
    rows = rows_of(folder / "rows.jsonl")
    draws = Draws(rows.items.tolist(), rows.load, count=12, seed=3, bad_samples=BadSamples(None))
    loaders = [
        DataLoader(draws, batch_size=4, collate_fn=Collator(chat_processor(), packing=True), num_workers=workers)
        for workers in (0, 2)
    ]
    for one, two in zip(*loaders, strict=True):
        assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
