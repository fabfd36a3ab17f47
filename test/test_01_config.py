"""Configuration: what is refused and how it is said, where directives may stand, how they merge."""

import pytest
from httpd import debug, echo, location
from ws_frame import BINARY, TEXT, close_frame, frame, works

pytestmark = pytest.mark.once

ECHO = "${EXAMPLES}/mod_websocket_echo.so"
BROKEN = "${PLUGINS}/broken.so"


def limited_to(ws, path, size, **kw):
    """The location takes messages of `size` bytes and no longer ones."""
    client = ws(path, **kw)
    client.send(frame(BINARY, b"x" * size))
    client.expect(BINARY, b"x" * size)
    client.send(frame(BINARY, length=size + 1))
    client.expect_close(1009)


class TestRefusedPlugins:
    """Each message names file, line, directive, library, function and cause."""

    def refused(self, httpd, library, init, *causes):
        checked = httpd.check(location("/x", library, init))
        checked.refused("WebSocketHandler", init, *causes, at="    WebSocketHandler")
        return checked

    def test_no_such_file(self, httpd):
        self.refused(httpd, "${PLUGINS}/absent.so", "absent_init", f"{httpd.plugins}/absent.so", "no such file")

    def test_path_is_relative_to_the_server_root(self, httpd):
        self.refused(httpd, "modules/absent.so", "absent_init", f"{httpd.root}/modules/absent.so")

    def test_not_a_library(self, httpd):
        (httpd.root / "conf/text.so").write_text("this is no library\n")
        self.refused(httpd, "conf/text.so", "any_init", f"{httpd.root}/conf/text.so")

    def test_no_such_function(self, httpd):
        self.refused(httpd, ECHO, "ecko_init", f"{httpd.examples}/mod_websocket_echo.so", "ecko_init")

    @pytest.mark.parametrize(
        "init, causes",
        [
            ("broken_null_init", ["NULL"]),
            ("broken_version_init", ["version", "7"]),
            ("broken_size_init", ["size", "4"]),
            ("broken_message_init", ["on_message"]),
        ],
    )
    def test_unusable_plugin(self, httpd, init, causes):
        self.refused(httpd, BROKEN, init, f"{httpd.plugins}/broken.so", *causes)

    def test_smallest_plugin_is_accepted(self, httpd):
        checked = httpd.check(location("/x", BROKEN, "minimal_init"))
        assert checked.ok, checked.output

    @pytest.mark.parametrize("arguments", ["", ECHO, f"{ECHO} echo_init more"])
    def test_number_of_arguments(self, httpd, arguments):
        conf = f"<Location /x>\n    WebSocketHandler {arguments}\n</Location>\n"
        httpd.check(conf).refused("WebSocketHandler", at="    WebSocketHandler")

    def test_httpd_does_not_start(self, httpd):
        with pytest.raises(AssertionError, match="broken_null_init"):
            with httpd.serve(location("/x", BROKEN, "broken_null_init")):
                pass


SIZES = ["WebSocketMaxMessageSize", "MaxMessageSize", "WebSocketSendQueueLimit"]


