"""The recorder node keeps every step of an episode as it happens: killed in mid-episode it has lost less than a second."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from bundles import FINGERS, untrained_bundle
from harness import ACTIVATE, CONFIGURE, DEACTIVATE, WORKSPACE, Client, node, nodes, wait_until
from trajectory_msgs.msg import JointTrajectory

from hardware import load_robot
from robolearn.core.types import STATE
from robolearn.data.header import ACTION_SENT
from robolearn.data.repair import repair
from robolearn.data.store import EpisodeStore
from robolearn.data.verify import Fault, verify
from robolearn.deploy.bundle import Bundle
from robolearn.deploy.contracts import contract_from_names
from robolearn.deploy.streams import Frame
from robolearn.teleop.recorder import Sample
from robolearn_bridge.messages import RECORD_QOS, SENSOR_QOS, chunk_message, message_class
from robolearn_bridge.simulated_streams import SimulatedStreams
from robolearn_bridge.steps import GRACE, HOLDS, PATIENCE, StepJoiner
from sim_envs.task import EnvOptions, make_env

STEP = 50_000_000
OFFSET = -7_000_000_000


def frame(k: int) -> Frame:
    return Frame({STATE: np.array([k], np.float32)}, k * STEP, {STATE: k * STEP})


def test_steps_of_the_operator_are_marked_and_learned_from() -> None:
    joiner = StepJoiner(STEP)
    two_rows = np.array([[0.1, 0.1], [0.2, 0.2]])
    for k in range(6):
        joiner.push_frame(frame(k), offset_ns=OFFSET)
        joiner.push_chunk("policy", two_rows + k, stamp_ns=k * STEP, step_ns=STEP, offset_ns=OFFSET)
        joiner.push_chunk("sent", np.full((1, 2), 0.5 + k), stamp_ns=k * STEP + 2000, step_ns=HOLDS, offset_ns=OFFSET)
    # The operator holds the deadman from just after frame 2 until just after frame 3.
    for k in (2, 3):
        joiner.push_chunk("teleop", np.full((3, 2), 0.5 + k / 10), stamp_ns=k * STEP + 1000, step_ns=STEP, offset_ns=OFFSET)
    samples = list(joiner.flush())
    assert [s.intervention for s in samples[:4]] == [False, False, True, True]
    assert not samples[5].intervention
    # Before, the first row of each step's own chunk (0.1 + k), then what the operator asked for, then the policy again.
    np.testing.assert_allclose([s.action[0] for s in samples[:4]], [0.1, 1.1, 0.7, 0.8])
    assert samples[5].action[0] == pytest.approx(5.1)
    np.testing.assert_allclose([s.sent[0] for s in samples], 0.5 + np.arange(6))
    stamp = samples[3].stamps[ACTION_SENT]
    assert (stamp.wall_s, stamp.monotonic_s) == pytest.approx((0.150002, 0.150002 - 7))


def test_a_step_waits_for_the_command_that_was_sent_in_it() -> None:
    joiner = StepJoiner(STEP)

    def sent(at_ns: int, value: float) -> None:
        joiner.push_chunk("sent", np.full((1, 1), value), stamp_ns=at_ns, step_ns=HOLDS, offset_ns=0)

    def look(times: int) -> list[Sample]:
        return [sample for _ in range(times) for sample in joiner.look()]

    joiner.push_frame(frame(0), offset_ns=0)
    joiner.push_frame(frame(1), offset_ns=0)
    sent(STEP // 4, 1.0)
    # The gate's newest command is of the step's first half: one more may be on its way.
    assert look(PATIENCE - 1) == []
    sent(STEP // 2, 2.0)
    (first,) = look(1)
    assert first.sent[0] == 2
    # Here the gate is known to be further on, so that nothing of the step can come any more.
    joiner.push_frame(frame(2), offset_ns=0)
    sent(STEP + 1, 3.0)
    sent(2 * STEP, 4.0)
    assert look(GRACE - 1) == []
    (second,) = look(1)
    assert second.sent[0] == 3
    # A gate that sends nothing more: its last command holds.
    joiner.push_frame(frame(3), offset_ns=0)
    joiner.push_frame(frame(4), offset_ns=0)
    assert [s.sent[0] for s in look(PATIENCE)] == [4, 4]
    assert [s.sent[0] for s in joiner.flush()] == [4]


def test_steps_before_the_first_command_are_left_out() -> None:
    joiner = StepJoiner(STEP)
    for k in range(3):
        joiner.push_frame(frame(k), offset_ns=0)
    joiner.push_chunk("sent", np.ones((1, 1)), stamp_ns=STEP + 1, step_ns=HOLDS, offset_ns=0)
    assert [s.observation[STATE][0] for s in joiner.flush()] == [1, 2]


def test_the_recorder_does_not_load_torch() -> None:
    code = "import sys; import robolearn_bridge.recorder_node; sys.exit('torch' in sys.modules)"
    env = os.environ | {"PYTHONPATH": str(WORKSPACE / "robolearn_bridge")}
    assert subprocess.run([sys.executable, "-c", code], env=env, check=False).returncode == 0


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return untrained_bundle(tmp_path_factory.mktemp("bundle"))


class Robot:
    """Streams of one frozen scene at 20 Hz, and a gate's commands at 100 Hz whose first element counts them."""

    def __init__(self, client: Client, bundle: Bundle) -> None:
        env = make_env("lift", EnvOptions(1))
        self._observation = {key: value[0] for key, value in env.reset([1]).items()}
        contract = contract_from_names(env.spec.spaces, arm_joints=load_robot("panda").joints, finger_joints=FINGERS)
        self._streams = SimulatedStreams(contract, env.spec.spaces)
        env.close()
        self._names, self.count = bundle.spaces.action.names, 0
        make = client.node.create_publisher
        self._sensors = {n: make(message_class(s.kind), s.topic, SENSOR_QOS) for n, s in bundle.contract.streams.items()}
        self._sent = make(JointTrajectory, "gate_node/sent", RECORD_QOS)
        self.silent = False
        self.stamps: list[int] = []
        """Of the steps whose samples were sent."""
        client.every(0.05, self._observe)
        client.every(0.01, self._command)

    def _observe(self) -> None:
        if self.silent:
            return
        stamp = time.time_ns()
        for name, message in self._streams.messages(self._observation, stamp).items():
            self._sensors[name].publish(message)
        self.stamps.append(stamp)

    def _command(self) -> None:
        row = np.zeros((1, len(self._names)))
        row[0, 0] = self.count = self.count + 1
        self._sent.publish(chunk_message(row, self._names, stamp_ns=time.time_ns(), period_ns=10_000_000, source="{}"))


