"""Drafts 76 and 75: the opening handshake, frames, ends, and what hostile clients try."""

import os
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from httpd import DETACH, DETACHED, ENDS, ONE_CHILD, PREFORK, TLS, debug, echo, location, wait_until
from ws_frame import TEXT, Client, frame, random_text
from ws_h2 import Connection, Stream
from ws_tls import Records

LOAD = 'LoadModule websocket_draft76_module "${MODULE}"\n'
SITE = (
    LOAD
    + echo()
    + echo("/both", "SupportDraft75 On")
    + echo("/both/not", "SupportDraft75 Off")
    + echo("/both/inherits", "WebSocketMaxMessageSize 100")
    + echo("/blocking", "SupportDraft75 On", "WebSocketDetach Off")
    + echo("/small", "SupportDraft75 On", "WebSocketMaxMessageSize 100")
    + echo("/one", "WebSocketMaxConnections 1")
    + echo("/mine", "WebSocketMaxConnectionsPerIP 1")
    + echo("/trusted", "SupportDraft75 On", "WebSocketOriginCheck Trusted",
           "WebSocketTrustedOrigin http://good.example")
    + echo("/idle", "SupportDraft75 On", "WebSocketPingInterval 1s", "WebSocketIdleTimeout 3s")
    + echo("/pinged", "SupportDraft75 On", "WebSocketPingInterval 1s")
    + debug("/debug", "SupportDraft75 On")
    + debug("/debug-hasty", "SupportDraft75 On", "WebSocketCloseTimeout 1s")
    + location("/threads", "${PLUGINS}/threads.so", "threads_init", "SupportDraft75 On")
)

# The handshake that draft 76 gives as its example.
KEY1, KEY2, KEY3 = "4 @1  46546xW%0l 1 5", "12998 5 Y3 1  .P00", b"^n:ds[4U"
PROOF = b"8jKS'y:G*Co,Wxa-"
BYE = b"\xff\x00"


def text(payload):
    return b"\x00" + (payload.encode() if isinstance(payload, str) else payload) + b"\xff"


def binary(payload, kind=0x80):
    length, digits = len(payload), []
    while True:
        digits.insert(0, length & 0x7F | (0x80 if digits else 0))
        length >>= 7
        if not length:
            return bytes([kind, *digits]) + payload


def request(client, draft, path, headers=(), http="HTTP/1.1", method="GET", host=None, **fields):
    """The head of an opening request; `None` leaves a field out."""
    own = {"Upgrade": "WebSocket", "Connection": "Upgrade", "Host": host or f"localhost:{client.port}"}
    if draft == 76:
        own |= {"Sec-WebSocket-Key1": KEY1, "Sec-WebSocket-Key2": KEY2}
    own |= {name.replace("_", "-"): value for name, value in fields.items()}
    lines = [f"{k}: {v}" for k, v in own.items() if v is not None] + [f"{k}: {v}" for k, v in headers]
    return "\r\n".join([f"{method} {path} {http}", *lines, "", ""]).encode("latin-1")


def key3(draft):
    return KEY3 if draft == 76 else b""


def ask(client, draft, path="/both", headers=(), **kw):
    """Sends an opening request and returns the head of the answer."""
    client.send(request(client, draft, path, headers, **kw) + key3(draft))
    return client.read_response()


def opens(client, draft, path="/both", headers=(), **kw):
    """The same, which has to succeed."""
    response = ask(client, draft, path, headers, **kw)
    assert response.status == 101, response.head
    if draft == 76:
        expect(client, PROOF)
    return response


def expect(client, data, timeout=None):
    """Exactly these bytes have to come next."""
    got = client.take(len(data), time.monotonic() + (timeout or client.timeout))
    assert got == data, f"expected {data[:60]!r}, got {got[:60]!r}"


def expect_end(client, draft, timeout=None):
    """The end, with a Close where the draft has one, and nothing else."""
    if draft == 76:
        expect(client, BYE, timeout)
    client.expect_eof(timeout)


@pytest.fixture
def hixie(connect):
    """Opens connections of a draft: `hixie(76, path, …)` gives a client after the handshake."""

    def opened(draft, path="/both", headers=(), rcvbuf=None, **kw):
        client = connect(rcvbuf=rcvbuf)
        opens(client, draft, path, headers, **kw)
        return client

    return opened


both = pytest.mark.parametrize("draft", [76, 75])


