"""One file per task; each defines ``TASK`` (see :mod:`sim_envs.task`)."""
