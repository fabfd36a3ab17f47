"""The same over TLS: wss."""

import ssl

import pytest
from httpd import TLS, debug, echo, location, wait_until
from ws_frame import BINARY, CLOSE, LAST_WORDS, PING, PONG, TEXT, close_frame, frame, random_text
from ws_tls import VERSIONS, exchange

SITE = f"""
    {TLS}
    {debug()}
    {echo()}
    {location("/threads", "${PLUGINS}/threads.so", "threads_init")}
"""


@pytest.fixture(params=VERSIONS)
def wss(request, httpd, connect):
    context = httpd.tls_context(VERSIONS[request.param])

    def opened(path="/echo", headers=(), rcvbuf=None, **kw):
        client = connect(port=httpd.tls_port, tls=context, rcvbuf=rcvbuf)
        assert client.sock.version() == f"TLSv{request.param}"
        client.upgrade(path, headers, **kw)
        return client

    return opened


class TestMessages:
    CONF = SITE

    @pytest.mark.parametrize("size", [0, 1, 126, 16_000, 16_384, 65_536, 3 << 20])
    def test_sizes(self, wss, size):
        client, data = wss(), random_text(size)
        exchange(client, frame(BINARY, data), size + 2)
        client.expect(BINARY, data)
        client.close()

    def test_megabytes_both_ways_at_once(self, wss):
        client, data = wss(), random_text(1 << 20)
        out, back = frame(BINARY, data) * 24, frame(BINARY, data, mask=None)
        exchange(client, out, len(back) * 24)
        assert client.buffer == back * 24
        client.buffer.clear()
        client.close()

    def test_many_frames_in_one_record(self, wss):
        """The server's poll sees nothing of what its TLS layer already holds."""
        client = wss()
        client.send(*(frame(TEXT, f"{n}") for n in range(1500)))
        for n in range(1500):
            client.expect(TEXT, f"{n}")

    def test_each_byte_in_a_record_of_its_own(self, wss):
        client = wss()
        for byte in frame(TEXT, "bit by bit") + frame(PING, b"?"):
            client.send(bytes([byte]))
        client.expect(TEXT, "bit by bit")
        client.expect(PONG, b"?")

    def test_frames_behind_the_handshake(self, connect, httpd):
        client = connect(port=httpd.tls_port, tls=httpd.tls_context())
        client.send(client.request() + frame(TEXT, "early") + frame(PING, b"bird"))
        assert client.read_response().status == 101
        client.expect(TEXT, "early")
        client.expect(PONG, b"bird")

    def test_server_sends_first(self, wss):
        client = wss("/debug", [("X-Debug-Greet", "hello"), ("X-Debug-Greet-Thread", "there")])
        client.expect(TEXT, "hello")
        client.expect(TEXT, "there")

    def test_threads_and_echo(self, wss):
        client = wss("/threads")
        client.send(frame(TEXT, "go 8 500 1000"), *[frame(BINARY, b"echo")] * 100)
        per_thread, echoes = [0] * 8, 0
        while echoes < 100 or per_thread != [500] * 8:
            payload = client.read_frame().payload
            if payload == b"echo":
                echoes += 1
                continue
            assert len(payload) == 1000
            thread, number = int(payload[2:5]), int(payload[8:14])
            assert number == per_thread[thread]
            per_thread[thread] += 1


class TestEnds:
    CONF = SITE

    @pytest.mark.parametrize("code", LAST_WORDS)
    def test_codes(self, wss, code):
        client = wss()
        client.send(LAST_WORDS[code])
        client.expect_close(code, reply=False)

    def test_plugin_closes(self, wss):
        client = wss("/debug")
        client.send(frame(TEXT, "close 3333 x"))
        client.expect_close(3333)

    @pytest.mark.parametrize("how", ["eof", "reset"])
    def test_peer_vanishes_without_close_notify(self, httpd, wss, how):
        trail = httpd.trail("tls")
        client = wss(f"/debug?tls-{how}", [("X-Debug-Trail", str(trail))])
        client.send(frame(TEXT, "version"))
        client.expect(TEXT, "1")
        client.reset() if how == "reset" else client.sock.close()
        wait_until(lambda: httpd.trail_lines(trail) == ["disconnect"], 5, "on_disconnect")
        assert httpd.access(f"?tls-{how}")[-1].close_code == "1006"

    def test_peer_vanishes_under_fire(self, httpd, wss):
        client = wss("/threads")
        child = httpd.child_of(client)
        before = httpd.threads(child)
        client.send(frame(TEXT, "go 16 1000000 1000"))
        for _ in range(100):
            client.read_frame()
        client.reset()
        wait_until(lambda: httpd.threads(child) < before + 16, 5, "the end of the senders")
        wss().close()

    def test_access_log(self, httpd, wss):
        client = wss("/echo?tls-log")
        client.send(frame(TEXT, "x" * 1000))
        client.expect(TEXT, "x" * 1000)
        client.close(4000)
        entry = httpd.access("?tls-log")[-1]
        assert (entry.status, entry.close_code) == (101, "4000")
        assert (entry.messages_in, entry.messages_out) == ("1", "1")
        assert entry.bytes_in > 1000 and entry.bytes_out > 1000


