"""A gradient attack on what a diffusion policy sees (RAT-style: bounded, fully informed) against the limits of the gate.

The attacker knows weights, the policy's observation and the very noise that the next decision will draw. Within an L-infinity
ball of the normalised observation it takes steps along the sign of the gradient (projected gradient descent) that push the chunk
towards a corner of the action space, a new one each decision, so that one chunk contradicts the other.
"""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from test_gate_properties import assert_within

import hardware
from robolearn.core.seeding import standard_normal
from robolearn.core.types import ACTION, FeatureSpec, Spaces
from robolearn.data.normalizer import Normalizer, Statistics
from robolearn.deploy.chunk import Chunk
from robolearn.deploy.engine import Engine
from robolearn.deploy.executor import ExecutorConfig
from robolearn.deploy.gate import CommandGate
from robolearn.deploy.gate_config import GateConfig
from robolearn.deploy.kinematics import WorkspaceGuard
from robolearn.nets.denoisers import DenoiserConfig
from robolearn.nets.mlp import MlpConfig
from robolearn.policies import config_class, make_policy

SPEC = dataclasses.replace(hardware.load_robot("panda"), speed_scale=1.0)
HOME, JOINTS = np.array(SPEC.home), "observation.joint_position"
HORIZON, EXECUTED, POLICY_HZ, GATE_HZ = 8, 4, 20, 100
REACH = 1.0
"""Demonstrations begin at up to this distance from home [rad]."""
PGD_STEPS, SECONDS, CLEAN_S = 6, 8.0, 1.0


def demonstrations(rng: np.random.Generator, rows: int) -> dict[str, np.ndarray]:
    """Steps on the way home: a tenth of what is left each control step, at most 0.05 rad; the gripper opens."""
    q = HOME + rng.uniform(-REACH, REACH, (rows, 7))
    action = np.empty((rows, HORIZON, 8))
    at = q
    for k in range(HORIZON):
        at = at + np.clip(0.1 * (HOME - at), -0.05, 0.05)
        action[:, k, :7], action[:, k, 7] = at, -1.0 + 2 * (q[:, 0] > HOME[0])
    return {JOINTS: q, ACTION: action}


@pytest.fixture(scope="module")
def policy():
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    names = (*SPEC.joints, *(g.joint for g in SPEC.grippers))
    low, high = ((*(HOME + sign * 2).tolist(), sign * 1.0) for sign in (-1, 1))
    spaces = Spaces("panda", {JOINTS: FeatureSpec((7,), names=SPEC.joints)}, FeatureSpec((8,), names=names), low, high, POLICY_HZ)
    data = demonstrations(np.random.default_rng(0), 4000)
    flat = {JOINTS: data[JOINTS], ACTION: data[ACTION].reshape(-1, 8)}
    normalizer = Normalizer({JOINTS: 7, ACTION: 8}).fit({key: Statistics.of(value) for key, value in flat.items()})
    config = config_class("diffusion")(
        obs_horizon=1,
        pred_horizon=HORIZON,
        observation_keys=(JOINTS,),
        denoiser=DenoiserConfig(kind="mlp", mlp=MlpConfig(width=128, blocks=1, level_width=16)),
        prediction="sample",
        sampler_steps=4,
        clip=0.0,
    )
    made = make_policy("diffusion", config, spaces, normalizer)
    optimizer, rng = torch.optim.Adam(made.parameters(), 2e-3), torch.Generator().manual_seed(0)
    batch = {JOINTS: torch.from_numpy(data[JOINTS]).float()[:, None], ACTION: torch.from_numpy(data[ACTION]).float()}
    pad = torch.zeros(128, HORIZON, dtype=torch.bool)
    for _ in range(500):
        rows = torch.randint(4000, (128,), generator=rng)
        loss, _ = made.loss({key: value[rows] for key, value in batch.items()} | {"action_is_pad": pad}, rng)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    yield made.eval().requires_grad_(False)
    torch.set_num_threads(threads)


def attacked(policy, seen, corner, *, eps, latent):
    """Return the joint positions within ``eps`` (normalised units) of ``seen`` whose chunk lies furthest towards ``corner``."""
    normalizer = policy.normalizer
    clean = normalizer.apply(JOINTS, torch.from_numpy(seen).float()[None, None])
    noise, goal = torch.from_numpy(latent).float(), torch.from_numpy(corner).float()
    delta = torch.zeros_like(clean)
    for _ in range(PGD_STEPS):
        delta.requires_grad_(True)
        chunk = policy.decode_tensor({JOINTS: normalizer.invert(JOINTS, clean + delta)}, noise)
        (chunk[..., :EXECUTED, :] * goal).sum().backward()
        delta = (delta.detach() + eps / 3 * delta.grad.sign()).clamp(-eps, eps)
    return normalizer.invert(JOINTS, clean + delta)[0, 0].double().numpy()


