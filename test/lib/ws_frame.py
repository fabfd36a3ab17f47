"""RFC 6455 by hand: frames as bytes and a client that may break every rule.

Nothing here protects the caller from sending nonsense: that is what it is for. Reading is strict
instead: a server frame that is masked or uses a reserved bit fails the test that reads it.
"""

import base64
import hashlib
import os
import socket
import ssl
import struct
import time
from typing import NamedTuple

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
MASK = b"\x37\xfa\x21\x3d"
EXAMPLE_KEY = "dGhlIHNhbXBsZSBub25jZQ=="  # RFC 6455 §1.3


def accept_key(key):
    """The Sec-WebSocket-Accept value that belongs to `key` (RFC 6455 §4.2.2)."""
    return base64.b64encode(hashlib.sha1(key.encode() + GUID).digest()).decode()


def xor(data, mask):
    """`data` masked with the four bytes of `mask` (its own inverse)."""
    size = len(data)
    key = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(data, "big") ^ int.from_bytes(key, "big")).to_bytes(size, "big")


def frame(opcode, payload=b"", fin=True, rsv=0, mask=MASK, length=None, form=None):
    """One frame. `mask=None` sends it unmasked; `length` overrides the length that the header
    claims; `form` forces its encoding to 7, 16 or 64 bits (RFC 6455 §5.2)."""
    if isinstance(payload, str):
        payload = payload.encode()
    length = len(payload) if length is None else length
    form = form or (7 if length < 126 else 16 if length < 1 << 16 else 64)
    bit = 0x80 if mask else 0
    head = bytes([(0x80 if fin else 0) | rsv << 4 | opcode])
    if form == 7:
        head += bytes([bit | length])
    elif form == 16:
        head += struct.pack("!BH", bit | 126, length)
    else:
        head += struct.pack("!BQ", bit | 127, length)
    return head + mask + xor(payload, mask) if mask else head + payload


def close_frame(code=None, reason="", **kw):
    """A Close frame; without a code its payload is empty."""
    return frame(CLOSE, b"" if code is None else struct.pack("!H", code) + reason.encode(), **kw)


class Frame(NamedTuple):
    """A frame as the server sent it."""

    opcode: int
    payload: bytes
    fin: bool

    @property
    def code(self):
        """The status code of a Close frame; 1005 if it carries none (RFC 6455 §7.1.5)."""
        return struct.unpack("!H", self.payload[:2])[0] if self.payload else 1005


class Response(NamedTuple):
    """The head of the server's answer; header names are in lower case."""

    status: int
    headers: dict
    head: str


class Refused(Exception):
    """The server answered the opening handshake with something else than 101."""

    def __init__(self, response):
        super().__init__(f"handshake answered with {response.status}")
        self.response = response


