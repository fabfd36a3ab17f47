"""TLS in depth: records, sessions, keys and certificates, detached and blocking.

Python's MemoryBIO gives control over the bytes of each record; what it has no word for (KeyUpdate,
renegotiation) is left to `openssl s_client`, which does both while it carries our bytes.
"""

import contextlib
import os
import select
import socket
import ssl
import subprocess
import time

import pytest
from httpd import TLS, debug, echo, location, wait_until
from ws_frame import BINARY, PING, PONG, TEXT, Client, close_frame, frame, random_text, works
from ws_tls import VERSIONS, Records, exchange

both = pytest.mark.parametrize("version", VERSIONS)


def request(path, *directives):
    """A Location whose plugin keeps httpd's request."""
    return location(path, "${PLUGINS}/request.so", "request_init", *directives)


SITE = f"""
    {TLS}
    {debug()}
    {echo()}
    {request("/request", "SSLOptions +StdEnvVars")}
"""


@pytest.fixture
def records(httpd):
    """Opens WebSockets over records of our own."""
    with contextlib.ExitStack() as stack:

        def opened(version, path="/echo", headers=(), context=None, **kw):
            context = context or httpd.tls_context(VERSIONS[version])
            client = stack.enter_context(Records(httpd.tls_port, context, **kw))
            assert client.tls.version() == f"TLSv{version}"
            client.upgrade(path, headers)
            return client

        yield opened


@both
class TestRecords:
    CONF = SITE

    def test_cut_at_every_byte(self, records, version):
        client = records(version, cut=1)
        works(client, "byte by byte")
        client.send(frame(PING, b"?") + frame(BINARY, b"x" * 500))
        client.expect(PONG, b"?")
        client.expect(BINARY, b"x" * 500)
        client.send(close_frame(1000))
        client.expect_close(1000, reply=False)

    @pytest.mark.parametrize("cut", [2, 5, 6, 7, 16, 100])
    def test_cut_near_the_header(self, records, version, cut):
        """A record's header is 5 bytes."""
        client = records(version, cut=cut)
        works(client, "cut " * 50)

    def test_half_a_record_is_no_message(self, records, version):
        client = records(version)
        client.tls.write(frame(TEXT, "held back"))
        data = client.outgoing.read()
        client.sock.sendall(data[:-1])
        with pytest.raises((TimeoutError, socket.timeout)):
            client.read_frame(0.3)
        client.sock.sendall(data[-1:])
        client.expect(TEXT, "held back")

    def test_many_records_in_one_segment(self, records, version):
        client = records(version)
        for n in range(300):
            client.tls.write(frame(TEXT, f"{n}"))
        client.pass_on()
        for n in range(300):
            client.expect(TEXT, f"{n}")

    def test_large_messages_one_after_the_other(self, records, version):
        """A receive brings more than there is room for at the moment, and the socket has more still."""
        client = records(version)
        for n in range(100):
            data = bytes([n]) * 300_000
            client.send(frame(BINARY, data))
            client.expect(BINARY, data)

    def test_end_without_close_notify(self, httpd, records, version):
        trail, mark = httpd.trail("records"), f"?truncated-{version}"
        client = records(version, f"/debug{mark}", [("X-Debug-Trail", str(trail))])
        client.sock.shutdown(socket.SHUT_WR)
        wait_until(lambda: httpd.trail_lines(trail) == ["disconnect"], 5, "on_disconnect")
        assert httpd.access(mark)[-1].close_code == "1006"

    def test_end_with_close_notify(self, httpd, records, version):
        trail, mark = httpd.trail("notified"), f"?notified-{version}"
        client = records(version, f"/debug{mark}", [("X-Debug-Trail", str(trail))])
        with contextlib.suppress(ssl.SSLWantReadError):
            client.tls.unwrap()
        client.pass_on()
        wait_until(lambda: httpd.trail_lines(trail) == ["disconnect"], 5, "on_disconnect")
        assert httpd.access(mark)[-1].close_code == "1006"

    def test_end_within_a_record(self, httpd, records, version):
        trail = httpd.trail("cut-off")
        client = records(version, "/debug", [("X-Debug-Trail", str(trail))])
        client.tls.write(frame(TEXT, "never whole"))
        client.sock.sendall(client.outgoing.read()[:-3])
        client.sock.close()
        wait_until(lambda: httpd.trail_lines(trail) == ["disconnect"], 5, "on_disconnect")

    def test_a_broken_record(self, httpd, records, version):
        """A record that does not decrypt ends its connection and no other."""
        trail = httpd.trail("broken")
        client, other = records(version, "/debug", [("X-Debug-Trail", str(trail))]), records(version)
        client.tls.write(frame(TEXT, "spoilt"))
        data = bytearray(client.outgoing.read())
        data[-1] ^= 1
        client.sock.sendall(data)
        wait_until(lambda: httpd.trail_lines(trail) == ["disconnect"], 5, "on_disconnect")
        works(other)


