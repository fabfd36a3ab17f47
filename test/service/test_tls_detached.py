"""TLS connections that leave httpd: the module takes over the SSL that mod_ssl made, on every MPM.

Each connection here is meant to be detached, or meant not to be, and its own line of the error log has to say
so.
"""

import contextlib
import random
import re
import socket
import ssl
import subprocess
import threading
import time

import pytest
from httpd import DETACHED, ENDS, ONE_CHILD, TLS, debug, echo, sized, wait_until
from ws_frame import BINARY, CLOSE, PING, PONG, TEXT, Client, close_frame, frame, random_text, works
from ws_tls import VERSIONS, Keys, Records

pytestmark = pytest.mark.skipif(not DETACHED, reason="WebSockets are to stay on httpd's threads")

LEFT = "detached, TLS"
STAYED = "served on httpd's thread"
# On prefork, too, plugins of version 0 are to be detached.
DETACH = "WebSocketDetach On\n"
SITE = DETACH + TLS + debug() + echo()
SO_SNDBUFFORCE = 32  # Linux has the name, Python has not
# One child, or few, none of which is ever short of one that waits, so that httpd has nothing to say.
FEW = ONE_CHILD.replace("MaxRequestWorkers 1\n", "MaxRequestWorkers 8\n")
FEW = FEW.replace("StartServers 1", "StartServers 3", 1)
both = pytest.mark.parametrize("version", VERSIONS)


def way_of(httpd, client):
    """How a connection is served, and the reason if there is one, as the error log has it."""
    port = client.sock.getsockname()[1]
    told = re.compile(rf"\[client 127\.0\.0\.1:{port}\] ws\(\d+\) ({LEFT}|detached, clear text|{STAYED})")
    lines = wait_until(lambda: told.findall(httpd.new_log()), 5, "the line that says how it is served")
    why = rf"\[client 127\.0\.0\.1:{port}\] ws\(\d+\) bytes go through httpd's filters because of (.*)"
    reasons = re.findall(why, httpd.new_log())
    return lines[-1], reasons[-1] if reasons else None


@pytest.fixture
def records(httpd):
    """Opens TLS connections over records of our own, before any request."""
    with contextlib.ExitStack() as stack:

        def opened(version="1.3", context=None, **kw):
            context = context or httpd.tls_context(VERSIONS[version])
            client = stack.enter_context(Records(httpd.tls_port, context, **kw))
            assert client.tls.version() == f"TLSv{version}"
            return client

        yield opened


@pytest.fixture
def wss(httpd, records):
    """Opens WebSockets over them, which have to be detached."""

    def opened(version="1.3", path="/echo", headers=(), **kw):
        client = records(version, **kw)
        client.upgrade(path, headers)
        assert way_of(httpd, client) == (LEFT, None)
        return client

    return opened


@pytest.fixture
def keys(httpd):
    """Opens TLS connections that can change their keys."""
    with contextlib.ExitStack() as stack:

        def opened(version="1.3", **kw):
            return stack.enter_context(Keys(httpd.tls_port, version, **kw))

        yield opened


@pytest.fixture(scope="module")
def compiled(httpd):
    """Compiles a C file for the server to load: with httpd's headers for a module, without them to be
    preloaded."""

    def library(name, source, module=False):
        path = httpd.root / f"{name}.so"
        path.with_suffix(".c").write_text(source)
        flags = ["-shared", "-fPIC", "-Wall", "-Werror"]
        if module:
            flags += [f"-I{httpd.apxs(name)}" for name in ("INCLUDEDIR", "APR_INCLUDEDIR", "APU_INCLUDEDIR")]
            flags += httpd.apxs("EXTRA_CPPFLAGS").split()
        command = ["cc", *flags, "-o", str(path), str(path.with_suffix(".c")), "-ldl"]
        subprocess.run(command, check=True)
        path.chmod(0o755)
        return path

    return library


# The module looks OpenSSL's functions up with dlsym, so this one gives it, and only it, others.
SPOILT = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

typedef void *lookup(void *, const char *);
static lookup *theirs;
static void *found;

static int refused(void) { return 0; }
static void *nothing(void) { return NULL; }
static const char *another_name(void) { return "LibreSSL 3.9"; }
static void another_callback(void *context, void *session) { (void) context; (void) session; }
static void *get_another_callback(void) { return (void *) another_callback; }
static void *keylog(void) { return (void *) another_callback; }
static unsigned long an_old_number(void) { return 0x1010007fUL; }

static void *no_connection(const void *ssl, int index)
{
    return index == 0 ? NULL : ((void *(*)(const void *, int)) found)(ssl, index);
}

static long no_auto_retry(void *ssl, int what, long arg, void *more)
{
    return ((long (*)(void *, int, long, void *)) found)(ssl, what, what == 33 ? arg & ~4L : arg, more);
}

static const struct { const char *name; void *instead; } ones[] = {
    { "BIO_method_name", (void *) another_name },
    { "BIO_new", (void *) nothing },
    { "OpenSSL_version", (void *) another_name },
    { "OpenSSL_version_num", (void *) an_old_number },
    { "SSL_CTX_get_keylog_callback", (void *) keylog },
    { "SSL_CTX_sess_get_remove_cb", (void *) get_another_callback },
    { "SSL_ctrl", (void *) no_auto_retry },
    { "SSL_get_ex_data", (void *) no_connection },
    { "SSL_is_init_finished", (void *) refused },
    { "SSL_set_quiet_shutdown", NULL },
    { "SSL_up_ref", (void *) refused },
};

