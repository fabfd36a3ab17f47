"""WebSockets over HTTP/2 (RFC 8441): streams of mod_http2's, over TLS and in clear text."""

import os
import shutil
import signal
import threading
import time
import zlib

import pytest
from peers import ALLOW, Listener, bridge, random_bytes, read_exactly, read_messages, read_to_end
from ws_frame import (
    BINARY,
    CLOSE,
    CONTINUATION,
    LAST_WORDS,
    PING,
    PONG,
    TEXT,
    Refused,
    close_frame,
    frame,
    random_text,
    works,
)
from ws_h2 import Connection, Stream

from httpd import TLS, TOP, debug, echo, location, wait_until

PREFORK = os.environ.get("TEST_MPM") == "prefork"
# mod_http2 says at its start that it does not support prefork; there is one test of what comes of it.
threaded = pytest.mark.skipif(PREFORK, reason="mod_http2 does not support prefork")

SITE = f"""
    Protocols h2 h2c http/1.1
    H2WebSockets On
    {TLS}
    {debug()}
    {echo()}
    {echo("/deflate", "WebSocketCompression On")}
    {location("/threads", "${PLUGINS}/threads.so", "threads_init")}
    {location("/request", "${PLUGINS}/request.so", "request_init", "SSLOptions +StdEnvVars")}
"""


@pytest.fixture
def connection(httpd):
    """Opens HTTP/2 connections, over TLS unless told otherwise, and closes them."""
    opened = []

    def connected(tls=True, **kw):
        port = httpd.tls_port if tls else httpd.port
        opened.append(Connection(port, tls=httpd.tls_context() if tls else None, **kw))
        return opened[-1]

    yield connected
    for one in opened:
        one.sock.close()


@pytest.fixture(params=["h2", "h2c"])
def h2(request, connection):
    """One connection, over TLS and in clear text."""
    return connection(tls=request.param == "h2")


def ended(httpd, mark, connection):
    """The entry of a stream that has ended. Where the request's thread is done after its stream, mod_http2 lets go of the
    request, and httpd writes the entry, when the connection has its next turn."""
    return httpd.access(mark, meanwhile=connection.get)[-1]


# So many streams of a connection mod_http2 runs at once from the start; when it runs more is its own affair.
STREAMS = 6


@threaded
@pytest.mark.once
class TestHandshake:
    CONF = SITE

    def test_is_offered_and_answered_with_200(self, httpd, h2):
        assert h2.offers_websockets
        stream = Stream(h2)
        response = stream.ask("/echo?shake")
        assert response.status == 200
        # These belong to HTTP/1.1 (RFC 8441 §5).
        assert not {"upgrade", "connection", "sec-websocket-accept"} & set(response.headers)
        works(stream)
        stream.close()
        entry = ended(httpd, "?shake", h2)
        assert entry.request == "GET /echo?shake HTTP/2.0"
        assert (entry.status, entry.close_code, entry.messages_in) == (101, "1000", "1")

    def test_headers_and_subprotocol(self, h2):
        stream = Stream(h2)
        headers = [
            ("Sec-WebSocket-Protocol", "chat, superchat"),
            ("X-Debug-Protocol", "superchat"),
            ("X-Debug-Set", "X-Own: value"),
        ]
        response = stream.upgrade("/debug", headers)
        assert response.headers["sec-websocket-protocol"] == "superchat"
        assert response.headers["x-own"] == "value"

    @pytest.mark.parametrize(
        "path, headers, kw, status",
        [
            ("/echo", [], {"version": "12"}, 400),
            ("/echo", [], {"version": None}, 400),
            ("/echo", [("Origin", "https://elsewhere.example")], {}, 403),
            ("/debug", [("X-Debug-Refuse", "1")], {}, 403),
            ("/nowhere", [], {}, 404),
        ],
    )
    def test_refused(self, h2, path, headers, kw, status):
        response = Stream(h2).ask(path, headers, **kw)
        assert response.status == status
        if status == 400:
            assert "13" in response.headers["sec-websocket-version"]
        works(h2.websocket())

    def test_own_origin(self, h2):
        h2.websocket(headers=[("Origin", f"{h2.scheme}://localhost:{h2.port}")])

    def test_plugin_keeps_the_request(self, h2):
        stream = h2.websocket("/request")
        for question, answer in (
            ("protocol", "HTTP/2.0"),
            ("env HTTPS", "on" if h2.scheme == "https" else "-"),
            ("env H2_STREAM_ID", str(stream.id)),
        ):
            stream.send(frame(TEXT, question))
            stream.expect(TEXT, answer)

    def test_stream_that_has_ended_already(self, httpd, h2):
        httpd.expect_log("WS0103: .*the client has ended it already")
        assert Stream(h2).ask(end=True).status == 501
        works(h2.websocket())

    def test_plain_requests_beside_it(self, h2):
        stream = h2.websocket()
        assert h2.get("/")[0] == 200
        assert h2.get("/echo")[0] == 404
        works(stream)

    def test_frames_before_the_answer(self, h2):
        stream = Stream(h2)
        fields = [(":method", "CONNECT"), (":protocol", "websocket"), (":path", "/echo")]
        stream.start([*fields, ("sec-websocket-version", "13")])
        stream.send(frame(TEXT, "early"), frame(PING, b"bird"))
        stream.expect(TEXT, "early")
        stream.expect(PONG, b"bird")
        assert stream.answer[":status"] == "200"


