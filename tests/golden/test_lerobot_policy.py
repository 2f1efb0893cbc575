"""A LeRobot checkpoint behind our interface gives the numbers that lerobot 0.6.1's own policy and processors give."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from lerobot_checkpoints import CAMERAS, write_lerobot_policy

from robolearn.core.errors import RefusedError
from robolearn.core.protocols import LatentPolicy
from robolearn.core.types import ENVIRONMENT_STATE, STATE, FeatureSpec, Spaces, is_image
from robolearn.policies.loading import load_policy, save_policy
from robolearn.refine import config_class, method
from robolearn.refine.base import weights_hash

NAMES = tuple(f"joint_{i}" for i in range(4))
SPACES = Spaces(
    robot="panda",
    observation={STATE: FeatureSpec((4,), names=NAMES), "observation.joint_position": FeatureSpec((7,))}
    | {ENVIRONMENT_STATE: FeatureSpec((3,))}
    | {key: FeatureSpec((40, 40, 3), "uint8") for key in CAMERAS},
    action=FeatureSpec((3,), names=("dx", "dy", "gripper")),
    action_low=(-1.0, -0.5, -1.0),
    action_high=(1.0, 0.5, 1.0),
    control_rate_hz=20.0,
)
DDIM = {"noise_scheduler_type": "DDIM", "num_inference_steps": 4}


def observation(rows=2, steps=2, seed=0):
    """Raw observations; the first element of the state is what the constant one was in the data, nearly."""
    rng = np.random.default_rng(seed)
    flat = {k: rng.normal(0, 0.3, (rows, steps, *f.shape)).astype(np.float32) for k, f in SPACES.observation.items()}
    return {k: np.uint8(rng.integers(0, 256, v.shape)) if is_image(k) else v for k, v in flat.items()}


def as_lerobot(seen):
    """The same as LeRobot's environments hand it over: float pictures in [0, 1], channels first."""
    tensors = {k: torch.from_numpy(v) for k, v in seen.items()}
    return {k: v.movedim(-1, -3).float() / 255 if is_image(k) else v for k, v in tensors.items()}


def noise(rows=2, horizon=8, seed=1):
    return np.random.default_rng(seed).standard_normal((rows, 1, horizon, 3), dtype=np.float32)


def chunk_of_lerobot(theirs, seen, latent):
    policy, before, after = theirs
    policy.reset()
    return after(policy.predict_action_chunk(before(as_lerobot(seen)), noise=torch.from_numpy(latent[:, 0]))).numpy()


@pytest.fixture(scope="module")
def state_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lerobot")
    return folder, write_lerobot_policy(folder, **DDIM)


@pytest.mark.parametrize(
    "settings",
    [
        {**DDIM, "images": True, "use_group_norm": True},
        {**DDIM, "images": True, "use_separate_rgb_encoder_per_camera": False, "crop_is_random": True},
        {**DDIM, "prediction_type": "sample", "n_obs_steps": 1},
        {**DDIM, "n_obs_steps": 3, "use_film_scale_modulation": False},
    ],
)
def test_chunks_equal_lerobots(settings, tmp_path):
    theirs = write_lerobot_policy(tmp_path, constant=False, **settings)
    ours = load_policy(tmp_path, spaces=SPACES)
    seen, latent = observation(steps=ours.obs_horizon), noise()
    expected = chunk_of_lerobot(theirs, seen, latent)
    got = ours.decode(seen, latent).actions
    assert np.ptp(expected) > 0.1
    assert got.shape == (2, 8 - ours.obs_horizon + 1, 3)  # LeRobot's 8 steps begin at the oldest observation
    np.testing.assert_allclose(got[:, :4], expected, atol=1e-5)  # it executes n_action_steps = 4 of them
    assert ours.encoder.condition_dim == ours.condition(ours.encoder.read(seen, ours.device)).shape[1]


def test_row_0_is_the_action_that_lerobot_executes_at_the_newest_observation(state_folder):
    folder, (policy, before, after) = state_folder
    ours, latent = load_policy(folder, spaces=SPACES), noise(rows=1)
    now = {k: v[:, 0] for k, v in observation(rows=1, steps=1).items()}
    policy.reset()
    expected = [after(policy.select_action(before(as_lerobot(now)), noise=torch.from_numpy(latent[:, 0]))) for _ in range(4)]
    history = {k: np.stack([v, v], axis=1) for k, v in now.items()}  # LeRobot fills its queue with the first observation
    got = ours.decode(history, latent).actions[0]
    np.testing.assert_allclose(got[:4], torch.cat(expected).numpy(), atol=1e-5, rtol=1e-5)


def test_a_constant_element_is_normalised_as_lerobot_does(state_folder):
    folder, (_, before, _) = state_folder
    ours, seen = load_policy(folder, spaces=SPACES), observation()
    low = before.steps[-1].stats[STATE]["min"][0]
    seen[STATE][..., 0] = float(low)
    condition = ours.condition(ours.encoder.read(seen, ours.device))
    names = ours.encoder.element_names()
    # (low - low) / eps * 2 - 1 = -1; per step four of the state, then three of the environment's state
    assert names == [*NAMES, *(f"{ENVIRONMENT_STATE}.{i}" for i in range(3))] * 2
    assert condition[:, [0, 7]].flatten().tolist() == [-1.0] * 4


