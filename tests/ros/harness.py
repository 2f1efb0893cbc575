"""Real nodes in real processes, and a client node in the test's own process that plays the robot, the policy and the operator."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool, Float64MultiArray, String
from std_srvs.srv import SetBool, Trigger
from trajectory_msgs.msg import JointTrajectory

from hardware import load_robot
from robolearn.deploy.launch_file import NodeProcess
from robolearn.deploy.launcher import Launched, WorkspacePackages, reserve_domain
from robolearn_bridge.messages import COMMAND_QOS, LATCHED_QOS, RECORD_QOS, SENSOR_QOS, chunk_message, joint_state

WORKSPACE = Path(__file__).resolve().parents[2] / "ros_ws" / "src"
LOOPBACK = {
    "FASTRTPS_DEFAULT_PROFILES_FILE": str(WORKSPACE / "robolearn_bringup" / "config" / "transport_loopback.xml"),
    "ROS_AUTOMATIC_DISCOVERY_RANGE": "SUBNET",
}
"""What the launch files set: UDP on the loopback address, no shared memory."""
CONFIGURE, ACTIVATE = Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE
DEACTIVATE, CLEANUP = Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_CLEANUP
_RESERVED = []
PATIENCE_S = 2.0
"""Silence after which the gates under test stop [s]. How soon they stop is proved on hand-set clocks (tests/unit/test_gate.py)
and measured by ``robolearn bench ros``; here a process that waits its turn on a busy machine must not look dead."""
WATCHED = ("policy_timeout_s", "chunk_timeout_s", "estop_timeout_s", "state_timeout_s", "max_command_age_s", "max_tick_gap_s")
PATIENT = dict.fromkeys(WATCHED, PATIENCE_S) | {"max_tracking_error": 0.19}
"""Joint states that wait their turn let a command run ahead of them as well."""


def fresh_domain() -> str:
    """Return a domain that no other test, worker or deployment of this machine uses."""
    domain, reservation = reserve_domain()
    _RESERVED.append(reservation)  # held until this process ends
    return str(domain)


def environment(domain: str, **changes: str) -> dict[str, str]:
    """Return the environment of the nodes."""
    own = {k: v for k, v in os.environ.items() if k != "RMW_IMPLEMENTATION"}
    return own | LOOPBACK | {"ROS_DOMAIN_ID": domain, "OMP_NUM_THREADS": "1"} | changes


@contextmanager
def nodes(folder: Path, *processes: NodeProcess, domain: str) -> Iterator[Launched]:
    """Start nodes; end them with the block."""
    with Launched(processes, WorkspacePackages(WORKSPACE), log_folder=folder, environ=environment(domain)) as launched:
        yield launched


def node(executable: str, *, name: str = "", **parameters: Any) -> NodeProcess:
    """Return a node of the bridge in the namespace /robot."""
    return NodeProcess("robolearn_bridge", executable, name or executable, "/robot", (parameters,) if parameters else ())


class Client:
    """A node in this process with its own context and spinning thread."""

    def __init__(self, domain: str) -> None:
        self._context = Context()
        os.environ |= LOOPBACK
        rclpy.init(context=self._context, domain_id=int(domain))
        self.node = Node("client", namespace="/robot", context=self._context)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self._thread = threading.Thread(target=self._spin)
        self._thread.start()
        self._timers: list[tuple[threading.Event, threading.Thread]] = []
        self._clients: dict[str, Any] = {}
        self.diagnostics: dict[str, dict[str, str]] = {}
        """Node -> what it said of itself last; every value is text."""
        self.node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, RECORD_QOS)

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            self.diagnostics[status.name] = {v.key: v.value for v in status.values} | {"message": status.message}

    def says(self, node: str, name: str) -> str:
        """Return a value of a node's newest diagnostics, which come once a second; empty if there is none."""
        return self.diagnostics.get(f"/robot/{node}", {}).get(name, "")

    def count(self, node: str, name: str) -> int:
        """Return a counter of a node's newest diagnostics."""
        return int(self.says(node, name) or 0)

    def _spin(self) -> None:
        with contextlib.suppress(rclpy.executors.ExternalShutdownException):
            self._executor.spin()

    def close(self) -> None:
        for stop, thread in self._timers:
            stop.set()
            thread.join()
        self._executor.shutdown()
        self._thread.join()
        self.node.destroy_node()
        rclpy.shutdown(context=self._context)

    def every(self, period_s: float, action: Callable[[], None]) -> Callable[[], None]:
        """Call ``action`` every period; the returned function ends that."""
        stop = threading.Event()

        def loop() -> None:
            while not stop.wait(period_s):
                action()

        thread = threading.Thread(target=loop, daemon=True)
        thread.start()
        self._timers.append((stop, thread))

        def end() -> None:
            stop.set()
            thread.join()

        return end

    def call(self, service: str, kind: type, request: Any, timeout_s: float = 150.0) -> Any:
        if service not in self._clients:
            self._clients[service] = self.node.create_client(kind, service)
            assert self._clients[service].wait_for_service(timeout_sec=timeout_s), f"no service {service}"
            # The server discovers this client's reader for itself: a reply sent 0.1 s before it has is lost (rmw_fastrtps).
            # How long that takes depends on how busy the machine is.
            time.sleep(0.25 * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1)))
        client = self._clients[service]
        assert client.wait_for_service(timeout_sec=timeout_s), f"no service {service}"
        done = threading.Event()
        future = client.call_async(request)
        future.add_done_callback(lambda _: done.set())
        assert done.wait(timeout_s), f"{service} did not answer"
        return future.result()

    def transition(self, name: str, *transitions: int) -> bool:
        """Ask for lifecycle transitions; return whether the last one succeeded."""
        ok = False
        for number in transitions:
            ok = self.call(f"{name}/change_state", ChangeState, ChangeState.Request(transition=Transition(id=number))).success
        return ok

    def transition_later(self, name: str, number: int) -> None:
        """Ask for a lifecycle transition and do not wait for it."""
        client = self.node.create_client(ChangeState, f"{name}/change_state")
        assert client.wait_for_service(timeout_sec=60)
        client.call_async(ChangeState.Request(transition=Transition(id=number)))

    def trigger(self, service: str) -> tuple[bool, str]:
        response = self.call(service, Trigger, Trigger.Request())
        return response.success, response.message

    def set_bool(self, service: str, value: bool) -> tuple[bool, str]:
        response = self.call(service, SetBool, SetBool.Request(data=value))
        return response.success, response.message


