"""Publishers and subscribers of channels, who come and go in every way: each message comes once, or a gap is told."""

import http.client
import itertools
import random
import re
import threading
import time

import channels
from channels import GAP, META, EventSource, Meta, publishing, room
from httpd import PREFORK, wait_until
from peers import reset
from talk import Conversations, Goodbye, Surprise, Talker
from ws_frame import TEXT, Frame

CHANNELS = ["one", "two", "three"]
SUBSCRIBERS = 4 if PREFORK else 9
# The hub of a child keeps those of up to 64 KiB; the memory for all is small, so that some of who come back are too late.
SIZES = (10, 10, 100, 100, 1000, 4000, 100_000)
PATIENCE = 20.0


def site():
    """Where they are published and subscribed to."""
    free = "WebSocketMaxConnections Off"
    return "WebSocketChannelMemory 1M\n" + publishing() + "".join(
        room(f"^{below}/live/(?<name>.*)$", "%{env:MATCH_NAME}", free, *detach)
        for below, *detach in (("",), ("/blocking", "WebSocketDetach Off"))
    )


class Ledger:
    """What was published on a channel: numbers, each once. Of those that were not answered nothing is known."""

    def __init__(self):
        self.last, self.unsure = -1, set()


class Reading:
    """What a subscriber has got of a channel."""

    def __init__(self, ledger):
        self.ledger, self.last, self.id, self.gap = ledger, None, None, False

    def take(self, number):
        """The next message."""
        if self.last is not None:
            if number <= self.last:
                raise Surprise(f"message {number} comes after {self.last}")
            missing = set(range(self.last + 1, number)) - self.ledger.unsure
            if missing and not self.gap:
                raise Surprise(f"{len(missing)} messages are missing between {self.last} and {number}")
        self.last, self.gap = number, False

    def is_done(self):
        """Whether all has come, or it was told that this cannot be. Of one that has got none yet nothing is known."""
        return self.id is None or self.gap or self.last is None or self.last >= self.ledger.last


class Publisher(threading.Thread):
    """The only one of a channel."""

    def __init__(self, httpd, channel, ledger, generator, stop, tally):
        super().__init__(daemon=True)
        self.httpd, self.channel, self.ledger, self.random = httpd, channel, ledger, generator
        self.stop, self.tally = stop, tally

    def run(self):
        number = 0
        while not self.stop.is_set():
            try:
                with channels.Publisher(self.httpd.port) as publisher:
                    for _ in range(self.random.randrange(1, 50)):
                        self.ledger.unsure.add(number)
                        publisher.post(self.channel, f"{number} ".ljust(self.random.choice(SIZES), "."))
                        self.ledger.last = number
                        self.ledger.unsure.discard(number)
                        self.tally.note("published")
                        number += 1
                        if self.stop.wait(self.random.choice((0.001, 0.005, 0.02, 0.1))):
                            break
            except (OSError, http.client.HTTPException):  # a connection that is kept ends with its child
                number += 1
                self.tally.note("publisher's connection ended")
            except AssertionError as error:
                number += 1
                self.tally.surprise(f"{time.strftime('%H:%M:%S')} a POST is answered {error}")


