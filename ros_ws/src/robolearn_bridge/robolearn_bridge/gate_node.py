"""The only publisher of commands: executes chunks through the safety filter, at the robot's rate, until something is wrong."""

from __future__ import annotations

import gc
import json
import sys
import threading
import time
from collections import deque
from dataclasses import replace
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.clock import Clock, ClockType
from rclpy.duration import Duration
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool, String
from std_srvs.srv import SetBool, Trigger
from trajectory_msgs.msg import JointTrajectory

from robolearn.core.errors import RefusedError
from robolearn.deploy.chunk import Chunk
from robolearn.deploy.codecs import decode, stamp_ns
from robolearn.deploy.gate_config import JOINT_STATES, Command, GateState
from robolearn_bridge.adapters import Output, rate_outputs
from robolearn_bridge.diagnostics import report
from robolearn_bridge.exclusive import ExclusiveTopics, reliable_publishers, require_single
from robolearn_bridge.gate_parameters import declare_gate, make_gate
from robolearn_bridge.inbox import Inbox
from robolearn_bridge.lifecycle import SafeLifecycleNode, run
from robolearn_bridge.messages import COMMAND_QOS, LATCHED_QOS, RECORD_QOS, SENSOR_QOS, chunk_rows
from robolearn_bridge.parameters import read, read_choice
from robolearn_bridge.realtime import RealTime, uses_shared_memory

STOP_PATIENCE_S = 5.0
"""Longest wait for the ramp down before the node falls silent."""
STEADY = Clock(clock_type=ClockType.STEADY_TIME)
DISCOVERY_S = 0.5
"""Age at which a node has been told of the publishers of its machine or LAN, unless announcements were lost."""
WATCH_S = 0.1
"""Period in which the graph is asked for other commanders."""
ACKNOWLEDGED = Duration(seconds=0.2)
"""Longest wait for the driver to have the last command before the publisher is gone."""


