"""Those who publish: what they are answered, who may, and what cannot be published."""

import socket

import pytest
from channels import LIVE, META, Answer, Meta, Publisher, publish, publishing, section
from httpd import DETACH
from ws_frame import BINARY, TEXT

pytestmark = pytest.mark.once


class TestAnswers:
    CONF = (
        DETACH + publishing() + LIVE
        + section("^/both$", "SetHandler websocket-publish", "WebSocketChannel one two one")
        + publishing("WebSocketMaxMessageSize 1000", path="short") + publishing("LimitRequestBody 1000", path="limited")
        + section("^/user$", "SetHandler websocket-publish", 'WebSocketChannel "user:%{REMOTE_USER}"')
    )

    @pytest.fixture
    def publisher(self, httpd):
        with Publisher(httpd.port) as publisher:
            yield publisher

    def test_created_and_accepted(self, ws, publisher):
        answer = publisher.ask("POST", "here", b"hello", Content_Type="text/plain")
        assert (answer.status, answer.json["channel"], answer.json["subscribers"]) == (202, "here", 0)
        assert answer.headers["Cache-Control"] == "no-store"
        ws("/live/here")
        answer = publisher.ask("POST", "here", b"hello", Content_Type="text/plain")
        assert (answer.status, answer.json["subscribers"]) == (201, 1)

    def test_what_is_known_of_a_channel(self, ws, publisher):
        nothing = publisher.ask("GET", "known").json
        assert nothing == {"channel": "known", "subscribers": 0, "messages": 0, "oldest": None, "newest": None}
        ids = [publisher.post("known", f"{n}")["id"] for n in range(3)]
        ws("/live/known")
        known = publisher.ask("GET", "known").json
        assert known == {"channel": "known", "subscribers": 1, "messages": 3, "oldest": ids[0], "newest": ids[2]}
        assert publisher.ask("HEAD", "known").status == 200

    def test_several_channels(self, httpd, ws):
        clients = [ws("/live/one"), ws("/live/two")]
        with Publisher(httpd.port) as publisher:
            publisher.connection.request("POST", "/both", b"hello", {"Content-Type": "text/plain"})
            answer = Answer(publisher.connection.getresponse())
        assert answer.status == 201 and [about["channel"] for about in answer.json] == ["one", "two"]
        for client in clients:
            client.expect(TEXT, "hello")

    @pytest.mark.parametrize("media,opcode", [
        ("text/plain; charset=utf-8", TEXT), ("application/json", TEXT), ("application/x-www-form-urlencoded", TEXT),
        ("image/svg+xml", TEXT), ("application/octet-stream", BINARY), ("image/png", BINARY), (None, BINARY),
    ])
    def test_text_and_binary(self, ws, publisher, media, opcode):
        client = ws("/live/kinds")
        headers = {"Content_Type": media} if media else {}
        assert publisher.ask("POST", "kinds", "é".encode(), **headers).status == 201
        client.expect(opcode, "é".encode())

    def test_text_has_to_be_utf8(self, publisher):
        answer = publisher.ask("POST", "kinds", b"\xff", Content_Type="text/plain")
        assert answer.status == 400 and "UTF-8" in answer.json["error"]

    def test_chunked(self, ws, publisher):
        client = ws("/live/chunks")
        publisher.connection.request("POST", "/publish/chunks", iter([b"one ", b"two ", b"three"]), encode_chunked=True)
        assert Answer(publisher.connection.getresponse()).status == 201
        client.expect(BINARY, b"one two three")

    @pytest.mark.parametrize("method", ["PUT", "PATCH", "OPTIONS", "PROPFIND", "FOO"])
    def test_other_methods(self, publisher, method):
        answer = publisher.ask(method, "here")
        assert answer.status in (405, 501) and "POST" in answer.headers["Allow"]

    @pytest.mark.parametrize("chunked", [False, True])
    @pytest.mark.parametrize("path,size", [("short", 1001), ("limited", 1001), ("publish", 1 << 21), ("publish", 100 << 20)])
    def test_too_large(self, httpd, path, size, chunked):
        with Publisher(httpd.port, path) as publisher:
            connection = publisher.connection
            connection.putrequest("POST", f"/{path}/large")
            name, value = ("Transfer-Encoding", "chunked") if chunked else ("Content-Length", f"{size}")
            connection.putheader(name, value)
            connection.endheaders()
            try:
                for _ in range(0, size, 1 << 20):
                    body = bytes(min(size, 1 << 20))
                    connection.send(b"%x\r\n%b\r\n" % (len(body), body) if chunked else body)
                if chunked:
                    connection.send(b"0\r\n\r\n")
            except (BrokenPipeError, ConnectionResetError):
                assert size > 1 << 20
                return
            answer = Answer(connection.getresponse())
        assert answer.status == 413
        if path == "limited" and chunked:
            return  # httpd's own answer
        assert "WebSocketMaxMessageSize" in answer.json["error"]
        assert answer.headers["Connection"] == "close"

    @pytest.mark.parametrize("name", [
        "", "@all", "a:", "a/", "a::b", "%0a", "a%0d%0ab", "%ff", "n" * 201, "%c2%85",
    ], ids=ascii)
    def test_names(self, publisher, name):
        answer = publisher.ask("POST", name, b"hello")
        assert answer.status == 403 and "no channel" in answer.json["error"]

    def test_an_expression_without_a_value_is_nobodys_channel(self, httpd):
        with Publisher(httpd.port) as publisher:
            publisher.connection.request("POST", "/user", b"hello")
            answer = Answer(publisher.connection.getresponse())
        assert answer.status == 403 and "no channel" in answer.json["error"]
        assert "WS0701" in httpd.new_log()

    def test_media_types_do_not_break_messages(self, ws, publisher):
        client = ws("/live/media", [("Sec-WebSocket-Protocol", META)])
        for media in ("text/plain; x=\"a\tb\"", "text/" + "x" * 500, ""):
            assert publisher.ask("POST", "media", b"hello", Content_Type=media).status == 201
            assert Meta.of(client.read_frame()).body == b"hello"

    def test_a_slow_publisher_delays_nobody(self, httpd, ws):
        client = ws("/live/slow")
        slow = [socket.create_connection(("127.0.0.1", httpd.port)) for _ in range(10)]
        try:
            for sock in slow:
                sock.sendall(b"POST /publish/slow HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nhalf")
            for n in range(50):
                publish(httpd, "slow", f"{n}")
                client.expect(TEXT, f"{n}", timeout=1)
        finally:
            for sock in slow:
                sock.close()


