"""ROS 2 nodes of robolearn: thin shells around the code in ``robolearn.deploy`` and ``sim_envs``."""

from robolearn_bridge.environment import exit_unless_one_ros

# Here, because the package is imported before any module of it can load rclpy's libraries.
exit_unless_one_ros()
