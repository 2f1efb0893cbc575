"""A whole episode through the launch file: what the robot gets over ROS is what the direct evaluator sends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import untrained_bundle
from harness import ACTIVATE, CONFIGURE, WORKSPACE, Client, environment, node, nodes
from rosbags.highlevel import AnyReader
from rosbags.typesys import Stores, get_typestore

from robolearn.core.rotations import matrix_from_quat_wxyz
from robolearn.core.seeding import generator
from robolearn.core.types import ACTION
from robolearn.data.store import EpisodeStore
from robolearn.deploy.bundle import Bundle
from robolearn.deploy.codecs import decode, stamp_ns
from robolearn.deploy.executor import ChunkExecutor
from robolearn.deploy.launch_file import read_launch_file
from robolearn.deploy.launcher import Launched, WorkspacePackages
from robolearn.deploy.streams import replay
from robolearn.policies.loading import load_policy
from robolearn_bridge.simulated_streams import quat_wxyz_from_matrix
from sim_envs.task import EnvOptions, make_env

SEED = 7
EQUAL_STEPS = 40
"""Later the arm of this untrained policy hits things, and contacts make a difference of 1e-6 large."""


@dataclass
class Recorded:
    bundle: Bundle
    report: dict[str, Any]
    store: EpisodeStore
    bag: Path


@pytest.fixture(scope="module")
def recorded(client: Client, domain: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recorded]:
    """One episode in lockstep, recorded by the recorder node."""
    folder = tmp_path_factory.mktemp("episode")
    bundle = untrained_bundle(folder)
    packages = WorkspacePackages(WORKSPACE)
    arguments = {
        "robot": "panda",
        "namespace": "robot",
        "bundle": str(bundle.folder),
        "interface": "rates",
        "sim": "true",
        "sync": "lockstep",
        "policy_timeout_s": "20.0",
        "estop_timeout_s": "20.0",
        # So large that the guard, which is on, never binds: an untrained policy goes anywhere.
        "workspace_low": "[-3.0, -3.0, -3.0]",
        "workspace_high": "[3.0, 3.0, 3.0]",
        "supervise": "true",
        "seeds": f"[{SEED}]",
        "results": str(folder / "episodes.json"),
    }
    file = packages.share("robolearn_bringup") / "launch" / "policy.launch.xml"
    processes = read_launch_file(file, arguments, find_package=packages.share, environ={})
    recorder = node(
        "recorder_node", contract=str(bundle.folder / "bundle.json"), folder=str(folder / "recorded"), sync="lockstep"
    )
    with nodes(folder / "recorder", recorder, domain=domain):
        assert client.transition("recorder_node", CONFIGURE, ACTIVATE)
        started, bag = client.trigger("recorder_node/start")
        assert started
        with Launched(processes, packages, log_folder=folder / "logs", environ=environment(domain)) as launched:
            launched.wait_for("supervisor_node", 400)
        finished, message = client.set_bool("recorder_node/finish", False)
        assert finished, message
        report = json.loads((folder / "episodes.json").read_text())[0]
    with EpisodeStore.open(folder / "recorded" / "episodes") as store:
        yield Recorded(bundle, report, store, Path(bag))


def direct(bundle: Bundle, steps: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return the actions and observations of the same episode without ROS."""
    policy = load_policy(bundle.policy)
    executor = ChunkExecutor(policy, bundle.executor, num_rows=1)
    env = make_env("lift", EnvOptions(1))
    observation = env.reset([SEED])
    rng = generator(bundle.policy_seed, "episode", SEED)
    actions, seen = [], []
    for _ in range(steps):
        seen.append({key: observation[key][0] for key in policy.spaces.observation})
        action = np.clip(executor.act(observation, [rng]), -1, 1)
        actions.append(action[0])
        observation = env.step(action).observation
    env.close()
    return np.array(actions), {key: np.stack([s[key] for s in seen]) for key in seen[0]}


def test_the_episode_runs_to_its_end(recorded: Recorded) -> None:
    assert recorded.report["ended"]
    assert recorded.report["stopped_because"] == ""
    assert recorded.report["seed"] == SEED


def test_robot_gets_the_actions_of_the_direct_evaluator(recorded: Recorded) -> None:
    steps = EQUAL_STEPS
    episode = recorded.store.read(0)
    actions, observations = direct(recorded.bundle, steps)
    # Orientations travel as quaternions: their float32 rounding (1e-7) is what may differ.
    for key, expected in observations.items():
        np.testing.assert_allclose(episode.data[key][:steps], expected, atol=1e-5, err_msg=key)
    np.testing.assert_allclose(episode.data["action.sent"][:steps], actions, atol=1e-4)
    # What the policy wanted, before the gate clipped it to the bounds.
    np.testing.assert_allclose(np.clip(episode.data[ACTION][:steps], -1, 1), actions, atol=1e-4)
    assert np.ptp(actions, axis=0).max() > 0.01  # the policy reacts to what it sees
    assert not episode.data["intervention"].any()


def test_the_bag_gives_the_same_frames_bit_for_bit(recorded: Recorded) -> None:
    contract, spaces = recorded.bundle.contract, recorded.bundle.spaces
    topics = {f"{stream.topic}": name for name, stream in contract.streams.items()}

    def arrivals() -> Iterator[tuple[int, str, int, Any]]:
        with AnyReader([recorded.bag], default_typestore=get_typestore(Stores.ROS2_JAZZY)) as reader:
            for connection, received, data in reader.messages():
                if connection.topic in topics:
                    message = reader.deserialize(data, connection.msgtype)
                    stream = contract.streams[topics[connection.topic]]
                    yield received, topics[connection.topic], stamp_ns(message), decode(stream.kind, message, stream.names)

    frames = list(replay(contract, spaces, arrivals()))
    episode = recorded.store.read(0)
    stamps = episode.data["t_wall"].tolist()
    by_stamp = {frame.at_ns / 1e9: frame for frame in frames}
    assert len(stamps) > 10
    for key in spaces.observation:
        replayed = np.stack([by_stamp[stamp].observation[key] for stamp in stamps])
        np.testing.assert_array_equal(replayed, episode.data[key])


def test_quaternion_of_a_matrix_is_the_inverse_of_matrix_of_a_quaternion() -> None:
    quats = np.random.default_rng(0).normal(size=(200, 4))
    quats /= np.linalg.norm(quats, axis=1, keepdims=True)
    for quat in quats:
        again = quat_wxyz_from_matrix(matrix_from_quat_wxyz(quat))
        np.testing.assert_allclose(again * np.sign(again @ quat), quat, atol=1e-12)
