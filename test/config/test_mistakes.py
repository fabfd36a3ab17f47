"""An administrator's mistakes: what is said of them, at configtest or when they show.

Configurations that httpd refuses to start with are errors; those that are legal and cannot be meant get a warning. Each
line names its place and what to write instead.
"""

import collections
import re
import shutil
import struct

import pytest
from httpd import PREFORK, TOP, echo, location
from ws_frame import TEXT, frame

pytestmark = pytest.mark.once

PLUGIN = 'WebSocketHandler "${EXAMPLES}/mod_websocket_echo.so" echo_init'
BRIDGE = "WebSocketBridge tcp://127.0.0.1:5900"
HANDLER = "SetHandler websocket-handler"
ALLOWED = "WebSocketBridgeAllow tcp://127.0.0.1:5900-5999"


ANY_PORT = 'WebSocketBridge "tcp://127.0.0.1:%{QUERY_STRING}"'


def section(opening, *lines):
    name = opening.split()[0]
    return "\n".join([f"<{opening}>", *(f"    {line}" for line in lines), f"</{name}>", ""])


def here(path, *lines):
    return section(f"Location {path}", *lines)


def trusting(*origins):
    return echo("/x", "WebSocketOriginCheck Trusted", f"WebSocketTrustedOrigin {' '.join(origins)}")


