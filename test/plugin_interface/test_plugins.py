"""The plugin ABI, seen through plugins: every host function, every callback, old habits."""

import collections
import re
import struct

import pytest
from httpd import debug, location, wait_until
from ws_frame import BINARY, CLOSE, PING, PONG, TEXT, close_frame, frame, random_text

CONF = (
    debug()
    + debug("/limited", "WebSocketMaxMessageSize 100")
    + location("/legacy", "${PLUGINS}/legacy.so", "legacy_init")
    + location("/minimal", "${PLUGINS}/broken.so", "minimal_init")
    + location("/rust", "${EXAMPLES}/mod_websocket_echo_rs.so", "echo_init")
)
COUNTING = bytes(range(256))


def counting(size):
    """What the debug plugin sends: 0, 1, … 255, 0, …"""
    return (COUNTING * (size // 256 + 1))[:size]


class Probe:
    """A connection to the debug plugin."""

    def __init__(self, client):
        self.client = client

    def tell(self, command):
        self.client.send(frame(TEXT, command))

    def ask(self, command):
        self.tell(command)
        answer = self.client.read_frame()
        assert answer.opcode == TEXT, answer
        return answer.payload.decode()


@pytest.fixture
def probe(ws):
    return lambda headers=(), **kw: Probe(ws("/debug", list(headers), **kw))


class TestServer:
    def test_version(self, probe):
        assert probe().ask("version") == "1"

    def test_size(self, probe):
        assert int(probe().ask("size")) >= 10 * struct.calcsize("P")

    def test_header_get(self, probe):
        p = probe([("X-One", "first value"), ("X-Empty", "")])
        assert p.ask("header: X-One") == "first value"
        assert p.ask("header: x-ONE") == "first value"
        assert p.ask("header: X-Two") == "(null)"
        assert p.ask("header: X-Empty") == ""
        assert p.ask("header: Host") == f"localhost:{p.client.port}"
        assert p.ask("header: Sec-WebSocket-Version") == "13"
        assert p.ask("header: Upgrade") == "websocket"

    def test_header_get_of_many(self, probe):
        p = probe([(f"X-{n}", f"value {n}" * 10) for n in range(70)])
        for n in (0, 35, 69):
            assert p.ask(f"header: X-{n}") == f"value {n}" * 10

    def test_header_get_of_a_long_one(self, probe):
        value = "c" * 8000
        assert probe([("Cookie", value)]).ask("header: cookie") == value

    def test_headers_beyond_what_is_kept(self, httpd, connect):
        """The log says so, in each process once a minute: any client can bring it about."""
        httpd.expect_log(r"websocket:warn.*WS0105: the request's headers exceed 64 KiB; the plugin will miss \d+ of them")
        for _ in range(4):
            with connect() as client:
                client.upgrade("/debug", [(f"X-{n}", "x" * 8000) for n in range(12)])
                assert Probe(client).ask("header: X-1") == "x" * 8000
        lines = collections.Counter(re.findall(r":warn\] \[pid (\d+).*WS0105", httpd.new_log()))
        assert lines and set(lines.values()) <= {1, 2}, lines  # a minute may begin meanwhile

    def test_header_get_of_a_repeated_one(self, probe):
        assert probe([("X-R", "1"), ("X-R", "2")]).ask("header: X-R") in ("1, 2", "1,2")

    @pytest.mark.parametrize(
        "offer, count", [("a", 1), ("a,b", 2), (" chat ,\tsuper.chat,v1!x ", 3), (None, 0)]
    )
    def test_protocols(self, probe, offer, count):
        p = probe(Sec_WebSocket_Protocol=offer)
        names = [name.strip() for name in offer.split(",")] if offer else []
        assert p.ask("protocols") == (",".join(names) or "(none)")
        for n, name in enumerate(names):
            assert p.ask(f"protocol {n}") == name
        for n in (count, count + 1, 1000, (1 << 64) - 1):
            assert p.ask(f"protocol {n}") == "(null)"

    def test_protocols_of_several_headers(self, probe):
        p = probe([("Sec-WebSocket-Protocol", "c, d")], Sec_WebSocket_Protocol="a, b")
        assert p.ask("protocols") == "a,b,c,d"

    def test_as_many_protocols_as_a_request_may_have(self, probe):
        """The names stay where they are: the plugin has asked for all of them before it is told one."""
        names = [chr(ord("a") + n % 26) for n in range(4000)]
        p = probe(Sec_WebSocket_Protocol=",".join(names))
        assert p.ask("protocols") == ",".join(names)
        for n in (0, 1, 25, 2047, 3999):
            assert p.ask(f"protocol {n}") == names[n]
        assert p.ask("protocol 4000") == "(null)"

    def test_request_while_connecting(self, probe):
        assert probe([("X-Debug-Request", "1")]).ask("request-connect") == "non-null"

    def test_null_pointers(self, httpd, probe):
        httpd.expect_log(r"\[websocket:warn\].*\bheader")
        httpd.expect_log(r"\[websocket:warn\].*\bprotocol")
        p = probe()
        assert p.ask("nulls") == "ok"
        assert p.ask("version") == "1"


class TestResponse:
    def test_header_set(self, connect):
        response = connect().upgrade("/debug", [("X-Debug-Set", "X-A: one|X-B: two words|X-a: three")])
        assert response.headers["x-a"] == "three"
        assert response.headers["x-b"] == "two words"

    def test_header_set_too_late(self, probe):
        p = probe(Sec_WebSocket_Protocol="x")
        assert p.ask("set-late X-A: one") == "ok"
        assert p.ask("protocol-late x") == "ok"
        p.client.close()

    @pytest.mark.parametrize(
        "name", ["Upgrade", "connection", "Sec-WebSocket-Accept", "Content-Length", "Transfer-Encoding",
                 "Sec-WebSocket-Extensions", "sec-websocket-PROTOCOL"]
    )
    def test_headers_that_are_not_the_plugins(self, connect, httpd, name):
        httpd.expect_log(rf"(?i)\[websocket:\w+\].*{name}")
        plain = connect().upgrade("/debug").headers.get(name.lower())
        client = connect()
        response = client.upgrade("/debug", [("X-Debug-Set", f"{name}: 7|X-A: fine")])
        assert response.headers.get(name.lower()) == plain
        assert response.headers["x-a"] == "fine"
        client.send(frame(TEXT, "version"))
        client.expect(TEXT, "1")

    @pytest.mark.parametrize(
        "line", ["X-A: a%0d%0aX-Evil: 1", "X-A: a%0aX-Evil: 1", "X-A%0d%0aX-Evil: 1", "X-A", "X-A: a%7fb"]
    )
    def test_header_set_with_nonsense(self, connect, httpd, line):
        httpd.expect_log(r"\[websocket:\w+\].*header")
        client = connect()
        response = client.upgrade("/debug", [("X-Debug-Set", f"{line}|X-B: fine")])
        assert "x-evil" not in response.headers and "x-a" not in response.headers
        assert response.headers["x-b"] == "fine"
        client.send(frame(TEXT, "version"))
        client.expect(TEXT, "1")

    def test_protocol_set(self, connect):
        response = connect().upgrade(
            "/debug", [("X-Debug-Protocol", "b")], Sec_WebSocket_Protocol="a, b, c"
        )
        assert response.headers["sec-websocket-protocol"] == "b"

    @pytest.mark.parametrize("chosen", ["d", "a, b", "B", "a%0d%0aX-Evil: 1", "%20a"])
    def test_protocol_set_to_what_was_not_offered(self, connect, httpd, chosen):
        httpd.expect_log(r"\[websocket:\w+\].*protocol")
        response = connect().upgrade(
            "/debug", [("X-Debug-Protocol", chosen)], Sec_WebSocket_Protocol="a, b, c"
        )
        assert "sec-websocket-protocol" not in response.headers
        assert "x-evil" not in response.headers

    def test_protocol_set_without_an_offer(self, connect, httpd):
        httpd.expect_log(r"\[websocket:\w+\].*protocol")
        response = connect().upgrade("/debug", [("X-Debug-Protocol", "a")])
        assert "sec-websocket-protocol" not in response.headers

    def test_refusal(self, connect, httpd):
        trail = httpd.trail("refused")
        client = connect()
        response = client.ask(
            "/debug?refused-by-plugin",
            [("X-Debug-Refuse", "1"), ("X-Debug-Set", "X-A: one"), ("X-Debug-Protocol", "a"),
             ("X-Debug-Greet", "nobody hears this"), ("X-Debug-Trail", str(trail))],
            Sec_WebSocket_Protocol="a",
        )
        assert response.status == 403
        for name in ("x-a", "upgrade", "sec-websocket-accept", "sec-websocket-protocol"):
            assert name not in response.headers
        assert "upgrade" not in response.headers.get("connection", "").lower()
        client.send(b"GET /index.html HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        with pytest.raises(EOFError):  # the body, perhaps a second response, and no frame
            client.fill_until(b"nobody hears this")
        assert httpd.access("?refused-by-plugin")[-1].status == 403
        assert not httpd.trail_lines(trail)  # no on_disconnect without a connection

    def test_greetings_follow_the_101(self, ws):
        for _ in range(20):
            client = ws("/debug", [("X-Debug-Greet", "at once"), ("X-Debug-Greet-Thread", "and later")])
            client.expect(TEXT, "at once")
            client.expect(TEXT, "and later")
            client.close()


class TestSend:
    @pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536, 3 << 20])
    def test_sizes(self, probe, size):
        p = probe()
        p.tell(f"send {size}")
        p.client.expect(BINARY, counting(size))

    def test_many(self, probe):
        p = probe()
        p.tell("flood 2000 1000")
        for _ in range(2000):
            p.client.expect(BINARY, counting(1000))
        p.client.expect(TEXT, "sent=2000")

    def test_ping_and_pong(self, probe):
        p = probe()
        p.tell("ping are you there")
        p.client.expect(PING, "are you there")
        p.client.send(frame(PONG, "are you there"))
        p.tell("pong " + "x" * 125)
        p.client.expect(PONG, "x" * 125)

    @pytest.mark.parametrize("kind", [256, 257])
    def test_long_control_frames_are_not_sent(self, httpd, probe, kind):
        httpd.expect_log(rf"\[websocket:warn\].*\bsend\b.*{kind}")
        p = probe()
        assert p.ask(f"type {kind} 126") == "ret=0"
        assert p.ask("version") == "1"

    def test_long_close_is_not_sent(self, httpd, probe):
        httpd.expect_log(r"\[websocket:warn\].*\bsend\b.*255")
        p = probe()
        assert p.ask("raw-close 126") == "ret=0"
        assert p.ask("version") == "1"

    @pytest.mark.parametrize("kind", [-1, 1, 2, 127, 129, 254, 258, 1000, -2147483648, 2147483647])
    def test_unknown_types_are_refused(self, httpd, probe, kind):
        httpd.expect_log(rf"\[websocket:warn\].*\bsend\b.*{kind}")
        p = probe()
        assert p.ask(f"type {kind}") == "ret=0"
        assert p.ask("version") == "1"

    @pytest.mark.parametrize("kind, opcode", [(0, TEXT), (128, BINARY), (256, PING), (257, PONG)])
    def test_return_value(self, probe, kind, opcode):
        p = probe()
        p.tell(f"type {kind} 100")
        p.client.expect(opcode, "x" * 100)
        p.client.expect(TEXT, "ret=100")

    def test_close(self, probe):
        p = probe()
        p.tell("close")
        assert p.client.expect_close(1005).payload == b""

    @pytest.mark.parametrize("code, reason", [(1000, ""), (1000, "bye"), (3000, "ü"), (4999, "x" * 123)])
    def test_close_with_a_code(self, probe, code, reason):
        p = probe()
        p.tell(f"close {code} {reason}")
        assert p.client.expect_close(code).payload[2:] == reason.encode()

    def test_close_ends_the_sending(self, probe):
        p = probe()
        p.client.send(frame(TEXT, "close"), frame(TEXT, "version"), frame(BINARY, b"echo me"), frame(PING))
        p.client.expect_close(1005)

    def test_close_in_a_greeting_connection(self, probe):
        p = probe([("X-Debug-Greet", "hello")])
        p.client.expect(TEXT, "hello")
        p.tell("close 4001 x")
        p.client.expect_close(4001)

    def test_the_clients_code_may_differ(self, probe):
        p = probe()
        p.tell("close 4001 mine")
        assert p.client.read_frame().code == 4001
        p.client.send(close_frame(4002))
        p.client.expect_eof()


class TestMessage:
    def test_types(self, probe):
        p = probe()
        p.client.send(frame(BINARY, b"version"))
        p.client.expect(BINARY, b"version")
        assert p.ask("version") == "1"
        assert p.ask("") == "unknown command"

    @pytest.mark.parametrize("size", [8, 200, 5000, 100_000, 1 << 20])
    def test_the_buffer_is_writable(self, probe, size):
        p = probe()
        for _ in range(3):
            p.tell(b"scribble" + random_text(size - 8))
            p.client.expect(TEXT, b"#" * size)
        p.client.send(frame(TEXT, "scribble" * 4, fin=False), frame(0, "x" * 30))
        p.client.expect(TEXT, b"#" * 62)

    def test_scribbling_does_not_reach_the_next_message(self, probe):
        p = probe()
        p.client.send(frame(TEXT, "scribble 1"), frame(TEXT, "version"), frame(BINARY, b"intact"))
        p.client.expect(TEXT, "##########")
        p.client.expect(TEXT, "1")
        p.client.expect(BINARY, b"intact")

    def test_callbacks_never_overlap(self, probe):
        p = probe()
        p.client.send(*[frame(TEXT, "sleep 5")] * 20, *[frame(BINARY, b"x")] * 200)
        for _ in range(20):
            p.client.expect(TEXT, "ok")
        for _ in range(200):
            p.client.expect(BINARY, b"x")
        assert p.ask("overlaps") == "0"

    def test_connections_do_not_wait_for_each_other(self, httpd, probe):
        if httpd.mpm == "prefork":
            pytest.skip("connections of different processes share nothing")
        first, second = probe(), probe()
        first.tell("sleep 700")
        second.client.timeout = 0.5
        assert second.ask("version") == "1"
        first.client.expect(TEXT, "ok")

    @pytest.mark.parametrize(
        "end", ["close", "server close", "violation", "too big", "eof", "reset"]
    )
    def test_disconnect_exactly_once(self, httpd, ws, end):
        trail = httpd.trail("once")
        client = ws("/limited", [("X-Debug-Trail", str(trail))])
        client.send(frame(TEXT, "version"))
        client.expect(TEXT, "1")
        assert not httpd.trail_lines(trail)
        if end == "close":
            client.close()
        elif end == "server close":
            client.send(frame(TEXT, "close"))
            client.expect_close(1005)
        elif end == "violation":
            client.send(frame(TEXT, rsv=7))
            client.expect_close(1002)
        elif end == "too big":
            client.send(frame(TEXT, length=101))
            client.expect_close(1009)
        elif end == "eof":
            client.sock.close()
        else:
            client.reset()
        wait_until(lambda: httpd.trail_lines(trail), 5, "on_disconnect")
        for _ in range(5):  # any other connection's life is time enough for a second call
            other = ws("/debug")
            other.close()
        assert httpd.trail_lines(trail) == ["disconnect"]


class TestLegacy:
    """A plugin from the years before, unchanged."""

    def test_response(self, connect):
        response = connect().upgrade("/legacy", Sec_WebSocket_Protocol="new, legacy")
        assert response.headers["x-legacy"] == "1"
        assert response.headers["sec-websocket-protocol"] == "legacy"

    def test_refusal(self, connect):
        response = connect().ask("/legacy", [("X-Legacy-Refuse", "1")])
        assert response.status == 403
        assert "x-legacy" not in response.headers

    def test_messages(self, ws):
        client = ws("/legacy", [("User-Agent", "Test/1")])
        for text, answer in [("Hello, wörld", "HELLO, WöRLD"), ("agent", "Test/1"), ("count", "3")]:
            client.send(frame(TEXT, text))
            client.expect(TEXT, answer)
        client.send(frame(BINARY, b"as it is"))
        client.expect(BINARY, b"as it is")
        client.send(frame(TEXT, "quit"))
        client.expect_close(1005)

    def test_client_closes(self, ws):
        ws("/legacy").close()


class TestMinimal:
    """A plugin with on_message alone, in C and in Rust."""

    @pytest.mark.parametrize("path", ["/minimal", "/rust"])
    def test_accepts_everyone(self, ws, path):
        client = ws(path)
        client.send(frame(TEXT, "hi"))
        client.expect(TEXT, "hi")
        client.close()

    def test_client_vanishes(self, ws):
        ws("/minimal?vanish").reset()
        client = ws("/minimal")
        client.send(close_frame(1001))
        assert client.read_frame().opcode == CLOSE
