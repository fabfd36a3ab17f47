"""WebSockets over HTTP/2 (RFC 8441) by hand: streams that look like the clients of ws_frame.

The HTTP/2 is the library h2's; extended CONNECT, the frames of the WebSocket and what is asked of
the server are ours.
"""

import socket
import ssl
import time

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, RemoteSettingsChanged, ResponseReceived, StreamEnded, StreamReset
from h2.exceptions import StreamClosedError
from h2.settings import SettingCodes, Settings
from ws_frame import Client, Refused, Response


class Connection:
    """One HTTP/2 connection, for one thread. Any stream's wish for bytes serves all of them.

    Without `tls` it speaks HTTP/2 from the first byte (prior knowledge). `window` is what the
    server may send on a stream before it is granted more."""

    def __init__(self, port, tls=None, timeout=10.0, window=None, rcvbuf=None):
        self.port, self.timeout, self.streams, self.goaway = port, timeout, {}, None
        self.ended, self.unparsed = False, bytearray()
        self.sock = socket.socket()
        if rcvbuf:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
        self.sock.settimeout(timeout)
        self.sock.connect(("127.0.0.1", port))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.scheme = "https" if tls else "http"
        if tls:
            tls.set_alpn_protocols(["h2"])
            self.sock = tls.wrap_socket(self.sock, server_hostname="localhost")
            assert self.sock.selected_alpn_protocol() == "h2"
        self.h2 = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        if window is not None:
            initial = {SettingCodes.INITIAL_WINDOW_SIZE: window}
            self.h2.local_settings = Settings(client=True, initial_values=initial)
        self.h2.initiate_connection()
        self.h2.increment_flow_control_window((1 << 30) - 65535)  # of the connection as a whole
        self.settled = False
        self.flush()
        self.pump_until(lambda: self.settled, "the server's settings")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.sock.close()

    @property
    def offers_websockets(self):
        """Whether the server allows extended CONNECT (RFC 8441 §3)."""
        return self.h2.remote_settings.enable_connect_protocol == 1

    def flush(self):
        data = self.h2.data_to_send()
        if data:
            self.sock.sendall(data)

    def pump(self, deadline):
        """Reads once, and deals out what came."""
        if self.ended:
            raise EOFError("the HTTP/2 connection has ended")
        self.sock.settimeout(max(deadline - time.monotonic(), 0.001))
        try:
            data = self.sock.recv(1 << 16)
        except (ConnectionResetError, BrokenPipeError, ssl.SSLEOFError, ssl.SSLZeroReturnError):
            data = b""
        except socket.timeout as late:
            raise TimeoutError("nothing came") from late
        finally:
            self.sock.settimeout(self.timeout)
        if not data:
            self.ended = True
            return
        for event in self.h2.receive_data(self.without_goaway(data)):
            self.settled |= isinstance(event, RemoteSettingsChanged)
            stream = self.streams.get(getattr(event, "stream_id", None))
            if stream is None:
                continue
            if isinstance(event, ResponseReceived):
                stream.answer = dict(event.headers)
            elif isinstance(event, DataReceived):
                stream.buffer += event.data
                stream.owed += event.flow_controlled_length
                stream.grant()
            elif isinstance(event, StreamEnded):
                stream.ended = True
            elif isinstance(event, StreamReset):
                stream.ended, stream.reset_code = True, int(event.error_code)
        self.flush()

    def without_goaway(self, data):
        """Whole frames, but for a GOAWAY: the library drops all streams for it, while RFC 9113 §6.8
        lets those that the server has begun live on."""
        self.unparsed += data
        frames = bytearray()
        while len(self.unparsed) >= 9:
            size = 9 + int.from_bytes(self.unparsed[:3], "big")
            if len(self.unparsed) < size:
                break
            if self.unparsed[3] == 7:
                self.goaway = int.from_bytes(self.unparsed[13:17], "big")
            else:
                frames += self.unparsed[:size]
            del self.unparsed[:size]
        return bytes(frames)

    def pump_until(self, condition, what, timeout=None):
        deadline = time.monotonic() + (timeout or self.timeout)
        while not condition():
            assert time.monotonic() < deadline, f"{what}: did not come"
            self.pump(deadline)

    def get(self, path="/", method="GET"):
        """A plain request on a stream of its own: its status and its body."""
        stream = Stream(self)
        stream.start([(":method", method), (":path", path)], end=True)
        self.pump_until(lambda: stream.ended, f"the answer to {method} {path}")
        return int(stream.answer[":status"]), bytes(stream.buffer)

    def websocket(self, path="/echo", headers=(), **kw):
        """A WebSocket on a stream of its own."""
        stream = Stream(self)
        stream.upgrade(path, headers, **kw)
        return stream


