"""The online loop on the native lift: updates per control step, resume bit for bit, refusals, the command line."""

import json
import shutil
import sys
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from robolearn.cli import main
from robolearn.core.errors import RefusedError
from robolearn.core.observation import flat_streams, select_observation
from robolearn.core.types import ENVIRONMENT_STATE, IMAGES_PREFIX, STATE
from robolearn.data.normalizer import Normalizer, Statistics
from robolearn.data.replay_buffer import ReplayBuffer
from robolearn.nets.actors import ActorConfig
from robolearn.nets.critics import CriticConfig
from robolearn.nets.denoisers import DenoiserConfig
from robolearn.nets.mlp import MlpConfig
from robolearn.policies import diffusion
from robolearn.policies.loading import load_policy, save_policy
from robolearn.refine import constant_latent, dsrl, filtered_bc, ppo_residual, q_chunking, residual, warm_start
from robolearn.refine.base import weights_hash
from robolearn.refine.cloning import CloningConfig
from robolearn.train.checkpoint import CheckpointFolder
from robolearn.train.interrupts import Interrupted, NonFiniteError
from robolearn.train.metrics import TIME_PREFIX, read_metrics
from robolearn.train.online import OnlineConfig, refine
from sim_envs.task import EnvOptions, make_env

METHODS = {
    dsrl: {},
    residual: {},
    constant_latent: {"candidates": 2, "episodes": 4},
    filtered_bc: {"batch_size": 8, "updates_per_step": 0.05},
    ppo_residual: {"rollout_steps": 100, "epochs": 2, "critic": CriticConfig(members=1, width=16, layers=1, subset=1)},
    q_chunking: {"cloning": CloningConfig(batch_size=8), "tune_every": 2},
    warm_start: {"chunk_steps": 4},
}
"""What a method is tried with, besides SMALL."""
SMALL = {"actor": ActorConfig(width=16, layers=1), "critic": CriticConfig(members=2, width=16, layers=1)}
FOUR = EnvOptions(4)
CONFIG = OnlineConfig(
    env_steps=600,
    warmup_steps=160,
    learning_starts=80,
    batch_size=16,
    utd_ratio=0.25,
    evaluate_every=10_000,
    checkpoint_every=300,
    keep_checkpoints=3,
    log_every=100,
    tensorboard=False,
)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def untrained(folder, options, keys):
    """A checkpoint of an untrained policy of the native lift."""
    own = select_observation(make_env("native_lift", options).spec.spaces, keys)
    rng = np.random.default_rng(0)
    normalizer = Normalizer(flat_streams(own))
    normalizer.fit({k: Statistics.of(rng.uniform(-1, 1, (50, d))) for k, d in flat_streams(own).items()})
    torch.manual_seed(0)
    net = DenoiserConfig(kind="mlp", mlp=MlpConfig(width=16, blocks=1, level_width=8))
    config = diffusion.Config(pred_horizon=8, sampler_steps=2, denoiser=net, observation_keys=keys)
    policy = diffusion.Policy(config, own, normalizer)
    save_policy(folder, policy, averaged=policy.state_dict())
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return untrained(tmp_path_factory.mktemp("base"), EnvOptions(1), (STATE, ENVIRONMENT_STATE))


def run(base, run_dir, *, method=residual, config=CONFIG, options=FOUR, score=None, **more):
    policy = load_policy(base)
    given = SMALL | METHODS[method]
    settings = method.Config(**{k: v for k, v in given.items() if k in {f.name for f in fields(method.Config)}})
    torch.manual_seed(0)
    refiner = method.Refiner(method.refined_policy(policy, settings), settings)
    env = make_env("native_lift", options)
    record = {"base_hash": weights_hash(policy)}
    return refine(env, refiner, None, config, run_dir, exec_horizon=4, evaluate=score, provenance=record, **more)


