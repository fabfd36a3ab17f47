"""The bridge: a WebSocket in front of a TCP, UDP or Unix-socket peer, for connections that are served in every way.

The peers are plain sockets of the test's own. Most Locations take the peer's port from the query string, so a test makes
its peer first and opens `/tcp?port` then.
"""

import collections
import hashlib
import os
import re
import signal
import socket
import struct
import threading
import time

import pytest
from peers import ALLOW, PORT, Listener, bridge, fill_queue, random_bytes, read_exactly, read_messages, read_to_end, reset
from httpd import DETACHED, ENDS, ONE_CHILD, PREFORK, STATUS, TLS, echo, wait_until
from ws_frame import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, close_frame, frame

WAYS = ["usual", "blocking", "tls"]


def site(extra=""):
    return (
        ALLOW
        + "\n"
        + bridge("/tcp", f"tcp://127.0.0.1:{PORT}", "WebSocketBridgeFraming binary")
        + bridge("/auto", f"tcp://127.0.0.1:{PORT}")
        + bridge("/udp", f"udp://127.0.0.1:{PORT}", "WebSocketBridgeFraming binary")
        + bridge("/tcp6", f"tcp://[::1]:{PORT}", "WebSocketBridgeFraming binary")
        + bridge("/name", f"tcp://LocalHost:{PORT}", "WebSocketBridgeFraming binary")
        + bridge("/unix", "unix://${ROOT}/trail/stream", "WebSocketBridgeFraming binary")
        + bridge("/unix-dgram", "unix-dgram://${ROOT}/trail/dgram", "WebSocketBridgeFraming binary")
        + bridge("/off", f"tcp://127.0.0.1:{PORT}", "WebSocketDetach Off", "WebSocketBridgeFraming binary")
        + TLS
        + extra
    )


@pytest.fixture
def dial(httpd, connect):
    """Opens a bridged WebSocket that is served in one of these ways: `dial(way, port)`."""

    def opened(way, port, rcvbuf=None):
        if way == "tls":
            client = connect(port=httpd.tls_port, tls=httpd.tls_context(), rcvbuf=rcvbuf)
        else:
            client = connect(rcvbuf=rcvbuf)
        client.upgrade(f"/{'off' if way == 'blocking' else 'tcp'}?{port}")
        return client

    return opened


