"""A tiny real environment for rollout tests: a point moves on a line to a goal that its seed draws. Pure numpy, batched."""

from __future__ import annotations

import numpy as np

from robolearn.core.errors import RefusedError
from robolearn.core.seeding import standard_normal
from robolearn.core.types import ENVIRONMENT_STATE, STATE, ActionChunk, EnvSpec, FeatureSpec, Spaces, Step

STEP = 0.1


def reach_spaces(robot="point"):
    return Spaces(
        robot=robot,
        observation={
            STATE: FeatureSpec((1,), names=("x",)),
            ENVIRONMENT_STATE: FeatureSpec((1,), names=("goal",)),
        },
        action=FeatureSpec((1,), names=("dx",)),
        action_low=(-1.0,),
        action_high=(1.0,),
        control_rate_hz=10.0,
    )


class ReachEnv:
    """x += 0.1 a; goal in [0.5, 1.5] from the seed; success within 0.06 of it; truncated after ``max_episode_steps``."""

    def __init__(self, num_envs, max_episode_steps=30, spaces=None):
        self.num_envs = num_envs
        self.spec = EnvSpec("reach", "native", spaces or reach_spaces(), max_episode_steps, cameras=("side",))
        self.x, self.goal = np.zeros(num_envs), np.zeros(num_envs)
        self.t = np.zeros(num_envs, int)
        self.over = np.ones(num_envs, bool)
        self.success = np.zeros(num_envs, bool)
        self.resets = []
        self.received = []

    def reset(self, seeds, mask=None):
        mask = np.ones(self.num_envs, bool) if mask is None else mask
        self.resets.append([int(s) for s, m in zip(seeds, mask, strict=True) if m])
        for i in np.flatnonzero(mask):
            self.goal[i] = np.random.default_rng(int(seeds[i])).uniform(0.5, 1.5)
        self.x[mask], self.t[mask], self.over[mask], self.success[mask] = 0, 0, False, False
        return self._observe()

    def step(self, action):
        if action.shape != (self.num_envs, 1) or not np.isfinite(action).all():
            raise RefusedError(f"Bad action {action}.")
        self.received.append(action.copy())
        live = ~self.over
        self.x[live] += STEP * action[live, 0]
        self.t[live] += 1
        self.success[live] = (np.abs(self.x - self.goal) <= 0.06)[live]
        truncated = (self.t >= self.spec.max_episode_steps) & ~self.success
        self.over |= self.success | truncated
        return Step(self._observe(), self.success.astype(np.float32), self.success.copy(), truncated, self.success.copy())

    def render(self, index, camera, height, width):
        """A white bar whose column is the position, and a grey one for the goal."""
        picture = np.zeros((height, width, 3), np.uint8)
        picture[:, int(np.clip(self.goal[index] / 2, 0, 0.99) * width)] = 128
        picture[:, int(np.clip(self.x[index] / 2, 0, 0.99) * width)] = 255
        return picture

    def close(self):
        pass

    def _observe(self):
        return {STATE: self.x[:, None].astype(np.float32), ENVIRONMENT_STATE: self.goal[:, None].astype(np.float32)}


class NoisyReacher:
    """Moves towards the goal at ``speed``, with noise drawn from each row's own generator."""

    def __init__(self, noise=0.0, speed=1.0, obs_horizon=2, pred_horizon=4, spaces=None):
        self.spaces = spaces or reach_spaces()
        self.obs_horizon, self.pred_horizon = obs_horizon, pred_horizon
        self.noise, self.speed = noise, speed
        self.batches = []

    def predict(self, observation, rng):
        x, goal = observation[STATE][:, -1, 0], observation[ENVIRONMENT_STATE][:, -1, 0]
        rows = len(x)
        self.batches.append(rows)
        noise = self.noise * standard_normal(rng, (rows, self.pred_horizon, 1))
        return ActionChunk(np.float32(self.speed * np.sign(goal - x)[:, None, None] + noise))
