"""What an echoed message costs, in instructions and system calls, whatever machine it is.

A real httpd (event, one child) serves the echo example. Counted is what the module's own service thread does: the
instructions in mod_websocket.so under callgrind, and the system calls as strace sees them; httpd, libc, the plugin and
the kernel are left out. The result has to be that of cost.json within 5 per cent, for better or worse; `--update` writes
it anew. Instructions are compared for the compiler only that the table was made with.
"""

import json
import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent.parent
TABLE = Path(__file__).parent / "cost.json"
OUT = TOP / "build/cost"
TOLERANCE = 0.05
RARE = 0.02  # system calls that come less often a message come from elsewhere: a clock, a wake-up
sys.path.insert(0, str(TOP / "test/lib"))
os.environ["TEST_MPM"] = "event"
os.environ["WS_TEST_ROOT"] = str(OUT)

from httpd import Httpd, echo, wait_until  # noqa: E402
from ws_frame import CONTINUATION, EXAMPLE_KEY, TEXT, frame  # noqa: E402

# One service thread: then nothing is done by chance.
CONF = "LogLevel error\nWebSocketThreads 1\nWebSocketPingInterval Off\n" + echo()
ROUNDS = 300


def pieces(payload, size):
    """A text message in fragments."""
    parts = [payload[i:i + size] for i in range(0, len(payload), size)]
    last = len(parts) - 1
    return b"".join(frame(CONTINUATION if i else TEXT, part, fin=i == last) for i, part in enumerate(parts))


# What is sent at once, what comes back, and how many messages that is. Nothing is so large that the processor's kind
# or the kernel's segments decide what is done.
SCENARIOS = {
    "16 bytes of text": (frame(TEXT, "sixteen bytes :)"), frame(TEXT, "sixteen bytes :)", mask=None), 1),
    "16 bytes of text, 16 at a time": (
        frame(TEXT, "sixteen bytes :)") * 16, frame(TEXT, "sixteen bytes :)", mask=None) * 16, 16,
    ),
    "1 KiB in 64-byte fragments": (pieces(b"x" * 1024, 64), frame(TEXT, b"x" * 1024, mask=None), 1),
}


def read(sock, size):
    data = b""
    while len(data) < size:
        more = sock.recv(size - len(data))
        assert more, "the server has closed the connection"
        data += more
    return data


def converse(httpd, scenario, rounds):
    """A connection on which `rounds` times something is sent and comes back."""
    request = (
        f"GET /echo HTTP/1.1\r\nHost: localhost:{httpd.port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {EXAMPLE_KEY}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    out, back, _ = SCENARIOS[scenario]
    with socket.create_connection(("127.0.0.1", httpd.port), 60) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(request.encode())
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += read(sock, 1)
        for _ in range(rounds):
            sock.sendall(out)
            assert read(sock, len(back)) == back, "not the echo"


def instructions_of(profile):
    """The instructions of the module itself in what callgrind wrote of a thread."""
    names, here, total, skip = {}, False, 0, False
    for line in profile.splitlines():
        if line.startswith("ob="):
            number, name = re.match(r"ob=\((\d+)\)(?: (.*))?", line).groups()
            names.setdefault(number, name)
            here = names[number].endswith("mod_websocket.so")
        elif number_and_name := re.match(r"cob=\((\d+)\) (.*)", line):
            names.setdefault(*number_and_name.groups())
        elif line.startswith("calls="):
            skip = True  # the next line is the callee's cost
        elif cost := re.match(r"[+*-]?\d* ?(?:0x[0-9a-f]+ )?(\d+)$", line) if line[:1] in "+-*0123456789" else None:
            if here and not skip:
                total += int(cost.group(1))
            skip = False
    return total


def count_instructions(scenario, rounds):
    """Those of the service thread in a run of the server."""
    httpd = Httpd()
    wrapper = OUT / "callgrind"
    files = httpd.trails / "callgrind.%p"  # a folder that the server may write to, made anew for each one
    command = ["valgrind", "-q", "--vgdb=no", "--tool=callgrind", "--separate-threads=yes"]
    command += [f"--callgrind-out-file={files}"]
    wrapper.write_text(f'#!/bin/sh\nexec {shlex.join([*command, httpd.binary])} "$@"\n')
    wrapper.chmod(0o755)
    httpd.binary = str(wrapper)
    httpd.start(CONF)
    try:
        converse(httpd, scenario, rounds)
    finally:
        httpd.stop(timeout=30)
    profiles = [file.read_text() for file in files.parent.glob("callgrind.*-*")]
    served = [profile for profile in profiles if "service::Service::run" in profile]
    assert served, "no thread has served"
    return sum(map(instructions_of, served))


def name_of(thread):
    """A thread's name; empty if it has gone meanwhile."""
    try:
        return (thread / "comm").read_text()
    except OSError:
        return ""


def count_calls(httpd, scenario):
    """The system calls of the service thread while a conversation runs."""
    def service_threads():
        threads = [t for pid in httpd.children() for t in Path(f"/proc/{pid}/task").iterdir()]
        return [t.name for t in threads if name_of(t) == "ws-service\n"]

    [thread] = wait_until(service_threads, what="a service thread")
    log = OUT / "strace"
    log.unlink(missing_ok=True)
    with subprocess.Popen(["strace", "-o", str(log), "-p", thread], stderr=subprocess.PIPE, text=True) as strace:
        assert "attached" in strace.stderr.readline()
        converse(httpd, scenario, ROUNDS)
        strace.terminate()
    calls = re.findall(r"^(\w+)\(", log.read_text(), re.M)
    return {name: calls.count(name) for name in sorted(set(calls))}


def measure():
    rustc = subprocess.run(["rustc", "-V"], capture_output=True, text=True, check=True).stdout.strip()
    table = {"compiler": rustc, "messages": {}}
    idle = count_instructions(next(iter(SCENARIOS)), 0)
    httpd = Httpd()
    httpd.start(CONF)
    try:
        for name, (*_, messages) in SCENARIOS.items():
            each = ROUNDS * messages
            calls = {call: round(n / each, 3) for call, n in count_calls(httpd, name).items()}
            table["messages"][name] = {"system calls": {call: n for call, n in calls.items() if n >= RARE}}
    finally:
        httpd.stop()
    for name, (*_, messages) in SCENARIOS.items():
        instructions = (count_instructions(name, ROUNDS) - idle) / (ROUNDS * messages)
        table["messages"][name]["instructions"] = round(instructions)
    return table


def differs(was, now):
    return abs(now - was) > TOLERANCE * was


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    table = measure()
    print(json.dumps(table["messages"], indent=2))
    if "--update" in sys.argv:
        TABLE.write_text(json.dumps(table, indent=2) + "\n")
        return
    known = json.loads(TABLE.read_text())
    wrong = []
    for name, was in known["messages"].items():
        now = table["messages"][name]
        for call in {*was["system calls"], *now["system calls"]}:
            pair = was["system calls"].get(call, 0), now["system calls"].get(call, 0)
            if differs(*pair):
                wrong.append(f"{name}: {call}: {pair[1]} times a message instead of {pair[0]}")
        if table["compiler"] == known["compiler"] and differs(was["instructions"], now["instructions"]):
            wrong.append(f"{name}: {now['instructions']} instructions instead of {was['instructions']}")
    if table["compiler"] != known["compiler"]:
        print(f"instructions are not compared: the table was made with {known['compiler']}")
    if wrong:
        sys.exit("\n".join([*wrong, "if that is meant: make check-cost ARGS=--update, and commit cost.json with the reason"]))


if __name__ == "__main__":
    main()
