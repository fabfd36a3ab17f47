"""Configuration: what is refused and how it is said, where directives may stand, how they merge."""

import pytest
from httpd import PREFORK, debug, echo, location, wait_until
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

    @pytest.mark.parametrize("words", ["1", "200000", "Off", "5 64", "5 1", "5 128", "off 56"])
    def test_connections_of_an_address(self, httpd, words):
        checked = httpd.check(echo("/x", f"WebSocketMaxConnectionsPerIP {words}"))
        assert checked.ok, checked.output

    @pytest.mark.parametrize("words", ["", "0", "200001", "x", "5 0", "5 129", "5 /64", "5 Off", "5 64 64", "-5 64"])
    def test_nonsense_connections_of_an_address(self, httpd, words):
        checked = httpd.check(echo("/x", f"WebSocketMaxConnectionsPerIP {words}"))
        checked.refused("WebSocketMaxConnectionsPerIP", at="    WebSocketMaxConnectionsPerIP")

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


def folder(name, *lines):
    return f'<Directory "${{ROOT}}/htdocs/ht/{name}">\n' + "\n".join(lines) + "\n</Directory>\n"


def path_to(name, *lines):
    return f"<Location /ht/{name}>\n" + "\n".join(lines) + "\n</Location>\n"


HT_A, HT_B = "http://a.example", "http://b.example"
LARGE = f"WebSocketMaxMessageSize {4 << 30}"


