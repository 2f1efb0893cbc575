"""The compiled control step of the native lift task: inverse kinematics, physics, observation, success; no interpreter lock.

Inverse kinematics is one damped least-squares step per control step from the *achieved* joint position q (Wampler 1986):

    dq = J^T (J J^T + lambda I)^-1 twist + (I - J^+ J) k (q_home - q),    servo target = q + dq

with twist = (0.05 m, 0.5 rad) * action, the scale of robosuite's OSC_POSE. Starting from the achieved position means that the
target never runs away from an arm that is held back by a contact; the second term keeps the elbow near home.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from robolearn.core.types import Array
from sim_envs.mujoco_symbols import compiled, float64_view, int32_view, mj_kinematics, mj_step

ARM_DOF = 7
ACTION_DIM = 7
NQ = 16
"""Positions: 7 arm joints, 2 fingers, cube position and quaternion."""
NV = 15
POSITION_SCALE_M = 0.05
ROTATION_SCALE_RAD = 0.5
FINGER_RANGE_M = 0.04
DAMPING = 1e-4
"""lambda of the least-squares step [m^2, rad^2]."""
NULLSPACE_GAIN = 0.1
MAX_JOINT_STEP_RAD = 0.3
"""A servo target lies at most this far from the achieved position, so that no singular pose makes the arm leap."""
STATE_DIM = 11
ENVIRONMENT_DIM = 12
POINTERS = ("data", "qpos", "qvel", "ctrl", "xanchor", "xaxis", "site_xpos", "site_xmat", "xpos", "xmat", "warning")
"""Columns of the address table, one row per environment."""
WARNINGS = 14
"""32-bit words of MjData.warning: (last info, number) for each of 7 kinds."""


class Buffers(NamedTuple):
    """What the kernel reads and writes, one row per environment."""

    pointers: Array
    """(b, len(POINTERS)) int64 addresses inside each MjData."""
    state: Array
    """(b, 11) float32 observation.state."""
    joints: Array
    """(b, 7) float32 observation.joint_position [rad]."""
    environment: Array
    """(b, 12) float32 observation.environment_state."""
    success: Array
    """(b,) bool."""
    diverged: Array
    """(b,) bool: MuJoCo warned or a position or velocity is not finite."""
    ended: Array
    """(b,) bool: rows that the kernel must not move."""


class Scene(NamedTuple):
    """Constants of the compiled model."""

    model: int
    """Address of the MjModel."""
    joint_low: Array
    """(7,) [rad]."""
    joint_high: Array
    """(7,) [rad]."""
    home: Array
    """(7,) [rad] that the null space pulls to."""
    cube_body: int
    success_height: float
    """World height of the cube's centre above which the cube counts as lifted [m]."""
    substeps: int


@compiled
def solve_6x6(matrix: Array, rhs: Array) -> None:
    """Solve ``matrix @ x = rhs`` in place by Cholesky: a symmetric positive definite (6, 6) matrix; ``rhs`` (6, k) becomes x."""
    n, k = rhs.shape
    for i in range(n):
        for j in range(i + 1):
            total = matrix[i, j]
            for m in range(j):
                total -= matrix[i, m] * matrix[j, m]
            matrix[i, j] = np.sqrt(total) if i == j else total / matrix[j, j]
    for c in range(k):
        for i in range(n):
            for m in range(i):
                rhs[i, c] -= matrix[i, m] * rhs[m, c]
            rhs[i, c] /= matrix[i, i]
        for i in range(n - 1, -1, -1):
            for m in range(i + 1, n):
                rhs[i, c] -= matrix[m, i] * rhs[m, c]
            rhs[i, c] /= matrix[i, i]


@compiled
def joint_step(jacobian: Array, twist: Array, home_error: Array, out: Array) -> None:
    """Write the damped least-squares joint step (7,) [rad] for ``twist`` (6,) and ``home_error`` = q_home - q (7,).

    See the module. J^+ is the damped inverse, so both terms share one factorisation:
    dq = n + J^T (J J^T + lambda I)^-1 (twist - J n) with n = k home_error.
    """
    gram = np.empty((6, 6))
    residual = np.empty((6, 1))
    for i in range(6):
        residual[i, 0] = twist[i]
        for j in range(ARM_DOF):
            residual[i, 0] -= jacobian[i, j] * NULLSPACE_GAIN * home_error[j]
        for j in range(i + 1):
            total = 0.0
            for m in range(ARM_DOF):
                total += jacobian[i, m] * jacobian[j, m]
            gram[i, j] = total
        gram[i, i] += DAMPING
    solve_6x6(gram, residual)
    largest = 0.0
    for j in range(ARM_DOF):
        total = NULLSPACE_GAIN * home_error[j]
        for i in range(6):
            total += jacobian[i, j] * residual[i, 0]
        out[j] = total
        largest = max(largest, abs(total))
    if largest > MAX_JOINT_STEP_RAD:
        for j in range(ARM_DOF):
            out[j] *= MAX_JOINT_STEP_RAD / largest


