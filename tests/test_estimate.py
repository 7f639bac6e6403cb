"""`arlow estimate`: the formulas against real models, counted FLOPs and the tensors autograd really keeps."""

from __future__ import annotations

import json
import math
import re
import shlex
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import (
    batch,
    image,
    prompt,
    shaken,
    tiny_causal_lm,
    tiny_text_config,
    tiny_vision_config,
    tiny_vlm,
    video,
)
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

import arlow
from arlow import cli
from arlow.estimate import (
    GIB,
    PRESETS,
    Medium,
    Widths,
    activation_bytes,
    cache_bytes,
    count_parameters,
    estimate,
    forward_flops,
    logit_bytes,
    medium_from,
    read_config,
    state_bytes,
    training_flops,
)


MODELS = {"text": "ArlowForCausalLM", "vision": "ArlowVLVisionModel", "arlow": "ArlowForConditionalGeneration"}
VARIANTS = {
    "plain": {},
    "everything": {
        "vision": {"use_progressive_patches": True, "use_deformable_attention": True},
        "use_gated_cross_attention": True,
    },
    "qk_norm": {"text": {"qk_norm": True}},
    "bias_and_tied": {"text": {"attention_bias": True, "head_dim": 24, "tie_word_embeddings": True}},
    "windows": {"vision": {"temporal_window_size": 2, "deepstack_visual_indexes": []}},
}
MEDIA = (Medium(1, 96), Medium(3, 32, still=False))


def real_count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def step_inputs() -> dict[str, torch.Tensor]:
    """Two rows with an image of 8 x 12 and a clip of 3 x 4 x 8 patches each."""
    row = prompt(6, image(8, 12), video(3, 4, 8), 5)
    return batch(row, row)


def kept_by_autograd(model: torch.nn.Module, run) -> int:
    """Bytes of distinct storages saved for the backward pass, weights and constants left out."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    seen: dict[int, object] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage  # held, so that no address is used twice
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    return sum(storage.nbytes() for storage in seen.values())


# Parameters


@pytest.mark.parametrize("preset", PRESETS)
def test_parameters_of_the_published_sizes(preset):
    """The formula gives exactly the number of parameters of the real model, made on the meta device."""
    config = read_config(preset)
    with torch.device("meta"):
        model = getattr(arlow, MODELS[preset])(config)
    assert sum(count_parameters(config).values()) == real_count(model)


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters_of_small_models(variant):
    """The same with every option that adds or removes weights."""
    model = tiny_vlm(**VARIANTS[variant])
    assert sum(count_parameters(model.config).values()) == real_count(model)


def test_parameters_with_cross_attention():
    """Cross-attention on some layers, with a width of its own."""
    fields = {"use_cross_attention": True, "cross_attention_layers": [0, 2], "encoder_hidden_size": 40}
    for bias in (False, True):
        model = tiny_causal_lm(**fields, attention_bias=bias)
        counts = count_parameters(model.config)
        assert sum(counts.values()) == real_count(model)
        cross = [p.numel() for name, p in model.named_parameters() if "cross" in name]
        assert counts["cross-attention"] == sum(cross)


@settings(max_examples=25, deadline=None)
@given(
    heads=st.sampled_from([1, 2, 3, 6]),
    group=st.sampled_from([1, 2, 3]),
    dim=st.sampled_from([2, 4, 10]),
    layers=st.integers(1, 4),
    width=st.integers(1, 70),
    vocabulary=st.integers(2, 99),
    flags=st.tuples(st.booleans(), st.booleans()),
)
def test_parameters_of_any_decoder(heads, group, dim, layers, width, vocabulary, flags):
    """Whatever the sizes, the decoder's count is exact."""
    config = arlow.ArlowTextConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
        num_attention_heads=heads * group, num_key_value_heads=heads, head_dim=dim, attention_bias=flags[0],
        tie_word_embeddings=flags[1],
    )  # fmt: skip
    with torch.device("meta"):
        model = arlow.ArlowForCausalLM(config)
    assert sum(count_parameters(config).values()) == real_count(model)


# FLOPs


