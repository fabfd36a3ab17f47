"""Server-Sent Events: subscribers that open no WebSocket."""

import base64
import signal
import subprocess
import time

import pytest
from channels import LIVE, Event, EventSource, Publisher, publish, publishing, room, section, subscribers
from httpd import DETACH, DETACHED, PREFORK, TLS, wait_until

names = iter(f"room{n}" for n in range(1000))
TRANSPORTS = ["http", "https", "blocking http", "blocking https"] if DETACHED else ["blocking http"]
BLOCKING = "<If \"%{HTTP:X-Served-As} == 'blocking'\">\n    WebSocketDetach Off\n</If>\n"
SITE = (
    DETACH + TLS + BLOCKING + "WebSocketDrainTime 200ms\nWebSocketChannelMemory 1M\nSendBufferSize 16384\n" + publishing()
    + LIVE
    + room("^/last/(?<name>.*)$", "%{env:MATCH_NAME}", "WebSocketChannelReplay 3")
    + room("^/all/(?<name>.*)$", "%{env:MATCH_NAME}", "WebSocketChannelReplay All")
    + room("^/skip/(?<name>.*)$", "%{env:MATCH_NAME}", "WebSocketChannelSlowClient Skip")
    + room("^/beat/(?<name>.*)$", "%{env:MATCH_NAME}", "WebSocketPingInterval 300ms", "WebSocketIdleTimeout Off")
    + room("^/same/(?<name>.*)$", "%{env:MATCH_NAME}", "WebSocketOriginCheck Same")
    + room("^/few/(?<name>.*)$", "%{env:MATCH_NAME}", "WebSocketMaxConnections 1")
)
transports = pytest.mark.parametrize("transport", TRANSPORTS)


@pytest.fixture
def channel():
    return next(names)


@pytest.fixture
def events(httpd):
    """Opens streams: `events(transport, path, last)`."""
    opened = []

    def begin(transport, path, last=None, headers=(), rcvbuf=None):
        tls = "https" in transport
        if "blocking" in transport:
            headers = [*headers, ("X-Served-As", "blocking")]
        port, context = (httpd.tls_port, httpd.tls_context()) if tls else (httpd.port, None)
        opened.append(EventSource(port, path, last, context, headers, rcvbuf))
        return opened[-1]

    yield begin
    for one in opened:
        one.sock.close()


