import json
import os
import resource
import signal
import time

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from robolearn.core.errors import RefusedError
from robolearn.train.checkpoint import (
    EMA_FILE,
    MODEL_FILE,
    CheckpointContents,
    CheckpointFolder,
    find_checkpoint,
    load_weights,
    read_tensors,
)


def contents(step: int, size: int = 8) -> CheckpointContents:
    """Every tensor of the checkpoint of ``step`` is filled with the step, so that a mixture of two would show."""
    filled = {"weight": torch.full((size,), float(step))}
    return CheckpointContents({"step": step}, filled, filled, filled, {}, {"step": step})


def folder_in(path, *steps: int) -> CheckpointFolder:
    folder = CheckpointFolder(path / "checkpoints")
    with folder.locked():
        for step in steps:
            folder.save(step, contents(step))
    return folder


def test_saved_checkpoint_is_whole_and_last_points_at_it(tmp_path):
    folder = folder_in(tmp_path, 5, 10)
    assert folder.steps() == [5, 10]
    assert (folder.root / "last").readlink().name == "000000010"
    assert torch.equal(read_tensors(folder.root / "last" / MODEL_FILE)["weight"], torch.full((8,), 10.0))
    assert json.loads((folder.path(5) / "trainer" / "state.json").read_text()) == {"step": 5}
    assert not list(folder.root.glob(".tmp-*"))


def test_saving_the_same_step_again_changes_nothing(tmp_path):
    folder = folder_in(tmp_path, 5)
    before = (folder.path(5) / MODEL_FILE).stat().st_mtime_ns
    folder.save(5, contents(6))
    assert (folder.path(5) / MODEL_FILE).stat().st_mtime_ns == before


def test_best_is_the_highest_score_and_of_equals_the_latest(tmp_path):
    folder = folder_in(tmp_path, 1, 2, 3, 4)
    for step, score in {1: 0.5, 2: 0.9, 3: 0.9, 4: 0.2}.items():
        folder.record_score(step, score)
    assert folder.best() == 3
    assert (folder.root / "best").readlink().name == "000000003"
    assert folder.scores() == {1: 0.5, 2: 0.9, 3: 0.9, 4: 0.2}


def test_pruning_keeps_the_newest_and_the_best(tmp_path):
    folder = folder_in(tmp_path, 1, 2, 3, 4, 5)
    folder.record_score(2, 1.0)
    folder.prune(2)
    assert folder.steps() == [2, 4, 5]


def test_find_checkpoint_prefers_best_then_newest_then_refuses(tmp_path):
    folder = folder_in(tmp_path, 1, 2)
    assert find_checkpoint(tmp_path) == folder.path(2)
    folder.record_score(1, 0.3)
    assert find_checkpoint(tmp_path) == folder.path(1)
    assert find_checkpoint(folder.root / "last") == folder.path(2).resolve()
    with pytest.raises(RefusedError, match=r"No checkpoint at .*elsewhere"):
        find_checkpoint(tmp_path / "elsewhere")


def test_loading_restores_the_weights_and_refuses_everything_else_by_name(tmp_path):
    source, target = nn.Linear(3, 2), nn.Linear(3, 2)

    def save(**tensors):
        save_file({k: v.detach().clone().contiguous() for k, v in tensors.items()}, tmp_path / MODEL_FILE)

    save(weight=source.weight, bias=source.bias)
    load_weights(target, tmp_path / MODEL_FILE)
    assert torch.equal(target.weight, source.weight)
    save(weight=source.weight)
    with pytest.raises(RefusedError, match=r"missing tensors \['bias'\]"):
        load_weights(target, tmp_path / MODEL_FILE)
    save(weight=source.weight, bias=source.bias, extra=source.bias)
    with pytest.raises(RefusedError, match=r"unexpected tensors \['extra'\]"):
        load_weights(target, tmp_path / MODEL_FILE)
    save(weight=source.weight[:, :2], bias=source.bias)
    with pytest.raises(RefusedError, match=r"'weight' must be \(2, 3\) torch.float32, got \(2, 2\)"):
        load_weights(target, tmp_path / MODEL_FILE)
    save(weight=source.weight.double(), bias=source.bias)
    with pytest.raises(RefusedError, match=r"got .* torch.float64"):
        load_weights(target, tmp_path / MODEL_FILE)
    save(weight=source.weight * torch.inf, bias=source.bias)
    with pytest.raises(RefusedError, match="'weight' holds values that are not finite"):
        load_weights(target, tmp_path / MODEL_FILE)
    assert torch.equal(target.weight, source.weight), "a refused file must not change the module"


