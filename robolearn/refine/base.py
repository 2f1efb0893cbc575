"""What all refinement methods share: how critics learn, who explores, the frozen base, and what a checkpoint holds."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from robolearn.core.config import Named
from robolearn.core.errors import RefusedError
from robolearn.core.observation import flat_streams
from robolearn.core.protocols import RandomSource
from robolearn.core.types import ActionChunk, Array, Observation
from robolearn.data.normalizer import Normalizer
from robolearn.data.replay_buffer import CONDITION, ReplayBatch
from robolearn.nets.critics import CriticConfig, CriticEnsemble, follow
from robolearn.policies import make_policy
from robolearn.policies.refined import RefinedPolicy
from robolearn.train.checkpoint import require_same_tensors
from robolearn.train.device import multiplies_bf16

Precision = Literal["fp32", "bf16", "auto"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


@dataclass(frozen=True)
class LearnerConfig:
    """What the critics of every method share."""

    critic: CriticConfig = field(default_factory=lambda: CriticConfig(members=5, layers=2))
    """The critics."""
    window_steps: int = 4
    """n of the n-step return, control steps."""
    discount: float = 0.999
    """Per control step. A smaller one makes waiting cost more than critics can tell of a failure, and haste is learned first."""
    critic_learning_rate: float = 3.0e-4
    """Adam's, of all critics."""
    target_rate: float = 0.02
    """How fast target networks follow. Waiting bootstraps from itself, and its value sinks only as fast as they do."""
    outcome_weight: float = 1.0
    """Share of the return that the episode really had in the target, where it is known; the rest is bootstrapped. It carries
    success and failure back over a whole episode at once."""
    max_gradient_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    value_range: tuple[float, float] | None = (0.0, 1.0)
    """Returns that are possible; targets are clipped to them. With a reward of 1 on success none is outside [0, 1]. Null does
    not clip."""
    precision: Precision = "fp32"
    """Arithmetic of the networks; ``auto`` takes bf16 where the processor or GPU has instructions for it, fp32 elsewhere."""
    cuda_graph: bool = False
    """Record the updates and replay them (:mod:`robolearn.refine.recorded`); needs a GPU."""
    uses_demonstrations: ClassVar[bool] = True
    """Whether demonstrations may be given; every method's ``Config`` says so."""

    def __post_init__(self) -> None:
        if self.window_steps < 1 or not 0 < self.discount < 1:
            raise RefusedError(f"window_steps={self.window_steps} must be >= 1 and discount={self.discount} in (0, 1).")
        if not 0 <= self.outcome_weight <= 1:
            raise RefusedError(f"outcome_weight={self.outcome_weight} must lie in [0, 1].")
        if self.critic.members < 2:
            raise RefusedError(
                f"critic.members={self.critic.members} must be >= 2: how far critics disagree is asked everywhere."
            )
        if self.precision not in PRECISIONS:
            raise RefusedError(f"precision={self.precision!r} must be one of {', '.join(PRECISIONS)}.")

    def in_bf16(self, device: torch.device) -> bool:
        """Return whether networks compute in bfloat16 on ``device``."""
        return self.precision == "bf16" or (self.precision == "auto" and multiplies_bf16(device.type))

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """Return the context in which networks compute on ``device``."""
        return torch.autocast(device.type, torch.bfloat16) if self.in_bf16(device) else nullcontext()


