"""Recipes: a YAML file and ``a.b=c`` overrides, checked against a typed dataclass by OmegaConf.

A field that may hold one of several dataclasses (a policy, say) is declared with :func:`variant`; in the file it is a mapping
whose ``name`` chooses the class and whose other keys are that class's fields. A field ``tuple[D, ...]`` with a dataclass ``D`` is
a list of mappings.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import omegaconf
from omegaconf import DictConfig, ListConfig, OmegaConf

from robolearn.core.errors import RefusedError, nearest


@dataclass(frozen=True)
class Named[C]:
    """A variant field's value: which one, and its configuration."""

    name: str
    config: C


def variant(default: str, choose: Callable[[str], type]) -> Any:
    """Declare a dataclass field whose class is chosen by name; ``choose`` maps the name to it and refuses unknown names."""
    return dataclasses.field(default_factory=lambda: Named(default, choose(default)()), metadata={"choose": choose})


def load[S](schema: type[S], *, file: Path | None = None, overrides: Sequence[str] = ()) -> S:
    """Read ``file``, apply ``overrides`` and return a checked instance of the dataclass ``schema``.

    Args:
        schema: a dataclass whose fields all have defaults; nested dataclasses and :func:`variant` fields are allowed.
        file: YAML file; None starts from the defaults.
        overrides: ``a.b=c`` strings, the last wins; a leading ``--`` is accepted.

    Raises:
        RefusedError: the file cannot be read, a key is unknown (the nearest is named) or a value has the wrong type.
    """
    where = str(file) if file else "overrides"
    node = OmegaConf.create({}) if file is None else _read(file)
    for text in overrides:
        node = OmegaConf.merge(node, _parse_override(text))  # type: ignore[assignment]
    return from_mapping(schema, node, where=where)


def from_mapping[S](schema: type[S], node: object, *, where: str) -> S:
    """Return a checked instance of the dataclass ``schema`` from a plain mapping, such as its ``dataclasses.asdict`` after JSON.

    Args:
        schema: see :func:`load`.
        node: the mapping; missing keys take their defaults.
        where: the mapping's origin, for messages.

    Raises:
        RefusedError: as :func:`load`.
    """
    node = OmegaConf.create(node) if isinstance(node, dict) else node
    try:
        return _build(schema, node, where=where, path="")
    except omegaconf.errors.OmegaConfBaseException as error:
        raise RefusedError(f"{where}: {_first_line(error)}") from error


def to_yaml(config: object) -> str:
    """Return the YAML text of a configuration that :func:`load` made; loading it again gives an equal object."""
    return OmegaConf.to_yaml(OmegaConf.create(_plain(config)))


def dotted(tree: object, path: str = "") -> dict[str, object]:
    """Return dotted name -> leaf of nested dataclasses and mappings, so that a difference can be named."""
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        tree = {field.name: getattr(tree, field.name) for field in dataclasses.fields(tree)}
    if not isinstance(tree, Mapping) or not tree:
        return {path: tree}
    return {name: leaf for key, value in tree.items() for name, leaf in dotted(value, _join(path, key)).items()}


def _read(file: Path) -> DictConfig:
    if not file.is_file():
        siblings = [p.name for p in file.parent.glob("*.yaml")] if file.parent.is_dir() else []
        hint = f" {nearest(file.name, siblings)}" if siblings else ""
        raise RefusedError(f"No recipe at {file}.{hint}")
    try:
        node = OmegaConf.load(file)
    except Exception as error:  # YAML errors come as several unrelated classes
        raise RefusedError(f"{file} is not valid YAML: {_first_line(error)}") from error
    if not isinstance(node, DictConfig):
        raise RefusedError(f"{file} must be a mapping of keys to values.")
    return node


def _parse_override(text: str) -> DictConfig:
    key, equals, _ = text.removeprefix("--").partition("=")
    if not equals or not key.strip():
        raise RefusedError(f"Override {text!r} must look like key=value or a.b=value.")
    try:
        return OmegaConf.from_dotlist([text.removeprefix("--")])
    except Exception as error:
        raise RefusedError(f"Override {text!r} cannot be read: {_first_line(error)}") from error


