"""permessage-deflate (RFC 7692), with Python's zlib as the other side."""

import asyncio
import contextlib
import json
import random
import re
import shutil
import subprocess
import threading
import time
import zlib
from pathlib import Path
from typing import NamedTuple

import pytest
from channels import META, publish, publishing, room
from websockets.asyncio.client import connect as dial
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from ws_frame import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, Client, close_frame, frame, silent

from httpd import DETACH, DETACHED, TLS, debug, echo, location, wait_until

NAME = "permessage-deflate"
HEADER = "Sec-WebSocket-Extensions"
RSV1 = 4  # as ws_frame counts the reserved bits
TAIL = b"\x00\x00\xff\xff"  # RFC 7692 §7.2.1: what the sender of a message cuts off
TAKEOVER = "WebSocketCompressionContextTakeover"


def deflating(path, *directives):
    """A Location with the echo example that compresses."""
    return echo(path, "WebSocketCompression On", *directives)


def takeovers(*directives, below=""):
    """One Location for each way to keep contexts: /none, /server, /client, /both."""
    return "".join(
        deflating(f"{below}/{who.lower()}", f"{TAKEOVER} {who}", *directives)
        for who in ("None", "Server", "Client", "Both")
    )


def sections(*directives):
    """The same once more below /blocking, where a connection stays with a thread of httpd's."""
    return DETACH + TLS + takeovers(*directives) + takeovers("WebSocketDetach Off", *directives, below="/blocking")


WAYS = ["detached", "blocking", "tls"]  # who moves the bytes


def ended(httpd, mark, count=1):
    """Waits for the access log's lines about the ends of `count` connections."""

    def lines():
        found = [line for line in httpd.access(mark) if line.close_code != "-"]
        return found if len(found) >= count else None

    return wait_until(lines, 10, f"{count} ends of {mark}")


def parameters(value):
    """The parameters of an answer, which has to be one extension in the RFC's form."""
    name, *rest = re.split(r";\s*", value)
    assert name == NAME, value
    parsed = {}
    for part in rest:
        matched = re.fullmatch(
            r"((?:server|client)_no_context_takeover)|((?:server|client)_max_window_bits)=([89]|1[0-5])",
            part,
        )
        assert matched, f"{part!r} in {value!r}"
        flag, window, bits = matched.groups()
        assert (flag or window) not in parsed, f"twice: {value!r}"
        parsed[flag or window] = int(bits) if window else True
    return parsed


def pack(data, compressor=None):
    """The payload of a compressed message (RFC 7692 §7.2.1)."""
    compressor = compressor or zlib.compressobj(9, zlib.DEFLATED, -15)
    if isinstance(data, str):
        data = data.encode()
    packed = compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH)
    assert packed.endswith(TAIL)
    return packed[:-4]


def unpack_exactly(inflater, data):
    """Inflates byte by byte: zlib sees what it has just put out, however far back, so that only this holds it to
    the window that it was made for."""
    out = bytearray()
    for at in range(0, len(data), 32):
        piece = data[at : at + 32]
        while True:
            got = inflater.decompress(piece, 1)
            out += got
            piece = inflater.unconsumed_tail
            if not got and not piece:
                break
    return bytes(out)


class Message(NamedTuple):
    """What the server sent, inflated."""

    opcode: int
    data: bytes
    compressed: bool
    size: int  # of the payload on the wire


class Peer(Client):
    """A client that compresses with zlib, as agreed, or sends what it is told to."""

    agreed = None
    exact = False  # inflate byte by byte
    rsv1 = False  # of the frame that was read last

    def offer(self, path, *offers, headers=(), **kw):
        """Upgrades with one header field per offer; gives the answer's parameters, None if there is none."""
        offers = offers or (NAME,)
        response = self.upgrade(path, [*((HEADER, offer) for offer in offers), *headers], **kw)
        assert response.head.lower().count(HEADER.lower()) <= 1
        answer = response.headers.get(HEADER.lower())
        assert answer != "", "an empty header"
        self.agreed = None if answer is None else parameters(answer)
        self.compressor = self.decompressor = None
        return self.agreed

    # --- to the server -------------------------------------------------------------------------

    def pack(self, data):
        bits = self.agreed.get("client_max_window_bits", 15)
        if self.compressor is None:
            self.compressor = zlib.compressobj(6, zlib.DEFLATED, -bits)
        packed = pack(data, self.compressor)
        if self.agreed.get("client_no_context_takeover"):
            self.compressor = None
        return packed

    def tell(self, data, opcode=None):
        """Sends a compressed message."""
        opcode = opcode or (TEXT if isinstance(data, str) else BINARY)
        self.send(frame(opcode, self.pack(data), rsv=RSV1))

    # --- from the server -----------------------------------------------------------------------

    def read_frame(self, timeout=None):
        deadline = time.monotonic() + (timeout or self.timeout)
        while not self.buffer:
            self.fill(deadline)
        self.rsv1 = bool(self.buffer[0] & 0x40)
        if self.rsv1:
            assert self.agreed is not None, "RSV1 without an agreement"
            assert self.buffer[0] & 0x0F in (TEXT, BINARY), "RSV1 on a frame that begins no message"
            self.buffer[0] &= 0xBF
        return super().read_frame(timeout)

    def read_message(self, timeout=None):
        got = self.read_frame(timeout)
        if not self.rsv1:
            return Message(got.opcode, got.payload, False, len(got.payload))
        assert got.fin
        if self.decompressor is None:
            self.decompressor = zlib.decompressobj(-self.agreed.get("server_max_window_bits", 15))
        inflate = unpack_exactly if self.exact else lambda d, payload: d.decompress(payload)
        data = inflate(self.decompressor, got.payload + TAIL)
        assert not self.decompressor.unused_data
        if self.decompressor.eof or self.agreed.get("server_no_context_takeover"):
            self.decompressor = None
        return Message(got.opcode, data, True, len(got.payload))

    def expect_message(self, data, opcode=None, compressed=None, timeout=None):
        got = self.read_message(timeout)
        opcode = opcode or (TEXT if isinstance(data, str) else BINARY)
        data = data.encode() if isinstance(data, str) else data
        assert got.opcode == opcode, f"{got.opcode:#x} {got.data[:60]!r}"
        assert got.data == data, f"expected {data[:60]!r} ({len(data)}), got {got.data[:60]!r} ({len(got.data)})"
        assert compressed in (None, got.compressed), f"compressed: {got.compressed}"
        return got

    def echo(self, data, **kw):
        self.tell(data)
        return self.expect_message(data, **kw)


@pytest.fixture
def peer(httpd):
    """Opens connections that speak permessage-deflate: `peer(path, offer…)`."""
    with contextlib.ExitStack() as stack:

        def opened(path="/both", *offers, way="detached", rcvbuf=None, **kw):
            if way == "blocking":
                path = "/blocking" + path
            if way == "tls":
                client = Peer(httpd.tls_port, tls=httpd.tls_context())
            else:
                client = Peer(httpd.port, rcvbuf=rcvbuf)
            stack.enter_context(client)
            client.offer(path, *offers, **kw)
            return client

        yield opened


