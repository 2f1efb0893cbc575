"""Success against the time that a decision takes, with and without alignment by stamps, on a simulated task.

    robolearn bench delay <run or checkpoint folder> [episodes] [largest delay in steps]
    robolearn bench delay <run or checkpoint folder> <episodes> <largest delay> methods [exec_horizon] [random]
    robolearn bench delay draw <picture> <file with the output of the command above> ...

The pipeline is the deployed one (engine, step clock, command gate) on a simulated clock: a decision that takes d control steps
looks at one frame and reaches the gate d steps later; the frames in between are only looked at. What ``policy_node`` and
``gate_node`` do: a chunk is entered at the age of its observation, and the plan moves on by the steps that went by; where the
policy can, chunks are also continued (``guided``; ``trained`` within its ``max_delay``) by the delay that the engine measures
on the simulated clock. ``not aligned`` begins every chunk with its first row when it arrives and lets the plan move by one row a
decision.

With ``methods`` the ways of continuing the chunk under way are compared instead, aligned all of them, on the same initial states:
hard switch, temporal ensembling, blending, guidance, and trained prefixes where the policy has ``max_delay``. The first chunk
of an episode is there from the start. The seam is how far apart old and new chunk are where one takes over (half ranges of the
arm's actions); the jerk is the mean squared third difference of the sent actions. ``random`` draws each delay from 0 to the
one printed.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from robolearn.commands.policy_reference import run_folder
from robolearn.commands.recipe import load_recipe
from robolearn.commands.simulation import make_recipe_env
from robolearn.commands.train import RECIPE_FILE
from robolearn.core.errors import RefusedError
from robolearn.core.protocols import ContinuingPolicy, Env, Policy
from robolearn.core.seeding import VALIDATION_SEED_BLOCK, generator
from robolearn.core.types import Array
from robolearn.deploy.chunk import Chunk, StepClock
from robolearn.deploy.engine import Engine
from robolearn.deploy.executor import ExecutorConfig
from robolearn.deploy.gate import CommandGate
from robolearn.deploy.gate_config import GateConfig
from robolearn.evaluate.result import RolloutConfig
from robolearn.evaluate.rollout import evaluate
from robolearn.evaluate.statistics import clopper_pearson
from robolearn.policies.loading import load_policy, trained_delay
from robolearn.train.checkpoint import find_checkpoint

LONG_S = 1e6


@dataclass
class Deployment:
    """A policy process and a gate beside one simulated robot, on a clock that counts its control steps."""

    env: Env
    policy: Policy
    executor: ExecutorConfig
    delay: int
    """Control steps that a decision takes."""
    aligned: bool = True

    def __post_init__(self) -> None:
        spaces = self.env.spec.spaces
        self._period_s = 1 / spaces.control_rate_hz
        self._names = spaces.action.names
        self._rest = np.where([name.endswith("gripper") for name in self._names], -1.0, 0.0)
        self._keys = list(self.policy.spaces.observation)

    def solved(self, seed: int) -> bool:
        """Run one episode."""
        self._clock_s = 0.0
        engine = Engine(self.policy, self.executor, clock=self._read_clock)
        engine.reset(generator(0, "episode", seed))
        steps = StepClock(self._period_s)
        timeouts = dict.fromkeys(("policy_timeout_s", "chunk_timeout_s", "max_command_age_s", "resume_window_s"), LONG_S)
        gate = CommandGate.for_spaces(
            self.env.spec.spaces, GateConfig(estop_timeout_s=None, stream_timeouts_s={}, max_tick_gap_s=LONG_S, **timeouts)
        )
        gate.arm()
        gate.tick(-2 * self._period_s)
        gate.reset(now_s=-2 * self._period_s)
        observation = self.env.reset([seed])
        busy_until, on_its_way, waiting = 0, [], []
        for now in range(self.env.spec.max_episode_steps):
            waiting.append((now, {key: observation[key][0] for key in self._keys}))
            if now >= busy_until:
                rows, decided = self._decide(engine, steps, waiting)
                waiting, took = [], self.delay if decided else 0
                busy_until = now + max(took, 1)
                on_its_way.append((now + took, now, rows))
            for arrival, stamp, rows in [item for item in on_its_way if item[0] == now]:
                at = stamp if self.aligned else arrival
                gate.on_chunk(Chunk(self._names, rows, at * self._period_s, self._period_s), now_s=now * self._period_s)
            command = gate.tick(now * self._period_s)
            action = command.position if command.state == "running" else self._rest
            step = self.env.step(np.asarray(action, np.float32)[None])
            observation = step.observation
            if step.ended[0]:
                return bool(step.success[0])
        return False

    def _read_clock(self) -> float:
        """Let each decision, which reads the clock when it begins and when it ends, last for its delay (and a rounding)."""
        self._clock_s += (self.delay + 1e-3) * self._period_s
        return self._clock_s

    def _decide(self, engine: Engine, steps: StepClock, frames: list[tuple[int, dict[str, Array]]]) -> tuple[Array, bool]:
        """Return the chunk of the newest frame and whether the policy was asked for it."""
        known = len(engine.latencies_s)
        for stamp, frame in frames[:-1] if self.aligned else []:
            if steps.advance(round(stamp * self._period_s * 1e9)):
                engine.skip(frame)
        steps.advance(round(frames[-1][0] * self._period_s * 1e9))
        rows = engine.act(frames[-1][1])
        return rows, len(engine.latencies_s) > known


def compare_methods(reference: str, episodes: int, largest: int, exec_horizon: int, jitter: bool) -> None:
    """Print one row per delay and method."""
    checkpoint = find_checkpoint(Path(reference))
    recipe = load_recipe((run_folder(Path(reference)) or checkpoint) / RECIPE_FILE, ["env.num_envs=25"])
    env = make_recipe_env(recipe)
    policy = load_policy(checkpoint, spaces=env.spec.spaces)
    methods = ["switch", "ensemble", "blend", "guided"] + (["trained"] if trained_delay(policy) else [])
    seeds = [VALIDATION_SEED_BLOCK + i for i in range(episodes)]
    print(f"{reference}: {env.spec.task}, exec_horizon {exec_horizon}, {'random' if jitter else 'constant'} delay")
    print("| delay, steps | method | solved | 95 % interval | seam | jerk |\n|---|---|---|---|---|---|")
    for delay in sorted({0, 2, largest // 2, largest} - ({1} if largest < 4 else set())):
        for method in methods:
            if method == "trained" and delay > trained_delay(policy):
                continue
            plain = method in ("switch", "ensemble")
            executor = ExecutorConfig(
                exec_horizon,
                method == "ensemble",
                continuation="switch" if plain else method,
                delay_steps=0 if plain else delay,
            )
            late = {"delay_steps": 0, "delay_jitter": delay} if jitter else {"delay_steps": delay}
            result = evaluate(env, policy, seeds, RolloutConfig(executor, timed_decisions=0, **late))
            low, high = result.interval()
            seam, jerk = (float(np.mean([getattr(e, f) for e in result.episodes])) for f in ("mean_seam", "mean_squared_jerk"))
            row = f"| {delay} | {method} | {result.successes}/{episodes} | {low:.2f}-{high:.2f} | {seam:.4f} | {jerk:.4f} |"
            print(row, flush=True)
    env.close()


def draw(picture: Path, files: list[Path]) -> None:
    """Draw success, seam and jerk against the delay, one row of panels per printed table."""
    from matplotlib.figure import Figure

    columns = {"solved": "success", "seam": "seam, half ranges", "jerk": "jerk"}
    figure = Figure(figsize=(9, 2.9 * len(files)), layout="constrained")
    for place, file in enumerate(files):
        lines = file.read_text().splitlines()
        table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")][1:]
        axes = [figure.add_subplot(len(files), 3, 3 * place + i + 1) for i in range(3)]
        for method in dict.fromkeys(row[1] for row in table):
            rows = [row for row in table if row[1] == method]
            delays = [int(row[0]) for row in rows]
            solved = [int(row[2].split("/")[0]) / int(row[2].split("/")[1]) for row in rows]
            values = (solved, [float(row[4]) for row in rows], [float(row[5]) for row in rows])
            for axis, numbers in zip(axes, values, strict=True):
                axis.plot(delays, numbers, marker="o", markersize=3, label=method)
        for axis, label in zip(axes, columns.values(), strict=True):
            axis.set(xlabel="delay, control steps", ylabel=label, ylim=(0, 1.05 if label == "success" else None))
        axes[1].set_title(lines[0].rpartition("/")[2])
        axes[0].legend(fontsize=7)
    figure.savefig(picture, dpi=110)


def main(reference: str, episodes: str = "50", largest: str = "6", *more: str) -> None:
    """Print one row per delay, or draw what was printed."""
    if reference == "draw":
        draw(Path(episodes), [Path(file) for file in (largest, *more)])
        return
    numbers = [episodes, largest, *[word for word in more if word not in ("methods", "random")]]
    if not all(number.isdigit() for number in numbers) or len(numbers) > 3 or (more and more[0] != "methods"):
        raise RefusedError(f"Cannot read {' '.join((reference, episodes, largest, *more))!r}.\n{__doc__}")
    if more:
        horizon = int(numbers[2]) if len(numbers) > 2 else 4
        compare_methods(reference, int(episodes), int(largest), horizon, "random" in more)
        return
    checkpoint = find_checkpoint(Path(reference))
    recipe = load_recipe((run_folder(Path(reference)) or checkpoint) / RECIPE_FILE, ["env.num_envs=1"])
    env = make_recipe_env(recipe)
    policy = load_policy(checkpoint, spaces=env.spec.spaces)
    executor = ExecutorConfig(min(recipe.evaluate.exec_horizon, policy.pred_horizon))
    columns = {"switch": (executor, True), "not aligned": (executor, False)}
    for method in ("guided", "trained") if isinstance(policy, ContinuingPolicy) else ():
        if method == "guided" or trained_delay(policy):
            columns[method] = (replace(executor, continuation=method, delay_steps=None), True)
    period_ms = 1e3 / env.spec.spaces.control_rate_hz
    print(f"{reference}: {env.spec.task}, {executor.exec_horizon} of {policy.pred_horizon} rows, {episodes} episodes")
    print(f"| decision takes | {' | '.join(columns)} |\n|---{'|---' * len(columns)}|")
    for delay in range(int(largest) + 1):
        cells = []
        for name, (config, aligned) in columns.items():
            if name == "trained" and delay > trained_delay(policy):
                cells.append("")
                continue
            deployment = Deployment(env, policy, config, delay, aligned)
            solved = sum(deployment.solved(VALIDATION_SEED_BLOCK + i) for i in range(int(episodes)))
            low, high = clopper_pearson(solved, int(episodes))
            cells.append(f"{solved}/{episodes} [{low:.2f}, {high:.2f}]")
        print(f"| {delay * period_ms:.0f} ms | {' | '.join(cells)} |", flush=True)
    env.close()


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(*sys.argv[1:])
