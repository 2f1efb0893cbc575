"""The compiled controller against MuJoCo's functions, robosuite's functions and numbers worked by hand."""

import importlib

import mujoco
import numpy as np
import pytest

from sim_envs import osc_kernel as kernel
from sim_envs.task import EnvOptions, make_env


def compute_rotation(vector):
    """The commanded rotation for an action whose rotation part is ``vector``."""
    out = np.empty((3, 3))
    kernel.commanded_rotation(np.array([0.0, 0.0, 0.0, *vector]), out)
    return out


@pytest.mark.parametrize("task", ["lift", "two_arm_lift"])
def test_measurements_are_mujocos(task):
    env = make_env(task, EnvOptions(num_envs=1))
    env.reset([3])
    rng = np.random.default_rng(0)
    for _ in range(3):
        env.step(rng.uniform(-1, 1, (1, env.spec.spaces.action_dim)))
    model, data, slots = env._simulators.models[0], env._simulators.datas[0], env._simulators.slots
    mujoco.mj_step1(model, data)
    dense = np.zeros((model.nv, model.nv))
    mujoco.mj_fullM(model, dense, data.qM)
    for arm, columns in enumerate(slots.arms):
        measured = np.zeros(kernel.MEASURED)
        kernel.measure(slots.addresses[0], columns, measured)
        dofs, site = columns[kernel.ARM_DOF : kernel.ARM_DOF + 7], columns[kernel.GRIP_SITE]
        assert mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_SITE, site) == f"gripper{arm}_right_grip_site"
        linear, angular = np.zeros((3, model.nv)), np.zeros((3, model.nv))
        mujoco.mj_jacSite(model, data, linear, angular, site)
        expected = np.vstack([linear, angular])
        assert np.array_equal(measured[kernel.POS : kernel.POS + 3], data.site_xpos[site])
        assert np.array_equal(measured[kernel.MAT : kernel.MAT + 9], data.site_xmat[site])
        np.testing.assert_array_equal(measured[kernel.JACOBIAN : kernel.MASS].reshape(6, 7), expected[:, dofs])
        np.testing.assert_array_equal(measured[kernel.MASS :].reshape(7, 7), dense[np.ix_(dofs, dofs)])
        np.testing.assert_allclose(measured[kernel.LINEAR : kernel.LINEAR + 6], expected @ data.qvel, atol=1e-14)


def test_quarter_turn_about_z():
    # The rotation scale is 0.5 rad at action 1: cos 0.5 = 0.87758, sin 0.5 = 0.47943. Single precision keeps 7 digits.
    expected = [[0.87758256, -0.47942554, 0], [0.47942554, 0.87758256, 0], [0, 0, 1]]
    np.testing.assert_allclose(compute_rotation([0, 0, 1.0]), expected, atol=2e-7)
    # Beyond 1 the action is clipped; zero is exactly the identity.
    assert np.array_equal(compute_rotation([0, 0, 7.0]), compute_rotation([0, 0, 1.0]))
    assert np.array_equal(compute_rotation([0, 0, 0]), np.eye(3))


def test_rotation_is_robosuites_to_the_last_bit():
    # The bug this pins: robosuite rounds the quaternion to float32; without that the arms part by 1e-4 rad in 100 steps.
    transforms = importlib.import_module("robosuite.utils.transform_utils")
    rng = np.random.default_rng(1)
    for vector in rng.uniform(-1, 1, (200, 3)):
        expected = transforms.quat2mat(transforms.axisangle2quat(0.5 * vector))
        assert np.array_equal(compute_rotation(vector), expected)


def test_torques_are_robosuites():
    control = importlib.import_module("robosuite.utils.control_utils")
    rng = np.random.default_rng(2)
    for _ in range(20):
        root = rng.normal(size=(7, 7))
        mass, jacobian = root @ root.T + np.eye(7), rng.normal(size=(6, 7))
        measured, goal = np.zeros(kernel.MEASURED), np.zeros(12)
        measured[kernel.POS : kernel.POS + 3], goal[:3] = rng.normal(size=3), rng.normal(size=3)
        measured[kernel.MAT : kernel.MAT + 9], goal[3:] = _random_rotation(rng).ravel(), _random_rotation(rng).ravel()
        measured[kernel.LINEAR : kernel.JACOBIAN] = rng.normal(size=kernel.JACOBIAN - kernel.LINEAR)
        measured[kernel.JACOBIAN : kernel.MASS], measured[kernel.MASS :] = jacobian.ravel(), mass.ravel()
        rest, torques = rng.normal(size=7), np.zeros(7)
        kernel.joint_torques(measured, goal, rest, np.empty((13, 20)), torques)

        force = 150 * (goal[:3] - measured[:3]) - 2 * np.sqrt(150) * measured[kernel.LINEAR : kernel.ANGULAR]
        error = control.orientation_error(goal[3:].reshape(3, 3), measured[kernel.MAT : kernel.MAT + 9].reshape(3, 3))
        torque = 150 * error - 2 * np.sqrt(150) * measured[kernel.ANGULAR : kernel.JOINT]
        # The mass matrix in the memory order in which robosuite passes it: numba has that version compiled.
        blocks = jacobian, jacobian[:3].copy(), jacobian[3:].copy()
        _, of_position, of_rotation, null = control.opspace_matrices(np.asfortranarray(mass), *blocks)
        expected = jacobian.T @ np.concatenate([of_position @ force, of_rotation @ torque])
        joint, speed = measured[kernel.JOINT : kernel.SPEED], measured[kernel.SPEED : kernel.JACOBIAN]
        expected += control.nullspace_torques(np.asfortranarray(mass), null, rest, joint, speed)
        np.testing.assert_allclose(torques, expected, rtol=1e-9, atol=1e-9)


def _random_rotation(rng):
    matrix, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    return matrix * np.sign(np.linalg.det(matrix))


def test_fingers_close_in_steps_of_a_fifth():
    env = make_env("lift", EnvOptions(num_envs=1))
    env.reset([0])
    slots, data = env._simulators.slots, env._simulators.datas[0]
    fingers = slots.arms[0, kernel.GRIPPER_ACTUATOR : kernel.GRIPPER_ACTUATOR + 2]
    close = np.array([[0, 0, 0, 0, 0, 0, 1.0]])
    # Commands start at 0 and move by 0.2 per step; ctrl = centre + half range x command with ranges [0, 0.04] and [-0.04, 0]:
    # 0.02 + 0.02 x (-0.2) = 0.016 and -0.02 + 0.02 x 0.2 = -0.016.
    env.step(close)
    np.testing.assert_allclose(data.ctrl[fingers], [0.016, -0.016], atol=1e-12)
    for _ in range(6):
        env.step(close)
    np.testing.assert_allclose(data.ctrl[fingers], [0.0, 0.0], atol=1e-12)
    env.step(-close)
    np.testing.assert_allclose(data.ctrl[fingers], [0.004, -0.004], atol=1e-12)
