"""Unitree G1 (29 joints), both arms through ``arm_sdk``: the vendor's controller keeps the balance, legs and waist."""

from __future__ import annotations

import numpy as np

from robolearn.core.errors import RefusedError
from robolearn.core.robot import KinematicModel, RobotSpec, TopicSpec, Workspace
from robolearn.core.types import Array

_ARM = ("shoulder_pitch", "shoulder_roll", "shoulder_yaw", "elbow", "wrist_roll", "wrist_pitch", "wrist_yaw")
_JOINTS = tuple(f"{side}_{joint}_joint" for side in ("left", "right") for joint in _ARM)
_URDF = "unitreerobotics/unitree_ros robots/g1_description/g1_29dof.urdf (5ae4fa58)"
_WRIST = (1.972222054, 1.614429558, 1.614429558)
_EXAMPLE = "unitree_sdk2 g1 arm_sdk example: kp 60, kd 1.5, 50 Hz, weight in motor_cmd[29].q"

NUM_MOTORS = 35
"""Length of unitree_hg/LowCmd.motor_cmd."""
WEIGHT_MOTOR = 29
"""Its q is the blend weight of arm_sdk, 0 (vendor) to 1 (ours)."""

SPEC = RobotSpec(
    name="g1",
    joints=_JOINTS,
    position_low=(
        -3.0892,
        -1.5882,
        -2.618,
        -1.0472,
        *(-w for w in _WRIST),
        -3.0892,
        -2.2515,
        -2.618,
        -1.0472,
        *(-w for w in _WRIST),
    ),
    position_high=(2.6704, 2.2515, 2.618, 2.0944, *_WRIST, 2.6704, 1.5882, 2.618, 2.0944, *_WRIST),
    max_velocity=(4.0,) * 14,
    max_acceleration=(20.0,) * 14,
    max_jerk=(400.0,) * 14,
    max_effort=(25.0, 25.0, 25.0, 25.0, 25.0, 5.0, 5.0) * 2,
    home=(0.0, 0.2, 0.0, 0.8, 0.0, 0.0, 0.0, 0.0, -0.2, 0.0, 0.8, 0.0, 0.0, 0.0),
    control_rate_hz=100.0,
    base_frame="pelvis",
    tcp=("left_hand_palm_link", "right_hand_palm_link"),
    command_interfaces=("arm_sdk",),
    topics=(
        TopicSpec("low_state", "lowstate", "unitree_hg/msg/LowState", qos="sensor"),
        TopicSpec("joint_states", "joint_states", "sensor_msgs/msg/JointState", qos="sensor"),
        TopicSpec(
            "command", "arm_sdk", "unitree_hg/msg/LowCmd", units="rad, rad/s, N m, N m/rad, N m s/rad", interface="arm_sdk"
        ),
    ),
    workspace=Workspace(
        low=(-0.1, -0.7, -0.3),
        high=(0.6, 0.7, 0.7),
        source="chosen: in front of the torso, in the frame of the pelvis",
        collision_pairs=(
            ("left_hand_palm_link", "right_hand_palm_link"),
            ("left_hand_palm_link", "torso_link"),
            ("right_hand_palm_link", "torso_link"),
            ("left_hand_palm_link", "pelvis"),
            ("right_hand_palm_link", "pelvis"),
        ),
    ),
    model=KinematicModel(
        package="hardware",
        path="models/g1_upper_body.xml",
        joints=_JOINTS,
        base_body="pelvis",
        tcp_bodies=("left_hand_palm_link", "right_hand_palm_link"),
    ),
    kp=(60.0,) * 14,
    kd=(1.5,) * 14,
    wire_index=tuple(range(15, 29)),
    max_relative_target=0.3,
    max_tracking_error=0.25,
    sources={
        "position_low": _URDF,
        "position_high": _URDF,
        "max_velocity": f"chosen: far below the {_URDF} motors' 37 and 22 rad/s, which arms of this length never need",
        "max_acceleration": "chosen: full speed within 0.2 s; the maker does not publish accelerations",
        "max_jerk": "chosen: full acceleration within 50 ms; the maker does not publish jerks",
        "max_effort": _URDF,
        "home": "chosen: upper arms beside the torso, elbows bent",
        "position_margin": "chosen: 0.05 rad, more than a control period at full speed (0.04 rad)",
        "max_tracking_error": "chosen: with kp 60 N m/rad an arm held out sags by about 0.12 rad (7 N m), and lags",
        "control_rate_hz": f"chosen between the example's 50 Hz and xr_teleoperate's 250 Hz ({_EXAMPLE})",
        "tcp": f"{_URDF}: hand_palm_joint",
        "command_interfaces": "unitree_sdk2 arm_sdk: topic rt/arm_sdk (rt/ is DDS's prefix, so the ROS topic is arm_sdk)",
        "topics": "unitree_ros2 README; joint_states is republished by name from lowstate by the bridge",
        "model": f"our own MJCF; kinematics, masses and inertias of the {_URDF}, shapes chosen without its meshes",
        "kp": _EXAMPLE,
        "kd": _EXAMPLE,
        "wire_index": "unitree_sdk2 G1_29 joint index: left arm 15-21, right arm 22-28",
    },
)


def motor_table(position: Array, velocity: Array, *, weight: float, spec: RobotSpec = SPEC) -> Array:
    """Return what the motors of a LowCmd are told, (35, 5): q [rad], dq [rad/s], tau [N m], kp, kd.

    Motors outside the arms stay zero, gains included: under arm_sdk the vendor's controller ignores them. The sender copies
    ``mode_machine`` from the newest LowState and computes the CRC after filling the message.

    Raises:
        RefusedError: a shape is wrong, a value is not finite, or the weight is outside [0, 1].
    """
    position, velocity = np.asarray(position, float), np.asarray(velocity, float)
    if position.shape != (spec.dim,) or velocity.shape != (spec.dim,):
        raise RefusedError(f"{spec.name} has {spec.dim} arm joints; came shapes {position.shape} and {velocity.shape}.")
    if not (np.isfinite(position).all() and np.isfinite(velocity).all() and 0 <= weight <= 1):
        raise RefusedError(f"arm_sdk takes finite numbers and a weight in [0, 1]; came {position}, {velocity}, {weight}.")
    table = np.zeros((NUM_MOTORS, 5))
    index = list(spec.wire_index)
    table[index, 0], table[index, 1] = position, velocity
    table[index, 3], table[index, 4] = spec.kp, spec.kd
    table[WEIGHT_MOTOR, 0] = weight
    return table
