"""`arlow train`: what is wrong with a command line or a recipe is one line that names it; nothing is written."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from training_runs import command, text_fields, write_texts, write_yaml

from arlow import ArlowTextConfig, ArlowTokenizer
from arlow.cli import main
from arlow.training import load_stage, train


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A text model's directory, a tokenizer of other words, one that is smaller, and a damaged one."""
    words = ArlowTokenizer.train(iter(["the cat sat on the mat " * 9] * 3), 290)
    other = ArlowTokenizer.train(iter(["zebras quiver over jumpy foxes " * 9] * 3), 290)
    from arlow import ArlowForCausalLM

    config = ArlowTextConfig.tiny(vocab_size=len(words), hidden_size=32, eos_token_id=words.eos_token_id)
    ArlowForCausalLM(config).save_pretrained(tmp_path / "model")
    words.save_pretrained(tmp_path / "model")
    other.save_pretrained(tmp_path / "other")
    words.save_pretrained(tmp_path / "damaged")
    (tmp_path / "damaged" / "tokenizer.json").write_text("{")
    (tmp_path / "config.json").write_text(json.dumps({**config.to_dict(), "eos_token_id": 5}))
    return tmp_path


def refused(folder: Path, words: list[Any], capsys: pytest.CaptureFixture) -> str:
    """The one line on stderr of a command that ended with 2 and wrote nothing."""
    before = sorted(folder.rglob("*"))
    assert main(["train", *map(str, words)]) == 2
    printed = capsys.readouterr()
    lines = [line for line in printed.err.splitlines() if line]
    assert len(lines) == 1 and lines[0].startswith("arlow: ") and len(lines[0]) < 310, printed.err
    assert not printed.out
    assert sorted(folder.rglob("*")) == before
    return lines[0]


WRONG = {
    "lerning_rate=1": "lerning_rate=1: unknown field; did you mean 'learning_rate'?",
    "config.hiden_size=8": "hiden_size=8: ArlowTextConfig has no such field",
    "config.hidden_size=33": "hidden_size=33: is no multiple of num_attention_heads=4",
    "config.vocab_size=260": "tokens, the model vocab_size=260",
    "config=nowhere.json": "config='nowhere.json': no such file",
    "config.eos_token_id=5": "eos_token_id=",
    "tokenizer=nowhere": "tokenizer='nowhere': no such directory",
    "tokenizer.train.vocab_size=10": "vocab_size=10: is below 256 bytes",
    "tokenizer=null": "tokenizer: a model from scratch needs one",
    "model=nowhere": "give either model or config",
    "data=nowhere.jsonl": "files='nowhere.jsonl': no such file",
    "data=nowhere/*.jsonl": "files='nowhere/*.jsonl': no such file",
    "data=recipe.yaml": "files='recipe.yaml': not a kind of file",
    "data=empty.jsonl": "data='empty.jsonl': holds no text",
    "data=bad.jsonl": "data='bad.jsonl': holds no text",
    "data={files: texts.jsonl, field: words}": "bad_samples_limit=100: 101 samples cannot be read",
    "data={fiels: texts.jsonl}": "data.0.fiels='texts.jsonl': unknown field; did you mean 'files'?",
    "data=[]": "data=[]: Value should have at least 1 item",
    "data={dataset: texts.jsonl/no}": "dataset='texts.jsonl/no': cannot be opened",
    "eval_data=empty.jsonl": "give either eval_data or eval_share",
    "eval_share=1e-9": "eval_share=1e-09: so small a share",
    "eval_share=1": "eval_share=1: Input should be less than 1",
    "sequence_length=129": "sequence_length=129: longer than the model's max_position_embeddings=128",
    "max_steps=null": "give either max_steps or epochs",
    "max_steps=0": "max_steps=0: Input should be greater than 0",
    "precision=fp16": "precision='fp16': needs a GPU; use bf16 or fp32",
    "optimizer=adamm": "optimizer='adamm': no such optimizer; did you mean '",
    "schedule_options={num_cycle: 1}": "schedule_options={'num_cycle': 1}: cosine does not take these",
    "schedule=warmup_stable_decay": "schedule_options={}: warmup_stable_decay does not take these",
    "trainer={lerning_rate: 1}": "trainer got an unexpected keyword argument 'lerning_rate'",
    "fsdp={reshard_after_foward: false}": "no such option; did you mean 'reshard_after_forward'?",
    "fsdp={state_dict_type: SHARDED_STATE_DICT}": "only FULL_STATE_DICT writes a model that others can load",
    "deepspeed=nowhere.json": "deepspeed='nowhere.json': no such file",
    "output_dir=texts.jsonl": "output_dir='texts.jsonl': a file, not a directory",
    "output_dir": "override='output_dir': not a setting; write key=value",
    "seed=[1": "config='seed': not YAML",
}


