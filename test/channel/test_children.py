"""Channels over several children: whoever publishes, dies or restarts, subscribers get everything once or are told."""

import contextlib
import itertools
import os
import random
import signal
import threading
import time

import pytest
from channels import GAP, LIVE, META, Meta, Publisher, publish, publishing, room, subscribers
from httpd import DETACH, DETACHED, TLS, sized, wait_until
from ws_frame import CLOSE, TEXT, Refused, close_frame

pytestmark = pytest.mark.skipif(not DETACHED, reason="each connection holds a thread")
CHILDREN = """
    <IfModule mpm_prefork_module>
        ServerLimit 100
        MaxRequestWorkers 80
        StartServers 8
        MinSpareServers 4
        MaxSpareServers 80
    </IfModule>
    <IfModule !mpm_prefork_module>
        ServerLimit 16
        StartServers 4
        MaxRequestWorkers 64
        ThreadsPerChild 8
        MinSpareThreads 32
        MaxSpareThreads 64
    </IfModule>
"""
CONF = (
    DETACH + "WebSocketDrainTime 500ms\n" + CHILDREN + TLS + publishing() + LIVE
    + room("^/all/(?<name>.*)$", "%{env:MATCH_NAME}", "WebSocketChannelReplay All")
)
names = iter(f"room{n}" for n in range(1000))


@pytest.fixture
def channel():
    return next(names)


class Subscriber(threading.Thread):
    """A client that comes back with the id of its last message whenever its connection ends, until it is told to stop: what
    it got."""

    def __init__(self, over, kind, path):
        super().__init__(daemon=True)
        self.over, self.kind, self.path = over, kind, path
        self.got, self.gaps, self.last, self.ends, self.comes = [], 0, None, False, 0

    def run(self):
        while not self.ends:
            with contextlib.suppress(OSError, EOFError, Refused):
                headers = [("Sec-WebSocket-Protocol", META)]
                if self.last:
                    headers.append(("Last-Event-ID", self.last))
                client = self.over(self.kind, self.path, headers)
                self.comes += 1
                self.read(client)
            time.sleep(0.02)

    def read(self, client):
        while not self.ends:
            try:
                got = client.read_frame(0.5)
            except TimeoutError:
                continue
            if got.opcode == CLOSE:
                client.send(close_frame(got.code))
                return
            if got.opcode == TEXT:
                message = Meta.of(got)
                if message.media == GAP:
                    self.gaps += 1
                else:
                    self.got.append(int(message.body))
                    self.last = message.id


@pytest.fixture
def subscriber(over):
    """Begins such clients, and ends them."""
    begun = []

    def begin(kind, path):
        begun.append(Subscriber(over, kind, path))
        begun[-1].start()
        wait_until(lambda: begun[-1].comes, 5, "a subscriber's handshake")
        return begun[-1]

    yield begin
    for one in begun:
        one.ends = True
    for one in begun:
        one.join(5)


@pytest.mark.parametrize("kind", ["ws", "wss"])
def test_every_child_hears_every_child(httpd, over, channel, kind):
    clients = [over(kind, f"/live/{channel}") for _ in range(24)]
    assert len({httpd.child_of(client) for client in clients}) > 1
    for n in range(60):
        # Each on a connection of its own, to whichever child.
        assert publish(httpd, channel, f"{n}")["subscribers"] == 24
    for client in clients:
        for n in range(60):
            client.expect(TEXT, f"{n}")


def test_those_of_a_child_that_died_do_not_count(httpd, over, channel):
    clients = [over("ws", f"/live/{channel}") for _ in range(24)]
    assert subscribers(httpd, channel) == 24
    victim = httpd.child_of(clients[0])
    left = sum(httpd.child_of(client) != victim for client in clients)
    httpd.allow_log(r"AH00052: child pid \d+ exit signal Killed")
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: subscribers(httpd, channel) == left)
    for client in clients:
        client.sock.close()
    wait_until(lambda: subscribers(httpd, channel) == 0)


def test_a_publisher_killed_at_any_moment(httpd, over, subscriber, channel):
    """Nobody hangs, nothing is torn, and no channel shows another's."""
    httpd.allow_log(r"AH00052: child pid \d+ exit signal Killed")
    httpd.allow_log("AH00161|AH00286|AH1039[23]|AH10159|AH03490|AH03269|AH00484|AH00485|AH00288")
    heard = subscriber("ws", f"/all/{channel}")
    ends, sent, numbers = threading.Event(), [], itertools.count()

    def publishes(name, mark):
        while not ends.is_set():
            with contextlib.suppress(Exception), Publisher(httpd.port) as publisher:
                while not ends.is_set():
                    # Of one that is not answered it is not known whether it was published.
                    number = mark + next(numbers)
                    answer = publisher.post(name, f"{number}")
                    sent.append((answer["channel"], number, answer["id"]))

    threads = [threading.Thread(target=publishes, args=args)
               for args in [(channel, 1_000_000_000), (channel + "x", 2_000_000_000)] * 2]
    for thread in threads:
        thread.start()
    try:
        for _ in range(sized(12, 1000)):
            time.sleep(random.uniform(0.02, 0.15))
            with contextlib.suppress(IndexError, ProcessLookupError):
                os.kill(random.choice(httpd.children()), signal.SIGKILL)
    finally:
        ends.set()
        for thread in threads:
            thread.join(15)
    assert not any(thread.is_alive() for thread in threads)
    # Those that were answered have all arrived, though others may have: a publisher died before it could answer.
    own = [(number, id) for name, number, id in sent if name == channel]
    assert own
    wait_until(lambda: {number for number, _ in own} <= set(heard.got) or heard.gaps, 15, "what was published")
    assert all(1_000_000_000 <= number < 2_000_000_000 for number in heard.got)
    if not heard.gaps:
        answered = {number for number, _ in own}
        assert [n for n in heard.got if n in answered] == [n for n, _ in sorted(own, key=lambda one: int(one[1].split("-")[1]))]
    # It goes on.
    publish(httpd, channel, "1")
    wait_until(lambda: heard.got[-1:] == [1], 10, "the last one")


@pytest.mark.timing
def test_graceful_restarts_under_load(httpd, subscriber, channel):
    heard = [subscriber(kind, f"/all/{channel}") for kind in ("ws", "wss") * 3]
    ends, count = threading.Event(), 0

    def publishes():
        nonlocal count
        while not ends.is_set():
            with contextlib.suppress(OSError), Publisher(httpd.port) as publisher:
                for _ in range(20):
                    publisher.post(channel, f"{count}")
                    count += 1
                    time.sleep(0.002)

    thread = threading.Thread(target=publishes)
    thread.start()
    try:
        for _ in range(sized(3, 10)):
            time.sleep(0.5)
            httpd.graceful()
    finally:
        time.sleep(0.5)
        ends.set()
        thread.join(10)
    publish(httpd, channel, "-1")
    for one in heard:
        wait_until(lambda: one.got[-1:] == [-1], 15, "the last message")
        assert one.gaps == 0 and one.comes > 1
        # Once each; of a POST that was not answered it is not known, so a number may come twice.
        numbers = [n for n in one.got if n >= 0]
        assert numbers == heard[0].got[:-1] and sorted(set(numbers)) == list(range(count))
        assert len(numbers) <= count + 20
