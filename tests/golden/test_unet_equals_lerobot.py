"""Our UNet with lerobot 0.6.1's weights computes what lerobot's computes: the nets that the benchmark compares are the same."""

import warnings

import pytest
import torch

from robolearn.nets.unet import UnetConfig, UnetDenoiser

DIMS, LEVEL_WIDTH, OBS_DIM, ACTION_DIM, HORIZON = (32, 64, 128), 32, 5, 3, 8


def lerobot_unet(scaled):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from lerobot.configs.types import FeatureType, PolicyFeature
        from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
        from lerobot.policies.diffusion.modeling_diffusion import DiffusionConditionalUnet1d
    config = DiffusionConfig(
        horizon=HORIZON,
        n_action_steps=4,
        down_dims=DIMS,
        diffusion_step_embed_dim=LEVEL_WIDTH,
        use_film_scale_modulation=scaled,
        drop_n_last_frames=3,
        input_features={},
        output_features={"action": PolicyFeature(FeatureType.ACTION, (ACTION_DIM,))},
    )
    return DiffusionConditionalUnet1d(config, global_cond_dim=OBS_DIM)


def copy_conv(ours, theirs):
    """Copy a convolution; ours are two-dimensional with a height of one."""
    with torch.no_grad():
        ours.weight.copy_(theirs.weight.unsqueeze(2))
        ours.bias.copy_(theirs.bias)


def copy_block(ours, theirs, films):
    """Copy one residual block and note its modulation layer."""
    for mine, yours in ((ours.first, theirs.conv1.block), (ours.second, theirs.conv2.block)):
        copy_conv(mine.conv, yours[0])
        mine.norm.load_state_dict(yours[1].state_dict())
    if not isinstance(ours.residual, torch.nn.Identity):
        copy_conv(ours.residual, theirs.residual_conv)
    films.append(theirs.cond_encoder[1])


def copy_weights(ours, theirs):
    films = []
    stages = [*zip(ours.down, theirs.down_modules, strict=True), (ours.middle, theirs.mid_modules)]
    stages += zip(ours.up, theirs.up_modules, strict=True)
    for mine, yours in stages:
        for index in range(2):
            copy_block(mine[index], yours[index], films)
    for mine, yours in zip(ours.downsample, theirs.down_modules, strict=False):
        copy_conv(mine, yours[2])
    for mine, yours in zip(ours.upsample, theirs.up_modules, strict=True):
        copy_conv(mine, yours[2])
    copy_conv(ours.last.conv, theirs.final_conv[0].block[0])
    ours.last.norm.load_state_dict(theirs.final_conv[0].block[1].state_dict())
    copy_conv(ours.out, theirs.final_conv[1])
    for index in (0, 2):
        ours.level_embedding.mlp[index].load_state_dict(theirs.diffusion_step_encoder[index + 1].state_dict())
    with torch.no_grad():
        # lerobot concatenates [level features, condition] before each block's layer; we add the two halves' products.
        ours.film_level.weight.copy_(torch.cat([film.weight[:, :LEVEL_WIDTH] for film in films]))
        ours.film_condition.weight.copy_(torch.cat([film.weight[:, LEVEL_WIDTH:] for film in films]))
        ours.film_level.bias.copy_(torch.cat([film.bias for film in films]))


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("rows", [1, 20])
def test_same_weights_same_output(scaled, rows):
    torch.manual_seed(0)
    theirs = lerobot_unet(scaled)
    config = UnetConfig(down_dims=DIMS, level_width=LEVEL_WIDTH, modulate_scale=scaled)
    ours = UnetDenoiser(config, pred_horizon=HORIZON, action_dim=ACTION_DIM, condition_dim=OBS_DIM)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    copy_weights(ours, theirs)
    noisy, level, condition = torch.randn(rows, HORIZON, ACTION_DIM), torch.randint(100, (rows,)), torch.randn(rows, OBS_DIM)
    with torch.no_grad():
        expected = theirs(noisy, level, global_cond=condition)
        torch.testing.assert_close(ours(noisy, level, condition), expected, rtol=1e-4, atol=1e-5)
