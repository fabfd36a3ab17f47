"""Random conversations: clients that talk, and end in every way there is.

A conversation is as orderly as its part says: while it is, every message has to come back, and the connection may end
only with the server's Close 1001 (a restart, an idle connection). What breaks that is a `Surprise`.
"""

import collections
import contextlib
import random
import socket
import ssl
import struct
import sys
import threading
import time
import zlib

from attack import Waits
from httpd import PREFORK
from ws_frame import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, Client, close_frame, frame

EXTENSION = "permessage-deflate"
TAIL = b"\x00\x00\xff\xff"  # RFC 7692 §7.2.1: what the sender of a message cuts off
RSV1 = 4  # as ws_frame counts the reserved bits
WORDS = [b"soak ", b"storm ", b"talk ", b"reset ", b"close ", b"\xc3\xa4\xe2\x82\xac "]


class Surprise(Exception):
    """What no client should see."""


class Goodbye(Exception):
    """The server has closed the connection as it may: Close 1001."""


class Talker(Client):
    """A client that answers Pings, and compresses if the server agrees."""

    deflate = None  # the agreed parameters
    compressor = decompressor = None
    broken = False  # nothing can be sent any more
    may_end = (1001,)  # with which codes the server may close

    def greet(self, path, offer, waits, headers=()):
        """The opening handshake."""
        with waits.measured("handshake"):
            response = self.ask(path, [*headers, *([("Sec-WebSocket-Extensions", offer)] if offer else [])])
        if response.status == 503 and "retry-after" in response.headers and not waits.now:
            raise Goodbye  # it came to a child at its end
        if response.status != 101:
            raise Surprise(f"the handshake is answered with {response.status}")
        self.deflate = response.headers.get("sec-websocket-extensions")

    def pack(self, data):
        """The payload of a message, and the reserved bits of its first frame."""
        if not self.deflate:
            return data, 0
        if self.compressor is None or "client_no_context_takeover" in self.deflate:
            self.compressor = zlib.compressobj(1, zlib.DEFLATED, -15)
        packed = self.compressor.compress(data) + self.compressor.flush(zlib.Z_SYNC_FLUSH)
        return packed[: -len(TAIL)], RSV1

    def receive(self):
        """The next message: its opcode and its data."""
        while True:
            while not self.buffer:
                self.fill(time.monotonic() + self.timeout)
            packed = bool(self.buffer[0] & 0x40)
            if packed and not self.deflate:
                raise Surprise("a compressed message that nobody agreed upon")
            self.buffer[0] &= 0xBF
            got = self.read_frame()
            if got.opcode == PING:
                if not self.broken:
                    self.send(frame(PONG, got.payload))
            elif got.opcode == CLOSE:
                if got.code not in self.may_end:
                    raise Surprise(f"the server closes with {got.code} {got.payload[2:]!r}")
                raise Goodbye
            elif got.opcode != PONG:
                return got.opcode, self.unpack(got.payload) if packed else got.payload

    def unpack(self, payload):
        if self.decompressor is None or "server_no_context_takeover" in self.deflate:
            self.decompressor = zlib.decompressobj(-15)
        return self.decompressor.decompress(payload + TAIL)

    def half_close(self):
        """FIN, without TLS's own goodbye."""
        socket.socket.shutdown(self.sock, socket.SHUT_WR)

    def last_words(self):
        """Whether the server's Close 1001 is among what can still be read after an error."""
        self.broken = True
        try:
            while True:
                self.receive()
        except Goodbye:
            return True
        except (OSError, EOFError, AssertionError, Surprise, zlib.error):
            return False


