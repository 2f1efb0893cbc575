"""Noise schedules and training targets against numbers worked by hand."""

import math

import pytest
import torch

from robolearn.core.errors import RefusedError
from robolearn.diffusion.schedules import add_noise, alpha_bars, training_target


def test_squared_cosine_schedule_worked_by_hand():
    # Nichol and Dhariwal 2021, eq. 17: abar(t) = cos^2((t + 0.008) / 1.008 * pi / 2) at t = n / 100, from which
    # beta_n = min(1 - abar((n + 1) / 100) / abar(n / 100), 0.999). The betas telescope, so after level n (0-based)
    # the product is abar((n + 1) / 100) / abar(0), as long as no beta was capped.
    def abar(t):
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    ours = alpha_bars("squaredcos_cap_v2", levels=100)
    assert ours.shape == (100,)
    for level in (0, 1, 49, 90, 98):
        assert ours[level].item() == pytest.approx(abar((level + 1) / 100) / abar(0), rel=1e-5)
    # The last beta would be 1 (abar(1) = 0) and is capped: abar_99 = abar_98 * (1 - 0.999).
    assert ours[99].item() == pytest.approx(ours[98].item() * 0.001, rel=1e-4)


def test_linear_schedule_worked_by_hand():
    # Three levels: betas 1e-4, (1e-4 + 2e-2) / 2 = 0.01005, 2e-2.
    # Products: 0.9999; 0.9999 * 0.98995 = 0.989851005; * 0.98 = 0.970053985.
    expected = torch.tensor([0.9999, 0.989851005, 0.970053985], dtype=torch.float64)
    torch.testing.assert_close(alpha_bars("linear", levels=3), expected, rtol=0, atol=1e-8)


def test_noise_and_targets_worked_by_hand():
    # abar = 0.64: signal 0.8, noise 0.6. clean 0.5, noise -1: noisy = 0.4 - 0.6 = -0.2; v = 0.8 * -1 - 0.6 * 0.5 = -1.1.
    clean, noise, alpha_bar = torch.full((1, 2, 3), 0.5), torch.full((1, 2, 3), -1.0), torch.tensor([0.64])
    torch.testing.assert_close(add_noise(clean, noise, alpha_bar), torch.full((1, 2, 3), -0.2))
    for prediction, expected in {"epsilon": -1.0, "sample": 0.5, "v_prediction": -1.1}.items():
        target = training_target(prediction, clean=clean, noise=noise, alpha_bar=alpha_bar)
        torch.testing.assert_close(target, torch.full((1, 2, 3), expected))


def test_too_few_levels_are_refused():
    with pytest.raises(RefusedError, match="at least 2 levels, got 1"):
        alpha_bars("linear", levels=1)
