from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from robolearn.core.config import Named, load, to_yaml, variant
from robolearn.core.errors import RefusedError, nearest


@dataclass(frozen=True)
class Square:
    side_m: float = 1.0


@dataclass(frozen=True)
class Circle:
    radius_m: float = 1.0
    colour: Literal["red", "blue"] = "red"


SHAPES = {"square": Square, "circle": Circle}


def choose(name: str) -> type:
    if name not in SHAPES:
        raise RefusedError(f"Unknown shape {name!r}. {nearest(name, SHAPES)}")
    return SHAPES[name]


@dataclass(frozen=True)
class Inner:
    dims: tuple[int, ...] = (1, 2)
    limit: float | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 0:
            raise RefusedError(f"limit={self.limit} must not be negative.")


@dataclass(frozen=True)
class Recipe:
    title: str = "x"
    inner: Inner = field(default_factory=Inner)
    shape: Any = variant("square", choose)


@dataclass(frozen=True)
class Drawing:
    rows: tuple[Inner, ...] = ()
    marks: tuple[int, ...] | None = None


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "r.yaml"
    file.write_text(text)
    return file


def test_file_then_overrides_and_the_last_wins(tmp_path: Path) -> None:
    file = write(tmp_path, "title: a\ninner: {dims: [3, 4]}\nshape: {name: circle, radius_m: 2}\n")
    recipe = load(Recipe, file=file, overrides=["inner.limit=1e-4", "--shape.radius_m=3", "shape.radius_m=4"])
    assert recipe == Recipe("a", Inner((3, 4), 1e-4), Named("circle", Circle(4.0)))


def test_written_recipe_loads_to_an_equal_one(tmp_path: Path) -> None:
    recipe = load(Recipe, overrides=["shape.name=circle", "shape.colour=blue", "inner.dims=[7]"])
    assert load(Recipe, file=write(tmp_path, to_yaml(recipe))) == recipe


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("inner.dimz=[1]", r"unknown key 'inner.dimz'.*Did you mean 'dims'"),
        ("shape.name=cirle", r"Unknown shape 'cirle'.*Did you mean 'circle'"),
        ("shape.radius_m=1", r"unknown key 'shape.radius_m'"),  # a circle's field, but the shape is a square
        ("inner.limit=abc", r"inner.limit='abc' does not fit"),
        ("inner.limit=-1", r"limit=-1.0 must not be negative"),
        ("inner=3", r"inner must be a mapping"),
        ("title", r"must look like key=value"),
    ],
)
def test_bad_overrides_are_refused_by_name(override: str, says: str) -> None:
    with pytest.raises(RefusedError, match=says):
        load(Recipe, overrides=[override])


def test_a_missing_recipe_names_its_neighbours(tmp_path: Path) -> None:
    write(tmp_path, "title: a\n")
    with pytest.raises(RefusedError, match=r"No recipe at .*Did you mean 'r.yaml'"):
        load(Recipe, file=tmp_path / "q.yaml")


def test_broken_yaml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="not valid YAML"):
        load(Recipe, file=write(tmp_path, "a: [1,\n"))


def test_a_list_of_dataclasses_is_checked_entry_by_entry(tmp_path: Path) -> None:
    file = write(tmp_path, "rows: [{dims: [3]}, {limit: 2}]\nmarks: [1]\n")
    drawing = load(Drawing, file=file)
    assert drawing == Drawing((Inner((3,)), Inner(limit=2.0)), (1,))
    assert load(Drawing, file=write(tmp_path, to_yaml(drawing))) == drawing
    for text, says in (
        ("rows: [{dims: [3]}, {limt: 2}]", r"unknown key 'rows\[1\].limt'.*Did you mean 'limit'"),
        ("rows: [{limit: -1}]", r"rows\[0\]: limit=-1.0 must not be negative"),
        ("rows: {limit: 1}", "rows must be a list of Inner"),
        ("rows: [3]", r"rows\[0\] must be a mapping of Inner"),
    ):
        with pytest.raises(RefusedError, match=says):
            load(Drawing, file=write(tmp_path, text))
