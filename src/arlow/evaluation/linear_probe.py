"""What a vision encoder's features know: a linear classifier on frozen features, beside that of a random encoder.

Sizes: I pictures, E embed_dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from ..errors import message
from ..extras import need
from ..vision import ArlowVLVisionModel


@dataclass(frozen=True)
class Probe:
    """Accuracies (0..1) on the pictures kept out."""

    accuracy: float
    majority: float  # of always saying the commonest label of the training part
    train_pictures: int
    test_pictures: int

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return asdict(self)


@torch.no_grad()
def picture_features(
    tower: ArlowVLVisionModel, processor: Any, images: Sequence[Any], *, batch_size: int = 32
) -> np.ndarray:
    """The mean of a picture's patch states before merging, (I, E) float32.

    Args:
        tower: put into evaluation mode for the call; merger and DeepStack mergers have no part in it.
        processor: its image processor.
        images: whatever the processor takes as a picture.
    """
    was_training, features = tower.training, []
    tower.eval()
    device, dtype = tower.device, tower.dtype
    for start in range(0, len(images), batch_size):
        batch = processor(images=list(images[start : start + batch_size]), return_tensors="pt")
        grid = batch["image_grid_thw"]
        pixels = batch["pixel_values"].to(device, dtype)
        states = tower(pixels, grid.to(device), visible=torch.arange(len(pixels), device=device)).last_hidden_state
        parts = states.float().split(grid.prod(dim=1).tolist())
        features.append(torch.stack([part.mean(dim=0) for part in parts]).cpu().numpy())
    tower.train(was_training)
    return np.concatenate(features)


def linear_probe(
    tower: ArlowVLVisionModel,
    processor: Any,
    images: Sequence[Any],
    labels: Sequence[Any],
    *,
    split: int | float = 0.5,
    seed: int = 0,
    batch_size: int = 32,
) -> Probe:
    """Logistic regression from frozen features (see `picture_features`), standardised, to labels.

    Args:
        split: pictures to train on: a number, the first so many in the given order; or a share, drawn with `seed` so
            that every label is in both parts.

    Raises:
        ValueError: not as many labels as pictures, a split that leaves a part empty, or a single label.
    """
    if len(images) != len(labels) or not len(images):
        raise ValueError(message("labels", len(labels), f"there are {len(images)} pictures"))
    train, test = _split(np.asarray(labels), split, seed)
    features = picture_features(tower, processor, images, batch_size=batch_size)
    return fit_probe(features, np.asarray(labels), train, test)


def compare_with_random(
    tower: ArlowVLVisionModel,
    processor: Any,
    images: Sequence[Any],
    labels: Sequence[Any],
    *,
    split: int | float = 0.5,
    seed: int = 0,
    batch_size: int = 32,
) -> dict[str, Probe]:
    """The probe of `trained` and, on the same split, of `random`: an encoder of the same config that was never
    trained. Arguments as in `linear_probe`; `seed` is also that of the random weights."""
    options = {"split": split, "seed": seed, "batch_size": batch_size}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        untrained = ArlowVLVisionModel(tower.config).to(tower.device, tower.dtype)
    return {
        "trained": linear_probe(tower, processor, images, labels, **options),  # type: ignore[arg-type]
        "random": linear_probe(untrained, processor, images, labels, **options),  # type: ignore[arg-type]
    }


def fit_probe(features: np.ndarray, labels: np.ndarray, train: np.ndarray, test: np.ndarray) -> Probe:
    """Fit on rows `train` of features (I, E), measure on rows `test`.

    Raises:
        ValueError: a single label to train on.
    """
    kinds, counts = np.unique(labels[train], return_counts=True)
    if len(kinds) < 2:
        raise ValueError(message("labels", kinds.tolist(), "a probe needs at least two to tell apart"))
    preprocessing, linear_model, pipeline = (
        need(f"sklearn.{part}", "eval") for part in ("preprocessing", "linear_model", "pipeline")
    )
    steps = preprocessing.StandardScaler(), linear_model.LogisticRegression(max_iter=2000)
    classifier = pipeline.make_pipeline(*steps)
    classifier.fit(features[train], labels[train])
    majority = float(np.mean(labels[test] == kinds[counts.argmax()]))
    return Probe(float(classifier.score(features[test], labels[test])), majority, len(train), len(test))


def _split(labels: np.ndarray, split: int | float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and rows to test on."""
    if isinstance(split, bool) or not (0 < split < 1 or (isinstance(split, int) and 0 < split < len(labels))):
        raise ValueError(message("split", split, f"must be a share, or a number below {len(labels)}"))
    if isinstance(split, int):
        return np.arange(split), np.arange(split, len(labels))
    rng = np.random.default_rng(seed)
    train = np.zeros(len(labels), dtype=bool)
    for kind in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == kind))
        train[members[: max(round(len(members) * split), 1)]] = True
    if train.all():
        raise ValueError(message("split", split, f"leaves none of {len(labels)} pictures to test on"))
    return np.flatnonzero(train), np.flatnonzero(~train)
