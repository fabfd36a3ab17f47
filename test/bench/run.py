"""How fast the module is, beside the wire and beside others, on one machine in one run.

The servers run on one core, the client (`load`, see src/bin/load.rs) on another. Every scenario is played with each
contender in turn, several rounds long; a figure is the median of the rounds, a ratio the median of the rounds' ratios.
The environment: SCENARIOS (names, with commas; all), SECONDS_EACH (1), ROUNDS (3), BENCH_BIN (the folder of the programs),
PUBLISH (1 writes the summary of a run of all scenarios into docs/performance.md), and that of the tests (see ../lib/httpd.py).
The results also go to build/bench/result.json.
"""

import atexit
import datetime
import json
import os
import shutil
import statistics
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import NamedTuple

TOP = Path(__file__).resolve().parent.parent.parent
OUT = TOP / "build/bench"
NODE = OUT / "node"
BIN = Path(os.environ.get("BENCH_BIN") or TOP / "test/bench/target/release")
SECONDS = float(os.environ.get("SECONDS_EACH") or 1)
ROUNDS = int(os.environ.get("ROUNDS") or 3)
WARM_UP = 0.3
sys.path.insert(0, str(TOP / "test/lib"))

import page  # noqa: E402
from httpd import Httpd, echo  # noqa: E402
from stage import CLIENT_CORE, enter_namespace, set_up_network, start_program, two_cores, where  # noqa: E402

CONF = """
    LogLevel error
    <Directory />
        AllowOverride None
    </Directory>
    <VirtualHost *:${TLS_PORT}>
        SSLEngine On
        SSLCertificateFile "${ROOT}/tls/cert.pem"
        SSLCertificateKeyFile "${ROOT}/tls/key.pem"
    </VirtualHost>
"""
MODULE = "WebSocketWorkerShare Off\n" + echo() + echo("/deflate", "WebSocketCompression On")
PROXY = 'ProxyPass "/echo" "http://127.0.0.1:{port}/echo" upgrade=websocket\n'
PAGE = "index.html"


class Contender(NamedTuple):
    """Where a server listens, and its processes."""

    port: int
    pids: list
    tls_port: int = 0
    ca: str = ""


class Target(NamedTuple):
    """What a scenario should come to: the module's figure over another contender's."""

    what: str
    figure: str
    over: str
    least: float = 0
    most: float = 0


class Scenario(NamedTuple):
    """What the client does (see the fields of Job in load.rs), and with whom."""

    title: str
    job: dict
    contenders: list
    targets: list = []


RATE, CPU = "per_second", "server_seconds_per_million"
PEERS = ["fastwebsockets", "tungstenite", "ws", "mod_proxy"]
ALL = ["module", "mirror", *PEERS]
KIB, MIB = 1 << 10, 1 << 20


def messages(connections, size, payload="binary", **more):
    return {"task": "echo", "path": "/echo", "connections": connections, "size": size, "payload": payload, **more}


def share(what, least, over="mirror"):
    return Target(f"{what} ≥ {least:g} × {over}", RATE, over, least=least)


SCENARIOS = {
    "round-trip": Scenario("1 connection, 16 bytes, one at a time", messages(1, 16), ALL),
    "small": Scenario(
        "50 connections, 16 bytes", messages(50, 16), ALL,
        [Target("CPU ≤ 1.05 × mirror", CPU, "mirror", most=1.05)],
    ),
    "pipelined": Scenario(
        "50 connections, 16 bytes, 16 in flight", messages(50, 16, in_flight=16), ALL,
        [share("rate", 14, "fastwebsockets")],
    ),
    "1k": Scenario("50 connections, 1 KiB of text", messages(50, KIB, "ascii"), ALL),
    "16k": Scenario("10 connections, 16 KiB of text", messages(10, 16 * KIB, "ascii"), ALL, [share("rate", 0.95)]),
    "1m-binary": Scenario("4 connections, 1 MiB binary", messages(4, MIB), ALL, [share("rate", 0.92)]),
    "1m-ascii": Scenario("4 connections, 1 MiB of ASCII text", messages(4, MIB, "ascii"), ALL, [share("rate", 0.90)]),
    "1m-multibyte": Scenario(
        "4 connections, 1 MiB of multi-byte text", messages(4, MIB, "multibyte"), ALL, [share("rate", 0.75)]
    ),
    "fragments-64": Scenario("1 connection, 1 MiB in 64-byte fragments", messages(1, MIB, fragment=64), ALL),
    "fragments-1": Scenario("1 connection, 1 MiB in 1-byte fragments", messages(1, MIB, fragment=1), ALL),
    "handshakes": Scenario(
        "8 at a time: connection, handshake, Close; httpd: a page of 33 bytes",
        {"task": "handshake", "path": "/echo", "connections": 8},
        ["module", "static page", *PEERS],
        [Target("CPU ≤ 1 × static page", CPU, "static page", most=1)],
    ),
    "tls-small": Scenario(
        "50 connections, 16 bytes, TLS (mirror: without)", messages(50, 16, tls=True), ["module", "mirror", "mod_proxy"],
        [share("rate", 0.66)],
    ),
    "tls-16k": Scenario(
        "10 connections, 16 KiB of text, TLS (mirror: without)", messages(10, 16 * KIB, "ascii", tls=True),
        ["module", "mirror", "mod_proxy"], [share("rate", 0.20)],
    ),
    "deflate": Scenario(
        "10 connections, 2 KiB of JSON, permessage-deflate",
        messages(10, 2 * KIB, "json", deflate=True), ["module", "module, plain", "ws"],
    ),
}
# Another kind of scenario: what the protocol core takes, without a server.
CORE = "core"


