"""What channels take, beside nginx with nchan and beside bare writes, on one machine in one run.

The servers run on one core, their clients (`subscribers`, see src/bin/subscribers.rs) on another: one httpd (event) with
one child, one nginx with one worker, and a program that writes to all its subscribers and does nothing else. A message is
published when everyone has the one before, so each delivery is a write of its own. Rounds are interleaved; a figure is
the median of the rounds, a ratio the median of the rounds' ratios.

The environment: SCENARIOS (names, with commas; all), SECONDS_EACH (1), ROUNDS (3), LARGEST (10000 subscribers),
STALLED_MIB (1024, that are published to those who read nothing), BENCH_BIN (the folder of the programs), PUBLISH (1 writes
the tables of a run of all scenarios into docs/performance.md), and that of the tests (see ../lib/httpd.py).
"""

import contextlib
import json
import os
import resource
import socket
import statistics
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

TOP = Path(__file__).resolve().parent.parent.parent
OUT = TOP / "build/bench"
BIN = Path(os.environ.get("BENCH_BIN") or TOP / "test/bench/target/release")
SECONDS = float(os.environ.get("SECONDS_EACH") or 1)
ROUNDS = int(os.environ.get("ROUNDS") or 3)
LARGEST = int(os.environ.get("LARGEST") or 10_000)
STALLED_MIB = int(os.environ.get("STALLED_MIB") or 1024)
MANY = min(1000, LARGEST)
READERS = 10
SMALL, LARGE = 50, 16 * 1024
# Of each round, in the figure that has most subscribers.
MESSAGES = max(20, int(200 * SECONDS))
QUIET = 1.0  # until everyone is subscribed, and memory is what stays
FILES = 20_000
sys.path.insert(0, str(TOP / "test/lib"))
os.environ["TEST_MPM"] = "event"
os.environ["WS_TEST_ROOT"] = str(OUT / "channels")

import page  # noqa: E402
from channels import room, section  # noqa: E402
from httpd import ONE_CHILD, Httpd  # noqa: E402
from nchan import THERE, nchan  # noqa: E402
from stage import CLIENT_CORE, enter_namespace, set_up_network, start_program, two_cores, where  # noqa: E402

HTTPD = (
    """
    LogLevel error
    MaxKeepAliveRequests 0
    WebSocketPingInterval Off
    WebSocketWorkerShare Off
    <Directory />
        AllowOverride None
    </Directory>
    # In a section, so that the request goes the whole way.
    <Location /nothing>
        Redirect 204 /nothing
    </Location>
    """
    + ONE_CHILD
    + room("^/subscribe$", "test")
    + room("^/stall$", "test", "WebSocketChannelSlowClient Skip")
    + section("^/publish$", "SetHandler websocket-publish", "WebSocketChannel test")
    + "".join(room(f"^/same/{n}$", "0", *(f"WebSocketChannel {i}" for i in range(1, n))) for n in (1, 64))
    + "".join(
        section(f"^/own/{n}$", "SetHandler websocket-handler", *(f'WebSocketChannel "%{{QUERY_STRING}}.{i}"' for i in range(n)))
        for n in (1, 64)
    )
)
NGINX = """
    location = /subscribe { nchan_subscriber websocket; nchan_channel_id test; nchan_subscriber_first_message newest; }
    location = /stall { nchan_subscriber websocket; nchan_channel_id test; nchan_subscriber_first_message newest; }
    location = /publish { nchan_publisher http; nchan_channel_id test; client_max_body_size 1m; }
    location = /nothing { return 204; }
"""


class Failed(Exception):
    """A server, or its clients, did not do what they should."""


class Contender(NamedTuple):
    """Where a server listens, and its process."""

    port: int
    pid: int
    bare: bool = False


@contextlib.contextmanager
def module():
    """An httpd of our own."""
    httpd = Httpd()
    httpd.start(HTTPD)
    try:
        yield Contender(httpd.port, httpd.process.pid)
    finally:
        httpd.stop(timeout=30)


