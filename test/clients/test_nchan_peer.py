"""What nginx with nchan does and what we do is the same for clients that know nchan: the same tests, of both."""

import re

import pytest
from channels import META, EventSource, Publisher, publishing, room
from httpd import free_port, wait_until
from nchan import THERE, nchan
from ws_frame import BINARY, TEXT, Client

pytestmark = pytest.mark.once
CONF = publishing() + room("^/live/(?<name>.*)$", "%{env:MATCH_NAME}", "WebSocketChannelReplay All")
NGINX = """
    location ~ ^/live/(?<name>.*)$ { nchan_subscriber; nchan_channel_id $name; }
    location ~ ^/publish/(?<name>.*)$ { nchan_publisher http; nchan_channel_id $name; }
"""
TYPES = ["text/plain", "application/json", "text/html; charset=utf-8"]
names = iter(f"room{n}" for n in range(1000))


@pytest.fixture
def channel():
    return next(names)


@pytest.fixture(scope="module")
def ports(httpd, tmp_path_factory):
    """Where both are."""
    if not THERE:
        yield {"module": httpd.port}
        return
    port = free_port()
    with nchan(tmp_path_factory.mktemp("nchan") / "nginx", port, NGINX):
        yield {"module": httpd.port, "nchan": port}


@pytest.fixture(params=["module", "nchan"])
def port(request, ports):
    if request.param not in ports:
        pytest.skip("no nginx with nchan: scripts/setup.sh check installs it")
    return ports[request.param]


@pytest.fixture
def subscribe(port):
    """Opens a WebSocket."""
    clients = []

    def opened(path, protocol=None, last=None):
        clients.append(Client(port))
        headers = [("Sec-WebSocket-Protocol", protocol)] if protocol else []
        answer = clients[-1].upgrade(path, headers + ([("Last-Event-ID", last)] if last else []))
        assert answer.headers.get("sec-websocket-protocol") == protocol
        return clients[-1]

    yield opened
    for client in clients:
        client.sock.close()


def post(port, channel, *bodies, media="text/plain"):
    """What publishers were answered."""
    with Publisher(port) as publisher:
        return [publisher.ask("POST", channel, body, Content_Type=media).status for body in bodies]


def id_of(payload):
    """The id of a message of ws+meta.nchan."""
    return re.match(rb"id: ([0-9a-f:-]+)\n", payload)[1].decode()


def test_a_publisher_is_told_whether_somebody_listens(port, subscribe, channel):
    assert post(port, channel, "nobody hears it") == [202]
    client = subscribe(f"/live/{channel}")
    client.expect(TEXT, "nobody hears it")
    assert post(port, channel, "heard", "") == [201, 201]
    client.expect(TEXT, "heard")
    client.expect(TEXT, "")
    client.sock.close()
    wait_until(lambda: post(port, channel, "again") == [202])


def test_a_message_is_a_frame_in_order(port, subscribe, channel):
    clients = [subscribe(f"/live/{channel}") for _ in range(3)]
    texts = [f"{n} grüße\n" * (1 + n % 50) for n in range(200)]
    post(port, channel, *(text.encode() for text in texts))
    for client in clients:
        for text in texts:
            client.expect(TEXT, text)
    post(port, channel, b"\x00\xff", media="application/octet-stream")
    for client in clients:
        client.expect(BINARY, b"\x00\xff")


@pytest.mark.parametrize("media", TYPES)
def test_a_message_with_its_id(port, subscribe, channel, media):
    client = subscribe(f"/live/{channel}", META)
    post(port, channel, '{"a": "ä\n\n"}'.encode(), media=media)
    got = client.read_frame()
    expected = f'id: {id_of(got.payload)}\ncontent-type: {media}\n\n{{"a": "ä\n\n"}}'
    assert (got.opcode, got.payload, got.fin) == (TEXT, expected.encode(), True)


def test_without_a_type_there_is_no_line_for_it(port, subscribe, channel):
    client = subscribe(f"/live/{channel}", META)
    with Publisher(port) as publisher:
        publisher.ask("POST", channel, b"text")
    payload = client.read_frame().payload
    assert payload == f"id: {id_of(payload)}\n\ntext".encode()


@pytest.mark.parametrize("where", ["field", "query"])
def test_who_comes_back_goes_on(port, subscribe, channel, where):
    client = subscribe(f"/live/{channel}", META)
    post(port, channel, *map(str, range(10)))
    payloads = [client.read_frame().payload for _ in range(10)]
    assert len(set(map(id_of, payloads))) == 10
    for n in (0, 4, 9):
        last = id_of(payloads[n])
        query = f"?last_event_id={last}" if where == "query" else ""
        again = subscribe(f"/live/{channel}{query}", META, last if where == "field" else None)
        for payload in payloads[n + 1:]:
            again.expect(TEXT, payload)
    post(port, channel, "new")
    assert again.read_frame().payload.endswith(b"\n\nnew")


def blocks(source, count):
    """The next events as they come, without what is none."""
    found = []
    while len(found) < count:
        block = source.until(b"\n\n")
        if b"data:" in block:
            found.append(block.strip(b"\n"))
    return found


def test_events(port, channel):
    with EventSource(port, f"/live/{channel}") as source:
        assert source.status == 200
        assert source.headers["content-type"].startswith("text/event-stream")
        post(port, channel, "one", "two\nlines ä".encode(), "")
        ids = []
        for block, data in zip(blocks(source, 3), ("data: one", "data: two\ndata: lines ä", "data:")):
            id, _, rest = block.decode().partition("\n")
            # The space behind the colon is no part of the data.
            assert id.startswith("id: ") and rest.rstrip() == data
            ids.append(id.removeprefix("id: "))
    with EventSource(port, f"/live/{channel}", last=ids[0]) as source:
        assert [source.next()[::2], source.next()[::2]] == [(ids[1], "two\nlines ä"), (ids[2], "")]
        post(port, channel, "live")
        assert source.next().data == "live"
    with EventSource(port, f"/live/{channel}?last_event_id={ids[1]}") as source:
        assert [source.next().data for _ in range(2)] == ["", "live"]