class TestTransports:
    CONF = site()

    def both_ways(self, client, peer):
        """A stream: bytes there and back."""
        for message in (b"hello", b"", bytes(range(256)), random_bytes(100_000), random_bytes(3_000_000)):
            got = []
            reader = threading.Thread(target=lambda m=message, g=got: g.append(read_exactly(peer, len(m))))
            reader.start()
            client.send(frame(BINARY, message))
            reader.join(10)
            assert got == [message]
            sender = threading.Thread(target=peer.sendall, args=(message,))
            sender.start()
            assert read_messages(client, len(message)) == message
            sender.join(10)

    @pytest.mark.parametrize("way", WAYS)
    def test_tcp(self, httpd, listen, dial, way):
        peer = listen()
        client = dial(way, peer.port)
        connection = peer.accept()
        self.both_ways(client, connection)
        client.close()
        assert connection.recv(1) == b""

    def test_ipv6(self, httpd, listen, ws):
        if not httpd.ipv6:
            pytest.skip("no IPv6")
        peer = listen(socket.AF_INET6, ("::1", 0))
        self.both_ways(ws(f"/tcp6?{peer.port}"), peer.accept())

    def test_a_name(self, listen, ws):
        peer = listen()
        self.both_ways(ws(f"/name?{peer.port}"), peer.accept())

    def unix(self, httpd, name, kind):
        path = str(httpd.root / "trail" / name)
        if os.path.exists(path):
            os.unlink(path)
        sock = socket.socket(socket.AF_UNIX, kind)
        sock.bind(path)
        os.chmod(path, 0o777)
        sock.settimeout(5)
        return sock

    def test_unix(self, httpd, ws):
        with self.unix(httpd, "stream", socket.SOCK_STREAM) as listener:
            listener.listen()
            client = ws("/unix")
            connection, _ = listener.accept()
            connection.settimeout(5)
            self.both_ways(client, connection)
            client.close()
            assert connection.recv(1) == b""

    def test_unix_datagrams(self, httpd, ws):
        with self.unix(httpd, "dgram", socket.SOCK_DGRAM) as peer:
            client = ws("/unix-dgram")
            for message in (b"hello", b"", random_bytes(70_000)):
                client.send(frame(BINARY, message))
                got, address = peer.recvfrom(1 << 20)
                assert got == message
                # It has an address of its own, so that it can be answered.
                peer.sendto(message[::-1], address)
                client.expect(BINARY, message[::-1])
            client.close()
            # The address is gone with the connection.
            wait_until(lambda: self.is_gone(peer, address), 5, "the end of the address")

    def is_gone(self, peer, address):
        try:
            peer.sendto(b"x", address)
        except OSError:
            return True
        return False

    def test_udp(self, ws):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
            peer.bind(("127.0.0.1", 0))
            peer.settimeout(5)
            client = ws(f"/udp?{peer.getsockname()[1]}")
            for message in (b"hello", b"", random_bytes(60_000), b"\0"):
                client.send(frame(BINARY, message))
                got, address = peer.recvfrom(1 << 16)
                assert got == message
                # An empty datagram is a message like any other, not the end.
                peer.sendto(message[::-1], address)
                client.expect(BINARY, message[::-1])
            # One message, one datagram, also if they come in one read; and however fragmented a message is.
            client.send(frame(TEXT, "one"), frame(BINARY, b"two"), frame(TEXT, "th", fin=False), frame(CONTINUATION, "ree"))
            assert [peer.recv(100) for _ in range(3)] == [b"one", b"two", b"three"]
            for n in range(50):
                peer.sendto(b"%d" % n, address)
            for n in range(50):
                client.expect(BINARY, b"%d" % n)
            client.close()

    def test_a_message_too_long_for_a_datagram(self, httpd, ws):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
            peer.bind(("127.0.0.1", 0))
            client = ws(f"/udp?{peer.getsockname()[1]}")
            client.send(frame(BINARY, bytes(65_508)))
            client.expect_close(1009)
        assert "WS0506: closing with 1009" in httpd.new_log()

    def test_nobody_at_a_udp_port(self, httpd, ws):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
            peer.bind(("127.0.0.1", 0))
            port = peer.getsockname()[1]
        client = ws(f"/udp?{port}")
        client.send(frame(BINARY, b"lost"))
        wait_until(lambda: "WS0506: the peer does not get its datagrams" in httpd.new_log(), 5, "the line")
        # Somebody may be there later.
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
            peer.bind(("127.0.0.1", port))
            peer.settimeout(5)
            client.send(frame(BINARY, b"found"))
            assert peer.recv(100) == b"found"
        client.close()

    def test_fragments(self, listen, ws):
        peer = listen()
        client = ws(f"/tcp?{peer.port}")
        connection = peer.accept()
        message = random_bytes(1_000_000)
        client.send(frame(BINARY, message[:10], fin=False), frame(CONTINUATION, b"", fin=False), frame(PING, b"?"))
        client.expect(PONG, b"?")
        client.send(frame(CONTINUATION, message[10:500_000], fin=False), frame(CONTINUATION, message[500_000:]))
        assert read_exactly(connection, len(message)) == message

    def test_what_is_there_before_the_client(self, listen, dial):
        """A peer that speaks first, and at once."""
        for way in WAYS:
            peer = listen()
            banner = threading.Thread(target=lambda p=peer: p.accept().sendall(b"220 ready\r\n"))
            banner.start()
            client = dial(way, peer.port)
            client.expect(BINARY, b"220 ready\r\n")
            banner.join()

    def test_frames_with_the_handshake(self, listen, connect):
        peer = listen()
        client = connect()
        client.send(client.request(f"/tcp?{peer.port}") + frame(TEXT, "early"))
        assert client.read_response().status == 101
        assert read_exactly(peer.accept(), 5) == b"early"

    def test_text_and_binary(self, listen, ws):
        peer = listen()
        client = ws(f"/auto?{peer.port}")
        connection = peer.accept()
        connection.sendall("grüße".encode())
        client.expect(TEXT, "grüße")
        connection.sendall(b"\xff\xfe")
        client.expect(BINARY, b"\xff\xfe")

    def test_the_access_log(self, httpd, listen, ws):
        peer = listen()
        path = f"/tcp?{peer.port}"
        client = ws(path)
        connection = peer.accept()
        for n in range(3):
            client.send(frame(TEXT, "there"))
            read_exactly(connection, 5)
        connection.sendall(b"back")
        client.expect(BINARY, b"back")
        client.close(3000)
        line = httpd.access(path)[-1]
        assert (line.status, line.close_code) == (101, "3000")
        assert (line.messages_in, line.messages_out) == ("3", "1")