class Critics:
    """An ensemble that learns, its slow copy, from which targets come, and its optimiser.

    Attributes:
        online, slow: the two ensembles.
        optimizer: of the former.
    """

    def __init__(self, slow: CriticEnsemble, config: LearnerConfig) -> None:
        self.online: CriticEnsemble = copy.deepcopy(slow).requires_grad_(True)
        self.slow = slow.requires_grad_(False)
        self.optimizer = adam(self.online.parameters(), config.critic_learning_rate)
        self._config = config

    def learn(self, batch: ReplayBatch, action: Tensor, following: Tensor) -> dict[str, Tensor]:
        """Make one step on ``(Q_i(s, action) - y)^2`` and let the slow copy follow; return metrics.

        ``y = clip(settle(returns + bootstrap following))``, see :func:`settle`.

        Args:
            batch: the transitions.
            action: (b, d) what is valued at their first step.
            following: (b,) value of the state that is bootstrapped from.
        """
        config = self._config
        target = settle(batch.returns + batch.bootstrap * following, batch, config.outcome_weight)
        if config.value_range is not None:
            target = target.clamp(*config.value_range)
        metrics = fit(self.online, self.optimizer, (batch.condition, action), target, config)
        follow(self.slow, self.online, config.target_rate)
        return metrics | {"q_target": target.mean()}


def fit(
    critics: CriticEnsemble, optimizer: torch.optim.Optimizer, inputs: tuple[Tensor, ...], target: Tensor, config: LearnerConfig
) -> dict[str, Tensor]:
    """Make one step of all members towards ``target``, (b,) or (e, b); return metrics."""
    with config.autocast(target.device):
        values = critics(*inputs).float()
    loss = (values - target).square().mean(dim=1).sum()
    descend(loss, critics, optimizer, config.max_gradient_norm)
    values = values.detach()
    return {"loss": loss.detach() / len(values), "q_mean": values.mean(), "q_spread": values.std(dim=0).mean()}


class Behaviour:
    """The policy that explores. Subclasses say how; this one acts like the refined policy, like its base in the warm-up.

    Attributes:
        warmup: whether the frozen base acts.
        ages: (lanes,) steps that the episode of every lane has taken so far.
        asked: lanes that the next :meth:`predict` is about, one per row; :meth:`correct` is about all.
        noted: name -> (lanes, d), what is recorded of the last step: the condition, and what a subclass adds.
    """

    def __init__(self, policy: RefinedPolicy) -> None:
        self._policy: Any = policy
        self.spaces, self.obs_horizon, self.pred_horizon = policy.spaces, policy.obs_horizon, policy.pred_horizon
        self.device = policy.device
        self.condition_dim: int = policy.encoder.condition_dim
        self.warmup = True
        self.ages: Array = np.zeros(0, np.int64)
        self.asked: Array = np.zeros(0, np.int64)
        self.noted: dict[str, Tensor] = {}

    def predict(self, observation: Observation, rng: RandomSource) -> ActionChunk:
        """See :meth:`robolearn.core.protocols.Policy.predict`."""
        return (self._policy.base if self.warmup else self._policy).predict(observation, rng)

    def correct(self, observation: Observation, action: Array, rng: RandomSource) -> Array:
        """Return ``action``; notes the condition."""
        self.note(observation)
        return action

    def note(self, observation: Observation) -> Tensor:
        """Keep and return the condition (b, c)."""
        with torch.inference_mode():
            condition = self._policy.condition(self._policy.encoder.read(observation, self.device))
        condition = condition.clone()
        self.noted = {CONDITION: condition}
        return condition


def wrap(base: nn.Module, name: str, config: Any) -> Any:
    """Return refined policy ``name`` around ``base``, whose weights it copies; equal to the base until it has learned.

    Args:
        base: a loaded policy.
        name: one of the refined policies, such as ``corrected``, ``steered`` or ``selected``.
        config: its configuration; the field ``base`` is filled in.

    Raises:
        RefusedError: the base has no weights or lacks what the method needs.
    """
    if not isinstance(base, nn.Module):
        raise RefusedError("Only a policy with weights can be refined.")
    own = base.card()  # type: ignore[operator]
    spaces: Any = base.spaces
    config = replace(config, base=Named(own["policy"], base.config))  # type: ignore[arg-type]
    normalizer = Normalizer(flat_streams(spaces), own["normalizer"]) if own["normalizer"] else None
    refined: Any = make_policy(name, config, spaces, normalizer)
    refined.base.load_state_dict(base.state_dict())
    refined.to(next(iter(base.state_dict().values())).device).eval()
    return refined


