"""Samplers against the closed form that Gaussian data allow, and DDIM in ``sigma`` against DDIM in DDPM's own terms.

For data N(m, s^2) the best denoiser is m + s^2 / (s^2 + sigma^2) (x - m), and the probability flow scales the deviation from m by
sqrt((s^2 + sigma'^2) / (s^2 + sigma^2)) on its way from sigma to sigma'.
"""

import itertools
import math

import pytest
import torch

from robolearn.core.errors import RefusedError
from robolearn.diffusion import edm, samplers, sampling
from robolearn.diffusion.schedules import alpha_bars

MEAN, DEVIATION = 0.3, 0.2
HIGH, LOW = 5.0, 0.01


def exact(sigmas):
    def denoise(x, index):
        return MEAN + DEVIATION**2 / (DEVIATION**2 + sigmas[index] ** 2) * (x - MEAN)

    return denoise


def start(rows=4, draws=1, seed=0):
    return torch.randn((rows, draws, 3, 2), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def error(name, steps):
    """Largest distance from the exact flow after ``steps`` steps of equal ratio, up to the last jump to 0.

    The last step, from LOW to 0, ends on the denoised chunk for every sampler, so the exact end is denoised(x(LOW)).
    """
    sigmas = edm.sigma_steps("exponential", steps, low=LOW, high=HIGH)
    noise = start()
    got = samplers.SAMPLERS[name].sample(exact(sigmas), sigmas, noise)
    shrink = math.sqrt((DEVIATION**2 + LOW**2) / (DEVIATION**2 + HIGH**2))
    at_low = MEAN + shrink * (HIGH * noise[:, 0] - MEAN)
    return (got - (MEAN + DEVIATION**2 / (DEVIATION**2 + LOW**2) * (at_low - MEAN))).abs().max().item()


@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("euler", 1), ("heun", 2), ("dpmpp_2m", 2)])
def test_the_error_falls_with_the_samplers_order(name, order):
    # Four times as many steps: a first-order method is 4 times better, a second-order one 16 times.
    coarse, fine = error(name, 101), error(name, 401)
    assert math.log(coarse / fine, 4) == pytest.approx(order, abs=0.15)
    assert fine < (5e-3 if order == 1 else 1e-4)


def test_few_steps_of_second_order_beat_euler_at_equal_evaluations():
    assert error("dpmpp_2m", 11) < 0.5 * error("euler", 11)


def test_ancestral_sampling_keeps_the_spread_and_follows_its_recursion():
    sigmas = edm.sigma_steps("exponential", 60, low=LOW, high=HIGH)
    # Each step is affine in the deviation d = x - m: d' = gain d + up z, so the variance follows a recursion by hand.
    variance = HIGH**2
    for sigma, following in itertools.pairwise(sigmas):
        keep = DEVIATION**2 / (DEVIATION**2 + sigma**2)
        ratio = (following / sigma) ** 2  # down / sigma
        variance = (keep + ratio * (1 - keep)) ** 2 * variance + following**2 * (1 - (following / sigma) ** 2)
    variance *= (DEVIATION**2 / (DEVIATION**2 + LOW**2)) ** 2
    assert math.sqrt(variance) == pytest.approx(DEVIATION, rel=0.06)
    draws = samplers.SAMPLERS["euler_ancestral"].draws(sigmas)
    assert draws == 60
    got = samplers.euler_ancestral(exact(sigmas), sigmas, start(4000, draws, seed=1))
    # 24,000 numbers: standard errors 0.0013 (mean) and 0.0009 (deviation).
    assert got.std().item() == pytest.approx(math.sqrt(variance), abs=0.004)
    assert got.mean().item() == pytest.approx(MEAN, abs=0.006)


def test_a_single_step_of_any_sampler_is_the_denoised_start():
    sigmas = edm.sigma_steps("exponential", 1, low=LOW, high=HIGH)
    noise = start()
    for name, sampler in samplers.SAMPLERS.items():
        torch.testing.assert_close(sampler.sample(exact(sigmas), sigmas, noise), exact(sigmas)(HIGH * noise[:, 0], 0), msg=name)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_euler_in_sigma_is_ddim(prediction):
    bars = alpha_bars("squaredcos_cap_v2", levels=100)
    visited = sampling.step_levels(levels=100, steps=10)
    table = sampling.ddim_steps(bars, visited, prediction)
    sigmas = edm.ddpm_sigmas(bars, visited)

    def network(noisy, index):
        return torch.tanh(noisy * (1 + index / 7)) + 0.3 * noisy.flip(-1)

    def denoise(x, index):
        step, noisy = table[index], x * math.sqrt(bars[visited[index]])
        return step.denoised_from_noisy * noisy + step.denoised_from_output * network(noisy, index)

    noise = start()
    theirs = sampling.sample(network, table, noise, clip=None)
    # DDPM starts from N(0, 1) where sigma's process has sqrt(abar) sigma = sqrt(1 - abar) of it: 0.9998 at level 90.
    scaled = noise / math.sqrt(1 - bars[visited[0]])
    torch.testing.assert_close(samplers.euler(denoise, sigmas, scaled), theirs, rtol=1e-9, atol=1e-9)


