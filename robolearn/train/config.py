"""Settings of supervised training."""

from __future__ import annotations

import math
from dataclasses import dataclass

from robolearn.core.errors import RefusedError

PRECISIONS = ("fp32", "bf16", "fp16")
FREE_ON_RESUME = frozenset({"device", "threads", "compile", "keep_checkpoints", "max_seconds", "tensorboard", "wandb_project"})
"""Fields that may change when a run is resumed; every other one decides what is learned or when it is logged."""


@dataclass(frozen=True)
class TrainConfig:
    """Settings of :func:`robolearn.train.supervised.train`; the optimiser's are Diffusion Policy's (Chi et al. 2023)."""

    steps: int = 20_000
    """Updates of the whole run; the learning rate reaches zero at the last one."""
    batch_size: int = 256
    """Windows per update and process."""
    learning_rate: float = 1e-4
    """Peak learning rate of AdamW."""
    betas: tuple[float, float] = (0.95, 0.999)
    """Decay rates of AdamW's two gradient moments."""
    weight_decay: float = 1e-6
    """Decoupled weight decay of matrices and kernels; biases and norm scales (one axis) are not decayed."""
    warmup_steps: int = 500
    """Updates over which the learning rate rises linearly before the cosine."""
    grad_clip_norm: float = 1.0
    """Largest global norm of the gradient; longer ones are scaled down to it."""
    ema_power: float = 0.75
    """The averaged weights' decay before update s (0, 1, ...) is 1 - (1 + s) ** -ema_power; larger forgets later."""
    ema_max_decay: float = 0.9999
    """Upper bound of that decay; 0 makes the average equal the raw weights."""
    precision: str = "fp32"
    """Arithmetic of forward and backward: fp32, bf16 (autocast) or fp16 (autocast and loss scaling). Weights stay fp32."""
    device: str = "auto"
    """Torch device such as cpu or cuda:0; auto takes CUDA where there is one."""
    threads: int = 1
    """CPU threads of torch; more than one collapses when another process needs the cores."""
    compile: bool = False
    """Compile the loss with torch.compile: minutes of start for faster steps."""
    log_every: int = 100
    """Updates between two rows of metrics, each the mean over those updates."""
    validate_every: int = 2_000
    """Updates between two validations on held-out episodes."""
    validation_windows: int = 512
    """Held-out windows on which the loss is measured: always the same, with the same noise."""
    action_error_windows: int = 64
    """Of those, windows on which actions are generated and compared with the demonstrated ones; 0 skips this."""
    checkpoint_every: int = 5_000
    """Updates between two checkpoints; the last update always has one."""
    keep_checkpoints: int = 2
    """Newest checkpoints that are kept, beside the best-scored one."""
    seed: int = 0
    """Root of every random draw: order of windows, noise, dropout."""
    max_seconds: float | None = None
    """Wall-clock budget of this call [s]; when it is spent a checkpoint is saved and training returns."""
    tensorboard: bool = True
    """Also write metrics as TensorBoard events."""
    wandb_project: str | None = None
    """Also send metrics to this Weights & Biases project (WANDB_MODE=offline keeps them local)."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "threads", "log_every", "validate_every", "checkpoint_every", "keep_checkpoints"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("warmup_steps", "validation_windows", "action_error_windows", "seed"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        for name in ("learning_rate", "grad_clip_norm", "ema_power"):
            _require(0 < getattr(self, name) < math.inf, name, getattr(self, name), "positive and finite")
        _require(0 <= self.weight_decay < math.inf, "weight_decay", self.weight_decay, "finite and not negative")
        _require(len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas), "betas", self.betas, "two numbers in [0, 1)")
        _require(0 <= self.ema_max_decay < 1, "ema_max_decay", self.ema_max_decay, "in [0, 1)")
        _require(self.precision in PRECISIONS, "precision", self.precision, f"one of {', '.join(PRECISIONS)}")
        _require(self.max_seconds is None or self.max_seconds > 0, "max_seconds", self.max_seconds, "positive or null")

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate of update ``step`` (0, 1, ...): linear warm-up, then half a cosine down to zero."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def _require(accepted: bool, name: str, value: object, allowed: str) -> None:
    if not accepted:
        raise RefusedError(f"train.{name}={value!r} must be {allowed}.")
