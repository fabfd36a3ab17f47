"""TLS by hand: clients that make their records themselves, and send them as they like.

Python's MemoryBIO gives control over the bytes of each record. What its ssl module has no word for
(KeyUpdate, renegotiation) takes OpenSSL's own functions.
"""

import ctypes
import ctypes.util
import functools
import re
import select
import ssl
import time
from pathlib import Path

from ws_frame import Client

VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


def exchange(client, data, expected):
    """Sends `data` and receives `expected` bytes, whichever way is open. (One thread: OpenSSL's
    connections do not stand two.)"""
    sock, view, deadline = client.sock, memoryview(data), time.monotonic() + 30
    sock.setblocking(False)
    while view or len(client.buffer) < expected:
        idle = True
        if view:
            try:
                view = view[sock.send(view[: 1 << 16]) :]
                idle = False
            except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
                pass
        try:
            received = sock.recv(1 << 16)
            assert received, "connection ended"
            client.buffer += received
            idle = False
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        if idle:
            assert time.monotonic() < deadline, f"stuck: {len(view)} to send, {len(client.buffer)} got"
            select.select([sock], [sock] if view else [], [], 1)
    sock.settimeout(client.timeout)


class Records(Client):
    """A client that makes its records itself: `cut` says into pieces of how many bytes they are cut
    on their way, so that no read of the server's brings a whole one."""

    def __init__(self, port, context, cut=None, session=None, name="localhost", **kw):
        super().__init__(port, **kw)
        self.cut, self.name = cut, name
        self.sent = self.received = 0  # bytes on the wire
        self.make_tls(context, session)
        while True:
            try:
                self.tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self.pass_on()
                received = self.sock.recv(1 << 16)
                assert received, "the connection ended in its handshake"
                self.incoming.write(received)
        self.pass_on()

    def make_tls(self, context, session):
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(
            self.incoming, self.outgoing, server_hostname=self.name, session=session
        )

    def request(self, path="/echo", headers=(), **kw):
        return super().request(path, headers, **{"Host": f"{self.name}:{self.port}", **kw})

    def pass_on(self):
        data = self.outgoing.read()
        step = self.cut or len(data)
        for at in range(0, len(data), step or 1):
            self.sock.sendall(data[at : at + step])
            if self.cut:
                time.sleep(0.0002)  # each a segment of its own, and mostly a read
        self.sent += len(data)

    def record(self, *data):
        """The bytes of one record, or of several if the data are more than one has room for."""
        self.tls.write(b"".join(data))
        return self.outgoing.read()

    def send_raw(self, data):
        self.sock.sendall(data)
        self.sent += len(data)

    def send(self, *data):
        self.tls.write(b"".join(data))
        self.pass_on()

    def receive(self, data):
        self.received += len(data)
        self.incoming.write(data)

    def fill(self, deadline):
        while True:
            try:
                data = self.tls.read(1 << 16)
                break
            except ssl.SSLWantReadError:
                self.pass_on()
                self.sock.settimeout(max(deadline - time.monotonic(), 0.001))
                try:
                    received = self.sock.recv(1 << 16)
                except ConnectionResetError:
                    received = b""
                finally:
                    self.sock.settimeout(self.timeout)
                if not received:
                    raise EOFError("the connection ended") from None
                self.receive(received)
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                raise EOFError("the connection ended") from None
        if not data:
            raise EOFError("the connection ended")
        self.buffer += data

    def expect_notify(self):
        """The server has to end with a close_notify, and the connection behind it."""
        deadline = time.monotonic() + self.timeout
        while True:
            try:
                data = self.tls.read(1 << 16)
                assert not data, f"more came instead of the end: {data[:80]!r}"
                break
            except ssl.SSLZeroReturnError:
                break
            except ssl.SSLWantReadError:
                self.sock.settimeout(max(deadline - time.monotonic(), 0.001))
                received = self.sock.recv(1 << 16)
                assert received, "the connection ended without a close_notify"
                self.receive(received)
        self.sock.settimeout(self.timeout)
        assert self.sock.recv(1) == b"", "something behind the close_notify"

    def exchange(self, steps, expected, timeout=30.0):
        """Takes the steps one after the other, data to write or things to do, and receives until `expected`
        bytes of data are there, whichever way is open."""
        steps, data, deadline = iter(steps), memoryview(b""), time.monotonic() + timeout
        busy = True
        self.sock.setblocking(False)
        while busy or len(self.buffer) < expected:
            while not data and busy:
                step = next(steps, None)
                if step is None:
                    busy = False
                    break
                step() if callable(step) else self.tls.write(step)
                data = memoryview(self.outgoing.read())
            read, write, _ = select.select([self.sock], [self.sock] if data else [], [], 1)
            assert time.monotonic() < deadline, f"stuck: {len(data)} to send, {len(self.buffer)} got"
            if write:
                n = self.sock.send(data)
                data, self.sent = data[n:], self.sent + n
            if read:
                received = self.sock.recv(1 << 16)
                assert received, "connection ended"
                self.receive(received)
                try:
                    while True:
                        self.buffer += self.tls.read(1 << 16)
                except ssl.SSLWantReadError:
                    pass
                # What reading made OpenSSL answer.
                data = memoryview(bytes(data) + self.outgoing.read())
        self.sock.settimeout(self.timeout)


