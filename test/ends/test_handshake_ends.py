"""Handshakes that end badly or come by detours: clients that vanish during one, and internal redirects.

What a child must not do then is crash, keep something, or say more than one response.
"""

import contextlib
import socket
import ssl
from concurrent.futures import ThreadPoolExecutor

import pytest
from ws_frame import PING, PONG, TEXT, Client, close_frame, frame, works

from httpd import TLS, debug, echo, location, sized, wait_until

TRANSPORTS = {"ws": None, "wss-1.2": ssl.TLSVersion.TLSv1_2, "wss-1.3": ssl.TLSVersion.TLSv1_3}


def arrive(httpd, transport, **kw):
    """A new connection, after its TLS handshake."""
    if transport == "ws":
        return Client(httpd.port, **kw)
    return Client(httpd.tls_port, tls=httpd.tls_context(TRANSPORTS[transport]), **kw)


def a_visit(httpd, transport, path="/echo"):
    with arrive(httpd, transport) as client:
        client.upgrade(path)
        works(client)
        client.close()


def enough(children):
    """So many children on prefork that clients hardly wait for one."""
    return f"""
    <IfModule mpm_prefork_module>
        StartServers {children}
        MinSpareServers 1
    </IfModule>
    """


# --- clients that vanish -------------------------------------------------------------------------


def close(client):
    """An end of the stream; a reset may follow it, if there was something to read."""
    client.sock.shutdown(socket.SHUT_WR)
    client.sock.close()


def half_close(client):
    """An end of the stream, of which the client awaits the answer."""
    client.sock.shutdown(socket.SHUT_WR)
    with contextlib.suppress(OSError):
        while client.sock.recv(1 << 16):
            pass
    client.sock.close()


def close_notify(client):
    """What TLS has for an end, and then the stream's."""
    client.sock.settimeout(0)
    with contextlib.suppress(OSError):
        client.sock.unwrap()  # which does not wait for the server's
    close(client)


HOW = {"reset": Client.reset, "close": close, "half-close": half_close, "close_notify": close_notify}
# How far a client comes, and how many go just so far.
MOMENTS = {
    "before the request": 10,
    "within the request": 10,
    "behind the request": 80,
    "behind early frames": 30,
    "behind the 101": 30,
}
SLEEP = ("X-Debug-Sleep", "25")
# What serves them, and the headers that tell it.
PLUGINS = {
    "echo": ("/echo", ()),
    "debug": ("/debug", ()),
    "sleeps": ("/debug", (SLEEP,)),
    "keeps the request, sleeps": ("/debug", (SLEEP, ("X-Debug-Request", "1"))),
}


