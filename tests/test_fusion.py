"""The bridge: features at their placeholders, DeepStack at its layers, any form of positions, wrong counts refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import CLIP, IMAGE, VIDEO, batch, image, prompt, tiny_vlm, video

from arlow.fusion import ArlowModel
from arlow.vision import ArlowVisionOutput


MIXED = (
    prompt(5, seed=1),
    prompt(3, image(4, 6), 4, seed=2),
    prompt(2, image(4, 4, seed=5), 1, image(6, 4, seed=6), 3, seed=3),
    prompt(2, image(4, 4, seed=7), 2, video(2, 4, 4, seed=8), 3, seed=4),
)
TWO_TAPS = {"depth": 3, "deepstack_visual_indexes": [0, 1]}


@pytest.fixture(scope="module")
def model():
    return tiny_vlm(vision=TWO_TAPS, use_gated_cross_attention=True)


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-5)


def real_logits(model, inputs: dict) -> list[torch.Tensor]:
    """Logits of each row's real tokens."""
    logits = model(**inputs).logits
    return [row[mask.bool()] for row, mask in zip(logits, inputs["attention_mask"], strict=True)]


# What the decoder is handed


def handed(model: ArlowModel, **inputs) -> dict:
    """The arguments with which the bridge calls the decoder."""
    seen = {}
    hook = model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True
    )
    model(**inputs)
    hook.remove()
    return seen


