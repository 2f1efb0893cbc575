"""A policy as a folder: ``config.json`` (what it is), ``model.safetensors`` (weights), ``ema.safetensors`` (averages)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import save_file
from torch import Tensor, nn

from robolearn.core.config import from_mapping
from robolearn.core.errors import RefusedError
from robolearn.core.multitask import task_spaces, tasks_of
from robolearn.core.observation import flat_streams
from robolearn.core.protocols import Policy
from robolearn.core.run import read_json, write_json
from robolearn.core.types import Spaces, require_compatible
from robolearn.data.normalizer import Normalizer
from robolearn.deploy.decision import DecisionConfig, DecisionFunction
from robolearn.policies import config_class, foreign_card, make_policy
from robolearn.policies.one_task import one_task
from robolearn.train.checkpoint import CONFIG_FILE, EMA_FILE, MODEL_FILE, load_weights, require_same_tensors, to_cpu

WEIGHT_FILES = {"raw": MODEL_FILE, "ema": EMA_FILE}


def save_policy(folder: Path, policy: Policy, *, averaged: Mapping[str, Tensor] | None = None) -> None:
    """Write ``policy`` into ``folder``, which is made where it is missing.

    Args:
        folder: existing files of the same names are replaced.
        policy: any policy of this package; one without weights leaves ``config.json`` alone.
        averaged: averaged weights, name -> tensor, all of the policy's names; written as ``ema.safetensors``.

    Raises:
        RefusedError: ``averaged`` differs from the policy's tensors in a name, shape or dtype.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(policy, nn.Module):
        weights = policy.state_dict()
        save_file(to_cpu(weights), folder / WEIGHT_FILES["raw"])
        if averaged is not None:
            require_same_tensors(weights, averaged, where="averaged weights")
            save_file(to_cpu(averaged), folder / WEIGHT_FILES["ema"])
    write_json(folder / CONFIG_FILE, policy.card())  # type: ignore[attr-defined]


def load_policy(
    folder: Path, device: str = "cpu", weights: Literal["ema", "raw"] = "ema", *, spaces: Spaces | None = None, task: str = ""
) -> Policy:
    """Return the policy that ``folder`` holds, ready to act.

    Args:
        folder: written by :func:`save_policy`, a checkpoint of the training loop, or a LeRobot policy (``pretrained_model``).
        device: where its weights go.
        weights: the averaged ones (for acting) or the raw ones; ignored by a policy without weights.
        spaces: what the robot or environment offers; compared with the policy's where given.
        task: what a policy of several tasks shall do; it then reads that task's own streams. A policy of one task ignores it.

    Raises:
        RefusedError: the folder is not a checkpoint, names an unknown policy or option, lacks a tensor, has one too many or of
            another shape, was made for other spaces or does not know the task; the message names what.
    """
    if weights not in WEIGHT_FILES:
        raise RefusedError(f"{weights=} must be one of {sorted(WEIGHT_FILES)}.")
    card = read_card(folder, spaces)
    name = str(card["policy"])
    config: object = from_mapping(config_class(name), card["config"], where=str(folder / CONFIG_FILE))
    own = Spaces.from_json(card["spaces"])  # type: ignore[arg-type]
    tasks = tasks_of(own)
    if spaces is not None and tasks and not task:
        raise RefusedError(f"{folder} was trained for the tasks {list(tasks)}; say which one it shall do.")
    if spaces is not None:
        require_compatible(task_spaces(own, task) if tasks else own, spaces, what=str(folder))
    modes = card.get("normalizer")
    policy = make_policy(name, config, own, Normalizer(flat_streams(own), modes) if modes else None)  # type: ignore[arg-type]
    if isinstance(policy, nn.Module):
        load_weights(policy, folder / WEIGHT_FILES["raw" if "foreign" in card else weights])
        policy.to(device).eval().requires_grad_(False)
    return one_task(policy, task) if tasks and task else policy


def load_decision(
    folder: Path, config: DecisionConfig | None = None, device: str = "cpu", *, spaces: Spaces | None = None, task: str = ""
) -> Policy:
    """Return the fast decision function of the generative policy that ``folder`` holds.

    Args:
        folder: see :func:`load_policy`.
        config: batch, precision, compilation; one row in fp32 by default.
        device: where it decides, for good.
        spaces: what the robot or environment offers; compared with the policy's where given.
        task: what a policy of several tasks shall do.

    Raises:
        RefusedError: see :func:`load_policy` and :class:`robolearn.deploy.decision.DecisionFunction`.
    """
    policy: Any = load_policy(folder, device, spaces=spaces, task=task)
    if tasks_of(policy.spaces):
        raise RefusedError(f"{folder} was trained for the tasks {list(tasks_of(policy.spaces))}; say which one it shall do.")
    joint = getattr(policy, "joint", policy)
    decision = DecisionFunction(joint, config or DecisionConfig())
    return one_task(decision, task) if joint is not policy else decision


def read_card(folder: Path, spaces: Spaces | None = None) -> dict[str, object]:
    """Return ``config.json`` of a checkpoint folder.

    A folder in LeRobot's layout (``type`` instead of ``policy``) is described, for ``spaces``, by the policy ``lerobot_<type>``;
    ``foreign`` in its card says that it has one set of weights.

    Raises:
        RefusedError: it is missing, is not JSON, or lacks ``policy``, ``config`` or ``spaces``; or see that policy.
    """
    card = read_json(folder / CONFIG_FILE, what="policy checkpoint's description")
    if "type" in card and "policy" not in card:
        return foreign_card(f"lerobot_{card['type']}", folder, spaces) | {"foreign": True}
    for field in ("policy", "config", "spaces"):
        if field not in card:
            raise RefusedError(f"{folder / CONFIG_FILE} lacks the field {field!r}.")
    return card


def trained_delay(policy: Policy) -> int:
    """Return how many committed actions a policy, or the base of a refined one, was trained to continue; 0 if none."""
    own, base = getattr(policy, "trained_delay", None), getattr(policy, "base", None)
    return trained_delay(base) if own is None and base is not None else int(own or 0)
