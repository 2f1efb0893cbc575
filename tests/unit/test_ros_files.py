"""What is shipped for ROS and runs elsewhere: the container file, the views of Foxglove and RViz, a parameter file per robot."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import yaml

import hardware
from robolearn.deploy.contracts import contract_from_names
from robolearn.deploy.launch_file import read_launch_file
from robolearn.deploy.launcher import WorkspacePackages
from sim_envs.task import get_task

ROOT = Path(__file__).resolve().parents[2]
WORKSPACE = ROOT / "ros_ws" / "src"
CONFIG = WORKSPACE / "robolearn_bringup" / "config"
BRIDGE = WORKSPACE / "robolearn_bridge" / "robolearn_bridge"
INSTRUCTIONS = {"FROM", "ENV", "RUN", "WORKDIR", "COPY", "SHELL", "ENTRYPOINT", "CMD"}
ROS_OWN = {"/tf", "/tf_static", "robot_description"}
"""Topics that the robot's own bring-up publishes."""


def instructions() -> list[tuple[str, str]]:
    """The container file's instructions, continued lines joined and comments dropped."""
    text = re.sub(r"\\\n", " ", "\n".join(s for s in (ROOT / "Dockerfile").read_text().splitlines() if not s.startswith("#")))
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in text.splitlines() if line.strip()]


def apt_packages() -> list[str]:
    found = []
    for name, body in instructions():
        for words in re.findall(r"apt-get install ([^&]+)", body) if name == "RUN" else []:
            found += [w for w in words.split() if not w.startswith("-")]
    return found


def test_the_container_file_parses_and_its_commands_are_shell() -> None:
    names = [name for name, _ in instructions()]
    assert set(names) <= INSTRUCTIONS
    assert names[0] == "FROM"
    assert names.count("FROM") == names.count("ENTRYPOINT") == names.count("CMD") == 1
    for name, body in instructions():
        if name in ("SHELL", "ENTRYPOINT", "CMD"):
            assert all(isinstance(word, str) for word in json.loads(body))
        elif name == "RUN":
            subprocess.run(["bash", "-n"], input=body, text=True, check=True)


def test_the_container_installs_what_the_packages_need() -> None:
    packages = apt_packages()
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9+.-]+", name) for name in packages)
    assert len(set(packages)) == len(packages)
    assert {"ros-jazzy-ros-base", "ros-jazzy-launch-xml"} <= set(packages)
    manifest = (WORKSPACE / "robolearn_bridge" / "package.xml").read_text()
    # ros-base brings rclpy and common_interfaces, and with them every message package that the bridge names.
    common = {"std_msgs", "sensor_msgs", "geometry_msgs", "trajectory_msgs", "diagnostic_msgs", "std_srvs"}
    assert set(re.findall(r"<exec_depend>(\w+)<", manifest)) <= common | {"rclpy", "lifecycle_msgs"}


