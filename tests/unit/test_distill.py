"""Consistency distillation: its fixed point is the teacher's sampler, and a student comes to agree with its teacher."""

import numpy as np
import pytest
import torch

from robolearn.commands.experts import expert_usage, heat_map
from robolearn.core.errors import RefusedError
from robolearn.core.types import ACTION, STATE, FeatureSpec, Spaces
from robolearn.data.normalizer import Normalizer
from robolearn.diffusion import edm, samplers
from robolearn.diffusion.consistency import consistency_error
from robolearn.policies import config_class, make_policy
from robolearn.policies.edm_transformer import EdmConfig
from robolearn.policies.generative import student_config
from robolearn.policies.loading import trained_delay

SPACES = Spaces("r", {STATE: FeatureSpec((1,))}, FeatureSpec((1,)), (-1.0,), (1.0,), 10.0)
SIGMAS = edm.sigma_steps("exponential", 6, low=0.05, high=5.0)
MEAN, DEVIATION = 0.3, 0.2


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def exact(noisy, index):
    """The best denoiser of data N(MEAN, DEVIATION^2)."""
    variance = torch.tensor(SIGMAS, dtype=noisy.dtype)[index][:, None, None].square()
    return MEAN + DEVIATION**2 / (DEVIATION**2 + variance) * (noisy - MEAN)


def end_of_the_path(noisy, index):
    """Where the teacher's Euler steps from level ``index`` on end, row by row."""
    rows = []
    for row, start in zip(noisy, index.tolist(), strict=True):
        x = row[None]
        for i in range(start, len(SIGMAS) - 1):
            denoised = exact(x, torch.tensor([i]))
            x = denoised + SIGMAS[i + 1] / SIGMAS[i] * (x - denoised)
        rows.append(x[0])
    return torch.stack(rows)


def test_the_ends_of_the_teachers_paths_have_no_error_and_the_teacher_itself_has():
    clean = MEAN + DEVIATION * torch.randn(64, 3, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def error(student):
        return consistency_error(student, exact, SIGMAS, clean, torch.Generator().manual_seed(2)).max().item()

    assert error(end_of_the_path) < 1e-20
    assert error(exact) > 1e-3
    # And the perfect student's one step is the teacher's six.
    noise = torch.randn(4, 1, 3, 1, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    six = samplers.euler(lambda x, i: exact(x, torch.full((len(x),), i)), SIGMAS, noise)
    one = samplers.one_step(lambda x, i: end_of_the_path(x, torch.full((len(x),), i)), SIGMAS, noise)
    torch.testing.assert_close(one, six)


def make(name, config):
    return make_policy(name, config, SPACES, Normalizer({STATE: 1, ACTION: 1}, "identity"))


@pytest.mark.parametrize("name", ["flow", "beso"])
def test_a_student_starts_as_its_teacher_and_learns_its_samples(name):
    torch.manual_seed(0)
    teacher = make(name, config_class(name)(observation_keys=(STATE,), pred_horizon=4))
    rng = torch.Generator().manual_seed(0)

    def fit(policy, updates):
        optimizer = torch.optim.Adam([p for p in policy.parameters() if p.requires_grad], 1e-3)
        for _ in range(updates):
            state = torch.rand(64, 2, 1, generator=rng) * 2 - 1
            side = torch.where(torch.rand(64, 1, 1, generator=rng) < 0.5, -0.6, 0.6)
            action = (side + 0.3 * state[:, -1:]).expand(64, 4, 1)
            batch = {STATE: state, ACTION: action, "action_is_pad": torch.zeros(64, 4, dtype=torch.bool)}
            loss, _ = policy.loss(batch, rng)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    fit(teacher, 120)
    student = make(name, student_config(teacher.config))
    student.learn_from(teacher)
    assert student.latent_shape == teacher.latent_shape
    assert set(student.state_dict()) == set(teacher.state_dict()), "the teacher is no part of the student's weights"
    seen = {STATE: np.zeros((200, 2, 1), np.float32)}
    latent = np.random.default_rng(0).standard_normal((200, *teacher.latent_shape)).astype(np.float32)

    def distance():
        return np.abs(student.decode(seen, latent).actions - teacher.decode(seen, latent).actions).mean()

    before = distance()
    fit(student, 150)
    assert distance() < 0.6 * before


def test_only_a_fitting_student_learns_from_a_teacher():
    config = config_class("flow")(observation_keys=(STATE,))
    with pytest.raises(RefusedError, match="must be configured as student_config"):
        make("flow", config).learn_from(make("flow", config))


@pytest.mark.parametrize("name", ["flow", "beso"])
def test_a_student_does_not_claim_what_only_its_teacher_was_trained_for(name):
    # Distillation gives no action clean, but the student kept its teacher's max_delay and was given committed actions.
    config = config_class(name)(observation_keys=(STATE,), pred_horizon=4, max_delay=2)
    teacher, student = make(name, config), make(name, student_config(config))
    student.learn_from(teacher)
    assert (trained_delay(teacher), trained_delay(student)) == (2, 0)
    seen, plan = {STATE: np.zeros((1, 2, 1), np.float32)}, np.zeros((1, 3, 1), np.float32)
    teacher.continue_chunk(seen, np.random.default_rng(0), plan, delay=2, method="trained")
    with pytest.raises(RefusedError, match="one-step student was not trained to continue a chunk"):
        student.continue_chunk(seen, np.random.default_rng(0), plan, delay=2, method="trained")
    student.continue_chunk(seen, np.random.default_rng(0), plan, delay=2, method="guided")


def test_expert_usage_names_collapsed_experts_and_refuses_dense_policies():
    torch.manual_seed(0)
    policy = make("moe_diffusion", config_class("moe_diffusion")(observation_keys=(STATE,)))
    usage = expert_usage(policy)
    layers = len(policy.denoiser.net.blocks)
    assert usage.shares.shape == (layers, 64, 4)
    np.testing.assert_allclose(usage.shares.sum(axis=-1), 1.0, rtol=1e-5)
    with torch.no_grad():
        policy.denoiser.net.routers[1].net[-1].bias.copy_(torch.tensor([9.0, -9.0, 9.0, -9.0]))
    assert {(1, 1), (1, 3)} <= set(expert_usage(policy).collapsed())
    with pytest.raises(RefusedError, match="no experts to choose from"):
        expert_usage(make("beso", config_class("beso")(observation_keys=(STATE,))))


def test_labels_of_the_experts_heat_map_do_not_lie_on_one_another():
    # Between sigma 0.1 and 5 every minor tick of the logarithmic axis was labelled, one label over the next.
    levels = EdmConfig(sigma_min=0.1, sigma_max=5.0)
    usage = expert_usage(make("moe_diffusion", config_class("moe_diffusion")(observation_keys=(STATE,), edm=levels)))
    figure = heat_map(usage)
    for axes in figure.axes[:-1]:
        assert [label.get_text() for label in axes.get_xticklabels()] == ["0.1", "0.37", "1.4", "5"]
        assert not axes.get_xticklabels(minor=True)
