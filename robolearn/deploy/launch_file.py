"""A strict reader of the part of ROS 2's XML launch format that this project uses, for machines without ``ros2 launch``.

Read are ``launch``, ``arg``, ``group``, ``include`` (in groups), ``push-ros-namespace``, ``set_env``, ``node``, ``param``,
``remap`` and ``env``; the substitutions ``$(var x)``, ``$(env X)``, ``$(env X default)``, ``$(find-pkg-share p)`` and
``$(dirname)``; and the conditions ``if`` and ``unless``. Everything else is refused, so that a file which starts here means the
same to ``ros2 launch``.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from robolearn.core.errors import RefusedError, nearest

_SUBSTITUTION = re.compile(r"\$\(([^()]*)\)")
_ATTRIBUTES: Mapping[str, tuple[str, ...]] = {
    "launch": ("version",),
    "arg": ("name", "default", "description"),
    "group": ("if", "unless"),
    "include": ("file", "if", "unless"),
    "push-ros-namespace": ("namespace",),
    "set_env": ("name", "value"),
    "node": ("pkg", "exec", "name", "namespace", "output", "if", "unless", "respawn"),
    "param": ("name", "value", "type", "from"),
    "remap": ("from", "to"),
    "env": ("name", "value"),
}
_TYPES: Mapping[str, type] = {"str": str, "int": int, "float": float, "bool": bool}


@dataclass(frozen=True)
class NodeProcess:
    """One process to start."""

    package: str
    executable: str
    name: str
    namespace: str
    """Absolute; ``/`` where none was pushed."""
    parameters: tuple[Mapping[str, Any] | Path, ...] = ()
    """Values and files in their order; later ones win."""
    remaps: tuple[tuple[str, str], ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    def ros_arguments(self, scratch: Path) -> list[str]:
        """Return what follows the executable on its command line; values are written to files in the folder ``scratch``."""
        arguments = ["--ros-args", "-r", f"__node:={self.name}", "-r", f"__ns:={self.namespace}"]
        for source, target in self.remaps:
            arguments += ["-r", f"{source}:={target}"]
        for i, values in enumerate(self.parameters):
            if isinstance(values, Path):
                file = values
            else:
                file = scratch / f"{self.namespace.strip('/').replace('/', '_')}_{self.name}_{i}.yaml"
                file.write_text(yaml.safe_dump({"/**": {"ros__parameters": dict(values)}}), encoding="utf-8")
            arguments += ["--params-file", str(file)]
        return arguments


@dataclass
class _Scope:
    """What holds at one place of the file."""

    file: Path
    find_package: Callable[[str], Path]
    environ: Mapping[str, str]
    given: Mapping[str, str]
    variables: dict[str, str]
    namespace: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    includes: tuple[Path, ...] = ()
    """Files that are being read, from the outermost one."""

    def inner(self) -> _Scope:
        return replace(self, variables=dict(self.variables), environment=dict(self.environment))


def read_launch_file(
    file: Path, arguments: Mapping[str, str], *, find_package: Callable[[str], Path], environ: Mapping[str, str]
) -> list[NodeProcess]:
    """Return the processes that ``file`` starts.

    Args:
        file: an XML launch file.
        arguments: ``name:=value`` pairs; each must be declared by an ``arg``.
        find_package: package -> its share folder.
        environ: for ``$(env X)``.

    Raises:
        RefusedError: malformed XML, an element, attribute or substitution outside the subset, an argument that is missing or
            not declared, or a parameter of the wrong type; the message names file and element.
    """
    return _read_file(arguments, _Scope(file, find_package, environ, arguments, {}))


def _read_file(arguments: Iterable[str], scope: _Scope) -> list[NodeProcess]:
    """Return what ``scope.file`` starts; each of ``arguments`` must be declared in it."""
    file = scope.file
    if file.resolve() in scope.includes:
        raise RefusedError(f"{file} includes itself, by way of {' -> '.join(map(str, scope.includes))}.")
    scope.includes = (*scope.includes, file.resolve())
    try:
        root = ElementTree.fromstring(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise RefusedError(f"No launch file at {file}: {error.strerror}.") from error
    except ElementTree.ParseError as error:
        raise RefusedError(f"{file} is not well-formed XML: {error}.") from error
    if root.tag != "launch":
        raise RefusedError(f"{file}: the outer element must be <launch>, got <{root.tag}>.")
    processes = _read_block(root, scope)
    unknown = [name for name in arguments if name not in scope.variables]
    if unknown:
        raise RefusedError(f"{file} declares no argument {unknown[0]!r}. {nearest(unknown[0], scope.variables)}")
    return processes


def _read_block(element: ElementTree.Element, scope: _Scope) -> list[NodeProcess]:
    _check(element, scope)
    processes: list[NodeProcess] = []
    for child in element:
        _check(child, scope)
        if not _enabled(child, scope):
            continue
        match child.tag:
            case "arg":
                _declare(child, scope)
            case "group":
                processes += _read_block(child, scope.inner())
            case "push-ros-namespace":
                scope.namespace = _join(scope.namespace, _attribute(child, "namespace", scope))
            case "set_env":
                scope.environment[_attribute(child, "name", scope)] = _attribute(child, "value", scope)
            case "include":
                if element.tag != "group":  # there, launch would let the file's arguments and environment out to its neighbours
                    raise RefusedError(f"{scope.file}: <include> may stand in a <group> only, not in <{element.tag}>.")
                processes += _include(child, scope)
            case "node":
                processes.append(_read_node(child, scope))
            case _:
                raise RefusedError(f"{scope.file}: <{child.tag}> may not stand in <{element.tag}>.")
    return processes


def _include(element: ElementTree.Element, scope: _Scope) -> list[NodeProcess]:
    """Return what another file starts: its arguments are those stated, else what has the same name here, else its defaults."""
    stated: dict[str, str] = {}
    for child in element:
        if child.tag != "arg" or set(child.attrib) != {"name", "value"}:
            raise RefusedError(f'{scope.file}: <include> holds <arg name="" value=""/> only, got <{child.tag}> {child.attrib}.')
        stated[_attribute(child, "name", scope)] = _attribute(child, "value", scope)
    file = Path(_attribute(element, "file", scope))
    return _read_file(stated, replace(scope.inner(), file=file, given=scope.variables | stated, variables={}))


def _declare(element: ElementTree.Element, scope: _Scope) -> None:
    name = _attribute(element, "name", scope)
    if name in scope.given:
        scope.variables[name] = scope.given[name]
    elif "default" in element.attrib:
        scope.variables[name] = _attribute(element, "default", scope)
    else:
        raise RefusedError(f"{scope.file} needs the argument {name!r}: {element.get('description', 'no description')}")


def _read_node(element: ElementTree.Element, scope: _Scope) -> NodeProcess:
    executable = _attribute(element, "exec", scope)
    parameters: list[Mapping[str, Any] | Path] = []
    remaps = []
    environment = dict(scope.environment)
    for child in element:
        _check(child, scope)
        if child.tag == "param" and "from" in child.attrib:
            path = Path(_attribute(child, "from", scope))
            if not path.is_file():
                raise RefusedError(f"{scope.file}: no parameter file at {path}.")
            parameters.append(path)
        elif child.tag == "param":
            parameters.append({_attribute(child, "name", scope): _value(child, scope)})
        elif child.tag == "remap":
            remaps.append((_attribute(child, "from", scope), _attribute(child, "to", scope)))
        elif child.tag == "env":
            environment[_attribute(child, "name", scope)] = _attribute(child, "value", scope)
        else:
            raise RefusedError(f"{scope.file}: <{child.tag}> may not stand in <node>.")
    namespace = _join(scope.namespace, _text(element.get("namespace", ""), scope))
    return NodeProcess(
        package=_attribute(element, "pkg", scope),
        executable=executable,
        name=_text(element.get("name", executable), scope),
        namespace=namespace or "/",
        parameters=tuple(parameters),
        remaps=tuple(remaps),
        environment=environment,
    )


def _value(element: ElementTree.Element, scope: _Scope) -> Any:
    text, wanted = _attribute(element, "value", scope), element.get("type")
    if wanted == "str":
        return text
    if wanted is not None and wanted not in _TYPES:
        raise RefusedError(f"{scope.file}: param type {wanted!r}. {nearest(wanted, _TYPES)}")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RefusedError(
            f"{scope.file}: the value {text!r} of param {element.get('name')!r} cannot be read: {error}"
        ) from error
    if wanted == "float" and type(value) is int:
        value = float(value)
    if wanted is not None and type(value) is not _TYPES[wanted]:
        raise RefusedError(f"{scope.file}: param {element.get('name')!r} must be {wanted}, got {text!r}.")
    return value


def _check(element: ElementTree.Element, scope: _Scope) -> None:
    if element.tag not in _ATTRIBUTES:
        raise RefusedError(f"{scope.file}: <{element.tag}> is not read here. {nearest(str(element.tag), _ATTRIBUTES)}")
    for name in element.attrib:
        if name not in _ATTRIBUTES[element.tag]:
            raise RefusedError(f"{scope.file}: <{element.tag}> has no {name!r}. {nearest(name, _ATTRIBUTES[element.tag])}")
    if (element.text or "").strip() or (element.tail or "").strip():
        raise RefusedError(f"{scope.file}: <{element.tag}> holds or is followed by bare text.")


def _enabled(element: ElementTree.Element, scope: _Scope) -> bool:
    for attribute, meaning in (("if", True), ("unless", False)):
        if attribute in element.attrib:
            text = _text(element.attrib[attribute], scope).lower()
            if text not in ("true", "1", "false", "0"):
                raise RefusedError(f"{scope.file}: {attribute}={text!r} of <{element.tag}> must be true, 1, false or 0.")
            if (text in ("true", "1")) != meaning:
                return False
    return True


def _attribute(element: ElementTree.Element, name: str, scope: _Scope) -> str:
    if name not in element.attrib:
        raise RefusedError(f"{scope.file}: <{element.tag}> needs {name!r}; it has {sorted(element.attrib)}.")
    return _text(element.attrib[name], scope)


def _text(text: str, scope: _Scope) -> str:
    def replace(match: re.Match[str]) -> str:
        kind, *words = match[1].split()
        if kind == "var" and len(words) == 1:
            if words[0] not in scope.variables:
                raise RefusedError(f"{scope.file}: $({match[1]}) names no argument. {nearest(words[0], scope.variables)}")
            return scope.variables[words[0]]
        if kind == "env" and len(words) in (1, 2):
            value = scope.environ.get(words[0], words[1] if len(words) == 2 else None)
            if value is None:
                raise RefusedError(f"{scope.file}: the environment has no {words[0]!r} and $({match[1]}) gives no default.")
            return value
        if kind == "find-pkg-share" and len(words) == 1:
            return str(scope.find_package(words[0]))
        if kind == "dirname" and not words:
            return str(scope.file.resolve().parent)
        raise RefusedError(f"{scope.file}: the substitution $({match[1]}) is not read here.")

    done = _SUBSTITUTION.sub(replace, text)
    if "$(" in done:
        raise RefusedError(f"{scope.file}: {text!r} holds a substitution inside another one.")
    return done


def _join(outer: str, inner: str) -> str:
    if inner.startswith("/"):
        return inner.rstrip("/")
    return f"{outer}/{inner}".rstrip("/") if inner else outer
