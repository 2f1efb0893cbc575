"""A real Chromium without a window, spoken to over the DevTools protocol."""

import asyncio
import base64
import functools
import itertools
import json
import os
import re
import subprocess
from pathlib import Path

import aiohttp

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
HOW = (
    "no Chromium on this machine: apt-get install -y --no-install-recommends chromium (Debian), or name one in ROBOLEARN_CHROMIUM"
)


@functools.cache
def find_chromium() -> str | None:
    named = os.environ.get("ROBOLEARN_CHROMIUM")
    return named or next(filter(_answers, NAMES), None)


def _answers(name: str) -> bool:
    """Ask for the version: Ubuntu's chromium-browser is a script that starts nothing where there is no snap."""
    try:
        return subprocess.run([name, "--version"], capture_output=True, timeout=60).returncode == 0
    except OSError:
        return False


class Chromium:
    """One page in one browser; ``async with Chromium(profile) as page``."""

    def __init__(self, profile: Path, *, width: int = 1440, height: int = 900) -> None:
        self._profile, self._size = profile, (width, height)
        self._ids = itertools.count(1)
        self._answers: dict[int, asyncio.Future] = {}
        self.errors: list[str] = []

    async def __aenter__(self):
        self._process = await asyncio.create_subprocess_exec(
            find_chromium(),
            "--headless=new",
            "--remote-debugging-port=0",
            f"--user-data-dir={self._profile}",
            f"--window-size={self._size[0]},{self._size[1]}",
            *("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-extensions", "--disable-background-networking"),
            *("--disable-component-update", "--disable-sync", "--mute-audio", "--hide-scrollbars"),
            "about:blank",
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        while not (found := re.search(rb"DevTools listening on ws://([^/]+)/", await self._process.stderr.readline())):
            assert self._process.returncode is None, "Chromium did not start"
        self._draining = asyncio.ensure_future(self._process.stderr.read())
        self._http = aiohttp.ClientSession()
        async with self._http.get(f"http://{found[1].decode()}/json/list") as answer:
            targets = await answer.json()
        address = next(t["webSocketDebuggerUrl"] for t in targets if t["type"] == "page")
        self._socket = await self._http.ws_connect(address, max_msg_size=0)
        self._reader = asyncio.ensure_future(self._read())
        for domain in ("Page", "Runtime"):
            await self.call(f"{domain}.enable")
        metrics = {"width": self._size[0], "height": self._size[1], "deviceScaleFactor": 1, "mobile": False}
        await self.call("Emulation.setDeviceMetricsOverride", **metrics)
        return self

    async def __aexit__(self, *_):
        self._reader.cancel()
        await self._socket.close()
        await self._http.close()
        if self._process.returncode is None:
            self._process.terminate()
            await self._process.wait()
        await self._draining

    async def _read(self):
        async for message in self._socket:
            data = json.loads(message.data)
            if "id" in data:
                self._answers.pop(data["id"]).set_result(data)
            elif data["method"] == "Runtime.exceptionThrown":
                self.errors.append(data["params"]["exceptionDetails"].get("exception", {}).get("description", "?"))

    async def call(self, method, **params):
        number = next(self._ids)
        self._answers[number] = answer = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": params})
        data = await asyncio.wait_for(answer, 30)
        assert "error" not in data, (method, data["error"])
        return data["result"]

    async def open(self, url):
        await self.call("Page.navigate", url=url)

    async def evaluate(self, expression):
        answer = await self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        return answer["result"].get("value")  # an expression that throws, as while a page is loading, has none

    async def until(self, expression, timeout_s=30):
        """Wait until a JavaScript expression is true."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        while not await self.evaluate(expression):
            assert asyncio.get_running_loop().time() < deadline, f"{expression} did not become true; {self.errors}"
            await asyncio.sleep(0.03)

    async def key(self, name, *, down):
        """Press or let go of a key as a keyboard would."""
        special = {" ": ("Space", 32), "Enter": ("Enter", 13), "Backspace": ("Backspace", 8), "Shift": ("ShiftLeft", 16)}
        code, number = special.get(name, (f"Key{name.upper()}", ord(name.upper()[0])))
        kind = "keyDown" if down else "keyUp"
        await self.call("Input.dispatchKeyEvent", type=kind, key=name, code=code, windowsVirtualKeyCode=number)

    async def press(self, name):
        await self.key(name, down=True)
        await self.key(name, down=False)

    async def mouse(self, kind, x, y):
        held = (
            {"button": "left", "buttons": 1, "clickCount": 1} if kind != "mouseReleased" else {"button": "left", "clickCount": 1}
        )
        await self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **held)

    async def centre(self, selector):
        box = f"document.querySelector({json.dumps(selector)}).getBoundingClientRect()"
        return await self.evaluate(f"(b => [b.x + b.width / 2, b.y + b.height / 2])({box})")

    async def click(self, selector):
        x, y = await self.centre(selector)
        await self.mouse("mousePressed", x, y)
        await self.mouse("mouseReleased", x, y)

    async def picture(self, file):
        data = await self.call("Page.captureScreenshot", format="png")
        await asyncio.to_thread(Path(file).write_bytes, base64.b64decode(data["data"]))
