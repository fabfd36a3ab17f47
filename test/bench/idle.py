"""What idle connections cost: memory, threads, and what a plain GET notices of them.

For each MPM and each kind of connection a server is started, connections are opened and left idle, each of
them echoes once, and all are closed. The result is a table for each MPM, which PUBLISH=1 also writes into
docs/performance.md. The environment is that of the tests (see ../lib/httpd.py); `--help` lists the options. Memory is the
proportional share of all children, from the kernel.

Beside them stand TLS connections that are httpd's alone, kept alive after a request.
"""

import argparse
import os
import re
import resource
import selectors
import socket
import statistics
import sys
import time
from pathlib import Path
from typing import NamedTuple

TOP = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(TOP / "test/lib"))
os.environ.setdefault("WS_TEST_ROOT", str(TOP / "build/bench"))

import page  # noqa: E402
from httpd import ONE_CHILD, Httpd, echo, wait_until  # noqa: E402
from ws_frame import EXAMPLE_KEY, TEXT, frame  # noqa: E402

# One child as it comes serves detached connections; others need a thread or a process each.
MANY_THREADS = """
    <IfModule mpm_prefork_module>
        ServerLimit {more}
        MaxRequestWorkers {more}
        StartServers 20
        MinSpareServers 40
        MaxSpareServers {more}
    </IfModule>
    <IfModule !mpm_prefork_module>
        ServerLimit 1
        ThreadLimit {more}
        ThreadsPerChild {more}
        MaxRequestWorkers {more}
        StartServers 1
        MinSpareThreads 1
        MaxSpareThreads {more}
    </IfModule>
"""
TLS = """
    <VirtualHost *:${{TLS_PORT}}>
        SSLEngine On
        SSLCertificateFile "{cert}"
        SSLCertificateKeyFile "{key}"
    </VirtualHost>
"""
# event keeps no more connections alive in a child than its threads times about this.
FACTOR = """
    <IfModule mpm_event_module>
        AsyncRequestWorkerFactor 2000
    </IfModule>
"""


class Kind(NamedTuple):
    """How connections are served, and what makes them so."""

    name: str
    tls: bool = False
    detach: str = "On"
    threads: bool = False  # each holds one of httpd's
    mpms: tuple = ("event", "worker", "prefork")
    path: str = "/echo"


KINDS = [
    Kind("detached (ws)"),
    Kind("detached (wss)", tls=True),
    Kind("blocking (ws)", detach="Off", threads=True),
    Kind("blocking (wss)", tls=True, detach="Off", threads=True),
    Kind("httpd: https, kept alive", tls=True, mpms=("event",), path="/index.html"),
]
COLUMNS = [
    "Connections", "Number", "Threads", "KiB each", "Open, s", "Echo, s", "GET before, ms", "GET meanwhile, ms",
    "MiB before", "MiB meanwhile", "MiB after",
]
IP_BIND_ADDRESS_NO_PORT = getattr(socket, "IP_BIND_ADDRESS_NO_PORT", 24)  # Python knows it from 3.12 on
BATCH = 100  # handshakes on their way at a time
QUIET = 4.0  # seconds until memory is looked at, so that it shows what stays


def memory(httpd):
    """KiB of all children."""
    total = 0
    for pid in httpd.children():
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        total += int(re.search(r"Pss:\s+(\d+)", text).group(1))
    return total


def latency(httpd):
    """The median of some plain GETs, in milliseconds."""
    answers = [httpd.get(timeout=30) for _ in range(100)]
    assert all(status == 200 for status, _ in answers)
    return statistics.median(took for _, took in answers) * 1e3


def read_all(sock, marker):
    data = b""
    while not data.endswith(marker):
        more = sock.recv(4096)
        assert more, f"the server ended a connection: {data!r}"
        data += more
    return data