@pytest.mark.parametrize("keep", [0, 4, 0.5, 0.99])
def test_truncated_file_is_refused_by_name(tmp_path, keep):
    folder = folder_in(tmp_path, 1)
    file = folder.path(1) / EMA_FILE
    size = file.stat().st_size
    os.truncate(file, keep if keep in (0, 4) else int(size * keep))
    with pytest.raises(RefusedError, match=r"ema\.safetensors cannot be read"):
        read_tensors(file)
    file.unlink()
    with pytest.raises(RefusedError, match=r"ema\.safetensors is missing"):
        read_tensors(file)


def test_two_trainers_in_one_folder_are_refused(tmp_path):
    folder = CheckpointFolder(tmp_path / "checkpoints")
    with folder.locked(), pytest.raises(RefusedError, match="Another process is training"), folder.locked():
        pass
    with folder.locked():
        pass


def test_read_only_place_is_refused_by_name(tmp_path):
    (tmp_path / "file").write_text("")
    folder = CheckpointFolder(tmp_path / "file" / "checkpoints")
    with pytest.raises(RefusedError, match=r"Cannot write checkpoints to .*file/checkpoints"), folder.locked():
        pass


def test_full_disk_refuses_and_leaves_earlier_checkpoints(tmp_path):
    folder = folder_in(tmp_path, 1)
    # A limit on file size is the full disk that every machine can have: writes fail with an error after some bytes.
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(RefusedError, match="000000002 could not be written"):
            folder.save(2, contents(2, size=1_000_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert folder.steps() == [1]
    assert not list(folder.root.glob(".tmp-*"))
    assert torch.equal(read_tensors(folder.root / "last" / MODEL_FILE)["weight"], torch.full((8,), 1.0))


def save_forever(root) -> None:
    """Save and prune until killed."""
    folder = CheckpointFolder(root)
    with folder.locked():
        folder.clean()
        step = max(folder.steps(), default=0)
        while True:
            step += 1
            folder.save(step, contents(step, size=200_000))
            folder.prune(2)


def test_kill_9_at_any_moment_leaves_only_whole_checkpoints(tmp_path):
    folder = CheckpointFolder(tmp_path / "checkpoints")
    rng = np.random.default_rng(0)
    newest, leftovers = 0, 0
    for _ in range(12):
        child = os.fork()
        if child == 0:
            try:
                save_forever(folder.root)
            finally:
                os._exit(1)
        deadline = time.monotonic() + 60
        while max(folder.steps(), default=0) < newest + 2 and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.03))  # another phase of the save loop each time
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, "the saver died by itself"
        steps = folder.steps()
        assert steps[-1] >= newest + 2, "the saver made no progress"
        leftovers += len(list(folder.root.glob(".tmp-*")))
        for step in steps:
            for file in (MODEL_FILE, EMA_FILE, "trainer/optimizer.safetensors"):
                assert torch.equal(read_tensors(folder.path(step) / file)["weight"], torch.full((200_000,), float(step)))
        assert (folder.root / "last" / MODEL_FILE).is_file()
        newest = steps[-1]
    assert leftovers > 0, "no kill fell into a save: the test has proved nothing"
    folder.clean()
    assert not list(folder.root.glob(".tmp-*"))
    assert (folder.root / "last").readlink().name == f"{newest:09d}"