def test_euler_in_sigma_is_eulers_method_of_flow_matching():
    # x' = x + (t' - t) v with v = (denoised - x) / (1 - t); the first time is 0.001 instead of 0.
    sigmas = edm.flow_sigmas(4)
    times = [1e-3, 0.25, 0.5, 0.75, 1.0]
    assert sigmas == pytest.approx([(1 - t) / t for t in times])
    noise = start()
    x = (1 - times[0]) * noise[:, 0]
    for index, (t, following) in enumerate(itertools.pairwise(times)):
        x = x + (following - t) * (exact(sigmas)(x / t, index) - x) / (1 - t)
    torch.testing.assert_close(samplers.euler(exact(sigmas), sigmas, noise), x, rtol=1e-9, atol=1e-9)


def test_preconditioning_by_hand():
    # sigma = sigma_data = 0.5: skip 1/2, out 0.25 / sqrt(0.5) = 0.35355, input 1 / sqrt(0.5) = 1.41421, noise ln(0.5) / 4.
    got = edm.scales(torch.tensor([0.5], dtype=torch.float64), 0.5)
    assert [float(v) for v in got] == pytest.approx([0.5, 0.3535534, 1.4142136, math.log(0.5) / 4])


def test_schedules_by_hand():
    assert edm.sigma_steps("exponential", 3, low=1.0, high=100.0) == pytest.approx((100.0, 10.0, 1.0, 0.0))
    assert edm.sigma_steps("linear", 3, low=1.0, high=3.0) == pytest.approx((3.0, 2.0, 1.0, 0.0))
    # rho 2: roots 3, 2, 1.
    assert edm.sigma_steps("karras", 3, low=1.0, high=9.0, rho=2.0) == pytest.approx((9.0, 4.0, 1.0, 0.0))
    assert edm.sigma_steps("linear", 1, low=1.0, high=3.0) == (3.0, 0.0)


def test_training_levels_are_log_logistic_and_stay_inside_the_bounds():
    u = torch.linspace(0, 1, 1001, dtype=torch.float64)[:-1]
    sigma = edm.training_sigmas(u, median=0.5, spread=0.5, low=0.001, high=80.0)
    # The bounds' own u are 4e-6 and 1 - 3.9e-5, so quantiles are those of the uncut distribution: 0.5 (u / (1 - u)) ** 0.5.
    assert sigma[500].item() == pytest.approx(0.5, rel=1e-3)
    assert sigma[800].item() == pytest.approx(1.0, rel=1e-3)
    assert sigma.min() >= 0.001
    cut = edm.training_sigmas(u, median=0.5, spread=0.5, low=0.2, high=1.0)
    assert (cut.min().item(), cut.max().item()) == pytest.approx((0.2, 1.0), rel=0.01)


def test_bad_levels_are_refused_by_name():
    with pytest.raises(RefusedError, match="sampler_steps=0"):
        edm.sigma_steps("linear", 0, low=1.0, high=2.0)
    with pytest.raises(RefusedError, match="sampler_steps=0"):
        edm.flow_sigmas(0)
    with pytest.raises(RefusedError, match=r"0 < sigma_min < sigma_max, got 2\.0 and 1\.0"):
        edm.sigma_steps("linear", 3, low=2.0, high=1.0)
    with pytest.raises(RefusedError, match="Unknown sigma schedule 'cosine'"):
        edm.sigma_steps("cosine", 3, low=1.0, high=2.0)
    with pytest.raises(RefusedError, match=r"Unknown sampler 'hein'.*Did you mean 'heun'"):
        samplers.get_sampler("hein")
    with pytest.raises(RefusedError, match="at least one step"):
        samplers.euler(exact((0.0,)), (0.0,), start())
