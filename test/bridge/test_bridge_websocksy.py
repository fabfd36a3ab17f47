"""What websocksy's documentation describes: framings, backends, libraries of both, the configuration file, the command.

Each class stands for a part of it: "Peer stream framing", "Peer discovery backends", "Configuration file", "Command line
arguments", "Default backend". The peers are plain sockets of the test's own.
"""

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import time

import pytest
from httpd import TOP, free_port, wait_until
from ws_frame import BINARY, CLOSE, PING, TEXT, Client, Refused, frame

PORT = "%{QUERY_STRING}"
ALLOW = "WebSocketBridgeAllow tcp://127.0.0.1:*"


def location(path, *directives):
    lines = ["SetHandler websocket-handler", *directives]
    return f"<Location {path}>\n" + "".join(f"    {line}\n" for line in lines) + "</Location>\n"


def framed(path, framing, *more):
    """A Location with a framing; the peer's port comes from the query string."""
    peer = f"WebSocketBridge tcp://127.0.0.1:{PORT}"
    return location(path, peer, f"WebSocketBridgeFraming {framing}", *more)


class Peer:
    """A TCP or Unix-socket server of the test's own."""

    def __init__(self, family=socket.AF_INET, address=("127.0.0.1", 0)):
        self.sock = socket.socket(family)
        self.sock.bind(address)
        self.sock.listen(50)
        self.sock.settimeout(10)
        if family == socket.AF_INET:
            self.port = self.sock.getsockname()[1]

    def accept(self):
        connection, _ = self.sock.accept()
        connection.settimeout(10)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection


@pytest.fixture
def peer():
    with contextlib.closing((server := Peer()).sock):
        yield server


def offer(protocols):
    return [("Sec-WebSocket-Protocol", protocols)]


def chosen(response):
    return response.headers.get("sec-websocket-protocol")


def received(client, count):
    """The next messages: t or b, and the bytes."""
    frames = [client.read_frame() for _ in range(count)]
    return [({TEXT: "t", BINARY: "b"}[f.opcode], f.payload) for f in frames]


@pytest.fixture
def trail(httpd):
    """What the libraries write from now on, the children's too."""
    httpd.plugin_trail.unlink(missing_ok=True)
    httpd.plugin_trail.touch()
    httpd.plugin_trail.chmod(0o666)
    return lambda: httpd.trail_lines(httpd.plugin_trail)


def pause():
    """Long enough for httpd to have read what was sent."""
    time.sleep(0.03)