def outcome(run_dir):
    """Everything that a run leaves behind, the clock's share apart."""
    folder = CheckpointFolder(run_dir / "checkpoints")
    names = ("model.safetensors", "trainer/optimizer.safetensors", "config.json")
    files = {f"{s}/{n}": (folder.path(s) / n).read_bytes() for s in folder.steps() for n in names}
    states = {s: json.loads((folder.path(s) / "trainer/state.json").read_text()) for s in folder.steps()}
    rows = [{k: v for k, v in row.items() if not k.startswith(TIME_PREFIX)} for row in read_metrics(run_dir)]
    return files, {s: {k: v for k, v in state.items() if k != "elapsed_s"} for s, state in states.items()}, rows


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.__name__.rpartition(".")[2])
def test_a_resumed_run_repeats_the_undisturbed_one_bit_for_bit(base, tmp_path, method):
    # A search begins with its first episodes, so that candidates run while the checkpoint is made.
    config = replace(CONFIG, warmup_steps=0, learning_starts=0) if method is constant_latent else CONFIG
    if method in (residual, dsrl):
        config = replace(CONFIG, guard_episodes=1)
    whole = run(base, tmp_path / "whole", method=method, config=config)
    assert whole.env_steps == 600
    halted = tmp_path / "halted"
    (halted / "checkpoints").mkdir(parents=True)
    shutil.copytree(tmp_path / "whole/checkpoints/000000300", halted / "checkpoints/000000300")
    shutil.copy(tmp_path / "whole/metrics.jsonl", halted)
    run(base, halted, method=method, config=config, resume=True)
    if method is constant_latent:
        assert load_policy(whole.checkpoint).found
    for mine, theirs in zip(outcome(halted), outcome(tmp_path / "whole"), strict=True):
        assert mine == theirs


def test_updates_are_counted_per_control_step_and_wait_for_the_first_ones(base, tmp_path):
    run(base, tmp_path / "run")
    updates = {row["step"]: row["train/updates"] for row in read_metrics(tmp_path / "run")}
    # Before the step from 596 to 600, floor(0.25 * (596 - 80)) = 129 updates are due; none before step 80.
    assert updates[600] == 129
    # A row of step 100 was written after the step from 96: floor(0.25 * 16) = 4.
    assert updates[100] == 4


def test_the_base_acts_alone_during_the_warm_up(base, tmp_path):
    config = replace(CONFIG, env_steps=160, checkpoint_every=160)
    result = run(base, tmp_path / "run", config=config, method=dsrl)
    refined, original = load_policy(result.checkpoint), load_policy(base)
    observation = {k: np.zeros((2, 2, *f.shape), np.float32) for k, f in original.spaces.observation.items()}
    rngs = [[np.random.default_rng(i) for i in range(2)] for _ in range(2)]
    np.testing.assert_array_equal(refined.predict(observation, rngs[0]).actions, original.predict(observation, rngs[1]).actions)


@pytest.mark.parametrize("method", [residual, q_chunking], ids=lambda m: m.__name__.rpartition(".")[2])
def test_a_base_that_sees_pictures_is_refined_on_what_its_encoder_makes_of_them(tmp_path, method):
    options = EnvOptions(2, cameras=("agentview",), image_size=40)
    base = untrained(tmp_path / "base", options, (STATE, IMAGES_PREFIX + "agentview"))
    config = replace(CONFIG, env_steps=80, warmup_steps=40, learning_starts=32, checkpoint_every=80)
    result = run(base, tmp_path / "run", method=method, config=config, options=options)
    original, refined = load_policy(base), load_policy(result.checkpoint)
    pictures = {k: v for k, v in original.spaces.observation.items() if k.startswith(IMAGES_PREFIX)}
    assert [f.shape for f in pictures.values()] == [(40, 40, 3)]
    assert weights_hash(refined.base) == weights_hash(original)  # the encoder is the base's, and frozen
    assert refined.spaces == original.spaces


def test_evaluations_count_the_warm_up_and_know_how_deep_it_dipped(base, tmp_path):
    scores = iter([5, 2, 4, 8])

    def score(policy):
        return {"successes": next(scores), "episodes": 10}

    result = run(base, tmp_path / "run", config=replace(CONFIG, evaluate_every=200), score=score)
    assert [row["env_steps"] for row in result.evaluations] == [0, 200, 400, 600]
    assert [row["dip_depth"] for row in result.evaluations] == [0.0, 0.3, 0.3, 0.3]


def test_the_reach_of_the_actor_grows_after_the_warm_up(base, tmp_path):
    config = replace(CONFIG, ramp_steps=1000)
    for method in (residual, dsrl):
        result = run(base, tmp_path / method.__name__, method=method, config=config)
        # The last updates happen before the step from 596 to 600: (596 - 160) / 1000.
        assert load_policy(result.checkpoint).reach.item() == pytest.approx(0.436)