@compiled
def _command(pointers: Array, action: Array, scene: Scene) -> None:
    """Turn one action into the servo targets of one environment."""
    qpos = float64_view(pointers[1], NQ)
    ctrl = float64_view(pointers[3], ARM_DOF + 2)
    anchor = float64_view(pointers[4], 3 * ARM_DOF)
    axis = float64_view(pointers[5], 3 * ARM_DOF)
    tool = float64_view(pointers[6], 3)
    jacobian = np.empty((6, ARM_DOF))
    twist = np.empty(6)
    home_error = np.empty(ARM_DOF)
    step = np.empty(ARM_DOF)
    for j in range(ARM_DOF):
        rx, ry, rz = tool[0] - anchor[3 * j], tool[1] - anchor[3 * j + 1], tool[2] - anchor[3 * j + 2]
        ax, ay, az = axis[3 * j], axis[3 * j + 1], axis[3 * j + 2]
        jacobian[0, j] = ay * rz - az * ry
        jacobian[1, j] = az * rx - ax * rz
        jacobian[2, j] = ax * ry - ay * rx
        jacobian[3, j], jacobian[4, j], jacobian[5, j] = ax, ay, az
        home_error[j] = scene.home[j] - qpos[j]
    for i in range(6):
        scale = POSITION_SCALE_M if i < 3 else ROTATION_SCALE_RAD
        twist[i] = scale * min(max(action[i], -1.0), 1.0)
    joint_step(jacobian, twist, home_error, step)
    for j in range(ARM_DOF):
        ctrl[j] = min(max(qpos[j] + step[j], scene.joint_low[j]), scene.joint_high[j])
    # As in robosuite only the sign counts; exactly zero keeps the last command.
    if action[6] > 0.0:
        ctrl[ARM_DOF], ctrl[ARM_DOF + 1] = 0.0, 0.0
    elif action[6] < 0.0:
        ctrl[ARM_DOF], ctrl[ARM_DOF + 1] = FINGER_RANGE_M, -FINGER_RANGE_M


@compiled
def _diverged(pointers: Array) -> bool:
    warning = int32_view(pointers[10], WARNINGS)
    for i in range(1, WARNINGS, 2):
        if warning[i] > 0:
            return True
    for value in float64_view(pointers[1], NQ):
        if not np.isfinite(value):
            return True
    return not np.all(np.isfinite(float64_view(pointers[2], NV)))


@compiled
def _observe(row: int, buffers: Buffers, scene: Scene) -> None:
    """Refresh the kinematics of one environment and write its observation and success."""
    pointers = buffers.pointers[row]
    mj_kinematics(scene.model, pointers[0])
    qpos = float64_view(pointers[1], NQ)
    tool = float64_view(pointers[6], 3)
    tool_matrix = float64_view(pointers[7], 9)
    cube = float64_view(pointers[8] + 24 * scene.cube_body, 3)
    cube_matrix = float64_view(pointers[9] + 72 * scene.cube_body, 9)
    state, environment = buffers.state[row], buffers.environment[row]
    for i in range(3):
        state[i] = tool[i]
        state[3 + i] = tool_matrix[3 * i]
        state[6 + i] = tool_matrix[3 * i + 1]
        environment[i] = cube[i]
        environment[3 + i] = cube_matrix[3 * i]
        environment[6 + i] = cube_matrix[3 * i + 1]
        environment[9 + i] = cube[i] - tool[i]
    state[9], state[10] = qpos[ARM_DOF], qpos[ARM_DOF + 1]
    for j in range(ARM_DOF):
        buffers.joints[row, j] = qpos[j]
    buffers.success[row] = cube[2] > scene.success_height


@compiled
def observe_rows(rows: Array, buffers: Buffers, scene: Scene) -> None:
    """Write the observations of ``rows`` (n,) int64, which have just been reset."""
    for row in rows:
        buffers.diverged[row] = False
        _observe(row, buffers, scene)


@compiled
def step_rows(begin: int, end: int, action: Array, buffers: Buffers, scene: Scene) -> None:
    """Advance environments ``begin`` to ``end`` by one control step of ``action`` (b, 7); ended ones stay as they are."""
    for row in range(begin, end):
        if buffers.ended[row]:
            continue
        pointers = buffers.pointers[row]
        _command(pointers, action[row], scene)
        for _ in range(scene.substeps):
            mj_step(scene.model, pointers[0])
        if _diverged(pointers):
            # The last finite observation stays: a policy must never see NaN.
            buffers.diverged[row] = True
            buffers.success[row] = False
        else:
            _observe(row, buffers, scene)