class TestEnds:
    CONF = site()

    @pytest.mark.parametrize("way", WAYS)
    def test_half_close(self, listen, dial, way):
        """What the peer sent before its end arrives, then the Close."""
        peer = listen()
        client = dial(way, peer.port)
        connection = peer.accept()
        data = random_bytes(20_000_000)
        sender = threading.Thread(target=lambda: (connection.sendall(data), connection.shutdown(socket.SHUT_WR)))
        sender.start()
        assert read_messages(client, len(data)) == data
        assert client.expect_close(1000).payload[2:] == b"Peer closed connection"
        sender.join()
        assert connection.recv(1) == b""

    @pytest.mark.parametrize("way", WAYS)
    def test_an_end_at_once(self, listen, dial, way):
        peer = listen()
        closer = threading.Thread(target=lambda: peer.accept().close())
        closer.start()
        dial(way, peer.port).expect_close(1000)
        closer.join()

    @pytest.mark.parametrize("way", WAYS)
    def test_reset(self, httpd, listen, dial, way):
        peer = listen()
        client = dial(way, peer.port)
        connection = peer.accept()
        connection.sendall(b"last words")
        client.expect(BINARY, b"last words")
        reset(connection)
        client.expect_close(1011)
        assert "WS0503: closing with 1011: the peer is lost: Connection reset" in httpd.new_log()

    @pytest.mark.parametrize("way", WAYS)
    def test_a_peer_that_does_not_want_to_hear(self, httpd, listen, dial, way):
        """It ends while the client still sends; what it said before arrives."""
        peer = listen()
        client = dial(way, peer.port)
        connection = peer.accept()
        client.send(frame(BINARY, b"x" * 1000))
        wait_until(lambda: len(connection.recv(2000, socket.MSG_PEEK)) == 1000, 5)
        connection.sendall(b"go away")
        connection.close()  # with unread bytes: a RST
        client.expect(BINARY, b"go away")
        assert client.read_frame().code == 1011

    @pytest.mark.parametrize("way", WAYS)
    def test_the_clients_close(self, listen, dial, way):
        """A peer that reads slowly gets everything, then the end."""
        peer = listen()
        client = dial(way, peer.port)
        connection = peer.accept(rcvbuf=4096)
        data = random_bytes(8_000_000)
        sender = threading.Thread(target=lambda: client.send(frame(BINARY, data), close_frame(1000)))
        sender.start()
        time.sleep(0.3)
        assert hashlib.sha1(read_to_end(connection)).digest() == hashlib.sha1(data).digest()
        sender.join()
        client.expect_close(1000, reply=False)

    @pytest.mark.parametrize("way", WAYS)
    def test_the_clients_close_while_the_peer_talks(self, listen, dial, way):
        """Bytes on their way to the client must not keep those to the peer from arriving."""
        peer = listen()
        client = dial(way, peer.port)
        connection = peer.accept(rcvbuf=4096)
        data = random_bytes(2_000_000)
        client.send(frame(BINARY, data))
        connection.sendall(b"y" * 100_000)
        client.send(close_frame(1000))
        connection.sendall(b"z" * 100_000)
        time.sleep(0.2)
        assert read_to_end(connection) == data

    @pytest.mark.parametrize("way", WAYS)
    def test_a_client_that_vanishes(self, listen, dial, way):
        for how in ("fin", "reset"):
            peer = listen()
            client = dial(way, peer.port)
            connection = peer.accept()
            client.send(frame(BINARY, b"last words"))
            assert read_exactly(connection, 10) == b"last words"
            if how == "reset":
                client.reset()
            else:
                client.sock.close()
            try:
                assert connection.recv(1) == b""
            except ConnectionResetError:
                pass

    def test_the_protocol_is_kept(self, listen, ws):
        peer = listen()
        client = ws(f"/tcp?{peer.port}")
        connection = peer.accept()
        client.send(frame(TEXT, b"\xff"))
        client.expect_close(1007)
        assert connection.recv(1) == b""


class TestPressure:
    CONF = site("LogLevel websocket:info\n") + "Timeout 20\n"

    @pytest.mark.parametrize("way", WAYS)
    def test_a_slow_peer(self, httpd, listen, dial, way):
        """The client is held up while the peer does not read, and nothing is lost."""
        peer = listen()
        client = dial(way, peer.port)
        connection = peer.accept()
        message, count = random_bytes(60_000), 1500
        child = httpd.child_of(client)
        before = httpd.memory(child)
        sent = []

        def send():
            for n in range(count):
                client.send(frame(BINARY, struct.pack("!I", n) + message))
                sent.append(n)

        sender = threading.Thread(target=send)
        sender.start()
        wait_until(lambda: (n := len(sent), time.sleep(0.5))[0] == len(sent) and n, 20, "a pause")
        assert len(sent) < count, "nothing held the client up"
        # Of 90 MB: what may wait for a peer, and the memory that a thread keeps for large messages.
        assert httpd.memory(child) - before < 4_000
        for n in range(count):
            assert read_exactly(connection, 0) == b""
            got = bytearray()
            while len(got) < 4 + len(message):
                got += connection.recv(4 + len(message) - len(got))
            assert got == struct.pack("!I", n) + message
        sender.join(5)
        client.close()

    @pytest.mark.parametrize("way", WAYS)
    def test_a_slow_peer_of_a_client_with_pauses(self, httpd, listen, dial, way):
        """Each of its messages is all that there is to read, and still the client is held up."""
        peer = listen()
        client = dial(way, peer.port)
        connection = peer.accept()
        child = httpd.child_of(client)
        before, message, sent = httpd.memory(child), frame(BINARY, random_bytes(60_000)), 0
        client.sock.settimeout(3)
        with pytest.raises(TimeoutError):
            while sent < 1500:
                client.send(message)
                sent += 1
                time.sleep(0.001)
        assert httpd.memory(child) - before < 4_000
        connection.close()

    @pytest.mark.parametrize("way", WAYS)
    def test_a_slow_client(self, httpd, listen, dial, way):
        """The peer is held up while the client does not read, and nothing is lost."""
        peer = listen()
        client = dial(way, peer.port, rcvbuf=65536)
        connection = peer.accept()
        child = httpd.child_of(client)
        before = httpd.memory(child)
        data = random_bytes(64_000_000)
        sent = []

        def send():
            for at in range(0, len(data), 100_000):
                connection.sendall(data[at : at + 100_000])
                sent.append(at)

        sender = threading.Thread(target=send)
        sender.start()
        wait_until(lambda: (n := len(sent), time.sleep(0.5))[0] == len(sent) and n, 20, "a pause")
        assert len(sent) < 640, "nothing held the peer up"
        assert httpd.memory(child) - before < 20_000
        assert hashlib.sha1(read_messages(client, len(data))).digest() == hashlib.sha1(data).digest()
        sender.join(5)
        client.close()

    @pytest.mark.parametrize("way", WAYS)
    def test_both_at_once(self, listen, dial, way):
        """An echo of more than all buffers hold, by a client that reads and writes."""
        peer = listen()
        client = dial(way, peer.port)
        connection = peer.accept()

        def serve():
            while data := connection.recv(1 << 16):
                connection.sendall(data)
            connection.close()

        data = random_bytes(40_000_000)

        def send():
            for at in range(0, len(data), 250_000):
                client.send(frame(BINARY, data[at : at + 250_000]))

        threads = [threading.Thread(target=serve), threading.Thread(target=send)]
        if way == "tls":  # Python's sockets with TLS are for one thread at a time
            threads.pop()
        for thread in threads:
            thread.start()
        if way == "tls":
            for at in range(0, len(data), 250_000):
                client.send(frame(BINARY, data[at : at + 250_000]))
                assert read_messages(client, 250_000) == data[at : at + 250_000]
        else:
            assert hashlib.sha1(read_messages(client, len(data))).digest() == hashlib.sha1(data).digest()
        client.close()
        for thread in threads:
            thread.join(5)