@pytest.mark.once
class TestConfiguration:
    def test_off_unless_loaded(self, httpd, connect):
        with httpd.serve(echo()):
            assert ask(connect(), 76, "/echo").status == 400
            assert ask(connect(), 75, "/echo").status == 400

    def test_the_directive_comes_with_the_module(self, httpd):
        httpd.check(echo("/echo", "SupportDraft75 On")).refused("SupportDraft75", at="SupportDraft75")

    @pytest.mark.parametrize("where", ["server", "location"])
    def test_bad_words(self, httpd, where):
        line = "SupportDraft75 perhaps"
        conf = LOAD + (line if where == "server" else echo("/echo", line))
        httpd.check(conf).refused("SupportDraft75", "On or Off", at=line)

    def test_not_for_htaccess(self, httpd, connect):
        folder = httpd.root / "htdocs/draft"
        folder.mkdir(exist_ok=True)
        (folder / ".htaccess").write_text("SupportDraft75 On\n")
        conf = LOAD + '<Directory "${ROOT}/htdocs/draft">\nAllowOverride AuthConfig\n</Directory>\n'
        with httpd.serve(conf):
            httpd.expect_log("SupportDraft75 not allowed here")
            assert httpd.get("/draft/")[0] == 500

    def test_alone_it_is_of_no_use(self, httpd):
        path = httpd._write(LOAD, "checked.conf")
        lines = path.read_text().splitlines()
        ours = ("LoadModule websocket_module", "WebSocket", "LogLevel")
        path.write_text("\n".join(line for line in lines if not line.startswith(ours)))
        done = httpd._run("-t", "-f", str(path))
        assert done.returncode != 0
        assert "WS0601" in done.stderr and "LoadModule websocket_module" in done.stderr

    def test_it_may_be_loaded_first(self, httpd):
        path = httpd._write(LOAD + echo("/both", "SupportDraft75 On"), "checked.conf")
        lines = path.read_text().splitlines()
        lines.remove(LOAD.strip())
        lines.insert(next(n for n, line in enumerate(lines) if "websocket_module" in line), LOAD.strip())
        path.write_text("\n".join(lines))
        done = httpd._run("-t", "-f", str(path))
        assert done.returncode == 0, done.stderr

    def test_the_predecessors_file_name(self, httpd, connect):
        """A link is the same library."""
        link = httpd.root / "conf/mod_websocket_draft76.so"
        link.unlink(missing_ok=True)
        link.symlink_to(httpd.module)
        with httpd.serve(LOAD.replace("${MODULE}", str(link)) + echo("/both", "SupportDraft75 On")):
            for draft in (75, 76):
                opens(connect(), draft)

    def test_as_the_predecessor_was_configured(self, httpd, connect):
        """One library, two blocks, the plugin in both; it is initialised once all the same."""
        block = """
        <IfModule %s>
            <Location /debug>
                SetHandler websocket-handler
                WebSocketHandler "${PLUGINS}/debug.so" debug_init
                %s
            </Location>
        </IfModule>
        """
        conf = LOAD + block % ("mod_websocket.c", "") + block % ("mod_websocket_draft76.c", "SupportDraft75 On")
        httpd.plugin_trail.unlink(missing_ok=True)
        with httpd.serve(conf):
            for draft in (75, 76):
                client = connect()
                opens(client, draft, "/debug")
                client.send(text("version"))
                expect(client, text("1"))
            # A start reads the configuration twice.
            assert httpd.trail_lines(httpd.plugin_trail).count("init") == 2


