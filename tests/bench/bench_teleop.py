"""Input to command: a real Chromium presses keys on the page, or a local device does, and the session drives native lift.

    OMP_NUM_THREADS=1 python tests/bench/bench_teleop.py [--inputs 200] [--picture docs/assets/teleop.png]
    OMP_NUM_THREADS=1 python tests/bench/bench_teleop.py --device keyboard|gamepad [--inputs 200]

Each input of the page is a key that goes down or up (a trusted event of the browser, stamped by it). ``transport`` is from
that stamp until the session's thread could take the wish; ``command`` until the control step that acted on it, so it has
the wait for the next tick of the task's 20 Hz in it (25 ms on average, 50 ms at most). Inputs of a local device are
pygame's events, posted by another thread at random moments; the device is read in the control step itself, so what it
adds is from that step's begin until the command goes to the robot, and the wait for the step is told apart.
"""

import argparse
import asyncio
import os
import random
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.append(str(Path(__file__).parents[1] / "system"))

import numpy as np
from chromium import HOW, Chromium, find_chromium
from test_web_teleop import lift_the_cube

from robolearn.commands.teleop import TeleopConfig, open_session
from robolearn.teleop.recorder import RecorderConfig
from robolearn.teleop.server import ServerConfig


async def press_keys(page: Chromium, inputs: int) -> None:
    rng = random.Random(0)
    for n in range(inputs):
        await page.key("wasdrf"[n // 2 % 6], down=n % 2 == 0)
        await asyncio.sleep(0.1 + rng.uniform(0, 0.05))


async def take_pictures(page: Chromium, running, picture: Path) -> None:
    """Record a few episodes as a person would and take a picture of the page in the middle of one."""
    for outcome in ("0", None):
        await page.press("Enter")
        await page.until("document.body.dataset.state === 'recording'")
        if outcome == "0":
            await page.key("a", down=True)
            await asyncio.sleep(1.5)
            await page.key("a", down=False)
            await page.press("0")
        else:
            await lift_the_cube(page, running.session)
        await page.until("document.body.dataset.state === 'idle'")
        await asyncio.sleep(1.0)
    await page.press("Enter")
    await page.until("document.body.dataset.state === 'recording'")
    stick = await page.centre("#plane")
    await page.mouse("mousePressed", *stick)
    await page.mouse("mouseMoved", stick[0] - 8, stick[1] + 24)
    await asyncio.sleep(1.6)
    await page.picture(picture)
    await page.mouse("mouseReleased", *stick)
    await page.press("Backspace")
    await page.click(".episode.success")
    await asyncio.sleep(2.5)
    await page.picture(picture.with_stem(picture.stem + "_replay"))


def press_device(name: str, inputs: int, posted: list[float], over: threading.Event) -> None:
    """Post events as the device's driver would, and note when."""
    import pygame

    def post(kind: int, **facts: object) -> None:
        posted.append(time.monotonic())
        pygame.event.post(pygame.event.Event(kind, **facts))

    rng = random.Random(0)
    time.sleep(1.0)
    if name == "gamepad":
        post(pygame.JOYBUTTONDOWN, button=5, instance_id=0)
    for n in range(inputs):
        time.sleep(0.1 + rng.uniform(0, 0.05))
        if name == "gamepad":
            post(pygame.JOYAXISMOTION, axis=1, value=-0.9 if n % 2 == 0 else 0.0, instance_id=0)
        else:
            post(pygame.KEYDOWN if n % 2 == 0 else pygame.KEYUP, key=pygame.K_w)
    time.sleep(0.2)
    over.set()


def measure_device(name: str, inputs: int) -> None:
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # the window is not the point
    posted: list[float] = []
    steps: list[tuple[float, float]] = []
    over = threading.Event()
    with tempfile.TemporaryDirectory() as folder:
        config = TeleopConfig(store=f"{folder}/s", cameras=(), recorder=RecorderConfig("ada"))
        with open_session(config, [name], None) as running:
            session = running.session
            act, poll = session._env.step, session._devices[0].poll
            begun = [0.0]

            def seen() -> object:
                begun[0] = time.monotonic()
                return poll()

            def stepped(action: np.ndarray) -> object:
                steps.append((begun[0], time.monotonic()))
                return act(action)

            session._devices[0].poll, session._env.step = seen, stepped
            session.ask("start")
            threading.Thread(target=press_device, args=(name, inputs, posted, over)).start()
            session.run(over.is_set)
    begins, sent = np.array(steps).T
    at = np.searchsorted(begins, posted[-inputs:])
    waits, takes = (begins[at] - posted[-inputs:]) * 1e3, (sent[at] - begins[at]) * 1e3
    print(f"{name}\n| from input to [ms] | n | p50 | p95 | max |\n|---|---|---|---|---|")
    lines = (("the control step that reads it (20 Hz)", waits), ("from there to the command", takes), ("both", waits + takes))
    for line, values in lines:
        p50, p95 = np.percentile(values, (50, 95))
        print(f"| {line} | {len(values)} | {p50:.1f} | {p95:.1f} | {values.max():.1f} |")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", choices=("keyboard", "gamepad"))
    parser.add_argument("--inputs", type=int, default=200)
    parser.add_argument("--picture", type=Path)
    asked = parser.parse_args()
    sys.setswitchinterval(0.001)  # as `robolearn teleop` does
    if asked.device:
        measure_device(asked.device, asked.inputs)
        return
    if find_chromium() is None:
        sys.exit(HOW)
    with tempfile.TemporaryDirectory() as folder:
        config = TeleopConfig(store=f"{folder}/s", recorder=RecorderConfig("ada"))
        config = replace(config, session=replace(config.session, first_seed=1))
        with open_session(config, ["web"], ServerConfig(port=0)) as running:
            over = threading.Event()
            loop = threading.Thread(target=running.session.run, args=(over.is_set,))
            loop.start()

            async def use() -> None:
                async with Chromium(Path(folder) / "profile") as page:
                    await page.open(running.server.url)
                    await page.until("document.body?.dataset.state === 'idle'")
                    await asyncio.sleep(2)
                    if asked.picture:
                        await take_pictures(page, running, asked.picture)
                    if asked.inputs:
                        running.session.pace.lateness_s.clear()
                        running.server._device.input_ms.clear()
                        await press_keys(page, asked.inputs)

            try:
                asyncio.run(use())
            finally:
                over.set()
                loop.join()
            report(running)


def report(running) -> None:
    if not running.server._device.input_ms:
        return
    command, waited = np.array(running.server._device.input_ms).T
    late = np.array(running.session.pace.lateness_s) * 1e3
    print("| from input to [ms] | n | p50 | p95 | max |\n|---|---|---|---|---|")
    for name, values in (("transport (wish at the session)", command - waited), ("command (control step at 20 Hz)", command)):
        print(
            f"| {name} | {len(values)} | {np.percentile(values, 50):.1f} | {np.percentile(values, 95):.1f} | {values.max():.1f} |"
        )
    p50, p95 = np.percentile(late, (50, 95))
    missed = running.session.pace.missed
    print(f"\nControl steps late by p50 {p50:.2f} ms, p95 {p95:.2f} ms, max {late.max():.2f} ms; {missed} missed.")


if __name__ == "__main__":
    main()