def sentences(size, seed=0):
    """`size` bytes of text as compressible as chatter is."""
    words = random.Random(seed)
    text = " ".join(f"{words.choice(('alpha', 'beta', 'gamma', 'delta'))}={words.randrange(999)}"
                    for _ in range(size // 6 + 1))
    return text[:size]


def noise(size, seed=0):
    """`size` bytes that nothing compresses."""
    return random.Random(seed).randbytes(size)


def far_repeats(size, seed=0):
    """Noise full of repeats at distances just inside, on and just outside each window."""
    choice = random.Random(seed)
    distances = [(1 << bits) + d for bits in range(9, 16) for d in (-270, -262, -261, -1, 0, 1, 40)]
    distances += [255, 256, 257, 296]
    data = bytearray(choice.randbytes(64))
    while len(data) < size:
        possible = [d for d in distances if d <= len(data)]
        if possible and choice.random() < 0.7:
            start = len(data) - choice.choice(possible)
            data += data[start : start + 24]
        else:
            data += choice.randbytes(16)
    return bytes(data[:size])


# --- configuration ---------------------------------------------------------------------------------


@pytest.mark.once
class TestDirectives:
    GOOD = [
        "WebSocketCompression On", "WebSocketCompression off",
        "WebSocketCompressionLevel 1", "WebSocketCompressionLevel 9",
        "WebSocketCompressionMinSize 1", "WebSocketCompressionMinSize 4k",
        f"{TAKEOVER} None", f"{TAKEOVER} server", f"{TAKEOVER} Client", f"{TAKEOVER} BOTH",
        "WebSocketCompressionWindowBits 9", "WebSocketCompressionWindowBits 15",
        "WebSocketCompressionWindowBits 15 9", "WebSocketCompressionWindowBits 10 15",
    ]
    BAD = [
        ("WebSocketCompression", "Maybe", ["On or Off"]),
        ("WebSocketCompression", "", []),
        *(
            ("WebSocketCompressionLevel", value, ["1", "9"])
            for value in ("0", "10", "-1", "+1", "x", "1.5", "1k", "257")
        ),
        ("WebSocketCompressionLevel", "", []),
        ("WebSocketCompressionLevel", "1 2", []),
        *(("WebSocketCompressionMinSize", value, ["bytes"]) for value in ("0", "-1", "64X", "x")),
        ("WebSocketCompressionMinSize", "", []),
        *((TAKEOVER, value, ["None", "Server", "Client", "Both"]) for value in ("On", "Some", "Server,Client")),
        (TAKEOVER, "Server Client", []),
        *(
            ("WebSocketCompressionWindowBits", value, ["9", "15"])
            for value in ("8", "16", "0", "-9", "x", "10 8", "10 16", "8 10", "16 10", "10 x")
        ),
        ("WebSocketCompressionWindowBits", "", []),
        ("WebSocketCompressionWindowBits", "9 10 11", []),
    ]

    @pytest.mark.parametrize("line", GOOD)
    def test_accepted(self, httpd, line):
        for conf in (line, echo("/x", line), f"<VirtualHost *:${{PORT}}>\n{line}\n</VirtualHost>",
                     f'<Directory "${{ROOT}}/htdocs">\n{line}\n</Directory>'):
            checked = httpd.check(conf)
            assert checked.ok, checked.output

    @pytest.mark.parametrize("directive, value, words", BAD)
    def test_refused(self, httpd, directive, value, words):
        httpd.check(echo("/x", f"{directive} {value}")).refused(directive, *words, at=f"    {directive}")

    @pytest.mark.parametrize("size", ["1", "64k", "64M", "1G"])
    def test_memory_bound(self, httpd, size):
        checked = httpd.check(f"WebSocketMemoryLimit {size}")
        assert checked.ok, checked.output

    @pytest.mark.parametrize("value", ["-1", "64X", "x", "", "1k 2k"])
    def test_memory_bound_refused(self, httpd, value):
        line = f"WebSocketMemoryLimit {value}"
        httpd.check(line).refused("WebSocketMemoryLimit", at=line)

    @pytest.mark.parametrize(
        "section", ["Location /x", 'Directory "${ROOT}/htdocs"', "VirtualHost *:${PORT}"]
    )
    def test_memory_belongs_to_the_process(self, httpd, section):
        line = "WebSocketMemoryLimit 1M"
        conf = f"<{section}>\n{line}\n</{section.split()[0]}>"
        httpd.check(conf).refused("WebSocketMemoryLimit", at=line)


@pytest.mark.once
class TestHtaccess:
    CONF = '<Directory "${ROOT}/htdocs">\n    AllowOverride All\n</Directory>'

    @pytest.mark.parametrize(
        "line",
        ["WebSocketCompression On", "WebSocketCompressionLevel 1", "WebSocketCompressionMinSize 1k", f"{TAKEOVER} Both",
         "WebSocketCompressionWindowBits 10", "WebSocketMemoryLimit 1G"],
    )
    def test_for_the_administrator_only(self, httpd, connect, line):
        folder = httpd.root / "htdocs/override"
        folder.mkdir(exist_ok=True)
        (folder / "index.html").write_text("hidden\n")
        (folder / ".htaccess").write_text(line + "\n")
        httpd.expect_log(rf"override/\.htaccess: {line.split()[0]} not allowed here")
        client = connect()
        client.send(b"GET /override/index.html HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert client.read_response().status == 500


# --- negotiation -----------------------------------------------------------------------------------

S, C = "server_no_context_takeover", "client_no_context_takeover"
SW, CW = "server_max_window_bits", "client_max_window_bits"


@pytest.mark.once
class TestNegotiation:
    CONF = echo("/default") + echo("/off", "WebSocketCompression Off") + takeovers()

    def test_off_by_default(self, peer):
        assert peer("/default").agreed is None
        assert peer("/off").agreed is None

    def test_nothing_offered(self, ws):
        client = ws("/both")
        client.send(frame(TEXT, "a" * 1000))
        client.expect(TEXT, "a" * 1000)
        client.send(frame(TEXT, pack("hello"), rsv=RSV1))
        client.expect_close(1002)

    @pytest.mark.parametrize(
        "path, expected",
        [("/none", {S: True, C: True}), ("/server", {C: True}), ("/client", {S: True}), ("/both", {})],
    )
    def test_takeover_is_the_servers_to_allow(self, peer, path, expected):
        assert peer(path).agreed == expected

    @pytest.mark.parametrize("path", ["/none", "/server", "/client", "/both"])
    @pytest.mark.parametrize("asked", [{S}, {C}, {S, C}])
    def test_takeover_is_the_clients_to_decline(self, peer, path, asked):
        agreed = peer(path, "; ".join([NAME, *sorted(asked)])).agreed
        assert asked <= agreed.keys() <= {S, C}

    @pytest.mark.parametrize(
        "offer, expected",
        [
            (NAME, {}),
            ("Permessage-DEFLATE", {}),
            (f"  {NAME}  ", {}),
            (f"{NAME};{S};{C}", {S: True, C: True}),
            (f"{NAME} ; {C} ; {S}", {S: True, C: True}),
            *((f"{NAME}; {SW}={bits}", {SW: bits}) for bits in range(9, 16)),
            (f'{NAME}; {SW}="10"', {SW: 10}),
            (f"{NAME}; {SW} = 10", {SW: 10}),
            (f"{NAME}; {CW}", {}),
            (f"{NAME}; {CW}=15", {}),
            *((f"{NAME}; {CW}={bits}", {CW: bits}) for bits in range(9, 15)),
            # The smallest window lies inside any other; it is no promise that the answer has to repeat.
            (f"{NAME}; {CW}=8", {}),
            (f"{NAME}; {SW}=9; {CW}=9; {S}; {C}", {SW: 9, CW: 9, S: True, C: True}),
        ],
    )
    def test_accepted(self, peer, offer, expected):
        client = peer("/both", offer)
        assert client.agreed == expected or (expected == {} and client.agreed in ({CW: 15}, {}))
        client.echo(sentences(5000))

    DECLINED = [
        "", "x-webkit-deflate-frame", "permessage-bzip2", "deflate", "permessage-deflat", f"{NAME}x",
        f"{NAME}; {SW}=8", f"{NAME}; {SW}=7", f"{NAME}; {SW}=16", f"{NAME}; {SW}=0", f"{NAME}; {SW}=010",
        f"{NAME}; {SW}=+10", f"{NAME}; {SW}=-10", f"{NAME}; {SW}=1e1", f"{NAME}; {SW}=266", f"{NAME}; {SW}=",
        f"{NAME}; {SW}", f'{NAME}; {SW}="10', f"{NAME}; {SW}='10'",
        f"{NAME}; {CW}=7", f"{NAME}; {CW}=16", f"{NAME}; {CW}=09", f"{NAME}; {CW}=", f"{NAME}; {CW}=x",
        f"{NAME}; {S}=1", f"{NAME}; {C}=true", f"{NAME}; {S}=", f'{NAME}; {C}=""',
        f"{NAME}; unknown", f"{NAME}; unknown=1", f"{NAME}; {S}; x",
        f"{NAME}; {S}; {S}", f"{NAME}; {C}; {C}", f"{NAME}; {SW}=10; {SW}=10", f"{NAME}; {CW}; {CW}=10",
        f'x; y="{NAME}"', f'x; y="a, {NAME}"', f"{NAME}; {SW}=1\xe9",
    ]

    @pytest.mark.parametrize("offer", DECLINED)
    def test_declined(self, peer, offer):
        """The connection is opened without the extension, and the answer does not name it."""
        client = peer("/both", offer)
        assert client.agreed is None
        client.send(frame(TEXT, "a" * 1000))
        client.expect_message("a" * 1000, compressed=False)

    @pytest.mark.parametrize(
        "offers, expected",
        [
            ([f"{NAME}; {SW}=8, {NAME}"], {}),
            ([f"{NAME}; {SW}=8", NAME], {}),
            ([f"{NAME}; unknown, {NAME}; {SW}=16", f"{NAME}; {SW}=11"], {SW: 11}),
            # The first that will do is the one that the client likes best (§5.1).
            ([f"{NAME}; {SW}=12, {NAME}; {SW}=10"], {SW: 12}),
            ([f"{NAME}; {SW}=12", f"{NAME}; {SW}=10"], {SW: 12}),
            (["x-other; a=1, x-more", f"{NAME}; {S}", "x-last"], {S: True}),
            ([f'x; y="\\", z", {NAME}; {C}'], {C: True}),
            ([f",, {NAME}; {S} ,"], {S: True}),
            ([f"{NAME}; {SW}=8, {NAME}; {CW}=16"], None),
            ([f"{NAME}; {SW}=8", f"{NAME}; {CW}=16"], None),
        ],
    )
    def test_several_offers(self, peer, offers, expected):
        client = peer("/both", *offers)
        assert client.agreed == expected
        if expected is not None:
            client.echo(sentences(5000))

    @pytest.mark.parametrize("version", ["13", "8", "7"])
    def test_protocol_versions(self, peer, version):
        client = peer("/both", Sec_WebSocket_Version=version)
        if client.agreed is not None:
            client.echo(sentences(1000))

    def test_a_refused_handshake_agrees_on_nothing(self, connect):
        response = connect().ask("/both", [(HEADER, NAME), ("Origin", "http://elsewhere.example")])
        assert response.status == 403 and HEADER.lower() not in response.headers


@pytest.mark.once
class TestConfiguredWindows:
    CONF = (
        deflating("/s10", "WebSocketCompressionWindowBits 10 15", f"{TAKEOVER} Both")
        + deflating("/c11", "WebSocketCompressionWindowBits 15 11", f"{TAKEOVER} Both")
        + deflating("/one", "WebSocketCompressionWindowBits 12")
    )

    @pytest.mark.parametrize(
        "path, offer, expected",
        [
            ("/s10", NAME, {SW: 10}),
            ("/s10", f"{NAME}; {SW}=15", {SW: 10}),
            ("/s10", f"{NAME}; {SW}=9", {SW: 9}),
            ("/s10", f"{NAME}; {CW}", {SW: 10}),
            ("/c11", NAME, {}),
            ("/c11", f"{NAME}; {CW}", {CW: 11}),
            ("/c11", f"{NAME}; {CW}=15", {CW: 11}),
            ("/c11", f"{NAME}; {CW}=10", {CW: 10}),
            ("/c11", f"{NAME}; {CW}=8", {}),
        ],
    )
    def test_narrowed(self, peer, path, offer, expected):
        client = peer(path, offer)
        assert client.agreed == expected
        client.exact = True
        for seed in range(3):
            data = far_repeats(40_000, seed)
            client.echo(data)

    def test_one_number(self, peer):
        assert peer("/one").agreed[SW] == 12


@pytest.mark.once
class TestInheritance:
    CONF = (
        f"WebSocketCompression On\nWebSocketCompressionMinSize 500\n{TAKEOVER} Server\n"
        + echo("/outer")
        + echo("/off", "WebSocketCompression Off")
        + echo("/small", "WebSocketCompressionMinSize 10")
        + echo("/client", f"{TAKEOVER} Client")
    )

    def test_inner_sections_override_what_they_set(self, peer):
        assert peer("/off").agreed is None
        for path, agreed, size in (("/outer", {C: True}, 500), ("/small", {C: True}, 10), ("/client", {S: True}, 500)):
            client = peer(path)
            assert client.agreed == agreed
            client.echo("a" * (size - 1), compressed=False)
            client.echo("a" * size, compressed=True)


# --- messages --------------------------------------------------------------------------------------

PATHS = ["/none", "/server", "/client", "/both"]


class TestMessages:
    CONF = sections() + debug("/debug", "WebSocketCompression On", f"{TAKEOVER} Both")

    @pytest.fixture(params=WAYS)
    def way(self, request):
        return request.param

    @pytest.mark.parametrize("path", PATHS)
    def test_sizes(self, peer, path, way):
        client = peer(path, way=way)
        for size in (1, 63, 64, 125, 126, 1000, 16_384, 65_535, 65_536, 100_000, 1 << 20):
            client.echo(sentences(size, size))
            client.echo(noise(min(size, 200_000), size))
        client.close()

    @pytest.mark.parametrize("path", PATHS)
    def test_what_is_kept_from_message_to_message(self, peer, path):
        """With the server's context a repeated message is a few bytes; without, the same again."""
        client = peer(path)
        text = noise(1000).hex()
        sizes = [client.echo(text, compressed=True).size for _ in range(5)]
        if S in client.agreed:
            assert len(set(sizes)) == 1 and sizes[0] > 1000
        else:
            assert sizes[0] > 1000 and all(size < 60 for size in sizes[1:]), sizes

    @pytest.mark.parametrize("path", ["/client", "/both"])
    def test_a_client_may_keep_its_context(self, peer, path):
        client = peer(path)
        text = noise(1000).hex()
        assert len(client.pack(text)) > 1000
        client.compressor = None
        for size in (2000, 60, 60):
            packed = client.pack(text)
            assert len(packed) <= size
            client.send(frame(TEXT, packed, rsv=RSV1))
            client.expect_message(text)

    @pytest.mark.parametrize("path", ["/none", "/server"])
    def test_a_client_that_keeps_it_in_spite_of_the_answer(self, peer, path):
        client, kept = peer(path), zlib.compressobj(6, zlib.DEFLATED, -15)
        text = noise(1000).hex()
        client.send(frame(TEXT, pack(text, kept), rsv=RSV1))
        client.expect_message(text)
        client.send(frame(TEXT, pack(text, kept), rsv=RSV1))
        client.expect_close(1007)

    @pytest.mark.parametrize("path", PATHS)
    def test_plain_messages_in_between(self, peer, path):
        """A message may go without compression; the contexts do not notice."""
        client, text = peer(path), sentences(3000)
        for turn in range(20):
            client.tell(f"{turn} {text}")
            client.send(frame(TEXT, f"plain {turn} {text}"))
            client.send(frame(BINARY, b"short"))
            client.expect_message(f"{turn} {text}")
            client.expect_message(f"plain {turn} {text}")
            client.expect_message(b"short")

    @pytest.mark.parametrize("path", PATHS)
    def test_empty_messages(self, peer, path):
        client = peer(path)
        for opcode in (TEXT, BINARY):
            client.send(frame(opcode), frame(opcode, b"\x00", rsv=RSV1))  # §7.2.3.6
            client.expect_message(b"", opcode=opcode)
            client.expect_message(b"", opcode=opcode)
        client.echo("")
        client.send(frame(TEXT, b"", fin=False, rsv=RSV1), frame(CONTINUATION, b"\x00", fin=False), frame(CONTINUATION))
        client.expect_message("")
        client.echo(sentences(1000), compressed=True)

    @pytest.mark.parametrize("path", PATHS)
    def test_fragments_with_control_frames_between(self, peer, path, way):
        client = peer(path, way=way)
        for size in (1, 2, 7, 200):
            text = sentences(1500, size)
            packed = client.pack(text)
            pieces = [packed[at : at + size] for at in range(0, len(packed), size)]
            client.send(frame(TEXT, b"", fin=False, rsv=RSV1))
            for number, piece in enumerate(pieces):
                client.send(frame(PING, f"{number}"), frame(CONTINUATION, piece, fin=False), frame(PONG, "unasked"))
            client.send(frame(CONTINUATION, b""))
            for number in range(len(pieces)):
                client.expect(PONG, f"{number}")
            client.expect_message(text)

    def test_byte_by_byte(self, peer):
        client = peer("/both")
        for seed in range(3):
            text = sentences(300, seed)
            for byte in frame(TEXT, client.pack(text), rsv=RSV1):
                client.send(bytes([byte]))
            client.expect_message(text)

    def test_uncompressed_fragments(self, peer):
        client = peer("/both")
        client.send(frame(TEXT, "a" * 100, fin=False), frame(PING), frame(CONTINUATION, "b" * 100))
        client.expect(PONG, b"")
        client.expect_message("a" * 100 + "b" * 100, compressed=True)

    def test_the_plugin_may_scribble(self, peer):
        """Its buffer is no part of the inflater's window."""
        client = peer("/debug")
        text = "scribble" + noise(1000).hex()
        for _ in range(3):
            client.tell(text)
            client.expect_message("#" * len(text), compressed=True)

    @pytest.mark.parametrize("path", PATHS)
    def test_many_in_flight(self, peer, path, way):
        client = peer(path, way=way)
        texts = [sentences(50 + n % 700, n) for n in range(1000)]
        for start in range(0, len(texts), 100):
            client.send(b"".join(frame(TEXT, client.pack(text), rsv=RSV1) for text in texts[start : start + 100]))
            for text in texts[start : start + 100]:
                client.expect_message(text)
        client.close()


@pytest.mark.once
class TestWindows:
    """The server compresses inside the window that was asked for, and uses all of it."""

    CONF = "".join(
        deflating(f"/{who.lower()}{level}", f"{TAKEOVER} {who}", f"WebSocketCompressionLevel {level}")
        for who in ("None", "Both") for level in (1, 3, 6, 9)
    )

    @pytest.mark.parametrize("level", [1, 3, 6, 9])
    @pytest.mark.parametrize("bits", range(9, 16))
    @pytest.mark.parametrize("path", ["/none", "/both"])
    def test_the_servers(self, peer, path, bits, level):
        client = peer(f"{path}{level}", f"{NAME}; {SW}={bits}")
        assert client.agreed[SW] == bits
        client.exact = True
        for seed in range(2):
            client.echo(far_repeats(90_000, seed), compressed=True)

    @pytest.mark.parametrize("bits", range(10, 16))
    def test_is_used(self, peer, bits):
        """Half the window is not enough to inflate it."""
        client = peer("/none9", f"{NAME}; {SW}={bits}")
        client.exact = True
        client.agreed[SW] = bits - 1
        client.tell(far_repeats(90_000))
        with pytest.raises(zlib.error, match="too far back"):
            client.read_message()

    @pytest.mark.parametrize("bits", range(9, 16))
    @pytest.mark.parametrize("path", ["/none6", "/both6"])
    def test_the_clients(self, peer, path, bits):
        client = peer(path, f"{NAME}; {CW}={bits}")
        assert client.agreed.get(CW, 15) == bits
        for seed in range(3):
            client.echo(far_repeats(90_000, seed))

    def test_of_eight_bits_is_the_clients_hint(self, peer):
        """The answer does not promise it; what such a client sends is inflated all the same."""
        client = peer("/both6", f"{NAME}; {CW}=8")
        assert CW not in client.agreed
        client.compressor = zlib.compressobj(6, zlib.DEFLATED, -9)
        for seed in range(3):
            client.echo(far_repeats(20_000, seed))


@pytest.mark.once
class TestWhatIsCompressed:
    CONF = (
        takeovers()
        + deflating("/100", "WebSocketCompressionMinSize 100")
        + deflating("/all", "WebSocketCompressionMinSize 1")
    )

    @pytest.mark.parametrize("path, size", [("/none", 64), ("/100", 100), ("/all", 20)])
    def test_from_the_smallest_size_on(self, peer, path, size):
        client = peer(path)
        if path != "/all":
            client.echo("a" * (size - 1), compressed=False)
        client.echo("a" * size, compressed=True)

    def test_control_frames_never_are(self, peer):
        client = peer("/all")
        client.send(frame(PING, b"a" * 125))
        client.expect(PONG, b"a" * 125)

    @pytest.mark.parametrize("path", ["/none", "/client"])
    @pytest.mark.parametrize("size", [64, 1000, 70_000])
    def test_what_does_not_shrink_goes_plain(self, peer, path, size):
        client = peer(path)
        for seed in range(3):
            assert client.echo(noise(size, seed), compressed=False).size == size
            client.echo(sentences(size, seed), compressed=True)

    @pytest.mark.parametrize("path", ["/server", "/both"])
    def test_with_a_context_it_stays_in_step(self, peer, path):
        """Compressed or not, what follows must not refer to bytes that the client does not have."""
        client = peer(path)
        data = noise(5000)
        for _ in range(3):
            got = client.echo(data)
            assert got.size <= len(data) * 9 // 8 + 16  # the most that fixed codes take
            client.echo(data[1000:3000].hex())


@pytest.mark.once
class TestSamples:
    """The payloads of RFC 7692 §7.2.3, and more that its rules allow."""

    CONF = takeovers() + deflating("/small", f"{TAKEOVER} Both", "WebSocketMaxMessageSize 100k")
    HELLO = bytes.fromhex("f248cdc9c90700")

    def hello(self, client, *payloads):
        for payload in payloads:
            client.send(frame(TEXT, payload, rsv=RSV1))
            client.expect_message("Hello")

    @pytest.mark.parametrize("path", PATHS)
    def test_one_block(self, peer, path):
        self.hello(peer(path), self.HELLO, self.HELLO)

    @pytest.mark.parametrize("path", PATHS)
    def test_two_fragments(self, peer, path):
        client = peer(path)
        client.send(frame(TEXT, self.HELLO[:3], fin=False, rsv=RSV1), frame(CONTINUATION, self.HELLO[3:]))
        client.expect_message("Hello")

    @pytest.mark.parametrize("path", ["/client", "/both"])
    def test_sharing_the_window(self, peer, path):
        self.hello(peer(path), self.HELLO, bytes.fromhex("f200110000"))

    @pytest.mark.parametrize("path", PATHS)
    def test_no_compression(self, peer, path):
        self.hello(peer(path), bytes.fromhex("000500faff48656c6c6f00"), self.HELLO)

    @pytest.mark.parametrize("path", PATHS)
    def test_final_block(self, peer, path):
        final = bytes.fromhex("f348cdc9c9070000")
        self.hello(peer(path), final, final, self.HELLO, final)

    @pytest.mark.parametrize("path", PATHS)
    def test_two_blocks(self, peer, path):
        self.hello(peer(path), bytes.fromhex("f248050000 00ffffcac9c9070 0".replace(" ", "")), self.HELLO)

    @pytest.mark.parametrize("path", PATHS)
    def test_final_blocks_with_more_behind(self, peer, path):
        """One message, three deflate streams."""
        client, parts = peer(path), [sentences(2000, n) for n in range(3)]
        packed = b""
        for part in parts[:2]:
            stream = zlib.compressobj(9, zlib.DEFLATED, -15)
            packed += stream.compress(part.encode()) + stream.flush()
        packed += pack(parts[2])
        for size in (len(packed), 1):
            cut = [packed[at : at + size] for at in range(0, len(packed), size)]
            frames = [frame(CONTINUATION, piece, fin=False) for piece in cut]
            client.send(frame(TEXT, b"", fin=False, rsv=RSV1), *frames, frame(CONTINUATION, b""))
            client.expect_message("".join(parts))
        self.hello(client, self.HELLO)

    @pytest.mark.parametrize(
        "level, strategy",
        [(0, 0), (1, 0), (9, zlib.Z_FILTERED), (9, zlib.Z_HUFFMAN_ONLY), (9, zlib.Z_RLE), (9, zlib.Z_FIXED)],
    )
    def test_kinds_of_blocks(self, peer, level, strategy):
        client = peer("/both")
        client.compressor = zlib.compressobj(level, zlib.DEFLATED, -15, 8, strategy)
        for size in (10, 1000, 200_000):
            client.echo(sentences(size))
            client.echo(noise(size))

    def test_flushes_inside_a_message(self, peer):
        client, compressor = peer("/both"), zlib.compressobj(9, zlib.DEFLATED, -15)
        packed = b""
        for n, flush in enumerate([zlib.Z_SYNC_FLUSH, zlib.Z_FULL_FLUSH, zlib.Z_PARTIAL_FLUSH] * 5):
            packed += compressor.compress(f"part {n};".encode()) + compressor.flush(flush)
        packed += compressor.flush(zlib.Z_SYNC_FLUSH)
        client.send(frame(TEXT, packed[:-4], rsv=RSV1))
        client.expect_message("".join(f"part {n};" for n in range(15)))

    def test_empty_blocks(self, peer):
        """More than the limit on the wire, in frames that are not, and nothing in it."""
        client = peer("/small")
        blocks = b"\x00\x00\x00\xff\xff" * 16_000
        client.send(frame(TEXT, blocks, fin=False, rsv=RSV1), *[frame(CONTINUATION, blocks, fin=False)] * 4)
        client.send(frame(CONTINUATION, b"\x00"))
        client.expect_message("")
        client.echo(sentences(1000))

    @pytest.mark.parametrize("fin", [True, False])
    def test_a_frame_that_no_compressor_makes_is_judged_at_its_header(self, peer, fin):
        """100 KiB may come to so much, and hardly to more."""
        most = 102_400 + 102_400 // 8 + 102_400 // 64 + 64
        for length, code in ((most, None), (most + 1, 1009), (1 << 40, 1009)):
            client = peer("/small")
            client.send(frame(TEXT, b"", fin=fin, rsv=RSV1, length=length))
            if code:
                client.expect_close(code)
            else:
                silent(client, 0.3)


# --- what must not be ------------------------------------------------------------------------------


@pytest.mark.once
class TestReservedBits:
    CONF = takeovers() + echo("/off")

    @pytest.mark.parametrize("path", ["/none", "/both"])
    @pytest.mark.parametrize("last", [False, True])
    def test_on_a_continuation(self, peer, path, last):
        client, packed = peer(path), pack(sentences(500))
        client.send(frame(TEXT, packed[:10], fin=False, rsv=RSV1), frame(CONTINUATION, packed[10:], fin=last, rsv=RSV1))
        client.expect_close(1002)

    def test_on_a_continuation_only(self, peer):
        client = peer("/both")
        client.send(frame(TEXT, "plain", fin=False), frame(CONTINUATION, pack("packed"), rsv=RSV1))
        client.expect_close(1002)

    @pytest.mark.parametrize("opcode", [PING, PONG, CLOSE])
    @pytest.mark.parametrize("payload", [b"", b"\x03\xe8"])
    def test_on_a_control_frame(self, peer, opcode, payload):
        client = peer("/both")
        client.send(frame(opcode, payload, rsv=RSV1))
        client.expect_close(1002)

    def test_on_a_control_frame_inside_a_message(self, peer):
        client, packed = peer("/both"), pack(sentences(500))
        client.send(frame(TEXT, packed[:10], fin=False, rsv=RSV1), frame(PING, rsv=RSV1))
        client.expect_close(1002)

    @pytest.mark.parametrize("opcode", [TEXT, BINARY])
    @pytest.mark.parametrize("path, offer", [("/off", NAME), ("/both", "x-other"), ("/both", f"{NAME}; {SW}=8")])
    def test_without_an_agreement(self, peer, opcode, path, offer):
        client = peer(path, offer)
        client.send(frame(opcode, pack("hello"), rsv=RSV1))
        client.expect_close(1002)

    @pytest.mark.parametrize("opcode", [TEXT, BINARY, PING])
    @pytest.mark.parametrize("rsv", [1, 2, 3, 5, 6, 7])
    def test_others(self, peer, opcode, rsv):
        client = peer("/both")
        client.send(frame(opcode, pack("hello"), rsv=rsv))
        client.expect_close(1002)

    def test_seen_in_the_header(self, peer):
        """Before the payload is there."""
        client = peer("/both")
        client.send(frame(TEXT, pack(sentences(100)), fin=False, rsv=RSV1))
        client.send(frame(CONTINUATION, length=1 << 20, rsv=RSV1))
        client.expect_close(1002)


@pytest.mark.once
class TestBrokenData:
    CONF = sections()

    BROKEN = {
        "a block type that does not exist": b"\x06",
        "a final one": b"\x07",
        "lengths that contradict each other": bytes.fromhex("000500faf048656c6c6f00"),
        "ones": b"\xff" * 20,
        "a distance before the beginning": bytes.fromhex("f200110000"),
        "a broken second block": bytes.fromhex("f248050000 00ffff 06".replace(" ", "")),
        "a broken stream behind a final block": bytes.fromhex("f348cdc9c90700") + b"\x06",
        "zlib's header": zlib.compress(b"Hello, hello, hello"),
        "plain text": b"Hello, this is not compressed at all",
    }

    @pytest.mark.parametrize("path", ["/none", "/both"])
    @pytest.mark.parametrize("what", BROKEN)
    def test_closes_with_1007(self, peer, path, what):
        client = peer(path)
        client.send(frame(BINARY, self.BROKEN[what], rsv=RSV1))
        client.expect_close(1007)

    @pytest.mark.parametrize("path", ["/none", "/both"])
    @pytest.mark.parametrize(
        "cut",
        [bytes.fromhex("f248cd"), bytes.fromhex("000a00f5ff48656c6c6f"), pack(sentences(1000))[:200], b"\x00\x05"],
        ids=["inside a block", "inside a stored block", "inside a dynamic block", "inside a length"],
    )
    def test_a_message_without_its_end(self, peer, path, cut):
        """What the sender cuts off is an empty block: without a place for it the data is broken."""
        client = peer(path)
        client.send(frame(BINARY, cut, rsv=RSV1))
        client.expect_close(1007)

    @pytest.mark.parametrize("path", ["/none", "/both"])
    @pytest.mark.parametrize("payload, data", [(b"", b""), (bytes.fromhex("f348cdc9c90700"), b"Hello")])
    def test_no_block_to_end(self, peer, path, payload, data):
        """Not in the RFC's form, but clear: refused or understood, and what follows does not suffer."""
        client = peer(path)
        client.send(frame(BINARY, payload, rsv=RSV1))
        got = client.read_message()
        if got.opcode == CLOSE:
            assert got.data == b"\x03\xef"
            return
        assert got.data == data
        for seed in range(3):
            client.send(frame(TEXT, pack(sentences(500, seed)), rsv=RSV1))
            client.expect_message(sentences(500, seed))

    @pytest.mark.parametrize("way", WAYS)
    def test_at_once(self, peer, way):
        """The rest of the message need not come."""
        client = peer("/both", way=way)
        client.send(frame(TEXT, pack(sentences(1000)), fin=False, rsv=RSV1))
        client.send(frame(CONTINUATION, b"\x06" * 9, fin=False))
        client.expect_close(1007)

    def test_the_next_connection_is_not_hurt(self, peer):
        """A codec that saw nonsense, or half of a message, is fit for the next one."""
        for n in range(40):
            client = peer("/none")
            client.tell(sentences(500, n))
            client.expect_message(sentences(500, n))
            if n % 2:
                client.send(frame(TEXT, b"\xf2\x48\x06\x06\x06", rsv=RSV1))
                client.expect_close(1007)
            else:
                client.send(frame(TEXT, pack(sentences(5000))[: 40 * n + 40], fin=False, rsv=RSV1))
                client.reset()


@pytest.mark.once
class TestText:
    CONF = takeovers()

    @pytest.mark.parametrize("path", ["/none", "/both"])
    @pytest.mark.parametrize(
        "bad", [b"\xff", b"Hello \xc3(", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\xc0\xaf", "Grüße".encode()[:3]]
    )
    @pytest.mark.parametrize("filler", [0, 100_000])
    def test_that_is_none(self, peer, path, bad, filler):
        client = peer(path)
        client.send(frame(TEXT, pack(b"x" * filler + bad), rsv=RSV1))
        client.expect_close(1007)

    def test_may_be_anything_in_binary(self, peer):
        peer("/both").echo(b"\xff\xfe\xed\xa0\x80" * 20)

    def test_fails_as_soon_as_it_shows(self, peer):
        client = peer("/both")
        client.send(frame(TEXT, pack(b"good so far \xff"), fin=False, rsv=RSV1))
        client.expect_close(1007)

    @pytest.mark.parametrize("path", ["/none", "/both"])
    def test_cut_inside_characters(self, peer, path):
        client, text = peer(path), "κόσμε 😀 Grüße " * 20
        compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
        frames = [frame(TEXT, b"", fin=False, rsv=RSV1)]
        for byte in text.encode():  # each fragment inflates to one byte
            piece = compressor.compress(bytes([byte])) + compressor.flush(zlib.Z_SYNC_FLUSH)
            frames.append(frame(CONTINUATION, piece, fin=False))
        client.send(*frames, frame(CONTINUATION, b"\x00"))
        client.expect_message(text)


LIMIT = 8 << 20


@pytest.mark.once
class TestLimit:
    CONF = "WebSocketWorkerShare Off\n" + sections("WebSocketMaxMessageSize 8M")  # up to 60 of 64 threads

    @staticmethod
    def peak(pid):
        """The most KiB that a process has had in memory since `forget_peak`."""
        status = Path(f"/proc/{pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+)", status).group(1))

    @staticmethod
    def forget_peak(pid):
        """Memory that was given back since would count as growth otherwise."""
        Path(f"/proc/{pid}/clear_refs").write_text("5")

    @staticmethod
    def bomb():
        """About 1 MiB that inflates to 1 GiB."""
        compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
        mebibyte = compressor.compress(bytes(1 << 20)) + compressor.flush(zlib.Z_FULL_FLUSH)
        bomb = (mebibyte * 1024)[:-4]
        assert len(bomb) < 1_150_000
        return bomb

    @pytest.mark.parametrize("path", ["/none", "/both"])
    @pytest.mark.parametrize("opcode", [TEXT, BINARY])
    @pytest.mark.parametrize("pieces", [1, 500])
    @pytest.mark.parametrize("way", WAYS)
    def test_a_bomb(self, peer, httpd, path, opcode, pieces, way):
        client, bomb = peer(path, way=way), self.bomb()
        pid = httpd.child_of(client)
        self.forget_peak(pid)
        before = httpd.memory(pid)
        size = -(-len(bomb) // pieces)
        cut = [bomb[at : at + size] for at in range(0, len(bomb), size)]
        frames = [frame(opcode, cut[0], fin=len(cut) == 1, rsv=RSV1)]
        frames += [frame(CONTINUATION, piece, fin=False) for piece in cut[1:]]
        with contextlib.suppress(OSError):  # the server need not take all of it
            client.send(*frames)
        client.expect_close(1009)
        grown = (self.peak(pid) - before) << 10
        # The message up to its limit, what it grew out of, and the buffers of a connection.
        assert grown < LIMIT * 3 // 2 + (2 << 20), f"{grown / (1 << 20):.1f} MiB"

    @pytest.mark.parametrize("path", ["/none", "/both"])
    @pytest.mark.parametrize("level", [0, 1, 9])
    def test_is_the_inflated_messages(self, peer, path, level):
        """Stored blocks make it longer on the wire than the limit."""
        client, data = peer(path), noise(LIMIT // 8) * 8
        client.timeout = 20
        for size, code in ((LIMIT, None), (LIMIT + 1, 1009)):
            compressor = zlib.compressobj(level, zlib.DEFLATED, -15)
            packed = pack((data + b"x")[:size], compressor)
            assert level or len(packed) > LIMIT
            with contextlib.suppress(ConnectionError):
                client.send(frame(BINARY, packed, rsv=RSV1))
            if code:
                client.expect_close(code)
            else:
                client.expect_message(data)

    def test_ends_early(self, peer):
        """The rest of the bomb need not come."""
        client = peer("/none")
        client.send(frame(BINARY, self.bomb()[: 1 << 14], fin=False, rsv=RSV1))
        client.expect_close(1009)

    def test_memory_comes_back(self, peer, httpd):
        """An inflated message's buffer is not kept by the connection that received it."""
        if httpd.mpm == "prefork":
            pytest.skip("one connection per child")
        memory = []
        for _ in range(3):
            clients = [peer("/none") for _ in range(20)]
            for client in clients:
                client.echo(bytes(LIMIT), timeout=20)
                client.echo("small")
            memory.append(httpd.memory(httpd.child_of(clients[0])))
        # What the allocator keeps of it does not grow with the connections.
        assert memory[2] - memory[1] < 2 * LIMIT >> 10, memory


# --- threads ---------------------------------------------------------------------------------------


def hammer(path, *directives):
    """A Location whose plugin sends from many threads."""
    return location(path, "${PLUGINS}/threads.so", "threads_init", "WebSocketCompression On", *directives)


class TestChannels:
    """What is published is compressed once, for all who can inflate it."""

    LINES = (TAKEOVER + " Both", "WebSocketCompression On", "WebSocketChannelClientPublish On")
    CONF = (
        DETACH + TLS + "WebSocketChannelMemory 4M\n" + publishing()
        + room("^/live/(?<name>.*)$", "%{env:MATCH_NAME}", *LINES)
        + room("^/blocking/live/(?<name>.*)$", "%{env:MATCH_NAME}", "WebSocketDetach Off", *LINES)
    )

    @pytest.mark.parametrize("way", WAYS)
    @pytest.mark.parametrize("first", [9, 15])
    def test_what_is_published(self, httpd, peer, ws, way, first):
        """The first one who gets a message may have the smaller window, or the larger one."""
        channel = f"{way}{first}"
        narrow = peer("/live/" + channel, NAME + "; server_max_window_bits=9", way=way) if first == 9 else None
        peers = [peer("/live/" + channel, way=way) for _ in range(3)]
        narrow = narrow or peer("/live/" + channel, NAME + "; server_max_window_bits=9", way=way)
        plain = ws("/live/" + channel)
        for each in (*peers, narrow):
            assert each.agreed["server_no_context_takeover"] and "client_no_context_takeover" not in each.agreed
            each.exact = True
        talker = peers[0]
        texts = [sentences(5000, n) for n in range(5)]
        for n, data in enumerate([*texts, texts[0], "short", "", sentences(100_000)]):
            if n % 2 and data:
                talker.tell(data)
            else:
                publish(httpd, channel, data)
            got = [each.expect_message(data, compressed=len(data) >= 64) for each in peers]
            assert len({message.size for message in got}) == 1 and got[0].size < max(len(data) * 0.6, 64)
            narrow.expect_message(data)
            plain.expect(TEXT, data)
        publish(httpd, channel, noise(1000))
        for each in (*peers, narrow):
            each.expect_message(noise(1000), compressed=False)

    def test_with_ids(self, httpd, peer):
        client = peer("/live/ids", headers=[("Sec-WebSocket-Protocol", META)])
        data = sentences(5000)
        publish(httpd, "ids", data)
        got = client.read_message()
        assert got.compressed and got.size < 3000 and got.data.endswith(b"\n\n" + data.encode())


class TestThreads:
    CONF = (
        DETACH
        + TLS
        + hammer("/threads", f"{TAKEOVER} Both")
        + hammer("/blocking/threads", f"{TAKEOVER} Both", "WebSocketDetach Off")
        + hammer("/none", f"{TAKEOVER} None")
        + hammer("/blocking/none", f"{TAKEOVER} None", "WebSocketDetach Off")
        + hammer("/queue", f"{TAKEOVER} Both", "WebSocketSendQueueLimit 4k", "WebSocketCompressionLevel 9")
    )

    def collect(self, client, threads, count, size, echoes):
        """Each thread's messages whole and in order, and the echoes among them in theirs."""
        seen, echoed = [0] * threads, 0
        while sum(seen) < threads * count or echoed < len(echoes):
            got = client.read_message(30)
            if got.data.startswith(b"echo "):
                assert got.data.decode() == echoes[echoed]
                echoed += 1
                continue
            matched = re.fullmatch(rb"t=(\d{3}) n=(\d{6}) ([A-Z])*", got.data)
            assert matched and len(got.data) == size, got
            thread, number = int(matched[1]), int(matched[2])
            assert number == seen[thread] and matched[3][0] == ord("A") + thread % 26
            seen[thread] += 1

    @pytest.mark.parametrize("path", ["/threads", "/none"])
    @pytest.mark.parametrize("way", WAYS)
    def test_sending_while_the_client_echoes(self, peer, path, way):
        client = peer(path, way=way)
        client.timeout = 30
        client.tell("go 24 400 300")
        echoes = [f"echo {n} " + sentences(400, n) for n in range(200)]
        if way != "tls":

            def talk():
                for text in echoes:
                    client.tell(text)

            talker = threading.Thread(target=talk)
            talker.start()
            self.collect(client, 24, 400, 300, echoes)
            talker.join()
        else:  # one thread: OpenSSL's connections do not stand two
            for text in echoes[:20]:
                client.tell(text)
            self.collect(client, 24, 400, 300, echoes[:20])
        client.close()

    def test_short_and_long_ones(self, peer):
        """Below the smallest size worth it they go plain, past those that are being compressed."""
        client = peer("/threads")
        client.tell("go 12 300 40", opcode=TEXT)
        client.tell("go 12 300 4000", opcode=TEXT)
        seen = {}
        for _ in range(2 * 12 * 300):
            got = client.read_message(30)
            assert got.compressed == (len(got.data) > 40)
            key = got.data[:5], len(got.data)
            assert int(got.data[8:14]) == seen.get(key, -1) + 1
            seen[key] = int(got.data[8:14])
        assert set(seen.values()) == {299} and len(seen) == 24

    def test_waiting_for_a_slow_client(self, peer):
        """Senders that wait for room in the queue keep the context in step."""
        client = peer("/queue", rcvbuf=4096)
        client.tell("go 16 200 3000")
        time.sleep(0.5)
        self.collect(client, 16, 200, 3000, [])
        client.close()

    def test_the_end_while_they_send(self, peer, httpd):
        for polite in (True, False) * 3:
            client = peer("/queue?end", rcvbuf=4096)
            client.tell("go 16 100000 3000")
            client.read_message()
            if polite:
                client.send(close_frame(1000))
                while client.read_message().opcode != CLOSE:
                    pass
            else:
                client.reset()
        assert {line.close_code for line in ended(httpd, "/queue?end", 6)} == {"1000", "1006"}


class TestMemoryBound:
    CONF = DETACH + "WebSocketMemoryLimit 4M\n" + takeovers()

    def test_beyond_it_no_context_is_kept(self, peer, httpd):
        """New connections compress all the same; when others have gone, contexts are kept again."""
        if httpd.mpm == "prefork":
            pytest.skip("one connection per child")
        clients = [peer("/both?bound") for _ in range(30)]
        for n, client in enumerate(clients):
            client.echo(sentences(3000, n), compressed=True)
        kept = [client for client in clients if not client.agreed]
        poor = [client for client in clients if client.agreed]
        assert 2 <= len(kept) <= 15, len(kept)
        assert clients[: len(kept)] == kept
        # The first of them may have been left one direction.
        assert all(client.agreed == {S: True, C: True} for client in poor[2:])
        for client in clients:
            client.close()
        ended(httpd, "/both?bound", len(clients))
        assert peer("/both").agreed == {}

    def test_without_takeover_it_bounds_nothing(self, peer):
        clients = [peer("/none") for _ in range(30)]
        for client in clients:
            client.echo(sentences(3000), compressed=True)
        for client in clients:
            client.close()


class TestNoMemory:
    # Half of it is less than any context takes.
    CONF = "WebSocketMemoryLimit 80k\n" + takeovers()

    @pytest.mark.parametrize("path", PATHS)
    def test_too_little_for_any_context(self, peer, path):
        client = peer(path)
        assert client.agreed == {S: True, C: True}
        client.echo(sentences(3000), compressed=True)
        client.echo(sentences(3000), compressed=True)


class TestLifecycle:
    CONF = takeovers()

    @pytest.mark.parametrize("restart", ["graceful", "restart"])
    def test_restart(self, peer, httpd, restart):
        client = peer("/both")
        client.echo(sentences(1000))
        getattr(httpd, restart)()
        with contextlib.suppress(EOFError, ConnectionError):
            got = client.read_message()
            assert (got.opcode, got.data[:2]) == (CLOSE, b"\x03\xe9")
        peer("/both").echo(sentences(1000))

    def test_memory_is_flat(self, peer, httpd):
        """Connections with contexts come and go."""
        if httpd.mpm == "prefork":
            pytest.skip("children differ")
        if not DETACHED:
            pytest.skip("the allocator keeps what each of httpd's many threads has freed")

        def round_of(count):
            for n in range(count):
                client = peer("/both")
                client.echo(sentences(20_000, n))
                if n == 0:
                    pid = httpd.child_of(client)
                client.close()
                client.sock.close()
            return httpd.memory(pid)

        round_of(400)  # more than the structures of ended connections that are kept
        before = round_of(100)
        assert before < 48_000, f"{before} KiB"
        assert round_of(400) - before < 8192

    def test_the_log_counts_the_bytes_on_the_wire(self, peer, httpd):
        client = peer("/none?counted")
        for _ in range(10):
            client.echo("a" * 10_000)
        client.close()
        (line,) = ended(httpd, "/none?counted")
        assert (line.messages_in, line.messages_out, line.close_code) == ("10", "10", "1000")
        assert line.bytes_in < 2500 and line.bytes_out < 2500, line


# --- other people's clients ------------------------------------------------------------------------


@pytest.mark.once
class TestWebsockets:
    """Python's websockets offers compression unless it is told not to. (Its asyncio client: the other one uses a TLS
    connection from two threads at once, which OpenSSL's do not stand.)"""

    CONF = TLS + takeovers()

    def talk(self, httpd, path, tls=False, **kw):
        """Echoes messages; gives the extensions agreed on."""

        async def conversation():
            url = f"wss://localhost:{httpd.tls_port}" if tls else f"ws://localhost:{httpd.port}"
            context = httpd.tls_context() if tls else None
            async with dial(url + path, ssl=context, max_size=None, proxy=None, **kw) as client:
                for size in (0, 10, 100, 5000, 300_000):
                    for data in (sentences(size, size), noise(size)):
                        await client.send(data)
                        assert await asyncio.wait_for(client.recv(), 20) == data
                await client.send(["frag", "ments of ", "", "a message " * 50])
                assert await asyncio.wait_for(client.recv(), 20) == "fragments of " + "a message " * 50
                return client.protocol.extensions

        return asyncio.run(conversation())

    @pytest.mark.parametrize("path", PATHS)
    @pytest.mark.parametrize("tls", [False, True])
    def test_its_own_offer(self, httpd, path, tls):
        (extension,) = self.talk(httpd, path, tls)
        assert extension.name == NAME
        assert extension.local_no_context_takeover == (path in ("/none", "/server"))
        assert extension.remote_no_context_takeover == (path in ("/none", "/client"))

    @pytest.mark.parametrize(
        "settings",
        [
            {"server_no_context_takeover": True},
            {"client_no_context_takeover": True},
            {"server_max_window_bits": 10},
            {"client_max_window_bits": 10},
            {"client_max_window_bits": True, "server_max_window_bits": 9},
        ],
    )
    def test_parameters(self, httpd, settings):
        (extension,) = self.talk(httpd, "/both", extensions=[ClientPerMessageDeflateFactory(**settings)])
        assert extension.remote_max_window_bits == settings.get("server_max_window_bits", 15)

    def test_without(self, httpd):
        assert not self.talk(httpd, "/both", compression=None)


@pytest.mark.once
class TestChromium:
    CONF = TLS + takeovers()

    SCRIPT = """new Promise((resolve) => {
        const sizes = [0, 1, 63, 64, 1000, 70000, 1 << 20];
        const socket = new WebSocket(%s);
        let at = 0, sent;
        const next = () => {
            if (at === 2 * sizes.length) { socket.close(3000); return; }
            const size = sizes[at >> 1];
            if (at %% 2) {
                sent = new Uint8Array(size).map((_, i) => (i * i) >> (at & 7));
            } else {
                sent = "Grüße, ".repeat(size).slice(0, size);
            }
            socket.send(sent);
        };
        socket.binaryType = "arraybuffer";
        socket.onopen = next;
        socket.onmessage = (event) => {
            let back = event.data;
            let same;
            if (typeof sent === "string") {
                same = back === sent;
            } else {
                back = new Uint8Array(back);
                same = back.length === sent.length && back.every((b, i) => b === sent[i]);
            }
            if (!same) { resolve({error: "message " + at}); }
            at += 1;
            next();
        };
        socket.onerror = () => resolve({error: "error"});
        socket.onclose = (event) => resolve({extensions: socket.extensions, code: event.code, at: at});
    })"""

    def talk(self, page, url):  # noqa: F811
        result = page.run(self.SCRIPT % json.dumps(url))
        assert "error" not in result, result
        assert (result["code"], result["at"]) == (3000, 14)
        return result["extensions"]

    @pytest.mark.parametrize(
        "path, expected",
        [("/none", {S: True, C: True}), ("/server", {C: True}), ("/client", {S: True}), ("/both", {})],
    )
    def test_ws(self, httpd, page, path, expected):  # noqa: F811
        page.open(f"http://localhost:{httpd.port}/index.html")
        extensions = self.talk(page, f"ws://localhost:{httpd.port}{path}?chromium")
        assert parameters(extensions) == expected
        (line,) = ended(httpd, f"{path}?chromium")
        assert line.bytes_in < 1_000_000, line

    @pytest.mark.parametrize("path", ["/none", "/both"])
    def test_wss(self, httpd, page, path):  # noqa: F811
        page.call("Security.setIgnoreCertificateErrors", ignore=True)
        page.open(f"https://localhost:{httpd.tls_port}/index.html")
        extensions = self.talk(page, f"wss://localhost:{httpd.tls_port}{path}")
        assert parameters(extensions) == ({} if path == "/both" else {S: True, C: True})


@pytest.mark.once
class TestNode:
    CONF = takeovers()

    SCRIPT = """
        const socket = new WebSocket(process.argv[1]);
        const texts = ["a", "b".repeat(100), "Grüße ".repeat(20000)];
        let at = 0;
        socket.onopen = () => socket.send(texts[0]);
        socket.onerror = () => { console.log("error"); process.exit(1); };
        socket.onmessage = (event) => {
            if (event.data !== texts[at]) { console.log("differs"); process.exit(1); }
            at += 1;
            if (at < texts.length) { socket.send(texts[at]); } else { socket.close(3000); }
        };
        socket.onclose = (event) => console.log(JSON.stringify([socket.extensions, event.code, at]));
    """

    @pytest.mark.parametrize("path", PATHS)
    def test_its_own_client(self, httpd, path):
        node = shutil.which("node")
        if not node:
            pytest.skip("no node")
        for flags in ([], ["--experimental-websocket"]):
            known = subprocess.run([node, *flags, "-e", "WebSocket"], capture_output=True, check=False)
            if known.returncode == 0:
                break
        else:
            pytest.skip("this node has no WebSocket")
        command = [node, *flags, "-e", self.SCRIPT, f"ws://localhost:{httpd.port}{path}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        extensions, code, count = json.loads(done.stdout.splitlines()[-1])
        assert (code, count) == (3000, 3)
        if not extensions:
            pytest.skip("this node does not offer compression")
        parameters(extensions)
