"""Unitree's ``arm_sdk``: LowCmd from the gate's commands, joint states from LowState.

``unitree_hg`` comes with the robot's workspace and is imported only when a robot asks for it. The layout behind the checksum is
that of the vendor's C struct (unitree_sdk2, ``LowCmd_`` of unitree_hg): bytes are padded to words of four, little end first.
"""

from __future__ import annotations

import struct
import zlib
from importlib import import_module
from typing import Any

import numpy as np
from sensor_msgs.msg import JointState

from hardware.g1 import NUM_MOTORS, motor_table
from robolearn.core.errors import RefusedError
from robolearn.core.robot import RobotSpec
from robolearn.deploy.gate_config import Command
from robolearn_bridge.messages import joint_state

_HEAD, _MOTOR, _TAIL = "<2B2x", "B3x5fI", "4I"
_LAYOUT = struct.Struct(_HEAD + _MOTOR * NUM_MOTORS + _TAIL)
_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def vendor_types() -> tuple[type, type]:
    """Return the classes LowCmd and LowState.

    Raises:
        RefusedError: the vendor's messages are not in this environment.
    """
    try:
        messages = import_module("unitree_hg.msg")
    except ImportError as error:
        raise RefusedError(
            "arm_sdk needs the package unitree_hg (LowCmd, LowState) of unitree_ros2; build it in the workspace and source that."
        ) from error
    return messages.LowCmd, messages.LowState


def checksum(words: bytes) -> int:
    """Return CRC-32/MPEG-2 (polynomial 0x04C11DB7, no reflection) of 32-bit words that are stored little end first.

    zlib's CRC is the same polynomial with every bit order reversed.
    """
    big_first = np.frombuffer(words, "<u4").astype(">u4").tobytes()
    reflected = zlib.crc32(big_first.translate(_MIRRORED)) ^ 0xFFFFFFFF
    return int(f"{reflected:032b}"[::-1], 2)


def low_command_checksum(message: Any) -> int:
    """Return the checksum of a LowCmd: of its struct without the last word, which is the checksum itself."""
    motors = [field for m in message.motor_cmd for field in (m.mode, m.q, m.dq, m.tau, m.kp, m.kd, m.reserve)]
    return checksum(_LAYOUT.pack(message.mode_pr, message.mode_machine, *motors, *message.reserve))


class ArmSdk:
    """One robot's arms over ``arm_sdk``. Nothing is sent before the first LowState has told the robot's mode."""

    def __init__(self, spec: RobotSpec, command_type: type) -> None:
        self._spec, self._command_type = spec, command_type
        self._mode: int | None = None

    def on_state(self, message: Any) -> None:
        """Take a LowState: the mode goes into every command, which the robot refuses otherwise."""
        self._mode = int(message.mode_machine)

    def make(self, command: Command, _: int) -> Any | None:
        """Return the LowCmd of a command; None while the robot's mode is unknown."""
        if self._mode is None:
            return None
        n = self._spec.dim
        table = motor_table(command.position[:n], command.velocity[:n], weight=command.weight, spec=self._spec)
        message = self._command_type()
        message.mode_pr, message.mode_machine = 0, self._mode
        for motor, (q, dq, tau, kp, kd) in zip(message.motor_cmd, table.tolist(), strict=True):
            motor.q, motor.dq, motor.tau, motor.kp, motor.kd = q, dq, tau, kp, kd
        message.crc = low_command_checksum(message)
        return message


def arm_states(spec: RobotSpec, message: Any, stamp_ns: int) -> JointState:
    """Return the arms' joint states of a LowState, which carries no stamp of its own: ``stamp_ns`` is when it came."""
    motors = [message.motor_state[i] for i in spec.wire_index]
    return joint_state(spec.joints, np.array([m.q for m in motors]), stamp_ns, np.array([m.dq for m in motors]))