# --- the servers --------------------------------------------------------------------------------


def program(command, **env):
    """A server that takes its port as the last argument."""
    port, process = start_program(command, **env)
    return Contender(port, [process.pid])


def start_httpd(name, conf, modules=(), others=()):
    """An httpd of our own; `others` are processes that work for it."""
    os.environ["WS_TEST_ROOT"] = str(OUT / name)
    httpd = Httpd()
    httpd.start(textwrap.dedent(CONF) + conf, modules=modules)
    atexit.register(httpd.stop, timeout=30)
    assert (httpd.root / "htdocs" / PAGE).stat().st_size == 33
    return Contender(httpd.port, [httpd.process.pid, *others], httpd.tls_port, str(httpd.certificate()))


def fetch_ws():
    """Gets ws from npm while there is a network."""
    if not (NODE / "node_modules/ws").exists() and shutil.which("node") and shutil.which("npm"):
        NODE.mkdir(parents=True, exist_ok=True)
        shutil.copy(TOP / "test/bench/package.json", NODE)
        subprocess.run(["npm", "install", "--silent", "--no-audit", "--no-fund"], cwd=NODE, check=False)


def start_all(wanted):
    """The servers, by name."""
    servers = {}
    if "mirror" in wanted:
        servers["mirror"] = program([BIN / "mirror"])
    if "fastwebsockets" in wanted or "mod_proxy" in wanted:
        servers["fastwebsockets"] = program([BIN / "peer_fastwebsockets"])
    if "tungstenite" in wanted:
        servers["tungstenite"] = program([BIN / "peer_tungstenite"])
    if "ws" in wanted:
        modules = NODE / "node_modules"
        if shutil.which("node") and (modules / "ws").exists():
            command = ["node", str(TOP / "test/bench/peer_ws.js")]
            servers["ws"] = program(command, NODE_PATH=str(modules))
            servers["ws, deflate"] = program(command, NODE_PATH=str(modules), PERMESSAGE_DEFLATE="1")
        else:
            print("ws is left out: node, or npm and the registry, cannot be had\n")
    servers["module"] = servers["module, plain"] = servers["static page"] = start_httpd("module", MODULE)
    if "mod_proxy" in wanted:
        behind = servers["fastwebsockets"]
        conf = PROXY.format(port=behind.port)
        servers["mod_proxy"] = start_httpd("proxy", conf, ("proxy", "proxy_http"), behind.pids)
    return servers


# --- measuring ----------------------------------------------------------------------------------


class Failed(Exception):
    """A scenario did not work."""


