"""`arlow convert`: earlier checkpoints and other families on disk; what cannot be converted leaves nothing behind."""

from __future__ import annotations

import errno
import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)
from upstream_fixtures import ALL, AUTO, FIXTURES, largest_difference, meta, needs_fixtures

from arlow import ArlowForCausalLM
from arlow.cli import main
from arlow.conversion import convert
from arlow.conversion.shards import Stored, read_header, rows_in_halves
from arlow.earlier_config import generation_of
from arlow.earlier_weights import in_halves


SIZES: dict[str, Any] = {
    "vocab_size": 160, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.3, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}  # fmt: skip
LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32,
            "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}  # fmt: skip
OTHERS = {
    "llama": ("llama", LlamaConfig(**SIZES)),
    "llama-longrope": ("llama", LlamaConfig(**SIZES, rope_parameters=LONGROPE)),
    "llama-tied-llama3-rope": ("llama", LlamaConfig(**SIZES, tie_word_embeddings=True, rope_parameters=LLAMA3)),
    "llama-head-dim": ("llama", LlamaConfig(**{**SIZES, "head_dim": 24, "rms_norm_eps": 1e-5, "hidden_act": "gelu"})),
    "mistral": ("mistral", MistralConfig(**SIZES, sliding_window=None)),
    "mistral-window": ("mistral", MistralConfig(**SIZES, sliding_window=7)),
    "qwen2": ("qwen2", Qwen2Config(**SIZES, tie_word_embeddings=True)),
    "qwen3": ("qwen3", Qwen3Config(**SIZES, head_dim=24)),
    "qwen2-window": ("qwen2", Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=6, max_window_layers=1)),
}


