"""Fourier GR1, both arms; the robot's own controller keeps waist, head and legs. Position limits are robosuite's."""

from __future__ import annotations

from robolearn.core.robot import KinematicModel, RobotSpec, TopicSpec, Workspace

_JOINTS = tuple(
    f"{side}_{joint}"
    for side in ("r", "l")
    for joint in ("shoulder_pitch", "shoulder_roll", "shoulder_yaw", "elbow_pitch", "wrist_yaw", "wrist_roll", "wrist_pitch")
)
_MODEL = (
    "robosuite 1.5.1 models/assets/robots/gr1/robot.xml; rounder than the robot's own: tighten from Fourier's URDF before use"
)
_CHOSEN = "chosen, low: no published number of Fourier's was found in the references at hand"

SPEC = RobotSpec(
    name="gr1",
    joints=_JOINTS,
    position_low=(-3.0, -3.0, -3.0, -3.0, -3.0, -1.5, -1.5, -3.0, 0.0, -3.0, -3.0, -3.0, -1.5, -1.5),
    position_high=(3.0, 0.0, 3.0, 0.0, 3.0, 1.5, 1.5, 3.0, 3.0, 3.0, 0.0, 3.0, 1.5, 1.5),
    max_velocity=(3.0,) * 14,
    max_acceleration=(15.0,) * 14,
    max_jerk=(300.0,) * 14,
    max_effort=(30.0, 30.0, 30.0, 30.0, 10.0, 4.0, 4.0) * 2,
    home=(0.0, -0.1, 0.0, -1.57, 0.0, 0.0, 0.0, 0.0, 0.1, 0.0, -1.57, 0.0, 0.0, 0.0),
    control_rate_hz=100.0,
    base_frame="base",
    tcp=("right_end_effector_link", "left_end_effector_link"),
    command_interfaces=("position",),
    topics=(
        TopicSpec("joint_states", "joint_states", "sensor_msgs/msg/JointState", qos="sensor"),
        TopicSpec(
            "command", "upper_body_controller/commands", "std_msgs/msg/Float64MultiArray", units="rad", interface="position"
        ),
    ),
    workspace=Workspace(
        low=(-0.1, -0.75, -0.35),
        high=(0.65, 0.75, 0.75),
        source="chosen: in front of the torso, from the model's base frame between the hips",
        collision_pairs=(
            ("r_hand_yaw", "l_hand_yaw"),
            ("r_hand_yaw", "torso_waist_roll"),
            ("l_hand_yaw", "torso_waist_roll"),
            ("r_hand_yaw", "head_pitch"),
            ("l_hand_yaw", "head_pitch"),
        ),
        min_distance_m=0.06,
    ),
    model=KinematicModel(
        package="robosuite",
        path="models/assets/robots/gr1/robot.xml",
        joints=_JOINTS,
        base_body="base",
        tcp_bodies=("right_hand_eef", "left_hand_eefd"),
    ),
    sources={
        "position_low": _MODEL,
        "position_high": _MODEL,
        "max_velocity": _CHOSEN,
        "max_acceleration": _CHOSEN,
        "max_jerk": _CHOSEN,
        "max_effort": _CHOSEN,
        "home": "robosuite 1.5.1 gr1_robot.py init_qpos of GR1FixedLowerBody, the shoulder roll at 0.1 rad as there",
        "position_margin": "chosen: 0.05 rad, more than a control period at full speed (0.03 rad)",
        "max_tracking_error": "chosen: 0.2 s behind at the gate's full speed (0.75 rad/s)",
        "control_rate_hz": "chosen: the gate's rate",
        "tcp": "Fourier's URDF naming",
        "command_interfaces": "chosen: a forward position controller in front of Fourier's SDK, which this project has not read",
        "topics": "robolearn's own names for that adapter; the twin uses the same",
        "model": "robosuite 1.5.1",
    },
)
