"""The load of keepalive.sh: bursts that need many connections at once, 4.9 to 5.1 s apart."""

import asyncio
import collections
import random
import sys
import time

PROXY, LIMIT = int(sys.argv[1]), float(sys.argv[2])
TOGETHER = 20  # requests of a burst, each on a connection of its own to the worker


async def ask(reader, writer, endpoint):
    """One request; its status, or what went wrong."""
    body = b'{"model":"x"}'
    head = f"POST /x HTTP/1.1\r\nhost: t\r\nx-forebay-endpoint: {endpoint}\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    length = next(int(line.split(":")[1]) for line in head.splitlines() if line.startswith("content-length:"))
    await reader.readexactly(length)
    error = next((line for line in head.splitlines() if line.startswith("x-forebay-error:")), "")
    return (head.split()[1] + " " + error).strip()


async def bursts(endpoint, until, outcomes):
    clients = [await asyncio.open_connection("127.0.0.1", PROXY) for _ in range(TOGETHER)]
    while time.monotonic() < until:
        answers = await asyncio.gather(*(ask(*client, endpoint) for client in clients), return_exceptions=True)
        outcomes.update((endpoint, str(answer)) for answer in answers)
        await asyncio.sleep(random.uniform(4.9, 5.1))


async def main():
    outcomes = collections.Counter()
    until = time.monotonic() + LIMIT
    # Bursts of one endpoint overlap with nothing of the same one, but for their own requests.
    await asyncio.gather(*(bursts(endpoint, until, outcomes) for endpoint in ("uvicorn", "worker")))
    for (endpoint, outcome), count in sorted(outcomes.items()):
        print(f"{endpoint}: {count} × {outcome}")
    sys.exit(any(outcome != "200" for _, outcome in outcomes))


asyncio.run(main())
