"""robosuite's control step compiled: operational-space controller, gripper and physics substeps of many environments in one call.

The arithmetic is that of robosuite 1.5.1 (``OperationalSpaceController``, ``SimpleGripController``, ``PandaGripper``) in its
default Panda configuration, evaluated before every physics substep as robosuite does. Products with the inverse mass matrix are
solved by Cholesky factors where robosuite inverts by LAPACK, which changes the joint angles by about 1e-14 rad. With J the 6 x 7
Jacobian of the grip site, M the arm's mass matrix and Lambda = (J M^-1 J^T)^-1 (Khatib 1987)::

    wrench = [Lambda_pos (kp (x* - x) - kd v), Lambda_ori (kp e_R - kd w)]
    torque = J^T wrench + bias + N^T M a,   a = 10 (q0 - q) - 2 sqrt(10) dq,   N^T M a = M a - J^T Lambda J a

"""

from __future__ import annotations

from typing import NamedTuple

import mujoco
import numpy as np

from robolearn.core.types import Array
from sim_envs.mujoco_symbols import compiled, float64_view, int32_view, mj_copyData, mj_kinematics, mj_step1, mj_step2

KP = 150.0
KD = 2.0 * np.sqrt(KP)
NULL_KP = 10.0
NULL_KD = 2.0 * np.sqrt(NULL_KP)
POSITION_SCALE_M = 0.05
ROTATION_SCALE_RAD = 0.5
GRIPPER_SPEED = 0.2
FIRST_BAD_NUMBER = int(mujoco.mjtWarning.mjWARN_BADQPOS)
LAST_BAD_NUMBER = int(mujoco.mjtWarning.mjWARN_BADCTRL)

# Columns of Slots.addresses.
MODEL, DATA, QPOS, QVEL, CTRL, BIAS, INERTIA, CDOF, SUBTREE_COM = range(9)
BODY_POS, BODY_MAT, SITE_POS, SITE_MAT, WARNINGS = range(9, 14)
ADDRESSES = 14

# Columns of Slots.arms; entries with a width are the first of that many.
GRIP_SITE, BASE_SITE, ROOT_BODY, INERTIA_ROW, ARM_QPOS, ARM_DOF, ARM_ACTUATOR = 0, 1, 2, 3, 10, 17, 24
GRIPPER_ACTUATOR, GRIPPER_QPOS, ARM_COLUMNS = 31, 33, 35

# Layout of one row of measurements, which is also what a reset leaves behind for the first substep.
POS, MAT, LINEAR, ANGULAR, JOINT, SPEED, JACOBIAN, MASS, MEASURED = 0, 3, 12, 15, 18, 25, 32, 74, 123


class Slots(NamedTuple):
    """The arrays of ``n`` environments of one task with ``r`` arms, ``f`` frames, ``p`` success points and ``j`` angles."""

    addresses: Array
    """(n, ADDRESSES) int64."""
    arms: Array
    """(r, ARM_COLUMNS) int64 indices into the model."""
    ctrl_range: Array
    """(r, 9, 2) float64 limits of the 7 joint and 2 finger actuators."""
    frames: Array
    """(f, 3) int64: 0 for a body or 1 for a site, its id, the arm that to_eef refers to."""
    points: Array
    """(p, 2) int64: kind and id."""
    angle_qpos: Array
    """(j,) int64 addresses in qpos."""
    initial_joint: Array
    """(n, r, 7) float64 rest pose of the null space [rad]."""
    finger_command: Array
    """(n, r, 2) float64 in [-1, 1]."""
    stale: Array
    """(n, r, MEASURED) float64: what robosuite's controller measured during reset, used in the first substep after it."""
    fresh_reset: Array
    """(n,) bool: no step has been made since the reset."""
    diverged: Array
    """(n,) bool: MuJoCo met a bad number; the observation below is the last finite one."""
    state: Array
    """(n, 11 r) float32."""
    joint_position: Array
    """(n, 7 r) float32."""
    environment_state: Array
    """(n, 12 f + j) float32."""
    point_positions: Array
    """(n, p, 3) float64 at the start of the last substep."""
    eef_positions: Array
    """(n, r, 3) float64 at the start of the last substep."""
    angles: Array
    """(n, j) float64."""


