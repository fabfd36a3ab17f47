"""What is counted, on the page of metrics and in server-status: each number moves by what is done, and no sum ever falls."""

import contextlib
import os
import signal
import subprocess
import threading
import time

import pytest
from channels import META, EventSource, Meta, Publisher, publish, publishing, room
from httpd import DETACH, DETACHED, ONE_CHILD, PREFORK, STATUS, TLS, debug, echo, sized, wait_until
from metrics import METRICS, Moved, ask, classic, families, key, metrics
from ws_frame import BINARY, CLOSE, PING, TEXT, Refused, close_frame, frame, works

HOLDS = "WebSocketDetach Off"
WAYS = {"detached": "", "blocking": HOLDS} if DETACHED else {"blocking": ""}
each_way = pytest.mark.parametrize("way", WAYS)


class TestPage:
    pytestmark = pytest.mark.once
    CONF = (
        DETACH + METRICS + publishing() + room("^/live$", "news") + echo()
        + "<Location /any>\nSetHandler websocket-metrics\nWebSocketPublish Any\nWebSocketOriginCheck Off\n</Location>\n"
        + "<Location /same>\nSetHandler websocket-metrics\nWebSocketPublish Any\n</Location>\n"
        + "<Location /denied>\nSetHandler websocket-metrics\nWebSocketPublish Any\nRequire all denied\n</Location>\n"
    )

    def test_form(self, httpd):
        publish(httpd, "news", "hello")
        status, headers, text = ask(httpd)
        assert (status, headers["Cache-Control"]) == (200, "no-store")
        assert headers["Content-Type"] == "application/openmetrics-text; version=1.0.0; charset=utf-8"
        assert text.endswith("\n# EOF\n")
        for family in families(text):
            assert family.name.startswith("websocket_") and family.type in ("counter", "gauge") and family.samples
            assert family.documentation.endswith(".")
            ends = [unit for unit in ("bytes", "seconds") if family.name.endswith(f"_{unit}")]
            assert [family.unit] == (ends or [""])
        samples = [sample for family in families(text) for sample in family.samples]
        assert len({key(sample) for sample in samples}) == len(samples)

    def test_the_older_format_has_the_same_numbers(self, httpd):
        _, _, text = ask(httpd)
        samples = [sample for family in families(text) for sample in family.samples]
        assert classic(text) == {key(sample): sample.value for sample in samples}

    def test_labels_are_not_what_clients_choose(self, httpd, ws, connect):
        before = set(metrics(httpd))
        client = ws("/echo?choice", [("Sec-WebSocket-Protocol", "choice")])
        client.send(close_frame(4321, "choice"))
        client.expect_close(4321, reply=False)
        publish(httpd, "choice", "hello")
        assert set(metrics(httpd)) - before <= {"channel_oldest_message_age_seconds"}
        assert "choice" not in ask(httpd)[2]

    def test_head(self, httpd):
        status, headers, text = ask(httpd, method="HEAD")
        assert (status, text) == (200, "")
        assert headers["Content-Type"].startswith("application/openmetrics-text")

    @pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "FOO"])
    def test_other_methods(self, httpd, method):
        status, headers, text = ask(httpd, method=method)
        assert status in (405, 501) and headers["Allow"] == "GET, HEAD" and "GET" in text
        assert "WS0710: /metrics is answered 405" in httpd.new_log()

    @pytest.mark.parametrize("header", [
        "Origin", "Forwarded", "X-Forwarded-For", "x-forwarded-proto", "X-Real-IP", "Via", "Sec-Fetch-Site",
    ])
    def test_local_means_without_a_proxy_and_without_a_page(self, httpd, header):
        status, _, text = ask(httpd, **{header: "http://127.0.0.1"})
        assert status == 403 and "WebSocketPublish Local" in text and "websocket_" not in text
        assert "WS0710: /metrics is answered 403" in httpd.new_log()
        assert ask(httpd, "/any", **{header: "http://127.0.0.1"})[0] == 200

    def test_any_leaves_it_to_require_and_the_check_of_origins(self, httpd):
        assert ask(httpd, "/same")[0] == 200
        assert ask(httpd, "/same", Origin=f"http://127.0.0.1:{httpd.port}")[0] == 200
        assert ask(httpd, "/same", Origin="http://evil.example")[0] == 403
        httpd.expect_log("AH01630: client denied by server configuration")
        assert ask(httpd, "/denied")[0] == 403