@threaded
class TestMessages:
    CONF = SITE

    @pytest.mark.parametrize("size", [0, 1, 126, 16_384, 65_536, 3 << 20])
    def test_sizes(self, h2, size):
        stream, data = h2.websocket(), random_text(size)
        stream.send(frame(BINARY, data))
        stream.expect(BINARY, data)
        stream.close()

    def test_each_byte_in_a_frame_of_its_own(self, h2):
        stream = h2.websocket()
        for byte in frame(TEXT, "bit by bit") + frame(PING, b"?"):
            stream.send(bytes([byte]))
        stream.expect(TEXT, "bit by bit")
        stream.expect(PONG, b"?")

    def test_many_frames_in_one(self, h2):
        stream = h2.websocket()
        stream.send(*(frame(TEXT, f"{n}") for n in range(1500)))
        for n in range(1500):
            stream.expect(TEXT, f"{n}")

    def test_megabytes_both_ways_at_once(self, h2):
        stream, data = h2.websocket(), random_text(1 << 20)
        stream.send(*[frame(BINARY, data)] * 8)
        for _ in range(8):
            stream.expect(BINARY, data)

    def test_streams_at_once(self, connection):
        connections = [connection() for _ in range(3)]
        streams = [one.websocket() for one in connections for _ in range(STREAMS - 1)]
        for round_ in range(5):
            for n, stream in enumerate(streams):
                stream.send(frame(TEXT, f"{round_} {n} " + "x" * 1000 * n))
            for n, stream in reversed(list(enumerate(streams))):
                stream.expect(TEXT, f"{round_} {n} " + "x" * 1000 * n)
        for one in connections:
            assert one.get()[0] == 200

    def test_plugin_sends_first(self, h2):
        stream = h2.websocket("/debug", [("X-Debug-Greet", "hello"), ("X-Debug-Greet-Thread", "there")])
        stream.expect(TEXT, "hello")
        stream.expect(TEXT, "there")

    def test_plugin_sends_from_threads(self, h2):
        stream = h2.websocket("/threads")
        stream.send(frame(TEXT, "go 8 500 1000"), *[frame(BINARY, b"echo")] * 100)
        per_thread, echoes = [0] * 8, 0
        while echoes < 100 or per_thread != [500] * 8:
            payload = stream.read_frame().payload
            if payload == b"echo":
                echoes += 1
                continue
            thread, number = int(payload[2:5]), int(payload[8:14])
            assert number == per_thread[thread]
            per_thread[thread] += 1

    def test_compression(self, h2):
        stream, text = Stream(h2), b"once more " * 50
        offer = ("Sec-WebSocket-Extensions", "permessage-deflate; client_no_context_takeover")
        answer = stream.upgrade("/deflate", [offer]).headers["sec-websocket-extensions"]
        assert answer.startswith("permessage-deflate")
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        packed = packer.compress(text) + packer.flush(zlib.Z_SYNC_FLUSH)
        stream.send(frame(TEXT, packed[:-4], rsv=4))
        first, size = stream.take(2, time.monotonic() + 5)
        assert first == 0xC1 and size < 126
        payload = stream.take(size, time.monotonic() + 5)
        assert zlib.decompressobj(-15).decompress(payload + b"\x00\x00\xff\xff") == text