void *dlsym(void *handle, const char *name)
{
    static const char *const versions[] = { "GLIBC_2.34", "GLIBC_2.17", "GLIBC_2.2.5", "GLIBC_2.0" };
    const char *spoilt = getenv("SPOILT");
    unsigned n;

    for (n = 0; theirs == NULL && n < 4; n++) {
        theirs = (lookup *) dlvsym(RTLD_NEXT, "dlsym", versions[n]);
    }
    for (n = 0; spoilt != NULL && strcmp(spoilt, name) == 0 && n < sizeof(ones) / sizeof(*ones); n++) {
        if (strcmp(ones[n].name, name) == 0) {
            found = theirs(handle, name);
            return ones[n].instead;
        }
    }
    return theirs(handle, name);
}
"""


@pytest.fixture(scope="module")
def spoilt(compiled):
    """The server's environment in which the module finds another function under a name of OpenSSL's."""
    library = compiled("spoilt", SPOILT)
    return lambda name: {"LD_PRELOAD": str(library), "SPOILT": name}


# --- frames that come with the handshake -----------------------------------------------------


def with_key_updates(client, pieces):
    """Sends a handshake and frames behind it in one go, each in a record of its own, with new keys between
    them."""
    client.tls.write(client.request())
    for n, piece in enumerate(pieces):
        for _ in range(n % 3):
            client.tls.key_update(both_ways=n % 2)
        client.tls.write(piece)
    client.pass_on()
    assert client.read_response().status == 101


class TestEarly:
    """Frames that the client sends behind its handshake without waiting for the answer."""

    CONF = SITE

    @both
    def test_in_the_record_of_the_request(self, httpd, records, version):
        client, mark, early = records(version), f"?early-{version}", frame(TEXT, "early " * 300)
        client.send(client.request(f"/echo{mark}") + early + frame(PING, b"bird"))
        assert client.read_response().status == 101
        client.expect(TEXT, "early " * 300)
        client.expect(PONG, b"bird")
        assert way_of(httpd, client) == (LEFT, None)
        works(client)
        client.close()
        assert httpd.access(mark)[-1].bytes_in > len(early), "not counted"

    @both
    @pytest.mark.parametrize("behind", [1, 4, 5, 6, "half", "all but one"])
    def test_cut(self, httpd, records, version, behind):
        """A part of a record comes with the handshake, and the rest when the connection has left httpd."""
        client = records(version)
        asked = client.record(client.request(), frame(TEXT, "in one piece"))
        data = client.record(frame(TEXT, "early " * 50) + frame(PING, b"bird"))
        at = {"half": len(data) // 2, "all but one": len(data) - 1}.get(behind, behind)
        client.send_raw(asked + data[:at])
        assert client.read_response().status == 101
        client.expect(TEXT, "in one piece")
        assert way_of(httpd, client) == (LEFT, None)
        client.send_raw(data[at:])
        client.expect(TEXT, "early " * 50)
        client.expect(PONG, b"bird")
        works(client)

    @both
    def test_request_cut(self, httpd, records, version):
        """The record of the request and the frames is not whole when the server reads it first."""
        client = records(version)
        data = client.record(client.request() + frame(TEXT, "early") + frame(PING, b"bird"))
        client.send_raw(data[: len(data) // 2])
        time.sleep(0.2)
        client.send_raw(data[len(data) // 2 :])
        assert client.read_response().status == 101
        client.expect(TEXT, "early")
        client.expect(PONG, b"bird")
        assert way_of(httpd, client) == (LEFT, None)

    @both
    def test_300_kilobytes(self, httpd, records, version):
        client, data = records(version), random_text(100_000)
        messages = [frame(BINARY, data[n:]) for n in (0, 1, 2)]
        client.exchange([client.request() + b"".join(messages)], 300_000)
        assert client.read_response().status == 101
        for n in (0, 1, 2):
            client.expect(BINARY, data[n:])
        assert way_of(httpd, client) == (LEFT, None)
        client.close()

    PIECES = [frame(TEXT, f"piece {n} " * 20) for n in range(40)]

    def test_with_key_updates(self, httpd, keys):
        """A KeyUpdate is a record without data, behind which httpd's filters must be asked on."""
        client = keys()
        with_key_updates(client, self.PIECES)
        for n in range(40):
            client.expect(TEXT, f"piece {n} " * 20)
        assert way_of(httpd, client) == (LEFT, None)
        works(client)

    @both
    def test_end_behind_the_handshake(self, httpd, records, version):
        """Everything that the client ever says comes in one segment: request, frames, Close, close_notify,
        FIN."""
        mark = f"?all-{version}"
        client = records(version)
        client.tls.write(client.request(f"/echo{mark}") + frame(TEXT, "early") + close_frame(1000))
        with contextlib.suppress(ssl.SSLWantReadError):
            client.tls.unwrap()
        client.pass_on()
        client.sock.shutdown(1)
        # The client's TLS has ended, so its server's answer cannot be read any more; the log tells.
        entry = httpd.access(mark)[-1]
        assert (entry.close_code, entry.messages_in, entry.messages_out) == ("1000", "1", "1")
        assert way_of(httpd, client) == (LEFT, None)


