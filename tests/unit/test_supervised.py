import dataclasses
import json
import math
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from robolearn.core.errors import RefusedError
from robolearn.core.types import ActionChunk
from robolearn.train import metrics, update
from robolearn.train.checkpoint import EMA_FILE, MODEL_FILE, OPTIMIZER_FILE, CheckpointFolder
from robolearn.train.config import TrainConfig
from robolearn.train.interrupts import Interrupted, InterruptGuard, NonFiniteError
from robolearn.train.metrics import read_metrics
from robolearn.train.processes import Processes
from robolearn.train.supervised import train
from robolearn.train.update import Updater
from robolearn.train.window_order import WindowOrder

STATE = "observation.state"


class Windows:
    """State x (2,) and an action chunk (4, 2) that is a linear function of it; batches can be spoilt on purpose."""

    def __init__(self, count: int = 60) -> None:
        x = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (count, 1, 2)).astype(np.float32))
        self._x, self._y = x, x.expand(-1, 4, -1) * torch.tensor([2.0, -1.0]) + 0.5
        self.served = 0
        self.at_batch: dict[int, object] = {}

    def __len__(self) -> int:
        return len(self._x)

    def batch(self, indices):
        self.served += 1
        batch = {STATE: self._x[indices].clone(), "action": self._y[indices].clone()}
        pads = {"action_is_pad": torch.zeros(len(indices), 4, dtype=torch.bool)}
        pads["action_is_pad"][:, 3] = True
        if self.served in self.at_batch:
            self.at_batch[self.served](batch)
        return batch | pads


class LinearPolicy(nn.Module):
    """Predicts the same action for all four steps; adds noise to its input so that the generator matters."""

    def __init__(self, noise: float = 0.1) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        with torch.no_grad():
            self.linear.weight.copy_(torch.tensor([[1.0, 0.5], [-0.5, 1.0]]))
            self.linear.bias.zero_()
        self.register_buffer("scale", torch.ones(2))
        self.noise = noise
        self.seen_dtypes: set = set()

    def loss(self, batch, rng):
        x = batch[STATE][:, -1] * self.scale
        x = x + self.noise * torch.randn(x.shape, generator=rng, device=x.device)
        out = self.linear(x)
        self.seen_dtypes.add(out.dtype)
        loss = (out[:, None].float() - batch["action"]).square().mean()
        return loss, {"loss": loss.detach(), "weight": self.linear.weight.detach().sum()}

    def card(self):
        return {"policy": "linear", "config": {"noise": self.noise}}

    @torch.no_grad()
    def predict(self, observation, rng):
        x = torch.from_numpy(observation[STATE][:, -1])
        return ActionChunk(self.linear(x)[:, None].expand(-1, 4, -1).numpy())


BASE = TrainConfig(
    steps=12, batch_size=8, learning_rate=0.05, warmup_steps=2, log_every=4, validate_every=6, checkpoint_every=6,
    validation_windows=20, action_error_windows=10, device="cpu", tensorboard=False,
)  # fmt: skip


def config(**changes) -> TrainConfig:
    return dataclasses.replace(BASE, **changes)


def go(run_dir, policy=None, windows=None, settings=BASE, held_out=None, **options):
    windows = Windows() if windows is None else windows
    return train(policy or LinearPolicy(), windows, held_out, settings, run_dir, **options)


def files_of(checkpoint: Path) -> dict[str, bytes]:
    return {name: (checkpoint / name).read_bytes() for name in (MODEL_FILE, EMA_FILE, OPTIMIZER_FILE)}


def untimed(run_dir) -> list[dict]:
    return [{k: v for k, v in row.items() if not k.startswith(metrics.TIME_PREFIX)} for row in read_metrics(run_dir)]


# One update