class TestEvents:
    CONF = SITE + '<LocationMatch "^/live/">\n    Header set X-Own yes\n</LocationMatch>\n'

    @transports
    def test_what_is_published_arrives(self, httpd, events, channel, transport):
        client = events(transport, f"/live/{channel}")
        assert client.status == 200 and client.headers["content-type"] == "text/event-stream"
        fields = {name: client.headers.get(name) for name in ("cache-control", "vary", "x-accel-buffering", "x-own", "connection")}
        assert fields == {"cache-control": "no-store", "vary": "X-Served-As,Accept", "x-accel-buffering": "no", "x-own": "yes",
                          "connection": "close"}
        assert not {"content-length", "transfer-encoding", "content-encoding"} & set(client.headers)
        if DETACHED:
            meant, other = " detached, ", "served on httpd's thread"
            if "blocking" in transport:
                meant, other = other, meant
            wait_until(lambda: meant in httpd.new_log(), 5, meant)
            assert other not in httpd.new_log()
        assert publish(httpd, channel, "hello")["subscribers"] == 1
        answer = publish(httpd, channel, "two\nlines\r\nor\rfour", b"\0\xff", "")
        got = [client.next() for _ in range(4)]
        assert [(event.kind, event.data) for event in got] == [
            ("message", "hello"), ("message", "two\nlines\nor\nfour"), ("binary", base64.b64encode(b"\0\xff").decode()),
            ("message", ""),
        ]
        assert got[3].id == answer["id"]

    @transports
    def test_many_in_their_order(self, httpd, events, channel, transport):
        clients = [events(transport, f"/live/{channel}") for _ in range(3)]
        publish(httpd, channel, *map(str, range(300)))
        for client in clients:
            assert [client.next().data for _ in range(300)] == [str(n) for n in range(300)]

    @transports
    def test_who_comes_back_misses_nothing(self, httpd, events, channel, transport):
        with events(transport, f"/last/{channel}") as client:
            publish(httpd, channel, "0", "1")
            assert [client.next().data for _ in range(2)] == ["0", "1"]
            last = client.last
        publish(httpd, channel, *map(str, range(2, 10)))
        client = events(transport, f"/last/{channel}", last)
        assert [client.next().data for _ in range(8)] == [str(n) for n in range(2, 10)]
        publish(httpd, channel, "live")
        assert client.next().data == "live"

    @transports
    def test_nor_does_who_has_got_nothing_yet(self, httpd, events, channel, transport):
        with events(transport, f"/live/{channel}") as client:
            wait_until(lambda: client.until(b"\n\n"))  # the id alone is no event
            first = client
        assert first.buffer == b""
        with events(transport, f"/live/{channel}") as client:
            publish(httpd, channel + "x", "not for it")
            publish(httpd, channel, "0")
            assert client.next().data == "0"

    @transports
    def test_the_first_id_is_one_to_come_back_with(self, httpd, events, channel, transport):
        with events(transport, f"/live/{channel}") as client:
            line = client.until(b"\n\n").decode()
        assert line.startswith("id: ")
        publish(httpd, channel, "missed")
        client = events(transport, f"/live/{channel}", line.removeprefix("id: "))
        assert client.next().data == "missed"

    @transports
    def test_a_gap_is_told(self, httpd, events, channel, transport):
        publish(httpd, channel, *map(str, range(5)))
        client = events(transport, f"/last/{channel}", "1-2-3")
        assert client.next().kind == "gap"
        assert [client.next().data for _ in range(3)] == ["2", "3", "4"]

    @transports
    def test_the_end_of_a_channel(self, httpd, events, channel, transport):
        client = events(transport, f"/live/{channel}")
        with Publisher(httpd.port) as publisher:
            publisher.ask("DELETE", channel)
        assert client.next().kind == "close"
        client.end()
        wait_until(lambda: subscribers(httpd, channel) == 0)

    @transports
    def test_silence_is_no_fault_and_comments_keep_it_alive(self, httpd, events, channel, transport):
        client = events(transport, f"/beat/{channel}")
        for _ in range(2):
            client.until(b":\n\n")
        publish(httpd, channel, "still here")
        assert client.next().data == "still here"

    @transports
    def test_what_a_client_says_means_nothing(self, httpd, events, channel, transport):
        client = events(transport, f"/live/{channel}")
        client.sock.sendall(b"\x81\x05hello" + bytes(100_000) + b"GET / HTTP/1.1\r\n\r\n")
        publish(httpd, channel, "hello")
        assert client.next().data == "hello"

    @transports
    def test_who_cannot_keep_up(self, httpd, events, channel, transport):
        slow, skips = events(transport, f"/live/{channel}", rcvbuf=4096), events(transport, f"/skip/{channel}", rcvbuf=4096)
        with Publisher(httpd.port) as publisher:
            for n in range(300):
                publisher.post(channel, f"{n} ".ljust(10_000))
        got = []
        with pytest.raises(EOFError):
            while True:
                got.append(int(slow.next().data))
        assert got == list(range(len(got))) and len(got) < 250
        # It comes back, and is told.
        assert events(transport, f"/live/{channel}", slow.last).next().kind == "gap"
        kinds, numbers = set(), []
        while numbers[-1:] != [299]:
            event = skips.next()
            kinds.add(event.kind)
            if event.kind == "message":
                numbers.append(int(event.data))
        assert kinds == {"message", "gap"} and numbers == sorted(set(numbers))

    @transports
    def test_origins(self, httpd, events, channel, transport):
        assert events(transport, f"/same/{channel}", headers=[("Origin", "http://evil.example")]).status == 403
        assert events(transport, f"/same/{channel}").status == 200

    @transports
    def test_no_room_is_no_refusal(self, httpd, events, channel, transport):
        def subscribed():  # the one of the test before may not be gone
            client = events(transport, f"/few/{channel}", headers=[("Connection", "close")])
            return client.until(b"\n\n").startswith(b"id: ")

        wait_until(subscribed)
        later = events(transport, f"/few/{channel}", headers=[("Connection", "close")])
        assert later.status == 200
        later.end()
        assert later.retry == 5000

    @transports
    def test_other_requests_are_no_subscribers(self, httpd, events, channel, transport):
        publish(httpd, channel, "0")
        with Publisher(httpd.port, "all") as client:
            for headers in {}, {"Accept": "text/html"}, {"Accept": "*/*"}:
                assert client.ask("GET", channel, **headers).status == 404
            assert client.ask("POST", channel, b"x", Accept="text/event-stream").status in (404, 405)
        # WebSockets on the same URL.
        assert events(transport, f"/all/{channel}", headers=[("Accept", "text/html, text/event-stream;q=0.9")]).next().data == "0"

    @transports
    def test_the_access_log(self, httpd, events, channel, transport):
        with events(transport, f"/live/{channel}?") as client:
            publish(httpd, channel, "hello")
            client.next()
        line = httpd.access(f"/live/{channel}?")[-1]
        assert line.status == 200 and line.messages_out == "2"