def open_connections(httpd, count, kind):
    """Sockets with their handshakes done; a minimal handshake, from several addresses."""
    port = httpd.tls_port if kind.tls else httpd.port
    context = httpd.tls_context() if kind.tls else None
    end, start = (b"</p>\n", b"HTTP/1.1 200 ") if kind.path == "/index.html" else (b"\r\n\r\n", b"HTTP/1.1 101 ")
    request = (
        f"GET {kind.path} HTTP/1.1\r\nHost: localhost:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {EXAMPLE_KEY}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    ).encode()
    socks = []
    while len(socks) < count:
        batch = []
        for n in range(len(socks), min(len(socks) + BATCH, count)):
            sock = socket.socket()
            sock.settimeout(60)
            # The port is chosen when connecting: it need not differ from those to other servers, of earlier runs.
            sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
            sock.bind((f"127.0.0.{2 + n // 5000}", 0))
            sock.connect(("127.0.0.1", port))
            if context:
                sock = context.wrap_socket(sock, server_hostname="localhost")
            sock.sendall(request)
            batch.append(sock)
        for sock in batch:
            answer = read_all(sock, end)
            assert answer.startswith(start), answer
        socks += batch
    return socks


def echo_all(socks):
    """Seconds until each of them has had its message back."""
    out, back = frame(TEXT, "are you there?"), frame(TEXT, "are you there?", mask=None)
    start = time.monotonic()
    with selectors.DefaultSelector() as selector:
        for sock in socks:
            sock.sendall(out)
            selector.register(sock, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(60)
            assert ready, f"{len(selector.get_map())} connections had no echo"
            for key, _ in ready:
                got = read_all(key.fileobj, back)
                assert got == back, f"not the echo: {got!r}"
                selector.unregister(key.fileobj)
    return time.monotonic() - start


def measure(mpm, kind, count):
    """One line of the table."""
    os.environ["TEST_MPM"] = mpm
    httpd = Httpd()
    # Many processes take longer to start than clients may be silent.
    conf = f"LogLevel warn\nWebSocketPingInterval Off\nWebSocketDetach {kind.detach}\nKeepAliveTimeout 900\n" + echo()
    many = "WebSocketWorkerShare Off\n" + MANY_THREADS.format(more=count + 50)
    conf += many if kind.threads else ONE_CHILD + FACTOR
    if kind.tls:
        cert = httpd.certificate()
        conf += TLS.format(cert=cert, key=cert.parent / "key.pem") + "SSLSessionCache none\n"
    echoes = kind.path == "/echo"
    httpd.start(conf)
    try:
        # Whatever the first connections leave behind is not the others' cost.
        warm = open_connections(httpd, 100, kind)
        if echoes:
            echo_all(warm)
        for sock in warm:
            sock.close()
        latency(httpd)
        time.sleep(QUIET)
        before, get_before = memory(httpd), latency(httpd)
        descriptors = sum(map(httpd.descriptors, httpd.children()))
        start = time.monotonic()
        socks = open_connections(httpd, count, kind)
        opened = time.monotonic() - start
        time.sleep(QUIET)
        held = memory(httpd) - before
        threads = sum(map(httpd.threads, httpd.children()))
        get_meanwhile = latency(httpd)
        echoed = f"{echo_all(socks):.2f}" if echoes else "-"
        for sock in socks:
            sock.close()
        few = descriptors + 10
        if mpm != "prefork" or not kind.threads:
            wait_until(lambda: sum(map(httpd.descriptors, httpd.children())) <= few, 60, "the descriptors' return")
        time.sleep(QUIET)
        after = memory(httpd)
    finally:
        httpd.stop(timeout=30)
    return [
        kind.name, f"{count:,}", f"{threads:,}", f"{held / count:.2f}", f"{opened:.1f}", echoed,
        f"{get_before:.2f}", f"{get_meanwhile:.2f}", f"{before / 1024:.1f}", f"{(before + held) / 1024:.1f}",
        f"{after / 1024:.1f}",
    ]


def main():
    words = lambda text: text.split(",")  # noqa: E731
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mpm", type=words, default=["event", "worker", "prefork"])
    names = ", ".join(kind.name for kind in KINDS)
    parser.add_argument("--kind", default="", help=f"those whose name contains it: {names}")
    parser.add_argument("--connections", type=words, default=["1000", "10000", "19000"])
    parser.add_argument("--most-threads", type=int, default=1000, help="no more connections than that on threads")
    parser.add_argument("--most-tls", type=int, default=10000, help="nor than that over TLS")
    options = parser.parse_args()
    if len(sys.argv) > 1:
        os.environ.pop("PUBLISH", None)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    for mpm in options.mpm:
        load, rows = os.getloadavg()[0], []
        print(f"### {mpm}\n")
        for kind in KINDS:
            if mpm not in kind.mpms or options.kind not in kind.name:
                continue
            most = min(hard - 500, options.most_threads if kind.threads else hard)
            if kind.tls:
                most = min(most, options.most_tls)
            for count in map(int, options.connections):
                if count <= most:
                    rows.append(measure(mpm, kind, count))
        page.publish(f"idle-{mpm}", COLUMNS, rows, "make bench-idle", load)


if __name__ == "__main__":
    main()