@threaded
class TestEnds:
    CONF = SITE

    @pytest.mark.parametrize("code", LAST_WORDS)
    def test_a_close_ends_the_stream_alone(self, h2, code):
        stream, other = h2.websocket(), h2.websocket()
        stream.send(LAST_WORDS[code])
        stream.expect_close(code, reply=False)
        assert not stream.reset_code  # NO_ERROR is what a server says that needs no more input
        works(other)
        assert h2.get()[0] == 200
        works(h2.websocket())

    def test_plugin_closes(self, h2):
        stream, other = h2.websocket("/debug"), h2.websocket()
        stream.send(frame(TEXT, "close 3333 x"))
        stream.expect_close(3333)
        works(other)

    @pytest.mark.parametrize("how", ["end", "reset", "eof"])
    def test_client_vanishes(self, httpd, h2, how):
        trail = httpd.trail("h2")
        mark = f"?{how}-{h2.scheme}"
        stream, other = h2.websocket(f"/debug{mark}", [("X-Debug-Trail", str(trail))]), h2.websocket()
        stream.send(frame(TEXT, "version"))
        stream.expect(TEXT, "1")
        h2.sock.close() if how == "eof" else getattr(stream, how)()
        wait_until(lambda: httpd.trail_lines(trail) == ["disconnect"], 5, "on_disconnect")
        if how == "eof":
            assert httpd.access(mark)[-1].close_code == "1006"
        else:
            assert ended(httpd, mark, h2).close_code == "1006"
            works(other)

    def test_client_vanishes_under_fire(self, httpd, connection):
        one = connection()
        stream = one.websocket("/threads")
        child = httpd.child_of(stream)
        before = httpd.threads(child)
        stream.send(frame(TEXT, "go 16 1000000 1000"))
        for _ in range(100):
            stream.read_frame()
        stream.reset()
        wait_until(lambda: httpd.threads(child) < before + 16, 5, "the end of the senders")
        works(one.websocket())

    def test_one_after_the_other(self, connection):
        """Nothing is used up: all streams of a process share a socket, which must not be closed."""
        one = connection(tls=False)
        for n in range(300):
            stream = one.websocket()
            works(stream, f"{n}")
            stream.close()


@threaded
class TestIdle:
    CONF = SITE

    @pytest.mark.timing
    def test_idle_streams_cost_no_time(self, httpd, connection):
        one = connection()
        streams = [one.websocket() for _ in range(5)]
        child = httpd.child_of(streams[0])
        before = httpd.cpu(child)
        time.sleep(2)
        assert httpd.cpu(child) - before < 0.1
        for stream in streams:
            works(stream)


