"""What every stage can be told: the fields of a recipe, read from YAML and the command line, checked before any work.

A stage's own `Recipe` adds its model and data. Recipes are flat; a field's description is its documentation.
"""

from __future__ import annotations

import copy
import difflib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)
from transformers.training_args import OptimizerNames

from ..errors import cut, message


def _to_path(value: Any) -> Any:
    return Path(value).expanduser() if isinstance(value, str) and value else value


FilePath = Annotated[Path, BeforeValidator(_to_path)]


class CommonRecipe(BaseModel):
    """The fields that all stages share. Paths are relative to where the command runs."""

    model_config = ConfigDict(extra="forbid", strict=True, validate_default=True, allow_inf_nan=False)
    # Of the fields that may change when a run is resumed: those that may not, because this stage's data follow them.
    never_free: ClassVar[frozenset[str]] = frozenset()

    # Output
    output_dir: FilePath = Field(description="directory for checkpoints and, at its top, the trained model")
    resume: Literal["auto", "never"] = Field(
        "auto", description="auto: go on from the newest complete checkpoint in output_dir; never: refuse a used one"
    )
    save_steps: PositiveInt = Field(500, description="a checkpoint every so many steps, and one at the end")
    keep_checkpoints: PositiveInt = Field(2, description="older checkpoints are deleted")

    # Length
    max_steps: PositiveInt | None = Field(None, description="optimiser steps; give this or epochs")
    epochs: PositiveFloat | None = Field(None, description="passes over the data; for data whose length is known")
    batch_size: PositiveInt = Field(8, description="samples per device and forward pass")
    accumulation: PositiveInt = Field(1, description="forward passes per optimiser step")

    # Optimiser
    learning_rate: PositiveFloat = Field(1e-4, description="peak learning rate")
    schedule: Literal["cosine", "linear", "constant", "constant_with_warmup", "warmup_stable_decay"] = Field(
        "cosine", description="how the learning rate goes on after the warm-up"
    )
    schedule_options: dict[str, Any] = Field(
        default_factory=dict, description="options of the schedule, as Transformers' lr_scheduler_kwargs"
    )
    warmup_steps: NonNegativeFloat = Field(0, description="steps of linear warm-up; below 1: a share of all steps")
    weight_decay: NonNegativeFloat = Field(0.01, description="AdamW's weight decay; vectors (norms, biases) have none")
    betas: list[Annotated[float, Field(ge=0, lt=1)]] = Field(
        [0.9, 0.95], min_length=2, max_length=2, description="AdamW's averaging of gradient and squared gradient"
    )
    max_grad_norm: NonNegativeFloat = Field(1.0, description="gradients are clipped to this norm; 0: not at all")
    optimizer: str = Field(
        "adamw_torch_fused",
        description="a name of Transformers' OptimizerNames; or muon: Muon for hidden matrices, AdamW for the rest",
    )
    seed: NonNegativeInt = Field(0, description="of weights, data order, masks and dropout")

    # Arithmetic
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="of the matrix products (autocast); weights and optimiser stay in float32"
    )
    attention: Literal["sdpa", "eager", "flash_attention_2", "flex_attention"] = Field(
        "sdpa", description="attention backend"
    )
    gradient_checkpointing: bool = Field(False, description="less memory: activations are computed again backwards")
    compile: bool = Field(False, description="torch.compile the decoder's layers, or all of a model without")
    device: Literal["auto", "cpu"] = Field("auto", description="cpu: even where there is a GPU")

    # Data loading
    workers: NonNegativeInt = Field(0, description="processes that load data, per device; 0: the training process")
    bad_samples_limit: NonNegativeInt = Field(
        100, description="so many unreadable samples are skipped and listed in bad_samples.jsonl; one more is an error"
    )

    # Reports
    log_steps: PositiveInt = Field(10, description="loss, gradient norm, learning rate, speed and ETA every so often")
    eval_steps: PositiveInt | None = Field(None, description="evaluate every so many steps; default: at checkpoints")
    report_to: list[Literal["tensorboard", "wandb"]] = Field(default_factory=list, description="where logs go, too")

    # Many devices
    deepspeed: FilePath | None = Field(None, description="a DeepSpeed configuration (JSON), such as recipes/deepspeed")
    fsdp: dict[str, Any] | None = Field(
        None, description="FSDP2: options as in Transformers' fsdp_config; {} for the defaults"
    )
    trainer: dict[str, Any] = Field(
        default_factory=dict, description="anything else that transformers.TrainingArguments knows"
    )

    @model_validator(mode="after")
    def _check_length(self) -> CommonRecipe:
        if (self.max_steps is None) == (self.epochs is None):
            raise ValueError("give either max_steps or epochs")
        return self

    @model_validator(mode="after")
    def _check_many_devices(self) -> CommonRecipe:
        if self.deepspeed is not None and self.fsdp is not None:
            raise ValueError("give either deepspeed or fsdp")
        if self.optimizer == "muon" and (self.deepspeed is not None or self.fsdp is not None):
            raise ValueError("optimizer='muon': needs whole matrices, which fsdp and deepspeed split; use adamw_torch")
        return self

    @field_validator("deepspeed")
    @classmethod
    def _check_deepspeed(cls, path: Path | None) -> Path | None:
        if path is not None and not path.is_file():
            raise ValueError("no such file")
        try:
            fields = {} if path is None else json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, OSError, RecursionError) as error:
            raise ValueError(f"not JSON ({error})") from error
        if not isinstance(fields, dict):
            raise ValueError("not a JSON object")
        return path

    @field_validator("fsdp")
    @classmethod
    def _check_fsdp(cls, options: dict[str, Any] | None) -> dict[str, Any] | None:
        named = {name.removeprefix("fsdp_"): value for name, value in (options or {}).items()}
        for name in named.keys() - FSDP_OPTIONS:
            near = difflib.get_close_matches(name, FSDP_OPTIONS, n=1)
            raise ValueError(f"{name}: no such option" + (f"; did you mean {near[0]!r}?" if near else ""))
        if named.get("version", 2) != 2:
            raise ValueError("version: only FSDP2 is known here")
        if named.get("state_dict_type", "FULL_STATE_DICT") != "FULL_STATE_DICT":
            raise ValueError("state_dict_type: only FULL_STATE_DICT writes a model that others can load")
        return options

    @field_validator("optimizer")
    @classmethod
    def _check_optimizer(cls, name: str) -> str:
        known = ["muon", *(str(each.value) for each in OptimizerNames)]
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise ValueError(f"no such optimizer; did you mean {near[0]!r}?" if near else "no such optimizer")
        return name


