"""Recipes: YAML and `key=value` words become checked fields; what is wrong is said in one line that names it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from arlow.training import STAGES, load_stage
from arlow.training.recipe import CommonRecipe, describe, parse_overrides, read_recipe, write_recipe


RECIPES = Path(__file__).parents[1] / "recipes"


class Part(BaseModel):
    """Fields inside a field."""

    rank: int = Field(8, description="of the part")


class SmallRecipe(CommonRecipe):
    """A stage of its own."""

    part: Part | None = Field(None, description="a part")
    parts: list[Annotated[Part, Field()]] = Field(default_factory=list, description="several")
    config: str = Field("none", description="a field that has the name of an argument")


def read(**fields: Any) -> SmallRecipe:
    return read_recipe(SmallRecipe, None, **{"output_dir": "out", "max_steps": 3, **fields})


def test_yaml_as_people_mean_it(tmp_path: Path) -> None:
    """`1e-4` is a number; fields given beside the file win, fields of fields one by one."""
    path = tmp_path / "recipe.yaml"
    path.write_text("output_dir: out\nepochs: 2\nlearning_rate: 1e-4\npart: {rank: 4}\nconfig: a\n")
    recipe = read_recipe(SmallRecipe, path, part={"rank": 2}, config="b", workers=1)
    assert recipe.learning_rate == 1e-4 and recipe.epochs == 2
    assert recipe.part is not None and recipe.part.rank == 2
    assert (recipe.config, recipe.workers, recipe.output_dir) == ("b", 1, Path("out"))


def test_written_recipe_reads_back(tmp_path: Path) -> None:
    """What a run keeps is the same recipe again."""
    recipe = read(part={"rank": 3}, betas=[0.8, 0.9], trainer={"tf32": False}, learning_rate=1e-7)
    write_recipe(recipe, tmp_path / "kept.yaml")
    assert read_recipe(SmallRecipe, tmp_path / "kept.yaml") == recipe
    assert [path.name for path in tmp_path.iterdir()] == ["kept.yaml"]


WRONG_FIELDS = [
    ({"lerning_rate": 1}, "lerning_rate=1: unknown field; did you mean 'learning_rate'?"),
    ({"zzz": 1}, "zzz=1: unknown field; see `arlow train STAGE --help`"),
    ({"part": {"rnak": 1}}, None),  # a plain BaseModel ignores it; strict ones are tested with the stages
    ({"batch_size": 0}, "batch_size=0: Input should be greater than 0"),
    ({"batch_size": "8"}, "batch_size='8': Input should be a valid integer"),
    ({"batch_size": True}, "batch_size=True: Input should be a valid integer"),
    ({"learning_rate": float("inf")}, "learning_rate=inf: Input should be a finite number"),
    ({"learning_rate": float("nan")}, "learning_rate=nan: Input should be a finite number"),
    ({"betas": [0.9, 1.0]}, "betas.1=1.0: Input should be less than 1"),
    ({"betas": [0.9]}, "betas=[0.9]: List should have at least 2 items"),
    ({"precision": "fp8"}, "precision='fp8': Input should be 'fp32', 'bf16' or 'fp16'"),
    ({"output_dir": 3}, "output_dir=3: "),
    ({"output_dir": ""}, "output_dir='': "),
    ({"max_steps": None}, "give either max_steps or epochs"),
    ({"epochs": 1}, "give either max_steps or epochs"),
    ({"deepspeed": "nowhere.json"}, "deepspeed='nowhere.json': no such file"),
    ({"deepspeed": __file__}, "test_recipe.py': not JSON ("),
    ({"optimizer": "adamw_torhc"}, "optimizer='adamw_torhc': no such optimizer; did you mean 'adamw_torch'?"),
    ({"optimizer": "zzz"}, "optimizer='zzz': no such optimizer"),
    ({"report_to": ["mlflow"]}, "report_to.0='mlflow': Input should be 'tensorboard' or 'wandb'"),
    ({"seed": 2**70}, None),
]


@pytest.mark.parametrize(("fields", "expected"), [case for case in WRONG_FIELDS if case[1]])
def test_wrong_field_is_named(fields: dict[str, Any], expected: str) -> None:
    """One short line that names the field and its value."""
    with pytest.raises(ValueError) as caught:
        read(**fields)
    found = str(caught.value)
    assert expected in found and "\n" not in found and len(found) < 300


def test_required_field_is_named() -> None:
    """A recipe without an output."""
    with pytest.raises(ValueError, match=r"^output_dir: this field is required$"):
        read_recipe(SmallRecipe, None, max_steps=1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [1", "not YAML"),
        ("a: 1\na: 2\n", "field 'a' is given twice"),
        ("part:\n  rank: 1\n  rank: 2\n", "field 'rank' is given twice"),
        ("a: &x [*x]", "not YAML"),
        ("a: 2024-13-45", "not YAML"),
        ("a: !!python/object/apply:os.system [ls]", "not YAML"),
        ("- a", "not a list of fields"),
        ("just words", "not a list of fields"),
        ("\tbatch_size: 1", "not YAML"),
        ("a: " + "[" * 5000, "not YAML"),
    ],
)
def test_yaml_typo_is_one_line(tmp_path: Path, text: str, expected: str) -> None:
    """A file that is no YAML, or not fields, is named."""
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ValueError) as caught:
        read_recipe(SmallRecipe, path)
    found = str(caught.value)
    assert "recipe.yaml" in found and expected in found and "\n" not in found and len(found) < 300


def test_unreadable_file_is_named(tmp_path: Path) -> None:
    """A recipe that is missing, a directory, or not text."""
    with pytest.raises(OSError, match=r"config=.*missing\.yaml.*No such file"):
        read_recipe(SmallRecipe, tmp_path / "missing.yaml")
    with pytest.raises(OSError, match="Is a directory"):
        read_recipe(SmallRecipe, tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not a text file"):
        read_recipe(SmallRecipe, tmp_path / "binary")


def test_overrides_are_yaml() -> None:
    """Words of a command line: numbers, lists, nothing, fields of fields, equals signs in values."""
    words = ["a=1e-3", "b.c=[1, x]", "b.d=null", "e=x=y", "f="]
    assert parse_overrides(words) == {"a": 1e-3, "b.c": [1, "x"], "b.d": None, "e": "x=y", "f": None}


def test_overrides_replace_fields_or_fields_of_fields(tmp_path: Path) -> None:
    """`a.b=1` sets one field of a field; `a={b: 1}` is all there is of it then."""
    path = tmp_path / "recipe.yaml"
    path.write_text("output_dir: x\nmax_steps: 1\nschedule_options: {one: 1, two: 2}\n")
    for words, expected in (
        (["schedule_options.two=3"], {"one": 1, "two": 3}),
        (["schedule_options={two: 3}"], {"two": 3}),
        (["schedule_options.a.b=1"], {"one": 1, "two": 2, "a": {"b": 1}}),
        (["schedule_options={two: 3}", "schedule_options.one=4"], {"two": 3, "one": 4}),
    ):
        assert read_recipe(SmallRecipe, path, **parse_overrides(words)).schedule_options == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [(["a"], "write key=value"), (["=1"], "write key=value"), (["a=[1"], "not YAML"), (["a=1", "a.b=2"], "already")],
)
def test_wrong_override_is_named(words: list[str], expected: str) -> None:
    """A word that is no setting."""
    with pytest.raises(ValueError, match=re.escape(expected)) as caught:
        parse_overrides(words)
    assert len(str(caught.value)) < 300


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=100, deadline=None)
@given(fields=st.dictionaries(st.sampled_from([*SmallRecipe.model_fields, "x", "lora.r"]), values, max_size=4))
def test_any_fields_are_read_or_refused(fields: dict[str, Any]) -> None:
    """Whatever a recipe holds, it becomes checked fields or a short `ValueError`."""
    try:
        recipe = read(**fields)
    except ValueError as error:
        assert "\n" not in str(error) and len(str(error)) < 300
    else:
        assert yaml.safe_load(yaml.safe_dump(recipe.model_dump(mode="json")))["output_dir"] == str(recipe.output_dir)


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=40))
def test_any_text_is_an_override_or_refused(text: str) -> None:
    """Whatever stands after `key=`, it is a value or a short `ValueError`."""
    try:
        parse_overrides([f"key={text}"])
    except ValueError as error:
        assert "\n" not in str(error) and len(str(error)) < 300


def test_every_field_is_described() -> None:
    """Help names every field of every stage with its meaning, those inside others too."""
    assert "part = null\n" in describe(SmallRecipe) and "rank = 8\n          of the part" in describe(SmallRecipe)
    for stage in STAGES:
        recipe = load_stage(stage).Recipe
        lines = describe(recipe).splitlines()
        assert all(field.description for field in recipe.model_fields.values()), stage
        assert not [line for line in lines if line.strip() in ("", "None")], stage


@pytest.mark.parametrize("path", sorted(RECIPES.rglob("*.yaml")), ids=lambda path: str(path.relative_to(RECIPES)))
def test_shipped_recipes_are_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every YAML file in recipes/ is a recipe, completed by the command above its fields; they have comments."""
    monkeypatch.chdir(RECIPES.parent)
    text = path.read_text(encoding="utf-8")
    command = re.search(r"^# +arlow train ([\w-]+) \S+\.yaml(.*)$", text, flags=re.MULTILINE)
    stage = command[1] if command else path.stem  # the command above the fields names it, else the file
    read_recipe(load_stage(stage).Recipe, path, **parse_overrides(command[2].split() if command else []))
    assert path.parent != RECIPES or re.search(r"^\w+:.*#", text, flags=re.MULTILINE), "fields have comments"


@pytest.mark.parametrize("path", sorted((RECIPES / "deepspeed").glob("*.json")), ids=lambda path: path.name)
def test_shipped_deepspeed_configurations_are_json(path: Path) -> None:
    """They leave to the recipe what the recipe says: `auto`."""
    values = json.loads(path.read_text(encoding="utf-8"))
    assert values["train_micro_batch_size_per_gpu"] == values["gradient_accumulation_steps"] == "auto"
    assert values["gradient_clipping"] == values["bf16"]["enabled"] == values["fp16"]["enabled"] == "auto"
