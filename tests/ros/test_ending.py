"""Every node ends when it is asked to, in whatever state it is, and when nobody is left who could ask."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from bundles import untrained_bundle
from harness import (
    ACTIVATE,
    CONFIGURE,
    WORKSPACE,
    Client,
    FakeArm,
    environment,
    gate,
    move,
    node,
    nodes,
    reach,
    require_rest_then_silence,
    wait_until,
)
from rclpy.node import Node

from robolearn.core.errors import RefusedError
from robolearn.deploy.launch_file import NodeProcess
from robolearn.deploy.launcher import Launched
from robolearn_bridge import exclusive
from robolearn_bridge.lifecycle import END_WITHIN_S

SLACK_S = 20.0
"""For a process to be scheduled and reaped on a busy machine; what is promised is ``END_WITHIN_S``."""
OVERLOADED = 3
"""Runnable processes per core at which a node may not get the seconds that it needs, so that the alarm comes first."""


def end(launched: Launched, names: list[str], *, allowed: tuple[int, ...] = (0,)) -> None:
    """SIGTERM them all and require that each has ended in time, by itself unless the kernel's alarm is allowed."""
    for name in names:
        os.kill(launched.pid(name), signal.SIGTERM)
    asked = time.monotonic()
    wait_until(lambda: all(launched.exit_code(n) is not None for n in names), END_WITHIN_S + SLACK_S, what=f"the end of {names}")
    codes = {name: launched.exit_code(name) for name in names}
    if os.getloadavg()[0] > OVERLOADED * (os.cpu_count() or 1):
        allowed = (*allowed, -signal.SIGALRM)
    assert set(codes.values()) <= set(allowed), f"{codes} after {time.monotonic() - asked:.1f} s\n{launched.tail(names[0])}"


def test_sigterm_ends_nodes_in_every_state(client: Client, domain: str, tmp_path: Path) -> None:
    bundle = untrained_bundle(tmp_path)
    kinds: dict[str, dict[str, object]] = {
        "gate_node": {"robot": "panda", "interface": "position"},
        "twin_node": {"robot": "panda"},
        "teleop_node": {"device": "leader", "robot": "panda", "names": ["panda_joint1"]},
        "recorder_node": {"contract": str(bundle.folder / "bundle.json")},
        "policy_node": {"bundle": str(bundle.folder), "robot": "panda"},
    }
    # The others in the state with most to lose; all in one go, for starting a process is what takes time.
    states: dict[str, tuple[int, ...]] = {"unconfigured": (), "inactive": (CONFIGURE,), "active": (CONFIGURE, ACTIVATE)}
    processes, made = [], {}
    for kind, parameters in kinds.items():
        for state, transitions in states.items() if kind == "gate_node" else [("active", states["active"])]:
            name = f"{kind.removesuffix('_node')}_{state}"
            own = {"folder": str(tmp_path / name)} if kind == "recorder_node" else {}
            process = node(kind, name=name, **(parameters | own))
            # A namespace each: gates of one robot would refuse one another.
            processes.append(NodeProcess(process.package, kind, name, f"/{name}", process.parameters))
            made[name] = transitions
    with nodes(tmp_path / "logs", *processes, domain=domain) as running:
        for name, transitions in made.items():
            wait_until(lambda n=name: node_is_there(client.node, n), what=name)
            for transition in transitions:
                assert client.transition(f"/{name}/{name}", transition), running.tail(name)
        end(running, list(made))


def node_is_there(client: Node, name: str) -> bool:
    return client.count_services(f"/{name}/{name}/change_state") > 0


