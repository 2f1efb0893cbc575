"""The page in a real browser: a whole episode is driven, saved and looked at, and what must not move the robot does not."""

import asyncio
import threading
import time

import numpy as np
import pytest
from chromium import HOW, Chromium, find_chromium

from robolearn.commands.teleop import TeleopConfig, open_session
from robolearn.core.types import ENVIRONMENT_STATE, STATE
from robolearn.data.header import INTERVENTION, STAMPS_MONOTONIC
from robolearn.data.store import EpisodeStore
from robolearn.data.verify import verify
from robolearn.teleop.recorder import RecorderConfig
from robolearn.teleop.server import ServerConfig
from robolearn.teleop.session import SessionConfig

pytestmark = [pytest.mark.browser, pytest.mark.skipif(find_chromium() is None, reason=HOW)]


def drive(tmp_path, script, **changes):
    """Run a session with the page and a script that uses the page; return the store's path."""
    calm = SessionConfig(view_height=240, view_width=424, view_rate_hz=4)  # so that a loaded machine keeps up
    config = TeleopConfig(store=str(tmp_path / "s"), image_size=64, recorder=RecorderConfig("ada"), session=calm, **changes)
    with open_session(config, ["web"], ServerConfig(port=0)) as running:
        over = threading.Event()
        loop = threading.Thread(target=running.session.run, args=(over.is_set,))
        loop.start()

        async def use():
            async with Chromium(tmp_path / "profile") as page:
                await page.open(running.server.url)
                await page.until("document.body?.dataset.state === 'idle'")
                await script(page, running)
                assert page.errors == []

        try:
            asyncio.run(asyncio.wait_for(use(), 300))
        finally:
            over.set()
            loop.join()
    return tmp_path / "s"


class Keys:
    """Holds the keys that are wanted now."""

    def __init__(self, page):
        self.page, self.held = page, set()

    async def hold(self, *names):
        for name in self.held - set(names):
            await self.page.key(name, down=False)
        for name in set(names) - self.held:
            await self.page.key(name, down=True)
        self.held = set(names)


def towards(error, tolerance, plus, minus):
    return [] if abs(error) < tolerance else [plus if error > 0 else minus]


async def lift_the_cube(page, session):
    """Look at the numbers and press keys, as a person would: above the cube, down, close, up."""
    keys = Keys(page)
    closed = False
    deadline = time.monotonic() + 200
    while not session.status["ended"]:
        assert time.monotonic() < deadline, session.observation
        # The cube seen from the hand, in world axes; the operator faces the robot, so away is -x and left is -y.
        x, y, z = session.observation[ENVIRONMENT_STATE][9:12]
        across = [*towards(-x, 0.008, "w", "s"), *towards(-y, 0.008, "a", "d")]
        if closed:
            await keys.hold("r")
        elif across:
            far = max(abs(x), abs(y)) > 0.05
            await keys.hold(*across, *([] if far else ["Shift"]))
        elif z < -0.012:
            await keys.hold("f")
        else:
            await keys.hold()
            await page.press(" ")
            await asyncio.sleep(0.8)
            closed = True
        await asyncio.sleep(0.02)
    await keys.hold()


@pytest.mark.slow
def test_an_episode_is_driven_to_success_with_the_keyboard_saved_and_looked_at(tmp_path):
    async def script(page, running):
        await page.press("Enter")
        await page.until("document.body.dataset.state === 'recording'")
        await lift_the_cube(page, running.session)
        await page.until("document.querySelectorAll('.episode.success').length === 1", 20)
        await page.until("document.querySelector('.episode img').naturalWidth > 0")
        await page.click(".episode")
        await page.until("document.getElementById('replay').open && document.getElementById('replayframe').naturalWidth > 0")
        assert "succeeds again when replayed" in await page.evaluate("document.getElementById('replayfacts').textContent")
        seen = "performance.getEntriesByType('resource').length && document.getElementById('fps').textContent"
        await page.until(f"parseInt({seen}) > 0")

    path = drive(tmp_path, script)
    assert verify(path).sound
    with EpisodeStore.open(path) as store:
        assert len(store) == 1
        facts, episode = store.metadata(0), store.read(0)
        assert facts["success"] is True
        assert facts["operator"] == "ada"
        assert facts["replay_success"] is True
        assert facts["replay_state_error"] < 1e-6
        assert (episode.data[INTERVENTION] == 1).all()
        assert (np.diff(episode.data[STAMPS_MONOTONIC][:, -1]) > 0).all()
        heights = episode.data[STATE][:, 2]
        assert heights.min() < heights[0] - 0.05, "the hand went down"


def test_closing_the_page_in_the_middle_of_a_motion_stops_it_and_keeps_the_episode(tmp_path):
    seen = {}

    async def script(page, running):
        await page.press("Enter")
        await page.until("document.body.dataset.state === 'recording'")
        stick = await page.centre("#lift")
        await page.mouse("mousePressed", *stick)
        await page.mouse("mouseMoved", stick[0], stick[1] - 30)
        await asyncio.sleep(0.7)
        assert running.session.status["device"] == "web page"
        await page.call("Page.navigate", url="about:blank")
        deadline = time.monotonic() + 10
        while running.server._device.owner is not None:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.1)
        at, before = running.session.steps, running.session.observation[STATE][2]
        await asyncio.sleep(1.0)
        seen["steps"] = running.session.steps - at
        seen["rise"] = running.session.observation[STATE][2] - before

    path = drive(tmp_path, script)
    assert seen["steps"] > 2
    # 0.3 m/s went up; what is left is the arm settling.
    assert abs(seen["rise"]) < 0.01
    with EpisodeStore.open(path) as store:
        assert store.metadata(0)["outcome"] == "interrupted"
        sent = store.read(0).data["action.sent"][:, 2]
        moving = np.flatnonzero(sent > 0.1)
        assert len(moving)
        assert (sent[moving[-1] + 1 :] == 0).all(), "after the page had gone nothing moved"
        assert moving[-1] + 1 < len(sent)


def test_buttons_and_keys_label_discard_undo_and_pause(tmp_path):
    async def script(page, running):
        async def state(name):
            await page.until(f"document.body.dataset.state === '{name}'")

        await page.click("[data-command=start]")
        await state("recording")
        await asyncio.sleep(0.3)
        await page.press("p")
        await state("paused")
        await page.press("p")
        await state("recording")
        await page.press("Backspace")
        await state("discarded")
        await page.press("z")
        await state("stopped")
        assert await page.evaluate("document.querySelector('[data-command=start]').disabled")
        await page.evaluate("document.getElementById('notes').value = 'slipped'")
        await page.click("[data-command=failure]")
        await page.until("document.querySelectorAll('.episode.failure').length === 1")
        await page.press("z")
        await page.until("document.querySelectorAll('.episode').length === 0")
        await page.press("Enter")
        await state("recording")
        await asyncio.sleep(0.2)
        await page.click("[data-command=stop]")
        await state("stopped")
        await page.click("[data-command=success]")
        await page.until("document.querySelectorAll('.episode.success').length === 1")

    path = drive(tmp_path, script)
    with EpisodeStore.open(path) as store:
        assert store.successes.tolist() == [True], "what was taken back is not in the store"
        assert store.metadata(0)["seed"] == 1
    assert [p.name for p in (path / "quarantine").iterdir()] == ["000000.zarr.zip"]