def weights_hash(module: nn.Module) -> str:
    """Return a SHA-256 over the names, types and bytes of all tensors of ``module``."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        value = tensor.detach().cpu().contiguous()
        digest.update(f"{name}:{value.dtype}:{tuple(value.shape)}:".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return digest.hexdigest()


def adam(parameters: Iterable[Tensor], learning_rate: float) -> torch.optim.Adam:
    """Return Adam whose step is one kernel and, on a GPU, can be recorded: its count of steps stays on the device."""
    listed = list(parameters)
    return torch.optim.Adam(listed, learning_rate, fused=True, capturable=listed[0].is_cuda)


def descend(loss: Tensor, module: nn.Module, optimizer: torch.optim.Optimizer, max_norm: float) -> None:
    """Make one optimiser step of what wants gradients in ``module``; nothing else that ``loss`` depends on gets one."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        parameter.grad = gradient
    nn.utils.clip_grad_norm_(parameters, max_norm)
    optimizer.step()
    torch.autograd.graph.increment_version(parameters)  # a fused step does not say that it wrote


def module_tensors(modules: Mapping[str, nn.Module], optimizers: Mapping[str, torch.optim.Optimizer]) -> dict[str, Tensor]:
    """Return weights and Adam states by name."""
    tensors = {f"{name}/{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}
    for name, optimizer in optimizers.items():
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{name}/{index}/{key}": value for key, value in state.items()}
    return tensors


def restore_modules(
    tensors: Mapping[str, Tensor], modules: Mapping[str, nn.Module], optimizers: Mapping[str, torch.optim.Optimizer]
) -> None:
    """Load what :func:`module_tensors` returned.

    Raises:
        RefusedError: the tensors are those of other networks.
    """
    for name, module in modules.items():
        found = {key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")}
        require_same_tensors(module.state_dict(), found, where=f"checkpoint's {name}")
        module.load_state_dict(found)
    for name, optimizer in optimizers.items():
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith(f"optimizer/{name}/"):
                index, field = key.removeprefix(f"optimizer/{name}/").split("/")
                state.setdefault(int(index), {})[field] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def bootstrapped_rows(batch: ReplayBatch, weight: float) -> Tensor | slice:
    """Return which rows of ``batch`` need the value of the following state: not those whose outcome replaces it altogether.

    A device that would have to tell the host how many there are values all of them.
    """
    if weight < 1.0 or batch.settled.device.type != "cpu":
        return slice(None)
    return torch.nonzero(~batch.settled)[:, 0]


def frozen_decoder(base: nn.Module, bf16: bool) -> Any:
    """Return a copy of a frozen base to decode with inside updates, its matrices in bfloat16 if asked for.

    Autocast would convert the weights of a frozen module anew at every use; it keeps them only where gradients are wanted.
    """
    decoder = copy.deepcopy(base)
    for module in decoder.modules():
        if bf16 and isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)):
            module.to(torch.bfloat16)
    return decoder


def cautious_gain(values: Tensor, usual: Tensor, pessimism: float) -> Tensor:
    """Return (): the mean advantage of ``values`` (e, b) over the base's, ``usual``, less ``pessimism`` spreads over members.

    Members that were fitted to the same data agree on what they have seen; where they disagree on which way is better, moving
    does not pay. The advantage is taken per member, so a common error of the value itself cancels.
    """
    advantage = values - usual
    return (advantage.mean(dim=0) - pessimism * advantage.std(dim=0)).mean()


def settle(target: Tensor, batch: ReplayBatch, weight: float) -> Tensor:
    """Return ``(1 - weight) target + weight outcome`` where the episode's outcome is known, and ``target`` elsewhere, (b,).

    Half bootstrapped, half Monte Carlo: unbiased for the policy that acted, and immediate over any number of steps.
    """
    return torch.where(batch.settled, torch.lerp(target, batch.outcomes, weight), target)
