"""Who may use the page: real connections over the loopback interface, honest and malicious ones."""

import asyncio
import ipaddress
import json
import threading

import aiohttp
import pytest
from test_teleop_session import Rig

from robolearn.core.errors import RefusedError
from robolearn.teleop.replay import EpisodeReader
from robolearn.teleop.server import PageServer, ServerConfig, own_address


@pytest.fixture
def served(tmp_path):
    """Offer a page and run the session; yields a function that starts a server with a configuration."""
    with Rig(tmp_path / "s") as rig:
        servers, over = [], threading.Event()
        loop = threading.Thread(target=rig.session.run, args=(over.is_set,))
        loop.start()

        def serve(**config):
            rig.page.owner = None
            server = PageServer(rig.session, rig.page, EpisodeReader(rig.store), ServerConfig(port=0, **config))
            server.start()
            servers.append(server)
            return server

        serve.rig = rig
        yield serve
        for server in servers:
            server.stop()
        over.set()
        loop.join()


async def get(url, **headers):
    async with aiohttp.ClientSession() as client, client.get(url, headers=headers) as answer:
        return answer.status, await answer.text(), answer.headers


async def receive(socket, kind, **wanted):
    """Return the next message of a kind that holds what is wanted."""
    async with asyncio.timeout(30):
        while True:
            message = await socket.receive()
            assert message.type is aiohttp.WSMsgType.TEXT, message
            data = json.loads(message.data)
            if data["kind"] == kind and all(data[key] == value for key, value in wanted.items()):
                return data


def test_the_page_is_strict_and_other_sites_and_names_are_turned_away(served):
    server = served()
    base = f"http://127.0.0.1:{server.port}"

    async def use():
        status, text, headers = await get(base + "/")
        assert (status, "robolearn teleop" in text) == (200, True)
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        for file in ("page.js", "controls.js", "episodes.js", "page.css", "icon.svg"):
            assert (await get(f"{base}/{file}"))[0] == 200
        status, text, _ = await get(base + "/", Origin="https://evil.example")
        assert (status, "'https://evil.example' may not use" in text) == (403, True)
        # DNS rebinding: the attacker's own name points at this machine.
        status, text, _ = await get(base + "/", Host=f"evil.example:{server.port}")
        assert (status, "not called 'evil.example" in text) == (403, True)
        for path in ("/../../etc/passwd", "/%2e%2e/server.py", "/episodes/..%2f..%2fstore.json", "/page/index.html"):
            assert (await get(base + path))[0] == 404
        status, text, _ = await get(base + "/episodes/123.json")
        assert (status, "robolearn: " in text) == (404, True)
        async with aiohttp.ClientSession() as client:
            for origin in ("https://evil.example", f"http://localhost:{server.port}", "null"):
                with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                    await client.ws_connect(base + "/ws", origin=origin)
                assert refused.value.status == 403
            with pytest.raises(aiohttp.WSServerHandshakeError):
                await client.ws_connect(base + "/ws")

    asyncio.run(use())


def test_beyond_loopback_a_token_is_needed(served):
    server = served(host="0.0.0.0")
    base = f"http://127.0.0.1:{server.port}"
    assert len(server.token) >= 32
    assert server.url.endswith(f"?token={server.token}")

    async def use():
        # What is printed used to be https://0.0.0.0, which a phone cannot open.
        assert (await get(server.url))[0] == 200
        for path in ("/", "/ws", "/episodes/0.json", "/episodes/0/0.jpg"):
            for token in ("", "?token=", "?token=guess", f"?token={server.token}x", "?token=%00%ff"):
                assert (await get(base + path + token))[0] == 403
        assert (await get(f"{base}/?token={server.token}"))[0] == 200
        async with aiohttp.ClientSession() as client:
            async with client.ws_connect(f"{base}/ws?token={server.token}", origin=base) as socket:
                assert (await receive(socket, "status"))["task"] == "native_lift"
            with pytest.raises(aiohttp.WSServerHandshakeError):
                await client.ws_connect(f"{base}/ws?token={server.token}", origin="https://evil.example")

    asyncio.run(use())