@pytest.mark.once
class TestFramings:
    """Peer stream framing: what each framing makes of a peer's bytes, in one piece and byte by byte."""

    FRAMINGS = {
        "auto": "auto",
        "binary": "binary",
        "separator": r"separator ;\r\n",
        "escapes": r'separator "\t\0\f\x1F \\\\\\\\"',
        "crlf": "newline crlf",
        "lfcr": "newline lfcr",
        "lf": "newline lf",
        "cr": "newline cr",
        "fixed": "fixedlength 0x4",
        "dynamic": "dynamic32",
        "dynamic-options": "dynamic32 offset=1,static=-4,endian=big",
        "json": "json",
    }
    CONF = ALLOW + "\n" + "".join(framed(f"/{name}", framing) for name, framing in FRAMINGS.items())

    CASES = [
        ("separator", b"a;b;\r\n\xff;\r\n", [("b", b"a;b;\r\n"), ("b", b"\xff;\r\n")]),
        ("escapes", b"a\t\0\f\x1f \\\\b\t\0\f\x1f \\\\", [("b", b"a\t\0\f\x1f \\\\"), ("b", b"b\t\0\f\x1f \\\\")]),
        ("crlf", b"a\nb\r\n\r\n\xff\r\n", [("t", b"a\nb\r\n"), ("t", b"\r\n"), ("b", b"\xff\r\n")]),
        ("lfcr", b"a\r\n\rb\n\r", [("t", b"a\r\n\r"), ("t", b"b\n\r")]),
        ("lf", "é\nb\n".encode(), [("t", "é\n".encode()), ("t", b"b\n")]),
        ("cr", b"a\r\nb\r", [("t", b"a\r"), ("t", b"\nb\r")]),
        ("fixed", b"abcdefgh", [("b", b"abcd"), ("b", b"efgh")]),
        ("dynamic", b"\2\0\0\0ab\0\0\0\0", [("b", b"\2\0\0\0ab"), ("b", b"\0\0\0\0")]),
        ("dynamic-options", b"T\0\0\0\5aT\0\0\0\4", [("b", b"T\0\0\0\5a"), ("b", b"T\0\0\0\4")]),
        (
            "json",
            '{"a":"]é\\""}\n[1,{}] "x" 12 '.encode(),
            [("t", '{"a":"]é\\""}'.encode()), ("t", b"\n[1,{}]"), ("t", b' "x"'), ("t", b" 12")],
        ),
    ]

    @pytest.mark.parametrize("name,stream,messages", CASES, ids=[case[0] for case in CASES])
    def test_boundaries(self, ws, peer, name, stream, messages):
        client = ws(f"/{name}?{peer.port}")
        with peer.accept() as sock:
            sock.sendall(stream)
            assert received(client, len(messages)) == messages
            for byte in stream:
                sock.sendall(bytes([byte]))
                time.sleep(0.001)
            if stream[-1:] == b" ":  # the blank behind the number was left, and is in front of the next value
                messages = [(messages[0][0], b" " + messages[0][1]), *messages[1:]]
            assert received(client, len(messages)) == messages

    def test_many_lines_in_random_pieces(self, ws, peer):
        lines = [os.urandom(random.randrange(40)).replace(b"\r\n", b"") + b"\r\n" for _ in range(3000)]
        stream = b"".join(lines)
        client = ws(f"/crlf?{peer.port}")
        with peer.accept() as sock:
            at = 0
            while at < len(stream):
                step = random.choice((1, 2, 7, 100, 5000))
                sock.sendall(stream[at : at + step])
                at += step
            assert [payload for _, payload in received(client, len(lines))] == lines

    def test_auto_sends_at_once(self, ws, peer):
        client = ws(f"/auto?{peer.port}")
        with peer.accept() as sock:
            for sent, kind in ((b"text", "t"), ("é€🂡".encode(), "t"), (b"\xff", "b"), (b"text", "t")):
                sock.sendall(sent)
                assert received(client, 1) == [(kind, sent)]

    def test_auto_waits_for_the_rest_of_a_character(self, ws, peer):
        client = ws(f"/auto?{peer.port}")
        euro = "€".encode()
        with peer.accept() as sock:
            sock.sendall(b"costs " + euro[:2])
            assert received(client, 1) == [("t", b"costs ")]
            sock.sendall(euro[2:] + b" 5")
            assert received(client, 1) == [("t", euro + b" 5")]

    def test_binary_sends_at_once_as_binary(self, ws, peer):
        client = ws(f"/binary?{peer.port}")
        with peer.accept() as sock:
            for sent in (b"text", b"\xff"):
                sock.sendall(sent)
                assert received(client, 1) == [("b", sent)]

    def test_json_that_is_none_is_binary(self, ws, peer):
        client = ws(f"/json?{peer.port}")
        with peer.accept() as sock:
            sock.sendall(b"{} hello {}")
            assert received(client, 2) == [("t", b"{}"), ("b", b" hello {}")]
            sock.sendall(b"[1]")
            assert received(client, 1) == [("t", b"[1]")]

    def test_a_rest_is_delivered_when_the_peer_is_done(self, ws, peer):
        for name, kind in (("crlf", "t"), ("separator", "b"), ("fixed", "b"), ("dynamic", "b"), ("json", "b")):
            client = ws(f"/{name}?{peer.port}")
            with peer.accept() as sock:
                sock.sendall(b"{,\r")
            assert received(client, 1) == [(kind, b"{,\r")]
            assert client.read_frame().opcode == CLOSE

    def test_a_length_that_makes_no_sense_ends_the_connection(self, httpd, ws, peer):
        client = ws(f"/dynamic-options?{peer.port}")
        with peer.accept() as sock:
            sock.sendall(b"T\0\0\0\3a")
            got = client.read_frame()
            assert (got.opcode, got.payload[:2]) == (CLOSE, b"\x03\xf3")
        httpd.expect_log("length below the smallest")

    REFUSED = [
        ("xml", "no framing 'xml'"),
        ("separator", "needs the separator"),
        (r"separator \q", "no escape 'q'"),
        (r"separator \x1", "two hexadecimal digits"),
        ("newline", "one of crlf, lfcr, lf and cr"),
        ("newline CRLF", "not 'CRLF'"),
        ("fixedlength", "a length in bytes"),
        ("fixedlength 4k", "not '4k'"),
        ("dynamic32 offset=x", "after offset="),
        ("dynamic32 length=4", "no option 'length'"),
        ("dynamic32 endian=middle", "big or little"),
    ]

    @pytest.mark.parametrize("framing,words", REFUSED)
    @pytest.mark.once
    def test_mistakes_are_found_by_configtest(self, httpd, framing, words):
        conf = location("/x", "WebSocketBridge tcp://127.0.0.1:1", f"WebSocketBridgeFraming {framing}")
        httpd.check(conf).refused("WebSocketBridgeFraming", words, at="WebSocketBridgeFraming")