class Conversations(threading.Thread):
    """One conversation after the other, until `stop` is set."""

    def __init__(self, httpd, seed, stop, tally):
        super().__init__(daemon=True)
        self.httpd, self.random, self.stop, self.tally = httpd, random.Random(seed), stop, tally
        self.context = httpd.tls_context()
        self.source = f"127.0.0.{2 + seed % 200}"
        self.deflate = True  # offer compression

    def run(self):
        while not self.stop.is_set():
            part = [time.strftime("%H:%M:%S")]
            try:
                self.converse(part)
            except Goodbye:
                self.tally.note("closed with 1001")
            except Exception as error:  # noqa: BLE001 (all of them are findings)
                self.tally.surprise(f"{', '.join(part)}: {type(error).__name__}: {error}")

    def converse(self, part):
        random = self.random
        tls, blocking = random.random() < 0.4, random.random() < 0.15
        path = ("/blocking" if blocking else "") + random.choice(("/echo", "/echo", "/threads"))
        part += ["wss" if tls else "ws", path]
        slow = random.random() < 0.1
        if random.random() < 0.05:
            self.tally.note("no handshake")
            return self.no_handshake(tls)
        port = self.httpd.tls_port if tls else self.httpd.port
        with Talker(port, tls=tls and self.context, timeout=20, rcvbuf=4096 if slow else None,
                    source=self.source) as client:
            offers = [None, EXTENSION, f"{EXTENSION}; server_no_context_takeover"] if self.deflate else [None]
            client.greet(path, random.choice(offers), self.tally.waits)
            try:
                acts = [self.message, self.message, self.fragments, self.ping, self.silence]
                if path.endswith("/threads"):
                    acts += [self.threads, self.threads]
                for _ in range(random.choice((0, 1, 1, 2, 3, 8))):
                    act = random.choice(acts)
                    part.append(act.__name__)
                    act(client)
            except (OSError, EOFError, ssl.SSLError):
                # What was sent to a connection that the server has closed meets a reset: its Close came before.
                if client.last_words():
                    raise Goodbye from None
                raise
            ends = [self.close, self.close, self.vanish, self.reset, self.half_close, self.torn_frame, self.violation]
            if path.endswith("/threads"):
                ends += [self.stop_reading, self.under_fire, self.under_fire]
                # A process of prefork's would send it to its next client.
                ends += [] if PREFORK and blocking else [self.late]
            end = random.choice(ends)
            part.append(end.__name__)
            try:
                end(client)
            except (OSError, EOFError):  # the server may have been quicker
                pass
            self.tally.note(end.__name__)
        return None

    # --- orderly -------------------------------------------------------------------------------

    def data(self, text=False):
        """Some bytes, seldom many."""
        random = self.random
        size = random.choice((0, 1, 5, 50, 125, 126, 1000, 4000, 20_000, 65_536, random.randrange(300_000)))
        if text or random.random() < 0.5:
            data = b"".join(random.choices(WORDS, k=size // 4 + 1))[:size]
            return data.decode(errors="ignore").encode()
        return random.randbytes(size)

    def send(self, client, data):
        """In one piece, or in several with pauses."""
        client.send(self.begin(client, data))

    def begin(self, client, data):
        """Sends all but the last piece, which is given."""
        random = self.random
        if random.random() < 0.8:
            return data
        for _ in range(random.randrange(1, 5)):
            cut = random.randrange(len(data) + 1)
            client.send(data[:cut])
            data = data[cut:]
            time.sleep(random.random() * 0.02)
        return data

    def echoed(self, client, sent, opcode, data):
        """Sends what has to come back as a message."""
        rest = self.begin(client, sent)
        with self.tally.waits.measured("message"):
            client.send(rest)
            got = client.receive()
        if got != (opcode, data):
            raise Surprise(f"sent {opcode} {data[:40]!r} ({len(data)}), got {got[0]} {got[1][:40]!r} ({len(got[1])})")

    def message(self, client):
        opcode = self.random.choice((TEXT, BINARY))
        data = self.data(opcode == TEXT)
        payload, rsv = client.pack(data)
        self.echoed(client, frame(opcode, payload, rsv=rsv), opcode, data)

    def fragments(self, client):
        random = self.random
        opcode = random.choice((TEXT, BINARY))
        data = self.data(opcode == TEXT)
        payload, rsv = client.pack(data)
        cuts = sorted(random.randrange(len(payload) + 1) for _ in range(random.randrange(1, 6)))
        out, start = b"", 0
        for n, cut in enumerate([*cuts, len(payload)]):
            first = n == 0
            out += frame(opcode if first else CONTINUATION, payload[start:cut], fin=n == len(cuts),
                         rsv=rsv if first else 0)
            if random.random() < 0.3:
                out += frame(PING, b"between")
            start = cut
        self.echoed(client, out, opcode, data)

    def ping(self, client):
        self.send(client, frame(PING, self.random.randbytes(self.random.randrange(126))))

    def silence(self, client):
        """Now and then longer than WebSocketPingInterval, but not as long as would be taken for death."""
        time.sleep(self.random.choice((0.01, 0.1, 0.1, 0.5, 0.5, 4.5)))
        client.send(frame(PING, b"still here"))

    def threads(self, client):
        """Threads of the plugin send while this one is being echoed to."""
        random = self.random
        count, messages, size = random.randrange(1, 5), random.randrange(1, 200), random.randrange(15, 3000)
        command, rsv = client.pack(f"go {count} {messages} {size}".encode())
        echo, rsv_echo = client.pack(b"echo")
        client.send(frame(TEXT, command, rsv=rsv), frame(BINARY, echo, rsv=rsv_echo))
        next_of, echoed = [0] * count, False
        while not echoed or next_of != [messages] * count:
            _, data = client.receive()
            if data == b"late":
                continue
            if data == b"echo":
                echoed = True
                continue
            thread, number = int(data[2:5]), int(data[8:14])
            if len(data) != size or number != next_of[thread]:
                raise Surprise(f"thread {thread}: message {number} instead of {next_of[thread]}")
            next_of[thread] += 1

    # --- disorderly ----------------------------------------------------------------------------

    def until_end(self, client):
        """Reads whatever comes."""
        deadline = time.monotonic() + client.timeout
        try:
            while True:
                client.buffer.clear()
                client.fill(deadline)
        except TimeoutError:
            raise Surprise("the server does not end the connection") from None
        except (EOFError, OSError):
            pass

    def close(self, client):
        """A polite end."""
        client.send(close_frame(1000))
        self.until_end(client)

    def vanish(self, client):
        client.sock.close()

    def reset(self, client):
        client.reset()

    def half_close(self, client):
        client.half_close()
        self.until_end(client)

    def torn_frame(self, client):
        whole = frame(BINARY, b"x" * self.random.randrange(1, 100_000))
        client.send(whole[: self.random.randrange(1, len(whole))])
        self.random.choice((self.vanish, self.reset, self.half_close))(client)

    def violation(self, client):
        client.send(self.random.choice((
            frame(TEXT, b"\xff"), frame(TEXT, b"x", rsv=2), frame(0xB), frame(BINARY, b"x", mask=None),
            frame(CONTINUATION, b"x"), frame(PING, b"x" * 126), struct.pack("!BBQI", 0x82, 0xFF, 1 << 62, 0),
        )))
        self.until_end(client)

    def stop_reading(self, client):
        """Threads of the plugin fill the queue; sometimes for longer than httpd's Timeout."""
        payload, rsv = client.pack(b"go 4 3000 1000")
        client.send(frame(TEXT, payload, rsv=rsv))
        time.sleep(self.random.choice((0.2, 1, 4)))
        self.random.choice((self.vanish, self.reset, self.half_close, self.until_end))(client)

    def under_fire(self, client):
        """Goes while threads of the plugin send."""
        payload, rsv = client.pack(b"go 4 2000 300")
        client.send(frame(TEXT, payload, rsv=rsv))
        for _ in range(self.random.randrange(20)):
            client.fill(time.monotonic() + client.timeout)
        self.random.choice((self.vanish, self.reset, self.half_close, self.close, self.torn_frame))(client)

    def late(self, client):
        """A thread of the plugin sends even after on_disconnect."""
        command, rsv = client.pack(b"late")
        client.send(frame(TEXT, command, rsv=rsv))
        for _ in range(self.random.randrange(30)):
            client.fill(time.monotonic() + client.timeout)
        self.random.choice((self.vanish, self.reset, self.close))(client)

    def no_handshake(self, tls):
        """Ends before there is a WebSocket."""
        random = self.random
        with socket.create_connection(("127.0.0.1", self.httpd.tls_port if tls else self.httpd.port), 20) as sock:
            if tls and random.random() < 0.5:
                sock.sendall(b"\x16\x03\x01\x02\x00\x01")  # the beginning of a ClientHello
            else:
                if tls:
                    sock = self.context.wrap_socket(sock, server_hostname="localhost")
                request = b"GET /echo HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                sock.sendall(request[: random.randrange(len(request))])
            if random.random() < 0.5:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()


class Crowd(Conversations):
    """Holds many TLS connections at once, on which it talks in turns before each ends in one of the ways there are."""

    def __init__(self, httpd, seed, size, together, tally):
        super().__init__(httpd, seed, threading.Event(), tally)
        self.size, self.together = size, together

    def converse(self, part):
        self.stop.set()  # once
        random = self.random
        part.append("crowd")
        with contextlib.ExitStack() as stack:
            clients = []
            for _ in range(self.size):
                client = Talker(self.httpd.tls_port, tls=self.context, timeout=60, source=self.source)
                clients.append(stack.enter_context(client))
                client.greet("/crowd", random.choice((None, EXTENSION)), self.tally.waits)
            self.together.wait()
            for _ in range(3 * self.size):
                act = random.choice((self.message, self.message, self.fragments, self.ping))
                act(random.choice(clients))
            self.together.wait()
            self.tally.note("in a crowd", self.size)
            for client in clients:
                end = random.choice((self.close, self.vanish, self.reset, self.half_close, self.torn_frame, self.violation))
                part[1:] = ["crowd", end.__name__]
                with contextlib.suppress(OSError, EOFError):
                    end(client)


class Tally:
    """What the conversations have met."""

    def __init__(self):
        self.lock, self.waits = threading.Lock(), Waits()
        self.counts, self.surprises = collections.Counter(), []

    def note(self, what, times=1):
        with self.lock:
            self.counts[what] += times

    def surprise(self, what):
        with self.lock:
            self.surprises.append(what)
            count = len(self.surprises)
        if count <= 100:
            print(f"soak: {what}", file=sys.stderr, flush=True)
