"""Small LeRobot diffusion policies with random weights, written by lerobot itself."""

import warnings

import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from lerobot.configs.types import FeatureType, PolicyFeature
    from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
    from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy
    from lerobot.processor.factory import make_default_pre_post_processors

CAMERAS = ("observation.images.front", "observation.images.wrist")


def write_lerobot_policy(folder, *, images=False, constant=True, state=4, environment=3, action=3, **settings):
    """Save a policy and its processors as lerobot does; return the three.

    ``constant`` lets one element of the state never move in the data, whose range LeRobot's normalisation divides by.
    """
    torch.manual_seed(0)
    inputs = {
        "observation.state": PolicyFeature(FeatureType.STATE, (state,)),
        "observation.environment_state": PolicyFeature(FeatureType.ENV, (environment,)),
    }
    if images:
        inputs |= {key: PolicyFeature(FeatureType.VISUAL, (3, 40, 40)) for key in CAMERAS}
    outputs = {"action": PolicyFeature(FeatureType.ACTION, (action,))}
    net = {"horizon": 8, "n_action_steps": 4, "down_dims": (16, 32), "diffusion_step_embed_dim": 16, "n_groups": 4}
    net |= {"crop_shape": (36, 36), "spatial_softmax_num_keypoints": 4, "pretrained_backbone_weights": None}
    config = DiffusionConfig(input_features=inputs, output_features=outputs, device="cpu", **(net | settings))
    statistics = {}
    for key, feature in (inputs | outputs).items():
        shape = (3, 1, 1) if feature.type is FeatureType.VISUAL else feature.shape
        low, spread = torch.rand(shape) - 0.5, torch.rand(shape) + 0.5
        if constant and key == "observation.state":
            spread[0] = 0.0
        statistics[key] = {"min": low, "max": low + spread, "mean": low + spread / 2, "std": spread / 3}
    policy = DiffusionPolicy(config).eval()
    before, after = make_default_pre_post_processors(config, statistics)
    policy.save_pretrained(folder)
    before.save_pretrained(folder)
    after.save_pretrained(folder)
    return policy, before, after
