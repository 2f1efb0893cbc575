"""A Unitree robot's LowState as joint states by name; listens and publishes, commands nothing."""

from __future__ import annotations

import sys
import time
from typing import Any

from sensor_msgs.msg import JointState

from hardware import load_robot
from robolearn_bridge.arm_sdk import arm_states, vendor_types
from robolearn_bridge.lifecycle import SafeLifecycleNode, run
from robolearn_bridge.messages import SENSOR_QOS
from robolearn_bridge.parameters import declare, read


class LowStateNode(SafeLifecycleNode):
    """Publishes ``joint_states`` for every LowState."""

    def __init__(self) -> None:
        super().__init__("low_state_node")
        declare(self, "robot", "g1", "Name of the robot in hardware/.", read_only=True)

    def configure(self) -> None:
        """Subscribe."""
        self._spec = load_robot(read(self, "robot"))
        _, state_type = vendor_types()
        topic = self._spec.topic("low_state").name
        self._states = self.create_lifecycle_publisher(JointState, self._spec.topic("joint_states").name, SENSOR_QOS)
        self._heard = self.create_subscription(state_type, topic, self.guarded(self._on_state, topic), SENSOR_QOS)

    def cleanup(self) -> None:
        """Remove topics."""
        self.destroy_subscription(self._heard)
        self.destroy_lifecycle_publisher(self._states)

    def stop(self) -> None:
        """Nothing to stop."""

    def _on_state(self, message: Any) -> None:
        self._states.publish(arm_states(self._spec, message, time.time_ns()))


def main() -> int:
    """Run the node."""
    return run(LowStateNode)


if __name__ == "__main__":
    sys.exit(main())
