"""Whatever some clients do, others are served: an echo and a plain page beside each attack."""

import multiprocessing
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import attackers
import pytest
from attackers import Attackers, Rush, Source, attack_until
from httpd import DETACHED, ONE_CHILD, PREFORK, STATUS, TLS, debug, echo, location, sized
from peers import PORT, Listener, bridge, random_bytes
from ws_frame import BINARY, TEXT, frame, random_text

pytestmark = [
    pytest.mark.once,
    pytest.mark.timing,
    pytest.mark.skipif(PREFORK or not DETACHED, reason="on prefork and on httpd's threads a client has one of its own"),
]

COUNT = 120  # attackers: more of them are more than two cores can serve in the time that is asked for
BUSY = sized(40, 80)  # of those who keep processors busy
SECONDS = sized(2, 15)
LIMIT = 256 << 20  # WebSocketMemoryLimit, unless it is set
FORK = multiprocessing.get_context("fork")


class Bystander:
    """An honest client: how long its echoes and its pages take; 99 of 100 pages less than `page` seconds."""

    TEXT = random_text(20_000)

    def __init__(self, httpd, ws, page=0.1):
        self.httpd, self.client, self.most = httpd, ws("/bystander"), page
        self.echoes, self.pages, self.failed = [], [], []
        self.over = threading.Event()
        self.threads = [threading.Thread(target=self.run, args=work) for work in (
            (self.echo, self.echoes, 0.01), (self.page, self.pages, 0.02)
        )]

    def echo(self):
        # More than what any connection may hold uncounted.
        self.client.send(frame(TEXT, self.TEXT))
        self.client.expect(TEXT, self.TEXT)

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
        for what, took, most in (("echo", self.echoes, 0.25), ("page", self.pages, self.most)):
            assert len(took) > SECONDS, f"{len(took)} times {what} in {SECONDS} s"
            took.sort()
            late = took[int((len(took) - 1) * 0.99)]
            said = f"{what}: {late:.3f} s at the 99th percentile of {len(took)}, {took[-1]:.3f} at most"
            # While it waits it asks no more, so a long wait is but one of many.
            assert late < most and took[-1] < sized(1, 2), said


def attack(httpd, kind, does, count, source):
    """The attackers' process, which has to have as many clients as it should."""
    who = Rush(httpd, does, count) if kind == "rush" else Attackers(httpd, does, count, kind == "wss", source)
    who.look()
    end = time.monotonic() + SECONDS
    assert attack_until(lambda: time.monotonic() > end, who) >= count


@pytest.fixture
def beside(httpd, ws):
    """Has clients attack beside a bystander."""

    def attacked(kind, does, count=COUNT, source=None, **expected):
        # A process of their own, so that they do not hold up the bystander's client.
        process = FORK.Process(target=attack, args=(httpd, kind, does, count, source))
        with Bystander(httpd, ws, **expected):
            process.start()
            process.join(SECONDS + 30)
            assert process.exitcode == 0
            assert httpd.sums()["Memory"] <= len(httpd.children()) * LIMIT

    return attacked


OVER = pytest.mark.parametrize("kind", ["ws", "wss"])
# Buffers of the kernel that are soon full.
SITE = "Timeout 2\nSendBufferSize 16384\n" + TLS + STATUS


class TestSlowReaders:
    """Of the echo, of a plugin and of a peer of the bridge that answer much more than they were sent."""

    CONF = (
        SITE + echo("/bystander") + echo("/large", "WebSocketMaxMessageSize 1M")
        + location("/room", "${PLUGINS}/room.so", "room_init", "WebSocketSendQueueLimit 64k")
        + debug("/debug", "WebSocketSendQueueLimit 64k")
        + echo("/packed", "WebSocketMaxMessageSize 1M", "WebSocketCompression On")
        + bridge("/bridge", f"tcp://127.0.0.1:{PORT}", "WebSocketBridgeFraming binary",
                 "WebSocketBridgeAllow tcp://127.0.0.1:*")
    )

    @OVER
    @pytest.mark.parametrize("reads", [0, 1000])
    def test_large_echoes(self, beside, kind, reads):
        beside(kind, attackers.mixed_echoes("/large", reads))

    @OVER
    def test_echoes_of_one_size(self, beside, kind):
        beside(kind, attackers.equal_echoes("/large", 1000))

    @OVER
    def test_compressed_echoes(self, beside, kind):
        beside(kind, attackers.packed_echoes("/packed", 1000), BUSY)

    @OVER
    @pytest.mark.parametrize("reads", [0, 3000])
    def test_floods(self, httpd, beside, kind, reads):
        httpd.allow_log("WS0310: as many threads as may")  # which is said once a minute
        before = httpd.sums()["RefusedWaits"]
        beside(kind, attackers.flood("/debug", reads))
        assert httpd.sums()["RefusedWaits"] > before

    @OVER
    def test_the_bridge(self, beside, kind):
        with Listener(backlog=COUNT) as listener:
            source = Source(listener)
            beside(kind, attackers.bridge_flood(f"/bridge?{listener.port}", 3000), source=source)

    @pytest.mark.parametrize("reads", [0, 3000])
    def test_a_room(self, httpd, beside, reads):
        """A plugin that sends to others than the one it hears, under a lock of its own: who waits there holds up the rest."""
        httpd.allow_log("WS0309: all threads|WS0310: as many threads as may")
        beside("ws", attackers.Attack("/room", then=[frame(BINARY, random_bytes(10_000))], reads=reads))


class TestFrames:
    """What needs no plugin's help."""

    CONF = SITE + echo("/bystander") + echo(
        "/echo", "WebSocketMaxMessageSize 1M", "WebSocketMessageTimeout 1s,MinRate=500"
    )

    @OVER
    def test_unfinished_messages(self, beside, kind):
        beside(kind, attackers.begun("/echo"))

    @OVER
    def test_messages_that_come_in_drops(self, beside, kind):
        beside(kind, attackers.trickled("/echo"))

    @OVER
    @pytest.mark.parametrize("reads", [0, 1 << 16])
    def test_pings(self, beside, kind, reads):
        """Whose Pongs are read, or are not."""
        beside(kind, attackers.pings("/echo", reads), BUSY)


class TestRush:
    """Many clients that connect and shake hands at once, and then reset."""

    CONF = SITE + "ListenBacklog 2000\n" + echo("/bystander") + echo()

    def test_at_once(self, beside):
        """A page is behind all of them in the kernel's queue."""
        count = sized(300, 1000)
        beside("rush", "/echo", count, page=count / 1000)


class TestBlocking:
    """Attackers that have a thread of httpd's each, but not all of them."""

    CONF = (
        "WebSocketDetach Off\n" + SITE + ONE_CHILD + echo("/bystander")
        + echo("/large", "WebSocketMaxMessageSize 1M") + debug("/debug", "WebSocketSendQueueLimit 64k")
    )

    @OVER
    @pytest.mark.parametrize("does", [
        attackers.mixed_echoes("/large", 1000), attackers.flood("/debug", 3000), attackers.begun("/large"),
        attackers.pings("/large", 0),
    ], ids=["echoes", "floods", "unfinished messages", "unread pongs"])
    def test_as_many_as_are_let_in(self, beside, kind, does):
        beside(kind, does, count=15)


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