# name: the configuration, the level, the words of the line, what stands on the line that it names.
MISTAKES = {
    "messages larger than the memory": (
        "WebSocketMemoryLimit 64M\n" + echo("/x", "WebSocketMaxMessageSize 65M"), "warn",
        ["WS0414", "WebSocketMaxMessageSize 65M", "set WebSocketMemoryLimit higher"], "WebSocketMaxMessageSize",
    ),
    "the same in quotes": (
        "WebSocketMemoryLimit 64M\n" + echo("/x", "WebSocketMaxMessageSize '65M'"), "warn",
        ["WS0414", "set WebSocketMemoryLimit higher"], "WebSocketMaxMessageSize",
    ),
    "the default size larger than the memory": (
        "WebSocketMemoryLimit 16M\n" + echo("/a", "WebSocketMaxMessageSize 1M") + echo("/x"), "warn",
        ["WS0414", "default of WebSocketMaxMessageSize", "set WebSocketMemoryLimit higher"], "WebSocketMemoryLimit",
    ),
    # --- an endpoint that no request gets to ---
    "no SetHandler": (here("/x", PLUGIN), "warn", ["WS0420", "<Location /x>", "add that line beside it"], PLUGIN),
    "no SetHandler for a bridge": (here("/x", BRIDGE), "warn", ["WS0420", "WebSocketBridge on", HANDLER], BRIDGE),
    "no SetHandler for a backend": (
        here("/x", "WebSocketBridgeBackend defaultpeer"), "warn",
        ["WS0420", "WebSocketBridgeBackend on", HANDLER], "WebSocketBridgeBackend",
    ),
    "a mistyped SetHandler": (
        here("/x", "SetHandler websocket-handlers", PLUGIN), "warn",
        ["WS0420", "'SetHandler websocket-handlers'", f"write '{HANDLER}'"], PLUGIN,
    ),
    "another SetHandler": (
        here("/x", PLUGIN, "SetHandler websocket"), "warn",
        ["WS0420", "'SetHandler websocket'", f"write '{HANDLER}'"], PLUGIN
    ),
    "the right one elsewhere": (
        echo("/a") + here("/b", PLUGIN), "warn", ["WS0420", "<Location /b>"], "<Location /b>+1"
    ),
    "the right one beside": (
        echo("/b/a") + here("/b/c", PLUGIN), "warn", ["WS0420", "<Location /b/c>"], "<Location /b/c>+1"
    ),
    "the right one for a pattern": (
        section('LocationMatch "^/vnc/[0-9]"', HANDLER, BRIDGE) + here("/x", BRIDGE), "warn",
        ["WS0420", "<Location /x>"],
        "<Location /x>+1",
    ),
    "a pattern without": (
        echo("/a") + section('LocationMatch "^/b/[0-9]"', BRIDGE), "warn",
        ["WS0420", '<LocationMatch "^/b/[0-9]">'], BRIDGE
    ),
    "the right one in another virtual host": (
        section("VirtualHost *:1", HANDLER, BRIDGE) + section("VirtualHost *:2", here("/x", PLUGIN)), "warn",
        ["WS0420"], PLUGIN
    ),
    "none at all for the server": (PLUGIN + "\n", "warn", ["WS0420", "in any section", HANDLER], PLUGIN),
    "a folder": (section('Directory "/x"', PLUGIN), "warn", ["WS0420", '<Directory "/x">', HANDLER], PLUGIN),
    # --- origins ---
    "Trusted without origins": (
        echo("/x", "WebSocketOriginCheck Trusted"), "warn",
        ["WS0422", "every page gets 403", "WebSocketTrustedOrigin https://", "WebSocketOriginCheck Same"],
        "WebSocketOriginCheck",
    ),
    "Trusted with origins elsewhere": (
        echo("/x", "WebSocketOriginCheck Trusted")
        + echo("/y", "WebSocketOriginCheck trusted", "WebSocketTrustedOrigin https://example.com"),
        "warn", ["WS0422"], "WebSocketOriginCheck",
    ),
    "Trusted with origins in .htaccess, which are not enough": (
        echo("/x", "WebSocketOriginCheck Trusted") + section('Directory "${ROOT}/htdocs"', "AllowOverride AuthConfig"),
        "warn", ["WS0422"], "WebSocketOriginCheck",
    ),
    "origins without Trusted": (
        echo("/x", "WebSocketOriginCheck Same", "WebSocketTrustedOrigin https://example.com"), "warn",
        ["WS0430", "WebSocketOriginCheck Trusted"], "WebSocketTrustedOrigin",
    ),
    "no endpoint": (
        here("/x", HANDLER) + echo("/y"), "warn", ["WS0431", "get 500", "WebSocketHandler"], "SetHandler",
    ),
    "two handlers": (
        echo("/x", "WebSocketHandler ${PLUGINS}/debug.so debug_init"), "warn",
        ["WS0432", "takes the place of the WebSocketHandler before it", "remove one"], "WebSocketHandler ${PLUGINS}",
    ),
    "a mistake in .htaccess's place": (
        here("/x", 'SetHandler "WebSocket-Handler"') + section('Directory "${ROOT}/htdocs"', "AllowOverride All"),
        "warn", ["WS0431"], "SetHandler",
    ),
    "all origins": (
        echo("/x", "WebSocketTrustedOrigin *"), "error", ["WebSocketTrustedOrigin", "write 'WebSocketOriginCheck Off'"],
        "WebSocketTrustedOrigin",
    ),
    "origins of a domain": (
        echo("/x", "WebSocketTrustedOrigin https://*.example.com"), "error",
        ["https://*.example.com", "name each origin", "https://a.example.com https://b.example.com"],
        "WebSocketTrustedOrigin",
    ),
    "an origin with a path": (
        echo("/x", "WebSocketTrustedOrigin https://example.com/app"), "error",
        ["has a path", "write https://example.com"],
        "WebSocketTrustedOrigin",
    ),
    "an origin with a slash": (
        echo("/x", "WebSocketTrustedOrigin https://example.com/"), "error", ["has a path", "write https://example.com"],
        "WebSocketTrustedOrigin",
    ),
    "an origin without a scheme": (
        echo("/x", "WebSocketTrustedOrigin example.com"), "error",
        ["expected a scheme and a host"], "WebSocketTrustedOrigin"
    ),
    "an origin with the scheme's port": (
        trusting("https://example.com:443"), "warn", ["WS0424", "write https://example.com"],
        "WebSocketTrustedOrigin",
    ),
    "a WebSocket's address as an origin": (
        trusting("wss://example.com"), "warn", ["WS0424", "write https://example.com"],
        "WebSocketTrustedOrigin",
    ),
    "capitals in an origin": (
        trusting("https://Example.com"), "warn", ["WS0424", "write https://example.com"],
        "WebSocketTrustedOrigin",
    ),
    # --- the bridge ---
    "a missing folder": (
        here("/x", HANDLER, "WebSocketBridgeBackend file", "WebSocketBridgeOption path conf/absent",
             "WebSocketBridgeOption expression %endpoint%.txt"),
        "warn", ["WS0425", "/conf/absent", "No such file", "make that folder"], "WebSocketBridgeBackend",
    ),
    "a file for a folder": (
        here("/x", HANDLER, "WebSocketBridgeBackend file", "WebSocketBridgeOption path conf/mime.types",
             "WebSocketBridgeOption expression %endpoint%.txt"),
        "warn", ["WS0425", "is no folder"], "WebSocketBridgeBackend",
    ),
    "a group in a peer": (
        section('LocationMatch "^/vnc/(59[0-9]+)$"', HANDLER, "WebSocketBridge tcp://127.0.0.1:$1", ALLOWED), "error",
        ["'tcp://127.0.0.1:$1' has $1", "not replaced", "%{env:MATCH_PORT}", "(?<port>59[0-9][0-9])"],
        "WebSocketBridge tcp",
    ),
    "a group in a list of peers": (
        here("/x", HANDLER, BRIDGE, "WebSocketBridgeAllow tcp://127.0.0.1:$2"), "error",
        ["has $2"], "WebSocketBridgeAllow"
    ),
    "an expression without a list of peers": (
        here("/x", HANDLER, ANY_PORT), "error", ["WS0428", "WebSocketBridgeAllow in the same section"], ANY_PORT,
    ),
    "a list of peers for another section": (
        here("/x", HANDLER, ANY_PORT) + here("/y", ALLOWED), "error", ["WS0428", "WebSocketBridgeAllow"], ANY_PORT,
    ),
    "ports in the wrong order": (
        here("/x", HANDLER, BRIDGE, "WebSocketBridgeAllow tcp://127.0.0.1:5999-5900"), "error", ["write 5900-5999"],
        "WebSocketBridgeAllow",
    ),
    # --- values ---
    **{
        f"{directive} 5m": (
            conf(f"{directive} 5m"), "error",
            [directive, "write 5min for minutes, 5ms for milliseconds"], f"{directive} 5m"
        )
        for directive, conf in (
            ("WebSocketPingInterval", lambda line: echo("/x", line)),
            ("WebSocketIdleTimeout", lambda line: echo("/x", line)),
            ("WebSocketCloseTimeout", lambda line: echo("/x", line)),
            ("WebSocketBridgeConnectTimeout", lambda line: echo("/x", line)),
            ("WebSocketDrainTime", lambda line: line + "\n"),
        )
    },
    "the old name of a directive": (
        echo("/x", "MaxMessageSize 1M"), "warn",
        ["WS0401", "MaxMessageSize", "WebSocketMaxMessageSize"], "MaxMessageSize"
    ),
    # --- libraries ---
    "data as a function": (
        location("/x", "${ROOT}/data.so", "the_plugin"), "error",
        ["the_plugin", "data of this name", "name the function"],
        "WebSocketHandler",
    ),
    "data as a backend's function": (
        here("/x", HANDLER, "WebSocketBridgeBackend ${ROOT}/data.so"), "error", ["data.so", "its init is data"],
        "WebSocketBridgeBackend",
    ),
    "another architecture": (
        location("/x", "${ROOT}/other.so", "echo_init"), "error",
        ["other.so", "another machine (AArch64, 64 bits", "compile"],
        "WebSocketHandler",
    ),
    "a backend of another architecture": (
        here("/x", HANDLER, "WebSocketBridgeBackend ${ROOT}/other.so"), "error", ["other.so", "another machine"],
        "WebSocketBridgeBackend",
    ),
}