class TestValues:
    @pytest.mark.parametrize("directive", SIZES)
    @pytest.mark.parametrize("size", ["125", "33554432", "64k", "64K", "32M", "32m", "1"])
    def test_sizes(self, httpd, directive, size):
        checked = httpd.check(echo("/x", f"{directive} {size}"))
        assert checked.ok, checked.output

    @pytest.mark.parametrize("directive", SIZES)
    @pytest.mark.parametrize(
        "size",
        [
            "", "0", "0k", "-1", "-64k", "+5", "64X", "64kk", "64 k", "k", "abc", "1.5M", "0x40", '""', '" 5"',
            "18446744073709551616", "18446744073709551617", "99999999999999999999999",
            "18446744073709551615k", "18014398509481985k", "17592186044417M",
        ],
    )
    def test_nonsense_sizes(self, httpd, directive, size):
        checked = httpd.check(echo("/x", f"{directive} {size}"))
        checked.refused(directive, at=f"    {directive}")

    @pytest.mark.parametrize("word", ["Off", "Same", "Trusted", "off", "SAME", "trusted"])
    def test_origin_check(self, httpd, word):
        checked = httpd.check(echo("/x", f"WebSocketOriginCheck {word}"))
        assert checked.ok, checked.output

    @pytest.mark.parametrize("word", ["Sane", "On", "None", '""', "SameOrigin"])
    def test_origin_check_of_another_kind(self, httpd, word):
        checked = httpd.check(echo("/x", f"WebSocketOriginCheck {word}"))
        checked.refused("WebSocketOriginCheck", "Off", "Same", "Trusted", at="    WebSocketOriginCheck")

    @pytest.mark.parametrize("words", ["", "Same Trusted"])
    def test_origin_check_wants_one_word(self, httpd, words):
        checked = httpd.check(echo("/x", f"WebSocketOriginCheck {words}"))
        checked.refused("WebSocketOriginCheck", at="    WebSocketOriginCheck")

    def test_trusted_origin_wants_an_origin(self, httpd):
        checked = httpd.check(echo("/x", "WebSocketTrustedOrigin"))
        checked.refused("WebSocketTrustedOrigin", at="    WebSocketTrustedOrigin")

    @pytest.mark.parametrize("word", ["Maybe", "1", ""])
    def test_flag(self, httpd, word):
        checked = httpd.check(echo("/x", f"WebSocketAllowReservedStatusCodes {word}"))
        checked.refused("WebSocketAllowReservedStatusCodes", at="    WebSocketAllow")


DIRECTIVES = [
    f'WebSocketHandler "{ECHO}" echo_init',
    "WebSocketMaxMessageSize 1M",
    "MaxMessageSize 1M",
    "WebSocketOriginCheck Trusted",
    "WebSocketTrustedOrigin https://www.example.com",
    "WebSocketAllowReservedStatusCodes On",
    "WebSocketSendQueueLimit 1M",
]
CONTEXTS = {
    "server": "{}\n",
    "virtual host": "<VirtualHost *:${{PORT}}>\n{}\n</VirtualHost>\n",
    "directory": '<Directory "${{EXAMPLES}}">\n{}\n</Directory>\n',
    "location": "<Location /x>\n{}\n</Location>\n",
    "location by pattern": "<LocationMatch ^/x>\n{}\n</LocationMatch>\n",
    "files": '<Files "*.ws">\n{}\n</Files>\n',
}


class TestContexts:
    @pytest.mark.parametrize("directive", DIRECTIVES, ids=lambda d: d.split()[0])
    @pytest.mark.parametrize("context", CONTEXTS)
    def test_legal(self, httpd, context, directive):
        checked = httpd.check(CONTEXTS[context].format(directive))
        assert checked.ok, checked.output


class TestServerWide:
    CONF = f"""
        WebSocketHandler "{ECHO}" echo_init
        WebSocketMaxMessageSize 2k
        SetHandler websocket-handler
        <VirtualHost *:${{PORT}}>
            ServerName localhost
            WebSocketOriginCheck Off
        </VirtualHost>
        <VirtualHost *:${{PORT}}>
            ServerName other.example
            WebSocketMaxMessageSize 300
        </VirtualHost>
    """

    def test_everywhere(self, ws):
        limited_to(ws, "/any/where", 2048)

    def test_virtual_host_adds(self, ws):
        works(ws("/x", Origin="http://evil.example"))

    def test_virtual_host_overrides(self, ws):
        limited_to(ws, "/x", 300, Host="other.example")

    def test_virtual_host_inherits(self, connect):
        response = connect().ask("/x", Host="other.example", Origin="http://evil.example")
        assert response.status == 403


