"""The stages in a process of their own: same audio, same errors, and what its loss means."""

import asyncio
import os
import signal
import time
from contextlib import aclosing
from pathlib import Path

import numpy as np
import pytest

from serve_app.config import AppConfig
from serve_app.errors import InvalidRequest, StageUnavailable
from serve_app.models.fused import standby
from serve_app.models.fused.process import SpeechProcess
from serve_app.protocols import require
from serve_app.types import NamedVoice, SpeechRequest

pytest.importorskip("vllm")

FRAMES = 6
CONFIG = AppConfig.model_validate(
    {
        "placement": "fused",
        "talker": {"max_num_seqs": 4, "max_model_len": 256, "block_size": 32},
        "speech_decoder": {"max_streams": 4, "chunk_frames": [1, 2, 4]},
    }
)


def asked(seed: int, voice: str = "ryan", **fields: object) -> SpeechRequest:
    defaults = {"voice": NamedVoice(voice), "language": "english", "max_new_tokens": FRAMES}
    return SpeechRequest(f"r{seed}", "tiny", "Hello.", seed=seed, **{**defaults, **fields})


async def spoken(speech: SpeechProcess, request: SpeechRequest, done=None) -> list:
    async with aclosing(speech.speak(request, done)) as chunks:
        return [chunk async for chunk in chunks]


def joined(chunks: list, name: str) -> np.ndarray:
    return np.concatenate([getattr(chunk, name) for chunk in chunks])


async def idle(speech: SpeechProcess) -> bool:
    stats = await speech.stats()
    return not (stats["speech_decoder"]["streams"] or stats["talker"]["streams"])


async def scenario(folder, standbys: Path) -> None:
    """In one go, since a start costs half a minute; the start of a child is what e2e tests have."""
    lost: list[str] = []
    standby.start(standbys, anchor=os.getpid())
    while not list(standbys.glob("*.sock")):
        await asyncio.sleep(0.05)
    began_s = time.monotonic()
    speech = await SpeechProcess.start(
        folder, CONFIG, "cpu", on_death=lost.append, standbys=standbys, answer_s=2.0
    )
    try:
        assert isinstance(speech._process, standby.Taken)
        assert not list(standbys.iterdir())
        assert list(speech.start_parts)[:2] == ["standby", "imports"]
        assert speech.start_parts["talker graphs"] > 0
        assert sum(speech.start_parts.values()) < time.monotonic() - began_s
        require(await speech.health())
        alone = await spoken(speech, asked(1))
        assert [len(chunk.codes) for chunk in alone] == [1, 2, 3]
        assert joined(alone, "samples").dtype == np.int16
        together = await asyncio.gather(*[spoken(speech, asked(seed)) for seed in (1, 2, 3)])
        np.testing.assert_array_equal(joined(together[0], "codes"), joined(alone, "codes"))
        assert not np.array_equal(joined(together[1], "codes"), joined(alone, "codes"))

        rest = await spoken(speech, asked(1), done=joined(alone, "codes")[:3])
        assert rest[0].first_sample == alone[2].first_sample
        np.testing.assert_array_equal(joined(rest, "codes"), joined(alone, "codes")[3:])

        with pytest.raises(InvalidRequest, match="nobody"):
            await spoken(speech, asked(4, voice="nobody"))
        leaving = speech.speak(asked(5, max_new_tokens=100))
        await anext(leaving)
        await leaving.aclose()
        for _ in range(100):
            if await idle(speech):
                break
            await asyncio.sleep(0.05)
        assert await idle(speech)

        cut = speech.speak(asked(6, max_new_tokens=100))
        await anext(cut)
        assert not lost
        # A process that hangs and nobody continues.
        speech._process._signal(signal.SIGSTOP)
        with pytest.raises(StageUnavailable):
            async for _ in cut:
                pass
        with pytest.raises(StageUnavailable):
            require(await speech.health())
        with pytest.raises(StageUnavailable):
            await spoken(speech, asked(7))
        assert len(lost) == 1
        assert "process of the stages" in lost[0]
    finally:
        speech.close()
        speech._process.wait(10)


def test_a_standby_serves_until_it_is_lost(tiny_checkpoint, tmp_path: Path) -> None:
    asyncio.run(scenario(tiny_checkpoint(eos="unreachable"), tmp_path / "s"))