@threaded
@pytest.mark.once
class TestClocks:
    CONF = (
        "Timeout 2\n"
        + SITE
        + echo("/pinged", "WebSocketPingInterval 500ms")
        + echo("/idle", "WebSocketPingInterval Off", "WebSocketIdleTimeout 500ms")
        + debug("/close", "WebSocketCloseTimeout 500ms")
        + echo("/quiet", "WebSocketPingInterval Off")
    )

    def test_ping(self, h2):
        stream = h2.websocket("/pinged")
        for _ in range(3):
            ping = stream.read_frame()
            assert ping.opcode == PING
            stream.send(frame(PONG, ping.payload))
        works(stream)

    def test_silent_client_is_given_up(self, httpd, h2):
        mark = f"?silent-{h2.scheme}"
        stream, other = h2.websocket(f"/pinged{mark}"), h2.websocket()
        assert stream.read_frame().opcode == PING
        stream.expect_eof()
        works(other)
        assert ended(httpd, mark, h2).close_code == "1006"

    def test_idle_stream_is_closed(self, h2):
        stream, other = h2.websocket("/idle"), h2.websocket()
        stream.expect_close(1001)
        works(other)

    def test_unanswered_close(self, h2):
        stream, other = h2.websocket("/close"), h2.websocket()
        stream.send(frame(TEXT, "close 3333 x"))
        assert stream.read_frame().code == 3333
        stream.expect_eof()
        works(other)

    def test_timeout_is_not_for_idle_streams(self, h2):
        stream = h2.websocket("/quiet")
        with pytest.raises(TimeoutError):
            stream.read_frame(5)
        works(stream)


@threaded
class TestSlowClients:
    CONF = "Timeout 2\n" + SITE

    def test_holds_up_nobody_and_is_given_up(self, httpd, connection):
        """A client that grants no window keeps its own stream waiting, and that for `Timeout` only."""
        trail, one, another = httpd.trail("h2-flood"), connection(window=1000), connection(window=1000)
        slow = Stream(one, reading=False)
        slow.upgrade("/debug", [("X-Debug-Trail", str(trail))])
        slow.send(frame(TEXT, "flood 100000 10000"))
        beside, elsewhere = one.websocket(), another.websocket()

        def given_up():
            works(beside)
            works(elsewhere)
            return len(httpd.trail_lines(trail)) == 2

        wait_until(given_up, 12, "the end of the slow client")
        sent, disconnect = httpd.trail_lines(trail)
        assert 0 < int(sent.split("=")[1]) < 100_000
        assert disconnect == "disconnect"
        works(elsewhere)

    def test_waiting_for_room_costs_little(self, httpd, connection):
        one = connection(window=1000)
        slow = Stream(one, reading=False)
        slow.upgrade("/debug")
        slow.send(frame(TEXT, "flood 1000 10000"))
        child = httpd.child_of(slow)
        before = httpd.cpu(child)
        time.sleep(1.5)
        assert httpd.cpu(child) - before < 0.3

    def test_reads_in_the_end(self, connection):
        one = connection(window=1000)
        slow = Stream(one, reading=False)
        slow.upgrade("/debug")
        slow.send(frame(TEXT, "flood 300 10000"))
        time.sleep(0.5)
        slow.read_on()
        for _ in range(300):
            assert len(slow.read_frame().payload) == 10_000
        slow.expect(TEXT, "sent=300")


FEW_WORKERS = """
    H2MinWorkers 2
    H2MaxWorkers 8
    StartServers 1
    ServerLimit 1
    MaxRequestWorkers 64
"""


# WebSockets may have six of the eight, whatever their share.
FULL = "WS0108: refused: WebSockets hold {} of mod_http2's threads .*H2MaxWorkers 8 allows: raise that, or set"
BY_SHARE = FULL.replace("allows: raise that", "and WebSocketWorkerShare allow: raise one of the two")


def asks(connection):
    """A WebSocket, if there is a worker for it."""
    try:
        return connection.websocket()
    except Refused as refused:
        assert refused.response.status == 503
        return None


def refused(connection):
    """There is none, but there is for a page."""
    start = time.monotonic()
    response = Stream(connection).ask()
    assert response.status == 503
    assert int(response.headers["retry-after"]) > 0
    assert connection.get()[0] == 200
    assert time.monotonic() - start < 2


