"""The policy node takes only a whole bundle that was made for its robot, and is silent when a stream is missing or old."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from bundles import FINGERS, untrained_bundle
from harness import ACTIVATE, CONFIGURE, Client, node, nodes, wait_until
from trajectory_msgs.msg import JointTrajectory

from hardware import load_robot
from robolearn.core.errors import RefusedError
from robolearn.core.observation import select_observation
from robolearn.core.types import STATE, Observation
from robolearn.deploy.bundle import BUNDLE_FILE, Bundle, BundleParts, open_bundle, write_bundle
from robolearn.deploy.codecs import stamp_ns
from robolearn.deploy.contracts import contract_from_names
from robolearn.deploy.novelty import ObservationNovelty
from robolearn_bridge.messages import COMMAND_QOS, SENSOR_QOS, message_class
from robolearn_bridge.simulated_streams import SimulatedStreams
from sim_envs.task import EnvOptions, make_env


def novelties(chunks: list[JointTrajectory]) -> list[float]:
    return [json.loads(chunk.header.frame_id)["novelty"] for chunk in chunks]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return untrained_bundle(tmp_path_factory.mktemp("bundle"), refined=True)


def test_a_bundle_is_whole_or_refused(bundle: Bundle, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle.folder, tmp_path / "copy"))
    assert open_bundle(copy).spaces == bundle.spaces
    (copy / "policy" / "extra").write_text("x")
    with pytest.raises(RefusedError, match="policy/extra does not belong"):
        open_bundle(copy)
    (copy / "policy" / "extra").unlink()
    with (copy / "policy" / "ema.safetensors").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(RefusedError, match=r"policy/ema\.safetensors was changed"):
        open_bundle(copy)
    (copy / "novelty" / "novelty.json").unlink()
    with pytest.raises(RefusedError, match=r"novelty/novelty\.json is missing"):
        open_bundle(copy)
    shutil.copyfile(bundle.folder / "novelty" / "novelty.json", copy / "novelty" / "novelty.json")
    (copy / "policy" / "ema.safetensors").unlink()
    with pytest.raises(RefusedError, match=r"policy/ema\.safetensors is missing"):
        open_bundle(copy)


def test_a_novelty_score_of_other_observations_is_not_bundled(bundle: Bundle, tmp_path: Path) -> None:
    assert bundle.novelty is not None
    spaces = select_observation(bundle.spaces, [STATE])
    other = ObservationNovelty.fit([{STATE: np.random.default_rng(i).normal(size=(3, 11))} for i in range(80)], spaces)
    parts = BundleParts(bundle.policy, bundle.contract, bundle.executor, bundle.task, novelty=other)
    with pytest.raises(RefusedError, match=r"novelty is scored on \{'observation\.state': 11\}"):
        write_bundle(tmp_path / "bundle", parts)


def test_a_bundle_with_another_joint_order_or_field_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle.folder, tmp_path / "copy"))
    card = json.loads((copy / BUNDLE_FILE).read_text())
    parts = card["contract"]["features"]["observation.state"]
    parts.reverse()
    (copy / BUNDLE_FILE).write_text(json.dumps(card))
    with pytest.raises(RefusedError, match=r"'observation\.state' differs at element 0"):
        open_bundle(copy)
    parts.reverse()
    (copy / BUNDLE_FILE).write_text(json.dumps(card | {"limits": []}))
    with pytest.raises(RefusedError, match=r"has unknown \['limits'\]"):
        open_bundle(copy)
    with pytest.raises(RefusedError, match="made for robot 'panda', not for 'ur5e'"):
        bundle.require_robot("ur5e")
    with pytest.raises(RefusedError, match=r"stream 'joints' reads \['panda_finger_joint1', 'panda_finger_joint2'\]"):
        bundle.require_robot("panda", joints=tuple(f"panda_joint{i}" for i in range(1, 8)))


class Sensors:
    """Publishes the samples of a step."""

    def __init__(self, client: Client, bundle: Bundle, streams: SimulatedStreams, observation: Observation) -> None:
        self._client, self._streams, self._observation = client, streams, observation
        self.publishers = {
            name: client.node.create_publisher(message_class(s.kind), s.topic, SENSOR_QOS)
            for name, s in bundle.contract.streams.items()
        }

    def send(self, *, without: str = "", seen: Observation | None = None) -> int:
        """Return the stamp of the step whose samples were sent."""
        stamp = time.time_ns()
        for name, message in self._streams.messages(seen or self._observation, stamp).items():
            if name != without:
                self.publishers[name].publish(message)
        return stamp

    def send_until_received(self) -> None:
        """Send, again where samples got lost, until one of every stream has arrived and can no longer be late."""
        before = {name: self._client.count("policy_node", f"received of {name}") for name in self.publishers}

        def all_there() -> bool:
            self.send()
            time.sleep(1)  # the diagnostics' period
            return all(self._client.count("policy_node", f"received of {name}") > count for name, count in before.items())

        wait_until(all_there, what="all samples of a step")


def test_chunks_come_from_fresh_complete_streams_only(client: Client, domain: str, tmp_path: Path, bundle: Bundle) -> None:
    env = make_env("lift", EnvOptions(1))
    observation = {key: value[0] for key, value in env.reset([1]).items()}
    env.close()
    offered = contract_from_names(env.spec.spaces, arm_joints=load_robot("panda").joints, finger_joints=FINGERS)
    streams = SimulatedStreams(offered, env.spec.spaces)
    sensors = Sensors(client, bundle, streams, observation)
    chunks: list[JointTrajectory] = []
    client.node.create_subscription(JointTrajectory, "policy/chunk", chunks.append, COMMAND_QOS)
    strange = observation | {STATE: observation[STATE] + np.eye(11, dtype=np.float32)[2]}  # the hand 1 m higher
    good: set[int] = set()

    def send_until_answered(seen: Observation = observation) -> None:
        """Sensor messages may be lost: send states, one control step apart, until one of them has been decided on."""
        mine: set[int] = set()

        def ask() -> bool:
            mine.add(sensors.send(seen=seen))
            time.sleep(0.05)
            return bool(chunks) and stamp_ns(chunks[-1]) in mine

        wait_until(ask, what="a chunk")
        good.update(mine)

    wrong = node("policy_node", name="wrong_robot", bundle=str(bundle.folder), robot="ur5e")
    right = node("policy_node", bundle=str(bundle.folder), robot="panda")
    with nodes(tmp_path, wrong, right, domain=domain) as running:
        assert not client.transition("wrong_robot", CONFIGURE)
        assert client.transition("policy_node", CONFIGURE)
        assert client.trigger("policy_node/start") == (False, "The policy node is inactive; activate it first.")
        assert client.transition("policy_node", ACTIVATE)
        wait_until(
            lambda: all(p.get_subscription_count() for p in sensors.publishers.values()), what="the policy's subscriptions"
        )
        sensors.send_until_received()  # active, but nobody has asked it to act
        assert client.trigger("policy_node/start")[0]
        send_until_answered()
        for _ in range(5):
            sensors.send(without="cube")
            sensors.send(without="joints")
            sensors.send(without="eef")
        send_until_answered()
        assert client.trigger("policy_node/stop")[0]
        sensors.send_until_received()
        assert client.trigger("policy_node/start")[0]
        send_until_answered()
        assert max(novelties(chunks)) < 1
        send_until_answered(strange)
        assert novelties(chunks)[-1] > 2
        wait_until(lambda: client.says("policy_node", "fallen back to the base") == "True", what="the base")
        assert {stamp_ns(chunk) for chunk in chunks} <= good  # what came in between was never decided on
        assert all(tuple(chunk.joint_names) == bundle.spaces.action.names for chunk in chunks)
        assert running.exit_code("wrong_robot") is None
    assert "made for robot 'panda', not for 'ur5e'" in (tmp_path / "wrong_robot.log").read_text()


def test_chunks_are_continued_by_policies_that_can(client: Client, domain: str, tmp_path: Path, bundle: Bundle) -> None:
    able = untrained_bundle(tmp_path / "able", kind="diffusion")
    known = {"robot": "panda", "bundle": str(able.folder)}
    processes = [
        node("policy_node", name="guided", continuation="guided", delay_quantile=0.9, **known),
        node("policy_node", name="blind", continuation="guided", **known | {"bundle": str(bundle.folder)}),
        node("policy_node", name="untrained", continuation="trained", **known),
    ]
    refusals = {
        "blind": "continuation='guided': the policy 'corrected' of bundle bundle cannot",
        "untrained": "was not trained for it (max_delay=0)",
    }
    with nodes(tmp_path / "logs", *processes, domain=domain) as running:
        for name, says in refusals.items():
            assert not client.transition(name, CONFIGURE)
            assert says in running.tail(name)
        assert client.transition("guided", CONFIGURE, ACTIVATE), running.tail("guided")
        wait_until(lambda: client.says("guided", "continuation") == "guided", what="the diagnostics")
        assert client.says("guided", "expected delay [steps]") == "0"  # nothing was decided yet; the warm-up does not count
        env = make_env("lift", EnvOptions(1))
        observation = {key: value[0] for key, value in env.reset([1]).items()}
        env.close()
        offered = contract_from_names(env.spec.spaces, arm_joints=load_robot("panda").joints, finger_joints=FINGERS)
        sensors = Sensors(client, able, SimulatedStreams(offered, env.spec.spaces), observation)
        assert client.trigger("guided/start")[0]
        end = client.every(0.05, sensors.send)
        # 8 of 16 rows are executed: from the second decision on, a chunk continues another.
        wait_until(lambda: client.count("guided", "chunks") >= 20, what=f"chunks; {running.tail('guided')}")
        end()
        assert client.count("guided", "frames_refused") == 0


def test_a_slow_policy_corrects_every_step_while_it_decides(client: Client, domain: str, tmp_path: Path) -> None:
    # Corrections stopped for as long as a decision took, which is when the newest observation is worth most.
    slow = untrained_bundle(tmp_path / "slow", kind="diffusion", refined=True, noise_levels=1500, sampler_steps=1500)
    known = {"robot": "panda", "bundle": str(slow.folder)}
    processes = [node("policy_node", name="beside", **known), node("policy_node", name="between", background=False, **known)]
    with nodes(tmp_path / "logs", *processes, domain=domain) as running:
        for name in ("beside", "between"):
            assert client.transition(name, CONFIGURE, ACTIVATE), running.tail(name)
        env = make_env("lift", EnvOptions(1))
        observation = {key: value[0] for key, value in env.reset([1]).items()}
        env.close()
        offered = contract_from_names(env.spec.spaces, arm_joints=load_robot("panda").joints, finger_joints=FINGERS)
        sensors = Sensors(client, slow, SimulatedStreams(offered, env.spec.spaces), observation)
        for name in ("beside", "between"):
            assert client.trigger(f"{name}/start")[0]
        end = client.every(0.05, sensors.send)
        wait_until(lambda: client.count("between", "chunks") >= 40, timeout_s=60, what=f"chunks; {running.tail('between')}")
        end()
        time.sleep(1.2)  # the diagnostics' period
        assert float(client.says("beside", "decision p50 [ms]")) > 50, "a decision must take longer than a control step here"
        # How many steps a decision takes depends on the machine; that they are answered meanwhile does not.
        assert client.count("beside", "steps answered while deciding") >= 2
        assert client.count("between", "steps answered while deciding") == 0
        assert client.count("beside", "frames_refused") == 0