class TestOrigin:
    CONF = SITE

    def test_scheme_is_https(self, connect, httpd):
        for scheme, status in (("https", 101), ("http", 403), ("wss", 403)):
            client = connect(port=httpd.tls_port, tls=httpd.tls_context())
            origin = f"{scheme}://localhost:{httpd.tls_port}"
            assert client.ask(Origin=origin).status == status, scheme

    def test_default_port_is_left_out(self, connect, httpd):
        for origin, status in (("https://a.example", 101), ("https://a.example:443", 403)):
            client = connect(port=httpd.tls_port, tls=httpd.tls_context())
            assert client.ask(Host="a.example:443", Origin=origin).status == status, origin


class TestRestart:
    CONF = SITE

    def test_graceful(self, httpd, wss):
        trail = httpd.trail("tls-graceful")
        client = wss("/debug", [("X-Debug-Trail", str(trail))])
        httpd.graceful()
        got = client.read_frame()
        assert (got.opcode, got.code) == (CLOSE, 1001)
        client.send(close_frame(1001))
        client.expect_eof()
        client.sock.close()
        httpd.renewed()
        assert httpd.trail_lines(trail) == ["disconnect"]
        wss().close()

    @pytest.mark.parametrize("wss", ["1.3"], indirect=True)
    def test_graceful_with_a_client_that_does_not_read(self, httpd, wss):
        client = wss("/threads", rcvbuf=4096)
        client.send(frame(TEXT, "go 8 100000 1000"))
        client.read_frame()
        httpd.graceful()
        httpd.renewed()


@pytest.mark.parametrize("wss", ["1.3"], indirect=True)
class TestStop:
    @pytest.mark.parametrize("detach", ["On", "Off"])
    def test_the_access_log_says_what_the_client_heard(self, httpd, wss, detach):
        """event and worker close the sockets of their own threads before they tell of a stop, so that nothing can be
        said to a client whose connection is httpd's."""
        with httpd.serve(SITE + debug("/end", f"WebSocketDetach {detach}")):
            client, mark = wss("/end?stopped"), "?stopped"
            client.send(frame(TEXT, "version"))
            client.expect(TEXT, "1")
            httpd.stop()
            try:
                heard = client.read_frame().code
            except (EOFError, ConnectionError, ssl.SSLError):
                heard = 1006
            assert httpd.access(mark)[-1].close_code == str(heard)
            assert heard == 1001 or detach == "Off"


@pytest.mark.parametrize("wss", ["1.3"], indirect=True)
class TestSlowClients:
    CONF = "Timeout 2\n" + SITE

    @pytest.mark.timing
    def test_given_up_after_timeout(self, httpd, wss):
        trail = httpd.trail("tls-flood")
        slow, other = wss("/debug", [("X-Debug-Trail", str(trail))], rcvbuf=4096), wss("/echo")
        slow.send(frame(TEXT, "flood 100000 10000"))

        def given_up():
            other.send(frame(TEXT, "meanwhile"))
            other.expect(TEXT, "meanwhile", timeout=1)
            return len(httpd.trail_lines(trail)) == 2

        wait_until(given_up, 12, "the end of the slow client")
        sent, disconnect = httpd.trail_lines(trail)
        assert 0 < int(sent.split("=")[1]) < 100_000
        assert disconnect == "disconnect"

    def test_queue_smaller_than_what_is_sent(self, wss):
        client = wss("/debug", rcvbuf=4096)
        client.send(frame(TEXT, "flood 300 100000"))
        for _ in range(300):
            assert len(client.read_frame().payload) == 100_000
        client.expect(TEXT, "sent=300")


class TestSmallPortions:
    """httpd's last filter may be told to hold back little; it would wait for the client if it were given more."""

    CONF = "FlushMaxThreshold 2048\n" + SITE

    def test_a_slow_reader(self, wss):
        client, data = wss(rcvbuf=4096), random_text(2 << 20)
        client.send(frame(BINARY, data[: 1 << 16]))
        client.expect(BINARY, data[: 1 << 16])
        exchange(client, frame(BINARY, data), len(data) + 10)
        client.expect(BINARY, data)
        client.close()
