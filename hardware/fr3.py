"""Franka Research 3 through franka_ros2; its limits differ from the Panda's, so a Panda's policy is not its policy."""

from __future__ import annotations

import math

from robolearn.core.robot import GripperSpec, RobotSpec, TopicSpec, Workspace

_JOINTS = tuple(f"fr3_joint{i}" for i in range(1, 8))
_URDF = "frankaemika/franka_description robots/fr3/joint_limits.yaml (1ddff9ba)"
_RATES = "frankaemika/libfranka include/franka/rate_limiting.h (6474466b): 10 rad/s^2 and 5000 rad/s^3 for every joint"

SPEC = RobotSpec(
    name="fr3",
    joints=_JOINTS,
    position_low=(-2.7437, -1.7837, -2.9007, -3.0421, -2.8065, 0.5445, -3.0159),
    position_high=(2.7437, 1.7837, 2.9007, -0.1518, 2.8065, 4.5169, 3.0159),
    max_velocity=(2.62, 2.62, 2.62, 2.62, 5.26, 4.18, 5.26),
    max_acceleration=(10.0,) * 7,
    max_jerk=(5000.0,) * 7,
    max_effort=(87.0, 87.0, 87.0, 87.0, 12.0, 12.0, 12.0),
    home=(0.0, -math.pi / 4, 0.0, -3 * math.pi / 4, 0.0, math.pi / 2, math.pi / 4),
    control_rate_hz=100.0,
    base_frame="fr3_link0",
    tcp=("fr3_hand_tcp",),
    command_interfaces=("trajectory", "position"),
    topics=(
        TopicSpec("joint_states", "joint_states", "sensor_msgs/msg/JointState", qos="sensor"),
        TopicSpec(
            "command", "fr3_arm_controller/joint_trajectory", "trajectory_msgs/msg/JointTrajectory", interface="trajectory"
        ),
        TopicSpec(
            "command", "forward_position_controller/commands", "std_msgs/msg/Float64MultiArray", units="rad", interface="position"
        ),
    ),
    workspace=Workspace(
        low=(-0.2, -0.75, 0.0),
        high=(0.85, 0.75, 1.0),
        source="chosen: in front of the base, above its mounting plane, inside the 0.855 m reach of the data sheet",
    ),
    grippers=(
        GripperSpec(
            joint="fr3_finger_joint1",
            open=0.04,
            closed=0.0,
            unit="m",
            max_velocity=0.05,
            source="Franka Hand manual: 80 mm stroke of both fingers, 50 mm/s a finger (the driver takes one finger's position)",
        ),
    ),
    speed_scale=0.1,
    max_tracking_error=0.1,
    sources={
        "position_low": _URDF,
        "position_high": _URDF,
        "max_velocity": f"{_URDF}; the robot lowers it near a joint's end (rate_limiting.h), which speed_scale stays below",
        "max_acceleration": _RATES,
        "max_jerk": _RATES,
        "max_effort": _URDF,
        "home": "franka_ros2 move_to_start example: 0, -pi/4, 0, -3 pi/4, 0, pi/2, pi/4",
        "position_margin": "chosen: 0.05 rad, more than a control period at full speed (0.053 rad at 100 Hz for joints 5 and 7)",
        "max_tracking_error": "chosen: 0.19 s behind at the gate's full speed (0.53 rad/s), far beyond its own controller's lag",
        "control_rate_hz": "chosen: the gate's rate; the controllers run at franka_ros2's update_rate of 1000 Hz (43357d1)",
        "tcp": "franka_description end_effectors/franka_hand: hand_tcp",
        "command_interfaces": "ros2_controllers joint_trajectory_controller, forward_command_controller (ed360c97)",
        "topics": "franka_ros2 (43357d1) and ros2_controllers naming",
        "speed_scale": "chosen for a first motion, after franky's advice to begin at a dynamics factor of 0.05 (209e3a93)",
    },
)