@pytest.mark.once
class TestHandshake:
    CONF = SITE

    def test_the_sample_of_draft_76(self, httpd, connect):
        client = connect()
        client.send(
            b"GET /echo?a=b%20c HTTP/1.1\r\nHost: example.com\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key2: 12998 5 Y3 1  .P00\r\nSec-WebSocket-Protocol: sample\r\n"
            b"Upgrade: WebSocket\r\nSec-WebSocket-Key1: 4 @1  46546xW%0l 1 5\r\n"
            b"Origin: http://example.com\r\n\r\n^n:ds[4U"
        )
        assert client.read_response().head == (
            "HTTP/1.1 101 WebSocket Protocol Handshake\r\nUpgrade: WebSocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Location: ws://example.com/echo?a=b%20c\r\n"
            "Sec-WebSocket-Origin: http://example.com\r\nSec-WebSocket-Protocol: sample"
        )
        expect(client, PROOF)
        client.send(text("Hello"))
        expect(client, text("Hello"))

    def test_the_sample_of_draft_75(self, httpd, connect):
        client, host = connect(), f"example.com:{httpd.port}"
        client.send(
            f"GET /both HTTP/1.1\r\nUpgrade: WebSocket\r\nConnection: Upgrade\r\nHost: {host}\r\n"
            f"Origin: http://{host}\r\nWebSocket-Protocol: sample\r\n\r\n".encode()
        )
        assert client.read_response().head == (
            "HTTP/1.1 101 Web Socket Protocol Handshake\r\nUpgrade: WebSocket\r\nConnection: Upgrade\r\n"
            f"WebSocket-Location: ws://{host}/both\r\nWebSocket-Origin: http://{host}\r\n"
            "WebSocket-Protocol: sample"
        )
        client.send(text("Hello"))
        expect(client, text("Hello"))

    def test_another_sample_of_draft_76(self, connect):
        client = connect()
        keys = {
            "Sec_WebSocket_Key1": "18x 6]8vM;54 *(5:  {   U1]8  z [  8",
            "Sec_WebSocket_Key2": "1_ tx7X d  <  nw  334J702) 7]o}` 0",
        }
        client.send(request(client, 76, "/echo", **keys) + b"Tm[K T2u")
        assert client.read_response().status == 101
        expect(client, b"fQJ,fN/4F4!~K~MH")

    @both
    def test_without_origin_and_protocol(self, connect, draft):
        response = opens(connect(), draft)
        assert [line.partition(":")[0] for line in response.head.split("\r\n")[1:]] == [
            "Upgrade", "Connection", "Sec-WebSocket-Location" if draft == 76 else "WebSocket-Location",
        ]

    @both
    def test_lists_and_case(self, connect, draft):
        fields = {"Upgrade": "h2c, websocket", "Connection": "keep-alive, upgrade"}
        client = connect()
        opens(client, draft, **fields)
        client.send(text("x"))
        expect(client, text("x"))

    def test_absolute_target(self, httpd, connect):
        client = connect()
        response = opens(client, 76, f"http://localhost:{httpd.port}/echo?q")
        assert response.headers["sec-websocket-location"] == f"ws://localhost:{httpd.port}/echo?q"

    @pytest.mark.parametrize("draft, name", [(76, "Sec-WebSocket-Protocol"), (75, "WebSocket-Protocol")])
    def test_protocols(self, connect, draft, name):
        client = connect()
        response = opens(client, draft, "/debug", [(name, "a b, c")])
        assert response.headers[name.lower()] == "a"
        client.send(text("protocols"))
        expect(client, text("a,b,,c"))
        chosen = [(name, "a b c"), ("X-Debug-Protocol", "c")]
        assert opens(connect(), draft, "/debug", chosen).headers[name.lower()] == "c"
        assert ask(connect(), draft, "/debug", [(name, "\xe9")]).status == 400

    @both
    def test_what_the_plugin_sets_follows(self, connect, draft):
        wanted = "X-One: 1|WebSocket-Location: ws://evil|Set-Cookie: a=b"
        response = opens(connect(), draft, "/debug", [("X-Debug-Set", wanted)])
        names = [line.partition(":")[0] for line in response.head.split("\r\n")[1:]]
        assert names[:2] == ["Upgrade", "Connection"]
        assert names[2].endswith("WebSocket-Location")
        assert {"X-One", "Set-Cookie"} <= set(names[3:])
        assert response.headers["set-cookie"] == "a=b"
        if draft == 75:
            assert "evil" not in response.head

    @both
    def test_greeting_in_on_connect(self, connect, draft):
        headers = [("X-Debug-Greet", "hello"), ("X-Debug-Greet-Thread", "from a thread")]
        client = connect()
        opens(client, draft, "/debug", headers)
        got = client.take(7 + 15, time.monotonic() + 5)
        assert got in (text("hello") + text("from a thread"), text("from a thread") + text("hello"))

    @both
    def test_the_plugin_refuses(self, httpd, connect, draft):
        trail = httpd.trail(f"refused-{draft}")
        client = connect()
        headers = [("X-Debug-Refuse", "1"), ("X-Debug-Set", "X-A: b"), ("X-Debug-Trail", str(trail))]
        response = ask(client, draft, "/debug", headers)
        assert response.status == 403 and "x-a" not in response.headers
        assert response.headers["connection"] == "close"
        self.reads_to_eof(client, response)
        assert httpd.trail_lines(trail) == []

    @staticmethod
    def reads_to_eof(client, response):
        """Nothing but the body of the response comes."""
        body = client.take(int(response.headers["content-length"]), time.monotonic() + 5)
        assert b"HTTP/" not in body
        client.expect_eof()

    @both
    @pytest.mark.parametrize("path, origin, status", [
        ("/both", "http://localhost:{port}", 101),
        ("/both", "https://localhost:{port}", 403),
        ("/both", "http://evil.example", 403),
        ("/both", "null", 403),
        ("/trusted", "http://good.example", 101),
        ("/trusted", "http://localhost:{port}", 403),
    ])
    def test_origin(self, httpd, connect, draft, path, origin, status):
        client = connect()
        response = ask(client, draft, path, Origin=origin.format(port=httpd.port))
        assert response.status == status
        if status == 403:
            # Neither the eight bytes nor anything else is taken for a request.
            self.reads_to_eof(client, response)

    def test_bad_keys(self, connect):
        for key in ("12998", "1 3 ! ", "no number", "99999999999 9", ""):
            client = connect()
            response = ask(client, 76, "/echo", Sec_WebSocket_Key1=key)
            assert response.status == 400, key
            self.reads_to_eof(client, response)

    @both
    def test_bad_requests(self, connect, draft):
        for fields, status in [
            ({"Connection": "close"}, 400),
            ({"Content_Length": "9"}, 400),
            ({"Transfer_Encoding": "chunked"}, 400),
            ({"method": "POST", "Content_Length": "0"}, 400),
        ]:
            client = connect()
            client.send(request(client, draft, "/both", **fields) + key3(draft))
            assert client.read_response().status == status, fields
        client = connect()
        client.send(request(client, draft, "/both", http="HTTP/1.0") + key3(draft))
        assert client.read_response().status == 400

    def test_the_eight_bytes_announced_as_a_body(self, connect):
        """As some clients of draft 76 do."""
        client = connect()
        opens(client, 76, "/debug", Content_Length="8")
        client.send(text("version"))
        expect(client, text("1"))
        client = connect()
        response = ask(client, 76, "/debug", [("X-Debug-Refuse", "1")], Content_Length="8")
        assert response.status == 403
        self.reads_to_eof(client, response)

    def test_no_upgrade_at_all(self, connect):
        for value in (None, "h2c"):
            assert ask(connect(), 76, "/echo", Upgrade=value).status == 404

    def test_draft_75_where_it_is_on(self, connect):
        for path, status in [
            ("/echo", 400), ("/both", 101), ("/both/not", 400), ("/both/inherits", 101), ("/small", 101),
        ]:
            assert ask(connect(), 75, path).status == status, path
            assert ask(connect(), 76, path).status == 101, path

    def test_newer_handshakes_are_not_draft_75(self, connect):
        for fields in (
            {"Sec_WebSocket_Key1": KEY1}, {"Sec_WebSocket_Key2": KEY2},
            {"Sec_WebSocket_Version": "9"}, {"Sec_WebSocket_Key": "x"},
        ):
            assert ask(connect(), 75, "/both", **fields).status == 400, fields
        response = ask(connect(), 75, "/both", Sec_WebSocket_Version="9")
        assert response.headers["sec-websocket-version"] == "13, 8, 7"

    def test_beside_version_13(self, ws, hixie):
        clients = [(ws("/both"), 13), (hixie(76), 76), (hixie(75), 75), (ws("/both", Sec_WebSocket_Version="8"), 8)]
        for n in range(3):
            for client, version in clients:
                client.send(text(f"{n}") if version > 13 else frame(TEXT, f"{n}"))
        for n in range(3):
            for client, version in clients:
                expect(client, text(f"{n}")) if version > 13 else client.expect(TEXT, f"{n}")

    def test_the_eight_bytes_come_late_and_one_by_one(self, connect):
        clients = [connect() for _ in range(9)]
        for client in clients:
            client.send(request(client, 76, "/echo"))
        for n in range(8):
            time.sleep(0.03)
            for late, client in enumerate(clients):
                client.send(KEY3[n : n + 1])
        for client in clients:
            assert client.read_response().status == 101
            expect(client, PROOF)
            client.send(text("x"))
            expect(client, text("x"))

    def test_split_at_every_byte(self, connect):
        """Head, key and first frames in two segments, wherever the cut is."""
        whole = request(connect(), 76, "/echo") + KEY3 + text("first") + binary(b"second")
        start = whole.index(KEY3) - 4
        clients = []
        for cut in range(start, len(whole)):
            client = connect()
            client.send(whole[:cut])
            clients.append((client, whole[cut:]))
        time.sleep(0.1)
        for client, rest in clients:
            client.send(rest)
        for client, _ in clients:
            assert client.read_response().status == 101
            expect(client, PROOF + text("first") + binary(b"second"))

    @both
    def test_frames_with_the_handshake(self, connect, draft):
        client = connect()
        data = text("early") * 3 + binary(os.urandom(200_000)) + text("last")
        client.send(request(client, draft, "/both"), key3(draft), data)
        assert client.read_response().status == 101
        expect(client, (PROOF if draft == 76 else b"") + data)

    @pytest.mark.parametrize("path, status", [("/one", 503), ("/mine", 429)])
    def test_limits(self, connect, path, status):
        first = connect()
        opens(first, 76, path)
        second = connect()
        response = ask(second, 76, path)
        assert response.status == status
        self.reads_to_eof(second, response)
        first.sock.close()

        def free():
            client = connect()
            return ask(client, 76, path).status == 101

        wait_until(free, 5, "a free place")