@compiled
def _clip(value: float, low: float, high: float) -> float:
    """Return ``value`` within [low, high]; NaN stays NaN, which MuJoCo then counts as a bad control."""
    if value < low:
        return low
    return high if value > high else value


@compiled
def measure(row: Array, arm: Array, out: Array) -> None:
    """Fill ``out`` (MEASURED,) with the arm's grip-site pose, Jacobian (mj_jac's formula), speeds and mass matrix (from qM)."""
    site, root = arm[GRIP_SITE], arm[ROOT_BODY]
    position = float64_view(row[SITE_POS] + 24 * site, 3)
    matrix = float64_view(row[SITE_MAT] + 72 * site, 9)
    com = float64_view(row[SUBTREE_COM] + 24 * root, 3)
    ox, oy, oz = position[0] - com[0], position[1] - com[1], position[2] - com[2]
    # Loops instead of slice assignments: each of those costs a second of compilation.
    for i in range(3):
        out[POS + i] = position[i]
    for i in range(9):
        out[MAT + i] = matrix[i]
    for i in range(6):
        out[LINEAR + i] = 0.0
    for k in range(7):
        dof = arm[ARM_DOF + k]
        speed = float64_view(row[QVEL] + 8 * dof, 1)[0]
        out[JOINT + k] = float64_view(row[QPOS] + 8 * arm[ARM_QPOS + k], 1)[0]
        out[SPEED + k] = speed
        c = float64_view(row[CDOF] + 48 * dof, 6)
        linear = c[1] * oz - c[2] * oy + c[3], c[2] * ox - c[0] * oz + c[4], c[0] * oy - c[1] * ox + c[5]
        column = (*linear, c[0], c[1], c[2])
        for i in range(6):
            out[JACOBIAN + 7 * i + k] = column[i]
            out[LINEAR + i] += column[i] * speed
        # qM stores a row as the diagonal entry followed by the dof's ancestors; the arm is a chain on a fixed base.
        entries = float64_view(row[INERTIA] + 8 * arm[INERTIA_ROW + k], k + 1)
        for i in range(k + 1):
            out[MASS + 7 * k + (k - i)] = entries[i]
            out[MASS + 7 * (k - i) + k] = entries[i]


@compiled
def commanded_rotation(delta: Array, out: Array) -> None:
    """Fill ``out`` (3, 3) with the rotation by the scaled and clipped axis-angle vector ``delta[3:6]``.

    robosuite rounds the quaternion to single precision (``transform_utils.quat2mat``), which turns the goal by 1e-8 rad; the same
    rounding, in the same order, keeps the two simulations together.
    """
    x = ROTATION_SCALE_RAD * _clip(delta[3], -1.0, 1.0)
    y = ROTATION_SCALE_RAD * _clip(delta[4], -1.0, 1.0)
    z = ROTATION_SCALE_RAD * _clip(delta[5], -1.0, 1.0)
    angle = np.sqrt(x * x + y * y + z * z)
    sine, safe = np.sin(angle / 2.0), angle if angle > 0.0 else 1.0
    q = np.empty(4, dtype=np.float32)
    q[0], q[1], q[2], q[3] = np.cos(angle / 2.0), x / safe * sine, y / safe * sine, z / safe * sine
    scale = np.sqrt(2.0 / np.dot(q, q))
    for i in range(4):
        q[i] = q[i] * scale
    for i in range(3):
        j, k = (i + 1) % 3, (i + 2) % 3
        low, high = q[min(j, k) + 1], q[max(j, k) + 1]
        out[i, i] = 1.0 - low * low - high * high
        out[i, j] = q[i + 1] * q[j + 1] - q[0] * q[k + 1]
        out[j, i] = q[i + 1] * q[j + 1] + q[0] * q[k + 1]


