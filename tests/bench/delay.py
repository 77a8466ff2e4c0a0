"""A TCP relay that adds a round trip: `python -m tests.bench.delay PORT TARGET_PORT SECONDS`, a process of its own.

Each byte waits half the round trip in either direction, however many are under way: latency without a limit
of bandwidth. A new connection waits one whole round trip, as its handshake would. It stands in for netem, which
needs a kernel module that not every machine has.

Concurrency: asyncio, two tasks for each direction of a connection, with a bounded queue between them.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys

CHUNK = 1 << 18
QUEUED = 128  # chunks under way in one direction: 32 MiB, more than 1 GB/s needs at 20 ms


async def relay(source: asyncio.StreamReader, sink: asyncio.StreamWriter, delay: float) -> None:
    """Carries bytes one way until the source ends."""
    clock = asyncio.get_running_loop().time
    queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(QUEUED)

    async def take() -> None:
        data = b"-"
        while data:
            try:
                data = await source.read(CHUNK)
            except ConnectionError:
                data = b""
            await queue.put((clock() + delay, data))

    async def give() -> None:
        while True:
            due, data = await queue.get()
            if due > clock():
                await asyncio.sleep(due - clock())
            if not data:
                return
            sink.write(data)
            await sink.drain()

    taking = asyncio.create_task(take())
    try:
        with contextlib.suppress(ConnectionError):
            await give()
    finally:
        taking.cancel()
        sink.close()


async def serve(port: int, target: int, round_trip: float) -> None:
    """Listens on `port` until killed."""

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(round_trip)
        back, there = await asyncio.open_connection("127.0.0.1", target, limit=4 * CHUNK)
        await asyncio.gather(relay(reader, there, round_trip / 2), relay(back, writer, round_trip / 2))

    server = await asyncio.start_server(converse, "127.0.0.1", port, limit=4 * CHUNK)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
