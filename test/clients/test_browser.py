"""The example pages in a real browser, driven through Chromium's DevTools protocol."""

import json

import pytest
from httpd import echo, location

pytestmark = pytest.mark.once
CONF = echo() + location(
    "/dumb-increment", "${EXAMPLES}/mod_websocket_dumb_increment.so", "dumb_increment_init"
)
@pytest.fixture
def site(httpd):
    return f"http://localhost:{httpd.port}"


def test_echo_page(httpd, page, site):
    page.open(site + "/client.html")
    assert page.text("status") == "closed"
    page.click("connect")
    page.wait_text("status", "open")
    for message in ("Hello, world", "Grüße 😀"):
        page.run(f"document.getElementById('message').value = {json.dumps(message)}")
        page.click("send")
        page.wait_text("log", f"received: {message}\n")
    page.click("disconnect")
    page.wait_text("status", "closed")
    assert "close: 1000" in page.text("log")
    entry = httpd.access("/echo")[-1]
    assert (entry.status, entry.close_code, entry.messages_in) == (101, "1000", "2")


def test_echo_page_reconnects(page, site):
    page.open(site + "/client.html")
    for _ in range(3):
        page.click("connect")
        page.wait_text("status", "open")
        page.click("disconnect")
        page.wait_text("status", "closed")
    assert page.text("log").count("close: 1000") == 3


def test_increment_page(page, site):
    page.open(site + "/increment.html")
    page.click("connect")
    page.wait_text("status", "open")
    assert "open: dumb-increment-protocol" in page.text("log")
    page.wait("Number(document.getElementById('number').textContent) >= 20")
    page.click("reset")
    page.wait("Number(document.getElementById('number').textContent) < 15")
    page.wait("Number(document.getElementById('number').textContent) >= 18")
    page.click("disconnect")
    page.wait_text("status", "closed")
    assert "close: 1000" in page.text("log")


def test_megabytes_of_binary(page, site):
    page.open(site + "/client.html")
    result = page.echo_of_megabytes(site.replace("http", "ws") + "/echo")
    assert result == "true 3001"


def test_a_foreign_page_is_kept_out(page, httpd):
    """The same host under another name is another origin."""
    page.open(f"http://127.0.0.1:{httpd.port}/client.html")
    for host, outcome in (("127.0.0.1", "open"), ("localhost", 1006)):
        result = page.run(
            f"""new Promise((resolve) => {{
                const socket = new WebSocket("ws://{host}:{httpd.port}/echo");
                socket.onopen = () => resolve("open");
                socket.onclose = (event) => resolve(event.code);
            }})"""
        )
        assert result == outcome, host
