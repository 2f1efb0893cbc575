"""The control loop on the real native lift: who drives, what is recorded, and when motion ends."""

import time
from dataclasses import replace

import numpy as np
import pytest

from robolearn.commands.autopilot import PolicyAutopilot
from robolearn.commands.teleop import TeleopConfig, open_session
from robolearn.core.errors import RefusedError
from robolearn.core.types import ACTION, STATE
from robolearn.data.header import ACTION_SENT, INTERVENTION, live_extra
from robolearn.data.store import EpisodeStore
from robolearn.deploy.executor import ExecutorConfig
from robolearn.policies import config_class, make_policy
from robolearn.teleop.devices.web import WebDevice
from robolearn.teleop.motion import MotionConfig, PoseDelta
from robolearn.teleop.recorder import Recorder, State
from robolearn.teleop.replay import EpisodeReader, ReplayCheck, episode_cards
from robolearn.teleop.server import ServerConfig
from robolearn.teleop.session import Session, SessionConfig
from sim_envs.task import EnvOptions, get_task, make_env

AGE_S = 1.0
"""Longer than in a real session (test_teleop_motion says what that has), so that a loaded machine does not let go by itself."""


class Rig:
    """A session without its own thread: the test makes the control steps."""

    def __init__(self, path, *, policy=None, steps=400, **config):
        self.env = make_env("native_lift", EnvOptions(max_episode_steps=steps))
        spaces = self.env.spec.spaces
        self.store = EpisodeStore.create(path, spaces, task="native_lift", fidelity="native", extra=live_extra(spaces))
        check = ReplayCheck(make_env("native_lift", EnvOptions(max_episode_steps=steps)))
        self.recorder = Recorder(self.store, annotate=check)
        self.page = WebDevice()
        self.page.owner = 1
        pilot = None
        if policy:
            pilot = PolicyAutopilot(make_policy(policy, config_class(policy)(), spaces, None), ExecutorConfig(4))
        motion = PoseDelta(spaces, MotionConfig(), metres=0.05, radians=0.5)
        self.session = Session(
            self.env,
            motion,
            self.recorder,
            [self.page],
            config=SessionConfig(**config),
            wish_age_s=AGE_S,
            autopilot=pilot,
            cards=lambda: episode_cards(self.store),
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.session.close()
        self.store.close()

    def tick(self, *twist, engaged=True, ask=None):
        if ask:
            self.session.ask(ask)
        if twist:
            self.page.take({"twist": [*twist, *[0.0] * (6 - len(twist))], "engaged": engaged}, owner=1)
        self.session.tick()
        return self.session.status

    def saved(self):
        for _ in range(1000):
            if not self.session.status["pending"]:
                return
            time.sleep(0.005)
            self.session.tick()
        raise AssertionError("the episode was not stored")


def test_motion_is_recorded_and_ends_when_the_device_falls_silent_or_is_gone(tmp_path):
    with Rig(tmp_path / "s") as rig:
        rig.tick(ask="start")
        for _ in range(4):
            rig.tick(0, 0, 1)
        high = rig.session.observation[STATE][2]
        assert high > 0
        time.sleep(AGE_S + 0.01)  # the page says nothing more; the next step begins after the wish has aged out
        rig.tick()
        rig.page.take({"twist": [0, 0, 1, 0, 0, 0], "engaged": True}, owner=1)
        rig.page.let_go()  # the page is closed: no waiting at all
        rig.tick()
        rig.tick(ask="failure")
        rig.saved()
        data = rig.store.read(0).data
    up = data[ACTION_SENT][:, 2]
    np.testing.assert_array_equal(up > 0, [False, True, True, True, True, False, False])
    assert (data[INTERVENTION] == 1).all()


def expert_drives(rig, limit=200):
    """Let the scripted expert press the sticks; return whether the session saved a success."""
    expert = get_task("native_lift").make_expert(1, 1.0)
    expert.reset([rig.session.status["seed"]])
    closed = False
    for _ in range(limit):
        observation = {key: value[None] for key, value in rig.session.observation.items()}
        executed = expert.act(observation)[1][0]
        # From the action's units to the operator's: 0.05 m a step are 1 m/s, 0.5 rad a step 10 rad/s; facing the robot.
        world = np.concatenate([executed[:3] / 0.3, executed[3:6] * 10 / 1.2])
        operator = world * np.array([-1, -1, 1, -1, -1, 1])
        if (executed[6] > 0) != closed:
            closed = not closed
            rig.session.ask("gripper")
        if rig.tick(*np.clip(operator, -1, 1).tolist())["ended"]:
            return rig.session.status["solved"]
    return False


def test_a_success_is_saved_by_itself_replayed_and_can_be_looked_at(tmp_path):
    with Rig(tmp_path / "s", first_seed=11) as rig:
        rig.tick(ask="start")
        assert expert_drives(rig)
        rig.saved()
        assert rig.session.status["state"] == "idle"
        card = rig.session.status["episodes"][0]
        assert (card["success"], card["seed"], card["facts"]["replay_success"]) == (True, 11, True)
        assert rig.store.metadata(0)["replay_state_error"] == 0
        reader = EpisodeReader(rig.store)
        summary = reader.summary(0)
        assert summary["length"] == len(rig.store.read(0))
        np.testing.assert_allclose(summary["path"][0], rig.store.read(0).data[STATE][0, :3], atol=1e-4)
        with pytest.raises(RefusedError, match="without a camera"):
            reader.frame(0, 0)
        with pytest.raises(RefusedError, match=r"Cannot read episode file|damaged"):
            reader.summary(7)
        reader.close()
        # A shifted action makes the same episode fail its check: the check can say no.
        episode = rig.store.read(0)
        data = {**episode.data, ACTION_SENT: np.roll(episode.data[ACTION_SENT], 6, axis=0)}
        again = ReplayCheck(make_env("native_lift"))(replace(episode, data=data))
        assert again["replay_state_error"] > 1e-3
        assert rig.tick(ask="start")["seed"] == 12


def test_taking_over_from_a_policy_labels_the_steps_and_lets_go_only_when_asked(tmp_path):
    with Rig(tmp_path / "s", policy="random", save_on_success=False) as rig:
        assert rig.tick(ask="start")["human"] is False
        for _ in range(3):
            rig.tick()
        assert rig.tick(0, 0, 1)["human"] is True, "touching the stick takes over"
        rig.tick(0, engaged=False)
        assert rig.tick(ask="release")["human"] is False
        rig.tick(ask="takeover")
        rig.tick(ask="failure")
        rig.saved()
        data, facts = rig.store.read(0).data, rig.store.metadata(0)
        assert facts["policy_driven"] is True
        assert facts["intervention_steps"] == 3
        np.testing.assert_array_equal(data[INTERVENTION][:, 0], [0, 0, 0, 0, 1, 1, 0, 1])
        # A person who holds still is still in control: nothing moves in step 5. The policy's random actions do move.
        assert not data[ACTION][5, :6].any()
        assert data[ACTION][[0, 1, 2, 3, 6], :6].any(axis=1).all()
        assert rig.tick(ask="start")["human"] is False, "every episode begins with the policy"


def test_a_pause_stops_the_simulated_world(tmp_path):
    with Rig(tmp_path / "s") as rig:
        rig.tick(ask="start")
        rig.tick(0, 0, 1)
        rig.tick(ask="pause")
        before = rig.session.observation[STATE].copy()
        rig.tick(0, 0, 1)
        np.testing.assert_array_equal(rig.session.observation[STATE], before)
        rig.tick(ask="pause")
        rig.tick(ask="success")
        rig.saved()
        facts = rig.store.metadata(0)
        assert facts["paused_before_steps"] == [2]
        assert facts["replay_state_error"] == 0, "what was recorded before and after is one run of the simulator"


def test_rerecording_starts_from_the_same_state_and_the_time_limit_asks_for_a_label(tmp_path):
    with Rig(tmp_path / "s", steps=5, first_seed=3) as rig:
        assert rig.tick(ask="start")["seed"] == 3
        assert rig.tick(ask="rerecord")["seed"] == 3
        for _ in range(5):
            status = rig.tick()
        assert status["state"] == "stopped"
        assert rig.recorder.state is State.STOPPED
        assert "label it" in status["messages"][-1]["text"]
        rig.tick(ask="failure")
        rig.saved()
        assert rig.store.lengths.tolist() == [5]
        assert rig.tick(ask="start")["seed"] == 4


def test_what_cannot_be_done_is_said_to_the_operator_and_does_not_end_the_loop(tmp_path):
    with Rig(tmp_path / "s") as rig:
        for command, word in (("success", "idle"), ("undo", "nothing to undo"), ("takeover", "No policy drives here")):
            assert word in rig.tick(ask=command)["messages"][-1]["text"]
        with pytest.raises(RefusedError, match="Command 'dance' is unknown"):
            rig.session.ask("dance")
        steps = rig.session.steps
        rig.tick()
        assert rig.session.steps == steps + 1
        rig.tick(ask="quit")
        assert rig.session.quit


def test_episodes_are_listed_anew_only_when_they_change(tmp_path):
    # Every control step made the list of all stored episodes again: 8 ms of a step with 1,000 of them.
    with Rig(tmp_path / "s") as rig:
        listed = rig.tick()["episodes"]
        assert rig.tick()["episodes"] is listed
        rig.tick(ask="start")
        rig.tick()
        rig.tick(ask="failure")
        rig.saved()
        cards = rig.tick()["episodes"]
        assert [card["outcome"] for card in cards] == ["failure"]
        assert rig.tick()["episodes"] is cards


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_pictures_without_a_rate_are_refused(rate):
    # Zero was a division by zero, in the middle of the control loop.
    with pytest.raises(RefusedError, match=r"view_rate_hz=.* must be positive and finite"):
        SessionConfig(view_rate_hz=rate)


@pytest.mark.parametrize("minutes", [0.0, float("nan"), float("inf")])
def test_episodes_without_a_length_are_refused(tmp_path, minutes):
    # The number of steps was rounded from what is no number: a traceback.
    with pytest.raises(RefusedError, match=r"minutes=.* must be positive and finite"):
        open_session(TeleopConfig(task="native_lift", store=str(tmp_path / "s"), minutes=minutes), ["web"], ServerConfig(port=0))