@compiled
def _set_goal(row: Array, arm: Array, measured: Array, delta: Array, goal: Array) -> None:
    """Fill ``goal`` (12,) with the desired world position and rotation for a pose ``delta`` (6,) in the base frame."""
    base = float64_view(row[SITE_POS] + 24 * arm[BASE_SITE], 3)
    turn = float64_view(row[SITE_MAT] + 72 * arm[BASE_SITE], 9)
    rotation, local = np.empty((3, 3)), np.zeros((3, 4))
    commanded_rotation(delta, rotation)
    # World frame: x* = b + B (d + B^T (x - b)) and R* = B (dR (B^T R)), with b, B the base and x, R the measured pose.
    for i in range(3):
        local[i, 3] = POSITION_SCALE_M * _clip(delta[i], -1.0, 1.0)
        for k in range(3):
            local[i, 3] += turn[3 * k + i] * (measured[POS + k] - base[k])
            for c in range(3):
                local[i, c] += turn[3 * k + i] * measured[MAT + 3 * k + c]
    for i in range(3):
        goal[i] = base[i]
        for c in range(3):
            goal[3 + 3 * i + c] = 0.0
        for k in range(3):
            goal[i] += turn[3 * i + k] * local[k, 3]
            for m in range(3):
                for c in range(3):
                    goal[3 + 3 * i + c] += turn[3 * i + k] * rotation[k, m] * local[m, c]


@compiled
def _cholesky(matrix: Array, n: int) -> None:
    """Replace the lower triangle of the leading ``n`` x ``n`` block by its Cholesky factor; a singular one yields NaN."""
    for i in range(n):
        for j in range(i + 1):
            total = matrix[i, j]
            for k in range(j):
                total -= matrix[i, k] * matrix[j, k]
            matrix[i, j] = np.sqrt(total) if i == j else total / matrix[j, j]


@compiled
def _solve(factor: Array, x: Array, n: int) -> None:
    """Replace ``x`` by the solution of A x = b, given the lower Cholesky factor of A and b in ``x``."""
    for i in range(n):
        for k in range(i):
            x[i] -= factor[i, k] * x[k]
        x[i] /= factor[i, i]
    for i in range(n - 1, -1, -1):
        for k in range(i + 1, n):
            x[i] -= factor[k, i] * x[k]
        x[i] /= factor[i, i]


@compiled
def _inverse_lambda(jacobian: Array, mass: Array, scratch: Array, out: Array) -> None:
    """Fill ``out`` (6, 6) with J M^-1 J^T; ``scratch`` is (7, 7) + (7, 6) side by side: (7, 13)."""
    factor, half = scratch[:, :7], scratch[:, 7:]
    for i in range(7):
        for j in range(i + 1):
            factor[i, j] = mass[i, j]
    _cholesky(factor, 7)
    for c in range(6):
        for i in range(7):
            total = jacobian[c, i]
            for k in range(i):
                total -= factor[i, k] * half[k, c]
            half[i, c] = total / factor[i, i]
    for a in range(6):
        for b in range(a + 1):
            total = 0.0
            for i in range(7):
                total += half[i, a] * half[i, b]
            out[a, b] = total
            out[b, a] = total


@compiled
def _desired_acceleration(measured: Array, goal: Array, out: Array) -> None:
    """Fill ``out`` (6,) with kp times the pose error minus kd times the velocity, before the operational-space inertia."""
    for i in range(3):
        out[i] = KP * (goal[i] - measured[POS + i]) - KD * measured[LINEAR + i]
        out[3 + i] = -KD * measured[ANGULAR + i]
    # e_R = 1/2 sum over columns of (current x desired); both matrices are row-major, so column c is c, c + 3, c + 6.
    for c in range(3):
        x, y, z = measured[MAT + c], measured[MAT + c + 3], measured[MAT + c + 6]
        u, v, w = goal[3 + c], goal[6 + c], goal[9 + c]
        out[3] += KP * 0.5 * (y * w - z * v)
        out[4] += KP * 0.5 * (z * u - x * w)
        out[5] += KP * 0.5 * (x * v - y * u)


