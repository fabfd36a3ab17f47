"""What permessage-deflate costs and saves, measured through a real httpd.

    python test/bench/compression.py [traffic] [memory]

`traffic`: JSON messages of three sizes are echoed one at a time on one connection; printed are the server's bytes on
the wire (frames, in percent of the plain payload) and its CPU time per message, from the scheduler's count for all
threads of the child. `memory`: idle connections that have echoed messages of 8 KiB; printed is what each adds to the
child's resident memory, for connections that are detached and for those that hold a thread of httpd's.

The environment is that of the tests: HTTPD, APXS, TEST_MPM, WS_MODULE, WS_EXAMPLES, WS_TEST_ROOT. Needs no package.
"""

import json
import os
import random
import resource
import sys
import time
import zlib
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "lib"))
from ws_frame import TEXT, Client, frame  # noqa: E402

from httpd import Httpd, echo  # noqa: E402

QUIET = "LogLevel warn websocket:warn\n"
TAIL = b"\x00\x00\xff\xff"


def directives(takeover=None, level=None, window=None):
    """The settings of a Location; none at all without takeover."""
    if takeover is None:
        return ["WebSocketCompression Off"]
    lines = ["WebSocketCompression On", f"WebSocketCompressionContextTakeover {takeover}"]
    if level:
        lines.append(f"WebSocketCompressionLevel {level}")
    if window:
        lines.append(f"WebSocketCompressionWindowBits {window} {window}")
    return lines


class Speaker(Client):
    """A client that compresses with zlib's level 6, as browsers do, and counts what comes back."""

    def begin(self, path, compress):
        offer = [("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits")] if compress else []
        answer = self.upgrade(path, offer).headers.get("sec-websocket-extensions", "")
        self.compress, self.forgets = bool(answer), "client_no_context_takeover" in answer
        self.inflate_anew = "server_no_context_takeover" in answer
        self.bits = int(answer.partition("client_max_window_bits=")[2].partition(";")[0] or 15)
        self.deflater = self.inflater = None
        assert self.compress == compress

    def framed(self, message):
        if not self.compress:
            return frame(TEXT, message)
        if self.deflater is None or self.forgets:
            self.deflater = zlib.compressobj(6, zlib.DEFLATED, -self.bits)
        packed = self.deflater.compress(message) + self.deflater.flush(zlib.Z_SYNC_FLUSH)
        return frame(TEXT, packed[:-4], rsv=4)

    def exchange(self, data):
        """Sends a frame and waits for the one that answers it; gives its bytes."""
        self.sock.sendall(data)
        while True:
            have = len(self.buffer)
            if have >= 2:
                short = self.buffer[1]
                head = {126: 4, 127: 10}.get(short, 2)
                size = short if head == 2 else int.from_bytes(self.buffer[2:head], "big")
                if have >= head + size:
                    answer = bytes(self.buffer[: head + size])
                    del self.buffer[: head + size]
                    return answer
            got = self.sock.recv(1 << 18)
            assert got, "connection ended"
            self.buffer += got

    def payload(self, answer):
        """The message in a frame that came back."""
        head = {126: 4, 127: 10}.get(answer[1], 2)
        if not answer[0] & 0x40:
            return answer[head:]
        if self.inflater is None or self.inflate_anew:
            self.inflater = zlib.decompressobj(-15)
        return self.inflater.decompress(answer[head:] + TAIL)


# --- messages ----------------------------------------------------------------------------------------

WORDS = """the of to and a in is it you that he was for on are with as his they be at one have this from or had by hot
but some what there we can out other were all your when up use word how said an each she which do their time if will
way about many then them would write like so these her long make thing see him two has look more day could go come did
my sound no most number who over know water than call first people may down side been now find""".split()