def test_what_is_evaluated_and_saved_has_only_the_reach_that_was_proved(base, tmp_path):
    reaches = []

    def score(policy):
        reaches.append(policy.reach.item())
        return {"successes": 0, "episodes": 2}

    config = replace(CONFIG, guard_episodes=10_000, evaluate_every=200)
    result = run(base, tmp_path / "run", config=config, score=score)
    assert reaches[1:] == [0.0, 0.0, 0.0], "no window has ended"  # before the first step the actor is zero, whatever its reach
    assert load_policy(result.checkpoint).reach.item() == 0.0
    assert [row["train/reach_tried"] for row in read_metrics(tmp_path / "run") if "train/reach_tried" in row][-1] == 0.125
    with pytest.raises(RefusedError, match="guard_episodes=12: this method's policy has no reach to guard"):
        run(base, tmp_path / "other", method=q_chunking, config=replace(CONFIG, guard_episodes=12))


@pytest.mark.parametrize(("env_steps", "cut"), [(600, 200), (500, 500)])
def test_a_signal_during_an_evaluation_stops_the_run_with_everything_saved(base, tmp_path, env_steps, cut):
    # Evaluations handle signals themselves and return what they have; the run went on, with a partial evaluation in its table.
    # And a last evaluation that was cut off, at a step that evaluate_every does not divide, was never made up.
    calls = []

    def score(policy):
        calls.append(policy)
        if len(calls) == rows.index(cut) + 1:
            raise Interrupted(15)
        return {"successes": 1, "episodes": 2}

    rows = [*range(0, env_steps, 200), env_steps]
    config = replace(CONFIG, env_steps=env_steps, evaluate_every=200)
    with pytest.raises(Interrupted, match="saved"):
        run(base, tmp_path / "run", config=config, score=score)
    assert CheckpointFolder(tmp_path / "run/checkpoints").steps()[-1] == cut
    result = run(base, tmp_path / "run", config=config, score=score, resume=True)
    assert [row["env_steps"] for row in result.evaluations] == rows


def test_a_reach_is_asked_for_only_where_there_is_one(base, tmp_path):
    # The guard watched a reach that an absolute actor never reads, and a ramp went unheeded by methods that know none.
    settings = dsrl.Config(form="absolute", **SMALL)
    refiner = dsrl.Refiner(dsrl.refined_policy(load_policy(base), settings), settings)
    env, more = make_env("native_lift", FOUR), {"exec_horizon": 4}
    with pytest.raises(RefusedError, match="has no reach to guard"):
        refine(env, refiner, None, replace(CONFIG, guard_episodes=1), tmp_path / "guard", **more)
    with pytest.raises(RefusedError, match="ramp_steps=100: this method has no reach that could grow"):
        refine(env, refiner, None, replace(CONFIG, ramp_steps=100), tmp_path / "ramp", **more)


def test_outcomes_of_the_base_are_forgotten_even_if_no_update_is_due(base, tmp_path, monkeypatch):
    # Where learning started with the actor no update was due at that step, and critics learned the base's returns for good.
    forgotten = []
    monkeypatch.setattr(ReplayBuffer, "forget_outcomes", lambda self: forgotten.append(len(self)))
    run(base, tmp_path / "run", config=replace(CONFIG, warmup_steps=200, learning_starts=200, env_steps=300))
    assert forgotten == [200]


def test_updates_wait_until_replay_holds_a_window(base, tmp_path):
    # With many environments the first update was due before there was a window to draw, and ended the run.
    config = replace(CONFIG, env_steps=240, warmup_steps=40, learning_starts=0, utd_ratio=0.1)
    run(base, tmp_path / "run", config=config, options=EnvOptions(20))
    assert [row["train/updates"] for row in read_metrics(tmp_path / "run") if "train/updates" in row][-1] == 22


@pytest.mark.parametrize(("seed", "block"), [(40, "validation"), (90, "test")])
def test_no_seed_trains_on_the_states_of_evaluations(seed, block):
    # Seeds 40 and 90 met the very initial states by which checkpoints are chosen, or that are reported.
    with pytest.raises(RefusedError, match=f"seed={seed} would train on the initial states of the {block} episodes"):
        replace(CONFIG, seed=seed)


