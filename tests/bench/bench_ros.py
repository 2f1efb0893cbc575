"""The ROS 2 path, measured between real processes: latency, jitter, cameras, e-stop, a killed policy, silent joint states.

    robolearn bench ros                 all parts
    robolearn bench ros latency jitter  some of: latency, jitter, cameras, estop, kill, sensor

BENCH_SECONDS (20) and BENCH_REPEATS (20) set how long and how often; BENCH_PRIORITY gives the gate that SCHED_FIFO priority.
Needs the ROS wheels. Figures of a busy machine are worse: the load average is printed beside them.
"""

from __future__ import annotations

import fcntl
import gc
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / "ros"), str(ROOT / "ros_ws" / "src" / "robolearn_bridge")]
PICTURES = {
    "FASTRTPS_DEFAULT_PROFILES_FILE": str(ROOT / "ros_ws" / "src" / "robolearn_bringup" / "config" / "transport_pictures.xml")
}

import rclpy  # noqa: E402
from diagnostic_msgs.msg import DiagnosticArray  # noqa: E402
from harness import ACTIVATE, CONFIGURE, LOOPBACK, Client, fresh_domain, node, wait_until  # noqa: E402
from rclpy.executors import ExternalShutdownException  # noqa: E402
from sensor_msgs.msg import Image, JointState  # noqa: E402
from std_msgs.msg import Bool, Float64MultiArray, String  # noqa: E402
from trajectory_msgs.msg import JointTrajectory  # noqa: E402

from hardware import load_robot  # noqa: E402
from robolearn.deploy.codecs import stamp_ns  # noqa: E402
from robolearn.deploy.launcher import Launched, WorkspacePackages  # noqa: E402
from robolearn_bridge.inbox import Inbox  # noqa: E402
from robolearn_bridge.messages import COMMAND_QOS, RECORD_QOS, SENSOR_QOS, chunk_message, joint_state  # noqa: E402

SECONDS = float(os.environ.get("BENCH_SECONDS", "20"))
REPEATS = int(os.environ.get("BENCH_REPEATS", "20"))

PLAYER = """
import sys, time, json, threading
import numpy as np, rclpy
from robolearn_bridge.messages import COMMAND_QOS, chunk_message
from trajectory_msgs.msg import JointTrajectory
from hardware import load_robot
rclpy.init(); node = rclpy.create_node("player", namespace="/robot")
out = node.create_publisher(JointTrajectory, "policy/chunk", COMMAND_QOS)
spec = load_robot(sys.argv[1]); names = spec.joints + tuple(g.joint for g in spec.grippers)
begin = time.monotonic()
while True:
    t = time.monotonic() - begin
    ahead = t + 0.05 * np.arange(1, 9)[:, None]
    rows = np.concatenate([np.array(spec.home) + 0.1 * np.sin(ahead), np.zeros((8, len(spec.grippers)))], axis=1)
    out.publish(chunk_message(rows, names, stamp_ns=time.time_ns(), period_ns=50_000_000, source='{"source": "policy"}'))
    time.sleep(0.05)
"""
KILLED = """
import os, sys
import rclpy
PLAYER = sys.argv[2]
for _ in sys.stdin:  # one process each, of a parent that has loaded everything and has no context of its own
    child = os.fork()
    if child == 0:
        sys.argv = ["player", sys.argv[1]]
        exec(PLAYER)
    print(child, flush=True)
    os.waitpid(child, 0)
"""
CAMERA = """
import sys, time
import numpy as np, rclpy
from robolearn_bridge.messages import SENSOR_QOS
from robolearn_bridge.simulated_streams import image
from sensor_msgs.msg import Image
rclpy.init(); node = rclpy.create_node("cameras", namespace="/robot")
outs = [node.create_publisher(Image, f"camera{i}/image_raw", SENSOR_QOS) for i in range(3)]
pixels = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
while any(out.get_subscription_count() == 0 for out in outs): time.sleep(0.05)
time.sleep(1)
count = int(float(sys.argv[1]) * 30); begin = time.monotonic()
for k in range(count):
    for i, out in enumerate(outs):
        out.publish(image(pixels, time.time_ns(), frame_id=str(k)))
    time.sleep(max(0, begin + (k + 1) / 30 - time.monotonic()))
print(count); time.sleep(1)
"""
STALL = """
import os, sys, time
os.sched_setaffinity(0, {int(sys.argv[1])}); os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(99))
last = time.monotonic()
while True:
    time.sleep(0.002)
    now = time.monotonic()
    if now - last > 0.005: print(last, now, flush=True)
    last = now
"""
MORTAL = ["setpriv", "--pdeathsig", "KILL"]
"""What is started must not outlive a benchmark that is killed: a policy without its robot would command the next one."""
BUSY = "import torch; torch.set_num_threads(1); m = torch.randn(512, 512)\nwhile True: m = torch.tanh(m @ m)"