# What is in order, though it may look like one of them.
IN_ORDER = {
    "nothing": "",
    "what is installed": f'Include "{TOP}/conf/websocket.conf"',
    "an endpoint": echo("/x"),
    "the handler's name in capitals and quotes": here("/x", 'SetHandler "WebSocket-Handler"', PLUGIN),
    "SetHandler for the server": f"{HANDLER}\n" + here("/x", PLUGIN),
    "SetHandler for a virtual host": section("VirtualHost *:1", HANDLER, here("/x", PLUGIN)),
    "SetHandler for all virtual hosts": f"{HANDLER}\n" + section("VirtualHost *:1", here("/x", PLUGIN)),
    "SetHandler in an outer section": here("/", HANDLER) + here("/x", PLUGIN),
    "SetHandler in an inner section": here("/x", PLUGIN) + here("/x/ws", HANDLER),
    "SetHandler in the same section again": here("/x", PLUGIN) + here('"/x"', HANDLER),
    "an endpoint for the server": f"{PLUGIN}\n" + here("/x", HANDLER),
    "SetHandler by pattern": section('LocationMatch "^/(x|y)$"', HANDLER) + here("/x", PLUGIN),
    "SetHandler in <If>": here("/x", PLUGIN, section("If \"%{HTTP:Upgrade} == 'websocket'\"", HANDLER)),
    "SetHandler in <If> of the server": section("If \"%{HTTP:Upgrade} == 'websocket'\"", HANDLER) + here("/x", PLUGIN),
    "SetHandler by expression": here("/x", PLUGIN, 'SetHandler "%{reqenv:HANDLER}"'),
    "AddHandler": section('Directory "${ROOT}/htdocs"', "AddHandler websocket-handler .ws") + here("/x", PLUGIN),
    "RewriteRule": 'RewriteEngine On\nRewriteRule "^/x" "-" [H=websocket-handler]\n' + here("/x", PLUGIN),
    "a folder": section('Directory "/x"', PLUGIN) + section('Directory "/x/y"', HANDLER),
    "a folder and a path": section('Directory "/x"', PLUGIN) + here("/y", HANDLER),
    "a folder that may have it in .htaccess": section('Directory "${ROOT}/htdocs"', PLUGIN, "AllowOverride FileInfo"),
    "a path that may have it in .htaccess": (
        here("/x", PLUGIN) + section('Directory "${ROOT}/htdocs"', "AllowOverride FileInfo")
    ),
    "SetHandler by pattern with a parenthesis": section('LocationMatch "^/y\\(|^/x"', HANDLER) + here("/x", PLUGIN),
    "a name of the administrator's": "Define H websocket-handler\n" + here("/x", "SetHandler ${H}", PLUGIN),
    "a macro": "<Macro ws $path>\n" + here("$path", HANDLER, PLUGIN) + "</Macro>\nUse ws /x\n",
    "no WebSocket's module": "<IfModule !mod_websocket.c>\n" + here("/x", PLUGIN) + "</IfModule>\n",
    "a list of peers in the same section": here("/x", HANDLER, ANY_PORT, ALLOWED),
    "a list of peers in an outer section": here("/", ALLOWED) + here("/x", HANDLER, ANY_PORT),
    "a list of peers for the server": f"{ALLOWED}\n" + here("/x", HANDLER, ANY_PORT),
    "a list of peers for all virtual hosts": f"{ALLOWED}\n" + section("VirtualHost *:1", here("/x", HANDLER, ANY_PORT)),
    "a list of peers by pattern": section('LocationMatch "^/(x|y)$"', ALLOWED) + here("/x", HANDLER, ANY_PORT),
    "Trusted with origins": echo("/x", "WebSocketOriginCheck Trusted", "WebSocketTrustedOrigin https://example.com"),
    "origins of the server": (
        "WebSocketTrustedOrigin https://example.com\n" + echo("/x", "WebSocketOriginCheck Trusted")
    ),
    "origins in an inner section": (
        echo("/x", "WebSocketOriginCheck Trusted") + here("/x/y", "WebSocketTrustedOrigin https://example.com")
    ),
    "a check in .htaccess": (
        "WebSocketTrustedOrigin https://example.com\n"
        + section('Directory "${ROOT}/htdocs"', "AllowOverride AuthConfig")
    ),
    "a small memory and a small size for all": (
        "WebSocketMemoryLimit 16M\nWebSocketMaxMessageSize 16M\n" + echo("/x")
    ),
    "a small memory and small sizes": "WebSocketMemoryLimit 16M\n" + echo("/x", "WebSocketMaxMessageSize 1M"),
    "messages as large as the memory": echo("/x", "WebSocketMaxMessageSize 256M"),
    "Same without origins": echo("/x", "WebSocketOriginCheck Same"),
    "origins of all kinds": echo(
        "/x", "WebSocketOriginCheck Trusted", "WebSocketTrustedOrigin https://example.com http://localhost:8080 http://[::1]",
        "WebSocketTrustedOrigin null chrome-extension://AbC",
    ),
    "a folder of peers": here(
        "/x", HANDLER, "WebSocketBridgeBackend file", "WebSocketBridgeOption path conf",
        "WebSocketBridgeOption expression x",
    ),
    "an expression with an anchor": section(
        'LocationMatch "^/vnc/(?<port>59[0-9]+)$"', HANDLER,
        'WebSocketBridge "tcp://127.0.0.1:%{env:MATCH_PORT}"', ALLOWED,
    ),
    "minutes": echo("/x", "WebSocketPingInterval 5min", "WebSocketIdleTimeout 500ms"),
}