class GateNode(SafeLifecycleNode):
    """Wires :class:`robolearn.deploy.gate.CommandGate` to topics and clocks; every decision is made there.

    The gate's clock is the steady one; header stamps (wall clock) are carried over to it by their age on arrival. In ``lockstep``
    with a simulator its clock counts ticks instead: one per state of the robot, made when the chunk for that state has come.
    """

    def __init__(self) -> None:
        super().__init__("gate_node")
        declare_gate(self)
        self._loop: threading.Thread | None = None
        self._inbox: Inbox | None = None
        self._real_time = RealTime()
        self._changing, self._made_at = threading.RLock(), time.monotonic()

    def configure(self) -> None:
        """Make the gate, its topics and its services."""
        self._lockstep = read_choice(self, "sync", ("lockstep", "realtime")) == "lockstep"
        self._spec, self._gate, outputs = make_gate(self)
        self._period_s = 1 / self._gate.limits.control_rate_hz
        self._on_arrival = read_choice(self, "trigger", ("timer", "state")) == "state" and not self._lockstep
        self._lock = threading.Lock()
        self._ticks, self._pending_ns, self._pending_at = 0, 0, 0.0
        self._arrived_at = self._heartbeat_at = self._answered_at = -np.inf
        self._early: tuple[int, Chunk | None] = (0, None)
        self._tick_errors_s: deque[float] = deque(maxlen=5000)
        self._problem, self._faulted, self._shown = "", 0, ("", "")
        # Publishers are made when the gate is activated: one that is only configured is no commander in the graph.
        self._made, self._outputs = outputs, list[tuple[Output, Any]]()
        self._topics = ExclusiveTopics(self, [self.resolve_topic_name(o.topic) for o in outputs])
        self._status = self.create_publisher(String, "~/state", LATCHED_QOS)
        # What goes out, by name and whatever the driver takes: for the recorder, and in a dry run for the eye.
        self._echo = rate_outputs(self._gate.names)[0]
        self._sent = self.create_publisher(JointTrajectory, "~/sent", RECORD_QOS)
        self._preview = self.create_publisher(JointTrajectory, "~/preview", SENSOR_QOS)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", COMMAND_QOS)
        self._inbox = Inbox(self)
        self._inbox.hear(Bool, "e_stop", self.guarded(self._on_estop, "e_stop"), COMMAND_QOS)
        self._inbox.hear(JointState, "joint_states", self.guarded(self._on_state, "joint_states"), SENSOR_QOS, newest=True)
        for topic in ("policy/chunk", "teleop/chunk"):
            self._inbox.hear(JointTrajectory, topic, self.guarded(self._on_chunk, topic), COMMAND_QOS)
        for kind, topic, call in (heard for output in outputs for heard in output.hears):
            self._inbox.hear(kind, topic, self.guarded(call, topic), SENSOR_QOS, newest=True)
        self._offered = [
            self.create_service(SetBool, "~/arm", self.guarded(self._on_arm, "arm")),
            self.create_service(Trigger, "~/reset", self.guarded(self._on_reset, "reset")),
            self.create_service(Trigger, "~/stop", self.guarded(self._on_stop, "stop")),
            self.create_service(Trigger, "~/release", self.guarded(self._on_release, "release")),
        ]
        self._timers = [
            self.create_timer(1.0, self.guarded(self._report, "diagnostics"), clock=STEADY),
            self.create_timer(WATCH_S, self.guarded(self._watch_others, "watch"), clock=STEADY),
        ]
        self._inbox.start()
        if uses_shared_memory():
            self.get_logger().warning(
                "Messages of this gate go through shared memory: a node that is killed can hold it up for 1 s. Start it by a "
                "launch file, or name config/transport_loopback.xml in FASTRTPS_DEFAULT_PROFILES_FILE and unset "
                "ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST, which brings shared memory back."
            )

    def activate(self) -> None:
        """Start the control loop; the gate stays latched, and a dry run until it is armed."""
        time.sleep(max(self._made_at + DISCOVERY_S - time.monotonic(), 0))
        self._topics.claim()
        try:
            if priority := read(self, "realtime_priority"):
                self._real_time.take(priority, warn=self.get_logger().warning)
        except RefusedError:
            self._topics.release()
            raise
        with self._changing:
            self._outputs = [(o, self.create_publisher(o.message_type, o.topic, COMMAND_QOS)) for o in self._made]
            self._closing = threading.Event()
            # What is loaded by now stays: the collector need not look through it while commands wait.
            gc.collect()
            gc.freeze()
            target = self._watch_lockstep if self._lockstep else self._run_loop
            self._loop = threading.Thread(target=target, name="control loop")
            self._loop.start()

    def deactivate(self) -> None:
        """Ramp down and disarm; the safe command is the last one on the wire."""
        with self._changing:  # a transition and the end of the process may both ask
            if self._loop is None:
                return
            with self._lock:
                self._gate.disarm(now_s=self._now_s(), reason="deactivated")
            try:
                self._come_to_rest()
            finally:  # whatever fails: a robot whose topics stay claimed cannot be commanded by the next gate either
                self._closing.set()
                self._loop.join()
                self._loop = None
                with self._lock:
                    outputs, self._outputs = self._outputs, []
                for _, publisher in outputs:
                    publisher.wait_for_all_acked(ACKNOWLEDGED)
                    self.destroy_publisher(publisher)
                self._topics.release()
                self._real_time.release()

    def _come_to_rest(self) -> None:
        """Wait until the gate, which is disarming, has sent its last command."""
        deadline = time.monotonic() + STOP_PATIENCE_S
        while (self._gate.armed or self._gate.state is not GateState.LATCHED) and time.monotonic() < deadline:
            if self._lockstep:
                self._tick_lockstep(publish=True)
            time.sleep(self._period_s)

    def cleanup(self) -> None:
        """Remove topics and services."""
        self.stop()
        for publisher in (self._status, self._diagnostics, self._sent, self._preview):
            self.destroy_publisher(publisher)
        if self._inbox is not None:
            self._inbox.destroy()
        for service in self._offered:
            self.destroy_service(service)
        for timer in self._timers:
            self.destroy_timer(timer)

    def stop(self) -> None:
        """See :meth:`deactivate`; then nothing more is heard."""
        self.deactivate()
        if self._inbox is not None:
            self._inbox.stop()

    def fault(self, where: str, error: BaseException) -> None:
        """A refused message is not used; any other exception is a defect of ours, and stops the robot."""
        self._problem, self._faulted = f"{where}: {error}", self._faulted + 1
        if not isinstance(error, RefusedError) and self._loop is not None:
            with self._lock:
                self._gate.stop(f"exception in {where}", now_s=self._now_s())

    # ---- time ----------------------------------------------------------------------------------------------------------------

    def _now_s(self) -> float:
        return self._ticks * self._period_s if self._lockstep else time.monotonic()

    def _steady_s(self, stamp: int) -> float:
        """Return a wall-clock stamp on the gate's clock: its age now, before now."""
        return time.monotonic() - (time.time_ns() - stamp) / 1e9

    # ---- what comes in -------------------------------------------------------------------------------------------------------

    def _on_state(self, message: JointState) -> None:
        position = decode("joint_state", message, self._spec.joints)["position"]
        stamp = stamp_ns(message)
        if not self._lockstep:
            with self._lock:
                self._gate.on_measured(position, stamp_s=self._steady_s(stamp), now_s=time.monotonic())
            if self._on_arrival and self._loop is not None:
                self._arrived_at = time.monotonic()
                self._tick(stamp)
            return
        with self._lock:
            self._pending_ns, self._pending_at = stamp, time.monotonic()
            self._gate.on_measured(position, stamp_s=self._now_s(), now_s=self._now_s())
        # A gate that runs ticks when the chunk for this state has come; otherwise it only keeps its clock.
        if self._loop is not None and self._gate.state is not GateState.RUNNING:
            self._tick_lockstep(publish=self._gate.state not in (GateState.READY, GateState.LATCHED))
        self._answer_state()

    def _on_chunk(self, message: JointTrajectory) -> None:
        if self._loop is None:
            return
        values, times = chunk_rows(message, self._gate.names)
        tag = json.loads(message.header.frame_id or "{}")
        step_s = float(times[1]) / 1e9 if len(times) > 1 else float(tag.get("step_s", self._period_s))
        source, novelty = str(tag.get("source", "")), tag.get("novelty")
        stamp = stamp_ns(message)
        if self._lockstep:
            self._early = (stamp, Chunk(self._gate.names, values, 0.0, step_s, source, novelty))
            self._answer_state()
            return
        with self._lock:
            stamp_s = self._steady_s(stamp) - read(self, "lead_s")
            chunk = Chunk(self._gate.names, values, stamp_s, step_s, source, novelty)
            self._refused(self._gate.on_chunk(chunk, now_s=time.monotonic()))

    def _answer_state(self) -> None:
        """In lockstep: tick with the chunk that was made for the robot's present state, whichever of the two came first."""
        with self._lock:
            stamp, chunk = self._early
            if chunk is None or stamp != self._pending_ns:
                return
            self._early, self._answered_at = (0, None), time.monotonic()
            self._ticks += 1
            self._gate.on_stream(JOINT_STATES, stamp_s=self._now_s(), now_s=self._now_s())
            self._refused(self._gate.on_chunk(replace(chunk, stamp_s=self._now_s()), now_s=self._now_s()))
            self._send(self._next(), stamp)

    def _refused(self, reason: str) -> None:
        if reason:
            self._problem = f"chunk refused: {reason}"

    def _on_estop(self, message: Bool) -> None:
        with self._lock:
            self._heartbeat_at = time.monotonic()
            self._gate.on_estop(message.data, now_s=self._now_s())
        if message.data and self._loop is not None and not self._lockstep:
            self._tick()

    def _on_arm(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        with self._lock:
            if request.data:
                self._topics.require_alone()
                self._gate.arm()
            else:
                self._gate.disarm(now_s=self._now_s())
        response.success = True
        return response

    def _on_reset(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._topics.require_alone()
        require_single(self, "e_stop")
        with self._lock:
            self._gate.reset(now_s=self._now_s())
        response.success = True
        return response

    def _on_stop(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        with self._lock:
            self._gate.stop("operator", now_s=self._now_s())
        response.success = True
        return response

    def _on_release(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        with self._lock:
            self._gate.release(now_s=self._now_s())
        response.success = True
        return response

    # ---- the control loop ----------------------------------------------------------------------------------------------------

    def _run_loop(self) -> None:
        """Tick on absolute deadlines of the steady clock, so that lateness does not add up."""
        start, tick = time.monotonic(), 0
        while not self._closing.is_set():
            tick += 1
            wait = start + tick * self._period_s - time.monotonic()
            if wait > 0:
                time.sleep(wait)
            self._tick_errors_s.append(time.monotonic() - start - tick * self._period_s)
            if self._on_arrival and time.monotonic() - self._arrived_at < 1.5 * self._period_s:
                continue  # the robot's own clock is ticking
            try:
                self._tick()
            except Exception as error:
                self.fault("control loop", error)
            if wait < -1.0:
                start, tick = time.monotonic(), 0

    def _watch_lockstep(self) -> None:
        """Stop when simulator, policy or e-stop publisher have been silent, by the steady clock: ticks cannot tell."""
        patience = max(read(self, "policy_timeout_s"), read(self, "state_timeout_s"))
        estop_patience = read(self, "estop_timeout_s") or np.inf
        while not self._closing.wait(0.05):
            now = time.monotonic()
            # A step that is answered in time takes one wait for the policy and one for the simulator.
            silent = now - self._pending_at > patience or now - self._answered_at > 2 * patience
            reason = "silent" if silent else ""
            reason = "e_stop_lost" if now - self._heartbeat_at > estop_patience else reason
            if reason and self._gate.state is GateState.RUNNING:
                with self._lock:
                    self._gate.stop(reason, now_s=self._now_s())
                self._tick_lockstep(publish=True)

    def _tick(self, stamp: int | None = None) -> None:
        """Tick and send; under the lock, so that commands leave in the order in which they were made."""
        with self._lock:
            self._send(self._next(), stamp)

    def _next(self) -> Command:
        """Return the gate's command; in a tick a refusal, too, is a defect of ours, and has to stop the robot."""
        try:
            return self._gate.tick(self._now_s())
        except RefusedError as error:
            raise RuntimeError(f"the gate could not make a command: {error}") from error

    def _tick_lockstep(self, *, publish: bool) -> None:
        with self._lock:
            self._ticks += 1
            self._gate.on_stream(JOINT_STATES, stamp_s=self._now_s(), now_s=self._now_s())
            command = self._next()
            if publish:
                self._send(command, self._pending_ns)
            else:
                self._show(command)

    def _send(self, command: Command, stamp: int | None = None) -> None:
        if np.isfinite(command.position).all():
            at = time.time_ns() if stamp is None else stamp
            if command.send:
                for output, publisher in self._outputs:
                    message = output.make(command, at)
                    if message is not None:
                        publisher.publish(message)
            echo = self._sent if command.send else self._preview
            if echo.get_subscription_count():
                echo.publish(self._echo.make(command, at))
        self._show(command)

    def _show(self, command: Command) -> None:
        shown = (str(command.state), command.reason)
        if shown != self._shown:
            self._shown = shown
            self._status.publish(String(data=json.dumps({"state": shown[0], "reason": shown[1], "sending": command.send})))

    # ---- watching ------------------------------------------------------------------------------------------------------------

    def _watch_others(self) -> None:
        """Two commanders: whoever of them is a gate ramps down and sends nothing until the other is gone; two e-stops latch."""
        if self._loop is None:
            return
        others = self._topics.others()
        if others:
            self._problem = f"another node commands this robot: {', '.join(others)}"
            with self._lock:
                self._gate.stop("second_commander", now_s=self._now_s())
                self._gate.disarm(now_s=self._now_s())
        if len(several := reliable_publishers(self, "e_stop")) > 1:
            self._problem = f"several nodes publish e_stop: {', '.join(several)}"
            with self._lock:
                self._gate.stop("second_e_stop", now_s=self._now_s())

    def _report(self) -> None:
        errors = np.array(self._tick_errors_s)
        with self._lock:
            values: dict[str, object] = {
                "state": str(self._gate.state),
                "loop lateness p50 [ms]": float(np.quantile(errors, 0.5)) * 1e3 if errors.size else float("nan"),
                "loop lateness p99 [ms]": float(np.quantile(errors, 0.99)) * 1e3 if errors.size else float("nan"),
                "faults": self._faulted,
                **dict(self._gate.counts),
                **{f"filtered: {kind}": n for kind, n in self._gate.filter_counts.items()},
            }
        problem, self._problem = self._problem, ""
        self._diagnostics.publish(report(self, problem, values))


def main() -> int:
    """Run the node; the control loop waits for no thread of ours longer than this for the interpreter, instead of 5 ms."""
    sys.setswitchinterval(0.0002)
    return run(GateNode)


if __name__ == "__main__":
    sys.exit(main())
