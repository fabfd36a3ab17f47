"""How many connections there may be, and what server-status says of those there are."""

import contextlib
import os
import signal
import subprocess
from pathlib import Path

import pytest
from httpd import DETACH, DETACHED, echo, wait_until
from ws_frame import TEXT, frame, works

SITE = (
    echo("/few", "WebSocketMaxConnections 3")
    + echo("/few/inner")
    + echo("/few/own", "WebSocketMaxConnections 1")
    + echo("/few/off", "WebSocketMaxConnections Off")
    + echo("/each", "WebSocketMaxConnectionsPerIP 2")
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
    CONF = SITE

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


@pytest.mark.skipif(not DETACHED, reason="only threads of the module's own are shown")
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