@pytest.mark.parametrize("variant", VARIANTS)
def test_flops_of_a_step(variant):
    """Forward and backward FLOPs are exactly those that PyTorch counts on a real step."""
    model = tiny_vlm(attn="eager", **VARIANTS[variant]).train()
    inputs = step_inputs()
    with FlopCounterMode(display=False) as counter:
        logits = model(**inputs, use_cache=False).logits
    forward = forward_flops(model.config, rows=2, tokens=inputs["input_ids"].shape[1], media=MEDIA)
    assert sum(forward.values()) == counter.get_total_flops()
    with FlopCounterMode(display=False) as backward:
        logits.sum().backward()
    assert training_flops(forward) == counter.get_total_flops() + backward.get_total_flops()


def test_flops_with_checkpointing():
    """With checkpointing, layers and blocks run forward once more, and nothing else does."""
    model = tiny_vlm(attn="eager").train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    inputs = step_inputs()
    with FlopCounterMode(display=False) as counter:
        model(**inputs, use_cache=False).logits.sum().backward()
    forward = forward_flops(model.config, rows=2, tokens=inputs["input_ids"].shape[1], media=MEDIA)
    # Recomputing stops at the last tensor that is needed: the closing product of a layer is left out.
    assert counter.get_total_flops() <= training_flops(forward, checkpointing=True)
    assert counter.get_total_flops() == pytest.approx(training_flops(forward, checkpointing=True), rel=0.1)
    assert counter.get_total_flops() > 1.1 * training_flops(forward)


def test_flops_of_inference():
    """Reading a prompt and writing one more token cost what PyTorch counts, the prompt's logits only for its end."""
    model = tiny_causal_lm(attn_implementation="eager")
    ids = torch.randint(16, 160, (2, 24))
    result = estimate(model.config, batch_size=2, sequence_length=24, precision="fp32")["inference"]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        cache = model(input_ids=ids[:, :23], use_cache=True).past_key_values
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(input_ids=ids[:, 23:], past_key_values=cache)
    assert result["FLOPs per new token"] == counter.get_total_flops()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(input_ids=ids, logits_to_keep=1, use_cache=False)
    assert result["prompt FLOPs"] == counter.get_total_flops()
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert result["key-value cache"] == held


def test_flops_are_about_six_per_parameter_and_token():
    """For the published decoder the step is close to the rule 6 N per token plus attention (PaLM, appendix B)."""
    config = read_config("text")
    per_token = estimate(config, sequence_length=2048)["training compute"]["per token"]
    weights = sum(count_parameters(config).values()) - config.vocab_size * config.hidden_size  # no lookup
    attention = 12 * config.num_hidden_layers * config.hidden_size * 2048
    assert per_token == pytest.approx(6 * weights + attention, rel=1e-3)


# Activations


