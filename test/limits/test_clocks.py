"""Clocks: Pings, their answers, idleness, a Close that nobody answers, or takes."""

import contextlib
import time

import pytest
from httpd import DETACH, DETACHED, TLS, debug, echo, wait_until
from peers import random_bytes
from ws_frame import BINARY, CLOSE, PING, PONG, TEXT, close_frame, frame, silent

pytestmark = pytest.mark.skipif(not DETACHED, reason="both kinds of connections are tried")

WAYS = {"detached": DETACH.strip() or "WebSocketDetach Auto", "blocking": "WebSocketDetach Off"}
both = pytest.mark.parametrize("way", WAYS)


def of_both(what, *directives):
    """A Location of the debug plugin for detached connections, and one for those on httpd's threads."""
    return "".join(debug(f"/{what}-{way}", WAYS[way], *directives) for way in WAYS)


@pytest.mark.timing
class TestClocks:
    """Detached connections are looked at once a second, the others when it is time."""

    CONF = (
        DETACH
        + of_both("ping", "WebSocketPingInterval 1s")
        + of_both("idle", "WebSocketPingInterval 1s", "WebSocketIdleTimeout 3s")
        + of_both("close", "WebSocketCloseTimeout 1s")
    )
    LATE = 1.5  # the clock's second, and some air

    def pinged(self, client):
        """The client is pinged about a second from now."""
        start = time.monotonic()
        client.expect(PING, "", timeout=1 + self.LATE)
        assert time.monotonic() - start > 0.8, "pinged too early"

    def given_up(self, httpd, client, line):
        """The connection ends about a second from now, with a line in the error log."""
        start = time.monotonic()
        httpd.expect_log(line)
        client.expect_eof(1 + self.LATE)
        assert time.monotonic() - start > 0.8, "given up too early"

    @both
    def test_silence(self, httpd, ws, way):
        client = ws(f"/ping-{way}?silence")
        self.pinged(client)
        client.send(frame(PONG))
        self.pinged(client)
        self.given_up(httpd, client, "does not answer our Ping")
        assert httpd.access(f"/ping-{way}?silence")[-1].close_code == "1006"

    @both
    def test_any_byte_is_an_answer(self, ws, way):
        client, message = ws(f"/ping-{way}"), frame(TEXT, "size")
        for n in range(3):
            self.pinged(client)
            client.send(message[n : n + 1])
        client.send(message[3:])
        assert client.read_frame().opcode == TEXT
        self.pinged(client)
        client.send(frame(TEXT, "version"))
        client.expect(TEXT, "1")
        self.pinged(client)
        client.send(frame(PING, b"you too"))
        client.expect(PONG, b"you too")
        self.pinged(client)

    @both
    def test_no_ping_while_the_client_speaks(self, ws, way):
        client = ws(f"/ping-{way}")
        for _ in range(8):
            client.send(frame(TEXT, "version"))
            client.expect(TEXT, "1")
            time.sleep(0.4)

    @both
    def test_idle(self, ws, way):
        """Answering pings is no conversation."""
        client, start, pings = ws(f"/idle-{way}"), time.monotonic(), 0
        while (got := client.read_frame(3 + self.LATE)).opcode == PING:
            client.send(frame(PONG, got.payload))
            pings += 1
        took = time.monotonic() - start
        assert (got.opcode, got.code) == (CLOSE, 1001)
        assert 2.8 < took < 3 + self.LATE and pings in (1, 2), f"{pings} pings, closed after {took:.1f} s"
        client.send(close_frame(1001))
        client.expect_eof()

    @both
    def test_a_message_puts_idleness_off(self, ws, way):
        client, pings = ws(f"/idle-{way}"), 0
        while (got := client.read_frame(3 + self.LATE)).opcode != CLOSE:
            if got.opcode == PING:
                pings += 1
                client.send(frame(PONG, got.payload), frame(TEXT, "version") if pings == 1 else b"")
            else:
                spoke = time.monotonic()
        assert got.code == 1001 and 2.8 < time.monotonic() - spoke < 3 + self.LATE

    @both
    def test_close_without_answer(self, httpd, ws, way):
        client = ws(f"/close-{way}?unanswered")
        client.send(frame(TEXT, "close 4000 bye"))
        assert client.read_frame().code == 4000
        self.given_up(httpd, client, "does not answer our Close")
        assert httpd.access(f"/close-{way}?unanswered")[-1].close_code == "4000"

    @both
    def test_messages_are_no_answer_to_a_close(self, ws, way):
        client = ws(f"/close-{way}")
        client.send(frame(TEXT, "close 4000 bye"))
        assert client.read_frame().code == 4000
        start = time.monotonic()
        with contextlib.suppress(OSError):
            while time.monotonic() < start + 5:
                client.send(frame(TEXT, "but I have more to say"))
                time.sleep(0.1)
        assert time.monotonic() - start < 1 + 2 * self.LATE


