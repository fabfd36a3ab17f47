"""How many connections there may be, and what server-status says of those there are."""

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from httpd import DETACH, DETACHED, ONE_CHILD, PREFORK, debug, echo, wait_until
from peers import ALLOW, PORT, bridge, fill_queue
from ws_frame import TEXT, frame, works

SITE = (
    echo("/few", "WebSocketMaxConnections 3")
    + echo("/few/inner")
    + echo("/few/own", "WebSocketMaxConnections 1")
    + echo("/few/off", "WebSocketMaxConnections Off")
    + echo("/each", "WebSocketMaxConnectionsPerIP 2")
    + echo("/remote", "WebSocketMaxConnectionsPerIP 2")
    + echo("/remote/48", "WebSocketMaxConnectionsPerIP 2 48")
    + echo("/remote/128", "WebSocketMaxConnectionsPerIP 2 128")
    + echo()
    + """
    <Location /status>
        SetHandler server-status
    </Location>
    """
)


def status_of(connect, path, **headers):
    client = connect()
    client.send(client.request(path, **headers))
    return client, client.read_response()


@contextlib.contextmanager
def killed(children):
    """The children are killed, and others, which live, get the numbers of their processes."""
    last = Path("/proc/sys/kernel/ns_last_pid")
    before = last.read_text() if last.exists() else ""
    try:
        last.write_text(before)
    except OSError:
        pytest.skip("who gets which number cannot be chosen here")
    with contextlib.ExitStack() as stack:

        def taken(number):
            if not Path(f"/proc/{number}").exists():
                last.write_text(str(number - 1))
                process = stack.enter_context(subprocess.Popen(["sleep", "60"]))
                stack.callback(process.kill)
            return Path(f"/proc/{number}").exists()

        for child in children:
            os.kill(child, signal.SIGKILL)
        for child in children:
            wait_until(lambda pid=child: not Path(f"/proc/{pid}").exists(), what=f"the end of {child}")
            wait_until(lambda pid=child: taken(pid), what=f"another process {child}")
        # Numbers that nobody has had lately: neither these children nor those of tests side by side.
        last.write_text(str((int(before) + 5000) % (int(Path("/proc/sys/kernel/pid_max").read_text()) - 300) + 299))
        yield


class TestLimits:
    @pytest.fixture(scope="class", autouse=True)
    def _class_conf(self, httpd):
        conf = "RemoteIPHeader X-Client\nRemoteIPInternalProxy 127.0.0.1\n" + SITE
        with httpd.serve(conf, modules=["remoteip"]):
            yield

    def test_a_section(self, ws, connect):
        clients = self.fill(connect, "/few", "/few", "/few/inner")
        for path in ("/few", "/few/inner"):
            _, response = status_of(connect, path)
            assert response.status == 503
            assert int(response.headers["retry-after"]) > 0
        for client in clients:
            works(client)
        # A limit of its own counts by itself, and the outer one is no concern of it.
        own = ws("/few/own")
        assert status_of(connect, "/few/own")[1].status == 503
        off = [ws("/few/off") for _ in range(5)]
        for client in [own, *off, clients.pop()]:
            client.close()
        again = wait_until(lambda: self.accepted(connect, "/few"), 5, "a free place")
        works(again)

    def fill(self, connect, *paths):
        """A connection on each path; those of the test before may just be ending."""
        return [wait_until(lambda p=path: self.accepted(connect, p), 10, "a free place") for path in paths]

    def accepted(self, connect, path):
        client, response = status_of(connect, path)
        return client if response.status == 101 else None

    def test_an_address(self, connect):
        clients = self.fill(connect, "/each", "/each")
        _, response = status_of(connect, "/each")
        assert response.status == 429
        assert int(response.headers["retry-after"]) > 0
        other = connect(source="127.0.0.2")
        other.send(other.request("/each"))
        assert other.read_response().status == 101
        works(other)
        clients.pop().reset()
        wait_until(lambda: self.accepted(connect, "/each"), 5, "a free place")

    def test_addresses_of_one_network(self, connect):
        """A client of IPv6 has a network of its own, and as many addresses as it likes: it counts as one."""

        def status(path, address):
            client, response = status_of(connect, path, X_Client=address)
            clients.append(client)
            return response.status

        for path, same, other in (
            ("/remote", ["2001:db8:1:2::1", "2001:db8:1:2::2", "2001:db8:1:2:ffff::"], "2001:db8:1:3::1"),
            ("/remote/48", ["2001:db8:1::1", "2001:db8:1:2::2", "2001:db8:1:ffff::"], "2001:db8:2::1"),
            ("/remote/128", ["2001:db8::7", "2001:db8:0::7", "2001:db8::0007"], "2001:db8::8"),
            ("/remote", ["192.0.2.1", "::ffff:192.0.2.1", "::FFFF:C000:201"], "192.0.2.2"),
        ):
            clients = []
            wait_until(lambda p=path, a=same[0]: status(p, a) == 101, 10, "a free place")
            assert [status(path, address) for address in (*same[1:], other)] == [101, 429, 101], path
            for client in clients:
                client.sock.close()

    def test_a_killed_child_does_not_count(self, httpd, connect):
        clients = self.fill(connect, "/few", "/few", "/few")
        children = {httpd.child_of(client) for client in clients}
        for child in children:
            os.kill(child, signal.SIGKILL)
        for client in clients:
            client.sock.close()
        wait_until(lambda: self.accepted(connect, "/few"), 10, "a free place")

    def test_a_killed_child_does_not_count_when_its_number_is_given_again(self, httpd, connect):
        clients = self.fill(connect, "/few", "/few", "/few")
        with killed({httpd.child_of(client) for client in clients}):
            for client in clients:
                client.sock.close()
            wait_until(lambda: self.accepted(connect, "/few"), 10, "a free place")

    def test_a_graceful_restart(self, httpd, connect):
        clients = self.fill(connect, "/few", "/few", "/few")
        httpd.graceful()
        httpd.renewed()
        for client in clients:
            client.expect_close(1001)
        wait_until(lambda: self.accepted(connect, "/few"), 10, "a free place")