class ChosenGradient(nn.Module):
    """loss = weight * the batch's number, so that the number is the gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[1.0]]))

    def forward(self, batch, rng):
        loss = (self.weight * batch["gradient"]).sum()
        return loss, {}


def test_adamw_with_clipping_worked_by_hand():
    module = ChosenGradient()
    updater = Updater(module, module, config(grad_clip_norm=1.0, betas=(0.5, 0.5), weight_decay=0.0), torch.device("cpu"))
    norms = [updater.step({"gradient": torch.tensor(g)}, torch.Generator(), 0.1)["grad_norm"].item() for g in (2.0, 0.5)]
    # Clipped gradients 1 and 0.5.
    # 1: m = 0.5, v = 0.5, both / (1 - 0.5) = 1: step 0.1 * 1 / 1 = 0.1
    # 2: m = 0.25 + 0.25 = 0.5, v = 0.25 + 0.125 = 0.375, / (1 - 0.25): 2/3 and 1/2: step 0.1 * (2/3) / sqrt(1/2) = 0.0942809
    assert module.weight.item() == pytest.approx(1 - 0.1 - 0.0942809, abs=1e-6)
    assert norms == [2.0, 0.5], "the norm is reported as it was before clipping"


def test_updates_equal_torchs_clipping_and_adamw():
    policies = [LinearPolicy(noise=0.0) for _ in range(2)]
    settings = config(grad_clip_norm=0.5, weight_decay=0.1)
    updater = Updater(update.LossModule(policies[0], "fp32", "cpu"), policies[0], settings, torch.device("cpu"))
    groups = [
        {"params": [policies[1].linear.weight], "weight_decay": 0.1},
        {"params": [policies[1].linear.bias], "weight_decay": 0.0},
    ]
    reference = torch.optim.AdamW(groups, betas=settings.betas, eps=1e-8)
    rng, windows = torch.Generator(), Windows()
    for step in range(20):
        batch = windows.batch(torch.arange(step, step + 8))
        updater.step(batch, rng, 0.1 / (1 + step))
        reference.zero_grad()
        policies[1].loss(batch, rng)[0].backward()
        torch.nn.utils.clip_grad_norm_(policies[1].parameters(), 0.5)
        for group in reference.param_groups:
            group["lr"] = 0.1 / (1 + step)
        reference.step()
    for ours, theirs in zip(policies[0].parameters(), policies[1].parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_weight_decay_spares_biases():
    module = nn.Linear(1, 1)
    with torch.no_grad():
        module.weight.fill_(2.0)
        module.bias.fill_(2.0)
    module.forward = lambda batch, rng: (0.0 * (module.weight.sum() + module.bias.sum()), {})
    updater = Updater(module, module, config(weight_decay=0.5), torch.device("cpu"))
    updater.step({}, torch.Generator(), 0.1)
    assert module.weight.item() == pytest.approx(2.0 * (1 - 0.1 * 0.5))
    assert module.bias.item() == 2.0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nothing_moves_from_the_first_bad_update_on(bad):
    module = ChosenGradient()
    updater = Updater(module, module, BASE, torch.device("cpu"))
    updater.step({"gradient": torch.tensor(1.0)}, torch.Generator(), 0.1)
    moments = {name: tensor.clone() for name, tensor in updater.tensors().items()}
    for gradient in (bad, 1.0, 1.0):
        updater.step({"gradient": torch.tensor(gradient)}, torch.Generator(), 0.1)
    assert module.weight.item() == pytest.approx(0.9)
    assert (updater.completed.item(), updater.diverged.item()) == (1, 1)
    assert all(torch.equal(tensor, moments[name]) for name, tensor in updater.tensors().items())


def test_learning_rate_rises_linearly_and_falls_with_half_a_cosine():
    settings = TrainConfig(steps=10, warmup_steps=2, learning_rate=0.4)
    # Warm-up: 0.4 * 1/2, 0.4 * 2/2; then 0.4 * (1 + cos(pi * k / 8)) / 2 for k = 0 ... 7
    assert [settings.learning_rate_at(s) for s in (0, 1, 2, 6)] == pytest.approx([0.2, 0.4, 0.4, 0.2])
    assert settings.learning_rate_at(4) == pytest.approx(0.4 * (1 + math.sqrt(0.5)) / 2)
    assert settings.learning_rate_at(10) == pytest.approx(0.0, abs=1e-12)


def test_bf16_computes_in_bf16_and_keeps_weights_in_fp32(tmp_path):
    policy = LinearPolicy()
    go(tmp_path, policy, settings=config(precision="bf16"))
    assert policy.seen_dtypes == {torch.bfloat16}
    assert {p.dtype for p in policy.parameters()} == {torch.float32}


def test_fp16_scales_the_loss_and_resumes_with_its_scale(tmp_path):
    settings = config(precision="fp16")
    whole = go(tmp_path / "whole", settings=settings)
    assert load_file(whole.checkpoint / OPTIMIZER_FILE)["loss_scale"] > 1
    windows = Windows()
    windows.at_batch[7] = lambda batch: os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Interrupted):
        go(tmp_path / "split", windows=windows, settings=settings)
    resumed = go(tmp_path / "split", settings=settings, resume=True)
    assert files_of(resumed.checkpoint) == files_of(whole.checkpoint)


def test_an_overflowing_fp16_gradient_lowers_the_scale_instead_of_stopping():
    module = ChosenGradient()
    updater = Updater(module, module, config(precision="fp16", grad_clip_norm=1.0), torch.device("cpu"))
    for gradient in (1e36, 1.0):  # 1e36 * 65536 is beyond float32
        updater.step({"gradient": torch.tensor(gradient)}, torch.Generator(), 0.1)
    assert updater.tensors()["loss_scale"] == 2**16 / 2
    assert updater.diverged.item() == 0
    assert module.weight.item() == pytest.approx(0.9, abs=1e-5), "the first update is skipped, the second counts"


def test_compiling_changes_nothing_but_speed(tmp_path, monkeypatch):
    compiled = []
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module: compiled.append(module) or real(module, backend="eager"))
    fast = go(tmp_path / "fast", settings=config(compile=True))
    plain = go(tmp_path / "plain")
    assert [type(m) for m in compiled] == [update.LossModule]
    assert files_of(fast.checkpoint) == files_of(plain.checkpoint)


# Order of windows


def test_every_epoch_visits_every_window_once_and_any_position_can_be_started_from():
    order = WindowOrder(10, seed=3)
    stream = torch.cat([order.rows(start, 4) for start in range(0, 40, 4)])
    epochs = stream.reshape(4, 10)
    assert all(sorted(epoch.tolist()) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 4
    assert torch.equal(WindowOrder(10, seed=3).rows(17, 9), stream[17:26])
    assert torch.equal(WindowOrder(10, seed=3).rows(0, 25), stream[:25]), "a batch may be larger than an epoch"
    assert not torch.equal(WindowOrder(10, seed=4).rows(0, 10), stream[:10])


# The loop


def test_run_learns_and_says_so(tmp_path):
    policy = LinearPolicy()
    result = go(tmp_path, policy, settings=config(steps=200, log_every=20), held_out=Windows(20))
    rows = read_metrics(tmp_path)
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    assert losses[-1] < 0.1 * losses[0]
    # The target is x -> diag(2, -1) x + 0.5
    torch.testing.assert_close(policy.linear.weight.detach(), torch.diag(torch.tensor([2.0, -1.0])), atol=0.1, rtol=0)
    errors = [row["validation/action_error"] for row in rows if "validation/action_error" in row]
    assert errors[-1] < 0.1 < errors[0]
    assert (result.step, result.stopped, result.best) == (200, "finished", None)
    assert result.checkpoint == tmp_path / "checkpoints" / "000000200"
    assert not result.policy.training


def test_rows_are_means_over_the_updates_since_the_last_row(tmp_path):
    go(tmp_path / "each", settings=config(log_every=1))
    go(tmp_path / "all", settings=config(log_every=5))
    each = {row["step"]: row["train/loss"] for row in read_metrics(tmp_path / "each")}
    rows = {row["step"]: row["train/loss"] for row in read_metrics(tmp_path / "all")}
    assert set(rows) == {5, 10, 12}, "the last update has a row whatever log_every"
    assert rows[5] == pytest.approx(np.mean([each[s] for s in range(1, 6)]), rel=1e-6)
    assert rows[12] == pytest.approx(np.mean([each[11], each[12]]), rel=1e-6)


def test_validation_repeats_itself_and_does_not_disturb_training(tmp_path):
    often = go(tmp_path / "often", settings=config(validate_every=1), held_out=Windows(20))
    never = go(tmp_path / "never")
    assert files_of(often.checkpoint) == files_of(never.checkpoint)
    # A learning rate of almost nothing: equal weights, so equal validations, whatever was drawn in between.
    go(tmp_path / "still", settings=config(validate_every=3, learning_rate=1e-30), held_out=Windows(20))
    rows = [row for row in untimed(tmp_path / "still") if "validation/loss" in row]
    assert len({(row["validation/loss"], row["validation/action_error"]) for row in rows}) == 1


def test_action_error_is_the_mean_over_steps_that_are_not_padding(tmp_path):
    policy = LinearPolicy()
    held_out = Windows(1)
    # The padded fourth step is far off and must not count.
    held_out._y[:, 3] = 1e6
    go(tmp_path, policy, settings=config(learning_rate=1e-30, ema_max_decay=0.0), held_out=held_out)
    x, y = held_out._x[0, -1], held_out._y[0, 0]
    expected = (policy.linear(x).detach() - y).abs().mean().item()
    row = next(row for row in read_metrics(tmp_path) if "validation/action_error" in row)
    assert row["validation/action_error"] == pytest.approx(expected, rel=1e-5)


def test_the_callers_random_state_and_threads_are_left_alone(tmp_path):
    policy = LinearPolicy()
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    go(tmp_path, policy, settings=config(threads=threads + 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads


def test_the_best_scored_checkpoint_is_kept_and_the_acting_policy_is_scored(tmp_path):
    seen = []

    def score(step, folder, policy):
        seen.append((step, (folder / MODEL_FILE).is_file(), policy.training))
        return {3: 0.2, 6: 0.9, 9: 0.4, 12: 0.1}[step]

    result = go(tmp_path, settings=config(checkpoint_every=3, keep_checkpoints=1), on_checkpoint=score)
    assert seen == [(step, True, False) for step in (3, 6, 9, 12)]
    assert CheckpointFolder(tmp_path / "checkpoints").steps() == [6, 12]
    assert (result.best, result.best_score) == (tmp_path / "checkpoints" / "000000006", 0.9)
    assert [row["score"] for row in read_metrics(tmp_path) if "score" in row] == [0.2, 0.9, 0.4, 0.1]


def test_tensorboard_has_the_rows_once_also_after_resuming(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = config(tensorboard=True, log_every=2)
    windows = Windows()
    windows.at_batch[9] = lambda batch: os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Interrupted):
        go(tmp_path, windows=windows, settings=settings)
    for name in ("000000009", "last"):  # as if it had been killed, not stopped
        path = tmp_path / "checkpoints" / name
        path.unlink() if path.is_symlink() else __import__("shutil").rmtree(path)
    go(tmp_path, settings=settings, resume=True)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    rows = {row["step"]: row["train/loss"] for row in read_metrics(tmp_path)}
    assert [e.step for e in events.Scalars("train/loss")] == sorted(rows) == [2, 4, 6, 8, 10, 12]
    assert [e.value for e in events.Scalars("train/loss")] == pytest.approx([rows[s] for s in sorted(rows)])


# Early ends


def spoil_action(batch):
    batch["action"][2, 1, 0] = math.nan


@pytest.mark.parametrize("deferred", [False, True])
def test_nan_stops_with_the_batch_and_the_last_good_state(tmp_path, monkeypatch, deferred):
    """On a GPU the host looks at the verdict only when a row is due; whichever, the state saved is that before the bad update."""
    monkeypatch.setattr(Updater, "reads_every_step", property(lambda self: not deferred))
    windows, settings = Windows(), config(validate_every=12, checkpoint_every=12)
    # The sixth batch, which is served again when it is saved: at once, or after the row of update 8 was due.
    windows.at_batch = dict.fromkeys((6, 9 if deferred else 7), spoil_action)
    with pytest.raises(NonFiniteError, match=r"diverged at update 5: loss nan; not finite in the batch: \['action'\]") as caught:
        go(tmp_path / "bad", windows=windows, settings=settings)
    assert caught.value.exit_code == 3
    saved = load_file(tmp_path / "bad" / "diverged" / "000000005" / "batch_0.safetensors")
    assert torch.isnan(saved["action"]).sum() == 1
    report = json.loads((tmp_path / "bad" / "diverged" / "000000005" / "report_0.json").read_text())
    assert report["gradients_not_finite"] == ["linear.weight", "linear.bias"]
    stop = Windows()
    stop.at_batch[5] = lambda batch: os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Interrupted):
        go(tmp_path / "good", windows=stop, settings=settings)
    bad, good = (tmp_path / name / "checkpoints" / "000000005" for name in ("bad", "good"))
    if deferred:  # the average moves by the same formula written otherwise, so to rounding
        for name, tensor in load_file(bad / EMA_FILE).items():
            torch.testing.assert_close(tensor, load_file(good / EMA_FILE)[name])
        assert {**files_of(bad), EMA_FILE: b""} == {**files_of(good), EMA_FILE: b""}
    else:
        assert files_of(bad) == files_of(good)
    states = [json.loads((path / "trainer" / "state.json").read_text()) for path in (bad, good)]
    assert [s["meter_count"] for s in states] == [1, 1]
    meters = [load_file(path / "trainer" / "meters.safetensors") for path in (bad, good)]
    assert all(torch.equal(meters[0][name], meters[1][name]) for name in ("loss", "grad_norm"))
    assert [row["step"] for row in read_metrics(tmp_path / "bad")] == [4]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_step_saves_and_names_itself(tmp_path, number, code):
    windows = Windows()
    windows.at_batch[5] = lambda batch: os.kill(os.getpid(), number)
    handler = signal.getsignal(number)
    with pytest.raises(Interrupted, match="after update 5") as caught:
        go(tmp_path / "split", windows=windows)
    assert (caught.value.exit_code, caught.value.signal_number) == (code, number)
    assert signal.getsignal(number) is handler
    assert CheckpointFolder(tmp_path / "split" / "checkpoints").steps() == [5]
    resumed = go(tmp_path / "split", resume=True)
    whole = go(tmp_path / "whole")
    assert files_of(resumed.checkpoint) == files_of(whole.checkpoint)
    assert untimed(tmp_path / "split") == untimed(tmp_path / "whole")


def test_second_ctrl_c_aborts_at_once():
    with InterruptGuard() as guard:
        os.kill(os.getpid(), signal.SIGINT)
        assert guard.signal_number == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_signal_ends_the_scoring_of_a_saved_checkpoint_at_once_and_resuming_repeats_it(tmp_path):
    def interrupted(step, folder, policy):
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("scoring went on after the signal")

    with pytest.raises(Interrupted):
        go(tmp_path, on_checkpoint=interrupted)
    assert CheckpointFolder(tmp_path / "checkpoints").scores() == {}
    scored = []
    go(tmp_path, resume=True, on_checkpoint=lambda step, folder, policy: scored.append(step) or 1.0)
    assert scored == [6, 12]


def test_time_budget_ends_cleanly_and_resuming_completes_the_run(tmp_path):
    result = go(tmp_path / "split", settings=config(max_seconds=1e-9))
    assert (result.step, result.stopped) == (1, "max_seconds")
    assert CheckpointFolder(tmp_path / "split" / "checkpoints").steps() == [1]
    resumed, whole = go(tmp_path / "split", resume=True), go(tmp_path / "whole")
    assert (resumed.step, resumed.stopped) == (12, "finished")
    assert files_of(resumed.checkpoint) == files_of(whole.checkpoint)


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    whole = go(tmp_path)
    before = files_of(whole.checkpoint), untimed(tmp_path)
    again = go(tmp_path, resume=True)
    assert (files_of(again.checkpoint), untimed(tmp_path), again.step) == (*before, 12)


# Refusals


def test_starting_over_a_run_and_resuming_nothing_are_refused(tmp_path):
    with pytest.raises(RefusedError, match="holds no run to resume: it has no folder checkpoints"):
        go(tmp_path, resume=True)
    go(tmp_path)
    with pytest.raises(RefusedError, match="holds checkpoints up to step 12; resume it or choose another run_dir"):
        go(tmp_path)


def test_resuming_with_anything_else_is_refused_by_name(tmp_path):
    provenance = {"dataset": {"checksum": "abc"}}
    go(tmp_path, provenance=provenance)
    cases = [
        ({"settings": config(learning_rate=0.01)}, r"train\.learning_rate: 0\.05 then, 0\.01 now"),
        ({"windows": Windows(59)}, "windows: 60 then, 59 now"),
        ({"policy": LinearPolicy(noise=0.2)}, r"config\.noise: 0\.1 then, 0\.2 now"),
        ({"provenance": {"dataset": {"checksum": "xyz"}}}, "dataset checksum: 'abc' then, 'xyz' now"),
    ]
    for options, message in cases:
        with pytest.raises(RefusedError, match=message):
            go(tmp_path, resume=True, **({"provenance": provenance} | options))
    go(tmp_path, resume=True, provenance=provenance, settings=config(threads=2, max_seconds=100.0, keep_checkpoints=9))


def test_damaged_trainer_state_is_refused_by_name(tmp_path):
    result = go(tmp_path)
    file = result.checkpoint / OPTIMIZER_FILE
    os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(RefusedError, match=r"optimizer\.safetensors cannot be read"):
        go(tmp_path, resume=True)
    (result.checkpoint / "trainer" / "state.json").unlink()
    with pytest.raises(RefusedError, match=r"No trainer state at .*state\.json"):
        go(tmp_path, resume=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, r"train\.steps=0 must be at least 1"),
        ({"betas": (0.9, 1.0)}, r"train\.betas=\(0\.9, 1\.0\)"),
        ({"learning_rate": math.nan}, r"train\.learning_rate=nan must be positive and finite"),
        ({"precision": "fp8"}, "must be one of fp32, bf16, fp16"),
        ({"max_seconds": 0.0}, r"train\.max_seconds=0\.0"),
        ({"ema_max_decay": 1.0}, r"train\.ema_max_decay=1\.0"),
    ],
)
def test_bad_settings_are_refused_by_name(changes, message):
    with pytest.raises(RefusedError, match=message):
        config(**changes)


def test_unknown_device_policy_and_missing_wandb_are_refused_by_name(tmp_path, monkeypatch):
    with pytest.raises(RefusedError, match=r"Device 'cuda:99' is not available here\. Available: auto, cpu"):
        go(tmp_path, settings=config(device="cuda:99"))
    with pytest.raises(RefusedError, match="Linear cannot be trained"):
        go(tmp_path, nn.Linear(1, 1))
    with pytest.raises(RefusedError, match="no windows"):
        go(tmp_path, windows=Windows(0))
    monkeypatch.setattr(metrics.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RefusedError, match="wandb_project='lift' needs the package wandb, which is not installed"):
        go(tmp_path, settings=config(wandb_project="lift"))


def test_an_accelerator_that_does_more_than_data_parallelism_is_refused():
    class FakeAccelerator:
        distributed_type = type("Kind", (), {"value": "FSDP"})
        process_index, num_processes = 0, 2
        mixed_precision, gradient_accumulation_steps = "no", 1

    with pytest.raises(RefusedError, match="distributed type FSDP"):
        Processes(FakeAccelerator())
    FakeAccelerator.distributed_type.value = "MULTI_GPU"
    FakeAccelerator.mixed_precision = "bf16"
    with pytest.raises(RefusedError, match="mixed_precision"):
        Processes(FakeAccelerator())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_an_update_never_makes_the_host_wait():
    from robolearn.train.learner import Learner

    device = torch.device("cuda", 0)
    windows = Windows()
    windows._x, windows._y = windows._x.to(device), windows._y.to(device)
    windows.batch = lambda rows: {STATE: windows._x[rows], "action": windows._y[rows]}
    learner = Learner(LinearPolicy(), windows, config(device="cuda"), device, Processes(None))
    learner.update()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            learner.update()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not learner.diverged()
    assert learner.step == 4