class TestMerging:
    """An inner section changes what it sets and nothing else."""

    CONF = (
        "WebSocketMaxMessageSize 4k\n"
        + echo("/outer", "WebSocketOriginCheck Trusted", "WebSocketTrustedOrigin http://a.example")
        + """
        <Location /outer/size>
            WebSocketMaxMessageSize 100
        </Location>
        <Location /outer/size/open>
            WebSocketOriginCheck Off
        </Location>
        <Location /outer/list>
            WebSocketTrustedOrigin http://b.example
        </Location>
        <Location /outer/codes>
            WebSocketAllowReservedStatusCodes On
        </Location>
        <Location /outer/codes/strict>
            WebSocketAllowReservedStatusCodes Off
        </Location>
        <Location /outer/queue>
            WebSocketSendQueueLimit 1M
        </Location>
        <Location /outer/default>
            WebSocketOriginCheck Same
        </Location>
        """
        + location("/outer/plugin", "${PLUGINS}/legacy.so", "legacy_init")
    )
    A, B = "http://a.example", "http://b.example"

    def allowed(self, connect, path, origin):
        return connect().ask(path, Origin=origin).status == 101

    def test_server_level_reaches_the_outer_section(self, ws):
        limited_to(ws, "/outer", 4096, Origin=self.A)

    @pytest.mark.parametrize("path", ["/outer", "/outer/size", "/outer/codes", "/outer/queue", "/outer/plugin"])
    def test_origins_are_inherited(self, connect, path):
        assert self.allowed(connect, path, self.A)
        assert not self.allowed(connect, path, self.B)

    def test_size(self, ws):
        limited_to(ws, "/outer/size", 100, Origin=self.A)

    def test_third_level(self, ws):
        limited_to(ws, "/outer/size/open", 100, Origin="http://evil.example")

    def test_list(self, ws, connect):
        limited_to(ws, "/outer/list", 4096, Origin=self.B)
        assert not self.allowed(connect, "/outer/list", "http://c.example")

    def test_word(self, connect, httpd):
        assert self.allowed(connect, "/outer/default", f"http://localhost:{httpd.port}")
        assert not self.allowed(connect, "/outer/default", self.A)

    @pytest.mark.parametrize(
        "path, code", [("/outer", 1002), ("/outer/codes", 2000), ("/outer/codes/strict", 1002)]
    )
    def test_flag(self, ws, path, code):
        client = ws(path)
        client.send(close_frame(2000))
        client.expect_close(code, reply=False)

    def test_plugin(self, ws):
        client = ws("/outer/plugin", Origin=self.A)
        client.send(frame(TEXT, "shout"))
        client.expect(TEXT, "SHOUT")
        limited_to(ws, "/outer/plugin", 4096)