def event(choice):
    """A chat line or a ticker's update."""
    if choice.random() < 0.5:
        return {
            "type": "message", "id": f"{choice.getrandbits(64):016x}", "room": choice.randrange(500),
            "user": f"user{choice.randrange(20_000)}", "ts": 1_700_000_000_000 + choice.randrange(10**9),
            "text": " ".join(choice.choices(WORDS, k=choice.randrange(4, 16))),
        }
    price = choice.uniform(1, 900)
    return {
        "type": "trade", "symbol": "".join(choice.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ", k=4)), "price": round(price, 4),
        "bid": round(price * 0.999, 4), "ask": round(price * 1.001, 4), "volume": choice.randrange(100_000),
        "ts": 1_700_000_000_000 + choice.randrange(10**9), "venue": choice.choice(["XNAS", "XNYS", "ARCX", "BATS"]),
    }


def messages(size, count):
    """`count` different JSON messages of about `size` bytes: one event, or a list of them."""
    choice, made = random.Random(size), []
    for _ in range(count):
        if size < 300:
            body = event(choice)
            body["note"] = ""
            body["note"] = " ".join(choice.choices(WORDS, k=40))[: max(size - len(json.dumps(body)), 0)]
            made.append(json.dumps(body).encode())
            continue
        events, length = [], 20
        while length < size:
            events.append(event(choice))
            length += len(json.dumps(events[-1])) + 2
        made.append(json.dumps({"events": events}).encode())
    return made


# --- traffic -----------------------------------------------------------------------------------------


def cpu_of(pid):
    """Nanoseconds that all threads of a process have run."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        total += int((task / "schedstat").read_text().split()[0])
    return total


def traffic(httpd):
    settings = [
        ("Off", directives()),
        ("On, level 1, None", directives("None", 1)),
        ("On, level 3, None", directives("None", 3)),
        ("On, level 6, None", directives("None", 6)),
        ("On, level 1, Server", directives("Server", 1)),
        ("On, level 1, Both", directives("Both", 1)),
        ("On, level 6, Both", directives("Both", 6)),
    ]
    conf = "".join(echo(f"/{n}", *lines) for n, (_, lines) in enumerate(settings))
    rounds = int(os.environ.get("ROUNDS", "3"))
    print(f"{'messages of':12} {'setting':22} {'sent':>7} {'received':>9} {'CPU/message':>12} {'spread':>14}")
    for size, count in ((200, 10_000), (1024, 10_000), (16_384, 3_000)):
        texts = messages(size, count)
        plain = sum(map(len, texts))
        for n, (name, lines) in enumerate(settings):
            times = []
            for _ in range(rounds):
                with httpd.serve(conf + QUIET), Speaker(httpd.port, timeout=60) as client:
                    client.begin(f"/{n}", lines != directives())
                    frames = [client.framed(text) for text in texts]
                    pid = httpd.child_of(client)
                    before, answers = cpu_of(pid), []
                    for data in frames:
                        answers.append(client.exchange(data))
                    times.append((cpu_of(pid) - before) / count / 1000)
                    assert all(client.payload(a) == text for a, text in zip(answers, texts))
            sent, got = (100 * sum(map(len, side)) / plain for side in (answers, frames))
            times.sort()
            print(f"{plain // count:10} B {name:22} {sent:6.1f}% {got:8.1f}% {times[rounds // 2]:9.1f} µs"
                  f" {times[0]:6.1f}–{times[-1]:.1f}", flush=True)


# --- memory ------------------------------------------------------------------------------------------


def memory(httpd):
    settings = [("Off", directives())]
    for window in (15, 10):
        for takeover in ("None", "Server", "Client", "Both"):
            settings.append((f"{takeover}, {window} bits", directives(takeover, None, window)))
    text = messages(8192, 10)
    print(f"{'setting':18} {'detached':>20} {'holding a thread':>20}   KiB per connection (above Off)")
    base = {}
    for name, lines in settings:
        cells = []
        for detach, count in (("Auto", 1000), ("Off", 200)):
            conf = (
                QUIET + "WebSocketMemoryLimit 16G\nWebSocketPingInterval Off\nWebSocketWorkerShare Off\n"
                "ThreadLimit 256\nThreadsPerChild 250\nMaxRequestWorkers 250\nServerLimit 1\n"
                + echo("/idle", f"WebSocketDetach {detach}", *lines)
            )
            with httpd.serve(conf):
                clients = [talker(httpd, lines, text)]  # whatever is started once
                pid = httpd.child_of(clients[0])
                before = httpd.memory(pid)
                clients += [talker(httpd, lines, text) for _ in range(count)]
                time.sleep(0.3)
                each = (httpd.memory(pid) - before) / count
                for client in clients:
                    client.sock.close()
            base.setdefault(detach, each)
            cells.append(f"{each:8.1f} ({each - base[detach]:+7.1f})")
        print(f"{name:18} {cells[0]:>20} {cells[1]:>20}", flush=True)


def talker(httpd, lines, texts):
    """A connection that has exchanged messages and is idle now."""
    client = Speaker(httpd.port)
    client.begin("/idle", lines != directives())
    for text in texts:
        assert client.payload(client.exchange(client.framed(text))) == text
    return client


if __name__ == "__main__":
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    environment = Httpd()
    for measurement in sys.argv[1:] or ["traffic", "memory"]:
        {"traffic": traffic, "memory": memory}[measurement](environment)
