"""A LeRobot robot whose motors are a first-order lag: six servos of an SO-101, in degrees and percent, without a bus."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lerobot.robots import Robot, RobotConfig

MOTORS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
LAG_S = 0.1


@RobotConfig.register_subclass("motors_model")
@dataclass
class MotorsConfig(RobotConfig):
    port: str = ""
    disable_torque_on_disconnect: bool = True


class Motors(Robot):
    """``port`` is a file in which every action is noted; ``broken`` there refuses the connection."""

    config_class, name = MotorsConfig, "motors_model"

    def __init__(self, config: MotorsConfig) -> None:
        super().__init__(config)
        self._log, self._id = Path(config.port), config.id
        self._position = dict(zip(MOTORS, (10.0, -80.0, 80.0, 45.0, 0.0, 100.0), strict=True))
        self._goal, self._at, self._on = dict(self._position), time.monotonic(), False

    @property
    def observation_features(self) -> dict[str, Any]:
        return {f"{name}.pos": float for name in MOTORS}

    action_features = observation_features

    @property
    def is_connected(self) -> bool:
        return self._on

    @property
    def is_calibrated(self) -> bool:
        return self._id == "calibrated"

    def connect(self, calibrate: bool = True) -> None:
        if self._log.name == "broken":
            raise ConnectionError("no motor answers")
        self._on = True

    def calibrate(self) -> None:
        raise AssertionError("nobody is there to move the arm")

    def configure(self) -> None: ...

    def get_observation(self) -> dict[str, Any]:
        if (self._log.parent / "unplugged").exists():
            raise ConnectionError("no status packet")
        now = time.monotonic()
        part = min((now - self._at) / LAG_S, 1.0)
        self._position = {name: q + part * (self._goal[name] - q) for name, q in self._position.items()}
        self._at = now
        return {f"{name}.pos": q for name, q in self._position.items()}

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        self._goal = {name: action[f"{name}.pos"] for name in MOTORS}
        with self._log.open("a") as file:
            file.write(json.dumps(self._goal) + "\n")
        return action

    def disconnect(self) -> None:
        self._on = False


os.environ.setdefault("HF_HOME", "/tmp/robolearn_lerobot")  # where LeRobot makes its calibration folders
