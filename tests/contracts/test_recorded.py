"""Recorded updates: what is refused anywhere, and on a GPU that a replay is the update that was recorded."""

import pytest
import torch
from repeats import Repeats

from robolearn.core.errors import RefusedError
from robolearn.data.replay_buffer import ReplayBatch
from robolearn.nets.critics import CriticConfig, CriticEnsemble, subset_minimum
from robolearn.refine.base import Critics, LearnerConfig
from robolearn.refine.recorded import RecordedUpdate, recorded


def batch(rows=8, seed=0, device="cpu"):
    rng = torch.Generator().manual_seed(seed)
    made = ReplayBatch(
        fields={"condition": torch.rand(rows, 4, generator=rng)},
        following={"condition": torch.rand(rows, 4, generator=rng)},
        actions=torch.rand(rows, 1, 2, generator=rng),
        returns=torch.rand(rows, generator=rng),
        bootstrap=torch.full((rows,), 0.9),
        outcomes=torch.zeros(rows),
        settled=torch.arange(rows) % 2 == 0,
    )
    parts = {name: {k: v.to(device) for k, v in getattr(made, name).items()} for name in ("fields", "following")}
    rest = {name: getattr(made, name).to(device) for name in ("actions", "returns", "bootstrap", "outcomes", "settled")}
    return ReplayBatch(**parts, **rest)


def test_only_a_gpu_records():
    with pytest.raises(RefusedError, match=r"cuda_graph=true records updates on \['cuda'\]; this run is on cpu"):
        recorded(lambda batch, rng: {}, torch.device("cpu"), True)


def test_another_batch_than_the_recorded_one_is_refused():
    update = RecordedUpdate(lambda batch, rng: {"loss": batch.returns.mean()}, Repeats())
    rng = torch.Generator()
    for seed in range(5):
        assert update(batch(seed=seed), rng)["loss"] == batch(seed=seed).returns.mean()
    with pytest.raises(RefusedError, match="recorded for one generator and for 8 rows"):
        update(batch(rows=9), rng)
    with pytest.raises(RefusedError, match="recorded for one generator"):
        update(batch(), torch.Generator())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_replayed_update_is_the_update_and_waits_for_nothing():
    device, config = torch.device("cuda", 0), LearnerConfig(critic=CriticConfig(members=5, layers=2, width=32))

    def learned(graph):
        torch.manual_seed(0)
        critics = Critics(CriticEnsemble(6, config.critic).to(device), config)

        def update(batch, rng):
            with torch.no_grad():
                action = torch.rand(batch.actions[:, 0].shape, generator=rng, device=device)
                following = subset_minimum(critics.slow(batch.following["condition"], action), 2, rng)
            return critics.learn(batch, batch.actions[:, 0], following)

        rng, losses = torch.Generator(device), []
        update = recorded(update, device, graph)
        for step in range(12):
            made = batch(seed=step, device=device)
            rng.manual_seed(step)
            torch.cuda.set_sync_debug_mode("error" if step > 4 else "default")
            losses.append(update(made, rng)["loss"].clone())
            torch.cuda.set_sync_debug_mode("default")
        return torch.stack(losses).cpu(), critics

    (plain, online), (replayed, other) = learned(False), learned(True)
    torch.testing.assert_close(replayed, plain, rtol=1e-4, atol=1e-6)
    for parameter, wanted in zip(other.online.parameters(), online.online.parameters(), strict=True):
        torch.testing.assert_close(parameter, wanted, rtol=1e-3, atol=1e-5)
