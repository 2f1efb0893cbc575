"""A diffusion policy of ours as LeRobot's ``pretrained_model`` folder, so that stock LeRobot loads, evaluates and runs it.

Written against lerobot 0.6.1, by LeRobot's own classes. Both UNets compute the same (``tests/golden``), so weights are renamed,
not refitted. What cannot be said in LeRobot's layout is refused: see :func:`lerobot_settings`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robolearn.core.errors import RefusedError
from robolearn.core.run import create_run_dir
from robolearn.core.types import ACTION, ENVIRONMENT_STATE, STATE

STREAMS = {STATE: "STATE", ENVIRONMENT_STATE: "ENV"}
"""The flat streams that LeRobot's network reads, in the order of its condition; it needs both where it has no camera."""


def lerobot_settings(policy: Any, *, exec_horizon: int) -> dict[str, Any]:
    """Return the fields of LeRobot's ``DiffusionConfig`` that describe ``policy``.

    Raises:
        RefusedError: LeRobot's layout cannot describe it: another policy or network; more than one observation step (LeRobot
            counts a chunk's rows from the oldest one, we from the newest); cameras (another encoder) or other streams than state
            and environment state; actions that are given clean; a sampler, spacing or prediction that LeRobot has not; a
            horizon that its UNet does not take.
    """
    name, config = policy.card()["policy"], policy.config
    if name != "diffusion":
        raise RefusedError(f"LeRobot's layout holds policies of kind 'diffusion', not {name!r}.")
    net, factor = config.denoiser.unet, 2 ** len(config.denoiser.unet.down_dims)
    needed = {
        "policy.denoiser.kind": (config.denoiser.kind, config.denoiser.kind == "unet", "unet"),
        "policy.denoiser.unet.groups": (net.groups, net.groups == 8, "8: LeRobot's last block always has so many"),
        "policy.obs_horizon": (config.obs_horizon, config.obs_horizon == 1, "1: LeRobot's chunk starts at the oldest step"),
        "policy.observation_keys": (
            list(policy.spaces.observation),
            set(policy.spaces.observation) == set(STREAMS),
            f"{list(STREAMS)} and nothing else",
        ),
        "policy.max_delay": (config.max_delay, config.max_delay == 0, "0"),
        "policy.sampler": (config.sampler, config.sampler == "ddim", "ddim, which is a function of its noise"),
        "policy.spacing": (config.spacing, config.spacing == "leading", "leading"),
        "policy.prediction": (config.prediction, config.prediction in ("epsilon", "sample"), "epsilon or sample"),
        "policy.pred_horizon": (config.pred_horizon, config.pred_horizon % factor == 0, f"a multiple of {factor}"),
        "exec_horizon": (exec_horizon, 1 <= exec_horizon <= config.pred_horizon, f"in [1, {config.pred_horizon}]"),
    }
    if wrong := [f"{field}={value!r} must be {rule}" for field, (value, fits, rule) in needed.items() if not fits]:
        raise RefusedError(f"This policy does not fit LeRobot's diffusion policy: {'; '.join(wrong)}.")
    return {
        "n_obs_steps": 1,
        "horizon": config.pred_horizon,
        "n_action_steps": exec_horizon,
        "drop_n_last_frames": config.pred_horizon - exec_horizon,
        "down_dims": net.down_dims,
        "kernel_size": net.kernel_size,
        "n_groups": net.groups,
        "diffusion_step_embed_dim": net.level_width,
        "use_film_scale_modulation": net.modulate_scale,
        "noise_scheduler_type": "DDIM",
        "num_train_timesteps": config.noise_levels,
        "num_inference_steps": config.sampler_steps,
        "beta_schedule": config.schedule,
        "prediction_type": config.prediction,
        "clip_sample": config.clip > 0,
        "clip_sample_range": config.clip or 1.0,
        "pretrained_backbone_weights": None,
        "device": "cpu",
        "push_to_hub": False,
    }


