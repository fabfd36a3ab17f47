"""Frames and messages (RFC 6455 §5 to §8): what is echoed, what ends the connection, and how."""

import struct
import time

import pytest
from httpd import echo
from ws_frame import (
    BINARY, CLOSE, CONTINUATION, MASK, PING, PONG, TEXT, close_frame, frame, random_text,
)

EVERY_TRANSPORT = True
CONF = (
    echo()
    + echo("/small", "WebSocketMaxMessageSize 1000")
    + echo("/tiny", "WebSocketMaxMessageSize 30")
    + echo("/reserved", "WebSocketAllowReservedStatusCodes On")
    + echo("/strict", "WebSocketAllowReservedStatusCodes Off")
)


def head(opcode, length, **kw):
    """The header of a masked frame, without the payload that it announces."""
    return frame(opcode, length=length, **kw)


class TestMessages:
    @pytest.mark.parametrize(
        "size", [0, 1, 2, 3, 4, 5, 125, 126, 127, 4095, 4096, 8192, 65535, 65536, 65537, 1 << 20]
    )
    @pytest.mark.parametrize("opcode", [TEXT, BINARY])
    def test_sizes(self, ws, opcode, size):
        client, data = ws(), random_text(size)
        client.send(frame(opcode, data))
        client.expect(opcode, data)
        client.close()

    def test_all_byte_values(self, ws):
        client, data = ws(), bytes(range(256)) * 3
        client.send(frame(BINARY, data))
        client.expect(BINARY, data)

    @pytest.mark.parametrize("mask", [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x01\x02\x03\x04"])
    def test_masks(self, ws, mask):
        client, data = ws(), bytes(range(251))
        for size in (0, 1, 7, 126, 251):
            client.send(frame(BINARY, data[:size], mask=mask))
            client.expect(BINARY, data[:size])

    def test_eight_mebibytes(self, ws):
        client, data = ws(), random_text(8 << 20)
        client.send(frame(BINARY, data))
        client.expect(BINARY, data)

    def test_each_byte_alone(self, ws):
        client, data = ws(), random_text(130)
        stream = frame(TEXT, "Hello") + frame(BINARY, data) + frame(PING, b"?") + frame(TEXT, "")
        for at in range(len(stream)):
            client.send(stream[at : at + 1])
        client.expect(TEXT, "Hello")
        client.expect(BINARY, data)
        client.expect(PONG, b"?")
        client.expect(TEXT, "")

    def test_cut_in_two_anywhere(self, ws):
        client = ws()
        stream = frame(TEXT, "Wie geht's?") + frame(BINARY, b"x" * 200)
        for at in range(1, 22):
            client.send(stream[:at])
            if at >= 17:  # the first frame is whole: by its echo the server has read up to the cut
                client.expect(TEXT, "Wie geht's?")
            client.send(stream[at:])
            if at < 17:
                client.expect(TEXT, "Wie geht's?")
            client.expect(BINARY, b"x" * 200)

    def test_pipelined_messages_keep_their_order(self, ws):
        client = ws()
        client.send(*(frame(TEXT, f"message {n}") for n in range(500)))
        for n in range(500):
            client.expect(TEXT, f"message {n}")

    def test_frames_in_the_segment_of_the_handshake(self, connect):
        client = connect()
        client.send(client.request() + frame(TEXT, "early") + frame(PING, b"bird"))
        assert client.read_response().status == 101
        client.expect(TEXT, "early")
        client.expect(PONG, b"bird")
        client.close()

    def test_many_bytes_right_behind_the_handshake(self, connect):
        client = connect()
        data = random_text(30_000)
        client.send(client.request() + b"".join(frame(BINARY, data[n:]) for n in range(8)))
        assert client.read_response().status == 101
        for n in range(8):
            client.expect(BINARY, data[n:])

    def test_half_a_frame_in_the_segment_of_the_handshake(self, connect):
        client = connect()
        data = frame(TEXT, "one and a half") + frame(TEXT, "rest")
        client.send(client.request() + data[:-3])
        assert client.read_response().status == 101
        client.expect(TEXT, "one and a half")
        client.send(data[-3:])
        client.expect(TEXT, "rest")

    def test_close_in_the_segment_of_the_handshake(self, connect):
        client = connect()
        client.send(client.request() + frame(TEXT, "hello") + close_frame(1000))
        assert client.read_response().status == 101
        client.expect(TEXT, "hello")
        client.expect_close(1000, reply=False)

    @pytest.mark.parametrize("version", [8, 7])
    def test_other_versions(self, ws, version):
        client = ws(Sec_WebSocket_Version=version)
        client.send(frame(TEXT, "old", fin=False) + frame(CONTINUATION, "er"))
        client.expect(TEXT, "older")
        client.close()


class TestFragments:
    def test_two(self, ws):
        client = ws()
        client.send(frame(TEXT, "frag", fin=False) + frame(CONTINUATION, "ment"))
        client.expect(TEXT, "fragment")

    def test_empty_ones(self, ws):
        client = ws()
        client.send(frame(BINARY, fin=False), frame(CONTINUATION, fin=False) * 100, frame(CONTINUATION))
        client.expect(BINARY, b"")
        client.send(frame(TEXT, fin=False), frame(CONTINUATION, "x", fin=False), frame(CONTINUATION))
        client.expect(TEXT, "x")

    def test_many_of_many_sizes(self, ws):
        client, data = ws(), random_text(300_000)
        pieces, at, size = [], 0, 0
        while at < len(data):
            pieces.append(data[at : at + size])
            at, size = at + size, size * 3 // 2 + 1
        opcodes = [BINARY] + [CONTINUATION] * (len(pieces) - 1)
        client.send(*(frame(o, p, fin=False) for o, p in zip(opcodes, pieces)), frame(CONTINUATION))
        client.expect(BINARY, data)

    def test_control_frames_in_between(self, ws):
        client = ws()
        client.send(frame(TEXT, "a", fin=False), frame(PING, b"1"))
        client.expect(PONG, b"1")  # now, not after the message
        client.send(frame(CONTINUATION, "b", fin=False), frame(PONG, b"x"), frame(PING, b"2"))
        client.expect(PONG, b"2")
        client.send(frame(CONTINUATION, "c"))
        client.expect(TEXT, "abc")

    def test_close_in_between(self, ws):
        client = ws()
        client.send(frame(TEXT, "never", fin=False), close_frame(1001))
        client.expect_close(1001, reply=False)

    def test_two_messages(self, ws):
        client = ws()
        for opcode in (TEXT, BINARY):
            client.send(frame(opcode, "o", fin=False), frame(CONTINUATION, "k"))
            client.expect(opcode, "ok")


class TestControl:
    @pytest.mark.parametrize("size", [0, 1, 124, 125])
    def test_ping(self, ws, size):
        client, data = ws(), bytes(range(size))
        client.send(frame(PING, data))
        client.expect(PONG, data)

    def test_many_pings(self, ws):
        client = ws()
        client.send(*(frame(PING, str(n)) for n in range(1000)))
        for n in range(1000):
            client.expect(PONG, str(n))

    @pytest.mark.parametrize("payload", [b"", b"nobody asked"])
    def test_unsolicited_pong(self, ws, payload):
        client = ws()
        client.send(frame(PONG, payload), frame(TEXT, "still here"))
        client.expect(TEXT, "still here")


MALFORMED = {
    "unmasked text": frame(TEXT, "x", mask=None),
    "unmasked header": frame(BINARY, length=100, mask=None),
    "unmasked ping": frame(PING, mask=None),
    "unmasked close": close_frame(1000, mask=None),
    "reserved bit 1": head(TEXT, 100, rsv=4),
    "reserved bit 2": head(TEXT, 100, rsv=2),
    "reserved bit 3": head(BINARY, 100, rsv=1),
    "all reserved bits": head(BINARY, 100, rsv=7),
    "reserved bit of a ping": head(PING, 5, rsv=4),
    "reserved bit of a close": head(CLOSE, 2, rsv=1),
    **{f"opcode {o:#x}": head(o, 100) for o in (3, 4, 5, 6, 7)},
    **{f"opcode {o:#x}": head(o, 5) for o in (11, 12, 13, 14, 15)},
    "16-bit length of 0": head(TEXT, 0, form=16),
    "16-bit length of 125": head(TEXT, 125, form=16),
    "64-bit length of 125": head(BINARY, 125, form=64),
    "64-bit length of 126": head(BINARY, 126, form=64),
    "64-bit length of 65535": head(BINARY, 65535, form=64),
    "64-bit length with the top bit": head(BINARY, 1 << 63, form=64),
    "64-bit length with all bits": head(TEXT, (1 << 64) - 1, form=64),
    "ping with a 16-bit length": head(PING, 5, form=16),
    "ping of 126 bytes": head(PING, 126),
    "pong of 126 bytes": head(PONG, 126),
    "close of 126 bytes": head(CLOSE, 126),
    "ping of 65536 bytes": head(PING, 65536),
    "fragmented ping": head(PING, 5, fin=False),
    "fragmented pong": head(PONG, 5, fin=False),
    "fragmented close": head(CLOSE, 2, fin=False),
    "continuation of nothing": head(CONTINUATION, 100),
    "open continuation of nothing": head(CONTINUATION, 100, fin=False),
    "text inside a message": frame(TEXT, "a", fin=False) + head(TEXT, 100),
    "binary inside a message": frame(TEXT, "a", fin=False) + head(BINARY, 100),
    "first fragment inside a message": frame(BINARY, b"a", fin=False) + head(BINARY, 9, fin=False),
    "continuation after the end": frame(PONG) + head(CONTINUATION, 1),
}


class TestMalformed:
    @pytest.mark.parametrize("name", MALFORMED)
    def test_refused_at_the_header(self, ws, name):
        """Payload never comes, so only the header can be the reason of the Close."""
        client = ws()
        client.send(MALFORMED[name])
        client.expect_close(1002)

    @pytest.mark.parametrize("name", [name for name in MALFORMED if "unmasked" not in name])
    def test_refused_before_the_masking_key(self, ws, name):
        client = ws()
        client.send(MALFORMED[name].removesuffix(MASK))
        client.expect_close(1002)

    @pytest.mark.parametrize("name", MALFORMED)
    def test_refused_when_bytes_trickle(self, ws, name):
        client = ws()
        for byte in MALFORMED[name]:
            try:
                client.send(bytes([byte]))
            except OSError:  # refused already
                break
        client.expect_close(1002)

    def test_messages_before_are_answered(self, ws):
        client = ws()
        client.send(frame(TEXT, "good"), frame(PING, b"also good"), head(7, 3))
        client.expect(TEXT, "good")
        client.expect(PONG, b"also good")
        client.expect_close(1002)

    def test_messages_after_are_not(self, ws):
        client = ws()
        client.send(head(7, 0), frame(TEXT, "too late"), frame(PING, b"x"))
        client.expect_close(1002)

    def test_the_close_survives_a_client_that_goes_on_sending(self, ws):
        client = ws()
        try:
            client.send(head(TEXT, 100, rsv=7))
            for _ in range(20):
                client.send(b"\0" * 50_000)
        except OSError:
            pass  # no wish to hear more is legal, losing the Close is not
        client.expect_close(1002, reply=False)


class TestClose:
    @pytest.mark.parametrize(
        "code", [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 3000, 3999, 4000, 4999]
    )
    @pytest.mark.parametrize("path", ["/echo", "/reserved"])
    def test_valid_codes_come_back(self, ws, path, code):
        client = ws(path)
        client.send(close_frame(code))
        client.expect_close(code, reply=False)

    def test_no_code(self, ws):
        client = ws()
        client.send(close_frame())
        assert client.expect_close(1005, reply=False).payload == b""

    def test_reason(self, ws):
        client = ws()
        client.send(close_frame(4321, "Tschüß " + "x" * 114))
        client.expect_close(4321, reply=False)

    @pytest.mark.parametrize(
        "code",
        [0, 1, 999, 1004, 1005, 1006, 1014, 1015, 1016, 1100, 2000, 2999, 5000, 6000, 32768, 65535],
    )
    @pytest.mark.parametrize("path", ["/echo", "/strict"])
    def test_invalid_codes(self, ws, path, code):
        client = ws(path)
        client.send(close_frame(code))
        client.expect_close(1002, reply=False)

    @pytest.mark.parametrize("code", [1004, 1014, 1016, 1100, 2000, 2999])
    def test_reserved_codes_can_be_allowed(self, ws, code):
        client = ws("/reserved")
        client.send(close_frame(code))
        client.expect_close(code, reply=False)

    @pytest.mark.parametrize("code", [0, 999, 1005, 1006, 1015, 5000, 65535])
    def test_prohibited_codes_cannot(self, ws, code):
        client = ws("/reserved")
        client.send(close_frame(code))
        client.expect_close(1002, reply=False)

    def test_one_byte(self, ws):
        client = ws()
        client.send(frame(CLOSE, b"\x03"))
        client.expect_close(1002, reply=False)

    @pytest.mark.parametrize("reason", [b"\xff", b"caf\xc3", b"\xed\xa0\x80", b"ok \xc0\xaf"])
    def test_reason_is_not_utf8(self, ws, reason):
        client = ws()
        client.send(frame(CLOSE, struct.pack("!H", 1000) + reason))
        client.expect_close(1007, reply=False)

    def test_nothing_after_it_counts(self, ws):
        client = ws()
        client.send(frame(TEXT, "before"), close_frame(1000), frame(TEXT, "after"), close_frame(4000))
        client.expect(TEXT, "before")
        client.expect_close(1000, reply=False)

    def test_malformed_after_it(self, ws):
        client = ws()
        client.send(close_frame(1000), head(7, 99, rsv=7))
        client.expect_close(1000, reply=False)

    @pytest.mark.timing
    def test_the_server_ends_the_connection_first(self, ws):
        client = ws()
        client.send(close_frame(1000))
        client.read_frame()
        start = time.monotonic()
        client.expect_eof()
        assert time.monotonic() - start < 1.5


VALID_UTF8 = ["κόσμε", "\U0001f600", "\ufffd", "\ud7ff\ue000", "\U0010ffff", "a\0b", "߿ࠀ￿", "€" * 50]
# Each ends with the byte that makes it hopeless, whatever follows.
HOPELESS = {
    "lone continuation": b"ab\x80",
    "impossible byte": b"ab\xff",
    "overlong slash": b"ab\xc0",
    "overlong in three": b"ab\xe0\x9f",
    "overlong in four": b"ab\xf0\x8f",
    "surrogate": b"ab\xed\xa0",
    "above U+10FFFF": b"ab\xf4\x90",
    "five-byte form": b"ab\xf8",
    "cut short": b"ab\xe2\x82a",
    "cut short by another start": b"ab\xc3\xc3",
}
INCOMPLETE = [b"\xc3", b"ab\xe2\x82", b"\xf0\x9f\x98"]


class TestUtf8:
    @pytest.mark.parametrize("text", VALID_UTF8)
    def test_valid(self, ws, text):
        client = ws()
        client.send(frame(TEXT, text))
        client.expect(TEXT, text)

    @pytest.mark.parametrize("text", VALID_UTF8)
    def test_valid_however_it_is_cut(self, ws, text):
        client, data = ws(), text.encode()
        for at in range(len(data) + 1):
            client.send(frame(TEXT, data[:at], fin=False), frame(CONTINUATION, data[at:]))
            client.expect(TEXT, data)
        single = [frame(CONTINUATION, data[at : at + 1], fin=False) for at in range(len(data))]
        client.send(frame(TEXT, fin=False), frame(PING, b"!").join(single), frame(CONTINUATION))
        for _ in single[1:]:
            client.expect(PONG, b"!")
        client.expect(TEXT, data)

    @pytest.mark.parametrize("name", HOPELESS)
    def test_invalid(self, ws, name):
        client = ws()
        client.send(frame(TEXT, HOPELESS[name] + b"cd"))
        client.expect_close(1007)

    @pytest.mark.parametrize("name", HOPELESS)
    def test_fails_before_the_frame_ends(self, ws, name):
        client = ws()
        client.send(frame(TEXT, HOPELESS[name], length=1000))
        client.expect_close(1007)

    @pytest.mark.parametrize("name", HOPELESS)
    def test_fails_before_the_message_ends(self, ws, name):
        client, data = ws(), HOPELESS[name]
        client.send(frame(TEXT, data[:-1], fin=False))
        client.send(frame(PING, b"fine so far"))
        client.expect(PONG, b"fine so far")
        client.send(frame(CONTINUATION, data[-1:], fin=False))
        client.expect_close(1007)

    @pytest.mark.parametrize("data", INCOMPLETE)
    def test_incomplete_at_the_end(self, ws, data):
        client = ws()
        client.send(frame(TEXT, data, fin=False), frame(PING, b"open"))
        client.expect(PONG, b"open")
        client.send(frame(CONTINUATION))
        client.expect_close(1007)

    @pytest.mark.parametrize("data", INCOMPLETE)
    def test_incomplete_in_one_frame(self, ws, data):
        client = ws()
        client.send(frame(TEXT, data))
        client.expect_close(1007)

    def test_binary_may_hold_anything(self, ws):
        client = ws()
        for data in HOPELESS.values():
            client.send(frame(BINARY, data))
            client.expect(BINARY, data)

    def test_each_message_starts_anew(self, ws):
        client = ws()
        client.send(frame(TEXT, "ä"), frame(BINARY, b"\xc3"), frame(TEXT, "ö"))
        client.expect(TEXT, "ä")
        client.expect(BINARY, b"\xc3")
        client.expect(TEXT, "ö")


class TestLimits:
    @pytest.mark.parametrize("opcode", [TEXT, BINARY])
    def test_message(self, ws, opcode):
        client, data = ws("/small"), random_text(1000)
        client.send(frame(opcode, data))
        client.expect(opcode, data)
        client.send(head(opcode, 1001))
        client.expect_close(1009)

    @pytest.mark.parametrize("length", [1 << 16, 1 << 32, 1 << 62, (1 << 63) - 1])
    def test_huge_lengths(self, ws, length):
        client = ws("/small")
        client.send(head(BINARY, length))
        client.expect_close(1009)

    @pytest.mark.parametrize("opcode, length", [(TEXT, 1001), (BINARY, 1 << 16), (BINARY, (1 << 63) - 1)])
    def test_a_claim_is_refused_before_its_masking_key(self, ws, opcode, length):
        client = ws("/small")
        client.send(head(opcode, length).removesuffix(MASK))
        client.expect_close(1009)

    def test_a_fragment_is_refused_before_its_masking_key(self, ws):
        client = ws("/small")
        client.send(frame(TEXT, "a" * 600, fin=False), head(CONTINUATION, 401).removesuffix(MASK))
        client.expect_close(1009)

    def test_a_ping_is_refused_before_its_masking_key(self, ws):
        client = ws("/tiny")
        client.send(head(PING, 31).removesuffix(MASK))
        client.expect_close(1009)

    def test_the_sum_of_fragments(self, ws):
        client = ws("/small")
        client.send(frame(TEXT, "a" * 600, fin=False), frame(CONTINUATION, "b" * 400))
        client.expect(TEXT, "a" * 600 + "b" * 400)
        client.send(frame(TEXT, "a" * 600, fin=False), head(CONTINUATION, 401))
        client.expect_close(1009)

    def test_one_byte_fragments(self, ws):
        client = ws("/small")
        client.send(frame(TEXT, "a", fin=False), frame(CONTINUATION, "a", fin=False) * 999)
        client.send(frame(PING, b"1000 are allowed"))
        client.expect(PONG, b"1000 are allowed")
        client.send(head(CONTINUATION, 1))
        client.expect_close(1009)

    def test_control_frames_do_not_add_up(self, ws):
        client = ws("/small")
        for _ in range(20):
            client.send(frame(PING, b"x" * 125))
            client.expect(PONG, b"x" * 125)
        client.send(frame(TEXT, "a" * 500, fin=False), frame(PING, b"x" * 125))
        client.send(frame(CONTINUATION, "a" * 500))
        client.expect(PONG, b"x" * 125)
        client.expect(TEXT, "a" * 1000)

    def test_default(self, ws):
        client = ws()
        client.send(head(BINARY, 32 << 20), random_text(5000))
        with pytest.raises(TimeoutError):
            client.read_frame(0.3)  # it waits for the rest
        client = ws()
        client.send(head(BINARY, (32 << 20) + 1))
        client.expect_close(1009)

    def test_ping(self, ws):
        client = ws("/tiny")
        client.send(frame(PING, b"x" * 30))
        client.expect(PONG, b"x" * 30)
        client.send(head(PING, 31))
        client.expect_close(1009)

    def test_close_reason(self, ws):
        client = ws("/tiny")
        client.send(close_frame(4000, "x" * 28))
        client.expect_close(4000, reply=False)
        client = ws("/tiny")
        client.send(close_frame(4000, "x" * 29))
        client.expect_close(1009, reply=False)

    @pytest.mark.parametrize("version", [8, 7])
    def test_older_versions_have_another_code(self, ws, version):
        client = ws("/small", Sec_WebSocket_Version=version)
        client.send(head(BINARY, 1001))
        got = client.read_frame()
        assert (got.opcode, got.code) == (CLOSE, 1004)
        client.expect_eof()

    @pytest.mark.parametrize("version", [8, 7])
    def test_so_have_fragments(self, ws, version):
        client = ws("/small", Sec_WebSocket_Version=version)
        client.send(frame(BINARY, b"x" * 600, fin=False) + frame(CONTINUATION, b"x" * 600))
        client.expect_close(1004, reply=False)

    @pytest.mark.parametrize("version", [8, 7])
    @pytest.mark.parametrize("data, code", [(frame(TEXT, b"\xff"), 1007), (frame(TEXT, rsv=4), 1002)])
    def test_other_codes_are_the_same(self, ws, version, data, code):
        client = ws("/small", Sec_WebSocket_Version=version)
        client.send(data)
        client.expect_close(code, reply=False)
