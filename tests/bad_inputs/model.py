"""Bad inputs of the vision encoder, the bridge, generation, and bad checkpoint directories."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny_models import CLIP, IMAGE, STILL, batch, image, pixels, prompt, tiny_vision, tiny_vlm, video

from arlow import ArlowForConditionalGeneration, ArlowModel
from arlow.vision import ArlowVisionOutput

from . import BadInput


VISION, BRIDGE, GENERATION, CHECKPOINT = "vision encoder", "vision-language model", "generation", "checkpoint"

ROWS = (prompt(5, seed=1), prompt(3, image(4, 6), 4, seed=2), prompt(2, video(2, 4, 4), 3, seed=3))
PIXELS = ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw")


def grid(*rows: tuple) -> torch.Tensor:
    return torch.tensor(rows)


def see(rows: Any = None, thw: Any = None, **more: Any) -> Callable[[Path], object]:
    return lambda _: tiny_vision()(rows, thw, **more)


def given(*rows: Any, without: tuple = (), **changes: Any) -> dict:
    inputs = {**batch(*(rows or ROWS)), **changes}
    return {name: value for name, value in inputs.items() if name not in without}


def ask(*rows: Any, without: tuple = (), **changes: Any) -> Callable[[Path], object]:
    return lambda _: tiny_vlm()(**given(*rows, without=without, **changes))


def generate(*rows: Any, without: tuple = (), **changes: Any) -> Callable[[Path], object]:
    return lambda _: tiny_vlm().generate(**{"max_new_tokens": 2, **given(*rows, without=without, **changes)})


def features(*sizes: int, width: int = 64, taps: int = 1) -> dict[str, ArlowVisionOutput]:
    items = [torch.zeros(size, width) for size in sizes]
    return {"image": ArlowVisionOutput(pooler_output=items, deepstack_features=[items] * taps or None)}


def places(*rows: Any, **grids: torch.Tensor) -> Callable[[Path], object]:
    inputs = batch(*rows)
    return lambda _: tiny_vlm().model.get_rope_index(inputs["input_ids"], inputs["mm_token_type_ids"], **grids)


def answer_to(second: dict) -> Callable[[Path], object]:
    """A second turn on the cache of a first one with an image."""

    def attempt(_: Path) -> object:
        model, first = tiny_vlm(), batch(ROWS[1])
        output = model.generate(**first, max_new_tokens=2, do_sample=False, return_dict_in_generate=True)
        whole = prompt(3, image(4, 6), 4, seed=2) + prompt(2, image(4, 4), 1, seed=9)
        ids = torch.cat((output.sequences, batch(prompt(2, image(4, 4), 1, seed=9))["input_ids"]), dim=1)
        assert ids.shape[1] == len(whole.ids) + 2
        return model.generate(ids, past_key_values=output.past_key_values, max_new_tokens=2, **second)

    return attempt


def saved(folder: Path, **options: Any) -> Path:
    tiny_vlm().save_pretrained(folder, **options)
    return folder


def load(change: Callable[[Path], object], *, shards: bool = False, **options: Any) -> Callable[[Path], object]:
    """An attempt to load a directory after `change` was done to it."""

    def attempt(folder: Path) -> object:
        change(saved(folder, max_shard_size="100KB" if shards else "5GB"))
        return ArlowForConditionalGeneration.from_pretrained(folder, **options)

    return attempt


def overwrite(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)


def cut(folder: Path) -> None:
    overwrite(folder, (folder / "model.safetensors").read_bytes()[:-1000])


def rename_shard(folder: Path, name: Any) -> None:
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"][next(iter(content["weight_map"]))] = name
    index.write_text(json.dumps(content))


def other_index(folder: Path, name: str) -> None:
    """An index of another kind, of shards beside the directory."""
    (folder / "model.safetensors").unlink()
    (folder / name).write_text(json.dumps({"metadata": {}, "weight_map": {"lm_head.weight": "../elsewhere"}}))


def cut_variant(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model.fp16.safetensors")
    (folder / "model.fp16.safetensors").write_bytes((folder / "model.fp16.safetensors").read_bytes()[:-1000])


def pickle_instead(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


def other_sizes(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["patch_size"] = 8
    (folder / "config.json").write_text(json.dumps(config))


STILLS, ONE = torch.zeros(16, STILL), grid((1, 4, 4))
ENCODER = [
    ("no pixels", see(), "pixel_values"),
    ("pixels without a grid", see(STILLS), "grid_thw"),
    ("grid of two numbers", see(STILLS, grid((4, 4))), "grid_thw"),
    ("grid of one dimension", see(STILLS, torch.tensor([1, 4, 4])), "grid_thw"),
    ("grid of fractions", see(STILLS, grid((1.0, 4.0, 4.0))), "grid_thw"),
    ("grid with an odd side", see(STILLS, grid((1, 16, 1))), "grid_thw[0]=[1, 16, 1]"),
    ("second grid with a zero", see(STILLS, grid((1, 4, 4), (0, 4, 4))), "grid_thw[1]=[0, 4, 4]"),
    ("two negative sides", see(STILLS, grid((1, -4, -4))), "grid_thw[0]=[1, -4, -4]"),
    ("no items at all", see(STILLS[:0], torch.zeros(0, 3, dtype=torch.long)), "grid_thw"),
    ("too few rows", see(STILLS[:15], ONE), "15 rows"),
    ("too many rows", see(STILLS, grid((1, 2, 2))), "16 rows"),
    ("rows of another patch size", see(torch.zeros(16, 3 * 14 * 14), ONE), "rows must be"),
    ("a picture instead of rows", see(torch.zeros(1, 3, 16, 16), ONE), "rows must be"),
    ("still rows for a video", see(pixel_values_videos=STILLS, video_grid_thw=ONE), "pixel_values_videos"),
    ("video rows that do not fit", see(pixel_values_videos=torch.zeros(16, CLIP), video_grid_thw=grid((2, 4, 4))),
     "video_grid_thw"),
    ("grid of the other kind", see(pixel_values_videos=torch.zeros(16, CLIP), thw=ONE), "video_grid_thw"),
]  # fmt: skip
ENCODER_KINDS = [
    ("pixels as an array", see(np.zeros((16, STILL), np.float32), ONE), "pixel_values"),
    ("grid as a list", see(STILLS, [[1, 4, 4]]), "grid_thw"),
    ("misspelt videos", see(STILLS, ONE, pixel_values_video=torch.zeros(16, CLIP)), "'pixel_values_videos'"),
]

TWO = (ROWS[1], prompt(2, image(4, 4, seed=4), 1, seed=4))
MODEL_KINDS = [
    ("pixels as an array", ask(ROWS[1], pixel_values=np.zeros((24, STILL))), "return_tensors"),
    ("grid as a list", ask(ROWS[1], image_grid_thw=[[1, 4, 6]]), "image_grid_thw"),
    ("ids as a list", ask(ROWS[0], input_ids=[[1, 2, 3]]), "input_ids"),
    ("mask as a list", ask(ROWS[0], attention_mask=[[1] * 5]), "attention_mask"),
    ("features as a list", ask(ROWS[1], without=PIXELS, mm_encoder_outputs=[1]), "mm_encoder_outputs=[1]"),
    ("features as a tensor",
     ask(ROWS[1], without=PIXELS, mm_encoder_outputs={"image": torch.zeros(6, 64)}), "mm_encoder_outputs['image']"),
    ("deepstack from outside", ask(ROWS[1], deepstack={0: torch.zeros(1)}), "deepstack"),
]  # fmt: skip
MODEL = [
    ("placeholders without pixels", ask(without=PIXELS), "row 1 has 6 image"),
    ("images but no videos", ask(without=PIXELS[2:]), "8 video"),
    ("pixels without placeholders", ask(ROWS[0], **pixels(ROWS[1].media)), "1 image"),
    ("one image too many", ask(ROWS[1], **pixels([image(4, 6), image(4, 4)])), "2 image"),
    ("counts that balance in total only", ask(*TWO, **pixels([image(4, 4), image(4, 6)])), "row 0 has 6 image"),
    ("half a video in each row",
     ask(*[prompt(1, video(1, 4, 4), seed=5)] * 2, **pixels([video(2, 4, 4)])), "row 0 has 4 video"),
    ("pixels without their grid", ask(ROWS[1], without=("image_grid_thw",)), "image_grid_thw"),
    ("ids of one dimension", ask(ROWS[0], input_ids=torch.arange(7, 12)), "must have shape (batch, sequence)"),
    ("image of two frames", ask(ROWS[1], image_grid_thw=grid((2, 2, 6))), "image_grid_thw[0]=[2, 2, 6]"),
    ("features of an image of two frames",
     lambda _: tiny_vlm().get_image_features(STILLS, grid((4, 2, 2))), "image_grid_thw[0]=[4, 2, 2]"),
    ("grid without its pixels", ask(ROWS[1], without=("pixel_values",)), "6 image"),
    ("rows that the grid does not describe", ask(ROWS[1], pixel_values=torch.zeros(20, STILL)), "20 rows"),
    ("images passed as videos",
     ask(ROWS[1], without=PIXELS, pixel_values_videos=torch.zeros(24, CLIP), video_grid_thw=grid((1, 4, 6))),
     "6 image"),
    ("token types of another batch", ask(mm_token_type_ids=torch.zeros(1, 20).long()), "mm_token_type_ids"),
    ("token types that mark words", ask(ROWS[1], mm_token_type_ids=torch.ones(1, 15).long()), "tokenizer and config"),
    ("tokenizer of another model",
     ask(ROWS[1], input_ids=batch(ROWS[1])["input_ids"].where(batch(ROWS[1])["input_ids"] != IMAGE, torch.tensor(99))),
     "tokenizer and config"),
    ("both ids and embeddings", ask(ROWS[0], inputs_embeds=torch.zeros(1, 5, 64)), "both"),
    ("neither ids nor embeddings", ask(ROWS[0], without=("input_ids",)), "neither"),
    ("id beyond the vocabulary", ask(ROWS[0], input_ids=torch.full((1, 5), 160)), "input_ids[0, 0]=160"),
    ("positions on two axes", ask(ROWS[0], position_ids=torch.zeros(2, 1, 5).long()), "position_ids"),
    ("features beside pixels", ask(ROWS[1], mm_encoder_outputs=features(6)), "features and pixels"),
    ("too few features", ask(ROWS[1], without=PIXELS, mm_encoder_outputs=features(5)), "6 image"),
    ("features for the wrong rows", ask(*TWO, without=PIXELS, mm_encoder_outputs=features(4, 6)), "row 0"),
    ("features of another width", ask(ROWS[1], without=PIXELS, mm_encoder_outputs=features(6, width=32)), "64"),
    ("features of a wider model", ask(ROWS[1], without=PIXELS, mm_encoder_outputs=features(6, width=128)), "128"),
    ("features without their taps", ask(ROWS[1], without=PIXELS, mm_encoder_outputs=features(6, taps=0)), "0 Deep"),
    ("features of an unknown kind", ask(ROWS[0], mm_encoder_outputs={"audio": None}), "audio"),
    ("positions of rows that do not fit", places(*TWO, image_grid_thw=grid((1, 4, 10))), "row 0"),
]  # fmt: skip
ANSWERS = [
    ("prompt without its pixels", generate(without=PIXELS), "6 image"),
    ("prompt with the wrong image", generate(ROWS[1], **pixels([image(4, 4)])), "6 image"),
    ("prompt without its grid", generate(ROWS[1], without=("image_grid_thw",)), "image_grid_thw=None"),
    ("misspelt argument", generate(ROWS[1], pixel_value=torch.zeros(1)), "pixel_value"),
    ("new turn without its image", answer_to({}), "4 image"),
    ("new turn with two images for one", answer_to(pixels([image(4, 4), image(4, 4)])), "2 image"),
    ("new turn with another image", answer_to(pixels([image(4, 8)])), "row 0 has 4 image"),
    ("new turn with rows of half an image",
     answer_to({"pixel_values": torch.zeros(8, STILL), "image_grid_thw": ONE}), "8 rows"),
    ("mask of the new turn alone", answer_to({"attention_mask": torch.ones(1, 8)}), "attention_mask"),
]  # fmt: skip
FILES = [
    ("weights cut off", load(cut), "truncated or corrupt"),
    (
        "weights that are no weights",
        load(lambda at: (at / "model.safetensors").write_bytes(b"GIF89a" * 50)),
        "corrupt",
    ),
    ("empty weights", load(lambda at: (at / "model.safetensors").write_bytes(b"")), "corrupt"),
    ("weights of a variant cut off", load(cut_variant, variant="fp16"), "model.fp16.safetensors"),
    ("no weights", load(lambda at: (at / "model.safetensors").unlink()), "model.safetensors"),
    ("pickled weights nobody asked for", load(pickle_instead), "pickled"),
    ("missing shard", load(lambda at: next(at.glob("model-00002*")).unlink(), shards=True), "missing"),
    ("no directory", lambda at: ArlowModel.from_pretrained(at / "nowhere"), "nowhere"),
]
CONTENTS = [
    ("shard outside the directory", load(lambda at: rename_shard(at, "../model.safetensors"), shards=True), "outside"),
    ("shard by absolute path", load(lambda at: rename_shard(at, "/etc/passwd"), shards=True), "outside"),
    ("shard of a variant outside the directory",
     load(lambda at: other_index(at, "model.safetensors.index.fp16.json"), variant="fp16"), "outside"),
    ("pickled shard outside the directory",
     load(lambda at: other_index(at, "pytorch_model.bin.index.json"), use_safetensors=False), "outside"),
    ("shard that is a number", load(lambda at: rename_shard(at, 3), shards=True), "weight_map"),
    ("index that is no index",
     load(lambda at: (at / "model.safetensors.index.json").write_text("[]"), shards=True), "no shard index"),
    ("weights of other sizes", load(other_sizes), "shape"),
]  # fmt: skip

CASES = [
    *[BadInput(name, VISION, attempt, ValueError, says) for name, attempt, says in ENCODER],
    *[BadInput(name, VISION, attempt, TypeError, says) for name, attempt, says in ENCODER_KINDS],
    *[BadInput(name, BRIDGE, attempt, ValueError, says) for name, attempt, says in MODEL],
    *[BadInput(name, BRIDGE, attempt, TypeError, says) for name, attempt, says in MODEL_KINDS],
    *[BadInput(name, GENERATION, attempt, ValueError, says) for name, attempt, says in ANSWERS],
    *[BadInput(name, CHECKPOINT, attempt, OSError, says) for name, attempt, says in FILES],
    *[BadInput(name, CHECKPOINT, attempt, ValueError, says) for name, attempt, says in CONTENTS],
]