@compiled
def joint_torques(measured: Array, goal: Array, initial_joint: Array, scratch: Array, out: Array) -> None:
    """Fill ``out`` (7,) with the arm's joint torques without the bias forces; ``scratch`` is (13, 20)."""
    jacobian, mass = measured[JACOBIAN:MASS].reshape(6, 7), measured[MASS:MEASURED].reshape(7, 7)
    inverse, block, vectors = scratch[:6, 13:19], scratch[7:10, :3], scratch[10:13, :]
    _inverse_lambda(jacobian, mass, scratch[:7, :13], inverse)
    wrench, null, rest = vectors[0, :6], vectors[1, :6], vectors[2, :7]
    _desired_acceleration(measured, goal, wrench)
    for part in (0, 3):
        for i in range(3):
            for j in range(i + 1):
                block[i, j] = inverse[part + i, part + j]
        _cholesky(block, 3)
        _solve(block, wrench[part : part + 3], 3)
    for k in range(7):
        rest[k] = NULL_KP * (initial_joint[k] - measured[JOINT + k]) - NULL_KD * measured[SPEED + k]
    for i in range(6):
        null[i] = 0.0
        for k in range(7):
            null[i] += jacobian[i, k] * rest[k]
    _cholesky(inverse, 6)
    _solve(inverse, null, 6)
    for k in range(7):
        total = 0.0
        for i in range(6):
            total += jacobian[i, k] * (wrench[i] - null[i])
        for i in range(7):
            total += mass[k, i] * rest[i]
        out[k] = total


@compiled
def _command_fingers(slots: Slots, index: int, arm: int, action: float) -> None:
    """Move the finger command by the gripper's speed towards the sign of ``action`` and write it to the two actuators."""
    columns, ctrl = slots.arms[arm], slots.addresses[index, CTRL]
    for finger in range(2):
        direction = -1.0 if finger == 0 else 1.0
        command = slots.finger_command[index, arm, finger] + direction * GRIPPER_SPEED * np.sign(action)
        command = _clip(command, -1.0, 1.0)
        slots.finger_command[index, arm, finger] = command
        low, high = slots.ctrl_range[arm, 7 + finger, 0], slots.ctrl_range[arm, 7 + finger, 1]
        value = 0.5 * (high + low) + 0.5 * (high - low) * command
        float64_view(ctrl + 8 * columns[GRIPPER_ACTUATOR + finger], 1)[0] = _clip(value, low, high)


@compiled
def _command_arm(slots: Slots, index: int, arm: int, work: tuple[Array, Array, Array, Array]) -> None:
    """Write the arm's clipped joint torques for the measurements and goal in ``work``."""
    measured, goal, scratch, torques = work
    row, columns, limits = slots.addresses[index], slots.arms[arm], slots.ctrl_range[arm]
    joint_torques(measured, goal, slots.initial_joint[index, arm], scratch, torques)
    for k in range(7):
        torque = torques[k] + float64_view(row[BIAS] + 8 * columns[ARM_DOF + k], 1)[0]
        float64_view(row[CTRL] + 8 * columns[ARM_ACTUATOR + k], 1)[0] = _clip(torque, limits[k, 0], limits[k, 1])


@compiled
def _bad_numbers(row: Array, first: int, last: int) -> bool:
    """Return whether MuJoCo has counted any warning of types ``first`` to ``last``."""
    # An array of structs {int lastinfo; int number}; the address is that of the first ``number``.
    counts = int32_view(row[WARNINGS], 2 * last + 1)
    total = 0
    for kind in range(first, last + 1):
        total += counts[2 * kind]
    return total > 0