class TestPatience:
    CONF = (
        ALLOW
        + "\nTimeout 2\nWebSocketPingInterval 500ms\n"
        + bridge("/tcp", f"tcp://127.0.0.1:{PORT}", "WebSocketBridgeFraming binary")
        + bridge("/off", f"tcp://127.0.0.1:{PORT}", "WebSocketDetach Off", "WebSocketBridgeFraming binary")
    )

    @pytest.mark.timing
    @pytest.mark.parametrize("path", ["/tcp", "/off"])
    def test_a_peer_that_takes_nothing(self, httpd, listen, ws, path):
        peer = listen()
        client = ws(f"{path}?{peer.port}")
        connection = peer.accept(rcvbuf=4096)
        client.sock.settimeout(1)
        begun = time.monotonic()
        with pytest.raises(TimeoutError):
            while True:
                client.send(frame(BINARY, bytes(100_000)))
        # Not read from, it cannot answer Pings, and is not blamed for that.
        client.buffer.clear()
        while (got := client.read_frame()).opcode == PING:
            pass
        assert (got.opcode, got.code) == (CLOSE, 1011)
        assert 2 <= time.monotonic() - begun < 8
        connection.close()
        assert "WS0504: closing with 1011: the peer took nothing for 2s" in httpd.new_log()

    @pytest.mark.parametrize("path", ["/tcp", "/off"])
    def test_pings(self, listen, ws, path):
        peer = listen()
        client = ws(f"{path}?{peer.port}")
        connection = peer.accept()
        for _ in range(2):
            client.expect(PING, b"")
            client.send(frame(PONG, b""))
        # Then it is silent, and given up: the peer sees the end.
        client.expect(PING, b"")
        assert connection.recv(1) == b""


@pytest.mark.once
class TestRefusals:
    CONF = (
        site()
        + bridge("/nobody", "unix://${ROOT}/trail/nobody")
        + bridge("/invalid", "tcp://no-such-host.invalid:80")
        + bridge("/slow", f"tcp://127.0.0.1:{PORT}", "WebSocketBridgeConnectTimeout 300ms")
        + bridge("/slow-unix", "unix://${ROOT}/trail/slow", "WebSocketBridgeConnectTimeout 300ms")
    )

    def test_refused(self, httpd, connect):
        with Listener() as free:
            port = free.port
        httpd.expect_log(f"WS0501: no connection to tcp://127.0.0.1:{port}: Connection refused")
        assert connect().ask(f"/tcp?{port}").status == 502

    def test_no_such_socket(self, httpd, connect):
        httpd.expect_log("WS0501: no connection to unix://.*/trail/nobody: No such file")
        assert connect().ask("/nobody").status == 502

    def test_no_such_name(self, httpd, connect):
        httpd.expect_log("WS0501: no connection to tcp://no-such-host.invalid:80: ")
        assert connect().ask("/invalid").status in (502, 504)

    @pytest.mark.timing
    def test_no_answer(self, httpd, listen, connect):
        """A listener whose queue is full drops what comes."""
        peer = listen(backlog=0)
        fillers = fill_queue(peer)
        httpd.expect_log(f"WS0501: no connection to tcp://127.0.0.1:{peer.port}: no answer within")
        begun = time.monotonic()
        assert connect().ask(f"/slow?{peer.port}").status == 504
        assert 0.25 < time.monotonic() - begun < 2
        for filler in fillers:
            filler.close()

    def test_no_answer_at_a_unix_socket(self, httpd, connect):
        path = str(httpd.root / "trail/slow")
        with socket.socket(socket.AF_UNIX) as peer, socket.socket(socket.AF_UNIX) as filler:
            peer.bind(path)
            os.chmod(path, 0o777)
            peer.listen(0)
            filler.connect(path)
            httpd.expect_log("WS0501: no connection to unix://.*/trail/slow: no answer within")
            assert connect().ask("/slow-unix").status == 504

    def test_nothing_for_those_who_do_not_upgrade(self, httpd, listen):
        peer = listen()
        assert httpd.get(f"/tcp?{peer.port}")[0] == 404
        peer.sock.settimeout(0.2)
        with pytest.raises(TimeoutError):
            peer.accept()


