"""A private httpd for the tests: own ServerRoot, loopback port, own logs.

Whatever a test needs to know about the machine comes from the environment:
HTTPD (the binary), APXS, TEST_MPM (event, worker, prefork), WS_MODULE (mod_websocket.so),
WS_EXAMPLES and WS_PLUGINS (folders of plugins), WS_TEST_ROOT (where the server's files go),
WS_TEST_PORTS (the first of a thousand ports that are this run's own), WS_FULL (any text: attacks
and loads at their full size).
"""

import contextlib
import grp
import os
import pwd
import random
import re
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import tempfile
import textwrap
import time
import urllib.request
import zlib
from pathlib import Path
from resource import RLIM_INFINITY, RLIMIT_NOFILE, getrlimit, setrlimit
from typing import NamedTuple

import pytest
from sources import MODULE, TOP, stale_module

MODULES = """authn_core authz_core authz_host alias mime dir env headers log_config logio reqtimeout
    setenvif status unixd""".split()
# A graceful restart needs spare slots while the old children still have connections.
MPM_SETTINGS = """
    <IfModule mpm_prefork_module>
        ServerLimit 100
        MaxRequestWorkers 80
        StartServers 12
        MinSpareServers 4
        MaxSpareServers 80
    </IfModule>
    <IfModule !mpm_prefork_module>
        ServerLimit 6
        MaxRequestWorkers 256
        ThreadsPerChild 64
        StartServers 1
        MinSpareThreads 1
        MaxSpareThreads 256
    </IfModule>
"""
# One child, with as many threads as Debian gives it; prefork may start others while that one ends.
ONE_CHILD = """
    <IfModule mpm_prefork_module>
        ServerLimit 8
        MaxRequestWorkers 1
        StartServers 1
        MinSpareServers 1
        MaxSpareServers 8
    </IfModule>
    <IfModule !mpm_prefork_module>
        ServerLimit 1
        MaxRequestWorkers 25
        ThreadsPerChild 25
        StartServers 1
        MinSpareThreads 1
        MaxSpareThreads 25
    </IfModule>
"""
# The same over https.
TLS = """
    SSLSessionCache shmcb:run/sessions(128000)
    <VirtualHost *:${TLS_PORT}>
        SSLEngine on
        SSLCertificateFile tls/cert.pem
        SSLCertificateKeyFile tls/key.pem
    </VirtualHost>
"""
# How the server is told to end, or to begin anew.
ENDS = {
    "graceful restart": signal.SIGUSR1,
    "restart": signal.SIGHUP,
    "graceful stop": signal.SIGWINCH,
    "stop": signal.SIGTERM,
}
SUSPICIOUS = re.compile(
    r"\[[\w-]*:(warn|error|crit|alert|emerg)\]|segfault|exit signal|panicked|Sanitizer|runtime error:"
)
MACHINE = re.compile("AH01882")  # mod_ssl does not like the installed OpenSSL's number
# Advice about settings of the MPM, which tests choose as it suits them; TestAdvice reads it.
ADVICE = re.compile("WS04(0[6-9]|10|14)")
ACCESS = re.compile(r'(\d+) (\d+) (\d+) (\d+) (\d+) (\S+) (\S+) (\S+) "(.*)"')


# The servers of tests are on the loopback address, whatever proxy leads to others.
os.environ["no_proxy"] = os.environ["NO_PROXY"] = "127.0.0.1,localhost,::1"


class UnexpectedLog(AssertionError):
    """The error log has a line that no test announced."""


class BadEnd(AssertionError):
    """The server ended when it should not, or did not when it should, or not as it should."""


class StaleModule(SystemExit):
    """The module is not the one in the sources, so that nothing that it does tells anything about them."""


class MissingLog(AssertionError):
    """The error log lacks a line that the test announced."""


GIVEN = set()  # ports that somebody has, or will have