def told(ws, peer, path):
    """What the framing "words" says about its configuration."""
    client = ws(path)
    with peer.accept() as sock:
        sock.sendall(b"? ")
        [(_, word)] = received(client, 1)
    return word


class TestFramingLibrary:
    """Peer stream framing API: a library registers its framings from a constructor."""

    CONF = (
        'LoadFile "${PLUGINS}/framing_words.so"\n'
        + ALLOW
        + "\n"
        + framed("/words", "words")
        + framed("/count", "words count")
        + framed("/lines", "lines crlf")
    )

    def test_types_and_discarding(self, ws, peer):
        client = ws(f"/words?{peer.port}")
        with peer.accept() as sock:
            sock.sendall(b"one #two -three four t\xff rest")
            expected = [("t", b"one "), ("b", b"#two "), ("t", b"four "), ("b", b"t\xff ")]
            assert received(client, 4) == expected
        assert received(client, 1) == [("b", b"rest")]

    def test_data_of_a_connection(self, ws, peer, trail):
        clients = [ws(f"/count?{peer.port}") for _ in range(2)]
        socks = [peer.accept() for _ in clients]
        for sock, client, words in zip(socks, clients, (3, 5)):
            sock.sendall(b"x " * words)
            assert received(client, words) == [("t", b"%d " % n) for n in range(1, words + 1)]
        for end in (*socks, *(client.sock for client in clients)):
            end.close()
        # Each one's data is freed by a last call.
        wait_until(lambda: {"words 3", "words 5"} <= set(trail()))

    def test_a_framing_that_fails_ends_the_connection(self, httpd, ws, peer):
        client = ws(f"/words?{peer.port}")
        with peer.accept() as sock:
            sock.sendall(b"!x ")
            got = client.read_frame()
            assert (got.opcode, got.payload[:2]) == (CLOSE, b"\x03\xf3")
        httpd.expect_log("framing failed")

    def test_a_built_in_framing_can_be_wrapped(self, ws, peer):
        client = ws(f"/lines?{peer.port}")
        with peer.accept() as sock:
            sock.sendall(b"a\r")
            pause()
            sock.sendall(b"\nb\xff\r\n")
            assert received(client, 2) == [("t", b"a\r\n"), ("b", b"b\xff\r\n")]

    @pytest.mark.once
    def test_configtest_knows_the_library(self, httpd):
        assert httpd.check(self.CONF).ok
        unloaded = self.CONF.replace("LoadFile", "# LoadFile")
        httpd.check(unloaded).refused("there is no framing 'words'")


class TestRestarts:
    """Constructors run once for each mapping; what they registered is there after every restart."""

    CONF = TestFramingLibrary.CONF + location(
        "/old",
        'WebSocketBridgeBackend "${PLUGINS}/backend_old.so"',
        "WebSocketBridgeOption tag X-End",
    )

    def use(self, httpd, peer):
        for path, headers, sent, expected in (
            (f"/words?{peer.port}", [], b"a b ", [("t", b"a "), ("t", b"b ")]),
            (f"/old/{peer.port}", [("X-End", ";")], b"a;b;", [("t", b"a;"), ("b", b"b;")]),
        ):
            with Client(httpd.port) as client:
                client.upgrade(path, headers)
                with peer.accept() as sock:
                    sock.sendall(sent)
                    assert received(client, 2) == expected

    def test_after_restarts(self, httpd, peer):
        self.use(httpd, peer)
        before = [line for line in httpd.trail_lines(httpd.plugin_trail) if line.startswith("framings")]
        for restart in (httpd.graceful, httpd.graceful, httpd.restart, httpd.graceful):
            restart()
            httpd.outlived()
            self.use(httpd, peer)
        after = [line for line in httpd.trail_lines(httpd.plugin_trail) if line.startswith("framings")]
        assert after == before and not any("failed" in line for line in after)

    def test_an_open_connection_frees_what_it_keeps(self, httpd, ws, peer, trail):
        client = ws(f"/count?{peer.port}")
        with peer.accept() as sock:
            sock.sendall(b"a b c ")
            assert received(client, 3) == [("t", b"1 "), ("t", b"2 "), ("t", b"3 ")]
            httpd.graceful()
            # The child of before says goodbye, and makes the framing's last call.
            client.expect_close(1001)
            client.sock.close()
        wait_until(lambda: "words 3" in trail())
        httpd.outlived()


