"""A client publishes no more than its share, and is not read from meanwhile."""

import time

import pytest
from channels import publish, publishing, room, subscribers
from httpd import DETACH, TLS, wait_until
from ws_frame import BINARY, CLOSE, PING, PONG, TEXT, close_frame, frame

ON = "WebSocketChannelClientPublish On"
# A client's share of a ring of 1 MiB is 4 KiB a second.
CONF = (
    DETACH + TLS + "WebSocketChannelMemory 1M\nWebSocketMaxMessageSize 4M\nWebSocketPingInterval 1s\n" + publishing()
    + room("^/chat/(?<name>.*)$", "%{env:MATCH_NAME}", ON)
    + room("^/idle/(?<name>.*)$", "%{env:MATCH_NAME}", ON, "WebSocketIdleTimeout 1s")
    + room("^/all/(?<name>.*)$", "%{env:MATCH_NAME}", "WebSocketChannelReplay All")
)
SHARE = 4096
names = iter(f"room{n}" for n in range(1000))
both = pytest.mark.parametrize("kind", ["ws", "wss"])


@pytest.fixture
def channel():
    """A channel of the test's own."""
    return next(names)


def next_frame(client):
    """The next frame that is no Ping; those are answered."""
    while (got := client.read_frame()).opcode == PING:
        client.send(frame(PONG, got.payload))
    return got


def test_what_is_too_large_for_the_ring(httpd, over, channel):
    client, other = over("ws", f"/chat/{channel}"), over("ws", f"/chat/{channel}")
    httpd.expect_log("WS0712: closing with 1009")
    client.send(frame(BINARY, bytes(200_000)))
    answer = client.read_frame()
    assert (answer.opcode, answer.code) == (CLOSE, 1009)
    publish(httpd, channel, "next")
    other.expect(TEXT, "next")


@both
def test_one_that_floods(httpd, over, channel, kind):
    publish(httpd, channel + "quiet", "still there")
    client, other = over(kind, f"/chat/{channel}"), over(kind, f"/all/{channel}")
    start = time.monotonic()
    for n in range(300):
        client.send(frame(TEXT, f"{n} ".ljust(1000)))
    got = 0
    while time.monotonic() - start < 2.2:
        assert int(next_frame(other).payload) == got
        got += 1
    seconds = time.monotonic() - start
    # A second's share is had at once; the message that uses it up is published whole.
    assert 2 * SHARE / 1100 - 4 <= got <= (seconds + 1) * SHARE / 1000 + 2
    # Another channel's history is there.
    over(kind, f"/all/{channel}quiet").expect(TEXT, "still there")
    # Another client has a share of its own.
    talker = over(kind, f"/chat/{channel}other")
    talker.send(frame(TEXT, "hello"))
    talker.expect(TEXT, "hello")


def test_it_is_not_given_up_meanwhile_and_goes_on(httpd, over, channel):
    """It is pinged each second, and its Pongs are not read."""
    client = over("ws", f"/chat/{channel}")
    start = time.monotonic()
    client.send(frame(TEXT, "long".ljust(4 * SHARE)) + frame(TEXT, "next"))
    assert next_frame(client).payload.startswith(b"long")
    assert next_frame(client).payload == b"next"
    assert 2.5 < time.monotonic() - start < 8
    client.send(close_frame(1000))
    got = next_frame(client)
    assert (got.opcode, got.code) == (CLOSE, 1000)


@both
def test_it_is_not_idle_meanwhile(httpd, over, channel, kind):
    client = over(kind, f"/idle/{channel}")
    client.send(frame(TEXT, "long".ljust(4 * SHARE)) + frame(TEXT, "next"))
    assert next_frame(client).payload.startswith(b"long")
    assert next_frame(client).payload == b"next"
    # But then it is.
    got = next_frame(client)
    assert (got.opcode, got.code) == (CLOSE, 1001)


def test_one_that_is_gone(httpd, over, channel):
    client = over("ws", f"/chat/{channel}")
    client.send(frame(TEXT, "long".ljust(2 * SHARE)) + frame(TEXT, "next"))
    next_frame(client)
    client.reset()
    wait_until(lambda: subscribers(httpd, channel) == 0, 8)


@both
def test_the_server_ends(httpd, over, channel, kind):
    client = over(kind, f"/chat/{channel}")
    client.send(frame(TEXT, "long".ljust(100_000)) + frame(TEXT, "next"))
    next_frame(client)
    httpd.graceful()
    got = next_frame(client)
    assert (got.opcode, got.code) == (CLOSE, 1001)