class TestWhoIsLocal:
    pytestmark = pytest.mark.once

    def test_the_address_that_access_control_has(self, httpd):
        conf = "RemoteIPHeader X-Client\nRemoteIPInternalProxy 127.0.0.1\n" + METRICS
        with httpd.serve(conf, modules=["remoteip"]):
            assert ask(httpd)[0] == 200
            status, _, text = ask(httpd, X_Client="192.0.2.1")
            assert status == 403 and "only programs on this host" in text


class TestWithoutChannels:
    pytestmark = pytest.mark.once
    CONF = METRICS + echo() + STATUS

    def test_nothing_is_said_of_them(self, httpd):
        assert not [name for name in metrics(httpd) if name.startswith("channel")]
        assert "Channel" not in httpd.status() + httpd.status("?auto")


class TestNumbers:
    """Each moves by what is done, on the module's threads and on httpd's."""

    CONF = (
        METRICS + STATUS + DETACH
        + "".join(echo(f"/{way}", WAYS[way]) + debug(f"/{way}-debug", WAYS[way]) for way in WAYS)
        + "".join(echo(f"/{way}-ping", WAYS[way], "WebSocketPingInterval 1s") for way in WAYS)
        + "".join(echo(f"/{way}-small", WAYS[way], "WebSocketMaxMessageSize 200") for way in WAYS)
        + echo("/full", "WebSocketMaxConnections 1") + echo("/each", "WebSocketMaxConnectionsPerIP 1")
    )

    @each_way
    def test_connections_that_come_and_go(self, httpd, ws, way):
        moved = Moved(httpd)
        clients = []
        for n in range(1, 5):
            clients.append(ws(f"/{way}"))
            moved.become([n, n], f"connections {way}", "handshakes 101")
        for n in reversed(range(4)):
            clients.pop().close()
            moved.become([n, 4 - n], f"connections {way}", "closes 1000")
        wait_until(lambda: not [name for name in moved.now() if name.startswith("connections")], 5, "the end of all")

    @each_way
    def test_what_is_carried_is_told_while_it_lasts(self, httpd, ws, way):
        moved = Moved(httpd)
        carried = "messages_received", "messages_sent", "received_bytes", "sent_bytes"
        client = ws(f"/{way}")
        for n in range(1, 4):
            for _ in range(5):
                works(client)
            expected = [5 * n, 5 * n, 5 * n * len(frame(TEXT, "works")), 5 * n * (2 + len("works"))]
            wait_until(lambda e=expected: moved(*carried) == e, 3, "the numbers of a connection that goes on")
        client.close()
        more = [0, 0, len(close_frame(1000)), 4]
        moved.become([a + b for a, b in zip(expected, more)], *carried)
        entry = httpd.access(f"GET /{way} ")[-1]
        assert [int(entry.messages_in), int(entry.messages_out)] == moved(*carried[:2])

    @each_way
    def test_closes_are_those_of_the_access_log(self, httpd, ws, way):
        moved, codes = Moved(httpd), {}
        for code, sent in (("1000", close_frame(1000)), ("1001", close_frame(1001)), ("other", close_frame(3210)),
                           ("1005", close_frame()), ("1009", frame(BINARY, b"x" * 300)), ("1007", frame(TEXT, b"\xff"))):
            client = ws(f"/{way}-small?{code}")
            client.send(sent)
            got = client.read_frame()
            assert got.opcode == CLOSE
            if code in ("1009", "1007"):
                client.send(close_frame(got.code))
            client.expect_eof()
            codes[f"closes {code}"] = 1
            shown = httpd.access(f"-small?{code}")[-1].close_code
            assert shown == ("3210" if code == "other" else code)
        lost = ws(f"/{way}-small?lost")
        lost.reset()
        assert httpd.access("-small?lost")[-1].close_code == "1006"
        codes["closes 1006"] = 1
        counted = lambda: {name: n for name, n in moved.now().items() if name.startswith("closes")}
        wait_until(lambda: counted() == codes, 5, f"{codes}")

    @each_way
    def test_a_ping_that_nobody_answers(self, httpd, ws, way):
        moved = Moved(httpd)
        silent, answers = ws(f"/{way}-ping"), ws(f"/{way}-ping")
        deadline = time.monotonic() + 6
        while moved("pings_unanswered") == [0]:
            assert time.monotonic() < deadline
            with contextlib.suppress(TimeoutError):
                if (got := answers.read_frame(0.1)).opcode == PING:
                    answers.send(frame(10, got.payload))
        silent.sock.close()
        works(answers)
        moved.become([1, 1, 1], "pings_unanswered", "closes 1006", f"connections {way}")

    def test_handshakes_by_their_answer(self, httpd, ws, connect):
        way, moved, expected = next(iter(WAYS)), Moved(httpd), {}

        def answered(status, path, headers=(), **kw):
            client = connect()
            assert client.ask(path, headers, **kw).status == status
            expected[f"handshakes {status}"] = expected.get(f"handshakes {status}", 0) + 1
            return client

        answered(101, f"/{way}")
        answered(400, f"/{way}", Sec_WebSocket_Key="short")
        answered(400, f"/{way}", Sec_WebSocket_Version="12")
        answered(403, f"/{way}", Origin="http://evil.example")
        answered(403, f"/{way}-debug", [("X-Debug-Refuse", "1")])
        kept = [answered(101, "/full"), answered(101, "/each")]
        answered(503, "/full")
        answered(429, "/each")
        # This is no handshake, and that is not for this module.
        assert httpd.get(f"/{way}")[0] == 404 and connect().ask("/nowhere").status == 404
        handshakes = lambda: {name: n for name, n in moved.now().items() if name.startswith("handshakes")}
        wait_until(lambda: handshakes() == expected, 5, f"{expected}")
        for client in kept:
            client.close()

    @each_way
    def test_memory(self, httpd, ws, way):
        wait_until(lambda: metrics(httpd)["memory_bytes"] == 0, what="no memory from before")
        client = ws(f"/{way}")
        client.send(frame(BINARY, length=1 << 20), bytes((1 << 20) - 1))
        wait_until(lambda: metrics(httpd)["memory_bytes"] == 1 << 20, 5, "a message that has begun")
        client.reset()
        wait_until(lambda: metrics(httpd)["memory_bytes"] == 0, 5, "the memory given back")

    def test_server_status_shows_the_same(self, httpd, ws):
        clients = [ws(f"/{way}") for way in WAYS for _ in range(2)]
        for client in clients:
            works(client)
        time.sleep(1.5)  # until all is told
        sums, page = httpd.sums(), metrics(httpd)
        assert sums["Connections"] == sum(n for name, n in page.items() if name.startswith("connections "))
        assert sums["ConnectionsBlocking"] == page["connections blocking"]
        assert sums["Closes1000"] == page["closes 1000"] and sums["Handshakes101"] == page["handshakes 101"]
        for name, short in (
            ("messages_received", "MessagesIn"), ("messages_sent", "MessagesOut"), ("received_bytes", "BytesIn"),
            ("sent_bytes", "BytesOut"), ("memory_bytes", "Memory"), ("threads", "Threads"),
            ("threads_exhausted", "ThreadsExhausted"), ("waits_refused", "RefusedWaits"),
            ("memory_refused", "RefusedMemory"), ("pings_unanswered", "PingsUnanswered"),
        ):
            assert sums[short] == page[name], short
        text = httpd.status()
        assert f"<th>MessagesIn</th><td>{page['messages_received']}</td>" in text
        for child in {httpd.child_of(client) for client in clients}:
            assert f"<tr><td>{child}</td>" in text


