"""Samplers against diffusers' step by step, and against the closed form that Gaussian data allow."""

import math

import pytest
import torch

from robolearn.core.errors import RefusedError
from robolearn.diffusion.sampling import ddim_steps, ddpm_steps, noise_draws, sample, step_levels
from robolearn.diffusion.schedules import alpha_bars

ALPHA_BARS = alpha_bars("squaredcos_cap_v2", levels=100)
PREDICTIONS = ("epsilon", "sample", "v_prediction")
MEAN, DEVIATION = 0.3, 0.2


def diffusers_scheduler(kind, prediction, steps, spacing, clip):
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    scheduler = {"ddim": DDIMScheduler, "ddpm": DDPMScheduler}[kind](
        num_train_timesteps=100,
        beta_schedule="squaredcos_cap_v2",
        prediction_type=prediction,
        clip_sample=clip is not None,
        clip_sample_range=clip or 1.0,
        timestep_spacing=spacing,
    )
    scheduler.set_timesteps(steps)
    return scheduler


def network(noisy, level):
    """Any smooth function of the noisy chunk and the level that saturates the clip now and then."""
    return torch.tanh(noisy * (1.0 + level / 50.0)) + 0.3 * noisy.flip(-1)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("clip", [1.0, None])
@pytest.mark.parametrize(("steps", "spacing"), [(10, "leading"), (7, "leading"), (10, "trailing"), (100, "leading")])
def test_ddim_equals_diffusers_step_by_step(prediction, clip, steps, spacing):
    scheduler = diffusers_scheduler("ddim", prediction, steps, spacing, clip)
    visited = step_levels(levels=100, steps=steps, spacing=spacing)
    assert visited == scheduler.timesteps.tolist()
    start = torch.randn((2, 1, 4, 3), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    theirs = start[:, 0]
    for level in scheduler.timesteps:
        theirs = scheduler.step(network(theirs, int(level)), level, theirs).prev_sample
    table = ddim_steps(ALPHA_BARS, visited, prediction)
    ours = sample(lambda noisy, i: network(noisy, table[i].level), table, start, clip=clip)
    # diffusers keeps its coefficients in float32; near abar = 0 they are divided by 1e-3.
    torch.testing.assert_close(ours, theirs, rtol=2e-4, atol=2e-4)
    assert noise_draws(table) == 1


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("steps", [100, 20])
def test_ddpm_equals_diffusers_with_the_same_noise(prediction, steps, monkeypatch):
    import diffusers.schedulers.scheduling_ddpm as theirs_module

    scheduler = diffusers_scheduler("ddpm", prediction, steps, "leading", 1.0)
    table = ddpm_steps(ALPHA_BARS, step_levels(levels=100, steps=steps), prediction)
    assert noise_draws(table) == steps, "a start and fresh noise for each step but the last"
    latent = torch.randn((2, steps, 4, 3), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    theirs = latent[:, 0]
    for index, level in enumerate(scheduler.timesteps):
        fresh = latent[:, min(index + 1, steps - 1)]
        monkeypatch.setattr(theirs_module, "randn_tensor", lambda *args, fresh=fresh, **kwargs: fresh)
        theirs = scheduler.step(network(theirs, int(level)), level, theirs).prev_sample
    ours = sample(lambda noisy, i: network(noisy, table[i].level), table, latent, clip=1.0)
    torch.testing.assert_close(ours, theirs, rtol=2e-4, atol=2e-4)


def exact_output(prediction, table):
    """The best possible network for data N(MEAN, DEVIATION^2): E[clean | noisy] of two jointly Gaussian numbers."""

    def denoise(noisy, index):
        alpha_bar = ALPHA_BARS[table[index].level].item()
        variance = alpha_bar * DEVIATION**2 + 1.0 - alpha_bar
        off = noisy - math.sqrt(alpha_bar) * MEAN
        denoised = MEAN + math.sqrt(alpha_bar) * DEVIATION**2 / variance * off
        noise = math.sqrt(1.0 - alpha_bar) / variance * off
        velocity = math.sqrt(alpha_bar) * noise - math.sqrt(1.0 - alpha_bar) * denoised
        return {"epsilon": noise, "sample": denoised, "v_prediction": velocity}[prediction]

    return denoise


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("steps", [1, 5, 10, 100])
def test_ddim_on_gaussian_data_is_the_closed_form(prediction, steps):
    # With the exact network every DDIM step scales the deviation d = x - sqrt(abar) MEAN by
    #   (sqrt(abar abar') s^2 + sqrt((1 - abar)(1 - abar'))) / (abar s^2 + 1 - abar),
    # so the chunk is MEAN + d_start * (product of these factors), abar' = 1 after the last step.
    table = ddim_steps(ALPHA_BARS, step_levels(levels=100, steps=steps), prediction)
    bars = [ALPHA_BARS[step.level].item() for step in table]
    factor = 1.0
    for bar, following in zip(bars, [*bars[1:], 1.0], strict=True):
        variance = bar * DEVIATION**2 + 1.0 - bar
        factor *= (math.sqrt(bar * following) * DEVIATION**2 + math.sqrt((1 - bar) * (1 - following))) / variance
    start = torch.randn((5, 1, 2, 2), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = MEAN + (start[:, 0] - math.sqrt(bars[0]) * MEAN) * factor
    ours = sample(exact_output(prediction, table), table, start, clip=None)
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)
    if steps == 100:
        # And small steps follow the probability flow, which maps N(0, 1) onto the data: factor -> 0.2; 100 steps give 0.193.
        assert factor == pytest.approx(DEVIATION, rel=0.04)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_ddpm_on_gaussian_data_has_its_mean_and_spread(prediction):
    table = ddpm_steps(ALPHA_BARS, step_levels(levels=100, steps=100), prediction)
    latent = torch.randn((20_000, 100, 1, 1), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    chunk = sample(exact_output(prediction, table), table, latent, clip=None)
    # Each step is affine: d' = (gain) d + s z with d the deviation from sqrt(abar) MEAN, so variances follow a recursion by
    # hand. The smaller of the two fixed variances is exact for data without spread, so some spread is lost: 0.185 of 0.2.
    bars = [ALPHA_BARS[step.level].item() for step in table]
    variance = 1.0
    for bar, following in zip(bars, [*bars[1:], 1.0], strict=True):
        alpha, clean_gain = bar / following, math.sqrt(bar) * DEVIATION**2 / (bar * DEVIATION**2 + 1.0 - bar)
        gain = (math.sqrt(following) * (1 - alpha) * clean_gain + math.sqrt(alpha) * (1 - following)) / (1 - bar)
        variance = gain**2 * variance + (1 - following) / (1 - bar) * (1 - alpha)
    assert math.sqrt(variance) == pytest.approx(0.185, abs=0.001)
    # Standard errors of 20,000 samples: mean 0.0013, deviation 0.0009.
    assert chunk.mean().item() == pytest.approx(MEAN, abs=0.005)
    assert chunk.std().item() == pytest.approx(math.sqrt(variance), abs=0.004)


def test_the_last_step_returns_the_clean_estimate():
    for make in (ddim_steps, ddpm_steps):
        last = make(ALPHA_BARS, [50, 0], "epsilon")[-1]
        assert last[3:] == pytest.approx((1.0, 0.0, 0.0, 0.0))


def test_steps_beyond_the_levels_are_refused():
    for steps in (0, 101):
        with pytest.raises(RefusedError, match=rf"sampler_steps={steps} must lie in \[1, 100\]"):
            step_levels(levels=100, steps=steps)