@pytest.mark.once
@pytest.mark.timing
class TestClocksMerged:
    """An inner section overrides what it sets, and only that; Off is a value like others."""

    SHORT = "WebSocketPingInterval 1s\nWebSocketIdleTimeout 4s\nWebSocketCloseTimeout 1s\n"
    NONE = "WebSocketPingInterval Off", "WebSocketIdleTimeout off", "WebSocketCloseTimeout OFF"
    CONF = DETACH + SHORT + of_both("outer") + of_both("none", *NONE) + of_both(
        "one", "WebSocketPingInterval 1min"
    ) + of_both("longer", "WebSocketPingInterval Off", "WebSocketIdleTimeout 5500ms")

    @both
    def test_inherited(self, ws, way):
        client = ws(f"/outer-{way}")
        client.expect(PING, "", timeout=2.5)
        client.send(frame(PONG))
        while (got := client.read_frame(2.5)).opcode == PING:
            client.send(frame(PONG))
        assert got.code == 1001
        client.expect_eof(2.5)

    @both
    def test_off(self, ws, way):
        idle, closing = ws(f"/none-{way}"), ws(f"/none-{way}")
        closing.send(frame(TEXT, "close 4000 bye"))
        assert closing.read_frame().code == 4000
        silent(idle, 6)
        silent(closing, 1.5)
        closing.send(close_frame(4000))
        closing.expect_eof()
        idle.send(frame(TEXT, "version"))
        idle.expect(TEXT, "1")

    @both
    def test_one_of_them(self, ws, way):
        client, start = ws(f"/one-{way}"), time.monotonic()
        client.expect_close(1001)
        assert 3.8 < time.monotonic() - start < 5.5

    @both
    def test_longer(self, ws, way):
        client, start = ws(f"/longer-{way}"), time.monotonic()
        client.expect_close(1001)
        assert 5.3 < time.monotonic() - start < 7


@pytest.mark.once
class TestRefusedValues:
    @pytest.mark.parametrize("value", ["0", "0s", "-1", "1.5s", "10y", "soon", "On", "99999999999h"])
    @pytest.mark.parametrize("name", ["WebSocketPingInterval", "WebSocketIdleTimeout", "WebSocketCloseTimeout"])
    def test_clocks(self, httpd, name, value):
        httpd.check(f"{name} {value}\n").refused(name, value, at=name)

    @pytest.mark.parametrize("name, value", [
        ("WebSocketDrainTime", "Off"), ("WebSocketDrainTime", "-1"), ("WebSocketDrainTime", "1y"),
        ("WebSocketThreads", "0"), ("WebSocketThreads", "1025"), ("WebSocketThreads", "-1"),
        ("WebSocketThreads", "+8"), ("WebSocketThreads", "many"), ("WebSocketDetach", "Yes"),
    ])
    def test_others(self, httpd, name, value):
        # Behind the tests' own setting of the same name, which is refused in no case.
        checked = httpd.check(f"# here\n{name} {value}\n")
        checked.refused(name, value, f"line {checked.line_of('# here') + 1} of {checked.conf}")

    @pytest.mark.parametrize("line", ["WebSocketDrainTime 1s", "WebSocketThreads 4"])
    @pytest.mark.parametrize("section", ["VirtualHost *:80", "Location /", "Directory /"])
    def test_only_for_the_whole_server(self, httpd, section, line):
        name = section.split()[0]
        checked = httpd.check(f"<{section}>\n    {line}\n</{name}>\n")
        assert not checked.ok and line.split()[0] in checked.output, checked.output

    def test_accepted(self, httpd):
        checked = httpd.check(
            "WebSocketDrainTime 0\nWebSocketThreads 1\nWebSocketThreads 1024\nWebSocketDetach oN\n"
            "WebSocketPingInterval 1h\nWebSocketIdleTimeout 500ms\nWebSocketCloseTimeout 2min\n"
        )
        assert checked.ok, checked.output


