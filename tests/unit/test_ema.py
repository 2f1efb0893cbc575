import pytest
import torch
from torch import nn

from robolearn.train.ema import WeightAverage, decay_at


@pytest.mark.parametrize(
    ("step", "decay"),
    [
        (0, 0.0),  # 1 - 1 ** -0.75: the first average is the weights themselves
        (1, 1 - 2**-0.75),  # 0.405396...
        (15, 0.875),  # 16 ** 0.75 = 8
        (255, 0.984375),  # 256 ** 0.75 = 64
        (10**6, 0.9999),  # 1 - 1e6 ** -0.75 = 0.99996838 is capped
    ],
)
def test_decay_follows_diffusion_policys_schedule(step, decay):
    assert decay_at(step, power=0.75, max_decay=0.9999) == pytest.approx(decay, abs=1e-12)


def test_averages_worked_by_hand():
    policy = _scalar(8.0)
    average = WeightAverage(policy, power=1.0, max_decay=0.6)
    weight = average.policy.weight
    # power 1: decay(s) = 1 - 1 / (1 + s) = 0, 1/2, then 2/3 capped to 0.6
    seen = []
    for step, value in enumerate((4.0, 2.0, 12.0)):
        with torch.no_grad():
            policy.weight.fill_(value)
        average.update(step)
        seen.append(float(weight.detach()))
    # 0 * 8 + 1 * 4 = 4;  0.5 * 4 + 0.5 * 2 = 3;  0.6 * 3 + 0.4 * 12 = 6.6
    assert seen == pytest.approx([4.0, 3.0, 6.6], rel=1e-6)


def test_update_gated_on_the_device_equals_the_plain_one_or_does_nothing():
    policy = nn.Linear(5, 3)
    plain, gated = (WeightAverage(policy, power=0.75, max_decay=0.9) for _ in range(2))
    with torch.no_grad():
        policy.weight.add_(1.0)
    plain.update(3)
    gated.update(3, torch.tensor(0.0))
    assert not torch.equal(plain.policy.weight, gated.policy.weight)
    assert torch.equal(gated.policy.weight, policy.weight - 1.0) or torch.allclose(gated.policy.weight, policy.weight - 1.0)
    gated.update(3, torch.tensor(1.0))
    torch.testing.assert_close(gated.policy.weight, plain.policy.weight)


def test_zero_max_decay_keeps_the_raw_weights():
    policy = nn.Linear(4, 4)
    average = WeightAverage(policy, power=0.75, max_decay=0.0)
    for step in range(3):
        with torch.no_grad():
            policy.weight.mul_(1.7)
        average.update(step)
    torch.testing.assert_close(average.policy.weight, policy.weight, rtol=0, atol=0)


def test_buffers_are_copied_and_the_copy_never_trains():
    policy = nn.BatchNorm1d(2)
    average = WeightAverage(policy, power=0.75, max_decay=0.9999)
    policy(torch.randn(8, 2) + 5.0)
    average.update(0)
    assert not torch.equal(average.policy.running_mean, policy.running_mean)
    average.copy_buffers()
    assert torch.equal(average.policy.running_mean, policy.running_mean)
    assert not average.policy.training
    assert not any(p.requires_grad for p in average.policy.parameters())


def _scalar(value: float) -> nn.Module:
    module = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        module.weight.fill_(value)
    return module
