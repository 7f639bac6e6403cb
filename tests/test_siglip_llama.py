"""The whole path from a SigLIP and a LLaMA of the hub to a trained vision-language model, on tiny random ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from chat_samples import assistant, conversations, image_file, quiet, user, write_rows
from safetensors.torch import load_file
from tiny_processing import CORPUS
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from arlow.conversion import convert
from arlow.data.conversations import Collator, Conversations, JsonLines
from arlow.training import train


RECIPES = Path(__file__).parents[1] / "recipes" / "siglip-llama"


def recipe(name: str, **fields: Any) -> dict[str, Any]:
    """A shipped recipe with what a run of seconds needs over it."""
    given = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
    return quiet(**{**given, "batch_size": 4, "precision": "fp32", "learning_rate": 5e-3, **fields})


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`siglip/` and `llama/` as the hub has them, `data/rows.jsonl`, and the joined and aligned model in `align/`."""
    home = tmp_path_factory.mktemp("home")
    torch.manual_seed(0)
    vision = SiglipVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, patch_size=8, image_size=32
    )
    SiglipVisionModel(vision).save_pretrained(home / "siglip")
    SiglipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(home / "siglip")
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<|begin_of_text|>", "<|end_of_text|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=special[0], eos_token=special[1])
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    tokenizer.save_pretrained(home / "llama")
    text = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, bos_token_id=0, eos_token_id=1, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(text).save_pretrained(home / "llama")
    write_rows(home / "data" / "rows.jsonl", conversations(home / "data"))
    convert(home / "llama", home / "text", family="llama")
    fields = {"vision": home / "siglip", "text": home / "text", "data": str(home / "data" / "rows.jsonl")}
    train("align", **recipe("align", **fields, output_dir=home / "align", max_steps=4))
    return home


def prompt(home: Path) -> list[dict[str, Any]]:
    """Two images at different places of a turn."""
    red, blue = (image_file(home / "data", name) for name in ("red", "blue"))
    for part in (red, blue):
        part["path"] = str(home / "data" / part["path"])
    return [user("compare", red, "and", blue)]


def inputs_of(processor: Any, conversation: list[dict[str, Any]]) -> Any:
    return processor.apply_chat_template(
        conversation, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )


def test_the_projector_alone_learns(home: Path) -> None:
    """Both towers keep their weights bit for bit, but for embeddings of tokens the text model did not have."""
    aligned = load_file(home / "align" / "model.safetensors")
    text = load_file(home / "text" / "model.safetensors")
    tower = SiglipVisionModel.from_pretrained(home / "siglip").state_dict()
    for name, value in tower.items():
        if name.startswith("head."):  # pools a picture into one feature, which nothing here reads
            continue
        assert torch.equal(aligned[f"model.visual.tower.{name}"], value), name
    for name, value in text.items():
        other = aligned[name.replace("model.", "model.language_model.", 1)]
        assert torch.equal(other[: len(value)], value), name
        assert (len(other) > len(value)) == ("embed_tokens" in name)
    assert any("visual.merger" in name for name in aligned)


def test_placeholders_and_generation(home: Path) -> None:
    """Two images at any positions, 2 x 2 patches a token; greedy answers with a KV cache equal those without."""
    model = AutoModelForImageTextToText.from_pretrained(home / "align").eval()
    processor = AutoProcessor.from_pretrained(home / "align")
    inputs = inputs_of(processor, prompt(home))
    assert inputs["image_grid_thw"].tolist() == [[1, 4, 4], [1, 4, 4]]
    assert (inputs["mm_token_type_ids"] == 1).sum() == 2 * 4
    options = {"max_new_tokens": 6, "do_sample": False}
    assert torch.equal(model.generate(**inputs, **options), model.generate(**inputs, **options, use_cache=False))
    swapped = inputs["pixel_values"].roll(16, 0)
    with torch.no_grad():
        assert not torch.allclose(model(**inputs).logits, model(**{**inputs, "pixel_values": swapped}).logits)


@torch.no_grad()
def test_loss_by_mask_and_by_turn(home: Path, tmp_path: Path) -> None:
    """The loss of a conversation is that of its assistant's turns, and the same as with labels masked by hand."""
    model = AutoModelForImageTextToText.from_pretrained(home / "align").eval()
    processor = AutoProcessor.from_pretrained(home / "align")
    red = image_file(tmp_path, "red")
    row = [user(red, "Describe this image."), assistant("fox"), user("one word"), assistant("lazy dog")]
    file = write_rows(tmp_path / "row.jsonl", [row])
    rows = Conversations(processor, [(JsonLines(file, field="data"), 1.0)])
    batch = Collator(processor, packing=False)([rows.load(0)])
    labels = batch["labels"][0]
    end = processor.tokenizer.im_end_token
    assert processor.tokenizer.decode(labels[labels != -100]) == f"fox{end}lazy dog{end}"
    by_turn = model(**batch).loss
    logits = model(**{key: value for key, value in batch.items() if key != "labels"}).logits[0, :-1].double()
    by_hand = torch.nn.functional.cross_entropy(logits, labels[1:], ignore_index=-100)
    torch.testing.assert_close(by_turn.double(), by_hand, rtol=1e-4, atol=1e-5)


def test_lora_and_merging(home: Path, tmp_path: Path) -> None:
    """Adapters alone are saved; merged, they give a plain safetensors model, whose text half loads by itself."""
    pytest.importorskip("peft")
    from arlow.training.adapters import merge_adapter

    data = str(home / "data" / "rows.jsonl")
    fields = {"model": home / "align", "data": data, "epochs": 2, "lora": {"r": 2, "vision": True}}
    out = train("finetune", **recipe("finetune-lora", **fields, output_dir=tmp_path / "lora"))
    assert (out / "adapter_model.safetensors").is_file() and not (out / "model.safetensors").exists()
    adapted = load_file(out / "adapter_model.safetensors")
    for part in ("language_model", "visual.tower"):
        assert any(part in name and value.abs().sum() > 0 for name, value in adapted.items()), part
    assert not any("merger" in name for name in adapted)
    merged = merge_adapter(out, tmp_path / "merged")
    config = json.loads((merged / "config.json").read_text())
    assert config["vision_config"]["model_type"] == "arlow_tower"
    model = AutoModelForImageTextToText.from_pretrained(merged).eval()
    before = AutoModelForImageTextToText.from_pretrained(home / "align").eval()
    inputs = inputs_of(AutoProcessor.from_pretrained(merged), prompt(home))
    with torch.no_grad():
        assert not torch.allclose(model(**inputs).logits, before(**inputs).logits)
    text = AutoModelForCausalLM.from_pretrained(merged)
    ids = torch.arange(5, 15)[None]
    with torch.no_grad():
        torch.testing.assert_close(text(ids).logits, model(ids).logits)