@pytest.mark.skipif(not DETACHED, reason="a connection on httpd's thread has memory of httpd's")
class TestMemory:
    """What a connection keeps of its handshake has the size of its handshake."""

    CONF = DETACH + ONE_CHILD + echo()

    @pytest.mark.parametrize("headers, most", [
        ([("Sec-WebSocket-Protocol", ",".join("a" * 4000))], 36),
        ([(f"X-{n}", "") for n in range(90)], 8),
        ([(f"X-{n}", "x" * 7900) for n in range(7)], 72),
    ], ids=["subprotocols", "many headers", "long headers"])
    def test_of_a_handshake(self, httpd, ws, headers, most):
        httpd.allow_log("AH00(161|286|484)")  # the one child may be busy with the handshakes

        def opened(count):
            return [ws("/echo", headers) for _ in range(count)]

        first = opened(30)
        works(first[0])
        child = httpd.child_of(first[0])
        before = httpd.memory(child)
        clients = opened(200)
        works(clients[-1])
        assert httpd.children() == [child]
        kept = (httpd.memory(child) - before) / len(clients)
        assert kept < most, f"{kept:.1f} KiB per connection"


class TestStatus:
    CONF = DETACH + SITE

    def test_numbers(self, httpd, ws):
        before = httpd.sums()
        clients = [ws("/echo") for _ in range(4)]
        for client in clients:
            works(client)
        now = wait_until(
            lambda: (s := httpd.sums())["MessagesOut"] >= before["MessagesOut"] + 4 and s, 5,
            "the messages",
        )
        assert now["Connections"] == before["Connections"] + 4
        assert now["MessagesIn"] == before["MessagesIn"] + 4
        assert now["BytesIn"] == before["BytesIn"] + 4 * len(frame(TEXT, "works"))
        assert now["BytesOut"] == before["BytesOut"] + 4 * (2 + len("works"))
        page = httpd.status()
        children = {httpd.child_of(client) for client in clients}
        for child in children:
            assert f"<tr><td>{child}</td>" in page
        for client in clients:
            client.close()
        wait_until(
            lambda: httpd.sums()["Connections"] == before["Connections"], 5, "the end of them"
        )
        assert httpd.sums()["MessagesIn"] == before["MessagesIn"] + 4

    def test_a_killed_child_is_not_shown_when_its_number_is_given_again(self, httpd, ws):
        before = httpd.sums()["Connections"]
        clients = [ws("/echo") for _ in range(4)]
        wait_until(lambda: httpd.sums()["Connections"] == before + 4, 5, "the connections")
        with killed({httpd.child_of(client) for client in clients}):
            wait_until(lambda: httpd.sums()["Connections"] == before, 5, "the end of them")


