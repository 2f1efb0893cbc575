"""``robolearn table`` on a tiny native lift: made, stopped, continued, refused; what was not run is shown as such."""

import json
import os
import shutil
import signal
import sys
from dataclasses import replace

import pytest

import robolearn.commands.evaluate as commands
from robolearn.cli import main
from robolearn.commands.simulation import rollout_config
from robolearn.commands.table_run import claimed
from robolearn.refine import residual
from robolearn.train.checkpoint import CheckpointFolder

BASE = """
env: {task: native_lift, num_envs: 2}
data: {path: FOLDER/demos, episodes: 4}
policy: {name: diffusion, pred_horizon: 8, sampler_steps: 2, denoiser: {kind: mlp, mlp: {width: 16, blocks: 1, level_width: 8}}}
train: {steps: 4, batch_size: 8, warmup_steps: 1, tensorboard: false}
evaluate: {exec_horizon: 8}
"""
REFINED = """
base: elsewhere
env: {task: native_lift, num_envs: 2}
method: {name: residual, critic: {members: 2, width: 16, layers: 1}, actor: {width: 16, layers: 1}}
online: {env_steps: 80, warmup_steps: 20, learning_starts: 10, batch_size: 8, evaluate_every: 40, checkpoint_every: 40,
  log_every: 20, tensorboard: false}
validation_episodes: 2
evaluate: {exec_horizon: 8}
"""
TABLE = """
title: tiny
out: FOLDER/table
base: {recipe: FOLDER/base.yaml, overrides: ["run_dir=FOLDER/base"]}
seeds: [0, 1]
episodes: 3
cells:
  - {name: residual, recipe: FOLDER/refined.yaml}
  - {name: wide, recipe: FOLDER/refined.yaml, overrides: [method.residual_scale=0.5], seeds: [1]}
  - {name: imitated, command: train, recipe: FOLDER/base.yaml, overrides: [data.successes_only=false], seeds: [0]}
  - {name: unrun, recipe: FOLDER/refined.yaml, seeds: []}
  - name: steered
    recipe: FOLDER/refined.yaml
    overrides: ["method={name: dsrl, chunk_steps: 8, window_steps: 8, critic: {width: 16}}"]
    seeds: [1]
  - {name: stacked, recipe: FOLDER/refined.yaml, refines: steered, seeds: [1]}
"""


