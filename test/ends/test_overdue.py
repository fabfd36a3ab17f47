"""Who would hold up a child's end, and may not: callbacks that do not return, and clients that have no end of their own.

A stop takes two seconds, anything graceful WebSocketDrainTime and 1.5 seconds; nothing is left to httpd, which kills a
child that takes long, and says so in lines that no test here expects. At full size every callback and every client meets
every end, detached and blocking, in clear text and over TLS; else a part of that which has each of them once.
"""

import contextlib
import signal
import socket
import threading
import time

import pytest
from httpd import DETACH, DETACHED, ENDS, ONE_CHILD, PREFORK, TLS, debug, echo, sized, wait_until
from ws_frame import BINARY, CLOSE, TEXT, close_frame, frame, works

pytestmark = [
    pytest.mark.timing,
    pytest.mark.skipif(not DETACHED, reason="the other modes have blocking connections, too"),
]

DRAIN = 0.3
# On a machine with other things to do.
SLACK = 0.5
BOUNDS = {end: DRAIN + 1.5 if "graceful" in end else 2 for end in ENDS}
HANGS = "WS0403: a callback of /.*/debug.so does not return; the child exits without it"
WAYS = {"detached": "", "blocking": "/off"}
COMMON = ["stop", "graceful restart"]


def site(drain=f"{DRAIN * 1000:g}ms", tls=TLS):
    """Each plugin, for detached connections and for blocking ones."""
    off, queue = "WebSocketDetach Off", "WebSocketSendQueueLimit 64k"
    sections = echo() + echo("/echo/off", off) + debug("/debug", queue) + debug("/debug/off", queue, off)
    return f"Timeout 60\nWebSocketDrainTime {drain}\n{DETACH}{tls}{sections}"


class Visit:
    """A client on its way to a plugin."""

    def __init__(self, httpd, connect, kind, way, trail):
        self.httpd, self.connect, self.below = httpd, connect, WAYS[way]
        self.usual = {"port": httpd.tls_port, "tls": httpd.tls_context()} if kind == "wss" else {}
        self.trail = trail

    def arrive(self, plugin="/debug", headers=(), **kw):
        client = self.connect(**self.usual, **kw)
        client.upgrade(plugin + self.below, [("X-Debug-Trail", str(self.trail)), *headers])
        return client


# --- callbacks that do not return ----------------------------------------------------------------


def on_connect(visit):
    client = visit.connect(**visit.usual)
    client.send(client.request(f"/debug{visit.below}", [("X-Debug-Sleep", "60000")]))
    return visit.httpd.child_of(client)


def on_message(visit):
    client = visit.arrive()
    client.send(frame(TEXT, "sleep 60000"))
    return visit.httpd.child_of(client)


def on_message_with_the_request(visit):
    client = visit.arrive(headers=[("X-Debug-Request", "1")])
    client.send(frame(TEXT, "sleep 60000"))
    return visit.httpd.child_of(client)


def on_disconnect(visit):
    client = visit.arrive(headers=[("X-Debug-Sleep-Last", "60000")])
    child = visit.httpd.child_of(client)
    client.send(close_frame(1000))
    wait_until(lambda: visit.httpd.trail_lines(visit.trail), 3, "on_disconnect")
    return child


def on_disconnect_at_the_end(visit):
    return visit.httpd.child_of(visit.arrive(headers=[("X-Debug-Sleep-Last", "60000")]))


CALLBACKS = [on_connect, on_message, on_message_with_the_request, on_disconnect, on_disconnect_at_the_end]


# --- clients that have no end of their own ---------------------------------------------------------


def does_not_answer(visit):
    return visit.arrive("/echo")


def answers_and_stays(visit):
    client = visit.arrive("/echo")

    def answer():
        with contextlib.suppress(EOFError, OSError):
            if client.read_frame(15).opcode == CLOSE:
                client.send(close_frame(1001))

    threading.Thread(target=answer, daemon=True).start()
    return client


def half_a_message(visit):
    client = visit.arrive("/echo")
    client.send(frame(BINARY, bytes(1000), length=1_000_000))
    return client


def sends_on(visit):
    """And takes no notice of what comes."""
    client = visit.arrive("/echo")

    def send():
        with contextlib.suppress(OSError):
            while True:
                client.send(frame(BINARY, bytes(1000)))

    threading.Thread(target=send, daemon=True).start()
    return client


def does_not_read(visit):
    """The plugin's callback waits in send."""
    client = visit.arrive("/debug", rcvbuf=4096)
    client.send(frame(TEXT, "flood 100000 60000"))
    client.read_frame()
    return client