# Six workers of eight may be WebSockets': threads of one child, or processes of prefork's.
EIGHT_WORKERS = """
    <IfModule mpm_prefork_module>
        ServerLimit 8
        MaxRequestWorkers 8
        StartServers 8
        MinSpareServers 1
        MaxSpareServers 8
    </IfModule>
    <IfModule !mpm_prefork_module>
        ServerLimit 1
        ThreadsPerChild 8
        MaxRequestWorkers 8
        StartServers 1
        MinSpareThreads 1
        MaxSpareThreads 8
    </IfModule>
"""
SHARE = 6
WORKERS = EIGHT_WORKERS + "WebSocketDetach Off\n" + echo() + debug("/debug")
FULL = "WS0109: refused: WebSockets hold {} .*{} 8 and WebSocketWorkerShare allow: raise one of the two, or .*WebSocketDetach"
FULL = FULL.format("{}", "MaxRequestWorkers" if PREFORK else "ThreadsPerChild")
# Workers that are just done with their connections count as busy, when httpd looks.
ALL_BUSY = "server reached MaxRequestWorkers|AH00288: scoreboard is full"


class Visitors:
    """Clients of a server whose workers are few."""

    def __init__(self, httpd, connect):
        self.httpd, self.connect = httpd, connect

    def come(self, path="/echo", headers=()):
        """A client, and the answer that it got."""
        client = self.connect()
        return client, client.ask(path, headers)

    def served(self):
        """A WebSocket, if there is room for one."""
        client, response = self.come()
        return client if response.status == 101 else None

    def refused(self, path, headers):
        """The status of an answer."""
        client, response = self.come(path, headers)
        client.sock.close()
        return response.status

    def fill(self, count=SHARE):
        """As many WebSockets as there may be; those that have just ended may hold their workers for a moment."""
        clients = [wait_until(self.served, 10, "a free worker") for _ in range(count)]
        self.full()
        return clients

    def full(self):
        client, response = self.come()
        assert response.status == 503
        assert int(response.headers["retry-after"]) > 0
        client.sock.close()

    def pages(self):
        """Plain pages are there, and at once."""
        for _ in range(5):
            status, seconds = self.httpd.get()
            assert status == 200
            assert seconds < 1


@pytest.fixture
def visitors(httpd, connect):
    httpd.allow_log(ALL_BUSY)
    return Visitors(httpd, connect)


class TestWorkerShare:
    """WebSockets on httpd's own threads leave some to pages, with no directive that says so."""

    CONF = WORKERS + echo("/detached", "WebSocketDetach On") + bridge(
        "/bridge", "tcp://127.0.0.1:%{QUERY_STRING}", "WebSocketBridgeAllow tcp://127.0.0.1:*"
    )

    @pytest.fixture(autouse=True)
    def _told(self, httpd):
        httpd.allow_log("WS0109: refused")  # once a minute, perhaps in an earlier test

    @pytest.mark.timing
    def test_pages_are_reachable(self, visitors):
        clients = visitors.fill()
        visitors.pages()
        for client in clients:
            works(client)

    def test_the_log_names_the_remedy(self, httpd, visitors):
        httpd.expect_log(FULL.format(SHARE))
        visitors.fill()

    @pytest.mark.parametrize("how", ["close", "reset", "vanish"])
    def test_room_again(self, visitors, how):
        for _ in range(3):
            clients = visitors.fill()
            for client in clients:
                client.sock.close() if how == "vanish" else getattr(client, how)()
                client.sock.close()

    def test_room_for_one_more(self, visitors):
        clients = visitors.fill()
        for _ in range(3):
            clients.pop().reset()
            clients.append(wait_until(visitors.served, 10, "a free worker"))
            visitors.full()
        for client in clients:
            works(client)

    def test_the_plugin_is_not_asked(self, httpd, visitors):
        trail = httpd.trail("share-asked")
        visitors.fill()
        _, response = visitors.come("/debug", [("X-Debug-Trail", str(trail)), ("X-Debug-Name", "unwelcome")])
        assert response.status == 503
        assert not httpd.trail_lines(trail)

    def test_the_peer_is_not_reached(self, visitors, listen):
        visitors.fill()
        with listen() as peer:
            _, response = visitors.come(f"/bridge?{peer.port}")
            assert response.status == 503
            peer.sock.settimeout(0.2)
            with pytest.raises(TimeoutError):
                peer.accept()

    def test_handshakes_that_fail(self, visitors):
        for _ in range(2 * SHARE):
            for path, headers, status in (("/debug", [("X-Debug-Refuse", "1")], 403), ("/nowhere", [], 404)):
                wait_until(lambda p=path, h=headers, s=status: visitors.refused(p, h) == s, 10, f"a {status}")
        visitors.fill()

    def test_clients_that_reset_before_the_101(self, connect, visitors):
        for _ in range(2 * SHARE):
            client = connect()
            client.send(client.request("/debug", [("X-Debug-Sleep", "20")]))
            client.reset()
        visitors.fill()

    def test_a_killed_child(self, httpd, visitors):
        clients = visitors.fill()
        child = httpd.child_of(clients[0])
        httpd.allow_log("exit signal Killed")
        os.kill(child, signal.SIGKILL)
        if not PREFORK:
            visitors.fill()
            return
        clients[0] = wait_until(visitors.served, 10, "a free worker")
        visitors.full()
        for client in clients:
            works(client)

    def test_detached_ones_are_not_concerned(self, visitors):
        visitors.fill()
        others = [visitors.come("/detached") for _ in range(2 * SHARE)]
        assert {response.status for _, response in others} == {101}
        for client, _ in others:
            works(client)
        visitors.full()