class Stream(Client):
    """A stream, with the methods of ws_frame's Client: what a Client does with its socket, a stream
    does with its part of the connection."""

    def __init__(self, connection, reading=True):
        self.connection, self.timeout, self.port = connection, connection.timeout, connection.port
        self.sock = connection.sock
        self.buffer, self.answer, self.ended, self.reset_code = bytearray(), None, False, None
        self.owed, self.reading = 0, reading
        self.id = connection.h2.get_next_available_stream_id()
        connection.streams[self.id] = self

    def __exit__(self, *_):
        pass

    def start(self, fields, end=False):
        connection = self.connection
        fields = [*fields, (":scheme", connection.scheme), (":authority", f"localhost:{self.port}")]
        fields.sort(key=lambda field: not field[0].startswith(":"))
        connection.h2.send_headers(self.id, fields, end_stream=end)
        connection.flush()

    def grant(self):
        """Lets the server send as much as it has sent, unless the stream is not to be read."""
        if self.reading and self.owed:
            owed, self.owed = self.owed, 0
            try:
                self.connection.h2.acknowledge_received_data(owed, self.id)
            except StreamClosedError:
                pass

    def read_on(self):
        """Begins to read."""
        self.reading = True
        self.grant()
        self.connection.flush()

    # --- what a Client does with its socket --------------------------------------------------

    def ask(self, path="/echo", headers=(), version="13", protocol="websocket", end=False):
        """An extended CONNECT (RFC 8441 §4), and the answer to it."""
        fields = [(":method", "CONNECT"), (":path", path)]
        fields += [(":protocol", protocol)] if protocol else []
        fields += [("sec-websocket-version", version)] if version else []
        self.start([*fields, *((name.lower(), value) for name, value in headers)], end)
        self.connection.pump_until(lambda: self.answer or self.ended, "an answer")
        assert self.answer, f"reset ({self.reset_code}) without an answer"
        headers = {k: v for k, v in self.answer.items() if not k.startswith(":")}
        return Response(int(self.answer[":status"]), headers, str(self.answer))

    def upgrade(self, path="/echo", headers=(), **kw):
        response = self.ask(path, headers, **kw)
        if response.status != 200:
            raise Refused(response)
        return response

    def send(self, *data):
        view, h2 = memoryview(b"".join(data)), self.connection.h2
        deadline = time.monotonic() + self.timeout
        while view:
            room = min(h2.local_flow_control_window(self.id), h2.max_outbound_frame_size)
            try:
                if not room:
                    self.connection.pump(deadline)
                    continue
                h2.send_data(self.id, bytes(view[:room]))
            except (StreamClosedError, EOFError) as ended:  # as a socket's peer may have closed it
                raise BrokenPipeError("the stream has ended") from ended
            self.connection.flush()
            view = view[room:]

    def fill(self, deadline):
        before = len(self.buffer)
        while len(self.buffer) == before:
            if self.ended:
                raise EOFError(f"stream ended; unread: {bytes(self.buffer[:80])!r}")
            self.connection.pump(deadline)

    def end(self):
        """Ends our half of the stream."""
        self.connection.h2.end_stream(self.id)
        self.connection.flush()

    def reset(self, code=8):
        """Vanishes with RST_STREAM (CANCEL)."""
        self.connection.h2.reset_stream(self.id, code)
        self.connection.flush()
        self.ended = True