BACKEND = '"${PLUGINS}/backend_debug.so"'


class TestBackendLibrary:
    """Peer discovery backend API: init, configure, query, cleanup."""

    CONF = location(
        "/debug",
        f"WebSocketBridgeBackend {BACKEND}",
        "WebSocketBridgeOption host tcp://127.0.0.1",
        "WebSocketBridgeOption port 1",
        "WebSocketBridgeOption framing newline",
        "WebSocketBridgeOption framing-config lf",
    )

    @pytest.fixture
    def debug(self, httpd, peer, trail):
        """A server whose backend leads to the test's peer."""
        httpd.stop()
        httpd.start(self.CONF.replace("port 1", f"port {peer.port}"))
        return peer

    def test_a_connection(self, connect, debug, trail):
        client = connect()
        assert chosen(client.upgrade("/debug/x?y", [*offer("one, two"), ("Cookie", "c=d")])) == "two"
        with debug.accept() as sock:
            client.send(frame(TEXT, b"to the peer"))
            assert sock.recv(100) == b"to the peer"
            sock.sendall(b"a\nb\n")
            assert received(client, 2) == [("t", b"a\n"), ("t", b"b\n")]
            sock.sendall(b"\xff\n")
            assert received(client, 1) == [("b", b"\xff\n")]
        lines = trail()
        start = lines.index("query /debug/x?y")
        assert lines[start + 1 : start + 3] == ["protocol one", "protocol two"]
        headers = [line for line in lines if line.startswith("header ")]
        assert "header Cookie=c=d" in headers
        assert not [h for h in headers if "Sec-WebSocket" in h or "Upgrade" in h]
        assert "now 0" in lines
        configure = [line for line in lines[:start] if line.startswith("configure")]
        assert configure[-4:] == [
            "configure host=tcp://127.0.0.1",
            f"configure port={debug.port}",
            "configure framing=newline",
            "configure framing-config=lf",
        ]

    def test_restarts_clean_up_and_set_up(self, httpd, ws, debug, trail):
        for restart in (httpd.graceful, httpd.restart):
            before = len(trail())
            restart()
            httpd.outlived()
            lines = [line.split()[0] for line in trail()[before:]]
            assert lines.count("cleanup") == lines.count("init") >= 1
            assert lines[0] == "cleanup" and lines[-1] == "configure"
            client = ws("/debug")
            with debug.accept() as sock:
                sock.sendall(b"x\n")
                assert received(client, 1) == [("t", b"x\n")]

    def test_a_framing_that_is_not_registered(self, ws, debug):
        client = ws("/debug/own")
        with debug.accept() as sock:
            sock.sendall(b"ab")
            assert received(client, 1) == [("t", b"ab")]

    def test_refusals(self, httpd, ws, debug):
        with pytest.raises(Refused) as refused:
            ws("/debug/none")
        assert refused.value.response.status == 403
        with pytest.raises(Refused) as refused:
            ws("/debug/fifo")
        assert refused.value.response.status == 500
        httpd.expect_log(r"backend_debug.so: the transport 3")

    @pytest.mark.once
    def test_mistakes_are_found_by_configtest(self, httpd):
        def check(backend, *options):
            options = [f"WebSocketBridgeOption {option}" for option in options]
            return httpd.check(location("/x", f"WebSocketBridgeBackend {backend}", *options))

        assert check(BACKEND, "host x").ok
        check(BACKEND, "colour red").refused("WebSocketBridgeBackend", "refuses the option 'colour'")
        check("/no/such.so").refused("/no/such.so", "No such file")
        check('"${PLUGINS}/backend_version.so"').refused("version 2", "version 1")
        check('"${PLUGINS}/framing_words.so"').refused("no function init")
        two = location("/x", f"WebSocketBridgeBackend {BACKEND}", "WebSocketBridgeOption host x")
        assert httpd.check(two + two.replace("/x", "/y")).ok
        httpd.check(two + two.replace("/x", "/y").replace("host x", "host z")).refused("other options")


