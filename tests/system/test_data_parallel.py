"""Two processes on one batch do what one process does on the whole of it; they stop together and write once."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from parallel_worker import alone
from safetensors.torch import load_file

from robolearn.train.checkpoint import EMA_FILE, MODEL_FILE, OPTIMIZER_FILE, CheckpointFolder
from robolearn.train.metrics import read_metrics


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    """Folder that two processes have trained into."""
    path = tmp_path_factory.mktemp("parallel")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    worker = [sys.executable, str(Path(__file__).with_name("parallel_worker.py")), str(path)]
    processes = [
        subprocess.Popen(worker, env=os.environ | shared | {"RANK": rank, "LOCAL_RANK": rank}, stderr=subprocess.PIPE, text=True)
        for rank in ("0", "1")
    ]
    try:
        complaints = [process.communicate(timeout=300)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(complaints)
    return path


def test_averaged_gradients_equal_those_of_the_doubled_batch(out, tmp_path):
    alone(tmp_path)
    for name in (MODEL_FILE, EMA_FILE, OPTIMIZER_FILE):
        ours, whole = (load_file(path / "checkpoints" / "000000012" / name) for path in (out / "whole", tmp_path))
        assert ours.keys() == whole.keys()
        for key, tensor in ours.items():
            torch.testing.assert_close(tensor, whole[key], rtol=1e-4, atol=1e-6)


def test_both_processes_end_with_the_same_weights(out):
    first, second = (load_file(out / f"weights_{rank}.safetensors") for rank in (0, 1))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_only_one_process_writes(out):
    steps = [row["step"] for row in read_metrics(out / "whole") if "train/loss" in row]
    assert steps == [3, 6, 9, 12]
    assert CheckpointFolder(out / "whole" / "checkpoints").steps() == [6, 12]


def test_a_signal_to_one_process_stops_both_after_the_same_update_and_resuming_repeats_the_run(out):
    # The signal arrives during update 4; the processes ask each other when a row is due, after update 6.
    for rank in (0, 1):
        assert (out / f"interrupted_{rank}").read_text().startswith("143 Stopped by signal 15 after update 6")
    for name in (MODEL_FILE, EMA_FILE, OPTIMIZER_FILE):
        files = [out / run / "checkpoints" / "000000012" / name for run in ("whole", "split")]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_a_nan_in_one_process_stops_both_at_the_same_update(out):
    for rank in (0, 1):
        assert "Training diverged at update 4" in (out / f"diverged_{rank}").read_text()
        saved = load_file(out / "diverged" / "diverged" / "000000004" / f"batch_{rank}.safetensors")
        assert torch.isnan(saved["action"]).any().item() == (rank == 1)
    assert CheckpointFolder(out / "diverged" / "checkpoints").steps() == [4]