def other_checkpoint(folder: Path, config: Any, factory: Any = AutoModelForCausalLM) -> Any:
    torch.manual_seed(0)
    model = factory.from_config(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "norm" in name:  # their first values are all alike
            torch.nn.init.normal_(parameter, mean=1.0, std=0.3)
    model.save_pretrained(folder)
    return model


def save_tokenizer(folder: Path) -> None:
    words = {word: index for index, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", "the", "fox", "runs"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    fast.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    fast.save_pretrained(folder)


def nothing_but(folder: Path, *names: str) -> bool:
    return {path.name for path in folder.iterdir()} == set(names)


# Earlier Arlow


@needs_fixtures
@pytest.mark.parametrize("name", ALL)
def test_earlier_checkpoints(name: str, tmp_path: Path) -> None:
    """The same weights as a load and a save of the earlier directory; the stored answers without any conversion."""
    door = AUTO[meta(name)["class"]]
    folder = convert(FIXTURES / name, tmp_path / "new")
    assert generation_of(json.loads((folder / "config.json").read_text())) is None
    direct, converted = door.from_pretrained(FIXTURES / name), door.from_pretrained(folder)
    assert type(direct) is type(converted)
    weights = converted.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in direct.state_dict().items())
    assert direct.config.to_dict() == converted.config.to_dict() | {"_name_or_path": direct.config._name_or_path}
    for case in ("plain", "packed"):
        if case in meta(name).get("cases", {}):
            assert largest_difference(converted.eval(), name, case) < 1e-4


@needs_fixtures
def test_shards_stay_shards(tmp_path: Path) -> None:
    """A sharded checkpoint becomes a sharded one with its own index."""
    name = "v2_text/base"
    tensors = sorted(load_file(FIXTURES / name / "model.safetensors").items())
    halves = {"model-00001-of-00002.safetensors": tensors[::2], "model-00002-of-00002.safetensors": tensors[1::2]}
    source = tmp_path / "old"
    source.mkdir()
    shutil.copy(FIXTURES / name / "config.json", source)
    for file, part in halves.items():
        save_file(dict(part), source / file, {"format": "pt"})
    places = {key: file for file, part in halves.items() for key, _ in part}
    (source / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    folder = convert(source, tmp_path / "new")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == places
    assert index["metadata"]["total_size"] == sum(value.numel() * 4 for _, value in tensors)
    assert largest_difference(ArlowForCausalLM.from_pretrained(folder).eval(), name, "plain") < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_rows_of_bytes(dtype: torch.dtype) -> None:
    """Rows reordered as bytes are rows reordered as numbers, of matrices and biases."""
    for shape in ((24, 5), (24,)):
        rows = torch.randn(shape).to(dtype)
        data = rows.view(torch.uint8).numpy().tobytes()
        work, unit = rows_in_halves(Stored("q", "", shape, Path(), 0, len(data)), 12)
        turned = b"".join(work(data[start : start + unit]) for start in range(0, len(data), unit))
        again = torch.frombuffer(bytearray(turned), dtype=dtype).view(shape)
        assert torch.equal(again, in_halves(rows, 12))


# Other families


@pytest.mark.parametrize("name", OTHERS)
@torch.no_grad()
def test_other_families(name: str, tmp_path: Path) -> None:
    """The same logits in float32, padded or not; the same tokenizer, generation config and greedy answers."""
    family, config = OTHERS[name]
    other = other_checkpoint(tmp_path / "old", config)
    save_tokenizer(tmp_path / "old")
    other.generation_config = GenerationConfig(max_new_tokens=9, do_sample=False, bos_token_id=1, eos_token_id=2)
    other.generation_config.save_pretrained(tmp_path / "old")
    folder = convert(tmp_path / "old", tmp_path / "new", family=family)
    ours = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert isinstance(ours, ArlowForCausalLM)
    ids, mask = torch.randint(3, 160, (3, 21)), torch.ones(3, 21, dtype=torch.long)
    mask[1, :4], mask[2, :9] = 0, 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    wanted = other(ids, attention_mask=mask, position_ids=positions).logits
    given = ours(ids, attention_mask=mask, position_ids=positions).logits
    scale = wanted[mask.bool()].abs().max().clamp(min=1)
    assert (given - wanted)[mask.bool()].abs().max() < 1e-5 * scale
    assert torch.equal(ours.generate(ids[:1]), other.generate(ids[:1]))
    text = "the fox runs away"
    before, after = AutoTokenizer.from_pretrained(tmp_path / "old"), AutoTokenizer.from_pretrained(folder)
    assert type(after) is type(before)
    assert after(text).input_ids == before(text).input_ids
    assert after.chat_template == before.chat_template is not None


def test_other_heads(tmp_path: Path) -> None:
    """A bare model and a classifier become their equals."""
    for factory, head in ((AutoModel, "hidden"), (AutoModelForSequenceClassification, "labels")):
        other = other_checkpoint(tmp_path / head, LlamaConfig(**SIZES, num_labels=3), factory)
        ours = factory.from_pretrained(convert(tmp_path / head, tmp_path / f"{head}-new", family="llama")).eval()
        ids = torch.randint(3, 160, (2, 7))
        with torch.no_grad():
            torch.testing.assert_close(ours(ids)[0], other(ids)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "config", "words"),
    [
        ("llama", LlamaConfig(**SIZES, attention_bias=True), "attention_bias=True"),
        ("llama", LlamaConfig(**SIZES, mlp_bias=True), "mlp_bias=True"),
        ("llama", Qwen2Config(**SIZES), "no llama checkpoint"),
        ("qwen2", LlamaConfig(**SIZES), "no qwen2 checkpoint"),
        (None, LlamaConfig(**SIZES), "--from"),
        ("gpt2", LlamaConfig(**SIZES), "family='gpt2'"),
    ],
)
def test_what_is_not_exactly_the_same_is_refused(family: str | None, config: Any, words: str, tmp_path: Path) -> None:
    """With the field and the reason, and nothing is written."""
    other_checkpoint(tmp_path / "old", config)
    with pytest.raises(ValueError, match=words):
        convert(tmp_path / "old", tmp_path / "new", family=family)
    assert nothing_but(tmp_path, "old")


def test_old_constants_and_doubled_heads_are_dropped(tmp_path: Path) -> None:
    """`rotary_emb.inv_freq` of old LLaMA files, and the head stored beside the embedding it is tied to."""
    other = other_checkpoint(tmp_path / "old", LlamaConfig(**SIZES, tie_word_embeddings=True))
    tensors = load_file(tmp_path / "old/model.safetensors")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, tmp_path / "old/model.safetensors", {"format": "pt"})
    folder = convert(tmp_path / "old", tmp_path / "new", family="llama")
    assert {tensor.name for tensor in read_header(folder / "model.safetensors")} == set(tensors) - {
        "model.layers.0.self_attn.rotary_emb.inv_freq", "lm_head.weight",
    }  # fmt: skip
    ids = torch.arange(3, 12)[None]
    with torch.no_grad():
        torch.testing.assert_close(AutoModelForCausalLM.from_pretrained(folder)(ids).logits, other(ids).logits)