@pytest.mark.parametrize("checkpointing", [False, True], ids=["all", "checkpointing"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_activations_of_a_step(variant, dtype, checkpointing):
    """The bytes that autograd keeps in a real forward pass, within 3 %."""
    model = tiny_vlm(**VARIANTS[variant]).to(dtype).train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    inputs = {key: value.to(dtype) if value.is_floating_point() else value for key, value in step_inputs().items()}
    widths = Widths.of("fp32" if dtype == torch.float32 else "bf16", "fsdp")
    size = {"rows": 2, "tokens": inputs["input_ids"].shape[1], "media": MEDIA}
    found = activation_bytes(model.config, widths, **size, checkpointing=checkpointing)
    if checkpointing:
        found.pop("layer computed again")  # there in the backward pass only
        found.pop("deformable bias")  # an argument of the blocks, which autograd does not see
    assert sum(found.values()) == pytest.approx(kept_by_autograd(model, lambda: model(**inputs)), rel=0.03)


def test_activations_under_autocast():
    """Under autocast the float32 residual stream stays, and every product keeps a 16-bit copy of its input and of its
    weight; within 3 %."""
    model = tiny_causal_lm(vocab_size=4096).train()
    ids = torch.randint(16, 160, (4, 256))

    def run():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return model(input_ids=ids, use_cache=False).logits

    found = sum(activation_bytes(model.config, Widths.of("bf16", "ddp"), rows=4, tokens=256).values())
    products = [module.weight.numel() for module in model.modules() if isinstance(module, torch.nn.Linear)]
    assert found + 2 * sum(products) == pytest.approx(kept_by_autograd(model, run), rel=0.03)


def test_activations_grow_with_the_row_but_not_with_checkpointing():
    """Activations are linear in rows; checkpointing leaves less than a fifth of them at the published size."""
    config, widths = read_config("text"), Widths.of("bf16", "fsdp")
    one = sum(activation_bytes(config, widths, rows=1, tokens=2048).values())
    assert sum(activation_bytes(config, widths, rows=3, tokens=2048).values()) == 3 * one
    assert sum(activation_bytes(config, widths, rows=1, tokens=2048, checkpointing=True).values()) < one / 5


def test_logits_of_the_loss():
    """The chunked loss holds one chunk however long the row; full logits grow with it."""
    widths = Widths.of("bf16", "fsdp")
    assert logit_bytes(131072, 2048, widths, loss="full") == 2048 * 131072 * 10
    assert logit_bytes(131072, 2048, widths, loss="chunked") == logit_bytes(131072, 9999, widths, loss="chunked")
    assert logit_bytes(512, 8, widths, loss="chunked") == 512 * 8 * 10


def test_a_chunk_is_as_large_as_the_loss_makes_it():
    """The size of a chunk is that of the loss the stages use."""
    from arlow.estimate import CHUNK_LOGITS

    assert pytest.importorskip("arlow.linear_loss").CHUNK_LOGITS == CHUNK_LOGITS


# Model states


@pytest.mark.parametrize(
    ("strategy", "precision", "bytes_per_parameter"),
    [
        ("ddp", "fp32", 16), ("ddp", "bf16", 18), ("fsdp", "bf16", 16 / 8), ("zero2", "fp16", 2 + 14 / 8),
        ("zero3", "bf16", 16 / 8), ("zero3", "fp32", 20 / 8),
    ],
)  # fmt: skip
def test_states_per_parameter(strategy, precision, bytes_per_parameter):
    """Weights, gradients and Adam's states per parameter on 8 GPUs, as the ZeRO paper's table 1 has them."""
    states = state_bytes(8000, precision=precision, strategy=strategy, gpus=8, optimizer="adamw")
    assert sum(states.values()) == 8000 * bytes_per_parameter


def test_states_are_those_of_a_real_optimiser():
    """On one device with float32: exactly the bytes of weights, gradients and AdamW's moments after a step."""
    model = shaken(arlow.ArlowForCausalLM(tiny_text_config())).train()
    optimizer = torch.optim.AdamW(model.parameters())
    model(input_ids=torch.arange(16, 32)[None]).logits.sum().backward()
    optimizer.step()
    states = state_bytes(real_count(model), precision="fp32", strategy="ddp", gpus=1, optimizer="adamw")
    assert states["weights"] == sum(p.nbytes for p in model.parameters())
    assert states["gradients"] == sum(p.grad.nbytes for p in model.parameters())
    moments = [s[key].nbytes for s in optimizer.state.values() for key in ("exp_avg", "exp_avg_sq")]
    assert states["optimizer"] == sum(moments)


def test_cache_of_sliding_layers():
    """Sliding layers keep their window, full layers everything."""
    config = tiny_text_config(layer_types=["full_attention", "sliding_attention", "full_attention"], sliding_window=8)
    heads = config.num_key_value_heads * config.head_dim
    assert cache_bytes(config, rows=2, tokens=100, width=2) == 2 * 2 * (100 + 8 + 100) * heads * 2


# Media


@pytest.mark.parametrize("size", ["448x336", "30x900"])
def test_images_are_as_large_as_the_processor_makes_them(size):
    """Patches of a picture are those of the real image processor."""
    import numpy as np

    height, width = map(int, size.split("x"))
    config = tiny_vision_config(patch_size=14)
    grid = arlow.ArlowImageProcessor()(np.zeros((height, width, 3), np.uint8))["image_grid_thw"][0].tolist()
    assert medium_from(size, config).patches == math.prod(grid)


def test_videos_are_as_large_as_the_processor_makes_them():
    """Groups and patches of a clip are those of the real video processor."""
    import numpy as np

    frames = np.zeros((5, 120, 160, 3), np.uint8)
    found = arlow.ArlowVideoProcessor()(frames, do_sample_frames=False)["video_grid_thw"][0].tolist()
    medium = medium_from("5x120x160", tiny_vision_config(patch_size=14))
    assert [medium.groups, medium.frame] == [found[0], found[1] * found[2]]


# The verb


def test_the_command_prints_what_the_function_gives(capsys):
    """`arlow estimate` prints the numbers of `estimate`, as a table or as JSON."""
    words = ["estimate", "text", "--batch-size", "2", "--gpus", "8", "--strategy", "fsdp", "--checkpointing"]
    result = estimate(read_config("text"), batch_size=2, gpus=8, strategy="fsdp", checkpointing=True)
    assert cli.main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == result
    assert cli.main(words) == 0
    shown = capsys.readouterr().out
    assert f"{result['parameters']['total']:,}" in shown
    assert f"{result['training memory']['total'] / GIB:,.2f}" in shown


def test_the_page_shows_what_the_command_prints(capsys):
    """Every line of the table of docs/scale.md is what its command gives."""
    page = (Path(__file__).parents[1] / "docs" / "scale.md").read_text(encoding="utf-8")
    lines = re.findall(r"^\| `arlow (estimate .+?)` \| (.+) \|$", page, re.MULTILINE)
    assert len(lines) == 10
    for words, cells in lines:
        assert cli.main([*shlex.split(words), "--json"]) == 0
        result = json.loads(capsys.readouterr().out)
        memory, step = result["training memory"], result["training compute"]["step"]
        states = memory["weights"] + memory["gradients"] + memory["optimizer"]
        wanted = [f"{size / GIB:.1f}" for size in (states, memory["total"] - states, memory["total"])]
        assert cells.split(" | ") == [*wanted, f"{step / 1e12:,.0f}"], words


def test_the_page_divides_rightly(capsys):
    """FLOPs per token, tokens per second and days that docs/scale.md names follow from the estimate."""
    page = (Path(__file__).parents[1] / "docs" / "scale.md").read_text(encoding="utf-8")
    per_token = estimate(read_config("text"), sequence_length=4096)["training compute"]["per token"]
    assert f"needs {per_token:.2e} FLOPs".replace("e+", "e") in page
    rate = 1e15 * 0.4 / per_token
    assert f"that is {round(rate, -2):,.0f} tokens a second" in page
    assert round(1e12 / rate / 256 / 86400, 1) == 2.0


def test_configs_from_files(tmp_path, capsys):
    """A saved model's directory and its config.json give the same as the config itself."""
    model = tiny_vlm()
    model.config.save_pretrained(tmp_path)
    for path in (tmp_path, tmp_path / "config.json"):
        assert cli.main(["estimate", str(path), "--images", "56x56", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["parameters"]["total"] == real_count(model)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["nowhere"], "nowhere"),
        (["bad.json"], "bad.json"),
        (["list.json"], "list.json"),
        (["other.json"], "llama"),
        (["broken.json"], "hidden_size"),
        (["text", "--images", "28x28"], "no vision encoder"),
        (["vision"], "--images"),
        (["vision", "--images", "28"], "HxW"),
        (["vision", "--images", "0x28"], "0x28"),
        (["vision", "--videos", "28x28"], "TxHxW"),
        (["vision", "--images", "28x9000"], "aspect"),
        (["text", "--gpus", "0"], "gpus=0"),
        (["arlow", "--images", "448x448", "--sequence-length", "64"], "sequence_length=64"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys, words, reason):
    """What cannot be estimated is named in one line."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "other.json").write_text('{"model_type": "llama"}')
    broken = {"model_type": "arlow_text", "hidden_size": 10, "num_attention_heads": 3, "num_key_value_heads": 3}
    (tmp_path / "broken.json").write_text(json.dumps(broken))
    assert cli.main(["estimate", *words]) == 2
    error = capsys.readouterr().err
    assert reason in error and len(error.splitlines()) == 1 and len(error) < 320
