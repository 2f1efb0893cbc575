"""MuJoCo environments: robosuite tasks made fast, native tasks, scripted experts.

Importing this package makes every task known to Gymnasium (``gymnasium.make("robolearn/Lift-v0")``) and imports no simulator.
"""

from sim_envs.registration import register_environments

register_environments()