@pytest.mark.once
class TestExpressions:
    CONF = (
        'WebSocketBridgeAllow tcp://127.0.0.1:20000-65535 unix://${ROOT}/trail/below/\n'
        + bridge("/any", f"{PORT}")
        + bridge("/header", "tcp://%{HTTP:X-Host}:%{HTTP:X-Port}")
        + bridge("/socket", "unix://${ROOT}/trail/below/%{QUERY_STRING}")
        + bridge("/narrow", f"tcp://127.0.0.1:{PORT}", "WebSocketBridgeAllow tcp://127.0.0.1:1")
        + """
        <LocationMatch "^/match/(?<port>\\d+)$">
            SetHandler websocket-handler
            WebSocketBridge "tcp://127.0.0.1:%{env:MATCH_PORT}"
        </LocationMatch>
        """
        + bridge("/broken", "tcp://127.0.0.1:%{unescape:%{QUERY_STRING}}")
    )

    def test_allowed(self, listen, ws):
        peer = listen()
        for path, headers in (
            (f"/any?tcp://127.0.0.1:{peer.port}", []),
            (f"/any?tcp://[::ffff:127.0.0.1]:{peer.port}", []),
            ("/header", [("X-Host", "127.0.0.1"), ("X-Port", str(peer.port))]),
            (f"/match/{peer.port}", []),
        ):
            client = ws(path, headers)
            connection = peer.accept()
            client.send(frame(BINARY, b"there"))
            assert read_exactly(connection, 5) == b"there"

    def test_a_socket_below_a_folder(self, httpd, ws):
        folder = httpd.root / "trail/below"
        folder.mkdir(mode=0o755, exist_ok=True)
        with socket.socket(socket.AF_UNIX) as peer:
            peer.bind(str(folder / "it"))
            (folder / "it").chmod(0o777)
            peer.listen()
            ws("/socket?it")
            peer.accept()

    @pytest.mark.parametrize(
        "path",
        [
            "/any?",
            "/any?localhost:{port}",
            "/any?tcp://localhost:{port}",
            "/any?tcp://127.0.0.1:80",
            "/any?tcp://127.0.0.1:{port}:80",
            "/any?tcp://127.0.0.1:{port}/x",
            "/any?tcp://127.0.0.1:{port}%0d%0a",
            "/any?tcp://127.0.0.1:+{port}",
            "/any?tcp://x@127.0.0.1:{port}",
            "/any?tcp://127.1:{port}",
            "/any?tcp://0x7f000001:{port}",
            "/any?tcp://2130706433:{port}",
            "/any?tcp://127.0.0.2:{port}",
            "/any?tcp://[::1]:{port}",
            "/any?udp://127.0.0.1:{port}",
            "/any?unix:///etc/passwd",
            "/any?unix://{root}/trail/below",
            "/any?unix://{root}/trail/below/../stream",
            "/any?unix://{root}/trail/belowx/it",
            "/any?unix-dgram://{root}/trail/below/it",
            "/any?unix://trail/below/it",
            "/socket?",
            "/socket?../stream",
            "/socket?a/../../stream",
            "/socket?/it",
            "/narrow?{port}",
        ],
    )
    def test_not_allowed(self, httpd, listen, connect, path):
        peer = listen()
        path = path.format(port=peer.port, root=httpd.root)
        assert connect().ask(path).status == 403
        assert "WS0502: refused: " in httpd.new_log()

    @pytest.mark.parametrize("value", ["%0a", "%0d%0aX:y", "%00", "%2f..", "1%20", "%e2%82%ac", "%ff"])
    def test_odd_bytes(self, httpd, connect, value):
        response = connect().ask(f"/broken?2000{value}")
        assert response.status in (403, 500, 502)
        if response.status != 403:
            httpd.expect_log("WS050[18]")

    def test_a_header_cannot_add_a_host(self, httpd, listen, connect):
        peer = listen()
        for host, port in (
            ("127.0.0.1:80/", peer.port),
            ("evil.example", 80),
            ("127.0.0.1", ""),
            ("", peer.port),
            ("127.0.0.1", "80 "),
            ("127.0.0.1\t", peer.port),
        ):
            response = connect().ask("/header", [("X-Host", host), ("X-Port", str(port))])
            # httpd trims the values of fields.
            assert response.status == (403 if host != "127.0.0.1\t" else 101)


@pytest.mark.once
class TestProtocols:
    CONF = (
        ALLOW
        + "\n"
        + bridge("/unset", f"tcp://127.0.0.1:{PORT}")
        + bridge("/none", f"tcp://127.0.0.1:{PORT}", "WebSocketBridgeProtocol none")
        + bridge("/first", f"tcp://127.0.0.1:{PORT}", "WebSocketBridgeProtocol *")
        + bridge("/named", f"tcp://127.0.0.1:{PORT}", "WebSocketBridgeProtocol Binary")
    )

    @pytest.mark.parametrize(
        "path, offered, announced",
        [
            ("/unset", None, None),
            ("/unset", "binary", None),
            ("/none", "binary", None),
            ("/first", None, None),
            ("/first", "chat, binary", "chat"),
            ("/named", None, None),
            ("/named", "chat, binary", "binary"),
            ("/named", "chat", None),
        ],
    )
    def test_subprotocols(self, listen, connect, path, offered, announced):
        peer = listen()
        headers = [("Sec-WebSocket-Protocol", offered)] if offered else []
        response = connect().upgrade(f"{path}?{peer.port}", headers)
        assert response.headers.get("sec-websocket-protocol") == announced


