"""Speed of the online loop beside a plain one of stable-baselines3's kind; prints a Markdown table.

    robolearn bench refine [--steps N] [--rounds N] [--task TASK]
    robolearn bench refine --updates [--device cuda] [--width 2048] [--steps N] [--rounds N]

Wall clock of whole loops on Can (acting, stepping, learning), rounds of the candidates interleaved, medians; the machine must be
quiet. All learn DSRL-NA with the released settings for Can (4 environments, chunks of 4, batch 256, 1.25 updates of critics and
actor and 0.625 of noise critics per control step), 2 critics and an actor of 3 x 256, over an untrained diffusion MLP of 2 x 256
that decodes in 4 steps: weights do not change how long a loop takes.

- Ours: ``train.online.refine`` with ``refine.dsrl``, in fp32 and bf16; then at the ratio of ``configs/can_dsrl.yaml``.
- Plain: what stable-baselines3's off-policy loop does, written here with the same nets: a numpy replay whose batches are copied
  to torch, one network after another per critic, targets followed parameter by parameter, environments stepped in between.

``--updates`` measures updates alone, sampling included, of nets of 3 x WIDTH on one device: in fp32 and bf16, started kernel by
kernel and, on a GPU, recorded as CUDA graphs.
"""

import argparse
import copy
import itertools
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from robolearn.core.observation import flat_streams, select_observation
from robolearn.core.protocols import Env
from robolearn.core.types import ENVIRONMENT_STATE, STATE
from robolearn.data.normalizer import Normalizer, Statistics
from robolearn.data.replay_buffer import ReplayBuffer
from robolearn.nets.actors import ActorConfig
from robolearn.nets.critics import CriticConfig
from robolearn.nets.denoisers import DenoiserConfig
from robolearn.nets.mlp import MlpConfig
from robolearn.policies import diffusion
from robolearn.refine import dsrl
from robolearn.refine.base import PRECISIONS, Precision
from robolearn.train.metrics import read_metrics
from robolearn.train.online import refine
from robolearn.train.online_config import OnlineConfig
from robolearn.train.refiner import Phase
from sim_envs.task import EnvOptions, make_env

LANES, CHUNK, BATCH, WIDTH = 4, 4, 256, 256
RATIO = 1.25
"""Updates per control step: 20 per decision of 4 environments that act 4 steps each."""


def released(width: int, *, precision: Precision = "fp32", cuda_graph: bool = False) -> dsrl.Config:
    """Return DSRL-NA with the released settings, two critics and an actor of 3 x ``width``."""
    return dsrl.Config(
        actor=ActorConfig(octaves=0, width=width),
        critic=CriticConfig(octaves=0, width=width),
        gradient="distilled",
        form="absolute",
        actor_every=1,
        outcome_weight=0.0,
        precision=precision,
        cuda_graph=cuda_graph,
    )


def untrained(env: Env) -> diffusion.Policy:
    """Return the small base with random weights."""
    spaces = env.spec.spaces
    own = select_observation(spaces, (STATE, ENVIRONMENT_STATE))
    rng = np.random.default_rng(0)
    normalizer = Normalizer(flat_streams(own))
    normalizer.fit({k: Statistics.of(rng.uniform(-1, 1, (50, d))) for k, d in flat_streams(own).items()})
    torch.manual_seed(0)
    net = DenoiserConfig(kind="mlp", mlp=MlpConfig(width=WIDTH, blocks=2))
    config = diffusion.Config(pred_horizon=8, prediction="sample", sampler_steps=4, denoiser=net)
    return diffusion.Policy(config, spaces, normalizer).eval()


def ours(task: str, steps: int, *, precision: Precision, recipe: bool) -> dict[str, float]:
    """Return control steps per second behind the warm-up, and seconds of updates and of waiting for steps per control step."""
    env = make_env(task, EnvOptions(LANES))
    own = dsrl.Config(actor=ActorConfig(octaves=0), critic=CriticConfig(octaves=0), precision=precision)
    config = own if recipe else released(WIDTH, precision=precision)
    refiner = dsrl.Refiner(dsrl.refined_policy(untrained(env), config), config)
    warmup = 800
    online = OnlineConfig(
        env_steps=warmup + steps,
        warmup_steps=warmup,
        learning_starts=warmup,
        utd_ratio=0.25 if recipe else RATIO,
        demo_fraction=0.0,
        evaluate_every=10**9,
        checkpoint_every=10**9,
        log_every=warmup // 2,
        tensorboard=False,
    )
    with tempfile.TemporaryDirectory() as folder:
        refine(env, refiner, None, online, Path(folder), exec_horizon=CHUNK)
        rows = [row for row in read_metrics(Path(folder)) if row["step"] > warmup]
    made = steps / len(rows)
    return {
        "rate": len(rows) / sum(1.0 / row["time/steps_per_s"] for row in rows),
        "update_s": statistics.fmean(row["time/update_s"] for row in rows) / made,
        "step_s": statistics.fmean(row["time/step_s"] for row in rows) / made,
    }


