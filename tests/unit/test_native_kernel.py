"""The compiled pieces of the native control step against numpy and hand-worked numbers."""

import numpy as np

from sim_envs.native_kernel import DAMPING, MAX_JOINT_STEP_RAD, NULLSPACE_GAIN, joint_step, solve_6x6


def test_cholesky_solves_a_system_worked_by_hand() -> None:
    # diag(4, 9, 1, 1, 1, 1) plus a coupling of 2 between the first two: 4a + 2b = 8, 2a + 9b = 20  =>  a = 1, b = 2.
    matrix = np.diag([4.0, 9.0, 1.0, 1.0, 1.0, 1.0])
    matrix[0, 1] = matrix[1, 0] = 2.0
    rhs = np.array([[8.0], [20.0], [3.0], [4.0], [5.0], [6.0]])
    solve_6x6(matrix, rhs)
    np.testing.assert_allclose(rhs[:, 0], [1, 2, 3, 4, 5, 6], atol=1e-14)


def test_joint_step_is_the_damped_least_squares_solution() -> None:
    rng = np.random.default_rng(0)
    jacobian, twist, home_error = rng.normal(size=(6, 7)), 0.05 * rng.normal(size=6), 0.1 * rng.normal(size=7)
    pseudo_inverse = jacobian.T @ np.linalg.inv(jacobian @ jacobian.T + DAMPING * np.eye(6))
    expected = pseudo_inverse @ twist + (np.eye(7) - pseudo_inverse @ jacobian) @ (NULLSPACE_GAIN * home_error)
    out = np.empty(7)
    joint_step(jacobian, twist, home_error, out)
    assert np.abs(expected).max() < MAX_JOINT_STEP_RAD
    np.testing.assert_allclose(out, expected, atol=1e-12)


def test_null_space_motion_leaves_the_tool_where_it_is() -> None:
    jacobian = np.random.default_rng(1).normal(size=(6, 7))
    out = np.empty(7)
    joint_step(jacobian, np.zeros(6), np.full(7, 0.5), out)
    assert np.abs(out).max() > 1e-3
    assert np.abs(jacobian @ out).max() < 1e-4


def test_a_singular_pose_does_not_make_the_arm_leap() -> None:
    # All joints act alike: five directions are out of reach. The undamped solution would be infinite.
    jacobian = np.ones((6, 7)) * 1e-3
    out = np.empty(7)
    joint_step(jacobian, np.ones(6) * 1e6, np.zeros(7), out)
    np.testing.assert_allclose(out, MAX_JOINT_STEP_RAD)
