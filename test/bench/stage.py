"""Where a benchmark takes place: a network of its own, programs that serve in it, a core for them and one for the client."""

import atexit
import os
import shutil
import signal
import socket
import subprocess
import sys

from httpd import wait_until

SERVER_CORE, CLIENT_CORE = 0, 1
# Some kernels default to BBR, which paces even the loopback device.
CONGESTION = "cubic"


def enter_namespace():
    """Starts over in a network namespace of our own, if that is possible."""
    if os.environ.get("BENCH_NAMESPACE") or os.geteuid() != 0 or not shutil.which("unshare"):
        return
    if subprocess.run(["unshare", "-n", "true"], capture_output=True, check=False).returncode == 0:
        os.environ["BENCH_NAMESPACE"] = "own"
        os.execvp("unshare", ["unshare", "-n", sys.executable, *sys.argv])


def set_up_network():
    """The loopback device, with our congestion control on its routes: the default of a namespace may be out of reach."""
    if not os.environ.get("BENCH_NAMESPACE"):
        return
    run = lambda *command: subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: E731
    run("ip", "link", "set", "lo", "up")
    for line in run("ip", "route", "show", "table", "local").stdout.splitlines():
        if line.startswith("local 127."):
            run("ip", "route", "replace", "table", "local", *line.split(), "congctl", CONGESTION)


def congestion_control():
    """What is in force, asked of a connection."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with socket.create_connection(listener.getsockname()) as client:
            return client.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0").decode()


def where():
    """In a few words."""
    network = "a network namespace of its own" if os.environ.get("BENCH_NAMESPACE") else "the machine's network namespace"
    return f"Congestion control {congestion_control()}, in {network}"


def two_cores():
    """The servers inherit theirs; the client goes to its own."""
    if len(os.sched_getaffinity(0)) < 2:
        sys.exit("the benchmark needs two cores: one for the client, one for the servers")
    os.sched_setaffinity(0, {SERVER_CORE})


def start_program(command, **env):
    """A server that takes its port as the last argument: the port and the process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([*command, str(port)], env={**os.environ, **env}, stdin=subprocess.DEVNULL)
    atexit.register(process.wait)
    atexit.register(process.send_signal, signal.SIGKILL)

    def up():
        assert process.poll() is None, f"{command[0]} ends with {process.returncode}"
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", port)) == 0

    wait_until(up, 20, f"the start of {command[0]}")
    return port, process
