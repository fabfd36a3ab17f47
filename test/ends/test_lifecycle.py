"""Ends: of connections, of children, of the server; and what the access log says about them."""

import time

import pytest
from httpd import DETACHED, ENDS, PREFORK, TLS, debug, echo, location, sized, wait_until
from ws_frame import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, close_frame, frame

SITE = (
    echo()
    + debug()
    + location("/increment", "${EXAMPLES}/mod_websocket_dumb_increment.so", "dumb_increment_init")
    + location("/threads", "${PLUGINS}/threads.so", "threads_init")
    + """
    <Location /status>
        SetHandler server-status
    </Location>
    """
)


class TestServerEnds:
    """What the connections see when their child goes: each test has a server of its own."""

    @pytest.fixture(autouse=True)
    def own_server(self, httpd):
        with httpd.serve(SITE):
            yield

    @pytest.mark.timing
    @pytest.mark.parametrize("end", ENDS)
    def test_with_connections(self, httpd, ws, end):
        trails = [httpd.trail(f"end-{n}") for n in range(6)]
        clients = [ws("/debug?end", [("X-Debug-Trail", str(trail))]) for trail in trails]
        for client in clients:
            client.send(frame(TEXT, "version"))
            client.expect(TEXT, "1")
        start = time.monotonic()
        httpd.tell(ENDS[end])
        for client in clients:
            try:
                got = client.read_frame()
            except EOFError:
                # event and worker close the sockets of their own threads before they say that they stop.
                assert end in ("stop", "restart") and not (DETACHED and not PREFORK), "no Close"
                continue
            assert (got.opcode, got.code) == (CLOSE, 1001)
            client.send(close_frame(1001))
            client.expect_eof(3)
            client.sock.close()
        assert time.monotonic() - start < 3
        for trail in trails:
            wait_until(lambda t=trail: httpd.trail_lines(t), 3, "on_disconnect")
        if "restart" in end:
            httpd.renewed()
            client = ws("/echo")
            client.send(frame(TEXT, "new generation"))
            client.expect(TEXT, "new generation")
        else:
            httpd.stop(ENDS[end])
        for trail in trails:
            assert httpd.trail_lines(trail) == ["disconnect"]

    @pytest.mark.parametrize("end", ENDS)
    def test_with_clients_that_do_not_answer(self, httpd, ws, end):
        clients = [ws("/echo") for _ in range(8)]
        for client in clients:
            # Until then a worker of httpd may be closing its side of the connection, and event's own stop
            # does not cope with a worker that is just doing that.
            client.send(frame(TEXT, "here"))
            client.expect(TEXT, "here")
        httpd.tell(ENDS[end])
        if "restart" in end:
            httpd.renewed()
        else:
            httpd.stop(ENDS[end])
        for client in clients:
            if "graceful" in end:
                assert client.read_frame().code == 1001
                client.expect_eof()

    @pytest.mark.parametrize("end", ENDS)
    def test_with_senders_at_work(self, httpd, ws, end):
        """Counters in threads of their own, a hammer that nobody reads, half a message."""
        counter = ws("/increment", Sec_WebSocket_Protocol="dumb-increment-protocol")
        counter.expect(TEXT, "0")
        hammer = ws("/threads", rcvbuf=4096)
        hammer.send(frame(TEXT, "go 8 100000 1000"))
        hammer.read_frame()
        half = ws("/echo")
        half.send(frame(TEXT, "half", fin=False))
        httpd.tell(ENDS[end])
        if "restart" in end:
            httpd.renewed()
        else:
            httpd.stop(ENDS[end])
        if "graceful" in end:
            assert half.read_frame().code == 1001
            while (got := counter.read_frame()).opcode == TEXT:
                pass
            assert got.code == 1001

    @pytest.mark.timing
    @pytest.mark.parametrize("end", ENDS)
    @pytest.mark.parametrize("detach", ["Auto", "Off"])
    @pytest.mark.parametrize("kind", ["ws", "wss"])
    def test_with_a_callback_that_waits_for_its_client(self, httpd, over, kind, detach, end):
        """The client does not read, and the callback sends more than the queue holds: no reason to stay."""
        httpd.stop()
        httpd.start(
            "Timeout 60\nWebSocketDrainTime 1s\n" + TLS
            + debug("/debug", "WebSocketSendQueueLimit 64k", f"WebSocketDetach {detach}")
        )
        trail = httpd.trail(f"waits-{kind}-{detach}-{end}")
        client = over(kind, "/debug", [("X-Debug-Trail", str(trail))], rcvbuf=4096)
        client.send(frame(TEXT, "flood 100000 60000"))
        client.read_frame()
        child = httpd.child_of(client)
        time.sleep(0.3)
        begun = time.monotonic()
        httpd.tell(ENDS[end])
        # A drain may take a second, and 1.5 more; so long may the end take by itself.
        wait_until(lambda: child not in httpd.children(), 8, "the end of the child")
        took = time.monotonic() - begun
        assert took < (1 + 1.5 + 0.5 if "graceful" in end else 2), took
        assert httpd.trail_lines(trail)[-1] == "disconnect"
        if "restart" in end:
            httpd.renewed()
        else:
            httpd.stop(ENDS[end])

    def test_graceful_restart_again_and_again(self, httpd, ws):
        for _ in range(5):
            client = ws("/echo")
            client.send(frame(TEXT, "x"))
            client.expect(TEXT, "x")
            httpd.graceful()
            client.expect_close(1001)
            client.sock.close()
            httpd.renewed()

    def test_reload_takes_the_new_configuration(self, httpd, ws):
        path = httpd.root / "conf/httpd.conf"
        path.write_text(path.read_text() + echo("/added", "WebSocketMaxMessageSize 10"))
        httpd.graceful()

        def added():
            response = ws_ask(ws, "/added")
            return response == 101

        wait_until(added, 5, "the new location")

    def test_stop_during_a_graceful_restart(self, httpd, ws):
        clients = [ws("/echo") for _ in range(5)]
        httpd.graceful()
        httpd.stop()
        # event and worker may close the sockets of their own threads before they say that they stop.
        allowed = {1001} if DETACHED or PREFORK else {1001, None}
        assert {client.ended_with() for client in clients} <= allowed