def table(folder, *arguments):
    """Return the exit code of ``robolearn table`` in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["robolearn", "table", str(folder / "table.yaml"), *arguments])
        # A hundred timed decisions would be most of the test's time.
        patch.setattr(commands, "rollout_config", lambda recipe: replace(rollout_config(recipe), timed_decisions=0))
        with pytest.raises(SystemExit) as stopped:
            main()
    return stopped.value.code or 0


def states(folder):
    cells = json.loads((folder / "table/table.json").read_text())["cells"]
    return {run["name"]: run["state"] for cell in cells for run in cell["runs"]}


def rows(folder):
    """Return the first table's rows by their first column."""
    text = (folder / "table/table.md").read_text().split("## Runs")[0]
    lines = [[word.strip() for word in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")]
    return {line[0]: line[1:] for line in lines}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A table that SIGTERM stopped at the first checkpoint of its first run."""
    folder = tmp_path_factory.mktemp("table")
    for name, text in (("base", BASE), ("refined", REFINED), ("table", TABLE)):
        (folder / f"{name}.yaml").write_text(text.replace("FOLDER", str(folder)))
    save = CheckpointFolder.save

    def save_and_signal(self, step, contents):
        saved = save(self, step, contents)
        if step == 40:
            os.kill(os.getpid(), signal.SIGTERM)
        return saved

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CheckpointFolder, "save", save_and_signal)
        assert table(folder) == 128 + signal.SIGTERM
    return folder


def copied(source, folder):
    """Copy a table with all its runs; their paths are absolute."""
    shutil.copytree(source, folder, dirs_exist_ok=True, symlinks=True)
    for file in (*folder.glob("*.yaml"), *folder.glob("*/**/re*.yaml")):
        file.write_text(file.read_text().replace(str(source), str(folder)))
    return folder


@pytest.fixture(scope="module")
def finished(stopped, tmp_path_factory):
    """The same table in a copy of its folder, continued to its end."""
    folder = copied(stopped, tmp_path_factory.mktemp("finished"))
    assert table(folder) == 0
    return folder


def test_a_stopped_table_shows_what_it_has_and_names_what_is_missing(stopped):
    assert table(stopped, "--report") == 0
    assert states(stopped) == {
        "residual-seed0": "at step 40 of 80",
        "residual-seed1": "not run",
        "wide-seed1": "not run",
        "imitated-seed0": "not run",
        "steered-seed1": "not run",
        "stacked-seed1": "not run",
    }
    shown = rows(stopped)
    assert shown["base"][1].endswith("/3")
    assert shown["residual"][:2] == ["0 at step 40 of 80; 1 not run", "-"]
    assert shown["wide"][:2] == ["1 not run; 0 left out", "-"]
    assert shown["unrun"][0] == "0, 1 left out"


def test_the_same_command_continues_it_and_finished_parts_stay_as_they_are(stopped, finished):
    assert set(states(finished).values()) == {"done"}
    base = ("base/evaluation/evaluation.json", "base/checkpoints/000000004/model.safetensors", "demos/store.json")
    for name in base:
        assert (finished / name).stat().st_mtime_ns == (stopped / name).stat().st_mtime_ns
    continued = json.loads((finished / "table/residual-seed0/evaluations.json").read_text())["evaluations"]
    assert [row["env_steps"] for row in continued] == [0, 40, 80]
    assert continued[:2] == json.loads((stopped / "table/residual-seed0/evaluations.json").read_text())["evaluations"][:2]
    assert (finished / "table/curves.png").read_bytes().startswith(b"\x89PNG")


def test_cells_are_measured_on_the_base_s_initial_states(finished):
    numbers = json.loads((finished / "table/table.json").read_text())
    by_name = {cell["name"]: cell for cell in numbers["cells"]}
    runs = [numbers["base"], *(run for cell in numbers["cells"] for run in cell["runs"])]
    assert {tuple(run["test_seeds"]) for run in runs} == {(100_000_000, 100_000_002)}
    assert by_name["residual"]["summary"]["episodes"] == 6
    assert by_name["residual"]["curve"]["band"] == "runs"
    assert by_name["wide"]["curve"]["band"] == "episodes"
    assert by_name["imitated"]["curve"] is None
    shown = rows(finished)
    assert [shown[name][0] for name in ("residual", "wide", "imitated", "unrun")] == [
        "0, 1",
        "1; 0 left out",
        "0; 1 left out",
        "0, 1 left out",
    ]
    assert shown["wide"][3] == "1 seed"


def test_a_stacked_cell_refines_what_the_cell_below_it_made(finished):
    card = json.loads((finished / "table/stacked-seed1/checkpoints/last/config.json").read_text())
    assert card["policy"] == "corrected"
    assert card["config"]["base"]["name"] == "steered"
    assert card["config"]["base"]["base"]["name"] == "diffusion"


def test_a_stacked_cell_waits_for_the_one_below_it(stopped, capsys):
    assert table(stopped, "--only", "stacked") == 0
    assert "stacked-seed1: steered-seed1, on which it stands, is not run" in capsys.readouterr().out


def test_nothing_is_made_twice(finished, monkeypatch):
    for name in ("refine_recipe", "train_recipe", "evaluate", "collect_demonstrations"):
        monkeypatch.delattr(f"robolearn.commands.table_run.{name}")
    assert table(finished) == 0


def test_a_run_that_another_process_makes_is_left_to_it(stopped, capsys):
    with claimed(stopped / "table/.residual-seed1.lock") as free:
        assert free
        assert table(stopped, "--only", "residual:1") == 0
    assert "residual-seed1: another process is at it" in capsys.readouterr().out
    assert states(stopped)["residual-seed1"] == "not run"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["episodes=4"], "evaluation is of 3 episodes from seed 100000000; the table wants 4"),
        (["base.overrides=[run_dir=FOLDER/base,train.steps=5]"], "train.steps is 4 there, 5 here"),
        (["cells=[{name: wide, recipe: FOLDER/refined.yaml}]"], "method.config.residual_scale is 0.5 there"),
        (["cells=[{name: lift, recipe: configs/lift_dsrl.yaml}]"], "env.task 'lift', the base 'native_lift'"),
        (["cells=[{name: residual, recipe: FOLDER/refined.yaml, seeds: [7]}]"], "seeds [7]"),
        (["cells=[{name: base, recipe: FOLDER/refined.yaml}]"], "got 'base'"),
        (["cells=[{name: a}]"], "each with its recipe"),
        (["cells=[{name: a, recipe: FOLDER/refined.yaml, refines: b}]"], "refines='b' must name an earlier cell"),
        (["--only", "residul"], "Did you mean 'residual'"),
        (["--only", "residual:4"], "has the seeds [0, 1]"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(finished, capsys, arguments, says):
    assert table(finished, *[a.replace("FOLDER", str(finished)) for a in arguments]) == 2
    assert says in " ".join(capsys.readouterr().err.split())


def test_a_run_of_another_base_and_a_strange_folder_are_refused(finished, capsys):
    file = finished / "table/wide-seed1/provenance.json"
    before = file.read_text()
    file.write_text(json.dumps(json.loads(before) | {"base_hash": "another"}))
    assert table(finished) == 2
    assert "refines a base with hash another" in capsys.readouterr().err
    file.unlink()
    assert table(finished) == 2
    assert "lacks ['provenance.json']" in capsys.readouterr().err
    file.write_text(before)


def test_a_last_evaluation_that_was_cut_off_is_made_up(finished, tmp_path):
    # The table took a run whose last checkpoint was saved for learned, and its curve and steps to the goal were left short.
    folder = copied(finished, tmp_path)
    file = folder / "table/wide-seed1/evaluations.json"
    whole = json.loads(file.read_text())["evaluations"]
    file.write_text(json.dumps({"evaluations": whole[:-1]}))
    assert table(folder, "--report") == 0
    assert states(folder)["wide-seed1"] == "at step 80 of 80"
    assert table(folder, "--only", "wide:1") == 0
    assert states(folder)["wide-seed1"] == "done"
    made_up = json.loads(file.read_text())["evaluations"]
    assert [row["successes"] for row in made_up] == [row["successes"] for row in whole]


def test_an_evaluation_with_delays_is_not_taken_for_a_run_s_result(finished, tmp_path, capsys):
    # Only the executor's settings were compared, and the numbers of late decisions stood beside a base without delays.
    folder = copied(finished, tmp_path)
    file = folder / "table/wide-seed1/evaluation/evaluation.json"
    made = json.loads(file.read_text())
    made["config"]["delay_steps"] = 3
    file.write_text(json.dumps(made))
    assert table(folder, "--report") == 2
    assert "delay_steps 3+0" in " ".join(capsys.readouterr().err.split())


def test_a_run_that_diverges_is_shown_so_and_not_run_again(stopped, tmp_path, monkeypatch):
    folder = copied(stopped, tmp_path)
    update = residual.Refiner.update

    def poisoned(self, *arguments):
        return {name: value * float("nan") for name, value in update(self, *arguments).items()}

    with monkeypatch.context() as patch:
        patch.setattr(residual.Refiner, "update", poisoned)
        assert table(folder, "--only", "wide") == 3
    assert table(folder, "--only", "wide:1") == 0
    assert states(folder) == {
        "residual-seed0": "at step 40 of 80",
        "residual-seed1": "not run",
        "wide-seed1": "diverged, at step 20 of 80",
        "imitated-seed0": "not run",
        "steered-seed1": "not run",
        "stacked-seed1": "not run",
    }
    assert rows(folder)["wide"][0] == "1 diverged, at step 20 of 80; 0 left out"
