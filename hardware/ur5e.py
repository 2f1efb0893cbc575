"""Universal Robots UR5e through ur_robot_driver, without a gripper; position limits equal to robosuite's model."""

from __future__ import annotations

import math

from robolearn.core.robot import KinematicModel, RobotSpec, TopicSpec, Workspace

_JOINTS = ("shoulder_pan_joint", "shoulder_lift_joint", "elbow_joint", "wrist_1_joint", "wrist_2_joint", "wrist_3_joint")
_YAML = "UniversalRobots/Universal_Robots_ROS2_Description config/ur5e/joint_limits.yaml (1c32d8fb)"
_TURN, _HALF = 2 * math.pi, math.pi

SPEC = RobotSpec(
    name="ur5e",
    joints=_JOINTS,
    position_low=(-_TURN, -_TURN, -_HALF, -_TURN, -_TURN, -_TURN),
    position_high=(_TURN, _TURN, _HALF, _TURN, _TURN, _TURN),
    max_velocity=(_HALF,) * 6,
    max_acceleration=(_HALF,) * 6,
    max_jerk=(100.0,) * 6,
    max_effort=(150.0, 150.0, 150.0, 28.0, 28.0, 28.0),
    home=(-0.470, -1.735, 2.480, -2.275, -1.590, -1.991),
    control_rate_hz=100.0,
    base_frame="base_link",
    tcp=("tool0",),
    command_interfaces=("trajectory", "position", "velocity"),
    topics=(
        TopicSpec("joint_states", "joint_states", "sensor_msgs/msg/JointState", qos="sensor"),
        TopicSpec(
            "command",
            "scaled_joint_trajectory_controller/joint_trajectory",
            "trajectory_msgs/msg/JointTrajectory",
            interface="trajectory",
        ),
        TopicSpec(
            "command", "forward_position_controller/commands", "std_msgs/msg/Float64MultiArray", units="rad", interface="position"
        ),
        TopicSpec(
            "command",
            "forward_velocity_controller/commands",
            "std_msgs/msg/Float64MultiArray",
            units="rad/s",
            interface="velocity",
        ),
        TopicSpec(
            "program_running", "io_and_status_controller/robot_program_running", "std_msgs/msg/Bool", qos="latched", units=""
        ),
        TopicSpec(
            "wrench", "force_torque_sensor_broadcaster/wrench", "geometry_msgs/msg/WrenchStamped", qos="sensor", units="N, N m"
        ),
    ),
    workspace=Workspace(
        low=(-0.85, -0.85, 0.02),
        high=(0.85, 0.85, 1.05),
        source="chosen: the 0.85 m reach of the data sheet, above a table in the plane of the base",
        collision_pairs=(
            ("wrist_1_link", "upper_arm_link"),
            ("wrist_3_link", "upper_arm_link"),
            ("wrist_3_link", "shoulder_link"),
            ("forearm_link", "fixed_base_link"),
            ("wrist_3_link", "fixed_base_link"),
        ),
    ),
    model=KinematicModel(
        package="robosuite",
        path="models/assets/robots/ur5e/robot.xml",
        joints=_JOINTS,
        base_body="base",
        tcp_bodies=("right_hand",),
    ),
    sources={
        "position_low": _YAML,
        "position_high": f"{_YAML}; the elbow at half of its range, as there",
        "max_velocity": _YAML,
        "max_acceleration": f"{_YAML}; a planning value: the maker does not publish accelerations",
        "max_jerk": "chosen: full acceleration within 30 ms; the maker does not publish jerks",
        "max_effort": _YAML,
        "home": "robosuite 1.5.1 ur5e_robot.py init_qpos: where simulated episodes start",
        "position_margin": "chosen: 0.05 rad, more than a control period at full speed (0.031 rad)",
        "max_tracking_error": "chosen: 0.19 s behind at the gate's full speed (0.79 rad/s), far beyond its own controller's lag",
        "control_rate_hz": "chosen: the gate's rate; the driver runs at 500 Hz",
        "tcp": "ur_description: tool0",
        "command_interfaces": "ur_robot_driver (696e1a7b): JTC is the default, forward_* controllers are offered",
        "topics": "ur_robot_driver (696e1a7b) ur_controllers.yaml",
        "model": "robosuite 1.5.1",
    },
)