@pytest.mark.skipif(not DETACHED, reason="only detached connections are served by the module's threads")
class TestThreads:
    # Of prefork's one child httpd says that there should be more, if it is at work when httpd looks.
    CONF = DETACH + METRICS + ("" if PREFORK else ONE_CHILD) + "WebSocketThreads 2\n" + debug()

    def test_in_callbacks_and_exhausted(self, httpd, ws):
        if PREFORK:
            pytest.skip("the page is asked of the only process")
        httpd.expect_log("WS0309: all threads")
        assert metrics(httpd)["threads"] == 1
        sleepers = [ws("/debug") for _ in range(2)]
        for sleeper in sleepers:
            sleeper.send(frame(TEXT, "sleep 4000"))
        wait_until(lambda: metrics(httpd)["threads_in_callbacks"] == 2, 3, "threads in callbacks")
        wait_until(lambda: metrics(httpd)["threads_exhausted"] == 1, 3, "threads exhausted")
        assert metrics(httpd)["threads"] == 2
        for sleeper in sleepers:
            sleeper.expect(TEXT, "ok")
        wait_until(lambda: metrics(httpd)["threads_in_callbacks"] == 0, 3, "threads that are free")
        # One goes after five seconds, though nobody looks after them meanwhile.
        wait_until(lambda: metrics(httpd)["threads"] == 1, 8, "a thread that goes")

    def test_waiting_for_a_client(self, httpd, ws):
        slow = ws("/debug", rcvbuf=4096)
        slow.send(frame(TEXT, "flood 3000 65536"))
        wait_until(lambda: metrics(httpd)["threads_waiting"] == 1, 5, "a thread that waits")
        slow.reset()
        wait_until(lambda: metrics(httpd)["threads_waiting"] == 0, 5, "its release")