class Robot:
    """A robot's side of the gate: a driver that sends joint states and takes commands in one thread, and the operator's e-stop.

    The driver waits for its messages by itself (:class:`robolearn_bridge.inbox.Inbox`): through rclpy's executor a command would
    wait for up to a millisecond of this program's own Python.
    """

    def __init__(self, client: Client, robot: str, rate_hz: float) -> None:
        self.client, self.spec = client, load_robot(robot)
        self.position = np.array(self.spec.home)
        self.pressed, self.publishing = False, True
        self.states: list[tuple[float, str]] = []
        self.diagnostics: dict[str, str] = {}
        self.missed: list[tuple[float, float, int, int]] = []
        """Seconds (from, to) of the steady clock in which the gate missed ticks: how many, and its waits for the disk."""
        self._seen = (time.monotonic(), 0, 0)
        self.gate_pid = 0
        self.asked_ns: list[int] = []
        """Stamps of the joint states that were sent [ns]."""
        self.arrived_ns: dict[tuple[float, ...], int] = {}
        """Command -> when it came first [ns]."""
        self.stamps_ns: dict[tuple[float, ...], int] = {}
        """Command -> stamp of the joint state that it answers, as the gate says beside it [ns]."""
        ros = client.node
        self._states = ros.create_publisher(JointState, "joint_states", SENSOR_QOS)
        self._estop = ros.create_publisher(Bool, "e_stop", COMMAND_QOS)
        ros.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, COMMAND_QOS)
        self._inbox = Inbox(ros)
        self._inbox.hear(Float64MultiArray, self.spec.topic("command", "position").name, self._on_command, COMMAND_QOS)
        self._inbox.hear(String, "gate_node/state", self._on_state, COMMAND_QOS)
        self._inbox.hear(JointTrajectory, "gate_node/sent", self._on_sent, RECORD_QOS)
        client.every(0.05, lambda: self._estop.publish(Bool(data=self.pressed)))
        self._closing = threading.Event()
        self._driver = threading.Thread(target=self._drive, args=(1 / rate_hz,))
        self._driver.start()

    def _drive(self, period_s: float) -> None:
        begin, count = time.monotonic(), 0
        while not self._closing.is_set():
            if self.publishing:
                stamp = time.time_ns()
                self._states.publish(joint_state(self.spec.joints, self.position, stamp))
                self.asked_ns.append(stamp)
            count = max(count + 1, int((time.monotonic() - begin) / period_s))
            while (left_s := begin + count * period_s - time.monotonic()) > 0:
                self._inbox.wait(left_s)

    def close(self) -> None:
        self._closing.set()
        self._driver.join()
        self._inbox.destroy()

    def _on_command(self, message: Float64MultiArray) -> None:
        self.arrived_ns.setdefault(tuple(message.data), time.time_ns())
        self.position = np.array(message.data)

    def _on_sent(self, message: JointTrajectory) -> None:
        self.stamps_ns.setdefault(tuple(message.points[0].positions[: self.spec.dim]), stamp_ns(message))

    def forget(self) -> None:
        for record in (self.asked_ns, self.arrived_ns, self.stamps_ns):
            record.clear()

    def latencies_s(self) -> list[float]:
        """Return the times from a joint state's stamp to the arrival of its command, without ticks that no state asked for."""
        asked = set(self.asked_ns)
        answers = [(self.stamps_ns[c], at) for c, at in self.arrived_ns.copy().items() if c in self.stamps_ns]
        return [(at - stamp) / 1e9 for stamp, at in answers if stamp in asked]

    def _on_state(self, message: String) -> None:
        self.states.append((time.monotonic(), message.data))

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name.endswith("gate_node"):
                self.diagnostics = {v.key: v.value for v in status.values}
                now, missed = time.monotonic(), int(self.diagnostics.get("missed_ticks", 0))
                seen, self._seen = self._seen, (now, missed, major_faults(self.gate_pid) if self.gate_pid else 0)
                if missed > seen[1]:
                    self.missed.append((seen[0], now, missed - seen[1], self._seen[2] - seen[2]))

    def press(self) -> float:
        self.pressed = True
        at = time.monotonic()
        self._estop.publish(Bool(data=True))
        return at

    def ready(self) -> None:
        wait_until(lambda: self.client.trigger("gate_node/reset")[0], 20, what="reset")

    def first(self, word: str, since: float, timeout_s: float = 60.0) -> float:
        """Return when the gate first said ``word`` after ``since``."""
        wait_until(lambda: any(t >= since and word in text for t, text in self.states), timeout_s, what=word)
        return next(t for t, text in self.states if t >= since and word in text)