@torch.no_grad()
def test_features_land_at_their_placeholders(model) -> None:
    """Row by row, item by item: placeholders get the features of their own item, all other tokens their embedding."""
    inputs = batch(*MIXED)
    embeds = handed(model.model, **inputs)["inputs_embeds"]
    images = iter(model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"]).pooler_output)
    videos = iter(model.get_video_features(inputs["pixel_values_videos"], inputs["video_grid_thw"]).pooler_output)
    words = model.get_input_embeddings()(inputs["input_ids"])
    for i, row in enumerate(MIXED):
        wanted = words[i].clone()
        for kind, token, features in ((1, IMAGE, images), (2, VIDEO, videos)):
            items = [next(features) for item in row.media if item.kind == kind]
            if items:
                wanted[inputs["input_ids"][i] == token] = torch.cat(items)
        close(embeds[i], wanted)


@pytest.mark.parametrize("layers", [None, [2, 0]])
@pytest.mark.parametrize("gated", [False, True])
@torch.no_grad()
def test_deepstack_is_added_after_its_layers(layers: list[int] | None, gated: bool) -> None:
    """Tap i is added to the output of its decoder layer at the visual positions, scaled by that layer's gate; the next
    layer reads the sum, the other layers and positions read what the layer before gave."""
    model = tiny_vlm(vision=TWO_TAPS, deepstack_decoder_layers=layers, use_gated_cross_attention=gated)
    decoder, inputs = model.model.language_model, batch(*MIXED)
    given, gave = {}, {}

    def note(i):
        def hook(layer, args, output):
            given[i], gave[i] = args[0], output

        return hook

    for i, layer in enumerate([*decoder.layers, decoder.norm]):
        layer.register_forward_hook(note(i))
    model(**inputs)
    images = model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"]).deepstack_features
    videos = model.get_video_features(inputs["pixel_values_videos"], inputs["video_grid_thw"]).deepstack_features
    for i in range(len(decoder.layers)):
        added = torch.zeros_like(gave[i])
        tap = (layers or [0, 1]).index(i) if i in (layers or [0, 1]) else None
        if tap is not None:
            added[inputs["input_ids"] == IMAGE] = torch.cat(images[tap])
            added[inputs["input_ids"] == VIDEO] = torch.cat(videos[tap])
        if gated:
            added = added * torch.sigmoid(decoder.visual_gates[i])
        close(given[i + 1] - gave[i], added)


def test_gates_start_half_open() -> None:
    """A fresh gate is sigmoid(0); without the option there is none."""
    from arlow import ArlowConfig, ArlowModel

    gated = ArlowModel(ArlowConfig.tiny(use_gated_cross_attention=True))
    assert gated.language_model.visual_gates.sigmoid().tolist() == [0.5, 0.5]
    assert "language_model.visual_gates" in dict(gated.named_parameters())
    assert ArlowModel(ArlowConfig.tiny()).language_model.visual_gates is None


# Features by themselves


@torch.no_grad()
def test_image_and_video_features(model) -> None:
    """One 2-D tensor per item; DeepStack features the same per tap; nothing for an encoder without taps."""
    inputs = batch(*MIXED)
    for features, grid in (
        (model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"]), inputs["image_grid_thw"]),
        (model.get_video_features(inputs["pixel_values_videos"], inputs["video_grid_thw"]), inputs["video_grid_thw"]),
    ):
        sizes = [(int(rows), 64) for rows in grid.prod(-1) // 4]
        assert [tuple(item.shape) for item in features.pooler_output] == sizes
        assert [[tuple(item.shape) for item in tap] for tap in features.deepstack_features] == [sizes, sizes]
        assert features.last_hidden_state.shape == (int(grid.prod(-1).sum()), 32)
    plain = tiny_vlm(vision={"deepstack_visual_indexes": []})
    assert plain.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"]).deepstack_features is None


@torch.no_grad()
def test_features_as_a_tuple(model) -> None:
    """`return_dict=False` gives (last_hidden_state, pooler_output, deepstack_features)."""
    inputs = batch(MIXED[2])
    arguments = inputs["pixel_values"], inputs["image_grid_thw"]
    wanted = model.get_image_features(*arguments)
    for target in (model, model.model):
        listed = target.get_image_features(*arguments, return_dict=False)
        assert isinstance(listed, tuple)
        assert len(listed) == 3
        assert all(torch.equal(a, b) for a, b in zip(listed[1], wanted.pooler_output, strict=True))


@torch.no_grad()
def test_recorded_vision_states(model) -> None:
    """`output_hidden_states` reaches the encoder through `get_image_features`."""
    inputs = batch(MIXED[1])
    output = model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"], output_hidden_states=True)
    assert len(output.hidden_states) == TWO_TAPS["depth"] + 1


@torch.no_grad()
def test_images_and_videos_go_through_the_encoder_once(model) -> None:
    """A batch with both calls the encoder once; a batch with one kind, too."""
    calls = []
    hook = model.model.visual.register_forward_hook(lambda *args: calls.append(1))
    for rows in (MIXED, MIXED[:3], (prompt(2, video(2, 4, 4), 1),), MIXED[:1]):
        calls.clear()
        model(**batch(*rows))
        assert len(calls) == (1 if any(row.media for row in rows) else 0)
    hook.remove()


# Equal ways to say the same


@torch.no_grad()
def test_precomputed_features_equal_pixels(model) -> None:
    """`mm_encoder_outputs` in place of pixels gives the same logits."""
    inputs = batch(*MIXED)
    wanted = model(**inputs).logits
    features = {
        "image": model.get_image_features(inputs.pop("pixel_values"), inputs["image_grid_thw"]),
        "video": model.get_video_features(inputs.pop("pixel_values_videos"), inputs["video_grid_thw"]),
    }
    close(model(**inputs, mm_encoder_outputs=features).logits, wanted)


@torch.no_grad()
def test_token_types_are_optional(model) -> None:
    """Without `mm_token_type_ids` the placeholders say what is where."""
    inputs = batch(*MIXED)
    wanted = model(**inputs).logits
    del inputs["mm_token_type_ids"]
    assert torch.equal(model(**inputs).logits, wanted)


@torch.no_grad()
def test_positions_in_every_shape(model) -> None:
    """The computed positions may be given as three axes or with the text row before them; (B, S) is all axes alike."""
    inputs = batch(*MIXED)
    names = ("input_ids", "mm_token_type_ids", "image_grid_thw", "video_grid_thw", "attention_mask")
    axes, _ = model.model.get_rope_index(**{name: inputs[name] for name in names})
    text = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    wanted = real_logits(model, inputs)
    for positions in (axes, torch.cat((text[None], axes))):
        for a, b in zip(real_logits(model, {**inputs, "position_ids": positions}), wanted, strict=True):
            close(a, b)
    flat = real_logits(model, {**inputs, "position_ids": text})
    for a, b in zip(real_logits(model, {**inputs, "position_ids": text.expand(3, -1, -1)}), flat, strict=True):
        close(a, b)
    close(flat[0], wanted[0])  # text: the axes are alike anyway
    assert (flat[1] - wanted[1]).abs().max() > 1e-3


@torch.no_grad()
def test_embeddings_instead_of_ids(model) -> None:
    """`inputs_embeds` with pixels equals ids, with token types or without; placeholders are known by embedding."""
    inputs = batch(*MIXED)
    wanted = real_logits(model, inputs)
    embedded = {**inputs, "inputs_embeds": model.get_input_embeddings()(inputs["input_ids"])}
    del embedded["input_ids"]
    for a, b in zip(real_logits(model, embedded), wanted, strict=True):
        close(a, b)
    del embedded["mm_token_type_ids"]
    for a, b in zip(real_logits(model, embedded), wanted, strict=True):
        close(a, b)


@torch.no_grad()
def test_embeddings_with_features_in_place() -> None:
    """Embeddings that hold their features already need no pixels; the grids still give the positions."""
    model = tiny_vlm(vision={"deepstack_visual_indexes": []})
    inputs = batch(*MIXED)
    wanted = real_logits(model, inputs)
    merged = handed(model.model, **inputs)["inputs_embeds"]
    for name in ("input_ids", "pixel_values", "pixel_values_videos"):
        del inputs[name]
    for a, b in zip(real_logits(model, {**inputs, "inputs_embeds": merged}), wanted, strict=True):
        close(a, b)


@torch.no_grad()
def test_rows_of_two_equal_frames(model) -> None:
    """Image rows of C*T*P*P, the frame twice, give the logits of still rows."""
    inputs = batch(*MIXED)
    wanted = model(**inputs).logits
    rows = inputs["pixel_values"]
    inputs["pixel_values"] = rows.view(len(rows), 3, 1, -1).expand(-1, -1, 2, -1).reshape(-1, CLIP)
    close(model(**inputs).logits, wanted)


# A batch gives each row what it gets alone


parts = st.one_of(
    st.integers(1, 4),
    st.builds(image, st.sampled_from([2, 4, 6]), st.sampled_from([2, 4]), seed=st.integers(0, 99)),
    st.builds(video, st.integers(1, 3), st.sampled_from([2, 4]), st.sampled_from([2, 4]), seed=st.integers(0, 99)),
)
rows = st.builds(lambda items, seed: prompt(1, *items, seed=seed), st.lists(parts, max_size=4), st.integers(0, 99))


@settings(max_examples=15, deadline=None)
@given(rows=st.lists(rows, min_size=1, max_size=4), side=st.sampled_from(["left", "right"]))
@torch.no_grad()
def test_batch_equals_alone(model, rows: list, side: str) -> None:
    """Any rows of text, images and videos, padded on either side: each gets the logits it gets alone."""
    together = real_logits(model, batch(*rows, side=side))
    for row, logits in zip(rows, together, strict=True):
        close(logits, model(**batch(row)).logits[0])


@torch.no_grad()
def test_packed_rows_equal_alone(model) -> None:
    """Two conversations with media in one row, positions restarting: each gets what it gets alone."""
    first, second = MIXED[1], MIXED[3]
    names = ("input_ids", "mm_token_type_ids", "image_grid_thw", "video_grid_thw")
    positions = []
    for row in (first, second):
        inputs = batch(row)
        axes, _ = model.model.get_rope_index(**{name: inputs[name] for name in names if name in inputs})
        positions.append(torch.cat((torch.arange(len(row.ids))[None, None], axes)))
    packed = batch(first + second)
    del packed["attention_mask"]
    for rows in (4, 3):
        logits = model(**packed, position_ids=torch.cat(positions, dim=-1)[-rows:]).logits[0]
        close(logits[: len(first.ids)], model(**batch(first)).logits[0])
        close(logits[len(first.ids) :], model(**batch(second)).logits[0])


@torch.no_grad()
def test_backends_agree(model) -> None:
    """Eager attention gives what SDPA gives, through both halves."""
    inputs = batch(*MIXED)
    wanted = real_logits(model, inputs)
    eager = tiny_vlm(vision=TWO_TAPS, use_gated_cross_attention=True, attn="eager")
    for a, b in zip(real_logits(eager, inputs), wanted, strict=True):
        close(a, b)


# Training


def test_gradients_reach_everything() -> None:
    """A loss on text moves vision, mergers, taps, gates and embeddings, with checkpointing as without."""
    gradients = []
    for checkpointing in (False, True):
        model = tiny_vlm(vision=TWO_TAPS, use_gated_cross_attention=True).train()
        if checkpointing:
            model.activation_checkpointing_enable()
        inputs = batch(*MIXED)
        labels = inputs["input_ids"].masked_fill(inputs["mm_token_type_ids"] > 0, -100)
        loss = model(**inputs, labels=labels.masked_fill(inputs["attention_mask"] == 0, -100), use_cache=False).loss
        loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        if name.endswith("visual_gates"):  # a gate per layer; two layers get features
            assert (gradient != 0).tolist() == [True, True, False]
            continue
        assert gradient is not None, name
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-3, atol=1e-5)


# Wrong counts


def wrong(**changes) -> dict:
    return {**batch(*MIXED), **changes}


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        (batch(MIXED[1], MIXED[1]) | {"image_grid_thw": torch.tensor([[1, 4, 4], [1, 4, 8]]),
                                      "pixel_values": torch.randn(48, 48)}, ["row 0", "6", "4"]),
        (wrong(image_grid_thw=torch.tensor([[1, 4, 6], [1, 4, 4], [1, 6, 4]]),
               pixel_values=torch.randn(64, 48)), ["row 3", "4"]),
        ({k: v for k, v in batch(*MIXED).items() if "image" not in k and k != "pixel_values"}, ["image", "row 1"]),
        ({k: v for k, v in batch(MIXED[1]).items() if k not in ("pixel_values", "image_grid_thw")}, ["image", "6"]),
        (batch(MIXED[0]) | {k: v for k, v in batch(MIXED[1]).items() if "image" in k or "pixel" in k}, ["1 image"]),
        (wrong(video_grid_thw=None), ["video_grid_thw"]),
        (wrong(image_grid_thw=None), ["grid_thw"]),
        (wrong(pixel_values=torch.randn(81, 48)), ["pixel_values", "81 rows", "80"]),
        (wrong(pixel_values_videos=torch.randn(32, 48)), ["pixel_values_videos", "96"]),
    ],
    ids=["total_only", "row_3", "no_images", "no_media", "image_without_place", "no_video_grid", "no_image_grid",
         "pixel_rows", "video_width"],
)  # fmt: skip
def test_wrong_counts(model, inputs: dict, says: list[str]) -> None:
    """Placeholders and media that disagree are refused with the argument, the row and the counts."""
    with pytest.raises(ValueError) as caught:
        model(**inputs)
    assert all(part in str(caught.value) for part in says), caught.value


