"""A diffusion policy that LeRobot trained, computed by LeRobot's own classes; opened from its folder, never trained here.

Written against lerobot 0.6.1. A folder holds ``config.json``, ``model.safetensors`` and the two processors, JSON and safetensors.
LeRobot counts a chunk's steps from the oldest observation, we from the newest: row 0 here is its index ``n_obs_steps - 1``.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robolearn.core.errors import RefusedError
from robolearn.core.observation import check_latent, check_observation, select_observation
from robolearn.core.protocols import RandomSource
from robolearn.core.run import read_json
from robolearn.core.seeding import standard_normal
from robolearn.core.types import (
    ACTION,
    ENVIRONMENT_STATE,
    IMAGES_PREFIX,
    STATE,
    ActionChunk,
    Array,
    FeatureSpec,
    Observation,
    Spaces,
    is_image,
)
from robolearn.train.checkpoint import CONFIG_FILE, MODEL_FILE, read_tensors

PROCESSORS = {"normalize": "policy_preprocessor.json", "unnormalize": "policy_postprocessor.json"}
"""Which of LeRobot's files each of the :class:`Config`'s steps comes from."""
_SCALING = {"normalize": "normalizer_processor", "unnormalize": "unnormalizer_processor"}
_NEUTRAL = {"to_batch_processor": (), "device_processor": ("float_dtype",), "rename_observations_processor": ("rename_map",)}
"""Steps that change no number, as long as these settings of theirs are empty."""
_STATISTICS = {"MEAN_STD": ("mean", "std"), "MIN_MAX": ("min", "max"), "QUANTILES": ("q01", "q99"), "QUANTILE10": ("q10", "q90")}
_SMALL = {"n_obs_steps": 2, "horizon": 16, "n_action_steps": 8, "down_dims": [32, 64], "diffusion_step_embed_dim": 32}


@dataclass(frozen=True)
class Config:
    """What LeRobot's files say; :func:`foreign_card` reads them."""

    model: dict[str, Any] = field(default_factory=lambda: dict(_SMALL))
    """LeRobot's ``config.json`` without ``type``. Where it names no input features, everything that is offered is one."""
    normalize: dict[str, Any] = field(default_factory=dict)
    """The preprocessor's normalising step: its ``config`` and its ``statistics``, stream -> name -> numbers. Empty: none."""
    unnormalize: dict[str, Any] = field(default_factory=dict)
    """The postprocessor's step of the same kind, for the action."""
    ddim_steps: int = 10
    """Network evaluations per decision of a checkpoint whose scheduler is DDPM, which draws noise at every step and would not
    be a function of the latent noise: it is sampled by DDIM. One whose scheduler is DDIM keeps its ``num_inference_steps``."""

    def __post_init__(self) -> None:
        if self.ddim_steps < 1:
            raise RefusedError(f"ddim_steps={self.ddim_steps} must be at least 1.")


class Encoder:
    """Says what the condition holds: LeRobot's order is step by step, in a step state, then cameras, then environment state.

    Attributes:
        features: the observation keys that are read.
        condition_dim: length of the condition.
    """

    def __init__(self, features: Mapping[str, FeatureSpec], obs_horizon: int, per_camera: int) -> None:
        self.features, self.obs_horizon = dict(features), obs_horizon
        sizes = {key: per_camera if is_image(key) else feature.shape[0] for key, feature in features.items()}
        order = sorted(features, key=lambda key: (key == ENVIRONMENT_STATE, key != STATE))
        step = [name for key in order for name in features[key].names or [f"{key}.{i}" for i in range(sizes[key])]]
        self._names = step * obs_horizon
        self.condition_dim = len(self._names)

    def element_names(self) -> list[str]:
        """Return a name for each element of the condition."""
        return list(self._names)

    def read(self, observation: Observation, device: torch.device) -> dict[str, Tensor]:
        """Check a raw observation; return tensors of the encoded keys on ``device``."""
        check_observation(observation, self.features, self.obs_horizon)
        return {
            key: torch.tensor(observation[key], dtype=None if is_image(key) else torch.float32, device=device)
            for key in self.features
        }