@functools.lru_cache(maxsize=None)
def libssl():
    """The OpenSSL that Python itself uses, or the system's."""
    mapped = re.search(r"/\S*libssl[.-]\S*", Path("/proc/self/maps").read_text())
    lib = ctypes.CDLL(mapped.group() if mapped else ctypes.util.find_library("ssl"))
    for name in ("TLS_client_method", "SSL_CTX_new", "SSL_new", "BIO_new", "BIO_s_mem"):
        getattr(lib, name).restype = ctypes.c_void_p
    for name in ("SSL_CTX_ctrl", "SSL_ctrl", "BIO_ctrl"):
        getattr(lib, name).argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_long, ctypes.c_char_p]
        getattr(lib, name).restype = ctypes.c_long
    lib.SSL_get_version.restype = ctypes.c_char_p
    lib.ERR_get_error.restype = ctypes.c_ulong
    lib.ERR_error_string_n.argtypes = [ctypes.c_ulong, ctypes.c_char_p, ctypes.c_size_t]
    return lib


class Memory:
    """A BIO of OpenSSL's with the methods of Python's MemoryBIO."""

    def __init__(self):
        self.lib = libssl()
        self.bio = ctypes.c_void_p(self.lib.BIO_new(ctypes.c_void_p(self.lib.BIO_s_mem())))

    def write(self, data):
        assert not data or self.lib.BIO_write(self.bio, bytes(data), len(data)) == len(data)

    def read(self):
        size = self.lib.BIO_ctrl(self.bio, 10, 0, None)  # BIO_CTRL_PENDING
        data = ctypes.create_string_buffer(size or 1)
        read = self.lib.BIO_read(self.bio, data, size) if size else 0
        return data.raw[: max(read, 0)]


class Connection:
    """An SSL of OpenSSL's with the methods of Python's SSLObject, and some that this has not."""

    def __init__(self, incoming, outgoing, version, name):
        self.lib = lib = libssl()
        self.context = ctypes.c_void_p(lib.SSL_CTX_new(ctypes.c_void_p(lib.TLS_client_method())))
        for bound in (123, 124):  # SSL_CTRL_SET_MIN_PROTO_VERSION, …MAX…
            assert lib.SSL_CTX_ctrl(self.context, bound, int(VERSIONS[version]), None)
        self.ssl = ctypes.c_void_p(lib.SSL_new(self.context))
        lib.SSL_set_bio(self.ssl, incoming.bio, outgoing.bio)
        lib.SSL_ctrl(self.ssl, 55, 0, name.encode())  # SSL_CTRL_SET_TLSEXT_HOSTNAME
        lib.SSL_set_connect_state(self.ssl)

    def close(self):
        self.lib.SSL_free(self.ssl)
        self.lib.SSL_CTX_free(self.context)

    def call(self, name, *args):
        self.lib.ERR_clear_error()
        done = getattr(self.lib, name)(self.ssl, *args)
        if done > 0:
            return done
        error = self.lib.SSL_get_error(self.ssl, done)
        if error == 2:
            raise ssl.SSLWantReadError()
        if error == 6:
            raise ssl.SSLZeroReturnError()
        text = ctypes.create_string_buffer(256)
        self.lib.ERR_error_string_n(self.lib.ERR_get_error(), text, 256)
        raise ssl.SSLError(text.value.decode())

    def version(self):
        return self.lib.SSL_get_version(self.ssl).decode()

    def do_handshake(self):
        self.call("SSL_do_handshake")

    def write(self, data):
        data = bytes(data)
        assert self.call("SSL_write", data, len(data)) == len(data)

    def read(self, size):
        data = ctypes.create_string_buffer(size)
        read = self.call("SSL_read", data, size)
        return data.raw[:read]

    def key_update(self, both_ways):
        """Changes our keys, and asks for the server's new ones too if it is to be both ways (RFC 8446
        §4.6.3)."""
        self.call("SSL_key_update", int(both_ways))
        self.do_handshake()  # which is what sends it

    def renegotiate(self):
        self.call("SSL_renegotiate")
        self.do_handshake()


class Keys(Records):
    """A client that can change its keys: `version` stands in for a context, and no certificate is looked
    at."""

    def make_tls(self, context, session):
        self.incoming, self.outgoing = Memory(), Memory()
        self.tls = Connection(self.incoming, self.outgoing, context, self.name)

    def __exit__(self, *_):
        super().__exit__()
        self.tls.close()