def ws_ask(ws, path):
    """The status that a handshake gets."""
    try:
        ws(path)
    except Exception as refused:  # Refused, or the old child went away
        return getattr(getattr(refused, "response", None), "status", None)
    return 101


class TestAccessLog:
    CONF = SITE

    def entry(self, httpd, mark):
        return httpd.access(mark)[-1]

    def test_a_whole_life(self, httpd, connect):
        client = connect()
        request = client.request("/echo?life")
        sent = [
            frame(TEXT, "one"), frame(TEXT, "t", fin=False), frame(PING, b"p"), frame(CONTINUATION, "wo"),
            frame(BINARY, b"3" * 300), frame(PONG, b"unasked"), frame(TEXT, ""),
        ]
        client.send(request)
        head = client.read_response().head
        client.send(*sent)
        for opcode, payload in [(TEXT, "one"), (PONG, "p"), (TEXT, "two"), (BINARY, "3" * 300), (TEXT, "")]:
            client.expect(opcode, payload)
        assert "?life" not in httpd.access_log.read_text()  # not before the end
        client.close(4000)
        entry = self.entry(httpd, "?life")
        assert entry.status == 101
        assert entry.close_code == "4000"
        assert (entry.messages_in, entry.messages_out) == ("4", "4")
        # A detached connection's handshake has a line, and its bytes, of its own.
        request, response = (0, 0) if DETACHED and not PREFORK else (len(request), len(head) + 4)
        assert entry.bytes_in == request + sum(map(len, sent)) + len(close_frame(4000))
        echoed = 2 + 3, 2 + 1, 2 + 3, 4 + 300, 2, 2 + 2
        assert entry.bytes_out == response + sum(echoed)

    def test_early_bytes_count_once(self, httpd, connect):
        """Frames in the segment of the handshake, which httpd may have read."""
        client = connect()
        request, early = client.request("/echo?early-bytes"), frame(BINARY, b"x" * 500)
        client.send(request + early)
        head = client.read_response().head
        client.expect(BINARY, b"x" * 500)
        client.close(1000)
        entry = self.entry(httpd, "?early-bytes")
        request, response = (0, 0) if DETACHED and not PREFORK else (len(request), len(head) + 4)
        assert entry.bytes_in == request + len(early) + len(close_frame(1000))
        assert entry.bytes_out == response + 4 + 500 + 4

    def test_duration(self, httpd, ws):
        start = time.monotonic()
        client = ws("/debug?duration")
        client.send(frame(TEXT, "sleep 200"))
        client.expect(TEXT, "ok")
        client.close()
        entry = self.entry(httpd, "?duration")
        assert 200_000 <= entry.microseconds <= (time.monotonic() - start) * 1e6

    def test_large_numbers(self, httpd, ws):
        client = ws("/debug?large")
        client.send(frame(TEXT, "flood 50 100000"))
        for _ in range(50):
            client.read_frame()
        client.expect(TEXT, "sent=50")
        client.close()
        entry = self.entry(httpd, "?large")
        assert (entry.messages_in, entry.messages_out) == ("1", "51")
        assert 5_000_000 < entry.bytes_out < 5_001_500

    @pytest.mark.parametrize("code", [1000, 1001, 3000, 4999])
    def test_the_clients_code(self, httpd, ws, code):
        ws(f"/echo?client-{code}").close(code)
        assert self.entry(httpd, f"?client-{code}").close_code == str(code)

    def test_a_close_without_code(self, httpd, ws):
        client = ws("/echo?no-code")
        client.send(close_frame())
        client.expect_close(1005, reply=False)
        assert self.entry(httpd, "?no-code").close_code == "1005"

    def test_the_plugins_close(self, httpd, ws):
        client = ws("/debug?empty")
        client.send(frame(TEXT, "close"))
        client.expect_close(1005)
        assert self.entry(httpd, "?empty").close_code == "1005"

    @pytest.mark.parametrize("answer", [4001, 4002])
    def test_the_plugins_code(self, httpd, ws, answer):
        client = ws(f"/debug?plugin-{answer}")
        client.send(frame(TEXT, "close 4001 because"))
        assert client.read_frame().code == 4001
        client.send(close_frame(answer))
        client.expect_eof()
        assert self.entry(httpd, f"?plugin-{answer}").close_code == "4001"

    @pytest.mark.parametrize("name, data, code", [
        ("violation", frame(TEXT, rsv=1), 1002),
        ("utf8", frame(TEXT, b"\xff"), 1007),
        ("too-big", frame(TEXT, length=1 << 40), 1009),
    ], ids=["violation", "utf8", "too-big"])
    def test_our_code(self, httpd, ws, name, data, code):
        client = ws(f"/echo?{name}")
        client.send(data)
        client.expect_close(code)
        assert self.entry(httpd, f"?{name}").close_code == str(code)

    @pytest.mark.parametrize("how", ["reset", "eof", "half"])
    def test_lost(self, httpd, ws, how):
        client = ws(f"/echo?lost-{how}")
        client.send(frame(TEXT, "hi"))
        client.expect(TEXT, "hi")
        if how == "half":
            client.send(frame(BINARY, b"half", length=100))
        client.reset() if how == "reset" else client.sock.close()
        entry = self.entry(httpd, f"?lost-{how}")
        assert (entry.status, entry.close_code) == (101, "1006")
        assert (entry.messages_in, entry.messages_out) == ("1", "1")

    def test_restart(self, httpd, ws):
        client = ws("/echo?restart")
        httpd.graceful()
        client.expect_close(1001)
        client.sock.close()
        assert self.entry(httpd, "?restart").close_code == "1001"
        httpd.renewed()

    def test_refused(self, httpd, connect):
        connect().ask("/echo?refused", Origin="http://evil.example")
        entry = self.entry(httpd, "?refused")
        assert (entry.status, entry.close_code, entry.messages_in) == (403, "-", "-")