@pytest.fixture(scope="module", autouse=True)
def libraries(httpd):
    """A library that has data where functions are asked for, and one for another machine."""
    httpd.compile("data", "int the_plugin[8]; int init = 1, query = 2;\n")
    library = bytearray((httpd.examples / "mod_websocket_echo.so").read_bytes())
    struct.pack_into("<H", library, 18, 183)  # e_machine: AArch64
    (httpd.root / "other.so").write_bytes(library)


def check(httpd, conf):
    return httpd.check(conf, modules=["rewrite", "macro"])


def lines_of(checked):
    """What the module says, apart from httpd's own lines."""
    return [line for line in checked.output.splitlines() if "[websocket:" in line]


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake(httpd, name):
    conf, level, words, at = MISTAKES[name]
    checked = check(httpd, conf)
    text, _, offset = at.partition("+")
    number = checked.line_of(text) + int(offset or 0)
    place = f"line {number} of {checked.conf}"
    if level == "error":
        checked.refused(*words, place)
        return
    assert checked.ok, checked.output
    said = lines_of(checked)
    assert len(said) == 1 and f"[websocket:{level}]" in said[0], said
    for word in (*words, place):
        assert word in said[0], f"{word!r} is not in: {said[0]}"


def test_one_mistake_in_many_sections(httpd):
    """It is not said of each of them."""
    checked = check(httpd, "".join(here(f"/x{n}", PLUGIN) for n in range(2000)))
    assert checked.ok, checked.output
    said = lines_of(checked)
    assert len(said) == 21 and all("WS0420" in line for line in said)
    assert "Location /x19>" in said[19] and "perhaps, with more" in said[20]


