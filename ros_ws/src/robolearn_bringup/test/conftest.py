"""Without launch_testing (there is none on PyPI) nothing here is collected."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("launch_testing") and find_spec("launch_ros") else ["test_policy_launch.py"]