class Policy(nn.Module):
    """LeRobot's network, noise scheduler and normalising steps behind our interface; the latent is its ``noise``.

    Attributes:
        diffusion: LeRobot's ``DiffusionModel``; its weights have the names that they have in LeRobot's file.
        latent_shape: (1, horizon, a), noise for LeRobot's whole horizon, ``obs_horizon - 1`` past steps included.
    """

    def __init__(self, config: Config, spaces: Spaces, normalizer: object = None) -> None:
        """Build it with fresh weights; ``normalizer`` is None, because LeRobot's own steps normalise."""
        super().__init__()
        if normalizer is not None:
            raise RefusedError("A LeRobot policy brings its own normalisation; the normaliser must be None.")
        lerobot = _Lerobot()
        self.config = config
        self.spaces = _checked_spaces(config.model, spaces)
        own = lerobot.config(config, self.spaces)
        self.obs_horizon, self.pred_horizon = own.n_obs_steps, own.horizon - own.n_obs_steps + 1
        self.latent_shape = (1, own.horizon, self.spaces.action_dim)
        self.diffusion = lerobot.model(own)
        self._cameras = [key for key in self.spaces.observation if is_image(key)]
        per_camera = 2 * own.spatial_softmax_num_keypoints if self._cameras else 0
        self.encoder = Encoder(self.spaces.observation, self.obs_horizon, per_camera)
        self._normalize = lerobot.step(lerobot.processors.NormalizerProcessorStep, config.normalize)
        self._unnormalize = lerobot.step(lerobot.processors.UnnormalizerProcessorStep, config.unnormalize)
        self._observation, self._action = lerobot.keys.OBSERVATION, lerobot.keys.ACTION
        self.eval()

    def train(self, mode: bool = True) -> Policy:
        """Stay in the mode in which LeRobot acts: centre crops, fixed batch statistics."""
        return super().train(False)

    def _apply(self, fn: Any, recurse: bool = True) -> Policy:
        """Move LeRobot's statistics with the weights: moved inside inference they could not be differentiated through."""
        super()._apply(fn, recurse)
        for step in (self._normalize, self._unnormalize):
            step.to(device=self.device)
        return self

    def card(self) -> dict[str, object]:
        """Return what :func:`robolearn.policies.loading.load_policy` needs besides the weights; JSON-serialisable."""
        name = __name__.rpartition(".")[2]
        return {"policy": name, "config": asdict(self.config), "spaces": self.spaces.to_json(), "normalizer": None}

    @property
    def device(self) -> torch.device:
        """Where the policy lives."""
        return next(self.parameters()).device

    def condition(self, observation: Mapping[str, Tensor], rng: torch.Generator | None = None) -> Tensor:
        """Return LeRobot's conditioning vector (b, c) of an observation key -> (b, o, ...), raw units; nothing is drawn."""
        streams = {k: _picture(observation[k]) if is_image(k) else observation[k] for k in self.spaces.observation}
        streams = self._normalize({self._observation: streams})[self._observation]
        if self._cameras:
            streams[IMAGES_PREFIX[:-1]] = torch.stack([streams[key] for key in self._cameras], dim=-4)
        return self.diffusion._prepare_global_conditioning(streams)

    def decode_condition(self, condition: Tensor, latent_noise: Tensor) -> Tensor:
        """Return the chunk (b, h, a), raw units, of conditions (b, c) from :meth:`condition` and (b, *latent_shape)."""
        sample = self.diffusion.conditional_sample(len(condition), global_cond=condition, noise=latent_noise[:, 0])
        chunk = sample[:, self.obs_horizon - 1 :].float()
        return self._unnormalize({self._action: chunk})[self._action]

    def decode_tensor(self, observation: Mapping[str, Tensor], latent_noise: Tensor) -> Tensor:
        """Return the chunk (b, h, a), raw units, of tensors key -> (b, o, ...) and (b, *latent_shape); differentiable."""
        return self.decode_condition(self.condition(observation), latent_noise)

    def predict_tensor(self, observation: Mapping[str, Tensor], rng: torch.Generator) -> Tensor:
        """Return a sampled chunk (b, h, a) for tensors on the policy's device, where ``rng`` must be too."""
        noise = torch.randn((len(observation[STATE]), *self.latent_shape), generator=rng, device=self.device)
        return self.decode_tensor(observation, noise)

    def decode(self, observation: Observation, latent_noise: Array) -> ActionChunk:
        """See :meth:`robolearn.core.protocols.LatentPolicy.decode`."""
        tensors = self.encoder.read(observation, self.device)
        check_latent(latent_noise, observation, self.latent_shape)
        with torch.inference_mode():
            noise = torch.as_tensor(latent_noise, dtype=torch.float32, device=self.device)
            return ActionChunk(self.decode_tensor(tensors, noise).cpu().numpy())

    def predict(self, observation: Observation, rng: RandomSource) -> ActionChunk:
        """See :meth:`robolearn.core.protocols.Policy.predict`."""
        rows = len(next(iter(observation.values()), ()))
        return self.decode(observation, standard_normal(rng, (rows, *self.latent_shape)))


