"""Plugins that count on one connection per process, which prefork has always given them."""

import contextlib
import re

import pytest
from httpd import DETACH, DETACHED, ONE_CHILD, PREFORK, debug, location, wait_until
from peers import Listener, bridge, read_exactly
from ws_frame import BINARY, CLOSE, TEXT, close_frame, frame

prefork = pytest.mark.skipif(not PREFORK, reason="other MPMs give a process to many connections")
detached = pytest.mark.skipif(not DETACHED, reason="all about detached connections")


def globals_(path="/globals", *directives):
    """A Location of the plugin that has its client in global variables."""
    return location(path, "${PLUGINS}/globals.so", "globals_init", *directives)


class Named:
    """A connection to that plugin."""

    def __init__(self, ws, name, path="/globals"):
        self.client, self.name, self.said = ws(path, [("X-Name", name)]), name, 0

    def say(self, text):
        self.client.send(frame(TEXT, text))
        self.said += 1

    def ask(self, text):
        self.say(text)
        got = self.client.read_frame()
        assert got.opcode == TEXT
        return got.payload.decode()

    def expect(self, text):
        """The answer to the last message."""
        self.client.expect(TEXT, f"{self.name} {self.said} {text}")

    def talk(self):
        for text in ("hello", "and again"):
            self.say(text)
            self.expect(text)

    def close(self):
        end(self.client)


def end(client):
    """Ends a connection, that of TCP included: the process waits for it."""
    client.close()
    client.sock.close()


# As few processes as there can be without httpd's complaint that there are too few.
FEW_CHILDREN = ONE_CHILD.replace("MaxRequestWorkers 1\n", "MaxRequestWorkers 4\n")


@prefork
class TestOneConnectionPerProcess:
    # Fewer processes than clients at first.
    CONF = "WebSocketDetach Auto\n" + globals_() + """
        ServerLimit 20
        MaxRequestWorkers 20
        StartServers 2
        MinSpareServers 1
        MaxSpareServers 20
    """

    def test_clients_at_once(self, httpd, ws):
        clients = [Named(ws, f"client-{n}") for n in range(5)]
        assert len({httpd.child_of(each.client) for each in clients}) == 5
        for text in ("hello", "how are you", "bye"):
            for each in clients:
                each.say(text)
            for each in clients:
                each.expect(text)
        for each in clients:
            each.close()

    def test_the_log_says_why(self, httpd, ws):
        Named(ws, "curious").talk()
        wait_until(lambda: "one connection per process" in httpd.new_log(), 5, "the reason")


@prefork
class TestOneAfterTheOther:
    """A process's connections come one after the other, and the plugin sees them all at one address."""

    CONF = "WebSocketDetach Auto\n" + FEW_CHILDREN + globals_() + debug()

    def test_one_address(self, httpd, ws):
        seen = set()
        for n in range(30):
            each = Named(ws, f"client-{n}")
            seen.add((httpd.child_of(each.client), each.ask("address")))
            each.talk()
            assert each.ask("copy") == "by copy"
            if n % 3:
                each.close()
            else:
                each.client.reset()
        assert len(seen) == len({child for child, _ in seen}) <= 4, seen

    def test_after_a_refusal(self, connect, ws):
        """Be it of the process's first connection."""
        for n in range(10):
            with connect() as unwelcome:
                assert unwelcome.ask("/globals", [("X-Refuse", "1")]).status == 403
            each = Named(ws, f"client-{n}")
            each.talk()
            each.close()

    def test_another_plugin_in_between(self, ws):
        for n in range(10):
            each = Named(ws, f"client-{n}")
            each.talk()
            each.close()
            other = ws("/debug", [("X-Name", "other")])
            other.send(frame(TEXT, "header: x-name"))
            other.expect(TEXT, "other")
            end(other)

    def test_a_thread_that_is_late(self, httpd, ws):
        """What it sends after the end is refused, as long as there is no other connection."""
        for n in range(10):
            each = Named(ws, f"client-{n}")
            each.talk()
            child = httpd.child_of(each.client)
            before = httpd.threads(child)
            each.say("late")
            each.client.expect(TEXT, "late")
            assert httpd.threads(child) == before + 1
            each.client.send(close_frame(1000))
            while (got := each.client.read_frame()).opcode == TEXT:
                assert got.payload == b"late"
            assert (got.opcode, got.code) == (CLOSE, 1000)
            each.client.sock.close()
            wait_until(lambda: httpd.threads(child) == before, 5, "the end of the thread")


