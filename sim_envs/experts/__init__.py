"""Scripted demonstrators, one file per task; :mod:`sim_envs.experts.phases` is the machine that they share."""
