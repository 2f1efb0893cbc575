"""A scripted person watches over a policy in a teleoperation session and takes over where it fails (HG-DAgger).

    OMP_NUM_THREADS=1 python tests/bench/bench_takeover.py RUN STORE [--episodes 60] [--patience 40]

The policy drives each episode of native lift from its start through the real session, device and recorder (no window, no
waiting for real time); wishes arrive as from the web page. Where the cube is not lifted after ``--patience`` steps, which
is what a person would see, the person takes over, does the task as the scripted expert would from there, and keeps the
controls to the end. Then, as in docs/collect.md:

    robolearn data corrections STORE CORRECTIONS
    robolearn data merge DEMOS CORRECTIONS --common --out ROUND2
    robolearn train RECIPE data.path=ROUND2
"""

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from robolearn.commands.teleop import RunningSession, TeleopConfig, open_session
from robolearn.teleop.motion import MotionConfig
from robolearn.teleop.recorder import RecorderConfig
from robolearn.teleop.server import ServerConfig
from sim_envs.experts.native_lift import NativeLiftExpert

FASTEST_M_S, FASTEST_RAD_S = 0.85, 8.0
"""Full deflection, as fast as the expert goes."""
ACTION_M_S, ACTION_RAD_S = 0.05 * 20, 0.5 * 20
"""Speed of an action of 1."""


class Person:
    """Sits at the page: looks at the newest observation, moves the sticks, presses the gripper's key."""

    def __init__(self, running: RunningSession) -> None:
        self._session, self._page = running.session, running.server._device
        self._page.owner = 1
        self._expert = NativeLiftExpert(1)
        self._closed = False

    def begin(self, seed: int) -> None:
        self._expert.reset([seed])
        self._closed = False
        self._page.let_go()  # the hands are off the sticks, or the policy would not get the controls

    def drive(self) -> None:
        """Wish for what the expert would do now, in the axes of somebody who faces the robot."""
        _, intended = self._expert.act({key: value[None] for key, value in self._session.observation.items()})
        facing = np.array([-1.0, -1.0, 1.0])
        move = facing * intended[0, :3] * ACTION_M_S / FASTEST_M_S
        turn = facing * intended[0, 3:6] * ACTION_RAD_S / FASTEST_RAD_S
        self._page.take({"twist": [float(v) for v in (*move, *turn)], "engaged": True}, owner=1)
        if (intended[0, 6] > 0) != self._closed:
            self._session.ask("gripper")
            self._closed = not self._closed


def episode(running: RunningSession, person: Person, patience: int) -> bool:
    """Run one episode to its end; return whether the person had to drive."""
    session = running.session
    person.begin(session.status["seed"])
    session.ask("start")
    session.tick()
    drove = False
    for step in range(400):
        if session.status["ended"]:
            break
        if step >= patience:
            drove = True
            person.drive()
        session.tick()
    else:
        session.ask("failure")
        session.tick()
    while session.status["pending"]:
        session.tick()
    return drove


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run")
    parser.add_argument("store", type=Path)
    parser.add_argument("--episodes", type=int, default=60)
    parser.add_argument("--patience", type=int, default=40)
    parser.add_argument("--seed", type=int, default=50_000)
    asked = parser.parse_args()
    motion = MotionConfig(linear_speed_m_s=FASTEST_M_S, angular_speed_rad_s=FASTEST_RAD_S)
    config = TeleopConfig(
        store=str(asked.store), policy=asked.run, cameras=(), exec_horizon=2, motion=motion, recorder=RecorderConfig("script")
    )
    config = replace(config, session=replace(config.session, first_seed=asked.seed, view_rate_hz=0.001))
    with open_session(config, ["web"], ServerConfig(port=0)) as running:
        person = Person(running)
        driven = [episode(running, person, asked.patience) for _ in range(asked.episodes)]
        successes = running.store.successes
    print(
        f"{len(driven)} episodes: the policy alone solved {int(sum(not d for d in driven))}, the person took over in "
        f"{sum(driven)} and solved {int(successes[np.array(driven)].sum())} of these."
    )


if __name__ == "__main__":
    sys.exit(main())
