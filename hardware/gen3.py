"""Kinova Gen3 with seven joints through ros2_kortex; joints 1, 3, 5 and 7 turn without end."""

from __future__ import annotations

import math

from robolearn.core.robot import KinematicModel, RobotSpec, TopicSpec, Workspace

_JOINTS = tuple(f"joint_{i}" for i in range(1, 8))
_XACRO = "Kinovarobotics/ros2_kortex kortex_description/arms/gen3/7dof/urdf/gen3_macro.xacro (0d60040f)"
_PLAN = "Kinovarobotics/ros2_kortex kinova_gen3_7dof_robotiq_2f_85_moveit_config joint_limits.yaml (020301b2): a planning value"
_FREE = math.inf

SPEC = RobotSpec(
    name="gen3",
    joints=_JOINTS,
    position_low=(-_FREE, -2.41, -_FREE, -2.66, -_FREE, -2.23, -_FREE),
    position_high=(_FREE, 2.41, _FREE, 2.66, _FREE, 2.23, _FREE),
    max_velocity=(1.3963, 1.3963, 1.3963, 1.3963, 1.2218, 1.2218, 1.2218),
    max_acceleration=(8.6,) * 7,
    max_jerk=(100.0,) * 7,
    max_effort=(39.0, 39.0, 39.0, 39.0, 9.0, 9.0, 9.0),
    home=(0.0, 0.26, math.pi, -2.27, 0.0, 0.96, math.pi / 2),
    control_rate_hz=100.0,
    base_frame="base_link",
    tcp=("end_effector_link",),
    command_interfaces=("position", "trajectory", "twist"),
    topics=(
        TopicSpec("joint_states", "joint_states", "sensor_msgs/msg/JointState", qos="sensor"),
        TopicSpec(
            "command", "forward_position_controller/commands", "std_msgs/msg/Float64MultiArray", units="rad", interface="position"
        ),
        TopicSpec(
            "command",
            "joint_trajectory_controller/joint_trajectory",
            "trajectory_msgs/msg/JointTrajectory",
            interface="trajectory",
        ),
        TopicSpec("command", "twist_controller/commands", "geometry_msgs/msg/Twist", units="m/s, rad/s", interface="twist"),
    ),
    position_margin=0.18,
    workspace=Workspace(
        low=(-0.2, -0.7, 0.02),
        high=(0.8, 0.7, 1.1),
        source="chosen: in front of the base, above its mounting plane, inside the 0.902 m reach of the data sheet",
        collision_pairs=(
            ("Bracelet_Link", "HalfArm1_Link"),
            ("Bracelet_Link", "shoulder_link"),
            ("Bracelet_Link", "fixed_base_link"),
            ("forearm_link", "fixed_base_link"),
        ),
    ),
    model=KinematicModel(
        package="robosuite",
        path="models/assets/robots/kinova3/robot.xml",
        joints=tuple(f"Actuator{i}" for i in range(1, 8)),
        base_body="base",
        tcp_bodies=("right_hand",),
    ),
    sources={
        "position_low": _XACRO,
        "position_high": _XACRO,
        "max_velocity": _XACRO,
        "max_acceleration": _PLAN,
        "max_jerk": "chosen: full acceleration within 90 ms; the maker does not publish jerks",
        "max_effort": _XACRO,
        "home": "Kinova's Home, 0 15 180 -130 0 55 90 deg",
        "position_margin": "chosen: other versions of the xacro are tighter by up to 0.17 rad; this stays inside all",
        "max_tracking_error": "chosen: 0.43 s behind at the gate's full speed (0.35 rad/s)",
        "control_rate_hz": "chosen: the gate's rate; Kinova's cyclic loop runs at 1 kHz",
        "tcp": "kortex_description: end_effector_link",
        "command_interfaces": "ros2_kortex issue 412: trajectories stop and start at 60 Hz, so streamed positions come first",
        "topics": "ros2_kortex and ros2_controllers naming",
        "model": "robosuite 1.5.1 kinova3",
    },
)