def test_precomputed_features_must_fit(model) -> None:
    """Features for the wrong rows, too few features, and features beside pixels are refused."""
    inputs = batch(MIXED[1], MIXED[2])
    pixels, grid = inputs.pop("pixel_values"), inputs["image_grid_thw"]
    features = model.get_image_features(pixels, grid)

    def with_items(*order: int) -> dict:
        taps = [[tap[i] for i in order] for tap in features.deepstack_features]
        output = ArlowVisionOutput(pooler_output=[features.pooler_output[i] for i in order], deepstack_features=taps)
        return {"image": output}

    assert model(**inputs, mm_encoder_outputs=with_items(0, 1, 2)).logits is not None
    with pytest.raises(ValueError, match=r"row 1 has 10 image placeholder tokens.* make 4"):
        model(**inputs, mm_encoder_outputs=with_items(0, 1))
    with pytest.raises(ValueError, match=r"row 0 has 6 image"):
        model(**inputs, mm_encoder_outputs=with_items(1, 0, 2))
    with pytest.raises(ValueError, match=r"features and pixels"):
        model(**inputs, pixel_values=pixels, mm_encoder_outputs=with_items(0, 1, 2))


def test_ids_and_config_must_agree(model) -> None:
    """Tokens marked as media that are not the config's placeholders: tokenizer and config belong to two models."""
    inputs = batch(MIXED[1])
    inputs["input_ids"][inputs["input_ids"] == IMAGE] = 99
    with pytest.raises(ValueError, match=r"mm_token_type_ids.*tokenizer and config disagree"):
        model(**inputs)


def test_ids_xor_embeddings(model) -> None:
    """Both or neither of `input_ids` and `inputs_embeds` is refused."""
    inputs = batch(MIXED[0])
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    with pytest.raises(ValueError, match="input_ids/inputs_embeds"):
        model(**inputs, inputs_embeds=embeds)
    with pytest.raises(ValueError, match="input_ids/inputs_embeds"):
        model(attention_mask=inputs["attention_mask"])