@threaded
class TestWorkers:
    CONF = FEW_WORKERS + SITE + echo("/few", "WebSocketMaxConnections 2")

    @pytest.mark.timing
    def test_refused_before_the_last_workers_are_taken(self, httpd, connection):
        one, another = connection(), connection(tls=False)
        streams = [one.websocket() for _ in range(3)] + [another.websocket() for _ in range(3)]
        httpd.expect_log(FULL.format(6))
        for here in (one, another):
            refused(here)
        for stream in streams:
            works(stream)

    @pytest.mark.timing
    @pytest.mark.parametrize("how", ["close", "reset", "end"])
    def test_room_again(self, httpd, connection, how):
        httpd.expect_log(FULL.format(6))
        # A connection whose client resets streams gets fewer of them from mod_http2: here each has one.
        streams = [wait_until(lambda: asks(connection()), 10, "a worker") for _ in range(6)]
        refused(connection())
        for _ in range(3):
            getattr(streams.pop(), how)()
            streams.insert(0, wait_until(lambda: asks(connection(tls=False)), 10, "a worker"))
            refused(connection())
        for stream in streams:
            works(stream)

    def test_limits_of_our_own(self, httpd, connection):
        one = connection()
        streams = [one.websocket("/few") for _ in range(2)]
        response = Stream(one).ask("/few")
        assert response.status == 503
        for stream in streams:
            works(stream)


@threaded
@pytest.mark.timing
@pytest.mark.parametrize("share, most", [("Off", 6), ("100", 6), ("20", 2)])
def test_other_shares(httpd, connection, share, most):
    """The last two workers are left to others in any case."""
    with httpd.serve(f"WebSocketWorkerShare {share}\n" + FEW_WORKERS + SITE):
        httpd.expect_log((BY_SHARE if share == "20" else FULL).format(most))
        ones = [connection() for _ in range(3)]
        streams = [ones[n % 3].websocket() for n in range(most)]
        for one in ones:
            refused(one)
        for stream in streams:
            works(stream)
        for one in ones:
            one.sock.close()


FOUR_THREADS = """
    ServerLimit 1
    ThreadsPerChild 4
    MaxRequestWorkers 4
    H2MaxWorkers 20
    KeepAliveTimeout 1
"""


@threaded
class TestThreadsOfTheMpm:
    """A connection with an open stream holds one, however many streams it has: three of four may."""

    CONF = FOUR_THREADS + SITE

    @pytest.mark.timing
    def test_pages_are_reachable(self, httpd, connection):
        httpd.expect_log("WS0109: refused: WebSockets hold 3 of httpd's threads .*ThreadsPerChild 4 .* H2WebSockets Off")
        ones = [connection(tls=n % 2) for n in range(3)]
        streams = [wait_until(lambda o=one: asks(o), 10, "a thread") for one in ones]
        with connection(tls=False) as fourth:
            refused(fourth)
        streams += [one.websocket() for one in ones]
        assert httpd.get()[0] == 200
        # It holds its thread until its last stream ends.
        streams.pop().close()
        with connection(tls=False) as fourth:
            refused(fourth)
        streams.pop(2).close()
        ones.pop().sock.close()
        late = connection(tls=False)
        streams.append(wait_until(lambda: asks(late), 10, "a thread"))
        for stream in streams:
            works(stream)
        assert httpd.get()[0] == 200


@threaded
class TestWarning:
    @pytest.mark.parametrize(
        "directives, warned",
        [
            ("H2WebSockets On\n" + echo("/e", "WebSocketMaxConnections 8"), True),
            ("<VirtualHost *:1>\nH2WebSockets On\n</VirtualHost>\nWebSocketMaxConnections 8\n" + echo(), True),
            ("H2WebSockets On\n" + echo("/e", "WebSocketMaxConnections 6"), False),
            ("H2WebSockets On\nWebSocketMaxConnections Off", False),
            ("H2WebSockets Off\n" + echo("/e", "WebSocketMaxConnections 8"), False),
        ],
    )
    def test_promise_that_cannot_be_kept(self, httpd, directives, warned):
        if warned:
            httpd.expect_log("WS0411: WebSocketMaxConnections promises 8 .* only 6: .*Raise H2MaxWorkers")
        with httpd.serve(FEW_WORKERS + directives):
            pass