@contextlib.contextmanager
def peer():
    """nginx with nchan."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with nchan(OUT / "nginx", port, NGINX, files=FILES) as process:
        yield Contender(port, process.pid)


def play(server, **job):
    """What the clients say of a server."""
    job = {
        "address": f"127.0.0.1:{server.port}", "processes": [server.pid], "core": CLIENT_CORE, "quiet": QUIET, "size": SMALL,
        "bare": server.bare, "subscribers": 0, "publish": "/publish", **job,
    }
    command = [BIN / "subscribers", json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    if done.returncode:
        raise Failed(done.stderr.strip())
    return json.loads(done.stdout)


def interleaved(plays):
    """The reports of all rounds, by name. A peer that fails is left out."""
    reports = {name: [] for name in plays}
    for _ in range(ROUNDS):
        for name in list(reports):
            try:
                reports[name].append(plays[name]())
            except Failed as failed:
                if name.startswith("module"):
                    raise
                print(f"{name} is left out of the next table: {failed}\n", flush=True)
                del reports[name]
    return reports


def of(reports, name, figure):
    """The median of the rounds."""
    return statistics.median(map(figure, reports[name])) if name in reports else None


def ratio(reports, name, over, figure):
    """The median of the rounds' ratios."""
    if name not in reports or over not in reports:
        return None
    ratios = [figure(a) / figure(b) for a, b in zip(reports[name], reports[over]) if figure(b)]
    return statistics.median(ratios) if ratios else None


class Results:
    """The rows of the two tables."""

    def __init__(self):
        self.rows, self.aims = [], []

    def row(self, what, reports, figure, base="bare writes", form="{:,.2f}"):
        """The figures of a scenario side by side."""
        shown = lambda value, form: form.format(value) if value else ""  # noqa: E731
        cells = [shown(of(reports, name, figure), form) for name in ("module", "nchan", base)]
        over = [ratio(reports, "module", name, figure) for name in ("nchan", base)]
        self.rows.append([what, *cells, *(shown(value, "**{:.2f}**" if value and value < 1 else "{:.2f}") for value in over)])
        print("  " + " | ".join(self.rows[-1]), flush=True)

    def aim(self, what, aim, value, most, form="{:.2f}"):
        """What a figure should be at most."""
        if value is not None:
            self.aims.append([what, aim, form.format(value), "" if value <= most else "**missed**"])
            print("  " + " | ".join(self.aims[-1]), flush=True)


def last(percentile):
    """Milliseconds until the last subscriber had a message."""
    return lambda report: report["last"][percentile] / 1e3


def delivery(results, servers):
    """Processor time of a delivery."""
    job = {"subscribers": MANY, "subscribe": "/subscribe", "seconds": SECONDS, "warm_up": 0.3}
    reports = interleaved({name: lambda s=server: play(s, **job) for name, server in servers.items()})
    cpu = lambda report: report["server_us"] / MANY  # noqa: E731
    what = f"{MANY:,} subscribers"
    results.row(f"{what}: CPU for each message and subscriber, µs", reports, cpu)
    results.row(f"{what}: from the POST to the last, median, ms", reports, last("median"))
    results.aim(f"{what}: CPU", "≤ 1.15 × bare writes", ratio(reports, "module", "bare writes", cpu), 1.15)
    results.aim(f"{what}: CPU", "≤ 1 × nchan", ratio(reports, "module", "nchan", cpu), 1)


def latency(results, servers):
    """Until the last of many subscribers has it."""
    job = {"subscribers": LARGEST, "subscribe": "/subscribe", "messages": MESSAGES, "warm_up": 0.5}
    reports = interleaved({name: lambda s=server: play(s, **job) for name, server in servers.items()})
    what = f"{LARGEST:,} subscribers"
    for percentile in ("median", "p99"):
        results.row(f"{what}: from the POST to the last, {percentile}, ms", reports, last(percentile))
    results.row(f"{what}: CPU for each message and subscriber, µs", reports, lambda r: r["server_us"] / LARGEST)
    # Of the first round: what a server keeps afterwards is no growth in the next one.
    first = {name: reports[name][:1] for name in reports}
    results.row(f"{what}: memory of each, KiB", first, lambda r: (r["memory"][1] - r["memory"][0]) / LARGEST)
    results.aim(f"{what}: p99 of the last", "≤ 1 × nchan", ratio(reports, "module", "nchan", last("p99")), 1)


def publishing(results, servers):
    """What a POST takes while nobody is subscribed."""
    job = {"seconds": SECONDS, "warm_up": 0.3, "quiet": 0}
    plays = {name: lambda s=servers[name]: play(s, **job) for name in ("module", "nchan") if name in servers}
    plays["httpd's 204"] = lambda: play(servers["module"], **job, **{"publish": "/nothing"})
    reports = interleaved(plays)
    cpu = lambda report: report["server_us"]  # noqa: E731
    answer = lambda report: report["answer"]["median"]  # noqa: E731
    results.row("a POST, nobody subscribed: CPU, µs", reports, cpu, base="httpd's 204", form="{:.1f}")
    results.row("a POST, nobody subscribed: until the answer, median, µs", reports, answer, base="httpd's 204", form="{:.1f}")
    what = "a POST of 50 bytes"
    results.aim(f"{what}: CPU", "≤ 1.2 × httpd's 204", ratio(reports, "module", "httpd's 204", cpu), 1.2)
    results.aim(f"{what}: until the answer", "≤ 1.2 × httpd's 204", ratio(reports, "module", "httpd's 204", answer), 1.2)