class TestSilentKey:
    CONF = "Timeout 1\nRequestReadTimeout header=0 body=0\n" + SITE

    @pytest.mark.timing
    def test_the_eight_bytes_do_not_come(self, connect):
        for sent in (b"", KEY3[:7]):
            client = connect()
            client.send(request(client, 76, "/echo") + sent)
            start = time.monotonic()
            assert client.read_response().status == 408
            assert 0.5 < time.monotonic() - start < 3

    @pytest.mark.timing
    @pytest.mark.parametrize("path, fields, status", [
        ("/trusted", {"Origin": "http://evil.example"}, 403),
        ("/one", {}, 503),
        ("/mine", {}, 429),
    ])
    def test_who_is_refused_is_not_waited_for(self, connect, path, fields, status):
        if status != 403:
            wait_until(lambda: ask(connect(), 76, path).status == 101, 5, "a free place")
        client = connect()
        client.send(request(client, 76, path, **fields))
        start = time.monotonic()
        assert client.read_response().status == status
        assert time.monotonic() - start < 0.5

    def test_the_client_leaves_before(self, httpd, connect):
        client = connect()
        client.send(request(client, 76, "/echo?leaves") + KEY3[:3])
        client.sock.close()
        assert httpd.access("?leaves")[-1].status == 400


