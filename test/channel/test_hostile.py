"""Subscribers and publishers that mean no good, or cannot keep up: what becomes of them, and of everybody else."""

import socket
import threading
import time

import pytest
from channels import GAP, LIVE, META, Meta, Publisher, publish, publishing, room, section, subscribers
from httpd import DETACH, DETACHED, ONE_CHILD, STATUS, TLS, needs_open_files, sized, wait_until
from ws_frame import CLOSE, PING, PONG, TEXT, frame

pytestmark = pytest.mark.skipif(not DETACHED, reason="each connection holds a thread")
SMALL = "WebSocketChannelMemory 1M\nSendBufferSize 16384\nTimeout 20\n"
CONF = (
    DETACH + ONE_CHILD.replace("MaxRequestWorkers 1\n", "MaxRequestWorkers 4\n") + TLS + SMALL + STATUS + publishing() + LIVE
    + room("^/skip/(?<name>.*)$", "%{env:MATCH_NAME}", "WebSocketChannelSlowClient Skip")
    + section("^/many/(?<name>.*)$", "SetHandler websocket-handler",
              "WebSocketChannel " + " ".join(f'"%{{env:MATCH_NAME}}/{n}"' for n in range(64)))
)
names = iter(f"room{n}" for n in range(1000))
both = pytest.mark.parametrize("kind", ["ws", "wss"])


@pytest.fixture
def channel():
    return next(names)


def flood(httpd, channel, count, size=10_000):
    """Publishes so many messages, and how long each took at most."""
    longest = 0
    with Publisher(httpd.port) as publisher:
        for n in range(count):
            start = time.monotonic()
            publisher.post(channel, f"{n} ".ljust(size))
            longest = max(longest, time.monotonic() - start)
    return longest


@both
def test_who_cannot_keep_up_is_closed(httpd, over, channel, kind):
    slow, other = over(kind, f"/live/{channel}", rcvbuf=4096), over(kind, f"/live/{channel}")
    with Publisher(httpd.port) as publisher:
        for n in range(300):
            publisher.post(channel, f"{n} ".ljust(10_000))
            assert int(other.read_frame().payload) == n
    got = -1
    while (answer := slow.read_frame()).opcode == TEXT:
        # What it gets is in order, and whole.
        assert int(answer.payload) == got + 1 and len(answer.payload) == 10_000
        got += 1
    assert (answer.opcode, answer.code) == (CLOSE, 1013) and got < 200


@both
def test_who_cannot_keep_up_goes_on_if_it_may(httpd, over, channel, kind):
    headers = [("Sec-WebSocket-Protocol", META)]
    plain, slow = (over(kind, f"/skip/{channel}", extra, rcvbuf=4096) for extra in ([], headers))
    flood(httpd, channel, 300)
    publish(httpd, channel, "-1")
    numbers = []
    while (n := int(plain.read_frame().payload)) >= 0:
        numbers.append(n)
    assert numbers == sorted(set(numbers)) and numbers[-1] == 299 and len(numbers) < 250
    gaps, numbers, before = 0, [], None
    while True:
        message = Meta.of(slow.read_frame())
        # However often it was overtaken meanwhile.
        assert (before, message.media) != (GAP, GAP), "told twice of what is missing between two messages"
        before = message.media
        if message.media == GAP:
            gaps += 1
            continue
        if int(message.body) < 0:
            break
        assert gaps or int(message.body) == len(numbers)
        numbers.append(int(message.body))
    assert gaps and numbers == sorted(set(numbers)) and numbers[-1] == 299


@both
@pytest.mark.timing
def test_stalled_subscribers_cost_nobody_anything(httpd, over, channel, kind):
    child, = {httpd.child_of(over(kind, f"/live/{channel}"))}
    stalled = [over(kind, f"/live/{channel}", rcvbuf=4096) for _ in range(sized(60, 1000))]
    before = httpd.memory(child)
    reader, late, ends = over(kind, f"/live/{channel}"), [], threading.Event()

    def listens():
        while not ends.is_set():
            got = reader.read_frame()
            if b"last" in got.payload:
                return
            late.append(time.time() - float(got.payload.split()[0]))

    listener = threading.Thread(target=listens)
    listener.start()
    took = []
    with Publisher(httpd.port) as publisher:
        for _ in range(sized(300, 10_000)):
            start = time.time()
            publisher.post(channel, f"{start} ".ljust(10_000))
            took.append(time.time() - start)
            time.sleep(0.003)  # the ring has a hundred of them, and the reader has to keep up
        publisher.post(channel, "last")
    listener.join(10)
    ends.set()
    assert len(late) == len(took) and sorted(late)[len(late) * 99 // 100] < 0.5
    assert sorted(took)[len(took) * 99 // 100] < 0.5
    # 64 KiB wait for each, with OpenSSL's own for TLS, and not what was published.
    assert httpd.memory(child) - before < 200 * len(stalled) + 20_000, "KiB"


def test_one_of_64_channels_that_reads_nothing(httpd, over, channel):
    stalled, reader = over("ws", f"/many/{channel}", rcvbuf=4096), over("ws", f"/live/{channel}/7")
    for _ in range(3):
        for n in range(64):
            publish(httpd, f"{channel}/{n}", "x".ljust(10_000))
    for _ in range(3):
        assert len(reader.read_frame(1).payload) == 10_000
    stalled.sock.close()


def test_thousands_of_channels(httpd, over, channel):
    count = sized(300, 10_000)
    if count > 5000:
        needs_open_files(2 * count)
    clients = [over("ws", f"/live/{channel}/{n}") for n in range(count)]
    with Publisher(httpd.port) as publisher:
        for n in range(count):
            answer = publisher.post(f"{channel}/{n}", f"{n}")
            assert answer["subscribers"] == 1
    for n, client in enumerate(clients):
        client.expect(TEXT, f"{n}")
    for client in clients:
        client.sock.close()
    wait_until(lambda: subscribers(httpd, f"{channel}/{count - 1}") == 0)


def test_subscribers_that_come_and_go(httpd, over, channel):
    stays = over("ws", f"/live/{channel}")
    ends = threading.Event()

    def comes_and_goes(n):
        while not ends.is_set():
            client = over("wss" if n % 2 else "ws", f"/live/{channel}")
            if n % 3:
                client.read_frame()
            if n % 3 == 1:
                client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            client.sock.close()

    threads = [threading.Thread(target=comes_and_goes, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    try:
        for n in range(sized(300, 5000)):
            publish(httpd, channel, f"{n}")
            stays.expect(TEXT, f"{n}")
    finally:
        ends.set()
        with Publisher(httpd.port) as publisher:
            while any(thread.is_alive() for thread in threads):
                publisher.post(channel, "one more")
                time.sleep(0.02)
    wait_until(lambda: subscribers(httpd, channel) == 1)


@both
def test_what_a_client_says_does_not_delay_what_it_hears(httpd, over, channel, kind):
    client = over(kind, f"/live/{channel}")
    for n in range(100):
        client.send(frame(PING, b"%d" % n))
        publish(httpd, channel, f"{n}")
        got = {client.read_frame().opcode for _ in range(2)}
        assert got == {TEXT, PONG}