class Subscriber(Conversations):
    """One connection after the other; most of them go on where the one before has ended."""

    def __init__(self, httpd, seed, channel, ledger, publishers, stop, tally):
        super().__init__(httpd, seed, stop, tally)
        self.channel, self.ledger, self.publishers = channel, ledger, publishers
        self.reading = Reading(ledger)

    def run(self):
        super().run()
        for publisher in self.publishers:
            publisher.join(60)
        deadline = time.monotonic() + PATIENCE
        while not self.reading.is_done():
            try:
                if time.monotonic() > deadline:
                    raise Surprise(f"{self.reading.last} is the last message, {self.ledger.last} has not come")
                with self.opened("meta", "", None) as client:
                    self.read(client, self.reading, deadline)
            except Goodbye:
                pass
            except Exception as error:  # noqa: BLE001 (all of them are findings)
                self.tally.surprise(f"at the end: {type(error).__name__}: {error}")
                return

    def converse(self, part):
        random = self.random
        kind = random.choice(("plain", "meta", "meta", "events", "events"))
        if random.random() < 0.1:
            self.reading = Reading(self.ledger)
        reading = Reading(self.ledger) if kind == "plain" else self.reading
        below, context = random.choice(("", "", "", "/blocking")), random.choice((None, None, self.context))
        slow = random.random() < 0.1
        part += [kind, "tls" if context else "clear", below, "slow" if slow else ""]
        with self.opened(kind, below, context, slow) as client:
            if slow:
                time.sleep(random.choice((0.2, 1, 4)))
            self.read(client, reading, time.monotonic() + random.choice((0, 0.05, 0.5, 2, 5)))
            ends = [self.vanish, self.reset, *([] if kind == "events" else [self.close, self.half_close])]
            end = random.choice(ends)
            part.append(end.__name__)
            try:
                end(client)
            except OSError:  # the server may have been quicker
                pass
            self.tally.note(f"{kind}, {end.__name__}")

    def opened(self, kind, below, context, slow=False):
        """A connection that is subscribed; it goes on behind the last message."""
        port = self.httpd.tls_port if context else self.httpd.port
        path, last, small = f"{below}/live/{self.channel}", self.reading.id, 4096 if slow else None
        if kind == "events":
            client = EventSource(port, path, last, context, rcvbuf=small)
            if client.status != 200:
                raise Surprise(f"events are answered with {client.status}")
            return client
        client = Talker(port, tls=context, timeout=PATIENCE, rcvbuf=small, source=self.source)
        headers = [("Sec-WebSocket-Protocol", META)] if kind == "meta" else []
        headers += [("Last-Event-ID", last)] if last and headers else []
        client.is_meta = kind == "meta"
        client.may_end += (1008, 1013) if slow else ()
        client.greet(path, None, self.tally.waits, headers)
        return client

    def reset(self, client):
        reset(client.sock)

    def read(self, client, reading, until):
        """Reads what comes until then, or until all that was published has come."""
        events = isinstance(client, EventSource)
        while not (self.stop.is_set() and reading.is_done()):
            left = until - time.monotonic()
            if left <= 0:
                return
            try:
                self.event(client, reading, left) if events else self.message(client, reading, left)
            except TimeoutError:
                return
            except EOFError:
                if events:
                    raise Goodbye from None
                raise

    def event(self, client, reading, left):
        try:
            event = client.next(left)
        finally:
            # The first one comes before any message.
            reading.id = client.last
        if event.kind == "gap":
            self.miss(reading)
        else:
            self.take(reading, event.data)

    def message(self, client, reading, left):
        client.timeout = left
        try:
            opcode, data = client.receive()
        finally:
            client.timeout = PATIENCE
        if client.is_meta:
            got = Meta.of(Frame(opcode, data, True))
            reading.id = got.id
            if got.media == GAP:
                return self.miss(reading)
            data = got.body
        if opcode != TEXT:
            raise Surprise(f"a message of {opcode}")
        return self.take(reading, data.decode())

    def miss(self, reading):
        reading.gap = True
        self.tally.note("gap")

    def take(self, reading, text):
        reading.take(int(re.match(r"\d+", text)[0]))
        self.tally.note("heard")


def everybody(httpd, seed, stop, tally):
    """All of them, not started yet."""
    ledgers = {channel: Ledger() for channel in CHANNELS}
    publishers = [
        Publisher(httpd, channel, ledger, random.Random(seed * 1000 + 900 + n), stop, tally)
        for n, (channel, ledger) in enumerate(ledgers.items())
    ]
    return publishers + [
        Subscriber(httpd, seed * 1000 + 800 + n, channel, ledgers[channel], publishers, stop, tally)
        for n, channel in zip(range(SUBSCRIBERS), itertools.cycle(CHANNELS))
    ]


def warm(httpd):
    """A child with subscribers has a thread more from then on."""
    with Talker(httpd.port) as client:
        client.upgrade("/live/warm")
        channels.publish(httpd, "warm", "up")
        client.expect(TEXT, "up")
        client.close()


def nobody_left(httpd):
    """The counts of subscribers are back to zero; gives what is wrong."""
    for channel in (*CHANNELS, "warm"):
        try:
            wait_until(lambda: not channels.subscribers(httpd, channel), 20, f"the return of {channel} to no subscribers")
        except AssertionError as error:
            yield f"{error}: {channels.subscribers(httpd, channel)}"