class Client:
    """A socket, what was read from it ahead, and a deadline for every read."""

    headers = ()  # of every handshake, beside a test's own

    def __init__(self, port, host="127.0.0.1", tls=None, timeout=15.0, rcvbuf=None, source=None):
        self.timeout, self.port, self.buffer = timeout, port, bytearray()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.sock = socket.socket(family)
        if rcvbuf:  # has to be set before connect to bound the window
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
        self.sock.settimeout(timeout)
        if source:
            self.sock.bind((source, 0))
        self.sock.connect((host, port))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls:
            self.sock = tls.wrap_socket(self.sock, server_hostname="localhost")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.sock.close()

    # --- the opening handshake ---------------------------------------------------------------

    def request(self, path="/echo", headers=(), method="GET", http="HTTP/1.1", **replace):
        """The bytes of an opening handshake. Keywords replace a header of the usual ones
        (`_` stands for `-`), `None` leaves it out; `headers` are appended as they are."""
        fields = {
            "Host": f"localhost:{self.port}",
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Key": EXAMPLE_KEY,
            "Sec-WebSocket-Version": "13",
        }
        for name, value in replace.items():
            known = {k.lower(): k for k in fields}
            fields[known.get(name.replace("_", "-").lower(), name.replace("_", "-"))] = value
        lines = [f"{k}: {v}" for k, v in fields.items() if v is not None]
        lines += [f"{k}: {v}" for k, v in (*self.headers, *headers)]
        return "\r\n".join([f"{method} {path} {http}"] + lines + ["", ""]).encode("latin-1")

    def ask(self, path="/echo", headers=(), body=b"", **kw):
        """Sends a handshake and returns the response's head, whatever it says."""
        self.send(self.request(path, headers, **kw) + body)
        return self.read_response()

    def upgrade(self, path="/echo", headers=(), **kw):
        """Sends a handshake that has to succeed."""
        response = self.ask(path, headers, **kw)
        if response.status != 101:
            raise Refused(response)
        return response

    def read_response(self):
        end = self.fill_until(b"\r\n\r\n")
        head = bytes(self.buffer[:end]).decode("latin-1")
        del self.buffer[: end + 4]
        status, *lines = head.split("\r\n")
        headers = {}
        for line in lines:
            name, _, value = line.partition(":")
            name = name.lower()
            headers[name] = f"{headers[name]}, {value.strip()}" if name in headers else value.strip()
        return Response(int(status.split()[1]), headers, head)

    # --- bytes ---------------------------------------------------------------------------------

    def send(self, *data):
        self.sock.sendall(b"".join(data))

    def fill(self, deadline):
        """Appends what the server sent to the buffer; raises EOFError at its end."""
        self.sock.settimeout(max(deadline - time.monotonic(), 0.001))
        try:
            data = self.sock.recv(1 << 18)
        except (ConnectionResetError, BrokenPipeError, ssl.SSLEOFError, ssl.SSLZeroReturnError):
            # OpenSSL 3.5 says when reading that what was written before found nobody.
            data = b""
        except socket.timeout as late:  # another class than TimeoutError before Python 3.10
            raise TimeoutError(f"nothing came; unread: {bytes(self.buffer[:80])!r}") from late
        finally:
            self.sock.settimeout(self.timeout)
        if not data:
            raise EOFError(f"connection ended; unread: {bytes(self.buffer[:80])!r}")
        self.buffer += data

    def fill_until(self, marker):
        deadline = time.monotonic() + self.timeout
        while True:
            at = self.buffer.find(marker)
            if at >= 0:
                return at
            self.fill(deadline)

    def take(self, size, deadline):
        while len(self.buffer) < size:
            self.fill(deadline)
        data = bytes(self.buffer[:size])
        del self.buffer[:size]
        return data

    # --- frames --------------------------------------------------------------------------------

    def read_frame(self, timeout=None):
        deadline = time.monotonic() + (timeout or self.timeout)
        while len(self.buffer) < 2:
            self.fill(deadline)
        first, second = self.buffer[0], self.buffer[1]
        assert not first & 0x70, f"server used a reserved bit: {first:#04x}"
        assert not second & 0x80, "server masked a frame"
        extra = {126: 2, 127: 8}.get(second, 0)
        head = self.take(2 + extra, deadline)
        size = int.from_bytes(head[2:], "big") if extra else second
        assert not extra or size >= (126 if extra == 2 else 1 << 16), "length not minimal"
        opcode = first & 0x0F
        if opcode >= 0x8:
            assert first & 0x80 and size <= 125, "server sent an illegal control frame"
        return Frame(opcode, self.take(size, deadline), bool(first & 0x80))

    def expect(self, opcode, payload, timeout=None):
        """The next frame has to be this one."""
        if isinstance(payload, str):
            payload = payload.encode()
        got = self.read_frame(timeout)
        same = (got.opcode, got.payload, got.fin) == (opcode, payload, True)
        assert same, f"expected {opcode:#x} {payload[:60]!r}, got {got.opcode:#x} {got.payload[:60]!r}"

    def expect_close(self, code, reply=True):
        """The next frame has to be a Close with `code`; then the connection has to end."""
        got = self.read_frame()
        assert got.opcode == CLOSE, f"expected a Close, got {got.opcode:#x} {got.payload[:60]!r}"
        assert got.code == code, f"closed with {got.code} {got.payload[2:]!r}, expected {code}"
        if reply:
            try:
                self.send(close_frame(None if code == 1005 else code))
            except OSError:  # the server need not wait for the answer (RFC 6455 §7.1.7)
                pass
        self.expect_eof()
        return got

    def expect_eof(self, timeout=None):
        try:
            self.fill(time.monotonic() + (timeout or self.timeout))
        except EOFError:
            pass
        assert not self.buffer, f"more came instead of the end: {bytes(self.buffer[:80])!r}"

    def ended_with(self, timeout=None):
        """Reads to the end: the code of the last Close before it, None if there was none."""
        code = None
        while True:
            try:
                got = self.read_frame(timeout)
            except EOFError:
                return code
            code = got.code if got.opcode == CLOSE else code

    def close(self, code=1000):
        """A polite end: Close, its echo, EOF."""
        self.send(close_frame(code))
        self.expect_close(code, reply=False)

    def reset(self):
        """Vanishes with a TCP RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


def works(client, text="works"):
    """The connection echoes."""
    client.send(frame(TEXT, text))
    client.expect(TEXT, text)


def silent(client, seconds):
    """Nothing comes from the server for so long."""
    try:
        got = client.read_frame(seconds)
    except TimeoutError:
        return
    raise AssertionError(f"not silent: {got.opcode:#x} {got.payload[:60]!r}")


def random_text(size):
    """`size` bytes of printable text that no run repeats."""
    return base64.b64encode(os.urandom(size))[:size]


# Codes that a conversation ends with, each after these bytes of the client's.
LAST_WORDS = {
    1000: close_frame(1000),
    4321: close_frame(4321),
    1005: close_frame(),
    1002: frame(TEXT, rsv=4),
    1007: frame(TEXT, b"\xff"),
    1009: frame(TEXT, length=1 << 30),
}