@pytest.mark.once
class TestProxyProtocol:
    CONF = (
        ALLOW
        + "\nWebSocketBridgeProxyProtocol v2\n"
        + bridge("/tcp", f"tcp://127.0.0.1:{PORT}")
        + bridge("/off", f"tcp://127.0.0.1:{PORT}", "WebSocketBridgeProxyProtocol Off")
        + bridge("/udp", f"udp://127.0.0.1:{PORT}")
    )

    def test_ipv4(self, httpd, listen, ws):
        peer = listen()
        client = ws(f"/tcp?{peer.port}")
        client.send(frame(TEXT, "hello"))
        own = socket.inet_aton("127.0.0.1")
        ports = struct.pack("!HH", client.sock.getsockname()[1], httpd.port)
        header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + own + own + ports
        assert read_exactly(peer.accept(), len(header) + 5) == header + b"hello"

    def test_ipv6(self, httpd, listen, connect):
        if not httpd.ipv6:
            pytest.skip("no IPv6")
        peer = listen()
        client = connect(host="::1")
        client.upgrade(f"/tcp?{peer.port}")
        own = socket.inet_pton(socket.AF_INET6, "::1")
        ports = struct.pack("!HH", client.sock.getsockname()[1], httpd.port)
        header = b"\r\n\r\n\0\r\nQUIT\n\x21\x21\0\x24" + own + own + ports
        assert read_exactly(peer.accept(), len(header)) == header

    def test_off(self, listen, ws):
        peer = listen()
        client = ws(f"/off?{peer.port}")
        client.send(frame(TEXT, "hello"))
        assert read_exactly(peer.accept(), 5) == b"hello"

    def test_not_for_datagrams(self, ws):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
            peer.bind(("127.0.0.1", 0))
            peer.settimeout(5)
            ws(f"/udp?{peer.getsockname()[1]}").send(frame(TEXT, "hello"))
            assert peer.recv(100) == b"hello"


@pytest.mark.once
class TestSections:
    CONF = (
        echo("/plugin")
        + bridge("/plugin/bridge", f"tcp://127.0.0.1:{PORT}", ALLOW)
        + echo("/plugin/bridge/plugin")
    )

    def test_the_inner_endpoint_wins(self, listen, ws):
        peer = listen()
        for path in ("/plugin", "/plugin/bridge/plugin"):
            client = ws(path)
            client.send(frame(TEXT, "echo"))
            client.expect(TEXT, "echo")
        ws(f"/plugin/bridge?{peer.port}").send(frame(TEXT, "relayed"))
        assert read_exactly(peer.accept(), 7) == b"relayed"


class TestResources:
    CONF = site()

    @pytest.mark.skipif(not DETACHED, reason="each connection holds a thread")
    def test_no_thread_and_two_descriptors_each(self, httpd, listen, ws):
        peer = listen()
        clients = [ws(f"/tcp?{peer.port}") for _ in range(20)]
        connections = [peer.accept() for _ in clients]
        for client, connection in zip(clients, connections):
            client.send(frame(BINARY, b"there"))
            assert read_exactly(connection, 5) == b"there"
            connection.sendall(b"back")
            client.expect(BINARY, b"back")
        children = collections.Counter(map(httpd.child_of, clients))
        child, count = children.most_common(1)[0]
        threads, descriptors = httpd.threads(child), httpd.descriptors(child)
        for client in clients:
            client.close()
        wait_until(lambda: httpd.descriptors(child) <= descriptors - 2 * count, 5, "two descriptors each")
        assert descriptors - httpd.descriptors(child) <= 2 * count + 2
        assert threads - httpd.threads(child) <= 3

    @pytest.mark.parametrize("way", WAYS)
    def test_descriptors_are_given_back(self, httpd, listen, dial, way):
        peer = listen()
        with dial(way, peer.port) as client:
            child = httpd.child_of(client)
            peer.accept().close()
            client.expect_close(1000)

        def descriptors():
            return sum(map(httpd.descriptors, httpd.children()))

        httpd.settle()
        before = descriptors()
        for n in range(40):
            client = dial(way, peer.port)
            connection = peer.accept()
            if n % 4 == 0:
                client.close()
                assert connection.recv(1) == b""
            elif n % 4 == 1:
                connection.close()
                client.expect_close(1000)
            elif n % 4 == 2:
                reset(connection)
                client.expect_close(1011)
            else:
                client.reset()
            client.sock.close()
            connection.close()
        assert child in httpd.children()
        # Threads that a threaded MPM starts meanwhile have a few of their own.
        wait_until(lambda: descriptors() <= before + 10, 6, "the descriptors")

    @pytest.mark.timing
    def test_a_slow_peer_holds_nobody_up(self, httpd, listen, connect, ws):
        """While a peer does not answer the connect, others are served."""
        full = listen(backlog=0)
        fillers = fill_queue(full)
        httpd.expect_log(f"WS0501: no connection to tcp://127.0.0.1:{full.port}")
        waiting = connect()
        waiting.send(waiting.request(f"/tcp?{full.port}"))
        time.sleep(0.1)
        peer = listen()
        begun = time.monotonic()
        client = ws(f"/tcp?{peer.port}")
        connection = peer.accept()
        client.send(frame(BINARY, b"there"))
        assert read_exactly(connection, 5) == b"there"
        assert time.monotonic() - begun < 1
        for filler in fillers:
            filler.close()
        full.sock.close()
        assert waiting.read_response().status in (502, 504)