@both
class TestSessions:
    CONF = SITE

    def test_resumed(self, records, httpd, version):
        context = httpd.tls_context(VERSIONS[version])
        first = records(version, "/request", context=context)
        works(first)  # 1.3 sends its tickets after the handshake
        assert not first.tls.session_reused
        session = first.tls.session
        first.send(close_frame(1000))
        first.expect_close(1000, reply=False)
        for _ in range(2):
            client = records(version, "/request", context=context, session=session)
            assert client.tls.session_reused
            client.send(frame(TEXT, "env SSL_SESSION_RESUMED"))
            client.expect(TEXT, "Resumed")
            works(client)


class Openssl(Client):
    """`openssl s_client` as the way to the server; a line of one letter is a command to it."""

    def __init__(self, port, *options, timeout=15.0):
        self.timeout, self.port, self.buffer = timeout, port, bytearray()
        command = ["openssl", "s_client", "-brief", "-connect", f"127.0.0.1:{port}", *options]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
        )
        os.set_blocking(self.process.stdin.fileno(), False)
        self.sock = self.process.stdout

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            pipe.close()

    def command(self, letter):
        """Has s_client do something, between two pieces of what we send."""
        time.sleep(0.05)  # a read of its own
        self.process.stdin.write(letter.encode() + b"\n")
        time.sleep(0.05)

    def send(self, *data):
        view, deadline = memoryview(b"".join(data)), time.monotonic() + self.timeout
        while view:
            assert time.monotonic() < deadline, f"stuck: {len(view)} bytes to send"
            readable, writable, _ = select.select([self.process.stdout], [self.process.stdin], [], 1)
            if readable:
                self.buffer += os.read(self.process.stdout.fileno(), 1 << 16)
            if writable:
                view = view[self.process.stdin.write(view[: 1 << 15]) or 0 :]

    def fill(self, deadline):
        if not select.select([self.process.stdout], [], [], max(deadline - time.monotonic(), 0))[0]:
            raise TimeoutError(f"nothing came; unread: {bytes(self.buffer[:80])!r}")
        data = os.read(self.process.stdout.fileno(), 1 << 16)
        if not data:
            raise EOFError("the connection ended")
        self.buffer += data

    def read_response(self):
        self.fill_until(b"HTTP/1.1 ")  # behind what s_client has to say itself
        del self.buffer[: self.buffer.find(b"HTTP/1.1 ")]
        return super().read_response()


@pytest.fixture
def openssl(httpd):
    with contextlib.ExitStack() as stack:

        def opened(*options, path="/echo"):
            client = stack.enter_context(Openssl(httpd.tls_port, *options))
            client.upgrade(path)
            return client

        yield opened


class TestKeys:
    CONF = SITE

    @pytest.mark.parametrize("letter", "Kk")
    def test_key_update(self, openssl, letter):
        """K asks for the server's new keys too, k does not."""
        client = openssl("-tls1_3")
        for n in range(5):
            works(client, f"before {n}")
            client.command(letter)
            works(client, f"after {n}")

    def test_key_update_during_a_transfer(self, openssl):
        """The server has records on their way, and in its queue, when the keys change."""
        client = openssl("-tls1_3", path="/request")
        client.send(frame(TEXT, "pump 200 50000"))
        for _ in range(3):
            client.command("K")
        for _ in range(200):
            assert len(client.read_frame().payload) == 50_000
        client.expect(TEXT, "pumped")
        data = bytes(1 << 20)  # masked, it has no byte that s_client takes for a command
        for _ in range(3):
            client.send(frame(BINARY, data))
            client.command("K")
            client.expect(BINARY, data)

    def test_renegotiation_by_the_client(self, httpd, openssl, records):
        """mod_ssl allows none (TLS 1.2): that ends the connection, or is of no consequence; either
        way nothing hangs and nobody else suffers."""
        httpd.allow_log("AH02042: rejecting client initiated renegotiation")  # older ones of mod_ssl say so
        other = records("1.2")
        client = openssl("-tls1_2", path="/request")
        works(client)
        client.send(frame(TEXT, "pump 200 50000"))
        client.command("R")
        pumped = 0
        with contextlib.suppress(EOFError, BrokenPipeError):
            while client.read_frame().payload != b"pumped":
                pumped += 1
            works(client)
        assert pumped == 200 or client.process.wait(5) is not None
        works(other)


