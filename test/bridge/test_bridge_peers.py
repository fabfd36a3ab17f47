"""The bridge in front of real servers, asked by real clients: Redis, an MQTT broker, a name server, a VNC server."""

import base64
import contextlib
import json
import os
import queue
import shutil
import socket
import struct
import subprocess
import time
import urllib.request
import zlib
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest
from httpd import TOP, free_port, wait_until
from browser import Page
from peers import bridge, random_bytes
from websockets.sync.client import connect as dial
from ws_frame import BINARY, TEXT, frame

pytestmark = pytest.mark.once


MQTT, DNS, VNC = free_port(), free_port(socket.SOCK_DGRAM), free_port()
CONF = (
    bridge("/redis", "unix://${ROOT}/trail/redis", "WebSocketBridgeFraming newline crlf")
    + bridge("/mqtt", f"tcp://127.0.0.1:{MQTT}", "WebSocketBridgeFraming binary", "WebSocketBridgeProtocol mqtt")
    + bridge("/dns", f"udp://127.0.0.1:{DNS}", "WebSocketBridgeFraming binary")
    + 'IncludeOptional "${ROOT}/conf/lines.conf"\n'
    + bridge("/vnc", f"tcp://127.0.0.1:{VNC}", "WebSocketBridgeFraming binary", "WebSocketBridgeProtocol binary")
)


@contextlib.contextmanager
def server(name, *args, ready, folder, **kw):
    """A server in the foreground, once `ready()` is true."""
    path = f"/usr/bin:/usr/sbin:{os.environ['PATH']}"
    binary = shutil.which(name, path=path)
    if binary is None:
        pytest.skip(f"no {name}: scripts/setup.sh check installs it")
    said = folder / f"{Path(name).name}.log"
    with open(said, "w+") as log:
        process = subprocess.Popen(
            [binary, *map(str, args)], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder, **kw
        )
        try:

            def up():
                assert process.poll() is None, said.read_text()
                return ready()

            wait_until(up, 15, str(name))
            yield
        finally:
            process.terminate()
            process.wait(10)


def listens(port):
    """Whether somebody listens there; a look that does not disturb."""
    lines = open("/proc/net/tcp").read().splitlines()[1:]
    return any(f[1].endswith(f":{port:04X}") and f[3] == "0A" for f in map(str.split, lines))


class TestRedis:
    @pytest.fixture(autouse=True)
    def redis(self, httpd, tmp_path):
        path = httpd.root / "trail/redis"
        path.unlink(missing_ok=True)
        options = ["--port", 0, "--unixsocket", path, "--unixsocketperm", 777, "--save", "", "--appendonly", "no"]

        def answers():
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
                probe.connect(str(path))
                return True
            return False

        with server("redis-server", *options, ready=answers, folder=tmp_path):
            yield

    def test_lines(self, ws):
        client = ws("/redis")
        client.send(frame(TEXT, "PING\r\n"))
        client.expect(TEXT, "+PONG\r\n")
        client.send(frame(TEXT, "SET greeting grüße\r\n"))
        client.expect(TEXT, "+OK\r\n")
        # Several lines of one answer are as many messages.
        client.send(frame(TEXT, "GET greeting\r\n"))
        client.expect(TEXT, "$7\r\n")
        client.expect(TEXT, "grüße\r\n")
        # Many commands in one message, many answers in one read.
        client.send(frame(TEXT, "INCR n\r\n" * 1000))
        for n in range(1, 1001):
            client.expect(TEXT, f":{n}\r\n")
        # What is no text travels as what it is.
        client.send(frame(BINARY, b"*3\r\n$3\r\nSET\r\n$1\r\nb\r\n$3\r\n\xff\0\xfe\r\n"))
        client.expect(TEXT, "+OK\r\n")
        client.send(frame(TEXT, "GET b\r\n"))
        client.expect(TEXT, "$3\r\n")
        client.expect(BINARY, b"\xff\0\xfe\r\n")
        client.send(frame(TEXT, "QUIT\r\n"))
        client.expect(TEXT, "+OK\r\n")
        client.expect_close(1000)


class TestMqtt:
    @pytest.fixture(autouse=True)
    def mosquitto(self, tmp_path):
        conf = tmp_path / "mosquitto.conf"
        conf.write_text(f"listener {MQTT} 127.0.0.1\nallow_anonymous true\npersistence false\nuser root\n")
        with server("mosquitto", "-c", conf, ready=lambda: listens(MQTT), folder=tmp_path):
            yield

    def test_publish_and_subscribe(self, httpd):
        got = queue.Queue()
        client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="test", transport="websockets")
        client.ws_set_options(path="/mqtt")
        client.on_connect = lambda c, *_: c.subscribe("topic/#", qos=2)
        client.on_subscribe = lambda *_: got.put("subscribed")
        client.on_message = lambda _c, _u, message: got.put((message.topic, message.payload))
        client.connect("127.0.0.1", httpd.port)
        client.loop_start()
        try:
            assert got.get(timeout=10) == "subscribed"
            for n, size in enumerate((0, 1, 1000, 300_000)):
                payload = random_bytes(size)
                client.publish(f"topic/{n}", payload, qos=n % 3).wait_for_publish(10)
                assert got.get(timeout=10) == (f"topic/{n}", payload)
        finally:
            client.disconnect()
            client.loop_stop()
        assert httpd.access("/mqtt")[-1].messages_in != "0"