class TestTooMuch:
    """More than the module takes out of httpd's filters: the connection stays with them."""

    CONF = SITE

    def judge(self, httpd, client):
        where = way_of(httpd, client)
        assert where in ((LEFT, None), (STAYED, "a client that sends too fast"))
        works(client, "still there")
        client.close()
        return where[0] == STAYED

    @both
    def test_bytes(self, httpd, records, version):
        """Whether the client is fast enough for that is for the machine to say, so it has some tries."""
        data = random_text(1 << 20)
        sent = b"".join(frame(BINARY, data[n:]) for n in range(4))
        back = sum(len(data[n:]) + 10 for n in range(4))
        stayed = False
        for _ in range(20):
            with records(version) as client:
                with contextlib.suppress(PermissionError):  # as root
                    client.sock.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 8 << 20)
                client.exchange([client.request() + sent], back + 129)
                assert client.read_response().status == 101
                for n in range(4):
                    client.expect(BINARY, data[n:])
                stayed |= self.judge(httpd, client)
            if stayed:
                break
        assert stayed, "no client was too fast"

    @both
    def test_reads(self, httpd, records, version):
        """Records of a single byte, all in one segment: a client cannot choose so cheaply to keep a thread of httpd's."""
        client, data = records(version), frame(TEXT, "byte by byte " * 50)
        asked = client.record(client.request())
        client.send_raw(asked + b"".join(client.record(bytes([byte])) for byte in data))
        assert client.read_response().status == 101
        client.expect(TEXT, "byte by byte " * 50)
        assert not self.judge(httpd, client)


class TestTooMuchForTheShare:
    """It would have to stay, and WebSockets hold as many of httpd's workers as they may: three of four."""

    CONF = ONE_CHILD.replace("25", "4").replace("Workers 1\n", "Workers 4\n").replace("Servers 1\n", "Servers 4\n", 1)
    CONF += SITE + echo("/blocking", "WebSocketDetach Off")

    def test_closed(self, httpd, records, ws):
        httpd.expect_log("WS0109: refused: WebSockets hold 3 ")
        httpd.allow_log("server reached MaxRequestWorkers")
        blocking = [ws("/blocking") for _ in range(3)]
        for n in range(20):
            mark = f"?share-{n}"
            client = records()
            with contextlib.suppress(PermissionError):  # as root
                client.sock.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 8 << 20)
            asked = client.record(client.request(f"/debug{mark}", [("X-Debug-Sleep", "50")]))
            data = client.record(*[frame(BINARY, random_text(1 << 20))] * 4, close_frame(1000))
            sender = threading.Thread(target=client.send_raw, args=(asked + data,))
            sender.start()
            assert client.read_response().status == 101
            while (got := client.read_frame()).opcode != CLOSE:
                pass
            sender.join()
            client.sock.close()
            assert got.code in (1000, 1013)
            if got.code == 1013:
                break
        assert got.code == 1013, "no client was too fast"
        assert httpd.access(mark)[-1].close_code == "1013"
        assert httpd.get()[0] == 200
        for client in blocking:
            works(client)


class TestKeys:
    CONF = SITE

    def test_in_one_segment(self, httpd, keys):
        """KeyUpdates among records that the server receives at once."""
        client = keys()
        client.upgrade()
        assert way_of(httpd, client) == (LEFT, None)
        key_updates_in_one_segment(client)

    @pytest.mark.parametrize("both_ways", [False, True])
    def test_during_a_transfer(self, httpd, keys, both_ways):
        """The keys change again and again while large messages go both ways."""
        client, data = keys(), random_text(1 << 18)
        client.upgrade()
        assert way_of(httpd, client) == (LEFT, None)
        steps = []
        for n in range(16):
            message = frame(BINARY, data[n:])
            for at in range(0, len(message), 1 << 16):
                steps += [message[at : at + (1 << 16)], lambda: client.tls.key_update(both_ways)]
        client.exchange(steps, sum(len(data[n:]) + 10 for n in range(16)))
        for n in range(16):
            client.expect(BINARY, data[n:])
        client.close()


def key_updates_in_one_segment(client):
    for n in range(20):
        client.tls.write(frame(TEXT, f"{n}"))
        for _ in range(n % 4):
            client.tls.key_update(both_ways=n % 2)
    client.pass_on()
    for n in range(20):
        client.expect(TEXT, f"{n}")


def test_key_updates_take_auto_retry(httpd, keys, spoilt):
    """A control: TestKeys.test_in_one_segment has to notice when OpenSSL is not told to read on behind a
    KeyUpdate."""
    with httpd.serve(SITE, env=spoilt("SSL_ctrl")):
        client = keys()
        client.upgrade()
        client.timeout = 1.5
        assert way_of(httpd, client) == (LEFT, None)
        works(client)
        with pytest.raises(TimeoutError):
            key_updates_in_one_segment(client)


# As many as take more room than all socket buffers and the 32 KiB of records that the server may hold.
FLOOD = 30_000
SMALL_BUFFERS = "SendBufferSize 16384\nReceiveBufferSize 16384\n"


