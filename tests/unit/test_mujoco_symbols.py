"""MuJoCo called from compiled code does what it does from Python."""

import mujoco
import numba
import numpy as np
import pytest

from sim_envs import mujoco_symbols as symbols

BALL = (
    "<mujoco><worldbody><body pos='0 0 1'><freejoint/><geom size='.1'/><site name='s' pos='.1 0 0'/></body></worldbody></mujoco>"
)


@symbols.compiled
def fall(model, data, qpos, steps):
    for _ in range(steps):
        symbols.mj_step(model, data)
    return symbols.float64_view(qpos, 7).copy()


@symbols.compiled
def site_jacobian(model, data, nv):
    linear, angular = np.zeros((3, nv)), np.zeros((3, nv))
    symbols.mj_jacSite(model, data, symbols.address_of(linear), symbols.address_of(angular), 0)
    return linear, angular


@pytest.fixture
def ball():
    model = mujoco.MjModel.from_xml_string(BALL)
    return model, mujoco.MjData(model)


def test_steps_are_mujocos(ball):
    model, data = ball
    twin = mujoco.MjData(model)
    mujoco.mj_step(model, twin, 10)
    seen = fall(model._address, data._address, symbols.array_address(data.qpos), 10)
    assert np.array_equal(seen, twin.qpos)
    # Semi-implicit Euler, n steps of h = 2 ms: z = 1 - g h^2 n (n + 1) / 2 = 1 - 9.81 * 4e-6 * 55 = 0.9978418.
    assert seen[2] == pytest.approx(0.9978418, abs=1e-9)


def test_jacobian_is_mujocos(ball):
    model, data = ball
    mujoco.mj_forward(model, data)
    linear, angular = np.zeros((3, 6)), np.zeros((3, 6))
    mujoco.mj_jacSite(model, data, linear, angular, 0)
    seen = site_jacobian(model._address, data._address, model.nv)
    assert np.array_equal(seen[0], linear)
    assert np.array_equal(seen[1], angular)


def test_integers_are_read_where_they_lie(ball):
    _, data = ball

    @symbols.compiled
    def first(address):
        return symbols.int32_view(address, 1)[0]

    data.warning.number[0] = 41
    assert first(symbols.array_address(data.warning.number)) == 41


def test_a_function_without_a_cache_folder_is_compiled_all_the_same():
    # Stands for a read-only installation: source that is no file has no place for a cache either.
    space = {}
    exec("def double(x):\n    return 2 * x", space)
    with pytest.raises(RuntimeError, match="cannot cache"):
        numba.njit(cache=True)(space["double"])
    assert symbols.compiled(space["double"])(21) == 42