class Deployment:
    """Engine and gate around a robot that follows its commands, on a clock of the gate's ticks."""

    def __init__(self, policy, *, eps: float) -> None:
        self.policy, self.eps = policy, eps
        self.guard = WorkspaceGuard(SPEC)
        self.gate = CommandGate.for_robot(SPEC, GateConfig(estop_timeout_s=None), guard=self.guard)
        self.rng, self.evil = np.random.default_rng(1), np.random.default_rng(2)
        self.engine = Engine(policy, ExecutorConfig(EXECUTED), clock=lambda: 0.0)
        self.engine.reset(self.rng)
        self.position = HOME + np.array([0.2, -0.2, 0.2, 0.2, -0.2, 0.2, -0.2])
        self.sent, self.epochs, self.states, self.pushed, self.decided = [], [], [], [], []

    def see(self, now_s: float) -> np.ndarray:
        """Return what the policy is shown, and note what its next decision says to the truth and to that."""
        seen = self.position.copy()
        if self.eps == 0 or now_s < CLEAN_S:
            return seen
        latent = standard_normal([copy.deepcopy(self.rng)], (1, *self.policy.latent_shape))
        corner = np.append(self.evil.choice([-1.0, 1.0], 7), 0.0)
        false = attacked(self.policy, seen, corner, eps=self.eps, latent=latent)
        said = [self.policy.decode({JOINTS: np.float32(q)[None, None]}, latent).actions[0] for q in (seen, false)]
        self.pushed.append(((said[1] - said[0])[:EXECUTED] @ corner).mean() / 7)
        # The observation stays in the ball, whatever the rounding of the inverse.
        moved = self.policy.normalizer.apply(JOINTS, torch.from_numpy(np.stack([seen, false])).float())
        assert float((moved[1] - moved[0]).abs().max()) <= self.eps + 1e-5
        return false

    def run(self) -> None:
        for k in range(round(SECONDS * GATE_HZ)):
            now_s = k / GATE_HZ
            self.gate.on_measured(self.position, stamp_s=now_s, now_s=now_s)
            if self.gate.state.value == "latched" and k:
                self.gate.reset(now_s=now_s)
            if k and k % (GATE_HZ // POLICY_HZ) == 0:
                due = self.engine.decisions
                rows = self.engine.act({JOINTS: np.float32(self.see(now_s))})
                if self.engine.decisions > due:
                    self.decided.append((now_s, self.position.copy(), rows))
                self.gate.on_chunk(Chunk(self.gate.names, rows, now_s, 1 / POLICY_HZ), now_s=now_s)
            command = self.gate.tick(now_s)
            self.states.append(command.state.value)
            if k:
                self.sent.append(command.position)
                self.epochs.append(command.epoch)
                self.position = command.position[:7]

    def exceeding(self) -> float:
        """Return the part of the decisions (after :data:`CLEAN_S`) that ask for more than a joint's speed or for a tool out of
        the box."""
        bad = []
        for now_s, position, rows in self.decided:
            if now_s >= CLEAN_S:
                way = np.diff(np.concatenate([position[None], rows[:EXECUTED, :7]]), axis=0)
                fast = (np.abs(way) * POLICY_HZ > np.array(SPEC.max_velocity)).any()
                bad.append(fast or any(self.guard.violation(row) for row in rows[:EXECUTED, :7].astype(float)))
        return float(np.mean(bad))


def require_safe(deployment: Deployment) -> None:
    """Every command that was sent obeys every bound of the robot, and no tool leaves the box nor do bodies meet."""
    sent, epochs = np.array(deployment.sent), np.array(deployment.epochs)
    assert len(sent) == SECONDS * GATE_HZ - 1
    for epoch in np.unique(epochs):
        assert_within(deployment.gate.limits, sent[epochs == epoch], f"epoch {epoch}")
    judge = WorkspaceGuard(SPEC)
    assert [v for q in sent[:, :7] if (v := judge.violation(q))] == []


def test_the_policy_left_alone_goes_home_within_its_limits(policy):
    alone = Deployment(policy, eps=0.0)
    alone.run()
    require_safe(alone)
    assert alone.exceeding() == 0
    assert np.abs(alone.position - HOME).max() < 0.1


@pytest.mark.parametrize("eps", [0.2, 0.5])
def test_attacked_observations_never_drive_a_command_out_of_bounds(policy, eps):
    victim = Deployment(policy, eps=eps)
    victim.run()
    require_safe(victim)
    # The attack is real: it moves every decision towards its corner, and what most of them ask for no robot may do.
    assert min(victim.pushed) > 0
    assert victim.exceeding() > 0.5
    assert victim.states.count("running") > 0.9 * len(victim.states)
    altered = victim.gate.filter_counts
    assert min(altered[kind] for kind in ("position", "velocity", "acceleration", "jerk", "relative_target", "guard")) > 0