@pytest.mark.skipif(PREFORK, reason="on prefork no plugin's connections are detached, whatever it asks for")
class TestWorkerShareOfPluginsThatKeepTheRequest:
    """That they do is known when they have been asked, but still before the 101."""

    CONF = EIGHT_WORKERS + "WebSocketDetach Auto\n" + debug("/debug")

    def test_refused(self, httpd, visitors):
        httpd.expect_log(FULL.format(SHARE))
        trail, asks = httpd.trail("share-asks"), [("X-Debug-Request", "1")]
        clients = []
        for _ in range(SHARE):
            client, response = visitors.come("/debug", asks)
            assert response.status == 101
            clients.append(client)
        named = [("X-Debug-Trail", str(trail)), ("X-Debug-Name", "late")]
        _, response = visitors.come("/debug", asks + named)
        assert response.status == 503
        assert int(response.headers["retry-after"]) > 0
        assert httpd.trail_lines(trail) == ["connect late", "disconnect late"]
        # One that does not ask is detached.
        client, response = visitors.come("/debug")
        assert response.status == 101
        clients.append(client)
        visitors.pages()
        for client in clients:
            client.send(frame(TEXT, "version"))
            client.expect(TEXT, "1")


@pytest.mark.skipif(not PREFORK, reason="other MPMs detach plugins' connections by themselves")
class TestWorkerShareOfPrefork:
    """By default plugins have a process each there."""

    CONF = EIGHT_WORKERS + "WebSocketDetach Auto\n" + echo()

    def test_by_default(self, httpd, visitors):
        httpd.expect_log(FULL.format(SHARE))
        clients = visitors.fill()
        visitors.pages()
        for client in clients:
            works(client)


