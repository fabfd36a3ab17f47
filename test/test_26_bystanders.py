"""Whatever some clients do, others are served: an echo and a plain page beside each attack."""

import contextlib
import itertools
import multiprocessing
import ssl
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from httpd import DETACHED, ONE_CHILD, PREFORK, STATUS, TLS, debug, echo, location, sized
from peers import random_bytes
from ws_frame import BINARY, TEXT, Client, frame

pytestmark = [
    pytest.mark.once,
    pytest.mark.timing,
    pytest.mark.skipif(PREFORK or not DETACHED, reason="on prefork and on httpd's threads a client has one of its own"),
]

COUNT = sized(120, 300)  # attackers
SECONDS = sized(5, 15)
FORK = multiprocessing.get_context("fork")
LATER = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Bystander:
    """An honest client: how long its echoes and its pages take."""

    def __init__(self, httpd, ws):
        self.httpd, self.client = httpd, ws("/bystander")
        self.echoes, self.pages, self.failed = [], [], []
        self.over = threading.Event()
        self.threads = [threading.Thread(target=self.run, args=work) for work in (
            (self.echo, self.echoes, 0.01), (self.page, self.pages, 0.05)
        )]

    def echo(self):
        self.client.send(frame(TEXT, "there"))
        self.client.expect(TEXT, "there")

    def page(self):
        assert self.httpd.get()[0] == 200

    def run(self, work, took, pause):
        while not self.over.is_set():
            begun = time.monotonic()
            try:
                work()
            except Exception as error:
                self.failed.append(error)
                return
            took.append(time.monotonic() - begun)
            time.sleep(pause)

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, kind, *_):
        self.over.set()
        for thread in self.threads:
            thread.join(20)
        if kind:
            return
        assert not self.failed, self.failed
        for what, took, most in (("echo", self.echoes, 0.25), ("page", self.pages, 0.1)):
            assert len(took) > SECONDS, f"{len(took)} times {what} in {SECONDS} s"
            took.sort()
            late = took[int(len(took) * 0.99)]
            said = f"{what}: {late:.3f} s at the 99th percentile of {len(took)}, {took[-1]:.3f} at most"
            # While it waits it asks no more, so a long wait is but one of many.
            assert late < most and took[-1] < 1, said


class Attackers:
    """Clients that send without an end, read as slowly as they like, and come again when they are closed."""

    @classmethod
    def run(cls, httpd, kind, path, says, reads):
        with contextlib.ExitStack() as stack:
            cls(httpd, stack, kind, path, says, reads).attack()

    def __init__(self, httpd, stack, kind, path, says, reads):
        self.stack, self.path, self.says, self.reads = stack, path, says, reads
        self.tls = httpd.tls_context() if kind == "wss" else None
        self.port = httpd.tls_port if self.tls else httpd.port
        self.clients = [self.client() for _ in range(COUNT)]

    def client(self):
        client = self.stack.enter_context(Client(self.port, tls=self.tls, rcvbuf=4096))
        client.upgrade(self.path)
        client.sock.setblocking(False)
        return [client.sock, itertools.cycle(self.says), b""]

    def go_on(self):
        """Sends what the server takes, and reads a little."""
        for attacker in list(self.clients):
            sock, says, left = attacker
            try:
                with contextlib.suppress(*LATER):
                    for _ in range(8):
                        left = left or next(says)
                        left = attacker[2] = left[sock.send(left):]
                with contextlib.suppress(*LATER):
                    if self.reads and not sock.recv(self.reads):
                        raise EOFError
            except (OSError, EOFError):
                self.clients.remove(attacker)
                sock.close()
                self.clients.append(self.client())

    def attack(self):
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            self.go_on()
            time.sleep(0.1)


class TestSlowReaders:
    """The echo, and a plugin that answers much more than it was sent."""

    CONF = (
        # Buffers of the kernel that are soon full.
        "Timeout 2\nSendBufferSize 16384\n" + TLS + STATUS + echo("/bystander")
        + location("/room", "${PLUGINS}/room.so", "room_init", "WebSocketSendQueueLimit 64k")
        + debug("/debug", "WebSocketSendQueueLimit 64k") + echo("/large", "WebSocketMaxMessageSize 1M")
    )

    @pytest.fixture
    def attack(self, httpd, ws):
        """Has clients attack beside a bystander."""

        def attacked(kind, path, says, reads):
            # A process of their own, so that they do not hold up the bystander's client.
            attack = FORK.Process(target=Attackers.run, args=(httpd, kind, path, says, reads))
            with Bystander(httpd, ws):
                attack.start()
                attack.join(SECONDS + 30)
                assert attack.exitcode == 0

        return attacked

    @pytest.mark.parametrize("kind", ["ws", "wss"])
    @pytest.mark.parametrize("reads", [0, 1000])
    def test_large_echoes(self, attack, kind, reads):
        attack(kind, "/large", [frame(BINARY, random_bytes(size)) for size in (300_000, 1_000_000)], reads)

    @pytest.mark.parametrize("kind", ["ws", "wss"])
    @pytest.mark.parametrize("reads", [0, 3000])
    def test_floods(self, httpd, attack, kind, reads):
        httpd.allow_log("WS0310: as many threads as may")  # which is said once a minute
        before = httpd.sums()["RefusedWaits"]
        attack(kind, "/debug", [frame(TEXT, "flood 100000 60000")], reads)
        assert httpd.sums()["RefusedWaits"] > before

    @pytest.mark.parametrize("reads", [0, 3000])
    def test_a_room(self, httpd, attack, reads):
        """A plugin that sends to others than the one it hears."""
        httpd.allow_log("WS0310: as many threads as may")
        attack("ws", "/room", [frame(BINARY, random_bytes(10_000))], reads)


class TestHonestClients:
    """Who takes what it is sent is not closed, however slow others, or we, are."""

    CONF = "Timeout 2\nWebSocketThreads 2\n" + ONE_CHILD + TLS + STATUS + debug("/debug", "WebSocketSendQueueLimit 64k")

    @pytest.mark.parametrize("kind", ["ws", "wss"])
    def test_large_answers(self, httpd, over, kind):
        """Each of them waits for room now and then, and one may do that at a time."""
        before = httpd.sums()["RefusedWaits"]
        clients = [over(kind, "/debug") for _ in range(4)]
        for client in clients:
            client.send(frame(TEXT, "flood 300 10000"))

        def read(client):
            for _ in range(300):
                client.read_frame()
            client.expect(TEXT, "sent=300")

        with ThreadPoolExecutor(4) as pool:
            for done in [pool.submit(read, client) for client in clients]:
                done.result()
        assert httpd.sums()["RefusedWaits"] == before

    @pytest.mark.parametrize("kind", ["ws", "wss"])
    def test_an_answer_that_we_write_late(self, httpd, over, kind):
        """A callback that has sent something and then sleeps longer than Timeout."""
        client = over(kind, "/debug")
        client.send(frame(TEXT, "send 10"), frame(TEXT, "sleep 8000"))
        assert len(client.read_frame().payload) == 10
        client.expect(TEXT, "ok")
        works = over(kind, "/debug")
        works.send(frame(TEXT, "version"))
        works.expect(TEXT, "1")
