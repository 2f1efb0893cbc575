"""A generative policy as a fast decision function: one batch size, one device, everything that can be done beforehand done.

What is taken out of a decision: checks of shapes are made once per call, all flat streams are normalised in one product, and the
denoising loop is traced (no Python between operators), compiled (``torch.compile``) or recorded (a CUDA graph over the whole
loop, on a GPU). The numbers are the policy's own; building compares them and refuses what differs by more than it may.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from robolearn.core.errors import RefusedError
from robolearn.core.observation import check_observation
from robolearn.core.protocols import RandomSource
from robolearn.core.seeding import generator, standard_normal
from robolearn.core.types import ActionChunk, Array, Observation, is_image

EXACT = 1e-5
"""Largest difference, in half ranges of the action, that compiling and recording may make."""
_PROBES = 4
_WARM_UPS = 3


@dataclass(frozen=True)
class DecisionConfig:
    """How a policy is made fast."""

    batch: int = 1
    """Rows of every decision."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the network; ``bf16`` is refused where it changes actions by more than ``tolerance``."""
    tolerance: float = 0.05
    """Largest change of an action by ``bf16``, in half ranges of the action."""
    mode: Literal["eager", "traced", "compiled"] = "traced"
    """``traced``: the operators are recorded once, in seconds, and run without Python between them; ``compiled``: torch.compile,
    which takes minutes; ``eager`` runs the policy's own code."""
    cuda_graph: bool = False
    """Record the whole decision on the GPU and replay it; with ``eager`` or ``compiled``."""

    def __post_init__(self) -> None:
        if self.batch < 1 or self.tolerance <= 0 or self.precision not in ("fp32", "bf16"):
            raise RefusedError(f"A decision function needs batch >= 1, tolerance > 0 and precision fp32 or bf16; got {self}.")
        if self.mode not in ("eager", "traced", "compiled") or (self.cuda_graph and self.mode == "traced"):
            raise RefusedError(
                f"mode={self.mode!r} must be eager, traced or compiled, and a CUDA graph is made of eager or compiled only."
            )


