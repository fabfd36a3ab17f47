"""The opening handshake (RFC 6455 §4.2): what is accepted, what is refused, and how."""

import pytest
from httpd import echo, location
from ws_frame import EXAMPLE_KEY, accept_key, works

pytestmark = pytest.mark.once

INCREMENT = location(
    "/increment", "${EXAMPLES}/mod_websocket_dumb_increment.so", "dumb_increment_init"
)
PLUGIN = 'WebSocketHandler "${EXAMPLES}/mod_websocket_echo.so" echo_init'
CONF = (
    "ServerName WWW.Example.Net:${PORT}\n"
    + echo()
    + echo("/canonical", "UseCanonicalName On")
    + INCREMENT
    # Its endpoint is for no request.
    + f'<Location /bare>\nSetHandler websocket-handler\n<If "false">\n{PLUGIN}\n</If>\n</Location>\n'
    + echo("/off", "WebSocketOriginCheck Off")
    + echo("/same", "WebSocketOriginCheck Same")
    + echo("/page.txt")
    + echo(
        "/trusted",
        "WebSocketOriginCheck Trusted",
        "WebSocketTrustedOrigin https://www.example.com http://other.example:8080",
        "WebSocketTrustedOrigin https://[2001:db8::1]:8443",
    )
)
SWITCHING = ("upgrade", "sec-websocket-accept", "sec-websocket-protocol")


def refused(connect, status, path="/echo", headers=(), **kw):
    """The handshake is answered with `status` and none of the headers of a 101."""
    response = connect().ask(path, headers, **kw)
    assert response.status == status
    present = [name for name in SWITCHING if name in response.headers]
    assert not present, f"{present} in a {status}"
    assert "upgrade" not in response.headers.get("connection", "").lower()
    return response


class TestAccepted:
    def test_accept_key_of_the_rfc(self, connect):
        client = connect()
        response = client.upgrade(Sec_WebSocket_Key="dGhlIHNhbXBsZSBub25jZQ==")
        assert response.headers["sec-websocket-accept"] == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        works(client)

    @pytest.mark.parametrize("key", ["AAAAAAAAAAAAAAAAAAAAAA==", "/" * 21 + "w=="])
    def test_accept_key_of_others(self, connect, key):
        response = connect().upgrade(Sec_WebSocket_Key=key)
        assert response.headers["sec-websocket-accept"] == accept_key(key)

    def test_headers_of_the_101(self, connect):
        headers = connect().upgrade().headers
        assert headers["upgrade"].lower() == "websocket"
        assert headers["connection"].lower() == "upgrade"
        for name in ("content-length", "transfer-encoding", "content-type", "sec-websocket-protocol",
                     "sec-websocket-extensions", "sec-websocket-version", "keep-alive"):
            assert name not in headers, name

    @pytest.mark.parametrize("version", [13, 8, 7])
    def test_versions(self, connect, version):
        client = connect()
        client.upgrade(Sec_WebSocket_Version=version)
        works(client)

    @pytest.mark.parametrize(
        "upgrade", ["WebSocket", "WEBSOCKET", "h2c, websocket", "websocket,h2c", "a/1 , webSocket , b"]
    )
    def test_upgrade_names_websocket(self, connect, upgrade):
        client = connect()
        client.upgrade(Upgrade=upgrade)
        works(client)

    @pytest.mark.parametrize(
        "connection", ["upgrade", "UPGRADE", "keep-alive, Upgrade", "Upgrade ,keep-alive", "a,upgrade,b"]
    )
    def test_connection_lists(self, connect, connection):
        client = connect()
        client.upgrade(Connection=connection)
        works(client)

    def test_two_connection_headers(self, connect):
        client = connect()
        client.upgrade(Connection="keep-alive", headers=[("Connection", "Upgrade")])
        works(client)

    def test_two_upgrade_headers(self, connect):
        client = connect()
        client.upgrade(Upgrade="h2c", headers=[("Upgrade", "websocket")])
        works(client)

    def test_header_names_in_any_case(self, connect):
        client = connect()
        head = client.request().replace(b"Sec-WebSocket-Key", b"sec-websocket-KEY")
        head = head.replace(b"Sec-WebSocket-Version", b"SEC-WEBSOCKET-version")
        head = head.replace(b"Upgrade: ", b"uPGRADE: ", 1).replace(b"Host", b"hOST")
        client.send(head)
        assert client.read_response().status == 101
        works(client)

    def test_spaces_around_values(self, connect):
        client = connect()
        client.upgrade(
            Sec_WebSocket_Version="  13 \t", Sec_WebSocket_Key=f" \t{EXAMPLE_KEY}  ", Upgrade=" websocket "
        )
        works(client)

    def test_no_body_announced_with_a_length(self, connect):
        client = connect()
        client.upgrade(headers=[("Content-Length", "0")])
        works(client)

    def test_query_string(self, connect):
        client = connect()
        client.upgrade("/echo?a=b&c")
        works(client)

    def test_unknown_extensions_are_not_accepted(self, connect):
        client = connect()
        response = client.upgrade(headers=[("Sec-WebSocket-Extensions", "x-unheard-of; level=9")])
        assert "sec-websocket-extensions" not in response.headers
        works(client)

    def test_second_request_of_a_kept_connection(self, connect):
        client = connect()
        client.send(b"GET /index.html HTTP/1.1\r\nHost: localhost\r\n\r\n")
        plain = client.read_response()
        assert plain.status == 200
        client.fill_until(b"plain file")
        client.buffer.clear()
        client.upgrade()
        works(client)

    def test_many_headers(self, connect):
        client = connect()
        client.upgrade(headers=[(f"X-{n}", "v" * 500) for n in range(60)])
        works(client)