@pytest.mark.parametrize("kind", ["policy_node", "gate_node"])
def test_sigterm_in_the_middle_of_a_transition(client: Client, domain: str, tmp_path: Path, kind: str) -> None:
    """What a transition starts after the signal (a worker, a control loop) must end as well; that was a defect."""
    if kind == "policy_node":
        process = node(kind, name="asked", bundle=str(untrained_bundle(tmp_path).folder), robot="panda")
    else:
        process = gate()
        process = NodeProcess(process.package, kind, "asked", "/robot", process.parameters)
    with nodes(tmp_path / "logs", process, domain=domain) as running:
        wait_until(lambda: client.node.count_services("/robot/asked/change_state") > 0, what="the node")
        if kind == "gate_node":
            assert client.transition("asked", CONFIGURE)
        # Loading torch or waiting for discovery: both transitions last for longer than the pause before the signal.
        client.transition_later("asked", ACTIVATE if kind == "gate_node" else CONFIGURE)
        time.sleep(0.25)
        # A policy that is still loading moves nothing: there the alarm may end what takes too long.
        end(running, ["asked"], allowed=(0, -signal.SIGALRM) if kind == "policy_node" else (0,))


def test_a_burst_of_signals_ends_a_node_like_one(client: Client, domain: str, tmp_path: Path) -> None:
    """The defect: a second SIGTERM inside the handler of the first waited for its lock, and the node never ended."""
    process = NodeProcess(gate().package, "gate_node", "pestered", "/robot", gate().parameters)
    with nodes(tmp_path, process, domain=domain) as running:
        assert client.transition("pestered", CONFIGURE)
        pid = running.pid("pestered")
        for _ in range(2000):
            os.kill(pid, signal.SIGTERM)  # an unreaped child keeps its number
            time.sleep(1e-5)  # or else they melt into one
        end(running, ["pestered"])


LAUNCHER = """
import sys, time
sys.path[:0] = sys.argv[3:]
from pathlib import Path
from harness import gate, nodes
with nodes(Path(sys.argv[1]), gate(), domain=sys.argv[2]) as running:
    print(running.pid("gate_node"), flush=True)
    time.sleep(600)
"""


def test_a_gate_whose_launcher_was_killed_ends_with_a_command_at_rest(client: Client, domain: str, tmp_path: Path) -> None:
    paths = [str(Path(__file__).parent), str(WORKSPACE / "robolearn_bridge")]
    command = [sys.executable, "-c", LAUNCHER, str(tmp_path), domain, *paths]
    with subprocess.Popen(command, env=environment(domain), stdout=subprocess.PIPE, text=True) as launcher:
        assert launcher.stdout is not None
        pid = int(launcher.stdout.readline())
        arm = FakeArm(client)
        arm.bring_up()
        move(arm, reach(arm, 1.0))
        launcher.kill()
    wait_until(lambda: not is_running(pid), END_WITHIN_S + SLACK_S, what="the end of the gate")
    require_rest_then_silence(arm)
    arm.close()


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


HOLDER = """
import sys, time
sys.path[:0] = sys.argv[2:]
import rclpy
from robolearn_bridge.exclusive import ExclusiveTopics
rclpy.init(domain_id=int(sys.argv[1]))
node = rclpy.create_node("holder")
ExclusiveTopics(node, ["/lock_test/commands"]).claim()
print("held", flush=True)
time.sleep(600)
"""


def test_the_lock_of_a_topic_is_the_machines_and_ends_with_its_process(client: Client, domain: str) -> None:
    command = [sys.executable, "-c", HOLDER, domain, str(WORKSPACE / "robolearn_bridge")]
    mine = exclusive.ExclusiveTopics(client.node, ["/lock_test/other", "/lock_test/commands"])
    with subprocess.Popen(command, env=environment(domain), stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RefusedError, match=f"commands /lock_test/commands: /holder, process {holder.pid}"):
            mine.claim()
        # All or none: the lock that could be had was given back.
        other = exclusive.ExclusiveTopics(client.node, ["/lock_test/other"])
        other.claim()
        other.release()
        holder.kill()
    mine.claim()
    mine.release()
    assert exclusive.lock_file("/a", 1) != exclusive.lock_file("/a", 2)