@prefork
def test_the_request_stays(httpd, ws):
    """A plugin may ask for httpd's request as long as the connection lasts, as it always could there."""
    with httpd.serve("WebSocketDetach Auto\n" + debug()):
        for _ in range(3):
            client = ws("/debug")
            for _ in range(2):
                client.send(frame(TEXT, "request"))
                client.expect(TEXT, "non-null")
            end(client)


@prefork
class TestAdvice:
    """What ends detached connections is of no concern where there are none."""

    CHILDREN = """
        MaxConnectionsPerChild 1000
        BufferedLogs On
        <IfModule !none>
            MaxSpareServers 9
        </IfModule>
    """

    @pytest.mark.parametrize("conf, advice", [
        ("WebSocketDetach Auto\n" + debug(), set()),
        ("WebSocketDetach Auto\n" + debug("/one", "WebSocketDetach On"), {"WS0407", "WS0408", "WS0410"}),
        ("WebSocketDetach Auto\n" + bridge("/tcp", "tcp://127.0.0.1:9"), {"WS0407", "WS0408", "WS0410"}),
    ], ids=["plugins", "detached plugins", "bridge"])
    def test_advice(self, httpd, conf, advice):
        with httpd.serve(self.CHILDREN + conf):
            lines = [line for line in httpd.new_log().splitlines() if ":warn]" in line]
        assert {re.search(r"WS\d{4}", line)[0] for line in lines} == advice


@detached
class TestManyConnectionsInAProcess:
    """Where they are detached, each has an address of its own: on prefork if one says so, else anyway."""

    CONF = DETACH + ONE_CHILD + globals_() + debug()

    def test_addresses(self, httpd, ws):
        clients = [Named(ws, f"client-{n}") for n in range(40)]
        assert len({httpd.child_of(each.client) for each in clients}) == 1
        addresses = [each.ask("address") for each in clients]
        assert len(set(addresses)) == 40
        assert [each.ask("address") for each in clients] == addresses
        for each in clients:
            each.close()

    def test_each_is_answered(self, ws):
        clients = [ws("/debug", [("X-Name", f"client-{n}")]) for n in range(40)]
        for client in clients:
            client.send(frame(TEXT, "header: x-name"))
        for n, client in enumerate(clients):
            client.expect(TEXT, f"client-{n}")
            client.close()


@prefork
@detached
class TestBoth:
    """A process serves connections of both kinds."""

    CONF = "WebSocketDetach Auto\n" + FEW_CHILDREN + globals_() + globals_("/many", "WebSocketDetach On")

    def test_the_one_address_is_not_theirs(self, httpd, ws):
        def seen(each):
            return httpd.child_of(each.client), each.ask("address")

        many, alone = [Named(ws, f"many-{n}", "/many") for n in range(20)], set()
        for n in range(20):
            each = Named(ws, f"client-{n}")
            alone.add(seen(each))
            each.close()
        others = {seen(each) for each in many}
        assert len(alone) == len({child for child, _ in alone}), alone
        assert len(others) == len(many) and not others & alone
        assert {child for child, _ in others} & {child for child, _ in alone}
        for each in many:
            each.close()


@detached
class TestBridge:
    """A bridge's connections leave the process's thread on every MPM."""

    CONF = "WebSocketDetach Auto\n" + ONE_CHILD + "WebSocketBridgeAllow tcp://127.0.0.1:*\n" + bridge(
        "/tcp", "tcp://127.0.0.1:%{QUERY_STRING}", "WebSocketBridgeFraming binary"
    )

    def test_many_in_a_process(self, httpd, ws):
        with Listener() as peer, contextlib.ExitStack() as stack:
            pairs = []
            for _ in range(10):
                client = ws(f"/tcp?{peer.port}")
                pairs.append((client, stack.enter_context(peer.accept())))
            assert len({httpd.child_of(client) for client, _ in pairs}) == 1
            for client, connection in pairs:
                client.send(frame(BINARY, b"there"))
                assert read_exactly(connection, 5) == b"there"
                connection.sendall(b"back")
                client.expect(BINARY, b"back")
            assert httpd.get()[0] == 200