def trickles(visit):
    """The same, with a client that takes a little."""
    client = does_not_read(visit)

    def read():
        with contextlib.suppress(OSError):
            while client.sock.recv(100):
                time.sleep(0.02)

    client.sock.settimeout(None)
    threading.Thread(target=read, daemon=True).start()
    return client


CLIENTS = [does_not_answer, answers_and_stays, half_a_message, sends_on, does_not_read, trickles]


class TestEnds:
    @pytest.fixture(autouse=True)
    def own_server(self, request, httpd):
        over_tls = "over_tls" in request.function.__name__
        # Processes of prefork's that take turns, since there is more than one port or address to listen on, see a graceful
        # signal up to ten seconds late.
        self.late = 10 if PREFORK and over_tls else 0
        with httpd.serve(site(tls=TLS if over_tls else ""), ipv6=not PREFORK):
            yield

    def ends(self, httpd, connect, end, way, child):
        """The child goes in time, and a client that knows how to behave is told."""
        polite = connect()
        polite.upgrade("/echo" + WAYS[way])
        works(polite)
        time.sleep(0.2)
        begun = time.monotonic()
        httpd.tell(ENDS[end])
        try:
            got = polite.read_frame()
            assert (got.opcode, got.code) == (CLOSE, 1001)
            polite.send(close_frame(1001))
        except EOFError:
            # event and worker close the sockets of their own threads before they say that they stop.
            assert way == "blocking" and not PREFORK and "graceful" not in end, "no Close"
        polite.sock.close()
        wait_until(lambda: child not in httpd.children(), 15, "the end of the child")
        took = time.monotonic() - begun
        if "restart" in end:
            httpd.renewed()
        else:
            httpd.stop(ENDS[end])
        late = self.late if "graceful" in end else 0
        assert took < BOUNDS[end] + SLACK + late, f"the child took {took:.1f} s"

    def stays_in(self, callback, httpd, connect, kind, way, end):
        httpd.expect_log(HANGS)
        child = callback(Visit(httpd, connect, kind, way, httpd.trail("overdue")))
        self.ends(httpd, connect, end, way, child)

    @pytest.mark.parametrize("end", sized(COMMON, list(ENDS)))
    @pytest.mark.parametrize("way", WAYS)
    @pytest.mark.parametrize("callback", CALLBACKS, ids=lambda callback: callback.__name__)
    def test_a_callback_that_does_not_return(self, httpd, connect, callback, way, end):
        self.stays_in(callback, httpd, connect, "ws", way, end)

    @pytest.mark.parametrize("end", ["restart", "graceful stop"])
    def test_a_callback_that_does_not_return_at_other_ends(self, httpd, connect, end):
        self.stays_in(on_message, httpd, connect, "ws", "blocking", end)

    @pytest.mark.parametrize("end", sized(COMMON, list(ENDS)))
    @pytest.mark.parametrize("way", WAYS)
    def test_a_callback_that_does_not_return_over_tls(self, httpd, connect, way, end):
        self.stays_in(on_message, httpd, connect, "wss", way, end)

    @pytest.mark.parametrize("end", COMMON)
    @pytest.mark.parametrize("way", WAYS)
    @pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.__name__)
    def test_a_client_without_an_end(self, httpd, connect, client, way, end):
        visit = Visit(httpd, connect, "ws", way, httpd.trail("overdue"))
        self.ends(httpd, connect, end, way, httpd.child_of(client(visit)))

    @pytest.mark.parametrize("end", sized(COMMON[1:], COMMON))
    @pytest.mark.parametrize("way", WAYS)
    @pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.__name__)
    def test_a_client_without_an_end_over_tls(self, httpd, connect, client, way, end):
        visit = Visit(httpd, connect, "wss", way, httpd.trail("overdue"))
        self.ends(httpd, connect, end, way, httpd.child_of(client(visit)))


@pytest.mark.parametrize("way", WAYS)
def test_who_else_is_at_work_is_not_cut_short(httpd, connect, way):
    """A graceful end waits for what httpd serves besides, and lasts no longer than that."""
    if PREFORK:
        pytest.skip("a process serves nothing besides")
    with httpd.serve(site() + "\nSendBufferSize 4096\n"):
        large = httpd.root / "htdocs/large"
        large.write_bytes(bytes(10_000_000))
        httpd.expect_log(HANGS)
        child = on_message(Visit(httpd, connect, "ws", way, httpd.trail("overdue")))
        with socket.socket() as download:
            download.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            download.connect(("127.0.0.1", httpd.port))
            download.sendall(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n")
            got = len(download.recv(1000))
            httpd.tell(signal.SIGUSR1)
            time.sleep(DRAIN + 1.5 + 1)
            assert child in httpd.children()
            while got < 10_000_000 and (data := download.recv(1 << 16)):
                got += len(data)
            assert got > 10_000_000, "the answer was cut short"
        wait_until(lambda: child not in httpd.children(), 3, "the end of the child")
        httpd.renewed()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["ws", "wss"])