def _build(schema: type, node: object, *, where: str, path: str) -> Any:
    """Check one mapping against one dataclass, recursing into nested dataclasses and variants."""
    if not isinstance(node, DictConfig):
        raise RefusedError(f"{where}: {path or 'the recipe'} must be a mapping of {schema.__name__}, got {node!r}.")
    fields = {f.name: f for f in dataclasses.fields(schema)}
    for key in node:
        if key not in fields:
            raise RefusedError(f"{where}: unknown key {_join(path, key)!r}. {nearest(str(key), fields)}")
    defaults = schema()
    values: dict[str, Any] = {}
    leaves = []
    for name, field in fields.items():
        value = getattr(defaults, name)
        if name not in node:
            values[name] = value
        elif "choose" in field.metadata:
            values[name] = _build_variant(field, value, node[name], where=where, path=_join(path, name))
        elif dataclasses.is_dataclass(value):
            values[name] = _build(type(value), node[name], where=where, path=_join(path, name))
        elif (element := _element(schema, name)) is not None:
            values[name] = _build_each(element, node[name], where=where, path=_join(path, name))
        else:
            leaves.append(name)
    values |= _convert_leaves(schema, {name: node[name] for name in leaves}, where=where, path=path)
    try:
        return schema(**values)
    except RefusedError as error:
        raise RefusedError(f"{where}: {path or schema.__name__}: {error}") from error


def _element(schema: type, name: str) -> type | None:
    """Return D where the field is annotated ``tuple[D, ...]`` with a dataclass D, else None."""
    annotation = _annotation(schema, name)
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is not tuple or arguments[1:] != (...,) or not dataclasses.is_dataclass(arguments[0]):
        return None
    return cast(type, arguments[0])


def _build_each(schema: type, node: object, *, where: str, path: str) -> tuple[Any, ...]:
    if not isinstance(node, ListConfig):
        raise RefusedError(f"{where}: {path} must be a list of {schema.__name__}, got {node!r}.")
    return tuple(_build(schema, entry, where=where, path=f"{path}[{i}]") for i, entry in enumerate(node))


def _build_variant(field: dataclasses.Field, default: Named, node: object, *, where: str, path: str) -> Named:
    if not isinstance(node, DictConfig):
        raise RefusedError(f"{where}: {path} must be a mapping with a 'name', got {node!r}.")
    name = str(node.get("name", default.name))
    chosen = field.metadata["choose"](name)
    rest = OmegaConf.create({k: v for k, v in node.items() if k != "name"})
    return Named(name, _build(chosen, rest, where=where, path=path))


def _convert_leaves(schema: type, node: dict[str, Any], *, where: str, path: str) -> dict[str, Any]:
    """Let OmegaConf convert and check plain values against the annotations of ``schema``."""
    fields = {field.name: field for field in dataclasses.fields(schema)}
    values = {}
    for name, value in node.items():
        wanted = _annotation(schema, name)
        # One field at a time: a structure of all of them would be built, and copied, anew for every value.
        leaf_schema = dataclasses.make_dataclass(schema.__name__, [(name, wanted, _field_default(fields[name]))])
        try:
            merged = OmegaConf.merge(OmegaConf.structured(leaf_schema), {name: value})
            values[name] = getattr(OmegaConf.to_object(merged), name)
        except omegaconf.errors.OmegaConfBaseException as error:
            message = f"{where}: {_join(path, name)}={value!r} does not fit {getattr(wanted, '__name__', None) or wanted}"
            raise RefusedError(f"{message}: {_first_line(error)}") from error
    return values


def _annotation(schema: type, name: str) -> Any:
    return _annotations(schema)[name]


@cache
def _annotations(schema: type) -> dict[str, Any]:
    return typing.get_type_hints(schema)


def _field_default(field: dataclasses.Field) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=field.default_factory)
    return dataclasses.field(default=field.default)


def _plain(value: object) -> Any:
    if isinstance(value, Named):
        return {"name": value.name} | _plain(value.config)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return str(value) if isinstance(value, Path) else value


def _join(path: str, name: object) -> str:
    return f"{path}.{name}" if path else str(name)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
