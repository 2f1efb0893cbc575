"""The web page's server: one thread with aiohttp beside the session's.

Who may use it: on loopback, pages of this server only (Host and Origin are checked, so that no other site in the same browser and
no name that is pointed at 127.0.0.1 can reach the robot); anywhere else also a token that is printed at start.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import json
import math
import secrets
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from aiohttp import WSCloseCode, WSMsgType, web

from robolearn.core.errors import RefusedError
from robolearn.core.types import Array
from robolearn.teleop.devices.web import WebDevice
from robolearn.teleop.replay import EpisodeReader
from robolearn.teleop.session import Session

PAGE = Path(__file__).parent / "page"
_FILES = {"/": "index.html", "/page.css": "page.css", "/page.js": "page.js", "/controls.js": "controls.js"} | {
    "/episodes.js": "episodes.js",
    "/icon.svg": "icon.svg",
}
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_STATUS_HZ = 10.0
_SHOWN_WITHIN_S = 2.0
"""A page that has not shown a picture by then is sent another all the same."""
_LARGEST_MESSAGE = 4096
"""Bytes; a page's longest message is a note."""
_LONGEST_NOTE = 1000
_JPEG_QUALITY = 80
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob:; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True)
class ServerConfig:
    """Where the page is offered."""

    host: str = "127.0.0.1"
    """Address to listen on; other than loopback needs the token that is printed."""
    port: int = 8400
    """0 takes a free one."""
    certificate: Path | None = None
    """TLS certificate (PEM); phones give their orientation to secure pages only."""
    key: Path | None = None
    """Its private key (PEM)."""

    @property
    def loopback(self) -> bool:
        """Whether only this machine can connect."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def own_address(host: str) -> str:
    """Return where others reach this machine: ``host``, or the default route's address where that stands for all of them.

    A datagram socket is asked, which sends nothing, about addresses that are kept for documentation.
    """
    family, elsewhere = (socket.AF_INET6, "2001:db8::1") if ":" in host else (socket.AF_INET, "192.0.2.1")
    if host in ("0.0.0.0", "::"):
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((elsewhere, 9))
            return str(probe.getsockname()[0])
    return host


class PageServer:
    """Serves one session; :meth:`start` returns once the page can be opened."""

    def __init__(self, session: Session, device: WebDevice, episodes: EpisodeReader, config: ServerConfig | None = None) -> None:
        self._session, self._device, self._episodes = session, device, episodes
        self._config = config or ServerConfig()
        self.token = "" if self._config.loopback else secrets.token_urlsafe(24)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="robolearn-page", daemon=True)
        self._encoder = ThreadPoolExecutor(1, thread_name_prefix="robolearn-jpeg")
        self._encoded: dict[str, tuple[int, bytes]] = {}
        self._ready: threading.Event = threading.Event()
        self._error: Exception | None = None
        self._clients = 0
        self._sockets: set[web.WebSocketResponse] = set()
        self.port = self._config.port

    @property
    def url(self) -> str:
        """What to open in the browser."""
        scheme = "https" if self._config.certificate else "http"
        host = own_address(self._config.host)
        host = f"[{host}]" if ":" in host else host
        return f"{scheme}://{host}:{self.port}/" + (f"?token={self.token}" if self.token else "")

    def start(self) -> None:
        """Listen.

        Raises:
            RefusedError: the address is taken or not ours, or the certificate cannot be read.
        """
        self._thread.start()
        self._ready.wait()
        if self._error is not None:
            raise RefusedError(
                f"The page cannot be offered at {self._config.host}:{self._config.port}: {self._error}."
            ) from self._error

    def stop(self) -> None:
        """Close all connections and end the thread."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        self._encoder.shutdown()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        application = web.Application(middlewares=[self._guard])
        for path in _FILES:
            application.router.add_get(path, self._file)
        application.router.add_get("/ws", self._socket)
        application.router.add_get("/episodes/{number:\\d+}.json", self._episode)
        application.router.add_get("/episodes/{number:\\d+}/{step:\\d+}.jpg", self._frame)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.5)
        try:
            self._loop.run_until_complete(self._listen(runner))
        except Exception as error:
            self._error = error
            self._ready.set()
            return
        self._ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(self._end(runner))
        self._loop.close()

    async def _listen(self, runner: web.AppRunner) -> None:
        context = None
        if self._config.certificate is not None:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(self._config.certificate, self._config.key)
        await runner.setup()
        site = web.TCPSite(runner, self._config.host, self._config.port, ssl_context=context)
        await site.start()
        self.port = runner.addresses[0][1]

    async def _end(self, runner: web.AppRunner) -> None:
        for connection in list(self._sockets):
            await connection.close(code=WSCloseCode.GOING_AWAY, message=b"the session has ended")
        await runner.cleanup()

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Let nobody in who is not meant to be, and keep the browser strict."""
        refused = self._refusal(request)
        if refused:
            return web.Response(status=403, text=f"robolearn: {refused}\n", headers=_HEADERS)
        try:
            response = await handler(request)
        except RefusedError as error:
            return web.Response(status=404, text=f"robolearn: {error}\n", headers=_HEADERS)
        if not response.prepared:
            response.headers.update(_HEADERS)
        return response

    def _refusal(self, request: web.Request) -> str:
        """Return why a request is refused, or ""."""
        origin = request.headers.get("Origin")
        scheme = "https" if self._config.certificate else "http"
        if self._config.loopback:
            name = request.host.rsplit(":", 1)[0]
            if name not in ("127.0.0.1", "localhost", "[::1]", self._config.host):
                return f"this page is not called {request.host!r}"
        if origin is not None and origin != f"{scheme}://{request.host}":
            return f"pages from {origin!r} may not use this one"
        if request.path == "/ws" and origin is None:
            return "a browser says where it comes from; this request does not"
        public = request.path in _FILES and request.path != "/"
        given = request.query.get("token", "").encode()
        if self.token and not public and not hmac.compare_digest(given, self.token.encode()):
            return "the token is missing or wrong; open the address that was printed at start"
        return ""

    async def _file(self, request: web.Request) -> web.Response:
        file = PAGE / _FILES[request.path]
        return web.Response(body=file.read_bytes(), content_type=_TYPES[file.suffix], charset="utf-8")

    async def _episode(self, request: web.Request) -> web.Response:
        found = await self._in_thread(lambda: self._episodes.summary(int(request.match_info["number"])))
        return web.json_response(found)

    async def _frame(self, request: web.Request) -> web.Response:
        number, step = int(request.match_info["number"]), int(request.match_info["step"])
        picture = await self._in_thread(lambda: _jpeg(self._episodes.frame(number, step)))
        return web.Response(body=picture, content_type="image/jpeg")

    async def _in_thread(self, function: Callable[[], Any]) -> Any:
        return await self._loop.run_in_executor(self._encoder, function)

    async def _socket(self, request: web.Request) -> web.WebSocketResponse:
        """Talk with one page until it goes; a page that is in control and goes lets go at once."""
        socket = web.WebSocketResponse(heartbeat=5.0, max_msg_size=_LARGEST_MESSAGE, compress=False)
        await socket.prepare(request)
        self._clients += 1
        client = self._clients
        if self._device.owner is None:
            self._device.owner = client
        self._sockets.add(socket)
        cameras = self._session.views.cameras
        seen = [asyncio.Event() for _ in cameras]
        senders = [asyncio.ensure_future(self._send_status(socket, client))]
        senders += [asyncio.ensure_future(self._send_pictures(socket, i, c, seen[i])) for i, c in enumerate(cameras)]
        try:
            async for message in socket:
                if message.type is not WSMsgType.TEXT:
                    break
                await self._receive(socket, client, message.data, seen)
        finally:
            if self._device.owner == client:
                self._device.let_go()
                self._device.owner = None
            for sender in senders:
                sender.cancel()
            self._sockets.discard(socket)
        return socket

    async def _receive(self, socket: web.WebSocketResponse, client: int, text: str, seen: list[asyncio.Event]) -> None:
        try:
            message = json.loads(text)
            if not isinstance(message, dict):
                raise RefusedError("A message must be an object.")
            match message.get("kind"):
                case "wish":
                    self._device.take(message, owner=client)
                case "ask":
                    self._ask(message, client)
                case "control":
                    self._device.let_go()
                    self._device.owner = client
                case "ping":
                    await socket.send_json({"kind": "pong", "at": message.get("at")})
                case "seen" if message.get("view") in range(len(seen)):
                    seen[int(message["view"])].set()
                case "look":
                    self._session.views.look(message.get("view"))
                case other:
                    raise RefusedError(f"Messages are wish, ask, control, ping and look, not {str(other)[:40]!r}.")
        except (RefusedError, ValueError, RecursionError) as error:
            await socket.send_json({"kind": "refused", "text": str(error)[:400]})

    def _ask(self, message: dict[str, Any], client: int) -> None:
        if client != self._device.owner:
            raise RefusedError("Another page is in control; press 'Take control' first.")
        notes = message.get("notes", "")
        if not isinstance(notes, str) or len(notes) > _LONGEST_NOTE:
            raise RefusedError(f"Notes are text of at most {_LONGEST_NOTE} characters.")
        self._session.ask(str(message.get("command")), notes=notes)

    async def _send_status(self, socket: web.WebSocketResponse, client: int) -> None:
        shown = -1
        while not socket.closed:
            status = dict(self._session.status)
            if status["episodes_version"] == shown:
                del status["episodes"]
            shown = status["episodes_version"]
            latency = list(self._device.latency_ms)
            status["latency_p95_ms"] = round(float(np.percentile(latency, 95)), 1) if latency else None
            status |= {"kind": "status", "control": self._device.owner == client, "taken": self._device.owner is not None}
            await socket.send_str(json.dumps(_finite(status)))
            await asyncio.sleep(1 / _STATUS_HZ)

    async def _send_pictures(self, socket: web.WebSocketResponse, index: int, camera: str, seen: asyncio.Event) -> None:
        """Send the newest picture once the page has shown the last: a slow page gets fewer, never older ones."""
        last = 0
        while not socket.closed:
            found = self._session.views.watch(camera)
            if found is not None and found[0] != last:
                last = found[0]
                picture = await self._picture(camera, *found)
                seen.clear()
                await socket.send_bytes(bytes([index]) + last.to_bytes(4, "big") + picture)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(seen.wait(), _SHOWN_WITHIN_S)
            await asyncio.sleep(0.02)

    async def _picture(self, camera: str, number: int, picture: Array) -> bytes:
        """Return a picture as JPEG; every page gets the same one."""
        if self._encoded.get(camera, (0, b""))[0] != number:
            self._encoded[camera] = number, await self._in_thread(lambda: _jpeg(picture))
        return self._encoded[camera][1]


def _jpeg(picture: Array) -> bytes:
    """Return a (h, w, 3) uint8 picture as JPEG."""
    done, data = cv2.imencode(".jpg", np.ascontiguousarray(picture[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    if not done:
        raise RefusedError("A picture could not be compressed.")
    return bytes(data)


def _finite(value: Any) -> Any:
    """Return a JSON value with null for what JSON has no number for."""
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