def export_lerobot(policy: Any, folder: Path, *, exec_horizon: int) -> None:
    """Write ``config.json``, ``model.safetensors`` and both processors.

    Args:
        policy: a diffusion policy as :func:`robolearn.policies.loading.load_policy` returns it.
        folder: a folder that is missing or empty.
        exec_horizon: actions of a chunk that LeRobot executes before the next decision.

    Raises:
        RefusedError: see :func:`lerobot_settings`; or the folder is taken, or lerobot is not installed.
    """
    settings = lerobot_settings(policy, exec_horizon=exec_horizon)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from lerobot.configs.types import FeatureType, NormalizationMode, PolicyFeature
            from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
            from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy
            from lerobot.processor.factory import make_default_pre_post_processors
    except ImportError as error:
        raise RefusedError(f"LeRobot's layout is written by lerobot 0.6.1, which cannot be imported: {error}.") from error
    features = {key: PolicyFeature(FeatureType[kind], policy.spaces.observation[key].shape) for key, kind in STREAMS.items()}
    config = DiffusionConfig(
        input_features=features,
        output_features={ACTION: PolicyFeature(FeatureType.ACTION, policy.spaces.action.shape)},
        normalization_mapping=dict.fromkeys((*STREAMS.values(), "ACTION"), NormalizationMode.MIN_MAX),
        **settings,
    )
    theirs = DiffusionPolicy(config)
    theirs.load_state_dict({f"diffusion.unet.{name}": tensor for name, tensor in lerobot_weights(policy).items()})
    create_run_dir(folder)
    for part in (theirs, *make_default_pre_post_processors(config, _statistics(policy))):
        part.save_pretrained(folder)


def _statistics(policy: Any) -> dict[str, dict[str, Tensor]]:
    """Return bounds whose min-max scaling is what our normaliser does: ``centre -+ 1 / scale``."""
    made = {}
    for key in (*STREAMS, ACTION):
        centre = policy.normalizer.centre(key).cpu()
        half = 1 / policy.normalizer.scale(key).cpu()
        made[key] = {"min": centre - half, "max": centre + half, "mean": centre, "std": half}
    return made


def lerobot_weights(policy: Any) -> dict[str, Tensor]:
    """Return the UNet's weights under the names and in the shapes of LeRobot's ``DiffusionConditionalUnet1d``."""
    net, made = policy.denoiser, dict[str, Tensor]()
    for theirs, conv in _convolutions(net):
        made[f"{theirs}.weight"], made[f"{theirs}.bias"] = conv.weight.squeeze(2), conv.bias
    for index in (0, 2):
        layer = net.level_embedding.mlp[index]
        made |= {f"diffusion_step_encoder.{index + 1}.{name}": tensor for name, tensor in layer.state_dict().items()}
    # Ours adds the products of [level features] and [condition]; LeRobot concatenates them before each block's layer.
    order = [i for key in STREAMS for i in policy.encoder.positions(key)[0]]
    weight = torch.cat((net.film_level.weight, net.film_condition.weight[:, order]), dim=1)
    first = 0
    for theirs, block in _blocks(net):
        size = sum(block.film_sizes)
        made[f"{theirs}.cond_encoder.1.weight"] = weight[first : first + size]
        made[f"{theirs}.cond_encoder.1.bias"] = net.film_level.bias[first : first + size]
        first += size
        for number, part in ((1, block.first), (2, block.second)):
            made |= {f"{theirs}.conv{number}.block.1.{name}": tensor for name, tensor in part.norm.state_dict().items()}
    made |= {f"final_conv.0.block.1.{name}": tensor for name, tensor in net.last.norm.state_dict().items()}
    return {name: tensor.detach().cpu().clone() for name, tensor in made.items()}


def _blocks(net: Any) -> Iterator[tuple[str, Any]]:
    """Yield (LeRobot's name, our residual block) in the order of our modulation."""
    for kind, stages in (("down_modules.{}", net.down), ("mid_modules", [net.middle]), ("up_modules.{}", net.up)):
        for number, stage in enumerate(stages):
            for place, block in enumerate(stage):
                yield f"{kind.format(number)}.{place}", block


def _convolutions(net: Any) -> Iterator[tuple[str, Any]]:
    """Yield (LeRobot's name, our convolution); ours are two-dimensional with a height of one."""
    for theirs, block in _blocks(net):
        yield f"{theirs}.conv1.block.0", block.first.conv
        yield f"{theirs}.conv2.block.0", block.second.conv
        if not isinstance(block.residual, torch.nn.Identity):
            yield f"{theirs}.residual_conv", block.residual
    for kind, convolutions in (("down", net.downsample), ("up", net.upsample)):
        for number, conv in enumerate(convolutions):
            yield f"{kind}_modules.{number}.2", conv
    yield "final_conv.0.block.0", net.last.conv
    yield "final_conv.1", net.out
