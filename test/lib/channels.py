"""Channels in tests: Locations whose clients are subscribed, and those who publish."""

import http.client
import json
import re
import socket
import time
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


class Event(NamedTuple):
    """What an EventSource hands to its page."""

    id: str
    kind: str
    data: str


class EventSource:
    """A client of Server-Sent Events (WHATWG HTML §9.2.6), for one connection."""

    def __init__(self, port, path, last=None, tls=None, headers=(), rcvbuf=None):
        self.sock = socket.socket()
        if rcvbuf:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
        self.sock.settimeout(10)
        self.sock.connect(("127.0.0.1", port))
        if tls:
            self.sock = tls.wrap_socket(self.sock, server_hostname="localhost")
        fields = [("Host", "localhost"), ("Accept", "text/event-stream"), *headers]
        if last:
            fields.append(("Last-Event-ID", last))
        request = f"GET {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in fields)
        self.sock.sendall(request.encode() + b"\r\n")
        self.buffer, self.last, self.retry, self.ended = b"", last, None, False
        head = self.until(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        self.status = int(status.split()[1])
        self.headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.sock.close()

    def until(self, end, timeout=10):
        """What comes before `end`."""
        deadline = time.monotonic() + timeout
        while end not in self.buffer:
            self.sock.settimeout(max(0.01, deadline - time.monotonic()))
            part = self.sock.recv(65536)
            if not part:
                self.ended = True
                raise EOFError(f"the stream ended; unread: {self.buffer[:100]!r}")
            self.buffer += part
        found, self.buffer = self.buffer.split(end, 1)
        return found

    def next(self, timeout=10):
        """The next event."""
        while True:
            kind, data = "message", []
            for line in self.until(b"\n\n", timeout).decode().split("\n"):
                name, _, value = line.partition(":")
                value = value.removeprefix(" ")
                if not name:
                    continue  # a comment
                if name == "id":
                    self.last = value
                elif name == "retry":
                    self.retry = int(value)
                elif name == "event":
                    kind = value
                else:
                    assert name == "data", line
                    data.append(value)
            if data:
                return Event(self.last, kind, "\n".join(data))

    def end(self, timeout=10):
        """Reads to the end of the stream, and no event comes."""
        try:
            event = self.next(timeout)
        except EOFError:
            return
        raise AssertionError(f"unexpected: {event}")
