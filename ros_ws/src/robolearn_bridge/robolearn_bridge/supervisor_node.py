"""Brings the nodes up in order, keeps the e-stop's heartbeat, runs episodes on the simulated robot and writes what happened."""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters
from rclpy.node import Node
from std_msgs.msg import Bool, String
from std_srvs.srv import SetBool, Trigger

from robolearn.core.errors import RefusedError
from robolearn_bridge.lifecycle import run_plain
from robolearn_bridge.messages import COMMAND_QOS, LATCHED_QOS
from robolearn_bridge.parameters import declare, read

HEARTBEAT_S = 0.05
NODES = ("sim_robot_node", "gate_node", "policy_node")
"""In the order in which they are brought up: a robot, its gate, and who asks it to move."""


class SupervisorNode(Node):
    """A client of the other nodes; it owns no robot."""

    def __init__(self) -> None:
        super().__init__("supervisor_node")
        declare(self, "seeds", [0], "Seeds of the episodes.")
        declare(self, "episode_timeout_s", 120.0, "Longest episode [s].")
        declare(self, "results", "", "JSON file of the episodes, rewritten after each.")
        declare(self, "start_timeout_s", 120.0, "Longest wait for the other nodes [s].")
        self._clients_made: dict[str, Any] = {}
        self._changed = threading.Condition()
        self._episode: dict[str, Any] = {}
        self._gate: dict[str, Any] = {}
        self.create_subscription(String, "sim_robot_node/episode", self._on_episode, LATCHED_QOS)
        self.create_subscription(String, "gate_node/state", self._on_gate, LATCHED_QOS)
        self._heart = self.create_publisher(Bool, "e_stop", COMMAND_QOS)
        self.create_timer(HEARTBEAT_S, lambda: self._heart.publish(Bool(data=False)))

    def work(self) -> None:
        """Bring up, run every episode, shut down.

        Raises:
            RefusedError: a node did not come up or refused a request.
        """
        for name in NODES:
            for transition in (Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE):
                self._transition(name, transition)
        self._call("gate_node/arm", SetBool, SetBool.Request(data=True))
        episodes = []
        for seed in read(self, "seeds"):
            episodes.append(self._run_episode(int(seed)))
            self.get_logger().info(json.dumps(episodes[-1]))
            if read(self, "results"):
                path = Path(read(self, "results"))
                path.with_suffix(".tmp").write_text(json.dumps(episodes, indent=1), encoding="utf-8")
                path.with_suffix(".tmp").replace(path)
        for name in reversed(NODES):
            self._transition(name, Transition.TRANSITION_DEACTIVATE)

    def _run_episode(self, seed: int) -> dict[str, Any]:
        self._call("policy_node/stop", Trigger, Trigger.Request())
        self._call("gate_node/stop", Trigger, Trigger.Request())
        for name in ("sim_robot_node", "policy_node"):
            self._set_parameter(name, "episode_seed", seed)
        self._wait(lambda: self._gate.get("state") == "latched", 10.0, "the gate to latch")
        self._call("sim_robot_node/reset", Trigger, Trigger.Request())
        self._call("policy_node/reset", Trigger, Trigger.Request())
        self._insist("gate_node/reset", 10.0)
        self._wait(lambda: self._episode.get("seed") == seed and not self._episode["ended"], 5.0, "the simulator's reset")
        self._wait(lambda: self._gate.get("state") == "ready", 5.0, "the gate to be ready")
        begin = time.monotonic()
        self._call("policy_node/start", Trigger, Trigger.Request())
        try:
            self._wait(
                lambda: self._episode["ended"] or self._gate["state"] == "latched",
                read(self, "episode_timeout_s"),
                "the episode's end",
            )
            reason = self._gate["reason"] if not self._episode["ended"] else ""
        except RefusedError as error:
            reason = str(error)
        return dict(self._episode) | {"stopped_because": reason, "wall_s": time.monotonic() - begin}

    def _on_episode(self, message: String) -> None:
        with self._changed:
            self._episode = json.loads(message.data)
            self._changed.notify_all()

    def _on_gate(self, message: String) -> None:
        with self._changed:
            self._gate = json.loads(message.data)
            self._changed.notify_all()

    def _wait(self, condition: Any, timeout_s: float, what: str) -> None:
        with self._changed:
            if not self._changed.wait_for(condition, timeout_s):
                raise RefusedError(f"Waited {timeout_s} s for {what}; gate {self._gate}, episode {self._episode}.")

    def _insist(self, service: str, timeout_s: float) -> None:
        """Call a Trigger until it is granted: what stands in the way may pass by itself."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                self._call(service, Trigger, Trigger.Request())
                return
            except RefusedError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.05)

    def _transition(self, node: str, transition: int) -> None:
        request = ChangeState.Request(transition=Transition(id=transition))
        self._call(f"{node}/change_state", ChangeState, request, timeout_s=read(self, "start_timeout_s"))

    def _set_parameter(self, node: str, name: str, value: int) -> None:
        parameter = Parameter(name=name, value=ParameterValue(type=ParameterType.PARAMETER_INTEGER, integer_value=value))
        response = self._send(f"{node}/set_parameters", SetParameters, SetParameters.Request(parameters=[parameter]), 10.0)
        if not response.results[0].successful:
            raise RefusedError(f"{node} refused {name}={value}: {response.results[0].reason}")

    def _call(self, service: str, kind: type, request: Any, *, timeout_s: float = 10.0) -> None:
        response = self._send(service, kind, request, timeout_s)
        if not response.success:
            raise RefusedError(f"{service} was refused: {getattr(response, 'message', '') or 'see the log of its node'}")

    def _send(self, service: str, kind: type, request: Any, timeout_s: float) -> Any:
        client = self._clients_made.get(service)
        if client is None:
            client = self._clients_made[service] = self.create_client(kind, service)
        if not client.wait_for_service(timeout_sec=timeout_s):
            raise RefusedError(f"No service {service} within {timeout_s} s: did its node start?")
        answered = threading.Event()
        future = client.call_async(request)
        future.add_done_callback(lambda _: answered.set())
        if not answered.wait(timeout_s):
            raise RefusedError(f"{service} did not answer within {timeout_s} s.")
        return future.result()


def main() -> int:
    """Run the node."""
    return run_plain(SupervisorNode)


if __name__ == "__main__":
    sys.exit(main())