class _Lerobot:
    """The classes of LeRobot that are used, imported when the first policy of this kind is built."""

    def __init__(self) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                from lerobot import processor
                from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
                from lerobot.policies.diffusion.modeling_diffusion import DiffusionModel
        except ImportError as error:
            raise RefusedError(f"A LeRobot policy is computed by lerobot 0.6.1, which cannot be imported: {error}.") from error
        self.processors, self.keys = processor, processor.TransitionKey
        self._config, self._model = DiffusionConfig, DiffusionModel

    def config(self, config: Config, spaces: Spaces) -> Any:
        """Return LeRobot's configuration, changed only in what would download weights or draw noise while sampling."""
        import draccus

        fields: dict[str, Any] = {k: v for k, v in config.model.items() if k != "type"}
        fields |= {"pretrained_backbone_weights": None, "device": "cpu"}
        fields |= {"input_features": _features(spaces), "output_features": _feature_json("ACTION", spaces.action.shape)}
        if fields.get("noise_scheduler_type", "DDPM") == "DDPM":
            fields |= {"noise_scheduler_type": "DDIM", "num_inference_steps": config.ddim_steps}
        try:
            made = draccus.decode(self._config, fields)
            made.validate_features()
        except Exception as error:  # draccus and lerobot raise several unrelated classes
            raise RefusedError(f"LeRobot refuses the checkpoint's configuration: {error}") from error
        steps, levels = made.num_inference_steps or made.num_train_timesteps, made.num_train_timesteps
        if not 1 <= steps <= levels:
            raise RefusedError(f"{steps} sampling steps must lie in [1, num_train_timesteps={levels}].")
        if not 1 <= made.n_obs_steps <= made.horizon:
            raise RefusedError(f"n_obs_steps={made.n_obs_steps} must lie in [1, horizon={made.horizon}].")
        if made.compile_model or made.use_peft:
            raise RefusedError("A compiled LeRobot policy or one with PEFT adapters is refused; save it without.")
        return made

    def model(self, config: Any) -> Any:
        """Return LeRobot's network with fresh weights."""
        return self._model(config)

    def step(self, kind: Any, saved: Mapping[str, Any]) -> Any:
        """Return a normalising step from what :func:`_scaling_step` read; one that changes nothing where that is empty."""
        if not saved:
            return kind(features={}, norm_map={})
        settings = {key: saved["config"][key] for key in ("features", "norm_map", "eps")}
        if chosen := saved["config"].get("normalize_observation_keys"):
            settings["normalize_observation_keys"] = set(chosen)
        statistics = {k: {n: torch.tensor(v) for n, v in each.items()} for k, each in saved["statistics"].items()}
        return kind(**settings, stats=statistics)


def foreign_card(folder: Path, spaces: Spaces | None) -> dict[str, object]:
    """Return the card of the policy that a folder in LeRobot's layout holds, its numbers of normalisation included.

    Args:
        folder: LeRobot's ``pretrained_model``.
        spaces: what the robot or the environment offers; LeRobot's files know neither names, bounds nor the control rate.

    Raises:
        RefusedError: a file is missing or is no JSON or safetensors, the processors hold unknown steps or lack statistics, the
            features differ from ``spaces``, or those are not given.
    """
    model = read_json(folder / CONFIG_FILE, what="LeRobot policy's description")
    if model.pop("type", None) != "diffusion":
        raise RefusedError(f"{folder / CONFIG_FILE} describes no LeRobot diffusion policy.")
    if not (folder / MODEL_FILE).is_file():
        others = sorted(p.name for p in folder.glob("*") if p.suffix in {".bin", ".pt", ".pth", ".ckpt", ".pkl"})
        raise RefusedError(
            f"{folder} lacks {MODEL_FILE}. Weights are read from safetensors only, not from {others or 'pickles'}."
        )
    if spaces is None:
        raise RefusedError(f"{folder} holds a LeRobot policy, which does not say what robot it is for: name the environment.")
    if not model.get("input_features") or not model.get("output_features"):
        raise RefusedError(f"{folder / CONFIG_FILE} names no input or output features.")
    steps = {name: _scaling_step(folder, name) for name in PROCESSORS}
    if model.get("noise_scheduler_type", "DDPM") == "DDPM":
        message = "%s was made for the DDPM scheduler, which draws noise while it samples; it is sampled by DDIM in %d steps."
        logging.getLogger(__name__).warning(message, folder, Config.ddim_steps)
    config = {"model": model, **steps, "ddim_steps": Config.ddim_steps}
    own = _checked_spaces(model, spaces)
    return {"policy": __name__.rpartition(".")[2], "config": config, "spaces": own.to_json(), "normalizer": None}


