"""Demonstrations in replay form: the base policy is asked what it would have done at every step of every demonstration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robolearn.core.types import ACTION, require_compatible
from robolearn.data.dataset import WindowConfig, WindowDataset
from robolearn.data.replay_buffer import ReplayBuffer
from robolearn.data.store import EpisodeStore

_ROWS = 1024
"""Windows encoded at once."""


def demonstration_replay(
    base: Any,
    store: EpisodeStore,
    episodes: Sequence[int],
    *,
    exec_horizon: int,
    plan_steps: int,
    discount: float,
    timeouts_fail: bool,
    seed: int,
) -> ReplayBuffer:
    """Return demonstrations as one lane of replay; a success earns the reward 1 at its last step, a failure nothing.

    The executed actions are those that were sent. ``plan`` holds the base policy's open-loop chunks, decided every
    ``exec_horizon`` steps **from the first step of each episode on**, so that no chunk reaches across two episodes.

    Args:
        base: the frozen policy; its observation keys are read.
        store: the demonstrations.
        episodes: positions in the store; failures are worth having too, critics learn from the contrast.
        exec_horizon: as it will be executed online.
        plan_steps: actions of each step's plan that are kept.
        discount: per control step.
        timeouts_fail: a failure ends with the value 0 instead of being cut.
        seed: of the base's noise.

    Raises:
        RefusedError: the store is of another robot or action space.
    """
    require_compatible(base.spaces, store.header.spaces, what=f"demonstrations of {store.path}")
    sent = "action.sent" if "action.sent" in store.header.streams else ACTION
    keys = list(base.spaces.observation)
    device = next(iter(base.state_dict().values())).device
    windows = WindowDataset(store, WindowConfig(base.obs_horizon, 1, sent), episodes=list(episodes), keys=keys, device=device)
    rng = torch.Generator(device=device).manual_seed(seed)
    conditions, actions, plans = [], [], []
    half, centre = _scaling(base, device)
    with torch.inference_mode():
        for begin in range(0, len(windows), _ROWS):
            batch = windows.batch(torch.arange(begin, min(begin + _ROWS, len(windows))))
            condition = base.condition({key: batch[key] for key in keys})
            chunk = _chunks(base, condition, {key: batch[key] for key in keys}, rng)
            conditions.append(condition.float())
            actions.append(((batch[ACTION][:, 0] - centre) / half).clamp(-1.0, 1.0))
            plans.append(((chunk - centre) / half).clamp(-1.0, 1.0))
    return _as_replay(
        torch.cat(conditions).clone(),
        torch.cat(actions).clone(),
        torch.cat(plans).clone(),
        windows.lengths,
        np.array([store.successes[i] for i in episodes]),
        exec_horizon=exec_horizon,
        plan_steps=plan_steps,
        discount=discount,
        timeouts_fail=timeouts_fail,
    )


def _chunks(base: Any, condition: Tensor, observation: dict[str, Tensor], rng: torch.Generator) -> Tensor:
    """Return the base's chunk (b, h, a) at every row, raw units."""
    if not hasattr(base, "decode_condition"):
        return base.predict_tensor(observation, rng)
    noise = torch.randn((len(condition), *base.latent_shape), generator=rng, device=condition.device)
    return base.decode_condition(condition, noise)


def _as_replay(
    condition: Tensor,
    action: Tensor,
    chunks: Tensor,
    lengths: np.ndarray,
    successes: np.ndarray,
    *,
    exec_horizon: int,
    plan_steps: int,
    discount: float,
    timeouts_fail: bool,
) -> ReplayBuffer:
    total, device = len(condition), condition.device
    # Step t of an episode executes row (t mod exec_horizon) of the chunk decided at t - (t mod exec_horizon).
    offset = torch.as_tensor(np.concatenate([np.arange(n) % exec_horizon for n in lengths]), device=device)
    decided = torch.arange(total, device=device) - offset
    columns = (offset[:, None] + torch.arange(plan_steps, device=device)).clamp(max=chunks.shape[1] - 1)
    plan = chunks[decided[:, None], columns].flatten(1)
    last = torch.zeros(total, dtype=torch.bool, device=device)
    solved = torch.zeros_like(last)
    last[torch.as_tensor(np.cumsum(lengths) - 1, device=device)] = True
    solved[torch.as_tensor((np.cumsum(lengths) - 1)[successes], device=device)] = True
    dims = {"condition": condition.shape[1], ACTION: action.shape[1], "plan": plan.shape[1]}
    buffer = ReplayBuffer(lanes=1, capacity=total, dims=dims, discount=discount, device=device)
    buffer.fill(
        {"condition": condition[:, None], ACTION: action[:, None], "plan": plan[:, None]},
        reward=solved[:, None].float(),
        terminated=(last if timeouts_fail else solved)[:, None],
        ended=last[:, None],
    )
    return buffer


def _scaling(base: Any, device: torch.device) -> tuple[Tensor, Tensor]:
    low = torch.tensor(base.spaces.action_low, device=device)
    high = torch.tensor(base.spaces.action_high, device=device)
    return (high - low) / 2, (high + low) / 2