def wait_until(condition: Callable[[], bool], timeout_s: float = 120.0, *, what: str = "") -> None:
    """Wait for a condition; fail with ``what``."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s} s for {what or condition}"
        time.sleep(0.005)


class FakeArm:
    """A robot's driver as the gate's peer sees it: joint states at 100 Hz, position commands obeyed at once."""

    def __init__(self, client: Client, robot: str = "panda") -> None:
        self.client, self.spec = client, load_robot(robot)
        self.position = np.array(self.spec.home)
        self.commands: list[tuple[float, np.ndarray]] = []
        """(steady time of arrival, positions) of each command that the driver got."""
        self.sent: list[np.ndarray] = []
        """Positions of every command that the gate sent, none lost."""
        self.gate: dict[str, Any] = {}
        self.states: list[tuple[float, str, str]] = []
        """(steady time, state, reason) of the gate."""
        self.joint_states_on = self.heartbeat_on = True
        self.pressed = False
        node = client.node
        self._states = node.create_publisher(JointState, "joint_states", SENSOR_QOS)
        self._estop = node.create_publisher(Bool, "e_stop", COMMAND_QOS)
        self._chunks = node.create_publisher(JointTrajectory, "policy/chunk", COMMAND_QOS)
        self._heard = [
            node.create_subscription(Float64MultiArray, "forward_position_controller/commands", self._on_command, COMMAND_QOS),
            node.create_subscription(String, "gate_node/state", self._on_gate, LATCHED_QOS),
            node.create_subscription(JointTrajectory, "gate_node/sent", self._on_sent, RECORD_QOS),
        ]
        self._loops = [client.every(0.01, self._publish_state), client.every(0.05, self._publish_heartbeat)]

    def close(self) -> None:
        for end in self._loops:
            end()
        for publisher in (self._states, self._estop, self._chunks):
            self.client.node.destroy_publisher(publisher)
        for subscription in self._heard:
            self.client.node.destroy_subscription(subscription)

    @property
    def names(self) -> tuple[str, ...]:
        return self.spec.joints + tuple(g.joint for g in self.spec.grippers)

    def _publish_state(self) -> None:
        if self.joint_states_on:
            self._states.publish(joint_state(self.spec.joints, self.position, time.time_ns()))

    def _publish_heartbeat(self) -> None:
        if self.heartbeat_on:
            self._estop.publish(Bool(data=self.pressed))

    def press(self) -> None:
        self.pressed = True
        self._publish_heartbeat()

    def _on_command(self, message: Float64MultiArray) -> None:
        self.position = np.array(message.data)
        self.commands.append((time.monotonic(), self.position))

    def _on_sent(self, message: JointTrajectory) -> None:
        self.sent.append(np.array(message.points[0].positions)[: len(self.spec.joints)])

    def _on_gate(self, message: String) -> None:
        self.gate = json.loads(message.data)
        self.states.append((time.monotonic(), self.gate["state"], self.gate["reason"]))

    def send_chunk(
        self,
        target: np.ndarray,
        *,
        names: tuple[str, ...] | None = None,
        steps: int = 10,
        age_s: float = 0.0,
        novelty: float | None = None,
    ) -> None:
        """Ask for a straight line from here to ``target`` (joints), grippers open."""
        way = np.linspace(0, 1, steps + 1)[1:, None]
        joints = self.position + way * (target - self.position)
        rows = np.concatenate([joints, -np.ones((steps, len(self.names) - len(self.spec.joints)))], axis=1)
        message = chunk_message(
            rows,
            names or self.names,
            stamp_ns=time.time_ns() - int(age_s * 1e9),
            period_ns=50_000_000,
            source=json.dumps({"source": "policy", "novelty": novelty}),
        )
        self._chunks.publish(message)

    def went(self, state: str, reason: str | None = None) -> bool:
        """Return whether the gate has been in a state, for a reason, since this driver was made."""
        return any(s == state and reason in (None, r) for _, s, r in list(self.states))

    def stopped_for(self, reason: str) -> bool:
        """Return whether the gate has stopped for a reason; of states that follow closely only the newest may be heard."""
        return any(self.went(state, reason) for state in ("stopping", "holding", "latched"))

    def wait_for(self, state: str, reason: str | None = None) -> None:
        wait_until(lambda: self.went(state, reason), what=f"gate state {state} {reason or ''}; it is {self.gate}")

    def wait_for_reset(self) -> None:
        """Ask until it is granted: a source that has just been commanding must have been silent."""
        wait_until(lambda: self.client.trigger("gate_node/reset")[0], what="reset")

    def wait_for_commands(self, count: int) -> None:
        """Wait for some more commands."""
        until = len(self.commands) + count
        wait_until(lambda: len(self.commands) >= until, what=f"{count} commands")

    def take_down(self) -> None:
        """Bring the gate back to unconfigured, whatever state it is in."""
        self.client.transition("gate_node", DEACTIVATE, CLEANUP)

    def bring_up(self, *, armed: bool = True) -> None:
        """Configure, activate, arm, reset: READY."""
        assert self.client.transition("gate_node", CONFIGURE, ACTIVATE)
        if armed:
            assert self.client.set_bool("gate_node/arm", True)[0]
        self.wait_for_reset()
        self.wait_for("ready")


def gate(**parameters: Any) -> NodeProcess:
    """Return a patient gate of the Panda's position controller."""
    return node("gate_node", **({"robot": "panda", "interface": "position"} | PATIENT | parameters))


