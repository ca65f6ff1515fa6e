"""A process that adds voices to a library until it is killed, and names those that are in it."""

import asyncio
import sys

from serve_app.storage.objects import storage_at
from serve_app.voices.library import Library
from tests.unit.voices.voices import voice


async def main(place, prefix):
    library = Library(storage_at(place, {}))
    number = 0
    while True:
        made = await library.add(voice(f"{prefix} {number}"), {"recording.flac": bytes(200_000)})
        print(made.id, flush=True)
        number += 1


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