@compiled
def step_slots(slots: Slots, indices: Array, actions: Array, substeps: int) -> None:
    """Make one control step of the environments ``indices`` and refresh their observations.

    Args:
        slots: the environments.
        indices: (m,) int64 rows of ``slots``.
        actions: (m, 7 r) float64, pose delta and gripper of each arm.
        substeps: physics steps per control step.
    """
    num_arms = slots.arms.shape[0]
    measured, goals = np.empty((num_arms, MEASURED)), np.empty((num_arms, 12))
    scratch, torques = np.empty((13, 20)), np.empty(7)
    for position in range(indices.shape[0]):
        index = indices[position]
        row = slots.addresses[index]
        for substep in range(substeps):
            mj_step1(row[MODEL], row[DATA])
            for arm in range(num_arms):
                if slots.fresh_reset[index]:
                    for i in range(MEASURED):
                        measured[arm, i] = slots.stale[index, arm, i]
                else:
                    measure(row, slots.arms[arm], measured[arm])
                if substep == 0:
                    action = actions[position, 7 * arm : 7 * arm + 7]
                    _set_goal(row, slots.arms[arm], measured[arm], action, goals[arm])
                    _command_fingers(slots, index, arm, action[6])
                _command_arm(slots, index, arm, (measured[arm], goals[arm], scratch, torques))
            slots.fresh_reset[index] = False
            mj_step2(row[MODEL], row[DATA])
            if _bad_numbers(row, FIRST_BAD_NUMBER, LAST_BAD_NUMBER):
                slots.diverged[index] = True
                break
        if not slots.diverged[index]:
            gather_success(slots, index)
            observe(slots, index)


@compiled
def gather_success(slots: Slots, index: int) -> None:
    """Copy what success is judged by, before kinematics are brought up to date, as robosuite judges it."""
    row = slots.addresses[index]
    for p in range(slots.points.shape[0]):
        kind, element = slots.points[p, 0], slots.points[p, 1]
        base = row[BODY_POS] if kind == 0 else row[SITE_POS]
        for i in range(3):
            slots.point_positions[index, p, i] = float64_view(base + 24 * element, 3)[i]
    for arm in range(slots.arms.shape[0]):
        for i in range(3):
            slots.eef_positions[index, arm, i] = float64_view(row[SITE_POS] + 24 * slots.arms[arm, GRIP_SITE], 3)[i]
    for j in range(slots.angle_qpos.shape[0]):
        slots.angles[index, j] = float64_view(row[QPOS] + 8 * slots.angle_qpos[j], 1)[0]


@compiled
def observe(slots: Slots, index: int) -> None:
    """Bring kinematics up to date and write the observation of one environment."""
    row = slots.addresses[index]
    mj_kinematics(row[MODEL], row[DATA])
    for arm in range(slots.arms.shape[0]):
        columns, out = slots.arms[arm], slots.state[index, 11 * arm : 11 * arm + 11]
        site = columns[GRIP_SITE]
        _write_pose(row[SITE_POS] + 24 * site, row[SITE_MAT] + 72 * site, out)
        for finger in range(2):
            out[9 + finger] = float64_view(row[QPOS] + 8 * columns[GRIPPER_QPOS + finger], 1)[0]
        for k in range(7):
            slots.joint_position[index, 7 * arm + k] = float64_view(row[QPOS] + 8 * columns[ARM_QPOS + k], 1)[0]
    count = slots.frames.shape[0]
    for f in range(count):
        kind, element, arm = slots.frames[f, 0], slots.frames[f, 1], slots.frames[f, 2]
        out = slots.environment_state[index, 12 * f : 12 * f + 12]
        position = (row[BODY_POS] if kind == 0 else row[SITE_POS]) + 24 * element
        _write_pose(position, (row[BODY_MAT] if kind == 0 else row[SITE_MAT]) + 72 * element, out)
        eef = float64_view(row[SITE_POS] + 24 * slots.arms[arm, GRIP_SITE], 3)
        for i in range(3):
            out[9 + i] = float64_view(position, 3)[i] - eef[i]
    for j in range(slots.angle_qpos.shape[0]):
        slots.environment_state[index, 12 * count + j] = float64_view(row[QPOS] + 8 * slots.angle_qpos[j], 1)[0]


@compiled
def _write_pose(position_address: int, matrix_address: int, out: Array) -> None:
    """Write position 3 and the first two matrix columns 6 into ``out``."""
    position, matrix = float64_view(position_address, 3), float64_view(matrix_address, 9)
    for i in range(3):
        out[i] = position[i]
        out[3 + i] = matrix[3 * i]
        out[6 + i] = matrix[3 * i + 1]


@compiled
def copy_data(destination: int, model: int, source: int) -> None:
    """Copy one MjData (by address) into another of the same sizes."""
    mj_copyData(destination, model, source)
