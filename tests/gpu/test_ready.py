"""Ready means ready: a start meets only kernels that the lists name, a request none that is new.

`TTS_GPU_SIZES` names the sizes of the checkpoints ("0.6b,1.7b"); default: 0.6b.
"""

import asyncio
import dataclasses
import os
from contextlib import aclosing

import numpy as np
import pytest

from serve_app.config import AppConfig
from serve_app.models.checkpoint.files import open_checkpoint
from serve_app.models.kernel_cache.record import recording
from serve_app.models.kernel_cache.stages import Speak, started
from serve_app.models.kernel_cache.variants import known
from serve_app.models.late_kernels import late_kernels
from serve_app.models.random_checkpoint.write import write_checkpoint
from tests.parity.engines import request

SIZES = os.environ.get("TTS_GPU_SIZES", "0.6b").split(",")


async def load(speak: Speak, count: int, words: np.ndarray, frames: int) -> None:
    """`count` requests at once; every third one goes on from half of its frames."""

    async def one(index: int) -> None:
        asked = request("word " * int(words[index]), seed=index, max_new_tokens=frames)
        asked = dataclasses.replace(asked, request_id=f"r{count}-{index}")
        done = np.zeros((frames // 2, 16), np.int64) if index % 3 == 2 else None
        async with aclosing(speak(asked, done)) as chunks:
            async for _ in chunks:
                pass

    await asyncio.gather(*map(one, range(count)))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("placement", ["fused", "split"])
def test_a_request_meets_no_kernel_that_its_start_has_not_and_a_start_none_that_no_list_has(
    tmp_path, placement, size
) -> None:
    folder = tmp_path / size
    write_checkpoint(folder, size=size, variant="custom_voice", eos="unreachable", device="cuda")
    config = AppConfig(placement=placement, device="cuda")
    rng = np.random.default_rng(7)
    with recording() as met, started(open_checkpoint(folder), config, "cuda") as speak:
        unknown = {f"{v.module}.{v.name}" for v in met - set(known())}
        late = late_kernels.count
        for count in (1, 3, 16, 7, 64, 33, 2, 48, 5):
            asyncio.run(load(speak, count, rng.integers(1, 120, count), int(rng.integers(3, 40))))
        assert late_kernels.count == late
    # A process that started stages before has met kernels already: `met` may be too small.
    assert not unknown, "record the lists again (docs/start.md)"