class TestWhoWaits:
    """A thread that waits for a peer, or for a client of draft 76, is held like one with a WebSocket."""

    CONF = (
        'LoadModule websocket_draft76_module "${MODULE}"\nWebSocketDetach Auto\n' + EIGHT_WORKERS + echo()
        + echo("/off", "WebSocketDetach Off")
        + bridge("/bridge", f"tcp://127.0.0.1:{PORT}", ALLOW, "WebSocketBridgeConnectTimeout 4s")
    )

    @pytest.fixture(autouse=True)
    def _told(self, httpd):
        httpd.allow_log("WS0109: refused")  # once a minute, perhaps in an earlier test

    @pytest.mark.timing
    def test_for_a_peer(self, httpd, listen, visitors):
        httpd.expect_log("WS0501: no connection to .* no answer within")
        silent, peer = listen(backlog=0), listen()
        fillers = fill_queue(silent)
        clients = []
        for _ in range(SHARE):
            clients.append(visitors.connect())
            clients[-1].send(clients[-1].request(f"/bridge?{silent.port}"))
        time.sleep(0.5)
        late, response = visitors.come(f"/bridge?{silent.port}")
        assert response.status == 503
        assert int(response.headers["retry-after"]) > 0
        late.sock.close()
        visitors.pages()
        # A peer that is there is not waited for.
        client, response = visitors.come(f"/bridge?{peer.port}")
        assert response.status == 101
        assert [client.read_response().status for client in clients] == [504] * SHARE
        for filler in fillers:
            filler.close()

    @pytest.mark.skipif(PREFORK, reason="a process is refused before it waits")
    @pytest.mark.timing
    def test_for_a_client(self, visitors):
        stay = [wait_until(lambda: self.stays(visitors), 10, "a free worker") for _ in range(SHARE)]
        keys = {"Sec_WebSocket_Key1": "4 @1  46546xW%0l 1 5", "Sec_WebSocket_Key2": "12998 5 Y3 1  .P00"}
        for _ in range(3):
            client = visitors.connect()
            client.send(client.request("/echo", Sec_WebSocket_Version=None, Sec_WebSocket_Key=None, **keys))
            start = time.monotonic()
            assert client.read_response().status == 503
            assert time.monotonic() - start < 1
            client.sock.close()
        client = visitors.connect()
        client.send(client.request("/echo", Sec_WebSocket_Version=None, Sec_WebSocket_Key=None, **keys) + b"^n:ds[4U")
        assert client.read_response().status == 101, "who has sent all is not waited for"
        for client in stay:
            works(client)

    def stays(self, visitors):
        client, response = visitors.come("/off")
        return client if response.status == 101 else None


class TestOtherShares:
    @pytest.mark.parametrize("share, most", [("50", 4), ("1", 1), ("100", 7)])
    def test_percent(self, httpd, visitors, share, most):
        with httpd.serve(f"WebSocketWorkerShare {share}\n" + WORKERS):
            # Where the share is not what keeps the last one from WebSockets it is no remedy.
            line = FULL if share != "100" else FULL.replace("and WebSocketWorkerShare allow: raise one of the two", "allows: raise that")
            httpd.expect_log(line.format(most))
            clients = visitors.fill(most)
            visitors.pages()
            for client in clients:
                works(client)
                client.sock.close()

    @pytest.mark.parametrize("word", ["Off", "oFF"])
    def test_off(self, httpd, visitors, word):
        with httpd.serve(f"WebSocketWorkerShare {word}\n" + WORKERS):
            clients = [visitors.served() for _ in range(8)]
            assert all(clients)
            for client in clients:
                works(client)
                client.sock.close()

    @pytest.mark.parametrize("share, most", [("", SHARE), ("WebSocketWorkerShare 100\n", 7), ("WebSocketWorkerShare Off\n", 8)])
    def test_the_line_at_start(self, httpd, share, most):
        with httpd.serve(share + WORKERS):
            told = f"one on its thread; of 8 processes {most}" if PREFORK else f"{most} on its 8 threads of httpd's"
            wait_until(lambda: f"and {told}" in httpd.new_log(), 5, told)

    def test_two_threads(self, httpd, visitors):
        few = EIGHT_WORKERS.replace(" 8\n", " 2\n")
        with httpd.serve(few + "WebSocketDetach Off\n" + echo()):
            httpd.expect_log("WS0109: refused: WebSockets hold 1 ")
            visitors.fill(1)
            visitors.pages()

    @pytest.mark.parametrize("word", ["0", "101", "-1", "75%", "0.75", "On", "half", "99999999999999999999"])
    def test_bad_values(self, httpd, word):
        checked = httpd.check(f"WebSocketWorkerShare {word}\n")
        checked.refused("WebSocketWorkerShare", "from 1 to 100", "Off", at="WebSocketWorkerShare")

    @pytest.mark.parametrize("section", ["VirtualHost *:1", "Location /x", "Directory /x"])
    def test_for_the_whole_server_only(self, httpd, section):
        name = section.split()[0]
        conf = f"<{section}>\n    WebSocketWorkerShare 50\n</{name}>\n"
        httpd.check(conf).refused("WebSocketWorkerShare", f"{name}> ", at="    WebSocketWorkerShare")