@pytest.mark.once
class TestFileBackend:
    """The file backend: files with lines `peer subprotocol framing framing-config`."""

    CONF = location(
        "/file",
        "WebSocketBridgeBackend file",
        'WebSocketBridgeOption path "${ROOT}/peers/"',
        'WebSocketBridgeOption expression "%endpoint%.txt"',
        'WebSocketBridgeOption expression "cookie-%cookie:session%"',
        'WebSocketBridgeOption expression "header-%header:X-Peer%"',
        "WebSocketBridgeOption expression default",
    )

    @pytest.fixture(scope="class", autouse=True)
    def _class_conf(self, httpd):
        """The folder is there before the server."""
        folder = httpd.root / "peers"
        folder.mkdir(exist_ok=True)
        folder.chmod(0o755)
        with httpd.serve(self.CONF):
            yield

    @pytest.fixture
    def files(self, httpd):
        """Writes a file of peers; all are gone after the test."""
        folder = httpd.root / "peers"
        yield lambda name, text: (folder / name).write_text(text)
        for path in folder.iterdir():
            path.unlink()

    def reaches(self, connect, peer, path, headers=()):
        """Talks to the peer; the subprotocol that was chosen."""
        client = connect()
        response = client.upgrade(path, headers)
        with peer.accept() as sock:
            client.send(frame(BINARY, b"hello"))
            assert sock.recv(10) == b"hello"
        return chosen(response)

    def test_variables(self, connect, peer, files):
        files("file_a.txt", f"tcp://127.0.0.1:{peer.port} *\n")
        self.reaches(connect, peer, "/file/a")
        self.reaches(connect, peer, "/file/a/")
        files("cookie-s1", f"tcp://127.0.0.1:{peer.port} *")
        self.reaches(connect, peer, "/file/b", [("Cookie", "x=y; session=s1")])
        files("header-h1", f"tcp://127.0.0.1:{peer.port} *")
        self.reaches(connect, peer, "/file/b", [("x-peer", "h1")])
        files("default", f"tcp://127.0.0.1:{peer.port} *")
        self.reaches(connect, peer, "/file/b", [("X-Peer", "none")])

    def test_subprotocols(self, connect, peer, files):
        port = peer.port
        files("default", f"tcp://127.0.0.1:1 x\ntcp://127.0.0.1:{port} chat newline lf\r\ntcp://127.0.0.1:{port} *\n")
        assert self.reaches(connect, peer, "/file", offer("other, chat")) == "chat"
        assert self.reaches(connect, peer, "/file", offer("one, two")) == "one"
        # Without an offer the first line is it.
        files("default", f"tcp://127.0.0.1:{port} x")
        assert self.reaches(connect, peer, "/file") is None

    def test_framing_and_its_configuration(self, ws, peer, files):
        files("default", f"tcp://127.0.0.1:{peer.port} * separator  a \\x2e")
        client = ws("/file")
        with peer.accept() as sock:
            sock.sendall(b"1 a .2 a .")
            assert received(client, 2) == [("b", b"1 a ."), ("b", b"2 a .")]

    def test_nothing_suits(self, httpd, ws, files):
        for text in ("tcp://127.0.0.1:1 x", "", "nonsense"):
            files("default", text)
            with pytest.raises(Refused) as refused:
                ws("/file", offer("y"))
            assert refused.value.response.status == 403
        files("default", "tcp://127.0.0.1:1 x nothing")
        with pytest.raises(Refused) as refused:
            ws("/file")
        assert refused.value.response.status == 500
        httpd.expect_log("no framing 'nothing'")

    def test_no_request_leads_out_of_the_folder(self, httpd, ws, peer, files):
        secret = httpd.root / "outside.txt"
        secret.write_text(f"tcp://127.0.0.1:{peer.port} *")
        for path, headers in (
            ("/file/../../outside", []),
            ("/file", [("Cookie", "session=/../../outside.txt")]),
            ("/file", [("X-Peer", "/../../outside.txt")]),
            ("/file", [("X-Peer", "x/../../outside.txt")]),
        ):
            with pytest.raises(Refused) as refused:
                ws(path, headers)
            assert refused.value.response.status in (400, 403)
        httpd.expect_log("AH10244")


