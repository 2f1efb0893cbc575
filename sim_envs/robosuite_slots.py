"""The simulators behind a batch of robosuite environments.

:class:`FastSlots` steps by the compiled kernel, :class:`ReferenceSlots` by robosuite itself. Both hold one ``MjData`` per
environment, fill the same arrays (:class:`sim_envs.osc_kernel.Slots`) and know nothing of episodes.
"""

from __future__ import annotations

import copy
import itertools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import mujoco
import numpy as np

from robolearn.core.errors import RefusedError
from robolearn.core.types import Array
from sim_envs import osc_kernel as kernel
from sim_envs.mujoco_symbols import array_address
from sim_envs.robosuite_model import build_robosuite, reset_robosuite, template
from sim_envs.robosuite_task import RobosuiteTask, Situation

EXACT_TIMESTEP_S = 0.002
TURBO_TIMESTEP_S = 0.005
CONTROL_TIMESTEP_S = 0.05

_template_lock = threading.Lock()


class Simulators(Protocol):
    """What a batch of environments needs of its simulators."""

    slots: kernel.Slots
    models: list[mujoco.MjModel]
    datas: list[mujoco.MjData]

    def reset(self, index: int, seed: int) -> None:
        """Put environment ``index`` into the initial state of ``seed`` and observe it."""

    def step(self, indices: Array, actions: Array) -> None:
        """Make one control step of the environments ``indices`` (m,) with ``actions`` (m, a) float64, and observe them."""

    def success(self, indices: Array) -> Array:
        """Return (m,) bool: whether the task of each environment is solved after its last step."""

    def close(self) -> None:
        """Stop threads."""


class FastSlots:
    """Environments whose control step runs in :func:`sim_envs.osc_kernel.step_slots`."""

    def __init__(self, task: RobosuiteTask, num_envs: int, *, num_threads: int, timestep_s: float) -> None:
        """Build ``num_envs`` simulators from the process's template of ``task``; ``timestep_s`` must divide 50 ms."""
        with _template_lock:
            self._template, _ = template(task)
        self._task = task
        self._substeps = round(CONTROL_TIMESTEP_S / timestep_s)
        source = self._template.sim.model._model
        model = _fast_model(source, timestep_s)
        separate = task.reset_moves_bodies
        self.models = [copy.copy(model) if separate else model for _ in range(num_envs)]
        self.datas = [mujoco.MjData(m) for m in self.models]
        self.slots = build_slots(task, self.models, self.datas, self._template)
        self._contacts = {name: _geom_ids(model, names) for name, names in task.contact_groups.items()}
        self._pool = ThreadPoolExecutor(num_threads) if num_threads > 1 else None
        self._num_threads = num_threads

    def reset(self, index: int, seed: int) -> None:
        """See :class:`Simulators`."""
        with _template_lock:
            reset_robosuite(self._template, seed)
            source = self._template.sim
            if self._task.reset_moves_bodies:
                self.models[index].body_pos[:] = source.model.body_pos
                self.models[index].body_quat[:] = source.model.body_quat
            kernel.copy_data(self.datas[index]._address, self.models[index]._address, source.data._data._address)
            for arm, robot in enumerate(self._template.robots):
                controller = robot.part_controllers["right"]
                self.slots.initial_joint[index, arm] = controller.initial_joint
                self.slots.finger_command[index, arm] = robot.gripper["right"].current_action
                self.slots.stale[index, arm] = _measured(controller)
        self.slots.fresh_reset[index] = True
        self.slots.diverged[index] = False
        kernel.observe(self.slots, index)

    def step(self, indices: Array, actions: Array) -> None:
        """See :class:`Simulators`."""
        workers = min(self._num_threads, len(indices))
        if self._pool is None or workers < 2:
            kernel.step_slots(self.slots, indices, actions, self._substeps)
            return
        edges = np.linspace(0, len(indices), workers + 1).astype(int)
        parts = [slice(a, b) for a, b in itertools.pairwise(edges)]
        jobs = [self._pool.submit(kernel.step_slots, self.slots, indices[p], actions[p], self._substeps) for p in parts]
        for job in jobs:
            job.result()

    def success(self, indices: Array) -> Array:
        """See :class:`Simulators`."""
        slots = self.slots
        situation = Situation(
            slots.point_positions[indices], slots.eef_positions[indices], slots.angles[indices], self._touching(indices)
        )
        return self._task.success(situation)

    def _touching(self, indices: Array) -> Callable[[int, str, str], bool]:
        def touching(row: int, first: str, second: str) -> bool:
            pairs = self.datas[indices[row]].contact.geom
            a, b = np.isin(pairs, self._contacts[first]), np.isin(pairs, self._contacts[second])
            return bool(((a[:, 0] & b[:, 1]) | (a[:, 1] & b[:, 0])).any())

        return touching

    def close(self) -> None:
        """See :class:`Simulators`."""
        if self._pool is not None:
            self._pool.shutdown()


