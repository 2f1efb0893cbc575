"""Adversaries against the filter and the gate: no command that is sent exceeds a limit, whatever comes in, and whenever."""

import dataclasses

import numpy as np
import pytest

import hardware
from robolearn.deploy.chunk import Chunk
from robolearn.deploy.gate import CommandGate
from robolearn.deploy.gate_config import Command, GateConfig
from robolearn.deploy.limits import SafetyLimits, filled
from robolearn.deploy.safety import SafetyFilter

ROBOTS = hardware.robot_names()
ROUNDING = 1e-9
"""Allowed excess of a bound: the difference of neighbouring commands is only known to rounding."""


def assert_within(limits: SafetyLimits, commands: np.ndarray, what: str = "") -> None:
    """Check consecutive commands (t, ..., a), which begin at rest, against every bound."""
    low, high = limits.inner_bounds()
    assert np.isfinite(commands).all(), what
    assert (commands >= low).all(), what
    assert (commands <= high).all(), what
    dt = 1 / limits.control_rate_hz
    rest = np.repeat(commands[:1], 3, axis=0)
    difference = np.concatenate([rest, commands])
    scale = np.maximum(np.abs(commands).max(), 1)
    for bound in (limits.max_velocity, limits.max_acceleration, limits.max_jerk):
        difference = np.diff(difference, axis=0) / dt
        scale = scale / dt
        most = np.abs(difference).reshape(-1, limits.dim).max(axis=0)
        assert (most <= filled(bound, limits.dim, np.inf) + ROUNDING * scale).all(), (what, most, bound)


def adversarial(rng: np.random.Generator, shape: tuple[int, ...], limits: SafetyLimits, previous: np.ndarray) -> np.ndarray:
    """Draw one command per row: jumps, extremes, drifts, duplicates, NaN and infinities."""
    low, high = limits.inner_bounds()
    low, high = np.maximum(low, -7), np.minimum(high, 7)
    kind = rng.integers(0, 8, shape[0])[:, None]
    jump = rng.uniform(low, high, shape)
    command = np.where(kind == 0, jump, previous)
    command = np.where(kind == 1, np.where(rng.random(shape) < 0.5, low, high), command)
    command = np.where(kind == 2, previous + rng.normal(0, 0.02, shape), command)
    command = np.where(kind == 3, 1e6 * rng.normal(size=shape), command)
    poison = rng.choice([np.nan, np.inf, -np.inf], shape)
    return np.where((kind == 4) & (rng.random(shape) < 0.3), poison, command)


ROWS = 128
PERIODS = {"so101": 2200, "ur5e": 2200, "panda": 900, "fr3": 900, "gen3": 900, "g1": 400, "gr1": 400}
assert ROWS * sum(PERIODS[name] for name in ROBOTS) >= 1_000_000


@pytest.mark.parametrize("name", ROBOTS)
def test_adversarial_commands_leave_every_limit_of_the_robot_intact(name):
    """1,011,200 commands in all, fewer for the robots with more joints."""
    spec = dataclasses.replace(hardware.load_robot(name), speed_scale=1.0)
    limits = dataclasses.replace(SafetyLimits.from_robot(spec), max_command_age_s=0.1)
    rng = np.random.default_rng(len(name))
    safety = SafetyFilter(limits, num_rows=ROWS)
    low, high = limits.inner_bounds()
    start = rng.uniform(np.maximum(low, -3), np.minimum(high, 3), (ROWS, limits.dim))
    safety.reset(start)
    sent, command, measured = [start], start, start
    for k in range(PERIODS[name]):
        command = adversarial(rng, start.shape, limits, np.nan_to_num(command, nan=0.0, posinf=0.0, neginf=0.0))
        # The robot lags, jumps, and one measurement in a hundred is missing.
        measured = np.where(rng.random((ROWS, 1)) < 0.9, sent[-1] + rng.normal(0, 0.02, start.shape), measured)
        poisoned = np.where(rng.random((ROWS, 1)) < 0.01, np.nan, measured)
        stamp_s = k / 100 - rng.choice([0.0, 0.05, 0.5, -1.0, np.nan], ROWS, p=[0.8, 0.1, 0.05, 0.03, 0.02])
        sent.append(safety.apply(command, now_s=k / 100, measured=poisoned, command_stamp_s=stamp_s))
    assert_within(limits, np.array(sent), name)
    assert all(safety.counts[kind].sum() > 0 for kind in ("non_finite", "command_age", "velocity", "jerk", "braking"))