# What Transformers reads from fsdp_config for FSDP2; anything else it passes over.
FSDP_OPTIONS = {
    "version", "reshard_after_forward", "activation_checkpointing", "cpu_ram_efficient_loading", "cpu_offload",
    "state_dict_type", "auto_wrap_policy", "transformer_layer_cls_to_wrap", "min_num_params",
}  # fmt: skip


AnyRecipe = TypeVar("AnyRecipe", bound=CommonRecipe)


def read_recipe(kind: type[AnyRecipe], config: str | Path | None = None, /, **fields: Any) -> AnyRecipe:
    """The recipe in the YAML file `config`, with `fields` over it; `lora.r` is the field `r` of the field `lora`.

    Raises:
        ValueError: not YAML, an unknown field (with the nearest known one), a wrong value.
        OSError: the file cannot be read.
    """
    values = {} if config is None else _read_yaml(Path(config))
    for path, value in fields.items():
        *outer, name = path.split(".")
        inside = values
        for key in outer:
            if not isinstance(inside.get(key), dict):
                inside[key] = {}
            inside = inside[key]
        inside[name] = copy.deepcopy(value)  # not the caller's: other overrides may go into it
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ValueError(_first_problem(kind, error)) from error


def parse_overrides(words: list[str]) -> dict[str, Any]:
    """`key=value` words of a command line, whose values are YAML, for [`read_recipe`].

    Raises:
        ValueError: a word without `=`, a value that is no YAML, a field of a field that was given a plain value.
    """
    fields: dict[str, Any] = {}
    for word in words:
        path, equals, text = word.partition("=")
        if not equals or not path:
            raise ValueError(message("override", word, "not a setting", "write key=value"))
        for outer, value in fields.items():
            if path.startswith(f"{outer}.") and not isinstance(value, dict):
                raise ValueError(message("override", word, f"{outer} already has a value"))
        fields.pop(path, None)  # the last word counts, also against fields of this field
        fields[path] = _load_yaml(text, name=path)
    return fields


def write_recipe(recipe: CommonRecipe, path: Path) -> None:
    """Every field with its value, as YAML that `read_recipe` reads. A kill leaves the old file or the new one."""
    text = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    fresh = path.with_suffix(".new")
    fresh.write_text(text, encoding="utf-8")
    os.replace(fresh, path)


def describe(kind: type[BaseModel], *, indent: str = "  ") -> str:
    """The fields of a stage, one a line, with default and meaning; fields of fields below them."""
    lines = []
    for name, field in kind.model_fields.items():
        default = "" if field.is_required() else f" = {_as_yaml(field.get_default(call_default_factory=True))}"
        lines.append(f"{indent}{name}{default or ' (required)'}\n{indent}    {field.description}")
        lines += [describe(inner, indent=indent + "    ") for inner in _models(field.annotation)]
    return "\n".join(lines)


def _as_yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("\n").removesuffix("\n...")


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models that a field's type is made of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)


def _names(kind: type[BaseModel]) -> Iterator[str]:
    """The names of all fields and of those inside them."""
    for name, field in kind.model_fields.items():
        yield name
        for inner in _models(field.annotation):
            yield from _names(inner)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(message("config", str(path), "not a text file")) from error
    except OSError as error:
        raise OSError(message("config", str(path), f"cannot be read ({error.strerror})")) from error
    values = _load_yaml(text, name=str(path))
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(message("config", str(path), "not a list of fields", "write one `field: value` a line"))
    return values


class _Loader(yaml.SafeLoader):
    """YAML as people mean it: `1e-4` is a number, and a field given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        twice = next((key for i, key in enumerate(keys) if key in keys[:i]), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"field {twice!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _load_yaml(text: str, *, name: str) -> Any:
    try:
        return _numbers(yaml.load(text, Loader=_Loader))
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date that is none; a list inside itself
        raise ValueError(message("config", name, f"not YAML: {' '.join(str(error).split())}")) from error


def _numbers(value: Any) -> Any:
    """YAML 1.1 reads `1e-4` as text; people who write it mean the number."""
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    if isinstance(value, str) and "e" in value.lower():
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _first_problem(kind: type[CommonRecipe], error: ValidationError) -> str:
    """The first of the errors, in one line that names the field."""
    problem = error.errors()[0]
    field = ".".join(str(part) for part in problem["loc"]) or kind.__module__.rsplit(".", 1)[-1]
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(problem["loc"][-1]), list(_names(kind)), n=1)
        remedy = f"did you mean {near[0]!r}?" if near else "see `arlow train STAGE --help`"
        return message(field, problem["input"], "unknown field", remedy)
    if problem["type"] == "missing":
        return cut(f"{field}: this field is required")
    if not problem["loc"]:  # a sentence of our own, about several fields
        return cut(problem["msg"].removeprefix("Value error, "))
    return message(field, problem["input"], problem["msg"].removeprefix("Value error, "))
