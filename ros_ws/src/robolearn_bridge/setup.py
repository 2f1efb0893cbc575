"""Build of robolearn_bridge; the executables listed here are the ones that launch files may name."""

from setuptools import find_packages, setup

PACKAGE = "robolearn_bridge"
NODES = (
    "gate_node",
    "low_state_node",
    "policy_node",
    "recorder_node",
    "sim_robot_node",
    "so101_node",
    "supervisor_node",
    "teleop_node",
    "twin_node",
)

setup(
    name=PACKAGE,
    version="0.1.0",
    packages=find_packages(),
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{PACKAGE}"]),
        (f"share/{PACKAGE}", ["package.xml"]),
    ],
    install_requires=["setuptools"],
    zip_safe=True,
    maintainer="robolearn contributors",
    maintainer_email="robolearn@users.noreply.github.com",
    description="Lifecycle nodes that run robolearn policies on robots.",
    license="Apache-2.0",
    entry_points={"console_scripts": [f"{name} = {PACKAGE}.{name}:main" for name in NODES]},
)
