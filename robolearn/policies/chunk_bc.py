"""Behaviour cloning of action chunks by plain regression: the baseline that averages where demonstrations disagree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from robolearn.core.errors import RefusedError
from robolearn.core.observation import select_observation
from robolearn.core.protocols import RandomSource
from robolearn.core.types import ACTION, ENVIRONMENT_STATE, STATE, ActionChunk, Observation, Spaces, is_image
from robolearn.data.normalizer import Normalizer
from robolearn.nets.denoisers import DenoiserConfig, make_denoiser
from robolearn.nets.encoders import ObservationEncoder, check_actions, require_streams
from robolearn.nets.images import ImageConfig
from robolearn.nets.losses import chunk_mean


@dataclass(frozen=True)
class Config:
    """Hyper-parameters of chunk regression."""

    obs_horizon: int = 2
    """Observation steps that condition a decision."""
    pred_horizon: int = 16
    """Action steps of one chunk."""
    observation_keys: tuple[str, ...] = (STATE, ENVIRONMENT_STATE)
    """Streams that the policy reads; each must be offered by the data and by the robot."""
    net: DenoiserConfig = field(default_factory=DenoiserConfig)
    """The network: the diffusion policy's, fed zeros in place of the noisy chunk."""
    image: ImageConfig = field(default_factory=ImageConfig)
    """How cameras are encoded; ignored where no image key is read."""
    norm: Literal["l1", "l2"] = "l1"
    """Mean absolute or mean squared error, in normalised action units."""
    mask_padding: bool = False
    """Leave actions that pad the end of an episode out of the loss."""

    def __post_init__(self) -> None:
        if self.obs_horizon < 1 or self.pred_horizon < 1:
            raise RefusedError(f"obs_horizon={self.obs_horizon} and pred_horizon={self.pred_horizon} must be >= 1.")


class Policy(nn.Module):
    """Regresses the chunk with the diffusion policy's net, at noise level 0 on a chunk of zeros: only the method differs.

    Attributes:
        config, spaces: what it was made from; ``spaces`` holds only the observation keys that it reads.
    """

    zeros: Tensor
    level: Tensor

    def __init__(self, config: Config, spaces: Spaces, normalizer: Normalizer) -> None:
        super().__init__()
        self.config = config
        self.spaces = select_observation(spaces, config.observation_keys)
        self.obs_horizon, self.pred_horizon = config.obs_horizon, config.pred_horizon
        self.normalizer = require_streams(normalizer, self.spaces)
        self.encoder = ObservationEncoder(self.spaces.observation, config.obs_horizon, image=config.image)
        shape = {"pred_horizon": config.pred_horizon, "action_dim": spaces.action_dim}
        self.net = make_denoiser(config.net, **shape, condition_dim=self.encoder.condition_dim)
        self.register_buffer("zeros", torch.zeros(1, config.pred_horizon, spaces.action_dim), persistent=False)
        self.register_buffer("level", torch.zeros(1, dtype=torch.int64), persistent=False)

    def card(self) -> dict[str, object]:
        """Return what :func:`robolearn.policies.loading.load_policy` needs besides the weights; JSON-serialisable."""
        what: dict[str, object] = {"policy": "chunk_bc", "config": asdict(self.config), "spaces": self.spaces.to_json()}
        return what | {"normalizer": self.normalizer.modes}

    def loss(self, batch: Mapping[str, Tensor], rng: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean error of the regressed chunk in normalised units, and metrics.

        Args:
            batch: raw units; observation keys (b, o, ...), ``action`` (b, h, a), ``action_is_pad`` (b, h) bool.
            rng: draws image crops, on the batch's device.

        Raises:
            RefusedError: a key is missing or has another shape.
        """
        self.encoder.check(batch)
        clean = self.normalizer.apply(ACTION, check_actions(batch, self.pred_horizon, self.spaces.action_dim))
        difference = self._regress(batch, rng) - clean
        error = difference.abs() if self.config.norm == "l1" else difference.square()
        loss = chunk_mean(error, batch["action_is_pad"] if self.config.mask_padding else None)
        return loss, {"loss": loss.detach()}

    def predict_tensor(self, observation: Mapping[str, Tensor], rng: torch.Generator) -> Tensor:
        """Return the chunk (b, h, a), raw units, for tensors on the policy's device; draws nothing."""
        return self.normalizer.invert(ACTION, self._regress(observation, None))

    def predict(self, observation: Observation, rng: RandomSource) -> ActionChunk:
        """See :meth:`robolearn.core.protocols.Policy.predict`; draws nothing."""
        tensors = self.encoder.read(observation, self.zeros.device)
        with torch.inference_mode():
            normalized = self._regress(tensors, None)
            return ActionChunk(self.normalizer.invert(ACTION, normalized).float().cpu().numpy())

    def _regress(self, observation: Mapping[str, Tensor], rng: torch.Generator | None) -> Tensor:
        condition = self.condition(observation, rng)
        output = self.net(self.zeros.expand(len(condition), -1, -1), self.level.expand(len(condition)), condition)
        return output.float()

    def condition(self, observation: Mapping[str, Tensor], rng: torch.Generator | None = None) -> Tensor:
        """Return what conditions the chunk, (b, c): encodes an observation key -> (b, o, ...), raw units; ``rng`` draws crops."""
        normalize = self.normalizer.apply
        streams = {k: observation[k] if is_image(k) else normalize(k, observation[k]) for k in self.spaces.observation}
        return self.encoder(streams, rng)
