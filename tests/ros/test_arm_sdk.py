"""LowCmd for Unitree's arms, against objects of the vendor's layout: unitree_hg itself can be installed on robots only."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import numpy as np
import pytest

from hardware import load_robot
from robolearn.core.errors import RefusedError
from robolearn.deploy.gate_config import Command, GateState
from robolearn_bridge.adapters import joint_outputs
from robolearn_bridge.arm_sdk import ArmSdk, arm_states, checksum, low_command_checksum


@dataclass
class Motor:
    mode: int = 0
    q: float = 0.0
    dq: float = 0.0
    tau: float = 0.0
    kp: float = 0.0
    kd: float = 0.0
    reserve: int = 0


@dataclass
class LowCmd:
    mode_pr: int = 7
    mode_machine: int = 0
    motor_cmd: list[Motor] = field(default_factory=lambda: [Motor() for _ in range(35)])
    reserve: list[int] = field(default_factory=lambda: [0] * 4)
    crc: int = 0


@dataclass
class LowState:
    mode_machine: int = 5
    motor_state: list[Motor] = field(default_factory=lambda: [Motor(q=0.01 * i, dq=-0.1 * i) for i in range(35)])


def by_bits(words: list[int]) -> int:
    """CRC as the vendor writes it down: word by word, highest bit first."""
    crc = 0xFFFFFFFF
    for word in words:
        for bit in range(31, -1, -1):
            out = crc >> 31
            crc = (crc << 1) & 0xFFFFFFFF
            crc ^= 0x04C11DB7 * out
            crc ^= 0x04C11DB7 * (word >> bit & 1)
    return crc


def test_the_checksum_is_the_vendors() -> None:
    words = [0x12345678, 0xDEADBEEF, 0, 0xFFFFFFFF]
    assert checksum(struct.pack("<4I", *words)) == by_bits(words)


def test_the_checksum_of_a_command_covers_its_struct_and_not_itself() -> None:
    message = LowCmd()
    message.motor_cmd[0].mode, message.motor_cmd[34].reserve, message.reserve[3] = 1, 9, 8
    # 4 bytes of modes, 35 motors of 28 bytes, 4 reserved words: 1 + 245 + 4 words.
    words = [7 | 0 << 8, *([1] + [0] * 6), *([0] * 7 * 33), *([0] * 6 + [9]), 0, 0, 0, 8]
    assert len(words) == 250
    assert low_command_checksum(message) == by_bits(words)
    message.crc = 1234
    assert low_command_checksum(message) == by_bits(words)


def test_commands_wait_for_the_mode_and_carry_weight_gains_and_checksum() -> None:
    spec = load_robot("g1")
    arms = ArmSdk(spec, LowCmd)
    command = Command(np.arange(14) / 10, np.full(14, 0.5), np.zeros(14), True, GateState.RUNNING, "", 1, 0.25)
    assert arms.make(command, 0) is None  # a robot refuses a command of another mode
    arms.on_state(LowState())
    message = arms.make(command, 0)
    assert (message.mode_pr, message.mode_machine) == (0, 5)
    left_pitch, right_yaw = message.motor_cmd[15], message.motor_cmd[28]
    assert (left_pitch.q, left_pitch.dq, left_pitch.kp, left_pitch.kd) == (0.0, 0.5, 60.0, 1.5)
    assert right_yaw.q == 1.3
    assert message.motor_cmd[29].q == 0.25
    assert all(m == Motor() for m in message.motor_cmd[:15])
    assert message.crc == low_command_checksum(message) != 0


def test_joint_states_come_by_name_from_the_motors_of_the_arms() -> None:
    spec = load_robot("g1")
    message = arm_states(spec, LowState(), 3_000_000_001)
    assert list(message.name) == list(spec.joints)
    np.testing.assert_allclose(message.position, 0.01 * np.arange(15, 29))
    np.testing.assert_allclose(message.velocity, -0.1 * np.arange(15, 29))
    assert (message.header.stamp.sec, message.header.stamp.nanosec) == (3, 1)


def test_without_the_vendors_messages_the_interface_is_refused_by_name() -> None:
    with pytest.raises(RefusedError, match="unitree_hg"):
        joint_outputs(load_robot("g1"), "arm_sdk")