class Storm:
    """Everything that can go wrong on the way to a gate, in a random order on a jittery clock."""

    def __init__(self, seed: int, spec, *, config: GateConfig) -> None:
        self.rng = np.random.default_rng(seed)
        self.gate, self.spec = CommandGate.for_robot(spec, config), spec
        self.limits = self.gate.limits
        self.low, self.high = self.limits.inner_bounds()
        self.position, self.now_s, self.rows = np.array(spec.home), 0.0, 0
        self.old = [self.chunk()]

    def chunk(self) -> Chunk:
        """One chunk of 60 rows: calm around the robot, wild, or broken."""
        rng, dim = self.rng, self.limits.dim
        here = np.append(self.position, np.zeros(dim - self.spec.dim))
        kind = rng.integers(0, 5)
        if kind <= 1:
            values = here + np.cumsum(rng.normal(0, 0.01, (60, dim)), axis=0)
        elif kind == 2:
            values = np.where(rng.random((60, 1)) < 0.3, rng.uniform(self.low, self.high, (60, dim)), here)
        elif kind == 3:
            values = here + np.sign(rng.normal(size=(60, dim))) * rng.choice([0.05, 0.19, 3.0])
        else:
            values = np.where(rng.random((60, dim)) < 0.001, np.nan, here)
        late_s = rng.choice([0.0, 0.03, 0.2, 2.0, -0.01, -5.0], p=[0.5, 0.2, 0.2, 0.04, 0.03, 0.03])
        source = rng.choice(["policy", "teleop"], p=[0.95, 0.05])
        return Chunk(self.gate.names, values, self.now_s - late_s, rng.choice([0.01, 0.05]), source=str(source))

    def send(self) -> None:
        """New, duplicated, reordered or many at once."""
        chunks = [self.chunk() for _ in range(self.rng.choice([1, 2, 5], p=[0.8, 0.15, 0.05]))]
        if self.rng.random() < 0.3:
            chunks.append(self.old[self.rng.integers(len(self.old))])
        self.rng.shuffle(chunks)
        for chunk in chunks:
            self.gate.on_chunk(chunk, now_s=self.now_s)
            self.rows += len(chunk.values)
        self.old = [*self.old, *chunks][-20:]

    def tick(self) -> Command:
        """Advance by one jittery period, with everything that happens in it."""
        rng, gate = self.rng, self.gate
        period_s = 1 / self.limits.control_rate_hz
        self.now_s += period_s * rng.choice([1.0, 0.7, 1.3, 0.0, 3.0, 40.0], p=[0.8, 0.07, 0.07, 0.03, 0.029, 0.001])
        if rng.random() < 0.99:
            gate.on_estop(bool(rng.random() < 0.002), now_s=self.now_s)
        if rng.random() < 0.97:
            noise = rng.normal(0, 0.005, self.spec.dim) * (rng.random() < 0.9)
            gate.on_measured(self.position + noise, stamp_s=self.now_s - rng.choice([0.0, 0.02]), now_s=self.now_s)
        if gate.state.value == "latched":
            gate.on_estop(False, now_s=self.now_s)
            gate.arm()
            try:
                gate.reset(now_s=self.now_s)
            except ValueError:
                self.now_s += 0.3
        elif rng.random() < 0.3:
            self.send()
        command = gate.tick(self.now_s)
        if command.send:
            self.position = 0.5 * self.position + 0.5 * command.position[: self.spec.dim]
        return command


@pytest.mark.parametrize("name", ["panda", "g1", "so101"])
def test_a_storm_of_chunks_leaves_every_limit_intact(name):
    """The whole gate: each sequence of commands between two restarts begins at rest and obeys every bound."""
    storm = Storm(7, dataclasses.replace(hardware.load_robot(name), speed_scale=1.0), config=GateConfig())
    epochs: dict[int, list[np.ndarray]] = {}
    last = None
    for _ in range(1500):
        command = storm.tick()
        # A tick in a slot that already had one repeats the same command object for object; it is no step of the sequence.
        if np.isfinite(command.position).all() and storm.gate.steps != last:
            epochs.setdefault(command.epoch, []).append(command.position)
        last = storm.gate.steps
    assert storm.rows >= 25_000
    assert len(epochs) >= 3
    for number, commands in epochs.items():
        assert_within(storm.limits, np.array(commands), f"epoch {number}")
    happened = storm.gate.counts
    for kind in ("refused_non_finite", "refused_reordered", "refused_command_age", "fault_e_stop", "missed_ticks"):
        assert happened[kind] > 0, kind


def test_an_attack_on_observations_never_drives_a_command_out_of_bounds():
    """A linear policy is attacked by the bounded perturbation that pushes its action furthest, as RAT-style attacks do.

    The policy reads the joint positions and answers with a chunk W (observation + delta); the attacker knows W and picks, for
    each row, the sign vector delta in [-eps, eps] that moves the first action most, towards whichever limit is nearer.
    """
    spec = dataclasses.replace(hardware.load_robot("panda"), speed_scale=1.0)
    config = GateConfig(estop_timeout_s=None)
    rng = np.random.default_rng(3)
    for eps in (0.01, 0.1, 1.0):
        gate = CommandGate.for_robot(spec, config)
        position, sent = np.array(spec.home), []
        weights = np.eye(7) + rng.normal(0, 0.5, (7, 7))
        bias = position - weights @ position
        for k in range(400):
            now_s = k * 0.01
            gate.on_measured(position, stamp_s=now_s, now_s=now_s)
            if k == 1:
                gate.reset(now_s=now_s)
            if k > 1 and k % 5 == 0:
                direction = np.sign(position - (np.array(spec.position_low) + np.array(spec.position_high)) / 2)
                delta = eps * np.sign(weights.T @ direction)
                action = weights @ (position + delta) + bias
                gate.on_chunk(Chunk(gate.names, np.tile(np.append(action, 0.0), (10, 1)), now_s, 0.05), now_s=now_s)
            command = gate.tick(now_s)
            if k >= 1:
                sent.append(command.position)
                position = command.position[:7]
        assert_within(gate.limits, np.array(sent), f"eps {eps}")