def busy_workers(httpd, connect):
    """Workers that serve something, according to mod_status; the request itself is one."""
    client = connect()
    client.send(b"GET /status?auto HTTP/1.0\r\n\r\n")
    at = client.fill_until(b"BusyWorkers: ")
    client.fill_until(b"Scoreboard")
    client.sock.close()
    return int(client.buffer[at:].split()[1])


class TestNothingIsLeft:
    CONF = SITE

    def settled(self, httpd):
        """Descriptors and threads of all children; compared only between quiet moments."""
        return {pid: (httpd.descriptors(pid), httpd.threads(pid)) for pid in httpd.children()}

    def test_worker_threads_are_freed(self, connect, httpd, ws):
        for end in ("close", "eof", "reset", "violation", "silence"):
            clients = [ws("/echo") for _ in range(8)]
            for client in clients:
                if end == "close":
                    client.close()
                elif end == "eof":
                    client.sock.close()
                elif end == "reset":
                    client.reset()
                elif end == "violation":
                    client.send(frame(TEXT, rsv=7))
                    client.expect_close(1002)
                    client.sock.close()
                else:  # the server closes, the client neither answers nor goes away
                    client.send(frame(TEXT, rsv=7))
            wait_until(lambda: busy_workers(httpd, connect) == 1, 8, f"idle workers after {end}")

    def test_many_reconnects(self, httpd, ws):
        def rounds(count):
            for n in range(count):
                client = ws("/echo" if n % 2 else "/debug")
                client.send(frame(BINARY, b"round"))
                client.expect(BINARY, b"round")
                if n % 3 == 0:
                    client.close()
                client.sock.close()

        rounds(100)
        before = self.settled(httpd)
        rounds(sized(400, 4000))

        def as_before():
            now = self.settled(httpd)
            both = before.keys() & now.keys()
            return both and all(
                now[pid][0] <= before[pid][0] + 3 and now[pid][1] <= before[pid][1] + 3 for pid in both
            )

        wait_until(as_before, 5, "descriptors and threads as before")

    def test_memory_of_reconnects(self, httpd, connect):
        def rounds(count):
            for _ in range(count):
                client = connect()
                client.send(client.request("/debug"), frame(BINARY, b"x" * 5000))
                client.read_response()
                client.expect(BINARY, b"x" * 5000)
                client.sock.close()

        def memory():
            return {pid: httpd.memory(pid) for pid in httpd.children()}

        rounds(300)
        before = memory()
        rounds(sized(1000, 10_000))
        now = memory()
        both = before.keys() & now.keys()
        assert both, "no child is left of those before"
        assert sum(now[pid] - before[pid] for pid in both) < 200 * len(both) + 1024  # KiB


class TestQuietConnections:
    """Clocks that httpd sets for requests must not end a WebSocket."""

    CONF = "Timeout 1\nKeepAliveTimeout 1\nRequestReadTimeout header=1 body=1\n" + echo()

    def test_idle(self, ws):
        client = ws()
        with pytest.raises(TimeoutError):
            client.read_frame(2.5)
        client.send(frame(TEXT, "awake"))
        client.expect(TEXT, "awake")

    def test_slow_message(self, ws):
        client = ws()
        data = frame(TEXT, "slowly")
        client.send(data[:7])
        with pytest.raises(TimeoutError):
            client.read_frame(2.5)
        client.send(data[7:])
        client.expect(TEXT, "slowly")