def append(results, _):
    """The same without HTTP."""
    took = [json.loads(subprocess.run([BIN / "append"], capture_output=True, check=True).stdout) for _ in range(ROUNDS)]
    median = {key: statistics.median(one[key] for one in took) for key in took[0]}
    what = "publishing without HTTP: CPU"
    print("  " + ", ".join(f"{key}: {value:.2f} µs" for key, value in median.items()))
    results.aim(f"{what}, one after the other, µs", "≤ 3", median["in a row"], 3)
    results.aim(f"{what}, after a pause, µs", "≤ 3", median["0"], 3)
    results.aim(f"{what}, more with one child that sleeps, µs", "≤ 1.5", median["1"] - median["0"], 1.5)
    results.aim(f"{what}, more for each of four, µs", "≤ 1.5", (median["4"] - median["0"]) / 4, 1.5)


def memory(results, _):
    """Bytes of a subscription besides its connection."""
    count = min(5000, LARGEST)
    for kind, words in (("same", "the same for all"), ("own", "each its own")):
        kib = {}
        for channels in (1, 64):
            with module() as server:
                report = play(server, subscribers=count, subscribe=f"/{kind}/{channels}", numbered=True)
                kib[channels] = report["memory"][1] - report["memory"][0]
        each = (kib[64] - kib[1]) * 1024 / count / 63
        results.aim(f"{count:,} subscribers with 64 channels, {words}: bytes of a subscription", "≤ 256", each, 256, "{:.0f}")


def stalled(results, _):
    """Some read, and a thousand do not."""
    job = {"subscribers": READERS, "subscribe": "/subscribe", "stall": "/stall", "size": LARGE, "messages": STALLED_MIB * 64}
    with module() as server:
        plays = {"module, nobody stalled": lambda: play(server, **job), "module": lambda: play(server, **job, stalled=MANY)}
        reports = interleaved(plays)
    for percentile in ("median", "p99"):
        results.aim(
            f"{STALLED_MIB:,} MiB, {MANY:,} who read nothing: {READERS} others' {percentile}", "≤ 1.1 × without them",
            ratio(reports, "module", "module, nobody stalled", last(percentile)), 1.1,
        )
    there = min(json.loads(report["said"].partition("\r\n\r\n")[2])["subscribers"] for report in reports["module"])
    print(f"  at the end {there} were subscribed; " + ", ".join(
        f"{name}: {of(reports, name, last('median')):.3f} ms, p99 {of(reports, name, last('p99')):.3f} ms" for name in reports
    ))
    most = max(report["memory"][2] for report in reports["module"]) / 1024
    results.aim("the same: the child's own memory at most, MiB", "≤ 256, WebSocketMemoryLimit", most, 256, "{:.0f}")


SCENARIOS = {
    "delivery": delivery, "latency": latency, "publishing": publishing, "append": append, "memory": memory, "stalled": stalled,
}


def main():
    names = [name for name in os.environ.get("SCENARIOS", "").replace(",", " ").split() if name] or [*SCENARIOS]
    if unknown := [name for name in names if name not in SCENARIOS]:
        sys.exit(f"unknown: {', '.join(unknown)}; there are: {', '.join(SCENARIOS)}")
    enter_namespace()
    set_up_network()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard < LARGEST + 100:
        sys.exit(f"{LARGEST} subscribers need as many open files, and the hard limit is {hard}: LARGEST={hard - 100}")
    OUT.mkdir(parents=True, exist_ok=True)
    load, results = os.getloadavg()[0], Results()
    two_cores()
    print(f"{ROUNDS} rounds, interleaved; medians. {where()}; load average before: {load:.2f}.\n", flush=True)
    with contextlib.ExitStack() as stack:
        port, process = start_program([BIN / "bare_writes"])
        servers = {"module": stack.enter_context(module()), "bare writes": Contender(port, process.pid, bare=True)}
        if THERE:
            servers["nchan"] = stack.enter_context(peer())
        else:
            print("nchan is left out: scripts/setup.sh bench-channels installs it\n")
        for name in names:
            print(f"{name}:", flush=True)
            SCENARIOS[name](results, servers)
    print()
    if len(names) < len(SCENARIOS):
        os.environ.pop("PUBLISH", None)
    columns = ["", "Module", "nchan", "Base", "÷ nchan", "÷ base"]
    page.publish("channels", columns, results.rows, "make bench-channels", load)
    page.publish("channels-aims", ["", "Aim", "Measured", ""], results.aims, "make bench-channels", load)


if __name__ == "__main__":
    main()