@pytest.mark.parametrize("name", IN_ORDER)
def test_in_order(httpd, name):
    checked = check(httpd, IN_ORDER[name])
    assert checked.ok, checked.output
    assert not lines_of(checked)


def test_once_at_start(httpd, connect):
    """The error log has the warning once for each time that the configuration is read, and the server serves."""
    httpd.expect_log("websocket:warn.*WS0420: WebSocketHandler on line")
    with httpd.serve(here("/x", PLUGIN)):
        assert httpd.new_log().count("WS0420") == 1
        with connect() as client:
            assert client.ask("/x").status == 404
        httpd.graceful()
        assert httpd.new_log().count("WS0420") == 2


DRAFT76 = """
#include "httpd.h"
#include "http_config.h"
module AP_MODULE_DECLARE_DATA websocket_draft76_module = {
    STANDARD20_MODULE_STUFF, NULL, NULL, NULL, NULL, NULL, NULL
};
"""


class TestOldDraft76:
    """The module for drafts 76 and 75 has to be this project's."""

    def test_of_another_project(self, httpd):
        other = httpd.compile("mod_websocket_draft76", DRAFT76)
        checked = httpd.check(f'LoadModule websocket_draft76_module "{other}"\n' + echo())
        assert checked.ok, checked.output
        (line,) = lines_of(checked)
        for word in ("[websocket:warn]", "WS0426", f"loaded from {other}", "400"):
            assert word in line
        assert f"'LoadModule websocket_draft76_module {httpd.module}'" in line

    def test_our_own(self, httpd):
        checked = httpd.check('LoadModule websocket_draft76_module "${MODULE}"\n' + echo())
        assert checked.ok and not lines_of(checked)


# As WordPress and others write it.
FRONT_CONTROLLER = """
RewriteEngine On
RewriteRule ^index\\.html$ - [L]
RewriteCond %{REQUEST_FILENAME} !-f
RewriteCond %{REQUEST_FILENAME} !-d
RewriteRule . /front/index.html [L]
"""


# That there is nobody to trust does not show before.
NOBODY = ("WebSocketOriginCheck Trusted", '<If "false">', "WebSocketTrustedOrigin https://example.com", "</If>")