class TestFlood:
    """A client that asks for the server's new keys as often as it can and never reads: each request makes the
    server write as many bytes as it brings."""

    CONF = DETACH + FEW + SMALL_BUFFERS + "Timeout 3\n" + TLS + debug() + echo()

    def flood(self, httpd, keys, mark="", updates=FLOOD, messages=0):
        """Sends until nothing goes any more, and gives what is left to send, and how many bytes the messages
        that went come back as. What there are to be some of alternates."""
        client = keys(rcvbuf=16384)
        client.upgrade(f"/echo{mark}")
        assert way_of(httpd, client) == (LEFT, None)
        child = httpd.child_of(client)
        before = httpd.memory(child)
        data, ends, back = bytearray(), [], 0
        for n in range(max(updates, messages)):
            if n < updates:
                client.tls.key_update(both_ways=True)
            if n < messages:
                client.tls.write(frame(TEXT, self.text(n)))
                back += len(frame(TEXT, self.text(n), mask=None))
            data += client.outgoing.read()
            ends.append((len(data), back))
        rest = memoryview(data)
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 14)
        client.sock.setblocking(False)
        moved = time.monotonic()
        while rest and time.monotonic() < moved + 0.5:
            try:
                rest, moved = rest[client.sock.send(rest) :], time.monotonic()
            except BlockingIOError:
                time.sleep(0.01)
        client.sock.settimeout(client.timeout)
        assert rest, "the server has read everything"
        assert httpd.memory(child) - before < 2048
        return client, rest, max(back for end, back in ends if end <= len(data) - len(rest))

    @staticmethod
    def text(n):
        return f"{n} " * (n % 80)

    def recover(self, client, rest, messages):
        """The client reads again, and sends what is left."""
        back = sum(len(frame(TEXT, self.text(n), mask=None)) for n in range(messages))
        client.exchange([lambda: client.outgoing.write(rest)], back, timeout=10)
        for n in range(messages):
            client.expect(TEXT, self.text(n))
        works(client, "at last")
        client.close()

    def test_others_are_served(self, httpd, keys, wss):
        other = wss()
        client, rest, _ = self.flood(httpd, keys)
        for n in range(20):
            works(other, f"meanwhile {n}")
        self.recover(client, rest, 0)

    @pytest.mark.parametrize("attempt", range(2))
    def test_messages_among_them(self, httpd, keys, attempt):
        """Where it is held up differs from time to time."""
        client, rest, back = self.flood(httpd, keys, updates=8000, messages=8000)
        if attempt % 2:
            # It says nothing at first: what was held up must go on by itself.
            client.exchange([], back, timeout=10)
        self.recover(client, rest, 8000)

    def test_given_up(self, httpd, keys, wss):
        other = wss()
        mark = f"?given-up-{type(self).__name__}"
        client = self.flood(httpd, keys, mark)[0]
        start = time.monotonic()
        assert httpd.access(mark, timeout=8)[-1].close_code == "1006"
        assert time.monotonic() - start > 0.5
        works(other)
        assert client.sock.fileno() >= 0


class TestCrowd(TestFlood):
    """The same with messages whose answers fill the queue."""

    CONF = TestFlood.CONF + "WebSocketSendQueueLimit 64k\n"

    def flood(self, httpd, keys, mark="", updates=0, messages=8000):
        return super().flood(httpd, keys, mark, 0, messages)

    def recover(self, client, rest, messages):
        super().recover(client, rest, 8000)


# --- records, good and bad, and ends at any moment -------------------------------------------


def spoil(data):
    """A record with a bit wrong."""
    return bytes(data[:-1]) + bytes([data[-1] ^ 1])