class TestChannels:
    CONF = (
        DETACH + METRICS + STATUS + TLS + "WebSocketChannelMemory 1M\nSendBufferSize 16384\n" + publishing()
        + "".join(room(f"^/{way}/(?<name>.*)$", "%{env:MATCH_NAME}", WAYS[way]) for way in WAYS)
        + "".join(room(f"^/{way}-skip/(?<name>.*)$", "%{env:MATCH_NAME}", WAYS[way], "WebSocketChannelSlowClient Skip")
                  for way in WAYS)
        + room("^/two$", "one", next(iter(WAYS.values()))).replace('"one"', '"one" "two"')
    )

    @each_way
    def test_published_and_delivered(self, httpd, ws, way):
        moved = Moved(httpd)
        clients = [ws(f"/{way}/here") for _ in range(3)]
        with EventSource(httpd.port, f"/{way}/here") as source:
            moved.become([4, 4, 1, 3], "channel_subscribers", f"connections {way}", "handshakes 200", "handshakes 101")
            publish(httpd, "here", "1", "2")
            publish(httpd, "elsewhere", "3")
            for client in clients:
                client.expect(TEXT, "1")
                client.expect(TEXT, "2")
            assert [source.next().data, source.next().data] == ["1", "2"]
            moved.become([3], "channel_messages_published")
            wait_until(lambda: moved("channel_messages_delivered") == [8], 3, "what was delivered")
        for client in clients:
            client.close()
        wait_until(lambda: moved("channel_subscribers", f"connections {way}") == [0, 0], 5, "the end of all")
        wait_until(lambda: moved("channel_messages_delivered", "closes 1000", "closes 1006") == [8, 3, 1], 5, "all ends")

    def test_who_is_subscribed_to_several_is_one(self, httpd, ws):
        moved = Moved(httpd)
        client = ws("/two")
        moved.become([1], "channel_subscribers")
        with Publisher(httpd.port) as publisher:
            publisher.ask("DELETE", "two")
        client.expect_close(1000)
        # The end of a channel is no message.
        moved.become([0, 0], "channel_messages_published", "channel_messages_delivered")

    @each_way
    def test_gaps_and_overruns(self, httpd, ws, way):
        moved = Moved(httpd)
        headers = [("Sec-WebSocket-Protocol", META)]
        lost = ws(f"/{way}-skip/slow", [*headers, ("Last-Event-ID", "1-2-3")])
        Meta.of(lost.read_frame())
        moved.become([1, 0], "channel_gaps", "channel_overruns")
        lost.close()
        slow = ws(f"/{way}-skip/slow", headers, rcvbuf=4096)
        publish(httpd, "slow", *["x" * 50_000] * 60)
        while not Meta.of(slow.read_frame()).media.startswith("application/x-websocket-gap"):
            pass
        told, overruns = moved("channel_gaps", "channel_overruns")
        assert told >= 2 and overruns >= 1

    def test_the_memory(self, httpd):
        publish(httpd, "old", *["x" * 100_000] * 12)
        assert metrics(httpd)["channel_memory_bytes"] == 1 << 20
        age = metrics(httpd)["channel_oldest_message_age_seconds"]
        assert age <= 5
        wait_until(lambda: metrics(httpd)["channel_oldest_message_age_seconds"] > age, 3, "age")
        publish(httpd, "old", *["x" * 100_000] * 12)
        assert metrics(httpd)["channel_oldest_message_age_seconds"] <= 1

    def test_refusals(self, httpd):
        moved = Moved(httpd)
        with Publisher(httpd.port) as publisher:
            assert publisher.ask("POST", "here", b"\xff", Content_Type="text/plain").status == 400
            assert publisher.ask("POST", "here", b"hello", Origin="http://a.example").status == 403
            assert publisher.ask("PUT", "here", b"hello").status == 405
            assert publisher.ask("POST", "here", bytes(1 << 18)).status == 413
        refused = {f"channel_publish_refusals {status}": 1 for status in (400, 403, 405, 413)}
        assert moved.now() == refused

    def test_server_status(self, httpd, ws):
        client = ws(f"/{next(iter(WAYS))}/status")
        publish(httpd, "status", "1")
        client.expect(TEXT, "1")
        time.sleep(1.5)
        sums, page = httpd.sums(), metrics(httpd)
        assert sums["ChannelSubscribers"] == page["channel_subscribers"] == 1
        for short, name in (("Published", "messages_published"), ("Delivered", "messages_delivered"), ("Gaps", "gaps"),
                            ("Overruns", "overruns"), ("Memory", "memory_bytes")):
            assert sums[f"Channel{short}"] == page[f"channel_{name}"]