class TestManySilentKeys:
    """Clients that keep the eight bytes to themselves take no worker for long, and few at a time."""

    CONF = ("" if PREFORK else ONE_CHILD) + "Timeout 60\n" + TLS + SITE

    @pytest.mark.timing
    def test_pages_are_served_meanwhile(self, httpd, connect):
        httpd.allow_log("AH00(161|484|286)")
        clients = [connect() for _ in range(40)]
        for client in clients:
            client.send(request(client, 76, "/echo"))
        # Elsewhere than on event httpd gives each client that it has refused two seconds to close, on a worker; and
        # prefork has few of them at first.
        most = 0.5 if httpd.mpm == "event" else 12
        for _ in range(5):
            status, took = httpd.get(timeout=15)
            assert status == 200
            assert took < most, f"a page took {took:.1f} s"
        answers = [client.read_response().status for client in clients]
        assert set(answers) <= {408, 503} and answers.count(408) > 0
        if httpd.mpm == "event":
            assert answers.count(408) <= 6 and answers.count(503) >= 34
        client = connect()
        opens(client, 76)
        client.send(text("x"))
        expect(client, text("x"))

    @pytest.mark.timing
    def test_bytes_that_trickle(self, connect):
        client = connect()
        client.send(request(client, 76, "/echo"))
        start = time.monotonic()
        for n in range(4):
            client.send(KEY3[n : n + 1])
            time.sleep(0.6)
        assert client.read_response().status == 408
        assert 1.5 < time.monotonic() - start < 3.5


    @pytest.mark.timing
    def test_a_record_that_trickles(self, httpd):
        """Over TLS no byte of the eight has come before all of their record is there."""
        with Records(httpd.tls_port, httpd.tls_context()) as client:
            client.send(request(client, 76, "/echo"))
            start = time.monotonic()
            for byte in client.record(KEY3)[:4]:
                client.send_raw(bytes([byte]))
                time.sleep(0.6)
            assert client.read_response().status == 408
            assert 1.5 < time.monotonic() - start < 3.5


class TestRequestTimeout:
    """mod_reqtimeout looks after the eight bytes, and leaves the conversation alone."""

    CONF = "Timeout 20\nRequestReadTimeout header=1 body=1\n" + SITE

    @pytest.mark.timing
    def test_it_applies(self, connect, httpd):
        client = connect()
        client.send(request(client, 76, "/echo?slow") + KEY3[:3])
        assert client.read_response().status == 408
        other = connect()
        opens(other, 76)
        with pytest.raises(TimeoutError):
            other.fill(time.monotonic() + 2)
        other.send(text("awake"))
        expect(other, text("awake"))


WAYS = ["detached", "blocking", "tls", "tls-blocking"]


@pytest.mark.once
class TestFrames:
    CONF = DETACH + TLS + SITE

    @pytest.fixture(params=WAYS)
    def dial(self, request, httpd, connect):
        """Opens a connection that is served as the parameter says."""
        port = {"port": httpd.tls_port, "tls": httpd.tls_context()} if "tls" in request.param else {}

        def opened(draft, path=None):
            client = connect(**port)
            path = path or ("/blocking" if "blocking" in request.param else "/both")
            response = opens(client, draft, path)
            scheme = "wss" if port else "ws"
            where = response.headers["sec-websocket-location" if draft == 76 else "websocket-location"]
            assert where == f"{scheme}://localhost:{client.port}{path}"
            return client

        return opened

    @both
    def test_echo(self, dial, draft):
        client = dial(draft)
        for payload in ("Hello", "κόσμε 🂡", "\0\x7f", "x" * 127, "y" * 128, "z" * 100_000):
            for data in (text(payload), binary(payload.encode())):
                client.send(data)
                expect(client, data)
        self.end(client, draft)

    def end(self, client, draft):
        if draft == 76:
            client.send(BYE)
            expect(client, BYE)
        elif hasattr(client.sock, "unwrap"):  # waits for the server's end
            client.sock.unwrap()
            return
        else:
            client.sock.shutdown(socket.SHUT_WR)
        client.expect_eof()

    def test_the_eight_bytes_one_by_one(self, httpd, connect):
        """Each in a TLS record of its own."""
        client = connect(port=httpd.tls_port, tls=httpd.tls_context())
        client.send(request(client, 76, "/echo"))
        for n in range(8):
            client.send(KEY3[n : n + 1])
            time.sleep(0.01)
        assert client.read_response().status == 101
        expect(client, PROOF)

    @both
    def test_large(self, dial, draft):
        client = dial(draft)
        data = binary(os.urandom(3_000_000)) + text(random_text(2_000_000))
        with ThreadPoolExecutor(1) as pool:
            if hasattr(client.sock, "version"):  # OpenSSL's connections do not stand two threads
                for part in (data[:3_000_005], data[3_000_005:]):
                    client.send(part)
                    expect(client, part, 30)
            else:
                sending = pool.submit(client.send, data)
                expect(client, data, 30)
                sending.result()
        self.end(client, draft)

    @both
    def test_byte_by_byte(self, dial, draft):
        client = dial(draft)
        data = text("κ🂡") + binary(b"\xff\x00" * 70) + text("") + b"\x01no\xff" + binary(b"x", 0x81)
        client.send(data)
        answer = text("κ🂡") + binary(b"\xff\x00" * 70) + text("")
        expect(client, answer)
        for byte in data:
            client.send(bytes([byte]))
        expect(client, answer)
        self.end(client, draft)

    @both
    def test_with_httpds_request(self, httpd, connect, draft):
        """The plugin keeps the request, and the connection its thread."""
        client = connect()
        opens(client, draft, f"/debug?kept-{draft}", [("X-Debug-Request", "1")])
        client.send(text("request-connect"), binary(b"back"))
        expect(client, text("non-null") + binary(b"back"))
        client.send(text("close"))
        if draft == 76:
            expect(client, BYE)
            client.send(BYE)
        client.expect_eof()
        entry = httpd.access(f"?kept-{draft}")[-1]
        assert (entry.close_code, entry.messages_in, entry.messages_out) == ("1005", "3", "2")

    @both
    def test_the_server_closes(self, dial, draft, httpd):
        client = dial(draft, "/debug")
        client.send(text("close"))
        expect(client, BYE if draft == 76 else b"")
        if draft == 76:
            with pytest.raises(TimeoutError):  # it waits for the answer
                client.fill(time.monotonic() + 0.3)
            client.send(BYE)
        client.expect_eof()


