"""OpenAI's client for Python, of any version: `python of_openai.py BASE_URL FOLDER [--breaks]`.

Audio goes into FOLDER; a JSON line for each case says where, or what was raised.
"""

import asyncio
import base64
import inspect
import json
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import openai

# `--breaks`: a server with fake stages breaks off in the middle of this.
TEXT = "Good morning. This is a sentence for a client to hear."
BREAKS = "This answer breaks off."
VOICE = "alloy"
FORMATS = ("mp3", "opus", "aac", "flac", "wav", "pcm")
Case = dict[str, Any]


class Absent(Exception):
    """This version has no such thing."""


def main(url: str, folder: Path, breaks: bool) -> None:
    client = openai.OpenAI(base_url=url, api_key="unused", max_retries=0, timeout=60)
    speech = client.audio.speech
    asked = {"model": "gpt-4o-mini-tts", "voice": VOICE, "input": TEXT}

    def create(form: str, **options: Any) -> tuple[bytes, Case]:
        answer = speech.create(**{**asked, **options}, response_format=form)
        headers = getattr(answer, "response", answer).headers
        return answer.read(), {"request_id": headers.get("x-request-id")}

    def streaming(form: str, **options: Any) -> tuple[bytes, Case]:
        if not hasattr(speech, "with_streaming_response"):
            raise Absent("with_streaming_response")
        start_s, first_s, data = time.perf_counter(), None, b""
        made = speech.with_streaming_response.create(**{**asked, **options}, response_format=form)
        with made as answer:
            for piece in answer.iter_bytes():
                first_s = first_s or time.perf_counter() - start_s
                data += piece
        return data, {"first_audio_s": first_s, "request_id": answer.headers.get("x-request-id")}

    def sse(form: str, **options: Any) -> tuple[bytes, Case]:
        known = "stream_format" in inspect.signature(speech.create).parameters
        events = {"stream_format": "sse"}
        options |= events if known else {"extra_body": events}
        if not hasattr(speech, "with_streaming_response"):
            return of_events(create(form, **options)[0].decode().splitlines()), {}
        made = speech.with_streaming_response.create(**{**asked, **options}, response_format=form)
        with made as answer:
            return of_events(answer.iter_lines()), {}

    def realtime(form: str) -> tuple[bytes, Case]:
        if not hasattr(client, "realtime"):
            raise Absent("realtime")
        return asyncio.run(spoken(url)), {}

    for form in FORMATS:
        for way in (create, streaming, sse):
            tell(folder, form, way.__name__, lambda form=form, way=way: way(form))
    tell(folder, "pcm", "realtime", lambda: realtime("pcm"))
    refused("unknown voice", lambda: create("mp3", voice="nobody"))
    refused("unknown model", lambda: create("mp3", model="no-such-model"))
    refused("empty text", lambda: create("mp3", input=" "))
    for way in (create, streaming, sse) if breaks else ():
        refused(f"breaks off, {way.__name__}", lambda way=way: way("mp3", input=BREAKS))


def of_events(lines: Iterable[str]) -> bytes:
    """The audio of server-sent events, read as LiveKit reads them."""
    data, done = b"", False
    for line in lines:
        if line.startswith("data: "):
            event = json.loads(line[len("data: ") :])
            if event["type"] == "speech.audio.delta":
                data += base64.b64decode(event["audio"])
            done = done or event["type"] == "speech.audio.done"
    assert done, "the events have no end"
    return data


async def spoken(url: str) -> bytes:
    """What the client's own realtime connection hears."""
    data = b""
    address = "ws" + url.removeprefix("http")
    client = openai.AsyncOpenAI(base_url=url, api_key="unused", websocket_base_url=address)
    item = {
        "type": "message",
        "role": "user",
        "content": [{"type": "input_text", "text": TEXT}],
    }
    output = {"voice": VOICE, "format": {"type": "audio/pcm", "rate": 24000}}
    session = {"type": "realtime", "audio": {"output": output}}
    async with client, client.realtime.connect(model="gpt-realtime-2.1-mini") as connection:
        await connection.session.update(session=session)
        await connection.conversation.item.create(item=item)
        await connection.response.create()
        async with asyncio.timeout(60):
            async for event in connection:
                if event.type == "error":
                    raise RuntimeError(event.error.message)
                if event.type == "response.output_audio.delta":
                    data += base64.b64decode(event.delta)
                if event.type == "response.done":
                    assert event.response.status == "completed", event.response
                    return data
    raise RuntimeError("the connection ended before the response")


def tell(folder: Path, form: str, way: str, run: Callable[[], tuple[bytes, Case]]) -> None:
    case: Case = {"case": f"{form} {way}", "format": form, "way": way}
    try:
        data, facts = run()
        file = folder / f"{way}.{form}"
        file.write_bytes(data)
        case |= {"file": str(file), **facts}
    except Absent as absent:
        case["absent"] = str(absent)
    except Exception as error:  # whatever the client makes of it
        case["error"] = f"{type(error).__name__}: {error}"
    print(json.dumps(case), flush=True)


def refused(name: str, run: Callable[[], object]) -> None:
    case: Case = {"case": name}
    try:
        run()
    except Absent as absent:
        case["absent"] = str(absent)
    except Exception as error:
        case |= {"raised": type(error).__name__, "message": str(error)}
    else:
        case["error"] = "took it for a success"
    print(json.dumps(case), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), "--breaks" in sys.argv[3:])