class ReferenceSlots:
    """Environments stepped by robosuite's own ``env.step`` on its own model; observed through the same arrays."""

    def __init__(self, task: RobosuiteTask, num_envs: int) -> None:
        """Build ``num_envs`` robosuite environments."""
        self._environments = [build_robosuite(task) for _ in range(num_envs)]
        self.models = [e.sim.model._model for e in self._environments]
        self.datas = [e.sim.data._data for e in self._environments]
        self.slots = build_slots(task, self.models, self.datas, self._environments[0])
        self._success = np.zeros(num_envs, dtype=bool)

    def reset(self, index: int, seed: int) -> None:
        """See :class:`Simulators`."""
        reset_robosuite(self._environments[index], seed)
        self.slots.diverged[index] = False
        kernel.observe(self.slots, index)

    def step(self, indices: Array, actions: Array) -> None:
        """See :class:`Simulators`."""
        first_bad, past_bad = kernel.FIRST_BAD_NUMBER, kernel.LAST_BAD_NUMBER + 1
        for row, index in enumerate(indices):
            environment = self._environments[index]
            environment.step(actions[row])
            self._success[index] = bool(environment._check_success())
            if self.datas[index].warning.number[first_bad:past_bad].any():
                self.slots.diverged[index] = True
            else:
                kernel.observe(self.slots, index)

    def success(self, indices: Array) -> Array:
        """See :class:`Simulators`."""
        return self._success[indices]

    def close(self) -> None:
        """See :class:`Simulators`."""


def build_slots(task: RobosuiteTask, models: list[Any], datas: list[Any], environment: Any) -> kernel.Slots:
    """Return the kernel's arrays for these simulators; ``environment`` is a robosuite environment with the same element names.

    Raises:
        RefusedError: an element is missing, or robosuite's controller is not the one that the kernel computes.
    """
    model, n, arms = models[0], len(models), task.num_arms
    for robot in environment.robots:
        _require_supported(robot)
    frames = np.array([(f.kind == "site", _element(model, f.kind, f.element), f.arm) for f in task.frames], dtype=np.int64)
    points = np.array([(kind == "site", _element(model, kind, name)) for kind, name in task.success_points], dtype=np.int64)
    angles = np.array([model.jnt_qposadr[_element(model, "joint", joint)] for _, joint in task.angles], dtype=np.int64)
    columns = np.stack([_arm_columns(model, robot) for robot in environment.robots])
    actuators = columns[:, list(range(kernel.ARM_ACTUATOR, kernel.ARM_ACTUATOR + 9))]
    return kernel.Slots(
        addresses=np.stack([_addresses(m, d) for m, d in zip(models, datas, strict=True)]),
        arms=columns,
        ctrl_range=model.actuator_ctrlrange[actuators],
        frames=frames,
        points=points.reshape(-1, 2),
        angle_qpos=angles,
        initial_joint=np.zeros((n, arms, 7)),
        finger_command=np.zeros((n, arms, 2)),
        stale=np.zeros((n, arms, kernel.MEASURED)),
        fresh_reset=np.zeros(n, dtype=bool),
        diverged=np.zeros(n, dtype=bool),
        state=np.zeros((n, 11 * arms), dtype=np.float32),
        joint_position=np.zeros((n, 7 * arms), dtype=np.float32),
        environment_state=np.zeros((n, 12 * len(frames) + len(angles)), dtype=np.float32),
        point_positions=np.zeros((n, len(points), 3)),
        eef_positions=np.zeros((n, arms, 3)),
        angles=np.zeros((n, len(angles))),
    )


def _fast_model(source: mujoco.MjModel, timestep_s: float) -> mujoco.MjModel:
    model = copy.copy(source)
    model.opt.timestep = timestep_s
    # Force and torque sensors feed nothing back. Without automatic resets a diverged simulation stays visible as such.
    model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_SENSOR) | int(mujoco.mjtDisableBit.mjDSBL_AUTORESET)
    return model


