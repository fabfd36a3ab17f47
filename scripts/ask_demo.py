#!/usr/bin/env python3
"""ask_demo.py PORT TLS_PORT SERVER_ROOT: asks a running demo for its page, for WebSockets: ws, wss, wss over HTTP/2, and
for channels, over WebSockets and Server-Sent Events.

It needs nothing but Python, so that it runs on a system on which nothing else is installed. The demo has to log what the
module says at level debug: whether a connection over TLS is detached is found in its log.
"""

import base64
import contextlib
import hashlib
import http.client
import os
import socket
import ssl
import struct
import sys
import time
from pathlib import Path

ECHOES = ("/echo", "/echo-rs")
HELLO = "Hello, κόσμε".encode()
# HTTP/2 (RFC 9113 §6, RFC 8441 §3).
DATA, HEADERS, SETTINGS, ACK, END_HEADERS, ENABLE_CONNECT = 0, 1, 4, 1, 4, 8


class Client:
    """A connection to the demo, over TLS if there are settings for it."""

    def __init__(self, port, tls=None):
        self.sock = socket.create_connection(("127.0.0.1", port), 10)
        if tls:
            self.sock = tls.wrap_socket(self.sock, server_hostname="localhost")

    def read(self, count):
        """Exactly so many bytes."""
        data = b""
        while len(data) < count:
            more = self.sock.recv(count - len(data))
            assert more, f"the connection ended after {data!r}"
            data += more
        return data

    def headers(self):
        """The head of an answer of HTTP/1.1."""
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += self.read(1)
        return head.decode("latin-1")

    def ask(self, path, *lines):
        request = [f"GET {path} HTTP/1.1", "Host: localhost", *lines, "", ""]
        self.sock.sendall("\r\n".join(request).encode())
        return self.headers()


def masked(payload, opcode):
    """A frame of a client's, up to 125 bytes."""
    key = os.urandom(4)
    return bytes([0x80 | opcode, 0x80 | len(payload)]) + key + bytes(b ^ key[n % 4] for n, b in enumerate(payload))


def converse(send, read):
    """A text comes back, and so does the Close."""
    for opcode, payload in ((1, HELLO), (8, struct.pack("!H", 1000))):
        send(masked(payload, opcode))
        wanted = bytes([0x80 | opcode, len(payload)]) + payload
        got = read(len(wanted))
        assert got == wanted, f"{got!r} instead of {wanted!r}"


def page(port, tls=None):
    """GET /."""
    client = Client(port, tls)
    head = client.ask("/", "Connection: close")
    assert head.startswith("HTTP/1.1 200 "), head
    body = b""
    while data := client.sock.recv(1 << 16):
        body += data
    assert b"</html>" in body.lower() or b"<title>" in body.lower(), body


