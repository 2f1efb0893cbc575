"""``robolearn teleop``: a person drives a simulated robot, and the episodes are recorded."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from robolearn.core.config import load
from robolearn.core.errors import RefusedError, nearest
from robolearn.core.protocols import Env
from robolearn.core.run import provenance
from robolearn.core.seeding import TRAIN_SEED_BLOCK
from robolearn.data.header import live_extra
from robolearn.data.store import EpisodeStore
from robolearn.teleop.device import Device
from robolearn.teleop.devices.web import WebDevice
from robolearn.teleop.motion import Motion, MotionConfig, PoseDelta
from robolearn.teleop.recorder import Recorder, RecorderConfig
from robolearn.teleop.replay import EpisodeReader, ReplayCheck, episode_cards
from robolearn.teleop.server import PageServer, ServerConfig
from robolearn.teleop.session import Autopilot, Session, SessionConfig
from robolearn.train.interrupts import InterruptGuard
from sim_envs.task import EnvOptions, make_env

_SWITCH_S = 0.001
"""How long one thread may hold the interpreter while another waits [s]."""
DEVICES = ("web", "keyboard", "gamepad", "spacemouse", "lerobot:KIND")
FAVOURITE_VIEWS = ("agentview", "robot0_eye_in_hand")


@dataclass(frozen=True)
class TeleopConfig:
    """What a session is about; each field can be changed on the command line as ``a.b=c``."""

    task: str = "native_lift"
    """Name of a file in ``sim_envs/tasks``."""
    fidelity: str | None = None
    """null takes the task's first."""
    store: str = "data/teleop/{task}"
    """Folder of the episode store; a session goes on where the last one ended."""
    cameras: tuple[str, ...] | None = None
    """Cameras that are recorded; null takes ``agentview`` where the task has it, [] records none."""
    image_size: int = 128
    """Height and width of the recorded pictures [pixels]."""
    minutes: float = 5.0
    """Longest episode; the tasks' own limits are for robots that know what to do."""
    policy: str | None = None
    """Run or checkpoint folder of a policy that drives until you take over."""
    exec_horizon: int = 8
    """Steps of each of its chunks that are executed."""
    replay_check: bool = True
    """Replay every saved episode's actions in simulation and keep the result with it."""
    lerobot: dict[str, str] = field(default_factory=dict)
    """Settings of LeRobot's teleoperator, such as ``lerobot.port=/dev/ttyACM0``."""
    lerobot_joints: dict[str, str] = field(default_factory=dict)
    """The leader's joint -> the robot's joint that follows it."""
    motion: MotionConfig = field(default_factory=MotionConfig)
    recorder: RecorderConfig = field(default_factory=RecorderConfig)
    session: SessionConfig = field(default_factory=SessionConfig)


def teleop(overrides: Sequence[str], devices: Sequence[str], page: ServerConfig | None) -> None:
    """Run a session until it is ended by Ctrl-C, SIGTERM or a device.

    Args:
        overrides: changes to :class:`TeleopConfig`.
        devices: entries of :data:`DEVICES`.
        page: where the page is offered; None offers none.

    Raises:
        RefusedError: the task, a device, the policy or the store does not fit.
    """
    config = load(TeleopConfig, overrides=overrides)
    console = Console()
    # The page's thread must not wait 5 ms for the interpreter while an episode is compressed; nor must the control loop.
    sys.setswitchinterval(_SWITCH_S)
    with open_session(config, devices, page) as running, InterruptGuard() as guard:
        if running.server is not None:
            console.print(f"Open [bold]{running.server.url}[/bold] in a browser. Ctrl-C ends the session.", soft_wrap=True)
        running.session.run(lambda: guard.signal_number is not None)
    with EpisodeStore.open(running.store.path) as store:
        console.print(
            f"{store.path}: {len(store)} episodes, {int(store.successes.sum())} successes, {int(store.lengths.sum())} steps.",
            soft_wrap=True,
        )


class RunningSession:
    """A session with everything that it needs, closed in the right order."""

    def __init__(
        self, session: Session, store: EpisodeStore, server: PageServer | None, reader: EpisodeReader, envs: Sequence[Env]
    ) -> None:
        self.session, self.store, self.server = session, store, server
        self._reader, self._envs = reader, envs

    def __enter__(self) -> RunningSession:
        return self

    def __exit__(self, *_: object) -> None:
        with ExitStack() as closing:  # the last one first, and each whatever happens to the others
            for env in self._envs:
                closing.callback(env.close)
            closing.callback(self._reader.close)
            if self.server is not None:
                closing.callback(self.server.stop)
            closing.callback(self.store.close)
            closing.callback(self.session.close)