def reach(arm: FakeArm, offset: float = 0.3) -> np.ndarray:
    return np.array(arm.spec.home) + offset * np.array([1, 0.5, -1, 0, 1, 0, -1])


def play(arm: FakeArm, target: np.ndarray, until: Callable[[], bool], *, what: str, novelty: float | None = None) -> None:
    """Play a policy that sends a chunk every 50 ms until something has happened."""

    def ask() -> bool:
        arm.send_chunk(target, novelty=novelty)
        time.sleep(0.045)
        return until()

    wait_until(ask, what=f"{what}; the gate is {arm.gate}")


def move(arm: FakeArm, target: np.ndarray, *, way: float = 0.05) -> None:
    """Play a policy until a joint has gone ``way`` [rad] from home: the arm is in motion."""
    home = np.array(arm.spec.home)
    play(arm, target, lambda: np.abs(arm.position - home).max() > way, what="motion")


def require_rest_then_silence(arm: FakeArm) -> None:
    """The last commands on the wire are the same, after others that were not; then there are none."""
    count = -1
    while count != len(arm.commands):  # what is still on its way
        count = len(arm.commands)
        time.sleep(0.5)
    positions = np.array([p for _, p in arm.commands])
    assert np.abs(np.diff(positions, axis=0)).max() > 1e-4
    np.testing.assert_array_equal(positions[-1], positions[-2])
