"""Clients that were written for nchan: its own (npm's `nchan`), as it is, in a real browser."""

import json

import pytest
from channels import LIVE, publish, publishing, room, subscribers
from httpd import TOP, wait_until

pytestmark = pytest.mark.once
CONF = publishing() + LIVE + room("^/all/(?<name>.*)$", "%{env:MATCH_NAME}", "WebSocketChannelReplay All")
CLIENT = TOP / "build/node/node_modules/nchan/NchanSubscriber.js"
names = iter(f"room{n}" for n in range(1000))


@pytest.fixture
def channel():
    return next(names)


@pytest.fixture
def nchan(httpd, page):
    """Begins a subscriber of a kind, and leads to what it has got: `got`, `ids`."""
    page.open(f"http://localhost:{httpd.port}/client.html")
    page.run(CLIENT.read_text() + "; null")

    def begin(kind, path):
        page.run(
            f"""window.got = []; window.ids = [];
            window.sub = new NchanSubscriber({json.dumps(f"http://localhost:{httpd.port}{path}")}, {{subscriber: "{kind}"}});
            sub.reconnectTimeout = 100;
            sub.on("message", (message, about) => {{ got.push(message); ids.push(about.id); }});
            sub.start(); null"""
        )

    yield begin
    page.run("window.sub && sub.stop(); null")


@pytest.mark.parametrize("kind", ["websocket", "eventsource"])
def test_messages_and_their_ids(httpd, page, nchan, channel, kind):
    nchan(kind, f"/live/{channel}")
    wait_until(lambda: subscribers(httpd, channel) == 1)
    published = [publish(httpd, channel, body)["id"] for body in ("one", "two\nlines", "")]
    page.wait("got.length == 3")
    assert page.run("got") == ["one", "two\nlines", ""]
    assert page.run("ids") == published


@pytest.mark.parametrize("kind", ["websocket", "eventsource"])
def test_it_comes_back_and_misses_nothing(httpd, page, nchan, channel, kind):
    nchan(kind, f"/all/{channel}")
    wait_until(lambda: subscribers(httpd, channel) == 1)
    publish(httpd, channel, "0", "1")
    page.wait("got.length == 2")
    httpd.graceful()
    publish(httpd, channel, "2", "3")
    page.wait("got.length == 4", 20)
    publish(httpd, channel, "4")
    page.wait("got.length == 5", 20)
    assert page.run("got") == ["0", "1", "2", "3", "4"]