class TestWhoMay:
    OPEN = publishing("WebSocketPublish Any", "WebSocketOriginCheck Off", path="any") + publishing(
        "WebSocketPublish Any", "WebSocketOriginCheck Same", path="same"
    )
    CONF = DETACH + publishing() + OPEN

    @pytest.mark.parametrize("header", [
        "Origin", "Forwarded", "X-Forwarded-For", "x-forwarded-proto", "X-Real-IP", "Via", "origin", "X-Forwarded",
        "Sec-Fetch-Site",
    ])
    @pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
    def test_local_means_without_a_proxy_and_without_a_page(self, httpd, method, header):
        with Publisher(httpd.port) as publisher:
            answer = publisher.ask(method, "here", b"hello", **{header: "http://127.0.0.1"})
            assert answer.status == 403 and "WebSocketPublish Local" in answer.json["error"]
        with Publisher(httpd.port, "any") as publisher:
            answer = publisher.ask(method, "here", b"hello", **{header: "http://127.0.0.1"})
            assert answer.status in (200, 201, 202)

    def test_pages_of_other_sites(self, httpd):
        with Publisher(httpd.port, "same") as publisher:
            assert publisher.ask("POST", "here", b"hello", Origin="http://evil.example").status == 403
            assert publisher.ask("POST", "here", b"hello").status == 202
            own = f"http://127.0.0.1:{httpd.port}"
            assert publisher.ask("POST", "here", b"hello", Origin=own).status == 202


class TestWithoutAChannel:
    def test_said_at_the_start_and_when_it_is_asked(self, httpd):
        httpd.expect_log("WS0431: SetHandler websocket-publish .* has no channel")
        httpd.expect_log("WS0705: /none is answered 500: its section has no WebSocketChannel")
        with httpd.serve(section("^/none$", "SetHandler websocket-publish")), Publisher(httpd.port) as publisher:
            publisher.connection.request("POST", "/none", b"hello")
            assert Answer(publisher.connection.getresponse()).status == 500


@pytest.mark.once
@pytest.mark.parametrize("lines", [
    ["WebSocketChannelClientPublish On", 'WebSocketChannel "one" "two"'],
    ['WebSocketChannel "one"', "WebSocketChannelClientPublish On", 'WebSocketChannel "two"'],
])
def test_several_channels_in_a_section_are_a_mistake(httpd, lines):
    checked = httpd.check(section("^/x$", "SetHandler websocket-handler", *lines))
    checked.refused("several channels", "'WebSocketChannelClientPublish Off'", at=[line for line in lines if "two" in line][0])