class TestVanishingClients:
    CONF = enough(24) + TLS + echo() + debug()

    @pytest.mark.parametrize("plugin", PLUGINS)
    @pytest.mark.parametrize(
        "transport, how", [(t, h) for t in TRANSPORTS for h in HOW if (t, h) != ("ws", "close_notify")]
    )
    def test_at_any_moment(self, httpd, transport, how, plugin):
        path, headers = PLUGINS[plugin]
        trail = httpd.trail("vanishing")
        headers = [*headers, ("X-Debug-Trail", str(trail))]
        moments = {moment: count * sized(1, 10) for moment, count in MOMENTS.items()}
        # The kinds take turns, so that they also meet each other.
        plan = sorted((n / count, moment) for moment, count in moments.items() for n in range(count))
        served = []

        def vanish(number, moment):
            client = arrive(httpd, transport)
            name = f"{number}"
            request = client.request(path, [*headers, ("X-Debug-Name", name)])
            if moment == "within the request":
                client.send(request[: len(request) // 2])
            elif moment == "behind early frames":
                client.send(request + frame(TEXT, "version") + frame(PING, "?") * 3)
            elif moment != "before the request":
                client.send(request)
            if moment == "behind the 101":
                assert client.read_response().status == 101
                served.append(name)
            HOW[how](client)

        def held():
            """How many descriptors each child holds, if all hold as many."""
            numbers = {httpd.descriptors(child) for child in httpd.children()}
            return numbers.pop() if len(numbers) == 1 else None

        a_visit(httpd, transport)
        httpd.settle()
        idle = wait_until(held, 10, "children at rest")
        children = set(httpd.children())
        with contextlib.ExitStack() as stack:
            witnesses = [stack.enter_context(arrive(httpd, transport)) for _ in range(4)]
            for witness in witnesses:
                witness.upgrade()
                works(witness)
            with ThreadPoolExecutor(8) as clients:
                list(clients.map(lambda job: vanish(job[0], job[1][1]), enumerate(plan)))
            assert children <= set(httpd.children())
            for witness in witnesses:
                works(witness)
            a_visit(httpd, transport)
            self.all_disconnected(httpd, trail, served if path == "/debug" else [])
            for witness in witnesses:
                witness.close()
        wait_until(lambda: (held() or idle + 1) <= idle, 10, f"the return to {idle} descriptors")
        assert children <= set(httpd.children())

    @staticmethod
    def all_disconnected(httpd, trail, served):
        """Each connection that the plugin has accepted ends, once."""
        def events(kind):
            words = (line.split() for line in httpd.trail_lines(trail))
            return sorted(name for event, name in words if event == kind)

        wait_until(lambda: events("connect") == events("disconnect"), 10, "on_disconnect for each")
        names = events("disconnect")
        assert len(set(names)) == len(names)
        assert set(served) <= set(names)


# --- internal redirects --------------------------------------------------------------------------

# How a redirected request is served.
WAYS = {
    "detached": echo("/detached", "WebSocketDetach On"),
    "blocking": echo("/blocking", "WebSocketDetach Off"),
    "request": location("/request", "${PLUGINS}/request.so", "request_init"),
}
# Routes to `/{way}`.
ROUTES = {
    "folder": "/folder/{way}",
    "htaccess": "/htaccess/{way}",
    "missing": "/missing/{way}",
    "forbidden": "/forbidden/{way}",
    "index": "/index/{way}/",
    "fallback": "/fallback/{way}/none",
    "twice": "/folder/twice/{way}",
    "rewritten and missing": "/folder/missing/{way}",
}


def redirects():
    """What leads to them. (mod_dir looks for files of their names.)"""
    parts = ["""
        LogLevel authz_core:crit
        <Directory "${ROOT}/htdocs">
            AllowOverride FileInfo
        </Directory>
        <Directory "${ROOT}/htdocs/folder">
            RewriteEngine On
            RewriteRule ^(detached|blocking|request)$ /$1 [L]
            RewriteRule ^twice/(.*) /htaccess/$1 [L]
            RewriteRule ^missing/(.*) /missing/$1 [L]
        </Directory>
    """]
    for way in WAYS:
        parts.append(f"""
            <Location /missing/{way}>
                ErrorDocument 404 /{way}
            </Location>
            <Location /forbidden/{way}>
                Require all denied
                ErrorDocument 403 /{way}
            </Location>
            <Directory "${{ROOT}}/htdocs/index/{way}">
                DirectoryIndex /{way}
            </Directory>
            <Directory "${{ROOT}}/htdocs/fallback/{way}">
                FallbackResource /{way}
            </Directory>
        """)
    return "".join(parts)


def prepare_folders(httpd):
    htdocs = httpd.root / "htdocs"
    for_each = [f"{folder}/{way}" for folder in ("index", "fallback") for way in WAYS]
    for folder in ("folder", "htaccess", *for_each):
        (htdocs / folder).mkdir(parents=True, exist_ok=True)
    for way in WAYS:
        (htdocs / way).write_text("")
    (htdocs / "htaccess/.htaccess").write_text(
        "RewriteEngine On\nRewriteRule ^(detached|blocking|request)$ /$1 [L]\n"
    )


# The same lines, selected as docs/directives.md has it.
LOGS = {
    "all": "",
    "ends": "env=!websocket-open",
    "opened": "env=websocket-open",
    "closed": "env=websocket-close",
}
LINES = "".join(
    f"""
    CustomLog logs/{name} "%>s %{{websocket-close-code}}n %{{websocket-messages-in}}n \
%{{websocket-messages-out}}n %U %r" {condition}
    """
    for name, condition in LOGS.items()
)

redirected = pytest.mark.parametrize("route", ROUTES)
each = pytest.mark.parametrize("way", WAYS)
secured = pytest.mark.parametrize("transport", ["ws", "wss-1.3"])


class TestInternalRedirects:
    @pytest.fixture(scope="class", autouse=True)
    def own_server(self, httpd):
        prepare_folders(httpd)
        conf = enough(10) + TLS + LINES + "".join(WAYS.values()) + redirects()
        with httpd.serve(conf, modules=["rewrite"]):
            yield

    @staticmethod
    def lines(httpd, log, mark):
        path = httpd.root / "logs" / log
        lines = path.read_text().splitlines() if path.exists() else []
        return [line for line in lines if mark in line]

    @redirected
    @each
    @secured
    def test_a_conversation(self, httpd, transport, way, route):
        mark = f"{ROUTES[route].format(way=way)}?{transport}"
        with arrive(httpd, transport) as client:
            client.upgrade(mark)
            works(client, "before")
            # httpd has done with the request of a detached connection when it has written this line.
            detached = way == "detached"
            if detached:
                wait_until(lambda: self.lines(httpd, "opened", mark), 5, "the line of a detached connection")
            for n in range(20):
                works(client, f"{n}")
            client.close(4321)
        wait_until(lambda: self.lines(httpd, "closed", mark), 5, "the line of the end")
        httpd.settle()
        # The path may be that of what it was redirected to, but in all lines the same.
        path = self.lines(httpd, "all", mark)[0].split()[4]
        end = f"101 4321 21 21 {path} GET {mark} HTTP/1.1"
        every, ends, opened, closed = (self.lines(httpd, log, mark) for log in LOGS)
        assert closed == ends == [end]
        assert opened == [f"101 - - - {path} GET {mark} HTTP/1.1"] * len(opened)
        assert sorted(every) == sorted(opened + ends)
        assert len(opened) == detached

    @redirected
    @each
    @secured
    def test_all_that_is_on_the_wire(self, httpd, transport, way, route):
        path = ROUTES[route].format(way=way)
        frames = (TEXT, "early"), (PING, "bird"), (TEXT, "x" * 300)
        with arrive(httpd, transport) as client:
            client.send(client.request(path), *(frame(*f) for f in frames), close_frame(1000))
            wire = b""
            while data := client.sock.recv(1 << 16):
                wire += data
        head, _, behind = wire.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 ")
        assert wire.count(b"HTTP/1.1 ") == 1
        answers = (TEXT, "early"), (PONG, "bird"), (TEXT, "x" * 300)
        assert behind == b"".join(frame(*f, mask=None) for f in answers) + close_frame(1000, mask=None)

    @each
    @secured
    @pytest.mark.parametrize("how", ["reset", "half-close"])
    def test_clients_vanish(self, httpd, transport, way, how):
        children = set(httpd.children())

        def vanish(number):
            client = arrive(httpd, transport)
            path = list(ROUTES.values())[number % len(ROUTES)]
            client.send(client.request(path.format(way=way)))
            HOW[how](client)

        with ThreadPoolExecutor(4) as clients:
            list(clients.map(vanish, range(sized(80, 1000))))
        a_visit(httpd, transport, f"/folder/{way}")
        assert children <= set(httpd.children())

    @each
    @secured
    def test_nothing_is_kept(self, httpd, transport, way):
        """A request's pool has 8 KiB at least, and a connection's as much."""
        children = set(httpd.children())

        def converse(number):
            path = list(ROUTES.values())[number % len(ROUTES)]
            a_visit(httpd, transport, path.format(way=way))

        def settled():
            httpd.settle()
            return [sum(map(of, children)) for of in (httpd.memory, httpd.descriptors)]

        with ThreadPoolExecutor(4) as clients:
            list(clients.map(converse, range(200)))
            memory, descriptors = settled()
            count = sized(300, 3000)
            list(clients.map(converse, range(count)))
        after, left = settled()
        assert left <= descriptors
        assert after < memory + count * 8, f"{memory} KiB became {after} KiB"
        assert children <= set(httpd.children())