@pytest.mark.once
class TestMessages:
    CONF = SITE

    @both
    def test_what_the_plugin_is_given(self, connect, draft):
        """The debug plugin sends binary messages back, and takes text for a command."""
        client = connect()
        opens(client, draft, "/debug")
        client.send(binary(b"version"))
        expect(client, binary(b"version"))
        client.send(text("header: upgrade"))
        expect(client, text("WebSocket"))
        client.send(text("scribble"))
        expect(client, text("########"))
        client.send(text(""), binary(b""))
        expect(client, text("unknown command") + binary(b""))

    @both
    def test_other_types_are_skipped(self, hixie, draft):
        client = hixie(draft)
        for kind in (0x01, 0x41, 0x7F):
            client.send(bytes([kind]), b"skipped \x00\x80", b"\xff")
        for kind in (0x81, 0xC0, 0xFE, 0xFF):
            client.send(binary(b"\xff\x00 skipped", kind))
        client.send(binary(b"", 0x81))
        client.send(text("still here"))
        expect(client, text("still here"))

    def test_draft_75_has_no_close(self, hixie):
        client = hixie(75)
        client.send(BYE, text("go on"))
        expect(client, text("go on"))

    @both
    def test_pings_become_nothing(self, connect, draft):
        client = connect()
        opens(client, draft, "/debug")
        for kind in (256, 257):
            client.send(text(f"type {kind} 4"))
            expect(client, text("ret=4"))
        client.send(text("ping x"), text("pong y"), text("version"))
        expect(client, text("1"))

    @both
    def test_types_that_send_refuses(self, httpd, connect, draft):
        client = connect()
        opens(client, draft, "/debug")
        httpd.expect_log("WS0206.*type 1 ")
        httpd.expect_log("WS0206.*type 255 ")
        for kind in (1, 255):  # a Close of "xxxx" must not travel
            client.send(text(f"type {kind}"))
            expect(client, text("ret=0"))

    @both
    def test_invalid_text_is_not_sent(self, httpd, connect, draft):
        """A header in Latin-1, which the plugin sends as text."""
        httpd.expect_log("WS0206.*type 0 ")
        client = connect()
        opens(client, draft, "/debug", [("X-Latin", "caf\xe9 \xff")])
        client.send(text("header: X-Latin"), text("version"))
        expect(client, text("1"))

    @both
    def test_senders_in_threads(self, connect, draft):
        client = connect()
        opens(client, draft, "/threads")
        client.send(text("go 8 200 100"))
        seen = [0] * 8
        for _ in range(1600):
            message = client.take(102, time.monotonic() + 20)
            assert message[:2] == b"\x80\x64"
            thread, number = int(message[4:7]), int(message[10:16])
            assert number == seen[thread], "out of order"
            seen[thread] += 1
        assert seen == [200] * 8

    @both
    def test_a_slow_reader(self, httpd, connect, draft):
        client = connect(rcvbuf=4096)
        opens(client, draft, "/debug")
        client.send(text("flood 300 20000"))
        time.sleep(0.3)
        block = binary(bytes(n % 256 for n in range(20000)))
        for _ in range(300):
            expect(client, block, 20)
        expect(client, text("sent=300"))


@pytest.mark.skipif(os.environ.get("TEST_MPM") == "prefork", reason="mod_http2 does not support prefork")
class TestHttp2:
    CONF = "Protocols h2c http/1.1\nH2WebSockets On\n" + SITE

    def test_streams_know_no_drafts(self, httpd):
        """The fields of draft 76 make no difference; eight bytes are not waited for."""
        with Connection(httpd.port) as connection:
            keys = [("Sec-WebSocket-Key1", KEY1), ("Sec-WebSocket-Key2", KEY2)]
            stream = connection.websocket("/both", keys)
            stream.send(frame(TEXT, "version 13"))
            stream.expect(TEXT, "version 13")
            refused = Stream(connection).ask("/both", keys, version=None)
            assert refused.status == 400