def test_a_head_of_its_own_stays(tmp_path: Path) -> None:
    """A stored head that differs from the embedding is kept, although the config says they are tied."""
    other_checkpoint(tmp_path / "old", LlamaConfig(**SIZES, tie_word_embeddings=True))
    tensors = load_file(tmp_path / "old/model.safetensors")
    tensors["lm_head.weight"] = torch.randn(160, 64) * 0.02
    save_file(tensors, tmp_path / "old/model.safetensors", {"format": "pt"})
    other = AutoModelForCausalLM.from_pretrained(tmp_path / "old")
    ours = AutoModelForCausalLM.from_pretrained(convert(tmp_path / "old", tmp_path / "new", family="llama"))
    assert ours.config.tie_word_embeddings is False
    with torch.no_grad():
        torch.testing.assert_close(ours(torch.arange(9)[None]).logits, other(torch.arange(9)[None]).logits)


def test_settings_in_the_config_come_along(tmp_path: Path) -> None:
    """What an old config says of generation, and the kind of a classifier's problem."""
    other_checkpoint(tmp_path / "old", LlamaConfig(**SIZES))
    (tmp_path / "old/generation_config.json").unlink()
    file = tmp_path / "old/config.json"
    fields = json.loads(file.read_text()) | {"top_p": 0.9, "max_length": 77, "problem_type": "regression"}
    file.write_text(json.dumps(fields))
    folder = convert(tmp_path / "old", tmp_path / "new", family="llama")
    generation = GenerationConfig.from_pretrained(folder)
    assert (generation.top_p, generation.max_length) == (0.9, 77)
    assert AutoConfig.from_pretrained(folder).problem_type == "regression"


# What goes wrong


