"""The same episodes in an EpisodeStore and, through lerobot's own writer, in a LeRobotDataset."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

from pathlib import Path

from robolearn.core.types import ACTION, is_image
from robolearn.data.store import EpisodeStore


def write_lerobot(store: EpisodeStore, root: Path) -> None:
    """Write the state streams and actions of every episode, frame by frame."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    spaces = store.header.spaces
    features = {key: f for key, f in {**spaces.observation, ACTION: spaces.action}.items() if not is_image(key)}
    described = {key: {"dtype": "float32", "shape": f.shape, "names": list(f.names) or None} for key, f in features.items()}
    dataset = LeRobotDataset.create(
        "local/sample", fps=int(spaces.control_rate_hz), features=described, root=root, use_videos=False
    )
    for index in range(len(store)):
        episode = store.read(index, list(features))
        for step in range(len(episode)):
            dataset.add_frame({key: episode.data[key][step] for key in features} | {"task": store.header.task})
        dataset.save_episode()
    dataset.finalize()


def open_lerobot(root: Path, store: EpisodeStore, *, obs_horizon: int, pred_horizon: int):
    """Open it with the delta timestamps of the same windows: observations 1-o..0, actions 0..h-1."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    rate = store.header.spaces.control_rate_hz
    deltas = {key: [i / rate for i in range(1 - obs_horizon, 1)] for key in store.header.spaces.observation if not is_image(key)}
    deltas[ACTION] = [i / rate for i in range(pred_horizon)]
    return LeRobotDataset("local/sample", root=root, delta_timestamps=deltas)
