"""Critics and actors: the batched ensemble against single networks, densities against torch's, bounds, zero starts."""

import pytest
import torch
from torch import nn

from robolearn.core.errors import RefusedError
from robolearn.nets.actors import ActorConfig, TanhGaussian, ZeroHeadMlp
from robolearn.nets.critics import CriticConfig, CriticEnsemble, follow, subset_minimum
from robolearn.nets.features import ConditionFeatures


@pytest.mark.parametrize("layer_norm", [True, False])
def test_the_ensemble_equals_its_members_as_single_networks(layer_norm):
    torch.manual_seed(0)
    ensemble = CriticEnsemble(5, CriticConfig(members=3, width=8, layers=2, layer_norm=layer_norm, activation="tanh"))
    with torch.no_grad():
        for parameter in ensemble.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    x = torch.randn(7, 5)
    values = ensemble(x[:, :2], x[:, 2:])
    for member in range(3):
        y = x
        for index in range(3):
            y = y @ ensemble.weights[index][member] + ensemble.biases[index][member]
            if index < 2:
                if layer_norm:
                    y = nn.functional.layer_norm(
                        y, (8,), ensemble.norm_scales[index][member, 0], ensemble.norm_shifts[index][member, 0]
                    )
                y = y.tanh()
        torch.testing.assert_close(values[member], y[:, 0], rtol=1e-5, atol=1e-6)


def test_members_learn_on_their_own():
    ensemble = CriticEnsemble(3, CriticConfig(members=2, width=4, layers=1, subset=2))
    gradients = torch.autograd.grad(ensemble(torch.ones(2, 3))[0].sum(), list(ensemble.parameters()))
    assert all(g[1].abs().max() == 0 for g in gradients)
    assert max(g[0].abs().max() for g in gradients) > 0


def test_subset_minimum_worked_by_hand():
    values = torch.tensor([[1.0, 5.0], [2.0, 4.0], [3.0, 3.0]])
    rng = torch.Generator().manual_seed(0)
    assert subset_minimum(values, 3, rng).tolist() == [1.0, 3.0]
    # Two of three members: the pairs {0,1}, {0,2}, {1,2} give (1,4), (1,3), (2,3).
    drawn = {tuple(subset_minimum(values, 2, rng).tolist()) for _ in range(60)}
    assert drawn == {(1.0, 4.0), (1.0, 3.0), (2.0, 3.0)}


def test_targets_follow_worked_by_hand():
    target, source = nn.Linear(1, 1), nn.Linear(1, 1)
    with torch.no_grad():
        for parameter, value in ((target.weight, 0.0), (target.bias, 1.0), (source.weight, 10.0), (source.bias, 1.0)):
            parameter.fill_(value)
    follow(target, source, 0.1)
    follow(target, source, 0.1)
    assert target.weight.item() == pytest.approx(1.9)  # 0 -> 1 -> 1 + 0.1 * 9
    assert target.bias.item() == 1.0


def test_density_of_the_bounded_gaussian_equals_torchs():
    torch.manual_seed(0)
    actor = TanhGaussian(ZeroHeadMlp(ConditionFeatures(range(4), 1), 0, 6, ActorConfig(width=16, layers=2)), 1.5)
    nn.init.normal_(actor.net.net[-1].weight, std=0.3)
    features, noise = torch.randn(6, 4), torch.randn(6, 3)
    sample, log_density = actor.sample(features, noise)
    mean, log_std = actor.net(features).chunk(2, dim=-1)
    # By the change of variables: log N(u) - log |dw/du|, dw/du = 1.5 (1 - tanh(u)^2), in float64.
    u = (mean + log_std.exp() * noise).double()
    log_normal = torch.distributions.Normal(mean.double(), log_std.double().exp()).log_prob(u)
    expected = (log_normal - (1.5 * (1.0 - u.tanh().square())).log()).sum(-1)
    torch.testing.assert_close(log_density.double(), expected, rtol=1e-4, atol=1e-4)
    assert sample.abs().max() <= 1.5
    inside = (sample.abs() < 0.99 * 1.5).all(dim=1)  # the way back through tanh is exact away from the bound only
    assert inside.any()
    torch.testing.assert_close(actor.log_density(features, sample)[inside], log_density[inside], rtol=1e-3, atol=1e-3)


def test_a_residual_head_starts_at_zero_and_still_learns():
    net = ZeroHeadMlp(ConditionFeatures([0, 2], 1), 3, 2, ActorConfig(width=8, layers=2))
    output = net(torch.randn(5, 4), torch.randn(5, 3))
    assert output.abs().max() == 0
    assert max(g.abs().max() for g in torch.autograd.grad(output.sum(), list(net.parameters())) if g is not None) > 0


@pytest.mark.parametrize("bad", [{"members": 0}, {"subset": 3, "members": 2}, {"width": 0}])
def test_impossible_critics_are_refused(bad):
    with pytest.raises(RefusedError, match="members"):
        CriticConfig(**bad)