STATUS = "<Location /status>\n    SetHandler server-status\n</Location>\n"


def free_port(kind=socket.SOCK_STREAM):
    """A port of the loopback address below the ephemeral range, which other sockets cannot take by chance, and which
    nobody was given before. Of runs side by side each has a thousand of its own."""
    first = int(os.environ.get("WS_TEST_PORTS") or 30_000)
    while True:
        port = random.randrange(first, first + 1000)
        if port in GIVEN:
            continue
        with contextlib.suppress(OSError), socket.socket(socket.AF_INET, kind) as probe:
            probe.bind(("127.0.0.1", port))
            GIVEN.add(port)
            return port


def wait_until(condition, timeout=10.0, what="the condition"):
    """Polls until `condition()` is true and returns its value."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"{what}: not within {timeout:g} s"
        time.sleep(0.01)


def location(path, plugin, init, *directives):
    """A Location that a plugin serves."""
    lines = ["SetHandler websocket-handler", f'WebSocketHandler "{plugin}" {init}', *directives]
    return f"<Location {path}>\n" + "".join(f"    {line}\n" for line in lines) + "</Location>\n"


def echo(path="/echo", *directives):
    """A Location with the echo example."""
    return location(path, "${EXAMPLES}/mod_websocket_echo.so", "echo_init", *directives)


def debug(path="/debug", *directives):
    """A Location with the debug plugin."""
    return location(path, "${PLUGINS}/debug.so", "debug_init", *directives)


def inode_of(local, remote):
    """The inode of one end of an IPv4 connection, asked of the kernel for just that (sock_diag(7)): /proc/net/tcp
    leaves some out when there are thousands. 0 if there is none."""
    netlink_sock_diag, by_family = 4, 20
    ports = struct.pack("!HH", local[1], remote[1])
    addresses = b"".join(socket.inet_aton(end[0]) + bytes(12) for end in (local, remote))
    ends = ports + addresses + struct.pack("=I", 0) + b"\xff" * 8
    request = struct.pack("=4BI", socket.AF_INET, socket.IPPROTO_TCP, 0, 0, 0xFFFFFFFF) + ends
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, netlink_sock_diag) as kernel:
        kernel.send(struct.pack("=IHHII", 16 + len(request), by_family, 1, 0, 0) + request)
        answer = kernel.recv(4096)
    if struct.unpack_from("=H", answer, 4)[0] != by_family:
        return 0
    return struct.unpack_from("=I", answer, 84)[0]


class Access(NamedTuple):
    """A line of the access log."""

    status: int
    body: int
    bytes_in: int
    bytes_out: int
    microseconds: int
    close_code: str
    messages_in: str
    messages_out: str
    request: str


class Checked(NamedTuple):
    """What `httpd -t` said about a configuration."""

    ok: bool
    output: str
    conf: Path

    def line_of(self, text):
        """The number of the first line that contains `text`."""
        lines = self.conf.read_text().splitlines()
        return next(n for n, line in enumerate(lines, 1) if text in line)

    def refused(self, *words, at=None):
        """The configuration has to be refused with a message that contains all `words`, and that
        names the file and the line of `at`."""
        assert not self.ok, f"accepted: {self.output}"
        if at is not None:
            words = (*words, f"line {self.line_of(at)} of {self.conf}")
        for word in words:
            assert word.lower() in self.output.lower(), f"{word!r} is not in: {self.output}"


# So many open files the tests ask for; many systems' soft limit is 1,024.
OPEN_FILES = 20_000


def raise_open_files():
    """Raises the soft limit of open files to what the tests need, as far as the hard one allows."""
    soft, hard = getrlimit(RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != RLIM_INFINITY and soft < wanted:
        setrlimit(RLIMIT_NOFILE, (wanted, hard))


def needs_open_files(count):
    """For a test that has `count` files open at once."""
    hard = getrlimit(RLIMIT_NOFILE)[1]
    reason = f"it needs {count} open files, and the hard limit is {hard} (ulimit -Hn)"
    return pytest.mark.skipif(hard != RLIM_INFINITY and hard < count, reason=reason)


def sized(small, full):
    """How large an attack or a load is: `full` in `make check-all`, otherwise what is enough to tell right from wrong."""
    return full if os.environ.get("WS_FULL") else small


PREFORK = os.environ.get("TEST_MPM") == "prefork"
# Clear-text connections are detached from httpd's threads, unless all tests are to use those.
DETACHED = os.environ.get("WS_DETACH", "Auto") != "Off"
# What it takes for those of plugins: on prefork they have a process each unless the administrator says more.
DETACH = "WebSocketDetach On\n" if PREFORK and DETACHED else ""


class Httpd:
    """The server under test and everything a test may ask about it."""

    def __init__(self):
        if wrong := stale_module():
            raise StaleModule(wrong)
        self.mpm = os.environ.get("TEST_MPM", "event")
        self.binary, self.modules = self._find_httpd()
        self.module = self._path("WS_MODULE", MODULE)
        self.examples = self._path("WS_EXAMPLES", "build/examples")
        self.plugins = self._path("WS_PLUGINS", "build/plugins")
        self.static = self._run("-l").stdout
        self.root = self._make_root()
        self.ipv6 = self._has_ipv6()
        self.port, self.tls_port = free_port(), free_port()
        self.error_log = self.root / "logs/error_log"
        self.access_log = self.root / "logs/access_log"
        self.trails = self.root / "trail"  # for what plugins write, as the child's user
        self.plugin_trail = self.trails / "plugin"  # of the debug plugin's init and destroy
        self.process = None
        self.read_to = 0  # how much of the error log was judged
        self.expected, self.allowed = [], []

    # --- where things are --------------------------------------------------------------------

    @staticmethod
    def _path(variable, default):
        return Path(os.environ.get(variable) or TOP / default).resolve()

    @staticmethod
    def _find_httpd():
        apxs = Httpd.apxs
        binary = os.environ.get("HTTPD") or "/usr/sbin/apache2"
        if not os.access(binary, os.X_OK):
            binary = f"{apxs('SBINDIR')}/{apxs('progname')}"
        modules = "/usr/lib/apache2/modules"
        if not binary.startswith("/usr/sbin/apache2") or not os.path.isdir(modules):
            modules = apxs("LIBEXECDIR")
        return binary, Path(modules)

    @staticmethod
    def apxs(name):
        asked = [os.environ.get("APXS", "apxs"), "-q", name]
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()

    def _make_root(self):
        """A folder that the server's children can enter; they run as another user if we are root."""
        root = self._path("WS_TEST_ROOT", "build/test") / self.mpm
        root.mkdir(parents=True, exist_ok=True)
        open_to_all = all(p.stat().st_mode & 0o001 for p in (root, *root.parents))
        if os.geteuid() == 0 and not open_to_all:
            name = zlib.crc32(str(root).encode())  # another checkout's tests may be running, too
            root = Path(tempfile.gettempdir()) / f"mod_websocket-test-{name:08x}"
        shutil.rmtree(root, ignore_errors=True)
        for name in ("conf", "logs", "run", "htdocs", "tls", "trail"):
            (root / name).mkdir(parents=True)
        (root / "trail").chmod(0o777)
        (root / "htdocs/index.html").write_text("<!doctype html><p>plain file</p>\n")
        (root / "conf/mime.types").write_text("text/html html\ntext/plain txt\n")
        return root

    @staticmethod
    def _has_ipv6():
        with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
            return True
        return False

    def _run(self, *args):
        command = [self.binary, *args]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    # --- configuration -----------------------------------------------------------------------

    def _load(self, name):
        if f"mod_{name}.c" in self.static or (name.startswith("mpm_") and f"{name[4:]}.c" in self.static):
            return ""
        return f'LoadModule {name}_module "{self.modules}/mod_{name}.so"\n'

    def has_h2_websockets(self):
        """Whether mod_http2 serves WebSockets: the name of the directive is in its file."""
        file = Path(self.binary) if "mod_http2.c" in self.static else self.modules / "mod_http2.so"
        return file.exists() and b"H2WebSockets" in file.read_bytes()

    def text(self, conf, modules=(), ipv6=True):
        """A complete configuration around `conf`."""
        conf = textwrap.dedent(conf)
        tls = "SSLEngine" in conf
        if tls:
            self.certificate()
        wanted = [f"mpm_{self.mpm}", *MODULES, *(["socache_shmcb", "ssl"] if tls else []), *modules]
        if "H2WebSockets" in conf:
            if not self.has_h2_websockets():
                self.expected = []  # by a server that is not going to run
                pytest.skip("mod_http2 of this httpd has no WebSockets (H2WebSockets came with httpd 2.4.58)")
            wanted.append("http2")
        lines = [
            f'ServerRoot "{self.root}"',
            "ServerName localhost",
            "DefaultRuntimeDir run",
            "PidFile run/httpd.pid",
            f'Define ROOT "{self.root}"',
            f'Define EXAMPLES "{self.examples}"',
            f'Define PLUGINS "{self.plugins}"',
            f'Define MODULE "{self.module}"',
            f"Define PORT {self.port}",
            f"Define TLS_PORT {self.tls_port}",
            *("".join(map(self._load, wanted)).splitlines()),
            f'LoadModule websocket_module "{self.module}"',
            f"Listen 127.0.0.1:{self.port}",
            *([f"Listen [::1]:{self.port}"] if self.ipv6 and ipv6 else []),
            *([f"Listen 127.0.0.1:{self.tls_port}"] if tls else []),
        ]
        if os.geteuid() == 0:
            users = {u.pw_name for u in pwd.getpwall()}
            user = next(u for u in ("www-data", "apache", "daemon", "nobody") if u in users)
            group = grp.getgrgid(pwd.getpwnam(user).pw_gid).gr_name
            lines += [f"User {user}", f"Group {group}"]
        lines += [
            "ErrorLog logs/error_log",
            "LogLevel info websocket:debug",
            'CustomLog logs/access_log "%s %B %I %O %D %{websocket-close-code}n '
            '%{websocket-messages-in}n %{websocket-messages-out}n \\"%r\\"" env=!websocket-open',
            # Long enough to be seen, short enough to wait for; tests of a drain set their own.
            "WebSocketDrainTime 300ms",
            *(["WebSocketDetach Off"] if not DETACHED else []),
            "TypesConfig conf/mime.types",
            'DocumentRoot "htdocs"',
        ]
        return "\n".join(lines) + textwrap.dedent(MPM_SETTINGS) + conf + "\n"

    def _write(self, conf, name, **kw):
        path = self.root / "conf" / name
        path.write_text(self.text(conf, **kw))
        return path

    def check(self, conf, **kw):
        """`httpd -t` on a configuration."""
        path = self._write(conf, "checked.conf", **kw)
        done = self._run("-t", "-f", str(path))
        return Checked(done.returncode == 0, done.stdout + done.stderr, path)

    def certificate(self):
        """The file of a self-signed certificate for localhost, its key beside it."""
        cert, key = self.root / "tls/cert.pem", self.root / "tls/key.pem"
        if not cert.exists():
            command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30"]
            command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
            command += ["-addext", "basicConstraints=critical,CA:FALSE"]
            command += ["-keyout", str(key), "-out", str(cert)]
            subprocess.run(command, check=True, capture_output=True)
        return cert

    def compile(self, name, source):
        """A library of a test's own, which may use httpd's headers."""
        code, library = self.root / f"{name}.c", self.root / f"{name}.so"
        code.write_text(source)
        includes = [f"-I{self.apxs(name)}" for name in ("INCLUDEDIR", "APR_INCLUDEDIR", "APU_INCLUDEDIR")]
        flags = ["-D_GNU_SOURCE", *self.apxs("EXTRA_CPPFLAGS").split(), *includes, "-shared", "-fPIC"]
        subprocess.run(["cc", *flags, "-o", str(library), str(code)], check=True)
        return library

    def tls_context(self, version=None):
        """A client's TLS settings that trust the certificate, perhaps for one version only."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(self.certificate())
        if version:
            context.minimum_version = context.maximum_version = version
        return context

    # --- running -------------------------------------------------------------------------------

    def start(self, conf, option="-DFOREGROUND", open_files=None, env=None, **kw):
        """Starts the server in the foreground, as a session of its own, and waits for it.

        `option` may be -X, for a single process; `open_files` lowers the limit of descriptors, and `env`
        adds to the environment."""
        assert self.process is None, "already running"
        path = self._write(conf, "httpd.conf", **kw)
        seen = self._generations()
        self.startup = open(self.root / "logs/startup", "w+")  # what is said before the log opens
        self.process = subprocess.Popen(
            [self.binary, option, "-f", str(path)],
            stdin=subprocess.DEVNULL, stdout=self.startup, stderr=self.startup,
            start_new_session=True, cwd="/",
            preexec_fn=open_files and (lambda: setrlimit(RLIMIT_NOFILE, (open_files, open_files))),
            env={**os.environ, "WEBSOCKET_DEBUG_TRAIL": str(self.plugin_trail), **(env or {})},
        )

        def up():
            if self.process.poll() is not None:
                self.process = None
                said = (self.root / "logs/startup").read_text() + self.new_log()
                raise BadEnd(f"httpd did not start:\n{said}")
            # A single process does not say that it has started.
            return (option == "-X" or self._generations() > seen) and self._answers()

        wait_until(up, 20, "httpd's start")
        self._released()  # a test may stop the server as its first deed

    def _answers(self):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False

    def _log(self):
        return self.error_log.read_text(errors="replace") if self.error_log.exists() else ""

    def _generations(self):
        return self._log().count("resuming normal operations")

    def tell(self, number):
        """Sends a signal; `renewed` waits for what a restart makes of it. (A child of event crashes, without any module,
        if a connection of HTTP is just being closed when it ends at once: those of before get the time for that.)"""
        if number == signal.SIGHUP:
            time.sleep(0.1)
        self.before = self._generations(), set(self.children())
        self.process.send_signal(number)

    def restarted(self):
        """Waits until the server has restarted; the children of before may still be there."""
        wait_until(lambda: self._generations() > self.before[0], 15, "the next generation")

    def outlived(self, timeout=13.0):
        """Waits until the children of before are gone. (A child of prefork that is told to go between a
        look at its flags and its poll learns of it when that ends, after ten seconds.)"""
        wait_until(lambda: not self.before[1] & set(self.children()), timeout, "the end of the old children")

    def renewed(self):
        """Waits for both."""
        self.restarted()
        self.outlived()

    def graceful(self):
        """Graceful restart; waits for the next generation."""
        self._next_generation(signal.SIGUSR1)

    def restart(self):
        """Restart; waits for the next generation."""
        self._next_generation(signal.SIGHUP)

    def _next_generation(self, number):
        self.tell(number)
        self.restarted()

    def stop(self, number=signal.SIGTERM, timeout=6.0):
        """Stops the server (SIGWINCH: gracefully) and proves that nothing of it is left."""
        process, self.process = self.process, None
        if process is None:
            return
        process.send_signal(number)
        try:
            code = process.wait(timeout)
            wait_until(lambda: not self._group(process.pid), 2, "the end of the children")
        except (subprocess.TimeoutExpired, AssertionError):
            left = self._group(process.pid)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)
            (self.root / "run/httpd.pid").unlink(missing_ok=True)
            raise BadEnd(f"httpd did not stop within {timeout:g} s; left: {left}") from None
        finally:
            self.startup.close()
        if code != 0:
            raise BadEnd(f"httpd ended with {code}")

    @contextlib.contextmanager
    def serve(self, conf, **kw):
        """The server runs with `conf` inside the block; its log is judged until after its end."""
        self.start(conf, **kw)
        try:
            yield self
        finally:
            self.settle()
            self.stop()
            self.judge_log()

    def settle(self):
        """Waits until the server can be stopped without a stumble of httpd's own."""
        self._released()
        # A process of prefork's that is told to stop while it starts cleans up in the midst of its own allocations.
        deadline = time.monotonic() + 1
        while PREFORK and self.process and self._youngest() < 0.2 and time.monotonic() < deadline:
            time.sleep(0.02)

    def _released(self):
        """Waits until httpd's workers have let go of the connections that clients have closed: its
        ungraceful stop closes the workers' sockets under their hands, and stumbles now and then over
        one that is just being closed (a segfault, or AH03093)."""
        ports = {f"{port:04X}" for port in (self.port, self.tls_port)}
        conf = (self.root / "conf/httpd.conf").read_text()

        def held_connections():
            known = set()
            for name, column in ("tcp", 9), ("tcp6", 9), ("udp", 9), ("udp6", 9), ("unix", 6), ("netlink", 9):
                for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
                    fields = line.split()
                    known.add(f"socket:[{fields[column]}]")
                    if name.startswith("tcp") and fields[1].rpartition(":")[2] in ports and fields[3] not in ("0A", "06"):
                        return True
            # The tables have no line any more for one that its client has reset, though a worker may still hold it,
            # nor ever for the one that mod_http2 makes when a child starts.
            for pid in self.children():
                held = {file for file in self._files(pid) if file.startswith("socket:")}
                if len(held - known) > ("H2WebSockets" in conf):
                    return True
            return False

        deadline = time.monotonic() + 1
        while self.process and held_connections() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.02)  # the descriptor is closed a little before the worker is done

    def get(self, path="/", timeout=5.0):
        """A plain GET on a new connection: its status, and the seconds it took."""
        start = time.monotonic()
        with socket.create_connection(("127.0.0.1", self.port), timeout) as sock:
            sock.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
            answer = b""
            while data := sock.recv(1 << 16):
                answer += data
        assert answer, "no answer to a plain GET"
        return int(answer.split(None, 2)[1]), time.monotonic() - start

    def status(self, query=""):
        """The page of server-status, for which STATUS has to be in the configuration."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/status{query}", timeout=10) as response:
            return response.read().decode()

    def sums(self):
        """What it says of all children's WebSockets."""
        found = re.findall(r"^WebSocket(\w+): (\d+)$", self.status("?auto"), re.MULTILINE)
        return {name: int(number) for name, number in found}

    # --- processes -----------------------------------------------------------------------------

    @staticmethod
    def _stat(pid):
        """State, parent, process group and start (ticks after the machine's) from /proc; None if the process is gone."""
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return fields[0], int(fields[1]), int(fields[2]), int(fields[19])

    @classmethod
    def _alive(cls):
        pids = (int(name) for name in os.listdir("/proc") if name.isdigit())
        stats = ((pid, cls._stat(pid)) for pid in pids)
        return [(pid, stat) for pid, stat in stats if stat and stat[0] != "Z"]

    @classmethod
    def _group(cls, group):
        return [pid for pid, stat in cls._alive() if stat[2] == group]

    def children(self):
        """The pids of the server's children."""
        return [pid for pid, stat in self._alive() if stat[1] == self.process.pid]

    def _youngest(self):
        """The age of the youngest child, in seconds."""
        started = [stat[3] for _, stat in self._alive() if stat[1] == self.process.pid]
        return time.clock_gettime(time.CLOCK_BOOTTIME) - max(started, default=0) / os.sysconf("SC_CLK_TCK")

    def child_of(self, client):
        """The child that holds the server's end of a client's IPv4 connection."""
        server, peer = client.sock.getpeername(), client.sock.getsockname()
        what = f"a child with the connection from port {peer[1]}"
        return wait_until(lambda: self._holder(inode_of(server, peer)), 2, what)

    def _holder(self, inode):
        return next((pid for pid in self.children() if f"socket:[{inode}]" in self._files(pid)), None)

    @staticmethod
    def _files(pid):
        """What a process has open, as the links in /proc name it."""
        for fd in Path(f"/proc/{pid}/fd").glob("*"):
            with contextlib.suppress(OSError):  # closed meanwhile, as httpd's own is
                yield os.readlink(fd)

    @staticmethod
    def memory(pid):
        """Resident KiB of a process."""
        status = Path(f"/proc/{pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status).group(1))

    @staticmethod
    def threads(pid, name=None):
        """How many threads a process has, perhaps of one name."""
        count = 0
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):  # gone meanwhile
                count += name in (None, (task / "comm").read_text().strip())
        return count

    @staticmethod
    def descriptors(pid):
        return len(os.listdir(f"/proc/{pid}/fd"))

    @staticmethod
    def cpu(pid):
        """Seconds of processor time that a process has used."""
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    # --- logs ------------------------------------------------------------------------------------

    def new_log(self):
        """What the error log got since it was last judged, in whole lines."""
        if not self.error_log.exists():
            return ""
        with open(self.error_log, "rb") as log:
            log.seek(self.read_to)
            return log.read().rpartition(b"\n")[0].decode(errors="surrogateescape")

    def expect_log(self, pattern):
        """The running test provokes a line like this; it has to appear, and is no fault."""
        self.expected.append(re.compile(pattern))

    def allow_log(self, pattern):
        """The running test may provoke a line like this, which is said once a minute."""
        self.allowed.append(re.compile(pattern))

    def judge_log(self):
        """Fails for a line of level warn or above, or one that tells of a crash or of a sanitizer's finding, that no
        test announced, and for an announced line that did not come."""
        expected, self.expected = self.expected, []
        allowed, self.allowed = self.allowed, []
        missing = []
        for pattern in expected:
            try:
                wait_until(lambda p=pattern: p.search(self.new_log()), 5)
            except AssertionError:
                missing.append(pattern.pattern)
        text = self.new_log()
        self.read_to += len(text.encode(errors="surrogateescape")) + (1 if text else 0)
        bad = [line for line in text.splitlines() if SUSPICIOUS.search(line)]
        bad = [line for line in bad if not MACHINE.search(line) and not ADVICE.search(line)]
        bad = [line for line in bad if not any(p.search(line) for p in expected + allowed)]
        if bad:
            raise UnexpectedLog("error log:\n" + "\n".join(bad))
        if missing:
            raise MissingLog(f"announced, but not in the error log: {missing}")

    def access(self, text, count=1, timeout=10.0, meanwhile=lambda: None):
        """Waits for `count` access-log lines whose request contains `text` and returns them; `meanwhile` is what the test
        does between two looks."""
        def lines():
            meanwhile()
            found = ACCESS.findall(self.access_log.read_text()) if self.access_log.exists() else []
            found = [f for f in found if text in f[8]]
            return found if len(found) >= count else None

        found = wait_until(lines, timeout, f"{count} access-log lines with {text!r}")
        return [Access(*map(int, f[:5]), *f[5:]) for f in found]

    def trail(self, name):
        """A new file for a plugin to append to."""
        path = self.trails / name
        path.unlink(missing_ok=True)
        return path

    @staticmethod
    def trail_lines(path):
        """What a plugin wrote there."""
        return path.read_text().splitlines() if path.exists() else []
