"""Declared parameters: typed, described, and read with the parameter's name in every refusal."""

from __future__ import annotations

from typing import Any

from rcl_interfaces.msg import ParameterDescriptor
from rclpy.exceptions import InvalidParameterTypeException
from rclpy.node import Node

from robolearn.core.errors import RefusedError, nearest


def declare(node: Node, name: str, default: Any, description: str, *, read_only: bool = False) -> None:
    """Declare a parameter of the default's type.

    Raises:
        RefusedError: the value that was given is of another type.
    """
    try:
        node.declare_parameter(name, default, ParameterDescriptor(description=description, read_only=read_only))
    except InvalidParameterTypeException as error:
        raise RefusedError(f"Parameter {name} of {node.get_name()}: {error}") from error


def require_declared(node: Node) -> None:
    """Refuse values that were given for parameters which the node does not have: rclpy ignores them.

    Raises:
        RefusedError: names the first, and the nearest that there is.
    """
    declared = set(node.list_parameters([], 0).names)
    for name in node._parameter_overrides:  # there is no public list of what was given
        if name not in declared:
            raise RefusedError(f"{node.get_name()} has no parameter {name!r}. {nearest(name, declared)}")


def read(node: Node, name: str) -> Any:
    """Return a parameter's value."""
    return node.get_parameter(name).value


def read_choice(node: Node, name: str, allowed: tuple[str, ...]) -> str:
    """Return a parameter that must be one of ``allowed``.

    Raises:
        RefusedError: it is not.
    """
    value = read(node, name)
    if value not in allowed:
        raise RefusedError(f"Parameter {name}={value!r}. {nearest(str(value), allowed)}")
    return str(value)