@threaded
class TestEndOfChild:
    CONF = "Timeout 3\nKeepAliveTimeout 1\n" + SITE

    def test_graceful_restart(self, httpd, connection):
        one, trail = connection(), httpd.trail("h2-graceful")
        streams = [one.websocket(), one.websocket("/debug", [("X-Debug-Trail", str(trail))])]
        httpd.graceful()
        for stream in streams:
            got = stream.read_frame()
            assert (got.opcode, got.code) == (CLOSE, 1001)
            stream.send(close_frame(1001))
            stream.expect_eof()
        httpd.renewed()
        assert httpd.trail_lines(trail) == ["disconnect"]
        works(connection().websocket())

    def test_graceful_with_a_client_that_grants_no_window(self, httpd, connection):
        """Our part of it is over soon; mod_http2 keeps the connection for Timeout at most."""
        one, trail = connection(window=1000), httpd.trail("h2-stuck")
        slow = Stream(one, reading=False)
        slow.upgrade("/debug", [("X-Debug-Trail", str(trail))])
        slow.send(frame(TEXT, "flood 1000 10000"))
        wait_until(lambda: httpd.trail_lines(trail) == ["sent=1000"], 5, "the flood")
        httpd.tell(signal.SIGUSR1)
        wait_until(lambda: len(httpd.trail_lines(trail)) == 2, 15, "on_disconnect")
        httpd.restarted()
        httpd.outlived(10)

    def test_stop(self, httpd, connection):
        one, trail = connection(window=1000), httpd.trail("h2-stop")
        stream = one.websocket("/debug", [("X-Debug-Trail", str(trail))])
        slow = Stream(one, reading=False)
        slow.upgrade("/debug")
        slow.send(frame(TEXT, "flood 1000 10000"))
        stream.send(frame(TEXT, "version"))
        stream.expect(TEXT, "1")
        httpd.tell(signal.SIGHUP)
        httpd.renewed()
        assert httpd.trail_lines(trail) == ["disconnect"]
        works(connection().websocket())

    @pytest.mark.timing
    @pytest.mark.parametrize("end", [signal.SIGHUP, signal.SIGUSR1], ids=["restart", "graceful restart"])
    def test_a_callback_that_does_not_return(self, httpd, connection, end):
        httpd.expect_log("WS0403: a callback of /.*/debug.so does not return")
        one = connection()
        polite, stuck = one.websocket(), one.websocket("/debug")
        stuck.send(frame(TEXT, "sleep 60000"))
        works(polite)
        begun = time.monotonic()
        httpd.tell(end)
        if end == signal.SIGUSR1:
            got = polite.read_frame()
            assert (got.opcode, got.code) == (CLOSE, 1001)
            polite.send(close_frame(1001))
        httpd.renewed()
        assert time.monotonic() - begun < 3  # a second for the new generation
        works(connection().websocket())


class TestOff:
    CONF = SITE.replace("H2WebSockets On", "H2WebSockets Off")

    @threaded
    def test_not_offered(self, h2):
        assert not h2.offers_websockets

    @threaded
    def test_http_1_1_as_ever(self, httpd, ws):
        works(ws())


@pytest.mark.skipif(not PREFORK, reason="of prefork only")
def test_prefork(httpd):
    """It works there, as far as mod_http2 does: one stream after the other, four workers in a child,
    of which WebSockets may hold two."""
    httpd.expect_log("AH10034: The mpm module .prefork.c. is not supported by mod_http2")
    with httpd.serve(SITE), Connection(httpd.port) as one:
        streams = [one.websocket() for _ in range(2)]
        for stream in streams:
            works(stream)
        for stream in streams:
            stream.close()
        # A child that is stopped while it serves HTTP/2 dies of mod_http2's own faults there.
        one.sock.close()
        httpd.settle()
        time.sleep(0.2)


GREETING = location(
    "/greeting",
    "${EXAMPLES}/mod_websocket_greeting.so",
    "greeting_init",
    'RequestHeader set X-Greeting "expr=%{SERVER_PROTOCOL}"',
)