def _scaling_step(folder: Path, name: str) -> dict[str, Any]:
    """Return ``config`` and ``statistics`` of the one step of a processor that changes numbers."""
    file = folder / PROCESSORS[name]
    if not file.is_file():
        raise RefusedError(
            f"{file} is missing. Checkpoints from before LeRobot's processors keep their statistics in the weights: "
            f"convert them with lerobot's migrate_policy_normalization."
        )
    steps: Any = read_json(file, what="LeRobot processor").get("steps")
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise RefusedError(f"{file} lists no steps.")
    found = [step for step in steps if step.get("registry_name") == _SCALING[name]]
    for step in steps:
        kind, settings = step.get("registry_name", step.get("class")), step.get("config") or {}
        if step not in found and (kind not in _NEUTRAL or any(settings.get(key) for key in _NEUTRAL[kind])):
            raise RefusedError(
                f"{file}: step {kind!r} with {settings} is not supported; known are {[*_NEUTRAL, _SCALING[name]]}."
            )
    if len(found) != 1:
        raise RefusedError(f"{file} must hold one step {_SCALING[name]!r}, it holds {len(found)}.")
    return _with_statistics(file, found[0])


def _with_statistics(file: Path, step: Mapping[str, Any]) -> dict[str, Any]:
    """Return a normalising step's settings and the numbers that they need, read from its safetensors."""
    config, state = step.get("config") or {}, str(step.get("state_file"))
    if Path(state).name != state or not state.endswith(".safetensors"):
        raise RefusedError(f"{file}: statistics are read from a safetensors file beside it, not from {state!r}.")
    tensors = read_tensors(file.parent / state)
    statistics: dict[str, Any] = {}
    try:
        modes = {key: config["norm_map"].get(feature["type"], "IDENTITY") for key, feature in config["features"].items()}
        config = {"eps": 1e-8} | config
    except (KeyError, TypeError, AttributeError) as error:
        raise RefusedError(f"{file}: the step's features or norm_map are malformed: {error!r}.") from error
    for key, mode in modes.items():
        if mode not in {"IDENTITY", *_STATISTICS}:
            raise RefusedError(f"{file}: unknown normalisation {mode!r} of {key!r}.")
        for name in _STATISTICS.get(mode, ()):
            numbers = tensors.get(f"{key}.{name}")
            if numbers is None or not torch.isfinite(numbers).all():
                raise RefusedError(f"{file.parent / state} lacks finite statistics {name!r} of {key!r}, which {mode} needs.")
            statistics.setdefault(key, {})[name] = numbers.float().tolist()
    return {"config": config, "statistics": statistics}


def _checked_spaces(model: Mapping[str, Any], spaces: Spaces) -> Spaces:
    """Return ``spaces`` with the streams that LeRobot's network reads, refused where they are not the checkpoint's."""
    inputs = model.get("input_features") or _features(spaces)
    outputs = model.get("output_features") or _feature_json("ACTION", spaces.action.shape)
    try:
        read = {k: f for k, f in inputs.items() if k == STATE or f["type"] in ("ENV", "VISUAL")}
        shapes = {key: tuple(feature["shape"]) for key, feature in read.items()}
        action = tuple(outputs[ACTION]["shape"])
    except (KeyError, TypeError, AttributeError) as error:
        raise RefusedError(f"LeRobot's features are malformed: {error!r} in {inputs} and {outputs}.") from error
    if STATE not in read:
        raise RefusedError(f"LeRobot's diffusion policy reads {STATE!r}; the checkpoint names {sorted(inputs)}.")
    for key, feature in read.items():
        if (feature["type"] == "ENV") != (key == ENVIRONMENT_STATE) or (feature["type"] == "VISUAL") != is_image(key):
            raise RefusedError(f"The checkpoint's feature {key!r} of type {feature['type']!r} has another name here; rename it.")
    own = select_observation(spaces, list(read))
    for key, feature in own.observation.items():
        offered = (feature.shape[-1], *feature.shape[:-1]) if is_image(key) else feature.shape
        if offered != shapes[key]:
            raise RefusedError(f"The checkpoint reads {key!r} of shape {shapes[key]}, but {offered} is offered.")
    if action != spaces.action.shape:
        raise RefusedError(f"The checkpoint's action has shape {action}, but {spaces.action.shape} is taken.")
    return own


def _features(spaces: Spaces) -> dict[str, Any]:
    """Return the streams of ``spaces`` that LeRobot's network can read, as its ``input_features``."""
    kinds = {STATE: "STATE", ENVIRONMENT_STATE: "ENV"}
    flat = {k: {"type": kinds[k], "shape": list(f.shape)} for k, f in spaces.observation.items() if k in kinds}
    cameras = {k: f.shape for k, f in spaces.observation.items() if is_image(k)}
    return flat | {k: {"type": "VISUAL", "shape": [shape[-1], *shape[:-1]]} for k, shape in cameras.items()}


def _feature_json(kind: str, shape: tuple[int, ...]) -> dict[str, Any]:
    return {ACTION: {"type": kind, "shape": list(shape)}}


def _picture(image: Tensor) -> Tensor:
    """Return uint8 (..., height, width, 3) as LeRobot's float (..., 3, height, width) in [0, 1]."""
    return image.movedim(-1, -3).float() / 255
