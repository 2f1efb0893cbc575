"""Franka Emika Panda (FER): the arm of robosuite's tasks; limits from libfranka 0.9, position limits equal to the model's."""

from __future__ import annotations

import math

from robolearn.core.robot import GripperSpec, KinematicModel, RobotSpec, TopicSpec, Workspace

_JOINTS = tuple(f"panda_joint{i}" for i in range(1, 8))
_LIMITS = "Franka control parameters, Panda (frankaemika.github.io/docs/control_parameters.html), libfranka 0.9 rate_limiting.h"

SPEC = RobotSpec(
    name="panda",
    joints=_JOINTS,
    position_low=(-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973),
    position_high=(2.8973, 1.7628, 2.8973, -0.0698, 2.8973, 3.7525, 2.8973),
    max_velocity=(2.175, 2.175, 2.175, 2.175, 2.61, 2.61, 2.61),
    max_acceleration=(15.0, 7.5, 10.0, 12.5, 15.0, 20.0, 20.0),
    max_jerk=(7500.0, 3750.0, 5000.0, 6250.0, 7500.0, 10000.0, 10000.0),
    max_effort=(87.0, 87.0, 87.0, 87.0, 12.0, 12.0, 12.0),
    home=(0.0, math.pi / 16, 0.0, -math.pi / 2 - math.pi / 3, 0.0, math.pi - 0.2, math.pi / 4),
    control_rate_hz=100.0,
    base_frame="panda_link0",
    tcp=("panda_hand_tcp",),
    command_interfaces=("trajectory", "position"),
    topics=(
        TopicSpec("joint_states", "joint_states", "sensor_msgs/msg/JointState", qos="sensor"),
        TopicSpec(
            "command", "panda_arm_controller/joint_trajectory", "trajectory_msgs/msg/JointTrajectory", interface="trajectory"
        ),
        TopicSpec(
            "command",
            "forward_position_controller/commands",
            "std_msgs/msg/Float64MultiArray",
            units="rad",
            interface="position",
        ),
    ),
    workspace=Workspace(
        low=(-0.2, -0.75, 0.0),
        high=(0.85, 0.75, 1.1),
        source="chosen: in front of the base, above its mounting plane, inside the 0.855 m reach of the data sheet",
        collision_pairs=(("link5", "link0"), ("right_hand", "link0"), ("right_hand", "link2")),
    ),
    grippers=(
        GripperSpec(
            joint="panda_finger_joint1",
            open=0.04,
            closed=0.0,
            unit="m",
            max_velocity=0.05,
            source="Franka Hand manual: 80 mm stroke of both fingers, 50 mm/s a finger (the driver takes a finger's position)",
        ),
    ),
    model=KinematicModel(
        package="robosuite",
        path="models/assets/robots/panda/robot.xml",
        joints=tuple(f"joint{i}" for i in range(1, 8)),
        base_body="link0",
        tcp_bodies=("right_hand",),
        tcp_offset_m=(0.0, 0.0, 0.1034),
    ),
    sources={
        "position_low": _LIMITS,
        "position_high": _LIMITS,
        "max_velocity": _LIMITS,
        "max_acceleration": _LIMITS,
        "max_jerk": _LIMITS,
        "max_effort": _LIMITS,
        "home": "robosuite 1.5.1 panda_robot.py init_qpos: where the tasks' episodes start",
        "position_margin": "chosen: 0.05 rad, more than a control period at full speed (0.026 rad)",
        "max_tracking_error": "chosen: 0.23 s behind at the gate's full speed (0.65 rad/s), far beyond its own controller's lag",
        "control_rate_hz": "chosen: the gate's rate; franka_ros2 interpolates to its 1 kHz",
        "tcp": "franka_description end_effectors/franka_hand: hand_tcp",
        "command_interfaces": "ros2_controllers joint_trajectory_controller, forward_command_controller",
        "topics": "franka_ros2 and ros2_controllers naming; arm prefix panda as in moveit_resources_panda_moveit_config",
        "model": "robosuite 1.5.1",
    },
)