class TestEmptyMemory:
    pytestmark = pytest.mark.once
    CONF = METRICS + publishing()

    def test_nothing_has_no_age(self, httpd):
        assert "channel_oldest_message_age_seconds" not in metrics(httpd)
        publish(httpd, "a", "1")
        assert metrics(httpd)["channel_oldest_message_age_seconds"] == 0


class TestEventsThatEnd:
    """Requests for events that are answered, and open no stream."""

    pytestmark = pytest.mark.once

    def test_no_room(self, httpd):
        with httpd.serve(METRICS + room("^/live$", "news", "WebSocketMaxConnections 1")):
            moved = Moved(httpd)
            with EventSource(httpd.port, "/live"), EventSource(httpd.port, "/live") as second:
                second.end()
                assert (second.status, second.retry) == (200, 5000)
                moved.become([1, 1, 1], "channel_event_retries", "handshakes 200", "channel_subscribers")

    @pytest.mark.skipif(PREFORK, reason="mod_http2 does not support it")
    def test_over_http2(self, httpd):
        conf = TLS + "H2WebSockets On\nProtocols h2 http/1.1\n" + METRICS + publishing()
        with httpd.serve(conf + room("^/live$", "news", "WebSocketChannelReplay All")):
            publish(httpd, "news", "1", "2")
            moved = Moved(httpd)
            command = ["curl", "-sS", "--http2", "--cacert", httpd.certificate(), "-H", "Accept: text/event-stream"]
            url = f"https://localhost:{httpd.tls_port}/live"
            events = subprocess.run([*command, url], capture_output=True, timeout=10, check=True).stdout.decode()
            assert events.count("data: ") == 2
            counted = {"channel_event_polls": 1, "channel_messages_delivered": 2}
            assert {name: n for name, n in moved.now().items() if not name.endswith("_seconds")} == counted
            subprocess.run([*command, "-H", "Last-Event-ID: 1-2-3", url], capture_output=True, timeout=10, check=True)
            moved.become([2, 1, 4], "channel_event_polls", "channel_gaps", "channel_messages_delivered")


def counters(text):
    """The counters of a page."""
    kept = [family for family in families(text) if family.type == "counter"]
    return {key(sample): int(sample.value) for family in kept for sample in family.samples}