class Machine:
    """What the machine does to everybody: a process on each core, before all others, that notes when it was not woken in time."""

    def __init__(self) -> None:
        self.stalls: list[tuple[int, float, float]] = []
        """Core, from, to [s of the steady clock], of more than 3 ms."""
        command = [*MORTAL, sys.executable, "-c", STALL]
        self._processes = {
            core: subprocess.Popen([*command, str(core)], stdout=subprocess.PIPE, text=True) for core in os.sched_getaffinity(0)
        }
        self._threads = [threading.Thread(target=self._listen, args=item) for item in self._processes.items()]
        for thread in self._threads:
            thread.start()

    def _listen(self, core: int, process: subprocess.Popen[str]) -> None:
        for line in process.stdout or ():
            begin, end = map(float, line.split())
            self.stalls.append((core, begin, end))

    def between(self, begin: float, end: float) -> list[str]:
        """Return the pauses of that time: core, when after ``begin`` and how long."""
        hits = [s for s in self.stalls if s[2] >= begin and s[1] <= end]
        return [f"core {core} at {(a - begin) * 1e3:.0f} ms for {(b - a) * 1e3:.0f} ms" for core, a, b in hits]

    def close(self) -> None:
        for process in self._processes.values():
            process.kill()
            process.wait()
        for thread in self._threads:
            thread.join()


def major_faults(pid: int) -> int:
    """Return how often that process waited for a page from the disk."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[9])


@contextmanager
def running(robot: str, **parameters: object):
    domain = fresh_domain()
    environ = os.environ | LOOPBACK | {"ROS_DOMAIN_ID": domain}
    packages = WorkspacePackages(ROOT / "ros_ws" / "src")
    priority = int(os.environ.get("BENCH_PRIORITY", "0"))
    process = node("gate_node", robot=robot, interface="position", realtime_priority=priority, **parameters)
    environ["PYTHONPATH"] = packages.python_path(environ)
    with (
        tempfile.TemporaryDirectory() as folder,
        Launched([process], packages, log_folder=Path(folder), environ=environ) as launched,
    ):
        client, started = Client(domain), list[subprocess.Popen]()
        arm = Robot(client, robot, float(parameters.get("rate_hz", 100.0)))  # type: ignore[arg-type]
        try:
            arm.gate_pid = launched.pid("gate_node")
            assert client.transition("gate_node", CONFIGURE, ACTIVATE)
            assert client.set_bool("gate_node/arm", True)[0]
            _take_priority(priority - 10)

            def start(script: str, *args: str, changes: dict[str, str] | None = None, **options: object) -> subprocess.Popen:
                command = [*MORTAL, sys.executable, "-c", script, *args]
                started.append(subprocess.Popen(command, env=environ | (changes or {}), **options))
                return started[-1]

            yield arm, start
        finally:
            for other in started:
                other.kill()
                other.wait()
            arm.close()
            client.close()


def _take_priority(priority: int) -> None:
    """A robot's driver is a real-time process as well; it ranks below the gate."""
    gc.collect()
    gc.freeze()
    for thread in Path("/proc/self/task").iterdir() if priority > 0 else ():
        policy = os.SCHED_FIFO | os.SCHED_RESET_ON_FORK  # the processes that it starts are ordinary ones
        os.sched_setscheduler(int(thread.name), policy, os.sched_param(priority))


