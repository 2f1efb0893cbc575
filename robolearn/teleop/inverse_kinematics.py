"""From a person's wish to joint positions: the hand's target moves, mink finds joints that bring it there within the limits."""

from __future__ import annotations

import mink
import mujoco
import numpy as np

from robolearn.core.errors import RefusedError
from robolearn.core.robot import RobotSpec
from robolearn.core.types import STATE, Array, Observation, Spaces
from robolearn.teleop.device import Wish
from robolearn.teleop.motion import Command, MotionConfig, world_twist

_ITERATIONS = 3
"""Gauss-Newton steps per control step; the target moves by millimetres in between."""
_POSTURE_COST = 1e-2
"""Pull towards the pose at the start, weak against the hands' tasks (1): it settles joints that the hands leave free."""
_LAG_M = 0.03
"""How far the hand's target may run ahead of the hand [m]."""


class JointTargets:
    """Absolute joint positions [rad] of a robot with one or more hands; the hands that are not moved keep their pose.

    The clutch: when a wish engages, the targets begin at the measured joints, so that taking hold makes nothing jump.
    """

    def __init__(self, spaces: Spaces, spec: RobotSpec, config: MotionConfig) -> None:
        """Load the robot's kinematic model.

        Raises:
            RefusedError: the action is not the robot's joints, or the robot has no model.
        """
        if spaces.action.names != spec.joints or spec.model is None:
            raise RefusedError(f"{spaces.robot!r} takes {spaces.action.names}; {spec.name!r} with a model takes {spec.joints}.")
        state = spaces.observation[STATE].names if STATE in spaces.observation else ()
        missing = [joint for joint in spec.joints if joint not in state]
        if missing:
            raise RefusedError(f"{STATE} lacks the measured joints {missing}.")
        self._measured = [state.index(joint) for joint in spec.joints]
        self._spec, self._config, self._period_s = spec, config, 1 / spaces.control_rate_hz
        self.arms = spec.tcp
        model = mujoco.MjModel.from_xml_path(str(spec.model.locate()))
        self._address = [int(model.joint(name).qposadr[0]) for name in spec.model.joints]
        self._configuration = mink.Configuration(model)
        self._base = spec.model.base_body
        self._hands = [mink.FrameTask(body, "body", position_cost=1.0, orientation_cost=0.3) for body in spec.model.tcp_bodies]
        self._bodies = spec.model.tcp_bodies
        self._posture = mink.PostureTask(model, cost=_POSTURE_COST)
        speed = spec.speed_scale * np.array(spec.max_velocity)
        self._limits = [
            mink.ConfigurationLimit(model, min_distance_from_limits=spec.position_margin),
            mink.VelocityLimit(model, dict(zip(spec.model.joints, speed, strict=True))),
        ]
        self._largest_step = speed * self._period_s
        self._low = np.array(spec.position_low) + spec.position_margin
        self._high = np.array(spec.position_high) - spec.position_margin
        self._wanted = np.array(spec.home)
        self._sent = np.array(spec.home)
        self._engaged = False
        self._leader_zero: Array | None = None

    def reset(self, observation: Observation) -> None:
        """See :class:`robolearn.teleop.motion.Motion`."""
        self._sent = observation[STATE][self._measured].astype(float)
        self._hold()
        self._posture.set_target_from_configuration(self._configuration)
        self._engaged, self._leader_zero = False, None

    def act(self, observation: Observation, wish: Wish | None, arm: int) -> Command:
        """See :class:`robolearn.teleop.motion.Motion`."""
        if wish is None or not wish.engaged:
            self._engaged, self._leader_zero = False, None
            self._wanted = self._sent.copy()
            return self._command(self._sent)
        if not self._engaged:
            self._sent = observation[STATE][self._measured].astype(float)
            self._hold()
            self._engaged = True
        if wish.joints is not None:
            self._follow(wish)
        else:
            self._move_hand(world_twist(wish, self._config), arm)
        step = np.clip(self._wanted - self._sent, -self._largest_step, self._largest_step)
        self._sent = np.clip(self._sent + step, self._low, self._high)
        return self._command(self._wanted)

    def toggle_gripper(self, arm: int) -> None:
        """Refuse: joints are all that is commanded here.

        Raises:
            RefusedError: always.
        """
        raise RefusedError(f"{self._spec.name!r} has no gripper among its commanded joints.")

    def _hold(self) -> None:
        """Let every task want what is."""
        q = self._configuration.q.copy()
        q[self._address] = self._sent
        self._configuration.update(q)
        for hand in self._hands:
            hand.set_target_from_configuration(self._configuration)
        self._wanted = self._sent.copy()

    def _move_hand(self, twist: Array, arm: int) -> None:
        """Move the hand's target by one period of a velocity in the base frame, and solve for the joints."""
        base = self._configuration.get_transform_frame_to_world(self._base, "body").rotation()
        target = self._hands[arm].transform_target_to_world
        assert target is not None  # reset() set it
        move = twist * self._period_s
        box = self._spec.workspace
        origin = self._configuration.get_transform_frame_to_world(self._base, "body").translation()
        position = base.inverse().apply(target.translation() - origin) + move[:3]
        low, high = np.array(box.low) + box.margin_m, np.array(box.high) - box.margin_m
        before = position - move[:3]
        # A hand that starts outside of the box may come back, and not go further.
        position = np.clip(position, np.minimum(low, before), np.maximum(high, before))
        turn = mink.SO3.exp(base.apply(move[3:]))
        pose = mink.SE3.from_rotation_and_translation(turn @ target.rotation(), origin + base.apply(position))
        self._hands[arm].set_target(pose)
        for _ in range(_ITERATIONS):
            velocity = mink.solve_ik(
                self._configuration,
                [*self._hands, self._posture],
                self._period_s / _ITERATIONS,
                "daqp",
                damping=1e-3,
                limits=self._limits,
            )
            self._configuration.integrate_inplace(velocity, self._period_s / _ITERATIONS)
        reached = self._configuration.get_transform_frame_to_world(self._bodies[arm], "body")
        if np.linalg.norm(reached.translation() - pose.translation()) > _LAG_M:
            # Out of reach: a target that went on by itself would have to be brought back before anything moves again.
            self._hands[arm].set_target(reached)
        self._wanted = self._configuration.q[self._address].copy()

    def _follow(self, wish: Wish) -> None:
        """Move the joints by as much as the leader's of the same names since the clutch closed; others stay."""
        assert wish.joints is not None
        unknown = sorted(set(wish.joints) - set(self._spec.joints))
        if unknown:
            raise RefusedError(
                f"The leader's joints {unknown} are none of {self._spec.name!r}: say which follow which. "
                f"Allowed: {', '.join(self._spec.joints)}."
            )
        leader = np.array([wish.joints.get(joint, np.nan) for joint in self._spec.joints])
        if self._leader_zero is None:
            self._leader_zero = leader - self._sent
        moved = leader - self._leader_zero
        self._wanted = np.where(np.isfinite(moved), moved, self._sent)

    def _command(self, wanted: Array) -> Command:
        return Command(wanted.astype(np.float32), self._sent.astype(np.float32))
