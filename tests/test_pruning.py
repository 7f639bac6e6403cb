"""Token pruning: what is left out of an image, and that everything else stays as it is."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny_models import tiny_vlm
from tiny_processing import tiny_processor

from arlow import ArlowForConditionalGeneration, ArlowProcessor
from arlow.patches import kept_count
from arlow.positions import get_rope_index
from arlow.pruning import kept_tokens


def model_and_processor(ratio: float = 0.5):
    processor = tiny_processor()
    processor.image_processor.token_pruning_ratio = ratio
    vision = {"patch_size": 14, "token_pruning_ratio": ratio}
    model = tiny_vlm(text={"vocab_size": len(processor.tokenizer)}, vision=vision, use_gated_cross_attention=True)
    model.generation_config.pad_token_id = 0
    return model, processor


def picture(seed: int, height: int = 140, width: int = 168) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def talk(*parts: object) -> list[dict]:
    content = [
        {"type": "text", "text": part} if isinstance(part, str)
        else {"type": "video", "video": part} if isinstance(part, np.ndarray)
        else {"type": "image", "image": part}
        for part in parts
    ]  # fmt: skip
    return [{"role": "user", "content": content}]


def inputs_of(processor: ArlowProcessor, *talks: list[dict]):
    return processor.apply_chat_template(
        [*talks], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", padding=True
    )


# Which tokens


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 11),
    columns=st.integers(1, 11),
    ratio=st.floats(0, 0.99),
    merge=st.sampled_from([1, 2]),
    seed=st.integers(0, 99),
)
def test_against_loops(rows: int, columns: int, ratio: float, merge: int, seed: int) -> None:
    """The tokens that a plain loop over regions keeps, the highest score first, as many as counted without pixels."""
    pixels = np.random.default_rng(seed).normal(size=(rows, columns, merge * merge, 3, 4))
    wanted = np.zeros((rows, columns), dtype=bool)
    for top in range(0, rows, 4):
        for left in range(0, columns, 4):
            part = pixels[top : top + 4, left : left + 4]
            distance = ((part - part.mean(axis=(0, 1, 2, 4))[:, None]) ** 2).mean(axis=(2, 3, 4))
            count = distance.size - int(distance.size * ratio + 1e-9)
            best = np.argsort(-distance, axis=None, kind="stable")[:count]
            wanted[top : top + 4, left : left + 4].reshape(distance.shape)[np.unravel_index(best, distance.shape)] = 1
    values = torch.from_numpy(pixels.reshape(rows * columns * merge**2, 12))
    found = kept_tokens(values, [(1, rows * merge, columns * merge)], merge=merge, channels=3, ratio=ratio)
    assert np.array_equal(found.view(rows, columns).numpy(), wanted)
    assert found.sum() == kept_count(rows, columns, ratio)


def test_equal_tokens_go_in_order() -> None:
    """On a plain ground nothing tells tokens apart: the first of each region stay."""
    values = torch.full((8 * 4, 12), 0.3)
    kept = kept_tokens(values, [(1, 8, 4)], merge=1, channels=3, ratio=0.75).view(8, 4)
    assert kept[0].all() and kept[4].all() and kept.sum() == 8


def test_background_goes_first() -> None:
    """Of a dark square on a plain ground, every token that shows some of it stays."""
    processor = tiny_processor(size={"shortest_edge": 224 * 224, "longest_edge": 224 * 224})
    pixels = np.full((224, 224, 3), 230, dtype=np.uint8)
    pixels[70:130, 90:150] = 20
    out = processor.image_processor(pixels, return_tensors="pt")
    kept = kept_tokens(out["pixel_values"], out["image_grid_thw"].tolist(), merge=2, channels=3, ratio=0.5)
    assert kept.sum() == 32
    touched = {(y // 28, x // 28) for y in range(70, 130) for x in range(90, 150)}
    assert all(kept.view(8, 8)[place] for place in touched)


@pytest.mark.parametrize("std", [0.5, (0.1, 0.5, 0.9)])
def test_samples_are_judged_as_they_will_be_normalised(std: object) -> None:
    """Rows of uint8 keep the tokens that their normalised values keep."""
    processor = tiny_processor().image_processor
    image = picture(3)
    layout = {"merge": 2, "channels": 3, "ratio": 0.5}
    kept = []
    for dtype in ("float32", "uint8"):
        out = processor(image, return_tensors="pt", image_std=std, output_dtype=dtype)
        kept.append(kept_tokens(out["pixel_values"], out["image_grid_thw"].tolist(), std=std, **layout))
    assert torch.equal(*kept)
    if std != 0.5:  # and the channels' weights matter here
        assert not torch.equal(kept_tokens(out["pixel_values"], out["image_grid_thw"].tolist(), **layout), kept[0])


# Positions and features


@torch.no_grad()
def test_kept_tokens_keep_their_place() -> None:
    """Rows and columns are those of the whole picture, what follows starts where it would have; features and DeepStack
    features are the encoder's for these tokens."""
    model, processor = model_and_processor()
    chat = talk("Compare", picture(0), "with", picture(1, 84, 168), "please")
    inputs, full = inputs_of(processor, chat), inputs_of(tiny_processor(), chat)
    media = inputs["pixel_values"], inputs["image_grid_thw"]
    kept = model.model.image_token_mask(*media)
    positions, _ = model.model.get_rope_index(
        inputs["input_ids"], inputs["mm_token_type_ids"], media[1], pixel_values=media[0]
    )
    wanted, _ = get_rope_index(full["input_ids"], full["mm_token_type_ids"], media[1])
    there = torch.ones(full["input_ids"].shape[1], dtype=torch.bool)
    there[full["mm_token_type_ids"][0] == 1] = kept
    assert there.sum() == inputs["input_ids"].shape[1] < len(there)
    assert torch.equal(positions, wanted[:, :, there])
    found = model.get_image_features(*media)
    model.config.vision_config.token_pruning_ratio = 0.0
    everything = model.get_image_features(*media)
    assert torch.equal(torch.cat(found.pooler_output), torch.cat(everything.pooler_output)[kept])
    for mine, theirs in zip(found.deepstack_features, everything.deepstack_features, strict=True):
        assert torch.equal(torch.cat(mine), torch.cat(theirs)[kept])