class DecisionFunction:
    """Decides like its policy, for a fixed number of rows on a fixed device; see :class:`robolearn.core.protocols.LatentPolicy`.

    Attributes:
        policy: the policy; its weights must not change any more.
        difference: largest difference to it that was seen while building, in half ranges of the action.
    """

    def __init__(self, policy: Any, config: DecisionConfig) -> None:
        """Build, warm up and compare.

        Raises:
            RefusedError: the policy is no generative one, a CUDA graph is wanted elsewhere, or the numbers differ by too much.
        """
        if not all(hasattr(policy, name) for name in ("decode_condition", "condition", "latent_shape", "normalizer")):
            raise RefusedError(f"{type(policy).__module__} decodes no latent noise; only generative policies are made fast here.")
        self.policy, self.config = policy.eval().requires_grad_(False), config
        self.spaces, self.obs_horizon, self.pred_horizon = policy.spaces, int(policy.obs_horizon), int(policy.pred_horizon)
        self.latent_shape: tuple[int, ...] = policy.latent_shape
        self.normalizer = policy.normalizer
        self.device: torch.device = policy.device
        if config.cuda_graph and self.device.type != "cuda":
            raise RefusedError(f"A CUDA graph needs a policy on a GPU; this one is on {self.device}.")
        self._decode: _Decode = _Decode(policy, config.precision).eval()
        self._inputs = self._buffers()
        self._run: Callable[..., Tensor] = self._prepared()
        self._output: Tensor | None = None
        self._graph: Any = None
        self._warm_up()
        self.difference = self._compare()
        allowed = config.tolerance if config.precision == "bf16" else EXACT
        if not self.difference <= allowed:
            raise RefusedError(
                f"The decision function differs from its policy by {self.difference:.2g} half ranges of the action, more than "
                f"{allowed:g} ({config.precision}, mode={config.mode}, cuda_graph={config.cuda_graph})."
            )

    def decode(self, observation: Observation, latent_noise: Array) -> ActionChunk:
        """See :meth:`robolearn.core.protocols.LatentPolicy.decode`.

        Raises:
            RefusedError: another number of rows or another device than it was built for, or the policy refuses the observation.
        """
        rows = check_observation(observation, self.spaces.observation, self.obs_horizon)
        self._require(rows)
        wanted = (rows, *self.latent_shape)
        if np.shape(latent_noise) != wanted:
            raise RefusedError(f"latent_noise must have shape {wanted}, got {np.shape(latent_noise)}.")
        with torch.inference_mode():
            self._fill(observation, latent_noise)
            return ActionChunk(self._replay().float().cpu().numpy().copy())

    def predict(self, observation: Observation, rng: RandomSource) -> ActionChunk:
        """See :meth:`robolearn.core.protocols.Policy.predict`."""
        return self.decode(observation, standard_normal(rng, (self.config.batch, *self.latent_shape)))

    def continue_chunk(
        self, observation: Observation, rng: RandomSource, committed: Array, *, delay: int, method: str
    ) -> ActionChunk:
        """See :meth:`robolearn.core.protocols.ContinuingPolicy.continue_chunk`; computed by the policy itself."""
        self._require(len(next(iter(observation.values()), ())))
        return self.policy.continue_chunk(observation, rng, committed, delay=delay, method=method)

    def operations(self) -> int:
        """Return the floating-point operations of a decision, counted at the operators (a multiply-add counts two)."""
        from torch.utils.flop_counter import FlopCounterMode  # its import costs seconds

        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            self._decode(*self._inputs)
        return int(counter.get_total_flops())

    def _require(self, rows: int) -> None:
        if rows != self.config.batch:
            raise RefusedError(f"This decision function was built for a batch of {self.config.batch}, it got {rows} rows.")
        if self.policy.device != self.device:
            raise RefusedError(f"This decision function was built for {self.device}; its policy is on {self.policy.device} now.")

    def _buffers(self) -> tuple[Tensor, ...]:
        """Return tensors that every decision is read from: the latent, the flat streams in one row each, the pictures."""
        rows, horizon = self.config.batch, self.obs_horizon
        flat = [f.shape[0] for key, f in self.spaces.observation.items() if not is_image(key)]
        made = [torch.zeros(rows, *self.latent_shape), torch.zeros(rows, horizon * sum(flat))]
        for key, feature in self.spaces.observation.items():
            if is_image(key):
                made.append(torch.zeros(rows, horizon, *feature.shape, dtype=torch.uint8))
        return tuple(tensor.to(self.device) for tensor in made)

    def _fill(self, observation: Observation, latent_noise: Array) -> None:
        rows = self.config.batch
        flat = [observation[key].reshape(rows, -1) for key in self.spaces.observation if not is_image(key)]
        streams = [latent_noise, np.concatenate(flat, axis=1) if flat else np.zeros((rows, 0))]
        streams += [observation[key] for key in self.spaces.observation if is_image(key)]
        for buffer, value in zip(self._inputs, streams, strict=True):
            buffer.copy_(torch.from_numpy(np.ascontiguousarray(value)))

    def _replay(self) -> Tensor:
        if self._graph is None:
            return self._run(*self._inputs)
        assert self._output is not None
        self._graph.replay()
        return self._output

    def _prepared(self) -> Callable[..., Tensor]:
        """Return the decision as ``mode`` says."""
        if self.config.mode == "compiled":
            return torch.compile(self._decode, fullgraph=True, dynamic=False)
        if self.config.mode == "eager":
            return self._decode
        with warnings.catch_warnings(), torch.no_grad():
            # Tracing warns of every branch on a shape; shapes are fixed here, and the numbers are compared below.
            warnings.simplefilter("ignore")
            self._decode(*self._inputs)  # what the weights alone decide is kept from now on, and so becomes a constant
            return torch.jit.freeze(torch.jit.trace(self._decode, self._inputs, check_trace=False))

    def _warm_up(self) -> None:
        """Pay for compilation and caches, and record the graph."""
        with torch.inference_mode():
            if not self.config.cuda_graph:
                for _ in range(_WARM_UPS):
                    self._run(*self._inputs)
                return
            # Work before a capture has to run on another stream than the default one.
            aside = torch.cuda.Stream(self.device)
            aside.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(aside):
                for _ in range(_WARM_UPS):
                    self._run(*self._inputs)
            torch.cuda.current_stream(self.device).wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._output = self._run(*self._inputs)
            self._graph = graph

    def _compare(self) -> float:
        """Return the largest difference to the policy over some made-up observations around the centre of the data."""
        rng, worst = generator(0, "decision probes"), 0.0
        half = self.spaces.action_scaling()[1]
        half = np.where(half > 0, half, 1.0)  # an element that is held still is compared in its own unit
        for _ in range(_PROBES):
            seen = {key: self._probe(key, rng) for key in self.spaces.observation}
            latent = rng.standard_normal((self.config.batch, *self.latent_shape)).astype(np.float32)
            gap = self.decode(seen, latent).actions - self.policy.decode(seen, latent).actions
            worst = float(np.maximum(worst, np.abs(gap / half).max()))  # max() of Python drops what is not a number
        return worst

    def _probe(self, key: str, rng: np.random.Generator) -> Array:
        shape = (self.config.batch, self.obs_horizon, *self.spaces.observation[key].shape)
        if is_image(key):
            return rng.integers(0, 256, shape, dtype=np.uint8)
        unit = torch.from_numpy(rng.uniform(-1.0, 1.0, shape).astype(np.float32)).to(self.device)
        return self.normalizer.invert(key, unit).cpu().numpy()