def open_session(config: TeleopConfig, devices: Sequence[str], page: ServerConfig | None) -> RunningSession:
    """Build environment, store, devices and page.

    Raises:
        RefusedError: see :func:`teleop`.
    """
    known = [name for name in DEVICES if ":" not in name]
    unknown = [name for name in devices if name not in known and not name.startswith("lerobot:")]
    if unknown or not devices:
        raise RefusedError(f"Device {unknown[0] if unknown else ''!r} is unknown. {nearest((unknown or [''])[0], DEVICES)}")
    if "web" in devices and page is None:
        raise RefusedError("The device 'web' needs the page.")
    env, replay_env = _make_envs(config)
    spaces = env.spec.spaces
    age_s = config.motion.allowed_age_s(spaces.control_rate_hz)
    motion = _make_motion(env, config.motion)
    autopilot = _make_autopilot(config, env)
    store = _open_or_create(config, env)
    try:
        check = ReplayCheck(replay_env) if config.replay_check else None
        recorder = Recorder(store, config.recorder, annotate=check)
        web = WebDevice()
        opened = [_open_device(name, web, config) for name in devices]
        # The page's buttons work beside every device.
        listening = opened if page is None or web in opened else [*opened, web]
        settings = replace(
            config.session,
            first_seed=store.unseen_seed(TRAIN_SEED_BLOCK + config.session.first_seed),
            views=config.session.views or tuple(v for v in FAVOURITE_VIEWS if v in env.spec.cameras),
        )
        session = Session(
            env,
            motion,
            recorder,
            listening,
            config=settings,
            wish_age_s=age_s,
            autopilot=autopilot,
            cards=lambda: episode_cards(store),
        )
        reader = EpisodeReader(store)
        server = None if page is None else PageServer(session, web, reader, page)
        if server is not None:
            server.start()
    except BaseException:
        store.close()
        raise
    return RunningSession(session, store, server, reader, [env, replay_env])


def _make_envs(config: TeleopConfig) -> tuple[Env, Env]:
    """Return the environment that is driven and the one, without cameras, that episodes are replayed in."""
    if not (math.isfinite(config.minutes) and config.minutes > 0):
        raise RefusedError(f"minutes={config.minutes} must be positive and finite.")
    plain = make_env(config.task, EnvOptions(fidelity=config.fidelity))
    steps = max(1, round(config.minutes * 60 * plain.spec.spaces.control_rate_hz))
    cameras = config.cameras
    if cameras is None:
        cameras = tuple(c for c in FAVOURITE_VIEWS[:1] if c in plain.spec.cameras)
    options = EnvOptions(fidelity=config.fidelity, max_episode_steps=steps)
    driven = replace(options, cameras=cameras, image_size=config.image_size, supersample=1)
    return make_env(config.task, driven), make_env(config.task, options)


def _make_motion(env: Env, config: MotionConfig) -> Motion:
    spaces = env.spec.spaces
    if any(name.endswith("dx") for name in spaces.action.names):
        from sim_envs.osc_kernel import POSITION_SCALE_M, ROTATION_SCALE_RAD

        return PoseDelta(spaces, config, metres=POSITION_SCALE_M, radians=ROTATION_SCALE_RAD)
    from hardware import load_robot
    from robolearn.teleop.inverse_kinematics import JointTargets

    return JointTargets(spaces, load_robot(spaces.robot), config)


def _make_autopilot(config: TeleopConfig, env: Env) -> Autopilot | None:
    if config.policy is None:
        return None
    # Torch is not loaded where nobody needs it.
    from robolearn.commands.autopilot import PolicyAutopilot
    from robolearn.commands.policy_reference import open_policy, run_folder
    from robolearn.commands.recipe import load_recipe
    from robolearn.commands.train import RECIPE_FILE
    from robolearn.deploy.executor import ExecutorConfig

    run = run_folder(Path(config.policy))
    policy, _ = open_policy(config.policy, env, load_recipe(run / RECIPE_FILE if run else None, []))
    return PolicyAutopilot(policy, ExecutorConfig(min(config.exec_horizon, policy.pred_horizon)))


def _open_or_create(config: TeleopConfig, env: Env) -> EpisodeStore:
    spec = env.spec
    try:
        path = Path(config.store.format(task=config.task))
    except (KeyError, IndexError, ValueError) as error:
        raise RefusedError(f"store={config.store!r} knows the placeholder {{task}}, not {error}.") from error
    if (path / "store.json").exists():
        return EpisodeStore.open(path, "a", spaces=spec.spaces, task=spec.task, fidelity=spec.fidelity)
    made: dict[str, Any] = provenance(seed=config.session.first_seed) | {"collected_by": "robolearn teleop"}
    extra = live_extra(spec.spaces)
    return EpisodeStore.create(path, spec.spaces, task=spec.task, fidelity=spec.fidelity, extra=extra, provenance=made)


def _open_device(name: str, web: WebDevice, config: TeleopConfig) -> Device:
    match name:
        case "web":
            return web
        case "keyboard":
            from robolearn.teleop.devices.keyboard import Keyboard

            return Keyboard()
        case "gamepad":
            from robolearn.teleop.devices.gamepad import Gamepad

            return Gamepad()
        case "spacemouse":
            from robolearn.teleop.devices.spacemouse import SpaceMouse

            return SpaceMouse()
        case _:
            from robolearn.teleop.devices.lerobot import LeRobotTeleoperator, make_teleoperator

            return LeRobotTeleoperator(
                make_teleoperator(name.removeprefix("lerobot:"), config.lerobot), joints=config.lerobot_joints
            )