@pytest.mark.timing
class TestWaiting:
    """A peer that does not answer the connect: its client's thread waits, no longer than somebody wants it to."""

    @pytest.fixture
    def full(self, httpd, listen, request):
        """The path that leads to such a peer."""
        socket_file = httpd.root / "trail/stream"
        if getattr(request, "param", None) == "unix":
            socket_file.unlink(missing_ok=True)
            peer = listen(socket.AF_UNIX, str(socket_file), backlog=0)
            socket_file.chmod(0o777)
        else:
            peer = listen(backlog=0)
        fillers = fill_queue(peer)
        yield f"/tcp?{peer.port}" if peer.port else "/unix"
        for filler in fillers:
            filler.close()
        socket_file.unlink(missing_ok=True)

    @pytest.mark.parametrize("full", ["tcp", "unix"], indirect=True)
    @pytest.mark.parametrize("end", ENDS)
    def test_the_childs_end(self, httpd, connect, full, end):
        with httpd.serve("Timeout 60\nWebSocketDrainTime 300ms\n" + site()):
            clients = [connect() for _ in range(3)]
            for client in clients:
                client.send(client.request(full))
            # An idle process of prefork's may hear of a graceful end ten seconds late.
            old = {httpd.child_of(client) for client in clients}
            time.sleep(0.5)
            begun = time.monotonic()
            httpd.tell(ENDS[end])
            wait_until(lambda: not old & set(httpd.children()), 8, "the children's end")
            # httpd looks at its children once a second, and prefork's hear of a graceful end as seldom.
            assert time.monotonic() - begun < (4.5 if "graceful" in end else 2.5)
            if "graceful" in end:
                assert all(client.read_response().status == 503 for client in clients)
            if "restart" in end:
                httpd.renewed()
            else:
                httpd.stop(ENDS[end], timeout=14)

    def test_the_clients_end(self, httpd, connect, full):
        with httpd.serve(site() + STATUS):

            def at_work():
                """How many of httpd's workers are, but for the one that tells."""
                return re.search("^Scoreboard: (.*)$", httpd.status("?auto"), re.MULTILINE)[1].count("W") - 1

            clients = [connect() for _ in range(4)]
            for client in clients:
                client.send(client.request(full))
            wait_until(lambda: at_work() == 4, 3, "four workers that wait")
            clients[0].reset()
            clients[1].sock.close()
            wait_until(lambda: at_work() == 2, 2, "the return of two of them")
            gone = "WS0501: no connection.*before the client went away"
            assert len(re.findall(f"websocket:info.*{gone}", httpd.new_log())) == 2
            # Who has waited for longer shows that the peer does not answer.
            time.sleep(1)
            for client in clients[2:]:
                client.reset()
            httpd.expect_log(f"websocket:error.*{gone}")
            wait_until(lambda: at_work() == 0, 2, "the return of all")


@pytest.mark.skipif(PREFORK, reason="one look-up a process")
class TestResolver:
    def test_one_that_hangs(self, httpd, connect):
        """Nobody can end a look-up, and each one has a thread: a child has no more than 64."""
        slow = bridge("/slow", "tcp://host.slow:1", "WebSocketBridgeFraming binary")
        resolver = {"LD_PRELOAD": str(httpd.plugins / "slow_resolver.so")}
        no_connection = "WS0501: no connection to tcp://host.slow:1"
        with httpd.serve(ONE_CHILD + slow, env=resolver):
            httpd.allow_log(f"{no_connection}: no answer before the client went away")
            (child,) = httpd.children()
            for begun in range(0, 64, 16):
                clients = [connect() for _ in range(16)]
                for client in clients:
                    client.send(client.request("/slow"))
                wait_until(lambda n=begun: httpd.threads(child, "ws-resolver") == n + 16, 5, "the look-ups")
                for client in clients:
                    client.reset()
                # The next ones need their workers.
                gone = "before the client went away"
                wait_until(lambda n=begun: httpd.new_log().count(gone) == n + 16, 5, "the return of their workers")
            httpd.expect_log(f"websocket:error.*{no_connection}: 64 names are being looked up")
            for _ in range(3):
                answer = connect().ask("/slow")
                assert (answer.status, answer.headers["retry-after"]) == (503, "10")
            assert httpd.threads(child, "ws-resolver") == 64
            assert len(re.findall("websocket:error.*64 names are being looked up", httpd.new_log())) == 1