@pytest.fixture(scope="module")
def robot(client: Client, bundle: Bundle) -> Iterator[Robot]:
    made = Robot(client, bundle)
    yield made
    made.silent = True


def say_frames(client: Client, name: str = "recorder_node") -> int:
    return client.count(name, "frames")


def require_truthful(store: EpisodeStore, index: int) -> None:
    """Every stored step has the command that was sent in it: 5 a step, so the counts rise; stamps rise on both clocks."""
    data = store.read(index).data
    rises = np.diff(data[ACTION_SENT][:, 0])
    # An episode may end within the 10 ms before the last step's first command: then the one before it holds.
    assert (rises[:-1] > 0).all()
    assert rises[-1] >= 0
    assert (np.diff(data["t_wall"]) > 0).all()
    # The command of a step is sent after its observation and before the next one.
    at, sent = data["stamps.wall"][:, 0], data["stamps.wall"][:, -1]
    assert (sent[:-1] < at[1:]).all()
    apart = data["stamps.monotonic"] - data["stamps.wall"]
    assert np.ptp(apart) < 0.05


def test_killed_in_mid_episode_it_has_lost_less_than_a_second(
    client: Client, domain: str, tmp_path: Path, bundle: Bundle, robot: Robot
) -> None:
    name = "to_be_killed"  # another node of its name would be taken for the dead one until that one's lease is over
    card = str(bundle.folder / "bundle.json")
    recorder = node("recorder_node", name=name, contract=card, folder=str(tmp_path), operator="ada")
    with nodes(tmp_path / "logs", recorder, domain=domain) as running:
        assert client.transition(name, CONFIGURE, ACTIVATE), running.tail(name)
        assert client.trigger(f"{name}/start")[0]
        wait_until(lambda: say_frames(client, name) >= 60, what="3 s of frames")
        killed_ns = time.time_ns()
        os.kill(running.pid(name), signal.SIGKILL)
        wait_until(lambda: running.exit_code(name) is not None, what="the end")
    path = tmp_path / "episodes"
    due = [stamp for stamp in robot.stamps if stamp <= killed_ns - 1_000_000_000]
    # What `robolearn data verify` says before and `robolearn data repair` does.
    (problem,) = verify(path).problems
    assert problem.fault in (Fault.UNFINISHED, Fault.TORN_JOURNAL)
    assert repair(path).after.sound
    with EpisodeStore.open(path) as store:
        assert len(store) == 1
        facts = store.metadata(0)
        assert (facts["outcome"], facts["operator"], facts["success"]) == ("interrupted", "ada", False)
        last_ns = store.read(0).data["t_wall"][-1] * 1e9
        assert last_ns > due[-1] - 1000, f"{(killed_ns - last_ns) / 1e9:.2f} s were lost"
        require_truthful(store, 0)