@both
class TestRecords:
    CONF = SITE + """
        <Location /status>
            SetHandler server-status
        </Location>
    """

    def test_cut_at_every_byte(self, wss, version):
        client = wss(version, cut=1)
        works(client, "byte by byte")
        client.send(frame(PING, b"?") + frame(BINARY, b"x" * 300))
        client.expect(PONG, b"?")
        client.expect(BINARY, b"x" * 300)
        client.close()

    def test_one_byte_in_each(self, wss, version):
        client = wss(version)
        message = frame(TEXT, "one by one " * 100)
        client.send_raw(b"".join(client.record(bytes([byte])) for byte in message))
        client.expect(TEXT, "one by one " * 100)

    def test_many_in_one_segment(self, wss, version):
        client = wss(version)
        client.send_raw(b"".join(client.record(frame(TEXT, f"{n}")) for n in range(1000)))
        for n in range(1000):
            client.expect(TEXT, f"{n}")
        client.close()

    def test_empty_ones(self, wss, version):
        """Records without data, which some stacks send (in TLS 1.3 they are still 22 bytes)."""
        client = wss(version)
        for n in range(50):
            client.tls.write(b"")
            client.send(frame(TEXT, f"{n}"))
            client.expect(TEXT, f"{n}")

    def test_8_mebibytes_both_ways(self, wss, version):
        client, data = wss(version), random_text(8 << 20)
        message = frame(BINARY, data)
        client.exchange([message, message], 2 * (len(data) + 10))
        client.expect(BINARY, data)
        client.expect(BINARY, data)
        client.close()

    def test_odd_portions(self, wss, version):
        """Messages and receives that do not end where records end, and nothing behind them."""
        client = wss(version)
        for size in (65_000, 65_535, 65_537, 81_920, 100_000, 131_072, 200_001, 262_144, 400_003):
            data = random_text(size)
            message = frame(BINARY, data) + frame(TEXT, "behind")
            client.exchange([message], size + (10 if size > 65_535 else 4) + 8)
            client.expect(BINARY, data)
            client.expect(TEXT, "behind")

    def test_slow_reader(self, httpd, wss, version):
        client, other, data = wss(version, rcvbuf=65_536), wss(version), random_text(20 << 20)
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        client.send(frame(BINARY, data))
        for _ in range(20):
            client.receive(client.sock.recv(1 << 14))
            time.sleep(0.02)
            works(other)
        client.expect(BINARY, data)
        works(client)
        client.close()

    @pytest.mark.parametrize("bad", ["spoilt", "no record"])
    def test_good_ones_before_a_bad_one(self, httpd, wss, version, bad):
        """All in one segment. OpenSSL writes nothing behind its alert, so there may be no answers; the
        messages count."""
        trail, mark = httpd.trail("bad"), f"?{bad.replace(' ', '-')}-{version}"
        client, other = wss(version, f"/debug{mark}", [("X-Debug-Trail", str(trail))]), wss(version)
        good = b"".join(client.record(frame(BINARY, f"{n}")) for n in range(5))
        last = spoil(client.record(frame(BINARY, "bad")))
        client.send_raw(good + (last if bad == "spoilt" else b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"))
        # What OpenSSL answers to no record at all differs from version to version.
        alerts = "bad.record.mac" if bad == "spoilt" else "protocol.version|wrong.version|unexpected.message"
        with pytest.raises(ssl.SSLError, match=f"(?i){alerts}"):
            while True:
                client.read_frame()
        entry = httpd.access(mark)[-1]
        assert (entry.close_code, entry.messages_in) == ("1006", "5")
        assert httpd.trail_lines(trail) == ["disconnect"]
        httpd.expect_log(r"WS0302: the connection is lost: TLS: error:\w+:")
        works(other)

    def test_ends_at_any_moment(self, httpd, wss, version):
        """Bad and cut records, close_notify, FIN and RST, after any number of messages and with any amount on
        its way."""
        chance, children, trails = random.Random(22), set(httpd.children()), []
        witness = wss(version)
        for n in range(60):
            trails.append(httpd.trail(f"moment-{n}"))
            client = wss(version, "/debug", [("X-Debug-Trail", str(trails[-1]))])
            for _ in range(chance.randrange(3)):
                client.send(frame(BINARY, b"x" * chance.choice((1, 100, 40_000))))
            if chance.random() < 0.3:
                client.send(frame(TEXT, "flood 20 50000"))
            last = client.record(frame(BINARY, b"y" * chance.choice((1, 5_000, 16_000))))
            how = chance.choice(("bad", "cut", "notify", "cut and notify", "nothing"))
            if "cut" in how:
                client.sock.sendall(last[: chance.randrange(1, len(last))])
            elif how != "nothing":
                client.sock.sendall(spoil(last) if how == "bad" else last)
            if "notify" in how:
                with contextlib.suppress(ssl.SSLError):
                    client.tls.unwrap()
                with contextlib.suppress(ConnectionError):
                    client.sock.sendall(client.outgoing.read())
            if chance.random() < 0.5:
                client.reset()
            elif chance.random() < 0.5:
                with contextlib.suppress(OSError):
                    client.sock.shutdown(socket.SHUT_WR)
            client.sock.close()
        for trail in trails:
            wait_until(lambda t=trail: "disconnect" in httpd.trail_lines(t), 10, "on_disconnect")
        works(witness)
        assert children <= set(httpd.children()), "a child is gone"

    def test_counted_on_the_wire(self, httpd, wss, version):
        """The line of the end has the bytes of the records, of the conversation alone; so has
        server-status."""
        mark, data = f"?wire-{version}", random_text(100_000)
        client = wss(version, f"/echo{mark}")
        sent, received, plain = client.sent, client.received, 0
        for n in range(10):
            client.exchange([frame(BINARY, data[n:])], len(data) - n + 10)
            client.expect(BINARY, data[n:])
            plain += len(data) - n + 10

        def shown():
            with Client(httpd.port) as page:
                page.send(b"GET /status?auto HTTP/1.0\r\n\r\n")
                with contextlib.suppress(EOFError):
                    page.fill_until(b"WebSocketBytesOut: ")
                    page.fill_until(b"never")
                return dict(re.findall(r"WebSocket(\w+): (\d+)", page.buffer.decode()))

        def counted():
            numbers = shown()
            return int(numbers["Connections"]) >= 1 and int(numbers["BytesOut"]) > plain and numbers

        numbers = wait_until(counted, 5, "the numbers in server-status")
        assert int(numbers["BytesIn"]) > plain and int(numbers["MessagesIn"]) >= 10
        sent, received = client.sent - sent, client.received - received
        assert received > plain
        last = client.record(close_frame(1000))
        client.send_raw(last)
        got = client.read_frame()
        assert (got.opcode, got.code) == (CLOSE, 1000)
        entry = httpd.access(mark)[-1]
        assert (entry.close_code, entry.messages_in, entry.messages_out) == ("1000", "10", "10")
        assert entry.bytes_in == sent + len(last)
        # Its own Close is as long as ours without the mask.
        assert entry.bytes_out == received + len(last) - 4


class TestRenegotiation:
    CONF = SITE

    @pytest.mark.parametrize("moment", ["idle", "busy"])
    def test_refused(self, httpd, keys, wss, moment):
        """TLS 1.2: the client may ask, and is told that there is none (RFC 5746 §4.5)."""
        client, other = keys("1.2"), wss("1.2")
        children = set(httpd.children())
        client.upgrade(f"/echo?renegotiation-{moment}")
        assert way_of(httpd, client) == (LEFT, None)
        works(client)
        if moment == "busy":
            client.send(frame(BINARY, b"z" * 500_000))
        with pytest.raises(ssl.SSLError, match="(?i)no.renegotiation"):
            with contextlib.suppress(ssl.SSLWantReadError):
                client.tls.renegotiate()
            client.pass_on()
            if moment == "busy":
                client.expect(BINARY, b"z" * 500_000)
            client.fill(time.monotonic() + 5)
        works(other)
        client.sock.close()
        httpd.access(f"?renegotiation-{moment}")
        assert children <= set(httpd.children())


# --- sessions, names and certificates --------------------------------------------------------


def certificate(httpd, name):
    """A self-signed certificate for a name, and its key."""
    cert, key = httpd.root / f"tls/{name}.pem", httpd.root / f"tls/{name}.key"
    if not cert.exists():
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30"]
        command += ["-subj", f"/O=mod_websocket/CN={name}", "-addext", f"subjectAltName=DNS:{name}"]
        command += ["-addext", "basicConstraints=critical,CA:FALSE"]
        subprocess.run([*command, "-keyout", str(key), "-out", str(cert)], check=True, capture_output=True)
    return cert, key


@both
class TestSessions:
    """A session that began on a connection that was detached can be resumed when that has ended properly;
    when it has not, nobody else suffers."""

    @pytest.fixture(scope="class", params=["shmcb, tickets", "shmcb", "dbm"], autouse=True)
    def own_server(self, httpd, request):
        cache, *tickets = request.param.split(", ")
        stores = {"shmcb": "shmcb:run/sessions(128000)", "dbm": "dbm:run/sessions"}
        tls = re.sub("SSLSessionCache .*", f"SSLSessionCache {stores[cache]}", TLS)
        if not tickets:
            tls = tls.replace("SSLEngine on", "SSLEngine on\n        SSLSessionTickets Off")
        with httpd.serve(DETACH + tls + debug() + echo(), modules=["socache_dbm"]):
            yield

    @pytest.mark.parametrize("end", ["close", "bad record", "reset"])
    def test_resumed(self, httpd, wss, records, version, end):
        context = httpd.tls_context(VERSIONS[version])
        mark = f"?{end.replace(' ', '-')}-{version}"
        client = wss(version, f"/echo{mark}", context=context)
        works(client)  # TLS 1.3 sends its tickets after the handshake
        assert not client.tls.session_reused
        session = client.tls.session
        if end == "close":
            client.send(close_frame(1000))
            client.expect_close(1000, reply=False)
        elif end == "bad record":
            client.send_raw(spoil(client.record(frame(TEXT, "bad"))))
            httpd.expect_log("WS0302: .*TLS: error")
        else:
            client.reset()
        httpd.access(mark)
        again = wss(version, context=context, session=session)
        if end == "close":
            assert again.tls.session_reused
        works(again)
        again.close()
        third = wss(version, context=httpd.tls_context(VERSIONS[version]))
        works(third)


LOGGED = "".join(f"%{{SSL_{name}}}e " for name in ("PROTOCOL", "CIPHER", "CLIENT_VERIFY", "CLIENT_S_DN"))
SECOND = f"""
    SSLSessionCache shmcb:run/sessions(128000)
    CustomLog logs/tls_log "%{{websocket-close-code}}n {LOGGED}%r" env=websocket-close
    <VirtualHost *:${{TLS_PORT}}>
        ServerName localhost
        SSLEngine on
        SSLCertificateFile tls/cert.pem
        SSLCertificateKeyFile tls/key.pem
        SSLCACertificateFile tls/client.test.pem
        {echo("/required", "SSLVerifyClient require", "SSLVerifyDepth 1", "SSLOptions +StdEnvVars")}
    </VirtualHost>
    <VirtualHost *:${{TLS_PORT}}>
        ServerName second.test
        SSLEngine on
        SSLCertificateFile tls/second.test.pem
        SSLCertificateKeyFile tls/second.test.key
    </VirtualHost>
    <VirtualHost *:${{TLS_PORT}}>
        ServerName private.test
        SSLEngine on
        SSLCertificateFile tls/private.test.pem
        SSLCertificateKeyFile tls/private.test.key
        SSLCACertificateFile tls/client.test.pem
        SSLVerifyClient require
    </VirtualHost>
"""


@both
class TestNames:
    """Servers that share a port, told apart by the name in the handshake: OpenSSL gives the connection
    another SSL_CTX then than it began with. Some ask for a client's certificate: in the handshake, or for one
    Location only, which takes a renegotiation (TLS 1.2) or an authentication after the handshake (1.3)."""

    NAMES = "second.test", "private.test", "client.test"

    @pytest.fixture(scope="class", autouse=True)
    def own_server(self, httpd):
        for name in self.NAMES:
            certificate(httpd, name)
        with httpd.serve(DETACH + SECOND + debug() + echo()):
            yield

    def context(self, httpd, version, name):
        context = httpd.tls_context(VERSIONS[version])
        if name in self.NAMES:
            context.load_verify_locations(certificate(httpd, name)[0])
        context.post_handshake_auth = True
        context.load_cert_chain(*certificate(httpd, "client.test"))
        return context

    @pytest.fixture
    def named(self, httpd, wss):
        return lambda version, name, path="/echo", headers=(): wss(
            version, path, headers, context=self.context(httpd, version, name), name=name
        )

    def logged(self, httpd, mark):
        log = httpd.root / "logs/tls_log"

        def line():
            return next((text for text in log.read_text().splitlines() if mark in text), None)

        return wait_until(line, 5, "the line of the end")

    @pytest.mark.parametrize("name", ["localhost", "second.test", "private.test"])
    def test_each(self, httpd, named, version, name):
        mark = f"?{name}-{version}"
        client = named(version, name, f"/echo{mark}")
        works(client)
        cipher = client.tls.cipher()[0]
        client.close(4001)
        who = "SUCCESS CN=client.test,O=mod_websocket" if name == "private.test" else "NONE -"
        assert self.logged(httpd, mark).startswith(f"4001 TLSv{version} {cipher} {who} GET ")

    def test_certificate_for_a_location(self, httpd, named, version):
        mark = f"?location-{version}"
        client = named(version, "localhost", f"/required{mark}")
        works(client)
        client.send(frame(BINARY, b"x" * 300_000))
        client.expect(BINARY, b"x" * 300_000)
        cipher = client.tls.cipher()[0]
        client.close(4002)
        who = "SUCCESS CN=client.test,O=mod_websocket"
        assert self.logged(httpd, mark).startswith(f"4002 TLSv{version} {cipher} {who} GET ")

    @pytest.mark.parametrize("name", ["second.test", "private.test"])
    def test_bad_record(self, httpd, named, version, name):
        trail, mark = httpd.trail("name"), f"?bad-{name}-{version}"
        client = named(version, name, f"/debug{mark}", [("X-Debug-Trail", str(trail))])
        other = named(version, name)
        client.send_raw(spoil(client.record(frame(TEXT, "bad"))))
        httpd.expect_log("WS0302: .*TLS: error")
        wait_until(lambda: httpd.trail_lines(trail) == ["disconnect"], 5, "on_disconnect")
        assert self.logged(httpd, mark).startswith(f"1006 TLSv{version} ")
        works(other)
        works(named(version, name))


# --- what keeps a connection with httpd's thread ---------------------------------------------

# A module that adds a connection filter, which leaves everything as it is.
FILTER = r"""
#include <httpd.h>
#include <http_config.h>
#include <http_connection.h>
#include <util_filter.h>

static ap_filter_rec_t *filter;

static apr_status_t pass_on(ap_filter_t *f, apr_bucket_brigade *brigade, ap_input_mode_t mode,
                            apr_read_type_e how, apr_off_t bytes)
{
    return ap_get_brigade(f->next, brigade, mode, how, bytes);
}

static int before(conn_rec *c, void *socket)
{
    ap_add_input_filter_handle(filter, NULL, NULL, c);
    return OK;
}

static void hooks(apr_pool_t *pool)
{
    filter = ap_register_input_filter("PASS_ON", pass_on, NULL, AP_FTYPE_CONNECTION);
    ap_hook_pre_connection(before, NULL, NULL, APR_HOOK_MIDDLE);
}

AP_DECLARE_MODULE(pass_on) = { STANDARD20_MODULE_STUFF, NULL, NULL, NULL, NULL, NULL, hooks };
"""


class TestGuards:
    """Each of the things without which a connection is not taken over. It is served on httpd's thread then,
    with the reason in the log, and as well as any."""

    def judge(self, httpd, records, reason):
        for version in VERSIONS:
            client, data = records(version), random_text(200_000)
            client.send(client.request() + frame(TEXT, "early"))
            assert client.read_response().status == 101
            client.expect(TEXT, "early")
            assert way_of(httpd, client) == (STAYED, reason)
            client.exchange([frame(BINARY, data)], len(data) + 10)
            client.expect(BINARY, data)
            works(client)
            client.close()

    REASONS = {
        "BIO_method_name": "an SSL that does not read through mod_ssl",
        "SSL_CTX_get_keylog_callback": "SSLKEYLOGFILE",
        "SSL_CTX_sess_get_remove_cb": "a session cache that is not mod_ssl's",
        "SSL_get_ex_data": "an SSL that is another connection's",
        "SSL_is_init_finished": "a TLS handshake that goes on",
    }

    @pytest.mark.once
    @pytest.mark.parametrize("name", REASONS)
    def test_connection(self, httpd, records, spoilt, name):
        with httpd.serve(SITE, env=spoilt(name)):
            self.judge(httpd, records, self.REASONS[name])

    @pytest.mark.once
    @pytest.mark.parametrize("name", ["OpenSSL_version", "OpenSSL_version_num", "SSL_set_quiet_shutdown"])
    def test_library(self, httpd, records, spoilt, name):
        said = {
            "OpenSSL_version": "its TLS library is LibreSSL 3.9; OpenSSL 1.1.1 or newer would do",
            "OpenSSL_version_num": "its TLS library is OpenSSL .*; OpenSSL 1.1.1 or newer would do",
            "SSL_set_quiet_shutdown": "its TLS library has no function SSL_set_quiet_shutdown",
        }
        with httpd.serve(SITE, env=spoilt(name)):
            lines = re.findall(r"\[websocket:notice\].*WS0409: .*", httpd.new_log())
            assert len(lines) == 1 and re.search(said[name], lines[0])
            self.judge(httpd, records, "mod_ssl's TLS library, which cannot be used")

    def test_control(self, httpd, wss, spoilt):
        """The library that is preloaded spoils nothing by itself, and what it leaves alone needs no
        notice."""
        with httpd.serve(SITE, env=spoilt("nothing")):
            works(wss())
            assert "WS0409" not in httpd.new_log()

    @pytest.mark.parametrize("name", ["SSL_up_ref", "BIO_new"])
    def test_too_late(self, httpd, records, spoilt, name):
        """What fails when the connection has left httpd ends it, in order."""
        reason = {"SSL_up_ref": "OpenSSL gives no reference", "BIO_new": "no memory for its BIO"}[name]
        trail, mark = httpd.trail("late"), f"?late-{name}"
        with httpd.serve(SITE, env=spoilt(name)):
            children = set(httpd.children())
            client = records()
            client.upgrade(f"/debug{mark}", [("X-Debug-Trail", str(trail))])
            with pytest.raises(EOFError):
                client.read_frame()
            httpd.expect_log(f"WS0307: the connection cannot be detached: {reason}")
            assert httpd.access(mark)[-1].close_code == "1006"
            assert httpd.trail_lines(trail) == ["disconnect"]
            assert children <= set(httpd.children())

    def test_keys_that_are_logged(self, httpd, records):
        keylog = httpd.root / "logs/keys"
        with httpd.serve(SITE, env={"SSLKEYLOGFILE": str(keylog)}):
            self.judge(httpd, records, "SSLKEYLOGFILE")

    def test_dumpio(self, httpd, records):
        # It is there for servers that log on its level only.
        dump = "DumpIOInput On\n        LogLevel dumpio:trace7"
        site = SITE.replace("SSLEngine on", f"SSLEngine on\n        {dump}")
        with httpd.serve(site, modules=["dumpio"]):
            self.judge(httpd, records, "dumpio_in")

    def test_foreign_filter(self, httpd, records, compiled):
        module = compiled("pass_on", FILTER, module=True)
        with httpd.serve(f'LoadModule pass_on_module "{module}"\n' + SITE):
            self.judge(httpd, records, "pass_on")

    def test_turned_off(self, httpd, records, keys):
        with httpd.serve(SITE.replace(DETACH, "WebSocketDetach Off\n")):
            self.judge(httpd, records, "mod_ssl")
            client = keys()
            client.upgrade()
            assert way_of(httpd, client) == (STAYED, "mod_ssl")
            key_updates_in_one_segment(client)
            client.close()


# --- the ends of a child ---------------------------------------------------------------------


class TestEnds:
    """Clients see a Close with 1001 and TLS's own end behind it, and the access log has the code."""

    def judge(self, httpd, clients, mark):
        for n, client in enumerate(clients):
            got = client.read_frame(10)
            assert (got.opcode, got.code) == (CLOSE, 1001)
            if n % 2 == 0:
                client.send(close_frame(1001))
                client.expect_notify()
                client.sock.close()
        codes = [entry.close_code for entry in httpd.access(mark, len(clients))]
        assert sorted(codes) == ["1001"] * len(clients)

    @pytest.mark.parametrize("end", ENDS)
    def test_server(self, httpd, wss, end):
        mark = f"?tls-{end.replace(' ', '-')}"
        with httpd.serve(SITE):
            clients = [wss(version, f"/echo{mark}") for version in VERSIONS for _ in range(5)]
            for client in clients:
                works(client)
            httpd.tell(ENDS[end])
            self.judge(httpd, clients, mark)
            if "restart" in end:
                httpd.renewed()
                works(wss())
            else:
                httpd.stop(ENDS[end])

    @both
    def test_max_connections_per_child(self, httpd, wss, version):
        with httpd.serve("MaxConnectionsPerChild 8\n" + SITE):
            client = wss(version, f"/echo?per-child-{version}")
            works(client)
            httpd.before = 0, {httpd.child_of(client)}
            over = threading.Event()

            def visitors():
                while not over.is_set():
                    with contextlib.suppress(OSError, AssertionError):
                        httpd.get()

            # Their pages bring each child closer to its end.
            thread = threading.Thread(target=visitors)
            thread.start()
            try:
                self.judge(httpd, [client], f"/echo?per-child-{version}")
                httpd.outlived()
            finally:
                over.set()
                thread.join()
            works(wss(version))


# --- nothing is left behind ------------------------------------------------------------------


class TestLeaks:
    NAMES = TestNames.NAMES

    @pytest.fixture(scope="class", autouse=True)
    def own_server(self, httpd):
        for name in self.NAMES:
            certificate(httpd, name)
        with httpd.serve(DETACH + "WebSocketThreads 4\n" + FEW + SECOND + echo()):
            yield

    def test_hundreds(self, httpd, records):
        """Connections with client certificates, half of which end properly."""
        contexts = [TestNames.context(self, httpd, version, "private.test") for version in VERSIONS]

        def crowd(count):
            with contextlib.ExitStack() as stack:
                for n in range(count):
                    context = contexts[n % 2]
                    client = stack.enter_context(Records(httpd.tls_port, context, name="private.test"))
                    client.upgrade("/echo")
                    works(client)
                    if n % 4 == 0:
                        client.close()
                    elif n % 4 == 1:
                        client.send_raw(spoil(client.record(frame(TEXT, "bad"))))
                    if n % 50 == 0:
                        assert way_of(httpd, client) == (LEFT, None)
            wait_until(lambda: total(httpd.descriptors) <= descriptors, 10, "the descriptors' return")

        def total(what):
            return sum(what(child) for child in children)

        children = httpd.children()
        descriptors = 1 << 20
        crowd(20)
        httpd.settle()
        descriptors, threads = total(httpd.descriptors) + 3 * len(children), total(httpd.threads)
        # The heap grows more slowly with each crowd, to some MiB in the end; a leak would not slow down.
        for _ in range(sized(1, 10)):
            crowd(300)
        time.sleep(2.5)  # A child gives memory back within some seconds.
        memory = total(httpd.memory)
        for _ in range(sized(1, 10)):
            crowd(300)
        # A connection's memory is some tens of KiB; what the heaps of several children keep differs.
        most = memory + max(1500, 1000 * len(children))
        wait_until(lambda: total(httpd.memory) < most, 10, f"memory's return to {memory} KiB")
        assert total(httpd.threads) <= threads + 4 * len(children)
        assert httpd.children() == children
