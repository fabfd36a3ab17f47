"""A real browser, headless, driven through Chromium's DevTools protocol."""

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import urllib.request

import pytest
from httpd import TOP, wait_until
from websockets.sync.client import connect as dial

NAMES = ("chromium", "chromium-browser", "google-chrome")


class Page:
    """One tab."""

    def __init__(self, connection):
        self.connection, self.ids, self.faults = connection, itertools.count(1), []
        self.call("Runtime.enable")
        self.call("Page.enable")

    def call(self, method, **params):
        number = next(self.ids)
        self.connection.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = json.loads(self.connection.recv(20))
            if message.get("method") == "Runtime.exceptionThrown":
                self.faults.append(message["params"]["exceptionDetails"])
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]

    def run(self, script):
        """The value of an expression; a promise is awaited."""
        result = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def echo_of_megabytes(self, url):
        """Sends 3 MiB to an echo: whether they come back the same, and the code of the Close behind them."""
        return self.run(
            """new Promise((resolve) => {
                const sent = new Uint8Array(3 << 20).map((_, index) => index * 7);
                const socket = new WebSocket(%s);
                socket.binaryType = "arraybuffer";
                socket.onopen = () => socket.send(sent);
                socket.onerror = () => resolve("error");
                socket.onmessage = (event) => {
                    const back = new Uint8Array(event.data);
                    const same = back.length === sent.length && back.every((b, i) => b === sent[i]);
                    socket.onclose = (closed) => resolve(`${same} ${closed.code}`);
                    socket.close(3001);
                };
            })"""
            % json.dumps(url)
        )

    def open(self, url):
        self.call("Page.navigate", url=url)
        self.wait(f"location.href === {json.dumps(url)} && document.readyState === 'complete'")

    def wait(self, condition, timeout=10):
        wait_until(lambda: self.run(condition), timeout, condition)

    def text(self, name):
        return self.run(f"document.getElementById('{name}').textContent")

    def click(self, name):
        assert self.run(f"document.getElementById('{name}').disabled") is False, f"{name} is disabled"
        self.run(f"document.getElementById('{name}').click()")

    def wait_text(self, name, text):
        self.wait(f"document.getElementById('{name}').textContent.includes({json.dumps(text)})")


@pytest.fixture(scope="module")
def devtools(tmp_path_factory):
    """A browser; gives the port of its DevTools."""
    binary = next(filter(None, map(shutil.which, NAMES)), None)
    if binary is None:
        pytest.skip("no Chromium")
    profile = tmp_path_factory.mktemp("chromium")
    command = [
        binary, "--headless", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank",
    ]
    if os.geteuid() == 0:
        command.insert(1, "--no-sandbox")
    with open(profile / "output", "w") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
            env={**os.environ, "HOME": str(profile)},
        )
    try:
        announced = profile / "DevToolsActivePort"

        def port():
            assert process.poll() is None, (profile / "output").read_text()
            lines = announced.read_text().splitlines() if announced.exists() else []
            return int(lines[0]) if lines else None

        yield wait_until(port, 30, "Chromium's start")
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            pass
        with contextlib.suppress(ProcessLookupError):  # its helpers, if it left any
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)


@pytest.fixture
def page(devtools, httpd):
    with tab(devtools, httpd) as page:
        yield page


@pytest.fixture
def other_page(devtools, httpd):
    with tab(devtools, httpd) as page:
        yield page


@contextlib.contextmanager
def tab(devtools, httpd):
    """A new tab; the example pages are there for it."""
    for file in (TOP / "examples").glob("*.html"):
        shutil.copy(file, httpd.root / "htdocs")
        (httpd.root / "htdocs" / file.name).chmod(0o644)
    request = urllib.request.Request(f"http://127.0.0.1:{devtools}/json/new?about:blank", method="PUT")
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(request, timeout=20) as answer:
        opened = json.load(answer)
    with dial(opened["webSocketDebuggerUrl"], max_size=None, proxy=None) as connection:
        page = Page(connection)
        yield page
        page.run("0")  # collects what is still to be told
        assert not page.faults, page.faults
        direct.open(f"http://127.0.0.1:{devtools}/json/close/{opened['id']}", timeout=20).close()
