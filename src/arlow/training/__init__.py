"""Training: one module per stage, each a recipe (its fields) and a function `train`; `loop` is what they share."""

from .stages import STAGES, load_stage, train


__all__ = ["STAGES", "load_stage", "train"]