class TestEnds:
    @transports
    @pytest.mark.parametrize("end", [signal.SIGUSR1, signal.SIGHUP])
    def test_a_restart_sends_them_back(self, httpd, events, channel, transport, end):
        with httpd.serve(SITE):
            client = events(transport, f"/live/{channel}")
            publish(httpd, channel, "before")
            assert client.next().data == "before"
            httpd.tell(end)
            if end == signal.SIGUSR1 or "blocking" not in transport:
                client.end(12 if PREFORK else 5)
                assert 500 <= client.retry < 2500
            httpd.restarted()
            if end == signal.SIGUSR1:
                publish(httpd, channel, "meanwhile")
                assert events(transport, f"/live/{channel}", client.last).next().data == "meanwhile"


@pytest.mark.once
@pytest.mark.skipif(PREFORK, reason="mod_http2 does not support it")
class TestHttp2:
    """A stream would hold a thread: the client gets what there is, and comes back."""

    CONF = SITE + "H2WebSockets On\nProtocols h2 http/1.1\n"

    def ask(self, httpd, path, last=None):
        out = subprocess.run(
            ["curl", "-sS", "--http2", "--cacert", httpd.certificate(), "-H", "Accept: text/event-stream",
             *(["-H", f"Last-Event-ID: {last}"] if last else []), "-i", f"https://localhost:{httpd.tls_port}{path}"],
            capture_output=True, timeout=10, check=True,
        ).stdout.decode()
        head, _, body = out.partition("\r\n\r\n")
        assert head.startswith("HTTP/2 200") and "text/event-stream" in head
        return body

    def test_nothing_is_missed_between(self, httpd, channel):
        first = self.ask(httpd, f"/live/{channel}")
        assert first.startswith("retry: 2000\n\nid: ") and first.count("\n\n") == 2
        publish(httpd, channel, "0", "1")
        body = self.ask(httpd, f"/live/{channel}", first.split("id: ")[1].strip())
        assert [line for line in body.split("\n") if line.startswith("data")] == ["data: 0", "data: 1"]
        last = body.split("id: ")[-1].strip()
        assert "data" not in self.ask(httpd, f"/live/{channel}", last)
        with Publisher(httpd.port) as publisher:
            publisher.ask("DELETE", channel)
        assert "event: close" in self.ask(httpd, f"/live/{channel}", last)

    def test_much_comes_in_parts(self, httpd, channel):
        publish(httpd, channel, *["x" * 50_000] * 5)
        got, last = 0, None
        while True:
            body = self.ask(httpd, f"/all/{channel}", last)
            got, last = got + body.count("data: x"), body.split("id: ")[-1].strip()
            if body.startswith("retry: 2000\n"):
                break
            assert body.startswith("retry: 10\n") and body.count("data: x") < 3
        assert got == 5
