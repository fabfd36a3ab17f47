"""Random conversations with a module that has AddressSanitizer: no torn lifetimes, and nothing is left behind.

Clients talk and end in every way (see talk.py), over ws and wss, with and without WebSocketDetach Off, while httpd is
restarted gracefully every ten seconds and plain requests are served. Others publish on channels and subscribe to them, and
get each message once or are told of a gap (see listen.py). After a quarter of the time, five minutes at most,
attackers come (see attack.py), which go before the last restarts. The environment is that of the tests (see
../lib/httpd.py) with a module and plugins that are built with AddressSanitizer; httpd itself is not. `make soak` does all
that. A finding of the sanitizer, a leak at the end of any process, a line of level warn in httpd's log, a client that
meets what it should not, or waits too long beside attackers, and a child that holds more than WebSocketMemoryLimit
allows, or does not return to what it was, are failures.
"""

import argparse
import contextlib
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "lib"))

import attack  # noqa: E402
import listen  # noqa: E402
from httpd import DETACH, MACHINE, PREFORK, SUSPICIOUS, Httpd, echo, location, wait_until  # noqa: E402
from talk import Conversations, Crowd, Tally  # noqa: E402
from ws_frame import TEXT, Client, Refused, frame  # noqa: E402

RESTART = 10.0  # seconds from one graceful restart to the next
CALM = 4.0  # from the end of the last old child to the next restart, at least
ALONE = 300.0  # seconds without attackers that are enough to compare with
DRAIN = 2.0
OLD = 30.0  # seconds within which the children before a restart are gone, even on a busy machine

# As many as the machine bears: each process of prefork's has the sanitizer's work to do at its end.
CLIENTS = 12 if PREFORK else 32
# TLS connections that are open at the same time, after the conversations.
CROWD = (20, 50)  # threads of the client's, connections each
ATTACKERS = 8 if PREFORK else 100
MEMORY, THREADS = 256, 8  # WebSocketMemoryLimit in MiB, WebSocketThreads
# Bytes of heap that this does not count: large buffers that service threads keep; and for each client, whatever it does.
KEPT, EACH = THREADS * (8 << 20), 200_000


def places(options):
    """WebSocketMaxConnections, and the threads or processes of httpd's."""
    return 2 * CLIENTS + 2 * options.attackers  # some of whom come twice


def site(options):
    """The configuration."""
    count = places(options)
    return DETACH + f"""
    LogLevel warn
    Timeout 3
    WebSocketDrainTime {DRAIN:g}s
    WebSocketPingInterval 4s
    WebSocketIdleTimeout 8s
    WebSocketCloseTimeout 1s
    WebSocketSendQueueLimit 400k
    WebSocketThreads {THREADS}
    WebSocketMemoryLimit {MEMORY}M
    WebSocketWorkerShare Off
    WebSocketMaxConnections {count}
    WebSocketCompression On
    WebSocketCompressionContextTakeover Both
    <VirtualHost *:${{TLS_PORT}}>
        SSLEngine On
        SSLCertificateFile tls/cert.pem
        SSLCertificateKeyFile tls/key.pem
    </VirtualHost>
    SSLSessionCache shmcb:run/sessions(512000)
    <Location /status>
        SetHandler server-status
    </Location>
    <IfModule mpm_prefork_module>
        ServerLimit {200 + 2 * options.attackers}
        MaxRequestWorkers {count + 20}
        StartServers 8
        MinSpareServers {2 + options.attackers}
        MaxSpareServers {count + 20}
    </IfModule>
    <IfModule !mpm_prefork_module>
        ServerLimit 8
        ThreadLimit {count}
        ThreadsPerChild {count}
        MaxRequestWorkers {count}
        StartServers 1
        MinSpareThreads 1
        MaxSpareThreads {count}
    </IfModule>
    """ + (
        echo()
        + location("/threads", "${PLUGINS}/threads.so", "threads_init")
        + location("/probe", "${PLUGINS}/probe.so", "probe_init")
        + echo("/crowd", "WebSocketDetach On", "WebSocketMaxConnections Off", "WebSocketPingInterval Off", "WebSocketIdleTimeout Off")
        + echo("/blocking/echo", "WebSocketDetach Off")
        + location("/blocking/threads", "${PLUGINS}/threads.so", "threads_init", "WebSocketDetach Off")
        + attack.site()
        + listen.site()
    )


