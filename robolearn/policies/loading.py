"""A policy as a folder: ``config.json`` (what it is), ``model.safetensors`` (weights), ``ema.safetensors`` (averages)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import safetensors
import safetensors.torch
from torch import Tensor, nn

from robolearn.core.config import from_mapping
from robolearn.core.errors import RefusedError
from robolearn.core.observation import flat_streams
from robolearn.core.protocols import Policy
from robolearn.core.types import Spaces, require_compatible
from robolearn.data.normalizer import Normalizer
from robolearn.policies import config_class, make_policy

CARD_FILE = "config.json"
WEIGHT_FILES = {"raw": "model.safetensors", "ema": "ema.safetensors"}


def save_policy(folder: Path, policy: Policy, *, averaged: Mapping[str, Tensor] | None = None) -> None:
    """Write ``policy`` into ``folder``, which is made where it is missing.

    Args:
        folder: existing files of the same names are replaced.
        policy: any policy of this package; one without weights leaves ``config.json`` alone.
        averaged: averaged weights, name -> tensor, all of the policy's names; written as ``ema.safetensors``.

    Raises:
        RefusedError: ``averaged`` has other names than the policy.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(policy, nn.Module):
        weights = policy.state_dict()
        safetensors.torch.save_file(_on_cpu(weights), folder / WEIGHT_FILES["raw"])
        if averaged is not None:
            _check_names(averaged, weights, what="averaged weights")
            safetensors.torch.save_file(_on_cpu(averaged), folder / WEIGHT_FILES["ema"])
    (folder / CARD_FILE).write_text(json.dumps(policy.card(), indent=2) + "\n")  # type: ignore[attr-defined]


def load_policy(
    folder: Path, device: str = "cpu", weights: Literal["ema", "raw"] = "ema", *, spaces: Spaces | None = None
) -> Policy:
    """Return the policy that ``folder`` holds, ready to act.

    Args:
        folder: written by :func:`save_policy` or a checkpoint of the training loop.
        device: where its weights go.
        weights: the averaged ones (for acting) or the raw ones; ignored by a policy without weights.
        spaces: what the robot or environment offers; compared with the policy's where given.

    Raises:
        RefusedError: the folder is not a checkpoint, names an unknown policy or option, lacks a tensor, has one too many or of
            another shape, or was made for other spaces; the message names what.
    """
    card = read_card(folder)
    name = str(card["policy"])
    config: object = from_mapping(config_class(name), card["config"], where=str(folder / CARD_FILE))
    own = Spaces.from_json(card["spaces"])  # type: ignore[arg-type]
    if spaces is not None:
        require_compatible(own, spaces, what=str(folder))
    modes = card.get("normalizer")
    policy = make_policy(name, config, own, Normalizer(flat_streams(own), modes) if modes else None)  # type: ignore[arg-type]
    if isinstance(policy, nn.Module):
        load_weights(policy, folder / _weight_file(weights))
        policy.to(device).eval().requires_grad_(False)
    return policy


def read_card(folder: Path) -> dict[str, object]:
    """Return ``config.json`` of a checkpoint folder.

    Raises:
        RefusedError: it is missing, is not JSON, or lacks ``policy``, ``config`` or ``spaces``.
    """
    file = folder / CARD_FILE
    try:
        card = json.loads(file.read_text())
    except FileNotFoundError as error:
        raise RefusedError(f"{folder} is not a policy checkpoint: it has no {CARD_FILE}.") from error
    except (OSError, ValueError) as error:
        raise RefusedError(f"{file} cannot be read as JSON: {error}.") from error
    for field in ("policy", "config", "spaces"):
        if not isinstance(card, dict) or field not in card:
            raise RefusedError(f"{file} lacks the field {field!r}.")
    return card


def load_weights(policy: nn.Module, file: Path) -> None:
    """Fill ``policy`` with the tensors of a safetensors file, all of them and no others.

    Raises:
        RefusedError: the file is missing or broken, or a tensor is missing, unexpected or of another shape; the policy is
            unchanged.
    """
    if not file.is_file():
        present = sorted(p.name for p in file.parent.glob("*.safetensors"))
        raise RefusedError(f"{file.parent} has no {file.name}; weight files there: {present or 'none'}.")
    try:
        tensors = safetensors.torch.load_file(file)
    except (OSError, safetensors.SafetensorError) as error:
        raise RefusedError(f"{file} cannot be read as safetensors: {error}.") from error
    own = policy.state_dict()
    _check_names(tensors, own, what=str(file))
    for name, tensor in tensors.items():
        if tensor.shape != own[name].shape:
            raise RefusedError(f"{file}: {name} has shape {tuple(tensor.shape)}, the policy's is {tuple(own[name].shape)}.")
    policy.load_state_dict(tensors)


def _weight_file(weights: str) -> str:
    if weights not in WEIGHT_FILES:
        raise RefusedError(f"{weights=} must be one of {sorted(WEIGHT_FILES)}.")
    return WEIGHT_FILES[weights]


def _check_names(offered: Mapping[str, Tensor], wanted: Mapping[str, Tensor], *, what: str) -> None:
    missing, unexpected = sorted(wanted.keys() - offered.keys()), sorted(offered.keys() - wanted.keys())
    if missing or unexpected:
        raise RefusedError(
            f"{what}: missing tensors {missing[:5]} ({len(missing)}), unexpected {unexpected[:5]} ({len(unexpected)})."
        )


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
