"""Clients that mean no good: many of them, which one thread looks after, ten times a second.

An `Attack` says what its clients send and read, and `Attackers` are the clients. Who is closed comes again at the next
look, so an attack lasts as long as it is asked for, through restarts of the server as well.
"""

import contextlib
import itertools
import select
import socket
import ssl
import time
import zlib
from typing import NamedTuple

from peers import random_bytes, reset
from ws_frame import BINARY, PING, TEXT, Client, Refused, frame

LOOK = 0.1  # seconds from one look to the next
LATER = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
BUFFER = 4096  # of a client's socket, for what it receives: soon full
RSV1 = 4  # as ws_frame counts the reserved bits


class Attack(NamedTuple):
    """What each of its clients does."""

    path: str
    first: list = ()  # what it sends after the handshake
    then: list = ()  # what it sends next, over and over
    sends: int = 8  # pieces at a look, as far as the server takes them
    reads: int = 0  # bytes at a look, at most
    headers: list = ()  # of the handshake


def packed(data):
    """The payload of a compressed message."""
    compressor = zlib.compressobj(1, zlib.DEFLATED, -15)
    return (compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


# The paths are those of what the attack needs: the echo, the debug plugin, a bridge to a `Source`. What is sent is random,
# so that it is not smaller when it is compressed.


def equal_echoes(path, reads=0):
    return Attack(path, then=[frame(BINARY, random_bytes(300_000))], reads=reads)


def mixed_echoes(path, reads=0):
    return Attack(path, then=[frame(BINARY, random_bytes(n)) for n in (300_000, 100, 1_000_000, 5000)], reads=reads)


def packed_echoes(path, reads=0):
    """Smaller ones: the server's work is a hundred times that of others."""
    then = [frame(BINARY, packed(random_bytes(size)), rsv=RSV1) for size in (20_000, 300)]
    return Attack(path, then=then, reads=reads, headers=[("Sec-WebSocket-Extensions", "permessage-deflate")])


def flood(path, reads=0):
    """A plugin that answers a few bytes with gigabytes."""
    return Attack(path, then=[frame(TEXT, "flood 100000 60000")], reads=reads)


def bridge_flood(path, reads=0):
    """A peer of the bridge that does the same."""
    return Attack(path, reads=reads)


def begun(path):
    """A message whose rest never comes."""
    return Attack(path, first=[frame(BINARY, random_bytes(200_000), fin=False)])


def trickled(path, size=6):
    """A message that comes in few bytes at a time, of which each look sends `size`."""
    return Attack(path, first=[frame(BINARY, length=1_000_000)], then=[b"x" * size], sends=1)


def pings(path, reads=1 << 16):
    """Pings, whose Pongs may stay unread."""
    return Attack(path, then=[100 * frame(PING, random_bytes(125))], reads=reads)


class Attackers:
    """The clients of one attack."""

    def __init__(self, httpd, attack, count, tls=False, source=None):
        self.attack, self.count, self.source = attack, count, source
        self.tls = httpd.tls_context() if tls else None
        self.port = httpd.tls_port if tls else httpd.port
        self.clients, self.came = [], 0
        self.ends = select.poll()  # tells of what the server has closed, whether its last bytes are read or not

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for client in self.clients:
            client[0].close()

    def look(self):
        """Whoever is missing comes; all send what the server takes, and read a little."""
        while len(self.clients) < self.count:
            try:
                self.clients.append(self.new())
            except (OSError, EOFError, Refused):
                break  # busy, full or restarting: the next look tries again
            self.came += 1
            if self.source:
                self.source.look()
        ended = {fd for fd, _ in self.ends.poll(0)}
        for client in list(self.clients):
            try:
                self.go_on(client, client[0].fileno() in ended)
            except (OSError, EOFError):
                self.clients.remove(client)
                self.ends.unregister(client[0])
                client[0].close()
        if self.source:
            self.source.look()

    def new(self):
        """A client: its socket, what it is going to send, and what is left of what it has begun to."""
        with contextlib.ExitStack() as stack:
            client = stack.enter_context(Client(self.port, tls=self.tls, timeout=4, rcvbuf=BUFFER))
            client.upgrade(self.attack.path, self.attack.headers)
            client.sock.setblocking(False)
            stack.pop_all()
        self.ends.register(client.sock, select.POLLRDHUP)
        return [client.sock, itertools.chain(self.attack.first, itertools.cycle(self.attack.then)), b""]

    def go_on(self, client, has_ended):
        if has_ended:
            raise EOFError
        sock, says, left = client
        with contextlib.suppress(*LATER):
            for _ in range(self.attack.sends):
                left = left or next(says, b"")
                client[2] = left
                if not left:
                    break
                left = client[2] = left[sock.send(left):]
        with contextlib.suppress(*LATER):
            if self.attack.reads and not sock.recv(self.attack.reads):
                raise EOFError


class Rush:
    """Clients that all connect and shake hands at once and then vanish with a reset; and again at every tenth look."""

    def __init__(self, httpd, path, count):
        self.address, self.count, self.came = ("127.0.0.1", httpd.port), count, 0
        self.looks = itertools.cycle([True, *9 * [False]])
        with Client(httpd.port) as client:
            self.request = client.request(path)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def look(self):
        if next(self.looks):
            with contextlib.ExitStack() as stack:
                self.rush([stack.enter_context(socket.socket()) for _ in range(self.count)])

    def rush(self, sockets):
        """Each asks as soon as it is connected, and stays until all are answered, or for two seconds."""
        poll, waiting = select.poll(), {sock.fileno(): sock for sock in sockets}
        for sock in sockets:
            sock.setblocking(False)
            sock.connect_ex(self.address)
            poll.register(sock, select.POLLOUT)
        deadline = time.monotonic() + 2
        while waiting and time.monotonic() < deadline:
            for fd, event in poll.poll(100):
                if event == select.POLLOUT:
                    waiting[fd].send(self.request)
                    poll.modify(fd, select.POLLIN)
                    continue
                self.came += event == select.POLLIN
                poll.unregister(fd)
                del waiting[fd]
        for sock in sockets:
            reset(sock)


class Source:
    """The peer of a bridge, which sends as much as is taken; `listener` is where."""

    PIECE = random_bytes(60_000)

    def __init__(self, listener):
        self.sock, self.path = listener.sock, f"?{listener.port}"
        self.sock.setblocking(False)
        self.connections = []

    def look(self):
        with contextlib.suppress(BlockingIOError):
            while True:
                connection, _ = self.sock.accept()
                connection.setblocking(False)
                self.connections.append(connection)
        for connection in list(self.connections):
            try:
                for _ in range(8):
                    connection.send(self.PIECE)
            except BlockingIOError:
                pass
            except OSError:
                self.connections.remove(connection)
                connection.close()


def attack_until(is_over, *attacks):
    """Goes on until `is_over()`; gives how many clients came."""
    with contextlib.ExitStack() as stack:
        for attack in attacks:
            stack.enter_context(attack)
        while not is_over():
            begun = time.monotonic()
            for attack in attacks:
                attack.look()
            time.sleep(max(LOOK - (time.monotonic() - begun), LOOK / 10))
        return sum(attack.came for attack in attacks)