def test_who_answers_and_stays_is_not_waited_for(httpd, connect, kind, way):
    """httpd would give such a client two more seconds."""
    with httpd.serve(site("1ms")):
        visit = Visit(httpd, connect, kind, way, httpd.trail("overdue"))
        child = httpd.child_of(answers_and_stays(visit))
        time.sleep(0.2)
        begun = time.monotonic()
        httpd.tell(signal.SIGUSR1)
        wait_until(lambda: child not in httpd.children(), 15, "the end of the child")
        took = time.monotonic() - begun
        httpd.renewed()
    assert took < 1.5 + SLACK, f"the child took {took:.1f} s"


def late(httpd, connect, way):
    """A client whose request has not ended when its child begins to, and the bytes that are missing."""
    client, trail = connect(), httpd.trail("late")
    request = client.request("/debug" + WAYS[way], [("X-Debug-Trail", str(trail)), ("X-Debug-Name", "late")])
    client.send(request[:-2])
    child = httpd.child_of(client)
    time.sleep(0.3)
    httpd.graceful()
    assert child in httpd.before[1]
    return client, trail, request[-2:]


# On prefork mod_reqtimeout answers headers with 400 in whose midst the signal comes.
UNHURRIED = "RequestReadTimeout header=0\n"


@pytest.mark.parametrize("way", WAYS)
def test_who_comes_too_late_is_sent_away(httpd, connect, way):
    """A request whose headers end when the others have been closed: another child serves it as long as it likes."""
    with httpd.serve(site() + UNHURRIED):
        client, trail, rest = late(httpd, connect, way)
        time.sleep(DRAIN + 2)
        client.send(rest)
        response = client.read_response()
        assert response.status == 503
        assert int(response.headers["retry-after"]) > 0
        assert not httpd.trail_lines(trail), "the plugin was asked"
        client.sock.close()
        httpd.outlived()
        with connect() as other:
            other.upgrade("/echo" + WAYS[way])
            works(other)


@pytest.mark.parametrize("way", WAYS)
def test_who_comes_while_others_are_drained_is_closed_with_them(httpd, connect, way):
    if PREFORK:
        pytest.skip("a process that ends serves nobody any more")
    with httpd.serve(site("2s") + UNHURRIED):
        client, trail, rest = late(httpd, connect, way)
        begun = time.monotonic()
        client.send(rest)
        assert client.read_response().status == 101
        client.expect_close(1001)
        httpd.outlived()
        assert time.monotonic() - begun < 2 + 1.5 + SLACK
        assert len(httpd.trail_lines(trail)) > 0, "the plugin was not asked"


@pytest.mark.parametrize("way", WAYS)
def test_a_stop_cuts_a_drain_short(httpd, connect, way):
    with httpd.serve(site("1h")):
        httpd.expect_log(HANGS)
        on_message(Visit(httpd, connect, "ws", way, httpd.trail("overdue")))
        httpd.graceful()
        time.sleep(0.5)
        begun = time.monotonic()
        httpd.stop()
        # httpd looks after its children now and then.
        assert time.monotonic() - begun < 2 + 1 + SLACK


@pytest.mark.parametrize("end", ENDS)
def test_detached_connections_hear_of_the_end_meanwhile(httpd, connect, end):
    """On prefork the process's only thread of httpd's is in the callback, and holds the signals back."""
    httpd.allow_log("AH00288: scoreboard is full")  # the child that does not end has the only place
    with httpd.serve(ONE_CHILD + site()):
        httpd.expect_log(HANGS)
        httpd.allow_log("AH00161|AH03490")  # there is no room for a second child
        polite = connect()
        polite.upgrade("/echo")
        works(polite)
        child = on_message(Visit(httpd, connect, "ws", "blocking", httpd.trail("overdue")))
        assert httpd.child_of(polite) == child
        time.sleep(0.2)
        begun = time.monotonic()
        httpd.tell(ENDS[end])
        polite.expect_close(1001)
        assert time.monotonic() - begun < (DRAIN if "graceful" in end else 0) + SLACK
        wait_until(lambda: child not in httpd.children(), 15, "the end of the child")
        assert time.monotonic() - begun < BOUNDS[end] + SLACK
        if "restart" in end:
            httpd.renewed()
        else:
            httpd.stop(ENDS[end])