@pytest.mark.once
class TestConfigurationFile:
    """Configuration file: [core] and [backend], read by WebSocketBridgeConfig."""

    CONF = location("/", 'WebSocketBridgeConfig "${ROOT}/websocksy.conf"')

    @pytest.fixture
    def configured(self, httpd):
        """Runs the server with the file's text."""

        @contextlib.contextmanager
        def run(text, conf=""):
            (httpd.root / "websocksy.conf").write_text(text)
            httpd.start(conf + self.CONF)
            try:
                yield
            finally:
                httpd.settle()
                httpd.stop()

        return run

    # The fixture of the class would start the server before the file is there.
    @pytest.fixture(scope="class", autouse=True)
    def _class_conf(self, _module_conf):
        yield

    def test_the_default_backend(self, httpd, connect, peer, configured):
        text = (
            f"[core]\nport = 8001\nlisten = ::\nping = 1\n[backend]\nhost = tcp://127.0.0.1\nport = {peer.port}\n"
            "protocol = *\nframing = newline\nframing-config = crlf\n"
        )
        with configured(text):
            client = connect()
            assert chosen(client.upgrade("/any/path", offer("a, b"))) == "a"
            with peer.accept() as sock:
                sock.sendall(b"a\nb\r\n")
                assert received(client, 1) == [("t", b"a\nb\r\n")]
                assert client.read_frame().opcode == PING
            client.sock.close()
        httpd.expect_log("'port' has no effect")
        httpd.expect_log("'listen' has no effect")

    @pytest.mark.parametrize("backend, option, word", [
        ("defaultpeer", "", b"N "),
        ("defaultpeer", "framing-config =", b"0 "),
        ("library", "", b"N "),
        ("library", "framing-config=", b"0 "),
        ("file", "expression = none", b"N "),
        ("file", "expression = empty", b"0 "),
    ])
    def test_an_empty_framing_config_is_one(self, httpd, ws, peer, configured, backend, option, word):
        host = f"tcp://127.0.0.1:{peer.port}"
        options = f"[backend]\nhost = {host}\nframing = words\n"
        if backend == "library":
            options = f"[core]\nbackend = {httpd.plugins}/backend_debug.so\n" + options
        if backend == "file":
            (httpd.trails / "none").write_text(f"{host} * words")
            (httpd.trails / "empty").write_text(f"{host} * words ")
            options = f"[core]\nbackend = file\n[backend]\npath = {httpd.trails}\n"
        with configured(options + option, 'LoadFile "${PLUGINS}/framing_words.so"\n'):
            assert told(ws, peer, "/") == word

    def test_the_port_may_be_in_the_host(self, ws, peer, configured):
        with configured(f"[backend]\nhost = tcp://127.0.0.1:{peer.port}\n"):
            client = ws("/")
            peer.accept().close()
            client.sock.close()
            with pytest.raises(Refused):
                ws("/", offer("a"))

    def test_the_file_backend(self, httpd, ws, peer, configured):
        (httpd.root / "websocksy-default.txt").write_text(f"tcp://127.0.0.1:{peer.port} *\n")
        text = f"[core]\nbackend = file\n[backend]\npath = {httpd.root}\nexpression = %endpoint%\n"
        with configured(text + "expression = websocksy-default.txt\n"):
            client = ws("/none")
            peer.accept().close()
            client.sock.close()

    @pytest.mark.once
    def test_mistakes_are_found_by_configtest(self, httpd):
        def check(text):
            (httpd.root / "websocksy.conf").write_text(text)
            return httpd.check(self.CONF)

        check("ping = soon").refused("websocksy.conf", "line 1: ping is a number")
        check("[backend]\n#a = b\n").refused("no option '#a'")
        check("backend = none").refused("backend_none.so")