def seconds(text):
    """`90`, `60s`, `2m` or `1h`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m|min|h)?", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 60s, 2m or 1h")
    return float(match[1]) * {None: 1, "s": 1, "m": 60, "min": 60, "h": 3600}[match[2]]


class Sanitizer:
    """AddressSanitizer inside httpd: its runtime comes first in the process, and its words go to files."""

    def __init__(self, httpd):
        self.httpd, self.prefix = httpd, httpd.trails / "sanitizer"
        asked = [os.environ.get("CC", "cc"), "-print-file-name=libasan.so"]
        self.runtime = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
        assert "/" in self.runtime, "the C compiler has no AddressSanitizer (libasan.so)"
        # Where httpd's children, which may be another user's, can read it all: the names of functions, too.
        self.known = shutil.copy(HERE / "leaks.supp", httpd.root / "conf")
        libraries = shutil.copytree(httpd.module.parent, httpd.root / "lib")
        httpd.module, httpd.examples, httpd.plugins = libraries / httpd.module.name, libraries, libraries

    @contextlib.contextmanager
    def environment(self):
        """What is started inside the block runs with it."""
        # httpd's own handlers must not take a crash away from it. The quarantine is smaller than the default of
        # 256 MiB, for the sake of the machine.
        options = f"log_path={self.prefix}:handle_segv=2:handle_sigbus=2:handle_abort=2:quarantine_size_mb=32"
        added = {
            "LD_PRELOAD": self.runtime,
            "ASAN_OPTIONS": options,
            "LSAN_OPTIONS": f"suppressions={self.known}:print_suppressions=0",
        }
        os.environ.update(added)
        try:
            yield
        finally:
            for name in added:
                del os.environ[name]

    def reports(self):
        return [path.read_text(errors="replace") for path in sorted(self.prefix.parent.glob(self.prefix.name + ".*"))]


class Visitor(threading.Thread):
    """Plain requests, which always have to be served."""

    def __init__(self, httpd, stop, tally):
        super().__init__(daemon=True)
        self.httpd, self.stop, self.tally, self.slowest = httpd, stop, tally, 0.0

    def run(self):
        while not self.stop.wait(0.1):
            try:
                with self.tally.waits.measured("plain GET"):
                    status, took = self.httpd.get(timeout=10)
                assert status == 200, status
                self.slowest = max(self.slowest, took)
                self.tally.note("plain GET")
            except Exception as error:  # noqa: BLE001
                self.tally.surprise(f"{time.strftime('%H:%M:%S')} plain GET: {type(error).__name__}: {error}")


class Watcher(threading.Thread):
    """The most that a child holds: bytes of heap, resident KiB. Those that a restart ends are not asked."""

    def __init__(self, httpd, stop):
        super().__init__(daemon=True)
        self.httpd, self.stop, self.heap, self.resident = httpd, stop, 0, 0

    def run(self):
        while not self.stop.wait(1):
            with contextlib.suppress(OSError, EOFError, AssertionError, Refused):
                pid, heap = heap_of(self.httpd)
                self.heap, self.resident = max(self.heap, heap), max(self.resident, self.httpd.memory(pid))


def status(httpd):
    """The numbers of server-status."""
    with urllib.request.urlopen(f"http://127.0.0.1:{httpd.port}/status?auto", timeout=10) as response:
        text = response.read().decode()
    return {name: int(number) for name, number in re.findall(r"^(\w+): (\d+)$", text, re.M)}


def probe(httpd, command="heap"):
    """What the probe in a child says (see probe.c)."""
    with Client(httpd.port) as client:
        client.upgrade("/probe")
        client.send(frame(TEXT, command))
        got = client.read_frame()
        assert got.opcode == TEXT, f"the probe is closed with {got.code}"
        client.close()
    return got.payload.decode()


def heap_of(httpd):
    """A child, and the bytes of its heap."""
    return map(int, re.fullmatch(r"pid=(\d+) heap=(\d+)", probe(httpd)).groups())


def level(httpd):
    """For each child that answers: its heap, descriptors, threads, and resident KiB."""
    time.sleep(6)  # service threads that have nothing to do leave after 5 s
    levels = {}
    for _ in range(40 if PREFORK else 1):
        pid, heap = heap_of(httpd)
        if pid not in levels or heap < levels[pid][0]:
            levels[pid] = heap, httpd.descriptors(pid), httpd.threads(pid), httpd.memory(pid)
    return levels


def warm(httpd, options):
    """What first connections leave behind is no growth: OpenSSL's memory in each thread of httpd's, the buffers of service
    threads, and what the module keeps of the last 256 connections for plugins that are late."""
    context = httpd.tls_context()
    with contextlib.ExitStack() as stack:
        for _ in range(places(options) - 4):
            client = stack.enter_context(Client(httpd.tls_port, tls=context, timeout=30))
            client.upgrade("/blocking/echo")
    for _ in range(130):
        for tls in (None, context):
            with Client(httpd.tls_port if tls else httpd.port, tls=tls, timeout=30) as client:
                client.upgrade("/echo")
                client.send(frame(TEXT, "warm" * 15_000))
                client.expect(TEXT, "warm" * 15_000)
    listen.warm(httpd)


def crowd(httpd, options, tally):
    """Many TLS connections at once."""
    threads, size = CROWD
    together = threading.Barrier(max(threads, 1), timeout=120)
    clients = [Crowd(httpd, options.seed * 1000 + 500 + n, size, together, tally) for n in range(threads)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join(180)
        if thread.is_alive():
            tally.surprise(f"a client is stuck: {thread}")


def restart(httpd, tally):
    """Restarts gracefully; the children of before have to go."""
    began = time.monotonic()
    httpd.tell(signal.SIGUSR1)
    httpd.restarted()
    try:
        httpd.outlived(OLD)
    except AssertionError:
        left = httpd.before[1] & set(httpd.children())
        tally.surprise(f"{time.strftime('%H:%M:%S')} {len(left)} old children are still there after {OLD:g} s")
    tally.note("graceful restart")
    return time.monotonic() - began


def soak(httpd, sanitizer, options, tally, mob):
    """Clients and restarts for the time that is asked for; gives the threads that have looked on, and the longest that an
    old child lived."""
    stop, longest = threading.Event(), 0.0
    clients = [Conversations(httpd, options.seed * 1000 + n, stop, tally) for n in range(options.clients)]
    others = listen.everybody(httpd, options.seed, stop, tally)
    visitor, watcher = Visitor(httpd, stop, tally), Watcher(httpd, stop)
    for thread in (*clients, *others, visitor, watcher):
        thread.start()
    start, restarts = time.monotonic(), max(1, int(options.time / RESTART) - 2)
    alone = min(max(1, restarts // 4), ALONE / RESTART)
    for n in range(1, restarts + 2):
        is_attacked = options.attackers and alone < n < restarts
        if is_attacked:
            mob.begin()
        elif n >= restarts:
            for fault in mob.end():
                tally.surprise(fault)
        tally.waits.calm("attacked" if is_attacked else "idle")
        # Idle codecs are kept: the children that are looked at in the end have none, so that their heap tells of
        # connections alone, of more than have warmed up those of the beginning.
        if n >= restarts:
            for client in clients:
                client.deflate = False
        until = max(start + (n * RESTART if n <= restarts else options.time), time.monotonic() + CALM)
        while time.monotonic() < until and not sanitizer.reports():
            time.sleep(0.2)
        if sanitizer.reports():
            break
        tally.waits.restarts()
        if n <= restarts:
            longest = max(longest, restart(httpd, tally))
            words = f"soak: {time.strftime('%H:%M:%S')} {sum(tally.counts.values())} events, "
            print(f"{words}{len(tally.surprises)} surprises", file=sys.stderr, flush=True)
    stop.set()
    for thread in (*clients, *others, visitor, watcher):
        thread.join(90)
        if thread.is_alive():
            tally.surprise(f"a client is stuck: {thread}")
    return visitor, watcher, longest


def nothing_left(httpd, count):
    """All counts are back to zero; gives what is wrong."""

    def zero():
        numbers = status(httpd)
        # The request for the page is itself one of httpd's.
        allowed = {"WebSocketConnections": 0, "BusyWorkers": 1, "ConnsTotal": 1}
        above.clear()
        above.update({name: numbers[name] for name in allowed if numbers.get(name, 0) > allowed[name]})
        return not above

    above = {}
    try:
        with Client(httpd.port) as client:
            # event brings its number of connections up to date when one that is kept alive has had its time.
            client.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            wait_until(zero, 20, "the return of server-status to zero")
    except AssertionError as error:
        yield f"{error}: {above}"
    with contextlib.ExitStack() as stack:
        for n in range(count + 1):
            answer = stack.enter_context(Client(httpd.port)).ask().status
            if answer != (101 if n < count else 503):
                yield f"connection {n + 1} of {count} is answered with {answer}"


LEVELS = ("bytes of heap", "descriptors", "threads", "resident KiB")
# A service thread keeps three buffers of 64 KiB, or smaller ones: it is chance which thread stays. A process of prefork's
# does not see enough connections to have kept all it ever will. Resident memory is only shown: the sanitizer does not give
# it back.
SLACK = (400_000 if PREFORK else 200_000, 2, 2, float("inf"))


def most(levels):
    """The highest level of all children."""
    return [max(column) for column in zip(*levels.values())]


def grown(before, after):
    """What children hold beyond what those of the beginning held."""
    for name, was, has, slack in zip(LEVELS, most(before), most(after), SLACK):
        if has > was + slack:
            yield f"a child's {name}: {was} became {has}"


def run(options):
    """The whole of it; gives everything that is wrong."""
    httpd, tally, wrong, count = Httpd(), Tally(), [], places(options)
    httpd.certificate()
    sanitizer = Sanitizer(httpd)
    with sanitizer.environment():
        httpd.start(site(options))
    mob = attack.Mob(httpd, options.attackers)
    try:
        warm(httpd, options)
        before = level(httpd)
        visitor, watcher, longest = soak(httpd, sanitizer, options, tally, mob)
        print(f"old children lived at most {longest:.1f} s, the slowest plain GET took {visitor.slowest * 1e3:.0f} ms")
        print(f"{mob.count} attackers, who came {mob.came.value} times; a child held at most {watcher.heap} bytes of heap, "
              f"{watcher.resident} resident KiB")
        print("\n".join(tally.waits.table()))
        if options.wait:
            wrong += tally.waits.too_long(options.wait)
        allowed = most(before)[0] + (MEMORY << 20) + KEPT + EACH * count
        if watcher.heap > allowed:
            wrong.append(f"a child held {watcher.heap} bytes of heap; {allowed} are the most (see WebSocketMemoryLimit)")
        if not sanitizer.reports():
            wrong += listen.nobody_left(httpd)
            wrong += nothing_left(httpd, count)
            # Threads that the load has called for go after five idle seconds, each with its buffer.
            with contextlib.suppress(AssertionError):
                wait_until(lambda: most(level(httpd))[2] <= most(before)[2], 10, "the threads' end")
            after = level(httpd)
            more = list(grown(before, after))
            if any(LEVELS[0] in line for line in more):
                probe(httpd, "profile")  # becomes one of the reports
            wrong += more
            crowd(httpd, options, tally)
            wrong += nothing_left(httpd, count)
            for name, levels in (("before", before), ("after", after)):
                numbers = ", ".join(f"{number} {what}" for number, what in zip(most(levels), LEVELS))
                print(f"{name}: {len(levels)} children, at most {numbers}")
    except Exception:  # noqa: BLE001 (what the sanitizer has to say is likely to be the reason)
        wrong.append(traceback.format_exc())
    print(", ".join(f"{count} {what}" for what, count in tally.counts.most_common()), flush=True)
    try:
        httpd.stop(signal.SIGWINCH, timeout=30)
    except AssertionError as error:
        wrong.append(str(error))
    if tally.surprises:
        wrong.append(f"{len(tally.surprises)} surprises, see above")
    known = re.compile(f"{MACHINE.pattern}|{attack.SAID}" if options.attackers else MACHINE.pattern)
    log = [line for line in httpd.new_log().splitlines() if SUSPICIOUS.search(line) and not known.search(line)]
    return [*wrong, *log, *sanitizer.reports()]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("time", type=seconds, nargs="?", default="2m", help="60s, 2m, 1h (default: 2m)")
    parser.add_argument("--clients", type=int, default=CLIENTS)
    parser.add_argument("--attackers", type=int, default=ATTACKERS, help=f"0 for none (default: {ATTACKERS})")
    parser.add_argument("--wait", type=float, default=1, metavar="SECONDS", help="999 of 1,000 messages, handshakes and "
                        "plain GETs have to be answered in this time beside attackers; 0: not judged (default: 1)")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    mpm = os.environ.get("TEST_MPM", "event")
    print(f"soak: {mpm}, {options.time:g} s, {options.clients} clients, {options.attackers} attackers, seed {options.seed}", flush=True)
    wrong = run(options)
    for what in wrong:
        print(f"soak: {what}")
    print(f"soak: {mpm}: " + (f"{len(wrong)} findings" if wrong else "nothing found"))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