def turn(page):
    """Has the browser's connection do something (see `ended`)."""
    page.run("fetch('/client.html', {cache: 'no-store'}).then((answer) => answer.text())")


@threaded
@pytest.mark.once
class TestBrowser:
    CONF = SITE + GREETING

    def test_example_page(self, httpd, page):  # noqa: F811
        page.call("Security.enable")
        page.call("Security.setIgnoreCertificateErrors", ignore=True)
        shutil.copy(TOP / "examples/index.html", httpd.root / "htdocs/examples.html")
        (httpd.root / "htdocs/examples.html").chmod(0o644)
        for scheme, port, protocols in (
            ("https", httpd.tls_port, ("h2", "HTTP/2.0")),
            ("http", httpd.port, ("http/1.1", "HTTP/1.1")),
        ):
            page.open(f"{scheme}://localhost:{port}/examples.html")
            page.wait("document.getElementById('socket').textContent !== '?'")
            assert (page.text("page"), page.text("socket")) == protocols

    def test_chromium_takes_it(self, httpd, page):  # noqa: F811
        page.call("Security.enable")
        page.call("Security.setIgnoreCertificateErrors", ignore=True)
        page.open(f"https://localhost:{httpd.tls_port}/client.html")
        result = page.echo_of_megabytes(f"wss://localhost:{httpd.tls_port}/echo?chromium")
        assert result == "true 3001"
        entry = httpd.access("?chromium", meanwhile=lambda: turn(page))[-1]
        assert entry.request == "GET /echo?chromium HTTP/2.0"
        assert entry.close_code == "3001"

    def test_several_at_once(self, httpd, page):  # noqa: F811
        page.call("Security.enable")
        page.call("Security.setIgnoreCertificateErrors", ignore=True)
        page.open(f"https://localhost:{httpd.tls_port}/client.html")
        result = page.run(
            """Promise.all([1, 2, 3, 4].map((n) => new Promise((resolve) => {
                const socket = new WebSocket("wss://" + location.host + "/echo?several");
                socket.onopen = () => socket.send("socket " + n);
                socket.onerror = () => resolve("error");
                socket.onmessage = (event) => { resolve(event.data); socket.close(); };
            })))"""
        )
        assert result == [f"socket {n}" for n in (1, 2, 3, 4)]
        entries = httpd.access("?several", 4, meanwhile=lambda: turn(page))
        assert {entry.request for entry in entries} == {"GET /echo?several HTTP/2.0"}


@threaded
class TestBridge:
    """A peer instead of a plugin."""

    CONF = SITE + bridge("/bridge", "tcp://127.0.0.1:%{QUERY_STRING}", ALLOW, "WebSocketBridgeFraming binary")

    def test_both_ways_and_the_peers_end(self, h2):
        with Listener() as listener:
            stream = h2.websocket(f"/bridge?{listener.port}")
            peer, data = listener.accept(), random_bytes(300_000)
            stream.send(frame(BINARY, data[:1000], fin=False), frame(CONTINUATION, data[1000:2000]))
            assert read_exactly(peer, 2000) == data[:2000]
            sender = threading.Thread(target=peer.sendall, args=(data,))
            sender.start()
            assert read_messages(stream, len(data)) == data
            sender.join()
            peer.close()
            stream.expect_close(1000)
        works(h2.websocket())

    def test_the_clients_end(self, h2):
        with Listener() as listener:
            stream = h2.websocket(f"/bridge?{listener.port}")
            peer = listener.accept()
            stream.send(frame(BINARY, b"the last"), close_frame(1000))
            assert read_to_end(peer) == b"the last"
            peer.close()
            stream.expect_close(1000, reply=False)

    def test_a_peer_that_refuses(self, httpd, h2):
        with Listener() as listener:
            port = listener.port
        httpd.expect_log("WS05")
        assert Stream(h2).ask(f"/bridge?{port}").status == 502
        works(h2.websocket())