class TestNotAnUpgrade:
    """Whoever does not ask for a WebSocket gets what the next handler has: here, nothing."""

    @pytest.mark.parametrize("upgrade", [None, "h2c", "TLS/1.0, IRC/6.9", "websockets", "notwebsocket"])
    def test_other_upgrades(self, connect, upgrade):
        refused(connect, 404, Upgrade=upgrade)

    def test_plain_request(self, connect):
        client = connect()
        client.send(b"GET /echo HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert client.read_response().status == 404

    def test_plain_request_of_an_existing_file(self, connect, httpd):
        (httpd.root / "htdocs/page.txt").write_text("a page\n")
        works_at(connect, "/page.txt")
        client = connect()
        client.send(b"GET /page.txt HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert client.read_response().status == 200
        client.fill_until(b"a page\n")

    def test_plain_post(self, connect):
        client = connect()
        client.send(b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\nab")
        assert client.read_response().status in (404, 405)


class TestBadUpgrade:
    @pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "get", "FROBNICATE"])
    def test_method(self, connect, method):
        refused(connect, 400, method=method)

    def test_head(self, connect):
        refused(connect, 400, method="HEAD")

    def test_http_1_0(self, connect):
        refused(connect, 400, http="HTTP/1.0")

    def test_no_host(self, connect):
        refused(connect, 400, Host=None)

    def test_no_host_in_http_1_0(self, connect):
        refused(connect, 400, Host=None, http="HTTP/1.0")

    @pytest.mark.parametrize("connection", [None, "close", "keep-alive", "upgraded", "up grade", "xupgrade"])
    def test_connection(self, connect, connection):
        refused(connect, 400, Connection=connection)

    @pytest.mark.parametrize(
        "key",
        [
            None,
            "",
            "AAAAAAAAAAAAAAAAAAAAAA",  # no padding
            "AAAAAAAAAAAAAAAAAAAAA===",  # 15 bytes
            "AAAAAAAAAAAAAAAAAAAAAAA=",  # 17 bytes
            "AAAAAAAAAAAAAAAAAAAAAAAA",  # 18 bytes
            "AAAAAAAAAAAAAAAAAAAAAAAAAA==",
            "AAAAAAAAAAAAAAAAAAAAAB==",  # bits in the last character that belong to no byte
            "AAAAAAAAAAAAAAAAAAAAAP==",
            "dGhlIHNhbXBsZSBub25jZf==",
            "AAAAAAAAAAAA-_AAAAAAAA==",  # another alphabet
            "AAAAAAAAAAA AAAAAAAAAA==",
            "AAAAAAAAAA=AAAAAAAAAAA==",
            "=AAAAAAAAAAAAAAAAAAAAA==",
            "AAAAAAAAAAAAAAAAAAAA\xe9A==",
            f'"{EXAMPLE_KEY}"',
            f"{EXAMPLE_KEY},",
        ],
    )
    def test_key(self, connect, key):
        response = refused(connect, 400, Sec_WebSocket_Key=key)
        assert "sec-websocket-version" not in response.headers

    @pytest.mark.parametrize("last", "AQgw")
    def test_canonical_last_characters_of_a_key(self, connect, last):
        connect().upgrade(Sec_WebSocket_Key="A" * 21 + last + "==")

    def test_two_keys(self, connect):
        refused(connect, 400, headers=[("Sec-WebSocket-Key", EXAMPLE_KEY)])

    @pytest.mark.parametrize(
        "version",
        [
            None,
            "",
            "0",
            "6",
            "9",
            "12",
            "14",
            "255",
            "256",
            "263",  # 7 in eight bits
            "269",  # 13 in eight bits
            "65549",  # 13 in sixteen bits
            "4294967309",  # 13 in thirty-two bits
            "99999999999999999999999",
            "013",
            "+13",
            "-13",
            "13.0",
            "0xd",
            "1 3",
            "13;",
            "13, 8",
            "thirteen",
            '"13"',
        ],
    )
    def test_version(self, connect, version):
        response = refused(connect, 400, Sec_WebSocket_Version=version)
        assert response.headers["sec-websocket-version"] == "13, 8, 7"

    def test_two_versions(self, connect):
        response = refused(connect, 400, headers=[("Sec-WebSocket-Version", "13")])
        assert response.headers["sec-websocket-version"] == "13, 8, 7"

    def test_body_with_a_length(self, connect):
        refused(connect, 400, headers=[("Content-Length", "5")], body=b"hello")

    def test_body_that_never_comes(self, connect):
        refused(connect, 400, headers=[("Content-Length", "500")])

    def test_chunked_body(self, connect):
        refused(connect, 400, headers=[("Transfer-Encoding", "chunked")], body=b"2\r\nab\r\n0\r\n\r\n")

    def test_empty_chunked_body(self, connect):
        refused(connect, 400, headers=[("Transfer-Encoding", "chunked")], body=b"0\r\n\r\n")

    @pytest.mark.parametrize("offer", ["", " ", ",", "a b", "a;q=1", '"a"', "a, b c", "a/b", "a,b\xe9", "(a)"])
    def test_subprotocol_list(self, connect, offer):
        refused(connect, 400, Sec_WebSocket_Protocol=offer)


class TestSubprotocol:
    def test_none_chosen(self, connect):
        response = connect().upgrade(Sec_WebSocket_Protocol="chat, superchat")
        assert "sec-websocket-protocol" not in response.headers

    @pytest.mark.parametrize(
        "offer",
        [
            "dumb-increment-protocol",
            "chat, dumb-increment-protocol",
            "dumb-increment-protocol,chat",
            "chat\t,\tdumb-increment-protocol , x",
        ],
    )
    def test_chosen(self, connect, offer):
        response = connect().upgrade("/increment", Sec_WebSocket_Protocol=offer)
        assert response.headers["sec-websocket-protocol"] == "dumb-increment-protocol"

    def test_chosen_from_several_headers(self, connect):
        response = connect().upgrade(
            "/increment",
            Sec_WebSocket_Protocol="chat",
            headers=[("Sec-WebSocket-Protocol", "dumb-increment-protocol")],
        )
        assert response.headers["sec-websocket-protocol"] == "dumb-increment-protocol"

    @pytest.mark.parametrize("offer", [None, "chat", "dumb-increment-protocols"])
    def test_refused_by_the_plugin(self, connect, offer):
        refused(connect, 403, "/increment", Sec_WebSocket_Protocol=offer)


class TestNoEndpoint:
    def test_the_log_names_the_location(self, connect, httpd):
        httpd.expect_log(r"\[websocket:error\](?=.*/bare)(?=.*WebSocketHandler)")
        refused(connect, 500, "/bare")

    def test_not_an_upgrade(self, connect):
        refused(connect, 404, "/bare", Upgrade=None)


class TestOrigin:
    @pytest.mark.parametrize("path", ["/echo", "/same", "/trusted", "/off"])
    def test_absent(self, connect, path):
        works_at(connect, path)

    @pytest.mark.parametrize("path", ["/echo", "/same"])
    def test_own(self, connect, httpd, path):
        works_at(connect, path, Origin=f"http://localhost:{httpd.port}")

    def test_canonical_name_in_capitals(self, connect, httpd):
        """It is as the administrator has written it, a page's origin in lower case."""
        works_at(connect, "/canonical", Origin=f"http://www.example.net:{httpd.port}")
        refused(connect, 403, "/canonical", Origin=f"http://localhost:{httpd.port}")

    def test_host_in_capitals(self, connect, httpd):
        host, origin = f"LocalHost:{httpd.port}", f"http://localhost:{httpd.port}"
        works_at(connect, "/same", Host=host, Origin=origin)

    @pytest.mark.parametrize(
        "origin",
        [
            "http://localhost",
            "http://localhost:1",
            "https://localhost:PORT",
            "ws://localhost:PORT",
            "http://localhost:PORT/",
            "http://localhost:PORT1",
            "http://localhost:PORT.example",
            "http://localhost:PORT http://evil.example",
            "http://evil.example:PORT",
            "http://evil.localhost:PORT",
            "HTTP://localhost:PORT",
            "//localhost:PORT",
            "localhost:PORT",
            "null",
            "",
        ],
    )
    @pytest.mark.parametrize("path", ["/echo", "/same"])
    def test_foreign(self, connect, httpd, path, origin):
        refused(connect, 403, path, Origin=origin.replace("PORT", str(httpd.port)))

    def test_two_origins(self, connect, httpd):
        own = f"http://localhost:{httpd.port}"
        refused(connect, 403, headers=[("Origin", own), ("Origin", own)])

    def test_default_port_is_left_out(self, connect):
        works_at(connect, "/same", Host="www.example.org:80", Origin="http://www.example.org")
        refused(connect, 403, "/same", Host="www.example.org:80", Origin="http://www.example.org:80")

    def test_other_default_port_is_kept(self, connect):
        works_at(connect, "/same", Host="www.example.org:443", Origin="http://www.example.org:443")
        refused(connect, 403, "/same", Host="www.example.org:443", Origin="http://www.example.org")

    def test_ipv6(self, connect, httpd):
        if not httpd.ipv6:
            pytest.skip("no IPv6 on loopback")
        host = f"[::1]:{httpd.port}"
        client = connect(host="::1")
        client.upgrade("/same", Host=host, Origin=f"http://{host}")
        works(client)
        for origin in (f"http://::1:{httpd.port}", "http://[::1]", f"http://[::2]:{httpd.port}"):
            assert connect(host="::1").ask("/same", Host=host, Origin=origin).status == 403, origin

    @pytest.mark.parametrize(
        "origin", ["https://www.example.com", "http://other.example:8080", "https://[2001:db8::1]:8443"]
    )
    def test_trusted(self, connect, origin):
        works_at(connect, "/trusted", Origin=origin)

    @pytest.mark.parametrize(
        "origin",
        [
            "http://localhost:PORT",  # the own one is not implied
            "http://www.example.com",
            "https://www.example.com:443",
            "https://www.example.com/",
            "https://www.example.com.evil.example",
            "https://www.example.co",
            "https://example.com",
            "http://other.example",
            "http://other.example:80800",
            "https://www.example.com http://other.example:8080",
            "https://[2001:db8::1]",
            "null",
            "",
        ],
    )
    def test_not_trusted(self, connect, httpd, origin):
        refused(connect, 403, "/trusted", Origin=origin.replace("PORT", str(httpd.port)))

    @pytest.mark.parametrize("origin", ["http://evil.example", "null", "", "what is this"])
    def test_unchecked(self, connect, origin):
        works_at(connect, "/off", Origin=origin)

    @pytest.mark.parametrize("version", [7, 8])
    def test_old_versions_have_two_headers(self, connect, httpd, version):
        """Version 7 had another one, which the drafts of version 8 renamed. If both are there both count."""
        own, foreign = f"http://localhost:{httpd.port}", "http://evil.example"
        old = {"Sec_WebSocket_Version": version}
        works_at(connect, "/same", Origin=own, **old)
        works_at(connect, "/same", Sec_WebSocket_Origin=own, **old)
        works_at(connect, "/same", Sec_WebSocket_Origin=own, Origin=own, **old)
        for refused_one in (
            {"Origin": foreign},
            {"Sec_WebSocket_Origin": foreign},
            {"Sec_WebSocket_Origin": own, "Origin": foreign},
            {"Sec_WebSocket_Origin": foreign, "Origin": own},
        ):
            refused(connect, 403, "/same", **refused_one, **old)
        works_at(connect, "/trusted", Sec_WebSocket_Origin="https://www.example.com", **old)
        refused(connect, 403, "/trusted", Sec_WebSocket_Origin=own, **old)
        works_at(connect, "/off", Sec_WebSocket_Origin=own, Origin=foreign, **old)

    def test_version_13_ignores_that_header(self, connect, httpd):
        own, foreign = f"http://localhost:{httpd.port}", "http://evil.example"
        works_at(connect, "/same", Sec_WebSocket_Origin=foreign, Origin=own)
        refused(connect, 403, "/same", Sec_WebSocket_Origin=own, Origin=foreign)


def works_at(connect, path, **kw):
    client = connect()
    client.upgrade(path, **kw)
    works(client)
