"""A run that is stopped or killed and resumed ends bit for bit where the undisturbed one ends: files, rows, scores, pointers."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from train_worker import make_store, run

from robolearn.train.checkpoint import EMA_FILE, MODEL_FILE, OPTIMIZER_FILE, CheckpointFolder
from robolearn.train.metrics import TIME_PREFIX, read_metrics

STEPS = 160
WORKER = Path(__file__).with_name("train_worker.py")


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("resume") / "store"
    make_store(path)
    return path


@pytest.fixture(scope="module")
def whole(store, tmp_path_factory) -> dict:
    """Outcome of the run that nobody disturbs."""
    run_dir = tmp_path_factory.mktemp("resume") / "whole"
    run(store, run_dir, STEPS, resume=False)
    return outcome(run_dir)


def outcome(run_dir: Path) -> dict:
    """Return everything that a run leaves behind, the clock's share apart."""
    folder = CheckpointFolder(run_dir / "checkpoints")
    files = {
        f"{step}/{name}": (folder.path(step) / name).read_bytes()
        for step in folder.steps()
        for name in (MODEL_FILE, EMA_FILE, OPTIMIZER_FILE, "config.json")
    }
    states = {step: json.loads((folder.path(step) / "trainer" / "state.json").read_text()) for step in folder.steps()}
    rows = [{k: v for k, v in row.items() if not k.startswith(TIME_PREFIX)} for row in read_metrics(run_dir)]
    return {
        "files": files,
        "states": {step: {k: v for k, v in state.items() if k != "elapsed_s"} for step, state in states.items()},
        "rows": rows,
        "scores": folder.scores(),
        "pointers": {name: str((folder.root / name).readlink()) for name in ("last", "best")},
        "leftovers": sorted(p.name for p in folder.root.glob(".tmp-*")),
    }


def test_the_undisturbed_run_is_what_the_others_are_compared_with(whole):
    assert whole["pointers"] == {"last": f"{STEPS:09d}", "best": "000000020"}
    assert sorted(whole["states"]) == [20, STEPS - 10, STEPS], "the best one and the two newest are kept"
    losses = [row["train/loss"] for row in whole["rows"] if "train/loss" in row]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_process_that_is_signalled_and_resumed_repeats_the_undisturbed_run(store, whole, tmp_path, number):
    run_dir = tmp_path / "run"
    command = [sys.executable, str(WORKER), str(store), str(run_dir), str(STEPS)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    wait_for_step(process, run_dir, 45)
    process.send_signal(number)
    _, complaint = process.communicate(timeout=120)
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 128 + number, complaint
        assert "saved" in complaint
    stopped_at = CheckpointFolder(run_dir / "checkpoints").steps()[-1]
    assert 40 <= stopped_at < STEPS, "the signal came too late to interrupt anything"
    run(store, run_dir, STEPS, resume=True)
    resumed = outcome(run_dir)
    # A checkpoint made by a signal lies off the schedule; it may push an older one out, and is itself pruned at the end.
    assert resumed == whole


def test_a_run_that_was_killed_before_its_first_checkpoint_is_repeated_from_the_start(store, whole, tmp_path):
    run_dir = tmp_path / "run"
    (run_dir / "checkpoints" / ".tmp-000000010").mkdir(parents=True)
    (run_dir / "metrics.jsonl").write_text('{"step": 7, "train/loss": 1.0}\n{"step": 9, "valid')
    run(store, run_dir, STEPS, resume=True)
    assert outcome(run_dir) == whole


def wait_for_step(process: subprocess.Popen, run_dir: Path, step: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if (run_dir / "metrics.jsonl").exists() and any((row["step"] or 0) >= step for row in read_metrics(run_dir)):
            return
        time.sleep(0.002)
    raise AssertionError(f"step {step} was not reached: {process.poll()=}")
