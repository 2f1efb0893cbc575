"""The conveyor: the belt carries the cube, the fingers take it off, and who waits is too late."""

import numpy as np
import pytest

from robolearn.core.types import ENVIRONMENT_STATE, STATE
from sim_envs.conveyor_env import SPEED_M_S, ConveyorEnv
from sim_envs.conveyor_model import BELT_HALF_SIZE_M, TABLE_TOP_M
from sim_envs.experts.conveyor import ConveyorExpert
from sim_envs.native_model import CONTROL_RATE_HZ
from sim_envs.task import EnvOptions, make_env


def make(num_envs: int = 8) -> ConveyorEnv:
    env = make_env("conveyor", EnvOptions(num_envs=num_envs))
    assert isinstance(env, ConveyorEnv)
    return env


def solved(env: ConveyorEnv, expert: ConveyorExpert, seeds: list[int]) -> np.ndarray:
    observation = env.reset(seeds)
    expert.reset(seeds)
    while True:
        step = env.step(expert.act(observation)[0])
        observation = step.observation
        if step.ended.all():
            return step.success


def test_the_belt_carries_the_cube_at_its_own_speed() -> None:
    env = make()
    still = np.zeros((8, 7), np.float32)
    first = env.reset(list(range(8)))[ENVIRONMENT_STATE]
    for _ in range(20):
        last = env.step(still).observation[ENVIRONMENT_STATE]
    speed = (last[:, 1] - first[:, 1]) / (20 / CONTROL_RATE_HZ)
    assert (np.abs(speed) > SPEED_M_S[0] - 1e-3).all()
    assert (np.abs(speed) < SPEED_M_S[1] + 1e-3).all()
    assert {-1.0, 1.0} == set(np.sign(speed))
    # Towards the middle of the table, in a straight line, flat on the belt; the cube is 42 mm high.
    assert (np.sign(first[:, 1]) == -np.sign(speed)).all()
    np.testing.assert_allclose(last[:, 0], first[:, 0], atol=1e-3)
    np.testing.assert_allclose(last[:, 2], TABLE_TOP_M + 2 * BELT_HALF_SIZE_M[2] + 0.021, atol=1e-3)
    np.testing.assert_allclose(last[:, 3:9], first[:, 3:9], atol=1e-2)
    env.close()


def test_a_carried_cube_counts_only_when_it_is_lifted() -> None:
    env = make(4)
    seeds = [40, 41, 42, 43]
    assert solved(env, ConveyorExpert(4), seeds).all()
    # Nothing of the belt's motion is left in a lifted cube: it rests between the fingers.
    state = env.qpos()
    assert (state[:, 11] > TABLE_TOP_M + 0.04).all()
    env.close()


def test_an_operator_who_ignores_the_motion_closes_behind_the_cube(monkeypatch: pytest.MonkeyPatch) -> None:
    env, behind = make(), {}
    for lead in (0.0, 1.5):
        monkeypatch.setattr("sim_envs.experts.conveyor.LEAD_STEPS", lead)
        expert = ConveyorExpert(8)
        observation = env.reset(list(range(8)))
        expert.reset(list(range(8)))
        gaps = np.full(8, np.nan)
        for _ in range(40):
            step = env.step(expert.act(observation)[0])
            moved = np.sign(step.observation[ENVIRONMENT_STATE][:, 1] - observation[ENVIRONMENT_STATE][:, 1])
            observation = step.observation
            closed = np.isnan(gaps) & (observation[STATE][:, 9] - observation[STATE][:, 10] < 0.07)
            gaps[closed] = (moved * observation[ENVIRONMENT_STATE][:, 10])[closed]
        behind[lead] = np.nanmean(gaps)
    assert behind[0.0] > behind[1.5] + 2e-3
    env.close()