@pytest.mark.once
class TestCommand:
    """Command line arguments: bin/websocksy, which runs an httpd of its own."""

    @pytest.fixture
    def folder(self, httpd):
        """Where it is started: within reach of the user that httpd's children run as."""
        path = httpd.root / "websocksy"
        path.mkdir()
        yield path
        shutil.rmtree(path)

    @pytest.fixture
    def run(self, httpd, folder):
        """Starts the command and waits for its port; stops what the test leaves running."""
        started = []

        def start(*arguments, port=None, environment=(), answers=True, stderr=subprocess.PIPE):
            port = port or free_port()
            temporary = folder / "tmp"
            temporary.mkdir(exist_ok=True)
            process = subprocess.Popen(
                [TOP / "scripts/websocksy", *(str(port) if a == "PORT" else a for a in arguments)],
                env={
                    **os.environ, "HTTPD": httpd.binary, "MODULES": str(httpd.modules), "MODULE": str(httpd.module),
                    "TMPDIR": str(temporary), **dict(environment),
                },
                cwd=folder, stderr=stderr, text=True, start_new_session=True,
                # Tests in the background have it ignored, and a shell cannot trap what it finds ignored.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
            process.port, process.temporary = port, temporary
            started.append(process)

            def up():
                assert process.poll() is None, process.stderr.read()
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    return True

            if answers:
                wait_until(up, 15, "websocksy's start")
            return process

        yield start
        for process in started:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.wait(10)
            if process.stderr:
                process.stderr.close()

    def test_options(self, run, peer):
        options = ["-c", "host=tcp://127.0.0.1", "-c", f"port={peer.port}", "-c", "framing=separator"]
        process = run("-p", "PORT", "-l", "127.0.0.1", "-k", "1", *options, "-c", r"framing-config=\x3b", "-c", "protocol=*")
        with Client(process.port) as client:
            response = client.upgrade("/x", [*offer("a"), ("Origin", "https://elsewhere.example")])
            assert chosen(response) == "a"
            with peer.accept() as sock:
                client.send(frame(TEXT, b"hello"))
                assert sock.recv(10) == b"hello"
                sock.sendall(b"a;b")
                assert received(client, 1) == [("b", b"a;")]
                assert client.read_frame().opcode == PING
        conf = next(process.temporary.glob("*/httpd.conf"))
        assert conf.parent.stat().st_mode & 0o777 == 0o700
        process.send_signal(signal.SIGINT)
        process.wait(10)
        assert list(process.temporary.iterdir()) == []

    def test_a_configuration_file(self, httpd, run, peer, folder):
        (folder / "peers").mkdir()
        (folder / "peers/default").write_text(f"tcp://127.0.0.1:{peer.port} * newline lf\n")
        port = free_port()
        (folder / "w.conf").write_text(
            f"[core]\nport = {port}\nlisten = 127.0.0.1\nbackend = file\n[backend]\npath = peers/\nexpression = default\n"
        )
        process = run("w.conf", port=port)
        with Client(process.port) as client:
            client.upgrade("/")
            sock = peer.accept()
            sock.sendall(b"a\n")
            assert received(client, 1) == [("t", b"a\n")]

    def test_plugins(self, httpd, run, peer, folder):
        environment = {"PLUGINPATH": str(httpd.plugins)}
        options = ["-c", f"host=tcp://127.0.0.1:{peer.port}", "-c", "framing=words"]
        # The second -b forgets the options of the first.
        process = run("-p", "PORT", "-b", "old", "-c", "x=y", "-b", "debug", *options, environment=environment)
        with Client(process.port) as client:
            client.upgrade("/")
            sock = peer.accept()
            sock.sendall(b"a b")
            assert received(client, 1) == [("t", b"a ")]

    @pytest.mark.once
    def test_standard_error_may_be_a_socket(self, run, peer):
        """As service managers have it: it cannot be opened by its name."""
        ours, its = socket.socketpair()
        with ours:
            with its:
                process = run("-p", "PORT", "-c", f"host=tcp://127.0.0.1:{peer.port}", stderr=its)
            peer.sock.close()
            with Client(process.port) as client, pytest.raises(Refused):
                client.upgrade("/")
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0
            ours.settimeout(5)
            said = b"".join(iter(lambda: ours.recv(1 << 16), b""))
        assert b"WS0501" in said

    @pytest.mark.parametrize(
        "arguments,words",
        [
            (["-p"], "configuration file -p cannot be read"),
            (["-p", "1", "-c"], "usage:"),
            (["x", "y"], "usage:"),
            (["-p", "no"], "'no' is no port"),
            (["-p", "8001", "-c", "host"], "option=value"),
            (["-p", "8001", "-c", "colour=red"], "no option 'colour'"),
            (["-p", "8001", "-b", "none"], "backend_none.so"),
            (["/no/such/file"], "cannot be read"),
        ],
    )
    @pytest.mark.once
    def test_mistakes(self, run, arguments, words):
        process = run(*arguments, answers=False)
        said = process.communicate(timeout=15)[1]
        assert process.returncode == 1 and words in said
        assert list(process.temporary.iterdir()) == []
