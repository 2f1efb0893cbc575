"""A simulated task that speaks like a robot: publishes its sensor streams, takes stamped commands, and can be made faulty."""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from typing import Any

import numpy as np
from std_msgs.msg import String
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from robolearn.core.errors import RefusedError
from robolearn.core.types import Array, Observation
from robolearn.deploy.codecs import stamp_ns
from robolearn.deploy.contracts import contract_from_names
from robolearn_bridge.lifecycle import SafeLifecycleNode, run
from robolearn_bridge.messages import COMMAND_QOS, LATCHED_QOS, SENSOR_QOS, chunk_rows, message_class
from robolearn_bridge.parameters import declare, read, read_choice
from robolearn_bridge.simulated_streams import SimulatedStreams

IDLE_PERIOD_S = 0.02
"""Between two publications of a state that waits for its first command."""


class SimRobotNode(SafeLifecycleNode):
    """One environment behind ROS topics.

    ``lockstep``: a step is made when the command for the published state arrives, so that no delay is added however slow the
    machine is. ``realtime``: a step is made every control period with the newest command that has arrived (``command_delay_ms``
    later), or at rest if it is older than ``command_timeout_s``.
    """

    def __init__(self) -> None:
        super().__init__("sim_robot_node")
        declare(self, "task", "lift", "Task in sim_envs/tasks.", read_only=True)
        declare(self, "fidelity", "", "Fidelity of the task; empty takes its first.", read_only=True)
        declare(self, "sync", "realtime", "'lockstep' or 'realtime'.", read_only=True)
        declare(self, "arm_joints", [""], "Joint names that the robot's driver uses.", read_only=True)
        declare(self, "finger_joints", [""], "Finger joint names that the robot's driver uses.", read_only=True)
        declare(self, "cameras", [""], "Cameras to publish.", read_only=True)
        declare(self, "image_size", 84, "Height and width of the pictures [pixels].", read_only=True)
        declare(self, "episode_seed", 0, "Initial state of the next reset.")
        declare(self, "command_delay_ms", 0.0, "Delay put on every command in real time [ms].")
        declare(self, "command_timeout_s", 0.3, "A command older than this is replaced by rest in real time [s].")
        declare(self, "drop_probability", 0.0, "Part of the sensor messages that is lost.")
        declare(self, "position_noise", 0.0, "Standard deviation added to every flat observation.")
        declare(self, "frozen_stream", "", "Stream that repeats its last message with fresh stamps.")

    def configure(self) -> None:
        """Build the environment and its topics."""
        from sim_envs.task import EnvOptions, make_env

        self._lockstep = read_choice(self, "sync", ("lockstep", "realtime")) == "lockstep"
        cameras = tuple(c for c in read(self, "cameras") if c)
        options = EnvOptions(1, read(self, "fidelity") or None, cameras, read(self, "image_size"))
        self._env = make_env(read(self, "task"), options)
        spaces = self._env.spec.spaces
        self._contract = contract_from_names(
            spaces,
            arm_joints=[joint for joint in read(self, "arm_joints") if joint],
            finger_joints=[joint for joint in read(self, "finger_joints") if joint],
        )
        self._streams = SimulatedStreams(self._contract, spaces)
        self._action_names = spaces.action.names
        # Positions stay where they are when nobody commands; rates rest at 0.
        self._measured = [(key, i) for key, feature in spaces.observation.items() for i in range(len(feature.names))]
        names = [name for feature in spaces.observation.values() for name in feature.names]
        self._position_of = [names.index(name) if name in names else -1 for name in self._action_names]
        self._held = np.array(
            [n.endswith("gripper") or at >= 0 for n, at in zip(self._action_names, self._position_of, strict=True)]
        )
        self._sensors = {
            name: self.create_lifecycle_publisher(message_class(s.kind), s.topic, SENSOR_QOS)
            for name, s in self._contract.streams.items()
        }
        self._episode = self.create_publisher(String, "~/episode", LATCHED_QOS)
        self._subscription = self.create_subscription(
            JointTrajectory, "command", self.guarded(self._on_command, "command"), COMMAND_QOS
        )
        self._reset_service = self.create_service(Trigger, "~/reset", self.guarded(self._on_reset, "reset"))
        self._timer: Any = None
        self._rng = np.random.default_rng(0)
        self._frozen: dict[str, Any] = {}
        self._begin(0)

    def activate(self) -> None:
        """Begin to publish."""
        period = IDLE_PERIOD_S if self._lockstep else 1 / self._env.spec.spaces.control_rate_hz
        self._timer = self.create_timer(period, self.guarded(self._on_timer, "timer"))

    def deactivate(self) -> None:
        """Fall silent."""
        if self._timer is not None:
            self.destroy_timer(self._timer)
            self._timer = None

    def cleanup(self) -> None:
        """Close the simulator."""
        self.deactivate()
        for publisher in self._sensors.values():
            self.destroy_lifecycle_publisher(publisher)
        self.destroy_publisher(self._episode)
        self.destroy_subscription(self._subscription)
        self.destroy_service(self._reset_service)
        self._env.close()

    def stop(self) -> None:
        """Nothing to stop: the simulator ends with the process."""

    def _begin(self, seed: int) -> None:
        self._observation: Observation = self._env.reset([seed])
        self._seed, self._steps, self._ended, self._success = seed, 0, False, False
        self._missed, self._started = 0, False
        self._last = self._at_rest()
        self._stamp = 0
        self._commands: deque[tuple[float, Array]] = deque(maxlen=256)
        self._newest_at = -np.inf
        self._report()

    def _at_rest(self) -> Array:
        """Return the action that moves nothing in the first state: positions as measured, rates 0, grippers open."""
        action = np.where(self._held, -1.0, 0.0)
        for i, at in enumerate(self._position_of):
            if at >= 0:
                key, element = self._measured[at]
                action[i] = self._observation[key][0, element]
        return action

    def _on_reset(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._begin(int(read(self, "episode_seed")))
        response.success, response.message = True, f"seed {self._seed}"
        return response

    def _on_command(self, message: JointTrajectory) -> None:
        rows, _ = chunk_rows(message, self._action_names)
        if not np.isfinite(rows).all():
            raise RefusedError(f"The gate sent a command that is not finite: {rows[0].tolist()}.")
        if self._ended:
            return
        if not self._lockstep:
            self._commands.append((time.monotonic() + read(self, "command_delay_ms") / 1e3, rows[0]))
        elif stamp_ns(message) == self._stamp:
            self._step(rows[0])
            self._publish()

    def _on_timer(self) -> None:
        if self._lockstep:
            # Only a state that nobody has answered yet is repeated; in an episode the command is waited for.
            if not self._started or self._ended:
                self._publish()
            return
        now = time.monotonic()
        while self._commands and self._commands[0][0] <= now:
            self._newest_at, self._last = self._commands.popleft()
            self._started = True
        if self._started and not self._ended:
            fresh = now - self._newest_at <= read(self, "command_timeout_s")
            self._missed += not fresh
            self._step(self._last if fresh else np.where(self._held, self._last, 0.0))
        self._publish()

    def _step(self, action: Array) -> None:
        step = self._env.step(action[None])
        self._started, self._last = True, action
        self._steps += 1
        self._stamp = 0
        self._observation = step.observation
        self._ended, self._success = bool(step.ended[0]), bool(step.success[0])
        if self._ended:
            self._report()

    def _publish(self) -> None:
        # In lockstep a repeated state keeps its stamp, so that the policy decides on it once, however long that takes.
        stamp = self._stamp if self._lockstep and self._stamp else time.time_ns()
        self._stamp = stamp
        observation = {key: value[0] for key, value in self._observation.items()}
        noise = read(self, "position_noise")
        if noise:
            observation = {k: self._noisy(v, noise) for k, v in observation.items()}
        messages = self._streams.messages(observation, stamp)
        frozen = read(self, "frozen_stream")
        for name in sorted(messages, key=lambda n: n == self._contract.clock):
            message = messages[name]
            if name == frozen:
                message = self._frozen.setdefault(name, message)
                message.header.stamp = messages[name].header.stamp
            else:
                self._frozen.pop(name, None)
            if not (self._rng.random() < read(self, "drop_probability")):
                self._sensors[name].publish(message)

    def _noisy(self, value: Array, std: float) -> Array:
        return value if value.dtype == np.uint8 else (value + self._rng.normal(0, std, value.shape)).astype(value.dtype)

    def _report(self) -> None:
        report = {
            "seed": self._seed,
            "steps": self._steps,
            "ended": self._ended,
            "success": self._success,
            "missed_commands": self._missed,
        }
        self._episode.publish(String(data=json.dumps(report)))


def main() -> int:
    """Run the node."""
    return run(SimRobotNode)


if __name__ == "__main__":
    sys.exit(main())