class TestAtRequest:
    """What shows only when a handshake comes."""

    CONF = (
        echo("/front/ws")
        + echo("/front/exempt", "RewriteEngine Off")
        + echo("/trusted", *NOBODY)
        + echo("/refused", *NOBODY, "ErrorDocument 403 /index.html")
        + echo("/moved")
        + here("/x", f"{PLUGIN}")
        + section("LocationMatch ^/x[.]handled$", "SetHandler websocket-handler")
        + section('Directory "${ROOT}/htdocs"', "AllowOverride AuthConfig FileInfo")
    )

    @pytest.fixture(scope="class", autouse=True)
    def _class_conf(self, request, httpd):
        texts = {"front": FRONT_CONTROLLER, "old": "RewriteEngine On\nRewriteRule . /moved\n"}
        for name, text in texts.items():
            (httpd.root / "htdocs" / name).mkdir()
            (httpd.root / "htdocs" / name / ".htaccess").write_text(text)
            (httpd.root / "htdocs" / name / "index.html").write_text("a page\n")
        with httpd.serve(self.CONF, modules=["rewrite"]):
            yield
        for name in texts:
            shutil.rmtree(httpd.root / "htdocs" / name)

    @staticmethod
    def assert_once_a_minute(httpd):
        """In each process, and a minute may begin meanwhile."""
        lines = collections.Counter(re.findall(r":warn\] \[pid (\d+)", httpd.new_log()))
        assert lines and set(lines.values()) <= {1, 2}, lines
        assert PREFORK or len(lines) == 1

    def test_front_controller(self, httpd, connect):
        """It answers in place of the endpoint: the log says so, and how to help it."""
        httpd.expect_log(
            r"\[websocket:warn\].*WS0427: /front/ws has .*rewritten to /front/index.html.*'RewriteEngine Off'"
        )
        for _ in range(4):
            assert connect().ask("/front/ws").status == 200
        self.assert_once_a_minute(httpd)

    def test_its_remedy(self, ws):
        client = ws("/front/exempt")
        client.send(frame(TEXT, "hello"))
        client.expect(TEXT, "hello")

    def test_rewritten_to_an_endpoint(self, httpd, ws):
        client = ws("/old/x")
        client.send(frame(TEXT, "hello"))
        client.expect(TEXT, "hello")
        assert "WS042" not in httpd.new_log()

    def test_other_handler(self, httpd, connect):
        assert connect().ask("/x").status == 404
        httpd.expect_log(r"\[websocket:info\].*WS0421: /x has .*handler, httpd's own: 'SetHandler websocket-handler")

    def test_a_page_is_nothing_to_speak_of(self, httpd, connect):
        for path in ("/x", "/front/ws", "/index.html"):
            client = connect()
            client.send(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            client.read_response()
        assert connect().ask("/index.html").status == 200
        assert "WS042" not in httpd.new_log()

    def test_nobody_is_trusted(self, httpd, connect):
        httpd.expect_log(r"\[websocket:warn\].*WS0423: /trusted has .*Trusted'.*WebSocketTrustedOrigin https:")
        for _ in range(4):
            assert connect().ask("/trusted", Origin="https://example.com").status == 403
        self.assert_once_a_minute(httpd)

    def test_an_error_page_is_no_rewriting(self, httpd, connect):
        httpd.allow_log("WS0423")
        assert connect().ask("/refused", Origin="https://example.com").status == 403
        assert "WS0427" not in httpd.new_log()


@pytest.mark.parametrize(
    "controller",
    [
        'RewriteEngine On\nRewriteRule "^/(?!index)" "/index.html"\n',
        section('Directory "${ROOT}/htdocs"', "FallbackResource /index.html"),
    ],
    ids=["rules of the server", "FallbackResource"],
)
def test_front_controllers_that_take_nothing_away(httpd, connect, controller):
    with httpd.serve(controller + echo("/ws"), modules=["rewrite"]):
        assert connect().ask("/elsewhere").status == 200
        assert connect().ask("/ws").status == 101
        assert "WS042" not in httpd.new_log()


class TestHtaccess:
    """What is read anew for each request is said at level debug there."""

    CONF = echo("/own") + section('Directory "${ROOT}/htdocs/own"', "AllowOverride AuthConfig")

    def test_no_warning_for_each_request(self, httpd, connect):
        folder = httpd.root / "htdocs/own"
        folder.mkdir()
        (folder / ".htaccess").write_text("WebSocketTrustedOrigin https://example.com:443\nMaxMessageSize 1M\n")
        assert connect().ask("/own/x").status == 101
        assert httpd.new_log().count("[websocket:debug]") >= 2
        assert "WS0424" in httpd.new_log() and "WS0401" in httpd.new_log()
        shutil.rmtree(folder)
