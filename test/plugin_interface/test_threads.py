"""Many threads that send on one connection, and clients that do not keep up."""

import queue
import re
import threading
import time

import pytest
from httpd import debug, echo, location, wait_until
from ws_frame import BINARY, CLOSE, PING, PONG, TEXT, close_frame, frame

THREADS = location("/threads", "${PLUGINS}/threads.so", "threads_init")
HAMMERED = re.compile(rb"t=(\d{3}) n=(\d{6}) ([A-Z]*)")


class Hammer:
    """Checks what `go threads messages size` sends: whole, complete, in order per thread."""

    def __init__(self, threads, messages, size):
        self.next, self.messages, self.size = [0] * threads, messages, size
        self.command = frame(TEXT, f"go {threads} {messages} {size}")

    def take(self, payload):
        match = HAMMERED.fullmatch(payload)
        assert match and len(payload) == self.size, f"mixed up: {payload[:200]!r}"
        thread, number, filling = int(match[1]), int(match[2]), match[3]
        assert number == self.next[thread], f"thread {thread}: {number} instead of {self.next[thread]}"
        assert filling == bytes([65 + thread % 26]) * len(filling)
        self.next[thread] += 1

    @property
    def done(self):
        return all(n == self.messages for n in self.next)

    def drain(self, client):
        while not self.done:
            got = client.read_frame()
            assert got.opcode == BINARY and got.fin
            self.take(got.payload)


class Sender(threading.Thread):
    """Sends what is put into its queue, so that the test's own thread can go on reading."""

    def __init__(self, client):
        super().__init__(daemon=True)
        self.client, self.queue = client, queue.Queue()
        self.start()

    def run(self):
        while True:
            data = self.queue.get()
            if data is None:
                return
            self.client.send(data)

    def finish(self):
        self.queue.put(None)
        self.join(20)
        assert not self.is_alive(), "the server does not read"


class TestHammer:
    CONF = THREADS + echo() + location(
        "/narrow", "${PLUGINS}/threads.so", "threads_init", "WebSocketSendQueueLimit 64k"
    )

    def test_while_the_client_echoes(self, ws):
        """24 threads send 1,000 messages each; the client sends every one of them back, marked,
        and the plugin's callback answers that too."""
        client, hammer = ws("/threads"), Hammer(24, 1000, 100)
        sender, echoed, answered = Sender(client), [], 0
        client.send(hammer.command)
        while not hammer.done or answered < len(echoed):
            got = client.read_frame()
            assert got.opcode == BINARY and got.fin
            if got.payload.startswith(b"again "):
                assert got.payload == echoed[answered], "echo lost or out of order"
                answered += 1
            else:
                hammer.take(got.payload)
                echoed.append(b"again " + got.payload)
                sender.queue.put(frame(BINARY, echoed[-1]))
        sender.finish()
        assert answered == 24_000
        client.close()

    @pytest.mark.parametrize("size", [15, 126, 20_000])
    def test_sizes(self, ws, size):
        client, hammer = ws("/threads"), Hammer(8, 300, size)
        client.send(hammer.command)
        hammer.drain(client)
        client.close()

    @pytest.mark.parametrize("rcvbuf", [2048, None])
    def test_queue_smaller_than_what_is_sent(self, ws, rcvbuf):
        client, hammer = ws("/narrow", rcvbuf=rcvbuf), Hammer(8, 100, 20_000)
        client.send(hammer.command)
        hammer.drain(client)
        client.close()

    def test_several_connections(self, ws):
        clients = [(ws("/threads"), Hammer(6, 500, 100)) for _ in range(6)]
        for client, hammer in clients:
            client.send(hammer.command)
        for client, hammer in clients:
            hammer.drain(client)
            client.close()

    @pytest.mark.parametrize("sent, answer", [
        (close_frame(1000), (CLOSE, b"\x03\xe8")), (frame(PING, b"me too"), (PONG, b"me too"))
    ], ids=["close", "ping"])
    def test_input_is_not_starved(self, ws, sent, answer):
        """Senders that always have more do not keep the server from reading: the answer comes
        behind what the queue and the kernel's buffers hold (100,000 messages), not at the end."""
        client, hammer = ws("/narrow"), Hammer(24, 40_000, 100)
        client.send(hammer.command)
        for _ in range(2000):
            hammer.take(client.read_frame().payload)
        client.send(sent)
        count = 0
        while (got := client.read_frame()).opcode == BINARY:
            hammer.take(got.payload)
            count += 1
        assert (got.opcode, got.payload) == answer
        assert count < 200_000, f"answered after {count} messages"
        if got.opcode == CLOSE:
            client.expect_eof()

    @pytest.mark.parametrize("end", ["reset", "eof"])
    def test_client_vanishes_in_the_middle(self, httpd, ws, end):
        ws("/echo").close()
        for n in range(5):
            client = ws(f"/threads?vanish-{end}-{n}")
            hammer = Hammer(24, 1_000_000, 100)
            client.send(hammer.command)
            for _ in range(500):
                hammer.take(client.read_frame().payload)
            client.reset() if end == "reset" else client.sock.close()
            # on_disconnect joins the senders, and the line comes after it.
            entry = httpd.access(f"/threads?vanish-{end}-{n}")[-1]
            assert 500 <= int(entry.messages_out) < 24_000_000
        client = ws("/echo")
        client.send(frame(TEXT, "still alive"))
        client.expect(TEXT, "still alive")

    @pytest.mark.parametrize("end", ["close", "reset"])
    def test_late_senders_are_harmless(self, httpd, ws, end):
        trail = httpd.trail("late")
        clients = [ws("/threads") for _ in range(10)]
        for client in clients:
            client.send(frame(TEXT, f"late {trail}"))
        for client in clients:
            client.expect(BINARY, b"late")
        for client in clients:
            if end == "reset":
                client.reset()
                continue
            client.send(close_frame(1000))
            while client.read_frame().opcode != CLOSE:
                pass
            client.expect_eof()
        lines = wait_until(
            lambda: len(httpd.trail_lines(trail)) == len(clients) and httpd.trail_lines(trail),
            10, "the late senders' end",
        )
        for line in lines:
            accepted, refused = map(int, re.findall(r"\d+", line))
            assert accepted == 0 and refused > 0, line


