"""The small trained model that comes with the package: where it is, and the form of its answers."""

from __future__ import annotations

from pathlib import Path


ANSWER_AFTER = ": "  # between what it reads off and the answer that follows: "left red circle, right blue star: 2"
FOLDER = Path(__file__).parent / "checkpoints" / "arlow-tiny"


def bundled_checkpoint() -> Path:
    """The directory of `arlow-tiny`, which `from_pretrained` loads offline; its `MODEL_CARD.md` says what it can do.

    Raises:
        OSError: this installation has no checkpoint.
    """
    if not (FOLDER / "config.json").is_file():
        raise OSError("bundled checkpoint: this installation has none; `make tiny` in the source tree trains it")
    return FOLDER
