"""Peers of the bridge that a test plays itself: plain sockets."""

import random
import socket
import struct

from ws_frame import BINARY, TEXT

PORT = "%{QUERY_STRING}"
ALLOW = 'WebSocketBridgeAllow tcp://127.0.0.1:* udp://127.0.0.1:* tcp://[::1]:* tcp://localhost:*'


def bridge(path, peer, *directives):
    """A Location that a peer serves."""
    lines = ["SetHandler websocket-handler", f'WebSocketBridge "{peer}"', *directives]
    return f"<Location {path}>\n" + "".join(f"    {line}\n" for line in lines) + "</Location>\n"


def random_bytes(size):
    return random.Random(size).randbytes(size)


class Listener:
    """A stream peer that listens."""

    def __init__(self, family=socket.AF_INET, address=("127.0.0.1", 0), backlog=100):
        self.sock = socket.socket(family)
        self.sock.bind(address)
        self.sock.listen(backlog)
        self.sock.settimeout(5)
        self.address = self.sock.getsockname()
        self.port = self.address[1] if family != socket.AF_UNIX else None

    def accept(self, rcvbuf=None):
        if rcvbuf:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
        connection, _ = self.sock.accept()
        connection.settimeout(10)
        return connection

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.sock.close()


def read_exactly(sock, size):
    data = bytearray()
    while len(data) < size:
        got = sock.recv(1 << 20)
        assert got, f"the stream ended after {len(data)} of {size} bytes"
        data += got
    return bytes(data)


def read_to_end(sock):
    data = bytearray()
    while got := sock.recv(1 << 20):
        data += got
    return bytes(data)


def read_messages(client, size):
    """The payloads of as many messages as have `size` bytes together."""
    data = bytearray()
    while len(data) < size:
        got = client.read_frame()
        assert got.opcode in (TEXT, BINARY), f"{got.opcode:#x} {got.payload[:60]!r} after {len(data)} of {size}"
        data += got.payload
    assert len(data) == size
    return bytes(data)


def reset(sock):
    """Ends a TCP connection with a RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def fill_queue(peer):
    """What makes a listener drop all others who connect, as long as it is open."""
    fillers = [socket.socket(peer.sock.family) for _ in range(4)]
    for filler in fillers:
        filler.setblocking(False)
        filler.connect_ex(peer.address)
    return fillers