def test_a_ddpm_checkpoint_is_sampled_by_ddim_and_that_is_said(tmp_path, caplog):
    write_lerobot_policy(tmp_path / "ddpm")
    theirs = write_lerobot_policy(tmp_path / "ddim", noise_scheduler_type="DDIM", num_inference_steps=10)
    ours, seen, latent = load_policy(tmp_path / "ddpm", spaces=SPACES), observation(), noise()
    assert "made for the DDPM scheduler" in caplog.text
    assert "DDIM in 10 steps" in caplog.text
    np.testing.assert_allclose(
        ours.decode(seen, latent).actions[:, :4], chunk_of_lerobot(theirs, seen, latent), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("name", ["dsrl", "best_of_n", "residual", "constant_latent"])
def test_every_method_wraps_it_and_loads_alone(name, state_folder, tmp_path):
    base = load_policy(state_folder[0], spaces=SPACES)
    assert isinstance(base, LatentPolicy)
    refined = method(name).refined_policy(base, config_class(name)())
    seen = observation()
    rngs = lambda: [np.random.default_rng(i) for i in range(2)]  # noqa: E731
    expected = base.predict(seen, rngs()).actions
    np.testing.assert_array_equal(refined.predict(seen, rngs()).actions, expected)
    save_policy(tmp_path, refined)
    loaded = load_policy(tmp_path, weights="raw", spaces=SPACES)
    np.testing.assert_array_equal(loaded.predict(seen, rngs()).actions, expected)
    assert weights_hash(loaded.base) == weights_hash(base)


def edit(folder, name, change):
    file = folder / name
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))


def step_of(data, name):
    return next(step for step in data["steps"] if step["registry_name"] == name)


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("config.json", lambda d: d.update(type="act"), "Unknown policy 'lerobot_act'.*lerobot_diffusion"),
        ("config.json", lambda d: d.update(unheard_of=1), "LeRobot refuses.*unheard_of"),
        ("config.json", lambda d: d["input_features"].pop(STATE), f"reads '{STATE}'"),
        ("config.json", lambda d: d.update(compile_model=True), "compiled"),
        ("policy_preprocessor.json", lambda d: d["steps"][0]["config"].update(rename_map={"a": "b"}), "'a': 'b'.*not supported"),
        ("policy_preprocessor.json", lambda d: d["steps"][1].update(registry_name="tokenizer"), "'tokenizer'.*not supported"),
        ("policy_preprocessor.json", lambda d: d["steps"].pop(), "one step 'normalizer_processor', it holds 0"),
        ("policy_postprocessor.json", lambda d: d["steps"][0].update(state_file="a.pkl"), "safetensors file beside it"),
        (
            "policy_postprocessor.json",
            lambda d: d["steps"][0].update(state_file="../a.safetensors"),
            "safetensors file beside it",
        ),
    ],
)
def test_folders_that_are_something_else_are_refused_by_name(file, change, words, state_folder, tmp_path):
    for source in state_folder[0].iterdir():
        (tmp_path / source.name).write_bytes(source.read_bytes())
    edit(tmp_path, file, change)
    with pytest.raises(RefusedError, match=f"(?s){words}"):
        load_policy(tmp_path, spaces=SPACES)


def test_missing_files_and_pickled_weights_are_refused_by_name(state_folder, tmp_path):
    for source in state_folder[0].iterdir():
        (tmp_path / source.name).write_bytes(source.read_bytes())
    statistics = next(tmp_path.glob("policy_preprocessor*normalizer*.safetensors"))
    for name in (statistics.name, "policy_postprocessor.json"):
        kept = (tmp_path / name).read_bytes()
        (tmp_path / name).unlink()
        with pytest.raises(RefusedError, match=f"{name} is missing"):
            load_policy(tmp_path, spaces=SPACES)
        (tmp_path / name).write_bytes(kept)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(RefusedError, match=r"lacks model\.safetensors.*pytorch_model\.bin"):
        load_policy(tmp_path, spaces=SPACES)


def test_spaces_that_are_not_the_checkpoints_are_refused_by_name(state_folder):
    folder, streams = state_folder[0], dict(SPACES.observation)
    offers = {
        f"reads '{STATE}' of shape \\(4,\\), but \\(5,\\)": replace(SPACES, observation=streams | {STATE: FeatureSpec((5,))}),
        f"'{ENVIRONMENT_STATE}' is not offered": replace(SPACES, observation={STATE: streams[STATE]}),
        r"action has shape \(3,\), but \(2,\)": replace(
            SPACES, action=FeatureSpec((2,)), action_low=(-1.0, -1.0), action_high=(1.0, 1.0)
        ),
        "name the environment": None,
    }
    for words, spaces in offers.items():
        with pytest.raises(RefusedError, match=words):
            load_policy(folder, spaces=spaces)
