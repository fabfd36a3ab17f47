"""Channels in tests: Locations whose clients are subscribed, and those who publish."""

import http.client
import json
import re
from typing import NamedTuple

META = "ws+meta.nchan"
GAP = "application/x-websocket-gap"


def section(pattern, *lines):
    """A LocationMatch."""
    return f"<LocationMatch {pattern}>\n" + "".join(f"    {line}\n" for line in lines) + "</LocationMatch>\n"


def room(pattern, channel, *directives):
    """A section whose clients are subscribed to a channel."""
    return section(pattern, "SetHandler websocket-handler", f'WebSocketChannel "{channel}"', *directives)


def publishing(*directives, path="publish"):
    """Where POSTs go: /publish/NAME."""
    return section(f"^/{path}/(?<name>.*)$", "SetHandler websocket-publish",
                   'WebSocketChannel "%{env:MATCH_NAME}"', *directives)


LIVE = room("^/live/(?<name>.*)$", "%{env:MATCH_NAME}")


class Answer:
    """What a publisher was answered."""

    def __init__(self, answer):
        self.status, self.headers, body = answer.status, answer.headers, answer.read()
        self.json = json.loads(body) if body and answer.headers.get_content_type() == "application/json" else None


class Publisher:
    """A program that publishes, over one connection that is kept."""

    def __init__(self, port, path="publish"):
        self.path, self.connection = path, http.client.HTTPConnection("127.0.0.1", port, timeout=10)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.connection.close()

    def ask(self, method, channel, body=None, **headers):
        """Any request."""
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        self.connection.request(method, f"/{self.path}/{channel}", body, headers)
        return Answer(self.connection.getresponse())

    def post(self, channel, body):
        """Publishes text, or bytes: what was answered, 201, or 202 if nobody hears it."""
        kind = "text/plain" if isinstance(body, str) else "application/octet-stream"
        body = body.encode() if isinstance(body, str) else body
        answer = self.ask("POST", channel, body, Content_Type=kind)
        assert answer.status in (201, 202), answer.json
        return answer.json


def publish(httpd, channel, *bodies):
    """Publishes one after the other; the last one's answer."""
    with Publisher(httpd.port) as publisher:
        return [publisher.post(channel, body) for body in bodies][-1]


def subscribers(httpd, channel):
    """How many there are, by the server's word."""
    with Publisher(httpd.port) as publisher:
        return publisher.ask("GET", channel).json["subscribers"]


class Meta(NamedTuple):
    """A message of the subprotocol ws+meta.nchan."""

    id: str
    media: str
    body: bytes

    @classmethod
    def of(cls, got):
        found = re.fullmatch(rb"id: ([0-9a-f-]+)\n(?:content-type: ([^\n]*)\n)?\n(.*)", got.payload, re.DOTALL)
        assert found, got.payload[:200]
        return cls(found[1].decode(), (found[2] or b"").decode(), found[3])
