"""Who is subscribed gets what is published, in order and once; history; and those who come back."""

import pytest
from channels import GAP, LIVE, META, Meta, Publisher, publish, publishing, room, section, subscribers
from httpd import wait_until
from ws_frame import BINARY, CLOSE, CONTINUATION, PONG, PING, TEXT, close_frame, frame

EVERY_TRANSPORT = True
CONF = (
    publishing()
    + LIVE
    + room("^/last/(?<name>.*)$", "%{env:MATCH_NAME}", "WebSocketChannelReplay 3")
    + room("^/all/(?<name>.*)$", "%{env:MATCH_NAME}", "WebSocketChannelReplay All")
    + section("^/two/(?<a>[^/]*)/(?<b>.*)$", "SetHandler websocket-handler",
              'WebSocketChannel "%{env:MATCH_A}" "%{env:MATCH_B}"', "WebSocketChannelReplay 3")
    + room("^/chat/(?<name>.*)$", "%{env:MATCH_NAME}", "WebSocketChannelClientPublish On")
    # Two sections that are one for a request.
    + "<Location /several>\n    WebSocketChannelClientPublish On\n</Location>\n"
    + section("^/several/two$", "SetHandler websocket-handler", 'WebSocketChannel "one" "two"')
    + section("^/several/same$", "SetHandler websocket-handler", 'WebSocketChannel "one" "one"')
    + "WebSocketMaxMessageSize 4M\n"
)
names = iter(f"room{n}" for n in range(1000))


@pytest.fixture
def channel():
    """A channel of the test's own."""
    return next(names)


def texts(client, *expected):
    """These come next, and then nothing: a Pong does."""
    for text in expected:
        client.expect(TEXT, text)
    client.send(frame(PING, b"and now"))
    client.expect(PONG, b"and now")


def meta(client):
    """The next message with its id."""
    return Meta.of(client.read_frame())


def come_back(ws, path, last):
    """A client that says what it has got last."""
    return ws(path, [("Sec-WebSocket-Protocol", META), ("Last-Event-ID", last)])


def test_what_is_published_arrives(httpd, ws, channel):
    clients, other = [ws(f"/live/{channel}") for _ in range(3)], ws(f"/live/{channel}x")
    answer = publish(httpd, channel, "hello", b"\0\xff", "", b"")
    assert answer["channel"] == channel and answer["subscribers"] == 3
    assert publish(httpd, channel + "x", "other")["subscribers"] == 1
    for client in clients:
        client.expect(TEXT, "hello")
        client.expect(BINARY, b"\0\xff")
        client.expect(TEXT, "")
        client.expect(BINARY, b"")
        texts(client)
    texts(other, "other")


def test_many_in_their_order(httpd, ws, channel):
    clients = [ws(f"/live/{channel}") for _ in range(5)]
    with Publisher(httpd.port) as publisher:
        for n in range(500):
            publisher.post(channel, f"{n}")
            publisher.post(channel + "x", "not for them")
    for client in clients:
        texts(client, *map(str, range(500)))


@pytest.mark.parametrize("size", [125, 126, 65_535, 65_536, 1_000_000, 2_090_000])
def test_sizes(httpd, ws, channel, size):
    client = ws(f"/live/{channel}")
    for n in range(3):
        body = bytes([n]) * size
        publish(httpd, channel, body)
        client.expect(BINARY, body)


def test_who_left_does_not_count(httpd, ws, channel):
    clients = [ws(f"/live/{channel}") for _ in range(2)]
    assert subscribers(httpd, channel) == 2
    clients[0].send(close_frame(1000))
    clients[0].expect_close(1000, reply=False)
    wait_until(lambda: subscribers(httpd, channel) == 1)
    publish(httpd, channel, "still here")
    texts(clients[1], "still here")


def test_clients_do_not_publish(httpd, ws, channel):
    client, other = ws(f"/live/{channel}"), ws(f"/live/{channel}")
    client.send(frame(TEXT, "hello"))
    got = client.read_frame()
    assert (got.opcode, got.code) == (CLOSE, 1008) and b"no messages" in got.payload
    httpd.expect_log("WS0708: closing with 1008")
    texts(other)


def test_what_a_client_sends_is_published(httpd, ws, channel):
    clients = [ws(f"/chat/{channel}") for _ in range(3)]
    meta = ws(f"/chat/{channel}", [("Sec-WebSocket-Protocol", META)])
    clients[0].send(frame(TEXT, "hello"))
    for client in clients:
        client.expect(TEXT, "hello")
    clients[1].send(frame(BINARY, b"\0\xff") + frame(TEXT, "") + frame(TEXT, "in ", fin=False) + frame(CONTINUATION, "parts"))
    publish_after = publish(httpd, channel, "by POST")
    assert publish_after["subscribers"] == 4
    for client in clients:
        got = [client.read_frame() for _ in range(4)]
        assert sorted((f.opcode, f.payload) for f in got) == sorted(
            [(BINARY, b"\0\xff"), (TEXT, b""), (TEXT, b"in parts"), (TEXT, b"by POST")])
        # Its own are in their order.
        assert [f.payload for f in got if f.payload != b"by POST"] == [b"\0\xff", b"", b"in parts"]
    got = [Meta.of(meta.read_frame()) for _ in range(5)]
    assert got[0].body == b"hello" and got[0].media == "" and len({message.id for message in got}) == 5
    # It is kept as any other message.
    late = ws(f"/all/{channel}")
    late.expect(TEXT, "hello")


def test_who_knows_ids_may_publish_too(httpd, ws, channel):
    client = ws(f"/chat/{channel}", [("Sec-WebSocket-Protocol", META)])
    client.send(frame(TEXT, "hello"))
    assert Meta.of(client.read_frame()).body == b"hello"