def opened(path, port, tls=None):
    """A WebSocket over HTTP/1.1 (RFC 6455 §4.1)."""
    client = Client(port, tls)
    key = base64.b64encode(os.urandom(16)).decode()
    fields = "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {key}"
    head = client.ask(path, *fields)
    digest = hashlib.sha1(f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest()
    assert head.startswith("HTTP/1.1 101 ") and base64.b64encode(digest).decode() in head, head
    return client


def websocket(path, port, tls=None):
    """A WebSocket whose messages come back."""
    client = opened(path, port, tls)
    converse(client.sock.sendall, client.read)


def publish(port, path, text):
    """A POST, as curl's."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    with contextlib.closing(connection):
        connection.request("POST", path, text, {"Content-Type": "text/plain"})
        answer = connection.getresponse()
        body = answer.read()
    assert answer.status == 201, f"{answer.status}: {body!r}"


def chat(port, tls_port, tls=None):
    """A WebSocket that is subscribed gets what is published."""
    room = f"ask{os.urandom(8).hex()}"
    client = opened(f"/chat/{room}", tls_port if tls else port, tls)
    publish(port, f"/publish/chat/{room}", HELLO)
    wanted = bytes([0x81, len(HELLO)]) + HELLO
    got = client.read(len(wanted))
    assert got == wanted, f"{got!r} instead of {wanted!r}"


def news(port, tls_port, tls=None):
    """Server-Sent Events: the same."""
    client = Client(tls_port if tls else port, tls)
    head = client.ask("/news", "Accept: text/event-stream")
    assert head.startswith("HTTP/1.1 200 ") and "text/event-stream" in head, head
    text = f"asked {os.urandom(8).hex()}"
    publish(port, "/publish/news", text)
    got, wanted = b"", f"data: {text}\n\n".encode()
    while not got.endswith(wanted):
        got += client.read(1)


def http2(path, port, tls):
    """A WebSocket as a stream of HTTP/2 (RFC 8441)."""
    client = Client(port, tls)
    assert client.sock.selected_alpn_protocol() == "h2", "the server does not choose HTTP/2"

    def send(kind, flags, stream, payload):
        client.sock.sendall(struct.pack("!I", len(payload))[1:] + struct.pack("!BBI", kind, flags, stream) + payload)

    def receive():
        head = client.read(9)
        payload = client.read(int.from_bytes(head[:3], "big"))
        if head[3] == SETTINGS and not head[4] & ACK:
            send(SETTINGS, ACK, 0, b"")
        return head[3], payload

    client.sock.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    send(SETTINGS, 0, 0, b"")
    kind, payload = receive()
    offered = dict(struct.iter_unpack("!HI", payload))
    assert kind == SETTINGS and offered.get(ENABLE_CONNECT) == 1, f"no WebSockets over HTTP/2: {offered}"
    fields = {
        ":method": "CONNECT", ":protocol": "websocket", ":scheme": "https", ":path": path, ":authority": "localhost",
        "sec-websocket-version": "13",
    }
    # Each a literal that is not indexed (RFC 7541 §6.2.2).
    block = b"".join(b"\0" + b"".join(bytes([len(s)]) + s.encode() for s in field) for field in fields.items())
    send(HEADERS, END_HEADERS, 1, block)
    while kind != HEADERS:
        kind, payload = receive()
    while payload[0] & 0xE0 == 0x20:  # changes of the table's size
        payload = payload[1:]
    assert payload[0] == 0x88, f"not answered with 200: {payload!r}"  # an entry of the static table: :status 200
    unread = b""

    def read(count):
        nonlocal unread
        while len(unread) < count:
            kind, payload = receive()
            unread += payload if kind == DATA else b""
        data, unread = unread[:count], unread[count:]
        return data

    converse(lambda data: send(DATA, 0, 1, data), read)


def main():
    port, tls_port, root = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    h1 = ssl.create_default_context(cafile=root / "tls.pem")
    h2 = ssl.create_default_context(cafile=root / "tls.pem")
    h2.set_alpn_protocols(["h2"])
    failed = []

    @contextlib.contextmanager
    def step(name):
        try:
            yield
            print(f"  {name}: answers")
        except (OSError, AssertionError) as error:
            print(f"  {name}: {type(error).__name__}: {error}")
            failed.append(name)

    with step("http"):
        page(port)
    with step("https"):
        page(tls_port, h1)
    for path in ECHOES:
        with step(f"ws {path}"):
            websocket(path, port)
        with step(f"wss {path}"):
            seen = (root / "error_log").read_text(errors="replace").count("detached, TLS")
            websocket(path, tls_port, h1)
            until = time.monotonic() + 5
            while (root / "error_log").read_text(errors="replace").count("detached, TLS") <= seen:
                assert time.monotonic() < until, "it works, but is not detached"
                time.sleep(0.1)
        with step(f"wss over HTTP/2 {path}"):
            http2(path, tls_port, h2)
    for name, tls in ("", None), (" over TLS", h1):
        with step(f"a channel, WebSocket{name}"):
            chat(port, tls_port, tls)
        with step(f"a channel, events{name}"):
            news(port, tls_port, tls)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
