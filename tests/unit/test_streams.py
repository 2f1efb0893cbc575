"""The resampler answers from stamps alone; the contract must make exactly what the policy reads."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from robolearn.core.errors import RefusedError
from robolearn.core.types import FeatureSpec, Spaces
from robolearn.deploy.codecs import decode
from robolearn.deploy.contracts import contract_from_names
from robolearn.deploy.streams import ObservationContract, Part, Resampler, Stream, StreamsNotReadyError, replay

NAMES = ("eef_pos_x", "eef_pos_y", "eef_pos_z", "gripper_qpos_0", "cube_to_eef_x", "cube_to_eef_y", "cube_to_eef_z")
SPACES = Spaces(
    "panda", {"observation.state": FeatureSpec((7,), names=NAMES)}, FeatureSpec((1,), names=("dx",)), (-1.0,), (1.0,), 20.0
)
CONTRACT = contract_from_names(SPACES, arm_joints=("j1",), finger_joints=("f1",))
MS = 1_000_000


def push(resampler: Resampler, stream: str, stamp: int, received: int | None = None, **fields: object) -> bool:
    sample = {name: np.asarray(value, float) for name, value in fields.items()}
    return resampler.push(stream, sample, stamp_ns=stamp * MS, received_ns=(stamp if received is None else received) * MS)


def fill(resampler: Resampler, stamp: int) -> None:
    push(resampler, "eef", stamp, position=[1, 2, 3], rot6d=np.zeros(6))
    push(resampler, "cube", stamp, position=[2, 2, 5], rot6d=np.zeros(6))
    push(resampler, "joints", stamp, position=[0.5, 0.04])


def test_a_frame_is_put_together_by_name() -> None:
    resampler = Resampler(CONTRACT, SPACES)
    fill(resampler, 100)
    frame = resampler.take()
    assert frame is not None
    # cube - hand = (2, 2, 5) - (1, 2, 3)
    np.testing.assert_array_equal(frame.observation["observation.state"], np.float32([1, 2, 3, 0.04, 1, 0, 2]))
    assert resampler.take() is None  # a control step is taken once


def test_an_exact_stream_is_waited_for() -> None:
    resampler = Resampler(CONTRACT, SPACES)
    fill(resampler, 100)
    resampler.take()
    push(resampler, "joints", 150, position=[0.5, 0.04])
    assert resampler.take() is None  # the hand's pose of this step is still on its way
    push(resampler, "eef", 150, position=[1, 2, 4], rot6d=np.zeros(6))
    push(resampler, "cube", 150, position=[2, 2, 5], rot6d=np.zeros(6))
    frame = resampler.take()
    assert frame is not None
    assert frame.at_ns == 150 * MS
    assert frame.observation["observation.state"][2] == 4


def test_a_step_is_not_lost_when_the_clock_overtakes_its_last_sample() -> None:
    # The bug: on a busy machine the clock's next message was handled before this step's last pose, and the frame was never made.
    resampler = Resampler(CONTRACT, SPACES)
    fill(resampler, 100)
    resampler.take()
    push(resampler, "joints", 150, position=[0.5, 0.04])
    push(resampler, "cube", 150, position=[2, 2, 5], rot6d=np.zeros(6))
    push(resampler, "joints", 200, position=[0.7, 0.04])
    assert resampler.take() is None
    push(resampler, "eef", 150, position=[1, 2, 4], rot6d=np.zeros(6))
    frame = resampler.take()
    assert frame is not None
    assert frame.at_ns == 150 * MS
    assert frame.observation["observation.state"][2] == 4
    push(resampler, "cube", 200, position=[2, 2, 5], rot6d=np.zeros(6))
    push(resampler, "eef", 200, position=[1, 2, 5], rot6d=np.zeros(6))
    frame = resampler.take()
    assert frame is not None
    assert frame.at_ns == 200 * MS
    assert resampler.take() is None


def test_whoever_decides_now_is_given_the_newest_step_or_nothing() -> None:
    resampler = Resampler(CONTRACT, SPACES)
    fill(resampler, 100)
    push(resampler, "eef", 150, position=[1, 2, 4], rot6d=np.zeros(6))
    assert resampler.take(newest=True) is None  # 150 ms is under way
    push(resampler, "joints", 150, position=[0.5, 0.04])
    assert resampler.take(newest=True) is None  # the cube's is still missing
    push(resampler, "cube", 150, position=[2, 2, 5], rot6d=np.zeros(6))
    frame = resampler.take(newest=True)
    assert frame is not None
    assert frame.at_ns == 150 * MS
    assert resampler.take(newest=True) is None


def test_a_step_that_is_sent_again_is_taken_when_it_is_asked_for() -> None:
    # In lockstep the simulator repeats its state, with the same stamp, until somebody has decided on it.
    resampler = Resampler(CONTRACT, SPACES)
    fill(resampler, 100)
    fill(resampler, 100)
    frame = resampler.take(newest=True)
    assert frame is not None
    assert frame.at_ns == 100 * MS


def test_old_and_missing_streams_are_named() -> None:
    resampler = Resampler(CONTRACT, SPACES)
    push(resampler, "joints", 100, position=[0.5, 0.04])
    push(resampler, "eef", 100, position=[1, 2, 3], rot6d=np.zeros(6))
    with pytest.raises(StreamsNotReadyError, match="'cube' has no sample"):
        resampler.frame(100 * MS)
    fill(resampler, 200)
    # Every stream may be 0.15 s old.
    with pytest.raises(StreamsNotReadyError, match=r"'joints' is 0\.151 s old \(limit 0\.15 s\)"):
        resampler.frame(351 * MS)
    assert resampler.frame(350 * MS).oldest_ns == 200 * MS


def test_reordered_and_future_samples_are_dropped_and_counted() -> None:
    resampler = Resampler(CONTRACT, SPACES)
    fill(resampler, 100)
    assert not push(resampler, "joints", 100, position=[9, 9])
    assert not push(resampler, "joints", 90, position=[9, 9])
    assert not push(resampler, "joints", 200, received=149, position=[9, 9])  # 51 ms ahead of its arrival
    assert push(resampler, "joints", 199, received=149, position=[0.5, 0.04])
    assert resampler.dropped["joints"] == 3


def test_replay_in_order_of_arrival_gives_the_live_frames() -> None:
    rng = np.random.default_rng(0)
    arrivals = []
    for step in range(1, 40):
        names = ["joints", "eef", "cube"]
        for name in rng.permutation(names):
            value = rng.normal(size=2 if name == "joints" else 3)
            sample = {"position": value} | ({} if name == "joints" else {"rot6d": np.zeros(6)})
            if rng.random() > 0.1:  # lost
                arrivals.append((step * 50 * MS + len(arrivals), str(name), step * 50 * MS, sample))
    live, resampler = [], Resampler(CONTRACT, SPACES)
    for received, name, stamp, sample in arrivals:
        resampler.push(name, sample, stamp_ns=stamp, received_ns=received)
        try:
            frame = resampler.take()
        except StreamsNotReadyError:
            continue
        if frame is not None:
            live.append(frame)
    replayed = list(replay(CONTRACT, SPACES, arrivals))
    assert len(replayed) == len(live) > 10
    for a, b in zip(live, replayed, strict=True):
        assert a.at_ns == b.at_ns
        np.testing.assert_array_equal(a.observation["observation.state"], b.observation["observation.state"])


def test_a_contract_survives_json_and_refuses_what_it_does_not_know() -> None:
    data = CONTRACT.to_json()
    assert ObservationContract.from_json(data, where="x") == CONTRACT
    data["streams"]["eef"]["topics"] = "a"  # type: ignore[index]
    with pytest.raises(RefusedError, match=r"x: stream 'eef': unknown key 'topics'.*Did you mean 'topic'"):
        ObservationContract.from_json(data, where="x")


def test_another_order_of_elements_is_refused() -> None:
    parts = CONTRACT.features["observation.state"]
    swapped = ObservationContract(CONTRACT.streams, {"observation.state": (parts[1], parts[0], parts[2])}, "joints")
    with pytest.raises(
        RefusedError, match=r"differs at element 0: the policy reads \('eef_pos_x',\).*make \('gripper_qpos_0',\)"
    ):
        swapped.require_fits(SPACES, what="bundle")


def test_bad_streams_are_refused() -> None:
    with pytest.raises(RefusedError, match="Did you mean 'pose'"):
        Stream("a", "poses")
    with pytest.raises(RefusedError, match="joint names belong to joint states"):
        Stream("a", "joint_state")
    with pytest.raises(RefusedError, match="has no field 'quaternion'"):
        ObservationContract({"eef": Stream("a", "pose")}, {"s": (Part("eef", "quaternion"),)}, "eef")


def joints(**changes: object) -> SimpleNamespace:
    return SimpleNamespace(**({"name": ["b", "a"], "position": [2.0, 1.0], "velocity": [], "effort": []} | changes))


def test_joint_states_are_read_by_name() -> None:
    np.testing.assert_array_equal(decode("joint_state", joints(), ("a", "b"))["position"], [1, 2])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": ["b", "c"]}, r"lacks \['a'\]"),
        ({"name": ["a", "a"]}, "twice"),
        ({"position": [1.0]}, "2 names and 1 values"),
        ({"position": [1.0, float("nan")]}, "not finite"),
    ],
)
def test_bad_joint_states_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(RefusedError, match=message):
        decode("joint_state", joints(**changes), ("a", "b"))


def test_pictures_keep_their_rows_and_channels() -> None:
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    padded = np.concatenate([pixels.reshape(2, 9), np.full((2, 3), 255, np.uint8)], axis=1)  # step 12 for 9 bytes a row
    message = SimpleNamespace(encoding="bgr8", height=2, width=3, step=12, data=padded.tobytes())
    np.testing.assert_array_equal(decode("image", message)["image"], pixels[:, :, ::-1])
    message.data = message.data[:-1]
    with pytest.raises(RefusedError, match="came with 23 bytes"):
        decode("image", message)