def show(what: str, seconds: list[float] | np.ndarray) -> None:
    values = np.asarray(seconds) * 1e3
    quantiles = " / ".join(f"{np.quantile(values, q):.2f}" for q in (0.5, 0.95, 0.99))
    load = os.getloadavg()[0]
    print(f"{what}: p50 / p95 / p99 {quantiles} ms, max {values.max():.2f} ms, n = {len(values)} (load {load:.1f})", flush=True)


def latency() -> None:
    with running("ur5e", trigger="state", rate_hz=500.0) as (arm, start):
        arm.ready()
        start(PLAYER, "ur5e")
        arm.first("running", 0.0)
        time.sleep(2)
        arm.forget()
        time.sleep(SECONDS)
        arm.publishing = False
        time.sleep(0.1)
        show(f"joint state in -> command out, 500 Hz, {len(arm.asked_ns)} joint states", arm.latencies_s())


def jitter() -> None:
    with running("panda") as (arm, start):
        arm.ready()
        start(PLAYER, "panda")
        start(BUSY)
        arm.first("running", 0.0)
        machine = Machine()
        try:
            time.sleep(SECONDS)
        finally:
            machine.close()
        wait_until(lambda: bool(arm.diagnostics), 5, what="diagnostics")
        found = {k: v for k, v in arm.diagnostics.items() if "late" in k or k == "missed_ticks"}
        for begin, end, ticks, faults in arm.missed:
            print(f"missed {ticks} in one second, {faults} waits for the disk; the machine: {machine.between(begin, end)}")
        long, waits = max((b - a for _, a, b in machine.stalls), default=0.0), major_faults(arm.gate_pid)
        print(f"pauses of the machine: {len(machine.stalls)}, longest {long * 1e3:.0f} ms; {waits} waits for the disk in all")
        print(
            f"gate loop at 100 Hz beside a busy torch process, {SECONDS:.0f} s: {found} (load {os.getloadavg()[0]:.1f})",
            flush=True,
        )


def estop() -> None:
    with running("ur5e", trigger="state", rate_hz=500.0) as (arm, _):
        names = arm.spec.joints + tuple(g.joint for g in arm.spec.grippers)
        chunks = arm.client.node.create_publisher(JointTrajectory, "policy/chunk", COMMAND_QOS)
        home, playing, took = np.array(arm.spec.home), False, []

        def play() -> None:
            if playing:
                ahead = time.monotonic() + 0.05 * np.arange(1, 9)[:, None]
                rows = np.concatenate([home + 0.1 * np.sin(ahead), np.zeros((8, len(names) - arm.spec.dim))], axis=1)
                source = '{"source": "policy"}'
                chunks.publish(chunk_message(rows, names, stamp_ns=time.time_ns(), period_ns=50_000_000, source=source))

        arm.client.every(0.05, play)
        for _ in range(REPEATS):
            arm.pressed = False
            arm.ready()
            playing = True
            arm.first("running", time.monotonic() - 0.05)
            time.sleep(0.3)
            at = arm.press()
            took.append(arm.first("stopping", at) - at)
            arm.first("latched", at)
            playing = False
        show("e-stop pressed -> ramp-down begun, 500 Hz", took)


def forget_dead_segments() -> None:
    """Remove the shared memory, 9 MB each, of participants that were killed; a living one holds a lock on its own."""
    for lock in Path("/dev/shm").glob("fastrtps_*_el"):
        with lock.open("rb") as stream, suppress(BlockingIOError):
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            lock.with_name(lock.name.removesuffix("_el")).unlink(missing_ok=True)
            lock.unlink(missing_ok=True)