@torch.no_grad()
def test_logits_are_those_of_the_tokens_that_are_there() -> None:
    """The decoder given embeddings, positions and DeepStack features by hand gives the same."""
    model, processor = model_and_processor()
    inputs = inputs_of(processor, talk(picture(3), "What is it?"))
    media = inputs["pixel_values"], inputs["image_grid_thw"]
    features = model.get_image_features(*media)
    here = inputs["mm_token_type_ids"] == 1
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    embeds[here] = features.pooler_output[0]
    added = torch.zeros_like(embeds)
    added[here] = features.deepstack_features[0][0] * model.model.language_model.visual_gates[0].sigmoid()
    positions, _ = model.model.get_rope_index(
        inputs["input_ids"], inputs["mm_token_type_ids"], media[1], pixel_values=media[0]
    )
    model.model.language_model.visual_gates = None
    states = model.model.language_model(inputs_embeds=embeds, position_ids=positions, deepstack={0: added})[0]
    logits = model.lm_head(states)
    model.model.language_model.enable_visual_gates()
    model, _ = model_and_processor()
    torch.testing.assert_close(model(**inputs).logits, logits)


# The whole path


def test_batch_is_single() -> None:
    """Answers and logits of a mixed batch are those of each conversation alone; videos are not pruned."""
    model, processor = model_and_processor()
    clip = np.random.default_rng(5).integers(0, 256, (4, 60, 60, 3), dtype=np.uint8)
    talks = [talk("Hello"), talk(picture(0), "What is it?"), talk(picture(1, 60, 200), clip, picture(2), "Compare.")]
    options = {"max_new_tokens": 5, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    together = model.generate(**inputs_of(processor, *talks), **options)
    for row, chat in enumerate(talks):
        alone = model.generate(**inputs_of(processor, chat), **options)
        assert torch.equal(alone.sequences[0, -5:], together.sequences[row, -5:])
        for one, both in zip(alone.logits, together.logits, strict=True):
            torch.testing.assert_close(one[0], both[row], rtol=1e-4, atol=1e-4)


def test_a_chat_goes_on() -> None:
    """A second turn with another picture, on the cache of the first, equals the whole conversation anew."""
    model, processor = model_and_processor()
    options = {"max_new_tokens": 4, "do_sample": False}
    inputs = inputs_of(processor, talk(picture(0), "What is it?"))
    out = model.generate(**inputs, **options, return_dict_in_generate=True)
    more = inputs_of(processor, talk("And", picture(7, 112, 84), "?"))
    ids = torch.cat((out.sequences, more["input_ids"]), dim=1)
    types = torch.zeros_like(ids)
    types[:, : inputs["input_ids"].shape[1]] = inputs["mm_token_type_ids"]
    types[:, out.sequences.shape[1] :] = more["mm_token_type_ids"]
    media = {key: torch.cat((inputs[key], more[key])) for key in ("pixel_values", "image_grid_thw")}
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": types, **media}
    anew = model.generate(**given, **options)
    assert torch.equal(model.generate(**given, **options, past_key_values=out.past_key_values), anew)


def test_saved_together(tmp_path) -> None:
    """The processor takes the ratio of the config beside it; both count alike."""
    model, processor = model_and_processor(0.25)
    model.save_pretrained(tmp_path)
    processor.image_processor.token_pruning_ratio = 0.0
    processor.save_pretrained(tmp_path)
    loaded = ArlowProcessor.from_pretrained(tmp_path)
    assert loaded.image_processor.token_pruning_ratio == 0.25
    inputs = inputs_of(loaded, talk(picture(0), "What is it?"))
    (tokens,) = loaded._get_num_multimodal_tokens(image_sizes=[(140, 168)])["num_image_tokens"]
    assert tokens == int((inputs["mm_token_type_ids"] == 1).sum()) < 30
    ArlowForConditionalGeneration.from_pretrained(tmp_path).generate(**inputs, max_new_tokens=2)
    fields = json.loads((tmp_path / "config.json").read_text())
    assert fields["vision_config"]["token_pruning_ratio"] == 0.25


def test_samples_of_another_normalisation(tmp_path) -> None:
    """A call that leaves normalising to the encoder, whose config has other numbers, is refused."""
    model, processor = model_and_processor(0.0)
    model.config.vision_config.image_mean = [0.48, 0.45, 0.4]
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = ArlowProcessor.from_pretrained(tmp_path)
    clip = {"video_metadata": {"fps": 1}}
    for part, medium, more in (
        (loaded.image_processor, picture(0), {}),
        (loaded.video_processor, np.zeros((2, 56, 56, 3), np.uint8), clip),
    ):
        part(medium, **more)
        with pytest.raises(ValueError, match=r"image_mean=.*0\.5.*normalises by \[0\.48, 0\.45, 0\.4\]"):
            part(medium, **more, output_dtype="uint8")
    loaded.image_processor(picture(0), output_dtype="uint8", image_mean=[0.48, 0.45, 0.4])
    loaded.save_pretrained(tmp_path / "again")
    assert "encoder" not in (tmp_path / "again" / "processor_config.json").read_text()


def test_explain_shows_what_is_left_out(tmp_path) -> None:
    """Counts, positions and the sheet are those of the pruned picture."""
    _, processor = model_and_processor()
    report = processor.explain(talk(picture(0), "What is it?"))
    (view,), (row,) = report.images[0].views, report.rows
    assert view.kept.shape == view.merged_grid and view.tokens == view.kept.sum() == report.images[0].tokens
    here = row.positions[:, row.mm_token_type_ids == 1]
    assert here.shape[1] == view.tokens
    rows, columns = np.nonzero(view.kept)
    assert np.array_equal(here[1] - here[0], rows) and np.array_equal(here[2] - here[0], columns)
    report.save(tmp_path / "sheet.png")


# What is refused


def test_a_processor_of_another_ratio() -> None:
    """Other counts than the model's are an error that names the row and both numbers."""
    model, _ = model_and_processor()
    inputs = inputs_of(tiny_processor(), talk(picture(0), "What is it?"))
    with pytest.raises(ValueError, match="row 0 has 30 image placeholder tokens"):
        model(**inputs)


def test_features_without_pixels() -> None:
    """Positions of pruned tokens cannot be told from grids alone."""
    model, processor = model_and_processor()
    inputs = inputs_of(processor, talk(picture(0), "What is it?"))
    features = {"image": model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"])}
    rest = {key: value for key, value in inputs.items() if key != "pixel_values"}
    with pytest.raises(ValueError, match=r"token_pruning_ratio=0\.5 needs the pixels"):
        model(**rest, mm_encoder_outputs=features)


@pytest.mark.parametrize("ratio", [-0.1, 1.0, float("nan"), "half"])
def test_impossible_ratios(ratio: object) -> None:
    """A share that is none is named."""
    with pytest.raises(ValueError, match="token_pruning_ratio"):
        tiny_processor().image_processor([picture(0)], token_pruning_ratio=ratio)