def test_pause_undo_and_failures(client: Client, domain: str, tmp_path: Path, bundle: Bundle, robot: Robot) -> None:
    recorder = node("recorder_node", contract=str(bundle.folder / "bundle.json"), folder=str(tmp_path), max_stream_age_s=1.5)

    def more_frames(count: int) -> None:
        until = say_frames(client) + count
        wait_until(lambda: say_frames(client) >= until, what=f"{until} frames; {client.diagnostics}")

    def state() -> str:
        return client.says("recorder_node", "state")

    with nodes(tmp_path / "logs", recorder, domain=domain) as running:
        assert client.transition("recorder_node", CONFIGURE, ACTIVATE), running.tail("recorder_node")
        assert client.set_bool("recorder_node/finish", True) == (False, "Nothing is being recorded.")
        # A failure, with a pause and a stream that falls silent in between.
        assert client.trigger("recorder_node/start")[0]
        more_frames(10)
        assert client.set_bool("recorder_node/pause", True)[0]
        assert not client.set_bool("recorder_node/pause", True)[0]
        assert client.set_bool("recorder_node/pause", False)[0]
        more_frames(10)
        robot.silent = True
        wait_until(lambda: state() == "paused", what="the pause")
        robot.silent = False
        assert client.set_bool("recorder_node/pause", False)[0]
        more_frames(10)
        finished, message = client.set_bool("recorder_node/finish", False)
        assert finished, message
        # Discarded, taken back, and kept as a success.
        assert client.trigger("recorder_node/start")[0]
        more_frames(5)
        assert client.trigger("recorder_node/discard")[0]
        assert client.trigger("recorder_node/undo")[0]
        assert client.set_bool("recorder_node/finish", True)[0]
        # Saved and taken out again.
        assert client.trigger("recorder_node/start")[0]
        more_frames(5)
        assert client.set_bool("recorder_node/finish", True)[0]
        wait_until(lambda: client.trigger("recorder_node/undo")[0], what="the undo")
        # Ended by deactivation.
        assert client.trigger("recorder_node/start")[0]
        more_frames(5)
        assert client.transition("recorder_node", DEACTIVATE)
    with EpisodeStore.open(tmp_path / "episodes") as store:
        assert [store.metadata(i)["outcome"] for i in range(len(store))] == ["failure", "success", "interrupted"]
        facts = store.metadata(0)
        assert len(facts["paused_before_steps"]) == 2
        (lost,) = facts["lost_streams"]
        assert lost["age_s"] > 1.5
        assert len(list((tmp_path / "bags").rglob("*.mcap"))) == 4
        for i in range(3):
            require_truthful(store, i)
