"""The linear probe: features of the encoder, split, chance, and the comparison with a random encoder."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import tiny_vision

from arlow import ArlowImageProcessor
from arlow.evaluation.linear_probe import compare_with_random, linear_probe, picture_features


PROCESSOR = ArlowImageProcessor(patch_size=4, merge_size=2, min_pixels=64, max_pixels=4096)


def bright_and_dark(count: int = 40) -> tuple[list[Image.Image], list[str]]:
    """Pictures of several sizes, bright ones and dark ones in turn."""
    rng = np.random.default_rng(0)
    images, labels = [], []
    for number in range(count):
        low = 140 if number % 2 else 0
        images.append(Image.fromarray(rng.integers(low, low + 110, (16, 16 + 8 * (number % 3), 3)).astype(np.uint8)))
        labels.append("bright" if number % 2 else "dark")
    return images, labels


def test_features_are_the_mean_of_patch_states() -> None:
    """One row per picture, whatever the batch it came in."""
    tower = tiny_vision()
    images, _ = bright_and_dark(5)
    features = picture_features(tower, PROCESSOR, images, batch_size=2)
    for image, row in zip(images, features, strict=True):
        batch = PROCESSOR(images=[image], return_tensors="pt")
        states = tower(batch["pixel_values"], batch["image_grid_thw"]).last_hidden_state
        np.testing.assert_allclose(row, states.mean(0).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_probe_tells_bright_from_dark_and_nothing_from_chance() -> None:
    """Separable classes are separated; labels unrelated to the pictures are guessed at about chance."""
    tower = tiny_vision()
    images, labels = bright_and_dark()
    probe = linear_probe(tower, PROCESSOR, images, labels)
    assert probe.accuracy > 0.9
    assert probe.majority == 0.5 and probe.train_pictures == probe.test_pictures == 20
    shuffled = np.random.default_rng(3).permutation(labels)
    assert linear_probe(tower, PROCESSOR, images, shuffled).accuracy < 0.8


def test_comparison_has_the_same_split_and_leaves_the_generator() -> None:
    """Both encoders are probed alike, again and again, and the global generator stays where it was."""
    tower = tiny_vision()
    images, labels = bright_and_dark()
    state = torch.get_rng_state()
    found = compare_with_random(tower, PROCESSOR, images, labels, split=30)
    assert torch.equal(torch.get_rng_state(), state)
    assert found == compare_with_random(tower, PROCESSOR, images, labels, split=30)
    assert set(found) == {"trained", "random"} and found["random"].train_pictures == 30


@pytest.mark.parametrize("split", [0, 40, 1.5, True, -0.1])
def test_impossible_splits(split: object) -> None:
    """A part without pictures is refused before anything is encoded."""
    images, labels = bright_and_dark()
    with pytest.raises(ValueError, match="split="):
        linear_probe(tiny_vision(), PROCESSOR, images, labels, split=split)


def test_labels_that_do_not_fit() -> None:
    """Too few labels, and a single kind of label."""
    images, labels = bright_and_dark()
    with pytest.raises(ValueError, match="labels=39: there are 40 pictures"):
        linear_probe(tiny_vision(), PROCESSOR, images, labels[:-1])
    with pytest.raises(ValueError, match="at least two"):
        linear_probe(tiny_vision(), PROCESSOR, images, ["one"] * 40)