def test_a_run_of_another_base_or_other_networks_is_not_resumed(base, tmp_path):
    run(base, tmp_path / "run", config=replace(CONFIG, env_steps=300))
    config = json.loads((tmp_path / "run/checkpoints/000000300/config.json").read_text())
    config["provenance"]["base_hash"] = "another"
    (tmp_path / "run/checkpoints/000000300/config.json").write_text(json.dumps(config))
    with pytest.raises(RefusedError, match="refines the base another"):
        run(base, tmp_path / "run", resume=True)
    with pytest.raises(RefusedError, match="resume it or choose another"):
        run(base, tmp_path / "run")
    with pytest.raises(RefusedError, match="no run to resume"):
        run(base, tmp_path / "nothing", resume=True)


def test_a_loss_that_is_not_finite_stops_with_batch_and_state_saved(base, tmp_path, monkeypatch):
    update = residual.Refiner.update

    def poisoned(self, batch, rng, phase):
        return update(self, batch, rng, phase) | {"loss": torch.tensor(float("nan"))}

    monkeypatch.setattr(residual.Refiner, "update", poisoned)
    with pytest.raises(NonFiniteError, match="loss"):
        run(base, tmp_path / "run")
    assert list((tmp_path / "run/diverged").rglob("batch.safetensors"))
    assert CheckpointFolder(tmp_path / "run/checkpoints").steps()


def refine_command(tmp_path, *overrides):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "env: {task: native_lift, num_envs: 2}\n"
        "online: {env_steps: 60, warmup_steps: 20, learning_starts: 10, batch_size: 8, tensorboard: false}\n"
        "validation_episodes: 2\n"
    )
    return command("refine", str(recipe), f"run_dir={tmp_path / 'run'}", *overrides)


def command(*arguments):
    """Return the exit code of ``robolearn ARGUMENTS`` in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["robolearn", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
    return stopped.value.code or 0


def test_the_command_refines_and_its_result_is_evaluated_like_any_policy(base, tmp_path, capsys):
    assert refine_command(tmp_path, f"base={base}") == 0
    assert "60 control steps" in capsys.readouterr().out
    run_dir = tmp_path / "run"
    assert command("evaluate", str(run_dir), "evaluate.episodes=2", "--videos", "0") == 0
    assert (run_dir / "evaluation/report.html").exists()


def test_episodes_of_the_run_are_cut_off_where_asked_and_those_of_evaluations_are_not(base, tmp_path):
    given = [f"base={base}", "online.episode_steps=10", "online.log_every=20"]
    assert refine_command(tmp_path, *given) == 0
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    # 60 steps of 2 environments are 30 each, which is 3 episodes of 10.
    assert [row["train/episodes"] for row in rows if "train/episodes" in row][-1] == 6
    lengths = [row["mean_length"] for row in json.loads((tmp_path / "run/evaluations.json").read_text())["evaluations"]]
    assert max(lengths) > 10


def test_a_run_is_resumed_with_its_own_settings_only(base, tmp_path, capsys):
    # Only the base was compared: a run went on with another seed, discount and chunk, and called itself bit-exact.
    assert refine_command(tmp_path, f"base={base}") == 0
    assert refine_command(tmp_path, f"base={base}", "--resume", "online.seed=3", "method.discount=0.9") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "method.config.discount is 0.999 there, 0.9 here; online.seed is 0 there, 3 here" in said
    assert refine_command(tmp_path, f"base={base}", "--resume", "online.env_steps=80") == 0  # longer is no other run


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ([], "base="),
        (["base=/nowhere"], "/nowhere"),
        (["method.name=residul"], "residual"),
        (["method.residual_scale=0"], "residual_scale"),
        (["demos.path=/nowhere"], "/nowhere"),
        (["method.name=warm_start", "demos.path=/nowhere"], "'warm_start' uses no demonstrations"),
        (["online.utd_ratio=0"], "utd_ratio"),
        (["online.episode_steps=-1"], "episode_steps"),
        (["method.name=dsrl", "evaluate.exec_horizon=6"], "method.chunk_steps=4 must equal evaluate.exec_horizon=6"),
        (["evaluate.delay_steps=2"], "A refinement acts without delays"),
        (["online.seed=90"], "initial states of the test episodes"),
    ],
)
def test_bad_recipes_are_refused_by_name(base, tmp_path, capsys, overrides, named):
    given = overrides if not overrides or overrides[0].startswith("base") else [f"base={base}", *overrides]
    assert refine_command(tmp_path, *given) == 2
    assert named in capsys.readouterr().err
