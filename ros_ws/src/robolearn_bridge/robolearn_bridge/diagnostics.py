"""What nodes tell about themselves on ``/diagnostics``."""

from __future__ import annotations

from collections.abc import Mapping

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.node import Node


def report(node: Node, problem: str, values: Mapping[str, object]) -> DiagnosticArray:
    """Return one status: a warning that says ``problem``, or OK if that is empty."""
    level = DiagnosticStatus.WARN if problem else DiagnosticStatus.OK
    status = DiagnosticStatus(level=level, name=node.get_fully_qualified_name(), message=problem or "ok", hardware_id="robolearn")
    status.values = [KeyValue(key=key, value=_text(value)) for key, value in values.items()]
    message = DiagnosticArray(status=[status])
    message.header.stamp = node.get_clock().now().to_msg()
    return message


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