class TestAfterOurClose:
    """Who takes nothing of what waits for it cannot have answered our Close, and is not read from any more."""

    CONF = DETACH + TLS + "Timeout 2\nSendBufferSize 16384\n" + "".join(
        echo(f"/{way}", WAYS[way], "WebSocketCloseTimeout 4s")
        + debug(f"/debug-{way}", WAYS[way], "WebSocketCloseTimeout 2s")
        for way in WAYS
    )

    @both
    @pytest.mark.parametrize("kind", ["ws", "wss"])
    def test_a_client_that_sends_on_and_on(self, httpd, over, kind, way):
        client, message = over(kind, f"/{way}", rcvbuf=4096), frame(BINARY, random_bytes(100_000))
        client.sock.settimeout(0.1)
        taken = 0

        def send():
            nonlocal taken
            with contextlib.suppress(TimeoutError):
                for _ in range(100):
                    taken += client.sock.send(message[taken % len(message):])
            return "WS0301: closing with 1008" in httpd.new_log()

        wait_until(send, 7, "our Close")
        before, end = taken, time.monotonic() + 1
        with contextlib.suppress(ConnectionError):  # it is given up after Timeout
            while time.monotonic() < end:
                send()
        assert taken - before < 4 << 20

    @both
    @pytest.mark.parametrize("kind", ["ws", "wss"])
    def test_a_close_at_any_place_of_what_waits(self, httpd, over, kind, way):
        """Wherever it waits for the client, in our queue, in httpd's filters or in the kernel, nobody is busy with it."""
        sizes, path = range(20_000, 60_000, 2_000), f"/debug-{way}?{kind}"
        clients = [over(kind, path, rcvbuf=4096) for _ in sizes]
        used = sum(map(httpd.cpu, httpd.children()))
        for size, client in zip(sizes, clients):
            client.send(frame(TEXT, f"send {size}"), frame(TEXT, "close 3333 enough"))
        httpd.access(f"{path} ", len(sizes), timeout=6)
        assert sum(map(httpd.cpu, httpd.children())) - used < 1


@pytest.mark.timing
class TestWhatTheKernelHolds:
    """What has left us may be long on its way: who reads it steadily has not got our Close, or our Ping, yet."""

    CONF = DETACH + TLS + "".join(
        debug(f"/close-{way}", WAYS[way], "WebSocketCloseTimeout 1s")
        + debug(f"/ping-{way}", WAYS[way], "WebSocketPingInterval 2s")
        for way in WAYS
    )
    SIZE = 900_000  # the kernel takes all of it at once, and the client in six seconds

    def reads(self, client, end):
        """The client reads at 150 kB/s, and says something now and then, until it has got `end`."""
        got, said = b"", time.monotonic()
        client.sock.settimeout(5)
        while not got.endswith(end):
            part = client.sock.recv(10_000)
            assert part, f"the end of the stream after {len(got)} bytes"
            got += part
            if time.monotonic() - said > 0.4:
                client.send(frame(PONG, b"here"))
                said = time.monotonic()
            time.sleep(len(part) / 150_000)
        return len(got)

    @both
    @pytest.mark.parametrize("kind", ["ws", "wss"])
    def test_close(self, over, kind, way):
        client = over(kind, f"/close-{way}", rcvbuf=65536)
        client.send(frame(TEXT, f"send {self.SIZE}"), frame(TEXT, "close 3333 bye"))
        assert self.reads(client, b"\x88\x05\x0d\x05bye") > self.SIZE
        client.send(close_frame(3333))
        client.expect_eof()

    @both
    @pytest.mark.parametrize("kind", ["ws", "wss"])
    def test_ping(self, over, kind, way):
        client = over(kind, f"/ping-{way}", rcvbuf=65536)
        client.send(frame(TEXT, f"send {self.SIZE}"))
        left, deadline = 10 + self.SIZE, time.monotonic() + 12
        client.sock.settimeout(5)
        while left:  # without a word
            part = client.sock.recv(min(10_000, left))
            assert part and time.monotonic() < deadline
            left -= len(part)
            time.sleep(len(part) / 150_000)
        # It is there, and answers now.
        client.send(frame(PONG), frame(TEXT, "version"))
        while (answer := client.read_frame()).opcode != TEXT:
            pass
        assert answer.payload == b"1"
