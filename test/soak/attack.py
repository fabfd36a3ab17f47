"""Attackers beside honest clients, and how long these wait meanwhile."""

import collections
import contextlib
import math
import multiprocessing
import signal
import time

import attackers
from attackers import Attackers, Rush, Source, attack_until
from httpd import debug, echo
from peers import PORT, Listener, bridge

FORK = multiprocessing.get_context("fork")
# How attackers' connections are served: over TLS or not, and below which path.
WAYS = [(False, ""), (True, ""), (False, "/blocking"), (True, "/blocking")]
# What the error log may say of them.
SAID = r"WS0310: as many threads as may"


def site():
    """What they attack."""
    locations = ""
    for path, *detach in (("/attack",), ("/blocking/attack", "WebSocketDetach Off")):
        locations += (
            echo(f"{path}/echo", "WebSocketMaxMessageSize 1M", *detach) + debug(f"{path}/debug", *detach)
            + bridge(f"{path}/bridge", f"tcp://127.0.0.1:{PORT}", "WebSocketBridgeFraming binary",
                     "WebSocketBridgeAllow tcp://127.0.0.1:*", *detach)
        )
    return locations


def attacks(below, source):
    """Every attack that there is on connections that are served in one way."""
    echoed, flooded, bridged = (f"{below}/attack/{name}" for name in ("echo", "debug", "bridge"))
    return [
        attackers.mixed_echoes(echoed, 1000), attackers.flood(flooded, 3000), attackers.begun(echoed),
        attackers.pings(echoed, 0), attackers.packed_echoes(echoed, 1000), attackers.bridge_flood(bridged + source, 3000),
        attackers.trickled(echoed), attackers.pings(echoed), attackers.equal_echoes(echoed), attackers.flood(flooded),
    ]


class Mob:
    """Some attackers for each way to be served, in a process of their own, and as many clients that rush in."""

    def __init__(self, httpd, count):
        """To be made before there are threads; nothing happens until `begin`."""
        self.count, self.go, self.over, self.came = count, FORK.Event(), FORK.Event(), FORK.Value("q")
        self.processes = [FORK.Process(target=self.run, args=(httpd, n), daemon=True) for n in range(len(WAYS))]
        for process in self.processes if count else ():
            process.start()

    def begin(self):
        self.go.set()

    def end(self):
        """Gives what is wrong with the attackers themselves."""
        self.over.set()
        self.go.set()
        if not self.count:
            return
        for process in self.processes:
            process.join(60)  # a look takes long where every handshake has its time
            if process.exitcode != 0:
                yield f"attackers ended with {process.exitcode}"

    def run(self, httpd, number):
        """One of the processes."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        tls, below = WAYS[number]
        self.go.wait()
        with Listener(backlog=200) as listener:
            source, count = Source(listener), self.share(self.count, len(WAYS), number)
            kinds = attacks(below, source.path)
            who = [
                Attackers(httpd, kind, self.share(count, len(kinds), n), tls, source if "bridge" in kind.path else None)
                for n, kind in enumerate(kinds)
            ]
            if not tls:
                who.append(Rush(httpd, f"{below}/echo", count))
            came = attack_until(self.over.is_set, *who)
            with self.came.get_lock():
                self.came.value += came

    @staticmethod
    def share(count, parts, number):
        """So many of `count` are this part's."""
        return count // parts + (number < count % parts)


class Period:
    """Some time in which the server does not restart, and how long clients waited for what."""

    def __init__(self):
        self.waits, self.end = collections.defaultdict(list), math.inf


class Waits:
    """How long honest clients wait, without attackers and with them. Of what is not answered when the server restarts the
    time until then counts; what begins while it does, does not."""

    PHASES = "idle", "attacked"
    WHATS = "message", "handshake", "plain GET"

    def __init__(self):
        self.periods, self.now = {phase: [] for phase in self.PHASES}, None

    def calm(self, phase):
        """The server does not restart from now on."""
        self.now = Period()
        self.periods[phase].append(self.now)

    def restarts(self):
        """From now on it does."""
        if self.now:
            self.now.end, self.now = time.monotonic(), None

    @contextlib.contextmanager
    def measured(self, what):
        period, begun = self.now, time.monotonic()
        yield
        if period:
            period.waits[what].append(min(time.monotonic(), period.end) - begun)

    def of(self, phase, what):
        return sorted(took for period in self.periods[phase] for took in period.waits[what])

    def table(self):
        """The percentiles side by side."""
        yield f"{'milliseconds':12}" + "".join(f"{phase:>10}: 50 %    99 %  99.9 %    most   count" for phase in self.PHASES)
        for what in self.WHATS:
            line = f"{what:12}"
            for phase in self.PHASES:
                took = self.of(phase, what)
                shares = [f"{percentile(took, share) * 1e3:8.0f}" for share in (0.5, 0.99, 0.999, 1)]
                line += "".join([" " * 8, *shares, f"{len(took):8}"])
            yield line

    def too_long(self, most):
        """What took longer than `most` seconds at the 99.9th percentile."""
        for what in self.WHATS:
            late = percentile(self.of("attacked", what), 0.999)
            if late > most:
                yield f"{what}: {late:.3f} s at the 99.9th percentile; {most:g} s are the most"


def percentile(ordered, share):
    """The value that this share of the others does not exceed; 0 of none."""
    return ordered[max(math.ceil(len(ordered) * share) - 1, 0)] if ordered else 0.0
