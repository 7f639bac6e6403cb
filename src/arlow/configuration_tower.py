"""Config of a vision encoder that comes from Transformers, and of the projector behind it."""

import copy
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers.activations import ACT2FN
from transformers.configuration_utils import PreTrainedConfig
from transformers.models.auto import AutoConfig

from .configuration_base import ArlowConfigBase, is_int
from .errors import message, value_errors


PROJECTORS = ("mlp", "linear")
# Towers whose features are one per patch, row by row, behind class and register tokens if there are any.
TOWERS = (
    "siglip_vision_model",
    "siglip2_vision_model",
    "clip_vision_model",
    "dinov2",
    "dinov2_with_registers",
    "dinov3_vit",
)
ONE_SIZE = ("siglip_vision_model", "clip_vision_model")  # their positions are learned for it


@value_errors
@strict
class ArlowTowerConfig(ArlowConfigBase):
    """Config of [`ArlowTower`]: a vision model of Transformers with Arlow's projector.

    `ArlowConfig(vision_config=SiglipVisionConfig(...))` makes one with the defaults.
    """

    model_type = "arlow_tower"
    base_config_key = "vision_config"
    sub_configs: ClassVar = {"tower_config": AutoConfig}

    tower_config: Any = None  # a Transformers vision config or its fields; default: SigLIP's base size
    hidden_size: int = 2304  # width the projector gives: the text width
    spatial_merge_size: int = 1  # patches per side of a token: above 1 they are put side by side (pixel shuffle)
    projector: str = "mlp"  # "mlp": norm, linear, GELU, linear; "linear": norm, one linear layer
    projector_act: str = "gelu"
    feature_layer: int = -1  # which of the tower's hidden states: -1 its output, -2 before its last block, ...
    initializer_range: float | int = 0.02  # standard deviation

    def __post_init__(self, **kwargs: Any) -> None:
        self._check_keywords(kwargs)
        self._check_positive("hidden_size", "spatial_merge_size")
        self._check_not_negative("initializer_range")
        self._check("projector", self.projector in PROJECTORS, f"expected one of {PROJECTORS}")
        self._check("projector_act", self.projector_act in ACT2FN, "is no activation that Transformers knows")
        self.tower_config = tower_of(self.tower_config)
        super().__post_init__(**kwargs)
        depth = self.tower_config.num_hidden_layers
        merges = self.only_side is None or self.only_side % self.spatial_merge_size == 0
        self._check(
            "spatial_merge_size", merges, f"the tower's {self.only_side}x{self.only_side} patches do not divide by it"
        )
        valid = is_int(self.feature_layer) and -depth - 1 <= self.feature_layer <= -1
        self._check("feature_layer", valid, f"must lie in {-depth - 1}..-1, counted from the tower's output")

    # What the rest of Arlow asks of a vision config.

    @property
    def patch_size(self) -> int:
        size = self.tower_config.patch_size
        return size if isinstance(size, int) else size[0]

    @property
    def in_channels(self) -> int:
        return self.tower_config.num_channels

    @property
    def embed_dim(self) -> int:
        return self.tower_config.hidden_size

    @property
    def temporal_patch_size(self) -> int:
        return 1  # a frame at a time

    @property
    def only_side(self) -> int | None:
        """Patches per side of a picture, where the tower takes one size only."""
        if self.tower_config.model_type not in ONE_SIZE:
            return None
        size = self.tower_config.image_size
        return (size if isinstance(size, int) else size[0]) // self.patch_size

    @property
    def smallest_side(self) -> int:
        """Patches per side of the smallest picture."""
        return self.only_side or self.spatial_merge_size

    @property
    def token_pruning_ratio(self) -> float:
        return 0.0

    @property
    def deepstack_visual_indexes(self) -> list[int]:
        return []


def tower_of(given: Any) -> PreTrainedConfig:
    """The vision config in what a user gives: itself, its fields, or the config of a model of images and texts.

    Raises:
        ValueError: no vision config, or of a tower that Arlow cannot read features of.
    """
    if given is None:
        given = AutoConfig.for_model(TOWERS[0])
    elif isinstance(given, dict):
        kind = given.get("model_type")
        if kind in (None, "arlow_tower"):
            raise ValueError(message("tower_config", given, "needs the model_type of a tower", f"one of {TOWERS}"))
        given = AutoConfig.for_model(**given)
    elif isinstance(given, PreTrainedConfig):
        given = copy.deepcopy(given)
    else:
        raise ValueError(message("tower_config", given, "must be a Transformers vision config or its fields"))
    tower = getattr(given, "vision_config", None) or given
    if tower.model_type not in TOWERS:
        raise ValueError(message("tower_config.model_type", tower.model_type, f"expected one of {TOWERS}"))
    patch = tower.patch_size
    if not isinstance(patch, int) and len(set(patch)) != 1:
        raise ValueError(message("tower_config.patch_size", patch, "patches must be square"))
    patch = patch if isinstance(patch, int) else patch[0]
    least = {"patch_size": 1, "num_hidden_layers": 1, "num_channels": 1, "image_size": patch}
    for field, smallest in least.items():
        value = getattr(tower, field, smallest)
        sides = value if isinstance(value, (list, tuple)) else [value]
        if not all(is_int(side) and side >= smallest for side in sides) or not sides:
            raise ValueError(message(f"tower_config.{field}", value, f"must be a whole number, {smallest} or more"))
    if hasattr(tower, "vision_use_head"):  # it pools: nothing here would read it
        tower.vision_use_head = False
    return tower
