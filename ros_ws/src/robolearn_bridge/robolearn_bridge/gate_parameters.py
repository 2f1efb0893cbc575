"""The gate's parameters, and the gate and outputs that they describe."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rclpy.node import Node

from hardware import load_robot
from robolearn.core.errors import RefusedError
from robolearn.core.robot import RobotSpec
from robolearn.deploy.gate import CommandGate
from robolearn.deploy.gate_config import JOINT_STATES, GateConfig
from robolearn.deploy.hand_guard import HandGuard
from robolearn.deploy.kinematics import WorkspaceGuard
from robolearn_bridge.adapters import INTERFACES, Output, TwistScale, joint_outputs, rate_outputs, twist_outputs
from robolearn_bridge.parameters import declare, read, read_choice

MAX_RATE_HZ = 1000.0
UNBOXED = (0.0,)
SIMULATED = ("rates", "joints")
"""Interfaces of simulated tasks, which can wait for each command."""
WATCHED = ("chunk_timeout_s", "max_command_age_s", "max_tick_gap_s", "resume_window_s", "novelty_stop")
"""Fields of :class:`GateConfig` that are parameters under their own name and default."""


def declare_gate(node: Node) -> None:
    """Declare every parameter of the gate; all are read-only."""
    declare(node, "robot", "", "Name of the robot in hardware/.", read_only=True)
    declare(
        node,
        "bundle",
        "",
        "Bundle whose action names and bounds are commanded; for 'rates', 'joints' and 'twist'.",
        read_only=True,
    )
    declare(node, "interface", "trajectory", f"What the driver takes: {', '.join(INTERFACES)}.", read_only=True)
    declare(node, "sync", "realtime", "'lockstep' or 'realtime'.", read_only=True)
    declare(
        node,
        "trigger",
        "timer",
        "'timer', or 'state': a tick as each joint state arrives, by the timer if none does.",
        read_only=True,
    )
    declare(node, "rate_hz", 0.0, "Control rate; 0 takes the robot's, or the policy's for rates [Hz].", read_only=True)
    declare(
        node, "lead_s", 0.0, "How far ahead of the clock chunks are executed: the delay to the actuators [s].", read_only=True
    )
    declare(node, "policy_timeout_s", 0.25, "Silence of the policy at which the robot stops [s].", read_only=True)
    declare(
        node,
        "estop_timeout_s",
        0.5,
        "Silence of the e-stop's publisher at which the robot stops; 0: none [s].",
        read_only=True,
    )
    declare(node, "state_timeout_s", 0.1, "Silence of the joint states at which the robot stops [s].", read_only=True)
    for name in WATCHED:
        declare(
            node, name, float(getattr(GateConfig, name)), f"See robolearn.deploy.gate_config.GateConfig.{name}.", read_only=True
        )
    declare(node, "twist_linear_m_s", 0.0, "What a rate of 1 means for 'twist' [m/s].", read_only=True)
    declare(node, "twist_angular_rad_s", 0.0, "What a rate of 1 means for 'twist' [rad/s].", read_only=True)
    declare(
        node,
        "max_tracking_error",
        0.0,
        "Distance of joints from their command that latches; 0: the robot's [rad].",
        read_only=True,
    )
    declare(node, "workspace_low", [0.0], "Corner of the tools' box in place of the robot's: x, y, z [m].", read_only=True)
    declare(node, "workspace_high", [0.0], "Its opposite corner [m].", read_only=True)
    declare(node, "workspace_check", True, "Keep tools in the box and bodies apart, by the robot's model.", read_only=True)
    declare(node, "realtime_priority", 0, "SCHED_FIFO priority of the gate's threads; 0: none.", read_only=True)


def make_gate(node: Node) -> tuple[RobotSpec, CommandGate, list[Output]]:
    """Return the robot, its gate and the topics that the gate writes.

    Raises:
        RefusedError: an unknown robot or interface, a bundle of another robot, lockstep with a driver, or a rate outside the
            robot's range.
    """
    interface = read_choice(node, "interface", INTERFACES)
    lockstep = read(node, "sync") == "lockstep"
    if lockstep and interface not in SIMULATED:
        raise RefusedError(
            f"sync='lockstep' is for simulators: with interface={interface!r} no limit would hold in a driver's time."
        )
    # In lockstep the gate's clock counts ticks, which come faster or slower than heartbeats: the node watches those by the wall.
    estop = 0.0 if lockstep else read(node, "estop_timeout_s")
    config = GateConfig(
        policy_timeout_s=read(node, "policy_timeout_s"),
        stream_timeouts_s={JOINT_STATES: read(node, "state_timeout_s")},
        estop_timeout_s=estop or None,
        max_tracking_error=read(node, "max_tracking_error") or None,
        blends=interface == "arm_sdk",
        **{name: read(node, name) for name in WATCHED},
    )
    rate = read(node, "rate_hz")
    spec = _boxed(node, load_robot(read(node, "robot")))
    if interface in ("rates", "twist", "joints"):
        from robolearn.deploy.bundle import open_bundle

        bundle = open_bundle(Path(read(node, "bundle")))
        bundle.require_robot(spec.name)
        if interface == "joints":
            spec = replace(spec, control_rate_hz=rate or bundle.spaces.control_rate_hz)
            gate = CommandGate.for_robot(spec, config, guard=_guard(node, spec))
            return spec, gate, rate_outputs(gate.names)
        checked = _guard(node, spec)
        hand = HandGuard(checked, bundle.spaces.action.names) if checked else None
        gate = CommandGate.for_spaces(bundle.spaces, config, control_rate_hz=rate or None, guard=hand)
        if interface == "rates":
            return spec, gate, rate_outputs(gate.names)
        scale = TwistScale(read(node, "twist_linear_m_s"), read(node, "twist_angular_rad_s"), spec.base_frame)
        return spec, gate, twist_outputs(gate.names, scale)
    if rate and not spec.control_rate_hz <= rate <= MAX_RATE_HZ:
        raise RefusedError(f"rate_hz={rate} must lie in [{spec.control_rate_hz}, {MAX_RATE_HZ}] for {spec.name}.")
    # The limits are per second; the gate derives its steps from the rate.
    spec = replace(spec, control_rate_hz=rate or spec.control_rate_hz)
    return spec, CommandGate.for_robot(spec, config, guard=_guard(node, spec)), joint_outputs(spec, interface)


def _boxed(node: Node, spec: RobotSpec) -> RobotSpec:
    """Return the robot with the box of the parameters, if they give one: a task's table may lie lower than its base."""
    low, high = tuple(read(node, "workspace_low")), tuple(read(node, "workspace_high"))
    if low == high == UNBOXED:
        return spec
    if len(low) != 3 or len(high) != 3:
        raise RefusedError(f"workspace_low={low} and workspace_high={high} need x, y and z each.")
    source = "parameters workspace_low, workspace_high"
    return replace(spec, workspace=replace(spec.workspace, low=low, high=high, source=source))


def _guard(node: Node, spec: RobotSpec) -> WorkspaceGuard | None:
    if not read(node, "workspace_check") or spec.model is None:
        node.get_logger().warning(f"workspace and self-collision of {spec.name} are NOT checked (no model, or switched off)")
        return None
    return WorkspaceGuard(spec)