class TestChildEnds:
    @pytest.mark.parametrize("way", WAYS)
    def test_drain(self, httpd, listen, dial, way):
        with httpd.serve(site()):
            peer = listen()
            clients = [dial(way, peer.port) for _ in range(5)]
            connections = [peer.accept() for _ in clients]
            httpd.tell(signal.SIGUSR1)
            for client, connection in zip(clients, connections):
                client.expect_close(1001)
                assert connection.recv(1) == b""
            httpd.renewed()

    @pytest.mark.parametrize("way", WAYS)
    def test_drain_before_a_connections_turn(self, httpd, listen, dial, way):
        """A peer that pauses has as long as ever. The turn comes by chance, hardly within a second of so many hours."""
        with httpd.serve("WebSocketDrainTime 1000h\n" + site()):
            peer = listen()
            client = dial(way, peer.port)
            connection = peer.accept(rcvbuf=4096)
            data = random_bytes(20_000_000)
            sender = threading.Thread(target=client.send, args=(frame(BINARY, data),))
            sender.start()
            httpd.graceful()
            time.sleep(1.2)
            assert read_exactly(connection, len(data)) == data
            sender.join(10)
            httpd.stop()

    @pytest.mark.timing
    @pytest.mark.parametrize("way", WAYS)
    def test_a_pause_before_a_connections_turn(self, httpd, listen, dial, way):
        """It does not count: a peer has 0.7 s from the turn on."""
        with httpd.serve("WebSocketDrainTime 1ms\n" + site()):
            peer = listen()
            peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # that of its connections, from the start
            client = dial(way, peer.port)
            connection = peer.accept()
            data = random_bytes(3_000_000)
            client.send(frame(BINARY, data))
            time.sleep(2.5)  # a peer is looked at once a second
            httpd.tell(signal.SIGUSR1)
            time.sleep(0.3)
            assert read_exactly(connection, len(data)) == data
            client.expect_close(1001)
            httpd.renewed()

    @pytest.mark.timing
    @pytest.mark.parametrize("way", WAYS)
    def test_stop(self, httpd, listen, dial, way):
        """Also with a peer that does not read what waits for it."""
        with httpd.serve(site()):
            peer = listen()
            client, stuck = dial(way, peer.port), dial(way, peer.port)
            connections = [peer.accept(rcvbuf=4096) for _ in range(2)]
            stuck.sock.settimeout(0.5)
            with pytest.raises(TimeoutError):
                while True:
                    stuck.send(frame(BINARY, bytes(100_000)))
            begun = time.monotonic()
            httpd.stop()
            assert time.monotonic() - begun < 5
            if way == "usual" or httpd.mpm == "prefork":
                client.expect_close(1001)
            assert connections[0].recv(1) == b""


@pytest.mark.once
class TestConfiguration:
    @pytest.mark.parametrize(
        "line, words",
        [
            ("WebSocketBridge 127.0.0.1:80", ["has no scheme", "tcp://host:port"]),
            ("WebSocketBridge http://127.0.0.1:80", ["unknown scheme"]),
            ("WebSocketBridge tcp://127.0.0.1", ["lacks a port"]),
            ("WebSocketBridge tcp://127.0.0.1:65536", ["no valid port"]),
            ("WebSocketBridge tcp://::1:80", ["IPv6", "brackets"]),
            ("WebSocketBridge tcp://127.1:80", ["neither a name nor an IP address"]),
            ("WebSocketBridge unix:///run/../x", ["no plain path"]),
            ("WebSocketBridge fifotx:///x", ["unknown scheme"]),
            ('WebSocketBridge "tcp://%{nonsense"', ["expression"]),
            ('WebSocketBridge "tcp://127.0.0.1:%{QUERY_STRING}"', ["WebSocketBridgeAllow", "expression"]),
            ("WebSocketBridgeAllow 127.0.0.1:80", ["has no scheme"]),
            ("WebSocketBridgeAllow tcp://127.0.0.1", ["lacks a port"]),
            ("WebSocketBridgeAllow tcp://*:80", ["no valid host name"]),
            ("WebSocketBridgeAllow tcp://127.0.0.1:9-1", ["write 1-9"]),
            ("WebSocketBridgeAllow unix://x", ["begin with /"]),
            ("WebSocketBridgeFraming nonsense", ["no framing 'nonsense'"]),
            ("WebSocketBridgeProtocol a,b", ["no subprotocol"]),
            ("WebSocketBridgeConnectTimeout 0", ["a time such as"]),
            ("WebSocketBridgeConnectTimeout soon", ["a time such as"]),
            ("WebSocketBridgeProxyProtocol v1", ["none of Off, v2"]),
            ("WebSocketBridgeMaxPieceSize 0", ["a number of bytes"]),
        ],
    )
    def test_mistakes(self, httpd, line, words):
        conf = f"<Location /x>\nSetHandler websocket-handler\n{line}\n</Location>\n"
        httpd.check(conf).refused(line.split()[0], *words, at=line)

    def test_a_plugin_and_a_bridge(self, httpd):
        for order in (1, -1):
            lines = [
                'WebSocketHandler "${EXAMPLES}/mod_websocket_echo.so" echo_init',
                "WebSocketBridge tcp://127.0.0.1:80",
            ][::order]
            conf = "<Location /x>\n" + "\n".join(lines) + "\n</Location>\n"
            httpd.check(conf).refused("WebSocketHandler and a WebSocketBridge: remove one", at=lines[1])

    def test_not_in_htaccess(self, httpd, connect):
        folder = httpd.root / "htdocs/htaccess"
        folder.mkdir(exist_ok=True)
        conf = """
            <Directory "${ROOT}/htdocs/htaccess">
                AllowOverride All
            </Directory>
        """
        with httpd.serve(conf):
            for line in ("WebSocketBridge tcp://127.0.0.1:80", "WebSocketBridgeAllow tcp://127.0.0.1:80"):
                (folder / ".htaccess").write_text(f"SetHandler websocket-handler\n{line}\n")
                assert connect().ask("/htaccess/").status == 500
            httpd.expect_log("WebSocketBridge not allowed here")
            httpd.expect_log("WebSocketBridgeAllow not allowed here")

    def test_a_list_for_the_whole_server(self, httpd):
        assert httpd.check(ALLOW + "\n" + bridge("/x", f"tcp://127.0.0.1:{PORT}")).ok

    def test_a_relative_path_is_below_the_server_root(self, httpd, ws):
        path = httpd.root / "trail/relative"
        path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as peer, httpd.serve(bridge("/x", "unix://trail/relative")):
            peer.bind(str(path))
            path.chmod(0o777)
            peer.listen()
            ws("/x")
            peer.accept()