def test_the_container_pins_what_the_project_pins_and_no_wheels_of_ros() -> None:
    run = " ".join(body for name, body in instructions() if name == "RUN")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["ros"]
    pinned = next(line for line in extras if line.startswith("rosbags=="))
    assert pinned in run
    (filtered,) = re.findall(r"(grep -oE .* > /tmp/constraints\.txt)", run)
    made = subprocess.run(
        ["bash", "-c", filtered.replace("> /tmp/constraints.txt", "")], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert len(made) > 50
    assert any(line.startswith("torch==") for line in made)
    assert not [line for line in made if line.startswith(("ros-", "empy=="))]


def published_topics() -> set[str]:
    """Every topic that a node of the bridge, a robot's driver or a task of the Panda publishes, without its namespace."""
    sources = {path.stem: path.read_text() for path in BRIDGE.glob("*.py")}
    topics = set(ROS_OWN)
    for node, text in sources.items():
        for name in re.findall(r'create_(?:lifecycle_)?publisher\(\w+, "([^"]+)"', text):
            topics.add(name.replace("~", node))
    for robot in hardware.robot_names():
        topics |= {topic.name for topic in hardware.load_robot(robot).topics}
    spec = hardware.load_robot("panda")
    from sim_envs.native_env import CAMERAS, native_lift_spaces

    fingers = ("panda_finger_joint1", "panda_finger_joint2")
    contract = contract_from_names(native_lift_spaces(CAMERAS[:2]), arm_joints=spec.joints, finger_joints=fingers)
    return topics | {stream.topic for stream in contract.streams.values()}


def offered_services() -> set[str]:
    """Every service of a node of the bridge."""
    found = set()
    for path in BRIDGE.glob("*_node.py"):
        found |= {f"{path.stem}/{name}" for name in re.findall(r'create_service\(\w+, "~/(\w+)"', path.read_text())}
    return found


def named_topics(value: object) -> set[str]:
    """Every topic that a layout names."""
    if isinstance(value, dict):
        return {t for v in value.values() for t in named_topics(v)}
    if isinstance(value, list):
        return {t for v in value for t in named_topics(v)}
    return {value} if isinstance(value, str) and re.fullmatch(r"/[a-z]\w*(/[\w/]+)?([.\[].*)?", value) else set()


@pytest.mark.parametrize("file", ["foxglove.json", "robolearn.rviz"])
def test_a_view_shows_topics_that_somebody_publishes(file: str) -> None:
    text = (CONFIG / file).read_text()
    layout = json.loads(text) if file.endswith("json") else yaml.safe_load(text)
    topics = {re.split(r"[.\[]", topic)[0].removeprefix("/panda/") for topic in named_topics(layout)}
    assert len(topics) >= 4
    assert topics <= published_topics() | offered_services()


def test_the_foxglove_layout_places_every_panel_that_it_configures() -> None:
    layout = json.loads((CONFIG / "foxglove.json").read_text())

    def leaves(node: object) -> set[str]:
        return {node} if isinstance(node, str) else leaves(node["first"]) | leaves(node["second"])  # type: ignore[index]

    assert leaves(layout["layout"]) == set(layout["configById"])


@pytest.mark.parametrize("robot", hardware.robot_names())
def test_every_robot_can_be_named_in_the_launch_file(robot: str) -> None:
    """The file reads a parameter file of the robot; its parameters are some that the nodes declare."""
    packages = WorkspacePackages(WORKSPACE)
    file = packages.share("robolearn_bringup") / "launch" / "policy.launch.xml"
    interface = hardware.load_robot(robot).command_interfaces[0]
    arguments = {"robot": robot, "bundle": "/nowhere", "interface": interface, "sim": "true"}
    processes = read_launch_file(file, arguments, find_package=packages.share, environ={})
    assert {p.name for p in processes} == {"sim_robot_node", "gate_node", "policy_node"}
    parameters = yaml.safe_load((CONFIG / f"{robot}.yaml").read_text())
    declared = "".join(path.read_text() for path in BRIDGE.glob("*.py"))
    for node, values in parameters.items():
        assert node in ("/**/sim_robot_node", "/**/gate_node")
        for name, value in values["ros__parameters"].items():
            assert f'"{name}"' in declared
            if name == "arm_joints":
                assert tuple(value) == hardware.load_robot(robot).joints


@pytest.mark.parametrize(
    ("robot", "nodes"), [("g1", {"low_state_node", "gate_node", "policy_node"}), ("gr1", {"gate_node", "policy_node"})]
)
def test_each_humanoid_has_a_launch_file_that_speaks_what_it_takes(robot: str, nodes: set[str]) -> None:
    packages = WorkspacePackages(WORKSPACE)
    file = packages.share("robolearn_bringup") / "launch" / f"{robot}.launch.xml"
    processes = read_launch_file(file, {"bundle": "/nowhere", "namespace": "bob"}, find_package=packages.share, environ={})
    assert {p.name for p in processes} == nodes
    assert {p.namespace for p in processes} == {"/bob"}
    gate = next(p for p in processes if p.name == "gate_node")
    values = {k: v for group in gate.parameters if not isinstance(group, Path) for k, v in group.items()}
    assert values["robot"] == robot
    assert values["interface"] in hardware.load_robot(robot).command_interfaces
    assert values["realtime_priority"] == 50


@pytest.mark.parametrize("task", ["g1_reach", "gr1_two_arm_lift"])
def test_a_humanoids_contract_follows_from_its_names(task: str) -> None:
    from sim_envs.task import EnvOptions

    env = get_task(task).make_env(EnvOptions(1))
    spaces = env.spec.spaces
    spec = hardware.load_robot(spaces.robot)
    contract = contract_from_names(spaces, arm_joints=spec.joints, finger_joints=())
    assert contract.streams["joints"].names == spec.joints == spaces.action.names
    frames = {
        name.removesuffix("_pos_x") for name in spaces.observation["observation.environment_state"].names if "pos_x" in name
    }
    assert frames == set(contract.used_streams(spaces)) - {"joints"}


PICTURES = {"sim_robot_node", "policy_node", "recorder_node"}
"""Nodes that send or take pictures."""


@pytest.mark.parametrize("file", sorted(path.name for path in (WORKSPACE / "robolearn_bringup" / "launch").glob("*.xml")))
def test_only_nodes_with_pictures_touch_shared_memory(file: str) -> None:
    """A policy that was killed with a lock in shared memory stopped the robot's driver for 1 s: its joint states waited."""
    packages = WorkspacePackages(WORKSPACE)
    path = packages.share("robolearn_bringup") / "launch" / file
    needed = re.findall(r'<arg name="(\w+)" description', path.read_text())
    given = {name: "panda" if name == "robot" else "any" for name in needed} | ({"sim": "true"} if "policy" in file else {})
    processes = read_launch_file(path, given, find_package=packages.share, environ={})
    for process in processes:
        profile = Path(process.environment["FASTRTPS_DEFAULT_PROFILES_FILE"])
        tree = ElementTree.fromstring(profile.read_text())
        kinds = {element.text for element in tree.iter() if element.tag.endswith("}type")}
        assert kinds == ({"SHM", "UDPv4"} if process.name in PICTURES else {"UDPv4"}), process.name
        assert {e.text for e in tree.iter() if e.tag.endswith("useBuiltinTransports")} == {"false"}
        assert process.environment["ROS_AUTOMATIC_DISCOVERY_RANGE"] == "SUBNET"  # LOCALHOST makes the middleware add it