class _Decode(nn.Module):
    """(latent, raw flat streams side by side, pictures ...) -> chunk, raw units."""

    centre: Tensor
    scale: Tensor

    def __init__(self, policy: Any, precision: str) -> None:
        super().__init__()
        self.policy, self._half = policy, precision == "bf16"
        horizon, normalizer = policy.obs_horizon, policy.normalizer
        self._flat = [key for key in policy.spaces.observation if not is_image(key)]
        self._sizes = [horizon * policy.spaces.observation[key].shape[0] for key in self._flat]
        self._cameras = [key for key in policy.spaces.observation if is_image(key)]
        centres = [normalizer.centre(key).repeat(horizon) for key in self._flat]
        self.register_buffer("centre", torch.cat(centres) if centres else torch.zeros(0), persistent=False)
        scales = [normalizer.scale(key).repeat(horizon) for key in self._flat]
        self.register_buffer("scale", torch.cat(scales) if scales else torch.ones(0), persistent=False)

    def forward(self, latent: Tensor, flat: Tensor, *pictures: Tensor) -> Tensor:
        with torch.autocast(flat.device.type, torch.bfloat16, enabled=self._half, cache_enabled=False):
            policy = self.policy
            parts = ((flat - self.centre) * self.scale).split(self._sizes, dim=1)
            shaped = {k: part.unflatten(1, (policy.obs_horizon, -1)) for k, part in zip(self._flat, parts, strict=True)}
            pairs = dict(zip(self._cameras, pictures, strict=True))
            streams = {key: shaped[key] if key in shaped else pairs[key] for key in policy.spaces.observation}
            condition = policy.encoder(streams, None)
            return policy.decode_condition(condition, latent)


def pin_threads(cpus: Sequence[int]) -> None:
    """Bind this process to the processors ``cpus`` and give torch as many threads: nothing moves a decision to a cold core.

    Raises:
        RefusedError: none are named, one is not available, or the system cannot bind processes.
    """
    if not hasattr(os, "sched_setaffinity"):
        raise RefusedError("This system cannot bind a process to processors.")
    free = os.sched_getaffinity(0)
    if not cpus or not set(cpus) <= free:
        raise RefusedError(f"Processors {list(cpus)} cannot be bound; available are {sorted(free)}.")
    os.sched_setaffinity(0, set(cpus))
    torch.set_num_threads(len(set(cpus)))