def test_text_that_is_published_has_to_be_text(httpd, ws, channel):
    client, other = ws(f"/chat/{channel}"), ws(f"/chat/{channel}")
    client.send(frame(TEXT, b"\xff"))
    client.expect_close(1007)
    publish(httpd, channel, "next")
    other.expect(TEXT, "next")


def test_clients_publish_to_one_channel(httpd, connect):
    httpd.expect_log("WS0711: WebSocketChannelClientPublish On needs a single channel")
    assert connect().ask("/several/two").status == 500
    # Each is there once.
    client = connect()
    client.upgrade("/several/same")
    client.send(frame(TEXT, "hello"))
    client.expect(TEXT, "hello")


def test_many_that_talk(httpd, ws, channel):
    clients = [ws(f"/chat/{channel}") for _ in range(5)]
    for n, client in enumerate(clients):
        client.send(frame(TEXT, f"{n}"))
    orders = [[client.read_frame().payload for _ in clients] for client in clients]
    assert all(order == orders[0] for order in orders)
    assert sorted(map(int, orders[0])) == list(range(5))


def test_replay(httpd, ws, channel):
    publish(httpd, channel, *map(str, range(10)))
    publish(httpd, channel + "x", "not for them")
    texts(ws(f"/live/{channel}"))
    texts(ws(f"/last/{channel}"), "7", "8", "9")
    everything = ws(f"/all/{channel}")
    texts(everything, *map(str, range(10)))
    publish(httpd, channel, "live")
    texts(everything, "live")


def test_several_channels(httpd, ws, channel):
    a, b = channel + "a", channel + "b"
    for n in range(4):
        publish(httpd, a, f"a{n}")
        publish(httpd, b, f"b{n}")
    client = ws(f"/two/{a}/{b}")
    # The newest three of both, as they were published.
    texts(client, "b2", "a3", "b3")
    publish(httpd, b, "b4")
    publish(httpd, a, "a4")
    texts(client, "b4", "a4")
    assert subscribers(httpd, a) == subscribers(httpd, b) == 1
    texts(ws(f"/two/{a}/{a}"), "a2", "a3", "a4")


def test_ids(httpd, ws, channel):
    client = ws(f"/live/{channel}", [("Sec-WebSocket-Protocol", f"chat, {META}")])
    published = [publish(httpd, channel, body) for body in ("one", b"two")]
    got = [client.read_frame() for _ in published]
    assert [frame.opcode for frame in got] == [TEXT, BINARY]
    got = [Meta.of(frame) for frame in got]
    assert [message.id for message in got] == [answer["id"] for answer in published]
    assert [(message.media, message.body) for message in got] == [
        ("text/plain", b"one"), ("application/octet-stream", b"two")
    ]


@pytest.mark.parametrize("how", ["header", "query"])
def test_who_comes_back_misses_nothing(httpd, ws, channel, how):
    ids = [publish(httpd, channel, f"{n}")["id"] for n in range(5)]
    publish(httpd, channel + "x", "not for them")
    if how == "header":
        client = come_back(ws, f"/last/{channel}", ids[1])
    else:
        client = ws(f"/last/{channel}?a=b&last_event_id={ids[1]}", [("Sec-WebSocket-Protocol", META)])
    assert [meta(client).body for _ in range(3)] == [b"2", b"3", b"4"]
    publish(httpd, channel, "live")
    assert meta(client).body == b"live"


def test_an_empty_id_is_none(httpd, ws, channel):
    publish(httpd, channel, "0")
    client = ws(f"/all/{channel}?last_event_id=", [("Sec-WebSocket-Protocol", META), ("Last-Event-ID", "")])
    assert meta(client).body == b"0"


@pytest.mark.parametrize("what", ["nothing", "forged", "of another channel", "cut"])
def test_what_is_no_id_of_the_channel_is_a_gap(httpd, ws, channel, what):
    other = publish(httpd, channel + "x", "other")["id"]
    ids = [publish(httpd, channel, f"{n}")["id"] for n in range(5)]
    time, place, proof = ids[1].split("-")
    last = {
        "nothing": "0", "forged": f"{time}-{int(place) + 1}-{proof}", "of another channel": other, "cut": ids[1][:-1]
    }[what]
    client = come_back(ws, f"/last/{channel}", last)
    gap = meta(client)
    assert (gap.media, gap.body) == (GAP, b"")
    assert [meta(client).body for _ in range(3)] == [b"2", b"3", b"4"]
    # The gap's own id leads to what followed it.
    client = come_back(ws, f"/last/{channel}", gap.id)
    assert [meta(client).body for _ in range(3)] == [b"2", b"3", b"4"]


def test_what_was_overwritten_is_a_gap(httpd, ws, channel):
    last = publish(httpd, channel, "first")["id"]
    with Publisher(httpd.port) as publisher:
        for _ in range(10):
            publisher.post(channel + "x", bytes(2_000_000))
        publisher.post(channel, "newest")
    client = come_back(ws, f"/all/{channel}", last)
    assert meta(client).media == GAP
    assert meta(client).body == b"newest"


def test_the_end_of_a_channel(httpd, ws, channel):
    clients, other = [ws(f"/live/{channel}") for _ in range(2)], ws(f"/live/{channel}x")
    publish(httpd, channel, "last words")
    with Publisher(httpd.port) as publisher:
        answer = publisher.ask("DELETE", channel)
    assert answer.status == 200 and answer.json["channel"] == channel
    for client in clients:
        client.expect(TEXT, "last words")
        client.expect_close(1000)
    texts(other)
    # Who comes then is not sent away.
    texts(ws(f"/all/{channel}"), "last words")