def updates_per_s(task: str, device: str, config: dsrl.Config, updates: int) -> float:
    """Return updates per second, each with the sampling of its batch, on a replay of random steps."""
    env = make_env(task, EnvOptions(1))
    refiner = dsrl.Refiner(dsrl.refined_policy(untrained(env).to(device), config), config)
    action = env.spec.spaces.action_dim
    dims = {"condition": refiner.policy().encoder.condition_dim, "action": action, "plan": action * refiner.plan_steps}
    replay = ReplayBuffer(lanes=LANES, capacity=20_000, dims=dims, discount=refiner.discount, device=device)
    rng = torch.Generator(device).manual_seed(0)
    shape = (5_000, LANES)
    fields = {k: torch.rand((*shape, d), generator=rng, device=device) * 2 - 1 for k, d in dims.items()}
    ended = (torch.arange(shape[0], device=device) % 100 == 99)[:, None].expand(shape).contiguous()
    replay.fill(fields, reward=ended.float(), terminated=ended, ended=ended)

    def learn(count: int) -> None:
        for _ in range(count):
            batch = replay.sample(BATCH, steps=refiner.window_steps, rng=rng)
            metrics = refiner.update(batch, rng, Phase(actor=True))
        float(metrics["loss"])  # waits for the device

    learn(max(12, updates // 10))
    begun = time.perf_counter()
    learn(updates)
    return updates / (time.perf_counter() - begun)


def mlp(dim_in: int, dim_out: int) -> nn.Sequential:
    """Return a network of three hidden layers, normalised as the ensemble's are."""
    sizes = [dim_in, WIDTH, WIDTH, WIDTH]
    hidden = [(nn.Linear(a, b), nn.LayerNorm(b), nn.ReLU()) for a, b in itertools.pairwise(sizes)]
    return nn.Sequential(*itertools.chain(*hidden), nn.Linear(WIDTH, dim_out))


class PlainLoop:
    """DSRL-NA in the manner of stable-baselines3."""

    def __init__(self, task: str) -> None:
        self.env = make_env(task, EnvOptions(LANES))
        self.base = untrained(self.env)
        self.latent_shape = self.base.latent_shape
        self.latent_dim = int(np.prod(self.latent_shape))
        self.condition_dim = self.base.encoder.condition_dim
        self.chunk_dim = CHUNK * self.base.spaces.action_dim
        self.critics = [mlp(self.condition_dim + self.chunk_dim, 1) for _ in range(2)]
        self.targets = copy.deepcopy(self.critics)
        self.noise_critics = [mlp(self.condition_dim + self.latent_dim, 1) for _ in range(2)]
        self.actor = mlp(self.condition_dim, 2 * self.latent_dim)
        self.critic_optimizer = torch.optim.Adam([p for c in self.critics for p in c.parameters()], 3e-4)
        self.noise_optimizer = torch.optim.Adam([p for c in self.noise_critics for p in c.parameters()], 3e-4)
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), 3e-4)
        self.rng = np.random.default_rng(0)
        dims = {"condition": self.condition_dim, "chunk": self.chunk_dim, "next": self.condition_dim, "reward": 1, "done": 1}
        self.replay = {name: np.zeros((100_000, dim), np.float32) for name, dim in dims.items()}
        self.filled = 0
        self.observation = self.earlier = self.env.reset(list(range(LANES)))

    def encode(self) -> np.ndarray:
        """Return conditions (lanes, c)."""
        with torch.inference_mode():
            keys = self.base.config.observation_keys
            window = {key: np.stack((self.earlier[key], self.observation[key]), axis=1) for key in keys}
            return self.base.condition(self.base.encoder.read(window, torch.device("cpu"))).numpy()

    def sample(self, condition: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return noise (b, d) of the actor and its log density (b,)."""
        mean, log_std = self.actor(condition).chunk(2, dim=-1)
        normal = torch.distributions.Normal(mean, log_std.clamp(-10, 2).exp())
        u = normal.rsample()
        return 1.5 * torch.tanh(u), (normal.log_prob(u) - torch.log(1 - torch.tanh(u) ** 2 + 1e-6)).sum(-1)

    def decode(self, condition: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Return the executed part of the decoded chunk, flattened (b, d)."""
        return self.base.decode_condition(condition, noise.reshape(-1, *self.latent_shape))[:, :CHUNK].flatten(1)

    def collect(self) -> None:
        """Execute a chunk in every environment and store what came of it."""
        before = self.encode()
        with torch.no_grad():
            condition = torch.as_tensor(before)
            chunk = self.decode(condition, self.sample(condition)[0])
        actions = chunk.reshape(LANES, CHUNK, -1).numpy()
        reward, done = np.zeros(LANES), np.zeros(LANES, bool)
        for index in range(CHUNK):
            step = self.env.step(np.clip(actions[:, index], -1.0, 1.0).astype(np.float32))
            self.earlier, self.observation = self.observation, step.observation
            reward += step.reward
            done |= step.ended
        after = self.encode()
        rows = {"condition": before, "chunk": chunk.numpy(), "next": after, "reward": reward[:, None], "done": done[:, None]}
        for lane in range(LANES):
            for name, value in rows.items():
                self.replay[name][self.filled] = value[lane]
            self.filled += 1
        if done.any():
            seeds = self.rng.integers(2**31, size=LANES).tolist()
            self.observation = self.earlier = self.env.reset(seeds, done)

    def batch(self) -> dict[str, torch.Tensor]:
        """Return a batch, copied from numpy."""
        rows = self.rng.integers(0, self.filled, BATCH)
        return {name: torch.as_tensor(values[rows]) for name, values in self.replay.items()}

    def update(self, *, distill: bool) -> None:
        """Make one step of critics and actor, and one of the noise critics if it is their turn."""
        batch = self.batch()
        with torch.no_grad():
            noise, log_density = self.sample(batch["next"])
            following = torch.cat((batch["next"], self.decode(batch["next"], noise)), dim=-1)
            value = torch.min(torch.cat([target(following) for target in self.targets], dim=1), dim=1, keepdim=True)[0]
            value = batch["reward"] + 0.99 * (1 - batch["done"]) * (value - 0.1 * log_density[:, None])
        seen = torch.cat((batch["condition"], batch["chunk"]), dim=-1)
        self.descend(sum(nn.functional.mse_loss(critic(seen), value) for critic in self.critics), self.critic_optimizer)
        noise, log_density = self.sample(batch["condition"])
        seen = torch.cat((batch["condition"], noise), dim=-1)
        value = torch.min(torch.cat([critic(seen) for critic in self.noise_critics], dim=1), dim=1)[0]
        self.descend((0.1 * log_density - value).mean(), self.actor_optimizer)
        for critic, target in zip(self.critics, self.targets, strict=True):
            for parameter, slow in zip(critic.parameters(), target.parameters(), strict=True):
                slow.data.mul_(0.995).add_(parameter.data, alpha=0.005)
        if distill:
            batch = self.batch()
            noise = torch.randn(BATCH, self.latent_dim)
            with torch.no_grad():
                decoded = torch.cat((batch["condition"], self.decode(batch["condition"], noise)), dim=-1)
                wanted = [critic(decoded) for critic in self.critics]
            seen = torch.cat((batch["condition"], noise), dim=-1)
            losses = [nn.functional.mse_loss(c(seen), w) for c, w in zip(self.noise_critics, wanted, strict=True)]
            self.descend(sum(losses), self.noise_optimizer)

    @staticmethod
    def descend(loss: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Make one step."""
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def rate(self, steps: int) -> float:
        """Return control steps per second."""
        for _ in range(800 // (LANES * CHUNK)):
            self.collect()
        begun = time.perf_counter()
        for _ in range(steps // (LANES * CHUNK)):
            self.collect()
            for index in range(round(RATIO * LANES * CHUNK)):
                self.update(distill=index % 2 == 0)
        return steps / (time.perf_counter() - begun)


def compare_updates(args: argparse.Namespace) -> None:
    """Measure updates alone and print."""
    ways = {
        f"{precision}, {'recorded' if graph else 'kernel by kernel'}": released(args.width, precision=precision, cuda_graph=graph)
        for graph in ((False, True) if args.device.startswith("cuda") else (False,))
        for precision in PRECISIONS[:2]
    }
    measured: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(args.rounds):
        for way, config in ways.items():
            measured[way].append(updates_per_s(args.task, args.device, config, args.steps))
    print(f"| 3 x {args.width}, {args.device} | updates/s |")
    print("|---|---|")
    for way, rates in measured.items():
        print(f"| {way} | {statistics.median(rates):.1f} |")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=800, help="control steps, or updates")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--task", default="can")
    parser.add_argument("--updates", action="store_true", help="measure updates alone")
    parser.add_argument("--device", default="cpu", help="of --updates")
    parser.add_argument("--width", type=int, default=WIDTH, help="of --updates")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.updates:
        compare_updates(args)
    else:
        compare_loops(args)


def compare_loops(args: argparse.Namespace) -> None:
    """Measure whole loops and print."""
    candidates: dict[str, tuple[Precision, bool]] = {
        "ours, fp32": ("fp32", False),
        "ours, bf16": ("bf16", False),
        "ours, can_dsrl.yaml": ("auto", True),
    }
    measured: dict[str, list[dict[str, float]]] = {}
    for _ in range(args.rounds):
        measured.setdefault("plain", []).append({"rate": PlainLoop(args.task).rate(args.steps)})
        for name, (precision, recipe) in candidates.items():
            measured.setdefault(name, []).append(ours(args.task, args.steps, precision=precision, recipe=recipe))
    print("| loop | control steps/s | against plain | updates [ms per step] | acting, waiting [ms per step] |")
    print("|---|---|---|---|---|")
    plain = statistics.median(row["rate"] for row in measured["plain"])
    for name, rows in measured.items():
        median = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
        shares = [f"{1e3 * median[key]:.1f}" if key in median else "" for key in ("update_s", "step_s")]
        print(f"| {name} | {median['rate']:.0f} | {median['rate'] / plain:.1f} | {shares[0]} | {shares[1]} |")


if __name__ == "__main__":
    main()
