"""Long lives: memory and time per message stay what they were at the beginning."""

import threading
import time

import pytest
from httpd import echo
from ws_frame import BINARY, CONTINUATION, PING, PONG, TEXT, frame, random_text

pytestmark = pytest.mark.once

CONF = echo()


def test_200_000_messages(httpd, ws):
    """A hundred bytes kept per message would show as 16 MiB. Threads that come later, on a busy machine, take some of what
    is allowed."""
    client, data = ws(), random_text(100)
    child = httpd.child_of(client)
    batch, turns = 1000, 200
    out = frame(BINARY, data) * batch
    back = frame(BINARY, data, mask=None) * batch

    def send():
        for _ in range(turns):
            client.send(out)

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    memory = []
    for _ in range(turns):
        got = client.take(len(back), time.monotonic() + 20)
        assert got == back
        memory.append(httpd.memory(child))
    sender.join(5)
    client.close()
    early, late = max(memory[10:40]), max(memory[-30:])
    assert late <= early + 8 * 1024, f"{early} KiB became {late} KiB"


def test_pings_leave_nothing_behind(httpd, ws):
    """As above: 7 MiB."""
    client = ws()
    child = httpd.child_of(client)
    out, back = frame(PING, b"x" * 100) * 1000, frame(PONG, b"x" * 100, mask=None) * 1000
    memory = []
    for _ in range(100):
        client.send(out)
        assert client.take(len(back), time.monotonic() + 20) == back
        memory.append(httpd.memory(child))
    assert max(memory[-20:]) <= max(memory[10:30]) + 4 * 1024


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_ten_million_fragments_of_one_byte(httpd, ws, opcode):
    """The processor time per fragment does not grow with the message."""
    client = ws()
    child = httpd.child_of(client)
    tenth = 1_000_000
    piece = frame(CONTINUATION, b"x", fin=False)
    chunk = piece * 50_000
    used = [httpd.cpu(child)]
    for n in range(10):
        client.send(frame(opcode, b"x", fin=False) if n == 0 else piece)
        client.send(*[piece] * 49_999)
        for _ in range(tenth // 50_000 - 1):
            client.send(chunk)
        client.send(frame(PING, b"so far"))
        client.expect(PONG, b"so far", timeout=30)
        used.append(httpd.cpu(child))
    client.send(frame(CONTINUATION))
    got = client.read_frame(30)
    assert (got.opcode, got.payload) == (opcode, b"x" * 10 * tenth)
    first, second = used[5] - used[0], used[10] - used[5]
    assert second < 2 * first + 0.1, used