class TestHtaccess:
    """A folder's section is merged before its .htaccess, and a path's section after it."""

    CONF = (
        echo("/ht")
        + folder("", "AllowOverride AuthConfig")
        + folder("closed", "AllowOverride None")
        + folder("small", "WebSocketMaxMessageSize 1000")
        + path_to("late", "WebSocketMaxMessageSize 1000")
        + folder("raised", "WebSocketMaxMessageSize 1000")
        + path_to("raised", "WebSocketMaxMessageSize 5000")
        + folder("any", "WebSocketOriginCheck Off")
        + path_to("same", "WebSocketOriginCheck Same")
        + folder("list", "WebSocketOriginCheck Trusted", f"WebSocketTrustedOrigin {HT_A} {HT_B}")
        + path_to("late-list", "WebSocketOriginCheck Trusted", f"WebSocketTrustedOrigin {HT_A} {HT_B}")
        + folder("nobody", "WebSocketOriginCheck Trusted")
        + path_to("codes/strict", "WebSocketAllowReservedStatusCodes Off")
    )

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

    @pytest.mark.parametrize("name, most", [("small", 1000), ("late", 1000), ("raised", 5000)])
    def test_smaller_size(self, ws, httpd, htaccess, name, most):
        limited_to(ws, htaccess(name, f"WebSocketMaxMessageSize {most - 1}") + "/x", most - 1)
        limited_to(ws, htaccess(name, f"WebSocketMaxMessageSize {most}") + "/x", most)
        assert "WS0110" not in httpd.new_log()

    @pytest.mark.parametrize("lines", [
        (LARGE,),
        (LARGE.replace("WebSocket", ""),),
        ('<If "true">', LARGE, "</If>"),
        ('<Files "*">', LARGE, "</Files>"),
    ], ids=["alone", "old name", "If", "Files"])
    @pytest.mark.parametrize("name, most", [("small", 1000), ("late", 1000), ("raised", 5000), ("default", 32 << 20)])
    def test_larger_size(self, ws, httpd, htaccess, name, most, lines):
        path = htaccess(name, *lines)
        if most < 32 << 20:
            limited_to(ws, path + "/x", most)
        client = ws(path + "/x")
        client.send(frame(BINARY, length=most + 1))
        client.expect_close(1009)
        directive = lines[len(lines) // 2].split()[0]
        httpd.expect_log(rf"\[websocket:info\].*WS0110: {directive} on line .*{path}/\.htaccess .*{most} bytes")

    def test_folder_within(self, ws, htaccess):
        htaccess("nest/outer", "WebSocketMaxMessageSize 50")
        limited_to(ws, htaccess("nest/outer/inner", "WebSocketMaxMessageSize 70") + "/x", 70)

    # What a .htaccess file says, and which pages it leaves of a's, b's and the server's own.
    TRUST_A = ("WebSocketOriginCheck Trusted", f"WebSocketTrustedOrigin {HT_A}")
    TRUST_C = ("WebSocketOriginCheck Trusted", "WebSocketTrustedOrigin http://c.example")

    @pytest.mark.parametrize("name, lines, expected", [
        ("default", ("WebSocketOriginCheck Off",), "own"),
        ("default", TRUST_A, ""),
        ("default", ("WebSocketOriginCheck Trusted", "WebSocketTrustedOrigin OWN"), "own"),
        ("same", ("WebSocketOriginCheck Off",), "own"),
        ("same", TRUST_A, ""),
        ("any", ("WebSocketOriginCheck Same",), "own"),
        ("any", TRUST_A, "a"),
        ("any", (f"WebSocketTrustedOrigin {HT_A}",), "a b own"),
        ("list", ("WebSocketOriginCheck Off",), "a b"),
        ("list", ("WebSocketOriginCheck Same",), ""),
        ("list", (f"WebSocketTrustedOrigin {HT_A}",), "a"),
        ("list", TRUST_A, "a"),
        ("list", TRUST_C, ""),
        ("list", ("WebSocketTrustedOrigin OWN",), ""),
        ("late-list", ("WebSocketOriginCheck Off",), "a b"),
        ("late-list", (f"WebSocketTrustedOrigin {HT_A}",), "a"),
        ("late-list", TRUST_C, ""),
        ("nobody", TRUST_A, ""),
    ])
    def test_origins(self, connect, httpd, htaccess, name, lines, expected):
        httpd.allow_log("WS0423")
        pages = {"a": HT_A, "b": HT_B, "own": f"http://localhost:{httpd.port}"}
        path = htaccess(name, *(line.replace("OWN", pages["own"]) for line in lines))
        allowed = {page for page, origin in pages.items() if connect().ask(path + "/x", Origin=origin).status == 101}
        assert allowed == set(expected.split())

    def test_origin_without_effect_is_logged(self, connect, httpd, htaccess):
        path = htaccess("list", "WebSocketOriginCheck Off")
        what = rf"WebSocketOriginCheck on line 1 of .*{path}/\.htaccess .*'WebSocketOriginCheck Trusted'"
        httpd.expect_log(rf"\[websocket:info\].*WS0111: {what}")
        assert connect().ask(path + "/x", Origin="http://c.example").status == 403
        assert connect().ask(path + "/x", Origin=HT_A).status == 101
        wait_until(lambda: "detached" in httpd.new_log() or "httpd's thread" in httpd.new_log())
        assert httpd.new_log().count("WS0111") == 1

    @pytest.mark.parametrize("name, code", [("codes", 2999), ("codes/strict", 1002)])
    def test_codes(self, ws, htaccess, name, code):
        client = ws(htaccess(name, "WebSocketAllowReservedStatusCodes On") + "/x")
        client.send(close_frame(2999))
        client.expect_close(code, reply=False)

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


class TestCanonicalName:
    """`UseCanonicalName On` makes the server's own name count, whatever a client says in Host."""

    CONF = """
    UseCanonicalName On
    <VirtualHost *:${PORT}>
        ServerName www.example.com:${PORT}
        ServerAlias alias.example.com
    """ + echo() + """
    </VirtualHost>
    """

    @pytest.mark.parametrize("host", ["www.example.com", "alias.example.com", "evil.example", "127.0.0.1"])
    def test_own_name(self, connect, httpd, host):
        assert connect().ask("/echo", Host=host, Origin=f"http://www.example.com:{httpd.port}").status == 101

    @pytest.mark.parametrize("host", ["alias.example.com", "evil.example", "127.0.0.1"])
    def test_names_of_clients(self, connect, httpd, host):
        host = f"{host}:{httpd.port}"
        assert connect().ask("/echo", Host=host, Origin=f"http://{host}").status == 403


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
        httpd.expect_log("WS0432: .* takes the place of the WebSocketHandler before it")
        with httpd.serve(conf):
            client = connect()
            client.upgrade("/x")
            works(client)


@pytest.mark.skipif(PREFORK, reason="these are the settings of event and worker")
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
