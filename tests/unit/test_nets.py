"""Networks: identities with torch's own layers, small cases worked by hand, and refusals."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from robolearn.core.errors import RefusedError
from robolearn.core.types import STATE, FeatureSpec
from robolearn.nets.blocks import attention, sinusoid, unit_norm
from robolearn.nets.conv import Conv1d, Upsample1d
from robolearn.nets.denoisers import DenoiserConfig, make_denoiser
from robolearn.nets.encoders import ObservationEncoder
from robolearn.nets.images import ImageConfig, ImageEncoder, crop, expected_positions
from robolearn.nets.losses import chunk_mean
from robolearn.nets.mlp import MlpConfig
from robolearn.nets.transformer import TransformerConfig
from robolearn.nets.unet import UnetConfig
from robolearn.refine.base import adam, descend
from robolearn.train.config import TrainConfig
from robolearn.train.update import Updater

SMALL = {
    "mlp": DenoiserConfig("mlp", mlp=MlpConfig(width=32, blocks=2, level_width=16)),
    "unet": DenoiserConfig("unet", unet=UnetConfig(down_dims=(16, 32, 64), level_width=16)),
    "transformer": DenoiserConfig("transformer", transformer=TransformerConfig(width=32, layers=2, level_width=16)),
}
CAUSAL = DenoiserConfig("transformer", transformer=TransformerConfig(width=32, layers=2, level_width=16, causal=True))

every_denoiser = pytest.mark.parametrize("kind", SMALL)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def denoiser(config, seed=0):
    """A denoiser of 8 steps of 5 actions; every parameter is random, so that zero initialisation hides nothing."""
    torch.manual_seed(seed)
    net = make_denoiser(config, pred_horizon=8, action_dim=5, condition_dim=6)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2)
    return net


def inputs(rows, seed=1):
    rng = torch.Generator().manual_seed(seed)
    noisy = torch.randn((rows, 8, 5), generator=rng)
    return noisy, torch.randint(100, (rows,), generator=rng), torch.randn((rows, 6), generator=rng)


def test_sinusoid_worked_by_hand():
    # Width 4: frequencies 1 and 10000^-1. Position 2: sin 2, sin 0.0002, cos 2, cos 0.0002.
    expected = torch.tensor([[math.sin(2.0), 2e-4, math.cos(2.0), 1.0]])
    torch.testing.assert_close(sinusoid(torch.tensor([2]), 4), expected)


@every_denoiser
def test_splitting_the_work_for_a_sampler_changes_nothing(kind):
    net = denoiser(SMALL[kind])
    noisy, _, condition = inputs(3)
    levels = net.embed_levels(torch.tensor([90, 40, 0]))
    context = net.embed_condition(condition)
    for index, level in enumerate((90, 40, 0)):
        whole = net(noisy, torch.full((3,), level), condition)
        assert whole.shape == (3, 8, 5)
        torch.testing.assert_close(net.denoise(noisy, levels[index : index + 1], context), whole, rtol=1e-4, atol=1e-5)


@every_denoiser
def test_level_condition_and_chunk_matter_and_rows_do_not_mix(kind):
    net = denoiser(SMALL[kind])
    noisy, level, condition = inputs(3)
    base = net(noisy, level, condition)
    changed = torch.tensor([False, True, False])
    for other in (
        net(noisy + changed[:, None, None], level, condition),
        net(noisy, level + changed * 50, condition),
        net(noisy, level, condition + changed[:, None]),
    ):
        assert not torch.allclose(other[1], base[1], atol=1e-3)
        torch.testing.assert_close(other[~changed], base[~changed], rtol=1e-4, atol=1e-5)


@every_denoiser
def test_batch_of_one_equals_its_row_in_a_large_batch(kind):
    # On a CPU small batches take another code path through the convolutions.
    net = denoiser(SMALL[kind])
    noisy, level, condition = inputs(40)
    whole = net(noisy, level, condition)
    torch.testing.assert_close(net(noisy[7:8], level[7:8], condition[7:8]), whole[7:8], rtol=1e-4, atol=1e-4)


@every_denoiser
def test_denoisers_learn_under_bf16_autocast(kind):
    net = denoiser(SMALL[kind])
    noisy, level, condition = inputs(32)
    target = torch.tanh(noisy + condition[:, None, :5])
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    losses = []
    for _ in range(60):
        with torch.autocast("cpu", torch.bfloat16):
            output = net(noisy, level, condition)
        loss = (output.float() - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_a_causal_transformer_sees_no_later_step():
    noisy, level, condition = inputs(2)
    later = noisy.clone()
    later[:, 5:] += 1.0
    for config, is_causal in ((CAUSAL, True), (SMALL["transformer"], False)):
        net = denoiser(config)
        before, after = net(noisy, level, condition), net(later, level, condition)
        assert torch.allclose(before[:, :5], after[:, :5], atol=1e-5) == is_causal
        assert not torch.allclose(before[:, 5:], after[:, 5:], atol=1e-3)


def test_a_new_transformer_is_the_identity_inside():
    # Zero-initialised gates: layers add nothing, so the output is out(norm(action_in(x) + position)), whatever the condition.
    net = make_denoiser(SMALL["transformer"], pred_horizon=8, action_dim=5, condition_dim=6)
    noisy, level, condition = inputs(2)
    expected = net.out(net.norm(net.action_in(noisy) + net.position))
    torch.testing.assert_close(net(noisy, level, condition), expected)


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(5, 1, 2), (3, 2, 1), (1, 1, 0)])
@pytest.mark.parametrize("rows", [1, 2, 40])
@pytest.mark.parametrize("channels", [8, 192])
def test_convolution_equals_torchs(kernel, stride, padding, rows, channels):
    torch.manual_seed(0)
    conv = Conv1d(channels, channels, kernel, stride=stride, padding=padding)
    x = torch.randn(rows, 8, channels).transpose(1, 2)
    expected = functional.conv1d(x, conv.weight[:, :, 0], conv.bias, stride=stride, padding=padding)
    torch.testing.assert_close(conv(x.unsqueeze(2)).squeeze(2), expected, rtol=1e-4, atol=1e-5)
    with torch.no_grad():  # another code path on a CPU
        torch.testing.assert_close(conv(x.unsqueeze(2)).squeeze(2), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("channels", [8, 192])
def test_upsampling_equals_torchs(channels):
    torch.manual_seed(0)
    layer = Upsample1d(channels)
    for rows, steps in ((1, 4), (2, 8), (40, 4)):
        x = torch.randn(rows, channels, steps)
        expected = functional.conv_transpose1d(x, layer.weight[:, :, 0], layer.bias, stride=2, padding=1)
        torch.testing.assert_close(layer(x.unsqueeze(2)).squeeze(2), expected, rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            torch.testing.assert_close(layer(x.unsqueeze(2)).squeeze(2), expected, rtol=1e-4, atol=1e-5)


def test_upsampling_worked_by_hand():
    # One channel, weight (1, 10, 100, 1000), input (1, 2): out[2i + j - 1] += x[i] w[j]:
    # out0 = x0 w1 = 10; out1 = x0 w2 + x1 w0 = 100 + 2; out2 = x0 w3 + x1 w1 = 1000 + 20; out3 = x1 w2 = 200.
    single = Upsample1d(1)
    with torch.no_grad():
        single.weight.copy_(torch.tensor([1.0, 10.0, 100.0, 1000.0]).view(1, 1, 1, 4))
        single.bias.zero_()
    assert single(torch.tensor([[[[1.0, 2.0]]]])).tolist() == [[[[10.0, 102.0, 1020.0, 200.0]]]]


def change_in_place(layer):
    with torch.no_grad():
        layer.weight.mul_(2.0)


def change_by_optimizer(layer):
    layer(torch.ones(1, 192, 1, 8)).sum().backward()
    torch.optim.SGD(layer.parameters(), 0.1).step()


class Sum(nn.Module):
    """A policy whose loss is the sum of its layer's output."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, batch, rng):
        return self.layer(batch["x"]).sum(), {}