def dns_query(number):
    """Asks for the address of www.bridge.test (RFC 1035 §4)."""
    labels = b"".join(bytes([len(label)]) + label for label in (b"www", b"bridge", b"test"))
    return struct.pack("!6H", number, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!2H", 1, 1)


def answers_dns():
    """The name server answers over UDP; that it listens on TCP does not say so."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        asker.settimeout(0.2)
        asker.connect(("127.0.0.1", DNS))
        asker.send(dns_query(0))
        return bool(asker.recv(512))
    return False


class TestDns:
    @pytest.fixture(autouse=True)
    def dnsmasq(self, tmp_path):
        options = [
            "--no-daemon", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", f"--port={DNS}", "--bind-interfaces",
            "--listen-address=127.0.0.1", "--user=root", "--address=/bridge.test/192.0.2.7", "--pid-file=",
        ]  # fmt: skip
        with server("dnsmasq", *options, ready=answers_dns, folder=tmp_path):
            yield

    def test_a_query(self, ws):
        """One message, one datagram, one answer."""
        client = ws("/dns")
        for number in range(20):
            client.send(frame(BINARY, dns_query(number)))
            answer = client.read_frame()
            assert answer.opcode == BINARY
            identity, flags, _, answers, _, _ = struct.unpack("!6H", answer.payload[:12])
            assert (identity, flags & 0x800F, answers) == (number, 0x8000, 1)
            assert answer.payload.endswith(bytes([192, 0, 2, 7]))
        client.close()


class TestDemo:
    """The example page and its service, as `make demo` has them."""

    def test_page(self, httpd, devtools, tmp_path):  # noqa: F811
        port_file = tmp_path / "port"
        script = [TOP / "examples/line_service.py", port_file]
        with server("python3", *script, ready=port_file.exists, folder=tmp_path):
            port = port_file.read_text().strip()
            shutil.copy(TOP / "examples/bridge.html", httpd.root / "htdocs")
            (httpd.root / "htdocs/bridge.html").chmod(0o644)
            (httpd.root / "conf/lines.conf").write_text(
                bridge("/lines", f"tcp://127.0.0.1:{port}", "WebSocketBridgeFraming newline crlf")
            )
            httpd.graceful()
            with tab(devtools) as page:
                page.open(f"http://localhost:{httpd.port}/bridge.html")
                page.click("connect")
                page.wait_text("log", "← Hello, guest 1.")
                page.click("send")
                page.wait_text("log", "← HELLO, WORLD")
                for line, answer in (("count 3", "← 1\n← 2\n← 3\n"), ("say grüße", "← somebody says: grüße")):
                    page.run(f"document.getElementById('line').value = {json.dumps(line)}")
                    page.click("send")
                    page.wait_text("log", answer)
                page.run("document.getElementById('line').value = 'quit'")
                page.click("send")
                page.wait_text("log", "← Bye.\nclose: 1000")
                page.wait_text("status", "closed")


@contextlib.contextmanager
def tab(devtools):  # noqa: F811
    """A tab of the browser."""
    url = f"http://127.0.0.1:{devtools}/json/new?about:blank"
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(urllib.request.Request(url, method="PUT"), timeout=20) as answer:
        made = json.load(answer)
    with dial(made["webSocketDebuggerUrl"], max_size=None, proxy=None) as connection:
        page = Page(connection)
        yield page
        assert not page.faults, page.faults
    direct.open(f"http://127.0.0.1:{devtools}/json/close/{made['id']}", timeout=20).close()


PAGE = """<!doctype html>
<title>VNC</title>
<style>body { margin: 0 } #screen { width: 640px; height: 480px }</style>
<div id="screen"></div>
<script type="module">
  import RFB from "./novnc/core/rfb.js";
  window.state = "connecting";
  const url = location.search ? "ws://" + location.search.slice(1) : "ws://" + location.host + "/vnc";
  const rfb = new RFB(document.getElementById("screen"), url, { wsProtocols: ["binary"] });
  rfb.addEventListener("connect", () => { window.state = "connected"; });
  rfb.addEventListener("disconnect", (event) => { window.state = event.detail.clean ? "closed" : "lost"; });
  window.rfb = rfb;
</script>
"""


def pixels(png):
    """The colours of a PNG of eight bits per channel, without transparency or with it."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    at, data = 8, b""
    while at < len(png):
        size, kind = struct.unpack("!I4s", png[at : at + 8])
        body = png[at + 8 : at + 8 + size]
        if kind == b"IHDR":
            width, height, depth, colour = struct.unpack("!IIBB", body[:10])
            assert depth == 8 and colour in (2, 6)
        elif kind == b"IDAT":
            data += body
        at += 12 + size
    step = 3 if colour == 2 else 4
    data, line, seen = zlib.decompress(data), bytearray(width * step), set()
    for row in range(height):
        start = row * (width * step + 1)
        method, above = data[start], line
        line = bytearray(data[start + 1 : start + 1 + width * step])
        for i in range(len(line)):
            left = line[i - step] if i >= step else 0
            corner = above[i - step] if i >= step else 0
            guess = left + above[i] - corner
            paeth = min((left, above[i], corner), key=lambda v: abs(guess - v))
            line[i] = line[i] + (0, left, above[i], (left + above[i]) // 2, paeth)[method] & 255
        seen.update(tuple(line[i : i + 3]) for i in range(0, len(line), step))
    return seen


class TestVnc:
    @pytest.fixture(autouse=True)
    def display(self, tmp_path):
        """A VNC server; gives the environment of those who draw on its screen."""
        number = 100 + VNC % 10_000
        options = [
            f":{number}", "-rfbport", VNC, "-localhost", "-SecurityTypes", "None", "-geometry", "640x480", "-depth", 24,
            "-AlwaysShared", "-nolisten", "tcp", "-ac",
        ]  # fmt: skip
        home = {**os.environ, "HOME": str(tmp_path)}
        with server("Xtigervnc", *options, ready=lambda: listens(VNC), folder=tmp_path, env=home):
            yield {**home, "DISPLAY": f":{number}"}

    @pytest.fixture
    def page(self, devtools, httpd):  # noqa: F811
        source = TOP / "build/node/node_modules/@novnc/novnc"
        if not source.exists():
            pytest.skip("no noVNC: make check-server installs it")
        folder = httpd.root / "htdocs"
        shutil.copytree(source, folder / "novnc", dirs_exist_ok=True)
        subprocess.run(["chmod", "-R", "a+rX", str(folder)], check=True)
        (folder / "vnc.html").write_text(PAGE)
        (folder / "vnc.html").chmod(0o644)
        with (httpd.root / "conf/mime.types").open("a") as types:
            types.write("text/javascript js\n")
        httpd.graceful()
        with tab(devtools) as page:
            yield page

    def colours(self, page):
        """What a screenshot shows around the middle of the screen, away from the pointer."""
        clip = {"x": 100, "y": 100, "width": 60, "height": 40, "scale": 1}
        shot = page.call("Page.captureScreenshot", format="png", clip=clip)["data"]
        return pixels(base64.b64decode(shot))

    def paint(self, display, colour):
        binary = shutil.which("xsetroot")
        if binary is None:
            pytest.skip("no xsetroot: scripts/setup.sh check installs it")
        subprocess.run([binary, "-solid", colour], env=display, check=True, timeout=10)

    def test_novnc(self, httpd, page, display):
        self.paint(display, "#1e90ff")
        page.open(f"http://localhost:{httpd.port}/vnc.html")
        page.wait("window.state === 'connected'", 20)
        for colour in ((0x1E, 0x90, 0xFF), (0xFF, 0x63, 0x47), (0x22, 0x8B, 0x22)):
            self.paint(display, "#%02x%02x%02x" % colour)

            def near():
                time.sleep(0.1)
                shown = self.colours(page)
                return all(max(abs(a - b) for a, b in zip(colour, each)) < 12 for each in shown)

            wait_until(near, 15, f"the colour {colour} on the screenshot")
        page.run("window.rfb.disconnect()")
        page.wait("window.state === 'closed'")

    def test_novnc_through_the_command(self, httpd, page, display, tmp_path):
        """The one line that takes websockify's place."""
        port = free_port()
        options = ["-p", port, "-l", "127.0.0.1", "-c", f"port={VNC}", "-c", "framing=binary", "-c", "protocol=*"]
        paths = {"HTTPD": httpd.binary, "MODULES": str(httpd.modules), "MODULE": str(httpd.module)}
        environment = {**os.environ, **paths}
        command = TOP / "scripts/websocksy"
        with server(command, *options, ready=lambda: listens(port), folder=tmp_path, env=environment):
            page.open(f"http://localhost:{httpd.port}/vnc.html?127.0.0.1:{port}/")
            page.wait("window.state === 'connected'", 20)
            page.run("window.rfb.disconnect()")
            page.wait("window.state === 'closed'")