def test_the_printed_address_is_one_that_others_can_open():
    assert own_address("127.0.0.1") == "127.0.0.1"
    assert own_address("robot.local") == "robot.local"
    assert ipaddress.ip_address(own_address("0.0.0.0")).version == 4


def test_one_page_is_in_control_and_its_end_frees_the_controls(served):
    server = served()
    base = f"http://127.0.0.1:{server.port}"
    wish = {"kind": "wish", "twist": [0, 0, 1, 0, 0, 0], "engaged": True}

    async def use():
        async with aiohttp.ClientSession() as client:
            first = await client.ws_connect(base + "/ws", origin=base)
            assert (await receive(first, "status"))["control"] is True
            second = await client.ws_connect(base + "/ws", origin=base)
            assert (await receive(second, "status"))["control"] is False
            for message in (wish, {"kind": "ask", "command": "start"}):
                await second.send_json(message)
                assert "Another page is in control" in (await receive(second, "refused"))["text"]
            await second.send_json({"kind": "control"})
            await receive(second, "status", control=True)
            await second.send_json({"kind": "ask", "command": "start"})
            await receive(second, "status", state="recording")
            while not served.rig.page.latency_ms:  # the session has acted on a wish
                await second.send_json(wish)
                await asyncio.sleep(0.02)
            await second.close()
            status = await receive(first, "status", taken=False)
            assert status["state"] == "recording", "the episode goes on; nothing moves"
            await first.close()

    asyncio.run(use())
    assert served.rig.page.poll() is None


def test_nonsense_is_answered_by_name_and_ends_nothing(served):
    server = served()
    base = f"http://127.0.0.1:{server.port}"
    bad = [
        ("{", "Expecting"),
        ("[1]", "must be an object"),
        ("[" * 2000, "recursion|Expecting|depth"),
        ('{"kind": "dance"}', "not 'dance'"),
        ('{"kind": "wish", "twist": [0, 0], "engaged": true}', "6 finite numbers"),
        ('{"kind": "wish", "twist": [NaN, 0, 0, 0, 0, 0], "engaged": true}', "6 finite numbers"),
        ('{"kind": "wish", "twist": [1e999, 0, 0, 0, 0, 0], "engaged": true}', "6 finite numbers"),
        ('{"kind": "wish", "twist": ["a", 0, 0, 0, 0, 0], "engaged": true}', "needs twist"),
        ('{"kind": "ask", "command": "os.system"}', "unknown"),
        ('{"kind": "ask", "command": "success", "notes": 5}', "Notes are text"),
    ]

    async def use():
        async with aiohttp.ClientSession() as client:
            async with client.ws_connect(base + "/ws", origin=base) as socket:
                for text, word in bad:
                    await socket.send_str(text)
                    answer = (await receive(socket, "refused"))["text"]
                    assert any(w.lower() in answer.lower() for w in word.split("|")), (text[:40], answer)
                await socket.send_str('{"kind": "ping", "at": 5}')
                assert (await receive(socket, "pong"))["at"] == 5
            # Larger than any honest message, or not text: the connection is closed, the server lives.
            async with client.ws_connect(base + "/ws", origin=base) as socket:
                await socket.send_str("x" * 100_000)
                while (await asyncio.wait_for(socket.receive(), 20)).type is aiohttp.WSMsgType.TEXT:
                    pass
                assert socket.closed
            assert (await get(base + "/"))[0] == 200

    asyncio.run(use())


def test_an_address_that_is_taken_is_refused_by_name(served, tmp_path):
    server = served()
    rig = served.rig
    second = PageServer(rig.session, rig.page, EpisodeReader(rig.store), ServerConfig(port=server.port))
    with pytest.raises(RefusedError, match=rf"cannot be offered at 127\.0\.0\.1:{server.port}.*address already in use"):
        second.start()
    third = PageServer(rig.session, rig.page, EpisodeReader(rig.store), ServerConfig(port=0, certificate=tmp_path / "none.pem"))
    with pytest.raises(RefusedError, match="cannot be offered"):
        third.start()
