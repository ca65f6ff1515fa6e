"""A finished checkpoint speaks sentences as the server does: its reading of text, its stages."""

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import soundfile

from serve_app.config import AppConfig
from serve_app.http.speech.checks import checked_units
from serve_app.http.speech.joining import speak_units
from serve_app.models.checkpoint.files import open_checkpoint
from serve_app.models.fused.speech import FusedSpeech
from serve_app.types import NamedVoice, SamplingOverrides, SpeechRequest

_GREEDY: Final = SamplingOverrides(temperature=0.0)


@dataclass(frozen=True)
class Manner:
    """greedy: the likeliest codes, else the checkpoint's default sampling with seeds from `seed`.

    streaming: text along with the frames. together: streams at a time. in_turn: each sentence is
    said by one voice, the next by the next.
    """

    greedy: bool = False
    streaming: bool = False
    seed: int = 0
    together: int = 8
    in_turn: bool = False


def speak(
    checkpoint: Path, texts: Sequence[str], out: Path, manner: Manner, device: str = "cpu"
) -> Path:
    """Let the voices say the texts; return the list that `listen` reads.

    Files are `out`/VOICE/NUMBER.wav; a line of the list is file and text. What is there already is
    not said again.
    """
    opened = open_checkpoint(checkpoint)
    voices = tuple(opened.spec.talker.speaker_ids)
    wanted = [
        (voice, number)
        for turn, voice in enumerate(voices)
        for number in range(len(texts))
        if not manner.in_turn or number % len(voices) == turn
    ]
    files = {(voice, number): out / voice / f"{number:04d}.wav" for voice, number in wanted}
    missing = [each for each in wanted if not files[each].exists()]
    if missing:
        config = AppConfig(placement="fused", device="cpu" if device == "cpu" else "cuda")
        speech = FusedSpeech.load(opened, config, device)
        card = opened.spec.card("voice", str(checkpoint), embedded=False)
        rate_hz = card.sample_rate_hz
        drawing = _GREEDY if manner.greedy else SamplingOverrides()

        async def one(voice: str, number: int) -> None:
            request = SpeechRequest(
                f"{voice}-{number}", "voice", texts[number], NamedVoice(voice), "english",
                seed=manner.seed + number, streaming_text=manner.streaming, talker=drawing,
                subtalker=drawing,
            )  # fmt: skip
            units = checked_units(request.text, request.language, card, None)
            async with aclosing(speak_units(speech.speak, request, units, rate_hz)) as chunks:
                parts = [chunk.samples async for chunk in chunks]
            file = files[voice, number]
            file.parent.mkdir(parents=True, exist_ok=True)
            samples = np.concatenate(parts) if parts else np.zeros(0, np.int16)
            soundfile.write(file, samples, rate_hz)

        async def every() -> None:
            room = asyncio.Semaphore(manner.together)

            async def held(voice: str, number: int) -> None:
                async with room:
                    await one(voice, number)

            await asyncio.gather(*(held(*each) for each in missing))

        try:
            asyncio.run(every())
        finally:
            speech.close()
    listing = out / "all.tsv"
    lines = [f"{files[voice, number]}\t{texts[number]}\n" for voice, number in wanted]
    listing.write_text("".join(lines), encoding="utf-8")
    return listing
