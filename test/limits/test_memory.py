"""What clients can make a child hold, and for how long: the budget of memory, and the time that a message has."""

import contextlib
import time
import zlib

import pytest
from httpd import DETACHED, ONE_CHILD, PREFORK, STATUS, TLS, debug, echo, sized, wait_until
from peers import random_bytes
from ws_frame import BINARY, CONTINUATION, PING, TEXT, frame, silent, works

COUNT = sized(16, 200 if DETACHED else 16)
LIMIT = 64  # MiB
DEFLATE = [("Sec-WebSocket-Extensions", "permessage-deflate")]


def bomb(size):
    """The payload of a compressed message that says nothing but zeroes."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    return deflate.compress(bytes(size)) + deflate.flush(zlib.Z_SYNC_FLUSH)


# What each attacker sends: more than its part of the limit.
ATTACKS = {
    "messages without an end": [
        frame(BINARY, b"", fin=False), *[frame(CONTINUATION, random_bytes(100_000), fin=False)] * 60
    ],
    "a frame without an end": [frame(BINARY, length=30 << 20), bytes(6 << 20)],
    "compressed ones": [frame(BINARY, bomb(16 << 20), fin=False, rsv=4)],
    "echoes that are not read": [frame(BINARY, random_bytes(6 << 20))] * 2,
    "Pongs that are not read": [frame(PING, bytes(125)) * 1000] * 80,
}


def send_what_is_taken(client, pieces):
    """Sends without reading, until the server takes no more for a moment or ends the connection."""
    client.sock.settimeout(0.3)
    with contextlib.suppress(OSError):
        for piece in pieces:
            client.sock.sendall(piece)


@pytest.mark.once
@pytest.mark.skipif(PREFORK, reason="a child has one connection")
class TestBudget:
    CONF = (
        f"Timeout 10\nWebSocketMemoryLimit {LIMIT}M\nSendBufferSize 16384\n" + ONE_CHILD + TLS + STATUS
        + echo("/echo", "WebSocketCompression On") + echo("/bystander")
    )

    @pytest.mark.parametrize("kind", ["ws", "wss"])
    @pytest.mark.parametrize("attack", ATTACKS)
    def test_a_child_holds_no_more(self, httpd, over, kind, attack):
        httpd.allow_log("WS0312: the connections of this child hold as much as WebSocketMemoryLimit allows")
        honest = over(kind, "/bystander")
        works(honest)
        before, (child,) = httpd.sums()["RefusedMemory"], httpd.children()
        start = httpd.memory(child)
        attackers = [over(kind, "/echo", DEFLATE, rcvbuf=4096) for _ in range(COUNT)]
        for attacker in attackers:
            send_what_is_taken(attacker, ATTACKS[attack])
            works(honest)
        held = (httpd.memory(child) - start) / 1024
        wait_until(lambda: httpd.sums()["RefusedMemory"] > before, what="1013")
        assert httpd.sums()["Memory"] <= LIMIT << 20
        # What httpd and OpenSSL need besides, and what the allocator has not given back yet.
        assert held < LIMIT * 1.5 + 24 + COUNT / 8, f"{held:.0f} MiB"
        for attacker in attackers:
            attacker.reset()
        wait_until(lambda: httpd.sums()["Memory"] == 0, what="all memory given back")
        # There is room for large messages again.
        large = over(kind, "/echo")
        data = random_bytes(10 << 20)
        large.send(frame(BINARY, data))
        large.expect(BINARY, data)


@pytest.mark.once
@pytest.mark.skipif(PREFORK, reason="a child has one connection")
class TestWhoIsRefused:
    CONF = "WebSocketMemoryLimit 4M\n" + ONE_CHILD + STATUS + echo()

    def test_only_who_asks_for_more(self, httpd, ws):
        httpd.expect_log("WS0312: the connections of this child hold .*4194304 bytes.*; 1 that needed more were")
        early, small, late = [ws() for _ in range(3)]
        # Its memory, and as much again for the answer.
        early.send(frame(BINARY, length=1 << 20), bytes((1 << 20) - 1))
        wait_until(lambda: httpd.sums()["Memory"] == 1 << 20, what="a message that has begun")
        late.send(frame(BINARY, length=4 << 20), bytes((4 << 20) - 1))
        late.expect_close(1013)
        works(small)
        early.send(b"\0")
        assert len(early.read_frame().payload) == 1 << 20
        wait_until(lambda: httpd.sums()["RefusedMemory"] == 1, what="a count")

    def test_configuration(self, httpd):
        for line in ("WebSocketMemoryLimit", "WebSocketMemoryLimit 0", "WebSocketMemoryLimit Off", "WebSocketMemoryLimit 1 2"):
            httpd.check(line).refused("WebSocketMemoryLimit", at=line)


@pytest.mark.once
@pytest.mark.skipif(PREFORK, reason="a child has one connection")
class TestEarlyBytes:
    """What comes with the handshake is counted, too."""

    CONF = "WebSocketMemoryLimit 8M\nSendBufferSize 16384\n" + ONE_CHILD + STATUS + TLS + debug(
        "/debug", "WebSocketSendQueueLimit 64k"
    )

    @pytest.mark.parametrize("kind", ["ws", "wss"])
    def test_much_behind_the_handshake(self, httpd, connect, over, kind):
        httpd.allow_log("WS0312: the connections of this child hold as much as WebSocketMemoryLimit allows")
        if not DETACHED:
            httpd.allow_log("WS0109: refused: WebSockets hold 19")  # those of the test before may not be gone yet
        over(kind, "/debug")
        (child,) = httpd.children()
        start = httpd.memory(child)
        frames = frame(BINARY, random_bytes(4000)) * 250
        tls = {"port": httpd.tls_port, "tls": httpd.tls_context()} if kind == "wss" else {}
        clients = []
        # One after the other: each holds a worker until it has shaken hands.
        for _ in range(60 if DETACHED else 16):
            clients.append(connect(rcvbuf=4096, **tls))
            # It comes while on_connect takes its time.
            send_what_is_taken(clients[-1], [clients[-1].request("/debug", [("X-Debug-Sleep", "60")]) + frames])
        held = (httpd.memory(child) - start) / 1024
        assert held < 8 * 1.5 + 28, f"{held:.0f} MiB"
        for client in clients:
            client.reset()
        wait_until(lambda: httpd.sums()["Memory"] == 0, what="all memory given back")


@pytest.mark.once
class TestAtStart:
    CONF = f"WebSocketMemoryLimit 100M\nServerLimit 16\nMaxRequestWorkers {16 if PREFORK else 128}\n" + echo()

    def test_what_the_limit_adds_up_to(self, httpd):
        children = 16 if PREFORK else 2
        line = f"may take 100 MiB in each of up to {children} children, {children * 100} MiB in all children of one generation"
        assert line in httpd.error_log.read_text()


@pytest.mark.timing
class TestMessageTimeout:
    CONF = TLS + (
        echo("/rate", "WebSocketMessageTimeout 1s,MinRate=1000") + echo("/time", "WebSocketMessageTimeout 2s")
        + echo("/off", "WebSocketMessageTimeout Off")
    )

    @pytest.mark.parametrize("kind", ["ws", "wss"])
    @pytest.mark.parametrize("begun", [b"\x82", frame(TEXT, "to be", fin=False), frame(BINARY, bytes(500))[:-1]])
    def test_a_message_without_an_end(self, over, kind, begun):
        client, off = over(kind, "/rate"), over(kind, "/off")
        client.send(begun)
        off.send(begun)
        start = time.monotonic()
        # It waits for an answer, which it may not understand in the middle of a message.
        assert client.read_frame().code == 1008
        assert 0.9 < time.monotonic() - start < 6
        silent(off, 0.1)

    @pytest.mark.parametrize("kind", ["ws", "wss"])
    def test_who_sends_fast_enough_has_more_time(self, over, kind):
        client = over(kind, "/rate")
        message = frame(BINARY, bytes(12_000))
        for at in range(0, len(message), 600):
            client.send(message[at : at + 600])
            time.sleep(0.2)
        assert len(client.read_frame().payload) == 12_000
        # With or without a rate, each message has its own time, also if the next one has begun with the last bytes of one.
        for path in ("/rate", "/time"):
            client, message = over(kind, path), frame(BINARY, b"12345")
            client.send(message[:1])
            for _ in range(10):
                time.sleep(0.4)
                client.send(message[1:] + message[:1])
                client.expect(BINARY, b"12345")

    def test_without_a_rate_there_is_no_more(self, over):
        client = over("ws", "/time")
        message = frame(BINARY, bytes(100_000))
        with contextlib.suppress(OSError):
            for at in range(0, len(message), 1000):
                client.send(message[at : at + 1000])
                time.sleep(0.05)
        client.expect_close(1008, reply=False)

    def test_configuration(self, httpd):
        for value in ("0", "60,MinRate=0", "60,Rate=5", "5m", "60, MinRate=500", "-1"):
            line = f"    WebSocketMessageTimeout {value}"
            httpd.check(echo("/x", line.strip())).refused("WebSocketMessageTimeout", at=line)
        for value in ("60", "60s", "2min,MinRate=100", "Off", "500ms,minrate=1"):
            checked = httpd.check(echo("/x", f"WebSocketMessageTimeout {value}"))
            assert checked.ok, checked.output
