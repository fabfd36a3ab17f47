"""Other people's clients: Python's websockets, curl, and plain HTTP beside them."""

import shutil
import subprocess
import threading

import pytest
from httpd import debug, echo, location
from websockets.exceptions import ConnectionClosedError, ConnectionClosedOK, InvalidStatus
from websockets.sync.client import connect as dial
from ws_frame import TEXT, frame, random_text

CONF = (
    echo()
    + debug()
    + location("/increment", "${EXAMPLES}/mod_websocket_dumb_increment.so", "dumb_increment_init")
)


@pytest.fixture
def url(httpd):
    return f"ws://localhost:{httpd.port}"


class TestWebsockets:
    @pytest.mark.parametrize("size", [0, 5, 1000, 70_000, 1 << 20])
    def test_echo(self, url, size):
        data = random_text(size)
        with dial(url + "/echo", max_size=None) as client:
            client.send(data)
            assert client.recv(10) == data
            client.send(data.decode())
            assert client.recv(10) == data.decode()

    def test_fragments(self, url):
        with dial(url + "/echo") as client:
            client.send(["several ", "", "pieces"])
            assert client.recv(10) == "several pieces"

    def test_ping(self, url):
        with dial(url + "/echo") as client:
            assert client.ping(b"now").wait(10)

    def test_close_codes(self, url):
        with dial(url + "/echo") as client:
            client.close(4711, "own reasons")
            assert client.protocol.close_rcvd.code == 4711
        with dial(url + "/debug") as client:
            client.send("close 4000 the server's")
            with pytest.raises(ConnectionClosedError) as closed:
                client.recv(10)
            assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4000, "the server's")
        with dial(url + "/debug") as client:
            client.send("close 1000")
            with pytest.raises(ConnectionClosedOK):
                client.recv(10)

    def test_subprotocol(self, url):
        with dial(url + "/increment", subprotocols=["x", "dumb-increment-protocol"]) as client:
            assert client.subprotocol == "dumb-increment-protocol"
            assert [client.recv(10) for _ in range(4)] == ["0", "1", "2", "3"]
            client.send("reset\n")
            while client.recv(10) != "0":
                pass
            assert client.recv(10) == "1"

    def test_refusals(self, url):
        for path, status in (("/increment", 403), ("/nothing", 404)):
            with pytest.raises(InvalidStatus) as refused:
                dial(url + path)
            assert refused.value.response.status_code == status

    def test_origin(self, url, httpd):
        with dial(url + "/echo", origin=f"http://localhost:{httpd.port}"):
            pass
        with pytest.raises(InvalidStatus):
            dial(url + "/echo", origin="http://evil.example")

    def test_many_at_once(self, url):
        answers = []

        def talk(n):
            with dial(url + "/echo") as client:
                for turn in range(50):
                    client.send(f"{n}: {turn}")
                    if client.recv(20) != f"{n}: {turn}":
                        return
                answers.append(n)

        threads = [threading.Thread(target=talk, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(40)
        assert sorted(answers) == list(range(8))


class TestHttp:
    def curl(self, httpd, path, *options):
        if not shutil.which("curl"):
            pytest.skip("no curl")
        command = ["curl", "-sS", "-m", "10", "-o", "-", "-w", "\n%{http_code}", "--noproxy", "*", *options]
        command.append(f"http://localhost:{httpd.port}{path}")
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        body, _, status = done.stdout.rpartition("\n")
        return int(status), body

    def test_plain_request_of_the_location(self, httpd):
        assert self.curl(httpd, "/echo")[0] == 404

    def test_files_are_served_while_sockets_are_open(self, httpd, ws):
        clients = [ws("/echo") for _ in range(5)]
        for _ in range(3):
            status, body = self.curl(httpd, "/index.html")
            assert status == 200 and "<!doctype html" in body.lower()
        for client in clients:
            client.send(frame(TEXT, "open"))
            client.expect(TEXT, "open")

    def test_unsupported_version(self, httpd):
        headers = ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 76",
                   "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="]
        options = [part for header in headers for part in ("-H", header)]
        status, head = self.curl(httpd, "/echo", "-i", *options)
        assert status == 400
        assert "sec-websocket-version: 13, 8, 7" in head.lower()