def play(name, scenario, servers):
    """Plays a scenario with one contender."""
    job = {**scenario.job, "warm_up": WARM_UP, "seconds": SECONDS, "core": CLIENT_CORE}
    server = servers["ws, deflate" if name == "ws" and job.get("deflate") else name]
    port = server.port
    if job.pop("tls", False) and server.tls_port:
        port, job["ca"] = server.tls_port, server.ca
    if name == "mirror":
        job["task"] = "mirror"
    if name == "static page":
        job.update(task="get", path=f"/{PAGE}", size=33)
    if name == "module, plain":
        job["deflate"] = False
    elif job.get("deflate"):
        job["path"] = "/deflate"
    job.update(address=f"127.0.0.1:{port}", processes=server.pids)
    done = subprocess.run([BIN / "load", json.dumps(job)], capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        raise Failed(done.stderr.strip())
    return json.loads(done.stdout)


def measure(scenario, servers):
    """The reports of all rounds, by contender."""
    reports = {name: [] for name in scenario.contenders if name in servers}
    for _ in range(ROUNDS):
        for name in list(reports):
            try:
                reports[name].append(play(name, scenario, servers))
            except Failed as failed:
                # Not every peer can do everything; the module can.
                if name == "module":
                    raise
                print(f"{name} is left out of the next table: {failed}\n")
                del reports[name]
    return reports


def figure(reports, name, key):
    return statistics.median(report[key] for report in reports[name])


def ratio(reports, name, over, key):
    """The median of the rounds' ratios."""
    ratios = [a[key] / b[key] for a, b in zip(reports[name], reports[over]) if b[key]]
    return statistics.median(ratios) if ratios else float("nan")


def judge(target, reports):
    """The module's figure over the other's, and whether the target is met."""
    value = ratio(reports, "module", target.over, target.figure)
    return value, value <= target.most if target.most else value >= target.least


def show(scenario, reports):
    """A table of a scenario; the targets with what became of them."""
    base = "mirror" if "mirror" in reports else scenario.contenders[1]
    latency = "round_trip" in reports["module"][0]
    columns = ["", "per second", f"× {base}", "CPU s per million", f"× {base}"]
    if latency:
        columns += ["median µs", "p99 µs"]
    print(f"### {scenario.title}\n\n| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for name in reports:
        cells = [
            f"**{name}**" if name == "module" else name,
            f"{figure(reports, name, RATE):,.0f}", f"{ratio(reports, name, base, RATE):.2f}",
            f"{figure(reports, name, CPU):,.2f}", f"{ratio(reports, name, base, CPU):.2f}",
        ]
        if latency:
            trips = [report["round_trip"] for report in reports[name]]
            cells += [f"{statistics.median(t[key] for t in trips):.1f}" for key in ("median", "p99")]
        print("| " + " | ".join(cells) + " |")
    for target in scenario.targets:
        if target.over in reports:
            value, met = judge(target, reports)
            print(f"\nTarget: {target.what}: **{value:.2f}**, {'met' if met else 'MISSED'}")
    print(flush=True)


def summarise(results, load):
    """What the module does and takes, its processor time over the others', and what became of the targets."""
    command = "make bench"
    others = [name for name in ALL[1:] if any(name in reports for reports in results.values())]
    rows, targets = [], []
    for name, reports in results.items():
        title = SCENARIOS[name].title
        row = [title, f"{figure(reports, 'module', RATE):,.0f}", f"{figure(reports, 'module', CPU):,.2f}"]
        for other in others:
            value = ratio(reports, "module", other, CPU) if other in reports else None
            row.append("" if value is None else f"**{value:.2f}**" if value < 1 else f"{value:.2f}")
        rows.append(row)
        for target in SCENARIOS[name].targets:
            if target.over in reports:
                value, met = judge(target, reports)
                targets.append([title, target.what, f"{value:.2f}", "" if met else "**missed**"])
    print("### Summary: below 1 the module takes less than the other\n")
    columns = ["", "Per second", "CPU s per million", *(f"÷ {name}" for name in others)]
    page.publish("messages", columns, rows, command, load)
    page.publish("aims", ["", "Aim", "Measured", ""], targets, command, load)


def main():
    fetch_ws()
    enter_namespace()
    names = [name for name in os.environ.get("SCENARIOS", "").replace(",", " ").split() if name] or [*SCENARIOS, CORE]
    unknown = [name for name in names if name not in (*SCENARIOS, CORE)]
    if unknown:
        sys.exit(f"unknown: {', '.join(unknown)}; there are: {', '.join([*SCENARIOS, CORE])}")
    if CORE in names:
        names.remove(CORE)
        print(subprocess.run([BIN / "core"], capture_output=True, text=True, check=True).stdout, flush=True)
    if not names:
        return
    set_up_network()
    os.environ["TEST_MPM"] = "event"
    OUT.mkdir(parents=True, exist_ok=True)
    load = os.getloadavg()[0]
    two_cores()
    servers = start_all({name for scenario in names for name in SCENARIOS[scenario].contenders})
    print(
        f"{datetime.date.today()}, {ROUNDS} rounds of {SECONDS:g} s each, interleaved; medians. "
        f"{where()}; load average before: {load:.2f}.\n",
        flush=True,
    )
    results = {}
    started = time.monotonic()
    for name in names:
        results[name] = measure(SCENARIOS[name], servers)
        show(SCENARIOS[name], results[name])
    if len(results) < len(SCENARIOS):
        os.environ.pop("PUBLISH", None)
    summarise(results, load)
    (OUT / "result.json").write_text(json.dumps(results, indent=1) + "\n")
    print(f"It took {time.monotonic() - started:.0f} s.")


if __name__ == "__main__":
    main()
