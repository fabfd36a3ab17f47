#!/usr/bin/env python3
"""A service that speaks lines over TCP, as many old ones do; it knows nothing of WebSockets.

    line_service.py FILE

It listens on a free port of the loopback address and writes the port's number into FILE. Whoever connects can say
`time`, `count 5`, `upper some words`, `who`, `say something` (which everybody hears) and `quit`.
"""

import asyncio
import os
import sys
import time

HELP = "time, count NUMBER, upper WORDS, who, say WORDS, quit"
guests = set()


async def serve(reader, writer):
    def tell(text):
        writer.write(text.encode() + b"\r\n")

    guests.add(tell)
    tell(f"Hello, guest {len(guests)}. I understand: {HELP}")
    try:
        while line := await reader.readline():
            command, _, rest = line.decode(errors="replace").strip().partition(" ")
            if command == "time":
                tell(time.strftime("It is %H:%M:%S."))
            elif command == "count" and rest.isdigit():
                for number in range(1, min(int(rest), 100) + 1):
                    tell(str(number))
                    await asyncio.sleep(0.1)
            elif command == "upper":
                tell(rest.upper())
            elif command == "who":
                tell(f"{len(guests)} here")
            elif command == "say":
                for guest in guests:
                    guest(f"somebody says: {rest}")
            elif command == "quit":
                tell("Bye.")
                break
            else:
                tell(f"I understand: {HELP}")
            await writer.drain()
    except (OSError, ValueError):  # gone, or a line without an end
        pass
    finally:
        guests.discard(tell)
        writer.close()


async def main(path):
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    with open(path + ".new", "w") as file:
        print(server.sockets[0].getsockname()[1], file=file)
    os.replace(path + ".new", path)
    await server.serve_forever()


if __name__ == "__main__":
    try:
        asyncio.run(main(*sys.argv[1:]))
    except KeyboardInterrupt:
        pass
