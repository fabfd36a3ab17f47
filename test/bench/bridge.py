"""How fast bytes go through the bridge, beside websockify and beside socat as a plain TCP relay.

    python test/bench/bridge.py [MiB]

One connection carries 1 GiB (or as much as said) from a peer to a client (*down*), then as much from a client to a peer
(*up*), in messages of 64 KiB where messages there are. Peer and client are the same processes for all relays, and do little
else than to read and write: the client's masked frames are made beforehand, and what it receives is hopped over from header
to header. Relays take turns, ROUNDS (5) times; printed are medians, which PUBLISH=1 also writes into docs/performance.md.

The environment is that of the tests: HTTPD, APXS, TEST_MPM, WS_MODULE, WS_TEST_ROOT. It needs socat, and websockify beside
the Python that runs it (test/bench/requirements.txt). A relay's processor time is printed too: on a busy machine it says more.
"""

import contextlib
import multiprocessing
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "lib"))
import page  # noqa: E402
from ws_frame import BINARY, Client, frame  # noqa: E402

from httpd import Httpd, wait_until  # noqa: E402

CHUNK = 64 * 1024
BATCH = 16
PATH = "/bridge"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def send_plain(sock, size):
    data = memoryview(os.urandom(CHUNK) * BATCH)
    for _ in range(size // len(data)):
        sock.sendall(data)


def receive_plain(sock, size):
    buffer, left = bytearray(1 << 20), size
    while left:
        got = sock.recv_into(buffer)
        assert got, "the connection ended"
        left -= got


def receive_frames(sock, size, buffered=b""):
    """Counts the payload of unmasked frames."""
    buffer, start = bytearray(1 << 20), len(buffered)
    buffer[:start] = buffered
    left, skip, end = size, 0, start
    while True:
        at = 0
        while at < end:
            if skip:
                step = min(skip, end - at)
                skip -= step
                left -= step
                at += step
                continue
            short = buffer[at + 1] if end - at > 1 else 126
            head = {126: 4, 127: 10}.get(short, 2)
            if end - at < head:
                break
            assert buffer[at] & 0x0F < 8, f"a control frame came: {bytes(buffer[at:end])[:60]!r}"
            skip = short if head == 2 else int.from_bytes(buffer[at + 2 : at + head], "big")
            at += head
        if left == 0:
            return
        rest = end - at
        buffer[:rest] = buffer[at:end]
        got = sock.recv_into(memoryview(buffer)[rest:])
        assert got, f"the connection ended, {left} bytes short"
        end = rest + got


def send_frames(sock, size):
    data = frame(BINARY, os.urandom(CHUNK)) * BATCH
    for _ in range(size // (CHUNK * BATCH)):
        sock.sendall(data)


def peer(listener, orders):
    """The process behind the relay: each connection gets or gives `size` bytes."""
    while (order := orders.recv()) is not None:
        direction, size = order
        connection, _ = listener.accept()
        with connection:
            if direction == "down":
                assert connection.recv(1) == b"!"  # the client is ready
                send_plain(connection, size)
                connection.recv(1)
            else:
                receive_plain(connection, size)
                connection.sendall(b"!")
                connection.recv(1)


def connect(port, is_ws):
    client = Client(port, timeout=120)
    if is_ws:
        client.upgrade(PATH, [("Sec-WebSocket-Protocol", "binary")])
    return client


def run(port, is_ws, direction, size, orders):
    """MiB/s of one transfer."""
    orders.send((direction, size))
    with connect(port, is_ws) as client:
        if direction == "down":
            begun = time.monotonic()
            client.send(frame(BINARY, b"!") if is_ws else b"!")
            if is_ws:
                receive_frames(client.sock, size, bytes(client.buffer))
            else:
                receive_plain(client.sock, size)
        else:
            begun = time.monotonic()
            (send_frames if is_ws else send_plain)(client.sock, size)
            assert client.sock.recv(100)
        return size / (1 << 20) / (time.monotonic() - begun)


def listens(port):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


@contextlib.contextmanager
def started(command, port):
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        # Nothing but the kernel's table is asked: each connection would be relayed.
        wait_until(lambda: is_listening(port), 20, command[0])
        yield process.pid
    finally:
        process.terminate()
        process.wait(10)


def is_listening(port):
    wanted = f":{port:04X}"
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1].endswith(wanted) and fields[3] == "0A":
            return True
    return False


def cpu_of(pid):
    """Seconds that a process, its children and those it has reaped have run."""
    total = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            name, _, rest = stat.read_text().rpartition(")")
            fields, own = rest.split(), int(name.split()[0])
            if own == pid:
                total += sum(map(int, fields[11:15]))
            elif int(fields[1]) == pid:
                total += sum(map(int, fields[11:13]))
    return total / os.sysconf("SC_CLK_TCK")


def main():
    size = int(sys.argv[1]) << 20 if len(sys.argv) > 1 else 1 << 30
    rounds = int(os.environ.get("ROUNDS") or "5")
    if len(sys.argv) > 1:
        os.environ.pop("PUBLISH", None)
    listener = socket.create_server(("127.0.0.1", 0))
    target = listener.getsockname()[1]
    orders, theirs = multiprocessing.Pipe()
    process = multiprocessing.Process(target=peer, args=(listener, theirs), daemon=True)
    process.start()
    httpd = Httpd()
    conf = f"""
        LogLevel warn websocket:warn
        <Location {PATH}>
            SetHandler websocket-handler
            WebSocketBridge tcp://127.0.0.1:{target}
            WebSocketBridgeFraming binary
            WebSocketBridgeProtocol binary
        </Location>
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(httpd.serve(conf))
        relays = {"the bridge": (httpd.port, True, httpd.process.pid)}
        websockify = Path(sys.executable).parent / "websockify"
        if websockify.exists():
            port = free_port()
            command = [str(websockify), f"127.0.0.1:{port}", f"127.0.0.1:{target}"]
            relays["websockify"] = (port, True, stack.enter_context(started(command, port)))
        for name, options in (("socat", []), ("socat -b65536", ["-b65536"])):
            if shutil.which("socat"):
                port = free_port()
                ends = [f"TCP-LISTEN:{port},bind=127.0.0.1,reuseaddr,fork", f"TCP:127.0.0.1:{target}"]
                relays[name] = (port, False, stack.enter_context(started(["socat", *options, *ends], port)))
        load = os.getloadavg()[0]
        speeds = {(name, way): [] for name in relays for way in ("down", "up")}
        loads = {(name, way): [] for name in relays for way in ("down", "up")}
        for _ in range(rounds):
            for way in ("down", "up"):
                for name, (port, is_ws, pid) in relays.items():
                    before = cpu_of(pid)
                    speeds[name, way].append(run(port, is_ws, way, size, orders))
                    time.sleep(0.1)
                    loads[name, way].append((cpu_of(pid) - before) * (1 << 30) / size)
    orders.send(None)
    process.join(5)
    rows = []
    for name in relays:
        row = [name]
        for way in ("down", "up"):
            row += [f"{statistics.median(speeds[name, way]):.0f}", f"{statistics.median(loads[name, way]):.2f}"]
        rows.append(row)
    print(f"{size >> 20} MiB each way, median of {rounds}\n")
    columns = ["Relay", "Peer to client, MiB/s", "CPU s per GiB", "Client to peer, MiB/s", "CPU s per GiB"]
    page.publish("bridge", columns, rows, "make bench-bridge", load)


if __name__ == "__main__":
    main()
