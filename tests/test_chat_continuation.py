"""Continuing a chat with the cache that `generate` returned: the same as starting over with the whole conversation."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
from tiny_models import Picture, Prompt, batch, image, pixels, prompt, random_images, tiny_vlm, video, words
from transformers import CompileConfig, DynamicCache, StaticCache


NEW = 5  # tokens per answer
TEXT = prompt(6, seed=4)
IMAGE = prompt(3, image(4, 6), 4, seed=2)
IMAGES = prompt(2, image(4, 4, seed=5), 1, image(6, 4, seed=6), 3, seed=3)
VIDEO = prompt(2, video(2, 4, 4, seed=8), 3, seed=5)
MORE_TEXT = prompt(4, seed=11)
MORE_IMAGE = prompt(2, image(4, 8, seed=20), 2, seed=12)
MORE_BOTH = prompt(1, video(3, 2, 4, seed=21), 2, image(2, 2, seed=22), 1, seed=13)


@pytest.fixture(scope="module")
def model():
    model = tiny_vlm(use_gated_cross_attention=True)
    model.generation_config.pad_token_id = 0
    return model


def generate(model, inputs: dict, **options):
    return model.generate(
        **inputs, max_new_tokens=NEW, do_sample=False, return_dict_in_generate=True, output_logits=True, **options
    )


@dataclass
class Chat:
    """A first turn that was answered, and what a second turn needs."""

    model: torch.nn.Module
    firsts: tuple[Prompt, ...]
    inputs: dict
    answers: list[list[int]]
    cache: object

    @classmethod
    def start(cls, model, *firsts: Prompt, **options) -> Chat:
        inputs = batch(*firsts)
        output = generate(model, inputs, **options)
        answers = output.sequences[:, inputs["input_ids"].shape[1] :].tolist()
        return cls(model, firsts, inputs, answers, output.past_key_values)

    def rows(self, *seconds: Prompt) -> list[Prompt]:
        """The whole conversations."""
        return [f + words(a) + s for f, a, s in zip(self.firsts, self.answers, seconds, strict=True)]

    def second(self, *seconds: Prompt, again: bool = False, only_new: bool = False) -> dict:
        """Inputs of the second turn, padded on the left of the new tokens: columns of the cache stay where they are.
        `again`: with the earlier media; `only_new`: the ids the cache does not hold."""
        turn = batch(*seconds)
        answers = torch.tensor(self.answers)
        whole = {
            "input_ids": torch.cat((self.inputs["input_ids"], answers, turn["input_ids"]), dim=1),
            "mm_token_type_ids": torch.cat(
                (self.inputs["mm_token_type_ids"], torch.zeros_like(answers), turn["mm_token_type_ids"]), dim=1
            ),
            "attention_mask": torch.cat(
                (self.inputs["attention_mask"], torch.ones_like(answers), turn["attention_mask"]), dim=1
            ),
        }
        if only_new:
            whole["input_ids"] = whole["input_ids"][:, self.cache.get_seq_length() :]
        media: list[Picture] = []
        for first, now in zip(self.firsts, seconds, strict=True):
            media += (first.media if again else []) + now.media
        return {**whole, **pixels(media)}

    def go_on(self, *seconds: Prompt, inputs: dict | None = None, **how) -> None:
        """The second turn equals a fresh generation of each row alone, in tokens and logits, and only new media are
        encoded."""
        inputs = inputs or self.second(*seconds, **how)
        encoded = []
        hook = self.model.model.visual.register_forward_hook(lambda m, args, out: encoded.append(len(out[0])))
        output = generate(self.model, inputs, past_key_values=self.cache)
        hook.remove()
        answers = output.sequences[:, inputs["input_ids"].shape[1] :]
        for i, row in enumerate(self.rows(*seconds)):
            alone = generate(self.model, batch(row))
            assert torch.equal(alone.sequences[0, len(row.ids) :], answers[i]), f"row {i}"
            for ours, theirs in zip(output.logits, alone.logits, strict=True):
                torch.testing.assert_close(ours[i], theirs[0], rtol=1e-3, atol=1e-4)
        assert sum(encoded) == sum(len(item.rows()) for row in seconds for item in row.media)
        assert len(encoded) <= 2
        self.firsts, self.answers = tuple(self.rows(*seconds)), answers.tolist()


TURNS = {
    "text_after_image": (IMAGE, MORE_TEXT),
    "text_after_text": (TEXT, MORE_TEXT),
    "image_after_text": (TEXT, MORE_IMAGE),
    "image_after_image": (IMAGE, MORE_IMAGE),
    "image_after_images": (IMAGES, MORE_IMAGE),
    "text_after_video": (VIDEO, MORE_TEXT),
    "video_after_image": (IMAGE, MORE_BOTH),
    "video_after_video": (VIDEO, MORE_BOTH),
}


def started(model, cache: str, *firsts: Prompt) -> Chat:
    if cache == "static":
        return Chat.start(
            model, *firsts, past_key_values=StaticCache(config=model.config.text_config, max_cache_len=96)
        )
    return Chat.start(model, *firsts)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("again", [False, True], ids=["new_media", "all_media"])
@pytest.mark.parametrize("turn", TURNS)
def test_one_row(model, turn: str, again: bool, cache: str) -> None:
    """Every second turn after every first one, with the new media only or with all media passed again."""
    first, second = TURNS[turn]
    started(model, cache, first).go_on(second, again=again)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("again", [False, True], ids=["new_media", "all_media"])
def test_rows_with_different_media(model, again: bool, cache: str) -> None:
    """Rows with different numbers of old and new images and videos, left-padded in both turns."""
    chat = started(model, cache, IMAGE, IMAGES, TEXT, VIDEO, TEXT)
    chat.go_on(MORE_TEXT, MORE_IMAGE, MORE_BOTH, prompt(1, seed=9), MORE_IMAGE, again=again)


@pytest.mark.parametrize("turn", TURNS)
def test_only_the_new_ids(model, turn: str) -> None:
    """The new ids alone, with the mask of everything, do as well as all of them."""
    first, second = TURNS[turn]
    Chat.start(model, first).go_on(second, only_new=True)
    Chat.start(model, first).go_on(second, only_new=True, again=True)


def test_without_token_types(model) -> None:
    """Without token types the placeholders decide, for whole ids and for the new ones."""
    for only_new in (False, True):
        chat = Chat.start(model, IMAGES, VIDEO)
        inputs = chat.second(MORE_IMAGE, MORE_BOTH, only_new=only_new)
        del inputs["mm_token_type_ids"]
        chat.go_on(MORE_IMAGE, MORE_BOTH, inputs=inputs)


def test_without_a_mask(model) -> None:
    """One row needs no mask."""
    chat = Chat.start(model, IMAGE)
    inputs = chat.second(MORE_IMAGE)
    del inputs["attention_mask"]
    chat.go_on(MORE_IMAGE, inputs=inputs)


def test_three_turns(model) -> None:
    """A third turn, again with an image, on the cache of the second."""
    chat = Chat.start(model, IMAGE)
    chat.go_on(MORE_IMAGE)
    third = prompt(2, image(6, 6, seed=30), 1, seed=31)
    chat.inputs = batch(*chat.firsts)
    chat.go_on(third)
    chat.inputs = batch(*chat.firsts)
    chat.go_on(MORE_TEXT, again=True)


def test_a_copied_cache(model) -> None:
    """Two ways to go on from one answer: the positions travel with a copy of the cache."""
    chat = Chat.start(model, IMAGE)
    other = copy.copy(chat)
    other.cache = copy.deepcopy(chat.cache)
    chat.go_on(MORE_IMAGE)
    other.go_on(MORE_TEXT)


def test_a_prefilled_prefix(model) -> None:
    """A prefix that was only read, by a plain forward, serves several continuations."""
    prefix = batch(IMAGE)
    with torch.no_grad():
        cache = model(**prefix, past_key_values=DynamicCache(config=model.config.text_config)).past_key_values
    for second in (MORE_TEXT, MORE_IMAGE):
        chat = Chat(model, (IMAGE,), prefix, [[]], copy.deepcopy(cache))
        inputs = {k: v for k, v in batch(IMAGE + second).items() if "pixel" not in k and "grid" not in k}
        chat.go_on(second, inputs={**inputs, **pixels(second.media)})


def test_in_chunks(model) -> None:
    """The second turn may be prefilled in chunks."""
    chat = Chat.start(model, IMAGE)
    inputs = chat.second(MORE_IMAGE)
    row = chat.rows(MORE_IMAGE)[0]
    wanted = generate(model, batch(row)).sequences[0, len(row.ids) :]
    output = generate(model, inputs, past_key_values=copy.deepcopy(chat.cache), prefill_chunk_size=4)
    assert torch.equal(output.sequences[0, -NEW:], wanted)


def test_sliding_layers() -> None:
    """A cache whose sliding layers have dropped the image still knows where the axes are."""
    layers = ["sliding_attention", "full_attention", "sliding_attention"]
    model = tiny_vlm(text={"layer_types": layers, "sliding_window": 6})
    model.generation_config.pad_token_id = 0
    for second in (MORE_TEXT, MORE_IMAGE, MORE_BOTH):
        Chat.start(model, IMAGES).go_on(second)


def test_after_a_compiled_prefill(model) -> None:
    """A compiled prefill in chunks leaves the cache as ready as any other."""
    config = CompileConfig(backend="eager", fullgraph=True, mode="default")
    config._compile_all_devices = True
    cache = StaticCache(config=model.config.text_config, max_cache_len=96)
    chat = Chat.start(model, IMAGE, past_key_values=cache, compile_config=config, prefill_chunk_size=5)
    chat.go_on(MORE_IMAGE)


@torch.no_grad()
def test_turns_by_hand(model) -> None:
    """The same through `forward`: a turn of text, then one with an image, without positions."""
    turns, cache, seen = (IMAGES, MORE_TEXT, MORE_BOTH, MORE_IMAGE), None, Prompt([], [])
    for turn in turns:
        inputs = batch(turn)
        inputs["attention_mask"] = torch.ones(1, len(seen.ids) + len(turn.ids), dtype=torch.long)
        output = model(**inputs, past_key_values=cache, use_cache=True)
        cache, seen = output.past_key_values, seen + turn
        wanted = model(**batch(seen)).logits[:, -len(turn.ids) :]
        torch.testing.assert_close(output.logits, wanted, rtol=1e-3, atol=1e-4)


# Wrong counts


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda chat, turn: {**turn, **pixels([*MORE_IMAGE.media, *MORE_IMAGE.media])}, "image_grid_thw=2"),
        (lambda chat, turn: {**turn, **pixels([image(4, 4)])}, "8 image placeholder"),
        (lambda chat, turn: {k: v for k, v in turn.items() if "pixel" not in k and "grid" not in k}, "8 image placeh"),
        (lambda chat, turn: {**turn, "pixel_values": turn["pixel_values"][:-1]}, "pixel_values"),
        (lambda chat, turn: {k: v[:, -3:] if k == "attention_mask" else v for k, v in turn.items()}, "attention_mask"),
        (lambda chat, turn: {**turn, **pixels(VIDEO.media)}, "1 video"),
    ],
    ids=["two_for_one", "another_size", "none", "rows", "mask_of_the_new", "a_video"],
)
def test_wrong_second_turns(model, change, says: str) -> None:
    """Media that do not fit the new turn are refused, with counts, before anything is encoded."""
    chat = Chat.start(model, IMAGE)
    inputs = change(chat, chat.second(MORE_IMAGE))
    with pytest.raises(ValueError, match=says):
        generate(model, inputs, past_key_values=chat.cache)


def test_a_cropped_cache_is_not_trusted_with_positions():
    """Cropped to before an image, a cache no longer knows its offset: the whole conversation gives the right answer,
    less than that is an error; cropped text-only caches go on as ever."""
    model = tiny_vlm().eval()
    pixels, grid = random_images([(1, 8, 4)])
    ids = torch.tensor([[10, 11, 12, 13, 3, *[5] * 8, 4, 14, 15, 16]])
    first = model.generate(
        input_ids=ids, pixel_values=pixels, image_grid_thw=grid, max_new_tokens=3, do_sample=False,
        return_dict_in_generate=True,
    )  # fmt: skip
    cache = first.past_key_values
    cache.crop(3 - cache.get_seq_length())
    edited = torch.tensor([[10, 11, 12, 20, 21, 22]])
    expected = model.generate(input_ids=edited, max_new_tokens=4, do_sample=False)
    found = model.generate(input_ids=edited, past_key_values=copy.deepcopy(cache), max_new_tokens=4, do_sample=False)
    assert torch.equal(found, expected)
    with pytest.raises(ValueError, match="past_key_values=3: was cropped"):
        model(input_ids=edited[:, 3:], past_key_values=cache)