@pytest.mark.parametrize("word", WRONG)
def test_wrong_field(
    tmp_path: Path, word: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A good recipe with one wrong field."""
    monkeypatch.chdir(tmp_path)
    fields = text_fields(tmp_path)
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "bad.jsonl").write_text("{\n" * 3)
    write_yaml(tmp_path / "recipe.yaml", fields)
    capsys.readouterr()
    assert WRONG[word] in refused(tmp_path, ["text", "recipe.yaml", word], capsys)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "stage=None: not given; choose from text"),
        (["txt", "a.yaml"], "stage='txt': no such stage; did you mean 'text'?"),
        (["stages"], "stage='stages': no such stage; choose from text"),
        (["text", "nowhere.yaml"], "config='nowhere.yaml': cannot be read (No such file or directory)"),
        (["text", "typo.yaml"], "config='typo.yaml': not YAML"),
        (["text", "twice.yaml"], "field 'seed' is given twice"),
        (["text"], "output_dir: this field is required"),
    ],
)
def test_wrong_command_line(
    tmp_path: Path, words: list[str], expected: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unknown stage, a recipe that is missing or no YAML."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "typo.yaml").write_text("data: [a.jsonl\nseed: 1")
    (tmp_path / "twice.yaml").write_text("seed: 1\nseed: 2")
    assert expected in refused(tmp_path, words, capsys)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["tokenizer=other"], "tokenizer='other': has other tokens than the model's own in 'model'"),
        (["tokenizer=damaged"], "tokenizer.json"),
        (["model=other"], "config"),
        (["model=null", "config=config.json", "tokenizer=model"], "has eos_token_id=0, the model 5"),
        (
            ["model=null", "config={vocab_size: 300, eos_token_id: 0, pad_token_id: 299}", "tokenizer=model"],
            "pad_token_id",
        ),
    ],
)
def test_tokenizer_of_another_model(
    models: Path, words: list[str], expected: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tokenizer that is not the model's, or damaged; a directory that is no model."""
    monkeypatch.chdir(models)
    fields = text_fields(models, config=None, tokenizer=None, model="model", eval_share=0.0, max_steps=1)
    write_yaml(models / "recipe.yaml", fields)
    capsys.readouterr()
    assert expected in refused(models, ["text", "recipe.yaml", *words], capsys)


def test_too_many_bad_samples_ends_the_run(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """More unreadable records than allowed, met on the way: exit code 1, all named in the file."""
    fields = text_fields(tmp_path, eval_share=0.0, shuffle_buffer=0, bad_samples_limit=2, max_steps=300)
    with open(fields["data"], "a") as file:
        file.write("{\n" * 5)
    config = write_yaml(
        tmp_path / "recipe.yaml", {**fields, "tokenizer": {"train": {"vocab_size": 300, "documents": 200}}}
    )
    assert main(["train", "text", str(config)]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert "bad_samples_limit=2: 3 samples cannot be read" in last and "bad_samples.jsonl" in last
    listed = [json.loads(line)["sample"] for line in (tmp_path / "out" / "bad_samples.jsonl").open()]
    assert listed == [f"{fields['data']}:{number}" for number in (301, 302, 303)]


def test_help_lists_stages_and_fields(capsys: pytest.CaptureFixture) -> None:
    """`arlow train --help` names the stages; with a stage, each field with default and meaning, and an example."""
    with pytest.raises(SystemExit) as stop:
        main(["train", "--help"])
    shown = capsys.readouterr().out
    assert stop.value.code == 0 and all(
        f"  {stage} " in shown for stage in ("text", "vision-mae", "align", "finetune")
    )
    with pytest.raises(SystemExit) as stop:
        main(["train", "text", "--help"])
    shown = capsys.readouterr().out
    assert stop.value.code == 0 and "example: arlow train text" in shown
    assert "  learning_rate = 0.0001\n      peak learning rate\n" in shown and "  data (required)\n" in shown
    assert all(f"  {name}" in shown for name in load_stage("text").Recipe.model_fields)


def test_command_trains_and_function_agrees(tmp_path: Path) -> None:
    """The command in a process of its own: exit code 0, lines of progress, the same weights as the function's."""
    fields = text_fields(tmp_path, max_steps=2, output_dir=str(tmp_path / "a"))
    config = write_yaml(tmp_path / "recipe.yaml", fields)
    code, shown, errors = command("train", "text", config, f"output_dir={tmp_path / 'b'}", "log_steps=2")
    assert code == 0, errors
    assert f"wrote {tmp_path / 'b'}" in shown
    assert "step 2/2  loss " in shown and "tokens_per_second" in shown and "ETA 0:00" in shown and "grad_norm" in shown
    out = train("text", **fields)
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()


def test_missing_extra_is_named(fresh_python: Any, tmp_path: Path) -> None:
    """Without what training needs, the line names the extra; exit code 1."""
    code = "import sys; sys.modules['pydantic'] = None\nfrom arlow.cli import main\nsys.exit(main(['train', 'text']))"
    shown = fresh_python(code, check=False)
    assert "pydantic is not installed; pip install 'arlow[train]'" in shown


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_output(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A directory without the right to write."""
    write_texts(tmp_path / "texts.jsonl")
    (tmp_path / "locked").mkdir(mode=0o500)
    config = write_yaml(tmp_path / "recipe.yaml", text_fields(tmp_path, output_dir=str(tmp_path / "locked")))
    assert "cannot be written (Permission denied)" in refused(tmp_path, ["text", config], capsys)