@pytest.mark.once
class TestAnotherImplementation:
    """Perl's Protocol::WebSocket, which still speaks both drafts."""

    CONF = SITE

    @pytest.mark.parametrize("version, rest", [("draft-ietf-hybi-00", "ff00"), ("draft-hixie-75", "")])
    def test_a_conversation(self, httpd, version, rest):
        lines = ["Hello", "κόσμε 🂡", "x" * 100_000, "bye"]
        command = ["perl", Path(__file__).with_name("draft_client.pl"), str(httpd.port), "/both", version]
        told = "".join(f"{line}\n" for line in lines)
        done = subprocess.run(command, input=told, capture_output=True, text=True, timeout=30, check=False)
        assert done.stderr == ""
        assert done.stdout.splitlines() == ["subprotocol: chosen", *lines, f"rest: {rest}"]


class TestEnds:
    CONF = SITE

    def test_the_client_closes(self, httpd, hixie):
        client = hixie(76, "/echo?client")
        client.send(text("bye"), BYE)
        expect(client, text("bye") + BYE)
        client.expect_eof()
        entry = httpd.access("?client")[-1]
        assert (entry.status, entry.close_code, entry.messages_in, entry.messages_out) == (101, "1005", "1", "1")

    def test_bytes_behind_the_close(self, httpd, hixie):
        """Nobody spins, and nothing follows our Close."""
        before = sum(map(httpd.cpu, httpd.children()))
        for late in (b"\x00", b"\x00\x00", text("late"), b"\xff\x00" * 100, b"\x80" * 1000):
            client = hixie(76)
            client.send(BYE + late)
            expect(client, BYE)
            client.expect_eof()
        for late in (b"\x00", b"\x80" * 1000):
            client = hixie(76)
            client.send(BYE)
            client.send(late)
            client.sock.close()
        time.sleep(1)
        assert sum(map(httpd.cpu, httpd.children())) - before < 0.5

    @both
    @pytest.mark.parametrize("how", ["eof", "reset", "half"])
    def test_lost(self, httpd, hixie, draft, how):
        client = hixie(draft, f"/both?{draft}-{how}")
        client.send(text("hi"))
        expect(client, text("hi"))
        if how == "half":
            client.send(b"\x00half")
        client.reset() if how == "reset" else client.sock.close()
        entry = httpd.access(f"?{draft}-{how}")[-1]
        assert (entry.status, entry.close_code, entry.messages_in) == (101, "1006", "1")

    @both
    def test_half_a_close_and_the_end(self, httpd, hixie, draft):
        client = hixie(draft)
        client.send(b"\xff")
        client.sock.shutdown(socket.SHUT_WR)
        client.expect_eof()

    def test_the_plugin_closes_with_a_code(self, httpd, hixie):
        client = hixie(76, "/debug?plugin")
        client.send(text("close 4001 because"))
        expect(client, BYE)
        client.send(text("late"), BYE)
        client.expect_eof()
        assert httpd.access("?plugin")[-1].close_code == "4001"

    @both
    def test_messages_before_the_close_arrive(self, connect, draft):
        client = connect(rcvbuf=4096)
        opens(client, draft, "/debug")
        client.send(text("flood 50 20000"), text("close"))
        block = binary(bytes(n % 256 for n in range(20000)))
        for _ in range(50):
            expect(client, block)
        expect(client, text("sent=50"))
        if draft == 76:
            expect(client, BYE)
            client.send(BYE)
        client.expect_eof()

    @pytest.mark.timing
    def test_a_client_that_does_not_answer(self, hixie):
        client = hixie(76, "/debug-hasty")
        start = time.monotonic()
        client.send(text("close"))
        expect(client, BYE)
        client.expect_eof()
        assert 0.5 < time.monotonic() - start < 4

    @both
    @pytest.mark.timing
    def test_silence(self, hixie, draft):
        """There is no ping, so only WebSocketIdleTimeout ends a silent connection."""
        idle, pinged = hixie(draft, "/idle"), hixie(draft, "/pinged")
        start = time.monotonic()
        # Skipped frames are no messages.
        idle.send(b"\x01skipped\xff")
        if draft == 76:
            expect(idle, BYE)
            idle.send(BYE)
        idle.expect_eof()
        assert 2 < time.monotonic() - start < 6
        with pytest.raises(TimeoutError):
            pinged.fill(time.monotonic() + 1)
        pinged.send(text("still here"))
        expect(pinged, text("still here"))

    @both
    def test_idle_costs_nothing(self, httpd, hixie, draft):
        clients = [hixie(draft), hixie(draft, "/blocking")]
        for client in clients:
            client.send(b"\x00half a message")
        time.sleep(0.2)
        before = sum(map(httpd.cpu, httpd.children()))
        time.sleep(1)
        assert sum(map(httpd.cpu, httpd.children())) - before < 0.3