def broken(folder: Path, how: str) -> None:
    file = folder / "model.safetensors"
    data = file.read_bytes()
    tensors = load_file(file)
    if how == "truncated":
        file.write_bytes(data[: len(data) * 2 // 3])
    elif how == "corrupt":
        file.write_bytes(struct.pack("<Q", 1 << 40) + data[8:])
    elif how == "empty":
        file.write_bytes(b"")
    elif how == "absent":
        file.unlink()
    elif how == "missing":
        del tensors["model.norm.weight"]
        save_file(tensors, file)
    elif how == "left over":
        save_file({**tensors, "model.extra": torch.ones(2)}, file)
    elif how == "of another shape":
        save_file({**tensors, "model.norm.weight": torch.ones(65)}, file)
    elif how == "pickled":
        file.rename(folder / "pytorch_model.bin")
    elif how == "in several files":
        names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
        save_file(tensors, folder / names[0])
        save_file({"model.norm.weight": torch.ones(64)}, folder / names[1])
        file.unlink()
        places = dict.fromkeys(tensors, names[0]) | {"model.norm.weight": names[1]}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    elif how in ("tokenizer.json", "generation_config.json"):
        (folder / how).write_text('{"broken": ')


@pytest.mark.parametrize(
    ("how", "error", "words"),
    [
        ("truncated", OSError, "truncated or corrupt"),
        ("corrupt", OSError, "truncated or corrupt"),
        ("empty", OSError, "truncated or corrupt"),
        ("absent", OSError, "holds no model.safetensors"),
        ("pickled", OSError, "pickled"),
        ("in several files", ValueError, "in several files: model.norm.weight"),
        ("tokenizer.json", OSError, "its tokenizer cannot be read"),
        ("generation_config.json", OSError, "no readable generation_config.json"),
        ("missing", ValueError, "missing: model.norm.weight"),
        ("left over", ValueError, "left over: model.extra"),
        ("of another shape", ValueError, "of another shape than the config says: model.norm.weight"),
    ],
)
@pytest.mark.parametrize("family", ["llama", None])
def test_broken_sources(
    how: str, error: type[Exception], words: str, family: str | None, tmp_path: Path, capsys: Any
) -> None:
    """A clear error, from Python and the command line, and no destination."""
    if family is None and not FIXTURES.is_dir():
        pytest.skip("needs ../shared/fixtures")
    source = tmp_path / "old"
    if family is None:
        shutil.copytree(FIXTURES / "v2_text/base", source)
    else:
        other_checkpoint(source, LlamaConfig(**SIZES))
    broken(source, how)
    with pytest.raises(error, match=words):
        convert(source, tmp_path / "deep/new", family=family)
    assert nothing_but(tmp_path, "old")
    options = [] if family is None else ["--from", family]
    assert main(["convert", *options, str(source), str(tmp_path / "new")]) == 1
    assert words in capsys.readouterr().err
    assert nothing_but(tmp_path, "old")


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": None}, {"num_attention_heads": 0}, {"vocab_size": "160"}, {"architectures": [5]},
        {"rope_parameters": "x"}, {"pad_token_id": "0"},
    ],
)  # fmt: skip
def test_impossible_configs(changes: dict[str, Any], tmp_path: Path, capsys: Any) -> None:
    """A config whose values cannot be is one line, not a traceback."""
    other_checkpoint(tmp_path / "old", LlamaConfig(**SIZES))
    file = tmp_path / "old/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    capsys.readouterr()
    assert main(["convert", "--from", "llama", str(tmp_path / "old"), str(tmp_path / "new")]) == 1
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert nothing_but(tmp_path, "old")


@torch.no_grad()
def test_older_files(tmp_path: Path) -> None:
    """Files of before `rope_parameters`: the theta and the trained length stand at the top."""
    other_checkpoint(tmp_path / "old", LlamaConfig(**SIZES, rope_parameters=LONGROPE))
    file = tmp_path / "old/config.json"
    fields = json.loads(file.read_text())
    rope = {key: value for key, value in LONGROPE.items() if key in ("rope_type", "short_factor", "long_factor")}
    del fields["rope_parameters"]
    older = {"rope_theta": 1e4, "original_max_position_embeddings": 32, "rope_scaling": rope}
    file.write_text(json.dumps({**fields, **older}))
    other = AutoModelForCausalLM.from_pretrained(tmp_path / "old").eval()
    ours = AutoModelForCausalLM.from_pretrained(convert(tmp_path / "old", tmp_path / "new", family="llama")).eval()
    for length in (20, 60):
        ids = torch.randint(3, 160, (1, length))
        torch.testing.assert_close(ours(ids).logits, other(ids).logits, rtol=1e-5, atol=1e-4)