class TestBothWays:
    CONF = SITE

    @both
    def test_large_messages_at_once(self, httpd, connect, version):
        """The server writes tens of megabytes of its own while the client sends as many: mod_ssl
        reads while it writes, and neither may wait for the other."""
        client = connect(port=httpd.tls_port, tls=httpd.tls_context(VERSIONS[version]))
        client.upgrade("/request")
        data = random_text(2 << 20)
        out = frame(TEXT, "pump 20 1000000") + frame(BINARY, data) * 10
        pumped, back = frame(BINARY, bytes(1_000_000), mask=None), frame(BINARY, data, mask=None)
        done = frame(TEXT, "pumped", mask=None)
        expected = pumped * 20 + done + back * 10
        exchange(client, out, len(expected))
        assert client.buffer == expected
        client.buffer.clear()
        client.close()


CERTIFIED = SITE.replace("    </VirtualHost>", "        SSLCACertificateFile tls/client.pem\n    </VirtualHost>")


@pytest.fixture
def certificate(httpd):
    """A client's certificate, which the server trusts since it is its own authority."""
    cert, key = httpd.root / "tls/client.pem", httpd.root / "tls/client.key"
    return cert, key


@pytest.fixture(scope="module", autouse=True)
def _client_certificate(httpd):
    cert, key = httpd.root / "tls/client.pem", httpd.root / "tls/client.key"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30"]
    command += ["-subj", "/O=mod_websocket/CN=a client", "-keyout", str(key), "-out", str(cert)]
    subprocess.run(command, check=True, capture_output=True)


@both
class TestClientCertificates:
    """Asked for in the handshake, or by one Location, which takes a renegotiation (1.2) or an
    authentication after the handshake (1.3)."""

    CONF = CERTIFIED + request("/optional", "SSLOptions +StdEnvVars") + request(
        "/required", "SSLOptions +StdEnvVars", "SSLVerifyClient require", "SSLVerifyDepth 1"
    )
    NAME = "CN=a client,O=mod_websocket"

    def context(self, httpd, version, certificate=None):
        context = httpd.tls_context(VERSIONS[version])
        context.post_handshake_auth = True
        if certificate:
            context.load_cert_chain(*certificate)
        return context

    def test_visible_to_plugins(self, httpd, records, certificate, version):
        context = self.context(httpd, version, certificate)
        client = records(version, "/required", context=context)
        for name, value in (
            ("SSL_CLIENT_S_DN", self.NAME),
            ("SSL_CLIENT_S_DN_CN", "a client"),
            ("SSL_CLIENT_VERIFY", "SUCCESS"),
            ("SSL_PROTOCOL", f"TLSv{version}"),
            ("HTTPS", "on"),
        ):
            client.send(frame(TEXT, f"env {name}"))
            client.expect(TEXT, value)
        works(client)
        client.send(frame(TEXT, "protocol"))
        client.expect(TEXT, "HTTP/1.1")
        client.send(close_frame(1000))
        client.expect_close(1000, reply=False)

    def test_none_given(self, httpd, records, version):
        client = records(version, "/optional", context=self.context(httpd, version))
        client.send(frame(TEXT, "env SSL_CLIENT_VERIFY"))
        client.expect(TEXT, "NONE")

    def test_required_and_none_given(self, httpd, connect, version):
        client = connect(port=httpd.tls_port, tls=self.context(httpd, version))
        if version == "1.2":
            httpd.expect_log("AH02261: Re-negotiation handshake failed")
            httpd.expect_log("SSL Library Error: .*peer did not return a certificate")
        else:
            httpd.expect_log("AH02263: .*Client certificate missing")
        try:
            assert client.ask("/required").status == 403
        except (EOFError, ssl.SSLError, ConnectionError):
            pass  # TLS 1.2: the handshake fails
        other = connect(port=httpd.tls_port, tls=self.context(httpd, version))
        other.upgrade("/optional")
        works(other)
