"""ROS 2 nodes of robolearn: thin shells around the code in ``robolearn.deploy`` and ``sim_envs``."""