class TestSums:
    """Whatever becomes of children."""

    CONF = DETACH + METRICS + STATUS + publishing() + "".join(
        echo(f"/{way}", WAYS[way]) + room(f"^/{way}-live$", "news", WAYS[way]) for way in WAYS
    )

    class Watcher(threading.Thread):
        """Asks again and again, and keeps what has fallen."""

        def __init__(self, httpd):
            super().__init__(daemon=True)
            self.httpd, self.ends, self.looks, self.fell, self.last = httpd, False, 0, [], {}

        def run(self):
            while not self.ends:
                with contextlib.suppress(OSError, EOFError, AssertionError):
                    _, _, text = ask(self.httpd)
                    if text.endswith("# EOF\n"):
                        self.look(counters(text))
                time.sleep(0.02)

        def look(self, now):
            self.fell += [(name, before, now[name]) for name, before in self.last.items() if now[name] < before]
            self.last, self.looks = now, self.looks + 1

    @pytest.fixture
    def watcher(self, httpd):
        watcher = self.Watcher(httpd)
        watcher.start()
        yield watcher
        watcher.ends = True
        watcher.join(15)
        assert watcher.looks > 2 and watcher.fell == []

    def talk(self, ws, way, messages):
        """A connection, and what it has counted when it is at rest."""
        client = ws(f"/{way}")
        for _ in range(messages):
            works(client)
        return client

    @each_way
    @pytest.mark.parametrize("end", ["graceful restart", "restart", "kill"])
    def test_none_falls(self, httpd, ws, watcher, way, end):
        if end == "kill":
            httpd.allow_log(r"AH00052: child pid \d+ exit signal Killed")
        moved, messages, handshakes = Moved(httpd), 0, 0
        for turn in range(sized(1, 3)):
            clients = [self.talk(ws, way, 10) for _ in range(3)]
            subscriber = ws(f"/{way}-live")
            publish(httpd, "news", f"{turn}")
            subscriber.expect(TEXT, f"{turn}")
            messages, handshakes = messages + 30, handshakes + 4
            wait_until(lambda n=messages: moved("messages_received") == [n], 5, "what was received")
            wait_until(lambda n=turn: moved("channel_messages_delivered") == [n + 1], 5, "what was delivered")
            children = {httpd.child_of(client) for client in (*clients, subscriber)}
            if end == "kill":
                for child in children:
                    os.kill(child, signal.SIGKILL)
                for client in (*clients, subscriber):
                    client.sock.close()
                wait_until(lambda c=children: not c & set(httpd.children()), what="the end of the children")
            elif end == "restart":
                httpd.restart()
            else:
                httpd.graceful()
            wait_until(
                lambda: moved(f"connections {way}", "channel_subscribers") == [0, 0], 15, "the end of the connections"
            )
            assert moved("messages_received", "handshakes 101", "channel_messages_published") == [
                messages, handshakes, turn + 1,
            ]
        if end == "graceful restart":
            moved.become([handshakes], "closes 1001")

    @each_way
    def test_none_falls_while_all_begins_anew_and_again(self, httpd, ws, watcher, way):
        """Clients come all the time."""
        ends = threading.Event()

        def comes():
            while not ends.is_set():
                with contextlib.suppress(OSError, EOFError, Refused, AssertionError):
                    client = ws(f"/{way}")
                    for _ in range(20):
                        works(client)
                    client.sock.close()

        httpd.allow_log(r"AH00052: child pid \d+ exit signal Killed")
        httpd.allow_log("AH00288|AH00485|AH00484|AH10159|AH00161|AH00286|AH1039[23]|AH03490|AH03269|WS0109")
        clients = [threading.Thread(target=comes, daemon=True) for _ in range(4)]
        for client in clients:
            client.start()
        try:
            for turn in range(sized(1, 4)):
                looks = watcher.looks
                httpd.graceful()
                wait_until(lambda n=looks: watcher.looks > n + 2, what="some looks")
                with contextlib.suppress(IndexError, ProcessLookupError):
                    os.kill(httpd.children()[turn % 2], signal.SIGKILL)
                wait_until(lambda n=looks: watcher.looks > n + 5, what="some looks")
        finally:
            ends.set()
            for client in clients:
                client.join(30)
        wait_until(lambda: metrics(httpd)[f"connections {way}"] == 0, 20, "the end of all connections")
