"""The command line as a user meets it: the whole way on a tiny run, and refusals with exit code 2."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from robolearn import cli
from robolearn.commands.teleop import TeleopConfig, open_session
from robolearn.teleop.server import ServerConfig

ROOT = Path(__file__).resolve().parents[2]
RECIPE = str(ROOT / "configs" / "native_lift_diffusion.yaml")
TINY = ["train.steps=12", "train.batch_size=32", "train.checkpoint_every=6", "train.validate_every=6", "train.log_every=3"]
TINY += ["train.warmup_steps=2", "policy.denoiser.mlp.width=32", "env.num_envs=2", "evaluate.episodes=3"]

type Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs one command in this process and returns (exit code, everything printed)."""

    def call(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["robolearn", *arguments])
        monkeypatch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capfd.readouterr()
        return int(stop.value.code or 0), captured.out + captured.err

    return call


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Collect six demonstrations and train a tiny policy on them, through the command line, in processes of their own."""
    folder = tmp_path_factory.mktemp("workspace")
    settings = [f"data.path={folder}/demos", "data.episodes=6", f"run_dir={folder}/run", *TINY]
    for command in ("collect", "train"):
        done = subprocess.run(
            [sys.executable, "-m", "robolearn.cli", command, RECIPE, *settings], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_help_imports_nothing_heavy() -> None:
    heavy = ("torch", "mujoco", "lerobot", "numba", "scipy", "omegaconf")
    code = f"import sys, robolearn.cli; sys.exit(sum(name in sys.modules for name in {heavy}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_run_folder_says_where_everything_came_from(workspace: Path) -> None:
    provenance = json.loads((workspace / "run" / "provenance.json").read_text())
    assert provenance["packages"]["torch"].startswith("2.")
    assert len(provenance["dataset"]["checksum"]) == 64
    assert provenance["seed"] == 0
    assert (workspace / "run" / "recipe.yaml").is_file()
    assert (workspace / "run" / "checkpoints" / "last" / "ema.safetensors").is_file()


def test_evaluate_compare_and_report(run: Run, workspace: Path) -> None:
    code, text = run("evaluate", str(workspace / "run"), "--videos", "2")
    assert code == 0, text
    assert "/3 = " in text
    result = json.loads((workspace / "run" / "evaluation" / "evaluation.json").read_text())
    assert [e["seed"] for e in result["episodes"]] == [100_000_000, 100_000_001, 100_000_002]
    page = (workspace / "run" / "evaluation" / "report.html").read_text()
    assert "data:video/mp4;base64," in page
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", page), "the report must ask the network for nothing"
    code, text = run("evaluate", "hold", *TINY, "--recipe", RECIPE, "--out", str(workspace / "hold"), "--videos", "0")
    assert code == 0, text
    code, text = run("compare", str(workspace / "run"), str(workspace / "hold"), "--out", str(workspace / "cmp"))
    assert code == 0, text
    assert "3 shared initial states" in text
    assert json.loads((workspace / "cmp" / "comparison.json").read_text())["episodes"] == 3


def test_sequential_comparison_of_two_policies(run: Run) -> None:
    code, text = run("compare", "hold", "random", "--sequential", "--recipe", RECIPE, *[f"--set={s}" for s in TINY])
    assert code == 0, text
    assert "not decided (anytime-valid p = 1, alpha = 0.05, 3 pairs)" in text


def test_quickstart_ends_with_a_table_and_a_report(run: Run, tmp_path: Path) -> None:
    # The weak policy's recipe asks for other test episodes than the trained one's: the report, which needs the same, was refused.
    weak = [f"weak.{override}" for override in [*TINY[:3], *TINY[4:], "data.episodes=4", "evaluate.episodes=5"]]
    tiny = ["env_steps=160", "warmup_steps=80", "learning_starts=40", "batch_size=16", "evaluate_every=160"]
    refine = [f"refine.online.{setting}" for setting in tiny] + ["refine.validation_episodes=2"]
    code, text = run("quickstart", "--out", str(tmp_path / "quick"), "data.episodes=6", *TINY, *weak, *refine)
    assert code == 0, text
    assert re.search(r"refined\s*│\s*\d/3", text), text
    assert re.search(r"after training\s*│\s*\d/3", text), text
    assert (tmp_path / "quick" / "report.html").is_file()
    assert (tmp_path / "quick" / "rollouts.mp4").is_file()
    code, text = run("quickstart", "--out", str(tmp_path / "quick"))
    assert (code, "exists and is not empty" in text) == (2, True), text


def test_a_resumed_run_does_not_start_again(run: Run, workspace: Path) -> None:
    settings = [f"data.path={workspace}/demos", "data.episodes=6", f"run_dir={workspace}/run", *TINY]
    code, text = run("train", RECIPE, *settings, "--resume")
    assert (code, "finished after 12 updates" in text) == (0, True), text
    code, text = run("train", RECIPE, *settings)
    assert code == 2
    assert "exists and is not empty" in text


def test_collecting_again_keeps_what_is_there(run: Run, workspace: Path) -> None:
    code, text = run("collect", RECIPE, f"data.path={workspace}/demos", "data.episodes=6", *TINY)
    assert (code, "6 successes" in text) == (0, True), text
    code, text = run("collect", RECIPE, f"data.path={workspace}/demos", "data.episodes=0", *TINY)
    assert (code, "how many are to be collected?" in text) == (2, True), text
    code, text = run("collect", RECIPE, f"data.path={workspace}/demos", "data.episodes=6", "data.quality=0.5", *TINY)
    assert code == 2
    assert "choose another data.path" in text


def test_data_commands(run: Run, workspace: Path) -> None:
    assert run("data", "verify", str(workspace / "demos"))[0] == 0
    code, text = run("data", "info", str(workspace / "demos"))
    assert (code, "task native_lift" in text) == (0, True), text


def test_damage_is_named_and_mended(run: Run, workspace: Path, tmp_path: Path) -> None:
    import shutil

    store = tmp_path / "store"
    shutil.copytree(workspace / "demos", store)
    file = store / "episodes" / "000002.zarr.zip"
    with zipfile.ZipFile(file) as archive:
        largest = max(archive.infolist(), key=lambda member: member.compress_size)
    data = bytearray(file.read_bytes())
    # The middle of the largest member is content wherever the archive's own headers, which can be written anew, happen to lie.
    data[largest.header_offset + 30 + len(largest.filename) + largest.compress_size // 2] ^= 1
    file.write_bytes(data)
    code, text = run("data", "verify", str(store))
    assert (code, "000002.zarr.zip" in text) == (1, True), text
    code, text = run("data", "repair", str(store))
    assert (code, "sound; 5 sound episodes" in text) == (0, True), text
    assert list((store / "quarantine").iterdir())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["collect", RECIPE, "env.task=native_lif"], "Unknown task 'native_lif'"),
        (["collect", RECIPE, "env.tusk=lift"], "unknown key 'env.tusk'"),
        (["collect", RECIPE, "env.fidelity=exakt"], "no fidelity 'exakt'"),
        (["collect", RECIPE, "data.quality=2"], "must lie in [0, 1]"),
        (["collect", "configs/none.yaml"], "No recipe at"),
        (["train", RECIPE, "data.path=/nowhere"], "No episode store at /nowhere"),
        (["train", RECIPE, "policy.name=difusion"], "Did you mean 'diffusion'"),
        (["train", RECIPE, "train.device=tpu"], "tpu"),
        (["train", RECIPE, "train.steps=-1"], "train.steps=-1 must be at least 1"),
        (["train", RECIPE, "policy.observation_keys=[observation.images.front]"], "observation.images.front"),
        (["train", RECIPE, "--resume", "run_dir=/nowhere"], "Nothing to resume at /nowhere"),
        (["evaluate", "/nowhere"], "No checkpoint at /nowhere"),
        (["evaluate", "RUN", "env.task=two_arm_lift", "env.fidelity=exact"], "made for robot 'panda'"),
        (["evaluate", "RUN", "evaluate.exec_horizon=17"], "must lie in [1, 16]"),
        (["evaluate", "RUN", "evaluate.episodes=0"], "must be at least 1"),
        (["compare", "/nowhere", "RUN"], "No evaluation at"),
        (["bench", "sym"], "Unknown benchmark"),
        (["bench", "decision", "nowhere", "--rounds", "3"], "No checkpoint at nowhere"),
        (["data", "verify", "/nowhere"], "/nowhere"),
    ],
)
def test_bad_input_is_refused_by_name(run: Run, workspace: Path, arguments: list[str], says: str) -> None:
    settings = [f"data.path={workspace}/demos", "data.episodes=6", f"run_dir={workspace}/other"]
    if arguments[0] == "train":
        # The settings come first: the last one wins, so each case keeps its own fault.
        arguments = [*arguments[:2], *settings, *TINY, *arguments[2:]]
    code, text = run(*[str(workspace / "run") if a == "RUN" else a for a in arguments])
    assert code == 2, text
    assert says in " ".join(text.split()), text
    assert not (workspace / "other").exists()


def test_a_policy_without_weights_cannot_be_trained(run: Run, workspace: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "hold.yaml"
    recipe.write_text(f"env: {{task: native_lift}}\ndata: {{path: {workspace}/demos, episodes: 6}}\npolicy: {{name: hold}}\n")
    code, text = run("train", str(recipe), f"run_dir={tmp_path}/run")
    assert (code, "nothing to train" in text) == (2, True), text


def test_a_truncated_checkpoint_is_refused_by_name(run: Run, workspace: Path, tmp_path: Path) -> None:
    import shutil

    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(workspace / "run" / "checkpoints" / "last", checkpoint)
    weights = checkpoint / "ema.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    code, text = run("evaluate", str(checkpoint), "--recipe", RECIPE)
    assert code == 2, text
    assert "ema.safetensors" in text


def test_what_a_person_corrected_is_trained_on_and_refined_with(run: Run, workspace: Path, tmp_path: Path) -> None:
    watch_over(str(workspace / "run"), tmp_path / "watched")
    code, text = run("data", "corrections", str(tmp_path / "watched"), str(tmp_path / "corrections"))
    assert (code, "2 episodes, 12 steps" in " ".join(text.split())) == (0, True), text
    stores = [str(workspace / "demos"), str(tmp_path / "corrections")]
    assert run("data", "merge", *stores, "--common", "--out", str(tmp_path / "round2"))[0] == 0
    settings = [f"data.path={tmp_path}/round2", *TINY]
    # Corrections stand behind the demonstrations: with as many episodes as before none was learned from, without a word.
    code, text = run("train", RECIPE, *settings, "data.episodes=6", f"run_dir={tmp_path}/few")
    assert (code, "round2: the first 6 of 8 episodes are learned from (data.episodes=6)." in text) == (0, True), text
    code, text = run("train", RECIPE, *settings, "data.episodes=0", f"run_dir={tmp_path}/run")
    assert (code, "are learned from" in text) == (0, False), text
    recipe = tmp_path / "refine.yaml"
    recipe.write_text(
        "env: {task: native_lift, num_envs: 2}\n"
        "online: {env_steps: 60, warmup_steps: 20, learning_starts: 10, batch_size: 8, tensorboard: false}\n"
        "validation_episodes: 0\n"
    )
    given = [f"base={tmp_path}/run", f"demos.path={tmp_path}/watched", f"run_dir={tmp_path}/refined"]
    code, text = run("refine", str(recipe), *given)
    assert (code, "60 control steps" in text) == (0, True), text


def watch_over(policy: str, store: Path) -> None:
    """Two episodes in which a policy drives for four steps and a person, at the page's sticks, for six."""
    config = TeleopConfig(store=str(store), policy=policy, cameras=(), replay_check=False)
    with open_session(config, ["web"], ServerConfig(port=0)) as running:
        session, page = running.session, running.server._device
        page.owner = 1
        for _ in range(2):
            session.ask("start")
            for step in range(10):
                if step == 4:
                    session.ask("takeover")
                if step >= 4:
                    page.take({"twist": [0.5, 0, -1, 0, 0, 0], "engaged": True}, owner=1)
                session.tick()
            page.let_go()
            session.ask("success")
            session.tick()