def change_by_training(layer):
    # The fused AdamW that training uses did not count as a change, and the weights from before it went on acting.
    policy = Sum(layer)
    updater = Updater(policy, policy, TrainConfig(), torch.device("cpu"))
    updater.step({"x": torch.ones(1, 192, 1, 8)}, torch.Generator(), 0.1)


def change_by_refining(layer):
    # Adam's fused step, which refinement uses, did not count as one either.
    loss = layer(torch.ones(1, 192, 1, 8)).sum()
    descend(loss, layer, adam(layer.parameters(), 0.1), 1.0)


def change_by_loading(layer):
    layer.load_state_dict({name: 3.0 * tensor for name, tensor in layer.state_dict().items()})


def change_by_replacing(layer):
    layer.weight = nn.Parameter(layer.weight.detach() + 1.0)


CHANGES = [
    change_in_place,
    change_by_optimizer,
    change_by_training,
    change_by_refining,
    change_by_loading,
    change_by_replacing,
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("make", [lambda: Conv1d(192, 192, 5, padding=2), lambda: Upsample1d(192)])
def test_acting_uses_the_weights_as_they_are_now(make, change):
    # The re-arranged copy of the weights that acting uses must never outlive them.
    torch.manual_seed(0)
    layer, x = make(), torch.randn(1, 192, 1, 8)
    with torch.no_grad():
        before = layer(x)
        twin = copy.deepcopy(layer)
    change(layer)
    with torch.no_grad():
        after = layer(x)
        torch.testing.assert_close(twin(x), before)
    assert not torch.allclose(after, before, atol=1e-3)
    torch.testing.assert_close(after, layer(x).detach(), rtol=1e-4, atol=1e-3)


def test_expected_positions_worked_by_hand():
    # A 2 x 3 map with all weight on the top right pixel: x = +1, y = -1. A flat map: the centre.
    peak, flat = torch.full((2, 3), -100.0), torch.zeros(2, 3)
    peak[0, 2] = 100.0
    positions = expected_positions(torch.stack((peak, flat))[None])
    torch.testing.assert_close(positions, torch.tensor([[1.0, 0.0, -1.0, 0.0]]))
    # Two pixels with weights 3/4 and 1/4 at x = -1 and +1: x = -0.5.
    two = torch.tensor([[[[math.log(3.0), 0.0]]]])
    torch.testing.assert_close(expected_positions(two)[0, 0], torch.tensor(-0.5))


def test_crops_are_windows_and_shared_over_time():
    rows, steps, height, width = 4, 2, 10, 20
    place = torch.arange(height * width).view(1, 1, height, width, 1) + torch.arange(rows).view(rows, 1, 1, 1, 1) * 1000
    images = place.expand(rows, steps, height, width, 3)
    centre = crop(images, 0.5, None)
    assert centre.shape == (rows, steps, 5, 10, 3)
    # The centre window of 5 x 10 starts at row (10 - 5) // 2 = 2, column (20 - 10) // 2 = 5: value 2 * 20 + 5 = 45.
    assert centre[0, 0, 0, 0, 0] == 45
    drawn = crop(images, 0.5, torch.Generator().manual_seed(0))
    assert drawn.shape == centre.shape
    corner = drawn[:, :, 0, 0, 0]
    assert torch.equal(corner[:, 0], corner[:, 1]), "both steps of a row share the window"
    assert len({int(c) % 1000 for c in corner[:, 0]}) > 1, "rows differ"
    window = torch.arange(5)[:, None] * width + torch.arange(10)
    for row in range(rows):
        assert torch.equal(drawn[row, 0, :, :, 1], corner[row, 0] + window)


def test_every_crop_position_is_reached():
    images = torch.arange(4).view(1, 1, 4, 1, 1).expand(400, 1, 4, 4, 3)
    drawn = crop(images, 0.5, torch.Generator().manual_seed(0))[:, 0, 0, 0, 0]
    counts = torch.bincount(drawn, minlength=3)
    assert counts.numel() == 3
    assert counts.min() > 90, "three starts, 400 draws: 133 each on average, deviation 9.4"


def test_image_encoder_has_no_batch_statistics():
    torch.manual_seed(0)
    encoder = ImageEncoder(ImageConfig(keypoints=4))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in encoder.modules())
    norms = [m for m in encoder.modules() if isinstance(m, nn.GroupNorm)]
    assert len(norms) == 20
    assert all(m.num_groups == m.num_channels // 16 for m in norms)
    images = torch.randint(0, 256, (3, 48, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    features = encoder(images)
    assert features.shape == (3, 8)
    assert features.abs().max() <= 1.0
    torch.testing.assert_close(encoder(images[1:2]), features[1:2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shared", [False, True])
def test_observation_encoder_joins_state_and_cameras(shared):
    cameras = ["observation.images.front", "observation.images.wrist"]
    features = {STATE: FeatureSpec((3,))} | {key: FeatureSpec((40, 40, 3), "uint8") for key in cameras}
    torch.manual_seed(0)
    encoder = ObservationEncoder(features, 2, image=ImageConfig(keypoints=4, shared=shared))
    assert encoder.condition_dim == 2 * (3 + 2 * 8)
    assert len(encoder.images) == (1 if shared else 2)
    rng = torch.Generator().manual_seed(0)
    seen = {key: torch.randint(0, 256, (2, 2, 40, 40, 3), dtype=torch.uint8, generator=rng) for key in cameras}
    seen[STATE] = torch.randn(2, 2, 3, generator=rng)
    condition = encoder(seen, None)
    assert condition.shape == (2, encoder.condition_dim)
    torch.testing.assert_close(condition[:, :6], seen[STATE].flatten(1))
    assert torch.equal(condition, encoder(seen, None)), "centre crops draw nothing"
    assert not torch.equal(condition, encoder(seen, torch.Generator().manual_seed(1)))


def test_chunk_mean_leaves_padding_out():
    # Two steps of two actions; step errors 1 and 3; the second step is padding: mean 1, else (1 + 3) / 2 = 2.
    error = torch.tensor([[[1.0, 1.0], [2.0, 4.0]]])
    assert chunk_mean(error, None) == 2.0
    assert chunk_mean(error, torch.tensor([[False, True]])) == 1.0
    assert chunk_mean(error, torch.tensor([[True, True]])) == 0.0


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: MlpConfig(width=0), "width and blocks"),
        (lambda: MlpConfig(level_width=7), "level_width even"),
        (lambda: UnetConfig(down_dims=(64, 100)), "multiple of groups=8"),
        (lambda: UnetConfig(kernel_size=4), "kernel_size must be odd"),
        (lambda: TransformerConfig(width=30, heads=4), "heads must divide width"),
        (lambda: ImageConfig(crop_fraction=0.0), r"crop_fraction must lie in \(0, 1\]"),
        (lambda: DenoiserConfig("unett"), "Unknown denoiser kind 'unett'.*Did you mean 'unet'"),
        (
            lambda: make_denoiser(SMALL["unet"], pred_horizon=6, action_dim=5, condition_dim=6),
            "pred_horizon=6 must be a multiple of 4",
        ),
    ],
)
def test_impossible_sizes_are_refused(make, words):
    with pytest.raises(RefusedError, match=words):
        make()


@pytest.mark.parametrize("size", [1e-6, 1e-3, 1.0, 1e3])
def test_unit_norm_is_torchs_root_mean_square_norm_but_for_a_factor(size):
    x = size * torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(4.0 * unit_norm(x), torch.nn.functional.rms_norm(x, (16,)))


@pytest.mark.parametrize("masked", [False, True])
def test_attention_of_few_tokens_is_torchs_own(masked):
    rng = torch.Generator().manual_seed(0)
    query, key, value = (30.0 * torch.randn(2, 3, t, 8, generator=rng) for t in (4, 6, 6))  # scores far beyond exp's range
    bias = torch.zeros(4, 6).masked_fill(torch.ones(4, 6).triu(3) > 0, -torch.inf) if masked else None
    wanted = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    torch.testing.assert_close(attention(query, key, value, bias), wanted)