class TestHtaccess:
    CONF = echo("/ht") + """
        <Directory "${ROOT}/htdocs/ht">
            AllowOverride AuthConfig
        </Directory>
        <Directory "${ROOT}/htdocs/ht/closed">
            AllowOverride None
        </Directory>
    """

    @pytest.fixture
    def htaccess(self, httpd):
        def write(name, *lines):
            folder = httpd.root / "htdocs/ht" / name
            folder.mkdir(parents=True, exist_ok=True)
            (folder / ".htaccess").write_text("\n".join(lines) + "\n")
            (folder / "page.html").write_text("a page\n")
            return f"/ht/{name}"

        return write

    def test_size(self, ws, htaccess):
        limited_to(ws, htaccess("size", "WebSocketMaxMessageSize 50") + "/x", 50)

    def test_origin(self, connect, htaccess):
        path = htaccess("origin", "WebSocketOriginCheck Trusted", "WebSocketTrustedOrigin http://a.example")
        assert connect().ask(path + "/x", Origin="http://a.example").status == 101
        assert connect().ask(path + "/x", Origin="http://b.example").status == 403

    def test_codes(self, ws, htaccess):
        client = ws(htaccess("codes", "WebSocketAllowReservedStatusCodes On") + "/x")
        client.send(close_frame(2999))
        client.expect_close(2999, reply=False)

    @pytest.mark.parametrize(
        "directive", [f"WebSocketHandler {ECHO} echo_init", "WebSocketSendQueueLimit 1M"],
        ids=lambda d: d.split()[0],
    )
    def test_not_for_htaccess(self, connect, httpd, htaccess, directive):
        name = directive.split()[0]
        path = htaccess(name, directive)
        httpd.expect_log(rf"\[core:alert\].*{path}/\.htaccess: {name} not allowed here")
        assert connect().ask(path + "/x").status == 500
        client = connect()
        client.send(f"GET {path}/page.html HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert client.read_response().status == 500

    def test_bad_value(self, connect, httpd, htaccess):
        path = htaccess("bad", "WebSocketMaxMessageSize 64X")
        httpd.expect_log(rf"\[core:alert\].*{path}/\.htaccess: .*WebSocketMaxMessageSize")
        assert connect().ask(path + "/x").status == 500

    def test_override_that_is_not_allowed(self, ws, htaccess):
        limited_to(ws, htaccess("size", "WebSocketMaxMessageSize 50") + "/x", 50)
        client = ws(htaccess("closed", "WebSocketMaxMessageSize 50") + "/x")
        works(client, "x" * 51)


class TestOldNames:
    def test_alias_works_and_says_so(self, httpd, connect):
        httpd.expect_log(r"\[websocket:(warn|notice)\](?=.*\bMaxMessageSize\b)(?=.*WebSocketMaxMessageSize)")
        with httpd.serve(echo("/x", "MaxMessageSize 70")):
            client = connect()
            client.upgrade("/x")
            client.send(frame(BINARY, b"x" * 70))
            client.expect(BINARY, b"x" * 70)
            client.send(frame(BINARY, length=71))
            client.expect_close(1009)


class TestLoading:
    def test_loading_alone_changes_nothing(self, httpd, connect):
        with httpd.serve(""):
            client = connect()
            client.send(b"GET /index.html HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert client.read_response().status == 200
            assert connect().ask("/absent").status == 404

    def test_ifmodule_knows_the_name_of_old(self, httpd):
        checked = httpd.check("<IfModule mod_websocket.c>\n    NoSuchDirective\n</IfModule>\n")
        checked.refused("NoSuchDirective")

    def test_one_plugin_in_many_sections(self, httpd, connect):
        with httpd.serve("".join(echo(f"/e{n}") for n in range(30))):
            for n in range(30):
                client = connect()
                client.upgrade(f"/e{n}")
                works(client)
                client.sock.close()

    def test_init_and_destroy_pair(self, httpd):
        httpd.plugin_trail.unlink(missing_ok=True)
        with httpd.serve(debug()):
            httpd.graceful()
            httpd.restart()
        lines = httpd.trail_lines(httpd.plugin_trail)
        assert lines.count("init") >= 4  # two passes at the start, one for each restart
        assert lines.count("init") == lines.count("destroy")
        running = 0
        for line in lines:
            running += 1 if line == "init" else -1
            assert 0 <= running <= 1

    def test_library_named_twice_in_a_section(self, httpd, connect):
        conf = echo("/x", f'WebSocketHandler "{BROKEN}" minimal_init')
        with httpd.serve(conf):
            client = connect()
            client.upgrade("/x")
            works(client)


class TestAdvice:
    """Settings of the MPM that end or starve WebSockets are named at start, each with what to set instead."""

    def advice(self, httpd, conf):
        with httpd.serve(conf):
            lines = [line for line in httpd.new_log().splitlines() if ":warn]" in line and "WS04" in line]
        return {line.split("WS", 1)[1][:4]: line for line in lines}

    def test_none(self, httpd):
        """The settings that the tests use by themselves are right."""
        assert not self.advice(httpd, echo())

    def test_none_without_websockets(self, httpd):
        assert not self.advice(httpd, "MaxConnectionsPerChild 10\n")

    def test_no_spare_slot(self, httpd):
        found = self.advice(httpd, "ServerLimit 4\n" + echo())
        assert list(found) == ["0406"] and "ServerLimit 8" in found["0406"]

    def test_few_spare_threads(self, httpd):
        found = self.advice(httpd, "<IfModule !none>\nMaxSpareThreads 80\n</IfModule>\n" + echo())
        assert list(found) == ["0407"] and "set MaxSpareThreads 256" in found["0407"]

    def test_connections_per_child(self, httpd):
        found = self.advice(httpd, "MaxConnectionsPerChild 1000\n" + echo())
        assert list(found) == ["0408"] and "set MaxConnectionsPerChild 0" in found["0408"]