@pytest.mark.once
class TestHostile:
    CONF = DETACH + SITE

    @both
    @pytest.mark.parametrize("path", ["/small", "/blocking"])
    def test_garbage(self, httpd, connect, draft, path):
        """Whatever comes, the connection ends or goes on, and the next one works."""
        noise = os.urandom(20_000)
        for n in range(0, 20_000, 1000):
            client = connect()
            opens(client, draft, path)
            client.send(noise[n : n + 1000])
            client.sock.close()
        client = connect()
        opens(client, draft, path)
        client.send(text("fine"))
        expect(client, text("fine"))

    @both
    @pytest.mark.parametrize("name, data, code", [
        ("text too long", b"\x00" + b"x" * 101, "1009"),
        ("binary too long", b"\x80\x65", "1009"),
        ("a huge length", b"\x80\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "1009"),
        ("endless digits", b"\x80" + b"\x80" * 50, "1002"),
        ("endless digits of a skipped frame", b"\x81" + b"\x80" * 50, "1002"),
        ("a skipped frame too long", b"\x85\x65", "1009"),
        ("a skipped text too long", b"\x05" + b"x" * 101, "1009"),
        ("invalid text", text(b"\xc0\x80"), "1007"),
        ("half a character", text(b"\xc3"), "1007"),
        ("a surrogate", text(b"\xed\xa0\x80"), "1007"),
    ], ids=lambda value: value.replace(" ", "-") if isinstance(value, str) and " " in value else "")
    def test_violations(self, httpd, hixie, draft, name, data, code):
        mark = f"{draft}-{name.replace(' ', '-')}"
        client = hixie(draft, f"/small?{mark}")
        client.send(text("x" * 100), binary(b"y" * 100), data)
        expect(client, text("x" * 100) + binary(b"y" * 100))
        expect_end(client, draft)
        client.sock.close()
        assert httpd.access(f"?{mark}")[-1].close_code == code

    @both
    def test_a_text_without_end_takes_no_more_than_the_limit(self, httpd, connect, draft):
        client = connect()
        opens(client, draft, "/small")
        before = sum(map(httpd.memory, httpd.children()))
        client.send(b"\x00")
        for _ in range(20):
            client.send(b"x" * 500_000)
        expect_end(client, draft)
        assert sum(map(httpd.memory, httpd.children())) < before + 5000  # KiB

    @both
    def test_lengths_that_are_only_claimed(self, httpd, hixie, draft):
        """30 MB are announced a hundred times; nothing is set aside for them."""
        clients = [hixie(draft) for _ in range(20)]
        before = sum(map(httpd.memory, httpd.children()))
        for client in clients:
            client.send(b"\x80\x8e\xc7\x9c\x00", b"x" * 10)
        time.sleep(0.3)
        assert sum(map(httpd.memory, httpd.children())) < before + 20_000  # KiB


class TestNoEndpoint:
    def test_it(self, httpd, connect):
        httpd.expect_log("WS0431: SetHandler")
        httpd.expect_log("WS0102.*/none")
        with httpd.serve(SITE + "<Location /none>\nSetHandler websocket-handler\n</Location>\n"):
            assert ask(connect(), 76, "/none").status == 500
            assert ask(connect(), 75, "/none").status == 400


class TestServerEnds:
    @pytest.mark.parametrize("end", ENDS)
    def test_with_connections(self, httpd, hixie, ws, end):
        with httpd.serve(SITE):
            trails = [httpd.trail(f"draft-{n}") for n in range(4)]
            clients = []
            for draft, path, trail in [
                (76, "/debug", trails[0]), (75, "/debug", trails[1]), (76, "/debug", trails[2]),
                (75, "/debug", trails[3]),
            ]:
                client = hixie(draft, path, [("X-Debug-Trail", str(trail))])
                client.send(text("version"))
                expect(client, text("1"))
                clients.append((client, draft))
            httpd.tell(ENDS[end])
            for n, (client, draft) in enumerate(clients):
                if draft == 76 and "graceful" in end:
                    expect(client, BYE)
                    if n == 0:  # the other one does not answer
                        client.send(BYE)
                elif draft == 76:
                    try:
                        expect(client, BYE)
                    except EOFError:  # where a thread of httpd's holds the socket, the end may come without a Close
                        assert not client.buffer and (PREFORK or not DETACHED)
                client.expect_eof(5)
                client.sock.close()
            if "restart" in end:
                httpd.renewed()
                client = hixie(76)
                client.send(text("new generation"))
                expect(client, text("new generation"))
                client.sock.close()
            else:
                httpd.stop(ENDS[end])
            for trail in trails:
                assert httpd.trail_lines(trail) == ["disconnect"]

    def test_a_reload_that_unloads_it(self, httpd, connect):
        with httpd.serve(SITE):
            assert ask(connect(), 76).status == 101
            path = httpd.root / "conf/httpd.conf"
            whole = path.read_text()
            without = [line for line in whole.splitlines() if not line.startswith("LoadModule websocket_draft")]
            path.write_text("\n".join(line for line in without if "SupportDraft75" not in line))
            httpd.graceful()
            wait_until(lambda: status(httpd, 76) == 400, 5, "a server without the drafts")
            httpd.outlived()
            assert status(httpd, 76) == 400
            path.write_text(whole)
            httpd.graceful()
            httpd.outlived()
            wait_until(lambda: status(httpd, 76) == 101, 5, "the drafts again")
            assert status(httpd, 75) == 101


def status(httpd, draft):
    """The status that a handshake gets; `None` if the child went away."""
    try:
        with Client(httpd.port) as client:
            return ask(client, draft).status
    except (OSError, EOFError):
        return None