def test_tokenizer_without_a_config(tmp_path: Path) -> None:
    """Where only `tokenizer.json` is there, the copy says whose class it was: the ids stay the same."""
    other_checkpoint(tmp_path / "old", LlamaConfig(**SIZES))
    save_tokenizer(tmp_path / "old")
    (tmp_path / "old/tokenizer_config.json").unlink()
    text = "The <s> quick brown fox."
    wanted = AutoTokenizer.from_pretrained(tmp_path / "old")(text).input_ids
    folder = convert(tmp_path / "old", tmp_path / "new", family="llama")
    assert AutoTokenizer.from_pretrained(folder)(text).input_ids == wanted


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too little room is seen before anything is written; a disk that fills up meanwhile leaves nothing behind."""
    other_checkpoint(tmp_path / "old", LlamaConfig(**SIZES))
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
        with pytest.raises(OSError, match=r"0\.00 GB free"):
            convert(tmp_path / "old", tmp_path / "new", family="llama")
    assert nothing_but(tmp_path, "old")

    def fails(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", fails)
        save_tokenizer(tmp_path / "old")
        with pytest.raises(OSError, match="No space left"):
            convert(tmp_path / "old", tmp_path / "new", family="llama")
    assert nothing_but(tmp_path, "old")


# The peak of this process's own memory: `ru_maxrss` would begin at that of the process that started it.
MEASURE = """
import re, sys
from pathlib import Path
from arlow.conversion import convert
def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])
before = peak()
convert(sys.argv[1], sys.argv[2], family=sys.argv[3] if len(sys.argv) > 3 else None)
print(before, peak())
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize("family", ["llama", None])
def test_memory(family: str | None, tmp_path: Path) -> None:
    """Of 2 GB in four shards, copied (LLaMA) or with rows reordered (V2), memory holds less than 1.3 times the largest
    shard beside the interpreter."""
    sizes = {
        "vocab_size": 64000, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 8,
        "num_attention_heads": 16, "num_key_value_heads": 4, "max_position_embeddings": 2048,
    }  # fmt: skip
    model = AutoModelForCausalLM.from_config(LlamaConfig(**sizes, dtype="float32"))
    model.save_pretrained(tmp_path / "old", max_shard_size="600MB")
    del model
    if family is None:
        earlier = json.loads((FIXTURES / "v2_text/base/config.json").read_text())
        earlier = {**earlier, **sizes, "layer_types": ["full_attention"] * 8, "head_dim": 128}
        (tmp_path / "old/config.json").write_text(json.dumps(earlier))
    shards = sorted(path.stat().st_size for path in (tmp_path / "old").glob("*.safetensors"))
    assert sum(shards) > 2e9 and len(shards) >= 4
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "old"), str(tmp_path / "new"), *([family] if family else [])],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    before, after = (1024 * int(number) for number in run.stdout.split())
    print(f"{family}: largest shard {shards[-1] / 1e6:.0f} MB, memory {before / 1e6:.0f} -> {after / 1e6:.0f} MB")
    assert before < after < before + 1.3 * shards[-1]
    assert AutoConfig.from_pretrained(tmp_path / "new").hidden_size == 2048


def test_destinations(tmp_path: Path, capsys: Any) -> None:
    """An empty directory will do, one in use and a file will not; the command says what it wrote."""
    other_checkpoint(tmp_path / "old", LlamaConfig(**SIZES))
    (tmp_path / "used").mkdir()
    (tmp_path / "used/file").write_text("precious")
    for name in ("used", "used/file"):
        with pytest.raises(OSError, match="is in use"):
            convert(tmp_path / "old", tmp_path / name, family="llama")
    assert (tmp_path / "used/file").read_text() == "precious"
    (tmp_path / "empty").mkdir()
    assert main(["convert", "--from", "llama", str(tmp_path / "old"), str(tmp_path / "empty")]) == 0
    assert str(tmp_path / "empty") in capsys.readouterr().out
    assert AutoConfig.from_pretrained(tmp_path / "empty").model_type == "arlow_text"
    with pytest.raises(OSError, match="no such directory"):
        convert(tmp_path / "nowhere", tmp_path / "new")
    with pytest.raises(ValueError, match="nothing to convert"):
        convert(tmp_path / "empty", tmp_path / "new")