def kill() -> None:
    """The gate stays; each trial kills a policy's process of its own in the middle of a motion."""
    timeout_s = 0.25
    with running("panda", policy_timeout_s=timeout_s, resume_window_s=0.05) as (arm, start):
        server = start(KILLED, "panda", PLAYER, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, changes=PICTURES)
        took, missed, void, rng, machine = [], 0, 0, np.random.default_rng(0), Machine()
        try:
            while len(took) < REPEATS:
                arm.ready()
                begun = time.monotonic()
                server.stdin.write("\n")
                server.stdin.flush()
                player = int(server.stdout.readline())
                try:
                    arm.first("running", begun, 20)
                except AssertionError:  # forked from a process with threads, it can be born with a lock that nobody frees
                    os.kill(player, signal.SIGKILL)
                    void += 1
                    continue
                time.sleep(rng.uniform(0.05, 0.25))
                moving = "running" in arm.states[-1][1]
                at = time.monotonic()
                os.kill(player, signal.SIGKILL)
                if not moving:  # a busy machine had stopped it already: there was no motion to end
                    void += 1
                    arm.first("latched", begun)
                    continue
                took.append(arm.first("stopping", at) - at)
                if took[-1] > timeout_s + 0.01:
                    since = [f"{(t - at) * 1e3:.0f} ms {text}" for t, text in arm.states if t >= at]
                    paused = machine.between(at, time.monotonic())
                    print(f"late, trial {len(took)}: {since}; machine: {paused}; {arm.diagnostics}", flush=True)
                missed += "silent_policy" not in next(text for t, text in arm.states if t >= at and "stopping" in text)
                arm.first("latched", at)
                del arm.states[:-1]
                if len(took) % 50 == 0:
                    forget_dead_segments()
                    show(f"{len(took)} kills so far, {missed} stopped for another reason, {void} more had nothing to stop", took)
        finally:
            machine.close()
            server.kill()
            server.wait()
            forget_dead_segments()
        show(f"kill -9 of the policy -> ramp-down begun (watchdog {timeout_s * 1e3:.0f} ms)", took)


def sensor() -> None:
    timeout_s = 0.1
    with running("panda", state_timeout_s=timeout_s, resume_window_s=0.05) as (arm, start):
        player = start(PLAYER, "panda")
        took = []
        for _ in range(REPEATS):
            arm.publishing = True
            player.send_signal(signal.SIGSTOP)
            arm.ready()
            begun = time.monotonic()
            player.send_signal(signal.SIGCONT)
            arm.first("running", begun)
            time.sleep(0.2)
            arm.publishing, at = False, time.monotonic()
            took.append(arm.first("stopping", at) - at)
            arm.publishing = True
            player.send_signal(signal.SIGSTOP)
            arm.first("latched", at)
        show(f"joint states end -> ramp-down begun (limit {timeout_s * 1e3:.0f} ms)", took)


def cameras() -> None:
    for name, profile in (("default transports", {}), ("transport_pictures.xml", PICTURES)):
        domain = fresh_domain()
        environ = os.environ | {"ROS_DOMAIN_ID": domain, "PYTHONPATH": str(ROOT / "ros_ws/src/robolearn_bridge")}
        environ |= profile
        listener = subprocess.Popen([sys.executable, __file__, "--listen"], env=environ, stdout=subprocess.PIPE, text=True)
        sender = subprocess.run(
            [sys.executable, "-c", CAMERA, str(SECONDS)], env=environ, capture_output=True, text=True, check=True
        )
        time.sleep(0.5)
        listener.send_signal(signal.SIGINT)
        received, p99 = listener.communicate()[0].split()
        sent = 3 * int(sender.stdout)
        load = os.getloadavg()[0]
        print(
            f"3 cameras 640x480 at 30 Hz, {name}: {int(received) / sent:.1%} of {sent} pictures, p99 {p99} ms (load {load:.1f})",
            flush=True,
        )


def listen() -> None:
    rclpy.init()
    ros = rclpy.create_node("listener", namespace="/robot")
    ages: list[float] = []

    def take(message: Image) -> None:
        np.frombuffer(message.data, np.uint8)
        ages.append((time.time_ns() - stamp_ns(message)) / 1e6)

    for i in range(3):
        ros.create_subscription(Image, f"camera{i}/image_raw", take, SENSOR_QOS)
    with suppress(KeyboardInterrupt, ExternalShutdownException):
        rclpy.spin(ros)
    print(len(ages), round(float(np.quantile(ages, 0.99)), 1) if ages else "nan")


PARTS: dict[str, Callable[[], None]] = {
    "latency": latency,
    "jitter": jitter,
    "cameras": cameras,
    "estop": estop,
    "kill": kill,
    "sensor": sensor,
}

if __name__ == "__main__":
    if sys.argv[1:] == ["--listen"]:
        listen()
    else:
        for part in sys.argv[1:] or list(PARTS):
            PARTS[part]()