@pytest.mark.timing
class TestSlowClients:
    CONF = "Timeout 2\n" + THREADS + debug() + echo()

    @pytest.mark.parametrize("command", ["flood 100000 10000", "flood 100000000 100"])
    def test_given_up_after_timeout(self, httpd, ws, command):
        """The callback that sends is released, on_disconnect runs, others are not disturbed."""
        trail = httpd.trail("flood")
        slow, other = ws("/debug?slow", [("X-Debug-Trail", str(trail))], rcvbuf=4096), ws("/echo")
        start = time.monotonic()
        slow.send(frame(TEXT, command))

        def given_up():
            other.send(frame(TEXT, "meanwhile"))
            other.expect(TEXT, "meanwhile", timeout=1)
            return len(httpd.trail_lines(trail)) == 2

        wait_until(given_up, 12, "the end of the slow client")
        took = time.monotonic() - start
        sent, disconnect = httpd.trail_lines(trail)
        assert disconnect == "disconnect"
        assert 0 < int(sent.split("=")[1]) < int(command.split()[1])
        # The kernel may take some more bytes when it probes the client's window; then it counts
        # anew. The client has its chance to answer the Close after that.
        assert 1.5 < took < 9, f"given up after {took:.1f} s"
        assert httpd.access("/debug?slow")[-1].status == 101

    def test_threads_are_released(self, httpd, ws):
        slow = ws("/threads", rcvbuf=4096)
        child = httpd.child_of(slow)
        before = httpd.threads(child)
        slow.send(Hammer(24, 100_000, 10_000).command)
        wait_until(lambda: httpd.threads(child) >= before + 24, 5, "the senders")
        wait_until(lambda: httpd.threads(child) < before + 24, 8, "the end of the senders")
        other = ws("/echo")
        other.send(frame(TEXT, "fine"))
        other.expect(TEXT, "fine")

    def test_slow_is_not_stopped(self, ws):
        """Who reads at least a little within each Timeout stays."""
        client, hammer = ws("/threads", rcvbuf=4096), Hammer(4, 150, 10_000)
        client.send(hammer.command)
        for _ in range(10):
            time.sleep(0.4)  # twice the Timeout altogether
            for _ in range(15):
                hammer.take(client.read_frame().payload)
        hammer.drain(client)
        client.close()

    def test_idle_is_not_slow(self, ws):
        client = ws("/echo")
        with pytest.raises(TimeoutError):
            client.read_frame(3)
        client.send(frame(TEXT, "well rested"))
        client.expect(TEXT, "well rested")


class TestMemory:
    CONF = debug("/debug", "WebSocketSendQueueLimit 256k")

    def test_the_queue_is_bounded(self, httpd, ws):
        client = ws("/debug", rcvbuf=65536)
        child = httpd.child_of(client)
        before = httpd.memory(child)
        client.send(frame(TEXT, "flood 1000 100000"))
        for n in range(1000):
            assert len(client.read_frame().payload) == 100_000
            if n % 100 == 0:
                assert httpd.memory(child) < before + 16 * 1024
        client.expect(TEXT, "sent=1000")