def _addresses(model: mujoco.MjModel, data: mujoco.MjData) -> Array:
    row = np.zeros(kernel.ADDRESSES, dtype=np.int64)
    row[kernel.MODEL], row[kernel.DATA] = model._address, data._address
    arrays = {
        kernel.QPOS: data.qpos,
        kernel.QVEL: data.qvel,
        kernel.CTRL: data.ctrl,
        kernel.BIAS: data.qfrc_bias,
        kernel.INERTIA: data.qM,
        kernel.CDOF: data.cdof,
        kernel.SUBTREE_COM: data.subtree_com,
        kernel.BODY_POS: data.xpos,
        kernel.BODY_MAT: data.xmat,
        kernel.SITE_POS: data.site_xpos,
        kernel.SITE_MAT: data.site_xmat,
        kernel.WARNINGS: data.warning.number,
    }
    for column, array in arrays.items():
        row[column] = array_address(array)
    return row


def _arm_columns(model: mujoco.MjModel, robot: Any) -> Array:
    """Return the (ARM_COLUMNS,) indices of one robosuite robot in ``model``."""
    out = np.zeros(kernel.ARM_COLUMNS, dtype=np.int64)
    controller = robot.part_controllers["right"]
    site = _element(model, "site", controller.ref_name)
    dofs = [int(i) for i in controller.qvel_index]
    if any(model.dof_parentid[d] != (dofs[k - 1] if k else -1) for k, d in enumerate(dofs)):
        raise RefusedError(f"The kernel needs an arm whose joints form one chain on a fixed base; {robot.name} does not.")
    out[kernel.GRIP_SITE] = site
    out[kernel.BASE_SITE] = _element(model, "site", f"{controller.naming_prefix}{controller.part_name}_center")
    out[kernel.ROOT_BODY] = model.body_rootid[model.site_bodyid[site]]
    for start, values in (
        (kernel.INERTIA_ROW, model.dof_Madr[dofs]),
        (kernel.ARM_QPOS, controller.qpos_index),
        (kernel.ARM_DOF, dofs),
        (kernel.ARM_ACTUATOR, robot._ref_actuators_indexes_dict["right"]),
        (kernel.GRIPPER_ACTUATOR, robot._ref_actuators_indexes_dict["right_gripper"]),
        (kernel.GRIPPER_QPOS, robot._ref_gripper_joint_pos_indexes["right"]),
    ):
        out[start : start + len(values)] = values
    return out


def _require_supported(robot: Any) -> None:
    """Refuse a robosuite controller with other gains, frames or modes than the kernel's."""
    arm, grip = robot.part_controllers["right"], robot.part_controllers["right_gripper"]
    scale = np.repeat([kernel.POSITION_SCALE_M, kernel.ROTATION_SCALE_RAD], 3)
    found = {
        "controller": (arm.name, "OSC_POSE"),
        "impedance mode": (arm.impedance_mode, "fixed"),
        "input": (arm.input_type, "delta"),
        "reference frame": (arm.input_ref_frame, "base"),
        "uncoupled position and orientation": (arm.uncoupling, True),
        "lite physics": (arm.lite_physics, True),
        "interpolators": ((arm.interpolator_pos, arm.interpolator_ori), (None, None)),
        "kp": (arm.kp.tolist(), [kernel.KP] * 6),
        "kd": (arm.kd.tolist(), [kernel.KD] * 6),
        "output limits": (arm.output_max.tolist(), scale.tolist()),
        "gripper scaling": (grip.use_action_scaling, True),
        "gripper speed": (robot.gripper["right"].speed, kernel.GRIPPER_SPEED),
    }
    for what, (is_, wanted) in found.items():
        if is_ != wanted:
            raise RefusedError(f"The kernel computes robosuite 1.5.1's default Panda controller: {what} {wanted!r}, not {is_!r}.")


def _measured(controller: Any) -> Array:
    """Return the (MEASURED,) quantities that robosuite's controller holds, in the kernel's order."""
    parts = (
        controller.ref_pos,
        controller.ref_ori_mat,
        controller.ref_pos_vel,
        controller.ref_ori_vel,
        controller.joint_pos,
        controller.joint_vel,
        controller.J_full,
        controller.mass_matrix,
    )
    return np.concatenate([np.ravel(p) for p in parts])


def _element(model: mujoco.MjModel, kind: str, name: str) -> int:
    found = mujoco.mj_name2id(model, getattr(mujoco.mjtObj, f"mjOBJ_{kind.upper()}"), name)
    if found < 0:
        raise RefusedError(f"The model has no {kind} called {name!r}.")
    return int(found)


def _geom_ids(model: mujoco.MjModel, names: tuple[str, ...]) -> Array:
    return np.array([_element(model, "geom", name) for name in names])
